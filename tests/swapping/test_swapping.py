"""The swap restores bit for bit, whatever happens inside."""

import contextlib
import copy

import numpy as np
import pytest
import tensorflow as tf

import swa_tf
from swa_tf.support import variables as variables_lib
from tests.fitting import exhaustive
from tests.interrupts import each_moment

v1 = tf.compat.v1


def bits(variables):
    return [v.numpy().tobytes() for v in variables]


def small_model():
    """Dense, batch norm and dropout, with weights that lose bits easily."""
    model = tf.keras.Sequential(
        [
            tf.keras.layers.Dense(5),
            tf.keras.layers.BatchNormalization(),
            tf.keras.layers.Dropout(0.5),
            tf.keras.layers.Dense(2),
        ]
    )
    model(tf.random.normal([8, 3]), training=True)
    return model


def averaged(model, values=(1e8, 1.0)):
    """`swa` over `model`, whose weights end at the last of `values`."""
    swa = swa_tf.StochasticWeightAveraging()
    for value in values:
        for variable in model.trainable_variables:
            noise = np.random.default_rng(0).normal(size=variable.shape)
            variable.assign((value + noise).astype(np.float32))
        swa.apply(model.trainable_variables)
    return swa


# --- averaged_weights -------------------------------------------------------


@pytest.mark.parametrize("error", [None, ValueError, KeyboardInterrupt])
@pytest.mark.parametrize("given", ["model", "list"])
def test_restores_bit_for_bit(error, given):
    model = small_model()
    swa = averaged(model)
    variables = model.trainable_variables
    target = model if given == "model" else variables
    before, means = bits(model.weights), []
    expected = pytest.raises(error) if error else contextlib.nullcontext()
    with expected, swa_tf.averaged_weights(swa, target):
        means = [v.numpy() for v in variables]
        for variable in variables:
            variable.assign(variable * 0.0 + 7.0)
        if given == "model":
            model(tf.random.normal([8, 3]), training=True)  # moving statistics
        if error:
            raise error
    for mean, variable in zip(means, variables):
        np.testing.assert_array_equal(mean, swa.average(variable))
    assert bits(model.weights) == before
    assert not swa.swapped
    with swa_tf.averaged_weights(swa, target):  # and once more
        assert bits(variables) == [mean.tobytes() for mean in means]


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64"])
def test_casts_to_the_dtype_of_the_variable(dtype):
    variable = tf.Variable([1.0, 2.0], dtype=dtype)
    swa = swa_tf.StochasticWeightAveraging()
    swa.apply([variable])
    variable.assign([2.0, 4.0])
    swa.apply([variable])
    with swa_tf.averaged_weights(swa, [variable]):
        np.testing.assert_array_equal(tf.cast(variable, "float32"), [1.5, 3.0])
        assert variable.dtype == dtype


def test_restores_every_replica():
    strategy = tf.distribute.MirroredStrategy(["/cpu:0", "/cpu:1"])
    with strategy.scope():
        variable = tf.Variable([1.0])
        statistic = tf.Variable(
            [0.0],
            trainable=False,
            synchronization=tf.VariableSynchronization.ON_READ,
            aggregation=tf.VariableAggregation.MEAN,
        )
    target = tf.Module()
    target.both = [variable, statistic]
    for component, value in zip(statistic.values, ([3.0], [5.0])):
        component.assign(value)
    swa = swa_tf.StochasticWeightAveraging()
    swa.apply([variable])
    variable.assign([3.0])
    swa.apply([variable])
    with swa_tf.averaged_weights(swa, target):
        assert [float(v[0]) for v in variable.values] == [2.0, 2.0]
        statistic.assign([9.0])
    assert [float(v[0]) for v in variable.values] == [3.0, 3.0]
    assert [float(v[0]) for v in statistic.values] == [3.0, 5.0]


