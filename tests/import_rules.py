"""The rules of import of `docs/architecture.md`, checked on source code.

A tree of sources is a dictionary from paths such as `swa_tf/swapping/backup.py`
to the source code of these files.
"""

from __future__ import annotations

import ast
import graphlib
import pathlib
import re
from collections.abc import Iterator
from typing import NamedTuple

MAX_LINES = 500
STACK = "swa_tf/support/compat.py"
"""The only file that knows versions."""
_ROOT = "swa_tf/__init__.py"
_PRIVATE = ("tensorflow.python", "keras.src", "tf_keras.src")
_PRIVATE_ATTRIBUTES = (*_PRIVATE, "tf.python", "tf.keras.src")
_COMPUTED = "<computed>"
_VERSIONS = ("__version__", "VERSION", "GIT_VERSION", "COMPILER_VERSION")
_PACKAGES_OF_A_STACK = ("tensorflow_addons", "tf_keras")
_VERSION_FACT = re.compile(r"_?(KERAS|TF|TENSORFLOW)_\d")

Rules = dict[str, list[str]]
"""From a room to the rooms that it may import."""
Sources = dict[str, str]


class Import(NamedTuple):
    """`import module`, or `from module import name`; `module` is absolute."""

    line: int
    module: str
    name: str | None = None


def read_rules(text: str) -> Rules:
    """Returns what the fenced block of rules in a page of Markdown says."""
    (block,) = re.findall(r"^```rules\n(.*?)^```", text, re.M | re.S)
    lines = [line.split(":") for line in block.splitlines()]
    return {room: allowed.split() for room, allowed in lines}


def read_sources(root: pathlib.Path) -> Sources:
    """Returns the Python files of the package `swa_tf` in a folder."""
    return {
        path.relative_to(root).as_posix(): path.read_text(encoding="utf-8")
        for path in sorted((root / "swa_tf").rglob("*.py"))
    }


def broken(sources: Sources, rules: Rules) -> list[str]:
    """Returns a line for each place where a tree breaks the rules."""
    tree = _Tree(sources, rules)
    found = [
        *tree.misplaced(),
        *(line for path in sources for line in tree.broken_by(path)),
    ]
    try:
        graphlib.TopologicalSorter(tree.arrows).prepare()
    except graphlib.CycleError as error:
        found.append(f"a circle: {' -> '.join(error.args[1])}")
    return found


def imports_of(path: str, syntax: ast.AST) -> Iterator[Import]:
    """Yields all imports of a file, also those inside of functions."""
    package = path.split("/")[:-1]
    for node in ast.walk(syntax):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield Import(node.lineno, alias.name)
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) + 1 - node.level]
            start = above if node.level else []
            module = ".".join([*start, *filter(None, [node.module])])
            for alias in node.names:
                yield Import(node.lineno, module, alias.name)
        elif isinstance(node, ast.Call) and _imports_by_name(node):
            name = node.args[0] if node.args else None
            known = isinstance(name, ast.Constant) and name.value[:1] != "."
            yield Import(node.lineno, name.value if known else _COMPUTED)


def _imports_by_name(call: ast.Call) -> bool:
    """Whether a call is one of `import_module` or `__import__`."""
    name = ast.unparse(call.func).split(".")[-1]
    return name in ("import_module", "__import__")


class _Tree:
    """A tree of sources: who imports whom, and what of that is forbidden."""

    def __init__(self, sources: Sources, rules: Rules) -> None:
        self._rules = rules
        self._sources = sources
        self._syntax = {
            path: ast.parse(source, path) for path, source in sources.items()
        }
        self._paths = {_module(path): path for path in sources}
        self.arrows: dict[str, set[str]] = {path: set() for path in sources}

    def misplaced(self) -> Iterator[str]:
        """Yields rooms without a rule, private and long files."""
        rooms = {_room(path) for path in self._sources}
        for room in sorted(rooms ^ self._rules.keys()):
            yield f"{room}: a room without a rule, or a rule without a room"
        for room in sorted(rooms - {"__init__"}):
            if room.startswith("_"):
                yield f"swa_tf/{room}: private, and at the top level"
        for path, source in self._sources.items():
            n_lines = len(source.splitlines())
            if n_lines > MAX_LINES:
                yield f"{path}: {n_lines} lines, which are over {MAX_LINES}"

    def broken_by(self, path: str) -> Iterator[str]:
        """Yields what one file breaks; adds its arrows to the other files."""
        syntax = self._syntax[path]
        for imported in imports_of(path, syntax):
            for why in self._broken_by_import(path, imported):
                yield f"{path}:{imported.line}: {why}"
        for line, why in _facts(path, syntax):
            yield f"{path}:{line}: {why}"

    def _broken_by_import(self, path: str, imported: Import) -> Iterator[str]:
        module, name = imported.module, imported.name
        whole = f"{module}.{name}" if name else module
        if whole.startswith(_PRIVATE):
            yield f"{whole} is private"
        # The root imports by name what not every training needs.
        if module == _COMPUTED and path != _ROOT:
            yield "a computed import"
        package = module.split(".")[0]
        if path != STACK and (
            package in _PACKAGES_OF_A_STACK or whole == "importlib.metadata"
        ):
            yield f"{whole} is for {STACK} alone"
        if package != "swa_tf":
            return
        if module == "swa_tf":
            if name is None or whole not in self._paths:
                yield "it imports the root"
                return
            module, name = whole, None
        room, *inside = module.split(".")[1:]
        target = self._paths.get(whole) or self._paths.get(module)
        if target is None:
            yield f"there is no {module}"
        elif room == _room(path):
            self.arrows[path].add(target)
        elif room not in self._rules.get(_room(path), []):
            yield f"{_room(path)} may not import {room}"
        elif inside or (whole in self._paths and not self._shows(module, name)):
            yield f"{room} is entered by its __init__ alone, not by {whole}"
        else:
            self.arrows[path].add(self._paths[f"swa_tf.{room}"])

    def _shows(self, room: str, name: str | None) -> bool:
        """Whether the `__init__` of a room has a file among its own names."""
        return name is None or any(
            name in (alias.asname or alias.name for alias in node.names)
            for node in ast.walk(self._syntax[self._paths[room]])
            if isinstance(node, ast.ImportFrom)
        )


def _facts(path: str, syntax: ast.AST) -> Iterator[tuple[int, str]]:
    """Yields mentions of private modules, and of versions where forbidden."""
    docstrings = {
        id(node.value)
        for node in ast.walk(syntax)
        if isinstance(node, ast.Expr)
    }
    for node in ast.walk(syntax):
        text, forbidden = "", []
        if isinstance(node, ast.Attribute):
            text = ast.unparse(node)
            forbidden = [node.attr] if node.attr in _VERSIONS else []
            if text in _PRIVATE_ATTRIBUTES:
                yield node.lineno, f"{text} is private"
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            if id(node) in docstrings:
                continue
            names = _PACKAGES_OF_A_STACK
            # The root has a version of its own, and names it.
            names += () if path == _ROOT else _VERSIONS
            forbidden = [node.value] if node.value in names else []
            if node.value.startswith(_PRIVATE):
                yield node.lineno, f"{node.value} is private"
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            forbidden = [node.id] if _VERSION_FACT.match(node.id) else []
        if forbidden and path != STACK:
            yield node.lineno, f"{forbidden[0]} is for {STACK} alone"


def _module(path: str) -> str:
    parts = path[: -len(".py")].split("/")
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def _room(path: str) -> str:
    """Returns the folder in `swa_tf`, or the name of the file there."""
    return path.split("/")[1].removesuffix(".py")
