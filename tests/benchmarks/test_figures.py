"""The five figures: their geometry, their files, and runs that go on."""

import json
import shlex
import types

import numpy as np
import pytest

from benchmarks.cifar10 import evaluation
from benchmarks.common import files
from benchmarks.common.errors import BenchmarkError
from benchmarks.figures import (
    curves,
    drawing,
    momentum,
    plane,
    rays,
    run_results,
)
from benchmarks.figures import refit as refit_figure
from tests import programs
from tests.benchmarks.cifar10.tiny import TINY

PNG = b"\x89PNG\r\n\x1a\n"
FLAGS = {
    "dataset": "digits",
    "resnet_size": 18,
    "width": 4,
    "optimizer": "momentumw",
    "epochs": 2,
    "epochs_before_swa": 1,
    "batch_norm_momentum": 0.9,
    "weight_decay": 0.0001,
    "seed": 0,
}


def some_weights(seed):
    random = np.random.default_rng(seed)
    shapes = [(3, 3, 2, 4), (4,), (4, 5), ()]
    return [random.normal(size=shape).astype(np.float32) for shape in shapes]


def flat(weights):
    return np.concatenate([np.ravel(w).astype(np.float64) for w in weights])


class TestPlane:
    iterates = tuple(some_weights(seed) for seed in range(3))

    def test_four_points_have_their_weights(self):
        spanned = plane.Plane(*self.iterates)
        average = [np.mean(w, axis=0) for w in zip(*self.iterates)]
        for point in (*self.iterates, average):
            at, distance = spanned.coordinates(point)
            assert distance < 1e-5
            found = spanned.weights(*at)
            assert [w.shape for w in found] == [np.shape(w) for w in point]
            np.testing.assert_allclose(flat(found), flat(point), atol=1e-6)

    def test_distances_are_those_of_the_weights(self):
        spanned = plane.Plane(*self.iterates)
        at = [spanned.coordinates(point)[0] for point in self.iterates]
        np.testing.assert_allclose(at[0], [0.0, 0.0], atol=1e-12)
        assert at[1][1] == pytest.approx(0.0, abs=1e-12)
        assert at[2][1] > 0.0
        w = [flat(point) for point in self.iterates]
        for i, j in ((0, 1), (0, 2), (1, 2)):
            wanted = np.linalg.norm(w[i] - w[j])
            assert np.linalg.norm(at[i] - at[j]) == pytest.approx(wanted)

    def test_a_point_beside_it(self):
        w = [flat(point) for point in self.iterates]
        beside = some_weights(9)
        edges = np.stack([w[1] - w[0], w[2] - w[0]], axis=1)
        shares, *_ = np.linalg.lstsq(edges, flat(beside) - w[0], rcond=None)
        foot = w[0] + edges @ shares
        spanned = plane.Plane(*self.iterates)
        at, distance = spanned.coordinates(beside)
        assert distance == pytest.approx(np.linalg.norm(flat(beside) - foot))
        np.testing.assert_allclose(flat(spanned.weights(*at)), foot, atol=1e-9)

    def test_three_points_on_a_line(self):
        first, second, _ = self.iterates
        middle = [(a + b) / 2 for a, b in zip(first, second)]
        with pytest.raises(BenchmarkError, match="on a line"):
            plane.Plane(first, second, middle)


class TestDirection:
    def test_each_filter_has_the_norm_of_the_weights(self):
        weights = some_weights(0)
        found = rays.direction(weights, (3, 1))
        for kernel, step in ((weights[0], found[0]), (weights[2], found[2])):
            for i in range(kernel.shape[-1]):
                wanted = np.sqrt(np.sum(kernel[..., i].astype(float) ** 2))
                length = np.sqrt(np.sum(step[..., i] ** 2))
                assert length == pytest.approx(wanted, rel=1e-6)
        for i in (1, 3):
            np.testing.assert_array_equal(found[i], np.zeros_like(weights[i]))

    def test_the_seed_gives_the_direction(self):
        weights = some_weights(0)
        one, same, other = (
            flat(rays.direction(weights, seed))
            for seed in ((3, 1), (3, 1), (3, 2))
        )
        np.testing.assert_array_equal(one, same)
        cosine = one @ other / np.linalg.norm(one) / np.linalg.norm(other)
        assert abs(cosine) < 0.5
        # Two centres are left in the same direction, but for its lengths.
        longer = flat(rays.direction([2 * w for w in weights], (3, 1)))
        np.testing.assert_allclose(longer, 2 * one, rtol=1e-6)


