"""Fixed-point vectors: int64 in units of 2**-fraction_bits (ulp), whose sums are exact."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from revgrad._ext import fused as plans
from revgrad._ext import homes, kernel, kernel_of
from revgrad._ext.reference import D_MAX, empty_buffer
from revgrad.buffer import CHUNK, BignumBuffer, InformationBuffer
from revgrad.errors import BufferEmpty, FixedOverflow, RatioRefused
from revgrad.ratio import Ratio

Int64s: TypeAlias = npt.NDArray[np.int64]
Reals: TypeAlias = npt.NDArray[np.float32] | npt.NDArray[np.float64]

FRACTION_BITS_MAX = 120  # the range, 2**(63 - fraction_bits), may be small
WIDE_BITS = 24  # n <= 2**(fraction_bits - 24), or scaling, within n ulp, destroys the value
RANGE = 2.0**63


def fraction_bits_for(largest: float, headroom_bits: int = 8, at_most: int = 60) -> int:
    """The most fraction bits with which largest * 2**headroom_bits still fits in int64.

    largest: the largest magnitude expected; 0 gives at_most. at_most: 0 to 120.
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

    values: contiguous int64 vector, shared and not copied. fraction_bits: 0 to 120, so the range is
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
        values = np.zeros_like(flat, dtype=np.int64)
        bad = kernel_of(flat).encode(flat, fraction_bits, values)
        if bad >= 0:
            raise _overflow(f"{flat[bad]!s} cannot be encoded", bad, fraction_bits)
        return cls(values, fraction_bits)

    def decode(self, dtype: npt.DTypeLike = np.float64, out: Any = None) -> Any:
        """values * 2**-fraction_bits, rounded to float64 and then to dtype, or to that of `out`."""
        if out is None:
            out = np.empty_like(self.values, dtype=dtype)
        if out.dtype not in (np.float32, np.float64) or not out.flags.c_contiguous:
            raise TypeError(f"out is {out.dtype}; pass a contiguous float32 or float64 array.")
        kernel_of(self.values).decode(self.values, self.fraction_bits, out.reshape(-1))
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
        bad = kernel_of(self.values).add_floats(self.values, flat, self.fraction_bits, sign)
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

    @property
    def largest(self) -> float:
        """The largest magnitude, as a real number."""
        ends = (np.max(self.values), np.min(self.values)) if len(self.values) else (0,)
        return max(abs(int(end)) for end in ends) * 2.0**-self.fraction_bits

    def view(self, lo: int, hi: int) -> FixedArray:
        """Elements lo to hi, sharing memory."""
        return FixedArray(self.values[lo:hi], self.fraction_bits)

    def copy(self) -> FixedArray:
        return FixedArray(self.values.copy(), self.fraction_bits)

    def _broadcast(self, reals: npt.ArrayLike) -> Reals:
        flat = _real_vector(reals)
        if np.ndim(reals) == 0:
            same: Any = np.full_like(self.values, flat[0], dtype=flat.dtype)
            return same
        if len(flat) != len(self.values):
            raise ValueError(f"{len(flat)} reals for {len(self.values)} values; pass as many.")
        return homes.beside(flat, self.values)


@dataclass(frozen=True, eq=False)
class Segments:
    """One number, or one ratio, for each segment of a vector: a hyperparameter per layer.

    values: float64 vector, or a Ratio whose n and d are vectors.
    """

    values: Any


