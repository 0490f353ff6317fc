"""What users call: values, trees, arguments, refusals; and JAX as an oracle."""

import gc
import tracemalloc
from collections import OrderedDict, namedtuple
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from types import SimpleNamespace

import numpy as np
import optree
import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies import LAYOUTS, float_arrays, lay_out, random_array, trees

from revgrad import grad, hessian, hvp, jacfwd, jacrev, jvp, stop_gradient, value_and_grad, vjp
from revgrad.compiled import compile
from revgrad.errors import LeakedBox
from revgrad.extend import as_tree
from revgrad.testing import check_duality, check_grads

Point = namedtuple("Point", ["x", "y"])
V = np.array([1.0, 2.0, 3.0])
M = random_array((4, 3))


def smooth(x):
    return np.sum(np.tanh(M @ x) ** 2 * np.arange(1.0, 5.0))


# grad and value_and_grad.


def f3(x, y, z=1.0):
    return x * y**2 + z * x


@pytest.mark.parametrize(
    ("argnums", "expected"),
    [
        (0, 10.0),
        (1, 12.0),
        (-1, 2.0),
        (np.int64(1), 12.0),
        ((0, 1), (10.0, 12.0)),
        ((-1, 0), (2.0, 10.0)),
        ([1, 2], (12.0, 2.0)),
        ((1,), (12.0,)),
        ((0, 0, -3), (10.0, 10.0, 10.0)),
        ((), ()),
    ],
)
def test_argnums_choose_the_arguments(argnums, expected):
    assert grad(f3, argnums)(2.0, 3.0, 1.0) == expected
    assert value_and_grad(f3, argnums=argnums)(2.0, 3.0, 1.0) == (20.0, expected)
    assert jacrev(f3, argnums)(2.0, 3.0, 1.0) == expected
    assert jacfwd(f3, argnums)(2.0, 3.0, 1.0) == expected


@pytest.mark.parametrize("transform", [grad, value_and_grad, jacrev, jacfwd, hessian])
@pytest.mark.parametrize("argnums", [2, -3, (0, 2)])
def test_argnums_that_were_not_given_are_refused(transform, argnums):
    with pytest.raises(TypeError, match=r"argnums=.*but 2 arguments were given by position"):
        transform(f3, argnums)(2.0, 3.0)


@pytest.mark.parametrize("transform", [grad, jacrev, jacfwd, hessian])
def test_keywords_are_passed_on(transform):
    assert transform(f3)(2.0, 3.0, z=5.0) == transform(lambda x: f3(x, 3.0, 5.0))(2.0)


def test_aux_is_returned_untraced():
    def f(x):
        return x * x, {"twice": 2 * x, "note": "kept", "array": np.ones(2), "none": None}

    g, found = grad(f, has_aux=True)(3.0)
    assert g == 6 and type(found["twice"]) is float
    assert found["twice"] == 6 and found["note"] == "kept" and found["none"] is None
    (value, found), g = value_and_grad(f, has_aux=True)(3.0)
    assert (value, g, found["twice"]) == (9, 6, 6)
    out, tangent, found = jvp(f, (3.0,), (1.0,), has_aux=True)
    assert (out, tangent, found["twice"], found["note"]) == (9, 6, 6, "kept")
    out, pullback, found = vjp(f, 3.0, has_aux=True)
    assert (out, pullback(1.0), found["twice"]) == (9, (6,), 6)


def test_aux_keeps_the_outer_trace():
    def f(x):
        _, aux = grad(lambda y: (y * x, x * y), has_aux=True)(x)
        return aux

    assert grad(f)(3.0) == 6  # of x y at y = x


@pytest.mark.parametrize("f", [lambda x: x, lambda x: (x, x, x), lambda x: [x, x]])
def test_has_aux_needs_a_pair(f):
    for transform in (grad, value_and_grad):
        with pytest.raises(TypeError, match=r"has_aux=True needs a function that returns \(out, a"):
            transform(f, has_aux=True)(1.0)


@pytest.mark.parametrize(
    ("f", "came"),
    [
        (lambda x: x * np.ones(3), r"float64 and shape \(3,\)"),
        (lambda x: np.array([1.0]), r"float64 and shape \(1,\)"),
        (lambda x: (x, x), "a tuple"),
        (lambda x: {"loss": x}, "a dict"),
        (lambda x: [[x, x], [x]], "a list"),
        (lambda x: None, "a NoneType"),
        (lambda x: 3, "a int"),
        (lambda x: x > 0, "a bool"),
        (lambda x: np.int64(3), "a int64"),
        (lambda x: x * 1j, "a complex"),
        (lambda x: "loss", "a str"),
    ],
)
def test_what_is_not_one_real_float_has_no_gradient(f, came):
    def my_loss(x):
        return f(x)

    with pytest.raises(TypeError, match=rf"my_loss returned .*{came}.*; a gradient needs one real"):
        grad(my_loss)(1.0)