class TestFiles:
    def test_they_appear_whole(self, tmp_path):
        path = tmp_path / "a" / "figure.json"
        files.write_json(str(path), {"a": 1})

        def make(partial):
            with open(partial, "w") as file:
                file.write("half")
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            files.write_whole(str(path), make)
        with pytest.raises(ValueError, match="JSON"):
            files.write_json(str(path), {"a": float("nan")})
        assert files.read_json(str(path)) == {"a": 1}
        assert [p.name for p in path.parent.iterdir()] == ["figure.json"]

    def test_errors_name_the_file(self, tmp_path):
        (tmp_path / "a.json").write_text("{")
        with pytest.raises(BenchmarkError, match=r"a.json cannot be read"):
            files.read_json(str(tmp_path / "a.json"))
        (tmp_path / "file").touch()
        with pytest.raises(BenchmarkError, match=r"b.json cannot be written"):
            files.write_json(str(tmp_path / "file" / "b.json"), 1)
        with pytest.raises(BenchmarkError, match=r"--results.*none"):
            run_results.read([str(tmp_path / "no-*.json")])


def results_of(seed, accuracy, **flags):
    """The results of a run: each way has its own share of an accuracy."""

    def epoch(number, shares):
        return {
            "epoch": number,
            "n_models": max(number - 1, 0),
            "validation": {
                way: {"accuracy": share * accuracy}
                for way, share in shares.items()
            },
        }

    trained = {"moving": 0.5, "refit": 0.75}
    averaged = {**trained, "swa": 0.25, "swa_refit": 1.0}
    return {
        "flags": {**FLAGS, "seed": seed, **flags},
        "seed": seed,
        "epochs": [epoch(1, trained), epoch(2, averaged)],
        "decayed": [epoch(2, trained)],
        "final": {"test": epoch(2, averaged)["validation"]},
    }


class TestCurves:
    def test_mean_and_band_over_seeds(self, tmp_path):
        for seed, accuracy in ((0, 80.0), (1, 100.0)):
            files.write_json(
                str(tmp_path / f"seed-{seed}.json"), results_of(seed, accuracy)
            )
        contents = curves.compute([str(tmp_path / "seed-*.json")])
        assert contents["seeds"] == [0, 1]
        assert list(contents["ways"]) == list(evaluation.WAYS)
        assert contents["ways"]["refit"] == {
            "epoch": [1, 2],
            "mean": [67.5, 67.5],
            "low": [60.0, 60.0],
            "high": [75.0, 75.0],
        }
        assert contents["ways"]["decayed_moving"]["epoch"] == [2]
        assert contents["ways"]["swa_refit"]["mean"] == [90.0]
        drawing.save(curves.draw(contents), str(tmp_path / "curves.png"))
        assert (tmp_path / "curves.png").read_bytes()[:8] == PNG

    def test_other_plans_are_refused(self, tmp_path):
        files.write_json(str(tmp_path / "a.json"), results_of(0, 80.0))
        files.write_json(
            str(tmp_path / "b.json"), results_of(1, 80.0, epochs=3)
        )
        with pytest.raises(BenchmarkError, match="--epochs=2 and --epochs=3"):
            curves.compute([str(tmp_path / "*.json")])


class TestMomentum:
    @pytest.fixture(name="started")
    def fixture_started(self, monkeypatch):
        """The commands of the runs, which end at once and have figures."""
        commands = []

        def run(command, **_):
            commands.append(command[3:])
            given = dict(a[2:].partition("=")[::2] for a in command[3:])
            if len(commands) == 3:
                return types.SimpleNamespace(returncode=1, stderr="killed")
            found = results_of(
                int(given["seed"]),
                100.0 * float(given["batch_norm_momentum"]),
                batch_norm_momentum=float(given["batch_norm_momentum"]),
                weight_decay=float(given["weight_decay"]),
            )
            files.write_json(f"{given['output_dir']}/results.json", found)
            return types.SimpleNamespace(returncode=0, stderr="")

        monkeypatch.setattr(momentum.subprocess, "run", run)
        return commands

    def test_what_is_there_is_not_run_again(self, started, tmp_path):
        grid = [0.5, 0.9], [0.0, 1e-4], [0]
        places = str(tmp_path / "results"), str(tmp_path / "runs")
        with pytest.raises(BenchmarkError, match=r"momentum=0.9.*killed"):
            momentum.compute("--epochs=2", *grid, *places)
        assert len(started) == 3
        contents = momentum.compute("--epochs=2", *grid, *places)
        assert len(started) == 5
        assert started[3] == started[2]
        assert started[4] == [
            "--nocompare_decay",
            "--epochs=2",
            "--batch_norm_momentum=0.9",
            "--weight_decay=0.0001",
            "--seed=0",
            f"--output_dir={places[1]}/momentum-0.9-decay-0.0001-seed-0",
            "--resume",
        ]
        momentum.compute("--epochs=2", *grid, *places)
        assert len(started) == 5
        # Only the epochs averaged, of which there is one here.
        assert contents["cells"][2]["batch_norm_momentum"] == 0.9
        assert contents["cells"][2]["validation"]["moving"] == [45.0]
        drawing.save(momentum.draw(contents), str(tmp_path / "momentum.png"))
        assert (tmp_path / "momentum.png").read_bytes()[:8] == PNG
        with pytest.raises(BenchmarkError, match=r"--epochs=3.*--epochs=2"):
            momentum.compute("--epochs=3", *grid, *places)


