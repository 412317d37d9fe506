"""The average of checkpoints by given coefficients, written whole."""

from __future__ import annotations

import contextlib
import datetime
import json
import os
import pathlib
import re
import stat
import warnings
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from swa_tf.checkpoints import paths
from swa_tf.checkpoints.checkpoint import (
    Checkpoint,
    DamagedError,
    Tensor,
    groups,
)
from swa_tf.checkpoints.keras_format import Hdf5Checkpoint, KerasCheckpoint
from swa_tf.checkpoints.tensorflow_format import TensorFlowCheckpoint
from swa_tf.support import checks, whole_files

_BLOCK = 1 << 15  # numbers averaged at a time; in float64 they fit in a cache
_MAX_GROUP = 1 << 25  # numbers that are held in float64 at a time


class Average:
    """The average of arrays, kept in float64; it begins as the first one."""

    def __init__(self, first: np.ndarray) -> None:
        self._dtype = first.dtype
        dtype = np.result_type(first.dtype, np.float64)
        self._value = np.array(first, dtype, order="C")

    def update(self, weight: np.ndarray, c: float) -> None:
        """average <- average + c * (weight - average)"""
        averages, weights = self._value.reshape(-1), weight.reshape(-1)
        for start in range(0, averages.size, _BLOCK):
            at = slice(start, start + _BLOCK)
            average, step = averages[at], weights[at].astype(averages.dtype)
            try:
                with np.errstate(invalid="raise"):
                    step -= average
            except FloatingPointError:  # equal infinities have no distance
                step[weights[at].astype(step.dtype) == average] = 0
            with np.errstate(invalid="ignore"):
                step *= c
                average += step

    def value(self) -> np.ndarray:
        """Returns the average in the type of the arrays, rounded once."""
        return self._value.astype(self._dtype)


