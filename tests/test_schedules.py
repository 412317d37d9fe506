"""The learning-rate plans against hand-made numbers and their own bounds."""

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest
import tensorflow as tf

from swa_tf import schedules

# 0.5 to 0.1 from step 2 on, by 0.1 a step.
BY_HAND = [0.5, 0.5, 0.5, 0.4, 0.3, 0.2, 0.1, 0.1]


def ramp():
    return schedules.LinearRamp(0.5, 0.1, ramp_start=2, ramp_steps=4)


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
def test_by_hand(step):
    rates = [ramp()(step(i)) for i in range(8)]
    assert {rate.dtype for rate in rates} == {tf.float32}
    assert {rate.shape.rank for rate in rates} == {0}
    # One rounding to float32.
    np.testing.assert_array_equal(rates, np.float32(BY_HAND))


def test_in_tf_function():
    rate = tf.function(ramp())
    steps = [tf.constant(i, tf.int64) for i in range(8)]
    np.testing.assert_array_equal(
        [rate(step) for step in steps], np.float32(BY_HAND)
    )


def test_many_steps_at_once():
    np.testing.assert_array_equal(ramp()(tf.range(8)), np.float32(BY_HAND))


def test_ramp_from_the_first_step():
    rate = schedules.LinearRamp(1.0, 0.0, ramp_start=0, ramp_steps=2)
    assert [float(rate(i)) for i in range(4)] == [1.0, 0.5, 0.0, 0.0]


def test_a_ramp_of_no_steps_jumps_after_its_start():
    rate = schedules.LinearRamp(1.0, 0.25, ramp_start=2, ramp_steps=0)
    assert [float(rate(i)) for i in range(5)] == [1.0, 1.0, 1.0, 0.25, 0.25]


def test_a_ramp_of_no_steps_divides_by_nothing():
    tf.debugging.enable_check_numerics()
    try:
        rate = schedules.LinearRamp(1.0, 0.25, ramp_start=0, ramp_steps=0)(1)
    finally:
        tf.debugging.disable_check_numerics()
    assert float(rate) == 0.25


def test_a_ramp_may_rise():
    rate = schedules.LinearRamp(0.0, 1.0, ramp_start=0, ramp_steps=4)
    assert [float(rate(i)) for i in range(5)] == [0.0, 0.25, 0.5, 0.75, 1.0]


@pytest.mark.parametrize("start", [2**24, 2**31, 2**40])
def test_every_step_counts_beyond_what_float32_counts(start):
    rate = schedules.LinearRamp(1.0, 0.0, ramp_start=start, ramp_steps=4)
    expected = [1.0, 0.75, 0.5, 0.25, 0.0, 0.0]
    for step in (int, lambda i: tf.constant(i, tf.int64)):
        rates = [float(rate(step(start + i))) for i in range(6)]
        assert rates == expected


def test_a_float32_step_is_off_by_its_own_rounding_only():
    start = 2**24
    rate = schedules.LinearRamp(1.0, 0.0, ramp_start=start, ramp_steps=4)
    steps = tf.constant([start - 2, start, start + 2, start + 4], tf.float32)
    assert rate(steps).numpy().tolist() == [1.0, 1.0, 0.5, 0.0]


def test_the_rate_has_the_float_type_of_keras():
    tf.keras.backend.set_floatx("float64")
    try:
        rate = ramp()(3)
    finally:
        tf.keras.backend.set_floatx("float32")
    assert rate.dtype == tf.float64
    np.testing.assert_allclose(rate, 0.4, rtol=1e-15)


rates = st.floats(0.0, 1e6)


