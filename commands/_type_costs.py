"""What each type costs.  Enters: nothing; leaves: figures of the sample model, and the help text that shows them.

The figures are those of `python tests/type_costs.py`; tests/test_type_costs.py measures some of them again.
"""

from __future__ import annotations

from ..bench.report import columns
from ..quant.recipe import ALIASES, RECIPES

COSTS = {
    "f32": (32.00, 0.0, 0.0),
    "f16": (16.01, 0.0, 0.0),
    "bf16": (16.01, 0.0, 0.0),
    "q8_0": (8.52, 0.00013, 0.03),
    "q4_0": (4.80, 0.01234, 0.72),
    "q4_1": (5.23, 0.01003, 0.65),
    "q5_0": (5.67, 0.00282, 0.41),
    "q5_1": (6.10, 0.00245, 0.06),
    "q2_k": (3.48, 0.32625, 35.32),
    "q2_k_s": (3.23, 0.68782, 90.36),
    "q3_k_s": (3.89, 0.05877, 6.49),
    "q3_k_m": (4.24, 0.02749, 2.58),
    "q3_k_l": (4.57, 0.02106, 2.30),
    "q4_k_s": (4.82, 0.00767, 0.49),
    "q4_k_m": (4.96, 0.00697, 0.31),
    "q5_k_s": (5.67, 0.00207, 0.12),
    "q5_k_m": (5.75, 0.00181, 0.16),
    "q6_k": (6.58, 0.00066, 0.01),
    "iq4_nl": (4.83, 0.00828, 0.30),
    "iq4_xs": (4.62, 0.00868, 0.15),
    "mxfp4_moe": (8.52, 0.00013, 0.03),
}
"""Type -> bits per weight, KL divergence from f16, and by how many per cent perplexity grows, on the sample's text."""

_NOTES = {
    "mxfp4_moe": "experts in MXFP4, everything else (all of a model without experts) in Q8_0",
    "q2_k_s": "llama-quantize refuses it without an importance matrix",
}


def types_text() -> str:
    """Return the list of the types for --help."""
    rows = [("type", "bits/weight", "KL to f16", "perplexity", "")]
    for type in RECIPES:
        bits, kl, growth = COSTS[type]
        rows.append((type, f"{bits:.2f}", f"{kl:.5f}", f"{growth:+.2f} %", _NOTES.get(type, "")))
    short = ", ".join(f"{name} is {type}" for name, type in ALIASES.items())
    return (
        "types, and what they cost the sample model that comes with halfbyte (3.9 million weights; larger models lose "
        f"less):\n{columns(rows, [False, True, True, True, False])}\n  {short}"
    )
