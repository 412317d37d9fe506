"""What the graph of a model depends on in Python, to tell a change of it."""

from __future__ import annotations

import dataclasses
import functools
import types
import weakref
from collections.abc import Iterator
from typing import Any

import numpy as np
import tensorflow as tf

from swa_tf import _parts

_VALUES = (bool, int, float, complex, str, bytes, np.generic, tf.DType)
_OBJECTS = (
    types.FunctionType,
    types.BuiltinFunctionType,
    types.MethodType,
    np.ndarray,
)


class Fingerprint:
    """The state of a model, by which to tell that it has changed since.

    Compared are the layers, modules and variables that the model holds, with
    their classes and `call`s; and what their attributes hold, in containers
    and data classes too: numbers, strings and the like by value, functions
    and arrays by identity. Metrics are no part of it, nor the functions with
    which Keras trains and evaluates. It keeps none of them alive.
    """

    def __init__(self, model: Any) -> None:
        state = _State(model)
        self._values = state.values
        self._objects = [weakref.ref(each) for each in state.objects]

    def fits(self, model: Any) -> bool:
        """Whether the model is as it was."""
        state = _State(model)
        return (
            len(state.objects) == len(self._objects)
            and all(a() is b for a, b in zip(self._objects, state.objects))
            and state.values == self._values
        )


class _State:
    """What is compared by value, and what by identity."""

    def __init__(self, model: Any) -> None:
        metric = tf.keras.metrics.Metric
        self.objects = [
            part for part in _parts.walk(model) if not isinstance(part, metric)
        ]
        self._numbers = {id(part): n for n, part in enumerate(self.objects)}
        self.values: list[Any] = []
        for part in list(self.objects):
            if not _parts.is_variable(part):
                self.objects += filter(None, [getattr(type(part), "call", 0)])
                self.values.append(list(self._items(_attributes(part))))

    def _items(self, attributes: Any) -> Iterator[Any]:
        for name, value in attributes:
            frozen = self._frozen(value)
            if frozen is not None:
                yield name, frozen

    def _frozen(self, value: Any) -> Any:
        kind = type(value)
        if kind is _NONE:
            return None
        if issubclass(kind, _VALUES):
            return kind, value
        if id(value) in self._numbers:
            return self._numbers[id(value)]
        if isinstance(value, (list, tuple)):
            return list(self._items(enumerate(value))) or None
        if isinstance(value, dict):  # and what TensorFlow wraps one in
            return list(self._items(list(value.items()))) or None
        if issubclass(kind, _OBJECTS):
            self.objects.append(value)
        elif kind is types.SimpleNamespace or dataclasses.is_dataclass(kind):
            return list(self._items(vars(value).items()))
        return None


def _attributes(part: Any) -> Iterator[Any]:
    """Names and values, but for those that Keras keeps for itself."""
    skipped = _bookkeeping()
    for name, value in vars(part).items():
        if name not in skipped and not name.startswith("_self_"):
            yield name, value
    for name in ("trainable", "compute_dtype"):
        yield name, getattr(part, name, None)


@functools.cache
def _bookkeeping() -> frozenset[str]:
    """What every model and layer has, and what trains and evaluates it."""
    # Named, for Keras counts those that are not.
    return frozenset(
        [
            *vars(tf.keras.Model(name="none")),
            *vars(tf.keras.layers.Layer(name="none")),
            *(f"{each}_function" for each in ("train", "test", "predict")),
            *(f"stop_{each}" for each in ("evaluating", "predicting")),
            "train_tf_function",
        ]
    )


_NONE = type(None)
