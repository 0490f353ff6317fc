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
    name = getattr(key, "__name__", str(key))

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

    primitive = Primitive(name, run, push_all, pull_all)
    if register:
        functions[key] = primitive
    return primitive


def elementwise(keys, *partials):
    """Add broadcasting functions from one partial derivative per argument, for both modes.

    A partial is None (zero), 1, -1, or a function (out, *args) -> array that broadcasts with out.
    """
    push = [p and partial(_push_elementwise, p) for p in partials]
    pull = [p and partial(_pull_elementwise, p, i) for i, p in enumerate(partials)]
    for key in keys:
        define(key, key, push, pull)


def _push_elementwise(p, t, out, *args):
    return match(_times(t, p, out, args), out)


def _pull_elementwise(p, i, ct, out, *args):
    return unbroadcast(_times(ct, p, out, args), args[i])


def _times(c, p, out, args):
    if callable(p):
        return c * p(out, *args)
    return c if p == 1 else -c


def constant(*keys):
    """Add functions whose derivative is zero everywhere."""
    for key in keys:
        functions[key] = Primitive(getattr(key, "__name__", str(key)), key, constant=True)


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
    """Give a tangent the shape and dtype of the value it belongs to."""
    if shape_of(t) != shape_of(like):
        t = np.broadcast_to(t, shape_of(like))
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
