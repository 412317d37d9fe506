"""`ExponentialMovingAverage` against float64 numpy, in every mode.

That it does what TensorFlow's class does is in conformance/test_as_tensorflow.
"""

import copy
import functools
import math
import warnings

import numpy as np
import pytest
import tensorflow as tf

import swa_tf
from tests import modes
from tests.fitting import covering, exhaustive

v1 = tf.compat.v1
EMA = swa_tf.ExponentialMovingAverage

FLOATS = ["float16", "bfloat16", "float32", "float64"]

# Those in which the average starts at the first value; in the others it starts
# at the zeros that the variable holds when the function is traced, or the
# session initialized.
FROM_FIRST_VALUE = [modes.eager, modes.cross_replica]


def _ema(values, decays, start):
    """The average of `values`, from `start`, in float64."""
    average = np.asarray(start, np.float64)
    for value, decay in zip(values, decays):
        average = decay * average + (1.0 - decay) * np.asarray(value, float)
    return average


def _run(average, variable, values):
    for value in values:
        variable.assign(tf.fill(variable.shape, tf.cast(value, variable.dtype)))
        average.apply([variable])
    return average.average(variable).numpy()


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
    make = functools.partial(EMA, 0.5, warm_up=1)
    average, _ = mode(values[2:], "float32", make=make)
    assert average[0] == np.float32(1e-8)


@pytest.mark.parametrize(
    ("mode", "warm_up"), covering(1, modes.ALL, [1, 3.5]), ids=modes.name_of
)
def test_warm_up(mode, warm_up):
    # 1 / (1 - decay) is 8: updates on both sides of the warm-up's end.
    values = np.random.default_rng(0).normal(size=[40, 4]).astype(np.float32)
    decays = [min(0.875, n / (n + warm_up)) for n in range(len(values))]
    assert decays[5] < 0.875 == decays[-1]
    make = functools.partial(EMA, 0.875, warm_up=warm_up)
    average, _ = mode(list(values), "float32", make=make)
    # Roundings of 2^-24 of values below 4, of which 8 or so are remembered.
    np.testing.assert_allclose(average, _ema(values, decays, 0.0), atol=2e-6)
    if warm_up == 1:
        few, _ = mode(list(values[:8]), "float32", make=make)
        np.testing.assert_allclose(few, values[:8].mean(0), atol=1e-6)


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
    average = _run(ema, variable, values)
    # (1 + 17) / (10 + 17) is 2/3; n / (n + 1) is less until n = 2.
    decays = [0.0, 1 / 2, 2 / 3, 2 / 3]
    np.testing.assert_allclose(average, _ema(values, decays, 0.0), rtol=1e-6)


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
        ema.average(variable), [_ema(range(1, 7), decays, 0.0)], rtol=1e-6
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


# --- Tensors of v1 graphs that start with the first average -----------------


def _debiased(values, coefficients):
    """The mean of `values` with the weights that the updates leave them."""
    weights = [
        c * math.prod(1.0 - later for later in coefficients[i + 1 :])
        for i, c in enumerate(coefficients)
    ]
    return np.dot(weights, values) / np.sum(weights)


VALUES = [5.0, 1.0, -2.0, 4.0, 8.0, 3.0]


@pytest.mark.parametrize("zero_debias", [False, True])
@pytest.mark.parametrize(
    ("kwargs", "due", "coefficients"),
    [
        # 1 - decay is 1/4; warm_up / (n + warm_up) where that is more.
        ({"warm_up": 1}, range(6), [1, 1 / 2, 1 / 3, 1 / 4, 1 / 4, 1 / 4]),
        ({"when": (1, 2)}, [1, 3, 5], [1, 1 / 4, 1 / 4]),
        ({"when": (1, 2), "warm_up": 1}, [1, 3, 5], [1, 1 / 2, 1 / 3]),
        ({"warm_up": 1, "num_updates": 1}, range(6), [1] + [9 / 11] * 5),
    ],
    ids=str,
)
def test_a_tensor_that_starts_with_its_first_average(
    kwargs, due, coefficients, zero_debias
):
    kwargs = dict(kwargs)
    if "when" in kwargs:
        kwargs["when"] = swa_tf.AveragingSchedule(*kwargs["when"])
    with tf.Graph().as_default(), v1.Session() as session:
        x = v1.placeholder(tf.float32, [])
        ema = EMA(0.75, zero_debias=zero_debias, **kwargs)
        update, reset = ema.apply([x]), ema.reset()
        session.run(v1.global_variables_initializer())
        for _ in range(2):  # after a reset as at first
            values, used = [], []
            for i, value in enumerate(VALUES):
                session.run(update, {x: value})
                if i in due:
                    values.append(value)
                    used.append(coefficients[len(used)])
                expected = _debiased(values, used) if used else 0.0
                np.testing.assert_allclose(
                    session.run(ema.average(x)), expected, rtol=1e-6
                )
            session.run(reset)
            assert session.run(ema.average(x)) == 0.0


