"""Recurrent cells, and the networks of `nn`, on a GPU: the CPU's bits through a fake CuPy."""

import fake_cupy
import numpy as np
import optree
import pytest
from test_cuda_train import agree
from test_scan import GATED, objective, problem, sigmoid

import revgrad as rg
from revgrad import nn
from revgrad.extend import Add, Scale


@pytest.fixture(scope="module")
def cupy():
    with fake_cupy.installed() as module:
        yield module


def put_tree(put, tree):
    return optree.tree_map(lambda x: put(x) if getattr(x, "ndim", 0) else x, tree)


NUMBERS = (
    Scale("p", by=0.75),
    Add("p", lambda q, k: k * np.sin(q)),
    Scale("q", by="decay"),
    Add("q", lambda p, x, t: x * p / t),
    Scale("r", by=lambda p, x: sigmoid(np.mean(p) + np.mean(x))),
    Add("r", lambda t, decay: decay / t),
)
RISING = (
    Scale("a", by=lambda b, x, w: 0.6 + sigmoid(b @ w["h"]), above_one=True),
    Add("a", lambda b, x, w: np.tanh(b + x @ w["x"])),
    Add("b", lambda a, u: 0.1 * np.cos(a @ u["h"])),
)
ADJOINTS = [rg.Reversible(), rg.Stored(), rg.Checkpointed(3), rg.Truncated(4), rg.Unrolled()]


def numbers(kind):
    rng = np.random.default_rng(0)
    start = {name: rng.standard_normal(3).astype(kind) for name in "pqr"}
    params = {"k": rng.standard_normal(3).astype(kind), "decay": kind(0.9)}
    return start, rng.standard_normal((9, 3)).astype(kind), params


CELLS = {
    "gated": (GATED, lambda: problem(np.float32, 9)),
    "numbers": (NUMBERS, lambda: numbers(np.float64)),
    "above one": (RISING, lambda: problem(np.float64, 9)),
}


@pytest.mark.parametrize("adjoint", ADJOINTS, ids=repr)
@pytest.mark.parametrize("name", CELLS)
def test_scan_has_the_cpus_bits(cupy, name, adjoint):
    cell, make = CELLS[name]

    def run(put):
        given, report = put_tree(put, make()), rg.Report()
        scanned = lambda args: rg.scan(cell, args[0], args[1], params=args[2], adjoint=adjoint,
                                       report=report)  # fmt: skip
        value, found = rg.value_and_grad(lambda args: objective(scanned(args)))(given)
        for x, g in zip(*map(optree.tree_leaves, (given, found)), strict=True):
            assert type(x) is type(g) or not x.ndim
        end = scanned(given)
        bits = [] if isinstance(adjoint, rg.Unrolled) else [report.bits, *report.largest.values()]
        return value, found, end, np.array(optree.tree_leaves(bits))

    agree(cupy, run)


def test_a_scan_returns_exactly_and_says_where_it_overflows(cupy):
    cell, make = CELLS["gated"]
    start, inputs, params = put_tree(cupy.asarray, make())
    report = rg.Report()
    run = lambda start: objective(rg.scan(cell, start, inputs, params=params, report=report))
    rg.grad(run)(start)
    assert report.returned_exactly
    with pytest.raises(rg.errors.FixedOverflow, match=r"starts at 1e\+06"):
        run(optree.tree_map(lambda x: x * 0 + 1e6, start))


# Networks: a loss over batches of 16, its params, and its data.


def draw(*shape, seed=0):
    return (0.3 * np.random.default_rng((seed, *shape)).standard_normal(shape)).astype(np.float32)


LABELS = np.random.default_rng(0).integers(0, 3, 48)


def lstm_loss(params, hyper, batch):
    x, y = batch
    state = tuple(0.0 * (x[:, 0] @ params["cell"]["input"][:, :5]) for _ in range(2))
    (h, _), outputs = nn.scan(nn.lstm_cell, params["cell"], state, np.moveaxis(x, 1, 0))
    logits = nn.dense(h + np.mean(outputs, axis=0), params["out"])
    return nn.softmax_cross_entropy(logits, y) + hyper * np.sum(params["out"] ** 2)


LSTM = {
    "cell": {"input": draw(4, 20), "recurrent": draw(5, 20), "bias": draw(20)}, "out": draw(5, 3),
}  # fmt: skip


def conv_loss(params, hyper, batch):
    x, y = batch
    h = nn.max_pool(nn.relu(nn.conv2d(x, params["one"], params["bias"], padding="same")), 2)
    h, _ = nn.batch_norm(h, params["scale"], params["shift"])
    h = nn.avg_pool(nn.gelu(nn.conv2d(h, params["two"], stride=(1, 2), padding=1)), (3, 1))
    logits = nn.dense(nn.dropout(h.reshape(len(y), -1), 0.2, (1, 2)), params["out"])
    return nn.softmax_cross_entropy(logits, y) + hyper * np.sum(params["one"] ** 2)


CONV = {
    "one": draw(3, 3, 2, 4), "bias": draw(4), "scale": 1 + draw(4), "shift": draw(4, seed=1),
    "two": draw(2, 2, 4, 3), "out": draw(9, 3),
}  # fmt: skip


def words_loss(params, hyper, batch):
    ids, y = batch
    h = np.sum(nn.embedding(params["table"], ids), axis=1)
    weights = nn.softmax(h @ params["mix"], axis=0) + nn.softplus(nn.sigmoid(h @ params["mix"]))
    return nn.softmax_cross_entropy(weights @ params["out"], y) + hyper * np.sum(params["mix"] ** 2)


WORDS = {"table": draw(7, 4), "mix": draw(4, 5), "out": draw(5, 3)}
NETWORKS = {
    "lstm": (lstm_loss, LSTM, draw(48, 6, 4)),
    "conv": (conv_loss, CONV, draw(48, 8, 8, 2)),
    "embedding": (words_loss, WORDS, np.random.default_rng(1).integers(0, 7, (48, 6))),
}


@pytest.mark.parametrize("adjoint", [rg.Reversible(), rg.Forward(), rg.Unrolled()], ids=repr)
@pytest.mark.parametrize("name", NETWORKS)
def test_networks_have_the_cpus_hypergradients(cupy, name, adjoint):
    loss, params, x = NETWORKS[name]

    def run(put):
        given, data = put_tree(put, params), (put(x), put(LABELS))

        def hyperloss(hyper):
            trained = rg.train(
                loss, given, rg.Momentum(hyper["rate"]), rg.minibatches(data, 16, 2), steps=6,
                hyper=hyper["l2"], adjoint=adjoint,
            )  # fmt: skip
            return loss(trained, 0.0, data)

        return rg.value_and_grad(hyperloss)({"rate": 0.3, "l2": 0.001})

    agree(cupy, run)
