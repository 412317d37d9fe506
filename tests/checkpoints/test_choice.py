"""The choice of checkpoints, their weights, and the report."""

import contextlib
import datetime
import itertools
import json
import os
import tempfile

import hypothesis
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given
from hypothesis import strategies as st

import swa_tf
from swa_tf.support.stack import KERAS_3
from tests import checkpoint_files
from tests.checkpoint_files import FORMS, H5, KERAS, NAME, OBJECT, WEIGHTS

EPS32 = 2.0**-24  # half a unit in the last place of 1, relative
REPORTED = {
    "output",
    "form",
    "inputs",
    "newest",
    "n_parameters",
    "averaged",
    "from_newest",
    "dropped",
    "batch_norm_statistics",
    "guessed",
    "tensors",
    "weights",
    "decay",
    "written",
}


def _write(folder, values, form=OBJECT):
    """`{name: arrays}`, or `{name: number}` of one weight `w`; the paths."""
    paths = []
    os.makedirs(folder, exist_ok=True)
    for name, arrays in values.items():
        if not isinstance(arrays, dict):
            arrays = {"w": np.float32(arrays)}
        paths.append(checkpoint_files.path_of(form, str(folder), name))
        checkpoint_files.write(form, paths[-1], arrays)
    return paths


def _read(path, form=OBJECT, like=None):
    like = like or {"w": np.float32(0)}
    arrays = checkpoint_files.read(form, str(path), like)
    return arrays["w"] if like.keys() == {"w"} else arrays


def _run(folder, numbers=(1, 2, 10)):
    return _write(folder, {f"ckpt-{n}": n for n in numbers})


def _tree(folder):
    """All that is below a folder, hidden files too."""
    return sorted(str(path) for path in folder.rglob("*"))


@contextlib.contextmanager
def _output():
    with tempfile.TemporaryDirectory() as folder:
        yield os.path.join(folder, "average")


# Which.


@pytest.mark.parametrize(
    ("last", "every", "numbers"),
    [
        (None, 1, [1, 2, 3, 9, 10, 11, 12]),
        (None, 2, [1, 3, 10, 12]),
        (None, 3, [1, 9, 12]),
        (None, 7, [12]),
        (None, 100, [12]),
        (1, 1, [12]),
        (3, 1, [10, 11, 12]),
        (7, 1, [1, 2, 3, 9, 10, 11, 12]),
        (2, 3, [9, 12]),
        (np.int64(2), np.int64(2), [10, 12]),
    ],
)
def test_last_and_every(last, every, numbers, tmp_path):
    for number in (1, 2, 3, 9, 10, 11, 12):
        (tmp_path / f"epoch_{number}.keras").touch()
    found = swa_tf.checkpoints_in(tmp_path, last=last, every=every)
    assert found == [str(tmp_path / f"epoch_{n}.keras") for n in numbers]


@pytest.mark.parametrize(
    ("arguments", "received"),
    [
        ({"last": 0}, "an integer >= 1. Received: last=0"),
        ({"last": -1}, "an integer >= 1. Received: last=-1"),
        ({"last": 1.0}, "an integer >= 1. Received: last=1.0"),
        ({"last": True}, "an integer >= 1. Received: last=True"),
        ({"last": "2"}, "an integer >= 1. Received: last='2'"),
        ({"last": 4}, "at most 3, the number of checkpoints to choose from"),
        ({"last": 3, "every": 2}, "at most 2, the number of checkpoints"),
        ({"every": 0}, "an integer >= 1. Received: every=0"),
        ({"every": -2}, "an integer >= 1. Received: every=-2"),
        ({"every": 1.5}, "an integer >= 1. Received: every=1.5"),
        ({"every": None}, "an integer >= 1. Received: every=None"),
    ],
)
def test_bad_last_and_every(arguments, received, tmp_path):
    for number in range(3):
        (tmp_path / f"epoch_{number}.keras").touch()
    with pytest.raises(ValueError, match="must be") as error:
        swa_tf.checkpoints_in(tmp_path, **arguments)
    assert received in str(error.value)


