"""The GGUF reader: sound files read right, every damaged one refused at the place of the damage, and cheaply."""

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
    BF16,
    BOOL,
    F16,
    F32,
    FLOAT32,
    I8,
    INT32,
    Q4_0,
    Q8_0,
    STRING,
    UINT8,
    UINT32,
    UINT64,
    array,
    entry,
    gguf,
    sample,
    string,
    tensor,
    u32,
    u64,
)

from halfbyte.errors import ModelFileError, UnsupportedError, UsageError
from halfbyte.quant.gguf_reader import open_gguf

TEST_DATA = os.environ.get("HALFBYTE_TEST_DATA")
needs_data = pytest.mark.skipif(not TEST_DATA, reason="HALFBYTE_TEST_DATA is not set")


def write(folder: Path, content: bytes) -> Path:
    path = folder / "m.gguf"
    path.write_bytes(content)
    return path


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


# ---- damaged files


def one(description: bytes, data: bytes = b"") -> bytes:
    """A file with one tensor."""
    return gguf((), (description,), data)


def key(type: int, payload: bytes, name: str | bytes = "k") -> bytes:
    """A file with one key."""
    return gguf((entry(name, type, payload),))


PAIR = (tensor("a", (8,), F32, 0), tensor("b", (8,), F32, 32))
DAMAGED = {
    "G001": (b"", 0, "the file is empty"),
    "G002": (b"GGU", 0, "found b'GGU'"),
    "G003 zip": (b"PK\3\4" + bytes(60), 0, "looks like a zip archive"),
    "G003 safetensors": (u64(40) + b'{"a": 1}', 0, "looks like a safetensors file"),
    "G003 page": (b"<!DOCTYPE html><html>", 0, "looks like a web page"),
    "G003 lfs": (b"version https://git-lfs.github.com/spec/v1\n", 0, "git-lfs pointer"),
    "G003 pickle": (b"\x80\2}q\0.", 0, "looks like a Python pickle"),
    "G003 json": (b'{"model_type": "llama"}', 0, "looks like JSON"),
    "G003 ggml": (b"tjgg" + bytes(60), 0, "from before GGUF"),
    "G004": (gguf(version=0), 4, "GGUF version 0 is not supported; supported are 2 and 3"),
    "G005": (gguf(version=1), 4, "GGUF version 1 is not supported"),
    "G006": (gguf(version=4), 4, "GGUF version 4 is not supported"),
    "G007": (gguf(version=3 << 24), 4, "byte order is big-endian"),
    "G008": (gguf(n_tensors=2**64 - 1), 8, f"{2**64 - 1} cannot be"),
    "G009": (gguf(n_tensors=2**40), 8, f"{2**40} cannot be"),
    "G010": (gguf(n_entries=2**64 - 1), 16, f"{2**64 - 1} cannot be"),
    "G011": (gguf(n_entries=2**40), 16, f"{2**40} cannot be"),
    "G012": (gguf((), PAIR, bytes(64), n_tensors=3), 90, "its name has 0 bytes"),
    "G015": (gguf((string("k", 2**63) + bytes(32),)), 24, f"its name has {2**63} bytes; allowed are 1 to 65535"),
    "G016": (gguf((string("k", 65000) + bytes(32),)), 32, "needs 65000 bytes; "),
    "G017": (key(UINT8, b"\0", "k" * 65536), 24, "its name has 65536 bytes; allowed are 1 to 65535"),
    "G018": (gguf((entry("", UINT8, bytes(9)),)), 24, "its name has 0 bytes; allowed are 1 to 65535"),
    "G019": (
        gguf((entry("k", UINT8, b"\0"), entry("k", UINT8, b"\0"))),
        38,
        "is there twice; its first value is at byte 37",
    ),
    "G020": (key(UINT8, b"\0", b"\xff\xfe"), 32, "is not UTF-8"),
    "G022 13": (key(13, bytes(8)), 33, "value type 13 is unknown; allowed are 0 to 12"),
    "G022 255": (key(255, bytes(8)), 33, "value type 255 is unknown"),
    "G022 -1": (key(2**32 - 1, bytes(8)), 33, "value type 4294967295 is unknown"),
    "G023": (key(BOOL, b"\2"), 37, "a bool is 2; allowed are 0 and 1"),
    "G023 array": (key(ARRAY, array(BOOL, 3, b"\0\1\3")), 51, "a bool is 3"),
    "G024": (key(STRING, string("v", 2**62)), 45, f"needs {2**62} bytes; "),
    "G026": (key(ARRAY, array(UINT8, 2**62, b"")), 41, f"{2**62} elements of uint8 take {2**62} bytes or more; "),
    "G027": (key(ARRAY, array(UINT64, 2**61 + 1, bytes(8))), 41, f"elements of uint64 take {2**64 + 8} bytes"),
    "G028": (key(ARRAY, array(STRING, 10**9, bytes(64))), 41, "1000000000 elements of string take 8000000000 bytes"),
    "G029": (key(ARRAY, array(STRING, 3, string("ab") + string("c", 99) + bytes(8))), 59, "needs 107 bytes; "),
    "G029 far": (
        key(ARRAY, array(STRING, 900, string("ab") * 700 + string("", 9999) + bytes(2**12))),
        7049,
        "needs 10007",
    ),
    "G030": (key(ARRAY, (u32(ARRAY) + u64(1)) * 5000), 37, "is an array of arrays"),
    "G031 13": (key(ARRAY, array(13, 1, bytes(8))), 37, "value type 13 is unknown"),
    "G033": (gguf(n_entries=65537)[:24] + bytes(65537 * 14), 16, "found 65537; allowed are 65536"),
    "tensors": (gguf(n_tensors=65537)[:24] + bytes(65537 * 33), 8, "found 65537; allowed are 65536"),
    "G034 0": (key(UINT32, u32(0), "general.alignment"), 53, "is 0; allowed are powers of two up to 65536"),
    "G034 3": (key(UINT32, u32(3), "general.alignment"), 53, "is 3; allowed are powers of two"),
    "G035 i32": (key(INT32, u32(32), "general.alignment"), 53, "has type int32; allowed is uint32"),
    "G035 string": (key(STRING, string("32"), "general.alignment"), 61, "has type string; allowed is uint32"),
    "G035 array": (key(ARRAY, array(UINT32, 1, u32(32)), "general.alignment"), 65, "has type array; allowed is uint32"),
    "G036": (key(UINT32, u32(2**31), "general.alignment"), 53, "is 2147483648; allowed are powers of two up to 65536"),
    "G038": (one(tensor("n" * 64, (8,), F32, 0), bytes(32)), 24, "its name has 64 bytes; allowed are 1 to 63"),
    "G039": (one(tensor("", (8,), F32, 0), bytes(32)), 24, "its name has 0 bytes; allowed are 1 to 63"),
    "G040": (gguf((), (PAIR[0], tensor("a", (8,), F32, 32)), bytes(64)), 57, "is there twice; .* at byte 24"),
    "G041": (one(tensor(b"\xc3(", (8,), F32, 0), bytes(32)), 32, "is not UTF-8"),
    "G042 5": (one(tensor("t", (1,) * 5, F32, 0), bytes(4)), 33, "has 5 dimensions; allowed are 1 to 4"),
    "G042 big": (one(tensor("t", (1,), F32, 0, 2**32 - 1), bytes(4)), 33, "has 4294967295 dimensions"),
    "G043": (one(tensor("t", (), F32, 0), bytes(32)), 33, "has 0 dimensions; allowed are 1 to 4"),
    "G044": (one(tensor("t", (2**64 - 1,), F32, 0)), 24, f"to {4 * (2**64 - 1) + 64} of a file"),
    "G045": (one(tensor("t", (8, 0), F32, 0)), 37, r"has shape \[0, 8\]; every dimension must be 1 or more"),
    "G046": (one(tensor("t", (2**62, 2**62), F32, 0)), 24, f"to {2**126 + 96} of a file"),
    "G047": (one(tensor("t", (2**60, 1, 1, 1), F32, 0)), 24, f"to {2**62 + 96} of a file"),
    "G048 even": (one(tensor("t", (5124095576030431008,), Q4_0, 0), bytes(32)), 24, "to 2882303761517117506 of a file"),
    "G049": (one(tensor("t", (4, 2**30 - 1, 2**30 + 1), F32, 0), bytes(32)), 24, "of a file that has"),
    "G050": (
        gguf((), (tensor("a", (2**63 - 64,), I8, 0), tensor("b", (2**63 - 64,), I8, 2**63 - 64)), bytes(32)),
        24,
        f"{2**64 - 128 + 96} are needed in all",
    ),
    "G051": (one(tensor("t", (2**63 - 1, 2), I8, 0), bytes(32)), 24, "of a file that has"),
    "G052": (
        one(tensor("t", (65,), Q8_0, 0), bytes(128)),
        37,
        "its rows have 65 elements; q8_0 needs a multiple of 32",
    ),
    "G054": (one(tensor("t", (64, 64), F16, 0), bytes(8160)), 24, "a file that has 8256; 8288 are needed in all"),
    "G056 99": (one(tensor("t", (8,), 99, 0), bytes(32)), 45, "tensor type 99 is unknown; known are 0, 1, 2, 3, 6, "),
    "G056 -1": (one(tensor("t", (8,), 2**32 - 1, 0), bytes(32)), 45, "tensor type 4294967295 is unknown"),
    "G058": (one(tensor("t", (8,), F32, 2**64 - 1), bytes(32)), 49, f"is {2**64 - 1}; allowed is 0"),
    "G059": (gguf((), (PAIR[0], tensor("b", (8,), F32, 33)), bytes(96)), 82, "is 33; allowed is 32"),
    "G060": (gguf((), (PAIR[0], tensor("b", (8,), F32, 0)), bytes(64)), 82, "is 0; allowed is 32: the one before, 'a'"),
    "G061": (gguf((), (tensor("a", (16,), F32, 0), tensor("b", (8,), F32, 32)), bytes(96)), 82, "is 32; allowed is 64"),
    "G062": (one(tensor("t", (8,), F32, 4096), bytes(32)), 49, "is 4096; allowed is 0: the first starts at 0"),
    "G063 gap": (gguf((), (PAIR[0], tensor("b", (8,), F32, 64)), bytes(96)), 82, "is 64; allowed is 32"),
    "G063 order": (gguf((), (PAIR[1], PAIR[0]), bytes(64)), 49, "is 32; allowed is 0"),
}


