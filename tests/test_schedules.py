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

from swa_tf import optimizers, schedules
from swa_tf.support import stack

keras = tf.keras.optimizers.schedules
NAN, INF = float("nan"), float("inf")


@stack.register
class WarmUp(keras.LearningRateSchedule):
    """A user's own: `step / 8`, for one step at a time."""

    def __call__(self, step):
        assert step.shape.rank == 0
        return tf.cast(step, tf.float32) / 8

    def get_config(self):
        return {}


# Half-way angles: (1 - cos(pi k / 4)) / 2 is 0, A, 1/2, 1 - A, 1.
A = (2 - math.sqrt(2)) / 4

# What makes a plan, its rates by hand from step 0 on, and the working. Every
# edge is there, and a step on either side.
BY_HAND = {
    # 0.5 to 0.1 in 4 steps after step 2, so by 0.1 a step.
    "ramp": (
        lambda: schedules.LinearRamp(0.5, 0.1, ramp_start=2, ramp_steps=4),
        [0.5, 0.5, 0.5, 0.4, 0.3, 0.2, 0.1, 0.1],
    ),
    "ramp from the first step": (
        lambda: schedules.LinearRamp(1.0, 0.0, ramp_start=0, ramp_steps=2),
        [1.0, 0.5, 0.0, 0.0],
    ),
    "ramp of no steps": (
        lambda: schedules.LinearRamp(1.0, 0.25, ramp_start=2, ramp_steps=0),
        [1.0, 1.0, 1.0, 0.25, 0.25],
    ),
    "rising ramp": (
        lambda: schedules.LinearRamp(0, 1, ramp_start=0, ramp_steps=4),
        [0.0, 0.25, 0.5, 0.75, 1.0, 1.0],
    ),
    # From 1.5 to 3.5: steps 2 and 3 are 1/4 and 3/4 of the way.
    "ramp between steps": (
        lambda: schedules.LinearRamp(1.0, 0.0, ramp_start=1.5, ramp_steps=2.0),
        [1.0, 1.0, 0.75, 0.25, 0.0, 0.0],
    ),
    # From 1.25 to 1.75: no step falls on it.
    "ramp within a step": (
        lambda: schedules.LinearRamp(1.0, 0.0, ramp_start=1.25, ramp_steps=0.5),
        [1.0, 1.0, 0.0, 0.0],
    ),
    # From 0.5 * 10 = 5 to 0.9 * 10 = 9, so by 0.1 a step.
    "paper": (
        lambda: schedules.paper_plan(0.5, 0.1, swa_start=10),
        [0.5, 0.5, 0.5, 0.5, 0.5, 0.5, 0.4, 0.3, 0.2, 0.1, 0.1, 0.1],
    ),
    # From 2.5 to 4.5: steps 3 and 4 are 1/4 and 3/4 of the way.
    "paper, edges between steps": (
        lambda: schedules.paper_plan(1.0, 0.0, swa_start=5),
        [1.0, 1.0, 1.0, 0.75, 0.25, 0.0, 0.0],
    ),
    # From 0.5 to 0.9.
    "paper, SWA from step 1": (
        lambda: schedules.paper_plan(1.0, 0.5, swa_start=1),
        [1.0, 0.5, 0.5],
    ),
    "paper, SWA from the start": (
        lambda: schedules.paper_plan(1.0, 0.5, swa_start=0),
        [1.0, 0.5, 0.5],
    ),
    # The paper's i = step - 2 + 1; t = 1/4, 2/4, 3/4, 4/4, 1/4, ...
    "cyclical": (
        lambda: schedules.Cyclical(0.5, 0.1, period=4, start=2),
        [0.5, 0.5, 0.4, 0.3, 0.2, 0.1, 0.4, 0.3, 0.2, 0.1, 0.4],
    ),
    "cyclical from the first step": (
        lambda: schedules.Cyclical(0.5, 0.1, period=2),
        [0.3, 0.1, 0.3, 0.1],
    ),
    "cycles of one step": (
        lambda: schedules.Cyclical(0.5, 0.1, period=1, start=2),
        [0.5, 0.5, 0.1, 0.1],
    ),
    "cycles between equal rates": (
        lambda: schedules.Cyclical(0.3, 0.3, period=3, start=1),
        [0.3] * 6,
    ),
    # 0.5 - 0.4 w, with w = 1/4, 2/4, 3/4, 1 after step 2.
    "annealed linearly": (
        lambda: schedules.SWALearningRate(0.5, 0.1, 2, 4, "linear"),
        [0.5, 0.5, 0.5, 0.4, 0.3, 0.2, 0.1, 0.1],
    ),
    # 0.5 - 0.4 w, with w = A, 1/2, 1 - A, 1 after step 2.
    "annealed by cosine": (
        lambda: schedules.SWALearningRate(0.5, 0.1, 2, 4),
        [0.5, 0.5, 0.5, 0.5 - 0.4 * A, 0.3, 0.1 + 0.4 * A, 0.1, 0.1],
    ),
    "annealed upwards": (
        lambda: schedules.SWALearningRate(0, 1, 0, 4),
        [0.0, A, 0.5, 1 - A, 1.0, 1.0],
    ),
    "annealed in no steps": (
        lambda: schedules.SWALearningRate(0.5, 0.1, 2, 0),
        [0.5, 0.5, 0.5, 0.1, 0.1],
    ),
    "annealed at once": (
        lambda: schedules.SWALearningRate(0.5, 0.1, 0, 0, "linear"),
        [0.5, 0.1, 0.1],
    ),
    # 0.2 * (1 + cos(pi step / 8)) up to step 4, which has 0.2; then by 0.05
    # down to 0.1, while the decay itself would go on to 0 at step 8.
    "cosine decay, then linear": (
        lambda: schedules.SWALearningRate(
            keras.CosineDecay(0.4, decay_steps=8), 0.1, 4, 2, "linear"
        ),
        [0.4 - 0.4 * (1 - math.cos(math.pi * i / 8)) / 2 for i in range(5)]
        + [0.15, 0.1, 0.1],
    ),
    # Half-way to 0.25 - 0.125 * 1/2 at step 3.
    "constant pieces, then cosine": (
        lambda: schedules.SWALearningRate(
            keras.PiecewiseConstantDecay([0, 3], [0.5, 0.25, 0.0]), 0.125, 2, 2
        ),
        [0.5, 0.25, 0.25, 0.1875, 0.125, 0.125],
    ),
    "warm-up, then a jump": (
        lambda: schedules.SWALearningRate(WarmUp(), 0.5, 2, 0),
        [0.0, 0.125, 0.25, 0.5, 0.5],
    ),
    # 1, 1, then half-way to 0.5 and there; held at step 3; then to 0 by 1/2.
    "annealed twice": (
        lambda: schedules.SWALearningRate(
            schedules.SWALearningRate(1.0, 0.5, 1, 2), 0.0, 3, 2
        ),
        [1.0, 1.0, 0.75, 0.5, 0.25, 0.0, 0.0],
    ),
}
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


