"""Every marked figure of the docs is what the committed results say."""

import json
import re

import numpy as np
import pytest

from benchmarks.averaging_cost import report, scaling, tables
from benchmarks.cifar10 import config
from benchmarks.cifar10.evaluation import WAYS
from benchmarks.common import files
from benchmarks.common.errors import BenchmarkError
from benchmarks.table import (
    docs_marks,
    intervals,
    kept_results,
    plan,
    table_pages,
)
from tests.benchmarks.table_results import result
from tests.conftest import ROOT

TABLES = ROOT / kept_results.RESULTS_DIR


@pytest.mark.parametrize("name", kept_results.grids(str(TABLES)))
def test_tables_are_made_from_the_runs(name):
    made = table_pages.pages(name, kept_results.results(str(TABLES / name)))
    for file, text in made.items():
        committed = (TABLES / name / file).read_text("utf-8")
        assert committed == text, f"python -m benchmarks.table --norun ({name})"


@pytest.mark.parametrize("page", list(docs_marks.pages(str(ROOT))))
def test_docs_have_the_figures_of_the_results(page):
    text = files.read_text(page)
    renewed = docs_marks.renewed(text, str(ROOT))
    assert text == renewed, "python -m benchmarks.table --norun --docs"


def finals_of_digits():
    """The evaluations of the last epoch, by seed."""
    found = kept_results.results(str(TABLES / "digits"))
    found.sort(key=lambda each: each["seed"])
    return [each["final"] for each in found]


def test_table_of_the_first_command():
    """Its run is that of the first seed."""
    final = finals_of_digits()[0]
    page = (ROOT / "docs" / "evidence.md").read_text("utf-8")
    for way, name in WAYS.items():
        figures = [
            text
            for part in ("validation", "test")
            for text in (
                f"{final[part][way]['accuracy']:.2f}",
                f"{final[part][way]['loss']:.4f}",
            )
        ]
        assert f"| {' | '.join([name, *figures])} |" in page


def test_words_about_the_first_command():
    run = json.loads(
        (TABLES / "digits" / "momentumw-seed-0.json").read_text("utf-8")
    )
    accuracy = {
        way: figures["accuracy"]
        for way, figures in run["final"]["validation"].items()
    }
    lost = accuracy["decayed_refit"] - accuracy["decayed_moving"]
    readme = " ".join((ROOT / "README.md").read_text("utf-8").split())
    assert lost > 20.0
    assert "the decayed weights lose more than 20 percentage points" in readme
    for one, other in zip(run["epochs"][19::5], run["decayed"][4::5]):
        assert one["epoch"] == other["epoch"]
        swa = one["validation"]["swa_refit"]["accuracy"]
        assert abs(swa - other["validation"]["refit"]["accuracy"]) < 0.5
    assert "about as good as the decayed weights from epoch 20 on" in readme
    test = run["final"]["test"]
    images = [
        round(test[way]["accuracy"] * 3.59)
        for way in ("swa_refit", "decayed_refit", "refit", "moving")
    ]
    assert images == [357, 357, 354, 331]
    page = " ".join((ROOT / "docs" / "evidence.md").read_text("utf-8").split())
    assert "each right on 357 of 359 test images" in page
    assert "right on 354 with a refit, and on 331 without" in page


def test_least_gain_over_the_last_weights():
    tests = [final["test"] for final in finals_of_digits()]
    least = min(
        each["swa_refit"]["accuracy"] - each["moving"]["accuracy"]
        for each in tests
    )
    assert f"by {least:.1f} points or more in each of five seeds" in words()
    most = max(
        each[way]["accuracy"] - each["moving"]["accuracy"]
        for each in tests
        for way in ("swa", "swa_refit")
    )
    assert f"between seeds ({least:.1f} to {most:.0f} points)" in words()
    assert len(tests) == 5


def words():
    """The page, without its line breaks."""
    return " ".join((ROOT / "docs" / "evidence.md").read_text("utf-8").split())


def difference(grid, optimizer, pair):
    """The mean difference in accuracy, and whether its interval excludes 0."""
    path = TABLES / grid / "table.json"
    found = json.loads(path.read_text("utf-8"))[optimizer]["differences"]
    found = found[pair]["accuracy"]
    if found["interval"] is None:
        return found["mean"], False
    low, high = found["interval"]
    return found["mean"], low > 0.0 or high < 0.0


OPTIMIZERS = ("momentumw", "adamw", "momentum", "adam")


