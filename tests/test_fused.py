"""A fused step has the bits of its statements executed one after the other, and undoes them."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from revgrad._ext import exact, fused
from revgrad.buffer import BignumBuffer, InformationBuffer
from revgrad.errors import BufferEmpty, FixedOverflow
from revgrad.fixed import FixedArray, FusedStep
from revgrad.optimizers import Adam, HeavyBall, Momentum
from revgrad.ratio import Ratio

SIZES = [1, 7, 511, 512, 1025, 70_001]


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
    "momentum": (Momentum.statements, {"learning_rate": 0.1, "momentum": 0.9}),
    "heavy ball": (HeavyBall.statements, {"learning_rate": 0.1, "momentum": 0.9}),
    "adam": (Adam.statements, {"learning_rate": 0.01, "b1": 0.9, "b2": 0.999, "eps": 1e-8, "t": 3}),
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
        state = made(Adam.statements, 3000)
        reads = LISTS["adam"][1] | {"g": np.linspace(-1, 1, 3000)}
        for _ in range(30):
            FusedStep(Adam.statements, *state).run(reads, ratios_of(state[1], 3000, True))
        seen.append(contents(*state))
        exact.instruction_set(before)
    assert all(state == seen[0] for state in seen)


@pytest.mark.parametrize("at", [0, 511, 512, 5000, 69_999])
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
    [(fused.ADD, fused.SUBTRACT), (fused.TIMES, fused.OVER), (fused.EQUAL, fused.GREATER)],
)
def test_a_planted_fault_is_caught(monkeypatch, right, wrong):
    plan = fused.Plan.__init__

    def faulty(self, *args):
        plan(self, *args)
        self.operations[self.operations[:, 0] == right, 0] = wrong

    monkeypatch.setattr(fused.Plan, "__init__", faulty)
    with pytest.raises(AssertionError):
        check_agreement(*LISTS["adam"], 600)
