"""The network: its size by hand, and the statistics that it chooses."""

import numpy as np
import pytest
import tensorflow as tf

import swa_tf
from benchmarks.averaging_cost import weights
from benchmarks.cifar10 import __main__ as cifar10
from benchmarks.cifar10 import config
from benchmarks.common.resnet import BLOCKS, ResNet
from tests.fitting import covering


def hand_count(blocks, width, channels, classes=10):
    """Trainable parameters of a ResNet v2 of basic blocks."""
    count = 3 * 3 * channels * width  # stem
    before = width
    for stage, n in enumerate(blocks):
        after = width * 2**stage
        for block in range(n):
            inside = before if block == 0 else after
            count += 2 * inside + 9 * inside * after  # norm and conv
            count += 2 * after + 9 * after * after
            if block == 0 and stage > 0:
                count += inside * after  # projection
        before = after
    return count + 2 * before + before * classes + classes


def test_real_resnet_34():
    shapes = weights.shapes("resnet34")
    count = weights.parameters(shapes)
    assert count == hand_count((3, 4, 6, 3), 64, 3)
    # The 21.8 million of the literature have 1000 classes and a 7 x 7
    # stem, and batch norm behind each of the convolutions.
    assert 21.0e6 < count < 21.5e6
    kernels = [shape for shape in shapes if len(shape) == 4]
    assert len(kernels) == 1 + 2 * 16 + 3
    # And two for each of 33 batch-norm layers, and the dense layer.
    assert len(shapes) == len(kernels) + 2 * 33 + 2


@pytest.mark.parametrize(
    ("batch_norm", "shape"),
    covering(1, config.CHOICES["batch_norm"], [(8, 8, 1), (32, 32, 3)]),
)
def test_small_ones(batch_norm, shape):
    model = ResNet(18, width=4, batch_norm=batch_norm)
    images = tf.random.normal([3, *shape])
    assert model(images, training=True).shape == (3, 10)
    count = sum(int(np.prod(v.shape)) for v in model.trainable_variables)
    assert count == hand_count((2, 2, 2, 2), 4, shape[-1])
    # Four stages, each but the first halving the image.
    assert model.blocks[-1].conv_2.kernel.shape == (3, 3, 32, 32)
    assert [b.project is not None for b in model.blocks] == [
        False, False, True, False, True, False, True, False,
    ]  # fmt: skip


def test_moving_free_chooses_its_statistics(monkeypatch):
    monkeypatch.setitem(BLOCKS, 18, (1, 1, 1, 1))
    tf.config.run_functions_eagerly(True)
    model = ResNet(18, width=4, batch_norm="moving_free")
    images = tf.random.normal([20, 8, 8, 1])
    moving = model(images, training=False)
    swa_tf.refit_batch_norm(model, [images])
    again = model(images, training=False)
    np.testing.assert_array_equal(moving, again)
    refit = model(images, training=False, use_moving_statistics=False)
    # Over the batch that they were computed from, the statistics are
    # those of the batch: the network does what it does in training.
    batch = model(images, training=True)
    np.testing.assert_allclose(refit, batch, atol=1e-3)
    assert not np.allclose(refit, moving, atol=1e-1)


def test_logits_of_mixed_precision_are_float32(monkeypatch):
    monkeypatch.setitem(BLOCKS, 18, (1, 1, 1, 1))
    tf.config.run_functions_eagerly(True)
    with cifar10.precision("mixed_bfloat16"):
        model = ResNet(18, width=4)
    assert tf.keras.mixed_precision.global_policy().name == "float32"
    assert model(tf.zeros([1, 8, 8, 1])).dtype == tf.float32
    assert model.stem.compute_dtype == "bfloat16"
    assert model.stem.kernel.dtype == "float32"
    with pytest.raises(ZeroDivisionError), cifar10.precision("mixed_bfloat16"):
        _ = 1 / 0
    assert tf.keras.mixed_precision.global_policy().name == "float32"
