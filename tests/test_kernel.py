"""One multiply and its undo: exact, the same in all twins, and a checker that catches faults."""

import ctypes
import itertools
import math
import os
import shutil
import subprocess
import sys
import types
from fractions import Fraction
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

import revgrad._ext
from revgrad._ext import exact, reference
from revgrad._ext.reference import D_MAX, LOW, WORD
from revgrad.errors import BufferEmpty, RatioRefused

INT64_MIN, INT64_MAX = -(2**63), 2**63 - 1


class InSet:
    """The compiled kernel in one instruction set."""

    def __init__(self, name):
        self.name = name

    def __getattr__(self, function):
        if function.startswith("_"):
            raise AttributeError(function)

        def call(*args):
            before = exact.instruction_set()
            exact.instruction_set(self.name)
            try:
                return getattr(exact, function)(*args)
            finally:
                exact.instruction_set(before)

        return call


SETS = {name: InSet(name) for name in exact.instruction_sets()}
COMPILED = pytest.mark.parametrize("compiled", SETS.values(), ids=SETS)
KERNELS = pytest.mark.parametrize("kernel", [*SETS.values(), reference], ids=[*SETS, "reference"])
SOURCES = Path(revgrad._ext.__file__).parent

# (low, word, largest d): every ratio, head, digit and sign below
TOY_WORLDS = [(8, 16, 12), (4, 4, 18), (2, 8, 20), (1, 2, 24), (16, 2, 14)]

int64s = st.one_of(
    st.sampled_from([INT64_MIN, INT64_MIN + 1, -1, 0, 1, INT64_MAX - 1, INT64_MAX]),
    st.integers(INT64_MIN, INT64_MAX),
    st.integers(-(2**20), 2**20),
)
heads = st.one_of(
    st.sampled_from([LOW, LOW + 1, LOW * WORD - 2, LOW * WORD - 1]),
    st.integers(LOW, LOW * WORD - 1),
    st.integers(LOW, 2 * LOW),
)
words = st.integers(0, WORD - 1)
fraction_bits = st.integers(0, 120)