def test_sizes_of_a_refit_are_whole_batches():
    assert refit_figure.sizes(500, 64) == [64, 128, 256, 448]
    assert refit_figure.sizes(1150, 64) == [64, 128, 256, 512, 1088]
    assert refit_figure.sizes(128, 64) == [64, 128]
    assert refit_figure.sizes(127, 64) == [64]


@pytest.mark.slow
def test_from_a_run_to_its_figures(tmp_path):
    run = tmp_path / "run"
    # All training images in one batch: a refit that no order changes.
    flags = {**TINY, "epochs": 4, "batch_size": 48, "refit_samples": 240}
    given = [f"--{name}={value}" for name, value in flags.items()]
    finish("benchmarks.cifar10", *given, f"--output_dir={run}")
    figures = ["curves", "plane", "rays", "refit"]
    arguments = [
        f"--run={run}",
        f"--results={run}/results.json",
        f"--figures={','.join(figures)}",
        f"--output_dir={tmp_path}",
        *shlex.split("--plane_points=3 --rays=2 --ray_points=2"),
        *shlex.split("--refit_draws=2 --refit_batch=120"),
    ]
    finish("benchmarks.figures", *arguments)
    contents = {
        name: json.loads((tmp_path / f"{name}.json").read_text())
        for name in figures
    }
    final = json.loads((run / "results.json").read_text())["final"]["test"]
    for way, found in (
        ("swa_refit", contents["plane"]["marked"]["swa"]["test"]),
        ("refit", contents["plane"]["marked"]["iterate_3"]["test"]),
    ):
        accuracy = pytest.approx(final[way]["accuracy"], abs=0.3)
        assert 100.0 - found["error"] == accuracy
        assert found["loss"] == pytest.approx(final[way]["loss"], rel=1e-3)
    # The run averages just these three.
    marked = contents["plane"]["marked"]
    assert marked["swa"]["distance"] == pytest.approx(0.0, abs=1e-4)
    assert marked["average"]["test"]["loss"] == pytest.approx(
        marked["swa"]["test"]["loss"], rel=1e-3
    )
    assert np.shape(contents["plane"]["test_error"]) == (3, 3)
    for way, centre in (("swa_refit", "swa"), ("decayed_refit", "decayed")):
        loss = np.array(contents["rays"]["centres"][centre]["test"])
        assert loss.shape == (2, 3)
        wanted = pytest.approx([final[way]["loss"]] * 2, rel=1e-3)
        assert loss[:, 0].tolist() == wanted
        assert len(set(loss[:, 1:].ravel())) == 4
    assert contents["refit"]["samples"] == [120, 240]
    loss = contents["refit"]["loss"]
    # Of one batch, the two variances are the same.
    assert loss["pooled"][0] == pytest.approx(loss["mean_of_batches"][0])
    assert loss["pooled"][1] != loss["mean_of_batches"][1]
    assert np.shape(contents["refit"]["seconds"]) == (2, 2)
    before = {}
    for name in figures:
        picture = tmp_path / f"{name}.png"
        before[name] = picture.read_bytes()
        assert before[name][:8] == PNG
        picture.unlink()
    finish("benchmarks.figures", *arguments, "--nocompute", "--run=none")
    for name in figures:
        assert (tmp_path / f"{name}.png").read_bytes() == before[name]


def finish(module, *arguments):
    done = programs.run_module(module, *arguments)
    assert done.returncode == 0, done.stderr
