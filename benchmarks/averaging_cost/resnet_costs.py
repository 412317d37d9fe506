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
SECOND_MODEL_STEP = "training step with a second model's forward pass"
AVERAGED_MODEL_STEP = "the same of an AveragedModel"
UPDATING_STEP = "the same, and its update"


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
    training = _Training(width, batch_size)
    inside = swa_tf.StochasticWeightAveraging()
    outside = swa_tf.StochasticWeightAveraging()
    plain = tf.function(training.step)

    @tf.function
    def averaging() -> None:
        training.step()
        inside.apply(training.weights)

    def then_apply() -> None:
        plain()
        outside.apply(training.weights)

    makers = {
        STEP: _maker(plain),
        AVERAGING_STEP: _maker(averaging),
        STEP_THEN_APPLY: _maker(then_apply, APPLY_WARM_UP),
    }
    return timing.measure(makers, rounds, WARM_UP)


def averaged_model(
    width: int, batch_size: int, rounds: int
) -> dict[str, dict[str, Any]]:
    """Times a training step with a teacher: a plain model, and an averaged one.

    The arguments, and what it returns, are those of `training`.
    """
    training = _Training(width, batch_size)
    second = _Network(width)
    ema = swa_tf.ExponentialMovingAverage(0.999)
    averaged = swa_tf.AveragedModel(
        training.model, ema, build=lambda: _Network(width)
    )

    @tf.function
    def updating() -> None:
        training.step(averaged)
        averaged.update()

    makers = {
        SECOND_MODEL_STEP: _maker(tf.function(lambda: training.step(second))),
        AVERAGED_MODEL_STEP: _maker(
            tf.function(lambda: training.step(averaged))
        ),
        UPDATING_STEP: _maker(updating),
    }
    return timing.measure(makers, rounds, WARM_UP)


class _Training:
    """A ResNet-34, its optimizer, and the batch that each step is given."""

    def __init__(self, width: int, batch_size: int) -> None:
        self.model = _Network(width)
        self.weights = self.model.trainable_variables
        self._images = tf.random.normal([batch_size, *_SHAPE])
        self._labels = tf.random.uniform([batch_size], 0, _CLASSES, tf.int32)
        self._optimizer = tf.keras.optimizers.SGD(0.01, momentum=0.9)
        if hasattr(self._optimizer, "build"):
            self._optimizer.build(self.weights)

    def step(self, teacher: Any = None) -> None:
        """Takes a step; with a teacher, towards its predictions as well."""
        with tf.GradientTape() as tape:
            logits = self.model(self._images, training=True)
            losses = tf.nn.sparse_softmax_cross_entropy_with_logits(
                self._labels, logits
            )
            loss = tf.reduce_mean(losses)
            if teacher is not None:
                taught = tf.stop_gradient(teacher(self._images, training=False))
                loss += tf.reduce_mean((logits - taught) ** 2)
        gradients = tape.gradient(loss, self.weights)
        self._optimizer.apply_gradients(zip(gradients, self.weights))


def _maker(
    step: Callable[[], Any], warm_up: int = WARM_UP
) -> Callable[[], timing.Step]:
    return lambda: timing.Step(step, warm_up=warm_up)
