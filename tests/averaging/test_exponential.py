"""`ExponentialMovingAverage` against float64 numpy, in every mode.

That it does what TensorFlow's class does is in conformance/test_as_tensorflow.
"""

import functools
import math

import numpy as np
import pytest
import tensorflow as tf

import swa_tf
from tests import modes
from tests.exponential import ema_of, run_updates
from tests.fitting import covering

v1 = tf.compat.v1
EMA = swa_tf.ExponentialMovingAverage
FLOATS = ["float16", "bfloat16", "float32", "float64"]


# Those in which the average starts at the first value; in the others it starts
# at the zeros that the variable holds when the function is traced, or the
# session initialized.
FROM_FIRST_VALUE = [modes.eager, modes.cross_replica]


# --- The equation -----------------------------------------------------------


@pytest.mark.parametrize(
    ("mode", "dtype"), covering(1, modes.ALL, FLOATS), ids=modes.name_of
)
def test_average_by_hand(mode, dtype):
    # From 4: 4, then 4 + 4/4 = 5. From 0: 4/4 = 1, then 1 + 7/4 = 2.75.
    values = [np.float32([4.0, -4.0]), np.float32([8.0, -8.0])]
    make = functools.partial(EMA, 0.75)
    average, n_models = mode(values, dtype, make=make)
    expected = 5.0 if mode in FROM_FIRST_VALUE else 2.75
    np.testing.assert_array_equal(average, [expected, -expected])
    assert average.dtype == (np.float64 if dtype == "float64" else np.float32)
    assert n_models == 2


@pytest.mark.parametrize("mode", modes.ALL, ids=modes.name_of)
def test_first_average_that_is_due_is_the_weight(mode):
    # ... exactly, whatever was there: 1 + 1 * (w - 1) is not 1e-8.
    values = [np.float32([v]) for v in (np.inf, np.nan, 1e-8)]
    when = swa_tf.AveragingSchedule(start=2)
    make = functools.partial(EMA, 0.5)
    average, n_models = mode(values, "float32", when=when, make=make)
    assert average[0] == np.float32(1e-8)
    assert n_models == 1
    if mode in (modes.eager, modes.xla, modes.graph):  # each kind of mode
        make = functools.partial(EMA, 0.5, warm_up=1)
        average, _ = mode(values[2:], "float32", make=make)
        assert average[0] == np.float32(1e-8)


@pytest.mark.parametrize(
    ("mode", "warm_up"), covering(1, modes.ALL, [1, 3.5]), ids=modes.name_of
)
def test_warm_up(mode, warm_up):
    # 1 / (1 - decay) is 8: updates on both sides of the warm-up's end.
    n_values = 12 if warm_up == 1 else 40
    values = np.random.default_rng(0).normal(size=[n_values, 4])
    values = values.astype(np.float32)
    decays = [min(0.875, n / (n + warm_up)) for n in range(n_values)]
    assert decays[5] < 0.875 == decays[-1]
    make = functools.partial(EMA, 0.875, warm_up=warm_up)
    average, _ = mode(list(values), "float32", make=make)
    # Roundings of 2^-24 of values below 4, of which 8 or so are remembered.
    np.testing.assert_allclose(average, ema_of(values, decays, 0.0), atol=2e-6)
    if warm_up == 1:  # and the first of them are a mean
        few = ema_of(values[:8], decays[:8], 0.0)
        np.testing.assert_allclose(few, values[:8].mean(0, float), rtol=1e-12)


def test_warm_up_in_a_graph(tmp_path):
    """It begins with the weight, and a `Saver` saves its count."""
    path = str(tmp_path / "model")
    seen = []
    for restore in (False, True):
        with tf.Graph().as_default(), v1.Session() as session:
            variable = tf.Variable(np.float32(np.inf))
            ema = EMA(0.9, warm_up=1)
            update = ema.apply([variable])
            saver = v1.train.Saver()
            session.run(v1.global_variables_initializer())
            if restore:
                saver.restore(session, path)
            for value in (1.0, 2.0):
                session.run(variable.assign(value + 2.0 * restore))
                session.run(update)
                seen.append(session.run(ema.average(variable)))
            saver.save(session, path)
    assert seen == [1.0, 1.5, 2.0, 2.5]


@pytest.mark.parametrize(
    ("num_updates", "c"),
    [(None, 0.8999999761581421), (3, 0.692307710647583)],
)
def test_the_coefficient_is_a_float32_as_in_tensorflow(num_updates, c):
    """1 - 0.1 and 1 - 4/13 of float32: with any NumPy, also in float64."""
    ema = EMA(0.1 if num_updates is None else 0.999, num_updates=num_updates)
    assert float(ema.coefficient(tf.constant(0, tf.int64))) == c
    theirs = tf.train.ExponentialMovingAverage(
        0.1 if num_updates is None else 0.999, num_updates=num_updates
    )
    averages = []
    for each in (ema, theirs):
        variable = tf.Variable(0.0, dtype=tf.float64)
        each.apply([variable])
        variable.assign(1.0)
        each.apply([variable])
        averages.append(float(each.average(variable)))
    assert averages == [c, averages[0]]


