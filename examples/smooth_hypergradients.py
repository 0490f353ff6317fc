"""How smooth hypergradients are over the steps of training (Maclaurin et al. 2015, figure 4).

The derivative of the final training loss with respect to the log learning rate of each step and
layer of an MLP on MNIST, at the start of `learn_schedules.py --start paper`: a mean over 50 starts
with batches of their own. Neighbouring steps have nearly the same derivative, though nothing makes
them. Seeds go to several processes; a seed's numbers have the same bits in any of them, because
each has one BLAS thread.

    python examples/smooth_hypergradients.py --processes 2
    python examples/smooth_hypergradients.py --quick --data digits
"""

from dataclasses import dataclass, replace

import matplotlib.pyplot as plt
import mlp
import numpy as np
import tyro
from joblib import Parallel, cpu_count, delayed
from mlp import NAMES, Problem
from threadpoolctl import threadpool_limits
from tqdm import tqdm

import revgrad as rg
from revgrad import plots
from revgrad.records import Record

SUMS = (-.10131737, -.00127887, -.08440089, -.00156457, -.10758405, -.00241585, -.17467149,
        -.00152723)  # fmt: skip
SCALES = (-.10100303, -2.1561e-7, -.20626776, -1.1111e-4, -.21697258, 1.2153e-4, -.19084066,
          -7.1203e-4)  # fmt: skip
PAPER = {
    f"sum over steps, log rate of {n}": (x, f"sums/{n}") for n, x in zip(NAMES, SUMS, strict=True)
}
PAPER |= {f"log scale of {n}": (x, f"scales/{n}") for n, x in zip(NAMES, SCALES, strict=True)}
PAPER["log rate of W1, step 75"] = (-1.452e-3, "mean/W1/75")
PAPER["log rate of W4, step 75"] = (-1.693e-3, "mean/W4/75")
for n in ("W1", "W2", "W3", "W4"):
    PAPER[f"correlation of neighbouring steps, {n}"] = ("0.96 to 0.98", f"correlations/{n}")


@dataclass
class Settings(mlp.Settings):
    processes: int = 0  # changes no bit; 0: one per processor
    seeds: int = 50


def hypergradient(problem, seed):
    """An array (steps + 1, 8): of the log rates, and at last of the log scales."""
    with threadpool_limits(1, "blas"):
        slopes = rg.grad(problem.hyperloss)(problem.hyper(-1.0, 0.0, -3.0), seed)
    assert problem.report.returned_exactly
    found = np.vstack([slopes["log_rate"], slopes["log_scale"]])
    return found, problem.report.bits_per_weight_step


def total(s, record):
    """The sum over seeds, in their order; as far as it is known it is in the record."""
    so_far = record.once("so far", lambda: {"seeds": 0, "sum": np.zeros((s.steps + 1, 8))})
    missing = range(so_far["seeds"], s.seeds)
    if missing:
        problem = Problem(s)
        workers = Parallel(s.processes or cpu_count(), return_as="generator")
        found = workers(delayed(hypergradient)(problem, seed) for seed in missing)
        bar = tqdm(found, "seeds", s.seeds, initial=missing.start)
        for seed, (slopes, bits) in zip(missing, bar, strict=True):
            record["bits per weight and step"] = bits
            record["so far"] = {"seeds": seed + 1, "sum": slopes + record["so far"]["sum"]}
    return np.array(record["so far"]["sum"])


def main(s):
    if s.quick:
        s.seeds, s.steps, s.examples = 4, 20, 1_000
    record = Record(s.folder / "smooth_hypergradients.json", replace(s, processes=0))
    mean = total(s, record) / s.seeds
    record["mean"] = {name: mean[:-1, k] for k, name in enumerate(NAMES)}
    record["sums"] = dict(zip(NAMES, mean[:-1].sum(0), strict=True))
    record["scales"] = dict(zip(NAMES, mean[-1], strict=True))
    smooth = {name: np.corrcoef(mean[1:-1, k], mean[:-2, k])[0, 1] for k, name in enumerate(NAMES)}
    record["correlations"] = smooth
    record.finish()
    weights = {name: values for name, values in record["mean"].items() if name[0] == "W"}
    ax = plots.schedules(weights, ylabel="d training loss / d log rate")
    ax.figure.savefig(s.folder / "smooth_hypergradients.png", dpi=110, bbox_inches="tight")
    plt.close(ax.figure)
    print("correlation of neighbouring steps", *(f"{k} {x:.3f}" for k, x in smooth.items()))
    return record["mean"]


if __name__ == "__main__":
    main(tyro.cli(Settings))
