"""Figures 4B and 6 with convolutions: where it starts, and a rate that is set wrong on the way.

    python examples/online/convolutions.py [--quick] [--data digits] [--folder docs/reproduction]

Figure 4B: test losses from two initial rates, for one rate and one decay that learn online, and
for each layer with its own, all carried by one shared row; beside rates that stay. Figure 6: a
training that learns is interrupted half-way, its rate set too high, and goes on, learning it or
leaving it there. CIFAR-10 as in the paper, where ResNet-18 learns from 45,000 images for 300
epochs; here three small convolutions learn from 4,000 images for 10 (`small_conv.py`). Influences
begin anew after the interruption; the paper keeps them. Steps of what learns are 60 times the
paper's, as there are 400 of them and not 135,000.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import matplotlib.pyplot as plt
import numpy as np
import tyro
from mnist_mlp import as_floats, thinned
from small_conv import AT_MOST, ConvProblem
from tqdm import tqdm

import revgrad as rg
from revgrad.records import Record

METHODS = ("fixed", "one rate", "by layer")
PAPER = {  # test losses after 300 epochs, read off the figures
    "4B: one rate, lowest": (0.37, "4B/one rate/0"),
    "4B: one rate, highest": (0.47, "4B/one rate/2"),
    "4B: by layer, lowest": (0.33, "4B/by layer/0"),
    "4B: by layer, highest": (0.38, "4B/by layer/2"),
    "6: test loss, the rate set to 0.2 and left there": (0.60, "6/left there"),
    "6: test loss, set to 0.2 and learning (paper: 0.28 to 0.44)": (0.36, "6/learning"),
}


@dataclass
class Settings:
    folder: Path = Path(".")
    quick: bool = False
    data: Literal["cifar", "digits"] = "cifar"
    images: tuple[int, int, int] = (4_000, 1_000, 2_000)
    epochs: int = 10
    meta: float = 3e-4
    rates: tuple[float, ...] = (0.1, 0.2)
    bad: float = 0.3


def optimizer(s, problem, method, rate):
    if method == "fixed":
        return rg.SGD(rate)
    many, bounds = method == "by layer", {"weight_decay": (0.0, AT_MOST)}
    learns = problem.oho(rate, 0.0, s.meta, bounds=bounds, shared=many)
    layers = {"learning_rate": [rate] * 4, "weight_decay": [0.0] * 4}
    return learns.with_hyper(layers) if many else learns


def run(problem, made, epochs, **options):
    row, paths = problem.run(made, epochs, **options)
    return row | {"paths": thinned(paths) if paths is not None and len(paths) else None}


def figure_4b(s, problem, record):
    found = {}
    for method in METHODS:
        for rate in tqdm(s.rates, desc=method):
            made, name = optimizer(s, problem, method, rate), f"{method} from {rate:g}"
            found[method, rate] = record.once(name, lambda o=made: run(problem, o, s.epochs))
    ends = {m: sorted(found[m, rate]["test loss"][-1] for rate in s.rates) for m in METHODS}
    record["4B"] = {m: [x[0], float(np.median(x)), x[-1]] for m, x in ends.items()}
    return found


def figure_6(s, problem, record):
    """From where a training that learns is after half of the epochs."""
    made, half, found = optimizer(s, problem, "one rate", s.rates[0]), s.epochs / 2, {}
    given = problem.params(0), made, rg.minibatches(problem.train, problem.batch, 0)
    if "learning" not in record:
        params, _ = rg.fit(problem.loss, *given, steps=int(half * problem.epoch))
        problem.params = lambda seed: params
    for name, method in (("left there", "fixed"), ("learning", "one rate")):
        after = optimizer(s, problem, method, s.bad)
        found[name] = record.once(name, lambda o=after: run(problem, o, half, seed=1))
    record["6"] = {name: row["test loss"][-1] for name, row in found.items()}
    return found


def main(s):
    if s.quick:
        s.epochs, s.rates = 2, (0.1,)
    problem, record = ConvProblem(s.data, s.images), Record(s.folder / "convolutions.json", s)
    found, after = figure_4b(s, problem, record), figure_6(s, problem, record)
    record.finish()
    draw(s, found, after)
    return {key: record[key] for key in ("4B", "6")}


def draw(s, found, after):
    a, b, c = plt.figure(figsize=(13, 3.8), layout="constrained").subplots(1, 3)
    colours = dict(zip(METHODS, ("0.6", "#0072b2", "#d55e00"), strict=True))
    for (method, rate), row in found.items():
        style = dict(zip(s.rates, ("-", "--", ":"), strict=False))[rate]
        losses, label = row["test loss"], method if style == "-" else None
        a.plot(np.arange(1, len(losses) + 1), losses, style, color=colours[method], label=label)
        if method == "one rate" and row["paths"]:
            path = {name: as_floats(x) for name, x in row["paths"].items()}
            b.plot(path["step"], path["learning_rate"], style, color="#0072b2", label=f"{rate:g}")
            decay = 100 * path["weight_decay"]
            b.plot(path["step"], decay, style, color="#009e73", lw=1)
    for (name, row), colour in zip(after.items(), ("0.6", "#0072b2"), strict=True):
        losses = np.minimum(row["test loss"], 10.0)
        at = s.epochs / 2 + np.arange(1, len(losses) + 1)
        c.plot(at, losses, "o-", color=colour, label=f"rate set to {s.bad:g}, {name}")
    a.set(xlabel="epoch", ylabel="test loss (nats)", title="two starts: solid and dashed")
    b.set(
        xlabel="step", ylabel="rate (blue), 100 times the decay (green)", title="what was learned"
    )
    c.set(xlabel="epoch", ylabel="test loss (nats)")
    for ax in (a, b, c):
        ax.legend(frameon=False, fontsize=8)
    a.figure.savefig(s.folder / "convolutions.png", dpi=90)
    plt.close(a.figure)


if __name__ == "__main__":
    print(main(tyro.cli(Settings)))