def test_a_bad_last_of_an_empty_directory(tmp_path):
    with pytest.raises(ValueError, match="`last` must be an integer >= 1"):
        swa_tf.checkpoints_in(tmp_path, last=0)


def test_checkpoint_manager(tmp_path):
    folder = str(tmp_path / "run")
    weight = tf.Variable(0.0)
    checkpoint = tf.train.Checkpoint(w=weight)
    manager = tf.train.CheckpointManager(checkpoint, folder, max_to_keep=4)
    for step in range(1, 12):
        weight.assign(2.0**step)
        manager.save()
    found = swa_tf.checkpoints_in(folder)
    assert found == manager.checkpoints
    assert [os.path.basename(p) for p in found] == [
        f"ckpt-{n}" for n in (8, 9, 10, 11)
    ]
    report = swa_tf.average_checkpoints(
        swa_tf.checkpoints_in(folder, last=3), tmp_path / "average"
    )
    assert _read(tmp_path / "average") == np.float32((512 + 1024 + 2048) / 3)
    assert report["newest"] == manager.latest_checkpoint
    assert "save_counter" in report["from_newest"]
    checkpoint.read(str(tmp_path / "average")).assert_consumed()
    assert int(checkpoint.save_counter) == 11


@pytest.mark.parametrize("form", [WEIGHTS, KERAS, H5, OBJECT])
def test_model_checkpoint(form, tmp_path):
    if form == OBJECT and KERAS_3:
        pytest.skip("Keras 3 writes no such checkpoints")
    name = "epoch_{epoch:02d}-loss_{loss:.3f}" + checkpoint_files.suffix(form)
    seen = []
    inputs = tf.keras.layers.Input((2,))
    model = tf.keras.Model(inputs, tf.keras.layers.Dense(1)(inputs))
    model.compile(tf.keras.optimizers.SGD(0.1), "mse")
    model.fit(
        np.eye(2),
        np.ones((2, 1)),
        epochs=3,
        verbose=0,
        callbacks=[
            tf.keras.callbacks.ModelCheckpoint(
                str(tmp_path / "run" / name),
                save_weights_only=form in (WEIGHTS, OBJECT),
            ),
            tf.keras.callbacks.LambdaCallback(
                on_epoch_end=lambda *_: seen.append(model.get_weights())
            ),
        ],
    )
    found = swa_tf.checkpoints_in(tmp_path / "run")
    assert [os.path.basename(path)[:8] for path in found] == [
        "epoch_01",
        "epoch_02",
        "epoch_03",
    ]
    output = checkpoint_files.path_of(form, str(tmp_path), "average")
    swa_tf.average_checkpoints(tmp_path / "run", output)
    loaded = model.load_weights(output)
    if form == OBJECT:
        loaded.assert_existing_objects_matched()
    for got, *weights in zip(model.get_weights(), *seen):
        expected = np.mean(np.asarray(weights, np.float64), axis=0)
        np.testing.assert_allclose(got, expected, rtol=EPS32 * 1.001, atol=0)


