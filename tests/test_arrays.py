"""The array box: how it answers Python's operators and NumPy's protocols, and what it refuses."""

import math
import operator

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies import random_array

from revgrad import grad, jvp, stop_gradient, value_and_grad, vjp
from revgrad.arrays import ArrayBox, plain
from revgrad.errors import MissingRule
from revgrad.tape import Box, Primitive, Pull, Push, Trace

X = np.array([[1.0, -2.0, 3.0], [4.0, 5.0, -6.0]])


def trace(f, *args):
    """f on boxes; returns what f returns."""
    answer = []
    vjp(lambda *xs: answer.append(f(*xs)) or xs[0], *args)
    return answer[0]


def refused(f, *args, match, kind=TypeError):
    with pytest.raises(kind, match=match):
        vjp(f, *args)


# What it says of itself.


def test_a_box_has_the_attributes_of_its_value():
    for x in (X, X.astype(np.float32), X[:0], np.float32(1), 2.0):
        seen = trace(lambda x: (x.shape, x.ndim, x.size, x.dtype), x)
        assert seen == (np.shape(x), np.ndim(x), np.size(x), np.result_type(x))
    assert trace(len, X) == 2
    with pytest.raises(TypeError, match="no axis"):
        trace(len, 2.0)


def test_a_box_keeps_no_name_of_an_array_for_itself():
    assert not {n for n in Box.__slots__ if hasattr(np.ndarray, n)}
    assert vjp(lambda x: x.trace(1), X)[0] == X.trace(1)
    assert vjp(lambda x: x.mT, X)[0].tolist() == X.T.tolist()
    assert trace(lambda x: (x.itemsize, x.nbytes), X) == (8, 48)


def test_repr_and_format_show_the_value():
    assert trace(repr, 2.5) == "<traced float64[] = 2.5>"
    assert trace(repr, np.ones(2, np.float32)).startswith("<traced float32[2] = array([1., 1.]")
    assert trace(lambda x: f"{x:.3f}", 2.0) == "2.000"
    assert trace(lambda x: grad(lambda y: (f"{y:.1f}", y * x)[1])(x).value, 2.0) == 2


def test_plain_is_the_value_under_all_boxes():
    seen = []
    grad(lambda x: jvp(lambda y: seen.append(plain(y)) or y * x, (x,), (1.0,))[1])(3.0)
    assert seen == [3.0] and type(seen[0]) is float


def test_a_box_is_hashable_by_identity():
    assert trace(lambda x: len({x, x}), 1.0) == 1


# Operators.

BINARY = [
    *(operator.add, operator.sub, operator.mul, operator.truediv, operator.pow, operator.mod),
    *(operator.floordiv, operator.lt, operator.le, operator.gt, operator.ge, operator.eq),
    operator.ne,
]
OTHERS = [2, 2.5, np.float32(2.5), np.float64(2.5), np.array(2.5), np.array([1.5, 2.5, 3.5])]


@pytest.mark.parametrize("op", BINARY, ids=lambda op: op.__name__)
@pytest.mark.parametrize("other", OTHERS, ids=lambda x: f"{type(x).__name__}{np.ndim(x)}")
@pytest.mark.parametrize("x", [0.75, np.float32(0.75), np.abs(X), np.abs(X).astype(np.float32)])
def test_operators_with_numbers_and_arrays_on_either_side(op, other, x):
    for f in (lambda x: op(x, other), lambda x: op(other, x)):
        value, expected = vjp(f, x)[0], f(x)
        assert type(value) is type(expected)
        assert np.asarray(value).dtype == np.asarray(expected).dtype
        assert np.array_equal(value, expected)


def test_matrix_products_from_either_side():
    a = random_array((4, 2))
    assert np.array_equal(vjp(lambda x: a @ x, X)[0], a @ X)
    assert np.array_equal(vjp(lambda x: x.T @ a[:2], X)[0], X.T @ a[:2])
    assert np.array_equal(grad(lambda x: np.sum(a @ x))(X), a.T @ np.ones((4, 3)))


def test_signs():
    assert trace(lambda x: (plain(-x), plain(+x), plain(abs(x))), -2.0) == (2.0, -2.0, 2.0)
    assert type(vjp(abs, -2.0)[0]) is float
    assert grad(lambda x: np.sum(abs(x) * -(+x)))(np.array([-3.0, 2.0])).tolist() == [-6, -4]


@pytest.mark.parametrize("op", [operator.add, operator.mul, operator.pow, operator.matmul])
@pytest.mark.parametrize("other", ["a", None, [1.0], (1.0,), {}])
def test_operators_refuse_what_is_no_number(op, other):
    refused(lambda x: op(x, other), X, match="unsupported operand|can't multiply|use as an index")
    assert trace(lambda x: (x == other, x != other), X) == (False, True)


