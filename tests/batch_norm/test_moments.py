"""Moments and normalizing against float64 numpy, also where float32 fails."""

import numpy as np
import pytest
import tensorflow as tf

from swa_tf.batch_norm import moments
from swa_tf.support import compat
from tests.fitting import covering

layers = tf.keras.layers


def built(x, **kwargs):
    layer = layers.BatchNormalization(**kwargs)
    layer.build([None, *x.shape[1:]])
    return layer


def moments_of(x):
    x = np.asarray(x, np.float64)
    axes = tuple(range(x.ndim - 1))
    return x.mean(axes), x.var(axes)


@pytest.mark.parametrize(
    ("mean", "deviation"),
    [
        (0.0, 1.0),
        (2.5, 1.0),  # mean^2 is 6.25 times the variance
        (3.2, 1.0),  # ... and 10 times: deviations are squared
        (1000.0, 0.1),
        (-1e-3, 1e-3),
        (3e19, 1e18),  # squares that float32 cannot hold
    ],
)
def test_moments(mean, deviation):
    x = np.random.default_rng(0).normal(mean, deviation, [64, 32, 32, 3])
    x = x.astype(np.float32)
    found = moments.batch_moments(built(x), tf.constant(x), None)
    true_mean, true_variance = moments_of(x)
    np.testing.assert_array_equal(found.count, [64 * 32 * 32] * 3)
    # Next to the deviations, which says more where the mean is far away.
    np.testing.assert_allclose(
        found.mean, true_mean, rtol=0.0, atol=1e-6 * deviation
    )
    np.testing.assert_allclose(found.variance, true_variance, rtol=1e-6)


def test_one_far_channel_is_enough():
    x = np.random.default_rng(1).normal(size=[16, 16, 16, 3])
    x = (x + np.array([0.0, 1000.0, 0.0])).astype(np.float32)
    found = moments.batch_moments(built(x), tf.constant(x), None)
    np.testing.assert_allclose(found.variance, moments_of(x)[1], rtol=1e-6)


def test_positive_numbers_keep_their_digits():
    # Sums of one sign, where a float32 sum over the batch loses most.
    x = np.random.default_rng(2).normal(size=[128, 32, 32, 4])
    x = np.maximum(x, 0.0).astype(np.float32)
    found = moments.batch_moments(built(x), tf.constant(x), None)
    np.testing.assert_allclose(found.mean, moments_of(x)[0], rtol=1e-7)
    np.testing.assert_allclose(found.variance, moments_of(x)[1], rtol=2e-7)


def test_constant_channels():
    # Where all terms are equal their rounding errors do not cancel: the bound
    # on a sum of 64 is 63 * 2^-24, and on the variance it is that of the mean
    # squared, for it is computed from deviations.
    x = np.zeros([1, 64, 64, 2], np.float32)
    x[..., 1] = 0.1
    found = moments.batch_moments(built(x), tf.constant(x), None)
    bound = 63 * 2.0**-24
    np.testing.assert_allclose(found.mean, [0.0, 0.1], rtol=bound)
    np.testing.assert_array_less(found.variance, [1e-30, (0.1 * bound) ** 2])


def test_no_samples():
    x = tf.zeros([0, 8, 8, 2])
    found = moments.batch_moments(built(x), x, None)
    for each in found:
        np.testing.assert_array_equal(each, np.zeros_like(each))
    outputs = moments.normalize(built(x), x, *found[1:])
    assert outputs.shape == [0, 8, 8, 2]


SHAPES = [
    (6, 5, 3),  # one dimension
    (2, 3, 4, 5, 6),  # three
    (5, 7, 11, 3),  # no divisor of note
    (3, 257, 1, 2),  # a prime above the size of a block
    (3, 2, 2, 1500),  # more channels than are repeated
    (9, 4),  # no image: the other way
]


