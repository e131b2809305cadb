"""The whole conversion.  Enters: a checkpoint folder and a type; leaves: a GGUF file and its `ConversionReport`.

Everything is read and checked before the output is opened.  Then the tensors go through `quant.tensor_stream`.
"""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from ..errors import ModelFileError, UsageError
from ..quant.formats import FORMATS, BlockFormat
from ..quant.gguf_types import QUANTIZATION_VERSION
from ..quant.gguf_writer import GgufWriter
from ..quant.recipe import PLAIN, ModelSizes, Override, Recipe, choose_formats, parse_override, recipe_by_name
from ..quant.report import (
    DEQUANTIZED,
    REQUANTIZED,
    SCALES_ROUNDED,
    WITHOUT_LOSS,
    ConversionReport,
    Meter,
    TensorPlan,
    TensorReport,
)
from ..quant.tensor_stream import Progress, TensorSource, write_tensors
from .archs import plan_checkpoint
from .checkpoint import Checkpoint
from .lazy import Lazy
from .plan import Entry, Plan, PlannedTensor
from .vocab import plan_vocab

DEFAULT_TYPE = "q8_0"
KEEPING_IS_WORTH = 1.0
"""Bits a weight by which a matrix may exceed the type that was asked for, where that spares rounding it again."""


def convert_checkpoint(
    src: str | os.PathLike[str],
    out: str | os.PathLike[str] | None = None,
    type: str = DEFAULT_TYPE,
    force: bool = False,
    progress: Progress | None = None,
    *,
    pure: bool = False,
    tensor_types: Sequence[str] = (),
) -> ConversionReport:
    """Convert the Hugging Face folder `src` into the GGUF file `out` and return what was written.

    out           default: <name of the folder>-<TYPE>.gguf in the current folder
    type          one of llama.cpp's file types (`quant.recipe.RECIPES`): q8_0, q4_k_m ...
    force         replace `out` when it is there
    progress      called after each piece
    pure          all matrices get one format, token embeddings and output included
    tensor_types  "REGEX=FORMAT": formats of the tensors in whose name the regex is found; the first counts

    Raises UsageError (nothing to convert, a regex that matches nothing, output exists or cannot be written),
    UnsupportedError (architecture, setting, type, format or tokenizer), ModelFileError (a damaged file, or files that
    contradict each other).  On any error nothing is left under the name `out`.
    """
    meter = Meter()
    recipe, overrides = recipe_by_name(type), [parse_override(text) for text in tensor_types]
    source = Path(src)
    target = Path(out) if out is not None else Path(f"{source.resolve().name}-{recipe.name.upper()}.gguf")
    with Checkpoint(source) as checkpoint:
        _check_target(target, checkpoint)
        plan = plan_checkpoint(checkpoint)
        vocab = plan_vocab(source, checkpoint.config, plan.vocab_rows)
        entries = [*_general(source, plan, recipe.file_type), *plan.metadata, *vocab.entries]
        tensors = _sources(checkpoint, plan, recipe, pure, overrides)
        with GgufWriter(target, force) as writer:
            for entry in entries:
                _add(writer, entry)
            reports = write_tensors(writer, tensors, progress)
            checkpoint.check_unchanged()
    return ConversionReport(
        path=target,
        type=recipe.name,
        tensors=reports,
        file_bytes=target.stat().st_size,
        seconds=meter.seconds(),
        peak_growth=meter.peak_growth(),
        notes=(*plan.notes, *vocab.notes, *_notes(checkpoint, reports)),
    )


_SAID = {
    WITHOUT_LOSS: "are kept without loss",
    SCALES_ROUNDED: "keep their codes, with scales rounded to float16",
    DEQUANTIZED: "are dequantized",
    REQUANTIZED: "are requantized: their values are rounded again",
}


def _notes(checkpoint: Checkpoint, reports: Sequence[TensorReport]) -> list[str]:
    """Say what became of tensors that were quantized already."""
    counts = Counter((report.scheme, report.repacked) for report in reports if report.scheme)
    found = [f"{count} tensors of {scheme} {_SAID[repacked]}" for (scheme, repacked), count in counts.items()]
    if checkpoint.dropped:
        found.append(
            f"{len(checkpoint.dropped)} scales of activations are left out: activations are rounded here as always"
        )
    return found


def plan_conversion(
    src: str | os.PathLike[str], type: str = DEFAULT_TYPE, *, pure: bool = False, tensor_types: Sequence[str] = ()
) -> tuple[TensorPlan, ...]:
    """Return the tensors that `convert_checkpoint` would write, having read none but scales of a quantized checkpoint.

    Raises what it raises.
    """
    recipe, overrides = recipe_by_name(type), [parse_override(text) for text in tensor_types]
    with Checkpoint(Path(src)) as checkpoint:
        tensors = _sources(checkpoint, plan_checkpoint(checkpoint), recipe, pure, overrides)
        return tuple(tensor.plan for tensor in tensors)


