"""MomentumW and AdamW against numbers worked out by hand or in numpy."""

import importlib.util
import pathlib
import time

import numpy as np
import pytest
import tensorflow as tf

from swa_tf import optimizers, schedules
from swa_tf.support import compat
from tests import fitting

BOTH = [optimizers.MomentumW, optimizers.AdamW]
ADDONS = compat.tensorflow_addons()

# Float32 numbers of order one, after a handful of steps of a dozen roundings
# of 6e-8. Adam's `1 - beta_2^t` is 1e-3 in the first step, so it is right to
# 6e-5 of itself and a step to half that: 3e-5 of the sum of the rates.
MOMENTUM_TOLERANCE = 5e-6
ADAM_TOLERANCE = 2e-5


def numpy_momentumw(
    w, gradients, rates, momentum, decay, nesterov=False, scaled=False
):
    w, velocity = np.float64(w), 0.0
    for g, rate in zip(gradients, rates):
        w = w - w * decay * (rate if scaled else 1.0)
        velocity = momentum * velocity - rate * g
        w = w + (momentum * velocity - rate * g if nesterov else velocity)
    return w


def numpy_adamw(
    w, gradients, rates, decay, amsgrad=False, scaled=False, beta_2=0.999
):
    w, m, v, v_hat = np.float64(w), 0.0, 0.0, 0.0
    for t, (g, rate) in enumerate(zip(gradients, rates), start=1):
        w = w - w * decay * (rate if scaled else 1.0)
        m = 0.9 * m + 0.1 * g
        v = beta_2 * v + (1 - beta_2) * g**2
        v_hat = np.maximum(v_hat, v)
        rate = rate * np.sqrt(1 - beta_2**t) / (1 - 0.9**t)
        w = w - rate * m / (np.sqrt(v_hat if amsgrad else v) + 1e-7)
    return w


def weights_and_gradients(steps=6, shape=(3, 2)):
    rng = np.random.default_rng(7)
    gradients = rng.normal(size=(steps, *shape)) * [[2.0, 0.5]]
    return rng.normal(size=shape), gradients


def train(optimizer, variable, gradients):
    for gradient in gradients:
        gradient = tf.constant(gradient, variable.dtype)
        optimizer.apply_gradients([(gradient, variable)])
    return variable.numpy()


def build(optimizer, variables):
    """Makes the slots; TensorFlow Addons has no public name for it."""
    if ADDONS:
        optimizer._create_all_weights(variables)
    else:
        optimizer.build(variables)


@pytest.mark.parametrize(
    ("nesterov", "expected"),
    # w = 2, gradient 1, rate 1/2, momentum 1/2, decay 1/4:
    # 2 -> 1.5 - 0.5 = 1 -> 0.75 - 0.75 = 0; with Nesterov's step
    # 2 -> 1.5 - 0.25 - 0.5 = 0.75 -> 0.5625 - 0.375 - 0.5 = -0.3125.
    [(False, [1.0, 0.0]), (True, [0.75, -0.3125])],
)
def test_momentumw_by_hand(nesterov, expected):
    w = tf.Variable([[2.0]])
    optimizer = optimizers.MomentumW(0.5, 0.5, 0.25, nesterov)
    assert [train(optimizer, w, [[[1.0]]]).item() for _ in expected] == expected


def test_adamw_by_hand():
    """The first step of Adam is the rate, whatever the gradient."""
    w = train(
        optimizers.AdamW(0.5, weight_decay=0.25),
        tf.Variable([[2.0, -4.0]]),
        [[[10.0, -0.1]]],
    )
    # 2 - 0.5 - 0.5 and -4 + 1 + 0.5; 1e-7 / 3e-3 is epsilon's share.
    np.testing.assert_allclose(w, [[1.0, -2.5]], rtol=4e-5)


@pytest.mark.parametrize("scaled", [False, True])
@pytest.mark.parametrize("nesterov", [False, True])
def test_momentumw_against_numpy(nesterov, scaled):
    w, gradients = weights_and_gradients()
    optimizer = optimizers.MomentumW(
        0.1, 0.8, 0.05, nesterov, scale_decay_by_learning_rate=scaled
    )
    actual = train(optimizer, tf.Variable(w, dtype=tf.float32), gradients)
    expected = numpy_momentumw(
        w, gradients, [0.1] * 6, 0.8, 0.05, nesterov, scaled
    )
    np.testing.assert_allclose(actual, expected, atol=MOMENTUM_TOLERANCE)


