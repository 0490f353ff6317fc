"""The save file of a run by `fit`: where it is, between a gradient and the step by it."""

import os
from pathlib import Path
from time import monotonic

import numpy as np
import optree

from revgrad import files
from revgrad.errors import NotResumed
from revgrad.hyper import is_per_step
from revgrad.resume import SECONDS, digest, environment
from revgrad.statements import Optimizer

FORM = "revgrad fit 1"


class Log:
    """Writes a run's state with the digest of the gradient there, and reads it back."""

    def __init__(self, fitting, tuner, paths):
        self.fitting, self.tuner, self.paths = fitting, tuner, paths
        self.saving, self.clock, self.last = fitting.run.saving, monotonic(), None
        self.around = environment(fitting.run.report.blas_threads)
        self.belongs = _belongings(fitting)

    def due(self, t):
        if self.last is None:  # not at the very place where this process began
            self.last = t
        if self.saving.every is not None:
            return t != self.last and t % self.saving.every == 0
        return monotonic() - self.clock >= SECONDS

    def save(self, t, g, watched):
        """Write the state at step t, whose gradient is g and whose slopes are known."""
        facts = {"t": t, "gradient": digest(g), "every": self.paths.every}
        facts |= {"belongs": self.belongs, "around": self.around}
        parts = {f"state {name}": x for name, x in self.fitting.bottom.state.items()}
        parts |= {f"tuner {name}": x for name, x in self.tuner.parts().items()}
        parts |= {f"path {name}": np.array(x) for name, x in self.paths.columns.items()}
        parts["watched"] = np.array(watched)
        content = [np.asarray(x).astype("<f8").tobytes() for x in parts.values()]
        tensors = [(name, "F64", len(x)) for name, x in zip(parts, content, strict=True)]
        files.write(self.saving.path, FORM, facts, tensors, content)
        self.last, self.clock = t, monotonic()

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
        self._check(facts)
        groups = {"state": {}, "tuner": {}, "path": {}}
        for name, x in read.items():
            group, _, rest = name.partition(" ")
            if group in groups:
                groups[group][rest] = x
        bottom = self.fitting.bottom
        bottom.state = {n: groups["state"][n].astype(x.dtype) for n, x in bottom.state.items()}
        self.tuner.load(groups["tuner"])
        self.paths.load(groups["path"], facts["every"])
        return facts["t"], facts["gradient"], read["watched"].tolist()

    def _check(self, facts):
        known = facts["belongs"] | facts["around"]
        for name, now in (self.belongs | self.around).items():
            if known.get(name) != now:
                said = f" ({known.get(name)}, now {now})" if name in self.around else ""
                raise NotResumed(
                    f"{self.saving.path} was saved by a run with another {name}{said}. Call fit "
                    "with what it was begun with, or delete the file to begin anew."
                )

    def check_gradient(self, t, g, expected):
        """Raises: NotResumed unless g is the gradient that the run was saved with."""
        if digest(g) != expected:
            raise NotResumed(
                f"the gradient of step {t} is not the one that {self.saving.path} was saved with: "
                "another loss, or other data (batches, or what is no float in hyper). Put back "
                "what the run was begun with, or delete the file to begin anew."
            )

    def remove(self):
        Path(self.saving.path).unlink(missing_ok=True)


def _belongings(fitting):
    """What the run is made of, by the name of what a user would look at."""
    run, values, layout = fitting.run, fitting.values, fitting.run.layout
    found = {
        "optimizer, or values of its hyperparameters": _text(fitting.optimizer),
        "number of steps": run.steps,
        "state['t']": run.first_t,
        "tree, shapes or dtypes of the params": digest(
            *layout.paths, *map(str, layout.shapes), *map(str, layout.dtypes)
        ),
        "params": digest(*values.params),
        "hyper": digest(*values.hyper, *map(str, run.hyper_every)),
    }
    return found | {f"state[{name!r}]": digest(*leaves) for name, leaves in values.warm.items()}


def _text(optimizer):
    """A tower, with all that it is made of, as text that differs where it does."""
    if not isinstance(optimizer, Optimizer):
        return repr(optimizer)
    statements = [(type(s).__name__, s.target, *s.reads) for s in optimizer.statements]
    hyper = {name: _digest_of(x) for name, x in optimizer.hyper.items()}
    transforms = {k: str(x) for k, x in (optimizer.transforms or {}).items()}
    tuned = None if optimizer.tuned is None else sorted(optimizer.tuned)
    below = f"{optimizer.name} {statements} {hyper} {tuned} {transforms}"
    above = optimizer.tuned_by
    return below if above is None else f"{below} / {_text(above)}"


def _digest_of(tree):
    leaves, treedef = optree.tree_flatten(tree, is_leaf=is_per_step)
    bare = [(x.values, x.every) if is_per_step(x) else (x, 0) for x in leaves]
    values = [np.zeros(0) if callable(x) else x for x, _ in bare]
    return digest(str(treedef), *values, *(every for _, every in bare))
