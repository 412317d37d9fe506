"""`StochasticWeightAveraging` against float64 numpy, in every mode."""

import hypothesis
import hypothesis.extra.numpy as hnp
import hypothesis.strategies as st
import ml_dtypes
import numpy as np
import pytest
import tensorflow as tf

import swa_tf
from tests import modes, programs
from tests.fitting import covering

FLOATS = ["float16", "bfloat16", "float32", "float64"]


def dense_model():
    model = tf.keras.Sequential([tf.keras.layers.Dense(3)])
    model(tf.zeros([1, 2]))
    return model


# --- The equation ---------------------------------------------------------


@pytest.mark.parametrize(
    ("mode", "dtype"), covering(1, modes.ALL, FLOATS), ids=modes.name_of
)
def test_average_is_the_mean(mode, dtype):
    # Exact in every dtype: means of 1, 2; 1, 2, 6; 1, 2, 6, 7 are 1.5, 3, 4.
    values = np.array([[1, -1], [2, -2], [6, -6], [7, -7]], np.float32)
    average, n_models = mode(list(values), dtype)
    np.testing.assert_array_equal(average, [4.0, -4.0])
    assert average.dtype == (np.float64 if dtype == "float64" else np.float32)
    assert n_models == 4


@pytest.mark.parametrize("mode", modes.ALL, ids=modes.name_of)
def test_modes_agree(mode):
    values = list(np.random.default_rng(0).normal(size=[20, 5]))
    average, _ = mode([v.astype(np.float32) for v in values], "float32")
    # 20 roundings of at most 2^-25 of a value below 4.
    np.testing.assert_allclose(average, np.mean(values, 0), atol=2e-6)


@pytest.mark.parametrize("mode", modes.ALL, ids=modes.name_of)
def test_first_apply_is_exact_and_forgets_what_was_there(mode):
    # 1 + 1 * (w - 1) is not w for w = 1e-8; and nothing survives infinity.
    for first in (1e-8, np.inf):
        average, _ = mode([np.float32([first])], "float32")
        assert average[0] == np.float32(first)


@pytest.mark.parametrize(
    ("dtype", "offset"), covering(1, FLOATS, [0.0, 1.0, 70.0])
)
def test_thousand_updates_stay_near_the_float64_mean(dtype, offset):
    rng = np.random.default_rng(1)
    stored = {"bfloat16": ml_dtypes.bfloat16}.get(dtype, dtype)
    values = (offset + rng.normal(size=[1000, 500])).astype(stored)
    variable = tf.Variable(values[0], dtype=dtype)
    swa = swa_tf.StochasticWeightAveraging()

    @tf.function
    def step(value):
        variable.assign(value)
        swa.apply([variable])

    for value in values:
        step(tf.constant(value))
    mean = values.astype(np.float64).mean(0)
    average = swa.average(variable).numpy()
    largest = np.abs(values.astype(np.float64)).max()
    assert np.abs(average - mean).max() <= 3e-6 * largest
    swa_tf.assign_averages(swa, [variable])
    cast = variable.numpy().astype(np.float64)
    one_ulp = np.spacing(np.abs(mean.astype(stored))).astype(np.float64)
    if dtype in ("float16", "bfloat16"):
        assert (np.abs(cast - mean) <= one_ulp).all()


@pytest.mark.parametrize(
    ("mode", "start"),
    covering(1, modes.ALL, [1.0, 0.9, -1.5]),
    ids=modes.name_of,
)
def test_a_slow_drift_is_followed(mode, start):
    # Each step is a fraction of a unit in the last place of the average:
    # rounded to nearest, the average would stand still, and end 2e-5 off.
    ramp = np.linspace(0.0, 1.0, 400)[:, None] * np.linspace(-1e-4, 1e-4, 9)
    values = (start + ramp).astype(np.float32)
    average, _ = mode(list(values), "float32")
    # Two roundings of the last updates, of 2^-23 each.
    np.testing.assert_allclose(
        average, values.astype(np.float64).mean(0), atol=3e-7 * abs(start)
    )


def test_a_slow_drift_is_followed_in_float64():
    ramp = np.linspace(0.0, 1.0, 400)[:, None] * np.linspace(-2e-13, 2e-13, 9)
    average, _ = modes.function(list(1.0 + ramp), "float64")
    # numpy's pairwise mean is itself off by about 1e-16 here.
    np.testing.assert_allclose(
        average - 1.0, ((1.0 + ramp) - 1.0).mean(0), atol=1.5e-15
    )


