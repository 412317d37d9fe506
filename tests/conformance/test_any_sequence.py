"""Any sequence of what can be done with an average, against float64 numpy.

What a sequence must lead to is known from a few arrays (`Known`), which are
copied where a checkpoint is written, and put back where it is restored. After
each step all that the library holds is compared with them.
"""

import copy
import dataclasses
import os
import shutil
import tempfile

import hypothesis
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import stateful
from hypothesis import strategies as st

import swa_tf
from swa_tf.support import compat
from tests import batch_norm_model, properties


@dataclasses.dataclass
class Average:
    """The expected average of one variable.

    Attributes:
        dtype: Of the average.
        value: In float64.
        error: How far from that rounding can have brought it.
        bits: The array that it was seen to be; None if it has moved since.
        has_begun: Whether there is a model in it.
    """

    dtype: type
    value: np.ndarray
    error: np.ndarray
    bits: np.ndarray = None
    has_begun: bool = False

    @classmethod
    def of(cls, weight):
        """Equal to the weight."""
        dtype = np.float64 if weight.dtype == np.float64 else np.float32
        value = weight.astype(np.float64)
        return cls(dtype, value, np.zeros_like(value), weight.astype(dtype))

    def moved(self, weight, c):
        if c == 1:
            return Average.of(weight)
        weight = weight.astype(np.float64)
        # The sum is off by less than a unit in the last place, and so by less
        # than that of the larger. The step c * (weight - value) is rounded
        # three times, with c, by half of one each, and may be twice as large.
        unit = np.finfo(self.dtype).eps
        size = np.maximum(np.abs(weight), np.abs(self.value) + self.error)
        error = (1 - c) * self.error + unit * (1 + 3 * c) * size
        error += 4 * float(np.finfo(self.dtype).tiny)
        value = self.value + c * (weight - self.value)
        return Average(self.dtype, value, error)

    def forget(self):
        """Until the next model it may be anything, but stays what it is."""
        self.error, self.bits = np.full_like(self.error, np.inf), None

    def check(self, average):
        found = average.numpy()
        if self.bits is None:
            away = np.abs(found.astype(np.float64) - self.value)
            assert (away <= self.error).all(), (found, self.value, self.error)
            self.bits = found.astype(self.dtype)
        same_bits(found, self.bits)


@dataclasses.dataclass
class Known:
    """The expected content of a checkpoint: weights, and averages of some."""

    weights: list
    averages: list = dataclasses.field(default_factory=list)
    n_models: int = 0
    n_calls: int = 0


@dataclasses.dataclass
class Swap:
    """A block of `averaged_weights`, and what its end puts back."""

    context: object
    keep: bool
    kept: dict


def same_bits(found, known):
    found = np.asarray(found)
    assert found.dtype == known.dtype
    assert found.shape == known.shape
    assert found.tobytes() == known.tobytes(), (found, known)


class Plain:
    """Variables of random dtypes and shapes, in nested containers."""

    def __init__(self, specs):
        self.variables = [
            tf.Variable(tf.zeros(shape, dtype), name=f"v{i}")
            for i, (shape, dtype) in enumerate(specs)
        ]
        self.averaged = self.variables
        first, second, *others = [*self.variables, None, None]
        self.model = tf.Module()
        self.model.first = first
        self.model.more = {"a": [second], "b": (tf.Module(),)}
        self.model.more["b"][0].others = others

    scales = (1e-2, 1.0, 30.0)
    has_statistics = False


class Keras:
    """A model with batch normalization."""

    def __init__(self, dtypes):
        self.model = batch_norm_model.make(dtypes)
        self.variables = self.model.weights
        self.averaged = self.model.trainable_variables

    scales = (1.0,)  # no activation overflows
    has_statistics = True


subjects = st.tuples(
    st.just(Plain),
    st.lists(
        st.tuples(properties.shapes, properties.dtypes), min_size=1, max_size=5
    ),
) | st.tuples(st.just(Keras), st.tuples(properties.dtypes, properties.dtypes))
schedules = st.none() | st.builds(
    swa_tf.AveragingSchedule, st.integers(0, 3), st.integers(1, 3)
)
speeds = st.fixed_dictionaries(
    {"decay": st.sampled_from([0.0, 0.5, 0.999]) | st.floats(0.0, 0.9999)}
) | st.fixed_dictionaries({"half_life": st.floats(0.1, 1e4)})
rarely = st.sampled_from([False, False, False, True])
trained = st.lists(properties.seeds, min_size=1, max_size=7)
batch_sizes = st.lists(st.sampled_from([2, 5]), min_size=1, max_size=3)


