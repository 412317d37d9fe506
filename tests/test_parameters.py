"""Copies of parameters, their way back, and their running average."""

import fractions
import io

import hypothesis
import ml_dtypes
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import swa_tf
from swa_tf.parameters import (
    assign_parameters,
    average_parameters,
    copy_parameters,
)
from swa_tf.support import compat, variable_names

FLOATS = ("float16", "bfloat16", "float32", "float64")
TFA = compat.tensorflow_addons()


class Module(tf.Module):
    def __init__(self, **attributes):
        super().__init__()
        for name, value in attributes.items():
            setattr(self, name, value)


def module():
    """One parameter of each kind; the names are in the order of `variables`."""
    return Module(
        flag=tf.Variable([True, False]),
        half=tf.Variable([1.0, 2.0, 3.0], dtype=tf.float16),
        n=tf.Variable(7, dtype=tf.int32),
        small=tf.Variable([1, 2], dtype=tf.uint8),
        text=tf.Variable(["a", "b"]),
        w=tf.Variable([[1.0, 2.0], [3.0, 4.0]]),
        z=tf.Variable(1 + 2j, dtype=tf.complex64),
    )


def network():
    model = tf.keras.Sequential(
        [
            tf.keras.Input([3]),
            tf.keras.layers.Dense(2),
            tf.keras.layers.BatchNormalization(),
        ]
    )
    return model


NAMES = [
    "dense/kernel",
    "dense/bias",
    "batch_normalization/gamma",
    "batch_normalization/beta",
    "batch_normalization/moving_mean",
    "batch_normalization/moving_variance",
]


def mirrored_network():
    strategy = tf.distribute.MirroredStrategy(["/cpu:0", "/cpu:1"])
    with strategy.scope():
        return network()


def saved_and_loaded(dictionary):
    file = io.BytesIO()
    np.savez(file, **dictionary)
    file.seek(0)
    return np.load(file, allow_pickle=False)


def identical(first, second):
    """Whether two dictionaries of arrays are the same, to the bit."""
    assert list(first) == list(second)
    for name, array in first.items():
        other = second[name]
        assert array.dtype == other.dtype, name
        assert array.shape == other.shape, name
        assert array.tobytes() == other.tobytes(), name


def random_like(arrays, seed):
    rng = np.random.default_rng(seed)
    return {k: rng.normal(size=a.shape) for k, a in arrays.items()}


# Copies.


def test_copies_have_the_values_shapes_and_dtypes():
    copies = copy_parameters(module())
    assert list(copies) == ["flag", "half", "n", "small", "text", "w", "z"]
    assert all(type(array) is np.ndarray for array in copies.values())
    dtypes = [array.dtype.name for array in copies.values()]
    assert dtypes == [
        *("bool", "float16", "int32", "uint8", "object"),
        *("float32", "complex64"),
    ]
    assert copies["n"].shape == ()
    assert {k: a.tolist() for k, a in copies.items()} == {
        "flag": [True, False],
        "half": [1.0, 2.0, 3.0],
        "n": 7,
        "small": [1, 2],
        "text": [b"a", b"b"],
        "w": [[1.0, 2.0], [3.0, 4.0]],
        "z": 1 + 2j,
    }


@pytest.mark.parametrize("make", [network, mirrored_network])
def test_copies_of_a_model(make):
    copies = copy_parameters(make())
    assert sorted(copies) == sorted(NAMES)
    assert copies["dense/kernel"].shape == (3, 2)
    assert copies["batch_normalization/moving_variance"].tolist() == [1.0, 1.0]


def test_copies_are_never_views():
    target = Module(w=tf.Variable([1.0, 2.0]))
    copies = copy_parameters(target)
    target.w.assign_add([1.0, 1.0])
    assert copies["w"].tolist() == [1.0, 2.0]
    copies["w"][:] = 9.0
    assert target.w.numpy().tolist() == [2.0, 3.0]


# The way back.


@pytest.mark.parametrize("dtype", FLOATS)
def test_round_trip_through_a_file(dtype):
    rng = np.random.default_rng(0)
    values = rng.normal(size=[3, 2])
    target = Module(
        w=tf.Variable(tf.cast(values, dtype)),
        n=tf.Variable(3),
        b=tf.Variable(1),
    )
    before = copy_parameters(target)
    file = saved_and_loaded(before)
    target.w.assign(tf.zeros_like(target.w))
    target.n.assign(5)
    assert assign_parameters(target, file) == ["b", "n", "w"]
    identical(copy_parameters(target), before)


