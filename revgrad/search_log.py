"""The save file of a search by `minimize`: the step it is in, and the digest of its gradient."""

import os
from pathlib import Path

import numpy as np
import optree

from revgrad import files
from revgrad.arrays import plain
from revgrad.errors import NotResumed
from revgrad.resume import digest
from revgrad.state import Layout
from revgrad.transforms import in_kind

FORM = "revgrad search 1"


class SearchLog:
    """What is needed to go on: a dict of the trees hyper, best and the optimizer's state.

    spreads: name -> (Spread, values) of the optimizer's hyperparameters.
    """

    def __init__(self, path, optimizer, spreads, hyper0):
        self.path, self.expected = path, None
        self.leaves, self.tree = optree.tree_flatten(hyper0)
        self.layout = Layout([plain(x) for x in self.leaves], self.tree)
        values = {name: digest(*map(plain, found)) for name, (_, found) in spreads.items()}
        self.belongs = {
            "optimizer": f"{optimizer.name} {values}",
            "hyper0": digest(*self.layout.paths, *self.leaves),
        }

    def save(self, step, trees, values, answer):
        """Write the step whose answer (value, gradient) is known; check one that was read.

        Raises: NotResumed, OSError.
        """
        now = digest(*optree.tree_leaves(answer))
        if self.expected not in (None, now):
            raise NotResumed(
                f"the hyperloss or its gradient at outer step {step} is not the one that "
                f"{self.path} was saved with: another hyperloss or other data. Put back what the "
                "search was begun with, or delete the file to begin anew."
            )
        self.expected = None
        arrays = [(k, self.layout.join(optree.tree_leaves(x))) for k, x in trees.items()]
        arrays.append(("values", np.array(values, np.float64)))
        facts = {"step": step, "answer": now, "belongs": self.belongs}
        tensors = [(name, "F64", 8 * len(x)) for name, x in arrays]
        files.write(self.path, FORM, facts, tensors, (x.astype("<f8").tobytes() for _, x in arrays))

    def load(self):
        """(trees, values) that were saved, or None. Raises: NotResumed."""
        if not os.path.exists(self.path):
            return None
        try:
            with files.Reader(self.path, FORM) as file:
                facts = file.facts
                read = {k: np.frombuffer(file.read(k), "<f8").copy() for k in file.lengths}
        except ValueError as error:
            raise NotResumed(f"{error} Delete it to begin anew.") from None
        for name, now in self.belongs.items():
            if facts["belongs"].get(name) != now:
                raise NotResumed(
                    f"{self.path} was saved by a search with another {name}. Call minimize with "
                    "what it was begun with, or delete the file to begin anew."
                )
        self.expected = facts["answer"]
        values = read.pop("values").tolist()
        return {name: self._tree(flat) for name, flat in read.items()}, values

    def _tree(self, flat):
        pairs = zip(self.layout.cast(flat), self.leaves, strict=True)
        return optree.tree_unflatten(self.tree, [in_kind(x, like) for x, like in pairs])

    def remove(self):
        """The search is over."""
        Path(self.path).unlink(missing_ok=True)
