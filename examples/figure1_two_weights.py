"""Learn learning rates and momenta for two weights (Maclaurin et al. 2015, figure 1).

Fifty steps of training walk down a curved valley. A hundred hyperparameters, a rate and a momentum
for each step, take three steps of their own by the exact derivative of the loss at the end. The
second training ends lower; the third does too, past the lowest point on its way.

    python examples/figure1_two_weights.py
"""

from dataclasses import dataclass
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import tyro

import revgrad as rg
from revgrad.records import Record

PAPER = {
    "final loss, first training": (395.3049, "final losses/0"),
    "second": (356.5662, "final losses/1"),
    "third": (356.3413, "final losses/2"),
    "loss one step earlier, first training": (414.845, "losses one step earlier/0"),
    "second, one step earlier": (376.700, "losses one step earlier/1"),
    "third, one step earlier": (347.378, "losses one step earlier/2"),
    "lowest learned rate": (0.010400, "learned rates/0"),
    "highest learned rate": (0.012600, "learned rates/1"),
    "lowest learned momentum": (0.98872, "learned momenta/0"),
    "highest learned momentum": (0.99063, "learned momenta/1"),
}
START = np.array([1.4, 3.9])  # (y, x)


@dataclass
class Settings:
    folder: Path = Path(".")
    quick: bool = False  # the same: it takes a second
    steps: int = 50
    outer: int = 3
    log_rate: float = -4.5
    momentum: float = 0.99


def surface(weights):
    y, x = weights
    height = 100 * (x - y**2) ** 2 + (1 - y) ** 2 + 200 * y
    return 800 / (1 + np.exp(-height / 500))


def loss(weights, _hyper, _batch):
    return surface(weights)


def main(s):
    record = Record(s.folder / "figure1_two_weights.json", s)
    authors = rg.FixedPoint(rounding="truncated")  # of momenta
    trajectories, reports, tried = [], [], []

    def hyperloss(hyper):
        """The loss after training with these schedules."""
        walked, report = [], rg.Report()
        optimizer = rg.Momentum(
            rg.per_step(np.exp(hyper["log_rate"])), rg.per_step(rg.unit_interval(hyper["logit"]))
        )
        end = rg.train(
            loss, START, optimizer, lambda step: None, steps=s.steps, adjoint=rg.Reversible(),
            arithmetic=authors, report=report, watch=lambda _, w: walked.append(w.copy()) or 0.0,
        )  # fmt: skip
        trajectories.append(walked)
        reports.append(report)
        return surface(end)

    def note(step, metrics):
        tried.append(metrics["hyper"])

    # The authors' outer optimizer: gradient descent with momentum 0.9, step 0.01.
    hyper = {
        "log_rate": np.full(s.steps, s.log_rate),
        "logit": np.full(s.steps, rg.unit_interval.inverse(s.momentum)),
    }
    found = rg.minimize(
        hyperloss, hyper, rg.Momentum(0.01, 0.9), until=s.outer, progress=False, callback=note
    )
    rates, momenta = np.exp(tried[-1]["log_rate"]), rg.unit_interval(tried[-1]["logit"])
    record["final losses"] = found.values
    record["losses one step earlier"] = [surface(walked[-1]) for walked in trajectories]
    record["learned rates"] = [rates.min(), rates.max()]
    record["learned momenta"] = [momenta.min(), momenta.max()]
    record["returned exactly"] = all(r.returned_exactly for r in reports)
    record["bits per weight and step"] = reports[0].bits_per_weight_step
    record.finish()
    draw(s, trajectories)
    print("final losses", *(f"{x:.6f}" for x in found.values))
    return found.values


def draw(s, trajectories):
    y, x = np.meshgrid(np.linspace(-2.2, 2.2, 120), np.linspace(-2, 4.5, 120))
    ax = plt.figure(figsize=(6, 5)).add_subplot(projection="3d", computed_zorder=False)
    ax.plot_wireframe(x, y, surface((y, x)), rcount=30, ccount=30, color="0.75", linewidth=0.5)
    for k, walked in enumerate(trajectories):
        y, x = np.transpose(walked)
        (line,) = ax.plot(x, y, surface((y, x)) + 4, label=f"training {k + 1}", linewidth=2)
        ax.plot(x[-1:], y[-1:], surface((y, x))[-1:] + 4, "o", color=line.get_color())
    ax.set(xlabel="weight 1", ylabel="weight 2", zlabel="training loss")
    ax.view_init(elev=50, azim=-60)
    ax.legend(frameon=False)
    ax.figure.savefig(s.folder / "figure1_two_weights.png", dpi=110, bbox_inches="tight")
    plt.close(ax.figure)


if __name__ == "__main__":
    main(tyro.cli(Settings))
