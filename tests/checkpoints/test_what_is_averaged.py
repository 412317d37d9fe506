"""Weights are averaged; of all else in a file the newest's is taken."""

import os

import h5py
import numpy as np
import pytest
import tensorflow as tf

import swa_tf
from swa_tf.support import compat
from tests import checkpoint_files, fitting
from tests.checkpoint_files import KERAS, NAME, OBJECT, WEIGHTS

pytestmark = pytest.mark.filterwarnings("ignore:.*refit_batch_norm")


def _average(tmp_path, suffix="", **kwargs):
    output = str(tmp_path / f"average{suffix}")
    return output, swa_tf.average_checkpoints(
        tmp_path / "run", output, **kwargs
    )


def _path(tmp_path, i, suffix=""):
    os.makedirs(tmp_path / "run", exist_ok=True)
    return str(tmp_path / "run" / f"ckpt-{i}{suffix}")


def _dense(units=2, **kwargs):
    layers = [tf.keras.layers.Input([3]), tf.keras.layers.Dense(units)]
    model = tf.keras.Sequential(layers)
    if kwargs:
        model.compile(**kwargs)
    return model


def _fill(model, value):
    model.set_weights([np.full(w.shape, value) for w in model.get_weights()])


# What is no weight.


def test_a_hash_table_is_the_newests(tmp_path):
    """Its values are floats, and its keys come in any order."""
    table = tf.lookup.experimental.MutableHashTable(tf.string, tf.float32, 0.0)
    checkpoint = tf.train.Checkpoint(w=tf.Variable(0.0), table=table)
    for i, keys in enumerate((["a", "b", "c"], ["c", "b", "a", "d"])):
        table.insert(keys, tf.range(len(keys), dtype=tf.float32) + 100.0 * i)
        checkpoint.w.assign(2.0 * i)
        checkpoint.write(_path(tmp_path, i))
    output, report = _average(tmp_path)
    assert report["averaged"] == ["w"]
    table.remove(tf.constant(["a", "b", "c", "d"]))
    checkpoint.read(output).assert_consumed()
    assert float(checkpoint.w) == 1.0
    found = table.lookup(["a", "b", "c", "d"]).numpy().tolist()
    assert found == [102.0, 101.0, 100.0, 103.0]


def test_a_residual_weight_is_one_though_a_metric_has_that_name(tmp_path):
    for i in range(2):
        layer, metric = tf.Module(), tf.Module()
        layer.residual = tf.Variable(2.0 * i)
        metric.squared_sum = tf.Variable([2.0 * i])  # as R2Score has them
        metric.sum, metric.residual = tf.Variable([2.0 * i]), tf.Variable([2.0])
        checkpoint = tf.train.Checkpoint(layer=layer, metric=metric)
        checkpoint.write(_path(tmp_path, i))
    output, report = _average(tmp_path)
    assert report["averaged"] == ["layer/residual"]
    checkpoint.read(output)
    assert float(layer.residual) == 1.0


def test_a_hash_table_of_a_saver_is_the_newests(tmp_path):
    """Without an object graph it is known by its keys."""
    with tf.Graph().as_default(), tf.compat.v1.Session() as session:
        w = tf.compat.v1.get_variable("w", initializer=0.0)
        table = tf.lookup.experimental.MutableHashTable(
            tf.string, tf.float32, 0.0, name="table"
        )
        saver = tf.compat.v1.train.Saver()
        for i, keys in enumerate((["a", "b"], ["b", "a"])):
            session.run(table.insert(keys, [100.0 * i, 7.0]))
            session.run(w.assign(2.0 * i))
            saver.save(session, str(_path(tmp_path, i)))
        output, report = _average(tmp_path)
        assert report["averaged"] == ["w"]
        session.run(table.remove(tf.constant(["a", "b"])))
        saver.restore(session, str(output))
        assert session.run(w) == 1.0
        assert session.run(table.lookup(["a", "b"])).tolist() == [7.0, 100.0]


