"""Updates of many variables: compiled or not, in bundles, the same bits."""

import copy

import numpy as np
import pytest
import tensorflow as tf

import swa_tf
from swa_tf.averaging import rounding, update
from tests.fitting import covering

LARGE = (update.COMPILED_ELEMENTS,)
SMALL = (3, 5)
# As large, and of more dimensions than one, the first of which is short.
KERNEL = (3, 3, 64, 64)


def random_values(shape, dtype, count, seed=0):
    random = np.random.default_rng(seed)
    return [
        tf.cast(tf.constant(random.normal(1.0, 0.3, shape)), dtype)
        for _ in range(count)
    ]


def averages_of(variables, models, update):
    """Shadow variables after `update(pairs, n)` for each model."""
    averages = [
        tf.Variable(tf.zeros(v.shape, _shadow_dtype(v)), trainable=False)
        for v in variables
    ]
    for n, model in enumerate(models):
        for variable, value in zip(variables, model):
            variable.assign(value)
        update(list(zip(averages, variables)), tf.constant(n, tf.int64))
    return [average.numpy() for average in averages]


def _shadow_dtype(variable):
    return tf.float64 if variable.dtype == tf.float64 else tf.float32


def _op_by_op(pairs, n):
    update.Update(pairs)(1.0 / tf.cast(n + 1, tf.float64), n)


def _in_graph(update):
    """The same in a graph. What it returns there is an op, no tensor."""
    return tf.function(lambda *args: [update(*args), None][1], autograph=False)


def _compiled(pairs, n):
    _in_graph(lambda n: _op_by_op(pairs, n))(n)


def _one_by_one(pairs, n):
    c = 1.0 / tf.cast(n + 1, tf.float64)
    for average, weight in pairs:
        moved = rounding.moved(
            average.read_value(),
            tf.cast(weight.read_value(), average.dtype),
            c,
            rounding.threshold(n),
        )
        average.assign(moved)


@pytest.mark.parametrize(
    ("shape", "dtype"),
    covering(
        1,
        [LARGE, KERNEL],
        [tf.float16, tf.bfloat16, tf.float32, tf.float64],
    ),
)
def test_compiled_or_not_gives_the_same_bits(shape, dtype):
    variables = [tf.Variable(v) for v in random_values(shape, dtype, 2)]
    models = [random_values(shape, dtype, 2, seed) for seed in range(6)]
    expected = averages_of(variables, models, _one_by_one)
    for way in (_op_by_op, _compiled):
        got = averages_of(variables, models, way)
        np.testing.assert_array_equal(got, expected)
    exact = np.mean(
        [[v.numpy().astype(np.float64) for v in m] for m in models], axis=0
    )
    # Six sums of numbers below 4, each off by at most one unit, 2^-22.
    np.testing.assert_allclose(expected, exact, rtol=0, atol=6 * 2.0**-22)


def test_thresholds_are_spread_evenly_where_a_sum_may_round_up():
    thresholds = rounding.threshold(tf.range(1000, dtype=tf.int64)).numpy()
    expected = np.arange(1000) * (np.sqrt(5.0) - 1.0) / 2.0 % 1.0
    over = expected >= 0.5
    np.testing.assert_allclose(thresholds[~over], expected[~over], atol=1e-12)
    np.testing.assert_array_equal(thresholds[over], np.inf)
    assert abs(over.mean() - 0.5) < 0.01


@pytest.mark.parametrize("n_models", [-1, -3, 2**62])
def test_any_number_of_models_gives_the_same_bits(n_models):
    weight = tf.Variable(random_values(LARGE, tf.float32, 1)[0])
    start, n = weight * 1.01, tf.constant(n_models, tf.int64)
    got = []
    for in_graph in (False, True):
        average = tf.Variable(start)
        updated = update.Update([(average, weight)])
        c = tf.constant(0.3, tf.float64)
        (_in_graph(updated) if in_graph else updated)(c, n)
        got.append(average.numpy())
    np.testing.assert_array_equal(*got)


