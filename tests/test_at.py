"""at(x, index): changed copies."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from strategies import LAYOUTS, lay_out, random_array, shapes

import revgrad as rg
from revgrad.testing import ForeignArray, check_duality, check_grads

INDICES = shapes.flatmap(
    lambda shape: st.tuples(
        st.just(shape),
        hnp.basic_indices(shape, allow_newaxis=True, max_dims=5)
        | (hnp.integer_array_indices(shape) if shape and 0 not in shape else st.just(()))
        | hnp.arrays(bool, shape),
    )
)


@given(INDICES, st.sampled_from(LAYOUTS), st.sampled_from([np.float32, np.float64]))
def test_any_index_is_set_and_added_to(drawn, layout, dtype):
    shape, index = drawn
    x = lay_out(random_array(shape, dtype), layout)
    values = random_array(np.shape(x[index]), dtype, 1)
    kept, expected = np.array(x), np.array(x)
    expected[index] = values
    got = rg.at(x, index).set(values)
    assert got.dtype == dtype and np.array_equal(got, expected) and np.array_equal(x, kept)
    expected = np.array(x)
    np.add.at(expected, index, values)
    np.testing.assert_allclose(rg.at(x, index).add(values), expected, 1e-5, 1e-6)
    plain = np.ones_like(x)
    for change in (
        lambda x, v: rg.at(x, index).set(v),
        lambda x, v: rg.at(x, index).add(v),
        lambda x, v: rg.at(x, index).set(2.0) * np.sum(v),
        lambda x, v: rg.at(plain, index).set(v) + np.sum(x),
    ):
        check_duality(change, (x, values))


def test_derivatives_of_order_two():
    x, v = random_array((4, 3)), random_array((2, 3), seed=1)
    for index in (slice(1, 3), [0, 2], (np.array([0, 2]), slice(None))):
        check_grads(lambda x, v, i=index: rg.at(x * x, i).set(v * v * x[:2]), (x, v))
        check_grads(lambda x, v, i=index: rg.at(x * x, i).add(v * v * x[:2]), (x, v))


def test_of_equal_indices_the_last_is_set_and_all_are_added():
    values, cts = np.array([1.0, 2.0, 3.0]), np.array([10.0, 20.0])
    set_last = lambda v: rg.at(np.zeros(2), [0, 0, 1]).set(v)
    assert set_last(values).tolist() == [2, 3]
    assert rg.vjp(set_last, values)[1](cts)[0].tolist() == [0, 10, 20]
    add_all = lambda v: rg.at(np.zeros(2), [0, 0, 1]).add(v)
    assert add_all(values).tolist() == [3, 3]
    assert rg.vjp(add_all, values)[1](cts)[0].tolist() == [10, 10, 20]


def test_a_replay_has_the_same_bits_and_foreign_arrays_stay():
    f = lambda x, v: rg.at(rg.at(x * 2, [0, 2]).set(v), slice(1, 3)).add(v * v)
    x, v = random_array((4, 3)), random_array((2, 3), seed=1)
    compiled = rg.compile(f)
    for _ in range(2):
        assert compiled(x, v).tobytes() == f(x, v).tobytes()
    g = rg.grad(lambda x, v: np.sum(f(x, v) ** 2), (0, 1))
    for a, b in zip(rg.compile(g)(x, v), g(x, v), strict=True):
        assert a.tobytes() == b.tobytes()
    out, pullback = rg.vjp(f, ForeignArray(x), ForeignArray(v))
    assert isinstance(out, ForeignArray) and out.home.tobytes() == f(x, v).tobytes()
    assert all(isinstance(a, ForeignArray) for a in pullback(out))


def test_a_recording_takes_indices_as_inputs():
    def f(x, i, v):
        g = rg.grad(lambda x, v: np.sum(rg.at(rg.at(x, i).set(v), i).add(v * x[i]) ** 2), (0, 1))
        return g(x, v)

    x, v, compiled = random_array((4,)), random_array((3,), seed=1), rg.compile(f)
    for i in (np.array([0, 1, 1]), np.array([3, 3, 3])):
        for a, b in zip(compiled(x, i, v), f(x, i, v), strict=True):
            assert a.tobytes() == b.tobytes()


def test_a_traced_index_and_values_that_do_not_fit_are_refused():
    with pytest.raises(TypeError, match="a traced array of floats as index"):
        rg.grad(lambda x: np.sum(rg.at(x, x).set(1.0)))(np.ones(3))
    with pytest.raises(ValueError, match="shape"):
        rg.at(np.ones(3), slice(0, 2)).set(np.ones(3))
