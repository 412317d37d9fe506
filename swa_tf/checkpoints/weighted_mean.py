"""The average of checkpoints by given coefficients, written whole."""

from __future__ import annotations

import datetime
import json
import os
import pathlib
import re
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from swa_tf.checkpoints import paths
from swa_tf.checkpoints.checkpoint import Checkpoint, Tensor, groups
from swa_tf.checkpoints.keras_format import (
    Hdf5Checkpoint,
    KerasCheckpoint,
    ShardedCheckpoint,
)
from swa_tf.checkpoints.tensorflow_format import TensorFlowCheckpoint
from swa_tf.support import atomic_files, checks

_BLOCK = 1 << 15  # numbers averaged at a time; in float64 they fit in a cache
_FORMS: dict[str, type[Checkpoint]] = {
    "": TensorFlowCheckpoint,
    ".keras": KerasCheckpoint,
    paths.SHARDED: ShardedCheckpoint,
}
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
                with np.errstate(invalid="raise", over="ignore"):
                    step -= average
            except FloatingPointError:  # equal infinities have no distance
                step[weights[at].astype(step.dtype) == average] = 0
            with np.errstate(invalid="ignore", over="ignore"):
                step *= c
                average += step

    def value(self) -> np.ndarray:
        """Returns the average in the type of the arrays, to the nearest.

        NumPy rounds to bfloat16 by way of float32, so a tie may go either way.
        """
        with np.errstate(over="ignore"):
            return self._value.astype(self._dtype)


class NotFiniteError(ValueError):
    """The error of an average that is NaN or infinite, and need not be."""


def merge(
    inputs: list[str],
    output: str,
    coefficients: Sequence[float] | None = None,
    *,
    dry_run: bool = False,
    progress: Callable[[int, int], None] | None = None,
    about: dict[str, Any] | None = None,
    is_latest: bool = True,
    **how: Any,
) -> dict[str, Any]:
    """Averages checkpoints with the c of each, and writes the result.

    The arguments are those of `average_checkpoints`, checked, and these:

    - coefficients: The c of each input, also below 0, but for the first c = 1;
      by default 1 / (n + 1).
    - about: What joins the report.
    - is_latest: Whether `tf.train.latest_checkpoint` is to find the result.
    - how: Further arguments of `_Plan`.
    """
    if coefficients is None:
        coefficients = [1.0 / (i + 1) for i in range(len(inputs))]
    plan = _Plan(inputs, coefficients, **how)
    now = datetime.datetime.now(datetime.timezone.utc).isoformat()
    name = os.path.basename(output)
    report = {"output": name, **plan.report(), **(about or {}), "written": now}
    if dry_run:
        return report
    done = 0

    def advance(tensor: Tensor) -> None:
        nonlocal done
        done += tensor.nbytes
        if progress is not None:
            progress(done, plan.n_bytes)

    plan.read_others(advance)
    with atomic_files.scratch_folder(output) as scratch:
        new = scratch / name
        plan.newest.write(new, plan.values(advance), plan.dropped)
        as_json = scratch / f"{name}.json"
        as_json.write_text(json.dumps(report, indent=1), encoding="utf-8")
        written = [as_json, *map(pathlib.Path, paths.files(os.fspath(new)))]
        state = paths.state_with_latest(output) if is_latest else None
        if state is not None:
            written.append(scratch / paths.STATE)
            written[-1].write_text(state, encoding="utf-8")
        folder = atomic_files.split(output)[0]
        atomic_files.move(written, folder, replaces=paths.STATE)
    return report


