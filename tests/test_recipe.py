"""Recipes: the formats that llama-quantize chooses, from golden tables of its own and (peers) from it directly."""

from __future__ import annotations

import json

import gguf as reference
import pytest
import recipe_tables
from recipe_tables import GOLDEN, MODELS, described, ours

from halfbyte.errors import UnsupportedError, UsageError
from halfbyte.quant.formats import FORMATS
from halfbyte.quant.recipe import ALIASES, RECIPES, ModelSizes, choose_formats, parse_override, recipe_by_name

SIZES = ModelSizes("llama", layers=16, heads=32, kv_heads=8)
SMALL = MODELS["8 layers"]


def chosen(tensors, type, *overrides, pure=False, sizes=SIZES):
    found = choose_formats(tensors, recipe_by_name(type), sizes, pure, [parse_override(text) for text in overrides])
    return {name: format and format.name for name, format in found.items()}


# ------------------------------------------------------------------------------------------------ llama-quantize's


@pytest.mark.parametrize("type", RECIPES)
@pytest.mark.parametrize("label", MODELS)
def test_formats_are_those_of_llama_quantize(label, type):
    golden = json.loads(GOLDEN.read_text("utf-8"))
    assert list(golden) == list(MODELS), "python tests/recipe_tables.py writes the tables anew"
    assert described(ours(MODELS[label], type)) == golden[label][type]


@pytest.mark.peers
@pytest.mark.parametrize("pure", [False, True], ids=["mixed", "pure"])
@pytest.mark.parametrize("label", MODELS)
def test_formats_beside_llama_quantize(tmp_path, label, pure):
    """Also writes the file's type: `theirs` asserts that general.file_type is the recipe's."""
    pytest.importorskip("llama_cpp", reason="the extra peers is not installed")
    model, file = MODELS[label], tmp_path / "m.gguf"
    model.write(file)
    golden = json.loads(GOLDEN.read_text("utf-8"))[label]
    for type in RECIPES:
        table = recipe_tables.theirs(file, type, pure)
        assert ours(model, type, pure) == table, type
        assert pure or described(table) == golden[type]


@pytest.mark.peers
@pytest.mark.parametrize("regexes", [("attn_v=q8_0",), ("blk\\.[13]\\.ffn_down=q4_k", "ffn=f16"), ("V\\.weight=Q5_0",)])
def test_overrides_beside_llama_quantize(tmp_path, regexes):
    """Also what is left over: an overridden V does not count for the layers that get more bits."""
    llama_cpp = pytest.importorskip("llama_cpp", reason="the extra peers is not installed")
    SMALL.write(tmp_path / "m.gguf")
    overrides = (llama_cpp.llama_model_tensor_override * (len(regexes) + 1))()
    for override, text in zip(overrides, regexes, strict=False):
        regex, format = text.lower().split("=")  # as llama-quantize takes them
        override.pattern, override.type = regex.encode(), FORMATS[format].gguf_id
    for type in ("q4_k_m", "q5_k_m", "q3_k_m", "q8_0"):
        table = recipe_tables.theirs(tmp_path / "m.gguf", type, overrides=overrides)
        found = chosen(SMALL.tensors(), type, *regexes, sizes=SMALL.sizes)
        assert {name: format or "f32" for name, format in found.items()} == table, type


@pytest.mark.parametrize("type", RECIPES)
def test_file_types_are_llama_cpps(type):
    name = "ALL_F32" if type == "f32" else f"MOSTLY_{type.upper()}"
    assert RECIPES[type].file_type == reference.LlamaFileType[name]


# -------------------------------------------------------------------------------------------------------- choices


@pytest.mark.parametrize("type", RECIPES)
def test_vectors_norms_and_routers_are_never_rounded(type):
    names = {
        "blk.0.attn_q.bias": (4096,), "rope_freqs.weight": (32,), "blk.0.attn_q_norm.weight": (32, 64),
        "blk.0.ffn_gate_inp.weight": (8, 4096), "position_embd.weight": (64, 256), "blk.0.one_row.weight": (1, 256),
    }  # fmt: skip
    assert set(chosen(names, type).values()) == {None}
    assert set(chosen(names, type, pure=True).values()) == {None}


