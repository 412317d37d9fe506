"""Both exponential averages do the same: TensorFlow's and ours.

Each function of `SAME` is a script of a user's, run once with each class, on
`tf.Variable`s, which TensorFlow's takes on every stack. docs/ema.md lists them,
and the few behaviours in which the classes differ.
"""

import inspect
import pathlib

import numpy as np
import pytest
import tensorflow as tf

import swa_tf
from tests.ema_scripts import files, lists, names, numerics, places, replicas
from tests.ema_scripts.equal_average import OF_SWA

ROOT = pathlib.Path(__file__).resolve().parents[2]

SAME = [
    function
    for module in (numerics, lists, names, places, files, replicas)
    for name, function in vars(module).items()
    if inspect.isfunction(function)
    and not name.startswith("_")
    and list(inspect.signature(function).parameters) == ["ema_class"]
]
SCRIPTS = {script.__name__: script for script in SAME}


def _swa(
    decay, num_updates=None, zero_debias=False, name="ExponentialMovingAverage"
):
    """Names and coefficients apart, `StochasticWeightAveraging` is the same."""
    return swa_tf.StochasticWeightAveraging(name)


def _assert_same(theirs, ours):
    if isinstance(theirs, (list, tuple)):
        assert len(theirs) == len(ours)
        for their, our in zip(theirs, ours):
            _assert_same(their, our)
    elif isinstance(theirs, (np.ndarray, np.floating)):
        assert theirs.dtype == ours.dtype
        # A unit in the last place of a few; TensorFlow's own rounding adds up
        # to some tens of them at 0.999, where it forgets the last thousand.
        np.testing.assert_allclose(ours, theirs, rtol=2e-6, atol=1e-6)
    else:
        assert ours == theirs


def _assert_gives(expected, given):
    """Asserts as `_assert_same` does, for numbers in plain lists."""
    if isinstance(given, (list, tuple)):
        assert len(expected) == len(given)
        for one, other in zip(expected, given):
            _assert_gives(one, other)
    elif isinstance(given, (np.ndarray, np.floating)):
        assert np.shape(expected) == given.shape
        np.testing.assert_allclose(given, expected, rtol=2e-6, atol=1e-6)
    else:
        assert given == expected


@pytest.mark.parametrize("script", SAME, ids=lambda script: script.__name__)
def test_same(script):
    theirs = script(tf.train.ExponentialMovingAverage)
    _assert_same(theirs, script(swa_tf.ExponentialMovingAverage))
    if script.__name__ not in OF_SWA:
        _assert_same(theirs, script(_swa))


@pytest.mark.parametrize("name", OF_SWA)
def test_what_the_equal_average_does_otherwise(name):
    script, otherwise = SCRIPTS[name], OF_SWA[name]
    if otherwise.raises:
        error, match = otherwise.raises
        with pytest.raises(error, match=match):
            script(_swa)
    else:
        _assert_gives(otherwise.gives, script(_swa))


def _rows():
    """The rows of the table, as the scripts have it."""
    for script in SAME:
        behaviour, does = script.__doc__.rstrip(".").split(": ", 1)
        swa, why = OF_SWA.get(script.__name__, ("same", ""))[:2]
        cells = behaviour, does, "same", swa, why, f"`{script.__name__}`"
        yield "| " + " | ".join(cells) + " |"


def test_the_table_lists_every_script():
    text = (ROOT / "docs" / "ema.md").read_text(encoding="utf-8")
    _, rest = text.split("## What is the same\n")
    table, _ = rest.split("## What differs\n")
    rows = [line for line in table.splitlines() if line.startswith("|")]
    assert rows[2:] == list(_rows())
