"""The layers: values against plain loops, both modes to second order, bits, refusals."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import product
from typing import Any

import numpy as np
import optree
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

import revgrad as rg
from revgrad import grad, jvp, nn, vjp
from revgrad.rules import nn as rules
from revgrad.testing import ForeignArray, check_grads

NONE = (0, 0), (0, 0)
IDS = np.array([[2, 0, 2], [4, 2, -1]])
LABELS = np.array([1, 0, 3])


@dataclass(frozen=True, eq=False)
class Sample:
    """One way to call a function: on arrays of these shapes."""

    name: str
    call: Any
    shapes: tuple
    host: bool = False  # the call has NumPy arrays of its own

    def __str__(self):
        return self.name

    def arrays(self, dtype=np.float64):
        """Distinct entries in (-2, 2), none within 1e-2 of 0, where relu has its kink."""
        rng = np.random.default_rng(len(self.name))
        draw = lambda shape: rng.choice([-1, 1], shape) * rng.uniform(0.01, 2, shape)
        return tuple(np.asarray(draw(shape), dtype) for shape in self.shapes)


def lstm_shapes(inputs, hidden):
    return (inputs, 4 * hidden), (hidden, 4 * hidden), (4 * hidden,)


def gru_shapes(inputs, hidden):
    return (inputs, 3 * hidden), (hidden, 3 * hidden), (3 * hidden,), (3 * hidden,)


def lstm(xs, h, c, *weights):
    params = dict(zip(("input", "recurrent", "bias"), weights, strict=True))
    return nn.scan(nn.lstm_cell, params, (h, c), xs)


def gru(xs, h, *weights):
    params = dict(zip(("input", "recurrent", "bias", "recurrent_bias"), weights, strict=True))
    return nn.scan(nn.gru_cell, params, h, xs)


# (H, W, C), (kh, kw), O, stride, padding
GEOMETRIES = {
    "valid": ((4, 5, 2), (3, 2), 3, 1, "valid"),
    "same": ((4, 5, 2), (3, 2), 3, 1, "same"),
    "same and stride": ((5, 6, 1), (3, 3), 2, 2, "same"),
    "stride": ((6, 7, 2), (3, 2), 1, (2, 3), 0),
    "stride beyond the window": ((7, 7, 1), (2, 2), 2, 3, 1),
    "1x1": ((3, 2, 3), (1, 1), 2, 1, "valid"),
    "1x1 and stride": ((4, 5, 2), (1, 1), 2, 2, "valid"),
    "1x1 and padding": ((2, 2, 1), (1, 1), 1, 1, 2),
    "whole image": ((3, 4, 2), (3, 4), 2, 1, "valid"),
    "one pixel": ((1, 1, 2), (1, 1), 1, 1, "valid"),
    "more padding than window": ((2, 3, 1), (2, 2), 1, 2, (3, 2)),
    "four paddings": ((3, 4, 1), (2, 3), 2, 1, ((1, 0), (0, 2))),
    "rows left over": ((6, 6, 1), (2, 2), 1, (4, 5), "valid"),
}
POOLS = {
    "valid": ((4, 6, 2), 2, None, "valid"),
    "odd": ((5, 5, 1), 2, None, "valid"),
    "overlap": ((5, 4, 2), (3, 2), 1, "valid"),
    "same": ((5, 4, 2), 3, 2, "same"),
    "padding": ((4, 5, 1), 3, (2, 3), (1, 2)),
    "1x1": ((3, 2, 1), 1, None, "valid"),
    "stride beyond the window": ((7, 8, 1), 2, 3, ((1, 0), (0, 1))),
}


def conv_sample(name, n=2):
    size, window, o, stride, padding = GEOMETRIES[name]
    call = partial(nn.conv2d, stride=stride, padding=padding)
    return Sample(f"conv2d: {name}", call, ((n, *size), (*window, size[2], o), (o,)))


def pool_sample(function, name, n=2):
    size, window, stride, padding = POOLS[name]
    call = partial(function, window=window, stride=stride, padding=padding)
    return Sample(f"{function.__name__}: {name}", call, ((n, *size),))


def sums_to_its_part(x):
    """A softmax, of which a difference quotient can see something: its sum is 1."""
    return nn.softmax(x) * np.arange(1.0, x.shape[-1] + 1).astype(x.dtype)


CONVS = [conv_sample(name) for name in GEOMETRIES]
POOLINGS = [pool_sample(f, name) for f in (nn.max_pool, nn.avg_pool) for name in POOLS]
OTHERS = [
    Sample("dense", nn.dense, ((3, 4), (4, 2), (2,))),
    Sample("dense over two axes", nn.dense, ((2, 3, 4), (4, 2), (2,))),
    Sample("batch_norm", lambda *xs: nn.batch_norm(*xs)[0], ((4, 3), (3,), (3,))),
    Sample("batch_norm of images", lambda *xs: nn.batch_norm(*xs)[0], ((2, 3, 2, 2), (2,), (2,))),
    Sample(
        "batch_norm, not training",
        lambda x, s, b, m, v: nn.batch_norm(x, s, b, (m, v * v), train=False)[0],
        ((4, 3), (3,), (3,), (3,), (3,)),
    ),
    Sample("embedding", lambda table: nn.embedding(table, IDS), ((5, 3),), host=True),
    Sample("embedding of numbers", lambda table: nn.embedding(table, IDS), ((5,),), host=True),
    Sample("dropout", lambda x: nn.dropout(x, 0.5, (7, 3)), ((4, 5),)),
    Sample("lstm", lstm, ((3, 2, 4), (2, 3), (2, 3), *lstm_shapes(4, 3))),
    Sample("gru", gru, ((3, 2, 4), (2, 3), *gru_shapes(4, 3))),
    Sample("relu", nn.relu, ((3, 4),)),
    Sample("sigmoid", nn.sigmoid, ((3, 4),)),
    Sample("sigmoid of a number", nn.sigmoid, ((),)),
    Sample("softplus", nn.softplus, ((3, 4),)),
    Sample("gelu", nn.gelu, ((3, 4),)),
    Sample("logsumexp", nn.logsumexp, ((3, 4),)),
    Sample("logsumexp, axis 0", lambda x: nn.logsumexp(x, 0, keepdims=True), ((3, 4),)),
    Sample("log_softmax", nn.log_softmax, ((3, 4),)),
    Sample("softmax", sums_to_its_part, ((3, 4),), host=True),
    Sample("softmax_cross_entropy", nn.softmax_cross_entropy, ((3, 4), (3, 4))),
    Sample(
        "softmax_cross_entropy of labels",
        lambda x: nn.softmax_cross_entropy(x, LABELS),
        ((3, 4),),
        host=True,
    ),
    Sample("mean_squared_error", nn.mean_squared_error, ((3, 4), (3, 4))),
]
SAMPLES = CONVS + POOLINGS + OTHERS
ALL = pytest.mark.parametrize("sample", SAMPLES, ids=str)


def bits(tree):
    home = lambda x: np.asarray(getattr(x, "home", x))
    return [(x.dtype, x.shape, x.tobytes()) for x in map(home, optree.tree_leaves(tree))]


def batch_last(x):
    """The same image in the layers' own order of memory."""
    return rules.images(np.ascontiguousarray(np.transpose(x, (1, 3, 2, 0))))


