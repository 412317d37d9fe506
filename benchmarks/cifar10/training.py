"""Training with averaging: the steps of an epoch, and a run of epochs."""

from __future__ import annotations

import copy
import itertools
import math
import sys
import time
from collections.abc import Iterator
from typing import Any

import tensorflow as tf
from tqdm import tqdm

import swa_tf
from benchmarks.cifar10 import data, distribution
from benchmarks.cifar10.config import Config
from benchmarks.cifar10.evaluation import DECAYED, Evaluator
from benchmarks.cifar10.run_directory import Records, RunDirectory
from benchmarks.common.errors import BenchmarkError
from benchmarks.common.resnet import ResNet

MOMENTUM = 0.9
# It divides the `refit_samples` of the presets: a last batch of another size
# would be traced by itself, at the cost of seconds.
_EVALUATION_BATCH = 256


class Trainer:
    """A model, its optimizer and its averages, trained an epoch at a time.

    Made inside the scope of a strategy, its replicas share each batch.

    Args:
        config: The settings.
        splits: The images.
    """

    def __init__(self, config: Config, splits: data.Splits) -> None:
        self._config = config
        self._splits = splits
        self._strategy = tf.distribute.get_strategy()
        self.steps = len(splits.train) // config.batch_size
        self.model = ResNet(
            config.resnet_size,
            config.width,
            data.CLASSES,
            config.batch_norm,
            config.batch_norm_momentum,
        )
        self.model(tf.zeros([1, *splits.train.images.shape[1:]]))
        self._decays = tf.Variable(False, trainable=False)
        self._schedule = LearningRate(config, self.steps, self._decays)
        self.optimizer = make_optimizer(config, self._schedule)
        if hasattr(self.optimizer, "build"):
            self.optimizer.build(self.model.trainable_variables)
        self.swa = swa_tf.StochasticWeightAveraging()
        self.checkpoint = tf.train.Checkpoint(
            model=self.model, optimizer=self.optimizer, swa=self.swa
        )
        self.without_averages = tf.train.Checkpoint(
            model=self.model, optimizer=self.optimizer
        )
        self._decayed = _l2_variables(config, self.model)
        self._loss = tf.keras.metrics.Mean()
        self._accuracy = tf.keras.metrics.SparseCategoricalAccuracy()
        self._step = tf.function(self._train_replicas)
        self._next_epoch = 0  # of the batches, which are not there yet

    def decay(self) -> None:
        """Makes all epochs from now on those of the branch that decays."""
        self._decays.assign(True)
        self.swa.reset()

    def train_epoch(self, epoch: int) -> dict[str, float]:
        """Trains for one epoch, and averages at its end if it is time.

        Args:
            epoch: Its number, from 1.

        Returns:
            The epoch's `learning_rate`, of its last step; `loss` and
            `accuracy` on the augmented images; and `n_models`.

        Raises:
            BenchmarkError: If the loss has become infinite or NaN.
        """
        config = self._config
        self._loss.reset_state()
        self._accuracy.reset_state()
        with tqdm(
            self._batches_of(epoch),
            total=self.steps,
            desc=_name(epoch, config.epochs, self._is_decayed()),
            unit="batch",
            leave=False,
            dynamic_ncols=True,
            # A log file gets a line now and then, not one a batch.
            mininterval=0.1 if sys.stderr.isatty() else 10.0,
        ) as progress:
            for images, labels in progress:
                self._step(images, labels)
        loss = float(self._loss.result())
        if not math.isfinite(loss):
            raise BenchmarkError(
                f"Training diverged in epoch {epoch}: its loss is {loss}. "
                "Give a smaller `--learning_rate`. "
                f"Received: --learning_rate={config.learning_rate}"
            )
        if epoch > config.epochs_before_swa and not self._is_decayed():
            self.swa.apply(self.model.trainable_variables)
        return {
            "learning_rate": float(self._schedule(epoch * self.steps - 1)),
            "loss": loss,
            "accuracy": 100.0 * float(self._accuracy.result()),
            "n_models": int(self.swa.n_models),
        }

    def _batches_of(self, epoch: int) -> Iterator[Any]:
        """Returns the batches of an epoch: the next ones, or from a new start.

        Epochs in a row share one dataset. To make one costs a trace, which is
        a third of the time of an epoch of the digits.
        """
        if epoch != self._next_epoch:
            config = self._config
            self._batches = iter(
                self._strategy.experimental_distribute_dataset(
                    data.training_batches(
                        self._splits,
                        config.batch_size,
                        config.seed,
                        range(epoch, config.epochs + 1),
                    )
                )
            )
        self._next_epoch = epoch + 1
        return itertools.islice(self._batches, self.steps)

    def weights_to_keep(self, epoch: int) -> dict[str, list[Any]]:
        """Returns what `keep_weights` keeps of an epoch, by name.

        Args:
            epoch: The epoch that was trained last.
        """
        weights = self.model.trainable_variables
        last = epoch == self._config.epochs
        if self._is_decayed():
            return {"decayed": weights} if last else {}
        kept = {}
        if epoch > self._config.epochs_before_swa:
            kept[f"epoch-{epoch:05d}"] = weights
        if last:
            kept["swa"] = [self.swa.average(weight) for weight in weights]
        return kept

    def _is_decayed(self) -> bool:
        return bool(tf.identity(self._decays))

    def _train_replicas(self, images: Any, labels: Any) -> None:
        self._strategy.run(self._train_step, args=(images, labels))

    def _train_step(self, images: tf.Tensor, labels: tf.Tensor) -> None:
        with tf.GradientTape() as tape:
            logits = self.model(images, training=True)
            losses = tf.nn.sparse_softmax_cross_entropy_with_logits(
                labels, logits
            )
            penalty = tf.add_n(
                [tf.constant(0.0), *(tf.nn.l2_loss(v) for v in self._decayed)]
            )
            total = tf.reduce_mean(losses) + self._config.weight_decay * penalty
            # The gradients of the replicas are summed.
            total /= self._strategy.num_replicas_in_sync
        variables = self.model.trainable_variables
        gradients = tape.gradient(total, variables)
        self.optimizer.apply_gradients(zip(gradients, variables))
        self._loss.update_state(losses)
        self._accuracy.update_state(labels, logits)


