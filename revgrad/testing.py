"""Checks that revgrad runs on itself, for its users' rules and optimizers too.

Each check raises AssertionError with the numbers that disagree. The strategies need hypothesis.
"""

from functools import partial

import numpy as np
import optree
from numpy.lib.mixins import NDArrayOperatorsMixin

from revgrad.adjoints import Reversible, Stored
from revgrad.arrays import plain
from revgrad.program import FixedPoint
from revgrad.rules.row import cast, define, dtype_of, shape_of
from revgrad.train import train
from revgrad.transforms import jvp, vjp


def check_grads(f, args, *, order=2, modes=("push", "pull"), seed=0, tolerance=None):
    """Check f's derivatives at args against difference quotients and each other, up to `order`.

    args: tuple of trees of floats, in the interior of f's domain. In float32 the quotient is taken
    of f in float64. Beyond the first order the functions checked are f's own push and pull.
    """
    rng = np.random.default_rng(seed)
    if "push" in modes:
        _check_quotient(f, args, rng, tolerance)
    if "pull" in modes:
        check_duality(f, args, seed=seed, tolerance=tolerance)
    if order > 1:
        ts = _random_like(args, rng)
        if "push" in modes:
            push = lambda *xs: jvp(f, xs, ts)[1]
            check_grads(push, args, order=order - 1, modes=modes, seed=seed + 1, tolerance=tolerance)
        if "pull" in modes:
            cts = _random_like(f(*args), rng)
            pull = lambda *xs: vjp(f, *xs)[1](cts)
            check_grads(pull, args, order=order - 1, modes=modes, seed=seed + 2, tolerance=tolerance)


def check_duality(f, args, *, seed=0, tolerance=None):
    """Check <J t, c> = <t, J' c> for random t and c, and that shapes and dtypes are kept."""
    rng = np.random.default_rng(seed)
    ts = _random_like(args, rng)
    out, pushed = jvp(f, args, ts)
    again, pullback = vjp(f, *args)
    assert _same_bits(out, again), "the primals of the two modes differ"
    cts = _random_like(out, rng)
    pulled = pullback(cts)
    for what, primal, derivative in (("tangent", out, pushed), ("cotangent", args, pulled)):
        _check_kinds(what, primal, derivative)
    left, right = _inner(pushed, cts), _inner(ts, pulled)
    scale = _size(pushed) * _size(cts) + _size(ts) * _size(pulled)
    tolerance = tolerance or (1e-12 if _is_double(args) else 1e-5)
    assert abs(left - right) <= tolerance * scale + 1e-300, f"<J t, c> = {left}, <t, J' c> = {right}"


def check_reversible(optimizer, *, size=5, steps=20, seed=0, loss=None, buffer="words"):
    """Check laws 1 and 5 for an optimizer on a random problem of `size` weights.

    Training must return exactly, and its hypergradients with Reversible() and Stored() be equal to
    the bit. optimizer: an instance, with hyperparameters as floats. loss: (params, hyper, batch).
    Raises: AssertionError, NotReversed.
    """
    rng = np.random.default_rng(seed)
    loss = loss or _random_loss(rng, size)
    params, hyper = rng.standard_normal(size), rng.standard_normal(size)

    def trained(adjoint, params, factors, hyper):
        changed = type(optimizer)(**factors)
        return train(
            loss, params, changed, range(steps), hyper=hyper, adjoint=adjoint,
            return_state=True, arithmetic=FixedPoint(buffer=buffer),
        )[0]  # fmt: skip

    pulled = []
    for adjoint in (Reversible(), Stored()):
        out, pullback = vjp(partial(trained, adjoint), params, optimizer.hyper, hyper)
        pulled.append((out, pullback(np.cos(np.arange(size))), pullback(np.sin(np.arange(size)))))
    assert _same_bits(*pulled), f"Reversible and Stored differ: {pulled}"


def _random_loss(rng, size):
    a = rng.standard_normal((size, size))

    def loss(params, hyper, batch):
        return np.sum(np.tanh(a @ params + np.cos(batch)) ** 2) / size + np.sum(hyper * params) / 10

    return loss


def planted_fault(loss, *, call, leaf=0):
    """The loss, but one entry of its gradient is one ulp off at one call, counted from 0.

    The entry is the largest of leaf number `leaf` of the params. For checking that the checks work:
    training whose way back meets such a gradient must raise NotReversed.
    """
    calls = iter(range(call + 1))

    def faulty(params, hyper, batch):
        if next(calls, None) == call:
            leaves, tree = optree.tree_flatten(params)
            leaves[leaf] = _off_by_one_ulp(leaves[leaf])
            params = optree.tree_unflatten(tree, leaves)
        return loss(params, hyper, batch)

    return faulty


def _nudge(ct, out, x):
    value = np.asarray(plain(ct))
    largest = np.unravel_index(np.argmax(np.abs(value)), value.shape)
    ulp = np.zeros_like(value)
    ulp[largest] = np.nextafter(value[largest], np.inf) - value[largest]
    return ct + ulp


