"""The recorder alone, on Python floats: both modes, nesting, identity of traces, sums, memory."""

import gc
import math
import tracemalloc
from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from revgrad.errors import LeakedBox, MissingRule
from revgrad.tape import Box, Node, Primitive, Pull, Push, pull_back


# Rules of real numbers, written as a user of the recorder writes them: in primitives.
def _push_of(partials):
    def push(tangents, *, out, args, static):
        parts = [mul(t, d(*args)) for t, d in zip(tangents, partials, strict=True) if t is not None]
        return total(parts)

    return push


def _pull_of(partials):
    def pull(ct, *, wanted, out, args, static):
        return [mul(ct, partials[i](*args)) for i in wanted]

    return pull


def smooth(name, run, *partials):
    return Primitive(name, run, _push_of(partials), _pull_of(partials))


def total(parts):
    result = parts[0]
    for p in parts[1:]:
        result = add(result, p)
    return result


add = smooth("add", lambda x, y: x + y, lambda x, y: 1.0, lambda x, y: 1.0)
mul = smooth("mul", lambda x, y: x * y, lambda x, y: y, lambda x, y: x)
sin = smooth("sin", math.sin, lambda x: cos(x))
cos = smooth("cos", math.cos, lambda x: mul(-1.0, sin(x)))
exp = smooth("exp", math.exp, lambda x: exp(x))
floor = Primitive("floor", math.floor, constant=True)
swap = Primitive(
    "swap",
    lambda x, y: (y, x),
    lambda tangents, **_: tangents[::-1],
    lambda cts, *, wanted, **_: [cts[1 - i] for i in wanted],
    many=True,
)


class Number(Box):
    """A box with the one operator that pull_back itself uses."""

    __slots__ = ()

    def __add__(self, other):
        return add(self, other)

    __radd__ = __add__


def d_pull(f):
    """The derivative of a function of one number, in reverse mode."""

    def derivative(x):
        with Pull(Number) as trace:
            box = trace.input(x)
            _, node = trace.unwrap(f(box))
        (ct,) = pull_back([(node, 1.0)] if node else [], [box.node])
        return 0.0 if ct is None else ct

    return derivative


def d_push(f):
    """The derivative of a function of one number, in forward mode."""

    def derivative(x):
        with Push(Number) as trace:
            _, tangent = trace.unwrap(f(trace.input(x, 1.0)))
        return 0.0 if tangent is None else tangent

    return derivative


MODES = {"pull": d_pull, "push": d_push}
each_mode = pytest.mark.parametrize("d", MODES.values(), ids=MODES)


def f(x):
    """sin(x exp(x)) + x, whose derivatives have closed forms below."""
    return add(sin(mul(x, exp(x))), x)


def derivatives_of_f(x):
    u = x * math.exp(x)
    u1, u2, u3 = (math.exp(x) * (x + k) for k in (1, 2, 3))
    return (
        math.cos(u) * u1 + 1,
        -math.sin(u) * u1**2 + math.cos(u) * u2,
        -math.cos(u) * u1**3 - 3 * math.sin(u) * u1 * u2 + math.cos(u) * u3,
    )


@pytest.mark.parametrize("order", [1, 2, 3])
def test_any_nesting_of_modes_gives_higher_derivatives(order):
    for modes in product(MODES.values(), repeat=order):
        g = f
        for d in modes:
            g = d(g)
        for x in (-1.3, 0.0, 0.7):
            assert g(x) == pytest.approx(derivatives_of_f(x)[order - 1], rel=1e-13)


@pytest.mark.parametrize("outer", MODES)
@pytest.mark.parametrize("inner", MODES)
def test_perturbations_are_not_confused(outer, inner):
    """d/dx x (d/dy (x + y) at 1) is 1, not 2: the inner y must not catch the outer x."""
    d_outer, d_inner = MODES[outer], MODES[inner]
    assert d_outer(lambda x: mul(x, d_inner(lambda y: add(x, y))(1.0)))(1.0) == 1
    assert d_outer(lambda x: mul(x, d_inner(lambda y: mul(x, y))(1.0)))(3.0) == 6
    assert d_outer(lambda x: d_inner(lambda y: mul(x, mul(y, y)))(x))(5.0) == 20


@each_mode
def test_what_does_not_depend_on_the_argument_has_no_derivative(d):
    assert d(lambda x: 3.0)(1.0) == 0
    assert d(d(lambda x: x))(1.0) == 0
    assert d(lambda x: x)(1.0) == 1


@each_mode
def test_the_primal_is_untouched(d):
    seen = []

    def g(x):
        y = f(x)
        seen.append(y.value)
        return y

    d(g)(0.7)
    assert seen == [f(0.7)]


# Identity of traces.


@each_mode
def test_a_leaked_box_is_refused(d):
    kept = []
    d(lambda x: kept.append(x) or mul(x, x))(2.0)
    with pytest.raises(LeakedBox, match="mul met a traced value whose trace has ended"):
        mul(kept[0], 1.0)
    for other in MODES.values():
        with pytest.raises(LeakedBox):
            other(lambda x: mul(x, kept[0]))(2.0)


