"""Batch-norm layers that hand their inputs over while a graph is traced."""

from __future__ import annotations

import contextlib
import inspect
import types
from collections.abc import Callable, Iterator
from typing import Any

import tensorflow as tf

Normalize = Callable[[Any, Any, Any], Any]


@contextlib.contextmanager
def intercepted(
    layers: list[Any],
    kinds: tuple[type, ...],
    is_traced_here: Callable[[], bool],
    normalize: Normalize,
) -> Iterator[None]:
    """Lends layers a class of which `normalize` is the normalizing `call`.

    The class stands between the user's classes and the one of Keras, so that
    a subclass with a `call` of its own keeps it, and is met where it calls
    `super().call`. Only the given layers have it: no class is changed, and
    other models see nothing.

    Args:
        layers: The layers to intercept.
        kinds: The classes that normalize; a user's derive from them.
        is_traced_here: Whether a call belongs to the graph that is traced. A
            layer that another thread calls meanwhile does what it always does.
        normalize: Given a layer, its inputs and its mask, the outputs.
    """
    own = [type(layer) for layer in layers]
    lent = {
        each: _lent_class(each, kinds, is_traced_here, normalize)
        for each in set(own)
    }
    try:
        for layer, cls in zip(layers, own):
            # When Keras 2 has written a SavedModel, it leaves the `call` of
            # the class as an attribute of the layer, which would hide ours.
            if getattr(vars(layer).get("call"), "__func__", None) is cls.call:
                del vars(layer)["call"]
            _set_class(layer, lent[cls])
        yield
    finally:
        for layer, cls in zip(layers, own):
            _set_class(layer, cls)


def _lent_class(
    own: Any,
    kinds: tuple[type, ...],
    is_traced_here: Callable[[], bool],
    normalize: Normalize,
) -> type:
    kind: Any = next(each for each in own.__mro__ if each in kinds)
    original = kind.call
    signature = inspect.signature(original)

    @tf.autograph.experimental.do_not_convert
    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        if not is_traced_here():
            return original(self, *args, **kwargs)
        given = signature.bind(self, *args, **kwargs).arguments
        return normalize(self, given["inputs"], given.get("mask"))

    # Python's method resolution puts a subclass of `kind` right before it.
    between = types.new_class(
        own.__name__, (kind,), exec_body=lambda body: body.update(call=call)
    )
    if own is kind:
        return between
    return types.new_class(own.__name__, (own, between))


def _set_class(layer: Any, cls: type) -> None:
    # Keras's own `__setattr__` would track it.
    object.__setattr__(layer, "__class__", cls)
