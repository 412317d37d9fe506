"""Averages of mirrored variables, on logical processors of this machine."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import tensorflow as tf

import swa_tf
from benchmarks.averaging_cost.averagers import (
    APPLY,
    APPLY_WARM_UP,
    FLOOR,
    WARM_UP,
)
from benchmarks.averaging_cost.weights import Shapes
from benchmarks.common import devices, timing


def measure(
    shapes: Shapes, numbers: Sequence[int], rounds: int
) -> dict[int, dict[str, dict[str, Any]]]:
    """Times mirrored averages on logical processors of this machine.

    Args:
        shapes: Of the weights, which each replica holds.
        numbers: Of replicas.
        rounds: How many calls of each count.

    Returns:
        By number, the ways and what `timing.measure` has of each.
    """
    devices.make_logical_cpus(max(numbers))
    makers = {
        (number, name): functools.partial(make, shapes, number)
        for number in numbers
        for name, make in {FLOOR: _floor, APPLY: _apply}.items()
    }
    found = timing.measure(makers, rounds, WARM_UP)
    return {n: {w: found[n, w] for w in (FLOOR, APPLY)} for n in numbers}


def _mirrored(shapes: Shapes, n_replicas: int) -> Any:
    strategy = tf.distribute.MirroredStrategy(
        [f"/cpu:{i}" for i in range(n_replicas)]
    )
    with strategy.scope():
        weights = [
            tf.Variable(
                tf.random.uniform(shape),
                aggregation=tf.VariableAggregation.MEAN,
            )
            for shape in shapes
        ]
    return strategy, weights


def _floor(shapes: Shapes, n_replicas: int) -> timing.Step:
    """a += w in each replica."""
    strategy, weights = _mirrored(shapes, n_replicas)
    pairs = [
        (tf.Variable(tf.zeros_like(replica)), replica)
        for weight in weights
        for replica in strategy.experimental_local_results(weight)
    ]

    @tf.function
    def step() -> None:
        for total, weight in pairs:
            total.assign_add(weight)

    return timing.Step(step)


def _apply(shapes: Shapes, n_replicas: int) -> timing.Step:
    _, weights = _mirrored(shapes, n_replicas)
    swa = swa_tf.StochasticWeightAveraging()
    return timing.Step(lambda: swa.apply(weights), warm_up=APPLY_WARM_UP)
