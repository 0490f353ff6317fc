"""A task: train a network under schedules that many steps share, and see how well it then does.

A schedule is an array of values, each shared by as many steps. Training is the frameworks' SGD:
v <- momentum v + g + decay w; w <- w - rate v. Data are split anew, and params drawn anew, by the
seed: a twentieth of the examples validates. Source: Micaelli and Storkey 2021, section 5.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from images import load
from nets import LeNet, Mlp, SmallConv, WideResNet

import revgrad as rg
from revgrad import nn

STEP = {"rate": 0.05, "momentum": 0.075, "decay": 2e-4}  # the first ones: half of the paper's


@dataclass
class Task:
    net: Any
    pool: tuple  # images and labels to train on and validate with
    test: tuple
    steps: int
    batch: int
    augment: bool = False  # pad by 4, crop and flip at random
    dtype: Any = np.float32

    def split(self, seed, whole=False):
        """((x, y) to train on, (x, y) that validate); whole: train on all."""
        x, y = (part.astype(self.dtype) if part.ndim > 1 else part for part in self.pool)
        if whole:
            return (x, y), (x[:0], y[:0])
        order, count = np.random.default_rng((1, seed)).permutation(len(x)), len(x) // 20
        return tuple((x[part], y[part]) for part in (order[count:], order[:count]))

    def batches(self, data, seed):
        plain = rg.minibatches(data, self.batch, seed)
        if not self.augment:
            return plain

        def augmented(step):
            x, y = plain(step)
            rng = np.random.default_rng((seed, step))
            (i, j), flip = rng.integers(0, 9, (2, len(x))), rng.random(len(x)) < 0.5
            wide = np.pad(x, ((0, 0), (4, 4), (4, 4), (0, 0)))
            size = np.arange(x.shape[1])
            rows = i[:, None] + size
            columns = j[:, None] + np.where(flip[:, None], size[::-1], size)
            return wide[np.arange(len(x))[:, None, None], rows[:, :, None], columns[:, None]], y

        return augmented

    def optimizer(self, hyper):
        shared = lambda x: rg.per_step(x, every=-(-self.steps // len(x)))
        kinds = ("learning_rate", "rate"), ("momentum", "momentum"), ("weight_decay", "decay")
        return rg.HeavyBall(**{name: shared(hyper[k]) for name, k in kinds})

    def train(self, optimizer, seed, *, whole=False, **options):
        """(trained params, data that validate)."""
        train, valid = self.split(seed, whole)
        params = self.net.params(seed, self.dtype)
        batches = self.batches(train, seed)
        options = {"steps": self.steps} | options
        return rg.train(self.net.loss, params, optimizer, batches, **options), valid

    def hyperloss(self, hyper, seed, adjoint="auto"):
        """(validation loss, test accuracy in percent) after training under schedules."""
        trained, valid = self.train(self.optimizer(hyper), seed, adjoint=adjoint)
        x, y = valid
        loss = nn.softmax_cross_entropy(self.net(trained, x), y)
        return loss, self.accuracy(rg.stop_gradient(trained), self.test)

    def accuracy(self, params, data):
        """In percent."""
        parts = range(0, len(data[0]), 500)
        guesses = [np.argmax(self.net(params, data[0][k : k + 500]), axis=1) for k in parts]
        return 100 * float(np.mean(np.concatenate(guesses) == data[1]))

    def score(self, optimizer, seed, whole=False):
        """Accuracy of one run: on what validates, or (whole), trained on all, on the test data."""
        try:
            trained, valid = self.train(optimizer, seed, whole=whole)
        except (rg.NotFinite, rg.FixedOverflow):  # it diverged
            return 10.0
        return self.accuracy(trained, self.test if whole else valid)


def task_of(settings):
    """The task of learned_from_zero.py."""
    if settings.quick:
        return Task(Mlp(), *load("noise", 400, 200), steps=14, batch=20)
    if settings.full and settings.data == "cifar":
        images = load("cifar", 50_000, 10_000)
        return Task(WideResNet(), *images, steps=9_250, batch=256, augment=True)
    size = {"mnist": (60_000, 10_000), "svhn": (73_257, 26_032), "cifar": (10_000, 2_000)}
    images, steps = load(settings.data, *size[settings.data]), settings.steps
    net = SmallConv() if settings.data == "cifar" else LeNet(*images[0][0].shape[2:])
    if settings.full:
        return Task(net, *images, steps=2 * (len(images[0][0]) * 19 // 20 // 128), batch=128)
    return Task(net, *images, steps=steps, batch=32 if settings.data == "cifar" else 64)