@pytest.mark.parametrize("scaled", [False, True])
@pytest.mark.parametrize("amsgrad", [False, True])
def test_adamw_against_numpy(amsgrad, scaled):
    w, gradients = weights_and_gradients()
    gradients[0] *= 4.0  # What AMSGrad remembers, and Adam with 0.5 forgets.
    optimizer = optimizers.AdamW(
        0.1,
        beta_2=0.5,
        amsgrad=amsgrad,
        weight_decay=0.05,
        scale_decay_by_learning_rate=scaled,
    )
    actual = train(optimizer, tf.Variable(w, dtype=tf.float32), gradients)
    expected = numpy_adamw(w, gradients, [0.1] * 6, 0.05, amsgrad, scaled, 0.5)
    np.testing.assert_allclose(actual, expected, atol=ADAM_TOLERANCE)


def test_adam_takes_its_own_coefficients():
    # m = 1/2 g and v = 1/4 g^2 are corrected to g and g^2: w = 1 - 1 + 3/4.
    optimizer = optimizers.AdamW(1.0, 0.5, 0.75, epsilon=3.0, weight_decay=0.0)
    w = train(optimizer, tf.Variable([[1.0]]), [[[2.0]]])
    # m = 1, v = 1, rate = sqrt(1/4) / (1/2) = 1: w = 1 - 1 / (1 + 3).
    np.testing.assert_allclose(w, [[0.75]], rtol=1e-6)


@pytest.mark.parametrize("scaled", [False, True])
def test_a_schedule_scales_the_decay_only_where_asked(scaled):
    w, gradients = weights_and_gradients(steps=5)
    # Step 0, 1: 0.2; then by 0.05 a step.
    schedule = schedules.LinearRamp(0.2, 0.05, ramp_start=1, ramp_steps=3)
    rates = [0.2, 0.2, 0.15, 0.1, 0.05]
    momentumw = train(
        optimizers.MomentumW(
            schedule,
            0.5,
            weight_decay=0.1,
            scale_decay_by_learning_rate=scaled,
        ),
        tf.Variable(w, dtype=tf.float32),
        gradients,
    )
    adamw = train(
        optimizers.AdamW(
            schedule, weight_decay=0.1, scale_decay_by_learning_rate=scaled
        ),
        tf.Variable(w, dtype=tf.float32),
        gradients,
    )
    np.testing.assert_allclose(
        momentumw,
        numpy_momentumw(w, gradients, rates, 0.5, 0.1, scaled=scaled),
        atol=MOMENTUM_TOLERANCE,
    )
    np.testing.assert_allclose(
        adamw,
        numpy_adamw(w, gradients, rates, 0.1, scaled=scaled),
        atol=ADAM_TOLERANCE,
    )


@pytest.mark.parametrize("cls", BOTH)
@pytest.mark.parametrize("weight_decay_on", ["all", "kernels"])
def test_which_variables_decay(cls, weight_decay_on):
    shapes = [(), (3,), (2, 3), (2, 1, 3), (1, 1, 2, 3)]
    variables = [tf.Variable(tf.ones(shape)) for shape in shapes]
    optimizer = cls(weight_decay=0.25, weight_decay_on=weight_decay_on)
    optimizer.apply_gradients([(tf.zeros_like(v), v) for v in variables])
    low = 0.75 if weight_decay_on == "all" else 1.0
    for variable, expected in zip(variables, [low, low, 0.75, 0.75, 0.75]):
        np.testing.assert_array_equal(
            variable, np.full(variable.shape, expected)
        )


@pytest.mark.parametrize("cls", BOTH)
def test_the_default_decay_is_on_everything(cls):
    w = train(cls(), tf.Variable([1.0]), [[0.0]])
    np.testing.assert_allclose(w, [0.9999], rtol=1e-7)


