"""The save file of a run by `fit`: where it is, between a gradient and the step by it."""

import os

import numpy as np
import optree

from revgrad import files
from revgrad._ext import homes
from revgrad.errors import NotResumed
from revgrad.hyper import is_per_step
from revgrad.resume import SaveFile, belongings, digest, statements_of
from revgrad.statements import Optimizer

FORM = "revgrad fit 1"


class Log(SaveFile):
    """Writes a run's state with the digest of the gradient there, and reads it back."""

    door = "fit"

    def __init__(self, fitting, tuner, paths):
        what = "optimizer, or values of its hyperparameters"
        belongs = {what: _text(fitting.optimizer)} | belongings(fitting.run, fitting.values)
        super().__init__(fitting.run, belongs)
        self.fitting, self.tuner, self.paths = fitting, tuner, paths

    def save(self, t, g, watched):
        """Write the state at step t, whose gradient is g and whose slopes are known."""
        facts = {"t": t, "gradient": digest(g), "every": self.paths.every}
        facts |= {"belongs": self.belongs, "around": self.around}
        parts = {f"state {name}": x for name, x in self.fitting.bottom.state.items()}
        parts |= {f"tuner {name}": x for name, x in self.tuner.parts().items()}
        parts |= {f"path {name}": np.array(x) for name, x in self.paths.columns.items()}
        parts["watched"] = np.array(watched)
        content = [homes.to_host(x).astype("<f8").tobytes() for x in parts.values()]
        tensors = [(name, "F64", len(x)) for name, x in zip(parts, content, strict=True)]
        files.write(self.saving.path, FORM, facts, tensors, content)
        self.was_written(t)

    def load(self):
        """(t, digest of the gradient there, watched) with all else put in place, or None.

        Raises: NotResumed.
        """
        if not os.path.exists(self.saving.path):
            return None
        try:
            with files.Reader(self.saving.path, FORM) as file:
                facts = file.facts
                read = {k: np.frombuffer(file.read(k), "<f8").copy() for k in file.lengths}
        except ValueError as error:
            raise NotResumed(f"{error} Delete it to begin anew.") from None
        self.check_belongs(facts)
        groups = {"state": {}, "tuner": {}, "path": {}}
        for name, x in read.items():
            group, _, rest = name.partition(" ")
            if group in groups:
                groups[group][rest] = x
        bottom = self.fitting.bottom
        was = groups["state"]
        bottom.state = {n: homes.beside(was[n].astype(x.dtype), x) for n, x in bottom.state.items()}
        self.tuner.load(groups["tuner"])
        self.paths.load(groups["path"], facts["every"])
        return facts["t"], facts["gradient"], read["watched"].tolist()


def _text(optimizer):
    """A tower, with all that it is made of, as text that differs where it does."""
    if not isinstance(optimizer, Optimizer):
        return repr(optimizer)
    hyper = {name: _digest_of(x) for name, x in optimizer.hyper.items()}
    transforms = {k: str(x) for k, x in (optimizer.transforms or {}).items()}
    tuned = None if optimizer.tuned is None else sorted(optimizer.tuned)
    below = f"{optimizer.name} {statements_of(optimizer)} {hyper} {tuned} {transforms}"
    above = optimizer.tuned_by
    return below if above is None else f"{below} / {_text(above)}"


def _digest_of(tree):
    leaves, treedef = optree.tree_flatten(tree, is_leaf=is_per_step)
    bare = [(x.values, x.every) if is_per_step(x) else (x, 0) for x in leaves]
    values = [np.zeros(0) if callable(x) else x for x, _ in bare]
    return digest(str(treedef), *values, *(every for _, every in bare))
