"""Averages of independent workers, joined: against float64 numpy."""

import os

import numpy as np
import pytest
import tensorflow as tf
from tensorflow.core.protobuf import trackable_object_graph_pb2

import swa_tf
from tests.damage import graph_replaced

SHAPES = ((3, 2), (), (0,), (5,))
COUNTS = (4, 1, 7)


def variables(dtype="float32", shapes=SHAPES):
    return [
        tf.Variable(tf.ones(shape, dtype), name=f"v{i}")
        for i, shape in enumerate(shapes)
    ]


def models(n, dtype="float32", seed=0):
    """The values of `n` models, of variables of `SHAPES`."""
    random = np.random.default_rng(seed)
    return [
        [random.normal(3.0, 1.0, shape).astype(dtype) for shape in SHAPES]
        for _ in range(n)
    ]


def train(swa, weights, values):
    for model in values:
        for weight, value in zip(weights, model):
            weight.assign(value)
        swa.apply(weights)
    return swa


def worker(values, dtype="float32", name="worker"):
    swa = swa_tf.StochasticWeightAveraging(name=name)
    return train(swa, variables(dtype), values)


def workers(dtype="float32"):
    """One of each count of `COUNTS`, and the models of all."""
    seen = [models(n, dtype, seed=n) for n in COUNTS]
    return (
        [worker(each, dtype) for each in seen],
        [model for each in seen for model in each],
    )


def written(swa, path):
    """A checkpoint as a training process writes it: the average among more."""
    step = tf.Variable(3)
    return tf.train.Checkpoint(
        step=step, run=tf.train.Checkpoint(swa=swa)
    ).save(os.fspath(path))


def averages(swa):
    return [average.numpy() for _, average in swa.averaged]


def check(swa, seen, dtype="float32"):
    """`swa` is the mean of the models `seen`."""
    assert int(swa.n_models) == len(seen)
    # Each worker's average is off by an ulp or two, the merge by half of one.
    rtol = 4 * np.finfo(dtype).eps
    for i, average in enumerate(averages(swa)):
        assert average.dtype == dtype
        mean = np.mean([model[i] for model in seen], 0, np.float64)
        np.testing.assert_allclose(average, mean, rtol=rtol)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_is_the_mean_of_all_models(dtype):
    (target, *others), seen = workers(dtype)
    swa_tf.merge_averages(target, others)
    check(target, seen, dtype)
    one = worker(seen, dtype)
    for merged, direct in zip(averages(target), averages(one)):
        np.testing.assert_allclose(merged, direct, rtol=4 * np.finfo(dtype).eps)


def test_is_the_float32_next_to_the_weighted_mean():
    (target, *others), _ = workers()
    each = [averages(swa) for swa in (target, *others)]
    swa_tf.merge_averages(target, others)
    for i, average in enumerate(averages(target)):
        exact = sum(n * a[i].astype(np.float64) for n, a in zip(COUNTS, each))
        np.testing.assert_array_equal(
            average, (exact / sum(COUNTS)).astype(np.float32)
        )


def test_of_checkpoints_and_live_ones_into_a_new_average(tmp_path):
    (first, second, third), seen = workers()
    paths = [written(first, tmp_path / "a"), written(second, tmp_path / "b")]
    merged = swa_tf.StochasticWeightAveraging()
    merged.build(variables())
    swa_tf.merge_averages(merged, [paths[0], third, tmp_path / "b-1.index"])
    check(merged, seen)
    assert [int(swa.n_models) for swa in (first, second, third)] == list(COUNTS)


def test_a_new_average_takes_nothing_of_what_it_was_built_with():
    weight = tf.Variable(np.float32("inf"))
    merged = swa_tf.StochasticWeightAveraging()
    merged.build([weight])
    weight.assign(2.0)
    other = swa_tf.StochasticWeightAveraging()
    other.apply([weight])
    swa_tf.merge_averages(merged, [other])
    assert float(merged.average(weight)) == 2.0


def test_averaging_goes_on_after_a_merge():
    weights = variables()
    seen = models(3)
    target = train(swa_tf.StochasticWeightAveraging(), weights, seen[:1])
    swa_tf.merge_averages(target, [worker(seen[1:2])])
    check(train(target, weights, seen[2:]), seen)


def test_calls_are_still_those_of_the_target():
    when = swa_tf.AveragingSchedule(start=1)
    target = swa_tf.StochasticWeightAveraging(when=when)
    train(target, variables(), models(3))
    swa_tf.merge_averages(target, [worker(models(2))])
    assert [int(target.n_models), int(target.n_calls)] == [4, 3]


def test_every_replica_gets_the_average():
    strategy = tf.distribute.MirroredStrategy(["/cpu:0", "/cpu:1"])
    with strategy.scope():
        weights = variables()
        target = train(swa_tf.StochasticWeightAveraging(), weights, models(1))
        swa_tf.merge_averages(target, [worker(models(1, seed=1))])
    for i, (_, average) in enumerate(target.averaged):
        replicas = strategy.experimental_local_results(average)
        assert len(replicas) == 2
        mean = (models(1)[0][i] + models(1, seed=1)[0][i]) / 2
        for replica in replicas:
            np.testing.assert_allclose(replica.numpy(), mean, rtol=1e-6)
    counts = strategy.experimental_local_results(target._n_models)
    assert [int(count) for count in counts] == [2, 2]