@pytest.mark.parametrize("case", DAMAGED)
def test_damage_is_refused_at_its_place(tmp_path, case):
    content, offset, message = DAMAGED[case]
    path = write(tmp_path, content)
    with pytest.raises(ModelFileError, match=message) as caught:
        open_gguf(path)
    text = str(caught.value)
    assert caught.value.offset == offset
    assert text.startswith(f"{path}: ")
    assert f"at byte {offset} ({offset:#x}): " in text
    assert text.isprintable()
    assert len(text) < 500


@pytest.mark.parametrize(("id", "name"), [(4, "q4_2"), (5, "q4_3"), (31, "q4_0_4_4"), (36, "iq4_nl_4_4")])
def test_types_that_gguf_gave_up_are_named(tmp_path, id, name):  # G056
    path = write(tmp_path, one(tensor("t", (32,), id, 0), bytes(32)))
    with pytest.raises(
        UnsupportedError, match=rf"m.gguf: tensor 't' at byte 45 .*'{name} \(id {id}, removed from GGUF\)'"
    ):
        open_gguf(path)


def test_names_cannot_write_to_the_terminal(tmp_path):  # G021, G041
    name = "a\n\x1b[2J\u202e\0"
    with open_gguf(
        write(tmp_path, gguf((entry(name, UINT8, b"\1"),), (tensor(name, (1,), F32, 0),), bytes(4)))
    ) as file:
        assert file.metadata[name] == 1
        assert name in file.tensors
    for content in (
        gguf((entry(name, 13, b""),)),
        gguf((entry(name, BOOL, b"\7"),)),
        one(tensor(name, (1,), F16, 2), bytes(4)),
        gguf((), (tensor(name, (1,), F32, 0), tensor("b", (1,), F32, 0)), bytes(64)),
    ):
        with pytest.raises(ModelFileError) as caught:
            open_gguf(write(tmp_path, content + bytes(64)))
        assert str(caught.value).isprintable()


