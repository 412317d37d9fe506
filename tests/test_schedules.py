"""The learning-rate plans against hand-made numbers and their own bounds."""

import io
import math
import sys

import hypothesis
import hypothesis.strategies as st
import matplotlib.figure
import numpy as np
import pytest
import tensorflow as tf

from swa_tf import schedules
from tests.plans import BY_HAND, WarmUp

keras = tf.keras.optimizers.schedules


NAN, INF = float("nan"), float("inf")


plans = pytest.mark.parametrize(
    ("plan", "rates"),
    [(make, rates) for make, rates in BY_HAND.values()],
    ids=BY_HAND,
)


# One rounding to float32; those with a cosine may differ in its last place.
close = {"rtol": 2e-7, "atol": 2e-8}


@pytest.fixture
def float64_rates():
    """Shows what the rounding to float32 hides."""
    tf.keras.backend.set_floatx("float64")
    yield
    tf.keras.backend.set_floatx("float32")


@plans
@pytest.mark.parametrize(
    "step",
    [
        int,
        np.int32,
        lambda i: tf.constant(i, tf.int32),
        lambda i: tf.constant(i, tf.int64),
        lambda i: tf.constant(i, tf.float32),
        lambda i: tf.Variable(i, dtype=tf.int64),
    ],
    ids=["int", "numpy", "int32", "int64", "float32", "variable"],
)
def test_by_hand(plan, rates, step):
    plan = plan()
    found = [plan(step(i)) for i in range(len(rates))]
    assert {rate.dtype for rate in found} == {tf.float32}
    assert {rate.shape.rank for rate in found} == {0}
    np.testing.assert_allclose(found, rates, **close)


@plans
@pytest.mark.parametrize("jit_compile", [False, True], ids=["graph", "xla"])
def test_in_tf_function(plan, rates, jit_compile):
    rate = tf.function(plan(), jit_compile=jit_compile)
    steps = [tf.constant(i, tf.int64) for i in range(len(rates))]
    np.testing.assert_allclose([rate(step) for step in steps], rates, **close)


@plans
def test_round_trip(plan, rates):
    plan = plan()
    config = plan.get_config()
    for again in (
        type(plan).from_config(config),
        keras.deserialize(keras.serialize(plan)),
    ):
        assert type(again) is type(plan)
        assert again.get_config() == config == plan.get_config()
        found = [again(i) for i in range(len(rates))]
        np.testing.assert_allclose(found, rates, **close)


@pytest.mark.parametrize(
    ("plan", "config"),
    [
        (
            schedules.LinearRamp(0.5, np.float32(0.25), 2, np.int64(4), "plan"),
            {
                "initial_learning_rate": 0.5,
                "final_learning_rate": 0.25,
                "ramp_start": 2,
                "ramp_steps": 4,
                "name": "plan",
            },
        ),
        # 7 / 2, and 63 / 10 - 7 / 2.
        (
            schedules.paper_plan(0.5, 0.25, 7),
            {
                "initial_learning_rate": 0.5,
                "final_learning_rate": 0.25,
                "ramp_start": 3.5,
                "ramp_steps": 2.8,
                "name": None,
            },
        ),
        (
            schedules.Cyclical(0.5, 0.1, period=4, start=2, name="plan"),
            {
                "max_learning_rate": 0.5,
                "min_learning_rate": 0.1,
                "period": 4,
                "start": 2,
                "name": "plan",
            },
        ),
        (
            schedules.SWALearningRate(0.5, 0.1, 2, 4, "linear", "plan"),
            {
                "initial_learning_rate": 0.5,
                "swa_learning_rate": 0.1,
                "swa_start": 2,
                "anneal_steps": 4,
                "anneal_strategy": "linear",
                "name": "plan",
            },
        ),
    ],
)
def test_config(plan, config):
    found = plan.get_config()
    assert found == config
    assert {k: type(v) for k, v in found.items()} == {
        k: type(v) for k, v in config.items()
    }
    assert type(plan).from_config(config).get_config() == config


