"""Exponential averages that begin anew, or wait to begin."""

import numpy as np
import pytest
import tensorflow as tf

import swa_tf
from tests.exponential import MODES, apply_in
from tests.fitting import covering

v1 = tf.compat.v1
EMA = swa_tf.ExponentialMovingAverage


@pytest.mark.parametrize("compiled", [False, True])
def test_reset_starts_with_the_next_weight(compiled):
    v = tf.Variable(1.0)
    ema = EMA(0.5)

    def update():
        ema.apply([v])

    update = tf.function(update) if compiled else update
    update()
    v.assign(np.inf)
    update()
    ema.reset()
    v.assign(4.0)
    update()
    assert float(ema.average(v)) == 4.0
    assert int(ema.n_models) == 1
    v.assign(6.0)
    update()
    assert float(ema.average(v)) == 5.0


# With 0.5 each is 1 for the first model, and 1/2 for every other.
KINDS = [{}, {"when": swa_tf.AveragingSchedule()}, {"warm_up": 1}]


@pytest.mark.parametrize(("mode", "kwargs"), covering(1, MODES, KINDS), ids=str)
def test_a_variable_left_out_after_reset_starts_as_it_comes(mode, kwargs):
    a, b = tf.Variable([1.0, np.nan]), tf.Variable([1.0, np.nan])
    ema = EMA(0.5, **kwargs)
    of_a, of_both = apply_in(ema, mode, a), apply_in(ema, mode, a, b)
    of_both()
    of_a()
    for _ in range(2):  # in functions that were traced before, too
        for v in (a, b):
            v.assign([100.0, 100.0])
        ema.reset()
        assert ema.average(b).numpy().tolist() == [100.0, 100.0]
        for value in (2.0, 4.0):
            a.assign([value, value])
            of_a()
        b.assign([8.0, np.inf])
        of_both()
        assert ema.average(a).numpy().tolist() == [3.5, 3.5]
        assert ema.average(b).numpy().tolist() == [8.0, np.inf]
        b.assign([10.0, 0.0])
        of_both()
        assert ema.average(b).numpy()[0] == 9.0
        assert int(ema.n_models) == 4


@pytest.mark.parametrize(
    ("begin", "mode", "kwargs"),
    covering(1, ["reset", "build"], MODES, KINDS),
    ids=str,
)
def test_a_variable_that_joins_leaves_the_others_to_start(mode, kwargs, begin):
    a, b = tf.Variable(1.0), tf.Variable(5.0)
    ema = EMA(0.5, **kwargs)
    of_a, of_both = apply_in(ema, mode, a), apply_in(ema, mode, a, b)
    if begin == "reset":
        of_a()
        ema.reset()
    else:
        ema.build([a])
    a.assign(2.0)
    of_both()
    assert [float(ema.average(v)) for v in (a, b)] == [2.0, 5.0]
    a.assign(4.0)
    b.assign(7.0)
    of_both()
    of_a()
    assert [float(ema.average(v)) for v in (a, b)] == [3.5, 6.0]


def test_build_leaves_what_is_averaged():
    a, b, c = (tf.Variable(1.0) for _ in range(3))
    ema = EMA(0.5)
    ema.apply([a])
    ema.build([a, b])
    ema.apply([c])
    for v in (a, b, c):
        v.assign(3.0)
    ema.apply([a, b, c])
    assert [float(ema.average(v)) for v in (a, b, c)] == [2.0, 3.0, 2.0]


def test_a_variable_left_out_after_reset_under_a_strategy():
    strategy = tf.distribute.MirroredStrategy(["/cpu:0", "/cpu:1"])
    with strategy.scope():
        a, b = (
            tf.Variable(1.0, aggregation=tf.VariableAggregation.MEAN)
            for _ in range(2)
        )
        ema = EMA(0.5)

    @tf.function
    def of_all():
        strategy.run(lambda: ema.apply([a, b]))

    of_all()
    ema.reset()
    for value in (2.0, 4.0):
        a.assign(value)
        ema.apply([a])
    b.assign(8.0)
    of_all()
    for v, expected in ((a, 3.5), (b, 8.0)):
        held = strategy.experimental_local_results(ema.average(v))
        assert [float(each) for each in held] == [expected] * 2


def test_reset_of_a_variable_that_changed_its_shape():
    v = tf.Variable([1.0], shape=tf.TensorShape([None]))
    ema = EMA(0.5)
    ema.apply([v])
    v.assign([1.0, 2.0])
    with pytest.raises(ValueError, match="shapes stay"):
        ema.reset()
    assert int(ema.n_models) == 1
    v.assign([3.0])
    ema.reset()
    assert ema.average(v).numpy().tolist() == [3.0]


def test_reset_in_a_graph_with_warm_up_forgets_what_is_left_out():
    with tf.Graph().as_default(), v1.Session() as session:
        a, b = tf.Variable(1.0), tf.Variable(1.0)
        ema = EMA(0.5, warm_up=1)
        of_a, of_both, reset = ema.apply([a]), ema.apply([a, b]), ema.reset()
        session.run(v1.global_variables_initializer())
        session.run(of_both)
        session.run([a.assign(4.0), b.assign(4.0)])
        session.run(reset)
        session.run(a.assign(6.0))
        session.run(of_a)
        session.run(b.assign(6.0))
        session.run(of_both)
        assert session.run([ema.average(a), ema.average(b)]) == [6.0, 5.0]


def test_reset_in_a_graph_starts_with_the_present_weight():
    with tf.Graph().as_default(), v1.Session() as session:
        v = tf.Variable(1.0)
        x = v1.placeholder(tf.float32, [])
        ema = EMA(0.5, zero_debias=True)
        update, reset = ema.apply([v, x]), ema.reset()
        averages = [ema.average(v), ema.average(x)]
        session.run(v1.global_variables_initializer())
        for _ in range(2):
            session.run(v.assign(np.inf))
            session.run(update, {x: np.inf})
            session.run(v.assign(4.0))
            session.run(reset)
            assert session.run(averages) == [4.0, 0.0]
            assert session.run(ema.n_models) == 0
            session.run(v.assign(6.0))
            session.run(update, {x: 3.0})
            assert session.run(averages) == [5.0, 3.0]
            assert session.run(ema.n_models) == 1
