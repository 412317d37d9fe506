"""Small models with a live average, for the tests of `AveragedModel`."""

import functools

import numpy as np
import tensorflow as tf

import swa_tf
from swa_tf.support import model_parts

layers = tf.keras.layers
EMA = functools.partial(swa_tf.ExponentialMovingAverage, 0.75)
SWA = swa_tf.StochasticWeightAveraging
EPSILON = 1e-3
X = np.random.default_rng(0).normal(size=[6, 3]).astype(np.float32)


def make():
    return tf.keras.Sequential(
        [
            layers.Input([3]),
            layers.Dense(2),
            layers.BatchNormalization(epsilon=EPSILON),
        ]
    )


def mirrored(replicas=2):
    devices = [f"/cpu:{i}" for i in range(replicas)]
    return tf.distribute.MirroredStrategy(devices)


def values_of(model):
    return [v.numpy() for v in model_parts.weights(model)]


def some_weights(n, seed=0):
    """Weights of `make`: kernel, bias, gamma, beta, mean, variance."""
    random = np.random.default_rng(seed)
    shapes = [[3, 2], *[[2]] * 5]
    return [
        [random.uniform(0.5, 1.5, s).astype(np.float32) for s in shapes]
        for _ in range(n)
    ]


def outputs(weights, x):
    """Those of `make` in inference mode, in float64."""
    kernel, bias, gamma, beta, mean, variance = map(np.float64, weights)
    z = np.float64(x) @ kernel + bias
    return gamma * (z - mean) / np.sqrt(variance + EPSILON) + beta


def linear():
    return tf.keras.Sequential(
        [layers.Input([3]), layers.Dense(1, use_bias=False)]
    )