def test_config_within_a_config():
    decay = keras.CosineDecay(0.5, decay_steps=8)
    config = schedules.SWALearningRate(decay, 0.1, 2, 4).get_config()
    assert config["initial_learning_rate"] == keras.serialize(decay)
    before = dict(config)
    again = schedules.SWALearningRate.from_config(config)
    assert config == before
    assert type(again.initial_learning_rate) is type(decay)


@pytest.mark.parametrize(
    "name", ["ramp", "cyclical", "annealed by cosine", "annealed linearly"]
)
def test_many_steps_at_once(name):
    plan, rates = BY_HAND[name]
    np.testing.assert_allclose(plan()(tf.range(len(rates))), rates, **close)


@pytest.mark.parametrize("name", [None, "plan"])
@pytest.mark.parametrize(
    "plan", ["ramp", "cyclical", "annealed by cosine", "warm-up, then a jump"]
)
def test_its_operations_bear_its_name(plan, name):
    plan = BY_HAND[plan][0]()
    plan.name = name
    with tf.Graph().as_default():
        rate = plan(tf.constant(3))
    assert rate.name.startswith(f"{name or type(plan).__name__}/")


def test_a_ramp_of_no_steps_divides_by_nothing():
    tf.debugging.enable_check_numerics()
    try:
        rates = [
            schedules.LinearRamp(1.0, 0.25, 0, 0)(1),
            schedules.paper_plan(1.0, 0.25, 0)(1),
            schedules.SWALearningRate(1.0, 0.25, 0, 0)(1),
        ]
    finally:
        tf.debugging.disable_check_numerics()
    assert [float(rate) for rate in rates] == [0.25] * 3


@pytest.mark.parametrize("start", [2**24, 2**31, 2**40])
def test_every_step_counts_beyond_what_float32_counts(start):
    fall = [1.0, 0.75, 0.5, 0.25, 0.0, 0.0]
    for plan, expected in (
        (schedules.LinearRamp(1.0, 0.0, start, 4), fall),
        (schedules.SWALearningRate(1.0, 0.0, start, 4, "linear"), fall),
        # From a ramp that has just ended, at a step that float32 lacks.
        (
            schedules.SWALearningRate(
                schedules.LinearRamp(0.0, 1.0, start, 1), 0.0, start + 1, 2
            ),
            [0.0, 1.0, 0.5, 0.0, 0.0, 0.0],
        ),
        # The last steps of one cycle, the first of the next: the start is a
        # multiple of 4, so `start + i` is step i of its cycle.
        (
            schedules.Cyclical(1.0, 0.0, period=4),
            [0.75, 0.5, 0.25, 0.0, 0.75, 0.5],
        ),
        (
            schedules.Cyclical(1.0, 0.0, period=4, start=start + 1),
            [1.0, 0.75, 0.5, 0.25, 0.0, 0.75],
        ),
    ):
        for step in (int, lambda i: tf.constant(i, tf.int64)):
            assert [float(plan(step(start + i))) for i in range(6)] == expected


def test_a_float32_step_is_off_by_its_own_rounding_only():
    start = 2**24
    rate = schedules.LinearRamp(1.0, 0.0, ramp_start=start, ramp_steps=4)
    steps = tf.constant([start - 2, start, start + 2, start + 4], tf.float32)
    assert rate(steps).numpy().tolist() == [1.0, 1.0, 0.5, 0.0]


def test_an_int32_step_before_a_start_that_int32_cannot_hold():
    rate = schedules.SWALearningRate(WarmUp(), 0.0, 2**40, 4)
    assert float(rate(tf.constant(4, tf.int32))) == 0.5


@pytest.mark.parametrize("dtype", [tf.int32, tf.int64, tf.float32])
def test_the_schedule_before_it_gets_the_step_as_it_came(dtype):
    class Halves(keras.LearningRateSchedule):
        def __call__(self, step):
            assert step.dtype == dtype
            return tf.cast(step, tf.float32) / 2

    rate = schedules.SWALearningRate(Halves(), 0.0, swa_start=2, anneal_steps=2)
    found = [float(rate(tf.constant(i, dtype))) for i in range(5)]
    np.testing.assert_allclose(found, [0.0, 0.5, 1.0, 0.5, 0.0], **close)


