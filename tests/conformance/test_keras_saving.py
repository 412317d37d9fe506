"""Models saved and loaded: trained and averaged, in every format of Keras."""

import os

import numpy as np
import pytest
import tensorflow as tf

import swa_tf
from swa_tf.support import compat
from tests import programs
from tests.fitting import exhaustive, quick_to_trace, slow  # noqa: F401

pytestmark = pytest.mark.usefixtures("quick_to_trace")
layers = tf.keras.layers
KERAS_3 = compat.KERAS_3
ADDONS = compat.tensorflow_addons()
MSE = tf.keras.losses.MeanSquaredError


def data():
    rng = np.random.default_rng(0)
    x = rng.normal(1.0, 2.0, [16, 4])
    return x.astype(np.float32), rng.normal(size=[16, 1]).astype(np.float32)


# --- Kinds of models ---------------------------------------------------------


def stages():
    return [
        layers.Dense(5),
        swa_tf.MovingFreeBatchNormalization(momentum=0.5),
        layers.Dense(1),
    ]


def sequential():
    return tf.keras.Sequential(stages())


def functional():
    inputs = tf.keras.Input([4])
    first, norm, last = stages()
    return tf.keras.Model(inputs, last(norm(first(inputs))))


@tf.keras.utils.register_keras_serializable("tests")
class Subclassed(tf.keras.Model):
    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.first, self.norm, self.last = stages()

    def call(self, inputs, training=None):
        return self.last(self.norm(self.first(inputs), training=training))


def subclassed():
    return Subclassed()


@tf.keras.utils.register_keras_serializable("tests")
class InList(layers.Layer):
    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.members = stages()

    def call(self, inputs, training=None):
        first, norm, last = self.members
        return last(norm(first(inputs), training=training))


def nested():
    """A model in a model, and layers in the list of another layer."""
    inputs = tf.keras.Input([4])
    inner = tf.keras.Sequential([layers.Dense(4)])
    return tf.keras.Model(inputs, InList()(inner(inputs)))


def built(make):
    model = make()
    if not model.built:
        model(data()[0][:1])
    return model


OPTIMIZERS = {
    sequential: swa_tf.optimizers.MomentumW,
    functional: swa_tf.optimizers.AdamW,
    subclassed: swa_tf.optimizers.MomentumW,
    nested: swa_tf.optimizers.AdamW,
}
KINDS = list(OPTIMIZERS)


def name_of(value):
    if isinstance(value, list):
        return value[0]
    return getattr(value, "__name__", value)


def fit(model, *callbacks, **kwargs):
    """Trains three epochs, of which the last two are averaged."""
    x, y = data()
    swa = swa_tf.SWACallback(start_epoch=1, refit_data=[x], verbose=0, **kwargs)
    model.fit(
        x,
        y,
        batch_size=4,
        epochs=3,
        validation_data=(x, y),
        verbose=0,
        callbacks=[*callbacks, swa],
    )
    return swa.averages


# --- Formats -----------------------------------------------------------------


def load_weights(path, make):
    model = built(make)
    loading = model.load_weights(path)
    if loading is not None:  # Keras 2, its own format
        loading.assert_existing_objects_matched()
    return model


def write_checkpoint(model, path):
    tf.train.Checkpoint(model=model).write(path)


def read_checkpoint(path, make):
    model = built(make)
    status = tf.train.Checkpoint(model=model).read(path)
    status.assert_existing_objects_matched()
    return model


def load_model(path, make):
    return tf.keras.models.load_model(path)


# The suffix of each, what writes it and what reads it.
FORMATS = {
    "keras": (".keras", lambda model, path: model.save(path), load_model),
    "h5": (".h5", lambda model, path: model.save(path), load_model),
    "weights": (
        ".weights.h5",
        lambda model, path: model.save_weights(path),
        load_weights,
    ),
    "export": (
        "",
        lambda model, path: model.export(path),
        lambda path, make: tf.saved_model.load(path),
    ),
    "checkpoint": ("", write_checkpoint, read_checkpoint),
    "folder of weights": (
        "",
        lambda model, path: model.save_weights(path),
        load_weights,
    ),
    "folder": ("", lambda model, path: model.save(path), load_model),
}


