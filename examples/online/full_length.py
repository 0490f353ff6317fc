"""Figure 3 at its full length: one training of 100 epochs, and early stopping by itself.

    python examples/online/full_length.py [--quick] [--data digits] [--folder docs/reproduction]

The paper's MNIST setting as it is: 50,000 images, 100 epochs, a rate from 0.001 and a decay from 0,
steps of 5e-6 (and of 5e-8 for the decay). Beside it a rate that stays at 0.1. What early stopping
would have gained is the last test loss less the lowest along the way; section 6.5 says that online
optimisation needs none. "epochs": before a training diverged, if it did. One that is killed goes on
from its own save file.
"""

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import matplotlib.pyplot as plt
import numpy as np
import tyro
from mnist_mlp import Problem, as_floats, thinned
from tqdm import tqdm

import revgrad as rg
from revgrad.records import Record

DIVERGED = 1e9  # what `Problem.run` records then
PAPER = {  # medians of figure 3
    "test loss, online": (0.069, "online/last"),
    "test loss, fixed": (0.119, "fixed/last"),
    "rate, late (authors' recursion, rerun: 0.13)": (0.13, "online/rate"),
}


@dataclass
class Settings:
    folder: Path = Path(".")
    quick: bool = False
    data: Literal["mnist", "digits"] = "mnist"
    epochs: int = 100
    rate: float = 0.001
    meta: float = 5e-6
    fixed: float = 0.1


def trained(s, problem, made, name):
    save = s.folder / f"full_length {name}.safetensors"
    row, paths = problem.run(made, s.epochs, progress=True, save=save, save_every=500)
    save.unlink(missing_ok=True)  # of a run that diverged
    curve = [x for x in row["test loss"] if x < DIVERGED]
    found = {"test loss": curve, "last": curve[-1], "lowest": min(curve), "epochs": len(curve)}
    if paths:
        ends = {"rate": paths["learning_rate"][-1], "decay": paths["weight_decay"][-1]}
        found |= ends | {"paths": thinned(paths)}
    return found


def main(s):
    if s.quick:
        s.epochs = 2
    problem, record = Problem(s.data), Record(s.folder / "full_length.json", s)
    cases = {"online": problem.oho(s.rate, 0.0, s.meta), "fixed": rg.SGD(s.fixed)}
    rows = {}
    for name, made in tqdm(cases.items()):
        rows[name] = record.once(name, partial(trained, s, problem, made, name))
    record["early stopping"] = {name: row["last"] - row["lowest"] for name, row in rows.items()}
    record.finish()
    draw(s, rows)
    keys = "last", "lowest"
    return {name: {k: row[k] for k in keys} for name, row in rows.items()}


def draw(s, rows):
    learned = "paths" in rows["online"]  # it did not diverge
    figure = plt.figure(figsize=(11 if learned else 6, 4), layout="constrained")
    left, right = figure.subplots(1, 2) if learned else (figure.subplots(), None)
    for (name, row), colour in zip(rows.items(), ("#0072b2", "0.6"), strict=True):
        losses = row["test loss"]
        left.plot(np.arange(1, len(losses) + 1), losses, color=colour, label=name)
    for what, (loss, _) in [*PAPER.items()][:2]:
        left.axhline(loss, ls=":", lw=0.8, color="0.3")
        left.annotate(f"paper, {what}", (1, loss), fontsize=8, va="bottom")
    left.set(xlabel="epoch", ylabel="test loss (nats)", yscale="log")
    left.legend(frameon=False)
    if learned:
        path = {name: as_floats(x) for name, x in rows["online"]["paths"].items()}
        right.plot(path["step"], path["learning_rate"], color="#0072b2", label="rate")
        right.plot(path["step"], 1000 * path["weight_decay"], color="#009e73", label="1000 x decay")
        right.set(xlabel="step", ylabel="learned")
        right.legend(frameon=False)
    figure.savefig(s.folder / "full_length.png", dpi=90)
    plt.close(figure)


if __name__ == "__main__":
    print(main(tyro.cli(Settings)))
