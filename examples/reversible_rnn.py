"""A gated recurrent network, reversed exactly over 10,000 time steps.

Section 6 of Maclaurin et al. 2015 proposes to keep what a forget gate destroys, and nothing else,
and so to go back through a recurrent network without storing its states. The state has two halves,
and the gates of each are functions of the other (MacKay et al. 2018). First the derivative of the
mean loss over a long text, with respect to every weight: equal to the bit to that from stored
states. Then the network learns to predict the next character from shorter pieces.

    python examples/reversible_rnn.py                     War and Peace, 8 minutes on one core
    python examples/reversible_rnn.py --data self --quick the text of this file, seconds
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import matplotlib.pyplot as plt
import numpy as np
import tyro

import revgrad as rg
from revgrad import data
from revgrad.extend import Add, Scale
from revgrad.nn import log_softmax, sigmoid
from revgrad.records import Record

PAPER = {
    "equal to the bit": ("proposed", "equal to the bit"),
    "bits per state and step": (None, "bits per weight and step"),
    "MB kept": (None, "reversible/MB kept"),
    "MB of its states in float32": (None, "reversible/MB of states"),
    "loss (nats per character), untrained": (None, "learning/0"),
    "loss, trained": (None, "learned"),
}


@dataclass
class Settings:
    folder: Path = Path(".")
    quick: bool = False
    data: Literal["warpeace", "self"] = "warpeace"
    steps: int = 10_000  # of the long text
    readers: int = 8  # places in the text that are read at once
    units: int = 64  # of each half
    piece: int = 100  # time steps of an update when learning
    updates: int = 1_000
    rate: float = 0.01


def gate(h, x, w):
    """In (0.001, 0.999): below 1, so that a ratio of integers stands for it."""
    return 0.001 + 0.998 * sigmoid(w["x"][x["now"]] + h @ w["h"] + w["b"])


def new(h, x, w):
    return np.tanh(w["x"][x["now"]] + h @ w["h"] + w["b"])


def surprise(a, b, x, out):
    """Mean over readers of -log p(next character), nats."""
    logits = log_softmax(a @ out["a"] + b @ out["b"] + out["c"])
    return -np.mean(np.take_along_axis(logits, x["next"][:, None], axis=1)) * x["share"]


CELL = (
    Scale("a", by=lambda b, x, keep_a: gate(b, x, keep_a)),
    Add("a", lambda b, x, keep_a, new_a: (1 - gate(b, x, keep_a)) * new(b, x, new_a)),
    Scale("b", by=lambda a, x, keep_b: gate(a, x, keep_b)),
    Add("b", lambda a, x, keep_b, new_b: (1 - gate(a, x, keep_b)) * new(a, x, new_b)),
    Add("loss", surprise),
)


class Problem:
    def __init__(self, s):
        path = Path(__file__) if s.data == "self" else data.find("warpeace_input.txt")
        text = path.read_text(encoding="utf-8-sig")
        letters = sorted({*text})
        self.text = np.array([letters.index(c) for c in text[: 40 * s.steps * s.readers]])
        rng, n, m = np.random.default_rng(0), s.units, len(letters)
        draw = lambda *shape: (0.1 * rng.standard_normal(shape)).astype(np.float32)
        part = lambda bias: {"x": draw(m, n), "h": draw(n, n), "b": draw(n) + np.float32(bias)}
        self.weights = {"keep_a": part(1), "new_a": part(0), "keep_b": part(1), "new_b": part(0)}
        self.weights["out"] = {"a": draw(n, m), "b": draw(n, m), "c": draw(m)}
        zeros = np.zeros((s.readers, n), np.float32)
        self.start, self.s = {"a": zeros, "b": zeros, "loss": np.float32(0)}, s

    def read(self, begins, steps):
        """The text from each place on: this character and the next, and the share in a mean."""
        at = (np.arange(steps)[:, None] + begins) % (len(self.text) - 1)
        share = np.full(steps, 1 / steps, np.float32)
        return {"now": self.text[at], "next": self.text[at + 1], "share": share}

    def loss(self, weights, inputs, adjoint, report=None):
        options = {"params": weights, "adjoint": adjoint, "report": report}
        return rg.scan(CELL, self.start, inputs, **options)["loss"]

    def long(self, adjoint):
        """(facts of one derivative through the long text, the derivative itself)."""
        report, s = rg.Report(), self.s
        inputs = self.read(np.arange(s.readers) * s.steps, s.steps)
        loss, slope = rg.value_and_grad(self.loss)(self.weights, inputs, adjoint, report)
        facts = {"loss": loss, "MB kept": report.bytes_kept / 1e6}
        facts |= {"MB of states": report.bytes_stored / 1e6, "exact": report.returned_exactly}
        facts |= {"bits": report.bits_per_weight_step}
        return facts | {"seconds": [report.seconds, report.seconds_back]}, slope

    def learn(self, save):
        s = self.s

        def loss(weights, step):
            begins = np.random.default_rng((1, step)).integers(len(self.text), size=s.readers)
            return self.loss(weights, self.read(begins, s.piece), rg.Reversible())

        return rg.minimize(loss, self.weights, rg.Adam(s.rate), until=s.updates, save=save).values


def picture(facts, values, path):
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.5), layout="constrained")
    kept = [facts[k] for k in ("MB kept", "MB of states")]
    bars = left.bar(["what gates destroy", "states in float32"], kept)
    left.bar_label(bars, fmt="%.3g MB")
    left.set(yscale="log", ylabel="kept to go back (MB)", ylim=(None, 3 * max(kept)))
    right.plot(values, lw=0.7)
    right.set(xlabel="update", ylabel="loss (nats per character)")
    figure.savefig(path, dpi=110)
    plt.close(figure)


def main(s):
    if s.quick:
        s.steps, s.units, s.piece, s.updates = 500, 8, 20, 30
    record, problem = Record(s.folder / "reversible_rnn.json", s), Problem(s)

    def both():
        (reversible, ours), (stored, theirs) = map(problem.long, (rg.Reversible(), rg.Stored()))
        pairs = [(ours[k][j], theirs[k][j]) for k in ours for j in ours[k]]
        equal = all(x.tobytes() == y.tobytes() for x, y in pairs)
        return {"reversible": reversible, "stored": stored, "equal to the bit": equal}

    for name, value in record.once("both", both).items():
        record[name] = value
        print(name, value)
    assert record["equal to the bit"]
    record["bits per weight and step"] = record["reversible"]["bits"]
    save = s.folder / "reversible_rnn.safetensors"
    values = record.once("learning", lambda: problem.learn(save))
    record["learned"] = float(np.mean(values[-20:]))
    print(f"{values[0]:.3f} nats per character, then {record['learned']:.3f}")
    picture(record["reversible"], values, s.folder / "reversible_rnn.png")
    record.finish()
    return {name: record[name] for name in ("equal to the bit", "reversible", "stored", "learning")}


if __name__ == "__main__":
    main(tyro.cli(Settings))
