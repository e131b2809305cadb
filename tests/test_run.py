"""`halfbyte run` and `halfbyte tokenize` as processes: the same tokens as the library, and a quick start."""

import json
import os
import signal
import subprocess
import sys

import pytest
from command_line import HALFBYTE, Terminal, assert_clean_error, halfbyte

from halfbyte import LLM
from halfbyte.runtime.tokenizer import load_tokenizer

# What a warm `run` must not import: compilers, frameworks, and what only other commands use.
HEAVY = {"numba", "torch", "gguf", "matplotlib", "huggingface_hub", "rich", "prompt_toolkit", "jinja2", "safetensors"}
# Nor what packs and unpacks other types than F32, of which the norms are, what compiles, and what looks for a model.
UNUSED = {
    "concurrent.futures", "logging", "halfbyte.quant.formats.block32", "halfbyte.quant.formats.block256",
    "halfbyte.quant.formats.gridded", "halfbyte.quant.formats.integers", "halfbyte.quant.formats.nonlinear",
    "halfbyte.quant.formats.repack", "halfbyte.runtime.templates", "halfbyte.hub.store", "halfbyte.hub.names",
}  # fmt: skip


@pytest.fixture(scope="module")
def greedy(tiny_gguf):
    with LLM(tiny_gguf) as llm:
        return llm.generate("the little dog", max_tokens=24, temperature=0)


def test_text_is_the_librarys_and_speed_goes_to_standard_error(tiny_gguf, greedy):
    done = halfbyte("run", tiny_gguf, "the little dog", "-n", 24, "--temp", 0)
    assert done.returncode == 0
    assert done.stdout == greedy.text + "\n"
    assert f"generated: {len(greedy.token_ids)} tokens" in done.stderr


def test_all_ways_to_give_model_and_prompt(tiny_gguf, greedy):
    options = ["-n", 24, "--temp", 0]
    for words, stdin in (
        (["-m", tiny_gguf, "-p", "the little dog"], ""),
        (["-m", tiny_gguf, *options, "the little dog"], ""),
        ([tiny_gguf, *options, "-p", "the little dog"], ""),
        ([tiny_gguf, "-"], "the little dog"),
        ([tiny_gguf], "the little dog"),
    ):
        assert halfbyte("run", *words, *options, stdin=stdin).stdout == greedy.text + "\n"


def test_json_is_one_object(tiny_gguf, greedy):
    done = halfbyte("run", tiny_gguf, "the little dog", "-n", 24, "--temp", 0, "--json")
    record = json.loads(done.stdout)
    assert record["text"] == greedy.text
    assert record["token_ids"] == greedy.token_ids
    assert record["finish_reason"] == greedy.finish_reason
    timings = record["timings"]
    assert timings["prompt_tokens"] == greedy.timings.prompt_tokens
    assert timings["generated_tokens"] == len(greedy.token_ids)
    expected = timings["generated_tokens"] / timings["generation_seconds"]
    assert timings["generation_per_second"] == pytest.approx(expected)


def test_options_reach_the_engine(tiny_gguf):
    def ids(*options):
        done = halfbyte("run", tiny_gguf, "the", "-n", 16, "--ignore-eos", "--json", *options)
        return json.loads(done.stdout)["token_ids"]

    assert ids("--seed", 5, "--temp", 2) == ids("-s", 5, "--temp", 2, "-t", 1)
    assert ids("--seed", 5, "--temp", 2) != ids("--seed", 6, "--temp", 2)
    assert len(ids("-c", 12)) < 16


def test_a_prompt_longer_than_the_context_is_told_with_the_numbers(tiny_gguf):
    done = halfbyte("run", tiny_gguf, "a b c d e f g h i j k l m", "-c", 8)
    with LLM(tiny_gguf) as llm:
        tokens = len(llm.tokenize("a b c d e f g h i j k l m"))
    assert_clean_error(done, 2, f"{tokens} tokens", "8 tokens")


