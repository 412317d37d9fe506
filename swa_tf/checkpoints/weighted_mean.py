"""The average of checkpoints by given coefficients, written whole."""

from __future__ import annotations

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

from swa_tf.checkpoints import paths, state_file
from swa_tf.checkpoints.checkpoint import (
    Checkpoint,
    DamagedError,
    Tensor,
    errors_of,
    groups,
)
from swa_tf.checkpoints.keras_format import (
    Hdf5Checkpoint,
    KerasCheckpoint,
    ShardedCheckpoint,
)
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
        """Returns the average in the type of the arrays, to the nearest.

        NumPy rounds to bfloat16 by way of float32, so a tie may go either way.
        """
        return self._value.astype(self._dtype)


class NotFiniteError(ValueError):
    """The error of an average that is NaN or infinite, and need not be."""


def merge(
    inputs: list[str],
    output: str,
    coefficients: Sequence[float] | None = None,
    *,
    optimizer_slots: str,
    from_newest: Iterable[re.Pattern[str]],
    dry_run: bool = False,
    progress: Callable[[int, int], None] | None = None,
    about: dict[str, Any] | None = None,
    argument: str = "inputs",
    newest: str | None = None,
    averages_batch_norm: bool = True,
    is_latest: bool = True,
) -> dict[str, Any]:
    """Averages checkpoints with the c of each, and writes the result.

    The arguments are those of `average_checkpoints`, checked, and these:

    - coefficients: The c of each input, also below 0, but for the first c = 1;
      by default 1 / (n + 1).
    - about: What joins the report.
    - argument: The name of `inputs` in errors.
    - newest: The newest of `inputs`, where it is known.
    - averages_batch_norm: Whether batch-norm statistics are averaged, or come
      from the newest: a variance must not come out below 0.
    - is_latest: Whether `tf.train.latest_checkpoint` is to find the result.
    """
    if coefficients is None:
        coefficients = [1.0 / (i + 1) for i in range(len(inputs))]
    checks.choice("optimizer_slots", optimizer_slots, ("keep", "drop"))
    plan = _Plan(
        argument,
        inputs,
        coefficients,
        optimizer_slots == "drop",
        from_newest,
        newest or paths.in_order(inputs)[-1],
        averages_batch_norm,
    )
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
    with whole_files.scratch_folder(output) as scratch:
        new = scratch / name
        plan.newest.write(new, plan.values(advance), plan.dropped)
        as_json = scratch / f"{name}.json"
        as_json.write_text(json.dumps(report, indent=1), encoding="utf-8")
        written = [as_json, *map(pathlib.Path, paths.files(os.fspath(new)))]
        state = None
        if is_latest and not paths.suffix(output):
            state = state_file.with_latest(output)
        if state is not None:
            written.append(scratch / state_file.NAME)
            written[-1].write_text(state, encoding="utf-8")
        folder = whole_files.split(output)[0]
        whole_files.move(written, folder, replaces=state_file.NAME)
    return report


