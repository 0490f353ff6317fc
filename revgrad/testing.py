"""Checks that revgrad runs on itself, for its users' rules and optimizers too.

Each check raises AssertionError with the numbers that disagree. The strategies need hypothesis.
"""

from contextlib import contextmanager
from dataclasses import field, fields, make_dataclass
from functools import partial
from itertools import count
from typing import Any

import numpy as np
import optree
from numpy.lib.mixins import NDArrayOperatorsMixin

from revgrad.adjoints import Reversible, Stored
from revgrad.arrays import plain
from revgrad.gradient import Gradient
from revgrad.optimizers import Momentum
from revgrad.rules.row import cast, dtype_of, shape_of
from revgrad.state import FixedPoint
from revgrad.statements import OF_LOSS, Add, Optimizer, Scale
from revgrad.train import train
from revgrad.transforms import jvp, vjp
from revgrad.wrappers import Wrapper


def check_grads(f, args, *, order=2, modes=("push", "pull"), seed=0, tolerance=None):
    """Check f's derivatives at args against difference quotients and each other, up to `order`.

    args: tuple of trees of floats, in the interior of f's domain. modes: which rules f has. In
    float32 the quotient is taken of f in float64. Beyond the first order the functions checked are
    f's own push and pull. tolerance: relative to the derivatives; by default 1e-6 for quotients and
    1e-12 between the modes, in float32 1e-3 and 1e-5.
    """
    rng = np.random.default_rng(seed)
    ts, cts = _random_like(args, rng), _random_like(f(*args), rng)
    both = {
        "push": lambda *xs: jvp(f, xs, ts)[1],
        "pull": lambda *xs: vjp(f, *xs)[1](cts),
    }
    derivatives = {mode: both[mode] for mode in modes}
    _check_quotients(f, args, ts, cts, tolerance, **derivatives)
    if len(derivatives) == 2:
        check_duality(f, args, seed=seed, tolerance=tolerance)
    if order > 1:
        for k, g in enumerate(derivatives.values(), start=1):
            check_grads(
                g, args, order=order - 1, modes=modes, seed=2 * seed + k, tolerance=tolerance
            )


def check_duality(f, args, *, seed=0, tolerance=None):
    """Check <J t, c> = <t, J' c> for random t and c.

    Also: the two modes see the same primals, a second pull-back gives the same bits, and
    derivatives have the shapes and dtypes of their values.
    """
    rng = np.random.default_rng(seed)
    ts = _random_like(args, rng)
    out, pushed = jvp(f, args, ts)
    again, pullback = vjp(f, *args)
    assert _same_bits(out, again), "the primals of the two modes differ"
    cts = _random_like(out, rng)
    pulled = _twice(pullback, cts)
    _check_kinds("tangent", out, pushed)
    _check_kinds("cotangent", args, pulled)
    left, right = _inner(pushed, cts), _inner(ts, pulled)
    scale = _size(pushed) * _size(cts) + _size(ts) * _size(pulled)
    tolerance = tolerance or (1e-12 if _is_double((args, out)) else 1e-5)
    _check_close(left - right, tolerance * scale, f"<J t, c> = {left}, <t, J' c> = {right}")


def check_reversible(optimizer, *, size=5, steps=20, seed=0, loss=None, buffer="words"):
    """Check laws 1 and 5 for an optimizer on a random problem of `size` weights.

    Training must return exactly, and its hypergradients with Reversible() and Stored() be equal to
    the bit. optimizer: an instance, with hyperparameters as floats. loss: (params, hyper, batch) ->
    scalar, or (scalar, aux) where a statement reads aux. Raises: AssertionError, NotReversed.
    """
    rng = np.random.default_rng(seed)
    has_aux = "aux" in optimizer.reads
    loss = loss or _random_loss(rng, size, has_aux)
    params, hyper = rng.standard_normal(size), rng.standard_normal(size)

    def trained(adjoint, params, factors, hyper):
        changed = optimizer.with_hyper(factors)
        trained, state = train(
            loss, params, changed, lambda t: t, steps=steps, hyper=hyper, adjoint=adjoint,
            has_aux=has_aux, return_state=True, arithmetic=FixedPoint(buffer=buffer),
        )  # fmt: skip
        return trained, {name: x for name, x in state.items() if name != "t"}

    pulled = []
    for adjoint in (Reversible(), Stored()):
        out, pullback = vjp(partial(trained, adjoint), params, optimizer.hyper, hyper)
        cts = [
            optree.tree_map(lambda x, f=f: f(np.arange(x.size)).reshape(x.shape), out)
            for f in (np.cos, np.sin)
        ]
        pulled.append((out, *map(pullback, cts)))
    assert _same_bits(*pulled), f"Reversible and Stored differ: {pulled}"