# Laws.


@ALL
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_both_modes_to_second_order(sample, dtype):
    check_grads(sample.call, sample.arrays(dtype))


@ALL
def test_pull_backs_too_have_both_modes_to_second_order(sample):
    """Cotangents as arguments: what a third derivative, or a loss of a gradient, goes through."""
    args = sample.arrays()
    check_grads(lambda ct, *xs: vjp(sample.call, *xs)[1](ct), (sample.call(*args), *args))


@ALL
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_tracing_changes_no_bit(sample, dtype):
    f, args = sample.call, sample.arrays(dtype)
    once, ones = f(*args), optree.tree_map(np.ones_like, args)
    assert all(x.dtype == dtype for x in optree.tree_leaves(once))
    assert bits(f(*args)) == bits(once)
    assert bits(vjp(f, *args)[0]) == bits(once)
    assert bits(jvp(f, args, ones)[0]) == bits(once)
    assert bits(jvp(lambda *xs: vjp(f, *xs)[0], args, ones)[0]) == bits(once)
    pulled = vjp(f, *args)[1](once)
    nested = jvp(lambda *xs: vjp(f, *xs)[1](once), args, ones)[0]
    assert bits(nested) == bits(pulled)


@pytest.mark.parametrize("sample", [s for s in SAMPLES if not s.host], ids=str)
def test_foreign_arrays_are_never_converted(sample):
    args = sample.arrays()
    foreign = tuple(map(ForeignArray, args))
    out, pullback = vjp(sample.call, *foreign)
    pulled = pullback(out)
    leaves = optree.tree_leaves((out, pulled))
    assert all(isinstance(x, ForeignArray) for x in leaves)
    home, home_pullback = vjp(sample.call, *args)
    assert bits((out, pulled)) == bits((home, home_pullback(home)))


def test_foreign_ids_and_labels_are_never_converted():
    table = ForeignArray(np.arange(15.0).reshape(5, 3) / 7)

    def f(table):
        logits = nn.embedding(table, ForeignArray(LABELS))
        return nn.softmax_cross_entropy(logits, ForeignArray(LABELS % 3))

    def at_home(table):
        return nn.softmax_cross_entropy(nn.embedding(table, LABELS), LABELS % 3)

    assert bits(grad(f)(table)) == bits(grad(at_home)(table.home))


