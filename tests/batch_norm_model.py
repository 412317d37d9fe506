"""A model with batch normalization, nested, and the same in float64 numpy."""

import numpy as np
import tensorflow as tf

from tests import properties

N_FEATURES, WIDTH = 3, 4
EPSILON = 1e-3


@tf.keras.utils.register_keras_serializable("swa_tf_tests")
class Nested(tf.keras.layers.Layer):
    """A second dense and batch-norm layer, in a model that is an attribute."""

    def __init__(self, dtype, **kwargs):
        super().__init__(**kwargs)
        self.inner = tf.keras.Sequential(_layers(WIDTH, dtype))

    def call(self, inputs):
        return self.inner(inputs)


def make(dtypes):
    """Two dense layers of these dtypes, a batch-norm layer after each."""
    first, second = dtypes
    return tf.keras.Sequential(
        [
            tf.keras.layers.Input([N_FEATURES]),
            *_layers(None, first),
            Nested(second),
        ]
    )


def _layers(n_inputs, dtype):
    inputs = [] if n_inputs is None else [tf.keras.layers.Input([n_inputs])]
    return [
        *inputs,
        tf.keras.layers.Dense(WIDTH, dtype=dtype),
        tf.keras.layers.BatchNormalization(
            epsilon=EPSILON, dtype=_dtype_of_statistics(dtype)
        ),
    ]


def _dtype_of_statistics(dtype):
    return "float64" if dtype == "float64" else "float32"


def expected(model, batches):
    """Each moving mean and variance as they must be after a refit.

    Pooled over all samples, where each layer is given what the one before makes
    of each batch by the moments of that batch.

    Returns:
        A list of (variable, value, error), the values in float64, and by how
        much rounding can have changed them.
    """
    found = []
    error = 0.0  # of each activation
    for dense, norm in _halves(model):
        kernel, bias, gamma, beta = (
            np.asarray(v.numpy(), np.float64)
            for v in (dense.kernel, dense.bias, norm.gamma, norm.beta)
        )
        unit = properties.epsilon(dense.compute_dtype) / 2
        unit_norm = properties.epsilon(norm.compute_dtype) / 2

        # The models and the layer in between have inputs of float32. In the
        # dense layer inputs, products, sums and the bias are each rounded.
        error += 2.0**-24 * max(abs(batch).max() for batch in batches)
        size = max((abs(b) @ abs(kernel) + abs(bias)).max() for b in batches)
        error *= abs(kernel).sum(0).max()
        error += (len(kernel) + 4) * unit * size
        batches = [b @ kernel + bias for b in batches]

        samples = np.concatenate(batches)
        away = np.ptp(samples, axis=0).max()
        error_mean = error + 4 * unit_norm * size
        error_variance = 4 * away * error_mean + 4 * error_mean**2
        found += [
            (norm.moving_mean, samples.mean(0), error_mean),
            (norm.moving_variance, samples.var(0), error_variance),
        ]

        # y = gamma * (x - mean) / s + beta, by differentiation.
        s = np.sqrt(min(b.var(0).min() for b in batches) + EPSILON)
        error = abs(gamma).max() * (
            2 * error_mean / s + away * error_variance / (2 * s**3)
        ) + 4 * unit_norm * (abs(gamma).max() * away / s + abs(beta).max())
        batches = [
            gamma * (b - b.mean(0)) / np.sqrt(b.var(0) + EPSILON) + beta
            for b in batches
        ]
    return found


def _halves(model):
    """The dense and the batch-norm layer, of the model and of its part."""
    dense, norm, nested = model.layers
    return [(dense, norm), nested.inner.layers]