def test_what_a_refit_is_worth_on_cifar10():
    def of(pair):
        found = [difference("small", each, pair) for each in OPTIMIZERS]
        return zip(*found)

    last, proven = of("refit-moving")
    assert all(proven)
    assert f"last weights it is worth {min(last):.0f} to {max(last):.0f}" in (
        words()
    )
    average, proven = of("swa_refit-swa")
    assert proven == (True, True, False, False)
    texts = [f"{mean:.1f}" for mean in average]
    assert f"For the average it is worth {texts[0]} and {texts[1]}" in words()
    assert (
        f"it is worth {texts[0]} points with MomentumW and {texts[1]} with "
        "AdamW, more than chance explains. With Momentum and Adam it is worth "
        f"{texts[2]} and {texts[3]} points, which three seeds leave open"
    ) in words()
    _, proven = of("decayed_refit-decayed_moving")
    assert not any(proven)


def test_what_decay_is_worth_on_cifar10():
    path = TABLES / "small" / "table.json"
    small = json.loads(path.read_text("utf-8"))
    of = {
        way: [small[each]["test"][way]["accuracy"]["mean"] for each in small]
        for way in ("moving", "refit", "decayed_moving")
    }
    more = np.subtract(of["decayed_moving"], of["refit"])
    assert len(more) == 4
    assert f"by {min(more):.1f} to {max(more):.1f} points" in words()
    assert min(more) > 0.0
    gains = {}
    for run in kept_results.results(str(TABLES / "small")):
        test = {way: x["accuracy"] for way, x in run["final"]["test"].items()}
        gains.setdefault(run["flags"]["optimizer"], []).append(
            test["decayed_moving"] - test["refit"]
        )
    assert {
        name: intervals.t_interval(each, 0.95)[0] > 0.0
        for name, each in gains.items()
    } == {"momentumw": False, "adamw": False, "momentum": True, "adam": True}
    refit, decay = (
        dict(zip(small, np.subtract(of[way], of["moving"])))
        for way in ("refit", "decayed_moving")
    )
    assert (
        f"a refit gains {refit['momentumw']:.1f} points with MomentumW and "
        f"{refit['adamw']:.1f} with AdamW. A rate that decays, still with "
        f"moving statistics, gains {decay['momentumw']:.1f} and "
        f"{decay['adamw']:.1f}"
    ) in words()


def test_what_a_refit_is_worth_on_digits():
    def gains(refit, moving):
        return [
            final["test"][refit]["accuracy"] - final["test"][moving]["accuracy"]
            for final in finals_of_digits()
        ]

    last = gains("refit", "moving")
    decayed = gains("decayed_refit", "decayed_moving")
    assert f"and {min(last):.0f} to {max(last):.0f} on the digits" in words()
    assert (
        f"and {min(decayed):.0f} to {max(decayed):.0f} points on the digits"
    ) in words()
    assert min(*last, *decayed) > 1.0  # "helps with every seed"
    for grid in ("digits", "digits-one-thread"):
        mean, proven = difference(grid, "momentumw", "swa_refit-swa")
        assert abs(mean) < 0.3
        assert not proven
        assert not difference(grid, "momentumw", "swa_refit-decayed_refit")[1]


def test_average_against_last_weights_on_cifar10():
    """Three of the four differences of the summary are beyond chance."""
    found = [
        difference("small", optimizer, f"swa_refit-{way}")
        for way in ("refit", "moving")
        for optimizer in ("momentumw", "adamw")
    ]
    texts = [f"{mean:.1f}" for mean, _ in found]
    assert (
        f"by {texts[0]} and {texts[1]} points if these have a refit too, and "
        f"by {texts[2]} and {texts[3]} points if they have moving statistics"
    ) in words()
    assert [proven for _, proven in found] == [False, True, True, True]


def test_what_a_refit_is_worth_at_a_momentum_of_09():
    path = TABLES.parent / "figures" / "momentum.json"
    cells = json.loads(path.read_text("utf-8"))["cells"]
    of = [x["validation"] for x in cells if x["batch_norm_momentum"] == 0.9]
    last, average = (
        [np.mean(each[refit]) - np.mean(each[moving]) for each in of]
        for refit, moving in (("refit", "moving"), ("swa_refit", "swa"))
    )
    assert (
        f"gives the last weights {min(last):.0f} to {max(last):.0f} points in "
        f"figure 5, and the average {min(average):.0f} to {max(average):.0f}"
    ) in words()


def test_epochs_of_the_average():
    path = TABLES.parent / "figures" / "curves.json"
    ways = json.loads(path.read_text("utf-8"))["ways"]
    swa, last = ways["swa_refit"]["mean"], ways["refit"]["mean"][-15:]
    assert len(swa) == 15
    assert swa[0] == pytest.approx(last[0])
    assert all(a > b for a, b in zip(swa[1:], last[1:]))
    assert f"from {swa[1]:.1f} % there to {swa[11]:.1f} % in the twelfth" in (
        words()
    )
    assert max(swa) - min(swa[11:]) < 0.2  # "stays where it is"
    assert np.diff(swa).min() < 0.0  # "though not with every epoch"


