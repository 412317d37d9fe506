"""Fixed sequences of updates whose results every stack must reproduce.

The expected values were worked out apart from the library: means and moments
in rational numbers, optimizers in float64 numpy, each rounded once.
"""

import numpy as np
import pytest
import tensorflow as tf

import swa_tf

# Exact in each of the four types.
WEIGHTS = [
    [1.5, -0.375, 100.0, 0.0078125],
    [2.0, -0.25, 96.0, -0.03125],
    [0.5, 0.625, 101.0, 0.0625],
    [1.25, -1.0, 99.0, 0.015625],
    [3.0, 0.125, 102.0, -0.00390625],
    [0.75, -0.5, 97.0, 0.125],
    [1.75, 0.875, 103.0, -0.25],
]
MEANS = {
    2: [
        "0x1.c000000000000p+0",
        "-0x1.4000000000000p-2",
        "0x1.8800000000000p+6",
        "-0x1.8000000000000p-7",
    ],
    5: [
        "0x1.a666666666666p+0",
        "-0x1.6666666666666p-3",
        "0x1.8e66666666666p+6",
        "0x1.4cccccccccccdp-7",
    ],
    7: [
        "0x1.8924924924925p+0",
        "-0x1.2492492492492p-4",
        "0x1.8edb6db6db6dbp+6",
        "-0x1.5b6db6db6db6ep-7",
    ],
}
DTYPES = ["float16", "bfloat16", "float32", "float64"]

INPUTS = [
    [3.0, -1000.25],
    [-1.5, -999.75],
    [0.25, -1000.0],
    [8.0, -1000.5],
    [-4.75, -999.5],
    [2.5, -1000.125],
    [1.0, -1000.375],
]
INPUT_MEAN = ["0x1.36db6db6db6dbp+0", "-0x1.f409249249249p+9"]
INPUT_VARIANCE = {
    "pooled": ["0x1.b16343eb1a1f6p+3", "0x1.b43eb1a1f58d1p-4"],
    # Of the first four rows and the last three.
    "mean_of_batches": ["0x1.6a68e38e38e39p+3", "0x1.b555555555555p-4"],
}

GRADIENTS = [[[0.5, -1.0]], [[0.25, 2.0]], [[-1.0, 0.5]]]
# From [1, -2], after each gradient; the decay is 0.01.
MOMENTUMW = [
    ["0x1.e147ae147ae14p-1", "-0x1.e147ae147ae14p+0"],
    ["0x1.b8a0902de00d2p-1", "-0x1.f8a0902de00d2p+0"],
    ["0x1.c72a38b8ae31ep-1", "-0x1.0cdcca70d1fa4p+1"],
]
NESTEROV = [
    ["0x1.ca3d70a3d70a4p-1", "-0x1.ca3d70a3d70a4p+0"],
    ["0x1.989a027525460p-1", "-0x1.0919ce075f6fdp+1"],
    ["0x1.d8c3e3193f6c2p-1", "-0x1.1e03bc4d22c88p+1"],
]
ADAMW = [
    ["0x1.f5c2917b6e85dp-1", "-0x1.f851ec0cf0388p+0"],
    ["0x1.ebf83e36e3195p-1", "-0x1.f436cac85d875p+0"],
    ["0x1.e81b46b080831p-1", "-0x1.f046a51e40066p+0"],
]


def _golden(literals):
    return np.array([float.fromhex(literal) for literal in literals])


def _applied(dtype, n_models, compiled):
    """Averages of the first `n_models` weights, and their variable."""
    variable = tf.Variable(tf.zeros([4], dtype))
    swa = swa_tf.StochasticWeightAveraging()

    def update(weight):
        variable.assign(weight)
        swa.apply([variable])

    if compiled:
        update = tf.function(update)
    for weight in WEIGHTS[:n_models]:
        update(tf.constant(weight, dtype))
    return swa, variable


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("n_models", MEANS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_average(dtype, n_models, compiled):
    swa, variable = _applied(dtype, n_models, compiled)
    average = swa.average(variable)
    expected = _golden(MEANS[n_models])
    # Each update rounds c, a product and a sum, each to half a unit in the
    # last place of numbers no larger than twice the largest weight.
    largest = np.max(np.abs(WEIGHTS[:n_models]), axis=0)
    unit = 2.0**-53 if dtype == "float64" else 2.0**-24
    assert average.dtype == (tf.float64 if dtype == "float64" else tf.float32)
    error = np.abs(average.numpy().astype(np.float64) - expected)
    np.testing.assert_array_less(error, 3 * n_models * unit * largest)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_average_cast_to_half_precision(dtype):
    swa, variable = _applied(dtype, n_models=7, compiled=False)
    swa_tf.assign_averages(swa, [variable])
    expected = tf.cast(_golden(MEANS[7]), dtype)
    assert variable.numpy().tolist() == expected.numpy().tolist()


@pytest.mark.parametrize("variance", INPUT_VARIANCE)
def test_refit_statistics(variance):
    layer = tf.keras.layers.BatchNormalization()
    layer.build([None, 2])
    inputs = np.array(INPUTS, np.float32)
    swa_tf.refit_batch_norm(layer, [inputs[:4], inputs[4:]], variance=variance)
    moving_mean = np.array(layer.moving_mean)
    moving_variance = np.array(layer.moving_variance)
    # Half a unit in the last place of float32, and as much for the way.
    np.testing.assert_allclose(moving_mean, _golden(INPUT_MEAN), rtol=2**-23)
    np.testing.assert_allclose(
        moving_variance, _golden(INPUT_VARIANCE[variance]), rtol=2e-5
    )


# A step rounds about six numbers no larger than 2: 3 steps, 2^-23 each. In
# Adam 1 - 0.999^t in float32 is off by 6e-5, its root by half of that, and so
# is a step, of 0.01.
@pytest.mark.parametrize(
    ("make", "golden", "tolerance"),
    [
        (
            lambda: swa_tf.optimizers.MomentumW(0.1, 0.9, weight_decay=0.01),
            MOMENTUMW,
            18 * 2**-23,
        ),
        (
            lambda: swa_tf.optimizers.MomentumW(
                0.1, 0.9, weight_decay=0.01, nesterov=True
            ),
            NESTEROV,
            18 * 2**-23,
        ),
        (
            lambda: swa_tf.optimizers.AdamW(0.01, weight_decay=0.01),
            ADAMW,
            18 * 2**-23 + 3 * 0.01 * 3e-5,
        ),
    ],
    ids=["MomentumW", "MomentumW-nesterov", "AdamW"],
)
def test_optimizer(make, golden, tolerance):
    weight = tf.Variable([[1.0, -2.0]])
    optimizer = make()
    for gradient, expected in zip(GRADIENTS, golden):
        optimizer.apply_gradients([(tf.constant(gradient), weight)])
        np.testing.assert_allclose(
            weight.numpy()[0], _golden(expected), rtol=0, atol=tolerance
        )