class FusedStep:
    """Statements executed in one pass over memory, with the bits of one after the other.

    statements: in the order of execution, each with `target`, `reads`, and `delta` (a function of
        what it reads, added) or `by` (a scale); none reads its target. undone=True: the exact undo
        of each instead.
    variables, buffers: FixedArrays of one length, and the InformationBuffer of each scaled one.
    segments: where each segment of the vectors ends, ascending, the last at their length; then
        reads and ratios may be Segments.
    pull(function, reads, ct): pairs (name, cotangent of that read) for the cotangent ct of
        function(**reads), made by NumPy functions or operators; ct is first summed where the
        result is a number. With it, cotangents go back through the statements `pulled`, in that
        order (None: all in the order of undoing): through each right after it is undone, or, done,
        after all. Those not among `statements` count as undone already. What is computed is the
        same after an undo and after a step, to the bit.
    wanted: names of reads to find cotangents of; None: all.
    kept: plans, of earlier steps with the same statements, `pulled` and `pull`, and of this one.

    A statement that blocks cannot do (see `fused`) is executed alone, unless there is a pull.

        back = FusedStep(order, variables, buffers, undone=True, segments=ends, pull=pull)
        found = back.run({"g": g, "learning_rate": Segments(rates), "momentum": 0.9},
                         {"velocity": Ratio.of(0.9)}, cotangents={"params": p, "velocity": v})
        found["g"], found["momentum"], found["learning_rate"]  # vector, number, one per segment
    """

    def __init__(
        self,
        statements: Sequence[Any],
        variables: dict[str, FixedArray],
        buffers: dict[str, InformationBuffer | BignumBuffer],
        *,
        undone: bool = False,
        segments: Any = None,
        pulled: Sequence[Any] | None = None,
        pull: Callable[..., Any] | None = None,
        wanted: Collection[str] | None = None,
        kept: dict[Any, plans.Plan | None] | None = None,
    ) -> None:
        self.statements, self.variables, self.buffers = statements, variables, buffers
        self.kept = {} if kept is None else kept
        self.undone, self.pull, self.wanted = undone, pull, wanted
        self.pulled = (statements if undone else statements[::-1]) if pulled is None else pulled
        first = next(iter(variables.values())).values
        self.size, self.kernel = len(first), kernel_of(first)
        self.segments = np.array([self.size] if segments is None else segments, np.int64)
        _check_segments(self.segments, self.size)
        self._scaled = list(dict.fromkeys(s.target for s in statements if hasattr(s, "by")))
        self._plans: dict[Any, _Bound | None] = {}

    def run(
        self,
        reads: dict[str, Any],
        ratios: dict[str, Any] | None = None,
        emit: dict[str, Reals] | None = None,
        cotangents: dict[str, Reals] | None = None,
        into: dict[str, Reals] | None = None,
        step: int | None = None,
    ) -> dict[str, Any]:
        """Execute all statements, then decode variables into the arrays of `emit`.

        reads: numbers, Segments, and vectors (float64, or float32 taken as such), by name;
            variables are read from the state.
        ratios: for each variable that is scaled, a Ratio or Segments(Ratio).
        cotangents: of every variable, float64, changed in place. into: where cotangents of vectors
            are written, float64 or float32; elsewhere they are new.
        step: its number, of a step that need not be waited for: what is raised may then be raised
            by `_ext.settle`, with that number; what is executed meanwhile changes nothing.
        Returns the cotangents found of what was read: a number for a number, a vector for Segments
        and vectors; what no statement reads is left out. A sum goes over blocks of FUSED_ELEMENTS
        from the start of each segment, and over these in order.
        Raises: FixedOverflow with `target`, BufferEmpty, RatioRefused, with variables and buffers
        unchanged if these are kept, but cotangents not; NotFusible, only where there is a pull.
        """
        ratios, emit, into = ratios or {}, emit or {}, into or {}
        bound = self._bound(reads, ratios, emit, into)
        if bound is not None:
            return self._run_bound(bound, reads, ratios, emit, cotangents or {}, into, step)
        if self.pull is not None:
            raise plans.NotFusible("a statement or its pull-back does what blocks cannot")
        self._one_by_one(*self._spread(reads, ratios))
        for name, out in emit.items():
            self.variables[name].decode(out=out)
        return {}

    def run_fused(self, reads: dict[str, Any], ratios: dict[str, Any], step: int) -> bool:
        """`run`, if it goes over memory once; otherwise False, with nothing done."""
        bound = self._bound(reads, ratios, {})
        if bound is not None:
            self._run_bound(bound, reads, ratios, {}, {}, {}, step)
        return bound is not None

    def _run_bound(
        self, bound: _Bound, reads: dict, ratios: dict, emit: dict, cotangents: dict, into: dict,
        step: int | None,
    ) -> dict[str, Any]:  # fmt: skip
        bound.set(reads, ratios, emit, cotangents, into)
        if bound.inverse is not None and step is not None and self.pull is None:
            bound.start(partial(self._late, bound, step))
            return {}
        self._in_chunks(bound, reads, ratios, 0, bound.blocks)
        return bound.found(reads, ratios) if self.pull is not None else {}

    def fused(
        self,
        reads: dict[str, Any],
        ratios: dict[str, Any] | None = None,
        into: dict[str, Reals] | None = None,
    ) -> bool:
        """Whether `run` would go over memory once."""
        return self._bound(reads, ratios or {}, {}, into) is not None

    def _bound(
        self, reads: dict, ratios: dict, emit: dict, into: dict | None = None
    ) -> _Bound | None:
        into = into or {}
        if self.size == 0:
            return None
        for ratio in ratios.values():
            if not (ratio.values if type(ratio) is Segments else ratio).narrow:
                return None
        key = (
            *reads, *kinds_of(reads), None, *emit, *(kinds_of(emit) if emit else ()), None,
            *into, *(kinds_of(into) if into else ()), *(kinds_of(ratios) if self.pull else ()),
        )  # fmt: skip
        try:
            return self._plans[key]
        except KeyError:
            self._plans[key] = self._planned(key, reads, ratios, emit, into)
        return self._plans[key]

    def _planned(
        self, key: Any, reads: dict, ratios: dict, emit: dict, into: dict, taken_back: bool = True
    ) -> _Bound | None:
        words = all(isinstance(b, InformationBuffer) for b in self.buffers.values())
        vectors = {
            name: KINDS.get(x.dtype, -1)
            for name, x in reads.items()
            if not isinstance(x, Segments) and np.ndim(x)
        }
        if not words or -1 in vectors.values():
            return None
        if key not in self.kept:
            self.kept[key] = self._plan(vectors, ratios, emit, into)
        plan = self.kept[key]
        if plan is None:
            return None
        try:
            if not (taken_back and getattr(self.kernel, "RESTORES", False)):
                return _Bound(plan, self)
            # the kernel itself takes back what it did, where something refuses
            inverse = self._inverse()._planned(key, reads, ratios, {}, {}, taken_back=False)
            return inverse and _Bound(plan, self, inverse)
        except plans.NotFusible:  # on this device
            return None

    def _plan(self, vectors: dict, ratios: dict, emit: dict, into: dict) -> plans.Plan | None:
        targets = {}
        if self.pull is not None:
            read = {name for s in self.pulled for name in s.reads}
            wanted = read if self.wanted is None else read & set(self.wanted)
            wanted &= vectors.keys()
            targets = {name: KINDS[into[name].dtype] if name in into else plans.DOUBLES
                       for name in wanted}  # fmt: skip
            for name, ratio in ratios.items():
                if isinstance(ratio, Ratio) and not isinstance(ratio.n, int):
                    vectors[f"factor {name}"] = plans.DOUBLES
        out = {name: KINDS[x.dtype] for name, x in emit.items()}
        try:
            return plans.Plan(
                self.statements, list(self.variables), self._scaled, vectors, out, self.undone,
                self.pulled if self.pull is not None else (), self.pull, targets, self.wanted,
            )  # fmt: skip
        except plans.NotFusible:
            return None

    def _in_chunks(self, bound: _Bound, reads: dict, ratios: dict, lo: int, hi: int) -> None:
        """Execute on blocks lo to hi."""
        starts = range(lo, hi, bound.chunk)
        for start in reversed(starts) if self.undone else starts:
            end = min(start + bound.chunk, hi)
            refused = bound.run(start, end)
            if refused is not None:
                self._restore(bound, refused, reads, ratios, (lo, hi))

    def _restore(
        self, bound: _Bound, refused: tuple, reads: dict, ratios: dict, span: tuple
    ) -> None:
        """Take back what was done before a refusal, block and chunks, and raise it."""
        at, operation, element = refused
        done = bound.plan.owner[operation]
        error = self._error(self.statements[done], reads, bound, at, element)
        if isinstance(error, FixedOverflow):
            error.target = self.statements[done].target
        if bound.inverse is not None or not all(b.keep for b in self.buffers.values()):
            raise error
        self._inverse(done).again(reads, ratios, at, at + 1)
        if self.undone:
            self._inverse().again(reads, ratios, at + 1, span[1])
        else:
            self._inverse().again(reads, ratios, span[0], at)
        raise error

    def _late(self, bound: _Bound, step: int, refused: tuple) -> Exception:
        """The error of a step that nobody waited for."""
        at, operation, element = refused
        s = self.statements[bound.plan.owner[operation]]
        error: Any = self._error(s, {}, bound, at, element)
        error.target, error.step = s.target, step
        return error

    def _inverse(self, first: int | None = None) -> FusedStep:
        return FusedStep(
            self.statements[:first][::-1], self.variables, self.buffers, undone=not self.undone,
            segments=self.segments,
        )  # fmt: skip

    def again(self, reads: dict, ratios: dict, lo: int, hi: int) -> None:
        """Execute on blocks lo to hi alone."""
        bound = self._bound(reads, ratios, {}) if self.statements else None
        if bound is not None:
            bound.set(reads, ratios, {}, {}, {})
            self._in_chunks(bound, reads, ratios, lo, hi)

    def _error(self, s: Any, reads: dict, bound: _Bound, block: int, element: int) -> Exception:
        """What the statement that refused a block says when it is executed alone."""
        lo, hi = bound.starts[block : block + 2].tolist()
        if bound.inverse is not None:  # which has taken back all, so that nothing can be shown
            said = "what is added is not finite, or the sum is out of range"
            bits = self.variables[s.target].fraction_bits
            return empty_buffer(element) if hasattr(s, "by") else _overflow(said, element, bits)
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
        if isinstance(value, Segments):
            return value.values[np.searchsorted(self.segments, lo, side="right")]
        return value[lo:hi].astype(np.float64, copy=False) if np.ndim(value) else value

    def _spread(self, reads: dict, ratios: dict) -> tuple[dict, dict]:
        """Segments as vectors."""
        sizes = np.diff(self.segments, prepend=0)
        reads = {
            k: np.repeat(x.values, sizes) if isinstance(x, Segments) else x
            for k, x in reads.items()
        }
        ratios = {
            k: Ratio(np.repeat(x.values.n, sizes), np.repeat(x.values.d, sizes))
            if isinstance(x, Segments) else x
            for k, x in ratios.items()
        }  # fmt: skip
        return reads, ratios

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


