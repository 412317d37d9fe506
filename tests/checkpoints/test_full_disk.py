"""Full disks, and folders that cannot be written to, beyond one average.

That of `average_checkpoints` is in test_whole.py.
"""

import os

import pytest
import tensorflow as tf

import swa_tf
from benchmarks.cifar10.run_directory import Records, RunDirectory
from benchmarks.common.errors import BenchmarkError
from swa_tf.support import atomic_files
from tests import checkpoint_files, damage, fitting
from tests.checkpoint_files import KERAS, OBJECT, contents
from tests.fitting import exhaustive, quick_to_trace  # noqa: F401

pytestmark = pytest.mark.usefixtures("quick_to_trace")

SUFFIXES = [".keras", ".weights.h5", ".h5", ""]


@pytest.fixture(scope="module", params=SUFFIXES, ids=lambda s: s or "folder")
def written(request, tmp_path_factory):
    """A trained model, and where it was written."""
    path = tmp_path_factory.mktemp("written") / f"model{request.param}"
    model = fitting.make_model()
    fitting.fit(model, epochs=1)
    atomic_files.save_model(model, path)
    return model, path


def largest(path):
    files = [path, *path.rglob("*")]
    return max(f.stat().st_size for f in files if f.is_file())


@pytest.mark.parametrize("part", [0.0, 0.3, 0.9, 0.999])
def test_a_model_that_does_not_fit(part, written):
    model, path = written
    before = contents(path.parent)
    with damage.disk_full_after(part * largest(path)):
        with pytest.raises(OSError, match="large") as raised:
            atomic_files.save_model(model, path)
    assert f"'{path}'" in str(raised.value)
    assert contents(path.parent) == before


@pytest.mark.parametrize("folder", ["file", "/proc/x"])
def test_a_model_where_nothing_can_be_written(folder, written, tmp_path):
    model, path = written
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match=folder):
        atomic_files.save_model(model, tmp_path / folder / path.name)
    assert [each.name for each in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize("suffix", [".keras", exhaustive(".weights.h5"), ""])
def test_a_training_whose_average_does_not_fit(suffix, tmp_path):
    """It keeps its weights, and goes on as soon as there is space again."""
    path = tmp_path / f"averaged{suffix}"
    model, trained = fitting.make_model(), fitting.make_model()
    arguments = {"epochs": 3, "validation_data": None}
    fitting.fit(trained, **arguments)
    full = damage.disk_full_after(1000)
    fills_up = tf.keras.callbacks.LambdaCallback(
        on_train_end=lambda logs: full.__enter__()
    )
    swa = fitting.callback(filepath=path)
    with pytest.raises(OSError, match="large") as raised:
        fitting.fit(model, swa, fills_up, **arguments)
    full.__exit__(None, None, None)
    assert f"'{path}'" in str(raised.value)
    fitting.assert_same(fitting.weights(model), fitting.weights(trained))
    assert not list(tmp_path.iterdir())
    fitting.fit(model, swa, **arguments)
    assert list(tmp_path.iterdir()) == [path]


def averages(inputs, output):
    swa_tf.average_windows(inputs, output, 2)


def soup(inputs, output):
    swa_tf.greedy_soup(inputs, output, lambda path: 1.0)


@pytest.mark.parametrize("form", [OBJECT, KERAS])
@pytest.mark.parametrize("write", [averages, soup])
@pytest.mark.parametrize("limit", [0, 1000])
def test_averages_that_do_not_fit(write, form, limit, three, tmp_path):
    inputs = three(form)
    name = "new/windows" if write is averages else "new/soup"
    output = checkpoint_files.path_of(form, tmp_path, name)
    before = contents(tmp_path)
    with damage.disk_full_after(limit):
        with pytest.raises(OSError, match=f"large: '{output}'"):
            write(inputs, output)
    assert contents(tmp_path) == before


@pytest.mark.parametrize("limit", [0, 100])
def test_a_run_of_the_benchmark(limit, tmp_path):
    """The epoch before is there, and the run can be resumed from it."""
    run = RunDirectory(str(tmp_path), {"flags": {}, "stack": {}}, False)
    run.start()
    variable = tf.Variable(tf.range(1000.0))
    checkpoint = tf.train.Checkpoint(variable=variable)
    records = Records(epochs=[{"epoch": 1}])
    run.save(checkpoint, records)
    run.write_text("results.md", "old")
    before = contents(tmp_path)
    records.epochs.append({"epoch": 2})
    with damage.disk_full_after(limit):
        with pytest.raises(BenchmarkError, match=r"epoch-00002 .*large"):
            run.save(checkpoint, records)
        with pytest.raises(BenchmarkError, match=r"results\.md.*large"):
            run.write_text("results.md", "new" * 100)
    assert contents(tmp_path).keys() == before.keys()
    variable.assign(tf.zeros([1000]))
    assert run.restore(checkpoint).epochs == [{"epoch": 1}]
    assert float(variable[7]) == 7.0
    assert (tmp_path / "results.md").read_text() == "old"
    assert ".partial" not in "".join(os.listdir(tmp_path))
