"""A live averaged model: its numbers, its statistics, and its files."""

import copy
import pickle

import numpy as np
import pytest
import tensorflow as tf

import swa_tf
from swa_tf.support import compat, model_parts
from tests.exponential import ema_of
from tests.fitting import covering
from tests.live import (
    EMA,
    SWA,
    X,
    linear,
    make,
    mirrored,
    outputs,
    some_weights,
    values_of,
)

layers = tf.keras.layers


# --- Numbers ------------------------------------------------------------------


def eagerly(model, averaged):
    def step(weights):
        for variable, value in zip(model.weights, weights):
            variable.assign(value)
        averaged.update()
        return averaged(X)

    return step


def in_a_function(model, averaged, **kwargs):
    return tf.function(eagerly(model, averaged), **kwargs)


def compiled(model, averaged):
    return in_a_function(model, averaged, jit_compile=True)


def on_replicas(model, averaged):
    """`update` in replica context; the outputs of the last replica."""
    strategy = tf.distribute.get_strategy()
    step = tf.function(
        lambda weights: strategy.run(eagerly(model, averaged), [weights])
    )
    return lambda weights: strategy.experimental_local_results(step(weights))[
        -1
    ]


def across_replicas(model, averaged):
    """`update` in cross-replica context; the first replica's outputs."""

    def step(weights):
        for variable, value in zip(model.weights, weights):
            variable.assign(value)
        averaged.update()
        return averaged(X)

    return tf.function(step)


CHOICES = ["averaged", "copied", "refitted"]
MODES = [eagerly, in_a_function, compiled, on_replicas, across_replicas]


@pytest.mark.parametrize(("batch_norm", "mode"), covering(1, CHOICES, MODES))
def test_outputs_after_each_update(batch_norm, mode):
    distributed = mode in (on_replicas, across_replicas)
    strategy = mirrored() if distributed else tf.distribute.get_strategy()
    with strategy.scope():
        model, ema = make(), EMA()
        averaged = swa_tf.AveragedModel(model, ema, batch_norm=batch_norm)
        start = values_of(model)
        step = mode(model, averaged)
        weights = some_weights(4)
        for n in range(len(weights)):
            found = step([tf.constant(value) for value in weights[n]])
            seen = list(zip(*weights[: n + 1]))
            expected = [ema_of(v, [0.75] * (n + 1), v[0]) for v in seen]
            if batch_norm == "copied":
                expected[4:] = weights[n][4:]
            elif batch_norm == "refitted":
                expected[4:] = start[4:]
            # Some ten float32 roundings of numbers below 20.
            np.testing.assert_allclose(
                found, outputs(expected, X), 1e-5, 20 * 2.0**-20
            )
    assert int(ema.n_models) == 4
    assert int(averaged.average.n_models) == 4


def test_before_the_first_update_it_is_the_model():
    model = make()
    averaged = swa_tf.AveragedModel(model, SWA())
    weights = some_weights(1)[0]
    np.testing.assert_array_equal(averaged(X), model(X))
    model.set_weights(weights)
    assert not np.allclose(averaged(X), model(X))
    averaged.update()
    np.testing.assert_array_equal(averaged(X), model(X))


def test_a_schedule_says_which_updates_average():
    """Of weights 1 to 4 the mean of 2 and 4; the statistics are copied."""
    model = make()
    when = swa_tf.AveragingSchedule(start=1, period=2)
    averaged = swa_tf.AveragedModel(model, SWA(when=when), batch_norm="copied")
    for value in (1.0, 2.0, 3.0, 4.0):
        model.set_weights([np.full(v.shape, value) for v in model.weights])
        averaged.update()
    found = [float(tf.reduce_mean(v)) for v in averaged.model.weights]
    assert found == [3.0] * 4 + [4.0] * 2


