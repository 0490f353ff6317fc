"""Functions applied entry by entry: one partial derivative per argument serves both modes."""

import operator
from functools import partial

import numpy as np

from revgrad.arrays import functions, plain
from revgrad.rules.row import (
    args_alone,
    cast,
    composite,
    constant,
    define,
    derived,
    dtype_of,
    elementwise,
    elementwise_primitive,
    is_complex,
    keep,
    match,
    out_alone,
    shapes_alone,
    unbroadcast,
)
from revgrad.tape import Primitive


def _share(out, x, y):
    """1 where x alone attains the extremum, 1/2 at ties."""
    return cast(np.where(x == out, np.where(y == out, 0.5, 1.0), 0.0), dtype_of(out))


def _power_base(out, x, y):
    if isinstance(y, (int, float)):  # stays weak: no float64 in float32 code
        return y * x ** (y - 1) if y else 0.0
    if isinstance(plain(y), float):  # a traced one does too
        return y * x ** (y - (y != 0))
    return y * x ** np.where(y == 0, 1.0, y - 1)


def _power_exponent(out, x, y):
    if is_complex(out):
        return out * np.log(cast(np.where(x == 0, 1.0, x), dtype_of(out)))
    return out * np.log(np.where(x > 0, x, 1.0))


def _direction(out, x):
    """The derivative of abs: of a complex number, to be multiplied and its real part taken."""
    return np.conjugate(x) / np.where(out == 0, 1.0, out) if is_complex(x) else np.sign(x)


