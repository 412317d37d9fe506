"""SWACallback in trainings that are interrupted, watched and resumed."""

import collections
import functools

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


class Raises(keras_callbacks.Callback):
    """Raises in the hook that it is told, at the given count of it."""

    def __init__(self, hook, error=KeyboardInterrupt, count=1):
        super().__init__()

        def fail(*args, **kwargs):
            self.left -= 1
            if self.left == 0:
                raise error(hook)

        self.left = count
        setattr(self, hook, fail)

    def _implements_train_batch_hooks(self):  # Keras 2 looks at the class
        return True

    _implements_test_batch_hooks = _implements_train_batch_hooks


# 3. Interrupted.

HOOKS = [
    "on_train_begin",
    "on_epoch_begin",
    "on_train_batch_begin",
    "on_train_batch_end",
    "on_test_begin",
    "on_test_batch_begin",
    "on_test_batch_end",
    "on_test_end",
    "on_epoch_end",
    "on_train_end",
]


def count_of(hook):
    """Returns the call to interrupt: in epoch 1 if the hook has one there."""
    if hook in ("on_train_begin", "on_train_end"):
        return 1
    return (fitting.N_BATCHES if "train_batch" in hook else 1) + 1


class Keeps(keras_callbacks.Callback):
    """Keeps the weights at the calls that `count_of` counts."""

    def __init__(self):
        super().__init__()
        self.kept = {}
        for hook in HOOKS:
            setattr(self, hook, functools.partial(self._keep, hook))
        self._counts = collections.Counter()

    def _keep(self, hook, *args, **kwargs):
        self._counts[hook] += 1
        if self._counts[hook] == count_of(hook):
            self.kept[hook] = weights(self.model)

    def _implements_train_batch_hooks(self):  # Keras 2 looks at the class
        return True

    _implements_test_batch_hooks = _implements_train_batch_hooks


@functools.lru_cache
def uninterrupted_weights():
    """At each hook, with the loss, of a training with no average."""
    model, keeps = make_model(), Keeps()
    fit(model, keeps, epochs=2)
    found = {}
    for hook, trained in keeps.kept.items():
        model.set_weights(trained)
        found[hook] = trained, model.evaluate(X, Y, verbose=0)
    return found


@pytest.mark.parametrize(
    ("evaluate", "swa_first"),
    [
        ("both", True),
        exhaustive("both", False),
        exhaustive("averaged", True),
    ],
)
@pytest.mark.parametrize("hook", HOOKS)
def test_an_interrupt_leaves_the_trained_weights(hook, evaluate, swa_first):
    trained, loss = uninterrupted_weights()[hook]
    model = make_model()
    raises = Raises(hook, count=count_of(hook))
    callbacks = [callback(0, evaluate=evaluate), raises]
    with pytest.raises(KeyboardInterrupt):
        fit(model, *(callbacks if swa_first else callbacks[::-1]), epochs=2)
    assert_same(weights(model), trained)
    assert model.evaluate(X, Y, verbose=0) == loss
    assert_same(weights(model), trained)


def test_an_error_in_the_final_refit_leaves_the_trained_weights():
    def broken():
        yield from fitting.data().take(1)
        raise OSError("the disk is gone")

    class Data:
        def __iter__(self):
            return broken()

    model, expected = make_model(), make_model()
    settings = {"epochs": 2, "validation_data": None}
    fit(expected, **settings)
    with pytest.raises(OSError, match="the disk is gone"):
        fit(model, callback(0, refit_data=Data()), **settings)
    assert_same(weights(model), weights(expected))


def test_an_error_at_the_end_of_a_resumed_training_puts_all_back():
    """Here of the last epoch, which was not averaged before its backup."""

    class Broken(swa_tf.StochasticWeightAveraging):
        def apply(self, var_list=None):
            raise OSError("the device is gone")

    model, average = make_plain(), Broken()
    swa = callback(0, averages=average)
    swa.set_model(model)
    swa.set_params({"epochs": 1})
    swa.on_train_begin()
    average.n_calls = 0  # as the backup brings it
    with pytest.raises(OSError, match="the device is gone"):
        swa.on_train_end()
    assert not {"evaluate", "fit", "swa_tf_average"} & vars(model).keys()
    assert average.when is None


