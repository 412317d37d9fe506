"""Greedy soups: which checkpoints are tried, in which order, and added."""

import json
import math
import os
import pathlib
import tempfile

import hypothesis
import numpy as np
import pytest
import rich.console
import tensorflow as tf
from hypothesis import given
from hypothesis import strategies as st

import swa_tf
from swa_tf import soups
from tests import checkpoint_files
from tests.checkpoint_files import FORMS, NAME, OBJECT

LIKE = {"w": np.float32(0)}


def _write(folder, values, form=OBJECT):
    """One checkpoint for each of some names and weights; their paths."""
    paths = []
    for name, value in values.items():
        paths.append(checkpoint_files.path_of(form, str(folder), name))
        checkpoint_files.write(form, paths[-1], {"w": np.float32(value)})
    return paths


def _weight(path):
    """The weight of a checkpoint, much faster than `checkpoint_files.read`."""
    reader = tf.train.load_checkpoint(path)
    return float(reader.get_tensor("w/.ATTRIBUTES/VARIABLE_VALUE"))


def _of(table):
    """A metric that is looked up by the weight."""
    return lambda path: table[_weight(path)]


def _names(paths):
    return [os.path.basename(path) for path in paths]


def _tree(folder):
    return sorted(str(path) for path in folder.rglob("*"))


def _strict(path):
    def refuse(word):
        raise AssertionError(f"{word} is no JSON")

    with open(path, encoding="utf-8") as file:
        return json.load(file, parse_constant=refuse)


def _greedy(values, metric, mode):
    """The algorithm over scalars: [(index, alone, in the soup, added)]."""
    better = np.greater if mode == "max" else np.less
    alone = np.float64([metric(value) for value in values])
    # NaN last, both ways; ties as they come.
    badness = -alone if mode == "max" else alone
    order = np.argsort(
        np.where(np.isnan(alone), np.inf, badness), kind="stable"
    )
    order = [i for i in order if not np.isnan(alone[i])] + [
        i for i in order if np.isnan(alone[i])
    ]
    chosen, trials = [], []
    best = np.nan
    for i in order:
        if not chosen:
            value, added = alone[i], True
        else:
            together = np.float64([values[j] for j in [*chosen, i]])
            value = metric(float(np.float32(together.mean())))
            added = bool(better(value, best))
        trials.append((int(i), alone[i], value, added))
        if added:
            chosen, best = [*chosen, i], value
    return trials


@pytest.fixture(scope="module")
def integers(tmp_path_factory):
    """Checkpoints of weights that are integers, by the weight."""
    # Their means of up to 6 are no ties of float32, which float64 might miss.
    weights = [-7, -3, 0, 1, 2, 5, 11, 64]
    folder = tmp_path_factory.mktemp("run")
    paths = _write(folder, {f"of {weight}": weight for weight in weights})
    return dict(zip(weights, paths))


@hypothesis.settings(max_examples=40)
@given(data=st.data(), mode=st.sampled_from(["max", "min"]))
def test_the_algorithm(integers, data, mode):
    order = data.draw(st.permutations(sorted(integers)))
    weights = order[: data.draw(st.integers(1, 6))]
    a, b = data.draw(st.floats(0.1, 3)), data.draw(st.floats(0, 6))
    digits = data.draw(st.sampled_from([0, 1, 9]))  # few: many ties
    bad = data.draw(st.sets(st.sampled_from(weights), max_size=3))
    hypothesis.assume(len(bad) < len(weights))
    infinite = data.draw(st.booleans())

    def metric(weight):
        if weight in bad:
            return math.nan
        if infinite and weight > 10:
            return math.inf
        return round(math.sin(a * weight + b), digits)

    evaluated = []

    def measured(path):
        evaluated.append(path)
        return metric(_weight(path))

    expected = _greedy(weights, metric, mode)
    with tempfile.TemporaryDirectory() as folder:
        output = os.path.join(folder, "soup")
        paths = [integers[weight] for weight in weights]
        soup = swa_tf.greedy_soup(paths, output, measured, mode=mode)
        got = _weight(output)
        told = _strict(f"{output}.json")
        parts = (".data-00000-of-00001", ".index", ".json")
        files = ["checkpoint", *(f"soup{part}" for part in parts)]
        assert sorted(os.listdir(folder)) == files
    trials = [
        (paths.index(t.path), t.alone, t.in_soup, t.added) for t in soup.trials
    ]
    np.testing.assert_equal(trials, expected)  # NaN equals NaN here
    added = [weights[i] for i, *_, added in expected if added]
    assert soup.paths == [integers[weight] for weight in added]
    assert got == np.float32(np.mean(added, dtype=np.float64))
    assert soup.metric == metric(got)
    assert evaluated[: len(paths)] == paths
    assert len(evaluated) == 2 * len(paths) - 1
    assert soup.report == told
    assert [each["path"] for each in told["inputs"]] == soup.paths
    assert [each["path"] for each in told["soup"]] == [
        trial.path for trial in soup.trials
    ]


