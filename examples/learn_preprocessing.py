"""Learn the preprocessing of images, the strength of augmentation, and the weight of each example.

Section 3.3 of Maclaurin et al. 2015 proposes to learn whatever stands between the data and the
loss. Here that is a gain and a shift for every pixel, the strength of the noise that is added to
images while training, and a weight for every training example, a fifth of which carry a wrong
label: thousands of hyperparameters, all from the gradient of one validation loss. Nobody tells the
weights which labels are wrong. So many can overfit the validation set: they do with 2,000 examples
of it (--held-out 2000 --outer 60), where all together are worse in the test than some.

    python examples/learn_preprocessing.py                          MNIST, 4 minutes on one core
    python examples/learn_preprocessing.py --data digits --quick    seconds
"""

from dataclasses import dataclass
from math import isqrt
from pathlib import Path
from typing import Literal

import matplotlib.pyplot as plt
import numpy as np
import tyro
from sklearn.metrics import roc_auc_score

import revgrad as rg
from revgrad import data
from revgrad.nn import log_softmax
from revgrad.records import Record

PAPER = {
    "wrong labels told from right ones (area under ROC)": (None, "area under ROC"),
    "test loss, nothing learned (nats)": (None, "test/nothing"),
    "weights learned": (None, "test/weights"),
    "preprocessing and noise learned": (None, "test/preprocessing"),
    "all learned": (None, "test/all"),
}
PARTS = {
    "nothing": (),
    "weights": ("log_weight",),
    "preprocessing": ("gain", "shift", "log_noise"),
    "all": ("gain", "shift", "log_noise", "log_weight"),
}


@dataclass
class Settings:
    folder: Path = Path(".")
    quick: bool = False
    data: Literal["mnist", "digits"] = "mnist"
    examples: int = 2_000
    held_out: int = 10_000  # to validate with
    wrong: float = 0.2  # the share of training labels that are
    steps: int = 100
    batch: int = 200
    outer: int = 40
    rate: float = 1.0
    outer_rate: float = 0.1


def losses(params, hyper, x, y):
    """Negative log-likelihood of each example, nats."""
    x = x * hyper["gain"] + hyper["shift"]
    return -np.sum(y * log_softmax(x @ params["weights"] + params["bias"]), axis=1)


def loss(params, hyper, batch):
    x, y, rows, noise = batch
    weight = np.exp(hyper["log_weight"])
    x = x + np.exp(hyper["log_noise"]) * noise
    return np.mean(losses(params, hyper, x, y) * weight[rows]) / np.mean(weight)


class Problem:
    def __init__(self, s):
        self.s, rng = s, np.random.default_rng(0)
        read = data.mnist if s.data == "mnist" else data.digits
        sets = read(s.examples, s.held_out)
        labels = sets.train.y.copy()
        self.wrong = rng.random(len(labels)) < s.wrong
        labels[self.wrong] = (labels[self.wrong] + rng.integers(1, 10, self.wrong.sum())) % 10
        self.train = sets.train.x, data.one_hot(labels, 10)
        self.valid, self.test = ((x, data.one_hot(y, 10)) for x, y in sets[1:])
        self.rows = rg.minibatches(np.arange(s.examples), s.batch, seed=0)
        pixels = sets.train.x.shape[1]
        self.params = {
            "weights": np.zeros((pixels, 10), np.float32), "bias": np.zeros(10, np.float32)
        }  # fmt: skip
        self.start = {
            "gain": np.ones(pixels), "shift": np.zeros(pixels), "log_noise": -3.0,
            "log_weight": np.zeros(s.examples),
        }  # fmt: skip
        self.report = rg.Report()

    def batch(self, step):
        rows, (x, y) = self.rows(step), self.train
        noise = np.random.default_rng((1, step)).standard_normal(x[rows].shape, np.float32)
        return x[rows], y[rows], rows, noise

    def trained(self, hyper):
        return rg.train(
            loss, self.params, rg.Momentum(self.s.rate), self.batch, steps=self.s.steps,
            hyper=hyper, adjoint=rg.Reversible(), report=self.report,
        )  # fmt: skip

    def hyperloss(self, hyper):
        return np.mean(losses(self.trained(hyper), hyper, *self.valid))

    def learn(self, names, save):
        """What some of the hyperparameters end at, and the validation losses on the way."""
        some, s = {k: self.start[k] for k in names}, self.s
        hyperloss = lambda some: self.hyperloss(self.start | some)
        found = rg.minimize(hyperloss, some, rg.Adam(s.outer_rate), until=s.outer, save=save)
        return {"hyper": found.best_hyper, "values": found.values}


def picture(problem, hyper, runs, path):
    figure, axes = plt.subplots(1, 4, figsize=(15, 3.5), layout="constrained")
    side = isqrt(len(hyper["gain"]))
    for ax, name in zip(axes, ("gain", "shift"), strict=False):
        change = (hyper[name] - problem.start[name]).reshape(side, side)
        far = np.abs(change).max()
        shown = ax.imshow(change, cmap="RdBu_r", vmin=-far, vmax=far)
        ax.set(title=f"change of each pixel's {name}", xticks=[], yticks=[])
        figure.colorbar(shown, ax=ax)
    weight = np.exp(hyper["log_weight"])
    bins = np.geomspace(weight.min(), weight.max(), 40)
    for name, which in (("right label", ~problem.wrong), ("wrong label", problem.wrong)):
        axes[2].hist(weight[which], bins, alpha=0.6, label=name)
    axes[2].set(xscale="log", xlabel="learned weight of an example", ylabel="examples")
    for name, run in runs.items():
        axes[3].plot(run["values"], label=name)
    axes[3].set(xlabel="meta-iteration", ylabel="validation loss (nats)")
    for ax in axes[2:]:
        ax.legend()
    figure.savefig(path, dpi=90)
    plt.close(figure)


def main(s):
    if s.quick:
        s.examples, s.held_out, s.steps, s.outer = 600, 400, 30, 15
    record, problem = Record(s.folder / "learn_preprocessing.json", s), Problem(s)
    runs, test = {}, {}
    for kind, names in PARTS.items():
        hyper = problem.start
        if names:
            save = s.folder / f"learn_preprocessing_{kind}.safetensors"
            runs[kind] = record.once(kind, lambda n=names, f=save: problem.learn(n, f))
            hyper = hyper | {k: np.array(x) for k, x in runs[kind]["hyper"].items()}
        test[kind] = np.mean(losses(problem.trained(hyper), hyper, *problem.test))
        print(f"{kind:>15} learned: test loss {test[kind]:.4f}")
    record["test"] = test
    record["noise"] = np.exp(hyper["log_noise"])
    record["area under ROC"] = roc_auc_score(problem.wrong, -hyper["log_weight"])
    record["bits per weight and step"] = problem.report.bits_per_weight_step
    print("noise", record["noise"], "; area under ROC", record["area under ROC"])
    picture(problem, hyper, runs, s.folder / "learn_preprocessing.png")
    record.finish()
    return {"test": test, "area under ROC": record["area under ROC"]}


if __name__ == "__main__":
    main(tyro.cli(Settings))
