"""`StochasticWeightAveraging` in v1 graphs."""

import numpy as np
import pytest
import tensorflow as tf

import swa_tf

v1 = tf.compat.v1


def test_graph_names_collections_and_restore():
    with tf.Graph().as_default():
        v0 = tf.Variable(10.0, name="v0")
        v2 = tf.Variable(20.0, name="v2", trainable=False)
        tensor = v0 + 1.0
        swa = swa_tf.StochasticWeightAveraging(name="foo")
        assert swa.average_name(v0) == "v0/foo"
        op = swa.apply([v0, tensor])
        assert isinstance(op, tf.Operation)
        assert op.name == "foo"
        restore = swa.variables_to_restore()
        tensor_name = tensor.op.name
        assert set(restore) == {"v0/foo", f"{tensor_name}/foo", "v2"}
        assert restore["v0/foo"] is v0
        assert restore["v2"] is v2
        assert swa.average(tensor).op.name == f"{tensor_name}/foo"
        assert v1.moving_average_variables() == [v0]
        assert swa.average(v0) not in v1.trainable_variables()
        explicit = swa.variables_to_restore([v0])
        assert explicit["v0/foo"] is v0


def test_graph_names_respect_the_scope():
    with tf.Graph().as_default():
        with v1.variable_scope("scope1"):
            v0 = tf.Variable(10.0, name="v0")
        with v1.variable_scope("scope2"):
            swa = swa_tf.StochasticWeightAveraging(name="foo")
            assert swa.average_name(v0) == "scope2/scope1/v0/foo"
            swa.apply([v0])
            assert swa.average(v0).op.name == "scope2/scope1/v0/foo"
            assert swa.average_name(v0) == "scope2/scope1/v0/foo"


def test_graph_averages_tensors():
    with tf.Graph().as_default():
        x = v1.placeholder(tf.float32, [2])
        doubled = 2.0 * x
        swa = swa_tf.StochasticWeightAveraging()
        op = swa.apply([doubled])
        with v1.Session() as session:
            session.run(v1.global_variables_initializer())
            session.run(op, {x: [1.0, 2.0]})
            session.run(op, {x: [3.0, 6.0]})
            average = session.run(swa.average(doubled))
    np.testing.assert_array_equal(average, [4.0, 8.0])


def test_graph_averages_tensors_of_unknown_shape():
    with tf.Graph().as_default(), v1.Session() as session:
        x = v1.placeholder(tf.float32, [None], name="x")
        swa = swa_tf.StochasticWeightAveraging()
        op = swa.apply([x])
        session.run(v1.global_variables_initializer(), {x: [0.0, 0.0]})
        session.run(op, {x: [1.0, 2.0]})
        session.run(op, {x: [3.0, 6.0]})
        np.testing.assert_array_equal(session.run(swa.average(x)), [2.0, 4.0])


@pytest.mark.parametrize("use_resource", [False, True])
def test_graph_reference_variables(use_resource):
    # A reference variable is written in place: a value read before must not
    # follow, neither in the average nor in the backup.
    v1.disable_control_flow_v2()
    try:
        with tf.Graph().as_default(), v1.Session() as session:
            variable = v1.Variable([0.0], use_resource=use_resource)
            assign = variable.assign([1.0])
            add = variable.assign_add([4.0])
            swa = swa_tf.StochasticWeightAveraging()
            apply = swa.apply([variable])
            backup = swa_tf.BackupVariables([variable])
            save, restore = backup.save(), backup.restore()
            swap_in = swa_tf.assign_averages(swa, [variable])
            session.run(v1.global_variables_initializer())
            session.run(assign)
            for expected in (1.0, 3.0, 5.0):
                session.run(apply)
                assert session.run(swa.average(variable)) == [expected]
                session.run(save)
                session.run(swap_in)
                assert session.run(variable) == [expected]
                session.run(add)
                session.run(restore)
                session.run(add)
    finally:
        v1.enable_control_flow_v2()


def test_graph_none_takes_the_trainable_variables():
    with tf.Graph().as_default():
        trainable = tf.Variable(1.0)
        frozen = tf.Variable(1.0, trainable=False)
        swa = swa_tf.StochasticWeightAveraging()
        swa.apply()
        assert swa.average(trainable) is not None
        assert swa.average(frozen) is None


def test_graph_initializer_has_no_control_dependencies():
    with tf.Graph().as_default():
        variable = tf.Variable(10.0)
        other = tf.Variable(1.0)
        swa = swa_tf.StochasticWeightAveraging()
        with tf.control_dependencies([other.initializer]):
            op = swa.apply([variable])
        average = swa.average(variable)
        assert average.initializer.control_inputs == []
        with v1.Session() as session:
            session.run([average.initializer, swa.n_models.initializer])
            assert session.run(average) == 10.0  # before the variable itself
            session.run(variable.initializer)
            session.run(op)
            assert session.run(other) == 1.0


def test_graph_first_apply_inside_control_flow():
    with tf.Graph().as_default():
        variable = tf.Variable(1.0)
        swa = swa_tf.StochasticWeightAveraging()

        def averaged():
            with tf.control_dependencies([swa.apply([variable])]):
                return tf.constant(1)

        averaging = v1.placeholder(tf.bool, [])
        op = tf.cond(averaging, averaged, lambda: tf.constant(0))
        with v1.Session() as session:
            session.run(v1.global_variables_initializer())
            session.run(op, {averaging: False})
            assert session.run(swa.n_models) == 0
            session.run(op, {averaging: True})
            assert session.run(swa.n_models) == 1


def test_graph_saver_restores_averages_as_weights(tmp_path):
    path = str(tmp_path / "model")

    def make():
        variable = tf.Variable(0.0, name="w")
        other = tf.Variable(0.0, name="other", trainable=False)
        return variable, other, swa_tf.StochasticWeightAveraging()

    with tf.Graph().as_default(), v1.Session() as session:
        variable, other, swa = make()
        op = swa.apply()
        session.run(v1.global_variables_initializer())
        for value in (1.0, 3.0):
            session.run(variable.assign(value))
            session.run(op)
        session.run(other.assign(7.0))
        v1.train.Saver().save(session, path)
    with tf.Graph().as_default(), v1.Session() as session:
        variable, other, swa = make()
        saver = v1.train.Saver(swa.variables_to_restore())
        saver.restore(session, path)
        assert session.run([variable, other]) == [2.0, 7.0]


def test_an_object_made_before_its_graph():
    swa = swa_tf.StochasticWeightAveraging()
    with tf.Graph().as_default(), v1.Session() as session:
        variable = tf.Variable(5.0)
        op = swa.apply([variable])
        session.run(v1.global_variables_initializer())
        session.run(op)
        assert session.run(swa.n_models) == 1
    with pytest.raises(ValueError, match="graph of the first `apply`"):
        swa.apply([tf.Variable(1.0)])
