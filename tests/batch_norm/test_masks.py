"""Masks of every rank, against float64 numpy and Keras's own training step."""

import warnings

import numpy as np
import pytest
import tensorflow as tf

import swa_tf
from swa_tf.support import compat

layers = tf.keras.layers
RNG = np.random.default_rng(0)


class Masked(tf.keras.Model):
    """A batch-norm layer that is called with a mask."""

    def __init__(self, norm, mask):
        super().__init__()
        self.norm, self.mask = norm, tf.constant(mask)

    def call(self, inputs, training=None):
        return self.norm(inputs, training=training, mask=self.mask)


class Paired(tf.keras.Model):
    """The same, with masks among its inputs, and channels in the middle."""

    def __init__(self):
        super().__init__()
        self.norm = layers.BatchNormalization(axis=1)

    def call(self, inputs, training=None):
        values, mask = inputs
        return self.norm(values, training=training, mask=mask)


def refitted(x, mask, axis=-1, kind=layers.BatchNormalization, **kwargs):
    model = Masked(kind(axis=axis, momentum=0.0, **kwargs), mask)
    model(x)
    swa_tf.refit_batch_norm(model, [x])
    return model


def moments(x, mask, axis=-1):
    """Of the elements that count, those of each channel by themselves."""
    counted = np.broadcast_to(np.asarray(mask, bool)[..., None], x.shape)
    x = np.moveaxis(x.astype(np.float64), axis, -1)
    counted = np.moveaxis(counted, axis, -1)
    kept = [x[..., i][counted[..., i]] for i in range(x.shape[-1])]
    return [each.mean() for each in kept], [each.var() for each in kept]


def close(found, expected):
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


UNFUSED = {} if compat.KERAS_3 else {"fused": False}


def test_ones_have_a_mean_of_one():
    mask = np.array([[[True], [False]]])
    model = refitted(np.ones([1, 2, 3, 4], np.float32), mask, **UNFUSED)
    np.testing.assert_array_equal(model.norm.moving_mean, np.ones(4))
    np.testing.assert_array_equal(model.norm.moving_variance, np.zeros(4))


CASES = [
    ((6, 3), (6,), -1),
    ((6, 3), (1,), -1),
    ((6, 5, 3), (6, 5), -1),
    ((6, 5, 3), (6, 1), -1),
    ((6, 5, 3), (1, 5), -1),
    ((6, 4, 5, 3), (6, 4, 5), -1),
    ((6, 4, 5, 3), (1, 4, 1), -1),
    ((6, 4, 5, 3), (6, 1, 5), -1),
    ((2, 3, 4, 5, 3), (2, 3, 1, 5), -1),
    # Here some channels count more than others.
    ((6, 4, 5, 3), (6, 4, 5), 1),
    ((6, 4, 5, 3), (1, 4, 5), 2),
    ((6, 4, 3), (6, 1), 1),
]


def random_mask(shape):
    mask = RNG.random(shape) < 0.6
    mask[..., 0] = True  # no channel without samples
    return mask


@pytest.mark.parametrize(("shape", "mask_shape", "axis"), CASES)
def test_masks_of_every_rank(shape, mask_shape, axis):
    x = RNG.normal(2.0, 3.0, shape).astype(np.float32)
    mask = random_mask(mask_shape)
    model = refitted(x, mask, axis, **UNFUSED)
    mean, variance = moments(x, mask, axis)
    close(model.norm.moving_mean, mean)
    close(model.norm.moving_variance, variance)
    model(x, training=True)  # Keras's, with a momentum of 0
    np.testing.assert_allclose(model.norm.moving_mean, mean, rtol=1e-4)
    np.testing.assert_allclose(model.norm.moving_variance, variance, rtol=1e-4)


