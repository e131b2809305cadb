"""The cache folder: private, and replaced by a temporary one where it cannot be used."""

import errno
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from command_line import halfbyte

from halfbyte.cache import cache_folder, is_temporary
from halfbyte.errors import HalfbyteWarning, UsageError

USE = """
import pathlib
from halfbyte.cache import cache_folder, is_temporary
folder, other = cache_folder("a", "b"), cache_folder("c")
(folder / "file").write_text("x")
assert folder.parent.parent == other.parent, "one stand-in for all"
print(folder, is_temporary(folder), oct(other.parent.stat().st_mode & 0o777))
"""


def use(cache):
    """Use the cache folder `cache` in a process of its own; return the folder it got, is_temporary, mode, stderr."""
    done = subprocess.run(
        [sys.executable, "-c", USE],
        env=os.environ | {"HALFBYTE_CACHE_DIR": str(cache)}, capture_output=True, encoding="utf-8", check=True,
    )  # fmt: skip
    return *done.stdout.split(), done.stderr


def test_a_folder_that_can_be_used_is_used(tmp_path):
    folder, temporary, mode, said = use(tmp_path / "cache")
    assert (folder, temporary, mode, said) == (str(tmp_path / "cache/a/b"), "False", "0o700", "")
    assert (tmp_path / "cache/a/b/file").exists()


def unusable(tmp_path):
    """Cache folders that even root cannot write to, with what is said of them."""
    file = tmp_path / "file"
    file.touch()
    yield file, "a file is in its place"
    yield file / "cache", "Not a directory"
    if sys.platform == "linux":
        yield "/proc/cache", "No such file"


def test_a_folder_that_cannot_be_used_has_a_private_stand_in_that_goes_away(tmp_path):
    for cache, reason in unusable(tmp_path):
        folder, temporary, mode, said = use(cache)
        assert (temporary, mode) == ("True", "0o700")
        assert not Path(folder).exists(), "it stays behind"
        assert said.count("HalfbyteWarning") == 1, said
        assert f"{cache}: {reason}" in said


def test_a_read_only_folder_has_one_stand_in_with_its_content(tmp_path, monkeypatch):
    """Also for root, whom mode bits do not stop: the system answers as a read-only file system does."""
    root, whole = tmp_path / "cache", tempfile.TemporaryFile
    monkeypatch.setenv("HALFBYTE_CACHE_DIR", str(root))
    (cache_folder("kernels") / "k.o").write_text("code")

    def refuse(dir):
        if dir.is_relative_to(root):
            raise OSError(errno.EROFS, "Read-only file system")
        return whole(dir=dir)

    monkeypatch.setattr(tempfile, "TemporaryFile", refuse)
    with pytest.warns(HalfbyteWarning) as caught:
        folders = [cache_folder("kernels"), cache_folder("models", "key"), cache_folder("kernels"), cache_folder()]
    assert len(caught) == 1
    assert f"{root}: Read-only file system; a temporary folder stands in" in str(caught[0].message)
    assert folders[0].parent == folders[1].parent.parent == folders[3]
    assert (folders[2] / "k.o").read_text() == "code", "what was cached before is not made again"
    assert all(is_temporary(folder) for folder in folders)


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root may write everywhere")
def test_mode_bits_make_a_folder_read_only(tmp_path):
    (tmp_path / "a/b").mkdir(parents=True)
    (tmp_path / "a/b").chmod(0o500)
    tmp_path.chmod(0o500)
    _, temporary, _, said = use(tmp_path)
    assert temporary == "True"
    assert said.count("Permission denied; a temporary folder stands in") == 1


@pytest.mark.parametrize("filter", ["error", "ignore"])
def test_the_note_does_not_depend_on_filters_for_warnings(tmp_path, tiny_gguf, filter):
    environment = os.environ | {"HALFBYTE_CACHE_DIR": str(tmp_path / "file/cache"), "PYTHONWARNINGS": filter}
    (tmp_path / "file").touch()
    done = halfbyte("run", tiny_gguf, "hello", "-n", "2", env=environment)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("note: cache folder") == 1


def test_the_command_line_says_it_in_one_line(tmp_path, tiny_gguf):
    for cache, reason in unusable(tmp_path):
        done = halfbyte("run", tiny_gguf, "hello", "-n", "2", env=os.environ | {"HALFBYTE_CACHE_DIR": str(cache)})
        assert done.returncode == 0
        notes = [line for line in done.stderr.splitlines() if line.startswith("note:")]
        assert len(notes) == 1
        assert f"cache folder {cache}: {reason}" in notes[0]
        assert "Traceback" not in done.stderr


@pytest.mark.filterwarnings("error")
@pytest.mark.skipif(os.name != "posix", reason="mode bits")
def test_a_folder_that_others_may_write_to_is_refused_and_not_replaced(tmp_path, monkeypatch):
    tmp_path.chmod(0o777)
    monkeypatch.setenv("HALFBYTE_CACHE_DIR", str(tmp_path))
    with pytest.raises(UsageError, match="others may write"):
        cache_folder("a")
