"""What a model holds is not only weights: the rest is let alone."""

import numpy as np
import pytest
import tensorflow as tf

import swa_tf
from swa_tf.support import compat, model_parts
from tests.fitting import slow

layers = tf.keras.layers
TEXTS = tf.constant([["a b"], ["b c"], ["c a"], ["a a"]])


class Everything(tf.keras.Model):
    """A dense layer and statistics, and all else that a model can hold."""

    def __init__(self):
        super().__init__()
        self.normalization = layers.Normalization()
        self.dropout = layers.Dropout(0.5, seed=1)
        self.dense = layers.Dense(1, kernel_initializer="ones")
        # No variables, or none that is a weight.
        self.text = layers.TextVectorization()
        self.lookups = [layers.StringLookup(), layers.IntegerLookup()]
        self.hashing = layers.Hashing(4)
        self.static_table = tf.lookup.StaticHashTable(
            tf.lookup.KeyValueTensorInitializer(["a"], [1.0]), -1.0
        )
        self.table = tf.lookup.experimental.MutableHashTable(
            tf.string, tf.float32, -1.0
        )
        self.generator = tf.random.Generator.from_seed(1)
        self.seeds = {"noise": [layers.GaussianNoise(0.1, seed=1)]}
        self.measured = {"loss": [tf.keras.metrics.Mean()]}
        self.others = [tf.keras.optimizers.Adam(0.1)]
        self.average = swa_tf.ExponentialMovingAverage(0.5)

    def call(self, inputs, training=False):
        outputs = self.dropout(self.normalization(inputs), training=training)
        return self.dense(outputs)


def everything():
    model = Everything()
    model.normalization.adapt(np.array([[1.0], [3.0]]))
    model.text.adapt(TEXTS)
    model.lookups[0].adapt(tf.constant(["a", "b"]))
    model.lookups[1].adapt(tf.constant([7, 8]))
    model.seeds["noise"][0](tf.ones([1, 1]), training=True)
    model(tf.ones([1, 1]), training=True)
    model.measured["loss"][0].update_state(3.0)
    kernel = compat.tf_variable(model.dense.kernel)
    model.others[0].apply_gradients([(tf.zeros([1, 1]), model.dense.kernel)])
    model.average.apply([kernel])
    return model


WEIGHTS = {
    "dense/bias",
    "dense/kernel",
    *(f"normalization/{name}" for name in ("count", "mean", "variance")),
}


def test_nothing_else_is_a_weight():
    model = everything()
    found = set(swa_tf.copy_parameters(model))
    assert {name.replace("adapt_", "") for name in found} == WEIGHTS
    assert len(model_parts.weights(model)) == len(WEIGHTS)
    trained = {v.ref() for v in model_parts.trained_weights(model)}
    dense = [compat.tf_variable(v) for v in model.dense.trainable_variables]
    assert trained == {v.ref() for v in dense}


def test_nothing_else_is_a_weight_of_a_module():
    module = tf.Module()
    module.parts = {"all": everything()}
    found = set(swa_tf.copy_parameters(module))
    expected = {f"parts/all/{name}" for name in WEIGHTS}
    assert {name.replace("adapt_", "") for name in found} == expected


def test_a_swap_leaves_everything_else():
    model = everything()
    swa = swa_tf.StochasticWeightAveraging()
    swa.apply(model.trainable_variables)
    model.dense.kernel.assign([[3.0]])
    swa.apply(model.trainable_variables)
    optimizer = model.others[0]
    slots = [v for v in compat.optimizer_variables(optimizer) if len(v.shape)]
    with swa_tf.averaged_weights(swa, model):
        assert float(model.dense.kernel[0, 0]) == 2.0
        model.measured["loss"][0].update_state(5.0)
        model.table.insert(["b"], [2.0])
        slots[0].assign([[7.0]])
        state = model.generator.normal([])
    assert float(model.dense.kernel[0, 0]) == 3.0
    assert float(model.measured["loss"][0].result()) == 4.0
    assert float(model.table.lookup(tf.constant("b"))) == 2.0
    assert float(slots[0][0, 0]) == 7.0
    assert float(model.generator.normal([])) != float(state)
    assert float(model.average.average(model.dense.kernel)[0, 0]) == 1.0


