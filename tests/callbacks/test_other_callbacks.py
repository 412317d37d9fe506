"""`SWACallback` beside Keras's own callbacks."""

import copy
import csv
import warnings

import numpy as np
import pytest
import tensorflow as tf

import swa_tf
from tests import fitting
from tests.fitting import (
    X,
    Y,
    callback,
    fit,
    make_model,
    make_plain,
    quick_to_trace,  # noqa: F401
)

keras_callbacks = tf.keras.callbacks
pytestmark = pytest.mark.usefixtures("quick_to_trace")


# --- Who keeps weights by a metric of the averages --------------------------


class Checkpoint(keras_callbacks.ModelCheckpoint):
    """A user's subclass, which saves as the class does."""


def checkpoint(path, monitor, cls=keras_callbacks.ModelCheckpoint, best=True):
    return cls(
        str(path / "best.weights.h5"),
        monitor=monitor,
        mode="min",
        save_best_only=best,
        save_weights_only=True,
    )


def stopping(path, monitor, best=True):
    return keras_callbacks.EarlyStopping(
        monitor, mode="min", restore_best_weights=best
    )


class UntrainedError(Exception):
    pass


def never_trains():
    def stop(epoch, logs):
        raise UntrainedError

    return keras_callbacks.LambdaCallback(on_epoch_begin=stop)


@pytest.mark.parametrize("swa_first", [True, False])
@pytest.mark.parametrize(
    ("make", "evaluate", "monitor"),
    [
        (checkpoint, "both", "swa_val_loss"),
        (checkpoint, "averaged", "swa_val_loss"),
        (checkpoint, "averaged", "val_loss"),
        (
            lambda *args: checkpoint(*args, cls=Checkpoint),
            "both",
            "swa_val_accuracy",
        ),
        (stopping, "both", "swa_val_loss"),
        (stopping, "averaged", "val_loss"),
    ],
)
def test_trained_weights_kept_by_a_metric_of_averages(
    make, evaluate, monitor, swa_first, tmp_path
):
    """Are warned of before the first epoch, whatever the order."""
    keeps, swa = make(tmp_path, monitor), callback(1, evaluate=evaluate)
    callbacks = [swa, keeps] if swa_first else [keeps, swa]
    with pytest.warns(UserWarning, match="keeps the trained") as caught:
        with pytest.raises(UntrainedError):
            fit(make_model(), *callbacks, never_trains())
    messages = [str(each.message) for each in caught]
    [message] = [each for each in messages if "keeps the trained" in each]
    name = type(keeps).__name__
    assert message.startswith(f"{name}(monitor='{monitor}', ")
    assert "`AveragedModelCheckpoint` keeps these" in message


def test_no_warning_where_weights_and_metric_agree(tmp_path):
    fine = [
        keras_callbacks.BackupAndRestore(str(tmp_path / "backup")),
        keras_callbacks.ReduceLROnPlateau("swa_val_loss", mode="min"),
        checkpoint(tmp_path, "val_loss"),
        checkpoint(tmp_path, "swa_val_loss", best=False),
        stopping(tmp_path, "val_loss"),
        stopping(tmp_path, "swa_val_loss", best=False),
    ]
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        with pytest.raises(UntrainedError):
            fit(make_model(), callback(1), *fine, never_trains())


def test_a_callback_of_the_users_that_has_a_swa_callback(tmp_path):
    """It is no `AveragedModelCheckpoint`, whose best value is saved."""

    class PrintsAverages(keras_callbacks.Callback):
        def __init__(self, swa):
            super().__init__()
            self.swa_callback = swa

    swa = callback(0)
    backup = keras_callbacks.BackupAndRestore(str(tmp_path / "backup"))
    fit(make_plain(), swa, PrintsAverages(swa), backup, epochs=1)
    assert int(swa.averages.n_models) == 1


# --- Columns ----------------------------------------------------------------


class Logger(keras_callbacks.CSVLogger):
    """A user's subclass."""


@pytest.mark.parametrize(
    ("cls", "swa_first"),
    fitting.covering(1, [keras_callbacks.CSVLogger, Logger], [True, False]),
)
def test_columns_of_a_validation_that_comes_later(cls, swa_first, tmp_path):
    """And that a callback adds to the logs before it, as Keras has them."""
    path = tmp_path / "log.csv"
    logger = cls(str(path))
    adds = keras_callbacks.LambdaCallback(
        on_epoch_end=lambda epoch, logs: logs.update(rate=0.5)
    )
    swa = callback(1)
    callbacks = [swa, adds, logger] if swa_first else [adds, logger, swa]
    history = fit(make_model(), *callbacks, validation_freq=2).history
    with path.open() as file:
        rows = list(csv.DictReader(file))
    for name in ("val_loss", "swa_val_loss"):
        assert [row[name] for row in rows[::2]] == ["NA", "NA"]
        found = [float(row[name]) for row in rows[1::2]]
        np.testing.assert_allclose(found, history[name], rtol=1e-6)
    assert [row["rate"] for row in rows] == ["0.5"] * 4


