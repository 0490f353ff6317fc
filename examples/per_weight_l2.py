"""Learn a penalty for every weight of a logistic regression (Maclaurin et al. 2015, figure 6).

Training is a function of its penalties. We train with the current ones, take the validation loss,
run training backwards bit for bit, and so get the derivative with respect to every penalty in that
one pass; an outer Adam takes a step; and again. The control is the best single penalty shared by
all weights, found by the same loop.

    python examples/per_weight_l2.py                  scikit-learn's 8x8 digits: 640 penalties
    python examples/per_weight_l2.py --data mnist     MNIST: 7,840 penalties
    python examples/per_weight_l2.py --break          one gradient wrong by one ulp on the way back
"""

from dataclasses import asdict, dataclass
from math import isqrt, log2
from time import perf_counter
from typing import Annotated, Literal

import numpy as np
import tyro

import revgrad as rg
from revgrad import data, plots
from revgrad.nn import log_softmax
from revgrad.testing import planted_fault

CLASSES = 10


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
    seed: int = 0
    fault: Annotated[bool, tyro.conf.arg(name="break")] = False  # plant one on the way back
    picture: str = "per_weight_l2.png"


def losses(params, split):
    """Negative log-likelihood of each example, in nats."""
    logits = split.x @ params["weights"] + params["bias"]
    return -np.sum(data.one_hot(split.y, CLASSES) * log_softmax(logits), axis=1)


def penalised_loss(params, log_penalty, batch):
    return np.mean(losses(params, batch)) + np.sum(np.exp(log_penalty) * params["weights"] ** 2)


class Problem:
    def __init__(self, s):
        digits = s.data == "digits"
        splits = data.digits(300, 500) if digits else data.mnist(10_000, 10_000)
        self.train, self.valid, self.test = splits
        self.batches = data.minibatches(self.train, s.batch, s.seed)
        weights = np.random.default_rng(s.seed).standard_normal((self.train.x.shape[1], CLASSES))
        start = {"weights": 0.01 * weights, "bias": np.zeros(CLASSES)}
        self.start = {name: x.astype(np.float32) for name, x in start.items()}
        self.settings, self.loss = s, penalised_loss

    def trained(self, log_penalty, report=None):
        s = self.settings
        return rg.train(
            self.loss, self.start, rg.Momentum(s.rate, s.momentum), self.batches, steps=s.steps,
            hyper=log_penalty, adjoint=rg.Reversible(), report=report,
        )  # fmt: skip

    def hyperloss(self, log_penalty, report=None):
        return np.mean(losses(self.trained(log_penalty, report), self.valid))

    def learn(self, log_penalty):
        optimizer = rg.Adam(self.settings.outer_rate)
        found = rg.minimize(self.hyperloss, log_penalty, optimizer, until=self.settings.outer)
        return found.best_hyper

    def row(self, log_penalty):
        """Validation and test loss (nats) and error (%), each with its standard error."""
        params, row = self.trained(log_penalty), {}
        for name, split in (("validation", self.valid), ("test", self.test)):
            wrong = np.argmax(split.x @ params["weights"] + params["bias"], axis=1) != split.y
            for what, each in (("loss", losses(params, split)), ("error %", 100.0 * wrong)):
                se = np.std(each) / len(each) ** 0.5
                row[f"{name} {what}"] = (float(np.mean(each)), float(se))
        return row


def run_backwards(problem, log_penalty):
    """One hypergradient, beside one plain run; returns facts to print."""
    report, s = rg.Report(), problem.settings
    if s.fault:  # the loss is called once as a probe, once per step, and again on the way back
        problem.loss = planted_fault(penalised_loss, call=1 + s.steps + s.steps // 2, leaf=1)
    try:
        began = perf_counter()
        rg.grad(problem.hyperloss)(log_penalty, report)
        seconds = perf_counter() - began
    except rg.NotReversed as error:
        return {"NotReversed": str(error), "returned exactly": "no"}
    return {
        "hyperparameters": np.size(log_penalty),
        "training steps": report.steps,
        "bits kept per weight and step": report.bits_per_weight_step,
        "log2(d/n)": log2(1 / s.momentum),
        "bytes kept": report.bytes_kept,
        "bytes of the trajectory": report.bytes_stored,
        "hypergradient / plain run": seconds / report.seconds,
        "returned exactly": "yes" if report.returned_exactly else "no",
    }


def show(rows, facts):
    columns = next(iter(rows.values()))
    print(f"\n{'penalty':>18}" + "".join(f"{column:>20}" for column in columns))
    for name, row in rows.items():
        print(f"{name:>18}" + "".join(f"{f'{m:.4g} ± {e:.1g}':>20}" for m, e in row.values()))
    print()
    for name, value in facts.items():
        print(f"{name:>32}: {value if isinstance(value, str) else format(value, ',.7g')}")


def main(s):
    problem = Problem(s)
    first = np.full(problem.start["weights"].shape, s.log_penalty)
    if s.fault:
        facts = run_backwards(problem, first)
        print(facts["NotReversed"], f"returned exactly: {facts['returned exactly']}", sep="\n")
        return facts
    shared, each = problem.learn(np.float64(s.log_penalty)), problem.learn(first)
    rows = {"start": first, "one shared": shared, "one per weight": each}
    rows = {name: problem.row(log_penalty) for name, log_penalty in rows.items()}
    facts = run_backwards(problem, each)
    show(rows, facts)
    side = isqrt(len(each))
    change = (each - s.log_penalty).T  # 0 where the penalty does not matter
    axes = plots.per_weight_maps(change, (side, side), label="log(learned / initial penalty)")
    axes[0].figure.savefig(s.picture, dpi=150, bbox_inches="tight")
    print(f"\nlearned penalties drawn in {s.picture}")
    return {"settings": asdict(s), "rows": rows, **facts}


if __name__ == "__main__":
    main(tyro.cli(Settings))
