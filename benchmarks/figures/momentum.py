"""Figure 5: moving against refit statistics, by momentum and weight decay.

The moving statistics of a run are those of its momentum, so each cell of the
grid is a training run of its own: `benchmarks.cifar10` in a process, without
the branch that decays unless the flags given ask for it. A cell whose results
are there is not run again, and one that was killed goes on where it stopped.
"""

from __future__ import annotations

import itertools
import os
import shlex
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

from matplotlib.figure import Figure
from tqdm import tqdm

from benchmarks.cifar10.evaluation import WAYS
from benchmarks.cifar10.run_directory import RESULTS
from benchmarks.common import files
from benchmarks.common.errors import BenchmarkError
from benchmarks.figures import drawing, run_results

_SHOWN = ("moving", "refit", "swa", "swa_refit")
_GRID = ("batch_norm_momentum", "weight_decay", "seed")


def compute(
    arguments: str,
    momentums: Sequence[float],
    weight_decays: Sequence[float],
    seeds: Sequence[int],
    results_dir: str,
    runs_dir: str,
) -> dict[str, Any]:
    """Runs what is missing of the grid, and gathers its figures.

    Args:
        arguments: Flags of `benchmarks.cifar10` for all runs, as in a shell.
        momentums: Values of `--batch_norm_momentum`.
        weight_decays: Values of `--weight_decay`.
        seeds: Values of `--seed`.
        results_dir: Where the results of each run are kept.
        runs_dir: Where the runs have their directories.

    Raises:
        BenchmarkError: If a run fails, or results are there of other flags.
    """
    given = shlex.split(arguments)
    grid = list(itertools.product(momentums, weight_decays, seeds))
    runs = []
    for cell in tqdm(grid, desc="momentum", unit="run"):
        name = "momentum-{:g}-decay-{:g}-seed-{}".format(*cell)
        kept = os.path.join(results_dir, f"{name}.json")
        if not os.path.exists(kept):
            flags = [f"--{k}={v}" for k, v in zip(_GRID, cell)]
            directory = os.path.join(runs_dir, name)
            _run(["--nocompare_decay", *given, *flags], directory)
            files.write_json(
                kept, files.read_json(os.path.join(directory, RESULTS))
            )
        run = files.read_json(kept)
        _check(
            kept, run["flags"], [*given, *map("--{}={}".format, _GRID, cell)]
        )
        runs.append(run)
    run_results.check_alike(runs, _GRID)
    return {
        "flags": runs[0]["flags"],
        "momentums": list(momentums),
        "weight_decays": list(weight_decays),
        "seeds": list(seeds),
        "cells": [
            {
                **{name: run["flags"][name] for name in _GRID},
                "validation": {
                    way: [
                        e["validation"][way]["accuracy"]
                        for e in run["epochs"]
                        if way in e["validation"] and e["n_models"]
                    ]
                    for way in _SHOWN
                },
                "test": {
                    way: run["final"]["test"][way]["accuracy"] for way in _SHOWN
                },
            }
            for run in runs
        ],
    }


def draw(contents: dict[str, Any]) -> Figure:
    """Draws a panel for each weight decay: accuracy against momentum."""
    decays, momentums = contents["weight_decays"], contents["momentums"]
    seeds = len(contents["seeds"])
    figure = drawing.new(
        f"{drawing.describe(contents['flags'])}\n"
        f"mean over the epochs averaged of {seeds} "
        f"{'seed' if seeds == 1 else 'seeds'}, bars from the least to the "
        "largest",
        width=2.0 + 3.0 * len(decays),
    )
    panels = figure.subplots(1, len(decays), sharey=True, squeeze=False)[0]
    for axes, decay in zip(panels, decays):
        for i, way in enumerate(_SHOWN):
            lines = drawing.over_draws(
                [
                    value
                    for cell in contents["cells"]
                    if cell["weight_decay"] == decay
                    and cell["batch_norm_momentum"] == momentum
                    for value in cell["validation"][way]
                ]
                for momentum in momentums
            )
            below, above = (
                [abs(m - end) for m, end in zip(lines["mean"], lines[key])]
                for key in ("low", "high")
            )
            axes.errorbar(
                [
                    position + 0.06 * (i - 1.5)
                    for position in range(len(momentums))
                ],
                lines["mean"],
                [below, above],
                color=f"C{1 + i // 2}",
                linestyle="-" if i % 2 else ":",
                marker="o" if i % 2 else "s",
                markersize=4,
                capsize=2,
                label=WAYS[way],
            )
        axes.set_xticks(range(len(momentums)), [f"{m:g}" for m in momentums])
        axes.set_xlabel("batch-norm momentum")
        axes.set_title(f"weight decay {decay:g}", fontsize="small")
        axes.grid(alpha=0.3)
    panels[0].set_ylabel("validation accuracy (%)")
    drawing.legend(figure, *panels[0].get_legend_handles_labels(), columns=4)
    return figure


def _run(arguments: Sequence[str], directory: str) -> None:
    """Runs the benchmark in a process, or goes on with it."""
    command = [
        sys.executable,
        "-m",
        "benchmarks.cifar10",
        *arguments,
        f"--output_dir={directory}",
        "--resume",
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise BenchmarkError(
            f"`{shlex.join(command[1:])}` must end well. Received: "
            f"{done.stderr.strip()[-2000:]}"
        )


def _check(path: str, flags: dict[str, Any], arguments: Sequence[str]) -> None:
    """Checks that results are of the flags given, and not older ones."""
    for argument in arguments:
        name, _, value = argument.lstrip("-").partition("=")
        if name == "data_dir" or name not in flags or not value:
            continue
        if not _same(flags[name], value):
            raise BenchmarkError(
                f"The results in {path} must be of --{name}={value}, or not be "
                f"there. Received: --{name}={flags[name]}. Remove them, or "
                "give another `--momentum_results`."
            )


def _same(kept: Any, given: str) -> bool:
    try:
        return float(kept) == float(given)
    except (TypeError, ValueError):
        return str(kept).lower() == given.lower()
