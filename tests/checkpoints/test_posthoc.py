"""Post-hoc averages: against averages kept in training, and float64 numpy."""

import os
import warnings

import numpy as np
import pytest
import tensorflow as tf

import swa_tf
from swa_tf.averaging import gamma_of
from tests import checkpoint_files
from tests.checkpoint_files import FORMS, NAME, OBJECT
from tests.chosen import read_one, strict_json, tree_of, write_all

N_MODELS, N_SNAPSHOTS, WIDTHS = 200, 8, (0.05, 0.1)
BETWEEN = (0.06, 0.075, 0.09)
EVERY = N_MODELS // N_SNAPSHOTS


def profile(n, width, n_all=N_MODELS):
    """The weights of `n_all` models in the average of the first `n`."""
    t = np.minimum(np.arange(n_all + 1) / n, 1.0)
    return np.diff(t ** (gamma_of("width", width) + 1.0))


def weights_of_a_training():
    """SGD on noisy squares, of curvatures of two orders of magnitude."""
    rng = np.random.default_rng(0)
    curvature = np.geomspace(0.01, 1.0, 50)
    target, weight = rng.normal(size=[2, 50])
    for _ in range(N_MODELS):
        noise = rng.normal(0.0, 0.3, 50)
        weight = weight - 0.1 * (curvature * (weight - target) + noise)
        yield weight.astype(np.float32)


class Training:
    """One that keeps snapshots as the document says, and averages between."""

    def __init__(self, folder, between=()):
        self.weight = tf.Variable(tf.zeros([50]))
        self.averages = [swa_tf.PowerFunctionAverage(w) for w in WIDTHS]
        self.kept = [swa_tf.PowerFunctionAverage(w) for w in between]
        self.managers = [
            tf.train.CheckpointManager(
                tf.train.Checkpoint(weight=self.weight, average=average),
                str(folder / str(average.relative_width)),
                max_to_keep=None,
            )
            for average in self.averages
        ]
        self.checkpoint = tf.train.Checkpoint(
            weight=self.weight, averages=self.averages, kept=self.kept
        )

    def run(self, models):
        for model in models:
            self.weight.assign(model)
            for average in (*self.averages, *self.kept):
                average.apply([self.weight])
            if int(self.averages[0].n_models) % EVERY == 0:
                for average, manager in zip(self.averages, self.managers):
                    with swa_tf.averaged_weights(average, [self.weight]):
                        manager.save(checkpoint_number=average.n_models)

    @property
    def folders(self):
        return [manager.directory for manager in self.managers]


@pytest.fixture(scope="module")
def training(tmp_path_factory):
    """The folders of snapshots, the averages between, and the models."""
    training = Training(tmp_path_factory.mktemp("snapshots"), BETWEEN)
    models = list(weights_of_a_training())
    training.run(models)
    kept = [average.average(training.weight) for average in training.kept]
    values = dict(zip(BETWEEN, [average.numpy() for average in kept]))
    return training.folders, values, models


def snapshots_of(training, **kwargs):
    return [
        path
        for folder in training[0]
        for path in swa_tf.checkpoints_in(folder, **kwargs)
    ]


def loaded(path):
    weight = tf.Variable(tf.zeros([50]))
    status = tf.train.Checkpoint(weight=weight).read(str(path))
    status.assert_existing_objects_matched().expect_partial()
    return weight.numpy()


def relative_error(value, exact):
    return np.linalg.norm(value - exact) / np.linalg.norm(exact)


