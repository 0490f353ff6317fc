"""A step is taken back to the integers, heads and words before it, or not taken at all."""

from dataclasses import dataclass
from itertools import count
from math import log2
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from training import (
    Catching,
    batches_of,
    bits,
    contents,
    hyper_of,
    loss,
    params_of,
    program_of,
    there_and_back,
)

import revgrad as rg
from revgrad import program as module
from revgrad._ext import fused
from revgrad.buffer import BignumBuffer, InformationBuffer
from revgrad.errors import BufferEmpty, FixedOverflow, NotFinite, NotReversed, RatioRefused
from revgrad.extend import define
from revgrad.testing import legal_lists, optimizer_of

BUFFERS = ("words", "bignum")
OPTIMIZERS = (rg.Momentum, rg.HeavyBall, rg.Adam)

factors = st.one_of(
    st.sampled_from([1.0, 0.9, 0.999, 0.5, 2.0**-16, 1 - 2.0**-16, 1 / 3, 0.1]),
    st.floats(2.0**-16, 1 - 2.0**-20),
    st.floats(0.5, 1, width=32).map(np.float32),
)


def curved(params, hyper, batch):
    """A loss with a gradient between -1 and 1, whatever the params."""
    return np.sum(np.cos(params + np.arange(params.size) + batch))


def with_aux(params, hyper, batch):
    return curved(params, hyper, batch), [np.sin(params[:2]), np.sum(params) * 0.1]


def program_for(optimizer, steps, size, buffer):
    start = np.linspace(-1, 1, size)
    arithmetic = rg.FixedPoint(buffer=buffer)
    aux = "aux" in optimizer.reads
    return program_of(
        with_aux if aux else curved, start, optimizer, range(steps), steps=steps, has_aux=aux,
        arithmetic=arithmetic,
    )  # fmt: skip


@pytest.mark.parametrize("make", OPTIMIZERS)
@given(st.data())
def test_retreat_undoes_advance(make, data):
    steps, size = data.draw(st.integers(0, 12)), data.draw(st.integers(1, 6))
    names = {rg.Adam: ("b1", "b2")}.get(make, ("momentum",))
    # bias corrections with decays near 1 in some steps and far from it in others overflow
    allowed = st.floats(0.1, 0.99) if make is rg.Adam else factors
    scaled = {name: data.draw(forms(steps, size, allowed)) for name in names}
    optimizer = make(learning_rate=data.draw(st.floats(-0.5, 0.5)), **scaled)
    there_and_back(program_for(optimizer, steps, size, data.draw(st.sampled_from(BUFFERS))), steps)


