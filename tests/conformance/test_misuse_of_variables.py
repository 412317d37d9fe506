"""Mistakes with variables: docs/misuse.md, row by row."""

import gc
import weakref

import numpy as np
import pytest
import tensorflow as tf

import swa_tf
from swa_tf.support import compat
from tests.misuse import (
    averaged_model,
    averaged_variable,
    both,
    both_and,
    entering,
    expected_of,
    make_model,
    optimizer_variables,
    raises_and_changes_nothing,
    state_of,
)


@both
def test_swap_of_another_model(make):
    model, other = make_model(), make_model()
    average = make()
    average.apply(model.trainable_variables)
    raises_and_changes_nothing(
        ValueError,
        "none of them averaged",
        average,
        other.weights,
        entering(average, other),
    )


@both
def test_swap_of_a_variable_that_is_not_averaged(make):
    average, variable = averaged_variable(make)
    other = tf.Variable(7.0, name="other")
    raises_and_changes_nothing(
        ValueError,
        "in addition: 'other'",
        average,
        [variable, other],
        entering(average, [variable, other]),
    )


@both_and("how", "built", "left out since the reset")
def test_swap_of_a_variable_that_has_no_average_yet(make, how):
    average, variable = averaged_variable(make)
    other = tf.Variable(7.0, name="other")
    steps = [lambda: average.build([other])]
    if how != "built":
        average = make()
        average.apply([variable, other])
        average.reset()
        steps = [lambda: average.apply([variable])]
    if expected_of(average, swa=True, ema=False):  # knows one list
        for step in steps:
            raises_and_changes_nothing(
                ValueError, "'other'", average, [variable, other], step
            )
        return
    for step in steps:
        step()
    other.assign(50.0)
    model = tf.Module()
    model.weights = [variable, other]

    @tf.function
    def assign_averages():
        swa_tf.assign_averages(average, [variable, other])

    for function in (
        entering(average, [variable, other]),
        entering(average, [other]),
        entering(average, model),
        entering(average, model, keep=True),
        lambda: swa_tf.assign_averages(average, [variable, other]),
        assign_averages,
    ):
        error = RuntimeError
        if function is assign_averages:
            error = tf.errors.InvalidArgumentError
        raises_and_changes_nothing(
            error, "yet.*: .*other", average, [variable, other], function
        )
        assert not average.swapped
    with swa_tf.averaged_weights(average, [variable]):
        assert float(other) == 50.0
    average.apply([other])
    other.assign(0.0)
    with swa_tf.averaged_weights(average, model):
        assert float(other) == 50.0
    assign_averages()
    assert float(other) == 50.0


@both
def test_one_average_for_two_models(make):
    average, model = averaged_model(make)
    other = make_model()

    def apply():
        average.apply(other.trainable_variables)

    if expected_of(average, swa=True, ema=False):
        raises_and_changes_nothing(
            ValueError,
            "in addition",
            average,
            [*model.weights, *other.weights],
            apply,
        )
        return
    other.trainable_variables[0].assign(tf.fill([3, 2], 9.0))
    apply()
    before = state_of(average, *model.weights, *other.weights)
    for each, expected in ((model, 2.0), (other, 9.0)):
        others = other if each is model else model
        untouched = state_of(average, *others.weights)[-len(others.weights) :]
        with swa_tf.averaged_weights(average, each):
            kernel = each.trainable_variables[0].numpy()
            np.testing.assert_array_equal(kernel, np.full([3, 2], expected))
            now = state_of(average, *others.weights)[-len(others.weights) :]
            assert now == untouched
            with pytest.raises(RuntimeError, match="swapped in"):
                apply()
    assert state_of(average, *model.weights, *other.weights) == before


@both
def test_variables_of_an_optimizer(make):
    model = make_model()
    optimizer = tf.keras.optimizers.Adam()
    optimizer.build(model.trainable_variables)
    variables = optimizer_variables(optimizer)
    started = make()
    started.apply(model.trainable_variables)
    for average in (make(), started):
        raises_and_changes_nothing(
            TypeError,  # its count of steps is among them
            "int64",
            average,
            [*model.weights, *variables],
            lambda average=average: average.apply(variables),
        )
        assert all(average.average(v) is None for v in variables)
    raises_and_changes_nothing(
        ValueError,
        "in addition",
        started,
        [*model.weights, *variables],
        entering(started, list(variables)),
    )


