"""Predictions of samples, averaged."""

import numpy as np
import pytest
import rich.console
import tensorflow as tf

import swa_tf
from swa_tf.support import progress
from tests import fitting
from tests.swag.test_sampling import model_and_gaussian

layers = tf.keras.layers
X = fitting.X
SEEDS = [3, 0, 8]


def classifier():
    """A linear model of three classes, and a Gaussian over its weights."""
    model = tf.keras.Sequential([tf.keras.Input([4]), layers.Dense(3)])
    swag = swa_tf.SWAGaussian(2)
    rng = np.random.default_rng(0)
    for _ in range(4):
        model.set_weights([rng.normal(size=w.shape) for w in model.weights])
        swag.apply(model.trainable_variables)
    return model, swag


def softmax(logits):
    exponentials = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return exponentials / exponentials.sum(axis=-1, keepdims=True)


def by_hand(model, swag, scale=0.5):
    """The distributions of each sample, in float64."""
    found = []
    for seed in SEEDS:
        with swa_tf.sampled_weights(swag, model, seed, scale):
            kernel, bias = (v.numpy().astype(np.float64) for v in model.weights)
        found.append(softmax(X.astype(np.float64) @ kernel + bias))
    return np.mean(found, axis=0)


@pytest.mark.parametrize("scale", [0.5, 0.0])
@pytest.mark.parametrize("kind", ["array", "data set"])
def test_averages_distributions(kind, scale):
    model, swag = classifier()
    before = fitting.weights(model)
    x = X if kind == "array" else tf.data.Dataset.from_tensor_slices(X).batch(5)
    found = swa_tf.predict_samples(
        swag, model, x, SEEDS, scale, activation=tf.nn.softmax, verbose=0
    )
    assert found.dtype == np.float64
    np.testing.assert_allclose(found, by_hand(model, swag, scale), atol=1e-6)
    fitting.assert_same(fitting.weights(model), before)


def test_several_outputs():
    inputs = tf.keras.Input([4])
    outputs = {n: layers.Dense(1, name=n)(inputs) for n in ("a", "b")}
    model, swag = tf.keras.Model(inputs, outputs), swa_tf.SWAGaussian(2)
    for value in (1.0, 3.0):
        model.set_weights([np.full(w.shape, value) for w in model.weights])
        swag.apply(model.trainable_variables)
    found = swa_tf.predict_samples(swag, model, X, [1, 2], 0.0, verbose=0)
    expected = 2.0 * X.sum(axis=1, keepdims=True) + 2.0
    assert sorted(found) == ["a", "b"]
    for value in found.values():
        np.testing.assert_allclose(value, expected, rtol=1e-5, atol=1e-5)


def test_refits_each_sample():
    model, swag = model_and_gaussian()
    before = fitting.weights(model)
    found = swa_tf.predict_samples(
        swag, model, X, SEEDS, refit_data=fitting.BATCHES, verbose=0
    )
    expected = []
    for seed in SEEDS:
        with swa_tf.sampled_weights(
            swag, model, seed, refit_data=fitting.BATCHES
        ):
            expected.append(model(X, training=False).numpy())
    expected = np.mean(expected, axis=0, dtype=np.float64)
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    fitting.assert_same(fitting.weights(model), before)


@pytest.mark.parametrize("verbose", [0, 1])
def test_a_bar_on_a_terminal(verbose, monkeypatch, capsys):
    is_terminal = property(lambda console: True)
    monkeypatch.setattr(rich.console.Console, "is_terminal", is_terminal)
    monkeypatch.setattr(progress, "_SECONDS", 0.0)
    monkeypatch.setenv("TERM", "xterm")
    model, swag = classifier()
    swa_tf.predict_samples(swag, model, X, SEEDS, verbose=verbose)
    assert ("predicting" in capsys.readouterr().out) == bool(verbose)


def test_no_bar_elsewhere(capsys):
    model, swag = classifier()
    swa_tf.predict_samples(swag, model, X, SEEDS)
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"seeds": []}, ValueError, "`seeds` must be different integers"),
        ({"seeds": [1, 1]}, ValueError, "`seeds` must be different integers"),
        ({"seeds": 30}, TypeError, r"`seeds` must be integers, such as range"),
        ({"seeds": [1, 0.5]}, ValueError, r"`seeds\[1\]` must be an integer"),
        ({"verbose": "loud"}, ValueError, "`verbose` must be an integer >= 0"),
        ({"model": tf.Module()}, TypeError, "`model` must be a Keras model"),
        ({"x": iter([X])}, TypeError, "`x` must be arrays or a data set"),
        ({"activation": "softmax"}, TypeError, "`activation` must be a func"),
        ({"refit_steps": 1}, ValueError, "`refit_data` must be given with"),
        ({"refit_data": iter([X])}, ValueError, "`refit_steps` must be given"),
        ({"scale": -1.0}, ValueError, "`scale` must be a finite number >= 0"),
    ],
)
def test_wrong_arguments(arguments, error, message):
    model, swag = classifier()
    before = fitting.weights(model)
    settings = {"swag": swag, "model": model, "x": X, "seeds": SEEDS}
    with pytest.raises(error, match=message):
        swa_tf.predict_samples(**{**settings, "verbose": 0, **arguments})
    fitting.assert_same(fitting.weights(model), before)
