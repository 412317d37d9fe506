"""Mistakes of order: docs/misuse.md, row by row.

Each test holds the error, or the result, and the state after it.
"""

import contextlib
import copy
import pickle
import threading

import numpy as np
import pytest
import tensorflow as tf

import swa_tf
from tests.misuse import (
    averaged_model,
    averaged_variable,
    both,
    both_and,
    entering,
    expected_of,
    raises_and_changes_nothing,
    started_thread,
    state_of,
)


@both
def test_swap_before_the_first_apply(make):
    average, variable = make(), tf.Variable(1.0)
    average.build([variable])
    for function in (
        entering(average, [variable]),
        lambda: swa_tf.assign_averages(average, [variable]),
    ):
        raises_and_changes_nothing(
            RuntimeError, "averaged nothing", average, [variable], function
        )
    average = make()  # which knows no variable yet
    raises_and_changes_nothing(
        RuntimeError,
        "averaged nothing",
        average,
        [variable],
        entering(average, [variable]),
    )


@both
def test_an_unknown_variable(make):
    average, variable = make(), tf.Variable(1.0, name="v")
    other = tf.Variable(2.0, name="other")
    assert average.average(variable) is None
    assert average.average_name(variable) == f"v/{average.name}"
    average.apply([variable])
    before = state_of(average, variable, other)
    assert average.average(other) is None
    assert average.average_name(other) == f"other/{average.name}"
    assert state_of(average, variable, other) == before


@both
def test_swap_twice(make):
    average, variable = averaged_variable(make)
    with swa_tf.averaged_weights(average, [variable]):
        raises_and_changes_nothing(
            RuntimeError,
            "entered twice",
            average,
            [variable],
            entering(average, [variable]),
        )
        assert float(variable) == 2.0
    assert float(variable) == 3.0


@both
def test_swaps_of_two_averages(make):
    average, variable = averaged_variable(make)
    other = make()
    other.apply([variable])
    variable.assign(7.0)
    before = state_of(average, variable), state_of(other, variable)
    with swa_tf.averaged_weights(average, [variable]):
        with swa_tf.averaged_weights(other, [variable]):
            assert float(variable) == 3.0
        assert float(variable) == 2.0
    assert (state_of(average, variable), state_of(other, variable)) == before


@both
def test_swaps_of_two_averages_that_end_out_of_order(make):
    average, variable = averaged_variable(make)
    other, unshared = make(), tf.Variable(5.0)
    other.apply([variable, unshared])
    for each, value in ((variable, 7.0), (unshared, 8.0)):
        each.assign(value)
    before = state_of(average, variable), state_of(other, variable, unshared)
    outer = swa_tf.averaged_weights(average, [variable])
    inner = swa_tf.averaged_weights(other, [variable, unshared])
    outer.__enter__()
    inner.__enter__()
    outer.__exit__(None, None, None)
    assert (float(variable), float(unshared)) == (3.0, 5.0)
    assert (average.swapped, other.swapped) == (False, True)
    inner.__exit__(None, None, None)
    after = state_of(average, variable), state_of(other, variable, unshared)
    assert after == before


@both
def test_swap_closed_twice(make):
    average, variable = averaged_variable(make)
    with contextlib.ExitStack() as swaps:
        swap = swa_tf.averaged_weights(average, [variable])
        swaps.push(swap)  # closes it again
        with swap:
            assert float(variable) == 2.0
        variable.assign(7.0)
        before = state_of(average, variable)
    assert state_of(average, variable) == before


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
    average, variable = averaged_variable(make)

    def apply():
        average.apply([variable])

    if how != "in eager mode":
        apply = tf.function(apply, jit_compile="XLA" in how)
    if "before" in how:
        apply()
    n_models = int(average.n_models)
    with swa_tf.averaged_weights(average, [variable]):
        if error is None:  # XLA leaves assertions out
            before = state_of(average, variable)
            apply()
            assert state_of(average, variable) == before
        else:
            raises_and_changes_nothing(
                error, "swapped in", average, [variable], apply
            )
    assert float(variable) == 3.0
    apply()
    assert int(average.n_models) == n_models + 1


@both
def test_apply_of_another_average_while_swapped(make):
    average, variable = averaged_variable(make)
    other = make()
    with swa_tf.averaged_weights(average, [variable]):
        other.apply([variable])
    assert float(other.average(variable)) == 2.0  # an average of averages
    assert (float(variable), int(average.n_models)) == (3.0, 2)
    assert float(average.average(variable)) == 2.0


@both
def test_a_copy_made_while_swapped(make):
    average, variable = averaged_variable(make)
    with swa_tf.averaged_weights(average, [variable]):
        copied = copy.deepcopy(average)
        assert (average.swapped, copied.swapped) == (True, False)
    variable.assign(5.0)

    @tf.function
    def apply():
        copied.apply([variable])

    apply()
    # SWA: (1 + 3 + 5) / 3. EMA: (2 + 5) / 2.
    assert float(copied.average(variable)) == expected_of(
        average, swa=3.0, ema=3.5
    )
    assert float(average.average(variable)) == 2.0
    with swa_tf.averaged_weights(copied, [variable]):
        pass
    assert float(variable) == 5.0


@both
def test_an_average_pickled(make):
    average, variable = averaged_variable(make)
    before = state_of(average, variable)
    for pickles in (pickle.dumps, copy.copy):
        with pytest.raises(TypeError, match=r"`copy\.deepcopy`.*Checkpoint"):
            pickles(average)
    assert state_of(average, variable) == before