def test_names_are_passed_on():
    assert grad(smooth).__name__ == "smooth"
    assert jacrev(partial(f3, 2.0))(3.0) == 12
    with pytest.raises(TypeError, match="the function returned"):
        grad(partial(np.multiply, 1j))(1.0)


# Types: a gradient is like its argument.


@pytest.mark.parametrize("x", [2.0, np.float64(2), np.float32(2), np.array(2.0), V, V[:0]])
@pytest.mark.parametrize(
    "f",
    [
        lambda x: np.sum(np.sin(x)),
        lambda x: np.sum(x),
        lambda x: np.sum(x) * 2.0,
        lambda x: np.float32(1.0),
        lambda x: 1.0,
        lambda x: np.sum(stop_gradient(x)),
        lambda x: np.mean(np.broadcast_to(x, (2, *np.shape(x)))) if np.size(x) else 0.0,
        lambda x: np.sum(np.reshape(x, -1)[::-1]),
    ],
)
def test_a_gradient_has_the_kind_shape_and_dtype_of_its_argument(f, x):
    for g in (grad(f)(x), jacrev(f)(x)):
        assert np.shape(g) == np.shape(x) and np.result_type(g) == np.result_type(x)
        assert type(g) is type(x)
        assert not isinstance(g, np.ndarray) or g.flags.writeable


KINDS = [2.0, np.float64(2), np.float32(2), np.float16(2), np.array(2.0), np.array(2.0, np.float32)]


@pytest.mark.parametrize("x", KINDS, ids=lambda x: f"{type(x).__name__}-{np.result_type(x)}")
@pytest.mark.parametrize(
    "f",
    [
        lambda x: x * x * x,
        lambda x: np.sum(x),
        lambda x: np.reshape(x, 1)[0] ** 2,
        lambda x: np.where(x > 0, x, 0.0),
        lambda x: np.sum(np.stack([x, x]) ** 2),
        lambda x: np.max(x),
        lambda x: x,
        lambda x: 3.0,
        lambda x: np.float64(3),
    ],
)
def test_numbers_keep_their_kind_in_every_transform(f, x):
    """A Python float, a NumPy scalar or an array without axes: out as it went in."""

    def alike(derivative, like):
        assert type(derivative) is type(like)
        assert np.result_type(derivative) == np.result_type(like)

    alike(grad(f)(x), x)
    alike(value_and_grad(f)(x)[1], x)
    alike(hessian(f)(x), x)
    for g in (jacfwd(f)(x), jacrev(f)(x), grad(grad(f))(x), *hvp(f, (x,), (1.0,))):
        alike(g, x)
    out, pullback = vjp(f, x)
    alike(pullback(1.0)[0], x)
    alike(jvp(f, (x,), (1.0,))[1], out)
    alike(grad(lambda y: grad(f)(y) * 1.0)(x), x)


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_jacobians_have_the_dtype_of_the_argument(dtype):
    for x in (dtype(2), np.ones(3, dtype)):
        for jacobian in (jacfwd, jacrev):
            assert jacobian(lambda x: np.sum(x) * np.ones(2))(x).dtype == dtype


def test_what_is_not_used_has_a_gradient_of_zeros():
    like = {"a": np.ones((2, 3), np.float32), "b": 1.0, "c": np.float16(2), "d": None}
    for g in (
        grad(lambda tree: 1.0)(like),
        grad(lambda tree, x: x * x)(like, 3.0),
        vjp(lambda tree: (), like)[1](())[0],
    ):
        assert g["a"].dtype == np.float32 and g["a"].tolist() == [[0, 0, 0]] * 2
        assert g["b"] == 0 and type(g["b"]) is float and g["d"] is None
        assert g["c"] == 0 and g["c"].dtype == np.float16
        g["a"] += 1  # writeable


def test_python_floats_stay_python_floats_at_every_order():
    f = lambda x: np.sum(np.exp(x) * np.array([1.0, 2.0]))
    for g in (grad(f), grad(grad(f)), grad(grad(grad(f)))):
        assert type(g(0.5)) is float and g(0.5) == pytest.approx(3 * np.exp(0.5))
    out, tangent = jvp(lambda x: x * x, (3.0,), (1.0,))
    assert type(out) is float and type(tangent) is float
    assert type(jvp(lambda x: 2.0, (3.0,), (1.0,))[1]) is float
    seen = []
    hessian(lambda x: seen.append(grad(lambda y: np.sin(y) * y)(x).value) or x * x)(0.5)
    assert {type(getattr(v, "value", v)) for v in seen} <= {float}


