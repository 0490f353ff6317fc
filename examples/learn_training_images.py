"""Learn the training set: an image for each digit, out of noise (Maclaurin et al. 2015, figure 7).

Ten images and their labels are all that a logistic regression is trained on, for 20 steps. Their
7,840 pixels are hyperparameters, learned by gradient descent on the loss of 10,000 real images: the
images that teach most in 20 steps. The published run was to learn the L2 penalty too, but left it
at 0.01 ("published"); with its gradient the loss ends lower ("penalty learned"). The paper proposes
to learn labels as well. Where they may become any numbers, one image teaches of every digit, and
the same ten images do much better; fifty of them do little more.

    python examples/learn_training_images.py --variants published
    python examples/learn_training_images.py --quick --data digits
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import matplotlib.pyplot as plt
import numpy as np
import tyro
from authors import error, nll, slices, start

import revgrad as rg
from revgrad import plots
from revgrad.records import Record

VARIANTS = {  # images of each digit, what is learned beside them, by what
    "published": (1, (), rg.SGD(1.0)),
    "penalty learned": (1, ("log_penalty",), rg.SGD(1.0)),
    "by Adam": (1, ("log_penalty",), rg.Adam(0.03)),
    "labels learned": (1, ("log_penalty", "labels"), rg.Adam(0.03)),
    "labels, 50 images": (5, ("log_penalty", "labels"), rg.Adam(0.03)),
}
PAPER = {
    f"validation loss, meta-iteration {k}": (x, f"published/validation/{k}")
    for k, x in {1: 1.2468, 2: 0.9642, 5: 0.6957, 10: 0.5638, 20: 0.4788, 30: 0.4447}.items()
}
ENDS = {"published": (0.7433, 0.4275, 0.5019), "penalty learned": (0.6188, 0.4193, 0.4934)}
for variant, row in ENDS.items():
    for what, x in zip(("train", "validation", "test"), row, strict=True):
        PAPER[f"{what} loss at the end, {variant}"] = (x, f"{variant}/{what}/39")
PAPER["test error (%), published"] = (12.5, "published/test error %/39")
PAPER["penalty, learned"] = (0.0053, "penalty learned/penalty")
PAPER["darkest pixel"] = (-0.30, "published/pixels/0")
PAPER["brightest pixel"] = (0.33, "published/pixels/1")


@dataclass
class Settings:
    folder: Path = Path(".")
    quick: bool = False
    data: Literal["mnist", "digits"] = "mnist"
    variants: tuple[Literal[*VARIANTS], ...] = tuple(VARIANTS)
    steps: int = 20
    outer: int = 40


def loss(params, hyper, _batch):
    penalty = np.exp(hyper["log_penalty"]) * sum(np.sum(w**2) for w in params.values())
    return nll(params, (hyper["images"], hyper["labels"])) + penalty


def learn(s, variant, valid, test):
    """(Curves and facts, the images), up to the last that were tried."""
    each, learned, optimizer = VARIANTS[variant]
    params, report, tried = start(valid[0].shape[1]), rg.Report(), []
    known = {"log_penalty": np.log(0.01), "labels": np.tile(np.eye(10), (each, 1))}
    curves = {name: [] for name in ("train", "validation", "test", "test error %")}

    def hyperloss(hyper):
        trained = rg.train(
            loss, params, rg.Momentum(1.0, 0.9), [None], steps=s.steps, hyper=known | hyper,
            adjoint=rg.Reversible(), arithmetic=rg.FixedPoint(rounding="truncated"), report=report,
        )  # fmt: skip
        return nll(trained, valid), trained

    def note(step, metrics):
        trained, now = metrics["aux"], known | metrics["hyper"]
        tried.append(now)
        found = loss(trained, now, None), metrics["value"], nll(trained, test), error(trained, test)
        for values, value in zip(curves.values(), found, strict=True):
            values.append(float(value))

    images = 0.01 * np.random.RandomState(0).randn(10 * each, valid[0].shape[1])
    hyper = {"images": images} | {name: known[name] for name in learned}
    more = {"until": s.outer, "has_aux": True, "callback": note}
    rg.minimize(hyperloss, hyper, optimizer, **more)
    assert report.returned_exactly
    images, penalty = tried[-1]["images"], np.exp(tried[-1]["log_penalty"])
    facts = {"penalty": penalty, "pixels": [images.min(), images.max()]}
    return curves | facts | {"bits": report.bits_per_weight_step}, images


def main(s):
    if s.quick:
        s.outer = 5
    record = Record(s.folder / "learn_training_images.json", s)
    small = s.data == "digits"
    sets = slices(s.data, 1_000 if small else 10_000, test=500 if small else 1_000)
    figure = plt.figure(figsize=(9, 2.8), layout="constrained")
    left, right = figure.subfigures(1, 2, width_ratios=(2, 1))
    ax = right.subplots()
    for k, variant in enumerate(s.variants):
        record[variant], images = learn(s, variant, *sets)
        curve = record[variant]["validation"]
        print(f"{variant:>18}: validation {curve[-1]:.4f}, test {record[variant]['test'][-1]:.4f}")
        plots.learning_curve(curve, ax, variant)
        if k == 0:
            shape = (round(images.shape[1] ** 0.5),) * 2
            plots.per_weight_maps(images[:10], shape, left.subplots(2, 5), label="pixel")
    record["bits per weight and step"] = record[s.variants[0]]["bits"]
    record.finish()
    ax.set(xlabel="meta-iteration", ylabel="validation loss (nats)", yscale="log")
    figure.savefig(s.folder / "learn_training_images.png", dpi=100)
    plt.close(figure)
    return {variant: record[variant] for variant in s.variants}


if __name__ == "__main__":
    main(tyro.cli(Settings))
