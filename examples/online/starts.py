"""Figure 3: where it starts matters less when rate and decay learn online.

    python examples/online/starts.py [--quick] [--data digits] [--folder docs/reproduction]

Final test losses over a grid of initial rates and decays, for rates that stay, fall along a cosine,
in steps or exponentially (each to a hundredth), and that learn online: one rate and one decay, one
for each layer exactly (5 rows of influence), or for each layer from one shared row, which is what
the paper calls layerwise. The paper trains for 100 epochs, over a grid that it does not give; here
there are 30 epochs, and rates from 0.001 to 0.3. `full_length.py` has 100.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import matplotlib.pyplot as plt
import numpy as np
import tyro
from mnist_mlp import DIVERGED, Problem
from tqdm import tqdm

import revgrad as rg
from revgrad.records import Record

METHODS = ("fixed", "cosine", "step", "exponential", "online", "layers", "layers, shared")
FIGURE_3 = {  # median, lowest and highest test loss on MNIST
    "fixed": (0.119, 0.082, 0.378),
    "cosine": (0.113, 0.085, 0.390),
    "step": (0.116, 0.085, 0.379),
    "exponential": (0.102, 0.083, 0.384),
    "online": (0.069, 0.066, 0.073),
    "layers, shared": (0.069, 0.066, 0.075),
}
PAPER = {
    f"{name}: {what} test loss (paper: 100 epochs)": (x, f"final/{name}/{k}")
    for name, row in FIGURE_3.items()
    for k, (what, x) in enumerate(zip(("median", "lowest", "highest"), row, strict=True))
}


@dataclass
class Settings:
    folder: Path = Path(".")
    quick: bool = False
    data: Literal["mnist", "digits"] = "mnist"
    epochs: int = 30
    meta: float = 1e-5
    rates: tuple[float, ...] = (0.001, 0.01, 0.1, 0.3)
    decays: tuple[float, ...] = (1e-4,)


def optimizer(s, problem, method, rate, decay):
    steps = s.epochs * problem.epoch
    t = np.arange(steps) / steps
    falling = {
        "cosine": (1 + np.cos(np.pi * t)) / 2,
        "step": 0.1 ** np.floor(3 * t),
        "exponential": 0.01**t,
    }
    if method in falling:
        return rg.SGD(rg.per_step(rate * falling[method]), weight_decay=decay)
    if method == "fixed":
        return rg.SGD(rate, weight_decay=decay)
    if method == "online":
        return problem.oho(rate, decay, s.meta)
    return by_layer(problem, rate, decay, s.meta, shared=method == "layers, shared")


def by_layer(problem, rate, decay, meta, **options):
    """A rate for each layer, weights and biases alike; one decay."""
    learns = problem.oho(rate, decay, meta, **options)
    return learns.with_hyper({"learning_rate": [rate] * 4})


def main(s):
    if s.quick:
        s.epochs, s.rates, s.decays = 1, (0.1,), (1e-4,)
    problem, record = Problem(s.data), Record(s.folder / "starts.json", s)
    starts = [(rate, decay) for rate in s.rates for decay in s.decays]
    final = {}
    for method in tqdm(METHODS):
        losses = []
        for rate, decay in starts:
            made = optimizer(s, problem, method, rate, decay)
            name = f"{method}, rate {rate:g}, decay {decay:g}"
            row = record.once(name, lambda made=made: problem.run(made, s.epochs)[0])
            losses.append(row["test loss"][-1])
        final[method] = [np.median(losses), min(losses), max(losses), losses]
    record["final"] = final
    record.finish()
    draw(s, final)
    return {name: row[:3] for name, row in final.items()}


def draw(s, final):
    ax = plt.figure(figsize=(7, 4), layout="constrained").subplots()
    rng = np.random.default_rng(0)
    for k, (name, (median, *_, losses)) in enumerate(final.items()):
        at = k + rng.uniform(-0.15, 0.15, len(losses))
        ended = np.array(losses) < DIVERGED
        ax.plot(at[ended], np.array(losses)[ended], "o", color="#0072b2", alpha=0.6)
        ax.plot(at[~ended], np.full(sum(~ended), 3.0), "x", color="#0072b2")
        ax.plot([k - 0.3, k + 0.3], [median] * 2, color="#d55e00")
        if name in FIGURE_3:
            ax.plot([k - 0.3, k + 0.3], FIGURE_3[name][:1] * 2, ":", color="0.4")
    ax.set_xticks(range(len(final)), final, rotation=20)
    ax.set(yscale="log", ylabel=f"test loss after {s.epochs} epochs (nats)")
    ax.set_title("bars: median; dotted: the paper's, 100 epochs; cross: diverged", fontsize=10)
    ax.figure.savefig(s.folder / "starts.png", dpi=90)
    plt.close(ax.figure)


if __name__ == "__main__":
    print(main(tyro.cli(Settings)))
