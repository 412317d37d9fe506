"""Arguments that `SWACallback` refuses, and says so."""

import copy
import pickle

import numpy as np
import pytest
import tensorflow as tf

import swa_tf
from swa_tf.callbacks import arguments
from tests import fitting
from tests.fitting import (
    callback,
    exhaustive,
    fit,
    make_plain,
    quick_to_trace,  # noqa: F401
)
from tests.rates import Rates, halves

keras_callbacks = tf.keras.callbacks
pytestmark = pytest.mark.usefixtures("quick_to_trace")


@pytest.mark.parametrize("rate", [None, "low", -1.0, np.nan])
def test_a_schedule_that_gives_no_rate(rate):
    with pytest.raises(ValueError, match="schedule"):
        fit(make_plain(), callback(schedule=lambda epoch: rate))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "`start_epoch` or `start_step` must be given"),
        ({"start_epoch": -1}, "`start_epoch` must be an integer >= 0.*-1"),
        ({"start_epoch": 1.5}, "`start_epoch` must be an integer >= 0.*1.5"),
        ({"start_epoch": 0.0}, r"or a part of the epochs in \(0, 1\).*0.0"),
        ({"start_epoch": "a"}, r"a part of the epochs in \(0, 1\).*'a'"),
        ({"start_epoch": 1, "verbose": "loud"}, "`verbose` must be an integer"),
        ({"start_epoch": np.nan}, "`start_epoch` must be an integer >= 0.*nan"),
        ({"start_step": True}, "`start_step` must be an integer >= 0.*True"),
        ({"start_epoch": 1, "start_step": 1}, "Only one of"),
        ({"start_step": 1, "unit": "epoch"}, '`start_step` goes with unit="st'),
        ({"start_epoch": 1, "unit": "batch"}, '`unit` must be "epoch" or'),
        ({"start_epoch": 1, "average_period": 0}, "`average_period` must be"),
        ({"start_epoch": 1, "swa_learning_rate": -1.0}, "`swa_learning_rate`"),
        ({"start_step": 1, "swa_learning_rate": 1.0}, "`swa_learning_rate` g"),
        (
            {"start_epoch": 1, "schedule": halves, "swa_learning_rate": 0.1},
            "Only one of `swa_learning_rate` and `schedule`",
        ),
        ({"start_epoch": 1, "evaluate": "swa"}, "`evaluate` must be"),
        ({"start_epoch": 1, "final_weights": "x"}, "`final_weights` must be"),
        ({"start_epoch": 1, "filepath": "a.txt"}, "`filepath` must be a local"),
        ({"start_epoch": 1, "refit_steps": 2}, "`refit_data` must be given"),
        (
            {"start_epoch": 1, "refit_data": fitting.data(), "refit_steps": 0},
            "`refit_steps` must be an",
        ),
        ({"start_epoch": 1, "filepath": "gs://a/b.keras"}, "a local path"),
        ({"start_epoch": 1, "filepath": ""}, "a path that ends in a name"),
        ({"start_epoch": 1, "filepath": "a/.."}, "ends in a name.*'a/..'"),
        ({"start_epoch": 1, "evaluate": np.ones(2)}, "`evaluate` must be"),
        (
            {"start_epoch": 1, "refit_data": []},
            "`refit_data` must hold at least one batch. Received: 0",
        ),
        (
            {"start_epoch": 1, "refit_data": fitting.data(), "refit_steps": 5},
            "`refit_data` must hold `refit_steps`=5 batches. Received: 4",
        ),
        (
            {"start_epoch": 1, "refit_data": iter([fitting.X])},
            "`refit_steps` must be given for a `refit_data` that is used up",
        ),
        (
            {"start_epoch": 1, "refit_data": fitting.data().repeat()},
            "`refit_steps` must be given for a `refit_data` that is infinite",
        ),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        swa_tf.SWACallback(**arguments)


def test_a_path_below_a_file():
    with pytest.raises(NotADirectoryError, match=r"`filepath` .* not below a"):
        swa_tf.SWACallback(start_epoch=1, filepath=f"{__file__}/a.keras")


def test_a_file_for_a_folder_and_a_folder_for_a_file(tmp_path):
    file, folder = tmp_path / "model", tmp_path / "model.keras"
    file.write_text("1")
    folder.mkdir()
    with pytest.raises(FileExistsError, match="`filepath` must be no file: "):
        swa_tf.SWACallback(start_epoch=1, filepath=file)
    with pytest.raises(FileExistsError, match="`filepath` must be no folder"):
        swa_tf.SWACallback(start_epoch=1, filepath=folder)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"averages": [1.0]}, "`averages` must be a `WeightAverage`"),
        ({"schedule": 0.1}, "`schedule` must be a"),
        ({"filepath": 3}, "`filepath` must be a path. Received: filepath=3"),
        ({"refit_data": fitting.X}, "`refit_data` must be a `tf.data.Dataset`"),
    ],
)
def test_arguments_of_another_kind(arguments, message):
    with pytest.raises(TypeError, match=message):
        swa_tf.SWACallback(1, **arguments)


