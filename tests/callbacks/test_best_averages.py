"""`SWACallback(restore_best_averages=True)`."""

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

keras_callbacks = tf.keras.callbacks
pytestmark = pytest.mark.usefixtures("quick_to_trace")


def best_callback(start=0, **arguments):
    return callback(start, restore_best_averages=True, **arguments)


def validates_to(model, figures):
    """Makes each validation of averages give the next of these losses."""
    left = iter(figures)

    def evaluate(*args, **kwargs):
        found = type(model).evaluate(model, *args, **kwargs)
        return {**found, "loss": next(left)}

    vars(model)["evaluate"] = evaluate


class Averages(keras_callbacks.Callback):
    """Keeps the averages after each epoch."""

    def __init__(self, swa):
        super().__init__()
        self._swa, self.kernels = swa, []

    def on_epoch_end(self, epoch, logs=None):
        average = self._swa.averages.average(self.model.layers[0].kernel)
        self.kernels.append(average.numpy())


@pytest.mark.parametrize(
    ("start", "arguments"),
    [
        (0, {}),
        (1, {"validation_freq": 2}),
        exhaustive(1, {"evaluate": "averaged"}),
        exhaustive(None, {"start_step": 0, "average_period": 3}),
    ],
)
def test_the_model_evaluates_as_the_best_validation(start, arguments):
    """To the last digit, with the statistics of that epoch."""
    settings = dict(arguments)
    frequency = settings.pop("validation_freq", 1)
    model, swa = make_model(), best_callback(start, **settings)
    # With a rate so high the last average is seldom the best.
    history = fit(model, swa, epochs=4, validation_freq=frequency).history
    first = 0 if frequency == 2 else (start or 0)
    found = model.evaluate(X, Y, batch_size=len(X), verbose=0)
    assert found == min(history["swa_val_loss"][first:])


@pytest.mark.parametrize(
    ("mode", "figures", "best"),
    [
        ("min", (0.0, 2.0, 1.0, np.nan, 1.0), 2),
        exhaustive("max", (9.0, 2.0, 3.0, np.nan, 3.0), 2),
        ("auto", (0.0, np.nan, 1.0, 0.5, 0.5), 3),
    ],
)
def test_ties_and_nan(mode, figures, best):
    """The first of equals; NaN is no best; nor is what is no average."""
    model = make_plain()
    swa = best_callback(1, mode=mode, refit_data=None, evaluate="averaged")
    validates_to(model, figures)
    averages = Averages(swa)
    fit(model, swa, averages, epochs=len(figures))
    np.testing.assert_array_equal(
        model.layers[0].kernel, averages.kernels[best]
    )


