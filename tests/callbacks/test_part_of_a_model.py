"""`SWACallback` for a part of a model, such as the generator of a GAN."""

import contextlib
import copy

import numpy as np
import pytest
import tensorflow as tf

import swa_tf
from tests import fitting
from tests.fitting import assert_same, exhaustive

layers = tf.keras.layers
TWICE = tf.Variable(1.0)
NOISE = np.random.default_rng(0).normal(size=[8, 2]).astype(np.float32)


class Gan(tf.keras.Model):
    """Two parts that a `train_step` trains, and no `call`."""

    def __init__(self, norm=False):
        super().__init__()
        norms = [layers.BatchNormalization()] if norm else []
        self.generator = tf.keras.Sequential(
            [tf.keras.Input([2]), layers.Dense(2), *norms]
        )
        self.critic = tf.keras.Sequential(
            [tf.keras.Input([2]), layers.Dense(1)]
        )
        self.n_steps = 0

    def train_step(self, data):
        """Adds 1 to every weight, so that each value is known."""
        for variable in self.generator.trainable_variables:
            variable.assign_add(tf.ones_like(variable))
        for variable in self.critic.trainable_variables:
            variable.assign_add(tf.ones_like(variable))
        self.n_steps += 1
        return {"loss": tf.constant(0.0)}


def train(callback, epochs=3, norm=False):
    tf.keras.utils.set_random_seed(0)
    gan = Gan(norm)
    gan.compile(run_eagerly=True)
    before = [v.numpy() for v in gan.trainable_variables]
    gan.fit(NOISE, epochs=epochs, verbose=0, callbacks=[callback])
    after = [v.numpy() for v in gan.trainable_variables]
    return gan, [a - b for a, b in zip(after, before)]


def generators(gan):
    return gan.generator.trainable_variables


@pytest.mark.parametrize("unit", ["epoch", "step"])
@pytest.mark.parametrize(
    ("make", "grown"),
    [
        # 1, 2 and 3 steps on; and 0.5 * (0.5 * 1 + 0.5 * 2) + 0.5 * 3
        (swa_tf.StochasticWeightAveraging, 2.0),
        (lambda: swa_tf.ExponentialMovingAverage(0.5), 2.25),
    ],
)
def test_only_the_generator_is_averaged(make, grown, unit):
    swa = swa_tf.SWACallback(
        0, unit=unit, averages=make(), var_list=generators, verbose=0
    )
    gan, growths = train(swa)
    for growth in growths[:2]:
        np.testing.assert_allclose(growth, grown, atol=1e-6)
    for growth in growths[2:]:
        np.testing.assert_allclose(growth, 3.0, atol=1e-6)
    assert swa.averages.average(gan.critic.layers[-1].kernel) is None


def test_variables_of_an_iterable():
    """Which is gone through once, for every `fit`."""
    model = tf.keras.Sequential(
        [tf.keras.Input([2]), layers.Dense(2), layers.Dense(2)]
    )
    model.compile("sgd", "mse", run_eagerly=True)
    last = model.layers[-1]
    swa = swa_tf.SWACallback(0, var_list=iter(last.weights), verbose=0)
    swa = copy.deepcopy(swa)  # a copy refers to the same variables
    for _ in range(2):
        model.fit(NOISE, NOISE, verbose=0, callbacks=[swa])
    np.testing.assert_array_equal(
        last.kernel, swa.averages.average(last.kernel)
    )
    assert swa.averages.average(model.layers[0].kernel) is None


@pytest.mark.parametrize(
    ("var_list", "error", "match"),
    [
        ([tf.Variable(1.0)], ValueError, "hold variables of the model"),
        ([TWICE, TWICE], ValueError, "hold variables once, not twice"),
        ([tf.Variable(1)], TypeError, "hold variables of dtype float16"),
        (lambda model: [tf.Variable(1.0)], ValueError, "hold variables of the"),
        ([], ValueError, "be a list of at least one variable"),
        (3, TypeError, "be a list of variables"),
        (lambda model: None, TypeError, "be a list of variables"),
    ],
)
def test_variables_of_another_model_or_none(var_list, error, match):
    model = tf.keras.Sequential([tf.keras.Input([2]), layers.Dense(2)])
    model.compile("sgd", "mse", run_eagerly=True)
    before = model.get_weights()
    with pytest.raises(error, match=f"`var_list` must {match}"):
        swa = swa_tf.SWACallback(0, var_list=var_list, verbose=0)
        assert var_list not in ([], 3), "these are known not to do before"
        model.fit(NOISE, NOISE, verbose=0, callbacks=[swa])
    assert_same(model.get_weights(), before)


def test_a_restored_average_of_a_part(tmp_path):
    """In manual mode the variables are not known before."""
    tf.keras.utils.set_random_seed(0)
    model = tf.keras.Sequential(
        [tf.keras.Input([2]), layers.Dense(2), layers.Dense(2)]
    )
    model.compile("sgd", "mse", run_eagerly=True)
    part = model.layers[-1].trainable_variables

    class StopsError(Exception):
        pass

    def run(stop):
        swa = swa_tf.StochasticWeightAveraging()
        seen = []

        def apply(epoch, logs):
            swa.apply(part)
            seen.append([v.numpy() for v in part])
            if stop and epoch == 1:
                raise StopsError

        callbacks = [
            swa_tf.SWACallback(averages=swa, var_list=part, verbose=0),
            tf.keras.callbacks.BackupAndRestore(
                str(tmp_path / "backup"), delete_checkpoint=False
            ),
            tf.keras.callbacks.LambdaCallback(on_epoch_end=apply),
        ]
        model.fit(NOISE, NOISE, epochs=3, verbose=0, callbacks=callbacks)
        return swa

    with pytest.raises(StopsError):
        run(stop=True)
    swa = run(stop=False)
    # Backups come before `apply`: that of epoch 0 is in the one of epoch 1.
    assert int(swa.n_models) == 2


