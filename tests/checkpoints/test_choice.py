"""The choice of checkpoints, and their weights."""

import contextlib
import os
import tempfile

import hypothesis
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given
from hypothesis import strategies as st

import swa_tf
from swa_tf.support.compat import KERAS_3
from tests import checkpoint_files
from tests.checkpoint_files import FORMS, H5, KERAS, NAME, OBJECT, WEIGHTS
from tests.chosen import make_run, read_one, tree_of, write_all

EPS32 = 2.0**-24  # half a unit in the last place of 1, relative


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


@pytest.mark.parametrize(
    ("arguments", "numbers"),
    [
        ({"until": 12}, [1, 2, 3, 9, 10, 11, 12]),
        ({"until": 10**9}, [1, 2, 3, 9, 10, 11, 12]),
        ({"until": 9}, [1, 2, 3, 9]),
        ({"until": 8}, [1, 2, 3]),
        ({"until": np.int64(1)}, [1]),
        ({"until": 9, "last": 2}, [3, 9]),
        ({"until": 10, "every": 2}, [1, 3, 10]),
        ({"until": 10, "every": 2, "last": 2}, [3, 10]),
    ],
)
def test_until(arguments, numbers, tmp_path):
    for number in (1, 2, 3, 9, 10, 11, 12):
        (tmp_path / f"run-7-epoch_{number}.keras").touch()
    found = swa_tf.checkpoints_in(tmp_path, **arguments)
    assert found == [str(tmp_path / f"run-7-epoch_{n}.keras") for n in numbers]


@pytest.mark.parametrize(
    ("names", "until", "received"),
    [
        (["a-4", "a-5"], 3, "at least 4, the lowest number in"),
        (["a-4", "a-5"], -1, "an integer >= 0. Received: until=-1"),
        (["a-4", "a-5"], 4.0, "an integer >= 0. Received: until=4.0"),
        (["a", "b"], 3, "where names have no number of their own"),
        (["a-4", "b-4"], 4, "where names have no number of their own"),
    ],
)
def test_bad_until(names, until, received, tmp_path):
    for name in names:
        (tmp_path / f"{name}.keras").touch()
    with pytest.raises(ValueError, match="`until` must be") as error:
        swa_tf.checkpoints_in(tmp_path, until=until)
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
    assert read_one(tmp_path / "average") == np.float32((512 + 1024 + 2048) / 3)
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
    model.compile(tf.keras.optimizers.SGD(0.1), "mse", run_eagerly=True)
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
    return write_all(tmp_path_factory.mktemp("run"), values), weights


def _check_average(run, shares, order, **arguments):
    """Holds the average of some of a run against given shares of each."""
    paths, weights = run
    with _output() as output:
        report = swa_tf.average_checkpoints(
            [paths[i] for i in order], output, **arguments
        )
        got = read_one(output, like={"w": weights[0]}).astype(np.float64)
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
    paths = write_all(tmp_path, {k: {"w": v} for k, v in values.items()})
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
    paths = write_all(tmp_path, {"a": 8.0, "b": 0.0, "c": 16.0})
    swa_tf.average_checkpoints(paths, tmp_path / "x", decay=0.75)
    # 8 -> 0.75 * 8 = 6 -> 0.75 * 6 + 0.25 * 16 = 8.5
    assert read_one(tmp_path / "x") == 8.5
    swa_tf.average_checkpoints(paths[::-1], tmp_path / "y", decay=0.75)
    # 16 -> 12 -> 9 + 2 = 11
    assert read_one(tmp_path / "y") == 11
    swa_tf.average_checkpoints(paths, tmp_path / "z", decay=0)
    assert read_one(tmp_path / "z") == 16