def run(
    config: Config, splits: data.Splits, directory: RunDirectory
) -> Records:
    """Trains, or goes on training, and evaluates.

    Each epoch ends with a checkpoint. Every `evaluate_every` epochs, and at the
    last, the model is evaluated on the validation images; at the last one on
    the test images, too. With
    `compare_decay` the epochs from `epochs_before_swa` on are then trained once
    more, from the same state and with the same data: the branch that decays.

    Args:
        config: The settings.
        splits: The images.
        directory: Where the checkpoints are, from which the run goes on.

    Returns:
        The figures and the times of every epoch and of the end.
    """
    with distribution.strategy(config).scope():
        trainer = Trainer(config, splits)
        evaluator = Evaluator(
            trainer.model,
            trainer.swa,
            refit_batches(config, splits),
            moving_free=config.batch_norm == "moving_free",
        )
    validation = evaluation_batches(splits.validation)
    test = evaluation_batches(splits.test)
    sets = {"validation": validation, "test": test}
    records = directory.restore(trainer.checkpoint)

    def train_epoch(epoch: int, of_branch: list[dict[str, Any]]) -> Any:
        last = epoch == config.epochs
        start = time.perf_counter()
        figures: dict[str, Any] = {"epoch": epoch, **trainer.train_epoch(epoch)}
        trained = time.perf_counter()
        evaluated: dict[str, Any] = {"validation": {}}
        if (config.epochs - epoch) % config.evaluate_every == 0:
            evaluated = evaluator(
                sets if last else {"validation": validation}, each_image=last
            )
        seconds = {
            "train": trained - start,
            "evaluate": time.perf_counter() - trained,
            "images": trainer.steps * config.batch_size,
        }
        figures["validation"] = evaluated["validation"]
        of_branch.append(figures)
        records.seconds.append(seconds)
        return evaluated

    def end_epoch(epoch: int) -> None:
        if config.keep_weights:
            # First: what a checkpoint counts as done is not done again.
            for name, weights in trainer.weights_to_keep(epoch).items():
                directory.save_weights(name, weights)
        directory.save(trainer.checkpoint, records)
        print(_line(records, config.epochs), flush=True)

    branch = config.epochs_before_swa
    for epoch in range(len(records.epochs) + 1, config.epochs + 1):
        if config.compare_decay and epoch == branch + 1:
            directory.save_branch(trainer.checkpoint)
        evaluated = train_epoch(epoch, records.epochs)
        if epoch == config.epochs:
            records.final = copy.deepcopy(evaluated)
        end_epoch(epoch)
    if not config.compare_decay:
        return records
    trainer.decay()
    if not records.decayed:
        directory.restore_branch(trainer.without_averages)
    for epoch in range(branch + len(records.decayed) + 1, config.epochs + 1):
        evaluated = train_epoch(epoch, records.decayed)
        if epoch == config.epochs:
            for name, figures in evaluated.items():
                for way, values in figures.items():
                    records.final[name][DECAYED[way]] = values
        end_epoch(epoch)
    return records


