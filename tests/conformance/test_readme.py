"""The commands and code of the README run as they stand."""

import json
import pathlib
import re
import subprocess

import numpy as np
import pytest
import tensorflow as tf

import swa_tf
from benchmarks.cifar10 import report

ROOT = pathlib.Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def _blocks(language, text=README):
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.M | re.S)


@pytest.mark.parametrize("number", [0, 1])
def test_first_bash_blocks_are_one_command_each(number):
    command = _blocks("bash")[number].replace("\\\n", " ")
    assert command.count("\n") == 1
    assert command.startswith("python3 -m venv .venv && ")
    subprocess.run(["bash", "-n", "-c", command], check=True)


def test_first_commands_run_the_benchmark_and_the_tests():
    benchmark, tests = _blocks("bash")[:2]
    assert "-m benchmarks.cifar10 --preset=digits" in benchmark
    assert "-m pytest" in tests


def test_table_is_the_one_of_the_run_that_is_kept():
    kept = ROOT / "benchmarks/results/table/digits/momentumw-seed-0.json"
    text = report.markdown(json.loads(kept.read_text(encoding="utf-8")))
    table = "\n".join(re.findall(r"^\|.*\|$", text, re.M))
    assert f"\n\n{table}\n\n" in README


@pytest.fixture
def trained_on(tmp_path, monkeypatch):
    """The names that a document takes for granted."""
    monkeypatch.chdir(tmp_path)
    inputs = np.random.default_rng(0).normal(size=[8, 4]).astype(np.float32)
    labels = np.arange(8) % 3
    model = tf.keras.Sequential(
        [
            tf.keras.layers.Dense(5),
            tf.keras.layers.BatchNormalization(),
            tf.keras.layers.Dense(3),
        ]
    )
    model.build([None, 4])
    loss_fn = tf.keras.losses.SparseCategoricalCrossentropy(True)
    model.compile("sgd", loss_fn)
    dataset = tf.data.Dataset.from_tensor_slices((inputs, labels)).batch(4)
    optimizer = tf.keras.optimizers.SGD(0.1)
    optimizer.build(model.trainable_variables)
    return {
        "model": model,
        "optimizer": optimizer,
        "loss_fn": loss_fn,
        "dataset": dataset,
        "validation": dataset,
        "epochs": 4,
        "swa_start": 1,
        "swa_tf": swa_tf,
        "tf": tf,
    }


def _run(text, names):
    # A file, because AutoGraph reads the source of what it compiles.
    script = pathlib.Path("document.py")
    script.write_text("\n".join(_blocks("python", text)), encoding="utf-8")
    exec(compile(script.read_text(), str(script), "exec"), names)


def test_python_blocks_run(trained_on):
    _run(README, trained_on)
    assert int(trained_on["swa"].n_models) == 3


def test_python_blocks_of_the_keras_document_run(trained_on):
    trained_on["dataset"] = trained_on["dataset"].repeat(10)
    _run((ROOT / "docs" / "keras.md").read_text("utf-8"), trained_on)
    # 20 steps: 10 and 15.
    assert int(trained_on["swa"].n_models) == 2
    assert int(trained_on["averages"].n_models) == 3  # epochs 2 to 4
    inputs = tf.keras.Input([4])
    model = trained_on["Averaged"](inputs, tf.keras.layers.Dense(3)(inputs))
    model.compile("sgd", trained_on["loss_fn"])
    model.fit(trained_on["dataset"], verbose=0)
    assert int(trained_on["average"].n_models) == 2


def test_python_blocks_of_the_checkpoints_document_run(trained_on, capsys):
    text = (ROOT / "docs" / "checkpoints.md").read_text("utf-8")
    _run(text, trained_on)
    assert "verdict" in capsys.readouterr().out
    averages = trained_on["averages"]
    assert int(averages.pop("n_models")) == trained_on["epochs"]
    model = trained_on["model"]
    for name, value in swa_tf.copy_parameters(model).items():
        if "moving" not in name:
            np.testing.assert_array_equal(value, averages[name])