def _random_loss(rng, size, has_aux):
    a = rng.standard_normal((size, size))

    def loss(params, hyper, batch):
        hidden = np.tanh(a @ params + np.cos(batch))
        value = np.sum(hidden**2) / size + np.sum(hyper * params) / 10
        if not has_aux:
            return value
        return value, {"mean": np.mean(hidden), "hidden": hyper[:2] * hidden[:2]}

    return loss


@contextmanager
def planted_fault(step, *, visit=1, leaf=0):
    """Within it, the gradient at `step` is one ulp off at one visit: 0 is the way there.

    The entry is the largest of leaf number `leaf` of the params. For checking that the checks work:
    training whose way back meets such a gradient must raise NotReversed. For one run at a time.
    """
    visits, value, with_pullback = count(), Gradient.value, Gradient.with_pullback

    def spoil(gradient, g, t):
        if t == step and next(visits) == visit:
            part = gradient.layout.split(g)[leaf].reshape(-1)
            k = np.argmax(np.abs(part))
            part[k] += np.spacing(gradient.layout.dtypes[leaf].type(part[k]))

    def faulty_value(self, leaves, t):
        out, g = value(self, leaves, t)
        spoil(self, g, t)
        return out, g

    def faulty_with_pullback(self, leaves, t, early=None):
        g, pull = with_pullback(self, leaves, t, early)
        spoil(self, g, t)
        return g, pull

    try:
        Gradient.value, Gradient.with_pullback = faulty_value, faulty_with_pullback
        yield
    finally:
        Gradient.value, Gradient.with_pullback = value, with_pullback


def factors():
    """Strategy: momenta and other factors in (0, 1), as people write them and as they come."""
    from hypothesis import strategies as st

    return st.integers(1, 999).map(lambda k: k / 1000) | st.floats(0.01, 0.999)


def optimizers(kind):
    """Strategy: instances of an Optimizer class, with hyperparameters that `Reversible` takes.

    @given(optimizers(MyMomentum))
    def test_my_momentum_is_reversible(optimizer):
        check_reversible(optimizer)
    """
    from hypothesis import strategies as st

    scales = [s for s in (*kind.statements, *getattr(kind, "added", ())) if isinstance(s, Scale)]
    factor_names = {name for s in scales for name in s.reads}

    def values(field):
        if field.name == "optimizer" and issubclass(kind, Wrapper):
            return optimizers(Momentum)
        drawn = factors() if field.name in factor_names else st.floats(1e-4, 1)
        return st.none() | drawn if field.default is None else drawn

    drawn = st.builds(kind, **{f.name: values(f) for f in fields(kind) if not f.kw_only})
    return drawn.filter(lambda optimizer: optimizer.reversible)


# Drawn optimizers. Statements are text, so that a failure shows them.

VARIABLES = ("v", "w", "params")
OF_AUX = "s"  # a variable with the tree of the loss's aux
HYPER = ("a", "b", "c")
READABLE = ("g", "g_norm", "t", *VARIABLES, *HYPER)
FACTORS = ("a", "b", "lambda a, b: a * b", "lambda c, t: 1 / (1 + c * c + 1 / t)", "0.75")


def optimizer_of(texts, **hyper):
    """An optimizer with these statements, given as text; hyper: its hyperparameters.

    optimizer_of(["Scale('v', 'a')", "Add('v', lambda g: g)", "Add('params', lambda v: v)"], a=0.9)
    """
    names = {"np": np, "Add": Add, "Scale": Scale}
    statements = tuple(eval(text, dict(names)) for text in texts)
    drawn = [(name, Any, field(default=value)) for name, value in hyper.items()]
    return make_dataclass(
        "Drawn", drawn, bases=(Optimizer,), frozen=True, eq=False,
        namespace={"statements": statements},
    )()  # fmt: skip


