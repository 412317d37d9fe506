"""What a refit takes: which batches, how many, and what is done to them."""

import itertools

import numpy as np
import pytest
import tensorflow as tf

import swa_tf

layers = tf.keras.layers
X = np.random.default_rng(0).uniform(0, 255, [12, 3]).astype(np.float32)


def made(n_features=3):
    return tf.keras.Sequential(
        [tf.keras.Input([n_features]), layers.BatchNormalization()]
    )


def assert_moments(layer, x):
    x = np.float64(x)
    np.testing.assert_allclose(layer.moving_mean, x.mean(0), rtol=1e-5)
    np.testing.assert_allclose(layer.moving_variance, x.var(0), rtol=1e-5)


# --- What `fit` does before a call ------------------------------------------


class Task(tf.keras.Model):
    """As a KerasHub task: `fit` maps `preprocess_samples` over its data."""

    def __init__(self, preprocessor):
        super().__init__()
        self.norm = layers.BatchNormalization()
        self.preprocessor = preprocessor

    def preprocess_samples(self, x, y=None, sample_weight=None):
        if self.preprocessor is not None:
            x = self.preprocessor(x)
        return tf.keras.utils.pack_x_y_sample_weight(x, y, sample_weight)

    def call(self, inputs, training=None):
        return self.norm(inputs, training=training)


def scaled(x):
    return tf.cast(x, tf.float32) / 255.0


def data():
    images, labels = X.astype(np.uint8), np.ones([12])
    return tf.data.Dataset.from_tensor_slices((images, labels)).batch(5)


SCALED = X.astype(np.uint8) / 255.0


def test_the_preprocessing_of_a_task():
    model = Task(layers.Rescaling(1 / 255.0))
    model(X)
    refit = swa_tf.BatchNormRefit(model)
    refit(data())
    assert_moments(model.norm, SCALED)
    refit([(X, None), X])  # without labels
    assert_moments(model.norm, np.concatenate([X, X]) / 255.0)


def test_a_task_without_preprocessing_and_one_told_to_do_none():
    for model, given in [
        (Task(None), None),
        (Task(layers.Rescaling(1 / 255.0)), lambda x: x),
    ]:
        model(X)
        swa_tf.refit_batch_norm(model, [X], preprocess=given)
        assert_moments(model.norm, X)


def test_an_attribute_that_the_model_calls_itself_is_called_once():
    class Calling(tf.keras.Model):
        def __init__(self):
            super().__init__()
            self.preprocessor = layers.Rescaling(1 / 255.0)
            self.norm = layers.BatchNormalization()

        def call(self, inputs, training=None):
            return self.norm(self.preprocessor(inputs), training=training)

    model = Calling()
    model(X)
    swa_tf.refit_batch_norm(model, [X])
    assert_moments(model.norm, X / 255.0)


@pytest.mark.parametrize("inputs", ["tensor", "dictionary", "tuple"])
def test_preprocess_by_hand(inputs):
    """Also where it gives more than one input, of which none is a label."""
    names = ["a", "b"]
    ins = [tf.keras.Input([3], name=name) for name in names]
    norms = [layers.BatchNormalization(), layers.BatchNormalization()]
    model = tf.keras.Model(ins, [n(i) for n, i in zip(norms, ins)])

    def preprocess(batch):
        if inputs == "tensor":
            return batch / 255.0, -batch
        one, other = (
            (batch["one"], batch["other"]) if inputs == "dictionary" else batch
        )
        return one / 255.0, other

    batch = {
        "tensor": X,
        "dictionary": {"one": X, "other": -X},
        "tuple": ((X, -X), np.ones(12)),
    }[inputs]
    swa_tf.refit_batch_norm(model, [batch], preprocess=preprocess)
    assert_moments(norms[0], X / 255.0)
    assert_moments(norms[1], -X)