def test_by_hand(tmp_path):
    paths = _write(tmp_path, {"a": 2, "b": 8, "c": 4})
    # Alone 8 is best; with 4, 6 is better; with 2, 14 / 3 is worse.
    table = {2: 0.5, 8: 1.0, 4: 0.9, 6: 1.5, float(np.float32(14 / 3)): 1.4}
    soup = swa_tf.greedy_soup(paths, tmp_path / "soup", _of(table))
    assert soup.trials == [
        soups.Trial(paths[1], 1.0, 1.0, added=True),
        soups.Trial(paths[2], 0.9, 1.5, added=True),
        soups.Trial(paths[0], 0.5, 1.4, added=False),
    ]
    assert soup.metric == 1.5
    assert _weight(tmp_path / "soup") == 6
    assert _strict(tmp_path / "soup.json")["soup"][1] == {
        "path": paths[2],
        "alone": 0.9,
        "in_soup": 1.5,
        "added": True,
    }


@pytest.mark.parametrize("mode", ["max", "min"])
@pytest.mark.parametrize(("step", "added"), [(0, 1), (-1, 1), (1, 2)])
def test_only_what_improves_is_added(mode, step, added, tmp_path):
    sign = 1 if mode == "max" else -1
    paths = _write(tmp_path, {"a": 1, "b": 3})
    # The average of both is as good as the best, or the next number after it.
    table = {1: sign * 0.5, 3: sign * 0.25}
    table[2] = 0.5 if not step else np.nextafter(0.5, 0.5 + step)
    table[2] *= sign
    soup = swa_tf.greedy_soup(paths, tmp_path / "x", _of(table), mode=mode)
    assert soup.paths == paths[:added]


def test_of_equal_metrics_the_first_is_tried_first(tmp_path):
    paths = _write(tmp_path, {"b": 1, "c": 2, "a": 3})
    for name, order in [("x", paths), ("y", paths[::-1])]:
        soup = swa_tf.greedy_soup(order, tmp_path / name, lambda _: 7)
        assert [trial.path for trial in soup.trials] == order
        assert soup.paths == order[:1]


@pytest.mark.parametrize("mode", ["max", "min"])
def test_nan_is_last_and_never_better(mode, tmp_path):
    paths = _write(tmp_path, {"a": 1, "b": 3, "c": 7})
    table = {1: math.nan, 3: 0.5, 7: math.inf, 5: math.nan}
    table[2 if mode == "min" else 4] = math.nan
    soup = swa_tf.greedy_soup(paths, tmp_path / "x", _of(table), mode=mode)
    order = [1, 2, 0] if mode == "min" else [2, 1, 0]
    assert [trial.path for trial in soup.trials] == [paths[i] for i in order]
    assert soup.paths == [paths[order[0]]]
    told = _strict(tmp_path / "x.json")["soup"]
    assert [each["alone"] for each in told] == [
        {1: "nan", 3: 0.5, 7: "inf"}[[1, 3, 7][i]] for i in order
    ]
    assert math.isnan(float(told[2]["in_soup"]))
    assert "nan" in str(soup)


@pytest.mark.parametrize(
    "number",
    [
        3,
        0.5,
        True,
        np.float32(0.5),
        np.float64(0.5),
        np.int64(3),
        np.asarray(0.5),
        tf.constant(0.5),
        tf.constant(3),
        tf.Variable(0.5),
    ],
)
def test_numbers_of_every_kind(number, tmp_path):
    paths = _write(tmp_path, {"a": 1})
    soup = swa_tf.greedy_soup(paths, tmp_path / "x", lambda _: number)
    assert type(soup.metric) is float
    assert soup.metric == float(number)
    assert _strict(tmp_path / "x.json")["soup"][0]["alone"] == float(number)


@pytest.mark.parametrize(
    "value",
    [
        None,
        "high",
        [0.5, 0.25],
        {"loss": 0.5},
        1j,
        np.zeros(2),
        tf.zeros(2),
        tf.constant("a"),
    ],
    ids=lambda value: type(value).__name__,
)
@pytest.mark.parametrize("at", [1, 3])
def test_a_metric_that_is_no_number(value, at, tmp_path):
    paths = _write(tmp_path, {"a": 1, "b": 3})
    before, calls = _tree(tmp_path), []

    def metric(path):
        calls.append(path)
        return value if len(calls) == at else 0.5

    with pytest.raises(TypeError, match="`metric` must return a number"):
        swa_tf.greedy_soup(paths, tmp_path / "new" / "x", metric)
    assert len(calls) == at
    assert _tree(tmp_path) == before


