"""`SWACallback` in every kind of model, precision and way of executing it."""

import itertools

import numpy as np
import pytest
import tensorflow as tf

import swa_tf
from tests.fitting import exhaustive, quick_to_trace, slow  # noqa: F401

layers = tf.keras.layers

FEATURES, HIDDEN = 4, 5
BATCH, STEPS, EPOCHS = 4, 4, 3  # steps of an epoch
RATE = 0.05


def data():
    rng = np.random.default_rng(0)
    x = rng.normal(1.0, 2.0, [BATCH * STEPS, FEATURES])
    y = rng.normal(size=[BATCH * STEPS, 1])
    return x.astype(np.float32), y.astype(np.float32)


def refit_data():
    """The same in other batches, which pools to the same moments."""
    return tf.data.Dataset.from_tensor_slices(data()).batch(6)


# --- Kinds of models ---------------------------------------------------------


def stages(norm):
    """A linear layer, batch normalization of its outputs, a linear layer."""
    return [
        layers.Dense(HIDDEN, name="first"),
        norm(name="norm"),
        layers.Dense(1, name="last", dtype="float32"),
    ]


def sequential(norm):
    parts = stages(norm)
    return tf.keras.Sequential(parts), parts


def functional(norm):
    parts = stages(norm)
    inputs = tf.keras.Input([FEATURES])
    outputs = inputs
    for part in parts:
        outputs = part(outputs)
    return tf.keras.Model(inputs, outputs), parts


class Subclassed(tf.keras.Model):
    def __init__(self, norm):
        super().__init__()
        self.first, self.norm, self.last = stages(norm)

    def call(self, inputs, training=None):
        x = self.norm(self.first(inputs), training=training)
        return self.last(x)


def subclassed(norm):
    model = Subclassed(norm)
    return model, [model.first, model.norm, model.last]


class InList(layers.Layer):
    def __init__(self, members):
        super().__init__()
        self.members = list(members)

    def call(self, inputs, training=None):
        norm, last = self.members
        return last(norm(inputs, training=training))


def nested(norm):
    """A model in a model, and layers in the list of another layer."""
    first, *rest = stages(norm)
    inputs = tf.keras.Input([FEATURES])
    outputs = InList(rest)(tf.keras.Sequential([first])(inputs))
    return tf.keras.Model(inputs, outputs), [first, *rest]


# --- The matrix --------------------------------------------------------------

KINDS = [sequential, functional, subclassed, nested]
EXECUTIONS = {
    "compiled": {"jit_compile": False},
    "jit_compile": {"jit_compile": True},
    "run_eagerly": {"run_eagerly": True},
    "steps_per_execution": {"jit_compile": False, "steps_per_execution": 2},
    "jit_compile, steps_per_execution": {
        "jit_compile": True,
        "steps_per_execution": 2,
    },
}
PAIRED = list(EXECUTIONS)[:4]
POLICIES = ["float32", "mixed_float16", "mixed_bfloat16"]
NORMS = [layers.BatchNormalization, swa_tf.MovingFreeBatchNormalization]
UNITS = ["epoch", "step"]


def every_pair():
    """16 of the combinations: any two values of two axes occur together.

    Kinds and executions in full, a and b; beside them a + b and a + 2 b in
    the field of four elements.
    """
    twice = [0, 2, 3, 1]
    for kind, execution in itertools.product(range(4), repeat=2):
        policy = (kind ^ execution) % len(POLICIES)
        norm, unit = divmod(kind ^ twice[execution], 2)
        yield (
            POLICIES[policy],
            KINDS[kind],
            PAIRED[execution],
            NORMS[norm],
            UNITS[unit],
        )


# Kinds and executions: each occurs once among the quick ones, and once among
# the slow ones. The other half is exhaustive.
QUICK = [(0, 3), (1, 2), (2, 1), (3, 0)]
SLOW = [(0, 2), (1, 0), (2, 3), (3, 1)]