@pytest.mark.parametrize("width", BETWEEN)
def test_is_the_average_kept_at_that_length(width, training, tmp_path):
    _, kept, models = training
    snapshots = snapshots_of(training)
    assert len(snapshots) == 2 * N_SNAPSHOTS
    report = swa_tf.posthoc_average(snapshots, width, tmp_path / "posthoc")
    value = loaded(tmp_path / "posthoc")
    assert relative_error(value, kept[width]) < 1e-3
    exact = profile(N_MODELS, width) @ np.float64(models)
    assert relative_error(value, exact) < 1e-3
    # It is the difference between the profiles that is left, and no more.
    shares = {each["path"]: each["share"] for each in report["inputs"]}
    combined = sum(
        shares[path]
        * profile(int(path.rsplit("-")[-1]), float(path.split("/")[-2]))
        for path in snapshots
    )
    np.testing.assert_allclose(
        value, combined @ np.float64(models), 0, 20 * 2.0**-23
    )
    wanted = profile(N_MODELS, width)
    assert report["profile_error"] == pytest.approx(
        relative_error(combined, wanted), rel=0.05
    )
    assert min(shares.values()) < 0.0
    assert report["relative_width"] == width
    assert strict_json(tmp_path / "posthoc.json") == report


@pytest.mark.parametrize("width", [0.04, 0.075, 0.12])
def test_shares_are_those_of_least_squares_on_a_grid(width, training, tmp_path):
    """Of midpoints, by numpy's own least squares, the sum eliminated."""
    snapshots = snapshots_of(training, every=2)
    report = swa_tf.posthoc_average(
        snapshots, width, tmp_path / "x", dry_run=True
    )
    grid = (np.arange(20_000) + 0.5) / 20_000

    def density(end, width):
        gamma = gamma_of("width", width)
        inside = (gamma + 1) * (grid / end) ** gamma / end
        return np.where(grid < end, inside, 0.0)

    columns = np.stack(
        [
            density(int(p.rsplit("-")[-1]) / N_MODELS, float(p.split("/")[-2]))
            for p in snapshots
        ]
    )
    last = columns[-1]
    others = (columns[:-1] - last).T
    shares, *_ = np.linalg.lstsq(others, density(1.0, width) - last, rcond=None)
    expected = dict(zip(snapshots, [*shares, 1.0 - shares.sum()]))
    told = {each["path"]: each["share"] for each in report["inputs"]}
    assert told == pytest.approx(expected, abs=1e-4)


def test_until_gives_the_average_as_it_was(training, tmp_path):
    snapshots = snapshots_of(training, until=5 * EVERY)
    report = swa_tf.posthoc_average(snapshots, 0.075, tmp_path / "x")
    assert len(report["inputs"]) == 10
    exact = profile(5 * EVERY, 0.075) @ np.float64(training[2])
    assert relative_error(loaded(tmp_path / "x"), exact) < 2e-3


def test_a_training_that_was_resumed_writes_the_same(training, tmp_path):
    """It has written snapshots after the checkpoint from which it goes on."""
    _, _, models = training
    first = Training(tmp_path)
    first.run(models[:40])
    path = first.checkpoint.save(str(tmp_path / "training" / "ckpt"))
    first.run(models[40:80])  # which is lost, but for its snapshots
    resumed = Training(tmp_path)
    resumed.checkpoint.restore(path)
    resumed.run(models[40 : 4 * EVERY])
    again = [p for f in resumed.folders for p in swa_tf.checkpoints_in(f)]
    whole = snapshots_of(training, until=4 * EVERY)
    assert len(again) == len(whole) == 8
    swa_tf.posthoc_average(again, 0.075, tmp_path / "again")
    swa_tf.posthoc_average(whole, 0.075, tmp_path / "whole")
    np.testing.assert_array_equal(
        loaded(tmp_path / "again"), loaded(tmp_path / "whole")
    )


@pytest.mark.parametrize("width", WIDTHS)
def test_of_a_width_that_was_kept_it_is_the_snapshot(width, training, tmp_path):
    snapshots = snapshots_of(training)
    (newest,) = swa_tf.checkpoints_in(os.path.dirname(snapshots[0]), last=1)
    if width == WIDTHS[1]:
        newest = snapshots[-1]
    report = swa_tf.posthoc_average(snapshots, width, tmp_path / "x")
    assert report["inputs"][0]["path"] == newest
    assert report["inputs"][0]["share"] == pytest.approx(1.0, abs=1e-9)
    assert report["profile_error"] < 1e-6
    expected = loaded(newest)
    np.testing.assert_allclose(loaded(tmp_path / "x"), expected, rtol=1e-6)


