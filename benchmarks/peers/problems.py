"""The five problems: data, hyperparameters, and losses written over each contestant's operations.

A loss here takes `o`, an object with the operations of one framework (exp, tanh, cross_entropy,
images, conv, pool, lstm, ...), so that every contestant computes the same function in its own best
way.
Training is the paper's momentum: v <- m v - (1 - m) g, then w <- w + a v.
"""

import zlib
from itertools import pairwise

import numpy as np

from revgrad import data

MLP_SIZES = (784, 50, 50, 50, 10)
LENET_SHAPES = ((5, 5, 1, 6), (5, 5, 6, 16), (400, 120), (120, 84), (84, 10))
HIDDEN, SEQUENCE = 128, 50


class Problem:
    """What all problems share. theta: hyperparameters by name; data: what is not differentiated.

    data has "x" and "y" (the rows minibatches are taken from) and "fx" and "fy" (what the final
    loss is of). per_step: whether learning rate and momentum are learned per step and leaf.
    compared: steps after which values are compared, in longer runs too: contestants round
    differently, which in the end decides the way a run takes at the kinks of relu and max.
    """

    rate, momentum, examples, size, per_step, steps = 1.0, 0.9, 10_000, None, False, 100
    compared = 100

    def __init__(self, steps=None, dtype="float32"):
        self.steps, self.dtype = steps or type(self).steps, np.dtype(dtype)
        self.theta, self.data = {}, {}
        self.rng = np.random.default_rng(0)
        self.leaves = self.make()
        if self.per_step:
            self.theta |= self.schedules(self.leaves)

    def schedules(self, leaves):
        """Rates a little different everywhere, momenta that are ratios of small integers."""
        rates = self.rate * self.rng.uniform(0.8, 1.25, (self.steps, leaves))
        off = self.rng.integers(-12, 13, (self.steps, leaves))
        momenta = np.round(256 * self.momentum + off) / 256
        logits = np.log(momenta / (1 - momenta))
        return {"log_rate": self.cast(np.log(rates)), "logit_momentum": self.cast(logits)}

    def cast(self, x):
        return np.asarray(x, self.dtype, order="C")

    def take(self, split, final):
        """Fill data from (x, y) to train on and (x, y) for the final loss."""
        self.data |= {"x": split[0], "y": split[1], "fx": final[0], "fy": final[1]}

    def rows(self):
        """Indices (steps, size) of the minibatches; None where every step sees the same."""
        if self.size is None:
            return None
        batches = data.minibatches((self.data["x"], self.data["y"]), self.size, seed=0)
        return np.array([batches.indices(t) for t in range(self.steps)])

    def rates(self, o, theta):
        """(learning rates, momenta): numbers, or arrays (steps, leaves)."""
        if not self.per_step:
            return self.rate, self.momentum
        return o.exp(theta["log_rate"]), o.sigmoid(theta["logit_momentum"])

    def shared(self, o, theta):
        """What the training loss sees of theta: a dict."""
        return {}

    def start(self, o, theta, data):
        """Initial params, a list."""
        return [data[f"start{k}"] for k in range(self.leaves)]

    def keep_start(self, arrays):
        self.data |= {f"start{k}": self.cast(a) for k, a in enumerate(arrays)}
        return len(arrays)

    def loss(self, o, params, shared, x, y):
        return o.cross_entropy(self.logits(o, params, x), y)

    def final(self, o, params, data):
        return o.cross_entropy(self.logits(o, params, data["fx"]), data["fy"])


def mnist(dtype, count, test=0):
    """`count` training images and labels, and `test` more; random ones where MNIST is not found."""
    try:
        splits = data.mnist(60_000, 0, max(1, test), dtype=np.float32)
        x, y, more = splits.train.x, splits.train.y, splits.test
    except FileNotFoundError:
        rng = np.random.default_rng(1)
        x, y = rng.random((count, 784), np.float32), rng.integers(0, 10, count)
        more = rng.random((test, 784), np.float32), rng.integers(0, 10, test)
    mean = x.mean(0)
    ready = [((a[:k] - mean).astype(dtype), b[:k]) for (a, b), k in (((x, y), count), (more, test))]
    return ready if test else ready[0]


def has_mnist():
    try:
        data.find("mnist/train-images-idx3-ubyte.gz")
    except FileNotFoundError:
        return False
    return True


def tanh_layers(o, params, x):
    for k in range(0, len(params) - 2, 2):
        x = o.tanh(x @ params[k] + params[k + 1])
    return x @ params[-2] + params[-1]


class Mlp(Problem):
    """The paper's MLP; rate and momentum per step and leaf, initial scales: 1,608 at 100 steps."""

    per_step, size, rate, momentum = True, 200, 1.0, 0.6

    def make(self):
        split = mnist(self.dtype, self.examples)
        self.take(split, split)
        shapes = [s for n, m in pairwise(MLP_SIZES) for s in ((n, m), (m,))]
        scales = [np.log(np.sqrt(1 / s[0]) if len(s) == 2 else 0.1) for s in shapes]
        self.theta["log_scale"] = self.cast(scales)
        self.data |= {
            f"draw{k}": self.cast(self.rng.standard_normal(s)) for k, s in enumerate(shapes)
        }
        return len(shapes)

    def start(self, o, theta, data):
        scales = o.exp(theta["log_scale"])
        return [scales[k] * data[f"draw{k}"] for k in range(self.leaves)]

    logits = staticmethod(tanh_layers)


class SlowMlp(Mlp):
    """The same with momenta around 0.9, as most people's are."""

    momentum = 0.9