# keys, then a partial derivative per argument. Operators and ufuncs are separate primitives: on
# scalars they may round differently, and a Python float must stay one.
elementwise((operator.add, np.add), 1, 1)
elementwise((operator.sub, np.subtract), 1, -1)
elementwise((operator.mul, np.multiply), lambda out, x, y: y, lambda out, x, y: x)
elementwise((operator.truediv, np.divide), lambda out, x, y: 1 / y, lambda out, x, y: -out / y)
elementwise((operator.pow, np.power), _power_base, _power_exponent)
elementwise((operator.mod, np.mod), 1, lambda out, x, y: -(x // y))
elementwise((operator.neg, np.negative), -1)
elementwise((operator.pos, np.positive), 1)
elementwise((np.exp,), lambda out, x: out)
elementwise((np.exp2,), lambda out, x: out * float(np.log(2)))
elementwise((np.expm1,), lambda out, x: out + 1)
elementwise((np.log,), lambda out, x: 1 / x)
elementwise((np.log2,), lambda out, x: 1 / (x * float(np.log(2))))
elementwise((np.log10,), lambda out, x: 1 / (x * float(np.log(10))))
elementwise((np.log1p,), lambda out, x: 1 / (1 + x))
elementwise((np.sqrt,), lambda out, x: 0.5 / out)
elementwise((np.square,), lambda out, x: 2 * x)
elementwise((np.reciprocal,), lambda out, x: -out * out)
elementwise((operator.abs, np.absolute, np.fabs), _direction)
elementwise((np.sin,), lambda out, x: np.cos(x))
elementwise((np.cos,), lambda out, x: -np.sin(x))
elementwise((np.tan,), lambda out, x: 1 + out * out)
elementwise((np.arcsin,), lambda out, x: 1 / np.sqrt(1 - x * x))
elementwise((np.arccos,), lambda out, x: -1 / np.sqrt(1 - x * x))
elementwise((np.arctan,), lambda out, x: 1 / (1 + x * x))
elementwise((np.sinh,), lambda out, x: np.cosh(x))
elementwise((np.cosh,), lambda out, x: np.sinh(x))
elementwise((np.tanh,), lambda out, x: 1 - out * out)
elementwise((np.arcsinh,), lambda out, x: 1 / np.sqrt(x * x + 1))
elementwise((np.arccosh,), lambda out, x: 1 / np.sqrt((x - 1) * (x + 1)))
elementwise((np.arctanh,), lambda out, x: 1 / (1 - x * x))
elementwise((np.cbrt,), lambda out, x: 1 / (3 * out * out))
keep(shapes_alone, operator.add, np.add, operator.sub, np.subtract, operator.neg, np.negative)
keep(out_alone, np.exp, np.expm1, np.sqrt, np.tanh)
keep(args_alone, operator.mul, np.multiply)
elementwise((np.deg2rad, np.radians), lambda out, x: float(np.pi / 180))
elementwise((np.rad2deg, np.degrees), lambda out, x: float(180 / np.pi))
_extrema = np.maximum, np.minimum, np.fmax, np.fmin
elementwise(_extrema, _share, lambda out, x, y: _share(out, y, x))
elementwise((np.float_power,), _power_base, _power_exponent)
elementwise((np.fmod,), 1, lambda out, x, y: -np.trunc(x / y))
elementwise((np.copysign,), lambda out, x, y: np.copysign(1.0, x) * np.copysign(1.0, y), None)
elementwise((np.logaddexp,), lambda out, x, y: np.exp(x - out), lambda out, x, y: np.exp(y - out))
elementwise(
    (np.logaddexp2,), lambda out, x, y: np.exp2(x - out), lambda out, x, y: np.exp2(y - out)
)
elementwise(
    (np.arctan2,),
    lambda out, y, x: x / (x * x + y * y),
    lambda out, y, x: -y / (x * x + y * y),
)
elementwise((np.hypot,), lambda out, x, y: x / out, lambda out, x, y: y / out)

elementwise((np.ldexp,), lambda out, x, i: np.ldexp(np.ones_like(plain(x)), i), None)

# Numbers taken apart: what jumps has no derivative.
_exponent = Primitive("exponent", lambda x: np.frexp(x)[1], constant=True)
_divmod = lambda x, y: (np.floor_divide(x, y), np.mod(x, y))
_modf = lambda x: (x - np.trunc(x), np.trunc(x))


def _frexp(x):
    exponent = _exponent(x)
    return np.ldexp(x, -exponent), exponent


for _split, _parts in ((np.divmod, _divmod), (np.modf, _modf), (np.frexp, _frexp)):
    functions[_split] = derived(_split, _split, _parts, many=True)

# Parts of complex numbers: linear over the reals.
_imag = define(
    "imag",
    np.imag,
    ["linear"],
    [lambda ct, out, x: cast(ct, dtype_of(x)) * -1j],
)
define(
    np.real,
    np.real,
    ["linear"],
    [lambda ct, out, x: cast(ct, dtype_of(x))],
)
define(np.conjugate, np.conjugate, ["linear"], [lambda ct, out, x: np.conjugate(ct)])


@composite(np.imag)
def _np_imag(val):
    return _imag(val) if is_complex(val) else np.imag(plain(val))


@composite(np.angle)
def _angle(z, deg=False):
    if not is_complex(z):
        return np.angle(plain(z), deg)
    angle = np.arctan2(np.imag(z), np.real(z))
    return angle * (180 / np.pi) if deg else angle


_real_if_close = derived(
    "real_if_close",
    lambda a, *, tol: np.real_if_close(a, tol),
    lambda a, *, tol: np.real(a) if _looks_real(a, tol) else a,
)


def _looks_real(a, tol):
    """A branch on values: refused while recording."""
    limit = tol * np.finfo(dtype_of(a)).eps if tol > 1 else tol
    return not is_complex(a) or bool(np.all(np.absolute(np.imag(a)) < limit))


@composite(np.real_if_close)
def _np_real_if_close(a, tol=100):
    _looks_real(a, tol)
    return _real_if_close(a, tol=tol)


# Selection by np.where keeps an infinite derivative on the side not taken from becoming NaN.
_where = define(
    "where",
    np.where,
    push=[
        None,
        lambda t, out, c, x, y: match(np.where(c, t, 0.0), out),
        lambda t, out, c, x, y: match(np.where(c, 0.0, t), out),
    ],
    pull=[
        None,
        lambda ct, out, c, x, y: unbroadcast(np.where(c, ct, 0.0), x),
        lambda ct, out, c, x, y: unbroadcast(np.where(c, 0.0, ct), y),
    ],
)


@composite(np.where)
def _np_where(condition, *choices):
    return _where(condition, *choices) if choices else functions[np.nonzero](condition)


def _clip_share(i, out, x, low, high):
    """How much of minimum(maximum(x, low), high) comes from argument i."""
    raised = x if low is None else np.maximum(x, low)
    kept = 1.0 if high is None else _share(out, raised, high)
    if i == 0:
        return kept if low is None else kept * _share(raised, x, low)
    return kept * _share(raised, low, x) if i == 1 else _share(out, high, raised)


def _sinc_slope(out, x):
    """(cos(pi x) - sinc(x)) / x, and its series near 0, where that loses its figures."""
    near = np.absolute(x) < 1e-2
    away, y = np.where(near, 1.0, x), float(np.pi) * x
    series = float(-np.pi) * y / 3 * (1 - y * y / 10 * (1 - y * y / 28 * (1 - y * y / 54)))
    return np.where(near, series, (np.cos(float(np.pi) * away) - np.sinc(away)) / away)


_sinc = elementwise_primitive(np.sinc, [_sinc_slope])
_nan_to_num = define(
    "nan_to_num",
    lambda x, *, nan, posinf, neginf: np.nan_to_num(x, True, nan, posinf, neginf),
    [lambda t, out, x, **_: np.where(np.isfinite(x), t, 0.0)],
    [lambda ct, out, x, **_: np.where(np.isfinite(x), ct, 0.0)],
)


@composite(np.sinc)
def _np_sinc(x):
    return _sinc(x)


@composite(np.nan_to_num)
def _np_nan_to_num(x, copy=True, nan=0.0, posinf=None, neginf=None):
    return _nan_to_num(x, nan=nan, posinf=posinf, neginf=neginf)


_clip = elementwise_primitive(np.clip, [partial(_clip_share, i) for i in range(3)])


@composite(np.clip)
def _np_clip(a, a_min=None, a_max=None, *, min=None, max=None):
    return _clip(a, a_min if min is None else min, a_max if max is None else max)


_sign = Primitive("sign", np.sign, constant=True)
_phase = derived("phase", np.sign, lambda x: x / np.where(x == 0, 1.0, np.absolute(x)))


@composite(np.sign)
def _np_sign(x):
    return (_phase if is_complex(x) else _sign)(x)


constant(
    *(operator.lt, operator.le, operator.gt, operator.ge, operator.eq, operator.ne),
    *(np.less, np.less_equal, np.greater, np.greater_equal, np.equal, np.not_equal),
    *(np.logical_and, np.logical_or, np.logical_not, np.logical_xor),
    *(np.floor, np.ceil, np.rint, np.trunc, np.round, np.around, np.signbit),
    *(np.heaviside, np.isneginf, np.isposinf, np.isreal, np.iscomplex),
    *(np.isnan, np.isinf, np.isfinite, np.isclose, np.allclose, np.array_equal),
    *(operator.floordiv, np.floor_divide, operator.and_, operator.or_, operator.xor),
    *(operator.invert, np.bitwise_and, np.bitwise_or, np.bitwise_xor, np.invert, np.fix),
)