def test_is_swapped_in_afterwards():
    weights = variables()
    target = train(swa_tf.StochasticWeightAveraging(), weights, models(1))
    swa_tf.merge_averages(target, [worker(models(1, seed=1))])
    with swa_tf.averaged_weights(target, weights):
        for weight, average in zip(weights, averages(target)):
            np.testing.assert_array_equal(weight.numpy(), average)


# --- errors ---------------------------------------------------------------


def other_than(**changed):
    """A worker of variables unlike those of `worker`."""
    weights = variables(**changed)
    swa = swa_tf.StochasticWeightAveraging()
    swa.apply(weights)
    return swa


def reordered():
    swa = swa_tf.StochasticWeightAveraging()
    swa.apply(variables(shapes=((2,), (2,)))[::-1])
    return swa


@pytest.mark.parametrize(
    ("others", "error", "match"),
    [
        ("a/path", TypeError, "must be a list"),
        (7, TypeError, "must be a list"),
        ([], ValueError, "at least one average"),
        ([7], TypeError, "or the path of a checkpoint"),
        (["nowhere/ckpt"], FileNotFoundError, "`others`.*that exist"),
    ],
)
def test_wrong_others(others, error, match):
    target = worker(models(2))
    with pytest.raises(error, match=match):
        swa_tf.merge_averages(target, others)


def test_wrong_target():
    with pytest.raises(TypeError, match=r"`target` must be a `Stoch"):
        swa_tf.merge_averages(tf.Module(), [worker(models(1))])
    with pytest.raises(ValueError, match="call `apply` or `build`"):
        swa_tf.merge_averages(
            swa_tf.StochasticWeightAveraging(), [worker(models(1))]
        )


def test_each_average_counts_once(tmp_path):
    target, other = worker(models(1)), worker(models(1), name="other")
    path = written(other, tmp_path / "ckpt")
    for twice in ([target], [other, other], [path, path]):
        with pytest.raises(ValueError, match="once"):
            swa_tf.merge_averages(target, twice)


def test_others_must_have_averaged(tmp_path):
    target = worker(models(1))
    empty = swa_tf.StochasticWeightAveraging(name="empty")
    empty.build(variables())
    for other in (empty, written(empty, tmp_path / "empty")):
        with pytest.raises(ValueError, match=r"averaged none"):
            swa_tf.merge_averages(target, [other])


@pytest.mark.parametrize("as_file", [False, True])
@pytest.mark.parametrize(
    "make",
    [
        lambda: other_than(dtype="float64"),
        lambda: other_than(shapes=SHAPES[:-1]),
        lambda: other_than(shapes=((2, 3), *SHAPES[1:])),
    ],
)
def test_others_must_be_of_the_same_variables(make, as_file, tmp_path):
    target, other = worker(models(1)), make()
    if as_file:
        other = written(other, tmp_path / "ckpt")
    with pytest.raises(ValueError, match=r"`others` must be averages of the"):
        swa_tf.merge_averages(target, [other])


def test_others_must_be_in_the_same_order():
    target = other_than(shapes=((2,), (2,)))
    with pytest.raises(ValueError, match=r"in their order: 'v0'"):
        swa_tf.merge_averages(target, [reordered()])


def test_a_checkpoint_must_hold_one_average(tmp_path):
    target = worker(models(1))
    none = tf.train.Checkpoint(v=tf.Variable(1.0)).write(
        os.fspath(tmp_path / "none")
    )
    two = tf.train.Checkpoint(a=worker(models(1)), b=worker(models(1))).write(
        os.fspath(tmp_path / "two")
    )
    weights = tmp_path / "keras.weights.h5"
    model = tf.keras.Sequential([tf.keras.layers.Dense(1)])
    model.build([None, 1])
    model.save_weights(weights)
    for path, found in ((none, "none"), (two, "2"), (weights, "none")):
        with pytest.raises(ValueError, match=f"with {found}"):
            swa_tf.merge_averages(target, [path])


@pytest.mark.parametrize(
    "state", ["[]", "{}", '{"swapped": false, "averaged": 3}', "no JSON"]
)
def test_a_checkpoint_whose_state_is_not_ours(state, tmp_path):
    """Its checksums are right, so only what is in it can be wrong."""
    target, other = worker(models(2)), worker(models(1), name="other")
    other._state.serialize = lambda: state
    path = written(other, tmp_path / "ckpt")
    before = averages(target)
    message = "`others` must be whole .*: the state of its average cannot be"
    with pytest.raises(ValueError, match=message):
        swa_tf.merge_averages(target, [path])
    with pytest.raises(
        ValueError, match=message.replace("others", "snapshots")
    ):
        swa_tf.posthoc_average([path], 0.1, tmp_path / "posthoc")
    np.testing.assert_equal(averages(target), before)