def test_averages_of_10_and_of_5_merge_to_the_average_of_all_15(tmp_path):
    rng = np.random.default_rng(0)
    weights = rng.uniform(1, 2, size=(15, 200)).astype(np.float32)
    paths = write_all(
        tmp_path, {f"ckpt-{i}": {"w": weights[i]} for i in range(15)}
    )
    average = swa_tf.average_checkpoints
    average(paths[:10], tmp_path / "a")
    average(paths[10:], tmp_path / "b")
    average([tmp_path / "a", tmp_path / "b"], tmp_path / "c", weights=[10, 5])
    average(paths, tmp_path / "all")
    merged = read_one(tmp_path / "c", like={"w": weights[0]})
    exact = weights.astype(np.float64).mean(axis=0)
    # In [1, 2) a unit in the last place is 2^-23. The two averages are off by
    # half of one at most, hence what is merged of them; its rounding adds half.
    assert (np.abs(merged - exact) < 2.0**-23).all()
    at_once = read_one(tmp_path / "all", like={"w": weights[0]})
    assert (np.abs(merged - at_once) <= 2.0**-23).all()
    assert (np.abs(at_once - exact) < 1.001 * 2.0**-24).all()


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("arguments", [{}, {"weights": [7]}, {"decay": 0.9}])
def test_a_single_input(form, arguments, tmp_path):
    values = {"w": np.float32([0.1, -3e38]), "n": np.int32(7)}
    paths = write_all(tmp_path, {"a": values}, form)
    output = checkpoint_files.path_of(form, str(tmp_path), "b")
    report = swa_tf.average_checkpoints(paths, output, **arguments)
    got = read_one(output, form, values)
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
        ({"weights": [1, 0, 2]}, "Received: weights[1]=0"),
        ({"weights": [1, -1, 2]}, "weights[1]=-1"),
        ({"weights": [1, float("nan"), 2]}, "weights[1]=nan"),
        ({"weights": [1, float("inf"), 2]}, "weights[1]=inf"),
        ({"weights": [1, "2", 2]}, "weights[1]='2'"),
        ({"weights": [1, None, 2]}, "weights[1]=None"),
        ({"weights": [1, True, 2]}, "weights[1]=True"),
        ({"weights": "123"}, "weights[0]='1'"),
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
    paths = make_run(tmp_path)
    before = tree_of(tmp_path)
    for dry_run in (False, True):
        with pytest.raises(ValueError, match="must") as error:
            swa_tf.average_checkpoints(
                paths, tmp_path / "x", dry_run=dry_run, **arguments
            )
        assert received in str(error.value)
    assert tree_of(tmp_path) == before


# From the newest.


@pytest.mark.parametrize("form", FORMS)
def test_what_matches_comes_from_the_newest(form, tmp_path):
    values = {
        name: {"first": np.float32(a), "second": np.float32(b)}
        for name, a, b in [("ckpt-2", 1, 10), ("ckpt-3", 3, 30)]
    }
    paths = write_all(tmp_path, values, form)[::-1]
    pattern = {
        OBJECT: "^second$",
        NAME: "^second$",
        WEIGHTS: r"values/vars/1$",
        KERAS: r"values/vars/1$",
        H5: r"/second",
    }[form]
    output = checkpoint_files.path_of(form, str(tmp_path), "x")
    report = swa_tf.average_checkpoints(paths, output, from_newest=[pattern])
    got = read_one(output, form, values["ckpt-2"])
    assert (got["first"], got["second"]) == (2, 30)
    assert len(report["averaged"]) == 1
    assert report["n_parameters"] == 1
    assert report["newest"] == paths[0]


def test_patterns_match_somewhere_and_each_must(tmp_path):
    values = {"encoder": 1.0, "decoder": 2.0, "head": 3.0}
    paths = write_all(
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
    got = read_one(tmp_path / "x", like={k: np.float32(0) for k in values})
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
    paths = write_all(
        tmp_path,
        {f"c-{i}": dict.fromkeys("vw", np.float32(i)) for i in (1, 2)},
    )
    before = tree_of(tmp_path)
    with pytest.raises(error, match=f"Received: {received}"):
        swa_tf.average_checkpoints(
            paths, tmp_path / "x", from_newest=from_newest
        )
    assert tree_of(tmp_path) == before


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
        paths = write_all(
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
        got = read_one(output, form, values(0))
        assert (got["w"], got["count"]) == (1, 1)
