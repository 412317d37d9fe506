"""Both exponential averages do the same: TensorFlow's and ours.

Each function of `SAME` is a script of a user's, run once with each class, on
`tf.Variable`s, which TensorFlow's takes on every stack. docs/ema.md lists them,
and the few behaviours in which the classes differ.
"""

from __future__ import annotations

import inspect
import pathlib
import tempfile
from typing import Any, NamedTuple

import numpy as np
import pytest
import tensorflow as tf

import swa_tf

v1 = tf.compat.v1
ROOT = pathlib.Path(__file__).resolve().parents[2]

TENSORFLOW = tf.train.ExponentialMovingAverage
CLASSES = [TENSORFLOW, swa_tf.ExponentialMovingAverage]


def _names(variables):
    return [variable.name for variable in variables]


def _initialize(session):
    session.run(v1.global_variables_initializer())  # as scripts do, no more


# --- Numbers ----------------------------------------------------------------


def eager_numbers(ema_class):
    """Initial value, eager: that of the variable in the first `apply`."""
    ema = ema_class(0.25)
    v, w = tf.Variable(1.0), tf.Variable([2.0, -2.0])
    averages = []
    for value in (1.0, 2.0, 5.0):
        v.assign(value)
        ema.apply([v, w])
        w.assign_add([value, 1.0])
        averages += [ema.average(v).numpy(), ema.average(w).numpy()]
    return averages


def function_numbers(ema_class):
    """Initial value, `tf.function`: that of the variable at the trace."""
    ema = ema_class(0.25)
    v = tf.Variable([1.0, 2.0])

    @tf.function
    def step(value):
        v.assign(value)
        ema.apply([v])

    for value in ([3.0, 3.0], [4.0, 0.0]):
        step(tf.constant(value))
    return ema.average(v).numpy()


def graph_numbers(ema_class):
    """Initial value, v1 graph: the variable's own; zero for a tensor."""
    with tf.Graph().as_default(), v1.Session() as session:
        ema = ema_class(0.25)
        v = tf.Variable([10.0, 20.0])
        tensor = v * 2.0
        update = ema.apply([v, tensor])
        averages = [ema.average(v), ema.average(tensor)]
        _initialize(session)
        seen = [session.run(averages)]
        for value in ([30.0, 0.0], [-5.0, 5.0]):
            session.run(v.assign(value))
            session.run(update)
            seen.append(session.run(averages))
        return seen


def long_numbers(ema_class):
    """A thousand updates at 0.999: its float32 value is what counts."""
    rng = np.random.default_rng(0)
    ema = ema_class(0.999)
    v = tf.Variable(tf.zeros([50]))
    ema.apply([v])

    @tf.function
    def step(value):
        v.assign(value)
        ema.apply([v])

    for _ in range(1000):
        step(tf.constant(1.0 + rng.normal(size=50).astype(np.float32)))
    return ema.average(v).numpy()


def float64_numbers(ema_class):
    """float64: so is the average; the decay is rounded to float32."""
    ema = ema_class(0.999)
    v = tf.Variable(tf.zeros([3], tf.float64))
    for value in (0.0, 1.0, -7.0):
        v.assign(tf.fill([3], tf.constant(value, tf.float64)))
        ema.apply([v])
    return ema.average(v).dtype.name, ema.average(v).numpy()


def num_updates_as_an_integer(ema_class):
    """`num_updates` as a number: min(decay, (1 + n) / (10 + n))."""
    averages = []
    for n in (0, 1, 5, 1000):
        ema = ema_class(0.9, num_updates=n)
        v = tf.Variable(1.0)
        ema.apply([v])
        v.assign(2.0)
        ema.apply([v])
        averages.append(ema.average(v).numpy())
    return averages


def num_updates_as_a_variable(ema_class):
    """`num_updates` as a variable: of any number type, read each time."""
    averages = []
    for dtype in (tf.int32, tf.int64, tf.float32):
        step = tf.Variable(0, dtype=dtype)
        ema = ema_class(0.9, num_updates=step)
        v = tf.Variable(0.0)

        @tf.function
        def update(v=v, ema=ema, step=step):
            v.assign_add(1.0)
            step.assign_add(1)
            ema.apply([v])

        for _ in range(4):
            update()
        averages.append(ema.average(v).numpy())
    return averages