def in_three_phases():
    for i, case in enumerate(every_pair()):
        kinds = divmod(i, 4)
        marked = slow if kinds in SLOW else exhaustive
        yield case if kinds in QUICK else marked(*case)


ALL_AT_ONCE = (
    "mixed_float16",
    nested,
    "jit_compile, steps_per_execution",
    swa_tf.MovingFreeBatchNormalization,
    "step",
)


def test_every_pair_is_among_them():
    axes = [POLICIES, KINDS, PAIRED, NORMS, UNITS]
    cases = list(every_pair())
    for (i, first), (j, second) in itertools.combinations(enumerate(axes), 2):
        pairs = {(case[i], case[j]) for case in cases}
        assert pairs == set(itertools.product(first, second))


class Recorder(tf.keras.callbacks.Callback):
    """The trained weights after every step that Keras tells of."""

    def __init__(self):
        super().__init__()
        self.after_step = {}

    def on_epoch_begin(self, epoch, logs=None):
        self._steps_before = epoch * STEPS

    def on_train_batch_end(self, batch, logs=None):
        weights = [v.numpy() for v in self.model.trainable_variables]
        self.after_step[self._steps_before + batch] = weights


# Averages of the steps 5, 7, 9 and 11, counted from 0: also with two steps in
# one execution, Keras tells of each of them.
WHEN = {
    "epoch": {"start_epoch": 1},
    "step": {"start_step": 5, "average_period": 2},
}
AVERAGED = {"epoch": [7, 11], "step": [5, 7, 9, 11]}


def names(value):
    return getattr(value, "__name__", value)


def fit(model, callbacks, **kwargs):
    x, y = data()
    return model.fit(
        x,
        y,
        batch_size=BATCH,
        epochs=EPOCHS,
        shuffle=False,
        verbose=0,
        callbacks=callbacks,
        **kwargs,
    ).history


def swa_callback(unit):
    return swa_tf.SWACallback(refit_data=refit_data(), verbose=0, **WHEN[unit])


@pytest.mark.parametrize(
    ("policy", "make", "execution", "norm", "unit"),
    [*in_three_phases(), slow(*ALL_AT_ONCE)],
    ids=names,
)
def test_matrix(policy, make, execution, norm, unit):
    tf.keras.mixed_precision.set_global_policy(policy)
    x, y = data()
    model, parts = make(norm)
    model.compile(tf.keras.optimizers.SGD(RATE), "mse", **EXECUTIONS[execution])
    scales = isinstance(
        model.optimizer, tf.keras.mixed_precision.LossScaleOptimizer
    )
    assert scales == (policy == "mixed_float16")
    recorder = Recorder()
    history = fit(model, [recorder, swa_callback(unit)], validation_data=(x, y))
    check_averages(model, [recorder.after_step[i] for i in AVERAGED[unit]])
    check_statistics(parts, x)
    check_outputs(model, parts, x, y, history)


def check_averages(model, recorded):
    """Each weight of the model is the mean of those recorded."""
    for variable, *values in zip(model.trainable_variables, *recorded):
        values = np.asarray(values, np.float64)
        # An update rounds (weight - average) / n, of at most the largest
        # weight, three times by half a unit in the last place, and adds it
        # with an error of a whole one: 2.5 units, here 3.
        largest = np.abs(values).max()
        tolerance = 3 * len(values) * np.finfo(np.float32).eps * largest
        np.testing.assert_allclose(
            variable.numpy(), values.mean(axis=0), rtol=0, atol=tolerance
        )
        assert values.std(axis=0).max() > 100 * tolerance


