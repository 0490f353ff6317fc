"""Factors as ratios of integers: the only place that rounds a hyperparameter."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import lru_cache
from numbers import Rational
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from revgrad._ext import kernel
from revgrad._ext.reference import D_MAX, usable
from revgrad.errors import RatioRefused

Int64s: TypeAlias = npt.NDArray[np.int64]
Float64s: TypeAlias = npt.NDArray[np.float64]
Floats: TypeAlias = npt.NDArray[np.floating[Any]]

D_FAST = 2**16  # ratios with d <= D_FAST come first: exact as written, or d = D_FAST
TOLERANCE = 1e-3  # of 1 - f, which is what multiplying T times by f depends on
QUOTIENTS = 26  # partial quotients until the denominator passes D_FAST: Fibonacci's 24, and two
DECIMALS = 14  # digits after the point: 9 significant ones of a float32 >= 2**-17

ROUNDINGS = ("nearest", "binary", "truncated")
TAKES_ANY = "use Stored() or Unrolled(), which take any real factor"


@dataclass(frozen=True, slots=True, eq=False)
class Ratio:
    """The exact factor n/d: two integers, or two int64 arrays of one shape (a ratio per element).

    n, d: at least 1, of any size as Python integers; arrays are read-only, or copied. Not
    reduced to lowest terms: 2/4 destroys as many bits as 1/2, but other ones.
    given: the factor, or array of them, that n/d stands for, where statements shall read that and
        not n/d; see `value`. No part of what is equal.
    narrow: whether every n/d fits a machine-word head (n <= d <= 2**24 and d <= n * 2**16).
    Raises: RatioRefused where n or d is below 1.
    """

    n: Any
    d: Any
    given: Any = field(default=None, repr=False)
    narrow: bool = field(init=False, repr=False)
    _order: tuple[bool, bool] = field(init=False, repr=False)  # whether some n < d, some n > d
    _columns: list[Any] = field(init=False, repr=False, default_factory=list)
    _values: list[Any] = field(init=False, repr=False, default_factory=list)
    _parts: list[tuple[Ratio | None, Ratio | None]] = field(
        init=False, repr=False, default_factory=list
    )

    def __post_init__(self) -> None:
        if np.ndim(self.n) or np.ndim(self.d):
            n, d = _frozen(self.n), _frozen(self.d)
            if n.shape != d.shape:
                raise ValueError(f"shapes {n.shape} of n and {d.shape} of d; pass equal ones.")
            self._set(n, d, *kernel.compare(n.reshape(-1), d.reshape(-1)))
        else:
            one_n, one_d = _whole(self.n), _whole(self.d)
            narrow = usable(one_n, one_d)
            self._set(one_n, one_d, one_n >= 1 <= one_d, narrow, one_n < one_d, one_n > one_d)

    def _set(self, n: Any, d: Any, positive: bool, narrow: bool, less: bool, more: bool) -> None:
        if not positive:
            raise RatioRefused(f"ratio {n}/{d}: n and d must be at least 1; {TAKES_ANY}.")
        content = {"n": n, "d": d, "narrow": narrow, "_order": (less, more)}
        for name, value in content.items():
            object.__setattr__(self, name, value)

    def __reduce__(self) -> Any:
        return Ratio, (self.n, self.d, self.given)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Ratio):
            return NotImplemented
        return np.array_equal(self.n, other.n) and np.array_equal(self.d, other.d)

    def __hash__(self) -> int:
        return hash((self.n, self.d))  # arrays have no hash, and say so

    def columns_in(self, kernel: Any) -> Any:
        """The kernel's Ratios: n and d as it reads them fastest, checked and copied once.

        Requires narrow.
        """
        for owner, columns in self._columns:
            if owner is kernel:
                return columns
        n, d = (k if isinstance(k, int) else k.reshape(-1) for k in (self.n, self.d))
        self._columns.append((kernel, kernel.Ratios(n, d, np.size(n))))
        return self._columns[-1][1]

    @property
    def rows(self) -> list[Ratio]:
        """The ratios of each row, where n and d are matrices: checked and copied together."""
        values, width = self.value, self.n.shape[1]
        made = []
        for k in range(len(self.n)):
            span = width * k, width * (k + 1)
            columns = [(kernel, self.columns_in(kernel).part(*span))] if self.narrow else []
            row, own = object.__new__(Ratio), None if self.given is None else values[k]
            has = (self.n[k], self.d[k], own, self.narrow, self._order, columns, [values[k]], [])
            for name, value in zip(self.__slots__, has, strict=True):
                object.__setattr__(row, name, value)
            made.append(row)
        return made

    @property
    def parts(self) -> tuple[Ratio | None, Ratio | None]:
        """(down, up): the ratio is down/up, both narrow, None for 1; made once.

        Raises: RatioRefused where there are no such parts.
        """
        if not self._parts:
            self._parts.append(self._split())
        return self._parts[0]

    def _split(self) -> tuple[Ratio | None, Ratio | None]:
        n, d, (less, more) = self.n, self.d, self._order
        if not (less and more):
            down, up = self if less else None, self.inverse if more else None
        else:
            rises = n > d
            down = Ratio(np.where(rises, 1, n), np.where(rises, 1, d))
            up = Ratio(np.where(rises, d, 1), np.where(rises, n, 1))
        if not all(part is None or part.narrow for part in (down, up)):
            raise RatioRefused(
                "a ratio is below 2**-16 or above 2**16, or has n or d > 2**24, which the heads of "
                "an InformationBuffer cannot hold; use a BignumBuffer."
            )
        return down, up

    @property
    def value(self) -> Any:
        """The factor that every statement should read, in float64: n/d, or `given` if given."""
        if not self._values:
            value = self.n / self.d if self.given is None else np.array(self.given, float)[()]
            if np.ndim(value):
                value.setflags(write=False)
            self._values.append(value)
        return self._values[0]

    @property
    def inverse(self) -> Ratio:
        """d/n."""
        return Ratio(self.d, self.n, None if self.given is None else 1 / self.given)

    @classmethod
    def of(cls, factor: Any, rounding: str = "nearest") -> Ratio:
        """The ratio that stands for a factor in (0, 1].

        factor: float, array of float16, float32 or float64 (then one ratio per element), Fraction
            or mpq (taken exactly), or a Ratio (returned as it is).
        rounding="nearest": the one n/d with d <= 2**16 that equals a float as written in decimal
            in its own dtype (float32(0.9) is 9/10) or is rounded to it (1/3 in float64); else
            d = 2**16; where that misses 1 - factor by more than 1e-3 of it, a larger power of two
            up to 2**24, then 1 - 1/d. Only 1 becomes 1.
        rounding="binary": d = 2**16 or what follows it there, for factors that were computed, not
            written down; faster.
        rounding="truncated": d = 2**16, n = trunc(factor * 2**16) + 1 <= d, also for fractions;
            statements go on reading the factor itself.
        Raises: RatioRefused for what is not in (0, 1] or within about 2**-24 of 1.
        Source: Maclaurin et al. 2015, their code, for "truncated".
        """
        if isinstance(factor, Ratio):
            return factor
        if rounding not in ROUNDINGS:
            raise ValueError(f"rounding is {rounding!r}; pass one of {', '.join(ROUNDINGS)}.")
        if isinstance(factor, Rational) and not isinstance(factor, bool):
            return _of_rational(factor, rounding)
        values = _floats(factor)
        if values.ndim == 0:
            given = values.astype(np.float64)[()] if rounding == "truncated" else None
            return cls(*_snap_one(values.dtype.char, float(values), rounding), given)
        if rounding == "binary":
            n, d = _snap(values.reshape(-1), rounding)
            return cls(n.reshape(values.shape), d.reshape(values.shape))
        distinct, where = np.unique(values, return_inverse=True)
        n, d = _snap(distinct, rounding)
        given = values.astype(np.float64) if rounding == "truncated" else None
        return cls(n[where].reshape(values.shape), d[where].reshape(values.shape), given)


def _whole(digits: Any) -> int:
    try:
        return int(digits.__index__())
    except AttributeError:
        raise TypeError(f"n and d are integers, not {type(digits).__name__}.") from None


def _frozen(digits: Any) -> Int64s:
    given = np.asarray(digits)
    if given.dtype.kind not in "iu":
        raise TypeError(f"n and d are integers, not {given.dtype}.")
    if given.dtype == np.int64 and given.flags.c_contiguous and not given.flags.writeable:
        return given
    mine = np.array(given, dtype=np.int64, order="C")
    mine.setflags(write=False)
    return mine


def _floats(factor: Any) -> Floats:
    """factor as an array of float16, float32 or float64 in (0, 1]."""
    values = np.asarray(factor)
    if values.dtype.kind in "iu":
        values = values.astype(np.float64)
    if values.dtype.kind != "f" or values.itemsize > 8:
        came = type(factor).__name__ if values.dtype.kind == "O" else str(values.dtype)
        raise TypeError(f"a factor is a real number, at most float64, or a Fraction, not {came}.")
    inside = (values > 0) & (values <= 1)
    if not inside.all():
        _refuse(values[~inside].flat[0])
    return values


def _refuse(factor: Any) -> None:
    raise RatioRefused(
        f"factor {factor}: multiplying by it cannot be undone; pass one in (0, 1], or {TAKES_ANY}."
    )


def _of_rational(factor: Rational, rounding: str) -> Ratio:
    n, d = int(factor.numerator), int(factor.denominator)
    if not 0 < n <= d:
        _refuse(factor)
    if rounding != "truncated":
        return Ratio(n, d)
    return Ratio(min(n * D_FAST // d + 1, D_FAST), D_FAST, n / d)


@lru_cache(maxsize=4096)
def _snap_one(kind: str, factor: float, rounding: str) -> tuple[int, int]:
    n, d = _snap(np.array([factor], dtype=kind), rounding)
    return int(n[0]), int(d[0])


def _snap(factors: Floats, rounding: str) -> tuple[Int64s, Int64s]:
    """n and d for a vector of floats in (0, 1]."""
    f = factors.astype(np.float64)
    if rounding == "truncated":
        n = np.minimum(np.trunc(f * D_FAST) + 1, D_FAST).astype(np.int64)
        return n, np.full_like(n, D_FAST)
    if rounding == "binary":
        n, d = (f == 1).astype(np.int64), (f == 1).astype(np.int64)
    else:
        n, d = _simplest(f) if factors.dtype == np.float64 else _as_written(factors, f)
    rest = np.flatnonzero(d == 0)
    n[rest], d[rest] = _nearest(f[rest])
    return n, d


def _simplest(f: Float64s) -> tuple[Int64s, Int64s]:
    """The one n/d with d <= D_FAST that is rounded to f; d = 0 where there is none.

    Two of them would differ by D_FAST**-2 at least, far above the spacing of float64. It is a
    convergent of f (Legendre), and up to it all partial quotients of f come out right in float64.
    It is also f as written, where that has such a denominator.
    """
    n, d = np.zeros(f.shape, np.int64), np.zeros(f.shape, np.int64)
    here = np.flatnonzero(f * D_FAST >= 0.5)
    rest, p, q = f[here], np.ones(len(here)), np.zeros(len(here))
    p_before, q_before = q, p
    for _ in range(QUOTIENTS):
        # the last quotient may lie a hair to either side of an integer
        last = np.rint(rest)
        p_last, q_last = last * p + p_before, last * q + q_before
        hit = (q_last <= D_FAST) & (q_last >= 1) & (p_last >= 1)
        hit[hit] = p_last[hit] / q_last[hit] == f[here[hit]]
        n[here[hit]], d[here[hit]] = p_last[hit], q_last[hit]
        quotient = np.floor(rest)
        p, p_before = quotient * p + p_before, p
        q, q_before = quotient * q + q_before, q
        on = ~hit & (q <= D_FAST) & (rest > quotient)
        here, rest = here[on], 1 / (rest[on] - quotient[on])
        p, p_before, q, q_before = p[on], p_before[on], q[on], q_before[on]
    return n, d


def _as_written(factors: Floats, f: Float64s) -> tuple[Int64s, Int64s]:
    """The shortest decimal of each float16 or float32, reduced; d = 0 where d > D_FAST."""
    n, d = np.zeros(f.shape, np.int64), np.zeros(f.shape, np.int64)
    here = np.arange(len(f))
    for decimals in range(DECIMALS + 1):
        unit = 10**decimals
        digits = np.rint(f[here] * unit)
        hit = (digits / unit).astype(factors.dtype) == factors[here]
        whole = digits[hit].astype(np.int64)
        common = np.gcd(whole, unit)
        n[here[hit]], d[here[hit]] = whole // common, unit // common
        here = here[~hit]
    d[d > D_FAST] = 0
    return n, d


def _nearest(f: Float64s) -> tuple[Int64s, Int64s]:
    """n/d with the first d of 2**16, 2**17, ..., 2**24 whose 1 - n/d is good; else 1 - 1/d."""
    n, d = np.zeros(f.shape, np.int64), np.zeros(f.shape, np.int64)
    here = np.arange(len(f))
    for bits in range(D_FAST.bit_length() - 1, D_MAX.bit_length()):
        if not len(here):
            break
        trial = np.clip(np.rint(f[here] * 2**bits), 1, 2**bits - 1)
        good = np.abs(f[here] - trial / 2**bits) <= TOLERANCE * (1 - f[here])
        n[here[good]], d[here[good]] = trial[good], 2**bits
        here = here[~good]
    d[here] = np.minimum(np.rint(1 / (1 - f[here])), D_MAX)
    n[here] = d[here] - 1
    bad = np.abs(f[here] - n[here] / d[here]) > TOLERANCE * (1 - f[here])
    if bad.any():
        raise RatioRefused(
            f"factor {f[here[bad]][0]!s} is too near 1 for a denominator up to 2**24; pass 1, a "
            f"Fraction with a BignumBuffer, or {TAKES_ANY}."
        )
    return n, d
