"""Factors become ratios: as written, never 1 for what is not 1, or refused."""

import pickle
from fractions import Fraction

import gmpy2
import numpy as np
import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from revgrad._ext import kernel
from revgrad._ext.reference import D_MAX, WORD, usable
from revgrad.errors import RatioRefused
from revgrad.ratio import D_FAST, TOLERANCE, Ratio

NEAR_ONE = 1 - 2.0**-23  # nearer factors may be refused
unit_floats = st.floats(0, 1, exclude_min=True) | st.floats(-23, 0).map(lambda k: 1 - 2.0**k / 2)
unit_floats = unit_floats.filter(lambda f: 0 < f <= NEAR_ONE or f == 1)
simple = st.integers(1, D_FAST).flatmap(lambda d: st.tuples(st.integers(1, d), st.just(d)))
narrow_floats = st.floats(0, 1, exclude_min=True, width=32) | st.integers(1, 999_999).map(
    lambda k: np.float32(k / 10**6)
)


def as_written(factor):
    """The simplest n/d that the rule asks for, found another way; None where there is none."""
    if isinstance(factor, (np.float16, np.float32)):
        written = Fraction(np.format_float_positional(factor, unique=True, trim="-"))
        return written if written.denominator <= D_FAST else None
    nearest = Fraction(float(factor)).limit_denominator(D_FAST)
    return nearest if nearest and float(nearest) == factor else None


def fraction(ratio):
    return Fraction(ratio.n, ratio.d)


@pytest.mark.parametrize(
    ("factor", "n", "d"),
    [
        (0.9, 9, 10),
        (np.float32(0.9), 9, 10),
        (np.float16(0.9), 9, 10),
        (np.array(0.9, np.float32), 9, 10),
        (0.999, 999, 1000),
        (np.float32(0.999), 999, 1000),
        (1 / 3, 1, 3),
        (np.float32(1 / 3), 21845, 65536),
        (0.5, 1, 2),
        (1 / 65536, 1, 65536),
        (65535 / 65536, 65535, 65536),
        (65520 / 65521, 65520, 65521),
        (0.98765432198, 64727, 65536),
        (1, 1, 1),
        (1.0, 1, 1),
        (np.float32(1), 1, 1),
        (np.int64(1), 1, 1),
        # 1 - rate * decay of AdamW, 3e-4 * 0.01
        (0.999997, 333332, 333333),
        (1 - 1e-5, 99999, 100000),
        (Fraction(2, 3), 2, 3),
        (Fraction(10**30 - 1, 10**30), 10**30 - 1, 10**30),
        (gmpy2.mpq(999, 1000), 999, 1000),
    ],
)
def test_a_factor_is_taken_as_written(factor, n, d):
    assert Ratio.of(factor) == Ratio(n, d)


@given(simple)
@example((1, 1))
@example((1, D_FAST))
@example((D_FAST - 1, D_FAST))
def test_every_simple_ratio_survives_float64(pair):
    written = Fraction(*pair)
    assert fraction(Ratio.of(pair[0] / pair[1])) == fraction(Ratio.of(written)) == written


@given(unit_floats)
@example(1 - 2.0**-16)
@example(1 - 2.0**-17)
@example(5e-324)
@example(NEAR_ONE)
def test_one_minus_the_factor_is_kept(factor):
    ratio = Ratio.of(factor)
    assert usable(ratio.n, ratio.d) and ratio.narrow and ratio.d <= D_MAX
    assert (ratio.n == ratio.d) == (factor == 1)
    missed = abs(fraction(ratio) - Fraction(factor))
    # a hair for the float64 in which the rule is evaluated
    assert missed <= Fraction(TOLERANCE) * (1 - Fraction(factor)) * (1 + Fraction(1, 10**9))


@given(st.one_of(unit_floats, simple.map(lambda pair: pair[0] / pair[1])))
@example(2 / 3)
@example(1 / 65521)
def test_float64_takes_the_simplest_ratio_there_is(factor):
    ratio, written = Ratio.of(factor), as_written(factor)
    if written is None:
        assert ratio.value != factor or ratio.d > D_FAST
    else:
        assert ratio == Ratio(written.numerator, written.denominator)


@given(narrow_floats)
@example(np.float32(1 / 65536))
@example(np.float32(3 / 65536))
@example(np.float32(0.0078125))
@example(np.float32(1) - np.float32(2.0**-24))
def test_narrow_floats_are_taken_as_printed(factor):
    for given_factor in (np.float32(factor), np.float16(factor)):
        assume(given_factor > 0)
        written = as_written(given_factor)
        if written is not None:
            assert Ratio.of(given_factor) == Ratio(written.numerator, written.denominator)