def test_a_string_beyond_the_metadata_limit(tmp_path):  # G025: sparse, so nothing of it may be read
    path = write(tmp_path, gguf((entry("k", STRING, u64(1 << 30)),)))
    os.truncate(path, (1 << 30) + 4096)
    with pytest.raises(ModelFileError, match="metadata reaches byte 1073741869; allowed are 268435456 bytes"):
        open_gguf(path)


def test_every_truncation_is_refused(tmp_path):  # G014, G064
    content = sample()
    data_start = len(content) - 320
    for size in (*range(data_start), *range(data_start, len(content) - 22, 9), len(content) - 23):
        with pytest.raises(ModelFileError) as caught:
            open_gguf(write(tmp_path, content[:size]))
        assert caught.value.offset is not None
        if size >= 24:
            assert re.search(r"truncated|incomplete download|cannot be|are left", str(caught.value)), size


def test_any_single_byte_may_be_wrong(tmp_path):  # G071
    content, rng, refused = sample(), random.Random(1), 0
    path = tmp_path / "m.gguf"
    for _ in range(1500):
        changed = bytearray(content)
        for _ in range(rng.choice((1, 1, 1, 3))):
            changed[rng.randrange(len(content))] = rng.choice((rng.randrange(256), 0, 255, 1, 128))
        path.write_bytes(changed)
        try:
            use_everything(path)
        except (ModelFileError, UnsupportedError) as error:
            refused += 1
            assert str(error).startswith(f"{path}: ")
            assert str(error).isprintable()
    assert 400 < refused < 1400


