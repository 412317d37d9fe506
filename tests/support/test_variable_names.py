"""Names of parameters: golden, and independent of what was made before."""

import numpy as np
import pytest
import tensorflow as tf

import swa_tf
from swa_tf.support import compat, variable_names

layers = tf.keras.layers
optimizers = tf.keras.optimizers
TFA = compat.tensorflow_addons()


def names(target):
    return list(variable_names.named_variables(target))


def dense(units=1, inputs=1, **kwargs):
    layer = layers.Dense(units, **kwargs)
    layer.build([None, inputs])
    return layer


def refs(variables):
    return [compat.tf_variable(v).ref() for v in variables]


def sequential():
    return tf.keras.Sequential(
        [
            tf.keras.Input([4, 4, 1]),
            layers.Conv2D(2, 2),
            layers.BatchNormalization(),
            layers.Conv2D(3, 2),
            layers.Dropout(0.5),
            layers.Flatten(),
            tf.keras.Sequential([layers.Dense(2)]),
            layers.Dense(1, name="head"),
        ]
    )


def functional():
    inputs = tf.keras.Input([2])
    inside = tf.keras.Input([3])
    inner = tf.keras.Model(inside, layers.Dense(1)(layers.Dense(2)(inside)))
    left, right = layers.Dense(3)(inputs), layers.Dense(3)(inputs)
    outputs = layers.Add()([inner(left), inner(right)])
    return tf.keras.Model(inputs, outputs)


class Subclassed(tf.keras.Model):
    def __init__(self):
        super().__init__()
        self.first = layers.Dense(2)
        self._blocks = [layers.Dense(2), {"last": layers.Dense(2)}]
        self.norm = layers.BatchNormalization()
        self.inner = tf.keras.Sequential([layers.Dense(2), layers.Dense(1)])

    def call(self, inputs, training=None):
        hidden = self._blocks[0](self.first(inputs))
        hidden = self._blocks[1]["last"](hidden)
        return self.inner(self.norm(hidden, training=training))


def subclassed():
    model = Subclassed()
    model(tf.ones([1, 2]))
    return model


def weights(*paths, of=("kernel", "bias")):
    return [f"{path}/{name}" for path in paths for name in of]


BATCH_NORM = ("gamma", "beta", "moving_mean", "moving_variance")
GOLDEN = {
    sequential: [
        *weights("conv2d"),
        *weights("batch_normalization", of=BATCH_NORM),
        *weights("conv2d_1", "sequential/dense", "head"),
    ],
    functional: weights("dense", "dense_1", "model/dense", "model/dense_1"),
    subclassed: [
        *weights("first", "blocks/0", "blocks/1/last"),
        *weights("norm", of=BATCH_NORM),
        *weights("inner/dense", "inner/dense_1"),
    ],
}


@pytest.mark.parametrize("make", GOLDEN)
def test_golden_names(make):
    make()  # Keras counts on: the second model's layers are dense_5, ...
    model = make()
    assert sorted(names(model)) == sorted(GOLDEN[make])
    found = variable_names.named_variables(model)
    assert refs(found.values()) == refs(model.weights)


@pytest.mark.parametrize("make", GOLDEN)
def test_names_lead_to_the_variables(make):
    """By the end of the variable's own name, which Keras gives it."""
    for name, variable in variable_names.named_variables(make()).items():
        end = compat.variable_name(variable).rsplit("/", 1)[-1]
        assert name.rsplit("/", 1)[-1] == end


def test_each_path_leads_to_its_own_layer():
    model = subclassed()
    found = variable_names.named_variables(model)
    ref = compat.tf_variable(model._blocks[1]["last"].kernel).ref()
    assert found["blocks/1/last/kernel"].ref() == ref
    model = sequential()
    ref = compat.tf_variable(model.layers[2].kernel).ref()
    assert variable_names.named_variables(model)["conv2d_1/kernel"].ref() == ref


