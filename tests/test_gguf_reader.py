"""The GGUF reader: sound files read right, its interface, and what opening one costs (damage: test_gguf_damage.py)."""

from __future__ import annotations

import os
import random
import re
import struct
import subprocess
import sys
from pathlib import Path

import gguf as reference
import numpy as np
import pytest
from gguf_corpus import (
    ARRAY,
    F32,
    FLOAT32,
    Q8_0,
    STRING,
    UINT32,
    array,
    entry,
    gguf,
    sample,
    string,
    tensor,
    u32,
    write,
)

from halfbyte.errors import ModelFileError, UnsupportedError, UsageError
from halfbyte.quant.gguf_reader import open_gguf

TEST_DATA = os.environ.get("HALFBYTE_TEST_DATA")
needs_data = pytest.mark.skipif(not TEST_DATA, reason="HALFBYTE_TEST_DATA is not set")


# ---- sound files


@pytest.mark.parametrize("version", [2, 3])
def test_sample_reads_as_written(tmp_path, version):
    with open_gguf(write(tmp_path, sample(version))) as file:
        assert file.version == version
        assert file.alignment == 32
        numbers = [file.metadata[f"a.{kind}"] for kind in ("uint8", "int8", "uint16", "int16", "uint32", "int32")]
        assert numbers == [255, -128, 65535, -32768, 2**32 - 1, -(2**31)]
        assert file.metadata["a.uint64"] == 2**64 - 1
        assert file.metadata["a.int64"] == -(2**63)
        assert file.metadata["a.float32"] == 1.5
        assert file.metadata["a.float64"] == 0.1
        assert file.metadata["a.bool"] is True
        assert file.metadata["general.architecture"] == "llama"
        assert list(file.metadata["b.string"]) == ["one", "", "zwölf\0"]
        assert file.metadata["b.string"].raw(-1) == "zwölf\0".encode()
        assert file.metadata["b.float32"].tolist() == [-1, 2]
        assert file.metadata["b.bool"].tolist() == [True, False, True]
        assert len(file.metadata["b.empty"]) == 0
        assert file.value_type("b.string") == "array[string]"
        assert file.value_type("a.uint16") == "uint16"
        assert list(file.tensors) == [
            "norm.weight",
            "matrix.weight",
            "deep.weight",
            "quarter.weight",
            "wide.weight",
        ]
        deep = file.tensors["deep.weight"]
        assert (deep.shape, deep.format.name, deep.nbytes) == ((3, 2, 1), "f16", 12)
        assert file.tensors["wide.weight"].shape == (1, 1, 1, 5)
        assert file.tensors["matrix.weight"].data.tolist() == list(range(68))
        assert file.tensors["matrix.weight"].dequantize().shape == (2, 32)


def test_sample_reads_as_the_gguf_package_reads_it(tmp_path):
    path = write(tmp_path, sample())
    with open_gguf(path) as file:
        other = reference.GGUFReader(path)
        for key in file.metadata:
            mine = file.metadata[key]
            mine = mine if isinstance(mine, int | float | str) else list(mine)
            assert mine == other.fields[key].contents(), key
        for view in other.tensors:
            mine = file.tensors[view.name]
            assert (mine.offset, mine.nbytes) == (view.data_offset, view.n_bytes)
            np.testing.assert_array_equal(
                mine.dequantize(), reference.quants.dequantize(view.data, view.tensor_type).reshape(mine.shape)
            )


@needs_data
def test_a_real_vocabulary_reads_as_the_gguf_package_reads_it():
    path = Path(TEST_DATA) / "ggml-vocab/ggml-vocab-llama-spm.gguf"
    with open_gguf(path) as file:
        for key, field in reference.GGUFReader(path).fields.items():
            if not key.startswith("GGUF."):
                mine = file.metadata[key]
                mine = mine if isinstance(mine, int | float | str) else list(mine)
                assert mine == field.contents(), key


@needs_data
def test_no_real_file_is_refused():
    paths = sorted(Path(TEST_DATA).glob("ggml-vocab/*.gguf"))
    assert len(paths) == 10
    for path in paths:
        with open_gguf(path) as file:
            tokens = file.get_array("tokenizer.ggml.tokens", of="string")
            assert len(tokens.to_list()) == len(tokens) > 30000
            assert not file.tensors


@needs_data
def test_version_1_is_refused_by_name():
    with pytest.raises(ModelFileError, match="GGUF version 1 is not supported; supported are 2 and 3"):
        open_gguf(Path(TEST_DATA) / "checkpoints/stories260K-gguf-v1.gguf")


