"""The array box: what a traced array looks like to NumPy code.

It answers Python's operators, ndarray's methods, and NumPy's two dispatch protocols. The answers
come from one registry, `functions`: NumPy callable -> handler taking the same arguments. A handler
is a primitive, or a plain function that tidies its arguments and calls primitives. `rules/` fills
the registry; this file only looks things up, and refuses clearly what cannot be traced.
"""

import inspect
import operator
from functools import cache

import numpy as np

from revgrad.errors import MissingRule
from revgrad.tape import Box, Primitive, Pull, Push

functions = {}
late = []  # functions that fill the registry further, once the package that they need is there


class TracedIndex(TypeError):
    """A traced array of integers met NumPy where it takes plain ones: as an index of a plain array.

    NumPy does not ask the index who should answer. `compile` tries again, see captures.py.
    """


def _refuse_conversion(what, instead):
    def refuse(self, *_args, **_kwargs):
        if self.dtype.kind in "iu":
            raise TracedIndex(
                f"{what} of a traced array of {self.dtype} and shape {self.shape} while recording. "
                "As an index of an array made in this function it has no effect that could be "
                "recorded: make that array outside or pass it as an argument; np.eye(n)[y] is "
                "y[:, None] == np.arange(n). A range that moves is x[i + np.arange(n)]. A number "
                "that sets a shape must be a Python int."
            )
        raise TypeError(
            f"{what} of a traced array of shape {self.shape} would cut the derivative. {instead}"
        )

    return refuse


def _operator(function):
    def forward(self, other):
        return functions[function](self, other) if _is_operand(other) else NotImplemented

    def reflected(self, other):
        return functions[function](other, self) if _is_operand(other) else NotImplemented

    return forward, reflected


def _in_place(symbol):
    """A number is rebound, as Python does it; an array would change under all of its names."""

    def refuse(self, other):
        if not self.shape:
            return NotImplemented
        raise TypeError(
            f"x {symbol}= y on a traced array of shape {self.shape}, which cannot be changed in "
            f"place; write x = x {symbol} y."
        )

    return refuse


def _is_operand(x):
    return not isinstance(x, (str, bytes, list, tuple, dict, set, type(None)))


def _method(function):
    def method(self, *args, **kwargs):
        return call(function, self, *args, **kwargs)

    method.__name__ = function.__name__
    method.__doc__ = f"As `numpy.{function.__name__}(self, ...)`."
    return method


def call(function, *args, **kwargs):
    """Call the handler of a NumPy function, or say that it has no rule."""
    handler = functions.get(function) or _found_late(function)
    if handler is None:
        instead = _INSTEAD_OF.get(function)
        raise MissingRule(
            f"{_name(function)} has no derivative rule, and was called on a traced array; "
            + (instead or "write one with revgrad.extend, or pass stop_gradient(x) if no")
            + ("." if instead else " derivative is wanted.")
        )
    if kwargs:
        _check_keywords(_name(function), handler, kwargs)
    return handler(*args, **kwargs)


def _found_late(function):
    for load in late:
        load()
    return functions.get(function)


def _check_keywords(name, handler, kwargs):
    if kwargs.pop("out", None) is not None:
        raise TypeError(f"{name}(..., out=...) of a traced array; drop out=.")
    if isinstance(handler, Primitive):
        if any(isinstance(x, Box) for x in kwargs.values()):
            raise TypeError(f"{name} of a traced array: pass it by position, not by keyword.")
    elif unknown := sorted(_unknown(handler, kwargs)):
        raise TypeError(
            f"{name} of a traced array takes no {'=, '.join(unknown)}=; write it with np.where, "
            "x.astype and the like."
        )


def _unknown(handler, kwargs):
    """Those of some keywords that a handler does not take."""
    parameters = _parameters(handler)
    takes_any = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    return () if takes_any else kwargs.keys() - parameters.keys()


@cache
def _parameters(handler):
    return inspect.signature(handler).parameters


def _name(function):
    return getattr(function, "__name__", repr(function))


