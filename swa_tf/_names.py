"""Names of variables that are the same in every process.

Keras makes names up from how many layers it has made before: `dense_7`. Here
a name is the path of attributes that leads to the variable, as in PyTorch's
`state_dict` and in TensorFlow's checkpoints: `encoder/blocks/0/kernel`.
"""

from __future__ import annotations

import heapq
import itertools
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import tensorflow as tf

from swa_tf import _compat

_Edge = tuple[str, Any, int]
"""A name, what it leads to, and how much it is to be avoided."""
_Path = tuple[str, ...]
_ATTRIBUTE, _UNORDERED, _LAST_RESORT = 0, 1, 2
_NO_NAME = ""


def named_variables(target: Any) -> dict[str, Any]:
    """The `tf.Variable`s of `target`, each once, by a name that is its own.

    Of a model those that `weights` lists, but for metrics; of an optimizer all
    that it keeps. A layer of a functional or sequential model goes by its
    name if the user gave it one, and otherwise by its class and its number in
    `model.layers`. What is found in several ways goes by the shortest.

    Args:
        target: A Keras model, layer or optimizer, or a `tf.Module`.

    Returns:
        Names and variables, in the order of `target.weights`; of an optimizer
        the shortest names first.

    Raises:
        TypeError: If `target` is anything else.
        ValueError: If it holds no variables, or some that have no place in
            an order.
    """
    if isinstance(target, _compat.optimizers()):
        paths = _paths(_reached(target, _optimizer_edges))
        return _unique(paths, paths)
    metric = tf.keras.metrics.Metric
    layer_or_module = (tf.keras.layers.Layer, tf.Module)
    if isinstance(target, metric) or not isinstance(target, layer_or_module):
        raise TypeError(
            "`target` must be a Keras model, layer or optimizer or a "
            f"`tf.Module`. Received: target of type {type(target).__name__}"
        )
    reached = list(_reached(target, _layer_edges))
    paths = _paths(reached)
    measured = {
        _ref(variable)
        for _, part in reached
        if isinstance(part, metric)
        for variable in part.variables
    }
    found = dict.fromkeys([*map(_ref, _listed(target)), *paths])
    weights = [ref for ref in found if ref not in measured]
    if not weights:
        raise _not_built(target)
    return _unique(paths, weights)


def _ref(variable: Any) -> Any:
    return _compat.tf_variable(variable).ref()


def _listed(target: Any) -> list[Any]:
    """What the target itself says its weights are."""
    if not isinstance(target, tf.keras.layers.Layer):
        return list(target.variables)
    try:
        return list(target.weights)
    except ValueError as error:  # Keras 2, of a model that is not built
        raise _not_built(target) from error


def _not_built(target: Any) -> ValueError:
    return ValueError(
        "`target` must hold variables: call it on data, or its `build`, "
        f"first. Received: target={target!r} without variables"
    )


def _reached(
    root: Any, edges: Callable[[Any], Iterable[_Edge]]
) -> Iterator[tuple[_Path, Any]]:
    """Each part once, with the best path to it, best first.

    The best is the one that avoids what is to be avoided, then the shortest,
    then the first: Dijkstra's algorithm.
    """
    number = itertools.count()
    start: _Path = ()
    pending = [((0, 0, 0), next(number), start, root)]
    seen: dict[int, Any] = {}
    while pending:
        cost, _, path, part = heapq.heappop(pending)
        if id(part) in seen:
            continue
        seen[id(part)] = part
        yield path, part
        for name, child, avoid in edges(part):
            further = (
                cost[0] + (avoid == _LAST_RESORT),
                cost[1] + (avoid == _UNORDERED),
                cost[2] + 1,
            )
            entry = (further, next(number), (*path, name), child)
            heapq.heappush(pending, entry)


def _paths(reached: Iterable[tuple[_Path, Any]]) -> dict[Any, _Path]:
    """The best path to each variable reached, by its `ref()`."""
    paths: dict[Any, _Path] = {}
    for path, part in reached:
        if isinstance(_compat.tf_variable(part), tf.Variable):
            paths.setdefault(_ref(part), path)
    return paths