def num_updates_as_a_global_step(ema_class):
    """`num_updates`, v1 graph: the global step, or a tensor of it."""
    averages = []
    for as_tensor in (False, True):
        with tf.Graph().as_default(), v1.Session() as session:
            step = v1.train.get_or_create_global_step()
            ema = ema_class(0.9, num_updates=step * 2 if as_tensor else step)
            v = tf.Variable(1.0)
            update = ema.apply([v])
            _initialize(session)
            session.run(v.assign(5.0))
            for _ in range(3):
                session.run(update)
                session.run(step.assign_add(1))
                averages.append(session.run(ema.average(v)))
    return averages


def decay_as_a_variable(ema_class):
    """`decay` as a variable: read in each update, in every mode."""
    decay = tf.Variable(0.75)
    ema = ema_class(decay)
    v = tf.Variable(1.0)
    ema.apply([v])
    v.assign(2.0)

    @tf.function
    def step():
        ema.apply([v])

    step()
    decay.assign(0.5)
    step()
    ema.apply([v])
    averages = [ema.average(v).numpy()]
    with tf.Graph().as_default(), v1.Session() as session:
        decay = tf.Variable(0.75)
        ema = ema_class(decay)
        v = tf.Variable(1.0)
        update = ema.apply([v])
        _initialize(session)
        session.run(v.assign(2.0))
        session.run(decay.assign(0.25))
        session.run(update)
        return [*averages, session.run(ema.average(v))]


def decay_as_a_tensor(ema_class):
    """`decay` as a tensor: as a number; a placeholder is read each time."""
    ema = ema_class(tf.constant(0.25))
    v = tf.Variable(1.0)
    ema.apply([v])
    v.assign(2.0)
    ema.apply([v])
    averages = [ema.average(v).numpy()]
    with tf.Graph().as_default(), v1.Session() as session:
        decay = v1.placeholder(tf.float32, [])
        ema = ema_class(decay)
        v = tf.Variable(1.0)
        update = ema.apply([v])
        _initialize(session)
        session.run(v.assign(2.0))
        for value in (0.25, 0.75):
            session.run(update, {decay: value})
            averages.append(session.run(ema.average(v)))
    return averages


def zero_debias_of_tensors(ema_class):
    """`zero_debias` of a tensor: its average divided by 1 - decay^n."""
    seen = []
    for num_updates in (None, 1):
        with tf.Graph().as_default(), v1.Session() as session:
            x = v1.placeholder(tf.float32, [2])
            v = tf.Variable([1.0, 2.0])
            tensor = x + v
            ema = ema_class(0.25, num_updates, zero_debias=True)
            update = ema.apply([v, tensor])
            _initialize(session)
            seen.append(session.run(ema.average(tensor)))
            for value in ([1.0, 2.0], [3.0, -3.0], [0.0, 0.0]):
                session.run(update, {x: value})
                seen += session.run([ema.average(v), ema.average(tensor)])
    return seen


def tensors_of_unknown_shape(ema_class):
    """Tensor of unknown shape: averaged from zeros of its shape."""
    with tf.Graph().as_default(), v1.Session() as session:
        x = v1.placeholder(tf.float32, [None, 2])
        ema = ema_class(0.25)
        update = ema.apply([x])
        value = {x: np.ones([3, 2])}
        session.run(v1.global_variables_initializer(), value)
        session.run(update, value)
        return ema.average(x).shape.as_list(), session.run(ema.average(x))


# --- Lists of variables -----------------------------------------------------


def apply_again_in_a_graph(ema_class):
    """`apply` again, v1 graph: another op, of the same averages."""
    with tf.Graph().as_default(), v1.Session() as session:
        ema = ema_class(0.25)
        v = tf.Variable(1.0)
        first = ema.apply([v])
        average = ema.average(v)
        second = ema.apply([v])
        assert ema.average(v) is average
        _initialize(session)
        session.run(v.assign(5.0))
        seen = []
        for op in (first, second, first):
            session.run(op)
            seen.append(session.run(average))
        return seen, [first.name, second.name]


def variables_that_join(ema_class):
    """Subset of variables, eager: may join later, and be left out."""
    ema = ema_class(0.25)
    v, w = tf.Variable(1.0), tf.Variable(1.0)
    ema.apply([v])
    v.assign(2.0)
    w.assign(3.0)
    ema.apply([v, w])
    w.assign(4.0)
    ema.apply([w])
    return ema.average(v).numpy(), ema.average(w).numpy()


def variables_that_join_a_graph(ema_class):
    """Subset of variables, v1 graph: an op for each list."""
    with tf.Graph().as_default(), v1.Session() as session:
        ema = ema_class(0.25)
        v, w = tf.Variable(1.0), tf.Variable(1.0)
        one, both = ema.apply([v]), ema.apply([w, v])
        _initialize(session)
        session.run([v.assign(2.0), w.assign(3.0)])
        session.run(one)
        session.run(both)
        return session.run([ema.average(v), ema.average(w)])


