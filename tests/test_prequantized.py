"""Checkpoints that are quantized already: their values, what is kept of them in a GGUF file, and what is refused."""

from __future__ import annotations

import json
import tracemalloc
from functools import partial
from pathlib import Path
from typing import Any

import architectures
import numpy as np
import pytest
import quantized_checkpoints as made
import tiny
from quantized_checkpoints import SCHEMES, Scheme

from halfbyte import convert_checkpoint
from halfbyte.convert.checkpoint import Checkpoint
from halfbyte.convert.conversion import plan_conversion
from halfbyte.convert.lazy import Stored, stacked
from halfbyte.errors import HalfbyteError, ModelFileError, UnsupportedError
from halfbyte.quant.gguf_reader import open_gguf
from halfbyte.quant.report import DEQUANTIZED, REQUANTIZED, SCALES_ROUNDED, WITHOUT_LOSS

each = pytest.mark.parametrize("name", SCHEMES)


@each
def test_the_values_are_those_of_the_formula(tmp_path: Path, name: str) -> None:
    """All rows at once and a few, and no other tensors than those of the unquantized checkpoint."""
    values = made.build(tmp_path / "m", SCHEMES[name][0])
    with Checkpoint(tmp_path / "m") as checkpoint:
        assert set(checkpoint.tensors) == set(values)
        for tensor, expected in values.items():
            found = checkpoint.tensors[tensor]
            assert found.shape == expected.shape
            rows = expected.reshape(-1, expected.shape[-1])
            np.testing.assert_array_equal(checkpoint.rows(tensor, 0, len(rows)), rows)
            if len(rows) > 5:
                np.testing.assert_array_equal(checkpoint.rows(tensor, 3, 5), rows[3:5])
            checkpoint.release(tensor)


def projections(file: Path) -> dict[str, tuple[str, np.ndarray]]:
    """Format and values of the matrices that were quantized."""
    with open_gguf(file) as found:
        return {
            name: (view.format.name, view.dequantize())
            for name, view in found.tensors.items()
            if len(view.shape) == 2 and name not in ("token_embd.weight", "output.weight")
        }


@each
def test_what_a_format_holds_is_kept(tmp_path: Path, name: str) -> None:
    scheme, at_4, at_8 = SCHEMES[name]
    made.build(tmp_path / "m", scheme)
    report = convert_checkpoint(tmp_path / "m", tmp_path / "f32.gguf", "f32")
    assert {tensor.format for tensor in report.tensors} == {"f32"}
    assert {tensor.repacked for tensor in report.tensors if "_norm" not in tensor.name} == {"", DEQUANTIZED}
    assert "7 tensors of" in report.notes[0] and report.notes[0].endswith("are dequantized")
    exact = projections(report.path)
    for type, kept in (("q4_0", at_4), ("q8_0", at_8)):
        report = convert_checkpoint(tmp_path / "m", tmp_path / f"{type}.gguf", type)
        for tensor, (format, rows) in projections(report.path).items():
            assert format in (kept or type).strip("*").split()
            if kept and "*" not in kept:
                np.testing.assert_array_equal(rows, exact[tensor][1], err_msg=tensor)
            elif kept:
                np.testing.assert_allclose(rows, exact[tensor][1], rtol=2.0**-11, err_msg=tensor)
        word = (SCALES_ROUNDED if "*" in kept else WITHOUT_LOSS) if kept else REQUANTIZED
        notes = " ".join(report.notes)
        said = ("without loss" in notes, "rounded to float16" in notes, "rounded again" in notes)
        assert said == tuple(word == other for other in (WITHOUT_LOSS, SCALES_ROUNDED, REQUANTIZED)), notes
        plan = {tensor.name: (tensor.scheme, tensor.repacked) for tensor in plan_conversion(tmp_path / "m", type)}
        assert {tensor.name: (tensor.scheme, tensor.repacked) for tensor in report.tensors} == plan
        assert sorted(repacked for _, repacked in plan.values() if repacked) == [word] * 7
        for tensor in report.tensors:
            if tensor.scheme:
                assert (tensor.relative_error == 0) == (word == WITHOUT_LOSS)
                assert word != SCALES_ROUNDED or tensor.relative_error < 2.0**-11