@pytest.mark.parametrize("outer", MODES)
@pytest.mark.parametrize("inner", MODES)
def test_a_leaked_box_is_refused_as_a_result(outer, inner):
    """The box holds a live one of the outer trace: silence would be a derivative of zero."""
    kept = []

    def g(x):
        MODES[inner](lambda y: kept.append(y) or mul(y, y))(x)
        return kept[-1]

    with pytest.raises(LeakedBox):
        MODES[outer](g)(2.0)


def test_a_trace_ends_with_an_exception_too():
    kept = []

    def g(x):
        kept.append(x)
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        d_pull(g)(1.0)
    with pytest.raises(LeakedBox):
        sin(kept[0])


def test_a_pull_back_outlives_its_trace():
    with Pull(Number) as trace:
        box = trace.input(0.7)
        node = f(box).node
    assert pull_back([(node, 1.0)], [box.node]) == [pytest.approx(derivatives_of_f(0.7)[0])]


def test_the_youngest_trace_takes_the_call():
    with Pull(Number) as old, Push(Number) as young:
        x, y = old.input(2.0), young.input(3.0, 1.0)
        for out in (mul(x, y), mul(y, x)):
            assert out.owner is young and out.value.owner is old and out.value.value == 6


# The pull-back.


def pulled(build, *values):
    """Nodes of the inputs, and build(*boxes) as (node, index) pairs."""
    with Pull(Number) as trace:
        boxes = [trace.input(v) for v in values]
        outs = build(*boxes)
    return [b.node for b in boxes], [o.node for o in outs]


def test_a_pull_back_called_twice_gives_the_same():
    inputs, (out,) = pulled(lambda x: [f(mul(x, x))], 0.3)
    first = pull_back([(out, 1.0)], inputs)
    assert pull_back([(out, 1.0)], inputs) == first
    assert pull_back([(out, 2.0)], inputs) == [2 * first[0]]


@given(st.lists(st.integers(0, 3), min_size=1, max_size=12))
def test_fan_out_accumulates(uses):
    """A value used n times gets n cotangents, through any mixture of routes."""
    routes = [lambda x: x, lambda x: mul(3.0, x), lambda x: mul(x, 2.0), lambda x: add(x, x)]
    slopes = [1, 3, 2, 2]
    inputs, (out,) = pulled(lambda x: [total([add(routes[k](x), 0.0) for k in uses])], 1.0)
    assert pull_back([(out, 1.0)], inputs) == [sum(slopes[k] for k in uses)]


def test_several_outputs_and_inputs():
    inputs, outs = pulled(lambda x, y, z: [mul(x, y), add(x, 1.0), x], 2.0, 3.0, 4.0)
    cts = [(node, ct) for node, ct in zip(outs, (1.0, 10.0, 100.0), strict=True)]
    assert pull_back(cts, inputs) == [113, 2, None]
    assert pull_back([], inputs) == [None, None, None]
    assert pull_back([(outs[0], 1.0), (outs[0], 1.0)], inputs) == [6, 4, None]


def test_a_primitive_with_several_outputs():
    inputs, outs = pulled(lambda x, y: swap(x, y), 2.0, 3.0)
    assert pull_back([(outs[0], 1.0), (outs[1], 10.0)], inputs) == [10, 1]
    assert pull_back([(outs[0], 1.0)], inputs) == [None, 1]
    inputs, (out,) = pulled(lambda x, y: [add(mul(swap(x, y)[0], 5.0), swap(x, y)[0])], 2.0, 3.0)
    assert pull_back([(out, 1.0)], inputs) == [None, 6]
    with Push(Number) as trace:
        a, b = swap(trace.input(2.0, 7.0), 3.0)
    assert (a, b.value, b.node) == (3.0, 2.0, 7.0)
    assert [d_pull(d_push(lambda x: mul(*swap(x, mul(x, x)))))(2.0)] == [12]


class Vector:
    """A list that adds in place, as arrays do; it counts how often."""

    changed = 0

    def __init__(self, entries):
        self.entries = list(entries)

    def __add__(self, other):
        return Vector(a + b for a, b in zip(self.entries, other.entries, strict=True))

    def __iadd__(self, other):
        Vector.changed += 1
        self.entries = (self + other).entries
        return self


same = Primitive(
    "same", lambda x: x, lambda ts, **_: ts[0], lambda ct, *, wanted, **_: [ct for _ in wanted]
)
both = Primitive(
    "both",
    lambda x, y: x,
    lambda ts, **_: ts[0],
    lambda ct, *, wanted, **_: [ct for _ in wanted],
)


