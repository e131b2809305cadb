"""Feed-forward layers of experts (Shazeer et al. 2017).  Enters: the expert keys of a GGUF file, a layer's tensors by
llama.cpp's names; leaves: a `Mixture`, and the layer's calls to the builder.

A router's logits say which experts a row goes to; only those are read.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from ...errors import ModelFileError, UnsupportedError
from ...quant.gguf_reader import GgufFile
from ..kernels.experts import MAX_EXPERTS
from .base import Model, read_ff
from .blocks import FeedForward

if TYPE_CHECKING:
    from ..engine.buffers import Activations, Rows
    from ..engine.program import Builder
    from ..engine.weights import Matrix, Weights

SCORES = {1: "softmax", 2: "sigmoid", 3: "softmax of those taken"}  # expert_gating_func, as llama.cpp numbers them


@dataclass(frozen=True)
class Mixture:
    """n_experts, of which a row goes to `used`; each n_ff wide, gated by `function` (kernels/functions.py).

    n_ff_shared: width of what every row goes through beside them, 0 for nothing.
    scores, normalised, scale: of the experts' weights, as kernels/experts.py route.
    groups: how many groups the experts are in, and from how many of them a row takes.
    """

    n_experts: int
    used: int
    n_ff: int
    n_ff_shared: int = 0
    scores: str = "softmax"
    normalised: bool = True
    scale: float = 1.0
    function: str = "silu"
    groups: tuple[int, int] = (1, 1)


def read_mixture(
    file: GgufFile, arch: str, *, normalised: bool = True, scores: int = 1, grouped: bool = False
) -> Mixture | None:
    """Return what the file says of experts, None where it has none.

    normalised, scores: of a file that does not say.  grouped: experts may be in groups.

    Raises ModelFileError or UnsupportedError naming the key.
    """
    n_experts = file.get_int(f"{arch}.expert_count", 0, minimum=0, maximum=MAX_EXPERTS)
    if not n_experts:
        return None
    key = f"{arch}.expert_gating_func"
    function = file.get_int(key, scores) or scores
    if function not in SCORES:
        named = [f"{number} ({name})" for number, name in SCORES.items()]
        raise UnsupportedError(key, function, named, where=file.path)
    key = f"{arch}.expert_group_count"
    groups = file.get_int(key, 1, minimum=0, maximum=n_experts)
    if groups > 1 and not grouped:
        raise UnsupportedError(key, groups, ["1"], where=file.path)
    n_ff = file.get_int(f"{arch}.expert_feed_forward_length", None, minimum=1, maximum=1 << 24)
    width = read_ff(file, arch) if n_ff is None else n_ff
    shared = file.get_int(f"{arch}.expert_shared_feed_forward_length", 0, minimum=0, maximum=1 << 24)
    shared = shared or width * file.get_int(f"{arch}.expert_shared_count", 0, minimum=0, maximum=MAX_EXPERTS)
    used = file.get_int(f"{arch}.expert_used_count", minimum=1, maximum=n_experts)
    if not any(name.endswith(".ffn_gate_inp.weight") for name in file.tensors):
        message = f"is missing, in every layer, but {arch}.expert_count is {n_experts}"
        raise ModelFileError(file.path, message, place="blk.*.ffn_gate_inp.weight")
    return Mixture(
        n_experts,
        used,
        width,
        shared,
        "sigmoid" if function == 2 else "softmax",
        file.get_bool(f"{arch}.expert_weights_norm", normalised) or function == 3,
        file.get_float(f"{arch}.expert_weights_scale", 1.0, minimum=0.0, maximum=1e6) or 1.0,
        groups=(groups, _groups_used(file, arch, groups, n_experts, used)) if groups > 1 else (1, 1),
    )


def _groups_used(file: GgufFile, arch: str, groups: int, n_experts: int, used: int) -> int:
    """Return how many groups a row takes from; groups must be equal, of two experts or more, and enough for `used`."""
    size, rest = divmod(n_experts, groups)
    if rest or size < 2:
        message = f"is {groups} with {n_experts} experts; groups of the same size, 2 or more, are allowed"
        raise ModelFileError(file.path, message, place=f"{arch}.expert_group_count")
    key = f"{arch}.expert_group_used_count"
    taken = file.get_int(key, minimum=1, maximum=groups)
    if taken * size < used:
        raise ModelFileError(file.path, f"is {taken}, of {size} experts each, but a row goes to {used}", place=key)
    return taken


class Experts:
    """One layer: ffn_gate_inp is the router, ffn_gate_exps, ffn_up_exps and ffn_down_exps hold all experts.

    In some files ffn_gate_up_exps has the rows of both, the gate's first.  ffn_gate_shexp, ffn_up_shexp and
    ffn_down_shexp are what every row goes through, times sigmoid(ffn_gate_inp_shexp x) where the file has that.
    """

    def __init__(self, w: Weights, at: str, model: Model, mixture: Mixture):
        self._mixture = m = mixture
        n_embd = model.n_embd
        has_bias = m.scores == "sigmoid" and w.has(f"{at}exp_probs_b.bias")
        self._bias = w.vector(f"{at}exp_probs_b.bias", m.n_experts) if has_bias else 0
        self._router = w.matrix(
            f"{at}ffn_gate_inp.weight", m.n_experts, n_embd, bias=f"{at}ffn_gate_inp.bias", exact=True
        )
        self._shared = FeedForward(w, at, model, m.n_ff_shared, "silu", kind="_shexp") if m.n_ff_shared else None
        gate = f"{at}ffn_gate_inp_shexp.weight"
        self._shared_gate = w.row(gate, n_embd) if w.has(gate) and self._shared else None
        self.matrices: tuple[Matrix, ...] = (self._router, *(self._shared.matrices if self._shared else ()))
        fused = w.has(f"{at}ffn_gate_up_exps.weight")
        sizes = {"ffn_gate_up_exps": 2 * m.n_ff} if fused else {"ffn_gate_exps": m.n_ff, "ffn_up_exps": m.n_ff}
        self._inner: tuple[Matrix, ...] = tuple(
            w.experts(f"{at}{name}.weight", m.n_experts, m.used, rows, n_embd, bias=f"{at}{name}.bias")
            for name, rows in sizes.items()
        )
        self._down = w.experts(
            f"{at}ffn_down_exps.weight", m.n_experts, m.used, n_embd, m.n_ff, bias=f"{at}ffn_down_exps.bias"
        )

    def add(self, b: Builder, hidden: Rows, x: Activations) -> None:
        """hidden += what the layer makes of x, the normalised rows."""
        (logits,) = b.linear(x, self._router, name="router")
        m = self._mixture
        picked = b.pick(
            logits, m.used, (*self._inner, self._down), scores=m.scores, normalised=m.normalised,
            scale=m.scale, bias=self._bias, groups=m.groups,
        )  # fmt: skip
        both = b.linear_experts(b.gather(x, picked, into=self._inner), picked, *self._inner)
        if len(both) == 1:
            both = [both[0].part(0, m.n_ff), both[0].part(m.n_ff, m.n_ff)]
        inner = b.activate_experts(m.function, both[0], both[1], picked, into=(self._down,))
        (y,) = b.linear_experts(inner, picked, self._down, name="expert sums")
        b.combine(hidden, y, picked)
        if self._shared and self._shared_gate:
            (score,) = b.linear(x, self._shared_gate, name="shared gate")
            (y,) = b.linear(self._shared.inner(b, x), self._shared.down, name="shared")
            b.add_gated(hidden, y, score)
        elif self._shared:
            self._shared.add(b, hidden, x)