@pytest.mark.parametrize("sample", CONVS + POOLINGS, ids=str)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_order_of_memory_changes_no_bit(sample, dtype):
    x, *rest = sample.arrays(dtype)
    rest = rest[:1]  # without the bias, whose sum is NumPy's
    wide = np.repeat(x, 2, -1)[..., ::2]
    reversed_ = np.flip(np.flip(x).copy())
    out, pullback = vjp(sample.call, x, *rest)
    for other in (batch_last(x), np.asfortranarray(x), wide, reversed_):
        again, pull_again = vjp(sample.call, other, *rest)
        assert bits(again) == bits(out)
        for ct in (out, batch_last(out), np.ascontiguousarray(out)):
            assert bits(pull_again(ct)) == bits(pullback(out))


@pytest.mark.parametrize("sample", CONVS + POOLINGS, ids=str)
def test_an_empty_batch_is_an_empty_answer(sample):
    x, *rest = sample.arrays()
    out, pullback = vjp(sample.call, x[:0], *rest)
    assert out.shape == (0, *sample.call(x, *rest).shape[1:])
    dx, *others = pullback(out)
    assert dx.shape == (0, *x.shape[1:])
    assert not any(np.any(d) for d in others)


def test_other_layers_take_an_empty_batch():
    x, w = np.zeros((0, 3)), np.ones((3, 2))
    assert nn.dense(x, w).shape == (0, 2)
    assert nn.softmax_cross_entropy(x, x) == 0
    assert nn.softmax_cross_entropy(x, np.zeros(0, int)) == 0
    none = np.zeros((0, 2), int)
    assert not np.any(grad(lambda table: np.sum(nn.embedding(table, none)))(w))


# Convolution.


def conv_by_loops(x, w, b, stride, padding):
    (top, bottom), (left, right) = padding
    x = np.pad(x, ((0, 0), (top, bottom), (left, right), (0, 0)))
    kh, kw, _, o = w.shape
    rows, columns = rules.out_shape(x.shape[1:3], (kh, kw), stride, NONE)
    y = np.empty((len(x), rows, columns, o))
    for n, i, j in product(range(len(x)), range(rows), range(columns)):
        part = x[n, i * stride[0] : i * stride[0] + kh, j * stride[1] : j * stride[1] + kw]
        y[n, i, j] = np.einsum("hwc,hwco->o", part, w) + b
    return y


@pytest.mark.parametrize("name", GEOMETRIES)
@pytest.mark.parametrize("scratch", [1, 2**20])
def test_conv2d_is_a_sum_over_windows(name, scratch, monkeypatch):
    monkeypatch.setattr(rules, "SCRATCH", scratch)
    _, window, _, stride, padding = GEOMETRIES[name]
    x, w, b = conv_sample(name).arrays()
    at = nn._windows(x, window, stride, padding, "conv2d")
    wanted = conv_by_loops(x, w, b, **at)
    out, pullback = vjp(conv_sample(name).call, x, w, b)
    np.testing.assert_allclose(out, wanted, rtol=0, atol=1e-13)
    monkeypatch.setattr(rules, "SCRATCH", 2**20)
    for a, c in zip(pullback(out), vjp(conv_sample(name).call, x, w, b)[1](out), strict=True):
        np.testing.assert_allclose(a, c, rtol=0, atol=1e-12)


def test_same_padding_puts_the_odd_one_last():
    x = np.arange(4.0).reshape(1, 1, 4, 1)
    found = nn.conv2d(x, np.ones((1, 2, 1, 1)), padding="same")
    assert found[0, 0, :, 0].tolist() == [1, 3, 5, 3]
    y = nn.conv2d(np.ones((1, 7, 6, 1)), np.ones((3, 3, 1, 1)), stride=3, padding="same")
    assert y.shape == (1, 3, 2, 1)


@given(
    *(st.integers(1, 8), st.integers(1, 8)),
    *(st.integers(1, 4), st.integers(1, 4)),
    *(st.tuples(st.integers(1, 4), st.integers(1, 4)), st.tuples(*[st.integers(0, 4)] * 4)),
    st.integers(1, 60),
)
@example(8, 8, 1, 1, (1, 1), (4, 4, 4, 4), 1)
def test_every_geometry_of_conv2d(h, w, kh, kw, stride, pads, scratch):
    padding = pads[:2], pads[2:]
    if h + sum(pads[:2]) < kh or w + sum(pads[2:]) < kw:
        with pytest.raises(ValueError, match="larger than x"):
            nn.conv2d(np.ones((1, h, w, 1)), np.ones((kh, kw, 1, 1)), padding=padding)
        return
    rng = np.random.default_rng(h * w)
    x, k = rng.standard_normal((2, h, w, 2)), rng.standard_normal((kh, kw, 2, 3))
    before, rules.SCRATCH = rules.SCRATCH, scratch
    try:
        out, pullback = vjp(partial(nn.conv2d, stride=stride, padding=padding), x, k)
        dx, dk = pullback(out)
    finally:
        rules.SCRATCH = before
    np.testing.assert_allclose(out, conv_by_loops(x, k, 0, stride, padding), rtol=0, atol=1e-12)
    # out is linear in x and in k, so <out, out> = <dx, x> = <dk, k>
    square = np.sum(out * out)
    np.testing.assert_allclose([np.sum(dx * x), np.sum(dk * k)], square, rtol=1e-12, atol=1e-12)