def trainable_variables_by_default(ema_class):
    """`apply()`, v1 graph: takes the trainable variables."""
    with tf.Graph().as_default():
        v = tf.Variable(1.0, name="v")
        w = tf.Variable(1.0, name="w", trainable=False)
        ema = ema_class(0.25)
        ema.apply()
        return ema.average(v).name, ema.average(w)


def assigned_averages(ema_class):
    """An average that is assigned to: updates go on from there."""
    ema = ema_class(0.25)
    v = tf.Variable(1.0)
    ema.apply([v])
    ema.average(v).assign(10.0)
    v.assign(2.0)
    ema.apply([v])
    return ema.average(v).numpy()


def unknown_variables(ema_class):
    """`average` of what is not averaged: None."""
    ema = ema_class(0.25)
    ema.apply([tf.Variable(1.0)])
    return ema.average(tf.Variable(1.0))


# --- Names and collections --------------------------------------------------


def names(ema_class):
    """Names of averages: `<variable>/<name>`, known before `apply`."""
    with tf.Graph().as_default():
        v = tf.Variable(10.0, name="v")
        tensor = v + 1.0
        _, second_output = tf.split(tf.ones([2]), 2)
        everything = [v, tensor, second_output]
        ema = ema_class(0.25, name="foo")
        before = [ema.average_name(each) for each in everything]
        op = ema.apply(everything)
        after = [ema.average_name(each) for each in everything]
        averages = [ema.average(each) for each in everything]
        assert after == [average.op.name for average in averages]
        return ema.name, before, after, op.name, _names(averages)


def default_name(ema_class):
    """Default name: that of the class."""
    with tf.Graph().as_default():
        v = tf.Variable(1.0, name="v")
        ema = ema_class(0.25)
        ema.apply([v])
        return ema.name, ema.average(v).name


def variable_scopes(ema_class):
    """Names in a variable scope: in the scope."""
    with tf.Graph().as_default():
        with v1.variable_scope("scope1"):
            v = tf.Variable(10.0, name="v")
            tensor = v + 1.0
        with v1.variable_scope("scope2"):
            ema = ema_class(0.25, name="foo")
            before = [ema.average_name(v), ema.average_name(tensor)]
            op = ema.apply([v, tensor])
            after = [ema.average_name(v), ema.average_name(tensor)]
            restored = sorted(ema.variables_to_restore())
        return before, after, op.name, restored


def zero_debias_names(ema_class):
    """Names of `zero_debias`: `<average>/biased` and `/local_step`."""
    with tf.Graph().as_default(), v1.variable_scope("scope"):
        tensor = tf.constant(1.0, name="tensor")
        ema = ema_class(0.25, name="foo", zero_debias=True)
        ema.apply([tensor])
        restored = sorted(ema.variables_to_restore())
        return restored, _names(v1.global_variables())


def name_scopes(ema_class):
    """Names in a name scope: without it, as `get_variable` does."""
    with tf.Graph().as_default():
        v = tf.Variable(10.0, name="v")
        with v1.name_scope("train"):
            ema = ema_class(0.25, name="foo")
            before = ema.average_name(v)
            op = ema.apply([v])
            return before, ema.average_name(v), op.name


def two_averages(ema_class):
    """Two averages of one name: made unique."""
    with tf.Graph().as_default():
        v = tf.Variable(10.0, name="v")
        one, two = ema_class(0.25), ema_class(0.75)
        one.apply([v])
        before = two.average_name(v)
        two.apply([v])
        return (
            before,
            one.average_name(v),
            two.average_name(v),
            sorted(two.variables_to_restore()),
        )


def names_that_are_no_scope(ema_class):
    """A name that is no scope's: fine in eager mode; else a ValueError."""
    names = []
    for name in ("my ema", "x:0"):
        v = tf.Variable(1.0, name="v")
        ema = ema_class(0.25, name=name)
        ema.apply([v])
        ema.apply([v])
        names.append(ema.average(v).name)
        with tf.Graph().as_default():
            with pytest.raises(ValueError, match="scope name"):
                ema_class(0.25, name=name).apply([tf.Variable(1.0)])
    with tf.Graph().as_default():
        ema = ema_class(0.25, name="")
        v = tf.Variable(1.0, name="v")
        ema.apply([v])
        return [*names, ema.average(v).name]


