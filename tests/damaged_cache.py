"""Kinds of damage to a kernel cache, and a script that starts a model with each of them, again and again.

    python tests/damaged_cache.py MODEL [STARTS [FIRST]]

Each start is a process of its own, with a copy of a whole cache that was damaged before (or is, while it runs).  It is
right when it gives the tokens of an undamaged one, exits with 0 and says no more than one line about the cache.  FIRST
is the number of kinds to leave out at the beginning, so that several of these share the work.
"""

import hashlib
import itertools
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from functools import partial
from pathlib import Path

from halfbyte.cache import write_entry

POSIX = os.name == "posix"
STARTS = 200
HUGE = 1 << 40  # bytes, of a file with a hole


def flip(file, place):
    content = bytearray(file.read_bytes())
    content[place] ^= 1
    file.write_bytes(content)


def old_layout(file):
    """What an entry was before its name was part of the digest."""
    code = file.read_bytes()[32:]
    file.write_bytes(hashlib.sha256(code).digest() + code)


def of_other_version(file):
    """A whole entry of the same kernel, made for another CPU, by other sources or by another llvmlite."""
    other = file.parent.parent / "other-version"
    other.mkdir(exist_ok=True)
    write_entry(other / file.name, file.read_bytes()[32:])
    (other / file.name).replace(file)


def of_other_kernel(file):
    others = [other for other in sorted(file.parent.glob("hb_*.o")) if other != file and other.is_file()]
    shutil.copy(others[0], file)


def replaced(make):
    """Return a damage that puts what `make(file)` makes in the place of the file."""

    def damage(file):
        file.unlink()
        make(file)

    return damage


def full_folder(file):
    file.mkdir()
    (file / "inside").write_text("x")


def link_to_whole(file):
    shutil.copy(file, file.with_suffix(".whole"))
    file.unlink()
    file.symlink_to(file.with_suffix(".whole"))


def huge(file):
    with file.open("r+b") as opened:
        opened.truncate(HUGE)


