"""Samples of `SWAGaussian`: their moments, their bits, the way back."""

import contextlib
import warnings

import numpy as np
import pytest
import tensorflow as tf

import swa_tf
from tests import fitting, interrupts

v1 = tf.compat.v1
SHAPES = [(2,), (3, 1)]
N_MODELS, RANK = 6, 4


def trained(shapes=SHAPES, rank=RANK, dtype="float32", n_models=N_MODELS):
    """A Gaussian over weights that vary together, and its variables."""
    rng = np.random.default_rng(1)
    variables = [tf.Variable(tf.zeros(shape, dtype)) for shape in shapes]
    swag = swa_tf.SWAGaussian(rank)
    values = []
    for _ in range(n_models):
        common = rng.normal()
        value = [1.0 + common + rng.normal(0.0, 0.5, s) for s in shapes]
        values.append(np.concatenate([each.ravel() for each in value]))
        for variable, each in zip(variables, value):
            variable.assign(tf.cast(each, dtype))
        swag.apply(variables)
    return swag, variables, np.array(values, np.float64)


def closed_form(values, rank, scale):
    """The mean and covariance of samples, by their definitions in float64."""
    diagonal = np.diag(values.var(axis=0))
    means = [values[: n + 1].mean(axis=0) for n in range(len(values))]
    kept = (values - means)[len(values) - min(rank, len(values)) :]
    low_rank = kept.T @ kept / max(len(kept) - 1, 1)
    return values.mean(axis=0), scale * (diagonal + low_rank * (rank > 0))


def sampled(swag, variables, seed, scale=0.5):
    with swa_tf.sampled_weights(swag, variables, seed, scale):
        return [variable.numpy() for variable in variables]


# Fewer models than rows, as many, more; no rows; other scales.
@pytest.mark.parametrize(
    ("n_models", "rank", "scale"),
    [
        (6, 4, 0.5),
        (3, 20, 0.5),
        (6, 0, 1.0),
        fitting.exhaustive(2, 2, 0.5),
        fitting.exhaustive(9, 4, 2.0),
    ],
)
def test_mean_and_covariance(n_models, rank, scale):
    """Within five standard errors, each of them."""
    swag, variables, values = trained(rank=rank, n_models=n_models)

    def draw(seed):
        swa_tf.assign_sample(swag, variables, seed, scale)
        return tf.concat([tf.reshape(v, [-1]) for v in variables], axis=0)

    n = 4000
    draws = tf.function(lambda: tf.map_fn(draw, tf.range(n), "float32"))
    found = draws().numpy().astype(np.float64)
    mean, covariance = closed_form(values, rank, scale)
    variances = np.diag(covariance)
    errors = np.sqrt(variances / n)
    assert (np.abs(found.mean(axis=0) - mean) < 5 * errors).all()
    # The variance of a product of two normal numbers.
    errors = np.sqrt((np.outer(variances, variances) + covariance**2) / n)
    away = np.cov(found, rowvar=False) - covariance
    assert (np.abs(away) < 5 * errors).all()


# Of a run on x86-64. Another processor may round sines and logarithms
# differently in the last bit.
GOLDEN = {
    "float32": [
        "-0x1.3b2110p-3",
        "-0x1.cd5810p+0",
        "0x1.af1670p+0",
        "0x1.2f8cdap+1",
        "0x1.73fd06p+0",
    ],
    "float64": [
        "0x1.9af0d4583b436p-2",
        "-0x1.aa0f1a82f988dp-1",
        "-0x1.8f9c5fe6730a8p-3",
        "0x1.b284e4dbb058bp-2",
        "0x1.29b7adf8d1eeap+1",
    ],
}


@pytest.mark.parametrize("dtype", list(GOLDEN))
def test_every_stack_gives_the_same_sample(dtype):
    swag, variables, _ = trained(dtype=dtype)
    found = np.concatenate([v.ravel() for v in sampled(swag, variables, 7)])
    rtol = 1e-6 if dtype == "float32" else 1e-14
    golden = [float.fromhex(value) for value in GOLDEN[dtype]]
    np.testing.assert_allclose(found, golden, rtol=rtol)