def test_weights_of_layers_that_are_not_averaged_are_those_of_that_epoch():
    """As is all else that the validation saw: moving statistics too."""
    model = make_model()
    swa = best_callback(
        variables=lambda model: model.layers[-1].trainable_variables,
        refit_data=None,
    )
    seen = []

    class Keeps(keras_callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            seen.append(weights(self.model))

    with pytest.warns(UserWarning, match="batch-norm layers"):
        history = fit(model, swa, Keeps(), epochs=4).history
    best = int(np.argmin(history["swa_val_loss"]))
    n_last = len(model.layers[-1].weights)
    assert_same(weights(model)[:-n_last], seen[best][:-n_last])
    found = model.evaluate(X, Y, batch_size=len(X), verbose=0)
    assert found == history["swa_val_loss"][best]


def test_a_training_that_diverges_ends_with_its_best_averages():
    model, swa = make_plain(), best_callback(unit="step", refit_data=None)

    def diverge(epoch, logs):
        if epoch == 3:
            model.layers[0].kernel.assign(tf.fill([4, 5], np.nan))

    broken = keras_callbacks.LambdaCallback(on_epoch_begin=diverge)
    with pytest.warns(UserWarning, match="not all finite"):
        history = fit(model, swa, broken).history
    assert np.isnan(history["swa_val_loss"][3])
    found = model.evaluate(X, Y, batch_size=len(X), verbose=0)
    assert found == np.nanmin(history["swa_val_loss"])


def test_the_file_and_the_trained_weights(tmp_path):
    path = tmp_path / "best.weights.h5"
    model, plain = make_model(), make_model()
    swa = best_callback(filepath=path, final_weights="trained")
    history = fit(model, swa, epochs=3).history
    fit(plain, epochs=3)
    assert_same(weights(model), weights(plain))
    model.load_weights(path)
    found = model.evaluate(X, Y, batch_size=len(X), verbose=0)
    assert found == min(history["swa_val_loss"])


def test_without_validation_the_last_averages_stay():
    model, plain = make_plain(), make_plain()
    with pytest.warns(UserWarning, match="no validation gave swa_val_"):
        fit(
            model,
            best_callback(refit_data=None),
            validation_data=None,
            epochs=2,
        )
    fit(plain, callback(0, refit_data=None), validation_data=None, epochs=2)
    assert_same(weights(model), weights(plain))


def test_a_validation_before_the_first_epoch_is_not_compared():
    """In a loop of the user's that calls the callbacks, in the manual mode."""
    model = make_plain()
    averages = swa_tf.StochasticWeightAveraging()
    swa = best_callback(None, averages=averages, refit_data=None)
    callbacks = keras_callbacks.CallbackList([swa], model=model, epochs=1)
    callbacks.on_train_begin()
    averages.apply(model.trainable_variables)
    model.evaluate(X, Y, verbose=0, callbacks=callbacks, return_dict=True)
    with pytest.warns(UserWarning, match="no validation gave swa_val_"):
        callbacks.on_train_end()


@pytest.mark.parametrize("start", [0, 5])
def test_a_figure_that_is_not_there_raises_after_the_first_epoch(start):
    """Also where no averages are there yet: the figures have those names."""
    swa = best_callback(start, monitor="swa_val_los", refit_data=None)
    match = "`monitor` must be one of swa_val_loss. Received: monitor='swa_val_"
    with pytest.raises(ValueError, match=match):
        fit(make_plain(), swa, epochs=1)


@pytest.mark.parametrize(
    ("arguments", "error", "match"),
    [
        ({"restore_best_averages": 1}, TypeError, "must be True or False"),
        ({"monitor": "val_loss"}, ValueError, "`monitor` must be the name of"),
        ({"mode": "low"}, ValueError, "`mode` must be"),
        ({"evaluate": "trained"}, ValueError, "`evaluate` must be"),
        ({"final_weights": "trained"}, ValueError, "`final_weights` must be"),
    ],
)
def test_bad_arguments(arguments, error, match):
    with pytest.raises(error, match=match):
        swa_tf.SWACallback(1, **{"restore_best_averages": True, **arguments})


def test_what_it_prints(capsys):
    model, swa = make_plain(), best_callback(refit_data=None, verbose=1)
    history = fit(model, swa).history
    best = int(np.argmin(history["swa_val_loss"])) + 1
    said = f"The model is the average that did best, in epoch {best}\n"
    assert capsys.readouterr().out.endswith(said)


# --- Resumed ----------------------------------------------------------------


@pytest.mark.parametrize(
    ("dtype", "swa_first"),
    [("float32", True), slow("bfloat16", True), exhaustive("float32", False)],
)
def test_resumed_equals_uninterrupted(dtype, swa_first, tmp_path):
    """The best averages are of before the crash, and come back with it."""

    class StopsError(Exception):
        pass

    def run(first=0, crashes=False, backs_up=True):
        tf.keras.mixed_precision.set_global_policy(dtype)
        model, swa = make_model(), best_callback(0, evaluate="averaged")
        validates_to(model, [2.0, 1.0, 3.0, 4.0][first:])

        def crash(epoch, logs):
            if crashes and epoch == 3:
                raise StopsError

        path = str(tmp_path / "backup")
        backup = [keras_callbacks.BackupAndRestore(path)] if backs_up else []
        order = [swa, *backup] if swa_first else [*backup, swa]
        stop = keras_callbacks.LambdaCallback(on_epoch_begin=crash)
        fit(model, *order, stop)
        return weights(model)

    expected = run(backs_up=False)
    with pytest.raises(StopsError):
        run(crashes=True)
    assert_same(run(first=3), expected)
