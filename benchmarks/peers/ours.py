"""revgrad, with each of its adjoints."""

import numpy as np

import revgrad as rg
from revgrad import nn
from revgrad.data import one_hot


class Ops:
    exp, tanh, sum = np.exp, np.tanh, np.sum
    sigmoid, relu, cross_entropy, lookup = (
        nn.sigmoid,
        nn.relu,
        nn.softmax_cross_entropy,
        nn.embedding,
    )

    @staticmethod
    def images(x):
        return x

    @staticmethod
    def conv(x, w, b, padding):
        return nn.conv2d(x, w, b, padding=padding)

    @staticmethod
    def pool(x):
        return nn.max_pool(x, 2)

    @staticmethod
    def flat(x):
        return np.reshape(x, (x.shape[0], -1))

    @staticmethod
    def lstm(w, u, b, xs):
        zeros = np.zeros((xs.shape[1], u.shape[0]), xs.dtype)
        params = {"input": w, "recurrent": u, "bias": b}
        return nn.scan(nn.lstm_cell, params, (zeros, zeros), xs)[1]


def prepared(problem, put=lambda x: x):
    """The data; labels of the small classifiers as one-hot rows, made once."""
    data = dict(problem.data)
    for name in ("y", "fy"):
        if data[name].ndim == 1:
            data[name] = one_hot(data[name], 10, problem.dtype)
    return {k: put(v) for k, v in data.items()}


def build(problem, name, put=lambda x: x):
    """run() -> (value, gradients by name of theta). put: brings an array to where it shall be."""
    data = prepared(problem, put)
    split, theta = (data["x"], data["y"]), {k: put(v) for k, v in problem.theta.items()}
    batches = [split] if problem.size is None else rg.minibatches(split, problem.size, seed=0)
    adjoint = "auto"  # of "plain", which only trains
    if name != "plain":
        adjoint = (
            rg.Checkpointed(20) if name == "checkpointed" else getattr(rg, name.capitalize())()
        )
    final = rg.compile(lambda params, fx, fy: problem.final(Ops, params, {"fx": fx, "fy": fy}))

    def loss(params, shared, batch):
        return problem.loss(Ops, params, shared, *batch)

    def hyperloss(theta):
        optimizer = rg.Momentum(*(spread(r) for r in problem.rates(Ops, theta)))
        trained = rg.train(
            loss,
            problem.start(Ops, theta, data),
            optimizer,
            batches,
            steps=problem.steps,
            hyper=problem.shared(Ops, theta),
            adjoint=adjoint,
        )
        return final(trained, data["fx"], data["fy"])

    if name == "plain":
        return lambda: (hyperloss(theta), {})
    f = rg.value_and_grad(hyperloss)
    return lambda: f(theta)


def setup(dtype, threads):
    """NumPy's threads come from the environment."""


def spread(rates):
    """A number as it is; an array (steps, leaves) as a list of leaves per step."""
    if isinstance(rates, float):
        return rates
    return rg.per_step([rates[:, k] for k in range(rates.shape[1])])