def names_of_other_ops(ema_class):
    """Names of the script's other ops: as without what `apply` makes."""
    seen = []
    for decay_is_given in (False, True):
        with tf.Graph().as_default():
            x = v1.placeholder(tf.float32, [], name="x")
            tensor = x * 2.0
            variable = v1.get_variable("v", initializer=1.0)
            step = v1.train.get_or_create_global_step()
            ema = ema_class(0.25 if decay_is_given else x, step)
            ema.apply([variable, tensor])
            others = [
                tf.constant(1.0),
                tf.zeros([2]),
                tf.ones([2]),
                tf.identity(x),
                tf.cast(x, tf.int32),
                x + 1.0,
                x - 1.0,
                x * 1.0,
                x >= 0.0,
                x < 1.0,
                tf.maximum(x, 0.0),
                tf.no_op(),
                tf.Variable(1.0),
                tf.debugging.Assert(x > 0.0, [x]),
            ]
            seen.append(_names(others))
    return seen


def reuse_true(ema_class):
    """`reuse=True`: an average that does not exist is a ValueError."""
    with tf.Graph().as_default():
        with v1.variable_scope("s"):
            v = v1.get_variable("v", initializer=1.0)
        with v1.variable_scope("s", reuse=True):
            with pytest.raises(ValueError, match="does not exist"):
                ema_class(0.25).apply([v])


def reuse_auto(ema_class):
    """`AUTO_REUSE`: two averages have one shadow variable."""
    with tf.Graph().as_default():
        averages = []
        for _ in range(2):
            with v1.variable_scope("s", reuse=v1.AUTO_REUSE):
                v = v1.get_variable("v", initializer=1.0)
                ema = ema_class(0.25)
                ema.apply([v])
                averages.append(ema.average(v).name)
        return averages, _names(v1.global_variables())


def collections(ema_class):
    """Collections: averages are global, and their variables listed."""
    with tf.Graph().as_default():
        v = tf.Variable(1.0, name="v")
        ema = ema_class(0.25)
        tensor = v + 1.0
        ema.apply([v, tensor])
        ema.apply([v, tensor])
        return (
            _names(v1.global_variables()),
            _names(v1.trainable_variables()),
            _names(v1.moving_average_variables()),
        )


def variables_to_restore(ema_class):
    """`variables_to_restore`: of all and of some, also before `apply`."""
    with tf.Graph().as_default():
        v, w = (tf.Variable(1.0, name=name) for name in "vw")
        tf.Variable(1.0, name="frozen", trainable=False)
        tensor = v + w
        ema = ema_class(0.25, name="foo")
        seen = [ema.variables_to_restore([v, tensor])]
        ema.apply([v, tensor])
        seen.append(ema.variables_to_restore())
        seen.append(ema.variables_to_restore([v]))
        return [
            {name: variable.name for name, variable in restored.items()}
            for restored in seen
        ]


def imported_graphs(ema_class):
    """`variables_to_restore`, imported graph: each variable once."""
    with tf.Graph().as_default():
        tf.Variable(1.0, name="v")
        meta_graph = v1.train.export_meta_graph()
    with tf.Graph().as_default():
        v1.train.import_meta_graph(meta_graph)
        restored = ema_class(0.25, name="foo").variables_to_restore()
        return {name: variable.name for name, variable in restored.items()}


def imported_ops(ema_class):
    """The op of `apply`, imported graph: is there, by its name."""
    with tf.Graph().as_default():
        v = tf.Variable(1.0, name="v")
        ema = ema_class(0.25)
        ema.apply([v])
        average = ema.average(v).read_value().name
        meta_graph = v1.train.export_meta_graph()
    with tf.Graph().as_default(), v1.Session() as session:
        v1.train.import_meta_graph(meta_graph)
        _initialize(session)
        (v,) = v1.trainable_variables()
        session.run(v.assign(5.0))
        session.run(ema.name)
        return session.run(average), _names(v1.moving_average_variables())


def partitioned_variables(ema_class):
    """Part of a partitioned variable: saved as part of the average."""
    with tf.Graph().as_default():
        parts = v1.fixed_size_partitioner(2)
        with v1.variable_scope("s", partitioner=parts):
            v1.get_variable("v", initializer=tf.ones([4, 1]))
        ema = ema_class(0.25)
        ema.apply()
        slices = [
            ema.average(v)._get_save_slice_info().to_proto()
            for v in v1.trainable_variables()
        ]
        with v1.variable_scope("t", partitioner=parts):
            whole = tf.Variable(tf.ones([4, 1]), name="whole")
            ema = ema_class(0.25)
            ema.apply([whole])
        return [str(each) for each in slices], ema.average(whole).name


