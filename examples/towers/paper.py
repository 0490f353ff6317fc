"""What the experiments of this folder share: the paper's optimizers, and its network on MNIST.

The paper's variants are options of revgrad's optimizers: first-step rules (G = 0.1, v = eps), eps
inside a root or out of it, what learns and as what. Its step sizes of SGD, AdaGrad and Adam are
"free", so they may become negative. `by` is what tunes an optimizer; None tunes nothing.

Source: Chandra, Xie, Ragan-Kelley, Meijer 2022, Gradient Descent: The Ultimate Optimizer.
"""

import numpy as np

import revgrad as rg
from revgrad import data, nn

RATE = "learning_rate"


def tuned(by, names, **transforms):
    """The options of an optimizer that `by` tunes; none where it is None."""
    if by is None:
        return {}
    return {"tuned_by": by, "tuned": names, "transforms": {RATE: "free"} | transforms}


def sgd(rate=0.01, by=None):
    return rg.SGD(rate, **tuned(by, (RATE,)))


def momentum(rate, mu, by=None):
    """buf <- mu buf + g, where mu may become what it will."""
    return rg.HeavyBall(rate, mu, **tuned(by, (RATE, "momentum"), momentum="free"))


def adagrad(rate=0.01, by=None):
    start = {"eps": 0.0, "eps_root": 1e-10, "initial_accumulator_value": 0.1}
    return rg.AdaGrad(rate, **start, **tuned(by, (RATE,)))


def rmsprop(rate=0.01, by=None, gamma=0.99, alone=False):
    """The square root of the rate learns, and gamma = (tanh r + 1) / 2. alone: the rate alone."""
    names, how = ((RATE,), {}) if alone else ((RATE, "decay"), {"decay": "half_tanh"})
    return rg.RMSProp(
        rate, gamma, eps=0.0, eps_root=1e-8, **tuned(by, names, **how | {RATE: "square"})
    )


def adam(rate=0.001, by=None, b1=0.9, b2=0.999, alone=False):
    """beta = (tanh r + 1) / 2. alone: the rate alone learns (the paper's Adam-alpha)."""
    how = {"b1": "half_tanh", "b2": "half_tanh"}
    names, how = ((RATE,), {}) if alone else ((RATE, "b1", "b2"), how)
    return rg.Adam(rate, b1, b2, initial_scale=1e-8, **tuned(by, names, **how))


def levels(a, height, kind=sgd):
    """Figures 4b-d: what is above a base rate of a, to a height; None for 0."""
    sizes = [100 * a, a, a / 100] if a < 3e-4 else [a / 1e3, a / 1e4, 1e-8]
    above = None
    for size in reversed(sizes[:height]):
        above = kind(size, above)
    return above


def fit(*args, save=None, **options):
    """rg.fit, gone on with where it was killed; a run that diverges leaves no file behind."""
    try:
        with np.errstate(all="ignore"):
            return rg.fit(*args, save=save, **options)
    except rg.NotFinite:
        if save:
            save.unlink(missing_ok=True)
        raise


class Mnist:
    """784-128-10, tanh also on the outputs (as the paper's code has it and its numbers need)."""

    def __init__(self, batch=256, train=60_000, test=10_000):
        found = data.mnist(train, 0, test)
        self.train, self.test, self.batch = found.train, found.test, batch

    def params(self, seed):
        """Uniform within 1 / sqrt(inputs), biases too: PyTorch's."""
        rng, params = np.random.default_rng(seed), {}
        for k, (n, m) in enumerate(((784, 128), (128, 10)), 1):
            draw = lambda *shape, n=n: rng.uniform(-(n**-0.5), n**-0.5, shape).astype(np.float32)
            params |= {f"w{k}": draw(n, m), f"b{k}": draw(m)}
        return params

    def batches(self, seed):
        """All examples in each epoch, the last batch shorter: 235 steps of 256."""
        return rg.minibatches(tuple(self.train), self.batch, seed, short=True)

    def loss(self, params, _, batch):
        return nn.softmax_cross_entropy(self.outputs(params, batch[0]), batch[1])

    def outputs(self, params, x):
        for k in (1, 2):
            x = np.tanh(x @ params[f"w{k}"] + params[f"b{k}"])
        return x

    def error(self, params):
        """Test error in percent."""
        x, labels = self.test
        return 100 * float(np.mean(np.argmax(self.outputs(params, x), axis=1) != labels))

    def fit(self, optimizer, epochs, seed, **options):
        """(trained params, paths)."""
        batches = self.batches(seed)
        steps = int(epochs * batches.steps_per_epoch)
        return rg.fit(self.loss, self.params(seed), optimizer, batches, steps=steps, **options)
