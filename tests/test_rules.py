"""Every row of the rule table: its bits, both of its modes, its second order, its array type.

A function is tested by being registered: the first test below fails until it has a sample.
"""

import operator
import warnings
from functools import partial

import numpy as np
import optree
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from samples import CONSTANT as FIRST_CONSTANT
from samples import FACTS, samples
from samples_linalg import LINALG_CONSTANT
from samples_more import EVEN_MORE_CONSTANT
from samples_numpy import MORE_CONSTANT
from samples_special import SHAPES  # noqa: F401  (imported for its samples)
from strategies import (
    LAYOUTS,
    broadcasting,
    dtypes,
    laid_out_arrays,
    lay_out,
    layouts,
    random_array,
    shapes,
)

from revgrad import grad, hessian, jvp, vjp
from revgrad.arrays import ArrayBox, functions
from revgrad.compiled import compile
from revgrad.errors import MissingRule
from revgrad.tape import Box, Primitive, Pull
from revgrad.testing import ForeignArray, check_duality, check_grads

CONSTANT = FIRST_CONSTANT | MORE_CONSTANT | EVEN_MORE_CONSTANT | LINALG_CONSTANT


def _is_constant(handler):
    return isinstance(handler, Primitive) and handler.constant


def _same(got, expected):
    """Equal in type, dtype, shape, order in memory and bits."""
    got, expected = optree.tree_flatten(got), optree.tree_flatten(expected)
    assert got[1] == expected[1]
    for x, y in zip(got[0], expected[0], strict=True):
        assert type(x) is type(y)
        x, y = np.asarray(x), np.asarray(y)
        assert (x.dtype, x.shape) == (y.dtype, y.shape)
        assert _steps(x) == _steps(y)
        assert x.tobytes() == y.tobytes()
    return True


def _steps(x):
    """Strides that lead somewhere."""
    return [s for s, n in zip(x.strides, x.shape, strict=True) if n > 1 and x.size]


def _ones(args):
    return optree.tree_map(np.ones_like, args)


def pulled(f, args):
    return vjp(f, *args)[0]


def pushed(f, args):
    return jvp(f, args, _ones(args))[0]


def nested(f, args):
    """The primal below three traces."""
    return vjp(lambda *x: jvp(lambda *y: vjp(f, *y)[0], x, _ones(args))[0], *args)[0]


over_samples = pytest.mark.parametrize("sample", samples, ids=str)
in_both_dtypes = pytest.mark.parametrize("dtype", [np.float32, np.float64])


def test_every_registered_function_has_a_sample():
    sampled = {s.key for s in samples} | CONSTANT.keys() | set(FACTS)
    internal = {key for key in functions if isinstance(key, str)}
    assert functions.keys() - sampled <= internal
    assert sampled <= functions.keys()
    assert all(_is_constant(functions[key]) for key in CONSTANT)
    assert not any(_is_constant(functions[s.key]) for s in samples)


def test_every_registered_primitive_is_met_by_a_sample():
    class Spy(Pull):
        def apply(self, primitive, args, static):
            met.add(primitive)
            return super().apply(primitive, args, static)

    met = set()
    for sample in samples:
        with Spy(ArrayBox) as trace:
            sample.f(*map(trace.input, sample.arrays()))
    primitives = {p for p in functions.values() if isinstance(p, Primitive) and not p.constant}
    assert primitives <= met


@over_samples
@in_both_dtypes
def test_tracing_changes_no_bit(sample, dtype):
    for layout in LAYOUTS:
        args = sample.arrays(dtype, layout)
        expected = sample.f(*args)
        for trace in (pulled, pushed, nested):
            assert _same(trace(sample.f, args), expected)


@pytest.mark.parametrize(
    "sample", [s for s in samples if set(s.shapes) == {()} and s.is_real], ids=str
)
def test_tracing_changes_no_bit_of_numbers(sample):
    if sample.key in ("astype", "copy", operator.getitem):
        pytest.skip("Python floats have no methods and no index")
    for kind in (float, np.float64, np.float32):
        args = tuple(kind(x) for x in sample.arrays())
        for trace in (pulled, pushed, nested):
            assert _same(trace(sample.f, args), sample.f(*args))


