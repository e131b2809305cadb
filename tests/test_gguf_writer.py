"""The GGUF writer: what it writes others read the same, and nothing half-written ever takes the final name."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import gguf as reference
import numpy as np
import pytest

from halfbyte.errors import ModelFileError, OutputExistsError, UsageError
from halfbyte.quant.formats import FORMATS
from halfbyte.quant.gguf_reader import open_gguf
from halfbyte.quant.gguf_writer import GgufWriter

ROWS = np.random.default_rng(0).standard_normal((5, 256)).astype(np.float32)


def names(folder: Path) -> list[str]:
    return [file.name for file in folder.iterdir()]


def write_all(path: Path, **options: bool) -> None:
    """A file with every kind of value and every format."""
    with GgufWriter(path, **options) as writer:
        writer.add_str("general.architecture", "llama")
        writer.add_uint32("u", 2**32 - 1)
        writer.add_int32("i", -5)
        writer.add_uint64("l", 2**64 - 1)
        writer.add_float32("f", 1e-5)
        writer.add_bool("b", False)
        writer.add("h", -300, "int16")
        writer.add_array("words", "string", ["a", "ä\0", ""])
        writer.add_array("scores", "float32", np.array([1, -2.5], np.float32))
        writer.add_array("types", "int32", [1, 2, 3])
        for name, format in FORMATS.items():
            writer.declare(f"{name}.weight", ROWS.shape, format)
        for name, format in FORMATS.items():
            writer.write(f"{name}.weight", format.quantize(ROWS))


def test_round_trip_and_the_gguf_package(tmp_path):
    path = tmp_path / "m.gguf"
    write_all(path)
    assert names(tmp_path) == ["m.gguf"]
    other = reference.GGUFReader(path)
    with open_gguf(path) as file:
        for key in file.metadata:
            mine = file.metadata[key]
            assert (mine if isinstance(mine, int | float | str) else list(mine)) == other.fields[key].contents()
            assert file.value_type(key).partition("[")[0] == other.fields[key].types[0].name.lower()
        assert list(file.metadata["words"]) == ["a", "ä\0", ""]
        assert [view.name for view in other.tensors] == list(file.tensors)
        for view in other.tensors:
            mine = file.tensors[view.name]
            assert mine.format is FORMATS[view.name.removesuffix(".weight")]
            assert mine.data.tobytes() == view.data.tobytes() == mine.format.quantize(ROWS).tobytes()
            assert mine.offset % 32 == 0


def test_mode_follows_the_umask(tmp_path):
    old = os.umask(0o027)
    try:
        write_all(tmp_path / "m.gguf")
    finally:
        os.umask(old)
    assert (tmp_path / "m.gguf").stat().st_mode & 0o777 == 0o640


def test_chunks_alignment_and_shapes(tmp_path):
    path = tmp_path / "m.gguf"
    with GgufWriter(path) as writer:
        writer.add_uint32("general.alignment", 256)
        writer.declare("a", (3,), FORMATS["f32"])
        writer.declare("b", (2, 3, 5), FORMATS["f16"])
        writer.write("a", (np.float32([x]) for x in (1, 2, 3)))
        writer.write("b", np.arange(30, dtype=np.float16))
    with open_gguf(path) as file:
        assert [view.offset % 256 for view in file.tensors.values()] == [0, 0]
        assert file.tensors["a"].dequantize().tolist() == [1, 2, 3]
        assert file.tensors["b"].dequantize().tolist() == np.arange(30).reshape(2, 3, 5).tolist()


def test_no_tensors(tmp_path):
    with GgufWriter(tmp_path / "m.gguf") as writer:
        writer.add_bool("k", True)
    with open_gguf(tmp_path / "m.gguf") as file:
        assert dict(file.metadata) == {"k": True}


def test_an_existing_file_needs_force(tmp_path):
    path = tmp_path / "m.gguf"
    path.write_bytes(b"precious")
    with pytest.raises(OutputExistsError, match=r"m.gguf: exists already; --force replaces it"):
        write_all(path)
    assert path.read_bytes() == b"precious"
    assert names(tmp_path) == ["m.gguf"]
    write_all(path, force=True)
    open_gguf(path).close()
    assert names(tmp_path) == ["m.gguf"]


def test_a_file_that_appears_meanwhile_is_not_replaced(tmp_path):
    path = tmp_path / "m.gguf"
    with pytest.raises(OutputExistsError), GgufWriter(path) as writer:
        writer.add_bool("k", True)
        path.write_bytes(b"precious")
    assert path.read_bytes() == b"precious"
    assert names(tmp_path) == ["m.gguf"]


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_an_exception_leaves_nothing(tmp_path, error):
    path = tmp_path / "m.gguf"
    with pytest.raises(error), GgufWriter(path) as writer:
        writer.declare("a", (32,), FORMATS["f32"])
        writer.write("a", np.zeros(32, np.float32))
        assert [name.endswith(".part") for name in names(tmp_path)] == [True]
        raise error
    assert names(tmp_path) == []


def test_calls_that_do_not_fit_are_refused_and_leave_nothing(tmp_path):
    def begin(writer):
        writer.add_uint32("k", 1)
        writer.declare("a", (2, 32), FORMATS["q8_0"])
        writer.declare("b", (4,), FORMATS["f32"])

    packed = np.zeros(68, np.uint8)
    for act, message in (
        (lambda w: w.write("b", packed), "'b' is written, but 'a' is next"),
        (lambda w: w.write("a", packed[1:]), "'a' takes 68 bytes; its data has 67"),
        (lambda w: w.write("a", [packed, packed]), "'a' takes 68 bytes; its data has 136"),
        (lambda w: w.write("a", packed), "'b' was declared and not written"),
        (lambda w: (w.write("a", packed), w.declare("c", (1,), FORMATS["f32"])), "'c' is declared after"),
        (lambda w: (w.write("a", packed), w.add_bool("c", True)), "'c' is added after"),
        (lambda w: w.declare("a", (1,), FORMATS["f32"]), "'a' is taken"),
        (lambda w: w.declare("n" * 64, (1,), FORMATS["f32"]), "longer than 63 bytes"),
        (lambda w: w.declare("c", (0, 3), FORMATS["f32"]), r"shape \[0, 3\] is not"),
        (lambda w: w.declare("c", (1, 1, 1, 1, 1), FORMATS["f32"]), "is not 1 to 4 dimensions"),
        (lambda w: w.declare("c", (3, 33), FORMATS["q4_0"]), "q4_0 packs 32 elements at a time; a row has 33"),
        (lambda w: w.add_uint32("k", 2), "key 'k' is taken"),
        (lambda w: w.add_uint32("c", -1), "-1 is no uint32"),
        (lambda w: w.add_float32("c", 1e300), "1e[+]300 is no float32"),
        (lambda w: w.add_array("c", "int32", [2**31]), "2147483648 is no int32"),
        (lambda w: w.add("general.alignment", 64, "uint32"), "added before any tensor"),
    ):
        with pytest.raises(ValueError, match=message), GgufWriter(tmp_path / "m.gguf") as writer:
            begin(writer)
            act(writer)
        assert names(tmp_path) == []


def test_places_that_cannot_be_written(tmp_path):
    with pytest.raises(UsageError, match=r"no/m.gguf: cannot be written: No such file or directory"):
        GgufWriter(tmp_path / "no/m.gguf")
    with pytest.raises(UsageError, match="is a folder"):
        GgufWriter(tmp_path, force=True)


@pytest.mark.parametrize("place", ["header", "data"])
def test_what_the_disk_changed_is_noticed(tmp_path, place):
    path = tmp_path / "m.gguf"
    with pytest.raises(ModelFileError, match="does not read back as it was written"), GgufWriter(path) as writer:
        writer.add_str("k", "value")
        writer.declare("a", (2048, 32), FORMATS["f32"])
        writer.write("a", np.ones((2048, 32), np.float32))
        (part,) = tmp_path.iterdir()
        with part.open("r+b") as out:
            out.seek(48 if place == "header" else 100_000)
            out.write(b"\x7f")
    assert names(tmp_path) == []


SLOW = """
import sys, time
import numpy as np
from halfbyte.quant.formats import FORMATS
from halfbyte.quant.gguf_writer import GgufWriter

