"""The exact arithmetic in Python integers: the specification of ratio.h, and its plain twin.

One number x and its head h are multiplied by n/d as

    z = h*d + x mod d;   x <- (x div d)*n + z mod n;   h <- z div n

with floor division throughout. A digit of radix d goes into the buffer and one of radix n comes
out of it, so nothing is lost and log2(d/n) bits are gained. Where z reaches low*word*n, its lowest
word first moves to a stack: between the two divisions, since only there can the undo tell from z
alone, and for every n and d, whether a word was spilled. Array functions work in place on
contiguous vectors.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from revgrad.errors import BufferEmpty, RatioRefused

LOW = 2**16  # heads lie in [LOW, LOW*WORD)
WORD = 2**16  # words lie in [0, WORD)
D_MAX = 2**24  # so that z < 2**56

Int64s: TypeAlias = npt.NDArray[np.int64]
Heads: TypeAlias = npt.NDArray[np.uint32]
Words: TypeAlias = npt.NDArray[np.uint16]
Reals: TypeAlias = npt.NDArray[np.float32] | npt.NDArray[np.float64]

Digits: TypeAlias = int | Int64s | npt.NDArray[np.uint32]

INT64_MIN, INT64_MAX = -(2**63), 2**63 - 1


def multiply_one(
    x: int, h: int, n: int, d: int, low: int = LOW, word: int = WORD
) -> tuple[int, int, int | None]:
    """(x*n/d, new head, word to push if any). Requires n <= d <= n*word.

    h in [low, low*word) -> z in [low*d, low*word*d) -> [low*n, low*word*n), by one spill at most
    -> new head in [low, low*word).
    """
    if n == d:
        return x, h, None
    z, spilled = h * d + x % d, None
    if z >= low * word * n:
        z, spilled = divmod(z, word)  # now z < low*d
    return x // d * n + z % n, z // n, spilled


def divide_one(
    x: int, h: int, n: int, d: int, top: int | None, low: int = LOW, word: int = WORD
) -> tuple[int, int, bool] | None:
    """(x, h, whether the word was popped): the exact undo of multiply_one.

    top: the word on top of the stack, None where it is empty. None is returned where no multiply
    by n/d can have led here: a word is wanted and there is none, or x would leave int64.
    """
    if n == d:
        return x, h, False
    z = h * n + x % n
    spilled = z < low * d
    if spilled:
        if top is None:
            return None
        z = z * word + top
    x = x // n * d + z % d
    return (x, z // d, spilled) if INT64_MIN <= x <= INT64_MAX else None


class Ratios:
    """Numerators and denominators, checked once: one of each, or one per element.

    n, d: integers, or int64 or uint32 vectors of `size` elements. Raises: RatioRefused.
    """

    def __init__(self, n: Digits, d: Digits, size: int) -> None:
        check_ratio(n, d, size)
        self.n, self.d = n, d

    def part(self, lo: int, hi: int) -> Ratios:
        """Those of elements lo to hi."""
        part = Ratios.__new__(Ratios)
        part.n, part.d = (k[lo:hi] if isinstance(k, np.ndarray) else k for k in (self.n, self.d))
        return part


def compare(n: Int64s, d: Int64s) -> tuple[bool, bool, bool, bool]:
    """Whether all n and d are at least 1; all n/d usable; some n < d; some n > d."""
    # d <= n * WORD, written without a product that could leave int64
    narrow = (n >= 1) & (n <= d) & (d <= D_MAX) & ((d - 1) // WORD < n)
    positive = (n >= 1) & (d >= 1)
    return bool(positive.all()), bool(narrow.all()), bool((n < d).any()), bool((n > d).any())


def multiply_by(x: Int64s, heads: Heads, ratios: Ratios, words: Words, count: int) -> int:
    """`multiply` by ratios that were checked."""
    return multiply(x, heads, ratios.n, ratios.d, words, count)


def divide_by(x: Int64s, heads: Heads, ratios: Ratios, words: Words, count: int) -> int:
    """`divide` by ratios that were checked."""
    return divide(x, heads, ratios.n, ratios.d, words, count)


def count_pops_by(x: Int64s, heads: Heads, ratios: Ratios) -> int:
    """`count_pops` of ratios that were checked."""
    return count_pops(x, heads, ratios.n, ratios.d)


def multiply(
    x: Int64s,
    heads: Heads,
    n: Digits,
    d: Digits,
    words: Words,
    count: int,
    low: int = LOW,
    word: int = WORD,
) -> int:
    """x <- x*n/d, elements in index order; returns the new count of words.

    n, d: integers, or int64 or uint32 vectors like x; n <= d <= D_MAX and d <= n*WORD.
    words: the stack, of which count are in use; needs room for one more per element.
    Raises: RatioRefused and ValueError, with nothing changed.
    """
    check_sizes(len(x), len(heads))
    check_count(count, len(words), len(x))
    check_ratio(n, d, len(x))
    for i, (n_i, d_i) in enumerate(_pairs(n, d, len(x))):
        x[i], heads[i], spilled = multiply_one(int(x[i]), int(heads[i]), n_i, d_i, low, word)
        if spilled is not None:
            words[count] = spilled
            count += 1
    return count


def divide(
    x: Int64s,
    heads: Heads,
    n: Digits,
    d: Digits,
    words: Words,
    count: int,
    low: int = LOW,
    word: int = WORD,
) -> int:
    """The exact undo of multiply, elements from last to first; returns the new count of words.

    Raises: BufferEmpty, with nothing changed, where no multiply by n/d can have led here.
    """
    check_sizes(len(x), len(heads))
    check_count(count, len(words), 0)
    check_ratio(n, d, len(x))
    pairs, old_x, old_heads = _pairs(n, d, len(x)), x.tolist(), heads.tolist()
    for i in reversed(range(len(x))):
        top = int(words[count - 1]) if count else None
        undone = divide_one(old_x[i], old_heads[i], *pairs[i], top, low, word)
        if undone is None:
            raise empty_buffer(i)
        old_x[i], old_heads[i], popped = undone
        count -= popped
    x[:], heads[:] = old_x, old_heads
    return count


def count_pops(x: Int64s, heads: Heads, n: Digits, d: Digits) -> int:
    """How many words `divide` would take."""
    pairs = _pairs(n, d, len(x))
    z = [
        h * n_i + v % n_i for v, h, (n_i, _) in zip(x.tolist(), heads.tolist(), pairs, strict=True)
    ]
    return sum(z_i < LOW * d_i for z_i, (n_i, d_i) in zip(z, pairs, strict=True) if n_i != d_i)


def add_floats(x: Int64s, delta: Reals, fraction_bits: int, sign: int) -> int:
    """x <- x + sign * rint(delta * 2**fraction_bits), half to even; returns -1.

    Where a delta is NaN or infinite or a sum leaves int64, x stays as it was and the index of
    the first such element is returned. sign: 1 or -1.
    """
    check_sizes(len(x), len(delta))
    sums = []
    for i, (value, real) in enumerate(zip(x.tolist(), delta.tolist(), strict=True)):
        rounded = _encode_one(real, fraction_bits)
        if rounded is None or not INT64_MIN <= value + sign * rounded <= INT64_MAX:
            return i
        sums.append(value + sign * rounded)
    x[:] = sums
    return -1


def encode(values: Reals, fraction_bits: int, out: Int64s) -> int:
    """out <- rint(values * 2**fraction_bits), half to even; returns -1.

    Where a value is NaN or leaves int64, out becomes 0 and the index of the first is returned.
    """
    out[:] = 0
    return add_floats(out, values, fraction_bits, 1)


def decode(x: Int64s, fraction_bits: int, out: Reals) -> None:
    """out <- x * 2**-fraction_bits, rounded to float64 and then to out's dtype."""
    check_sizes(len(x), len(out))
    out[:] = [float(value) * 2.0**-fraction_bits for value in x.tolist()]


