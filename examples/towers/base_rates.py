"""Figure 4a-b: the taller the tower, the less its first step size matters.

    python examples/towers/base_rates.py [--quick] [--full] [--folder docs/reproduction]

Towers of heights 0 (plain) to 3 on MNIST's network, from base step sizes of many orders of
magnitude. 4a: SGD all the way up, every level with the same step size a. 4b: SGD with momentum
below; the levels above have [100 a, a, a / 100] while a is at most 1e-4, and [a / 1e3, a / 1e4,
1e-8] from 1e-3 on. What diverges counts as guessing, an error of 90%. 10 epochs and step sizes a
decade apart; --full has 30 epochs and half decades.

Source: Chandra et al. 2022, figure 4. Its curves have no table. The claim: the more levels, the
more base step sizes end well; and far too high a one diverges all the same.
"""

from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import tyro
from paper import Mnist, levels, momentum, sgd
from pictures import by_height, figure
from tqdm import tqdm

import revgrad as rg
from revgrad.records import Record

HEIGHTS, GUESS = range(4), 90.0
PAPER = {}  # curves without numbers


@dataclass
class Settings:
    folder: Path = Path(".")  # where base_rates.json and base_rates.png go
    quick: bool = False  # two step sizes and few examples, for tests
    full: bool = False  # the paper's 30 epochs


def rates(settings):
    if settings.quick:
        return [0.01, 1.0, 1e7]
    steps = np.arange(-6, 2.1, 0.5 if settings.full else 1)
    return [float(f"{10**x:.4g}") for x in steps]


def sgd_tower(a, height):
    """4a: every level with step size a."""
    return sgd(a, sgd_tower(a, height - 1) if height else None)


TOWERS = {"4a": sgd_tower, "4b": lambda a, height: momentum(a, 0.9, levels(a, height))}


def run(problem, optimizer, epochs):
    """Test error in percent, 90 where training diverged; seconds per step."""
    report = rg.Report()
    try:
        with np.errstate(all="ignore"):
            trained, _ = problem.fit(optimizer, epochs, seed=0, report=report)
    except rg.NotFinite as error:
        return {"error": GUESS, "diverged at step": error.step}
    return {"error": problem.error(trained), "seconds per step": report.seconds / report.steps}


def main(settings=None):
    settings = settings or Settings()
    record = Record(settings.folder / "base_rates.json", settings)
    problem = Mnist(train=1_024, test=500) if settings.quick else Mnist()
    epochs = 5 if settings.quick else 30 if settings.full else 10
    jobs = [(f, a, h) for f in TOWERS for a in rates(settings) for h in HEIGHTS]
    found = {f: {str(h): [] for h in HEIGHTS} for f in TOWERS}
    for name, a, h in tqdm(jobs, desc="base rates"):
        job = partial(run, problem, TOWERS[name](a, h), epochs)
        row = record.once(f"{name}, height {h}, base rate {a:g}", job)
        found[name][str(h)].append(row["error"])
    record["base rates"], record["errors"] = rates(settings), found
    good = {
        name: {h: sum(e < 2 * min(errors) for e in errors) for h, errors in rows.items()}
        for name, rows in found.items()
    }
    record["base rates within twice the best error"] = good
    record.finish()
    with figure(settings.folder / "base_rates.png", 2, sharey=True) as panels:
        for panel, (name, rows) in zip(panels, found.items(), strict=True):
            what = "SGD towers" if name == "4a" else "SGD with momentum below"
            by_height(panel, rates(settings), rows, title=f"figure {name}: {what}")
        panels[0].set_ylabel("test error on MNIST (%)")
    return {"errors": found, "good": good}


if __name__ == "__main__":
    main(tyro.cli(Settings))