def formats(make):
    """Returns the formats in which Keras saves all of a model of this kind."""
    kept = []
    for form in FORMATS:
        combined = [(form, make.__name__), (form, "any model")]
        if not any(
            {**REFUSED, **LOST}.get(key, [False])[0] for key in combined
        ):
            kept.append(form)
    return kept


def outputs(model):
    """Returns the outputs of a model, or of an exported one."""
    x, _ = data()
    return np.asarray(getattr(model, "serve", model)(x))


def round_trip(model, form, make, folder):
    """Saves the model and loads it, which must change no output."""
    suffix, write, _ = FORMATS[form]
    path = str(folder / f"{form}{suffix}")
    expected = outputs(model)
    write(model, path)
    return loaded_as(model, form, make, path, expected)


def loaded_as(model, form, make, path, expected):
    loaded = FORMATS[form][2](path, make)
    if form == "export":  # compiled as a whole: rounds otherwise
        np.testing.assert_allclose(
            outputs(loaded), expected, rtol=1e-5, atol=1e-6
        )
    else:
        np.testing.assert_array_equal(outputs(loaded), expected)
        assert bits(loaded.weights) == bits(model.weights)
    return loaded


def bits(variables):
    return [v.numpy().tobytes() for v in variables]


def slots(optimizer):
    variables = optimizer.variables
    return sorted(bits(variables() if callable(variables) else variables))


# --- What Keras refuses ------------------------------------------------------


@tf.keras.utils.register_keras_serializable("tests")
class PlainSubclassed(tf.keras.Model):
    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.dense = layers.Dense(1)

    def call(self, inputs):
        return self.dense(inputs)


@tf.keras.utils.register_keras_serializable("tests")
class Halving(tf.keras.optimizers.schedules.LearningRateSchedule):
    def __call__(self, step):
        return 0.5 ** tf.cast(step, tf.float32)

    def get_config(self):
        return {}


def plain(optimizer="sgd", loss=MSE, **kwargs):
    """A compiled model with nothing of this library in it."""
    model = tf.keras.Sequential([tf.keras.Input([4]), layers.Dense(1)])
    model.compile(optimizer, loss() if callable(loss) else loss, **kwargs)
    return model


def there_and_back(model, path):
    model.save(path)
    tf.keras.models.load_model(path)


def save_subclassed(path):
    model = PlainSubclassed()
    model(data()[0])
    there_and_back(model, path + ".h5")


def save_with_schedule(path):
    model = plain(tf.keras.optimizers.SGD(Halving()))
    there_and_back(model, path + ".h5")


# What is combined: (whether this Keras refuses it, its error, its message, an
# attempt without this library).
REFUSED = {
    ("h5", "subclassed"): (
        True,
        ValueError if KERAS_3 else NotImplementedError,
        "Unknown layer: 'PlainSubclassed'"
        if KERAS_3
        else "requires the model to be a Functional model or a Sequential",
        save_subclassed,
    ),
    ("h5", "a loss given by its short name"): (
        KERAS_3,
        ValueError,
        "Could not deserialize 'keras.metrics.mse'",
        lambda path: there_and_back(plain(loss="mse"), path + ".h5"),
    ),
    ("h5", "a registered schedule"): (
        not KERAS_3,
        ValueError,
        "Unknown decay: 'Halving'",
        save_with_schedule,
    ),
    ("folder", "any model"): (
        KERAS_3,
        ValueError,
        "Invalid filepath extension for saving",
        lambda path: there_and_back(plain(), path),
    ),
    ("folder of weights", "any model"): (
        KERAS_3,
        ValueError,
        "The filename must end in `.weights.h5`",
        lambda path: plain().save_weights(path),
    ),
    ("jit_compile", "run_eagerly"): (
        not KERAS_3,
        ValueError,
        "You cannot enable `run_eagerly` and `jit_compile`",
        lambda path: plain(jit_compile=True, run_eagerly=True).fit(
            *data(), verbose=0
        ),
    ),
}


@pytest.mark.parametrize("combined", list(REFUSED), ids=", ".join)
def test_what_keras_refuses(combined, tmp_path):
    here, error, message, attempt = REFUSED[combined]
    path = str(tmp_path / "model")
    if here:
        with pytest.raises(error, match=message):
            attempt(path)
    else:
        attempt(path)


