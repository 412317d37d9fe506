r"""Averages the weights in checkpoints, and writes a checkpoint of them.

Takes TensorFlow's checkpoints (object-based or name-based), .weights.h5,
.weights.json, .h5 and .keras, and writes the form that it took. All that is no
weight comes from the newest one. Examples:

  The last 5 checkpoints of a run:
    swa-average-checkpoints --checkpoint_dir=run --num_last_checkpoints=5 \
        --output_path=averaged/ckpt

  These three; or what a shell makes of run/ckpt-*:
    swa-average-checkpoints --output_path=average.keras a.keras b.keras c.keras

  See what would be averaged, and write nothing:
    swa-average-checkpoints --checkpoint_dir=run --output_path=x --dry_run

  Two averages, of 10 and of 5 models, merged:
    swa-average-checkpoints --checkpoints=a,b --weights=10,5 --output_path=c

  An exponential average along the run; the mean of each 3 in a row:
    swa-average-checkpoints --checkpoint_dir=run --decay=0.9 --output_path=ema
    swa-average-checkpoints --checkpoint_dir=run --window=3 --output_path=means

  The average of another length, from snapshots of two averages:
    swa-average-checkpoints --relative_width=0.08 --output_path=posthoc/ckpt \
        snapshots/0.05/ckpt-* snapshots/0.1/ckpt-*

  Only those that improve what accuracy(path) in my_metrics.py returns:
    swa-average-checkpoints --checkpoint_dir=run --output_path=soup \
        --soup_metric=my_metrics:accuracy

A model with batch normalization needs its statistics computed anew after the
average has been loaded: swa_tf.refit_batch_norm(model, dataset).

The exit status is 0 only if the output is there (or with --dry_run could be).
"""

from __future__ import annotations

import io
import os
import pkgutil
import re
import signal
import sys
import traceback
import warnings
from collections.abc import Callable, Sequence
from typing import Any, TextIO

from absl import app, flags
from rich.console import Console
from rich.table import Column, Table
from rich.text import Text

from swa_tf import checkpoints
from swa_tf.support import progress

# The flags of the arguments that errors begin with.
_FLAG_OF = {
    "inputs": "checkpoints",
    "snapshots": "checkpoints",
    "directory": "checkpoint_dir",
    "last": "num_last_checkpoints",
    "every": "every",
    "until": "until",
    "output": "output_path",
    "output_dir": "output_path",
    "weights": "weights",
    "decay": "decay",
    "relative_width": "relative_width",
    "snapshot_widths": "snapshot_widths",
    "snapshot_n_models": "snapshot_n_models",
    "window": "window",
    "metric": "soup_metric",
    "mode": "soup_mode",
    "optimizer_slots": "optimizer_slots",
    "from_newest": "from_newest",
}

FLAGS = flags.FLAGS
flags.DEFINE_list(
    "checkpoints",
    [],
    "Paths of checkpoints, in the order of the run, or quoted patterns with "
    "`*` and `?`. Paths may also be given without a flag.",
)
flags.DEFINE_string(
    "checkpoint_dir", None, "A directory: the checkpoints in it."
)
flags.DEFINE_integer(
    "num_last_checkpoints",
    None,
    "How many of --checkpoint_dir to take, the newest ones.",
    lower_bound=1,
)
flags.DEFINE_integer(
    "every",
    1,
    "Takes every n-th of --checkpoint_dir, the newest among them.",
    lower_bound=1,
)
flags.DEFINE_integer(
    "until",
    None,
    "The highest number in a name to take from --checkpoint_dir.",
    lower_bound=0,
)
flags.DEFINE_string(
    "output_path",
    None,
    "The path of the average, which does not exist and ends as the inputs "
    "do. With --window a directory that does not exist.",
)
flags.DEFINE_list(
    "weights", None, "A number for each checkpoint: how much it weighs."
)
flags.DEFINE_float(
    "decay", None, "Takes the exponential average with this decay."
)
flags.DEFINE_float(
    "relative_width",
    None,
    "Writes the power-function average of this relative width, from snapshots "
    "of others: checkpoints written inside averaged_weights of a "
    "PowerFunctionAverage.",
)
flags.DEFINE_list(
    "snapshot_widths",
    None,
    "The relative width of each snapshot, where the files do not say it.",
)
flags.DEFINE_list(
    "snapshot_n_models",
    None,
    "The number of models of each snapshot, where the files do not say it.",
)
flags.DEFINE_integer(
    "window", None, "Writes the mean of each so many in a row.", lower_bound=1
)
flags.DEFINE_string(
    "soup_metric",
    None,
    "module:function. Adds a checkpoint only if it improves what the "
    "function returns for the path of an average.",
)
flags.DEFINE_enum(
    "soup_mode", "max", ["max", "min"], "Which --soup_metric is better."
)
flags.DEFINE_enum(
    "optimizer_slots",
    "keep",
    ["keep", "drop"],
    "Whether to keep those of the newest checkpoint. Of Keras's files, drop "
    "leaves out all that is the optimizer's.",
)
flags.DEFINE_multi_string(
    "from_newest",
    [],
    "A regular expression: tensors whose name it matches are taken from the "
    "newest checkpoint. May be given several times.",
)
flags.DEFINE_bool(
    "dry_run", False, "Checks and shows what would be done, no more."
)
flags.mark_flags_as_mutual_exclusive(
    ["weights", "decay", "window", "soup_metric", "relative_width"]
)