CELL = ("cell/kernel", "cell/recurrent_kernel", "cell/bias")
LAYERS = {
    "Embedding": (lambda: layers.Embedding(3, 2), [2], ["embeddings"]),
    "LSTM": (
        lambda: layers.LSTM(2, stateful=True),
        [2, 3],
        [*CELL, "states/0", "states/1"],
    ),
    "Bidirectional": (
        lambda: layers.Bidirectional(layers.GRU(2)),
        [2, 3],
        weights("forward_layer", "backward_layer", of=CELL),
    ),
    "RNN": (
        lambda: layers.RNN([layers.LSTMCell(2), layers.LSTMCell(2)]),
        [2, 3],
        weights(
            "cell/cells/0",
            "cell/cells/1",
            of=("kernel", "recurrent_kernel", "bias"),
        ),
    ),
    "TimeDistributed": (
        lambda: layers.TimeDistributed(layers.Dense(1)),
        [2, 3],
        weights("layer"),
    ),
    "MovingFree": (
        swa_tf.MovingFreeBatchNormalization,
        [2],
        [*BATCH_NORM, "mean", "variance", "n_updates", "n_samples"],
    ),
    "SeparableConv2D": (
        lambda: layers.SeparableConv2D(2, 1),
        [2, 2, 1],
        ["depthwise_kernel", "pointwise_kernel", "bias"],
    ),
}


@pytest.mark.parametrize(
    ("make", "shape", "wanted"), LAYERS.values(), ids=LAYERS
)
def test_names_in_a_layer(make, shape, wanted):
    layer = make()
    layer(tf.ones([1, *shape]))
    assert names(layer) == wanted


def test_names_in_attention():
    layer = layers.MultiHeadAttention(2, 3)
    layer(tf.ones([1, 2, 3]), tf.ones([1, 2, 3]))
    assert names(layer) == weights(
        "query_dense", "key_dense", "value_dense", "output_dense"
    )


def test_training_adds_no_names():
    """No optimizer, no metric, no loss, no counter of batches."""
    model = subclassed()
    before = names(model)
    model.compile(
        "adam",
        "mse",
        metrics=[tf.keras.metrics.MeanSquaredError()],
        run_eagerly=True,
    )
    model.fit(np.ones([2, 2]), np.ones([2, 1]), verbose=0)
    assert names(model) == before


def test_seeds_are_no_weights():
    inputs = tf.keras.Input([2])
    model = tf.keras.Model(
        inputs, layers.Dense(1)(layers.Dropout(0.5, seed=1)(inputs))
    )
    model(tf.ones([1, 2]), training=True)
    assert names(model) == weights("dense")


def layer_names(*given):
    return variable_names._layer_names(list(given))


def test_names_of_layers():
    class _Private(layers.Layer):
        pass

    class Net2D(layers.Layer):
        pass

    def both(cls, *args):
        return [cls(*args), cls(*args)]

    assert layer_names(*both(_Private)) == ["private", "private_1"]
    assert layer_names(*both(Net2D)) == ["net2d", "net2d_1"]
    assert layer_names(*both(layers.Conv2DTranspose, 1, 1)) == [
        "conv2d_transpose",
        "conv2d_transpose_1",
    ]


def test_names_that_users_gave_stay():
    layer = layers.Dense
    assert layer_names(layer(1, name="a"), layer(1)) == ["a", "dense"]
    assert layer_names(layer(1, name="dense_99")) == ["dense"]
    # The name that would be the second Dense's is taken, by a later layer.
    assert layer_names(layer(1), layer(1), layers.ReLU(name="dense_1")) == [
        "dense",
        "dense_2",
        "dense_1",
    ]


class Module(tf.Module):
    def __init__(self, **attributes):
        super().__init__()
        for name, value in attributes.items():
            setattr(self, name, value)


def variable(*shape):
    return tf.Variable(tf.zeros(shape))


def test_names_in_a_module():
    module = Module(
        w=variable(),
        parts=[Module(w=variable()), (dense(),)],
        by_name={"a": variable(), "b": None},
        by_number={2: variable(), 1: variable()},
        by_pair={(0, "x"): variable()},
        metric=tf.keras.metrics.Mean(),
        optimizer=optimizers.SGD(),
        something="else",
    )
    assert sorted(names(module)) == sorted(
        [
            "w",
            "parts/0/w",
            *weights("parts/1/0"),
            "by_name/a",
            "by_number/2",
            "by_number/1",
            "by_pair/0",
        ]
    )