@pytest.mark.parametrize("zero_debias", [False, True])
def test_a_tensor_that_joins_after_the_first_average(zero_debias):
    """It starts at zero; `zero_debias` takes that out of it, exactly."""
    with tf.Graph().as_default(), v1.Session() as session:
        x, y = (v1.placeholder(tf.float32, []) for _ in range(2))
        ema = EMA(0.75, zero_debias=zero_debias, warm_up=1)
        of_x, of_both = ema.apply([x]), ema.apply([x, y])
        session.run(v1.global_variables_initializer())
        session.run(of_x, {x: 1.0})
        average, values, used = 0.0, [], []
        for value, c in zip(VALUES, [1 / 2, 1 / 3, 1 / 4, 1 / 4, 1 / 4, 1 / 4]):
            session.run(of_both, {x: 1.0, y: value})
            values.append(value)
            used.append(c)
            average += c * (value - average)
            np.testing.assert_allclose(
                session.run(ema.average(y)),
                _debiased(values, used) if zero_debias else average,
                rtol=1e-6,
            )
        assert session.run(ema.average(x)) == 1.0


def test_a_debiased_tensor_is_saved(tmp_path):
    path = str(tmp_path / "model")
    seen = []
    for restore in (False, True):
        with tf.Graph().as_default(), v1.Session() as session:
            x = v1.placeholder(tf.float32, [])
            ema = EMA(0.75, zero_debias=True, warm_up=1)
            update = ema.apply([x])
            saver = v1.train.Saver()
            session.run(v1.global_variables_initializer())
            if restore:
                saver.restore(session, path)
            for value in VALUES[3 * restore :][:3]:
                session.run(update, {x: value})
            seen.append(session.run(ema.average(x)))
            saver.save(session, path)
    coefficients = [1, 1 / 2, 1 / 3, 1 / 4, 1 / 4, 1 / 4]
    for n, average in zip((3, 6), seen):
        expected = _debiased(VALUES[:n], coefficients[:n])
        np.testing.assert_allclose(average, expected, rtol=1e-6)


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
            ema.average(weight), _ema(values, [0.9] * 5, first), atol=1e-6
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
    model.compile(tf.keras.optimizers.SGD(0.1), "mse")
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
    expected = _ema(seen[2:], [0.75] * 2, seen[1])
    assert int(ema.n_models) == 3
    kernel = model.layers[0].kernel.numpy()[0, 0]  # the average, at the end
    np.testing.assert_allclose(kernel, expected, rtol=1e-6)


# --- Lists that change ------------------------------------------------------


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


# --- reset, checkpoints -----------------------------------------------------


@pytest.mark.parametrize("compiled", [False, True])
def test_reset_starts_with_the_next_weight(compiled):
    v = tf.Variable(1.0)
    ema = EMA(0.5)

    def update():
        ema.apply([v])

    update = tf.function(update) if compiled else update
    update()
    v.assign(np.inf)
    update()
    ema.reset()
    v.assign(4.0)
    update()
    assert float(ema.average(v)) == 4.0
    assert int(ema.n_models) == 1
    v.assign(6.0)
    update()
    assert float(ema.average(v)) == 5.0


MODES = ["eager", "function", "xla"]
# With 0.5 each is 1 for the first model, and 1/2 for every other.
KINDS = [{}, {"when": swa_tf.AveragingSchedule()}, {"warm_up": 1}]


def _apply(ema, mode, *variables):
    """A function that averages them, traced at its first call."""

    def update():
        ema.apply(variables)

    if mode == "eager":
        return update
    return tf.function(update, jit_compile=mode == "xla")


@pytest.mark.parametrize(("mode", "kwargs"), covering(1, MODES, KINDS), ids=str)
def test_a_variable_left_out_after_reset_starts_as_it_comes(mode, kwargs):
    a, b = tf.Variable([1.0, np.nan]), tf.Variable([1.0, np.nan])
    ema = EMA(0.5, **kwargs)
    of_a, of_both = _apply(ema, mode, a), _apply(ema, mode, a, b)
    of_both()
    of_a()
    for _ in range(2):  # in functions that were traced before, too
        for v in (a, b):
            v.assign([100.0, 100.0])
        ema.reset()
        assert ema.average(b).numpy().tolist() == [100.0, 100.0]
        for value in (2.0, 4.0):
            a.assign([value, value])
            of_a()
        b.assign([8.0, np.inf])
        of_both()
        assert ema.average(a).numpy().tolist() == [3.5, 3.5]
        assert ema.average(b).numpy().tolist() == [8.0, np.inf]
        b.assign([10.0, 0.0])
        of_both()
        assert ema.average(b).numpy()[0] == 9.0
        assert int(ema.n_models) == 4