@pytest.mark.parametrize(
    ("f", "args"),
    [
        (lambda x: x, (V,)),
        (lambda x, y: x + y, (V, V)),
        (lambda x: np.broadcast_to(x, (2, 3)), (V,)),
        (lambda x: (x, x), (V,)),
        (lambda x: x.reshape(3, 1).T, (V,)),
        (lambda x: (x[:2], x[1:]), (V,)),
        (lambda x, y: np.concatenate([x, y]), (V, V)),
        (lambda x, y: np.stack([x, y]), (V, V)),
        (lambda x: np.sum(x), (V,)),
        (lambda x, s: x + s, (V, 1.0)),
        (lambda x, s: np.zeros(3) + s, (V, 1.0)),
    ],
)
def test_derivatives_are_the_callers_own(f, args):
    """Writeable, and no two of them, nor what was given, share memory."""
    out, pullback = vjp(f, *args)
    cts = optree.tree_map(np.ones_like, out)
    ts = optree.tree_map(lambda x: np.ones_like(x) if np.ndim(x) else 1.0, args)
    for lent, answer in ((cts, pullback(cts)), (ts, jvp(f, args, ts)[1])):
        arrays = [x for x in optree.tree_leaves(answer) if isinstance(x, np.ndarray)]
        assert all(x.flags.writeable for x in arrays)
        held = arrays + [x for x in optree.tree_leaves((lent, args)) if isinstance(x, np.ndarray)]
        for i, x in enumerate(arrays):
            assert not any(np.shares_memory(x, y) for y in held[i + 1 :])
    before = optree.tree_map(np.copy, pullback(cts))
    for x in optree.tree_leaves(pullback(cts)):
        if isinstance(x, np.ndarray):
            x += 100
    optree.tree_map(np.testing.assert_array_equal, pullback(cts), before)


def _every_array(tree):
    return [x for x in optree.tree_leaves(tree) if isinstance(x, np.ndarray)]


_ALIASES = {
    "a residual": lambda x: np.exp(x),
    "the argument": lambda x: x,
    "a view": lambda x: x[::-1],
    "a part": lambda x: (x * x, x[:, ::2]),
    "a residual of another output": lambda x: [np.sum(np.tanh(x) ** 2), np.tanh(x)],
    "the same twice": lambda x: (x, x, np.transpose(x)),
    "stopped": lambda x: (x * x, stop_gradient(x)),
    "no axis": lambda x: (np.reshape(x[0, 0] + x[0, 1], ()), np.sum(x) + x),
    "rows that overlap": lambda x: (np.sum(x * x), stop_gradient(x)[[0, 0]][:, 1:]),
    "spread": lambda x: np.broadcast_to(x, (2, 2, 3)),
    "empty": lambda x: x[:0, ::2],
    "compiled": compile(lambda x: (x, np.tanh(x) * x)),
}


@pytest.mark.parametrize("f", _ALIASES.values(), ids=_ALIASES)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_results_are_the_callers_own(f, layout):
    """Changing them in place changes neither the arguments nor the pull-back."""
    x = lay_out(random_array((2, 3)), layout)
    kept, expected = x.copy(), f(x)
    out, pullback = vjp(f, x)
    for got, value in zip(_every_array(out), _every_array(expected), strict=True):
        assert np.array_equal(got, value)
        assert got.size == 0 or got.strides == value.strides
    cts = optree.tree_map(np.ones_like, out)
    before = pullback(cts)
    pushed, _, aux = jvp(lambda x: (f(x), f(x)), (x,), (np.ones_like(x),), has_aux=True)
    _, _, aux_of_pull = vjp(lambda x: (f(x), f(x)), x, has_aux=True)
    for y in _every_array((out, pushed, aux, aux_of_pull)):
        if y.flags.writeable:
            y *= 0
            y -= 7
    assert np.array_equal(x, kept)
    assert np.array_equal(pullback(cts)[0], before[0])


# Complex values: pairs Re(sum(ct * t)), so that f(x + iy) has the gradient df/dx - i df/dy.


def test_a_gradient_at_a_complex_argument_is_the_conjugate_of_the_slope():
    z = V + 1j * V[::-1]
    np.testing.assert_allclose(grad(lambda z: np.sum(np.abs(z) ** 2))(z), 2 * np.conj(z), 1e-15)
    np.testing.assert_allclose(grad(lambda z: np.sum(z**2).real)(z), 2 * z, 1e-15)
    assert grad(lambda z: abs(z) ** 2)(3 + 4j) == pytest.approx(6 - 8j)
    assert type(grad(lambda z: np.imag(z * z))(3 + 4j)) is complex


