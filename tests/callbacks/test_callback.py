"""SWACallback against the same training in a loop, and by hand."""

import copy
import functools
import warnings

import numpy as np
import pytest
import tensorflow as tf

import swa_tf
from swa_tf.callbacks import resume
from swa_tf.support import compat
from tests import fitting
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


# 1. The same training in a loop.


def loop(model, swa, epochs=fitting.EPOCHS, after_step=None, after_epoch=None):
    for epoch in range(epochs):
        for x, y in fitting.BATCHES:
            model.train_on_batch(x, y)
            if after_step:
                swa.apply(model.trainable_variables)
        if after_epoch and epoch >= 2:
            swa.apply(model.trainable_variables)


@functools.lru_cache
def epochs_loop(mode):
    """The weights after training, and the averaged ones with a refit."""
    model = make_model(**fitting.MODES[mode])
    swa = swa_tf.StochasticWeightAveraging()
    loop(model, swa, after_epoch=True)
    trained = weights(model)
    with swa_tf.averaged_weights(swa, model, refit_data=fitting.data()):
        return trained, weights(model)


@pytest.mark.parametrize(
    ("evaluate", "mode"),
    [
        slow("both", "compiled"),
        ("both", "eager"),
        exhaustive("both", "jit_compile"),
        exhaustive("averaged", "compiled"),
        exhaustive("averaged", "eager"),
        exhaustive("trained", "compiled"),
        exhaustive("trained", "jit_compile"),
    ],
)
def test_epochs_equal_a_loop(evaluate, mode):
    trained, averaged = epochs_loop(mode)
    model, at_the_end = make_model(**fitting.MODES[mode]), []
    record = keras_callbacks.LambdaCallback(
        on_train_end=lambda logs: at_the_end.append(weights(model))
    )
    fit(model, record, callback(evaluate=evaluate))
    assert_same(at_the_end[0], trained)
    assert_same(weights(model), averaged)


def test_trained_weights_are_left_where_asked_for():
    model = make_model()
    fit(model, callback(final_weights="trained"))
    assert_same(weights(model), epochs_loop("eager")[0])


@functools.lru_cache
def steps_loop(mode):
    model = make_model(**fitting.MODES[mode])
    when = swa_tf.AveragingSchedule(start=3, period=2)
    swa = swa_tf.StochasticWeightAveraging(when=when)
    loop(model, swa, after_step=True)
    with swa_tf.averaged_weights(swa, model, refit_data=fitting.data()):
        return weights(model)


@pytest.mark.parametrize(
    "mode", ["compiled", exhaustive("jit_compile"), slow("eager")]
)
@pytest.mark.parametrize("steps_per_execution", [exhaustive(1), 2])
def test_steps_equal_a_loop(mode, steps_per_execution):
    """Averaging step 3, 5, 7, ... inside the compiled train step."""
    model = make_model(
        steps_per_execution=steps_per_execution, **fitting.MODES[mode]
    )
    swa = callback(None, start_step=3, average_period=2)
    fit(model, swa)
    assert int(swa.averages.n_models) == 7  # 3, 5, ..., 15
    assert_same(weights(model), steps_loop(mode))


def test_steps_from_an_epoch_on():
    seen = []
    model = make_plain()
    record = keras_callbacks.LambdaCallback(
        on_train_batch_end=lambda batch, logs: seen.append(
            model.layers[0].kernel.numpy().astype(np.float64)
        )
    )
    swa = callback(2, unit="step", average_period=3)
    fit(model, record, swa, validation_data=None)
    # Epochs 2 and 3 are steps 8 to 15.
    expected = np.mean([seen[i] for i in (8, 11, 14)], axis=0)
    np.testing.assert_allclose(model.layers[0].kernel, expected, rtol=1e-6)


# 2. Worked out by hand.


