"""Training loss against the learning rate, and where its exact derivative stops being of use.

The derivative of the final loss with respect to one log learning rate, at 200 rates (Maclaurin et
al. 2015, figure 10). As the rate grows training becomes chaotic: the derivative stays exact, but of
a curve so ragged that it says nothing about the curve's course. How much it says is measured by its
distance to the slope between the neighbours on the paper's grid of 1,000 rates. `Report.chaos`, the
growth of log |dL/dparams| per step on the way back, sees it coming from a single run.

    python examples/chaos.py                          MNIST, 6 minutes on one core
    python examples/chaos.py --data digits --quick    seconds
"""

from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Literal

import matplotlib.pyplot as plt
import numpy as np
import tyro
from tqdm import tqdm

import revgrad as rg
from revgrad import data
from revgrad.nn import softmax_cross_entropy
from revgrad.records import Record

GRID = np.linspace(0.5, 2.5, 1000)  # log rates, the paper's
BANDS = (0.5, 1.25, 1.5, 1.75, 2.0, 2.25)
PAPER = {  # the authors' files
    "loss at log rate 0.5 (nats)": (0.0288064, "0/loss"), "slope ": (-0.0620982, "0/slope"),
    "loss at 0.7503": (0.0165858, "125/loss"), "slope  ": (-0.0352997, "125/slope"),
    "loss at 1.0005": (0.00956840, "250/loss"), "slope   ": (-0.0206347, "250/slope"),
    "loss at 1.2508": (0.00560651, "375/loss"), "slope    ": (-0.0119406, "375/slope"),
    "loss at 1.4009": (0.00412201, "450/loss"), "slope     ": (-0.0101711, "450/slope"),
    "loss at 1.4990": (0.00427716, "499/loss"), "slope      ": (-0.117729, "499/slope"),
    "least loss": (0.00244, "least loss"),
    "distance of slope and difference quotient, log rate below 1.25": (2e-5, "distance/0"),
    "from 1.25 to 1.5": (2e-4, "distance/1"), "from 1.5 to 1.75": (0.15, "distance/2"),
    "chaos per step, below 1.25": (None, "chaos/0"), "1.25 to 1.5": (None, "chaos/1"),
    "1.5 to 1.75": (None, "chaos/2"), "1.75 to 2": (None, "chaos/3"),
}  # fmt: skip
THEIRS = sorted({int(key.split("/")[0]) for _, key in PAPER.values() if key[0].isdigit()})
AS_AUTHORS = rg.FixedPoint({"params": 52, "velocity": 52}, rounding="truncated")


@dataclass
class Settings:
    folder: Path = Path(".")
    quick: bool = False
    data: Literal["mnist", "digits"] = "mnist"
    steps: int = 50


def loss(params, _hyper, batch):
    x, y = batch
    for weights, bias in params[:-1]:
        x = np.tanh(x @ weights + bias)
    return softmax_cross_entropy(x @ params[-1][0] + params[-1][1], y)


class Problem:
    def __init__(self, s):
        read = data.mnist if s.data == "mnist" else data.digits
        x, labels = read(1000, 10, dtype=np.float64).train
        y = data.one_hot(labels, 10, np.float64)
        self.steps, self.everything = s.steps, (x, y)
        self.batches = list(zip(np.split(x, 4), np.split(y, 4), strict=True))
        noise, sizes = np.random.RandomState(0), (x.shape[1], 200, 50, 10)
        draw = lambda *shape: np.exp(-2) * noise.randn(*shape)
        for _ in range(2):  # theirs draws a velocity first, and multiplies it by 0
            self.start = [(draw(n, m), draw(m)) for n, m in pairwise(sizes)]

    def final_loss(self, log_rate, report=None):
        trained = rg.train(
            loss, self.start, rg.Momentum(np.exp(log_rate)), self.batches, steps=self.steps,
            adjoint=rg.Reversible(), arithmetic=AS_AUTHORS, report=report,
        )  # fmt: skip
        return loss(trained, None, self.everything)

    def point(self, log_rate):
        """What there is to know at a rate; None for what left the floats."""
        report, step = rg.Report(), GRID[1] - GRID[0]
        found = {"log rate": log_rate, "loss": None, "slope": None, "difference": None}
        try:
            found["loss"], found["slope"] = rg.value_and_grad(self.final_loss)(log_rate, report)
            ahead, behind = (self.final_loss(log_rate + e) for e in (step, -step))
            found["difference"] = (ahead - behind) / (2 * step)
        except (rg.NotFinite, rg.FixedOverflow):
            pass
        return found | {"chaos": report.chaos}


def picture(points, path):
    columns = {k: np.array([p[k] for p in points], float) for k in points[0]}
    x, apart = columns["log rate"], abs(columns["slope"] / columns["difference"] - 1)
    figure, axes = plt.subplots(4, sharex=True, figsize=(7, 9), layout="constrained")
    rows = (columns["loss"], columns["slope"], apart, columns["chaos"])
    for ax, values in zip(axes, rows, strict=True):
        ax.plot(x, values, ".-", ms=3, lw=0.6)
    axes[0].set(ylabel="training loss (nats)", ylim=(0, 0.1))
    axes[1].set(ylabel="dL / dlog rate (nats)", ylim=(-0.5, 0.5))
    axes[2].set(ylabel="distance of slope and\ndifference quotient", yscale="log", ylim=(1e-8, 1e8))
    axes[3].set(ylabel="chaos: growth of\nlog |dL/dparams| per step", xlabel="log learning rate")
    figure.savefig(path, dpi=110)
    plt.close(figure)


def main(s):
    record, problem = Record(s.folder / "chaos.json", s), Problem(s)
    wanted = [*range(0, 375, 8), *range(375, 900, 4), *range(900, 1000, 6), *THEIRS]
    wanted = [0, 20, 40, 500, 520, 540] if s.quick else sorted({*wanted})
    points = [record.once(f"{k}", lambda k=k: problem.point(GRID[k])) for k in tqdm(wanted)]
    bands = [
        [p for p in points if low <= p["log rate"] < high and p["difference"]]
        for low, high in pairwise(BANDS)
    ]
    median = lambda values: float(np.median([*values] or np.nan))
    record["chaos"] = [median(p["chaos"] for p in band) for band in bands]
    record["distance"] = [median(abs(p["slope"] / p["difference"] - 1) for p in b) for b in bands]
    record["least loss"] = min(p["loss"] for p in points if p["loss"])
    print("by bands of log rates", BANDS, record["distance"], record["chaos"], sep="\n")
    picture(points, s.folder / "chaos.png")
    record.finish()
    return points


if __name__ == "__main__":
    main(tyro.cli(Settings))
