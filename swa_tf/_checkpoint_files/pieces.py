"""The one equation over tensors in files, piece by piece, in float64.

average <- average + c * (weight - average)
"""

from __future__ import annotations

import collections
import concurrent.futures
import contextlib
import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

_AHEAD = 8  # pieces read while one is averaged
_READERS = 2
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
    pieces = _read_ahead(streams)
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


def _read_ahead(
    streams: Sequence[Iterator[np.ndarray]],
) -> Iterator[np.ndarray]:
    """The first piece of each stream, then the second of each, and so on.

    Each stream is read in order, by the same one of some other threads, while
    the pieces before are used.
    """
    with contextlib.ExitStack() as stack:
        readers = [
            stack.enter_context(concurrent.futures.ThreadPoolExecutor(1))
            for _ in range(min(_READERS, len(streams)))
        ]
        turns = itertools.cycle(zip(streams, itertools.cycle(readers)))
        pending = collections.deque(
            reader.submit(next, stream, _END)
            for stream, reader in itertools.islice(turns, _AHEAD)
        )
        while (piece := pending.popleft().result()) is not _END:
            stream, reader = next(turns)
            pending.append(reader.submit(next, stream, _END))
            yield piece
