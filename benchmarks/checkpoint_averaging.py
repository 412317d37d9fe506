r"""`swa_tf.average_checkpoints`, measured against reading and writing.

    python -m benchmarks.checkpoint_averaging
    python -m benchmarks.checkpoint_averaging --forms=keras --n_variables=400

writes checkpoints of one model, and prints a table for each form of file: time
and peak memory of the average, of a naive one (whole arrays in a dictionary, as
other averagers keep them), and of two floors, which read the inputs and write
one output and do nothing else. The disk must have room for the checkpoints of
one form: 9 GB, unless flags say otherwise.
"""

from __future__ import annotations

import concurrent.futures
import glob
import multiprocessing
import os
import resource
import shlex
import shutil
import statistics
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import h5py
import numpy as np
from absl import app, flags
from rich.console import Console
from rich.table import Table

from benchmarks.errors import BenchmarkError

# TensorFlow is imported where it is used, in processes of their own. Linux
# counts to a process's peak what the one that started it had: so that is small.

FORMS = {"checkpoint": "", "weights.h5": ".weights.h5", "keras": ".keras"}
_VALUE = "/.ATTRIBUTES/VARIABLE_VALUE"
_MEMBER = "model.weights.h5"
_HEADINGS = ["", "time, s", "lowest to highest", "/ plain", "/ library"]
_HEADINGS += ["peak, MB", "less imports, MB", "in checkpoints"]
_NOTE = """\
Medians of runs that take turns, each in a fresh process, with the inputs in the
page cache. "/ plain" and "/ library" are the time divided by that of a floor.
Memory is the peak of the process, then without what it was after the imports,
then that divided by the size of one checkpoint. `average_checkpoints` should
need at most 1.5 times a floor's time, and 2.5 checkpoints of memory."""

flags.DEFINE_integer("n_checkpoints", 20, "To average.", lower_bound=1)
flags.DEFINE_integer("n_parameters", 10**8, "Of float32, in each.", 1)
flags.DEFINE_integer("n_variables", 4, "That these are in, all alike.", 1)
flags.DEFINE_list("forms", list(FORMS), f"Of files, of {', '.join(FORMS)}.")
flags.DEFINE_integer("rounds", 3, "Runs of each way.", lower_bound=1)
flags.DEFINE_string("folder", None, "For the files; default: where TMPDIR is.")
flags.DEFINE_string("output", None, "A Markdown file to write the tables to.")


def main(argv: Sequence[str]) -> None:
    """Runs the benchmark that the flags describe."""
    values = flags.FLAGS.flag_values_dict()
    try:
        _check(values, argv[1:])
        results = {form: _results(form, values) for form in values["forms"]}
    except BenchmarkError as error:
        sys.exit(f"error: {error}")
    n, size = values["n_checkpoints"], values["n_parameters"]
    each = f"{n} x {size:,} float32 in {values['n_variables']} variables"
    text = "# Averages of checkpoints: time and memory\n\n"
    for form, rows in results.items():
        table = Table(title=f"{form}: {each}")
        for heading in _HEADINGS:
            table.add_column(heading, justify="right" if heading else "left")
        for row in rows:
            table.add_row(*row)
        Console().print(table)
        rule = ["---"] + ["---:"] * (len(_HEADINGS) - 1)
        lines = [f"| {' | '.join(r)} |\n" for r in (_HEADINGS, rule, *rows)]
        text += f"## {form}: {each}\n\n{''.join(lines)}\n"
    print(_NOTE)
    if values["output"]:
        command = ["python", "-m", "benchmarks.checkpoint_averaging"]
        text += f"{_NOTE}\n\nMade by\n\n    "
        text += f"{shlex.join([*command, *sys.argv[1:]])}\n\nwith "
        text += ", ".join(f"{k} {v}" for k, v in alone(_stack).items())
        with open(values["output"], "w", encoding="utf-8") as file:
            file.write(f"{text}, on {os.cpu_count()} cores.\n")