def test_plain_variable_averaged_inside_a_scope():
    one, other = tf.Variable(1.0), tf.Variable(100.0)
    swa = swa_tf.StochasticWeightAveraging()
    with tf.distribute.MirroredStrategy(["/cpu:0", "/cpu:1"]).scope():
        swa.apply([one, other])
        backup = swa_tf.BackupVariables([one, other])
        with pytest.raises(ValueError, match="`device` must be None"):
            swa_tf.BackupVariables([one], device="/cpu:0")
    one.assign(3.0)
    other.assign(300.0)
    swa.apply([one, other])
    backup.save()
    with swa_tf.averaged_weights(swa, [one, other]):
        assert (float(one), float(other)) == (2.0, 200.0)
        backup.restore()
        assert (float(one), float(other)) == (3.0, 300.0)


def test_a_second_interrupt_does_not_stop_the_restore(monkeypatch):
    model = small_model()
    swa = averaged(model)
    before = bits(model.weights)
    write, calls = variables_lib.write, []

    def interrupted_once(*args):
        calls.append(args)
        if len(calls) == 2:
            raise KeyboardInterrupt
        write(*args)

    with pytest.raises(KeyboardInterrupt):
        with swa_tf.averaged_weights(swa, model):
            monkeypatch.setattr(variables_lib, "write", interrupted_once)
    assert bits(model.weights) == before
    assert not swa.swapped


@pytest.mark.parametrize("every", ["line", exhaustive("opcode")])
@pytest.mark.parametrize("keep", [False, True])
def test_interrupted_at_any_moment(keep, every):
    vector, scalar = variables = [tf.Variable([1.0, 2.0]), tf.Variable(3.0)]
    swa = swa_tf.StochasticWeightAveraging()
    swa.apply(variables)
    trained, averaged = [[3.0, 4.0], 5.0], [[2.0, 3.0], 4.0]

    def train():
        for variable, value in zip(variables, trained):
            variable.assign(value)

    @tf.function
    def apply():
        swa.apply(variables)

    def swap():
        with swa_tf.averaged_weights(swa, variables, keep=keep):
            pass

    train()
    apply()
    for moment in each_moment(swap, every):
        left = [vector.numpy().tolist(), float(scalar)]
        assert left == trained or (keep and left == averaged), moment
        assert not swa.swapped, moment
        for variable, value in zip(variables, averaged):
            variable.assign(value)
        apply()  # it would be told of a swap
        train()


def test_module_that_holds_keras_layers():
    module = tf.Module()
    module.plain = tf.Variable(1.0)
    module.layers = {"dense": tf.keras.layers.Dense(1)}
    module.layers["dense"](tf.ones([1, 1]))
    variables = [module.plain, *module.layers["dense"].trainable_variables]
    swa = swa_tf.StochasticWeightAveraging()
    for value in (1.0, 3.0):
        for variable in variables:
            variable.assign(tf.fill(variable.shape, value))
        swa.apply(variables)
    with swa_tf.averaged_weights(swa, module):
        assert [float(tf.squeeze(v)) for v in variables] == [2.0, 2.0, 2.0]
    assert [float(tf.squeeze(v)) for v in variables] == [3.0, 3.0, 3.0]


def test_metrics_keep_what_they_measured_inside():
    class Measured(tf.keras.Model):
        def __init__(self):
            super().__init__()
            self.dense = tf.keras.layers.Dense(1)
            self.metric = tf.keras.metrics.Mean()

        def call(self, inputs):
            return self.dense(inputs)

    model = Measured()
    model(tf.ones([1, 1]))
    swa = swa_tf.StochasticWeightAveraging()
    swa.apply(model.trainable_variables)
    with swa_tf.averaged_weights(swa, model):
        model.metric.update_state(7.0)
    assert float(model.metric.result()) == 7.0


def test_compiled_model_sees_the_averages():
    variable = tf.Variable(1.0)
    swa = swa_tf.StochasticWeightAveraging()
    read = tf.function(lambda: variable + 0.0)
    for value in (1.0, 4.0):
        variable.assign(value)
        swa.apply([variable])
    assert float(read()) == 4.0
    with swa_tf.averaged_weights(swa, [variable]):
        assert float(read()) == 2.5
    assert float(read()) == 4.0