def test_a_far_length_is_warned_of(training, tmp_path):
    snapshots = snapshots_of(training)
    with pytest.warns(UserWarning, match="`relative_width`=0.01 to within"):
        report = swa_tf.posthoc_average(snapshots, 0.01, tmp_path / "x")
    assert report["profile_error"] > 0.05


# Widths and counts that are given.

GIVEN = {
    "snapshot_widths": [0.05, 0.05, 0.1, 0.1],
    "snapshot_n_models": [10, 20, 10, 20],
}


def write_given(folder, form=OBJECT, **changes):
    rng = np.random.default_rng(1)
    values = {
        f"m-{i}": {"w": rng.normal(size=50).astype(np.float32)}
        for i in range(4)
    }
    for name, change in changes.items():
        values[name] = {"w": change(values[name]["w"])}
    arrays = [each["w"] for each in values.values()]
    return write_all(folder, values, form), arrays


@pytest.mark.parametrize("as_type", [list, tuple, np.array])
@pytest.mark.parametrize("form", FORMS)
def test_of_every_form(form, as_type, tmp_path):
    paths, arrays = write_given(tmp_path / "run", form)
    output = checkpoint_files.path_of(form, str(tmp_path), "posthoc")
    given = {name: as_type(values) for name, values in GIVEN.items()}
    report = swa_tf.posthoc_average(paths, 0.08, output, **given)
    share = {each["path"]: each["share"] for each in report["inputs"]}
    expected = sum(
        share[path] * np.float64(w) for path, w in zip(paths, arrays)
    )
    got = read_one(output, form, {"w": arrays[0]})
    # One rounding to float32, and of float64 a few.
    np.testing.assert_allclose(got, expected, rtol=6e-8, atol=1e-14)
    assert sum(share.values()) == pytest.approx(1.0, abs=1e-14)
    assert report["newest"] == paths[3]


def test_equal_weights_are_their_average(tmp_path):
    def ones(w):
        return np.full_like(w, 1.2345)

    changes = {f"m-{i}": ones for i in range(4)}
    paths, _ = write_given(tmp_path / "run", **changes)
    for width in (0.03, 0.08, 0.2):
        output = tmp_path / str(width)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the profile error
            swa_tf.posthoc_average(paths, width, output, **GIVEN)
        got = read_one(output, like={"w": np.zeros(50, np.float32)})
        np.testing.assert_array_equal(got, np.float32(1.2345))


def test_the_same_snapshot_twice(tmp_path):
    """Its profiles are no basis, and each gets half of the share."""
    paths, _ = write_given(tmp_path / "run")
    report = swa_tf.posthoc_average(
        paths,
        0.1,
        tmp_path / "x",
        snapshot_widths=[0.05, 0.05, 0.1, 0.1],
        snapshot_n_models=[10, 20, 20, 20],
    )
    shares = {each["path"]: each["share"] for each in report["inputs"]}
    expected = dict(zip(paths, [0.0, 0.0, 0.5, 0.5]))
    assert shares == pytest.approx(expected, abs=1e-9)


def test_the_newest_is_of_the_most_models(tmp_path):
    paths, _ = write_given(tmp_path / "run")
    given = {**GIVEN, "snapshot_n_models": [20, 10, 19, 10]}
    report = swa_tf.posthoc_average(paths, 0.08, tmp_path / "x", **given)
    assert report["newest"] == paths[0]


