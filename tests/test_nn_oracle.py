"""Values and gradients of every layer against PyTorch in float64: 1e-10."""

import importlib.util
import json
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from revgrad import nn, vjp

torch = pytest.importorskip("torch")
F = torch.nn.functional

CLOSE = {"rtol": 1e-10, "atol": 1e-10}


def draw(*shapes, seed=0):
    rng = np.random.default_rng(seed)
    return [rng.standard_normal(shape) for shape in shapes]


def images(x):
    """(N, H, W, C) -> PyTorch's (N, C, H, W)."""
    return x.permute(0, 3, 1, 2)


def kernel(w):
    """(kh, kw, C, O) -> PyTorch's (O, C, kh, kw)."""
    return w.permute(3, 2, 0, 1)


def back(y):
    return y.permute(0, 2, 3, 1)


def check(ours, theirs, *args):
    """Values, and the cotangents of all arguments for one random cotangent."""
    out, pullback = vjp(ours, *args)
    tensors = [torch.tensor(x, requires_grad=True) for x in args]
    wanted = theirs(*tensors)
    np.testing.assert_allclose(out, wanted.detach().numpy(), **CLOSE)
    ct = np.random.default_rng(9).standard_normal(out.shape)
    pulled = torch.autograd.grad(wanted, tensors, torch.tensor(ct))
    for mine, other in zip(pullback(ct), pulled, strict=True):
        np.testing.assert_allclose(mine, other.numpy(), **CLOSE)


@pytest.mark.parametrize(("inputs", "window"), [((3, 8, 7, 2), (3, 2)), ((2, 5, 5, 1), (1, 1))])
@pytest.mark.parametrize("stride", [1, 2, (3, 2)])
@pytest.mark.parametrize("padding", [0, 1, (2, 3)])
def test_conv2d(inputs, window, stride, padding):
    check(
        partial(nn.conv2d, stride=stride, padding=padding),
        lambda x, w, b: back(F.conv2d(images(x), kernel(w), b, stride, padding)),
        *draw(inputs, (*window, inputs[3], 4), (4,)),
    )


@pytest.mark.filterwarnings("ignore:Using padding='same'")  # PyTorch of its own speed
@pytest.mark.parametrize("window", [(3, 3), (4, 5), (2, 1)])
def test_conv2d_same(window):
    check(
        partial(nn.conv2d, padding="same"),
        lambda x, w, b: back(F.conv2d(images(x), kernel(w), b, padding="same")),
        *draw((2, 6, 5, 3), (*window, 3, 2), (2,)),
    )


@pytest.mark.parametrize(
    ("window", "stride", "padding"),
    [(2, None, 0), (3, 2, 1), ((3, 2), (1, 2), (1, 0)), (2, 3, 0)],
)
def test_pools(window, stride, padding):
    (x,) = draw((3, 8, 7, 2))
    for ours, theirs in ((nn.max_pool, F.max_pool2d), (nn.avg_pool, F.avg_pool2d)):
        check(
            partial(ours, window=window, stride=stride, padding=padding),
            lambda x, f=theirs: back(f(images(x), window, stride, padding)),
            x,
        )


def test_of_equal_entries_pytorch_takes_the_same():
    x = np.random.default_rng(1).integers(0, 2, (2, 6, 6, 2)).astype(float)
    check(
        partial(nn.max_pool, window=3, stride=1),
        lambda x: back(F.max_pool2d(images(x), 3, 1)),
        x,
    )


def test_dense():
    check(nn.dense, lambda x, w, b: F.linear(x, w.T, b), *draw((5, 3), (3, 4), (4,)))


@pytest.mark.parametrize("shape", [(6, 3), (4, 5, 2, 3)])
@pytest.mark.parametrize("train", [True, False])
def test_batch_norm(shape, train):
    x, scale, bias, mean, var = draw(shape, (3,), (3,), (3,), (3,))
    var = var * var
    running = torch.tensor(mean), torch.tensor(var)

    def theirs(x, scale, bias):
        y = F.batch_norm(x.movedim(-1, 1), *running, scale, bias, train, 0.2, 1e-4)
        return y.movedim(1, -1)

    ours = partial(nn.batch_norm, running=(mean, var), train=train, momentum=0.2, eps=1e-4)
    check(lambda *xs: ours(*xs)[0], theirs, x, scale, bias)
    fresh = torch.tensor(mean), torch.tensor(var)
    F.batch_norm(torch.tensor(x).movedim(-1, 1), *fresh, training=train, momentum=0.2)
    for mine, other in zip(ours(x, scale, bias)[1], fresh, strict=True):
        np.testing.assert_allclose(mine, other.numpy(), **CLOSE)


def test_embedding():
    ids = np.array([[3, 0, 3], [1, 3, 0]])
    (table,) = draw((5, 4))
    check(lambda t: nn.embedding(t, ids), lambda t: F.embedding(torch.tensor(ids), t), table)


