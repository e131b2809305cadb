"""Layers of experts: routing, gathering, products and sums, against NumPy in float64, on every instruction set."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import architectures
import numpy as np
import pytest
from expert_layer import Layer, write_layer
from gguf_models import Tensors, logits, opened, rewritten
from kernel_bench import RUNNABLE, Bench, address

from halfbyte import convert_checkpoint
from halfbyte.errors import ModelFileError
from halfbyte.quant.formats import FORMATS
from halfbyte.runtime.kernels import experts as ex
from halfbyte.runtime.models.mixture import Mixture

# Layers by name: sizes that fill neither panels nor tiles nor vectors of experts, and each way to weigh.
LAYERS = {
    "of 8, 2 used": Mixture(8, 2, 64),
    "of 37, weights not normalised": Mixture(37, 6, 50, normalised=False, scale=2.5),
    "of 5, all used, sigmoids": Mixture(5, 5, 32, scores="sigmoid", scale=1.5),
    "of 32, clamped": Mixture(32, 4, 96, function="swiglu_clamped"),
}
N_EMBD = 64


@pytest.fixture(scope="module", params=RUNNABLE)
def bench(request: pytest.FixtureRequest) -> Iterator[Bench]:
    made = Bench(request.param)
    yield made
    made.pool.close()


def layer_of(bench: Bench, tmp_path: Path, name: str, type: str = "f32", activations: str = "f32") -> Layer:
    mixture = LAYERS[name]
    file = write_layer(
        tmp_path / "layer.gguf", mixture, N_EMBD, type, 41, "clamped" in name, picks=mixture.scores == "sigmoid"
    )
    return Layer(bench.library, file, mixture, N_EMBD, activations)


def relative_error(got: np.ndarray, want: np.ndarray) -> float:
    """Root mean square of the difference over that of `want`."""
    return float(np.sqrt(((got - want) ** 2).mean() / (want**2).mean()))


@pytest.mark.parametrize("name", LAYERS)
def test_layer(bench: Bench, tmp_path: Path, name: str) -> None:
    """Batches of one row and of many: the formula within float32 rounding, and each row as alone, bit for bit."""
    rng = np.random.default_rng(42)
    layer = layer_of(bench, tmp_path, name)
    x, hidden = (rng.standard_normal((40, N_EMBD)).astype(np.float32) * 3 for _ in range(2))
    found = layer(x, hidden)
    want = hidden + layer.expected(x)
    print(f"{bench.library.target.name} {name}: relative error {relative_error(found, want):.1e}")
    assert relative_error(found, want) < 1e-6
    np.testing.assert_array_equal(layer(x[7:20], hidden[7:20]), found[7:20])
    np.testing.assert_array_equal(layer(x[3:4], hidden[3:4]), found[3:4])
    layer.close()


@pytest.mark.parametrize("type", ["q4_0", "bf16"])
def test_layer_of_integer_products(bench: Bench, tmp_path: Path, type: str) -> None:
    """Activations of 8 bits cost under 2 %; a row among others is what it is alone."""
    rng = np.random.default_rng(43)
    layer = layer_of(bench, tmp_path, "of 8, 2 used", type, "int8")
    x, hidden = rng.standard_normal((40, N_EMBD)).astype(np.float32), np.zeros((40, N_EMBD), np.float32)
    found = layer(x, hidden)
    error = relative_error(found, layer.expected(x))
    print(f"{bench.library.target.name} {type}: relative error {error:.1e}")
    assert error < (1e-6 if type == "bf16" else 2e-2)
    np.testing.assert_array_equal(layer(x[31:32], hidden[:1])[0], found[31])
    layer.close()


def route(
    bench: Bench, logits: np.ndarray, used: int, scores: str, normalised: bool, bias: np.ndarray | None = None,
    groups: tuple[int, int] = (1, 1),
) -> tuple[np.ndarray, np.ndarray]:  # fmt: skip
    """Return experts int64 and weights float32 [n, used] of logits float32 [n, experts]."""
    n, n_experts = logits.shape
    padded = np.full((n, -(-n_experts // 16) * 16), np.nan, np.float32)
    padded[:, :n_experts] = logits
    held = np.full(-(-n_experts // 64) * 64, np.nan, np.float32)
    held[:n_experts] = 0 if bias is None else bias
    experts, weights, n_rows = np.zeros((n, used), np.int64), np.zeros((n, used), np.float32), np.array([n])
    record = ex.ROUTE.make(
        n_rows=address(n_rows), logits=address(padded), stride=padded.strides[0], bias=address(held),
        n_experts=n_experts, used=used, scale=1.0, groups=groups[0], groups_used=groups[1],
        experts=address(experts), weights=address(weights),
    )  # fmt: skip
    bench.run(ex.route_kernel(scores, bias is not None, normalised, groups[1] < groups[0]), record)
    return experts, weights


@pytest.mark.parametrize("n_experts", [1, 4, 16, 61, 512])
def test_ties_go_to_the_lower_number(bench: Bench, n_experts: int) -> None:
    logits = np.random.default_rng(44).integers(0, 3, (50, n_experts)).astype(np.float32)
    used = min(8, n_experts)
    experts, weights = route(bench, logits, used, "softmax", True)
    np.testing.assert_array_equal(experts, np.argsort(-logits, axis=1, kind="stable")[:, :used])
    taken = np.exp(np.take_along_axis(logits, experts, axis=1).astype(np.float64))
    np.testing.assert_allclose(weights, taken / taken.sum(axis=1, keepdims=True), rtol=1e-6)


def test_a_bias_chooses_but_does_not_weigh(bench: Bench) -> None:
    logits = np.array([[3.0, -1.0, 0.0, 2.0]], np.float32)
    experts, weights = route(bench, logits, 2, "sigmoid", False, np.array([-1.0, 1.0, 0.0, 0.0], np.float32))
    np.testing.assert_array_equal(experts, [[1, 3]])
    np.testing.assert_allclose(weights, 1 / (1 + np.exp(-logits[:, [1, 3]])), rtol=1e-6)


@pytest.mark.parametrize(("n_experts", "groups", "taken"), [(12, 3, 1), (160, 8, 3), (256, 8, 4), (512, 256, 7)])
@pytest.mark.parametrize("scores", ["softmax", "sigmoid"])
def test_only_the_best_groups_are_taken_from(
    bench: Bench, scores: str, n_experts: int, groups: int, taken: int
) -> None:
    """A group counts as its best expert, with sigmoids as the two best of those with their bias."""
    rng = np.random.default_rng(45)
    logits, used = rng.standard_normal((40, n_experts)).astype(np.float32), min(4, taken * n_experts // groups)
    bias = rng.standard_normal(n_experts).astype(np.float32) if scores == "sigmoid" else None
    liked = logits.astype(np.float64) if bias is None else 1 / (1 + np.exp(-logits.astype(np.float64))) + bias
    good = np.sort(liked.reshape(40, groups, -1), axis=2)[:, :, -1 if bias is None else -2 :].sum(axis=2)
    order = np.argsort(-good, axis=1, kind="stable")  # NumPy's other sorts are wrong on QEMU's Haswell
    kept = np.argsort(order, axis=1, kind="stable") < taken
    liked = np.where(np.repeat(kept, n_experts // groups, axis=1), liked, -np.inf)
    experts, _ = route(bench, logits, used, scores, True, bias, (groups, taken))
    np.testing.assert_array_equal(experts, np.argsort(-liked, axis=1, kind="stable")[:, :used])


def test_numbers_that_are_none_name_an_expert_that_is_there(bench: Bench) -> None:
    for value in (np.nan, np.inf, -np.inf):
        experts, _ = route(bench, np.full((3, 5), value, np.float32), 5, "softmax", True)
        assert ((experts >= 0) & (experts < 5)).all()


def test_gate_and_up_in_one_tensor(tmp_path: Path) -> None:
    """As newer files may have them: the same bits."""
    row = architectures.BY_NAME["mixtral"]
    convert_checkpoint(architectures.build(tmp_path / "checkpoint", row), tmp_path / "m.gguf", "f32")

    def fuse(held: Tensors) -> None:
        for name in [name for name in held if name.endswith("ffn_gate_exps.weight")]:
            (count, rows, columns), kind, gate = held.pop(name)
            up = held.pop(name.replace("gate", "up"))[2]
            both = np.concatenate([part.reshape(count, -1) for part in (gate, up)], axis=1)
            held[name.replace("gate", "gate_up")] = ((count, 2 * rows, columns), kind, both)

    fused = rewritten(tmp_path / "m.gguf", tmp_path / "fused.gguf", tensors=fuse)
    with opened(tmp_path / "m.gguf") as one, opened(fused) as other:
        np.testing.assert_array_equal(logits(one, row.golden["ids"]), logits(other, row.golden["ids"]))


def test_a_bias_that_nothing_uses_is_refused(tmp_path: Path) -> None:
    row = architectures.BY_NAME["mixtral"]
    convert_checkpoint(architectures.build(tmp_path / "checkpoint", row), tmp_path / "m.gguf", "f32")
    bias = np.ones(5, np.float32).view(np.uint8)
    changed = rewritten(
        tmp_path / "m.gguf", tmp_path / "changed.gguf",
        tensors=lambda held: held.update({"blk.0.exp_probs_b.bias": ((5,), FORMATS["f32"], bias)}),
    )  # fmt: skip
    with pytest.raises(ModelFileError, match=r"blk.0.exp_probs_b.bias.*no part of this architecture"), opened(changed):
        pass