@pytest.mark.parametrize(
    ("evaluate", "validation_freq", "expected"),
    [
        ("both", 1, {"val_loss", "swa_val_loss"}),
        ("trained", 1, {"val_loss"}),
        ("trained", 2, {"val_loss"}),
    ],
)
def test_no_columns_of_what_is_not_validated(
    evaluate, validation_freq, expected, tmp_path
):
    path = tmp_path / "log.csv"
    logger = keras_callbacks.CSVLogger(str(path))
    swa = callback(0, evaluate=evaluate)
    fit(make_model(), swa, logger, epochs=1, validation_freq=validation_freq)
    with path.open() as file:
        names = csv.DictReader(file).fieldnames
    assert {name for name in names if "val" in name} == expected


def test_columns_of_a_file_that_is_gone_on_with(tmp_path):
    """Have one order, whether or not its first epoch is validated."""
    path, written = tmp_path / "log.csv", []
    for frequency in (1, 2):
        logger = keras_callbacks.CSVLogger(str(path), append=frequency == 2)
        history = fit(
            make_model(),
            callback(0),
            logger,
            epochs=2,
            validation_freq=frequency,
        ).history
        written.append(history["swa_val_loss"][-1])
    with path.open() as file:
        rows = [
            float(row["swa_val_loss"])
            for row in list(csv.DictReader(file))[1::2]
        ]
    np.testing.assert_allclose(rows, written, rtol=1e-6)


# --- Where in the list ------------------------------------------------------


def test_a_history_of_the_users_that_is_not_the_last():
    """The rate is set after every other callback all the same."""
    rates = []

    class Rates(keras_callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            rates.append(float(np.asarray(self.model.optimizer.learning_rate)))

    model = make_model()
    history = keras_callbacks.History()
    swa = callback(1, swa_learning_rate=0.25)
    others = keras_callbacks.LearningRateScheduler(lambda epoch: 0.125)
    fit(model, history, swa, others, Rates(), epochs=2, validation_data=None)
    n = fitting.N_BATCHES
    assert rates == [0.125] * n + [0.25] * n


def test_a_callback_list_of_the_users_has_its_own_callbacks_again():
    model = make_model()
    callbacks = keras_callbacks.CallbackList(
        [callback(0)], add_history=True, model=model, epochs=1, verbose=0
    )
    before = list(callbacks.callbacks)
    model.fit(X, Y, epochs=1, verbose=0, callbacks=callbacks)
    assert callbacks.callbacks == before


def test_callbacks_that_the_user_calls():
    """As in a loop of one's own, without a `CallbackList`."""
    model, swa = make_model(), callback(0, refit_data=None)
    swa.set_model(model)
    swa.set_params({"epochs": 2})
    with pytest.warns(UserWarning, match="batch-norm layers"):
        swa.on_train_begin()
    kernel, kernels = model.layers[0].kernel, []
    for epoch in range(2):
        swa.on_epoch_begin(epoch)
        kernel.assign_add(np.ones([4, 5]))
        kernels.append(kernel.numpy())
        swa.on_epoch_end(epoch)
    swa.on_train_end()
    np.testing.assert_allclose(kernel, np.mean(kernels, axis=0), rtol=1e-6)


# --- Copies -----------------------------------------------------------------


def test_a_copy_shares_data_of_tensorflow():
    data = fitting.data()
    swa = callback(1, refit_data=data, preprocess=lambda x: x)
    copied = copy.deepcopy([swa])[0]
    assert copied is not swa
    history = fit(make_model(), copied, epochs=3).history
    assert history["swa_val_loss"][2] != history["val_loss"][2]
    assert swa.averages is None


def test_a_copy_after_fit_shares_the_model_and_has_its_own_average():
    given = swa_tf.StochasticWeightAveraging()
    model, swa = make_model(), callback(0, averages=given)
    fit(model, swa, epochs=1)
    copied = copy.deepcopy(swa)
    assert copied.model is model
    assert copied.averages is not given
    fit(model, copied, epochs=2)
    assert int(copied.averages.n_models) == 3
    assert int(given.n_models) == 1