def test_the_rate_has_the_float_type_of_keras(float64_rates):
    for name in ("ramp", "cyclical", "annealed by cosine"):
        plan, rates = BY_HAND[name]
        found = plan()(tf.range(len(rates)))
        assert found.dtype == tf.float64
        np.testing.assert_allclose(found, rates, rtol=1e-14)


def test_ends_are_exact_where_adding_the_difference_is_not(float64_rates):
    first, last = 1e6, 1e-12
    assert first + (last - first) != last
    for plan in (
        schedules.LinearRamp(first, last, 0, 3),
        schedules.Cyclical(first, last, 4),
        schedules.SWALearningRate(first, last, 0, 3, "cos"),
        schedules.SWALearningRate(first, last, 0, 3, "linear"),
        schedules.SWALearningRate(
            schedules.LinearRamp(first, 0.0, 0, 9), last, 0, 3
        ),
    ):
        assert float(plan(3)) == last


# TensorFlow may take float32's subnormal numbers, below 1e-38, for 0.
rates = st.just(0.0) | st.floats(1e-30, 1e6)


@hypothesis.settings(max_examples=200)
@hypothesis.given(
    kind=st.sampled_from(["ramp", "cos", "linear"]),
    initial=rates,
    final=rates,
    start=st.integers(0, 2**40),
    length=st.integers(1, 2**40),
    middle=st.floats(0.0, 1.0),
)
def test_bounded_monotone_continuous(
    kind, initial, final, start, length, middle
):
    if kind == "ramp":
        rate = schedules.LinearRamp(initial, final, start, length)
    else:
        rate = schedules.SWALearningRate(initial, final, start, length, kind)
    low, high = sorted([np.float32(initial), np.float32(final)])
    at = start + int(middle * length)
    steps = [0, start, start + 1, at, at + 1, start + length]
    values = rate(tf.constant(sorted([*steps, 2**42]), tf.int64)).numpy()
    assert np.all((low <= values) & (values <= high))

    falls = np.diff(values.astype(np.float64)) * np.sign(initial - final)
    assert np.all(falls <= 0.0)

    assert rate(start) == np.float32(initial)
    assert rate(start + length) == np.float32(final)
    # One step moves it by the slope, and by two roundings to float32. The
    # cosine is steepest in the middle: d/dt (1 - cos(pi t)) / 2 = pi / 2.
    slope = abs(final - initial) / length
    slope *= math.pi / 2 if kind == "cos" else 1.0
    jump = abs(float(rate(at + 1)) - float(rate(at)))
    assert jump <= slope + 2 * np.spacing(high)


@hypothesis.settings(max_examples=200)
@hypothesis.given(
    bounds=st.tuples(rates, rates).map(sorted),
    start=st.integers(0, 2**40),
    period=st.integers(1, 2**30),
    cycle=st.integers(0, 2**10),
    middle=st.floats(0.0, 1.0),
)
def test_cycles_fall_between_their_bounds(bounds, start, period, cycle, middle):
    low, high = bounds
    rate = schedules.Cyclical(high, low, period, start)
    first = start + cycle * period
    last = first + period - 1
    at = first + int(middle * (period - 1))
    before, *values, after = rate(
        tf.constant([max(first - 1, 0), first, at, last, last + 1], tf.int64)
    ).numpy()
    assert np.all(np.diff(values) <= 0.0)
    assert values[-1] == np.float32(low)
    assert values[0] == after
    assert values[0] <= np.float32(high)
    if cycle:
        assert before == np.float32(low)
    elif start:
        assert before == np.float32(high)
    # By the slope a step from the maximum, a step before the cycle; float64
    # is good to 2^-52 of the maximum, and each rate is rounded to float32.
    for step, value in zip((first, at, last), values):
        exact = high + (low - high) / period * (step - first + 1)
        assert abs(value - exact) <= np.spacing(np.float32(high))


@hypothesis.given(
    initial=rates, final=rates, swa_start=st.integers(1, 500) | st.floats(1, 50)
)
def test_paper_plan_is_the_function_of_the_papers_code(
    initial, final, swa_start
):
    steps = np.arange(int(swa_start) + 2)
    t = steps / swa_start
    expected = np.interp(t, [0.5, 0.9], [initial, final])
    plan = schedules.paper_plan(initial, final, swa_start)
    # Its edges in t are 0.9 rounded, and t itself: to 2^-52 of the step.
    np.testing.assert_allclose(
        plan(tf.constant(steps)),
        expected,
        rtol=1e-6,
        atol=1e-12 * max(initial, final),
    )


