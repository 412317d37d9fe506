"""The words about costs in the docs are what the kept results say.

`tests/benchmarks/test_evidence.py` holds the tables between them.
"""

import json
import statistics

import pytest

from tests.conftest import ROOT

RESULTS = ROOT / "benchmarks" / "results" / "cost"
FLOOR = "floor: a += w"
TF_FUNCTION = "apply in a tf.function"


def kept(name):
    return json.loads((RESULTS / name / "results.json").read_text("utf-8"))


def page(name):
    return " ".join((ROOT / "docs" / name).read_text("utf-8").split())


def ratio(ours, theirs):
    return statistics.median(a / b for a, b in zip(ours, theirs))


def milliseconds(times):
    return 1e3 * statistics.median(times)


def models():
    """The ways to average, for each run and model."""
    for run in ("newest", "oldest", "oldest-short"):
        for model in kept(run)["averaging"].values():
            yield model["ways"]


def updates():
    """The ways to average, and those of `scaling`, by name."""
    for ways in models():
        yield {name: way["times"] for name, way in ways.items()}
    scaling = kept("scaling")
    for axis in ("parameters", "variables", "replicas"):
        for ways in scaling[axis].values():
            yield {name: way["times"] for name, way in ways.items()}


def bytes_a_parameter(way):
    """Of the models of many parameters."""
    found = kept("newest")["averaging"]
    return [
        found[name]["ways"][way]["peak"] / found[name]["parameters"]
        for name in ("resnet34", "4x25M")
    ]


def test_updates_in_floors():
    ratios = [
        ratio(ways[way], ways[FLOOR])
        for ways in updates()
        for way in ("apply", TF_FUNCTION)
        if way in ways
    ]
    assert f"{min(ratios):.1f} to {max(ratios):.1f} times" in page("cost.md")


def test_ways_that_are_faster_than_the_floor():
    fused = [
        ratio(way["times"], way["floor"])
        for ways in models()
        for name, way in ways.items()
        if name == "torch AveragedModel (fused)"
    ]
    said = f"takes {min(fused):.2f} to {max(fused):.2f} of the floor"
    assert f"torch's fused average {said}" in page("cost.md")
    sgd = kept("newest")["averaging"]["1000x64"]["ways"]["Keras SGD"]
    of_the_floor = ratio(sgd["times"], sgd["floor"])
    said = f"a step of Keras's SGD takes {of_the_floor:.2f} of the floor"
    assert said in page("cost.md")


def test_floors_of_one_size():
    floors = [
        kept(run)["averaging"]["4x25M"]["ways"][FLOOR]["times"]
        for run in ("newest", "oldest", "oldest-short")
    ]
    floors.append(kept("scaling")["parameters"]["100000000"][FLOOR]["times"])
    *first, last = (f"{milliseconds(times):.1f}" for times in floors)
    assert f"it is {', '.join(first)} and {last} ms" in page("cost.md")


def test_memory_of_updates():
    eager = bytes_a_parameter("apply")
    assert [round(peak) for peak in eager] == [20, 20]
    compiled = bytes_a_parameter(TF_FUNCTION)
    low, high = round(min(compiled)), round(max(compiled))
    cost = page("cost.md")
    assert "held about 20 bytes a parameter" in cost
    assert f"the process held {low} to {high} bytes" in cost
    guide = page("guides/large-models.md")
    assert "about 20 bytes a parameter" in guide
    assert f"the process held {low} to {high} bytes" in guide


def test_swaps():
    found = {
        name: {way: kind["times"] for way, kind in model["ways"].items()}
        for name, model in kept("newest")["swapping"].items()
    }
    tiny = found["1000x64"]
    times = f"{ratio(tiny['swap in and back'], tiny['one copy']):.0f} times"
    assert f"it takes {times} as long as one copy" in page("cost.md")
    for name, variables in [("resnet34", 104), ("1000x64", 1000)]:
        each = milliseconds(found[name]["swap in and back"]) / variables
        assert f"about {each:.2f} ms for each" in page("cost.md")


