"""Information buffers: where the bits go that multiplying by n/d would destroy.

InformationBuffer keeps a machine-word head per element, the hot digits of a number, and one tail
for all: words spilled from the heads, older ones sealed into gmpy2 integers. BignumBuffer keeps
one gmpy2 integer per element: slow, for ratios of any size, and an oracle for the laws.
"""

from __future__ import annotations

import sys
from hashlib import blake2b
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
from gmpy2 import log2, mpz

from revgrad._ext import kernel
from revgrad._ext.reference import LOW
from revgrad.errors import BufferEmpty, FixedOverflow, RatioRefused
from revgrad.ratio import Ratio

Int64s: TypeAlias = npt.NDArray[np.int64]
Heads: TypeAlias = npt.NDArray[np.uint32]

CHUNK = 2**16  # elements per kernel call, so that state, heads and words stay in cache
SEALED = 2**19  # words in each sealed segment
OPEN = 3 * 2**18  # words in the open array at most; OPEN - SEALED >= 4 * CHUNK
SEGMENT_BYTES = 2**21  # law 2: nbytes <= bits/8 + 4 per element + SEGMENT_BYTES
POINTER = 8
GOLDEN = 0x9E3779B97F4A7C15  # 2**64 / golden ratio: multiples of it fill [0, 2**64) evenly
BEND = 0x54080000  # 0.6565 * 2**31, which bends a straight line nearest to 2**p


def first_heads(size: int) -> Heads:
    """Heads staggered log-uniformly over [LOW, LOW*2**16), by integers alone; contract.

    The top 4 bits of index * GOLDEN mod 2**64 are the exponent, the next 31 the position in its
    octave. Equal heads would spill in lockstep: nothing in most steps, everything in some.
    """
    hashed = np.arange(size, dtype=np.uint64) * np.uint64(GOLDEN)
    exponent = hashed >> np.uint64(60)
    # 2**p for a position p in [0, 1) as 1 + p * (BEND + (1 - BEND) * p), in units of 2**-31
    p = (hashed >> np.uint64(29)) & np.uint64(2**31 - 1)
    slope = np.uint64(BEND) + (p * np.uint64(2**31 - BEND) >> np.uint64(31))
    mantissa = np.uint64(2**31) + (p * slope >> np.uint64(31))
    # mantissa in [2**31, 2**32) and LOW = 2**16, so a shift by 15 - exponent
    return (mantissa >> (np.uint64(15) - exponent)).astype(np.uint32)


class Tail:
    """A stack of 16-bit words: sealed segments of SEALED words each under an open array.

    open[:count] is the top of the stack. A call pushes or pops at most CHUNK words. Sealing
    leaves seven times as many open and unsealing waits until fewer are left, so that pushing and
    popping cost time linear in the words moved.
    """

    __slots__ = ("count", "open", "sealed")

    def __init__(self) -> None:
        self.open = np.empty(0, np.uint16)
        self.count = 0
        self.sealed: list[mpz] = []

    @property
    def words(self) -> int:
        return len(self.sealed) * SEALED + self.count

    @property
    def nbytes(self) -> int:
        sealed = sum(sys.getsizeof(segment) + POINTER for segment in self.sealed)
        return self.open.nbytes + sealed

    def reserve(self, room: int) -> None:
        """Make room in the open array for `room` <= CHUNK words more."""
        needed = self.count + room
        if needed > OPEN:
            self.sealed.append(_sealed(self.open[:SEALED]))
            self.count -= SEALED
            self.open[: self.count] = self.open[SEALED : SEALED + self.count]
        elif needed > len(self.open):
            self._grow(min(OPEN, max(needed, 2 * len(self.open))))

    def require(self, wanted: int) -> None:
        """Have `wanted` <= CHUNK words in the open array, or all there are."""
        if self.count >= wanted or not self.sealed:
            return
        if len(self.open) < OPEN:
            self._grow(OPEN)
        self.open[SEALED : SEALED + self.count] = self.open[: self.count]
        self.open[:SEALED] = _unsealed(self.sealed.pop())
        self.count += SEALED

    def copy(self) -> Tail:
        twin = Tail()
        twin.open, twin.count = self.open[: self.count].copy(), self.count
        twin.sealed = self.sealed.copy()
        return twin

    def feed(self, digest: Any) -> None:
        """Give all words to a hash, oldest first, wherever segments are cut."""
        for segment in self.sealed:
            digest.update(segment.to_bytes(2 * SEALED, "little"))
        digest.update(self.open[: self.count].astype("<u2").tobytes())

    def _grow(self, capacity: int) -> None:
        larger = np.empty(capacity, np.uint16)
        larger[: self.count] = self.open[: self.count]
        self.open = larger


def _sealed(words: npt.NDArray[np.uint16]) -> mpz:
    return mpz.from_bytes(words.astype("<u2").tobytes(), "little")


def _unsealed(segment: mpz) -> npt.NDArray[np.uint16]:
    return np.frombuffer(segment.to_bytes(2 * SEALED, "little"), "<u2")


