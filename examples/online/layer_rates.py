"""Figure 4A: the rates of four layers find their places, wherever they start.

    python examples/online/layer_rates.py [--quick] [--data digits] [--folder docs/reproduction]

A rate for each layer, from 0.0001, 0.001 and 0.01, over the first 2,500 steps on MNIST, carried by
one shared row of influences as in the paper. It moves by steps of 5e-6 in the paper and of 1e-5 in
the authors' instructions; both are here. Dotted: where the paper's curves end.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import matplotlib.pyplot as plt
import numpy as np
import tyro
from mnist_mlp import Problem, as_floats, thinned
from tqdm import tqdm

from revgrad.records import Record

ENDS = (0.10, 0.042, 0.055, 0.07)  # the paper's, by layer
PAPER = {
    f"rate of layer {k + 1} after 2,500 steps": (x, f"ends/1e-05/{k}") for k, x in enumerate(ENDS)
} | {f"the same, steps of 5e-6, layer {k + 1}": (x, f"ends/5e-06/{k}") for k, x in enumerate(ENDS)}
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7")


@dataclass
class Settings:
    folder: Path = Path(".")
    quick: bool = False
    data: Literal["mnist", "digits"] = "mnist"
    steps: int = 2500
    metas: tuple[float, ...] = (1e-5, 5e-6)
    starts: tuple[float, ...] = (1e-4, 1e-3, 1e-2)


def path(s, problem, meta, start):
    learns = problem.oho(start, 0.0, meta, shared=True)
    learns = learns.with_hyper({"learning_rate": [start] * 4})
    _, paths = problem.run(learns, s.steps / problem.epoch)
    return thinned(paths)


def main(s):
    if s.quick:
        s.steps = 20
    problem, record = Problem(s.data), Record(s.folder / "layer_rates.json", s)
    found, ends, spread = {}, {}, {}
    for meta in s.metas:
        for start in tqdm(s.starts, desc=f"steps of {meta:g}"):
            name = f"meta {meta:g}, from {start:g}"
            found[meta, start] = record.once(name, lambda m=meta, a=start: path(s, problem, m, a))
        rows = np.array([
            [found[meta, start][f"learning_rate[{k}]"][-1] for start in s.starts] for k in range(4)
        ])  # fmt: skip
        ends[f"{meta:g}"] = np.median(rows, axis=1)
        spread[f"{meta:g}"] = rows.max(axis=1) / rows.min(axis=1)
    record["ends"], record["highest over lowest of the starts"] = ends, spread
    record.finish()
    draw(s, found)
    return {"ends": record["ends"], "spread": record["highest over lowest of the starts"]}


def draw(s, found):
    panels = plt.figure(figsize=(11, 4), layout="constrained").subplots(1, 2, sharey=True)
    for ax, meta in zip(panels, s.metas, strict=True):
        for start, style in zip(s.starts, ("-", "--", "-."), strict=False):
            row = found[meta, start]
            for k, colour in enumerate(COLOURS):
                label = f"layer {k + 1}" if style == "-" else None
                rates = as_floats(row[f"learning_rate[{k}]"])
                ax.plot(row["step"], rates, style, color=colour, label=label, lw=1.2)
        for x, colour in zip(ENDS, COLOURS, strict=True):
            ax.axhline(x, color=colour, ls=":", lw=0.8)
        ax.set(xlabel="step", yscale="log", title=f"steps of {meta:g}")
    panels[0].set_ylabel("learning rate of the layer")
    panels[0].legend(frameon=False, fontsize=8, loc="lower right")
    panels[0].figure.savefig(s.folder / "layer_rates.png", dpi=90)
    plt.close(panels[0].figure)


if __name__ == "__main__":
    print(main(tyro.cli(Settings)))
