"""Mean, variance and deviations of `SWAGaussian`, against float64 numpy."""

import copy
import functools

import numpy as np
import pytest
import tensorflow as tf

import swa_tf
from swa_tf.averaging import update
from swa_tf.support import variables as variables_lib
from tests import fitting, interrupts, modes

v1 = tf.compat.v1
RANK = 3


def normal(count, shape=(4,), mean=1.0, spread=0.3):
    rng = np.random.default_rng(0)
    return list(rng.normal(mean, spread, (count, *shape)).astype(np.float32))


def expected(values, rank=RANK):
    """Mean, variance and rows of D in float64, by their definitions."""
    values = np.asarray(values, np.float64)
    rows = np.zeros((rank, *values.shape[1:]))
    for n, value in enumerate(values):
        if rank:
            rows[n % rank] = value - values[: n + 1].mean(axis=0)
    return values.mean(axis=0), values.var(axis=0), rows


def state(swag):
    """Everything that a Gaussian keeps, of the last replica."""
    return [variables_lib.components(v)[-1].numpy() for v in swag.variables]


def of(swag, variable):
    kept = (swag.average, swag.variance, swag.deviations)
    return [variables_lib.components(of(variable))[-1].numpy() for of in kept]


def taken(mode, values, dtype=tf.float32, rank=RANK, when=None):
    """Returns mean, variance and deviations after `values`, in a mode."""
    made = []

    def make(when):
        made.append(swa_tf.SWAGaussian(rank, when=when))
        return made[-1]

    mode(values, dtype, make=make, when=when)
    (swag,) = made  # of the one that has a variable
    (variance,), (deviations,) = swag._variances, swag._deviations
    kept = (swag.averaged[0][1], variance, deviations)
    return [variables_lib.components(v)[-1].numpy() for v in kept]


def graph(values, before=()):
    """The same in a v1 graph, after `before` and a reset."""
    with tf.Graph().as_default():
        value = v1.placeholder(tf.float32, values[0].shape)
        variable = tf.Variable(tf.zeros(values[0].shape))
        swag = swa_tf.SWAGaussian(RANK)
        with tf.control_dependencies([variable.assign(value)]):
            apply = swag.apply([variable])
        reset = swag.reset()
        kept = (swag.average, swag.variance, swag.deviations)
        with v1.Session() as session:
            session.run(v1.global_variables_initializer())
            for each in before:
                session.run(apply, {value: each})
            session.run(reset)
            for each in values:
                session.run(apply, {value: each})
            return session.run([of(variable) for of in kept])


IN_EAGER_MODE = [mode for mode in modes.ALL if mode is not modes.graph]


@pytest.mark.parametrize("mode", IN_EAGER_MODE, ids=modes.name_of)
def test_every_mode_gives_the_closed_form(mode):
    # In eager mode the last updates are of a traced function.
    values = normal(54 if mode is modes.eager else 8)
    found = taken(mode, values)
    for kept, exact in zip(found, expected(values)):
        # At most a unit of numbers below 2 an update, of which the equal
        # average leaves a half; d has the mean's error, and d^2 < 1 twice it.
        atol = (2 + len(values)) * 2.0**-23
        np.testing.assert_allclose(kept, exact, rtol=0, atol=atol)


def test_every_mode_gives_the_same_bits():
    """Of variables that XLA compiles, and with its fused operations."""
    values = normal(8, (update.COMPILED_ELEMENTS,))
    one = taken(modes.eager, values)
    for mode in IN_EAGER_MODE[1:]:
        for kept, same in zip(taken(mode, values), one):
            np.testing.assert_array_equal(kept, same)
    for kept, same in zip(graph(values), one):
        np.testing.assert_array_equal(kept, same)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64"])
def test_dtypes(dtype):
    values = [np.round(8 * v) / 8 for v in normal(5)]  # exact in each
    for kept, exact in zip(taken(modes.eager, values, dtype), expected(values)):
        assert kept.dtype == (np.float64 if dtype == "float64" else np.float32)
        np.testing.assert_allclose(kept, exact, rtol=0, atol=1e-6)


def test_a_small_variance_of_large_weights_is_kept():
    """The mean of squares less the squared mean is 0 or less here."""
    values = normal(30, (100,), mean=100.0, spread=1e-3)
    _, variance, _ = taken(modes.eager, values)
    exact = expected(values)[1]
    # A weight of 100 has a unit of 7.6e-6, to which the mean is rounded: 1 %
    # of the spread.
    np.testing.assert_allclose(variance, exact, rtol=0.05)
    squares = np.mean(np.square(values), axis=0, dtype=np.float32)
    textbook = squares - np.square(np.mean(values, axis=0, dtype=np.float32))
    assert np.median(np.abs(textbook / exact - 1)) > 1.0