def test_preprocess_on_replicas():
    strategy = tf.distribute.MirroredStrategy(["cpu:0", "cpu:1"])
    with strategy.scope():
        model = made()
    refit = swa_tf.BatchNormRefit(model, preprocess=scaled)
    for dataset in (data(), list(data())):
        refit(dataset)
        assert_moments(model.layers[-1], SCALED)


def test_preprocess_of_averaged_weights():
    model = made()
    swa = swa_tf.StochasticWeightAveraging()
    swa.apply(model.trainable_variables)
    norm = model.layers[-1]
    with swa_tf.averaged_weights(
        swa, model, refit_data=data(), preprocess=scaled
    ):
        assert_moments(norm, SCALED)
    refit = swa_tf.BatchNormRefit(model)
    for arguments, match in [
        ({}, "`refit_data` must be given .*preprocess="),
        ({"refit_data": [X], "refit": refit}, "`refit` must be of the model"),
    ]:
        with pytest.raises(ValueError, match=match):
            swa_tf.averaged_weights(
                swa, model, preprocess=scaled, **arguments
            ).__enter__()


def test_preprocess_in_fit():
    class Scaling(tf.keras.Sequential):
        def train_step(self, data):
            x, y = data
            return super().train_step((scaled(x), y))

        def test_step(self, data):
            x, y = data
            return super().test_step((scaled(x), y))

    model = Scaling([tf.keras.Input([3]), layers.BatchNormalization()])
    model.compile("sgd", "mse", run_eagerly=True)
    y = np.zeros([12, 3])
    swa = swa_tf.SWACallback(0, refit_data=[X], preprocess=scaled, verbose=0)
    model.fit(X, y, validation_data=(X, y), verbose=0, callbacks=[swa])
    assert_moments(model.layers[-1], X / 255.0)


@pytest.mark.parametrize("preprocess", [3, "scaled"])
def test_preprocess_that_is_no_function(preprocess):
    match = f"`preprocess` must be a function.*{preprocess}"
    with pytest.raises(TypeError, match=match):
        swa_tf.BatchNormRefit(made(), preprocess=preprocess)
    with pytest.raises(TypeError, match=match):
        swa_tf.SWACallback(1, refit_data=[X], preprocess=preprocess)
    with pytest.raises(ValueError, match="`refit_data` must be given"):
        swa_tf.SWACallback(1, preprocess=scaled)


# --- How many batches -------------------------------------------------------


class Sequence(tf.keras.utils.Sequence):
    """Whose every index gives a batch, and which must not be iterated over."""

    def __init__(self):
        super().__init__()
        self.taken = []

    def __len__(self):
        return 3

    def __getitem__(self, index):
        self.taken.append(index)
        return X[4 * index : 4 * index + 4], np.ones([4])

    def __iter__(self):
        raise NotImplementedError


class Endless:
    """Batches for ever, of which a pass over the data has three."""

    def __len__(self):
        return 3

    def __iter__(self):
        for i in itertools.count():
            yield X[4 * (i % 3) :][:4]


class EndlessByIndex:
    """The same in Python's older way, without `__iter__`."""

    def __len__(self):
        return 3

    def __getitem__(self, index):
        return X[4 * (index % 3) :][:4]


class Counting(Endless):
    """Has no length after all, as a `DataLoader` of a stream."""

    def __len__(self):
        raise TypeError("no length")

    def __iter__(self):
        return itertools.islice(super().__iter__(), 3)


def flow():
    images = X.reshape([12, 1, 1, 3])
    made_by = tf.keras.preprocessing.image.ImageDataGenerator()
    return made_by.flow(images, np.ones([12]), batch_size=5)