class _Plan:
    """The tensors to average, to take from the newest, and to drop.

    Keys are those of the newest checkpoint; each has twins in the others.

    Its arguments are those of `average_checkpoints` and `merge`, and these:

    - argument: The name of `inputs` in errors.
    - newest: The newest of `inputs`, where it is known.
    - averages_batch_norm: Whether batch-norm statistics are averaged, or come
      from the newest: a variance must not come out below 0.
    """

    def __init__(
        self,
        inputs: list[str],
        coefficients: Sequence[float],
        *,
        optimizer_slots: str,
        from_newest: Iterable[re.Pattern[str]],
        argument: str = "inputs",
        newest: str | None = None,
        averages_batch_norm: bool = True,
    ) -> None:
        checks.choice("optimizer_slots", optimizer_slots, ("keep", "drop"))
        self._argument = argument
        checkpoints = [opened(path, argument) for path in inputs]
        at = inputs.index(newest or paths.in_order(inputs)[-1])
        self.newest = checkpoints[at]
        self._names = _unmatched(checkpoints, from_newest)
        self._averaged = self._weights(self.newest)
        self._batch_norm = self.newest.kinds.batch_norm & self._averaged
        if not averages_batch_norm:
            self._averaged -= self._batch_norm
        if not self._averaged:
            wanted = "hold weights of floating point to average"
            raise checks.must(argument, wanted, f"none in '{self.newest.path}'")
        twins = map(self._twins, checkpoints)
        self._inputs = [*zip(checkpoints, twins, coefficients)]
        tensors = [t for c in checkpoints for t in c.tensors.values()]
        self.n_bytes = sum(tensor.nbytes for tensor in tensors)
        drops = optimizer_slots == "drop"
        self.dropped = self.newest.kinds.slots if drops else set()
        others = self.newest.tensors.keys() - self._averaged
        self._others = others - self.dropped

    def _weights(self, checkpoint: Checkpoint) -> set[str]:
        """Returns the keys of the weights that no pattern matches."""
        floats = {
            key
            for key, tensor in checkpoint.tensors.items()
            if tensor.is_float and checkpoint.name(key) in self._names
        }
        return floats - checkpoint.kinds.slots - checkpoint.kinds.state

    def _twins(self, other: Checkpoint) -> dict[str, str]:
        """Returns the keys in `other`; raises if its weights differ."""
        newest, argument = self.newest, self._argument
        if other.form != newest.form:
            forms = [f"'{c.path}' ({c.form})" for c in (other, newest)]
            raise checks.must(argument, "be of one form", " and ".join(forms))
        twins = newest.twins(other)
        ours = newest.tensors
        floats = {twin for key, twin in twins.items() if ours[key].is_float}
        theirs = {key: other.tensors[twin] for key, twin in twins.items()}
        pairs = [
            (newest.name(key), ours[key], theirs.get(key))
            for key in sorted(self._averaged)
        ] + [
            (other.name(key), None, other.tensors[key])
            for key in sorted(self._weights(other) - floats)
        ]
        differ = [
            f"'{name}' {its or 'missing'} instead of {wanted or 'none'}"
            for name, wanted, its in pairs
            if str(its) != str(wanted)
        ]
        if differ:
            more = " and more" if len(differ) > 3 else ""
            raise checks.must(
                argument,
                "hold the same tensors, apart from what `from_newest` matches",
                f"'{other.path}' with {', '.join(differ[:3])}{more}, "
                f"against '{newest.path}'",
            )
        return twins

    def report(self) -> dict[str, Any]:
        """Returns what the plan says, for users."""
        newest, averaged = self.newest, self._averaged
        shares: list[float] = []
        for *_, c in self._inputs:
            shares = [share * (1 - c) for share in shares] + [c]
        # In a copy of one input they belong to the weights as they did.
        batch_norm = self._batch_norm if len(shares) > 1 else ()

        def names(keys: Iterable[str]) -> list[str]:
            return sorted(newest.name(key) for key in keys)

        return {
            "form": newest.form,
            "inputs": [
                {"path": checkpoint.path, "share": share}
                for (checkpoint, *_), share in zip(self._inputs, shares)
            ],
            "newest": newest.path,
            "n_parameters": sum(newest.tensors[key].size for key in averaged),
            "averaged": names(averaged),
            "from_newest": names(self._others),
            "dropped": names(self.dropped),
            "tensors": {
                newest.name(key): {
                    "shape": list(tensor.shape),
                    "dtype": tensor.dtype.name if tensor.dtype else "string",
                }
                for key, tensor in sorted(newest.tensors.items())
            },
            "guessed": names(newest.kinds.guessed),
            "batch_norm_statistics": names(batch_norm),
        }

    def read_others(self, advance: Callable[[Tensor], None]) -> None:
        """Reads what is not averaged, for its checksums."""
        for checkpoint, keys, _ in self._inputs:
            averaged = {keys[key] for key in self._averaged}
            others = sorted(checkpoint.tensors.keys() - averaged)
            for key, _ in checkpoint.read(others):
                advance(checkpoint.tensors[key])

    def values(
        self, advance: Callable[[Tensor], None]
    ) -> Iterator[tuple[str, np.ndarray | None]]:
        """Yields keys and averages, or None for what the newest has."""
        tensors = self.newest.tensors
        for group in groups(
            sorted(self._averaged), lambda key: tensors[key].size, _MAX_GROUP
        ):
            averages: dict[str, Average] = {}
            for checkpoint, keys, c in self._inputs:
                key_of = {keys[key]: key for key in group}
                for twin, weight in checkpoint.read(key_of):
                    key = key_of[twin]
                    if key in averages:
                        averages[key].update(weight, c)
                    else:
                        averages[key] = Average(weight)
                    advance(tensors[key])
                    del weight  # before the next one is read
            for key in group:
                average = averages.pop(key).value()
                self._check_finite(key, average)
                yield key, average
                del average  # before the next one is made
        for key in self._others:
            yield key, None

    def _check_finite(self, key: str, average: np.ndarray) -> None:
        """Raises if an average is NaN or infinite where the newest is not."""
        if np.isfinite(average).all():
            return
        ((_, value),) = self.newest.read([key])
        spoilt = np.isfinite(value) & ~np.isfinite(average)
        if not spoilt.any():
            return
        name = self.newest.name(key)
        for checkpoint, keys, _ in self._inputs:
            ((_, value),) = checkpoint.read([keys[key]])
            if not np.isfinite(value[spoilt]).all():
                raise checks.must(
                    self._argument,
                    "be finite where the newest is, or their average is not",
                    f"'{checkpoint.path}' with NaN or infinity in "
                    f"'{name}'. Leave that input out or, if "
                    "this is no weight, name it in `from_newest`.",
                    NotFiniteError,
                )
        raise checks.must(
            self._argument,
            "have averages, and differences, in the range of their type",
            f"'{name}' {self.newest.tensors[key]}, whose average is not. If "
            "this is no weight, name it in `from_newest`.",
            NotFiniteError,
        )