KINDS = {np.dtype(np.float32): plans.FLOATS, np.dtype(np.float64): plans.DOUBLES}
BLOCK = kernel.FUSED_ELEMENTS
CHUNK_BLOCKS = CHUNK // BLOCK


def kinds_of(values: dict) -> list[str]:
    """What distinguishes plans: a number, one per segment, or a vector of a dtype."""
    return [
        "" if (kind := type(x)) in NUMBERS
        else x.dtype.char if kind is np.ndarray and x.ndim
        else _kind(x)
        for x in values.values()
    ]  # fmt: skip


NUMBERS = frozenset({float, int, np.float64})


def _kind(x: Any) -> str:
    if isinstance(x, Segments):
        return "segments"
    if isinstance(x, Ratio):
        return "" if isinstance(x.n, int) else "ratios"
    return x.dtype.char if getattr(x, "ndim", 0) else ""


def _ratio(x: Any) -> Ratio:
    return x.values if isinstance(x, Segments) else x


def factor_of(x: Any) -> Any:
    """The real number of a Ratio, or Segments of those of Segments."""
    return Segments(x.values.value) if isinstance(x, Segments) else x.value


def _plain(numbers: dict) -> dict:
    return {name: x.values if isinstance(x, Segments) else x for name, x in numbers.items()}


