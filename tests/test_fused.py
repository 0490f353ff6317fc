"""A fused step has the bits of its statements executed one after the other, and undoes them."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

import revgrad.ratio as ratio_module
from revgrad import fixed, step
from revgrad import optimizers as optimizers_module
from revgrad import statements as optimizers
from revgrad._ext import exact, fused, reference
from revgrad.buffer import BignumBuffer, InformationBuffer
from revgrad.errors import BufferEmpty, FixedOverflow
from revgrad.fixed import FixedArray, FusedStep, Segments
from revgrad.optimizers import Adam, HeavyBall, Momentum
from revgrad.ratio import Ratio

SIZES = [1, 7, 512, 1023, 1024, 2049, 70_001]


@dataclass
class Scale:
    target: str
    by: Any = None
    reads: tuple = ()


@dataclass
class Add:
    target: str
    delta: Any
    reads: tuple


ODD = (  # a list without sense, for the operations in it
    Scale("a"),
    Add("b", lambda a, g, c: np.where(np.abs(a - g) > c, np.sqrt(np.abs(a)) / (1 + c), -g),
        tuple("agc")),
    Add("a", lambda b, c, t: b * (c**t) - np.where(b == 0, c, np.where(b < 0, c, b)), tuple("bct")),
    Scale("b"),
    Add("c2", lambda c: 3 * c, ("c",)),
    Add("b", lambda a, g: g, tuple("ag")),
    Add("a", lambda g: np.square(g) / 4 - np.subtract(1.0, g) * np.negative(g), ("g",)),
)  # fmt: skip
LISTS = {
    "momentum": (Momentum(0.1).statements, {"learning_rate": 0.1, "momentum": 0.9}),
    "heavy ball": (HeavyBall(0.1).statements, {"learning_rate": 0.1, "momentum": 0.9}),
    "adam": (
        Adam(0.1).statements,
        {"learning_rate": 0.01, "b1": 0.9, "b2": 0.999, "eps": 1e-8, "t": 3},
    ),
    "odd": (ODD, {"c": 0.3, "t": 2}),
}


def made(statements, size, buffer=InformationBuffer, seed=0):
    rng = np.random.default_rng(seed)
    names = dict.fromkeys(s.target for s in statements)
    variables = {
        k: FixedArray.encode(np.abs(rng.standard_normal(size)) / 8, 50 + i)
        for i, k in enumerate(names)
    }
    return variables, {s.target: buffer(size) for s in statements if hasattr(s, "by")}


def contents(variables, buffers):
    integers = {k: x.values.tobytes() for k, x in variables.items()}
    return integers, {k: b.digest() for k, b in buffers.items()}


def ratios_of(buffers, size, many):
    rng = np.random.default_rng(5)
    make = lambda: Ratio.of(rng.uniform(0.5, 1, size)) if many else Ratio(58982, 65536)
    return {name: make() for name in buffers}


def check_agreement(statements, numbers, size, steps=4, many=False, dtype=np.float64):
    """Fused and one by one: integers, heads, words, decoded reals; and back to the start."""
    rng = np.random.default_rng(size)
    one, other = made(statements, size), made(statements, size)
    start, ratios = contents(*one), ratios_of(one[1], size, many)
    if many:
        numbers = {k: x if k == "t" else np.full(size, x) for k, x in numbers.items()}
    last = next(reversed(one[0]))
    out, wanted = np.empty(size, dtype), np.empty(size, dtype)
    step, slow = FusedStep(statements, *one), FusedStep(statements, *other)
    back = FusedStep(statements[::-1], *one, undone=True)
    inputs = [rng.standard_normal(size).astype(dtype) / 100 for _ in range(steps)]
    for g in inputs:
        reads = numbers | {"g": g}
        assert step.fused(reads, ratios) and back.fused(reads, ratios)
        step.run(reads, ratios, {last: out})
        slow._one_by_one(reads, ratios)
        assert contents(*one) == contents(*other)
        other[0][last].decode(out=wanted)
        assert out.tobytes() == wanted.tobytes()
    for g in reversed(inputs):
        back.run(numbers | {"g": g}, ratios)
    assert contents(*one) == start


@pytest.fixture(params=exact.instruction_sets())
def instruction_set(request):
    before = exact.instruction_set()
    yield exact.instruction_set(request.param)
    exact.instruction_set(before)


@pytest.mark.parametrize("name", LISTS)
@pytest.mark.parametrize("size", SIZES)
def test_fused_and_one_by_one_agree_bit_for_bit(instruction_set, name, size):
    check_agreement(*LISTS[name], size)


@pytest.mark.parametrize("name", LISTS)
def test_they_agree_with_hyperparameters_per_element_and_float32(instruction_set, name):
    statements, numbers = LISTS[name]
    if name != "odd":  # its c ** t is no operation of blocks
        check_agreement(statements, {k: v for k, v in numbers.items() if k != "t"} | (
            {"t": 1} if name == "adam" else {}), 1025, many=name != "adam")  # fmt: skip
    check_agreement(statements, numbers, 1025, dtype=np.float32)


def test_instruction_sets_leave_the_same_bits():
    seen = []
    for name in exact.instruction_sets():
        before = exact.instruction_set()
        exact.instruction_set(name)
        state = made(Adam(0.1).statements, 3000)
        reads = LISTS["adam"][1] | {"g": np.linspace(-1, 1, 3000)}
        for _ in range(30):
            FusedStep(Adam(0.1).statements, *state).run(reads, ratios_of(state[1], 3000, True))
        seen.append(contents(*state))
        exact.instruction_set(before)
    assert all(state == seen[0] for state in seen)


@pytest.mark.parametrize("at", [0, 511, 1023, 1024, 5000, 69_999])
@pytest.mark.parametrize("bad", [np.nan, np.inf, 1e30])
def test_a_refusal_changes_nothing_and_names_the_element(instruction_set, at, bad):
    statements, numbers = LISTS["momentum"]
    state, g = made(statements, 70_000), np.zeros(70_000)
    step, ratios = FusedStep(statements, *state), ratios_of(state[1], 70_000, False)
    step.run(numbers | {"g": g}, ratios)
    before = contents(*state)
    g[at] = bad
    with pytest.raises(FixedOverflow, match=f"element {at}:") as caught:
        step.run(numbers | {"g": g}, ratios)
    assert caught.value.index == at and contents(*state) == before
    back = FusedStep(statements[::-1], *state, undone=True)
    with pytest.raises(FixedOverflow):
        back.run(numbers | {"g": g}, ratios)
    assert contents(*state) == before


def test_an_undo_too_many_is_refused_and_changes_nothing(instruction_set):
    statements, numbers = LISTS["momentum"]
    state, ratios = made(statements, 3000), {"velocity": Ratio(1, 65536)}
    back = FusedStep(statements[::-1], *state, undone=True)
    before = contents(*state)
    with pytest.raises((BufferEmpty, FixedOverflow)):
        for _ in range(3):
            back.run(numbers | {"g": np.zeros(3000)}, ratios)
            before = contents(*state)
    assert contents(*state) == before


NOT_FUSIBLE = {
    "a function without a block": (Add("a", lambda g: np.tanh(g), ("g",)),),
    "a comparison without a block": (Add("a", lambda g: np.where(g != 0, 1.0, g), ("g",)),),
    "a sum of truths": (Add("a", lambda g: 1.0 * ((g > 0) + (g > 0.5)), ("g",)),),
    "truths as numbers": (Add("a", lambda g: 2.0 * (g > 0), ("g",)),),
    "a decision": (Add("a", lambda c: 1.0 if c > 0 else 0.0, ("c",)),),
    "one variable scaled twice": (Scale("a"), Scale("a")),
    "an array from elsewhere": (Add("a", lambda g: g * np.arange(9.0), ("g",)),),
    "a sum": (Add("a", lambda g: g - np.sum(g), ("g",)),),
}


@pytest.mark.parametrize("name", NOT_FUSIBLE)
def test_what_blocks_cannot_do_runs_one_by_one(name):
    statements = NOT_FUSIBLE[name]
    one, other = made(statements, 9), made(statements, 9)
    reads, ratios = {"g": np.linspace(0, 1, 9), "c": 1.0}, {"a": Ratio(9, 10)}
    step = FusedStep(statements, *one)
    assert not step.fused(reads, ratios if one[1] else {})
    step.run(reads, ratios)
    FusedStep(statements, *other)._one_by_one(reads, ratios)
    assert contents(*one) == contents(*other)


def test_bignums_and_nothing_at_all_run_one_by_one():
    statements, numbers = LISTS["momentum"]
    for state in (made(statements, 5, BignumBuffer), made(statements, 0)):
        g, before = np.zeros(len(state[0]["params"].values)), contents(*state)
        step, ratios = FusedStep(statements, *state), {"velocity": Ratio(9, 10)}
        assert not step.fused(numbers | {"g": g}, ratios)
        step.run(numbers | {"g": g}, ratios)
        FusedStep(statements[::-1], *state, undone=True).run(numbers | {"g": g}, ratios)
        assert contents(*state) == before


@pytest.mark.parametrize(
    ("right", "wrong"),
    [(fused.ADD, fused.SUBTRACT), (fused.TIMES, fused.OVER), (fused.ROOT, fused.NEGATE)],
)
def test_a_planted_fault_is_caught(monkeypatch, right, wrong):
    plan = fused.Plan.__init__

    def faulty(self, *args):
        plan(self, *args)
        self.operations[self.operations[:, 0] == right, 0] = wrong

    monkeypatch.setattr(fused.Plan, "__init__", faulty)
    with pytest.raises(AssertionError):
        check_agreement(*LISTS["adam"], 600)


# Pulling back.


def pull(function, reads, ct):
    return step.pull_function(function, step.Point(None, reads), ct)


CLIPPED = (
    optimizers.Scale("velocity", by=lambda decay, c: 1 - decay * c),
    optimizers.Add("velocity", lambda g, c: np.where(g > c, c, np.where(g < -c, -c, g)) * 0.5),
    optimizers.Add("other", lambda velocity: np.abs(velocity) * np.sqrt(1 + velocity * velocity)),
    optimizers.Add("params", lambda velocity, other, c: (c * velocity - 1) / (2 - other) - c),
)  # fmt: skip
PULLED = LISTS | {
    "adam": (Adam(0.1).statements, LISTS["adam"][1]),
    "clipped": (CLIPPED, {"c": 0.01, "decay": 0.3}),
}
del PULLED["odd"]
ENDS = [3, 3, 1300, 1301, 2700]
CASES = [
    (name, kind)
    for name in PULLED
    for kind in ("number", "segments", "vector")
    if (name, kind) != ("adam", "vector")  # b1**t is no operation of blocks
]


class Case:
    """One step of an optimizer, with cotangents at its end."""

    def __init__(self, name, kind, dtype=np.float64, ends=ENDS):
        self.statements, numbers = PULLED[name]
        size, self.ends = ends[-1], ends
        rng = np.random.default_rng(1)
        self.variables, self.buffers = made(self.statements, size)
        self.order = self.statements[::-1]
        self.scaled = {s.target: s for s in self.statements if hasattr(s, "by")}
        self.reads = {k: x if k == "t" else self.spread(x, kind) for k, x in numbers.items()}
        self.ratios = {k: self.spread(Ratio(9, 10), kind) for k in self.scaled}
        self.reads["g"] = (rng.standard_normal(size) / 100).astype(dtype)
        self.cts = {k: rng.standard_normal(size) for k in self.variables}

    def spread(self, x, kind):
        count = {"number": 0, "segments": len(self.ends), "vector": self.ends[-1]}[kind]
        if not count:
            return x
        change = np.arange(count) % 3
        if isinstance(x, Ratio):
            many = Ratio(np.full(count, 9), 10 + change)
        else:
            many = x * (1 - change / 16)
        return Segments(many) if kind == "segments" else many

    def step(self, **options):
        options = {"segments": self.ends, "pull": pull} | options
        return FusedStep(self.statements, self.variables, self.buffers, **options)

    def back(self, **options):
        options = {"segments": self.ends, "pull": pull, "undone": True} | options
        return FusedStep(self.order, self.variables, self.buffers, **options)

    def run(self, step, **options):
        """Bytes of what is found, and of the cotangents after."""
        cts = {k: x.copy() for k, x in self.cts.items()}
        found = step.run(self.reads, self.ratios, {}, cts, **options)
        return {k: np.asarray(x).tobytes() for k, x in (found | cts).items()}

    def by_the_tape(self):
        """(found, cotangents) as NumPy and the tape have them, hyperparameters per element."""
        reads, ratios = self.step()._spread(self.reads, self.ratios)
        size = self.ends[-1]
        reads = {k: x if k == "t" else np.broadcast_to(x, size) * 1.0 for k, x in reads.items()}
        points, cts, found = [], {k: x.copy() for k, x in self.cts.items()}, {}
        for s in self.statements:
            now = {k: self.variables[k].decode() if k in cts else reads[k] for k in s.reads}
            point = step.Point(s, now)
            target = self.variables[s.target]
            if s.target in self.scaled and hasattr(s, "by"):
                point.before = target.decode()
                point.factor = np.broadcast_to(ratios[s.target].value, size)
                target.scale(ratios[s.target], self.buffers[s.target])
            else:
                target.add(s.delta(**now))
            points.append(point)
        for point in points[::-1]:
            scales = hasattr(point.statement, "by")
            for k, ct in (step.pull_scale if scales else step.pull_add)(point, cts):
                where = cts if k in cts else found
                where[k] = where[k] + ct if k in where else ct
        return found, cts


@pytest.mark.parametrize(("name", "kind"), CASES)
def test_the_pull_back_is_the_tapes(instruction_set, name, kind):
    case = Case(name, kind)
    step = case.step()
    assert step.fused(case.reads, case.ratios)
    cts = {k: x.copy() for k, x in case.cts.items()}
    before = contents(case.variables, case.buffers)
    found = step.run(case.reads, case.ratios, {}, cts)
    after = contents(case.variables, case.buffers)
    case.back(pull=None).run(case.reads, case.ratios)
    assert contents(case.variables, case.buffers) == before
    wanted, wanted_cts = case.by_the_tape()
    assert contents(case.variables, case.buffers) == after
    for k, ct in wanted_cts.items():
        assert np.array_equal(cts[k], ct)
    assert found.keys() == wanted.keys()
    for k, ct in wanted.items():
        if kind == "number" and k != "g":
            ct = ct.sum()
        elif kind == "segments" and k != "g":
            ct = [part.sum() for part in np.split(ct, ENDS[:-1])]
        scale = np.max(np.abs(ct)) + np.sqrt(case.ends[-1])
        np.testing.assert_allclose(found[k], ct, atol=1e-13 * scale, rtol=1e-12)
        assert np.shape(found[k]) == np.shape(ct)


@pytest.mark.parametrize(("name", "kind"), CASES)
def test_pull_back_after_a_step_after_its_undo_and_in_two_parts_is_one(instruction_set, name, kind):
    case = Case(name, kind, np.float32)
    out = lambda: {"g": np.empty(case.ends[-1], np.float32)}
    start = contents(case.variables, case.buffers)
    ahead = case.run(case.step(), into=out())
    end = contents(case.variables, case.buffers)
    behind = case.run(case.back(), into=out())
    assert behind == ahead and contents(case.variables, case.buffers) == start
    case.run(case.step())
    assert contents(case.variables, case.buffers) == end
    first = FusedStep(case.order[:1], case.variables, case.buffers, undone=True, segments=case.ends)
    reads = {k: x for k, x in case.reads.items() if k in case.order[0].reads}
    ratios = {k: x for k, x in case.ratios.items() if k in [s.target for s in case.order[:1]]}
    first.run(reads, ratios)
    rest = FusedStep(case.order[1:], case.variables, case.buffers, undone=True,
                     segments=case.ends, pulled=case.order, pull=pull)  # fmt: skip
    assert case.run(rest, into=out()) == ahead
    assert contents(case.variables, case.buffers) == start


@pytest.mark.parametrize(("name", "kind"), CASES)
def test_pull_backs_of_all_twins_agree_bit_for_bit(monkeypatch, name, kind):
    seen, before = [], exact.instruction_set()
    for twin in (*exact.instruction_sets(), None):
        if twin is None:
            monkeypatch.setattr(fixed, "kernel", reference)
            monkeypatch.setattr(ratio_module, "kernel", reference)
        else:
            exact.instruction_set(twin)
        case = Case(name, kind, np.float32)
        seen.append([case.run(case.step()), contents(case.variables, case.buffers)])
        seen[-1] += [case.run(case.back()), contents(case.variables, case.buffers)]
        exact.instruction_set(before)
    assert all(one == seen[0] for one in seen)


@pytest.mark.parametrize("size", [1, 7, 31, 32, 33, 1023, 1024, 1025, 2500])
def test_sums_are_those_of_the_specification(instruction_set, size):
    rng = np.random.default_rng(size)
    terms = rng.standard_normal(size) * np.exp(rng.uniform(-30, 30, size))
    statements = (optimizers.Add("a", lambda c: c),)
    variables = {"a": FixedArray.encode(np.zeros(size), 52)}
    found = FusedStep(statements, variables, {}, pull=pull).run(
        {"c": 0.5}, cotangents={"a": terms.copy()}
    )
    wanted = 0.0
    for lo in range(0, size, exact.FUSED_ELEMENTS):
        wanted += reference.block_sum(terms[lo : lo + exact.FUSED_ELEMENTS])
    assert found["c"] == wanted


@pytest.mark.parametrize("name", LISTS)
def test_segments_are_the_vectors_they_stand_for(instruction_set, name):
    statements, numbers = LISTS[name]
    ends = [600, 600, 601, 1025]
    rates = {k: x if k == "t" else Segments(x * np.array([1, 2, 0.5, 3]) / 4)
             for k, x in numbers.items()}  # fmt: skip
    one, other = made(statements, 1025), made(statements, 1025)
    ratio = Segments(Ratio(np.array([9, 1, 65535, 99991]), np.array([10, 3, 65536, 100_000])))
    ratios = dict.fromkeys(one[1], ratio)
    step = FusedStep(statements, *one, segments=ends)
    reads = rates | {"g": np.linspace(-1, 1, 1025)}
    assert step.fused(reads, ratios)
    start = contents(*one)
    step.run(reads, ratios)
    FusedStep(statements, *other)._one_by_one(*step._spread(reads, ratios))
    assert contents(*one) == contents(*other)
    FusedStep(statements[::-1], *one, undone=True, segments=ends).run(reads, ratios)
    assert contents(*one) == start
    # a refusal in the last segment leaves all as it was, named as it is
    bad = reads | {"g": np.where(np.arange(1025) == 1000, np.nan, 0.0)}
    with pytest.raises(FixedOverflow, match="element 1000:"):
        step.run(bad, ratios)
    assert contents(*one) == start


@pytest.mark.parametrize("ends", [[], [3], [5, 4, 9], [10], [-1, 9], [[9]]])
def test_segments_that_do_not_end_at_the_end_are_refused(ends):
    with pytest.raises(ValueError, match="ascending ends up to 9"):
        FusedStep(Momentum.statements, *made(Momentum.statements, 9), segments=ends)


def test_too_few_values_for_the_segments_are_refused():
    case = Case("momentum", "segments")
    reads = case.reads | {"learning_rate": Segments(np.ones(4))}
    with pytest.raises(ValueError, match="one per segment"):
        case.step().run(reads, case.ratios, {}, case.cts)
    with pytest.raises(ValueError, match="one per segment"):
        ratios = {"velocity": Segments(Ratio(np.array([1, 2]), np.array([3, 3])))}
        case.step().run(case.reads, ratios, {}, case.cts)


def test_only_what_is_wanted_is_found():
    case = Case("adam", "number")
    found = case.step(wanted=["b1", "eps", "nothing"]).run(
        case.reads, case.ratios, {}, {k: x.copy() for k, x in case.cts.items()}
    )
    again = Case("adam", "number")
    all_of_it = again.step().run(again.reads, again.ratios, {}, again.cts)
    assert found == {k: all_of_it[k] for k in ("b1", "eps")}


@pytest.mark.parametrize("name", NOT_FUSIBLE)
def test_a_pull_back_that_blocks_cannot_do_is_refused_with_nothing_changed(name):
    statements = NOT_FUSIBLE[name]
    state = made(statements, 9)
    before = contents(*state)
    reads, ratios = {"g": np.linspace(0, 1, 9), "c": 1.0}, {"a": Ratio(9, 10)}
    step = FusedStep(statements, *state, pull=pull)
    assert not step.fused(reads, ratios if state[1] else {})
    with pytest.raises(fused.NotFusible, match="what blocks cannot"):
        step.run(reads, ratios, {}, {"a": np.zeros(9)})
    assert contents(*state) == before


def test_functions_without_a_fusible_derivative_are_refused():
    for delta in (lambda g: np.sqrt(g) * g.shape[0], lambda g: np.exp(g), lambda g: g / g.size):
        step = FusedStep((optimizers.Add("a", delta),), {"a": FixedArray.encode([0.0], 52)}, {},
                         pull=pull)  # fmt: skip
        assert not step.fused({"g": np.ones(1)})


@pytest.mark.parametrize(
    ("right", "wrong"), [(fused.TIMES, fused.PLUS), (fused.PLUS, fused.MINUS), (fused.SUM, None)]
)
def test_a_planted_fault_in_the_pull_back_is_caught(monkeypatch, right, wrong):
    plan = fused.Plan.__init__

    def faulty(self, *args):
        plan(self, *args)
        if wrong is None:
            self.operations[self.operations[:, 0] == right, 3] = -1
        else:
            self.operations[self.operations[:, 0] == right, 0] = wrong

    monkeypatch.setattr(fused.Plan, "__init__", faulty)
    with pytest.raises(AssertionError):
        test_the_pull_back_is_the_tapes(None, "momentum", "number")


def test_what_a_step_was_told_before_is_not_taken_for_what_it_is_told_now(instruction_set):
    """Numbers, arrays and ratios that change between calls, and arrays that change inside."""
    statements, numbers = LISTS["adam"]
    one, other = made(statements, 700), made(statements, 700)
    step, slow = FusedStep(statements, *one), FusedStep(statements, *other)
    rates = np.array([0.5])
    g = np.linspace(-1, 1, 700)
    for t in (1, 2, 2):
        for change in (numbers, {"eps": 0.0}, {"eps": -0.0}, {"b1": np.float64(0.5)}, {"eps": 1}):
            reads = numbers | change | {"t": t, "g": g, "learning_rate": rates[0]}
            ratios = {name: Ratio(9, 10 + t) for name in one[1]}
            step.run(reads, ratios)
            slow._one_by_one(reads, ratios)
            assert contents(*one) == contents(*other)
            g[:] *= 0.9
            rates *= 0.9


@pytest.mark.parametrize(
    "number", [0.0, -0.0, 1.0, 2.0**-1022, 5e-324, 2.0**-950, 1e300, -1e308, np.inf, np.nan]
)
@pytest.mark.parametrize("bits", [0, 1, 52, 62])
def test_sums_take_numbers_of_every_size(instruction_set, number, bits):
    """The ulp and the number are one factor where that rounds nothing: it must not show."""
    specials = np.array([0.0, -0.0, 1.0, -0.3, 5e-324, 1e-310, 2.0**40, 1e308, -1e308])
    reals = np.resize(specials, 40)
    statements = (
        Add("a", lambda g, c: g * c, ("g", "c")),
        Add("b", lambda a, c: c * a, ("a", "c")),
        Add("b", lambda a, g: a * g, ("a", "g")),
        Add("b", lambda a, g: g / a, ("a", "g")),
    )
    for s in statements:
        for g in (reals, reals[:4].repeat(10), np.zeros(40)):
            states = [
                {"a": FixedArray(np.arange(-20, 20) * 2**40, bits),
                 "b": FixedArray(np.zeros(40, np.int64), 62 - bits)} for _ in range(2)
            ]  # fmt: skip
            raised = []
            for state, fast in zip(states, (True, False), strict=True):
                step = FusedStep((s,), state, {})
                try:
                    with np.errstate(all="ignore"):
                        reads = {"g": g, "c": number}
                        step.run(reads) if fast else step._one_by_one(reads, {})
                    raised.append(None)
                except FixedOverflow as error:
                    raised.append(error.index)
            assert raised[0] == raised[1]
            assert contents(states[0], {}) == contents(states[1], {})


def root_by_where(x):
    """As one writes it whose derivative at 0 shall be 0."""
    dark = x == 0
    return np.where(dark, 0.0, np.sqrt(np.where(dark, 1.0, x)))


@pytest.mark.parametrize(
    ("root", "operation"),
    [(root_by_where, fused.SAFE_ROOT), (optimizers_module.root, fused.ROOT)],
)
def test_a_root_that_is_safe_at_zero_is_one_operation(instruction_set, root, operation):
    statements = (Add("a", lambda g: root(g) - 1, ("g",)), Add("a", lambda g: root(g), ("g",)))
    for s in statements:
        one, other = (({"a": FixedArray.encode(np.zeros(9), 52)}, {}) for _ in range(2))
        g = np.array([0.0, -0.0, 1.0, 2.0, 5e-324, 0.3, 100.0, 1e-30, 4.0])
        step = FusedStep((s,), *one)
        assert step.fused({"g": g})
        assert operation in step._bound({"g": g}, {}, {}).plan.operations[:, 0]
        step.run({"g": g})
        FusedStep((s,), *other)._one_by_one({"g": g}, {})
        assert contents(*one) == contents(*other)
    near = fused.Plan((Add("a", lambda g: np.where(g == 0, 1.0, np.sqrt(g)), ("g",)),), ["a"], [],
                      {"g": fused.DOUBLES}, {}, False)  # fmt: skip
    assert fused.SAFE_ROOT not in near.operations[:, 0]
