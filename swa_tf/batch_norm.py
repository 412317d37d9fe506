"""Batch-norm statistics for weights that no training step has seen.

The moving statistics of batch normalization describe the activations of the
weights that were trained. Averaged weights have other activations, and no
statistics: they must be computed, from forward passes over the data.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import tensorflow as tf

from swa_tf import _compat, _moments, _refitting


@_compat.register
class MovingFreeBatchNormalization(tf.keras.layers.BatchNormalization):
    """Batch normalization with moving and with freshly computed statistics.

    Beside `moving_mean` and `moving_variance`, which training updates as in
    any batch-norm layer, it has `mean` and `variance`, the pooled moments of
    the samples that a pre-inference pass has shown it, and `n_updates`, the
    number of batches in them. So one model can be evaluated with both:

        y = gamma * (x - m) / sqrt(v + epsilon) + beta

    | `training` | `use_moving_statistics` | m, v | updates |
    | --- | --- | --- | --- |
    | True | True | of the batch | moving_mean, moving_variance |
    | True | False | of the batch | mean, variance, n_updates |
    | False | True | moving | nothing |
    | False | False | mean, variance | nothing |

    `swa_tf.refit_batch_norm` makes the pre-inference pass for a whole model,
    with dropout off.

    >>> layer = swa_tf.MovingFreeBatchNormalization(epsilon=0.0)
    >>> x = tf.constant([[1.0], [3.0]])
    >>> _ = layer(x, training=True, use_moving_statistics=False)
    >>> layer.mean.numpy().tolist(), layer.variance.numpy().tolist()
    ([2.0], [1.0])
    >>> layer(x, use_moving_statistics=False).numpy().tolist()
    [[-1.0], [1.0]]

    Args:
        **kwargs: Those of `tf.keras.layers.BatchNormalization`: axis=-1,
            momentum=0.99, epsilon=1e-3, center=True, scale=True, ...

    References:
        Ioffe and Szegedy 2015, https://arxiv.org/abs/1502.03167, algorithm 2
        for statistics of the population; Chan et al. 1979, Updating Formulae
        and a Pairwise Algorithm for Computing Sample Variances, for their
        merging.
    """

    def build(self, input_shape: Any) -> None:
        """Makes the weights, for inputs of `input_shape`."""
        super().build(input_shape)
        shape = self.moving_mean.shape
        self.mean = _compat.add_statistic(
            self, "mean", shape=shape, initializer="zeros"
        )
        self.variance = _compat.add_statistic(
            self, "variance", shape=shape, initializer="ones"
        )
        self.n_updates = _compat.add_statistic(
            self, "n_updates", shape=(), dtype="int64", initializer="zeros"
        )
        self.n_samples = _compat.add_statistic(
            self, "n_samples", shape=(), dtype="int64", initializer="zeros"
        )

    def reset_statistics(self) -> None:
        """Forgets `mean` and `variance`: the next pass starts anew.

        >>> layer = swa_tf.MovingFreeBatchNormalization()
        >>> x = tf.ones([2, 1])
        >>> _ = layer(x, training=True, use_moving_statistics=False)
        >>> layer.reset_statistics()
        >>> int(layer.n_updates)
        0
        """
        if not self.built:
            return
        self.mean.assign(tf.zeros_like(self.mean))
        self.variance.assign(tf.ones_like(self.variance))
        self.n_updates.assign(0)
        self.n_samples.assign(0)

    def call(
        self,
        inputs: Any,
        training: bool | None = None,
        use_moving_statistics: Any = True,
        mask: Any = None,
    ) -> Any:
        """Normalizes `inputs`, as the table of the class says.

        Args:
            inputs: Tensor of any floating dtype and rank.
            training: Whether to use the moments of this batch.
            use_moving_statistics: Which statistics to use and to update: a
                Python bool or a scalar boolean tensor.
            mask: The samples that count, as in Keras's layer.

        Returns:
            A tensor of the shape of `inputs`.

        Raises:
            tf.errors.InvalidArgumentError: If `mean` and `variance` are to be
                used before a pre-inference pass has filled them.
        """
        if tf.is_tensor(use_moving_statistics):
            return tf.cond(
                use_moving_statistics,
                lambda: self.call(inputs, training, True, mask),
                lambda: self.call(inputs, training, False, mask),
            )
        if use_moving_statistics:
            return super().call(inputs, training=training, mask=mask)
        if training and self.trainable:
            batch = _moments.batch_moments(self, inputs, mask)
            self._merge(batch)
            return _moments.normalize(self, inputs, batch.mean, batch.variance)
        filled = tf.debugging.assert_positive(
            tf.convert_to_tensor(self.n_updates),
            message=f"Layer {self.name} has no refit statistics yet: call "
            "`swa_tf.refit_batch_norm` first",
        )
        with tf.control_dependencies([filled] if filled is not None else []):
            mean = tf.identity(self.mean)
        return _moments.normalize(self, inputs, mean, self.variance)

    def _merge(self, batch: _moments.Moments) -> None:
        replica = tf.distribute.get_replica_context()
        if replica is not None and replica.num_replicas_in_sync > 1:
            raise RuntimeError(
                "`use_moving_statistics=False` in training mode merges the "
                "moments of one replica only. Call "
                "`swa_tf.refit_batch_norm` outside `strategy.run`."
            )
        merged = _moments.Moments(
            tf.cast(self.n_samples, tf.float64),
            tf.cast(self.mean, tf.float64),
            tf.cast(self.variance, tf.float64),
        ).merge(batch)
        self.mean.assign(tf.cast(merged.mean, self.mean.dtype))
        self.variance.assign(tf.cast(merged.variance, self.variance.dtype))
        self.n_samples.assign(tf.cast(merged.count, tf.int64))
        self.n_updates.assign_add(1)


def refit_batch_norm(
    model: Any,
    dataset: Iterable[Any],
    steps: int | None = None,
    *,
    variance: str = "pooled",
) -> None:
    """Computes the statistics of every batch-norm layer anew.

    Without it, averaged weights are evaluated with statistics of other
    weights, and can be no better than chance. The model runs over the data
    with dropout and all else in inference mode, and each batch-norm layer
    normalizing by the moments of its batch, as in training; the moments of the
    batches are merged into those of all samples,

        d = mean_b - mean            n' = n + n_b
        mean <- mean + d * n_b / n'
        M2 <- M2 + n_b * var_b + d^2 * n * n_b / n'

    and at the end variance = M2 / n. For the first batch-norm layer this is
    the same, to rounding, however the data are batched.

    >>> layer = tf.keras.layers.BatchNormalization()
    >>> data = [tf.constant([[1.0], [2.0]]), tf.constant([[6.0]])]
    >>> _ = layer(data[0])
    >>> swa_tf.refit_batch_norm(layer, data)
    >>> round(float(layer.moving_mean[0]), 4)
    3.0
    >>> round(float(layer.moving_variance[0]), 4)
    4.6667

    Nothing but these statistics changes: not the weights, nor the optimizer.
    A layer with `trainable=False` is frozen, and left alone; so is one that
    no batch reached, with a warning. Statistics are written at the end, all
    or none. Use training data without augmentation; 1,000 to 10,000 samples
    are enough in practice. It costs about one forward pass over them.

    The pass is traced once a model and shape of inputs, and kept for the next
    refits: until the model is gone, or has other layers or variables, or some
    layer is frozen or unfrozen, or has another dtype policy, or there is
    another number, string, function or array among the attributes of its
    layers, in lists, dictionaries and data classes too. What a model computes
    by other Python state, such as globals, closures and attributes of objects
    of other kinds, is as it was in the first of them. Of each model the eight
    shapes used last are kept.

    On several replicas each takes a part of every batch, and each layer
    normalizes by the moments of the whole batch, all replicas' parts merged as
    above; so the result is that of one replica on the same batches. A
    `tf.data.Dataset` is distributed by the strategy of the model, unless it is
    already; of other iterables, which must be the same in every worker,
    batches are split. All workers must call it, and have equally many batches.
    Under `tf.distribute.ParameterServerStrategy` the coordinator computes.

    A layer that the model calls with an explicit `training=False`, to keep it
    as it is, should also have `trainable=False`: nothing else tells the refit.
    A model without a layer to refit gives a warning.

    Args:
        model: A built model or layer; its batch-norm layers are found however
            deeply they are nested. It is called as `model(x, training=False)`.
        dataset: Batches, as `tf.data.Dataset`, distributed by a strategy or
            not, or as any other iterable. A tuple or list is (x,), (x, y) or
            (x, y, sample_weight), as in `Model.fit`; anything else is x, a
            tensor or a dictionary.
        steps: The number of batches to take, > 0. None takes all.
        variance: "pooled" as above, with the variance between batches; or
            "mean_of_batches", the plain mean of the batches' variances, as in
            the first published TensorFlow implementation: too small wherever
            samples of a batch resemble each other.

    Raises:
        TypeError: If `model` is not a model or layer, or `dataset` cannot be
            iterated over batch by batch.
        ValueError: If `steps` or `variance` is none of the above, if `dataset`
            is empty, is infinite with no `steps` given, or ends before
            `steps`, if it is distributed and the model is not, if a statistic
            comes out NaN or infinite, or if no layer was reached. No
            statistic has changed then, nor if `dataset` or the model raises.
        RuntimeError: In a graph or `tf.function`; or if, on several replicas,
            a batch-norm layer is inside a loop or a condition of TensorFlow.

    References:
        Izmailov et al. 2018, https://arxiv.org/abs/1803.05407, section 3.2;
        Wu and Johnson 2021, Rethinking "Batch" in BatchNorm,
        https://arxiv.org/abs/2105.07576, section 3; Chan et al. 1979 for the
        merge.
    """
    _refitting.refit(
        model,
        dataset,
        steps,
        variance,
        MovingFreeBatchNormalization,
        _refitting.Arguments(),
    )