def _same(one: list, other: list) -> bool:
    """Whether what was made of numbers holds; arrays and -0 are looked at again."""
    return all(map(operator.is_, one, other)) or all(
        a is b or (type(a) is type(b) and type(a) in (float, int, np.float64) and a == b != 0)
        for a, b in zip(one, other, strict=True)
    )


def _source(name: str) -> tuple[str, str]:
    """(Which argument of `run` an array comes from, its name there.)"""
    what, _, of = name.partition(" ")
    return (what, of) if of else ("read", name)


def _check_segments(ends: npt.NDArray[np.int64], size: int) -> None:
    if ends.ndim != 1 or not len(ends) or ends[-1] != size or np.any(np.diff(ends, prepend=0) < 0):
        raise ValueError(f"segments end at {ends.tolist()}; pass ascending ends up to {size}.")


def _blocks(ends: npt.NDArray[np.int64]) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int32]]:
    """Where blocks start (and the last ends), and the segment of each."""
    sizes = np.diff(ends, prepend=0)
    counts = -(-sizes // BLOCK)
    owner = np.repeat(np.arange(len(ends), dtype=np.int32), counts)
    within = np.arange(len(owner)) - np.repeat(np.cumsum(counts) - counts, counts)
    starts = np.repeat(ends - sizes, counts) + BLOCK * within
    return np.append(starts, ends[-1]).astype(np.int64), owner


class _Bound:
    """A plan with the arrays it works on."""

    def __init__(self, plan: Any, step: FusedStep, inverse: _Bound | None = None) -> None:
        self.plan, self.inverse = plan, inverse
        self.segments, self.pull, self.undone = step.segments, step.pull, step.undone
        self.starts, owner = _blocks(step.segments)
        self.blocks = len(owner)
        self.chunk = self.blocks if inverse else CHUNK_BLOCKS
        self.of = step.kernel
        self.kernel = self.of.Fused(
            plan.operations, plan.kinds, plan.registers, self.starts, owner, len(plan.sums),
            step.undone, *([inverse.kernel] if inverse else []),
        )  # fmt: skip
        self._like = next(iter(step.variables.values())).values
        for k, fixed in enumerate(step.variables.values()):
            self.kernel.variable(k, fixed.values, fixed.fraction_bits)
        self.buffers: list[Any] = [step.buffers[name] for name in plan.scaled]
        self.ratios: list[Any] = [None] * len(plan.scaled)
        self.arrays: dict[str, Any] = dict.fromkeys(plan.arrays)
        self.sources = [(name, slot, *_source(name)) for name, slot in plan.arrays.items()]
        self.numbers: list[Any] | None = None  # that the plan's scalars were last made of

    def set(self, reads: dict, ratios: dict, emit: dict, cotangents: dict, into: dict) -> None:
        numbers = self._numbers(reads, ratios)
        now = [numbers[name] for name in self.plan.names]
        if self.numbers is None or not _same(now, self.numbers):
            self.kernel.numbers_in(self.plan.scalars, self.plan.numbers(_plain(numbers)))
            self.numbers = now
        given = {"read": reads, "factor": ratios, "out": emit, "ct": cotangents, "into": into}
        for name, slot, what, of in self.sources:
            array = given[what].get(of)
            if array is None or array is not self.arrays[name]:
                array = self._array(name, what, array)
                self.kernel.array(slot, array.reshape(-1))
                self.arrays[name] = array
        for k, name in enumerate(self.plan.scaled):
            ratio = ratios[name]
            if self.ratios[k] is not ratio:
                many, columns = isinstance(ratio, Segments), _ratio(ratio).columns_in
                columns = columns(self.of)
                self.kernel.buffer(k, self.buffers[k].heads, columns, many)
                self.ratios[k] = ratio
        if self.inverse is not None:
            self.inverse.set(reads, ratios, {}, {}, {})

    def _numbers(self, reads: dict, ratios: dict) -> dict:
        if self.pull is None:
            return reads
        return reads | {f"factor {name}": factor_of(x) for name, x in ratios.items()}

    def _array(self, name: str, what: str, array: Any) -> Any:
        if what == "factor":
            return array.value
        if array is None and what == "into":
            return np.empty_like(self._like, dtype=np.float64)
        if array is None:
            raise ValueError(f"{name!r} is not given; pass cotangents of every variable.")
        ours = array.flags.c_contiguous and getattr(array.flags, "writeable", True)  # CuPy's are
        if what != "read" and not ours:
            raise ValueError(f"{name!r} is read-only or not contiguous; pass another array.")
        if what == "ct" and array.dtype != np.float64:
            raise ValueError(f"{name!r} is {array.dtype}; pass float64.")
        return array

    def run(self, lo: int, hi: int) -> Any:
        elements = int(self.starts[hi] - self.starts[lo])
        for k, buffer in enumerate(self.buffers):
            self.kernel.words(k, *buffer.lend(elements, self.undone))
        refused = self.kernel.run(lo, hi)
        for k, buffer in enumerate(self.buffers):
            buffer.take_back(self.kernel.count(k))
        return refused

    def start(self, error: Callable[[Any], Exception]) -> None:
        """Run all blocks, without waiting for them."""
        for k, buffer in enumerate(self.buffers):
            self.kernel.words(k, *buffer.lend(0, self.undone))
        self.kernel.start(error)
        for k, buffer in enumerate(self.buffers):
            buffer.take_back(self.kernel.count(k))

    def found(self, reads: dict, ratios: dict) -> dict[str, Any]:
        """The cotangents of what was read."""
        count = len(self.segments)
        sums = dict(zip(self.plan.sums, self.kernel.sums(count), strict=True))
        values = self.plan.late(_plain(self._numbers(reads, ratios)), sums)
        found: dict[str, Any] = {}
        for name, value in zip(self.plan.found, values, strict=True):
            if isinstance(reads[name], Segments):
                found[name] = value if np.shape(value) == (count,) else np.full(count, value)
            else:
                found[name] = math.fsum(value) if np.ndim(value) else float(value)
        for name, array in self.arrays.items():
            if name.startswith("into "):
                found[name[5:]] = array
        return found


def _check_bits(fraction_bits: int) -> None:
    if not 0 <= fraction_bits <= FRACTION_BITS_MAX:
        raise ValueError(f"fraction_bits is {fraction_bits}; pass 0 to {FRACTION_BITS_MAX}.")


def _real_vector(reals: Any) -> Reals:
    """A contiguous float32 or float64 vector; other real dtypes become float64."""
    given = homes.real_array(reals)
    if given.dtype.kind not in "fiub":
        raise TypeError(f"real numbers are wanted, not {given.dtype}.")
    kind = np.float32 if given.dtype == np.float32 else np.float64
    return np.ravel(given.astype(kind, copy=False))


def _overflow(came: str, index: int, fraction_bits: int) -> FixedOverflow:
    return FixedOverflow(
        f"element {index}: {came}; {fraction_bits} fraction bits hold [-2**{63 - fraction_bits}, "
        f"2**{63 - fraction_bits}). Use a smaller learning rate, clipping or fewer fraction bits.",
        index=index,
    )