@pytest.mark.parametrize(
    "name", ["best_loss", "val_loss", "accuracy", "best", "samples_seen"]
)
@pytest.mark.parametrize("form", [OBJECT, NAME])
def test_scores_beside_weights_are_the_newests(form, name, tmp_path):
    for i, best in enumerate((np.inf, 0.9, 0.8)):
        values = {"w": np.float32(i), "b": np.float32(2 * i)}
        values[name] = np.float32(best)
        checkpoint_files.write(form, _path(tmp_path, i), values)
    with pytest.warns(UserWarning, match=f"'{name}'"):
        output, report = _average(tmp_path)
    assert report["guessed"] == [name]
    found = checkpoint_files.read(form, output, values)
    assert found == {"w": 1.0, "b": 2.0, name: np.float32(0.8)}


@pytest.mark.parametrize("bad", [np.inf, -np.inf, np.nan])
@pytest.mark.parametrize("form", checkpoint_files.FORMS)
def test_no_average_is_silently_not_finite(form, bad, tmp_path):
    for i, value in enumerate((bad, 0.9, 0.8)):
        values = {"w": np.float32([1.0, i]), "record": np.float32([0.0, value])}
        path = _path(tmp_path, i, checkpoint_files.suffix(form))
        checkpoint_files.write(form, path, values)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(ValueError, match=r"ckpt-0.* with NaN or inf") as error:
        _average(tmp_path, checkpoint_files.suffix(form))
    assert "`from_newest`" in str(error.value)
    assert sorted(tmp_path.rglob("*")) == before
    if form in (OBJECT, NAME):
        assert "infinity in 'record'" in str(error.value)
        output, _ = _average(tmp_path, from_newest=["record"])
        found = checkpoint_files.read(form, output, values)
        np.testing.assert_array_equal(found["w"], [1.0, 1.0])
        np.testing.assert_array_equal(found["record"], np.float32([0.0, 0.8]))


def test_what_is_not_finite_in_the_newest_too_is_averaged(tmp_path):
    """Such as a mask of minus infinity; or all weights of a lost training."""
    for i in range(2):
        values = {"mask": np.float32([-np.inf, i]), "w": np.float32(np.nan)}
        values["w"] = np.float32(np.nan if i else 1.0)
        checkpoint_files.write(OBJECT, _path(tmp_path, i), values)
    output, _ = _average(tmp_path)
    found = checkpoint_files.read(OBJECT, output, values)
    np.testing.assert_array_equal(found["mask"], [-np.inf, 0.5])
    assert np.isnan(found["w"])


def test_huge_weights_are_finite(tmp_path):
    """Their sum is not."""
    for i in range(2):
        values = {"w": np.float64([1.5e308, 1.5e308])}
        checkpoint_files.write(OBJECT, _path(tmp_path, i), values)
    output, _ = _average(tmp_path)
    found = checkpoint_files.read(OBJECT, output, values)
    np.testing.assert_array_equal(found["w"], values["w"])


@pytest.mark.filterwarnings("error::RuntimeWarning")
def test_weights_whose_average_is_out_of_range(tmp_path):
    """On the way to their mean, 5.7e307, are differences beyond float64."""
    for i, value in enumerate((1.7e308, -1.7e308, 1.7e308)):
        values = {"w": np.float64([0.0, value])}
        checkpoint_files.write(OBJECT, _path(tmp_path, i), values)
    before = sorted(tmp_path.rglob("*"))
    message = r"`inputs` must .* in the range of .*'w' \(float64, \[2\]\)"
    with pytest.raises(ValueError, match=message):
        _average(tmp_path)
    assert sorted(tmp_path.rglob("*")) == before


