"""The power-function average against its profile in float64."""

import copy
import re

import hypothesis
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import strategies as st

import swa_tf
from swa_tf.averaging import gamma_of, update
from tests import modes

WIDTH = 0.1


def profile(n, gamma):
    """The weights of n models: integrals of the density over steps of 1 / n."""
    return np.diff((np.arange(n + 1) / n) ** (gamma + 1.0))


def width_of(weights):
    """The relative width of a profile: its standard deviation over its end."""
    t = np.arange(1, len(weights) + 1)
    mean = weights @ t
    return np.sqrt(weights @ (t - mean) ** 2) / len(weights)


def normal(count, shape=(4,)):
    rng = np.random.default_rng(0)
    return list(rng.normal(1.0, 0.3, (count, *shape)).astype(np.float32))


def make(**kwargs):
    return swa_tf.PowerFunctionAverage(WIDTH, **kwargs)


def train(average, variable, values):
    for value in values:
        variable.assign(value)
        average.apply([variable])


@hypothesis.given(width=st.floats(1e-6, 12.0**-0.5))
def test_gamma_has_the_width(width):
    gamma = gamma_of("relative_width", width)
    # The variance of Beta(gamma + 1, 1).
    variance = (gamma + 1) / ((gamma + 2) ** 2 * (gamma + 3))
    np.testing.assert_allclose(np.sqrt(variance), width, rtol=1e-12)


@pytest.mark.parametrize(
    ("width", "gamma"),
    # The first two are the paper's; 18 (1 + 1) = (1 + 2)^2 (1 + 3).
    [(0.05, 16.97), (0.10, 6.94), (18**-0.5, 1.0), (12**-0.5, 0.0)],
)
def test_gamma_by_hand(width, gamma):
    assert gamma_of("relative_width", width) == pytest.approx(gamma, abs=5e-3)


@pytest.mark.parametrize("width", [0, 0.3, -0.1, np.nan, "0.1", True, None])
def test_bad_widths(width):
    with pytest.raises(ValueError, match="`relative_width` must be a number"):
        swa_tf.PowerFunctionAverage(width)


@pytest.mark.parametrize("mode", modes.ALL, ids=modes.name_of)
def test_the_profile_in_every_mode(mode):
    values = normal(54 if mode is modes.eager else 8)
    average, n_models = mode(values, tf.float32, make=make)
    assert n_models == len(values)
    expected = profile(n_models, gamma_of("", WIDTH)) @ np.float64(values)
    np.testing.assert_allclose(average, expected, 0, 8 * 2.0**-23)


def test_the_bits_are_those_of_eager_mode():
    values = normal(60, (update.COMPILED_ELEMENTS,))
    expected, _ = modes.eager(values, tf.float32, make=make)
    average, _ = modes.function(values, tf.float32, make=make)
    np.testing.assert_array_equal(average, expected)


def test_after_many_models():
    """Where 1 - (1 - 1 / t)^(gamma + 1) keeps only half of its digits."""
    n, gamma = 10**9, gamma_of("", 0.05)
    c = swa_tf.PowerFunctionAverage(0.05).coefficient(tf.constant(n, tf.int64))
    # By its series in 1 / t, up to the third power.
    x, a = 1.0 / (n + 1), gamma + 1
    series = a * x - a * (a - 1) / 2 * x**2
    np.testing.assert_allclose(float(c), series, rtol=1e-14)


def test_the_largest_width_is_the_equal_average():
    variable = tf.Variable(tf.zeros([4]))
    average = swa_tf.PowerFunctionAverage(12**-0.5)
    values = normal(9)
    train(average, variable, values)
    expected = np.mean(values, axis=0, dtype=np.float64)
    np.testing.assert_allclose(average.average(variable), expected, rtol=1e-6)


@pytest.mark.parametrize("period", [1, 10])
@pytest.mark.parametrize("mode", [modes.eager, modes.function])
def test_the_width_is_the_same_at_any_period(mode, period):
    """Each model is a unit vector, so that the average is the profile."""
    n, start = 40, 3
    steps = start + n * period
    models = np.zeros([steps, n], np.float32)
    models[start::period] = np.eye(n)
    when = swa_tf.AveragingSchedule(start, period)
    weights, n_models = mode([*models], tf.float32, when=when, make=make)
    assert n_models == n
    exact = profile(n, gamma_of("", WIDTH))
    np.testing.assert_allclose(weights, exact, 0, 4 * 2.0**-23)
    # Its steps of 1 / 40 have a standard deviation of 0.007 each.
    assert width_of(np.float64(weights)) == pytest.approx(WIDTH, abs=1e-3)


@pytest.mark.parametrize("period", [1, 2, 10])
def test_counting_steps_in_beta_makes_it_longer(period):
    """What a peer does: with a period of 10 its average is hardly one."""
    n, gamma = 200, gamma_of("", WIDTH)
    weights = np.zeros(n)
    for i in range(n):
        step = i * period + 1  # it counts before it averages
        beta = (1 - 1 / (step + 1)) ** (gamma + 1)
        weights *= beta
        weights[i] += 1 - beta
    wrong = width_of(weights / weights.sum())
    # As if gamma + 1 were divided by the period.
    expected = {1: 0.10, 2: 0.16, 10: 0.30}[period]
    assert wrong == pytest.approx(expected, abs=0.01)