def adding(target, *reads):
    """Text of an Add that reads these, takes bounded values and is linear in nothing."""
    terms = [f"{0.3 + 0.1 * k:.1f} * {name}" for k, name in enumerate(reads)]
    return (
        f"Add({target!r}, lambda {', '.join(reads)}: 0.1 * np.tanh({' + '.join(terms) or '1.0'}))"
    )


def scaling(target, by):
    """Text of a Scale. by: one of FACTORS."""
    return f"Scale({target!r}, {repr(by) if by.isidentifier() else by})"


def statement_lists(max_size=5):
    """Strategy: texts of any statements in any order; most such lists cannot be undone."""
    from hypothesis import strategies as st

    return st.lists(_statements(), min_size=1, max_size=max_size).map(_written)


def legal_lists(max_size=4):
    """Strategy: texts of statements that can be undone, in an order in which that need not be seen.

    Those that may read g come first and those that may change params last; then neighbours that
    do not touch each other change places. Hyperparameters are called a, b and c.
    """
    from hypothesis import strategies as st

    no_g = tuple(name for name in READABLE if name not in OF_LOSS)

    @st.composite
    def lists(draw):
        first = _statements(targets=("v", "w", OF_AUX))
        last = _statements(targets=VARIABLES, readable=no_g)
        before = draw(st.lists(first, min_size=1, max_size=max_size))
        after = draw(st.lists(last, min_size=1, max_size=max_size))
        texts = _written([*before, *after])
        made = optimizer_of(texts, **dict.fromkeys(HYPER, 0.5)).statements
        made = [*zip(texts, made, strict=True)]
        for i in draw(st.lists(st.integers(0, len(made) - 2), max_size=2 * max_size)):
            if _apart(made[i][1], made[i + 1][1]):
                made[i : i + 2] = made[i + 1], made[i]
        return [text for text, _ in made]

    return lists()


def _statements(targets=(*VARIABLES, OF_AUX), readable=READABLE):
    """Strategy: (target, what an Add reads) or (target, the factor of a Scale)."""
    from hypothesis import strategies as st

    def about(target):
        some = ("aux", "t", *HYPER) if target == OF_AUX else readable
        sources = st.sampled_from([name for name in some if name != target])
        what = st.sampled_from(FACTORS) | st.lists(sources, unique=True, max_size=3)
        return st.tuples(st.just(target), what)

    return st.sampled_from(targets).flatmap(about)


def _written(drawn):
    """Drawn statements as text.

    Variables that none of them changes are not read, and nothing is known to have the tree of aux
    unless something reads aux, so the variable that is for it then reads aux alone.
    """
    known = {target for target, _ in drawn} | {"t", "params", *OF_LOSS, *HYPER}
    if not any("aux" in what for target, what in drawn if isinstance(what, list)):
        drawn = [(t, ["aux"] if t == OF_AUX and isinstance(w, list) else w) for t, w in drawn]
    return [
        scaling(target, what)
        if isinstance(what, str)
        else adding(target, *(name for name in what if name in known))
        for target, what in drawn
    ]


def _apart(a, b):
    """Whether neither changes what the other changes or reads."""
    return a.target not in (b.target, *b.reads) and b.target not in a.reads


def float_arrays(shapes=None, dtype=np.float64, bound=2.0):
    """Strategy: arrays of floats in [-bound, bound]. shapes: a shape or a strategy of shapes."""
    from hypothesis.extra import numpy as hnp

    if shapes is None:
        shapes = hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4)
    return hnp.arrays(dtype, shapes, elements={"min_value": -bound, "max_value": bound})


def trees(leaves, max_leaves=6):
    """Strategy: nested dicts, lists, tuples and None around what the strategy `leaves` draws."""
    from hypothesis import strategies as st

    keys = st.sampled_from(["a", "b", "weights", "0"])
    return st.recursive(
        leaves | st.none(),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.lists(inner, max_size=3).map(tuple)
            | st.dictionaries(keys, inner, max_size=3)
        ),
        max_leaves=max_leaves,
    )


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
    strides = property(lambda self: self.home.strides)

    def __array__(self, *_, **__):
        raise TypeError("a foreign array was converted to NumPy.")

    __float__ = __int__ = __index__ = __array__

    def __array_ufunc__(self, ufunc, method, *inputs, **kwargs):
        if not all(isinstance(x, (ForeignArray, int, float, complex, np.generic)) for x in inputs):
            return NotImplemented
        if "out" in kwargs:
            kwargs["out"] = tuple(map(_home, kwargs["out"]))
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

    def copy(self, order="C"):
        return _foreign(self.home.copy(order))

    def __repr__(self):
        return f"ForeignArray({self.home!r})"


