"""Mistakes and their outcome: docs/misuse.md, row by row.

Each test holds the error, or the result, and the state after it.
"""

import contextlib
import copy
import gc
import inspect
import math
import pathlib
import pickle
import threading
import weakref

import numpy as np
import pytest
import tensorflow as tf

import swa_tf
from swa_tf.support import stack
from swa_tf.support import variables as variables_lib
from tests.fitting import covering

ROOT = pathlib.Path(__file__).resolve().parents[2]

AVERAGES = [
    swa_tf.StochasticWeightAveraging,
    lambda: swa_tf.ExponentialMovingAverage(0.5),
]
IDS = dict(zip(map(id, AVERAGES), ["swa", "ema"]))
both = pytest.mark.parametrize("make", AVERAGES, ids=["swa", "ema"])


def both_and(name, *values):
    """Each average and each value; the other pairs are slow."""
    return pytest.mark.parametrize(
        ("make", name),
        covering(1, AVERAGES, values),
        ids=lambda value: IDS.get(id(value), str(value)),
    )


def _model():
    model = tf.keras.Sequential(
        [tf.keras.layers.Dense(2), tf.keras.layers.BatchNormalization()]
    )
    model.build([None, 3])
    return model


def _averaged_model(make):
    """A model, and an average of kernels of 1 and of 3: 2."""
    model, average = _model(), make()
    kernel = model.trainable_variables[0]
    for value in (1.0, 3.0):
        kernel.assign(tf.fill(kernel.shape, value))
        average.apply(model.trainable_variables)
    return average, model


def _state(average, *variables):
    """All that an average and variables hold, for comparison."""
    return [
        component.numpy().tobytes()
        for variable in (*average.variables, *variables)
        for component in variables_lib.components(stack.tf_variable(variable))
    ]


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


def _of(average, swa, ema):
    """Returns `swa` for an average of that class, else `ema`."""
    is_swa = isinstance(average, swa_tf.StochasticWeightAveraging)
    return swa if is_swa else ema


def _optimizer_variables(optimizer):
    variables = optimizer.variables
    return variables() if callable(variables) else variables


def _started(function):
    """A thread, that has ended by now or waits for somebody."""
    thread = threading.Thread(target=function)
    thread.start()
    thread.join(timeout=0.2)
    return thread


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
    average = make()  # which knows no variable yet
    _raises_and_changes_nothing(
        RuntimeError,
        "averaged nothing",
        average,
        [variable],
        _enter(average, [variable]),
    )


@both
def test_an_unknown_variable(make):
    average, variable = make(), tf.Variable(1.0, name="v")
    other = tf.Variable(2.0, name="other")
    assert average.average(variable) is None
    assert average.average_name(variable) == f"v/{average.name}"
    average.apply([variable])
    before = _state(average, variable, other)
    assert average.average(other) is None
    assert average.average_name(other) == f"other/{average.name}"
    assert _state(average, variable, other) == before


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
def test_swaps_of_two_averages(make):
    average, variable = _averaged(make)
    other = make()
    other.apply([variable])
    variable.assign(7.0)
    before = _state(average, variable), _state(other, variable)
    with swa_tf.averaged_weights(average, [variable]):
        with swa_tf.averaged_weights(other, [variable]):
            assert float(variable) == 3.0
        assert float(variable) == 2.0
    assert (_state(average, variable), _state(other, variable)) == before


@both
def test_swaps_of_two_averages_that_end_out_of_order(make):
    average, variable = _averaged(make)
    other, unshared = make(), tf.Variable(5.0)
    other.apply([variable, unshared])
    for each, value in ((variable, 7.0), (unshared, 8.0)):
        each.assign(value)
    before = _state(average, variable), _state(other, variable, unshared)
    outer = swa_tf.averaged_weights(average, [variable])
    inner = swa_tf.averaged_weights(other, [variable, unshared])
    outer.__enter__()
    inner.__enter__()
    outer.__exit__(None, None, None)
    assert (float(variable), float(unshared)) == (3.0, 5.0)
    assert (average.swapped, other.swapped) == (False, True)
    inner.__exit__(None, None, None)
    after = _state(average, variable), _state(other, variable, unshared)
    assert after == before