def test_three_steps_of_sgd():
    """1.0 - 0.1 a step: 0.9, 0.8 and 0.7, on average 0.8."""

    class Scalar(tf.keras.layers.Layer):
        def build(self, input_shape):
            self.w = self.add_weight(name="w", shape=[], initializer="ones")

        def call(self, x):
            return self.w * x

    model = tf.keras.Sequential([tf.keras.Input([1]), Scalar()])
    model.compile(
        tf.keras.optimizers.SGD(1.0),
        lambda y, output: tf.reduce_mean(output),
        jit_compile=False,
    )
    ones = np.full([3, 1], 0.1, np.float32)
    swa = callback(None, start_step=0, refit_data=None, final_weights="trained")
    model.fit(ones, ones, batch_size=1, verbose=0, callbacks=[swa])
    np.testing.assert_allclose(model.layers[0].w, 0.7, rtol=1e-6)
    average = swa.averages.average(model.layers[0].w)
    np.testing.assert_allclose(average, 0.8, rtol=1e-6)


@pytest.mark.parametrize(
    ("start", "period", "expected"),
    [
        (2, 2, 5.0),  # 3, 5 and 7
        exhaustive(0, 1, 4.0),  # all
        exhaustive(0, 3, 4.0),  # 1, 4 and 7
        exhaustive(1, 4, 4.0),  # 2 and 6
        exhaustive(6, 5, 7.0),  # 7
    ],
)
def test_weights_one_to_seven(start, period, expected):
    """Epoch i ends with weight i + 1, which another callback sets."""
    model = make_plain(tf.keras.optimizers.SGD(0.0))
    kernel = model.layers[0].kernel
    set_weight = keras_callbacks.LambdaCallback(
        on_epoch_begin=lambda epoch, logs: kernel.assign(
            tf.fill([4, 5], epoch + 1.0)
        )
    )
    averaging = callback(start, average_period=period)
    fit(model, averaging, set_weight, epochs=7, validation_data=None)
    np.testing.assert_array_equal(kernel, np.full([4, 5], expected))


@pytest.mark.parametrize(
    "suffix", [".keras", slow(".h5"), ".weights.h5", slow("")]
)
@pytest.mark.parametrize("final_weights", ["averaged", exhaustive("trained")])
def test_file_of_the_averaged_model(suffix, final_weights, tmp_path):
    path = tmp_path / f"averaged{suffix}"
    model = make_model()
    swa = callback(
        filepath=path, final_weights=final_weights, evaluate="trained"
    )
    settings = {"epochs": 3, "validation_data": None}
    fit(model, swa, **settings)
    if final_weights == "trained":
        fit(model := make_model(), callback(), **settings)
    expected = model.predict(X, verbose=0)
    if suffix == ".weights.h5":
        loaded = make_model()
        loaded.load_weights(path)
    elif suffix:
        loaded = tf.keras.models.load_model(path, compile=False)
    else:
        loaded = tf.saved_model.load(str(path))
        np.testing.assert_allclose(
            loaded.serve(X), expected, rtol=1e-5, atol=1e-6
        )
        return
    assert_same(loaded.predict(X, verbose=0), expected)
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


def test_a_file_that_cannot_be_written_loses_nothing(tmp_path, monkeypatch):
    path = tmp_path / "averaged.keras"
    path.write_text("what was there")
    model, trained = make_model(), make_model()
    settings = {"epochs": 3, "validation_data": None}
    fit(trained, **settings)
    monkeypatch.setattr(
        type(model), "save", lambda *_: (_ for _ in ()).throw(OSError("full"))
    )
    with pytest.raises(OSError, match="full"):
        fit(model, callback(filepath=path), **settings)
    assert path.read_text() == "what was there"
    assert [p.name for p in tmp_path.iterdir()] == [path.name]
    assert_same(weights(model), weights(trained))


@pytest.mark.parametrize("name", ["run", "run.keras"])
def test_a_folder_of_other_files_is_not_replaced(name, tmp_path):
    """Neither one that is there before, nor one that comes while it trains."""
    path = tmp_path / name
    swa = callback(0, filepath=path, refit_data=None)
    keep = path / "epochs.csv"
    model = tf.keras.Sequential([tf.keras.Input([2]), tf.keras.layers.Dense(1)])
    model.compile("sgd", "mse", run_eagerly=True)

    def write(epoch, logs):
        path.mkdir()
        keep.write_text("1")

    writes = keras_callbacks.LambdaCallback(on_epoch_end=write)
    match = "`filepath` must be no folder of other files.*Received: filepath="
    with pytest.raises(FileExistsError, match=match):
        model.fit(
            np.ones([2, 2]), np.ones([2, 1]), verbose=0, callbacks=[swa, writes]
        )
    with pytest.raises(FileExistsError, match=match):
        callback(0, filepath=path)
    assert keep.read_text() == "1"


