"""Models whose matrices have types without kernels: the answers of the same values, the memory counted and told."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable
from pathlib import Path

import architectures
import numpy as np
import pytest
from gguf_models import Models, Tensors, logits, opened, rewritten
from read_only_rows import random_rows

from halfbyte import convert_checkpoint
from halfbyte.errors import HalfbyteWarning, ModelFileError
from halfbyte.quant.formats import FORMATS, READ_ONLY
from halfbyte.quant.gguf_reader import open_gguf
from halfbyte.runtime.engine import turned
from halfbyte.runtime.engine.memory import Arena, Memory, Tally

WIDE = {"hidden": 256, "ffn": 256, "layers": 1, "vocab": 420}
IDS = [5, 17, 300, 2, 2, 99]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Models:
    return Models(tmp_path_factory.mktemp("models"))


def with_type(models: Models, name: str, target: Path) -> Path:
    """A file whose matrices are all random rows of type `name`."""

    def change(tensors: Tensors) -> None:
        for seed, (tensor, (shape, _, _)) in enumerate(tensors.items()):
            if len(shape) == 2:
                format = READ_ONLY[name]
                tensors[tensor] = (shape, format, random_rows(format, shape, seed))

    return rewritten(models.file("f32", **WIDE), target, tensors=change)


def as_floats(source: Path, target: Path) -> Path:
    """The same values in F32."""

    def change(tensors: Tensors) -> None:
        for name, (shape, format, data) in tensors.items():
            values = format.dequantize(data.reshape(-1, format.row_bytes(shape[-1])))
            tensors[name] = (shape, FORMATS["f32"], values.view(np.uint8))

    return rewritten(source, target, tensors=change)


@pytest.mark.parametrize("name", ["iq3_s", "iq3_xxs", "tq2_0", "q1_0", "nvfp4", "iq2_xs", "i8", "f64"])
def test_the_logits_are_those_of_the_values(
    models: Models, tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(turned, "_PIECE", 1 << 14)  # several pieces a matrix, the last shorter
    file = with_type(models, name, tmp_path / "m.gguf")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with opened(as_floats(file, tmp_path / "f32.gguf"), activations="f32") as engine:
            want = logits(engine, IDS)
    with (
        pytest.warns(HalfbyteWarning, match=f"9 of type {name} run as"),
        opened(file, activations="f32", threads=2) as engine,
    ):
        got = logits(engine, IDS)
    spread = np.std(want)
    assert spread > 0
    error = np.abs(got - want).max() / spread
    print(f"{name}: {error:.1e}")
    assert error < (0.2 if name == "iq2_xs" else 1e-4)


def test_what_is_told_is_what_it_takes(models: Models, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One line; its memory, with that of the file, is what the engine's matrices and tables take."""
    file = with_type(models, "tq2_0", tmp_path / "m.gguf")
    counted = Tally()
    monkeypatch.setattr(Arena, "__call__", _counting(Arena.__call__, counted))
    with pytest.warns(HalfbyteWarning) as caught, opened(file):
        pass
    (line,) = [str(warning.message) for warning in caught]
    with open_gguf(file) as found:
        bytes_there = sum(view.nbytes for view in found.tensors.values() if len(view.shape) == 2)
    told = float(re.search(r"they take ([0-9.]+) MiB more than in the file", line)[1])
    assert "m.gguf: matrices 9 of type tq2_0 run as q2_k (nothing is lost)" in line
    assert told * 2**20 == pytest.approx(bytes_there * (84 / 66 - 1), abs=0.06 * 2**20)
    assert counted.weight_bytes >= bytes_there * 84 / 66


def _counting(take: Callable[[Arena, int, str], Memory], tally: Tally) -> Callable[[Arena, int, str], Memory]:
    def count(self: Arena, nbytes: int, what: str) -> Memory:
        if what.startswith("tensor"):
            tally.weights(nbytes, what)
        return take(self, nbytes, what)

    return count