@pytest.mark.parametrize(
    ("begin", "mode", "kwargs"),
    covering(1, ["reset", "build"], MODES, KINDS),
    ids=str,
)
def test_a_variable_that_joins_leaves_the_others_to_start(mode, kwargs, begin):
    a, b = tf.Variable(1.0), tf.Variable(5.0)
    ema = EMA(0.5, **kwargs)
    of_a, of_both = _apply(ema, mode, a), _apply(ema, mode, a, b)
    if begin == "reset":
        of_a()
        ema.reset()
    else:
        ema.build([a])
    a.assign(2.0)
    of_both()
    assert [float(ema.average(v)) for v in (a, b)] == [2.0, 5.0]
    a.assign(4.0)
    b.assign(7.0)
    of_both()
    of_a()
    assert [float(ema.average(v)) for v in (a, b)] == [3.5, 6.0]


def test_build_leaves_what_is_averaged():
    a, b, c = (tf.Variable(1.0) for _ in range(3))
    ema = EMA(0.5)
    ema.apply([a])
    ema.build([a, b])
    ema.apply([c])
    for v in (a, b, c):
        v.assign(3.0)
    ema.apply([a, b, c])
    assert [float(ema.average(v)) for v in (a, b, c)] == [2.0, 3.0, 2.0]


def test_a_variable_left_out_after_reset_under_a_strategy():
    strategy = tf.distribute.MirroredStrategy(["/cpu:0", "/cpu:1"])
    with strategy.scope():
        a, b = (
            tf.Variable(1.0, aggregation=tf.VariableAggregation.MEAN)
            for _ in range(2)
        )
        ema = EMA(0.5)

    @tf.function
    def of_all():
        strategy.run(lambda: ema.apply([a, b]))

    of_all()
    ema.reset()
    for value in (2.0, 4.0):
        a.assign(value)
        ema.apply([a])
    b.assign(8.0)
    of_all()
    for v, expected in ((a, 3.5), (b, 8.0)):
        held = strategy.experimental_local_results(ema.average(v))
        assert [float(each) for each in held] == [expected] * 2


def test_reset_of_a_variable_that_changed_its_shape():
    v = tf.Variable([1.0], shape=tf.TensorShape([None]))
    ema = EMA(0.5)
    ema.apply([v])
    v.assign([1.0, 2.0])
    with pytest.raises(ValueError, match="shapes stay"):
        ema.reset()
    assert int(ema.n_models) == 1
    v.assign([3.0])
    ema.reset()
    assert ema.average(v).numpy().tolist() == [3.0]


def test_reset_in_a_graph_with_warm_up_forgets_what_is_left_out():
    with tf.Graph().as_default(), v1.Session() as session:
        a, b = tf.Variable(1.0), tf.Variable(1.0)
        ema = EMA(0.5, warm_up=1)
        of_a, of_both, reset = ema.apply([a]), ema.apply([a, b]), ema.reset()
        session.run(v1.global_variables_initializer())
        session.run(of_both)
        session.run([a.assign(4.0), b.assign(4.0)])
        session.run(reset)
        session.run(a.assign(6.0))
        session.run(of_a)
        session.run(b.assign(6.0))
        session.run(of_both)
        assert session.run([ema.average(a), ema.average(b)]) == [6.0, 5.0]


def test_reset_in_a_graph_starts_with_the_present_weight():
    with tf.Graph().as_default(), v1.Session() as session:
        v = tf.Variable(1.0)
        x = v1.placeholder(tf.float32, [])
        ema = EMA(0.5, zero_debias=True)
        update, reset = ema.apply([v, x]), ema.reset()
        averages = [ema.average(v), ema.average(x)]
        session.run(v1.global_variables_initializer())
        for _ in range(2):
            session.run(v.assign(np.inf))
            session.run(update, {x: np.inf})
            session.run(v.assign(4.0))
            session.run(reset)
            assert session.run(averages) == [4.0, 0.0]
            assert session.run(ema.n_models) == 0
            session.run(v.assign(6.0))
            session.run(update, {x: 3.0})
            assert session.run(averages) == [5.0, 3.0]
            assert session.run(ema.n_models) == 1


def test_checkpoint_goes_on_bit_for_bit(tmp_path):
    values = np.random.default_rng(0).normal(size=[20, 6]).astype(np.float32)

    def run(values, path=None):
        variable = tf.Variable(tf.zeros([6]))
        ema = EMA(0.9, num_updates=tf.Variable(100))
        checkpoint = tf.train.Checkpoint(ema=ema, variable=variable)
        if path is not None:
            checkpoint.restore(path)
        for value in values:
            variable.assign(value)
            ema.apply([variable])
        return ema.average(variable).numpy(), checkpoint

    whole, _ = run(values)
    _, checkpoint = run(values[:8])
    resumed, _ = run(values[8:], checkpoint.save(str(tmp_path / "c")))
    np.testing.assert_array_equal(resumed, whole)