def test_words_about_the_large_run():
    path = TABLES / "large" / "table.json"
    of = json.loads(path.read_text("utf-8"))["momentumw"]
    accuracy = {way: each["accuracy"] for way, each in of["test"].items()}
    best = max(accuracy, key=lambda way: accuracy[way]["mean"])
    assert best == "decayed_moving"
    assert f"with {accuracy[best]['mean']:.2f} %" in words()
    behind = [
        difference("large", "momentumw", f"swa_refit-{way}")[0]
        for way in (best, "decayed_refit")
    ]
    assert (
        f"is {-behind[0]:.2f} points behind them, and {-behind[1]:.2f} behind"
    ) in words()
    assert of["seeds"] == [0]


def test_claims_of_the_published_table():
    steady, falling, gained = [], [], []
    for by_rate in table_pages.PUBLISHED.values():
        constant, fallen = by_rate.values()
        steady.append(constant[1] - constant[0])
        moving, refit, average = fallen
        falling.append(refit - moving)
        gained += [average - moving, average - refit]
    assert len(steady) == len(falling) == 4
    assert f"SWA gains {min(gained):.1f} to {max(gained):.1f} points" in words()
    assert (
        f"a refit gives {min(steady):.1f} to {max(steady):.1f} points at a "
        f"constant rate, and {min(falling):.1f} to {max(falling):.1f} at one"
    ) in words()


def test_words_about_cifar10():
    """Where the means lie, and where chance does not explain it."""
    small = json.loads((TABLES / "small" / "table.json").read_text("utf-8"))

    def accuracy(optimizer, difference, found=small):
        found = found[optimizer]["differences"][difference]["accuracy"]
        low, high = found["interval"]
        return found["mean"], low > 0.0 or high < 0.0

    def each(difference):
        return [
            accuracy(optimizer, difference)
            for optimizer in ("momentum", "momentumw", "adam", "adamw")
        ]

    means, proven = zip(*each("swa_refit-refit"))
    assert min(means) > 0.0
    assert proven == (False, False, False, True)
    assert [f"{means[i]:.1f}" for i in (1, 3)] == ["0.7", "0.8"]
    assert f"{min(means):.1f} to {max(means):.1f}" == "0.7 to 1.9"
    low, high = small["momentumw"]["differences"]["swa_refit-refit"]["loss"][
        "interval"
    ]
    assert low < high < 0.0
    older = TABLES / "small-rate-0.1" / "table.json"
    older = json.loads(older.read_text("utf-8"))
    assert accuracy("momentumw", "swa_refit-refit", older)[1]
    means, proven = zip(*each("swa_refit-decayed_refit"))
    assert max(means) < 0.0
    assert proven == (False, True, True, True)
    assert [f"{means[i]:.1f}" for i in (1, 3)] == ["-0.9", "-0.9"]
    means, proven = zip(*each("refit-moving"))
    assert 8.5 < min(means) < max(means) < 13.5
    assert all(proven)
    assert not any(proven for _, proven in each("decayed_refit-decayed_moving"))
    large = json.loads((TABLES / "large" / "table.json").read_text("utf-8"))
    gain, less = (
        large["momentumw"]["differences"][difference]["accuracy"]["mean"]
        for difference in ("swa_refit-refit", "swa_refit-decayed_refit")
    )
    assert gain > max(mean for mean, _ in each("swa_refit-refit"))
    assert abs(less) < 0.2


def chosen_by(pattern):
    """The mean validation accuracy of averages, refit, by learning rate."""
    found = {}
    for path in (TABLES.parent / "choice").glob(pattern):
        run = json.loads(path.read_text("utf-8"))
        accuracy = run["final"]["validation"]["swa_refit"]["accuracy"]
        assert run["seed"] > 100  # none that is reported
        found.setdefault(run["flags"]["learning_rate"], []).append(accuracy)
    return {rate: np.mean(each) for rate, each in found.items()}