@over_samples
def test_tracing_changes_no_bit_of_a_derivative(sample):
    """Training sees gradients traced on the way back that it saw plain on the way forward."""
    if not sample.is_real and () in sample.shapes:
        pytest.skip("NumPy multiplies complex numbers, and arrays of them, by other instructions")
    for layout in LAYOUTS:
        args = sample.arrays(np.float32, layout)
        cts = _ones(sample.f(*args))
        for derivative in (
            lambda *x, cts=cts: vjp(sample.f, *x)[1](cts),
            lambda *x, ts=args: jvp(sample.f, x, ts)[1],
        ):
            for trace in (pulled, pushed):
                assert _same(trace(derivative, args), derivative(*args))


@over_samples
def test_a_replay_has_the_bits_of_the_function(sample):
    def derivative(args, ts, cts):
        return jvp(sample.f, args, ts), vjp(sample.f, *args)[1](cts)

    for layout in ("C", "F"):
        args = sample.arrays(np.float32, layout)
        if any(x.dtype.kind == "c" and x.ndim == 0 for x in args):
            continue
        try:
            compiled = compile(sample.f)(*args)
        except TypeError as error:
            refused = "a branch on a traced value", "decide the shape of the answer"
            assert any(words in str(error) for words in refused)  # not silently one side of it
            return
        assert _same(compiled, sample.f(*args))
        given = args, args, _ones(sample.f(*args))
        compiled = compile(derivative)
        assert _same_values(compiled(*given), derivative(*given))
        given = (tuple(x * 0.9375 for x in args), *given[1:])  # nothing of the first stays behind
        assert _same_values(compiled(*given), derivative(*given))


def _same_values(got, expected):
    """Equal in dtype, shape and bits; of a derivative, whatever the order in memory."""
    for x, y in zip(optree.tree_leaves(got), optree.tree_leaves(expected), strict=True):
        x, y = np.asarray(x), np.asarray(y)
        assert (x.dtype, x.shape, x.tobytes()) == (y.dtype, y.shape, y.tobytes())
    return True


@over_samples
@in_both_dtypes
def test_rules_are_dual(sample, dtype):
    for layout in LAYOUTS:
        check_duality(sample.f, sample.arrays(dtype, layout))


@over_samples
def test_derivatives_agree_with_quotients_to_second_order(sample):
    if sample.key == "astype":
        pytest.skip("a quotient of rounded numbers is noise; the duality is tested")
    check_grads(sample.f, sample.arrays(np.float64))
    check_grads(sample.f, sample.arrays(np.float32), order=1)


@over_samples
def test_second_derivatives_in_float32_are_those_in_float64(sample):
    """In dtype, and in value to what rounding leaves of two derivatives."""
    if sample.key == "astype":
        pytest.skip("its samples change dtypes themselves")

    def second(args):
        cts = _ones(sample.f(*args))
        first = lambda *x: vjp(sample.f, *x)[1](cts)
        return vjp(first, *args)[1](_ones(first(*args)))

    narrow = second(sample.arrays(np.float32))
    wide = second(tuple(map(_widen, sample.arrays(np.float32))))
    for x, y in zip(narrow, wide, strict=True):
        assert x.dtype in (np.float32, np.complex64)
        assert np.max(np.abs(x - y), initial=0) <= 1e-3 * max(1, np.max(np.abs(y), initial=0))


def _widen(x):
    return x.astype(np.complex128 if x.dtype.kind == "c" else np.float64)


def _narrow(x):
    return x.astype(np.complex64 if x.dtype.kind == "c" else np.float32)


@pytest.mark.parametrize("sample", [s for s in samples if len(s.shapes) > 1], ids=str)
def test_each_argument_gets_its_own_dtype_back(sample):
    args = sample.arrays()
    for k in range(len(args)):
        mixed = [_narrow(x) if i == k else x for i, x in enumerate(args)]
        check_duality(sample.f, tuple(mixed), tolerance=1e-5)


@over_samples
def test_an_argument_that_is_not_traced_stays_plain(sample):
    args = sample.arrays()
    for k in range(len(args)):
        check_duality(lambda x, k=k: sample.f(*args[:k], x, *args[k + 1 :]), (args[k],))


def _is_foreign(tree):
    return all(isinstance(x, ForeignArray) for x in optree.tree_leaves(tree))


