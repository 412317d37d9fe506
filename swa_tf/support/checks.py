"""Checks of arguments, with errors that say what was wanted and what came."""

from __future__ import annotations

import math
import numbers
import sys
from collections.abc import Callable, Iterable, Iterator, Sized
from typing import Any

import numpy as np
import tensorflow as tf


def integer(name: str, value: Any, at_least: int) -> int:
    """Returns `value` as an int; raises unless it is one in range."""
    whole = isinstance(value, numbers.Integral) and not isinstance(value, bool)
    if not (whole and value >= at_least):
        raise ValueError(
            f"`{name}` must be an integer >= {at_least}. "
            f"Received: {name}={value!r}"
        )
    return int(value)


def real(
    name: str,
    value: Any,
    wanted: str = "a finite number >= 0",
    holds: Callable[[float], bool] = lambda number: True,
) -> Any:
    """Returns a finite `value` >= 0 as an int or a float if `holds` of it."""
    is_real = isinstance(value, numbers.Real) and not isinstance(value, bool)
    is_whole = isinstance(value, numbers.Integral)
    number = (
        math.nan if not is_real else int(value) if is_whole else float(value)
    )
    if not (0 <= number <= sys.float_info.max and holds(number)):
        raise ValueError(
            f"`{name}` must be {wanted}. Received: {name}={value!r}"
        )
    return number


def positive(name: str, value: Any) -> float:
    """Returns a finite `value` > 0 as a float, or raises."""
    return float(real(name, value, "a finite number > 0", lambda n: n > 0))


def boolean(name: str, value: Any) -> bool:
    """Returns `value` as a bool; raises unless it is one."""
    if not isinstance(value, (bool, np.bool_)):
        raise TypeError(
            f"`{name}` must be True or False. Received: {name}={value!r}"
        )
    return bool(value)


def choice(name: str, value: Any, choices: tuple[str, ...]) -> None:
    """Raises unless `value` is one of `choices`."""
    if value not in choices:
        *first, last = (f'"{each}"' for each in choices)
        raise ValueError(
            f"`{name}` must be {', '.join(first)} or {last}. "
            f"Received: {name}={value!r}"
        )


def batches(
    dataset: Any,
    steps: Any,
    dataset_argument: str = "dataset",
    steps_argument: str = "steps",
) -> None:
    """Raises unless `dataset` is an iterable of batches that ends."""
    if not isinstance(dataset, Iterable) or isinstance(
        dataset, (np.ndarray, tf.Tensor, tf.Variable, dict, str)
    ):
        raise TypeError(
            f"`{dataset_argument}` must be a `tf.data.Dataset` or another "
            "iterable of batches; [x] is one batch. "
            f"Received: {dataset_argument} of type {type(dataset).__name__}"
        )
    if steps is not None:
        integer(steps_argument, steps, at_least=1)
    elif _cardinality(dataset) == tf.data.INFINITE_CARDINALITY:
        raise ValueError(
            f"`{steps_argument}` must be given for an infinite "
            f"`{dataset_argument}`. Received: {steps_argument}=None"
        )


def _cardinality(dataset: Any) -> int:
    """Returns the number of batches; < 0 if unknown or infinite."""
    if isinstance(dataset, tf.data.Dataset):
        return int(dataset.cardinality())
    if isinstance(dataset, tf.distribute.DistributedDataset):
        return int(dataset.cardinality)
    return len(dataset) if isinstance(dataset, Sized) else -2


def enough_batches(
    dataset: Any,
    steps: Any,
    dataset_argument: str,
    steps_argument: str,
    *,
    again: bool,
) -> None:
    """Raises if `dataset` has fewer batches; if `again`, if it is used up."""
    if again and steps is None and isinstance(dataset, Iterator):
        raise ValueError(
            f"`{dataset_argument}` must be iterable again for each validation, "
            f"or `{steps_argument}` given. Received: an iterator, of type "
            f"{type(dataset).__name__}"
        )
    found = _cardinality(dataset)
    if 0 <= found < (steps or 1):
        raise ValueError(
            f"`{dataset_argument}` must hold at least {steps or 1} batches. "
            f"Received: {found}"
        )