def test_averages_that_wait_for_their_variables_are_not_lost_in_silence(
    tmp_path,
):
    variables = [tf.Variable(float(i)) for i in range(2)]
    written = swa_tf.ExponentialMovingAverage(0.5)
    written.apply(variables)
    path = tf.train.Checkpoint(written).write(str(tmp_path / "both"))
    ema = swa_tf.ExponentialMovingAverage(0.5)
    checkpoint = tf.train.Checkpoint(ema)
    checkpoint.read(path)
    with pytest.raises(RuntimeError, match="average cannot be copied between"):
        copy.deepcopy(ema)
    ema.apply(variables[:1])
    with pytest.warns(UserWarning, match="copy lacks the averages restored"):
        copy.deepcopy(ema)
    with pytest.warns(UserWarning, match="checkpoint lacks the averages"):
        checkpoint.write(str(tmp_path / "one"))
    ema.build(variables)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        checkpoint.write(str(tmp_path / "both"))
        copied = copy.deepcopy(ema)
    assert float(copied.average(variables[1])) == 1.0


@pytest.mark.parametrize("name", ["", None, "ema"])
def test_module_with_an_average_of_any_name_is_exported(tmp_path, name):
    module = tf.Module()
    module.variable = tf.Variable(1.0)
    module.average = swa_tf.ExponentialMovingAverage(0.5, name=name)
    module.average.apply([module.variable])

    @tf.function(input_signature=[])
    def apply():
        module.average.apply([module.variable])

    module.apply = apply
    tf.saved_model.save(module, str(tmp_path / "saved"))
    again = tf.saved_model.load(str(tmp_path / "saved"))
    again.variable.assign(3.0)
    again.apply()
    assert float(again.average._averages[0]) == 2.0


@pytest.mark.parametrize("compiled", [False, True])
def test_a_variable_joins_after_a_checkpoint_that_has_it_was_replaced(
    tmp_path, compiled
):
    variables = [tf.Variable(32.0) for _ in range(3)]
    written = swa_tf.ExponentialMovingAverage(0.5)
    written.apply(variables)
    with_three = tf.train.Checkpoint(written).write(str(tmp_path / "three"))
    for variable in variables:
        variable.assign(0.0)
    ema = swa_tf.ExponentialMovingAverage(0.5)
    checkpoint = tf.train.Checkpoint(ema)
    checkpoint.read(with_three)
    ema.apply(variables[:2])
    with_two = checkpoint.write(str(tmp_path / "two"))
    checkpoint.read(with_two)

    def apply():
        ema.apply(variables[2:])

    tf.function(apply)() if compiled else apply()
    assert [float(ema.average(v)) for v in variables] == [16.0, 16.0, 0.0]


def test_checkpoint_from_before_the_first_apply(tmp_path):
    v = tf.Variable(1.0)
    ema = EMA(0.5)
    checkpoint = tf.train.Checkpoint(ema=ema)
    path = checkpoint.save(str(tmp_path / "c"))
    ema.apply([v])
    checkpoint.restore(path)
    v.assign(5.0)
    ema.apply([v])
    assert float(ema.average(v)) == 5.0


def test_checkpoint_of_a_list_that_grew(tmp_path):
    def make(n):
        return [tf.Variable(float(i), name=f"v{i}") for i in range(n)]

    first, second = make(2)
    ema = EMA(0.5)
    ema.apply([first])
    ema.apply([first, second])
    path = tf.train.Checkpoint(ema=ema).save(str(tmp_path / "c"))
    new = make(3)
    for each in new:
        each.assign(7.0)
    ema = EMA(0.5)
    tf.train.Checkpoint(ema=ema).restore(path)
    ema.apply([new[0]])
    assert float(ema.average(new[0])) == 3.5
    ema.apply(new)  # the last joins anew
    assert [float(ema.average(v)) for v in new] == [5.25, 4.0, 7.0]
    other = EMA(0.5)
    tf.train.Checkpoint(ema=other).restore(path)
    with pytest.raises(ValueError, match="in their order"):
        other.apply([second, first])