@given(st.floats(-5, 5), st.floats(-5, 5))
def test_comparison_and_branching_follow_the_value(a, b):
    def f(x, y):
        if x > y:
            return x * 2.0
        return x * 5.0 if x == y else y * 3.0

    value, slopes = value_and_grad(f, (0, 1))(a, b)
    assert value == f(a, b)
    assert slopes == ((2, 0) if a > b else (5, 0) if a == b else (0, 3))
    assert value_and_grad(lambda x: max(x, 1.0))(a) == (max(a, 1.0), float(a >= 1))
    assert trace(lambda x, y: [plain(v) for v in sorted([x, y])], a, b) == sorted([a, b])


def test_a_branch_while_recording_is_refused():
    class Recording(Trace):
        __slots__ = ()

    with Recording(ArrayBox) as recording:
        box = ArrayBox(1.0, recording, None)
        with pytest.raises(TypeError, match=r"recording.*np.where"):
            bool(box)
    assert issubclass(Pull, Trace) and issubclass(Push, Trace)


def test_bool_of_an_array_is_numpys():
    refused(lambda x: 1.0 if x else 2.0, X, match="ambiguous", kind=ValueError)


def test_iteration_and_membership():
    assert grad(lambda x: sum(row[0] * row[1] for row in x))(X).tolist() == [[-2, 1, 0], [5, 4, 0]]
    assert grad(lambda x: x[0, 0] if 5.0 in x else x[0, 1])(X)[0].tolist() == [1, 0, 0]
    assert trace(lambda x: (7.0 in x, 3.0 in x[0], 3.0 in x[1]), X) == (False, True, False)
    a, b = trace(lambda x: tuple(x), X)
    assert isinstance(a, Box) and a.shape == (3,) and b.shape == (3,)
    with pytest.raises(TypeError, match="no axis"):
        trace(iter, 2.0)
    assert trace(np.iterable, 2.0) is False


def test_comparison_gives_plain_masks():
    mask = trace(lambda x: x > 0, X)
    assert type(mask) is np.ndarray and np.array_equal(mask, X > 0)
    assert grad(lambda x: np.sum(x[x > 0]))(X).tolist() == (X > 0).tolist()


# Python floats stay weak: they do not turn float32 into float64.


@pytest.mark.parametrize(
    "f",
    [
        lambda s, x: s * x,
        lambda s, x: x**s,
        lambda s, x: s**x,
        lambda s, x: (abs(s) + s / 3 - -s) * x,
        lambda s, x: np.where(x > 0, x, s),
        lambda s, x: np.maximum(x, s),
        lambda s, x: np.clip(x, -s, s),
    ],
)
def test_a_traced_python_float_is_weak(f):
    x = np.array([0.5, 1.5], np.float32)
    assert f(1.25, x).dtype == np.float32
    out, pullback = vjp(f, 1.25, x)
    ds, dx = pullback(np.ones(2, np.float32))
    assert out.dtype == np.float32 and type(ds) is float and dx.dtype == np.float32
    assert jvp(f, (1.25, x), (1.0, x))[1].dtype == np.float32
    second = jvp(lambda s, x: vjp(f, s, x)[1](np.ones(2, np.float32)), (1.25, x), (1.0, x))[1]
    assert type(second[0]) is float and second[1].dtype == np.float32


# NumPy's protocols.


def test_ufuncs_and_functions_arrive_by_protocol():
    assert grad(lambda x: np.sum(np.tanh(x)))(np.zeros(2)).tolist() == [1, 1]
    assert grad(lambda x: np.sum(np.stack([x, 2 * x])))(np.zeros(2)).tolist() == [3, 3]
    assert grad(lambda x: np.add.reduce(x, axis=0).sum())(X).tolist() == np.ones((2, 3)).tolist()


def test_lists_of_numbers_are_arrays_to_ufuncs():
    f = lambda x: np.sum(np.multiply(x * x, [1.0, 2.0]))
    assert grad(f)(np.ones(2)).tolist() == [2, 4]
    assert jvp(grad(f), (np.ones(2),), (np.ones(2),))[1].tolist() == [2, 4]
    assert vjp(grad(f), np.ones(2))[1](np.ones(2))[0].tolist() == [2, 4]


# Methods.