def run() -> None:
    """Runs the console script `swa-average-checkpoints`."""
    # `--help` shows the docstring and the flags of the script.
    sys.modules["__main__"].__doc__ = __doc__
    for flag in FLAGS.get_key_flags_for_module(__name__):
        FLAGS.register_key_flag_for_module(sys.argv[0], flag)
    app.run(main)


def main(argv: Sequence[str]) -> int:
    """Runs the command line; returns 0 if the output is there, 1 if not."""
    report = io.StringIO()  # printed when all is done
    console, errors = _console(report, sys.stdout), _console(sys.stderr)
    # Half-written files are removed as the exception passes.
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))

    try:
        with warnings.catch_warnings():
            warnings.showwarning = lambda said, *_: _say(
                errors, "warning", said
            )
            _run(argv[1:], console, errors)
    except (OSError, TypeError, ValueError) as error:
        _say(errors, "error", _with_flags(str(error)), "red")
        return 1
    _print(report.getvalue(), errors)
    return 0


def _run(given: Sequence[str], console: Console, errors: Console) -> None:
    if not FLAGS.output_path:
        raise ValueError("--output_path must be given. See --help.")
    snapshots = FLAGS.snapshot_widths, FLAGS.snapshot_n_models
    if FLAGS.relative_width is None and snapshots != (None, None):
        raise ValueError(
            "--snapshot_widths and --snapshot_n_models belong to "
            "--relative_width. Received: no --relative_width"
        )
    if snapshots.count(None) == 1:
        lacks = "widths" if FLAGS.snapshot_widths is None else "n_models"
        raise ValueError(
            "--snapshot_widths and --snapshot_n_models must be given together. "
            f"Received: no --snapshot_{lacks}"
        )
    output, inputs = FLAGS.output_path, _inputs(given)
    options: dict[str, Any] = {
        "optimizer_slots": FLAGS.optimizer_slots,
        "from_newest": FLAGS.from_newest,
    }
    name = FLAGS.soup_metric
    metric = None if name is None else _function(name)
    if FLAGS.dry_run:
        if FLAGS.window is not None:  # show what the last one is made of
            *_, output = checkpoints.average_windows(
                inputs, output, FLAGS.window, dry_run=True, **options
            )
            inputs = inputs[-FLAGS.window :]
        report = _average(inputs, output, dry_run=True, **options)
        checkpoints.warn(report)
        _show(report, console)
        _show_tensors(report, console)
        console.print("This was a dry run: nothing is written.")
        return
    if metric is not None:
        soup = checkpoints.greedy_soup(
            inputs, output, metric, mode=FLAGS.soup_mode, **options
        )
        console.print(str(soup))
        _show(soup.report, console)
    else:
        with progress.bar("averaging", True, errors) as options["progress"]:
            if FLAGS.window is not None:
                written = checkpoints.average_windows(
                    inputs, output, FLAGS.window, **options
                )
                console.print(*written, sep="\n")
            else:
                _show(_average(inputs, output, **options), console)
    console.print(f"written: {output}")


def _inputs(given: Sequence[str]) -> list[str]:
    patterns = [*FLAGS.checkpoints, *given]
    if bool(patterns) == bool(FLAGS.checkpoint_dir):
        raise ValueError(
            "Either --checkpoint_dir or --checkpoints must be given. "
            f"Received: {'both' if patterns else 'neither'}"
        )
    choice = FLAGS.num_last_checkpoints, FLAGS.every, FLAGS.until
    if FLAGS.checkpoint_dir:
        return checkpoints.checkpoints_in(FLAGS.checkpoint_dir, *choice)
    if choice != (None, 1, None):
        raise ValueError(
            "--num_last_checkpoints, --every and --until choose from "
            "--checkpoint_dir. Received: no --checkpoint_dir"
        )
    return checkpoints.matching(patterns)