@st.composite
def forms(draw, steps, size, factors):
    """A factor for all, one per weight, per step, or per step and weight."""
    if draw(st.booleans()):
        return draw(factors)
    every = draw(st.integers(1, 3))
    rows = -(-steps // every)
    shape = draw(st.sampled_from([(size,), (rows,), (rows, size)]))
    count = int(np.prod(shape))
    drawn = np.array(draw(st.lists(factors, min_size=count, max_size=count)), np.float64)
    return drawn if shape == (size,) else rg.per_step(drawn.reshape(shape), every)


@given(legal_lists(), factors, factors, st.integers(1, 8), st.sampled_from(BUFFERS))
@example(
    ["Scale('v', 'a')", "Add('params', lambda v: v)", "Add('w', lambda g: g)"], 0.9, 1.0, 9, "words"
)
@example(["Scale('params', 'a')", "Add('v', lambda g: g)"], 0.999, 1.0, 9, "bignum")
def test_every_legal_program_retreats(texts, a, b, steps, buffer):
    drawn = optimizer_of(texts, a=float(a), b=float(b), c=0.7)
    there_and_back(program_for(drawn, steps, 3, buffer), steps)


def test_a_long_run_retreats_and_spends_what_scaling_destroys():
    steps, size = 400, 200
    program = program_for(rg.Momentum(0.05, 0.9), steps, size, "words")
    state, _ = program.start()
    start = contents(state)
    for t in range(steps):
        program.advance(state, t)
    spent = state.buffers["velocity"].bits / (steps * size)
    assert spent == pytest.approx(log2(10 / 9), rel=1e-3) == program.schedule.bound(steps)
    assert state.buffers["velocity"].words > size
    for t in reversed(range(steps)):
        program.retreat(state, t)
    assert contents(state) == start


@pytest.mark.parametrize("kind", ["float32", "float64", "mixed"])
def test_retreat_and_visit_give_one_linearization(kind):
    """Reversible and Stored meet the same numbers: all that a pull-back can depend on."""
    steps = 6
    program = program_of(
        loss, params_of(kind), rg.Adam(0.05), batches_of(steps, kind), hyper=hyper_of(kind)
    )
    state, _ = program.start()
    copies = []
    for t in range(steps):
        copies.append(state.copy())
        program.advance(state, t)
    for t in reversed(range(steps)):
        found = [program.retreat(state, t), program.visit(copies[t], t)]
        undone, done = ([(p.reads, p.before, p.factor) for p in x.points] for x in found)
        assert bits(undone) == bits(done)
        assert bits(found[0].leaves) == bits(found[1].leaves)
        ct = np.cos(np.arange(program.layout.size))
        assert bits(found[0].pull_gradient(ct)) == bits(found[1].pull_gradient(ct))


def test_the_bound_weighs_values_by_the_steps_they_last():
    halves_then_ones = rg.per_step(np.array([0.5, 0.5, 1.0]), every=2)
    program = program_for(rg.Momentum(0.1, halves_then_ones), 5, 2, "words")
    assert (
        program.schedule.bound(5) == 4 / 5
        and program.schedule.bound(2) == 1
        and program.schedule.bound(0) == 0
    )


@pytest.mark.parametrize(
    ("factor", "bound"), [("lambda a: a", 1), ("0.5", 1), ("lambda t: 1/t", np.nan)]
)
def test_the_bound_is_known_where_the_factor_stays_the_same(factor, bound):
    texts = [f"Scale('v', {factor})", "Add('params', lambda v: v)"]
    found = program_for(optimizer_of(texts, a=0.5), 2, 2, "words").schedule.bound(2)
    np.testing.assert_equal(found, bound)


# The start.


def test_fraction_bits_follow_the_first_gradient():
    slope = np.array([3.0, -1000.0])
    program = program_of(lambda p, h, b: np.sum(slope * p), np.ones(2), rg.Adam(0.1), range(1))
    state, (_, g) = program.start()
    found = {name: x.fraction_bits for name, x in state.variables.items()}
    # 1000 < 2**10 and 10**6 < 2**20; the headroom is 2**8
    assert found == {"params": 52, "first_moment": 63 - 8 - 10, "second_moment": 63 - 8 - 20}
    assert g.tolist() == slope.tolist()


def test_fraction_bits_are_settable_and_bounded():
    small = program_of(lambda p, h, b: 1e-9 * np.sum(p), np.ones(2), rg.Adam(0.1), range(1))
    state, _ = small.start()
    found = {name: x.fraction_bits for name, x in state.variables.items()}
    assert found == {"params": 52, "first_moment": 60, "second_moment": 70}
    arithmetic = rg.FixedPoint(fraction_bits={"params": 40, "velocity": 30})
    chosen = program_of(curved, np.ones(2), rg.Momentum(0.1), range(1), arithmetic=arithmetic)
    state, _ = chosen.start()
    assert {name: x.fraction_bits for name, x in state.variables.items()} == {
        "params": 40,
        "velocity": 30,
    }


def test_a_warm_start_has_its_place_in_the_fraction_bits():
    warm = {"velocity": np.array([1e6, 0.0])}
    program = program_of(curved, np.ones(2), rg.Momentum(0.0), range(1), state=warm)
    state, _ = program.start()
    assert state.variables["velocity"].fraction_bits == 63 - 8 - 20
    assert state.variables["velocity"].decode().tolist() == [1e6, 0.0]


@pytest.mark.parametrize("bad", [{"params": -1}, {"velocity": 121}])
def test_impossible_fraction_bits_are_refused(bad):
    with pytest.raises(ValueError, match=r"fraction_bits\['.*'\] = .*; from 0 to 120 is possible"):
        rg.FixedPoint(fraction_bits=bad)


def test_an_unknown_buffer_is_refused():
    with pytest.raises(ValueError, match=r"buffer='bits'; choose one of \['bignum', 'words'\]"):
        rg.FixedPoint(buffer="bits")


# Overflow: the step is not taken.


def steep(at, size):
    """A loss whose gradient is `size` in one entry of params["b"] at step `at`, 1 elsewhere."""
    slope = np.array([[1.0, 1.0], [size, 1.0]])

    def loss(params, _hyper, batch):
        here = slope if batch == at else np.ones((2, 2))
        return np.sum(params["a"]) + np.sum(here * params["b"])

    return loss


TWO_LEAVES = {"a": np.ones(3), "b": np.ones((2, 2))}


@pytest.mark.parametrize("buffer", BUFFERS)
@pytest.mark.parametrize(
    ("optimizer", "size", "target"),
    [
        (rg.Momentum(0.1), 1e9, "velocity"),  # the second statement: the first is taken back
        (rg.Momentum(200.0), 400.0, "params"),
        (rg.Adam(0.1), 1e3, "second_moment"),
    ],
)
def test_a_step_that_overflows_is_not_taken_and_names_step_and_leaf(
    buffer, optimizer, size, target
):
    adjoint = Catching()
    with pytest.raises(FixedOverflow) as caught:
        rg.vjp(
            lambda p: rg.train(
                steep(3, size), p, optimizer, range(6), adjoint=adjoint,
                arithmetic=rg.FixedPoint(buffer=buffer),
            ),
            TWO_LEAVES,
        )  # fmt: skip
    message = f"step 3: {target} of params['b'] left the range of its fixed point numbers, or was"
    assert str(caught.value).startswith(message)
    assert f"FixedPoint(fraction_bits={{{target!r}: ...}})" in str(caught.value)
    assert caught.value.index == 5
    program = adjoint.programs[0]
    state, _ = program.start()
    for t in range(3):
        program.advance(state, t)
    before = contents(state)
    with pytest.raises(FixedOverflow, match="step 3"):
        program.advance(state, 3)
    assert contents(state) == before
    there = [program.retreat(state, t) for t in (2, 1, 0)]
    assert len(there) == 3 and contents(state) == contents(program.start()[0])


@pytest.mark.parametrize("adjoint", [rg.Reversible(), rg.Stored(), rg.Forward()])
@pytest.mark.parametrize("at", [0, 2])
@pytest.mark.parametrize("size", [1e25, 1e200])
def test_overflow_names_step_and_leaf_where_nothing_is_kept_too(adjoint, at, size):
    expected = rf"step {at}: first_moment of params\['b'\]"
    with pytest.raises(FixedOverflow, match=expected) as caught:
        rg.train(steep(at, size), TWO_LEAVES, rg.Adam(0.1), range(4), adjoint=adjoint)
    assert caught.value.index == 5


@pytest.mark.parametrize("buffer", BUFFERS)
@pytest.mark.parametrize("optimizer", [rg.Adam(0.1), rg.HeavyBall(0.1)])
@pytest.mark.parametrize("size", [np.nan, np.inf, -np.inf])
def test_a_gradient_that_is_not_finite_is_not_taken_and_names_step_and_leaf(
    buffer, optimizer, size
):
    """A slope that only the gradient sees: the loss is as it was."""
    hidden = define(
        "hidden_slope", lambda x: x, ["linear"], [lambda ct, out, x: ct * size], register=False
    )

    def loss(params, _hyper, batch):
        b = params["b"]
        return np.sum(params["a"]) + np.sum(b) + (hidden(b[1, 0]) if batch == 3 else 0.0)

    adjoint = Catching()
    arithmetic = rg.FixedPoint(buffer=buffer)
    with pytest.raises(NotFinite) as caught:
        rg.vjp(
            lambda p: rg.train(
                loss, p, optimizer, range(6), adjoint=adjoint, arithmetic=arithmetic
            ),
            TWO_LEAVES,
        )
    start = "step 3: the gradient of the loss with respect to params['b'] is "
    assert str(caught.value).startswith(start) and caught.value.step == 3
    program = adjoint.programs[0]
    state, _ = program.start()
    for t in range(3):
        program.advance(state, t)
    before = contents(state)
    with pytest.raises(NotFinite, match="step 3"):
        program.advance(state, 3)
    assert contents(state) == before


@pytest.mark.parametrize("adjoint", [rg.Reversible(), rg.Stored(), rg.Forward()])
@pytest.mark.parametrize("at", [0, 2])
@pytest.mark.parametrize("size", [np.nan, np.inf])
def test_a_loss_that_is_not_finite_names_the_step(adjoint, at, size):
    with pytest.raises(NotFinite, match=rf"^step {at}: the loss is (nan|inf)\. Use") as caught:
        rg.train(steep(at, size), TWO_LEAVES, rg.Adam(0.1), range(4), adjoint=adjoint)
    assert caught.value.step == at


def test_a_factor_that_goes_astray_names_its_step_and_leaves_the_state():
    texts = [
        "Add('v', lambda g: g)",
        "Scale('v', lambda a, t: a * t)",
        "Add('params', lambda v: v)",
    ]
    adjoint = Catching()
    with pytest.raises(RatioRefused, match=r"^Drawn, step 2, factor of 'v': factor 1\.2"):
        rg.vjp(
            lambda p: rg.train(curved, p, optimizer_of(texts, a=0.4), range(5), adjoint=adjoint),
            np.zeros(3),
        )
    program = adjoint.programs[0]
    state, _ = program.start()
    for t in range(2):
        program.advance(state, t)
    before = contents(state)
    with pytest.raises(RatioRefused):
        program.advance(state, 2)
    assert contents(state) == before


@pytest.mark.parametrize(
    ("leaf", "bad", "came"), [("a", 2048.0, "2048"), ("b", -1e6, "-1e+06"), ("b", np.nan, "nan")]
)
def test_params_out_of_range_are_refused(leaf, bad, came):
    params = {k: x.copy() for k, x in TWO_LEAVES.items()}
    params[leaf].flat[2] = bad
    with pytest.raises(FixedOverflow) as caught:
        rg.train(steep(9, 0.0), params, rg.Momentum(0.1), range(2))
    message = f"params of params[{leaf!r}] starts at {came}, outside the range of +-2048 that 52"
    assert str(caught.value).startswith(message)
    assert "FixedPoint(fraction_bits={'params': ...})" in str(caught.value)
    fewer = rg.FixedPoint(fraction_bits={"params": 40})
    if np.isfinite(bad):
        rg.train(steep(9, 0.0), params, rg.Momentum(0.1), range(2), arithmetic=fewer)


@pytest.mark.parametrize("bad", [np.nan, np.inf, 1e30])
def test_a_warm_start_out_of_range_is_refused(bad):
    warm = {"velocity": {"a": np.zeros(3), "b": np.full((2, 2), bad)}}
    with pytest.raises(FixedOverflow, match=r"velocity of params\['b'\] starts at"):
        rg.train(steep(9, 0.0), TWO_LEAVES, rg.Momentum(0.1), range(2), state=warm)


# Planted faults: each must be caught by the laws above, or by the adjoint itself.


def with_order(order):
    """Momentum that is undone in another order, or not in full."""
    return type("Faulty", (rg.Momentum,), {"undo_order": order})(0.1, 0.9)


def law_one(optimizer=None, steps=40):
    there_and_back(program_for(optimizer or rg.Momentum(0.1, 0.9), steps, 5, "words"), steps)


def the_adjoint(optimizer=None, steps=40):
    optimizer = optimizer or rg.Momentum(0.1, 0.9)
    _, pullback = rg.vjp(
        lambda p: rg.train(curved, p, optimizer, range(steps), adjoint=rg.Reversible()), np.ones(5)
    )
    pullback(np.ones(5))


CHECKS = {
    "law 1": (law_one, (AssertionError, BufferEmpty, FixedOverflow)),
    "the adjoint": (the_adjoint, NotReversed),
}


@pytest.mark.parametrize(("check", "failure"), CHECKS.values(), ids=CHECKS)
@pytest.mark.parametrize("order", [(2, 1), (1, 0), (2, 0), (1, 2, 0), (2, 0, 1), (0, 1, 2)])
def test_a_statement_forgotten_or_undone_out_of_order_is_caught(check, failure, order):
    check(with_order((2, 1, 0)))
    with pytest.raises(failure):
        check(with_order(order))


def drop_a_head(monkeypatch, call=4):
    divide, lend, calls = InformationBuffer.divide, InformationBuffer.lend, count()

    def faulty(self, x, ratio, lo=0):
        divide(self, x, ratio, lo)
        self.heads[0] ^= next(calls) == call

    def faulty_in_passes(self, elements, popping):
        self.heads[0] ^= popping and next(calls) == call
        return lend(self, elements, popping)

    monkeypatch.setattr(InformationBuffer, "divide", faulty)
    monkeypatch.setattr(InformationBuffer, "lend", faulty_in_passes)


def drop_a_head_at_the_end(monkeypatch):
    """When all integers are back already."""
    drop_a_head(monkeypatch, call=39)


def drop_a_word(monkeypatch):
    take_back = InformationBuffer.take_back

    def faulty(self, count):
        take_back(self, count if self.words else 0)

    monkeypatch.setattr(InformationBuffer, "take_back", faulty)


def drop_a_digit(monkeypatch):
    divide = BignumBuffer.divide

    def faulty(self, x, ratio, lo=0):
        divide(self, x, ratio, lo)
        self._digits[0] >>= 1

    monkeypatch.setitem(module.BUFFERS, "words", BignumBuffer)
    monkeypatch.setattr(BignumBuffer, "divide", faulty)


@pytest.mark.parametrize(("check", "failure"), CHECKS.values(), ids=CHECKS)
@pytest.mark.parametrize("drop", [drop_a_head, drop_a_head_at_the_end, drop_a_word, drop_a_digit])
def test_a_dropped_head_word_or_digit_is_caught(check, failure, drop, monkeypatch):
    check()
    drop(monkeypatch)
    with pytest.raises(failure):
        check()


def test_statements_may_read_nothing():
    texts = ["Scale('v', lambda: 0.5)", "Add('v', lambda: 1.0)", "Add('params', lambda v: v)"]
    program = program_for(optimizer_of(texts, a=0.5), 3, 2, "words")
    there_and_back(program, 3)
    state, _ = program.start()
    for t in range(3):
        program.advance(state, t)
    np.testing.assert_allclose(state.variables["v"].decode(), 1.75, rtol=1e-15)


def test_additions_are_off_by_as_much_as_the_noise_floor_says():
    """Steps of a little less than half an ulp are all lost."""
    steps, step, report = 1000, 0.49 * 2.0**-52, rg.Report()
    linear = lambda params, _hyper, _batch: -step * np.sum(params)
    trained = rg.train(linear, np.zeros(3), rg.SGD(1.0), range(steps), report=report)
    assert trained.tolist() == [0, 0, 0]
    assert report.noise_floor["params"] == 0.5 * 2.0**-52 * steps > steps * step


def test_statements_read_the_snapped_factor():
    factor = 0.9 + 1e-7
    snapped = rg.Ratio.of(factor).value
    assert snapped != factor
    program = program_for(rg.Momentum(0.1, factor), 1, 2, "words")
    assert program.schedule.value("momentum", 0) == snapped


SLOWER = 1.0


@dataclass(frozen=True, eq=False)
class Times:
    by: float

    def __call__(self, g, learning_rate):
        return -learning_rate * g * self.by


def test_plans_are_kept_for_functions_that_read_nothing_else(monkeypatch):
    """And made anew for others: here of a global, of an object's attribute, of a callable."""
    made, plan = [], fused.Plan.__init__
    counting = lambda *args: (made.append(1), plan(*args))[1]
    monkeypatch.setattr(fused.Plan, "__init__", counting)
    box = SimpleNamespace(by=1.0)

    def descent(delta):
        @dataclass(frozen=True)
        class Descent(rg.optimizers.Optimizer):
            learning_rate: object
            statements = (rg.optimizers.Add("params", delta),)

        return Descent

    def trained(optimizer):
        f = lambda rate: np.sum(
            rg.train(lambda p, _, __: np.sum(p**2), np.ones(3), optimizer(rate), [None], steps=2)
        )
        return rg.value_and_grad(f)(0.25)

    once, half = pytest.approx((0.75, -6.0), abs=1e-9), pytest.approx((1.6875, -4.5), abs=1e-9)
    assert trained(rg.SGD) == once
    made.clear()
    assert trained(rg.SGD) == once and not made
    of_global = descent(lambda g, learning_rate: -learning_rate * g / SLOWER)
    of_box = descent(lambda g, learning_rate: -learning_rate * g * getattr(box, "by"))  # noqa: B009
    assert trained(of_global) == trained(of_box) == trained(descent(Times(1.0))) == once
    monkeypatch.setattr(f"{__name__}.SLOWER", 2.0)
    box.by = 0.5
    assert trained(of_global) == trained(of_box) == trained(descent(Times(0.5))) == half
