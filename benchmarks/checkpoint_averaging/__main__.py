r"""Measures `swa_tf.average_checkpoints` against reading and writing.

    python -m benchmarks.checkpoint_averaging --forms=keras --n_variables=400

prints a table for each form of file: time and peak memory of the average, of a
naive one (a dictionary of whole arrays, as other averagers keep it), and of two
floors, which read the inputs, write one output, and do nothing else. The disk
must have room for 9 GB of checkpoints, unless flags say otherwise.
"""

from __future__ import annotations

import functools
import io
import os
import statistics
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from absl import app, flags
from rich import box
from rich.console import Console
from rich.table import Column, Table

from benchmarks.checkpoint_averaging import ways
from benchmarks.checkpoint_averaging.file_forms import FORMS
from benchmarks.common import command_line, provenance, timing

_HEADINGS = ["time, s", "lowest to highest", "/ plain", "/ library"]
_HEADINGS += ["peak, MB", "less imports, MB", "in checkpoints"]
_NOTE = """\
Medians of runs that take turns, each in a fresh process, with the inputs in the
page cache. "/ plain" and "/ library": the time divided by that of the floor.
Memory: the peak of the process; the same less the peak after the imports; that
divided by the size of a checkpoint. Wanted of `average_checkpoints`: of
TensorFlow's form at most twice the library's time, of `.keras` files less than
their loading with Keras, and of each at most 2.5 checkpoints of memory.
"""

flags.DEFINE_integer("n_checkpoints", 20, "To average.", lower_bound=1)
flags.DEFINE_integer("n_parameters", 10**8, "Of float32, in each of them.", 1)
flags.DEFINE_integer("n_variables", 4, "That these are in, all alike.", 1)
flags.DEFINE_list("forms", list(FORMS), f"Of files: {', '.join(FORMS)}.")
flags.DEFINE_integer("rounds", 3, "Runs of each way.", lower_bound=1)
flags.DEFINE_string("folder", None, "For the files; default: a temporary one.")
flags.DEFINE_string("output", None, "A Markdown file to write the tables to.")
flags.register_validator(
    "forms",
    lambda forms: forms and set(forms) <= FORMS.keys(),
    f"It must be some of {', '.join(FORMS)}.",
)
flags.register_multi_flags_validator(
    ["n_parameters", "n_variables"],
    lambda values: values["n_parameters"] % values["n_variables"] == 0,
    "--n_parameters must be a multiple of --n_variables.",
)
flags.register_validator(
    "folder",
    lambda folder: folder is None or os.path.isdir(folder),
    "It must be a directory that exists.",
)
flags.register_validator(
    "output",
    lambda file: file is None or os.path.isdir(os.path.dirname(file) or "."),
    "It must be a file in a directory that exists.",
)


def main(argv: Sequence[str]) -> None:
    """Runs the benchmark that the flags describe."""
    values = flags.FLAGS.flag_values_dict()
    command_line.run(argv, lambda: execute(values, sys.argv[1:]))


def execute(values: Mapping[str, Any], arguments: Sequence[str]) -> None:
    """Measures, prints, and writes the page if a file for it is given.

    Args:
        values: Of the flags, by name.
        arguments: Of the command line, to be put on record.
    """
    buffer = io.StringIO()
    for form in values["forms"]:
        columns = [Column(heading, justify="right") for heading in _HEADINGS]
        table = Table("", *columns, box=box.MARKDOWN)
        for row in _rows(form, values):
            table.add_row(*row)
        buffer.write(
            f"## {form}: {values['n_checkpoints']} of "
            f"{values['n_parameters']:,} float32 in "
            f"{values['n_variables']} variables\n"
        )
        Console(file=buffer, width=140).print(table)
    buffer.write(_NOTE)
    text = "\n".join(map(str.rstrip, buffer.getvalue().split("\n")))
    print(text)
    if values["output"]:
        made_by = provenance.made_by(
            command_line.command("checkpoint_averaging", arguments),
            timing.alone(provenance.stack),
            f"on {os.cpu_count()} cores",
        )
        with open(values["output"], "w", encoding="utf-8") as file:
            file.write(
                f"# Averages of checkpoints: time and memory\n\n{text}\n"
                f"{made_by}"
            )


def _rows(form: str, values: Mapping[str, Any]) -> Iterator[list[str]]:
    """Yields the figures of one form: a row for each way."""
    names, n_bytes = list(ways.WAYS), 4 * values["n_parameters"]
    if form == "checkpoint":
        names.remove(ways.KERAS)
    with tempfile.TemporaryDirectory(dir=values["folder"]) as folder:
        paths = [
            os.path.join(folder, f"{i:06}{FORMS[form]}")
            for i in range(values["n_checkpoints"])
        ]
        shape = values["n_variables"], n_bytes // 4 // values["n_variables"]
        means = timing.alone(ways.prepare, form, paths, shape)
        runs = timing.in_turns(
            {w: functools.partial(_run, w, form, paths, means) for w in names},
            values["rounds"],
        )
    medians = {w: [*map(statistics.median, zip(*runs[w]))] for w in names}
    for way, (seconds, before, peak) in medians.items():
        times = [run[0] for run in runs[way]]
        yield [
            way,
            f"{seconds:.2f}",
            f"{min(times):.2f} to {max(times):.2f}",
            *(f"{seconds / medians[floor][0]:.2f}" for floor in names[:2]),
            f"{peak / 1e6:.0f}",
            f"{(peak - before) / 1e6:.0f}",
            f"{(peak - before) / n_bytes:.2f}",
        ]


def _run(
    way: str, form: str, paths: Sequence[str], means: ways.Means
) -> tuple[float, int, int]:
    os.sync()  # What the last one wrote is not this one's to pay.
    return timing.alone(ways.measure, way, form, paths, means)


if __name__ == "__main__":
    app.run(main)
