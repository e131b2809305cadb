"""Kernels and stories on CPUs that are not here.  Enters: names of CPUs; leaves: a table, and status 0 if all is right.

    python tests/emulated/run.py [arm] [x86] [CPU ...] [everything]

Each CPU is emulated by QEMU, which gives programs its instructions and tells them of no others.  An ARM Python
(userland.py), or this one on older x86, runs the kernels' own tests (inside.py) on the instruction set that it chooses;
with `everything`, on the others too.  And it tells stories, whose tokens must be those that this machine tells.

Python must have halfbyte's libraries and those of its tests.  HALFBYTE_TEST_DATA, where it is set, has a second model.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from inside import TESTS, story
from userland import Unreachable, userland

from halfbyte.convert.sample_model import cached_conversion, sample_gguf
from halfbyte.runtime.kernels.jit import object_code
from halfbyte.runtime.kernels.panels import LAYOUTS

sys.path.append(str(TESTS))  # where the kernels come from that tests write
SILENCE = 600  # seconds that a CPU may say nothing
Story = tuple[str, list[int]]  # file, token ids


@dataclass(frozen=True)
class Cpu:
    """`name` is QEMU's; `best`: the target that must be chosen there."""

    system: str
    name: str
    best: str


# Two run at once, so the longest come first.
CPUS = (
    Cpu("arm", "max", "neon_i8mm"),
    Cpu("arm", "neoverse-n1", "neon_dotprod"),
    Cpu("arm", "cortex-a72", "neon"),
    Cpu("x86", "Haswell", "avx2"),
    Cpu("x86", "Nehalem", "sse41"),
)


@dataclass(frozen=True)
class Report:
    """What one CPU told: messages of inside.py, CPU seconds of compiling for it, and the output of its tests."""

    cpu: Cpu
    messages: list[tuple[Any, ...]]
    compiling: float
    output: str

    def targets(self) -> list[str]:
        """What it runs, the best first."""
        return next((message[1] for message in self.messages if message[0] == "targets"), [])

    def told(self, kind: str, target: str) -> list[tuple[Any, ...]]:
        """What follows `kind` and `target` in each such message."""
        return [rest for said, about, *rest in self.messages if (said, about) == (kind, target)]


def emulate(cpu: Cpu, folder: Path, link: Path, everything: bool, files: list[str]) -> Report:
    """Run inside.py on `cpu`, and compile what it asks for."""
    paths = [link, TESTS]
    if cpu.system == "arm":
        command = [folder / "usr/bin/qemu-aarch64-static", "-L", folder / "root", "-cpu", cpu.name]
        command.append(folder / "root/usr/bin/python3.11")
        paths.append(folder / "wheels")
        told = {}
    else:
        command = [folder / "usr/bin/qemu-x86_64-static", "-cpu", cpu.name, sys.executable]
        told = {"OPENBLAS_CORETYPE": cpu.name}  # on AMD hosts NumPy's BLAS takes Nehalem for another
    environment = os.environ | told | {
        "PYTHONPATH": os.pathsep.join(map(str, paths)), "HALFBYTE_CACHE_DIR": str(folder / "kernels"),
        "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
    }  # fmt: skip
    messages, compiling = [], 0.0
    here, there = Pipe()
    with here, tempfile.TemporaryFile("w+") as output:
        process = subprocess.Popen(
            [*command, TESTS / "emulated/inside.py", str(there.fileno()), str(everything), *files],
            env=environment, stdout=output, stderr=subprocess.STDOUT, pass_fds=[there.fileno()],
        )  # fmt: skip
        there.close()
        try:
            for message in _received(here):
                if message[0] == "compile":
                    start = time.process_time()
                    here.send_bytes(object_code(*message[1:]))
                    compiling += time.process_time() - start
                else:
                    messages.append(message)
        finally:
            process.kill()
            process.wait()
        output.seek(0)
        return Report(cpu, messages, compiling, output.read())


