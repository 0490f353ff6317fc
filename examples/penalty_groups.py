"""How validation overfitting grows with the number of penalties (Maclaurin et al. 2015, section 4).

An MLP learns its L2 or L1 penalties on few validation examples: one for all weights, one per layer,
one per unit (the weights into it), or one per weight, each from the best single one. The more there
are, the lower the validation loss; the test loss on 10,000 examples says how much of that is the
validation set learned by heart. "both" is plain training on both sets.

    python examples/penalty_groups.py --quick --data digits
"""

from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Literal

import matplotlib.pyplot as plt
import numpy as np
import tyro
from authors import slices
from mlp import nll
from tqdm import tqdm

import revgrad as rg
from revgrad import data
from revgrad.records import Record

POWERS = {"L2": np.square, "L1": np.abs}
GROUPS = ("one", "per layer", "per unit", "per weight")
ROWS = [f"{kind}/{row}" for kind in POWERS for row in (*GROUPS, "both")]
PAPER = {f"{row}, validation loss": (None, f"{row}/0") for row in ROWS}
PAPER |= {f"{row}, test loss": (None, f"{row}/1") for row in ROWS}


@dataclass
class Settings:
    folder: Path = Path(".")
    quick: bool = False
    data: Literal["mnist", "digits"] = "mnist"
    sizes: tuple[int, int, int] = (1_000, 500, 10_000)  # of training, validation and test set
    hidden: int = 50
    steps: int = 60
    outer: int = 40
    seeds: int = 3  # of the sets, the start and the batches


class Problem:
    def __init__(self, s, kind, seed):
        self.s, self.power, self.seed, self.report = s, POWERS[kind], seed, rg.Report()
        count = 1_797 if s.data == "digits" else sum(s.sizes)
        ((x, y),) = slices(s.data, count, dtype=np.float32)
        order, draw = (np.random.default_rng((seed, k)) for k in range(2))
        parts = np.split(order.permutation(count), np.cumsum(s.sizes))[:3]
        self.train, self.valid, self.test = ((x[part], y[part]) for part in parts)
        self.start = [
            ((draw.standard_normal((n, m)) / n**0.5).astype(np.float32), np.zeros(m, np.float32))
            for n, m in pairwise((x.shape[1], s.hidden, 10))
        ]

    def loss(self, params, log_penalties, batch):
        pairs = zip(params, log_penalties, strict=True)
        return nll(params, batch) + sum(np.sum(np.exp(a) * self.power(w)) for (w, _), a in pairs)

    def alike(self, group, value):  # they broadcast to the weights
        part = {"per unit": slice(1, 2), "per weight": slice(2)}.get(group, slice(0))
        return [np.full(w.shape[part], value) for w, _ in self.start][: 1 if group == "one" else 2]

    def trained(self, log_penalties, examples):
        batches = data.minibatches(examples, 100, self.seed)
        each = log_penalties * (2 // len(log_penalties))
        return rg.train(
            self.loss, self.start, rg.Momentum(1.0, 0.9), batches, steps=self.s.steps, hyper=each,
            adjoint=rg.Reversible(), report=self.report,
        )  # fmt: skip

    def learn(self, group, value):
        """((validation, test loss) at last, the best log penalties)."""

        def hyperloss(log_penalties):
            params = self.trained(log_penalties, self.train)
            return nll(params, self.valid), params

        more = {"has_aux": True, "progress": False, "until": self.s.outer}
        found = rg.minimize(hyperloss, self.alike(group, value), rg.Adam(0.1), **more)
        return (found.values[-1], float(nll(found.aux, self.test))), found.best_hyper

    def search(self):
        """(Validation, test loss) for each way to share, each from the best single penalty."""
        best = self.learn("one", -7.0)[1]
        rows = {group: self.learn(group, best[0])[0] for group in GROUPS}
        both = map(np.concatenate, zip(self.train, self.valid, strict=True))
        params = self.trained(best, tuple(both))
        rows["both"] = [float(nll(params, split)) for split in (self.valid, self.test)]
        return rows, self.report.bits_per_weight_step


def main(s):
    if s.quick:
        s.sizes, s.hidden, s.steps, s.outer, s.seeds = (200, 100, 1_000), 10, 30, 10, 1
    record = Record(s.folder / "penalty_groups.json", s)
    for name in tqdm([f"{kind} {seed}" for kind in POWERS for seed in range(s.seeds)], "searches"):
        if name not in record:
            kind, seed = name.split()
            record[name], record["bits per weight and step"] = Problem(s, kind, int(seed)).search()
    figure, ax = plt.subplots(figsize=(6, 3.8), layout="constrained")
    for kind in POWERS:
        seeds = [record[f"{kind} {seed}"] for seed in range(s.seeds)]
        record[kind] = {row: np.mean([rows[row] for rows in seeds], 0) for row in seeds[0]}
        labels, ends = [f"{kind}, validation", f"{kind}, test"], record[kind]
        lines = ax.plot(GROUPS, [ends[group] for group in GROUPS], "o-", label=labels)
        ax.axhline(record[kind]["both"][1], color=lines[1].get_color(), linestyle=":")
        print(kind, *(f"{row}: {v:.3f} {t:.3f};" for row, (v, t) in record[kind].items()))
    record.finish()
    ax.set(xlabel="a penalty", ylabel="loss (nats); dotted: test, trained on both sets")
    ax.legend(frameon=False)
    figure.savefig(s.folder / "penalty_groups.png", dpi=100)
    plt.close(figure)
    return {kind: record[kind] for kind in POWERS}


if __name__ == "__main__":
    main(tyro.cli(Settings))