@pytest.mark.parametrize(
    "f",
    [
        lambda x: np.sum(np.abs(x * (1 + 1j)) ** 2),
        lambda x: np.sum(np.abs(x.astype(complex) * 1j - 2) ** 2),
        lambda x: np.sum(np.abs(np.concatenate([x, [1j]]) + 1) ** 2),
        lambda x: np.sum(np.real(np.exp(1j * x)) * x),
        lambda x: np.sum(np.where(x > 1.5, x, x * 1j).imag ** 2 * x),
        lambda x: np.sum(np.angle(x + 2j * x[::-1])),
        lambda x: np.vdot(x + 1j, x * 2j).imag,
        lambda x: np.var(x * x + 1j * x),
        lambda x: (x @ (x * 1j)).imag,
    ],
)
def test_complex_values_on_the_way_keep_the_derivative(f):
    """These gave a derivative of zero, or the wrong sign, with no word."""
    check_grads(f, (V,))
    check_grads(f, (V.astype(np.float32),), order=1)
    assert grad(f)(V).dtype == np.float64


def test_complex_jacobians_are_refused_where_they_would_be_halves():
    for jacobian in (jacfwd, jacrev, hessian):
        with pytest.raises(TypeError, match=r"argument.* is an array of complex128"):
            jacobian(lambda z: np.sum(z).real)(V + 1j)
    with pytest.raises(TypeError, match=r"jacrev of a complex result; .*np.real and np.imag"):
        jacrev(lambda x: x * 1j)(V)
    assert np.array_equal(jacfwd(lambda x: x * 1j)(V), 1j * np.eye(3))
    with pytest.raises(TypeError, match=r"astype\(float64\) of a complex.*np.real"):
        grad(lambda x: np.sum((x * 1j).astype(float)))(V)


# vjp and jvp.


def test_a_pull_back_can_be_called_twice():
    rng = np.random.default_rng(0)
    out, pullback = vjp(lambda x, w: (np.tanh(w @ x), np.sum(x * x)), V, M)
    ct = (rng.standard_normal(4), np.float64(2))
    first, second = pullback(ct), pullback(ct)
    assert all(np.array_equal(a, b) for a, b in zip(first, second, strict=True))
    assert not np.array_equal(pullback((ct[0], 0.0))[0], first[0])
    assert out[0].shape == (4,)


def test_integers_and_strings_may_come_out_but_have_no_derivative():
    f = lambda x: (x * 2, int(np.sum(x > 0)), np.argmax(x))
    out, tangent = jvp(f, (V,), (V,))
    assert out[1:] == (3, 2) and tangent[1:] == (0, 0)
    assert vjp(f, V)[1]((V, 5, 7))[0].tolist() == [2, 4, 6]


def test_missing_tangents_are_zero():
    f = lambda x, y: x * y
    assert jvp(f, (2.0, 3.0), (None, 1.0)) == (6, 2)
    assert jvp(f, [2.0, 3.0], [1.0, None]) == (6, 3)
    assert jvp(f, (2.0, 3.0), (None, None)) == (6, 0)
    assert jvp(lambda t: t["a"] * t["b"], ({"a": 2.0, "b": 3.0},), (None,)) == (6, 0)


def test_tangents_and_cotangents_take_the_dtype_of_their_values():
    x = V.astype(np.float32)
    assert jvp(np.sin, (x,), (V,))[1].dtype == np.float32
    assert jvp(np.sin, (x,), (np.array([1, 2, 3]),))[1].dtype == np.float32
    assert vjp(np.sin, x)[1](V)[0].dtype == np.float32
    assert vjp(lambda x: np.sum(x), x)[1](1)[0].dtype == np.float32
    assert vjp(lambda x: np.sum(x), x)[1](1.0)[0].tolist() == [1, 1, 1]


# Jacobians and Hessians.