@pytest.mark.parametrize("compiled", [False, True])
def test_where_no_sum_rounds_up_they_are_tensorflows(compiled):
    average = np.float32([-0.0, 1.0, 3e38, *np.geomspace(1e-8, 1e8, 99)])
    weight = np.float32([-0.0, -1.0, 3e38, *np.geomspace(-3e4, -3e-3, 99)])
    c = tf.constant(0.1, tf.float64)
    threshold = rounding.threshold(tf.constant(1, tf.int64))
    assert threshold > 0.5

    @tf.function(jit_compile=compiled)
    def moved(average, weight, zero):
        given = zero if compiled else None
        return rounding.moved(average, weight, c, threshold, given)

    expected = average + np.float32(0.1) * (weight - average)
    got = moved(average, weight, tf.constant(0))
    np.testing.assert_array_equal(got, expected)
    np.testing.assert_array_equal(np.signbit(got), np.signbit(expected))


@pytest.mark.parametrize("shape", [(), SMALL, LARGE, KERNEL])
@pytest.mark.parametrize("n_models", [0, 4, -3])  # the user may assign any
@pytest.mark.parametrize("in_graph", [False, True])
def test_each_variable_has_its_own_coefficient(shape, n_models, in_graph):
    weights = [tf.Variable(tf.fill(shape, 8.0)) for _ in range(3)]
    averages = [tf.Variable(tf.zeros(shape)) for _ in weights]
    updated = update.Update(list(zip(averages, weights)))
    c = tf.constant([0.25, 1.0, 0.0], tf.float64)
    updated = _in_graph(updated) if in_graph else updated
    updated(c, tf.constant(n_models, tf.int64))
    for average, expected in zip(averages, [2.0, 8.0, 0.0]):
        np.testing.assert_allclose(average, tf.fill(shape, expected), rtol=1e-6)


@pytest.mark.parametrize("jit_compile", [False, True])
def test_kernels_in_a_function_of_the_user(jit_compile):
    variables = [tf.Variable(tf.zeros(KERNEL)) for _ in range(2)]
    swa = swa_tf.StochasticWeightAveraging()

    @tf.function(jit_compile=jit_compile)
    def step():
        for variable in variables:
            variable.assign_add(tf.ones(KERNEL))
        swa.apply(variables)

    for _ in range(8):
        step()
    for variable in variables:
        np.testing.assert_array_equal(
            swa.average(variable), np.full(KERNEL, 4.5)
        )


@pytest.mark.parametrize(
    ("shape", "count"),
    covering(1, [(), (0,), (1,), SMALL], [1, 2, 128, 129]),
)
def test_small_variables_are_strung_together(shape, count):
    values = random_values(shape, tf.float32, count, seed=1)
    variables = [tf.Variable(tf.zeros(shape)) for _ in range(count)]
    swa = swa_tf.StochasticWeightAveraging()
    for factor in (1.0, 3.0):
        for variable, value in zip(variables, values):
            variable.assign(factor * value)
        swa.apply(variables)
    for variable, value in zip(variables, values):
        expected = 2.0 * value.numpy().astype(np.float64)
        np.testing.assert_allclose(
            swa.average(variable), expected, rtol=2.0**-22
        )


def test_bundles_of_every_kind_at_once():
    kinds = [
        (shape, dtype)
        for shape in (LARGE, SMALL, (2, *LARGE))
        for dtype in (tf.float32, tf.bfloat16, tf.float64)
    ] * 18  # more than one bundle of the large
    variables = [
        tf.Variable(tf.fill(shape, tf.cast(i, dtype)))
        for i, (shape, dtype) in enumerate(kinds)
    ]
    swa = swa_tf.StochasticWeightAveraging()
    swa.apply(variables)
    for variable in variables:
        variable.assign(variable + tf.cast(2.0, variable.dtype))
    swa.apply(variables)
    for i, variable in enumerate(variables):
        expected = np.full(variable.shape, i + 1.0)
        np.testing.assert_array_equal(swa.average(variable), expected)


@pytest.fixture
def compiled(monkeypatch):
    """The devices of the variables for which compiled functions are asked."""
    compiled = []
    function = update._compiled_function
    function.cache_clear()

    def noting(kind):
        compiled.append(tf.DeviceSpec.from_string(kind.device).device_index)
        return function(kind)

    monkeypatch.setattr(update, "_compiled_function", noting)
    return compiled


@pytest.fixture
def traced(monkeypatch):
    """The arguments of each call of `tf.function`."""
    traced = []
    function = tf.function

    def noting(*args, **kwargs):
        traced.append((args, kwargs))
        return function(*args, **kwargs)

    monkeypatch.setattr(tf, "function", noting)
    return traced