METHODS = {
    "sum": lambda x: x.sum(axis=1, keepdims=True),
    "mean": lambda x: x.mean(0),
    "max": lambda x: x.max(axis=-1),
    "min": lambda x: x.min(),
    "var": lambda x: x.var(axis=0, ddof=1),
    "std": lambda x: x.std(),
    "squeeze": lambda x: x[:1].squeeze(axis=0),
    "ravel": lambda x: x.ravel(),
    "swapaxes": lambda x: x.swapaxes(0, 1),
    "dot": lambda x: x.dot(np.arange(3.0)),
    "clip": lambda x: x.clip(-1.5, 4.5),
    "clip to the right": lambda x: x.clip(max=4.5),
    "take": lambda x: x.take([0, 2], axis=1),
    "reshape": lambda x: x.reshape(3, 2),
    "reshape to a tuple": lambda x: x.reshape((3, -1)),
    "transpose": lambda x: x.transpose(),
    "transpose by axes": lambda x: x.transpose(1, 0),
    "transpose by a tuple": lambda x: x.transpose((1, 0)),
    "T": lambda x: x.T,
    "astype": lambda x: x.astype(np.float32),
    "astype without copy": lambda x: x.astype("float64", copy=False),
    "copy": lambda x: x.copy(),
    "flatten": lambda x: x.flatten(),
    "prod": lambda x: x.prod(axis=0),
    "cumsum": lambda x: x.cumsum(1),
    "cumprod": lambda x: x.cumprod(axis=0),
    "repeat": lambda x: x.repeat(2, axis=1),
    "diagonal": lambda x: x.diagonal(1),
    "real": lambda x: x.real,
}


@pytest.mark.parametrize("f", METHODS.values(), ids=METHODS)
def test_methods_are_ndarrays(f):
    out, pullback = vjp(f, X)
    assert type(out) is type(f(X)) and out.dtype == f(X).dtype and np.array_equal(out, f(X))
    ct = np.ones_like(out)
    assert np.sum(pullback(ct)[0] * X) == pytest.approx(np.sum(ct * jvp(f, (X,), (X,))[1]), 1e-6)


@pytest.mark.parametrize(
    "f",
    [
        lambda x: x.argmax(),
        lambda x: x.argmin(axis=1),
        lambda x: x.any(),
        lambda x: x.all(axis=0),
        lambda x: x.round(0),
        lambda x: x.argsort(axis=0),
        lambda x: x.astype(int),
        lambda x: x.astype(bool),
    ],
)
def test_methods_without_derivative_give_plain_answers(f):
    assert type(trace(f, X)) is type(f(X)) and np.array_equal(trace(f, X), f(X))


# Refusals: each says what came and what to write instead.

INSTEAD = "np.stack|np.where|np.concatenate"


@pytest.mark.parametrize(
    "f",
    [
        lambda s: np.array([s, 1.0]),
        lambda s: np.array([s]),
        lambda s: np.array(s),
        lambda s: np.asarray(s * 2),
        lambda s: np.ascontiguousarray(s),
        lambda s: np.asarray([s, s]),
    ],
)
@pytest.mark.parametrize("x", [2.0, np.float64(2.0)])
def test_conversion_to_an_array_is_refused(f, x):
    refused(f, x, match=INSTEAD)


def _assign_number(s):
    x = np.zeros((2, 2))
    x[0, 0] = s
    return x


def _assign_row(b):
    x = np.zeros((2, 3))
    x[0] = b[0]
    return x


def _text(error):
    """Of an error and its causes: NumPy may put one of its own in front."""
    texts = []
    while error is not None:
        texts.append(str(error))
        error = error.__cause__ or error.__context__
    return " ".join(texts)


@pytest.mark.parametrize(
    ("f", "x"),
    [
        (_assign_number, 2.0),
        (_assign_row, X),
        (lambda s: np.zeros(3).fill(s), 2.0),
        (lambda s: np.zeros(3).sum(initial=s), 2.0),
        (lambda s: np.full(3, s), 2.0),
        (lambda s: math.exp(s), 2.0),
        (lambda s: float(s), 2.0),
        (lambda s: int(s), 2.0),
        (lambda s: complex(s), 2.0),
        (lambda s: range(s), 2.0),
        (lambda s: X[s], 2.0),
        (lambda s: X[0][s:], 2.0),
        (lambda s: s.item(), 2.0),
        (lambda x: x.tolist(), X),
        (lambda x: np.testing.assert_allclose(x, X), X),
    ],
)
def test_leaving_the_trace_is_refused(f, x):
    with pytest.raises((TypeError, ValueError)) as caught:
        vjp(f, x)
    text = _text(caught.value)
    assert "of a traced array of shape" in text and "would cut the derivative" in text


