"""`AveragedModelCheckpoint`: files of the averaged model in `fit`."""

import copy
import warnings

import numpy as np
import pytest
import tensorflow as tf

import swa_tf
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
EACH = "{epoch:02d}.weights.h5"


def checkpoint(swa, path, name=EACH, **arguments):
    settings = {"save_weights_only": name.endswith(".weights.h5"), **arguments}
    return swa_tf.AveragedModelCheckpoint(swa, path / name, **settings)


def loss_of(path, make=make_model):
    """The loss of a file, computed as `fit` validates."""
    if path.name.endswith(".weights.h5"):
        model = make()
        model.load_weights(path)
    else:
        model = tf.keras.models.load_model(path)
        model.run_eagerly = True
    return model.evaluate(X, Y, batch_size=len(X), verbose=0)


def names(path):
    return sorted(each.name for each in path.iterdir())


class Figures(keras_callbacks.Callback):
    """Logs figures of our own as those of the averages."""

    def __init__(self, *figures):
        super().__init__()
        self._figures = figures

    def on_epoch_end(self, epoch, logs=None):
        logs["swa_val_loss"] = self._figures[epoch]


# --- What is written --------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "evaluate"),
    [
        (EACH, "both"),
        slow("{epoch:02d}.keras", "averaged"),
        exhaustive("{epoch:02d}.h5", "both"),
    ],
)
@pytest.mark.parametrize("swa_first", [True, exhaustive(False)])
def test_each_file_has_the_figure_that_was_logged(
    name, evaluate, swa_first, tmp_path
):
    """To the last digit, and the refit of the validation is not done again."""
    reads = []

    class Data:
        def __iter__(self):
            reads.append(1)
            return iter(fitting.data())

    swa = callback(1, evaluate=evaluate, refit_data=Data())
    keeps = checkpoint(swa, tmp_path, name)
    callbacks = [swa, keeps] if swa_first else [keeps, swa]
    history = fit(make_model(), *callbacks, epochs=3).history
    assert names(tmp_path) == [name.format(epoch=e) for e in (2, 3)]
    found = [loss_of(tmp_path / each) for each in names(tmp_path)]
    assert found == history["swa_val_loss"][1:]
    assert len(reads) == 2


def test_training_goes_on_as_without_it(tmp_path):
    model, plain = make_plain(), make_plain()
    swa = callback(0, final_weights="trained", refit_data=None)
    fit(model, checkpoint(swa, tmp_path), swa, epochs=2)
    fit(plain, epochs=2)
    assert_same(weights(model), weights(plain))
    own = {"save", "save_weights", "evaluate", "fit"}
    assert not own & vars(model).keys()


def test_statistics_that_moved_where_there_is_no_refit(tmp_path):
    swa = callback(1, refit_data=None)
    with pytest.warns(UserWarning, match="batch-norm layers"):
        history = fit(
            make_model(), swa, checkpoint(swa, tmp_path), epochs=2
        ).history
    found = [loss_of(tmp_path / each) for each in names(tmp_path)]
    assert found == history["swa_val_loss"][1:]


def test_epochs_without_validation_are_written(tmp_path):
    swa = callback(0, refit_data=None)
    keeps = checkpoint(swa, tmp_path)
    settings = {"epochs": 2, "validation_freq": 2}
    history = fit(make_plain(), keeps, swa, **settings).history
    fitted = fit(make_plain(), callback(0, refit_data=None), epochs=2).history[
        "swa_val_loss"
    ]
    found = [loss_of(tmp_path / each, make_plain) for each in names(tmp_path)]
    assert found == fitted
    assert found[1::2] == history["swa_val_loss"]