@pytest.mark.parametrize("half_life", [0.5, 1, 30, 1e6])
def test_half_life(half_life):
    variable = tf.Variable([0.0], dtype=tf.float64)
    ema = EMA(half_life=half_life)
    ema.apply([variable])
    variable.assign([1.0])
    n_updates = 2 if half_life == 1e6 else math.ceil(half_life)
    for _ in range(n_updates):
        ema.apply([variable])
    # After n updates 2^(-n / half_life) of the old value is left.
    new = -math.expm1(-math.log(2.0) * n_updates / half_life)
    np.testing.assert_allclose(ema.average(variable), [new], rtol=1e-13)


def test_half_life_with_num_updates_and_warm_up():
    variable = tf.Variable(0.0)
    ema = EMA(half_life=1000, num_updates=17, warm_up=1)
    values = [1.0, 2.0, 3.0, 4.0]
    average = run_updates(ema, variable, values)
    # (1 + 17) / (10 + 17) is 2/3; n / (n + 1) is less until n = 2.
    decays = [0.0, 1 / 2, 2 / 3, 2 / 3]
    np.testing.assert_allclose(average, ema_of(values, decays, 0.0), rtol=1e-6)


def test_num_updates_of_an_optimizer():
    optimizer = tf.keras.optimizers.SGD(1.0)
    variable = tf.Variable([0.0])
    ema = EMA(0.5, num_updates=optimizer.iterations)

    @tf.function
    def step():
        optimizer.apply_gradients([(tf.constant([-1.0]), variable)])
        ema.apply([variable])

    if hasattr(optimizer, "build"):
        optimizer.build([variable])
    for _ in range(6):
        step()
    decays = [min(0.5, (1 + n) / (10 + n)) for n in range(1, 7)]
    assert decays[-1] < 0.5
    np.testing.assert_allclose(
        ema.average(variable), [ema_of(range(1, 7), decays, 0.0)], rtol=1e-6
    )


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_slow_weights_are_followed(dtype):
    # Each update is far below half a unit in the last place of a bfloat16
    # average, and below that of a float32 one: TensorFlow's stands still.
    ulp = 2.0**-7 if dtype == "bfloat16" else 2.0**-23
    variable = tf.Variable(tf.ones([3], dtype))
    ema = EMA(half_life=1000)
    ema.apply([variable])
    variable.assign(tf.fill([3], tf.constant(1.0 + 4 * ulp, dtype)))

    @tf.function
    def step():
        ema.apply([variable])

    for _ in range(2000):
        step()
    gone = (ema.average(variable).numpy() - 1.0) / (4 * ulp)
    np.testing.assert_allclose(
        gone, 0.75, atol=0.3 if dtype == "float32" else 1e-3
    )


def test_infinity_and_nan_stay_in_their_variable():
    good, bad = tf.Variable(1.0), tf.Variable(np.nan)
    ema = EMA(0.5)
    ema.apply([good, bad])
    good.assign(2.0)
    bad.assign(2.0)
    ema.apply([good, bad])
    assert float(ema.average(good)) == 1.5
    assert np.isnan(ema.average(bad).numpy())
    ema.reset()
    ema.apply([good, bad])
    assert float(ema.average(bad)) == 2.0


# --- Variables of Keras -----------------------------------------------------


def _model():
    model = tf.keras.Sequential(
        [
            tf.keras.layers.Dense(4),
            tf.keras.layers.BatchNormalization(),
            tf.keras.layers.Dense(1),
        ]
    )
    model.build([None, 3])
    return model


def test_training_step_with_a_keras_model():
    model = _model()
    optimizer = tf.keras.optimizers.SGD(0.1)
    weights = model.trainable_variables
    ema = EMA(0.9)
    start = [np.array(w) for w in weights]
    seen = []

    @tf.function
    def step(x):
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean(tf.square(model(x, training=True)))
        optimizer.apply_gradients(zip(tape.gradient(loss, weights), weights))
        ema.apply(weights)

    for _ in range(5):
        step(tf.random.normal([8, 3]))
        seen.append([np.array(w) for w in weights])
    for weight, first, *values in zip(weights, start, *seen):
        np.testing.assert_allclose(
            ema.average(weight), ema_of(values, [0.9] * 5, first), atol=1e-6
        )


