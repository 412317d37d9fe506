"""Checks of arguments, with errors that say what was wanted and what came."""

from __future__ import annotations

import math
import numbers
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

_MOST_SHOWN = 300
"""The most characters of a value that an error shows."""


def must(
    name: str, what: str, received: str, error: type[Exception] = ValueError
) -> Exception:
    """Returns the error to raise for an argument, or for what it names."""
    return error(f"`{name}` must {what}. Received: {received}")


def wrong(
    name: str, wanted: str, value: Any, error: type[Exception] = ValueError
) -> Exception:
    """Returns the error to raise for an argument that is not as wanted."""
    return must(name, f"be {wanted}", f"{name}={shown(value)}", error)


def shown(value: Any) -> str:
    """Returns how an error shows a value: without the numbers of an array."""
    text = repr(value)
    if len(text) <= _MOST_SHOWN:
        return text
    if hasattr(value, "shape") and hasattr(value, "dtype"):
        kind = type(value).__name__
        return f"{kind} of shape {value.shape} and dtype {value.dtype}"
    return f"{text[:_MOST_SHOWN]}..."


def eager_mode(
    function: str, instead: str = "call it outside of graphs and `tf.function`"
) -> None:
    """Raises in a graph or `tf.function`, where `function` cannot run."""
    if not tf.executing_eagerly():
        raise RuntimeError(f"`{function}` works in eager mode only: {instead}.")


def at_most_one(**given: Any) -> None:
    """Raises if two arguments are given that exclude each other."""
    if sum(value is not None for value in given.values()) > 1:
        names = " and ".join(f"`{name}`" for name in given)
        received = ", ".join(f"{name}={v!r}" for name, v in given.items())
        said = f"Only one of {names} must be given. Received: {received}"
        raise ValueError(said)


def integer(
    name: str, value: Any, at_least: int, wanted: str | None = None
) -> int:
    """Returns `value` as an int; raises unless it is one in range."""
    whole = isinstance(value, numbers.Integral) and not isinstance(value, bool)
    if not (whole and value >= at_least):
        raise wrong(name, wanted or f"an integer >= {at_least}", value)
    return int(value)


def verbosity(verbose: Any) -> int:
    """Returns `verbose` as an int >= 0, as which True and False count."""
    if isinstance(verbose, bool):
        return int(verbose)
    return integer("verbose", verbose, at_least=0)


def real(
    name: str,
    value: Any,
    wanted: str = "a finite number >= 0",
    holds: Callable[[float], bool] = lambda number: True,
) -> Any:
    """Returns a finite `value` >= 0 as an int or a float if `holds` of it."""
    is_real = isinstance(value, numbers.Real) and not isinstance(value, bool)
    number: float = math.nan
    if is_real:
        is_whole = isinstance(value, numbers.Integral)
        number = int(value) if is_whole else float(value)
    if not (0 <= number <= sys.float_info.max and holds(number)):
        raise wrong(name, wanted, value)
    return number


def positive(name: str, value: Any) -> float:
    """Returns a finite `value` > 0 as a float, or raises."""
    return float(real(name, value, "a finite number > 0", lambda n: n > 0))


def one_each(
    n: int, wanted: str, name: str, values: Any, check: Callable[..., Any]
) -> list[Any]:
    """Returns what `check` does of each of `n` values; raises for others."""
    if isinstance(values, np.ndarray) and values.ndim == 1:
        values = values.tolist()
    if not isinstance(values, Sequence) or len(values) != n:
        raise wrong(name, f"a list of {n} {wanted}", values)
    return [check(f"{name}[{i}]", value) for i, value in enumerate(values)]


def boolean(name: str, value: Any) -> bool:
    """Returns `value` as a bool; raises unless it is one."""
    if not isinstance(value, (bool, np.bool_)):
        raise wrong(name, "True or False", value, TypeError)
    return bool(value)


def choice(name: str, value: Any, choices: tuple[str, ...]) -> None:
    """Raises unless `value` is one of `choices`."""
    if not isinstance(value, str) or value not in choices:
        *first, last = (f'"{each}"' for each in choices)
        raise wrong(name, f"{', '.join(first)} or {last}", value)


def function(name: str, value: Any) -> None:
    """Raises unless `value` is a function or None."""
    if not (value is None or callable(value)):
        raise wrong(name, "a function", value, TypeError)


def batches(
    dataset: Any,
    steps: Any,
    dataset_argument: str = "dataset",
    steps_argument: str = "steps",
    *,
    again: bool = False,
) -> int | None:
    """Returns how many batches to take, None for all; raises for wrong data."""
    holds = isinstance(dataset, Iterable) or hasattr(dataset, "__getitem__")
    is_array = hasattr(dataset, "shape")
    if not holds or is_array or isinstance(dataset, (Mapping, str, tuple)):
        raise TypeError(
            f"`{dataset_argument}` must be a `tf.data.Dataset` or another "
            "iterable of batches, not an array, a tuple or a dictionary: [x] "
            "or [(x, y)] is one batch, and "
            "`tf.data.Dataset.from_tensor_slices((x, y)).batch(32)` makes "
            "batches of arrays. "
            f"Received: {dataset_argument} of type {type(dataset).__name__}"
        )
    if steps is not None:
        steps = integer(steps_argument, steps, at_least=1)
    found = _cardinality(dataset)
    if found >= 0:
        enough_batches(found, steps, dataset_argument, steps_argument)
        return steps or found
    used_up = again and isinstance(dataset, Iterator)
    if steps is None and (used_up or found == tf.data.INFINITE_CARDINALITY):
        kind = "used up after one validation" if used_up else "infinite"
        raise ValueError(
            f"`{steps_argument}` must be given for a `{dataset_argument}` that "
            f"is {kind}. Received: {steps_argument}=None, "
            f"{dataset_argument} of type {type(dataset).__name__}"
        )
    return steps


def enough_batches(
    found: int, steps: int | None, dataset_argument: str, steps_argument: str
) -> None:
    """Raises unless `found` batches are as many as are wanted."""
    if found < (steps or 1):
        more = f"`{steps_argument}`={steps} batches"
        raise ValueError(
            f"`{dataset_argument}` must hold "
            f"{more if steps else 'at least one batch'}. Received: {found}"
        )


def _cardinality(dataset: Any) -> int:
    """Returns the number of batches; < 0 if unknown or infinite."""
    if isinstance(dataset, tf.data.Dataset):
        return int(dataset.cardinality())
    if isinstance(dataset, tf.distribute.DistributedDataset):
        return int(dataset.cardinality)
    try:
        return len(dataset)
    except TypeError:  # it has none, but a `PyDataset` of Keras 3 may have
        found = getattr(dataset, "num_batches", tf.data.UNKNOWN_CARDINALITY)
        return tf.data.INFINITE_CARDINALITY if found is None else int(found)