def text_classifier():
    model = tf.keras.Sequential(
        [
            tf.keras.Input([1], dtype=tf.string),
            layers.TextVectorization(output_sequence_length=2),
            layers.Embedding(5, 3),
            layers.GlobalAveragePooling1D(),
            layers.BatchNormalization(),
            layers.Dense(1),
        ]
    )
    model.layers[0].adapt(TEXTS)
    model.compile(
        tf.keras.optimizers.SGD(0.1), "mse", run_eagerly=True, jit_compile=False
    )
    return model


@pytest.mark.parametrize("unit", ["epoch", slow("step")])
def test_a_model_of_texts(unit, tmp_path):
    """`fit`, the swap and the refit, of which each walks the model."""
    model, recorded = text_classifier(), []
    record = tf.keras.callbacks.LambdaCallback(
        on_epoch_end=lambda epoch, logs: recorded.append(
            [v.numpy() for v in model.trainable_variables]
        )
    )
    data = tf.data.Dataset.from_tensors((TEXTS, tf.ones([4, 1])))
    swa = swa_tf.SWACallback(
        1,
        unit=unit,
        refit_data=data,
        verbose=0,
        filepath=str(tmp_path / "model.weights.h5"),
    )
    model.fit(
        data, epochs=3, verbose=0, validation_data=data, callbacks=[record, swa]
    )
    assert int(swa.averages.n_models) == 2
    for variable, values in zip(model.trainable_variables, zip(*recorded[1:])):
        mean = np.mean(np.asarray(values, np.float64), axis=0)
        np.testing.assert_allclose(variable.numpy(), mean, rtol=1e-6, atol=1e-7)
    saved = text_classifier()
    saved.load_weights(str(tmp_path / "model.weights.h5"))
    np.testing.assert_array_equal(saved.predict(TEXTS), model.predict(TEXTS))


class Counting(tf.keras.Model):
    """Counters, flags and texts, which are trainable as all variables are."""

    def __init__(self):
        super().__init__()
        self.dense = layers.Dense(1, kernel_initializer="zeros")
        if compat.KERAS_3:
            self.counter = self.add_weight(shape=(), dtype="int32", name="n")
        else:
            self.counter = tf.Variable(0)
        self.flag, self.text = tf.Variable(True), tf.Variable(["x"])

    def call(self, inputs):
        self.counter.assign_add(1)
        return self.dense(inputs)


def test_variables_that_are_no_numbers_are_neither_averaged_nor_lost():
    """A bias of 0.2 and 0.36, on average 0.28."""
    model = Counting()
    model.compile(tf.keras.optimizers.SGD(0.1), "mse", run_eagerly=True)
    model(tf.zeros([2, 1]))
    swa = swa_tf.SWACallback(0, verbose=0)
    model.fit(
        tf.zeros([2, 1]), tf.ones([2, 1]), epochs=2, verbose=0, callbacks=[swa]
    )
    np.testing.assert_allclose(model.dense.bias.numpy(), [0.28], rtol=1e-6)
    names = [name.split("/")[0] for name, _ in swa.averages.averaged]
    assert len(names) == 2
    assert int(model.counter) == 3
    copies = swa_tf.copy_parameters(model)
    assert {"counter", "flag", "text"} < set(copies)
    assert (copies["flag"].item(), copies["text"].item()) == (True, b"x")
    with swa_tf.averaged_weights(swa.averages, model):
        model.flag.assign(False)
        model.text.assign(["y"])
    assert (bool(model.flag), model.text.numpy()[0]) == (True, b"x")
    swa_tf.average_parameters(model, copies)
    assert int(copies["counter"]) == 3


def test_a_model_that_counts_is_resumed(tmp_path):
    """In manual mode, where the average restored is the first to be built."""

    def train(epochs):
        model, swa = Counting(), swa_tf.StochasticWeightAveraging()
        model.compile(tf.keras.optimizers.SGD(0.1), "mse", run_eagerly=True)
        model(tf.zeros([2, 1]))
        averages = tf.keras.callbacks.LambdaCallback(
            on_epoch_end=lambda epoch, logs: swa.apply(
                model.dense.trainable_variables
            )
        )
        backup = tf.keras.callbacks.BackupAndRestore(
            str(tmp_path), delete_checkpoint=False
        )
        data, saved = tf.zeros([2, 1]), swa_tf.SWACallback(averages=swa)
        callbacks = [averages, saved, backup]
        model.fit(
            data, data + 1.0, epochs=epochs, verbose=0, callbacks=callbacks
        )
        return float(model.dense.bias.numpy()[0])

    np.testing.assert_allclose(train(epochs=1), 0.2, rtol=1e-6)
    np.testing.assert_allclose(train(epochs=2), 0.28, rtol=1e-6)
