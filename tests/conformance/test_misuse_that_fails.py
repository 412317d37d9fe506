"""What fails on the way, and numbers that are none: docs/misuse.md."""

import math

import numpy as np
import pytest
import tensorflow as tf

import swa_tf
from swa_tf.support import compat
from tests.fitting import covering
from tests.misuse import (
    averaged_model,
    averaged_variable,
    both,
    both_and,
    entering,
    expected_of,
    make_model,
    raises_and_changes_nothing,
    state_of,
)

# --- What fails on the way --------------------------------------------------


@both
def test_an_exception_while_swapped(make):
    average, variable = averaged_variable(make)
    before = state_of(average, variable)
    with pytest.raises(KeyError), swa_tf.averaged_weights(average, [variable]):
        variable.assign(100.0)
        raise KeyError
    assert state_of(average, variable) == before
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
    model, average = make_model(), make()
    for _ in range(2):
        average.apply(model.trainable_variables)
        model.trainable_variables[0].assign_add(tf.ones([3, 2]))
    before = state_of(average, *model.weights)
    with pytest.raises(error, match=match):
        entering(average, model, refit_data=data(), refit_steps=3)()
    assert state_of(average, *model.weights) == before
    average.apply(model.trainable_variables)
    assert int(average.n_models) == 3
    trained = state_of(average, *model.weights)
    with swa_tf.averaged_weights(average, model, refit_data=[tf.ones([4, 3])]):
        assert state_of(average, *model.weights) != trained
    assert state_of(average, *model.weights) == trained


@both_and("bad", math.nan, math.inf)
def test_refit_data_that_are_not_finite(make, bad):
    average, model = averaged_model(make)
    data = [tf.ones([4, 3]), tf.fill([4, 3], bad)]
    for argument, function in (
        ("refit_data", entering(average, model, refit_data=data)),
        ("dataset", lambda: swa_tf.refit_batch_norm(model, data)),
    ):
        raises_and_changes_nothing(
            ValueError,
            f"`{argument}` must give finite",
            average,
            model.weights,
            function,
        )


@both
def test_arguments_of_a_refit(make):
    average, model = averaged_model(make)
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
        raises_and_changes_nothing(
            error,
            match,
            average,
            model.weights,
            entering(average, model, **kwargs),
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
    model, average = make_model(), make()
    model.compile("sgd", "mse", run_eagerly=True)
    callback = swa_tf.SWACallback(
        0, averages=average, refit_data=[tf.ones([4, 3])], verbose=0
    )
    kernels = _fit(
        model, _batches(3), epochs=4, steps_per_epoch=2, callbacks=[callback]
    )
    # Keras 2 stops; Keras 3 has kept the first batches, and repeats them.
    assert len(kernels) == (4 if compat.KERAS_3 else 2)
    assert int(average.n_models) == len(kernels)
    expected = kernels[0]
    for n, kernel in enumerate(kernels[1:], 1):
        c = expected_of(average, swa=1.0 / (n + 1), ema=0.5)
        expected = expected + c * (kernel - expected)
    np.testing.assert_allclose(
        model.trainable_variables[0], expected, rtol=1e-6
    )
    assert not average.swapped


@both
def test_refit_data_of_fit_that_end_early(make):
    model, average = make_model(), make()
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
        raises_and_changes_nothing(
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