@over_samples
def test_foreign_arrays_are_never_converted(sample):
    if sample.host:
        pytest.skip(f"{sample.host} NumPy's by nature")
    args = tuple(map(ForeignArray, sample.arrays()))
    ts = tuple(ForeignArray(random_array(x.shape, seed=99 - k)) for k, x in enumerate(args))
    expected = sample.f(*args)
    out, tangent = jvp(sample.f, args, ts)
    again, pullback = vjp(sample.f, *args)
    assert all(map(_is_foreign, (expected, out, again, tangent, pullback(tangent))))
    check_duality(sample.f, args)
    check_duality(lambda *x: jvp(sample.f, x, ts)[1], args)
    check_duality(lambda *x: vjp(sample.f, *x)[1](tangent), args)


def test_derivatives_of_foreign_arrays_and_numbers_are_foreign():
    """A Python float has no array type of its own to make its tangent of."""
    a = ForeignArray(random_array((3,)))
    for f in (lambda s, x: s + x, lambda s, x: x - s, lambda s, x: np.where(x > 0, s, x)):
        out, tangent = jvp(f, (2.0, a), (1.0, None))
        assert isinstance(out, ForeignArray) and isinstance(tangent, ForeignArray)
        assert _is_foreign(vjp(f, 2.0, a)[1](out)[1])
    for ct in (1, 1.0, np.float64(1)):
        (g,) = vjp(lambda x: np.sum(x), a)[1](ct)
        assert isinstance(g, ForeignArray) and g.home.tolist() == [1, 1, 1]
    assert _is_foreign(grad(lambda x: np.sum(x * x) * 2.0)(a))
    assert _is_foreign(hessian(lambda x: np.sum(x * x * x) * 2.0)(a))


@over_samples
def test_a_cotangent_may_lie_in_any_order_in_memory(sample):
    """Indexing wrote into a copy of zeros in Fortran order, so that its gradient was zero."""
    args = sample.arrays()
    out, pullback = vjp(sample.f, *args)
    cts = optree.tree_map(lambda x: np.asarray(random_array(np.shape(x)))[()], out)
    expected = pullback(cts)
    for layout in LAYOUTS[1:]:
        got = pullback(optree.tree_map(lambda c, k=layout: lay_out(np.asarray(c), k), cts))
        for x, y in zip(got, expected, strict=True):
            np.testing.assert_allclose(x, y, 1e-12, 1e-12)


@pytest.mark.parametrize("key", CONSTANT, ids=str)
def test_constant_functions_give_plain_answers_at_every_level(key):
    call, args = (
        partial(CONSTANT[key], key),
        (np.array([-1.5, 0.5, 2.0]), np.array([0.5, 0.5, 1.0])),
    )

    def f(x, y):
        answer = call(x, y)
        assert not any(isinstance(leaf, Box) for leaf in optree.tree_leaves(answer))
        return answer

    for trace in (pulled, pushed, nested):
        assert _same(trace(f, args), call(*args))


def test_where_of_a_condition_alone_is_nonzero():
    x = np.array([0.0, 2.0, 3.0])
    for trace in (pulled, pushed, nested):
        assert _same(trace(lambda x: np.where(x), (x,)), (np.array([1, 2]),))


@pytest.mark.parametrize("fact", FACTS)
def test_facts_about_a_traced_array_are_those_of_its_value(fact):
    x = np.ones((2, 3), np.float32)
    seen, ask = [], partial(FACTS[fact], fact)
    grad(lambda x: seen.append(ask(x)) or np.sum(x))(x)
    assert seen == [ask(x)]


# What inputs cannot be tabled: hypothesis chooses shapes, axes and indices.

_binary = [operator.add, operator.sub, operator.mul, np.maximum, np.logaddexp, np.arctan2]


@given(broadcasting(), st.sampled_from(_binary), dtypes)
@example([np.ones((1, 1)), np.ones((0, 1))], operator.mul, np.float64)
def test_broadcasting_is_transposed(arrays, function, dtype):
    args = tuple(x.astype(dtype, order="K", copy=False) for x in arrays)
    assert _same(pulled(function, args), function(*args))
    check_duality(function, args)


@given(broadcasting(count=3))
def test_broadcasting_of_three_is_transposed(arrays):
    mask, x, y = arrays[0] > 0, *arrays[1:]
    check_duality(lambda x, y: np.where(mask, x, y), (x, y))
    check_duality(lambda x, y: np.clip(x, y - 1, mask * 0.5 + y), (x, y))


_any_index = shapes.flatmap(
    lambda shape: st.tuples(
        st.just(shape),
        hnp.basic_indices(shape, allow_newaxis=True, max_dims=5)
        | (hnp.integer_array_indices(shape) if shape and 0 not in shape else st.just(()))
        | hnp.arrays(bool, shape),
    )
)


