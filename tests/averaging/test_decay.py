"""The `decay` and the `num_updates` of an exponential average."""

import functools
import math

import numpy as np
import pytest
import tensorflow as tf

import swa_tf
from tests import modes
from tests.exponential import apply_in, ema_of, run_updates

v1 = tf.compat.v1
EMA = swa_tf.ExponentialMovingAverage


# --- Arguments --------------------------------------------------------------


NO_SCALAR = tf.Variable([0.5, 0.5], shape=tf.TensorShape(None))


@pytest.mark.parametrize(
    ("arguments", "error", "match"),
    [
        ({}, ValueError, "Exactly one of `decay` and `half_life`"),
        (
            {"decay": 0.5, "half_life": 2},
            ValueError,
            "Exactly one of `decay` and",
        ),
        ({"decay": 1.0}, ValueError, r"`decay` must be .*\[0, 1\)"),
        ({"decay": 1}, ValueError, "`decay` must be"),
        ({"decay": -0.1}, ValueError, "`decay` must be .*-0.1"),
        ({"decay": 1 - 1e-9}, ValueError, "`decay` must be .*float32"),
        ({"decay": math.nan}, ValueError, "`decay` must be"),
        ({"decay": "0.9"}, ValueError, "`decay` must be"),
        ({"decay": True}, ValueError, "`decay` must be"),
        ({"decay": np.float64(1.5)}, ValueError, "`decay` must be"),
        ({"decay": np.array(1.5)}, ValueError, "`decay` must be"),
        ({"decay": tf.constant(1.5)}, ValueError, "`decay` must be"),
        ({"decay": tf.constant([0.5])}, ValueError, "`decay` must be a scalar"),
        (
            {"decay": tf.constant("a")},
            ValueError,
            "`decay` must be .*dtype=string",
        ),
        (
            {"decay": tf.Variable("a")},
            ValueError,
            "`decay` must be .*dtype=string",
        ),
        ({"decay": tf.constant(False)}, ValueError, "`decay` .*dtype=bool"),
        ({"decay": tf.constant(0.5j)}, ValueError, "`decay` .*dtype=complex"),
        (
            {"decay": NO_SCALAR},
            ValueError,
            "`decay` must be a scalar.*0.5, 0.5",
        ),
        ({"decay": 10**400}, ValueError, "`decay` must be"),
        ({"decay": 0.5, "num_updates": -1}, ValueError, "`num_updates` must"),
        ({"decay": 0.5, "num_updates": [1]}, ValueError, "`num_updates` must"),
        ({"decay": 0.5, "num_updates": "1"}, ValueError, "`num_updates` must"),
        ({"decay": 0.5, "num_updates": 1e39}, ValueError, "`num_updates` must"),
        ({"decay": 0.5, "num_updates": 10**400}, ValueError, "`num_updates`"),
        (
            {"decay": 0.5, "num_updates": tf.constant("1")},
            ValueError,
            "`num_updates` must be a finite number >= 0.*dtype=string",
        ),
        (
            {"decay": 0.5, "num_updates": NO_SCALAR},
            ValueError,
            "`num_updates` must be a scalar",
        ),
        ({"half_life": 0}, ValueError, "`half_life` must be .* > 0"),
        ({"half_life": -1.0}, ValueError, "`half_life` must be"),
        ({"half_life": math.inf}, ValueError, "`half_life` must be"),
        ({"decay": 0.5, "warm_up": 0.5}, ValueError, "`warm_up` must be .*1"),
        ({"decay": 0.5, "warm_up": "9"}, ValueError, "`warm_up` must be"),
        ({"decay": 0.5, "when": 3}, TypeError, "`when` must be"),
        ({"decay": 0.5, "name": 3}, TypeError, "`name` must be .*name=3"),
        ({"decay": 0.5, "zero_debias": 1}, TypeError, "`zero_debias` must be"),
        ({"decay": 0.5, "zero_debias": "no"}, TypeError, "`zero_debias` must"),
    ],
)
def test_bad_arguments(arguments, error, match):
    with pytest.raises(error, match=match):
        EMA(**arguments)


@pytest.mark.parametrize("name", ["decay", "num_updates"])
def test_a_tensor_of_a_graph_that_is_no_scalar(name):
    with tf.Graph().as_default():
        arguments = {"decay": 0.5, name: tf.constant([0.5])}
        with pytest.raises(ValueError, match=f"`{name}` must be a scalar"):
            EMA(**arguments)