def test_only_calls_that_are_due_count():
    values = normal(9, ())
    when = swa_tf.AveragingSchedule(start=2, period=3)  # 2, 5, 8
    for mode in (modes.eager, modes.function):
        found = taken(mode, values, when=when)
        for kept, exact in zip(found, expected(values[2::3])):
            np.testing.assert_allclose(kept, exact, rtol=0, atol=1e-6)


def test_rank_0_keeps_no_deviation():
    values = normal(5)
    for mode in (modes.eager, modes.function):
        _, variance, deviations = taken(mode, values, rank=0)
        np.testing.assert_allclose(variance, expected(values)[1], atol=1e-6)
        assert deviations.shape == (0, 4)


def test_reset_forgets_all():
    first, second = normal(4), normal(8)[4:6]
    variable, swag = tf.Variable(first[0]), swa_tf.SWAGaussian(RANK)
    for value in first:
        variable.assign(value)
        swag.apply([variable])
    swag.reset()
    for value in second:
        variable.assign(value)
        swag.apply([variable])
    for found in (of(swag, variable), graph(second, before=first)):
        for kept, exact in zip(found, expected(second)):
            np.testing.assert_allclose(kept, exact, rtol=0, atol=1e-6)


def compiled(swag, variables, **settings):
    @tf.function(**settings)
    def step():
        swag.apply(variables)

    return step


def applied(swag, variables, values, step=None):
    for value in values:
        for i, variable in enumerate(variables):
            variable.assign(tf.cast(value[: variable.shape[0]] + i, "float32"))
        swag.apply(variables) if step is None else step()


@pytest.mark.parametrize("in_function", [False, True])
def test_resumes_bit_for_bit(in_function, tmp_path):
    values = normal(9)

    def training():
        variables = [tf.Variable(tf.zeros([n])) for n in (4, 2)]
        swag = swa_tf.SWAGaussian(RANK)
        step = compiled(swag, variables)
        return swag, variables, step if in_function else None

    whole, variables, step = training()
    applied(whole, variables, values, step)
    before, variables, step = training()
    applied(before, variables, values[:5], step)
    path = tf.train.Checkpoint(swag=before).save(str(tmp_path / "ckpt"))
    after, variables, step = training()
    status = tf.train.Checkpoint(swag=after).restore(path)
    applied(after, variables, values[5:], step)
    status.assert_consumed()
    for found, same in zip(state(after), state(whole)):
        np.testing.assert_array_equal(found, same)


@pytest.mark.parametrize("kind", ["another rank", "no rank"])
def test_a_checkpoint_of_another_rank_is_refused(kind, tmp_path):
    variable = tf.Variable([1.0])
    makes = {
        "another rank": lambda: swa_tf.SWAGaussian(2),
        "no rank": swa_tf.StochasticWeightAveraging,
    }
    other, swag = makes[kind](), swa_tf.SWAGaussian(RANK)
    other.apply([variable])
    path = tf.train.Checkpoint(swag=other).save(str(tmp_path / "ckpt"))
    swag.apply([variable])
    before = state(swag)
    with pytest.raises(ValueError, match=r"Received: SWAGaussian\(rank=3\)"):
        tf.train.Checkpoint(swag=swag).restore(path)
    fitting.assert_same(state(swag), before)


def test_a_trace_grows_with_the_variables_and_not_their_square():
    edges = []
    for n_variables in (10, 40):
        weights = [tf.Variable(1.0) for _ in range(n_variables)]
        swag = swa_tf.SWAGaussian(rank=2)
        apply = functools.partial(swag.apply, weights)
        step = tf.function(lambda apply=apply: (apply(), None)[1])
        operations = step.get_concrete_function().graph.get_operations()
        edges.append(sum(len(op.control_inputs) for op in operations))
    assert edges[1] <= 4 * edges[0]


def test_an_interrupted_update_is_taken_back():
    """Whatever was written: the row that the fourth update replaces, too."""
    values = normal(4)
    variables, swag = [tf.Variable(tf.zeros([4]))], swa_tf.SWAGaussian(RANK)
    applied(swag, variables, values)
    before = state(swag)
    moments = 0
    for moment in interrupts.each_moment(lambda: swag.apply(variables)):
        # After the end of the update it counts, as one that was not struck.
        if int(swag.n_models) > 4:
            break
        for found, same in zip(state(swag), before):
            np.testing.assert_array_equal(found, same, err_msg=moment)
        moments += 1
    assert moments > 50


