"""How a row of the rule table is written, and the two operations that every row shares.

In rules `t` is a tangent, `ct` a cotangent, `out` the answer. A tangent or cotangent has the shape
and dtype of the value it belongs to; None is an exact zero.

Complex values: tangents and cotangents are paired by Re(sum(ct * t)), without a conjugate, so that
the rule of a holomorphic function is the one for real numbers, and the transpose of taking a real
number for a complex one is the real part. The gradient of a real f at x + iy is df/dx - i df/dy.
"""

import inspect
import operator
from functools import partial, reduce, wraps
from numbers import Integral

import numpy as np

from revgrad.arrays import ArrayBox, functions, plain
from revgrad.tape import Box, Primitive, Pull, Push, pull_back

LARGE = 2**12  # entries from which on the tape lets go of an array that no rule reads


def define(key, run, push, pull, *, register=True):
    """Add a primitive with one push and one pull rule per positional argument.

    push[i](t, out, *args, **static) and pull[i](ct, out, *args, **static); None where the
    derivative is zero; push[i] = "linear" where run is linear in argument i.
    """

    def push_all(tangents, *, out, args, static):
        parts = []
        for i, t in enumerate(tangents):
            if t is None or push[i] is None:
                continue
            if push[i] == "linear":
                parts.append(primitive(*args[:i], t, *args[i + 1 :], **static))
            else:
                parts.append(push[i](t, out, *args, **static))
        return reduce(operator.add, parts) if parts else None

    def pull_all(ct, *, wanted, out, args, static):
        return [pull[i] and pull[i](ct, out, *args, **static) for i in wanted]

    primitive = Primitive(_name(key), run, push and push_all, pull and pull_all)
    if register:
        functions[key] = primitive
    return primitive


def derived(key, run, equal, *, many=False):
    """A primitive that runs `run`, with the derivatives of `equal`, the same in others with rules.

    For functions that are called seldom: a derivative runs `equal` anew. Both modes, any order.
    """

    def push(tangents, *, out, args, static):
        with Push(ArrayBox) as trace:
            boxed = [
                a if t is None else trace.input(a, t) for a, t in zip(args, tangents, strict=True)
            ]
            pairs = [trace.unwrap(y) for y in _as_tuple(equal(*boxed, **static), many)]
        outs = zip(pairs, _as_tuple(out, many), strict=True)
        ts = [t if t is None else match(t, o) for (_, t), o in outs]
        return ts if many else ts[0]

    def pull(ct, *, wanted, out, args, static):
        with Pull(ArrayBox) as trace:
            boxed = [trace.input(a) if i in wanted else a for i, a in enumerate(args)]
            pairs = [trace.unwrap(y) for y in _as_tuple(equal(*boxed, **static), many)]
        cts = zip(pairs, _as_tuple(ct, many), strict=True)
        given = [(node, match(c, y)) for (y, node), c in cts if node is not None and c is not None]
        found = pull_back(given, [boxed[i].node for i in wanted])
        return [
            c if c is None else unbroadcast(c, args[i]) for i, c in zip(wanted, found, strict=True)
        ]

    return Primitive(_name(key), run, push, pull, many=many)


def _as_tuple(x, many):
    return tuple(x) if many else (x,)


def formula(function, *, arrays=1, shaping=(), many=False):
    """Decorator: add a function of NumPy's from what it equals, with its parameters; see `derived`.

    arrays: how many of the first parameters may be traced. shaping: the positions of those whose
    values decide the shape of the answer, so that no recording can hold them.
    """

    def register(equal):
        run = lambda *args, **static: function(*args, **static)
        primitive = derived(function, run, equal, many=many)
        signature = inspect.signature(equal)
        names = [*signature.parameters]

        @wraps(equal)
        def handler(*args, **kwargs):
            bound = signature.bind(*args, **kwargs)
            bound.apply_defaults()
            values = [*bound.arguments.values()]
            args = [
                np.asarray(x) if isinstance(x, list) and i not in shaping else x
                for i, x in enumerate(values[:arrays])
            ]
            for i in shaping:
                settled(args[i], _name(function))
            return primitive(*args, **dict(zip(names[arrays:], values[arrays:], strict=True)))

        functions[function] = handler
        return handler

    return register


def settled(x, name):
    """Refuse a value that is being recorded where it decides the shape of an answer."""
    while isinstance(x, Box):
        if not isinstance(x.owner, (Pull, Push)):
            raise TypeError(
                f"np.{name} of a traced array was met while recording: its values decide the shape "
                "of the answer. Write np.where(mask, x, 0), or find the places outside and pass "
                "them."
            )
        x = x.value


def elementwise(keys, *partials):
    """Add broadcasting functions from one partial derivative per argument, for both modes.

    A partial is None (zero), 1, -1, or a function (out, *args) -> array that broadcasts with out.
    """
    for key in keys:
        functions[key] = elementwise_primitive(key, partials)


def elementwise_primitive(run, partials):
    """The primitive of one such function, not registered."""
    push, pull = partial(_push_elementwise, partials), partial(_pull_elementwise, partials)
    if len(partials) == 1 and callable(partials[0]):
        pull = _unary_pull(partials[0])
    return Primitive(_name(run), run, push, pull)


