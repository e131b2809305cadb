"""What `bench accuracy` prints.  Enters: a model and its accuracy on a text; leaves: a flat record, and tables of it.

A figure says little without what it was measured with, so the record names the engine, the precision of activations
and KV cache, the chunks, the text by its hash, and the bytes of the file, of all tensors, and of those between the
embedding and the output matrix.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import version
from typing import Any

from ..errors import printable
from ..runtime.llm import LLM
from ..runtime.machine import cpu_name
from .accuracy import Accuracy
from .divergence import DELTA_P_PERCENTS, Divergence, Estimate
from .report import markdown
from .speed import model_type

_FACTS = {
    "model": "model_type",
    "file bytes": "file_bytes",
    "tensor bytes": "model_size",
    "body bytes": "body_bytes",
    "bits/weight": "bits_per_weight",
    "engine": "engine",
    "activations": "activation_type",
    "KV": "type_k",
    "n_ctx": "n_ctx",
    "chunks": "n_chunks",
    "scored": "n_scored",
    "text": "text_sha256",
    "reference": "reference",
}
# name in the table, key of the record, whether it is shown in percent
_FIGURES = (
    ("perplexity", "perplexity", False),
    ("perplexity of the reference", "base_perplexity", False),
    ("correlation of ln perplexity", "correlation", True),
    ("ln(perplexity / reference's)", "log_ratio", False),
    ("perplexity / reference's", "ratio", False),
    ("perplexity - reference's", "difference", False),
    ("KL divergence", "kl", False),
    ("change of p", "delta_p", True),
    ("change of p, root mean square", "rms_delta_p", True),
    ("same most likely token", "same_top", True),
)
_PLACES: dict[float, str] = {100: "max", 50: "median", 0: "min"}  # what a percentile is called; others p99.9, p99 ...


def record(llm: LLM, found: Accuracy, text_sha256: str, reference: str | None) -> dict[str, Any]:
    """Return one flat record; sizes in bytes, errors under <name>_error, percentiles under <name>_p99.9, _median ...

    text_sha256  the first digits of the text file's hash
    reference    what the divergence was told from, by its path
    """
    model, engine = llm.model, llm.engine
    facts = {
        "engine": f"halfbyte {version('halfbyte')}",
        "cpu_info": cpu_name(),
        "instruction_set": engine.library.target.name,
        "activation_type": engine.activation_type,
        "type_k": engine.cache_type,
        "type_v": engine.cache_type,
        "model_filename": str(model.path),
        "model_type": model_type(llm),
        "model_n_params": model.n_params,
        "file_bytes": model.file_bytes,
        "model_size": model.size_bytes,
        "body_bytes": model.body_bytes,
        "bits_per_weight": 8 * model.size_bytes / model.n_params,
        "reference": reference,
        "text_sha256": text_sha256,
        "n_ctx": found.n_ctx,
        "n_chunks": found.n_chunks,
        "n_scored": found.n_scored,
        "tokens": found.tokens,
        "perplexity": found.perplexity,
        "perplexity_error": found.perplexity_error,
    }
    return facts | (dict(_flat(found.divergence)) if found.divergence else {})


def _flat(divergence: Divergence) -> Iterator[tuple[str, float]]:
    for name, value in vars(divergence).items():
        if isinstance(value, Estimate):
            yield from ((name, value.value), (f"{name}_error", value.error))
        elif isinstance(value, Mapping):
            base = name.removesuffix("_percentiles")
            yield from ((f"{base}_{_place(percent)}", x) for percent, x in value.items())
        else:
            yield name, value


def _place(percent: float) -> str:
    return _PLACES.get(percent, f"p{percent:g}")


def table(records: Sequence[Mapping[str, Any]]) -> str:
    """Return two Markdown tables of each record: what was measured with what, and the figures with their errors."""
    tables = []
    for found in records:
        facts = [found[key] for key in _FACTS.values()]
        right = [isinstance(fact, (int, float)) for fact in facts]
        tables.append(markdown(list(_FACTS), [[_fact(fact) for fact in facts]], right))
        tables.append(markdown(("figure", "value", "±"), _figure_rows(found), (False, True, True)))
    return "\n\n".join(tables)


def _fact(value: Any) -> str:
    return f"{value:.3f}" if isinstance(value, float) else printable(value) if value is not None else ""


def _figure_rows(found: Mapping[str, Any]) -> Iterator[tuple[str, str, str]]:
    for name, key, in_percent in _FIGURES:
        if key in found:
            error = found.get(f"{key}_error")
            yield name, _number(found[key], in_percent), "" if error is None else _number(error, in_percent)
        for percent in DELTA_P_PERCENTS:
            if (place := f"{key}_{_place(percent)}") in found:
                label = _PLACES.get(percent, f"{percent:g} %")
                yield f"{name}, {label}", _number(found[place], in_percent), ""


def _number(value: float, in_percent: bool) -> str:
    return f"{100 * value:.3f} %" if in_percent else f"{value:.6f}"