@both
def test_swap_closed_twice(make):
    average, variable = _averaged(make)
    with contextlib.ExitStack() as swaps:
        swap = swa_tf.averaged_weights(average, [variable])
        swaps.push(swap)  # closes it again
        with swap:
            assert float(variable) == 2.0
        variable.assign(7.0)
        before = _state(average, variable)
    assert _state(average, variable) == before


@both
@pytest.mark.parametrize(
    ("how", "error"),
    [
        ("in eager mode", RuntimeError),
        ("traced inside", RuntimeError),
        ("traced before", tf.errors.InvalidArgumentError),
        ("compiled by XLA before", None),
    ],
)
def test_apply_while_swapped(make, how, error):
    average, variable = _averaged(make)

    def apply():
        average.apply([variable])

    if how != "in eager mode":
        apply = tf.function(apply, jit_compile="XLA" in how)
    if "before" in how:
        apply()
    n_models = int(average.n_models)
    with swa_tf.averaged_weights(average, [variable]):
        if error is None:  # XLA leaves assertions out
            before = _state(average, variable)
            apply()
            assert _state(average, variable) == before
        else:
            _raises_and_changes_nothing(
                error, "swapped in", average, [variable], apply
            )
    assert float(variable) == 3.0
    apply()
    assert int(average.n_models) == n_models + 1


@both
def test_apply_of_another_average_while_swapped(make):
    average, variable = _averaged(make)
    other = make()
    with swa_tf.averaged_weights(average, [variable]):
        other.apply([variable])
    assert float(other.average(variable)) == 2.0  # an average of averages
    assert (float(variable), int(average.n_models)) == (3.0, 2)
    assert float(average.average(variable)) == 2.0


@both
def test_a_copy_made_while_swapped(make):
    average, variable = _averaged(make)
    with swa_tf.averaged_weights(average, [variable]):
        copied = copy.deepcopy(average)
        assert (average.swapped, copied.swapped) == (True, False)
    variable.assign(5.0)

    @tf.function
    def apply():
        copied.apply([variable])

    apply()
    # SWA: (1 + 3 + 5) / 3. EMA: (2 + 5) / 2.
    assert float(copied.average(variable)) == _of(average, swa=3.0, ema=3.5)
    assert float(average.average(variable)) == 2.0
    with swa_tf.averaged_weights(copied, [variable]):
        pass
    assert float(variable) == 5.0


@both
def test_an_average_pickled(make):
    average, variable = _averaged(make)
    before = _state(average, variable)
    for pickles in (pickle.dumps, copy.copy):
        with pytest.raises(TypeError, match=r"`copy\.deepcopy`.*Checkpoint"):
            pickles(average)
    assert _state(average, variable) == before


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
def test_reset_twice(make):
    average, variable = _averaged(make)
    average.reset()
    once = _state(average, variable)
    average.reset()
    assert _state(average, variable) == once
    assert int(average.n_models) == 0
    variable.assign(5.0)
    average.apply([variable])
    assert int(average.n_models) == 1
    assert float(average.average(variable)) == 5.0


@both_and("compiled_first", False, True)
def test_apply_inside_and_outside_a_function(make, compiled_first):
    average, variable = make(), tf.Variable(0.0)

    def apply():
        average.apply([variable])

    in_turn = [apply, tf.function(apply)]
    for i, value in enumerate((1.0, 3.0, 2.0, 6.0)):
        variable.assign(value)
        in_turn[(i + compiled_first) % 2]()
    assert int(average.n_models) == 4
    # SWA: 12 / 4. EMA: 1, (1 + 3) / 2, (2 + 2) / 2, (2 + 6) / 2.
    expected = _of(average, swa=3.0, ema=4.0)
    assert float(average.average(variable)) == expected
    with swa_tf.averaged_weights(average, [variable]):
        assert float(variable) == expected
    assert float(variable) == 6.0


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
def test_model_saved_while_swapped(make, tmp_path):
    average, model = _averaged_model(make)
    before = _state(average, *model.weights)
    path = tmp_path / "model.keras"
    with swa_tf.averaged_weights(average, model):
        model.save(path)
    assert _state(average, *model.weights) == before
    loaded = tf.keras.models.load_model(path)
    np.testing.assert_array_equal(
        loaded.trainable_variables[0], np.full([3, 2], 2.0)
    )