class PlainInList(layers.Layer):
    def __init__(self):
        super().__init__()
        self.members = [layers.Dense(1)]

    def call(self, inputs):
        return self.members[0](inputs)


def layers_in_lists(path):
    model = tf.keras.Sequential([tf.keras.Input([4]), PlainInList()])
    write_checkpoint(model, path)
    return [(4, 1)], [tuple(s) for _, s in tf.train.list_variables(path)]


def slots_after(optimizer, path):
    model = plain(optimizer)
    model.fit(*data(), verbose=0)
    model.save(path)
    return slots(model.optimizer), slots(
        tf.keras.models.load_model(path).optimizer
    )


def slots_in_keras(path):
    optimizers = tf.keras.optimizers
    optimizers = optimizers if KERAS_3 else optimizers.legacy
    return slots_after(optimizers.SGD(momentum=0.5), path + ".keras")


def slots_in_h5(path):
    optimizer = tf.keras.optimizers.SGD(momentum=0.5)
    return slots_after(optimizer, path + ".h5")


def slots_in_folder(path):
    return slots_after(tf.keras.optimizers.SGD(momentum=0.5), path)


def optimizer_after_h5(path):
    model = plain(tf.keras.optimizers.Adam())
    model.save(path + ".h5")
    model.save(path + ".keras")
    loaded = tf.keras.models.load_model(path + ".keras")
    return [type(model.optimizer)], [type(loaded.optimizer)]


# What Keras leaves out without a word: (whether this one does, a function that
# gives what was there and what is in the file).
LOST = {
    ("checkpoint", "nested"): (KERAS_3, layers_in_lists),
    ("keras", "slots of a legacy optimizer"): (not KERAS_3, slots_in_keras),
    ("h5", "slots"): (KERAS_3, slots_in_h5),
    ("keras", "the optimizer, after h5"): (KERAS_3, optimizer_after_h5),
}
if not KERAS_3:  # which refuses the folder
    LOST["folder", "slots"] = (True, slots_in_folder)


@pytest.mark.parametrize("combined", list(LOST), ids=", ".join)
def test_what_keras_loses(combined, tmp_path):
    here, attempt = LOST[combined]
    there, written = attempt(str(tmp_path / "model"))
    assert any(each not in written for each in there) == here


# --- What is saved -----------------------------------------------------------


def trained(make, **kwargs):
    model = make()
    model.compile(OPTIMIZERS[make](0.05), MSE(), run_eagerly=True)
    return model, fit(model, **kwargs)


# In Keras 2 the next three fail in "folder", the last format: what saves the
# average is left in the model after `fit`, and cannot be called in a graph.


@pytest.mark.parametrize(
    "make",
    [exhaustive(sequential), functional, subclassed, exhaustive(nested)],
    ids=name_of,
)
def test_trained_model(make, tmp_path):
    model, _ = trained(make, final_weights="trained")
    for form in formats(make):
        loaded = round_trip(model, form, make, tmp_path)
        if FORMATS[form][2] is load_model:
            check_optimizer(loaded.optimizer, model.optimizer, form)


def check_optimizer(loaded, optimizer, form):
    assert type(loaded) is type(optimizer)
    slots_are_lost = {"keras": ADDONS, "h5": KERAS_3, "folder": True}
    if not slots_are_lost[form]:
        assert int(loaded.iterations) == 12
        assert slots(loaded) == slots(optimizer)


@pytest.mark.slow  # as the next test, but for the way in
@pytest.mark.parametrize("make", KINDS, ids=name_of)
def test_averaged_model_in_the_block(make, tmp_path):
    model, averages = trained(make, final_weights="trained")
    before = outputs(model)
    refit_data = [data()[0]]
    with swa_tf.averaged_weights(averages, model, refit_data=refit_data):
        assert np.abs(outputs(model) - before).max() > 1e-3
        for form in formats(make):
            round_trip(model, form, make, tmp_path)
    np.testing.assert_array_equal(outputs(model), before)


@pytest.mark.parametrize(
    "make",
    [sequential, exhaustive(functional), exhaustive(subclassed), slow(nested)],
    ids=name_of,
)
def test_averaged_model_after_fit(make, tmp_path):
    model, averages = trained(make)
    for form in formats(make):
        loaded = round_trip(model, form, make, tmp_path)
        if form == "export":
            continue
        for variable, weight in zip(
            model.trainable_variables, loaded.trainable_variables
        ):
            np.testing.assert_array_equal(averages.average(variable), weight)