# How much.


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Paths of 5 checkpoints, and their float32 weights."""
    weights = np.random.default_rng(0).normal(size=(5, 50)).astype(np.float32)
    values = {f"ckpt-{i}": {"w": weights[i]} for i in range(5)}
    return _write(tmp_path_factory.mktemp("run"), values), weights


def _check_average(run, shares, order, **arguments):
    """Holds the average of some of a run against given shares of each."""
    paths, weights = run
    with _output() as output:
        report = swa_tf.average_checkpoints(
            [paths[i] for i in order], output, **arguments
        )
        got = _read(output, like={"w": weights[0]}).astype(np.float64)
    shares = np.asarray(shares, np.float64)
    used = weights[list(order)].astype(np.float64)
    # One rounding to float32; in float64 a few of the largest weight.
    error = EPS32 * np.abs(got) + 50 * 2.0**-53 * np.abs(used).max(axis=0)
    assert (np.abs(got - shares @ used) <= error).all()
    assert [i["path"] for i in report["inputs"]] == [paths[i] for i in order]
    told = [each["share"] for each in report["inputs"]]
    np.testing.assert_allclose(told, shares, rtol=1e-13, atol=1e-15)
    assert abs(sum(told) - 1) < 1e-14


ORDERS = st.permutations(range(5)).flatmap(
    lambda order: st.integers(1, 5).map(lambda n: order[:n])
)


@hypothesis.settings(max_examples=30)
@given(order=ORDERS)
def test_equal_weights(run, order):
    _check_average(run, [1 / len(order)] * len(order), order)


@hypothesis.settings(max_examples=30)
@given(order=ORDERS, data=st.data())
def test_weights(run, order, data):
    n = len(order)
    number = st.floats(1e-3, 1e3) | st.integers(1, 100)
    weights = data.draw(st.lists(number, min_size=n, max_size=n))
    shares = np.asarray(weights, np.float64) / np.sum(weights)
    _check_average(run, shares, order, weights=weights)


@pytest.mark.parametrize("scale", [1e-300, 1e308, 5e-324])
def test_weights_of_any_size(run, scale):
    # Their sum would be infinite, or their quotients.
    _check_average(run, [1 / 3] * 3, (0, 1, 2), weights=[scale] * 3)


@hypothesis.settings(max_examples=30)
@given(order=ORDERS, decay=st.floats(0, 1, exclude_max=True))
def test_decay(run, order, decay):
    # average <- decay * average + (1 - decay) * weight, from the first on
    shares = [1.0]
    for _ in order[1:]:
        shares = [decay * share for share in shares] + [1 - decay]
    _check_average(run, shares, order, decay=decay)


def test_numbers_of_numpy(run):
    weights = np.float32([1, 2, 4])
    _check_average(run, [1 / 7, 2 / 7, 4 / 7], (0, 1, 2), weights=list(weights))
    decay = np.float32(0.9)
    c = 1 - float(decay)
    _check_average(run, [1 - c, c], (0, 1), decay=decay)


def test_it_is_said_whose_shape_is_which(tmp_path):
    values = {"ckpt-1": np.zeros(3, np.float32), "ckpt-2": np.zeros(4)}
    paths = _write(tmp_path, {k: {"w": v} for k, v in values.items()})
    with pytest.raises(ValueError, match="same tensors") as error:
        swa_tf.average_checkpoints(paths, tmp_path / "x")
    assert str(error.value).endswith(
        f"'{paths[0]}' with 'w' (float32, [3]) "
        f"instead of (float64, [4]), against '{paths[1]}'"
    )


def test_weights_in_an_array(run):
    weights = np.array([1, 2, 5])
    _check_average(run, weights / 8, (0, 1, 2), weights=weights)


def test_weights_of_sizes_far_apart(run):
    _check_average(run, [0, 1], (0, 1), weights=[1e-300, 1e300])


def test_decay_by_hand(tmp_path):
    paths = _write(tmp_path, {"a": 8.0, "b": 0.0, "c": 16.0})
    swa_tf.average_checkpoints(paths, tmp_path / "x", decay=0.75)
    # 8 -> 0.75 * 8 = 6 -> 0.75 * 6 + 0.25 * 16 = 8.5
    assert _read(tmp_path / "x") == 8.5
    swa_tf.average_checkpoints(paths[::-1], tmp_path / "y", decay=0.75)
    # 16 -> 12 -> 9 + 2 = 11
    assert _read(tmp_path / "y") == 11
    swa_tf.average_checkpoints(paths, tmp_path / "z", decay=0)
    assert _read(tmp_path / "z") == 16


def test_averages_of_10_and_of_5_merge_to_the_average_of_all_15(tmp_path):
    rng = np.random.default_rng(0)
    weights = rng.uniform(1, 2, size=(15, 200)).astype(np.float32)
    paths = _write(
        tmp_path, {f"ckpt-{i}": {"w": weights[i]} for i in range(15)}
    )
    average = swa_tf.average_checkpoints
    average(paths[:10], tmp_path / "a")
    average(paths[10:], tmp_path / "b")
    average([tmp_path / "a", tmp_path / "b"], tmp_path / "c", weights=[10, 5])
    average(paths, tmp_path / "all")
    merged = _read(tmp_path / "c", like={"w": weights[0]})
    exact = weights.astype(np.float64).mean(axis=0)
    # In [1, 2) a unit in the last place is 2^-23. The two averages are off by
    # half of one at most, hence what is merged of them; its rounding adds half.
    assert (np.abs(merged - exact) < 2.0**-23).all()
    at_once = _read(tmp_path / "all", like={"w": weights[0]})
    assert (np.abs(merged - at_once) <= 2.0**-23).all()
    assert (np.abs(at_once - exact) < 1.001 * 2.0**-24).all()


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("arguments", [{}, {"weights": [7]}, {"decay": 0.9}])
def test_a_single_input(form, arguments, tmp_path):
    values = {"w": np.float32([0.1, -3e38]), "n": np.int32(7)}
    paths = _write(tmp_path, {"a": values}, form)
    output = checkpoint_files.path_of(form, str(tmp_path), "b")
    report = swa_tf.average_checkpoints(paths, output, **arguments)
    got = _read(output, form, values)
    np.testing.assert_array_equal(got["w"], values["w"])
    assert got["n"] == 7
    assert report["inputs"] == [{"path": paths[0], "share": 1.0}]


@pytest.mark.parametrize(
    ("arguments", "received"),
    [
        ({"weights": [1, 2]}, "`weights` must be a list of 3 numbers > 0"),
        ({"weights": [1, 2, 3, 4]}, "`weights` must be a list of 3 numbers"),
        ({"weights": []}, "Received: weights=[]"),
        ({"weights": 1.0}, "Received: weights=1.0"),
        ({"weights": {1.0, 2.0, 3.0}}, "Received: weights={1.0, 2.0, 3.0}"),
        ({"weights": [1, 0, 2]}, "Received: weights=0"),
        ({"weights": [1, -1, 2]}, "weights=-1"),
        ({"weights": [1, float("nan"), 2]}, "weights=nan"),
        ({"weights": [1, float("inf"), 2]}, "weights=inf"),
        ({"weights": [1, "2", 2]}, "weights='2'"),
        ({"weights": [1, None, 2]}, "weights=None"),
        ({"weights": [1, True, 2]}, "weights=True"),
        ({"weights": "123"}, "weights='1'"),
        ({"decay": 1}, "`decay` must be in [0, 1). Received: decay=1"),
        ({"decay": 1.5}, "Received: decay=1.5"),
        ({"decay": -0.1}, "decay=-0.1"),
        ({"decay": float("nan")}, "decay=nan"),
        ({"decay": float("inf")}, "decay=inf"),
        ({"decay": "0.9"}, "decay='0.9'"),
        ({"decay": 0.9, "weights": [1, 2, 3]}, "Only one of"),
        ({"optimizer_slots": "discard"}, '"keep" or "drop"'),
    ],
)
def test_bad_shares(arguments, received, tmp_path):
    paths = _run(tmp_path)
    before = _tree(tmp_path)
    for dry_run in (False, True):
        with pytest.raises(ValueError, match="must") as error:
            swa_tf.average_checkpoints(
                paths, tmp_path / "x", dry_run=dry_run, **arguments
            )
        assert received in str(error.value)
    assert _tree(tmp_path) == before


# From the newest.


@pytest.mark.parametrize("form", FORMS)
def test_what_matches_comes_from_the_newest(form, tmp_path):
    values = {
        name: {"first": np.float32(a), "second": np.float32(b)}
        for name, a, b in [("ckpt-2", 1, 10), ("ckpt-3", 3, 30)]
    }
    paths = _write(tmp_path, values, form)[::-1]
    pattern = {
        OBJECT: "^second$",
        NAME: "^second$",
        WEIGHTS: r"values/vars/1$",
        KERAS: r"values/vars/1$",
        H5: r"/second",
    }[form]
    output = checkpoint_files.path_of(form, str(tmp_path), "x")
    report = swa_tf.average_checkpoints(paths, output, from_newest=[pattern])
    got = _read(output, form, values["ckpt-2"])
    assert (got["first"], got["second"]) == (2, 30)
    assert len(report["averaged"]) == 1
    assert report["n_parameters"] == 1
    assert report["newest"] == paths[0]


def test_patterns_match_somewhere_and_each_must(tmp_path):
    values = {"encoder": 1.0, "decoder": 2.0, "head": 3.0}
    paths = _write(
        tmp_path,
        {
            f"ckpt-{i}": {k: np.float32(v * i) for k, v in values.items()}
            for i in (1, 3)
        },
    )
    patterns = (pattern for pattern in ("coder", "x|h.a"))
    with pytest.raises(ValueError, match=r"to average.*none in"):
        swa_tf.average_checkpoints(paths, tmp_path / "x", from_newest=patterns)
    report = swa_tf.average_checkpoints(
        paths, tmp_path / "x", from_newest=["^de", "d$"]
    )
    assert report["averaged"] == ["encoder"]
    got = _read(tmp_path / "x", like={k: np.float32(0) for k in values})
    assert got == {"encoder": 2, "decoder": 6, "head": 9}
    # The second matches what is no longer left.
    for patterns in (["coders"], ["ENCODER"], ["^e", "encoder"], [""] * 2):
        with pytest.raises(ValueError, match="matches none of those left"):
            swa_tf.average_checkpoints(
                paths, tmp_path / "y", from_newest=patterns
            )


@pytest.mark.parametrize(
    ("from_newest", "error", "received"),
    [
        ("w", TypeError, "from_newest='w'"),
        (["("], ValueError, "'\\('"),
        (["w", "["], ValueError, "'\\['"),
        ([3], ValueError, "3"),
        ([None], ValueError, "None"),
    ],
)
def test_bad_patterns(from_newest, error, received, tmp_path):
    paths = _write(
        tmp_path,
        {f"c-{i}": dict.fromkeys("vw", np.float32(i)) for i in (1, 2)},
    )
    before = _tree(tmp_path)
    with pytest.raises(error, match=f"Received: {received}"):
        swa_tf.average_checkpoints(
            paths, tmp_path / "x", from_newest=from_newest
        )
    assert _tree(tmp_path) == before


@pytest.mark.parametrize("form", FORMS)
def test_the_newest_is_that_of_the_highest_number_or_written_last(
    form, tmp_path
):
    def values(i):
        return {"w": np.float32(i), "count": np.int32(i)}

    for folder, names in [
        ("numbers", ["ckpt-9", "ckpt-10", "ckpt-1"]),
        ("times", ["middle", "a_last", "first"]),
    ]:
        paths = _write(
            tmp_path / folder,
            {name: values(i) for i, name in enumerate(names)},
            form,
        )
        for i, time in enumerate((5, 6, 4)):
            # By number the one that was written last is another.
            time = -time if folder == "numbers" else time
            for file in checkpoint_files.files(form, paths[i]):
                os.utime(file, (1000 + time, 1000 + time))
        output = checkpoint_files.path_of(form, str(tmp_path), f"of_{folder}")
        report = swa_tf.average_checkpoints(paths, output)
        assert report["newest"] == paths[1]
        got = _read(output, form, values(0))
        assert (got["w"], got["count"]) == (1, 1)


# What is told.


def _strict(path):
    """A JSON file, without Python's own words for NaN and infinity."""

    def refuse(word):
        raise AssertionError(f"{word} is no JSON")

    with open(path, encoding="utf-8") as file:
        return json.load(file, parse_constant=refuse)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("slots", ["keep", "drop"])
