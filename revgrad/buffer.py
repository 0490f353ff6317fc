"""Information buffers: where the bits go that multiplying by n/d would destroy.

InformationBuffer keeps a machine-word head per element, the hot digits of a number, and one tail
for all: words spilled from the heads, older ones sealed into gmpy2 integers. BignumBuffer keeps
one gmpy2 integer per element: slow, for ratios of any size, and an oracle for the laws.
"""

from __future__ import annotations

import io
import itertools
import os
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from hashlib import blake2b
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
from gmpy2 import log2, mpz

from revgrad import files
from revgrad._ext import homes, kernel_of, tail_beside
from revgrad._ext.reference import LOW, Stuck, empty_buffer
from revgrad.errors import BufferEmpty, FixedOverflow, RatioRefused
from revgrad.ratio import Ratio

Int64s: TypeAlias = npt.NDArray[np.int64]
Heads: TypeAlias = npt.NDArray[np.uint32]
Parts: TypeAlias = tuple[dict[str, int], list[tuple[str, str, int]], Iterable[bytes]]

CHUNK = 2**16  # elements per kernel call, so that state, heads and words stay in cache
SEALED = 2**19  # words in each sealed segment
OPEN = 3 * 2**18  # words in the open array at most; OPEN - SEALED >= 4 * CHUNK
SEGMENT_BYTES = 2**21  # law 2: nbytes <= bits/8 + 4 per element + SEGMENT_BYTES
POINTER = 8
LANES = 8  # spans begin at multiples, which keeps vectors whole
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
    leaves as many open again and unsealing waits until fewer are left, so that pushing and popping
    cost time linear in the words moved. Under the stack lie zeros without end, of which `borrowed`
    were taken; its lowest word is none of them, so equal contents look equal.
    memory_limit: bytes of sealed segments kept in memory; older ones go to a private file without
    a name in `directory` and are checked when they come back.
    """

    chunk = property(lambda self: CHUNK)  # elements per kernel call
    threads = True

    __slots__ = (
        "_checks", "_file", "borrowed", "count", "directory", "lent", "memory_limit", "open",
        "sealed",
    )  # fmt: skip

    def __init__(self, memory_limit: int | None = None, directory: Any = None) -> None:
        self.open = np.empty(0, np.uint16)
        self.count = self.borrowed = 0
        self.lent = False  # whether zeros were ever taken
        self.sealed: list[mpz] = []
        self.memory_limit, self.directory = memory_limit, directory
        self._file: Any = None
        self._checks: list[bytes] = []  # of the segments in the file

    def __del__(self) -> None:
        if self._file is not None:
            self._file.close()

    @property
    def words(self) -> int:
        return self.segments * SEALED + self.count - self.borrowed

    @property
    def segments(self) -> int:
        return len(self._checks) + len(self.sealed)

    @property
    def nbytes(self) -> int:
        sealed = sum(sys.getsizeof(segment) + POINTER for segment in self.sealed)
        checks = sum(sys.getsizeof(check) + POINTER for check in self._checks)
        return self.open.nbytes + sealed + checks

    @property
    def nbytes_on_disk(self) -> int:
        return len(self._checks) * 2 * SEALED

    def reserve(self, room: int) -> None:
        """Make room in the open array for `room` <= CHUNK words more."""
        needed = self.count + room
        if needed > OPEN:
            self._seal(_sealed(self.open[:SEALED]))
            self.count -= SEALED
            self.open[: self.count] = self.open[SEALED : SEALED + self.count]
        elif needed > len(self.open):
            self._grow(min(OPEN, max(needed, 2 * len(self.open))))

    def require(self, wanted: int) -> None:
        """Have `wanted` <= CHUNK words in the open array, or all there are."""
        if self.count >= wanted or not self.segments:
            return
        if len(self.open) < OPEN:
            self._grow(OPEN)
        segment = self._unseal()
        self.open[SEALED : SEALED + self.count] = self.open[: self.count]
        self.open[:SEALED] = segment
        self.count += SEALED

    def borrow(self, wanted: int) -> None:
        """Have `wanted` <= CHUNK words in the open array, zeros from under the stack if need be."""
        self.require(wanted)
        missing = wanted - self.count
        if missing > 0:
            self.reserve(missing)
            self.open[missing:wanted] = self.open[: self.count].copy()
            self.open[:missing] = 0
            self.count, self.borrowed = wanted, self.borrowed + missing

    def give_back(self) -> None:
        """Return the zeros at the bottom to those under the stack."""
        if self.borrowed and not self.segments:
            bottom = self.open[: min(self.count, self.borrowed)]
            zeros = int(np.argmax(bottom != 0)) if bottom.any() else len(bottom)
            self.open[: self.count - zeros] = self.open[zeros : self.count].copy()
            self.count, self.borrowed = self.count - zeros, self.borrowed - zeros

    def push(self, words: npt.NDArray[np.uint16]) -> None:
        """Put any number of words on top."""
        for start in range(0, len(words), CHUNK):
            part = words[start : start + CHUNK]
            self.reserve(len(part))
            self.open[self.count : self.count + len(part)] = part
            self.count += len(part)

    def pop(self, wanted: int) -> npt.NDArray[np.uint16]:
        """Take off the `wanted` <= words topmost."""
        out = np.empty(wanted, np.uint16)
        while wanted:
            self.require(min(wanted, CHUNK))
            part = min(wanted, CHUNK, self.count)
            out[wanted - part : wanted] = self.open[self.count - part : self.count]
            self.count, wanted = self.count - part, wanted - part
        return out

    def after(self, count: int, keep: bool) -> int:
        """The stack after a kernel call holds `count` words; returns how many are dropped."""
        self.count = count if keep else 0
        return 0 if keep else count

    def on_host(self) -> Tail:
        """All words, where Python reads them."""
        return self

    def copy(self) -> Tail:
        twin = Tail(self.memory_limit, self.directory)
        twin.open, twin.count = self.open[: self.count].copy(), self.count
        twin.borrowed, twin.lent = self.borrowed, self.lent
        for k in range(len(self._checks)):
            twin._seal(mpz.from_bytes(self._read(k), "little"))
        for segment in self.sealed:
            twin._seal(segment)
        return twin

    def pieces(self) -> Iterator[bytes]:
        """All words, oldest first."""
        for k in range(len(self._checks)):
            yield self._read(k)
        for segment in self.sealed:
            yield segment.to_bytes(2 * SEALED, "little")
        yield self.open[: self.count].astype("<u2").tobytes()

    def feed(self, digest: Any) -> None:
        """Give all words to a hash, oldest first, wherever segments are cut."""
        for piece in self.pieces():
            digest.update(piece)

    def _grow(self, capacity: int) -> None:
        larger = np.empty(capacity, np.uint16)
        larger[: self.count] = self.open[: self.count]
        self.open = larger

    def _seal(self, segment: mpz) -> None:
        self.sealed.append(segment)
        if self.memory_limit is not None and len(self.sealed) * 2 * SEALED > self.memory_limit:
            self._write(self.sealed[0].to_bytes(2 * SEALED, "little"))
            del self.sealed[0]

    def _unseal(self) -> npt.NDArray[np.uint16]:
        if self.sealed:
            return _unsealed(self.sealed.pop())
        segment = np.frombuffer(self._read(len(self._checks) - 1), "<u2")
        self._checks.pop()
        return segment

    def _write(self, segment: bytes) -> None:
        if self._file is None:
            self._file = tempfile.TemporaryFile(dir=self.directory)  # noqa: SIM115 closed with self
        self._file.seek(len(self._checks) * 2 * SEALED)
        self._file.write(segment)
        self._file.flush()
        self._checks.append(_check(segment))

    def _read(self, k: int) -> bytes:
        self._file.seek(k * 2 * SEALED)
        segment = bytes(self._file.read(2 * SEALED))
        if _check(segment) != self._checks[k]:
            raise OSError(
                f"segment {k} of an information buffer came back changed from its file in "
                f"{self.directory or tempfile.gettempdir()}; the run cannot be reversed."
            )
        return segment


def _check(content: bytes) -> bytes:
    return blake2b(content, digest_size=16).digest()


def _sealed(words: npt.NDArray[np.uint16]) -> mpz:
    return mpz.from_bytes(words.astype("<u2").tobytes(), "little")


def _unsealed(segment: mpz) -> npt.NDArray[np.uint16]:
    return np.frombuffer(segment.to_bytes(2 * SEALED, "little"), "<u2")


class InformationBuffer:
    """Keeps what multiplying a vector by ratios destroys: log2(d/n) bits per element and step.

    size: elements of the vector. heads: uint32 in [2**16, 2**32), one per element, where `like` is
        (None: NumPy); they start at first_heads(size). Elements go in index order, so slices of one
        vector may be multiplied apart, and undone in the opposite order.
    keep=False: heads move alike, but words are counted and dropped; then only `restore` goes back.
    memory_limit, directory: sealed words beyond so many bytes go to a temporary file there.
    A ratio above 1 takes words back, and zeros once there are none; from then on the buffer cannot
    know that it is empty.
    """

    __slots__ = ("_dropped", "_tail", "heads", "keep")

    def __init__(
        self,
        size: int,
        *,
        keep: bool = True,
        memory_limit: int | None = None,
        directory: Any = None,
        like: Any = None,
    ) -> None:
        self.heads = homes.beside(first_heads(size), like)
        self.keep = keep
        self._tail = tail_beside(self.heads, Tail(memory_limit, directory), keep)
        self._dropped = 0

    def multiply(self, x: Int64s, ratio: Ratio, lo: int = 0) -> None:
        """x <- x * n/d in place, within n ulp.

        x: contiguous int64 vector, belonging to heads[lo : lo + len(x)].
        ratio: one for all or one per element, n and d at most 2**24, n/d in [2**-16, 2**16].
        Raises: RatioRefused, FixedOverflow (above 1 only), with nothing changed.
        """
        heads = _belonging(self.heads, x, lo)
        down, up = _parts(ratio, x)
        if up is not None and not self.keep:
            raise RatioRefused("a ratio above 1 needs the words; make the buffer with keep=True.")
        if down is not None:
            self._advance(x, heads, down)
        if up is not None:
            lent = self._tail.lent
            try:
                self._retreat(x, heads, up, lend=True)
            except Stuck as error:
                self._tail.lent = lent
                if down is not None:
                    self._retreat(x, heads, down, lend=False)
                raise _left_int64(False, error.index, *_at(ratio, error.index)) from None

    def divide(self, x: Int64s, ratio: Ratio, lo: int = 0) -> None:
        """The exact undo of the last `multiply`, which had the same ratio, lo and length.

        Raises: BufferEmpty, RatioRefused, with x, heads and words unchanged.
        """
        heads = _belonging(self.heads, x, lo)
        down, up = _parts(ratio, x)
        _check_kept(self.keep)
        if up is not None:
            self._advance(x, heads, up)
        if down is not None:
            try:
                self._retreat(x, heads, down, lend=self._tail.lent)
            except Stuck:
                if up is not None:
                    self._retreat(x, heads, up, lend=True)
                raise

    def _retreat(self, x: Int64s, heads: Heads, ratio: Ratio, lend: bool) -> None:
        """Divide all elements, from the last; lend: zeros where words are wanting."""
        self._tail.lent |= lend
        if not lend and self._retreat_in_threads(x, heads, ratio):
            return
        tail = self._tail
        for start in reversed(range(0, len(x), tail.chunk)):
            part = slice(start, start + tail.chunk)
            ratios = _columns(ratio, part, x)
            (tail.borrow if lend else tail.require)(len(x[part]))
            divide_by = kernel_of(x).divide_by
            try:
                tail.count = divide_by(x[part], heads[part], ratios, tail.open, tail.count)
            except Stuck as error:
                self._advance(x, heads, ratio, start + tail.chunk)
                raise empty_buffer(start + error.index) from None
            finally:
                tail.give_back()

    def _advance(self, x: Int64s, heads: Heads, ratio: Ratio, first: int = 0) -> None:
        """Multiply the elements from `first` on."""
        tail = self._tail
        if first == 0 and self._advance_in_threads(x, heads, ratio):
            return
        multiply_by = kernel_of(x).multiply_by
        for start in range(first, len(x), tail.chunk):
            part = slice(start, start + tail.chunk)
            ratios = _columns(ratio, part, x)
            tail.reserve(len(x[part]))
            self.take_back(multiply_by(x[part], heads[part], ratios, tail.open, tail.count))

    def _advance_in_threads(self, x: Int64s, heads: Heads, ratio: Ratio) -> bool:
        """Multiply spans at once and put their words down in order; False for small vectors."""
        spans, kernel = self._spans(x), kernel_of(x)
        if len(spans) < 2:
            return False

        def multiply(part: slice) -> npt.NDArray[np.uint16]:
            words = np.empty(len(x[part]), np.uint16)
            count = kernel.multiply_by(x[part], heads[part], _columns(ratio, part, x), words, 0)
            return words[:count]

        for words in _at_once(multiply, spans):
            if self.keep:
                self._tail.push(words)
            else:
                self._dropped += len(words)
        self._tail.give_back()
        return True

    def _retreat_in_threads(self, x: Int64s, heads: Heads, ratio: Ratio) -> bool:
        """Divide spans at once, each with its own words; False, with nothing changed, where the
        vector is small or some element refuses."""
        spans, kernel = self._spans(x), kernel_of(x)
        if len(spans) < 2:
            return False
        count = lambda part: kernel.count_pops_by(x[part], heads[part], _columns(ratio, part, x))
        ends = np.cumsum(_at_once(count, spans)).tolist()
        if ends[-1] > self._tail.segments * SEALED + self._tail.count:
            return False
        words = self._tail.pop(ends[-1])

        def divide(job: tuple[slice, int, int]) -> bool:
            part, lo, hi = job
            mine = words[lo:hi]
            try:
                kernel.divide_by(x[part], heads[part], _columns(ratio, part, x), mine, hi - lo)
            except Stuck:
                return False
            return True

        jobs = list(zip(spans, [0, *ends], ends, strict=False))
        done = _at_once(divide, jobs)
        if all(done):
            return True
        for part in (span for span, good in zip(spans, done, strict=True) if good):
            again = np.empty(len(x[part]), np.uint16)
            kernel.multiply_by(x[part], heads[part], _columns(ratio, part, x), again, 0)
        self._tail.push(words)
        return False

    def _spans(self, x: Int64s) -> list[slice]:
        return _spans(len(x)) if self._tail.threads else []

    def lend(self, elements: int, popping: bool) -> tuple[Any, int, int]:
        """(stack, count, room for a word per element), for a kernel call on so many <= CHUNK."""
        if popping:
            _check_kept(self.keep)
            (self._tail.borrow if self._tail.lent else self._tail.require)(elements)
            return self._tail.open, self._tail.count, 0
        self._tail.reserve(elements)
        return self._tail.open, self._tail.count, elements

    def take_back(self, count: int) -> None:
        """The stack after the call holds `count` words."""
        self._dropped += self._tail.after(count, self.keep)
        self._tail.give_back()

    @property
    def words(self) -> int:
        """Words spilled so far, dropped ones included, less the zeros taken."""
        return self._dropped + self._tail.words

    @property
    def bits(self) -> float:
        """Bits in use: 16 * words + sum log2(head / first head); 0 at the start."""
        grown = np.log2(homes.to_host(self.heads)) - np.log2(first_heads(len(self.heads)))
        return 16.0 * self.words + float(grown.sum())

    @property
    def nbytes(self) -> int:
        """Bytes held in memory: heads, sealed segments and the open array.

        At most bits/8 + 4 per element + SEGMENT_BYTES.
        """
        return self.heads.nbytes + self._tail.nbytes

    @property
    def nbytes_on_disk(self) -> int:
        """Bytes of sealed words in the temporary file."""
        return self._tail.nbytes_on_disk

    def digest(self) -> bytes:
        """16 bytes that tell buffers of different content apart; words count if they are kept."""
        digest = blake2b(digest_size=16)
        digest.update(self.heads.astype("<u4").tobytes())
        digest.update(self.words.to_bytes(8, "little", signed=True))
        self._tail.on_host().feed(digest)
        return digest.digest()

    def snapshot(self) -> tuple[Heads, int, Tail]:
        """What `restore` needs: a copy of the heads, the count of words dropped, and those kept."""
        return self.heads.copy(), self._dropped, self._tail.copy()

    def restore(self, snapshot: tuple[Heads, int, Tail]) -> None:
        """Go back to a snapshot of this buffer or of one of the same size; it stays usable."""
        heads, self._dropped, tail = snapshot
        self.heads[:] = heads
        self._tail = tail.copy()

    def copy(self) -> InformationBuffer:
        twin = InformationBuffer(len(self.heads), keep=self.keep, like=self.heads)
        twin.restore(self.snapshot())
        return twin

    def parts(self) -> Parts:
        """What a file keeps: see `rebuilt`."""
        tail = self._tail.on_host()
        dropped = self.words - tail.words
        facts = {
            "dropped": dropped, "lent": int(tail.lent), "keep": int(self.keep),
            "borrowed": tail.borrowed,
        }  # fmt: skip
        held = 2 * (tail.segments * SEALED + tail.count)
        heads = self.heads.astype("<u4").tobytes()
        tensors = [("heads", "U32", len(heads)), ("words", "U16", held)]
        return facts, tensors, itertools.chain([heads], tail.pieces())

    @classmethod
    def rebuilt(
        cls, facts: dict, pieces: Any, *, memory_limit: int | None = None, directory: Any = None,
        like: Any = None,
    ) -> InformationBuffer:  # fmt: skip
        """The buffer of which these are the parts; pieces(name, most) yields a tensor's bytes."""
        heads = np.frombuffer(b"".join(pieces("heads", 2**20)), "<u4").astype(np.uint32)
        keep = bool(facts["keep"])
        limits = {"memory_limit": memory_limit, "directory": directory}
        buffer = cls(len(heads), keep=keep, like=like, **limits)
        buffer.heads[:] = homes.beside(heads, like)
        for piece in pieces("words", 2 * CHUNK):
            buffer._tail.push(np.frombuffer(piece, "<u2").astype(np.uint16))
        buffer._dropped = facts["dropped"]
        if facts["lent"]:
            buffer._tail.lent, buffer._tail.borrowed = True, facts["borrowed"]
        return buffer

    def save(self, path: Any) -> None:
        """Write the buffer to a file, in the safetensors layout; a crash leaves the old or the new.

        Raises: OSError.
        """
        files.write(path, FORMAT, *self.parts())

    @classmethod
    def load(
        cls, path: Any, *, memory_limit: int | None = None, directory: Any = None
    ) -> InformationBuffer:
        """The buffer that was saved. Raises: ValueError for a file with any byte changed."""
        with files.Reader(path, FORMAT, ("heads", "words")) as file:
            limits = {"memory_limit": memory_limit, "directory": directory}
            return cls.rebuilt(file.facts, file.pieces, **limits)