@pytest.mark.parametrize(
    ("shape", "dtype", "known"),
    covering(2, SHAPES, ["float16", "float32", "float64"], [True, False]),
)
def test_shapes_and_dtypes(shape, dtype, known):
    x = np.random.default_rng(3).normal(0.5, 1.0, shape).astype(dtype)
    layer = built(x, epsilon=1e-3)
    layer.gamma.assign(np.linspace(0.5, 2.0, shape[-1]))
    layer.beta.assign(np.linspace(-1.0, 1.0, shape[-1]))

    @tf.function(
        input_signature=[
            tf.TensorSpec(
                shape if known else [None] * (len(shape) - 1) + [shape[-1]],
                dtype,
            )
        ]
    )
    def both(x):
        found = moments.batch_moments(layer, x, None)
        return found, moments.normalize(layer, x, found.mean, found.variance)

    (_, mean, variance), outputs = both(x)
    true_mean, true_variance = moments_of(x)
    np.testing.assert_allclose(mean, true_mean, rtol=1e-6, atol=1e-7)
    np.testing.assert_allclose(variance, true_variance, rtol=1e-6)
    expected = (x.astype(np.float64) - true_mean) / np.sqrt(
        true_variance + 1e-3
    ) * np.linspace(0.5, 2.0, shape[-1]) + np.linspace(-1.0, 1.0, shape[-1])
    assert outputs.dtype == dtype
    tolerance = 2e-3 if dtype == "float16" else 2e-6
    np.testing.assert_allclose(
        outputs, expected, rtol=tolerance, atol=tolerance
    )


@pytest.mark.parametrize("parameters", [(True, False), (False, True)])
def test_without_gamma_or_beta(parameters):
    center, scale = parameters
    x = np.random.default_rng(4).normal(size=[6, 8, 8, 3]).astype(np.float32)
    layer = built(x, center=center, scale=scale, epsilon=0.0)
    mean, variance = moments_of(x)
    outputs = moments.normalize(
        layer, tf.constant(x), tf.constant(mean), tf.constant(variance)
    )
    np.testing.assert_allclose(
        outputs, (x - mean) / np.sqrt(variance), rtol=2e-6, atol=2e-6
    )


@pytest.mark.parametrize("axis", [1, 2, -1, [1, 3]])
def test_other_axes(axis):
    if axis == [1, 3] and compat.KERAS_3:
        pytest.skip("Keras 3 has no layer with several axes")
    x = np.random.default_rng(5).normal(2.0, size=[6, 4, 5, 3])
    x = x.astype(np.float32)
    layer = built(x, axis=axis, epsilon=0.0)
    axes = [a % 4 for a in ([axis] if isinstance(axis, int) else axis)]
    others = tuple(a for a in range(4) if a not in axes)
    mean, variance = x.mean(others), x.var(others)
    found = moments.batch_moments(layer, tf.constant(x), None)
    np.testing.assert_allclose(found.mean, mean.ravel(), rtol=1e-5)
    np.testing.assert_allclose(found.variance, variance.ravel(), rtol=1e-5)
    outputs = moments.normalize(layer, tf.constant(x), *found[1:])
    expected = x - x.mean(others, keepdims=True)
    expected /= x.std(others, keepdims=True)
    np.testing.assert_allclose(outputs, expected, rtol=1e-4, atol=1e-5)


def test_masked_images():
    x = np.random.default_rng(6).normal(1000.0, 0.1, [3, 8, 8, 2])
    x = x.astype(np.float32)
    mask = np.random.default_rng(7).random([3, 8, 8]) < 0.5
    unfused = {} if compat.KERAS_3 else {"fused": False}
    layer = built(x, **unfused)
    found = moments.batch_moments(layer, tf.constant(x), tf.constant(mask))
    np.testing.assert_array_equal(found.count, [mask.sum()] * 2)
    kept = x[mask].astype(np.float64)
    np.testing.assert_allclose(found.mean, kept.mean(0), rtol=1e-9)
    np.testing.assert_allclose(found.variance, kept.var(0), rtol=1e-6)