@pytest.mark.parametrize(
    ("saved", "given", "right"),
    [
        ("ab", "a", True),
        ("ab", "abc", True),
        ("ab", "xy", True),  # as many: Keras may have made the names up
        ("ab", "ax", True),
        ("aba", "ab", True),
        ("aa", "aaa", True),  # as those are that nobody named
        ("ab", "b", False),
        ("ab", "bc", True),
        ("abc", "ac", False),
        ("ab", "acb", False),
        ("ab", "cab", False),
        ("aba", "aa", False),
    ],
)
@pytest.mark.parametrize("restored", ["before", exhaustive("after")])
def test_checkpoint_of_variables_at_other_places(
    tmp_path, saved, given, right, restored
):
    def made(names):
        return [tf.Variable(float(i), name=n) for i, n in enumerate(names)]

    _check_places(tmp_path, made(saved), made(given), right, restored)


@pytest.mark.parametrize(
    ("saved", "given", "right"),
    [
        (["dense", "dense_1"], ["dense_1", "dense_2"], True),
        (["conv", "dense_1"], ["conv", "dense", "dense_1"], False),
        (["dense", "dense_1"], ["dense_1"], False),
        (["dense", "dense_1"], ["dense", "dense_2", "dense_1"], False),
        (["dense", "conv"], ["conv", "conv_1"], True),
    ],
)
def test_checkpoint_of_layers_that_keras_numbers_anew(
    tmp_path, saved, given, right
):
    def made(layers):
        return [
            tf.Variable(float(i), name=f"{layer}/kernel")
            for i, layer in enumerate(layers)
        ]

    _check_places(tmp_path, made(saved), made(given), right, "before")


def test_a_variable_joins_those_that_have_other_names_than_the_checkpoint(
    tmp_path,
):
    saved = [tf.Variable(float(i), name=f"dense_{i}") for i in range(2)]
    ema = EMA(0.5)
    ema.apply(saved)
    path = tf.train.Checkpoint(ema=ema).save(str(tmp_path / "c"))
    given = [tf.Variable(7.0, name=f"dense_{i}") for i in range(1, 4)]
    ema = EMA(0.5)
    tf.train.Checkpoint(ema=ema).restore(path)
    ema.build(given[:2])
    ema.build(given)
    assert [float(ema.average(v)) for v in given] == [0.0, 1.0, 7.0]


def test_a_checkpoint_restored_after_build_at_other_places(tmp_path):
    def made(names):
        return [tf.Variable(float(i), name=n) for i, n in enumerate(names)]

    _check_places(tmp_path, made("ab"), made("abc"), True, "after")
    _check_places(tmp_path, made("ab"), made("acb"), False, "after")


def _check_places(tmp_path, saved, given, right, restored):
    ema = EMA(0.5)
    ema.apply(saved)
    path = tf.train.Checkpoint(ema=ema).save(str(tmp_path / "c"))
    ema = EMA(0.5)
    checkpoint = tf.train.Checkpoint(ema=ema)
    steps = [lambda: ema.build(given), lambda: checkpoint.restore(path)]
    first, second = steps if restored == "after" else reversed(steps)
    first()
    if not right:
        with pytest.raises(ValueError, match="in their order"):
            second()
        return
    second()
    for average, value in zip(map(ema.average, given), range(len(saved))):
        assert float(average) == value


@pytest.mark.parametrize(
    ("mode", "moment"), covering(1, MODES, ["before", "built", "averaged"])
)
def test_a_checkpoint_knows_what_has_not_begun(tmp_path, mode, moment):
    """Restored before, after `build` and into one that has averaged."""

    def make():
        ema = EMA(0.5)
        variables = [tf.Variable(1.0, name=name) for name in "ab"]
        return ema, *variables, _apply(ema, mode, *variables)

    ema, a, b, of_both = make()
    of_both()
    ema.reset()
    ema.apply([a])
    path = tf.train.Checkpoint(ema=ema).save(str(tmp_path / "c"))
    ema, a, b, of_both = make()
    if moment == "averaged":
        of_both()
    if moment == "built":
        ema.build([a, b])
    tf.train.Checkpoint(ema=ema).restore(path)
    if moment == "before":
        ema.build([a])
    for v in (a, b):
        v.assign(3.0)
    of_both()
    assert [float(ema.average(v)) for v in (a, b)] == [2.0, 3.0]


def _refused_by_xla(ema, variables, update):
    """A compiled update refuses a longer vector of flags, until `build`."""
    averages = [ema.average(v).numpy() for v in variables]
    with pytest.raises(tf.errors.InvalidArgumentError, match="shape"):
        update()
    assert [ema.average(v).numpy() for v in variables] == averages
    ema.build(variables)


@pytest.mark.parametrize("mode", MODES)
def test_a_checkpoint_of_fewer_variables(tmp_path, mode):
    """Averages that joined after the checkpoint was written start anew."""
    a, b = (tf.Variable(1.0, name=name) for name in "ab")
    ema = EMA(0.5)
    update = _apply(ema, mode, a, b)
    ema.apply([a])
    checkpoint = tf.train.Checkpoint(ema=ema)
    path = checkpoint.save(str(tmp_path / "c"))
    update()
    checkpoint.restore(path)
    if mode == "xla":
        _refused_by_xla(ema, [a, b], update)
    for value, expected in ((3.0, [2.0, 3.0]), (5.0, [3.5, 4.0])):
        for v in (a, b):
            v.assign(value)
        update()
        assert [float(ema.average(v)) for v in (a, b)] == expected


