"""docs/misuse.md has a row for each test of misuse, in their order."""

import inspect
import pathlib

from tests.conformance import (
    test_misuse,
    test_misuse_of_variables,
    test_misuse_that_fails,
)

ROOT = pathlib.Path(__file__).resolve().parents[2]
MODULES = [test_misuse, test_misuse_of_variables, test_misuse_that_fails]


def _tests():
    return {
        name: value
        for module in MODULES
        for name, value in vars(module).items()
        if name.startswith("test_")
    }


def test_table_has_every_test():
    text = (ROOT / "docs" / "misuse.md").read_text(encoding="utf-8")
    table = text[text.index("| --- |") :].split("\n\n")[0]
    rows = table.splitlines()[1:]
    assert [row.split("`")[-2] for row in rows] == list(_tests())


def test_table_is_of_both_averages():
    one_class = [
        name
        for name, test in _tests().items()
        if "make" not in inspect.signature(test).parameters
    ]
    assert one_class == [
        "test_decay_outside_0_to_1",
        "test_num_updates_below_0_or_not_finite",
    ]