def test_two_averages_nest():
    variable = tf.Variable(1.0)
    one, two = (swa_tf.StochasticWeightAveraging() for _ in range(2))
    one.apply([variable])
    variable.assign(3.0)
    one.apply([variable])
    two.apply([variable])
    with swa_tf.averaged_weights(one, [variable]):
        with swa_tf.averaged_weights(two, [variable]):
            assert float(variable) == 3.0
        assert float(variable) == 2.0
    assert float(variable) == 3.0


@pytest.mark.parametrize("compiled", [False, True])
def test_apply_inside_raises(compiled):
    variable = tf.Variable(1.0)
    swa = swa_tf.StochasticWeightAveraging()

    def apply():
        swa.apply([variable])

    apply = tf.function(apply) if compiled else apply
    apply()
    with (
        pytest.raises(
            (RuntimeError, tf.errors.InvalidArgumentError), match="swapped in"
        ),
        swa_tf.averaged_weights(swa, [variable]),
    ):
        variable.assign(5.0)
        apply()
    assert int(swa.n_models) == 1
    assert float(swa.average(variable)) == 1.0
    apply()
    assert int(swa.n_models) == 2


def test_refits_inside():
    model = small_model()
    swa = averaged(model, (1.0, 2.0))
    x = np.random.default_rng(1).normal(size=[64, 3]).astype(np.float32)
    before = bits(model.weights)
    with swa_tf.averaged_weights(swa, model, refit_data=[(x,)]):
        dense, norm = model.layers[:2]
        inputs = x.astype(np.float64) @ dense.kernel.numpy().astype(np.float64)
        np.testing.assert_allclose(
            norm.moving_variance, inputs.var(0), rtol=1e-5
        )
    assert bits(model.weights) == before


@pytest.mark.parametrize("form", ["keras", "h5", "savedmodel"])
def test_save_inside_exports_the_averaged_model(tmp_path, form):
    x = tf.random.normal([4, 3])
    model = small_model()
    swa = averaged(model, (1.0, 2.0))
    trained = model(x).numpy()
    with swa_tf.averaged_weights(swa, model, refit_data=[x]):
        inside = model(x).numpy()
        if form == "savedmodel":
            tf.saved_model.save(model, str(tmp_path / "model"))
        else:
            model.save(tmp_path / f"model.{form}")
    assert np.abs(inside - trained).max() > 1e-3
    np.testing.assert_array_equal(model(x), trained)
    if form == "savedmodel":
        loaded = tf.saved_model.load(str(tmp_path / "model"))
        output = loaded.signatures["serving_default"](x)
        output = next(iter(output.values()))
    else:
        output = tf.keras.models.load_model(tmp_path / f"model.{form}")(x)
    np.testing.assert_allclose(output, inside, rtol=1e-6)


@pytest.mark.parametrize("case", ["not yet", "twice", "function", "graph"])
def test_entry_at_the_wrong_time(case):
    variable = tf.Variable(1.0)
    swa = swa_tf.StochasticWeightAveraging()

    def enter():
        with swa_tf.averaged_weights(swa, [variable]):
            variable.assign(9.0)

    if case == "not yet":
        with pytest.raises(RuntimeError, match="averaged nothing yet"):
            enter()
        assert float(variable) == 1.0
        return
    swa.apply([variable])
    variable.assign(3.0)
    swa.apply([variable])
    if case == "twice":
        with swa_tf.averaged_weights(swa, [variable]):
            with pytest.raises(RuntimeError, match="entered twice"):
                enter()
            assert float(variable) == 2.0
    elif case == "function":
        with pytest.raises(RuntimeError, match="eager mode only"):
            tf.function(enter)()
    else:
        with tf.Graph().as_default():
            with pytest.raises(RuntimeError, match="eager mode only"):
                enter()
    assert float(variable) == 3.0