@both
def test_reset_while_swapped(make):
    average, variable = averaged_variable(make)
    with swa_tf.averaged_weights(average, [variable]):
        average.reset()
    assert float(variable) == 3.0
    assert int(average.n_models) == 0
    average.apply([variable])
    assert float(average.average(variable)) == 3.0


@both
def test_reset_twice(make):
    average, variable = averaged_variable(make)
    average.reset()
    once = state_of(average, variable)
    average.reset()
    assert state_of(average, variable) == once
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
    expected = expected_of(average, swa=3.0, ema=4.0)
    assert float(average.average(variable)) == expected
    with swa_tf.averaged_weights(average, [variable]):
        assert float(variable) == expected
    assert float(variable) == 6.0


@both
def test_restore_while_swapped(make, tmp_path):
    average, variable = averaged_variable(make)
    checkpoint = tf.train.Checkpoint(average=average, variable=variable)
    path = checkpoint.save(str(tmp_path / "c"))
    with swa_tf.averaged_weights(average, [variable]):
        raises_and_changes_nothing(
            RuntimeError,
            "cannot be restored inside",
            average,
            [variable],
            lambda: checkpoint.restore(path),
        )
    assert float(variable) == 3.0


@both
def test_checkpoint_written_while_swapped(make, tmp_path):
    average, variable = averaged_variable(make)
    checkpoint = tf.train.Checkpoint(average=average, variable=variable)
    with swa_tf.averaged_weights(average, [variable]):
        path = checkpoint.save(str(tmp_path / "c"))
    raises_and_changes_nothing(
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
    average, model = averaged_model(make)
    before = state_of(average, *model.weights)
    path = tmp_path / "model.keras"
    with swa_tf.averaged_weights(average, model):
        model.save(path)
    assert state_of(average, *model.weights) == before
    loaded = tf.keras.models.load_model(path)
    np.testing.assert_array_equal(
        loaded.trainable_variables[0], np.full([3, 2], 2.0)
    )


@both
def test_refit_while_swapped(make):
    average, model = averaged_model(make)
    before = state_of(average, *model.weights)
    data = [tf.constant([[1.0, 0.0, 0.0], [3.0, 0.0, 0.0]])]
    with swa_tf.averaged_weights(average, model):
        swa_tf.refit_batch_norm(model, data)
        # The kernel of 2 makes 2 and 6 of them.
        np.testing.assert_allclose(model.layers[1].moving_mean, [4.0, 4.0])
        np.testing.assert_allclose(model.layers[1].moving_variance, [4.0, 4.0])
    assert state_of(average, *model.weights) == before


@both
def test_fit_while_swapped(make):
    average, model = averaged_model(make)
    model.compile("sgd", "mse", run_eagerly=True)
    before = state_of(average, *model.weights)
    x, y = tf.ones([4, 3]), tf.ones([4, 2])

    def fit():
        callback = swa_tf.SWACallback(
            0, averages=average, refit_data=[x], verbose=0
        )
        model.fit(x, y, verbose=0, callbacks=[callback])

    with swa_tf.averaged_weights(average, model):
        raises_and_changes_nothing(
            RuntimeError,
            "`fit` was called while",
            average,
            model.weights,
            fit,
        )
    assert state_of(average, *model.weights) == before
    fit()
    assert int(average.n_models) == 3


@both
def test_checkpoint_written_before_the_averages_are_there(make, tmp_path):
    average, variable = averaged_variable(make)
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
    raises_and_changes_nothing(
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
    average, variable = averaged_variable(make)
    before = state_of(average, variable)
    threads, errors = [], []

    def run():
        try:
            if second == "apply":
                average.apply([variable])
            else:
                entering(average, [variable])()
        except RuntimeError as error:
            errors.append(str(error))

    assert_averaged = average.assert_averaged

    def interleaved(*args):
        """Comes when the first has seen that nobody swaps, and will."""
        if not threads:
            threads.append(None)
            threads[0] = started_thread(run)
        return assert_averaged(*args)

    monkeypatch.setattr(average, "assert_averaged", interleaved)
    with swa_tf.averaged_weights(average, [variable]):
        threads[0].join()
        assert float(variable) == 2.0
    assert len(errors) == 1
    assert "swapped in" in errors[0]
    assert state_of(average, variable) == before


@both
def test_a_thread_that_swaps_while_another_applies(make):
    average, variable = averaged_variable(make)
    variable.assign(5.0)
    threads, seen = [], []

    def swap():
        with swa_tf.averaged_weights(average, [variable]):
            seen.append(float(variable))

    def var_list():
        """Is read when `apply` has seen that nobody swaps."""
        threads.append(started_thread(swap))
        yield variable

    average.apply(var_list())
    threads[0].join()
    # SWA: (1 + 3 + 5) / 3. EMA: (2 + 5) / 2.
    expected = expected_of(average, swa=3.0, ema=3.5)
    assert float(average.average(variable)) == expected
    assert (seen, float(variable)) == ([expected], 5.0)


@both
def test_a_thread_that_reads_while_another_swaps(make):
    average, variable = averaged_variable(make)
    double = tf.function(lambda: 2.0 * variable)
    seen = []

    def read():
        seen.append(float(double()))

    for _ in range(2):
        started_thread(read).join()
        with swa_tf.averaged_weights(average, [variable]):
            started_thread(read).join()
    assert seen == [6.0, 4.0, 6.0, 4.0]
    assert float(variable) == 3.0