def warn(report: dict[str, Any]) -> None:
    """Warns of averaged batch-norm statistics, and of what was guessed."""
    if report["batch_norm_statistics"]:
        whose = (
            "averages of batch-norm statistics, which do not fit its weights"
        )
        if not set(report["batch_norm_statistics"]) <= set(report["averaged"]):
            whose = "batch-norm statistics that belong to other weights"
        warnings.warn(
            f"'{report['output']}' holds {whose}. "
            "After loading it, compute them anew: "
            "`swa_tf.refit_batch_norm(model, dataset)` or, for batch norms "
            "that are none of `tf.keras`, calls of the model in training mode.",
            stacklevel=3,
        )
    names = report["guessed"]
    if names:
        more = f" and {len(names) - 3} more" if len(names) > 3 else ""
        warnings.warn(
            f"'{report['output']}' does not average what by its name or place "
            "looks like an optimizer, a metric or a counter: "
            f"{', '.join(map(repr, names[:3]))}{more}.",
            stacklevel=3,
        )


def opened(path: str, argument: str = "inputs") -> Checkpoint:
    """Opens a checkpoint, or raises an error that says why it is none."""
    return _FORMS.get(paths.suffix(path), Hdf5Checkpoint)(path, argument)


def patterns(from_newest: Iterable[str]) -> list[re.Pattern[str]]:
    """Returns the regular expressions of the argument `from_newest`."""
    if isinstance(from_newest, str) or not isinstance(from_newest, Iterable):
        wanted = "a list of regular expressions"
        raise checks.wrong("from_newest", wanted, from_newest, TypeError)
    compiled = []
    for pattern in from_newest:
        try:
            compiled.append(re.compile(pattern))
            compiled[-1].search("")  # a pattern of bytes cannot
        except (re.error, TypeError) as error:
            received = f"{pattern!r}: {error}"
            wanted = "hold regular expressions"
            raise checks.must("from_newest", wanted, received) from None
    return compiled


def _unmatched(
    checkpoints: list[Checkpoint], from_newest: Iterable[re.Pattern[str]]
) -> set[str]:
    """Returns the names of all tensors that no pattern matches."""
    names = {each.name(key) for each in checkpoints for key in each.tensors}
    for pattern in from_newest:
        found = set(filter(pattern.search, names))
        if not found:
            received = f"{pattern.pattern!r}, which matches none of those left"
            raise checks.must("from_newest", "match names of tensors", received)
        names -= found
    return names
