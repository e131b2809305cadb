"""Reading checkpoints: what is accepted is read exactly, everything else is one clear error that names the place."""

from __future__ import annotations

import json
import os
import struct
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import safetensors
import tiny
from hypothesis import given, settings
from hypothesis import strategies as st

from halfbyte.convert.checkpoint import Checkpoint
from halfbyte.convert.jsonfile import Settings
from halfbyte.convert.safetensors_file import SafetensorsFile
from halfbyte.errors import HalfbyteError, ModelFileError, UnsupportedError, UsageError


def packed(header: Any, data: bytes = b"", length: int | None = None) -> bytes:
    """Return a safetensors file with `header` (JSON value or bytes)."""
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(raw) if length is None else length) + raw + data


def entry(dtype: str = "F32", shape: Any = (2,), offsets: Any = (0, 8)) -> dict[str, Any]:
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


def write(folder: Path, content: bytes) -> Path:
    file = folder / "m.safetensors"
    file.write_bytes(content)
    return file


# ------------------------------------------------------------------------------------------------- reading values


@pytest.mark.parametrize("dtype", ["f32", "f16", "bf16"])
def test_rows_are_exact(tmp_path: Path, dtype: str) -> None:
    rng = np.random.default_rng(3)
    values = rng.standard_normal((7, 5), dtype=np.float32).astype(tiny.DTYPES[dtype]).astype(np.float32)
    tiny.write_safetensors(tmp_path / "m.safetensors", {"w": values, "v": values[0]}, dtype)
    file = SafetensorsFile(tmp_path / "m.safetensors")
    np.testing.assert_array_equal(file.rows("w", 0, 7), values)
    np.testing.assert_array_equal(file.rows("w", 2, 4), values[2:4])
    np.testing.assert_array_equal(file.rows("v", 0, 1), values[:1])
    assert file.rows("w", 0, 7).dtype == np.float32
    file.close()


def test_every_bf16_and_f16_value_is_kept(tmp_path: Path) -> None:
    bits = np.arange(65536, dtype=np.uint16)
    for dtype, kind in (("BF16", ml_dtypes.bfloat16), ("F16", np.float16)):
        file = SafetensorsFile(write(tmp_path, packed({"w": entry(dtype, [65536], [0, 131072])}, bits.tobytes())))
        found = file.rows("w", 0, 1)[0]
        np.testing.assert_array_equal(found, bits.view(kind).astype(np.float32))
        file.close()


def test_misaligned_data_is_read(tmp_path: Path) -> None:
    header = {"a": entry("U8", [1], [0, 1]), "w": entry("F32", [2], [1, 9])}
    raw = json.dumps(header).encode()
    raw += b" " * (-len(raw) % 8)
    file = SafetensorsFile(write(tmp_path, packed(raw, b"\0" + np.array([1.5, -2], np.float32).tobytes())))
    np.testing.assert_array_equal(file.rows("w", 0, 1), [[1.5, -2]])
    file.close()


def test_the_files_tiny_writes_are_what_safetensors_reads(tmp_path: Path) -> None:
    values = {"w": np.arange(6, dtype=np.float32).reshape(2, 3)}
    tiny.write_safetensors(tmp_path / "m.safetensors", values, "f32")
    from safetensors.numpy import load_file

    np.testing.assert_array_equal(load_file(tmp_path / "m.safetensors")["w"], values["w"])


def test_tensor_types_that_are_not_read_are_listed(tmp_path: Path) -> None:
    file = SafetensorsFile(write(tmp_path, packed({"w": entry("I64", [1], [0, 8])}, bytes(8))))
    with pytest.raises(UnsupportedError, match=r"type of tensor w 'I64' is not supported; supported: F32, F16, BF16"):
        file.rows("w", 0, 1)
    file.close()


def test_zero_sized_and_scalar_tensors_are_accepted(tmp_path: Path) -> None:
    header = {"e": entry("F32", [0, 1 << 62], [0, 0]), "s": entry("F32", [], [0, 4])}
    file = SafetensorsFile(write(tmp_path, packed(header, np.array([7], np.float32).tobytes())))
    assert file.tensors["e"].shape == (0, 1 << 62)
    np.testing.assert_array_equal(file.rows("s", 0, 1), [[7]])
    file.close()


def test_100_000_tensors_are_accepted(tmp_path: Path) -> None:
    header = {f"t{i}": entry("F32", [1], [4 * i, 4 * i + 4]) for i in range(100_000)}
    file = SafetensorsFile(write(tmp_path, packed(header, bytes(400_000))))
    assert len(file.tensors) == 100_000
    file.close()


