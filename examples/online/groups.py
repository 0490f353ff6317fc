"""Figure 5: rates for groups of layers, and what their exact influences cost.

    python examples/online/groups.py [--quick] [--data digits] [--folder docs/reproduction]

One rate for all, or one for each of k groups: consecutive layers, and for k above 4, tensors, as
there are 4 layers (weights and biases have rates of their own in the paper, which counts otherwise,
and stops at 6). The influence of each is a row of its own, pushed by a Hessian product of its own
("exact"); or one row stands for all of them, as in the authors' code ("shared"). One decay for all.

Two questions at a shorter length, as neither is the paper's: random products of rank k, whose mean
is the exact matrix; and Adam inside, with its rate and its b1 learning.
"""

from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Literal

import matplotlib.pyplot as plt
import numpy as np
import tyro
from mnist_mlp import Problem
from tqdm import tqdm

import revgrad as rg
from revgrad.records import Record

KS = (1, 2, 3, 4, 6)
LOSSES = (0.076, 0.077, 0.074, 0.073, 0.067)  # the paper's, medians of 10 runs of 100 epochs
HOURS = (1.41, 1.41, 1.44, 1.45, 1.75)
PAPER = {
    f"median test loss, k = {k} (paper: 100 epochs)": (x, f"loss/{k}, shared")
    for k, x in zip(KS, LOSSES, strict=True)
}
PAPER |= {
    f"time over that of k = 1, k = {k}": (x / HOURS[0], f"time/{k}, shared")
    for k, x in zip(KS[1:], HOURS[1:], strict=True)
}
PAPER |= {f"the same, exact, k = {k}": (None, f"time/{k}, exact") for k in KS[1:]}


@dataclass
class Settings:
    folder: Path = Path(".")
    quick: bool = False
    data: Literal["mnist", "digits"] = "mnist"
    epochs: int = 30
    seeds: int = 2  # of what is shared; exactly, one
    rate: float = 0.01
    meta: float = 1e-5
    short: int = 2  # epochs of the two questions
    ranks: tuple[int, ...] = (1, 4)


class Grouped(Problem):
    """The params as k groups of consecutive layers, or tensors."""

    def __init__(self, name, k):
        super().__init__(name)
        self.k = k

    def params(self, seed):
        units = super().params(seed)
        if self.k > len(units):
            units = [[x] for x in chain(*units)]
        ends = np.cumsum([len(part) for part in np.array_split(range(len(units)), self.k)])
        return [list(chain(*units[i:j])) for i, j in zip([0, *ends], ends, strict=False)]

    def outputs(self, params, x):
        flat = list(chain(*params))
        return super().outputs(list(zip(flat[::2], flat[1::2], strict=True)), x)


def learning(s, problem, **options):
    learns = problem.oho(s.rate, 0.0, s.meta, **options)
    return learns.with_hyper({"learning_rate": [s.rate] * problem.k})


def adam(problem):
    batches = rg.minibatches(problem.valid, problem.batch, seed=1000)
    above = rg.SGD({"learning_rate": 0.02, "b1": 0.02})
    return rg.Adam(
        1e-3,
        eps=1e-4,
        tuned=("learning_rate", "b1"),
        transforms={"learning_rate": "exp", "b1": "sigmoid"},
        tuned_by=rg.RTRL(problem.valid_loss, batches, optimizer=above, reset=100),
    )


def main(s):
    if s.quick:
        s.epochs, s.seeds, s.short, s.ranks = 1, 1, 1, (1,)
    record, loss, time = Record(s.folder / "groups.json", s), {}, {}
    cases = [(k, way) for k in KS for way in ("shared", "exact") if k > 1 or way == "shared"]
    for k, way in tqdm(cases):
        problem, rows = Grouped(s.data, k), []
        made = learning(s, problem, shared=way == "shared")
        for seed in range(s.seeds if way == "shared" else 1):
            run = lambda p=problem, o=made, n=seed: p.run(o, s.epochs, n)[0]
            rows.append(record.once(f"{k}, {way}, seed {seed}", run))
        loss[f"{k}, {way}"] = np.median([row["test loss"][-1] for row in rows])
        time[f"{k}, {way}"] = np.mean([row["seconds"] for row in rows])
    record["loss"], record["time"] = loss, {n: x / time["1, shared"] for n, x in time.items()}
    problem = Grouped(s.data, 4)
    short = {"Adam inside": adam(problem), "Adam, fixed": rg.Adam(1e-3, eps=1e-4)}
    short |= {f"4, rank {n}": learning(s, problem, rank=n) for n in s.ranks}
    short["4, exact"] = learning(s, problem)
    for name, made in tqdm(short.items()):
        record.once(f"short: {name}", lambda o=made, p=problem: p.run(o, s.short)[0])
    record.finish()
    draw(s, record, loss)
    found = {name: record[f"short: {name}"]["test loss"][-1] for name in short}
    return {"loss": loss, "time": record["time"], "short": found}


def draw(s, record, loss):
    left, right = plt.figure(figsize=(9, 3.8), layout="constrained").subplots(1, 2)
    for way, mark, colour in (("shared", "s", "#0072b2"), ("exact", "o", "#d55e00")):
        time = {k: record["time"][f"{k}, {way}"] for k in KS if f"{k}, {way}" in loss}
        right.plot(time.keys(), time.values(), mark + "-", color=colour, label=way)
        for seed, style in zip(range(s.seeds), ("-", "--", ":", "-."), strict=False):
            rows = {k: f"{k}, {way}, seed {seed}" for k in time}
            rows = {k: record[n]["test loss"][-1] for k, n in rows.items() if n in record}
            label = f"{way}, seed {seed}" if rows else None
            left.plot(rows.keys(), rows.values(), mark + style, color=colour, label=label)
    left.plot(KS, LOSSES, "k:", label="paper, 100 epochs")
    right.plot(KS, np.array(HOURS) / HOURS[0], "k:", label="paper")
    left.set(xlabel="groups with a rate each", ylabel=f"test loss after {s.epochs} epochs (nats)")
    right.set(xlabel="groups with a rate each", ylabel="time over that of one rate")
    left.legend(frameon=False, fontsize=8)
    left.figure.savefig(s.folder / "groups.png", dpi=90)
    plt.close(left.figure)


if __name__ == "__main__":
    print(main(tyro.cli(Settings)))