@pytest.mark.filterwarnings("ignore:.*refit_batch_norm")
def test_json(form, slots, tmp_path):
    paths = []
    for i in (1, 2):
        name = f'ckpt "é {i}'
        paths.append(checkpoint_files.path_of(form, str(tmp_path), name))
        tf.keras.backend.clear_session()  # the same names in each
        checkpoint_files.write_trained(form, paths[-1], seed=i)
    output = checkpoint_files.path_of(form, str(tmp_path), "average")
    report = swa_tf.average_checkpoints(
        paths, output, weights=[1, 3.0], optimizer_slots=slots
    )
    assert _strict(f"{output}.json") == report
    assert report.keys() == REPORTED
    assert report["output"] == os.path.basename(output)
    assert report["inputs"] == [
        {"path": paths[0], "share": 0.25},
        {"path": paths[1], "share": 0.75},
    ]
    assert report["newest"] == paths[1]
    assert report["weights"] == [1, 3]
    assert report["decay"] is None
    # Kernel and bias; gamma, beta and the statistics.
    batch_norm = form != NAME
    assert report["n_parameters"] == 6 + 3 + (12 if batch_norm else 0)
    assert len(report["averaged"]) == 2 + (4 if batch_norm else 0)
    assert len(report["batch_norm_statistics"]) == (2 if batch_norm else 0)
    assert set(report["batch_norm_statistics"]) <= set(report["averaged"])
    parts = ("averaged", "from_newest", "dropped")
    names = [name for part in parts for name in report[part]]
    assert len(set(names)) == len(names)
    assert bool(report["dropped"]) == (slots == "drop")
    assert report["guessed"] == []  # all is known
    assert report["tensors"].keys() == set(names)
    kernel = {"shape": [2, 3], "dtype": "float32"}
    kernels = [report["tensors"][name] for name in report["averaged"]]
    assert kernels.count(kernel) == 1
    if form in (OBJECT, NAME):
        held = {
            name.replace("/.ATTRIBUTES/VARIABLE_VALUE", "")
            for name, _ in tf.train.list_variables(paths[0])
        }
        assert set(names) == held
    written = datetime.datetime.fromisoformat(report["written"])
    now = datetime.datetime.now(datetime.timezone.utc)
    assert datetime.timedelta() <= now - written < datetime.timedelta(minutes=5)


