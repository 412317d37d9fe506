"""One small training that must come out the same on any number of replicas.

Run as a program it is one worker of `MultiWorkerMirroredStrategy`, or a whole
cluster of `ParameterServerStrategy`. `tests/conformance/test_multi_worker.py`
starts it.
"""

import os
import pathlib
import signal
import socket
import sys

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import numpy as np
import tensorflow as tf

import swa_tf
from swa_tf.support import compat

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
        batches = self._batches()
        while self.epoch.numpy() < until:
            for batch in batches:
                self._run_step(batch)
            self.epochs.apply(self.model.trainable_variables)
            self.epoch.assign_add(1)

    def _batches(self):
        return self.strategy.experimental_distribute_dataset(dataset())

    def _run_step(self, batch):
        self._step(batch)

    def _all_replicas(self, batch):
        self.strategy.run(self._replica, args=(batch,))

    def _replica(self, batch):
        self._train(batch)
        self.steps.apply(self.model.trainable_variables)

    def _train(self, batch):
        x, y = batch
        weights = self.model.trainable_variables
        with tf.GradientTape() as tape:
            errors = tf.square(self.model(x, training=False) - y)
            loss = tf.reduce_sum(errors) / BATCH  # summed over the replicas
        gradients = tape.gradient(loss, weights)
        self.optimizer.apply_gradients(zip(gradients, weights))

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


class Coordinated(Training):
    """The same with steps that workers run, and averages of the coordinator."""

    def __init__(self, strategy):
        super().__init__(strategy)
        self._coordinator = tf.distribute.coordinator.ClusterCoordinator(
            strategy
        )

    def error_in_a_worker(self):
        """Calls `apply` in a scheduled function, and keeps its error."""
        replica = super()._replica

        @tf.function
        def step(batch):
            self.strategy.run(replica, args=(batch,))

        try:
            self._coordinator.schedule(step, args=(next(iter(dataset())),))
        except RuntimeError as error:
            return str(error)

    def _batches(self):
        return dataset()

    def _run_step(self, batch):
        self._coordinator.schedule(self._step, args=(batch,))
        self._coordinator.join()
        self.steps.apply(self.model.trainable_variables)

    def _replica(self, batch):
        self._train(batch)


def fit(strategy):
    """The same model in `model.fit`, and all that it logged."""
    with strategy.scope():
        model = make_model()
        model.layers[1].trainable = False
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


def worker(folder, fits):
    """Trains, dies once in the middle, and then goes to the end."""
    strategy = tf.distribute.MultiWorkerMirroredStrategy()
    index = strategy.cluster_resolver.task_id
    training = Training(strategy)
    # All workers write, as TensorFlow asks; the first one's file counts.
    mine = str(folder / f"worker-{index}" / "ckpt")
    path = tf.train.latest_checkpoint(str(folder / "worker-0"))
    if path is None:
        np.savez(folder / f"fit-{index}.npz", **(fit(strategy) if fits else {}))
        training.run(until=2)
        training.checkpoint.save(mine)
        training.run(until=3)  # which is lost
        if index == 1:
            os.kill(os.getpid(), signal.SIGKILL)
    else:
        training.checkpoint.restore(path)
    training.run()
    np.savez(folder / f"results-{index}.npz", **training.results())


def free_ports(n):
    """Ports of the loopback interface that nobody listens on."""
    sockets = [socket.socket() for _ in range(n)]
    for each in sockets:
        each.bind(("127.0.0.1", 0))
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


def servers(folder):
    """Two workers, two parameter servers and their coordinator."""
    addresses = [f"127.0.0.1:{port}" for port in free_ports(4)]
    cluster = tf.train.ClusterSpec(
        {"worker": addresses[:2], "ps": addresses[2:]}
    )
    started = [
        tf.distribute.Server(cluster, job_name=job, task_index=index)
        for job in cluster.jobs
        for index in range(2)
    ]
    resolver = tf.distribute.cluster_resolver.SimpleClusterResolver(
        cluster, rpc_layer="grpc"
    )
    strategy = tf.distribute.ParameterServerStrategy(resolver)
    training = Coordinated(strategy)
    training.run()
    weights = training.model.trainable_variables
    np.savez(
        folder / "servers.npz",
        devices=[_device(weight) for weight in weights],
        devices_of_averages=[_device(a) for _, a in training.steps.averaged],
        error=training.error_in_a_worker(),
        **kept_by_a_worker("/job:worker/task:1/cpu:0"),
    )
    np.savez(folder / "results-servers.npz", **training.results())
    # Servers cannot be stopped, and keep the process from its end.
    os._exit(0 if started else 1)


def kept_by_a_worker(device):
    """An average of 1 and 3 and a backup of 3, on the device of another."""
    variable = tf.Variable(1.0)
    swa = swa_tf.StochasticWeightAveraging(device=device)
    swa.apply([variable])
    variable.assign(3.0)
    swa.apply([variable])
    backup = swa_tf.BackupVariables([variable], device)
    kept = [swa.average(variable), *backup.variables]
    return {
        "kept": [each.numpy() for each in kept],
        "kept_on": [_device(each) for each in kept],
    }


def _device(variable):
    return compat.tf_variable(variable).device


if __name__ == "__main__":
    where = pathlib.Path(sys.argv[2])
    if sys.argv[1] == "servers":
        servers(where)
    else:
        worker(where, fits=sys.argv[1] == "fit")
