"""Instruction sets to choose from.  Enters: the host's CPU name and features; leaves: the `Target` of its code.

`HALFBYTE_ISA` names another target than the host's best one.
"""

from __future__ import annotations

import functools
import os
import platform
from collections.abc import Mapping

import llvmlite.binding as llvm

from ...errors import UnsupportedError
from ..machine import ARM, arm_features
from .target import Portable, Target
from .target_arm import Neon, NeonDot, NeonI8mm
from .target_x86 import Avx2, Avx512Vnni, AvxVnni, Sse41

TARGETS: dict[str, type[Target]] = {
    t.name: t for t in (Avx512Vnni, AvxVnni, Avx2, Sse41, NeonI8mm, NeonDot, Neon, Portable)
}

# LLVM 22 lacks timings of instructions that it makes for these; llvmlite's build checks that and ends the process.
_WITHOUT_TIMINGS = ("ampere1b", "oryon-1")


def cpu_to_compile_for(name: str) -> str:
    """Return LLVM's name `name` of a CPU, or "generic" where code for it can not be made."""
    return "generic" if name in _WITHOUT_TIMINGS else name


@functools.cache
def host_features() -> dict[str, bool]:
    """Return LLVM's feature names of this CPU and whether it has each.

    LLVM asks an x86 CPU itself.  An ARM CPU tells only the operating system.
    """
    if platform.machine() in ARM:
        return arm_features()
    return dict(llvm.get_host_cpu_features())


def runnable(have: Mapping[str, bool] | None = None) -> list[str]:
    """Return the names of the targets that a CPU with the features `have` (None: this CPU's) runs, the best first."""
    features = host_features() if have is None else have
    return [t.name for t in TARGETS.values() if all(features.get(f, False) for f in t.requires)]


def make_target(name: str, have: Mapping[str, bool] | None = None) -> Target:
    """Return the target called `name` for this CPU, or for one with the features `have`.

    Raises UnsupportedError, which lists those that run, when there is no such target or the CPU lacks one of its
    instructions.
    """
    features, names = host_features() if have is None else have, runnable(have)
    if name not in names:
        lacks = [f for f in TARGETS[name].requires if not features.get(f, False)] if name in TARGETS else []
        what = f"instruction set (this CPU lacks {', '.join(lacks)})" if lacks else "instruction set"
        raise UnsupportedError(what, name, names, where="HALFBYTE_ISA")
    kind = TARGETS[name]
    flags = (
        f"{'+' if on and not f.startswith(kind.withholds or ('?',)) else '-'}{f}" for f, on in sorted(features.items())
    )
    return kind(llvm.get_process_triple(), cpu_to_compile_for(llvm.get_host_cpu_name()), ",".join(flags))


@functools.cache
def host_target() -> Target:
    """Return the best target of this CPU, or the one that HALFBYTE_ISA names."""
    return make_target(os.environ.get("HALFBYTE_ISA") or runnable()[0])