@pytest.mark.parametrize("period", [1, 3])
@pytest.mark.parametrize(
    "make",
    [
        swa_tf.StochasticWeightAveraging,
        lambda when: swa_tf.ExponentialMovingAverage(0.9, when=when),
    ],
)
def test_the_first_50_updates_are_not_traced(make, period, compiled, traced):
    variable, small = tf.Variable(tf.ones(LARGE)), tf.Variable(1.0)
    average = make(when=swa_tf.AveragingSchedule(period=period))
    for _ in range(period * 49 + 1):
        average.apply([variable, small])
    assert int(average.n_models) == 50
    assert not traced
    for n_models in (51, 52):
        for _ in range(period):
            average.apply([variable, small])
        assert compiled == [0]
        assert len(traced) == 2  # of the average, and of the variable in it
        assert int(average.n_models) == n_models


@pytest.mark.parametrize(
    ("n_elements", "expected"), [(LARGE[0], [0]), (LARGE[0] - 1, [])]
)
def test_a_graph_compiles_what_is_large(n_elements, expected, compiled):
    swa = swa_tf.StochasticWeightAveraging(
        when=swa_tf.AveragingSchedule(period=1000)
    )
    variables = [tf.Variable(tf.ones([n_elements])), tf.Variable(1.0)]
    swa.build(variables)
    _in_graph(lambda: swa.apply(variables)).get_concrete_function()
    assert compiled == expected


def test_the_51st_update_goes_on_with_the_same_bits():
    models = [random_values(LARGE, tf.float32, 2, seed) for seed in range(53)]
    variables = [tf.Variable(v) for v in models[0]]
    swa = swa_tf.StochasticWeightAveraging()
    averages_of(variables, models, lambda pairs, n: swa.apply(variables))
    got = [swa.average(v).numpy() for v in variables]
    expected = averages_of(variables, models, _one_by_one)
    np.testing.assert_array_equal(got, expected)


def test_later_calls_check_and_trace_nothing(monkeypatch):
    variables = [tf.Variable(v) for v in random_values(LARGE, tf.float32, 2)]
    calls = {"checked": 0, "coefficients": 0}

    class Counting(swa_tf.StochasticWeightAveraging):
        def _checked(self, var_list):
            calls["checked"] += 1
            return super()._checked(var_list)

        def coefficient(self, n_models):
            calls["coefficients"] += 1
            return super().coefficient(n_models)

    swa = Counting()
    for _ in range(53):
        swa.apply(list(variables))
    assert calls == {"checked": 1, "coefficients": 53}
    assert int(swa.n_models) == 53