class Equal:
    """Makes equal averages, and knows their coefficient."""

    takes_others = False
    num_updates = None

    def make(self, when):
        return swa_tf.StochasticWeightAveraging(when=when)

    def coefficient(self, n_models):
        return 1 / (n_models + 1)


class Exponential:
    """Makes exponential averages, and knows their coefficient."""

    takes_others = True

    def __init__(self, speed, num_updates, warm_up):
        self.speed, self.warm_up = speed, warm_up
        self.num_updates = None
        if num_updates is not None:
            self.num_updates = tf.Variable(num_updates, trainable=False)

    def make(self, when):
        return swa_tf.ExponentialMovingAverage(
            **self.speed,
            num_updates=self.num_updates,
            warm_up=self.warm_up,
            when=when,
        )

    def coefficient(self, n_models):
        """The decay of a call, and that of `num_updates`, are in float32."""
        one = np.float32(1)
        if "half_life" in self.speed:
            c = 1 - 2 ** (-1 / self.speed["half_life"])
        else:
            c = float(one - np.float32(self.speed["decay"]))
        if self.num_updates is not None:
            n = np.float32(self.num_updates.numpy())
            c = max(c, float(one - (one + n) / (np.float32(10) + n)))
        if self.warm_up is not None:
            c = max(c, self.warm_up / (n_models + self.warm_up))
        return c


kinds = st.builds(Equal) | st.builds(
    Exponential,
    speed=speeds,
    num_updates=st.none() | st.integers(0, 30),
    warm_up=st.none() | st.floats(1.0, 20.0),
)


class PlannedError(Exception):
    """An error raised in the block, or by the data of a refit."""


def batches(sizes, seed):
    random = np.random.default_rng(seed)
    return [
        random.normal(
            random.choice([0.0, 1.0]), 1.0, [n, batch_norm_model.N_FEATURES]
        ).astype(np.float32)
        for n in sizes
    ]


def failing(data):
    yield from data
    raise PlannedError


