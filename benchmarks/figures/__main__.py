r"""Five figures of what averaging and refitting do, drawn from saved runs.

    python -m benchmarks.cifar10 --preset=digits --keep_weights
    python -m benchmarks.figures --run=runs/digits \
        --results=runs/digits/results.json

computes what each figure shows, keeps it as JSON beside the picture, and draws
the picture from it. `--nocompute` draws the pictures again and computes
nothing.

curves: accuracy an epoch of all branches, from the results of several seeds.
plane: training loss and test error over the plane through three SGD iterates.
rays: loss along random rays from the average and from the decayed weights.
refit: accuracy of the average against the samples of its refit, and the cost.
momentum: moving against refit statistics, by momentum and weight decay; it
trains, in processes of their own, the runs that are not there yet.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from typing import Any

import tensorflow as tf
from absl import app, flags, logging
from matplotlib.figure import Figure

from benchmarks.common import command_line, files, provenance
from benchmarks.common.errors import BenchmarkError
from benchmarks.figures import (
    curves,
    drawing,
    momentum,
    plane,
    rays,
    refit,
)
from benchmarks.figures.saved_run import SavedRun

_DRAW: dict[str, Callable[[dict[str, Any]], Figure]] = {
    "curves": curves.draw,
    "plane": plane.draw,
    "rays": rays.draw,
    "refit": refit.draw,
    "momentum": momentum.draw,
}


def define_flags() -> None:
    """Defines the flags, not at import: other programs have the same names."""
    flags.DEFINE_list("figures", list(_DRAW), "Which figures, of all five.")
    flags.DEFINE_bool(
        "compute",
        True,
        "Whether to compute, or only to draw what was computed.",
    )
    flags.DEFINE_string(
        "output_dir",
        "benchmarks/results/figures",
        "Of the JSON files and PNGs.",
    )
    flags.DEFINE_list(
        "results",
        ["benchmarks/results/table/small/momentumw-seed-*.json"],
        "curves: results files of runs that differ in seed; wildcards too.",
    )
    flags.DEFINE_string(
        "run",
        "runs/small",
        "plane, rays, refit: the directory of a run with `--keep_weights`.",
    )
    flags.DEFINE_string(
        "data_dir",
        None,
        "Where the images of --run are, if not where they were.",
    )
    flags.DEFINE_integer("seed", 0, "Of the choice of images, and of the rays.")
    for name, n, meaning in (
        ("refit", 1024, "Training images of the refit at each point."),
        ("train", 1024, "Training images that the loss is measured on."),
        ("test", 2048, "Test images that loss and error are measured on."),
    ):
        flags.DEFINE_integer(
            f"{name}_samples", n, f"plane, rays: {meaning}", lower_bound=1
        )
    flags.DEFINE_list(
        "plane_epochs",
        [],
        "plane: three epochs whose weights span it. Default: the first "
        "kept, the one in the middle, the last.",
    )
    flags.DEFINE_integer(
        "plane_points", 9, "plane: points in each direction.", lower_bound=2
    )
    flags.DEFINE_float(
        "plane_margin",
        0.3,
        "plane: how far beyond the iterates, as a share of their width.",
        lower_bound=0.0,
    )
    flags.DEFINE_integer("rays", 5, "rays: their number.", lower_bound=1)
    flags.DEFINE_integer(
        "ray_points",
        8,
        "rays: points on each, without the start.",
        lower_bound=1,
    )
    flags.DEFINE_float(
        "ray_length", 0.5, "rays: the distance of the last point, in norms."
    )
    flags.DEFINE_integer(
        "refit_draws", 4, "refit: draws of its samples.", lower_bound=1
    )
    flags.DEFINE_integer("refit_batch", 64, "refit: images in one batch of it.")
    flags.DEFINE_integer(
        "refit_test_samples", 2048, "refit: test images.", lower_bound=1
    )
    flags.DEFINE_string(
        "momentum_run",
        "--preset=digits",
        "momentum: flags of `benchmarks.cifar10` for all its runs.",
    )
    flags.DEFINE_list(
        "momentums", ["0.9", "0.99", "0.999"], "momentum: of batch norm."
    )
    flags.DEFINE_list(
        "weight_decays", ["0", "1e-4", "5e-4"], "momentum: weight decays."
    )
    flags.DEFINE_list("momentum_seeds", ["0"], "momentum: seeds of each.")
    flags.DEFINE_string(
        "momentum_results",
        "benchmarks/results/momentum",
        "momentum: where the results of its runs are kept.",
    )
    flags.DEFINE_string(
        "momentum_runs",
        "runs/momentum",
        "momentum: the directories of its runs.",
    )


def main(argv: Sequence[str]) -> None:
    """Computes and draws the figures that the flags name."""
    values = flags.FLAGS.flag_values_dict()
    if not flags.FLAGS["verbosity"].present:
        tf.get_logger().setLevel("ERROR")  # it warns of a refit's new trace
        logging.set_verbosity(logging.WARNING)
    command_line.run(argv, lambda: execute(values, sys.argv[1:]))


def execute(values: dict[str, Any], arguments: Sequence[str]) -> None:
    """Computes and draws figures.

    Args:
        values: The flags, by name.
        arguments: Of the command line, to be put on record.

    Raises:
        BenchmarkError: As the figures do.
    """
    unknown = [name for name in values["figures"] if name not in _DRAW]
    if unknown or not values["figures"]:
        raise BenchmarkError(
            f"`--figures` must be of {', '.join(_DRAW)}. "
            f"Received: --figures={','.join(values['figures'])}"
        )
    run: SavedRun | None = None
    for name in values["figures"]:
        path = os.path.join(values["output_dir"], name)
        if values["compute"]:
            if name in ("plane", "rays", "refit") and run is None:
                run = SavedRun(values["run"], values["data_dir"])
            contents = {
                **_compute(name, values, run),
                "command": command_line.command("figures", arguments),
                "stack": provenance.stack(),
            }
            files.write_json(f"{path}.json", contents)
        drawing.save(
            _DRAW[name](files.read_json(f"{path}.json")), f"{path}.png"
        )
        print(f"{path}.png")


def _compute(
    name: str, values: dict[str, Any], run: SavedRun | None
) -> dict[str, Any]:
    """Returns what a figure shows."""
    if name == "curves":
        return curves.compute(values["results"])
    if name == "momentum":
        return momentum.compute(
            values["momentum_run"],
            _numbers(values, "momentums", float),
            _numbers(values, "weight_decays", float),
            _numbers(values, "momentum_seeds", int),
            values["momentum_results"],
            values["momentum_runs"],
        )
    samples = {s: values[f"{s}_samples"] for s in ("refit", "train", "test")}
    if name == "plane":
        return plane.compute(
            run,
            _numbers(values, "plane_epochs", int),
            values["plane_points"],
            values["plane_margin"],
            samples,
            values["seed"],
        )
    if name == "rays":
        return rays.compute(
            run,
            values["rays"],
            values["ray_points"],
            values["ray_length"],
            samples,
            values["seed"],
        )
    return refit.compute(
        run,
        values["refit_draws"],
        values["refit_batch"],
        values["refit_test_samples"],
        values["seed"],
    )


def _numbers(
    values: dict[str, Any], name: str, kind: Callable[[str], Any]
) -> list[Any]:
    try:
        return [kind(value) for value in values[name]]
    except ValueError as error:
        raise BenchmarkError(
            f"`--{name}` must be numbers. "
            f"Received: --{name}={','.join(values[name])}"
        ) from error


if __name__ == "__main__":
    # The same numbers every time, whatever the threads do.
    tf.config.experimental.enable_op_determinism()
    define_flags()
    app.run(main)