def merge(
    inputs: list[str],
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

    `coefficients` are the c of the equation for each input; `about` is added
    to the report.
    """
    checks.choice("optimizer_slots", optimizer_slots, ("keep", "drop"))
    checkpoints = [opened(path) for path in inputs]
    newest = checkpoints[inputs.index(paths.in_order(inputs)[-1])]
    for checkpoint in checkpoints:
        _check_alike(checkpoint, newest)
    averaged = _averaged(newest, from_newest)
    dropped = newest.slots if optimizer_slots == "drop" else set()
    others = newest.tensors.keys() - averaged - dropped
    shares: list[float] = []
    for c in coefficients:
        shares = [share * (1 - c) for share in shares] + [c]

    def names(keys: Iterable[str]) -> list[str]:
        return sorted(newest.name(key) for key in keys)

    report = {
        "output": os.path.basename(output),
        "form": newest.form,
        "inputs": [
            {"path": path, "share": share}
            for path, share in zip(inputs, shares)
        ],
        "newest": newest.path,
        "n_parameters": sum(newest.tensors[key].size for key in averaged),
        "averaged": names(averaged),
        "from_newest": names(others),
        "dropped": names(dropped),
        "tensors": {
            newest.name(key): {
                "shape": list(tensor.shape),
                "dtype": tensor.dtype.name if tensor.dtype else "string",
            }
            for key, tensor in sorted(newest.tensors.items())
        },
        "guessed": names(newest.guessed),
        # In a copy of one input they belong to the weights as they did.
        "batch_norm_statistics": names(newest.batch_norm & averaged)
        if len(inputs) > 1
        else [],
        **(about or {}),
        "written": datetime.datetime.now(datetime.timezone.utc).isoformat(),
    }
    if dry_run:
        return report
    done = 0
    total = sum(t.nbytes for c in checkpoints for t in c.tensors.values())

    def advance(tensor: Tensor) -> None:
        nonlocal done
        done += tensor.nbytes
        if progress is not None:
            progress(done, total)

    for checkpoint in checkpoints:  # for their checksums
        unaveraged = sorted(checkpoint.tensors.keys() - averaged)
        for key, _ in read(checkpoint, unaveraged):
            advance(checkpoint.tensors[key])

    def values() -> Iterator[tuple[str, np.ndarray | None]]:
        sizes = {key: newest.tensors[key].size for key in sorted(averaged)}
        for group in groups(sizes, sizes.__getitem__, _MAX_GROUP):
            averages: dict[str, Average] = {}
            for checkpoint, c in zip(checkpoints, coefficients):
                for key, weight in read(checkpoint, group):
                    if key in averages:
                        averages[key].update(weight, c)
                    else:
                        averages[key] = Average(weight)
                    advance(newest.tensors[key])
                    del weight  # before the next one is read
            for key in group:
                yield key, averages.pop(key).value()
        for key in others:
            yield key, None

    with whole_files.scratch_folder(output) as scratch:
        new = scratch / os.path.basename(output)
        newest.write(new, values(), dropped)
        as_json = scratch / f"{new.name}.json"
        as_json.write_text(json.dumps(report, indent=1), encoding="utf-8")
        written = map(pathlib.Path, paths.files(os.fspath(new)))
        whole_files.move([as_json, *written], whole_files.split(output)[0])
    return report


def warn(report: dict[str, Any]) -> None:
    """Warns of averaged batch-norm statistics, and of what was guessed."""
    if report["batch_norm_statistics"]:
        warnings.warn(
            f"'{report['output']}' holds averages of batch-norm statistics, "
            "which belong to no weights. After loading it, compute them anew: "
            "`swa_tf.refit_batch_norm(model, dataset)`.",
            stacklevel=3,
        )
    if report["guessed"]:
        warnings.warn(guess(report), stacklevel=3)


def guess(report: dict[str, Any]) -> str:
    """Returns a warning of what only looks as if it were no weights."""
    names = report["guessed"]
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return (
        f"'{report['output']}' does not average what by its name or place "
        "looks like an optimizer or a counter: "
        f"{', '.join(map(repr, names[:3]))}{more}."
    )


def opened(path: str, argument: str = "inputs") -> Checkpoint:
    """Opens a checkpoint, or raises an error that says why it is none."""
    files = paths.files(path)
    if tf.io.gfile.isdir(path) and files[-1:] in ([], [path]):
        raise ValueError(
            f"`{argument}` must be a list of checkpoints, or one directory. "
            f"Received: the directory '{path}' in a list"
        )
    if not files:
        raise FileNotFoundError(
            f"`{argument}` must be checkpoints that exist. Received: '{path}'"
        )
    with errors_of(path, argument):
        for file in files:
            # To read a pipe would never end.
            if not whole_files.is_remote(file) and not stat.S_ISREG(
                os.stat(file).st_mode
            ):
                raise DamagedError(f"{os.path.basename(file)} is no file")
        if files[-1] not in (path, f"{path}.index"):
            raise DamagedError(f"{os.path.basename(path)}.index is missing")
        suffix = paths.suffix(path)
        if suffix == ".keras":
            return KerasCheckpoint(path)
        return Hdf5Checkpoint(path) if suffix else TensorFlowCheckpoint(path)


@contextlib.contextmanager
def errors_of(path: str, argument: str = "inputs") -> Iterator[None]:
    """Turns an error of reading into one that says which input it is."""
    try:
        yield
    except (DamagedError, OSError) as error:
        raise ValueError(
            f"`{argument}` must be whole checkpoints. "
            f"Received: '{path}': {whole_files.reason(error)}"
        ) from error


def read(
    checkpoint: Checkpoint, keys: Collection[str], argument: str = "inputs"
) -> Iterator[tuple[str, np.ndarray]]:
    """Yields keys and values of a checkpoint, with errors that name it."""
    values = checkpoint.read(keys)
    for key in keys:
        with errors_of(checkpoint.path, argument):
            value = next(values)
        yield key, value
        del value  # before the next one is read


def _check_alike(checkpoint: Checkpoint, newest: Checkpoint) -> None:
    """Raises unless both have the same tensors; slots aside."""
    if checkpoint.form != newest.form:
        raise ValueError(
            "`inputs` must be of one form. "
            f"Received: '{checkpoint.path}', a {checkpoint.form}, and "
            f"'{newest.path}', a {newest.form}"
        )
    slots = checkpoint.slots | newest.slots
    ours, others = (
        {k: str(v) for k, v in each.tensors.items() if k not in slots}
        for each in (checkpoint, newest)
    )
    differ = {
        "without": others.keys() - ours.keys(),
        "with, in addition,": ours.keys() - others.keys(),
        "with another shape or type of": dict(ours.items() - others.items()),
    }
    for how, keys in differ.items():
        if keys:
            tensors = ", ".join(
                f"'{newest.name(key)}' "
                + " instead of ".join(
                    t[key] for t in (ours, others) if key in t
                )
                for key in sorted(keys)[:3]
            )
            more = " and more" if len(keys) > 3 else ""
            raise ValueError(
                "`inputs` must hold the same tensors. "
                f"Received: '{checkpoint.path}' {how} {tensors}{more}, "
                f"against '{newest.path}'"
            )


def _averaged(newest: Checkpoint, from_newest: Iterable[str]) -> set[str]:
    """Returns the keys of what is averaged."""
    if isinstance(from_newest, str):
        raise TypeError(
            "`from_newest` must be a list of regular expressions. "
            f"Received: from_newest={from_newest!r}"
        )
    keys = {key for key, tensor in newest.tensors.items() if tensor.is_float}
    keys -= newest.slots | newest.state
    for pattern in from_newest:
        try:
            found = {k for k in keys if re.search(pattern, newest.name(k))}
        except (re.error, TypeError) as error:
            raise ValueError(
                "`from_newest` must hold regular expressions. "
                f"Received: {pattern!r}: {error}"
            ) from None
        if not found:
            raise ValueError(
                "`from_newest` must match names of weights. Received: "
                f"{pattern!r}, which matches none of those left"
            )
        keys -= found
    if not keys:
        raise ValueError(
            "`inputs` must hold weights of floating point to average. "
            f"Received: none in '{newest.path}'"
        )
    return keys