def test_every_mode_gives_the_same_bits():
    swag, variables, values = trained()
    one = sampled(swag, variables, 3)

    @tf.function
    def draw(seed):
        swa_tf.assign_sample(swag, variables, seed)

    draw(tf.constant(3))
    fitting.assert_same([v.numpy() for v in variables], one)
    strategy = tf.distribute.MirroredStrategy(["/cpu:0", "/cpu:1"])
    with strategy.scope():
        mirrored, distributed, _ = trained()
        assert hasattr(distributed[0], "values")
    for replica in range(2):
        with swa_tf.sampled_weights(mirrored, distributed, 3):
            found = [v.values[replica].numpy() for v in distributed]
        fitting.assert_same(found, one)
    fitting.assert_same(_of_graph(values, 3), one)


def _of_graph(values, seed):
    """A sample in a v1 graph, by the ops of a swap by hand."""
    with tf.Graph().as_default():
        seeds = v1.placeholder(tf.int64, [])
        fed = [v1.placeholder(tf.float32, shape) for shape in SHAPES]
        variables = [tf.Variable(tf.zeros(shape)) for shape in SHAPES]
        swag = swa_tf.SWAGaussian(RANK)
        assigned = [v.assign(value) for v, value in zip(variables, fed)]
        with tf.control_dependencies(assigned):
            apply = swag.apply(variables)
        backup = swa_tf.BackupVariables(variables)
        save, restore = backup.save(), backup.restore()
        sample = swa_tf.assign_sample(swag, variables, seeds)
        with v1.Session() as session:
            session.run(v1.global_variables_initializer())
            with pytest.raises(tf.errors.InvalidArgumentError, match="two mo"):
                session.run(sample, {seeds: seed})
            for value in values:
                parts = value[:2], value[2:].reshape(3, 1)
                session.run(apply, dict(zip(fed, parts)))
            session.run(save)
            session.run(sample, {seeds: seed})
            found = session.run(variables)
            session.run(restore)
            last = session.run(variables)
    np.testing.assert_allclose(last[0], values[-1][:2], rtol=1e-6)
    return found


def test_a_part_of_the_variables_gets_its_part_of_the_sample():
    swag, (first, second), _ = trained()
    whole = sampled(swag, [first, second], 3)
    fitting.assert_same(sampled(swag, [second], 3), whole[1:])
    fitting.assert_same(sampled(swag, [second, first], 3), whole[::-1])


def test_seeds_and_variables_differ():
    swag, variables, _ = trained(shapes=[(5,), (5,)], rank=0)
    (a, b), (c, d) = (sampled(swag, variables, seed) for seed in (0, 2**63 - 1))
    z = []
    for value, variable in zip((a, b, c, d), 2 * variables):
        spread = np.sqrt(swag.variance(variable).numpy() / 2)
        z.append((value - swag.average(variable).numpy()) / spread)
    assert np.diff(np.sort(np.concatenate(z))).min() > 1e-4


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_casts_to_the_dtype_of_the_variable(dtype):
    swag, variables, _ = trained(dtype=dtype)
    inside = sampled(swag, variables, 0, scale=0.0)
    for variable, value in zip(variables, inside):
        mean = tf.cast(swag.average(variable), dtype)
        np.testing.assert_array_equal(value, mean.numpy())


# --- The way back -----------------------------------------------------------


def model_and_gaussian():
    """A model with batch norm and weights that lose bits easily."""
    model = fitting.make_model()
    swag = swa_tf.SWAGaussian(RANK)
    for value in (1e8, 1.0, 3.0):
        for variable in model.trainable_variables:
            noise = np.random.default_rng(0).normal(size=variable.shape)
            variable.assign((value + noise).astype(np.float32))
        swag.apply(model.trainable_variables)
    return model, swag


def test_batch_norm_without_data_to_refit_is_said():
    model, swag = model_and_gaussian()
    with pytest.warns(UserWarning, match="give `refit_data`"):
        with swa_tf.sampled_weights(swag, model, 0):
            pass
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        with swa_tf.sampled_weights(swag, model, 0, refit_data=[fitting.X]):
            pass
        with swa_tf.sampled_weights(swag, model.trainable_variables, 0):
            pass


