"""Kernels as other CPUs would run them, read and not run.  Enters: nothing; leaves: the inner loops of each matrix
product on each CPU, their cost, and the tables in docs/kernels.md.

LLVM makes code for any CPU on any machine.  HALFBYTE_WRITE_GOLDEN=1 pytest tests/test_reading.py writes the tables.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import llvmlite.binding as llvm
from assembly import Instruction, Listing, Loop, read

from halfbyte.runtime.kernels.jit import Kernel, assembly
from halfbyte.runtime.kernels.layouts import BLOCK, LARGEST_SUM, FloatLayout
from halfbyte.runtime.kernels.matmul import matmul_kernel
from halfbyte.runtime.kernels.panels import LAYOUTS
from halfbyte.runtime.kernels.target import Target
from halfbyte.runtime.kernels.targets import TARGETS, cpu_to_compile_for

DOCUMENT = Path(__file__).parent.parent / "docs" / "kernels.md"
LLVM = ".".join(map(str, llvm.llvm_version_info))
_X86, _LINUX, _MACOS = "x86_64-unknown-linux-gnu", "aarch64-unknown-linux-gnu", "arm64-apple-darwin"
_NEON = "+neon,+lse,+fullfp16"


@dataclass(frozen=True)
class Cpu:
    """A CPU by LLVM's name, the target that kernels take there, and where it is found."""

    name: str
    target: str
    found_in: str
    triple: str = _X86
    features: str = ""  # beside those that LLVM knows it by

    def make_target(self) -> Target:
        return TARGETS[self.target](self.triple, cpu_to_compile_for(self.name), self.features)


X86 = (
    Cpu("x86-64-v2", "sse41", "the oldest that NumPy runs on"),
    Cpu("haswell", "avx2", "laptops of 2013 to 2020"),
    Cpu("alderlake", "avx_vnni", "Intel's laptops from 2021 on"),
    Cpu("sapphirerapids", "avx512_vnni", "Intel's servers"),
    Cpu("znver4", "avx512_vnni", "AMD's laptops from 2023 on"),
    Cpu("znver5", "avx512_vnni", "AMD's laptops from 2024 on"),
)
ARM = (
    Cpu("cortex-a72", "neon", "Raspberry Pi 4", _LINUX, "+neon"),
    Cpu("cortex-a76", "neon_dotprod", "Raspberry Pi 5", _LINUX, f"{_NEON},+dotprod"),
    Cpu("neoverse-v1", "neon_i8mm", "Graviton 3", _LINUX, f"{_NEON},+dotprod,+i8mm,-sve"),
    Cpu("oryon-1", "neon_i8mm", "Snapdragon X", _LINUX, f"{_NEON},+dotprod,+i8mm"),
    Cpu("apple-m1", "neon_dotprod", "Apple's laptops from 2020 on", _MACOS, f"{_NEON},+dotprod"),
    Cpu("apple-m4", "neon_i8mm", "Apple's laptops from 2024 on", _MACOS, f"{_NEON},+dotprod,+i8mm,-sme"),
)
CPUS = {cpu.name: cpu for cpu in (*X86, *ARM)}

# The multiplications of integer products: of a prompt's tiles and, where they differ, of a single row.
DOTS = {
    "sse41": ("pmaddubsw",),
    "avx2": ("vpmaddubsw",),
    "avx_vnni": ("vpdpbusd",),
    "avx512_vnni": ("vpdpbusd",),
    "neon": ("smull", "smull2", "smlal", "smlal2"),
    "neon_dotprod": ("sdot",),
    "neon_i8mm": ("smmla", "sdot"),
}  # fmt: skip
# Multiply-adds of 16 bytes of products of bytes (smmla: 2 rows of 8 by 2 others).
_PER_16_BYTES = {"sdot": 16, "smmla": 32, "vpdpbusd": 16, "vpmaddubsw": 16, "pmaddubsw": 16}
_FLOAT = r"vfmadd\d+ps|fmla|addps"  # without FMA each product is followed by an addition
# What computes sums: products, additions to them, and what makes floats of them.
_SUMS = re.compile(
    r"v?pdpbusd|v?pmadd(ubsw|wd)|v?padd[wd]|vfn?madd\d+ps|v?addps|v?cvtdq2ps"
    r"|[su]dot|smmla|smull2?|smlal2?|sadalp|saddlp|addp?|fmla|fadd|scvtf"
)


@dataclass(frozen=True)
class Tile:
    """The inner loop of one micro-kernel: `panels` panels by `rows` rows, over a block of columns."""

    panels: int
    rows: int
    loop: Loop
    dots: list[Instruction]
    parts: int  # turns of the loop in one of the loop around it, which opens a super-block (1: there is none)

    @property
    def multiply_adds(self) -> int:
        return sum(_multiply_adds(i) for i in self.dots)

    @property
    def cost(self) -> float:
        """Instructions per 1000 multiply-adds."""
        once = len(self.loop.parent.instructions) / self.parts if self.parts > 1 and self.loop.parent else 0
        return 1000 * (len(self.loop.instructions) + once) / self.multiply_adds

    @property
    def spills(self) -> int:
        """Vectors that each turn writes to the stack for want of registers."""
        return sum(len(i.vectors) for i in self.loop.spills)

    @property
    def spilled_sums(self) -> list[str]:
        """What computed those of them that are sums, not operands."""
        return [maker for i in self.loop.spills for maker in self.loop.makers(i) if _SUMS.fullmatch(maker)]