@pytest.mark.parametrize("form", sorted({*FORMS} - {NAME}))
def test_batch_norm_statistics_are_the_newests(form, three, tmp_path):
    """Those of other snapshots, with negative shares, may give none."""
    paths = three(form)
    output = checkpoint_files.path_of(form, tmp_path / "new", "posthoc")
    with pytest.warns(UserWarning, match="statistics that belong to other wei"):
        report = swa_tf.posthoc_average(
            paths,
            0.08,
            output,
            snapshot_widths=[0.05, 0.1, 0.05],
            snapshot_n_models=[10, 10, 20],
        )
    statistics = report["batch_norm_statistics"]
    assert len(statistics) == 2
    assert set(statistics) <= set(report["from_newest"])
    assert len(report["averaged"]) == 4  # kernel, bias, gamma, beta


# What is wrong.


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"relative_width": 0}, ValueError, "relative_width=0"),
        ({"relative_width": 0.3}, ValueError, "to 12^-0.5 = 0.2887"),
        ({"relative_width": "0.1"}, ValueError, "relative_width='0.1'"),
        ({"snapshot_widths": None}, ValueError, "snapshot_widths=None"),
        ({"snapshot_n_models": None}, ValueError, "list of 4 numbers"),
        ({"snapshot_widths": [0.1] * 3}, ValueError, "list of 4 numbers"),
        ({"snapshot_widths": [0.1, 0.1, 0.1, 1]}, ValueError, "widths[3]=1"),
        ({"snapshot_n_models": [1, 2, 3, 0]}, ValueError, "models[3]=0"),
        ({"snapshot_n_models": [1, 2, 3, 1.5]}, ValueError, "models[3]=1.5"),
        ({"snapshots": 3}, TypeError, "`snapshots` must be a list of paths"),
        ({"snapshots": []}, ValueError, "`snapshots` must hold at least one"),
        ({"snapshots": ["none"] * 4}, ValueError, "`snapshots` must name each"),
        ({"snapshots": [*"abcd"]}, FileNotFoundError, "`snapshots` must be ch"),
        ({"output": 3}, TypeError, "`output` must be a path"),
        ({"optimizer_slots": "x"}, ValueError, "`optimizer_slots`"),
    ],
)
def test_bad_arguments(arguments, error, message, tmp_path):
    paths, _ = write_given(tmp_path / "run")
    before = tree_of(tmp_path)
    given = {
        "snapshots": paths,
        "relative_width": 0.08,
        "output": tmp_path / "x",
        **GIVEN,
        **arguments,
    }
    with pytest.raises(error) as raised:
        swa_tf.posthoc_average(**given)
    assert message in str(raised.value)
    assert tree_of(tmp_path) == before


def test_snapshots_that_differ(tmp_path):
    paths, _ = write_given(tmp_path / "run", **{"m-1": lambda w: w[:3]})
    with pytest.raises(ValueError, match="`snapshots` must hold the same tens"):
        swa_tf.posthoc_average(paths, 0.08, tmp_path / "x", **GIVEN)


def test_snapshots_that_are_not_finite(tmp_path):
    paths, _ = write_given(tmp_path / "run", **{"m-1": lambda w: w * np.inf})
    with pytest.raises(ValueError, match="`snapshots` must be finite where"):
        swa_tf.posthoc_average(paths, 0.08, tmp_path / "x", **GIVEN)


@pytest.mark.filterwarnings("error::RuntimeWarning")
def test_snapshots_whose_average_is_out_of_range(tmp_path):
    """The shares sum to 1, so those above 0 to more: 6.5e4 becomes more."""
    signs = iter((-1, -1, 1, 1))  # against those of the shares
    values = {
        f"m-{i}": {"w": np.float16([next(signs) * 6.5e4])} for i in range(4)
    }
    paths = write_all(tmp_path / "run", values, OBJECT)
    before = tree_of(tmp_path)
    with pytest.raises(ValueError, match=r"`snapshots` must .* in the range"):
        swa_tf.posthoc_average(paths, 0.2, tmp_path / "x", **GIVEN)
    assert tree_of(tmp_path) == before


