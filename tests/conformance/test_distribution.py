"""Two and four replicas come out as one does, on the same global batches."""

import numpy as np
import pytest
import tensorflow as tf

from tests import distributed
from tests.fitting import exhaustive

pytestmark = [pytest.mark.slow, pytest.mark.each_stack]


def mirrored(replicas):
    return tf.distribute.MirroredStrategy(
        [f"/cpu:{i}" for i in range(replicas)],
        cross_device_ops=tf.distribute.ReductionToOneDevice(),
    )


@pytest.fixture(scope="module")
def half_way(tmp_path_factory):
    """The path of the training without a strategy, saved after two epochs."""
    return str(tmp_path_factory.mktemp("half_way") / "ckpt")


@pytest.fixture(scope="module")
def on_one(half_way):
    """The results without a strategy."""
    training = distributed.Training(tf.distribute.get_strategy())
    training.run(until=2)
    training.checkpoint.write(half_way)
    training.run()
    return training.results()


def check(found, expected):
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        # Sums over replicas are rounded in another order.
        np.testing.assert_allclose(
            found[name], value, rtol=1e-4, atol=1e-5, err_msg=name
        )


@pytest.mark.parametrize("replicas", [2, exhaustive(4)])
def test_a_loop_of_ones_own(replicas, on_one):
    strategy = mirrored(replicas)
    training = distributed.Training(strategy)
    training.run()
    check(training.results(), on_one)
    for swa in (training.steps, training.epochs):
        for _, average in swa.averaged:
            parts = strategy.experimental_local_results(average)
            assert len(parts) == replicas
            for part in parts[1:]:
                np.testing.assert_array_equal(part.numpy(), parts[0].numpy())


def test_a_checkpoint_of_one_goes_on_on_two(half_way, on_one):
    training = distributed.Training(mirrored(2))
    training.checkpoint.restore(half_way)
    training.run()
    check(training.results(), on_one)


@pytest.mark.exhaustive
def test_a_checkpoint_of_four_goes_on_on_one(on_one, tmp_path):
    before = distributed.Training(mirrored(4))
    before.run(until=2)
    path = before.checkpoint.save(str(tmp_path / "ckpt"))
    after = distributed.Training(tf.distribute.get_strategy())
    after.checkpoint.restore(path)
    after.run()
    check(after.results(), on_one)


@pytest.mark.parametrize("replicas", [2, exhaustive(4)])
def test_fit(replicas):
    found = distributed.fit(mirrored(replicas))
    assert found["fit n_models"] == distributed.FIT_EPOCHS - 1
    check(found, distributed.fit(tf.distribute.get_strategy()))
