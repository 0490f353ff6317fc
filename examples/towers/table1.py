"""Table 1: MNIST with every optimizer, tuned by others, and again with what was learned.

    python examples/towers/table1.py [--quick] [--seeds 3] [--folder docs/reproduction]

30 epochs for 1a and 1c, 5 for 1b and 1d, at batch 256 in float32: twenty minutes of one core. The
paper does not say which 1c had; 30 epochs give its numbers. Each row is a tower that starts from
the optimizer's usual step size; the row "with what it learned" is plain training with the values
that the tower ended with (the mean over its seeds). What was done is kept in table1.json, so a run
that was stopped goes on where it was.

Source: Chandra et al. 2022, table 1; initial steps where it names none: 0.01, Adam 0.001.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tyro
from paper import Mnist
from pictures import BLUE, RED, figure
from table1_rows import ROWS, paper_numbers
from tqdm import tqdm

from revgrad.records import Record

PAPER = paper_numbers()


@dataclass
class Settings:
    folder: Path = Path(".")  # where table1.json and table1.png go
    quick: bool = False  # a tenth of an epoch of a small training set, for tests
    seeds: int = 3


def main(settings=None):
    settings = settings or Settings()
    record = Record(settings.folder / "table1.json", settings)
    problem = Mnist(train=1_024, test=500) if settings.quick else Mnist()
    seeds = range(settings.seeds)

    def runs(table, name, optimizer):
        epochs = 2 if settings.quick else 30 if table in ("1a", "1c") else 5
        return [
            record.once(f"{table} {name}, seed {k}", lambda k=k: run(problem, optimizer, epochs, k))
            for k in seeds
        ]

    found = {}
    for table, name, optimizer, *_ in tqdm(ROWS, desc="table 1"):
        first = runs(table, name, optimizer)
        row = {"error": mean(first, "error"), "spread": spread(first, "error")}
        if optimizer.tuned_by is not None:
            row |= {k: mean(first, k) for k in optimizer.tuned}
            plain = optimizer.untuned.with_hyper({k: row[k] for k in optimizer.tuned})
            again = runs(table, f"{name}, again", plain)
            row |= {"again": mean(again, "error"), "again spread": spread(again, "error")}
        found.setdefault(table, {})[name] = row
    for table, rows in found.items():
        record[table] = rows
    record.finish()
    draw(found, settings.folder / "table1.png")
    return found


def run(problem, optimizer, epochs, seed):
    """Test error in percent, and the last value of each hyperparameter that learned."""
    trained, paths = problem.fit(optimizer, epochs, seed)
    return {"error": problem.error(trained)} | paths.last


def mean(runs, what):
    return float(np.mean([r[what] for r in runs]))


def spread(runs, what):
    return float(np.std([r[what] for r in runs], ddof=1)) if len(runs) > 1 else 0.0


def draw(found, path):
    """Test error of every row, ours beside the paper's."""
    sizes = [len(rows) for rows in found.values()]
    options = {"shape": (len(sizes), 1), "height_ratios": sizes, "sharex": True}
    with figure(path, size=(7.5, 9), **options) as panels:
        for panel, (table, rows) in zip(panels, found.items(), strict=True):
            for k, (name, row) in enumerate(rows.items()):
                for what, colour, off in (("error", BLUE, -0.12), ("again", RED, 0.12)):
                    if what in row:
                        width = row["spread" if what == "error" else "again spread"]
                        panel.errorbar(row[what], k + off, xerr=width, fmt="o", color=colour, ms=5)
                        theirs = {key: x for x, key in PAPER.values()}
                        panel.plot(theirs[f"{table}/{name}/{what}"], k + off, "x", color=colour)
            panel.set(yticks=range(len(rows)), yticklabels=rows, ylim=(len(rows) - 0.5, -0.5))
            panel.set_title(f"table {table}", loc="left", fontsize=10)
            panel.grid(axis="x", color="0.9")
        panels[0].plot([], [], "o", color=BLUE, label="as it learns")
        panels[0].plot([], [], "o", color=RED, label="again, with what it learned")
        panels[0].plot([], [], "x", color="0.3", label="the paper's")
        panels[-1].set_xlabel("test error on MNIST (%)")


if __name__ == "__main__":
    main(tyro.cli(Settings))