def test_python_blocks_of_the_ema_document_run(trained_on):
    _run((ROOT / "docs" / "ema.md").read_text("utf-8"), trained_on)
    assert int(trained_on["ema"].n_models) == 2
    assert pathlib.Path("averaged.keras").exists()


def test_python_blocks_of_the_averaged_model_document_run(trained_on):
    class Classifier(tf.keras.Model):
        def __init__(self, width):
            super().__init__()
            self.dense = tf.keras.layers.Dense(width)

        def call(self, inputs):
            return self.dense(inputs)

    classifier = Classifier(64)
    classifier(tf.zeros([1, 4]))
    average = swa_tf.StochasticWeightAveraging()
    trained_on |= {"Classifier": Classifier, "classifier": classifier}
    trained_on["average"] = average
    text = (ROOT / "docs" / "averaged-model.md").read_text("utf-8")
    _run(text, trained_on)
    assert int(trained_on["teacher"].average.n_models) == 2
    assert len(average.averaged) == 2
    loaded = tf.keras.models.load_model("averaged.keras")
    inputs = tf.ones([1, 4])
    np.testing.assert_array_equal(loaded(inputs), trained_on["teacher"](inputs))


def test_python_blocks_of_the_document_of_own_averages_run(trained_on):
    text = (ROOT / "docs" / "own-averages.md").read_text("utf-8")
    _run(text, trained_on)
    variable = tf.Variable(0.0)
    averages = [trained_on["PolynomialAverage"](1.0)]
    averages += [trained_on["LateAverage"](1), trained_on["ema"]]
    for value in (1.0, 4.0, 8.0):
        variable.assign(value)
        for average in averages:
            average.apply([variable])
    found = [float(average.average(variable)) for average in averages]
    # The first averages of the last are 1, and 1 + 3 * 2^-0.75.
    second = 1.0 + 3.0 * 2.0**-0.75
    third = second + (8.0 - second) * 3.0**-0.75
    np.testing.assert_allclose(found, [5.5, 6.0, third], rtol=1e-6)
    schedule = trained_on["swa"].when
    assert [i for i in range(99) if schedule.due(i)] == [9, 29, 69]
    # In `fit`, after its steps: of 2 an epoch, 5 epochs have the tenth.
    model, swa = trained_on["model"], trained_on["swa"]
    model.fit(
        trained_on["dataset"],
        epochs=5,
        callbacks=[swa_tf.SWACallback(averages=swa, unit="step", verbose=0)],
        verbose=0,
    )
    assert int(swa.n_models) == 1


def test_python_blocks_of_the_distribution_document_run(trained_on):
    def make_model():
        model = tf.keras.Sequential([tf.keras.layers.Dense(3)])
        model.build([None, 4])
        return model

    def train_step(_):
        for weight in trained_on["model"].trainable_variables:
            weight.assign_add(tf.ones_like(weight))

    weights = {}
    for worker, n_models in enumerate([1, 3]):
        model = make_model()
        weights[n_models] = [w.numpy() for w in model.trainable_variables]
        swa = swa_tf.StochasticWeightAveraging()
        for _ in range(n_models):
            swa.apply(model.trainable_variables)
        saved = tf.train.Checkpoint(model=model, swa=swa)
        saved.write(f"worker-{worker}/ckpt-9")
    trained_on.update(
        make_model=make_model,
        train_step=train_step,
        coordinator=_AtOnce(),
        steps=2,
        batches=None,
    )
    text = (ROOT / "docs" / "distribution.md").read_text("utf-8")
    _run(text, trained_on)
    assert int(trained_on["swa"].n_models) == 4
    for variable, one, three in zip(
        trained_on["model"].trainable_variables, weights[1], weights[3]
    ):
        average = trained_on["swa"].average(variable)
        expected = (one.astype(np.float64) + 3.0 * three) / 4.0
        np.testing.assert_allclose(average.numpy(), expected, rtol=1e-6)
    assert pathlib.Path("averaged.keras").exists()


class _AtOnce:
    """A coordinator without workers."""

    def schedule(self, function, args):
        function(*args)

    def join(self):
        pass