# --------------------------------------------------------------------------------------------------- broken files

GOOD = packed({"w": entry()}, bytes(8))

BROKEN = {
    "empty": (b"", "is empty"),
    "seven bytes": (b"\0" * 7, "8 are needed"),
    "length only": (packed(b""), "length 0"),
    "length 1": (packed(b"{"), "length 1"),
    "length 2^64-1": (packed(b"{}", length=2**64 - 1), str(2**64 - 1)),
    "length beyond the file": (packed(b"{}", length=3), "length 3"),
    "a zip": (b"PK\x03\x04" + bytes(60), "begins with"),
    "git-lfs pointer": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git-lfs pointer"),
    "byte order mark": (packed(b"\xef\xbb\xbf{}"), "instead of"),
    "leading space": (packed(b" {}"), "instead of"),
    "a list": (packed(b"[]"), "instead of"),
    "not UTF-8": (packed(b'{"\xff": 1}'), "is not UTF-8: byte 10"),
    "trailing comma": (packed(b'{"__metadata__": {},}'), "is not JSON"),
    "two documents": (packed(b"{}{}"), "is not JSON"),
    "NUL padding": (packed(b"{}\0\0"), "is not JSON"),
    "deep nesting": (packed(b'{"w":' + b"[" * 100_000 + b"]" * 100_000 + b"}"), "nested too deeply"),
    "5000 digits": (packed(b'{"w": ' + b"9" * 5000 + b"}"), "is not JSON that can be read"),
    "NaN": (packed(b'{"w": NaN}'), "NaN"),
    "duplicate tensor": (packed(b'{"w": {}, "w": {}}'), "'w' appears twice"),
    "duplicate shape": (packed(b'{"w": {"dtype":"F32","shape":[2],"shape":[2],"data_offsets":[0,8]}}'), "twice"),
    "metadata not strings": (packed({"__metadata__": {"a": 1}}), "__metadata__"),
    "missing shape": (packed({"w": {"dtype": "F32", "data_offsets": [0, 8]}}, bytes(8)), "tensor w"),
    "extra key": (packed({"w": entry() | {"x": 1}}, bytes(8)), "nothing else"),
    "null": (packed({"w": None}), "tensor w"),
    "lower-case type": (packed({"w": entry("f32")}, bytes(8)), "unknown type 'f32'"),
    "float in shape": (packed({"w": entry(shape=[2.0])}, bytes(8)), "shape is [2.0]"),
    "exponent in shape": (packed(b'{"w": {"dtype":"F32","shape":[2e0],"data_offsets":[0,8]}}', bytes(8)), "shape"),
    "negative shape": (packed({"w": entry(shape=[-2])}, bytes(8)), "shape is [-2]"),
    "shape 2^64": (packed({"w": entry(shape=[2**64])}, bytes(8)), "2^63-1"),
    "boolean shape": (packed({"w": entry(shape=[True])}, bytes(8)), "shape"),
    "shape overflow": (packed({"w": entry(shape=[2**62, 2**62])}, bytes(8)), str(2**126)),
    "9 dimensions": (packed({"w": entry(shape=[1] * 9)}, bytes(8)), "9 dimensions"),
    "half a byte": (packed({"w": entry("F4", [3], [0, 1])}, b"\0"), "12 bits"),
    "too small a range": (packed({"w": entry(offsets=[0, 4])}, bytes(4)), "takes 8 bytes"),
    "begin after end": (packed({"w": entry(offsets=[8, 0])}, bytes(8)), "[begin, end]"),
    "three offsets": (packed({"w": entry(offsets=[0, 4, 8])}, bytes(8)), "[begin, end]"),
    "hole in front": (packed({"w": entry(offsets=[4, 12])}, bytes(12)), "end at"),
    "overlap": (packed({"a": entry(), "b": entry(offsets=[4, 12])}, bytes(12)), "tensor b"),
    "hole between": (packed({"a": entry(), "b": entry(offsets=[12, 20])}, bytes(20)), "tensor b"),
    "beyond the end": (packed({"w": entry()}, bytes(4)), "incomplete download"),
    "trailing bytes": (packed({"w": entry()}, bytes(9)), "but the file has"),
    "empty name": (packed({"": entry()}, bytes(8)), "name of 0 characters"),
    "10 KB name": (packed({"n" * 10_000: entry()}, bytes(8)), "name of 10000 characters"),
    "cut in the data": (GOOD[:-1], "incomplete download"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_broken_file_is_one_clear_error(tmp_path: Path, case: str) -> None:
    content, said = BROKEN[case]
    file = write(tmp_path, content)
    with pytest.raises(ModelFileError) as error:
        SafetensorsFile(file)
    message = str(error.value)
    assert said in message
    assert message.startswith(str(file))
    assert "\n" not in message


def test_names_in_messages_are_escaped(tmp_path: Path) -> None:
    with pytest.raises(ModelFileError) as error:
        SafetensorsFile(write(tmp_path, packed({"a\n\x1b[31m": entry("Q4")}, bytes(8))))
    assert r"a\n\x1b[31m" in str(error.value)


def test_header_of_more_than_100_mb_is_refused_before_it_is_read(tmp_path: Path) -> None:
    file = write(tmp_path, struct.pack("<Q", 100_000_001) + b"{")
    os.truncate(file, 8 + 100_000_001)
    with pytest.raises(ModelFileError, match="2 to 100000000 bytes"):
        SafetensorsFile(file)


def test_file_cut_while_it_is_read(tmp_path: Path) -> None:
    file = write(tmp_path, packed({"w": entry("F32", [1024], [0, 4096])}, bytes(4096)))
    opened = SafetensorsFile(file)
    os.truncate(file, 2000)
    with pytest.raises(ModelFileError, match="ended while it was read"):
        opened.rows("w", 0, 1)
    with pytest.raises(ModelFileError, match="changed while"):
        opened.check_unchanged()
    opened.close()


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="the system has no named pipes")
def test_a_pipe_does_not_block(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "m.safetensors")
    with pytest.raises(ModelFileError, match="not a regular file"):
        SafetensorsFile(tmp_path / "m.safetensors")


@settings(max_examples=400, deadline=None)
@given(data=st.data())
def test_what_is_accepted_the_safetensors_library_accepts_too(tmp_path_factory: Any, data: st.DataObject) -> None:
    """Mutated files: never another exception than ours, and never accepted where the library refuses."""
    good = packed(
        {"__metadata__": {"format": "pt"}, "a": entry("F32", [2, 3], [0, 24]), "b": entry("BF16", [4], [24, 32])},
        bytes(range(32)),
    )
    content = bytearray(good)
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(content) - 1))
        kind = data.draw(st.sampled_from(["set", "cut", "insert", "digit"]))
        if kind == "set":
            content[at] = data.draw(st.integers(0, 255))
        elif kind == "digit" and chr(content[at]).isdigit():
            content[at] = data.draw(st.sampled_from(list(b"0123456789-.e")))
        elif kind == "cut":
            del content[max(at, 1) :]
        elif kind == "insert":
            content.insert(at, data.draw(st.sampled_from(list(b'[]{},:"0 '))))
    file = write(tmp_path_factory.mktemp("mutant"), bytes(content))
    try:
        opened = SafetensorsFile(file)
    except HalfbyteError:
        return
    opened.close()
    try:
        safetensors.deserialize(bytes(content))
    except safetensors.SafetensorError as error:
        pytest.fail(f"accepted, but the library says {error}: {bytes(content)!r}")