@pytest.mark.parametrize("dtype", FLOATS)
def test_a_constant_stays_exactly_itself(dtype):
    variable = tf.Variable([1.2345, -70.0, 1e-7, 6e4], dtype=dtype)
    swa = swa_tf.StochasticWeightAveraging()

    @tf.function
    def step():
        swa.apply([variable])

    for _ in range(1000):
        step()
    before = variable.numpy()
    swa_tf.assign_averages(swa, [variable])
    np.testing.assert_array_equal(variable.numpy(), before)


def test_nan_stays_in_its_variable():
    good, bad = tf.Variable([1.0, 2.0]), tf.Variable([1.0, np.nan])
    swa = swa_tf.StochasticWeightAveraging()
    swa.apply([good, bad])
    swa.apply([good, bad])
    np.testing.assert_array_equal(swa.average(good), [1.0, 2.0])
    np.testing.assert_array_equal(swa.average(bad), [1.0, np.nan])


@hypothesis.given(
    hnp.arrays(
        np.float32,
        st.tuples(st.integers(1, 12), st.integers(0, 4)),
        elements=st.floats(-1e6, 1e6, width=32),
    )
)
@hypothesis.settings(max_examples=20)
def test_any_sequence(values):
    average, n_models = modes.eager(list(values), "float32")
    # n updates, each rounded by at most a unit in the last place of a number
    # no larger than the largest (and a little for c and the product).
    bound = 3 * len(values) * 2.0**-24 * np.abs(values).max(initial=0.0)
    bound += np.finfo(np.float32).tiny  # below it TensorFlow writes zero
    assert n_models == len(values)
    mean = values.astype(np.float64).mean(0)
    assert (np.abs(average - mean) <= bound).all()


# --- The object -----------------------------------------------------------


def test_shadow_variables():
    variable = tf.Variable([1.0, 2.0], name="w")
    swa = swa_tf.StochasticWeightAveraging(name="mean")
    assert swa.name == "mean"
    assert swa.average(variable) is None
    assert swa.average_name(variable) == "w/mean"
    swa.apply([variable])
    average = swa.average(variable)
    assert not average.trainable
    assert average.name == "w/mean:0"
    assert swa.average_name(variable) == "w/mean"
    assert average.device == variable.device
    assert swa.n_models.dtype == tf.int64
    assert swa.trainable_variables == ()


@pytest.mark.parametrize("name", [3, b"swa", ["swa"]])
def test_a_name_that_is_no_string(name):
    with pytest.raises(TypeError, match="`name` must be a string"):
        swa_tf.StochasticWeightAveraging(name)


@pytest.mark.parametrize(("name", "shadow"), [(None, "v/None"), ("", "v")])
@pytest.mark.parametrize("compiled", [False, True])
def test_an_empty_name(name, shadow, compiled):
    variable = tf.Variable(1.0, name="v")
    swa = swa_tf.StochasticWeightAveraging(name)

    def apply():
        swa.apply([variable])

    (tf.function(apply) if compiled else apply)()
    assert swa.average_name(variable) == shadow
    assert (float(swa.average(variable)), int(swa.n_models)) == (1.0, 1)


def test_default_names_are_those_of_the_class():
    assert swa_tf.StochasticWeightAveraging().name == (
        "StochasticWeightAveraging"
    )


def test_a_subclass_keeps_the_names_of_variables_in_files():
    class Mine(swa_tf.StochasticWeightAveraging):
        pass

    assert Mine().name == "StochasticWeightAveraging"


def test_two_objects_live_side_by_side():
    variable = tf.Variable(1.0)
    one, two = (swa_tf.StochasticWeightAveraging() for _ in range(2))
    one.apply([variable])
    variable.assign(3.0)
    one.apply([variable])
    two.apply([variable])
    assert float(one.average(variable)) == 2.0
    assert float(two.average(variable)) == 3.0
    assert (int(one.n_models), int(two.n_models)) == (2, 1)


def test_keras_and_plain_variables_in_one_list():
    model, plain = dense_model(), tf.Variable(1.0)
    half = tf.Variable(1.0, dtype=tf.float16)
    variables = [*model.trainable_variables, plain, half]
    swa = swa_tf.StochasticWeightAveraging()
    for value in (1.0, 2.0):
        for variable in variables:
            variable.assign(
                tf.cast(tf.fill(variable.shape, value), variable.dtype)
            )
        swa.apply(variables)
    for variable in variables:
        np.testing.assert_array_equal(
            swa.average(variable), np.full(variable.shape, 1.5)
        )


