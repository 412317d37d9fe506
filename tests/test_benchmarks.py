"""Tests of the benchmark's network, flags, training and evaluation."""

import functools

import numpy as np
import pytest
import tensorflow as tf
from absl import flags

import swa_tf
from benchmarks import (
    cifar10,  # noqa: F401 - it defines the flags
    config,
    data,
    evaluation,
    training,
)
from benchmarks.errors import BenchmarkError
from benchmarks.resnet import Norm, ResNet
from tests.fitting import covering, exhaustive

# `tf.data` stays compiled where functions run eagerly, and says so.
pytestmark = pytest.mark.filterwarnings("ignore:Even though the")

TINY = {
    "preset": "digits",
    "max_samples": 300,
    "width": 4,
    "epochs": 3,
    "epochs_before_swa": 1,
    "batch_size": 32,
    "refit_samples": 100,
    "seed": 1,
}


def hand_count(blocks, width, channels, classes=10):
    """Trainable parameters of a ResNet v2 of basic blocks."""
    count = 3 * 3 * channels * width  # stem
    before = width
    for stage, n in enumerate(blocks):
        after = width * 2**stage
        for block in range(n):
            inside = before if block == 0 else after
            count += 2 * inside + 9 * inside * after  # norm and conv
            count += 2 * after + 9 * after * after
            if block == 0 and stage > 0:
                count += inside * after  # projection
        before = after
    return count + 2 * before + before * classes + classes


class TestResNet:
    def test_real_resnet_34(self):
        model = ResNet(34, width=64)
        assert model(tf.zeros([1, 32, 32, 3])).shape == (1, 10)
        count = sum(int(np.prod(v.shape)) for v in model.trainable_variables)
        assert count == hand_count((3, 4, 6, 3), 64, 3)
        # The 21.8 million of the literature have 1000 classes and a 7 x 7
        # stem, and batch norm behind each of the convolutions.
        assert 21.0e6 < count < 21.5e6
        kernels = [v for v in model.trainable_variables if len(v.shape) == 4]
        assert len(kernels) == 1 + 2 * 16 + 3

    @pytest.mark.parametrize(
        ("batch_norm", "shape"),
        covering(1, config.CHOICES["batch_norm"], [(8, 8, 1), (32, 32, 3)]),
    )
    def test_small_ones(self, batch_norm, shape):
        model = ResNet(18, width=4, batch_norm=batch_norm)
        images = tf.random.normal([3, *shape])
        assert model(images, training=True).shape == (3, 10)
        count = sum(int(np.prod(v.shape)) for v in model.trainable_variables)
        assert count == hand_count((2, 2, 2, 2), 4, shape[-1])
        # Four stages, each but the first halving the image.
        assert model.blocks[-1].conv_2.kernel.shape == (3, 3, 32, 32)
        assert [b.project is not None for b in model.blocks] == [
            False, False, True, False, True, False, True, False,
        ]  # fmt: skip

    def test_moving_free_chooses_its_statistics(self):
        tf.config.run_functions_eagerly(True)
        model = ResNet(18, width=4, batch_norm="moving_free")
        images = tf.random.normal([20, 8, 8, 1])
        moving = model(images, training=False)
        swa_tf.refit_batch_norm(model, [images])
        again = model(images, training=False)
        np.testing.assert_array_equal(moving, again)
        refit = model(images, training=False, use_moving_statistics=False)
        # Over the batch that they were computed from, the statistics are
        # those of the batch: the network does what it does in training.
        batch = model(images, training=True)
        np.testing.assert_allclose(refit, batch, atol=1e-3)
        assert not np.allclose(refit, moving, atol=1e-1)