def use_everything(path: Path) -> None:
    with open_gguf(path) as file:
        for value in file.metadata.values():
            if not isinstance(value, int | float | str | np.ndarray):
                value.to_list()
        for view in file.tensors.values():
            assert view.offset + view.nbytes <= path.stat().st_size
            view.data.sum()
            view.address()
            if view.layout.gguf_id in (F32, F16, BF16, Q4_0, Q8_0):
                with np.errstate(all="ignore"):
                    view.dequantize()


def test_random_arrays_of_strings(tmp_path):
    """Against the obvious walk: empty and long strings, and bytes that look like lengths, in every mixture."""
    rng = random.Random(2)
    for _ in range(30):
        letters = rng.choice((b"abc", b"\0", b"\0\1\2", b"a\0", bytes(range(256))))
        lengths = rng.choice(((0,), (0, 0, 0, 1), (3, 5, 12), (0, 7, 300), (255, 256), (1, 70000)))
        count = rng.choice((1, 63, 65, 300, 3000)) if max(lengths) < 1000 else 70
        strings = [bytes(rng.choices(letters, k=rng.choice(lengths))) for _ in range(count)]
        path = write(tmp_path, key(ARRAY, array(STRING, count, b"".join(map(string, strings)))) + bytes(40))
        with open_gguf(path) as file:
            found = file.metadata["k"]
            assert [found.raw(i) for i in range(len(found))] == strings
            if letters != bytes(range(256)):
                assert found.to_list() == [text.decode() for text in strings]


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