@given(
    st.integers(0, 3).flatmap(lambda n: float_arrays((n,))),
    st.integers(0, 3).flatmap(lambda n: float_arrays((n, 2))),
)
def test_jacrev_is_jacfwd(x, w):
    def f(tree):
        a, (b,) = tree["a"], tree["b"]
        return {"u": np.outer(np.sin(a), np.sum(b, 0)), "v": (np.sum(a) * b, 1.0, tree["s"] ** 2)}

    tree = {"a": x, "b": [w], "s": 2.0}
    rev, fwd = jacrev(f)(tree), jacfwd(f)(tree)
    assert optree.tree_structure(rev) == optree.tree_structure(fwd)
    optree.tree_map(partial(np.testing.assert_allclose, rtol=1e-14, atol=1e-14), rev, fwd)
    shapes = optree.tree_map(np.shape, rev, is_leaf=lambda x: isinstance(x, np.ndarray))
    n, m = len(x), len(w)
    assert rev["u"]["a"].shape == (n, 2, n) and rev["v"][0]["b"][0].shape == (m, 2, m, 2)
    assert np.shape(rev["v"][2]["s"]) == () and rev["v"][2]["s"] == 4 and shapes


@pytest.mark.parametrize("jacobian", [jacrev, jacfwd])
def test_jacobians_against_columns_of_quotients(jacobian):
    f = lambda x: np.tanh(M @ x)
    step = 1e-6
    columns = [(f(V + step * e) - f(V - step * e)) / (2 * step) for e in np.eye(3)]
    np.testing.assert_allclose(jacobian(f)(V), np.stack(columns, 1), atol=1e-9)
    assert jacobian(lambda x: x * x)(3.0) == 6 and type(jacobian(lambda x: x * x)(3.0)) is float
    assert jacobian(lambda s: s * V)(2.0).tolist() == V.tolist()
    assert jacobian(f)(V.astype(np.float32)).shape == (4, 3)
    pair = jacobian(lambda x, y: x * y, argnums=(1, 0))(V, 2 * V)
    assert [np.diag(j).tolist() for j in pair] == [[1, 2, 3], [2, 4, 6]]


def test_a_hessian_is_symmetric_and_agrees_with_quotients():
    h, step = hessian(smooth)(V / 3), 1e-5
    np.testing.assert_allclose(h, h.T, rtol=1e-13, atol=1e-14)
    rows = [
        (grad(smooth)(V / 3 + step * e) - grad(smooth)(V / 3 - step * e)) / (2 * step)
        for e in np.eye(3)
    ]
    np.testing.assert_allclose(h, rows, rtol=1e-7, atol=1e-8)
    for other in (jacrev(grad(smooth)), jacrev(jacfwd(smooth)), jacfwd(jacrev(smooth))):
        np.testing.assert_allclose(other(V / 3), h, rtol=1e-12, atol=1e-13)


def test_a_hessian_of_a_tree_has_blocks():
    h = hessian(lambda t: np.sum(t["a"] ** 2) * t["b"])({"a": V, "b": 3.0})
    assert np.array_equal(h["a"]["a"], 6 * np.eye(3))
    assert np.array_equal(h["a"]["b"], 2 * V) and np.array_equal(h["b"]["a"], 2 * V)
    assert h["b"]["b"] == 0
    blocks = hessian(lambda x, y: x * x * y, argnums=(0, 1))(2.0, 3.0)
    assert blocks == ((6, 4), (4, 0))


def test_an_hvp_is_a_hessian_times_a_vector():
    t = np.array([0.3, -1.0, 2.0])
    g, product = hvp(smooth, (V / 3,), (t,))
    assert np.array_equal(g, grad(smooth)(V / 3))
    np.testing.assert_allclose(product, hessian(smooth)(V / 3) @ t, rtol=1e-12)
    _, product = hvp(lambda x, y: np.sum(x * x * y), (V, V), (None, np.ones(3)))
    assert product.tolist() == [2, 4, 6]  # d2/dx dy


def test_any_nesting_gives_the_same_third_derivative():
    f = lambda x: np.sin(x) * x**3
    along = lambda f: lambda x: jvp(f, (x,), (1.0,))[1]
    back = lambda f: lambda x: vjp(f, x)[1](1.0)[0]
    expected = None
    for a in (along, back, grad, jacfwd):
        for b in (along, back, grad, jacrev):
            for c in (along, back, grad):
                third = c(b(a(f)))(0.7)
                expected = third if expected is None else expected
                assert third == pytest.approx(expected, rel=1e-13)
    assert expected == pytest.approx(
        -np.cos(0.7) * 0.343 - 9 * np.sin(0.7) * 0.49 + 18 * np.cos(0.7) * 0.7 + 6 * np.sin(0.7)
    )


def test_derivatives_of_derivatives_pass_the_checker():
    check_grads(smooth, (V / 3,))
    check_grads(lambda x: hvp(smooth, (x,), (V,))[1], (V / 3,), order=1)
    check_duality(lambda x: hessian(smooth)(x), (V / 3,))
    check_grads(lambda x: grad(lambda y: np.sum(np.tanh(x * y) * y))(V), (V / 3,))


