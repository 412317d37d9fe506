"""A training to be killed: it goes on from what it finds, to the same end.

`python -m tests.resumable WAY FOLDER`, with one of `WAYS`. It notes in the file
`marks` how far it has come and what it is about to do, and writes `ending.npz`
when it is through.
"""

import os
import pathlib
import sys

import numpy as np
import tensorflow as tf

import swa_tf
from swa_tf.support import compat
from tests import checkpoint_files, fitting

EPOCHS = 8
STEPS, STEPS_A_SAVE, STEPS_AN_EVALUATION = 40, 5, 8


class Marks:
    """Counts what was begun; a kill leaves the last mark in the file."""

    def __init__(self, path):
        self._file = os.open(path, os.O_CREAT | os.O_TRUNC | os.O_WRONLY)
        self._count = 0

    def __call__(self, doing):
        self._count += 1
        os.pwrite(self._file, f"{self._count} {doing:<16}".encode(), 0)


def last_mark(path):
    """The number and the name of the last one, or 0 and nothing."""
    try:
        count, doing = path.read_text().split()
    except (FileNotFoundError, ValueError):
        return 0, ""
    return int(count), doing


class Marked:
    """The batches, and a mark each time that they are read for a refit."""

    def __init__(self, mark):
        self._mark = mark

    def __iter__(self):
        self._mark("refit")
        for batch in fitting.BATCHES:
            yield batch
            self._mark("refit")


class MarkedTraining(tf.keras.callbacks.Callback):
    def __init__(self, mark):
        super().__init__()
        self._mark = mark

    def on_epoch_begin(self, epoch, logs=None):
        self._mark("train")

    def on_train_batch_end(self, batch, logs=None):
        self._mark("train")

    def on_test_begin(self, logs=None):
        self._mark("validate")

    def on_epoch_end(self, epoch, logs=None):
        self._mark("save")

    def on_train_end(self, logs=None):
        self._mark("end")


def backup(folder, mark):
    """`fit` with Keras's own callback, as safe as its settings make it."""
    settings = {"double_checkpoint": True} if compat.KERAS_3 else {}
    return _fit(
        folder,
        mark,
        fitting.make_model(),
        [
            _callback(folder, mark),
            MarkedTraining(mark),
            tf.keras.callbacks.BackupAndRestore(
                str(folder / "saved"), delete_checkpoint=False, **settings
            ),
        ],
    )


def manager(folder, mark):
    """`fit` with TensorFlow's manager, which leaves one whole at any time."""
    model = fitting.make_model()
    swa = swa_tf.StochasticWeightAveraging()
    epoch = tf.Variable(0, dtype=tf.int64)
    checkpoints = tf.train.CheckpointManager(
        tf.train.Checkpoint(
            model=model, optimizer=model.optimizer, swa=swa, epoch=epoch
        ),
        str(folder / "saved"),
        max_to_keep=2,
    )
    model.optimizer.build(model.trainable_variables)
    checkpoints.restore_or_initialize()

    def save(done, logs):
        epoch.assign(done + 1)
        checkpoints.save()

    saves = tf.keras.callbacks.LambdaCallback(on_epoch_end=save)
    return _fit(
        folder,
        mark,
        model,
        [_callback(folder, mark, averages=swa), MarkedTraining(mark), saves],
        initial_epoch=int(epoch),
    )


def _callback(folder, mark, **arguments):
    return fitting.callback(
        2,
        refit_data=Marked(mark),
        filepath=folder / "averaged.weights.h5",
        **arguments,
    )


def _fit(folder, mark, model, callbacks, **arguments):
    mark("start")
    history = fitting.fit(model, *callbacks, epochs=EPOCHS, **arguments)
    averages = callbacks[0].averages
    # Not the calls, which are counted from the epochs that are still to come.
    averages = [averages.n_models, *(each for _, each in averages.averaged)]
    optimizer = checkpoint_files.optimizer_variables(model)
    figures = [
        [epoch, *(history.history[name][i] for name in sorted(history.history))]
        for i, epoch in enumerate(history.epoch)
    ]
    return [*model.variables, *optimizer, *averages], figures


def loop(folder, mark):
    """A loop of one's own, saved in the middle of epochs, data and all."""
    model = fitting.make_model(tf.keras.optimizers.Adam(0.05))
    optimizer = model.optimizer
    when = swa_tf.AveragingSchedule(start=10, period=3)
    swa = swa_tf.StochasticWeightAveraging(when=when)
    ema = swa_tf.ExponentialMovingAverage(0.9)
    step = tf.Variable(0, dtype=tf.int64)
    losses = tf.Variable(tf.zeros([STEPS // STEPS_AN_EVALUATION, 2]))
    data = tf.data.Dataset.from_tensor_slices((fitting.X, fitting.Y))
    batches = iter(data.shuffle(32, seed=1).batch(5).repeat())
    checkpoints = tf.train.CheckpointManager(
        tf.train.Checkpoint(
            model=model,
            optimizer=optimizer,
            swa=swa,
            ema=ema,
            step=step,
            losses=losses,
            batches=batches,
        ),
        str(folder / "saved"),
        max_to_keep=2,
    )
    mark("start")
    for each in (optimizer, swa, ema):  # for what is killed after its last step
        each.build(model.trainable_variables)
    checkpoints.restore_or_initialize()

    @tf.function
    def train(inputs, targets):
        fitting.descend(model, optimizer, inputs, targets)
        swa.apply(model.trainable_variables)
        ema.apply(model.trainable_variables)

    def evaluate(row):
        for column, average in enumerate((swa, ema)):
            mark("swap")
            with swa_tf.averaged_weights(
                average, model, refit_data=Marked(mark)
            ):
                mark("evaluate")
                predicted = model(fitting.X)
                loss = tf.reduce_mean((predicted - fitting.Y) ** 2)
                losses[row, column].assign(loss)
                mark("swap")

    while step < STEPS:
        mark("train")
        train(*next(batches))
        step.assign_add(1)
        done = int(step)
        if done % STEPS_AN_EVALUATION == 0 and int(swa.n_models):
            evaluate(done // STEPS_AN_EVALUATION - 1)
        if done % STEPS_A_SAVE == 0:
            mark("save")
            checkpoints.save()
    mark("end")
    averages = [*swa.variables, *ema.variables]
    optimizer = checkpoint_files.optimizer_variables(model)
    figures = [[i, *row] for i, row in enumerate(losses.numpy())]
    return [*model.variables, *optimizer, *averages], figures


WAYS = {"backup": backup, "manager": manager, "loop": loop}


def main(way, folder):
    folder = pathlib.Path(folder)
    mark = Marks(folder / "marks")
    variables, figures = WAYS[way](folder, mark)
    mark("end")
    values = {f"v{i}": v.numpy() for i, v in enumerate(variables)}
    new = folder / "new.npz"
    np.savez(new, figures=np.asarray(figures, np.float64), **values)
    os.replace(new, folder / "ending.npz")


if __name__ == "__main__":
    main(*sys.argv[1:])