def xla_sharding(ema_class):
    """XLA sharding: that of the variable."""
    with tf.Graph().as_default():
        v = tf.Variable([1.0, 2.0], name="v")
        sharding = v1.AttrValue(s=b"\x08\x03\x1a\x01\x02\x22\x02\x00\x01")
        v.op._set_attr("_XlaSharding", sharding)
        ema = ema_class(0.25)
        ema.apply([v])
        return ema.average(v).op.get_attr("_XlaSharding")


# --- Where and when ---------------------------------------------------------


def devices(ema_class):
    """Device: with the variable; for a tensor, that of `apply`."""
    with tf.Graph().as_default():
        with tf.device("/job:one"):
            v = tf.Variable(10.0, name="v")
        tensor = v + 1.0
        ema = ema_class(0.25)
        with tf.device("/job:two"):
            ema.apply([v, tensor])
        return (
            ema.average(v).device,
            ema.average(tensor).device,
            ema.average(v).op.colocation_groups(),
        )


def control_dependencies(ema_class):
    """Control dependencies: hold back updates, not initial values."""
    with tf.Graph().as_default(), v1.Session() as session:
        counter = tf.Variable(0)
        v = tf.Variable([10.0])
        ema = ema_class(0.25)
        with tf.control_dependencies([counter.assign_add(1)]):
            update = ema.apply([v])
        average = ema.average(v)
        assert average.initializer.control_inputs == []
        assert average.value().op.control_inputs == []
        session.run(average.initializer)  # before the variable itself
        seen = [session.run(average)]
        _initialize(session)
        session.run(v.assign([20.0]))
        session.run(update)
        return [*seen, session.run(average), session.run(counter)]


def returned_by_apply(ema_class):
    """Result of `apply`: an op in a v1 graph, None in eager mode."""
    eager = ema_class(0.25).apply([tf.Variable(1.0)])
    with tf.Graph().as_default():
        op = ema_class(0.25).apply([tf.Variable(1.0)])
    return eager, type(op).__name__


def inside_control_flow(ema_class):
    """First `apply` inside `tf.cond`: makes averages outside of it."""
    with tf.Graph().as_default(), v1.Session() as session:
        v = tf.Variable(1.0)
        ema = ema_class(0.25)

        def update():
            with tf.control_dependencies([ema.apply([v])]):
                return tf.constant(1)

        go = v1.placeholder(tf.bool, [])
        op = tf.cond(go, update, lambda: tf.constant(0))
        _initialize(session)
        session.run(v.assign(2.0))
        seen = []
        for value in (False, True):
            session.run(op, {go: value})
            seen.append(session.run(ema.average(v)))
        return seen


def loops(ema_class):
    """A loop, in a `tf.function` and a v1 graph: one update each time."""
    v = tf.Variable(0.0)
    ema = ema_class(0.5)
    ema.apply([v])

    @tf.function
    def steps(n):
        for _ in tf.range(n):
            v.assign_add(1.0)
            ema.apply([v])

    steps(tf.constant(3))
    averages = [ema.average(v).numpy()]
    with tf.Graph().as_default(), v1.Session() as session:
        v = v1.get_variable("v", initializer=0.0)
        ema = ema_class(0.5)

        def body(i):
            with tf.control_dependencies([v.assign_add(1.0)]):
                with tf.control_dependencies([ema.apply([v])]):
                    return i + 1

        end = tf.while_loop(lambda i: i < 3, body, [0])
        _initialize(session)
        session.run(end)
        return [*averages, session.run(ema.average(v))]


def compiled_functions(ema_class):
    """`jit_compile=True`: as without."""
    v = tf.Variable([1.0, 2.0])
    ema = ema_class(0.25)

    @tf.function(jit_compile=True)
    def step(value):
        v.assign(value)
        ema.apply([v])

    for value in ([3.0, 3.0], [4.0, 0.0]):
        step(tf.constant(value))
    return ema.average(v).numpy()


def gradients(ema_class):
    """Gradients: `apply` is not watched, and averages are not trainable."""
    v = tf.Variable([3.0], name="v")
    ema = ema_class(0.25)
    with tf.GradientTape() as tape:
        ema.apply([v])
        loss = v * v * ema.average(v)
    return (
        _names(tape.watched_variables()),
        tape.gradient(loss, v).numpy(),
        ema.average(v).trainable,
    )


