"""The logs and the learning rates of a `fit` with `SWACallback`."""

import functools
import itertools

import numpy as np
import pytest
import tensorflow as tf

import swa_tf
from tests.fitting import (
    X,
    Y,
    assert_same,
    callback,
    exhaustive,
    fit,
    make_model,
    make_plain,
    quick_to_trace,  # noqa: F401
    slow,
    weights,
)
from tests.rates import Rates, halves

keras_callbacks = tf.keras.callbacks
pytestmark = pytest.mark.usefixtures("quick_to_trace")


def predicts_at_the_beginning():
    """Returns a callback that predicts: Keras 2 then replaces `History`."""
    predicts = keras_callbacks.Callback()
    predicts.on_train_begin = lambda logs: predicts.model.predict(X, verbose=0)
    return predicts


@pytest.mark.parametrize(
    ("swa_first", "policy"),
    [
        (True, "float32"),
        (False, "mixed_float16"),
        exhaustive(True, "mixed_float16"),
        exhaustive(False, "float32"),
    ],
)
def test_swa_learning_rate_after_a_scheduler(swa_first, policy):
    """The scheduler has its way up to the start, then the constant rate."""
    tf.keras.mixed_precision.set_global_policy(policy)
    rates, scheduler = Rates(), keras_callbacks.LearningRateScheduler(halves)
    swa = callback(2, swa_learning_rate=0.04)
    order = [swa, scheduler] if swa_first else [scheduler, swa]
    first = predicts_at_the_beginning()
    fit(make_plain(), first, *order, rates, validation_data=None)
    assert rates.seen == [0.1, 0.05, 0.04, 0.04]


def test_swa_learning_rate_with_reduce_on_plateau():
    """The plateau halves the rate each epoch: nothing improves by 100."""
    plateau = keras_callbacks.ReduceLROnPlateau(
        "loss", factor=0.5, patience=1, min_delta=100.0
    )
    rates = Rates()
    swa = callback(3, swa_learning_rate=0.04)
    fit(make_plain(), swa, plateau, rates, epochs=5, validation_data=None)
    assert rates.seen == [0.1, 0.1, 0.05, 0.04, 0.04]


@pytest.mark.parametrize(
    "schedule",
    [
        lambda epoch: 0.1 - 0.01 * epoch,
        swa_tf.schedules.LinearRamp(0.1, 0.05, 0, 5),
    ],
    ids=["function", "LinearRamp"],
)
def test_schedule_of_all_epochs(schedule):
    rates = Rates()
    swa = callback(schedule=schedule)
    fit(make_plain(), swa, rates, validation_data=None)
    np.testing.assert_allclose(rates.seen, [0.1, 0.09, 0.08, 0.07], rtol=1e-6)


def test_a_rate_that_cannot_be_set_raises_before_training():
    decay = tf.keras.optimizers.schedules.ExponentialDecay(0.1, 10, 0.9)
    model = make_plain(tf.keras.optimizers.SGD(decay))
    before = weights(model)
    with pytest.raises(ValueError, match=r"SWALearningRate"):
        fit(model, callback(swa_learning_rate=0.01))
    assert_same(weights(model), before)
    # What the error advises.
    rate = swa_tf.schedules.SWALearningRate(decay, 0.01, 8, anneal_steps=4)
    model = make_plain(tf.keras.optimizers.SGD(rate))
    fit(model, callback(), epochs=3, validation_data=None)


def test_logs_are_seen_by_callbacks_before_and_after(tmp_path):
    seen = {}

    def record(name):
        return keras_callbacks.LambdaCallback(
            on_epoch_end=lambda epoch, logs: seen.setdefault(name, []).append(
                dict(logs)
            )
        )

    csv = keras_callbacks.CSVLogger(str(tmp_path / "log.csv"))
    best = keras_callbacks.ModelCheckpoint(
        str(tmp_path / "best.weights.h5"),
        monitor="swa_val_loss",
        mode="min",
        save_best_only=True,
        save_weights_only=True,
    )
    board = keras_callbacks.TensorBoard(str(tmp_path / "board"))
    history = fit(
        make_model(),
        *[csv, record("before"), callback(2), record("after"), best, board],
    ).history
    averaged, trained = history["swa_val_loss"], history["val_loss"]
    for logs in seen.values():
        assert [each["swa_val_loss"] for each in logs] == averaged
    table = np.genfromtxt(tmp_path / "log.csv", delimiter=",", names=True)
    np.testing.assert_allclose(table["swa_val_loss"], averaged)
    assert (tmp_path / "best.weights.h5").exists()
    # Before the first average, the model that `fit` would leave is the trained.
    assert averaged[:2] == trained[:2]
    assert all(a != b for a, b in zip(averaged[2:], trained[2:]))
    boards = [
        tf.compat.v1.train.summary_iterator(str(path))
        for path in (tmp_path / "board" / "train").iterdir()
    ]
    tags = {v.tag for b in boards for event in b for v in event.summary.value}
    assert "epoch_swa_val_loss" in tags


@pytest.mark.parametrize("swa_first", [exhaustive(True), False])
def test_early_stopping_on_the_averaged_model(swa_first):
    """It stops at once, and what it restores is not what is left."""
    stopping = keras_callbacks.EarlyStopping(
        "swa_val_loss", mode="max", patience=0, restore_best_weights=True
    )
    model, swa = make_plain(), callback(0)
    callbacks = [swa, stopping] if swa_first else [stopping, swa]
    history = fit(model, *callbacks, epochs=50).history
    assert len(history["loss"]) < 50
    kernel = model.layers[0].kernel
    np.testing.assert_array_equal(kernel, swa.averages.average(kernel))


@pytest.mark.parametrize("evaluate", ["averaged", "both"])
def test_swa_val_is_of_the_averaged_model(evaluate):
    model = make_model()
    swa = callback(1, evaluate=evaluate)
    history = fit(model, swa, epochs=3).history
    expected = model.evaluate(X, Y, batch_size=len(X), verbose=0)
    assert history["swa_val_loss"][-1] == expected
    same = history["val_loss"][1:] == history["swa_val_loss"][1:]
    assert same == (evaluate == "averaged")


class Sequence(tf.keras.utils.Sequence):
    def __len__(self):
        return 1

    def __getitem__(self, index):
        return X, Y


@functools.lru_cache
def in_one_validation_batch():
    return fit(make_plain(), callback(1), epochs=2).history


@pytest.mark.parametrize(
    "make",
    [Sequence, slow(lambda: ((X, Y) for _ in itertools.count()))],
    ids=["Sequence", "generator"],
)
def test_validation_data_that_comes_in_batches(make):
    """Is what it is as arrays, of which the one batch is made here."""
    expected = in_one_validation_batch()
    found = fit(
        make_plain(),
        callback(1),
        epochs=2,
        validation_data=make(),
        validation_steps=1,
    ).history
    for name in ("val_loss", "swa_val_loss"):
        np.testing.assert_allclose(found[name], expected[name], rtol=1e-6)


def test_validation_in_some_epochs():
    history = fit(make_plain(), callback(), epochs=4, validation_freq=2).history
    assert len(history["swa_val_loss"]) == len(history["val_loss"]) == 2


def test_the_rate_starts_with_the_schedule_of_the_average_itself():
    when = swa_tf.AveragingSchedule(start=2)
    swa = swa_tf.StochasticWeightAveraging(when=when)
    averaging = callback(None, averages=swa, swa_learning_rate=0.04)
    rates = Rates()
    fit(make_plain(), averaging, rates, epochs=4, validation_data=None)
    assert rates.seen == [0.1, 0.1, 0.04, 0.04]