def later_calls(run, work):
    """The median time of a later call, for each model."""
    for model in kept(run)["first_calls"].values():
        yield statistics.median(
            statistics.median(times[1:]) for times in model["works"][work]
        )


def test_refits():
    small = [
        refit / (2 * forward)  # 2 batches, and 1
        for run in ("first-calls-newest", "first-calls-oldest")
        for refit, forward in zip(
            later_calls(run, "refit"), later_calls(run, "forward pass")
        )
    ]
    refit = kept("newest")["refit"]
    large = ratio(
        refit["BatchNormRefit"]["times"],
        refit["forward pass, as in training"]["times"],
    )
    cost = page("cost.md")
    said = f"takes {min(small):.1f} to {max(small):.1f} times"
    assert f"a later refit {said} as long as a forward pass here" in cost
    assert f"takes {large:.1f} of the time of a forward pass" in cost
    assert f"up to {max(small):.1f} times as long" in cost
    both = f"{large:.1f} to {max(small):.1f} times as long as a forward pass"
    assert both in cost
    assert both in page("how-it-works.md")
    assert f"or up to {max(small):.1f} times" in page("guides/large-models.md")


def test_numbers_of_calls():
    """15, where the page says nothing else."""

    def calls(found):
        return {len(way["times"]) for way in found.values()}

    newest = kept("newest")
    for run in (newest, kept("oldest")):
        for model in run["averaging"].values():
            assert calls(model["ways"]) == {15}
    for model in newest["swapping"].values():
        assert calls(model["ways"]) == {15}
    assert calls(newest["refit"]) == {15}
    assert calls(newest["training"]) == {45}
    assert calls(newest["averaged_model"]) == {45}
    assert len(newest["imports"]["tensorflow"]) == 5
    for model in kept("oldest-short")["averaging"].values():
        assert calls(model["ways"]) == {25}
    for axis in ("parameters", "variables", "replicas"):
        for ways in kept("scaling")[axis].values():
            assert calls(ways) == {9}
    for model in kept("first-calls-newest")["first_calls"].values():
        assert {len(runs) for runs in model["works"].values()} == {3}
    cost = page("cost.md")
    assert "median of 15 calls" in cost
    assert "of four ways and 25 rounds" in cost
    assert "Training steps are medians of 45 steps" in cost
    assert "Medians of five processes" in cost
    assert "medians of 9 calls" in cost
    assert "as medians of three processes" in cost
    assert "medians of 45 steps" in page("averaged-model.md")


def test_slopes():
    results = (RESULTS / "scaling" / "results.md").read_text("utf-8")
    fitted = results.split("## ")[1]
    for way, slope in [("apply", "0.91"), (FLOOR, "0.84")]:
        line = next(
            x for x in fitted.splitlines() if x[:2] == "- " and way in x
        )
        found = float(line.split("n^")[1].split(",")[0])
        assert f"{found:.2f}" == slope
    said = "are 0.91 for `apply` and 0.84 for the floor"
    assert said in page("cost.md")


def test_apply_beside_use_ema():
    """`use_ema` is what a step of the optimizer takes longer with it."""
    found = {}
    for name, model in kept("newest")["averaging"].items():
        way = model["ways"]["Keras use_ema"]
        added = [a - b for a, b in zip(way["times"], way["base"])]
        found[name] = ratio(way["apply"], added)
    low, high = sorted([found["resnet34"], found["4x25M"]])
    text = page("coming-from/keras.md")
    said = f"took {low:.1f} to {high:.1f} of the time that `use_ema` adds"
    assert said in text
    assert f"and {found['1000x64']:.1f} of it with 1,000 tiny ones" in text


@pytest.mark.parametrize("run", ["newest", "oldest"])
def test_first_updates_do_not_wait_for_a_compiler(run):
    """The 100 next calls have the compilation, the first has none."""
    for model in kept(f"first-calls-{run}")["first_calls"].values():
        for times in model["works"]["apply"]:
            assert max(times[:50]) < 1.0 < max(times[50:60])