@pytest.mark.parametrize("form", FORMS)
def test_progress(form, tmp_path):
    values = {
        f"ckpt-{i}": {
            "w": np.full(700_000, i, np.float32),
            "n": np.full(5, i, np.int32),
        }
        for i in (1, 2)
    }
    paths = _write(tmp_path, values, form)
    calls = []
    output = checkpoint_files.path_of(form, str(tmp_path), "average")
    swa_tf.average_checkpoints(
        paths, output, progress=lambda *call: calls.append(call)
    )
    done, totals = zip(*calls)
    assert len(set(totals)) == 1
    size = 2 * (4 * 700_000 + 4 * 5)
    # An object-based checkpoint holds its graph, and a counter, as well.
    assert size <= totals[0] <= size + (2000 if form == OBJECT else 0)
    steps = np.diff([0, *done])
    assert (steps > 0).all()
    assert steps.max() == 4 * 700_000
    assert done[-1] == totals[0]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.filterwarnings("error::UserWarning")
def test_dry_run(form, tmp_path):
    paths = []
    for i in (1, 2):
        paths.append(checkpoint_files.path_of(form, tmp_path, f"ckpt-{i}"))
        with pytest.warns() if form == H5 else contextlib.nullcontext():
            checkpoint_files.write_trained(form, paths[-1], seed=1)
    before, calls = _tree(tmp_path), []
    output = checkpoint_files.path_of(form, str(tmp_path), "new/folder/x")
    dry = swa_tf.average_checkpoints(
        paths,
        output,
        decay=0.5,
        dry_run=True,
        progress=lambda *call: calls.append(call),
    )
    assert _tree(tmp_path) == before
    assert calls == []
    with pytest.warns() if form != NAME else contextlib.nullcontext():
        report = swa_tf.average_checkpoints(paths, output, decay=0.5)
    assert {**dry, "written": 0} == {**report, "written": 0}
    with pytest.raises(FileExistsError):
        swa_tf.average_checkpoints(paths, output, dry_run=True)