@hypothesis.settings(max_examples=200)
@hypothesis.given(
    initial=rates,
    final=rates,
    start=st.integers(0, 2**40),
    length=st.integers(1, 2**40),
    middle=st.floats(0.0, 1.0),
)
def test_bounded_monotone_continuous(initial, final, start, length, middle):
    rate = schedules.LinearRamp(initial, final, start, length)
    low, high = sorted([np.float32(initial), np.float32(final)])
    at = start + int(middle * length)
    steps = [0, start, start + 1, at, at + 1, start + length]
    values = rate(tf.constant(sorted([*steps, 2**42]), tf.int64)).numpy()
    assert np.all((low <= values) & (values <= high))

    falls = np.diff(values.astype(np.float64)) * np.sign(initial - final)
    assert np.all(falls <= 0.0)

    assert rate(start) == np.float32(initial)
    assert rate(start + length) == np.float32(final)
    # One step moves it by the slope, and by two roundings to float32.
    jump = abs(float(rate(at + 1)) - float(rate(at)))
    assert jump <= abs(final - initial) / length + 2 * np.spacing(high)


def test_round_trip():
    rate = schedules.LinearRamp(0.5, 0.1, 2, 4, name="plan")
    for again in (
        schedules.LinearRamp.from_config(rate.get_config()),
        tf.keras.optimizers.schedules.deserialize(
            tf.keras.optimizers.schedules.serialize(rate)
        ),
    ):
        assert type(again) is schedules.LinearRamp
        assert again.get_config() == {
            "initial_learning_rate": 0.5,
            "final_learning_rate": 0.1,
            "ramp_start": 2,
            "ramp_steps": 4,
            "name": "plan",
        }
        np.testing.assert_array_equal(again(tf.range(8)), np.float32(BY_HAND))


@pytest.mark.parametrize("name", [None, "plan"])
def test_its_operations_bear_its_name(name):
    with tf.Graph().as_default():
        rate = schedules.LinearRamp(0.5, 0.1, 2, 4, name=name)(3)
    assert rate.name.startswith(f"{name or 'LinearRamp'}/")


def test_in_an_optimizer():
    variable = tf.Variable(0.0)
    optimizer = tf.keras.optimizers.SGD(ramp())
    for _ in range(8):
        optimizer.apply_gradients([(tf.constant(-1.0), variable)])
    np.testing.assert_allclose(variable, sum(BY_HAND), rtol=1e-6)


@pytest.mark.parametrize("argument", ["initial", "final"])
@pytest.mark.parametrize(
    "value", [-0.1, float("nan"), float("inf"), "0.1", None]
)
def test_a_rate_must_be_finite_and_not_negative(argument, value):
    argument += "_learning_rate"
    given = {"initial_learning_rate": 0.1, "final_learning_rate": 0.1}
    with pytest.raises(ValueError, match=f"^`{argument}`") as error:
        schedules.LinearRamp(
            **{**given, argument: value}, ramp_start=0, ramp_steps=0
        )
    assert str(error.value) == (
        f"`{argument}` must be finite and >= 0. Received: {argument}={value!r}"
    )


@pytest.mark.parametrize("argument", ["ramp_start", "ramp_steps"])
@pytest.mark.parametrize("value", [-1, 1.5, float("nan"), float("inf"), None])
def test_steps_must_be_whole_and_not_negative(argument, value):
    given = {"ramp_start": 0, "ramp_steps": 0}
    with pytest.raises(ValueError, match=f"^`{argument}`") as error:
        schedules.LinearRamp(0.1, 0.1, **{**given, argument: value})
    assert str(error.value) == (
        f"`{argument}` must be an integer >= 0. Received: {argument}={value!r}"
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
    ],
)
def test_published_plan_at_its_edges(swa_start, total, expected):
    plan = schedules.published_plan(1.0, 0.0, swa_start, total)
    np.testing.assert_allclose(
        plan(tf.range(total + 1)), expected, rtol=1e-6, atol=1e-7
    )


def test_published_plan_errors():
    with pytest.raises(ValueError, match=r"^`swa_start`") as error:
        schedules.published_plan(0.1, 0.01, 11, 10)
    assert str(error.value) == (
        "`swa_start` must be <= `total_steps`. "
        "Received: swa_start=11, total_steps=10"
    )
    with pytest.raises(ValueError, match=r"^`swa_start` must be an integer"):
        schedules.published_plan(0.1, 0.01, -1, 10)
    with pytest.raises(ValueError, match=r"^`total_steps` must be an integer"):
        schedules.published_plan(0.1, 0.01, 0, 0.5)