@given(_any_index, dtypes, st.sampled_from(LAYOUTS))
def test_any_index_is_transposed(drawn, dtype, layout):
    shape, index = drawn
    x = lay_out(random_array(shape, dtype), layout)
    take = lambda x: x[index]
    assert _same(pulled(take, (x,)), x[index])
    check_duality(take, (x,))
    check_duality(lambda ct: vjp(take, x)[1](ct), (np.ones_like(x[index]),))


_any_axes = shapes.flatmap(
    lambda shape: st.tuples(
        st.just(shape),
        st.none()
        | st.sets(st.sampled_from(range(-len(shape), len(shape)))).map(
            lambda axes: tuple({a % len(shape): a for a in axes}.values())
        )
        if shape
        else st.none(),
    )
)


@given(_any_axes, st.booleans(), st.sampled_from([np.sum, np.max, np.mean, np.var]), dtypes)
def test_any_axes_are_reduced(drawn, keepdims, function, dtype):
    (shape, axis), reduce = drawn, None
    x = random_array(shape, dtype)
    if x.size == 0:
        function = np.sum
    reduce = partial(function, axis=axis, keepdims=keepdims)
    assert _same(pulled(reduce, (x,)), reduce(x))
    check_duality(reduce, (x,))


_matmul = hnp.mutually_broadcastable_shapes(
    signature=np.matmul.signature, max_dims=2, min_side=0, max_side=3
).map(lambda s: s.input_shapes)


@given(_matmul, st.sampled_from(LAYOUTS), dtypes)
def test_any_product_is_transposed(drawn, layout, dtype):
    args = tuple(lay_out(random_array(s, dtype, k), layout) for k, s in enumerate(drawn))
    for product in (operator.matmul, np.matmul):
        assert _same(pulled(product, args), product(*args))
        check_duality(product, args)


@given(laid_out_arrays(), st.randoms(use_true_random=False))
def test_any_permutation_is_transposed(x, random):
    axes = list(range(x.ndim))
    random.shuffle(axes)
    permute = lambda x: np.transpose(x, axes)
    assert _same(pulled(permute, (x,)), permute(x))
    check_duality(permute, (x,))
    check_duality(lambda x: np.moveaxis(x, axes, range(x.ndim)), (x,))


_special = st.sampled_from([0.0, -0.0, np.inf, -np.inf, np.nan, 1.0, -1.0, 5e-324])


@given(hnp.arrays(np.float64, 4, elements=_special), _special, _special)
def test_special_values_keep_their_bits(x, low, high):
    for f in (
        lambda x: np.clip(x, low, high),
        lambda x: np.maximum(x, low),
        np.absolute,
        np.max,
        np.sum,
        lambda x: x[::-1].copy(),
        lambda x: np.where(x == 0, x, low),
    ):
        with np.errstate(all="ignore"):
            assert _same(pulled(f, (x,)), f(x))


def test_the_order_in_memory_is_that_of_numpy():
    """exp of a reversed array has other bits than that of its copy, and so has a later sum."""
    x = random_array((1003,), np.float32)
    for f in (
        lambda x: np.expm1(x[::-1].copy()),
        lambda x: np.expm1(np.copy(x[::-1])),
        lambda x: np.expm1(np.ravel(x[::-1])),
        lambda x: np.expm1(+x[::-1]),
        lambda x: np.expm1(x[::-1].astype(np.float32)),
        lambda x: np.sum(np.take(np.reshape(x, (17, 59)), [3, 1, 4], axis=1) * 1.5),
    ):
        assert _same(pulled(f, (x,)), f(x))


@given(st.lists(layouts, min_size=4, max_size=4))
@example(["F", "C", "F", "F"])
def test_sums_of_cotangents_have_one_order_in_memory(drawn):
    """Adding in place and adding boxes must not lie differently: a later sum would see it."""
    x, *weights = (lay_out(random_array((5, 3), seed=k), layout) for k, layout in enumerate(drawn))

    def f(x):
        return sum([np.sum(np.sin(x) * w) for w in weights])

    assert _same(pulled(grad(f), (x,)), grad(f)(x))
    assert _same(pushed(grad(f), (x,)), grad(f)(x))


