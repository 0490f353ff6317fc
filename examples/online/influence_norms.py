"""Figures 9 and 10: how large influences grow, and when they blow up.

    python examples/online/influence_norms.py [--quick] [--data digits] [--folder docs/reproduction]

The norm of d params / d rate over a grid of initial rates and of the steps that the rate takes
("meta"), after 30 epochs (the paper: 100); with it the cosine of successive gradients, and the norm
of d params_T / d params_(T-1) by power iteration. That one is what decides: influences are
multiplied by such matrices, so they grow without bound where it stays above 1, which is where the
rate exceeds 2 / the largest curvature. Where they pass 1e9, `fit` stops.
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

COSINE, JACOBIAN = "cosine of gradients", "norm of the step's Jacobian"
PAPER = {  # read off the figures
    "influence of the rate, MNIST (paper: 300 to 10,000)": (300, "lowest norm"),
    "influence of the decay, MNIST": (1e5, "influence of the decay"),
    "s.d. of gradients' cosine in an epoch, MNIST": (0.14, "s.d. of the cosine"),
}


@dataclass
class Settings:
    folder: Path = Path(".")
    quick: bool = False
    data: Literal["mnist", "digits"] = "mnist"
    epochs: int = 30
    rates: tuple[float, ...] = (1e-3, 0.1)
    metas: tuple[float, ...] = (5e-6, 5e-5, 1e-4, 1e-3)


def run(s, problem, rate, meta):
    row, paths = problem.run(problem.oho(rate, 0.0, meta, diagnose=5), s.epochs)
    if paths is None:
        return row
    norm = paths["influence of learning_rate"]
    return row | {
        "norm": norm[-len(norm) // 4 :].mean(),
        "of decay": paths["influence of weight_decay"][-1],
        "s.d.": np.nanstd(paths[COSINE][-problem.epoch :]),
        "mean cosine": np.nanmean(paths[COSINE][-problem.epoch :]),
        "paths": thinned(paths),
    }


def main(s):
    if s.quick:
        s.epochs, s.rates, s.metas = 2, (1e-2,), (1e-5, 1e-4)
    problem, record = Problem(s.data), Record(s.folder / "influence_norms.json", s)
    rows = {}
    for rate, meta in tqdm([(rate, meta) for rate in s.rates for meta in s.metas]):
        name = f"rate {rate:g}, meta {meta:g}"
        rows[rate, meta] = record.once(name, lambda r=rate, m=meta: run(s, problem, r, m))
    whole = [row for row in rows.values() if "norm" in row]
    record["norms"] = {f"{r:g}/{m:g}": row.get("norm") for (r, m), row in rows.items()}
    record["blew up"] = [f"{r:g}/{m:g}" for (r, m), row in rows.items() if "norm" not in row]
    record["lowest norm"] = min(row["norm"] for row in whole)
    record["highest norm"] = max(row["norm"] for row in whole)
    for what, key in (("influence of the decay", "of decay"), ("s.d. of the cosine", "s.d.")):
        record[what] = float(np.median([row[key] for row in whole]))
    record["mean of the cosine"] = float(np.median([row["mean cosine"] for row in whole]))
    record.finish()
    draw(s, rows)
    return {
        k: record[k] for k in ("norms", "blew up", "influence of the decay", "s.d. of the cosine")
    }


def draw(s, rows):
    a, b, c = plt.figure(figsize=(13, 3.8), layout="constrained").subplots(1, 3)
    for rate in s.rates:
        norms = [rows[rate, meta].get("norm", np.nan) for meta in s.metas]
        (line,) = a.plot(s.metas, norms, "o-", label=f"from a rate of {rate:g}")
        gone = [meta for meta in s.metas if "norm" not in rows[rate, meta]]
        a.plot(
            gone, [400] * len(gone), "x", color=line.get_color(), label="blew up" if gone else None
        )
    a.set(xscale="log", yscale="log", xlabel="step of the rate (meta)")
    a.set(ylabel="norm of d params / d rate", title="mean of the last quarter")
    colours = ("#0072b2", "#009e73", "#e69f00", "#d55e00", "k")
    for meta, colour in zip(s.metas, colours, strict=False):
        path = rows[s.rates[-1], meta].get("paths")
        if path:
            given = {"color": colour, "label": f"meta {meta:g}"}
            b.plot(path["step"], as_floats(path["influence of learning_rate"]), **given)
            c.plot(path["step"], as_floats(path[JACOBIAN]), ".", ms=3, **given)
    b.set(xlabel="step", ylabel="norm of d params / d rate", yscale="log")
    b.set_title(f"from a rate of {s.rates[-1]:g}")
    c.set(xlabel="step", ylabel="norm of d params' / d params", ylim=(0.99, 1.01))
    c.axhline(1.0, color="0.6", lw=0.8)
    for ax in (a, b):
        ax.legend(frameon=False, fontsize=8)
    a.figure.savefig(s.folder / "influence_norms.png", dpi=90)
    plt.close(a.figure)


if __name__ == "__main__":
    print(main(tyro.cli(Settings)))