def _average(inputs: list[str], output: str, **options: Any) -> dict[str, Any]:
    """Averages by the flags that say how."""
    if FLAGS.relative_width is not None:
        return checkpoints.posthoc_average(
            inputs,
            FLAGS.relative_width,
            output,
            snapshot_widths=_numbers("snapshot_widths", float),
            snapshot_n_models=_numbers("snapshot_n_models", int),
            **options,
        )
    weights = _numbers("weights", float)
    return checkpoints.average_checkpoints(
        inputs, output, weights=weights, decay=FLAGS.decay, **options
    )


def _numbers(flag: str, kind: type) -> list[Any] | None:
    """Returns the numbers of a flag that is a list of them."""
    if FLAGS[flag].value is None:
        return None
    try:
        return [kind(number) for number in FLAGS[flag].value]
    except ValueError as error:
        raise ValueError(
            f"--{flag} must be numbers. Received: {error}"
        ) from None


def _function(name: str) -> Callable[[str], float]:
    """Returns the function `module:function`, with errors that are shown."""
    sys.path.insert(0, os.getcwd())
    try:
        found: Callable[[str], float] = pkgutil.resolve_name(name)
        if not callable(found):
            raise ValueError("it is no function")
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(
            f"--soup_metric must be module:function. Received: {name}: {error}"
        ) from None

    def metric(path: str) -> float:
        try:
            return found(path)
        except (OSError, TypeError, ValueError):
            traceback.print_exc()  # it is for the function's author to mend
            raise

    return metric


def _console(file: TextIO | None, shown_on: TextIO | None = None) -> Console:
    """Makes a console that folds text on terminals only, without markup."""
    shown_on = shown_on or file
    is_terminal = shown_on is not None and shown_on.isatty()
    return Console(
        file=file or io.StringIO(),  # it may be closed
        force_terminal=is_terminal or None,
        width=None if is_terminal else 10_000,
        soft_wrap=True,
        markup=False,
        highlight=False,
        emoji=False,
    )


def _say(
    console: Console, label: str, said: object, color: str = "yellow"
) -> None:
    console.print(Text(f"{label}:", f"bold {color}"), str(said))


def _with_flags(said: str) -> str:
    """Returns an error with the flag in place of the argument it begins with.

    What follows may hold paths, or what a metric said.
    """
    begins = re.match(r"`(\w+)(\[\d+\])?`", said)
    if not (begins and begins[1] in _FLAG_OF):
        return said
    name = _FLAG_OF[begins[1]]
    if name == "checkpoints" and FLAGS.checkpoint_dir:
        name = "checkpoint_dir"
    argument, flag = begins[0].strip("`"), f"--{name}{begins[2] or ''}"
    said = said.replace(begins[0], flag, 1)
    return said.replace(f"Received: {argument}=", f"Received: {flag}=", 1)


def _print(text: str, errors: Console) -> None:
    """Prints a report. A full disk or a closed pipe is no failure."""
    if sys.stdout is None:  # closed
        return
    encoding = sys.stdout.encoding or "utf-8"
    try:
        sys.stdout.write(
            text.encode(encoding, "backslashreplace").decode(encoding)
        )
        sys.stdout.flush()
    except OSError as error:
        # What is still to be written would fail again when Python ends.
        with open(os.devnull, "w", encoding="utf-8") as nowhere:
            os.dup2(nowhere.fileno(), sys.stdout.fileno())
        if not isinstance(error, BrokenPipeError):  # nobody reads on
            said = f"the report of what was done cannot be shown: {error}"
            _say(errors, "warning", said)


def _show(report: dict[str, Any], console: Console) -> None:
    table = Table(Column("checkpoint", overflow="fold"), "share")
    for each in report["inputs"]:
        newest = ", the newest" if each["path"] == report["newest"] else ""
        table.add_row(each["path"] + newest, f"{each['share']:.4g}")
    console.print(table, soft_wrap=False)
    console.print(
        f"{report['form']}: {report['n_parameters']:,} numbers in "
        f"{len(report['averaged'])} tensors averaged; of the newest, "
        f"{len(report['from_newest'])} other tensors; "
        f"{len(report['dropped'])} dropped"
    )
    if "profile_error" in report:
        console.print(
            f"the profile of relative width {report['relative_width']:g} is "
            f"described up to {report['profile_error']:.2%}"
        )


def _show_tensors(report: dict[str, Any], console: Console) -> None:
    column = Column("tensor", overflow="fold")
    table = Table(column, "shape", "type", "taken from")
    for names, source in [
        ("averaged", "all"),
        ("from_newest", "the newest"),
        ("dropped", "none: dropped"),
    ]:
        for name in report[names]:
            tensor = report["tensors"][name]
            table.add_row(name, str(tensor["shape"]), tensor["dtype"], source)
    console.print(table, soft_wrap=False)


if __name__ == "__main__":
    app.run(main)
