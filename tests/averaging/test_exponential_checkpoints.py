"""Exponential averages in checkpoints and in copies."""

import copy
import warnings

import numpy as np
import pytest
import tensorflow as tf

import swa_tf
from tests.exponential import MODES, apply_in
from tests.fitting import covering, exhaustive

EMA = swa_tf.ExponentialMovingAverage


def test_checkpoint_goes_on_bit_for_bit(tmp_path):
    values = np.random.default_rng(0).normal(size=[20, 6]).astype(np.float32)

    def run(values, path=None):
        variable = tf.Variable(tf.zeros([6]))
        ema = EMA(0.9, num_updates=tf.Variable(100))
        checkpoint = tf.train.Checkpoint(ema=ema, variable=variable)
        if path is not None:
            checkpoint.restore(path)
        for value in values:
            variable.assign(value)
            ema.apply([variable])
        return ema.average(variable).numpy(), checkpoint

    whole, _ = run(values)
    _, checkpoint = run(values[:8])
    resumed, _ = run(values[8:], checkpoint.save(str(tmp_path / "c")))
    np.testing.assert_array_equal(resumed, whole)


def test_averages_that_wait_for_their_variables_are_not_lost_in_silence(
    tmp_path,
):
    variables = [tf.Variable(float(i)) for i in range(2)]
    written = swa_tf.ExponentialMovingAverage(0.5)
    written.apply(variables)
    path = tf.train.Checkpoint(written).write(str(tmp_path / "both"))
    ema = swa_tf.ExponentialMovingAverage(0.5)
    checkpoint = tf.train.Checkpoint(ema)
    checkpoint.read(path)
    with pytest.raises(RuntimeError, match="average cannot be copied between"):
        copy.deepcopy(ema)
    ema.apply(variables[:1])
    with pytest.warns(UserWarning, match="copy lacks the averages restored"):
        copy.deepcopy(ema)
    with pytest.warns(UserWarning, match="checkpoint lacks the averages"):
        checkpoint.write(str(tmp_path / "one"))
    ema.build(variables)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        checkpoint.write(str(tmp_path / "both"))
        copied = copy.deepcopy(ema)
    assert float(copied.average(variables[1])) == 1.0


@pytest.mark.parametrize("name", ["", None, "ema"])
def test_module_with_an_average_of_any_name_is_exported(tmp_path, name):
    module = tf.Module()
    module.variable = tf.Variable(1.0)
    module.average = swa_tf.ExponentialMovingAverage(0.5, name=name)
    module.average.apply([module.variable])

    @tf.function(input_signature=[])
    def apply():
        module.average.apply([module.variable])

    module.apply = apply
    tf.saved_model.save(module, str(tmp_path / "saved"))
    again = tf.saved_model.load(str(tmp_path / "saved"))
    again.variable.assign(3.0)
    again.apply()
    assert float(again.average._averages[0]) == 2.0


@pytest.mark.parametrize("compiled", [False, True])
def test_a_variable_joins_after_a_checkpoint_that_has_it_was_replaced(
    tmp_path, compiled
):
    variables = [tf.Variable(32.0) for _ in range(3)]
    written = swa_tf.ExponentialMovingAverage(0.5)
    written.apply(variables)
    with_three = tf.train.Checkpoint(written).write(str(tmp_path / "three"))
    for variable in variables:
        variable.assign(0.0)
    ema = swa_tf.ExponentialMovingAverage(0.5)
    checkpoint = tf.train.Checkpoint(ema)
    checkpoint.read(with_three)
    ema.apply(variables[:2])
    with_two = checkpoint.write(str(tmp_path / "two"))
    checkpoint.read(with_two)

    def apply():
        ema.apply(variables[2:])

    tf.function(apply)() if compiled else apply()
    assert [float(ema.average(v)) for v in variables] == [16.0, 16.0, 0.0]


def test_checkpoint_from_before_the_first_apply(tmp_path):
    v = tf.Variable(1.0)
    ema = EMA(0.5)
    checkpoint = tf.train.Checkpoint(ema=ema)
    path = checkpoint.save(str(tmp_path / "c"))
    ema.apply([v])
    checkpoint.restore(path)
    v.assign(5.0)
    ema.apply([v])
    assert float(ema.average(v)) == 5.0


