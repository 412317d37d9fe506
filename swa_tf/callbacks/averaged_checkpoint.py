"""Files of the averaged model, written while it trains."""

from __future__ import annotations

import functools
import os
import warnings
from collections.abc import Callable
from typing import Any

import tensorflow as tf

from swa_tf.callbacks import model_patches, other_callbacks
from swa_tf.callbacks.callback import SWACallback
from swa_tf.support import atomic_files, checks, compat


class AveragedModelCheckpoint(
    other_callbacks.WritesAverages, tf.keras.callbacks.ModelCheckpoint
):
    """Keras's `ModelCheckpoint`, whose files hold the averaged model.

    Each file is of the model whose figures were logged as `swa_val_loss` and so
    on: it has the averages of that moment and, with `refit_data`, the
    batch-norm statistics found for that validation, which are not computed
    twice. When it is written, the model has its trained weights again, bit for
    bit. Give it to `fit` beside its `SWACallback`, in any order.

    >>> x, y = tf.ones([8, 1]), tf.ones([8, 1])
    >>> model = tf.keras.Sequential(
    ...     [tf.keras.Input([1]), tf.keras.layers.Dense(1)]
    ... )
    >>> model.compile("sgd", "mse")
    >>> swa = swa_tf.SWACallback(start_epoch=2, verbose=0)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     checkpoint = swa_tf.AveragedModelCheckpoint(
    ...         swa, os.path.join(folder, "best.keras"), save_best_only=True
    ...     )
    ...     logs = model.fit(
    ...         x, y, epochs=5, validation_data=(x, y), verbose=0,
    ...         callbacks=[swa, checkpoint],
    ...     )
    ...     best = tf.keras.models.load_model(checkpoint.filepath)
    >>> loss = best.evaluate(x, y, verbose=0)
    >>> abs(loss - min(logs.history["swa_val_loss"][2:])) < 1e-6
    True

    Names of files, ties, NaN and `mode` are those of this Keras, but:

    - Until every averaged weight has its first average, nothing is compared,
      and nothing is written.
    - With `save_best_only`, an epoch without the figure, such as one that
      `validation_freq` leaves out, is left out with a warning. (Keras 3 alone
      would write it.)
    - With `mode="auto"`, `swa_val_accuracy` is judged as `val_accuracy`.
    - A local `.keras` or `.h5` file replaces the last one when it is whole.
    - `BackupAndRestore` saves the best value, and a resumed training goes on
      from it.

    Args:
        swa_callback: The `SWACallback` of the same `fit`.
        filepath: The path, with places for `{epoch}` and the logs, as Keras
            takes it, such as "{epoch:02d}-{swa_val_loss:.4f}.keras".
        monitor: What `save_best_only` compares: a name in the logs.
        args: Further arguments of `tf.keras.callbacks.ModelCheckpoint`, in its
            order: `verbose`, `save_best_only`, `save_weights_only`, `mode`,
            `save_freq` (also a number of steps) and so on.
        kwargs: The same by name.

    Raises:
        TypeError: If `swa_callback` is no `SWACallback`.
        ValueError: As Keras does; if `save_best_only` is to compare a figure of
            a validation after steps; or, in `fit`, before training, if it does
            not call `swa_callback`, or that does not validate averages.
        OSError, tf.errors.OpError: If a file cannot be written (the second
            where TensorFlow itself writes it). The model has its trained
            weights then, and the file that was there before is unchanged.

    Source: the mode `update_weights=False` of `AverageModelCheckpoint` in
    TensorFlow Addons, which writes no refitted model.
    """

    verbose: Any
    monitor_op: Any

    def __init__(
        self,
        swa_callback: SWACallback,
        filepath: str | os.PathLike[str],
        monitor: str = "swa_val_loss",
        *args: Any,
        **kwargs: Any,
    ) -> None:
        if not isinstance(swa_callback, SWACallback):
            wanted = "the `SWACallback` of the same `fit`"
            raise checks.wrong("swa_callback", wanted, swa_callback, TypeError)
        super().__init__(os.fspath(filepath), monitor, *args, **kwargs)
        self.swa_callback = swa_callback
        of_averages = monitor.startswith("swa_val_")
        self._compares_averages = self.save_best_only and of_averages
        if self._compares_averages and self.save_freq != "epoch":
            raise ValueError(
                f'`save_freq` must be "epoch" for `save_best_only` by {monitor}'
                f": steps have no validation. Received: {self.save_freq!r}"
            )

    def set_model(self, model: Any) -> None:
        compat.check_keras("model", model)
        super().set_model(model)

    def on_train_begin(self, logs: Any = None) -> None:
        running = other_callbacks.running_list()
        called = [] if running is None else running.callbacks
        if running and all(each is not self.swa_callback for each in called):
            raise ValueError(
                "`swa_callback` must be among the callbacks of the same `fit`. "
                f"Received: swa_callback={self.swa_callback!r}, which is not"
            )
        validates = self.swa_callback._settings.evaluate != "trained"
        if self._compares_averages and not validates:
            raise ValueError(
                f"`monitor` must not be {self.monitor!r} with a `SWACallback` "
                'that has evaluate="trained": it logs no such figure'
            )
        super().on_train_begin(logs)

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        if self.save_freq == "epoch":
            return
        self.swa_callback._run.swapping.forget_statistics()
        hook = super().on_train_batch_end
        if int(self.swa_callback.averages.n_models) > 0:
            self._run(hook, batch, logs)
            return
        # Keras counts the batch, and may take it for one to write.
        best, verbose, self.verbose = self.best, self.verbose, 0
        self._run(hook, batch, logs)
        self.best, self.verbose = best, verbose

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        if not self.swa_callback._run.has_averages_after(epoch):
            return
        known = (logs or {}).get(self.monitor) is not None
        if self.save_best_only and not known and self.save_freq == "epoch":
            warnings.warn(
                f"Epoch {epoch + 1} is not compared, and not written: its logs "
                f"have no {self.monitor}.",
                stacklevel=2,
            )
            return
        if self.monitor_op is None:  # which Keras 3 knows after an epoch
            self.monitor_op = compat.monitor_op(
                self.model, self.monitor, self.mode
            )
        self._run(super().on_epoch_end, epoch, logs)

    def _run(self, hook: Callable[..., Any], *args: Any) -> None:
        """Calls a hook of Keras, in which the model writes its averages."""
        with model_patches.ModelPatches() as undo:
            for name in ("save", "save_weights"):
                own = getattr(self.model, name)
                write = functools.partial(self._write, undo, own)
                undo.replace(self.model, name, write)
            hook(*args)

    def _write(
        self,
        undo: model_patches.ModelPatches,
        write: Callable[..., Any],
        filepath: str,
        **arguments: Any,
    ) -> None:
        undo.close()  # for what writes the model calls its methods
        run = self.swa_callback._run
        if not run.has_averages_after(None):
            return
        is_file = filepath.endswith((".keras", ".h5"))
        with run.swapping.swapped_in():
            if atomic_files.is_remote(filepath) or not is_file:
                write(filepath, **arguments)
                return
            with atomic_files.model_file(self.model, filepath) as new:
                write(str(new), **arguments)