@pytest.mark.parametrize("make", [network, mirrored_network])
def test_values_go_to_their_parameters(make):
    model = make()
    values = random_like(copy_parameters(model), 0)
    assigned = assign_parameters(model, values)
    assert assigned == list(copy_parameters(model))
    layer = model.layers[-1]
    found = np.asarray(compat.tf_variable(layer.moving_mean).numpy())
    wanted = values["batch_normalization/moving_mean"].astype(np.float32)
    np.testing.assert_array_equal(found, wanted)
    for name, variable in variable_names.named_variables(model).items():
        replicas = getattr(variable, "values", [variable])
        assert len(replicas) == (2 if make is mirrored_network else 1)
        for replica in replicas:
            np.testing.assert_array_equal(
                replica.numpy(), values[name].astype(np.float32)
            )


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16"])
def test_mixed_precision(policy):
    tf.keras.mixed_precision.set_global_policy(policy)
    model = network()
    values = random_like(copy_parameters(model), 0)
    assign_parameters(model, values)
    for name, array in copy_parameters(model).items():
        assert array.dtype == np.float32
        np.testing.assert_array_equal(array, values[name].astype(np.float32))


def test_one_number_resets_a_whole_parameter():
    target = module()
    values = {"w": 0, "half": np.float64(0.5), "flag": 1, "n": tf.constant(2.0)}
    assert assign_parameters(target, values, strict=False) == [
        *("flag", "half", "n", "w")
    ]
    assert target.w.numpy().tolist() == [[0.0, 0.0], [0.0, 0.0]]
    assert target.half.numpy().tolist() == [0.5, 0.5, 0.5]
    assert target.flag.numpy().tolist() == [True, True]
    assert int(target.n) == 2


def test_a_value_may_be_a_variable_a_tensor_a_list_or_a_string():
    target = module()
    keras = tf.keras.Variable if compat.KERAS_3 else tf.Variable
    values = {
        "w": keras([[5.0, 6.0], [7.0, 8.0]]),
        "half": [1, 2, 4],
        "text": np.array(["c", "d"]),
    }
    assign_parameters(target, values, strict=False)
    assert target.w.numpy().tolist() == [[5.0, 6.0], [7.0, 8.0]]
    assert target.half.numpy().tolist() == [1.0, 2.0, 4.0]
    assert target.text.numpy().tolist() == [b"c", b"d"]


def test_a_variable_shares_nothing_with_the_array_assigned():
    target = Module(w=tf.Variable(tf.zeros([64])))
    array = np.ones([64], np.float32)
    assign_parameters(target, {"w": array})
    array[:] = 5.0
    assert target.w.numpy().max() == 1.0
    target.w.assign_add(tf.ones([64]))
    assert array.max() == 5.0


def test_nan_and_infinity_are_values():
    target = Module(w=tf.Variable([0.0, 0.0, 0.0], dtype=tf.float16))
    assign_parameters(target, {"w": np.array([np.nan, np.inf, -np.inf])})
    assert str(target.w.numpy().tolist()) == "[nan, inf, -inf]"


def test_a_shape_that_is_not_known():
    """It is that of the value the variable has now."""
    variable = tf.Variable([1.0, 2.0], shape=tf.TensorShape(None))
    target = Module(w=variable)
    assign_parameters(target, {"w": 3.0})
    assert variable.numpy().tolist() == [3.0, 3.0]
    with pytest.raises(
        ValueError, match=r"'w' of shape \(3,\) instead of \(2,\)"
    ):
        assign_parameters(target, {"w": [1.0, 2.0, 3.0]})


def test_the_count_is_passed_over():
    target = Module(w=tf.Variable([1.0]))
    averages = {}
    average_parameters(target, averages)
    target.w.assign([2.0])
    assert assign_parameters(target, averages) == ["w"]
    assert target.w.numpy().tolist() == [1.0]


def test_a_parameter_of_the_count_s_name_is_one():
    target = Module(n_models=tf.Variable(3), w=tf.Variable(1.0))
    assert assign_parameters(target, {"n_models": 5, "w": 2.0}) == [
        "n_models",
        "w",
    ]
    assert int(target.n_models) == 5
    with pytest.raises(ValueError, match="no parameter 'n_models'"):
        average_parameters(target, {})