@pytest.mark.parametrize("cls", BOTH)
def test_float64_variables(cls):
    w = train(
        cls(weight_decay=0.1), tf.Variable([3.0], dtype=tf.float64), [[0.0]]
    )
    # The decay itself is a float32 variable in TensorFlow Addons.
    np.testing.assert_allclose(w, [2.7], rtol=1e-8 if ADDONS else 1e-15)


@pytest.mark.filterwarnings("ignore:Gradients do not exist:UserWarning")
@pytest.mark.parametrize("cls", BOTH)
def test_a_variable_without_gradient_keeps_its_value(cls):
    v, w = tf.Variable([1.0]), tf.Variable([1.0])
    optimizer = cls(weight_decay=0.25)
    optimizer.apply_gradients([(tf.zeros([1]), v), (None, w)])
    assert (v.numpy().item(), w.numpy().item()) == (0.75, 1.0)


@pytest.mark.parametrize(
    "make",
    [
        lambda: optimizers.MomentumW(0.1, 0.5, 0.1),
        lambda: optimizers.MomentumW(0.1, 0.5, 0.1, nesterov=True),
        lambda: optimizers.MomentumW(0.1, 0.0, 0.1),
        lambda: optimizers.AdamW(0.1, weight_decay=0.1),
    ],
    ids=["momentum", "nesterov", "no momentum", "adam"],
)
def test_a_sparse_gradient_is_the_dense_one_it_stands_for(make):
    """Row 0 twice in the first step, row 2 in the second, row 1 never."""
    steps = [([0, 0], [[1.0, 2.0], [3.0, 4.0]]), ([2], [[5.0, 6.0]])]
    dense = np.zeros((2, 3, 2))
    dense[0, 0], dense[1, 2] = [4.0, 6.0], [5.0, 6.0]
    w = np.arange(1.0, 7.0).reshape(3, 2)
    variable, optimizer = tf.Variable(w, dtype=tf.float32), make()
    for rows, values in steps:
        slices = tf.IndexedSlices(
            tf.constant(values), tf.constant(rows), tf.constant([3, 2])
        )
        optimizer.apply_gradients([(slices, variable)])
    if isinstance(optimizer, optimizers.AdamW):
        expected = numpy_adamw(w, dense, [0.1] * 2, 0.1)
    else:
        config = optimizer.get_config()
        expected = numpy_momentumw(
            w, dense, [0.1] * 2, config["momentum"], 0.1, config["nesterov"]
        )
    np.testing.assert_allclose(variable, expected, atol=ADAM_TOLERANCE)


def test_an_embedding_in_fit():
    model = tf.keras.Sequential(
        [
            tf.keras.layers.Embedding(
                3, 1, embeddings_initializer=tf.keras.initializers.Ones()
            ),
            tf.keras.layers.Flatten(),
        ]
    )
    # The loss's mean over two samples: gradient 2 * (1 - 0) / 2 each, summed.
    optimizer = optimizers.MomentumW(0.25, 0.5, 0.5, weight_decay_on="kernels")
    model.compile(optimizer, "mse")
    model.fit(np.array([[1], [1]]), np.zeros((2, 1)), verbose=0)
    np.testing.assert_allclose(
        model.get_weights()[0], [[0.5], [0.0], [0.5]], atol=1e-7
    )


@pytest.mark.parametrize("cls", BOTH)
def test_in_tf_function_and_compiled(cls):
    w, gradients = weights_and_gradients(steps=3)
    reference = train(
        cls(0.1, weight_decay=0.1), tf.Variable(w, dtype=tf.float32), gradients
    )
    for jit_compile in (False, True):
        variable = tf.Variable(w, dtype=tf.float32)
        optimizer = cls(0.1, weight_decay=0.1)
        build(optimizer, [variable])

        @tf.function(jit_compile=jit_compile)
        def step(gradient, optimizer=optimizer, variable=variable):
            optimizer.apply_gradients([(gradient, variable)])

        for gradient in gradients:
            step(tf.constant(gradient, tf.float32))
        np.testing.assert_allclose(variable, reference, atol=ADAM_TOLERANCE)


