"""A step that fails, as after the last batch, neither averages nor counts."""

import contextlib
import time

import numpy as np
import pytest
import tensorflow as tf

import swa_tf

VALUES = [1.0, 2.0, 4.0, 8.0, 16.0, 32.0]
FIRST = tf.VariableAggregation.ONLY_FIRST_REPLICA


def until_the_end(step, values):
    """Runs a step of each value, and one that fails."""

    def generator():
        yield from values
        time.sleep(0.05)  # what does not wait for a value will have run

    output = tf.TensorSpec([], tf.float32)
    dataset = tf.data.Dataset.from_generator(generator, output_signature=output)
    iterator = iter(dataset)
    with pytest.raises(tf.errors.OutOfRangeError):
        while True:
            step(iterator)


def in_three_rounds(step):
    for start in (0, 2, 4):
        until_the_end(step, VALUES[start : start + 2])


def every_second():
    return swa_tf.AveragingSchedule(period=2)


def in_a_function(variable, average):
    @tf.function
    def step(iterator):
        variable.assign(next(iterator))
        average.apply([variable])

    return step


def in_an_inner_function(variable, average):
    @tf.function
    def inner(value):
        variable.assign(value)
        average.apply([variable])

    return tf.function(lambda iterator: inner(next(iterator)))


def assigned_in_an_inner_function(variable, average):
    @tf.function
    def train(value):
        variable.assign(value)

    @tf.function
    def step(iterator):
        train(next(iterator))
        average.apply([variable])

    return step


def in_a_loop(variable, average):
    """The way of `steps_per_execution`: the last round fails in the middle."""

    @tf.function
    def steps(iterator):
        for _ in tf.range(3):
            variable.assign(next(iterator))
            average.apply([variable])

    return steps


STEPS = [
    in_a_function,
    in_an_inner_function,
    assigned_in_an_inner_function,
    in_a_loop,
]


@pytest.mark.parametrize("make", STEPS)
def test_the_end_of_an_iterator_is_no_step(make):
    """Steps 0, 2 and 4: (1 + 4 + 16) / 3 = 7."""
    variable = tf.Variable(0.0)
    average = swa_tf.StochasticWeightAveraging(when=every_second())
    in_three_rounds(make(variable, average))
    assert (int(average.n_calls), int(average.n_models)) == (6, 3)
    assert float(average.average(variable)) == 7.0


def test_an_error_in_the_middle_of_a_step_is_no_step():
    """Of the steps 1, 4 and 16 that are left, the first and the last."""
    variable = tf.Variable(1.0)
    average = swa_tf.StochasticWeightAveraging(when=every_second())

    def target(value):
        if value in (2.0, 8.0):
            raise ValueError("no such loss")
        return value

    @tf.function
    def step(value):
        with tf.GradientTape() as tape:
            wanted = tf.py_function(target, [value], tf.float32)
            loss = (variable - tf.ensure_shape(wanted, [])) ** 2 / 2
        variable.assign_sub(tape.gradient(loss, variable))
        average.apply([variable])

    for value in VALUES[:5]:
        fails = value in (2.0, 8.0)
        error = pytest.raises(tf.errors.OpError, match="no such loss")
        with error if fails else contextlib.nullcontext():
            step(tf.constant(value))
    assert (int(average.n_calls), int(average.n_models)) == (3, 2)
    assert float(average.average(variable)) == 8.5


def test_an_update_is_of_all_weights_or_of_none():
    """A weight that the step does not assign waits for those that it does."""
    trained, frozen = tf.Variable(0.0), tf.Variable([1.0, 1.0])
    average = swa_tf.ExponentialMovingAverage(0.5)

    @tf.function
    def step(iterator):
        trained.assign(next(iterator))
        average.apply([frozen, trained])

    until_the_end(step, [4.0])
    frozen.assign([9.0, 9.0])
    until_the_end(step, [16.0])
    # From 1 half of the way to 9; from 0 to 4 is 2, and from there to 16.
    assert average.average(frozen).numpy().tolist() == [5.0, 5.0]
    assert float(average.average(trained)) == 9.0
    assert int(average.n_models) == 2


def test_a_first_update_that_fails_is_still_to_come():
    variable = tf.Variable(4.0)
    ema = swa_tf.ExponentialMovingAverage(0.5)
    ema.build([variable])
    step = in_a_function(variable, ema)
    until_the_end(step, [])
    until_the_end(step, [16.0])
    assert (float(ema.average(variable)), int(ema.n_models)) == (16.0, 1)


def test_on_replicas():
    strategy = tf.distribute.MirroredStrategy(["/cpu:0", "/cpu:1"])
    with strategy.scope():
        variable = tf.Variable(0.0, aggregation=FIRST)
        average = swa_tf.StochasticWeightAveraging(when=every_second())

    def replica_step(value):
        variable.assign(value)
        average.apply([variable])

    @tf.function
    def step(iterator):
        strategy.run(replica_step, args=(next(iterator),))

    in_three_rounds(step)
    assert (int(average.n_calls), int(average.n_models)) == (6, 3)
    for part in strategy.experimental_local_results(average.average(variable)):
        assert float(part) == 7.0


def session_run(make_step):
    """Runs the op that `make_step` makes of a batch, until each end."""
    with tf.Graph().as_default():
        v1 = tf.compat.v1
        dataset = tf.data.Dataset.from_tensor_slices(VALUES[:2])
        iterator = v1.data.make_initializable_iterator(dataset)
        apply, found = make_step(iterator.get_next())
        with v1.Session() as session:
            session.run(v1.global_variables_initializer())
            session.run(v1.local_variables_initializer())
            for _ in range(3):
                session.run(iterator.initializer)
                with pytest.raises(tf.errors.OutOfRangeError):
                    while True:
                        session.run(apply)
            return session.run(found)


def test_in_a_session():
    """Steps 0, 2 and 4 are all the first of their round."""

    def make_step(value):
        variable = tf.Variable(0.0)
        average = swa_tf.StochasticWeightAveraging(when=every_second())
        with tf.control_dependencies([variable.assign(value)]):
            apply = average.apply([variable])
        found = average.average(variable), average.n_calls, average.n_models
        return apply, found

    assert session_run(make_step) == (1.0, 6, 3)


@pytest.mark.parametrize("when", [None, every_second()])
def test_tensors_in_a_session(when):
    """With c = 1/2 from zero: the mean of 1, 2, 1, 2, 1, 2 or of 1, 1, 1."""

    def make_step(value):
        average = swa_tf.ExponentialMovingAverage(
            0.5, zero_debias=True, when=when
        )
        apply = average.apply([value])
        counts = average.n_models if when is None else average.n_calls
        return apply, (average.average(value), counts)

    found, count = session_run(make_step)
    weights = 0.5 ** np.arange(6.0, 0.0, -1.0)
    mean = np.average([1.0, 2.0] * 3, weights=weights) if when is None else 1.0
    np.testing.assert_allclose(found, mean, rtol=1e-6)
    assert count == 6
