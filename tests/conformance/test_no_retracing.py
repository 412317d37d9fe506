"""A function that averages is not traced again after its first call.

TensorFlow traces a function that makes variables twice within the first call:
the second trace is the one without them. So the first call may trace twice
where it holds the first `apply`, and must trace once elsewhere.
"""

import pytest
import tensorflow as tf

import swa_tf

VALUES = (1.0, 2.0, 6.0, 3.0)
MEAN = 3.0


class Counted:
    """A function compiled, that notes how often each call traced it."""

    def __init__(self, function):
        self._n_traces = 0
        self.traces_by_call = []

        @tf.function
        def compiled(*args):
            self._n_traces += 1
            function(*args)

        self._compiled = compiled

    def __call__(self, *args):
        before = self._n_traces
        self._compiled(*args)
        self.traces_by_call.append(self._n_traces - before)
        n_traces = self._compiled.experimental_get_tracing_count()
        assert n_traces == self._n_traces

    def assert_traces(self, first):
        n_calls = len(self.traces_by_call)
        assert n_calls > 2
        assert self.traces_by_call == [first] + [0] * (n_calls - 1)


@pytest.fixture(params=["tf.Variable", "keras"])
def variable(request):
    if request.param == "tf.Variable":
        return tf.Variable(0.0)
    layer = tf.keras.layers.Dense(1, use_bias=False)
    layer.build([None, 1])
    return layer.kernel


def _set(variable, value):
    variable.assign(tf.fill(tf.shape(variable), value))


def test_first_apply_in_a_function(variable):
    swa = swa_tf.StochasticWeightAveraging()

    def assign_and_apply(value):
        _set(variable, value)
        swa.apply([variable])

    update = Counted(assign_and_apply)
    for value in VALUES:
        update(tf.constant(value))
    update.assert_traces(first=2)
    assert int(swa.n_models) == len(VALUES)
    assert float(tf.squeeze(swa.average(variable))) == MEAN


@pytest.mark.parametrize("build", [False, True])
def test_shadow_made_before_the_function(variable, build):
    swa = swa_tf.StochasticWeightAveraging()
    update = Counted(lambda: swa.apply([variable]))
    _set(variable, VALUES[0])
    if build:
        swa.build([variable])
        update()
    else:
        swa.apply([variable])
    for value in VALUES[1:]:
        _set(variable, value)
        update()
    update.assert_traces(first=1)
    assert float(tf.squeeze(swa.average(variable))) == MEAN


def test_reset(variable):
    swa = swa_tf.StochasticWeightAveraging()
    update = Counted(lambda: swa.apply([variable]))
    for value in VALUES:
        _set(variable, value)
        update()
        swa.reset()
    update.assert_traces(first=2)
    assert float(tf.squeeze(swa.average(variable))) == VALUES[-1]


def test_apply_within_a_training_step():
    model = tf.keras.Sequential([tf.keras.layers.Dense(2)])
    model.build([None, 3])
    weights = model.trainable_variables
    optimizer = tf.keras.optimizers.SGD(0.1)
    optimizer.build(weights)
    swa = swa_tf.StochasticWeightAveraging()

    def step(inputs):
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean(tf.square(model(inputs, training=True)))
        optimizer.apply_gradients(zip(tape.gradient(loss, weights), weights))
        swa.apply(weights)

    step = Counted(step)
    for _ in range(5):
        step(tf.ones([4, 3]))
    step.assert_traces(first=2)
    assert int(swa.n_models) == 5


def test_swapping_between_calls():
    model = tf.keras.Sequential([tf.keras.layers.Dense(1)])
    model.build([None, 1])
    weights = model.trainable_variables
    swa = swa_tf.StochasticWeightAveraging()
    swa.build(weights)
    update = Counted(lambda: swa.apply(weights))
    predict = Counted(lambda inputs: model(inputs, training=False))
    for _ in range(3):
        update()
        with swa_tf.averaged_weights(swa, model):
            predict(tf.ones([2, 1]))
        predict(tf.ones([2, 1]))
    update.assert_traces(first=1)
    predict.assert_traces(first=1)


def _counting_model():
    """Batch norm over the last axis, and how often its model was traced."""
    traces = []

    class Counting(tf.keras.Model):
        def __init__(self):
            super().__init__()
            self.norm = tf.keras.layers.BatchNormalization()

        def call(self, x, training=None):
            if not tf.executing_eagerly():
                traces.append(x.shape)
            return self.norm(x, training=training)

    model = Counting()
    model(tf.ones([1, 1]))
    traces.clear()
    return model, traces


def _batches(*sizes):
    return [tf.random.normal([size, 1]) for size in sizes]


# A refit traces in training mode once, to see how layers are called.


def test_a_refit_traces_once_with_a_short_last_batch():
    model, traces = _counting_model()
    dataset = tf.data.Dataset.from_tensor_slices(_batches(10)[0]).batch(4)
    swa_tf.refit_batch_norm(model, dataset)
    assert [shape.as_list() for shape in traces] == [[None, 1]] * 2


def test_a_refit_of_batches_of_all_sizes_traces_twice():
    model, traces = _counting_model()
    swa_tf.refit_batch_norm(model, _batches(4, 4, 3, 5, 1, 4))
    shapes = [shape.as_list() for shape in traces]
    assert shapes == [[4, 1], [4, 1], [None, 1]]


def test_many_refits_give_no_retracing_warning(caplog):
    model, _ = _counting_model()
    for _ in range(8):
        swa_tf.refit_batch_norm(model, _batches(4, 4, 3))
    assert "retracing" not in caplog.text