class ArrayBox(Box):
    """A traced array or number. Use it as you would a NumPy array; it cannot be assigned to."""

    __slots__ = ()
    __array_priority__ = 1000.0
    __hash__ = object.__hash__

    # What the value says of itself; no trace needs to see it.
    shape = property(lambda self: np.shape(self.value))
    ndim = property(lambda self: np.ndim(self.value))
    size = property(lambda self: np.size(self.value))
    dtype = property(lambda self: _dtype(self.value))
    itemsize = property(lambda self: self.dtype.itemsize)
    nbytes = property(lambda self: self.size * self.itemsize)

    def __repr__(self):
        return f"<traced {self.dtype}{list(self.shape)} = {plain(self)!r}>"

    def __array_ufunc__(self, ufunc, method, *inputs, out=None, **kwargs):
        handler = functions.get(ufunc)
        if method == "__call__" and out is None and handler is not None and not kwargs:
            return handler(*(inputs if len(inputs) == 1 else map(_as_operand, inputs)))
        if out is not None:
            raise TypeError(
                f"{ufunc.__name__}(..., out=...) or an in-place operator met a traced array; write "
                "x = x + y instead of x += y, and drop out=."
            )
        inputs = [*map(_as_operand, inputs)]
        if method == "at":
            raise TypeError(
                f"np.{ufunc.__name__}.at changes an array in place; add to it with np.where, or "
                "multiply by a matrix of zeros and ones."
            )
        if method != "__call__":
            if (ufunc, method) not in functions:
                raise MissingRule(
                    f"{ufunc.__name__}.{method} has no derivative rule; write one with "
                    "revgrad.extend."
                )
            return functions[ufunc, method](*inputs, **kwargs)
        if kwargs:
            raise TypeError(
                f"{ufunc.__name__} of a traced array takes no {', '.join(kwargs)}=; write "
                "np.where(mask, f(x), other) or x.astype(dtype)."
            )
        return call(ufunc, *inputs)

    def __array_function__(self, function, _types, args, kwargs):
        return call(function, *args, **kwargs)

    __array__ = _refuse_conversion(
        "conversion to a NumPy array (np.array, np.asarray, a library that calls it, or x[i] = s)",
        "Build arrays with np.stack, np.concatenate or np.where; replace entries with np.where.",
    )
    __float__ = _refuse_conversion("float()", "Keep it an array, or use stop_gradient(x).")
    __int__ = _refuse_conversion("int()", "Keep it an array, or use stop_gradient(x).")
    __index__ = _refuse_conversion("use as an index", "Use stop_gradient(x).")
    __complex__ = _refuse_conversion("complex()", "Keep it an array.")
    __setitem__ = _refuse_conversion(
        "assignment to entries", "Use np.where(mask, new, x), np.stack or np.concatenate."
    )
    item = tolist = _refuse_conversion("conversion to Python numbers", "Use stop_gradient(x).")

    def __bool__(self):
        if not isinstance(self.owner, (Pull, Push)):
            raise TypeError(
                "a branch on a traced value was met while recording; the recording would keep one "
                "side of it for ever. Use np.where, or do not compile this function."
            )
        return bool(self.value)

    def __len__(self):
        if not self.shape:
            raise TypeError("len() of a traced number; it has no axis.")
        return self.shape[0]

    def __iter__(self):
        return (self[i] for i in range(len(self)))

    def __contains__(self, value):
        return bool(np.any(self == value))

    def __format__(self, spec):
        return format(plain(self), spec)

    def __getitem__(self, index):
        return functions[operator.getitem](self, index)

    __add__, __radd__ = _operator(operator.add)
    __sub__, __rsub__ = _operator(operator.sub)
    __mul__, __rmul__ = _operator(operator.mul)
    __truediv__, __rtruediv__ = _operator(operator.truediv)
    __floordiv__, __rfloordiv__ = _operator(operator.floordiv)
    __mod__, __rmod__ = _operator(operator.mod)
    __pow__, __rpow__ = _operator(operator.pow)
    __matmul__, __rmatmul__ = _operator(operator.matmul)
    __and__, __rand__ = _operator(operator.and_)
    __or__, __ror__ = _operator(operator.or_)
    __xor__, __rxor__ = _operator(operator.xor)
    __lt__, _ = _operator(operator.lt)
    __le__, _ = _operator(operator.le)
    __gt__, _ = _operator(operator.gt)
    __ge__, _ = _operator(operator.ge)
    __eq__, _ = _operator(operator.eq)
    __ne__, _ = _operator(operator.ne)

    __iadd__, __isub__, __imul__, __itruediv__ = map(_in_place, ("+", "-", "*", "/"))
    __ipow__, __imatmul__, __imod__, __ifloordiv__ = map(_in_place, ("**", "@", "%", "//"))

    def __getattr__(self, name):
        if not hasattr(np.ndarray, name):
            raise AttributeError(f"a traced array has no attribute {name!r}.")
        instead = _INSTEAD.get(name, f"look for a function np.{name}, or use stop_gradient(x)")
        raise AttributeError(f"a traced array has no x.{name}; {instead}.")

    def __divmod__(self, other):
        return self // other, self % other

    def __rdivmod__(self, other):
        return other // self, other % self

    def __neg__(self):
        return functions[operator.neg](self)

    def __invert__(self):
        return functions[operator.invert](self)

    def __pos__(self):
        return functions[operator.pos](self)

    def __abs__(self):
        return functions[operator.abs](self)

    T = property(lambda self: call(np.transpose, self))
    mT = property(lambda self: call(np.matrix_transpose, self))
    real = property(lambda self: call(np.real, self))
    imag = property(lambda self: call(np.imag, self))
    conj, conjugate = _method(np.conj), _method(np.conjugate)
    sum, mean, max, min = map(_method, (np.sum, np.mean, np.max, np.min))
    var, std, any, all = map(_method, (np.var, np.std, np.any, np.all))
    squeeze, ravel, swapaxes = map(_method, (np.squeeze, np.ravel, np.swapaxes))
    dot, argmax, argmin, clip = map(_method, (np.dot, np.argmax, np.argmin, np.clip))
    take, round, argsort = map(_method, (np.take, np.round, np.argsort))
    prod, cumsum, cumprod, repeat = map(_method, (np.prod, np.cumsum, np.cumprod, np.repeat))
    diagonal, flatten, nonzero = map(_method, (np.diagonal, np.ravel, np.nonzero))
    trace, searchsorted, argpartition = map(_method, (np.trace, np.searchsorted, np.argpartition))

    def reshape(self, *shape):
        """As `ndarray.reshape`."""
        return call(np.reshape, self, shape[0] if len(shape) == 1 else shape)

    def transpose(self, *axes):
        """As `ndarray.transpose`."""
        return call(np.transpose, self, (axes[0] if len(axes) == 1 else axes) or None)

    def astype(self, dtype, *, copy=True):
        """As `ndarray.astype`; the derivative is cast back."""
        return functions["astype"](self, dtype=np.dtype(dtype), copy=copy)

    def compress(self, condition, axis=None):
        """As `ndarray.compress`."""
        return call(np.compress, condition, self, axis)

    def copy(self, order="C"):
        """As `ndarray.copy`: later sums see the order of entries in memory."""
        return functions["copy"](self, order=order)


