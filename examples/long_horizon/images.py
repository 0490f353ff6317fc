"""The data of this folder: MNIST, CIFAR-10 and SVHN, standardised as the authors have them."""

import io
import zipfile

import numpy as np

from revgrad import data

MOMENTS = {
    "mnist": ((0.1307,), (0.3081,)),
    "svhn": ((0.4377, 0.4438, 0.4728), (0.1980, 0.2010, 0.1970)),
    "cifar": ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)),
}


def load(name, train, test):
    """((x, y), (x, y)) to train on and to test with; x (N, H, W, C) float32."""
    found = {"mnist": _mnist, "svhn": _svhn, "cifar": _cifar, "noise": _noise}[name](train, test)
    mean, std = MOMENTS.get(name, ((0.0,), (1.0,)))
    ready = lambda x: (x - np.float32(mean)) / np.float32(std)
    return [(ready(x), y) for x, y in found]


def _mnist(train, test):
    found = data.mnist(train, 0, test)
    return [(part.x.reshape(-1, 28, 28, 1), part.y) for part in (found.train, found.test)]


def _svhn(train, test):
    """From the official train_32x32.mat and test_32x32.mat (http://ufldl.stanford.edu/housenumbers).

    They go to `REVGRAD_DATA`/svhn or the cache; they are not downloaded.
    """
    from scipy.io import loadmat

    found = []
    for part, count in (("train", train), ("test", test)):
        held = loadmat(data.find(f"svhn/{part}_32x32.mat"), variable_names=["X", "y"])
        x = held["X"][..., :count].transpose(3, 0, 1, 2).astype(np.float32) / 255
        found.append((x, held["y"][:count].ravel().astype(np.int64) % 10))  # their 0 is a 10
    return found


def _cifar(train, test):
    """As many of every class, from cifar10/{train,test}/CLASS/NNNN.jpg in cifar10-images.zip."""
    from PIL import Image

    found = []
    with zipfile.ZipFile(data.find("cifar10-images.zip")) as archive:
        read = lambda n: np.asarray(Image.open(io.BytesIO(archive.read(n))))
        for part, count in (("train", train), ("test", test)):
            names = sorted(n for n in archive.namelist() if f"/{part}/" in n and n.endswith(".jpg"))
            classes = sorted({n.split("/")[-2] for n in names})
            chosen = [[n for n in names if n.split("/")[-2] == c][: count // 10] for c in classes]
            x = np.stack([read(n) for group in chosen for n in group]).astype(np.float32) / 255
            found.append((x, np.repeat(np.arange(10), [len(group) for group in chosen])))
    return found


def _noise(train, test):
    """A stand-in for tests: ten blurred blobs and noise, 28 x 28 x 1."""
    rng = np.random.default_rng(0)
    centres = np.repeat(np.repeat(rng.standard_normal((10, 7, 7, 1)), 4, 1), 4, 2)
    y = [rng.integers(0, 10, n) for n in (train, test)]
    draw = lambda y: centres[y] + 3 * rng.standard_normal((len(y), 28, 28, 1))
    return [(draw(labels).astype(np.float32), labels) for labels in y]