class BignumBuffer:
    """One integer b >= 0 per element: b*d + r = b'*n + s, with no heads and no words.

    Takes ratios of any size, n > d too; where b is 0 it supplies zeros, reversibly. Obeys the same
    laws as InformationBuffer with other digits, so x differs from it by up to n ulp per step. It
    cannot know that it is empty. keep=False refuses to divide, but drops nothing: all digits of b
    act on x.
    Source: Maclaurin et al. 2015, algorithm 3.
    """

    __slots__ = ("_digits", "keep")

    def __init__(self, size: int, *, keep: bool = True, like: Any = None) -> None:
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
        x[:] = homes.beside(np.array(moved, np.int64), x)
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

    def parts(self) -> Parts:
        """What a file keeps: see `rebuilt`."""
        lengths = [(digits.bit_length() + 7) // 8 for digits in self._digits]
        content = [np.array(lengths, "<i8").tobytes()]
        content += [b.to_bytes(k, "little") for b, k in zip(self._digits, lengths, strict=True)]
        tensors = [("lengths", "I64", 8 * len(lengths)), ("digits", "U8", sum(lengths))]
        return {"keep": int(self.keep)}, tensors, content

    @classmethod
    def rebuilt(cls, facts: dict, pieces: Any, *, like: Any = None) -> BignumBuffer:
        """The buffer of which these are the parts; pieces(name, most) yields a tensor's bytes."""
        lengths = np.frombuffer(b"".join(pieces("lengths", 2**20)), "<i8").tolist()
        digits = io.BytesIO(b"".join(pieces("digits", 2**20)))
        buffer = cls(0, keep=bool(facts["keep"]))
        buffer._digits = [mpz.from_bytes(digits.read(max(k, 0)), "little") for k in lengths]
        return buffer

    def save(self, path: Any) -> None:
        """Write the buffer to a file, as InformationBuffer.save does. Raises: OSError."""
        files.write(path, FORMAT, *self.parts())

    @classmethod
    def load(cls, path: Any) -> BignumBuffer:
        """The buffer that was saved. Raises: ValueError for a file with any byte changed."""
        with files.Reader(path, FORMAT, ("lengths", "digits")) as file:
            return cls.rebuilt(file.facts, file.pieces)


FORMAT = "revgrad buffer 1"


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
    if not (getattr(x, "dtype", None) == np.int64 and x.ndim == 1):
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


def _parts(ratio: Ratio, x: Int64s) -> tuple[Ratio | None, Ratio | None]:
    _check_ratio(ratio, x)
    return ratio.parts


def _at(ratio: Ratio, index: int) -> tuple[int, int]:
    if isinstance(ratio.n, int):
        return ratio.n, ratio.d
    return int(ratio.n[index]), int(ratio.d[index])


def _columns(ratio: Ratio, part: slice, x: Int64s) -> Any:
    """The kernel's ratios for a part of x."""
    lo, hi, _ = part.indices(len(x))
    return ratio.columns_in(kernel_of(x)).part(lo, hi)


# Threads: a vector is cut into as many spans, whose words are put down in index order.

SPAN = 2**18  # elements, at least: 0.1 ms, a few times what waking a thread takes
_pool: ThreadPoolExecutor | None = None


def _default_threads() -> int:
    return max(1, int(os.environ.get("REVGRAD_THREADS") or 1))


_threads = _default_threads()


def threads(count: int | None = None) -> int:
    """How many threads scale a large vector; with a count, so many from now on.

    No bit depends on it. Starts at REVGRAD_THREADS, or 1: see bench_exact.py before raising it.
    """
    global _threads
    if count is not None:
        if count < 1:
            raise ValueError(f"{count} threads; pass at least 1.")
        _threads = count
    return _threads


def _spans(size: int) -> list[slice]:
    pieces = max(1, min(_threads, size // SPAN))
    step = -(-size // pieces // LANES) * LANES or 1
    return [slice(lo, min(lo + step, size)) for lo in range(0, size, step)]


def _at_once(function: Callable[[Any], Any], jobs: list[Any]) -> list[Any]:
    """[function(job) for job in jobs], at once; this thread does the last."""
    global _pool
    if _pool is None or _pool._max_workers < len(jobs) - 1:
        _pool = ThreadPoolExecutor(max(len(jobs) - 1, _threads))
    others = [_pool.submit(function, job) for job in jobs[:-1]]
    last = function(jobs[-1])
    return [*(other.result() for other in others), last]


def _forget_pool() -> None:
    """A child process has no threads of its parent's."""
    global _pool
    _pool = None


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_pool)

assert LOW == 2**16, "first_heads is written for this LOW"