def test_callbacks_that_the_user_calls_for_no_epoch():
    """And without `set_params`."""
    model, swa = make_plain(), callback(0)
    swa.set_model(model)
    swa.on_train_begin()
    with pytest.warns(UserWarning, match="averaged nothing"):
        swa.on_train_end()
    assert not {"evaluate", "fit", "swa_tf_average"} & vars(model).keys()


def test_the_next_fit_puts_back_what_an_interrupt_left():
    model = make_plain()
    swa = callback(None, start_step=0)
    with pytest.raises(KeyboardInterrupt):
        raises = Raises("on_train_batch_end", count=6)
        fit(model, swa, raises, validation_data=None)
    n_models = int(swa.averages.n_models)
    assert n_models > 0
    model.train_on_batch(X, Y)
    fit(model, epochs=1, validation_data=None)
    assert int(swa.averages.n_models) == n_models
    own = {"evaluate", "fit", "train_on_batch", "train_step"}
    assert not (own | {"swa_tf_average"}) & vars(model).keys()


def test_train_on_batch_by_the_user_is_no_step_of_fit():
    model = make_plain()
    swa = callback(None, start_step=0)
    trains = keras_callbacks.LambdaCallback(
        on_epoch_end=lambda epoch, logs: model.train_on_batch(X, Y)
    )
    fit(model, swa, trains, epochs=2, validation_data=None)
    assert int(swa.averages.n_models) == 2 * fitting.N_BATCHES


def test_the_users_own_methods_are_used_and_put_back():
    """Functions that a user has set on the model itself stay set."""
    model = make_plain(run_eagerly=True)
    called = collections.Counter()

    def watched(name):
        method = getattr(model, name)

        def watching(*args, **kwargs):
            called[name] += 1
            return method(*args, **kwargs)

        return watching

    names = ["evaluate", "fit", "train_on_batch", "train_step"]
    own = {name: watched(name) for name in names}
    for name, method in own.items():
        setattr(model, name, method)
    swa = callback(None, start_step=0)
    trains = keras_callbacks.LambdaCallback(
        on_epoch_end=lambda epoch, logs: model.train_on_batch(X, Y)
    )
    fit(model, swa, trains, epochs=2)
    assert {name: vars(model)[name] for name in names} == own
    assert int(swa.averages.n_models) == 2 * fitting.N_BATCHES
    assert called == {
        "evaluate": 2 * 2,  # of the trained and of the averaged model
        "fit": 1,
        "train_on_batch": 2,
        "train_step": 2 * fitting.N_BATCHES + 2,
    }