class _Plan:
    """The tensors to average, to take from the newest, and to drop.

    Keys are those of the newest checkpoint; each has twins in the others.
    """

    def __init__(
        self,
        argument: str,
        inputs: list[str],
        coefficients: Sequence[float],
        drops_slots: bool,
        from_newest: Iterable[re.Pattern[str]],
        newest_path: str,
        averages_batch_norm: bool,
    ) -> None:
        checkpoints = [opened(path, argument) for path in inputs]
        newest = checkpoints[inputs.index(newest_path)]
        names = _unmatched(checkpoints, from_newest)
        averaged = _weights(newest, names)
        self._batch_norm = newest.kinds.batch_norm & averaged
        if not averages_batch_norm:
            averaged -= self._batch_norm
        if not averaged:
            raise ValueError(
                f"`{argument}` must hold weights of floating point to average. "
                f"Received: none in '{newest.path}'"
            )
        twins = [
            _twins(argument, newest, averaged, c, names) for c in checkpoints
        ]
        self._argument = argument
        self._inputs = [*zip(checkpoints, twins, coefficients)]
        self.newest, self._averaged = newest, averaged
        tensors = [t for c in checkpoints for t in c.tensors.values()]
        self.n_bytes = sum(tensor.nbytes for tensor in tensors)
        self.dropped = newest.kinds.slots if drops_slots else set()
        self._others = newest.tensors.keys() - averaged - self.dropped

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
            for key, _ in read(checkpoint, others, self._argument):
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
                for twin, weight in read(checkpoint, key_of, self._argument):
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
        with np.errstate(all="ignore"):
            dtype = np.result_type(average.dtype, np.float64)
            if np.isfinite(average.sum(dtype=dtype)):
                return
        ((_, value),) = read(self.newest, [key], self._argument)
        spoilt = np.isfinite(value) & ~np.isfinite(average)
        for checkpoint, keys, _ in self._inputs if spoilt.any() else ():
            ((_, value),) = read(checkpoint, [keys[key]], self._argument)
            if not np.isfinite(value[spoilt]).all():
                raise NotFiniteError(
                    f"`{self._argument}` must be finite where the newest is, "
                    "or their average is not. "
                    f"Received: '{checkpoint.path}' with NaN "
                    f"or infinity in '{self.newest.name(key)}'. Leave that "
                    "input out or, if this is no weight, name it in "
                    "`from_newest`."
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
    files = paths.files(path)
    if not files:
        raise FileNotFoundError(
            f"`{argument}` must be checkpoints that exist. Received: '{path}'"
        )
    with errors_of(path, argument):
        for file in files:
            remote = whole_files.is_remote(file)
            # To read a pipe would never end.
            if not (remote or stat.S_ISREG(os.stat(file).st_mode)):
                raise DamagedError(f"{os.path.basename(file)} is no file")
        suffix = paths.suffix(path)
        main = path if suffix else f"{path}.index"
        if files[-1] not in (path, main):
            raise DamagedError(f"{os.path.basename(main)} is missing")
        if not suffix:
            return TensorFlowCheckpoint(path)
        forms = {".keras": KerasCheckpoint, paths.SHARDED: ShardedCheckpoint}
        return forms.get(suffix, Hdf5Checkpoint)(path)


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


def patterns(from_newest: Iterable[str]) -> list[re.Pattern[str]]:
    """Returns the regular expressions of the argument `from_newest`."""
    if isinstance(from_newest, str):
        wanted = "a list of regular expressions"
        raise checks.wrong("from_newest", wanted, from_newest, TypeError)
    compiled = []
    for pattern in from_newest:
        try:
            compiled.append(re.compile(pattern))
        except (re.error, TypeError) as error:
            raise ValueError(
                "`from_newest` must hold regular expressions. "
                f"Received: {pattern!r}: {error}"
            ) from None
    return compiled


def _unmatched(
    checkpoints: list[Checkpoint], from_newest: Iterable[re.Pattern[str]]
) -> set[str]:
    """Returns the names of all tensors that no pattern matches."""
    names = {each.name(key) for each in checkpoints for key in each.tensors}
    for pattern in from_newest:
        found = set(filter(pattern.search, names))
        if not found:
            raise ValueError(
                "`from_newest` must match names of tensors. Received: "
                f"{pattern.pattern!r}, which matches none of those left"
            )
        names -= found
    return names


def _weights(checkpoint: Checkpoint, names: set[str]) -> set[str]:
    """Returns the keys of the weights that have one of these names."""
    return {
        key
        for key, tensor in checkpoint.tensors.items()
        if tensor.is_float and checkpoint.name(key) in names
    } - (checkpoint.kinds.slots | checkpoint.kinds.state)


def _twins(
    argument: str,
    newest: Checkpoint,
    averaged: set[str],
    other: Checkpoint,
    names: set[str],
) -> dict[str, str]:
    """Returns the keys in another checkpoint; raises if its weights differ."""
    if other.form != newest.form:
        raise ValueError(
            f"`{argument}` must be of one form. "
            f"Received: '{other.path}' ({other.form}) and "
            f"'{newest.path}' ({newest.form})"
        )
    twins = newest.twins(other)
    floats = {twin for k, twin in twins.items() if newest.tensors[k].is_float}
    theirs = {key: other.tensors[twin] for key, twin in twins.items()}
    pairs = [
        (newest.name(key), newest.tensors[key], theirs.get(key))
        for key in sorted(averaged)
    ] + [
        (other.name(key), None, other.tensors[key])
        for key in sorted(_weights(other, names) - floats)
    ]
    differ = [
        f"'{name}' {its or 'missing'} instead of {ours or 'none'}"
        for name, ours, its in pairs
        if str(its) != str(ours)
    ]
    if differ:
        more = " and more" if len(differ) > 3 else ""
        raise ValueError(
            f"`{argument}` must hold the same tensors, apart from what "
            f"`from_newest` matches. Received: '{other.path}' with "
            f"{', '.join(differ[:3])}{more}, against '{newest.path}'"
        )
    return twins