def regression():
    """A linear model of two inputs, and its training data."""
    rng = np.random.default_rng(3)
    x, y = rng.normal(size=(8, 2)), rng.normal(size=(8, 1))
    kernel, bias = np.array([[0.5], [-1.0]]), np.array([2.0])
    model = tf.keras.Sequential(
        [tf.keras.Input((2,)), tf.keras.layers.Dense(1)]
    )
    model.set_weights([kernel, bias])
    return model, x, y, kernel, bias


def numpy_regression(x, y, kernel, bias, steps, rate, momentum, decay):
    """Training of `regression` where only the kernel decays."""
    dk, db = 0.0, 0.0
    for _ in range(steps):
        error = (x @ kernel + bias - y) * 2 / len(x)
        kernel = kernel * (1 - decay)
        dk = momentum * dk - rate * x.T @ error
        db = momentum * db - rate * error.sum(0)
        kernel, bias = kernel + dk, bias + db
    return kernel, bias


@pytest.mark.parametrize("loss_scale", [False, True])
def test_fit(loss_scale):
    model, x, y, kernel, bias = regression()
    optimizer = optimizers.MomentumW(0.1, 0.5, 0.05, weight_decay_on="kernels")
    if loss_scale:
        optimizer = tf.keras.mixed_precision.LossScaleOptimizer(optimizer)
    model.compile(
        optimizer, tf.keras.losses.MeanSquaredError(), jit_compile=False
    )
    model.fit(x, y, batch_size=8, epochs=4, verbose=0)
    expected = numpy_regression(x, y, kernel, bias, 4, 0.1, 0.5, 0.05)
    for actual, wanted in zip(model.get_weights(), expected):
        np.testing.assert_allclose(actual, wanted, atol=MOMENTUM_TOLERANCE)


@pytest.mark.parametrize("cls", BOTH)
def test_a_step_that_loss_scaling_skips_does_not_decay(cls):
    variable = tf.Variable([1.0])
    optimizer = tf.keras.mixed_precision.LossScaleOptimizer(
        cls(weight_decay=0.25)
    )
    optimizer.apply_gradients([(tf.constant([np.inf]), variable)])
    assert variable.numpy().item() == 1.0
    optimizer.apply_gradients([(tf.constant([0.0]), variable)])
    assert variable.numpy().item() == 0.75


@pytest.mark.parametrize("cls", BOTH)
def test_a_step_without_data_does_not_decay(cls):
    variable = tf.Variable([8.0])
    optimizer = cls(weight_decay=0.25)
    build(optimizer, [variable])

    def generator():
        yield [0.0]
        time.sleep(0.05)  # what does not wait for data will have run

    output = tf.TensorSpec([1], tf.float32)
    dataset = tf.data.Dataset.from_generator(generator, output_signature=output)

    @tf.function
    def step(iterator):
        optimizer.apply_gradients([(next(iterator), variable)])

    iterator = iter(dataset)
    step(iterator)
    with pytest.raises(tf.errors.OutOfRangeError):
        step(iterator)
    assert variable.numpy().item() == 6.0


@pytest.mark.parametrize("cls", BOTH)
def test_two_replicas_are_one(cls):
    """Gradients are summed over the replicas; each copy decays once."""
    strategy = fitting.two_replicas()
    w, gradients = weights_and_gradients(steps=3)
    schedule = schedules.LinearRamp(0.1, 0.0, 1, 2)  # 0.1, 0.1, 0.05
    with strategy.scope():
        kernel = tf.Variable(w, dtype=tf.float32)
        bias = tf.Variable([1.0, 1.0])
        optimizer = cls(schedule, weight_decay=0.25, weight_decay_on="kernels")
        build(optimizer, [kernel, bias])

    def replica(gradient):
        optimizer.apply_gradients(
            [(gradient / 2.0, kernel), (tf.zeros([2]), bias)]
        )

    @tf.function
    def step(gradient):
        strategy.run(replica, args=(gradient,))

    for gradient in gradients:
        step(tf.constant(gradient, tf.float32))
    rates = [0.1, 0.1, 0.05]
    if cls is optimizers.AdamW:
        expected = numpy_adamw(w, gradients, rates, 0.25)
    else:
        expected = numpy_momentumw(w, gradients, rates, 0.9, 0.25)
    for copy in kernel.values:
        np.testing.assert_allclose(copy, expected, atol=ADAM_TOLERANCE)
    for copy in bias.values:
        np.testing.assert_array_equal(copy, [1.0, 1.0])