def test_in_an_optimizer():
    variable = tf.Variable(0.0)
    plan, rates = BY_HAND["ramp"]
    optimizer = tf.keras.optimizers.SGD(plan())
    for _ in rates:
        optimizer.apply_gradients([(tf.constant(-1.0), variable)])
    np.testing.assert_allclose(variable, sum(rates), rtol=1e-6)


def falling_model(optimizer):
    """A model of one weight that falls by the learning rate at each step."""
    model = tf.keras.Sequential(
        [
            tf.keras.Input((1,)),
            tf.keras.layers.Dense(
                1, use_bias=False, kernel_initializer="zeros"
            ),
        ]
    )
    model.compile(optimizer, loss="mae")
    return model


def fit(model, steps, **kwargs):
    ones = np.ones((steps, 1), np.float32)
    model.fit(ones, -1e3 * ones, batch_size=1, verbose=0, **kwargs)


def fallen(model):
    return -float(model.get_weights()[0][0, 0])


def formats():
    """Returns the suffixes of models that train on after loading."""
    return [".keras"] if stack.KERAS_3 else [".keras", ".h5"]


@pytest.mark.parametrize("suffix", formats())
@pytest.mark.parametrize("name", ["cosine decay, then linear", "cyclical"])
def test_in_fit_and_in_a_saved_model(tmp_path, name, suffix):
    plan, rates = BY_HAND[name]
    model = falling_model(tf.keras.optimizers.SGD(plan()))
    fit(model, 3)
    np.testing.assert_allclose(fallen(model), sum(rates[:3]), rtol=1e-6)

    path = str(tmp_path / f"model{suffix}")
    model.save(path)
    # Keras 2 finds no registered schedule in HDF5 by itself.
    custom = {cls.__name__: cls for cls in [type(plan())] if suffix == ".h5"}
    again = tf.keras.models.load_model(path, custom_objects=custom)
    assert again.optimizer.get_config() == model.optimizer.get_config()
    fit(again, len(rates) - 3)
    np.testing.assert_allclose(fallen(again), sum(rates), rtol=1e-6)