class InformationBuffer:
    """Keeps what multiplying a vector by ratios destroys: log2(d/n) bits per element and step.

    size: elements of the vector. heads: uint32 in [2**16, 2**32), one per element; they start at
        first_heads(size). Elements go in index order, so slices of one vector may be multiplied
        apart, and undone in the opposite order.
    keep=False: heads move alike, but words are counted and dropped; then only `restore` goes back.
    """

    __slots__ = ("_dropped", "_tail", "heads", "keep")

    def __init__(self, size: int, *, keep: bool = True) -> None:
        self.heads = first_heads(size)
        self.keep = keep
        self._tail = Tail()
        self._dropped = 0

    def multiply(self, x: Int64s, ratio: Ratio, lo: int = 0) -> None:
        """x <- x * n/d in place, within n ulp.

        x: contiguous int64 vector, belonging to heads[lo : lo + len(x)].
        ratio: one for all or one per element, n <= d <= 2**24.
        Raises: RatioRefused, with nothing changed.
        """
        heads = _belonging(self.heads, x, lo)
        _check_narrow(ratio, x)
        if not isinstance(ratio.n, int) or ratio.n != ratio.d:
            self._advance(x, heads, ratio, 0)

    def divide(self, x: Int64s, ratio: Ratio, lo: int = 0) -> None:
        """The exact undo of the last `multiply`, which had the same ratio, lo and length.

        Raises: BufferEmpty, RatioRefused, with x, heads and words unchanged.
        """
        heads = _belonging(self.heads, x, lo)
        _check_narrow(ratio, x)
        _check_kept(self.keep)
        if isinstance(ratio.n, int) and ratio.n == ratio.d:
            return
        for start in reversed(range(0, len(x), CHUNK)):
            part = slice(start, start + CHUNK)
            n, d = _digits(ratio, part)
            self._tail.require(len(x[part]))
            tail = self._tail
            try:
                tail.count = kernel.divide(x[part], heads[part], n, d, tail.open, tail.count)
            except BufferEmpty:
                self._advance(x, heads, ratio, start + CHUNK)
                raise

    def _advance(self, x: Int64s, heads: Heads, ratio: Ratio, first: int) -> None:
        """Multiply the elements from `first` on."""
        tail = self._tail
        for start in range(first, len(x), CHUNK):
            part = slice(start, start + CHUNK)
            n, d = _digits(ratio, part)
            tail.reserve(len(x[part]))
            tail.count = kernel.multiply(x[part], heads[part], n, d, tail.open, tail.count)
            if not self.keep:
                self._dropped, tail.count = self._dropped + tail.count, 0

    def lend(self, elements: int, popping: bool) -> tuple[Any, int, int]:
        """(stack, count, room for a word per element), for a kernel call on so many <= CHUNK."""
        if popping:
            _check_kept(self.keep)
            self._tail.require(elements)
            return self._tail.open, self._tail.count, 0
        self._tail.reserve(elements)
        return self._tail.open, self._tail.count, elements

    def take_back(self, count: int) -> None:
        """The stack after the call holds `count` words."""
        self._tail.count = count
        if not self.keep:
            self._dropped, self._tail.count = self._dropped + count, 0

    @property
    def words(self) -> int:
        """Words spilled so far, dropped ones included."""
        return self._dropped + self._tail.words

    @property
    def bits(self) -> float:
        """Bits in use: 16 * words + sum log2(head / first head); 0 at the start."""
        grown = np.log2(self.heads) - np.log2(first_heads(len(self.heads)))
        return 16.0 * self.words + float(grown.sum())

    @property
    def nbytes(self) -> int:
        """Bytes held: heads, sealed segments and the open array.

        At most bits/8 + 4 per element + SEGMENT_BYTES.
        """
        return self.heads.nbytes + self._tail.nbytes

    def digest(self) -> bytes:
        """16 bytes that tell buffers of different content apart; words count if they are kept."""
        digest = blake2b(digest_size=16)
        digest.update(self.heads.astype("<u4").tobytes())
        digest.update(self.words.to_bytes(8, "little"))
        self._tail.feed(digest)
        return digest.digest()

    def snapshot(self) -> tuple[Heads, int, Tail]:
        """What `restore` needs: a copy of the heads, the count of words, and those kept."""
        return self.heads.copy(), self._dropped, self._tail.copy()

    def restore(self, snapshot: tuple[Heads, int, Tail]) -> None:
        """Go back to a snapshot of this buffer or of one of the same size; it stays usable."""
        heads, self._dropped, tail = snapshot
        self.heads[:] = heads
        self._tail = tail.copy()

    def copy(self) -> InformationBuffer:
        twin = InformationBuffer(len(self.heads), keep=self.keep)
        twin.restore(self.snapshot())
        return twin


