"""What a conversion did.  Enters: figures tensor by tensor; leaves: sums by type, as an object or as JSON."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class TensorReport:
    """One tensor as it was written.

    shape           rows first
    nbytes          bytes of its data in the file
    relative_error  root of sum((written - source)^2) / sum(source^2), over float32 values; 0 is exact
    """

    name: str
    format: str
    shape: tuple[int, ...]
    nbytes: int
    relative_error: float

    @property
    def elements(self) -> int:
        """How many weights it has."""
        return math.prod(self.shape)


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
    """A finished conversion.

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
        return 8 * sum(t.nbytes for t in self.tensors) / sum(t.elements for t in self.tensors)

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
            "tensors": [
                {
                    "name": tensor.name,
                    "type": tensor.format,
                    "shape": list(tensor.shape),
                    "bytes": tensor.nbytes,
                    "relative_error": tensor.relative_error,
                }
                for tensor in self.tensors
            ],
        }