@pytest.mark.filterwarnings("ignore:The model has batch-norm layers")
@pytest.mark.parametrize("error", [None, ValueError, KeyboardInterrupt])
def test_restores_bit_for_bit(error):
    model, swag = model_and_gaussian()
    before = fitting.weights(model)
    inside = []
    for seed in range(n := 3 if error else 20):
        ends = pytest.raises(error) if error else contextlib.nullcontext()
        with ends, swa_tf.sampled_weights(swag, model, seed):
            inside.append(model.layers[0].kernel.numpy())
            model(fitting.X, training=True)  # moves statistics
            if error:
                raise error
        fitting.assert_same(fitting.weights(model), before)
        assert not swag.swapped
    assert len({value.tobytes() for value in inside}) == n


def test_an_interrupt_at_any_moment_restores():
    swag, variables, _ = trained(shapes=[(2,)], rank=0)
    before = [v.numpy() for v in variables]

    def action():
        with swa_tf.sampled_weights(swag, variables, 0):
            pass

    for _ in interrupts.each_moment(action):
        fitting.assert_same([v.numpy() for v in variables], before)
        assert not swag.swapped


def test_refits_each_sample_with_one_trace():
    model, swag = model_and_gaussian()
    traces = []

    def preprocess(inputs):  # called in each trace
        traces.append(inputs)
        return inputs

    refit = swa_tf.BatchNormRefit(model, preprocess=preprocess)
    counts = []
    for seed in range(3):
        with swa_tf.sampled_weights(
            swag, model, seed, refit_data=fitting.BATCHES, refit=refit
        ):
            kernel, bias = (v.numpy() for v in model.layers[0].weights)
            inputs = fitting.X.astype(np.float64) @ kernel + bias
            found = model.layers[1].moving_mean.numpy()
            np.testing.assert_allclose(found, inputs.mean(axis=0), rtol=1e-4)
        counts.append(len(traces))
    assert 0 < counts[0] == counts[2]


# --- Misuse -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"seed": -1}, ValueError, "`seed` must be an integer >= 0"),
        ({"seed": 0.5}, ValueError, "`seed` must be an integer >= 0"),
        ({"seed": 2**63}, ValueError, "`seed` must be an integer < 2"),
        ({"scale": -0.5}, ValueError, "`scale` must be a finite number >= 0"),
        ({"scale": np.nan}, ValueError, "`scale` must be a finite number"),
        ({"refit_steps": 2}, ValueError, "`refit_data` must be given with"),
        ({"refit_data": []}, TypeError, "`target` must be a model for"),
        ({"target": []}, ValueError, "`target` must be a list of at least"),
        ({"target": [tf.Variable(1.0)]}, ValueError, "`target` must hold var"),
        (
            {"swag": swa_tf.StochasticWeightAveraging()},
            TypeError,
            "`swag` must be a `SWAGaussian`",
        ),
    ],
)
def test_wrong_arguments(arguments, error, message):
    swag, variables, _ = trained()
    before = [v.numpy() for v in variables]
    settings = {"swag": swag, "target": variables, "seed": 0, **arguments}
    with pytest.raises(error, match=message):
        with swa_tf.sampled_weights(**settings):
            pass
    fitting.assert_same([v.numpy() for v in variables], before)
    assert not swag.swapped


@pytest.mark.parametrize("n_models", [0, 1])
def test_too_few_models(n_models):
    swag, variables, _ = trained(n_models=n_models)
    swag.build(variables)
    before = [v.numpy() for v in variables]
    with pytest.raises(RuntimeError, match=r"nothing yet|at least two models"):
        with swa_tf.sampled_weights(swag, variables, 0):
            pass
    with pytest.raises(RuntimeError, match=f"two models.*averaged {n_models}"):
        swa_tf.assign_sample(swag, variables, 0)
    fitting.assert_same([v.numpy() for v in variables], before)
    assert not swag.swapped


def test_a_sample_inside_a_sample():
    swag, variables, _ = trained()
    with swa_tf.sampled_weights(swag, variables, 0):
        inside = [v.numpy() for v in variables]
        with pytest.raises(RuntimeError, match="swapped in already"):
            with swa_tf.sampled_weights(swag, variables, 1):
                pass
        with pytest.raises(RuntimeError, match="would average the averages"):
            swag.apply(variables)
        fitting.assert_same([v.numpy() for v in variables], inside)


def test_in_a_function():
    swag, variables, _ = trained()

    @tf.function
    def function():
        with swa_tf.sampled_weights(swag, variables, 0):
            pass

    with pytest.raises(RuntimeError, match="`sampled_weights` works in eager"):
        function()