def test_a_metric_that_is_nan_for_all(tmp_path):
    paths = _write(tmp_path, {"a": 1, "b": 3})
    before = _tree(tmp_path)
    with pytest.raises(ValueError, match=r"one input.*NaN for each"):
        swa_tf.greedy_soup(paths, tmp_path / "new/x", lambda _: math.nan)
    assert _tree(tmp_path) == before


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
@pytest.mark.parametrize("at", [1, 3, 4, 5])
def test_a_metric_that_raises_leaves_nothing(error, at, tmp_path):
    paths = _write(tmp_path, {"a": 1, "b": 3, "c": 5})
    before, calls = _tree(tmp_path), []

    def metric(path):
        calls.append(path)
        if len(calls) == at:
            raise error("of the metric")
        return len(calls)

    with pytest.raises(error, match="of the metric"):
        swa_tf.greedy_soup(paths, tmp_path / "new" / "folder" / "x", metric)
    assert len(calls) == at
    assert _tree(tmp_path) == before


def test_an_input_that_is_lost_at_the_end_leaves_nothing(tmp_path):
    paths = _write(tmp_path / "run", {"a": 1, "b": 3})
    calls = []

    def metric(path):
        calls.append(path)
        if len(calls) == 3:  # the last: what is left is to write the soup
            os.unlink(f"{paths[0]}.index")
            os.unlink(f"{paths[0]}.data-00000-of-00001")
        return len(calls)

    with pytest.raises(FileNotFoundError):
        swa_tf.greedy_soup(paths, tmp_path / "new" / "x", metric)
    assert os.listdir(tmp_path) == ["run"]