@pytest.mark.skipif(os.name != "posix", reason="signals are others here")
def test_ctrl_c_prints_what_is_there(no_template_gguf):
    command = [*HALFBYTE, "run", no_template_gguf, "the", "--ignore-eos", "--temp", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        shown = process.stdout.read(30)
        process.send_signal(signal.SIGINT)
        rest, errors = process.communicate(timeout=60)
        assert process.returncode == 130
        assert (shown + rest).endswith(b"\n")
        assert b"generated: " in errors
        assert b"Traceback" not in errors


@pytest.mark.skipif(os.name != "posix", reason="pipes end otherwise here")
def test_a_closed_output_ends_it_quietly(no_template_gguf):
    command = [*HALFBYTE, "run", no_template_gguf, "the", "--ignore-eos"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        process.stdout.read(10)
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait(60) == 128 + signal.SIGPIPE


def test_the_first_run_tells_that_it_compiles_and_the_second_does_not(tiny_gguf, tmp_path):
    environment = os.environ | {"HALFBYTE_CACHE_DIR": str(tmp_path / "cache")}
    first = halfbyte("run", tiny_gguf, "the", "-n", 4, "--temp", 0, env=environment)
    second = halfbyte("run", tiny_gguf, "the", "-n", 4, "--temp", 0, env=environment)
    assert "compiling kernels" in first.stderr
    assert "compiling" not in second.stderr
    assert first.stdout == second.stdout


@pytest.mark.skipif(os.name != "posix", reason="needs a pseudo-terminal")
def test_a_terminal_sees_how_far_the_compiler_is_and_then_the_text(tiny_gguf, tmp_path):
    words = ["run", tiny_gguf, "the little dog", "-n", 24, "--temp", 0, "--ignore-eos"]
    with Terminal(*words, env={"HALFBYTE_CACHE_DIR": str(tmp_path / "cache")}) as terminal:
        terminal.expect(r"\rcompiling kernels +\d+ %")
        terminal.expect(r"\r +\r")  # the line is cleared
        terminal.expect(r"generated: 24 tokens")
        assert terminal.wait() == 0


def test_a_damaged_kernel_in_the_cache_is_made_anew(tiny_gguf, tmp_path):
    environment = os.environ | {"HALFBYTE_CACHE_DIR": str(tmp_path / "cache")}
    words = ["run", tiny_gguf, "the", "-n", 4, "--temp", 0]
    first = halfbyte(*words, env=environment)
    for file in (tmp_path / "cache").rglob("*.o"):
        content = bytearray(file.read_bytes())
        content[len(content) // 2] ^= 1
        file.write_bytes(content)
    again = halfbyte(*words, env=environment)
    assert again.returncode == 0, again.stderr
    assert again.stdout == first.stdout


def test_a_warm_start_imports_nothing_heavy_and_takes_less_than_a_second(tiny_gguf):
    """CPU time, the best of three: a busy neighbour lengthens the wall's."""
    code = (
        "import sys, resource; from halfbyte.cli import main; main(sys.argv[1:]);"
        "used = resource.getrusage(resource.RUSAGE_SELF);"
        "print(used.ru_utime + used.ru_stime, *sys.modules)"
    )
    pytest.importorskip("resource", reason="no CPU times on this system")
    command = [sys.executable, "-c", code, "run", tiny_gguf, "the", "-n", "1", "--temp", "0"]
    seconds = []
    for _ in range(3):
        done = subprocess.run(command, capture_output=True, encoding="utf-8", check=True)
        used, *modules = done.stdout.splitlines()[-1].split()
        seconds.append(float(used))
        assert not (HEAVY | UNUSED) & set(modules)
    assert min(seconds) < 1.0


def test_tokenize_shows_ids_and_pieces(tiny_gguf):
    tokenizer = load_tokenizer(tiny_gguf)
    text = "<s>Hello wörld €"
    for flags, special, parse in (([], True, False), (["--no-bos"], False, False), (["--parse-special"], True, True)):
        ids = tokenizer.encode(text, add_special=special, parse_special=parse)
        lines = halfbyte("tokenize", tiny_gguf, text, *flags).stdout.splitlines()
        assert [int(line.split(" -> ")[0]) for line in lines] == ids
        record = json.loads(halfbyte("tokenize", tiny_gguf, *flags, "--json", stdin=text).stdout)
        assert [token["id"] for token in record] == ids
    pieces = [token["piece"] for token in record if token["id"] not in (tokenizer.bos_id, tokenizer.eos_id)]
    joined = b"".join(piece.encode() if isinstance(piece, str) else bytes(piece) for piece in pieces)
    assert joined.decode().lstrip() == "Hello wörld €"


def test_a_token_that_is_half_a_character_is_bytes(tiny_gguf):
    record = json.loads(halfbyte("tokenize", tiny_gguf, "😀", "--no-bos", "--json").stdout)
    assert [240] in [token["piece"] for token in record]
    assert "-> '\\xf0'" in halfbyte("tokenize", tiny_gguf, "😀", "--no-bos").stdout
