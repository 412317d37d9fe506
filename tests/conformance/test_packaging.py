"""The bounds on what is depended on, and the scripts of CI that use them."""

import importlib.metadata
import pathlib
import re
import runpy

import pytest

ROOT = pathlib.Path(__file__).parents[2]
OLDEST = runpy.run_path(str(ROOT / ".ci" / "oldest_versions.py"))
AUDIT = runpy.run_path(str(ROOT / ".ci" / "audit.py"))
# Tools whose results do not reach who uses the package; tf_keras has the bound
# of the TensorFlow that it asks for.
UNBOUND = {"mypy", "pip-audit", "ruff", "tf_keras"}


def _names(requirements):
    return {re.match(r"[\w.-]+", text).group() for text in requirements}


def test_each_dependency_has_a_lower_bound_that_ci_installs():
    requirements = importlib.metadata.requires("swa-tf")
    bounds = OLDEST["constraints"](requirements)
    normal = {name.replace("-", "_") for name in bounds}
    unbound = {
        name
        for name in _names(requirements)
        if name.replace("-", "_") not in normal
    }
    assert {n.replace("-", "_") for n in unbound} == {
        n.replace("-", "_") for n in UNBOUND
    }
    assert bounds["tensorflow"] == "2.15"


@pytest.mark.parametrize(
    ("requirement", "expected"),
    [
        ("numpy>=1.24", {"numpy": "1.24"}),
        ("numpy >= 1.24 ; extra == 'test'", {"numpy": "1.24"}),
        ("tensorflow==2.15.*; extra == 'addons'", {"tensorflow": "2.15"}),
        ("h5py>=3.12.1,<4", {"h5py": "3.12.1"}),
        ("ruff; extra == 'dev'", {}),
    ],
)
def test_oldest_version(requirement, expected):
    assert OLDEST["constraints"]([requirement]) == expected


def test_readme_names_the_bounds():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    bounds = OLDEST["constraints"](importlib.metadata.requires("swa-tf"))
    for name in ("absl-py", "google-crc32c", "h5py", "numpy", "rich"):
        assert re.search(rf"{name}\s+{re.escape(bounds[name])}\b", text), name


def test_a_vulnerability_fails():
    known = {"name": "a", "version": "1.0", "vulns": [{"id": "PYSEC-1"}]}
    clean = {"name": "b", "version": "2.0", "vulns": []}
    assert AUDIT["judged"]([clean, known]) == ("a 1.0: PYSEC-1", False)


def test_no_data_is_not_called_clean():
    message, passed = AUDIT["judged"]([{"name": "a", "skip_reason": "no data"}])
    assert passed
    assert message.startswith("NOT audited")


def test_what_has_no_data_is_named():
    clean = {"name": "b", "version": "2.0", "vulns": []}
    message, passed = AUDIT["judged"](
        [clean, {"name": "a", "skip_reason": "no data"}]
    )
    assert passed
    assert message.endswith("no data on a")
