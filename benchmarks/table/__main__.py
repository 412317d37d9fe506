"""Tables over optimizers and seeds, from many runs of `benchmarks.cifar10`.

    python -m benchmarks.table --preset=digits --optimizers=momentumw
    python -m benchmarks.table --preset=small --data_dir=DIRECTORY

Each run is a process of its own in `runs/table/<name>/<optimizer>/seed-<n>`.
When it ends, its `results.json` is copied to
`benchmarks/results/table/<name>/<optimizer>-seed-<n>.json`, and the run is not
made again while that file is there. So the same command goes on with a grid
that was interrupted; a run that was killed goes on from its last epoch. A run
that fails is reported, the others follow, and the exit status is 1.

Small networks do not keep several threads busy. Two grids side by side, with
other `--optimizers` or `--seeds` and `TF_NUM_INTRAOP_THREADS=1` for each, are
ready sooner than one after the other.

From all the files of `<name>` the tables are made: means and standard
deviations over seeds, and paired differences with their 95 % intervals. They
are printed, and written to `table.md` and, for programs, to `table.json`.

    python -m benchmarks.table --norun --docs

makes the tables of all grids from the files that are there, and puts every
figure of the docs that is marked (see `benchmarks/table/docs_marks.py`) at what
the files say.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from absl import app, flags

from benchmarks.cifar10 import config as config_lib
from benchmarks.common import command_line, files
from benchmarks.common.errors import BenchmarkError
from benchmarks.table import (
    docs_marks,
    execution,
    kept_results,
    plan,
    table_pages,
)


def define_flags() -> None:
    """Defines the flags, not at import: other programs have the same names."""
    flags.DEFINE_enum(
        "preset",
        "small",
        config_lib.CHOICES["preset"],
        "Of benchmarks.cifar10, for every run.",
    )
    flags.DEFINE_list(
        "optimizers", list(plan.SEEDS), "In the order of their runs."
    )
    flags.DEFINE_list(
        "seeds",
        None,
        "Default: 0 to 4 for momentumw and adamw, 0 to 2 for others.",
    )
    flags.DEFINE_string(
        "data_dir", None, "Of benchmarks.cifar10, for every run."
    )
    flags.DEFINE_list(
        "settings",
        [],
        "Other flags of benchmarks.cifar10, for every run, without dashes: "
        "--settings=epochs=4,width=16. Such a grid needs its own --name.",
    )
    flags.DEFINE_string(
        "name", None, "Of the grid and its directories. Default: the preset."
    )
    flags.DEFINE_string("runs_dir", "runs/table", "Where the runs are made.")
    flags.DEFINE_string(
        "results_dir", kept_results.RESULTS_DIR, "What is kept of them."
    )
    flags.DEFINE_bool("run", True, "Whether to run what is missing.")
    flags.DEFINE_bool(
        "docs",
        False,
        "Whether to renew all tables and the marked figures of docs.",
    )


def main(argv: Sequence[str]) -> None:
    """Runs the grid that the flags describe, and makes its tables."""
    values = flags.FLAGS.flag_values_dict()
    try:
        command_line.run(argv, lambda: execute(values))
    except KeyboardInterrupt:
        sys.exit("interrupted: the same command goes on")


def execute(values: Mapping[str, Any]) -> None:
    """Runs what is missing, and makes the tables of all that is there.

    Args:
        values: Of the flags, by name.

    Raises:
        BenchmarkError: If a flag makes no sense, if there is no result, or,
            after all else is done, if a run failed.
    """
    name = values["name"] or values["preset"]
    directory = os.path.join(values["results_dir"], name)
    failed: list[str] = []
    if values["run"]:
        runs = plan.runs(
            preset=values["preset"],
            optimizers=values["optimizers"],
            seeds=values["seeds"],
            data_dir=values["data_dir"],
            settings=values["settings"],
            runs_dir=os.path.join(values["runs_dir"], name),
            results_dir=directory,
        )
        failed = execution.execute(runs)
    there = kept_results.grids(values["results_dir"])
    if not (name in there or failed or values["docs"]):
        raise BenchmarkError(
            "`--results_dir` must have results of the grid to make a table. "
            f"Received: --results_dir={values['results_dir']}, with none in "
            f"{directory}"
        )
    for grid_name in there:
        if grid_name == name or values["docs"]:
            _write_pages(values["results_dir"], grid_name)
    if name in there:
        print(files.read_text(os.path.join(directory, "table.md")))
        print(f"The tables are in {os.path.join(directory, '')}")
    if values["docs"]:
        docs_marks.renew(".")
    if failed:
        raise BenchmarkError(
            f"{len(failed)} of {len(runs)} runs failed: {', '.join(failed)}. "
            "Their messages are above; the same command tries them again."
        )


def _write_pages(results_dir: str, name: str) -> None:
    directory = os.path.join(results_dir, name)
    for file, text in table_pages.pages(
        name, kept_results.results(directory)
    ).items():
        files.write_text(os.path.join(directory, file), text)


if __name__ == "__main__":
    # As Ctrl-C does: the run under way ends with the grid.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    define_flags()
    app.run(main)