@pytest.mark.parametrize(
    ("make", "form"),
    # The formats of the other kind are in tests/callbacks.
    [
        (functional, "h5"),
        exhaustive(subclassed, "keras"),
        exhaustive(subclassed, "weights"),
        (subclassed, "export"),
    ],
    ids=name_of,
)
def test_filepath(make, form, tmp_path):
    path = str(tmp_path / f"averaged{FORMATS[form][0]}")
    model, _ = trained(make, filepath=path)
    loaded_as(model, form, make, path, outputs(model))
    assert os.listdir(tmp_path) == [os.path.basename(path)]


def test_refit_statistics_are_served(tmp_path):
    """By a model for serving, of the layers of the one that was trained."""

    def serving(first, norm, last):
        inputs = tf.keras.Input([4])
        x = norm(first(inputs), use_moving_statistics=False)
        return tf.keras.Model(inputs, last(x))

    model, _ = trained(functional)
    served = serving(*model.layers[1:])
    assert np.abs(outputs(served) - outputs(model)).max() > 1e-3
    for form in formats(functional):
        round_trip(served, form, lambda: serving(*stages()), tmp_path)


# --- In a process that has imported no more than `swa_tf` --------------------

LOAD = """
import sys
import numpy as np
import tensorflow as tf
import swa_tf

x = tf.constant(np.load(sys.argv[1]))
for path in sys.argv[2:]:
    np.save(path + ".npy", tf.keras.models.load_model(path)(x))
"""


@pytest.mark.slow
def test_no_custom_objects_in_another_process(tmp_path):
    x, _ = data()
    np.save(tmp_path / "x.npy", x)
    schedule = swa_tf.schedules.LinearRamp(0.05, 0.01, 2, 4)
    expected = {}
    for make in (sequential, functional):
        for form in ("keras", "h5", "folder"):
            if form not in formats(make):
                continue
            refused = REFUSED["h5", "a registered schedule"][0]
            rate = 0.05 if form == "h5" and refused else schedule
            model = built(make)
            model.compile(OPTIMIZERS[make](rate), MSE())
            swa_tf.refit_batch_norm(model, [x])
            path = str(tmp_path / f"{make.__name__}-{form}{FORMATS[form][0]}")
            model.save(path)
            expected[path] = outputs(model)
    result = programs.run_code(LOAD, tmp_path / "x.npy", *expected)
    assert result.returncode == 0, result.stderr
    for path, values in expected.items():
        np.testing.assert_array_equal(np.load(path + ".npy"), values)


# --- What Keras writes in training -------------------------------------------


class Recorder(tf.keras.callbacks.Callback):
    """The outputs of the trained model at the end of each epoch."""

    def __init__(self):
        super().__init__()
        self.outputs = []

    def on_epoch_end(self, epoch, logs=None):
        self.outputs.append(outputs(self.model))


IN_TRAINING = ["keras", "h5", "weights", "folder of weights"]


@pytest.mark.parametrize(
    ("make", "forms"),
    [
        exhaustive(sequential, IN_TRAINING),
        exhaustive(functional, IN_TRAINING),
        (subclassed, IN_TRAINING),
        slow(nested, IN_TRAINING),
        *((functional, [f]) for f in formats(functional) if f == "folder"),
    ],
    ids=name_of,
)
def test_files_of_model_checkpoint(make, forms, tmp_path):
    model = make()
    model.compile(OPTIMIZERS[make](0.05), MSE(), run_eagerly=True)
    forms = [form for form in forms if form in formats(make)]
    names = {form: f"{form}{{epoch}}{FORMATS[form][0]}" for form in forms}
    checkpoints = [
        tf.keras.callbacks.ModelCheckpoint(
            str(tmp_path / name),
            save_weights_only=FORMATS[form][2] is load_weights,
        )
        for form, name in names.items()
    ]
    recorder = Recorder()
    fit(model, recorder, *checkpoints, evaluate="averaged")
    for form, name in names.items():
        for epoch, expected in enumerate(recorder.outputs, start=1):
            path = str(tmp_path / name.format(epoch=epoch))
            loaded = FORMATS[form][2](path, make)
            np.testing.assert_array_equal(outputs(loaded), expected)
