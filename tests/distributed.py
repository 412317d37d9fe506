"""One small training that must come out the same on any number of replicas.

Run as a program it is one worker of `tf.distribute.MultiWorkerMirroredStrategy`
(`tests/test_multi_worker.py` starts it).
"""

import os
import pathlib
import signal
import sys

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import numpy as np
import tensorflow as tf

import swa_tf

EPOCHS = 4
STEPS = 3  # an epoch
BATCH = 16  # of all replicas together
STEPS_WHEN = swa_tf.AveragingSchedule(start=2, period=2)
FIT_EPOCHS = 3

_random = np.random.default_rng(0)
X = _random.normal(1.0, 2.0, [STEPS * BATCH, 4]).astype(np.float32)
Y = np.sin(X.sum(1, keepdims=True))
# With the weights of a layer, and of batch norm before its statistics.
WEIGHTS = [
    _random.normal(0.0, 0.5, shape).astype(np.float32)
    for shape in ([4, 8], [8], [8], [8], [8, 1], [1])
]


def dataset(batch_size=BATCH):
    return tf.data.Dataset.from_tensor_slices((X, Y)).batch(batch_size)


def make_model():
    """Trained with the moving statistics: those of a batch are a replica's."""
    layers = tf.keras.layers
    model = tf.keras.Sequential(
        [
            layers.Input([4]),
            layers.Dense(8, activation="tanh"),
            layers.BatchNormalization(),
            layers.Dense(1),
        ]
    )
    for variable, value in zip(model.trainable_variables, WEIGHTS):
        variable.assign(value)
    return model


class Training:
    """A loop of one's own, with an average of steps and one of epochs."""

    def __init__(self, strategy):
        self.strategy = strategy
        with strategy.scope():
            self.model = make_model()
            self.optimizer = tf.keras.optimizers.SGD(0.1, momentum=0.9)
            self.steps = swa_tf.StochasticWeightAveraging(when=STEPS_WHEN)
            self.epochs = swa_tf.StochasticWeightAveraging()
            self.epoch = tf.Variable(0, trainable=False, dtype=tf.int64)
        self.checkpoint = tf.train.Checkpoint(
            model=self.model,
            optimizer=self.optimizer,
            steps=self.steps,
            epochs=self.epochs,
            epoch=self.epoch,
        )
        self._step = tf.function(self._all_replicas)

    def run(self, until=EPOCHS):
        batches = self.strategy.experimental_distribute_dataset(dataset())
        while self.epoch.numpy() < until:
            for batch in batches:
                self._step(batch)
            self.epochs.apply(self.model.trainable_variables)
            self.epoch.assign_add(1)

    def _all_replicas(self, batch):
        self.strategy.run(self._replica, args=(batch,))

    def _replica(self, batch):
        x, y = batch
        weights = self.model.trainable_variables
        with tf.GradientTape() as tape:
            errors = tf.square(self.model(x, training=False) - y)
            loss = tf.reduce_sum(errors) / BATCH  # summed over the replicas
        gradients = tape.gradient(loss, weights)
        self.optimizer.apply_gradients(zip(gradients, weights))
        self.steps.apply(weights)

    def results(self):
        """All that must be the same, as arrays."""
        model = self.model
        found = {"n_models": [self.steps.n_models, self.epochs.n_models]}
        for i, weight in enumerate(model.trainable_variables):
            found[f"weight {i}"] = weight
            found[f"steps {i}"] = self.steps.average(weight)
            found[f"epochs {i}"] = self.epochs.average(weight)
        found = {name: np.asarray(value) for name, value in found.items()}
        for name in ("steps", "epochs"):
            average = getattr(self, name)
            with swa_tf.averaged_weights(average, model, refit_data=dataset()):
                normalization = model.layers[1]
                found[f"mean of {name}"] = np.asarray(normalization.moving_mean)
                found[f"variance of {name}"] = np.asarray(
                    normalization.moving_variance
                )
                found[f"outputs of {name}"] = np.asarray(model(X))
        found["outputs"] = np.asarray(model(X))
        return found


def fit(strategy):
    """The same model in `model.fit`, and all that it logged."""
    with strategy.scope():
        model = make_model()
        model.layers[1].trainable = False
        # XLA takes minutes to compile a step of four replicas.
        model.compile(tf.keras.optimizers.SGD(0.05), "mse", jit_compile=False)
    swa = swa_tf.SWACallback(start_epoch=1, verbose=0)
    history = model.fit(
        dataset(),
        epochs=FIT_EPOCHS,
        validation_data=dataset(),
        callbacks=[swa],
        verbose=0,
    )
    found = {f"fit {name}": v for name, v in history.history.items()}
    found["fit n_models"] = swa.averages.n_models
    found["fit loss after"] = model.evaluate(dataset(), verbose=0)
    for i, weight in enumerate(model.weights):
        found[f"fit weight {i}"] = weight
    return {name: np.asarray(value) for name, value in found.items()}


def main(folder, fits):
    """A worker: trains, dies once in the middle, and then goes to the end."""
    strategy = tf.distribute.MultiWorkerMirroredStrategy()
    index = strategy.cluster_resolver.task_id
    folder = pathlib.Path(folder)
    training = Training(strategy)
    # All workers write, as TensorFlow asks; the first one's file counts.
    mine = str(folder / f"worker-{index}" / "ckpt")
    path = tf.train.latest_checkpoint(str(folder / "worker-0"))
    if path is None:
        found = fit(strategy) if fits else {}
        np.savez(folder / f"fit-{index}.npz", **found)
        training.run(until=2)
        training.checkpoint.save(mine)
        training.run(until=3)  # which is lost
        if index == 1:
            os.kill(os.getpid(), signal.SIGKILL)
    else:
        training.checkpoint.restore(path)
    training.run()
    np.savez(folder / f"results-{index}.npz", **training.results())


if __name__ == "__main__":
    main(sys.argv[1], fits=sys.argv[2] == "fit")
