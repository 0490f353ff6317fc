"""Fixed-point vectors: int64 in units of 2**-fraction_bits (ulp), whose sums are exact."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from revgrad._ext import fused as plans
from revgrad._ext import kernel
from revgrad._ext.reference import D_MAX, empty_buffer
from revgrad.buffer import CHUNK, BignumBuffer, InformationBuffer
from revgrad.errors import BufferEmpty, FixedOverflow, RatioRefused
from revgrad.ratio import Ratio

Int64s: TypeAlias = npt.NDArray[np.int64]
Reals: TypeAlias = npt.NDArray[np.float32] | npt.NDArray[np.float64]

FRACTION_BITS_MAX = 62
WIDE_BITS = 24  # n <= 2**(fraction_bits - 24), or scaling, within n ulp, destroys the value
RANGE = 2.0**63


def fraction_bits_for(largest: float, headroom_bits: int = 8, at_most: int = 60) -> int:
    """The most fraction bits with which largest * 2**headroom_bits still fits in int64.

    largest: the largest magnitude expected; 0 gives at_most. at_most: 0 to 62.
    Raises: FixedOverflow where not even 0 bits will do.
    """
    _check_bits(at_most)
    if not 0 <= largest < math.inf:
        raise FixedOverflow(f"largest magnitude {largest}; it must be finite and at least 0.")
    if largest == 0:
        return at_most
    # largest < 2**exponent, and a float below 2**63 is below int64's end
    exponent = math.frexp(largest)[1]
    bits = 63 - headroom_bits - exponent
    if bits < 0:
        raise FixedOverflow(
            f"{largest} with {headroom_bits} bits of headroom does not fit in int64; "
            "scale the loss down or ask for less headroom."
        )
    return min(bits, at_most)


class FixedArray:
    """A flat vector of fixed-point numbers; the real numbers are values * 2**-fraction_bits.

    values: contiguous int64 vector, shared and not copied. fraction_bits: 0 to 62, so the range is
    [-2**(63 - fraction_bits), 2**(63 - fraction_bits)). Methods work in place; one that raises
    has changed nothing.
    """

    __slots__ = ("fraction_bits", "values")

    def __init__(self, values: Int64s, fraction_bits: int) -> None:
        _check_bits(fraction_bits)
        if values.dtype != np.int64 or values.ndim != 1 or not values.flags.c_contiguous:
            raise TypeError("values must be a contiguous int64 vector; use FixedArray.encode.")
        self.values = values
        self.fraction_bits = fraction_bits

    @classmethod
    def encode(cls, reals: npt.ArrayLike, fraction_bits: int) -> FixedArray:
        """Round reals, of any shape, read in C order, to the nearest ulp, half to even.

        Raises: FixedOverflow for NaN, infinity and what is out of range.
        """
        _check_bits(fraction_bits)
        flat = _real_vector(reals)
        values = np.zeros(flat.shape, np.int64)
        bad = kernel.encode(flat, fraction_bits, values)
        if bad >= 0:
            raise _overflow(f"{flat[bad]!s} cannot be encoded", bad, fraction_bits)
        return cls(values, fraction_bits)

    def decode(self, dtype: npt.DTypeLike = np.float64, out: Reals | None = None) -> Reals:
        """values * 2**-fraction_bits, rounded to float64 and then to dtype, or to that of `out`."""
        if out is None:
            out = np.empty(self.values.shape, dtype)
        if out.dtype not in (np.float32, np.float64) or not out.flags.c_contiguous:
            raise TypeError(f"out is {out.dtype}; pass a contiguous float32 or float64 array.")
        kernel.decode(self.values, self.fraction_bits, out.reshape(-1))
        return out

    def add(self, delta: npt.ArrayLike) -> None:
        """values += rint(delta * 2**fraction_bits), half to even.

        delta: a scalar, or an array with as many elements, read in C order.
        Raises: FixedOverflow with the index, where a delta is not finite or a sum out of range.
        """
        self._add(delta, 1)

    def subtract(self, delta: npt.ArrayLike) -> None:
        """The exact undo of add(delta): subtracts the same integers. Raises: FixedOverflow."""
        self._add(delta, -1)

    def _add(self, delta: npt.ArrayLike, sign: int) -> None:
        flat = self._broadcast(delta)
        bad = kernel.add_floats(self.values, flat, self.fraction_bits, sign)
        if bad >= 0:
            value = float(self.values[bad]) * 2.0**-self.fraction_bits
            operator = "+" if sign > 0 else "-"
            came = f"{value!s} {operator} {flat[bad]!s} is out of range"
            raise _overflow(came, bad, self.fraction_bits)

    def scale(self, ratio: Ratio, buffer: InformationBuffer | BignumBuffer, lo: int = 0) -> None:
        """Multiply by n/d, within n ulp; unscale(ratio, buffer, lo) undoes it exactly.

        ratio: one, or one per element. buffer: what is destroyed goes to its elements from lo on.
        Raises: RatioRefused.
        """
        self._check_wide(ratio)
        buffer.multiply(self.values, ratio, lo)

    def unscale(self, ratio: Ratio, buffer: InformationBuffer | BignumBuffer, lo: int = 0) -> None:
        """The exact undo of scale(ratio, buffer, lo). Raises: BufferEmpty, RatioRefused."""
        self._check_wide(ratio)
        buffer.divide(self.values, ratio, lo)

    def _check_wide(self, ratio: Ratio) -> None:
        if not isinstance(ratio, Ratio):
            raise TypeError(f"ratio is a {type(ratio).__name__}; pass Ratio.of(factor).")
        if ratio.narrow:
            return
        many = not isinstance(ratio.n, int)
        n, d = (int(np.max(k, initial=1)) if many else k for k in (ratio.n, ratio.d))
        if max(n, d) > D_MAX and n << WIDE_BITS > 1 << self.fraction_bits:
            raise RatioRefused(
                f"n = {n} with {self.fraction_bits} fraction bits leaves fewer than {WIDE_BITS} "
                "bits of the value; use more fraction bits or a simpler ratio."
            )

    def round_scale(self, factor: npt.ArrayLike) -> None:
        """values <- rint(values * factor), for any finite real factor; cannot be undone.

        factor: a scalar, or an array with as many elements. Values and products are rounded to
        float64, except that a factor of 1 changes nothing. Same bits on every machine.
        Raises: FixedOverflow with the index, where a factor is not finite or a product too large.
        """
        reals = self._broadcast(factor).astype(np.float64, copy=False)
        with np.errstate(over="ignore", invalid="ignore"):
            products = np.rint(self.values.astype(np.float64) * reals)
        kept = reals == 1
        good = kept | ((products >= -RANGE) & (products < RANGE))
        if not good.all():
            bad = int(np.argmin(good))
            value = float(self.values[bad]) * 2.0**-self.fraction_bits
            raise _overflow(f"{value!s} * {reals[bad]!s} is out of range", bad, self.fraction_bits)
        np.copyto(self.values, np.where(kept, 0, products).astype(np.int64), where=~kept)

    def view(self, lo: int, hi: int) -> FixedArray:
        """Elements lo to hi, sharing memory."""
        return FixedArray(self.values[lo:hi], self.fraction_bits)

    def copy(self) -> FixedArray:
        return FixedArray(self.values.copy(), self.fraction_bits)

    def _broadcast(self, reals: npt.ArrayLike) -> Reals:
        flat = _real_vector(reals)
        if np.ndim(reals) == 0:
            return np.full(self.values.shape, flat[0])
        if len(flat) != len(self.values):
            raise ValueError(f"{len(flat)} reals for {len(self.values)} values; pass as many.")
        return flat


class FusedStep:
    """Statements executed in one pass over memory, with the bits of one after the other.

    statements: in the order of execution, each with `target`, `reads`, and `delta` (a function of
        what it reads, added) or `by` (a scale); none reads its target. undone=True: the exact undo
        of each instead.
    variables, buffers: FixedArrays of one length, and the InformationBuffer of each scaled one.
    Statements that blocks cannot do (see `fused`) run one by one instead.
    """

    def __init__(
        self,
        statements: Sequence[Any],
        variables: dict[str, FixedArray],
        buffers: dict[str, InformationBuffer | BignumBuffer],
        *,
        undone: bool = False,
    ) -> None:
        self.statements, self.variables, self.buffers = statements, variables, buffers
        self.undone = undone
        self.size = len(next(iter(variables.values())).values)
        self._scaled = list(dict.fromkeys(s.target for s in statements if hasattr(s, "by")))
        self._plans: dict[Any, _Bound | None] = {}

    def run(
        self,
        reads: dict[str, Any],
        ratios: dict[str, Ratio] | None = None,
        emit: dict[str, Reals] | None = None,
    ) -> None:
        """Execute all statements, then decode variables into the arrays of `emit`.

        reads: numbers, and vectors (float64, or float32 taken as such), by name; variables are read
            from the state.
        ratios: for each variable that is scaled.
        Raises: FixedOverflow, BufferEmpty, RatioRefused, with variables and buffers unchanged.
        """
        ratios, emit = ratios or {}, emit or {}
        bound = self._bound(reads, ratios, emit)
        if bound is None:
            self._one_by_one(reads, ratios)
            for name, out in emit.items():
                self.variables[name].decode(out=out)
        else:
            bound.set(reads, ratios, emit)
            self._in_chunks(bound, reads, ratios, 0, self.size)

    def fused(self, reads: dict[str, Any], ratios: dict[str, Ratio] | None = None) -> bool:
        """Whether `run` would go over memory once."""
        return self._bound(reads, ratios or {}, {}) is not None

    def _bound(self, reads: dict, ratios: dict, emit: dict) -> _Bound | None:
        if not all(ratio.narrow for ratio in ratios.values()) or self.size == 0:
            return None
        key = (
            tuple([x.dtype.char if getattr(x, "ndim", 0) else name for name, x in reads.items()]),
            tuple([(name, x.dtype.char) for name, x in emit.items()]),
        )
        if key not in self._plans:
            self._plans[key] = self._planned(reads, emit)
        return self._plans[key]

    def _planned(self, reads: dict, emit: dict) -> _Bound | None:
        words = all(isinstance(b, InformationBuffer) for b in self.buffers.values())
        kinds = {np.dtype(np.float32): plans.FLOATS, np.dtype(np.float64): plans.DOUBLES}
        vectors = {name: kinds.get(x.dtype, -1) for name, x in reads.items() if np.ndim(x)}
        if not (words and hasattr(kernel, "Fused")) or -1 in vectors.values():
            return None
        out = {name: kinds[x.dtype] for name, x in emit.items()}
        try:
            plan = plans.Plan(
                self.statements, list(self.variables), self._scaled, vectors, out, self.undone
            )
        except plans.NotFusible:
            return None
        return _Bound(plan, self)

    def _in_chunks(self, bound: _Bound, reads: dict, ratios: dict, lo: int, hi: int) -> None:
        starts = range(lo, hi, CHUNK)
        for start in reversed(starts) if self.undone else starts:
            end = min(start + CHUNK, hi)
            refused = bound.run(start, end)
            if refused is not None:
                self._restore(bound, refused, reads, ratios, (lo, end, hi))

    def _restore(
        self, bound: _Bound, refused: tuple, reads: dict, ratios: dict, span: tuple
    ) -> None:
        """Take back what was done before a refusal, block and chunks, and raise it."""
        at, operation, element = refused
        lo, end, hi = span
        block = (at, min(at + kernel.FUSED_ELEMENTS, end))
        done = bound.plan.owner[operation]
        error = self._error(self.statements[done], reads, ratios, block, element)
        self._inverse(done).again(reads, ratios, *block)
        if self.undone:
            self._inverse().again(reads, ratios, block[1], hi)
        else:
            self._inverse().again(reads, ratios, lo, at)
        raise error

    def _inverse(self, first: int | None = None) -> FusedStep:
        return FusedStep(
            self.statements[:first][::-1], self.variables, self.buffers, undone=not self.undone
        )

    def again(self, reads: dict, ratios: dict, lo: int, hi: int) -> None:
        """Execute on elements lo to hi alone."""
        bound = self._bound(reads, ratios, {})
        if bound is not None and self.statements:
            bound.set(reads, ratios, {})
            self._in_chunks(bound, reads, ratios, lo, hi)

    def _error(
        self, s: Any, reads: dict, ratios: dict, block: tuple[int, int], element: int
    ) -> Exception:
        """What the statement that refused a block says when it is executed alone."""
        lo, hi = block
        try:
            if element >= 0:
                raise empty_buffer(element)
            now = {name: self._part(name, reads, lo, hi) for name in s.reads}
            target = self.variables[s.target].view(lo, hi)
            (target.subtract if self.undone else target.add)(s.delta(**now))
        except FixedOverflow as error:
            said = str(error).removeprefix(f"element {error.index}")
            return FixedOverflow(f"element {lo + error.index}{said}", index=lo + error.index)
        except BufferEmpty as error:
            return error
        raise AssertionError("a block was refused that its statement takes")

    def _part(self, name: str, reads: dict, lo: int, hi: int) -> Any:
        if name in self.variables:
            return self.variables[name].view(lo, hi).decode()
        value = reads[name]
        return value[lo:hi].astype(np.float64, copy=False) if np.ndim(value) else value

    def _one_by_one(self, reads: dict, ratios: dict) -> None:
        for k, s in enumerate(self.statements):
            try:
                self._execute(s, reads, ratios)
            except (FixedOverflow, BufferEmpty, RatioRefused):
                self._inverse(k)._one_by_one(reads, ratios)
                raise

    def _execute(self, s: Any, reads: dict, ratios: dict) -> None:
        target = self.variables[s.target]
        if hasattr(s, "by"):
            scale = target.unscale if self.undone else target.scale
            scale(ratios[s.target], self.buffers[s.target])
        else:
            now = {name: self._part(name, reads, 0, self.size) for name in s.reads}
            (target.subtract if self.undone else target.add)(s.delta(**now))


class _Bound:
    """A plan with the arrays it works on."""

    def __init__(self, plan: Any, step: FusedStep) -> None:
        self.plan, self.step = plan, step
        self.kernel = kernel.Fused(
            plan.operations, plan.kinds, plan.registers, step.size, step.undone
        )
        for k, fixed in enumerate(step.variables.values()):
            self.kernel.variable(k, fixed.values, fixed.fraction_bits)
        self.buffers: list[Any] = [step.buffers[name] for name in plan.scaled]
        self.ratios: list[Any] = [None] * len(plan.scaled)
        self.arrays: dict[str, Any] = {}

    def set(self, reads: dict, ratios: dict, emit: dict) -> None:
        for slot, symbol in self.plan.scalars:
            self.kernel.constant(slot, plans.evaluate(symbol, reads))
        for name, slot in self.plan.arrays.items():
            array = emit[name[4:]] if name.startswith("out ") else reads[name]
            if self.arrays.get(name) is not array:
                self.kernel.array(slot, array.reshape(-1))
                self.arrays[name] = array
        for k, name in enumerate(self.plan.scaled):
            if self.ratios[k] is not ratios[name]:
                self.kernel.buffer(k, self.buffers[k].heads, ratios[name].columns)
                self.ratios[k] = ratios[name]

    def run(self, lo: int, hi: int) -> Any:
        for k, buffer in enumerate(self.buffers):
            self.kernel.words(k, *buffer.lend(hi - lo, self.step.undone))
        refused = self.kernel.run(lo, hi)
        for k, buffer in enumerate(self.buffers):
            buffer.take_back(self.kernel.count(k))
        return refused


def _check_bits(fraction_bits: int) -> None:
    if not 0 <= fraction_bits <= FRACTION_BITS_MAX:
        raise ValueError(f"fraction_bits is {fraction_bits}; pass 0 to {FRACTION_BITS_MAX}.")


def _real_vector(reals: Any) -> Reals:
    """A contiguous float32 or float64 vector; other real dtypes become float64."""
    given = np.asarray(reals)
    if given.dtype.kind not in "fiub":
        raise TypeError(f"real numbers are wanted, not {given.dtype}.")
    if given.dtype == np.float32:
        return np.ascontiguousarray(given, dtype=np.float32).reshape(-1)
    return np.ascontiguousarray(given, dtype=np.float64).reshape(-1)


def _overflow(came: str, index: int, fraction_bits: int) -> FixedOverflow:
    return FixedOverflow(
        f"element {index}: {came}; {fraction_bits} fraction bits hold [-2**{63 - fraction_bits}, "
        f"2**{63 - fraction_bits}). Use a smaller learning rate, clipping or fewer fraction bits.",
        index=index,
    )
