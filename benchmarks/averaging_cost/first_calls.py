"""The first calls of an average and of a refit, beside those of their peers.

A first call traces and compiles: that is its cost to a user who averages once
an epoch. Each is timed in a process of its own, in which TensorFlow has started
and the model is built, and nothing else has run.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import tensorflow as tf

import swa_tf
from benchmarks.averaging_cost import weights
from benchmarks.common import timing
from benchmarks.common.errors import BenchmarkError

BATCH_SIZE = 8
REFIT_BATCHES = 2
NEXT = 100
"""Calls after the first one, in which an average may yet trace or compile."""

FORWARD = "forward pass"
REFIT = "refit"
APPLY = "apply"
EMA = "tf.train.ExponentialMovingAverage.apply"


def names_of_flag(flag: str, given: Sequence[str]) -> list[str]:
    """Checks names of models in `tf.keras.applications`.

    Raises:
        BenchmarkError: If there is no such model.
    """
    for name in given:
        if not callable(getattr(tf.keras.applications, name, None)):
            raise BenchmarkError(
                f"`--{flag}` must name models of tf.keras.applications, such "
                f"as EfficientNetV2B0. Received: --{flag}={','.join(given)}"
            )
    return list(given)


def measure(
    model_name: str, rounds: int, alone: Callable[..., Any]
) -> dict[str, Any]:
    """Times the first and later calls of each of `WORKS`, in turns.

    Args:
        model_name: Of the model, in `tf.keras.applications`.
        rounds: Processes for each.
        alone: What calls a function in a process of its own.

    Returns:
        `variables`, the number of those that are trained; `works`, for each of
        `WORKS` the seconds of its calls, a list for each process.
    """
    runs = timing.in_turns(
        {
            work: functools.partial(alone, measure_one, model_name, work)
            for work in WORKS
        },
        rounds,
    )
    return {
        "variables": runs[FORWARD][0]["variables"],
        "works": {w: [run["times"] for run in runs[w]] for w in WORKS},
    }


def measure_one(model_name: str, name: str) -> dict[str, Any]:
    """Times all calls of one of `WORKS`, from its first, in this process.

    Returns:
        `times`, the seconds of each call; `variables`, the number of those
        that are trained.
    """
    work = WORKS[name]
    model = getattr(tf.keras.applications, model_name)(weights=None)
    # TensorFlow's own start is not a part of anybody's first call.
    tf.function(lambda x: x + 1.0)(tf.ones([]))
    step = timing.Step(work.make(model))
    return {
        "times": [
            step.seconds() for _ in range(1 + work.n_next + work.n_later)
        ],
        "variables": len(model.trainable_variables),
    }


def _images(model: tf.keras.Model, batches: int) -> tf.Tensor:
    shape = [batches * BATCH_SIZE, *model.input_shape[1:]]
    return tf.random.uniform(shape, maxval=255.0)


def _forward_pass(model: tf.keras.Model) -> Callable[[], Any]:
    images = _images(model, 1)

    @tf.function
    def forward(batch: tf.Tensor) -> tf.Tensor:
        return model(batch, training=True)

    return lambda: forward(images)


def _refit(model: tf.keras.Model) -> Callable[[], Any]:
    images = _images(model, REFIT_BATCHES)
    data = tf.data.Dataset.from_tensor_slices(images).batch(BATCH_SIZE)
    return functools.partial(swa_tf.BatchNormRefit(model), data)


def _apply(model: tf.keras.Model) -> Callable[[], Any]:
    swa = swa_tf.StochasticWeightAveraging()
    return functools.partial(swa.apply, model.trainable_variables)


def _tensorflow_ema(model: tf.keras.Model) -> Callable[[], Any]:
    ema = tf.train.ExponentialMovingAverage(0.999)
    variables = weights.as_tensorflow(model.trainable_variables)
    return functools.partial(ema.apply, variables)


class Work(NamedTuple):
    """Something whose first call is timed.

    Attributes:
        make: From a model to what is called, its set-up done.
        peer: The work whose first call this one's is compared with.
        n_next: Calls after the first one, of which the longest is given.
        n_later: Calls after these, of which the median is given.
    """

    make: Callable[[tf.keras.Model], Callable[[], Any]]
    peer: str | None
    n_next: int
    n_later: int


WORKS = {
    FORWARD: Work(_forward_pass, None, 0, 4),
    REFIT: Work(_refit, FORWARD, 0, 2),
    EMA: Work(_tensorflow_ema, None, 0, 20),
    APPLY: Work(_apply, EMA, NEXT, 20),
}
