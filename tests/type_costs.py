"""What every type costs the sample model.  Enters: nothing; leaves: the rows of COSTS in commands/_type_costs.py.

python tests/type_costs.py    # when the sample, its text or a quantizer changed
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from halfbyte import LLM, convert_checkpoint
from halfbyte.bench.accuracy import measure_accuracy, read_text
from halfbyte.convert.sample_model import EVALUATION_TEXT, SAMPLE
from halfbyte.quant.recipe import RECIPES

REFERENCE = "f16"


def measure(types: list[str], folder: Path) -> dict[str, tuple[float, float, float]]:
    """Return bits per weight, KL divergence from f16 and ratio of perplexities to f16's, by type; f16 comes first."""
    text, logits = read_text(EVALUATION_TEXT)[0], folder / "logits"
    found, base = {}, 0.0
    for type in (REFERENCE, *types):
        first = not logits.exists()
        report = convert_checkpoint(SAMPLE, folder / "m.gguf", type, force=True)
        with LLM(report.path) as llm:
            keep = {"save_logits": logits} if first else {"reference": logits}
            accuracy = measure_accuracy(llm, text, **keep)
        base = accuracy.perplexity if first else base
        kl = accuracy.divergence.kl.value if accuracy.divergence else 0.0
        found[type] = (report.bits_per_weight, kl, accuracy.perplexity / base)
    return found


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        costs = measure([type for type in RECIPES if type != REFERENCE], Path(folder))
    for type in RECIPES:
        bits, kl, ratio = costs[type]
        print(f'    "{type}": ({bits:.2f}, {max(kl, 0.0):.5f}, {100 * (ratio - 1):.2f}),')
