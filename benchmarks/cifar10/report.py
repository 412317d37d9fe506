"""The reports of a run: the table, the files, the curves."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import matplotlib
import tensorflow as tf
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table

from benchmarks.cifar10.evaluation import MOVING, REFIT, SWA_REFIT, WAYS
from benchmarks.cifar10.run_directory import RESULTS, Records, RunDirectory
from benchmarks.common import provenance

_HEADINGS = {"validation": "val.", "test": "test"}
_MEASURES = {"accuracy": ("acc. %", 2), "loss": ("loss", 4)}
_CURVES = (MOVING, REFIT, SWA_REFIT)


def results(
    flags: dict[str, Any], records: Records, invocation: dict[str, Any]
) -> dict[str, Any]:
    """Returns all that `results.json` holds.

    Two runs with the same flags and stack differ in `invocation` and
    `timings` only.
    """
    return {
        "flags": flags,
        "seed": flags["seed"],
        "stack": provenance.stack(),
        "epochs": records.epochs,
        "final": records.final,
        "invocation": invocation,
        "timings": {
            "cpus": os.cpu_count(),
            "epochs": records.seconds,
            "total_seconds": sum(sum(s.values()) for s in records.seconds),
        },
    }


def write(directory: RunDirectory, contents: dict[str, Any]) -> None:
    """Writes every report of `contents`; `results.json` is the last one.

    So where that file is there, the run is finished.
    """
    directory.write(
        "tensorboard", lambda path: _write_scalars(path, contents["epochs"])
    )
    directory.write("curves.png", lambda path: _draw(path, contents["epochs"]))
    directory.write_text("results.md", markdown(contents))
    directory.write_json(RESULTS, contents)


def show(contents: dict[str, Any], console: Console | None = None) -> None:
    """Prints the table."""
    table = Table(title=_title(contents))
    table.add_column("weights, statistics")
    for heading in _headings():
        table.add_column(heading, justify="right")
    for way, cells in _rows(contents["final"]):
        table.add_row(way, *cells)
    (console or Console()).print(table)


def markdown(contents: dict[str, Any]) -> str:
    """Returns a page: the table, the command and the versions that made it."""
    headings = ["weights, statistics", *_headings()]
    lines = [
        _line(headings),
        _line(["---", *("---:" for _ in headings[1:])]),
        *(_line([way, *cells]) for way, cells in _rows(contents["final"])),
    ]
    minutes = contents["timings"]["total_seconds"] / 60.0
    return (
        f"# {_title(contents)}\n\n"
        + "\n".join(lines)
        + "\n\n"
        + provenance.made_by(
            contents["invocation"]["command"],
            contents["stack"],
            f"in {minutes:.1f} minutes of training and evaluation",
        )
    )


def _title(contents: dict[str, Any]) -> str:
    flags = contents["flags"]
    return (
        f"{flags['dataset']}: ResNet-{flags['resnet_size']} v2, "
        f"width {flags['width']}, {flags['optimizer']}, "
        f"{flags['epochs']} epochs, "
        f"{contents['epochs'][-1]['n_models']} averaged"
    )


def _headings() -> list[str]:
    return [
        f"{split} {measure}"
        for split in _HEADINGS.values()
        for measure, _ in _MEASURES.values()
    ]


def _rows(final: dict[str, Any]) -> list[tuple[str, list[str]]]:
    return [
        (
            label,
            [
                f"{final[split][way][measure]:.{digits}f}"
                for split in _HEADINGS
                for measure, (_, digits) in _MEASURES.items()
            ],
        )
        for way, label in WAYS.items()
    ]


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _write_scalars(path: str, epochs: list[dict[str, Any]]) -> None:
    """Writes TensorBoard's files from the records: no epoch twice."""
    writer = tf.summary.create_file_writer(path)
    with writer.as_default():
        for figures in epochs:
            step = figures["epoch"]
            for name in ("learning_rate", "loss", "accuracy", "n_models"):
                tf.summary.scalar(f"train/{name}", figures[name], step)
            for way, values in figures["validation"].items():
                for measure, value in values.items():
                    tf.summary.scalar(
                        f"validation_{measure}/{way}", value, step
                    )
    writer.close()


def _draw(path: str, epochs: list[dict[str, Any]]) -> None:
    """Draws validation accuracy and learning rate by epoch."""
    numbers = [figures["epoch"] for figures in epochs]
    with matplotlib.rc_context({"figure.dpi": 120}):
        figure = Figure(figsize=(7.0, 5.0), layout="constrained")
        above, below = figure.subplots(
            2, 1, sharex=True, height_ratios=(3.0, 1.0)
        )
        for way in _CURVES:
            points = [
                (figures["epoch"], figures["validation"][way]["accuracy"])
                for figures in epochs
                if way in figures["validation"]
            ]
            above.plot(*zip(*points), marker=".", label=WAYS[way])
        above.set_ylabel("validation accuracy (%)")
        above.legend()
        above.grid(alpha=0.3)
        below.plot(numbers, [f["learning_rate"] for f in epochs], color="black")
        below.set_ylabel("learning rate")
        below.set_ylim(bottom=0.0)
        below.set_xlabel("epoch")
        below.grid(alpha=0.3)
        figure.savefig(path, format="png")