def test_a_soup_leaves_out_what_is_not_finite(tmp_path):
    for i, value in enumerate((np.nan, 4.0, 2.0)):
        checkpoint_files.write(
            OBJECT, _path(tmp_path, i), {"w": np.float32(value)}
        )

    def metric(path):
        found = checkpoint_files.read(OBJECT, path, {"w": np.float32(0)})["w"]
        return -abs(float(np.nan_to_num(found, nan=3.5)) - 3)

    output = str(tmp_path / "soup")
    soup = swa_tf.greedy_soup(tmp_path / "run", output, metric)
    assert [os.path.basename(path) for path in soup.paths] == ["ckpt-0"]
    assert [trial.added for trial in soup.trials] == [True, False, False]


_METRICS = {
    "auc": lambda: tf.keras.metrics.AUC(num_thresholds=5, name="auc"),
    "mean_io_u": lambda: tf.keras.metrics.MeanIoU(2, name="mean_io_u"),
    "precision": lambda: tf.keras.metrics.Precision(name="precision"),
    "false_positives": lambda: tf.keras.metrics.FalsePositives(),
    "sum": lambda: tf.keras.metrics.Sum(),
    "mean": lambda: tf.keras.metrics.Mean(),
}


@pytest.mark.skipif(compat.KERAS_3, reason="no checkpoint has its metrics")
@pytest.mark.parametrize("name", _METRICS)
def test_metrics_of_keras_2_in_a_checkpoint(name, tmp_path):
    model, metric = _dense(), _METRICS[name]()
    checkpoint = tf.train.Checkpoint(model=model, metric=metric)
    for i in range(2):
        _fill(model, 2.0 * i)
        _update(metric)
        checkpoint.write(_path(tmp_path, i))
    output, report = _average(tmp_path)
    assert len(report["averaged"]) == 2
    newest = [v.numpy() for v in metric.variables]
    metric.reset_state()
    checkpoint.read(output).assert_existing_objects_matched()
    for variable, value in zip(metric.variables, newest):
        np.testing.assert_array_equal(variable, value)
    np.testing.assert_array_equal(model.get_weights()[0], np.ones([3, 2]))


def _update(metric):
    if isinstance(metric, (tf.keras.metrics.Sum, tf.keras.metrics.Mean)):
        metric.update_state(3.0)
    else:
        metric.update_state([0.0, 1.0, 0.0], [1.0, 1.0, 0.0])


class _Tracked(tf.keras.Model):
    """A model whose own metric is its attribute."""

    def __init__(self, name):
        super().__init__()
        self.dense = tf.keras.layers.Dense(2)
        setattr(self, name, _METRICS[name]())

    def call(self, inputs):
        return self.dense(inputs)


@pytest.mark.parametrize("name", ["auc", "mean_io_u", "precision"])
def test_metrics_in_keras_files(name, tmp_path):
    model = _Tracked(name)
    model(np.zeros([1, 3], np.float32))
    for i in range(2):
        model.dense.set_weights([np.full([3, 2], 2.0 * i), np.zeros(2)])
        _update(getattr(model, name))
        model.save_weights(_path(tmp_path, i, WEIGHTS))
    metric = getattr(model, name)
    newest = [np.array(v) for v in metric.variables]
    output, report = _average(tmp_path, WEIGHTS)
    assert len(report["averaged"]) == 2
    assert report["batch_norm_statistics"] == []
    metric.reset_state()
    model.load_weights(output)
    np.testing.assert_array_equal(model.dense.get_weights()[0], np.ones([3, 2]))
    with h5py.File(_path(tmp_path, 1, WEIGHTS)) as a, h5py.File(output) as b:
        for key in report["from_newest"]:
            np.testing.assert_array_equal(a[key][()], b[key][()])
    if len(report["from_newest"]) == len(newest):
        for variable, value in zip(metric.variables, newest):
            np.testing.assert_array_equal(variable, value)


class _Reader(tf.keras.Model):
    """A model with a vocabulary that counts."""

    def __init__(self, texts):
        super().__init__()
        self.words = tf.keras.layers.TextVectorization(output_mode="tf_idf")
        self.words.adapt(texts)
        self.dense = tf.keras.layers.Dense(2)

    def call(self, inputs):
        return self.dense(inputs)


