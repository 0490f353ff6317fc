"""compile, linearize, show: law 4, a replay has the bits of the function it replays."""

import gc
import operator
import pickle
import tracemalloc
import warnings
import weakref
from copy import deepcopy
from functools import partial, reduce
from itertools import pairwise
from threading import Thread
from types import ModuleType, SimpleNamespace

import numpy as np
import optree
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from strategies import bits

import revgrad as rg
from revgrad import blas, narrow
from revgrad.compiled import TwoPhase, compile, listing, show
from revgrad.fuse import Group
from revgrad.linear_map import linearize
from revgrad.narrow import NARROW
from revgrad.nn import softmax_cross_entropy
from revgrad.replay import Replay

# Random programs: each operation takes values made before and adds one.

UNARY = [
    operator.neg, np.tanh, np.square, np.absolute, np.transpose, np.ravel, np.exp,
    lambda x: x * 1, lambda x: x + 0, lambda x: 1 - x, lambda x: x / 3, lambda x: 2.0 * x,
    lambda x: x[::-1] if np.ndim(x) else x, lambda x: x[..., :1] if np.ndim(x) else x,
    lambda x: x[np.arange(len(x)) // 2] if np.ndim(x) else x,
    lambda x: np.reshape(np.ravel(x), np.shape(x)[::-1]), lambda x: np.where(x > 0, x, 0.5),
    lambda x: np.broadcast_to(x, (2, *np.shape(x)))[1],
    lambda x: np.sum(x, axis=-1) if np.ndim(x) else x,
    lambda x: np.sum(x, axis=0, keepdims=True) if np.ndim(x) else x, np.sum, rg.stop_gradient,
    lambda x: np.max(x, axis=-1) if np.size(x) else x, lambda x: x.astype(np.float64),
    lambda x: np.concatenate([np.ravel(x), np.ravel(x)[:1]]), np.mean,
]  # fmt: skip
BINARY = [
    operator.add, operator.sub, operator.mul, np.add, np.subtract, np.multiply,
    np.maximum, np.minimum,
    lambda x, y: x / (2 + y * y), lambda x, y: x + (-y), lambda x, y: np.where(x > y, x, y),
    lambda x, y: x @ y if np.ndim(x) and np.ndim(y) and np.shape(x)[-1] == len(y) else x,
    lambda x, y: x.T @ y if np.ndim(x) == np.ndim(y) == 2 and len(x) == len(y) else x,
    lambda x, y: np.tanh(x) * np.tanh(x) + y,
]  # fmt: skip


def fits(x, y):
    try:
        np.broadcast_shapes(np.shape(x), np.shape(y))
    except ValueError:
        return False
    return True


def program(moves, outputs):
    """A function of a few arrays that makes the given moves and returns some of what it made."""

    def f(*values):
        made = list(values)
        for kind, which, a, b in moves:
            x, y = made[a % len(made)], made[b % len(made)]
            if kind or not fits(x, y):
                made.append(UNARY[which % len(UNARY)](x))
            else:
                made.append(BINARY[which % len(BINARY)](x, y))
        return [made[k % len(made)] for k in outputs]

    return f


integers = st.integers(0, 999)
programs = st.builds(
    program,
    st.lists(st.tuples(st.booleans(), integers, integers, integers), min_size=1, max_size=12),
    st.lists(integers, min_size=1, max_size=4),
)


def inputs(n, dtype, seed):
    rng = np.random.default_rng(seed)
    wide = rng.standard_normal((2 * n, 2 * n)).astype(dtype)
    return [
        rng.standard_normal((n, n)).astype(dtype),
        wide[::2, 1::2],
        rng.standard_normal(n).astype(dtype)[::-1],
        rng.standard_normal((n, n)).astype(dtype, order="F"),
        dtype(rng.standard_normal()),
    ]


def at_once(work, count):
    """work(0), work(1), ... in as many threads."""
    threads = [Thread(target=work, args=(k,)) for k in range(count)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()


@pytest.mark.filterwarnings("ignore:.*(overflow|invalid value|divide by zero|Mean of empty).*")
@settings(deadline=None)
@given(programs, st.sampled_from([0, 1, 2, 3, 8, 17]), st.sampled_from([np.float32, np.float64]))
@example(
    program([(False, 11, 0, 0), (True, 4, 0, 0), (False, 12, 0, 0)], [5, 6, 7]), 17, np.float32
)
def test_tracing_and_replay_change_no_bit(f, n, dtype):
    compiled = compile(f)
    for seed in (0, 1):
        args = inputs(n, dtype, seed)
        kept = [x.copy() for x in args]
        assert bits(compiled(*args)) == bits(f(*args))
        assert bits(compiled(*args)) == bits(f(*args))
        assert bits(args) == bits(kept)
    aliased = [args[0], args[0], args[2], args[0], args[4]]
    assert bits(compiled(*aliased)) == bits(f(*aliased))


def total(f):
    def scalar(args):
        return sum(np.sum(np.tanh(x)) for x in f(*args)) * 1.0

    return scalar


@pytest.mark.filterwarnings("ignore:.*(overflow|invalid value|divide by zero|Mean of empty).*")
@settings(deadline=None)
@given(programs, st.sampled_from([1, 2, 5]), st.sampled_from([np.float32, np.float64]))
def test_compiled_derivatives_have_the_bits_of_eager_ones(f, n, dtype):
    scalar, args, tangents = total(f), inputs(n, dtype, 0), inputs(n, dtype, 1)
    tangents = [t.copy("C") for t in tangents[:3]] + tangents[3:]
    both = rg.value_and_grad(scalar)
    assert bits(compile(both)(args)) == bits(both(args))

    def products(args, tangents):
        return rg.hvp(scalar, (args,), (tangents,))

    assert bits(compile(products)(args, tangents)) == bits(products(args, tangents))
    assert bits(rg.jvp(compile(scalar), (args,), (tangents,))) == bits(
        rg.jvp(scalar, (args,), (tangents,))
    )
    out, linear = linearize(scalar, args)
    assert bits((out, linear(tangents))) == bits(rg.jvp(scalar, (args,), (tangents,)))
    pulled, expected = rg.grad(compile(scalar))(args), rg.grad(scalar)(args)
    for a, b in zip(pulled, expected, strict=True):  # sums of cotangents are bracketed otherwise
        np.testing.assert_allclose(a, b, rtol=1e-4 if dtype is np.float32 else 1e-11, atol=1e-5)


@pytest.mark.filterwarnings("ignore:.*(overflow|invalid value|divide by zero|Mean of empty).*")
@settings(deadline=None)
@given(programs, st.sampled_from([1, 3]))
def test_a_batch_of_tangents_maps_like_each_of_them(f, n):
    args = inputs(n, np.float64, 0)
    _, linear = linearize(f, *args)
    batch = [
        np.stack(rows) for rows in zip(*(inputs(n, np.float64, s) for s in range(3)), strict=True)
    ]
    found = linear.batch(*batch)
    for k in range(3):
        for a, b in zip(found, linear(*[x[k] for x in batch]), strict=True):
            np.testing.assert_allclose(a[k], b, rtol=1e-10, atol=1e-10)


def mlp(params, x, y):
    for w, b in params[:-1]:
        x = np.tanh(x @ w + b)
    return softmax_cross_entropy(x @ params[-1][0] + params[-1][1], y)


def mlp_arguments(dtype, sizes=(20, 8, 1, 8, 5), batch=7, seed=0):
    rng = np.random.default_rng(seed)
    params = [
        (rng.standard_normal((n, m)).astype(dtype), rng.standard_normal(m).astype(dtype))
        for n, m in pairwise(sizes)
    ]
    x = rng.standard_normal((batch, sizes[0])).astype(dtype)
    return params, x, np.eye(sizes[-1], dtype=dtype)[rng.integers(0, sizes[-1], batch)]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("batch", [1, 2, 3, 7, 64])
def test_two_phases_have_the_bits_of_the_gradient_and_of_its_products(dtype, batch):
    params, x, y = mlp_arguments(dtype, batch=batch)
    leaves, tree = optree.tree_flatten(params)

    def f(*boxes):
        def gradient(*leaves):
            return optree.tree_leaves(
                rg.grad(mlp)(optree.tree_unflatten(tree, leaves), *boxes[-2:])
            )

        g, pullback = rg.vjp(gradient, *boxes[:-2])
        return g, lambda *cts: pullback(list(cts))

    phases = TwoPhase(f, [*leaves, x, y], lambda g: g)
    for seed in (0, 1):
        params, x, y = mlp_arguments(dtype, batch=batch, seed=seed)
        leaves = optree.tree_leaves(params)
        g, then = phases.start([*leaves, x, y])
        expected, pullback = f(*leaves, x, y)
        assert bits(list(g)) == bits(expected)
        for _ in range(2):  # a second phase may run again
            assert bits(list(then(leaves))) == bits(list(pullback(*leaves)))


def test_an_overtaken_second_phase_still_belongs_to_its_own_first():
    square = compile(lambda x: np.sum(x * x * x))
    x, y = np.arange(3.0), np.ones(3)
    (_, pull_x), (_, pull_y) = rg.vjp(square, x), rg.vjp(square, y)
    assert bits(pull_x(1.0)) == bits((3 * x * x,))
    assert bits(pull_y(1.0)) == bits((3 * y * y,))
    assert bits(pull_x(1.0)) == bits((3 * x * x,))


def test_outputs_are_not_overwritten_by_the_next_call():
    f = compile(lambda x: np.tanh(x) * 2)
    first = f(np.ones(4))
    kept = first.copy()
    f(np.zeros(4))
    assert bits(first) == bits(kept)


def test_a_branch_on_a_traced_value_is_refused():
    with pytest.raises(TypeError, match=r"branch.*np\.where"):
        compile(lambda x: x if x > 0 else -x)(1.0)


def test_another_memory_order_is_another_recording():
    f = compile(lambda x: np.sum(x, axis=0))
    x = np.random.default_rng(0).standard_normal((64, 64)).astype(np.float32)
    for view in (x, x.T, np.asfortranarray(x), x[::-1], x[:, ::2]):
        assert bits(f(view)) == bits(np.sum(view, axis=0))


def test_signatures_tell_types_apart():
    f = compile(lambda x, k: x * k)
    calls = [
        (2.0, 3),
        (2.0, 3.0),
        (np.float32(2), 3.0),
        (np.float64(2), 3),
        (np.ones(2, "f4"), 3.0),
    ]
    for x, k in [*calls, (2.0, True), (np.ones(2, "f4"), np.float64(3)), (np.array(2.0), -0.0)]:
        assert bits(f(x, k)) == bits(x * k)


def test_changed_captured_values_are_seen():
    scale, table = 3.0, np.arange(3.0)
    big = np.zeros(200_000)

    @compile
    def f(x):
        return x * scale + np.sum(table * 2) + np.sum(big * 3)

    assert f(1.0) == 3.0 + 6.0
    scale = 4.0
    assert f(1.0) == 4.0 + 6.0
    table[0] = 1.0
    assert f(1.0) == 4.0 + 8.0
    table = np.ones(3)
    assert f(1.0) == 4.0 + 6.0
    big += 1
    assert f(1.0) == 4.0 + 6.0 + 600_000


def test_a_changed_inner_function_is_seen():
    def inner(x):
        return x + 1

    f = compile(lambda x: inner(x) * 2)
    assert f(1.0) == 4.0

    def inner(x):  # noqa: F811
        return x + 2

    assert f(1.0) == 6.0


def test_keyword_arguments_and_trees():
    f = compile(lambda tree, *, power: {"out": tree["x"] ** power, "none": None})
    found = f({"x": np.arange(3.0)}, power=2)
    assert found["none"] is None
    assert bits(found["out"]) == bits(np.arange(3.0) ** 2)


def test_threads_have_buffers_of_their_own():
    f = compile(lambda x: np.tanh(np.tanh(x) * 2) @ x)
    wrong = []

    def work(seed):
        x = np.random.default_rng(seed).standard_normal((40, 40))
        expected = bits(np.tanh(np.tanh(x) * 2) @ x)
        wrong.extend(seed for _ in range(200) if bits(f(x)) != expected)

    f(np.ones((40, 40)))
    at_once(work, 4)
    assert not wrong


def test_dead_code_common_subexpressions_and_exact_algebra():
    def f(x):
        np.exp(x)  # dead
        a, b = np.tanh(x), np.tanh(x)
        return np.negative(-(a * b)) + (-x)

    names = [
        line.split(" = ")[1].split("(")[0] for line in listing(f, np.ones(3)).splitlines()[1:-1]
    ]
    assert names == ["tanh", "mul", "sub"]


def test_merging_does_not_turn_two_factors_into_one():
    """A.T @ A goes another way through BLAS than A.T @ B with B equal to A."""
    x = np.random.default_rng(0).standard_normal((50, 30)).astype(np.float32)
    f = lambda x: np.tanh(x).T @ np.tanh(x)
    assert bits(compile(f)(x)) == bits(f(x))


def test_show_prints_the_program(capsys):
    show(lambda x: np.tanh(x * 2.0) + 1, np.ones(3))
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["in0", ":", "float64[3]"]
    assert lines[-1] == "return %2"


def test_linearize_records_only_the_linear_part():
    params, x, y = mlp_arguments(np.float64)
    _, linear = linearize(lambda p: rg.grad(mlp)(p, x, y), params)
    assert not any(i.primitive.name in ("tanh", "exp", "max") for i in linear.program.instructions)


def test_linearize_refuses_tangents_of_other_shapes():
    _, linear = linearize(np.sum, np.ones(3))
    with pytest.raises(TypeError, match=r"shape \(2,\).*\(3,\)"):
        linear(np.ones(2))


def test_ten_thousand_gradients_leave_memory_flat():
    params, x, y = mlp_arguments(np.float32, sizes=(4, 3, 2), batch=2)
    step = compile(rg.grad(mlp))

    def held(calls):
        for _ in range(calls):
            step(params, x, y)
        assert gc.collect() == 0  # no cycles; and CPython's lists of free objects are emptied
        return tracemalloc.get_traced_memory()[0]

    step(params, x, y)
    gc.collect()
    tracemalloc.start()
    try:
        before = held(3_000)
        assert held(10_000) - before < 50_000  # less than one number per call
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("kind", [np.uint8, np.int8, np.uint16])
def test_unsigned_integers_wrap_before_they_are_widened(kind):
    f = lambda x, y, z: (x + (-y), z + (-y), x.astype(np.float32) + (-y))
    args = np.array([1, 2], np.uint16), np.array([3, 0], kind), np.array([0.5, 1.0])
    assert bits(compile(f)(*args)) == bits(f(*args))


def test_a_copy_that_is_returned_stays_one():
    def f(x):
        y, z = -x, np.negative(x)
        return x * 1.0, -y, (x * 1)[1:], -z, np.reshape(1.0 * x, (2, -1)), x[[0, 1]], x[[0, 1]]

    x = np.arange(8.0)[::2]
    _, linear = linearize(f, x)
    for outputs in (compile(f)(x), linear(x)):
        assert [y.strides for y in outputs] == [y.strides for y in f(x)]
        assert bits(outputs) == bits(f(x))
        arrays = [x, *outputs]
        assert not any(np.shares_memory(a, b) for a in arrays for b in arrays if a is not b)
        assert len({id(a) for a in arrays}) == len(arrays)


def test_a_copy_of_another_layout_stays_where_order_matters():
    f = lambda x: (np.sum(x * 1.0), np.sum(np.negative(-x)), np.exp(1 * x) * 2)
    for x in inputs(40, np.float32, 0):
        assert bits(compile(f)(x)) == bits(f(x))


def test_constant_results_are_the_callers_own():
    weights = np.ones(3)
    constant, linear = lambda x: (np.zeros(2), weights, x * 2), lambda x: np.sum(x * weights)
    _, mapped = linearize(lambda x: {"x": x, "w": np.ones(3) + 0 * x}, weights)
    functions = compile(constant), compile(rg.grad(linear)), rg.grad(compile(linear)), mapped
    for f in functions:
        kept = bits(f(np.full(3, 2.0)))
        for x in optree.tree_leaves(f(np.full(3, 2.0))):
            x += 1
        assert bits(f(np.full(3, 2.0))) == kept
    assert weights.tolist() == [1.0, 1.0, 1.0]


def test_a_second_phase_runs_in_any_thread():
    f = compile(lambda x: np.sum(np.tanh(x) ** 3))
    points = [np.random.default_rng(k).standard_normal(50) for k in range(4)]
    pulls = [rg.vjp(f, x)[1] for x in points]
    expected = [bits(pull(1.0)) for pull in pulls]
    wrong = []

    def work(k):
        rg.vjp(f, points[-1 - k])
        for _ in range(50):
            wrong.extend(j for j, pull in enumerate(pulls) if bits(pull(1.0)) != expected[j])

    at_once(work, 4)
    assert not wrong


@pytest.mark.parametrize("mode", ["raise", "warn", "call", "ignore"])
@pytest.mark.parametrize("bad", [0.0, -1.0, 1e300, -1e300])
def test_floating_point_errors_are_those_of_numpy(mode, bad):
    """Chains run NumPy's loops without the ufuncs, which look at the processor's flags."""

    def f(x, z):
        return np.exp(z * x) / x + np.log(x) * 2.0

    def reported(f):
        said = []
        x = np.linspace(1, 2, 3000)
        x[1500] = bad
        state = np.errstate(all=mode, call=lambda *what: said.append(what))
        with state, warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            try:
                f(x, 300.0)
            except FloatingPointError as error:
                said.append(str(error))
        return said + [(w.category, str(w.message)) for w in caught]

    compiled = compile(f)
    compiled(np.linspace(1, 2, 3000), 2.0)
    assert any(isinstance(i, Group) for i in next(iter(compiled.entries.values())).fused)
    assert reported(compiled) == reported(f)
    assert mode == "ignore" or reported(f)


class Model:
    scale = 2.0

    def __init__(self, rate=1.0):
        self.rate, self.weights, self.steps = rate, np.ones(3), [1.0, {"a": None}]

    @property
    def doubled(self):
        return 2 * self.rate

    def loss(self, x):
        return np.sum(x * self.weights) * self.doubled * self.scale * self.helper() + self.steps[0]

    def helper(self):
        return SETTINGS.factor

    def __call__(self, x):
        return self.loss(x)

    @compile
    def compiled(self, x):
        return self.loss(x)


def compose(*functions):
    return lambda x: reduce(lambda y, f: f(y), functions[::-1], x)


SETTINGS = SimpleNamespace(factor=1.0, table={"k": 1.0})


def changes(model):
    """Everything that a loss may hold on to, changed one after the other."""
    yield setattr(model, "rate", 3.0)
    yield setattr(model, "weights", np.full(3, 2.0))
    yield model.weights.__setitem__(0, 7.0)
    yield model.steps.__setitem__(0, 5.0)
    yield setattr(SETTINGS, "factor", SETTINGS.factor + 1.0)
    yield setattr(Model, "scale", Model.scale + 1.0)
    yield setattr(model, "scale", 9.0)
    yield setattr(model, "helper", lambda: 4.0)


@pytest.mark.parametrize(
    "compiled_of",
    [
        lambda m: compile(m.loss),
        lambda m: compile(m),
        lambda m: compile(lambda x: m.loss(x)),
        lambda m: compile(partial(Model.loss, m)),
        lambda m: partial(compile(lambda model, x: model.loss(x)), m),
        lambda m: compile(compile(m.loss)),
        lambda m: compile(compose(compile(m.loss))),
        lambda m: m.compiled,
        lambda m: compose(operator.itemgetter(0), compile(rg.value_and_grad(m.loss))),
        lambda m: compile(rg.checkpoint(m.loss)),
    ],
)
def test_changed_objects_are_seen(compiled_of):
    model, x = Model(), np.arange(3.0)
    f = compiled_of(model)
    assert f(x) == model.loss(x)
    for _ in changes(model):
        assert f(x) == model.loss(x)
        assert f(x) == model.loss(x)


def test_changed_modules_classes_containers_and_keywords_are_seen():
    module, tree = ModuleType("settings"), {"a": 1.0, "b": [2.0, None]}
    module.k = 2.0

    def inner(x, *, scale=1.0):
        return x * scale * module.k

    def other(x, *, scale=1.0):
        return x + scale * module.k

    f = compile(lambda x: inner(x) + sum(tree[k] for k in tree if k != "b") + len(tree["b"]))
    partly = compile(partial(inner, scale=3.0))
    static = compile(lambda f, x: f(x))

    def check():
        assert f(1.0) == inner(1.0) + sum(v for k, v in tree.items() if k != "b") + len(tree["b"])
        assert partly(1.0) == inner(1.0, scale=3.0)
        assert static(inner, 1.0) == inner(1.0)

    check()
    for change in (
        lambda: setattr(module, "k", 3.0),
        lambda: tree.__setitem__("a", 5.0),
        lambda: tree.__setitem__("c", 5.0),
        lambda: tree.__setitem__("d", tree.pop("c")),
        lambda: tree["b"].append(1.0),
        lambda: inner.__kwdefaults__.__setitem__("scale", 4.0),
        lambda: setattr(inner, "__code__", other.__code__),
    ):
        change()
        check()


def test_changed_slots_are_seen():
    class Scale:
        __slots__ = ("k", "other")

        def times(self, x):
            return x * self.k

    scale = Scale()
    scale.k = 2.0
    f = compile(lambda x: scale.times(x))
    assert f(1.0) == 2.0
    scale.k = 3.0
    assert f(1.0) == 3.0


def test_a_captured_structure_without_values_is_seen():
    tree = {"bias": None}
    f = compile(lambda x: x if tree.get("bias") is None else x + 1)
    assert f(1.0) == 1.0
    tree["bias"] = False
    assert f(1.0) == 2.0


def test_a_captured_traced_value_is_seen_by_its_trace():
    def outer(y):
        return compile(lambda x: np.sum(x * y))(np.arange(3.0))

    assert rg.grad(outer)(2.0) == 3.0


IN_PLACE = {
    "a chain": lambda k, a, b, c: [a * k + b * c, b - 2 * c, c],
    "read later": lambda k, a, b, c: [b + c, a * k, a + b + c],
    "swapped": lambda k, a, b, c: [b, c, a],
    "one for all": lambda k, a, b, c: [(x := k * (a + b)), x, x],
    "of before, and constants": lambda k, a, b, c: [k + 0.0, np.ones(5), a[::-1] + np.sum(b)],
    "a product": lambda k, a, b, c: [np.outer(a, b) @ c, np.tanh(b), np.flip(c) * k],
}


@pytest.mark.parametrize("name", IN_PLACE)
def test_results_are_written_over_what_they_replace(name):
    rng, f = np.random.default_rng(0), IN_PLACE[name]
    k, *rows = rng.standard_normal((4, 5))

    def phases(k):
        return [np.exp(k)], lambda *rows: f(np.exp(k), *rows)

    parts = TwoPhase(phases, [k], lambda _: [np.ones(5)] * 3).parts
    places = [(j, j) for j in range(3)]
    replay = Replay(*parts, borrow=True, replaces=((), places))
    for _ in range(2):
        expected = f(np.exp(k), *rows)
        replay.run[0](k)
        found = [x.copy() for x in rows]
        replay.run[1](*found)
        assert bits(found) == bits([np.array(x) for x in expected])
        k, *rows = rng.standard_normal((4, 5))
    if name == "a chain":
        assert not [x for x in parts[2][1] if x in replay.owned]  # no buffer for any of them


def test_recordings_that_are_not_used_any_more_go():
    f = compile(lambda x, k: x * k)
    for k in range(1000):
        assert f(2.0, k) == 2.0 * k
    assert len(f.entries) == 64
    assert f(2.0, 999) == 1998.0
    assert len(f.entries) == 64


def test_a_static_argument_must_be_hashable():
    with pytest.raises(TypeError, match=r"holds a set.*cannot be hashed.*tuple"):
        compile(lambda x, names: x)(1.0, {"a"})
    assert compile(lambda x, dtype: x.astype(dtype))(np.ones(2), np.float32).dtype == np.float32


@pytest.mark.parametrize("stack", [(), (5,), (2, 5)])
@pytest.mark.parametrize("shape", [(3,), (3, 2), (5, 3, 2), (2, 1, 3, 2)])
@pytest.mark.parametrize("swap", [False, True])
def test_a_batch_goes_through_products_with_stacks(stack, shape, swap):
    matrix = np.random.default_rng(0).standard_normal((*stack, 4, 3))
    if swap:
        shape = (*shape[:-2], *shape[-2:][::-1])
        f = lambda x: x @ np.swapaxes(matrix, -1, -2)
    else:
        f = lambda x: matrix @ x
    if stack and len(shape) > 3 and stack[0] != 2:
        return  # they do not broadcast
    _, linear = linearize(f, np.ones(shape))
    tangents = np.random.default_rng(1).standard_normal((6, *shape))
    np.testing.assert_allclose(linear.batch(tangents), [linear(t) for t in tangents], rtol=1e-12)


def test_a_batch_needs_its_axis():
    _, linear = linearize(lambda x: x * 2, 1.0)
    with pytest.raises(TypeError, match=r"got a number.*leading axis"):
        linear.batch(2.0)
    assert linear.batch(np.array([1.0, 2.0])).tolist() == [2.0, 4.0]


def test_copies_of_maps_are_the_maps_and_pickles_are_refused():
    _, linear = linearize(np.sum, np.ones(3))
    f = compile(np.sum)
    assert deepcopy({"map": linear, "f": f}) == {"map": linear, "f": f}
    with pytest.raises(TypeError, match="linearize where the map is needed"):
        pickle.dumps(linear)


def test_large_inputs_are_not_kept_alive():
    f = compile(lambda x: np.sum(x.T, axis=0) + np.sum(np.reshape(x, (-1,))[:4]))
    for n, kept in ((4, True), (1000, False)):
        x = np.ones((n, n))
        f(x)
        alive = weakref.ref(x)
        del x
        gc.collect()
        assert (alive() is not None) == kept


@pytest.mark.parametrize(
    ("f", "words"),
    [(lambda x: x.sort(), r"np\.argsort"),
     (lambda x: x.choose([1.0]), r"np\.choose"),
     (lambda x: x.nonsense, "no attribute 'nonsense'")],
)  # fmt: skip
def test_missing_methods_say_what_to_write(f, words):
    with pytest.raises(AttributeError, match=words):
        compile(f)(np.ones(3))


@pytest.mark.parametrize("optimizer", [rg.Momentum, rg.Adam])
def test_training_is_one_call_of_a_recording(optimizer):
    x = np.random.default_rng(0).standard_normal((6, 3))

    def loss(params, hyper, batch):
        return np.mean((x[batch] @ params["w"] - 1) ** 2) + np.exp(hyper) * np.sum(params["w"] ** 2)

    def hyperloss(start, rate, penalty):
        batches = [np.array([0, 1, 5]), np.array([2, 3, 4])]
        trained, watched = rg.train(
            loss, {"w": start}, optimizer(rate), batches, steps=4, hyper=penalty,
            watch=lambda t, params: np.sum(params["w"]), return_watched=True,
        )  # fmt: skip
        return np.sum(trained["w"] ** 2) + np.sum(watched)

    both = rg.value_and_grad(hyperloss, (0, 1, 2))
    compiled, f = compile(both), compile(hyperloss)
    for rate, penalty in ((0.1, -1.0), (0.2, -2.0)):
        arguments = np.ones(3) * rate, rate, penalty
        assert bits(compiled(*arguments)) == bits(both(*arguments))
        assert f(*arguments) == hyperloss(*arguments)
        pulled = rg.value_and_grad(f, (0, 1, 2))(*arguments)
        assert bits(pulled) == bits(both(*arguments))
    assert len(compiled.entries) == len(f.entries) == 1

    def reversible(rate):
        start, adjoint = {"w": np.ones(3)}, rg.Reversible()
        batches = [np.arange(3)]
        trained = rg.train(loss, start, rg.Momentum(rate), batches, hyper=0.0, adjoint=adjoint)
        return np.sum(trained["w"])

    for second in (compile(rg.hessian(reversible)), rg.hessian(compile(reversible))):
        with pytest.raises(rg.MissingRule, match="Unrolled"):
            second(0.1)


def test_a_long_chain_uses_its_scratch_again():
    def f(x):
        y = x
        for k in range(20):
            y = np.sqrt(y * y + k) - x  # each value dies with the next
        return y

    compiled = rg.compile(f)
    x = np.linspace(1, 2, 5000)
    assert np.array_equal(compiled(x), f(x)) and np.array_equal(compiled(x + 1), f(x + 1))
    (group,) = [i for i in next(iter(compiled.entries.values())).fused if isinstance(i, Group)]
    assert len(group.members) == 80 and group.kinds.count("scratch") <= 2


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("threads", [1, 2])
def test_a_narrow_product_has_the_bits_of_the_product(dtype, threads):
    """x.T @ y with few columns is computed as (y.T @ x).T."""
    rng = np.random.default_rng(0)
    x, other = (rng.standard_normal((700, 300)).astype(dtype) for _ in range(2))
    f, compiled = (make(lambda x, y: x.T @ y) for make in (lambda f: f, rg.compile))
    with blas.pinned(1):
        for columns in (5, 6, 8, 10, 12):
            compiled(x, rng.standard_normal((700, columns)).astype(dtype))
    found = [i.primitive is NARROW for e in compiled.entries.values() for i in e.fused]
    assert sum(found) == 3
    with blas.pinned(threads):
        for columns in (6, 8, 10):
            y = rng.standard_normal((700, columns)).astype(dtype)
            assert compiled(other, y).tobytes() == f(other, y).tobytes()


def test_a_narrow_product_with_other_bits_is_left_alone(monkeypatch):
    x, y = np.random.default_rng(0).standard_normal((2, 700, 300))
    wrong = lambda self, left, right, out: np.copyto(out, np.nextafter(left @ right, 9e9))
    monkeypatch.setattr("revgrad.narrow.NarrowProduct.__call__", wrong)
    narrow._same_bits.cache_clear()
    compiled = rg.compile(lambda x, y: x.T @ y)
    assert np.array_equal(compiled(x, y[:, :10].copy()), x.T @ y[:, :10].copy())
    narrow._same_bits.cache_clear()


def test_values_that_live_on_keep_their_scratch():
    def f(x):
        parts = [x * k for k in range(2, 9)]
        total = parts[0]
        for a in parts[1:]:
            total = total + a
        return total / parts[3]  # made early, read last

    compiled = rg.compile(f)
    for x in (np.linspace(1, 2, 5000), np.linspace(-3, 4, 5000)):
        assert np.array_equal(compiled(x), f(x))


def test_recording_holds_no_more_than_samples_of_large_results():
    """Chains are tried on the first entries; views of what is not held are known all the same."""

    def f(x, b):
        for _ in range(12):
            x = np.tanh(np.sin(x) * b + x)
        return np.sum(x.T[3] * x[:, 0].sum())

    x, b = np.random.default_rng(0).standard_normal((5000, 40)), np.linspace(0.5, 1, 40)
    compiled = rg.compile(f)
    tracemalloc.start()
    try:
        assert compiled(x, b) == f(x, b)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 12 * x.nbytes  # of 48 results
    assert rg.value_and_grad(compiled)(x, b)[0] == f(x, b)
    (entry,) = compiled.entries.values()
    assert any(isinstance(i, Group) for i in entry.fused)
    np.testing.assert_array_equal(rg.grad(compiled)(x, b), rg.grad(f)(x, b))