@pytest.mark.parametrize("cls", BOTH)
def test_a_checkpoint_resumes_bit_for_bit(cls, tmp_path):
    w, gradients = weights_and_gradients()

    def fresh():
        variable = tf.Variable(w, dtype=tf.float32)
        optimizer = cls(
            schedules.LinearRamp(0.1, 0.01, 2, 2), weight_decay=0.05
        )
        state = tf.train.Checkpoint(variable=variable, optimizer=optimizer)
        return variable, optimizer, state

    variable, optimizer, state = fresh()
    train(optimizer, variable, gradients[:3])
    path = state.save(str(tmp_path / "checkpoint"))
    uninterrupted = train(optimizer, variable, gradients[3:])

    variable, optimizer, state = fresh()
    state.restore(path)
    resumed = train(optimizer, variable, gradients[3:])
    np.testing.assert_array_equal(resumed, uninterrupted)
    assert int(optimizer.iterations) == 6


@pytest.mark.parametrize("cls", BOTH)
def test_learning_rate_can_be_set(cls):
    variable = tf.Variable([0.0])
    optimizer = cls(0.5, weight_decay=0.0, **FIRST_STEP_IS_THE_RATE[cls])
    train(optimizer, variable, [[1.0]])
    optimizer.learning_rate.assign(0.25)
    train(optimizer, variable, [[1.0]])
    optimizer.learning_rate = 0.125
    train(optimizer, variable, [[1.0]])
    np.testing.assert_allclose(variable, [-0.875], rtol=4e-5)


FIRST_STEP_IS_THE_RATE = {
    optimizers.MomentumW: {"momentum": 0.0},
    optimizers.AdamW: {},  # Under a constant gradient every step is.
}
OPTIONS = {
    "weight_decay": 0.25,
    "weight_decay_on": "kernels",
    "scale_decay_by_learning_rate": True,
    "clipnorm": 1.0,
    "name": "mine",
}
EVERYTHING = [
    (optimizers.MomentumW, {"momentum": 0.5, "nesterov": True}),
    (
        optimizers.AdamW,
        {"beta_1": 0.5, "beta_2": 0.75, "epsilon": 1e-3, "amsgrad": True},
    ),
]


@pytest.mark.parametrize(("cls", "own"), EVERYTHING)
@pytest.mark.parametrize("trained", [False, True])
@pytest.mark.parametrize(
    "round_trip",
    [
        lambda o: type(o).from_config(o.get_config()),
        lambda o: tf.keras.optimizers.deserialize(
            tf.keras.optimizers.serialize(o)
        ),
    ],
    ids=["config", "serialize"],
)
def test_config_round_trip(cls, own, round_trip, trained):
    given = {"learning_rate": 0.5, **own, **OPTIONS}
    optimizer = cls(**given)
    if trained:
        train(optimizer, tf.Variable([1.0]), [[0.0]])
    again = round_trip(optimizer)
    assert type(again) is cls
    config = again.get_config()
    # What was a float32 variable meanwhile may be off by its last bit.
    for key, value in given.items():
        if isinstance(value, float):
            value = pytest.approx(value, rel=1e-7)
        assert config[key] == value


@pytest.mark.parametrize("cls", BOTH)
def test_a_schedule_survives_the_round_trip(cls):
    optimizer = cls(schedules.LinearRamp(0.5, 0.25, 0, 2), weight_decay=0.0)
    optimizer = tf.keras.optimizers.deserialize(
        tf.keras.optimizers.serialize(optimizer)
    )
    w = train(optimizer, tf.Variable([0.0]), [[1.0], [1.0]])
    # 0.5 and then 0.375; with momentum 0.9 * 0.5 more.
    expected = {optimizers.MomentumW: [-1.325], optimizers.AdamW: [-0.875]}
    np.testing.assert_allclose(w, expected[cls], rtol=4e-5)


