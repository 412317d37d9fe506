"""Weight averaging in `model.fit`."""

from swa_tf.callbacks.callback import SWACallback

__all__ = ["SWACallback"]
