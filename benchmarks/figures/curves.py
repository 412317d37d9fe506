"""Figure 1: accuracy an epoch of all branches, over several seeds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from benchmarks.cifar10.evaluation import DECAYED, WAYS
from benchmarks.figures import drawing, run_results

# Of the values from the branch on, this share may lie below the axis: a single
# epoch with useless statistics would flatten all curves.
_HIDDEN_PERCENT = 5.0


def compute(patterns: Sequence[str]) -> dict[str, Any]:
    """Returns the validation accuracies of each epoch and way, over seeds.

    Args:
        patterns: The paths of the results files of runs that differ in their
            seeds, with the wildcards of a shell.

    Raises:
        BenchmarkError: If there are no runs, or they differ in other flags.
    """
    runs = run_results.read(patterns)
    run_results.check_alike(runs, ("seed",))
    by_way: dict[str, dict[int, list[float]]] = {}
    for run in runs:
        for names, epochs in (
            ({way: way for way in WAYS}, run["epochs"]),
            (DECAYED, run["decayed"]),
        ):
            for figures in epochs:
                for way, values in figures["validation"].items():
                    points = by_way.setdefault(names[way], {})
                    points.setdefault(figures["epoch"], []).append(
                        values["accuracy"]
                    )
    return {
        "flags": runs[0]["flags"],
        "seeds": sorted(run["seed"] for run in runs),
        "ways": {
            way: {
                "epoch": list(by_way[way]),
                **drawing.over_draws(by_way[way].values()),
            }
            for way in WAYS
            if way in by_way
        },
    }


def draw(contents: dict[str, Any]) -> Figure:
    """Draws means, and bands from the worst seed to the best."""
    flags, seeds = contents["flags"], contents["seeds"]
    branch = flags["epochs_before_swa"]
    figure = drawing.new(
        f"{drawing.describe(flags)}\nmean of {len(seeds)} seeds, "
        "band from the least to the largest",
        height=5.0,
    )
    axes = figure.subplots()
    shown: list[float] = []
    for color, way in enumerate(WAYS):
        if way not in contents["ways"]:
            continue
        lines = contents["ways"][way]
        drawing.band(
            axes,
            lines["epoch"],
            lines,
            color=f"C{color // 2}",
            linestyle="-" if color % 2 else ":",
            label=WAYS[way],
        )
        shown += [
            low
            for epoch, low in zip(lines["epoch"], lines["low"])
            if epoch > branch
        ]
    top = max(max(lines["high"]) for lines in contents["ways"].values())
    bottom = float(np.percentile(shown, _HIDDEN_PERCENT))
    margin = max(0.1 * (top - bottom), 0.5)
    axes.set_ylim(bottom - margin, min(top + margin, 100.5))
    axes.axvline(branch, color="black", linewidth=0.8, linestyle="--")
    axes.annotate(
        " the branches part",
        (branch, 0.02),
        xycoords=("data", "axes fraction"),
        fontsize="small",
    )
    axes.set_xlabel("epoch")
    axes.set_ylabel("validation accuracy (%)")
    axes.grid(alpha=0.3)
    drawing.legend(figure, *axes.get_legend_handles_labels(), columns=3)
    return figure
