"""Figures 2a and 4c, reduced: a small ResNet on CIFAR-10 whose SGD learns its rate and momentum.

    python examples/towers/resnet.py [--quick] [--full] [--folder docs/reproduction]

From good and bad first values of (rate, momentum), plain and tuned by one more SGD with a step of
its own for each: rate^2 / 1000 for the rate, 1e-6 / (1 - momentum) for the momentum, times `gain`.
The paper trains ResNet-20 on all images for 200 epochs, hours on a GPU for each of 18 runs, and
moves by many small steps; here a ResNet-8 of width 8 sees few images, and `gain` is how many times
fewer steps there are than in the paper. --full has the paper's sizes.

Batch norm's statistics are averages that `rg.AuxAverage` keeps, as a statement of the optimizer.
Figure 4e (ResNet-152, ImageNet weights, Caltech-256) is out of reach: the data and weights are not
to be had here, and a CPU would take months.

Source: Chandra et al. 2022, figures 2 and 4.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tyro
from paper import RATE
from pictures import by_height, figure, in_pairs
from small_resnet import ResNet, cifar10, loss_of
from tqdm import tqdm

import revgrad as rg
from revgrad.records import Record

PAPER_STEPS = 200 * 391
PAPER = {}  # bars without numbers; the claim: every cell ties or improves
CELLS = [(0.1, 0.9), (0.01, 0.9), (1.0, 0.9), (0.1, 0.09), (0.01, 0.09), (1.0, 0.99)]


@dataclass
class Settings:
    folder: Path = Path(".")  # where resnet.json and resnet.png go
    quick: bool = False  # a few steps on noise, for tests
    full: bool = False  # ResNet-20 of width 16, all images, 200 epochs, all cells
    images: int = 4_000
    epochs: int = 8


def optimizer(rate, mu, gain=None):
    below = rg.HeavyBall(rate, mu, weight_decay=1e-4)
    if gain is None:
        return rg.AuxAverage(below, 0.9)
    steps = {RATE: gain * rate**2 * 1e-3, "momentum": gain * 1e-6 / (1 - mu)}
    how = {RATE: "free", "momentum": "free"}
    return rg.AuxAverage(
        below, 0.9, tuned_by=rg.SGD(steps), tuned=(RATE, "momentum"), transforms=how
    )


def run(net, images, made, epochs):
    (x, y), (test_x, test_y) = images
    batches = rg.minibatches((x, y), min(128, len(x)), seed=0)
    steps = epochs * batches.steps_per_epoch
    try:
        with np.errstate(all="ignore"):
            trained, paths, state = rg.fit(
                loss_of(net), net.params(0), made, batches, steps=steps, has_aux=True,
                return_state=True,
            )  # fmt: skip
    except rg.NotFinite as error:
        return {"accuracy": 10.0, "diverged at step": error.step}
    unbiased = 1 - 0.9**steps
    statistics = [(m / unbiased, v / unbiased) for m, v in state["aux_average"]]
    guesses = [
        np.argmax(net(trained, part, statistics)[0], 1) for part in np.array_split(test_x, 8)
    ]
    accuracy = 100 * np.mean(np.concatenate(guesses) == test_y)
    return {"accuracy": accuracy, "loss": np.mean(paths.loss[-20:])} | paths.last


def tower(rate, height):
    """4c: SGDs above, whose sizes follow from the base rate."""
    sizes = [100 * rate, rate, rate / 100] if rate <= 1e-4 else [rate / 1e3, rate / 1e4, 1e-8]
    above = None
    for size in reversed(sizes[:height]):
        above = rg.SGD(size, **({"tuned_by": above, "transforms": {RATE: "free"}} if above else {}))
    below, how = rg.HeavyBall(rate, 0.9, weight_decay=1e-4), {RATE: "free", "momentum": "free"}
    if above is None:
        return rg.AuxAverage(below, 0.9)
    return rg.AuxAverage(below, 0.9, tuned_by=above, tuned=(RATE, "momentum"), transforms=how)


def main(settings=None):
    settings = settings or Settings()
    record = Record(settings.folder / "resnet.json", settings)
    if settings.quick:
        rng = np.random.default_rng(0)
        part = rng.standard_normal((64, 32, 32, 3)).astype(np.float32), rng.integers(0, 10, 64)
        images, net, epochs, cells, bases = (part, part), ResNet(4), 3, CELLS[:1], [1e-3]
    elif settings.full:
        images, net, epochs = cifar10(50_000, 10_000), ResNet(16, 3), 200
        cells = [(a, m) for a in (0.01, 0.1, 1.0) for m in (0.09, 0.9, 0.99)]
        bases = [10.0**k for k in range(-8, 2)]
    else:
        images, net, epochs = cifar10(settings.images, 2_000), ResNet(), settings.epochs
        cells, bases = CELLS, [1e-5, 1e-3, 1e-1]
    steps = epochs * (len(images[0][0]) // min(128, len(images[0][0])))
    gain = 1.0 if settings.full else PAPER_STEPS / steps
    record["gain"] = gain
    jobs = {f"2a, rate {a:g}, momentum {m:g}": (optimizer(a, m), epochs) for a, m in cells}
    jobs |= {
        f"{n}, tuned": (optimizer(a, m, gain), epochs)
        for n, (a, m) in zip(jobs, cells, strict=True)
    }
    jobs |= {
        f"4c, rate {a:g}, height {h}": (tower(a, h), max(1, epochs // 2))
        for a in bases
        for h in range(4)
    }
    for name, (made, count) in tqdm(jobs.items(), desc="ResNet"):
        record.once(name, lambda made=made, count=count: run(net, images, made, count))
    rows = {name: record[name]["accuracy"] for name in jobs}
    record["ties or improves"] = [
        rows[f"{n}, tuned"] >= rows[n] - 1.0 for n in rows if f"{n}, tuned" in rows
    ]
    record.finish()
    draw(rows, bases, settings.folder / "resnet.png")
    return {"rows": rows, "ties or improves": record["ties or improves"]}


def draw(rows, bases, path):
    cells = [n for n in rows if f"{n}, tuned" in rows]
    names = [n.removeprefix("2a, rate ").replace(", momentum ", "\n") for n in cells]
    plain, tuned = [rows[n] for n in cells], [rows[f"{n}, tuned"] for n in cells]
    towers = {h: [rows[f"4c, rate {a:g}, height {h}"] for a in bases] for h in range(4)}
    with figure(path, 2) as (left, right):
        words = {"xlabel": "first rate and momentum", "ylabel": "test accuracy (%)"}
        in_pairs(left, names, plain, tuned, title="figure 2a, reduced", **words)
        by_height(right, bases, towers, title="figure 4c, reduced")


if __name__ == "__main__":
    main(tyro.cli(Settings))
