"""Every example is short, and has a test file of its name."""

from tests.conftest import ROOT

EXAMPLES = {
    path.stem: path
    for path in (ROOT / "examples").glob("*.py")
    # What examples read is no example.
    if path.stem not in ("__init__", "data")
}


def test_examples_stay_short():
    for path in EXAMPLES.values():
        assert len(path.read_text().splitlines()) <= 150, path


def test_each_has_tests_of_its_own():
    folder = ROOT / "tests" / "examples"
    tested = {path.stem[len("test_") :] for path in folder.glob("test_*.py")}
    assert tested - {"every_example"} == EXAMPLES.keys()
