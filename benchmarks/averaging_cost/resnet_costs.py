"""The cost of averaging and refitting beside the work of a ResNet-34."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import tensorflow as tf

import swa_tf
from benchmarks.averaging_cost.averagers import APPLY_WARM_UP, WARM_UP
from benchmarks.common import timing
from benchmarks.common.resnet import ResNet

_SHAPE, _CLASSES = (32, 32, 3), 10
FORWARD, REFIT = "forward pass, as in training", "BatchNormRefit"
STEP, AVERAGING_STEP = "training step", "training step with apply"
STEP_THEN_APPLY = "training step, then apply"


class _Network(ResNet):
    """A network that counts how often Python runs it: while it is traced."""

    def __init__(self, width: int) -> None:
        super().__init__(34, width, _CLASSES)
        self.n_calls = 0
        self(tf.zeros([1, *_SHAPE]))

    def call(
        self, inputs: tf.Tensor, training: bool | None = None
    ) -> tf.Tensor:
        self.n_calls += 1
        return super().call(inputs, training=training)


def refit(
    width: int, batch_size: int, batches: int, rounds: int
) -> dict[str, dict[str, Any]]:
    """Times a refit of ResNet-34 against a forward pass over the same data.

    Args:
        width: Channels of the network's first stage.
        batch_size: Images in a batch.
        batches: How many there are.
        rounds: How many calls of each count.

    Returns:
        What `timing.measure` does; of the refit also `traces`, how often
        Python ran the network in its first call and in all later ones.
    """
    model = _Network(width)
    images = tf.random.normal([batches * batch_size, *_SHAPE])
    data = tf.data.Dataset.from_tensor_slices(images).batch(batch_size)

    @tf.function
    def forward(batch: tf.Tensor) -> tf.Tensor:
        return model(batch, training=True)

    def make_forward_pass() -> timing.Step:
        def step() -> None:
            for batch in data:
                forward(batch)

        return timing.Step(step)

    traces: list[int] = []

    def make_refit() -> timing.Step:
        refit = swa_tf.BatchNormRefit(model)

        def step() -> None:
            before = model.n_calls
            refit(data)
            traces.append(model.n_calls - before)

        return timing.Step(step)

    makers = {FORWARD: make_forward_pass, REFIT: make_refit}
    found = timing.measure(makers, rounds, warm_up=2)
    found[REFIT]["traces"] = [traces[0], sum(traces[1:])]
    return found


def training(
    width: int, batch_size: int, rounds: int
) -> dict[str, dict[str, Any]]:
    """Times a training step of ResNet-34 without and with averaging.

    Args:
        width: Channels of the network's first stage.
        batch_size: Images in a step.
        rounds: How many steps of each count.

    Returns:
        What `timing.measure` does.
    """
    model = _Network(width)
    weights = model.trainable_variables
    images = tf.random.normal([batch_size, *_SHAPE])
    labels = tf.random.uniform([batch_size], 0, _CLASSES, tf.int32)
    optimizer = tf.keras.optimizers.SGD(0.01, momentum=0.9)
    if hasattr(optimizer, "build"):
        optimizer.build(weights)
    inside = swa_tf.StochasticWeightAveraging()
    outside = swa_tf.StochasticWeightAveraging()

    def train() -> None:
        with tf.GradientTape() as tape:
            losses = tf.nn.sparse_softmax_cross_entropy_with_logits(
                labels, model(images, training=True)
            )
            loss = tf.reduce_mean(losses)
        gradients = tape.gradient(loss, weights)
        optimizer.apply_gradients(zip(gradients, weights))

    plain = tf.function(train)

    @tf.function
    def averaging() -> None:
        train()
        inside.apply(weights)

    def then_apply() -> None:
        plain()
        outside.apply(weights)

    def maker(
        step: Callable[[], None], warm_up: int = WARM_UP
    ) -> Callable[[], timing.Step]:
        return lambda: timing.Step(step, warm_up=warm_up)

    makers = {
        STEP: maker(plain),
        AVERAGING_STEP: maker(averaging),
        STEP_THEN_APPLY: maker(then_apply, APPLY_WARM_UP),
    }
    return timing.measure(makers, rounds, WARM_UP)