def _unique(paths: dict[Any, _Path], weights: Iterable[Any]) -> dict[str, Any]:
    """Joins the paths; of equal names all but the first get a number.

    Args:
        paths: Paths by `ref()`, the best first.
        weights: What is to have a name, in the order of the result.
    """
    for ref in weights:
        if _NO_NAME in paths.get(ref, (_NO_NAME,)):
            variable = ref.deref()
            raise ValueError(
                "`target` must hold its layers and variables in attributes, "
                "lists or dictionaries, which have the same order in every "
                f"process. Received: '{_compat.variable_name(variable)}' "
                f"of shape {variable.shape}, in a set or elsewhere"
            )
    names: dict[str, Any] = {}
    for ref, path in paths.items():
        names[_numbered("/".join(path), names)] = ref
    name_of = {ref: name for name, ref in names.items()}
    return {name_of[ref]: ref.deref() for ref in weights}


def _numbered(name: str, taken: Iterable[str]) -> str:
    """`name`, or the first of `name`_1, `name`_2, ... that is not taken."""
    others = (f"{name}_{i}" for i in itertools.count(1))
    return next(n for n in itertools.chain([name], others) if n not in taken)


def _layer_edges(part: Any) -> Iterator[_Edge]:
    """What a layer, a module or a container of them holds."""
    if isinstance(part, (Mapping, list, tuple, set)):
        yield from _items(part)
    elif isinstance(part, tf.keras.metrics.Metric):
        return  # what was measured is no part of the model
    elif isinstance(part, (tf.keras.layers.Layer, tf.Module)):
        if _compat.is_functional(part):
            for name, layer in zip(_layer_names(part.layers), part.layers):
                yield name, layer, _ATTRIBUTE
        uncounted = _compat.uncounted_attributes(part)
        for name, value in vars(part).items():
            if name not in uncounted:
                own = name in _compat.KERAS_CONTAINERS
                yield _public(name), value, _LAST_RESORT if own else _ATTRIBUTE


def _optimizer_edges(part: Any) -> Iterator[_Edge]:
    """What an optimizer holds, and what its lists and its loss scale do."""
    if isinstance(part, (Mapping, list, tuple, set)):
        yield from _items(part)
    elif not isinstance(part, (tf.keras.layers.Layer, tf.Module)):
        for name, child in _compat.optimizer_parts(part):
            yield _public(name), child, _ATTRIBUTE
        if isinstance(part, _compat.optimizers()):
            for name, slots in _compat.optimizer_slots(part).items():
                yield name, slots, _LAST_RESORT


def _items(container: Any) -> Iterator[_Edge]:
    if isinstance(container, Mapping):
        for i, (key, value) in enumerate(container.items()):
            lasting = isinstance(key, (str, int))
            yield str(key if lasting else i), value, _ATTRIBUTE
    elif isinstance(container, set) and len(container) > 1:
        for value in container:
            yield _NO_NAME, value, _UNORDERED
    else:
        for i, value in enumerate(container):
            yield str(i), value, _ATTRIBUTE


def _public(attribute: str) -> str:
    return attribute.lstrip("_") or attribute


def _layer_names(layers: list[Any]) -> list[str]:
    """Names of a model's layers: those given by the user, or numbers."""
    given = [None if _is_automatic(layer) else layer.name for layer in layers]
    taken = {name for name in given if name}
    names = []
    for layer, name in zip(layers, given):
        if name is None:
            name = _numbered(_snake_case(type(layer).__name__), taken)
            taken.add(name)
        names.append(name)
    return names


def _is_automatic(layer: Any) -> bool:
    """Whether Keras could have made up the name of `layer`."""
    kind = type(layer).__name__
    made_up = {_letters(kind), _letters(_snake_case(kind))}
    name = re.sub(r"^private__", "", layer.name)  # Keras 2, of `_Layer`
    names = {_letters(name), _letters(re.sub(r"_\d+$", "", name))}
    return not names.isdisjoint(made_up)


def _letters(name: str) -> str:
    return re.sub(r"[\W_]", "", name).lower()


def _snake_case(name: str) -> str:
    """`conv2d_transpose` of `Conv2DTranspose`, `model` of `Functional`."""
    if name == "Functional":
        return "model"  # its name in Keras 2
    name = re.sub(r"(.)([A-Z][a-z]+)", r"\1_\2", name.lstrip("_"))
    return re.sub(r"([a-z])([A-Z])", r"\1_\2", name).lower()