@pytest.mark.parametrize(
    "kind", ["of trained weights", "of another average", "without an average"]
)
def test_what_is_no_snapshot(kind, tmp_path):
    weight = tf.Variable([1.0, 2.0])
    average = swa_tf.PowerFunctionAverage(0.1)
    if kind == "of another average":
        average = swa_tf.StochasticWeightAveraging()
    average.apply([weight])
    held = {} if kind == "without an average" else {"average": average}
    checkpoint = tf.train.Checkpoint(weight=weight, **held)
    path = str(tmp_path / "run" / "ckpt")
    if kind == "of trained weights":
        checkpoint.write(path)
    else:
        with swa_tf.averaged_weights(average, [weight]):
            checkpoint.write(path)
    before = tree_of(tmp_path)
    message = "`snapshots` must be checkpoints written inside `averaged_weights"
    with pytest.raises(ValueError, match=message) as raised:
        swa_tf.posthoc_average([path], 0.1, tmp_path / "x")
    assert f"Received: '{path}'" in str(raised.value)
    assert tree_of(tmp_path) == before


def test_which_of_two_averages_is_in_the_model(tmp_path):
    weight = tf.Variable([1.0, 2.0])
    averages = [swa_tf.PowerFunctionAverage(w) for w in WIDTHS]
    for average in averages:
        average.apply([weight])
    checkpoint = tf.train.Checkpoint(weight=weight, averages=averages)
    with swa_tf.averaged_weights(averages[1], [weight]):
        path = checkpoint.write(str(tmp_path / "ckpt"))
    report = swa_tf.posthoc_average([path], WIDTHS[1], tmp_path / "x")
    assert report["profile_error"] < 1e-6


def test_an_exponential_average_is_in_another_model(tmp_path):
    weight, other = tf.Variable([1.0, 2.0]), tf.Variable(3.0)
    average = swa_tf.PowerFunctionAverage(WIDTHS[0])
    ema = swa_tf.ExponentialMovingAverage(0.9)
    average.apply([weight])
    ema.apply([other])
    held = {"weight": weight, "other": other, "average": average, "ema": ema}
    with swa_tf.averaged_weights(average, [weight]):
        with swa_tf.averaged_weights(ema, [other]):
            path = tf.train.Checkpoint(**held).write(str(tmp_path / "ckpt"))
    report = swa_tf.posthoc_average([path], WIDTHS[0], tmp_path / "x")
    assert report["profile_error"] < 1e-6


# The command line.


def test_the_command(training, tmp_path, capsys):
    snapshots = snapshots_of(training)
    swa_tf.posthoc_average(snapshots, 0.075, tmp_path / "x")
    options = ["--relative_width=0.075", f"--output_path={tmp_path / 'y'}"]
    patterns = [f"{folder}/ckpt-*" for folder in training[0]]
    for more in (["--dry_run"], []):
        status = checkpoint_files.command_line(*options, *more, *patterns)
        assert status == 0
        out = capsys.readouterr().out
        assert (
            "the profile of relative width 0.075 is described up to 1." in out
        )
    assert loaded(tmp_path / "y").tolist() == loaded(tmp_path / "x").tolist()


def test_the_command_with_widths_and_counts(tmp_path, capsys):
    paths, _ = write_given(tmp_path / "run")
    given = [
        "--snapshot_widths=0.05,0.05,0.1,0.1",
        "--snapshot_n_models=10,20,10,20",
        *paths,
    ]
    options = ["--relative_width=0.08", f"--output_path={tmp_path / 'y'}"]
    assert checkpoint_files.command_line(*given, *options) == 0
    swa_tf.posthoc_average(paths, 0.08, tmp_path / "x", **GIVEN)
    like = {"w": np.zeros(50, np.float32)}
    np.testing.assert_array_equal(
        read_one(tmp_path / "y", like=like), read_one(tmp_path / "x", like=like)
    )
    capsys.readouterr()
    assert checkpoint_files.command_line(*given, options[1]) == 1
    assert "belong to --relative_width" in capsys.readouterr().err
