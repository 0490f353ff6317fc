"""Learn a rate and a momentum for every step and layer (Maclaurin et al. 2015, figures 2, 3 and 5).

With the initial scales 1,608 hyperparameters of an MLP, from one pass back per outer step. The
objective is the training loss after 100 steps, from a new start and with new batches in each outer
step. The default start is the best single setting that Bayesian optimisation found (rate 2.4,
momentum 0.6, scale 0.2); `--start paper` is the published figures' (rate 0.37, momentum 0.5, scale
0.05).

    python examples/learn_schedules.py --start paper     the figures
    python examples/learn_schedules.py --quick --data digits
"""

from dataclasses import dataclass
from typing import Literal

import matplotlib.pyplot as plt
import mlp
import numpy as np
import tyro
from authors import AuthorsAdam
from mlp import NAMES, Problem

import revgrad as rg
from revgrad import plots
from revgrad.records import Record

STARTS = {"tuned": (0.887, 0.403, -1.63), "paper": (-1.0, 0.0, -3.0)}
LOSSES = {0: 0.5314, 1: 0.4579, 2: 0.3932, 10: 0.2561, 20: 0.2109, 30: 0.1668, 49: 0.1235}
RATES = {(1, 0): 1.63, (1, 99): 0.467, (2, 50): 0.952, (3, 10): 1.32, (4, 8): 6.69, (4, 99): 0.578}
CURVES = {"initial": (2.3019, 1.0076, 0.5343), "final": (2.3784, 0.2287, 0.125)}
SCALES = {"W1": 0.0441, "W2": 0.2493, "W3": 0.1636, "W4": 0.1257}
SCALES |= {"b1": 0.7017, "b2": 0.0560, "b3": 0.0489, "b4": 0.0800}
PAPER = {f"loss, meta-iteration {k}": (x, f"training loss/{k}") for k, x in LOSSES.items()}
for name, curve in CURVES.items():
    for k, loss in zip((1, 51, 100), curve, strict=True):
        PAPER[f"{name} hyperparameters, loss at step {k}"] = (loss, f"curves/{name}/{k - 1}")
PAPER |= {
    f"rate of layer {n}, step {t}": (x, f"rates/layer {n}/{t}") for (n, t), x in RATES.items()
}
PAPER |= {f"initial scale of {name}": (x, f"scales/{name}") for name, x in SCALES.items()}


@dataclass
class Settings(mlp.Settings):
    start: Literal["tuned", "paper"] = "tuned"
    outer: int = 50
    outer_rate: float = 0.04


def learn(s, problem, record):
    """The learned hyperparameters; losses and curves go into the record as they are known."""
    ends = {0: "initial", s.outer - 1: "final"}

    def hyperloss(hyper, seed):  # a seed of its own in each meta-iteration
        return problem.hyperloss(hyper, seed, problem.loss_on_all if seed in ends else None)

    def note(step, metrics):
        record["training loss"] = [*record["training loss"][:step], metrics["value"]]
        record["bits per weight and step"] = problem.report.bits_per_weight_step
        if step in ends:
            record["curves"] = record["curves"] | {ends[step]: problem.report.watched}

    record.once("training loss", list)
    record.once("curves", dict)
    start, save = problem.hyper(*STARTS[s.start]), s.folder / "learn_schedules.safetensors"
    optimizer = AuthorsAdam(s.outer_rate)
    return rg.minimize(hyperloss, start, optimizer, until=s.outer, callback=note, save=save).hyper


def main(s):
    if s.quick:
        s.steps, s.outer, s.examples, s.dtype = 20, 3, 1_000, "float32"
    problem, record = Problem(s), Record(s.folder / "learn_schedules.json", s)
    learned = record.once("learned", lambda: learn(s, problem, record))
    rates = np.exp(learned["log_rate"])
    momenta = rg.unit_interval(np.array(learned["logit_momentum"]))
    columns = {f"layer {k + 1}": 2 * k for k in range(4)}
    record["rates"] = {name: rates[:, k] for name, k in columns.items()}
    record["momenta"] = {name: momenta[:, k] for name, k in columns.items()}
    record["scales"] = dict(zip(NAMES, np.exp(learned["log_scale"]), strict=True))
    record.finish()
    draw(s, record, problem.layers[:-1])
    print(f"training loss {record['training loss'][0]:.4f} -> {record['training loss'][-1]:.4f}")
    return record["training loss"]


def draw(s, record, inputs):
    """Figure 2 and its like for momenta, figure 3, figure 5."""
    grid = plt.figure(figsize=(11, 6.4), layout="constrained").subplots(2, 3)
    for ax, what in zip(grid[0], ("rates", "momenta"), strict=False):
        plots.schedules(record[what], ax, ylabel=f"{what} of the weights")
        ax.get_legend().remove()
    grid[0, 0].legend(frameon=False)
    for name, values in record["curves"].items():
        plots.learning_curve(values, grid[1, 0], f"{name} hyperparameters")
    plots.learning_curve(record["training loss"], grid[1, 1], xlabel="meta-iteration")
    for ax, what in zip(grid[1], ("training loss", "final training loss"), strict=False):
        ax.set_ylabel(f"{what} (nats)")
    for k, (ax, what) in enumerate(zip(grid[:, 2], ("weights", "biases"), strict=True)):
        ax.bar(NAMES[k::2], list(record["scales"].values())[k::2], color="#0072b2")
        ax.set_ylabel(f"initial scale of the {what}")
    at, scales = np.arange(len(inputs)), np.array(inputs) ** -0.5
    grid[0, 2].hlines(scales, at - 0.4, at + 0.4, color="#d55e00", label="1/√inputs")
    grid[0, 2].legend(frameon=False)
    grid[0, 0].figure.savefig(s.folder / "learn_schedules.png", dpi=90)
    plt.close(grid[0, 0].figure)


if __name__ == "__main__":
    main(tyro.cli(Settings))