def test_average_takes_the_variable_under_a_keras_variable():
    kernel = dense_model().trainable_variables[0]
    if isinstance(kernel, tf.Variable):
        pytest.skip("Keras 2 variables are tf.Variables themselves")
    swa = swa_tf.StochasticWeightAveraging()
    swa.apply([kernel.value])
    assert swa.average(kernel) is swa.average(kernel.value)
    assert swa.average_name(kernel) == f"{kernel.path}/{swa.name}"
    with pytest.raises(ValueError, match="twice"):
        swa_tf.StochasticWeightAveraging().apply([kernel, kernel.value])


def test_empty_and_large_ranks():
    variables = [tf.zeros([0, 3]), tf.ones([1] * 7), tf.constant(2.0)]
    variables = [tf.Variable(v) for v in variables]
    swa = swa_tf.StochasticWeightAveraging()
    for _ in range(2):
        swa.apply(iter(variables))
    for variable in variables:
        np.testing.assert_array_equal(swa.average(variable), variable)


def test_reset_starts_anew():
    variable = tf.Variable([np.nan])
    swa = swa_tf.StochasticWeightAveraging()
    swa.apply([variable])
    variable.assign([2.0])
    swa.reset()
    assert int(swa.n_models) == 0
    swa.apply([variable])
    variable.assign([4.0])
    swa.apply([variable])
    assert float(swa.average(variable)[0]) == 3.0


def test_build_makes_shadows_and_averages_nothing():
    variable = tf.Variable(2.0)
    swa = swa_tf.StochasticWeightAveraging()
    swa.build([variable])
    shadow = swa.average(variable)
    swa.build([variable])
    assert swa.average(variable) is shadow
    assert int(swa.n_models) == 0


def test_the_shadow_does_not_follow_the_weight():
    variable = tf.Variable([1.0, 2.0])
    swa = swa_tf.StochasticWeightAveraging()
    swa.apply([variable])
    variable.assign_add([10.0, 10.0])
    np.testing.assert_array_equal(swa.average(variable), [1.0, 2.0])


# --- tf.distribute --------------------------------------------------------


def test_variable_that_differs_between_replicas_is_reduced_first():
    strategy = tf.distribute.MirroredStrategy(["/cpu:0", "/cpu:1"])
    with strategy.scope():
        variable = tf.Variable(
            0.0,
            trainable=False,
            synchronization=tf.VariableSynchronization.ON_READ,
            aggregation=tf.VariableAggregation.MEAN,
        )
    swa = swa_tf.StochasticWeightAveraging()
    for values in ((1.0, 3.0), (5.0, 7.0)):
        for component, value in zip(variable.values, values):
            component.assign(value)
        swa.apply([variable])
    average = strategy.experimental_local_results(swa.average(variable))
    assert [float(v) for v in average] == [4.0, 4.0]


def test_plain_variable_to_be_read_by_each_replica_is_averaged():
    variable = tf.Variable(
        3.0,
        synchronization=tf.VariableSynchronization.ON_READ,
        aggregation=tf.VariableAggregation.NONE,
    )
    swa = swa_tf.StochasticWeightAveraging()
    swa.apply([variable])
    assert float(swa.average(variable)) == 3.0


def test_variable_that_sums_over_replicas_is_refused():
    with tf.distribute.MirroredStrategy(["/cpu:0", "/cpu:1"]).scope():
        variable = tf.Variable(
            0.0,
            synchronization=tf.VariableSynchronization.ON_READ,
            aggregation=tf.VariableAggregation.SUM,
        )
    with pytest.raises(ValueError, match="not their sum"):
        swa_tf.StochasticWeightAveraging().apply([variable])


def test_shadow_of_a_mirrored_variable_is_mirrored():
    strategy = tf.distribute.MirroredStrategy(["/cpu:0", "/cpu:1"])
    with strategy.scope():
        variable = tf.Variable([1.0])
    swa = swa_tf.StochasticWeightAveraging()
    swa.apply([variable])  # outside the scope
    devices = [
        [v.device for v in strategy.experimental_local_results(each)]
        for each in (variable, swa.average(variable))
    ]
    assert devices[0] == devices[1]


# --- Checkpoints ----------------------------------------------------------