def test_the_warning_of_batch_norm_is_at_the_callers_line(tmp_path):
    paths = [str(tmp_path / f"ckpt-{i}") for i in (1, 2)]
    for i, path in enumerate(paths):
        checkpoint_files.write_trained(OBJECT, path, seed=i)
    better = itertools.count()
    calls = [
        lambda: swa_tf.average_checkpoints(paths, tmp_path / "a"),
        lambda: swa_tf.average_windows(paths, tmp_path / "b", 2),
        lambda: swa_tf.greedy_soup(
            paths, tmp_path / "c", lambda _: next(better)
        ),
    ]
    for name, call in zip(("a", "ckpt-2", "c"), calls):
        with pytest.warns(UserWarning, match="refit_batch_norm") as warned:
            call()
        assert len(warned) == 1
        assert warned[0].filename == __file__
        assert f"'{name}' holds" in str(warned[0].message)


# Windows.


@pytest.mark.parametrize("window", [1, 2, 3, 5])
def test_windows(window, tmp_path):
    numbers = {1: 1.0, 2: 7.0, 3: -2.0, 4: 100.0, 10: 0.3}
    _write(tmp_path / "run", {f"ckpt-{n}": v for n, v in numbers.items()})
    output = tmp_path / "new" / "windows"
    written = swa_tf.average_windows(tmp_path / "run", output, window)
    names = [f"ckpt-{n}" for n in numbers][window - 1 :]
    assert written == [str(output / name) for name in names]
    values = np.float32(list(numbers.values())).astype(np.float64)
    for i, path in enumerate(written):
        expected = np.float32(values[i : i + window].mean())
        assert _read(path) == expected
        report = _strict(f"{path}.json")
        assert report["output"] == names[i]
        assert [
            os.path.basename(each["path"]) for each in report["inputs"]
        ] == [f"ckpt-{n}" for n in list(numbers)[i : i + window]]
    parts = (".data-00000-of-00001", ".index", ".json")
    files = sorted(name + part for name in names for part in parts)
    assert sorted(os.listdir(output)) == files
    assert os.listdir(output.parent) == ["windows"]