def _encode_one(real: float, fraction_bits: int) -> int | None:
    scaled = real * 2.0**fraction_bits
    # round() refuses NaN and inf, which this comparison turns away as well
    return round(scaled) if -(2.0**63) <= scaled < 2.0**63 else None


def _pairs(n: Digits, d: Digits, size: int) -> list[tuple[int, int]]:
    return list(zip(_listed(n, size), _listed(d, size), strict=True))


def _listed(digits: Digits, size: int) -> list[int]:
    return [int(digits)] * size if np.ndim(digits) == 0 else np.asarray(digits).tolist()


def check_sizes(wanted: int, *came: int) -> None:
    """Refuse arrays that do not belong together."""
    if any(size != wanted for size in came):
        raise ValueError(f"arrays of {wanted} and {came} elements came; pass equal lengths.")


def check_count(count: int, capacity: int, room: int) -> None:
    """Refuse a stack of words that could be overrun."""
    if not 0 <= count <= capacity - room:
        raise ValueError(
            f"{count} words in an array of {capacity}, where {room} more may come; "
            "pass a larger array."
        )


def check_ratio(n: Any, d: Any, size: int) -> None:
    """Refuse ratios that a machine-word head cannot hold, or of another length than size."""
    for digits in (n, d):
        if np.ndim(digits):
            check_sizes(size, len(digits))
    bad = next((pair for pair in _checked(n, d, size) if not usable(*pair)), None)
    if bad is not None:
        raise RatioRefused(
            f"ratio {bad[0]}/{bad[1]}: information buffers take 1 <= n <= d <= {D_MAX} with "
            f"d <= n * {WORD}; use Ratio.of(factor), or a BignumBuffer."
        )


