"""The reports of a run: the table, the files, the curves."""

from __future__ import annotations

import os
import statistics
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
import tensorflow as tf
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table

from benchmarks.cifar10 import paired_comparison
from benchmarks.cifar10.evaluation import DECAYED, WAYS
from benchmarks.cifar10.run_directory import RESULTS, Records, RunDirectory
from benchmarks.common import provenance

_HEADINGS = {"validation": "val.", "test": "test"}
_MEASURES = {"accuracy": ("acc. %", 2), "loss": ("loss", 4)}
# Of the validation accuracies from the branch on, this share may lie below the
# axis: a single epoch with useless statistics would flatten all curves.
_HIDDEN_PERCENT = 5.0


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
        "decayed": records.decayed,
        "final": records.final,
        "invocation": invocation,
        "timings": _timings(records.seconds),
    }


def _processors() -> int:
    """Returns the number of processors that the process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _timings(epochs: list[dict[str, float]]) -> dict[str, Any]:
    """Returns the times of all epochs, and the speed of the middle one."""
    total = {
        work: sum(epoch[work] for epoch in epochs)
        for work in ("train", "evaluate")
    }
    return {
        "cpus": _processors(),
        "epochs": epochs,
        "total_seconds": sum(total.values()),
        "evaluation_percent": 100.0 * total["evaluate"] / total["train"],
        # The first epoch traces the model; the median does not count it.
        "images_a_second": statistics.median(
            epoch["images"] / epoch["train"] for epoch in epochs
        ),
    }


def write(directory: RunDirectory, contents: dict[str, Any]) -> None:
    """Writes every report of `contents`; `results.json` is the last one.

    So where that file is there, the run is finished.
    """
    directory.write("tensorboard", lambda path: _write_scalars(path, contents))
    directory.write("curves.png", lambda path: _draw(path, contents))
    directory.write_text("results.md", markdown(contents))
    directory.write_json(RESULTS, contents)


def show(contents: dict[str, Any], console: Console | None = None) -> None:
    """Prints the table, and what it shows."""
    console = console or Console()
    table = Table(title=_title(contents))
    table.add_column("weights, statistics")
    for heading in _headings():
        table.add_column(heading, justify="right")
    for way, cells in _rows(contents["final"]):
        table.add_row(way, *cells)
    console.print(table)
    for sentence in paired_comparison.sentences(contents["final"]):
        console.print(sentence)
    console.print(f"Trained {_speed(contents['timings'])}.")


def markdown(contents: dict[str, Any]) -> str:
    """Returns a page: the table, the command and the versions that made it."""
    headings = ["weights, statistics", *_headings()]
    lines = [
        _line(headings),
        _line(["---", *("---:" for _ in headings[1:])]),
        *(_line([way, *cells]) for way, cells in _rows(contents["final"])),
    ]
    sentences = paired_comparison.sentences(contents["final"])
    return (
        f"# {_title(contents)}\n\n"
        + "\n".join(lines)
        + "\n\n"
        + "".join(f"{sentence}\n\n" for sentence in sentences)
        + provenance.made_by(
            contents["invocation"]["command"],
            contents["stack"],
            _speed(contents["timings"]),
        )
    )


def network(flags: Mapping[str, Any]) -> str:
    """Returns the data and the network of a run, for titles."""
    return (
        f"{flags['dataset']}: ResNet-{flags['resnet_size']} v2, "
        f"width {flags['width']}"
    )


def _title(contents: dict[str, Any]) -> str:
    flags = contents["flags"]
    return (
        f"{network(flags)}, {flags['optimizer']}, {flags['epochs']} epochs, "
        f"{contents['epochs'][-1]['n_models']} averaged"
    )


def _speed(timings: dict[str, Any]) -> str:
    return (
        f"in {timings['total_seconds'] / 60.0:.1f} minutes, at "
        f"{timings['images_a_second']:.0f} images a second on "
        f"{timings['cpus']} processor(s); evaluation with its refits took "
        f"{timings['evaluation_percent']:.0f} % of the time of training"
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
                _cell(final[split][way][measure], digits)
                for split in _HEADINGS
                for measure, (_, digits) in _MEASURES.items()
            ],
        )
        for way, label in WAYS.items()
        if way in final["test"]
    ]


def _cell(value: float, digits: int) -> str:
    """Returns a number that fits the table: 0.0152 or 3.89e+05."""
    return f"{value:.{digits}f}" if value < 1e4 else f"{value:.2e}"


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _branches(
    contents: dict[str, Any],
) -> Iterator[tuple[dict[str, str], list[dict[str, Any]]]]:
    """Yields for each branch the names of its ways, and its epochs."""
    yield {way: way for way in WAYS}, contents["epochs"]
    if contents["decayed"]:
        yield DECAYED, contents["decayed"]


def _write_scalars(path: str, contents: dict[str, Any]) -> None:
    """Writes TensorBoard's files from the records: no epoch twice."""
    writer = tf.summary.create_file_writer(path)
    with writer.as_default():
        for names, epochs in _branches(contents):
            train = "decayed_train" if names is DECAYED else "train"
            for figures in epochs:
                step = figures["epoch"]
                for name in ("learning_rate", "loss", "accuracy", "n_models"):
                    tf.summary.scalar(f"{train}/{name}", figures[name], step)
                for way, values in figures["validation"].items():
                    for measure in _MEASURES:
                        tf.summary.scalar(
                            f"validation_{measure}/{names[way]}",
                            values[measure],
                            step,
                        )
    writer.close()


