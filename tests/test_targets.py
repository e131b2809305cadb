"""Which instruction set is taken: the best one, or the one that HALFBYTE_ISA names, if it is there."""

import os

import pytest
from command_line import assert_clean_error, halfbyte

from halfbyte.errors import UnsupportedError
from halfbyte.runtime.kernels.jit import assembly
from halfbyte.runtime.kernels.matmul import matmul_kernel
from halfbyte.runtime.kernels.target_arm import NeonI8mm
from halfbyte.runtime.kernels.targets import TARGETS, cpu_to_compile_for, host_features, make_target, runnable


@pytest.mark.parametrize("name", TARGETS)
def test_a_cpu_that_lacks_one_instruction_lacks_the_set(name):
    """The error names what is missing and lists what there is."""
    everything = dict.fromkeys((f for t in TARGETS.values() for f in t.requires), True)
    assert runnable(everything) == list(TARGETS)
    for missing in TARGETS[name].requires:
        have = everything | {missing: False}
        assert name not in runnable(have)
        with pytest.raises(UnsupportedError) as caught:
            make_target(name, have)
        assert f"(this CPU lacks {missing}) {name!r}" in str(caught.value)
        assert caught.value.supported == tuple(runnable(have))


def test_the_best_that_runs_comes_first():
    assert runnable({}) == ["portable"]
    assert runnable(dict.fromkeys(("avx2", "fma", "f16c"), True)) == ["avx2", "portable"]
    assert runnable(dict.fromkeys(("ssse3", "sse4.1", "avx"), True)) == ["sse41", "portable"]
    assert runnable({"neon": True}) == ["neon", "portable"]
    assert runnable(dict.fromkeys(("neon", "dotprod"), True)) == ["neon_dotprod", "neon", "portable"]


def test_an_unknown_name_is_one_line_that_lists_the_known_ones(tiny_gguf):
    names = ", ".join(runnable())
    for name in ("z80", "AVX2", "avx2 "):
        done = halfbyte("run", tiny_gguf, "Hi", env=os.environ | {"HALFBYTE_ISA": name})
        assert_clean_error(done, 3, f"HALFBYTE_ISA: instruction set {name!r} is not supported; supported: {names}")


def test_the_named_set_is_the_one_that_runs(tiny_gguf):
    """Its answer is that of the best: sums of integers do not depend on the vectors' width."""
    words = ("run", tiny_gguf, "Once", "-n", 8, "--temp", 0, "-t", 1)
    answers = {halfbyte(*words, env=os.environ | {"HALFBYTE_ISA": name}).stdout for name in ["", *runnable()]}
    assert len(answers) == 1
    assert answers != {""}


def test_withheld_instructions_are_off():
    features = make_target("portable").features.split(",")
    assert any(f.startswith("-avx") for f in features) or not host_features().get("avx")
    assert "+avx2" not in features


@pytest.mark.parametrize("cpu", ["oryon-1", "ampere1b"])
def test_a_cpu_that_llvm_cannot_make_code_for_is_a_generic_one(cpu):
    """LLVM ends the process over these, so this one does not try them."""
    target = NeonI8mm("aarch64-unknown-linux-gnu", cpu_to_compile_for(cpu), "+neon,+dotprod,+i8mm")
    assert "smmla" in assembly(matmul_kernel("q4_0", False), target)
    assert cpu_to_compile_for("cortex-a76") == "cortex-a76"