def before_initializers(ema_class):
    """An update before the initializers: FailedPreconditionError."""
    with tf.Graph().as_default(), v1.Session() as session:
        v = tf.Variable(1.0)
        update = ema_class(0.25).apply([v])
        for ready in ([], [v.initializer]):
            session.run(ready)
            with pytest.raises(tf.errors.FailedPreconditionError):
                session.run(update)


# --- Files ------------------------------------------------------------------


def checkpoints_of_averages(ema_class):
    """`tf.train.Checkpoint` of averages: they are plain variables."""
    variables = [tf.Variable([1.0, 3.0]), tf.Variable(2.0)]
    ema = ema_class(0.25)
    ema.apply(variables)
    averages = [ema.average(v) for v in variables]
    with tempfile.TemporaryDirectory() as directory:
        path = tf.train.Checkpoint(averages=averages).save(f"{directory}/c")
        keys = [name for name, _ in tf.train.list_variables(path)]
        for v in variables:
            v.assign(tf.zeros_like(v))
        # Into the weights themselves, as TensorFlow's docs have it.
        tf.train.Checkpoint(averages=variables).restore(path)
    return keys, [v.numpy() for v in variables]


def session_savers(ema_class):
    """v1 `Saver`: saves averages by name, and reads them as weights."""
    with tempfile.TemporaryDirectory() as directory:
        with tf.Graph().as_default(), v1.Session() as session:
            v = v1.get_variable("v", initializer=1.0)
            ema = ema_class(0.25)
            update = ema.apply([v])
            _initialize(session)
            session.run(v.assign(5.0))
            session.run(update)
            path = v1.train.Saver().save(session, f"{directory}/m")
        keys = [name for name, _ in tf.train.list_variables(path)]
        with tf.Graph().as_default(), v1.Session() as session:
            v = v1.get_variable("v", initializer=0.0)
            restored = ema_class(0.25).variables_to_restore()
            v1.train.Saver(restored).restore(session, path)
            return keys, session.run(v)


def saved_models(ema_class):
    """A SavedModel of a function that averages: goes on where it was."""
    module = tf.Module()
    module.v = tf.Variable([1.0])
    ema = ema_class(0.25)
    ema.apply([module.v])
    module.average = ema.average(module.v)
    module.of = ema if isinstance(ema, tf.Module) else None

    @tf.function(input_signature=[tf.TensorSpec([1])])
    def step(value):
        module.v.assign(value)
        ema.apply([module.v])
        return module.average.read_value()

    module.step = step
    averages = [step(tf.constant([3.0])).numpy()]
    with tempfile.TemporaryDirectory() as directory:
        tf.saved_model.save(module, directory)
        loaded = tf.saved_model.load(directory)
        averages.append(loaded.step(tf.constant([5.0])).numpy())
    return averages


# --- Errors -----------------------------------------------------------------


def integer_variables(ema_class):
    """A variable that is no float: TypeError."""
    with pytest.raises(TypeError, match="float"):
        ema_class(0.25).apply([tf.Variable(1)])


def tensors_in_eager_mode(ema_class):
    """A tensor in eager mode, or in a `tf.function`: TypeError."""
    ema = ema_class(0.25)
    for apply in (ema.apply, tf.function(lambda each: ema.apply(each))):
        with pytest.raises(TypeError, match="tensors"):
            apply([tf.constant(1.0)])


# --- tf.distribute ----------------------------------------------------------


def _strategies():
    return [
        tf.distribute.MirroredStrategy(["/cpu:0", "/cpu:1"]),
        tf.distribute.OneDeviceStrategy("/cpu:0"),
    ]


def _local(strategy, value):
    return [v.numpy() for v in strategy.experimental_local_results(value)]


def replica_context(ema_class):
    """Replica context: each average moves once, by the mean."""
    seen = []
    for strategy in _strategies():
        for compiled in (False, True):
            with strategy.scope():
                w = tf.Variable([1.0], aggregation=tf.VariableAggregation.MEAN)
                ema = ema_class(0.8)

                def replica_step(w=w, ema=ema):
                    ema.apply([w])
                    w.assign_sub([0.5])
                    ema.apply([w])
                    return ema.average(w).read_value()

                def step(strategy=strategy, replica_step=replica_step):
                    return strategy.run(replica_step)

                results = (tf.function(step) if compiled else step)()
            seen.append(_local(strategy, results))
    return seen


