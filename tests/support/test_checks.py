"""What an error shows of a value."""

import numpy as np
import pytest
import tensorflow as tf

import swa_tf
from swa_tf.support import checks


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        ("a", "'a'"),
        (np.ones(3), "array([1., 1., 1.])"),
        (np.ones([9, 99]), "ndarray of shape (9, 99) and dtype float64"),
        ([0] * 999, f"[{'0, ' * 99}0,..."),
    ],
)
def test_shown(value, shown):
    assert checks.shown(value) == shown


def test_arrays_in_place_of_variables():
    """`model.get_weights()` gives arrays: the error has no numbers of them."""
    model = tf.keras.Sequential(
        [tf.keras.Input([9]), tf.keras.layers.Dense(99)]
    )
    with pytest.raises(TypeError, match=r"shape \(9, 99\)") as raised:
        swa_tf.StochasticWeightAveraging().apply(model.get_weights())
    assert len(str(raised.value)) < 150