@st.composite
def ratios(draw):
    """n, d with n <= d <= D_MAX and d <= n * WORD."""
    d = draw(st.one_of(st.integers(1, 100), st.integers(1, D_MAX), st.sampled_from([LOW, D_MAX])))
    least = -(-d // WORD)
    return draw(st.one_of(st.sampled_from([least, d, max(d - 1, least)]), st.integers(least, d))), d


# x, head, (n, d) of one element; what was tried first and must stay right
PINNED = [
    (-1, LOW, (9, 10)),
    (INT64_MIN, LOW * WORD - 1, (LOW - 1, LOW)),
    (INT64_MAX, LOW, (1, 1)),
    (INT64_MIN, LOW, (D_MAX, D_MAX)),
    (INT64_MIN, LOW * WORD - 1, (D_MAX - 1, D_MAX)),
    (INT64_MAX, LOW * WORD - 1, (256, D_MAX)),
    (INT64_MIN, LOW, (1, LOW)),
    (0, LOW * WORD - 1, (LOW - 1, LOW)),
    # heads 72817 come about with and without a spill: the old rule needed a marker word here
    (0, LOW, (9, 10)),
    (1, LOW, (9, 10)),
    (8, (72817 * WORD * 9) // 10, (9, 10)),
    (9, (72817 * WORD * 9) // 10, (9, 10)),
]


def pinned(test):
    for case in PINNED:
        test = example([case])(test)
    return test


elements = st.lists(st.tuples(int64s, heads, ratios()), max_size=20)


def vectors(cases):
    """x, heads, n, d of a list of elements, as arrays."""
    x = np.array([case[0] for case in cases], np.int64)
    h = np.array([case[1] for case in cases], np.uint32)
    n = np.array([case[2][0] for case in cases], np.int64)
    return x, h, n, np.array([case[2][1] for case in cases], np.int64)


def stack_of(kept, size):
    """A stack that holds `kept` and has room for `size` words more."""
    stack = np.full(len(kept) + size, 0xDEAD, np.uint16)
    stack[: len(kept)] = kept
    return stack


def check_round_trip(kernel, cases, kept=()):
    """Multiply keeps its intervals and is within n ulp; divide leads back, integer for integer."""
    x, h, n, d = vectors(cases)
    before = x.copy(), h.copy()
    stack = stack_of(kept, len(x))
    count = kernel.multiply(x, h, n, d, stack, len(kept))
    assert len(kept) <= count <= len(kept) + len(x)
    assert np.all((h >= LOW) & (h.astype(object) < LOW * WORD))
    for old, new, n_i, d_i in zip(*(a.tolist() for a in (before[0], x, n, d)), strict=True):
        assert abs(new * d_i - old * n_i) < n_i * d_i
    assert kernel.divide(x, h, n, d, stack, count) == len(kept)
    assert np.array_equal(x, before[0]) and np.array_equal(h, before[1])
    assert np.array_equal(stack[: len(kept)], np.array(kept, np.uint16))


def check_twins(first, second, cases, kept=()):
    """Both kernels, forwards and then on backwards past the start, agree in all they touch."""
    seen = []
    for kernel in (first, second):
        x, h, n, d = vectors(cases)
        stack = stack_of(kept, len(x))
        count = kernel.multiply(x, h, n, d, stack, len(kept))
        forwards = x.tolist(), h.tolist(), stack[:count].tolist()
        seen.append((forwards, undo(kernel, x, h, n, d, stack, count)))
    assert seen[0] == seen[1]


def undo(kernel, x, h, n, d, stack, count, times=3):
    """Where `times` undos lead, or the place and kind of the first refusal."""
    for step in range(times):
        try:
            count = kernel.divide(x, h, n, d, stack, count)
        except BufferEmpty as error:
            return x.tolist(), h.tolist(), count, step, str(error)
    return x.tolist(), h.tolist(), count


def toy_ratios(word, d_max):
    return ((n, d) for d in range(1, d_max + 1) for n in range(1, d + 1) if d <= n * word)


def check_toy_world(multiply_one, divide_one, low, word, d_max):
    """Exhaust a world: all ratios, heads, digits and signs, forwards and backwards.

    Returns the number of cases. Both directions undo each other, so neither loses a state.
    """
    cases = 0
    for n, d in toy_ratios(word, d_max):
        for h, x in product(range(low, low * word), range(-d, d)):
            new, y, spilled = multiply_one(x, h, n, d, low, word)
            assert low <= y < low * word and (spilled is None or 0 <= spilled < word)
            assert abs(new * d - x * n) < n * d
            top = 0 if spilled is None else spilled
            assert divide_one(new, y, n, d, top, low, word) == (x, h, spilled is not None)
            cases += 1
        for h, x in product(range(low, low * word), range(-n, n)):
            cases += check_states_before(multiply_one, divide_one, x, h, n, d, low, word)
    return cases


def check_states_before(multiply_one, divide_one, x, h, n, d, low, word):
    """Every state has one predecessor for each word that may be on top."""
    empty = divide_one(x, h, n, d, None, low, word)
    tops = [None] if empty is not None else range(word)
    for top in tops:
        old, old_h, popped = divide_one(x, h, n, d, top, low, word)
        assert popped == (top is not None) and low <= old_h < low * word
        assert multiply_one(old, old_h, n, d, low, word) == (x, h, top)
    return len(tops)


HARNESS = """
#include "ratio.h"
int64_t multiply(int64_t *x, uint32_t *h, int64_t n, int64_t d, uint16_t *words, int64_t count)
{ return ratio_multiply(x, h, ratio_divisor_of(n), ratio_divisor_of(d), words, count); }
int64_t divide(int64_t *x, uint32_t *h, int64_t n, int64_t d, uint16_t *words, int64_t count)
{ return ratio_divide(x, h, ratio_divisor_of(n), ratio_divisor_of(d), words, count); }
"""


def compiled_toy(folder, low, word, text=None):
    """multiply_one and divide_one of ratio.h, built for small words, from `text` if given."""
    compiler = shutil.which("cc")
    if compiler is None or os.name == "nt":
        pytest.skip("no C compiler on the path")
    folder.mkdir(exist_ok=True)
    (folder / "ratio.h").write_text(text or (SOURCES / "ratio.h").read_text(encoding="utf-8"))
    (folder / "toy.c").write_text(HARNESS)
    flags = ["-O2", "-shared", "-fPIC", *in_bits(low, word)]
    warnings = ["-std=c99", "-Wall", "-Wextra", "-Werror", "-Wno-unused-function"]
    built = folder / "toy.so"
    subprocess.run([compiler, *flags, *warnings, "-o", built, folder / "toy.c"], check=True)
    return as_ones(ctypes.CDLL(str(built)))


def in_bits(low, word):
    bits = {"LOW": low.bit_length() - 1, "WORD": word.bit_length() - 1}
    return [f"-DRATIO_{name}_BITS={k}" for name, k in bits.items()]


def as_ones(library):
    x, h, stack = ctypes.c_int64(), ctypes.c_uint32(), (ctypes.c_uint16 * 2)()
    x_at, h_at = ctypes.byref(x), ctypes.byref(h)
    for function in (library.multiply, library.divide):
        pointers = ctypes.c_void_p, ctypes.c_void_p
        function.argtypes = (*pointers, ctypes.c_int64, ctypes.c_int64, ctypes.c_void_p)
        function.argtypes = (*function.argtypes, ctypes.c_int64)
        function.restype = ctypes.c_int64

    def multiply_one(old, head, n, d, low, word):
        x.value, h.value = old, head
        count = library.multiply(x_at, h_at, n, d, stack, 0)
        return x.value, h.value, stack[0] if count else None

    def divide_one(new, head, n, d, top, low, word):
        x.value, h.value, stack[0] = new, head, top or 0
        held = int(top is not None)
        count = library.divide(x_at, h_at, n, d, stack, held)
        return None if count < 0 else (x.value, h.value, count < held)

    return multiply_one, divide_one


@KERNELS
@pinned
@given(elements)
def test_multiply_then_divide_is_identity(kernel, cases):
    check_round_trip(kernel, cases, kept=[1, 2])


@COMPILED
@pinned
@given(elements)
def test_twins_agree_bit_for_bit(compiled, cases):
    check_twins(compiled, reference, cases, kept=[0, WORD - 1, 7])


@COMPILED
def test_vectors_agree_at_every_edge(compiled):
    for case in [*PINNED, *edge_cases()]:
        check_twins(compiled, reference, [case] * 9, kept=range(20))


@COMPILED
@pytest.mark.parametrize("d", [LOW, 10, 3 * LOW, 2**18, 2**18 + 1])
@pytest.mark.parametrize("many", [False, True])
def test_whole_runs_agree_and_return(compiled, d, many):
    rng = np.random.default_rng(d)
    size, steps = 1003, 60
    x = rng.integers(INT64_MIN, INT64_MAX, size, endpoint=True) >> rng.integers(0, 60, size)
    h = np.exp2(rng.uniform(16, 32, size)).astype(np.uint32)
    n = rng.integers(d // 8 + 1, d + 1, size).astype(np.uint32) if many else d - d // 5
    seen = []
    for kernel in (compiled, SETS["baseline"]):
        y, g, stack, counts = x.copy(), h.copy(), np.zeros(size * steps, np.uint16), [0]
        for _ in range(steps):
            counts.append(kernel.multiply(y, g, n, d, stack, counts[-1]))
        seen.append((y.tolist(), g.tolist(), stack[: counts[-1]].tolist(), counts))
        for count in reversed(counts[:-1]):
            assert kernel.divide(y, g, n, d, stack, counts.pop()) == count
        assert np.array_equal(x, y) and np.array_equal(g, h)
    assert seen[0] == seen[1]


@given(ratios(), st.lists(st.tuples(int64s, heads), max_size=20))
def test_one_ratio_is_that_ratio_for_every_element(ratio, pairs):
    x, h, n, d = vectors([(*pair, ratio) for pair in pairs])
    for kernel in (*SETS.values(), reference):
        many = x.copy(), h.copy(), stack_of([], len(x))
        one = x.copy(), h.copy(), stack_of([], len(x))
        count = kernel.multiply(*many[:2], n, d, many[2], 0)
        assert kernel.multiply(*one[:2], *ratio, one[2], 0) == count
        assert all(np.array_equal(a, b) for a, b in zip(many[:2], one[:2], strict=True))
        assert np.array_equal(many[2][:count], one[2][:count])  # above lies what vectors left
        assert kernel.divide(*one[:2], *ratio, one[2], count) == 0
        assert np.array_equal(one[0], x) and np.array_equal(one[1], h)


@pytest.mark.parametrize("size", [1000, 10_000])
def test_twins_agree_over_many_steps(size):
    rng = np.random.default_rng(size)
    d = rng.integers(1, D_MAX, size)
    n = rng.integers(-(-d // WORD), d + 1)
    x = rng.integers(INT64_MIN, INT64_MAX, size, endpoint=True)
    h = np.exp2(rng.uniform(16, 32, size)).astype(np.uint32)
    for _ in range(3):
        check_twins(exact, reference, list(zip(x, h, zip(n, d, strict=True), strict=True)))
        exact.multiply(x, h, n, d, np.empty(size, np.uint16), 0)


@COMPILED
def test_ratios_of_several_kinds_serve_parts_alike(compiled):
    """Runs of d = 2**16, a few other d among them, d above 2**18: as whole and in odd parts."""
    size, rng = 9000, np.random.default_rng(0)
    d = np.full(size, 65536)
    d[[2047, 2048, 4100]] = 10, 65535, 65537
    d[6200:6300] = D_MAX
    n = np.maximum(d * 9 // 10, 1)
    x, h = rng.integers(INT64_MIN, INT64_MAX, size), np.full(size, LOW * WORD - 1, np.uint32)
    wanted, made = (x.copy(), h.copy()), (x.copy(), h.copy())
    stack, mine = (np.zeros(size, np.uint16) for _ in range(2))
    count = reference.multiply(*wanted, n, d, stack, 0)
    ratios, cuts, counts = exact.Ratios(n, d, size), [0, 1, 2049, 2050, 6250, 8999, size], [0]
    for lo, hi in itertools.pairwise(cuts):
        part = (made[0][lo:hi], made[1][lo:hi], ratios.part(lo, hi))
        assert compiled.count_pops_by(*part) == reference.count_pops(*part[:2], n[lo:hi], d[lo:hi])
        counts.append(compiled.multiply_by(*part, mine, counts[-1]))
    assert counts[-1] == count and np.array_equal(mine[:count], stack[:count])
    assert all(np.array_equal(a, b) for a, b in zip(made, wanted, strict=True))
    assert compiled.divide_by(*made, ratios, mine, count) == 0
    assert np.array_equal(made[0], x) and np.array_equal(made[1], h)
    with pytest.raises(ValueError, match="ratios 8999 to 9001 of 9000"):
        ratios.part(8999, 9001)
    with pytest.raises(ValueError):
        compiled.multiply_by(*made, ratios.part(0, 5), mine, 0)


@COMPILED
@pytest.mark.parametrize("size", [0, 1, 7, 8, 9, 33])
def test_words_are_counted_before_they_are_popped(compiled, size):
    """Around the head at which x decides, with one ratio and with many."""
    rng = np.random.default_rng(size)
    for n, d in [(9, 10), (58982, 65536), (1, 65536), (2**24 - 1, 2**24), (65535, 65536)]:
        h = np.clip(LOW * d // n + rng.integers(-2, 3, size), LOW, LOW * WORD - 1).astype(np.uint32)
        x = rng.integers(INT64_MIN, INT64_MAX, size)
        wanted = reference.count_pops(x, h, n, d)
        assert compiled.count_pops(x, h, n, d) == wanted
        for i in range(min(size, 3)):  # one other ratio, so that none stands for all
            many_n, many_d = np.full(size, n), np.full(size, d)
            many_n[i] = many_d[i] = 3
            wanted = reference.count_pops(x, h, many_n, many_d)
            assert compiled.count_pops(x, h, many_n, many_d) == wanted


digits = st.one_of(int64s, st.integers(-2, 5), st.integers(1, 2 * D_MAX))


@given(st.lists(st.tuples(digits, digits), min_size=1, max_size=9))
@example([(INT64_MIN, -1)])
@example([(2**48, 2**20)])
def test_twins_refuse_the_same_columns(pairs):
    n, d = (np.array(k, np.int64) for k in zip(*pairs, strict=True))
    assert exact.compare(n, d) == reference.compare(n, d)
    usable = all(reference.usable(*pair) for pair in pairs)
    assert exact.compare(n, d)[1] == usable
    for kernel in (exact, reference):
        if usable:
            kernel.Ratios(n, d, len(n))
        else:
            with pytest.raises(RatioRefused):
                kernel.Ratios(n, d, len(n))


@KERNELS
def test_words_lie_in_index_order(kernel):
    x, h = np.array([3, 5, 8], np.int64), np.full(3, LOW * WORD - 1, np.uint32)
    stack = np.zeros(3, np.uint16)
    assert kernel.multiply(x, h, 1, 2, stack, 0) == 3
    for i, value in enumerate([3, 5, 8]):
        assert stack[i] == ((LOW * WORD - 1) * 2 + value % 2) % WORD


@KERNELS
def test_one_is_free_and_nothing_is_empty(kernel):
    x, h = np.array([INT64_MIN, -1, INT64_MAX]), np.array([LOW, 99999, LOW * WORD - 1], np.uint32)
    assert kernel.multiply(x, h, 7, 7, stack_of([5], 3), 1) == 1
    assert x.tolist() == [INT64_MIN, -1, INT64_MAX] and h[1] == 99999
    none = np.empty(0, np.int64), np.empty(0, np.uint32)
    assert kernel.multiply(*none, 9, 10, np.empty(0, np.uint16), 0) == 0
    assert kernel.divide(*none, 9, 10, np.empty(0, np.uint16), 0) == 0
    assert kernel.multiply(*none, none[0], none[0], np.empty(0, np.uint16), 0) == 0


@pytest.mark.parametrize(("low", "word", "d_max"), TOY_WORLDS)
def test_toy_worlds_exhausted(low, word, d_max):
    cases = check_toy_world(reference.multiply_one, reference.divide_one, low, word, d_max)
    assert cases > 1000


@pytest.mark.parametrize(("low", "word", "d_max"), TOY_WORLDS)
def test_toy_worlds_exhausted_in_c(tmp_path, low, word, d_max):
    assert check_toy_world(*compiled_toy(tmp_path, low, word), low, word, d_max) > 1000


# Random programs: REVGRAD_DEEP=1e9 runs so many element-operations, and prints what it compared.


def random_ratio(rng, size):
    """n, d: one or one per element, of every kind that the loops are compiled apart for."""
    d = int(rng.choice([2, 10, 1000, LOW, LOW, LOW, 2**17, 2**18, 2**18 + 2, D_MAX]))
    d = int(rng.integers(1, d + 1)) if rng.random() < 0.3 else d
    many_n, many_d = rng.random(2) < 0.3
    ds = rng.integers(1, d + 1, size).astype(np.uint32) if many_d else d
    least = -(-np.asarray(ds, np.int64) // WORD)
    share = rng.choice([0.0, 0.5, 0.9, 0.999])
    n = np.maximum(
        least, np.int64(np.asarray(ds) * rng.uniform(share, 1, size if many_n else None))
    )
    return (n.astype(np.uint32) if np.ndim(n) else int(n)), ds


def random_program(rng, size, length):
    """Operations, as (name, arguments)."""
    for _ in range(length):
        if rng.random() < 0.6:
            yield "multiply", random_ratio(rng, size)
        else:
            kind = rng.choice([np.float32, np.float64])
            yield "add", ((rng.standard_normal(size) * 2.0 ** rng.integers(-9, 9)).astype(kind),)


def outcome(kernel, x, h, program):
    """All that a program leaves, and whether undoing it led back."""
    y, g, stack, counts = x.copy(), h.copy(), np.zeros(len(x) * len(program), np.uint16), [0]
    done, reals = [], np.empty(len(x))
    for name, arguments in program:
        if name == "multiply":
            counts.append(kernel.multiply(y, g, *arguments, stack, counts[-1]))
        elif kernel.add_floats(y, *arguments, 40, 1) >= 0:
            continue  # refused, by all alike
        done.append((name, arguments))
    kernel.decode(y, 40, reals)
    left = y.tobytes(), g.tobytes(), stack[: counts[-1]].tobytes(), tuple(counts), reals.tobytes()
    for name, arguments in reversed(done):
        if name == "multiply":
            assert kernel.divide(y, g, *arguments, stack, counts.pop()) == counts[-1]
        else:
            assert kernel.add_floats(y, *arguments, 40, -1) == -1
    assert np.array_equal(x, y) and np.array_equal(g, h)
    return left


def test_random_programs_agree():
    wanted, compared, by_reference = float(os.environ.get("REVGRAD_DEEP", 1e6)), 0, 0
    rng = np.random.default_rng(int(os.environ.get("REVGRAD_SEED", 0)))
    while compared < wanted or not by_reference:
        size = int(rng.choice([1, 9, 100, 1003, 30_000]))
        x = rng.integers(INT64_MIN, INT64_MAX, size, endpoint=True) >> rng.integers(0, 60, size)
        h = np.exp2(rng.uniform(16, 32, size)).astype(np.uint32)
        program = list(random_program(rng, size, 20))
        plain = outcome(SETS["baseline"], x, h, program)
        assert all(outcome(kernel, x, h, program) == plain for kernel in SETS.values())
        if size <= 100:
            assert outcome(reference, x, h, program) == plain
            by_reference += 2 * size * len(program)
        compared += 2 * size * len(program)  # there and back
    print(f"{compared:.3g} element-operations in {len(SETS)} sets, {by_reference:.3g} in Python")


# Refusals: with nothing changed.


@KERNELS
@pytest.mark.parametrize(
    ("n", "d"),
    [
        (0, 5),
        (-1, 5),
        (3, 2),
        (1, 0),
        (1, D_MAX + 1),
        (D_MAX, D_MAX + 1),
        (1, WORD + 1),
        (2**70, 3),
    ],
)
def test_ratios_that_heads_cannot_hold_are_refused(kernel, n, d):
    x, h, stack = np.array([5, 6]), np.full(2, LOW, np.uint32), stack_of([3], 2)
    many = [(n, d)] if max(n, d) > INT64_MAX else [(n, d), (np.array([1, n]), np.array([1, d]))]
    for pair in many:
        for function in (kernel.multiply, kernel.divide):
            with pytest.raises(RatioRefused, match="information buffers take"):
                function(x, h, *pair, stack, 1)
    assert x.tolist() == [5, 6] and h.tolist() == [LOW, LOW]


@KERNELS
def test_arrays_that_do_not_belong_together_are_refused(kernel):
    x, h, stack = np.zeros(2, np.int64), np.full(2, LOW, np.uint32), np.zeros(9, np.uint16)
    with pytest.raises(ValueError, match="equal lengths"):
        kernel.multiply(x, h[:1], 9, 10, stack, 0)
    with pytest.raises(ValueError, match="equal lengths"):
        kernel.divide(x, h, np.ones(3, np.int64), np.ones(3, np.int64), stack, 0)
    with pytest.raises(ValueError, match="larger array"):
        kernel.multiply(x, h, 9, 10, stack, 8)
    for count in (-1, 10):
        with pytest.raises(ValueError, match="larger array"):
            kernel.divide(x, h, 9, 10, stack, count)


@KERNELS
@given(elements, st.lists(words, max_size=3))
def test_a_divide_that_is_refused_changes_nothing(kernel, cases, kept):
    x, h, n, d = vectors(cases)
    before = x.copy(), h.copy(), stack_of(kept, 0)
    stack = before[2].copy()
    try:
        count = kernel.divide(x, h, n, d, stack, len(kept))
    except BufferEmpty:
        assert np.array_equal(x, before[0]) and np.array_equal(h, before[1])
    else:
        again = stack_of(stack[:count], len(x))
        assert kernel.multiply(x, h, n, d, again, count) == len(kept)
        assert np.array_equal(x, before[0]) and np.array_equal(h, before[1])
        assert np.array_equal(again[: len(kept)], before[2])


@KERNELS
def test_divide_refuses_what_leaves_int64(kernel):
    for value in (INT64_MAX, INT64_MIN, INT64_MAX // 2 + 1, INT64_MIN // 2 - 1):
        x, h = np.array([4, value, 8]), np.full(3, 2**30, np.uint32)
        with pytest.raises(BufferEmpty, match="element 1"):
            kernel.divide(x, h, 1, 2, np.zeros(9, np.uint16), 9)
        assert x.tolist() == [4, value, 8] and h.tolist() == [2**30] * 3
    x = np.array([INT64_MAX // 2, INT64_MIN // 2])
    assert kernel.divide(x, h[:2], 1, 2, np.zeros(9, np.uint16), 9) == 9


# Reals to integers and back.

reals = st.floats(width=64) | st.floats(-4, 4) | st.integers(-8, 8).map(lambda k: k / 2)


def sums(x, delta, bits, sign):
    """x + sign * (delta in ulp), in rational arithmetic; None where there is no such int64."""
    for value, real in zip(x, delta, strict=True):
        if not math.isfinite(real):
            yield None
            continue
        step = round(Fraction(real) * 2**bits)
        ends = step, value + sign * step
        yield ends[1] if all(INT64_MIN <= end <= INT64_MAX for end in ends) else None


def both_add(x, delta, bits, sign):
    """What add_floats returns and leaves: the twins must agree."""
    results = []
    for kernel in (reference, *SETS.values()):
        mine = x.copy()
        results.append((kernel.add_floats(mine, delta, bits, sign), mine.tolist()))
    assert all(result == results[0] for result in results)
    return results[0]


@given(st.lists(st.tuples(int64s, reals), max_size=20), fraction_bits, st.sampled_from([1, -1]))
@example([(INT64_MAX, 0.5), (INT64_MAX, 1.0)], 0, 1)
@example([(INT64_MIN, 0.0), (-1, -(2.0**63))], 0, -1)
@example([(0, -(2.0**63))], 0, -1)
@example([(0, 2.5), (0, 3.5), (0, -2.5), (0, 0.5)], 0, 1)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_twins_add_alike_and_subtract_is_the_undo(dtype, pairs, bits, sign):
    x = np.array([pair[0] for pair in pairs], np.int64)
    with np.errstate(over="ignore"):
        delta = np.array([pair[1] for pair in pairs], np.float64).astype(dtype)
    wanted = list(sums(x.tolist(), delta.tolist(), bits, sign))
    bad, after = both_add(x, delta, bits, sign)
    assert bad == next((i for i, total in enumerate(wanted) if total is None), -1)
    assert after == (wanted if bad < 0 else x.tolist())
    if bad < 0:
        assert both_add(np.array(after, np.int64), delta, bits, -sign) == (-1, x.tolist())


@given(st.lists(reals, max_size=20), fraction_bits)
def test_twins_encode_alike(values, bits):
    for dtype in (np.float32, np.float64):
        with np.errstate(over="ignore"):
            given_reals = np.array(values, np.float64).astype(dtype)
        seen = []
        for kernel in (reference, *SETS.values()):
            out = np.zeros(len(values), np.int64)
            seen.append((kernel.encode(given_reals, bits, out), out.tolist()))
        assert all(result == seen[0] for result in seen)


@given(st.lists(int64s, max_size=20), fraction_bits)
def test_twins_decode_alike(values, bits):
    for dtype in (np.float32, np.float64):
        seen = []
        for kernel in (reference, *SETS.values()):
            out = np.zeros(len(values), dtype)
            kernel.decode(np.array(values, np.int64), bits, out)
            seen.append(out.tobytes())
        assert all(result == seen[0] for result in seen)
    assert np.frombuffer(seen[0], np.float64).tolist() == [float(v) / 2.0**bits for v in values]


# Planted faults: the checks above must catch each of them.

REFERENCE_FAULTS = {
    "a threshold off by one on the way forward": [("z >= low * word * n", "z > low * word * n")],
    "a threshold off by one on the way back": [("z < low * d", "z <= low * d")],
    # what the undo needs a marker word for, without the marker
    "a spill decided after dividing by n": [
        (
            "if z >= low * word * n:\n        z, spilled = divmod(z, word)",
            "if False:\n        pass",
        ),
        (
            "return x // d * n + z % n, z // n, spilled",
            "y, s = divmod(z, n)\n"
            "    if y >= low * word:\n        y, spilled = divmod(y, word)\n"
            "    return x // d * n + s, y, spilled",
        ),
        ("spilled = z < low * d", "spilled = h <= (low * d - 1) // n"),
        ("z = z * word + top", "z = (h * word + top) * n + x % n"),
    ],
    "% that rounds towards zero": [
        ("h * d + x % d", "h * d + x - d * int(x / d)"),
        ("x // d * n", "int(x / d) * n"),
        ("h * n + x % n", "h * n + x - n * int(x / n)"),
        ("x // n * d", "int(x / n) * d"),
    ],
    "a digit that is not taken out": [("x // d * n + z % n", "x // d * n")],
}
C_FAULTS = {
    "a threshold off by one on the way forward": [
        ("z >= (uint64_t)RATIO_LOW * RATIO_WORD", "z > (uint64_t)RATIO_LOW * RATIO_WORD")
    ],
    "a threshold off by one on the way back": [
        ("z < (uint64_t)RATIO_LOW", "z <= (uint64_t)RATIO_LOW")
    ],
    "% that rounds towards zero": [("sign = (uint64_t)-(x < 0)", "sign = 0 * (uint64_t)-(x < 0)")],
}


def replaced(file, changes):
    """The text of a source with something changed in it."""
    text = (SOURCES / file).read_text(encoding="utf-8")
    for old, new in changes:
        assert text.count(old) == 1, old
        text = text.replace(old, new)
    return text


def faulty_reference(changes):
    module = types.ModuleType("faulty")
    exec(compile(replaced("reference.py", changes), "faulty", "exec"), module.__dict__)
    return module


def edge_cases():
    """Elements at which z lies on or beside a threshold, for a few ratios."""
    for n, d in [(9, 10), (999, 1000), (1, 2), (58982, 65536)]:
        edges = [-(-LOW * WORD * n // d), LOW * WORD * n // d, LOW, LOW * WORD - 1]
        for h, x in product(edges, [-1, 0, 1, d - 1, -d, 12345]):
            yield x, h, (n, d)
        for h in {k for k in (LOW * WORD * n // d - 1, LOW * d // n) if LOW <= k < LOW * WORD}:
            yield -7, h, (n, d)


@pytest.mark.parametrize("fault", REFERENCE_FAULTS)
def test_a_planted_fault_is_caught_in_toy_worlds(fault):
    faulty = faulty_reference(REFERENCE_FAULTS[fault])
    with pytest.raises((AssertionError, TypeError)):
        for world in TOY_WORLDS:
            check_toy_world(faulty.multiply_one, faulty.divide_one, *world)


@pytest.mark.parametrize("fault", REFERENCE_FAULTS)
def test_a_planted_fault_is_caught_by_the_twin(fault):
    faulty = faulty_reference(REFERENCE_FAULTS[fault])
    with pytest.raises((AssertionError, OverflowError)):
        for case in edge_cases():
            check_twins(exact, faulty, [case], kept=[1, 2, 3])


@pytest.mark.parametrize("fault", C_FAULTS)
def test_a_planted_fault_is_caught_in_c(tmp_path, fault):
    text = replaced("ratio.h", C_FAULTS[fault])
    with pytest.raises((AssertionError, TypeError)):
        for i, (low, word, d_max) in enumerate(TOY_WORLDS):
            toy = compiled_toy(tmp_path / str(i), low, word, text)
            check_toy_world(*toy, low, word, d_max)


def test_the_checks_pass_without_a_fault():
    for case in edge_cases():
        check_round_trip(exact, [case], kept=[1, 2, 3])
        check_twins(exact, faulty_reference([]), [case], kept=[1, 2, 3])


# The choice of a kernel.


def python(code, kernel):
    """A fresh Python without the compiled kernel, as after a checkout."""
    hide = "import sys; sys.modules['revgrad._ext.exact'] = None\n"
    variables = os.environ | {"REVGRAD_KERNEL": kernel}
    return subprocess.run(
        [sys.executable, "-c", hide + code], env=variables, capture_output=True, text=True
    )


def test_a_missing_kernel_is_an_error_that_says_what_to_do():
    done = python("import revgrad._ext", "exact")
    assert done.returncode != 0 and "REVGRAD_KERNEL=reference" in done.stderr
    done = python("import revgrad._ext", "fastest")
    assert done.returncode != 0 and "set it to exact or reference" in done.stderr


def test_the_reference_serves_where_it_is_asked_for():
    done = python("from revgrad._ext import kernel; print(kernel.__name__)", "reference")
    assert done.stdout.strip() == "revgrad._ext.reference", done.stderr
