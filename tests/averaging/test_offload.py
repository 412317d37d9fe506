"""Averages kept on another device than the weights: `device=`.

Two logical CPUs stand for an accelerator and its host.
"""

import numpy as np
import pytest
import tensorflow as tf

import swa_tf

HERE, THERE = "CPU:0", "CPU:1"
VALUES = (np.float32([1.0, 5.0]), np.float32([2.0, 7.0]))
MEAN = [1.5, 6.0]


def is_on(device, variable):
    return variable.device.endswith(device)


def averaged(run=lambda function: function, dtype="float32", **kwargs):
    """A weight here that took `VALUES`, and its average there."""
    with tf.device(f"/{HERE}"):
        weight = tf.Variable(tf.zeros(2, dtype))
    swa = swa_tf.StochasticWeightAveraging(device="/cpu:1", **kwargs)

    @run
    def step(value):
        weight.assign(tf.cast(value, dtype))
        swa.apply([weight])

    for value in VALUES:
        step(tf.constant(value))
    return weight, swa


@pytest.mark.parametrize("dtype", ["bfloat16", "float32", "float64"])
@pytest.mark.parametrize("run", [lambda f: f, tf.function])
def test_average_is_kept_there(run, dtype):
    weight, swa = averaged(run, dtype)
    assert is_on(HERE, weight)
    assert is_on(THERE, swa.average(weight))
    np.testing.assert_array_equal(swa.average(weight).numpy(), MEAN)


def test_average_with_a_schedule():
    weight, swa = averaged(tf.function, when=swa_tf.AveragingSchedule(start=1))
    np.testing.assert_array_equal(swa.average(weight).numpy(), VALUES[1])


def test_exponential_average():
    weight = tf.Variable(1.0)
    ema = swa_tf.ExponentialMovingAverage(0.75, device="/cpu:1")
    ema.apply([weight])
    weight.assign(2.0)
    ema.apply([weight])
    assert is_on(THERE, ema.average(weight))
    assert float(ema.average(weight)) == 1.25


def test_in_a_v1_graph():
    v1 = tf.compat.v1
    config = v1.ConfigProto(device_count={"CPU": 2})
    with tf.Graph().as_default(), v1.Session(config=config) as session:
        with tf.device(f"/{HERE}"):
            weight = tf.Variable([0.0, 0.0])
        swa = swa_tf.StochasticWeightAveraging(device="/cpu:1")
        backup = swa_tf.BackupVariables([weight])
        value = v1.placeholder(tf.float32, [2])
        assign = weight.assign(value)
        with tf.control_dependencies([assign]):
            apply = swa.apply([weight])
        save, restore = backup.save(), backup.restore()
        swap = swa_tf.assign_averages(swa, [weight])
        session.run(v1.global_variables_initializer())
        for each in VALUES:
            session.run(apply, {value: each})
        assert is_on(THERE, swa.average(weight))
        assert session.run(swa.average(weight)).tolist() == MEAN
        session.run(save)
        session.run(swap)
        assert session.run(weight).tolist() == MEAN
        session.run(restore)
        assert session.run(weight).tolist() == VALUES[1].tolist()


def test_swap():
    weight, swa = averaged()
    with swa_tf.averaged_weights(swa, [weight]):
        assert weight.numpy().tolist() == MEAN
        assert is_on(HERE, weight.read_value())
    assert weight.numpy().tolist() == VALUES[1].tolist()
    assert is_on(THERE, swa.average(weight))
    assert swa.average(weight).numpy().tolist() == MEAN


def test_swap_by_hand():
    weight, swa = averaged()
    backup = swa_tf.BackupVariables([weight], device="/cpu:1")
    backup.save()
    swa_tf.assign_averages(swa, [weight])
    assert weight.numpy().tolist() == MEAN
    backup.restore()
    assert weight.numpy().tolist() == VALUES[1].tolist()


@pytest.mark.parametrize(
    "devices", [(None, "/cpu:1"), ("/cpu:1", None), ("/cpu:1", "/cpu:1")]
)
def test_checkpoint_knows_no_device(devices, tmp_path):
    saved, restored = (
        swa_tf.StochasticWeightAveraging(device=device) for device in devices
    )
    weight = tf.Variable(VALUES[0])
    saved.apply([weight])
    path = tf.train.Checkpoint(swa=saved).save(str(tmp_path / "ckpt"))
    tf.train.Checkpoint(swa=restored).restore(path)
    weight.assign(VALUES[1])
    restored.apply([weight])
    assert is_on(THERE if devices[1] else HERE, restored.average(weight))
    assert restored.average(weight).numpy().tolist() == MEAN


def test_a_model():
    model = tf.keras.Sequential([tf.keras.layers.Dense(1, use_bias=False)])
    model.build([None, 1])
    swa = swa_tf.StochasticWeightAveraging(device="/cpu:1")
    for value in (1.0, 3.0):
        model.layers[0].kernel.assign([[value]])
        swa.apply(model.trainable_variables)
    assert is_on(THERE, swa.average(model.layers[0].kernel))
    with swa_tf.averaged_weights(swa, model):
        assert float(model(tf.ones([1, 1]))[0, 0]) == 2.0
    assert float(model(tf.ones([1, 1]))[0, 0]) == 3.0


@pytest.mark.parametrize("device", [0, "", "cpu 0", "/gpu:x", True])
def test_wrong_device(device):
    with pytest.raises(ValueError, match="`device` must be the name of"):
        swa_tf.StochasticWeightAveraging(device=device)


def test_under_a_strategy():
    strategy = tf.distribute.MirroredStrategy(["/cpu:0", "/cpu:1"])
    swa = swa_tf.StochasticWeightAveraging(device="/cpu:0")
    with strategy.scope():
        weight = tf.Variable(1.0)
        with pytest.raises(ValueError, match="`device` must be None"):
            swa_tf.StochasticWeightAveraging(device="/cpu:0")
    for make in (swa.build, swa.apply):
        with pytest.raises(ValueError, match="`device` must be None"):
            make([weight])
    assert swa.averaged == []
