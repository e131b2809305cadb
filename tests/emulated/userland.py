"""What emulated CPUs run on.  Enters: Debian's archive and PyPI; leaves: QEMU, and an ARM Python with our libraries.

Nothing is installed: Debian's packages and the wheels are unpacked into a folder of the user's cache, whose name is a
digest of what it holds.  It is made once.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from pathlib import Path
from typing import Any

RELEASE = "bookworm"  # whose Python is 3.11
QEMU = "qemu-user-static"
ARM_PACKAGES = (
    "libbz2-1.0", "libc6", "libcrypt1", "libexpat1", "libffi8", "libgcc-s1", "liblzma5", "libpython3.11-minimal",
    "libpython3.11-stdlib", "libsqlite3-0", "libssl3", "libstdc++6", "libuuid1", "python3.11-minimal", "zlib1g",
)  # fmt: skip
# What kernels, their tests and a generation import, in the versions that are here.  LLVM's must be the same.
WHEELS = (
    "gguf", "huggingface_hub", "jinja2", "llvmlite", "ml_dtypes", "numpy", "platformdirs", "pytest",
    "safetensors", "sentencepiece", "tokenizers",
)  # fmt: skip
WHEEL_PLATFORMS = ("manylinux_2_28_aarch64", "manylinux_2_27_aarch64", "manylinux2014_aarch64")
UNUSED = 30 * 86400.0  # seconds after which another version's folder goes
KEYS = "/usr/share/keyrings/debian-archive-keyring.gpg"


class Unreachable(Exception):
    """What is needed cannot be had: one line."""


def userland() -> Path:
    """Return the folder with usr/bin/qemu-{aarch64,x86_64}-static, root/usr/bin/python3.11 and wheels/.

    Raises Unreachable when it is not there yet and cannot be made.
    """
    wanted = [f"{name}=={version(name)}" for name in WHEELS]
    digest = hashlib.sha256(repr((RELEASE, QEMU, ARM_PACKAGES, wanted, WHEEL_PLATFORMS)).encode()).hexdigest()[:12]
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "halfbyte-ci"
    made = cache / f"emulated-{digest}"
    if not made.exists():
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache, prefix="emulated-", suffix=".new") as name:
            new = Path(name) / "whole"
            new.mkdir()
            with ThreadPoolExecutor(2) as pool:
                for each in (pool.submit(_debian, new), pool.submit(_wheels, new / "wheels", wanted)):
                    each.result()
            with contextlib.suppress(OSError):  # another process was faster
                new.rename(made)
    made.touch()
    for other in cache.glob("emulated-*"):
        if time.time() - other.stat().st_mtime > UNUSED:
            shutil.rmtree(other, ignore_errors=True)
    return made


def _debian(folder: Path) -> None:
    """Unpack the ARM packages into folder/root, and QEMU's two programs into folder/usr/bin."""
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        for part in ("lists", "archives", "packages"):
            (work / part / "partial").mkdir(parents=True)
        (work / "sources.list").write_text(f"deb [signed-by={KEYS}] http://deb.debian.org/debian {RELEASE} main\n")
        options = {
            "Dir::State": work, "Dir::State::lists": work / "lists", "Dir::State::status": "/dev/null",
            "Dir::Cache": work, "Dir::Etc::sourcelist": work / "sources.list", "Dir::Etc::sourceparts": "-",
            "Acquire::Languages": "none", "Acquire::Retries": 3, "APT::Update::Error-Mode": "any",
            "APT::Sandbox::User": "root",
        }  # fmt: skip
        apt = ["apt-get", "-qq", *(f"-o{key}={value}" for key, value in options.items())]
        apt += [f"-oAPT::Architectures::={name}" for name in ("amd64", "arm64")]
        packages = [f"{QEMU}:amd64", *(f"{name}:arm64" for name in ARM_PACKAGES)]
        _do("Debian's packages", [*apt, "update"], cwd=work)
        _do("Debian's packages", [*apt, "download", *packages], cwd=work / "packages")
        for package in sorted((work / "packages").glob("*_arm64.deb")):
            _do("Debian's packages", ["dpkg-deb", "-x", package, folder / "root"])
        (qemu,) = (work / "packages").glob(f"{QEMU}_*.deb")
        with (
            subprocess.Popen(["dpkg-deb", "--fsys-tarfile", qemu], stdout=subprocess.PIPE) as unpacking,
            tarfile.open(fileobj=unpacking.stdout, mode="r|") as archive,
        ):
            for member in archive:
                if member.name in ("./usr/bin/qemu-aarch64-static", "./usr/bin/qemu-x86_64-static"):
                    archive.extract(member, folder, filter="data")


def _wheels(folder: Path, wanted: list[str]) -> None:
    platforms = [word for platform in WHEEL_PLATFORMS for word in ("--platform", platform)]
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--target", folder]
    _do("the wheels", [*pip, "--python-version", "3.11", "--only-binary=:all:", *platforms, *wanted])


def _do(what: str, command: list[Any], **options: Any) -> None:
    try:
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, **options)
    except FileNotFoundError:
        raise Unreachable(f"{what} cannot be had: there is no {command[0]} here") from None
    if done.returncode:
        last = (done.stdout.strip() or f"{command[0]} ended with {done.returncode}").splitlines()[-1]
        raise Unreachable(f"{what} cannot be had: {last}")
