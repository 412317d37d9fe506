"""What can be done wrong, and what comes of it: docs/misuse.md, row by row.

Each test holds the error, or the result, and the state after it.
"""

import math
import pathlib
import re
import threading

import numpy as np
import pytest
import tensorflow as tf

import swa_tf

v1 = tf.compat.v1
ROOT = pathlib.Path(__file__).resolve().parents[1]

AVERAGES = [
    swa_tf.StochasticWeightAveraging,
    lambda: swa_tf.ExponentialMovingAverage(0.5),
]
both = pytest.mark.parametrize("make", AVERAGES, ids=["swa", "ema"])


def _model():
    model = tf.keras.Sequential(
        [tf.keras.layers.Dense(2), tf.keras.layers.BatchNormalization()]
    )
    model.build([None, 3])
    return model


def _state(average, *variables):
    """All that an average and variables hold, for comparison."""
    held = [np.array(v) for v in (*average.variables, *variables)]
    return [value.tobytes() for value in held]


def _averaged(make, values=(1.0, 3.0)):
    """A variable, and an average of both: 2."""
    average, variable = make(), tf.Variable(values[0], name="v")
    for value in values:
        variable.assign(value)
        average.apply([variable])
    return average, variable


def _raises_and_changes_nothing(error, match, average, variables, function):
    before = _state(average, *variables)
    with pytest.raises(error, match=match):
        function()
    assert _state(average, *variables) == before


def _enter(average, target, **kwargs):
    def enter():
        with swa_tf.averaged_weights(average, target, **kwargs):
            pytest.fail("the block was entered")

    return enter


# --- In the wrong order, twice ----------------------------------------------


@both
def test_swap_before_the_first_apply(make):
    average, variable = make(), tf.Variable(1.0)
    average.build([variable])
    for function in (
        _enter(average, [variable]),
        lambda: swa_tf.assign_averages(average, [variable]),
    ):
        _raises_and_changes_nothing(
            RuntimeError, "averaged nothing", average, [variable], function
        )


@both
def test_swap_twice(make):
    average, variable = _averaged(make)
    with swa_tf.averaged_weights(average, [variable]):
        _raises_and_changes_nothing(
            RuntimeError,
            "entered twice",
            average,
            [variable],
            _enter(average, [variable]),
        )
        assert float(variable) == 2.0
    assert float(variable) == 3.0


@both
@pytest.mark.parametrize("compiled", [False, True])
def test_apply_while_swapped(make, compiled):
    average, variable = _averaged(make)

    def apply():
        average.apply([variable])

    if compiled:
        apply = tf.function(apply)
        apply()
    with swa_tf.averaged_weights(average, [variable]):
        _raises_and_changes_nothing(
            (RuntimeError, tf.errors.InvalidArgumentError),
            "swapped in",
            average,
            [variable],
            apply,
        )
    assert float(variable) == 3.0
    apply()


@both
def test_reset_while_swapped(make):
    average, variable = _averaged(make)
    with swa_tf.averaged_weights(average, [variable]):
        average.reset()
    assert float(variable) == 3.0
    assert int(average.n_models) == 0
    average.apply([variable])
    assert float(average.average(variable)) == 3.0


@both
def test_restore_while_swapped(make, tmp_path):
    average, variable = _averaged(make)
    checkpoint = tf.train.Checkpoint(average=average, variable=variable)
    path = checkpoint.save(str(tmp_path / "c"))
    with swa_tf.averaged_weights(average, [variable]):
        _raises_and_changes_nothing(
            RuntimeError,
            "cannot be restored inside",
            average,
            [variable],
            lambda: checkpoint.restore(path),
        )
    assert float(variable) == 3.0