def test_a_compiled_step_while_swapped_in_moves_nothing():
    variable, swag = tf.Variable([1.0]), swa_tf.SWAGaussian(2)
    step = compiled(swag, [variable], jit_compile=True)
    for value in (1.0, 3.0):
        variable.assign([value])
        step()
    before = state(swag)[:3]
    with swa_tf.averaged_weights(swag, [variable]):
        variable.assign([9.0])
        step()
    fitting.assert_same(state(swag)[:3], before)


def test_a_deep_copy_has_a_spread_of_its_own():
    variable, swag = tf.Variable([1.0, 2.0]), swa_tf.SWAGaussian(2)
    swag.apply([variable])
    copied = copy.deepcopy(swag)
    variable.assign([3.0, 2.0])
    copied.apply([variable])
    assert copied.variance(variable).numpy().tolist() == [1.0, 0.0]
    assert swag.variance(variable).numpy().tolist() == [0.0, 0.0]
    assert copied.deviations(variable).numpy()[1].tolist() == [1.0, 0.0]


@pytest.mark.parametrize("unit", [fitting.slow("epoch"), "step"])
def test_in_fit(unit):
    """Of the weights after each epoch or step, which a callback notes."""
    noted, model = [], fitting.make_plain(run_eagerly=False)

    def note(*_, **__):
        noted.append([v.numpy() for v in model.trainable_variables])

    notes = tf.keras.callbacks.LambdaCallback(
        **{"on_epoch_end" if unit == "epoch" else "on_train_batch_end": note}
    )
    swag = swa_tf.SWAGaussian(RANK)
    start = {"start_epoch": 1} if unit == "epoch" else {"start_step": 4}
    swa = swa_tf.SWACallback(averages=swag, verbose=0, **start)
    fitting.fit(model, swa, notes, epochs=3, validation_data=None)
    noted = noted[1 if unit == "epoch" else 4 :]
    assert int(swag.n_models) == len(noted)
    for variable, values in zip(model.trainable_variables, zip(*noted)):
        for kept, exact in zip(of(swag, variable), expected(values)):
            np.testing.assert_allclose(kept, exact, rtol=0, atol=2e-6)


def test_a_fit_goes_on_from_a_backup(tmp_path):
    def training(epochs, *others):
        swag = swa_tf.SWAGaussian(RANK)
        callback = swa_tf.SWACallback(1, averages=swag, verbose=0)
        backup = tf.keras.callbacks.BackupAndRestore(
            str(tmp_path / "backup"), delete_checkpoint=False
        )
        model = fitting.make_plain()
        used = [callback, backup] if others else [callback]
        fitting.fit(model, *used, epochs=epochs, validation_data=None)
        return state(swag)

    whole = training(4)
    training(3, "with a backup")
    fitting.assert_same(training(4, "with a backup"), whole)


@pytest.mark.parametrize("rank", [-1, 1, 2.0, True, None])
def test_wrong_ranks(rank):
    with pytest.raises(ValueError, match="`rank` must be an integer >="):
        swa_tf.SWAGaussian(rank)


def test_a_shape_that_is_not_known():
    variable = tf.Variable([1.0], shape=[None])
    with pytest.raises(ValueError, match="variables of known shapes"):
        swa_tf.SWAGaussian().apply([variable])


def test_the_mean_alone_is_not_merged():
    swag, variable = swa_tf.SWAGaussian(), tf.Variable([1.0])
    swag.apply([variable])
    with pytest.raises(TypeError, match="`StochasticWeightAveraging`"):
        swa_tf.merge_averages(swag, [swa_tf.StochasticWeightAveraging()])
    assert swag.variance(tf.Variable(1.0)) is None


@pytest.mark.parametrize("compiled", [False, True])
def test_models_that_are_not_finite_are_left_out(compiled):
    values = normal(6)
    values[1][0], values[4][-1] = np.nan, np.inf
    variable = tf.Variable(tf.zeros([4]))
    swag = swa_tf.SWAGaussian(RANK, skip_nonfinite=True)
    swag.build([variable])

    def apply():
        swag.apply([variable])

    step = tf.function(apply) if compiled else apply
    for value in values:
        variable.assign(value)
        step()
    wanted = expected([values[i] for i in (0, 2, 3, 5)])
    for found, value in zip(of(swag, variable), wanted):
        np.testing.assert_allclose(found, value, rtol=1e-5, atol=1e-6)
    assert int(swag.n_skipped) == 2