def _checked(n: Any, d: Any, size: int) -> Iterable[tuple[int, int]]:
    return _pairs(n, d, size) if np.ndim(n) or np.ndim(d) else [(n, d)]


def usable(n: int, d: int) -> bool:
    """Whether one head and one spilled word per multiply are enough for n/d."""
    return 1 <= n <= d <= D_MAX and d <= n * WORD


class Stuck(BufferEmpty):
    """A divide met an element, number `index`, with no multiply left to undo."""

    def __init__(self, message: str, index: int) -> None:
        super().__init__(message)
        self.index = index


def empty_buffer(index: int) -> Stuck:
    """The error of a divide that met element `index` with no multiply left to undo."""
    return Stuck(
        f"element {index}: the buffer holds no multiply by this ratio to undo; undo in the "
        "opposite order, with the same ratios, and no more often than was done.",
        index,
    )


FUSED_ELEMENTS = 1024  # in a block, at most
COLUMNS = 32  # of a block whose sum is wanted
SOMEWHERE = -2

# By number, as in fused.py: what fills a vector of reals from others.
REAL_OPERATIONS: dict[int, Any] = {
    0: np.add,
    1: np.subtract,
    2: np.multiply,
    3: np.divide,
    4: lambda a, b: np.greater(a, b) * 1.0,
    5: lambda a, b: np.less(a, b) * 1.0,
    6: lambda a, b: np.equal(a, b) * 1.0,
    7: np.negative,
    8: np.sqrt,
    9: lambda a: np.where(a == 0, 0.0, np.sqrt(a)),
    10: np.absolute,
    11: np.sign,
    12: lambda a, b, c: np.where(a != 0, b, c),
    13: lambda a: a,
    20: lambda a: a,
    21: lambda a: a,
}
DECODE, EMIT, ADD, SUBTRACT, SCALE, UNSCALE, SUM = 14, 15, 16, 17, 18, 19, 22
CONSTANT, REGISTER = 0, 1


def block_sum(terms: npt.NDArray[np.float64]) -> float:
    """The sum of a block: element j goes to column j mod COLUMNS, in order; then the upper half of
    the columns is added to the lower, and so on."""
    columns = np.zeros(COLUMNS)
    for start in range(0, len(terms), COLUMNS):
        part = terms[start : start + COLUMNS]
        columns[: len(part)] += part
    while len(columns) > 1:
        half = len(columns) // 2
        columns = columns[:half] + columns[half:]
    return float(columns[0])