_off_by_one_ulp = define("off_by_one_ulp", lambda x: x, ["linear"], [_nudge], register=False)


class ForeignArray(NDArrayOperatorsMixin):
    """An array type that is not NumPy's: it answers NumPy's protocols and refuses conversion.

    Where code handed one meets `np.asarray`, or gives back a plain array, it has left the array's
    home (a GPU, say). `.home` is the NumPy array inside, for tests to look at.
    """

    def __init__(self, home):
        self.home = np.asarray(home)

    dtype = property(lambda self: self.home.dtype)
    shape = property(lambda self: self.home.shape)
    ndim = property(lambda self: self.home.ndim)
    size = property(lambda self: self.home.size)

    def __array__(self, *_, **__):
        raise TypeError("a foreign array was converted to NumPy.")

    __float__ = __int__ = __index__ = __array__

    def __array_ufunc__(self, ufunc, method, *inputs, **kwargs):
        if not all(isinstance(x, (ForeignArray, int, float, np.number)) for x in inputs):
            return NotImplemented
        return _foreign(getattr(ufunc, method)(*map(_home, inputs), **kwargs))

    def __array_function__(self, function, types, args, kwargs):
        if not all(issubclass(t, ForeignArray) for t in types):
            return NotImplemented
        args, kwargs = optree.tree_map(_home, (args, kwargs))
        return _foreign(function(*args, **kwargs))

    def __getitem__(self, index):
        return _foreign(self.home[optree.tree_map(_home, index)])

    def __setitem__(self, index, value):
        self.home[optree.tree_map(_home, index)] = _home(value)

    def __bool__(self):
        return bool(self.home)

    __hash__ = object.__hash__

    def __len__(self):
        return len(self.home)

    def astype(self, dtype, **options):
        return _foreign(self.home.astype(dtype, **options))

    def copy(self):
        return _foreign(self.home.copy())

    def __repr__(self):
        return f"ForeignArray({self.home!r})"


def _home(x):
    return x.home if isinstance(x, ForeignArray) else x


def _foreign(x):
    return ForeignArray(x) if isinstance(x, (np.ndarray, np.generic)) else x


def _check_quotient(f, args, rng, tolerance):
    """A symmetric difference quotient of f along a random direction, against the push-forward."""
    ts = _random_like(args, rng)
    out, pushed = jvp(f, args, ts)
    wide, wide_ts = _as_double(args), _as_double(ts)
    step = 1e-6
    ahead, behind = (
        f(*optree.tree_map(lambda x, t, h=h: x + h * t, wide, wide_ts)) for h in (step, -step)
    )
    quotient = optree.tree_map(lambda a, b: (a - b) / (2 * step), ahead, behind)
    error = optree.tree_map(lambda q, t: _magnitude(q - _double(t)), quotient, pushed)
    size = max(1.0, _size(quotient), _size(out))
    tolerance = tolerance or (1e-6 if _is_double(args) else 1e-3)
    worst = max(optree.tree_leaves(error), default=0.0)
    assert worst <= tolerance * size, f"push-forward and difference quotient differ by {worst}"


def _check_kinds(what, primal, derivative):
    pairs = zip(optree.tree_leaves(primal), optree.tree_leaves(derivative), strict=True)
    for x, dx in pairs:
        assert shape_of(x) == shape_of(dx), f"a {what} of {shape_of(x)} has shape {shape_of(dx)}"
        same = dtype_of(x) == dtype_of(dx)
        assert same, f"a {what} of a {dtype_of(x)} has dtype {dtype_of(dx)}"


def _random_like(tree, rng):
    def draw(x):
        x = plain(x)
        r = rng.standard_normal(np.shape(x))
        if isinstance(x, ForeignArray):
            return ForeignArray(r.astype(x.dtype))
        return cast(np.asarray(r)[()], dtype_of(x))

    return optree.tree_map(draw, tree)


def _double(x):
    x = plain(x)
    return np.asarray(_home(x), np.float64)


def _as_double(tree):
    return optree.tree_map(_double, tree)


def _is_double(tree):
    return all(dtype_of(x) == np.float64 for x in optree.tree_leaves(tree))


def _magnitude(x):
    return float(np.max(np.abs(x), initial=0.0))


def _size(tree):
    return float(np.sqrt(sum(np.sum(_double(x) ** 2) for x in optree.tree_leaves(tree))))


def _inner(a, b):
    pairs = zip(optree.tree_leaves(a), optree.tree_leaves(b), strict=True)
    return sum(float(np.sum(_double(x) * _double(y))) for x, y in pairs)


def _same_bits(a, b):
    """Whether two trees have equal bits, NaN included."""
    pairs = zip(optree.tree_leaves(a), optree.tree_leaves(b), strict=True)
    return all(
        np.asarray(_home(plain(x))).tobytes() == np.asarray(_home(plain(y))).tobytes()
        for x, y in pairs
    )