@given(st.lists(unit_floats | st.sampled_from([0.9, 0.99, 1.0]), max_size=20))
def test_an_array_is_snapped_element_by_element(factors):
    for dtype in (np.float64, np.float32):
        array = np.array(factors, dtype)
        array = array[(array > 0) & ((array <= NEAR_ONE) | (array == 1))]
        ratio = Ratio.of(array)
        assert ratio.n.dtype == ratio.d.dtype == np.int64 and ratio.n.shape == array.shape
        ones = [Ratio.of(factor) for factor in array]
        assert ratio.n.tolist() == [one.n for one in ones]
        assert ratio.d.tolist() == [one.d for one in ones]


def test_large_arrays_keep_shape_and_order():
    factors = np.random.default_rng(0).choice([0.9, 0.25, 1 / 3, 0.123456789], (40, 50))
    ratio = Ratio.of(factors)
    assert ratio.n.shape == (40, 50)
    assert np.abs(ratio.value - factors).max() < 2.0**-17
    assert ratio.n[3, 4] == Ratio.of(factors[3, 4]).n
    assert Ratio.of(np.ones((0, 3))).n.shape == (0, 3)


@pytest.mark.parametrize(
    ("factor", "n"), [(0.9, 58983), (0.5, 32769), (1.0, 65536), (1e-9, 1), (Fraction(9, 10), 58983)]
)
def test_truncated_rounding_is_that_of_2015(factor, n):
    assert Ratio.of(factor, rounding="truncated") == Ratio(n, 65536)


@pytest.mark.parametrize("factor", [0.9, Fraction(9, 10), np.float32(0.9), np.array([0.9, 0.5])])
def test_statements_read_a_truncated_factor_as_it_was_given(factor):
    ratio = Ratio.of(factor, "truncated")
    wanted = np.asarray(factor, np.float64)
    for same in (ratio, pickle.loads(pickle.dumps(ratio)), ratio.inverse.inverse):
        np.testing.assert_allclose(same.value, wanted, rtol=1e-15)
        assert np.all(same.value != same.n / same.d)
    np.testing.assert_allclose(ratio.inverse.value, 1 / wanted, rtol=1e-15)


def test_rows_of_truncated_factors_keep_what_was_given():
    ratio = Ratio.of(np.array([[0.9, 0.8], [0.7, 0.6]]), "truncated")
    assert [row.value.tolist() for row in ratio.rows] == [[0.9, 0.8], [0.7, 0.6]]
    assert [row.inverse.inverse.n.tolist() for row in ratio.rows] == ratio.n.tolist()


def test_truncated_rounding_of_arrays():
    assert Ratio.of(np.array([0.9, 0.5, 1.0]), "truncated").n.tolist() == [58983, 32769, 65536]


@pytest.mark.parametrize("factor", [0.0, -0.5, np.nan, np.inf, -np.inf, 1.0000001, 2, 0, -1])
def test_factors_out_of_the_interval_are_refused(factor):
    for came in (factor, np.float32(factor), np.array([0.9, factor])):
        with pytest.raises(RatioRefused, match=r"Stored\(\) or Unrolled\(\)"):
            Ratio.of(came)
    if np.isfinite(factor):
        with pytest.raises(RatioRefused):
            Ratio.of(Fraction(factor))


@pytest.mark.parametrize("factor", [1 - 2.0**-53, 1 - 2.0**-30, 1 - 1e-8])
def test_factors_too_near_one_are_refused_not_made_one(factor):
    with pytest.raises(RatioRefused, match="too near 1"):
        Ratio.of(factor)
    with pytest.raises(RatioRefused, match="too near 1"):
        Ratio.of(np.array([0.9, factor]))


@pytest.mark.parametrize("factor", ["0.9", None, True, 1j, np.array(["a"]), np.array([None])])
def test_what_is_no_real_number_is_a_type_error(factor):
    with pytest.raises(TypeError, match="a factor is a real number"):
        Ratio.of(factor)


@pytest.mark.skipif(np.dtype(np.longdouble).itemsize == 8, reason="longdouble is float64 here")
def test_longdouble_is_refused_lest_it_become_one():
    with pytest.raises(TypeError, match="at most float64"):
        Ratio.of(np.longdouble(1) - np.longdouble(2) ** -60)


