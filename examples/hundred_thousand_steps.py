"""100,000 steps of momentum, run backwards bit for bit, for a penalty per weight.

Logistic regression on digits with a penalty of its own for every weight. Minibatches first, all
examples at once at the end, so that training arrives at the optimum. There the hypergradient is
known another way, from the Hessian alone (`Implicit`): the two must agree. Keeping every state
would take gigabytes; what is kept is 0.152 bits per weight and step.

    python examples/hundred_thousand_steps.py --quick     2,000 steps
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import tyro

import revgrad as rg
from revgrad import data
from revgrad.nn import softmax_cross_entropy


@dataclass
class Settings:
    quick: bool = False
    data: Literal["mnist", "digits"] = "mnist"
    steps: int = 100_000
    last: float = 0.3  # the share of steps that see all examples
    examples: int = 1_000
    batch: int = 100
    rate: float = 0.5
    momentum: float = 0.9
    log_penalty: float = -4.0


def load(s):
    """((pixels, one-hot labels) for training, the same for validation), in float64."""
    read = data.mnist if s.data == "mnist" else data.digits
    split = read(s.examples, s.examples // 2, dtype=np.float64)
    return [(part.x, data.one_hot(part.y, 10, np.float64)) for part in (split.train, split.valid)]


def cross_entropy(params, batch):
    x, y = batch
    return softmax_cross_entropy(x @ params["weights"] + params["bias"], y)


def loss(params, log_penalty, batch):
    penalty = np.sum(np.exp(log_penalty) * params["weights"] ** 2)
    return cross_entropy(params, batch) + penalty + 0.01 * np.sum(params["bias"] ** 2)


def main(s):
    if s.quick:
        s.steps, s.examples = 2_000, 300
    everything, held_out = load(s)
    pixels = everything[0].shape[1]
    start = {"weights": np.zeros((pixels, 10)), "bias": np.zeros(10)}
    log_penalty = np.full((pixels, 10), s.log_penalty)
    few = rg.minibatches(everything, s.batch, seed=0)
    whole = s.steps - int(s.last * s.steps)
    report = rg.Report()

    def trained(log_penalty, start, steps, adjoint, report=None):
        optimizer = rg.Momentum(s.rate, s.momentum)
        batches = lambda t: few(t) if t < whole and steps > 1 else everything
        return rg.train(
            loss, start, optimizer, batches, steps=steps, hyper=log_penalty, adjoint=adjoint,
            report=report,
        )  # fmt: skip

    def validation(log_penalty):
        end = trained(log_penalty, start, s.steps, rg.Reversible(), report)
        return cross_entropy(end, held_out), end

    (value, end), found = rg.value_and_grad(validation, has_aux=True)(log_penalty)
    implicit = rg.grad(
        lambda p: cross_entropy(
            trained(p, end, 1, rg.Implicit(loss, everything)),
            held_out,
        )
    )(log_penalty)
    error = np.linalg.norm(found - implicit) / np.linalg.norm(implicit)
    facts = {
        "steps": s.steps,
        "hyperparameters": log_penalty.size,
        "validation loss": float(value),
        "returned exactly": report.returned_exactly,
        "relative distance to Implicit": float(error),
        "bits per weight and step": report.bits_per_weight_step,
        "MB kept": report.bytes_kept / 1e6,
        "MB to store every state in float32": report.bytes_stored / 2e6,  # the params are float64
        "seconds forwards, back": (round(report.seconds, 1), round(report.seconds_back, 1)),
    }
    for name, fact in facts.items():
        print(f"{name:>36}: {f'{fact:,.6g}' if isinstance(fact, float) else fact}")
    return facts


if __name__ == "__main__":
    main(tyro.cli(Settings))
