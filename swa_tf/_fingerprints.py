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
_SMALL = 4096  # bytes of an array that is compared by value


class Fingerprint:
    """The state of a model, by which to tell that it has changed since.

    Compared are the layers, modules and variables that the model holds, with
    their classes and `call`s; and what their attributes hold, in containers
    and data classes too: numbers, strings, small arrays and the like by value,
    anything else by identity. Metrics are no part of it, nor the functions
    with which Keras trains and evaluates. It keeps none of them alive.
    """

    def __init__(self, model: Any) -> None:
        state = _State(model)
        self._values = state.values
        self._objects = [weakref.ref(each) for each in state.objects]
        self._written: set[tuple[int, Any]] = set()

    def settle(self, model: Any) -> None:
        """Leaves out what calling the model has changed, such as a count."""
        for n, (before, now) in enumerate(
            zip(self._values, _State(model).values)
        ):
            old = dict(before)
            self._written |= {
                (n, name) for name, value in now if old.get(name) != value
            }

    def fits(self, model: Any) -> bool:
        """Whether the model is as it was."""
        state = _State(model)
        return (
            len(state.objects) == len(self._objects)
            and all(a() is b for a, b in zip(self._objects, state.objects))
            and self._read(state.values) == self._read(self._values)
        )

    def _read(self, values: list[Any]) -> list[Any]:
        return [
            [item for item in items if (n, item[0]) not in self._written]
            for n, items in enumerate(values)
        ]


class _Identity:
    """Equal to that of the same object, while it lives."""

    def __init__(self, value: Any) -> None:
        self._ref = weakref.ref(value)

    def __eq__(self, other: object) -> bool:
        mine = self._ref()
        return (
            isinstance(other, _Identity)
            and mine is not None
            and mine is other._ref()
        )

    __hash__ = None  # type: ignore[assignment]


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
        if issubclass(kind, np.ndarray) and value.nbytes <= _SMALL:
            return value.shape, value.dtype.str, value.tobytes()
        items = _items_of(value)
        if items is not None:
            self._numbers[id(value)] = len(self._numbers)  # it may hold itself
            return list(self._items(items)) or None
        try:
            return _Identity(value)
        except TypeError:  # there are no weak references to it
            return kind, repr(value)


def _items_of(value: Any) -> Any:
    """Names and values that a container or data class holds, or None."""
    if isinstance(value, (list, tuple)):
        return enumerate(value)
    if isinstance(value, (set, frozenset)):
        return enumerate(sorted(value, key=repr))
    if isinstance(value, dict):  # and what TensorFlow wraps one in
        return list(value.items())
    if isinstance(value, types.SimpleNamespace):
        return vars(value).items()
    if dataclasses.is_dataclass(type(value)):
        names = [field.name for field in dataclasses.fields(value)]
        return [(name, getattr(value, name, None)) for name in names]
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
            *("train_tf_function", "optimizer", "history", "_compile_config"),
        ]
    )


_NONE = type(None)
