"""Kernels for other CPUs hold the instructions that they are meant to, and nothing that they are not: read from their
assembly (reading.py).  A few types; HALFBYTE_READ_ALL=1 reads all, HALFBYTE_WRITE_GOLDEN=1 writes the tables of
docs/kernels.md, too."""

import os
import re

import pytest
from assembly import read
from reading import (
    CPUS,
    DOCUMENT,
    LLVM,
    Cpu,
    cell,
    document,
    documented,
    listing,
    prompt_and_single,
    tiles,
)

from halfbyte.runtime.kernels import attention, elementwise, norms, rope
from halfbyte.runtime.kernels.activations import Sink
from halfbyte.runtime.kernels.jit import object_code
from halfbyte.runtime.kernels.layouts import Correction
from halfbyte.runtime.kernels.matmul import matmul_kernel
from halfbyte.runtime.kernels.panels import LAYOUTS
from halfbyte.runtime.kernels.targets import TARGETS

ONE_EACH = list({cpu.target: cpu for cpu in CPUS.values()}.values())  # a CPU of each target
WRITE = bool(os.environ.get("HALFBYTE_WRITE_GOLDEN"))
ALL = WRITE or bool(os.environ.get("HALFBYTE_READ_ALL"))
READ = [(name, cpu) for name in LAYOUTS for cpu in CPUS.values()] if ALL else [
    *(("q4_0", cpu) for cpu in CPUS.values()), *((name, cpu) for name in ("q6_k", "f16") for cpu in ONE_EACH)
]  # fmt: skip
# No CPU spills sums, but the oldest: its 16 registers are half as wide, and instructions write over an operand.
SPILLS_SUMS = {"sse41"}
# Vectors that one turn of the inner loop may write to the stack: on most CPUs there are none, on ARM a few operands.
MAX_SPILLS = {"sse41": 45} | dict.fromkeys(("neon", "neon_dotprod", "neon_i8mm"), 5)
# Nibbles are taken apart beside 12 sums and 12 totals, of which a few make room once in 64 columns.
MAX_PAIRED_SPILLS = 4

# An address of two registers makes two instructions of a product on x86: prompts took a quarter longer.
INDEXED = re.compile(r"\(%\w+,")

every_product = pytest.mark.parametrize(("name", "cpu"), READ, ids=lambda x: x if isinstance(x, str) else x.name)


@every_product
def test_inner_loops_hold_the_dot_product_and_no_call(name: str, cpu: Cpu) -> None:
    """tiles() finds one inner loop for each tile, and in it as many products as the tile has."""
    for tile in tiles(name, cpu):
        vector = {"avx512_vnni": "%zmm", "avx_vnni": "%ymm", "avx2": "%ymm"}.get(cpu.target, "")
        assert all(vector in i.operands for i in tile.dots)
        assert LAYOUTS[name].is_float or not any(INDEXED.search(i.operands) for i in tile.dots)
        which = f"{name} on {cpu.name}, {tile.panels} x {tile.rows}"
        assert cpu.target in SPILLS_SUMS or not tile.spilled_sums, f"{which}: {tile.spilled_sums}"
        most = MAX_PAIRED_SPILLS if name == "q4_k" and cpu.make_target().has_spare_units else 0
        assert tile.spills <= MAX_SPILLS.get(cpu.target, most), f"{which}: {tile.spills}"
        if not LAYOUTS[name].is_float and cpu.target == "neon_i8mm":
            assert {i.mnemonic for i in tile.dots} == {"sdot" if tile.rows == 1 else "smmla"}
    assert listing(matmul_kernel(name, False), cpu).calls == set()


@pytest.mark.parametrize("cpu", ONE_EACH, ids=lambda cpu: cpu.name)
def test_other_kernels_call_nothing(cpu: Cpu) -> None:
    """Least of all what converts a float16 or rounds where the CPU could not."""
    narrow, wide = Sink(False, True, (Correction(-8),)), Sink(True, True, (Correction(-16, 1, True, True),), 256)
    kernels = [
        elementwise.quantize_kernel(narrow), elementwise.quantize_kernel(wide), elementwise.embed_kernel("q6_k"),
        elementwise.activate_kernel("silu", True, wide), norms.norm_kernel("rms", narrow),
        norms.norm_kernel("layer", wide), norms.head_norm_kernel("rms"), rope.rope_kernel(64, 64, False, "f16"),
    ]  # fmt: skip
    for kernel in kernels:
        assert listing(kernel, cpu).calls == set(), kernel.name


@pytest.mark.parametrize("name", ["x86-64-v2", "cortex-a76"])
def test_attention_calls_nothing(name: str) -> None:
    assert listing(attention.attention_kernel(attention.Shape(64, 4, "f16")), CPUS[name]).calls == set()


def test_the_document_has_these_tables() -> None:
    if WRITE:
        DOCUMENT.write_text(document(DOCUMENT.read_text("utf-8")), "utf-8")
    made_with = re.search(r"LLVM (\d+\.\d+\.\d+)", DOCUMENT.read_text("utf-8"))[1]
    if made_with != LLVM:
        pytest.skip(f"docs/kernels.md was made with LLVM {made_with}, this is {LLVM}")
    for name, cpu in READ:
        for tile, (cost, spills) in zip(prompt_and_single(name, cpu), documented(name, cpu), strict=True):
            stale = f"{name} on {cpu.name}: {cell(tile)}; HALFBYTE_WRITE_GOLDEN=1 pytest {__file__} writes it anew"
            assert tile.cost == pytest.approx(cost, rel=0.02), stale
            assert abs(tile.spills - spills) <= 1, stale


SPILLED = """
foo:
.LBB0_1:                                # %body
                                        # =>This Inner Loop Header: Depth=1
	vmovups	64(%rsp), %ymm1         # 32-byte Reload
	vpand	(%rax), %ymm0, %ymm3
	vmovups	%ymm3, 96(%rsp)         # 32-byte Spill
	vfmadd231ps	%ymm2, %ymm4, %ymm1 # ymm1 = (ymm4 * ymm2) + ymm1
	vmovaps	%ymm1, %ymm7
	vmovups	%ymm7, 64(%rsp)         # 32-byte Spill
	jl	.LBB0_1
"""


ARM_SPILLED = """
foo:
.LBB0_1:                                // %body
                                        // =>This Inner Loop Header: Depth=1
	stp	q4, q6, [sp, #112]      // 32-byte Folded Spill
	ldp	q4, q5, [x1]
	sdot	v6.4s, v4.16b, v5.4b[1]
	b.lt	.LBB0_1
"""


def test_spilled_sums_are_told_from_operands() -> None:
    [loop] = read(SPILLED).loops
    assert [loop.makers(i) for i in loop.spills] == [["vpand"], ["vfmadd231ps"]]
    [loop] = read(ARM_SPILLED).loops
    assert [loop.makers(i) for i in loop.spills] == [["ldp", "sdot"]]


def test_the_portable_target_compiles_for_a_cpu_without_a_target() -> None:
    riscv = TARGETS["portable"]("riscv64-unknown-linux-gnu", "generic-rv64", "+m,+a,+f,+d")
    assert object_code(matmul_kernel("q4_0", False), riscv)[:4] == b"\x7fELF"
