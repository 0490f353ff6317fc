"""Table 1: rates, momentum and decay learned from zero, against grid, random search and greed.

    python examples/long_horizon/learned_from_zero.py [--folder docs/reproduction] [--quick]
    python examples/long_horizon/learned_from_zero.py --data svhn
    python examples/long_horizon/learned_from_zero.py --data cifar --steps 100 --batch 32 --values 3
    python examples/long_horizon/learned_from_zero.py --data cifar --full --epochs 50 --batch 256
        --values 5

Everything starts at 0. Ten times a fresh network is trained on a fresh split, with tangents of all
schedules riding along (`rg.Forward`), and each value moves by its own step against the sign of its
hypergradient (`rg.SignDescent`; algorithm 1). Then one network is trained on all data with the last
schedules; or with those that validated best, as the authors' older code has it; or, of the four
that did so, with what does best in three runs more ("tried"), for which the last two outer steps
are given up, so that it costs no more (with 3 values a little). And once more from zero, now with
signs that turn round where a run was lost ("back"; `rg.SignDescent(lost=1.0)`), which is not the
paper's; and both of these.

The rows beside it have the same budget, in runs: a grid by hand, random search over the ranges that
the paper gives, and greed, where the hyperparameters follow the next loss alone as training goes
(`tuned_by`). What is chosen there is chosen by validation. Entries of gradients are held within 3
of 0 in all rows, as in the authors' code. Values may become negative, as they may in its later
version; in the older one they may not (`clamped`).

MNIST and SVHN have the paper's size: LeNet, two epochs by 128, 7 values of the rate, one momentum,
one decay. For CIFAR-10 three convolutions stand in for a wide residual network unless `full`.
The picture has the schedules, hypergradients and accuracy of each outer step (figures 1 and 4), and
the accuracies of what was tried by hand and at random (figure 5).

Source: Micaelli and Storkey 2021, Gradient-based Hyperparameter Optimization over Long Horizons.
"""

from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import tyro
from algorithm1 import again, learn, tried
from pictures import table
from rivals import by_greed, by_hand, by_random_search
from task import task_of

from revgrad.records import Record

PAPER = {
    "hand-tuned grid, test accuracy (%)": (98.4, "rows/hand/mean"),
    "random search": (98.0, "rows/random/mean"),
    "greedy": (97.5, "rows/greedy/mean"),
    "learned from zero": (98.7, "rows/learned/mean"),
    "learned from zero, schedules that validated best": (None, "rows/best/mean"),
    "learned from zero, schedules that did best in new runs": (None, "rows/tried/mean"),
    "learned from zero, going back from lost runs": (None, "rows/back/mean"),
    "both": (None, "rows/both/mean"),
}


@dataclass
class Settings:
    folder: Path = Path(".")  # where learned_from_zero.json and the pictures go
    quick: bool = False  # a small network on a stand-in for data, for tests
    data: str = "mnist"  # mnist, cifar or svhn
    full: bool = False  # for CIFAR-10: all of it, and the paper's network
    epochs: int = 2
    steps: int = 0  # instead of epochs
    batch: int = 128
    values: int = 7  # of the learning rate, each shared by as many steps
    seeds: int = 3
    outer: int = 10
    first: float = 1.0  # times the paper's first steps
    clip: float = 10.0  # of the entries of products with the Hessian
    clamped: bool = False  # hold values within ranges, as the authors' older code


def main(settings=None):
    settings = settings or Settings()
    name = "learned_from_zero" + ("" if settings.data == "mnist" else f"-{settings.data}")
    record, task = Record(settings.folder / f"{name}.json", settings), task_of(settings)
    start = {"rate": np.zeros(settings.values), "momentum": np.zeros(1), "decay": np.zeros(1)}
    runs = int(settings.outer * (1 + mean_columns(start)))  # of plain training, as learning takes
    rivals = {"hand": by_hand, "greedy": by_greed, "random": by_random_search}
    found = {row: [] for row in ("learned", "best", "tried", "back", "both", *rivals)}
    for k in range(settings.seeds):
        once = lambda row, compute, k=k: found[row].append(record.once(f"{row}, seed {k}", compute))
        plain = partial(learn, task, start, settings, k, record)
        once("learned", plain)
        once("back", partial(plain, lost=1.0))
        choices = ("best", again, "learned"), ("tried", tried, "learned"), ("both", tried, "back")
        for row, choose, learned in choices:
            once(row, partial(choose, task, found[learned][k], k))
        for row, rival in rivals.items():
            once(row, partial(rival, task, start, settings, runs, k))
    rows = {row: summary([x["test"] for x in each]) for row, each in found.items()}
    record["rows"] = rows
    record.finish()
    table(settings.folder / f"{name}.png", found, rows)
    return rows


def mean_columns(start):
    """How many tangents ride along in the mean: a value's does so from its first step on."""
    return sum((len(x) + 1) / 2 for x in start.values())


def summary(scores):
    return {"mean": np.mean(scores), "std": np.std(scores, ddof=1) if len(scores) > 1 else 0.0}


if __name__ == "__main__":
    for row, score in main(tyro.cli(Settings)).items():
        print(f"{row:10} {score['mean']:.2f} +- {score['std']:.2f} %")