@pytest.mark.parametrize("product", [operator.matmul, np.matmul, np.dot])
@pytest.mark.parametrize("rows", [(), (1,), (2,)])
def test_a_matrix_used_many_times_on_little(product, rows):
    """As in a recurrent network, where the products of its pull-back may be put together."""
    xs = [random_array((*rows, 8), seed=k) for k in range(4)]

    def f(w, b):
        h = xs[0]
        for x in xs:
            h = np.tanh(product(h, w) + x) * b
        return np.sum(h) + np.sum(product(w, xs[0].T) ** 2) + np.sum(w * w)

    args = (random_array((8, 8), seed=5), random_array((8,), seed=6))
    check_grads(f, args)
    for dtype in (np.float32, np.float64):
        typed = tuple(x.astype(dtype) for x in args)
        check_duality(f, typed)
        for trace in (pulled, pushed):
            assert _same(trace(grad(f, (0, 1)), typed), grad(f, (0, 1))(*typed))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(
    "f",
    [
        lambda x, y: np.sum(x) ** 2 + np.sum(y) ** 3,
        lambda x, y: np.sum((x + y) ** 2),
        lambda x, y: np.sum((x.T + y.T) ** 2),
        lambda x, y: np.sum(np.concatenate([x, y]) ** 2),
        lambda x, y: np.sum(np.mean(x * y, axis=0) ** 2),
    ],
)
def test_copies_of_derivatives_have_one_order_in_memory(f, layout):
    args = tuple(lay_out(random_array((5, 3), seed=k), layout) for k in range(2))
    g = grad(f, argnums=(0, 1))
    for trace in (pulled, pushed, nested):
        assert _same(trace(g, args), g(*args))


# Where derivatives are a matter of convention.


def test_ties_share_a_maximum_equally():
    x = np.array([2.0, 1.0, 2.0, 2.0])
    assert grad(np.max)(x).tolist() == [1 / 3, 0, 1 / 3, 1 / 3]
    assert jvp(np.max, (x,), (np.array([3.0, 9.0, 6.0, 0.0]),))[1] == 3
    assert grad(np.maximum, argnums=(0, 1))(2.0, 2.0) == (0.5, 0.5)
    assert grad(lambda x: np.clip(x, 0.0, 1.0))(0.0) == 0.5


def test_where_keeps_the_side_not_taken_from_becoming_nan():
    with np.errstate(all="ignore"):
        g = grad(lambda x: np.sum(np.where(x > 0, np.sqrt(x), 0.0)))(np.array([4.0, 1.0]))
        assert g.tolist() == [0.25, 0.5]
        x = np.array([4.0, -1.0])
        assert grad(lambda x: np.sum(np.sqrt(np.where(x > 0, x, 0.0))))(x).tolist() == [0.25, 0]
        assert jvp(lambda x: np.where(x > 0, np.sqrt(x), 0.0), (x,), (x,))[1].tolist() == [1, 0]
        root = lambda x: np.where(x > 0, np.sqrt(np.where(x > 0, x, 1.0)), 0.0)
        assert grad(root)(0.0) == 0 and grad(grad(root))(0.0) == 0


def test_powers_at_zero():
    exponents = np.array([0.0, 1.0, 2.0])
    for power in (operator.pow, np.power):
        assert [grad(power)(0.0, n) for n in (0, 1, 2, 3)] == [0, 1, 0, 0]
        assert [grad(grad(power))(0.0, n) for n in (0, 1, 2, 3)] == [0, 0, 2, 0]
        assert grad(power, argnums=1)(0.0, 2.0) == 0
        assert grad(power, argnums=1)(-2.0, 2.0) == 0
        assert vjp(partial(power, np.zeros(3)), exponents)[1](np.ones(3))[0].tolist() == [0, 0, 0]
        assert vjp(power, np.zeros(3), exponents)[1](np.ones(3))[0].tolist() == [0, 1, 0]


def test_mod_has_the_quotient_that_mod_used():
    assert 1.0 / 0.1 == 10 and 1.0 // 0.1 == 9
    assert grad(operator.mod, argnums=1)(1.0, 0.1) == -9


def test_repeated_indices_add_up():
    g = grad(lambda x: np.sum(x[[0, 0, 2, 0]] * np.array([1.0, 10.0, 100.0, 1000.0])))
    assert g(np.zeros(3)).tolist() == [1011, 0, 100]


def test_a_nan_stays_where_it_is():
    x = np.array([1.0, np.nan, 2.0])
    assert np.isnan(grad(lambda x: np.sum(x * x))(x)).tolist() == [False, True, False]