def test_the_whole_model_is_that_of_the_values(tmp_path: Path) -> None:
    """Every tensor of the F32 file, against the converter on an ordinary checkpoint of these values."""
    values = made.build(tmp_path / "m", made.awq())
    spec = tiny.Tiny(layers=1)
    tiny.build(tmp_path / "plain", spec)
    tiny.write_safetensors(tmp_path / "plain/model.safetensors", values, "f32")
    found = convert_checkpoint(tmp_path / "m", tmp_path / "a.gguf", "f32").path
    expected = convert_checkpoint(tmp_path / "plain", tmp_path / "b.gguf", "f32").path
    with open_gguf(found) as one, open_gguf(expected) as other:
        assert list(one.tensors) == list(other.tensors)
        for name, view in other.tensors.items():
            assert one.tensors[name].data.tobytes() == view.data.tobytes(), name


def random_matrices(file: Path, method: str, names: list[str], rows: int, columns: int) -> int:
    """Write matrices of GPTQ's or AWQ's 4 bits, groups of 128; return the bytes of one's codes as they are stored."""
    rng, stored = np.random.default_rng(0), {}
    packed = (columns // 8, rows) if method == "gptq" else (columns, rows // 8)
    for name in names:
        stored[f"{name}.qweight"] = "I32", rng.integers(-(1 << 31), 1 << 31, packed, np.int32)
        stored[f"{name}.qzeros"] = "I32", np.full((columns // 128, rows // 8), 0x77777777, np.int32)
        stored[f"{name}.scales"] = "F16", np.full((columns // 128, rows), 0.01, np.float16)
    made.write_stored(file, stored)
    return rows * columns // 2


@pytest.mark.parametrize("method", ["gptq", "awq"])
def test_memory_is_that_of_what_is_stored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str) -> None:
    """A matrix as it is stored and the piece that is read; of many experts one or two."""
    monkeypatch.setattr("halfbyte.convert.lazy._BEHIND", 1 << 16)
    folder, names = tiny.build(tmp_path / "m"), [f"e{i}" for i in range(6)]
    scheme = {"quant_method": method, "bits": 4, "group_size": 128}
    tiny.write_json(folder / "config.json", {"quantization_config": scheme})
    nbytes, step = random_matrices(folder / "model.safetensors", method, names, 512, 4096), 8
    piece = 4 * 4096 * step
    with Checkpoint(folder) as checkpoint:
        all = stacked([Stored(checkpoint, f"{name}.weight") for name in names])
        formats = {format.name: format for format in all.held_by()}
        for read in (all.rows, partial(all.packed, formats["q5_0"])):
            tracemalloc.start()
            for begin in range(0, all.n_rows, step):
                read(begin, begin + step)
            peak = tracemalloc.get_traced_memory()[1]
            tracemalloc.stop()
            all.release()
            print(f"{peak / nbytes:.2f} times the codes")
            assert peak < 2.5 * nbytes + 10 * piece


def test_what_is_asked_for_by_name_counts(tmp_path: Path) -> None:
    made.build(tmp_path / "m", made.gptq())

    def formats(type: str, **options: Any) -> set[str]:
        return {t.format for t in plan_conversion(tmp_path / "m", type, **options) if t.name.startswith("blk.0.ffn_up")}

    assert formats("q8_0") == {"q4_0"}
    assert formats("q8_0", tensor_types=["ffn_up=q8_0"]) == {"q8_0"}
    assert formats("q8_0", pure=True) == {"q8_0"}
    assert formats("f16") == {"f16"}
    plan = plan_conversion(tmp_path / "m", "q8_0", tensor_types=["ffn_up=q4_0"])
    assert {(t.scheme, t.repacked) for t in plan if "ffn_up" in t.name} == {("gptq 4 bits", WITHOUT_LOSS)}


def test_scales_that_no_float16_holds_are_rounded(tmp_path: Path) -> None:
    """One scale of bfloat16 beyond float16: this matrix is rounded again, the others are kept."""
    scheme = made.packed()
    inner = scheme.pack

    def pack(base: str, value: np.ndarray, rng: np.random.Generator) -> tuple[made.Stored, np.ndarray]:
        stored, _ = inner(base, value, rng)
        if "up_proj" in base:
            scale = stored[f"{base}.weight_scale"][1].copy()
            scale[3, 1] = 1e-9
            stored[f"{base}.weight_scale"] = ("BF16", scale)
        return stored, value

    scheme.pack = pack
    made.build(tmp_path / "m", scheme)
    found = {tensor.name: tensor.repacked for tensor in plan_conversion(tmp_path / "m", "q8_0")}
    assert found["blk.0.ffn_up.weight"] == REQUANTIZED
    assert found["blk.0.ffn_down.weight"] == WITHOUT_LOSS


@pytest.mark.parametrize("flat", [False, True])
def test_experts_of_mxfp4(tmp_path: Path, flat: bool) -> None:
    """Values, blocks of GGUF, and slices that are stacked again."""
    rng = np.random.default_rng(1)
    stored, values = made.mxfp4_tensor("experts.up", (3, 8, 64), rng)
    if flat:
        stored["experts.up_blocks"] = ("U8", stored["experts.up_blocks"][1].reshape(3, 8, 32))
    more, others = made.mxfp4_tensor("experts.down", (3, 8, 64), rng)
    folder = tiny.build(tmp_path / "m")
    tiny.write_json(folder / "config.json", {"quantization_config": {"quant_method": "mxfp4"}})
    made.write_stored(folder / "model.safetensors", stored | more)
    with Checkpoint(folder) as checkpoint:
        assert checkpoint.tensors["experts.up"].shape == (3, 8, 64)
        tensor = Stored(checkpoint, "experts.up")
        np.testing.assert_array_equal(tensor.rows(0, 24), values.reshape(24, 64))
        np.testing.assert_array_equal(tensor.rows(5, 9), values.reshape(24, 64)[5:9])
        (format,) = tensor.held_by()
        assert format.name == "mxfp4"
        np.testing.assert_array_equal(format.dequantize(tensor.packed(format, 5, 9)), values.reshape(24, 64)[5:9])
        both = stacked([tensor, Stored(checkpoint, "experts.down")]).reshaped(6, 8, 64)
        assert both.held_by() == (format,)
        expected = np.concatenate([values, others]).reshape(48, 64)[20:30]
        np.testing.assert_array_equal(format.dequantize(both.packed(format, 20, 30)), expected)
        order = np.random.default_rng(2).permutation(24)
        turned = tensor.reshaped(24, 64).ordered(order)
        np.testing.assert_array_equal(
            format.dequantize(turned.packed(format, 2, 20)), values.reshape(24, 64)[order[2:20]]
        )
        assert tensor.transposed().held_by() == tensor.plus(1).held_by() == ()


def test_gpt_oss_keeps_its_experts(tmp_path: Path) -> None:
    """Gate and up are told apart row by row; the values are those of a checkpoint with the same experts in floats."""
    row, rng = architectures.BY_NAME["gpt-oss"], np.random.default_rng(1)
    config, stored, plain = row.golden["config"], {}, {}
    for name, value in architectures.weights(row, row.golden["tensors"]).items():
        stored[name], plain[name] = ("F32", value), value
        if name.endswith(("experts.gate_up_proj", "experts.down_proj")):
            experts, columns, rows = value.shape
            blocks, values = made.mxfp4_tensor(name, (experts, rows, columns), rng)
            del stored[name]
            stored |= blocks
            plain[name] = np.ascontiguousarray(values.transpose(0, 2, 1))
    for kind, more in (("quantized", {"quantization_config": {"quant_method": "mxfp4"}}), ("plain", {})):
        architectures.write_checkpoint(tmp_path / kind, row, config | more, row.golden["tensors"])
    made.write_stored(tmp_path / "quantized/model.safetensors", stored)
    tiny.write_safetensors(tmp_path / "plain/model.safetensors", plain, "f32")
    report = convert_checkpoint(tmp_path / "quantized", tmp_path / "quantized.gguf", "mxfp4_moe")
    experts = [tensor for tensor in report.tensors if tensor.name.endswith("_exps.weight")]
    assert {(tensor.format, tensor.scheme, tensor.repacked) for tensor in experts} == {("mxfp4", "mxfp4", WITHOUT_LOSS)}
    with (
        open_gguf(report.path) as found,
        open_gguf(convert_checkpoint(tmp_path / "plain", tmp_path / "f32.gguf", "f32").path) as expected,
    ):
        for tensor in experts:
            view = expected.tensors[tensor.name]
            np.testing.assert_array_equal(found.tensors[tensor.name].dequantize(), view.dequantize(), tensor.name)


def broken(folder: Path, scheme: Scheme, change: Any = None, **config: Any) -> HalfbyteError:
    """What is raised for a checkpoint whose settings, or whose stored up_proj, are changed."""
    inner = scheme.pack

    def pack(base: str, value: np.ndarray, rng: np.random.Generator) -> tuple[made.Stored, np.ndarray]:
        stored, values = inner(base, value, rng)
        if change is not None and "up_proj" in base:
            change(base, stored)
        return stored, values

    made.build(folder, Scheme({**scheme.config, **config}, pack))
    with pytest.raises(HalfbyteError) as caught:
        convert_checkpoint(folder, folder / "out.gguf", "q8_0")
    assert not (folder / "out.gguf").exists()
    return caught.value


@pytest.mark.parametrize(
    ("scheme", "config", "message"),
    [
        (
            made.gptq(),
            {"quant_method": "exl2"},
            "quantization_config.quant_method 'exl2' is not supported; supported: ",
        ),
        (made.gptq(), {"bits": 5}, "quantization_config.bits '5' is not supported; supported: 2, 3, 4, 8"),
        (made.gptq(), {"checkpoint_format": "marlin"}, "checkpoint_format 'marlin' is not supported"),
        (made.gptq(), {"dynamic": {"+:x": {"bits": 8}}}, "dynamic"),
        (made.gptq(), {"rotation": "hadamard"}, "quantization_config key of gptq 'rotation' is not supported"),
        (made.awq(), {"version": "gemv"}, "version 'gemv' is not supported; supported: gemm"),
        (made.awq(), {"bits": 3}, "bits '3' is not supported; supported: 4"),
        (made.bnb4(), {"bnb_4bit_quant_storage": "bfloat16"}, "bnb_4bit_quant_storage 'bfloat16' is not supported"),
        (made.packed(), {"format": "marlin-24"}, "format 'marlin-24' is not supported; supported: pack-quantized"),
        (made.packed(), {"sparsity_config": {"format": "sparse-24-bitmask"}}, "sparsity_config.format"),
        (made.fp8(), {"weight_block_size": [128]}, "weight_block_size: is .*; two positive integers are allowed"),
    ],
)
def test_settings_that_are_not_read_are_refused(
    tmp_path: Path, scheme: Scheme, config: dict[str, Any], message: str
) -> None:
    error = broken(tmp_path / "m", scheme, **config)
    assert isinstance(error, UnsupportedError | ModelFileError)
    error_matches(error, "config.json", message)


def error_matches(error: HalfbyteError, *parts: str) -> None:
    for part in parts:
        with pytest.raises(HalfbyteError, match=part):
            raise error


def _without(suffix: str) -> Any:
    return lambda base, stored: stored.pop(f"{base}.{suffix}")


def _cut(suffix: str) -> Any:
    def change(base: str, stored: made.Stored) -> None:
        dtype, value = stored[f"{base}.{suffix}"]
        stored[f"{base}.{suffix}"] = dtype, value[:-1]

    return change


def _empty(suffix: str) -> Any:
    def change(base: str, stored: made.Stored) -> None:
        dtype, value = stored[f"{base}.{suffix}"]
        stored[f"{base}.{suffix}"] = dtype, value[:, :0]

    return change


def _fill(suffix: str, value: Any) -> Any:
    def change(base: str, stored: made.Stored) -> None:
        dtype, old = stored[f"{base}.{suffix}"]
        stored[f"{base}.{suffix}"] = dtype, np.full_like(old, value)

    return change


def _twice(base: str, stored: made.Stored) -> None:
    stored[f"{base}.weight"] = "F32", np.zeros((96, 64), np.float32)


@pytest.mark.parametrize(
    ("scheme", "change", "message"),
    [
        (made.gptq(), _without("scales"), "up_proj.scales: is missing"),
        (made.gptq(), _cut("scales"), r"up_proj.scales: has the shape \[1, 96\]; .* ask for \[2, 96\]"),
        (made.gptq(), _cut("qzeros"), r"up_proj.qzeros: has the shape"),
        (made.gptq(), _cut("g_idx"), r"up_proj.g_idx: has the shape \[63\]; .* ask for \[64\]"),
        (made.gptq(), _fill("g_idx", 2), r"up_proj.g_idx: goes from 2 to 2; 0 to 1 are allowed"),
        (made.gptq(), _fill("g_idx", -1), r"up_proj.g_idx: goes from -1 to -1"),
        (made.gptq(), _twice, "up_proj.weight: is stored twice"),
        (made.gptq(), _fill("scales", np.nan), r"up_proj.weight: is nan at \[0, 0\]"),
        (made.gptq(), _empty("qweight"), r"up_proj.qweight: has the shape \[8, 0\], and so no numbers"),
        (made.fp8(), _empty("weight"), r"up_proj.weight: has the shape \[96, 0\], and so no numbers"),
        (made.awq(), _without("qzeros"), "up_proj.qzeros: is missing"),
        (made.bnb4(), _without("weight.absmax"), "up_proj.weight.absmax: is missing"),
        (made.bnb4(), _cut("weight"), r"up_proj.weight: has the shape \[3071, 1\]; .* ask for \[3072, 1\]"),
        (made.bnb4(), _cut("weight.quant_state.bitsandbytes__nf4"), "is not JSON"),
        (made.bnb8(), _fill("weight_format", 1), "up_proj.weight_format: is not 0"),
        (
            made.fp8(),
            _cut("weight_scale_inv"),
            r"up_proj.weight_scale_inv: has the shape \[2, 4\]; .*\[3, 4\] is allowed",
        ),
        (made.fp8(), _without("weight_scale_inv"), "up_proj.weight_scale: is missing"),
        (made.packed(), _cut("weight_packed"), r"weight_packed: has the shape \[95, 8\]; no num_bits"),
        (made.packed(), _fill("weight_shape", -1), r"weight_packed: has the shape"),
        (made.packed(), _cut("weight_scale"), r"weight_scale: has the shape \[95, 2\]"),
    ],
)
def test_damaged_tensors_are_named(tmp_path: Path, scheme: Scheme, change: Any, message: str) -> None:
    error = broken(tmp_path / "m", scheme, change)
    assert isinstance(error, ModelFileError)
    error_matches(error, message, "m/model.safetensors|m: tensor")


def test_a_scheme_without_its_tensors_is_refused(tmp_path: Path) -> None:
    folder = tiny.build(tmp_path / "m")
    config = json.loads((folder / "config.json").read_text())
    tiny.write_json(folder / "config.json", config | {"quantization_config": made.gptq().config})
    with pytest.raises(ModelFileError, match="key quantization_config: names gptq, but no tensor is stored so"):
        convert_checkpoint(folder, tmp_path / "out.gguf")


def test_scales_of_activations_are_left_out_and_told(tmp_path: Path) -> None:
    made.build(tmp_path / "m", made.fp8(None, "tensor"))
    report = convert_checkpoint(tmp_path / "m", tmp_path / "out.gguf")
    assert any("7 scales of activations are left out" in note for note in report.notes)
