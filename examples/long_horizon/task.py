"""A task: train a network under schedules that many steps share, and see how well it then does.

A schedule is an array of values, each shared by as many steps. Training is the frameworks' SGD:
v <- momentum v + g + decay w; w <- w - rate v, with each entry of g held within 3 of 0, as the
authors' code does. Data are split anew, and params drawn anew, by the seed: a twentieth of the
examples validates. Source: Micaelli and Storkey 2021, section 5.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from images import load
from nets import LeNet, Mlp, SmallConv, WideResNet

import revgrad as rg
from revgrad import nn

BOUND = 3.0  # of the entries of the loss's gradient


def clipped(learning_rate, momentum, weight_decay, **tuning):
    return rg.Clip(rg.HeavyBall(learning_rate, momentum, weight_decay), BOUND, **tuning)


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
        return clipped(**{name: shared(hyper[k]) for name, k in kinds})

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
        """Accuracy of one run: on what validates, or (whole), trained on all, on the test data.

        A run whose loss is above 100 is lost, and over.
        """
        try:
            trained, valid = self.train(optimizer, seed, whole=whole, callback=_stop_lost)
        except (rg.NotFinite, rg.FixedOverflow):  # it diverged
            return 10.0
        return self.accuracy(trained, self.test if whole else valid)


def _stop_lost(step, metrics):
    if metrics["loss"] > 100:
        raise rg.StopRun


def task_of(settings):
    """The task of learned_from_zero.py and bayesian_search.py."""
    if settings.quick:
        return Task(Mlp(), *load("noise", 400, 200), steps=14, batch=20)
    full, size = settings.full, {"mnist": (60_000, 10_000), "svhn": (73_257, 26_032)}
    size["cifar"] = (50_000, 10_000) if full else (10_000, 2_000)
    images = load(settings.data, *size[settings.data])
    if settings.data == "cifar":
        net = WideResNet() if full else SmallConv()
    else:
        net = LeNet(*images[0][0].shape[2:])
    steps = settings.steps or settings.epochs * (len(images[0][0]) * 19 // 20 // settings.batch)
    augment = full and settings.data == "cifar"
    return Task(net, *images, steps=steps, batch=settings.batch, augment=augment)