def test_weights_loaded_in_training_bring_no_average(tmp_path):
    """Weights loaded in `fit`, as by a callback that restores the best."""
    path = str(tmp_path / "kept.weights.h5")

    class GoesBack(keras_callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            if epoch == 0:
                self.model.save_weights(path)
            if epoch == 2:
                self.model.load_weights(path)

    swa = callback(0)
    fit(make_plain(), swa, GoesBack(), epochs=4, validation_data=None)
    assert int(swa.averages.n_models) == 4


def test_a_history_used_again_after_an_interrupt():
    model, history = make_plain(), keras_callbacks.History()
    with pytest.raises(KeyboardInterrupt):
        raises = Raises("on_epoch_end", count=2)
        fit(model, callback(0), raises, history, validation_data=None)
    trained = make_plain()
    trained.set_weights(model.get_weights())
    for each in (model, trained):
        each.compile("sgd", "mse", run_eagerly=True)
    fit(model, history, epochs=1, validation_data=None)
    fit(trained, epochs=1, validation_data=None)
    assert_same(weights(model), weights(trained))


def test_evaluate_with_the_callback_itself_changes_nothing():
    model, swa = make_plain(), callback(0)
    fit(model, swa, epochs=1, validation_data=None)
    averages = swa.averages
    model.evaluate(X, Y, verbose=0, callbacks=[swa])
    model.predict(X, verbose=0, callbacks=[swa])
    assert swa.averages is averages
    assert "swa_tf_average" not in vars(model)


def test_predict_by_the_user_is_of_the_trained_weights():
    """The weights are those of the same training without a callback."""

    class Predicts(keras_callbacks.Callback):
        def __init__(self):
            super().__init__()
            self.predictions = []

        def on_epoch_end(self, epoch, logs=None):
            self._keep()

        def on_test_begin(self, logs=None):
            self._keep()

        def on_test_end(self, logs=None):
            self._keep()

        def on_train_end(self, logs=None):
            self._keep()

        def _keep(self):
            self.predictions.append(self.model.predict(X, verbose=0))

    plain, averaged = Predicts(), Predicts()
    fit(make_plain(), plain, epochs=2)
    model = make_plain()
    swa = callback(0)
    fit(model, swa, averaged, epochs=2)
    assert_same(averaged.predictions, plain.predictions)
    # After the training, of the averaged model.
    assert not np.array_equal(
        model.predict(X, verbose=0), plain.predictions[-1]
    )
    kernel = model.layers[0].kernel
    np.testing.assert_array_equal(kernel, swa.averages.average(kernel))


def test_evaluate_by_the_user_is_of_the_trained_weights():
    found = []

    class Evaluates(keras_callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            loss = self.model.evaluate(X, Y, batch_size=len(X), verbose=0)
            found.append((loss, logs["val_loss"], logs["swa_val_loss"]))

    fit(make_plain(), callback(0), Evaluates(), epochs=3)
    for loss, val_loss, _ in found:
        assert loss == val_loss
    assert found[-1][0] != found[-1][2]


# 4. Resumed.

RESUMED_EPOCHS = 4
RESUMED = {
    "epoch": {"start_epoch": 1},
    "exponential": {
        "start_epoch": 1,
        "averages": swa_tf.ExponentialMovingAverage,
    },
    "step": {"start_epoch": None, "start_step": 5, "average_period": 3},
    "step from an epoch": {"unit": "step", "average_period": 3},
}


def resumed_callback(unit, **others):
    arguments = dict(RESUMED[unit])
    if "averages" in arguments:
        arguments["averages"] = arguments["averages"](0.5, warm_up=1)
    return callback(**arguments, **others)


def train_with_backup(unit, path, *others, swa_first=True, **arguments):
    model = make_model()
    swa = resumed_callback(unit, evaluate="trained")
    backup = keras_callbacks.BackupAndRestore(str(path / "backup"))
    order = [swa, backup] if swa_first else [backup, swa]
    fit(model, *order, *others, epochs=RESUMED_EPOCHS, **arguments)
    return int(swa.averages.n_models), weights(model)


@functools.lru_cache
def uninterrupted(unit):
    model, swa = make_model(), resumed_callback(unit)
    fit(model, swa, epochs=RESUMED_EPOCHS, validation_data=None)
    return int(swa.averages.n_models), weights(model)


CRASHES = [
    (1, True, (X, Y)),
    (2, False, None),
    (3, False, (X, Y)),
    (3, True, None),
]
# Of each way to average, and of each crash.
MARKS = {
    ("epoch", 0): pytest.param,
    ("exponential", 1): slow,
    ("epoch", 2): slow,
}


@pytest.mark.parametrize(
    ("unit", "crash", "swa_first", "validation_data"),
    [
        MARKS.get((unit, i), exhaustive)(unit, *crash)
        for i, crash in enumerate(CRASHES)
        for unit in RESUMED
    ],
)
def test_resumed_equals_uninterrupted(
    unit, crash, swa_first, validation_data, tmp_path
):
    settings = {"swa_first": swa_first, "validation_data": validation_data}
    crashing = Raises("on_epoch_begin", RuntimeError, crash + 1)
    with pytest.raises(RuntimeError):
        train_with_backup(unit, tmp_path, crashing, **settings)
    n_models, found = train_with_backup(unit, tmp_path, **settings)
    assert n_models == uninterrupted(unit)[0]
    assert_same(found, uninterrupted(unit)[1])


@pytest.mark.skipif(compat.KERAS_3, reason="it backs up built models only")
def test_resumed_where_fit_builds_the_model(tmp_path):
    """The first backup comes before the first average has its variables."""

    def train(*others, built=False):
        model = tf.keras.Sequential([tf.keras.layers.Dense(1)])
        model.compile("sgd", "mse")
        if built:
            model(X)
        backup = keras_callbacks.BackupAndRestore(str(tmp_path / "backup"))
        swa = callback(0, refit_data=None)
        fit(model, backup, swa, *others, epochs=3, validation_data=None)
        return int(swa.averages.n_models)

    with pytest.raises(RuntimeError):
        train(Raises("on_epoch_begin", RuntimeError, 2))
    assert train(built=True) == 3  # as the error of an unbuilt one says


def test_a_backup_in_manual_mode_builds_nothing(tmp_path):
    """The user averages a part of the variables, later than the backup."""
    model, average = make_model(), swa_tf.StochasticWeightAveraging()

    def apply(epoch, logs):
        if epoch == 2:
            average.apply(model.trainable_variables[:1])

    fit(
        model,
        callback(None, averages=average, refit_data=None),
        keras_callbacks.LambdaCallback(on_epoch_end=apply),
        keras_callbacks.BackupAndRestore(str(tmp_path / "backup")),
        validation_data=None,
    )
    assert (int(average.n_models), len(average.averaged)) == (1, 1)


def test_resumed_after_the_last_epoch(tmp_path):
    """The crash came between the last backup and the end."""
    settings = {"swa_first": False, "validation_data": None}
    crashing = Raises("on_train_end", RuntimeError)
    backup = keras_callbacks.BackupAndRestore(str(tmp_path / "backup"))
    before = [crashing, backup, resumed_callback("epoch")]
    with pytest.raises(RuntimeError):
        fit(make_model(), *before, epochs=RESUMED_EPOCHS, validation_data=None)
    n_models, found = train_with_backup("epoch", tmp_path, **settings)
    assert n_models == uninterrupted("epoch")[0]
    assert_same(found, uninterrupted("epoch")[1])


@pytest.mark.skipif(not compat.KERAS_3, reason="one file of weights and epoch")
@pytest.mark.parametrize("cut_short", [exhaustive(False), True])
def test_a_backup_cut_short_between_its_files_is_said(
    cut_short, tmp_path, recwarn
):
    crashing = Raises("on_epoch_begin", RuntimeError, 4)
    with pytest.raises(RuntimeError):
        train_with_backup("epoch", tmp_path, crashing, validation_data=None)
    if cut_short:
        metadata = tmp_path / "backup" / "training_metadata.json"
        metadata.write_text('{"epoch": 2, "batch": 0}')
    train_with_backup("epoch", tmp_path, validation_data=None)
    said = [
        str(w.message) for w in recwarn if "trained twice" in str(w.message)
    ]
    assert len(said) == cut_short
    if cut_short:
        assert "after epoch 3, and Keras goes on with epoch 3" in said[0]


def test_a_restored_average_is_that_of_each_replica(tmp_path):
    """Each replica has the average restored, not the first alone."""
    suffix = ".weights.h5" if compat.KERAS_3 else ""
    path = str(tmp_path / f"kept{suffix}")
    strategy = tf.distribute.MirroredStrategy(["/cpu:0", "/cpu:1"])
    with strategy.scope():
        model = make_model()
        swa = swa_tf.StochasticWeightAveraging()
    swa.apply(model.trainable_variables)
    saved = resume.SavedAverage(model, lambda: model.trainable_variables)
    saved.attach(swa)
    model.save_weights(path)
    expected = [v.numpy() for v in model.trainable_variables]
    for variable in swa.variables:
        for component in strategy.experimental_local_results(variable):
            component.assign(tf.zeros_like(component))
    model.load_weights(path)
    for variable in swa.variables:
        first, second = strategy.experimental_local_results(variable)
        np.testing.assert_array_equal(first, second)
    assert int(swa.n_models) == 1
    averages = [swa.average(v).numpy() for v in model.trainable_variables]
    assert_same(averages, expected)
