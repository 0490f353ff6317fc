"""What the experiments of this folder share: the paper's network on MNIST, and how it is trained.

Four layers of 784-128-128-128-10 with tanh, as the authors' code has it (the paper says ReLU),
batches of 100, decay as frameworks have it (params <- params - rate (g + decay params)), splits of
50,000 / 10,000 / 10,000. "digits" has 8x8 images and 64 inputs, for tests.

Source: Im, Savin and Cho 2021, Online hyperparameter optimization by real-time recurrent learning.
"""

from itertools import pairwise
from time import process_time

import numpy as np

import revgrad as rg
from revgrad import data, nn

WIDTHS = (128, 128, 128, 10)
AT_MOST = 2e-4  # decay, in the authors' code
DIVERGED = 1e9  # the loss that a record has then


class Problem:
    """The data and the network. part: how many of the training examples there are to train on."""

    def __init__(self, name="mnist", part=None, batch=100, valid_batch=None):
        found = data.mnist() if name == "mnist" else data.digits()
        self.train = tuple(x[:part] for x in found.train)
        self.valid, self.test, self.batch = tuple(found.valid), tuple(found.test), batch
        self.valid_batch = min(valid_batch or batch, len(self.valid[0]))
        self.sizes = (self.train[0].shape[1], *WIDTHS)
        self.epoch = len(self.train[0]) // batch  # steps

    def params(self, seed):
        """Uniform within 1 / sqrt(inputs), biases too: PyTorch's."""
        rng = np.random.default_rng(seed)
        draw = lambda n, *shape: rng.uniform(-(n**-0.5), n**-0.5, shape).astype(np.float32)
        return [(draw(n, n, m), draw(n, m)) for n, m in pairwise(self.sizes)]

    def outputs(self, params, x):
        for w, b in params[:-1]:
            x = np.tanh(x @ w + b)
        return x @ params[-1][0] + params[-1][1]

    def loss(self, params, _, batch):
        return nn.softmax_cross_entropy(self.outputs(params, batch[0]), batch[1])

    def valid_loss(self, params, batch):
        return self.loss(params, None, batch)

    def test_loss(self, params):
        return float(self.loss(params, None, self.test))

    def oho(self, rate, decay, meta=1e-5, valid=True, clip=None, **options):
        """SGD whose rate and decay learn online. valid: from validation batches, or training's.

        Decay takes steps of 0.01 meta and stays below 2e-4, as in the authors' code. clip: hold
        the slopes of both within this.
        """
        options = {"bounds": {"weight_decay": (0.0, AT_MOST)}} | options
        batches = rg.minibatches(self.valid, self.valid_batch, seed=1000)
        given = (self.valid_loss, batches) if valid else (None, None)
        by_name = {"learning_rate": meta, "weight_decay": 0.01 * meta}
        above = rg.SGD(by_name) if clip is None else rg.Clip(rg.SGD(by_name), clip)
        tuned_by = rg.RTRL(*given, optimizer=above, **options)
        return rg.SGD(rate, weight_decay=decay, tuned_by=tuned_by)

    def run(self, optimizer, epochs, seed=0, until=0.0, **options):
        """(what there is to record, Paths or None where it diverged).

        "test loss": after each epoch; "valid loss": at the end; "seconds" of processor time, which
        includes the test losses. A loss that diverged is 1e9, as JSON has no infinity. until: a
        test loss that ends the training. options: of `fit`; with save= a training that was killed
        goes on, and has the seconds since.
        """
        steps, began, report = int(epochs * self.epoch), process_time(), rg.Report()
        ends, seen = lambda t: t and t % self.epoch == 0, []

        def watch(t, params):
            if not ends(t):
                return 0.0
            seen.append(self.test_loss(params))
            return seen[-1]

        def stop(t, _):
            if seen and seen[-1] <= until:
                raise rg.StopRun

        given = {"steps": steps, "watch": watch, "report": report, "callback": stop} | options
        batches = rg.minibatches(self.train, self.batch, seed)
        try:
            trained, paths = rg.fit(self.loss, self.params(seed), optimizer, batches, **given)
        except (rg.NotFinite, rg.LeftDomain) as error:
            curve = seen + [DIVERGED] * (-(-steps // self.epoch) - len(seen))
            found = {"valid loss": DIVERGED, "error": str(error)}
            return {"test loss": curve, "seconds": process_time() - began} | found, None
        curve = [x for t, x in enumerate(report.watched) if ends(t)]
        curve += [self.test_loss(trained)] if len(report.watched) == steps else []
        valid = float(self.loss(trained, None, self.valid))
        found = {"test loss": curve, "seconds": process_time() - began, "valid loss": valid}
        return found, paths


def thinned(paths, rows=200):
    """Paths as lists of at most so many rows, for a record."""
    every = max(1, len(paths.steps) // rows)
    found = {name: x[::every] for name, x in paths.items()} | {"loss": paths.loss[::every]}
    return {"step": paths.steps[::every]} | {n: _finite(x) for n, x in found.items()}


def _finite(x):
    return [float(v) if np.isfinite(v) else None for v in x]


def as_floats(x):
    """What `thinned` made, with NaN where nothing was looked for."""
    return np.array([np.nan if v is None else v for v in x], float)
