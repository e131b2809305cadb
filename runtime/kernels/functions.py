"""Functions that feed-forward layers and scores go through.  Enters: float32 vectors; leaves: float32 vectors, within
1e-6 of the function's value."""

from __future__ import annotations

import math
from collections.abc import Callable

from .emit import Emitter
from .values import Value

Function = Callable[[Emitter, Value], Value]
_CLAMP = 7.0


def sigmoid(e: Emitter, x: Value) -> Value:
    return 1.0 / (e.exp(-x) + 1.0)


def silu(e: Emitter, x: Value) -> Value:
    """x * sigmoid(x) (Elfwing et al. 2017)."""
    return x / (e.exp(-x) + 1.0)


def tanh(e: Emitter, x: Value) -> Value:
    """By e^2x, which saturates where tanh does."""
    return 1.0 - 2.0 / (e.exp(x + x) + 1.0)


def erf(e: Emitter, x: Value) -> Value:
    """Abramowitz and Stegun 7.1.26: absolute error below 2e-7."""
    size = e.select(x < 0.0, -x, x)
    t = 1.0 / (size * 0.3275911 + 1.0)
    p = e.const(x.type, 1.061405429)
    for c in (-1.453152027, 1.421413741, -0.284496736, 0.254829592):
        p = e.fma(p, t, e.const(x.type, c))
    found = 1.0 - p * t * e.exp(-(size * size))
    return e.select(x < 0.0, -found, found)


def gelu(e: Emitter, x: Value) -> Value:
    """x times the normal distribution's share below x (Hendrycks and Gimpel 2016)."""
    return x * 0.5 * (erf(e, x * math.sqrt(0.5)) + 1.0)


def gelu_tanh(e: Emitter, x: Value) -> Value:
    """The same paper's approximation: what GPT-2's "gelu_new" and "gelu_pytorch_tanh" compute."""
    inner = x * math.sqrt(2 / math.pi) * (x * x * 0.044715 + 1.0)
    return x * 0.5 * (tanh(e, inner) + 1.0)


def relu(e: Emitter, x: Value) -> Value:
    return e.select(x < 0.0, x * 0.0, x)


FUNCTIONS: dict[str, Function] = {"silu": silu, "gelu": gelu, "gelu_tanh": gelu_tanh, "relu": relu}


def swiglu_clamped(e: Emitter, gate: Value, up: Value) -> Value:
    """gpt-oss: g * sigmoid(1.702 g) * (u + 1), with g at most 7 and u inside +-7."""
    gate, up = e.min(gate, _CLAMP), e.max(e.min(up, _CLAMP), -_CLAMP)
    return gate / (e.exp(gate * -1.702) + 1.0) * (up + 1.0)


GATES: dict[str, Callable[[Emitter, Value, Value], Value]] = {"swiglu_clamped": swiglu_clamped}


def gate(e: Emitter, name: str, x: Value, up: Value) -> Value:
    """What a gated layer makes (Shazeer 2020): GATES[name] of both, or FUNCTIONS[name] of x, times up."""
    return GATES[name](e, x, up) if name in GATES else FUNCTIONS[name](e, x) * up