def recurrent(module, names, weights):
    """A PyTorch module with our weights: (inputs, gates), (hidden, gates) and two biases."""

    def run(xs, state):
        shaped = dict(zip(names, weights, strict=True))
        return torch.func.functional_call(module, shaped, (xs, state))

    return run


NAMES = ("weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0")


def test_lstm():
    def ours(xs, h, c, w, u, b):
        params = {"input": w, "recurrent": u, "bias": b}
        (h, c), ys = nn.scan(nn.lstm_cell, params, (h, c), xs)
        return np.concatenate([ys, np.stack([h, c])])

    def theirs(xs, h, c, w, u, b):
        module = torch.nn.LSTM(4, 3, dtype=torch.float64)
        run = recurrent(module, NAMES, (w.T, u.T, b, torch.zeros_like(b)))
        ys, (h, c) = run(xs, (h[None], c[None]))
        return torch.cat([ys, h, c])

    check(ours, theirs, *draw((5, 2, 4), (2, 3), (2, 3), (4, 12), (3, 12), (12,)))


def test_gru():
    def ours(xs, h, w, u, b, r):
        params = {"input": w, "recurrent": u, "bias": b, "recurrent_bias": r}
        h, ys = nn.scan(nn.gru_cell, params, h, xs)
        return np.concatenate([ys, h[None]])

    def theirs(xs, h, w, u, b, r):
        module = torch.nn.GRU(4, 3, dtype=torch.float64)
        ys, h = recurrent(module, NAMES, (w.T, u.T, b, r))(xs, h[None])
        return torch.cat([ys, h])

    check(ours, theirs, *draw((5, 2, 4), (2, 3), (4, 9), (3, 9), (9,), (9,)))


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (nn.relu, torch.relu),
        (nn.sigmoid, torch.sigmoid),
        (nn.softplus, F.softplus),
        (nn.gelu, lambda x: F.gelu(x, approximate="tanh")),
        (nn.log_softmax, lambda x: F.log_softmax(x, -1)),
        (nn.softmax, lambda x: F.softmax(x, -1)),
        (nn.logsumexp, lambda x: torch.logsumexp(x, -1)),
    ],
)
def test_functions_of_one_array(ours, theirs):
    check(ours, theirs, 10 * draw((6, 7))[0])


def test_exact_gelu():
    pytest.importorskip("scipy")
    check(partial(nn.gelu, approximate=False), F.gelu, *draw((6, 7)))


def test_losses():
    logits, weights, targets = draw((6, 7), (6, 7), (6, 7))
    labels = np.arange(6) % 7
    check(
        lambda x: nn.softmax_cross_entropy(x, labels),
        lambda x: F.cross_entropy(x, torch.tensor(labels)),
        logits,
    )
    check(
        lambda x, w: nn.softmax_cross_entropy(x, nn.softmax(w)),
        lambda x, w: F.cross_entropy(x, F.softmax(w, -1)),
        *(logits, weights),
    )
    check(nn.mean_squared_error, F.mse_loss, logits, targets)


def test_lenet():
    """One gradient of a whole network: batch-last images do not leak into the weights' order."""
    shapes = (5, 5, 1, 6), (6,), (5, 5, 6, 16), (16,), (400, 10), (10,)
    x, *params = draw((8, 28, 28, 1), *shapes)
    labels = np.arange(8)

    def ours(w1, b1, w2, b2, w3, b3):
        y = nn.max_pool(nn.relu(nn.conv2d(x, w1, b1, padding="same")), 2)
        y = nn.max_pool(nn.relu(nn.conv2d(y, w2, b2)), 2)
        return nn.softmax_cross_entropy(nn.dense(np.reshape(y, (8, -1)), w3, b3), labels)

    def theirs(w1, b1, w2, b2, w3, b3):
        y = F.max_pool2d(F.relu(F.conv2d(images(torch.tensor(x)), kernel(w1), b1, padding=2)), 2)
        y = F.max_pool2d(F.relu(F.conv2d(y, kernel(w2), b2)), 2)
        return F.cross_entropy(back(y).reshape(8, -1) @ w3 + b3, torch.tensor(labels))

    check(ours, theirs, *(p / np.sqrt(max(1, p[..., 0].size)) for p in params))


def test_the_benchmark_runs_at_its_smallest(tmp_path):
    path = Path(__file__).parents[1] / "benchmarks" / "bench_nn.py"
    spec = importlib.util.spec_from_file_location("bench_nn", path)
    bench = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(bench)
    rows = bench.main(quick=True, json_path=tmp_path / "nn.json")
    assert json.loads((tmp_path / "nn.json").read_text())["rows"] == rows
    assert sum(r["budget"] is not None for r in rows) == 4
