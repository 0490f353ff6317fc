"""A stream without end: digits that rotate, now and then, and a rate that learns to follow.

    python examples/online/lifelong.py [--quick] [--data digits] [--folder docs/reproduction]

The paper says that online optimisation suits a lifelong stream, and shows none. Here images turn
slowly, stand still, turn fast, stand still again. Each batch is predicted before it is learned
from; what counts is the mean of these losses. Fixed rates, one that falls with the root of time as
stochastic approximation has it, and one that learns from another stream of images at the same
angle: its logarithm does, up to a rate of 1, and influences are forgotten now and then (never
forgotten, they blow up near the largest stable rate). Memory does not grow with the stream.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import matplotlib.pyplot as plt
import numpy as np
import tyro
from tqdm import tqdm

import revgrad as rg
from revgrad import data, nn
from revgrad.records import Record

PAPER = {}  # a claim without numbers
SPEEDS = (0.02, 0.0, 0.2, 0.0)  # degrees per step, in the quarters of the stream


@dataclass
class Settings:
    folder: Path = Path(".")
    quick: bool = False
    data: Literal["mnist", "digits"] = "mnist"
    steps: int = 12_000
    fixed: tuple[float, ...] = (0.03, 0.1, 0.3, 1.0, 2.0)
    rate: float = 0.1
    meta: float = 0.03
    resets: tuple[int, ...] = (100, 1000)


def rotation(side, degrees):
    """(pixels, pixels): what takes an image, as a row, to one turned about its middle; bilinear."""
    a, middle = np.deg2rad(degrees), (side - 1) / 2
    y, x = np.mgrid[:side, :side] - middle
    at = np.array([np.cos(a) * y - np.sin(a) * x, np.sin(a) * y + np.cos(a) * x]) + middle
    matrix, low = np.zeros((side, side, side * side), np.float32), np.floor(at).astype(int)
    for dy in (0, 1):
        for dx in (0, 1):
            i, j = low[0] + dy, low[1] + dx
            weight = (1 - abs(at[0] - i)) * (1 - abs(at[1] - j))
            inside = (i >= 0) & (i < side) & (j >= 0) & (j < side)
            rows = np.arange(side * side).reshape(side, side)[inside]
            matrix[i[inside], j[inside], rows] += weight[inside]
    return matrix.reshape(side * side, side * side)


class Stream:
    """Batches of images at the angle of their step: a pure function of it."""

    def __init__(self, x, y, side, steps, seed, batch=50):
        self.batches, self.side = rg.minibatches((x, y), batch, seed), side
        speeds = np.repeat(SPEEDS, -(-steps // len(SPEEDS)))[:steps]
        self.angles = np.round(np.cumsum(speeds)).astype(int) % 360
        self.turned = {a: rotation(side, a) for a in np.unique(self.angles)}

    def __call__(self, t):
        x, y = self.batches(t)
        return x @ self.turned[self.angles[t]], y


def images(s):
    """(training, validation) images and labels, and their side."""
    if s.data == "digits":
        found = data.digits(1000, 600)
        return tuple(found.train), tuple(found.valid), 8
    found = data.mnist(20_000, 10_000)
    small = lambda x: x.reshape(-1, 14, 2, 14, 2).mean(axis=(2, 4)).reshape(-1, 196)
    return *((small(part.x), part.y) for part in (found.train, found.valid)), 14


def outputs(params, x):
    return np.tanh(x @ params["w1"] + params["b1"]) @ params["w2"] + params["b2"]


def loss(params, _, batch):
    return nn.softmax_cross_entropy(outputs(params, batch[0]), batch[1])


def valid_loss(params, batch):
    return loss(params, None, batch)


def follow(s, optimizer, stream, pixels):
    """Losses before each step, and the rates."""
    rng = np.random.default_rng(0)
    draw = lambda *shape: (rng.standard_normal(shape) / shape[0] ** 0.5).astype(np.float32)
    params = {"w1": draw(pixels, 64), "w2": draw(64, 10)}
    params |= {"b1": np.zeros(64, np.float32), "b2": np.zeros(10, np.float32)}
    _, paths = rg.fit(loss, params, optimizer, stream, steps=s.steps)
    rates = paths["learning_rate"] if len(paths) else np.zeros(0)
    mean = lambda x: x.reshape(-1, s.steps // 120).mean(axis=1)
    quarters = paths.loss.reshape(4, -1).mean(axis=1)
    found = {"losses": mean(paths.loss), "quarters": quarters, "mean": paths.loss.mean()}
    return found | ({"rates": mean(rates)} if len(rates) else {})


def main(s):
    if s.quick:
        s.steps, s.fixed, s.resets = 240, (0.1, 0.3), (100,)
    train, valid, side = images(s)
    stream = Stream(*train, side, s.steps, 0)
    other = Stream(*valid, side, s.steps, 1)
    cases = {f"fixed at {rate:g}": rg.SGD(rate) for rate in s.fixed}
    cases["falling"] = rg.SGD(rg.per_step(lambda t: 1.0 / (1 + t / 100) ** 0.5))
    for reset in s.resets:
        tuned_by = rg.RTRL(
            valid_loss, other, s.meta, reset=reset, bounds={"learning_rate": (-np.inf, 0.0)}
        )
        learns = rg.SGD(s.rate, tuned_by=tuned_by, transforms={"learning_rate": "exp"})
        cases[f"online, reset {reset}"] = learns
    record, found = Record(s.folder / "lifelong.json", s), {}
    for name, optimizer in tqdm(cases.items()):
        run = lambda optimizer=optimizer: follow(s, optimizer, stream, side**2)
        found[name] = record.once(name, run)
    record["mean loss"] = {name: row["mean"] for name, row in found.items()}
    record.finish()
    draw_stream(s, found)
    return record["mean loss"]


def draw_stream(s, found):
    figure = plt.figure(figsize=(9, 5.4), layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True)
    steps = (np.arange(120) + 0.5) * s.steps / 120
    best = min((n for n in found if "fixed" in n), key=lambda n: found[n]["mean"])
    for name, row in found.items():
        if "fixed" in name and name != best:
            continue
        label = f"{name}: {row['mean']:.3f} on average"
        (line,) = above.plot(steps, row["losses"], lw=1, label=label)
        if "rates" in row:
            below.plot(steps, row["rates"], color=line.get_color(), label=name)
    for k, speed in enumerate(SPEEDS):
        above.annotate(
            f"{speed:g} degrees a step", ((k + 0.05) / 4, 0.92), xycoords="axes fraction"
        )
        below.axvline(k * s.steps / 4, color="0.8", lw=0.8)
    above.set(ylabel="loss of the next batch (nats)", ylim=(0, 1.5))
    above.legend(frameon=False, fontsize=8, loc="upper right", bbox_to_anchor=(1, 0.9))
    below.set(xlabel="step", ylabel="learning rate")
    below.legend(frameon=False, fontsize=8)
    figure.savefig(s.folder / "lifelong.png", dpi=90)
    plt.close(figure)


if __name__ == "__main__":
    print(main(tyro.cli(Settings)))