def train(averaged, model, optimizer, x, y):
    """One step of a student beside its teacher."""
    with tf.GradientTape() as tape:
        taught = averaged(x, training=True)
        outputs = model(x, training=True)
        loss = tf.reduce_mean((outputs - taught) ** 2 + (outputs - y) ** 2)
    gradients = tape.gradient(loss, model.trainable_variables)
    optimizer.apply_gradients(zip(gradients, model.trainable_variables))
    averaged.update()
    return tape.watched_variables()


@pytest.mark.parametrize("mode", ["eager", "function", "xla"])
def test_a_teacher_in_the_training_step(mode):
    """Student and teacher of least squares, against both in float64."""
    model, y = linear(), X[:, :1]
    averaged = swa_tf.AveragedModel(model, EMA())
    optimizer = tf.keras.optimizers.SGD(0.1)
    optimizer.build(model.trainable_variables)
    n_slots = len(compat.optimizer_variables(optimizer))
    watched = []

    def step():
        watched.extend(train(averaged, model, optimizer, X, y))

    if mode != "eager":
        step = tf.function(step, jit_compile=mode == "xla")
    x = np.float64(X)
    student = teacher = np.float64(model.get_weights()[0])
    for n in range(5):
        step()
        errors = 2 * x @ student - x @ teacher - y
        student = student - 0.1 * 2 * x.T @ errors / len(x)
        teacher = teacher + (0.25 if n else 1.0) * (student - teacher)
    np.testing.assert_allclose(model.get_weights()[0], student, 1e-5, 1e-6)
    np.testing.assert_allclose(averaged.model.get_weights()[0], teacher, 1e-5)
    kernel = compat.tf_variable(model.weights[0])
    assert {v.ref() for v in watched} == {kernel.ref()}
    assert len(compat.optimizer_variables(optimizer)) == n_slots


def test_a_teacher_in_fit():
    """In the `train_step` of a model that holds both, as users write it."""

    class WithTeacher(tf.keras.Model):
        def __init__(self):
            super().__init__()
            self.student = linear()
            self.teacher = swa_tf.AveragedModel(self.student, EMA())

        def call(self, x, training=None):
            return self.student(x, training=training)

        def train_step(self, data):
            train(self.teacher, self.student, self.optimizer, *data)
            return {"n": self.teacher.average.n_models.read_value()}

    model = WithTeacher()
    model.compile(tf.keras.optimizers.SGD(0.1))
    model.fit(X, X[:, :1], batch_size=2, epochs=2, verbose=0)
    assert len(model.trainable_variables) == 1
    assert int(model.teacher.average.n_models) == 6
    student, teacher = model.student, model.teacher.model
    assert not np.allclose(student.get_weights()[0], teacher.get_weights()[0])


# --- Batch norm ---------------------------------------------------------------


def test_refit():
    model = make()
    averaged = swa_tf.AveragedModel(model, SWA(), batch_norm="refitted")
    for weights in some_weights(2):
        model.set_weights(weights)
        averaged.update()
    before = values_of(averaged.model)
    for _ in range(2):
        averaged.refit([X[:4], X[4:]])
    z = np.float64(X) @ before[0] + before[1]
    after = values_of(averaged.model)
    np.testing.assert_allclose(after[4], z.mean(0), rtol=1e-5)
    np.testing.assert_allclose(after[5], z.var(0), rtol=1e-5)
    for old, new in zip(before[:4], after[:4]):
        np.testing.assert_array_equal(old, new)
    averaged.update()  # which leaves them alone
    np.testing.assert_array_equal(values_of(averaged.model)[4:], after[4:])
    assert list(averaged.trainable_variables) == []
    assert not averaged.model.layers[-1].trainable


def test_a_refit_leaves_alone_what_is_frozen_in_the_model():
    model = tf.keras.Sequential([layers.Input([3])])
    for _ in range(2):
        model.add(layers.BatchNormalization())
    averaged = swa_tf.AveragedModel(model, SWA(), batch_norm="refitted")
    first, second = model.layers
    first.trainable = False
    averaged.refit([X])
    first, second = averaged.model.layers
    np.testing.assert_array_equal(first.moving_mean, np.zeros([3]))
    assert np.all(np.asarray(second.moving_mean) != 0.0)
    model.layers[0].trainable, model.layers[1].trainable = True, False
    second.moving_mean.assign(tf.zeros([3]))
    averaged.refit([X])
    np.testing.assert_array_equal(second.moving_mean, np.zeros([3]))
    assert np.all(np.asarray(first.moving_mean) != 0.0)


