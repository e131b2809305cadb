"""The recipe: types as llama.cpp's converter chooses them, ids as llama.cpp numbers them."""

from __future__ import annotations

import gguf as reference
import pytest

from halfbyte.errors import UnsupportedError
from halfbyte.quant.formats import FORMATS
from halfbyte.quant.recipe import file_type_id, tensor_format


@pytest.mark.parametrize("target", FORMATS)
def test_matrices_get_the_target_where_blocks_divide_their_rows(target):
    block = FORMATS[target].block_size
    for name in ("token_embd.weight", "output.weight", "blk.3.ffn_down.weight"):
        assert tensor_format(name, (512, 4096), target).name == target
        assert tensor_format(name, (512, 172), target).name == (target if block == 1 else "f16")


@pytest.mark.parametrize("target", FORMATS)
def test_vectors_and_norms_stay_f32(target):
    assert tensor_format("blk.0.attn_q.bias", (4096,), target).name == "f32"
    assert tensor_format("rope_freqs.weight", (32,), target).name == "f32"
    assert tensor_format("blk.0.attn_q_norm.weight", (32, 64), target).name == "f32"


@pytest.mark.parametrize("target", FORMATS)
def test_file_types_are_llama_cpps(target):
    names = {name: f"MOSTLY_{name.upper()}" for name in FORMATS} | {"f32": "ALL_F32", "mxfp4": "MOSTLY_MXFP4_MOE"}
    names |= {name: f"MOSTLY_{name.upper()}_S" for name in ("q3_k", "q4_k", "q5_k")}  # the sizes with one type alone
    assert file_type_id(target) == reference.LlamaFileType[names[target]]


def test_an_unknown_type_lists_the_known():
    with pytest.raises(
        UnsupportedError, match="tensor type 'q3_x' is not supported; supported: f32, f16, bf16, q8_0, q4_0"
    ):
        tensor_format("output.weight", (1, 32), "q3_x")
    with pytest.raises(UnsupportedError):
        file_type_id("q3_x")