# -------------------------------------------------------------------------------------------------------- folders


def test_shards_hold_together(tmp_path: Path) -> None:
    spec = tiny.Tiny(shards=3, dtype="bf16")
    weights = tiny.weights(spec)
    with Checkpoint(tiny.build(tmp_path / "m", spec)) as checkpoint:
        assert set(checkpoint.tensors) == set(weights)
        assert len(checkpoint.paths()) == 3
        for name, value in weights.items():
            rows = checkpoint.rows(name, 0, value.shape[0] if value.ndim == 2 else 1)
            np.testing.assert_array_equal(rows.reshape(value.shape), value)


@pytest.mark.parametrize(
    "part", ["/etc/passwd", "../x.safetensors", "sub/x.safetensors", "C:\\x.safetensors", "a\0.safetensors", "x.bin", 7]
)
def test_shard_names_that_lead_out_of_the_folder(tmp_path: Path, part: object) -> None:
    folder = tiny.build(tmp_path / "m", tiny.Tiny(shards=2))
    index = folder / "model.safetensors.index.json"
    content = json.loads(index.read_text())
    content["weight_map"]["model.norm.weight"] = part
    index.write_text(json.dumps(content))
    with pytest.raises(ModelFileError, match="the plain name of a shard is allowed"):
        Checkpoint(folder)


def edit_index(folder: Path, change: Any) -> None:
    index = folder / "model.safetensors.index.json"
    content = json.loads(index.read_text())
    change(content)
    index.write_text(json.dumps(content))