@pytest.mark.parametrize(
    "decay", [lambda: tf.Variable(0.5), lambda: lambda n_models: 0.5]
)
def test_an_eager_update_asks_for_one_coefficient(decay):
    n_asked = []

    class Counting(EMA):
        def coefficient(self, n_models):
            n_asked.append(int(n_models))
            return super().coefficient(n_models)

    ema, v = Counting(decay()), tf.Variable(1.0)
    for _ in range(3):
        ema.apply([v])
    assert n_asked == [0, 1, 2]


def test_wrong_num_updates_move_nothing_where_xla_leaves_the_error_out():
    num_updates, v = tf.Variable(5.0), tf.Variable(1.0)
    ema = EMA(0.5, num_updates)

    @tf.function(jit_compile=True)
    def update():
        ema.apply([v])

    update()
    v.assign(9.0)
    num_updates.assign(-5.0)
    update()
    assert float(ema.average(v)) == 1.0


@pytest.mark.parametrize(
    "decay",
    [
        0,
        0.0,
        np.float32(0.5),
        np.float16(0.5),
        tf.bfloat16.as_numpy_dtype(0.5),
        np.array(0.5),
        tf.constant(0.5),
        tf.constant(0),
        tf.Variable(0.5, dtype=tf.float64),
        tf.Variable(0.5, shape=tf.TensorShape(None)),
    ],
    ids=repr,
)
def test_numbers_that_are_a_decay(decay):
    assert run_updates(EMA(decay), tf.Variable(0.0), [1.0, 2.0]) == 2.0 - float(
        decay
    )


@pytest.mark.parametrize(
    "count",
    [
        2,
        2.0,
        np.int64(2),
        np.float32(2.0),
        np.array(2),
        tf.constant(2),
        tf.constant(2.0),
        tf.Variable(2, dtype=tf.int64),
        tf.Variable(2.0),
    ],
    ids=repr,
)
def test_numbers_that_are_num_updates(count):
    # The decay is (1 + 2) / (10 + 2).
    ema = EMA(0.5, num_updates=count)
    assert run_updates(ema, tf.Variable(0.0), [1.0, 5.0]) == 4.0


def test_a_decay_that_is_no_scalar_when_the_graph_runs():
    with tf.Graph().as_default(), v1.Session() as session:
        decay, v = v1.placeholder(tf.float32), tf.Variable(1.0)
        ema = EMA(decay)
        update = ema.apply([v])
        session.run(v1.global_variables_initializer())
        with pytest.raises(
            tf.errors.InvalidArgumentError, match="decay_must_be_a_scalar"
        ):
            session.run(update, {decay: [0.5, 0.5]})
        session.run(v.assign(2.0))
        session.run(update, {decay: 0.5})
        assert session.run(ema.average(v)) == 1.5


@pytest.mark.parametrize("bad", [1.0, -0.5, math.nan])
@pytest.mark.parametrize("compiled", [False, True])
def test_decay_variable_out_of_range(bad, compiled):
    decay = tf.Variable(0.5)
    v = tf.Variable(1.0)
    ema = EMA(decay)

    def update():
        ema.apply([v])

    update = tf.function(update) if compiled else update
    update()
    v.assign(2.0)
    decay.assign(bad)
    with pytest.raises(
        (ValueError, tf.errors.InvalidArgumentError), match="`decay` must be"
    ):
        update()
    assert float(ema.average(v)) == 1.0
    assert int(ema.n_models) == 1
    decay.assign(0.5)
    update()
    assert float(ema.average(v)) == 1.5


def test_decay_variable_out_of_range_in_a_graph():
    with tf.Graph().as_default(), v1.Session() as session:
        decay, v = tf.Variable(1.5), tf.Variable(1.0)
        n = v1.placeholder(tf.int64, [])
        update = EMA(decay, num_updates=n).apply([v])
        session.run(v1.global_variables_initializer())
        error = tf.errors.InvalidArgumentError
        with pytest.raises(error, match="`decay` must be"):
            session.run(update, {n: 1})
        session.run(decay.assign(0.5))
        with pytest.raises(error, match="`num_updates` must be"):
            session.run(update, {n: -1})
        session.run(update, {n: 0})


# --- A function of the number of models -------------------------------------


def power_decay(n_models):
    """As that of diffusion models, at most 0.7."""
    return tf.minimum(1.0 - (1.0 + n_models) ** -0.75, 0.7)


