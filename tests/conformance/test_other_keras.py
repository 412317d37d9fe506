"""A model of the Keras that `tf.keras` is not is refused by that name."""

import numpy as np
import pytest
import tensorflow as tf

import swa_tf

OWN = tf.keras.Model.__module__.split(".")[0]
OTHER = {"keras": "tf_keras", "tf_keras": "keras"}[OWN]


@pytest.fixture(scope="module")
def keras():
    return pytest.importorskip(OTHER)


@pytest.fixture
def model(keras):
    made = keras.Sequential(
        [keras.Input([2]), keras.layers.Dense(1)]
        if OTHER == "keras"
        else [keras.layers.Dense(1, input_shape=[2])]
    )
    made.compile("sgd", "mse")
    return made


X = np.ones([4, 2], np.float32)
MATCH = (
    rf"`{{}}` must be of `tf.keras`, which is {OWN} here \(tf_keras if "
    rf"TF_USE_LEGACY_KERAS=1 is set.* of {OTHER}$"
)


def test_fit(model):
    before = model.get_weights()
    with pytest.raises(TypeError, match=MATCH.format("model")):
        model.fit(X, X, verbose=0, callbacks=[swa_tf.SWACallback(0, verbose=0)])
    for a, b in zip(before, model.get_weights()):
        np.testing.assert_array_equal(a, b)


def test_fit_with_files_of_the_averages(model):
    swa = swa_tf.SWACallback(0, verbose=0)
    checkpoint = swa_tf.AveragedModelCheckpoint(swa, "never_written.keras")
    for callbacks in ([checkpoint], [checkpoint, swa]):
        with pytest.raises(TypeError, match=MATCH.format("model")):
            model.fit(X, X, verbose=0, callbacks=callbacks)


def test_refit(model):
    with pytest.raises(TypeError, match=MATCH.format("model")):
        swa_tf.BatchNormRefit(model)
    with pytest.raises(TypeError, match=MATCH.format("model")):
        swa_tf.refit_batch_norm(model, [X])


def test_averaged_weights(model):
    variable = tf.Variable(1.0)
    swa = swa_tf.StochasticWeightAveraging()
    swa.apply([variable])
    with pytest.raises(TypeError, match=MATCH.format("target")):
        swa_tf.averaged_weights(swa, model).__enter__()


def test_a_subclass_of_the_users(keras):
    class Own(keras.Model):
        pass

    with pytest.raises(TypeError, match=MATCH.format("model")):
        swa_tf.BatchNormRefit(Own())


def test_parameters_by_name(model):
    with pytest.raises(TypeError, match=MATCH.format("target")):
        swa_tf.copy_parameters(model)


@pytest.mark.skipif(OTHER == "tf_keras", reason="its are TensorFlow's own")
def test_variables(model):
    with pytest.raises(TypeError, match=MATCH.format("var_list")):
        swa_tf.StochasticWeightAveraging().apply(model.trainable_variables)
