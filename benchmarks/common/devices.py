"""Logical CPUs, for replicas on a machine without as many GPUs."""

from __future__ import annotations

import tensorflow as tf


def make_logical_cpus(n: int) -> None:
    """Splits the CPU into at least `n` logical ones, if it is not too late.

    They share the cores: that shows what replicas do, and saves no time. Once
    TensorFlow has started, it keeps those that it has.
    """
    cpu = tf.config.list_physical_devices("CPU")[0]
    made = tf.config.get_logical_device_configuration(cpu)
    if made is not None and len(made) >= n:
        return
    try:
        tf.config.set_logical_device_configuration(
            cpu, [tf.config.LogicalDeviceConfiguration()] * n
        )
    except RuntimeError:  # TensorFlow has started: what is there must do
        return