@pytest.mark.parametrize("in_function", [False, True])
@pytest.mark.parametrize("n_before", [1, 7])
def test_resumed_bit_for_bit(n_before, in_function, tmp_path):
    values = normal(20)

    def new():
        variable = tf.Variable(tf.zeros([4]))
        average = make(when=swa_tf.AveragingSchedule(1, 2))

        def step(value):
            variable.assign(value)
            average.apply([variable])

        return variable, average, tf.function(step) if in_function else step

    variable, average, step = new()
    for i, value in enumerate(values):
        if i == n_before:
            saved = tf.train.Checkpoint(v=variable, average=average)
            path = saved.save(str(tmp_path / "ckpt"))
        step(value)
    again, resumed, step = new()
    tf.train.Checkpoint(v=again, average=resumed).restore(path)
    for value in values[n_before:]:
        step(value)
    assert int(resumed.n_models) == int(average.n_models) == 10
    np.testing.assert_array_equal(
        resumed.average(again), average.average(variable)
    )


@pytest.mark.parametrize(
    ("make_other", "received"),
    [
        (
            lambda: swa_tf.PowerFunctionAverage(0.2),
            "PowerFunctionAverage(relative_width=0.2)",
        ),
        (
            swa_tf.StochasticWeightAveraging,
            "StochasticWeightAveraging()",
        ),
    ],
)
@pytest.mark.parametrize("is_built", [False, True])
def test_a_checkpoint_of_another_profile_changes_nothing(
    is_built, make_other, received, tmp_path
):
    variable, average = tf.Variable(tf.zeros([4])), make()
    train(average, variable, normal(3))
    saved = tf.train.Checkpoint(average=average)
    path = saved.save(str(tmp_path / "ckpt"))
    variable, other = tf.Variable(tf.ones([4])), make_other()
    if is_built:
        other.apply([variable])
    wanted = "holds: PowerFunctionAverage(relative_width=0.1). Received: "
    with pytest.raises(ValueError, match=re.escape(wanted + received)):
        tf.train.Checkpoint(average=other).restore(path)
    assert int(other.n_models) == is_built
    if is_built:
        np.testing.assert_array_equal(other.average(variable), np.ones(4))


def test_a_v1_saver(tmp_path):
    v1 = tf.compat.v1
    values = normal(6)
    path = str(tmp_path / "ckpt")

    def run(some, restores):
        with tf.Graph().as_default(), v1.Session() as session:
            value = v1.placeholder(tf.float32, [4])
            variable = v1.get_variable("w", [4])
            average = make()
            with tf.control_dependencies([variable.assign(value)]):
                apply = average.apply([variable])
            saver = v1.train.Saver()
            session.run(v1.global_variables_initializer())
            if restores:
                saver.restore(session, path)
            for each in some:
                session.run(apply, {value: each})
            saver.save(session, path)
            return session.run(average.average(variable))

    run(values[:3], restores=False)
    resumed = run(values[3:], restores=True)
    expected, _ = modes.graph(values, tf.float32, make=make)
    np.testing.assert_array_equal(resumed, expected)


def test_swapped_and_copied():
    variable, average = tf.Variable(tf.zeros([4])), make()
    values = normal(5)
    train(average, variable, values)
    expected = average.average(variable).numpy()
    copied = copy.deepcopy(average)
    assert copied.relative_width == average.relative_width == WIDTH
    with swa_tf.averaged_weights(copied, [variable]):
        np.testing.assert_array_equal(variable, expected)
    np.testing.assert_array_equal(variable, values[-1])


def test_in_fit():
    model = tf.keras.Sequential([tf.keras.layers.Dense(1)])
    model.compile("sgd", "mse", run_eagerly=True)
    average = make()
    seen = []
    model.fit(
        np.ones([8, 2]),
        np.ones([8, 1]),
        epochs=4,
        verbose=0,
        callbacks=[
            tf.keras.callbacks.LambdaCallback(
                on_epoch_end=lambda *_: seen.append(model.get_weights()[0])
            ),
            swa_tf.SWACallback(start_epoch=0, averages=average),
        ],
    )
    expected = np.tensordot(profile(4, gamma_of("", WIDTH)), seen, 1)
    np.testing.assert_allclose(model.get_weights()[0], expected, rtol=1e-6)


def test_it_does_not_merge(tmp_path):
    variable, average = tf.Variable(tf.zeros([4])), make()
    train(average, variable, normal(3))
    saved = tf.train.Checkpoint(average=average)
    path = saved.save(str(tmp_path / "ckpt"))
    target = swa_tf.StochasticWeightAveraging()
    target.build([variable])
    with pytest.raises(ValueError, match="`others` must be checkpoints of"):
        swa_tf.merge_averages(target, [path])