# What is done to one entry; whoever reads it tells, and makes it anew.
ENTRY = {
    "truncated": lambda f: f.write_bytes(f.read_bytes()[: f.stat().st_size // 2]),
    "last byte missing": lambda f: f.write_bytes(f.read_bytes()[:-1]),
    "empty": lambda f: f.write_bytes(b""),
    "shorter than a digest": lambda f: f.write_bytes(f.read_bytes()[:20]),
    "digest only": lambda f: f.write_bytes(f.read_bytes()[:32]),
    "longer": lambda f: f.write_bytes(f.read_bytes() + b"\0"),
    "a flipped bit in the code": lambda f: flip(f, 600),
    "a flipped bit in the object's header": lambda f: flip(f, 32 + 18),
    "a flipped bit in the digest": lambda f: flip(f, 3),
    "a flipped bit at the end": lambda f: flip(f, -1),
    "zeros": lambda f: f.write_bytes(bytes(f.stat().st_size)),
    "text": lambda f: f.write_text("not an object file\n" * 9),
    "object code without a digest": lambda f: f.write_bytes(f.read_bytes()[32:]),
    "the layout before": old_layout,
    "another kernel's entry": of_other_kernel,
    "another version's entry": of_other_version,
    "a folder": replaced(lambda f: f.mkdir()),
    "a folder with a file": replaced(full_folder),
}
if POSIX:
    ENTRY |= {
        "a terabyte": huge,
        "a link to nothing": replaced(lambda f: f.symlink_to("nothing")),
        "a link to itself": replaced(lambda f: f.symlink_to(f.name)),
        "a link to a whole entry": link_to_whole,
        "a link to a device without end": replaced(lambda f: f.symlink_to("/dev/zero")),
        "a pipe": replaced(os.mkfifo),
    }
    if os.geteuid() == 0:  # only root can give a file away
        ENTRY["another user's file"] = lambda f: os.chown(f, 12345, 12345)
    else:
        ENTRY["unreadable"] = lambda f: f.chmod(0)


def each(damage):
    """Return a damage of a folder that does `damage` to all of its entries."""

    def damage_all(folder):
        for file in sorted(folder.glob("hb_*.o")):
            damage(file)

    return damage_all


def exchanged(folder):
    """Each entry has its neighbour's content."""
    files = sorted(folder.glob("hb_*.o"))
    contents = [file.read_bytes() for file in files]
    for file, content in zip(files, contents[1:] + contents[:1], strict=True):
        file.write_bytes(content)


def half_written(folder):
    """As a process leaves them that was killed."""
    for file in sorted(folder.glob("hb_*.o")):
        (folder / f"{file.name}abc123.tmp").write_bytes(file.read_bytes()[:100])
        file.unlink()


def strangers(folder):
    """Files and folders that nobody here made."""
    (folder / "lock").write_text("12345")
    (folder / "manifest.json").write_text("{")
    (folder / "hb_stranger.o").write_text("x")
    (folder / "sub/sub").mkdir(parents=True)
    (folder.parent / "a file").write_text("x")


def link_to_elsewhere(folder):
    elsewhere = folder.parent.parent / "elsewhere"
    folder.rename(elsewhere)
    folder.symlink_to(elsewhere)


# What is done to the folder of a version: how many lines it may make the next start say.
FOLDER = {
    "removed": (shutil.rmtree, 0),
    "without entries": (each(Path.unlink), 0),
    "a file in its place": (lambda f: (shutil.rmtree(f), f.write_text("x")), 1),
    "a file in the place of all": (lambda f: (shutil.rmtree(f.parent), f.parent.write_text("x")), 1),
    "half-written files": (half_written, 0),
    "files of others in it": (strangers, 0),
    "entries exchanged": (exchanged, 1),
    "every entry truncated": (each(ENTRY["truncated"]), 1),
    "every entry another version's": (each(of_other_version), 1),
}
if POSIX:
    FOLDER |= {
        "a link to nothing in its place": (lambda f: (shutil.rmtree(f), f.symlink_to("nothing")), 1),
        "a link to where it was moved": (link_to_elsewhere, 0),
        "a mode without rights": (lambda f: f.chmod(0), 1),
    }


# ---------------------------------------------------------------------------------------------------------------------
# the script


def start(model, cache, *before):
    """Start a process that generates; return it."""
    command = [
        sys.executable,
        "-m",
        "halfbyte.cli",
        "run",
        model,
        "Once upon a time",
        "-n",
        "8",
        "--temp",
        "0",
        "--json",
    ]
    return subprocess.Popen(
        [*before, *command],
        env=os.environ | {"HALFBYTE_CACHE_DIR": str(cache)},
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, encoding="utf-8",
    )  # fmt: skip


def outcome(process):
    """Return the tokens of a process, and the lines that it said about the cache."""
    out, said = process.communicate()
    if process.returncode:
        return [f"exit code {process.returncode}", said], []
    return json.loads(out)["token_ids"], [line for line in said.splitlines() if line.startswith("note:")]


def one(model, cache):
    yield outcome(start(model, cache))


def two_at_once(model, cache):
    shutil.rmtree(cache)
    for process in [start(model, cache) for _ in range(2)]:
        yield outcome(process)


def no_room(model, cache):
    """Files may have 1024 bytes at most."""
    shutil.rmtree(cache)
    yield outcome(start(model, cache, "sh", "-c", 'ulimit -f 2; exec "$@"', "sh"))


def full_disk(model, cache):
    """A file system of 64 KiB."""
    shutil.rmtree(cache)
    cache.mkdir(0o700)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k,mode=700", "tmpfs", cache], check=True)
    try:
        yield outcome(start(model, cache))
    finally:
        subprocess.run(["umount", cache], check=True)


def read_only(model, cache):
    """A file system that can be read only, with the whole cache on it; half of the entries are gone."""
    for file in sorted(cache.rglob("hb_*.o"))[::2]:
        file.unlink()
    subprocess.run(["mount", "--bind", cache, cache], check=True)
    try:
        subprocess.run(["mount", "-o", "remount,bind,ro", cache], check=True)
        yield outcome(start(model, cache))
    finally:
        subprocess.run(["umount", cache], check=True)


def removed_meanwhile(model, cache):
    """The folder goes again and again while the process runs."""
    over = threading.Event()

    def remove():
        while not over.is_set():
            shutil.rmtree(cache, ignore_errors=True)
            time.sleep(0.2)

    remover = threading.Thread(target=remove)
    remover.start()
    yield outcome(start(model, cache))
    over.set()
    remover.join()


def killed_meanwhile(model, cache):
    """A process is killed while it fills the cache; the next one uses what it left."""
    shutil.rmtree(cache)
    process = start(model, cache)
    time.sleep(1.5)
    process.kill()
    process.communicate()
    yield outcome(start(model, cache))


def may_mount():
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run(["mount", "-t", "tmpfs", "tmpfs", folder], capture_output=True, check=False)
        return done.returncode == 0 and subprocess.run(["umount", folder], check=True) is not None


def kinds(model, seed):
    """Return name -> (damage of the version's folder, function that starts one or more processes)."""
    draw = random.Random(seed)

    def some(damage, folder):
        damage(draw.choice(sorted(folder.glob("hb_*.o"))))

    found = {f"an entry: {name}": (partial(some, damage), one) for name, damage in ENTRY.items()}
    found |= {f"the folder: {name}": (damage, one) for name, (damage, _) in FOLDER.items()}
    runs = [two_at_once, killed_meanwhile, removed_meanwhile]
    if POSIX:
        runs += [no_room, *([full_disk, read_only] if may_mount() else [])]
    return found | {run.__name__.replace("_", " "): (lambda folder: None, run) for run in runs}


def main(model, starts=STARTS, first=0):
    """Run at least `starts` starts, kind after kind; print what was wrong, and how many were right."""
    every = len(kinds(model, 0))
    turns = ((seed, *case) for seed in itertools.count() for case in kinds(model, seed).items())
    with tempfile.TemporaryDirectory() as work:
        whole, cache = Path(work) / "whole", Path(work) / "cache"
        expected, _ = outcome(start(model, whole))
        assert outcome(start(model, whole)) == (expected, []), "an undamaged cache is warm and quiet"
        done = right = 0
        for seed, name, (damage, run) in itertools.islice(turns, first, None):
            shutil.copytree(whole, cache)
            [folder] = (cache / "kernels").iterdir()
            damage(folder)
            for tokens, said in run(model, cache):
                good = tokens == expected and len(said) <= 1
                done, right = done + 1, right + good
                if not good:
                    print(f"{name} ({seed}): {tokens} {said}", flush=True)
            shutil.rmtree(cache, ignore_errors=True)
            if done >= starts:
                break
        print(f"{right} of {done} starts right, {every} kinds of damage")
        return 0 if right == done else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], *map(int, sys.argv[2:])))