def test_checkpoint_restores_before_and_after_the_first_apply(tmp_path):
    variable = tf.Variable([1.0, 2.0])
    swa = swa_tf.StochasticWeightAveraging()
    for value in (0.1, 0.2, 0.4):
        variable.assign([value, 1 / value])
        swa.apply([variable])
    path = tf.train.Checkpoint(swa=swa, v=variable).save(str(tmp_path / "c"))
    expected = swa.average(variable).numpy()
    for early in (True, False):
        new_variable = tf.Variable([0.0, 0.0])
        new = swa_tf.StochasticWeightAveraging()
        if not early:
            new.apply([new_variable])
        checkpoint = tf.train.Checkpoint(swa=new, v=new_variable)
        status = checkpoint.restore(path)
        assert int(new.n_models) == 3
        new.build([new_variable])
        status.assert_consumed()
        np.testing.assert_array_equal(new.average(new_variable), expected)


@pytest.mark.parametrize("built", [False, True])
@pytest.mark.parametrize("case", ["order", "shape", "fewer", "more"])
def test_checkpoint_of_other_variables(tmp_path, case, built):
    def make(names, sizes):
        return [tf.Variable(tf.ones([n]), name=m) for m, n in zip(names, sizes)]

    old = make("ab", [1, 1])
    swa = swa_tf.StochasticWeightAveraging()
    swa.apply(old)
    path = tf.train.Checkpoint(swa=swa).save(str(tmp_path / "c"))
    new = {
        "order": make("ba", [1, 1]),
        "shape": make("ab", [1, 2]),
        "fewer": make("a", [1]),
        "more": make("abc", [1, 1, 1]),
    }[case]
    swa = swa_tf.StochasticWeightAveraging()
    if built:
        swa.build(new)
        with pytest.raises(ValueError, match="has averages of"):
            tf.train.Checkpoint(swa=swa).restore(path)
        assert int(swa.n_models) == 0
    else:
        tf.train.Checkpoint(swa=swa).restore(path).expect_partial()
        with pytest.raises(ValueError, match="has averages of"):
            swa.apply(new)
        assert int(swa.n_models) == 1
        assert swa.average(new[0]) is None
        renamed = make("xy", [1, 1])
        swa.apply(renamed)
        assert int(swa.n_models) == 2


def test_rollback_to_a_checkpoint_from_before_the_first_apply(tmp_path):
    variable = tf.Variable(1.0)
    swa = swa_tf.StochasticWeightAveraging()
    checkpoint = tf.train.Checkpoint(swa=swa)
    path = checkpoint.save(str(tmp_path / "c"))
    swa.apply([variable])
    checkpoint.restore(path)
    variable.assign(5.0)
    swa.apply([variable])
    assert float(swa.average(variable)) == 5.0


def test_module_that_averages_is_exported(tmp_path):
    module = tf.Module()
    module.variable = tf.Variable(1.0)
    module.swa = swa_tf.StochasticWeightAveraging()

    @tf.function(input_signature=[])
    def step():
        module.variable.assign_add(1.0)
        module.swa.apply([module.variable])
        return module.swa.average(module.variable).read_value()

    module.step = step
    assert float(module.step()) == 2.0
    tf.saved_model.save(module, str(tmp_path / "model"))
    assert float(tf.saved_model.load(str(tmp_path / "model")).step()) == 2.5


RESUME = """
import sys
import tensorflow as tf
import swa_tf

def trajectory(path, first, last, compiled):
    variable = tf.Variable(tf.fill([7], 1.0))
    swa = swa_tf.StochasticWeightAveraging()
    checkpoint = tf.train.Checkpoint(swa=swa, variable=variable)
    if first:
        checkpoint.restore(path)
    def step(value):
        variable.assign_add(tf.sin(value * tf.range(7.0)))
        swa.apply([variable])
    if compiled:
        step = tf.function(step)
    for i in range(first, last):
        step(tf.constant(float(i)))
    return checkpoint, swa.average(variable).numpy().tobytes().hex()

for compiled in (False, True):
    path = f"{sys.argv[1]}-{compiled}"
    if sys.argv[2] == "save":
        trajectory(None, 0, 5, compiled)[0].write(path)
        print(trajectory(None, 0, 11, compiled)[1])
    else:
        print(trajectory(path, 5, 11, compiled)[1])
"""


@pytest.mark.slow
def test_resumed_in_a_new_process_bit_for_bit(tmp_path):
    def run(what):
        done = programs.run_code(RESUME, tmp_path / "c", what)
        assert done.returncode == 0, done.stderr
        return done.stdout.splitlines()[-2:]

    saved = run("save")
    assert saved == run("resume")
    assert len(saved[0]) == 7 * 8


# --- Bad input: a clear error, and nothing changed --------------------------


