"""The table of modules in the README is what the imports are."""

import ast
import pathlib
import re
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "swa_tf"
ROOMS = ("callbacks", "swapping")


def _module(path):
    """The stem of a file; of the `__init__` of a room, the room."""
    entrance = path.stem == "__init__" and path.parent != PACKAGE
    return path.parent.name if entrance else path.stem


FILES = {
    _module(path): path
    for path in sorted(PACKAGE.rglob("*.py"))
    if _module(path) != "_checkpoint_files"
}
TREES = {
    name: ast.parse(path.read_text(encoding="utf-8"))
    for name, path in FILES.items()
}
PRIVATE = ("tensorflow.python", "keras.src", "tf_keras.src")
STACKS = ("tensorflow_addons", "tf_keras")


def _picture():
    """Each file of the README's table and what it may import, in order."""
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    table = readme[readme.index("| file in `swa_tf/` |") :].split("\n\n")[0]
    rows = [row.strip("|").split("|") for row in table.splitlines()[2:]]
    return {
        re.search(r"`(.+)`", row[0]).group(1): set(
            re.findall(r"`(\w+)`", row[2])
        )
        for row in rows
    }


def _allowed():
    return {
        _module(PACKAGE / file): allowed for file, allowed in _picture().items()
    }


def _imports(tree):
    """The full name of everything that a file imports, wherever it does."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            module = "." * node.level + (node.module or "")
            yield from (f"{module}.{alias.name}" for alias in node.names)
        elif _imports_module(node) and isinstance(node.args[0], ast.Constant):
            yield node.args[0].value


def _imports_module(node):
    """Whether it is a call of `importlib.import_module`."""
    return isinstance(node, ast.Call) and "import_module" in ast.dump(node.func)


def _own(imported, importer):
    """The modules of `swa_tf` among imports; "" stands for the root.

    Who is outside of a room gets its names from the `__init__` alone.
    """
    for name in imported:
        parts = name.split(".")
        if parts[0] != "swa_tf":
            continue
        if parts[1] not in ROOMS:
            yield next((part for part in parts[1:] if part in FILES), "")
        elif FILES[importer].parent.name == parts[1]:
            yield parts[2]
        else:
            yield parts[1] if len(parts) == 3 else name


def _docstrings(tree):
    return {
        id(node.value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
    }


def test_what_the_root_imports_on_first_use_is_what_checkers_see():
    (names,) = (
        ast.literal_eval(node.value)
        for node in TREES["__init__"].body
        if isinstance(node, ast.Assign)
        and node.targets[0].id == "_ON_FIRST_USE"
    )
    (seen,) = (
        node
        for node in TREES["__init__"].body
        if isinstance(node, ast.If)
        and ast.unparse(node.test) == "TYPE_CHECKING"
    )
    expected = {
        f"swa_tf.{name}" if name == module else f"swa_tf.{module}.{name}"
        for name, module in names.items()
    }
    assert set(_imports(seen)) == expected


@pytest.mark.parametrize("name", sorted(FILES.keys() - {"__init__"}))
def test_nothing_else_imports_what_is_computed(name):
    for node in ast.walk(TREES[name]):
        if _imports_module(node):
            assert isinstance(node.args[0], ast.Constant), node.lineno


def test_the_root_has_all_that_it_names():
    code = (
        "import swa_tf, types; "
        "assert set(swa_tf.__all__) <= set(dir(swa_tf)); "
        "assert 'swa_tf.soups' not in __import__('sys').modules; "
        "[getattr(swa_tf, name) for name in swa_tf.__all__]; "
        "assert callable(swa_tf.greedy_soup); "
        "assert isinstance(swa_tf.soups, types.ModuleType); "
        "assert swa_tf.checkpoints.checkpoints_in is swa_tf.checkpoints_in; "
        "assert not hasattr(swa_tf, 'nothing')"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


def test_the_table_lists_the_files():
    files = [p.relative_to(PACKAGE).as_posix() for p in FILES.values()]
    assert sorted(_picture()) == sorted(files)


def test_arrows_run_one_way():
    seen = set()
    for name, allowed in reversed(_allowed().items()):
        assert allowed <= seen, f"{name} imports a module of a higher row"
        seen.add(name)


@pytest.mark.parametrize("name", sorted(FILES))
def test_imports_are_those_of_the_table(name):
    assert set(_own(_imports(TREES[name]), name)) <= _allowed()[name]


@pytest.mark.parametrize("name", sorted(FILES))
def test_no_relative_and_no_private_import(name):
    for imported in _imports(TREES[name]):
        assert not imported.startswith((".", *PRIVATE)), imported


@pytest.mark.parametrize("name", sorted(FILES.keys() - {"_compat"}))
def test_only_compat_knows_the_stack(name):
    tree = TREES[name]
    docstrings = _docstrings(tree)
    for imported in _imports(tree):
        assert imported.split(".")[0] not in STACKS, imported
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            assert node.attr not in ("__version__", "VERSION"), node.lineno
        if isinstance(node, ast.Constant) and id(node) not in docstrings:
            assert node.value not in STACKS, node.lineno


IMPORTS = """
import sys
import tensorflow as tf
tf.keras.layers.BatchNormalization, tf.keras.optimizers.SGD
tf.compat.v1.keras, tf.keras.utils.register_keras_serializable
before = set(sys.modules)
import swa_tf
for name in {name.partition(".")[0] for name in set(sys.modules) - before}:
    origin = getattr(sys.modules.get(name), "__file__", None) or ""
    if "site-packages" in origin or "dist-packages" in origin:
        print(name)
"""


def test_importing_adds_no_third_party_module():
    ran = subprocess.run(
        [sys.executable, "-c", IMPORTS],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    # Of TensorFlow, the parsers of what its checkpoints hold.
    assert set(ran.stdout.split()) <= {"swa_tf", "tensorflow"}
