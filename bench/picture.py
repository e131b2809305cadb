"""Pictures of what was measured.  Enters: rows of a comparison; leaves: a PNG.

`draw` shows accuracy against speed, `draw_ratios` how many times as fast as others halfbyte is.  Both raise ImportError
where matplotlib cannot be imported.
"""

from __future__ import annotations

import io
import logging
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from .report import size_text

if TYPE_CHECKING:
    from .demo import Row
    from .peers.comparison import Comparison

_INK, _LINE, _POINT = "#24292f", "#d0d7de", "#0969da"
_PEERS = ("#0969da", "#bc4c00", "#1a7f37", "#8250df", "#bf3989")  # a colour each
_DPI = 200  # twice the pixels that a page shows: sharp on every screen


def draw(rows: Sequence[Row], title: str) -> bytes:
    """Return a picture of rows, the reference first: decode speed to the right, divergence from it upwards."""
    figure, png = _figure(8, 5)
    axes = figure.add_subplot()
    speeds = [row.decode for row in rows]
    losses = [row.mean_kl or 0.0 for row in rows]
    axes.scatter(speeds, losses, s=130, color=_POINT, zorder=3)
    for i, (row, x, y) in enumerate(zip(rows, speeds, losses, strict=True)):
        axes.annotate(
            f"{row.type}: {size_text(row.file_bytes)}\nperplexity {row.perplexity:.3f}",
            (x, y),
            xytext=(0, 18 + 56 * (i % 2)),  # every other label higher up: neighbours may be close
            textcoords="offset points",
            ha="center",
            va="bottom",
            fontsize=13,
            color=_INK,
            linespacing=1.4,
            bbox={"facecolor": "white", "edgecolor": _LINE, "boxstyle": "round,pad=0.35"},
            arrowprops={"arrowstyle": "-", "color": _INK, "linewidth": 0.8},
        )
    axes.margins(x=0.2)
    top = max(losses) or 1.0
    axes.set_ylim(-0.06 * top, 1.35 * top)
    axes.set_xlabel("generated tokens per second (faster to the right)", fontsize=13, color=_INK)
    axes.set_ylabel(f"KL divergence to {rows[0].type} (worse upwards)", fontsize=13, color=_INK)
    figure.suptitle("Accuracy against speed", fontsize=15, fontweight="bold", color=_INK)
    axes.set_title(title, fontsize=11, color=_INK)
    _plain(axes)
    return png()


def draw_ratios(comparisons: Sequence[Comparison]) -> bytes:
    """Return a picture with a panel for each model and number of threads: each speed's ratio to each peer's, and its
    spread; to the right of 1 halfbyte is faster.
    """
    panels = [
        (one, threads, [row for row in one.rows if row.threads == threads and row.case])
        for one in comparisons
        for threads in dict.fromkeys(row.threads for row in one.rows)
    ]
    height = max(len(rows) for _, _, rows in panels)
    figure, png = _figure(4 + 3.2 * len(panels), 1.9 + 0.42 * height)
    for place, (one, threads, rows) in enumerate(panels, 1):
        axes = figure.add_subplot(1, len(panels), place)
        for number, peer in enumerate(one.peers):
            shift = 0.16 * (number - (len(one.peers) - 1) / 2)
            found = [(i + shift, row.results[peer].ratio) for i, row in enumerate(rows)]
            there = [(y, ratio) for y, ratio in found if ratio is not None]
            axes.errorbar(
                [ratio.middle for _, ratio in there],
                [y for y, _ in there],
                xerr=[
                    [max(0.0, ratio.middle - ratio.low) for _, ratio in there],
                    [max(0.0, ratio.high - ratio.middle) for _, ratio in there],
                ],
                fmt="o",
                markersize=7,
                capsize=3,
                color=_PEERS[number % len(_PEERS)],
                label=peer,
            )
        axes.axvline(1, color=_INK, linewidth=1)
        axes.set_yticks(range(len(rows)), [row.figure for row in rows])
        axes.invert_yaxis()
        axes.set_xlim(left=0)
        axes.set_title(f"{one.model['file']}, {threads} thread{'s' if threads > 1 else ''}", fontsize=11, color=_INK)
        axes.set_xlabel("tokens per second: halfbyte's over the peer's", fontsize=11, color=_INK)
        _plain(axes)
        if one.peers:
            axes.legend(loc="best", fontsize=9, frameon=True, edgecolor=_LINE)
    figure.suptitle("How many times as fast (to the right of 1: faster)", fontsize=14, fontweight="bold", color=_INK)
    return png()


def _figure(width: float, height: float) -> tuple[Any, Callable[[], bytes]]:
    """Return an empty figure of so many inches, and the function that makes it a PNG."""
    logging.getLogger("matplotlib").setLevel(logging.ERROR)  # it tells of its font cache, in the middle of our output
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=_DPI, facecolor="white", layout="constrained")
    canvas = FigureCanvasAgg(figure)

    def png() -> bytes:
        out = io.BytesIO()
        canvas.print_png(out)
        return out.getvalue()

    return figure, png


def _plain(axes: Any) -> None:
    """Leave the axes with a thin grid, and without a frame above and to the right."""
    axes.tick_params(labelsize=11, colors=_INK)
    axes.grid(color=_LINE, linewidth=0.6)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
