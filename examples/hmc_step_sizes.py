"""Learn the step size and the mass matrix of Hamiltonian Monte Carlo, through 2,000 steps.

Section 5 of Maclaurin et al. 2015 proposes to tune samplers by the gradient of what they estimate.
Here 32 chains draw from a Gaussian whose scales differ by a factor of 300 along directions that the
coordinates do not know. A step is a leapfrog step, after a small part of the momentum is replaced
by noise (Horowitz 1991); nothing is rejected. The error is that of the time averages of squares and
products, against the true covariance. Its gradient, with respect to the whole mass matrix, comes
from running the chains backwards: leapfrog steps undo exactly, and what the scaling of the momentum
destroys is kept, 0.07 bits per momentum and step.

    python examples/hmc_step_sizes.py            5 minutes on one core
    python examples/hmc_step_sizes.py --quick    seconds
"""

from dataclasses import dataclass
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import tyro

import revgrad as rg
from revgrad.extend import Add, Scale
from revgrad.records import Record

PAPER = {
    "returned exactly": ("proposed", "exact"),
    "relative error of the covariance, as begun": (None, "test/start"),
    "step size learned": (None, "test/step size"),
    "step size and mass matrix learned": (None, "test/mass matrix"),
    "condition number, as begun": (None, "condition/start"),
    "condition number, learned": (None, "condition/mass matrix"),
}


@dataclass
class Settings:
    folder: Path = Path(".")
    quick: bool = False
    dimensions: int = 8
    steps: int = 2_000
    chains: int = 32
    persist: float = 0.95  # of the momentum, at each step
    outer: int = 60
    outer_rate: float = 0.1


# mixing: the step size times the inverse root of the mass matrix, so that the noise has unit mass.
# Without noise and with a loss for the energy, rg.train and rg.Leapfrog do the same.
CELL = (
    Scale("p", by="persist"),
    Add("p", lambda x, persist: np.sqrt(1 - persist**2) * x),  # x: the noise of this step
    Add("p", lambda q, mixing, precision: -0.5 * q @ precision @ mixing),
    Add("q", lambda p, mixing: p @ mixing.T),
    Add("p", lambda q, mixing, precision: -0.5 * q @ precision @ mixing),
    Add("moments", lambda q, share: share * np.swapaxes(q, 0, 1) @ q),
)


class Problem:
    def __init__(self, s):
        self.s, rng, n = s, np.random.default_rng(0), s.dimensions
        turn, _ = np.linalg.qr(rng.standard_normal((n, n)))
        scales = np.geomspace(0.1, 30, n)
        self.precision = (turn / scales**2) @ turn.T
        self.whiten = turn / scales  # q @ whiten has unit covariance
        self.report = rg.Report()

    def mixing(self, hyper):
        return np.exp(hyper["log size"]) * hyper.get("root", np.eye(self.s.dimensions))

    def error(self, hyper, seed):
        """Mean square of the covariance's estimate, whitened, minus the identity."""
        s, rng, n = self.s, np.random.default_rng(seed), self.s.dimensions
        noise = rng.standard_normal((s.steps, s.chains, n))
        start = {name: rng.standard_normal((s.chains, n)) for name in "qp"}
        start["moments"] = np.zeros((n, n))
        params = {
            "mixing": self.mixing(hyper), "precision": self.precision, "persist": s.persist,
            "share": 1 / (s.steps * s.chains),
        }  # fmt: skip
        end = rg.scan(CELL, start, noise, params=params, report=self.report)
        whitened = self.whiten.T @ end["moments"] @ self.whiten
        return np.mean((whitened - np.eye(n)) ** 2) * n

    def condition(self, hyper):
        """How much faster the fastest direction moves than the slowest."""
        return float(np.linalg.cond(self.whiten.T @ self.mixing(hyper)))

    def learn(self, hyper, save):
        found = rg.minimize(
            lambda hyper, step: self.error(hyper, (1, step)), hyper, rg.Adam(self.s.outer_rate),
            until=self.s.outer, save=save,
        )  # fmt: skip
        return {"values": found.values, "hyper": found.hyper}


def picture(problem, hypers, runs, path):
    figure, axes = plt.subplots(1, 3, figsize=(12, 3.6), layout="constrained")
    for name, run in runs.items():
        axes[0].plot(run["values"], label=name)
    axes[0].set(xlabel="meta-iteration", ylabel="error of the covariance", yscale="log")
    axes[0].legend()
    for ax, name in zip(axes[1:], ("step size", "mass matrix"), strict=True):
        moved = problem.whiten.T @ problem.mixing(hypers[name])
        shown = ax.imshow(np.log10(np.abs(moved @ moved.T)), vmin=-5, vmax=0)
        ax.set(title=f"{name} learned", xlabel="direction, from the shortest", yticks=[])
    figure.colorbar(shown, ax=axes[1:], label="log10 |covariance of a step|, in scales")
    figure.savefig(path, dpi=90)
    plt.close(figure)


def main(s):
    if s.quick:
        s.dimensions, s.steps, s.outer = 3, 100, 10
    record, problem = Record(s.folder / "hmc_step_sizes.json", s), Problem(s)
    size = {"log size": np.log(0.05)}
    hypers, runs = {"start": size}, {}
    begins = {"step size": size, "mass matrix": size | {"root": np.eye(s.dimensions)}}
    for name, hyper in begins.items():
        save = s.folder / f"hmc_{name.replace(' ', '_')}.safetensors"
        runs[name] = record.once(name, lambda h=hyper, f=save: problem.learn(h, f))
        hypers[name] = {k: np.array(x) for k, x in runs[name]["hyper"].items()}
    record["test"] = {
        name: float(np.mean([problem.error(hyper, (2, k)) for k in range(5)]))
        for name, hyper in hypers.items()
    }
    record["condition"] = {name: problem.condition(hyper) for name, hyper in hypers.items()}
    rg.grad(problem.error)(hypers["mass matrix"], 3)
    record["exact"] = problem.report.returned_exactly
    record["bits per weight and step"] = problem.report.bits_per_weight_step
    print(record["test"], record["condition"])
    picture(problem, hypers, runs, s.folder / "hmc_step_sizes.png")
    record.finish()
    return {"test": record["test"], "condition": record["condition"]}


if __name__ == "__main__":
    main(tyro.cli(Settings))
