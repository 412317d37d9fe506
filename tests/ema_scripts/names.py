"""Names and collections of v1 graphs."""

from __future__ import annotations

import pytest
import tensorflow as tf

from tests.ema_scripts.sessions import initialize, names_of

v1 = tf.compat.v1


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
        return ema.name, before, after, op.name, names_of(averages)


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
        return restored, names_of(v1.global_variables())


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
            seen.append(names_of(others))
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
        return averages, names_of(v1.global_variables())


def collections(ema_class):
    """Collections: averages are global, and their variables listed."""
    with tf.Graph().as_default():
        v = tf.Variable(1.0, name="v")
        ema = ema_class(0.25)
        tensor = v + 1.0
        ema.apply([v, tensor])
        ema.apply([v, tensor])
        return (
            names_of(v1.global_variables()),
            names_of(v1.trainable_variables()),
            names_of(v1.moving_average_variables()),
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
        initialize(session)
        (v,) = v1.trainable_variables()
        session.run(v.assign(5.0))
        session.run(ema.name)
        return session.run(average), names_of(v1.moving_average_variables())


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
