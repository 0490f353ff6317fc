"""Fixed-point vectors: sums are exact, undone exactly, and what does not fit is refused."""

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from revgrad.buffer import BignumBuffer, InformationBuffer
from revgrad.errors import FixedOverflow, RatioRefused
from revgrad.fixed import FixedArray, fraction_bits_for
from revgrad.ratio import Ratio

INT64_MIN, INT64_MAX = -(2**63), 2**63 - 1

int64s = st.sampled_from([INT64_MIN, -1, 0, 1, INT64_MAX]) | st.integers(INT64_MIN, INT64_MAX)
fraction_bits = st.integers(0, 62)
small_reals = st.floats(-1, 1)


@st.composite
def fixed_arrays(draw, values=int64s):
    return FixedArray(np.array(draw(st.lists(values, max_size=8)), np.int64), draw(fraction_bits))


def expected(real, bits):
    return round(Fraction(real) * 2**bits)


@given(st.lists(small_reals, max_size=8), fraction_bits)
@example([0.5, 1.5, -0.5, -1.5], 0)
def test_encode_rounds_to_the_nearest_ulp(reals, bits):
    fixed = FixedArray.encode(reals, bits)
    assert fixed.values.tolist() == [expected(real, bits) for real in reals]
    assert fixed.fraction_bits == bits


@given(fixed_arrays())
def test_decode_is_the_value_rounded(fixed):
    wanted = [float(value) * 2.0**-fixed.fraction_bits for value in fixed.values.tolist()]
    assert fixed.decode().tolist() == wanted
    assert fixed.decode().dtype == np.float64
    assert np.array_equal(fixed.decode(np.float32), np.array(wanted).astype(np.float32))


@given(fixed_arrays(st.integers(-(2**53), 2**53)))
def test_encode_undoes_decode_where_float64_holds_the_value(fixed):
    again = FixedArray.encode(fixed.decode(), fixed.fraction_bits)
    assert np.array_equal(again.values, fixed.values)


def test_decode_into_a_given_array():
    fixed = FixedArray.encode([[1.0, 2.0], [3.0, 4.0]], 10)
    out = np.zeros((2, 2), np.float32)
    assert fixed.decode(out=out) is out and out.tolist() == [[1, 2], [3, 4]]
    with pytest.raises(TypeError, match="float16"):
        fixed.decode(np.float16)
    with pytest.raises(TypeError, match="contiguous"):
        fixed.decode(out=np.zeros((2, 4))[:, ::2])
    with pytest.raises(ValueError, match="equal lengths"):
        fixed.decode(out=np.zeros(3))


@given(st.data(), fraction_bits, st.sampled_from([np.float32, np.float64]))
def test_subtract_is_the_undo_of_add(data, bits, dtype):
    values = data.draw(st.lists(st.integers(-(2**62), 2**62 - 1), min_size=1, max_size=8))
    delta = data.draw(st.lists(small_reals, min_size=len(values), max_size=len(values)))
    fixed, delta = FixedArray(np.array(values), bits), np.array(delta, dtype)
    fixed.add(delta)
    wanted = [old + expected(float(real), bits) for old, real in zip(values, delta, strict=True)]
    assert fixed.values.tolist() == wanted
    fixed.subtract(delta)
    assert fixed.values.tolist() == values
    fixed.add(delta[0])
    assert fixed.values.tolist() == [old + expected(float(delta[0]), bits) for old in values]


def test_delta_may_be_a_scalar_or_of_any_shape_layout_and_real_dtype():
    fixed = FixedArray.encode(np.zeros(6), 8)
    delta = np.asfortranarray(np.arange(6.0).reshape(2, 3))
    fixed.add(delta)
    assert fixed.decode().tolist() == [0, 1, 2, 3, 4, 5]
    fixed.subtract(delta.astype(np.float16))
    fixed.add(np.arange(12)[::2])
    fixed.subtract(np.arange(6) * 2.0)
    fixed.add(1)
    fixed.add(np.float32(0.5))
    assert fixed.decode().tolist() == [1.5] * 6
    with pytest.raises(ValueError, match="5 reals for 6 values"):
        fixed.add(np.zeros(5))
    with pytest.raises(ValueError, match="1 reals for 6 values"):
        fixed.add(np.zeros(1))
    with pytest.raises(TypeError, match="complex"):
        fixed.add(1j)
    FixedArray.encode([], 8).add(3.0)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 1e300, 2.0**11, -(2.0**12)])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_overflow_names_the_element_and_changes_nothing(bad, dtype):
    start = np.array([0, 1, 2, 3])
    with np.errstate(over="ignore"):
        delta = np.array([0.5, 0.25, bad, np.nan]).astype(dtype)
    for function in (FixedArray.add, FixedArray.subtract):
        fixed = FixedArray(start.copy(), 52)
        with pytest.raises(FixedOverflow, match=r"element 2.*52 fraction bits hold") as caught:
            function(fixed, delta)
        assert caught.value.index == 2 and fixed.values.tolist() == start.tolist()
    with pytest.raises(FixedOverflow, match="element 2") as caught:
        FixedArray.encode(delta, 52)
    assert caught.value.index == 2


def test_overflow_of_the_sum_at_the_ends_of_the_range():
    fixed = FixedArray(np.array([INT64_MAX, INT64_MIN]), 0)
    for delta, index in (([1, 0], 0), ([0, -1], 1)):
        with pytest.raises(FixedOverflow) as caught:
            fixed.add(delta)
        assert caught.value.index == index
        with pytest.raises(FixedOverflow):
            fixed.subtract(np.negative(delta))
    assert fixed.values.tolist() == [INT64_MAX, INT64_MIN]
    fixed.subtract([2.0**62, -(2.0**62)])
    assert fixed.values.tolist() == [2**62 - 1, -(2**62)]


