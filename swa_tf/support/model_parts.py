"""Walks a model: its layers and variables, however deeply nested."""

from __future__ import annotations

import heapq
import itertools
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import tensorflow as tf

from swa_tf.support import compat
from swa_tf.support import variables as variables_lib

Edge = tuple[str, Any, int]
"""A name, the object that it leads to, and its cost."""
Path = tuple[str, ...]
PREFERRED, UNORDERED, LAST_RESORT = 1, 10**6, 10**12
"""Costs of edges; a path of many cheaper ones is better than a dearer one."""
NO_NAME = ""
"""The name of a member of a set, which has no place in an order."""

_LEAVES = frozenset({bool, int, float, str, bytes, type(None), type})
CONTAINERS = (Mapping, list, tuple, set)
_PARTS = (tf.keras.layers.Layer, tf.Module, tf.keras.metrics.Metric)
NOT_OF_A_MODEL = (tf.keras.metrics.Metric, variables_lib.BoundModule)
"""Parts whose state is no weight of the model that holds them."""
_OTHER_STATISTIC = re.compile("(moving|running)_var(iance)?")


def weights(model: Any) -> list[Any]:
    """Returns the `tf.Variable`s of the model and of its parts, each once.

    Left out is what Keras 2 and TensorFlow count as weights too: the state of
    metrics and of averages, the vocabularies of lookups, and the counters that
    Keras 2 gives a layer that was adapted.
    """
    listed = getattr(model, "weights", getattr(model, "variables", ()))
    walked = list(walk(model))
    kinds = compat.VARIABLE_CLASSES
    found = [v for v in (*listed, *walked) if isinstance(v, kinds)]
    by_ref = {v.ref(): v for v in map(compat.tf_variable, found)}
    others = [part for part in walked if isinstance(part, NOT_OF_A_MODEL)]
    uncounted = [
        value
        for part in walked
        if isinstance(part, _PARTS)
        for value in map(vars(part).get, compat.uncounted_attributes(part))
        if isinstance(value, kinds)
    ]
    states = (part.variables for part in others)
    for variable in itertools.chain(uncounted, *states):
        by_ref.pop(compat.tf_variable(variable).ref(), None)
    return list(by_ref.values())


def is_built(model: Any) -> bool:
    """Whether a model has weights; Keras 3 may say `built` of one without."""
    return bool(model.built and weights(model))


def trained_weights(model: Any) -> list[Any]:
    """Returns the `tf.Variable`s that an optimizer moves: no flags, counts."""
    listed = [*model.trainable_variables]
    if not isinstance(model, tf.keras.layers.Layer):
        # A `tf.Module` does not list the variables of layers of Keras 3.
        for layer in layers(model):
            listed += layer.trainable_variables
    found = {v.ref(): v for v in map(compat.tf_variable, listed)}.values()
    return [v for v in found if v.dtype.is_floating or v.dtype.is_complex]


def layers(model: Any) -> list[Any]:
    """Returns the layers of a model or module, itself included."""
    return [p for p in walk(model) if isinstance(p, tf.keras.layers.Layer)]


def batch_norm_layers(model: Any, trainable: bool = False) -> list[Any]:
    """Returns the batch-norm layers of a model; or only the trainable ones."""
    kinds: Any = compat.batch_norm_layers()
    found = (part for part in walk(model) if isinstance(part, kinds))
    return [layer for layer in found if layer.trainable or not trainable]


def statistics(model: Any, trainable: bool = False) -> list[Any]:
    """Returns the `tf.Variable`s that batch-norm layers do not learn.

    Of all its layers, or only of the trainable ones.
    """
    found = []
    for layer in batch_norm_layers(model, trainable):
        learned = (getattr(layer, name, None) for name in ("gamma", "beta"))
        others = map(compat.tf_variable, layer.weights)
        known = [id(compat.tf_variable(variable)) for variable in learned]
        found += [each for each in others if id(each) not in known]
    return found


def other_batch_norms(model: Any) -> list[str]:
    """Returns the names of trainable batch norms that no refit computes.

    They are of another library, and known by the name of their variance.
    """
    return [
        f"{part.name} ({type(part).__module__}.{type(part).__name__})"
        for part in walk(model)
        if getattr(part, "trainable", True)
        and not isinstance(part, compat.batch_norm_layers() + NOT_OF_A_MODEL)
        and any(map(_OTHER_STATISTIC.fullmatch, vars(part)))
    ]


def walk(model: Any) -> Iterator[Any]:
    """Yields the model, its parts, metrics and variables, each once."""
    kinds = (*compat.VARIABLE_CLASSES, *_PARTS)
    for _, part in reached(model, edges):
        if isinstance(part, kinds):
            yield part


def reached(
    root: Any, edges: Callable[[Any], Iterable[Edge]]
) -> Iterator[tuple[Path, Any]]:
    """Yields every object once, cheapest path first (Dijkstra's algorithm)."""
    number = itertools.count()
    start: Path = ()
    pending = [(0, next(number), start, root)]
    seen: dict[int, Any] = {}
    while pending:
        cost, _, path, part = heapq.heappop(pending)
        if id(part) in seen:
            continue
        seen[id(part)] = part
        yield path, part
        for name, child, further in edges(part):
            if type(child) not in _LEAVES and id(child) not in seen:
                entry = (cost + further, next(number), (*path, name), child)
                heapq.heappush(pending, entry)


def edges(part: Any) -> Iterator[Edge]:
    """Yields what a layer, a module or a container of them holds.

    `tf.train.TrackableView` does not see what Keras 3 holds in containers.
    """
    if isinstance(part, CONTAINERS):
        yield from items(part)
    elif isinstance(part, _PARTS) and not isinstance(part, NOT_OF_A_MODEL):
        uncounted = compat.uncounted_attributes(part)
        for name, value in vars(part).items():
            if name not in uncounted:
                listed = name in compat.KERAS_CONTAINERS
                yield public(name), value, LAST_RESORT if listed else PREFERRED


def items(container: Any) -> Iterator[Edge]:
    """Yields what a container holds."""
    if isinstance(container, Mapping):
        for i, (key, value) in enumerate(container.items()):
            lasting = isinstance(key, (str, int))
            yield str(key if lasting else i), value, PREFERRED
    elif isinstance(container, set) and len(container) > 1:
        for value in container:
            yield NO_NAME, value, UNORDERED
    else:
        for i, value in enumerate(container):
            yield str(i), value, PREFERRED


def public(attribute: str) -> str:
    """Returns the name of an attribute without leading underscores."""
    return attribute.lstrip("_") or attribute