@pytest.mark.parametrize("form", [OBJECT, WEIGHTS])
def test_vocabularies_are_the_newests(form, tmp_path):
    """Of other words, and of as many others in the third file."""
    texts = [["a b", "b"], ["a b c d", "e"], ["a b c f", "g", "a"]]
    for i, each in enumerate(texts):
        tf.keras.backend.clear_session()
        model = _Reader(each)
        model(np.zeros([1, 3], np.float32))
        model.dense.set_weights([np.full([3, 2], 2.0 * i), np.zeros(2)])
        path = _path(tmp_path, i, checkpoint_files.suffix(form))
        if form == OBJECT:
            tf.train.Checkpoint(model=model).write(path)
        else:
            model.save_weights(path)
    output, report = _average(tmp_path, checkpoint_files.suffix(form))
    assert len(report["averaged"]) == 2
    for name in report["from_newest"]:
        if "idf_weights" in name:
            np.testing.assert_array_equal(
                _value(form, output, name), _value(form, path, name)
            )


def _value(form, path, name):
    if form == OBJECT:
        reader = tf.train.load_checkpoint(path)
        return reader.get_tensor(f"{name}/.ATTRIBUTES/VARIABLE_VALUE")
    with h5py.File(path) as file:
        return file[name][()]


def test_generators_are_the_newests(tmp_path):
    generator = tf.random.Generator.from_seed(1)
    checkpoint = tf.train.Checkpoint(w=tf.Variable(0.0), generator=generator)
    for i in range(2):
        checkpoint.w.assign(2.0 * i)
        generator.normal([3])
        checkpoint.write(_path(tmp_path, i))
    output, report = _average(tmp_path)
    assert report["averaged"] == ["w"]
    expected = generator.normal([2]).numpy()
    checkpoint.read(output).assert_consumed()
    np.testing.assert_array_equal(generator.normal([2]), expected)


# What need not agree.


@pytest.mark.parametrize("make", [
    swa_tf.StochasticWeightAveraging,
    lambda: swa_tf.ExponentialMovingAverage(0.5),
])  # fmt: skip
def test_an_average_before_and_after_its_first_apply(make, tmp_path):
    weight = tf.Variable([1.0, 1.0])
    swa = make()
    checkpoint = tf.train.Checkpoint(w=weight, swa=swa)
    for i in range(3):
        weight.assign([i, i])
        if i:
            swa.apply([weight])
        checkpoint.write(_path(tmp_path, i))
    average = swa.average(weight).numpy()
    output, report = _average(tmp_path)
    assert report["averaged"] == ["w"]
    swa.reset()
    checkpoint.read(output).assert_consumed()
    np.testing.assert_array_equal(weight, [1.0, 1.0])
    np.testing.assert_array_equal(swa.average(weight), average)


@pytest.mark.parametrize(
    ("form", "compiled"),
    fitting.covering(
        1,
        [OBJECT, WEIGHTS, KERAS],
        [
            [{}, {"optimizer": "adam", "loss": "mse"}],
            [{"optimizer": "adam", "loss": "mse"}, {}],
            [
                {"optimizer": "sgd", "loss": "mse", "metrics": ["mae"]},
                {"optimizer": "adam", "loss": "mse", "metrics": ["mse", "AUC"]},
            ],
        ],
    ),
)
def test_models_compiled_otherwise(compiled, form, tmp_path):
    suffix = checkpoint_files.suffix(form)
    for i, kwargs in enumerate(compiled):
        tf.keras.backend.clear_session()
        model = _dense(**kwargs)
        if kwargs:
            model.train_on_batch(np.zeros([1, 3]), np.zeros([1, 2]))
        _fill(model, 2.0 * i)
        if form == OBJECT:
            held = {"optimizer": model.optimizer} if kwargs else {}
            tf.train.Checkpoint(model=model, **held).write(_path(tmp_path, i))
        elif form == WEIGHTS:
            model.save_weights(_path(tmp_path, i, suffix))
        else:
            model.save(_path(tmp_path, i, suffix))
    output, report = _average(tmp_path, suffix)
    assert len(report["averaged"]) == 2
    _fill(model, 5.0)
    if form == OBJECT:
        tf.train.Checkpoint(model=model).read(output).expect_partial()
    elif form == WEIGHTS:
        model.load_weights(output)
    else:
        model = tf.keras.models.load_model(output)
    for value in model.get_weights():
        np.testing.assert_array_equal(value, np.ones_like(value))