def _check_target(target: Path, checkpoint: Checkpoint) -> None:
    """Raise UsageError when the output would replace a file of the checkpoint."""
    if not target.exists():
        return
    inside = target.resolve().parent == checkpoint.folder.resolve() and target.suffix != ".gguf"
    if inside or any(target.samefile(path) for path in checkpoint.paths()):
        raise UsageError(f"{target}: is a file of the checkpoint; the output needs another name")


def _general(source: Path, plan: Plan, file_type: int) -> list[Entry]:
    weights = sum(math.prod(tensor.values.shape) for tensor in plan.tensors if tensor.values.sources)
    return [
        Entry("general.architecture", "string", plan.architecture),
        Entry("general.type", "string", "model"),
        Entry("general.name", "string", source.resolve().name.encode("utf-8", "replace")),
        Entry("general.size_label", "string", size_label(weights)),
        Entry("general.file_type", "uint32", file_type),
        Entry("general.quantization_version", "uint32", QUANTIZATION_VERSION),
    ]


def _sizes(plan: Plan) -> ModelSizes:
    """Return what the choice of formats depends on, from the metadata as it will be written."""
    found = {entry.key.removeprefix(f"{plan.architecture}."): entry.value for entry in plan.metadata}
    heads = found["attention.head_count"]
    return ModelSizes(
        plan.architecture,
        layers=found["block_count"],
        heads=heads,
        kv_heads=found.get("attention.head_count_kv", heads),
        experts=found.get("expert_count", 0),
    )


def size_label(weights: int) -> str:
    """Return a count of weights as people write it, with two digits at least: 260K, 1.2B, 13B."""
    unit, letter = next(((u, x) for u, x in ((10**12, "T"), (10**9, "B"), (10**6, "M")) if weights >= u), (1000, "K"))
    value = weights / unit
    return f"{value:.{1 if value < 9.95 else 0}f}{letter}"


def _add(writer: GgufWriter, entry: Entry) -> None:
    if entry.items is not None:
        writer.add_array(entry.key, entry.items, entry.value)
    else:
        writer.add(entry.key, entry.value, entry.type)


# --------------------------------------------------------------------------------------------------- the tensors


def _sources(
    checkpoint: Checkpoint, plan: Plan, recipe: Recipe, pure: bool, overrides: Sequence[Override]
) -> list[TensorSource]:
    """Return the tensors in the order of the file, each with its format; what no type rounds is written as F32."""
    shapes = {tensor.name: tensor.values.shape for tensor in plan.tensors}
    chosen = choose_formats(shapes, recipe, _sizes(plan), pure, overrides)
    found = []
    for tensor in plan.tensors:
        asked = pure or any(override.pattern.search(tensor.name) for override in overrides)
        found.append(_source(checkpoint, tensor, chosen[tensor.name], asked))
    return found


def _source(checkpoint: Checkpoint, tensor: PlannedTensor, chosen: BlockFormat | None, asked: bool) -> TensorSource:
    """Return a tensor for the writer; `chosen`: None where no type rounds it, `asked`: by name, not by the recipe."""
    values, error = tensor.values, partial(_error, checkpoint, tensor)
    scheme = next((found.scheme for name in values.sources if (found := checkpoint.quantized(name))), "")
    kept, repacked = None, ""
    if scheme:
        kept, repacked = _repacked(values, chosen or FORMATS["f32"], asked)
    return TensorSource(
        tensor.name,
        values.shape,
        kept or chosen or FORMATS["f32"],
        rows=values.rows,
        error=error,
        release=values.release,
        packed=partial(values.packed, kept) if kept is not None else None,
        scheme=scheme,
        repacked=repacked,
    )


def _repacked(values: Lazy, chosen: BlockFormat, asked: bool) -> tuple[BlockFormat | None, str]:
    """Return the format that takes the codes of a quantized tensor, None where its values are rounded; and the word for
    it in the report."""
    if chosen.name in PLAIN:
        return None, DEQUANTIZED
    most = chosen.bits_per_weight + KEEPING_IS_WORTH
    for nearly, word in ((False, WITHOUT_LOSS), (True, SCALES_ROUNDED)):
        for format in values.held_by(nearly):
            if format == chosen if asked else format.bits_per_weight <= most:
                return format, word
    return None, REQUANTIZED


def _error(checkpoint: Checkpoint, tensor: PlannedTensor, message: str) -> ModelFileError:
    """Return an error that names the stored tensor, or the one that is written where several make it."""
    sources = tensor.values.sources
    path = checkpoint.file_of(sources[0]) if sources else checkpoint.config.path
    return ModelFileError(path, message, place=f"tensor {sources[0] if len(sources) == 1 else tensor.name}")
