"""The ways to average and to swap, timed against each other."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from benchmarks.averaging_cost import averagers, weights
from benchmarks.averaging_cost.averagers import (
    APPLY,
    FLOOR,
    SWAP,
    SWAPPING,
    WAYS,
)
from benchmarks.common.errors import BenchmarkError


def averaging(
    shapes: weights.Shapes,
    ways: Sequence[str],
    rounds: int,
    n_bytes: int,
    alone: Callable[..., Any],
) -> dict[str, Any]:
    """Times the ways to average a model, and measures their memory.

    Returns:
        `parameters` and `variables`, their numbers; `absent`, from the ways
        that are to the packages that they need; `ways`, from the others to
        what `timing.measure` has of each, with `floor` and `apply`, the times
        of these in the same rounds, and `base`, those of the way beyond which
        it counts.
    """
    found: dict[str, Any] = {}
    n_parameters = weights.parameters(shapes)
    for group in groups(ways, n_parameters, n_bytes):
        times = {
            name: figures["times"]
            for name, figures in alone(
                averagers.measure, shapes, group, rounds
            ).items()
        }
        for name in group:
            yardsticks = {"floor": times[FLOOR], "apply": times[APPLY]}
            if WAYS[name].beyond:
                yardsticks["base"] = times[WAYS[name].beyond]
            found.setdefault(name, {"times": times[name], **yardsticks})
    for name in found:
        by_itself = alone(averagers.measure, shapes, [name], 0)[name]
        found[name] = {**by_itself, **found[name]}
    return {
        "parameters": n_parameters,
        "variables": len(shapes),
        "ways": found,
        "absent": {n: WAYS[n].needs for n in ways if WAYS[n].absent},
    }


def swapping(
    shapes: weights.Shapes, rounds: int, alone: Callable[..., Any]
) -> dict[str, Any]:
    """Times swaps against a copy of the weights, and measures their memory."""
    found = alone(averagers.measure, shapes, list(SWAPPING), rounds)
    by_itself = alone(averagers.measure, shapes, [SWAP], 0)[SWAP]
    found[SWAP]["growth"] = by_itself["growth"]
    return {"parameters": weights.parameters(shapes), "ways": found}


def groups(
    ways: Sequence[str], n_parameters: int, n_bytes: int
) -> list[list[str]]:
    """Ways that fit into memory together, each with the floor and `apply`.

    A way that counts as a difference has the way beside it that it is
    compared with. What is absent is left out.

    >>> groups(["plain formula", "Keras use_ema"], 10**9, 40 * 10**9)[1][2:]
    ['Keras SGD', 'Keras use_ema']

    Args:
        ways: Their names.
        n_parameters: Of the model.
        n_bytes: Of memory.

    Raises:
        BenchmarkError: If one of them does not fit even by itself.
    """
    yardsticks = [FLOOR, APPLY]
    result = [list(yardsticks)]
    for name in ways:
        if name in yardsticks or WAYS[name].absent:
            continue
        unit = (
            [name] if WAYS[name].beyond is None else [WAYS[name].beyond, name]
        )
        longer = list(dict.fromkeys([*result[-1], *unit]))
        if averagers.fits(longer, n_parameters, n_bytes):
            result[-1] = longer
        else:
            result.append([*yardsticks, *unit])
    for group in result:
        if not averagers.fits(group, n_parameters, n_bytes):
            raise BenchmarkError(
                f"`--memory_gb` must be more for {n_parameters:,} parameters. "
                f"Received: --memory_gb={n_bytes // 10**9}"
            )
    return [g for g in result if len(g) > 2] or result