@pytest.mark.parametrize(
    ("make", "error", "match"),
    [
        (lambda v: [], ValueError, "at least one variable"),
        (lambda v: None, ValueError, "`var_list` must be given"),
        (lambda v: [v, v], ValueError, "once.*twice.*'v'"),
        (lambda v: v, TypeError, "list of variables"),
        (lambda v: 3, TypeError, "list of variables"),
        (lambda v: "v", TypeError, "list of variables"),
        (lambda v: [v, 1.0], TypeError, "Received: 1.0"),
        (lambda v: [v, tf.constant(1.0)], TypeError, "must hold variables"),
        (lambda v: [v, np.ones(3)], TypeError, "must hold variables"),
        (
            lambda v: [v, tf.Variable(1, name="seed")],
            TypeError,
            r"'seed' \(int32\)",
        ),
        (lambda v: [v, tf.Variable(True)], TypeError, "bool"),
        (lambda v: [v, tf.Variable(1j)], TypeError, "complex128"),
        (
            lambda v: [v, tf.Variable(1.0, name="late")],
            ValueError,
            "no others.*'late'",
        ),
        (lambda v: [tf.Variable(1.0)], ValueError, "no others"),
    ],
)
@pytest.mark.parametrize("first", [True, False])
def test_bad_var_list(make, error, match, first):
    variable = tf.Variable([1.0], name="v")
    swa = swa_tf.StochasticWeightAveraging()
    if not first:
        swa.apply([variable])
        variable.assign([2.0])
    elif "no others" in match:
        pytest.skip("no variable is late at the first apply")
    with pytest.raises(error, match=match):
        swa.apply(make(variable))
    assert int(swa.n_models) == (0 if first else 1)
    if first:
        assert swa.average(variable) is None
    else:
        assert float(swa.average(variable)[0]) == 1.0


def test_left_out_variable():
    one, two = tf.Variable(1.0, name="one"), tf.Variable(1.0, name="two")
    swa = swa_tf.StochasticWeightAveraging()
    swa.apply([one, two])
    with pytest.raises(ValueError, match="without: 'two'"):
        swa.apply([one])
    assert int(swa.n_models) == 1


@pytest.mark.parametrize(
    "average",
    [
        swa_tf.StochasticWeightAveraging(name="average"),
        swa_tf.ExponentialMovingAverage(0.9, name="average"),
    ],
)
def test_assert_averaged_of_a_variable_without_average(average):
    known, unknown = tf.Variable(1.0, name="a"), tf.Variable(2.0, name="b")
    average.apply([known])
    assert average.assert_averaged([known]) == []
    match = r"variables that average averages. Received: 'b' \(float32\)"
    with pytest.raises(RuntimeError, match=match):
        average.assert_averaged([known, unknown])
    with pytest.raises(TypeError, match="`var_list` must be a list of var"):
        average.assert_averaged(known)


def test_none_in_a_function():
    swa = swa_tf.StochasticWeightAveraging()
    with pytest.raises(ValueError, match="`var_list` must be given"):
        tf.function(lambda: swa.apply())()


def test_variables_to_restore_needs_a_graph():
    swa = swa_tf.StochasticWeightAveraging()
    with pytest.raises(ValueError, match="`moving_avg_variables` must be"):
        swa.variables_to_restore()


@pytest.mark.parametrize("compiled", [False, True])
def test_changed_shape(compiled):
    variable = tf.Variable([1.0, 2.0], shape=tf.TensorShape([None]))
    other = tf.Variable(1.0)
    swa = swa_tf.StochasticWeightAveraging()

    def apply():
        swa.apply([other, variable])

    apply = tf.function(apply) if compiled else apply
    apply()
    variable.assign([5.0])  # would broadcast
    other.assign(3.0)
    with pytest.raises(
        (ValueError, tf.errors.InvalidArgumentError), match="shape"
    ):
        apply()
    np.testing.assert_array_equal(swa.average(variable), [1.0, 2.0])
    assert float(swa.average(other)) == 1.0
    assert int(swa.n_models) == 1


def test_variables_made_by_the_function_that_averages():
    """A Keras 3 model is built by its first batch, inside the step."""
    model = tf.keras.Sequential([tf.keras.layers.Dense(2, use_bias=False)])
    swa = swa_tf.StochasticWeightAveraging()

    @tf.function
    def step(value):
        model(tf.ones([1, 3]))
        model.layers[0].kernel.assign(tf.fill([3, 2], value))
        swa.apply(model.trainable_variables)

    for value in (1.0, 2.0, 6.0):
        step(tf.constant(value))
    average = swa.average(model.layers[0].kernel)
    np.testing.assert_array_equal(average, np.full([3, 2], 3.0))