@both
def test_checkpoint_written_while_swapped(make, tmp_path):
    average, variable = _averaged(make)
    checkpoint = tf.train.Checkpoint(average=average, variable=variable)
    with swa_tf.averaged_weights(average, [variable]):
        path = checkpoint.save(str(tmp_path / "c"))
    _raises_and_changes_nothing(
        ValueError,
        "written inside",
        average,
        [variable],
        lambda: checkpoint.restore(path),
    )
    tf.train.Checkpoint(variable=variable).restore(path).expect_partial()
    assert float(variable) == 2.0  # the averaged model alone can be restored


@both
def test_checkpoint_written_before_the_averages_are_there(make, tmp_path):
    average, variable = _averaged(make)
    path = tf.train.Checkpoint(average=average).write(str(tmp_path / "c"))

    restored = make()
    checkpoint = tf.train.Checkpoint(average=restored)
    checkpoint.read(path).expect_partial()
    with pytest.raises(RuntimeError, match="Call `build` first"):
        checkpoint.write(str(tmp_path / "d"))
    assert not list(tmp_path.glob("d*"))
    restored.build([variable])
    path = checkpoint.write(str(tmp_path / "d"))

    again = make()
    tf.train.Checkpoint(average=again).read(path).expect_partial()
    again.build([variable])
    expected = average.average(variable).numpy()
    assert again.average(variable).numpy() == expected