def test_sums_in_place_never_change_an_aliased_cotangent():
    """Every rule hands on the very object it was given; the caller's must not change."""
    Vector.changed = 0
    inputs, outs = pulled(
        lambda x, y: [both(same(x), y), both(x, y), both(x, x), same(x), same(y)], "x", "y"
    )
    given = [Vector([10.0**k, 1.0]) for k in range(5)]
    x, y = pull_back([(o, c) for o, c in zip(outs, given, strict=True)], inputs)
    assert [c.entries for c in given] == [[10.0**k, 1.0] for k in range(5)]
    assert x.entries == [1 + 10 + 100 + 100 + 1000, 5] and y.entries == [10011, 3]
    assert Vector.changed > 0
    again, _ = pull_back([(o, c) for o, c in zip(outs, given, strict=True)], inputs)
    assert again.entries == x.entries and again is not x


def test_the_order_of_sums_is_that_of_the_recording_last_first():
    def keep(name):
        return Primitive(name, lambda x: x, None, lambda ct, **_: [order.append(name) or ct])

    order = []
    inputs, (out,) = pulled(lambda x: [total([keep(k)(x) for k in "abcd"])], 1.0)
    pull_back([(out, 1.0)], inputs)
    assert order == ["d", "c", "b", "a"]


def test_nodes_that_no_cotangent_reaches_are_not_pulled():
    bad = Primitive("bad", lambda x: x, None, lambda ct, **_: 1 / 0)
    nothing = Primitive("nothing", lambda x: x, None, lambda ct, *, wanted, **_: [None])
    inputs, (out, _) = pulled(lambda x: [add(x, nothing(bad(x))), bad(x)], 2.0)
    assert pull_back([(out, 1.0)], inputs) == [1]


def test_a_staged_primitive_prepares_its_pull_back_while_it_runs():
    def stage(wanted, args, static):
        seen.append((wanted, args, static))
        return args[0] ** static["n"], lambda ct: [mul(ct, static["n"] * args[0])] * len(wanted)

    seen = []
    power = Primitive("power", lambda x, *, n: x**n, stage=stage)
    inputs, (out,) = pulled(lambda x: [power(x, n=2)], 3.0)
    assert pull_back([(out, 1.0)], inputs) == [6]
    assert seen == [([0], [3.0], {"n": 2})] and power(3.0, n=2) == 9 and len(seen) == 1


# Constants, and rules that are missing.


@pytest.mark.parametrize("outer", MODES)
@pytest.mark.parametrize("inner", MODES)
def test_a_constant_primitive_stops_at_every_level(outer, inner):
    seen = []

    def g(x):
        return MODES[inner](lambda y: seen.append(floor(mul(x, y))) or mul(x, y))(x)

    assert MODES[outer](g)(2.5) == 1
    assert seen == [6] and type(seen[0]) is int


def test_a_missing_rule_names_function_and_mode():
    bare = Primitive("cube", lambda x: x**3)
    assert bare(2.0) == 8
    with pytest.raises(MissingRule, match=r"cube has no derivative rule in forward mode.*extend"):
        d_push(bare)(2.0)
    with pytest.raises(MissingRule, match=r"cube has no derivative rule in reverse mode.*extend"):
        d_pull(bare)(2.0)
    assert isinstance(MissingRule(), NotImplementedError)


def test_repr_of_a_primitive_names_it():
    assert repr(sin) == "<primitive sin>"


# Memory.


def test_a_gradient_leaves_no_garbage():
    gc.collect()
    gc.disable()
    try:
        for _ in range(1000):
            d_pull(f)(0.7)
            d_push(d_pull(f))(0.7)
        assert gc.collect() == 0
    finally:
        gc.enable()


def test_memory_is_flat():
    def traced(times):
        for _ in range(times):
            d_pull(d_pull(f))(0.7)
        gc.collect()  # empties Python's free lists too
        return tracemalloc.get_traced_memory()[0]

    tracemalloc.start()
    try:
        assert -traced(10) + traced(500) < 5_000  # under a Python object for each
    finally:
        tracemalloc.stop()


def test_a_long_chain_is_pulled_and_freed():
    def chain(x):
        for _ in range(100_000):
            x = add(x, 1.0)
        return x

    assert d_pull(chain)(0.0) == 1


def test_a_pull_back_frees_what_it_is_done_with():
    """Cotangents on the way are dropped at once: peak memory is a front, not a sum."""
    alive, peak = 0, 0

    class Counted(float):
        def __init__(self, _):
            nonlocal alive, peak
            alive += 1
            peak = max(peak, alive)

        def __del__(self):
            nonlocal alive
            alive -= 1

    step = Primitive("step", lambda x: x, None, lambda ct, **_: [Counted(ct)])

    def chain(x):
        for _ in range(50):
            x = step(x)
        return x

    d_pull(chain)(1.0)
    assert peak <= 3


def test_nodes_and_boxes_have_no_dict():
    with Pull(Number) as trace:
        box = trace.input(1.0)
    assert not hasattr(box, "__dict__") and not hasattr(Node(), "__dict__")
    assert not hasattr(trace, "__dict__")