@pytest.mark.slow
def test_on_two_replicas(tmp_path):
    """Files and best averages have the figures, on each replica the same."""
    strategy = fitting.two_replicas()
    with strategy.scope():
        model = make_model(run_eagerly=False)
    swa = callback(0, restore_best_averages=True)
    history = fit(model, swa, checkpoint(swa, tmp_path), epochs=3).history
    logged = history["swa_val_loss"]
    found = [loss_of(tmp_path / each) for each in names(tmp_path)]
    np.testing.assert_allclose(found, logged, rtol=1e-6)
    assert model.evaluate(X, Y, batch_size=len(X), verbose=0) == min(logged)
    for variable in map(compat.tf_variable, model.weights):
        first, second = strategy.experimental_local_results(variable)
        np.testing.assert_array_equal(first, second)


# --- Which is the best ------------------------------------------------------


@pytest.mark.parametrize("name", ["best.keras", exhaustive("best.weights.h5")])
@pytest.mark.parametrize("validation_freq", [exhaustive(1), 2])
def test_the_best_by_value(name, validation_freq, tmp_path):
    """An epoch without validation is not compared, on every Keras."""
    swa = callback(1)
    keeps = checkpoint(swa, tmp_path, name, save_best_only=True)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        history = fit(
            make_model(),
            swa,
            keeps,
            epochs=4,
            validation_freq=validation_freq,
        ).history
    said = [str(each.message) for each in caught]
    left_out = [each for each in said if "is not compared" in each]
    assert len(left_out) == validation_freq - 1
    averaged = history["swa_val_loss"][2 - validation_freq :]
    assert loss_of(tmp_path / name) == min(averaged)


@pytest.mark.parametrize(
    ("mode", "figures"),
    [
        ("auto", (0.0, 2.0, 2.0, np.nan, 1.0, 1.0)),
        exhaustive("min", (0.0, np.nan, 2.0, 1.0, 1.0, np.nan)),
        exhaustive("min", (0.0, np.inf, 2.0, -np.inf, 1.0, -np.inf)),
        exhaustive("max", (9.0, 2.0, 2.0, np.nan, 3.0, 3.0)),
    ],
)
def test_ties_and_nan_are_those_of_keras(mode, figures, tmp_path):
    """The same files as Keras's own class has for the same figures."""
    arguments = {"save_best_only": True, "save_weights_only": True}
    for folder in ("own", "keras"):
        (tmp_path / folder).mkdir()
    swa, model = callback(1, refit_data=None), make_plain()
    keeps = checkpoint(swa, tmp_path / "own", mode=mode, **arguments)
    own = keras_callbacks.ModelCheckpoint(
        str(tmp_path / "keras" / EACH),
        "loss" if mode == "auto" else "swa_val_loss",
        mode=mode,
        **arguments,
    )
    settings = {"epochs": len(figures), "validation_data": None}
    fit(model, swa, Figures(*figures), keeps, **settings)
    own.set_model(model)
    for epoch, figure in enumerate(figures[1:], start=1):
        own.on_epoch_begin(epoch)
        own.on_epoch_end(epoch, {own.monitor: figure})
    assert names(tmp_path / "own") == names(tmp_path / "keras")
    assert "01.weights.h5" not in names(tmp_path / "own"), "of no average"