def test_conv2d_writes_no_matrix_of_patches(monkeypatch):
    x = rules.batch_last(np.ones((8, 12, 12, 3)))
    ((at, patches),) = rules._patches(rules.images(x), (5, 5), (8, 8), (1, 1), NONE)
    assert (at, patches.shape) == (slice(0, 8), (8, 75, 64))
    kept = rules._kept_memory.wide
    assert np.shares_memory(patches, kept)
    assert kept.nbytes <= 8 * rules.SCRATCH
    assert patches.strides == (5 * 3 * 64 * 8, 64 * 8, 8)  # rows overlap: kw times x, not kh * kw
    one = next(rules._patches(rules.images(x), (1, 1), (12, 12), (1, 1), NONE))[1]
    assert np.shares_memory(one, x)


@pytest.mark.parametrize(("columns", "stretch"), [(2000, 1000), (1280, 640), (1009, 1009), (0, 1)])
def test_long_rows_are_multiplied_in_stretches(columns, stretch):
    assert rules._stretch(columns, 1000) == stretch
    rng = np.random.default_rng(8)
    x, w = rng.standard_normal((columns, 2, 1, 20)), rng.standard_normal((1, 1, 20, 50))
    np.testing.assert_allclose(nn.conv2d(x, w), x @ w[0, 0], rtol=0, atol=1e-13)


def test_no_answer_lies_in_scratch_memory():
    for sample in CONVS:
        out, pullback = vjp(sample.call, *sample.arrays())
        for x in (out, *pullback(out)):
            assert not any(np.shares_memory(x, kept) for kept in vars(rules._kept_memory).values())


def test_threads_have_scratch_memory_of_their_own():
    here = rules._scratch(np.ones(1), (100,), "wide")
    with ThreadPoolExecutor(1) as pool:
        there = pool.submit(rules._scratch, np.ones(1), (100,), "wide").result()
    assert np.shares_memory(here, rules._scratch(np.ones(1), (100,), "wide"))
    assert not np.shares_memory(here, there)


def test_layers_keep_the_batch_last():
    x, w = np.ones((4, 8, 8, 1), np.float32), np.ones((3, 3, 1, 2), np.float32)
    y = nn.relu(nn.max_pool(nn.conv2d(x, w, np.ones(2, np.float32)), 2))
    assert np.shares_memory(rules.batch_last(y), y)


def test_mixed_dtypes_promote_and_derivatives_go_back():
    x, w = np.ones((1, 3, 3, 1), np.float32), np.ones((2, 2, 1, 1))
    out, pullback = vjp(nn.conv2d, x, w)
    assert [a.dtype for a in (out, *pullback(out))] == [np.float64, np.float32, np.float64]


# Pooling.


def pool_by_loops(reduce, x, window, stride, padding, fill):
    (top, bottom), (left, right) = padding
    x = np.pad(x, ((0, 0), (top, bottom), (left, right), (0, 0)), constant_values=fill)
    rows, columns = rules.out_shape(x.shape[1:3], window, stride, NONE)
    y = np.empty((len(x), rows, columns, x.shape[3]))
    for i, j in product(range(rows), range(columns)):
        part = x[:, i * stride[0] :, j * stride[1] :][:, : window[0], : window[1]]
        y[:, i, j] = reduce(part, axis=(1, 2))
    return y


@pytest.mark.parametrize("name", POOLS)
def test_pools_reduce_windows(name):
    _, window, stride, padding = POOLS[name]
    (x,) = pool_sample(nn.max_pool, name).arrays()
    at = nn._pooling(x, window, stride, padding, "pool")
    maxima = nn.max_pool(x, window, stride=stride, padding=padding)
    np.testing.assert_array_equal(maxima, pool_by_loops(np.max, x, fill=-np.inf, **at))
    means = nn.avg_pool(x, window, stride=stride, padding=padding)
    np.testing.assert_allclose(means, pool_by_loops(np.mean, x, fill=0, **at), atol=1e-15)


def test_of_equal_entries_the_first_has_the_derivative():
    x = np.zeros((1, 2, 4, 1))
    x[0, :, 3] = 1
    found = grad(lambda x: np.sum(nn.max_pool(x, 2)))(x)[0, :, :, 0]
    assert found.tolist() == [[1, 0, 0, 1], [0, 0, 0, 0]]


def test_max_pool_lets_nan_through_and_padding_never_wins():
    x = np.full((1, 3, 3, 1), -5.0)
    assert np.all(nn.max_pool(x, 3, stride=1, padding=1) == -5)
    x[0, 1, 1] = np.nan
    assert np.all(np.isnan(nn.max_pool(x, 3)))