class Logistic(Problem):
    """Logistic regression with a penalty per weight: 7,840. The final loss is of other images."""

    size, steps, rate = 1000, 200, 1.0

    def make(self):
        x, y = mnist(self.dtype, 2 * self.examples)
        n = self.examples
        self.take((x[:n], y[:n]), (x[n:], y[n:]))
        self.theta["log_penalty"] = self.cast(self.rng.uniform(-8, -6, (784, 10)))
        return self.keep_start([0.01 * self.rng.standard_normal((784, 10)), np.zeros(10)])

    def shared(self, o, theta):
        return {"penalty": o.exp(theta["log_penalty"])}

    def loss(self, o, params, shared, x, y):
        penalty = o.sum(shared["penalty"] * (params[0] * params[0]))
        return o.cross_entropy(self.logits(o, params, x), y) + penalty

    logits = staticmethod(tanh_layers)


class Images(Problem):
    """Ten learned training images and one penalty (figure 7): 7,841, full batches of ten."""

    steps, rate = 20, 1.0

    def make(self):
        x, y = mnist(self.dtype, self.examples)
        self.take((np.zeros((10, 0), self.dtype), np.arange(10)), (x, y))
        self.theta["pixels"] = self.cast(0.01 * self.rng.standard_normal((10, 784)))
        self.theta["log_penalty"] = self.cast(np.log(0.01))
        scale = np.exp(-4)
        draws = self.rng.standard_normal((784, 10)), self.rng.standard_normal(10)
        return self.keep_start([scale * w for w in draws])

    def shared(self, o, theta):
        return {"pixels": theta["pixels"], "penalty": o.exp(theta["log_penalty"])}

    def loss(self, o, params, shared, x, y):
        w, b = params
        penalty = shared["penalty"] * (o.sum(w * w) + o.sum(b * b))
        return o.cross_entropy(self.logits(o, params, shared["pixels"]), y) + penalty

    logits = staticmethod(tanh_layers)


class LeNet(Problem):
    """LeNet, batch 128; rate and momentum per step and leaf: 2,000. Final loss of 1,000 images."""

    per_step, size, rate, momentum, compared, tested = True, 128, 0.1, 0.9, 20, 1000

    def make(self):
        split, final = mnist(self.dtype, self.examples, self.tested)
        square = lambda s: (s[0].reshape(-1, 28, 28, 1), s[1])
        self.take(square(split), square(final))
        arrays = []
        for s in LENET_SHAPES:
            scale = np.sqrt(2 / np.prod(s[:-1]))
            arrays += [scale * self.rng.standard_normal(s), np.zeros(s[-1])]
        return self.keep_start(arrays)

    def logits(self, o, params, x):
        x = o.pool(o.relu(o.conv(o.images(x), params[0], params[1], 2)))
        x = o.pool(o.relu(o.conv(x, params[2], params[3], 0)))
        x = o.flat(x)
        for k in (4, 6):
            x = o.relu(x @ params[k] + params[k + 1])
        return x @ params[8] + params[9]


class Lstm(Problem):
    """A character model: 2 layers of 128, 32 sequences of 50; rate and momentum per step and leaf.

    At 50 steps 900 hyperparameters; the final loss is of 32 other sequences.
    """

    per_step, size, rate, momentum, steps = True, 32, 1.0, 0.9, 50

    def make(self):
        ids, alphabet = text()
        cut = ids[: len(ids) // (SEQUENCE + 1) * (SEQUENCE + 1)].reshape(-1, SEQUENCE + 1)
        n = min(self.examples, len(cut) - self.size)
        self.take(
            (cut[:n, :-1].copy(), cut[:n, 1:].copy()),
            (cut[n : n + self.size, :-1].copy(), cut[n : n + self.size, 1:].copy()),
        )
        self.classes, draw = alphabet, self.rng.standard_normal
        arrays = [0.1 * draw((alphabet, HIDDEN))]
        for _ in range(2):
            arrays += [draw((HIDDEN, 4 * HIDDEN)) / np.sqrt(HIDDEN) for _ in range(2)]
            arrays.append(np.zeros(4 * HIDDEN))
        return self.keep_start([*arrays, draw((HIDDEN, alphabet)) / HIDDEN, np.zeros(alphabet)])

    def logits(self, o, params, x):
        """(sequence, batch, classes); x: (batch, sequence)."""
        h = o.lookup(params[0], x.T)
        for k in (1, 4):
            h = o.lstm(*params[k : k + 3], h)
        return h @ params[7] + params[8]

    def loss(self, o, params, shared, x, y):
        return o.cross_entropy(self.logits(o, params, x), y.T)

    def final(self, o, params, data):
        return self.loss(o, params, {}, data["fx"], data["fy"])


def text():
    """(characters as integers, how many kinds); random ones where the text is not found."""
    try:
        raw = data.find("warpeace_input.txt").read_bytes().decode("utf-8-sig")
    except FileNotFoundError:
        rng = np.random.default_rng(zlib.crc32(b"text"))
        return rng.integers(0, 87, 600_000).astype(np.int64), 87
    points = np.frombuffer(raw.encode("utf-32-le"), np.uint32)
    kinds, ids = np.unique(points, return_inverse=True)
    return ids.astype(np.int64), len(kinds)


PROBLEMS = {
    "mlp": Mlp,
    "mlp-0.9": SlowMlp,
    "logistic": Logistic,
    "images": Images,
    "lenet": LeNet,
    "lstm": Lstm,
}
