"""What was written, or would be.  Enters: figures tensor by tensor; leaves: sums by type, as an object or as JSON."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

WITHOUT_LOSS = "without loss"
SCALES_ROUNDED = "scales rounded to float16"
DEQUANTIZED = "dequantized"
REQUANTIZED = "requantized"


@dataclass(frozen=True)
class TensorPlan:
    """One tensor as it is to be written: its format, its shape (rows first), and the bytes of its data in the file.

    scheme    how the source was quantized; "" where it was not
    repacked  what became of that: one of WITHOUT_LOSS, SCALES_ROUNDED, DEQUANTIZED and REQUANTIZED
    """

    name: str
    format: str
    shape: tuple[int, ...]
    nbytes: int
    scheme: str = field(default="", kw_only=True)
    repacked: str = field(default="", kw_only=True)

    @property
    def elements(self) -> int:
        """How many weights it has."""
        return math.prod(self.shape)

    def to_json(self) -> dict[str, Any]:
        """Return the tensor as values that `json.dumps` takes."""
        found = {"name": self.name, "type": self.format, "shape": list(self.shape), "bytes": self.nbytes}
        return found | ({"scheme": self.scheme, "repacked": self.repacked} if self.scheme else {})


@dataclass(frozen=True)
class TensorReport(TensorPlan):
    """One tensor as it was written.

    relative_error  root of sum((written - source)^2) / sum(source^2), over float32 values; 0 is exact
    """

    relative_error: float

    def to_json(self) -> dict[str, Any]:
        """Return the tensor as values that `json.dumps` takes."""
        return super().to_json() | {"relative_error": self.relative_error}


def bits_per_weight(tensors: Iterable[TensorPlan]) -> float:
    """Return the bits of tensor data for each weight."""
    held = list(tensors)
    return 8 * sum(tensor.nbytes for tensor in held) / sum(tensor.elements for tensor in held)


@dataclass(frozen=True)
class TypeSummary:
    """The tensors of one format: how many, their bytes and weights, and the one that lost most."""

    format: str
    tensors: int
    nbytes: int
    elements: int
    worst: TensorReport

    @property
    def bits_per_weight(self) -> float:
        """Bits of the file for each weight."""
        return 8 * self.nbytes / self.elements


@dataclass(frozen=True)
class ConversionReport:
    """A finished conversion, of a checkpoint or of a GGUF file into another type.

    path         the GGUF file
    type         the type that was asked for
    tensors      in the order of the file
    file_bytes   size of the file
    seconds      wall time
    peak_growth  bytes by which the process's memory grew at its peak; None where the system does not tell
    notes        what the user should know of the result
    """

    path: Path
    type: str
    tensors: tuple[TensorReport, ...]
    file_bytes: int
    seconds: float
    peak_growth: int | None
    notes: tuple[str, ...] = ()

    @property
    def bits_per_weight(self) -> float:
        """Bits of tensor data for each weight of the model."""
        return bits_per_weight(self.tensors)

    def by_type(self) -> list[TypeSummary]:
        """Return one summary a format, the one with most bytes first."""
        found: dict[str, list[TensorReport]] = {}
        for tensor in self.tensors:
            found.setdefault(tensor.format, []).append(tensor)
        summaries = [
            TypeSummary(
                format,
                len(tensors),
                sum(t.nbytes for t in tensors),
                sum(t.elements for t in tensors),
                max(tensors, key=lambda t: t.relative_error),
            )
            for format, tensors in found.items()
        ]
        return sorted(summaries, key=lambda summary: -summary.nbytes)

    def to_json(self) -> dict[str, Any]:
        """Return the report as values that `json.dumps` takes."""
        return {
            "path": str(self.path),
            "type": self.type,
            "file_bytes": self.file_bytes,
            "bits_per_weight": self.bits_per_weight,
            "seconds": self.seconds,
            "peak_growth_bytes": self.peak_growth,
            "notes": list(self.notes),
            "types": [
                {
                    "type": summary.format,
                    "tensors": summary.tensors,
                    "bytes": summary.nbytes,
                    "bits_per_weight": summary.bits_per_weight,
                    "worst_tensor": summary.worst.name,
                    "worst_relative_error": summary.worst.relative_error,
                }
                for summary in self.by_type()
            ],
            "tensors": [tensor.to_json() for tensor in self.tensors],
        }


class Meter:
    """Measures a conversion from when it is made."""

    def __init__(self) -> None:
        self._started, self._memory = time.perf_counter(), _memory("VmRSS")

    def seconds(self) -> float:
        """Return the wall time so far."""
        return time.perf_counter() - self._started

    def peak_growth(self) -> int | None:
        """Return by how many bytes the process's peak exceeds what it held; an earlier peak of it counts too."""
        peak = _memory("VmHWM")
        return max(0, peak - self._memory) if peak is not None and self._memory is not None else None


def _memory(field: str) -> int | None:
    """Return "VmRSS" (held now) or "VmHWM" (the peak) of this process in bytes; None where there is no /proc.

    Not getrusage: its peak begins with that of the process that started this one.
    """
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{field}:"))
    except (OSError, StopIteration):
        return None