def test_rates_are_those_that_did_best_on_validation_images():
    digits = chosen_by("digits-momentumw-*.json")
    assert set(digits) == {0.2, 0.4, 0.6}
    best = max(digits, key=digits.get)
    assert best == config.PRESETS["digits"]["learning_rate"]
    page = words()
    assert (
        f"{digits[0.2]:.2f} % at 0.2, {digits[0.4]:.2f} % at 0.4 and "
        f"{digits[0.6]:.2f} % at 0.6"
    ) in page
    ahead = (digits[0.6] - digits[0.2]) / 100.0 * 864
    assert ahead == pytest.approx(1.0, abs=1e-3)
    assert "ahead of 0.2 by one image of 864" in page
    momentumw = chosen_by("small-momentumw-*.json")
    best = max(momentumw, key=momentumw.get)
    assert best == config.PRESETS["small"]["learning_rate"]
    assert (
        f"MomentumW {momentumw[0.1]:.2f} % at 0.1, {momentumw[0.2]:.2f} % at "
        f"0.2 and {momentumw[0.4]:.2f} % at 0.4"
    ) in page
    adamw = chosen_by("small-adamw-*.json")
    best = max(adamw, key=adamw.get)
    assert best == plan.SETTINGS["small"]["adamw"]["learning_rate"]
    said = (
        f"AdamW {adamw[0.001]:.2f} % at 0.001 and {adamw[0.01]:.2f} % at 0.01"
    )
    assert said in page


@pytest.mark.parametrize(
    "path",
    sorted((TABLES.parent / "cost").glob("*/results.json")),
    ids=lambda path: path.parent.name,
)
def test_pages_of_costs_are_made_from_the_figures(path):
    found = json.loads(path.read_text("utf-8"))
    if "scaling" in found["command"]:
        title = "How the cost of averaging grows"
        for axis in scaling.AXES:
            found[axis] = {int(n): ways for n, ways in found[axis].items()}
        sheets = scaling.sheets(found)
    else:
        title, sheets = "What averaging costs", tables.sheets(found)
    made = report.markdown(title, sheets, found)
    assert path.with_suffix(".md").read_text("utf-8") == made


_TABLE = "<!-- figures: results/table.md, Differences -->"
_NUMBER = (
    "<!-- figure: results/table.json\n"
    "momentumw/differences/swa_refit-refit/accuracy/mean +.1f -->"
)
_PAGE = f"{_TABLE}\n<!-- end -->\n\nIt gains {_NUMBER}<!-- end\n--> points.\n"


@pytest.fixture(name="root")
def fixture_root(tmp_path):
    """A project with a README whose marks are empty."""
    accuracies = {"moving": 40.0, "refit": 50.0, "swa_refit": 52.5}
    for name, text in table_pages.pages(
        "x", [result(accuracies=accuracies)]
    ).items():
        files.write_text(str(tmp_path / "results" / name), text)
    files.write_text(str(tmp_path / "README.md"), _PAGE)
    return tmp_path


class TestMarks:
    def test_renewed(self, root):
        docs_marks.renew(str(root))
        text = (root / "README.md").read_text()
        assert f"It gains {_NUMBER}+2.5<!-- end\n--> points.\n" in text
        assert re.search(r"SWA refit - last refit +\| \+2\.50 +\|", text)
        assert "## Command" not in text
        assert docs_marks.renewed(text, str(root)) == text

    def test_table_is_without_the_words_around_it(self, root):
        (root / "a.md").write_text("## A\nOne:\n\n| x |\n|---|\n\nTwo.\n")
        text = docs_marks.renewed(
            "<!-- table: a.md, A -->3<!-- end -->", str(root)
        )
        table = "| x |\n|---|"
        assert text == f"<!-- table: a.md, A -->\n\n{table}\n\n<!-- end -->"

    @pytest.mark.parametrize("figure", ["+2.5<", "+2.50 ", "+12.50 "])
    def test_any_other_digit_is_found(self, figure, root):
        docs_marks.renew(str(root))
        text = (root / "README.md").read_text()
        assert figure in text
        changed = text.replace(figure, figure.replace("2.5", "2.6"), 1)
        assert docs_marks.renewed(changed, str(root)) == text

    def test_changed_result_is_found(self, root):
        docs_marks.renew(str(root))
        path = root / "results" / "table.json"
        figures = json.loads(path.read_text())
        gain = figures["momentumw"]["differences"]["swa_refit-refit"]
        gain["accuracy"]["mean"] = -1.0
        path.write_text(json.dumps(figures))
        text = (root / "README.md").read_text()
        assert f"{_NUMBER}-1.0<" in docs_marks.renewed(text, str(root))

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            (f"{_NUMBER}+2.5", "end"),
            (f"{_NUMBER}+2.5 {_NUMBER}+2.5<!-- end -->", "end"),
            ("<!-- figures: results/table.md, Costs --><!-- end -->", "Costs"),
            ("<!-- figures: results/none.md --><!-- end -->", "none.md"),
            ("<!-- figure: results/table.json +.1f --><!-- end -->", "format"),
            ("<!-- figure: results/table.json a/b .1f --><!-- end -->", "a/b"),
        ],
    )
    def test_wrong_mark(self, text, message, root):
        with pytest.raises(BenchmarkError, match=message):
            docs_marks.renewed(text, str(root))