def test_swap_refit_and_save(tmp_path):
    model = _model()
    weights = model.trainable_variables
    norm = model.layers[1]
    ema = EMA(0.5)
    ema.apply(weights)
    trained = [np.array(w) + 1.0 for w in weights]
    for weight, value in zip(weights, trained):
        weight.assign(value)
    ema.apply(weights)
    data = tf.random.normal([64, 3])
    with swa_tf.averaged_weights(ema, model, refit_data=[data]):
        for weight, value in zip(weights, trained):
            np.testing.assert_allclose(np.array(weight), value - 0.5, atol=1e-6)
        hidden = model.layers[0](data).numpy()
        np.testing.assert_allclose(
            np.array(norm.moving_mean), hidden.mean(0), atol=1e-5
        )
        model.save_weights(str(tmp_path / "m.weights.h5"))
        with pytest.raises(RuntimeError, match="swapped in"):
            ema.apply(weights)
    for weight, value in zip(weights, trained):
        np.testing.assert_array_equal(np.array(weight), value)
    assert int(ema.n_models) == 2


@pytest.mark.parametrize("unit", ["epoch", "step"])
def test_callback(unit):
    model = tf.keras.Sequential([tf.keras.layers.Dense(1, use_bias=False)])
    model.build([None, 1])
    model.compile(tf.keras.optimizers.SGD(0.1), "mse", run_eagerly=True)
    x, y = np.ones([6, 1], np.float32), np.zeros([6, 1], np.float32)
    ema = EMA(0.75)
    seen = []
    record = tf.keras.callbacks.LambdaCallback(
        on_epoch_end=lambda epoch, logs: seen.append(
            float(model.layers[0].kernel.numpy()[0, 0])
        )
    )
    start = {"epoch": {"start_epoch": 1}, "step": {"start_step": 1}}[unit]
    swa = swa_tf.SWACallback(**start, averages=ema, verbose=0)
    model.fit(x, y, 6, epochs=4, verbose=0, callbacks=[swa, record])
    # One batch an epoch: epochs and steps are the same, and the first of the
    # averages is the weight at the end of epoch 1.
    expected = ema_of(seen[2:], [0.75] * 2, seen[1])
    assert int(ema.n_models) == 3
    kernel = model.layers[0].kernel.numpy()[0, 0]  # the average, at the end
    np.testing.assert_allclose(kernel, expected, rtol=1e-6)


# --- Lists that change ------------------------------------------------------


def test_an_interrupted_first_update_leaves_nothing(monkeypatch):
    variable, ema = tf.Variable(100.0), EMA(0.9)

    def interrupted(*args):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(ema, "_move", interrupted)
        with pytest.raises(KeyboardInterrupt):
            ema.apply([variable])
    variable.assign(1.0)
    ema.apply([variable])
    assert (float(ema.average(variable)), int(ema.n_models)) == (1.0, 1)


def test_a_variable_that_joins_after_build_starts_as_it_is():
    v, w = tf.Variable(1.0), tf.Variable(1.0)
    ema = EMA(0.5)
    ema.build([v])
    v.assign(3.0)
    ema.apply([v])
    w.assign(5.0)
    ema.apply([v, w])
    w.assign(7.0)
    ema.apply([w])
    assert float(ema.average(v)) == 3.0
    assert float(ema.average(w)) == 6.0


def test_a_model_that_its_first_batch_builds():
    """Inside the step: Keras 3 gives its weights values after the trace."""
    layer = tf.keras.layers.Dense(2, use_bias=False, kernel_initializer="zeros")
    model = tf.keras.Sequential([layer])
    ema = EMA(0.5)

    @tf.function
    def step(value):
        model(tf.ones([1, 3]))
        model.layers[0].kernel.assign(tf.fill([3, 2], value))
        ema.apply(model.trainable_variables)

    for value in (1.0, 3.0, 6.0):
        step(tf.constant(value))
    average = ema.average(model.layers[0].kernel)
    # 1, 2, 4; or, from the zeros of Keras 2, 0.5, 1.75, 3.875.
    expected = 3.875 if isinstance(layer.kernel, tf.Variable) else 4.0
    np.testing.assert_array_equal(average, np.full([3, 2], expected))


def test_a_variable_joins_where_it_is_made():
    ema, v = EMA(0.5), tf.Variable(1.0)
    ema.apply([v])
    v.assign(2.0)
    made = []

    @tf.function
    def step(value):
        if not made:
            made.append(tf.Variable(1.0))
        made[0].assign(value)
        ema.apply([v, *made])

    for value in (4.0, 6.0):
        step(tf.constant(value))
    assert float(ema.average(v)) == 1.75
    assert float(ema.average(made[0])) == 5.0
