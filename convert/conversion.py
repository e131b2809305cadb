"""The whole conversion.  Enters: a checkpoint folder and a type; leaves: a GGUF file and its `ConversionReport`.

Everything is read and checked before the output is opened.  Then each tensor goes through in pieces of a few megabytes,
one piece a thread: read, permuted, rounded, compared with what was read, written.
"""

from __future__ import annotations

import math
import os
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Protocol

import numpy as np

from ..errors import ModelFileError, UsageError
from ..quant.formats import FORMATS, BlockFormat, first_nonfinite
from ..quant.gguf_writer import GgufWriter
from ..quant.recipe import ModelSizes, choose_formats, parse_override, recipe_by_name
from .archs import plan_checkpoint
from .checkpoint import Checkpoint
from .plan import Entry, Plan, PlannedTensor
from .report import ConversionReport, TensorReport
from .vocab import vocab_entries

DEFAULT_TYPE = "q8_0"
QUANTIZATION_VERSION = 2  # GGML_QNT_VERSION

PIECE = 1 << 20
"""Elements of one piece: 4 MB as float32, which stays in a core's cache."""


class Progress(Protocol):
    """Called after each piece with the elements done, those in all, and the tensor's name."""

    def __call__(self, done: int, total: int, name: str) -> None: ...


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

    Raises UsageError (nothing to convert, output exists or cannot be written), UnsupportedError (architecture, setting,
    type or tokenizer), ModelFileError (a damaged file, or files that contradict each other).  On any error nothing is
    left under the name `out`.
    """
    started, memory = time.perf_counter(), _memory("VmRSS")
    recipe = recipe_by_name(type)
    overrides = [parse_override(text) for text in tensor_types]
    source = Path(src)
    target = Path(out) if out is not None else Path(f"{source.resolve().name}-{recipe.name.upper()}.gguf")
    with Checkpoint(source) as checkpoint:
        _check_target(target, checkpoint)
        plan = plan_checkpoint(checkpoint)
        entries = [
            *_general(source, plan, recipe.file_type),
            *plan.metadata,
            *vocab_entries(source, checkpoint.config, plan.vocab_rows),
        ]
        shapes = {tensor.name: tensor.shape for tensor in plan.tensors}
        chosen = choose_formats(shapes, recipe, _sizes(plan), pure, overrides)
        formats = [chosen[tensor.name] or FORMATS["f32"] for tensor in plan.tensors]
        with GgufWriter(target, force) as writer:
            for entry in entries:
                _add(writer, entry)
            for tensor, format in zip(plan.tensors, formats, strict=True):
                writer.declare(tensor.name, tensor.shape, format)
            reports = _write_tensors(writer, checkpoint, plan.tensors, formats, progress)
            checkpoint.check_unchanged()
    return ConversionReport(
        path=target,
        type=recipe.name,
        tensors=tuple(reports),
        file_bytes=target.stat().st_size,
        seconds=time.perf_counter() - started,
        peak_growth=_peak_growth(memory),
        notes=plan.notes,
    )


def _check_target(target: Path, checkpoint: Checkpoint) -> None:
    """Raise UsageError when the output would replace a file of the checkpoint."""
    if not target.exists():
        return
    inside = target.resolve().parent == checkpoint.folder.resolve() and target.suffix != ".gguf"
    if inside or any(target.samefile(path) for path in checkpoint.paths()):
        raise UsageError(f"{target}: is a file of the checkpoint; the output needs another name")


def _general(source: Path, plan: Plan, file_type: int) -> list[Entry]:
    weights = sum(math.prod(tensor.shape) for tensor in plan.tensors if tensor.source is not None)
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


_Result = tuple[np.ndarray, float, float, int]
"""Packed data uint8 of one piece, its squares lost and there (see _Sums), and its elements."""


class _Sums:
    """Running sums of one tensor: squares of what was lost, and of what there was."""

    def __init__(self) -> None:
        self.lost = self.there = 0.0

    def relative_error(self) -> float:
        """Return the relative error so far (TensorReport says what it is)."""
        if self.lost == 0:
            return 0.0
        return math.sqrt(self.lost / self.there) if self.there else math.inf


def _write_tensors(
    writer: GgufWriter,
    checkpoint: Checkpoint,
    tensors: tuple[PlannedTensor, ...],
    formats: list[BlockFormat],
    progress: Progress | None,
) -> list[TensorReport]:
    total, done = sum(math.prod(tensor.shape) for tensor in tensors), 0
    reports = []
    with ThreadPoolExecutor(_threads()) as pool:
        for tensor, format in zip(tensors, formats, strict=True):
            sums = _Sums()
            report_from = partial(progress, total=total, name=tensor.name) if progress is not None else None
            results = _in_order(pool, _jobs(checkpoint, tensor, format))
            writer.write(tensor.name, _collect(results, sums, done, report_from))
            done += math.prod(tensor.shape)
            if tensor.source is not None:
                checkpoint.release(tensor.source)
            nbytes = format.nbytes(tensor.shape)
            reports.append(TensorReport(tensor.name, format.name, tensor.shape, nbytes, sums.relative_error()))
    return reports


def _collect(
    results: Iterator[_Result], sums: _Sums, done: int, report: Callable[[int], None] | None
) -> Iterator[np.ndarray]:
    """Yield the packed data of each result, adding up the sums and reporting elements done."""
    for packed, lost, there, elements in results:
        sums.lost += lost
        sums.there += there
        done += elements
        if report is not None:
            report(done)
        yield packed


def _jobs(checkpoint: Checkpoint, tensor: PlannedTensor, format: BlockFormat) -> Iterator[Callable[[], _Result]]:
    """Yield one job for each piece of the tensor, in order."""
    columns = tensor.shape[-1]
    count = math.prod(tensor.shape) // columns
    step = max(1, PIECE // columns)
    for begin in range(0, count, step):
        yield partial(_piece, checkpoint, tensor, format, begin, min(begin + step, count))


def _piece(checkpoint: Checkpoint, tensor: PlannedTensor, format: BlockFormat, begin: int, end: int) -> _Result:
    rows = _rows(checkpoint, tensor, begin, end)
    where = first_nonfinite(rows)
    if where is not None:
        row, column = divmod(where, rows.shape[1])
        index = [column] if len(tensor.shape) == 1 else [begin + row, column]
        raise _error(checkpoint, tensor, f"is {rows[row, column]} at {index} (of {list(tensor.shape)} as written)")
    if format.name == "f32":
        return rows.view(np.uint8), 0.0, 1.0, rows.size
    packed = format.quantize(rows)
    lost = format.dequantize(packed)
    lost -= rows
    sum_lost, sum_there = _square_sum(lost), _square_sum(rows)
    if not math.isfinite(sum_lost):
        largest = float(np.abs(rows).max())
        raise _error(
            checkpoint, tensor, f"holds {largest:g}, which is too large for {format.name}; f32 and bf16 hold it"
        )
    return packed, sum_lost, sum_there, rows.size


def _rows(checkpoint: Checkpoint, tensor: PlannedTensor, begin: int, end: int) -> np.ndarray:
    """Return rows [begin, end) as they are to be written, float32 [end - begin, n_cols]; a vector is one row."""
    if tensor.source is None:
        assert tensor.values is not None
        return tensor.values.reshape(-1, tensor.shape[-1])[begin:end]
    if tensor.order is None:
        return checkpoint.rows(tensor.source, begin, end)
    if len(tensor.shape) == 1:
        return checkpoint.rows(tensor.source, 0, 1)[:, tensor.order]
    wanted = tensor.order[begin:end]
    first = int(wanted.min())
    return checkpoint.rows(tensor.source, first, int(wanted.max()) + 1)[wanted - first]


def _square_sum(values: np.ndarray) -> float:
    flat = values.reshape(-1)
    return float(np.dot(flat, flat))


def _error(checkpoint: Checkpoint, tensor: PlannedTensor, message: str) -> ModelFileError:
    path = checkpoint.file_of(tensor.source) if tensor.source is not None else checkpoint.config.path
    return ModelFileError(path, message, place=f"tensor {tensor.source or tensor.name}")


def _in_order(pool: ThreadPoolExecutor, jobs: Iterator[Callable[[], _Result]]) -> Iterator[_Result]:
    """Run the jobs on the pool and yield their results in order, with only a few of them waiting at any time."""
    waiting: deque[Future[_Result]] = deque()
    try:
        for job in jobs:
            waiting.append(pool.submit(job))
            if len(waiting) > _threads() + 1:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        for future in waiting:
            future.cancel()


def _threads() -> int:
    """Return how many cores the conversion uses: those of this process, at most 8."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(cores, 8)


# ---------------------------------------------------------------------------------------------------- the memory


def _memory(field: str) -> int | None:
    """Return "VmRSS" (held now) or "VmHWM" (the peak) of this process in bytes; None where there is no /proc.

    Not getrusage: its peak begins with that of the process that started this one.
    """
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{field}:"))
    except (OSError, StopIteration):
        return None


def _peak_growth(before: int | None) -> int | None:
    """Return by how much the process's peak exceeds `before`; an earlier peak of the same process counts too."""
    peak = _memory("VmHWM")
    return max(0, peak - before) if peak is not None and before is not None else None