class Fused:
    """Operations of fused.py on one block after the other. See exact.Fused, and kernels.h."""

    def __init__(
        self,
        operations: Any,
        kinds: list[int],
        registers: list[int],
        starts: Any,
        segments: Any,
        sums: int,
        backwards: bool,
    ) -> None:
        self.operations, self.kinds, self.registers = operations.tolist(), kinds, registers
        self.starts, self.segments, self.backwards = starts.tolist(), segments.tolist(), backwards
        self.constants: dict[int, Any] = {}
        self.arrays: dict[int, Any] = {}
        self.variables: dict[int, tuple[Any, int]] = {}
        self.buffers: dict[int, tuple[Any, Ratios, bool]] = {}
        self.stacks: dict[int, tuple[Any, int]] = {}
        self.filled = np.zeros((max(registers, default=0) + 1, FUSED_ELEMENTS))
        self.partials = np.zeros((sums, len(self.segments)))

    def numbers_in(self, slots: list[int], values: list[Any]) -> None:
        """One number for all in each slot, or a vector of one per segment."""
        self.constants.update(zip(slots, values, strict=True))

    def array(self, k: int, reals: Any) -> None:
        check_sizes(self.starts[-1], len(reals))
        self.arrays[k] = reals

    def variable(self, k: int, x: Int64s, fraction_bits: int) -> None:
        check_sizes(self.starts[-1], len(x))
        self.variables[k] = x, fraction_bits

    def buffer(self, k: int, heads: Heads, ratios: Ratios, by_segment: bool) -> None:
        self.buffers[k] = heads, ratios, by_segment

    def words(self, k: int, words: Words, count: int, room: int) -> None:
        check_count(count, len(words), room)
        self.stacks[k] = words, count

    def count(self, k: int) -> int:
        return self.stacks[k][1]

    def run(self, lo: int, hi: int) -> tuple[int, int, int] | None:
        for block in reversed(range(lo, hi)) if self.backwards else range(lo, hi):
            for k, operation in enumerate(self.operations):
                with np.errstate(all="ignore"):
                    element = self._do(block, *operation)
                if element != -1:
                    return block, k, element
        return None

    def sums(self, segments: int) -> npt.NDArray[np.float64]:
        """The sums by segment, one row each; blocks are added in order."""
        out = np.zeros((len(self.partials), segments))
        for block, segment in enumerate(self.segments):
            out[:, segment] += self.partials[:, block]
        return out

    def _at(self, slot: int, block: int) -> Any:
        """A number, or the reals of a block."""
        lo, hi = self.starts[block : block + 2]
        if self.kinds[slot] == CONSTANT:
            value = self.constants[slot]
            return value[self.segments[block]] if np.ndim(value) else value
        if self.kinds[slot] == REGISTER:
            return self.filled[self.registers[slot], : hi - lo]
        return self.arrays[slot][lo:hi]

    def _do(self, block: int, op: int, out: int, a: int, b: int, c: int, v: int, k: int) -> int:
        """One operation on a block; the element that refuses, or SOMEWHERE, or -1."""
        lo, hi = self.starts[block : block + 2]
        operands = [self._at(slot, block) for slot in (a, b, c) if slot >= 0]
        if op == SUM:
            terms = operands[0] * operands[1] if b >= 0 else operands[0]
            self.partials[out, block] = block_sum(terms)
            return -1
        if op in REAL_OPERATIONS:
            self._at(out, block)[:] = REAL_OPERATIONS[op](*operands)
            return -1
        x, bits = self.variables[v]
        if op in (DECODE, EMIT):
            decode(x[lo:hi], bits, self._at(out, block))
        elif op in (ADD, SUBTRACT):
            delta = np.empty(hi - lo)
            if a < 0:
                decode(self.variables[out][0][lo:hi], self.variables[out][1], delta)
            else:
                delta[:] = operands[0]
            if c >= 0:
                delta /= self._at(c, block)
            if b >= 0:
                delta *= self._at(b, block)
            if add_floats(x[lo:hi], delta, bits, 1 if op == ADD else -1) >= 0:
                return SOMEWHERE
            if k >= 0:
                decode(x[lo:hi], bits, self._at(k, block))
        else:
            return self._scale(block, op, x[lo:hi], k)
        return -1

    def _scale(self, block: int, op: int, x: Int64s, k: int) -> int:
        lo, hi = self.starts[block : block + 2]
        heads, ratios, by_segment = self.buffers[k]
        words, count = self.stacks[k]
        part = ratios.part(lo, hi)
        if by_segment:
            part = ratios.part(self.segments[block], self.segments[block] + 1)
            part = Ratios(int(np.ravel(part.n)[0]), int(np.ravel(part.d)[0]), hi - lo)
        try:
            move = multiply_by if op == SCALE else divide_by
            self.stacks[k] = words, move(x, heads[lo:hi], part, words, count)
        except Stuck as error:
            return lo + error.index
        return -1
