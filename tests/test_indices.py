"""Integer inputs of compiled functions: indices and labels are replayed with their new values."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import LAYOUTS, bits, lay_out, random_array

import revgrad as rg
from revgrad.compiled import gradient_with_products
from revgrad.nn import embedding, softmax_cross_entropy
from revgrad.testing import check_grads

ROWS, COLUMNS = 7, 5

# x of (ROWS, COLUMNS), i and j of one shape and below COLUMNS.
INDEXINGS = {
    "x[i]": lambda x, i, j: x[i],
    "x[:, j]": lambda x, i, j: x[:, j],
    "x[i, j]": lambda x, i, j: x[i, j],
    "x[i, 1:, None]": lambda x, i, j: x[i, 1:, None],
    "x[2, j]": lambda x, i, j: x[2, j],
    "x[i][..., ::-1]": lambda x, i, j: x[i][..., ::-1],
    "x[arange, j]": lambda x, i, j: x[np.arange(ROWS)[:, None], np.ravel(j)],
    "x[i + range]": lambda x, i, j: x[np.ravel(i)[0] // 2 + np.arange(3)],
    "x[argsort]": lambda x, i, j: x[np.argsort(np.ravel(i), kind="stable")],
    "take": lambda x, i, j: np.take(x, i),
    "take rows": lambda x, i, j: np.take(x, i, axis=0),
    "take columns": lambda x, i, j: np.take(x, j, axis=-1),
    "along axis": lambda x, i, j: np.take_along_axis(x, np.reshape(i, (1, -1))[:, :1], 0),
    "embedding": lambda x, i, j: embedding(x, i),
}
kinds = st.sampled_from([np.int64, np.int32, np.uint8])
index_shapes = st.sampled_from([(), (1,), (4,), (2, 3)])


def indices(seed, shape, kind):
    low = 0 if kind is np.uint8 else -COLUMNS
    rng = np.random.default_rng(seed)
    return [np.asarray(rng.integers(low, COLUMNS, shape), kind)[()] for _ in range(2)]


@settings(deadline=None)
@given(st.sampled_from([*INDEXINGS]), st.sampled_from(LAYOUTS), index_shapes, kinds, st.booleans())
def test_replayed_indices_change_no_bit(name, layout, shape, kind, captured):
    x, index = lay_out(random_array((ROWS, COLUMNS), np.float32), layout), INDEXINGS[name]
    f = (lambda w, i, j: index(x, i, j) * w) if captured else (lambda w, i, j: index(w, i, j))
    loss = lambda w, i, j: np.sum(np.tanh(f(w, i, j)) ** 2)
    compiled, both = rg.compile(f), rg.compile(rg.value_and_grad(loss))
    w = np.float32(0.5) if captured else x
    for seed in range(3):
        i, j = indices(seed, shape, kind)
        assert bits(compiled(w, i, j)) == bits(f(w, i, j))
        assert bits(both(w, i, j)) == bits(rg.value_and_grad(loss)(w, i, j))
        pulled = rg.grad(rg.compile(loss))(w, i, j)
        np.testing.assert_allclose(pulled, rg.grad(loss)(w, i, j), rtol=1e-5, atol=1e-6)
    assert len(compiled.entries) == len(both.entries) == 1


@pytest.mark.parametrize("captured", [False, True])
def test_rows_of_a_large_array_are_taken_into_one_buffer(captured):
    x = random_array((500, 784), np.float32)
    f = (lambda w, i: np.tanh(x[i])) if captured else (lambda w, i: np.tanh(w[i]))
    compiled = rg.compile(f)
    for seed in range(3):
        i = np.random.default_rng(seed).integers(-500 if seed == 2 else 0, 500, 100)
        assert bits(compiled(x, i)) == bits(f(x, i))
    for bad in (500, -501):
        i[3] = bad
        for g in (f, compiled):
            with pytest.raises(IndexError, match=f"index {bad} is out of bounds for axis 0"):
                g(x, i)
    assert "gather(" in next(iter(compiled.entries.values())).replay().source[0]
    i[3] = 0
    assert bits(compiled(x, i)) == bits(f(x, i))


def test_a_bad_index_is_refused_as_numpy_does():
    f = rg.compile(lambda x, i: np.take(x[i] * 2, 1))
    assert f(np.arange(4.0), np.array([0, 1])) == 2.0
    with pytest.raises(IndexError, match="index 4 is out of bounds"):
        f(np.arange(4.0), np.array([0, 4]))


def test_a_row_by_a_traced_number_moves():
    """x[i] is a view: a replay may neither keep it nor make it beforehand."""
    x = random_array((4, 3))
    f = rg.compile(lambda x, i: (x[i] + 0.0, np.tanh(x)[i]))
    for i in range(4):
        assert bits(f(x, np.int64(i))) == bits((x[i] + 0.0, np.tanh(x)[i]))


@pytest.mark.parametrize("captured", [False, True])
@pytest.mark.parametrize("batch", [5, 100])
def test_two_phases_take_new_batches(captured, batch):
    images, labels = random_array((200, 200), np.float32), np.arange(200) % 3

    def loss(params, hyper, batch, *data):
        x, y = data or (images, labels)
        logits = np.tanh(x[batch] @ params["w"]) @ params["v"][np.array([0, 2, 1, 1])]
        return softmax_cross_entropy(logits, y[batch]) + hyper * np.sum(params["w"] ** 2)

    params = {"w": random_array((200, 4), np.float32), "v": random_array((3, 3), np.float32, 1)}
    data, hyper = () if captured else (images, labels), 0.1
    phases = gradient_with_products(loss, params, hyper, np.arange(batch), *data)
    direction = [params["v"], params["w"]]
    for seed in range(3):
        b = np.random.default_rng(seed).integers(0, 200, batch)
        g, then = phases.start([params["v"], params["w"], hyper, b, *data])
        expected = rg.grad(loss, (0, 1))(params, hyper, b, *data)
        assert bits(list(g)) == bits([expected[0]["v"], expected[0]["w"]])
        step = lambda p, h, b=b: rg.grad(loss)(p, h, b, *data)
        _, pull = rg.vjp(step, params, hyper)
        wanted, h = pull({"v": direction[0], "w": direction[1]})
        found = then(direction)
        pairs = zip(found, [wanted["v"], wanted["w"], h], strict=True)
        for a, e in pairs:
            np.testing.assert_allclose(a, e, rtol=1e-3, atol=1e-5)


def test_captured_data_may_lie_in_trees_objects_and_inner_functions():
    class Data:
        def __init__(self, x):
            self.x = x

        def rows(self, i):
            return self.x[i] * 1.5

    x, i = random_array((6, 2)), np.array([4, -1])
    data, pair, by_default = Data(x), {"x": (x,)}, lambda i, x=x: x[i] * 1.5
    inner = lambda i: pair["x"][0][i] * 1.5
    for f in (data.rows, lambda i: data.rows(i), inner, lambda i: inner(i), by_default):
        for g in (f, rg.compile(f)):
            assert bits(rg.compile(g)(i)) == bits(x[i] * 1.5)


@pytest.mark.parametrize(
    ("i", "axis"), [([[2, 2], [0, -1]], 1), ([[2, 2], [0, -1]], -1), ([[1, 0, 1]], 0), ([3], None)]
)
def test_take_along_axis_has_both_modes(i, axis):
    take = lambda x: np.take_along_axis(x, np.array(i), axis=axis)
    x = random_array((2, 3))
    assert bits(rg.vjp(take, x)[0]) == bits(take(x))
    check_grads(take, (x,), order=2)


@pytest.mark.parametrize(
    ("f", "words"),
    [
        (lambda x, i: x[i > 1], "mask.*np.where"),
        (lambda x, i: x[i * 1.0], "floats.*integers"),
        (lambda x, i: np.take(x, i * 1.0), "np.take.*floats"),
        (lambda x, i: np.eye(3)[i], "make that array outside"),
        (lambda x, i: x[i[0] :], "range that moves"),
    ],
)
def test_what_cannot_be_an_index_is_refused(f, words):
    with pytest.raises(TypeError, match=words):
        rg.compile(f)(np.ones(3), np.array([0, 2]))
