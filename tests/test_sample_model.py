"""The shipped checkpoint and its cached conversions: used again, never when damaged or of another version."""

import os
import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import tiny

from halfbyte import LLM
from halfbyte.convert import sample_model
from halfbyte.convert.sample_model import EVALUATION_TEXT, QUESTIONS, cached_conversion, conversion_key, sample_gguf
from halfbyte.errors import HalfbyteError, HalfbyteWarning
from halfbyte.quant.gguf_reader import open_gguf


@pytest.fixture
def checkpoint(tmp_path):
    return tiny.build(tmp_path / "model")


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """An empty cache folder."""
    monkeypatch.setenv("HALFBYTE_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path / "cache"


def files(folder):
    return sorted(file for file in folder.rglob("*") if file.is_file())


def test_what_ships_is_complete():
    assert EVALUATION_TEXT.stat().st_size >= 100_000
    assert len(QUESTIONS.read_text("utf-8").splitlines()) >= 100
    with LLM(sample_gguf("f16")) as llm:
        assert llm.chat_template().text is not None
        assert llm.n_ctx >= 512
    assert (sample_model.SAMPLE / "model.safetensors").stat().st_size <= 8 << 20


@pytest.mark.parametrize(("type", "output"), [("q4_0", "q6_k"), ("q8_0", "q8_0"), ("bf16", "bf16")])
def test_every_matrix_of_the_sample_has_the_type(type, output):
    """No tensor falls back to another type, because its rows do not divide into blocks of 32 or 256."""
    with open_gguf(sample_gguf(type)) as file:
        formats = {name: view.format.name for name, view in file.tensors.items()}
        assert formats.pop("token_embd.weight") == output  # it is the output, too
        assert set(formats.values()) == {"f32", type}
        assert all(len(view.shape) == 1 for view in file.tensors.values() if view.format.name == "f32")


def test_a_conversion_is_made_once_and_used_again(checkpoint, cache):
    heard = []
    path = cached_conversion(checkpoint, "f32", lambda done, total, name: heard.append(done))
    assert heard
    assert path.is_relative_to(cache)
    assert path.name == "model-F32.gguf"
    assert len(files(cache)) == 2, "something else stays behind"
    before, heard[:] = path.stat(), []
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert cached_conversion(checkpoint, "f32", lambda done, total, name: heard.append(done)) == path
    assert not heard
    assert path.stat().st_mtime_ns == before.st_mtime_ns
    assert cached_conversion(checkpoint, "f16") != path


def flip(path):
    with path.open("r+b") as file:
        file.seek(path.stat().st_size // 2)
        byte = file.read(1)[0]
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte ^ 1]))


def digest_of(path):
    return path.with_name(path.name + ".sha256")


@pytest.mark.parametrize(
    "damage",
    [
        flip,
        lambda path: os.truncate(path, path.stat().st_size - 1),
        lambda path: os.truncate(path, 0),
        lambda path: path.open("ab").write(b"\0"),
        lambda path: path.write_bytes(b"GGUF of someone else"),
        lambda path: digest_of(path).unlink(),
        lambda path: digest_of(path).write_bytes(b"\xff"),
        lambda path: digest_of(path).write_text("0" * 64),
    ],
    ids=["flipped", "cut", "empty", "longer", "foreign", "no digest", "digest not text", "other digest"],
)
def test_a_damaged_conversion_is_made_anew_with_one_notice(checkpoint, cache, damage):
    path = cached_conversion(checkpoint, "f32")
    sound = path.read_bytes()
    damage(path)
    with pytest.warns(HalfbyteWarning) as caught:
        assert cached_conversion(checkpoint, "f32") == path
    [warning] = caught
    assert str(path) in str(warning.message)
    assert "\n" not in str(warning.message)
    assert path.read_bytes() == sound
    assert len(files(cache)) == 2
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        cached_conversion(checkpoint, "f32")


def test_a_digest_without_its_model_is_no_damage(checkpoint):
    """A process that was killed between the two renames leaves that."""
    path = cached_conversion(checkpoint, "f32")
    path.unlink()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert cached_conversion(checkpoint, "f32").exists()


def test_sha256sum_reads_the_digest(checkpoint):
    path = cached_conversion(checkpoint, "f32")
    if shutil.which("sha256sum") is None:
        pytest.skip("sha256sum is not installed")
    subprocess.run(["sha256sum", "-c", digest_of(path).name], cwd=path.parent, check=True, capture_output=True)


def test_a_failed_conversion_leaves_nothing(checkpoint, cache):
    (checkpoint / "config.json").write_text("{}")
    with pytest.raises(HalfbyteError):
        cached_conversion(checkpoint, "f32")
    assert files(cache) == []


def test_another_checkpoint_or_another_converter_has_another_key(checkpoint, tmp_path, monkeypatch):
    keys = [conversion_key(checkpoint)]
    assert conversion_key(checkpoint) == keys[0]
    for name in ("config.json", "model.safetensors", "generation_config.json"):
        with (checkpoint / name).open("ab") as file:
            file.write(b" ")
        keys.append(conversion_key(checkpoint))
    copy = tmp_path / "halfbyte"
    for part in ("convert", "quant"):
        shutil.copytree(Path(sample_model.__file__).parent.parent / part, copy / part)
    monkeypatch.setattr(sample_model, "_SOURCES", copy)
    assert conversion_key(checkpoint) == keys[-1], "where halfbyte is installed makes no difference"
    for name in ("convert/conversion.py", "convert/vocab/bpe.py", "quant/formats/loops.py"):
        with (copy / name).open("a") as file:
            file.write("# edited\n")
        keys.append(conversion_key(checkpoint))
    assert len(set(keys)) == 7


def test_processes_at_once_do_not_disturb_each_other(checkpoint, cache):
    code = (
        "import sys, pathlib; from halfbyte.convert.sample_model import cached_conversion\n"
        "from halfbyte.quant.gguf_reader import open_gguf\n"
        "sys.stdin.readline()\n"
        "for _ in range(5): open_gguf(cached_conversion(pathlib.Path(sys.argv[1]), 'f32')).close()"
    )
    started = [
        subprocess.Popen(
            [sys.executable, "-c", code, checkpoint], stdin=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        for _ in range(3)
    ]
    for process in started:
        process.stdin.write("\n")
        process.stdin.flush()
    for process in started:
        _, said = process.communicate(timeout=60)
        assert (process.returncode, said) == (0, "")
    assert len(files(cache)) == 2