def cross_replica_context(ema_class):
    """Cross-replica context: the average of every replica moves."""
    seen = []
    for strategy in _strategies():
        for compiled in (False, True):
            with strategy.scope():
                w = tf.Variable([1.0])
                ema = ema_class(0.8)

                def step(w=w, ema=ema):
                    ema.apply([w])
                    w.assign_sub([0.5])
                    ema.apply([w])

                (tf.function(step) if compiled else step)()
            seen.append(_local(strategy, ema.average(w)))
    return seen


def _replica_graph(ema_class):
    w = tf.Variable([1.0], name="w", aggregation=tf.VariableAggregation.MEAN)
    ema = ema_class(0.8)
    apply = ema.apply([w])
    return w.assign_sub([0.5]), apply, ema.average(w)


def _run_in_graph(ema_class, in_replicas):
    seen = []
    for strategy in _strategies():
        with tf.Graph().as_default(), strategy.scope():
            made = (
                strategy.run(_replica_graph, args=(ema_class,))
                if in_replicas
                else _replica_graph(ema_class)
            )
            assign, apply, average = map(
                strategy.experimental_local_results, made
            )
            seen.append(made[2].name)
            with v1.Session() as session:
                _initialize(session)
                for op in (apply, assign, apply):
                    session.run(op)
                seen.append(session.run(average))
    return seen


def replica_context_of_a_graph(ema_class):
    """Replica context, v1 graph: objects of replicas are one average."""
    return _run_in_graph(ema_class, in_replicas=True)


def cross_replica_context_of_a_graph(ema_class):
    """Cross-replica context, v1 graph: an op moves every replica's."""
    return _run_in_graph(ema_class, in_replicas=False)


SAME = [
    function
    for name, function in list(globals().items())
    if inspect.isfunction(function)
    and not name.startswith("_")
    and list(inspect.signature(function).parameters) == ["ema_class"]
]


class Otherwise(NamedTuple):
    """The outcome of a script with `StochasticWeightAveraging`, if it differs.

    Attributes:
        says: The cell of the table.
        why: The next cell.
        gives: What the script returns, worked out by hand.
        raises: The error instead, and what it says.
    """

    says: str
    why: str
    gives: Any = None
    raises: tuple[type[Exception], str] | None = None


def _long_mean():
    rng = np.random.default_rng(0)
    seen = [1.0 + rng.normal(size=50).astype(np.float32) for _ in range(1000)]
    return np.sum(seen, axis=0, dtype=np.float64) / 1001  # and the zeros


MEAN = "the mean"
NO_DECAY = "no decay"
ONE_MEAN = "one mean, of the same models for all"
NO_ZERO = "its first value is the first tensor"
OF_MODELS = "only models are in a mean"
COUNT = "saved with the averages, to go on"
STEPS = [[0.75], [0.75]]  # of a replica each: 1.0 and 0.5