def test_a_window_of_more_than_256_entries():
    x = np.random.default_rng(0).standard_normal((1, 20, 20, 1))
    found = grad(lambda x: np.sum(nn.max_pool(x, 20)))(x)
    assert found.sum() == 1 and found.flat[x.argmax()] == 1


# Normalisation, lookup, dropout.


def test_batch_norm_has_mean_0_and_variance_1_and_moves_its_statistics():
    x = np.random.default_rng(1).normal(3, 2, (8, 5, 4, 2))
    scale, bias = np.array([1.0, 2.0]), np.array([0.0, -1.0])
    running = np.array([1.0, 1.0]), np.array([2.0, 2.0])
    y, (mean, var) = nn.batch_norm(x, scale, bias, running, momentum=0.25)
    np.testing.assert_allclose(y.mean((0, 1, 2)), bias, atol=1e-14)
    np.testing.assert_allclose(y.std((0, 1, 2)), scale, rtol=1e-5)
    np.testing.assert_allclose(mean, 0.75 + 0.25 * x.mean((0, 1, 2)), rtol=1e-14)
    np.testing.assert_allclose(var, 1.5 + 0.25 * x.var((0, 1, 2), ddof=1), rtol=1e-14)
    y, same = nn.batch_norm(x, scale, bias, (mean, var), train=False, eps=0)
    assert same[0] is mean and same[1] is var
    np.testing.assert_allclose(y, (x - mean) / np.sqrt(var) * scale + bias, rtol=1e-13)


def test_running_statistics_are_aux_without_derivative():
    def loss(x):
        y, running = nn.batch_norm(x, np.ones(3), np.zeros(3))
        return np.sum(y * y), running

    x = np.random.default_rng(2).standard_normal((5, 3))
    (_, (mean, var)), _ = rg.value_and_grad(loss, has_aux=True)(x)
    np.testing.assert_allclose(mean, 0.1 * x.mean(0), rtol=1e-14)
    np.testing.assert_allclose(var, 0.9 + 0.1 * x.var(0, ddof=1), rtol=1e-14)
    through = lambda x: sum(map(np.sum, nn.batch_norm(x, np.ones(3), np.zeros(3))[1]))
    assert not np.any(grad(through)(x))


def pair_by_pair(rows):
    while len(rows) > 1:
        pairs = [a + b for a, b in zip(rows[::2], rows[1::2], strict=False)]
        rows = pairs + rows[2 * len(pairs) :]
    return rows[0] if rows else 0


@given(st.lists(st.integers(-4, 3), max_size=300), st.sampled_from([(), (1,), (3,)]))
def test_the_transpose_of_embedding_adds_rows_of_one_id_pair_by_pair(ids, width):
    ct = np.random.default_rng(len(ids)).standard_normal((len(ids), *width))
    found = vjp(lambda t: nn.embedding(t, np.array(ids, int)), np.zeros((4, *width)))[1](ct)[0]
    for row in range(4):
        wanted = pair_by_pair([c for c, i in zip(ct, ids, strict=True) if i % 4 == row])
        assert np.array_equal(found[row], wanted + np.zeros(width))


def test_dropout_keeps_the_mean():
    y = nn.dropout(np.ones((400, 500), np.float32), 0.3, (1, 2, 3))
    assert y.dtype == np.float32 and set(np.unique(y)) == {np.float32(0), np.float32(1 / 0.7)}
    assert abs(y.mean() - 1) < 5 * np.sqrt(0.3 / 0.7 / y.size)
    assert nn.dropout(np.ones(3), 0.0, 0).tolist() == [1, 1, 1]


@given(st.lists(st.integers(-(2**70), 2**70), min_size=1, max_size=4), st.integers(0, 30))
def test_the_mask_of_dropout_depends_on_key_and_shape_alone(key, size):
    x = np.ones((2, size))
    mask = nn.dropout(x, 0.5, tuple(key)) != 0
    np.random.default_rng().random()
    assert np.array_equal(nn.dropout(x.astype(np.float32), 0.5, key) != 0, mask)
    assert np.array_equal(nn.dropout(x, 0.5, [np.array(k, object)[()] for k in key]) != 0, mask)


def test_keys_of_dropout_differ_wherever_a_number_does():
    x = np.ones(200)
    keys = [0, 1, (0, 0), (0, 1), (1, 0), (0, 0, 1), -1, 2**64]
    masks = {nn.dropout(x, 0.5, key).tobytes() for key in keys}
    assert len(masks) == len(keys)


# Recurrence.


CELL = (2, 3), (2, 3), (4, 12), (3, 12), (12,), (2, 4)  # h, c, three kinds of weights, x


def logistic(x):
    return 1 / (1 + np.exp(-x))


def test_lstm_cell_is_its_formula():
    h, c, w, u, b, x = (np.random.default_rng(6).standard_normal(s) for s in CELL)
    params = {"input": w, "recurrent": u, "bias": b}
    i, f, g, o = np.split(x @ w + h @ u + b, 4, axis=-1)
    c_next = logistic(f) * c + logistic(i) * np.tanh(g)
    (found, c_found), output = nn.lstm_cell(params, (h, c), x)
    np.testing.assert_allclose(c_found, c_next, rtol=1e-14)
    np.testing.assert_allclose(found, logistic(o) * np.tanh(c_next), rtol=1e-14)
    assert output is found


