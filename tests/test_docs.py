"""The documents: their examples run as they stand, and what they name is there."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import tiny
from command_line import HALFBYTE

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text("utf-8")
DOCUMENTS = ["README.md", "CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md", "docs/architecture.md", "docs/kernels.md"]


def blocks(language):
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.M | re.S)


@pytest.fixture(scope="module")
def folder(tmp_path_factory, tiny_gguf):
    """Where the examples run: a checkpoint and a model of the names that the README uses."""
    folder = tmp_path_factory.mktemp("docs")
    tiny.build(folder / "checkpoint")
    (folder / "model.gguf").write_bytes(tiny_gguf.read_bytes())
    (folder / "text.txt").write_text(README, "utf-8")
    return folder


def test_shell_examples(folder):
    lines = [line for block in blocks("sh") for line in block.splitlines() if "halfbyte" in line]
    assert len(lines) >= 7, "every command but the interactive ones has its example"
    (folder / "model.gguf").unlink()
    for line in lines:
        done = subprocess.run(
            ["bash", "-c", line.replace("halfbyte ", shlex.join(HALFBYTE) + " ")],
            cwd=folder, capture_output=True, encoding="utf-8", timeout=120, check=False,
        )  # fmt: skip
        assert done.returncode == 0, f"{line}: {done.stderr}"
        assert done.stdout, line


@pytest.mark.parametrize("source", blocks("python"), ids=lambda source: source.split("\n")[0])
def test_python_examples(folder, source):
    done = subprocess.run(
        [sys.executable, "-c", source], cwd=folder, capture_output=True, encoding="utf-8", timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr


def test_make_targets_that_the_documents_name_are_there():
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text("utf-8"), re.M))
    for document in DOCUMENTS:
        named = re.findall(r"^make (\w+)|`make (\w+)", (ROOT / document).read_text("utf-8"), re.M)
        assert {a or b for a, b in named} <= targets, document


@pytest.mark.parametrize("document", DOCUMENTS)
def test_paths_that_the_documents_name_are_there(document):
    text = (ROOT / document).read_text("utf-8")
    links = re.findall(r"\]\(([\w./-]+)\)", text)
    paths = re.findall(r"`((?:quant|convert|runtime|bench|commands|tests|docs)/[\w./-]*)`", text)
    for folder, named in (((ROOT / document).parent, links), (ROOT, paths)):
        for path in named:
            assert (folder / path).exists(), f"{document} names {path}"


def test_the_table_of_commands_is_complete():
    from halfbyte.cli import command_names

    listed = {row.split()[0] for row in re.findall(r"^\| `([^`]+)` \|", README, re.M)}
    assert listed == set(command_names())


def test_the_lists_of_what_is_supported_are_true():
    from halfbyte.quant.formats import FORMATS
    from halfbyte.runtime.kernels.targets import TARGETS

    supported = README.split("## What it can do so far")[1].split("Not yet")[0]
    for name in (name.upper() for name in FORMATS):
        assert re.search(rf"\b{name}\b", supported), name
    for name in TARGETS:
        spelled = name.replace("avx512", "avx-512").replace("avx_", "avx-").replace("sse41", "sse4.1").replace("_", " ")
        assert spelled in supported.lower(), name


def test_every_document_is_free_of_this_machines_paths():
    for document in [*DOCUMENTS, "Makefile", ".ci/run", "pyproject.toml"]:
        text = (ROOT / document).read_text("utf-8")
        assert not re.search(r"(^|[\s\"'=(])/(home|root|work|tmp|Users)/", text), document


@pytest.mark.skipif(os.name != "posix", reason="bash reads it")
def test_the_ci_script_is_sound():
    subprocess.run(["bash", "-n", ROOT / ".ci/run"], check=True)
    assert os.access(ROOT / ".ci/run", os.X_OK)