class Sequence(stateful.RuleBasedStateMachine):
    """One sequence: rules are what can be done, `check` what must be."""

    def __init__(self):
        super().__init__()
        self.folder = tempfile.mkdtemp()
        self.saved = []
        self.swap = None

    def teardown(self):
        if self.swap:
            self.swap.context.__exit__(None, None, None)
        shutil.rmtree(self.folder)

    @stateful.initialize(
        subject=subjects, kind=kinds, when=schedules, seed=properties.seeds
    )
    def start(self, subject, kind, when, seed):
        self.subject, self.kind, self.when = subject, kind, when
        self.begin_process()
        self.assign(seed)
        if seed % 4:  # most have averages from the start
            self.apply_all_of([seed + 1, seed + 2], range(len(self.places)))

    def begin_process(self):
        """A model and an average as a new process makes them."""
        make, specs = self.subject
        tf.keras.backend.clear_session()  # the names begin anew
        self.model = make(specs)
        self.average = self.kind.make(self.when)
        self.checkpoint = tf.train.Checkpoint(
            model=self.model.model, average=self.average
        )
        self.compiled = {}
        self.n_made = 0
        self.known = Known([v.numpy() for v in self.model.variables])
        places = {id(v): i for i, v in enumerate(self.model.variables)}
        self.places = [places[id(v)] for v in self.model.averaged]

    def assign(self, seed):
        for i, variable in enumerate(self.model.variables):
            value = properties.values(
                seed + i, variable.shape, dtype_of(variable), self.model.scales
            )
            variable.assign(value)
            self.known.weights[i] = value

    @stateful.rule(seed=properties.seeds, num_updates=st.integers(0, 2000))
    def train(self, seed, num_updates):
        self.assign(seed)
        if self.kind.num_updates is not None:
            self.kind.num_updates.assign(num_updates)

    @stateful.rule(
        seeds=trained,
        compiled=st.booleans(),
        some=st.integers(0, 63),
        anew=rarely,
    )
    def apply(self, seeds, compiled, some, anew):
        if anew:
            self.reset()
        chosen = self.some_of_the_averaged(some)
        if self.swap:
            with pytest.raises((RuntimeError, tf.errors.InvalidArgumentError)):
                self.call_apply(chosen, compiled)
            return
        self.apply_all_of(seeds, chosen, compiled)

    def apply_all_of(self, seeds, chosen, compiled=False):
        for seed in seeds:
            self.assign(seed)
            self.call_apply(chosen, compiled)
            self.know_of_shadows(chosen)
            if self.is_due():
                self.know_of_a_model(chosen)

    def some_of_the_averaged(self, some):
        """Numbers of variables; of other ones than before where that is right.

        After a reset it is all again.
        """
        n = len(self.places)
        if not self.kind.takes_others:
            return list(range(n))
        known = len(self.known.averages)
        if known == 0 or (self.n_made == 0 and self.known.n_models > 0):
            return list(range(1 + some % n))
        if self.known.n_models == 0:
            return list(range(known))
        upto = min(self.n_made + 1, n)
        return [i for i in range(upto) if some >> i & 1] or [0]

    def call_apply(self, chosen, compiled):
        variables = [self.model.averaged[i] for i in chosen]
        if not compiled:
            self.average.apply(variables)
            return
        if tuple(chosen) not in self.compiled:
            average = self.average

            @tf.function
            def step():
                average.apply(variables)

            self.compiled[tuple(chosen)] = step
        self.compiled[tuple(chosen)]()

    def know_of_shadows(self, chosen):
        """Expects averages made now to be restored, or equal to the weight."""
        self.n_made = max(self.n_made, 1 + max(chosen))
        averages = self.known.averages
        for i in range(len(averages), self.n_made):
            averages.append(Average.of(self.known.weights[self.places[i]]))

    def is_due(self):
        if self.when is None:
            return True
        index = self.known.n_calls
        self.known.n_calls += 1
        return index in range(self.when.start, index + 1, self.when.period)

    def know_of_a_model(self, chosen):
        n_models = self.known.n_models
        c = 1 if n_models == 0 else self.kind.coefficient(n_models)
        for i in chosen:
            average = self.known.averages[i]
            weight = self.known.weights[self.places[i]]
            # The first average is the weight, also of one that joins late.
            moved = average.moved(weight, c if average.has_begun else 1)
            moved.has_begun = True
            self.known.averages[i] = moved
        self.known.n_models += 1

    @stateful.rule(some=st.integers(0, 5))
    @stateful.precondition(lambda self: not self.swap)
    def build(self, some):
        chosen = range(max(self.n_made, len(self.known.averages)))
        if not self.kind.takes_others:
            chosen = range(len(self.places))
        elif not chosen:
            chosen = range(1 + some % len(self.places))
        self.average.build([self.model.averaged[i] for i in chosen])
        self.know_of_shadows(chosen)

    @stateful.rule()
    def reset(self):
        self.average.reset()
        self.known.n_models = self.known.n_calls = 0
        for average in self.known.averages:
            average.forget()

    @stateful.rule(
        as_list=rarely,
        keep=st.booleans(),
        sizes=batch_sizes | st.none(),
        seed=properties.seeds,
        fails=rarely,
    )
    def swap_in(self, as_list, keep, sizes, seed, fails):
        averaged = range(self.n_made)
        target = self.model.model
        kept = range(len(self.known.weights))
        if as_list:
            target = [self.model.averaged[i] for i in averaged or [0]]
            kept = [self.places[i] for i in averaged]
        arguments = {"keep": keep}
        refit = sizes and self.model.has_statistics and not as_list
        if refit:
            data = batches(sizes, seed)
            arguments["refit_data"] = failing(data) if fails else data
        context = swa_tf.averaged_weights(self.average, target, **arguments)
        error = None
        if self.swap or self.known.n_models == 0:
            error = RuntimeError
        elif self.n_made == 0:
            error = ValueError
        elif not all(self.known.averages[i].has_begun for i in averaged):
            error = RuntimeError
        elif refit and fails:
            error = PlannedError
        if error:
            with pytest.raises(error):
                context.__enter__()
            return
        context.__enter__()
        kept = {i: self.known.weights[i] for i in kept}
        self.swap = Swap(context, keep, kept)
        self.know_of_averages_as_weights()
        if refit:
            self.know_of_statistics(data)

    def know_of_averages_as_weights(self):
        for i in range(self.n_made):
            average = self.known.averages[i]
            average.check(self.average.average(self.model.averaged[i]))
            place = self.places[i]
            dtype = self.known.weights[place].dtype
            self.known.weights[place] = average.bits.astype(dtype)

    def know_of_statistics(self, data):
        expected = batch_norm_model.expected(
            self.model.model, [batch.astype(np.float64) for batch in data]
        )
        for variable, value, error in expected:
            found = variable.numpy()
            assert (np.abs(found - value) <= error).all(), (found, value, error)
            for i, other in enumerate(self.model.variables):
                if other is variable:
                    self.known.weights[i] = found

    @stateful.rule(fails=rarely)
    @stateful.precondition(lambda self: self.swap)
    def swap_back(self, fails):
        swap, self.swap = self.swap, None
        error = PlannedError() if fails else None
        assert not swap.context.__exit__(error and PlannedError, error, None)
        if fails or not swap.keep:
            for i, weight in swap.kept.items():
                self.known.weights[i] = weight

    @stateful.rule(compiled=st.booleans())
    def swap_by_hand(self, compiled):
        variables = [self.model.averaged[i] for i in range(self.n_made)]
        variables = variables or self.model.averaged
        weights = list(self.known.weights)
        backup = swa_tf.BackupVariables(variables)
        backup.save()

        def assign():
            swa_tf.assign_averages(self.average, variables)

        assign = tf.function(assign) if compiled else assign
        if self.n_made == 0:
            with pytest.raises(ValueError, match="must hold variables that"):
                assign()
            return
        made = self.known.averages[: self.n_made]
        begun = all(average.has_begun for average in made)
        if self.known.n_models == 0 or not begun:
            with pytest.raises((RuntimeError, tf.errors.InvalidArgumentError)):
                assign()
            return
        assign()
        self.know_of_averages_as_weights()
        self.check()
        backup.restore()
        self.known.weights = weights

    @stateful.rule(sizes=batch_sizes, seed=properties.seeds, fails=rarely)
    @stateful.precondition(lambda self: self.model.has_statistics)
    def refit(self, sizes, seed, fails):
        data = batches(sizes, seed)
        if fails:
            with pytest.raises(PlannedError):
                swa_tf.refit_batch_norm(self.model.model, failing(data))
            return
        swa_tf.refit_batch_norm(self.model.model, data)
        self.know_of_statistics(data)

    @stateful.rule()
    @stateful.precondition(lambda self: len(self.saved) < 4)
    def save(self):
        path = os.path.join(self.folder, str(len(self.saved)))
        if self.n_made == 0 and self.known.averages and self.known.n_models:
            with pytest.raises(RuntimeError, match="Call `build` first"):
                self.checkpoint.write(path)
            return
        self.checkpoint.write(path)
        known = copy.deepcopy(self.known)
        del known.averages[self.n_made :]  # those that wait are not saved
        self.saved.append((path, known, self.swap is not None))

    @stateful.rule(which=st.integers(0, 11), new_process=st.booleans())
    @stateful.precondition(lambda self: self.saved)
    def restore(self, which, new_process):
        path, known, swapped = self.saved[which % len(self.saved)]
        if self.swap:
            with pytest.raises(RuntimeError, match="cannot be restored inside"):
                self.checkpoint.read(path)
            return
        if new_process and self.can_begin_with(known):
            self.begin_process()
        if swapped:
            with pytest.raises(ValueError, match="was written inside"):
                self.checkpoint.read(path)
            return
        self.checkpoint.read(path).expect_partial()
        n = len(known.averages)
        joined_since = self.known.averages[n : self.n_made]
        self.known = copy.deepcopy(known)
        self.known.averages += joined_since

    def can_begin_with(self, known):
        """Whether to compare: exponential averages that were reset go on."""
        forgotten = known.n_models == 0 and known.averages
        return not (self.kind.takes_others and forgotten)

    @stateful.invariant()
    def check(self):
        for variable, weight in zip(self.model.variables, self.known.weights):
            same_bits(variable.numpy(), weight)
        for i, variable in enumerate(self.model.averaged):
            average = self.average.average(variable)
            if i < self.n_made:
                self.known.averages[i].check(average)
            else:
                assert average is None
        assert int(self.average.n_models) == self.known.n_models
        if self.when is not None:
            assert int(self.average.n_calls) == self.known.n_calls
        assert self.average.swapped == (self.swap is not None)


def dtype_of(variable):
    return compat.tf_variable(variable).dtype.base_dtype.name


@properties.numbers_of_cases(4, 16, 60)
def test_any_sequence(n_cases):
    stateful.run_state_machine_as_test(
        hypothesis.seed(n_cases)(Sequence),
        settings=hypothesis.settings(
            max_examples=n_cases, stateful_step_count=25
        ),
    )