def test_all_of_it_was_counted_before(models: Models, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file, asked, taken = with_type(models, "iq2_xs", tmp_path / "m.gguf"), [], []
    monkeypatch.setattr(Tally, "check", lambda self, *rest: asked.append(self.total))
    start = Memory.__init__

    def counted(self: Memory, nbytes: int, what: str) -> None:
        start(self, nbytes, what)
        taken.append(self.nbytes)

    monkeypatch.setattr(Memory, "__init__", counted)
    with pytest.warns(HalfbyteWarning, match="rounded"), opened(file):
        assert [sum(taken)] == asked


def test_the_scale_beside_a_tensor_is_multiplied_in(models: Models, tmp_path: Path) -> None:
    """As the same weights, multiplied, in F32; a scale of several numbers is no scale of a matrix."""
    scales = {"blk.0.attn_v.scale": 3.0, "blk.0.ffn_down.scale": 0.125}

    def with_scales(tensors: Tensors) -> None:
        for name, scale in scales.items():
            tensors[name] = ((1,), FORMATS["f32"], np.float32([scale]).view(np.uint8))

    def multiply(tensors: Tensors) -> None:
        for name, scale in scales.items():
            shape, format, data = tensors[name.replace("scale", "weight")]
            tensors[name.replace("scale", "weight")] = (shape, format, (data.view(np.float32) * scale).view(np.uint8))

    plain = with_type(models, "nvfp4", tmp_path / "plain.gguf")
    file = rewritten(plain, tmp_path / "m.gguf", tensors=with_scales)
    exact = rewritten(as_floats(plain, tmp_path / "f32.gguf"), tmp_path / "exact.gguf", tensors=multiply)
    with opened(exact, activations="f32") as engine:
        want = logits(engine, IDS)
    with pytest.warns(HalfbyteWarning, match=r"2 of type nvfp4 run as q8_0 \(rounded\)"), opened(file) as engine:
        pass
    with pytest.warns(HalfbyteWarning), opened(file, activations="f32") as engine:
        got = logits(engine, IDS)
    assert np.abs(got - want).max() / np.std(want) < 0.05
    bad = rewritten(plain, tmp_path / "bad.gguf", tensors=lambda tensors: tensors.update(
        {"blk.0.attn_v.scale": ((2,), FORMATS["f32"], np.float32([1, 1]).view(np.uint8))}
    ))  # fmt: skip
    with pytest.raises(ModelFileError, match=r"blk.0.attn_v.scale: has shape \(2,\)"), opened(bad):
        pass


@pytest.mark.parametrize("scaled", [False, True])
def test_experts(tmp_path: Path, scaled: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each expert in its place, and with its own scale."""
    monkeypatch.setattr(turned, "_PIECE", 1 << 13)  # an expert at a time
    source = architectures.build(tmp_path / "checkpoint", architectures.BY_NAME["mixtral"])
    plain = convert_checkpoint(source, tmp_path / "plain.gguf", "f32").path
    scales = np.float32([0.5, 1, 2, 0.25, 3]) if scaled else np.ones(5, np.float32)

    def values(shape: tuple[int, ...]) -> np.ndarray:
        return np.random.default_rng(shape[1]).integers(-9, 10, shape).astype(np.int8)

    def as_i8(tensors: Tensors) -> None:
        for name, (shape, _, _) in list(tensors.items()):
            if len(shape) == 3:
                tensors[name] = (shape, READ_ONLY["i8"], values(shape).view(np.uint8))
                if scaled:
                    scale = name.replace("weight", "scale")
                    tensors[scale] = ((5,), FORMATS["f32"], scales.view(np.uint8))

    def as_f32(tensors: Tensors) -> None:
        for name, (shape, _, _) in tensors.items():
            if len(shape) == 3:
                product = values(shape).astype(np.float32) * scales[:, None, None]
                tensors[name] = (shape, FORMATS["f32"], product.view(np.uint8))

    with opened(rewritten(plain, tmp_path / "f32.gguf", tensors=as_f32), activations="f32") as engine:
        want = logits(engine, IDS)
    file = rewritten(plain, tmp_path / "i8.gguf", tensors=as_i8)
    with pytest.warns(HalfbyteWarning, match="type i8 run as"), opened(file, activations="f32") as engine:
        got = logits(engine, IDS)
    assert np.abs(got - want).max() / np.std(want) < (0.1 if scaled else 1e-3)


def test_a_block_that_is_not_finite_is_refused(models: Models, tmp_path: Path) -> None:
    def spoil(tensors: Tensors) -> None:
        shape, format, data = tensors["blk.0.ffn_up.weight"]
        data = data.copy()
        data.reshape(-1, 54)[7, 52:] = 0, 0x7C
        tensors["blk.0.ffn_up.weight"] = (shape, format, data)

    good = with_type(models, "tq1_0", tmp_path / "good.gguf")
    bad = rewritten(good, tmp_path / "bad.gguf", tensors=spoil)
    message = r"bad.gguf: tensor blk.0.ffn_up.weight: has a tq1_0 block that is not finite: number 7 from row 0 on"
    with pytest.warns(HalfbyteWarning), pytest.raises(ModelFileError, match=message), opened(bad):
        pass
