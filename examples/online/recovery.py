"""Figures 6 and 8: recovery from a bad rate, and influences that are forgotten.

    python examples/online/recovery.py [--quick] [--data digits] [--folder docs/reproduction]

Figure 6: a training that learns its rate is interrupted at an epoch, the rate set to a bad value,
and goes on, learning it or leaving it there. The paper keeps influences over the interruption; here
they begin anew, as they belong to a run. It sets the rate to 0.2 on CIFAR-10, which is too high
there; on MNIST 1.5 is too high, and 0.001 too low.

Figure 8: influences set to 0 at every step (then only the latest step counts), every 100, every
1,000, or never, from two initial rates. The paper finds that less often is better.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import matplotlib.pyplot as plt
import numpy as np
import tyro
from mnist_mlp import Problem, as_floats, thinned
from tqdm import tqdm

import revgrad as rg
from revgrad.records import Record

FIGURE_8 = {"1": 0.459, "100": 0.443, "1000": 0.425, "never": 0.390}
PAPER = {
    f"figure 8, reset every {k} steps: median test loss (paper: CIFAR-10)": (x, f"resets/{k}/0")
    for k, x in FIGURE_8.items()
}


@dataclass
class Settings:
    folder: Path = Path(".")
    quick: bool = False
    data: Literal["mnist", "digits"] = "mnist"
    epochs: int = 30
    meta: float = 1e-5
    rates: tuple[float, ...] = (0.001, 0.1)
    bad: tuple[float, ...] = (0.001, 1.5)


def undisturbed(s, problem):
    """The first half: what it came to, and the params for the second."""
    half = problem.epoch * s.epochs // 2
    trained, paths = rg.fit(
        problem.loss, problem.params(0), problem.oho(0.1, 0.0, s.meta),
        rg.minibatches(problem.train, problem.batch, 0), steps=half,
    )  # fmt: skip
    return trained, thinned(paths)


def second_half(s, problem, params, optimizer):
    problem.params = lambda seed: params
    row, paths = problem.run(optimizer, s.epochs / 2, seed=1)
    return row | {"paths": thinned(paths) if paths is not None and len(paths) else None}


def figure_6(s, problem, record):
    params, before = undisturbed(s, problem)
    fresh, found = problem.params, {}
    for bad in s.bad:
        for name, made in (
            ("left there", rg.SGD(bad)),
            ("learning", problem.oho(bad, 0.0, s.meta)),
        ):
            run = lambda made=made: second_half(s, problem, params, made)
            found[f"set to {bad:g}, {name}"] = record.once(f"set to {bad:g}, {name}", run)
    problem.params = fresh
    return before, found


def figure_8(s, problem, record):
    rows = {}
    for reset in (1, 100, 1000, None):
        losses = []
        for rate in s.rates:
            learns = problem.oho(rate, 0.0, s.meta, reset=reset)
            name = f"reset {reset or 'never'}, rate {rate:g}"
            row = record.once(name, lambda o=learns: problem.run(o, s.epochs)[0])
            losses.append(row["test loss"][-1])
        rows[str(reset or "never")] = [float(np.median(losses)), losses]
    return rows


def main(s):
    if s.quick:
        s.epochs, s.rates, s.bad = 2, (0.1,), (1.5,)
    problem, record = Problem(s.data), Record(s.folder / "recovery.json", s)
    with tqdm(total=2) as bar:
        before, after = figure_6(s, problem, record)
        bar.update()
        record["resets"] = figure_8(s, problem, record)
        bar.update()
    record["after the change"] = {name: row["test loss"][-1] for name, row in after.items()}
    record.finish()
    draw(s, before, after, record["resets"])
    return {"resets": record["resets"], "after": record["after the change"]}


def draw(s, before, after, resets):
    left, right = plt.figure(figsize=(11, 4), layout="constrained").subplots(1, 2)
    left.plot(before["step"], as_floats(before["learning_rate"]), color="0.3", label="undisturbed")
    for name, row in after.items():
        if row["paths"]:
            steps = np.array(row["paths"]["step"]) + before["step"][-1]
            label = f"{name}: test loss {row['test loss'][-1]:.3f}"
            left.plot(steps, as_floats(row["paths"]["learning_rate"]), label=label)
        else:
            left.plot([], [], " ", label=f"{name}: test loss {row['test loss'][-1]:.3g}")
    left.set(xlabel="step", ylabel="learning rate", yscale="log")
    left.figure.legend(loc="outside upper left", ncol=3, frameon=False, fontsize=8)
    for k, (_, losses) in enumerate(resets.values()):
        right.plot([k] * len(losses), losses, "o", color="#0072b2")
    right.set_xticks(range(len(resets)), resets)
    right.set(xlabel="influences are set to 0 every ... steps", ylabel="test loss (nats)")
    left.figure.savefig(s.folder / "recovery.png", dpi=90)
    plt.close(left.figure)


if __name__ == "__main__":
    print(main(tyro.cli(Settings)))