@both
def test_refit_while_swapped(make):
    average, model = _averaged_model(make)
    before = _state(average, *model.weights)
    data = [tf.constant([[1.0, 0.0, 0.0], [3.0, 0.0, 0.0]])]
    with swa_tf.averaged_weights(average, model):
        swa_tf.refit_batch_norm(model, data)
        # The kernel of 2 makes 2 and 6 of them.
        np.testing.assert_allclose(model.layers[1].moving_mean, [4.0, 4.0])
        np.testing.assert_allclose(model.layers[1].moving_variance, [4.0, 4.0])
    assert _state(average, *model.weights) == before


@both
def test_fit_while_swapped(make):
    average, model = _averaged_model(make)
    model.compile("sgd", "mse", run_eagerly=True)
    before = _state(average, *model.weights)
    x, y = tf.ones([4, 3]), tf.ones([4, 2])

    def fit():
        callback = swa_tf.SWACallback(
            0, averages=average, refit_data=[x], verbose=0
        )
        model.fit(x, y, verbose=0, callbacks=[callback])

    with swa_tf.averaged_weights(average, model):
        _raises_and_changes_nothing(
            RuntimeError,
            "`fit` was called while",
            average,
            model.weights,
            fit,
        )
    assert _state(average, *model.weights) == before
    fit()
    assert int(average.n_models) == 3


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
@pytest.mark.parametrize("restored", ["before", "after"])
@pytest.mark.parametrize(
    ("saved", "given"), [("float32", "float64"), ("float64", "bfloat16")]
)
def test_checkpoint_of_averages_of_another_dtype(
    make, saved, given, restored, tmp_path
):
    def averaged(dtype):
        average, variable = make(), tf.Variable(1.0, dtype=dtype, name="v")
        average.apply([variable])
        return average, variable

    average, variable = averaged(saved)
    checkpoint = tf.train.Checkpoint(average=average, other=tf.Variable(1.0))
    path = checkpoint.write(str(tmp_path / "c"))

    average, variable = averaged(given)
    if restored == "before":
        average = make()
    other = tf.Variable(7.0)
    checkpoint = tf.train.Checkpoint(average=average, other=other)
    steps = [lambda: checkpoint.read(path), lambda: average.apply([variable])]
    if restored == "before":
        steps.pop(0)()
    _raises_and_changes_nothing(
        ValueError,
        rf"in their order: 'v' \(\) {saved}. Received: 'v' \(\) "
        + ("float64" if given == "float64" else "float32"),
        average,
        [variable, other],
        steps[0],
    )
    of_the_same = tf.Variable(1.0, dtype=saved, name="v")
    if restored == "before":
        average.apply([of_the_same])
        assert int(average.n_models) == 2


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


@both_and("second", "swap", "apply")
def test_threads_that_swap(make, second, monkeypatch):
    average, variable = _averaged(make)
    before = _state(average, variable)
    threads, errors = [], []

    def run():
        try:
            if second == "apply":
                average.apply([variable])
            else:
                _enter(average, [variable])()
        except RuntimeError as error:
            errors.append(str(error))

    assert_averaged = average.assert_averaged

    def interleaved(*args):
        """Comes when the first has seen that nobody swaps, and will."""
        if not threads:
            threads.append(None)
            threads[0] = _started(run)
        return assert_averaged(*args)

    monkeypatch.setattr(average, "assert_averaged", interleaved)
    with swa_tf.averaged_weights(average, [variable]):
        threads[0].join()
        assert float(variable) == 2.0
    assert len(errors) == 1
    assert "swapped in" in errors[0]
    assert _state(average, variable) == before


@both
def test_a_thread_that_swaps_while_another_applies(make):
    average, variable = _averaged(make)
    variable.assign(5.0)
    threads, seen = [], []

    def swap():
        with swa_tf.averaged_weights(average, [variable]):
            seen.append(float(variable))

    def var_list():
        """Is read when `apply` has seen that nobody swaps."""
        threads.append(_started(swap))
        yield variable

    average.apply(var_list())
    threads[0].join()
    # SWA: (1 + 3 + 5) / 3. EMA: (2 + 5) / 2.
    expected = _of(average, swa=3.0, ema=3.5)
    assert float(average.average(variable)) == expected
    assert (seen, float(variable)) == ([expected], 5.0)