@pytest.mark.parametrize(
    "make", [Sequence, Endless, EndlessByIndex, Counting, flow]
)
def test_a_length_and_no_end(make):
    dataset = make()
    norm = layers.BatchNormalization()
    shape = [1, 1, 1, 3] if make is flow else [1, 3]
    model = tf.keras.Sequential([tf.keras.Input(shape[1:]), norm])
    refit = swa_tf.BatchNormRefit(model)
    for _ in range(2):
        norm.moving_mean.assign(np.zeros(3))
        refit(dataset)
        assert_moments(norm, X)
    swa = swa_tf.StochasticWeightAveraging()
    swa.apply(model.trainable_variables)
    with swa_tf.averaged_weights(swa, model, refit_data=dataset):
        assert_moments(norm, X)
    swa_tf.SWACallback(1, refit_data=dataset)


def test_a_flow_is_not_shuffled_under_the_hands_of_fit():
    dataset = flow()
    dataset[0]
    order = dataset.index_array.copy()
    model = tf.keras.Sequential(
        [tf.keras.Input([1, 1, 3]), layers.BatchNormalization()]
    )
    swa_tf.refit_batch_norm(model, dataset)
    np.testing.assert_array_equal(dataset.index_array, order)


def test_a_sequence_with_steps():
    sequence, model = Sequence(), made()
    swa_tf.refit_batch_norm(model, sequence, steps=2)
    assert sequence.taken == [0, 1]
    assert_moments(model.layers[-1], X[:8])
    with pytest.raises(
        ValueError, match=r"`dataset` must hold `steps`=4 ba.*: 3"
    ):
        swa_tf.refit_batch_norm(model, sequence, steps=4)


@pytest.mark.skipif(
    not hasattr(tf.keras.utils, "PyDataset"), reason="Keras 3 has it"
)
def test_a_py_dataset_says_its_length_in_another_way():
    class Stream(tf.keras.utils.PyDataset):
        num_batches = None

        def __getitem__(self, index):
            return X[4 * (index % 3) :][:4]

    class Finite(Stream):
        num_batches = 3

    model = made()
    with pytest.raises(ValueError, match=r"`steps` must be given.*infinite"):
        swa_tf.refit_batch_norm(model, Stream())
    for dataset, steps in [(Finite(), None), (Stream(), 3)]:
        swa_tf.refit_batch_norm(model, dataset, steps)
        assert_moments(model.layers[-1], X)


# --- What are batches -------------------------------------------------------


@pytest.mark.parametrize(
    "dataset",
    [
        (X, X),
        (X,),
        ((X, X), X),
        ({"a": X}, X),
        X,
        tf.constant(X),
        {"a": X},
        "data",
        pytest.param(lambda: X, id="function"),
    ],
)
def test_arrays_are_no_batches(dataset):
    match = r"`{}` must be .*\[\(x, y\)\] is one batch.*batch\(32\)"
    with pytest.raises(TypeError, match=match.format("dataset")):
        swa_tf.refit_batch_norm(made(), dataset)
    with pytest.raises(TypeError, match=match.format("refit_data")):
        swa_tf.SWACallback(1, refit_data=dataset)


def test_lists_of_arrays_are_batches():
    model = made()
    swa_tf.refit_batch_norm(model, [X, X + 1])
    assert_moments(model.layers[-1], np.concatenate([X, X + 1]))
    swa_tf.refit_batch_norm(model, [(X, X + 1)])
    assert_moments(model.layers[-1], X)


# --- How batches are put together -------------------------------------------


class Two(tf.keras.Model):
    def __init__(self):
        super().__init__()
        self.norms = [layers.BatchNormalization() for _ in range(2)]

    def call(self, inputs, training=None):
        return [n(x, training=training) for n, x in zip(self.norms, inputs)]


@pytest.mark.parametrize("first", [tuple, list])
@pytest.mark.parametrize("at_once", [True, False])
def test_tuples_and_lists_of_inputs(first, at_once):
    model = Two()
    model((X, X))
    second = list if first is tuple else tuple
    refit = swa_tf.BatchNormRefit(model)
    batches = [(kind((X, X + 1)), X) for kind in (first, second)]
    for data in [batches] if at_once else [[batch] for batch in batches]:
        refit(data)
        for i, norm in enumerate(model.norms):
            assert_moments(norm, X + i)
