"""What `fit` has to tell of the way: the loss, and every hyperparameter that learned."""

from array import array
from collections.abc import Mapping
from math import nan

import numpy as np

ROWS = 2**16  # kept at most; then every second one goes, and half as many are taken from there on


class Paths(Mapping):
    """name -> (rows,) the values that each step used; made by `revgrad.fit`.

    Names are those of the bottom optimizer's hyperparameters, with "tuned_by." before those one
    level up, as one would write them: "tuned_by.learning_rate". A tree has a name for each leaf,
    with its number: "learning_rate[0]"; of an array there are " min", " mean" and " max". What a
    tuner finds beside them, such as the norms of `RTRL`, has names too; NaN where it did not look.
    steps, loss: (rows,) each row's step, and its loss before that step. last: name -> the value
    that the last step used.
    Every step has a row up to 65,536 steps; then every second row, and so on: memory is bounded.
    """

    def __init__(self):
        self.every, self.columns, self.last = 1, {"step": array("d"), "loss": array("d")}, {}

    def add(self, step, loss, values, told=None):
        """Take in a step, the values that it used, and what a tuner found beside them."""
        self.last = values
        if step % self.every:
            return
        row = {"step": step, "loss": loss}
        for name, x in values.items():
            row |= {name: x} if type(x) is float else _several(name, x)
        row |= told or {}
        for name in row:
            if name not in self.columns:
                self.columns[name] = array("d", [nan]) * len(self.columns["step"])
        for name, column in self.columns.items():
            column.append(row.get(name, nan))
        if len(self.columns["step"]) > ROWS:
            self.every *= 2
            self.columns = {name: x[::2] for name, x in self.columns.items()}

    @property
    def steps(self):
        return np.array(self.columns["step"], np.int64)

    @property
    def loss(self):
        return np.array(self.columns["loss"])

    def __getitem__(self, name):
        if name in ("step", "loss") or name not in self.columns:
            raise KeyError(f"{name!r}; there are {[*self]}")
        return np.array(self.columns[name])

    def __iter__(self):
        return (name for name in self.columns if name not in ("step", "loss"))

    def __len__(self):
        return len(self.columns) - 2

    def __repr__(self):
        last = ", ".join(f"{name} {self.columns[name][-1]:.4g}" for name in self)
        return f"Paths({len(self.columns['step'])} rows; last {last or 'none'})"

    def load(self, columns, every):
        """Become what a save file holds."""
        self.columns = {name: array("d", x) for name, x in columns.items()}
        self.every = every


def _several(name, leaves):
    """Rows' entries for the leaves of one hyperparameter."""
    found = {}
    for k, x in enumerate(leaves):
        where = name if len(leaves) == 1 else f"{name}[{k}]"
        if np.ndim(x) == 0:
            found[where] = float(x)
        else:
            found |= {f"{where} {f.__name__}": float(f(x)) for f in (np.min, np.mean, np.max)}
    return found
