"""Training: rates, decay, and checkpoints that hold everything."""

import functools

import numpy as np
import pytest
import tensorflow as tf

from benchmarks.cifar10 import config, data, training
from benchmarks.common.resnet import BLOCKS
from tests.benchmarks.cifar10.tiny import TINY
from tests.fitting import exhaustive, slow

# `tf.data` stays compiled where functions run eagerly, and says so.
pytestmark = pytest.mark.filterwarnings("ignore:Even though the")


@pytest.fixture(autouse=True)
def _shallow(monkeypatch):
    """The smallest network that has all kinds of blocks."""
    monkeypatch.setitem(BLOCKS, 18, (2, 1, 1, 1))


def test_published_plan():
    settings = config.resolve(
        {"strategy": "swa", "epochs": 10, "epochs_before_swa": 5}
    )
    rate = training.LearningRate(settings, 100, tf.Variable(False))
    high, low = settings.learning_rate, settings.swa_learning_rate
    for step, wanted in ((0, high), (499, high), (900, low), (999, low)):
        assert float(rate(step)) == pytest.approx(wanted)
    assert float(rate(700)) == pytest.approx((high + low) / 2)


def test_constant():
    settings = config.resolve({"strategy": "constant"})
    rate = training.LearningRate(settings, 100, tf.Variable(False))
    for step in (0, 99, 2999):
        assert float(rate(step)) == np.float32(settings.learning_rate)


@pytest.mark.parametrize("strategy", config.CHOICES["strategy"])
def test_decayed_to_zero(strategy):
    settings = config.resolve(
        {
            "strategy": strategy,
            "epochs": 10,
            "epochs_before_swa": 5,
            "learning_rate": 0.5,
        }
    )
    decays = tf.Variable(False)
    rate = training.LearningRate(settings, 100, decays)
    assert float(rate(750)) > 0.25 or strategy == "swa"
    decays.assign(True)
    for step, expected in ((0, 0.5), (500, 0.5), (750, 0.25), (999, 0.001)):
        assert float(rate(step)) == pytest.approx(expected)


@pytest.mark.parametrize("optimizer", ["momentumw", "adamw"])
@pytest.mark.parametrize("on", config.CHOICES["weight_decay_on"])
def test_decoupled_decay(optimizer, on):
    settings = config.resolve(
        {
            "optimizer": optimizer,
            "weight_decay": 0.25,
            "weight_decay_on": on,
        }
    )
    kernel, bias = tf.Variable([[8.0]]), tf.Variable([8.0])
    training.make_optimizer(settings, 0.1).apply_gradients(
        [(tf.zeros([1, 1]), kernel), (tf.zeros([1]), bias)]
    )
    assert float(kernel[0, 0]) == 6.0
    assert float(bias[0]) == (6.0 if on == "all" else 8.0)


@pytest.mark.parametrize("on", config.CHOICES["weight_decay_on"])
def test_l2_decay(on):
    tf.config.run_functions_eagerly(True)  # Tracing would take longer.
    before, plain = one_step(weight_decay=0.0)
    same, decayed = one_step(weight_decay=0.25, weight_decay_on=on)
    for w, w_same, w_plain, w_decayed in zip(before, same, plain, decayed):
        np.testing.assert_array_equal(w, w_same)
        share = 0.25 if on == "all" or w.ndim > 1 else 0.0
        # Threads may add up the gradient in another order.
        np.testing.assert_allclose(
            w_decayed, w_plain - 0.1 * share * w, atol=2e-5
        )


@pytest.mark.parametrize(
    ("batch_norm", "optimizer"),
    [
        slow("stock", "adamw"),
        exhaustive("stock", "momentumw"),
        exhaustive("moving_free", "momentum"),
    ],
)
def test_checkpoint_holds_everything(tmp_path, batch_norm, optimizer):
    tf.config.run_functions_eagerly(True)
    settings = config.resolve(
        {
            **TINY,
            "batch_norm": batch_norm,
            "optimizer": optimizer,
            "batch_size": 240,
            "width": 1,
            "epochs": 4,
        }
    )
    splits = data.load(settings)
    trainer = training.Trainer(settings, splits)
    trainer.train_epoch(3)  # one step, and the average
    path = str(tmp_path / "checkpoint")
    trainer.checkpoint.write(path)
    other = training.Trainer(settings, splits)
    other.checkpoint.read(path)
    for each in (trainer, other):
        each.train_epoch(4)  # What the optimizer remembers comes to light.
    for one, two in zip(state(trainer), state(other)):
        # Threads may add up the gradient in another order.
        np.testing.assert_allclose(one, two, rtol=1e-3, atol=1e-4)


def state(trainer):
    """Every weight, statistic and average."""
    variables = list(trainer.model.variables)
    variables += [
        trainer.swa.average(v) for v in trainer.model.trainable_variables
    ]
    return [np.array(v) for v in variables]


@functools.lru_cache
def one_step(**given):
    """The weights before and after one step of plain momentum."""
    settings = config.resolve(
        {
            "max_samples": 100,
            "width": 1,
            "refit_samples": 32,
            "batch_size": 80,
            "optimizer": "momentum",
            "strategy": "constant",
            "learning_rate": 0.1,
            **given,
        }
    )
    tf.keras.utils.set_random_seed(0)
    trainer = training.Trainer(settings, data.load(settings))
    before = [np.array(v) for v in trainer.model.trainable_variables]
    trainer.train_epoch(1)
    return before, [np.array(v) for v in trainer.model.trainable_variables]