@pytest.mark.parametrize("form", FORMS)
def test_windows_of_every_form(form, tmp_path):
    values = {
        f"ckpt-{i}": {"w": np.float32(2**i), "n": np.int32(i)} for i in range(3)
    }
    paths = _write(tmp_path / "run", values, form)
    output = f"{tmp_path / 'windows'}/"
    written = swa_tf.average_windows(paths, output, 2)
    assert [os.path.basename(path) for path in written] == [
        os.path.basename(path) for path in paths[1:]
    ]
    for i, path in enumerate(written):
        got = _read(path, form, values["ckpt-0"])
        assert (got["w"], got["n"]) == (1.5 * 2**i, i + 1)
    # They are checkpoints like others, for instance for an average of them.
    assert swa_tf.checkpoints_in(output) == written


def test_windows_in_the_order_given(tmp_path):
    paths = _run(tmp_path / "run")[::-1]
    written = swa_tf.average_windows(paths, tmp_path / "windows", 2)
    assert [os.path.basename(path) for path in written] == ["ckpt-2", "ckpt-1"]
    assert [_read(path) for path in written] == [6, 1.5]


def test_windows_take_the_options(tmp_path):
    values = {"v": np.float32(0), "w": np.float32(0)}
    _write(
        tmp_path / "run",
        {f"ckpt-{i}": dict.fromkeys("vw", np.float32(i)) for i in (1, 2, 3)},
    )
    patterns = (pattern for pattern in ["w"])  # passed once
    written = swa_tf.average_windows(
        tmp_path / "run", tmp_path / "windows", 2, from_newest=patterns
    )
    found = [_read(path, like=values) for path in written]
    assert found == [{"v": 1.5, "w": 2}, {"v": 2.5, "w": 3}]