@both
def test_apply_of_another_list(make):
    average, variable = averaged_variable(make)
    other = tf.Variable(7.0, name="other")
    if expected_of(average, swa=True, ema=False):
        for var_list in ([other], [variable, other]):
            raises_and_changes_nothing(
                ValueError,
                "in addition: 'other'",
                average,
                [variable, other],
                lambda var_list=var_list: average.apply(var_list),
            )
        return
    shadow = average.average(variable)
    average.apply([other])
    assert (float(shadow), float(average.average(other))) == (2.0, 7.0)
    other.assign(9.0)
    average.apply([variable, other])
    assert (float(shadow), float(average.average(other))) == (2.5, 8.0)
    assert (float(variable), float(other)) == (3.0, 9.0)


@both
def test_apply_of_a_part_of_the_list(make):
    average, variable = make(), tf.Variable(1.0, name="v")
    other = tf.Variable(7.0, name="other")
    average.apply([variable, other])
    variable.assign(3.0)
    if expected_of(average, swa=True, ema=False):
        raises_and_changes_nothing(
            ValueError,
            "without: 'other'",
            average,
            [variable, other],
            lambda: average.apply([variable]),
        )
        return
    other.assign(9.0)
    average.apply([variable])
    assert float(average.average(variable)) == 2.0
    assert float(average.average(other)) == 7.0


@both
def test_a_variable_twice_in_a_list(make):
    average, variable = averaged_variable(make)
    raises_and_changes_nothing(
        ValueError,
        "twice.*'v'",
        average,
        [variable],
        lambda: average.apply([variable, variable]),
    )


@both_and(
    "wrong",
    3,
    "v",
    ["v"],
    [None],
    [np.ones(2)],
    np.ones(2),
    {"v": 1.0},
    tf.keras.layers.Dense,
)
def test_values_of_other_types(make, wrong):
    average, variable = averaged_variable(make)
    is_list = isinstance(wrong, (list, np.ndarray))
    variables = "hold variables" if is_list else "be a list of variables"
    target = "a model or a list"
    for function, argument, wanted in (
        (lambda: average.apply(wrong), "var_list", variables),
        (lambda: make().build(wrong), "var_list", variables),
        (lambda: swa_tf.assign_averages(average, wrong), "var_list", variables),
        (lambda: swa_tf.BackupVariables(wrong), "var_list", variables),
        (
            entering(average, wrong),
            "target",
            variables.replace("a list", target),
        ),
        (lambda: average.average(wrong), "var", "be a variable"),
        (lambda: average.average_name(wrong), "var", "be a variable"),
        (entering(wrong, [variable]), "swa", "be a `WeightAverage`"),
        (
            lambda: swa_tf.assign_averages(wrong, [variable]),
            "swa",
            "be a `WeightAverage`",
        ),
        (
            lambda: swa_tf.refit_batch_norm(wrong, [tf.ones(1)]),
            "model",
            "be a model or layer",
        ),
        (
            lambda: swa_tf.SWACallback(averages=wrong),
            "averages",
            "be a `WeightAverage`",
        ),
    ):
        raises_and_changes_nothing(
            TypeError,
            f"`{argument}` must {wanted}",
            average,
            [variable],
            function,
        )


@both
def test_nothing_in_the_place_of_variables(make):
    average, variable = averaged_variable(make)
    for nothing in (None, [], ()):
        raises_and_changes_nothing(
            ValueError,
            "outside v1 graphs" if nothing is None else "at least one",
            average,
            [variable],
            lambda nothing=nothing: average.apply(nothing),
        )
        raises_and_changes_nothing(
            TypeError if nothing is None else ValueError,
            "be a model or" if nothing is None else "at least one",
            average,
            [variable],
            entering(average, nothing),
        )


@both_and("compiled", False, True)
def test_a_variable_of_another_shape(make, compiled):
    variable = tf.Variable([1.0, 2.0], shape=tf.TensorShape([None]))
    average = make()

    def apply():
        average.apply([variable])

    if compiled:
        apply = tf.function(apply)
    apply()
    variable.assign([5.0])  # would broadcast
    raises_and_changes_nothing(
        tf.errors.InvalidArgumentError if compiled else ValueError,
        "shape_in_var_list_must_not_change" if compiled else "shapes stay",
        average,
        [variable],
        apply,
    )
    variable.assign([3.0, 4.0])
    apply()
    np.testing.assert_array_equal(average.average(variable), [2.0, 3.0])