@given(
    st.lists(st.integers(-(2**60), 2**60), max_size=6),
    st.integers(1, 2**16).flatmap(lambda d: st.tuples(st.integers(-(-d // 2**16), d), st.just(d))),
    st.sampled_from([InformationBuffer, BignumBuffer]),
)
def test_scale_is_within_n_ulp_and_unscale_is_the_undo(values, pair, make):
    fixed, ratio, buffer = FixedArray(np.array(values, np.int64), 52), Ratio(*pair), make(9)
    start = buffer.digest()
    fixed.scale(ratio, buffer, 2)
    for old, new in zip(values, fixed.values.tolist(), strict=True):
        assert abs(new * ratio.d - old * ratio.n) < ratio.n * ratio.d
    fixed.unscale(ratio, buffer, 2)
    assert fixed.values.tolist() == values and buffer.digest() == start


def test_wide_ratios_need_fraction_bits():
    wide = Ratio.of(Fraction(2**30 - 1, 2**30))
    fixed, buffer = FixedArray.encode([1.0], 54), BignumBuffer(1)
    fixed.scale(wide, buffer)
    assert abs(fixed.decode()[0] - wide.value) < 2.0**-24
    fixed.unscale(wide, buffer)
    assert fixed.decode().tolist() == [1.0]
    for ratio in (wide, Ratio(np.array([wide.n]), np.array([wide.d]))):
        with pytest.raises(RatioRefused, match="53 fraction bits"):
            FixedArray.encode([1.0], 53).scale(ratio, buffer)
    with pytest.raises(RatioRefused, match="BignumBuffer"):
        fixed.scale(wide, InformationBuffer(1))
    with pytest.raises(TypeError, match=r"Ratio\.of"):
        fixed.scale(0.9, buffer)


@given(st.lists(st.integers(-(2**53), 2**53), max_size=8), st.floats(-64, 64))
@example([3, -3, 1], 0.5)
@example([3, -3, 1], 0.0)
def test_round_scale_rounds_the_product(values, factor):
    fixed = FixedArray(np.array(values, np.int64), 10)
    fixed.round_scale(factor)
    assert fixed.values.tolist() == [round(float(value) * factor) for value in values]


def test_round_scale_by_one_is_exact_and_factors_may_be_an_array():
    fixed = FixedArray(np.array([INT64_MAX, INT64_MIN, 2**60 + 1, -7]), 10)
    fixed.round_scale(1.0)
    fixed.round_scale(np.array([1, 1, 1, -2], np.float32))
    assert fixed.values.tolist() == [INT64_MAX, INT64_MIN, 2**60 + 1, 14]


@pytest.mark.parametrize("factor", [np.nan, np.inf, 1e300, 3.0, -1.0])
def test_round_scale_refuses_what_leaves_the_range(factor):
    start = [5, INT64_MIN]
    fixed = FixedArray(np.array(start), 10)
    with pytest.raises(FixedOverflow) as caught:
        fixed.round_scale([2.0, factor])
    assert caught.value.index == 1 and fixed.values.tolist() == start
    with pytest.raises(ValueError, match="3 reals"):
        fixed.round_scale(np.ones(3))


@given(
    st.floats(0, 1e30) | st.integers(-60, 50).map(lambda k: 2.0**k),
    st.integers(0, 20),
    fraction_bits,
)
@example(0.0, 8, 60)
@example(1.0, 8, 60)
@example(math.nextafter(1.0, 0), 8, 62)
@example(5e-324, 0, 62)
def test_fraction_bits_are_the_most_that_fit(largest, headroom, at_most):
    fits = lambda bits: Fraction(largest) * 2 ** (headroom + bits) <= INT64_MAX
    if not fits(0):
        with pytest.raises(FixedOverflow, match="headroom"):
            fraction_bits_for(largest, headroom, at_most)
        return
    bits = fraction_bits_for(largest, headroom, at_most)
    assert fits(bits) and (bits == at_most or not fits(bits + 1))


def test_fraction_bits_refuse_what_has_none():
    for largest in (np.nan, np.inf, -1.0):
        with pytest.raises(FixedOverflow, match="finite"):
            fraction_bits_for(largest)
    for at_most in (-1, 121):
        with pytest.raises(ValueError, match="pass 0 to 120"):
            fraction_bits_for(1.0, at_most=at_most)
    assert fraction_bits_for(np.float32(0.25)) == 56 and fraction_bits_for(0) == 60


def test_views_share_memory_and_copies_do_not():
    fixed = FixedArray.encode(np.arange(5.0), 4)
    twin = fixed.copy()
    fixed.view(1, 3).add(10.0)
    assert fixed.decode().tolist() == [0, 11, 12, 3, 4]
    assert twin.decode().tolist() == [0, 1, 2, 3, 4]
    assert fixed.view(1, 3).fraction_bits == 4 and len(fixed.view(2, 2).values) == 0
    with pytest.raises(AttributeError):
        fixed.colour = 1


def test_values_and_bits_are_checked():
    for values in (np.zeros(2), np.zeros((2, 2), np.int64), np.zeros(4, np.int64)[::2]):
        with pytest.raises(TypeError, match="contiguous int64 vector"):
            FixedArray(values, 8)
    for bits in (-1, 121):
        with pytest.raises(ValueError, match="pass 0 to 120"):
            FixedArray(np.zeros(2, np.int64), bits)
        with pytest.raises(ValueError, match="pass 0 to 120"):
            FixedArray.encode([1.0], bits)
    with pytest.raises(TypeError, match="real numbers"):
        FixedArray.encode(["a"], 8)
