"""What the pictures have in common."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.cifar10.report import network
from benchmarks.common import files

DPI = 120


def describe(flags: dict[str, Any]) -> str:
    """Returns what was trained, for the title of a figure."""
    return (
        f"{network(flags)}, {flags['optimizer']}, "
        f"{flags['epochs']} epochs, averaged after "
        f"{flags['epochs_before_swa']}"
    )


def new(title: str, width: float = 7.0, height: float = 4.5) -> Figure:
    """Returns an empty figure, its size in inches."""
    figure = Figure(figsize=(width, height), layout="constrained")
    figure.suptitle(title, fontsize="medium")
    return figure


def band(
    axes: Axes,
    x: list[float],
    lines: dict[str, list[float]],
    **style: Any,
) -> None:
    """Draws a mean, and the band from the least value to the largest.

    Args:
        axes: Where.
        x: The positions.
        lines: `mean`, `low` and `high`, a value each a position.
        **style: Of the line, with its `color` and `label`.
    """
    axes.plot(x, lines["mean"], **style)
    # Not `fill_between`, which older releases cannot do for a single point.
    axes.fill(
        [*x, *reversed(x)],
        [*lines["low"], *reversed(lines["high"])],
        color=style["color"],
        alpha=0.15,
        linewidth=0.0,
    )


def over_draws(values: Iterable[Sequence[float]]) -> dict[str, list[float]]:
    """Returns the mean, the least and the largest at each position.

    >>> over_draws([[1.0, 3.0], [2.0, 2.0]])
    {'mean': [2.0, 2.0], 'low': [1.0, 2.0], 'high': [3.0, 2.0]}

    Args:
        values: The values of all draws, for each position.
    """
    rows = [np.asarray(row, np.float64) for row in values]
    return {
        "mean": [float(row.mean()) for row in rows],
        "low": [float(row.min()) for row in rows],
        "high": [float(row.max()) for row in rows],
    }


def legend(
    figure: Figure, handles: Sequence[Any], labels: Sequence[str], columns: int
) -> None:
    """Puts a legend below all panels; `save` makes the picture as large."""
    figure.legend(
        handles,
        labels,
        loc="upper center",
        bbox_to_anchor=(0.5, 0.0),
        ncols=columns,
        fontsize="small",
    )


def save(figure: Figure, path: str) -> None:
    """Writes a PNG file, which appears when it is complete."""
    with matplotlib.rc_context({"savefig.dpi": DPI}):
        files.write_whole(
            path,
            lambda partial: figure.savefig(
                partial, format="png", bbox_inches="tight"
            ),
        )