@pytest.mark.parametrize("n_before", [0, 1])
def test_a_variable_joins_a_copy(n_before):
    a, b = (tf.Variable(1.0, name=name) for name in "ab")
    ema = EMA(0.5)
    if n_before:
        ema.apply([a])
    ema, a = copy.deepcopy((ema, a))
    a.assign(3.0)
    for _ in range(2):
        ema.apply([a, b])
    assert float(ema.average(a)) == (2.5 if n_before else 3.0)
    assert float(ema.average(b)) == 1.0


@pytest.mark.parametrize("mode", MODES)
def test_a_copy_whose_variables_join_begins_anew(mode):
    """A function traced before a variable joined updates it all the same."""
    a, b = (tf.Variable(1.0, name=name) for name in "ab")
    ema = EMA(0.9)
    ema.apply([a])
    ema, a = copy.deepcopy((ema, a))
    of_a = _apply(ema, mode, a)
    of_a()
    ema.apply([a, b])
    ema.reset()
    a.assign(5.0)
    of_a()
    assert float(ema.average(a)) == 5.0


def test_a_checkpoint_of_more_variables_in_a_copy(tmp_path):
    a, b = (tf.Variable(1.0, name=name) for name in "ab")
    ema = EMA(0.5)
    ema.apply([a])
    copied, of_a = copy.deepcopy((ema, a))
    ema.apply([a, b])
    path = tf.train.Checkpoint(ema=ema).save(str(tmp_path / "c"))
    tf.train.Checkpoint(ema=copied).restore(path)
    for v in (of_a, b):
        v.assign(3.0)
    copied.apply([of_a, b])
    assert [float(copied.average(v)) for v in (of_a, b)] == [2.0, 2.0]
    assert float(ema.average(a)) == 1.0  # is another's


def test_a_copy_is_saved_with_what_has_begun(tmp_path):
    a, b = (tf.Variable(1.0, name=name) for name in "ab")
    ema = EMA(0.5)
    ema.apply([a, b])
    ema.reset()
    ema.apply([a])
    copied = copy.deepcopy(ema)
    path = tf.train.Checkpoint(ema=copied).save(str(tmp_path / "c"))
    ema = EMA(0.5)
    tf.train.Checkpoint(ema=ema).restore(path).expect_partial()
    for v in (a, b):
        v.assign(3.0)
    ema.apply([a, b])
    assert [float(ema.average(v)) for v in (a, b)] == [2.0, 3.0]


def test_what_it_is_given_is_not_in_its_checkpoints():
    ema = EMA(tf.Variable(0.5, name="decay"), tf.Variable(1, name="step"))
    v = tf.Variable(1.0, name="v")
    ema.apply([v])
    assert sorted(each.name for each in ema.variables) == [
        "ExponentialMovingAverage/begun:0",
        "ExponentialMovingAverage/n_models:0",
        "Variable:0",  # whether the averages are swapped in
        "v/ExponentialMovingAverage:0",
    ]
    assert ema.trainable_variables == ()


# --- Checkpoints of v1 graphs, written with one class and read by the other --

CLASSES = [tf.train.ExponentialMovingAverage, EMA]


def _graph(ema_class, **kwargs):
    v = tf.Variable([1.0, 2.0], name="v")
    frozen = tf.Variable(3.0, name="frozen", trainable=False)
    ema = ema_class(0.75, **kwargs)
    tensor = tf.multiply(v, 2.0, name="tensor")
    return v, frozen, tensor, ema, ema.apply([v, tensor])