def test_a_refit_that_fails_leaves_it_frozen():
    averaged = swa_tf.AveragedModel(make(), SWA(), batch_norm="refitted")
    with pytest.raises(ValueError, match="`dataset` must"):
        averaged.refit([])
    assert not averaged.model.layers[-1].trainable


def test_a_refit_on_replicas():
    with mirrored().scope():
        model = make()
    averaged = swa_tf.AveragedModel(model, SWA(), batch_norm="refitted")
    averaged.update()
    averaged.refit([X])
    kernel, bias = values_of(model)[:2]
    mean = (np.float64(X) @ kernel + bias).mean(0)
    moving_mean = compat.tf_variable(averaged.model.layers[-1].moving_mean)
    for component in moving_mean.values:
        np.testing.assert_allclose(component, mean, 1e-5, 1e-6)


# --- Saved and restored -------------------------------------------------------


class Training:
    """A student beside its teacher, on one replica or two."""

    def __init__(self, batch_norm, replicas):
        one = tf.distribute.get_strategy()
        self._strategy = mirrored(replicas) if replicas > 1 else one
        self._batch_norm = batch_norm
        with self._strategy.scope():
            self._model, self._ema = make(), EMA()
            self._optimizer = tf.keras.optimizers.SGD(0.05, momentum=0.9)
            self._optimizer.build(self._model.trainable_variables)
        self.checkpoint = tf.train.Checkpoint(
            model=self._model, optimizer=self._optimizer, ema=self._ema
        )
        self._step = tf.function(
            lambda x: self._strategy.run(self._on_replica, [x])
        )

    def begin(self):
        self.averaged = swa_tf.AveragedModel(
            self._model, self._ema, batch_norm=self._batch_norm
        )
        self.checkpoint.averaged = self.averaged

    def run(self, steps):
        for i in steps:
            self._step(tf.constant(X[i : i + 2]))

    def _on_replica(self, x):
        train(self.averaged, self._model, self._optimizer, x, x[:, :1])

    def state(self):
        weights = model_parts.weights(self.averaged.model)
        return [
            component.numpy()
            for variable in (*self.averaged.variables, *weights)
            for component in getattr(variable, "values", [variable])
        ]


@pytest.mark.parametrize(
    ("batch_norm", "replicas", "begins"),
    covering(1, CHOICES, [1, 2], ["before", "after"]),
)
def test_training_goes_on_bit_for_bit(tmp_path, batch_norm, replicas, begins):
    """The averaged model is made before the restore, or after it."""
    training = Training(batch_norm, replicas)
    training.begin()
    training.run([0, 1])
    if batch_norm == "refitted":
        training.averaged.refit([X])
    path = training.checkpoint.save(str(tmp_path / "checkpoint"))
    training.run([2, 3])
    expected = training.state()
    training = Training(batch_norm, replicas)
    if begins == "before":
        training.begin()
    status = training.checkpoint.restore(path)
    if begins == "after":
        training.begin()
    status.assert_existing_objects_matched()
    training.run([2, 3])
    for found, value in zip(training.state(), expected):
        np.testing.assert_array_equal(found, value)


def test_an_average_is_saved_once(tmp_path):
    averaged = swa_tf.AveragedModel(make(), SWA())
    path = tf.train.Checkpoint(averaged=averaged).save(str(tmp_path / "c"))
    shapes = [shape for _, shape in tf.train.list_variables(path)]
    assert shapes.count([3, 2]) == 1
    assert shapes.count([2]) == 5