def test_an_unknown_rounding_is_named():
    with pytest.raises(ValueError, match="'up'"):
        Ratio.of(0.9, rounding="up")


@pytest.mark.parametrize("pair", [(0, 1), (1, 0), (-1, 2), (1, -2)])
def test_ratios_of_what_is_not_positive_are_refused(pair):
    with pytest.raises(RatioRefused, match="at least 1"):
        Ratio(*pair)
    with pytest.raises(RatioRefused, match="at least 1"):
        Ratio(np.array([1, pair[0]]), np.array([1, pair[1]]))


def test_ratios_of_other_types_and_shapes_are_refused():
    with pytest.raises(TypeError, match="integers"):
        Ratio(0.5, 1)
    with pytest.raises(TypeError, match="integers"):
        Ratio(np.ones(2), np.ones(2))
    with pytest.raises(ValueError, match="shapes"):
        Ratio(np.ones(2, int), np.ones(3, int))
    with pytest.raises(ValueError, match="shapes"):
        Ratio(1, np.ones(3, int))


@given(simple)
def test_value_inverse_and_equality(pair):
    ratio = Ratio(*pair)
    assert ratio.value == pair[0] / pair[1]
    assert ratio.inverse == Ratio(pair[1], pair[0]) and ratio.inverse.inverse == ratio
    assert hash(ratio) == hash(Ratio(*pair)) and ratio != Ratio(pair[0], pair[1] + 1)
    assert ratio != pair and Ratio(2 * pair[0], 2 * pair[1]) != ratio
    assert Ratio.of(ratio) is ratio and pickle.loads(pickle.dumps(ratio)) == ratio
    many = Ratio(np.array([pair[0]]), np.array([pair[1]]))
    assert many.value.tolist() == [ratio.value] and many.inverse.inverse == many != ratio


def test_a_ratio_cannot_be_changed():
    n = np.array([1, 2])
    ratio = Ratio(n, np.array([3, 3]))
    n[0] = 7
    assert ratio.n.tolist() == [1, 2]
    with pytest.raises(ValueError, match="read-only"):
        ratio.n[0] = 7
    with pytest.raises(AttributeError):
        ratio.n = n
    with pytest.raises(TypeError):
        hash(ratio)


def test_columns_are_made_once_and_a_copy_makes_its_own():
    ratio = Ratio.of(np.array([0.9, 0.25]))
    columns = ratio.columns_in(kernel)
    assert ratio.columns_in(kernel) is columns and ratio.parts[0] is ratio
    assert ratio.value is ratio.value and not ratio.value.flags.writeable
    twin = pickle.loads(pickle.dumps(ratio))
    assert twin == ratio and twin.columns_in(kernel) is not columns
    whole = Ratio(np.array([3, 4]), np.array([3, 4]))
    assert whole.parts == (None, None) and Ratio(7, 7).parts == (None, None)


@pytest.mark.parametrize(
    ("n", "d", "narrow"),
    [
        (1, 1, True),
        (1, WORD, True),
        (1, WORD + 1, False),
        (256, D_MAX, True),
        (255, D_MAX, False),
        (D_MAX, D_MAX, True),
        (D_MAX, D_MAX + 1, False),
        (3, 2, False),
        (2**62, 2**63 - 1, False),
    ],
)
def test_narrow_says_what_a_head_can_hold(n, d, narrow):
    assert Ratio(n, d).narrow is narrow
    assert Ratio(np.array([1, n]), np.array([1, d])).narrow is narrow


@given(hnp.arrays(np.float64, 5, elements=st.floats(2**-30, 1 - 2**-20)))
def test_binary_rounding_is_near_and_never_one(factors):
    ratio = Ratio.of(factors, "binary")
    assert np.all((ratio.d & (ratio.d - 1) == 0) | (ratio.n == ratio.d - 1))
    assert np.all(np.abs(ratio.value - factors) <= 1e-3 * (1 - factors))
    assert np.all(ratio.value < 1)
    assert Ratio.of(np.ones(3), "binary") == Ratio(np.ones(3, int), np.ones(3, int))
    assert Ratio.of(0.3, "binary") == Ratio(19661, 2**16)


def test_binary_rounding_refuses_what_is_too_near_one():
    with pytest.raises(RatioRefused, match="too near 1"):
        Ratio.of(np.array([0.5, 1 - 2**-40]), "binary")