def test_checkpoint_of_a_list_that_grew(tmp_path):
    def make(n):
        return [tf.Variable(float(i), name=f"v{i}") for i in range(n)]

    first, second = make(2)
    ema = EMA(0.5)
    ema.apply([first])
    ema.apply([first, second])
    path = tf.train.Checkpoint(ema=ema).save(str(tmp_path / "c"))
    new = make(3)
    for each in new:
        each.assign(7.0)
    ema = EMA(0.5)
    tf.train.Checkpoint(ema=ema).restore(path)
    ema.apply([new[0]])
    assert float(ema.average(new[0])) == 3.5
    ema.apply(new)  # the last joins anew
    assert [float(ema.average(v)) for v in new] == [5.25, 4.0, 7.0]
    other = EMA(0.5)
    tf.train.Checkpoint(ema=other).restore(path)
    with pytest.raises(ValueError, match="in their order"):
        other.apply([second, first])


@pytest.mark.parametrize(
    ("saved", "given", "right"),
    [
        ("ab", "a", True),
        ("ab", "abc", True),
        ("ab", "xy", True),  # as many: Keras may have made the names up
        ("ab", "ax", True),
        ("aba", "ab", True),
        ("aa", "aaa", True),  # as those are that nobody named
        ("ab", "b", False),
        ("ab", "bc", True),
        ("abc", "ac", False),
        ("ab", "acb", False),
        ("ab", "cab", False),
        ("aba", "aa", False),
    ],
)
@pytest.mark.parametrize("restored", ["before", exhaustive("after")])
def test_checkpoint_of_variables_at_other_places(
    tmp_path, saved, given, right, restored
):
    def made(names):
        return [tf.Variable(float(i), name=n) for i, n in enumerate(names)]

    _check_places(tmp_path, made(saved), made(given), right, restored)


@pytest.mark.parametrize(
    ("saved", "given", "right"),
    [
        (["dense", "dense_1"], ["dense_1", "dense_2"], True),
        (["conv", "dense_1"], ["conv", "dense", "dense_1"], False),
        (["dense", "dense_1"], ["dense_1"], False),
        (["dense", "dense_1"], ["dense", "dense_2", "dense_1"], False),
        (["dense", "conv"], ["conv", "conv_1"], True),
    ],
)
def test_checkpoint_of_layers_that_keras_numbers_anew(
    tmp_path, saved, given, right
):
    def made(layers):
        return [
            tf.Variable(float(i), name=f"{layer}/kernel")
            for i, layer in enumerate(layers)
        ]

    _check_places(tmp_path, made(saved), made(given), right, "before")


def test_a_variable_joins_those_that_have_other_names_than_the_checkpoint(
    tmp_path,
):
    saved = [tf.Variable(float(i), name=f"dense_{i}") for i in range(2)]
    ema = EMA(0.5)
    ema.apply(saved)
    path = tf.train.Checkpoint(ema=ema).save(str(tmp_path / "c"))
    given = [tf.Variable(7.0, name=f"dense_{i}") for i in range(1, 4)]
    ema = EMA(0.5)
    tf.train.Checkpoint(ema=ema).restore(path)
    ema.build(given[:2])
    ema.build(given)
    assert [float(ema.average(v)) for v in given] == [0.0, 1.0, 7.0]


def test_a_checkpoint_restored_after_build_at_other_places(tmp_path):
    def made(names):
        return [tf.Variable(float(i), name=n) for i, n in enumerate(names)]

    _check_places(tmp_path, made("ab"), made("abc"), True, "after")
    _check_places(tmp_path, made("ab"), made("acb"), False, "after")


def _check_places(tmp_path, saved, given, right, restored):
    ema = EMA(0.5)
    ema.apply(saved)
    path = tf.train.Checkpoint(ema=ema).save(str(tmp_path / "c"))
    ema = EMA(0.5)
    checkpoint = tf.train.Checkpoint(ema=ema)
    steps = [lambda: ema.build(given), lambda: checkpoint.restore(path)]
    first, second = steps if restored == "after" else reversed(steps)
    first()
    if not right:
        with pytest.raises(ValueError, match="in their order"):
            second()
        return
    second()
    for average, value in zip(map(ema.average, given), range(len(saved))):
        assert float(average) == value


@pytest.mark.parametrize(
    ("mode", "moment"), covering(1, MODES, ["before", "built", "averaged"])
)
def test_a_checkpoint_knows_what_has_not_begun(tmp_path, mode, moment):
    """Restored before, after `build` and into one that has averaged."""

    def make():
        ema = EMA(0.5)
        variables = [tf.Variable(1.0, name=name) for name in "ab"]
        return ema, *variables, apply_in(ema, mode, *variables)

    ema, a, b, of_both = make()
    of_both()
    ema.reset()
    ema.apply([a])
    path = tf.train.Checkpoint(ema=ema).save(str(tmp_path / "c"))
    ema, a, b, of_both = make()
    if moment == "averaged":
        of_both()
    if moment == "built":
        ema.build([a, b])
    tf.train.Checkpoint(ema=ema).restore(path)
    if moment == "before":
        ema.build([a])
    for v in (a, b):
        v.assign(3.0)
    of_both()
    assert [float(ema.average(v)) for v in (a, b)] == [2.0, 3.0]


