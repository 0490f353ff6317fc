"""Figure 7 and section 6.5: hypergradients of which loss, and does training stop early by itself?

    python examples/online/outer_gradient.py [--quick] [--data digits] [--folder docs/reproduction]

A: rate and decay follow the loss of validation batches, or that of the next training batch (whose
gradient training takes anyway). B: validation batches of 100, 500 and 1,000. So
that training can overfit in minutes, it has 1,000 examples for 200 epochs; the paper has 50,000 and
100.

Section 6.5 says that online optimisation needs no early stopping. Early stopping is worth the final
test loss less the lowest along the way; "regret" is that difference, for fixed rates too.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import matplotlib.pyplot as plt
import numpy as np
import tyro
from mnist_mlp import Problem, as_floats, thinned
from tqdm import tqdm

import revgrad as rg
from revgrad.records import Record

PAPER = {  # at 100 epochs of 50,000 examples
    "A: test loss, validation gradient": (0.068, "final/validation, batches of 500/0"),
    "A: test loss, training gradient": (0.11, "final/training/0"),
    "B: batches of 100 (paper: CIFAR-10)": (0.49, "final/validation, batches of 100/0"),
    "B: batches of 500": (0.37, "final/validation, batches of 500/0"),
    "B: batches of 1,000": (0.33, "final/validation, batches of 1000/0"),
    "B: fixed (paper: CIFAR-10, 0.56 and 0.62)": (0.56, "final/fixed at 0.1/0"),
}


@dataclass
class Settings:
    folder: Path = Path(".")
    quick: bool = False
    data: Literal["mnist", "digits"] = "mnist"
    examples: int = 1_000
    epochs: int = 200
    rate: float = 0.1
    meta: float = 1e-4
    seeds: int = 1
    valid_batches: tuple[int, ...] = (100, 500, 1000)
    fixed: tuple[float, ...] = (0.1, 0.3)
    decay_at_most: float = 0.1


def cases(s):
    """name -> (problem, its optimizer)."""
    bounds = {"weight_decay": (0.0, s.decay_at_most)}
    found = {}
    for size in s.valid_batches:
        problem = Problem(s.data, s.examples, valid_batch=size)
        learns = problem.oho(s.rate, 0.0, s.meta, bounds=bounds)
        found[f"validation, batches of {size}"] = problem, learns
    problem = Problem(s.data, s.examples)
    found["training"] = problem, problem.oho(s.rate, 0.0, s.meta, valid=False, bounds=bounds)
    return found | {f"fixed at {rate:g}": (problem, rg.SGD(rate)) for rate in s.fixed}


def trained(s, problem, optimizer):
    rows = []
    for seed in range(s.seeds):
        row, paths = problem.run(optimizer, s.epochs, seed)
        rows.append(row | {"paths": thinned(paths) if paths is not None and len(paths) else None})
    return rows


def main(s):
    if s.quick:
        s.examples, s.epochs, s.seeds, s.fixed = 500, 4, 1, (0.1,)
    record, final, curves = Record(s.folder / "outer_gradient.json", s), {}, {}
    for name, (problem, optimizer) in tqdm(cases(s).items()):
        rows = record.once(name, lambda p=problem, o=optimizer: trained(s, p, o))
        curves[name] = np.array([row["test loss"] for row in rows])
        last, best = curves[name][:, -1].mean(), curves[name].min(axis=1).mean()
        final[name] = [last, best, last - best]
    record["final"] = final
    record.finish()
    draw(s, record, curves)
    return final


def draw(s, record, curves):
    left, right = plt.figure(figsize=(11, 4), layout="constrained").subplots(1, 2)
    for name, losses in curves.items():
        style = "--" if "fixed" in name else "-"
        left.plot(np.arange(1, losses.shape[1] + 1), losses.mean(axis=0), style, label=name)
        path = record[name][0]["paths"]
        if path:
            right.plot(path["step"], as_floats(path["learning_rate"]), label=name)
    left.set(xlabel=f"epoch of {s.examples:,} examples", ylabel="test loss (nats)", yscale="log")
    left.legend(frameon=False, fontsize=8)
    right.set(xlabel="step", ylabel="learning rate")
    left.figure.savefig(s.folder / "outer_gradient.png", dpi=90)
    plt.close(left.figure)


if __name__ == "__main__":
    print(main(tyro.cli(Settings)))