def test_logs_and_tables_that_grow(tmp_path):
    for i in range(2):
        log = tf.Variable([b"line"] * (i + 1), shape=[None])
        steps = tf.Variable(np.arange(i + 2))
        losses = tf.Variable(np.ones(i + 1, np.float32))
        tf.train.Checkpoint(
            w=tf.Variable(2.0 * i), log=log, steps=steps, losses=losses
        ).write(_path(tmp_path, i))
    with pytest.raises(ValueError, match=r"from_newest.*'losses'"):
        _average(tmp_path)
    output, _ = _average(tmp_path, from_newest=["losses"])
    reader = tf.train.load_checkpoint(output)
    shapes = reader.get_variable_to_shape_map()
    key = "{}/.ATTRIBUTES/VARIABLE_VALUE".format
    assert shapes[key("log")] == shapes[key("losses")] == [2]
    assert shapes[key("steps")] == [3]
    assert reader.get_tensor(key("w")) == 1.0


def test_what_our_callback_adds_to_the_files_of_model_checkpoint(tmp_path):
    model = tf.keras.Sequential([tf.keras.layers.Dense(1)])  # not built
    model.compile("sgd", "mse", run_eagerly=True)
    seen = []
    model.fit(
        np.eye(2, dtype=np.float32),
        np.ones([2, 1]),
        epochs=3,
        verbose=0,
        callbacks=[
            swa_tf.SWACallback(2),
            tf.keras.callbacks.ModelCheckpoint(
                _path(tmp_path, "{epoch}", WEIGHTS), save_weights_only=True
            ),
            tf.keras.callbacks.LambdaCallback(
                on_epoch_end=lambda *_: seen.append(model.get_weights())
            ),
        ],
    )
    output, report = _average(tmp_path, WEIGHTS)
    assert len(report["averaged"]) == 2
    again = swa_tf.average_checkpoints(
        tmp_path / "run",
        tmp_path / "again.weights.h5",
        from_newest=["vars/1", *(["swa_tf_average"] * compat.KERAS_3)],
    )
    assert len(again["averaged"]) == 1
    model.load_weights(output)
    for value, values in zip(model.get_weights(), zip(*seen)):
        exact = np.mean(np.float64(values), axis=0)
        np.testing.assert_allclose(value, exact, rtol=2.0**-23)


@pytest.mark.parametrize("which", [0, 1])
def test_a_weight_that_only_one_has_is_an_error(which, tmp_path):
    """In the other it is an integer."""
    for i in range(2):
        more = np.float32(1) if i == which else np.int32(1)
        values = {"w": np.float32(i), "more": more}
        checkpoint_files.write(OBJECT, _path(tmp_path, i), values)
    with pytest.raises(ValueError, match=r"same tensors.*'more'"):
        _average(tmp_path)
    output, _ = _average(tmp_path, from_newest=["more"])
    found = checkpoint_files.read(OBJECT, output, values)
    assert found == {"w": 0.5, "more": 1}


@pytest.mark.parametrize("tied", [0, 1])
def test_tied_weights_and_others_are_an_error(tied, tmp_path):
    for i in range(2):
        weights = [tf.Variable([1.0 * i]), tf.Variable([2.0 * i])]
        second = weights[0 if i == tied else 1]
        checkpoint = tf.train.Checkpoint(first=weights[0], second=second)
        checkpoint.write(_path(tmp_path, i))
    with pytest.raises(ValueError, match=r"same tensors.*'second'"):
        _average(tmp_path)
