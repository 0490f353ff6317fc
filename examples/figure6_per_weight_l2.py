"""Learn a penalty for every weight, as it was published (Maclaurin et al. 2015, figure 6).

7,850 L2 penalties for 7,840 weights and 10 biases, by gradient descent on the validation loss plus
a hundredth of the sum of their squares. Nothing is drawn at random but the start, which is the same
each time; the batches are one epoch in the order of the file. What is learned is a picture for each
digit: dark where a weight is best kept small. `per_weight_l2.py --paper` runs this file too.

    python examples/figure6_per_weight_l2.py
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import matplotlib.pyplot as plt
import numpy as np
import optree
import tyro
from authors import error, nll, slices, start

import revgrad as rg
from revgrad import plots
from revgrad.records import Record

LOSSES = {  # meta-iteration: training loss with penalties, objective, test loss
    0: (0.9105, 0.7586, 0.7049),
    1: (0.8389, 0.6818, 0.6387),
    5: (0.6869, 0.5453, 0.5252),
    10: (0.6221, 0.4955, 0.4890),
    20: (0.5676, 0.4586, 0.4659),
    49: (0.5110, 0.4253, 0.4492),
}
PAPER = {
    f"{what} loss, meta-iteration {k}": (x, f"{what}/{k}")
    for k, row in LOSSES.items()
    for what, x in zip(("train", "validation", "test"), row, strict=True)
} | {
    "test error (%), meta-iteration 0": (15.6, "test error %/0"),
    "meta-iteration 49": (12.6, "test error %/49"),
    "smallest penalty of a weight": (5.6e-4, "penalties/0"),
    "median": (0.0172, "penalties/1"),
    "98th percentile": (0.0270, "penalties/2"),
    "largest": (0.0749, "penalties/3"),
}


@dataclass
class Settings:
    folder: Path = Path(".")
    quick: bool = False
    data: Literal["mnist", "digits"] = "mnist"
    sizes: tuple[int, int, int] = (10_000, 10_000, 1_000)  # of training, validation and test set
    steps: int = 50
    outer: int = 50


def penalised(params, log_penalty, batch):
    squares = optree.tree_map(lambda a, w: np.sum(np.exp(a) * w**2), log_penalty, params)
    return nll(params, batch) + sum(squares.values())


def main(s):
    if s.quick:
        s.outer, s.sizes = 6, (1_000, 400, 300)
    record = Record(s.folder / "figure6_per_weight_l2.json", s)
    train, valid, test = slices(s.data, *s.sizes)
    params, report = start(train[0].shape[1]), rg.Report()
    batches = list(zip(*(np.split(a, s.steps) for a in train), strict=True))
    curves, tried = {k: [] for k in ("train", "validation", "test", "test error %")}, []

    def hyperloss(log_penalty):
        trained = rg.train(
            penalised, params, rg.Momentum(1.0, 0.9), batches, hyper=log_penalty, report=report,
            adjoint=rg.Reversible(), arithmetic=rg.FixedPoint(rounding="truncated"),
        )  # fmt: skip
        penalties = sum(np.sum(np.exp(a) ** 2) for a in log_penalty.values())
        return nll(trained, valid) + 0.01 * penalties, trained

    def note(step, metrics):
        tried.append(metrics["hyper"])
        trained = metrics["aux"]
        found = penalised(trained, metrics["hyper"], train), metrics["value"], nll(trained, test)
        for values, value in zip(curves.values(), (*found, error(trained, test)), strict=True):
            values.append(float(value))

    log_penalty = optree.tree_map(lambda w: np.full_like(w, np.log(0.01) + 1), params)
    more = {"until": s.outer, "has_aux": True, "callback": note}
    rg.minimize(hyperloss, log_penalty, rg.SGD(1_000.0), **more)
    for name, values in curves.items():
        record[name] = values
    record["returned exactly"] = report.returned_exactly
    record["bits per weight and step"] = report.bits_per_weight_step
    penalties = np.exp(tried[-1]["weights"])
    record["penalties"] = np.percentile(penalties, (0, 50, 98, 100))
    record.finish()
    side = round(len(penalties) ** 0.5)
    axes = plots.per_weight_maps(penalties.T, (side, side), label="L2 penalty")
    axes[0].figure.savefig(s.folder / "figure6_per_weight_l2.png", dpi=110)
    plt.close(axes[0].figure)
    print(*(f"{name} {x[0]:.4f} -> {x[-1]:.4f}" for name, x in curves.items()))
    return curves


if __name__ == "__main__":
    main(tyro.cli(Settings))