REFUSED = {
    "unknown": ({"wight": 1.0}, r"'wight', which is no parameter"),
    "close": ({"haf": 1.0}, r"'haf'.* \(did you mean 'half'\?\)"),
    "not a name": ({3: 1.0}, r"3, which is no parameter"),
    "shape": ({"w": [1.0, 2.0]}, r"'w' of shape \(2,\) instead of \(2, 2\)"),
    "row": ({"w": [[1.0, 2.0]]}, r"'w' of shape \(1, 2\) instead of \(2, 2\)"),
    "one in a list": ({"n": [1]}, r"'n' of shape \(1,\) instead of \(\)"),
    "ragged": ({"half": [[1.0], [1.0, 2.0]]}, "'half' that is no array"),
    "string": ({"w": "1"}, r"'w' of dtype <U1 instead of float32"),
    "bytes": ({"n": b"1"}, r"'n' of dtype \|S1 instead of int32"),
    "nothing": ({"w": None}, r"'w' of dtype object instead of float32"),
    "huge": ({"n": 10**30}, r"'n' of dtype object instead of int32"),
    "raw": ({"w": np.zeros([2, 2], "V4")}, r"'w' of dtype \|V4 instead"),
    "complex": ({"w": 1j}, r"'w' of dtype complex128 instead of float32"),
    "number": ({"text": 3}, r"'text' of dtype int64 instead of string"),
    "not whole": ({"n": 1.5}, r"'n' with 1\.5, which int32 cannot hold"),
    "nan": ({"n": np.nan}, r"'n' with nan, which int32 cannot hold"),
    "above": ({"n": 2**31}, r"'n' with 2147483648, which int32 cannot"),
    "below": ({"small": [0, -1]}, r"'small' with -1, which uint8 cannot"),
    "no bool": ({"flag": [2, 0]}, r"'flag' with 2, which bool cannot hold"),
    "overflow": ({"half": 1e6}, r"'half' with 1000000\.0, which float16"),
}


@pytest.mark.parametrize(("values", "message"), REFUSED.values(), ids=REFUSED)
@pytest.mark.parametrize("strict", [True, False])
def test_refused_values_change_nothing(values, message, strict):
    target = module()
    before = copy_parameters(target)
    # The good values come first, and would be assigned first.
    good = {"flag": False, "n": 1, "half": 9.0} if not strict else before
    with pytest.raises(ValueError, match=message) as caught:
        assign_parameters(target, {**good, **values}, strict=strict)
    wanted = "`dictionary` must hold values that fit the parameters of `target`"
    assert str(caught.value).startswith(wanted)
    identical(copy_parameters(target), before)


def test_raw_bits_are_those_of_bfloat16_alone():
    """`np.load` gives bfloat16 so; two bytes of float16 it gives as float16."""
    target = Module(w=tf.Variable([1.0], dtype=tf.bfloat16))
    bits = np.array([0.5], ml_dtypes.bfloat16).view("V2")
    assign_parameters(target, {"w": bits})
    assert float(target.w[0]) == 0.5
    with pytest.raises(
        ValueError, match=r"'w' of dtype \|V4 instead of bfloat"
    ):
        assign_parameters(target, {"w": np.zeros([1], "V4")})
    half = Module(w=tf.Variable([1.0], dtype=tf.float16))
    with pytest.raises(
        ValueError, match=r"'w' of dtype \|V2 instead of float16"
    ):
        assign_parameters(half, {"w": bits})


def test_missing_values_are_refused_if_strict():
    target = module()
    before = copy_parameters(target)
    values = {name: before[name] for name in ("n", "text", "w", "half", "flag")}
    with pytest.raises(ValueError, match="Received: 'small' missing; 'z' miss"):
        assign_parameters(target, {**values, "n": 1})
    identical(copy_parameters(target), before)
    assert assign_parameters(target, {}, strict=False) == []


def test_all_problems_are_told_at_once():
    with pytest.raises(ValueError, match="fit") as caught:
        assign_parameters(
            module(), {"w": [1.0], "n": 0.5, "x": 1}, strict=False
        )
    told = str(caught.value).partition("Received: ")[2]
    assert told == (
        "'x', which is no parameter; 'n' with 0.5, which int32 cannot hold; "
        "'w' of shape (1,) instead of (2, 2)"
    )


@pytest.mark.parametrize(
    ("n", "end"), [(10, "'x9', which"), (13, "and 3 more")]
)
def test_ten_problems_are_told(n, end):
    with pytest.raises(ValueError, match="fit") as caught:
        assign_parameters(
            module(), {f"x{i}": 1 for i in range(n)}, strict=False
        )
    assert str(caught.value).split("; ")[-1].startswith(end)
    assert str(caught.value).count("which is no") == 10


