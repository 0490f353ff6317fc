"""Figure 3, reduced: an LSTM reads War and Peace while its Adam learns rate, b1 and b2.

    python examples/towers/characters.py [--quick] [--full] [--folder docs/reproduction]

From first rates of 1e-4, 2e-3 and 1e-2, plain and tuned by an SGD with a step of its own for each:
rate / 100 for the rate, 1e-4 and 2e-4 for b1 and b2 (on the raw numbers; beta = (tanh r + 1) / 2).
The paper takes 50,000 steps with 2 layers of 128, an hour on a GPU; here it is --steps with layers
of 64, so it is their order that can be compared. --full: the paper's sizes.

Source: Chandra et al. 2022, figure 3; sequences of 50, batch 50, embedding 64, clipping at 5 as in
torch-rnn, to which the paper refers.
"""

from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import tyro
from paper import RATE
from pictures import RED, figure, in_pairs
from small_lstm import Problem
from tqdm import tqdm

import revgrad as rg
from revgrad import plots
from revgrad.records import Record

RATES = (1e-4, 2e-3, 1e-2)
PAPER = {
    f"perplexity from rate {a:g}{how}": (x, f"perplexity/{a:g}{how}")
    for a, tuned, plain in ((1e-4, 6.51, 8.71), (2e-3, 5.41, 5.27), (1e-2, 5.45, 5.77))
    for how, x in ((", tuned", tuned), (", plain", plain))
}


@dataclass
class Settings:
    folder: Path = Path(".")  # where characters.json and characters.png go
    quick: bool = False  # a few steps of a tiny network on a made-up text, for tests
    full: bool = False  # layers of 128 and 50,000 steps
    steps: int = 3_000
    hidden: int = 64
    seeds: int | None = 1  # more may be asked for later


def optimizer(rate, tuned):
    below = rg.Adam(rate, initial_scale=1e-8)
    if not tuned:
        return rg.ClipByGlobalNorm(below, 5.0)
    steps = {RATE: rate * 1e-2, "b1": 1e-4, "b2": 2e-4}
    how = {RATE: "free", "b1": "half_tanh", "b2": "half_tanh"}
    return rg.ClipByGlobalNorm(below, 5.0, tuned_by=rg.SGD(steps), tuned=tuple(how), transforms=how)


def run(problem, made, steps, seed, save, rows=200):
    """Perplexity on the test text, and what was learned; that of guessing where it diverged."""
    try:
        trained, paths = problem.fit(made, steps, seed, save)
    except rg.NotFinite as error:
        return {"perplexity": problem.kinds, "diverged at step": error.step}
    kept = np.unique(np.linspace(0, len(paths.steps) - 1, rows).astype(int))
    ways = {"step": paths.steps} | {name: paths[name] for name in paths}
    found = {"perplexity": problem.perplexity(trained)} | paths.last
    return found | {"way": {name: x[kept] for name, x in ways.items()}}


def main(settings=None):
    settings = settings or Settings()
    record = Record(settings.folder / "characters.json", replace(settings, seeds=None))
    steps, hidden = (50_000, 128) if settings.full else (settings.steps, settings.hidden)
    if settings.quick:
        steps, problem = 30, Problem(quick=True, hidden=8, length=10)
    else:
        problem = Problem(quick=False, hidden=hidden)
    jobs = [(k, a, how) for k in range(settings.seeds) for a in RATES for how in ("plain", "tuned")]
    found = {f"{a:g}, {how}": [] for _, a, how in jobs}
    for seed, a, how in tqdm(jobs, desc="LSTM"):
        name, made = f"{a:g}, {how}", optimizer(a, how == "tuned")
        job = partial(run, problem, made, steps, seed, settings.folder / "characters.run")
        found[name].append(record.once(f"{name}, seed {seed}", job)["perplexity"])
    record["perplexity"] = mean = {name: float(np.mean(x)) for name, x in found.items()}
    record["perplexity of each seed"] = found
    record.finish()
    ways = {a: record[f"{a:g}, tuned, seed 0"].get("way") for a in RATES}
    draw(mean, ways, settings.folder / "characters.png")
    return mean


class Way(dict):
    """Some rows of `Paths`, from a record."""

    def __init__(self, rows):
        super().__init__(rows)
        self.steps = self.pop("step")


def draw(mean, ways, path):
    with figure(path, 4, size=(13, 3.4)) as (left, *right):
        plain, tuned = ([mean[f"{a:g}, {how}"] for a in RATES] for how in ("plain", "tuned"))
        words = {"xlabel": "first learning rate", "ylabel": "test perplexity"}
        in_pairs(left, RATES, plain, tuned, title="figure 3, reduced", **words)
        for k, (off, how) in enumerate(((-0.2, "plain"), (0.2, "tuned"))):
            theirs = [PAPER[f"perplexity from rate {a:g}, {how}"][0] for a in RATES]
            label = "the paper's, full size" if k else None
            left.plot(np.arange(len(RATES)) + off, theirs, "x", color=RED, label=label)
        for a, way in ways.items():
            if way:
                plots.hyperparameter_paths(Way(way), right, f"from {a:g}", names=(RATE, "b1", "b2"))
        for panel in right[1:]:
            panel.ticklabel_format(axis="y", useOffset=False)


if __name__ == "__main__":
    main(tyro.cli(Settings))