def test_windows_progress(tmp_path):
    _run(tmp_path / "run", range(5))
    calls = []
    swa_tf.average_windows(
        tmp_path / "run",
        tmp_path / "windows",
        3,
        progress=lambda *call: calls.append(call),
    )
    done, totals = zip(*calls)
    assert len(set(totals)) == 1
    assert (np.diff([0, *done]) > 0).all()
    assert done[-1] == totals[0]
    # Three windows of three inputs: so much as three inputs thrice.
    one = []
    swa_tf.average_windows(
        swa_tf.checkpoints_in(tmp_path / "run", last=3),
        tmp_path / "one",
        3,
        progress=lambda *call: one.append(call),
    )
    assert totals[0] == 3 * one[0][1]


@pytest.mark.parametrize("damaged", [1, 2, 3])
def test_a_damaged_input_of_windows_leaves_nothing(damaged, tmp_path):
    paths = _run(tmp_path / "run", range(1, 4))
    data = tmp_path / "run" / f"ckpt-{damaged}.data-00000-of-00001"
    content = bytearray(data.read_bytes())
    content[0] ^= 1
    data.write_bytes(content)
    before = _tree(tmp_path)
    with pytest.raises(ValueError, match=paths[damaged - 1]):
        swa_tf.average_windows(paths, tmp_path / "new" / "windows", 1)
    assert _tree(tmp_path) == before


@pytest.mark.parametrize(
    ("window", "received"),
    [
        (0, "an integer >= 1. Received: window=0"),
        (-1, "an integer >= 1. Received: window=-1"),
        (1.0, "an integer >= 1. Received: window=1.0"),
        (None, "an integer >= 1. Received: window=None"),
        (4, "at most 3, the number of inputs. Received: window=4"),
    ],
)
def test_bad_windows(window, received, tmp_path):
    paths = _run(tmp_path / "run")
    before = _tree(tmp_path)
    with pytest.raises(ValueError, match="`window` must be") as error:
        swa_tf.average_windows(paths, tmp_path / "windows", window)
    assert received in str(error.value)
    assert _tree(tmp_path) == before


def test_windows_of_inputs_of_one_name(tmp_path):
    paths = [_run(tmp_path / name, [1])[0] for name in "ab"]
    with pytest.raises(ValueError, match=r"names.*ckpt-1, ckpt-1"):
        swa_tf.average_windows(paths, tmp_path / "windows", 1)
    assert not (tmp_path / "windows").exists()


@pytest.mark.parametrize("kind", ["folder", "file", "dangling link"])
def test_windows_replace_nothing(kind, tmp_path):
    paths = _run(tmp_path / "run")
    output = tmp_path / "windows"
    if kind == "folder":
        output.mkdir()
    elif kind == "file":
        output.touch()
    else:
        output.symlink_to("nowhere")
    before = _tree(tmp_path)
    with pytest.raises(FileExistsError, match="`output_dir` must not exist"):
        swa_tf.average_windows(paths, output, 1)
    assert _tree(tmp_path) == before


def test_bad_options_of_windows(tmp_path):
    paths = _run(tmp_path / "run")
    before = _tree(tmp_path)
    for options in ({"optimizer_slots": "all"}, {"from_newest": ["no such"]}):
        with pytest.raises(ValueError, match="must"):
            swa_tf.average_windows(paths, tmp_path / "new", 2, **options)
    assert _tree(tmp_path) == before