def _check(values: dict[str, Any], arguments: Sequence[str]) -> None:
    """Raises unless the flags make sense, before anything is written."""
    n, size = values["n_variables"], values["n_parameters"]
    folder = values["folder"] or tempfile.gettempdir()
    output = os.path.dirname(values["output"] or "") or "."
    if arguments:
        raise BenchmarkError(
            f"There are flags only. Received: {' '.join(arguments)}"
        )
    if not values["forms"] or set(values["forms"]) - FORMS.keys():
        raise BenchmarkError(
            f"`--forms` must be some of {', '.join(FORMS)}. "
            f"Received: --forms={','.join(values['forms'])}"
        )
    if size % n:
        raise BenchmarkError(
            "`--n_parameters` must be a multiple of `--n_variables`. "
            f"Received: --n_parameters={size} --n_variables={n}"
        )
    for name, path in (("folder", folder), ("output", output)):
        if not os.path.isdir(path):
            raise BenchmarkError(
                f"`--{name}` must be in a folder that exists. Received: {path}"
            )
    free, needed = shutil.disk_usage(folder).free, values["n_checkpoints"] + 2
    if free < needed * 4 * size:
        raise BenchmarkError(
            f"`--folder` must have room for {needed * 4 * size / 1e9:.1f} GB. "
            f"Received: {folder} with {free / 1e9:.1f} GB free"
        )


def alone(function: Callable[..., Any], *args: Any) -> Any:
    """Calls a function in a fresh process."""
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(1, context) as process:
        return process.submit(function, *args).result()


def _stack() -> dict[str, str]:
    from benchmarks import report

    return report.stack()


def _results(form: str, values: dict[str, Any]) -> list[list[str]]:
    """The rows of one table."""
    size, ways = values["n_parameters"], list(WAYS)
    runs: dict[str, list[Any]] = {way: [] for way in ways}
    with tempfile.TemporaryDirectory(dir=values["folder"]) as folder:
        paths = [
            os.path.join(folder, f"ckpt-{i:06}{FORMS[form]}")
            for i in range(values["n_checkpoints"])
        ]
        means = alone(prepare, form, paths, size, values["n_variables"])
        for i in range(values["rounds"]):
            for way in ways[i % len(ways) :] + ways[: i % len(ways)]:
                os.sync()  # What the last one wrote is not this one's to pay.
                runs[way].append(alone(measure, way, form, paths, means))
    rows, floors = [], []
    for way in ways:
        seconds, before, peak = map(statistics.median, zip(*runs[way]))
        times = [run[0] for run in runs[way]]
        floors = [*floors, seconds][:2]
        ratios = [f"{seconds / floor:.2f}" for floor in floors]
        added = peak - before
        rows.append([way, f"{seconds:.2f}"])
        rows[-1] += [f"{min(times):.2f} to {max(times):.2f}"]
        rows[-1] += [*ratios, ""][:2]
        rows[-1] += [f"{peak / 1e6:.0f}", f"{added / 1e6:.0f}"]
        rows[-1] += [f"{added / (4 * size):.2f}"]
    return rows


def prepare(
    form: str, paths: Sequence[str], size: int, n_variables: int
) -> dict[str, np.ndarray]:
    """Writes checkpoints, and reads them: so they are in the page cache.

    Returns:
        The mean of some numbers of each weight, in float64.
    """
    import tensorflow as tf

    inputs = tf.keras.Input([1])
    layers = [
        tf.keras.layers.Dense(
            size // n_variables, use_bias=False, kernel_initializer="zeros"
        )
        for _ in range(n_variables)
    ]
    model = tf.keras.Model(inputs, [layer(inputs) for layer in layers])
    random = np.random.default_rng(0)
    means: dict[str, Any] = {}
    for path in paths:
        for layer in layers:
            shape = layer.kernel.shape
            layer.kernel.assign(random.standard_normal(shape, np.float32))
        if form == "checkpoint":
            tf.train.Checkpoint(model=model).write(path)
        elif form == "keras":
            model.save(path)
        else:
            model.save_weights(path)
        for key, weight in _read(form, path):
            share = _sample(weight).astype(np.float64) / len(paths)
            means[key] = means.get(key, 0.0) + share
    return means


def measure(
    way: str, form: str, paths: Sequence[str], means: dict[str, np.ndarray]
) -> tuple[float, int, int]:
    """Seconds, and the most bytes that memory held before and after."""
    import tensorflow  # noqa: F401

    import swa_tf  # noqa: F401

    with tempfile.TemporaryDirectory(dir=os.path.dirname(paths[0])) as folder:
        output = os.path.join(folder, f"average{FORMS[form]}")
        before, start = _peak(), time.perf_counter()
        WAYS[way](form, paths, output)
        seconds, peak = time.perf_counter() - start, _peak()
        if WAYS[way] in (_average, _naive):
            _check_means(way, dict(_read(form, output)), means)
    return seconds, before, peak