def optimizer_classes():
    classes = [tf.keras.optimizers.SGD, optimizers.MomentumW]
    if not stack.KERAS_3:
        classes.append(tf.keras.optimizers.legacy.SGD)
    return classes


@pytest.mark.parametrize("cls", optimizer_classes())
def test_in_the_config_of_an_optimizer(cls):
    plan, rates = BY_HAND["cosine decay, then linear"]
    kwargs = {"weight_decay": 0.0} if cls is optimizers.MomentumW else {}
    optimizer = cls(plan(), momentum=0.0, **kwargs)
    config = tf.keras.optimizers.serialize(optimizer)
    model = falling_model(tf.keras.optimizers.get(config))
    fit(model, len(rates))
    np.testing.assert_allclose(fallen(model), sum(rates), rtol=1e-6)


def test_per_epoch_in_fit():
    """Three steps of 0.5 and three of 0.25."""
    rate = schedules.per_epoch(schedules.LinearRamp(0.5, 0.25, 0, 1))
    model = falling_model(tf.keras.optimizers.SGD(1.0))
    callback = tf.keras.callbacks.LearningRateScheduler(rate)
    fit(model, 3, epochs=2, callbacks=[callback])
    assert fallen(model) == 3 * 0.5 + 3 * 0.25


@pytest.mark.parametrize(
    "schedule",
    [
        BY_HAND["ramp"][0](),
        keras.PiecewiseConstantDecay([2], [0.5, 0.4]),
        lambda epoch: np.float32(0.5 if epoch < 3 else 0.4),
    ],
    ids=["plan", "schedule", "function"],
)
def test_per_epoch_gives_floats(schedule):
    found = [schedules.per_epoch(schedule)(epoch) for epoch in range(4)]
    assert {type(rate) for rate in found} == {float}
    np.testing.assert_allclose(found, [0.5, 0.5, 0.5, 0.4], rtol=1e-7)


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


