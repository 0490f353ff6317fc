"""A residual network in NumPy, CIFAR-10, and how one learns the other. Source: He et al. 2016."""

import io
import zipfile

import numpy as np
import paper

import revgrad as rg
from revgrad import data, nn


def cifar10(train, test):
    """((images, labels), (images, labels)): (N, 32, 32, 3) in [-1, 1], as many of every class."""
    from PIL import Image

    found = []
    with zipfile.ZipFile(data.find("cifar10-images.zip")) as archive:
        for part, count in (("train", train), ("test", test)):
            names = sorted(n for n in archive.namelist() if f"/{part}/" in n and n.endswith(".jpg"))
            classes = sorted({n.split("/")[-2] for n in names})
            chosen = [[n for n in names if n.split("/")[-2] == c][: count // 10] for c in classes]
            read = lambda n: np.asarray(Image.open(io.BytesIO(archive.read(n))))
            images = np.stack([read(n) for group in chosen for n in group])
            labels = np.repeat(np.arange(10), [len(group) for group in chosen])
            found.append((images.astype(np.float32) / 127.5 - 1, labels))
    return found


class ResNet:
    """3 stages of `blocks` blocks, widths w, 2w, 4w; shortcuts without weights (He et al. 2016)."""

    def __init__(self, width=8, blocks=1):
        self.plan, inputs = [], width
        for stage in range(3):
            for block in range(blocks):
                stride, outputs = 1 + (stage > 0 and block == 0), width << stage
                self.plan.append((inputs, outputs, stride))
                inputs = outputs
        self.width = width

    def params(self, seed):
        rng = np.random.default_rng(seed)

        def conv(n, m):
            w = nn.he_normal(rng, (3, 3, n, m))
            return {"w": w, "scale": np.ones(m, np.float32), "bias": np.zeros(m, np.float32)}

        blocks = [[conv(n, m), conv(m, m)] for n, m, _ in self.plan]
        dense = [nn.he_normal(rng, (self.plan[-1][1], 10)), np.zeros(10, np.float32)]
        return {"first": conv(3, self.width), "blocks": blocks, "dense": dense}

    def __call__(self, params, x, statistics=None):
        """(outputs, the statistics that batch norm found, in order)."""
        found, given = [], iter(statistics or ())

        def layer(p, x, stride=1):
            x = nn.conv2d(x, p["w"], stride=stride, padding="same")
            if statistics:
                return nn.batch_norm(x, p["scale"], p["bias"], next(given), train=False)[0]
            axes = (0, 1, 2)
            found.append((np.mean(x, axes), np.var(x, axes)))
            return nn.batch_norm(x, p["scale"], p["bias"])[0]

        x = nn.relu(layer(params["first"], x))
        for (first, second), (n, m, stride) in zip(params["blocks"], self.plan, strict=True):
            short = x[:, ::stride, ::stride]
            if m > n:
                short = np.concatenate([short, np.zeros_like(short)], axis=-1)
            x = nn.relu(short + layer(second, nn.relu(layer(first, x, stride))))
        return nn.dense(np.mean(x, axis=(1, 2)), *params["dense"]), found


def loss_of(net):
    def loss(params, _, batch):
        out, found = net(params, batch[0])
        return nn.softmax_cross_entropy(out, batch[1]), found

    return loss


def averaged(below, above=None):
    """An optimizer that also averages batch norm's statistics; `above` tunes rate and momentum."""
    if above is None:
        return rg.AuxAverage(below, 0.9)
    how = {"learning_rate": "free", "momentum": "free"}
    return rg.AuxAverage(below, 0.9, tuned_by=above, tuned=tuple(how), transforms=how)


class Problem:
    """A ResNet, and images to train and to test it on."""

    def __init__(self, net, train, test, batch=128):
        self.net, self.held_out = net, test
        self.batches = rg.minibatches(train, min(batch, len(train[0])), seed=0)

    @classmethod
    def cifar10(cls, train, test, width=8, blocks=1):
        return cls(ResNet(width, blocks), *cifar10(train, test))

    @classmethod
    def of_noise(cls):
        rng = np.random.default_rng(0)
        part = rng.standard_normal((64, 32, 32, 3)).astype(np.float32), rng.integers(0, 10, 64)
        return cls(ResNet(4), part, part)

    def fit(self, made, steps, save=None):
        """(trained params, paths, state). save: as for rg.fit. Raises: NotFinite."""
        start = loss_of(self.net), self.net.params(0), made, self.batches
        return paper.fit(*start, steps=steps, has_aux=True, return_state=True, save=save)

    def test(self, params, state):
        """Accuracy in percent and loss on the test images; state as `fit` returns it."""
        unbiased = 1 - 0.9 ** state["t"]
        statistics = [(m / unbiased, v / unbiased) for m, v in state["aux_average"]]
        images, labels = self.held_out
        parts = np.array_split(images, -(-len(images) // 500))
        out = np.concatenate([self.net(params, x, statistics)[0] for x in parts])
        right, loss = np.argmax(out, 1) == labels, nn.softmax_cross_entropy(out, labels)
        return {"accuracy": 100 * np.mean(right), "test loss": float(loss)}