def test_what_is_shared_goes_by_the_shortest_path_then_the_first():
    shared = variable(3)
    module = Module(a=Module(w=shared), b=Module(w=variable()), z=shared)
    assert sorted(names(module)) == ["b/w", "z"]
    layer = dense()
    found = names(Module(second=layer, first=layer))
    assert sorted(found) == ["second/bias", "second/kernel"]


def test_a_layer_used_twice_has_one_name():
    inputs = tf.keras.Input([1])
    layer = layers.Dense(1)
    assert names(tf.keras.Model(inputs, layer(layer(inputs)))) == weights(
        "dense"
    )


def test_an_attribute_added_later_changes_no_name():
    model = sequential()
    before = names(model)
    model.favourite = model.layers[0]
    assert names(model) == before


def test_equal_names_are_told_apart():
    first, second, third = variable(1), variable(2), variable(3)
    module = Module(_w=first, w=second, __w=third)
    found = variable_names.named_variables(module)
    assert {name: v.shape[0] for name, v in found.items()} == {
        "w": 1,
        "w_1": 2,
        "w_2": 3,
    }
    module = Module(**{"x": {"y": variable(1)}, "x/y": variable(2)})
    found = variable_names.named_variables(module)
    assert {name: v.shape[0] for name, v in found.items()} == {
        "x/y": 2,
        "x/y_1": 1,
    }


def test_weights_in_no_attribute_have_names_too():
    class Hidden(layers.Layer):
        def build(self, input_shape):
            self.add_weight(name="a", shape=[2])
            self.add_weight(name="b", shape=[3], trainable=False)
            self.c = self.add_weight(name="c", shape=[4])
            self.built = True

    layer = Hidden()
    layer.build(None)
    found = variable_names.named_variables(layer)
    assert found["c"].shape == [4]
    assert refs(found.values()) == refs(layer.weights)
    assert len(found) == 3


def test_a_set_of_several_is_refused():
    """Python orders it anew in each process."""
    assert names(Module(parts={Module(w=variable())})) == ["parts/0/w"]
    module = Module(parts={Module(w=variable()), Module(w=variable())})
    with pytest.raises(ValueError, match="`target` must hold its layers and"):
        names(module)

    class Model(tf.keras.Model):
        def __init__(self):
            super().__init__()
            self.parts = {dense(), dense()}

    with pytest.raises(
        ValueError, match=r"Received: '.*' of shape .* in a set"
    ):
        names(Model())


@pytest.mark.parametrize(
    "make",
    [
        lambda: tf.keras.Sequential([layers.Dense(1)]),
        Subclassed,
        layers.Flatten,
        Module,
    ],
)
def test_a_target_without_variables_is_refused(make):
    with pytest.raises(ValueError, match="`target` must hold variables: call"):
        names(make())


@pytest.mark.parametrize(
    "target", [tf.keras.metrics.Mean(), 1, [tf.Variable(1.0)], None]
)
def test_another_target_is_refused(target):
    with pytest.raises(TypeError, match="`target` must be a Keras model"):
        names(target)


def trained(optimizer):
    values = [tf.Variable([1.0, 2.0], name=name) for name in ("d/a", "d_7/b")]
    if compat.KERAS_3:
        values = [tf.keras.Variable([1.0, 2.0], name=name) for name in "ab"]
    optimizer.apply_gradients([(tf.ones([2]), v) for v in values])
    return optimizer


def slots(*kinds):
    return [f"{kind}/{i}" for kind in kinds for i in (0, 1)]


COUNTS = ["iterations", "learning_rate"]
EVERYWHERE = {
    "SGD": (
        lambda: optimizers.SGD(momentum=0.9),
        [*COUNTS, *slots("momentums")],
    ),
    "Adam": (optimizers.Adam, [*COUNTS, *slots("momentums", "velocities")]),
    "Adafactor": (optimizers.Adafactor, [*COUNTS, *slots("r", "c", "v")]),
}


@pytest.mark.parametrize(
    ("make", "wanted"), EVERYWHERE.values(), ids=EVERYWHERE
)
def test_names_in_an_optimizer(make, wanted):
    assert names(trained(make())) == wanted