@pytest.mark.parametrize(
    ("f", "x"),
    [
        (lambda x: np.cumprod(x, axis=-1), 0.7),
        (lambda x: np.pad(x, 2, "mean"), np.float64(0.7)),
        (lambda x: np.piecewise(x, [x > 0], [np.exp, 1.0]), 0.7),
        (np.logaddexp.reduce, np.array([-np.inf, -np.inf, 1.0])),
        (lambda x: np.max(x, axis=0, initial=2.0), np.zeros((0, 3))),
        (lambda x: np.quantile(x, 0.3, axis=0), np.zeros((3, 0))),
        (lambda x: np.delete(x, []), np.zeros(0)),
        (np.linalg.norm, np.zeros((2, 0))),
        (lambda x: np.linalg.norm(x, 3), np.zeros(3)),
        (lambda x: np.vander(x)[::-1, ::-1], np.array([2.0, 2.0, 1.0])[::-1]),
        (lambda x: np.unique(x) * 2, np.array([2.0, 2.0, 1.0])),
        (lambda x: np.nanmax(x), np.array([2.0, np.nan, 2.0])),
    ],
)
def test_degenerate_inputs_have_derivatives(f, x):
    assert _same(pulled(f, (x,)), f(x))
    check_duality(f, (x,))


def test_the_derivative_of_an_answer_of_nothing_is_nothing():
    for f in (np.median, np.nanmedian, np.logaddexp.reduce):
        with np.errstate(all="ignore"), warnings.catch_warnings(action="ignore"):
            assert grad(f)(np.zeros(0)).shape == (0,)


def test_what_is_cut_to_integers_has_no_derivative():
    assert grad(lambda s: 1.0 * np.sum(np.insert(np.arange(3), 1, s)))(2.5) == 0


def test_a_quantile_moves_with_the_entries_on_either_side():
    x = np.array([4.0, 1.0, 2.0])
    assert grad(lambda x: np.quantile(x, 0.625))(x).tolist() == [0.25, 0, 0.75]
    assert grad(lambda q: np.percentile(x, q))(75.0) == 0.04
    assert grad(lambda s: np.interp(s, [0.0, 1.0, 3.0], [5.0, 6.0, 0.0]))(1.0) == -3


# What is refused.


@pytest.mark.parametrize(
    ("f", "words"),
    [
        (lambda x: np.i0(x), "i0 .*revgrad.extend"),
        (lambda x: np.spacing(x), "spacing .*revgrad.extend"),
        (lambda x: np.hypot.reduce(x), "hypot.reduce .*revgrad.extend"),
        (lambda x: np.copyto(np.zeros(3), x), r"copyto .*revgrad.at\(x, index\)"),
        (lambda x: np.histogram(x), "histogram .*searchsorted"),
    ],
)
def test_a_missing_rule_names_the_function(f, words):
    with pytest.raises(MissingRule, match=words):
        vjp(f, np.ones(3))


@pytest.mark.parametrize(
    ("f", "words"),
    [
        (lambda x: np.reshape(x, 3, order="F"), "order='F'.*transpose"),
        (lambda x: np.std(x, where=x > 0), "std .*where=.*np.where"),
        (lambda x: np.var(x, dtype=np.float32), "var .*dtype="),
        (lambda x: np.sum(x, dtype=int), "sum.*int"),
        (lambda x: np.quantile(x, 0.5, method="nearest"), "quantile.*nearest"),
        (lambda x: np.pad(x, 1, "empty"), "empty.*np.concatenate"),
        (lambda x: np.exp(x, where=x > 0), "exp .*where="),
        (lambda x: np.argmax(a=x), "argmax .*by position"),
        (lambda x: x[x], "index"),
        (lambda x: np.take(x, x), "np.take"),
        (lambda x: np.concatenate([x, [x[0]]]), "np.stack"),
        (lambda x: np.add(x, [x[0], 1.0, 2.0]), "np.stack"),
    ],
)
def test_arguments_that_a_rule_does_not_know_are_named(f, words):
    with pytest.raises(TypeError, match=words):
        vjp(f, np.ones(3))


def test_a_hessian_of_a_sum_of_products_is_exact():
    a = np.arange(9.0).reshape(3, 3)
    assert hessian(lambda x: x @ a @ x)(np.ones(3)).tolist() == (a + a.T).tolist()