def test_a_metric_whose_direction_keras_knows(tmp_path):
    """`mode="auto"`: of accuracies the highest."""
    model = make_plain()
    model.compile("sgd", "mse", metrics=["accuracy"], run_eagerly=True)
    swa = callback(0, refit_data=None)
    keeps = checkpoint(
        swa,
        tmp_path,
        monitor="swa_val_accuracy",
        save_best_only=True,
    )

    class Accuracies(keras_callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            logs["swa_val_accuracy"] = [0.5, 0.75, 0.25, 0.75][epoch]

    fit(model, swa, Accuracies(), keeps)
    assert names(tmp_path) == ["01.weights.h5", "02.weights.h5"]


# --- After steps ------------------------------------------------------------


@pytest.mark.parametrize(
    ("start", "n_before"),
    [({"start_step": 5}, 1), exhaustive({"start_epoch": 1}, 2)],
)
def test_files_after_steps_are_those_of_keras(start, n_before, tmp_path):
    """Once there are averages; each has the average of that moment."""
    for folder in ("own", "keras"):
        (tmp_path / folder).mkdir()
    name = "{epoch}-{batch}.weights.h5"
    model, swa = (
        make_plain(),
        callback(**{"start_epoch": None, "refit_data": None, **start}),
    )
    own = checkpoint(swa, tmp_path / "own", name, save_freq=3)
    plain = keras_callbacks.ModelCheckpoint(
        str(tmp_path / "keras" / name), save_weights_only=True, save_freq=3
    )
    kernels = {}

    def keep(batch, logs):
        average = swa.averages.average(model.layers[0].kernel)
        kernels[f"{epochs[-1] + 1}-{batch + 1}"] = np.array(average)

    epochs = []
    fit(
        model,
        swa,
        own,
        plain,
        keras_callbacks.LambdaCallback(
            on_epoch_begin=lambda epoch, logs: epochs.append(epoch),
            on_train_batch_end=keep,
        ),
        epochs=3,
        validation_data=None,
    )
    # Steps 3, 6, 9 and 12, of which the first ones have no average.
    assert names(tmp_path / "own") == names(tmp_path / "keras")[n_before:]
    for path in (tmp_path / "own").iterdir():
        loaded = make_plain()
        loaded.load_weights(path)
        expected = kernels[path.name.removesuffix(".weights.h5")]
        np.testing.assert_array_equal(loaded.layers[0].kernel, expected)


def test_statistics_after_steps_that_average_nothing(tmp_path):
    """They belong to the weights of the file, which are not all averaged."""
    model = make_model()
    swa = callback(
        None,
        start_step=0,
        average_period=100,
        variables=model.layers[-1].trainable_variables,
    )
    name = "{epoch}-{batch}.weights.h5"
    keeps = checkpoint(swa, tmp_path, name, save_freq=2)
    fit(model, swa, keeps, epochs=2, validation_data=None)
    for path in tmp_path.iterdir():
        model.load_weights(path)
        dense, norm, _ = model.layers
        inside = np.float64(X) @ dense.kernel.numpy() + dense.bias.numpy()
        np.testing.assert_allclose(norm.moving_mean, inside.mean(0), rtol=1e-4)
        variance = inside.var(0)
        np.testing.assert_allclose(norm.moving_variance, variance, rtol=1e-4)
    assert len(names(tmp_path)) == 4


# --- Where it fails ---------------------------------------------------------


@pytest.mark.parametrize("name", ["best.keras", slow("best.weights.h5")])
def test_a_file_that_cannot_be_written_leaves_all_as_it_was(
    name, tmp_path, monkeypatch
):
    """Neither a half file in place of the last, nor averages in the model."""
    model, plain = make_plain(), make_plain()
    fit(plain, epochs=2)
    path = tmp_path / name
    swa = callback(0, refit_data=None)
    keeps = checkpoint(swa, tmp_path, name)
    method = "save_weights" if "weights" in name else "save"
    write, done = getattr(model, method), []

    def fail(filepath, **arguments):
        write(filepath, **arguments)
        done.append(filepath)
        if len(done) == 2:
            with open(filepath, "r+b") as file:
                file.truncate(9)
            raise OSError("the disk is gone")

    monkeypatch.setitem(vars(model), method, fail)
    with pytest.raises(OSError, match="the disk is gone"):
        fit(model, swa, keeps)
    assert_same(weights(model), weights(plain))
    assert names(tmp_path) == [name]
    assert not swa.averages.swapped
    assert (
        loss_of(path, make_plain) > 0.0
    )  # the file of the first epoch is whole
    assert vars(model)[method] is fail


def test_a_folder_in_the_place_of_a_file(tmp_path):
    (tmp_path / "best.keras").mkdir()
    (tmp_path / "best.keras" / "kept").write_text("1")
    swa = callback(0, refit_data=None)
    with pytest.raises(OSError, match="non-directory filepath"):
        fit(make_plain(), swa, checkpoint(swa, tmp_path, "best.keras"))
    assert (tmp_path / "best.keras" / "kept").read_text() == "1"


@pytest.mark.parametrize(
    ("arguments", "error", "match"),
    [
        ({"swa": "swa"}, TypeError, "`swa_callback` must be the `SWACallback`"),
        (
            {"save_best_only": True, "save_freq": 5},
            ValueError,
            '`save_freq` must be "epoch"',
        ),
        ({"save_freq": "week"}, ValueError, "save_freq"),
    ],
)
def test_bad_arguments(arguments, error, match, tmp_path):
    with pytest.raises(error, match=match):
        checkpoint(**{"swa": callback(0), "path": tmp_path, **arguments})


def test_the_callback_of_another_fit(tmp_path):
    model = make_plain()
    before = weights(model)
    for others in ([], [callback(0)]):
        with pytest.raises(ValueError, match="`swa_callback` must be among"):
            fit(model, checkpoint(callback(0), tmp_path), *others)
    assert_same(weights(model), before)


def test_a_callback_that_validates_no_averages(tmp_path):
    swa = callback(0, evaluate="trained")
    keeps = checkpoint(swa, tmp_path, save_best_only=True)
    with pytest.raises(ValueError, match="must not be 'swa_val_loss'"):
        fit(make_plain(), swa, keeps)


@pytest.mark.parametrize("swa_first", [True, False])
def test_a_callback_that_validates_none_called_by_hand(swa_first, tmp_path):
    swa = callback(0, evaluate="trained")
    keeps = checkpoint(swa, tmp_path, save_best_only=True)
    model = make_plain()
    swa.set_model(model)
    keeps.set_model(model)
    if swa_first:
        swa.on_train_begin()
    with pytest.raises(ValueError, match="must not be 'swa_val_loss'"):
        keeps.on_train_begin()


def test_a_copy_writes_the_averages_of_the_copy(tmp_path):
    """Tuners copy all callbacks, for each trial."""
    swa = callback(0)
    copied = copy.deepcopy([swa, checkpoint(swa, tmp_path)])
    history = fit(make_model(), *copied, epochs=1).history
    found = [loss_of(tmp_path / each) for each in names(tmp_path)]
    assert found == history["swa_val_loss"]
    assert swa.averages is None


@pytest.mark.skipif(compat.KERAS_3, reason="Keras 3 has two formats of files")
@pytest.mark.parametrize("weights_only", [True, slow(False)])
def test_formats_of_tensorflow(weights_only, tmp_path):
    swa = callback(0)
    keeps = checkpoint(swa, tmp_path, "last", save_weights_only=weights_only)
    history = fit(make_model(), swa, keeps, epochs=2).history
    if weights_only:
        model = make_model()
        model.load_weights(tmp_path / "last").expect_partial()
    else:
        model = tf.keras.models.load_model(tmp_path / "last")
        model.run_eagerly = True
    loss = model.evaluate(X, Y, batch_size=len(X), verbose=0)
    assert loss == history["swa_val_loss"][-1]


# --- Resumed ----------------------------------------------------------------


@pytest.mark.parametrize("order", [(0, 1, 2), exhaustive((2, 1, 0))])
def test_the_best_value_is_resumed(order, tmp_path):
    """A worse epoch after the crash does not replace the best file."""

    class StopsError(Exception):
        pass

    def run(stop):
        def crash(epoch, logs):
            if stop and epoch == 3:
                raise StopsError

        swa = callback(0, refit_data=None)
        callbacks = [
            swa,
            checkpoint(swa, tmp_path, "best.keras", save_best_only=True),
            keras_callbacks.BackupAndRestore(str(tmp_path / "backup")),
        ]
        ordered = [callbacks[i] for i in order]
        ordered.insert(1, Figures(3.0, 2.0, 1.0, 1.5, 2.5))
        crashes = keras_callbacks.LambdaCallback(on_epoch_begin=crash)
        settings = {"epochs": 5, "validation_data": None}
        fit(make_plain(), *ordered, crashes, **settings)
        return callbacks[1].best

    with pytest.raises(StopsError):
        run(stop=True)
    before = (tmp_path / "best.keras").read_bytes()
    assert run(stop=False) == 1.0
    assert (tmp_path / "best.keras").read_bytes() == before
