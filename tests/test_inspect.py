"""`halfbyte inspect` on files that the `gguf` package writes, names with control characters among them."""

import json
import os
from pathlib import Path

import gguf
import numpy as np
import pytest
from command_line import assert_clean_error, halfbyte

DATA = os.environ.get("HALFBYTE_TEST_DATA")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    path = tmp_path_factory.mktemp("inspect") / "model.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_string("general.name", "red\x1b[31m\nname")
    writer.add_string("tokenizer.chat_template", "x" * 500)
    writer.add_float32("general.odd", float("nan"))
    writer.add_array("tokenizer.ggml.tokens", ["a", "b\x07", *"cdefgh"])
    writer.add_array("general.numbers", list(range(100)))
    writer.add_tensor("clear\x1b[2J", np.ones((64, 32), np.float32))
    writer.add_tensor("norm", np.ones(32, np.float16))
    packed = gguf.quants.quantize(np.ones((4, 256), np.float32), gguf.GGMLQuantizationType.Q8_0)
    writer.add_tensor("k", packed, raw_dtype=gguf.GGMLQuantizationType.Q8_0)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def row(text, name):
    """The words of the line of `text` that begins with `name`."""
    return next(line.split() for line in text.splitlines() if line.split()[:1] == [name])


def test_metadata_and_totals(model):
    done = halfbyte("inspect", model)
    assert done.returncode == 0, done.stderr
    assert row(done.stdout, "general.architecture") == ["general.architecture", "string", "llama"]
    assert row(done.stdout, "general.numbers")[2:] == ["100:", "0,", "1,", "2,", "3,", "4,", "..."]
    assert "(500 characters)" in done.stdout
    assert row(done.stdout, "Q8_0") == ["Q8_0", "1", "1.02", "K", "1.06", "KiB", "8.50"]
    weights, size = 64 * 32 + 32 + 4 * 256, 64 * 32 * 4 + 32 * 2 + 4 * 256 // 32 * 34
    assert row(done.stdout, "total")[-1] == f"{8 * size / weights:.2f}"
    assert "clear" not in done.stdout


def test_tensors_are_listed_on_request(model):
    done = halfbyte("inspect", "--tensors", model)
    assert row(done.stdout, "clear\\x1b[2J") == ["clear\\x1b[2J", "64", "x", "32", "F32", "8.00", "KiB"]


def test_control_characters_never_reach_the_terminal(model):
    for flags in ([], ["--tensors"], ["--json"]):
        output = halfbyte("inspect", model, *flags).stdout
        assert all(c.isprintable() or c == "\n" for c in output)


def test_json_has_every_tensor_as_the_gguf_package_reads_it(model):
    record = json.loads(halfbyte("inspect", model, "--json").stdout)
    reader = gguf.GGUFReader(model)
    assert record["tensors"] == [
        {
            "name": t.name,
            "shape": [int(n) for n in reversed(t.shape)],
            "type": t.tensor_type.name,
            "offset": int(t.data_offset),
            "nbytes": int(t.n_bytes),
        }
        for t in reader.tensors
    ]
    assert record["metadata"]["general.odd"] == {"type": "float32", "value": "nan"}
    assert record["metadata"]["tokenizer.ggml.tokens"]["value"] == {"length": 8, "first": ["a", "b\x07", "c", "d", "e"]}
    assert record["totals"]["total"]["tensors"] == 3


def test_a_file_without_tensors(tmp_path):
    path = tmp_path / "vocab.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    done = halfbyte("inspect", path)
    assert done.returncode == 0, done.stderr
    assert "0 tensors" in done.stdout


def test_bad_files_are_refused_in_one_line(model, tmp_path):
    cut = tmp_path / "cut.gguf"
    cut.write_bytes(model.read_bytes()[:-500])
    empty = tmp_path / "empty.gguf"
    empty.touch()
    page = tmp_path / "page.gguf"
    page.write_text("<!DOCTYPE html><html></html>")
    assert_clean_error(halfbyte("inspect", tmp_path / "absent.gguf"), 2, "absent.gguf")
    assert_clean_error(halfbyte("inspect", tmp_path), 2, tmp_path)
    for file in (cut, empty, page):
        assert_clean_error(halfbyte("inspect", file), 3, file)


@pytest.mark.skipif(DATA is None, reason="HALFBYTE_TEST_DATA is not set")
def test_real_vocabularies_and_the_old_version():
    files = sorted(Path(DATA).glob("ggml-vocab/*.gguf"))
    assert files
    for file in files:
        assert halfbyte("inspect", file).returncode == 0
    old = Path(DATA) / "checkpoints/stories260K-gguf-v1.gguf"
    assert_clean_error(halfbyte("inspect", old), 3, "version 1")