def test_an_eager_update_asks_no_limits_of_a_type(monkeypatch):
    """TensorFlow would turn an interrupt there into another error."""
    variable, swa = tf.Variable([1.0]), swa_tf.StochasticWeightAveraging()
    for value in (1.0, 3.0):  # the third update is the first to round up
        variable.assign([value])
        swa.apply([variable])
    variable.assign([5.0])

    def interrupted(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(np, "iinfo", interrupted)
    swa.apply([variable])
    assert swa.average(variable).numpy().tolist() == [3.0]


def test_another_list_is_checked():
    variables = [tf.Variable(1.0), tf.Variable(2.0)]
    swa = swa_tf.StochasticWeightAveraging()
    swa.apply(variables)
    swa.apply(tuple(variables))
    swa.apply(v for v in variables)
    with pytest.raises(ValueError, match="the variables of the first"):
        swa.apply(variables[:1])
    swa.apply(variables[::-1])
    assert int(swa.n_models) == 4


@pytest.mark.parametrize(
    ("dtype", "shape", "update"),
    covering(
        2,
        [tf.float32, tf.bfloat16, tf.float64],
        [SMALL, LARGE, KERNEL],
        [_op_by_op, _compiled],
    ),
)
def test_a_weight_on_another_device_than_its_average(dtype, shape, update):
    with tf.device("/cpu:1"):
        variables = [tf.Variable(tf.zeros(shape, dtype)) for _ in range(2)]
    models = [random_values(shape, dtype, 2, seed) for seed in range(3)]
    got = averages_of(variables, models, update)
    expected = averages_of(variables, models, _one_by_one)
    np.testing.assert_array_equal(got, expected)


@pytest.mark.parametrize("shape", [SMALL, LARGE])
@pytest.mark.parametrize("when", [None, swa_tf.AveragingSchedule()])
def test_the_op_waits_for_all_where_tensorflow_orders_nothing(shape, when):
    variables = [tf.Variable(tf.ones(shape)) for _ in range(2)]
    swa = swa_tf.StochasticWeightAveraging(when=when)
    swa.build(variables)

    def step():
        with tf.control_dependencies([swa.apply(variables)]):
            return tf.constant(0)

    step = tf.compat.v1.wrap_function(step, [])
    for value in range(1, 9):
        for variable in variables:
            variable.assign(tf.fill(shape, float(value)))
        step()
    for variable in variables:
        np.testing.assert_array_equal(swa.average(variable), variable - 3.5)


def test_what_is_sent_has_the_bits_of_the_weight():
    """Two bytes a parameter of a bfloat16 weight, not four."""
    with tf.device("/cpu:1"):
        variable = tf.Variable(tf.ones(LARGE, tf.bfloat16))
    swa = swa_tf.StochasticWeightAveraging(device="/cpu:0")

    @tf.function
    def step():
        swa.apply([variable])

    step()
    graph = step.get_concrete_function().graph
    casts = [op for op in graph.get_operations() if op.type == "Cast"]
    assert not any(op.inputs[0].shape == LARGE for op in casts)


def test_variables_on_two_devices(compiled):
    variables = []
    for device in ("/cpu:0", "/cpu:1"):
        with tf.device(device):
            variables += [tf.Variable(tf.ones(LARGE)), tf.Variable(1.0)]
    swa = swa_tf.StochasticWeightAveraging()
    for _ in range(52):
        swa.apply(variables)
        for variable in variables:
            variable.assign_add(tf.ones_like(variable))
    for variable in variables:
        assert swa.average(variable).device == variable.device
        expected = np.full(variable.shape, 26.5)
        np.testing.assert_array_equal(swa.average(variable), expected)
    assert compiled == [0, 1]


def _mirrored_updates(context):
    """Returns an average, mirrored variables, and an update for both."""
    strategy = tf.distribute.MirroredStrategy(["/cpu:0", "/cpu:1"])
    with strategy.scope():
        variables = [
            tf.Variable(v, aggregation=tf.VariableAggregation.MEAN)
            for v in random_values(LARGE, tf.float32, 2)
        ]
    swa = swa_tf.StochasticWeightAveraging()

    def apply():
        swa.apply(variables)

    step = {
        "eager": apply,
        "function": tf.function(apply),
        "replica": tf.function(lambda: strategy.run(apply)),
    }[context]
    return swa, variables, lambda pairs, n: step()


@pytest.mark.parametrize("context", ["eager", "function", "replica"])
def test_mirrored_averages_are_compiled_on_every_device(context, compiled):
    swa, variables, update = _mirrored_updates(context)
    count = 52 if context == "eager" else 3
    models = [
        random_values(LARGE, tf.float32, 2, seed) for seed in range(count)
    ]
    averages_of(variables, models, update)
    assert set(compiled) == {0, 1}
    expected = averages_of(variables, models, _one_by_one)
    for variable, value in zip(variables, expected):
        for replica in swa.average(variable).values:
            np.testing.assert_array_equal(replica, value)


def test_where_xla_is_not_built_in(monkeypatch, compiled):
    monkeypatch.setattr(tf.test, "is_built_with_xla", lambda: False)
    models = [random_values(LARGE, tf.float32, 2, seed) for seed in range(3)]
    variables = [tf.Variable(v) for v in models[0]]
    got = averages_of(variables, models, _compiled)
    expected = averages_of(variables, models, _one_by_one)
    np.testing.assert_array_equal(got, expected)
    assert not compiled


def test_a_new_schedule_takes_effect_in_eager_mode():
    variable = tf.Variable(0.0)
    swa = swa_tf.StochasticWeightAveraging()
    swa.apply([variable])
    swa.when = swa_tf.AveragingSchedule(start=1)
    variable.assign(2.0)
    swa.apply([variable])  # the schedule's call 0
    assert (float(swa.average(variable)), int(swa.n_models)) == (0.0, 1)
    swa.apply([variable])
    assert (float(swa.average(variable)), int(swa.n_models)) == (1.0, 2)


def test_a_product_that_xla_does_not_fuse_with_a_sum():
    x, y = random_values((1 << 16,), tf.float32, 2)

    @tf.function(jit_compile=True)
    def total(zero):
        return rounding.rounded(x * y, zero) + x

    expected = x.numpy() * y.numpy() + x.numpy()  # rounded twice
    np.testing.assert_array_equal(total(tf.constant(0)), expected)


def test_swapped_averages_are_not_averaged_where_xla_drops_the_error():
    variables = [tf.Variable(1.0), tf.Variable(tf.ones(LARGE))]
    swa = swa_tf.StochasticWeightAveraging()
    step = tf.function(lambda: [swa.apply(variables), 0][1], jit_compile=True)
    step()
    with swa_tf.averaged_weights(swa, variables):
        variables[0].assign(9.0)
        step()
    assert (int(swa.n_models), float(swa.average(variables[0]))) == (1, 1.0)


def test_of_many_lists_the_latest_functions_are_kept():
    a, b = tf.Variable(1.0), tf.Variable(2.0)
    ema = swa_tf.ExponentialMovingAverage(0.5)
    for variables in ([a, b], [b, a], [a], [b]) * 2:
        ema.apply(variables)
    known = ema._lists._known
    assert len(known) == 4
    others = [tf.Variable(float(i)) for i in range(7)]
    for other in others:
        ema.apply([other])
    assert len(known) == 8
    firsts = [float(each.given[0]) for each in known.values()]
    assert firsts == [2.0, *range(7)]


def test_a_copy_goes_on_by_itself():
    variable = tf.Variable(1.0)
    swa = swa_tf.StochasticWeightAveraging()
    swa.apply([variable])
    both = copy.deepcopy({"swa": swa, "variable": variable})
    both["variable"].assign(3.0)
    both["swa"].apply([both["variable"]])
    assert float(both["swa"].average(both["variable"])) == 2.0
    assert (float(swa.average(variable)), int(swa.n_models)) == (1.0, 1)


AVERAGES = [
    swa_tf.StochasticWeightAveraging,
    lambda: swa_tf.ExponentialMovingAverage(0.5),
]


@pytest.mark.parametrize("make", AVERAGES, ids=["swa", "ema"])
def test_a_copy_alone_averages_the_same_variables(make):
    variable, average = tf.Variable(1.0), make()
    average.apply([variable])
    copied = copy.deepcopy(average)
    variable.assign(3.0)
    copied.apply([variable])
    assert (float(copied.average(variable)), int(copied.n_models)) == (2.0, 2)
    assert (float(average.average(variable)), int(average.n_models)) == (1.0, 1)
    with swa_tf.averaged_weights(copied, [variable]):
        assert float(variable) == 2.0
    again = copy.deepcopy(copy.deepcopy(copied))
    assert float(again.average(variable)) == 2.0


@pytest.mark.parametrize("make", AVERAGES, ids=["swa", "ema"])
@pytest.mark.parametrize("first", ["average", "variable"])
def test_a_copy_has_the_variables_that_are_copied_with_it(make, first):
    variable, other, average = tf.Variable(1.0), tf.Variable(5.0), make()
    average.apply([variable, other])
    if first == "average":
        copied, of_variable = copy.deepcopy((average, variable))
    else:
        of_variable, copied = copy.deepcopy((variable, average))
    assert copied.average(variable) is None
    of_variable.assign(3.0)
    copied.apply([of_variable, other])
    averages = [copied.average(v) for v in (of_variable, other)]
    assert [float(each) for each in averages] == [2.0, 5.0]
    assert float(average.average(variable)) == 1.0


def test_a_copy_reads_the_same_decay():
    decay, variable = tf.Variable(0.5), tf.Variable(1.0)
    ema = swa_tf.ExponentialMovingAverage(decay)
    ema.apply([variable])
    alone = copy.deepcopy(ema)
    copied, of_decay = copy.deepcopy((ema, decay))
    decay.assign(0.75)
    of_decay.assign(0.25)
    variable.assign(5.0)
    for average, expected in ((alone, 2.0), (copied, 4.0)):
        average.apply([variable])
        assert float(average.average(variable)) == expected


def test_many_averages_give_no_warning_of_retracing(caplog):
    for _ in range(8):
        swa_tf.StochasticWeightAveraging().apply([tf.Variable(1.0)])
    assert "retracing" not in caplog.text


def test_functions_of_shapes_long_gone_are_not_kept():
    maximum = update._MAX_CACHED_FUNCTIONS
    assert update._compiled_function.cache_info().maxsize == maximum