def test_a_pull_back_is_differentiable_in_its_cotangent():
    _, pullback = vjp(lambda x: np.sin(x) * 2, V)
    assert np.array_equal(jvp(lambda c: pullback(c)[0], (V,), (np.ones(3),))[1], np.cos(V) * 2)


def test_perturbations_are_not_confused():
    assert grad(lambda x: x * grad(lambda y: x + y)(1.0))(1.0) == 1
    assert jvp(lambda x: x * jvp(lambda y: x + y, (1.0,), (1.0,))[1], (1.0,), (1.0,))[1] == 1
    assert grad(lambda x: grad(lambda y: x * y)(1.0) * x)(3.0) == 6


def test_a_leaked_box_is_refused():
    kept = []
    grad(lambda x: kept.append(x) or x * x)(2.0)
    for use in (
        lambda: kept[0] * 2,
        lambda: grad(lambda x: x * kept[0])(1.0),
        lambda: grad(lambda x: kept[0])(1.0),
        lambda: jvp(lambda x: (x, kept[0]), (1.0,), (1.0,)),
        lambda: vjp(lambda x: (x, kept[0]), 1.0, has_aux=True),
    ):
        with pytest.raises(LeakedBox, match="whose trace has ended"):
            use()


# stop_gradient.


def test_stop_gradient_stops_at_every_level():
    assert grad(lambda x: x * stop_gradient(x))(3.0) == 3
    assert grad(grad(lambda x: x * x * stop_gradient(x)))(3.0) == 6
    assert jvp(lambda x: stop_gradient(x * x), (3.0,), (1.0,)) == (9, 0)
    stopped = lambda x: grad(lambda y: stop_gradient(x * y) * y)(2.0)
    assert grad(stopped)(3.0) == 0
    tree = {"a": [V, 2.0], "b": None}
    assert stop_gradient(tree) == tree
    g = grad(lambda t: np.sum(stop_gradient(t)["a"][0] * t["a"][1]))(tree)
    assert g["a"][0].tolist() == [0, 0, 0] and g["a"][1] == 6


# Trees.


@given(trees(float_arrays() | st.floats(-2, 2)))
def test_gradients_have_the_tree_of_their_argument(tree):
    def f(tree):
        leaves = optree.tree_leaves(tree)
        return sum((k + 1.0) * np.sum(x * x) for k, x in enumerate(leaves)) + 0.0

    value, g = value_and_grad(f)(tree)
    assert value == f(tree)
    leaves, treedef = optree.tree_flatten(tree)
    assert optree.tree_structure(g) == treedef
    for k, (x, dx) in enumerate(zip(leaves, optree.tree_leaves(g), strict=True)):
        assert type(dx) is type(x) or (np.ndim(x) == 0 and np.ndim(dx) == 0)
        np.testing.assert_allclose(dx, 2 * (k + 1) * x, rtol=1e-15)
    same, tangent = jvp(lambda t: t, (tree,), (tree,))
    assert optree.tree_structure(same) == optree.tree_structure(tangent) == treedef
    check_duality(lambda t: optree.tree_map(np.sin, t), (tree,))


def test_containers_come_back_as_they_went_in():
    tree = {
        "point": Point(1.0, V),
        "ordered": OrderedDict(z=2.0, a=3.0),
        "list": [4.0, (5.0,)],
        "none": None,
        "empty": {},
    }

    def f(t):
        return t["point"].x * np.sum(t["point"].y) * t["ordered"]["z"] * t["list"][1][0]

    g = grad(f)(tree)
    assert type(g["point"]) is Point and g["point"].x == 60 and g["point"].y.tolist() == [10] * 3
    assert list(g["ordered"].items()) == [("z", 30.0), ("a", 0.0)]
    assert g["list"] == [0.0, (12.0,)] and g["none"] is None and g["empty"] == {}


@as_tree
@dataclass(frozen=True)
class Layer:
    weights: np.ndarray
    bias: float = 0.0

    def __post_init__(self):
        assert np.ndim(self.weights) == 1


def test_dataclasses_may_be_trees():
    layer = Layer(V, 2.0)
    g = grad(lambda p: np.sum(p[0].weights ** 2) * p[0].bias + p[1])((layer, 1.0))[0]
    assert isinstance(g, Layer) and g.weights.tolist() == [4, 8, 12] and g.bias == 14
    _, t = jvp(lambda p: Layer(p.weights * p.bias, p.bias), (layer,), (layer,))
    assert isinstance(t, Layer) and t.weights.tolist() == [4, 8, 12] and t.bias == 2
    with pytest.raises(TypeError, match=r"argument\[0\]\['bias'\] is a int"):
        grad(lambda p: 1.0)(Layer(V, 2))
    with pytest.raises(TypeError, match=r"is a Plain, .*revgrad\.extend\.as_tree"):
        grad(lambda p: 1.0)(Plain(V))


