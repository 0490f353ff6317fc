"""A small convolutional network on colour images, trained as `mnist_mlp.Problem` trains its own.

CIFAR-10 takes ResNet-18 and 300 epochs in the paper, 3,000 hours of two cores. This has three
convolutions of 3x3 with stride 2 and a linear layer, 8,000 examples, and validation batches twice
as large as those of training (the paper's are ten times). "digits" has 8x8 images, for tests.
"""

import io
import zipfile
from itertools import pairwise

import numpy as np
from mnist_mlp import Problem

from revgrad import data, nn

CHANNELS = (16, 16, 16)
AT_MOST = 3e-3  # decay; 3e-4 for ResNet in the authors' code, or 3e-3 where layers are grouped


def cifar10(train, valid, test):
    """(images, labels) three times: (N, 32, 32, 3) in [0, 1], as many of every class."""
    from PIL import Image

    parts = {"train": (train, valid), "test": (test,)}
    with zipfile.ZipFile(data.find("cifar10-images.zip")) as archive:
        names = sorted(n for n in archive.namelist() if n.endswith(".jpg"))
        read = lambda n: np.asarray(Image.open(io.BytesIO(archive.read(n))), np.float32) / 255
        for part, counts in parts.items():
            lo, here = 0, [n for n in names if f"/{part}/" in n]
            classes = sorted({n.split("/")[-2] for n in here})
            for hi in np.cumsum(counts) // 10:
                groups = [[n for n in here if n.split("/")[-2] == c][lo:hi] for c in classes]
                yield np.stack([read(n) for g in groups for n in g]), np.repeat(range(10), hi - lo)
                lo = hi


def digits():
    square = lambda part: (part.x.reshape(-1, 8, 8, 1), part.y)
    return map(square, data.digits(600, 400))


class ConvProblem(Problem):
    """`valid_batch` and `train` as there; the layers are the kernels with their biases."""

    def __init__(self, name="cifar", sizes=(8_000, 2_000, 2_000), batch=100, valid_batch=200):
        self.train, self.valid, self.test = digits() if name == "digits" else cifar10(*sizes)
        mean, std = self.train[0].mean((0, 1, 2)), self.train[0].std((0, 1, 2))
        ready = lambda part: ((part[0] - mean) / std, part[1])
        self.train, self.valid, self.test = map(ready, (self.train, self.valid, self.test))
        self.batch, self.valid_batch = batch, valid_batch
        self.epoch, self.at_most = len(self.train[0]) // batch, AT_MOST

    def params(self, seed):
        rng, channels = np.random.default_rng(seed), (self.train[0].shape[3], *CHANNELS)
        side, found = self.train[0].shape[1], []
        for n, m in pairwise(channels):
            found.append((nn.he_normal(rng, (3, 3, n, m)), np.zeros(m, np.float32)))
            side = -(-side // 2)
        last = nn.lecun_normal(rng, (side * side * channels[-1], 10))
        return [*found, (last, np.zeros(10, np.float32))]

    def outputs(self, params, x):
        for w, b in params[:-1]:
            x = nn.relu(nn.conv2d(x, w, b, stride=2, padding="same"))
        return nn.dense(x.reshape(len(x), -1), *params[-1])