def test_bad_targets():
    model, other = small_model(), small_model()
    swa = averaged(model)
    before = bits(model.weights + other.weights)
    for target, error, match in (
        (other, ValueError, "none of them averaged"),
        (other.weights, ValueError, "`target` must hold.*in addition"),
        (3, TypeError, "`target` must be a model or a list of variables"),
        ([], ValueError, "`target` must be a list of at least one"),
        ([1.0], TypeError, "`target` must hold variables"),
    ):
        with pytest.raises(error, match=match):
            with swa_tf.averaged_weights(swa, target):
                pass
    with pytest.raises(TypeError, match="model for `refit_data`"):
        with swa_tf.averaged_weights(
            swa, model.trainable_variables, refit_data=[tf.zeros([1, 3])]
        ):
            pass
    with pytest.raises(TypeError, match="`keep` must be True or False"):
        with swa_tf.averaged_weights(swa, model, keep="yes"):
            pass
    assert bits(model.weights + other.weights) == before
    assert not swa.swapped


def test_failing_refit_on_entry_restores():
    model = small_model()
    swa = averaged(model)
    before = bits(model.weights)
    with pytest.raises(ValueError, match="at least one batch"):
        with swa_tf.averaged_weights(swa, model, refit_data=[]):
            pass
    assert bits(model.weights) == before
    assert not swa.swapped


def test_checkpoint_written_inside_says_so(tmp_path):
    model = small_model()
    swa = averaged(model, (1.0, 2.0))
    prefix = str(tmp_path / "c")
    with swa_tf.averaged_weights(swa, model):
        inside = bits(model.weights)
        path = tf.train.Checkpoint(model=model, swa=swa).save(prefix)
    before = bits(model.weights)
    new = swa_tf.StochasticWeightAveraging()
    for each in (swa, new):
        with pytest.raises(ValueError, match="written inside"):
            tf.train.Checkpoint(model=model, swa=each).restore(path)
        assert bits(model.weights) == before
    assert int(new.n_models) == 0
    status = tf.train.Checkpoint(model=model).restore(path)
    status.expect_partial()  # the averaged model, as the message says
    assert bits(model.weights) == inside


def test_checkpoint_cannot_be_restored_inside(tmp_path):
    variable = tf.Variable(1.0)
    swa = swa_tf.StochasticWeightAveraging()
    swa.apply([variable])
    checkpoint = tf.train.Checkpoint(swa=swa)
    path = checkpoint.save(str(tmp_path / "c"))
    with swa_tf.averaged_weights(swa, [variable]):
        with pytest.raises(RuntimeError, match="Leave it first"):
            checkpoint.restore(path)
    checkpoint.restore(path)


def test_evaluates_a_checkpoint_without_apply(tmp_path):
    variable = tf.Variable(1.0)
    swa = swa_tf.StochasticWeightAveraging()
    for value in (1.0, 4.0):
        variable.assign(value)
        swa.apply([variable])
    path = tf.train.Checkpoint(swa=swa, v=variable).save(str(tmp_path / "c"))
    variable = tf.Variable(0.0)
    swa = swa_tf.StochasticWeightAveraging()
    tf.train.Checkpoint(swa=swa, v=variable).restore(path)
    with pytest.raises(ValueError, match="`build`"):
        with swa_tf.averaged_weights(swa, [variable]):
            pass
    swa.build([variable])
    with swa_tf.averaged_weights(swa, [variable]):
        assert float(variable) == 2.5


# --- The recipe -------------------------------------------------------------