def test_a_checkpoint_that_counts_less_than_no_models(tmp_path):
    target, other = worker(models(2)), worker(models(1), name="other")
    other._n_models.assign(-1)
    path = written(other, tmp_path / "ckpt")
    before = averages(target)
    message = "`others` must be whole .*ckpt-1.*: it counts -1 models"
    with pytest.raises(ValueError, match=message):
        swa_tf.merge_averages(target, [path])
    np.testing.assert_equal(averages(target), before)


def test_a_checkpoint_whose_average_is_not_there(tmp_path):
    """A graph that leads to a key of no tensor, beside a tensor's."""
    target, other = worker(models(2)), worker(models(1), name="other")
    path = written(other, tmp_path / "ckpt")
    reader = tf.train.load_checkpoint(path)
    graph = trackable_object_graph_pb2.TrackableObjectGraph.FromString(
        reader.get_tensor("_CHECKPOINTABLE_OBJECT_GRAPH")
    )
    for node in graph.nodes:
        if any("_averages" in a.checkpoint_key for a in node.attributes):
            node.attributes.add(checkpoint_key="nowhere")
    graph_replaced(graph.SerializeToString())(None, path)
    with pytest.raises(ValueError, match=r"`others` must be whole.*'nowhere'"):
        swa_tf.merge_averages(target, [path])


def test_a_damaged_checkpoint_changes_nothing(tmp_path):
    target, other = worker(models(2)), worker(models(1), name="other")
    path = written(other, tmp_path / "ckpt")
    before = averages(target)
    file = tmp_path / "ckpt-1.data-00000-of-00001"
    data = bytearray(file.read_bytes())
    # The last tensor of the average: the others are good and read before it.
    where = data.index(averages(other)[3].tobytes())
    data[where] ^= 1
    file.write_bytes(data)
    with pytest.raises(ValueError, match=r"`others` must be whole.*Checksum"):
        swa_tf.merge_averages(target, [path])
    for now, then in zip(averages(target), before):
        np.testing.assert_array_equal(now, then)
    assert int(target.n_models) == 2


def test_swapped_averages_are_refused(tmp_path):
    weights, other = variables(), worker(models(1), name="other")
    target = train(swa_tf.StochasticWeightAveraging(), weights, models(1))
    with swa_tf.averaged_weights(target, weights):
        path = written(target, tmp_path / "ckpt")
        for pair in ((target, other), (other, target)):
            with pytest.raises(RuntimeError, match="are swapped in"):
                swa_tf.merge_averages(pair[0], [pair[1]])
    with pytest.raises(ValueError, match="outside `averaged_weights`"):
        swa_tf.merge_averages(other, [path])


def test_outside_eager_mode():
    target, other = worker(models(1)), worker(models(1))

    @tf.function
    def merge():
        swa_tf.merge_averages(target, [other])

    with pytest.raises(RuntimeError, match="eager mode only"):
        merge()
    with tf.Graph().as_default():
        with pytest.raises(RuntimeError, match="eager mode only"):
            swa_tf.merge_averages(target, [other])


class Last(swa_tf.WeightAverage):
    """An average of one's own, which other shares suit."""

    def coefficient(self, n_models):
        return tf.ones([], tf.float64)


@pytest.mark.parametrize(
    "make", [Last, lambda: swa_tf.PowerFunctionAverage(0.1)]
)
def test_averages_of_other_shares_are_refused(make, tmp_path):
    average = make()
    average.apply([tf.Variable(1.0)])
    path = tf.train.Checkpoint(average=average).save(str(tmp_path / "ckpt"))
    swa = swa_tf.StochasticWeightAveraging()
    swa.apply([tf.Variable(1.0)])
    with pytest.raises(
        ValueError, match="hold one StochasticWeightAveraging each"
    ):
        swa_tf.merge_averages(swa, [path])


@pytest.mark.parametrize("begun", [True, [True], [True, False]])
def test_exponential_averages_are_refused(tmp_path, begun):
    """Whatever their checkpoints say of what has begun, and in what shape."""
    variables = [tf.Variable(1.0) for _ in range(2)]
    ema = swa_tf.ExponentialMovingAverage(0.5)
    ema.apply(variables)
    ema._begun.assign(begun)
    path = tf.train.Checkpoint(ema=ema).save(str(tmp_path / "ckpt"))
    swa = swa_tf.StochasticWeightAveraging()
    swa.apply(variables)
    with pytest.raises(
        ValueError, match="hold one StochasticWeightAveraging each"
    ):
        swa_tf.merge_averages(swa, [path])
    with pytest.raises(TypeError, match="`others` must be a list"):
        swa_tf.merge_averages(swa, [ema])
    with pytest.raises(TypeError, match=r"Received in it: 3$"):
        swa_tf.merge_averages(swa, [path, 3])
    with pytest.raises(TypeError, match="`target` must be"):
        swa_tf.merge_averages(ema, [path])
    assert (int(swa.n_models), int(ema.n_models)) == (1, 1)
    for average in (swa, ema):
        assert [float(average.average(v)) for v in variables] == [1.0, 1.0]
