"""Both exponential averages do the same: TensorFlow's and ours.

Each function of `SAME` is a script of a user's, run once with each class, on
`tf.Variable`s, which TensorFlow's takes on every stack. docs/ema.md lists them,
and the few behaviours in which the classes differ.
"""

import inspect
import pathlib
import re

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
    """Eager: the average starts as the variable in the first `apply`."""
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
    """`tf.function`: it starts as the variable when the function is traced."""
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
    """v1 graph: it starts as the initial value, a tensor's at zero."""
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
    """A thousand updates at 0.999, whose float32 value is what counts."""
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
    """float64: its averages are float64; the decay is still rounded."""
    ema = ema_class(0.999)
    v = tf.Variable(tf.zeros([3], tf.float64))
    for value in (0.0, 1.0, -7.0):
        v.assign(tf.fill([3], tf.constant(value, tf.float64)))
        ema.apply([v])
    return ema.average(v).dtype.name, ema.average(v).numpy()


def num_updates_as_an_integer(ema_class):
    """`num_updates`: min(decay, (1 + n) / (10 + n))."""
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
    """... of a variable, of any number type, read in each update."""
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
    """... of the v1 graph's global step, and as a tensor of it."""
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
    """`decay` as a variable, read in each update, in every mode."""
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
    """`decay` as a tensor."""
    ema = ema_class(tf.constant(0.25))
    v = tf.Variable(1.0)
    ema.apply([v])
    v.assign(2.0)
    ema.apply([v])
    return ema.average(v).numpy()


def zero_debias_of_tensors(ema_class):
    """`zero_debias`: the average of a tensor is divided by 1 - decay^n."""
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
    """A tensor whose shape is known when the graph runs."""
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
    """v1 graph: each `apply` makes an op, of the same averages."""
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
    """A variable may join later, and may be left out of a call."""
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
    """... in a v1 graph, with an op for each list."""
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
    """v1 graph: `apply()` takes the trainable variables."""
    with tf.Graph().as_default():
        v = tf.Variable(1.0, name="v")
        w = tf.Variable(1.0, name="w", trainable=False)
        ema = ema_class(0.25)
        ema.apply()
        return ema.average(v).name, ema.average(w)


def unknown_variables(ema_class):
    """`average` of what is not averaged is None."""
    ema = ema_class(0.25)
    ema.apply([tf.Variable(1.0)])
    return ema.average(tf.Variable(1.0))


# --- Names and collections --------------------------------------------------


def names(ema_class):
    """Names of shadows, before and after `apply`, of variables and tensors."""
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
    """The default name."""
    with tf.Graph().as_default():
        v = tf.Variable(1.0, name="v")
        ema = ema_class(0.25)
        ema.apply([v])
        return ema.name, ema.average(v).name


def variable_scopes(ema_class):
    """Names in a variable scope."""
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
    """Names of the variables that `zero_debias` makes."""
    with tf.Graph().as_default(), v1.variable_scope("scope"):
        tensor = tf.constant(1.0, name="tensor")
        ema = ema_class(0.25, name="foo", zero_debias=True)
        ema.apply([tensor])
        restored = sorted(ema.variables_to_restore())
        return restored, _names(v1.global_variables())


def name_scopes(ema_class):
    """Names in a name scope, which `get_variable` leaves out."""
    with tf.Graph().as_default():
        v = tf.Variable(10.0, name="v")
        with v1.name_scope("train"):
            ema = ema_class(0.25, name="foo")
            before = ema.average_name(v)
            op = ema.apply([v])
            return before, ema.average_name(v), op.name


def two_averages(ema_class):
    """Names are made unique where two averages have one name."""
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


def reuse_true(ema_class):
    """In a scope with `reuse=True` there must be a shadow variable."""
    with tf.Graph().as_default():
        with v1.variable_scope("s"):
            v = v1.get_variable("v", initializer=1.0)
        with v1.variable_scope("s", reuse=True):
            with pytest.raises(ValueError, match="does not exist"):
                ema_class(0.25).apply([v])


