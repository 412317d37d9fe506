"""Files in, one file out: the average of some, by given coefficients."""

from __future__ import annotations

import datetime
import functools
import json
import math
import os
import pathlib
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from swa_tf import _files
from swa_tf._checkpoint_files import finding, inputs
from swa_tf._checkpoint_files.pieces import averaged_pieces

_REFIT = (
    "'{output}' holds averages of batch-norm statistics, which belong to no "
    "weights. After loading it, compute them anew: "
    "`swa_tf.refit_batch_norm(model, dataset)`."
)


def merge(
    paths: list[str],
    output: str,
    coefficients: Sequence[float],
    *,
    optimizer_slots: str,
    from_newest: Iterable[str],
    dry_run: bool = False,
    progress: Callable[[int, int], None] | None = None,
    about: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Averages checkpoints, as `average_checkpoints` says.

    Args:
        paths: The inputs, as `finding.checked` returns them.
        output: As `finding.checked_output` returns it.
        coefficients: The c of the equation for each input.
        optimizer_slots: "keep" or "drop".
        from_newest: As in `average_checkpoints`.
        dry_run: As there.
        progress: As there.
        about: What else the JSON file is to say.
    """
    checkpoints = [inputs.opened(path) for path in paths]
    newest = checkpoints[paths.index(finding.in_order(paths)[-1])]
    try:
        for checkpoint in checkpoints:
            inputs.check_alike(checkpoint, newest)
    except ValueError:
        inputs.check_whole(checkpoints)  # damage may be why they differ
        raise
    averaged = inputs.averaged(newest, from_newest)
    batch_norm = newest.batch_norm & averaged
    if len(paths) == 1:
        batch_norm = set()  # a copy: they belong to the weights as they did
    dropped = newest.slots if optimizer_slots == "drop" else set()
    report = {
        "output": os.path.basename(output),
        "form": newest.form,
        "inputs": [
            {"path": path, "share": share}
            for path, share in zip(paths, _shares(coefficients))
        ],
        "newest": newest.path,
        "n_parameters": sum(
            math.prod(newest.tensors[key].shape) for key in averaged
        ),
        "averaged": _names(newest, averaged),
        "from_newest": _names(
            newest, newest.tensors.keys() - averaged - dropped
        ),
        "dropped": _names(newest, dropped),
        "tensors": {
            newest.name(key): {
                "shape": list(tensor.shape),
                "dtype": "string"
                if tensor.dtype is None
                else tensor.dtype.name,
            }
            for key, tensor in sorted(newest.tensors.items())
        },
        "guessed": _names(newest, newest.guessed),
        "batch_norm_statistics": _names(newest, batch_norm),
        **(about or {}),
        "written": datetime.datetime.now(datetime.timezone.utc).isoformat(),
    }
    if dry_run:
        inputs.check_whole(checkpoints)
        return report
    reading = inputs.Reading(checkpoints, progress)
    for checkpoint in checkpoints:
        reading.check(checkpoint, checkpoint.tensors.keys() - averaged)

    def average(key: str) -> Iterator[np.ndarray]:
        tensors = [reading.readers(each, key) for each in checkpoints]
        return averaged_pieces(tensors, coefficients)

    with _files.scratch_folder(output) as scratch:
        new = scratch / os.path.basename(output)
        newest.write(
            new,
            {key: functools.partial(average, key) for key in averaged},
            dropped,
        )
        inputs.check_whole(checkpoints)
        as_json = scratch / f"{new.name}.json"
        as_json.write_text(json.dumps(report, indent=1), encoding="utf-8")
        written = map(pathlib.Path, finding.files(os.fspath(new)))
        _files.move([as_json, *written], pathlib.Path(output).parent)
    return report


def warn(report: dict[str, Any], stacklevel: int = 3) -> None:
    """Says what an average of batch-norm statistics needs, what was guessed."""
    if report["batch_norm_statistics"]:
        message = _REFIT.format(output=report["output"])
        warnings.warn(message, stacklevel=stacklevel)
    if report["guessed"]:
        warnings.warn(guess(report), stacklevel=stacklevel)


def guess(report: dict[str, Any]) -> str:
    """Says what was taken for no weights by its looks alone."""
    names = report["guessed"]
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return (
        f"'{report['output']}' does not average what by its name or place "
        "looks like an optimizer or a counter: "
        f"{', '.join(map(repr, names[:3]))}{more}."
    )


def _shares(coefficients: Sequence[float]) -> list[float]:
    """How much of the average is each input."""
    shares: list[float] = []
    for c in coefficients:
        shares = [share * (1 - c) for share in shares] + [c]
    return shares


def _names(checkpoint: inputs.Checkpoint, keys: Iterable[str]) -> list[str]:
    return sorted(checkpoint.name(key) for key in keys)