def _multiply_adds(i: Instruction) -> int:
    width = 64 if "%zmm" in i.operands else 32 if "%ymm" in i.operands else 16
    if i.mnemonic in _PER_16_BYTES:
        return _PER_16_BYTES[i.mnemonic] * width // 16
    return width // (4 if re.fullmatch(_FLOAT, i.mnemonic) else 2)  # 16 bytes are 8 products of 16 bits


@cache
def listing(kernel: Kernel, cpu: Cpu) -> Listing:
    return read(assembly(kernel, cpu.make_target()))


def tiles(name: str, cpu: Cpu) -> list[Tile]:
    """The inner loops of the product with weights of type `name`, in the order that the kernel emits them."""
    layout, target = LAYOUTS[name], cpu.make_target()
    is_float = isinstance(layout, FloatLayout)
    parts = 1 if is_float else layout.parts
    pattern = _FLOAT if is_float else "|".join(DOTS[cpu.target])
    loops = [loop for loop in listing(matmul_kernel(name, False), cpu).loops if loop.matching(pattern)]
    panels, height = target.shapes[0] if is_float else target.shape(layout)
    streams = panels if isinstance(layout, FloatLayout) else target.streams(layout)
    most = panels * height - 1 if is_float else min(panels * height - 1, target.tile)
    shapes = [(streams, 1)] if streams > 1 else []
    shapes += [(panels, height), *((1, rows) for rows in (8, 4, 2, 1) if rows <= most)]
    found, rest = [], iter(sorted(loops, key=lambda loop: loop.order))
    for p, rows in shapes:
        paired = not is_float and layout.paired(target, opened=(p, rows) == (panels, height))
        at_once = 2 // layout.groups if paired else 1  # parts in a turn
        loop = next(rest)
        tile = Tile(p, rows, loop, loop.matching(pattern), parts // at_once)
        expected = p * rows * target.lanes * (1 if is_float else BLOCK * at_once)
        assert tile.multiply_adds == expected, f"{name} on {cpu.name}: tile {p} x {rows}"
        found.append(tile)
        if paired and layout.paired_limit() < LARGEST_SUM:
            next(rest)  # of sums that do not fit, row by row
    assert not list(rest), f"{name} on {cpu.name}: {len(loops)} loops with products for tiles {shapes}"
    return found


def prompt_and_single(name: str, cpu: Cpu) -> tuple[Tile, Tile]:
    """The largest tile, which reads prompts, and the widest of one row, which generates."""
    found = tiles(name, cpu)
    return next(tile for tile in found if tile.rows > 1), next(tile for tile in found if tile.rows == 1)


def document(text: str) -> str:
    """Return docs/kernels.md, whose text is `text`, with the tables of this LLVM and these kernels."""
    for which, title in enumerate(("prompts", "generating")):
        for group in (X86, ARM):
            text = _with_table(text, f"{title}-{'x86' if group is X86 else 'arm'}", _table(which, group))
    rows = [f"| {cpu.name} | {cpu.found_in} |" for cpu in CPUS.values()]
    text = _with_table(text, "cpus", ["| CPU | found in |", "|---|---|", *rows])
    return re.sub(r"LLVM \d+\.\d+\.\d+", f"LLVM {LLVM}", text)


def _table(which: int, cpus: tuple[Cpu, ...]) -> list[str]:
    """One of prompt_and_single: types by CPUs."""
    lines = [
        "| type | " + " | ".join(f"{cpu.name}: {cpu.target}" for cpu in cpus) + " |",
        "|---" * (len(cpus) + 1) + "|",
    ]
    for name in LAYOUTS:
        cells = [cell(prompt_and_single(name, cpu)[which]) for cpu in cpus]
        lines.append(f"| {' | '.join([name.upper(), *cells])} |")
    return lines


def cell(tile: Tile) -> str:
    """What a table says of a tile: its cost, and in brackets what it spills."""
    return f"{tile.cost:.{0 if tile.cost >= 100 else 1}f}" + (f" ({tile.spills})" if tile.spills else "")


def _with_table(text: str, name: str, lines: list[str]) -> str:
    start, end = f"<!-- {name} -->\n", f"<!-- end of {name} -->"
    before, rest = text.split(start)
    return before + start + "\n".join(lines) + "\n" + end + rest.split(end)[1]


def documented(name: str, cpu: Cpu) -> list[tuple[float, int]]:
    """Cost and spills of a prompt's tile and of a single row's, as docs/kernels.md has them."""
    text, found = DOCUMENT.read_text("utf-8"), []
    for which in ("prompts", "generating"):
        table = text.split(f"<!-- {which}-{'x86' if cpu in X86 else 'arm'} -->\n")[1].split("<!--")[0]
        rows = [[field.strip() for field in line.strip("|").split("|")] for line in table.splitlines()]
        column = [field.split(":")[0] for field in rows[0]].index(cpu.name)
        said = next(row[column] for row in rows if row[0] == name.upper())
        cost, _, spills = said.rstrip(")").partition(" (")
        found.append((float(cost), int(spills or 0)))
    return found