def test_manual_mode():
    """A user may call `apply` by hand, here after epochs 1 and 3."""
    swa = swa_tf.StochasticWeightAveraging()
    kernels = []

    class Applies(keras_callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            if epoch in (1, 3):
                swa.apply(self.model.trainable_variables)
                kernels.append(self.model.layers[0].kernel.numpy())

    model = make_plain()
    averaging = callback(None, averages=swa)
    fit(model, Applies(), averaging, validation_data=None)
    expected = np.mean(np.float64(kernels), axis=0)
    np.testing.assert_allclose(model.layers[0].kernel, expected, rtol=1e-6)


def test_manual_mode_of_some_weights():
    model = make_plain()
    last = model.layers[-1].trainable_variables
    swa = swa_tf.StochasticWeightAveraging()
    apply = keras_callbacks.LambdaCallback(
        on_epoch_end=lambda epoch, logs: swa.apply(last)
    )
    averaging = callback(None, averages=swa)
    fit(model, apply, averaging, epochs=3, validation_data=None)
    assert int(swa.n_models) == 3
    np.testing.assert_array_equal(last[0], swa.average(last[0]))


def test_a_copy_of_the_callback_logs_as_well():
    """Tuners copy what they are given, for each trial."""
    copied = copy.deepcopy(callback(1, refit_data=[X]))
    history = fit(make_model(), copied, epochs=3).history
    assert history["swa_val_loss"][2] != history["val_loss"][2]


def test_a_callback_list_of_the_user():
    model = make_plain()
    swa = callback(1)
    callbacks = keras_callbacks.CallbackList(
        [swa], add_history=True, model=model, epochs=3, verbose=0
    )
    model.fit(X, Y, batch_size=8, epochs=3, verbose=0, callbacks=callbacks)
    assert int(swa.averages.n_models) == 2
    kernel = model.layers[0].kernel
    np.testing.assert_array_equal(kernel, swa.averages.average(kernel))


def test_weights_of_another_training_bring_no_average(tmp_path):
    """Weights loaded before a `fit` bring no averages of another training."""
    path = tmp_path / "trained.weights.h5"
    paths = [path] if compat.KERAS_3 else [path, tmp_path / "checkpoint"]
    for path in paths:
        keep = keras_callbacks.ModelCheckpoint(
            str(path), save_weights_only=True
        )
        fit(make_plain(), callback(0), keep, epochs=1, validation_data=None)
        model, swa = make_plain(), callback(1)
        model.load_weights(str(path))
        fit(model, swa, epochs=3, validation_data=None)
        assert int(swa.averages.n_models) == 2


@pytest.mark.parametrize("unit", ["epoch", "step"])
def test_schedule_of_the_average_itself(unit):
    when = swa_tf.AveragingSchedule(start=1, period=2)
    swa = swa_tf.StochasticWeightAveraging(when=when)
    averaging = callback(None, averages=swa, unit=unit)
    fit(make_plain(), averaging, epochs=4, validation_data=None)
    # Epochs 1 and 3; steps 1, 3, ..., 15.
    assert int(swa.n_models) == {"epoch": 2, "step": 8}[unit]


def test_average_given_goes_on_and_average_made_does_not():
    given = swa_tf.StochasticWeightAveraging()
    model = make_plain()
    ends = {"final_weights": "trained"}
    going_on, anew = callback(0, averages=given, **ends), callback(0, **ends)
    first = {"epochs": 2, "validation_data": None}
    second = {"epochs": 3, "initial_epoch": 2, "validation_data": None}
    fit(model, going_on, **first)
    fit(model, going_on, **second)
    assert int(given.n_models) == 3
    assert given.when is None  # as it was given
    fit(model, anew, **first)
    fit(model, anew, **second)
    assert int(anew.averages.n_models) == 1


def test_a_schedule_set_after_the_callback_was_made_is_put_back():
    given = swa_tf.StochasticWeightAveraging()
    made = swa_tf.SWACallback(averages=given, verbose=0)
    given.when = swa_tf.AveragingSchedule(start=2)
    when = given.when
    fit(make_plain(), made, epochs=3, validation_data=None)
    assert given.when is when


def test_an_average_that_cannot_be_restored_leaves_nothing_behind(monkeypatch):
    given = swa_tf.StochasticWeightAveraging()
    model, made = make_model(), callback(averages=given)

    def fail(saved, average):
        raise ValueError("of another model")

    monkeypatch.setattr(resume.SavedAverage, "attach", fail)
    with pytest.raises(ValueError, match="of another model"):
        fit(model, made)
    assert given.when is None
    assert not hasattr(model, "swa_tf_average")


def test_a_layer_unfrozen_in_training_waits_for_the_next_compile():
    """As in Keras, a compiled step goes on training a layer frozen later."""
    model = make_plain()
    model.layers[0].trainable = False
    model.compile("sgd", "mse", jit_compile=False)
    kernel = model.layers[0].kernel.numpy()
    unfreeze = keras_callbacks.LambdaCallback(
        on_epoch_end=lambda epoch, logs: setattr(
            model.layers[0], "trainable", True
        )
    )
    swa = callback(0)
    fit(model, unfreeze, swa, epochs=3, validation_data=None)
    assert int(swa.averages.n_models) == 3
    np.testing.assert_array_equal(model.layers[0].kernel, kernel)


class Subclassed(tf.keras.Model):
    def __init__(self):
        super().__init__()
        self.dense = tf.keras.layers.Dense(1)

    def call(self, inputs):
        return self.dense(inputs)


@pytest.mark.filterwarnings("ignore:`build..` was called on layer")
@pytest.mark.parametrize("variables", ["trainable", "floating"])
def test_a_model_that_was_built_but_not_called(variables):
    """In Keras 3 it has no weights yet."""
    model = Subclassed()
    model.build([None, 4])
    model.compile("sgd", "mse", run_eagerly=True)
    trained = []
    keep = keras_callbacks.LambdaCallback(
        on_epoch_end=lambda epoch, logs: trained.append(weights(model))
    )
    fit(model, keep, callback(1, variables=variables), epochs=3)
    for found, *values in zip(weights(model), *trained[1:]):
        np.testing.assert_allclose(found, np.mean(values, axis=0), rtol=1e-6)


def test_nothing_averaged():
    model, trained = make_model(), make_model()
    fit(trained, epochs=2)
    why = "averaged nothing, as training ended before the first epoch that is"
    with pytest.warns(UserWarning, match=why):
        fit(model, callback(2), epochs=2)
    assert_same(weights(model), weights(trained))


def test_batch_norm_without_data_warns():
    with pytest.warns(UserWarning, match="`refit_data`"):
        fit(
            make_model(),
            callback(refit_data=None),
            epochs=1,
            validation_data=None,
        )


def test_what_it_prints(capsys, tmp_path):
    path = tmp_path / "averaged.weights.h5"
    averaging = callback(1, verbose=1, filepath=path)
    fit(make_plain(), averaging, epochs=3, validation_data=None)
    printed = capsys.readouterr().out
    assert printed.split("\n\n") == [
        "\nEpoch 2: averaged 1 model(s)",
        "Epoch 3: averaged 2 model(s)",
        f"The averaged model is in {path}",
        "The model is the average of 2 model(s)\n",
    ]


def test_two_callbacks_raise():
    one = callback()
    for callbacks in ([one, callback()], [one, one]):
        with pytest.raises(ValueError, match="one `SWACallback`"):
            fit(make_model(), *callbacks)


def test_weights_that_are_not_finite_are_not_averaged():
    diverge = keras_callbacks.LambdaCallback(
        on_epoch_begin=lambda epoch, logs: (
            model.layers[0].kernel.assign(tf.fill([4, 5], np.inf))
            if epoch == 3
            else None
        )
    )
    stop = keras_callbacks.TerminateOnNaN()
    model, swa = make_model(), callback(0)
    with pytest.warns(UserWarning, match="Epoch 4 is not averaged"):
        fit(model, diverge, stop, swa, validation_data=None)
    assert int(swa.averages.n_models) == 3
    assert all(np.isfinite(w).all() for w in weights(model))


def test_only_weights_that_are_not_finite_were_due():
    """Epochs before `start_epoch` are not said to be left out."""
    model = make_model()
    model.layers[0].kernel.assign(tf.fill([4, 5], np.nan))
    with pytest.warns(UserWarning, match="is not averaged") as warned:
        fit(model, callback(1), epochs=3, validation_data=None)
    found = [str(each.message) for each in warned]
    left_out = [text for text in found if "is not averaged" in text]
    assert [text.split()[1] for text in left_out] == ["2", "3"]
    why = "nothing, as the weights after 2 epoch(s) that were due are not all"
    assert any(why in text for text in found)


def test_averages_of_another_model_raise_before_training():
    other = tf.keras.Sequential([tf.keras.Input([4]), tf.keras.layers.Dense(1)])
    given = swa_tf.StochasticWeightAveraging()
    given.apply(other.trainable_variables)
    model = make_model()
    before = weights(model)
    with pytest.raises(ValueError, match="`var_list` must hold"):
        fit(model, callback(averages=given))
    assert_same(weights(model), before)


@pytest.mark.parametrize(
    ("start", "n_models"),
    [
        exhaustive({"start_epoch": 1}, 3),
        pytest.param({"start_step": 2}, 14, marks=pytest.mark.slow),
    ],
)
def test_distributed(start, n_models):
    """Two replicas see half a batch each, and average the same weights."""
    strategy = fitting.two_replicas()
    with strategy.scope():
        model = make_model()
    kernel, seen = model.layers[0].kernel, []
    record = keras_callbacks.LambdaCallback(
        on_train_batch_end=lambda batch, logs: seen.append(kernel.numpy())
    )
    swa = callback(**{"start_epoch": None, **start})
    fit(model, record, swa, epochs=4, validation_freq=4)
    assert int(swa.averages.n_models) == n_models
    averaged = seen[7::4] if "start_epoch" in start else seen[2:]
    expected = np.mean(np.float64(averaged), axis=0)
    np.testing.assert_allclose(kernel.numpy(), expected, rtol=1e-5)


@pytest.mark.parametrize("evaluate", ["averaged", exhaustive("both")])
def test_a_weight_that_joins_and_is_not_averaged_yet(evaluate):
    """Trained on from there: until each has an average, none is swapped in."""
    model = make_plain()
    frozen = model.layers[0]
    frozen.trainable = False
    model.compile("sgd", "mse", run_eagerly=True)
    ema = swa_tf.ExponentialMovingAverage(0.5, warm_up=1)
    first = callback(0, averages=ema, final_weights="trained")
    fit(model, first, epochs=2, validation_data=None)
    frozen.trainable = True
    model.compile("sgd", "mse", run_eagerly=True)
    with pytest.warns(UserWarning, match="averaged not each weight"):
        history = fit(
            model,
            callback(3, averages=ema, evaluate=evaluate),
            epochs=2,
        ).history
    assert history["swa_val_loss"] == history["val_loss"]
    fit(model, callback(1, averages=ema, evaluate=evaluate), epochs=2)
    np.testing.assert_array_equal(frozen.kernel, ema.average(frozen.kernel))


def test_an_average_of_another_model_that_is_not_finite_is_not_minded():
    model = fitting.make_plain()
    average = swa_tf.ExponentialMovingAverage(0.5)
    average.apply([tf.Variable(float("nan"))])
    with warnings.catch_warnings():
        warnings.filterwarnings("error", ".*finite")
        fitting.fit(model, fitting.callback(0, averages=average), epochs=1)
    expected = average.average(model.trainable_variables[0])
    np.testing.assert_array_equal(model.trainable_variables[0], expected)