def test_files_of_the_gguf_package_are_accepted(tmp_path):
    path = tmp_path / "m.gguf"
    writer = reference.GGUFWriter(path, "llama")
    writer.add_custom_alignment(64)
    writer.add_array("tokens", ["a", "ä"])
    writer.add_tensor("t.weight", np.arange(6, dtype=np.float32).reshape(2, 3))
    writer.add_tensor("u.weight", np.zeros((1, 4), np.int32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with open_gguf(path) as file:
        assert file.alignment == 64
        assert file.tensors["t.weight"].dequantize().tolist() == [[0, 1, 2], [3, 4, 5]]
        assert file.tensors["u.weight"].layout.name == "i32"


@pytest.mark.parametrize("alignment", [1, 8, 64, 4096, 65536])
def test_alignments(tmp_path, alignment):
    entries = (entry("general.alignment", UINT32, u32(alignment)),)
    second = -(-12 // alignment) * alignment
    tensors = (tensor("a", (3,), F32, 0), tensor("b", (1,), F32, second))
    data = struct.pack("<3f", 1, 2, 3).ljust(second, b"\0") + struct.pack("<f", 4)
    with open_gguf(write(tmp_path, gguf(entries, tensors, data, alignment=alignment))) as file:
        assert file.alignment == alignment
        assert file.tensors["a"].dequantize().tolist() == [1, 2, 3]
        assert file.tensors["b"].dequantize().tolist() == [4]


def test_padding_of_the_last_tensor_may_be_missing(tmp_path):
    with open_gguf(write(tmp_path, sample()[:-22])) as file:
        assert file.tensors["wide.weight"].data.tolist() == list(range(10))


def test_bytes_behind_the_data_are_accepted_and_show(tmp_path):
    with open_gguf(write(tmp_path, sample() + b"PK junk")) as file:
        assert file.file_size - file.data_end == 22 + 7


def test_no_tensors_and_no_keys(tmp_path):
    for cut in (24, 32):
        with open_gguf(write(tmp_path, gguf()[:cut])) as file:
            assert not file.metadata
            assert not file.tensors


def test_last_row_of_a_sparse_5_gib_tensor(tmp_path):
    rows, last = 5 << 20, bytes(range(68)) * 16
    front = gguf((), (tensor("big", (1024, rows), Q8_0, 0),))
    path = write(tmp_path, front)
    with path.open("r+b") as out:
        out.seek(len(front) + (rows - 1) * 1088)
        out.write(last)
    with open_gguf(path) as file:
        view = file.tensors["big"]
        assert view.nbytes == rows * 1088 > 2**32
        assert view.data[-1088:].tobytes() == last
        assert view.address() + view.nbytes == view.data[-1:].ctypes.data + 1


# ---- the interface


def test_typed_reads_name_what_is_wrong(tmp_path):
    entries = (
        entry("count", UINT32, u32(7)),
        entry("eps", FLOAT32, struct.pack("<f", float("nan"))),
        entry("name", STRING, string(b"caf\xe9")),
        entry("words", ARRAY, array(STRING, 2, string("a") + string(b"\xff"))),
    )
    path = write(tmp_path, gguf(entries))
    with open_gguf(path) as file:
        assert file.get_int("count", minimum=7, maximum=7) == 7
        assert file.get_int("absent", None) is None
        assert file.get_str("absent", "x") == "x"
        for call, message in (
            (lambda: file.get_int("count", minimum=8), r"key 'count' at byte 41 \(0x29\): is 7; allowed .* from 8"),
            (lambda: file.get_int("count", maximum=6), r"key 'count' at byte 41 .*: is 7; allowed .* up to 6"),
            (lambda: file.get_int("absent"), r"key 'absent': is missing; an integer is needed"),
            (lambda: file.get_float("count"), r"key 'count' .*: has type uint32; allowed is a float"),
            (lambda: file.get_bool("count"), r"key 'count' .*: has type uint32; allowed is a bool"),
            (lambda: file.get_float("eps"), r"key 'eps' .*: is nan; allowed are finite"),
            (lambda: file.get_str("name"), r"key 'name' .*: is not UTF-8: byte 3 of 4 is 0xe9"),
            (lambda: file.get_array("name"), r"key 'name' .*: has type string; allowed is an array"),
            (
                lambda: file.get_array("words", of="integer"),
                r"key 'words' .*: has type array\[string\]; allowed is an array of in",
            ),
            (lambda: file.get_array("words").to_list(), r"key 'words' element 1 at byte .*: is not UTF-8"),
            (lambda: file.get_array("words")[1], r"key 'words' element 1 at byte .*: is not UTF-8"),
        ):
            with pytest.raises(ModelFileError, match=re.escape(str(path)) + ": " + message):
                call()
        assert file.get_array("words")[0] == "a"
        assert file.get_array("words").raw(1) == b"\xff"
        with pytest.raises(IndexError):
            file.get_array("words").raw(2)


def test_views_are_read_only_checked_and_end_with_the_file(tmp_path):
    file = open_gguf(write(tmp_path, sample()))
    view = file.tensors["matrix.weight"]
    data = view.data
    assert view.address() == data.ctypes.data
    with pytest.raises(ValueError, match="read-only"):
        data[0] = 1
    view.release()
    assert data.tolist() == list(range(68))
    file.close()
    assert data.tolist() == list(range(68))  # the array in hand keeps the map
    for use in (view.address, view.dequantize, view.release):
        with pytest.raises(ValueError, match="is closed"):
            use()
    assert file.metadata["general.architecture"] == "llama"


def test_metadata_stays_when_the_file_is_overwritten(tmp_path):
    path = write(tmp_path, sample())
    with open_gguf(path) as file:
        path.write_bytes(bytes(len(sample())))
        assert list(file.metadata["b.string"]) == ["one", "", "zwölf\0"]


def test_a_type_that_is_not_read_is_named_when_it_is_used(tmp_path):
    path = write(tmp_path, gguf((), (tensor("t", (256, 1), 15, 0),), bytes(292)))
    with open_gguf(path) as file:
        assert file.tensors["t"].layout.name == "q8_k"
        with pytest.raises(
            UnsupportedError, match=r"m.gguf: tensor 't': tensor type 'q8_k \(id 15\)'.*supported: f32, "
        ):
            _ = file.tensors["t"].format


@pytest.mark.parametrize("kind", ["missing", "folder", "pipe", "device"])
def test_paths_that_are_no_files(tmp_path, kind):
    path = {"missing": tmp_path / "no.gguf", "folder": tmp_path, "device": Path("/dev/zero")}.get(kind, tmp_path / "p")
    if kind == "pipe":
        if not hasattr(os, "mkfifo"):
            pytest.skip("the system has no named pipes")
        os.mkfifo(path)
    with pytest.raises(UsageError, match=re.escape(str(path))):
        open_gguf(path)


# ---- cost


MEASURE = r"""
import re, sys, time
from pathlib import Path
from halfbyte.quant.gguf_reader import open_gguf

def peak():
    return int(re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())[1])

open_gguf(sys.argv[1]).close()  # imports and first pages
before = peak()
start = time.perf_counter()
file = open_gguf(sys.argv[2])
seconds = time.perf_counter() - start
grown = peak() - before
start = time.perf_counter()
count = sum(len(value.to_list()) for value in file.metadata.values() if hasattr(value, "to_list"))
print(f"open {seconds * 1e3:.1f} ms, growth {grown / 1024:.1f} MB, "
      f"all {count} strings {1e3 * (time.perf_counter() - start):.1f} ms", file=sys.stderr)
print(grown)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("case", ["vocabulary", "empty strings"])
def test_opening_is_cheap(tmp_path, case, capfd):
    """128 256 tokens and 280 147 merges, as Llama 3 has them, and G032: 300 000 empty strings."""
    rng = random.Random(3)
    words = ["".join(rng.choices("abcdefgh\u0120", k=rng.randint(1, 14))) for _ in range(128256)]
    merges = [f"{rng.choice(words)} {rng.choice(words)}" for _ in range(280147)]
    if case == "vocabulary":
        entries = tuple(
            entry(k, ARRAY, array(STRING, len(v), b"".join(map(string, v)))) for k, v in (("t", words), ("m", merges))
        )
    else:
        entries = (entry("k", ARRAY, array(STRING, 300_000, bytes(8 * 300_000))),)
    path = write(tmp_path, gguf(entries))
    warm = tmp_path / "warm.gguf"
    warm.write_bytes(sample())
    done = subprocess.run([sys.executable, "-c", MEASURE, warm, path], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    with capfd.disabled():
        sys.stderr.write(f"\n{case}: {path.stat().st_size / 1e6:.1f} MB; {done.stderr.strip()}\n")
    assert int(done.stdout) <= (40 if case == "vocabulary" else 8) * 1024