@dataclass
class Plain:
    weights: np.ndarray


@pytest.mark.parametrize(
    ("leaf", "came"),
    [
        (np.array([1, 2]), "int64 and shape"),
        (np.array([True]), "bool"),
        (np.array([None]), "object"),
        (np.array(["a"]), "<U1"),
        (3, "a int"),
        (True, "a bool"),
        ("weights", "a str"),
        (Plain(V), "a Plain"),
        (SimpleNamespace(w=V), "a SimpleNamespace"),
        (np.int32(2), "a int32"),
    ],
)
def test_leaves_that_are_not_real_floats_are_refused_by_path(leaf, came):
    tree = {"layers": [V, Point(2.0, leaf)]}
    path = r"\[0\]\['layers'\]\[1\]\[(1|'y')\]"
    for use, name in (
        (lambda: grad(lambda t: 1.0)(tree), "argument"),
        (lambda: jacfwd(lambda t: 1.0)(tree), "argument"),
        (lambda: vjp(lambda t: 1.0, tree), "primals"),
        (lambda: jvp(lambda t: 1.0, (tree,), (tree,)), "primals"),
    ):
        with pytest.raises(TypeError, match=rf"{name}{path} is .*{came}"):
            use()
    with pytest.raises(TypeError, match=rf"argument\[1\].*{came}"):
        grad(lambda x, y: x, argnums=1)(1.0, leaf)
    assert grad(lambda x, y: x * 2)(1.0, leaf) == 2  # what is not differentiated may be anything


@pytest.mark.parametrize(
    ("ct", "words"),
    [
        ({"u": V, "v": [1.0]}, r"the cotangent has structure .* but the function's result has"),
        ((V, (1.0,)), "a list is not a tuple"),
        ({"u": V}, "structure"),
        (None, "structure"),
        ({"u": V[:2], "v": (1.0,)}, r"the cotangent\['u'\] has shape \(2,\), its value \(3,\)"),
        ({"u": 1.0, "v": (1.0,)}, r"the cotangent\['u'\] has shape \(\)"),
        ({"u": V, "v": (V,)}, r"the cotangent\['v'\]\[0\] has shape \(3,\), its value \(\)"),
        ({"u": V * 1j, "v": (1.0,)}, r"the cotangent\['u'\] is an array of complex128"),
    ],
)
def test_a_cotangent_must_be_like_the_result(ct, words):
    _, pullback = vjp(lambda x: {"u": x * 2, "v": (np.sum(x),)}, V)
    with pytest.raises(TypeError, match=words):
        pullback(ct)


@pytest.mark.parametrize(
    ("tangents", "words"),
    [
        (({"a": V, "b": 1.0, "c": 2.0},), "a tangent has structure"),
        (([V, 1.0],), "a tangent has structure"),
        (({"a": V, "b": 1.0}, 1.0), "1 primals but 2 tangents"),
        (({"a": V[:2], "b": 1.0},), r"tangents\[0\]\['a'\] has shape \(2,\), its value \(3,\)"),
        (({"a": V, "b": 1j},), r"tangents\[0\]\['b'\] is a complex"),
        ({"a": V, "b": 1.0}, "tangents is a dict; pass a tuple"),
        (V, "tangents is an array .*; pass a tuple"),
    ],
)
def test_tangents_must_be_like_the_primals(tangents, words):
    with pytest.raises(TypeError, match=words):
        jvp(lambda t: t["a"] * t["b"], ({"a": V, "b": 2.0},), tangents)


def test_primals_of_jvp_are_a_tuple():
    with pytest.raises(TypeError, match=r"primals is an array .*; pass a tuple"):
        jvp(np.sin, V, V)


# Memory.


def _loss(x):
    return np.sum(np.tanh(M @ x) ** 2) + x[0] * np.max(x)


def test_gradients_leave_no_garbage():
    transforms = (grad(_loss), value_and_grad(_loss), lambda x: hvp(_loss, (x,), (x,)))
    for g in transforms:
        g(V)
    gc.collect()
    gc.disable()
    try:
        for _ in range(1000):
            transforms[0](V)
        for _ in range(50):
            for g in transforms:
                g(V)
        assert gc.collect() == 0
    finally:
        gc.enable()


