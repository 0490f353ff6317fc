"""Figure 3 at its full length: one training of 100 epochs, and early stopping by itself.

    python examples/online/full_length.py [--quick] [--data digits] [--folder docs/reproduction]

The paper's MNIST setting as it is: 50,000 images, 100 epochs, a rate from 0.001 and a decay from 0,
steps of 5e-6 (and of 5e-8 for the decay). Beside it, against spikes of the influence, the same with
influences forgotten after each epoch, or with slopes held within 30; the same with the authors'
products, which are differences of gradients; and a rate that stays at 0.1. What early stopping
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
from mnist_mlp import DIVERGED, Problem, as_floats, thinned
from tqdm import tqdm

import revgrad as rg
from revgrad.records import Record

COLOURS = ("#0072b2", "#009e73", "#d55e00", "#cc79a7", "0.6")
PAPER = {  # medians of figure 3
    "test loss, online": (0.069, "online/last"),
    "test loss, fixed": (0.119, "fixed/last"),
    "test loss, online, forgotten each epoch": (0.069, "forgotten each epoch/last"),
    "test loss, online, slopes clipped": (0.069, "slopes clipped/last"),
    "test loss, online, by differences": (0.069, "by differences/last"),
    "rate, late, by differences (authors' recursion, rerun: 0.13)": (0.13, "by differences/rate"),
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
    clip: float = 30.0


def cases(s, problem):
    online = partial(problem.oho, s.rate, 0.0, s.meta)
    return {
        "online": online(),
        "forgotten each epoch": online(reset=problem.epoch),
        "slopes clipped": online(clip=s.clip),
        "by differences": online(products="differences"),
        "fixed": rg.SGD(s.fixed),
    }


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
    rows = {}
    for name, made in tqdm(cases(s, problem).items()):
        rows[name] = record.once(name, partial(trained, s, problem, made, name))
    record["early stopping"] = {name: row["last"] - row["lowest"] for name, row in rows.items()}
    record.finish()
    draw(s, rows)
    keys = "last", "lowest"
    return {name: {k: row[k] for k in keys} for name, row in rows.items()}


def draw(s, rows):
    left, right = plt.figure(figsize=(11, 4), layout="constrained").subplots(1, 2)
    for (name, row), colour in zip(rows.items(), COLOURS, strict=True):
        losses, path = row["test loss"], row.get("paths")
        left.plot(np.arange(1, len(losses) + 1), losses, color=colour, label=name, lw=1.2)
        if path and "learning_rate" in path:
            epoch = np.array(path["step"]) * s.epochs / path["step"][-1]
            right.plot(epoch, as_floats(path["learning_rate"]), color=colour, label=name, lw=1.2)
    for (what, (loss, _)), style in zip([*PAPER.items()][:2], (":", "--"), strict=True):
        left.axhline(loss, ls=style, lw=0.9, color="0.3", label=f"paper: {what}")
    left.set(xlabel="epoch", ylabel="test loss (nats)", yscale="log")
    left.legend(frameon=False, fontsize=8)
    right.set(xlabel="epoch", ylabel="learned rate")
    left.figure.savefig(s.folder / "full_length.png", dpi=90)
    plt.close(left.figure)


if __name__ == "__main__":
    print(main(tyro.cli(Settings)))