@both
def test_threads_that_apply(make):
    # So large that one call may read the count before another has written it.
    average, variable = make(), tf.Variable(tf.fill([100_000], 5.0))
    average.apply([variable])

    def apply():
        for _ in range(100):
            average.apply([variable])

    threads = [threading.Thread(target=apply) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert int(average.n_models) == 401
    assert (average.average(variable).numpy() == 5.0).all()


# --- The wrong variables ----------------------------------------------------


@both
def test_swap_of_another_model(make):
    model, other = _model(), _model()
    average = make()
    average.apply(model.trainable_variables)
    _raises_and_changes_nothing(
        ValueError,
        "none of them averaged",
        average,
        other.weights,
        _enter(average, other),
    )


@both
def test_swap_of_a_variable_that_is_not_averaged(make):
    average, variable = _averaged(make)
    other = tf.Variable(7.0, name="other")
    _raises_and_changes_nothing(
        ValueError,
        "in addition: 'other'",
        average,
        [variable, other],
        _enter(average, [variable, other]),
    )


@both
def test_variables_of_an_optimizer(make):
    model, average = _model(), make()
    optimizer = tf.keras.optimizers.Adam()
    optimizer.build(model.trainable_variables)
    variables = optimizer.variables
    variables = variables() if callable(variables) else variables
    with pytest.raises(TypeError, match="int64"):
        average.apply(variables)  # its count of steps is among them
    assert int(average.n_models) == 0
    assert all(average.average(v) is None for v in variables)


def test_apply_of_another_list():
    average, variable = _averaged(AVERAGES[0])
    other = tf.Variable(7.0, name="other")
    for var_list in ([other], [variable, other]):
        _raises_and_changes_nothing(
            ValueError,
            "'other'",
            average,
            [variable, other],
            lambda var_list=var_list: average.apply(var_list),
        )


@both
def test_a_variable_twice_in_a_list(make):
    average, variable = _averaged(make)
    _raises_and_changes_nothing(
        ValueError,
        "twice: 'v'",
        average,
        [variable],
        lambda: average.apply([variable, variable]),
    )


@both
def test_a_variable_of_another_shape(make):
    variable = tf.Variable([1.0, 2.0], shape=tf.TensorShape([None]))
    average = make()
    average.apply([variable])
    variable.assign([5.0])  # would broadcast
    _raises_and_changes_nothing(
        ValueError,
        "shapes stay",
        average,
        [variable],
        lambda: average.apply([variable]),
    )


@both
def test_a_variable_that_was_deleted(make):
    average, variable = _averaged(make)
    shadow = average.average(variable)
    del variable
    assert float(shadow) == 2.0
    # The average holds on to its variables: none can take the place of one.
    new = tf.Variable(3.0)
    assert average.average(new) is None


@both
def test_another_graph(make):
    average, variable = _averaged(make)
    with tf.Graph().as_default():
        other = tf.Variable(1.0)
        with pytest.raises(ValueError, match="graph of the first `apply`"):
            average.apply([other])
    assert int(average.n_models) == 2
    average.apply([variable])


@both
def test_outside_the_scope_of_the_strategy(make):
    strategy = tf.distribute.MirroredStrategy(["/cpu:0", "/cpu:1"])
    with strategy.scope():
        variable = tf.Variable(1.0)
    average = make()
    for value in (1.0, 3.0):
        variable.assign(value)
        average.apply([variable])
    with swa_tf.averaged_weights(average, [variable]):
        held = strategy.experimental_local_results(variable)
        assert [float(v) for v in held] == [2.0, 2.0]
    held = strategy.experimental_local_results(variable)
    assert [float(v) for v in held] == [3.0, 3.0]


@both
def test_swap_in_a_function(make):
    average, variable = _averaged(make)
    _raises_and_changes_nothing(
        RuntimeError,
        "eager mode only",
        average,
        [variable],
        tf.function(_enter(average, [variable]), autograph=False),
    )


# --- What fails on the way --------------------------------------------------


@both
def test_an_exception_while_swapped(make):
    average, variable = _averaged(make)
    before = _state(average, variable)
    with pytest.raises(KeyError), swa_tf.averaged_weights(average, [variable]):
        variable.assign(100.0)
        raise KeyError
    assert _state(average, variable) == before
    average.apply([variable])


def _short():
    yield tf.ones([4, 3])


def _failing():
    yield tf.ones([4, 3])
    raise OSError("the disk is gone")


@both
@pytest.mark.parametrize(
    ("data", "error"), [(_failing, OSError), (_short, ValueError)]
)
def test_a_refit_that_fails(make, data, error):
    model, average = _model(), make()
    for _ in range(2):
        average.apply(model.trainable_variables)
        model.trainable_variables[0].assign_add(tf.ones([3, 2]))
    before = _state(average, *model.weights)
    with pytest.raises(error):
        _enter(average, model, refit_data=data(), refit_steps=3)()
    assert _state(average, *model.weights) == before
    average.apply(model.trainable_variables)
    with swa_tf.averaged_weights(average, model, refit_data=[tf.ones([4, 3])]):
        pass


# --- Numbers ----------------------------------------------------------------


@both
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_weights_that_are_not_finite(make, bad):
    average, other = make(), tf.Variable(1.0)
    variable = tf.Variable([1.0, 1.0])
    for value in (1.0, bad, 1.0):
        variable.assign([1.0, value])
        average.apply([variable, other])
    averaged = average.average(variable).numpy()
    assert averaged[0] == 1.0
    assert not np.isfinite(averaged[1])
    assert float(average.average(other)) == 1.0
    average.reset()
    average.apply([variable, other])
    np.testing.assert_array_equal(average.average(variable), [1.0, 1.0])


@pytest.mark.parametrize("decay", [1.0, 1.5, -0.1, math.nan])
def test_decay_outside_0_to_1(decay):
    with pytest.raises(ValueError, match="`decay` must be"):
        swa_tf.ExponentialMovingAverage(decay)
    variable, given = tf.Variable(1.0), tf.Variable(0.5)
    average = swa_tf.ExponentialMovingAverage(given)
    average.apply([variable])
    given.assign(decay)
    variable.assign(2.0)
    _raises_and_changes_nothing(
        ValueError,
        "`decay` must be",
        average,
        [variable],
        lambda: average.apply([variable]),
    )


def test_the_table_lists_every_test():
    text = (ROOT / "docs" / "misuse.md").read_text(encoding="utf-8")
    listed = re.findall(r"^\|.*\| `(test_\w+)` \|$", text, re.M)
    tests = [name for name in globals() if name.startswith("test_")]
    assert listed == [
        t for t in tests if t != "test_the_table_lists_every_test"
    ]