def _home(x):
    return x.home if isinstance(x, ForeignArray) else x


def _foreign(tree):
    arrays = (np.ndarray, np.generic)
    return optree.tree_map(lambda x: ForeignArray(x) if isinstance(x, arrays) else x, tree)


def _check_quotients(f, args, ts, cts, tolerance, push=None, pull=None):
    """One difference quotient, in direction ts, against the push and, through cts, the pull."""
    step = 1e-6 * max(1.0, _size(args) / max(_size(ts), 1e-300))
    out, quotient = f(*args), _quotient(f, args, ts, step)
    double = _is_double((args, out))
    tolerance = tolerance or (1e-6 if double else 1e-3)
    rounding = (1e-15 / step if double else 1e-6) * _size(out)
    if push:
        pushed = push(*args)
        _check_kinds("tangent", out, pushed)
        worst = _size(optree.tree_map(lambda q, t: q - _double(t), quotient, pushed))
        allowed = tolerance * (_size(quotient) + _size(pushed)) + rounding
        _check_close(worst, allowed, f"push-forward and difference quotient differ by {worst}")
    if pull:
        pulled = _twice(pull, *args)
        _check_kinds("cotangent", args, pulled)
        left, right = _inner(quotient, cts), _inner(ts, pulled)
        scale = _size(quotient) * _size(cts) + _size(ts) * _size(pulled)
        allowed = tolerance * scale + rounding * _size(cts)
        _check_close(
            left - right, allowed, f"pull-back and difference quotient: {right} and {left}"
        )


def _quotient(f, args, ts, step):
    """(f(x + h t) - f(x - h t)) / 2h in float64."""
    wide, wide_ts = _widened(args), _widened(ts)
    ahead, behind = (
        f(*optree.tree_map(lambda x, t, h=h: x + h * t, wide, wide_ts)) for h in (step, -step)
    )
    return optree.tree_map(lambda a, b: _double(a - b) / (2 * step), ahead, behind)


def _twice(pull, *args):
    first, second = pull(*args), pull(*args)
    assert _same_bits(first, second), f"the pull-back gave {first}, then {second}"
    return first


def _check_close(difference, allowed, message):
    assert abs(difference) <= allowed + 1e-300, message


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
        if dtype_of(x).kind == "c":
            r = r + 1j * rng.standard_normal(np.shape(x))
        if isinstance(x, ForeignArray):
            return ForeignArray(r.astype(x.dtype))
        return cast(np.asarray(r)[()], dtype_of(x))

    return optree.tree_map(draw, tree)


def _double(x):
    x = np.asarray(_home(plain(x)))
    return np.asarray(x, np.complex128 if x.dtype.kind == "c" else np.float64)


def _widened(tree):
    """The tree in float64 or complex128, array types kept."""

    def widen(x):
        return ForeignArray(_double(x)) if isinstance(plain(x), ForeignArray) else _double(x)[()]

    return optree.tree_map(widen, tree)


def _is_double(tree):
    return all(dtype_of(x) in (np.float64, np.complex128) for x in optree.tree_leaves(tree))


def _size(tree):
    return float(np.sqrt(sum(np.sum(np.abs(_double(x)) ** 2) for x in optree.tree_leaves(tree))))


def _inner(a, b):
    pairs = zip(optree.tree_leaves(a), optree.tree_leaves(b), strict=True)
    return sum(float(np.sum(_double(x) * _double(y)).real) for x, y in pairs)


def _same_bits(a, b):
    """Whether two trees have equal dtypes, shapes and bits, NaN included."""

    def bits(x):
        x = np.asarray(_home(plain(x)))
        return x.dtype, x.shape, x.tobytes()

    pairs = zip(optree.tree_leaves(a), optree.tree_leaves(b), strict=True)
    return all(bits(x) == bits(y) for x, y in pairs)