OF_SWA = {
    "eager_numbers": Otherwise(
        f"same, then {MEAN}",
        NO_DECAY,
        [1.0, [2.0, -2.0], 1.5, [2.5, -1.5], 8 / 3, [10 / 3, -1.0]],
    ),
    "function_numbers": Otherwise(
        "the first weight averaged", OF_MODELS, [3.5, 1.5]
    ),
    "graph_numbers": Otherwise(
        "same, until the first update replaces it",
        OF_MODELS,
        [
            [[10.0, 20.0], [0.0, 0.0]],
            [[30.0, 0.0], [60.0, 0.0]],
            [[12.5, 2.5], [25.0, 5.0]],
        ],
    ),
    "long_numbers": Otherwise(MEAN, NO_DECAY, _long_mean()),
    "float64_numbers": Otherwise(
        "so is the average", NO_DECAY, ["float64", [-2.0] * 3]
    ),
    "num_updates_as_an_integer": Otherwise(MEAN, NO_DECAY, [1.5] * 4),
    "num_updates_as_a_variable": Otherwise(MEAN, NO_DECAY, [2.5] * 3),
    "num_updates_as_a_global_step": Otherwise(MEAN, NO_DECAY, [5.0] * 6),
    "decay_as_a_variable": Otherwise(MEAN, NO_DECAY, [1.75, 2.0]),
    "decay_as_a_tensor": Otherwise(MEAN, NO_DECAY, [1.5, 2.0, 2.0]),
    "zero_debias_of_tensors": Otherwise(
        "nothing to divide by",
        NO_ZERO,
        [
            *([0.0, 0.0], [1.0, 2.0], [2.0, 4.0], [1.0, 2.0], [3.0, 1.5]),
            *([1.0, 2.0], [7 / 3, 5 / 3]),
        ]
        * 2,
    ),
    "tensors_of_unknown_shape": Otherwise(
        "averaged, from the first tensor", OF_MODELS, [[None, 2], [[1, 1]] * 3]
    ),
    "apply_again_in_a_graph": Otherwise(
        f"same, of {MEAN}",
        NO_DECAY,
        [
            [5.0, 5.0, 5.0],
            ["ExponentialMovingAverage", "ExponentialMovingAverage_1"],
        ],
    ),
    "variables_that_join": Otherwise(
        "`ValueError`: those of the first `apply`",
        ONE_MEAN,
        raises=(ValueError, "joins later"),
    ),
    "variables_that_join_a_graph": Otherwise(
        "`ValueError`: those of the first `apply`",
        ONE_MEAN,
        raises=(ValueError, "joins later"),
    ),
    "assigned_averages": Otherwise(
        "same, with the weight of the mean so far", NO_DECAY, 6.0
    ),
    "zero_debias_names": Otherwise(
        "the average alone",
        NO_ZERO,
        [
            ["scope/scope/tensor/foo"],
            ["scope/foo/n_models:0", "scope/scope/tensor/foo:0"],
        ],
    ),
    "two_averages": Otherwise(
        "same, with a count of models each",
        COUNT,
        [
            "v/ExponentialMovingAverage_1",
            "v/ExponentialMovingAverage",
            "v/ExponentialMovingAverage_1",
            [
                "ExponentialMovingAverage/n_models",
                "v/ExponentialMovingAverage",
                "v/ExponentialMovingAverage_1",
            ],
        ],
    ),
    "reuse_auto": Otherwise(
        "same, with a count of models each",
        COUNT,
        [
            ["s/s/v/ExponentialMovingAverage:0"] * 2,
            [
                "s/v:0",
                "s/ExponentialMovingAverage/n_models:0",
                "s/s/v/ExponentialMovingAverage:0",
                "s_1/ExponentialMovingAverage/n_models:0",
            ],
        ],
    ),
    "collections": Otherwise(
        "same; the count of models is global, too",
        COUNT,
        [
            [
                "v:0",
                "ExponentialMovingAverage/n_models:0",
                "v/ExponentialMovingAverage:0",
                "add/ExponentialMovingAverage:0",
            ],
            ["v:0"],
            ["v:0"],
        ],
    ),
    "imported_ops": Otherwise(f"same, of {MEAN}", NO_DECAY, [5.0, ["v:0"]]),
    "control_dependencies": Otherwise(
        f"same, of {MEAN}", NO_DECAY, [[10.0], [20.0], 1]
    ),
    "inside_control_flow": Otherwise(f"same, of {MEAN}", NO_DECAY, [1.0, 2.0]),
    "loops": Otherwise(f"same, of {MEAN}", NO_DECAY, [1.5, 2.0]),
    "compiled_functions": Otherwise(f"same, of {MEAN}", NO_DECAY, [3.5, 1.5]),
    "session_savers": Otherwise(
        "same, and the count of models",
        COUNT,
        [
            [
                "ExponentialMovingAverage/n_models",
                "v",
                "v/ExponentialMovingAverage",
            ],
            5.0,
        ],
    ),
    "saved_models": Otherwise(f"same, of {MEAN}", NO_DECAY, [[2.0], [3.0]]),
    "replica_context": Otherwise(
        f"same, of {MEAN}", NO_DECAY, [STEPS, STEPS, STEPS[:1], STEPS[:1]]
    ),
    "cross_replica_context": Otherwise(
        f"same, of {MEAN}", NO_DECAY, [STEPS, STEPS, STEPS[:1], STEPS[:1]]
    ),
    "replica_context_of_a_graph": Otherwise(
        f"same, of {MEAN}",
        NO_DECAY,
        [
            *("w/ExponentialMovingAverage:0", STEPS),
            *("w/ExponentialMovingAverage:0", STEPS[:1]),
        ],
    ),
    "cross_replica_context_of_a_graph": Otherwise(
        f"same, of {MEAN}",
        NO_DECAY,
        [
            *("w/ExponentialMovingAverage:0", STEPS),
            *("w/ExponentialMovingAverage:0", STEPS[:1]),
        ],
    ),
}


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
    theirs = script(TENSORFLOW)
    _assert_same(theirs, script(swa_tf.ExponentialMovingAverage))
    if script.__name__ not in OF_SWA:
        _assert_same(theirs, script(_swa))


@pytest.mark.parametrize("name", OF_SWA)
def test_what_the_equal_average_does_otherwise(name):
    script, otherwise = globals()[name], OF_SWA[name]
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
