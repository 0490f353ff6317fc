"""Figure 4f: what each level of a tower adds to the time of a step.

    python examples/towers/level_cost.py [--quick] [--folder docs/reproduction]

Towers of SGD over SGD and over Adam on MNIST's network, of heights 0 to 8, in processor time of one
thread. Heights take turns, so that other work on the machine falls on all of them. The first level
must form what the weights' step owes to its hyperparameters, vectors as long as the weights; the
others are a few numbers each, so their time is a line. Source: Chandra et al. 2022, figure 4f.
"""

from dataclasses import dataclass
from pathlib import Path
from time import process_time

import numpy as np
import tyro
from paper import Mnist, adam, sgd
from pictures import BLUE, RED, figure
from tqdm import tqdm

from revgrad.records import Record

PAPER = {"each level adds (%), 1 to 2 in the paper, on a GPU": (1.5, "sgd/each further level (%)")}


@dataclass
class Settings:
    folder: Path = Path(".")  # where level_cost.json and level_cost.png go
    quick: bool = False  # a few steps, for tests
    steps: int = 200
    turns: int = 7


def tower(kind, height):
    above = None
    for _ in range(height):
        above = sgd(0.0, above)  # which costs what any rate costs
    return sgd(0.01, above) if kind == "sgd" else adam(0.001, above)


def seconds_per_step(problem, optimizer, steps, skipped=10):
    """Processor time of a step, without the first ones, which record."""
    began = []

    def note(t, _):
        if t in (skipped, skipped + steps):
            began.append(process_time())

    epochs = (skipped + steps + 1) / problem.batches(0).steps_per_epoch
    problem.fit(optimizer, epochs + 0.01, 0, callback=note)
    return (began[1] - began[0]) / steps


def main(settings=None):
    settings = settings or Settings()
    record = Record(settings.folder / "level_cost.json", settings)
    problem = Mnist(train=2_048, test=100) if settings.quick else Mnist()
    heights, steps, turns = (
        (range(3), 10, 2) if settings.quick else (range(9), settings.steps, settings.turns)
    )
    found = {}
    for kind in ("sgd", "adam"):
        times = [
            record.once(
                f"{kind}, turn {turn}",
                lambda kind=kind: [
                    seconds_per_step(problem, tower(kind, h), steps) for h in heights
                ],
            )
            for turn in tqdm(range(turns), desc=kind)
        ]
        shares = 100 * (np.array(times) / np.array(times)[:, :1] - 1)
        middle = np.median(shares, axis=0)
        slope = np.polyfit(heights[1:], middle[1:], 1)[0]
        found[kind] = {
            "microseconds": 1e6 * np.median(times, axis=0),
            "added (%)": middle,
            "first level (%)": middle[1],
            "each further level (%)": slope,
        }
        record[kind] = found[kind]
    record.finish()
    with figure(settings.folder / "level_cost.png") as (panel,):
        for (kind, row), colour in zip(found.items(), (BLUE, RED), strict=True):
            label = f"{kind} / sgd / ...: {row['each further level (%)']:.1f}% a level"
            panel.plot(heights, row["added (%)"], "o-", color=colour, label=label)
        panel.set(xlabel="height of the tower", ylabel="added to the time of a step (%)")
        panel.set_ylim(0, None)
    return found


if __name__ == "__main__":
    main(tyro.cli(Settings))
