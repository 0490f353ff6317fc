"""The array box: what a traced array looks like to NumPy code.

It answers Python's operators, ndarray's methods, and NumPy's two dispatch protocols. The answers
come from one registry, `functions`: NumPy callable -> handler taking the same arguments. A handler
is a primitive, or a plain function that tidies its arguments and calls primitives. `rules/` fills
the registry; this file only looks things up, and refuses clearly what cannot be traced.
"""

import operator

import numpy as np

from revgrad.errors import MissingRule
from revgrad.tape import Box, Pull, Push

functions = {}


def _refuse_conversion(what, instead):
    def refuse(self, *_args, **_kwargs):
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
    handler = functions.get(function)
    if handler is None:
        name = getattr(function, "__name__", repr(function))
        raise MissingRule(
            f"{name} has no derivative rule, and was called on a traced array; write one with "
            "revgrad.extend, or pass stop_gradient(x) if no derivative is wanted."
        )
    return handler(*args, **kwargs)


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

    def __repr__(self):
        return f"<traced {self.dtype}{list(self.shape)} = {plain(self)!r}>"

    def __array_ufunc__(self, ufunc, method, *inputs, out=None, **kwargs):
        if out is not None:
            raise TypeError(
                f"{ufunc.__name__}(..., out=...) or an in-place operator met a traced array; write "
                "x = x + y instead of x += y, and drop out=."
            )
        if method != "__call__":
            if (ufunc, method) not in functions:
                raise MissingRule(f"numpy.{ufunc.__name__}.{method} has no derivative rule.")
            return functions[ufunc, method](*inputs, **kwargs)
        if kwargs:
            raise TypeError(
                f"numpy.{ufunc.__name__} of a traced array takes no {', '.join(kwargs)}=; write "
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
        if not isinstance(self.trace, (Pull, Push)):
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
    __lt__, _ = _operator(operator.lt)
    __le__, _ = _operator(operator.le)
    __gt__, _ = _operator(operator.gt)
    __ge__, _ = _operator(operator.ge)
    __eq__, _ = _operator(operator.eq)
    __ne__, _ = _operator(operator.ne)

    def __neg__(self):
        return functions[operator.neg](self)

    def __pos__(self):
        return self

    def __abs__(self):
        return functions[np.absolute](self)

    T = property(lambda self: call(np.transpose, self))
    sum, mean, max, min = map(_method, (np.sum, np.mean, np.max, np.min))
    squeeze, ravel, swapaxes = map(_method, (np.squeeze, np.ravel, np.swapaxes))
    dot, argmax, argmin, clip = map(_method, (np.dot, np.argmax, np.argmin, np.clip))

    def reshape(self, *shape):
        """As `ndarray.reshape`."""
        return call(np.reshape, self, shape[0] if len(shape) == 1 else shape)

    def transpose(self, *axes):
        """As `ndarray.transpose`."""
        return call(np.transpose, self, (axes[0] if len(axes) == 1 else axes) or None)

    def astype(self, dtype):
        """As `ndarray.astype`; the derivative is cast back."""
        return functions["astype"](self, dtype=np.dtype(dtype))

    def copy(self):
        """The box itself: traced arrays are never changed in place."""
        return self


def plain(x):
    """The value under all boxes."""
    while isinstance(x, Box):
        x = x.value
    return x


def _dtype(x):
    return getattr(x, "dtype", None) or np.result_type(x)