def refit_batches(config: Config, splits: data.Splits) -> tf.data.Dataset:
    """Returns the training images, not augmented, that a refit is made of."""
    return evaluation_batches(splits.train.take(slice(config.refit_samples)))


def evaluation_batches(examples: data.Examples) -> tf.data.Dataset:
    """Returns images, not augmented, in batches for a forward pass."""
    return data.plain_batches(examples, _EVALUATION_BATCH)


class LearningRate(tf.keras.optimizers.schedules.LearningRateSchedule):  # type: ignore[misc]
    """The rate of a step: of the plan, or while `decays`, of a line to zero.

    Args:
        config: The settings.
        steps: The number of steps in an epoch.
        decays: A boolean variable.
    """

    def __init__(self, config: Config, steps: int, decays: tf.Variable) -> None:
        high, start = config.learning_rate, config.epochs_before_swa * steps
        total = config.epochs * steps
        self._decays = decays
        self._decayed = swa_tf.schedules.LinearRamp(
            high, 0.0, start, total - start
        )
        if config.strategy == "constant":
            self._plan = swa_tf.schedules.LinearRamp(high, high, 0, 0)
        else:
            self._plan = swa_tf.schedules.published_plan(
                high, config.swa_learning_rate, start, total
            )

    def __call__(self, step: Any) -> tf.Tensor:
        """Returns the rate of step number `step`, from 0."""
        return tf.where(self._decays, self._decayed(step), self._plan(step))

    def get_config(self) -> Any:
        raise NotImplementedError("A benchmark saves no configurations.")


def make_optimizer(config: Config, rate: Any) -> Any:
    """Returns the optimizer of `config`; `rate` is a float or a schedule."""
    if config.optimizer == "momentum":
        return tf.keras.optimizers.SGD(rate, momentum=MOMENTUM)
    if config.optimizer == "adam":
        return tf.keras.optimizers.Adam(rate)
    decay: dict[str, Any] = {
        "weight_decay": config.weight_decay,
        "weight_decay_on": config.weight_decay_on,
    }
    if config.optimizer == "momentumw":
        return swa_tf.optimizers.MomentumW(rate, momentum=MOMENTUM, **decay)
    return swa_tf.optimizers.AdamW(rate, **decay)


def _l2_variables(config: Config, model: tf.keras.Model) -> list[Any]:
    """Returns the weights that the loss penalizes."""
    if config.optimizer in ("momentumw", "adamw") or not config.weight_decay:
        return []
    return [
        variable
        for variable in model.trainable_variables
        if config.weight_decay_on == "all" or len(variable.shape) > 1
    ]


def _line(records: Records, epochs: int) -> str:
    """Returns the line on the console of the epoch that was last."""
    figures = (records.decayed or records.epochs)[-1]
    seconds = records.seconds[-1]
    shown = [
        f"{way} {values['accuracy']:.2f}"
        for way, values in figures["validation"].items()
    ]
    line = (
        f"{_name(figures['epoch'], epochs, bool(records.decayed))}  "
        f"rate {figures['learning_rate']:.4g}  loss {figures['loss']:.3f}  "
        f"images/s {seconds['images'] / seconds['train']:.0f}"
    )
    return f"{line}  validation %: {', '.join(shown)}" if shown else line


def _name(epoch: int, epochs: int, decayed: bool) -> str:
    return f"{'decayed, ' if decayed else ''}epoch {epoch}/{epochs}"
