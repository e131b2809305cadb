"""Products of one group of columns.  Enters: vectors of codes of panels, addresses of activations; leaves: whole sums.

Also what the products of parts (products_int8.py) and those of two groups at once (products_paired.py) share.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from .activations import row_bytes
from .emit import Emitter
from .layouts import BlockLayout
from .target import Steps
from .values import Local, Value, Variable


@dataclass(frozen=True)
class Weights:
    """32 columns of a panel: vectors <4n x i8>, each taken apart when it is asked for; codes: address of the rest."""

    codes: Variable
    vectors: Iterator[Value]


def dots_of_group(
    e: Emitter, layout: BlockLayout, weights: list[Weights], first: Value, g: int, starts: list[Value],
    halves: bool = False,
) -> list[list[Value]]:  # fmt: skip
    """Sums [panel][row] <n x i32> of the products of group `g` of 32 columns, each row's from its start on.

    first: the address of the first row's codes; halves: as `Target.dots` has it.
    """
    order, stride = layout.order(e.target.together), row_bytes(layout.scale_columns)

    def columns(i: int, r: int, count: int) -> Value:
        return e.repeated_bytes(first + (stride * r + 4 * i), count, 4 * e.target.lanes)

    def steps() -> Steps:
        for i in order[g * 8 // layout.groups : (g + 1) * 8 // layout.groups]:
            yield [next(of_panel.vectors) for of_panel in weights], partial(columns, i)

    return e.target.dots(e, starts, steps(), layout.bound(), halves)


def corrected(e: Emitter, first: Value, row: int, index: int, ty: Any) -> Value:
    """Number `index` of a row's correction, in all lanes; first: the address of the tile's first row's."""
    return e.broadcast(first + 4 * (e.target.tile * index + row), ty, e.target.lanes)


def settle_locals(e: Emitter, sums: Sequence[Sequence[Local]], addresses: list[Variable]) -> None:
    """Compute all sums before what is read by these addresses from now on."""
    values = [[total.value for total in of_panel] for of_panel in sums]
    e.settle(values, addresses)
    for of_panel, now in zip(sums, values, strict=True):
        for total, value in zip(of_panel, now, strict=True):
            total.set(value)
