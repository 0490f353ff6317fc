"""The kernel for CuPy arrays: what exact.pyx has, by the same names, with the texts of device.py.

State, heads and the words at work stay on the device. A refusal leaves everything as it was before
its launch, and later launches do nothing until the host has asked: see `device`.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import cupy
import numpy as np

from revgrad._ext import device, kernel
from revgrad._ext.fused import (
    ADD,
    DOUBLES,
    EMIT,
    FLOATS,
    SCALE,
    SUBTRACT,
    UNSCALE,
)  # fmt: skip
from revgrad._ext.reference import check_sizes, empty_buffer

FUSED_ELEMENTS = device.TILE
RESTORES = True  # what a refusal finds done is taken back here
OPTIONS = ("--std=c++14", "--fmad=false")  # a multiply and an add are rounded apart
REFUSED, EMPTY, GOOD = 1, 2, 0x7FFFFFFF
LARGEST_GROWTH = 2.5e-5  # bits by which a head may gain more than log2(d/n): log2(1 + 2**-16)
_DTYPES = {DOUBLES: np.float64, FLOATS: np.float32}

compare = kernel.compare  # of host integers, before they go anywhere


# Launches.


class Launches:
    """Of one device: the number of the last one, and whether one was refused.

    later: what to raise, by the number of a launch that nobody waited for: a function of (where it
    was refused, as `Fused.refusal` has it).
    """

    def __init__(self) -> None:
        self.status, self.serial = cupy.zeros(2, np.int64), 0
        self.later: dict[int, tuple[Fused, Any, Callable[[Any], Exception]]] = {}

    def next(self) -> Any:
        self.serial += 1
        return np.int64(self.serial)

    def refused(self) -> tuple[int, int]:
        """(Serial of the launch that was refused or 0, why); forgets it. Waits for the device."""
        serial, why = self.status.get().tolist()
        if serial:
            self.status.fill(0)
        later, self.later = self.later, {}
        if serial in later:
            fused, codes, error = later[serial]
            raise error(fused.refusal(why, codes))
        return serial, why


def settle() -> None:
    """Wait for the launches that nobody waited for. Raises: what the first refused one left."""
    here = launches()
    if here.later:
        here.refused()


_launches: dict[int, Launches] = {}
_modules: dict[Any, tuple[dict[str, Any], dict[str, list[str]]]] = {}
_scratch: dict[Any, Any] = {}


def launches() -> Launches:
    """Of the current device."""
    here = cupy.cuda.Device().id
    if here not in _launches:
        _launches[here] = Launches()
    return _launches[here]


def scratch(name: str, size: int, dtype: Any) -> Any:
    """Memory for the kernels of one launch; those of the next may have it too."""
    key = cupy.cuda.Device().id, name
    if key not in _scratch or _scratch[key].size < size:
        _scratch[key] = cupy.empty(max(size, 1), dtype)
    return _scratch[key]


def functions(form: device.Form, inverse: device.Form | None) -> tuple[dict, dict]:
    """(Kernels by name, names of their parameters), compiled once."""
    key = cupy.cuda.Device().id, form, inverse
    if key not in _modules:
        text, parameters = device.text_of(form, inverse)
        module = cupy.RawModule(code=text, options=OPTIONS)
        names = [*parameters, "line_up"]
        _modules[key] = {name: module.get_function(name) for name in names}, parameters
    return _modules[key]


_uploads: dict[tuple[int, str], tuple[Any, Any]] = {}
UPLOADS = 64


def uploaded(x: Any, dtype: Any) -> Any:
    """A NumPy array on the device, in this dtype; of rows of one read-only matrix all, once."""
    whole = x.base if isinstance(x.base, np.ndarray) else x
    plain = whole.flags.c_contiguous and x.flags.c_contiguous and whole.dtype == x.dtype
    if whole is x or not plain or whole.flags.writeable or whole.size > 2**20:
        return cupy.asarray(np.ascontiguousarray(x, dtype))
    key = id(whole), np.dtype(dtype).char
    kept = _uploads.pop(key, None)
    if kept is None or kept[0] is not whole:
        kept = whole, cupy.asarray(np.ascontiguousarray(whole, dtype).reshape(-1))
    _uploads[key] = kept
    while len(_uploads) > UPLOADS:
        del _uploads[next(iter(_uploads))]
    first = (x.ctypes.data - whole.ctypes.data) // x.itemsize
    return kept[1][first : first + x.size]


class Ratios:
    """Numerators and denominators, checked once: one of each, or one per element (as uint32)."""

    def __init__(self, n: Any, d: Any, size: int) -> None:
        kernel.Ratios(n, d, size)  # which checks
        self.many = bool(np.ndim(n) or np.ndim(d))
        self.size = size if self.many else 0
        self.n, self.d = (self._column(k) for k in (n, d))
        top = float(np.max(np.log2(np.asarray(d) / np.asarray(n)), initial=0.0))
        self.bits = top + LARGEST_GROWTH

    def _column(self, k: Any) -> Any:
        if not self.many:
            return int(k)
        return uploaded(k, np.uint32) if np.ndim(k) else cupy.full(1, k, np.uint32)

    def part(self, lo: int, hi: int) -> Ratios:
        """Those of elements lo to hi."""
        if not self.many:
            return self
        part = Ratios.__new__(Ratios)
        part.many, part.size, part.bits = True, hi - lo, self.bits
        part.n, part.d = (k[lo:hi] if k.size > 1 else k for k in (self.n, self.d))
        return part

    def parameters(self, b: int, by_segment: bool) -> dict[str, Any]:
        if not self.many:
            return divisor(f"n{b}", self.n) | divisor(f"d{b}", self.d)
        found: dict[str, Any] = {f"by_segment{b}": np.int64(by_segment)}
        for name, column in (("n", self.n), ("d", self.d)):
            found |= {f"{name}{b}": column, f"{name}{b}_step": np.int64(column.size > 1)}
        return found


@lru_cache(maxsize=1024)
def _divisor(k: int) -> tuple[int, int, int]:
    """ratio_divisor_of, and ratio_divisor_power for powers of two; see ratio.h."""
    if k & (k - 1) == 0:
        return k, 0, k.bit_length() - 1
    shift = (k - 1).bit_length() - 1
    return k, (1 << 64 + shift) // k + 1, shift


def divisor(name: str, k: int) -> dict[str, Any]:
    value, times, shift = _divisor(k)
    return {
        name: np.uint64(value), f"{name}_times": np.uint64(times), f"{name}_shift": np.int64(shift),
    }  # fmt: skip


class Fused:
    """Operations of fused.py, on all blocks at once. See exact.Fused.

    inverse: the Fused that undoes this one, given the same arrays and numbers; needed where an
    element can refuse.
    """

    def __init__(
        self, operations: Any, kinds: list[int], registers: list[int], starts: Any, segments: Any,
        sums: int, backwards: bool, inverse: Fused | None = None,
    ) -> None:  # fmt: skip
        self.rows = tuple(map(tuple, operations.tolist()))
        self.kinds, self.count_of_sums, self.backwards = tuple(kinds), sums, bool(backwards)
        self.many, self.inverse = [False] * len(kinds), inverse
        if inverse is not None:
            device.check(self.rows)
        self.size, self.blocks = int(starts[-1]), len(segments)
        self.host_starts, self.host_segments = np.asarray(starts), np.asarray(segments)
        self.starts = cupy.asarray(np.ascontiguousarray(starts, np.int64))
        self.segments = cupy.asarray(np.ascontiguousarray(segments, np.int32))
        self.buffers = 1 + max((row[6] for row in self.scales()), default=-1)
        self.columns = [False] * self.buffers
        self.bits = [0.0] * self.buffers
        self.stacks: list[Any]
        self.partials = cupy.empty(sums * self.blocks)
        self.forget()

    def forget(self) -> None:
        """Hold on to nothing that was given."""
        self.values: dict[str, Any] = {
            "starts": self.starts, "segments": self.segments, "partials": self.partials,
        }  # fmt: skip
        self.stacks = [None] * self.buffers

    def scales(self) -> list[tuple[int, ...]]:
        return [row for row in self.rows if row[0] in (SCALE, UNSCALE)]

    def numbers_in(self, slots: list[int], values: list[Any]) -> None:
        for k, value in zip(slots, values, strict=True):
            self.many[k] = bool(getattr(value, "ndim", 0))
            if self.many[k]:
                needed = int(self.host_segments.max(initial=-1)) + 1
                if len(value) < needed:
                    raise ValueError(f"{len(value)} numbers; pass one per segment.")
                self.values[f"c{k}"] = uploaded(value, np.float64)
            else:
                self.values[f"c{k}"] = np.float64(float(value))

    def array(self, k: int, reals: Any) -> None:
        check_sizes(self.size, len(reals))
        if isinstance(reals, np.ndarray):
            reals = uploaded(reals, reals.dtype)
        if reals.dtype != _DTYPES[self.kinds[k]]:
            raise TypeError(f"an array of {reals.dtype} where {_DTYPES[self.kinds[k]]} is read.")
        self.values[f"a{k}"] = reals

    def variable(self, k: int, x: Any, fraction_bits: int) -> None:
        check_sizes(self.size, len(x))
        self.values[f"x{k}"] = x
        self.values[f"up{k}"] = np.float64(2.0**fraction_bits)
        self.values[f"ulp{k}"] = np.float64(2.0**-fraction_bits)

    def buffer(self, k: int, heads: Any, ratios: Ratios, by_segment: bool) -> None:
        check_sizes(self.size, len(heads))
        if ratios.size and not by_segment:
            check_sizes(self.size, ratios.size)
        self.values[f"heads{k}"] = heads
        self.values |= ratios.parameters(k, by_segment)
        self.columns[k], self.bits[k] = ratios.many, ratios.bits

    def words(self, k: int, stack: Any, count: Any, room: int) -> None:
        self.stacks[k] = stack

    def count(self, k: int) -> Any:
        return self.stacks[k].count

    def form(self) -> device.Form:
        return device.Form(
            self.rows, self.kinds, tuple(self.many), tuple(self.columns), self.count_of_sums,
            self.backwards,
        )  # fmt: skip

    def run(self, lo: int, hi: int) -> tuple[int, int, int] | None:
        """None, or (block, operation, element) that refused; then nothing was done."""
        if (lo, hi) != (0, self.blocks):
            raise ValueError(f"blocks {lo} to {hi} of {self.blocks}; all go at once.")
        why = self.go()
        if not why:
            return None
        return self.refusal(why)

    def go(self) -> int:
        """Run, and wait; returns why it was refused, or 0."""
        self.launch()
        if self.inverse is None:  # there is nothing to refuse
            return 0
        _, why = launches().refused()
        return why

    def start(self, error: Callable[[Any], Exception]) -> None:
        """Run, and leave it to `settle`, or to who waits next, to raise what error(refusal) is."""
        serial = self.launch()
        if self.inverse is not None:
            launches().later[serial] = self, self.values["refusals"], error

    def launch(self) -> int:
        """Start all kernels of a run, and wait for none; returns its number."""
        inverse = self.inverse
        kernels, names = functions(self.form(), inverse.form() if inverse else None)
        serial, status = launches().next(), launches().status
        self._scratch(serial, status)
        work = lambda name: self._call(kernels[name], names[name])
        if "count" in names:
            work("count")
            self._line_up(kernels["line_up"], UNSCALE, serial, status)
        work("run")
        self._line_up(kernels["line_up"], SCALE, serial, status)
        if "finish" in names:
            work("finish")
        return int(serial)

    def _scratch(self, serial: Any, status: Any) -> None:
        blocks, values = self.blocks, self.values
        values["serial"], values["status"] = serial, status
        values["refusals"] = scratch("refusals", blocks, np.int32)
        for row in self.scales():
            b = row[6]
            values["counts"] = scratch("counts", self.buffers * blocks, np.int32)
            values["offsets"] = scratch("offsets", self.buffers * blocks, np.int64)
            values["bases"] = scratch("bases", self.buffers, np.int64)
            stack = self.stacks[b]
            stack.expect(self.bits[b], popping=row[0] == UNSCALE)
            values[f"words{b}"], values[f"count{b}"] = stack.memory, stack.count
            values[f"keep{b}"] = np.int64(stack.keep)
            if row[0] == SCALE:
                values[f"staged{b}"] = scratch(f"staged{b}", blocks * device.TILE, np.uint16)

    def _call(self, function: Any, names: list[str]) -> None:
        own, other = self.values, self.inverse.values if self.inverse else {}
        arguments = tuple(own[n] if n in own else other[n[1:]] for n in names)
        function((self.blocks,), (device.THREADS,), arguments)

    def _line_up(self, line_up: Any, op: int, serial: Any, status: Any) -> None:
        blocks, values = self.blocks, self.values
        for row in self.rows:
            if row[0] == op:
                b = row[6]
                part = slice(b * blocks, (b + 1) * blocks)
                line_up((1,), (device.THREADS,), (
                    values["counts"][part], values["offsets"][part], np.int64(blocks),
                    self.stacks[b].count, values["bases"][b : b + 1], np.int64(op == SCALE),
                    status, serial,
                ))  # fmt: skip

    def refusal(self, why: int, codes: Any = None) -> tuple[int, int, int]:
        """(block, operation, element); codes: of the tiles, if not those of the last run."""
        if why == EMPTY:
            last = next(k for k, row in enumerate(self.rows) if row[0] == UNSCALE)
            return self.blocks - 1, last, int(self.host_starts[-2])
        codes = self.values["refusals"] if codes is None else codes
        codes = codes[: self.blocks].get()
        bad = np.flatnonzero(codes != GOOD)
        block = int(bad[-1 if self.backwards else 0])
        operation, element = device.refused_at(int(codes[block]), self.rows)
        return block, operation, int(self.host_starts[block]) + element

    def sums(self, segments: int) -> Any:
        """The sums by segment, one row each, on the host; blocks are added in order."""
        out = np.zeros((self.count_of_sums, segments))
        if self.count_of_sums:
            partials = self.partials.get().reshape(self.count_of_sums, self.blocks)
            ends = np.flatnonzero(np.diff(self.host_segments, append=-1)) + 1
            first = 0
            for end in ends.tolist():
                sums = np.cumsum(partials[:, first:end], axis=1)[:, -1]  # one after the other
                out[:, self.host_segments[first]] = sums + 0.0
                first = end
        return out


# Words.


class Stack:
    """A Tail whose top is on the device: memory[:count], above the words of `below`, on the host.

    How many words there are is known to the device at once, and to the host after it asked: it asks
    when a launch could want more room, or more words, than there may be. Between two questions an
    element has pushed or popped at most 1 + bits/16 words, for the bits by which its ratios changed
    its share, as 16 per word and log2(head) together change by those.
    When the memory is full its older words go to `below`, by a copy that nothing waits for before
    the next one.
    Where `lent`, zeros lie under all words, without end; of these `borrowed` are in the memory or
    below, or were popped.
    keep=False: words are counted and dropped.
    """

    chunk = 2**62  # elements per call: all
    threads = False

    def __init__(self, below: Any, size: int, keep: bool = True) -> None:
        self.below, self.size, self.keep = below, size, keep
        self.capacity = max(3 * size, 4096) if keep else 1
        self.memory = cupy.empty(self.capacity, np.uint16)
        self.count = cupy.zeros(1, np.int64)
        self.known, self.up, self.down = 0, 0.0, 0.0
        self.lent, self.borrowed = False, 0
        self._other: Any = None  # memory whose words may be on their way
        self._stream: Any = None
        self._pinned: Any = None
        self._coming: Any = None  # (event, how many of the pinned words) of a copy

    open = property(lambda self: self)

    def expect(self, bits: float, popping: bool) -> None:
        """A launch will push, or pop, at most `bits` per element."""
        if not self.keep:
            return
        if popping:
            self.down += bits
            if self.borrowed and not self.lent:
                self._return_zeros()
            if (self.lent or self._below()) and self.known < self._most(self.down):
                self._ask()
                self.down = bits
                if self.known < self._most(bits):
                    self._refill()
                if self.lent and self.known < self._most(bits):
                    self._lend(self._most(bits) - self.known)
        else:
            self.up += bits
            if self.known + self._most(self.up) > self.capacity:
                self._ask()
                self.up = bits
                if self.known + self._most(bits) > self.capacity:
                    self._flush()

    def _most(self, bits: float) -> int:
        return self.size * (1 + int(bits / 16))

    def _ask(self) -> None:
        self.known, self.up, self.down = int(self.count.get()[0]), 0.0, 0.0

    def _below(self) -> int:
        return self.below.words + (self._coming[1] if self._coming else 0)

    def _flush(self) -> None:
        """Send all but the newest `size` words down."""
        self.collect()
        if self._stream is None:
            self._stream = cupy.cuda.Stream(non_blocking=True)
            self._other = cupy.empty(self.capacity, np.uint16)
            raw = cupy.cuda.alloc_pinned_memory(2 * self.capacity)
            self._pinned = np.frombuffer(raw, np.uint16, self.capacity)
        moved = self.known - min(self.known, self.size)
        full = cupy.cuda.Event()
        full.record(cupy.cuda.get_current_stream())
        self._stream.wait_event(full)
        self.memory[:moved].get(stream=self._stream, out=self._pinned[:moved], blocking=False)
        here = cupy.cuda.Event()
        here.record(self._stream)
        self._coming = here, moved
        self._other[: self.known - moved] = self.memory[moved : self.known]
        self.memory, self._other = self._other, self.memory
        self._has(self.known - moved)

    def collect(self) -> None:
        """Have what was sent down, there."""
        if self._coming:
            event, moved = self._coming
            event.synchronize()
            self.below.push(self._pinned[:moved])
            self._coming = None

    def _refill(self) -> None:
        """Take back as many words as there is room for, or as there are."""
        self.collect()
        came = self.below.pop(min(self.below.words, self.capacity - self.known))
        if len(came):
            self._put_under(cupy.asarray(came))

    def _lend(self, zeros: int) -> None:
        """Take zeros from under the last word, which is on the device."""
        self._put_under(cupy.zeros(zeros, np.uint16))
        self.borrowed += zeros

    def _return_zeros(self) -> None:
        """Give back what was lent to a launch that was refused, as all that was ever lent."""
        self._ask()
        memory, rest = cupy.empty(self.capacity, np.uint16), self.known - self.borrowed
        memory[:rest] = self.memory[self.borrowed : self.known]
        self.memory, self.borrowed = memory, 0
        self._has(rest)

    def _put_under(self, words: Any) -> None:
        memory, count = cupy.empty(self.capacity, np.uint16), words.size + self.known
        memory[: words.size] = words
        memory[words.size : count] = self.memory[: self.known]
        self.memory = memory
        self._has(count)

    def _has(self, count: int) -> None:
        self.known = count
        self.count.fill(count)

    # What a Tail does.

    def reserve(self, room: int) -> None:
        pass  # see expect

    require = borrow = reserve

    def give_back(self) -> None:
        pass

    def after(self, count: Any, keep: bool) -> int:
        """Words that were dropped: none that are not counted here."""
        return 0

    @property
    def words(self) -> int:
        self._ask()
        return self._below() + self.known - self.borrowed

    @property
    def nbytes(self) -> int:
        held = (self.memory, self._other, self._pinned)
        return self.below.nbytes + sum(x.nbytes for x in held if x is not None)

    @property
    def nbytes_on_disk(self) -> int:
        return int(self.below.nbytes_on_disk)

    def push(self, words: Any) -> None:
        """Put words of the host on top; only of a stack that has none on the device."""
        self._ask()
        if self.known:
            raise AssertionError("words of the host on top of words of the device")
        self.below.push(words)

    def copy(self) -> Stack:
        self._ask()
        self.collect()
        twin = Stack(self.below.copy(), self.size, self.keep)
        if self.keep:
            twin.memory[: self.known] = self.memory[: self.known]
        twin._has(self.known)
        twin.lent, twin.borrowed = self.lent, self.borrowed
        return twin

    def on_host(self) -> Any:
        """All words in a Tail of the host, which has given back the zeros that it can."""
        self._ask()
        self.collect()
        twin = self.below.copy()
        if self.keep:
            twin.push(self.memory[: self.known].get())
        twin.lent, twin.borrowed = self.lent, self.borrowed
        twin.give_back()
        return twin


# Single operations, by the names of exact.pyx.

_ROW = {
    SCALE: (SCALE, 0, -1, -1, -1, 0, 0), UNSCALE: (UNSCALE, 0, -1, -1, -1, 0, 0),
    ADD: (ADD, 0, 0, -1, -1, 0, -1), SUBTRACT: (SUBTRACT, 0, 0, -1, -1, 0, -1),
    EMIT: (EMIT, 0, -1, -1, -1, 0, 0),
}  # fmt: skip
_INVERSE = {SCALE: UNSCALE, UNSCALE: SCALE, ADD: SUBTRACT, SUBTRACT: ADD}


@lru_cache(maxsize=64)
def _single(op: int, size: int, kind: int, here: int, undoes: bool = False) -> Fused:
    """One operation on a vector of this size on a device, and its inverse."""
    starts = np.append(np.arange(0, size, device.TILE), size)
    alone = undoes or op not in _INVERSE
    inverse = None if alone else _single(_INVERSE[op], size, kind, here, True)
    rows = np.array([_ROW[op]], np.int32)
    kinds = [kind] if op in (ADD, SUBTRACT, EMIT) else []
    segments = np.zeros(len(starts) - 1, np.int32)
    return Fused(rows, kinds, [0] * len(kinds), starts, segments, 0, op == UNSCALE, inverse)


def _done(op: int, size: int, kind: int, set_up: Callable[[Fused], None]) -> int:
    """Do one operation; returns the element that refused, or -1. Keeps nothing it was given."""
    made = _single(op, size, kind, cupy.cuda.Device().id)
    parts = [part for part in (made, made.inverse) if part is not None]
    for part in parts:
        set_up(part)
    try:
        why = made.go()
        return made.refusal(why)[2] if why else -1
    finally:
        for part in parts:
            part.forget()


def multiply_by(x: Any, heads: Any, ratios: Ratios, words: Any, count: Any) -> Any:
    _move(SCALE, x, heads, ratios, words)
    return words.count


def divide_by(x: Any, heads: Any, ratios: Ratios, words: Any, count: Any) -> Any:
    refused = _move(UNSCALE, x, heads, ratios, words)
    if refused >= 0:
        raise empty_buffer(refused)
    return words.count


def _move(op: int, x: Any, heads: Any, ratios: Ratios, words: Any) -> int:
    check_sizes(len(x), len(heads), ratios.size or len(x))
    if not len(x):
        return -1

    def set_up(part: Fused) -> None:
        part.variable(0, x, 0)
        part.buffer(0, heads, ratios, False)
        part.words(0, words, None, 0)

    return _done(op, len(x), 0, set_up)


def add_floats(x: Any, delta: Any, fraction_bits: int, sign: int) -> int:
    check_sizes(len(x), len(delta))
    if not len(x):
        return -1

    def set_up(part: Fused) -> None:
        part.variable(0, x, fraction_bits)
        part.array(0, delta)

    kind = FLOATS if delta.dtype == np.float32 else DOUBLES
    return _done(ADD if sign > 0 else SUBTRACT, len(x), kind, set_up)


def encode(values: Any, fraction_bits: int, out: Any) -> int:
    out.fill(0)
    return add_floats(out, values, fraction_bits, 1)


def decode(x: Any, fraction_bits: int, out: Any) -> None:
    check_sizes(len(x), len(out))
    if not len(x):
        return

    def set_up(part: Fused) -> None:
        part.variable(0, x, fraction_bits)
        part.array(0, out)

    _done(EMIT, len(x), FLOATS if out.dtype == np.float32 else DOUBLES, set_up)