@pytest.mark.parametrize("cls", BOTH)
def test_a_saved_model_needs_no_custom_objects(cls, tmp_path):
    model, x, y, _, _ = regression()
    model.compile(
        cls(schedules.LinearRamp(0.5, 0.1, 2, 4), weight_decay=0.25),
        tf.keras.losses.MeanSquaredError(),
        jit_compile=False,
    )
    model.fit(x, y, verbose=0)
    model.save(tmp_path / "model.keras")
    optimizer = tf.keras.models.load_model(tmp_path / "model.keras").optimizer
    assert type(optimizer) is cls
    assert float(optimizer.weight_decay) == 0.25


@pytest.mark.parametrize("cls", BOTH)
def test_a_saved_model_goes_on_training(cls, tmp_path):
    model, x, y, _, _ = regression()
    model.compile(
        cls(0.125, weight_decay=0.25, weight_decay_on="kernels"),
        tf.keras.losses.MeanSquaredError(),
        jit_compile=False,
    )
    model.fit(x, y, batch_size=8, epochs=2, shuffle=False, verbose=0)
    # Keras 2 writes no slots of optimizers like those of TensorFlow Addons
    # into a `.keras` file, and Keras 3 goes on training from that alone.
    path = str(tmp_path / ("model.h5" if ADDONS else "model.keras"))
    model.save(path)
    loaded = tf.keras.models.load_model(path)
    for each in (model, loaded):
        each.fit(x, y, batch_size=8, epochs=2, shuffle=False, verbose=0)
    for actual, expected in zip(loaded.get_weights(), model.get_weights()):
        np.testing.assert_array_equal(actual, expected)


@pytest.mark.parametrize("cls", BOTH)
def test_base_classes(cls):
    if ADDONS:
        names = {"MomentumW": "SGDW", "AdamW": "AdamW"}
        base = getattr(ADDONS.optimizers, names[cls.__name__])
    else:
        names = {"MomentumW": "SGD", "AdamW": "Adam"}
        base = getattr(tf.keras.optimizers, names[cls.__name__])
    assert isinstance(cls(), base)


@pytest.mark.parametrize("cls", BOTH)
def test_weight_decay_reads_back(cls):
    optimizer = cls(weight_decay=0.25)
    train(optimizer, tf.Variable([1.0]), [[0.0]])
    assert float(optimizer.weight_decay) == 0.25


@pytest.mark.skipif(ADDONS is not None, reason="Keras's method")
@pytest.mark.parametrize("by", ["list", "name"])
@pytest.mark.parametrize("cls", BOTH)
def test_exclude_from_weight_decay(cls, by):
    v, w = tf.Variable([1.0], name="left"), tf.Variable([1.0], name="right")
    optimizer = cls(weight_decay=0.25)
    optimizer.exclude_from_weight_decay(
        **({"var_list": [v]} if by == "list" else {"var_names": ["lef"]})
    )
    optimizer.apply_gradients([(tf.zeros([1]), v), (tf.zeros([1]), w)])
    assert (v.numpy().item(), w.numpy().item()) == (1.0, 0.75)


@pytest.mark.skipif(ADDONS is None, reason="TensorFlow Addons' argument")
@pytest.mark.parametrize("replicas", [1, 2])
@pytest.mark.parametrize("cls", BOTH)
def test_exclude_from_weight_decay_of_addons(cls, replicas):
    strategy = tf.distribute.MirroredStrategy(["/cpu:0", "/cpu:1"][:replicas])
    with strategy.scope():
        v, w = tf.Variable([1.0], name="left"), tf.Variable([1.0], name="right")
        optimizer = cls(weight_decay=0.25, exclude_from_weight_decay=["lef"])

    @tf.function
    def step():
        strategy.run(
            lambda: optimizer.apply_gradients(
                [(v - v, v), (w - w, w)],
                experimental_aggregate_gradients=False,
            )
        )

    step()
    assert (v.numpy().item(), w.numpy().item()) == (1.0, 0.75)


