"""The one equation over tensors in files, piece by piece, in float64.

average <- average + c * (weight - average)
"""

from __future__ import annotations

import collections
import concurrent.futures
import itertools
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

Reader = Callable[[], np.ndarray]
_WORKERS = min(4, os.cpu_count() or 1)
_AHEAD = 2 * _WORKERS  # pieces that wait to be written


def averaged_pieces(
    tensors: Sequence[Sequence[Reader]], coefficients: Sequence[float]
) -> Iterator[np.ndarray]:
    """The pieces of the average of tensors, in their own type.

    Each piece is read from all inputs, and averaged, by one of some threads.

    Args:
        tensors: What reads the pieces of one tensor of each input, all alike.
        coefficients: The c of the equation for each input. The average begins
            as the first input, whose c is not used.
    """
    with concurrent.futures.ThreadPoolExecutor(_WORKERS) as workers:
        jobs = (
            workers.submit(_average, readers, coefficients)
            for readers in zip(*tensors)
        )
        pending = collections.deque(itertools.islice(jobs, _AHEAD))
        while pending:
            piece = pending.popleft().result()
            pending.extend(itertools.islice(jobs, 1))
            yield piece


def _average(
    readers: Sequence[Reader], coefficients: Sequence[float]
) -> np.ndarray:
    weight = readers[0]()
    average = weight.astype(np.result_type(weight.dtype, np.float64))
    step = np.empty_like(average)
    for c, read in zip(coefficients[1:], readers[1:]):
        _move(average, read(), c, step)
    return average.astype(weight.dtype)


def _move(average: Any, weight: Any, c: float, step: Any) -> None:
    """average <- average + c * (weight - average), in place."""
    np.copyto(step, weight)
    try:
        with np.errstate(invalid="raise"):
            step -= average
    except FloatingPointError:  # infinities: two equal ones have no distance
        step[weight.astype(step.dtype) == average] = 0
    with np.errstate(invalid="ignore"):
        step *= c
        average += step
