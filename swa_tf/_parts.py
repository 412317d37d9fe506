"""What a model holds: its layers and variables, however deeply nested."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import tensorflow as tf

from swa_tf import _compat


def parts(model: Any) -> list[Any]:
    """The model, its layers and modules, and theirs, each once.

    Found in attributes, and in lists, tuples, sets and dictionaries of
    attributes; `tf.train.TrackableView` alone misses what Keras 3 layers hold
    in containers.
    """
    return [part for part in walk(model) if not is_variable(part)]


def weights(model: Any) -> list[Any]:
    """The `tf.Variable`s of the model and of its parts, each once.

    Those of metrics are left out, which Keras 2 counts as weights: what was
    measured is no part of the model.
    """
    listed = getattr(model, "weights", getattr(model, "variables", ()))
    walked = list(walk(model))
    found = [*listed, *filter(is_variable, walked)]
    by_ref = {v.ref(): v for v in map(_compat.tf_variable, found)}
    for part in walked:
        if isinstance(part, tf.keras.metrics.Metric):
            for variable in map(_compat.tf_variable, part.variables):
                by_ref.pop(variable.ref(), None)
    return list(by_ref.values())


def batch_norm_layers(model: Any, trainable: bool = False) -> list[Any]:
    """The batch-norm layers of a model; if `trainable`, those not frozen."""
    kinds: Any = _compat.batch_norm_layers()
    layers = [part for part in parts(model) if isinstance(part, kinds)]
    return [each for each in layers if each.trainable or not trainable]


def walk(model: Any) -> Iterator[Any]:
    """The model, its parts, metrics and variables, each once."""
    # Looked up once: what `tf.keras` holds takes a microsecond each time.
    leaves = (*_compat.variable_classes(), tf.keras.metrics.Metric)
    part_of_model = (tf.keras.layers.Layer, tf.Module)
    seen: dict[int, Any] = {}
    pending = [model]
    while pending:
        part = pending.pop()
        if type(part) in _PLAIN or id(part) in seen:
            continue
        seen[id(part)] = part
        if isinstance(part, dict):
            pending.extend(part.values())
        elif isinstance(part, (list, tuple, set)):
            pending.extend(part)  # `+=` fails for what TensorFlow wraps
        elif isinstance(part, leaves):
            yield part
        elif isinstance(part, part_of_model):
            yield part
            pending += tf.train.TrackableView.children(part).values()
            pending += vars(part).values()


_PLAIN = frozenset({bool, int, float, str, bytes, type(None), type})


def is_variable(part: Any) -> bool:
    """Whether `part` is a variable, plain or of a Keras."""
    return isinstance(part, _compat.variable_classes())
