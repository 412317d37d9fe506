"""What a release says of itself, its bounds, and the scripts of CI."""

import importlib.metadata
import re
import runpy
import subprocess

import pytest

import swa_tf
from tests.conftest import ROOT, SOURCES

METADATA = importlib.metadata.metadata("swa-tf")
SETUP = (ROOT / "setup.py").read_text(encoding="utf-8")
OLDEST = runpy.run_path(str(ROOT / ".ci" / "oldest_versions.py"))
AUDIT = runpy.run_path(str(ROOT / ".ci" / "audit.py"))
# Tools whose results do not reach who uses the package; tf_keras has the bound
# of the TensorFlow that it asks for.
UNBOUND = {"build", "mypy", "pip-audit", "ruff", "tf-keras", "twine"}


def _bounds():
    """The bound of each package, by its name as pip normalizes it."""
    found = OLDEST["constraints"](importlib.metadata.requires("swa-tf"))
    return {re.sub(r"[-_.]+", "-", name): v for name, v in found.items()}


def test_each_dependency_has_a_lower_bound_that_ci_installs():
    bounds = _bounds()
    assert {n for n, version in bounds.items() if not version} == UNBOUND
    assert bounds["tensorflow"] == "2.15"
    assert "nbclient" in bounds  # or no test would run the notebooks


def test_two_bounds_of_one_package_are_refused():
    with pytest.raises(ValueError, match=r"numpy.*1\.24 and 1\.26"):
        OLDEST["constraints"](["numpy>=1.24", "numpy>=1.26; extra == 'a'"])


def test_every_package_is_in_the_wheel():
    folders = {path.parent for path in (SOURCES / "swa_tf").rglob("*.py")}
    assert len(folders) > 5
    assert [f for f in folders if not (f / "__init__.py").is_file()] == []
    assert 'packages=find_packages(include=["swa_tf", "swa_tf.*"])' in SETUP


def test_every_file_is_in_the_sdist_or_of_the_repository_alone():
    if not (ROOT / ".git").exists():
        pytest.skip("only a clone has a list of its files")
    ran = subprocess.run(
        ["git", "ls-files"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    tracked = {path.split("/")[0] for path in ran.stdout.splitlines()}
    lines = (ROOT / "MANIFEST.in").read_text(encoding="utf-8").splitlines()
    taken = {
        name
        for line in lines
        if line.startswith(("graft ", "include "))
        for name in line.split()[1:]
    }
    assert taken <= tracked
    # Setuptools takes these by itself.
    taken |= {"LICENSE", "MANIFEST.in", "README.md", "swa_tf"}
    taken |= {"pyproject.toml", "setup.py"}
    assert tracked - taken == {".github", ".gitignore"}


def test_the_version_is_in_one_place():
    assert METADATA["Version"] == swa_tf.__version__
    assert "version=VERSION," in SETUP
    changes = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    newest = re.search(r"^## \[(.+?)\]", changes, re.MULTILINE).group(1)
    assert newest == swa_tf.__version__


def test_it_claims_what_ci_tries():
    claimed = METADATA.get_all("Classifier")
    systems = [c for c in claimed if c.startswith("Operating System")]
    assert systems == ["Operating System :: POSIX :: Linux"]
    ci = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    (tried,) = re.findall(r"^  for minor in ([\d ]+); do$", ci, re.M)
    pythons = [re.fullmatch(r".* :: 3\.(\d+)", c) for c in claimed]
    assert [found.group(1) for found in pythons if found] == tried.split()[::-1]


@pytest.mark.parametrize(
    ("requirement", "expected"),
    [
        ("numpy>=1.24", {"numpy": "1.24"}),
        ("numpy >= 1.24 ; extra == 'test'", {"numpy": "1.24"}),
        ("tensorflow==2.15.*; extra == 'addons'", {"tensorflow": "2.15"}),
        ("h5py<4,>=3.12.1", {"h5py": "3.12.1"}),
        ("ruff; extra == 'dev'", {"ruff": None}),
    ],
)
def test_oldest_version(requirement, expected):
    assert OLDEST["constraints"]([requirement]) == expected


def test_installation_page_names_the_bounds():
    text = (ROOT / "docs/start/index.md").read_text(encoding="utf-8")
    required = [
        requirement
        for requirement in importlib.metadata.requires("swa-tf")
        if "extra" not in requirement
    ]
    for name, version in OLDEST["constraints"](required).items():
        pattern = rf"{name}\s+{re.escape(version)}(?!\.?\d)"
        assert name == "tensorflow" or re.search(pattern, text), name


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


@pytest.mark.parametrize(
    ("errors", "passes"),
    [
        ("No module named pip_audit", False),
        ("error: unrecognized arguments: --format", False),
        ("requests.exceptions.ConnectionError: no route", True),
    ],
)
def test_an_audit_that_fails_is_not_one_without_data(errors, passes):
    message, passed = AUDIT["outcome"](1, "", errors)
    assert passed is passes
    assert errors in message