@pytest.mark.parametrize("form", FORMS)
def test_candidates_are_of_the_form_of_the_inputs(form, tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    values = {"ckpt-1": 2.0, "ckpt-2": 5.0, "ckpt-3": 9.0}
    paths = _write(run, values, form)
    output = checkpoint_files.path_of(form, str(tmp_path), "soup")
    seen = []

    def metric(path):
        assert isinstance(path, str)
        assert path.endswith(checkpoint_files.suffix(form))
        if path not in paths:  # hidden, beside the output, and alone
            scratch = pathlib.Path(path).parent
            assert scratch.parent == tmp_path
            assert scratch.name.startswith(".soup")
            names = [*checkpoint_files.files(form, path), f"{path}.json"]
            assert sorted(map(str, scratch.iterdir())) == sorted(names)
        seen.append(float(checkpoint_files.read(form, path, LIKE)["w"]))
        return abs(seen[-1] - 3)

    soup = swa_tf.greedy_soup(run, output, metric, mode="min")
    assert seen == [2, 5, 9, 3.5, np.float32(16 / 3)]
    assert soup.paths == paths[:2]
    assert checkpoint_files.read(form, output, LIKE)["w"] == 3.5
    files = [*checkpoint_files.files(form, output), f"{output}.json", run]
    if form in (OBJECT, NAME):
        files.append(tmp_path / "checkpoint")
    assert sorted(tmp_path.iterdir()) == sorted(map(pathlib.Path, files))


@pytest.mark.parametrize("form", FORMS)
def test_a_soup_of_one(form, tmp_path):
    paths = _write(tmp_path, {"ckpt-1": 0.1}, form)
    output = checkpoint_files.path_of(form, str(tmp_path), "soup")
    calls = []
    soup = swa_tf.greedy_soup(paths, output, lambda p: calls.append(p) or 0.5)
    assert calls == paths
    assert soup.trials == [soups.Trial(paths[0], 0.5, 0.5, added=True)]
    got = checkpoint_files.read(form, output, LIKE)["w"]
    assert got == np.float32(0.1)


@pytest.mark.parametrize("as_iterator", [False, True])
def test_options_hold_for_every_average(as_iterator, tmp_path):
    paths = [str(tmp_path / f"ckpt-{i}") for i in (1, 3)]
    for path, value in zip(paths, (1, 3)):
        values = {"w": np.float32(value), "v": np.float32(value)}
        checkpoint_files.write(OBJECT, path, values)
    seen = []

    def metric(path):
        seen.append(
            checkpoint_files.read(OBJECT, path, {**LIKE, "v": LIKE["w"]})
        )
        return len(seen)

    names = ["v"]
    soup = swa_tf.greedy_soup(
        paths,
        tmp_path / "x",
        metric,
        from_newest=iter(names) if as_iterator else names,
    )
    assert seen == [{"w": 1, "v": 1}, {"w": 3, "v": 3}, {"w": 2, "v": 3}]
    metric(str(tmp_path / "x"))
    assert seen[-1] == seen[-2]
    assert soup.report["averaged"] == ["w"]


@pytest.mark.filterwarnings("ignore:.*refit_batch_norm")
def test_slots_can_be_dropped(tmp_path):
    path = str(tmp_path / "ckpt-1")
    checkpoint_files.write_trained(OBJECT, path, seed=1)
    for slots in ("keep", "drop"):
        soup = swa_tf.greedy_soup(
            [path], tmp_path / slots, lambda _: 1, optimizer_slots=slots
        )
        held = {name for name, _ in tf.train.list_variables(tmp_path / slots)}
        all_held = {name for name, _ in tf.train.list_variables(path)}
        assert len(all_held - held) == len(soup.report["dropped"])
        assert bool(soup.report["dropped"]) == (slots == "drop")


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"mode": "best"}, ValueError, '`mode` must be "max" or "min"'),
        ({"optimizer_slots": 1}, ValueError, "`optimizer_slots` must be"),
        ({"metric": "accuracy"}, TypeError, "metric='accuracy'"),
        ({"metric": None}, TypeError, "metric=None"),
        ({"from_newest": "w"}, TypeError, "from_newest='w'"),
        ({"from_newest": ["x"]}, ValueError, "'x', which matches none"),
        ({"output": "a.keras"}, ValueError, "a name without suffix"),
        ({"output": "b"}, FileExistsError, "must not exist"),
        ({"inputs": []}, ValueError, "at least one"),
        ({"inputs": ["a", "c"]}, FileNotFoundError, "'c'"),
        ({"inputs": ["a", "other"]}, ValueError, "same tensors"),
    ],
)
def test_what_is_wrong_is_said_before_any_evaluation(
    arguments, error, message, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    _write(".", {"a": 1, "b": 3})
    checkpoint_files.write(OBJECT, "other", {"x": np.float32(1)})
    before = _tree(tmp_path)

    def metric(path):
        raise AssertionError("an evaluation")

    given = {"inputs": ["a", "b"], "output": "x", "metric": metric, **arguments}
    with pytest.raises(error) as raised:
        swa_tf.greedy_soup(**given)
    assert message in str(raised.value)
    assert _tree(tmp_path) == before


# The table.


def _cells(table):
    """The cells of each row with a number before it."""
    rows = [line.strip("│┃ ") for line in table.splitlines()]
    rows = [[cell.strip() for cell in row.split("│")] for row in rows]
    return [row for row in rows if row[0].isdigit()]


def test_table():
    soup = soups.Soup(
        [
            soups.Trial("run/b", 0.1234567, 0.1234567, added=True),
            soups.Trial("run/a", -1e-9, math.nan, added=False),
            soups.Trial("run/c", 12345678.0, 1.0, added=True),
        ],
        {},
    )
    assert _cells(str(soup)) == [
        ["1", "run/b", "0.123457", "0.123457", "added"],
        ["2", "run/a", "-1e-09", "nan", "left out"],
        ["3", "run/c", "1.23457e+07", "1", "added"],
    ]
    header = str(soup).splitlines()[1]
    titles = [title.strip() for title in header.strip("┃ ").split("┃")]
    assert titles == ["checkpoint", "alone", "in the soup", "verdict"]
    assert soup.paths == ["run/b", "run/c"]
    assert soup.metric == 1.0


@pytest.mark.parametrize(
    "path",
    ["run[bold]/ckpt[/]", "lr[0.1]:smile:", "x" * 500, "a b", "ü/\\", "[red"],
)
def test_paths_stand_in_the_table_as_they_are(path):
    soup = soups.Soup([soups.Trial(path, 0.5, 0.5, added=True)], {})
    assert _cells(str(soup)) == [["1", path, "0.5", "0.5", "added"]]


def test_the_table_is_plain_text_everywhere(monkeypatch, capsys):
    soup = soups.Soup([soups.Trial("ckpt-1", 0.5, 0.5, added=True)], {})
    plain = str(soup)
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "20")
    monkeypatch.setattr(rich.console, "_is_jupyter", lambda: True)
    assert str(soup) == plain
    assert "\x1b" not in plain
    assert capsys.readouterr().out == ""