_INSTEAD = {
    "fill": "write np.where(True, value, x)",
    "sort": "write np.sort(x), or x[np.argsort(x)]",
    "partition": "write np.partition(x, kth)",
    "resize": "write np.resize(x, shape)",
    "put": "write revgrad.at(x, index).set(values)",
    "flat": "write np.ravel(x)",
    "view": "write x.astype(dtype)",
    "strides": "use stop_gradient(x).strides",
    **dict.fromkeys(("tobytes", "tofile", "dump", "dumps"), "use stop_gradient(x)"),
}


_IN_PLACE = "it changes an array in place: use revgrad.at(x, index).set(values) or np.where"
_INSTEAD_OF = {
    **dict.fromkeys((np.copyto, np.putmask, np.place, np.put, np.put_along_axis), _IN_PLACE),
    np.fill_diagonal: "it changes an array in place: use np.where(np.eye(n), value, x)",
    **dict.fromkeys(
        (np.union1d, np.intersect1d, np.setxor1d),
        "it does not say whose an entry is: use np.unique of np.concatenate, np.isin and x[mask]",
    ),
    **dict.fromkeys(
        (np.histogram, np.histogram2d, np.histogramdd, np.histogram_bin_edges),
        "edges that follow the values move, counts jump: use np.searchsorted and np.bincount",
    ),
    **dict.fromkeys(
        (np.array2string, np.array_repr, np.array_str, np.save, np.savez, np.savetxt),
        "pass stop_gradient(x)",
    ),
}


def _as_operand(x):
    return np.asarray(x) if isinstance(x, (list, tuple)) else x


def plain(x):
    """The value under all boxes."""
    while isinstance(x, Box):
        x = x.value
    return x


def _dtype(x):
    return getattr(x, "dtype", None) or np.result_type(x)
