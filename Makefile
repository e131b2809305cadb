# `make demo` and `make test` set up all they need, each in its own virtual environment under .venv/.
# PYTHON names the interpreter (3.11 or newer) that makes the environments.

PYTHON ?= python3
SOURCES := pyproject.toml $(wildcard *.py */*.py */*/*.py)

.PHONY: demo test lint types clean

# Install as a user would, convert a checkpoint, and let it tell a story.
# With HALFBYTE_TEST_DATA it is a real one that learned to tell stories to children; without, a random one, built here.
demo: .venv/demo/ready
	@rm -rf .venv/demo/work && mkdir -p .venv/demo/work
	@set -eu; checkpoint="$${HALFBYTE_TEST_DATA:-}/checkpoints/stories260K"; options="--temp 0"; \
	if [ -n "$${HALFBYTE_TEST_DATA:-}" ] && [ -d "$$checkpoint" ]; then \
	  echo "== stories260K, a real checkpoint with 260 thousand parameters"; \
	else \
	  echo "== a tiny random checkpoint: the commands are real, the words are noise"; \
	  echo "   (HALFBYTE_TEST_DATA names a folder with the real stories260K)"; \
	  checkpoint=.venv/demo/work/tiny; options="--seed 1 --ignore-eos"; \
	  PYTHONPATH=tests .venv/demo/bin/python -c "import pathlib, tiny; tiny.build(pathlib.Path('$$checkpoint'))"; \
	fi; \
	set -x; \
	.venv/demo/bin/halfbyte convert "$$checkpoint" .venv/demo/work/demo.gguf --type q8_0; \
	.venv/demo/bin/halfbyte inspect .venv/demo/work/demo.gguf; \
	.venv/demo/bin/halfbyte run .venv/demo/work/demo.gguf "Once upon a time" -n 100 $$options

# Everything that needs neither torch nor llama.cpp; ARGS goes to pytest: make test ARGS="tests/test_cli.py -x"
test: .venv/test/ready
	.venv/test/bin/python -m pytest -q -m "not parity and not peers" $(ARGS)

lint: .venv/lint/ready
	.venv/lint/bin/ruff check .
	.venv/lint/bin/ruff format --check .

# mypy names modules by their folder: the link gives the root the package's name, whatever the clone is called.
types: .venv/lint/ready
	@mkdir -p .venv/types && ln -sfn ../.. .venv/types/halfbyte
	.venv/lint/bin/mypy

.venv/demo/ready: $(SOURCES)
	$(PYTHON) -m venv .venv/demo
	.venv/demo/bin/python -m pip install --quiet . ml_dtypes  # the latter for tests/tiny.py, which writes the checkpoint
	@rm -rf build && touch $@

.venv/test/ready: pyproject.toml
	$(PYTHON) -m venv .venv/test
	.venv/test/bin/python -m pip install --quiet -e ".[test]"
	@touch $@

.venv/lint/ready: pyproject.toml
	$(PYTHON) -m venv .venv/lint
	.venv/lint/bin/python -m pip install --quiet -e ".[dev]"
	@touch $@

clean:
	rm -rf .venv build dist *.egg-info .pytest_cache .ruff_cache .mypy_cache .hypothesis
