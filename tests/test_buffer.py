"""Information buffers: whatever is multiplied can be divided back, at log2(d/n) bits a step."""

import math
import os
import subprocess
import sys
import tempfile
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from revgrad import _ext
from revgrad import buffer as module
from revgrad._ext import kernel
from revgrad._ext.reference import D_MAX, LOW, WORD
from revgrad.buffer import SEGMENT_BYTES, BignumBuffer, InformationBuffer, Tail, first_heads
from revgrad.errors import BufferEmpty, FixedOverflow, RatioRefused
from revgrad.ratio import Ratio

INT64_MIN, INT64_MAX = -(2**63), 2**63 - 1
BUFFERS = pytest.mark.parametrize("make", [InformationBuffer, BignumBuffer])
MOMENTA = [0.5, 0.9, 0.98, 0.99, 0.999]

int64s = st.sampled_from([INT64_MIN, -1, 0, 1, INT64_MAX]) | st.integers(INT64_MIN, INT64_MAX)


@st.composite
def pairs(draw):
    """n, d that heads can hold."""
    d = draw(st.integers(1, 20) | st.integers(1, D_MAX) | st.sampled_from([LOW, 2 * LOW]))
    return draw(st.integers(-(-d // WORD), d) | st.just(d) | st.just(-(-d // WORD))), d


@st.composite
def ratios_for(draw, size):
    """One ratio, or one for each of `size` elements."""
    if draw(st.booleans()):
        return Ratio(*draw(pairs()))
    many = draw(st.lists(pairs(), min_size=size, max_size=size))
    return Ratio(*np.array(many, np.int64).reshape(size, 2).T)


@st.composite
def rises(draw, size):
    """One ratio above 1, or some for each of `size` elements among others."""
    n, d = draw(pairs())
    if draw(st.booleans()):
        return Ratio(d, n)
    down = [draw(pairs()) for _ in range(size)]
    chosen = [pair[:: draw(st.sampled_from([1, -1]))] for pair in down]
    return Ratio(*np.array(chosen, np.int64).reshape(size, 2).T)


@contextmanager
def small_segments(chunk=2, sealed=5, open_words=20):
    """Segments so small that a few elements seal and unseal them."""
    with mock.patch.multiple(module, CHUNK=chunk, SEALED=sealed, OPEN=open_words):
        yield


def contents(buffer):
    """All that a buffer holds: heads and words, or big integers."""
    if isinstance(buffer, BignumBuffer):
        return [int(digits) for digits in buffer.snapshot()]
    words = np.frombuffer(b"".join(buffer._tail.pieces()), "<u2")
    return buffer.heads.tolist(), words.tolist()


def check_round_trip(buffer, x, ratios, lo=0):
    """Law 1: multiply by all ratios, divide in the opposite order; integers, heads, words."""
    start = x.tolist(), contents(buffer), buffer.digest()
    for ratio in ratios:
        buffer.multiply(x, ratio, lo)
    for ratio in reversed(ratios):
        buffer.divide(x, ratio, lo)
    assert (x.tolist(), contents(buffer), buffer.digest()) == start


@BUFFERS
@given(st.data())
def test_every_multiply_can_be_divided_back(make, data):
    x = np.array(data.draw(st.lists(int64s, max_size=7)), np.int64)
    ratios = data.draw(st.lists(ratios_for(len(x)), max_size=12))
    with small_segments():
        check_round_trip(make(len(x) + 3), x, ratios, lo=data.draw(st.integers(0, 3)))


class Buffers(RuleBasedStateMachine):
    """A real buffer with tiny segments; the model is the list of what was done to it."""

    size = 6

    @initialize(values=st.lists(int64s, min_size=size, max_size=size))
    def start(self, values):
        self.segments = small_segments()
        self.segments.__enter__()
        self.x = np.array(values, np.int64)
        self.buffer = InformationBuffer(self.size, memory_limit=25)  # two segments of ten bytes
        self.first = self.state()
        self.done, self.kept = [], []

    def state(self):
        return self.x.tolist(), contents(self.buffer), self.buffer.digest()

    @rule(data=st.data(), lo=st.integers(0, size), length=st.integers(0, size))
    def multiply(self, data, lo, length):
        hi = min(lo + length, self.size)
        ratio = data.draw(ratios_for(hi - lo))
        self.buffer.multiply(self.x[lo:hi], ratio, lo)
        self.done.append((lo, hi, ratio))

    @rule(data=st.data(), lo=st.integers(0, size), length=st.integers(0, size))
    def rise(self, data, lo, length):
        hi = min(lo + length, self.size)
        ratio, before = data.draw(rises(hi - lo)), self.state()
        try:
            self.buffer.multiply(self.x[lo:hi], ratio, lo)
        except FixedOverflow:
            assert self.state() == before
        else:
            self.done.append((lo, hi, ratio))

    @rule(
        ratio=st.sampled_from([Ratio(1, 2), Ratio(9, 10), Ratio(1, WORD)]), times=st.integers(1, 9)
    )
    def multiply_often(self, ratio, times):
        for _ in range(times):
            self.buffer.multiply(self.x, ratio)
            self.done.append((0, self.size, ratio))

    @precondition(lambda self: self.done)
    @rule(times=st.integers(1, 12))
    def divide(self, times):
        for lo, hi, ratio in (self.done.pop() for _ in range(min(times, len(self.done)))):
            self.buffer.divide(self.x[lo:hi], ratio, lo)

    @rule()
    def refuse(self):
        before = self.state()
        with pytest.raises(RatioRefused):
            self.buffer.multiply(self.x, Ratio(np.array([1] * 6), np.array([2] * 5 + [WORD + 1])))
        with pytest.raises(ValueError, match="elements 1 to 7"):
            self.buffer.divide(self.x, Ratio(1, 2), 1)
        assert self.state() == before

    @rule()
    def keep(self):
        self.kept.append((self.x.copy(), self.buffer.snapshot(), self.done.copy(), self.state()))

    @precondition(lambda self: self.kept)
    @rule(data=st.data())
    def restore(self, data):
        x, snapshot, done, state = data.draw(st.sampled_from(self.kept))
        self.buffer.restore(snapshot)
        self.x[:], self.done = x, done.copy()
        assert self.state() == state

    @rule()
    def save(self):
        with tempfile.TemporaryDirectory() as folder:
            self.buffer.save(Path(folder) / "buffer")
            loaded = InformationBuffer.load(Path(folder) / "buffer", memory_limit=25)
        assert contents(loaded) == contents(self.buffer)
        assert loaded.digest() == self.buffer.digest()
        self.buffer = loaded

    @rule()
    def copy(self):
        twin = self.buffer.copy()
        before = self.state()
        twin.multiply(self.x.copy(), Ratio(1, 2))
        assert self.state() == before and twin.digest() != self.buffer.digest()

    @invariant()
    def heads_stay_in_their_interval(self):
        if hasattr(self, "buffer"):
            assert np.all(self.buffer.heads >= LOW)
            tail = self.buffer._tail
            assert self.buffer.words == len(contents(self.buffer)[1]) - tail.borrowed
            assert not tail.borrowed or not contents(self.buffer)[1] or contents(self.buffer)[1][0]
            assert len(tail.sealed) <= 2 and (self.buffer.bits >= -1e-9 or self.buffer._tail.lent)

    def teardown(self):
        if not hasattr(self, "buffer"):
            return
        self.divide(len(self.done))
        assert self.state() == self.first and self.buffer.bits == 0
        self.segments.__exit__(None, None, None)


TestBuffers = Buffers.TestCase
TestBuffers.settings = settings(stateful_step_count=20)


# Law 2: bits and bytes.


def bits_wanted(ratio, size):
    return float(np.sum(np.broadcast_to(-np.log2(ratio.value), size)))


def check_slope(buffer, x, ratio, steps):
    """Bits grow by log2(d/n) per element and step, to a thousandth; bytes follow the bits."""
    before = buffer.bits
    for _ in range(steps):
        buffer.multiply(x, ratio)
    slope = (buffer.bits - before) / steps
    wanted = bits_wanted(ratio, len(x))
    assert abs(slope - wanted) <= 1e-3 * wanted
    if isinstance(buffer, InformationBuffer):
        assert buffer.nbytes <= buffer.bits / 8 + 4 * len(x) + SEGMENT_BYTES


def large_vector(size, seed=0):
    return np.random.default_rng(seed).integers(-(2**60), 2**60, size)


@pytest.mark.parametrize("momentum", MOMENTA)
def test_the_buffer_grows_by_what_is_destroyed(momentum):
    x, buffer = large_vector(1000), InformationBuffer(1000)
    start, ratio = x.copy(), Ratio.of(momentum)
    check_slope(buffer, x, ratio, 10_000)
    for _ in range(10_000):
        buffer.divide(x, ratio)
    assert np.array_equal(x, start) and buffer.digest() == InformationBuffer(1000).digest()


@pytest.mark.parametrize("least", [0.0, 0.9, 0.9999])
def test_it_does_so_for_a_ratio_per_element(least):
    ratio = Ratio.of(np.random.default_rng(1).uniform(max(least, 2.0**-16), 1 - 1e-6, 2000))
    check_slope(InformationBuffer(2000), large_vector(2000), ratio, 10_000)


@pytest.mark.parametrize("momentum", [0.5, 0.9, 0.99])
def test_bignums_grow_by_what_is_destroyed(momentum):
    x, buffer = large_vector(4), BignumBuffer(4)
    buffer.multiply(x, Ratio(1, 2**50))  # while b is 0, zeros come for nothing
    check_slope(buffer, x, Ratio.of(momentum), 10_000)


def test_bytes_follow_bits_while_segments_come_and_go():
    x, buffer, ratio = large_vector(50_000), InformationBuffer(50_000), Ratio(1, WORD)
    most = 0
    for step in [buffer.multiply] * 30 + [buffer.divide] * 30:
        step(x, ratio)
        most = max(most, len(buffer._tail.sealed))
        assert buffer.nbytes <= buffer.bits / 8 + 4 * len(x) + SEGMENT_BYTES
    assert most >= 2 and buffer.words == 0 and np.array_equal(x, large_vector(50_000))


def test_nbytes_counts_everything_held():
    buffer = InformationBuffer(10)
    assert buffer.nbytes == 40 and buffer.bits == 0 and buffer.words == 0
    buffer.multiply(np.arange(10), Ratio(1, WORD))
    assert buffer.words == 10 and buffer.nbytes == 40 + 2 * len(buffer._tail.open)


# Order, cuts and copies.


def run(x, steps=40):
    """A buffer after some steps over the whole vector and over slices of it."""
    buffer, ratio = InformationBuffer(len(x)), Ratio.of(np.linspace(0.001, 1, len(x)))
    for _ in range(steps):
        buffer.multiply(x, ratio)
        buffer.multiply(x[3:], Ratio(9, 10), 3)
    return buffer


def test_digests_and_words_do_not_depend_on_cuts():
    whole, cut = large_vector(50), large_vector(50)
    expected = run(whole)
    for sizes in ((1, 3, 9), (7, 30, 70), (50, 60, 200)):
        with small_segments(*sizes):
            x = cut.copy()
            buffer = run(x)
            assert buffer._tail.sealed and contents(buffer) == contents(expected)
            assert buffer.digest() == expected.digest() and np.array_equal(x, whole)
            assert buffer.words == expected.words and buffer.bits == expected.bits


def test_slices_in_order_are_the_whole():
    x, y = large_vector(100), large_vector(100)
    whole, sliced = InformationBuffer(100), InformationBuffer(100)
    for _ in range(30):
        whole.multiply(x, Ratio(9, 10))
        for lo in range(0, 100, 25):
            sliced.multiply(y[lo : lo + 25], Ratio(9, 10), lo)
    assert np.array_equal(x, y) and sliced.digest() == whole.digest()


@BUFFERS
def test_digests_tell_contents_apart(make):
    x = large_vector(20)
    seen = {make(20).digest(), make(21).digest()}
    buffer = make(20)
    for _ in range(20):
        buffer.multiply(x, Ratio(9, 10))
        seen.add(buffer.digest())
    assert len(seen) == 22 and all(len(digest) == 16 for digest in seen)
    other, y = make(20), large_vector(20)
    other.multiply(y, Ratio(9, 10))
    y[3] += 1
    other.multiply(y, Ratio(1, 2))
    assert other.digest() not in seen


@BUFFERS
def test_copies_and_snapshots_are_independent(make):
    x = large_vector(20)
    buffer = make(20)
    buffer.multiply(x, Ratio(1, 2))
    middle, digest, snapshot = x.copy(), buffer.digest(), buffer.snapshot()
    twin = buffer.copy()
    buffer.multiply(x, Ratio(3, 7))
    assert twin.digest() == digest != buffer.digest()
    for _ in range(2):
        buffer.restore(snapshot)
        assert buffer.digest() == digest
        y = middle.copy()
        buffer.divide(y, Ratio(1, 2))
        assert np.array_equal(y, large_vector(20)) and buffer.digest() == make(20).digest()


@BUFFERS
def test_without_keeping_the_integers_are_the_same(make):
    x, y = large_vector(300), large_vector(300)
    kept, dropping = make(300), make(300, keep=False)
    for step in range(40):
        if step == 20:
            snapshot, there = dropping.snapshot(), y.copy()
        kept.multiply(x, Ratio(9, 10))
        dropping.multiply(y, Ratio(9, 10))
    assert np.array_equal(x, y) and dropping.bits == kept.bits
    with pytest.raises(BufferEmpty, match="keep=True"):
        dropping.divide(y, Ratio(9, 10))
    assert np.array_equal(x, y)
    twin = dropping.copy()
    assert twin.digest() == dropping.digest() and twin.keep is False
    dropping.restore(snapshot)
    for _ in range(20):
        dropping.multiply(there, Ratio(9, 10))
    assert np.array_equal(x, there) and dropping.digest() == twin.digest()


def test_dropped_words_are_counted_and_not_held():
    x, kept, dropping = (
        large_vector(300),
        InformationBuffer(300),
        InformationBuffer(300, keep=False),
    )
    for _ in range(50):
        kept.multiply(x.copy(), Ratio(1, WORD))
        dropping.multiply(x.copy(), Ratio(1, WORD))
    assert dropping.words == kept.words == 50 * 300
    assert np.array_equal(dropping.heads, kept.heads)
    assert dropping.nbytes == 300 * 4 + 300 * 2


# The pattern of first heads is contract.


def test_first_heads_are_pinned():
    assert first_heads(6).tolist() == [65536, 62227538, 900509, 853183795, 12325440, 177991]
    assert first_heads(0).tolist() == [] and first_heads(3).dtype == np.uint32


def test_first_heads_are_log_uniform_and_spread_over_every_stretch():
    heads = first_heads(100_000)
    assert heads.min() >= LOW and len(np.unique(heads)) > 99_000
    for start in (0, 99_000):
        octaves = np.log2(heads[start : start + 1000]).astype(int)
        counts = np.bincount(octaves, minlength=32)
        assert counts[:16].sum() == 0 and counts[16:].min() >= 60 and counts[16:].max() <= 65


def test_spills_spread_evenly_over_steps():
    x, buffer, seen = large_vector(20_000), InformationBuffer(20_000), [0]
    for _ in range(200):
        buffer.multiply(x, Ratio(9, 10))
        seen.append(buffer.words)
    spills = np.diff(seen)
    assert spills.min() > 0.8 * spills.mean() and spills.max() < 1.2 * spills.mean()


# Refusals.


def test_an_empty_buffer_refuses_and_is_unchanged():
    x = large_vector(100) >> 20
    buffer, start = InformationBuffer(100), x.copy()
    with small_segments(chunk=7):
        for _ in range(3):
            with pytest.raises(BufferEmpty, match="opposite order"):
                buffer.divide(x, Ratio(1, WORD))
            assert np.array_equal(x, start) and buffer.digest() == InformationBuffer(100).digest()


def test_a_refusal_in_an_early_chunk_restores_the_later_ones():
    x = np.array([INT64_MAX] + [12345] * 99)
    with small_segments(chunk=3, sealed=5, open_words=40):
        buffer = InformationBuffer(100)
        for _ in range(5):
            buffer.multiply(x, Ratio(1, 1000))
        x[0] = INT64_MAX
        before = x.tolist(), contents(buffer)
        with pytest.raises(BufferEmpty, match="element 0"):
            buffer.divide(x, Ratio(1, 1000))
        assert (x.tolist(), contents(buffer)) == before


@BUFFERS
def test_what_is_no_vector_of_the_buffer_is_refused(make):
    buffer, half = make(4), Ratio(1, 2)
    for function in (buffer.multiply, buffer.divide):
        for x in (np.zeros(4), np.zeros(4, np.int32), np.zeros((2, 2), np.int64), [1, 2, 3, 4]):
            with pytest.raises(TypeError, match="int64 vector"):
                function(x, half)
        with pytest.raises(ValueError, match="not contiguous"):
            function(np.zeros(8, np.int64)[::2], half)
        for lo in (-1, 1):
            with pytest.raises(ValueError, match="a buffer that has 4"):
                function(np.zeros(4, np.int64), half, lo)
        with pytest.raises(TypeError, match=r"Ratio\.of"):
            function(np.zeros(4, np.int64), 0.5)
        with pytest.raises(ValueError, match="shape"):
            function(np.zeros(4, np.int64), Ratio(np.array([1, 1]), np.array([2, 2])))


@pytest.mark.parametrize("pair", [(WORD + 1, 1), (1, WORD + 1), (1, D_MAX + 1), (D_MAX, D_MAX + 1)])
def test_wide_ratios_are_sent_to_bignums(pair):
    x, buffer = large_vector(3) >> 24, InformationBuffer(3)
    start = x.copy()
    for function in (buffer.multiply, buffer.divide):
        with pytest.raises(RatioRefused, match="BignumBuffer"):
            function(x, Ratio(*pair))
    assert np.array_equal(x, start)
    check_round_trip(BignumBuffer(3), x, [Ratio(*pair)])


# Ratios above 1: words come back, then zeros.


def test_a_rise_takes_back_the_bits_that_a_fall_has_left():
    x, buffer = large_vector(1000) >> 20, InformationBuffer(1000)
    start = x.copy()
    for _ in range(40):
        buffer.multiply(x, Ratio(9, 10))
    held = buffer.bits
    for _ in range(20):
        buffer.multiply(x, Ratio(10, 9))
    assert abs(buffer.bits - held / 2) < 0.01 * held
    for ratio in [Ratio(10, 9)] * 20 + [Ratio(9, 10)] * 40:
        buffer.divide(x, ratio)
    assert np.array_equal(x, start) and buffer.digest() == InformationBuffer(1000).digest()


@pytest.mark.parametrize("rise", [Ratio(2, 1), Ratio(WORD, 1), Ratio(65536, 58982)])
def test_an_empty_buffer_supplies_zeros_reversibly(rise):
    x, buffer = large_vector(300) >> 40, InformationBuffer(300)
    start, steps = x.copy(), 1 if rise.n == WORD * rise.d else 12
    with small_segments(chunk=64, sealed=200, open_words=600):
        for _ in range(steps):
            buffer.multiply(x, rise)
        assert buffer.words < 0
        for _ in range(30):
            buffer.multiply(x, Ratio(1, 7))
        for ratio in [Ratio(1, 7)] * 30 + [rise] * steps:
            buffer.divide(x, ratio)
    assert np.array_equal(x, start) and buffer.digest() == InformationBuffer(300).digest()


def test_a_rise_out_of_int64_is_refused_and_changes_nothing():
    x, buffer = np.array([3, 5, 2**62, 7, 2**61]), InformationBuffer(5)
    ratio = Ratio(np.array([1, 9, 2, 1, 3]), np.array([2, 10, 1, 1, 1]))
    before = x.tolist(), contents(buffer), buffer.digest()
    with pytest.raises(FixedOverflow, match="element 2 times 2/1") as caught:
        buffer.multiply(x, ratio)
    assert caught.value.index == 2
    assert (x.tolist(), contents(buffer), buffer.digest()) == before
    with pytest.raises(BufferEmpty):  # no zeros were taken, so it still knows that it is empty
        buffer.divide(np.zeros(5, np.int64) + 3, Ratio(1, WORD))
    with pytest.raises(RatioRefused, match="keep=True"):
        InformationBuffer(5, keep=False).multiply(x, ratio)


# Files.


def filled(size=100, steps=60):
    x, buffer = large_vector(size), InformationBuffer(size)
    for _ in range(steps):
        buffer.multiply(x, Ratio(1, 1000))
    return x, buffer


@BUFFERS
def test_a_saved_buffer_comes_back_and_goes_on(make, tmp_path):
    x, buffer = large_vector(50), make(50)
    for _ in range(30):
        buffer.multiply(x, Ratio(9, 10))
    buffer.save(tmp_path / "saved")
    loaded = make.load(tmp_path / "saved")
    assert contents(loaded) == contents(buffer) and loaded.keep
    for _ in range(30):
        loaded.divide(x, Ratio(9, 10))
    assert np.array_equal(x, large_vector(50)) and loaded.digest() == make(50).digest()
    assert [path.name for path in tmp_path.iterdir()] == ["saved"]


@BUFFERS
def test_a_file_with_any_byte_changed_added_or_cut_is_refused(make, tmp_path):
    x, buffer, path = large_vector(3), make(3), tmp_path / "saved"
    for _ in range(20):
        buffer.multiply(x, Ratio(1, 3))
    buffer.save(path)
    whole = path.read_bytes()
    damaged = [
        whole[:k] + bytes([whole[k] ^ 1 << k % 8]) + whole[k + 1 :] for k in range(len(whole))
    ]
    damaged += [whole[:k] for k in range(len(whole))]
    damaged += [whole[:k] + b"\0" + whole[k:] for k in range(0, len(whole) + 1, 3)] + [
        b"",
        b"\xff" * 99,
    ]
    for content in damaged:
        path.write_bytes(content)
        with pytest.raises(ValueError, match="damaged or no saved buffer"):
            make.load(path)
    path.write_bytes(whole)
    assert make.load(path).digest() == buffer.digest()


def test_a_save_that_fails_leaves_the_file_as_it_was(tmp_path):
    _, buffer = filled()
    buffer.save(tmp_path / "saved")
    before = (tmp_path / "saved").read_bytes()
    for name in ("fsync", "replace"):
        with mock.patch.object(os, name, side_effect=OSError("disk full")), pytest.raises(OSError):
            filled(5)[1].save(tmp_path / "saved")
    assert (tmp_path / "saved").read_bytes() == before and len(list(tmp_path.iterdir())) == 1


def test_words_beyond_the_limit_go_to_a_file_without_a_name(tmp_path):
    x, buffer = (
        large_vector(50_000),
        InformationBuffer(50_000, memory_limit=2**21, directory=tmp_path),
    )
    for _ in range(60):
        buffer.multiply(x, Ratio(1, WORD))
    assert buffer.nbytes_on_disk >= 2**20 and list(tmp_path.iterdir()) == []
    assert buffer.nbytes <= 2**21 + 4 * len(x) + SEGMENT_BYTES
    twin, y = buffer.copy(), x.copy()
    assert twin.digest() == buffer.digest()
    for _ in range(60):
        buffer.divide(x, Ratio(1, WORD))
        twin.divide(y, Ratio(1, WORD))
    assert np.array_equal(x, large_vector(50_000)) and np.array_equal(x, y)
    assert buffer.nbytes_on_disk == 0 and buffer.digest() == InformationBuffer(50_000).digest()


def test_a_segment_that_comes_back_changed_is_noticed():
    with small_segments():
        x, buffer = large_vector(10), InformationBuffer(10, memory_limit=0)
        for _ in range(20):
            buffer.multiply(x, Ratio(1, 1000))
        buffer._tail._file.seek(3)
        buffer._tail._file.write(b"?")
        with pytest.raises(OSError, match="came back changed"):
            for _ in range(20):
                buffer.divide(x, Ratio(1, 1000))


# Threads change no bit.


@pytest.mark.parametrize("many", [False, True])
@pytest.mark.parametrize("keep", [True, False])
def test_threads_change_no_bit(many, keep):
    size, seen = 10_007, []
    ratio = Ratio.of(np.linspace(0.01, 1, size)) if many else Ratio(1, 1000)
    before = module.threads()
    for count in (1, 2, 3, 7):
        module.threads(count)
        x, buffer = large_vector(size), InformationBuffer(size, keep=keep)
        with mock.patch.object(module, "SPAN", 1000), small_segments(512, 2048, 8192):
            for _ in range(9):
                buffer.multiply(x, ratio)
            seen.append((x.tolist(), contents(buffer), buffer.words))
            for _ in range(9 if keep else 0):
                buffer.divide(x, ratio)
        assert not keep or (np.array_equal(x, large_vector(size)) and buffer.words == 0)
    module.threads(before)
    assert all(state == seen[0] for state in seen)


@pytest.mark.parametrize("at", [0, 4000, 9999])
def test_a_refusal_among_threads_changes_nothing(at):
    before = module.threads()
    module.threads(3)
    with mock.patch.object(module, "SPAN", 1000):
        x, buffer = large_vector(10_000) >> 8, InformationBuffer(10_000)
        for _ in range(4):
            buffer.multiply(x, Ratio(1, 100))
        x[at] = INT64_MAX
        state = x.tolist(), contents(buffer)
        with pytest.raises(BufferEmpty, match=f"element {at}"):
            buffer.divide(x, Ratio(1, 100))
        assert (x.tolist(), contents(buffer)) == state
        empty, y = InformationBuffer(10_000), x >> 30
        start = y.tolist(), contents(empty)
        with pytest.raises(BufferEmpty):
            empty.divide(y, Ratio(1, WORD))
        assert (y.tolist(), contents(empty)) == start
    module.threads(before)


def test_the_number_of_threads_comes_from_the_environment():
    code = "from revgrad.buffer import threads; print(threads())"
    for wanted in ("1", "5"):
        variables = os.environ | {"REVGRAD_THREADS": wanted}
        command = [sys.executable, "-c", code]
        run = subprocess.run(command, env=variables, capture_output=True, text=True)
        assert run.stdout.strip() == wanted
    with pytest.raises(ValueError, match="at least 1"):
        module.threads(0)


# Bignums: any ratio.


@given(
    st.lists(st.integers(-(2**40), 2**40), min_size=2, max_size=4),
    st.lists(st.tuples(st.integers(1, 99), st.integers(1, 99)), max_size=3),
    st.integers(1, 2**80),
)
@example([0, -1], [(3, 2), (2, 3)], 2**80)
def test_bignums_take_ratios_above_one_and_of_any_size(values, small, d):
    ratios = [Ratio(*pair) for pair in small] + [Ratio(max(d - 1, 1), d)]
    x, buffer = np.array(values), BignumBuffer(len(values))
    for ratio in ratios[:-1]:
        old = x.tolist()
        buffer.multiply(x, ratio)
        for before, after in zip(old, x.tolist(), strict=True):
            assert abs(after * ratio.d - before * ratio.n) < ratio.n * ratio.d
    for ratio in reversed(ratios[:-1]):
        buffer.divide(x, ratio)
    assert x.tolist() == values and buffer.digest() == BignumBuffer(len(values)).digest()
    if d < 2**62:
        check_round_trip(buffer, x, ratios)


def test_bignums_are_algorithm_3():
    x, buffer, digits = np.array([1234567]), BignumBuffer(1), 0
    for n, d in [(9, 10), (1, 3), (7, 8), (5, 2)]:
        value = int(x[0])
        pushed = digits * d + value % d
        buffer.multiply(x, Ratio(n, d))
        assert x[0] == value // d * n + pushed % n
        digits = pushed // n
        assert contents(buffer) == [digits]
    assert math.isclose(buffer.bits, math.log2(digits + 1)) and buffer.nbytes >= 16


def test_bignums_refuse_what_leaves_int64_and_are_unchanged():
    x, buffer = np.array([1, INT64_MAX]), BignumBuffer(2)
    with pytest.raises(FixedOverflow, match="element 1 times 3/2") as caught:
        buffer.multiply(x, Ratio(3, 2))
    assert caught.value.index == 1
    with pytest.raises(BufferEmpty, match="element 1"):
        buffer.divide(x, Ratio(2, 3))
    assert x.tolist() == [1, INT64_MAX] and contents(buffer) == [0, 0]


def test_both_buffers_stay_within_n_ulp_of_the_real_product():
    x, y = large_vector(50), large_vector(50)
    real = [Fraction(value) for value in x.tolist()]
    words, bignums, ratio = InformationBuffer(50), BignumBuffer(50), Ratio(58982, 65536)
    for _ in range(20):
        words.multiply(x, ratio)
        bignums.multiply(y, ratio)
        real = [value * ratio.n / ratio.d for value in real]
    # n ulp from each step, shrunk by those after it: less than n * d / (d - n)
    most = ratio.n * ratio.d / (ratio.d - ratio.n)
    for column in (x, y):
        assert all(abs(a - b) < most for a, b in zip(column.tolist(), real, strict=True))


# Planted faults: the checks above must catch each of them.


class ForgetsOrder(InformationBuffer):
    """Divides the chunks from first to last."""

    __slots__ = ()

    def divide(self, x, ratio, lo=0):
        for start in range(0, len(x), module.CHUNK):
            part = slice(start, start + module.CHUNK)
            super().divide(x[part], ratio, lo + start)


class DropsAWord(InformationBuffer):
    """Loses the oldest word of a segment when it seals it."""

    __slots__ = ()

    def divide(self, x, ratio, lo=0):
        sealed = self._tail.sealed
        sealed[:] = [segment >> 16 << 16 for segment in sealed]
        super().divide(x, ratio, lo)


class WastesBits(InformationBuffer):
    """Spills a word too many now and then, as a marker would."""

    __slots__ = ()

    def multiply(self, x, ratio, lo=0):
        super().multiply(x, ratio, lo)
        if self.heads[0] % 64 == 0:
            self._tail.reserve(1)
            self._tail.count += 1


@pytest.mark.parametrize("faulty", [ForgetsOrder, DropsAWord])
def test_a_planted_fault_is_caught_by_the_round_trip(faulty):
    with small_segments():
        check_round_trip(InformationBuffer(20), large_vector(20), [Ratio(1, 1000)] * 20)
        with pytest.raises((AssertionError, BufferEmpty)):
            check_round_trip(faulty(20), large_vector(20), [Ratio(1, 1000)] * 20)


def test_a_planted_waste_is_caught_by_the_slope():
    with pytest.raises(AssertionError):
        check_slope(WastesBits(1000), large_vector(1000), Ratio(99, 100), 10_000)


def test_a_planted_fault_in_the_kernel_is_caught_by_the_round_trip():
    def forgets_a_spill(x, heads, ratios, words, count):
        return max(kernel.multiply_by(x, heads, ratios, words, count) - 1, 0)

    planted = mock.Mock(wraps=kernel)
    planted.multiply_by = forgets_a_spill
    with mock.patch.object(_ext, "kernel", planted), pytest.raises((AssertionError, BufferEmpty)):
        check_round_trip(InformationBuffer(20), large_vector(20), [Ratio(1, 1000)] * 20)


def test_a_tail_is_a_stack():
    with small_segments(chunk=4):
        tail, model = Tail(), []
        for size in (3, 4, 4, 4, 4, 4, 4, 1, 4):
            tail.reserve(size)
            tail.open[tail.count : tail.count + size] = range(len(model), len(model) + size)
            tail.count += size
            model += range(len(model), len(model) + size)
        while model:
            tail.require(2)
            tail.count -= 1
            assert tail.open[tail.count] == model.pop() and tail.words == len(model)