def _push_elementwise(partials, tangents, *, out, args, static):
    pairs = [(t, p) for t, p in zip(tangents, partials, strict=True) if t is not None and p]
    parts = [_times(t, p, out, args) for t, p in pairs]
    return match(reduce(operator.add, parts), out) if parts else None


def _pull_elementwise(partials, ct, *, wanted, out, args, static):
    return [
        partials[i] and unbroadcast(_times(ct, partials[i], out, args), args[i]) for i in wanted
    ]


def _unary_pull(p):
    """The rule of functions of one argument, which are most, without the detours."""

    def pull(ct, *, wanted, out, args, static):
        return (unbroadcast(ct * p(out, args[0]), args[0]),)

    return pull


def _times(c, p, out, args):
    if callable(p):
        return c * p(out, *args)
    return c if p == 1 else -c


def constant(*keys):
    """Add functions whose derivative is zero everywhere."""
    for key in keys:
        functions[key] = Primitive(_name(key), key, constant=True)


def _name(key):
    return getattr(key, "__name__", str(key))


def composite(*keys):
    """Decorator: add a function written in others that have rules."""

    def register(function):
        functions.update(dict.fromkeys(keys, function))
        return function

    return register


class Outline:
    """Stands for a large array in a rule that reads no more of it than shape and dtype.

    So that the tape holds only what its rules read: of x @ w + b neither the product nor the sum.
    """

    __slots__ = ("dtype", "shape")

    def __init__(self, x):
        self.shape, self.dtype = x.shape, x.dtype

    @staticmethod
    def of(x):
        return Outline(x) if getattr(x, "size", 0) >= LARGE else x


def shapes_alone(out, args):
    return Outline.of(out), [*map(Outline.of, args)]


def args_alone(out, args):
    return Outline.of(out), args


def out_alone(out, args):
    return out, [*map(Outline.of, args)]


def keep(what, *keys):
    """Say what of their values the pull-backs of some functions read."""
    for key in keys:
        functions[key].keeps = what


def filled_like(make, x, *args, shape, **options):
    """make(x, ..., shape=shape), for np.zeros_like and such; CuPy takes () and 0 for no shape."""
    shape = (shape,) if isinstance(shape, Integral) else tuple(shape)
    if shape:
        return make(x, *args, shape=shape, **options)
    return np.reshape(make(x, *args, shape=(1,), **options), shape)


def shape_of(x):
    """Shape, of traced values too."""
    shape = getattr(x, "shape", None)
    return np.shape(x) if shape is None else shape


def dtype_of(x):
    """Dtype, of traced values too; Python floats count as float64."""
    dtype = getattr(x, "dtype", None)
    return np.result_type(x) if dtype is None else dtype


def cast(x, dtype):
    """x as dtype; x itself when it has it. Of complex numbers for real ones, the real part."""
    if dtype_of(x) == dtype:
        return x
    if dtype_of(x).kind == "c" and dtype.kind == "f":
        return cast(np.real(x), dtype)
    return functions["astype"](x, dtype=dtype)


def is_complex(*xs):
    """Whether one of them has a complex dtype."""
    return any(dtype_of(x).kind == "c" for x in xs)


def match(t, like):
    """Give a tangent the array type, shape and dtype of the value it belongs to."""
    home, shape = plain(like), shape_of(like)
    foreign = not isinstance(home, (np.ndarray, np.generic, float))
    if foreign and shape_of(t) == () and (shape or type(plain(t)) is not type(home)):
        t = t * np.ones_like(home)
    elif shape_of(t) != shape:
        t = np.broadcast_to(t, shape)
    elif not hasattr(t, "dtype") and hasattr(home, "dtype"):
        t = home.dtype.type(t) if not shape else t
    return cast(t, dtype_of(like))


def unbroadcast(ct, like):
    """Transpose of broadcasting and promotion: sum ct to the shape of `like`, cast to its dtype."""
    kind = type(ct)
    if kind is type(like) and (kind is np.float64 or (kind is np.ndarray and _alike(ct, like))):
        return ct  # the usual case, before anything that takes time
    shape, wanted = shape_of(ct), shape_of(like)
    if shape != wanted:
        extra = len(shape) - len(wanted)
        axes = tuple(range(extra)) + tuple(
            i + extra for i, n in enumerate(wanted) if n == 1 and shape[i + extra] != 1
        )
        ct = _sum_out(ct, axes) if axes else ct
        if shape_of(ct) != wanted:
            ct = np.reshape(ct, wanted)
    return cast(ct, dtype_of(like))


def _alike(x, y):
    return x.shape == y.shape and x.dtype == y.dtype


def _sum_out(ct, axes):
    """Sum over axes; that of a matrix over its rows, a bias's, by the faster product with ones."""
    if axes != (0,) or len(shape_of(ct)) != 2 or dtype_of(ct).kind != "f":
        return np.sum(ct, axis=axes)
    return filled_like(np.ones_like, plain(ct), shape=shape_of(ct)[0]) @ ct
