"""Figure 2, reduced: a small ResNet on CIFAR-10 whose SGD learns its rate and momentum.

    python examples/towers/resnet.py [--quick] [--full] [--folder docs/reproduction]

2a: from good and bad first values of (rate, momentum), plain and tuned by one more SGD with a step
of its own for each: rate^2 / 1000 for the rate, 1e-6 / (1 - momentum) for the momentum, times
`gain`. 2b: from (0.1, 0.9), beside a rate that a hand divides by 10 after half and three quarters
of the steps. The paper trains ResNet-20 on all images for 200 epochs (500 for 2b), hours on a GPU
for each run, and moves by many small steps; here a ResNet-8 of width 8 sees few images, and `gain`
is how many times fewer steps there are than in the paper. --full has the paper's sizes.

Batch norm's statistics are averages that `rg.AuxAverage` keeps, as a statement of the optimizer.
Source: Chandra et al. 2022, figure 2.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tyro
from paper import RATE
from pictures import BLUE, GREY, RED, figure, in_pairs
from small_resnet import Problem, averaged
from tqdm import tqdm

import revgrad as rg
from revgrad.records import Record

PAPER_STEPS = 200 * 391
PAPER = {}  # bars and curves without numbers; the claim: every cell ties or improves
CELLS = [(a, mu) for a in (0.01, 0.1, 1.0) for mu in (0.09, 0.9, 0.99)]
GOOD = "rate 0.1, momentum 0.9"


@dataclass
class Settings:
    folder: Path = Path(".")  # where resnet.json and resnet.png go
    quick: bool = False  # a few steps on noise, for tests
    full: bool = False  # ResNet-20 of width 16, all images, 200 epochs
    images: int = 10_000
    epochs: int = 6


def optimizer(rate, mu, gain=None):
    below = rg.HeavyBall(rate, mu, weight_decay=1e-4)
    if gain is None:
        return averaged(below)
    steps = {RATE: gain * rate**2 * 1e-3, "momentum": gain * 1e-6 / (1 - mu)}
    return averaged(below, rg.SGD(steps))


def by_hand(steps):
    """2b's rate: 0.1, and a tenth of it after a half and after three quarters of the steps."""
    tenths = np.array([0, 0, 1, 2])[np.arange(steps) * 4 // steps]
    return rg.per_step(0.1 * 0.1**tenths)


def run(problem, made, epochs, save):
    """What training came to, and its way: the loss and rate of each epoch."""
    try:
        trained, paths, state = problem.fit(made, epochs * problem.batches.steps_per_epoch, save)
    except rg.NotFinite as error:
        return {"accuracy": 10.0, "test loss": 1e9, "diverged at step": error.step}
    found = problem.test(trained, state)
    way = {"loss": paths.loss} | {k: paths[k] for k in paths}
    each = {f"{k} of epochs": [x.mean() for x in np.array_split(v, epochs)] for k, v in way.items()}
    return found | paths.last | each


def main(settings=None):
    settings = settings or Settings()
    record = Record(settings.folder / "resnet.json", settings)
    if settings.quick:
        problem, epochs, cells = Problem.of_noise(), 3, [(0.1, 0.9)]
    elif settings.full:
        problem, epochs, cells = Problem.cifar10(50_000, 10_000, width=16, blocks=3), 200, CELLS
    else:
        problem, epochs, cells = Problem.cifar10(settings.images, 5_000), settings.epochs, CELLS
    steps = epochs * problem.batches.steps_per_epoch
    gain = record["gain"] = PAPER_STEPS / steps
    jobs = {}
    for a, mu in cells:
        name = f"rate {a:g}, momentum {mu:g}"
        jobs |= {name: optimizer(a, mu), f"{name}, tuned": optimizer(a, mu, gain)}
    jobs["by hand"] = optimizer(by_hand(steps), 0.9)
    save = settings.folder / "resnet.run"
    rows = {
        name: record.once(name, lambda made=made: run(problem, made, epochs, save))
        for name, made in tqdm(jobs.items(), desc="ResNet")
    }
    pairs = {n: (rows[n]["accuracy"], rows[f"{n}, tuned"]["accuracy"]) for n in [*rows][:-1:2]}
    record["tuned more accurate by (points)"] = gains = {n: b - a for n, (a, b) in pairs.items()}
    record.finish()
    draw(pairs, rows, settings.folder / "resnet.png")
    return {"rows": rows, "gains": gains}


def draw(pairs, rows, path):
    names = [n.removeprefix("rate ").replace(", momentum ", "\n") for n in pairs]
    plain, tuned = zip(*pairs.values(), strict=True)
    with figure(path, 3, size=(14, 3.8)) as (left, middle, right):
        words = {"xlabel": "first rate, momentum", "ylabel": "test accuracy (%)"}
        in_pairs(left, names, plain, tuned, title="figure 2a, reduced", **words)
        ways = {"as given": (GOOD, GREY), "tuned": (f"{GOOD}, tuned", BLUE)}
        for label, (name, colour) in (ways | {"by hand": ("by hand", RED)}).items():
            losses = rows[name]["loss of epochs"]
            said = f"{label}: test loss {rows[name]['test loss']:.2f}"
            middle.plot(range(1, len(losses) + 1), losses, "o-", ms=4, color=colour, label=said)
        middle.set(xlabel="epoch", ylabel="training loss", title="figure 2b, reduced")
        for name in pairs:
            rates = rows[f"{name}, tuned"].get(f"{RATE} of epochs", ())
            colour = BLUE if name == GOOD else "0.6"
            right.plot(range(1, len(rates) + 1), rates, "o-", ms=3, color=colour)
        right.set(xlabel="epoch", ylabel="learned rate", title="from all nine first values")
        right.set_yscale("symlog", linthresh=1e-2)


if __name__ == "__main__":
    main(tyro.cli(Settings))