@pytest.mark.parametrize("dictionary", [None, [("w", 1.0)], "w"])
def test_another_dictionary_is_refused(dictionary):
    with pytest.raises(TypeError, match="`dictionary` must be a mapping"):
        assign_parameters(Module(w=tf.Variable(1.0)), dictionary)


SHAPES = hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=3)


@hypothesis.given(SHAPES, SHAPES)
@hypothesis.example((2, 3), (2, 3))
@hypothesis.example((0,), ())
@hypothesis.example((), (1,))
def test_shapes_are_equal_or_the_value_is_one_number(shape, given):
    variable = tf.Variable(tf.zeros(shape))
    fits = given in ((), shape)
    value = np.ones(given)
    try:
        assign_parameters(Module(w=variable), {"w": value})
    except ValueError:
        assert not fits
    else:
        assert fits
    np.testing.assert_array_equal(variable.numpy(), np.full(shape, float(fits)))


INTEGERS = ("bool", "int8", "uint8", "int32", "uint32", "int64", "uint64")
NUMBERS = st.one_of(
    st.integers(-(2**63), 2**64 - 1),
    st.integers(-300, 300),
    st.integers(-300, 300).map(float),
    st.floats(width=64),
    *[
        st.sampled_from([2.0**b, -(2.0**b), 2**b - 1, 2**b, -(2**b) - 1])
        for b in (8, 31, 32, 62, 63)
    ],
).filter(lambda x: isinstance(x, float) or -(2**63) <= x < 2**64)


@hypothesis.settings(max_examples=200)
@hypothesis.given(st.sampled_from(INTEGERS), NUMBERS)
@hypothesis.example("int64", 2.0**63)
@hypothesis.example("int64", -(2.0**63))
@hypothesis.example("int64", 2**63)
@hypothesis.example("uint64", 2**64 - 1)
@hypothesis.example("uint64", 2.0**64)
@hypothesis.example("uint64", -1)
@hypothesis.example("bool", 2)
def test_an_integer_parameter_takes_whole_numbers_in_its_range(dtype, number):
    dtype = tf.as_dtype(dtype)
    bits = {"bool": 1, "int8": 7, "int32": 31, "int64": 63}
    high = 2 ** bits.get(dtype.name, dtype.size * 8)
    low = -high if dtype.name.startswith("int") else 0
    fits = (
        np.isfinite(float(number))
        and fractions.Fraction(number).denominator == 1
        and low <= fractions.Fraction(number) < high
    )
    variable = tf.Variable(tf.cast([1, 1], dtype))
    try:
        assign_parameters(Module(w=variable), {"w": [number, number]})
    except ValueError:
        assert not fits
        assert variable.numpy().tolist() == [1, 1]
    else:
        assert fits
        assert variable.numpy().tolist() == [int(number)] * 2


class Failing:
    """Lets the next call of a method fail, and none after it."""

    def __init__(self, monkeypatch, variable, method, error):
        self.method = getattr(variable, method)
        self.error = error
        monkeypatch.setattr(variable, method, self)

    def __call__(self, *args, **kwargs):
        error, self.error = self.error, None
        if error:
            raise error
        return self.method(*args, **kwargs)


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_what_fails_half_way_changes_nothing(monkeypatch, error):
    target = module()
    before = copy_parameters(target)
    Failing(monkeypatch, target.w, "assign", error)
    values = {"flag": False, "half": 0.0, "w": 0.0, "z": 0.0}
    with pytest.raises(error):
        assign_parameters(target, values, strict=False)
    identical(copy_parameters(target), before)
    assert len(assign_parameters(target, values, strict=False)) == 4


def optimizers():
    keras = tf.keras.optimizers
    found = {
        "SGD": lambda: keras.SGD(0.1, momentum=0.9),
        "Adam": keras.Adam,
        "MomentumW": lambda: swa_tf.optimizers.MomentumW(
            weight_decay=0.1, learning_rate=0.1, momentum=0.9
        ),
    }
    if not compat.KERAS_3:
        found["legacy"] = keras.legacy.Adam
    if TFA:
        found["LAMB"] = TFA.optimizers.LAMB
        found["SWA"] = lambda: TFA.optimizers.SWA(
            keras.legacy.SGD(0.1, momentum=0.9), start_averaging=0
        )
    return found