@pytest.mark.parametrize("mode", modes.ALL, ids=modes.name_of)
def test_decay_as_a_function(mode):
    # The bound is reached after 4 models.
    values = [np.float32(value) for value in (1.0, 5.0, -2.0, 3.0, 7.0, 2.0)]
    decays = [min(1.0 - (1.0 + n) ** -0.75, 0.7) for n in range(6)]
    make = functools.partial(EMA, power_decay)
    when = swa_tf.AveragingSchedule()  # so that all begin as the first weight
    average, n_models = mode(values, tf.float32, make=make, when=when)
    assert n_models == 6
    expected = ema_of(values, decays, values[0])
    # Six sums of numbers below 8, each rounded by at most a unit.
    np.testing.assert_allclose(average, expected, 0, 6 * 2.0**-21)


def test_decay_as_a_function_is_not_rounded_to_float32():
    ema = EMA(lambda n_models: 1.0 - 1e-9 * (n_models + 1.0))
    assert float(ema.coefficient(tf.constant(1, tf.int64))) == 1 - (1 - 2e-9)
    with pytest.raises(ValueError, match="also in float32"):
        EMA(1.0 - 1e-9)


@pytest.mark.parametrize("value", [0.5, np.float16(0.5), tf.Variable(0.5), 0])
def test_values_of_a_function_that_are_a_decay(value):
    ema = EMA(lambda n_models: value)
    found = run_updates(ema, tf.Variable(0.0), [1.0, 2.0])
    assert found == 2.0 - float(value)


def test_decay_as_a_function_with_warm_up():
    ema = EMA(lambda n_models: 0.6, warm_up=1)
    # n / (n + 1) until that is more.
    found = [float(ema.coefficient(tf.constant(n, tf.int64))) for n in range(4)]
    np.testing.assert_allclose(found, [1.0, 0.5, 0.4, 0.4], rtol=1e-15)


@pytest.mark.parametrize(
    ("decay", "match"),
    [
        (
            lambda n: 1.0,
            r"`decay` must be a function .* \[0, 1\)\. Received.*1.0",
        ),
        (lambda n: -0.1, "`decay` must be a function"),
        (lambda n: math.nan, "`decay` must be a function"),
        (lambda n: None, "`decay` must be a function .*None"),
        (lambda n: "0.5", "`decay` must be a function"),
        (lambda n: tf.constant(1.0), "`decay` must be a function"),
        (lambda n: tf.constant([0.5]), "`decay` must be a function .*scalars"),
    ],
)
def test_bad_values_of_a_function(decay, match):
    with pytest.raises(ValueError, match=match):
        EMA(decay)
    # In a graph, in which the average is made, the update raises.
    error = (ValueError, tf.errors.InvalidArgumentError)
    with tf.Graph().as_default(), v1.Session() as session:
        variable = tf.Variable(1.0)
        ema = EMA(decay)
        with pytest.raises(error, match="`decay` must be"):
            update = ema.apply([variable])
            session.run(v1.global_variables_initializer())
            session.run(v1.local_variables_initializer())
            session.run(update)


@pytest.mark.parametrize("mode", ["eager", "function"])
@pytest.mark.parametrize("n_right", [2, 52])
def test_a_function_whose_value_becomes_wrong(mode, n_right):
    """Also after 50 updates, when eager ones are traced."""
    v, w = tf.Variable(1.0), tf.Variable(3.0)
    ema = EMA(lambda n_models: tf.where(n_models < n_right, 0.5, 1.5))
    update = apply_in(ema, mode, v, w)
    for _ in range(n_right):
        update()
    v.assign(2.0)
    error = ValueError if mode == "eager" else tf.errors.InvalidArgumentError
    with pytest.raises(error, match="`decay` must be a function"):
        update()
    assert float(ema.average(v)) == 1.0
    assert int(ema.n_models) == n_right


# --- scaled_decay -----------------------------------------------------------


@pytest.mark.parametrize("ratio", [0.5, 1, 8])
def test_scaled_decay(ratio):
    # From 1 to weights of 0: what is left after 16 updates at the old size.
    left = 0.999**16
    decay = swa_tf.scaled_decay(0.999, ratio)
    np.testing.assert_allclose(decay ** (16 / ratio), left, rtol=1e-14)


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ((1.0, 2), "`decay` must"),
        ((-0.1, 2), "`decay` must"),
        ((0.9, 0), "`batch_size_ratio` must be .* > 0"),
        ((0.9, math.inf), "`batch_size_ratio` must"),
    ],
)
def test_scaled_decay_of_bad_arguments(arguments, match):
    with pytest.raises(ValueError, match=match):
        swa_tf.scaled_decay(*arguments)
