"""The bar of progress, as a refit shows it."""

import re

import pytest
import rich.console
import tensorflow as tf

import swa_tf
from swa_tf.support import progress

DATA = tf.data.Dataset.range(7).map(
    lambda i: tf.reshape(tf.cast(i, tf.float32), [1, 1])
)


@pytest.fixture
def terminal(monkeypatch):
    is_terminal = property(lambda console: True)
    monkeypatch.setattr(rich.console.Console, "is_terminal", is_terminal)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "100")


def refitted(**arguments):
    layer = tf.keras.layers.BatchNormalization()
    layer.build([None, 1])
    swa_tf.refit_batch_norm(layer, DATA, **arguments)
    assert float(layer.moving_mean[0]) == 3.0


@pytest.mark.usefixtures("terminal")
@pytest.mark.parametrize("steps", [None, 7])
def test_a_long_refit_shows_how_far_it_is(steps, capsys, monkeypatch):
    monkeypatch.setattr(progress, "_SECONDS", 0.0)
    refitted(steps=steps, verbose=1)
    shown = re.sub(r"\x1b\[[?\d;]*[a-zA-Z]", "", capsys.readouterr().out)
    assert "refitting batch norm" in shown
    assert "7/7" in shown


@pytest.mark.usefixtures("terminal")
def test_a_short_one_shows_nothing(capsys, monkeypatch):
    monkeypatch.setattr(progress, "_SECONDS", 1000.0)
    refitted(verbose=1)
    assert "refitting" not in capsys.readouterr().out


def test_a_file_gets_nothing(capsys, monkeypatch):
    monkeypatch.setattr(progress, "_SECONDS", 0.0)
    refitted(verbose=1)
    refitted()
    assert capsys.readouterr().out == ""


def test_bad_verbose():
    layer = tf.keras.layers.BatchNormalization()
    with pytest.raises(ValueError, match="`verbose` must be an integer >= 0"):
        swa_tf.BatchNormRefit(layer, verbose="yes")
