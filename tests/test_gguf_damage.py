"""The GGUF reader: every damaged file is refused at the place of the damage."""

from __future__ import annotations

import os
import random
import re
from pathlib import Path

import numpy as np
import pytest
from gguf_corpus import (
    ARRAY,
    BF16,
    BOOL,
    F16,
    F32,
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
    write,
)

from halfbyte.errors import ModelFileError, UnsupportedError
from halfbyte.quant.gguf_reader import open_gguf


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
