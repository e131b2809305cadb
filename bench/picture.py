"""Accuracy against speed, drawn.  Enters: rows of a comparison; leaves: a PNG of 1600 by 1000 pixels."""

from __future__ import annotations

import io
import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING

from .report import size_text

if TYPE_CHECKING:
    from .demo import Row

_INK, _LINE, _POINT = "#24292f", "#d0d7de", "#0969da"
_DPI = 200  # twice the pixels that a page shows: sharp on every screen


def draw(rows: Sequence[Row], title: str) -> bytes:
    """Return the picture of rows, the reference first: decode speed to the right, divergence from it upwards.

    Raises ImportError where matplotlib cannot be imported.
    """
    logging.getLogger("matplotlib").setLevel(logging.ERROR)  # it tells of its font cache, in the middle of our output
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 5), dpi=_DPI, facecolor="white", layout="constrained")
    canvas = FigureCanvasAgg(figure)
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
    axes.tick_params(labelsize=11, colors=_INK)
    axes.grid(color=_LINE, linewidth=0.6)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    out = io.BytesIO()
    canvas.print_png(out)
    return out.getvalue()
