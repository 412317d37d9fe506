"""Batch-norm layers that hand their inputs over while a graph is traced."""

from __future__ import annotations

import contextlib
import inspect
import types
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import tensorflow as tf

from swa_tf.batch_norm.moving_free_layer import MovingFreeBatchNormalization
from swa_tf.support import compat


class _Unregistered:
    """A first base, which keeps a lent class from `__init_subclass__`."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Does nothing: that of a user may want arguments, or keep a list."""


@contextlib.contextmanager
def intercepted(
    layers: list[Any], normalize: Callable[[Any, Mapping[str, Any]], Any]
) -> Iterator[None]:
    """Lends layers a class that calls `normalize(layer, arguments)`.

    The class stands between the user's classes and Keras's or ours, so that a
    subclass with a `call` of its own is met where it calls `super().call`.
    Where `normalize` returns None, layers do what they always do.
    """
    own: list[Any] = [type(layer) for layer in layers]
    lent = {each: _lent_class(each, normalize) for each in set(own)}
    try:
        for layer, cls in zip(layers, own):
            # When Keras 2 has written a SavedModel, it leaves the `call` of
            # the class as an attribute of the layer, which would hide ours.
            if getattr(vars(layer).get("call"), "__func__", None) is cls.call:
                del vars(layer)["call"]
            # Keras's own `__setattr__` would track it.
            object.__setattr__(layer, "__class__", lent[cls])
        yield
    finally:
        for layer, cls in zip(layers, own):
            object.__setattr__(layer, "__class__", cls)


def _lent_class(
    own: Any, normalize: Callable[[Any, Mapping[str, Any]], Any]
) -> type:
    kinds = (MovingFreeBatchNormalization, *compat.batch_norm_layers())
    kind: Any = next(each for each in own.__mro__ if each in kinds)
    original = kind.call
    signature = inspect.signature(original)

    @tf.autograph.experimental.do_not_convert
    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        given = signature.bind(self, *args, **kwargs).arguments
        outputs = normalize(self, given)
        return original(self, *args, **kwargs) if outputs is None else outputs

    # Python's method resolution puts a subclass of `kind` right before it.
    between = types.new_class(
        own.__name__, (kind,), exec_body=lambda body: body.update(call=call)
    )
    if own is kind:
        return between
    return types.new_class(own.__name__, (_Unregistered, own, between))
