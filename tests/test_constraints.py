"""Maps onto bounded sets: within them everywhere, undone by their inverse, differentiable."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

import revgrad as rg
from revgrad.testing import check_grads

MAPS = {"positive": rg.positive, "unit_interval": rg.unit_interval, "simplex": rg.simplex}
reals = arrays(
    np.float64, st.tuples(st.integers(1, 3), st.integers(1, 4)), elements=st.floats(-20, 20)
)


@pytest.mark.parametrize("constraint", MAPS.values(), ids=MAPS)
@given(reals)
def test_values_lie_in_the_set_and_come_back(constraint, raw):
    values = constraint(raw)
    assert np.all(constraint.contains(values))
    again = constraint(constraint.inverse(values))
    np.testing.assert_allclose(again, values, rtol=1e-6)


@pytest.mark.parametrize("constraint", MAPS.values(), ids=MAPS)
def test_derivatives(constraint):
    check_grads(constraint, (np.array([[0.3, -1.2, 2.0]]),))


def test_large_numbers_do_not_overflow():
    ends = np.array([-800.0, 800.0])
    assert rg.unit_interval(ends).tolist() == [0.0, 1.0]
    assert rg.simplex(ends).tolist() == [0.0, 1.0]


def test_trees_keep_their_shape():
    tree = {"rate": 0.1, "decay": [np.array([0.5, 2.0])]}
    again = rg.positive(rg.positive.inverse(tree))
    assert again["rate"] == pytest.approx(0.1) and again["decay"][0].shape == (2,)


@pytest.mark.parametrize(
    ("constraint", "value"),
    [(rg.positive, -1.0), (rg.positive, 0.0), (rg.unit_interval, 1.0), (rg.simplex, [0.5, 0.6])],
)
def test_values_outside_are_refused_with_their_path(constraint, value):
    with pytest.raises(ValueError, match=rf"{constraint.name}.inverse: values\['a'\].*wanted"):
        constraint.inverse({"a": np.array(value)})


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_dtype_stays(dtype):
    for constraint in MAPS.values():
        assert constraint(np.array([0.1, 0.2], dtype)).dtype == dtype