def test_gru_cell_is_its_formula():
    h, _, w, u, b, x = (np.random.default_rng(6).standard_normal(s) for s in CELL)
    params = {"input": w[:, :9], "recurrent": u[:, :9], "bias": b[:9], "recurrent_bias": b[3:]}
    inputs, recurrent = x @ w[:, :9] + b[:9], h @ u[:, :9] + b[3:]
    r, z = np.split(logistic(inputs[:, :6] + recurrent[:, :6]), 2, axis=-1)
    n = np.tanh(inputs[:, 6:] + r * recurrent[:, 6:])
    found, output = nn.gru_cell(params, h, x)
    np.testing.assert_allclose(found, (1 - z) * n + z * h, rtol=1e-13)
    assert output is found


def test_scan_carries_trees_and_stacks_outputs():
    def cell(params, state, x):
        total = state["total"] + params * x["a"]
        return {"total": total}, (total, x["b"])

    inputs = {"a": np.arange(3.0), "b": np.ones((3, 2))}
    state, (totals, bs) = nn.scan(cell, 2.0, {"total": 0.0}, inputs)
    assert state == {"total": 6.0}
    assert totals.tolist() == [0, 2, 6] and bs.shape == (3, 2)


def test_scan_over_traced_inputs_is_linear_in_time():
    """A pull-back through x[t] would fill the whole of x with zeros at each step."""
    calls = []
    real = rules.stack.run
    rules.stack.run = lambda *xs: calls.append(len(xs)) or real(*xs)
    try:
        grad(lambda xs: np.sum(nn.scan(lambda p, s, x: (s + x, s), None, 0.0, xs)[1]))(np.ones(50))
    finally:
        rules.stack.run = real
    assert calls == [50, 50]  # the outputs, and the inputs' cotangents


# Entry by entry, and losses.


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_no_overflow_anywhere(dtype):
    x = np.array([-1e4, -100, -1, 0, 1, 100, 1e4], dtype)
    s, p = nn.sigmoid(x), nn.softplus(x)
    assert s[0] == 0 and s[-1] == 1 and s[3] == 0.5
    assert p[0] == 0 and p[-1] == 1e4 and p[3] == np.log(dtype(2))
    for f in (nn.sigmoid, nn.softplus, nn.gelu, nn.log_softmax, nn.softmax, nn.logsumexp):
        assert np.all(np.isfinite(f(x)))
        assert np.all(np.isfinite(grad(lambda x, f=f: np.sum(f(x) * x))(x)))
    np.testing.assert_allclose(nn.sigmoid(dtype(-80)), np.exp(dtype(-80)), rtol=1e-6)


def test_relu_has_derivative_0_at_0_and_keeps_nan():
    x = np.array([-1.0, 0.0, 2.0])
    assert grad(lambda x: np.sum(nn.relu(x)))(x).tolist() == [0, 0, 1]
    assert np.isnan(nn.relu(np.array([np.nan]))[0])


def test_logsumexp_of_infinities():
    rows = np.array([[-np.inf, -np.inf], [-np.inf, 1.0], [np.inf, 0.0]])
    assert nn.logsumexp(rows).tolist() == [-np.inf, 1.0, np.inf]


def test_exact_gelu():
    special = pytest.importorskip("scipy.special")
    x = np.linspace(-3, 3, 13)
    gelu = partial(nn.gelu, approximate=False)
    np.testing.assert_allclose(gelu(x), x * special.ndtr(x), rtol=1e-12, atol=1e-15)
    check_grads(gelu, (x,))
    assert np.max(np.abs(gelu(x) - nn.gelu(x))) < 1e-3


def test_labels_are_one_hot_rows():
    logits = np.random.default_rng(3).standard_normal((2, 3, 4)).astype(np.float32)
    labels = np.array([[0, 3, 1], [2, 2, 0]])
    rows = np.eye(4)[labels]
    a, b = (rg.value_and_grad(nn.softmax_cross_entropy)(logits, t) for t in (labels, rows))
    assert bits(a) == bits(b) and a[0].dtype == np.float32


@pytest.mark.parametrize("classes", [1, 2, 10])
def test_cross_entropy_of_equal_logits_is_log_classes(classes):
    logits, labels = np.zeros((5, classes)), np.arange(5) % classes
    found = nn.softmax_cross_entropy(logits, labels)
    np.testing.assert_allclose(found, np.log(classes), atol=1e-15)
    np.testing.assert_allclose(nn.softmax(logits), 1 / classes)


# Initialisers.

