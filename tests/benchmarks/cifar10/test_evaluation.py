"""Evaluation in four ways, against metrics computed by hand."""

import numpy as np
import pytest
import tensorflow as tf

import swa_tf
from benchmarks.cifar10 import config, data, evaluation
from benchmarks.common.resnet import Norm
from tests.benchmarks.cifar10.tiny import TINY


class Tiny(tf.keras.Model):
    """One layer of each kind; as fast to trace as it gets."""

    def __init__(self, batch_norm):
        super().__init__()
        self.flatten = tf.keras.layers.Flatten()
        self.norm = Norm(batch_norm, momentum=0.9)
        self.dense = tf.keras.layers.Dense(10)

    def call(self, inputs, training=None, use_moving_statistics=True):
        x = self.norm(
            self.flatten(inputs),
            training=training,
            use_moving_statistics=use_moving_statistics,
        )
        return self.dense(x)


@pytest.mark.parametrize("batch_norm", config.CHOICES["batch_norm"])
def test_evaluation_leaves_the_model_as_it_was(batch_norm):
    splits = data.load(config.resolve(TINY))
    model = Tiny(batch_norm)
    batches = data.plain_batches(splits.test, 100)
    model(next(iter(batches))[0], training=True)
    swa = swa_tf.StochasticWeightAveraging()
    evaluator = evaluation.Evaluator(
        model,
        swa,
        data.plain_batches(splits.train, 100),
        moving_free=batch_norm == "moving_free",
    )
    assert list(evaluator({"test": batches})["test"]) == ["moving", "refit"]
    for _ in range(2):
        for variable in model.trainable_variables:
            variable.assign_add(tf.random.normal(variable.shape))
        swa.apply(model.trainable_variables)
    before = [np.array(v) for v in model.variables]
    figures = evaluator({"test": batches}, each_image=True)["test"]
    assert list(figures) == ["moving", "refit", "swa", "swa_refit"]
    for old, variable in zip(before, model.variables):
        np.testing.assert_array_equal(old, np.array(variable))
    assert len({f["loss"] for f in figures.values()}) == 4

    def by_hand():
        logits = np.concatenate(
            [model(images, training=False) for images, _ in batches]
        ).astype(np.float64)
        found = logits.argmax(axis=1) == splits.test.labels
        shifted = logits - logits.max(axis=1, keepdims=True)
        log_p = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
        loss = -np.mean(log_p[np.arange(len(logits)), splits.test.labels])
        return {
            "accuracy": pytest.approx(100.0 * np.mean(found)),
            "loss": pytest.approx(loss, rel=1e-4),
            "right": np.packbits(found).tobytes().hex(),
        }

    assert figures["moving"] == by_hand()
    with swa_tf.averaged_weights(swa, model):
        assert figures["swa"] == by_hand()
    # The statistics that a refit must find: those of the first layer's
    # inputs, which no weight changes.
    inputs = np.concatenate(
        [x for x, _ in data.plain_batches(splits.train, 100)]
    ).reshape(len(splits.train), -1)
    model.norm.batch_norm.moving_mean.assign(inputs.mean(axis=0))
    model.norm.batch_norm.moving_variance.assign(inputs.var(axis=0))
    assert figures["refit"] == by_hand()
    with swa_tf.averaged_weights(swa, model):
        assert figures["swa_refit"] == by_hand()