def test_index_and_shards_that_disagree(tmp_path: Path) -> None:
    names = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")

    def folder(number: int) -> Path:
        return tiny.build(tmp_path / str(number), tiny.Tiny(shards=2))

    first = folder(1)
    (first / names[0]).unlink()
    (first / names[1]).unlink()
    with pytest.raises(ModelFileError, match=f"{names[0]}, {names[1]}"):
        Checkpoint(first)
    second = folder(2)
    edit_index(second, lambda c: c["weight_map"].update({"model.norm.weight": names[0]}))
    with pytest.raises(ModelFileError, match=r"tensor model.norm.weight: is in .*the index says"):
        Checkpoint(second)
    third = folder(3)
    edit_index(third, lambda c: c["weight_map"].pop("model.norm.weight"))
    with pytest.raises(ModelFileError, match="the index says nowhere"):
        Checkpoint(third)
    fourth = folder(4)
    edit_index(fourth, lambda c: c["weight_map"].update({"ghost": names[0]}))
    with pytest.raises(ModelFileError, match="tensor ghost: is not in"):
        Checkpoint(fourth)
    fifth = folder(5)
    (fifth / names[1]).write_bytes((fifth / names[0]).read_bytes())
    with pytest.raises(ModelFileError, match=f"is in {names[0]} and in {names[1]}"):
        Checkpoint(fifth)


def test_folders_without_a_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="does not exist"):
        Checkpoint(tmp_path / "nowhere")
    (tmp_path / "file").write_text("x")
    with pytest.raises(UsageError, match="is not a folder"):
        Checkpoint(tmp_path / "file")
    with pytest.raises(UsageError, match=r"has no config\.json"):
        Checkpoint(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(UsageError, match=r"has no weights; one of model\.safetensors"):
        Checkpoint(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(packed({"__metadata__": {}}))
    with pytest.raises(ModelFileError, match="holds no tensor"):
        Checkpoint(tmp_path)


def test_damaged_safetensors_never_falls_back_to_bin(tmp_path: Path) -> None:
    folder = tiny.build(tmp_path / "m", tiny.Tiny())
    (folder / "pytorch_model.bin").write_bytes(b"PK\x03\x04")
    (folder / "model.safetensors").write_bytes(b"PK\x03\x04" + bytes(100))
    with pytest.raises(ModelFileError, match=r"model\.safetensors"):
        Checkpoint(folder)


# ------------------------------------------------------------------------------------------------------- settings


def loaded(folder: Path, content: str | bytes) -> Settings:
    file = folder / "config.json"
    file.write_bytes(content.encode() if isinstance(content, str) else content)
    return Settings.load(file)


def test_typed_reads_name_file_key_and_what_is_allowed(tmp_path: Path) -> None:
    found = loaded(
        tmp_path, '{"n": "32", "big": 1e9, "neg": -1, "flag": 1, "text": 5, "none": null, "part": {"x": 2.5}}'
    )
    for read in (
        lambda: found.integer("n", 1, 10),
        lambda: found.integer("big", 1, 10),
        lambda: found.integer("neg", 1, 10),
        lambda: found.integer("none", 1, 10),
        lambda: found.integer("absent", 1, 10),
        lambda: found.boolean("flag"),
        lambda: found.text("text"),
        lambda: found.number("text", 6, 7),
        lambda: found.section("text"),
        lambda: found.items("part"),
        lambda: found.section("part").integer("x", 0, 9),
    ):
        with pytest.raises(ModelFileError, match=r"config\.json: key ") as error:
            read()
        assert "allowed" in str(error.value) or "is missing" in str(error.value)
    with pytest.raises(ModelFileError, match=r"key part\.x"):
        found.section("part").integer("x", 0, 9)
    assert found.integer("none", 1, 10, default=None) is None
    assert found.number("neg", -5, 5) == -1.0


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"[]", b"\xef\xbb\xbf{}", b'{"a": 1, "a": 2}', b'{"a": Infinity}', b"\xff", b"[" * 100_000,
     b'{"a": ' + b"1" * 5000 + b"}"],
)  # fmt: skip
def test_json_that_is_none(tmp_path: Path, content: bytes) -> None:
    with pytest.raises(ModelFileError) as error:
        loaded(tmp_path, content)
    assert "\n" not in str(error.value)


def test_lone_surrogates_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelFileError, match="lone surrogate"):
        loaded(tmp_path, '{"a": "\\ud800"}').text("a")