@both
def test_a_thread_that_reads_while_another_swaps(make):
    average, variable = _averaged(make)
    double = tf.function(lambda: 2.0 * variable)
    seen = []

    def read():
        seen.append(float(double()))

    for _ in range(2):
        _started(read).join()
        with swa_tf.averaged_weights(average, [variable]):
            _started(read).join()
    assert seen == [6.0, 4.0, 6.0, 4.0]
    assert float(variable) == 3.0


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


@both_and("how", "built", "left out since the reset")
def test_swap_of_a_variable_that_has_no_average_yet(make, how):
    average, variable = _averaged(make)
    other = tf.Variable(7.0, name="other")
    steps = [lambda: average.build([other])]
    if how != "built":
        average = make()
        average.apply([variable, other])
        average.reset()
        steps = [lambda: average.apply([variable])]
    if _of(average, swa=True, ema=False):  # knows one list
        for step in steps:
            _raises_and_changes_nothing(
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
        _enter(average, [variable, other]),
        _enter(average, [other]),
        _enter(average, model),
        _enter(average, model, keep=True),
        lambda: swa_tf.assign_averages(average, [variable, other]),
        assign_averages,
    ):
        error = RuntimeError
        if function is assign_averages:
            error = tf.errors.InvalidArgumentError
        _raises_and_changes_nothing(
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
    average, model = _averaged_model(make)
    other = _model()

    def apply():
        average.apply(other.trainable_variables)

    if _of(average, swa=True, ema=False):
        _raises_and_changes_nothing(
            ValueError,
            "in addition",
            average,
            [*model.weights, *other.weights],
            apply,
        )
        return
    other.trainable_variables[0].assign(tf.fill([3, 2], 9.0))
    apply()
    before = _state(average, *model.weights, *other.weights)
    for each, expected in ((model, 2.0), (other, 9.0)):
        others = other if each is model else model
        untouched = _state(average, *others.weights)[-len(others.weights) :]
        with swa_tf.averaged_weights(average, each):
            kernel = each.trainable_variables[0].numpy()
            np.testing.assert_array_equal(kernel, np.full([3, 2], expected))
            now = _state(average, *others.weights)[-len(others.weights) :]
            assert now == untouched
            with pytest.raises(RuntimeError, match="swapped in"):
                apply()
    assert _state(average, *model.weights, *other.weights) == before


@both
def test_variables_of_an_optimizer(make):
    model = _model()
    optimizer = tf.keras.optimizers.Adam()
    optimizer.build(model.trainable_variables)
    variables = _optimizer_variables(optimizer)
    started = make()
    started.apply(model.trainable_variables)
    for average in (make(), started):
        _raises_and_changes_nothing(
            TypeError,  # its count of steps is among them
            "int64",
            average,
            [*model.weights, *variables],
            lambda average=average: average.apply(variables),
        )
        assert all(average.average(v) is None for v in variables)
    _raises_and_changes_nothing(
        ValueError,
        "in addition",
        started,
        [*model.weights, *variables],
        _enter(started, list(variables)),
    )


@both
def test_apply_of_another_list(make):
    average, variable = _averaged(make)
    other = tf.Variable(7.0, name="other")
    if _of(average, swa=True, ema=False):
        for var_list in ([other], [variable, other]):
            _raises_and_changes_nothing(
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
    if _of(average, swa=True, ema=False):
        _raises_and_changes_nothing(
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
    average, variable = _averaged(make)
    _raises_and_changes_nothing(
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
    average, variable = _averaged(make)
    is_list = isinstance(wrong, (list, np.ndarray))
    variables = "hold variables" if is_list else "be a list of variables"
    target = "a model or a list"
    for function, argument, wanted in (
        (lambda: average.apply(wrong), "var_list", variables),
        (lambda: make().build(wrong), "var_list", variables),
        (lambda: swa_tf.assign_averages(average, wrong), "var_list", variables),
        (lambda: swa_tf.BackupVariables(wrong), "var_list", variables),
        (_enter(average, wrong), "target", variables.replace("a list", target)),
        (lambda: average.average(wrong), "var", "be a variable"),
        (lambda: average.average_name(wrong), "var", "be a variable"),
        (_enter(wrong, [variable]), "swa", "be a `WeightAverage`"),
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
        _raises_and_changes_nothing(
            TypeError,
            f"`{argument}` must {wanted}",
            average,
            [variable],
            function,
        )


@both
def test_nothing_in_the_place_of_variables(make):
    average, variable = _averaged(make)
    for nothing in (None, [], ()):
        _raises_and_changes_nothing(
            ValueError,
            "outside v1 graphs" if nothing is None else "at least one",
            average,
            [variable],
            lambda nothing=nothing: average.apply(nothing),
        )
        _raises_and_changes_nothing(
            TypeError if nothing is None else ValueError,
            "be a model or" if nothing is None else "at least one",
            average,
            [variable],
            _enter(average, nothing),
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
    _raises_and_changes_nothing(
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
    before = _state(average)
    del layer, kernels
    gc.collect()
    # None can take the place of one: not its memory, nor what is known by it.
    assert alive() is not None
    assert shadow.numpy() == [[2.0]]
    new = tf.Variable([[3.0]])
    assert average.average(new) is None
    assert _state(average) == before


@both
def test_another_graph(make):
    average, variable = _averaged(make)
    before = _state(average, variable)
    with tf.Graph().as_default():
        other = tf.Variable(1.0)
        with pytest.raises(ValueError, match="graph of the first `apply`"):
            average.apply([other])
        assert average.average(other) is None
    assert _state(average, variable) == before
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
    """Returns as `_averaged` does; the variable is made in `scope`."""
    with scope:
        variable = tf.Variable(1.0, name="v")
    average = make()
    for value in (1.0, 3.0):
        variable.assign(value)
        average.apply([variable])
    return average, stack.tf_variable(variable)


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
        before = _state(average, variable)
        with swa_tf.averaged_weights(average, [variable]):
            assert _held(variable) == [2.0, 2.0]
    _raises_and_changes_nothing(
        ValueError, "of another strategy", average, [variable], step
    )
    assert _state(average, variable) == before


@both
def test_first_apply_in_the_scope_of_another_strategy(make):
    with _mirrored(0).scope():
        variable = tf.Variable(1.0, name="v")
    average = make()
    with _mirrored(2).scope():
        _raises_and_changes_nothing(
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
        _raises_and_changes_nothing(
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
    average, variable = _averaged(make)
    with _mirrored(0).scope():
        mirrored = tf.Variable(5.0, name="v")
    if _of(average, swa=True, ema=False):
        _raises_and_changes_nothing(
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
        average, variable = _averaged(make)
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
    _raises_and_changes_nothing(
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
    average, variable = _averaged(make)
    enter = _enter(average, [variable])

    def in_a_graph():
        with tf.Graph().as_default():
            enter()

    for function in (tf.function(enter, autograph=False), in_a_graph):
        _raises_and_changes_nothing(
            RuntimeError, "eager mode only", average, [variable], function
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
    ("data", "error", "match"),
    [
        (_failing, OSError, "the disk is gone"),
        (_short, ValueError, "`refit_data` must hold `refit_steps`=3 batches"),
    ],
)
def test_a_refit_that_fails(make, data, error, match):
    model, average = _model(), make()
    for _ in range(2):
        average.apply(model.trainable_variables)
        model.trainable_variables[0].assign_add(tf.ones([3, 2]))
    before = _state(average, *model.weights)
    with pytest.raises(error, match=match):
        _enter(average, model, refit_data=data(), refit_steps=3)()
    assert _state(average, *model.weights) == before
    average.apply(model.trainable_variables)
    assert int(average.n_models) == 3
    trained = _state(average, *model.weights)
    with swa_tf.averaged_weights(average, model, refit_data=[tf.ones([4, 3])]):
        assert _state(average, *model.weights) != trained
    assert _state(average, *model.weights) == trained


@both_and("bad", math.nan, math.inf)
def test_refit_data_that_are_not_finite(make, bad):
    average, model = _averaged_model(make)
    data = [tf.ones([4, 3]), tf.fill([4, 3], bad)]
    for argument, function in (
        ("refit_data", _enter(average, model, refit_data=data)),
        ("dataset", lambda: swa_tf.refit_batch_norm(model, data)),
    ):
        _raises_and_changes_nothing(
            ValueError,
            f"`{argument}` must give finite",
            average,
            model.weights,
            function,
        )


@both
def test_arguments_of_a_refit(make):
    average, model = _averaged_model(make)
    batch = tf.ones([4, 3])
    endless = tf.data.Dataset.from_tensors(batch).repeat()
    for error, match, kwargs in (
        (ValueError, "`refit_data` must be given", {"refit_steps": 3}),
        (ValueError, "`refit_data` must hold at least", {"refit_data": []}),
        (TypeError, "`refit_data` must be a `tf.data", {"refit_data": batch}),
        (
            ValueError,
            "`refit_data` must hold samples that reach",
            {"refit_data": [batch[:0]]},
        ),
        (
            ValueError,
            "`refit_steps` must be an integer",
            {"refit_data": [batch], "refit_steps": 0},
        ),
        (
            ValueError,
            "`refit_steps` must be given for a `refit_data` that is infinite",
            {"refit_data": endless},
        ),
    ):
        _raises_and_changes_nothing(
            error,
            match,
            average,
            model.weights,
            _enter(average, model, **kwargs),
        )
    model.layers[1].trainable = False
    no_layer = "`target` holds no batch-norm layer"
    with pytest.warns(UserWarning, match=no_layer) as caught:
        with swa_tf.averaged_weights(average, model, refit_data=[batch]):
            pass
    assert caught[0].filename == __file__


def _batches(n):
    for _ in range(n):
        yield tf.eye(4, 3), tf.eye(4, 2)


def _fit(model, *args, callbacks, **kwargs):
    """Fits, and returns the kernel at the end of each epoch."""
    kernels = []
    record = tf.keras.callbacks.LambdaCallback(
        on_epoch_end=lambda *_: kernels.append(
            model.trainable_variables[0].numpy().astype(np.float64)
        )
    )
    model.fit(*args, verbose=0, callbacks=[record, *callbacks], **kwargs)
    return kernels


@both
@pytest.mark.filterwarnings("ignore:.*ran out of data", "ignore:.*shuffle")
def test_data_of_fit_that_end_early(make):
    model, average = _model(), make()
    model.compile("sgd", "mse", run_eagerly=True)
    callback = swa_tf.SWACallback(
        0, averages=average, refit_data=[tf.ones([4, 3])], verbose=0
    )
    kernels = _fit(
        model, _batches(3), epochs=4, steps_per_epoch=2, callbacks=[callback]
    )
    # Keras 2 stops; Keras 3 has kept the first batches, and repeats them.
    assert len(kernels) == (4 if stack.KERAS_3 else 2)
    assert int(average.n_models) == len(kernels)
    expected = kernels[0]
    for n, kernel in enumerate(kernels[1:], 1):
        c = _of(average, swa=1.0 / (n + 1), ema=0.5)
        expected = expected + c * (kernel - expected)
    np.testing.assert_allclose(
        model.trainable_variables[0], expected, rtol=1e-6
    )
    assert not average.swapped


@both
def test_refit_data_of_fit_that_end_early(make):
    model, average = _model(), make()
    model.compile("sgd", "mse", run_eagerly=True)
    callback = swa_tf.SWACallback(
        0, averages=average, refit_data=_batches(1), refit_steps=2, verbose=0
    )
    ended = []
    record = tf.keras.callbacks.LambdaCallback(
        on_epoch_end=lambda *_: ended.append(
            [v.numpy().tobytes() for v in model.weights]
        )
    )
    with pytest.raises(ValueError, match="`refit_steps`=2 batches"):
        model.fit(
            *next(_batches(1)),
            epochs=3,
            verbose=0,
            callbacks=[callback, record],
        )
    assert [v.numpy().tobytes() for v in model.weights] == ended[-1]
    assert int(average.n_models) == 3
    assert not average.swapped
    with swa_tf.averaged_weights(average, model, refit_data=_batches(2)):
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


@both_and("bad", math.nan, math.inf)
def test_fit_with_weights_that_are_not_finite(make, bad):
    average = make()
    model = _fitted(
        swa_tf.SWACallback(0, averages=average, verbose=0),
        [1.0, 3.0, bad],
        match="Epoch 3 is not averaged",
    )
    assert int(average.n_models) == 2
    assert float(model.trainable_variables[0][0, 0]) == 2.0


@both
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_fit_by_steps_with_weights_that_are_not_finite(make, bad):
    average = make()
    callback = swa_tf.SWACallback(
        start_step=0, unit="step", averages=average, verbose=0
    )
    with pytest.warns(UserWarning, match="keeps its trained weights"):
        model = _fitted(
            callback, [1.0, bad, 3.0], match="not all finite after epoch 2"
        )
    assert int(average.n_models) == 3
    # 3.0, but for tf_keras: its optimizer remembers a gradient that was NaN.
    np.testing.assert_array_equal(model.trainable_variables[0], model.trained)


def _fitted(callback, values, match):
    """A model whose one weight is set anew for each epoch, of one step."""
    model = tf.keras.Sequential([tf.keras.layers.Dense(1)])
    model.build([None, 1])
    model.compile(tf.keras.optimizers.SGD(0.0), "mse", run_eagerly=True)
    set_weight = tf.keras.callbacks.LambdaCallback(
        on_epoch_begin=lambda epoch, logs: model.set_weights(
            [np.full([1, 1], values[epoch]), np.zeros(1)]
        ),
        on_epoch_end=lambda epoch, logs: setattr(
            model, "trained", model.trainable_variables[0].numpy()
        ),
    )
    with pytest.warns(UserWarning, match=match):
        model.fit(
            tf.ones([4, 1]),
            tf.ones([4, 1]),
            epochs=len(values),
            verbose=0,
            callbacks=[set_weight, callback],
        )
    return model


def _raises_or_stays(name, given, bad, average):
    """`apply` while `given` is bad: errors or, where XLA compiles, nothing."""
    variable, right = tf.Variable(1.0), given.numpy()
    for value in (1.0, 2.0):
        variable.assign(value)
        average.apply([variable])

    @tf.function
    def apply_in_a_function():
        average.apply([variable])

    given.assign(bad)
    variable.assign(3.0)
    for error, apply in (
        (ValueError, lambda: average.apply([variable])),
        (tf.errors.InvalidArgumentError, apply_in_a_function),
    ):
        _raises_and_changes_nothing(
            error, f"`{name}` must be", average, [variable], apply
        )
    before = average.average(variable).numpy()
    apply_by_xla = tf.function(apply_in_a_function, jit_compile=True)
    apply_by_xla()
    assert average.average(variable).numpy() == before
    assert int(average.n_models) == 3
    given.assign(right)
    apply_by_xla()
    assert average.average(variable).numpy() > before


@pytest.mark.parametrize(
    ("decay", "warm_up"), covering(1, [1.0, 1.5, -0.1, math.nan], [None, 1])
)
def test_decay_outside_0_to_1(decay, warm_up):
    with pytest.raises(ValueError, match="`decay` must be"):
        swa_tf.ExponentialMovingAverage(decay)
    given = tf.Variable(0.5)
    average = swa_tf.ExponentialMovingAverage(given, warm_up=warm_up)
    _raises_or_stays("decay", given, decay, average)


# (1 - 1) / (10 - 1) and (1 - 11) / (10 - 11) are decays of 0 and 10.
@pytest.mark.parametrize(
    ("count", "warm_up"),
    covering(1, [-1.0, -11.0, -math.inf, math.inf, math.nan], [None, 1]),
)
def test_num_updates_below_0_or_not_finite(count, warm_up):
    with pytest.raises(ValueError, match="`num_updates` must be"):
        swa_tf.ExponentialMovingAverage(0.5, count)
    given = tf.Variable(5.0)
    average = swa_tf.ExponentialMovingAverage(0.5, given, warm_up=warm_up)
    _raises_or_stays("num_updates", given, count, average)


# --- The table --------------------------------------------------------------


def _tests():
    tests = {k: v for k, v in globals().items() if k.startswith("test_")}
    return {k: v for k, v in tests.items() if not k.startswith("test_table")}


def test_table_has_every_test():
    text = (ROOT / "docs" / "misuse.md").read_text(encoding="utf-8")
    table = text[text.index("| --- |") :].split("\n\n")[0]
    rows = table.splitlines()[1:]
    assert [row.split("`")[-2] for row in rows] == list(_tests())


def test_table_is_of_both_averages():
    one_class = [
        name
        for name, test in _tests().items()
        if "make" not in inspect.signature(test).parameters
    ]
    assert one_class == [
        "test_decay_outside_0_to_1",
        "test_num_updates_below_0_or_not_finite",
    ]