@pytest.mark.parametrize("writer", CLASSES)
@pytest.mark.parametrize("reader", CLASSES)
@pytest.mark.parametrize("zero_debias", [False, True])
def test_saver_of_the_other_class(tmp_path, writer, reader, zero_debias):
    kwargs = {"zero_debias": zero_debias}
    path = str(tmp_path / "model")
    with tf.Graph().as_default(), v1.Session() as session:
        v, frozen, tensor, ema, update = _graph(writer, **kwargs)
        session.run(v1.global_variables_initializer())
        session.run([v.assign([5.0, 10.0]), frozen.assign(7.0)])
        session.run(update)
        session.run(update)
        v1.train.Saver().save(session, path)
        averages = session.run([ema.average(v), ema.average(tensor)])
        session.run(update)
        expected = session.run([ema.average(v), ema.average(tensor)])
    # All is restored, and goes on.
    with tf.Graph().as_default(), v1.Session() as session:
        v, frozen, tensor, ema, update = _graph(reader, **kwargs)
        v1.train.Saver().restore(session, path)
        restored = session.run([ema.average(v), ema.average(tensor)])
        np.testing.assert_array_equal(restored, averages)
        session.run(update)
        np.testing.assert_allclose(
            session.run([ema.average(v), ema.average(tensor)]),
            expected,
            rtol=2e-7,
        )
    # The averages are restored as the weights.
    with tf.Graph().as_default(), v1.Session() as session:
        v = tf.Variable([1.0, 2.0], name="v")
        frozen = tf.Variable(3.0, name="frozen", trainable=False)
        ema = reader(0.75, **kwargs)
        v1.train.Saver(ema.variables_to_restore()).restore(session, path)
        np.testing.assert_array_equal(session.run(v), averages[0])
        assert session.run(frozen) == 7.0


def test_averages_of_a_checkpoint_are_swapped_in_a_graph(tmp_path):
    """TensorFlow's checkpoints have no number of models."""
    path = str(tmp_path / "model")
    with tf.Graph().as_default(), v1.Session() as session:
        v, *_, update = _graph(tf.train.ExponentialMovingAverage)
        session.run(v1.global_variables_initializer())
        session.run(v.assign([5.0, 10.0]))
        session.run(update)
        v1.train.Saver().save(session, path)
    with tf.Graph().as_default(), v1.Session() as session:
        v, _, _, ema, _ = _graph(EMA)
        swap = swa_tf.assign_averages(ema, [v])
        v1.train.Saver().restore(session, path)
        session.run(swap)
        np.testing.assert_array_equal(session.run(v), [2.0, 4.0])


# --- Arguments --------------------------------------------------------------


NO_SCALAR = tf.Variable([0.5, 0.5], shape=tf.TensorShape(None))


@pytest.mark.parametrize(
    ("arguments", "error", "match"),
    [
        ({}, ValueError, "Exactly one of `decay` and `half_life`"),
        (
            {"decay": 0.5, "half_life": 2},
            ValueError,
            "Exactly one of `decay` and",
        ),
        ({"decay": 1.0}, ValueError, r"`decay` must be .*\[0, 1\)"),
        ({"decay": 1}, ValueError, "`decay` must be"),
        ({"decay": -0.1}, ValueError, "`decay` must be .*-0.1"),
        ({"decay": 1 - 1e-9}, ValueError, "`decay` must be .*float32"),
        ({"decay": math.nan}, ValueError, "`decay` must be"),
        ({"decay": "0.9"}, ValueError, "`decay` must be"),
        ({"decay": True}, ValueError, "`decay` must be"),
        ({"decay": np.float64(1.5)}, ValueError, "`decay` must be"),
        ({"decay": np.array(1.5)}, ValueError, "`decay` must be"),
        ({"decay": tf.constant(1.5)}, ValueError, "`decay` must be"),
        ({"decay": tf.constant([0.5])}, ValueError, "`decay` must be a scalar"),
        (
            {"decay": tf.constant("a")},
            ValueError,
            "`decay` must be .*dtype=string",
        ),
        (
            {"decay": tf.Variable("a")},
            ValueError,
            "`decay` must be .*dtype=string",
        ),
        ({"decay": tf.constant(False)}, ValueError, "`decay` .*dtype=bool"),
        ({"decay": tf.constant(0.5j)}, ValueError, "`decay` .*dtype=complex"),
        (
            {"decay": NO_SCALAR},
            ValueError,
            "`decay` must be a scalar.*0.5, 0.5",
        ),
        ({"decay": 10**400}, ValueError, "`decay` must be"),
        ({"decay": 0.5, "num_updates": -1}, ValueError, "`num_updates` must"),
        ({"decay": 0.5, "num_updates": [1]}, ValueError, "`num_updates` must"),
        ({"decay": 0.5, "num_updates": "1"}, ValueError, "`num_updates` must"),
        ({"decay": 0.5, "num_updates": 1e39}, ValueError, "`num_updates` must"),
        ({"decay": 0.5, "num_updates": 10**400}, ValueError, "`num_updates`"),
        (
            {"decay": 0.5, "num_updates": tf.constant("1")},
            ValueError,
            "`num_updates` must be a finite number >= 0.*dtype=string",
        ),
        (
            {"decay": 0.5, "num_updates": NO_SCALAR},
            ValueError,
            "`num_updates` must be a scalar",
        ),
        ({"half_life": 0}, ValueError, "`half_life` must be .* > 0"),
        ({"half_life": -1.0}, ValueError, "`half_life` must be"),
        ({"half_life": math.inf}, ValueError, "`half_life` must be"),
        ({"decay": 0.5, "warm_up": 0.5}, ValueError, "`warm_up` must be .*1"),
        ({"decay": 0.5, "warm_up": "9"}, ValueError, "`warm_up` must be"),
        ({"decay": 0.5, "when": 3}, TypeError, "`when` must be"),
        ({"decay": 0.5, "name": 3}, TypeError, "`name` must be .*name=3"),
        ({"decay": 0.5, "zero_debias": 1}, TypeError, "`zero_debias` must be"),
        ({"decay": 0.5, "zero_debias": "no"}, TypeError, "`zero_debias` must"),
    ],
)
def test_bad_arguments(arguments, error, match):
    with pytest.raises(error, match=match):
        EMA(**arguments)