@pytest.mark.parametrize("symbol", ["+", "-", "*", "/", "**", "@", "%", "//"])
def test_in_place_operators_on_a_traced_array_are_refused(symbol):
    """`y = x; y += 1` would change x in NumPy, and here only y."""
    space = {}
    exec(f"def f(x):\n    y = x\n    y {symbol}= x.T @ x\n    return x", space)
    refused(space["f"], np.eye(2), match=rf"write x = x {'[*]' * symbol.count('*') or '.'}")
    assert f"x {symbol}= y" in str(_caught(space["f"], np.eye(2)))


def _caught(f, *args):
    with pytest.raises(TypeError) as caught:
        vjp(f, *args)
    return caught.value


def test_in_place_operators_on_a_number_rebind_it():
    def f(x):
        total = 0.0
        for k in range(1, 4):
            total += x * k
        total -= 1.0
        total *= x
        total /= 2.0
        total **= 2
        return total

    value, slope = value_and_grad(f)(2.0)
    assert value == f(2.0)
    assert slope == pytest.approx((f(2 + 1e-6) - f(2 - 1e-6)) / 2e-6)
    assert grad(lambda x: f(np.sum(x)))(np.array([1.0, 1.0])) == pytest.approx([slope, slope])


@pytest.mark.parametrize("symbol", ["+", "-", "*", "/", "**"])
def test_in_place_operators_on_an_array_with_a_traced_operand_are_refused(symbol):
    space = {}
    exec(f"def f(x, a):\n    a {symbol}= x\n    return x", space)
    a = np.ones_like(X)
    refused(lambda x: space["f"](x, a), X, match=r"write x = x \+ y")
    refused(lambda s: space["f"](s, a), 2.0, match=r"write x = x \+ y")
    assert np.array_equal(a, np.ones_like(X))


@pytest.mark.parametrize(
    ("f", "words"),
    [
        (lambda x: np.add(x, 1.0, out=np.zeros_like(X)), "drop out="),
        (lambda x: np.sum(x, out=np.zeros(())), "sum.*drop out="),
        (lambda x: x.sum(axis=0, out=np.zeros(3)), "sum.*drop out="),
        (lambda x: np.add.at(np.zeros(3), [0], x[0, 0]), "np.add.at .*in place"),
        (lambda x: operator.setitem(x, 0, 1.0), INSTEAD),
    ],
)
def test_writing_elsewhere_is_refused(f, words):
    refused(f, X, match=words)


def test_out_none_is_let_through():
    assert np.array_equal(vjp(lambda x: np.sum(x, axis=0, out=None), X)[0], X.sum(axis=0))


@pytest.mark.parametrize(
    ("f", "name"),
    [
        (lambda x: np.i0(x), "i0"),
        (lambda x: np.roots(x), "roots"),
        (lambda x: np.spacing(x), "spacing"),
        (lambda x: np.logaddexp.accumulate(x), "logaddexp.accumulate"),
        (lambda x: np.frompyfunc(math.erf, 1, 1)(x), "erf"),
    ],
)
def test_a_missing_rule_names_the_function_and_the_cure(f, name):
    refused(f, X, match=rf"(?s){name}.*revgrad\.extend", kind=MissingRule)
    refused(f, X, match=name, kind=NotImplementedError)


def test_a_function_without_a_derivative_says_what_to_write():
    refused(lambda x: np.copyto(np.zeros_like(X), x), X, match="revgrad.at", kind=MissingRule)
    refused(lambda x: np.union1d(x, X), X, match="np.unique", kind=MissingRule)


def test_scipys_functions_are_named_too():
    special = pytest.importorskip("scipy.special")
    refused(special.spence, X, match="spence", kind=MissingRule)
    refused(special.logsumexp, X, match="traced", kind=(TypeError, MissingRule))


def test_stop_gradient_is_the_cure_that_the_errors_name():
    f = lambda x: x * float(stop_gradient(x)) + np.cumsum(stop_gradient(np.stack([x, x])))[1]
    assert value_and_grad(f)(3.0) == (15.0, 3.0)


def test_a_function_added_by_a_user_arrives():
    from revgrad.extend import define, elementwise, functions

    keys = [np.cbrt, np.degrees]
    before = {key: functions.pop(key) for key in keys}
    try:
        elementwise((np.cbrt,), lambda out, x: 1 / (3 * out**2))
        define(
            np.degrees,
            np.degrees,
            push=[lambda t, out, x: t * (180 / np.pi)],
            pull=[lambda ct, out, x: ct * (180 / np.pi)],
        )
        assert isinstance(functions[np.cbrt], Primitive)
        assert grad(np.cbrt)(8.0) == pytest.approx(1 / 12)
        assert grad(grad(np.cbrt))(8.0) == pytest.approx(-1 / 144)
        assert jvp(np.degrees, (1.0,), (np.pi,))[1] == pytest.approx(180)
    finally:
        functions.update(before)
