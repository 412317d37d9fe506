"""The one equation over tensors in files, piece by piece, in float64.

average <- average + c * (weight - average)
"""

from __future__ import annotations

import collections
import concurrent.futures
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

_AHEAD = 8  # pieces read while one is averaged
_END: Any = object()


def averaged_pieces(
    streams: Sequence[Iterator[np.ndarray]], coefficients: Sequence[float]
) -> Iterator[np.ndarray]:
    """The pieces of the average of tensors, in their own type.

    Args:
        streams: The pieces of one tensor of each input, all alike.
        coefficients: The c of the equation for each input. The average begins
            as the first input, whose c is not used.
    """
    pieces = _read_ahead(_in_turn(streams))
    for piece in pieces:
        average = piece.astype(np.result_type(piece.dtype, np.float64))
        step = np.empty_like(average)
        for c, weight in zip(coefficients[1:], pieces):
            _move(average, weight, c, step)
        yield average.astype(piece.dtype)


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


def _in_turn(
    streams: Sequence[Iterator[np.ndarray]],
) -> Iterator[np.ndarray]:
    """The first piece of each stream, then the second of each, and so on."""
    first, *others = streams
    for piece in first:
        yield piece
        for stream in others:
            yield next(stream)


def _read_ahead(pieces: Iterator[np.ndarray]) -> Iterator[np.ndarray]:
    """The same, read by another thread while the last ones are used."""
    with concurrent.futures.ThreadPoolExecutor(1) as reader:
        pending = collections.deque(
            reader.submit(next, pieces, _END) for _ in range(_AHEAD)
        )
        while (piece := pending.popleft().result()) is not _END:
            pending.append(reader.submit(next, pieces, _END))
            yield piece