class TestFlags:
    @pytest.mark.parametrize(
        ("given", "message"),
        [
            ({"epochs": 0}, "`--epochs` must be >= 1. Received: --epochs=0"),
            ({"epochs": 3, "epochs_before_swa": 3}, "`--epochs_before_swa`"),
            ({"epochs_before_swa": -1}, "`--epochs_before_swa` must be >= 0"),
            ({"width": 0}, "`--width`"),
            ({"batch_size": -5}, "`--batch_size`"),
            ({"refit_samples": 0}, "`--refit_samples`"),
            ({"max_samples": 0}, "`--max_samples`"),
            ({"seed": -1}, "`--seed`"),
            ({"seed": 2**31}, "`--seed`"),
            ({"learning_rate": 0.0}, "`--learning_rate`"),
            ({"learning_rate": float("nan")}, "`--learning_rate`"),
            ({"swa_learning_rate": float("inf")}, "`--swa_learning_rate`"),
            ({"weight_decay": 1.0}, "`--weight_decay`"),
            ({"weight_decay": -0.1}, "`--weight_decay`"),
            ({"batch_norm_momentum": 1.0}, "`--batch_norm_momentum`"),
            ({"resnet_size": 50}, "`--resnet_size` must be one of 18, 34"),
            ({"distribution": "tpu"}, "`--distribution` must be one of none,"),
            ({"num_replicas": 2}, "without `--distribution=mirrored`"),
            (
                {"distribution": "mirrored", "num_replicas": 3},
                "`--batch_size` must be a multiple of `--num_replicas`",
            ),
            ({"optimizer": "sgd"}, "`--optimizer` must be one of momentum,"),
            ({"preset": "big"}, "`--preset` must be one of digits,"),
            ({"data_dir": "."}, "`--data_dir` must be left out"),
            (
                {"dataset": "cifar10", "data_dir": "/no/such"},
                "`--data_dir` must be an existing directory. "
                "Received: --data_dir=/no/such",
            ),
        ],
    )
    def test_mistakes_are_named(self, given, message):
        with pytest.raises(BenchmarkError) as raised:
            config.resolve(given)
        assert message in str(raised.value)

    def test_flags_override_the_preset(self):
        resolved = config.resolve({"preset": "paper", "epochs": 150})
        assert resolved.epochs == 150
        assert (resolved.width, resolved.resnet_size) == (64, 34)
        assert (resolved.learning_rate, resolved.swa_learning_rate) == (
            0.1,
            0.001,
        )
        assert resolved.optimizer == "momentumw"
        assert resolved.weight_decay == 1e-4
        assert (resolved.epochs_before_swa, resolved.batch_size) == (100, 128)

    def test_dataset_chooses_the_preset(self):
        assert config.resolve({}).preset == "digits"
        small = config.resolve({"dataset": "cifar10"})
        assert (small.preset, small.width, small.resnet_size) == (
            "small",
            8,
            34,
        )

    def test_every_setting_is_a_flag(self):
        assert set(config.FLAGS) <= set(flags.FLAGS)


class TestTraining:
    def test_published_plan(self):
        settings = config.resolve({"epochs": 10, "epochs_before_swa": 5})
        rate = training.learning_rate(settings, steps=100)
        high, low = settings.learning_rate, settings.swa_learning_rate
        for step, wanted in ((0, high), (499, high), (900, low), (999, low)):
            assert float(rate(step)) == pytest.approx(wanted)
        assert float(rate(700)) == pytest.approx((high + low) / 2)

    def test_constant(self):
        settings = config.resolve({"strategy": "constant"})
        rate = training.learning_rate(settings, steps=100)
        assert rate == settings.learning_rate

    @pytest.mark.parametrize("optimizer", ["momentumw", "adamw"])
    @pytest.mark.parametrize("on", config.CHOICES["weight_decay_on"])
    def test_decoupled_decay(self, optimizer, on):
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
    def test_l2_decay(self, on):
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
            ("stock", "adamw"),
            exhaustive("stock", "momentumw"),
            exhaustive("moving_free", "momentum"),
        ],
    )
    def test_checkpoint_holds_everything(self, tmp_path, batch_norm, optimizer):
        tf.config.run_functions_eagerly(True)
        settings = config.resolve(
            {
                **TINY,
                "batch_norm": batch_norm,
                "optimizer": optimizer,
                "batch_size": 240,
                "width": 1,
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
            **given,
        }
    )
    tf.keras.utils.set_random_seed(0)
    trainer = training.Trainer(settings, data.load(settings))
    before = [np.array(v) for v in trainer.model.trainable_variables]
    trainer.train_epoch(1)
    return before, [np.array(v) for v in trainer.model.trainable_variables]


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
    figures = evaluator({"test": batches})["test"]
    assert list(figures) == list(evaluation.WAYS)
    for old, variable in zip(before, model.variables):
        np.testing.assert_array_equal(old, np.array(variable))
    assert len({f["loss"] for f in figures.values()}) == 4

    def by_hand():
        logits = np.concatenate(
            [model(images, training=False) for images, _ in batches]
        ).astype(np.float64)
        right = np.mean(logits.argmax(axis=1) == splits.test.labels)
        shifted = logits - logits.max(axis=1, keepdims=True)
        log_p = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
        loss = -np.mean(log_p[np.arange(len(logits)), splits.test.labels])
        return {
            "accuracy": pytest.approx(100.0 * right),
            "loss": pytest.approx(loss, rel=1e-4),
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
