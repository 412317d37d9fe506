"""Weight averaging in `model.fit`."""

from swa_tf.callbacks.averaged_checkpoint import AveragedModelCheckpoint
from swa_tf.callbacks.callback import SWACallback

__all__ = ["AveragedModelCheckpoint", "SWACallback"]