@both
def test_a_variable_that_was_deleted(make):
    layer = tf.keras.layers.Dense(1, use_bias=False)
    layer.build([None, 1])
    kernels, average = [layer.kernel], make()
    for value in (1.0, 3.0):
        kernels[0].assign([[value]])
        average.apply(kernels)
    shadow, alive = average.average(kernels[0]), weakref.ref(kernels[0])
    before = state_of(average)
    del layer, kernels
    gc.collect()
    # None can take the place of one: not its memory, nor what is known by it.
    assert alive() is not None
    assert shadow.numpy() == [[2.0]]
    new = tf.Variable([[3.0]])
    assert average.average(new) is None
    assert state_of(average) == before


@both
def test_another_graph(make):
    average, variable = averaged_variable(make)
    before = state_of(average, variable)
    with tf.Graph().as_default():
        other = tf.Variable(1.0)
        with pytest.raises(ValueError, match="graph of the first `apply`"):
            average.apply([other])
        assert average.average(other) is None
    assert state_of(average, variable) == before
    average.apply([variable])
    assert int(average.n_models) == 3


def _mirrored(first):
    devices = [f"/cpu:{first}", f"/cpu:{first + 1}"]
    return tf.distribute.MirroredStrategy(devices)


def _held(variable):
    """The value on each device."""
    strategy = variable.distribute_strategy
    parts = strategy.experimental_local_results(variable)
    return [float(part) for part in parts]


def _averaged_mirrored(make, scope):
    """Returns as `averaged_variable` does; the variable is made in `scope`."""
    with scope:
        variable = tf.Variable(1.0, name="v")
    average = make()
    for value in (1.0, 3.0):
        variable.assign(value)
        average.apply([variable])
    return average, compat.tf_variable(variable)


@both
def test_outside_the_scope_of_the_strategy(make):
    average, variable = _averaged_mirrored(make, _mirrored(0).scope())
    assert _held(average.average(variable)) == [2.0, 2.0]
    with swa_tf.averaged_weights(average, [variable]):
        assert _held(variable) == [2.0, 2.0]
    assert _held(variable) == [3.0, 3.0]
    assert _held(average.average(variable)) == [2.0, 2.0]


@both
def test_in_the_scope_of_another_strategy(make):
    average, variable = _averaged_mirrored(make, _mirrored(0).scope())
    variable.assign(2.0)
    other = _mirrored(2)

    @tf.function
    def step():
        other.run(lambda: average.apply([variable]))

    with other.scope():
        average.apply(iter([variable]))  # which no trace is kept for
        assert int(average.n_models) == 3
        assert _held(average.average(variable)) == [2.0, 2.0]
        before = state_of(average, variable)
        with swa_tf.averaged_weights(average, [variable]):
            assert _held(variable) == [2.0, 2.0]
    raises_and_changes_nothing(
        ValueError, "of another strategy", average, [variable], step
    )
    assert state_of(average, variable) == before


@both
def test_first_apply_in_the_scope_of_another_strategy(make):
    with _mirrored(0).scope():
        variable = tf.Variable(1.0, name="v")
    average = make()
    with _mirrored(2).scope():
        raises_and_changes_nothing(
            ValueError,
            "of another strategy.*'v'",
            average,
            [variable],
            lambda: average.apply([variable]),
        )
    assert average.average(variable) is None
    assert average.averaged == []
    average.apply([variable])
    assert _held(average.average(variable)) == [1.0, 1.0]


@both
def test_an_average_made_in_another_scope(make):
    with _mirrored(0).scope():
        average = make()
    other = _mirrored(2)
    with other.scope():
        variable = tf.Variable(1.0, name="v")
        raises_and_changes_nothing(
            ValueError,
            "must not be called in the scope of another strategy",
            average,
            [variable],
            lambda: average.apply([variable]),
        )
        assert average.average(variable) is None
    for value in (1.0, 3.0):
        variable.assign(value)
        average.apply([variable])
    assert _held(average.average(variable)) == [2.0, 2.0]
    with other.scope():
        with swa_tf.averaged_weights(average, [variable]):
            assert _held(variable) == [2.0, 2.0]
        assert not average.swapped
    assert _held(variable) == [3.0, 3.0]