def check_statistics(parts, x):
    """The statistics are the moments of the layer's inputs, in numpy."""
    first, norm, _ = parts
    kernel, bias = (v.numpy().astype(np.float64) for v in first.weights)
    inputs = x @ kernel + bias
    # Inputs, kernel and outputs rounded to the dtype of computation.
    largest = np.abs(x).max(axis=0) @ np.abs(kernel)
    unit = 3 * resolution(first) * largest
    mean, variance = statistics(norm)
    np.testing.assert_array_less(np.abs(mean - inputs.mean(axis=0)), unit)
    np.testing.assert_array_less(
        np.abs(variance - inputs.var(axis=0)),
        2 * unit * inputs.std(axis=0) + unit**2,
    )
    if isinstance(norm, swa_tf.MovingFreeBatchNormalization):
        assert int(norm.n_updates) == 3
        assert np.abs(norm.moving_mean.numpy() - mean).max() > 0.1


def resolution(layer):
    dtype = tf.as_dtype(layer.compute_dtype)
    return 2.0**-7 if dtype == tf.bfloat16 else np.finfo(dtype.name).eps


def statistics(norm):
    if isinstance(norm, swa_tf.MovingFreeBatchNormalization):
        return norm.mean.numpy(), norm.variance.numpy()
    return norm.moving_mean.numpy(), norm.moving_variance.numpy()


def check_outputs(model, parts, x, y, history):
    """The last validation was of the model that is left."""
    first, norm, last = (
        [v.numpy().astype(np.float64) for v in part.weights] for part in parts
    )
    gamma, beta, mean, variance = norm[:4]
    x = x @ first[0] + first[1]
    x = gamma * (x - mean) / np.sqrt(variance + 1e-3) + beta
    expected = x @ last[0] + last[1]
    rtol = 20 * resolution(parts[0])
    scale = np.abs(expected).max()
    np.testing.assert_allclose(
        model.predict(data()[0], verbose=0), expected, rtol=0, atol=rtol * scale
    )
    np.testing.assert_allclose(
        history["swa_val_loss"][-1], np.mean((expected - y) ** 2), rtol=rtol
    )


@pytest.mark.parametrize("jit_compile", [False, exhaustive(True)])
def test_steps_in_the_middle_of_an_execution(jit_compile):
    recorders = []
    for steps_per_execution in (1, 2):
        tf.keras.utils.set_random_seed(1)
        model, _ = functional(layers.BatchNormalization)
        model.compile(
            tf.keras.optimizers.SGD(RATE),
            "mse",
            jit_compile=jit_compile,
            steps_per_execution=steps_per_execution,
        )
        recorder = Recorder()
        callbacks = [recorder]
        if steps_per_execution == 2:
            callbacks.append(
                swa_tf.SWACallback(
                    start_step=2,
                    average_period=3,
                    refit_data=refit_data(),
                    verbose=0,
                )
            )
        fit(model, callbacks)
        recorders.append(recorder)
    every_step, every_other = (each.after_step for each in recorders)
    assert sorted(every_step) == list(range(EPOCHS * STEPS))
    assert sorted(every_other) == list(range(1, EPOCHS * STEPS, 2))
    # Two compilations may round otherwise, and training carries it on: 1e-5.
    for step, weights in every_other.items():
        for weight, expected in zip(weights, every_step[step]):
            np.testing.assert_allclose(weight, expected, rtol=1e-5, atol=1e-6)
    recorded = [every_step[i] for i in (2, 5, 8, 11)]
    for variable, *values in zip(model.trainable_variables, *recorded):
        mean = np.mean(values, axis=0, dtype=np.float64)
        np.testing.assert_allclose(variable, mean, rtol=1e-5, atol=1e-6)


# --- Optimizers --------------------------------------------------------------