@pytest.mark.parametrize("make", optimizers().values(), ids=optimizers())
def test_training_goes_on_bit_for_bit(make):
    kind = tf.keras.Variable if compat.KERAS_3 else tf.Variable
    weights = [kind([1.0, 2.0], name="a"), kind([[3.0]], name="b")]
    model = Module(weights=weights)
    optimizer = make()

    def steps(start, stop):
        for i in range(start, stop):
            gradients = [tf.fill(w.shape, 0.1 * i) for w in weights]
            optimizer.apply_gradients(zip(gradients, weights))

    steps(1, 3)
    kept = [saved_and_loaded(copy_parameters(t)) for t in (model, optimizer)]
    steps(3, 6)
    wanted = [copy_parameters(t) for t in (model, optimizer)]
    for target, values in zip((model, optimizer), kept):
        assign_parameters(target, values)
    steps(3, 6)
    for target, values in zip((model, optimizer), wanted):
        identical(copy_parameters(target), values)


# The running average.


def test_the_average_by_hand():
    target = Module(w=tf.Variable([0.0, 0.0]), n=tf.Variable(0))
    averages = {}
    for i, value in enumerate([[1.0, 8.0], [3.0, 2.0], [5.0, 2.0]]):
        target.w.assign(value)
        target.n.assign(i)
        assert average_parameters(target, averages) is None
        assert int(averages["n_models"]) == i + 1
    assert averages["w"].tolist() == [3.0, 4.0]
    assert averages["n"].tolist() == 2  # of the newest model
    assert [averages[k].dtype.name for k in ("w", "n", "n_models")] == [
        *("float32", "int32", "int64")
    ]
    assert averages["n_models"].shape == ()


@pytest.mark.parametrize("dtype", FLOATS)
def test_the_average_is_that_of_the_class_and_right(dtype):
    rng = np.random.default_rng(0)
    values = rng.normal(size=[100, 3, 2])
    target = Module(w=tf.Variable(tf.zeros([3, 2], dtype)))
    swa, averages = swa_tf.StochasticWeightAveraging(), {}
    seen = []
    for value in values:
        target.w.assign(tf.cast(value, dtype))
        seen.append(target.w.numpy().astype(np.float64))
        swa.apply([target.w])
        average_parameters(target, averages)
    held = swa.average(target.w).numpy()
    assert averages["w"].dtype == held.dtype
    assert averages["w"].tobytes() == held.tobytes()
    # Each of 100 sums of numbers below 4 is off by less than its last place.
    error = 100 * 4 * np.finfo(held.dtype).eps
    np.testing.assert_allclose(averages["w"], np.mean(seen, 0), 0, error)


@pytest.mark.parametrize("make", [network, mirrored_network])
def test_the_average_of_a_model(make):
    model = make()
    swa, averages = swa_tf.StochasticWeightAveraging(), {}
    for seed in range(4):
        values = random_like(copy_parameters(model), seed)
        assign_parameters(model, values)
        swa.apply(model.weights)
        average_parameters(model, averages)
    for name, variable in variable_names.named_variables(model).items():
        held = swa.average(variable).numpy()
        assert averages[name].tobytes() == held.tobytes(), name
    assign_parameters(model, averages)
    del averages["n_models"]
    identical(copy_parameters(model), averages)


@pytest.mark.parametrize("dtype", FLOATS)
def test_the_average_goes_on_from_a_file(dtype):
    target = Module(w=tf.Variable(tf.zeros([5], dtype)))
    rng = np.random.default_rng(0)
    through, without = {}, {}
    for _ in range(5):
        target.w.assign(tf.cast(rng.normal(size=[5]), dtype))
        average_parameters(target, without)
        average_parameters(target, through)
        through = dict(saved_and_loaded(through))
    identical(through, without)


@pytest.mark.parametrize("dtype", FLOATS)
def test_a_copy_is_one_model(dtype):
    target = Module(w=tf.Variable(tf.cast([1.0, 2.0], dtype)))
    dictionary = dict(saved_and_loaded(copy_parameters(target)))
    target.w.assign(tf.cast([2.0, 5.0], dtype))
    average_parameters(target, dictionary)
    assert int(dictionary["n_models"]) == 2
    assert dictionary["w"].tolist() == [1.5, 3.5]
    assert dictionary["w"].dtype == (
        np.float64 if dtype == "float64" else np.float32
    )


