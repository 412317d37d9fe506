"""No file of the package runs what it reads: SECURITY.md."""

import ast

import pytest

from tests.conftest import SOURCES

FILES = sorted((SOURCES / "swa_tf").rglob("*.py"))
MODULES = {"dill", "cloudpickle", "joblib", "marshal", "pickle", "shelve"}
NETWORK = {"ftplib", "http", "requests", "socket", "urllib"}
BUILT_IN = {"eval", "exec", "compile", "__import__"}
METHODS = {"load_model", "system", "popen"}


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_nothing_is_unpickled_run_or_fetched(path):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names = {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names = {(node.module or "").split(".")[0]}
        else:
            names = set()
        assert not names & (MODULES | NETWORK), node.lineno
        if isinstance(node, ast.Call):
            function = node.func
            assert getattr(function, "id", "") not in BUILT_IN, node.lineno
            assert getattr(function, "attr", "") not in METHODS, node.lineno
            keywords = {keyword.arg for keyword in node.keywords}
            assert "allow_pickle" not in keywords, node.lineno