class BignumBuffer:
    """One integer b >= 0 per element: b*d + r = b'*n + s, with no heads and no words.

    Takes ratios of any size, n > d too; where b is 0 it supplies zeros, reversibly. Obeys the same
    laws as InformationBuffer with other digits, so x differs from it by up to n ulp per step. It
    cannot know that it is empty. keep=False refuses to divide, but drops nothing: all digits of b
    act on x.
    Source: Maclaurin et al. 2015, algorithm 3.
    """

    __slots__ = ("_digits", "keep")

    def __init__(self, size: int, *, keep: bool = True) -> None:
        self.keep = keep
        self._digits = [mpz(0)] * size

    def multiply(self, x: Int64s, ratio: Ratio, lo: int = 0) -> None:
        """x <- x * n/d in place, within n ulp. Raises: FixedOverflow, with nothing changed."""
        self._move(x, ratio, lo, undo=False)

    def divide(self, x: Int64s, ratio: Ratio, lo: int = 0) -> None:
        """The exact undo of the last `multiply`. Raises: BufferEmpty, with nothing changed."""
        _check_kept(self.keep)
        self._move(x, ratio, lo, undo=True)

    def _move(self, x: Int64s, ratio: Ratio, lo: int, undo: bool) -> None:
        """b*d + r = b'*n + s; with n and d exchanged it is its own undo."""
        _check_vector(x, len(self._digits), lo)
        _check_ratio(ratio, x)
        n, d = (np.broadcast_to(k, x.shape).tolist() for k in (ratio.n, ratio.d))
        if undo:
            n, d = d, n
        moved, digits = [], []
        for i, value in enumerate(x.tolist()):
            digit, s = divmod(self._digits[lo + i] * d[i] + value % d[i], n[i])
            moved.append(int(value // d[i] * n[i] + s))
            digits.append(digit)
            if not -(2**63) <= moved[i] < 2**63:
                raise _left_int64(undo, i, n[i], d[i])
        x[:] = moved
        self._digits[lo : lo + len(x)] = digits

    @property
    def bits(self) -> float:
        """Bits in use: sum log2(b + 1); 0 at the start."""
        return sum(float(log2(digits + 1)) for digits in self._digits)

    @property
    def nbytes(self) -> int:
        """Bytes held: every integer and the pointer to it."""
        return sum(sys.getsizeof(digits) + POINTER for digits in self._digits)

    def digest(self) -> bytes:
        """16 bytes that tell buffers of different content apart."""
        digest = blake2b(digest_size=16)
        for digits in self._digits:
            length = (digits.bit_length() + 7) // 8
            digest.update(length.to_bytes(8, "little") + digits.to_bytes(length, "little"))
        return digest.digest()

    def snapshot(self) -> list[mpz]:
        """What `restore` needs."""
        return self._digits.copy()

    def restore(self, snapshot: list[mpz]) -> None:
        """Go back to a snapshot of this buffer or of one of the same size; it stays usable."""
        self._digits = snapshot.copy()

    def copy(self) -> BignumBuffer:
        twin = BignumBuffer(0, keep=self.keep)
        twin.restore(self._digits)
        return twin


def _check_kept(keep: bool) -> None:
    if not keep:
        raise BufferEmpty("this buffer was made with keep=False; make it with keep=True to divide.")


def _left_int64(undo: bool, index: int, n: int, d: int) -> Exception:
    came = f"element {index} times {n}/{d} leaves int64"
    if undo:
        return BufferEmpty(
            f"{came}, so no multiply can have led here; undo in the opposite order, with the same "
            "ratios, and no more often than was done."
        )
    return FixedOverflow(f"{came}; use fewer fraction bits.", index=index)


def _belonging(heads: Heads, x: Int64s, lo: int) -> Heads:
    _check_vector(x, len(heads), lo)
    return heads[lo : lo + len(x)]


def _check_vector(x: Int64s, size: int, lo: int) -> None:
    if not (isinstance(x, np.ndarray) and x.dtype == np.int64 and x.ndim == 1):
        raise TypeError("x must be an int64 vector; pass FixedArray.values or a slice of it.")
    if not x.flags.c_contiguous:
        raise ValueError("x is not contiguous; pass a copy and put the result back.")
    if not 0 <= lo <= size - len(x):
        raise ValueError(f"elements {lo} to {lo + len(x)} of a buffer that has {size}.")


def _check_ratio(ratio: Ratio, x: Int64s) -> None:
    if not isinstance(ratio, Ratio):
        raise TypeError(f"ratio is a {type(ratio).__name__}; pass Ratio.of(factor).")
    if not isinstance(ratio.n, int) and ratio.n.shape != x.shape:
        raise ValueError(f"ratios of shape {ratio.n.shape} for x of shape {x.shape}; pass equal.")


def _check_narrow(ratio: Ratio, x: Int64s) -> None:
    _check_ratio(ratio, x)
    if not ratio.narrow:
        raise RatioRefused(
            "a ratio is above 1, below 2**-16 or has d > 2**24, which the heads of an "
            "InformationBuffer cannot hold; use a BignumBuffer."
        )


def _digits(ratio: Ratio, part: slice) -> tuple[Any, Any]:
    """n and d for a part of the vector."""
    n, d = ratio.columns
    return n if isinstance(n, int) else n[part], d if isinstance(d, int) else d[part]


assert LOW == 2**16, "first_heads is written for this LOW"