@both
def test_mirrored_variables_for_an_average_of_plain_ones(make):
    average, variable = averaged_variable(make)
    with _mirrored(0).scope():
        mirrored = tf.Variable(5.0, name="v")
    if expected_of(average, swa=True, ema=False):
        raises_and_changes_nothing(
            ValueError,
            "in addition",
            average,
            [variable, mirrored],
            lambda: average.apply([mirrored]),
        )
        return
    average.apply([mirrored])
    mirrored.assign(7.0)
    average.apply([mirrored])
    assert _held(average.average(mirrored)) == [6.0, 6.0]
    assert float(average.average(variable)) == 2.0
    with swa_tf.averaged_weights(average, [mirrored]):
        assert (_held(mirrored), float(variable)) == ([6.0, 6.0], 3.0)
    assert (_held(mirrored), float(variable)) == ([7.0, 7.0], 3.0)


@both
def test_another_device(make):
    with tf.device("/cpu:0"):
        average, variable = averaged_variable(make)
    variable.assign(2.0)
    with tf.device("/cpu:1"):
        average.apply([variable])
        with swa_tf.averaged_weights(average, [variable]):
            assert float(variable) == 2.0
            assert variable.device.endswith("CPU:0")
    assert float(average.average(variable)) == 2.0
    assert int(average.n_models) == 3
    assert average.average(variable).device.endswith("CPU:0")


KEPT_AWAY = [
    lambda: swa_tf.StochasticWeightAveraging(device="/cpu:1"),
    lambda: swa_tf.ExponentialMovingAverage(0.5, device="/cpu:1"),
]


@pytest.mark.parametrize("make", KEPT_AWAY, ids=["swa", "ema"])
def test_device_for_variables_of_a_strategy(make):
    average = make()
    with _mirrored(0).scope():
        variable = tf.Variable(1.0, name="v")
    raises_and_changes_nothing(
        ValueError,
        "`device` must be None.*'v'",
        average,
        [variable],
        lambda: average.apply([variable]),
    )
    assert average.average(variable) is None
    with _mirrored(0).scope(), pytest.raises(ValueError, match="`device`"):
        make()
    plain = tf.Variable(1.0)
    average.apply([plain])
    assert average.average(plain).device.endswith("CPU:1")


ON_DEVICE = [
    lambda device: swa_tf.StochasticWeightAveraging(device=device),
    lambda device: swa_tf.ExponentialMovingAverage(0.5, device=device),
]


@pytest.mark.parametrize("make", ON_DEVICE, ids=["swa", "ema"])
def test_a_device_that_does_not_exist(make):
    variable = tf.Variable(1.0)

    def backup(device):
        return swa_tf.BackupVariables([variable], device)

    devices = "/device:CPU:0, /device:CPU:1, /device:CPU:2, /device:CPU:3"
    for device in ("/gpu:7", "/cpu:4", "/job:x/cpu:0", "/task:1/cpu:0"):
        for function in (make, backup, tf.function(make, autograph=False)):
            with pytest.raises(
                ValueError,
                match=f"`device` must be one of {devices}. "
                f"Received: device='{device}'",
            ):
                function(device)
    for device in ("CPU:2", "/device:cpu:2", "/job:localhost/task:0/cpu:2"):
        average = make(device)
        average.apply([variable])
        assert average.average(variable).device.endswith("CPU:2")
        assert backup(device).variables[0].device.endswith("CPU:2")
    with tf.Graph().as_default():  # may run where there is one
        variable = tf.Variable(1.0)
        average = make("/gpu:7")
        average.apply([variable])
        assert average.average(variable).device.endswith("GPU:7")
        assert backup("/gpu:7").variables[0].device.endswith("GPU:7")


@both
def test_swap_in_a_function(make):
    average, variable = averaged_variable(make)
    enter = entering(average, [variable])

    def in_a_graph():
        with tf.Graph().as_default():
            enter()

    for function in (tf.function(enter, autograph=False), in_a_graph):
        raises_and_changes_nothing(
            RuntimeError, "eager mode only", average, [variable], function
        )
