"""A character model in NumPy, the text that it reads, and how it trains."""

import numpy as np
import paper

import revgrad as rg
from revgrad import data, nn


def text(quick):
    """The characters as numbers, and how many kinds there are."""
    if quick:
        characters = np.random.default_rng(0).integers(0, 7, 20_000) // 2
    else:
        content = data.find("warpeace_input.txt").read_text(encoding="utf-8-sig")
        characters = np.frombuffer(content.encode("utf-32-le"), np.uint32)
    kinds, numbers = np.unique(characters, return_inverse=True)
    return numbers, len(kinds)


def params_of(seed, kinds, hidden, embedding=64):
    rng = np.random.default_rng(seed)
    draw = lambda *shape: rng.uniform(-1, 1, shape).astype(np.float32) * hidden**-0.5

    def layer(inputs):
        gates = 4 * hidden
        return {"input": draw(inputs, gates), "recurrent": draw(hidden, gates), "bias": draw(gates)}

    table = rng.standard_normal((kinds, embedding)).astype(np.float32)
    out = [draw(hidden, kinds), draw(kinds)]
    return {"table": table, "layers": [layer(embedding), layer(hidden)], "out": out}


def loss(params, _, batch):
    """Mean cross entropy of the next character; each sequence begins with an empty memory."""
    now, following = batch[:, :-1].T, batch[:, 1:].T
    x = nn.embedding(params["table"], now)
    for layer in params["layers"]:
        empty = np.zeros((x.shape[1], layer["recurrent"].shape[0]), np.float32)
        _, x = nn.scan(nn.lstm_cell, layer, (empty, empty), x)
    outputs = nn.dense(x, *params["out"])
    return nn.softmax_cross_entropy(outputs.reshape(-1, outputs.shape[-1]), following.reshape(-1))


class Problem:
    """Sequences to train and to test on, torch-rnn's way: the last tenth is for the test.

    The tenth before it is for validation, and not used. Seeds choose the first params and the
    order of the sequences.
    """

    def __init__(self, quick, hidden, length=50, batch=50, test=2_000):
        numbers, self.kinds = text(quick)
        count = len(numbers) // (length + 1)
        rows = numbers[: count * (length + 1)].reshape(count, length + 1)
        self.train, self.held_out = rows[: -2 * (count // 10)], rows[-(count // 10) :][:test]
        self.hidden, self.batch = hidden, batch

    def fit(self, made, steps, seed=0, save=None):
        """(trained params, paths). save: as for rg.fit. Raises: NotFinite."""
        start = loss, params_of(seed, self.kinds, self.hidden), made
        batches = rg.minibatches(self.train, self.batch, seed)
        return paper.fit(*start, batches, steps=steps, save=save)

    def perplexity(self, params):
        """On the test sequences; at most the number of characters, which is guessing."""
        parts = np.array_split(self.held_out, max(1, len(self.held_out) // 200))
        losses = [float(loss(params, None, part)) for part in parts]
        return float(min(self.kinds, np.exp(min(np.mean(losses), 99.0))))