def test_an_optimizer_that_is_not_built_has_its_counts():
    assert names(optimizers.SGD()) == COUNTS


def test_no_name_in_an_optimizer_leads_to_a_weight_of_the_model():
    model = sequential()
    model.compile(optimizers.Adam(), "mse", run_eagerly=True)
    model.fit(np.ones([1, 4, 4, 1]), np.ones([1, 1]), verbose=0)
    found = variable_names.named_variables(model.optimizer)
    assert set(refs(found.values())).isdisjoint(refs(model.weights))
    # Two counts, and two slots for each of five layers' weights but for the
    # two statistics.
    assert len(found) == 2 + 2 * 10


@pytest.mark.skipif(not compat.KERAS_3, reason="Keras 3 has another class")
def test_names_in_a_loss_scale_optimizer():
    optimizer = tf.keras.mixed_precision.LossScaleOptimizer(
        optimizers.SGD(momentum=0.9)
    )
    assert names(trained(optimizer)) == [
        *COUNTS,
        "step_counter",
        "dynamic_scale",
        *(f"inner_optimizer/{name}" for name in [*COUNTS, *slots("momentums")]),
    ]


@pytest.mark.skipif(not compat.KERAS_3, reason="of Keras 3 alone")
def test_an_optimizer_s_variables_in_no_attribute_have_names_too():
    class Hiding(optimizers.SGD):
        def build(self, variables):
            super().build(variables)
            self.add_variable(shape=(), name="hidden")

    optimizer = trained(Hiding())
    found = variable_names.named_variables(optimizer)
    assert len(found) == 3
    assert set(refs(found.values())) == set(refs(optimizer.variables))


HYPER = ["iterations", "decay", "learning_rate", "momentum"]
LEGACY = {}
if not compat.KERAS_3:
    SCALE = weights("loss_scale", of=("current_loss_scale", "good_steps"))
    ADAM = ["iterations", "beta_1", "beta_2", "decay", "learning_rate"]
    LEGACY = {
        "SGD": (
            lambda: optimizers.legacy.SGD(momentum=0.9),
            [*HYPER, *slots("momentum")],
        ),
        "Adam": (
            optimizers.legacy.Adam,
            [*ADAM, *slots("m", "v")],
        ),
        "LossScaleOptimizer": (
            lambda: tf.keras.mixed_precision.LossScaleOptimizer(
                optimizers.legacy.SGD(momentum=0.9)
            ),
            [*HYPER, *SCALE, *slots("momentum")],
        ),
        "LossScaleOptimizerV3": (
            lambda: tf.keras.mixed_precision.LossScaleOptimizer(
                optimizers.SGD(momentum=0.9)
            ),
            [*COUNTS, *SCALE, *slots("momentums")],
        ),
    }


@pytest.mark.skipif(compat.KERAS_3, reason="Keras 3 has none of these")
@pytest.mark.parametrize(("make", "wanted"), LEGACY.values(), ids=LEGACY)
def test_names_in_a_legacy_optimizer(make, wanted):
    assert names(trained(make())) == wanted


ADDONS = {
    "SGDW": (
        lambda tfa: tfa.optimizers.SGDW(0.1, momentum=0.9),
        [*HYPER, "weight_decay", *slots("momentum")],
    ),
    "SWA": (
        lambda tfa: tfa.optimizers.SWA(optimizers.legacy.SGD(momentum=0.9)),
        [
            "iterations",
            *weights(
                "awg_optimizer", of=("decay", "learning_rate", "momentum")
            ),
            *slots("average", "awg_optimizer/momentum"),
        ],
    ),
    "MovingAverage": (
        lambda tfa: tfa.optimizers.MovingAverage(optimizers.legacy.SGD()),
        [
            "iterations",
            *weights(
                "awg_optimizer", of=("decay", "learning_rate", "momentum")
            ),
            *slots("average"),
        ],
    ),
}


@pytest.mark.skipif(TFA is None, reason="TensorFlow Addons needs 2.15")
@pytest.mark.parametrize(("make", "wanted"), ADDONS.values(), ids=ADDONS)
def test_names_in_an_optimizer_of_addons(make, wanted):
    assert names(trained(make(TFA))) == wanted