def _refused_by_xla(ema, variables, update):
    """A compiled update refuses a longer vector of flags, until `build`."""
    averages = [ema.average(v).numpy() for v in variables]
    with pytest.raises(tf.errors.InvalidArgumentError, match="shape"):
        update()
    assert [ema.average(v).numpy() for v in variables] == averages
    ema.build(variables)


@pytest.mark.parametrize("mode", MODES)
def test_a_checkpoint_of_fewer_variables(tmp_path, mode):
    """Averages that joined after the checkpoint was written start anew."""
    a, b = (tf.Variable(1.0, name=name) for name in "ab")
    ema = EMA(0.5)
    update = apply_in(ema, mode, a, b)
    ema.apply([a])
    checkpoint = tf.train.Checkpoint(ema=ema)
    path = checkpoint.save(str(tmp_path / "c"))
    update()
    checkpoint.restore(path)
    if mode == "xla":
        _refused_by_xla(ema, [a, b], update)
    for value, expected in ((3.0, [2.0, 3.0]), (5.0, [3.5, 4.0])):
        for v in (a, b):
            v.assign(value)
        update()
        assert [float(ema.average(v)) for v in (a, b)] == expected


@pytest.mark.parametrize("n_before", [0, 1])
def test_a_variable_joins_a_copy(n_before):
    a, b = (tf.Variable(1.0, name=name) for name in "ab")
    ema = EMA(0.5)
    if n_before:
        ema.apply([a])
    ema, a = copy.deepcopy((ema, a))
    a.assign(3.0)
    for _ in range(2):
        ema.apply([a, b])
    assert float(ema.average(a)) == (2.5 if n_before else 3.0)
    assert float(ema.average(b)) == 1.0


@pytest.mark.parametrize("mode", MODES)
def test_a_copy_whose_variables_join_begins_anew(mode):
    """A function traced before a variable joined updates it all the same."""
    a, b = (tf.Variable(1.0, name=name) for name in "ab")
    ema = EMA(0.9)
    ema.apply([a])
    ema, a = copy.deepcopy((ema, a))
    of_a = apply_in(ema, mode, a)
    of_a()
    ema.apply([a, b])
    ema.reset()
    a.assign(5.0)
    of_a()
    assert float(ema.average(a)) == 5.0


def test_a_checkpoint_of_more_variables_in_a_copy(tmp_path):
    a, b = (tf.Variable(1.0, name=name) for name in "ab")
    ema = EMA(0.5)
    ema.apply([a])
    copied, of_a = copy.deepcopy((ema, a))
    ema.apply([a, b])
    path = tf.train.Checkpoint(ema=ema).save(str(tmp_path / "c"))
    tf.train.Checkpoint(ema=copied).restore(path)
    for v in (of_a, b):
        v.assign(3.0)
    copied.apply([of_a, b])
    assert [float(copied.average(v)) for v in (of_a, b)] == [2.0, 2.0]
    assert float(ema.average(a)) == 1.0  # is another's


def test_a_copy_is_saved_with_what_has_begun(tmp_path):
    a, b = (tf.Variable(1.0, name=name) for name in "ab")
    ema = EMA(0.5)
    ema.apply([a, b])
    ema.reset()
    ema.apply([a])
    copied = copy.deepcopy(ema)
    path = tf.train.Checkpoint(ema=copied).save(str(tmp_path / "c"))
    ema = EMA(0.5)
    tf.train.Checkpoint(ema=ema).restore(path).expect_partial()
    for v in (a, b):
        v.assign(3.0)
    ema.apply([a, b])
    assert [float(ema.average(v)) for v in (a, b)] == [2.0, 3.0]


def test_what_it_is_given_is_not_in_its_checkpoints():
    ema = EMA(tf.Variable(0.5, name="decay"), tf.Variable(1, name="step"))
    v = tf.Variable(1.0, name="v")
    ema.apply([v])
    assert sorted(each.name for each in ema.variables) == [
        "ExponentialMovingAverage/begun:0",
        "ExponentialMovingAverage/n_models:0",
        "Variable:0",  # whether the averages are swapped in
        "v/ExponentialMovingAverage:0",
    ]
    assert ema.trainable_variables == ()
