"""Alphabets and the same turned by 90 degrees, as tasks, and their picture."""

import matplotlib.pyplot as plt
import numpy as np

from revgrad import data

DRAWERS = 15


def alphabets(name):
    """{alphabet: drawings (characters, drawers, side, side)}; "digits" makes two of digits."""
    if name == "omniglot":
        return {k: x[:, :DRAWERS] for k, x in data.omniglot("small1").items()}
    x, y = data.digits(1500, 200).train
    each = np.stack([x[y == k][:DRAWERS].reshape(-1, 8, 8) for k in range(10)])
    return {"0 to 4": each[:5], "5 to 9": each[5:]}


class Tasks:
    """names; drawings (characters, drawers, side, side) and labels by task; pixels of a drawing."""

    def __init__(self, name, outputs):
        named, rng = alphabets(name), np.random.default_rng(0)
        self.drawings, self.labels, self.outputs = [], [], outputs
        for x in named.values():
            order = rng.permuted(np.tile(np.arange(DRAWERS), (len(x), 1)), axis=1)
            self.drawings.append(x[np.arange(len(x))[:, None], order])
            self.labels.append(rng.permutation(len(x)))
        # A rotation keeps the labels and the order of drawers: no drawing that is trained on,
        # either way up, is tested on.
        self.drawings += [np.swapaxes(x, 2, 3)[..., ::-1] for x in self.drawings]
        self.labels += self.labels
        self.names = [*named, *(f"{k}, turned" for k in named)]
        self.mean = np.mean(np.concatenate([np.concatenate(x) for x in self.drawings]), axis=0)
        self.pixels = self.mean.size

    def __len__(self):
        return len(self.names)

    def batch(self, drawers):
        """Pixels (tasks, examples, pixels); one-hot labels over their number, 0 where padded."""
        most = max(map(len, self.drawings)) * len(drawers)
        x = np.zeros((len(self), most, self.pixels), np.float32)
        targets = np.zeros((len(self), most, self.outputs), np.float32)
        for k, (drawn, labels) in enumerate(zip(self.drawings, self.labels, strict=True)):
            n = len(labels) * len(drawers)
            x[k, :n] = (drawn[:, drawers] - self.mean).reshape(n, -1)
            targets[k, :n] = data.one_hot(np.repeat(labels, len(drawers)), self.outputs) / n
        return x, targets


def correlations(t):
    """Between the tasks' weights, where those of z are independent."""
    covariance = t @ t.T
    size = np.sqrt(np.diag(covariance))
    return covariance / np.outer(size, size)


def picture(tasks, mixing, values, path):
    figure = plt.figure(figsize=(11, 7.5), layout="constrained")
    axes = figure.subplot_mosaic("AAB;012", height_ratios=(1, 1.2))
    rows = [np.hstack(x[:12, 0] if len(x) > 11 else x[:5, 0]) for x in tasks.drawings]
    axes["A"].imshow(np.vstack(rows), cmap="gray_r")
    axes["A"].set(title="characters, a task to a row", xticks=[], yticks=[])
    axes["B"].plot(values, ".-")
    axes["B"].set(xlabel="meta-iteration", ylabel="validation loss (nats)")
    for k, t in enumerate(mixing):
        shown = axes[str(k)].imshow(correlations(np.asarray(t)), vmin=0, vmax=1)
        axes[str(k)].set(title=f"layer {k + 1}", xticks=[], yticks=[])
    axes["0"].set_yticks(range(len(tasks.names)), tasks.names)
    figure.colorbar(shown, ax=axes["2"], label="learned correlation of the weights")
    figure.savefig(path, dpi=100)
    plt.close(figure)