def test_paper_plan_meets_its_edges_exactly(float64_rates):
    """Every start gives its plan, whether 0.9 of it is exact or not."""
    for swa_start in [*range(1, 300), 10**9 + 7, 2.3, 1e-3]:
        plan = schedules.paper_plan(0.3, 0.1, swa_start)
        edges = [swa_start / 2, 9 * swa_start / 10]
        found = plan(tf.constant(edges, tf.float64))
        assert found.numpy().tolist() == [0.3, 0.1], swa_start
        inside = np.nextafter(edges, [INF, 0.0]) * (
            1 + 1e-9 * np.array([1, -1])
        )
        high, low = plan(tf.constant(inside)).numpy()
        assert 0.1 < low < high < 0.3, swa_start


@pytest.mark.parametrize(
    "schedule",
    [
        BY_HAND["ramp"][0](),
        keras.PiecewiseConstantDecay([2], [0.5, 0.4]),
        schedules.per_epoch(BY_HAND["ramp"][0]()),
    ],
    ids=["plan", "schedule", "function"],
)
def test_plot_schedule(monkeypatch, schedule):
    # As where there is no display.
    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)
    ax = schedules.plot_schedule(schedule, 4)
    (line,) = ax.lines
    np.testing.assert_array_equal(line.get_xdata(), [0, 1, 2, 3])
    np.testing.assert_allclose(
        line.get_ydata(), [0.5, 0.5, 0.5, 0.4], rtol=1e-7
    )
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("step", "learning rate")
    file = io.BytesIO()
    ax.figure.savefig(file)
    assert file.getvalue().startswith(b"\x89PNG")


def test_plot_schedule_on_axes():
    ax = matplotlib.figure.Figure().add_subplot()
    assert schedules.plot_schedule(BY_HAND["ramp"][0](), 1, ax=ax) is ax
    assert schedules.plot_schedule(BY_HAND["cyclical"][0](), 1, ax=ax) is ax
    assert [len(line.get_xdata()) for line in ax.lines] == [1, 1]


def test_plot_schedule_without_matplotlib(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match=r"pip install matplotlib$"):
        schedules.plot_schedule(BY_HAND["ramp"][0](), 4)


def test_published_plan_by_hand():
    """200 epochs of 10 steps, SWA from epoch 100, the ramp ends at 180."""
    plan = schedules.published_plan(0.1, 0.001, 1000, 2000)
    steps = [0, 999, 1000, 1001, 1400, 1799, 1800, 1801, 2000]
    slope = (0.1 - 0.001) / 800
    expected = [0.1, 0.1, 0.1, 0.1 - slope, 0.0505, 0.001 + slope]
    np.testing.assert_allclose(
        [plan(step) for step in steps],
        [*expected, 0.001, 0.001, 0.001],
        rtol=1e-6,
    )


@pytest.mark.parametrize(
    ("swa_start", "total", "expected"),
    [
        (0, 10, [1.0, *(1 - i / 9 for i in range(1, 9)), 0.0, 0.0]),
        (7, 15, [1.0] * 8 + [5 / 6, 4 / 6, 3 / 6, 2 / 6, 1 / 6, 0.0, 0.0, 0.0]),
        # SWA starts where the ramp ends, after it, and with the last step.
        (9, 10, [1.0] * 10 + [0.0]),
        (18, 19, [1.0] * 19 + [0.0]),
        (10, 10, [1.0] * 11),
        (0, 0, [1.0]),
        # NumPy's small integers do not wrap.
        (
            np.uint8(1),
            np.uint8(200),
            [1.0, 1.0] + [1 - i / 179 for i in range(1, 10)],
        ),
    ],
)
def test_published_plan_at_its_edges(swa_start, total, expected):
    plan = schedules.published_plan(1.0, 0.0, swa_start, total)
    np.testing.assert_allclose(
        plan(tf.range(len(expected))), expected, rtol=1e-6, atol=1e-7
    )
