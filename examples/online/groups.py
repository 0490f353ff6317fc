"""Figure 5: rates for groups of layers, and what their exact influences cost.

    python examples/online/groups.py [--quick] [--data digits] [--folder docs/reproduction]

One rate for all, one for each of the 4 layers, one for each of the 8 tensors (the paper's "6" on
MNIST stands beside 4 layers in its text). The influence of each is a row of its own, pushed by a
Hessian product of its own ("exact"); or one row stands for all of them, as in the authors' code
("shared"); or a random product, whose mean is the exact matrix ("rank 1"). Adam inside, with its
rate and its b1 learning, shows that any optimizer will do. 2 epochs; the paper has 100.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import matplotlib.pyplot as plt
import tyro
from mnist_mlp import Problem
from tqdm import tqdm

import revgrad as rg
from revgrad.records import Record

PAPER = {  # MNIST, 100 epochs: test loss, hours
    "test loss, k = 1": (0.076, "1, exact/test loss"),
    "test loss, k = 4": (0.073, "4, shared/test loss"),
    "hours of k = 4 over those of k = 1": (1.45 / 1.41, "time of 4 shared over 1"),
    "time of 4 exact over 1": (None, "time of 4 exact over 1"),
}


@dataclass
class Settings:
    folder: Path = Path(".")
    quick: bool = False
    data: Literal["mnist", "digits"] = "mnist"
    epochs: int = 2
    rate: float = 0.1
    meta: float = 1e-4


def cases(s, problem):
    trees = {"1": s.rate, "4": [s.rate] * 4, "8": [(s.rate, s.rate)] * 4}
    ways = {"exact": {}, "shared": {"shared": True}, "rank 1": {"rank": 1}}
    found = {}
    for k, tree in trees.items():
        for way, options in ways.items():
            if k != "1" or way == "exact":
                learns = problem.oho(s.rate, 0.0, s.meta, **options)
                found[f"{k}, {way}"] = learns.with_hyper({"learning_rate": tree})
    batches = rg.minibatches(problem.valid, problem.batch, seed=1000)
    above = rg.SGD({"learning_rate": 0.02, "b1": 0.02})
    adam = rg.Adam(
        1e-3,
        eps=1e-4,
        tuned=("learning_rate", "b1"),
        transforms={"learning_rate": "exp", "b1": "sigmoid"},
        tuned_by=rg.RTRL(problem.valid_loss, batches, optimizer=above, reset=100),
    )
    return found | {"Adam inside": adam, "Adam, fixed": rg.Adam(1e-3, eps=1e-4)}


def main(s):
    if s.quick:
        s.epochs = 1
    problem, record = Problem(s.data), Record(s.folder / "groups.json", s)
    for name, optimizer in tqdm(cases(s, problem).items()):

        def run(optimizer=optimizer):
            row, paths = problem.run(optimizer, s.epochs)
            ends = {n: paths[n][-1] for n in paths} if paths is not None else {}
            return {"curve": row["test loss"], "test loss": row["test loss"][-1],
                    "seconds": row["seconds"], "ends": ends}  # fmt: skip

        record.once(name, run)
    names = list(cases(s, problem))
    for way in ("shared", "exact"):
        took = record[f"4, {way}"]["seconds"] / record["1, exact"]["seconds"]
        record[f"time of 4 {way} over 1"] = took
    record.finish()
    draw(s, {name: record[name] for name in names})
    return {name: (record[name]["test loss"], record[name]["seconds"]) for name in names}


def draw(s, rows):
    ax = plt.figure(figsize=(7, 4.2), layout="constrained").subplots()
    marks = {"exact": "o", "shared": "s", "rank 1": "^", "inside": "D", "fixed": "v"}
    for name, row in rows.items():
        mark = next(m for way, m in marks.items() if name.endswith(way))
        if row["test loss"] > 10:
            ax.plot([], [], mark, label=f"{name}: diverged")
            continue
        ax.plot(row["seconds"], row["test loss"], mark, label=name)
    ax.legend(frameon=False, fontsize=8, loc="center right")
    ax.set(
        xlabel=f"seconds of one core, {s.epochs} epochs", ylabel="test loss (nats)", xscale="log"
    )
    ax.figure.savefig(s.folder / "groups.png", dpi=90)
    plt.close(ax.figure)


if __name__ == "__main__":
    print(main(tyro.cli(Settings)))