SHAPES = [(300, 200), (3, 3, 40, 50)]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_initialisers_have_the_variance_they_promise(shape, dtype):
    window = np.prod(shape[:-2], initial=1)
    inputs, outputs = window * shape[-2], window * shape[-1]
    wanted = {"glorot": 2 / (inputs + outputs), "he": 2 / inputs, "lecun": 1 / inputs}
    for (name, variance), kind in product(wanted.items(), ("normal", "uniform")):
        make = getattr(nn, f"{name}_{kind}")
        w = make(np.random.default_rng(0), shape, dtype)
        assert w.shape == shape and w.dtype == dtype
        np.testing.assert_allclose(w.var(), variance, rtol=0.05)
        double = make(np.random.default_rng(0), shape, np.float64)
        assert np.array_equal(w, double.astype(dtype))
    assert nn.xavier_normal is nn.glorot_normal and nn.kaiming_uniform is nn.he_uniform


@pytest.mark.parametrize("shape", [(6, 4), (4, 6), (5, 5), (3, 3, 2, 4)])
def test_orthogonal(shape):
    w = nn.orthogonal(np.random.default_rng(0), shape, np.float64, scale=2.0).reshape(-1, shape[-1])
    rows, columns = w.shape
    square = w.T @ w if rows >= columns else w @ w.T
    np.testing.assert_allclose(square, 4 * np.eye(min(rows, columns)), atol=1e-13)


def test_uniform_and_normal_take_a_scale():
    rng = np.random.default_rng(0)
    w = nn.uniform(rng, (1000,), scale=0.1)
    assert w.dtype == np.float32 and 0.09 < np.abs(w).max() <= np.float32(0.1)
    np.testing.assert_allclose(nn.normal(rng, (10_000,), scale=3.0).std(), 3, rtol=0.05)


# Refusals.

IMAGE, KERNEL = np.ones((1, 3, 3, 2)), np.ones((2, 2, 2, 1))


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: nn.conv2d(IMAGE[0], KERNEL), ValueError, r"\(N, H, W, C\)"),
        (lambda: nn.conv2d(IMAGE, KERNEL[0]), ValueError, r"\(kh, kw, C, O\)"),
        (lambda: nn.conv2d(IMAGE, KERNEL[:, :, :1]), ValueError, "2 channels and w takes 1"),
        (lambda: nn.conv2d(IMAGE, KERNEL, np.ones(2)), ValueError, r"bias.* shape \(2,\)"),
        (lambda: nn.conv2d(IMAGE, np.ones((4, 1, 2, 1))), ValueError, "larger than x"),
        (lambda: nn.conv2d(IMAGE, KERNEL, stride=0), ValueError, "stride is 0"),
        (lambda: nn.conv2d(IMAGE, KERNEL, stride=(1, 1, 1)), ValueError, "stride"),
        (lambda: nn.conv2d(IMAGE, KERNEL, stride=1.0), TypeError, "integer"),
        (lambda: nn.conv2d(IMAGE, KERNEL, padding=-1), ValueError, "padding"),
        (lambda: nn.conv2d(IMAGE, KERNEL, padding="full"), ValueError, '"same"'),
        (lambda: nn.conv2d(IMAGE, KERNEL, padding=(1, 1, 1)), ValueError, "a pair"),
        (lambda: nn.max_pool(IMAGE, 4), ValueError, "larger than x"),
        (lambda: nn.max_pool(IMAGE, 2, padding=2), ValueError, "see nothing else"),
        (lambda: nn.avg_pool(IMAGE[0], 2), ValueError, "avg_pool"),
        (lambda: nn.batch_norm(np.ones((1, 3)), 1.0, 0.0), ValueError, "train=False"),
        (lambda: nn.embedding(np.ones((2, 2)), np.ones(2)), TypeError, "integers"),
        (lambda: nn.embedding(np.ones((2, 2)), np.array([2])), IndexError, "out of bounds"),
        (lambda: nn.dropout(IMAGE, 1.0, 0), ValueError, "rate is 1.0"),
        (lambda: nn.dropout(IMAGE, -0.1, 0), ValueError, "rate is -0.1"),
        (lambda: grad(lambda r: np.sum(nn.dropout(IMAGE, r, 0)))(0.5), TypeError, "traced"),
        (lambda: nn.scan(None, None, 0.0, np.ones((0, 2))), ValueError, "one step"),
        (lambda: nn.scan(None, None, 0.0, [np.ones(2), np.ones(3)]), ValueError, "leading axis"),
        (lambda: nn.scan(None, None, 0.0, 1.0), ValueError, "leading axis"),
        (lambda: nn.softmax_cross_entropy(np.ones((2, 3)), np.ones(2)), ValueError, "labels"),
        (lambda: nn.softmax_cross_entropy(np.ones((2, 3)), np.ones(3, int)), ValueError, "labels"),
        (lambda: nn.mean_squared_error(np.ones((2, 1)), np.ones(2)), ValueError, "broadcast"),
        (lambda: nn.he_normal(np.random.default_rng(), (3,)), ValueError, "two axes"),
    ],
)
def test_what_cannot_work_is_refused(call, error, message):
    with pytest.raises(error, match=message):
        call()


