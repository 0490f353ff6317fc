"""How a row of the rule table is written, and the two operations that every row shares.

In rules `t` is a tangent, `ct` a cotangent, `out` the answer. A tangent or cotangent has the shape
and dtype of the value it belongs to; None is an exact zero.
"""

import operator
from functools import partial, reduce

import numpy as np

from revgrad.arrays import functions, plain
from revgrad.tape import Primitive


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

    primitive = Primitive(_name(key), run, push_all, pull_all)
    if register:
        functions[key] = primitive
    return primitive


def elementwise(keys, *partials):
    """Add broadcasting functions from one partial derivative per argument, for both modes.

    A partial is None (zero), 1, -1, or a function (out, *args) -> array that broadcasts with out.
    """
    for key in keys:
        functions[key] = elementwise_primitive(key, partials)


def elementwise_primitive(run, partials):
    """The primitive of one such function, not registered."""
    push, pull = partial(_push_elementwise, partials), partial(_pull_elementwise, partials)
    return Primitive(_name(run), run, push, pull)


def _push_elementwise(partials, tangents, *, out, args, static):
    pairs = [(t, p) for t, p in zip(tangents, partials, strict=True) if t is not None and p]
    parts = [_times(t, p, out, args) for t, p in pairs]
    return match(reduce(operator.add, parts), out) if parts else None


def _pull_elementwise(partials, ct, *, wanted, out, args, static):
    pairs = [(args[i], partials[i]) for i in wanted]
    return [p and unbroadcast(_times(ct, p, out, args), x) for x, p in pairs]


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


def shape_of(x):
    """Shape, of traced values too."""
    return np.shape(plain(x))


def dtype_of(x):
    """Dtype, of traced values too; Python floats count as float64."""
    x = plain(x)
    return getattr(x, "dtype", None) or np.result_type(x)


def cast(x, dtype):
    """x as dtype; x itself when it has it."""
    return x if dtype_of(x) == dtype else functions["astype"](x, dtype=dtype)


def match(t, like):
    """Give a tangent the array type, shape and dtype of the value it belongs to."""
    home, shape = plain(like), shape_of(like)
    stranger = hasattr(home, "dtype") and type(plain(t)) is not type(home)
    if shape_of(t) == () and (shape or stranger):
        t = t * np.ones_like(home)
    elif shape_of(t) != shape:
        t = np.broadcast_to(t, shape)
    return cast(t, dtype_of(like))


def unbroadcast(ct, like):
    """Transpose of broadcasting and promotion: sum ct to the shape of `like`, cast to its dtype."""
    shape, wanted = shape_of(ct), shape_of(like)
    if shape != wanted:
        extra = len(shape) - len(wanted)
        axes = tuple(range(extra)) + tuple(
            i + extra for i, n in enumerate(wanted) if n == 1 and shape[i + extra] != 1
        )
        ct = np.sum(ct, axis=axes) if axes else ct
        if shape_of(ct) != wanted:
            ct = np.reshape(ct, wanted)
    return cast(ct, dtype_of(like))