def test_refit_data_that_the_model_does_not_take():
    """They are refused before the training, not at the first average."""
    model = fitting.make_model()
    before = fitting.weights(model)
    one_by_one = tf.data.Dataset.from_tensor_slices((fitting.X, fitting.Y))
    wanted = (
        r"`refit_data` must hold batches of shape \(None, 4\), as "
        r"`.batch\(32\)` makes them. Received: elements of shape \(4,\)"
    )
    with pytest.raises(ValueError, match=wanted):
        fit(model, callback(3, refit_data=one_by_one))
    fitting.assert_same(fitting.weights(model), before)
    fit(model, callback(3))  # nothing of the refused one is left


def frozen():
    model = fitting.make_model()
    model.layers[1].trainable = False
    return model


def of_two_replicas():
    with fitting.two_replicas().scope():
        return fitting.make_model()


def of_a_dictionary():
    inputs = {"x": tf.keras.Input([4], name="x")}
    outputs = fitting.make_model()(inputs["x"])
    return tf.keras.Model(inputs, outputs)


def of_one_feature():
    norm = tf.keras.layers.BatchNormalization()
    return tf.keras.Sequential([tf.keras.Input([1]), norm])


class Subclassed(tf.keras.Model):
    def __init__(self):
        super().__init__()
        self.model = fitting.make_model()

    def call(self, inputs, training=None):
        return self.model(inputs[tf.newaxis], training=training)


def subclassed():
    """A model that takes one sample."""
    model = Subclassed()
    model(fitting.X[0])
    return model


in_one_batch = tf.data.Dataset.from_tensors


@pytest.mark.parametrize(
    ("make", "refit_data"),
    [
        (make_plain, fitting.data().unbatch()),
        (make_plain, in_one_batch((fitting.X,) * 4)),
        (frozen, fitting.data().unbatch()),
        (of_two_replicas, fitting.data()),
        (of_a_dictionary, in_one_batch({"x": fitting.X})),
        (subclassed, fitting.data().unbatch()),
        (fitting.make_model, in_one_batch(fitting.X[..., np.newaxis])),
        (of_one_feature, in_one_batch(fitting.X[:, 0])),
    ],
)
def test_refit_data_that_are_not_refused(make, refit_data):
    """Nor is the model called before the training, which could fail."""
    swa = callback(3, refit_data=refit_data)
    swa.set_model(make())
    swa.set_params({"epochs": 4})
    swa.on_train_begin()


@pytest.mark.parametrize(
    ("part", "epochs", "first"),
    [
        (0.75, 4, 3),
        (0.75, 10, 7),
        (0.29, 100, 29),  # 28.999999999999996 in float64
        (0.07, 100, 7),  # and 7.000000000000001
        (0.999, 3, 2),
        (0.001, 3, 0),
        (np.float32(0.29), 100, 29),  # 0.28999999165534973 in float64
        (7, 3, 7),
    ],
)
def test_a_part_of_the_epochs(part, epochs, first):
    given = (part, None, 1, "epoch", 0.5, None)
    plan = arguments.plan(*given, own=None, epochs=epochs)
    assert plan.start_epoch == plan.when.start == first
    rates = [plan.rate(epoch) for epoch in range(first + 2)]
    assert rates == [None] * first + [0.5] * 2


@pytest.mark.parametrize("unit", [exhaustive("epoch"), "step"])
def test_a_part_of_the_epochs_in_fit(unit):
    """Of each `fit` anew, whose epochs go before the last number."""
    swa = callback(0.5, unit=unit, refit_data=None)
    for epochs, n_models in ((4, 2), (3, 2)):
        fit(make_plain(), swa, epochs=epochs, validation_data=None)
        each = 1 if unit == "epoch" else fitting.N_BATCHES
        assert int(swa.averages.n_models) == n_models * each


def test_a_part_of_no_known_number_of_epochs():
    swa = callback(0.5, refit_data=None)
    swa.set_model(make_plain())
    match = "`start_epoch` must be an integer, since no `set_params"
    with pytest.raises(ValueError, match=match):
        swa.on_train_begin()


def test_pickled_before_fit():
    """With data of NumPy; the copy is as good as the original."""
    swa = callback(1, refit_data=[fitting.X], swa_learning_rate=0.5)
    swa, rates = pickle.loads(pickle.dumps(swa)), Rates()
    fit(make_plain(), swa, rates, epochs=2, validation_data=None)
    assert int(swa.averages.n_models) == 1
    assert rates.seen == [0.1, 0.5]


def test_a_dataset_is_not_pickled():
    """tests/conformance/test_copying.py has a callback after `fit`."""
    swa = callback(0)
    with pytest.raises(TypeError, match="`SWACallback` cannot be pickled with"):
        pickle.dumps(swa)
    copied = copy.copy(swa)
    fit(make_plain(), copied, epochs=1, validation_data=None)
    assert int(copied.averages.n_models) == 1


@pytest.mark.parametrize(
    "arguments", [{"average_period": 5}, {"swa_learning_rate": 0.1}]
)
def test_some_but_not_all_given_warns(arguments):
    """And what was given is ignored: no rate is set, each `apply` averages."""
    swa, model, rates = (
        swa_tf.StochasticWeightAveraging(),
        make_plain(),
        Rates(),
    )
    with pytest.warns(UserWarning, match="manual mode"):
        ignoring = callback(None, averages=swa, **arguments)
    apply = keras_callbacks.LambdaCallback(
        on_epoch_end=lambda epoch, logs: swa.apply(model.trainable_variables)
    )
    fit(model, apply, ignoring, rates, epochs=3, validation_data=None)
    assert rates.seen == [0.1, 0.1, 0.1]
    assert int(swa.n_models) == 3
