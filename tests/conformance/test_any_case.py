"""Averages of any files and workers, and any batches, against float64 numpy."""

import os
import tempfile

import ml_dtypes
import numpy as np
import tensorflow as tf
from hypothesis import strategies as st

import swa_tf
from tests import batch_norm_model, checkpoint_files, properties
from tests.properties import holds

specs = st.lists(
    st.tuples(properties.shapes, properties.dtypes), min_size=1, max_size=4
)


def close(found, expected, error):
    away = np.abs(np.asarray(found, np.float64) - expected)
    assert (away <= error).all(), (found, expected, error)


# --- Averages of checkpoints ----------------------------------------------


@properties.numbers_of_cases(20, 80, 300)
def test_checkpoints(n_cases):
    forms = [checkpoint_files.OBJECT] * 3 + [checkpoint_files.WEIGHTS]

    @holds(
        n_cases,
        st.sampled_from(forms),
        specs,
        st.lists(st.integers(1, 20), min_size=1, max_size=7),
        st.sampled_from([None, "weights", "decay"]),
        st.randoms(use_true_random=False),
        properties.seeds,
    )
    def check(form, specs, weights, how, random, seed):
        if form == checkpoint_files.WEIGHTS:
            # What Keras writes of bfloat16 is not of its type.
            specs = [(s, d) for s, d in specs if d != "bfloat16"]
            specs = specs or [((2,), "float32")]
        with tempfile.TemporaryDirectory() as folder:
            files = []
            for i in range(len(weights)):
                arrays = {
                    f"v{j}": properties.values(seed + 7 * i + j, *spec)
                    for j, spec in enumerate(specs)
                }
                path = checkpoint_files.path_of(form, folder, f"ckpt-{i}")
                checkpoint_files.write(form, path, arrays)
                files.append((path, arrays))
            random.shuffle(files)
            paths = [path for path, _ in files]
            output = checkpoint_files.path_of(form, folder, "average")
            arguments = {
                None: {},
                "weights": {"weights": weights},
                "decay": {"decay": 0.75},
            }[how]
            swa_tf.average_checkpoints(paths, output, **arguments)
            found = checkpoint_files.read(form, output, files[0][1])
        shares = np.ones(len(files))
        if how == "weights":
            shares = np.float64(weights)
        elif how == "decay":  # the first counts fully
            shares = 0.25 * 0.75 ** np.arange(len(files))[::-1]
            shares[0] *= 4
        shares /= shares.sum()
        for name, like in files[0][1].items():
            stack = np.stack([a[name].astype(np.float64) for _, a in files])
            mean = np.tensordot(shares, stack, 1)
            assert found[name].dtype == like.dtype
            # Rounded once, by half a unit; in float64 a few times before.
            unit = properties.epsilon(like.dtype.name) / 2
            rounded = unit * np.abs(mean)
            before = 2.0**-52 * (len(files) + 3) * np.abs(stack).max(0)
            subnormal = float(ml_dtypes.finfo(like.dtype).smallest_subnormal)
            close(found[name], mean, 1.001 * rounded + before + subnormal)


# --- Averages of workers --------------------------------------------------


@properties.numbers_of_cases(8, 30, 80)
def test_merged_workers(n_cases):
    @holds(
        n_cases,
        specs,
        st.lists(st.integers(1, 6), min_size=1, max_size=4),
        st.integers(0, 3),
        st.lists(st.booleans(), min_size=4, max_size=4),
        properties.seeds,
    )
    def check(specs, counts, n_of_target, as_file, seed):
        variables = [
            tf.Variable(properties.values(seed + i, *spec), name=f"v{i}")
            for i, spec in enumerate(specs)
        ]
        seen = []

        def trained(n_models):
            swa = swa_tf.StochasticWeightAveraging()
            swa.build(variables)
            for _ in range(n_models):
                values = [
                    properties.values(seed + 11 * len(seen) + i, *spec)
                    for i, spec in enumerate(specs)
                ]
                for variable, value in zip(variables, values):
                    variable.assign(value)
                swa.apply(variables)
                seen.append(values)
            return swa

        workers = [trained(n) for n in counts]
        target = trained(n_of_target)
        with tempfile.TemporaryDirectory() as folder:
            others = []
            for i, worker in enumerate(workers):
                if as_file[i]:
                    path = os.path.join(folder, str(i))
                    worker = tf.train.Checkpoint(swa=worker).write(path)
                others.append(worker)
            swa_tf.merge_averages(target, others)
        assert int(target.n_models) == sum(counts) + n_of_target == len(seen)
        for i, (_, dtype) in enumerate(specs):
            stack = np.stack([values[i].astype(np.float64) for values in seen])
            wide = "float64" if dtype == "float64" else "float32"
            found = target.average(variables[i]).numpy()
            assert found.dtype == wide
            # Of n updates, the k-th is off by one unit and 3 / k of the step's
            # (test_any_sequence.py), which later ones divide: by less
            # than (n + 1) / 2 + 3 units in all. The merge rounds once.
            n = max(*counts, n_of_target)
            units = (n + 1) / 2 + 4
            error = units * properties.epsilon(wide) * np.abs(stack).max(0)
            close(found, stack.mean(0), error)


# --- Refits ---------------------------------------------------------------


@properties.numbers_of_cases(8, 40, 150)
def test_splits_of_the_data(n_cases):
    """The same samples in any batches: the same for the first layer."""
    model = batch_norm_model.make(("float32", "float32"))

    @holds(
        n_cases,
        st.lists(st.integers(1, 9), min_size=1, max_size=6),
        st.booleans(),
        st.booleans(),
        properties.seeds,
    )
    def check(sizes, as_dataset, by_count, seed):
        for i, variable in enumerate(model.weights):
            shape, dtype = variable.shape, "float32"
            variable.assign(properties.values(seed + i, shape, dtype, (1.0,)))
        random = np.random.default_rng(seed)
        shape = [sum(sizes), batch_norm_model.N_FEATURES]
        mean = random.choice([0.0, 1.0, 10.0])
        samples = random.normal(mean, 1.0, shape).astype(np.float32)
        batches = np.split(samples, np.cumsum(sizes)[:-1])
        data = _dataset(batches) if as_dataset else batches
        if by_count:
            data = [*data, samples[:1]]
        steps = len(batches) if by_count else None
        swa_tf.refit_batch_norm(model, data, steps=steps)

        batches = [batch.astype(np.float64) for batch in batches]
        for variable, value, error in batch_norm_model.expected(model, batches):
            close(variable.numpy(), value, error)
        # The equation's claim, without any batches: two passes over all.
        first = batch_norm_model.expected(model, [np.concatenate(batches)])[:2]
        for variable, value, error in first:
            close(variable.numpy(), value, error)


def _dataset(batches):
    spec = tf.TensorSpec([None, batch_norm_model.N_FEATURES])
    return tf.data.Dataset.from_generator(
        lambda: iter(batches), output_signature=spec
    )