def reuse_auto(ema_class):
    """With `AUTO_REUSE` two averages have one shadow variable."""
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
    """The collections of global, trainable and averaged variables."""
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
    """The names to restore, all and of a subset, before and after `apply`."""
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
    """An imported graph has several objects for one variable."""
    with tf.Graph().as_default():
        tf.Variable(1.0, name="v")
        meta_graph = v1.train.export_meta_graph()
    with tf.Graph().as_default():
        v1.train.import_meta_graph(meta_graph)
        restored = ema_class(0.25, name="foo").variables_to_restore()
        return {name: variable.name for name, variable in restored.items()}


def partitioned_variables(ema_class):
    """A part of a partitioned variable is saved as a part of the average."""
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
    """The average is split over devices as its variable is."""
    with tf.Graph().as_default():
        v = tf.Variable([1.0, 2.0], name="v")
        sharding = v1.AttrValue(s=b"\x08\x03\x1a\x01\x02\x22\x02\x00\x01")
        v.op._set_attr("_XlaSharding", sharding)
        ema = ema_class(0.25)
        ema.apply([v])
        return ema.average(v).op.get_attr("_XlaSharding")


# --- Where and when ---------------------------------------------------------


def devices(ema_class):
    """The average is where its variable is; a tensor's, where `apply` is."""
    with tf.Graph().as_default():
        with tf.device("/job:one"):
            v = tf.Variable(10.0, name="v")
        tensor = v + 1.0
        ema = ema_class(0.25)
        with tf.device("/job:two"):
            ema.apply([v, tensor])
        return ema.average(v).device, ema.average(tensor).device


def control_dependencies(ema_class):
    """`apply` waits for control dependencies, shadow variables do not."""
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
        session.run([v.initializer, counter.initializer])
        session.run(v.assign([20.0]))
        session.run(update)
        return [*seen, session.run(average), session.run(counter)]


def returned_by_apply(ema_class):
    """`apply` returns an op in a v1 graph, and None in eager mode."""
    eager = ema_class(0.25).apply([tf.Variable(1.0)])
    with tf.Graph().as_default():
        op = ema_class(0.25).apply([tf.Variable(1.0)])
    return eager, type(op).__name__


def inside_control_flow(ema_class):
    """The first `apply` may be inside `tf.cond`."""
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


# --- Errors -----------------------------------------------------------------


def integer_variables(ema_class):
    """A variable that is no float: TypeError."""
    with pytest.raises(TypeError, match="float"):
        ema_class(0.25).apply([tf.Variable(1)])


def tensors_in_eager_mode(ema_class):
    """A tensor in eager mode, or in a `tf.function` of it: TypeError."""
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
    """In replica context, eager and in a `tf.function`."""
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
    """In cross-replica context, eager and in a `tf.function`."""
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
    """v1 graph: in replica context, where each replica makes the object."""
    return _run_in_graph(ema_class, in_replicas=True)


def cross_replica_context_of_a_graph(ema_class):
    """v1 graph: in cross-replica context."""
    return _run_in_graph(ema_class, in_replicas=False)


SAME = [
    function
    for name, function in list(globals().items())
    if inspect.isfunction(function)
    and not name.startswith("_")
    and list(inspect.signature(function).parameters) == ["ema_class"]
]


def _rows():
    """The table: script, what it says, whether it holds for SWA."""
    text = (ROOT / "docs" / "ema.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (.*) \| (yes|no) \| `(\w+)` \|$", text, re.M)
    return {script: (says, equal) for says, equal, script in rows}


def _swa(decay, name="ExponentialMovingAverage"):
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


@pytest.mark.parametrize("script", SAME, ids=lambda script: script.__name__)
def test_same(script):
    theirs = script(TENSORFLOW)
    _assert_same(theirs, script(swa_tf.ExponentialMovingAverage))
    if _rows()[script.__name__][1] == "yes":
        _assert_same(theirs, script(_swa))


def test_the_table_lists_every_script():
    said = {name: says for name, (says, _) in _rows().items()}
    assert said == {script.__name__: script.__doc__ for script in SAME}