@pytest.mark.usefixtures("quick_to_trace")
@pytest.mark.parametrize(
    ("policy", "cls"),
    [
        ("float32", tf.keras.optimizers.SGD),
        ("mixed_float16", swa_tf.optimizers.MomentumW),
        ("mixed_bfloat16", swa_tf.optimizers.AdamW),
    ],
)
@pytest.mark.parametrize("unit", ["step", exhaustive("epoch")])
def test_optimizers_with_a_schedule(policy, cls, unit):
    tf.keras.mixed_precision.set_global_policy(policy)
    model, parts = functional(layers.BatchNormalization)
    rates = swa_tf.schedules.LinearRamp(RATE, RATE / 10, 2, 8)
    model.compile(cls(rates), "mse", jit_compile=False)  # quicker to trace
    recorder = Recorder()
    fit(model, [recorder, swa_callback(unit)])
    check_averages(model, [recorder.after_step[i] for i in AVERAGED[unit]])
    check_statistics(parts, data()[0])


class TwoOptimizers(Subclassed):
    """One for the body and one for the head, as in many a GAN."""

    def compile(self, optimizers, **kwargs):
        super().compile(**kwargs)
        self.optimizers = optimizers

    def train_step(self, batch):
        x, y = batch
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean((self(x, training=True) - y) ** 2)
        body = [*self.first.trainable_variables, *self.norm.trainable_variables]
        head = self.last.trainable_variables
        gradients = tape.gradient(loss, [*body, *head])
        for optimizer, variables in zip(self.optimizers, [body, head]):
            n = len(variables)
            optimizer.apply_gradients(zip(gradients[:n], variables))
            gradients = gradients[n:]
        return {"loss": loss}


@pytest.mark.usefixtures("quick_to_trace")
@pytest.mark.parametrize("unit", ["step", exhaustive("epoch")])
def test_two_optimizers(unit):
    model = TwoOptimizers(swa_tf.MovingFreeBatchNormalization)
    model(data()[0])
    optimizers = [
        tf.keras.optimizers.SGD(RATE, momentum=0.5),
        tf.keras.optimizers.Adam(RATE),
    ]
    model.compile(optimizers, jit_compile=False)
    recorder, callback = Recorder(), swa_callback(unit)
    fit(model, [recorder, callback])
    check_averages(model, [recorder.after_step[i] for i in AVERAGED[unit]])
    check_statistics([model.first, model.norm, model.last], data()[0])
    for optimizer in optimizers:
        assert int(optimizer.iterations) == EPOCHS * STEPS
        slots = optimizer.variables
        assert all(callback.averages.average(v) is None for v in slots)


# --- Frozen layers -----------------------------------------------------------


def bits(layer):
    return [v.numpy().tobytes() for v in layer.weights]


@pytest.mark.usefixtures("quick_to_trace")
@pytest.mark.parametrize(
    ("make", "norm", "unit"),
    [
        (functional, NORMS[0], "step"),
        (nested, NORMS[1], "epoch"),
        exhaustive(sequential, NORMS[0], "epoch"),
        exhaustive(subclassed, NORMS[1], "step"),
    ],
    ids=names,
)
def test_frozen_layers_and_later_unfrozen(make, norm, unit):
    x, _ = data()
    model, parts = make(norm)
    model(x)
    frozen = parts[:2]
    callback = swa_callback(unit)
    for layer in frozen:
        layer.trainable = False
    before = [bits(layer) for layer in frozen]
    model.compile(tf.keras.optimizers.SGD(RATE), "mse", jit_compile=False)
    recorder = Recorder()
    fit(model, [recorder, callback])
    check_averages(model, [recorder.after_step[i] for i in AVERAGED[unit]])
    assert len(callback.averages.variables) == len(
        [*parts[2].weights, "n_models", "n_calls", "swapped"]
    )
    assert callback.averages.average(parts[0].kernel) is None
    assert [bits(layer) for layer in frozen] == before

    for layer in frozen:
        layer.trainable = True
    model.compile(tf.keras.optimizers.SGD(RATE), "mse", jit_compile=False)
    recorder = Recorder()
    fit(model, [recorder, callback])
    assert callback.averages.average(parts[0].kernel) is not None
    assert int(callback.averages.n_models) == len(AVERAGED[unit])
    check_averages(model, [recorder.after_step[i] for i in AVERAGED[unit]])
    check_statistics(parts, x)