def test_the_averaged_model_is_saved_alone(tmp_path):
    averaged = swa_tf.AveragedModel(make(), SWA())
    averaged.update()
    path = str(tmp_path / "averaged.keras")
    averaged.model.save(path)
    loaded = tf.keras.models.load_model(path)
    np.testing.assert_array_equal(loaded(X), averaged(X))
    for layer in loaded.layers:
        layer.trainable = True
    assert len(loaded.trainable_variables) == 4


def test_swapped_into_the_model_they_are_the_same():
    model, swa = make(), SWA()
    averaged = swa_tf.AveragedModel(model, swa)
    for weights in some_weights(3):
        model.set_weights(weights)
        averaged.update()
    with swa_tf.averaged_weights(swa, model):
        np.testing.assert_array_equal(model(X), averaged(X))
        with pytest.raises(RuntimeError, match="are swapped in"):
            averaged.update()
    np.testing.assert_allclose(model(X), outputs(weights, X), 1e-5, 1e-5)


# --- Mistakes -----------------------------------------------------------------


def of_others(make_average):
    average = make_average()
    average.apply(make().trainable_variables)
    return average


def a_part():
    model, ema = make(), EMA()
    ema.apply(model.trainable_variables)
    return {"model": model, "average": ema}


@pytest.mark.parametrize(
    ("arguments", "error", "match"),
    [
        (lambda: {"model": 3}, TypeError, "`model` must be a model or layer"),
        (lambda: {"model": make}, TypeError, "`model` must be a model"),
        (
            lambda: {"model": tf.keras.Sequential([layers.Dense(1)])},
            ValueError,
            "`model` must be built: call it once",
        ),
        (
            lambda: {
                "model": tf.keras.Sequential([layers.Input([3]), layers.ReLU()])
            },
            ValueError,
            "`model` must be one with trainable variables",
        ),
        (lambda: {"average": 0.9}, TypeError, "`average` must be a `WeightAv"),
        (
            lambda: {"average": of_others(SWA)},
            ValueError,
            "`average` must be new, or of the variables",
        ),
        (a_part, ValueError, r"`average` must be new, .* the statistics \(6\)"),
        (lambda: {"batch_norm": "no"}, ValueError, '`batch_norm` must be "av'),
        (lambda: {"build": 3}, TypeError, "`build` must be a function"),
        (lambda: {"build": lambda: 3}, TypeError, r"`build\(\)` must be a mod"),
        (
            lambda: {"build": lambda: tf.keras.Sequential([layers.Dense(1)])},
            ValueError,
            r"`build\(\)` must be built",
        ),
        (
            lambda: {"build": linear},
            ValueError,
            r"`build\(\)` must be a model with the variables of `model`: .*",
        ),
        (
            lambda: {"model": (model := make()), "build": lambda: model},
            ValueError,
            r"`build\(\)` must be a model whose variables are made when",
        ),
    ],
)
def test_bad_arguments(arguments, error, match):
    given = {"model": make(), "average": SWA(), **arguments()}
    average = given["average"]
    before = len(getattr(average, "averaged", ()))
    with pytest.raises(error, match=match):
        swa_tf.AveragedModel(**given)
    assert len(getattr(average, "averaged", ())) == before


def test_a_refit_of_statistics_that_are_not_refitted():
    averaged = swa_tf.AveragedModel(make(), SWA())
    before = values_of(averaged.model)
    with pytest.raises(ValueError, match='batch_norm="refitted"'):
        averaged.refit([X])
    for old, new in zip(before, values_of(averaged.model)):
        np.testing.assert_array_equal(old, new)


def test_in_a_function():
    model = make()
    with pytest.raises(RuntimeError, match="`AveragedModel` works in eager"):
        tf.function(lambda: swa_tf.AveragedModel(model, SWA()))()


@pytest.mark.parametrize("copies", [copy.copy, copy.deepcopy, pickle.dumps])
def test_copies(copies):
    averaged = swa_tf.AveragedModel(make(), SWA())
    with pytest.raises(TypeError, match="`AveragedModel` can be neither"):
        copies(averaged)