def test_an_average_of_half_precision_does_not_stand_still():
    target = Module(w=tf.Variable([1.0], dtype=tf.bfloat16))
    averages = {}
    for i in range(200):
        target.w.assign(tf.constant([1.0 + (i >= 100)], tf.bfloat16))
        average_parameters(target, averages)
    np.testing.assert_allclose(averages["w"], [1.5], 0, 1e-5)


def test_arrays_that_were_averages_stay_as_they_were():
    target = Module(w=tf.Variable([1.0]))
    averages = {}
    average_parameters(target, averages)
    first = averages["w"]
    target.w.assign([3.0])
    average_parameters(target, averages)
    assert first.tolist() == [1.0]
    assert averages["w"].tolist() == [2.0]
    averages["w"][:] = 7.0
    assert target.w.numpy().tolist() == [3.0]


def averages_of(target):
    averages = {}
    average_parameters(target, averages)
    average_parameters(target, averages)
    return averages


REFUSED_AVERAGES = {
    "missing": (lambda d: d.pop("w"), "'w' missing"),
    "unknown": (lambda d: d.update(x=1.0), "'x', which is no parameter"),
    "only a count": (lambda d: (d.pop("w"), d.pop("n")), "'n' missing; 'w' mi"),
    "shape": (lambda d: d.update(w=np.zeros([3])), r"'w' of shape \(3,\)"),
    "one number": (lambda d: d.update(w=1.0), r"'w' of shape \(\) instead"),
    "string": (lambda d: d.update(w=["a", "b"]), "'w' of dtype <U1"),
    "integer": (lambda d: d.update(n=0.5), "'n' with 0.5"),
    **{
        f"count {count!r}": (
            lambda d, count=count: d.update(n_models=count),
            "`dictionary\\['n_models'\\]` must be an integer >= 1. Received",
        )
        for count in (0, -1, 1.0, "2", [1], True, None, np.ones([1], int))
    },
}


@pytest.mark.parametrize(
    ("spoil", "message"), REFUSED_AVERAGES.values(), ids=REFUSED_AVERAGES
)
def test_refused_averages_stay_as_they_were(spoil, message):
    target = Module(w=tf.Variable([1.0, 2.0]), n=tf.Variable(3))
    averages = averages_of(target)
    spoil(averages)
    before = dict(averages)
    target.w.assign([3.0, 4.0])
    with pytest.raises(ValueError, match=message):
        average_parameters(target, averages)
    assert list(averages) == list(before)
    assert all(averages[name] is before[name] for name in before)


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_an_average_that_fails_half_way_stays_as_it_was(monkeypatch, error):
    target = Module(a=tf.Variable([1.0]), b=tf.Variable([1.0]))
    averages = averages_of(target)
    before = {name: array.copy() for name, array in averages.items()}
    target.a.assign([5.0])
    Failing(monkeypatch, target.b, "read_value", error)
    with pytest.raises(error):
        average_parameters(target, averages)
    identical(averages, before)


@pytest.mark.parametrize("dictionary", [None, [("w", 1.0)]])
def test_averages_are_a_dictionary(dictionary):
    with pytest.raises(TypeError, match="`dictionary` must be a dictionary"):
        average_parameters(Module(w=tf.Variable(1.0)), dictionary)


def test_averages_are_not_a_file():
    target = Module(w=tf.Variable(1.0))
    file = saved_and_loaded(averages_of(target))
    with pytest.raises(TypeError, match=r"is `dict\(np.load\(path\)\)`"):
        average_parameters(target, file)


# All three.

CALLS = {
    "copy_parameters": lambda target: copy_parameters(target),
    "assign_parameters": lambda target: assign_parameters(target, {"w": 2.0}),
    "average_parameters": lambda target: average_parameters(target, {}),
}


@pytest.mark.parametrize("name", CALLS)
def test_graphs_are_refused(name):
    target = Module(w=tf.Variable(1.0))
    message = f"`{name}` works in eager mode only: call it outside"
    with pytest.raises(RuntimeError, match=message):
        tf.function(lambda: CALLS[name](target), autograph=False)()
    with tf.Graph().as_default():
        in_graph = Module(w=tf.Variable(1.0))
        with pytest.raises(RuntimeError, match=message):
            CALLS[name](in_graph)


@pytest.mark.parametrize("name", CALLS)
def test_other_targets_are_refused(name):
    with pytest.raises(TypeError, match="`target` must be a Keras model"):
        CALLS[name](tf.Variable(1.0))
    with pytest.raises(ValueError, match="`target` must hold variables"):
        CALLS[name](tf.keras.layers.Dense(1))
