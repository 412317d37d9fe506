"""Models with NaN or infinite weights, left out by `skip_nonfinite=True`."""

import functools

import numpy as np
import pytest
import tensorflow as tf

import swa_tf
from tests import fitting, modes
from tests.fitting import exhaustive

RNG = np.random.default_rng(0)
NAN, INF = float("nan"), float("inf")
AVERAGES = {
    "swa": (swa_tf.StochasticWeightAveraging, lambda n: 1 / (n + 1)),
    "ema": (
        lambda **kwargs: swa_tf.ExponentialMovingAverage(0.75, **kwargs),
        lambda n: 0.25,
    ),
    # The relative width of gamma = 1.
    "power": (
        functools.partial(swa_tf.PowerFunctionAverage, 18**-0.5),
        lambda n: 1 - (n / (n + 1)) ** 2,
    ),
}
SHAPE = [3, 5]
CASES = (modes.ALL, tuple(AVERAGES))


def models(dtype=np.float32, n=6, shape=SHAPE):
    """Of which the first and two others are to be left out."""
    values = RNG.normal(size=[n, *shape]).astype(dtype)
    values[0, 0, 0], values[2, -1, -1], values[3, 1, 0] = NAN, INF, -INF
    return list(values)


def expected(values, c, average=None):
    """The recurrence over finite models in float64."""
    n = 0
    for value in values:
        if np.all(np.isfinite(value)):
            value = np.float64(value)
            average = value if average is None else average
            average = average + c(n) * (value - average)
            n += 1
    return average, n


@pytest.mark.parametrize(("mode", "kind"), fitting.covering(1, *CASES))
def test_models_that_are_not_finite_are_left_out(mode, kind):
    make, c = AVERAGES[kind]
    values, start = models(), None
    if kind == "ema" and mode not in (modes.eager, modes.cross_replica):
        start = np.zeros(SHAPE)  # the variable's value when it is traced
    make = functools.partial(make, skip_nonfinite=True)
    found, n_models = mode(values, tf.float32, make=make)
    average, n = expected(values, c, start)
    np.testing.assert_allclose(found, average, rtol=1e-6, atol=1e-6)
    assert n_models == n


@pytest.mark.parametrize(
    ("mode", "kind"), [(modes.eager, "ema"), exhaustive(modes.xla, "swa")]
)
def test_bits_of_finite_models_are_the_same(mode, kind):
    make = AVERAGES[kind][0]
    values = list(RNG.normal(size=[4, *SHAPE]).astype(np.float32))
    found = [
        mode(values, tf.float32, make=functools.partial(make, **settings))
        for settings in ({}, {"skip_nonfinite": True})
    ]
    np.testing.assert_array_equal(*[average for average, _ in found])
    assert found[0][1] == found[1][1] == 4


@pytest.mark.parametrize("shape", [[], [7], [200, 100]])
@pytest.mark.parametrize("dtype", [tf.float16, tf.bfloat16, tf.float64])
def test_of_any_dtype_where_squares_overflow(dtype, shape):
    """Each element is looked at where the sum of squares says nothing."""
    variable = tf.Variable(tf.fill(shape, tf.cast(dtype.max, dtype)))
    swa = swa_tf.StochasticWeightAveraging(skip_nonfinite=True)
    swa.apply([variable])
    variable.assign(tf.fill(shape, tf.cast(NAN, dtype)))
    swa.apply([variable])
    assert (int(swa.n_models), int(swa.n_skipped)) == (1, 1)
    np.testing.assert_array_equal(
        swa.average(variable), np.full(shape, dtype.max)
    )


@pytest.mark.parametrize("place", [0, 1])
@pytest.mark.parametrize("value", [NAN, INF, -INF])
def test_one_number_leaves_out_all_variables(value, place):
    variables = [tf.Variable(tf.ones([2, 2])), tf.Variable([1.0, 1.0])]
    swa = swa_tf.StochasticWeightAveraging(skip_nonfinite=True)
    swa.apply(variables)
    for variable in variables:
        variable.assign(3.0 * tf.ones_like(variable))
    broken = variables[place].numpy()
    broken.flat[-1] = value
    variables[place].assign(broken)
    swa.apply(variables)
    for variable in variables:
        ones = np.ones(variable.shape)
        np.testing.assert_array_equal(swa.average(variable), ones)
    assert int(swa.n_skipped) == 1


def test_with_a_schedule_only_models_that_are_due_count():
    variable = tf.Variable(0.0)
    swa = swa_tf.StochasticWeightAveraging(
        when=swa_tf.AveragingSchedule(start=1, period=2), skip_nonfinite=True
    )

    @tf.function
    def step():
        swa.apply([variable])

    for value in (NAN, 1.0, NAN, INF, INF, 3.0):  # 1, INF and 3 are due
        variable.assign(value)
        step()
    assert float(swa.average(variable)) == 2.0
    counts = swa.n_models, swa.n_skipped, swa.n_calls
    assert [int(count) for count in counts] == [2, 1, 6]


@pytest.mark.parametrize("kind", AVERAGES)
def test_after_the_updates_that_run_op_by_op(kind):
    """Traced and compiled: 16,384 elements and more than 50 updates."""
    variable = tf.Variable(tf.zeros([128, 128]))
    average = AVERAGES[kind][0](skip_nonfinite=True)
    plain = AVERAGES[kind][0]()
    for i in range(60):
        value = np.full([128, 128], i + 1.0, np.float32)
        if i % 3 == 1:
            value[5, 7] = NAN
        variable.assign(value)
        average.apply([variable])
        if i % 3 != 1:
            plain.apply([variable])
    np.testing.assert_array_equal(
        average.average(variable), plain.average(variable)
    )
    assert (int(average.n_models), int(average.n_skipped)) == (40, 20)


def test_the_count_is_saved_copied_and_reset(tmp_path):
    def made():
        variable = tf.Variable(1.0)
        swa = swa_tf.StochasticWeightAveraging(skip_nonfinite=True)
        return variable, swa, tf.train.Checkpoint(variable=variable, swa=swa)

    variable, swa, checkpoint = made()
    for value in (2.0, NAN, NAN):
        variable.assign(value)
        swa.apply([variable])
    path = checkpoint.save(str(tmp_path / "saved"))
    variable, swa, checkpoint = made()
    checkpoint.restore(path)
    variable.assign(4.0)
    swa.apply([variable])
    assert (float(swa.average(variable)), int(swa.n_skipped)) == (3.0, 2)
    swa.reset()
    assert int(swa.n_skipped) == 0


def test_a_variable_that_joins_an_exponential_average_begins_when_finite():
    first, late = tf.Variable(1.0), tf.Variable(NAN)
    ema = swa_tf.ExponentialMovingAverage(0.5, skip_nonfinite=True)
    ema.apply([first])
    first.assign(3.0)
    ema.apply([first, late])  # left out, for both
    late.assign(5.0)
    ema.apply([first, late])
    assert float(ema.average(first)) == 2.0
    assert float(ema.average(late)) == 5.0


def test_without_it_there_is_no_count():
    swa = swa_tf.StochasticWeightAveraging()
    assert swa.n_skipped is None
    assert not any("skipped" in v.name for v in swa.variables)
    with pytest.raises(TypeError, match="`skip_nonfinite` must be True or Fal"):
        swa_tf.StochasticWeightAveraging(skip_nonfinite=1)