REAL = "a finite number >= 0"
NOT_REAL = [-0.1, NAN, INF, "0.1", None, True, [0.1], 1j]
WHOLE = "an integer >= 0"
NOT_WHOLE = [-1, 1.5, 2.0, NAN, INF, "1", None, True]
RAMP = (
    schedules.LinearRamp,
    {
        "initial_learning_rate": 0.5,
        "final_learning_rate": 0.1,
        "ramp_start": 2,
        "ramp_steps": 4,
    },
)
PAPER = (
    schedules.paper_plan,
    {"learning_rate": 0.5, "swa_learning_rate": 0.1, "swa_start": 10},
)
PUBLISHED = (
    schedules.published_plan,
    {
        "learning_rate": 0.5,
        "swa_learning_rate": 0.1,
        "swa_start": 5,
        "total_steps": 10,
    },
)
CYCLICAL = (
    schedules.Cyclical,
    {
        "max_learning_rate": 0.5,
        "min_learning_rate": 0.1,
        "period": 4,
        "start": 2,
    },
)
ANNEALED = (
    schedules.SWALearningRate,
    {
        "initial_learning_rate": 0.5,
        "swa_learning_rate": 0.1,
        "swa_start": 2,
        "anneal_steps": 4,
    },
)
BAD = [
    (RAMP, "initial_learning_rate", REAL, NOT_REAL),
    (RAMP, "final_learning_rate", REAL, NOT_REAL),
    (RAMP, "ramp_start", REAL, NOT_REAL),
    (RAMP, "ramp_steps", REAL, NOT_REAL),
    (PAPER, "swa_start", REAL, NOT_REAL),
    (PUBLISHED, "swa_start", WHOLE, NOT_WHOLE),
    (PUBLISHED, "total_steps", WHOLE, NOT_WHOLE),
    (CYCLICAL, "max_learning_rate", REAL, NOT_REAL),
    (CYCLICAL, "min_learning_rate", REAL, NOT_REAL),
    (CYCLICAL, "period", "an integer >= 1", [0, *NOT_WHOLE]),
    (CYCLICAL, "start", WHOLE, NOT_WHOLE),
    (
        ANNEALED,
        "initial_learning_rate",
        f"a LearningRateSchedule, or {REAL}",
        [*NOT_REAL, WarmUp, abs],
    ),
    (ANNEALED, "swa_learning_rate", REAL, NOT_REAL),
    (ANNEALED, "swa_start", WHOLE, NOT_WHOLE),
    (ANNEALED, "anneal_steps", WHOLE, NOT_WHOLE),
    (
        ANNEALED,
        "anneal_strategy",
        '"cos" or "linear"',
        ["cosine", "COS", None, 1, True, ["cos"]],
    ),
]


@pytest.mark.parametrize(
    ("maker", "argument", "wanted", "values"),
    BAD,
    ids=[f"{maker[0].__name__}-{argument}" for maker, argument, *_ in BAD],
)
def test_bad_arguments(maker, argument, wanted, values):
    make, given = maker
    make(**given)
    for value in values:
        with pytest.raises(ValueError, match=f"^`{argument}`") as error:
            make(**{**given, argument: value})
        assert str(error.value) == (
            f"`{argument}` must be {wanted}. Received: {argument}={value!r}"
        )


@pytest.mark.parametrize("value", [0, -1, 1.5, "4", None, True])
def test_plot_schedule_of_no_steps(value):
    with pytest.raises(ValueError, match=r"^`steps`") as error:
        schedules.plot_schedule(abs, value)
    assert str(error.value) == (
        f"`steps` must be an integer >= 1. Received: steps={value!r}"
    )


@pytest.mark.parametrize("schedule", [0.1, None, "cos", schedules.LinearRamp])
@pytest.mark.parametrize(
    "function",
    [schedules.per_epoch, lambda value: schedules.plot_schedule(value, 4)],
    ids=["per_epoch", "plot_schedule"],
)
def test_what_is_no_schedule(function, schedule):
    with pytest.raises(TypeError, match=r"^`schedule`") as error:
        function(schedule)
    assert str(error.value) == (
        "`schedule` must be a LearningRateSchedule, or a function of the step. "
        f"Received: schedule={schedule!r}"
    )


def test_cycles_with_reversed_bounds():
    with pytest.raises(ValueError, match=r"^`min_learning_rate`") as error:
        schedules.Cyclical(0.1, 0.5, period=4)
    assert str(error.value) == (
        "`min_learning_rate` must be <= max_learning_rate=0.1. "
        "Received: min_learning_rate=0.5"
    )


def test_published_plan_that_ends_before_swa_starts():
    with pytest.raises(ValueError, match=r"^`swa_start`") as error:
        schedules.published_plan(0.1, 0.01, 11, 10)
    assert str(error.value) == (
        "`swa_start` must be <= total_steps=10. Received: swa_start=11"
    )


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