@pytest.mark.parametrize(
    "decay",
    [
        0,
        0.0,
        np.float32(0.5),
        np.float16(0.5),
        tf.bfloat16.as_numpy_dtype(0.5),
        np.array(0.5),
        tf.constant(0.5),
        tf.constant(0),
        tf.Variable(0.5, dtype=tf.float64),
        tf.Variable(0.5, shape=tf.TensorShape(None)),
    ],
    ids=repr,
)
def test_numbers_that_are_a_decay(decay):
    assert _run(EMA(decay), tf.Variable(0.0), [1.0, 2.0]) == 2.0 - float(decay)


@pytest.mark.parametrize(
    "count",
    [
        2,
        2.0,
        np.int64(2),
        np.float32(2.0),
        np.array(2),
        tf.constant(2),
        tf.constant(2.0),
        tf.Variable(2, dtype=tf.int64),
        tf.Variable(2.0),
    ],
    ids=repr,
)
def test_numbers_that_are_num_updates(count):
    # The decay is (1 + 2) / (10 + 2).
    ema = EMA(0.5, num_updates=count)
    assert _run(ema, tf.Variable(0.0), [1.0, 5.0]) == 4.0


def test_a_decay_that_is_no_scalar_when_the_graph_runs():
    with tf.Graph().as_default(), v1.Session() as session:
        decay, v = v1.placeholder(tf.float32), tf.Variable(1.0)
        ema = EMA(decay)
        update = ema.apply([v])
        session.run(v1.global_variables_initializer())
        with pytest.raises(
            tf.errors.InvalidArgumentError, match="decay_must_be_a_scalar"
        ):
            session.run(update, {decay: [0.5, 0.5]})
        session.run(v.assign(2.0))
        session.run(update, {decay: 0.5})
        assert session.run(ema.average(v)) == 1.5


@pytest.mark.parametrize("bad", [1.0, -0.5, math.nan])
@pytest.mark.parametrize("compiled", [False, True])
def test_decay_variable_out_of_range(bad, compiled):
    decay = tf.Variable(0.5)
    v = tf.Variable(1.0)
    ema = EMA(decay)

    def update():
        ema.apply([v])

    update = tf.function(update) if compiled else update
    update()
    v.assign(2.0)
    decay.assign(bad)
    with pytest.raises(
        (ValueError, tf.errors.InvalidArgumentError), match="`decay` must be"
    ):
        update()
    assert float(ema.average(v)) == 1.0
    assert int(ema.n_models) == 1
    decay.assign(0.5)
    update()
    assert float(ema.average(v)) == 1.5


def test_decay_variable_out_of_range_in_a_graph():
    with tf.Graph().as_default(), v1.Session() as session:
        decay, v = tf.Variable(1.5), tf.Variable(1.0)
        n = v1.placeholder(tf.int64, [])
        update = EMA(decay, num_updates=n).apply([v])
        session.run(v1.global_variables_initializer())
        error = tf.errors.InvalidArgumentError
        with pytest.raises(error, match="`decay` must be"):
            session.run(update, {n: 1})
        session.run(decay.assign(0.5))
        with pytest.raises(error, match="`num_updates` must be"):
            session.run(update, {n: -1})
        session.run(update, {n: 0})


# --- scaled_decay -----------------------------------------------------------


@pytest.mark.parametrize("ratio", [0.5, 1, 8])
def test_scaled_decay(ratio):
    # From 1 to weights of 0: what is left after 16 updates at the old size.
    left = 0.999**16
    decay = swa_tf.scaled_decay(0.999, ratio)
    np.testing.assert_allclose(decay ** (16 / ratio), left, rtol=1e-14)


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ((1.0, 2), "`decay` must"),
        ((-0.1, 2), "`decay` must"),
        ((0.9, 0), "`batch_size_ratio` must be .* > 0"),
        ((0.9, math.inf), "`batch_size_ratio` must"),
    ],
)
def test_scaled_decay_of_bad_arguments(arguments, match):
    with pytest.raises(ValueError, match=match):
        swa_tf.scaled_decay(*arguments)
