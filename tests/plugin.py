"""The start of every test: four logical CPUs, one seed, a clean Keras."""

import gc
import importlib.metadata
import shutil

import hypothesis
import pytest
import tensorflow as tf

from swa_tf.averaging import ONE_AT_A_TIME
from swa_tf.support import compat
from tests import checkpoint_files
from tests.conftest import SHARED_DATA

# Before TensorFlow initialises: four devices for MirroredStrategy.
tf.config.set_logical_device_configuration(
    tf.config.list_physical_devices("CPU")[0],
    [tf.config.LogicalDeviceConfiguration()] * 4,
)

hypothesis.settings.register_profile(
    "swa_tf", deadline=None, derandomize=True, database=None
)
hypothesis.settings.load_profile("swa_tf")


# Keras 3 collects garbage at each clear, which takes longer than many a test:
# Python does so when there is enough of it.
CLEAR = {"free_memory": False} if compat.KERAS_3 else {}


def pytest_collection_finish():
    # TensorFlow's modules are no garbage: what is frozen is not looked at.
    gc.freeze()


@pytest.fixture(scope="module", autouse=True)
def _less_to_look_at():
    """Nor at what the tests of other files have imported and traced."""
    gc.collect()
    gc.freeze()


def _stack():
    door = tf.keras.layers.Layer.__module__.split(".")[0]
    packages = ["tensorflow", door]
    if tf.__version__.startswith("2.15."):
        packages.append("tensorflow-addons")
    installed = {d.metadata["Name"] for d in importlib.metadata.distributions()}
    return "stack: " + ", ".join(
        f"{package} {importlib.metadata.version(package)}"
        for package in packages
        if package in installed
    )


def pytest_report_header(config):
    return _stack()


def pytest_sessionfinish(session):
    output = getattr(session.config, "workeroutput", None)
    if output is not None:  # of `pytest -n`
        output["stack"] = _stack()


def pytest_terminal_summary(terminalreporter, config):
    if config.get_verbosity() < 0:  # `-q` hides the header.
        terminalreporter.write_line(_stack())


@pytest.fixture(autouse=True)
def _fresh_state():
    """The same seed for every test, and nothing left over from the last."""
    tf.keras.utils.set_random_seed(0)
    yield
    tf.keras.backend.clear_session(**CLEAR)
    tf.keras.mixed_precision.set_global_policy("float32")
    tf.config.run_functions_eagerly(False)
    with pytest.raises(RuntimeError):  # or threads of other tests would wait
        ONE_AT_A_TIME.release()


@pytest.fixture
def shared_data():
    """The folder of real images beside the clone."""
    if not SHARED_DATA.is_dir():
        pytest.skip("needs real images: no folder ../shared/data")
    return SHARED_DATA


@pytest.fixture(scope="session")
def sound(tmp_path_factory):
    """A folder for each form, with three checkpoints of a model."""
    folder = tmp_path_factory.mktemp("sound")
    for form in checkpoint_files.FORMS:
        (folder / form).mkdir()
        for i in range(3):
            path = checkpoint_files.path_of(form, folder / form, f"ckpt-{i}")
            checkpoint_files.write_trained(form, path, seed=i)
            tf.keras.backend.clear_session()
    return folder


@pytest.fixture
def three(sound, tmp_path):
    """Copies the three of a form, and returns their paths."""

    def copied(form):
        folder = tmp_path / "run"
        shutil.copytree(sound / form, folder)
        return [
            checkpoint_files.path_of(form, folder, f"ckpt-{i}")
            for i in range(3)
        ]

    return copied