def test_pure_gives_every_matrix_one_format():
    for type, recipe in RECIPES.items():
        found = set(ours(SMALL, type, pure=True).values()) - {"f32"}
        assert found == {recipe.format} - {"f32"}


@pytest.mark.parametrize(
    ("type", "columns", "format"),
    [
        ("q2_k", 288, "q4_0"), ("q3_k_s", 288, "q4_0"), ("q4_k_s", 288, "q5_0"), ("q5_k_s", 288, "q5_1"),
        ("q6_k", 288, "q8_0"), ("iq4_xs", 288, "iq4_nl"), ("q4_0", 288, "q4_0"), ("mxfp4_moe", 288, "mxfp4"),
        ("q4_k_s", 100, "f16"), ("q8_0", 100, "f16"), ("q4_0", 100, "f16"), ("bf16", 100, "bf16"),
    ],
)  # fmt: skip
def test_rows_that_blocks_do_not_divide(type, columns, format):
    assert chosen({"blk.5.attn_q.weight": (64, columns)}, type, pure=True) == {"blk.5.attn_q.weight": format}


def test_the_order_of_the_tensors_does_not_matter():
    tensors = SMALL.tensors()
    backwards = dict(reversed(tensors.items()))
    assert chosen(tensors, "q4_k_m") == chosen(backwards, "q4_k_m")
    assert list(chosen(backwards, "q4_k_m")) == list(backwards)


def test_short_names():
    assert {name: recipe_by_name(name).name for name in ALIASES} == ALIASES
    assert not set(ALIASES) & set(RECIPES)


def test_an_unknown_type_lists_the_known():
    with pytest.raises(UnsupportedError, match=r"^type 'q3_x' is not supported; supported: f32, f16, bf16, q8_0, q4_0"):
        recipe_by_name("q3_x")


# ------------------------------------------------------------------------------------------------------ overrides


def test_overrides_come_before_the_recipe_and_the_first_counts():
    found = chosen(SMALL.tensors(), "q4_k_m", r"blk\.[01]\.attn_V=Q8_0", "attn_v=f16", "token_embd=bf16")
    assert {found[f"blk.{i}.attn_v.weight"] for i in (0, 1)} == {"q8_0"}
    assert {found[f"blk.{i}.attn_v.weight"] for i in range(2, 8)} == {"f16"}
    assert (found["token_embd.weight"], found["output.weight"]) == ("bf16", "q6_k")
    assert found["blk.0.attn_norm.weight"] is None


def test_overrides_work_with_every_type():
    for type in RECIPES:
        for pure in (False, True):
            assert chosen(SMALL.tensors(), type, "output.w=q5_1", pure=pure)["output.weight"] == "q5_1"


def test_an_override_falls_back_as_a_recipe_does():
    assert chosen({"blk.0.ffn_up.weight": (8, 288)}, "q8_0", "ffn_up=q4_k") == {"blk.0.ffn_up.weight": "q5_0"}


@pytest.mark.parametrize(
    ("text", "error", "said"),
    [
        ("ffn_down", UsageError, "'ffn_down': REGEX=TYPE is wanted"),
        ("=q8_0", UsageError, "REGEX=TYPE is wanted"),
        ("ffn_down=", UsageError, "REGEX=TYPE is wanted"),
        ("ffn_(=q8_0", UsageError, "the regex is invalid: missing \\), unterminated subpattern"),
        ("a{99999999999}=q8_0", UsageError, "the regex is invalid"),
        ("(" * 3000 + ")" * 3000 + "=q8_0", UsageError, "the regex is invalid"),
        ("ffn_down=q4_k_m", UnsupportedError, "tensor type 'q4_k_m' is not supported; supported: f32, f16, bf16"),
        ("ffn_dawn=q8_0", UsageError, "'ffn_dawn=q8_0': matches no tensor that is quantized"),
        ("attn_norm=q8_0", UsageError, "matches no tensor that is quantized"),
    ],
)
def test_overrides_that_make_no_sense(text, error, said):
    with pytest.raises(error, match=said) as raised:
        chosen(SMALL.tensors(), "q4_0", text)
    assert str(raised.value).startswith("--tensor-type ")
    assert "\n" not in str(raised.value)
