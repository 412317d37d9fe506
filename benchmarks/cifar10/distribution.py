"""The devices of a run: one, or several replicas."""

from __future__ import annotations

import tensorflow as tf

from benchmarks.cifar10.config import Config
from benchmarks.common import devices
from benchmarks.common.errors import BenchmarkError


def strategy(config: Config) -> tf.distribute.Strategy:
    """Returns the strategy of a run; TensorFlow's default for one device.

    Replicas are on the GPUs or, where there is none, on logical CPUs, which
    share the cores: that shows what replicas do, and saves no time.

    Args:
        config: The settings.

    Raises:
        BenchmarkError: If there are fewer GPUs than replicas.
    """
    if config.distribution == "none":
        return tf.distribute.get_strategy()
    kind = "GPU" if tf.config.list_physical_devices("GPU") else "CPU"
    n = config.num_replicas
    if kind == "CPU":
        devices.make_logical_cpus(n)
    names = [d.name for d in tf.config.list_logical_devices(kind)]
    if len(names) < n:
        raise BenchmarkError(
            f"`--num_replicas` must be <= {len(names)}, the number of "
            f"{kind}s. Received: --num_replicas={n}"
        )
    return tf.distribute.MirroredStrategy(names[:n])