def _draw(path: str, contents: dict[str, Any]) -> None:
    """Draws validation accuracy and learning rate by epoch."""
    branch = contents["flags"]["epochs_before_swa"]
    with matplotlib.rc_context({"figure.dpi": 120}):
        figure = Figure(figsize=(7.0, 6.0), layout="constrained")
        figure.suptitle(_title(contents), fontsize="medium")
        above, below = figure.subplots(
            2, 1, sharex=True, height_ratios=(3.0, 1.0)
        )
        shown: list[float] = []
        for color, way in enumerate(WAYS):
            points = list(_points(contents, way))
            if not points:
                continue
            above.plot(
                *zip(*points),
                color=f"C{color // 2}",
                linestyle="-" if color % 2 else ":",
                label=WAYS[way],
            )
            shown += [value for epoch, value in points if epoch > branch]
        top = max(shown)
        bottom = float(np.percentile(shown, _HIDDEN_PERCENT))
        margin = max(0.1 * (top - bottom), 0.5)
        above.set_ylim(bottom - margin, min(top + margin, 100.5))
        above.set_ylabel("validation accuracy (%)")
        for names, epochs in _branches(contents):
            below.plot(
                [figures["epoch"] for figures in epochs],
                [figures["learning_rate"] for figures in epochs],
                color="C0" if names is DECAYED else "C1",
            )
        below.set_ylabel("learning rate")
        below.set_ylim(bottom=0.0)
        below.set_xlabel("epoch")
        for axes in (above, below):
            axes.axvline(branch, color="black", linewidth=0.8, linestyle="--")
            axes.grid(alpha=0.3)
        above.annotate(
            " averaging begins",
            (branch, 0.02),
            xycoords=("data", "axes fraction"),
            fontsize="small",
        )
        figure.legend(loc="outside lower center", ncols=3, fontsize="small")
        figure.savefig(path, format="png")


def _points(contents: dict[str, Any], way: str) -> Iterator[tuple[int, float]]:
    """Yields epochs with the validation accuracy of a way in each."""
    for names, epochs in _branches(contents):
        for figures in epochs:
            for evaluated, values in figures["validation"].items():
                if names[evaluated] == way:
                    yield figures["epoch"], values["accuracy"]