# --- `variables` ------------------------------------------------------------


def test_variables_is_another_name_of_var_list():
    model = tf.keras.Sequential([tf.keras.Input([2]), layers.Dense(2)])
    with pytest.raises(ValueError, match="Only one of `variables` and `var_l"):
        swa_tf.SWACallback(0, variables=generators, var_list=model.weights)
    match = '`variables` must be "trainable" or "floating". Received: variab'
    with pytest.raises(ValueError, match=match):
        swa_tf.SWACallback(0, variables="all")
    model.compile("sgd", "mse", run_eagerly=True)
    swa = swa_tf.SWACallback(0, variables=[tf.Variable(1.0)], verbose=0)
    with pytest.raises(ValueError, match="`variables` must hold variables of"):
        model.fit(NOISE, NOISE, verbose=0, callbacks=[swa])


def with_batch_norm():
    tf.keras.utils.set_random_seed(0)
    model = tf.keras.Sequential(
        [
            tf.keras.Input([2]),
            layers.Dense(2),
            layers.BatchNormalization(momentum=0.5),
            layers.Dropout(0.5),
            layers.Dense(2, trainable=False),
        ]
    )
    model.compile("sgd", "mse", run_eagerly=True)
    return model


@pytest.mark.parametrize(
    ("variables", "unit", "n_averaged"),
    [
        ("trainable", "epoch", 4),
        exhaustive("floating", "epoch", 8),
        ("floating", "step", 8),
        (lambda model: model.layers[1].weights, "step", 4),
    ],
)
def test_statistics_are_averaged_where_they_are_asked_for(
    variables, unit, n_averaged
):
    """Against the mean in float64 of what every epoch or step has left."""
    model = with_batch_norm()
    swa = swa_tf.SWACallback(
        1, variables=variables, unit=unit, verbose=0, final_weights="averaged"
    )
    floats = [v for v in model.weights if "float" in str(v.dtype)]
    seen = []

    class Keeps(tf.keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            seen.append([v.numpy().astype(np.float64) for v in floats])

    warns = pytest.warns(UserWarning, match="whose statistics do not")
    expected = variables == "trainable"
    with warns if expected else contextlib.nullcontext():
        settings = {"batch_size": 2, "shuffle": False, "verbose": 0}
        callbacks = [swa, Keeps()]
        model.fit(NOISE, NOISE, epochs=3, callbacks=callbacks, **settings)
    taken = seen[7::4] if unit == "epoch" else seen[4:]
    found = 0
    for i, variable in enumerate(floats):
        if swa.averages.average(variable) is not None:
            found += 1
            mean = np.mean([each[i] for each in taken], axis=0)
            np.testing.assert_allclose(variable, mean, rtol=2e-6, atol=1e-7)
        else:
            np.testing.assert_array_equal(variable, seen[-1][i])
    assert found == n_averaged


@pytest.mark.slow
@pytest.mark.parametrize("unit", ["step", "epoch"])
def test_floating_on_two_replicas(unit):
    """Moving statistics differ between replicas, and their mean is averaged."""
    strategy = fitting.two_replicas()
    with strategy.scope():
        model = with_batch_norm()
        model.compile("sgd", "mse", jit_compile=False)
    statistic, seen = model.layers[1].moving_mean, []
    keeps = tf.keras.callbacks.LambdaCallback(
        on_train_batch_end=lambda batch, logs: seen.append(statistic.numpy())
    )
    swa = swa_tf.SWACallback(0, variables="floating", unit=unit, verbose=0)
    settings = {"batch_size": 4, "epochs": 2, "verbose": 0}
    model.fit(NOISE, NOISE, callbacks=[swa, keeps], **settings)
    expected = np.mean(seen if unit == "step" else seen[1::2], axis=0)
    np.testing.assert_allclose(statistic.numpy(), expected, rtol=1e-5)


# --- A model without `call` -------------------------------------------------


def test_a_refit_of_a_model_without_call_is_refused_before_training():
    swa = swa_tf.SWACallback(0, refit_data=[NOISE], verbose=0)
    gan = Gan(norm=True)
    gan.compile(run_eagerly=True)
    match = "`model` must have a `call`.*Received: Gan.*`averaged_weights"
    with pytest.raises(TypeError, match=match):
        gan.fit(NOISE, epochs=2, verbose=0, callbacks=[swa])
    assert gan.n_steps == 0
    with pytest.raises(TypeError, match=match):
        swa_tf.refit_batch_norm(gan, [NOISE])


def test_a_part_is_refitted_as_the_error_says():
    swa = swa_tf.SWACallback(0, var_list=generators, verbose=0)
    with pytest.warns(UserWarning, match="batch-norm layers"):
        gan, _ = train(swa, norm=True)
    swa_tf.refit_batch_norm(gan.generator, [NOISE])
    assert_refitted(gan)


def assert_refitted(gan):
    dense, norm = gan.generator.layers
    inside = np.float64(NOISE) @ dense.kernel.numpy() + dense.bias.numpy()
    np.testing.assert_allclose(norm.moving_mean, inside.mean(0), rtol=1e-5)


def test_a_call_that_is_set_on_the_model_itself():
    gan = Gan(norm=True)
    # Keras 3 goes by the signature of the class, and hands no `training` on.
    gan.call = lambda inputs, training=None: gan.generator(
        inputs, training=True
    )
    swa_tf.refit_batch_norm(gan, [NOISE])
    assert_refitted(gan)