@pytest.mark.parametrize("device", [None, "/cpu:1"])
@pytest.mark.parametrize("compiled", [False, True])
def test_recipe(compiled, device):
    wrap = tf.function if compiled else (lambda function: function)
    variable = tf.Variable([1e8, 1.0])
    integer = tf.Variable(3)
    swa = swa_tf.StochasticWeightAveraging()
    backup = swa_tf.BackupVariables([variable, integer], device=device)
    for value in ([0.0, 3.0], [1e8, 1.0]):
        variable.assign(value)
        swa.apply([variable])

    @wrap
    def swap_in():
        backup.save()
        swa_tf.assign_averages(swa, [variable])

    @wrap
    def restore():
        backup.restore()

    swap_in()
    np.testing.assert_array_equal(variable, [5e7, 2.0])
    integer.assign(9)
    restore()
    np.testing.assert_array_equal(variable, np.float32([1e8, 1.0]))
    assert int(integer) == 3
    expected = device.upper() if device else "CPU:0"
    assert all(v.device.endswith(expected[-5:]) for v in backup.variables)
    assert len(backup.variables) == 2


def test_a_copy_of_a_backup_is_of_the_same_variables():
    variable = tf.Variable(1.0)
    backup = swa_tf.BackupVariables([variable])
    alone = copy.deepcopy(backup)
    copied, of_variable = copy.deepcopy((backup, variable))
    for each in (variable, of_variable):
        each.assign(2.0)
    copied.restore()
    assert (float(variable), float(of_variable)) == (2.0, 1.0)
    alone.restore()
    assert float(variable) == 1.0


def test_recipe_in_a_session():
    with tf.Graph().as_default(), v1.Session() as session:
        variable = tf.Variable(1.0)
        swa = swa_tf.StochasticWeightAveraging()
        apply = swa.apply()
        backup = swa_tf.BackupVariables([variable])
        save, restore = backup.save(), backup.restore()
        swap_in = swa_tf.assign_averages(swa, [variable])
        session.run(v1.global_variables_initializer())
        session.run(save)
        with pytest.raises(
            tf.errors.InvalidArgumentError, match="averaged nothing"
        ):
            session.run(swap_in)
        assert session.run(variable) == 1.0
        session.run(apply)
        session.run(variable.assign(4.0))
        session.run(apply)
        session.run(save)
        session.run(swap_in)
        assert session.run(variable) == 2.5
        session.run(restore)
        assert session.run(variable) == 4.0


def test_recipe_on_replicas():
    strategy = tf.distribute.MirroredStrategy(["/cpu:0", "/cpu:1"])
    with strategy.scope():
        variable = tf.Variable(1.0)
    swa = swa_tf.StochasticWeightAveraging()
    backup = swa_tf.BackupVariables([variable])
    for value in (1.0, 3.0):
        variable.assign(value)
        swa.apply([variable])
    backup.save()
    swa_tf.assign_averages(swa, [variable])
    assert [float(v) for v in variable.values] == [2.0, 2.0]
    backup.restore()
    assert [float(v) for v in variable.values] == [3.0, 3.0]


def test_recipe_refuses():
    variable, other = tf.Variable(1.0), tf.Variable(1.0, name="other")
    swa = swa_tf.StochasticWeightAveraging()
    with pytest.raises(ValueError, match="must hold variables that"):
        swa_tf.assign_averages(swa, [variable])
    swa.build([variable])
    with pytest.raises(RuntimeError, match="averaged nothing yet"):
        swa_tf.assign_averages(swa, [variable])
    swa.apply([variable])
    with pytest.raises(ValueError, match="in addition: 'other'"):
        swa_tf.assign_averages(swa, [variable, other])
    for bad, error in (([], ValueError), (variable, TypeError), (3, TypeError)):
        with pytest.raises(error, match="`var_list`"):
            swa_tf.assign_averages(swa, bad)
        with pytest.raises(error, match="`var_list`"):
            swa_tf.BackupVariables(bad)


def test_variables_in_a_tuple():
    first, second = tf.Variable(1.0), tf.Variable(2.0)
    module = tf.Module()
    module.parts = {"a": (first,), "b": [(tf.Module(), second)]}
    swa = swa_tf.StochasticWeightAveraging()
    swa.apply([first, second])
    first.assign(5.0)
    second.assign(6.0)
    with swa_tf.averaged_weights(swa, module):
        assert (float(first), float(second)) == (1.0, 2.0)
    assert (float(first), float(second)) == (5.0, 6.0)