@pytest.mark.parametrize("devices", [1, 2])
def test_batches_merge_by_the_samples_of_each_channel(devices):
    x = RNG.normal(2.0, 3.0, [8, 4, 3]).astype(np.float32)
    mask = random_mask([8, 4])
    devices = [f"/cpu:{i}" for i in range(devices)]
    with tf.distribute.MirroredStrategy(devices).scope():
        model = Paired()
        model((x, mask))
    parts = [slice(0, 3), slice(3, 8)]
    swa_tf.refit_batch_norm(model, [((x[s], mask[s]),) for s in parts])
    mean, variance = moments(x, mask, 1)
    close(model.norm.moving_mean, mean)
    close(model.norm.moving_variance, variance)


@pytest.mark.parametrize("number", [1, 2, -1.0])
def test_a_mask_of_numbers(number):
    x = RNG.normal(2.0, 3.0, [6, 5, 3]).astype(np.float32)
    mask = random_mask([6, 5])
    model = refitted(x, np.where(mask, number, 0))
    close(model.norm.moving_variance, moments(x, mask)[1])


def test_what_is_masked_need_not_be_finite():
    x = RNG.normal(2.0, 3.0, [6, 5, 3]).astype(np.float32)
    mask = random_mask([6, 5])
    x[~mask] = np.nan
    model = refitted(x, mask)
    close(model.norm.moving_mean, moments(x, mask)[0])
    close(model.norm.moving_variance, moments(x, mask)[1])


@pytest.mark.skipif(compat.KERAS_3, reason="Keras 3 has no fused layer")
def test_a_fused_layer_ignores_a_mask_as_in_training():
    x = RNG.normal(2.0, 3.0, [6, 4, 5, 3]).astype(np.float32)
    mask = random_mask([6, 4, 5])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Keras says that it does
        model = refitted(x, mask, fused=True)
        every = moments(x, np.ones_like(mask))
        close(model.norm.moving_mean, every[0])
        close(model.norm.moving_variance, every[1])
        model(x, training=True)
    close(model.norm.moving_mean, every[0])
    # Bessel's correction of the fused kernel: n / (n - 1).
    close(model.norm.moving_variance, np.array(every[1]) * 120 / 119)


@pytest.mark.skipif(compat.KERAS_3, reason="Keras 3 has no such layers")
def test_kinds_and_axes_of_keras_2():
    x = RNG.normal(2.0, 3.0, [6, 4, 5, 3]).astype(np.float32)
    mask = random_mask([6, 4, 5])
    kind = layers.experimental.SyncBatchNormalization
    model = refitted(x, mask, kind=kind)
    close(model.norm.moving_variance, moments(x, mask)[1])
    mask = np.ones([6, 4, 5], bool)
    mask[:, 2:, 1] = False
    model = refitted(x, mask, axis=[2, 3])
    mean = np.mean(x, (0, 1))
    mean[1] = np.mean(x[:, :2, 1], (0, 1))
    close(model.norm.moving_mean, mean.reshape([1, 1, 5, 3]))


def test_our_layer_merges_masked_batches():
    x = RNG.normal(2.0, 3.0, [6, 5, 3]).astype(np.float32)
    mask = random_mask([6, 5])
    layer = swa_tf.MovingFreeBatchNormalization()
    for part in (slice(0, 2), slice(2, 6)):
        layer(
            x[part], training=True, use_moving_statistics=False, mask=mask[part]
        )
    mean, variance = moments(x, mask)
    close(layer.mean, mean)
    close(layer.variance, variance)
    assert int(layer.n_samples) == mask.sum()


@pytest.mark.parametrize("axis", [1, -2])
def test_our_layer_has_one_number_of_samples(axis):
    x = np.ones([6, 5, 3], np.float32)
    layer = swa_tf.MovingFreeBatchNormalization(axis=axis)
    with pytest.raises(ValueError, match="whose `axis` is the last"):
        layer(
            x,
            training=True,
            use_moving_statistics=False,
            mask=np.ones([6, 5]),
        )