def _received(connection: Connection) -> Iterator[tuple[Any, ...]]:
    """Yield messages until the last one, the end of the other side, or a silence."""
    while connection.poll(SILENCE):
        try:
            yield connection.recv()
        except EOFError:
            return


def rows(report: Report, stories: list[Story]) -> Iterator[tuple[str, ...]]:
    """Yield a row of the table for each target of a CPU."""
    for i, target in enumerate(report.targets()):
        tests, told = report.told("test", target), report.told("story", target)
        wrong = {type for type, _, passed, _ in tests if not passed}
        right = {type for type, *_ in tests} - wrong
        alike = sum((file, ids) in stories for file, ids, _ in told)
        yield (
            report.cpu.name if i == 0 else "",
            f"{target}, chosen" if i == 0 else target,
            f"{len(right & LAYOUTS.keys())} of {len(LAYOUTS)}",
            f"{sum(passed for _, _, passed, _ in tests)} of {len(tests)}",
            f"{alike} of {len(stories)}",
            f"{sum(message[-1] for message in tests + told):.0f}",
        )


HEADINGS = ("CPU", "target", "types right", "tests passed", "stories alike", "seconds")
LINE = "{:<12} {:<21} {:<12} {:<13} {:<14} {}"


def mistakes(report: Report, stories: list[Story]) -> Iterator[str]:
    """Yield what is not as it must be."""
    name, targets = report.cpu.name, report.targets()
    if report.messages[-1:] != [("ended", 0)]:
        yield f"{name} ended early or with failed tests:\n{report.output}"
    if targets[:1] != [report.cpu.best]:
        yield f"{name}: {' '.join(targets[:1]) or 'nothing'} was chosen, not {report.cpu.best}"
    for _, kernel, target, code in (message for message in report.messages if message[0] == "compiled"):
        if code != object_code(kernel, target):
            yield f"{name}: {kernel.name} is compiled to other code than here"
    for target in targets:
        right = {type for type, _, passed, _ in report.told("test", target) if passed}
        if missing := LAYOUTS.keys() - right:
            yield f"{name}, {target}: no test passed of {', '.join(sorted(missing))}"
        if [(file, ids) for file, ids, _ in report.told("story", target)] != stories:
            yield f"{name}, {target}: other tokens than here"


def models() -> list[str]:
    """Return GGUF files: the sample model's, and one of matrices whose rows are no whole blocks."""
    files = [sample_gguf("q4_k_m")]
    if data := os.environ.get("HALFBYTE_TEST_DATA"):
        files.append(cached_conversion(Path(data) / "checkpoints/stories260K", "q8_0"))
    return [str(file) for file in files]


def main(*words: str) -> int:
    known = {word for cpu in CPUS for word in (cpu.system, cpu.name)}
    everything, names = "everything" in words, [word for word in words if word != "everything"]
    if unknown := set(names) - known:
        raise SystemExit(f"{', '.join(sorted(unknown))}: not among {', '.join(sorted(known))}, everything")
    chosen = [cpu for cpu in CPUS if not names or {cpu.system, cpu.name} & set(names)]
    start = time.perf_counter()
    try:
        folder = userland()
    except Unreachable as error:
        raise SystemExit(f"emulation: {error}") from None
    print(f"{folder} ({time.perf_counter() - start:.0f} s)")
    files = models()
    stories = [(file, story(file)) for file in files]
    with tempfile.TemporaryDirectory() as link, ProcessPoolExecutor(2) as pool:
        (Path(link) / "halfbyte").symlink_to(TESTS.parent)
        run = partial(emulate, folder=folder, link=Path(link), everything=everything, files=files)
        reports, wrong = [], []
        print(LINE.format(*HEADINGS), flush=True)
        for report in pool.map(run, chosen):
            reports.append(report)
            wrong += mistakes(report, stories)
            print(*(LINE.format(*row) for row in rows(report, stories)), sep="\n", flush=True)
    compiling = sum(report.compiling for report in reports)
    print(*wrong, f"{time.perf_counter() - start:.0f} s, of which compiling took {compiling:.0f} s of CPU", sep="\n")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