@pytest.mark.skipif(ADDONS is None, reason="it is the case already")
def test_without_addons_it_builds_on_keras(monkeypatch):
    monkeypatch.setattr(compat, "tensorflow_addons", lambda: None)
    monkeypatch.setattr(compat, "register", lambda cls: cls)
    spec = importlib.util.spec_from_file_location(
        "without_addons", pathlib.Path(optimizers.__file__)
    )
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    w, gradients = weights_and_gradients()
    for cls, base, expected in (
        (
            module.MomentumW,
            tf.keras.optimizers.SGD,
            numpy_momentumw(w, gradients, [0.1] * 6, 0.9, 0.05),
        ),
        (
            module.AdamW,
            tf.keras.optimizers.Adam,
            numpy_adamw(w, gradients, [0.1] * 6, 0.05),
        ),
    ):
        optimizer = cls(0.1, weight_decay=0.05)
        assert isinstance(optimizer, base)
        actual = train(optimizer, tf.Variable(w, dtype=tf.float32), gradients)
        np.testing.assert_allclose(actual, expected, atol=ADAM_TOLERANCE)


@pytest.mark.parametrize("cls", BOTH)
@pytest.mark.parametrize(
    ("argument", "value", "message"),
    [
        (
            "weight_decay",
            -1,
            "`weight_decay` must be a finite number >= 0. "
            "Received: weight_decay=-1",
        ),
        (
            "weight_decay",
            float("inf"),
            "`weight_decay` must be a finite number >= 0. "
            "Received: weight_decay=inf",
        ),
        (
            "weight_decay",
            None,
            "`weight_decay` must be a finite number >= 0. "
            "Received: weight_decay=None",
        ),
        (
            "weight_decay_on",
            "biases",
            '`weight_decay_on` must be "all" or "kernels". '
            "Received: weight_decay_on='biases'",
        ),
        (
            "learning_rate",
            -0.5,
            "`learning_rate` must be a finite number >= 0. "
            "Received: learning_rate=-0.5",
        ),
        (
            "learning_rate",
            float("nan"),
            "`learning_rate` must be a finite number >= 0. "
            "Received: learning_rate=nan",
        ),
    ],
)
def test_errors(cls, argument, value, message):
    with pytest.raises(ValueError, match=r"^`") as error:
        cls(**{argument: value})
    assert str(error.value) == message


@pytest.mark.parametrize("cls", [optimizers.MomentumW, optimizers.AdamW])
@pytest.mark.parametrize("rate", ["a", None, [0.1]])
def test_what_is_no_learning_rate(cls, rate):
    with pytest.raises(TypeError, match=r"^`learning_rate` must be a n"):
        cls(learning_rate=rate)


@pytest.mark.parametrize(
    ("cls", "argument"),
    [
        (optimizers.MomentumW, "nesterov"),
        (optimizers.AdamW, "amsgrad"),
        (optimizers.MomentumW, "scale_decay_by_learning_rate"),
        (optimizers.AdamW, "scale_decay_by_learning_rate"),
    ],
)
def test_what_is_neither_true_nor_false(cls, argument):
    with pytest.raises(TypeError, match=f"`{argument}` must be True or False"):
        cls(**{argument: "no"})


@pytest.mark.parametrize("momentum", [-0.1, 1.1])
def test_momentum_must_be_between_0_and_1(momentum):
    with pytest.raises(ValueError, match=r"^`momentum` must be") as error:
        optimizers.MomentumW(momentum=momentum)
    assert str(error.value) == (
        f"`momentum` must be between 0 and 1. Received: momentum={momentum}"
    )


@pytest.mark.parametrize("momentum", [0, 1])
def test_integers_will_do(momentum):
    optimizer = optimizers.MomentumW(1, momentum, 0)
    w = train(optimizer, tf.Variable([2.0]), [[0.5], [0.5]])
    assert w.item() == {0: 1.0, 1: 0.5}[momentum]


@pytest.mark.parametrize(
    ("argument", "value", "wanted"),
    [
        ("beta_1", 1.0, ">= 0 and < 1"),
        ("beta_1", -0.1, ">= 0 and < 1"),
        ("beta_2", 1.0, ">= 0 and < 1"),
        ("beta_2", -0.1, ">= 0 and < 1"),
        ("epsilon", 0.0, "a finite number > 0"),
    ],
)
def test_adam_coefficients_out_of_range(argument, value, wanted):
    with pytest.raises(ValueError, match=f"^`{argument}` must be") as error:
        optimizers.AdamW(**{argument: value})
    assert str(error.value) == (
        f"`{argument}` must be {wanted}. Received: {argument}={value}"
    )