def test_memory_is_flat():
    def traced(times):
        for _ in range(times):
            g(V)
        gc.collect()  # empties Python's free lists too
        return tracemalloc.get_traced_memory()[0]

    g = grad(lambda x: np.sum(np.sin(x) * x))
    tracemalloc.start()
    try:
        assert -traced(100) + traced(1000) < 10_000  # under a Python object for each
    finally:
        tracemalloc.stop()


# The oracle.


def _params(dtype=np.float64):
    sizes = (5, 7, 6, 3)
    return [
        {"w": random_array((m, n), dtype, m), "b": random_array((n,), dtype, n)}
        for m, n in pairwise(sizes)
    ]


def _mlp_loss(xp, params, x, y):
    """Cross-entropy of an MLP with every kind of rule that one needs."""
    h = x
    for layer in params[:-1]:
        h = xp.tanh(h @ layer["w"] + layer["b"])
    logits = h @ params[-1]["w"] + params[-1]["b"]
    logits = logits - xp.max(logits, axis=1, keepdims=True)
    log_p = logits - xp.log(xp.sum(xp.exp(logits), axis=-1, keepdims=True))
    penalty = sum(xp.sum(layer["w"] ** 2) + xp.mean(abs(layer["b"])) for layer in params)
    return -xp.mean(xp.sum(log_p * y, axis=1)) + 0.1 * penalty


@pytest.fixture
def oracle():
    jax = pytest.importorskip("jax")
    before = jax.config.jax_enable_x64
    jax.config.update("jax_enable_x64", True)
    yield jax
    jax.config.update("jax_enable_x64", before)


def test_an_mlp_agrees_with_jax(oracle):
    x, y = random_array((8, 5), seed=1), np.eye(3)[[0, 1, 2, 0, 1, 2, 0, 1]]
    params = _params()
    ts = optree.tree_map(lambda p: random_array(p.shape, seed=9), params)
    ours = partial(_mlp_loss, np, x=x, y=y)
    theirs = partial(_mlp_loss, oracle.numpy, x=oracle.numpy.asarray(x), y=oracle.numpy.asarray(y))

    def agree(a, b, rtol=1e-12):
        optree.tree_map(lambda p, q: np.testing.assert_allclose(p, q, rtol, 1e-13), a, b)

    value, g = value_and_grad(ours)(params)
    their_value, their_g = oracle.jit(oracle.value_and_grad(theirs))(params)
    agree(value, float(their_value))
    agree(g, optree.tree_map(np.asarray, their_g))
    their_hvp = oracle.jit(lambda p, t: oracle.jvp(oracle.grad(theirs), (p,), (t,))[1])
    their_product = their_hvp(params, ts)
    agree(hvp(ours, (params,), (ts,))[1], optree.tree_map(np.asarray, their_product))
    reverse_twice = vjp(grad(ours), params)[1](ts)[0]
    agree(reverse_twice, optree.tree_map(np.asarray, their_product), 1e-11)
    head = lambda loss: lambda p: loss([*params[:-1], p])
    ours_h = hessian(head(ours))(params[-1])
    their_h = oracle.jit(oracle.hessian(head(theirs)))(params[-1])
    agree(ours_h, optree.tree_map(np.asarray, their_h), 1e-11)


def test_an_mlp_in_float32_stays_there_and_agrees_with_jax(oracle):
    x = random_array((8, 5), np.float32, 1)
    y = np.eye(3, dtype=np.float32)[[0, 1, 2, 0, 1, 2, 0, 1]]
    params = _params(np.float32)
    value, g = value_and_grad(partial(_mlp_loss, np, x=x, y=y))(params)
    theirs = oracle.jit(oracle.value_and_grad(partial(_mlp_loss, oracle.numpy, x=x, y=y)))
    their_value, their_g = theirs(params)
    assert value.dtype == np.float32 and all(v.dtype == np.float32 for v in optree.tree_leaves(g))
    assert value == pytest.approx(float(their_value), rel=1e-6)
    optree.tree_map(lambda p, q: np.testing.assert_allclose(p, q, 1e-5, 1e-6), g, their_g)


def test_the_tape_lets_go_of_what_no_rule_reads():
    """Of tanh(h @ w + b) it holds the result, not the product and the sum."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((4000, 30))
    layers = [(rng.standard_normal((30, 30)) / 6, np.zeros(30)) for _ in range(8)]

    def f(layers):
        h = x
        for w, b in layers:
            h = np.tanh(h @ w + b)
        return np.sum(h * h)

    grad(f)(layers)
    tracemalloc.start()
    try:
        grad(f)(layers)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < (len(layers) + 6) * x.nbytes