# Networks, trained and returned.


def residual_block(params, x):
    """Two normalised convolutions around which x goes, through a 1x1 where shapes change."""
    stride = 1 if params.get("skip") is None else 2
    y = nn.conv2d(x, params["w1"], stride=stride, padding="same")
    y = nn.relu(nn.batch_norm(y, *params["norm1"])[0])
    y = nn.batch_norm(nn.conv2d(y, params["w2"], padding="same"), *params["norm2"])[0]
    return nn.relu(y + (x if stride == 1 else nn.conv2d(x, params["skip"], stride=2)))


@pytest.mark.parametrize("skip", [False, True])
def test_a_residual_block_is_a_composition(skip):
    rng = np.random.default_rng(5)
    norm = np.ones(2), np.zeros(2)
    params = {"w1": nn.he_normal(rng, (3, 3, 2, 2), np.float64), "norm1": norm, "norm2": norm}
    params |= {"w2": nn.he_normal(rng, (3, 3, 2, 2), np.float64)}
    params |= {"skip": nn.he_normal(rng, (1, 1, 2, 2), np.float64)} if skip else {}
    x = rng.standard_normal((3, 4, 4, 2))
    assert residual_block(params, x).shape == ((3, 2, 2, 2) if skip else x.shape)
    check_grads(residual_block, (params, x), tolerance=1e-5)


def lenet(params, x, key):
    """LeNet-5 with relu and maxima. x: (N, 12, 12, 1) -> (N, 10)."""
    x = nn.max_pool(nn.relu(nn.conv2d(x, *params["conv1"], padding="same")), 2)
    x = nn.max_pool(nn.relu(nn.conv2d(x, *params["conv2"])), 2)
    x = nn.relu(nn.dense(np.reshape(x, (len(x), -1)), *params["dense1"]))
    return nn.dense(nn.dropout(x, 0.25, key), *params["dense2"])


def lenet_problem(dtype):
    rng = np.random.default_rng(0)
    shapes = {"conv1": (5, 5, 1, 3), "conv2": (3, 3, 3, 4), "dense1": (16, 12), "dense2": (12, 10)}
    params = {
        name: (nn.he_normal(rng, s, dtype), np.zeros(s[-1], dtype)) for name, s in shapes.items()
    }
    x, labels = rng.standard_normal((24, 12, 12, 1)).astype(dtype), rng.integers(0, 10, 24)

    def loss(params, l2, batch):
        step, x, labels = batch
        penalty = sum(np.sum(w * w) for w, _ in params.values())
        return nn.softmax_cross_entropy(lenet(params, x, (0, step)), labels) + l2 * penalty

    batches = [(t, x[8 * t : 8 * t + 8], labels[8 * t : 8 * t + 8]) for t in range(3)]
    return loss, params, batches


def language_problem(dtype):
    rng = np.random.default_rng(1)
    vocabulary, width, hidden = 7, 5, 6
    draw = lambda *shape: nn.glorot_uniform(rng, shape, dtype)
    params = {
        "table": draw(vocabulary, width),
        "lstm": {
            "input": draw(width, 4 * hidden),
            "recurrent": nn.orthogonal(rng, (hidden, 4 * hidden), dtype),
            "bias": np.zeros(4 * hidden, dtype),
        },
        "out": (draw(hidden, vocabulary), np.zeros(vocabulary, dtype)),
    }
    text = rng.integers(0, vocabulary, (3, 9, 4))  # step, time, example

    def loss(params, l2, batch):
        state = (np.zeros((4, hidden), dtype),) * 2
        embedded = nn.embedding(params["table"], batch[:-1])
        _, hs = nn.scan(nn.lstm_cell, params["lstm"], state, embedded)
        penalty = np.sum(params["out"][0] ** 2)
        return nn.softmax_cross_entropy(nn.dense(hs, *params["out"]), batch[1:]) + l2 * penalty

    return loss, params, list(text)


@pytest.mark.parametrize("problem", [lenet_problem, language_problem])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_training_runs_backwards_exactly(problem, dtype):
    loss, params, batches = problem(dtype)

    def hyperloss(hyper, adjoint):
        optimizer = rg.Momentum(np.exp(hyper["rate"]), 0.9)
        trained = rg.train(loss, params, optimizer, batches, hyper=hyper["l2"], adjoint=adjoint)
        return loss(trained, 0.0, batches[0])

    hyper = {"rate": -1.0, "l2": 0.01}
    there = rg.value_and_grad(hyperloss)(hyper, rg.Reversible())
    assert bits(there) == bits(rg.value_and_grad(hyperloss)(hyper, rg.Stored()))
    unrolled = rg.value_and_grad(hyperloss)(hyper, rg.Unrolled())
    tolerance = 1e-3 if dtype == np.float32 else 1e-8
    for a, b in zip(optree.tree_leaves(there), optree.tree_leaves(unrolled), strict=True):
        np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance)