def chunks():
    yield np.ones(1 << 20, np.float32)
    print("half", flush=True)
    time.sleep(60)

with GgufWriter(sys.argv[1]) as writer:
    writer.declare("a", (2 << 20,), FORMATS["f32"])
    writer.write("a", chunks())
"""


def test_a_kill_leaves_nothing_under_the_name(tmp_path):
    path = tmp_path / "m.gguf"
    with subprocess.Popen([sys.executable, "-c", SLOW, path], stdout=subprocess.PIPE, text=True) as writing:
        assert writing.stdout.readline() == "half\n"
        writing.kill()
    assert not path.exists()
    assert all(name.endswith(".part") for name in names(tmp_path))
    write_all(path)
    open_gguf(path).close()


FULL = """
import resource, sys
import numpy as np
from halfbyte.errors import HalfbyteError
from halfbyte.quant.formats import FORMATS
from halfbyte.quant.gguf_writer import GgufWriter

limit = int(sys.argv[2])
resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
try:
    with GgufWriter(sys.argv[1]) as writer:
        writer.declare("a", (1 << 20,), FORMATS["f32"])
        writer.write("a", np.ones(1 << 20, np.float32))
except HalfbyteError as error:
    print(error)
    sys.exit(error.exit_code)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="needs RLIMIT_FSIZE")
@pytest.mark.parametrize("limit", [0, 4096, (4 << 20) + 60])
def test_a_full_disk_is_one_line_and_leaves_nothing(tmp_path, limit):
    """A limit on file sizes fails writes as a full disk does, at the start, in the middle, and in the last flush."""
    path = tmp_path / "m.gguf"
    done = subprocess.run([sys.executable, "-c", FULL, path, str(limit)], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (2, "")
    assert done.stdout == f"{path}: cannot be written: File too large\n"
    assert names(tmp_path) == []
