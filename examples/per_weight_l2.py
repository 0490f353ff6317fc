"""Learn a penalty for every weight of a logistic regression (Maclaurin et al. 2015, figure 6).

Training is a function of its penalties. We train with the current ones, take the validation loss,
run training backwards bit for bit, and so get the derivative with respect to every penalty in that
one pass; an outer Adam takes a step; and again. The control is the best single penalty shared by
all weights, found by the same loop.

    python examples/per_weight_l2.py                  scikit-learn's 8x8 digits: 640 penalties
    python examples/per_weight_l2.py --data mnist     MNIST: 7,840 penalties
    python examples/per_weight_l2.py --break          one gradient wrong by one ulp on the way back
    python examples/per_weight_l2.py --paper          the published figure: figure6_per_weight_l2.py
"""

from contextlib import nullcontext
from dataclasses import dataclass
from math import isqrt, log2
from pathlib import Path
from time import perf_counter
from typing import Annotated, Literal

import numpy as np
import tyro

import revgrad as rg
from revgrad import data, plots
from revgrad.nn import log_softmax
from revgrad.testing import planted_fault


@dataclass
class Settings:
    data: Literal["digits", "mnist"] = "digits"
    steps: int = 100  # of training
    outer: int = 50  # of the outer Adam
    batch: int = 100  # examples per step
    rate: float = 2.0  # of training; the whole effective rate
    momentum: float = 0.9
    outer_rate: float = 0.15
    log_penalty: float = -6.0  # where every penalty starts
    fault: Annotated[bool, tyro.conf.arg(name="break")] = False  # plant one on the way back
    paper: bool = False  # the published experiment, with settings of its own
    picture: str = "per_weight_l2.png"


def logits(params, x):
    return x @ params["weights"] + params["bias"]


def losses(params, split):
    """Negative log-likelihood of each example, in nats."""
    return -np.sum(data.one_hot(split.y, 10) * log_softmax(logits(params, split.x)), axis=1)


def penalised_loss(params, log_penalty, batch):
    return np.mean(losses(params, batch)) + np.sum(np.exp(log_penalty) * params["weights"] ** 2)


class Problem:
    def __init__(self, s):
        sets = data.digits(300, 500) if s.data == "digits" else data.mnist(10_000, 10_000)
        self.train, self.valid, self.test = sets
        shape = self.train.x.shape[1], 10
        weights = 0.01 * np.random.default_rng(0).standard_normal(shape)
        self.start = {"weights": weights.astype(np.float32), "bias": np.zeros(10, np.float32)}
        self.batches = data.minibatches(self.train, s.batch, seed=0)
        self.s, self.loss, self.report = s, penalised_loss, rg.Report()

    def trained(self, log_penalty):
        return rg.train(
            self.loss, self.start, rg.Momentum(self.s.rate, self.s.momentum), self.batches,
            steps=self.s.steps, hyper=log_penalty, adjoint=rg.Reversible(), report=self.report,
        )  # fmt: skip

    def hyperloss(self, log_penalty):
        return np.mean(losses(self.trained(log_penalty), self.valid))

    def learn(self, log_penalty):
        optimizer = rg.Adam(self.s.outer_rate)
        return rg.minimize(self.hyperloss, log_penalty, optimizer, until=self.s.outer).best_hyper

    def row(self, log_penalty):
        """(mean, standard error) of validation and test loss (nats) and error (%)."""
        params, row = self.trained(log_penalty), {}
        for name, split in (("validation", self.valid), ("test", self.test)):
            wrong = np.argmax(logits(params, split.x), axis=1) != split.y
            for what, each in (("loss", losses(params, split)), ("error %", 100.0 * wrong)):
                row[f"{name} {what}"] = float(np.mean(each)), float(np.std(each) / len(each) ** 0.5)
        return row

    def facts(self, log_penalty):
        """One hypergradient, beside the plain run on its way."""
        began = perf_counter()
        try:
            rg.grad(self.hyperloss)(log_penalty)
        except rg.NotReversed as error:
            return {"NotReversed": str(error), "returned exactly": "no"}
        return {
            "hyperparameters": np.size(log_penalty),
            "training steps": self.report.steps,
            "bits kept per weight and step": self.report.bits_per_weight_step,
            "log2(d/n)": log2(1 / self.s.momentum),
            "bytes kept": self.report.bytes_kept,
            "bytes of the trajectory": self.report.bytes_stored,
            "hypergradient / plain run": (perf_counter() - began) / self.report.seconds,
            "returned exactly": "yes",
        }


def show(rows):
    print("\n", *(f"{name:>18}" for name in ("penalty", *rows["start"])))
    for name, row in rows.items():
        print("", f"{name:>18}", *(f"{f'{mean:.4g} ± {se:.1g}':>18}" for mean, se in row.values()))


def main(s):
    if s.paper:
        import figure6_per_weight_l2 as published

        return published.main(published.Settings(Path(s.picture).parent))
    problem, rows = Problem(s), {}
    each = start = np.full(problem.start["weights"].shape, s.log_penalty)
    if not s.fault:
        shared, each = problem.learn(np.float64(s.log_penalty)), problem.learn(start)
        found = {"start": start, "one shared": shared, "one per weight": each}
        rows = {name: problem.row(log_penalty) for name, log_penalty in found.items()}
        show(rows)
        change, shape = (each - start).T, (isqrt(len(each)),) * 2  # 0 where it does not matter
        axes = plots.per_weight_maps(change, shape, label="log(learned / initial penalty)")
        axes[0].figure.savefig(s.picture, dpi=150, bbox_inches="tight")
    fault = planted_fault(s.steps // 2 - 1, leaf=1) if s.fault else nullcontext()
    with fault:
        facts = problem.facts(each)
    for name, value in facts.items():
        print(f"{name:>32}: {value if isinstance(value, str) else format(value, ',.7g')}")
    return {"rows": rows, **facts}


if __name__ == "__main__":
    main(tyro.cli(Settings))
