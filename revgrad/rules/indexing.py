"""Changed copies of arrays, because entries of a traced array cannot be assigned to."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from revgrad.arrays import plain
from revgrad.rules.linear import fill, parts_of, put
from revgrad.rules.row import cast, dtype_of, shape_of, unbroadcast
from revgrad.tape import Primitive


def _run(x, values, *arrays, structure):
    number = isinstance(x, (np.generic, float))
    out = np.array(x) if number else x.copy(order="K")
    out[fill(structure, arrays)] = values
    return out[()] if number else out


def _run_last(x, *arrays, structure):
    """True for the values that stay: where an index comes twice, the last one does."""
    index = fill(structure, arrays)
    order = np.cumsum(np.ones_like(x[index], dtype=np.intp)) - 1
    order = np.reshape(order, shape_of(x[index]))
    owner = np.zeros_like(x, dtype=np.intp, shape=shape_of(x))
    owner[index] = order
    return owner[index] == order


_last = Primitive("last of equal indices", _run_last, constant=True)


def _pull_values(ct, x, values, *arrays, structure):
    index = fill(structure, arrays)
    taken = ct[index]
    if arrays:
        taken = np.where(_last(plain(x), *arrays, structure=structure), taken, 0.0)
    return unbroadcast(taken, values)


def _zero(x):
    return np.zeros_like(plain(x))


def _push(tangents, *, out, args, static):
    x, values, *arrays = args
    tx, tv, *_ = tangents
    tx, tv = (_zero(a) if t is None else t for a, t in ((x, tx), (values, tv)))
    return _set(tx, tv, *arrays, **static)


def _pull(ct, *, wanted, out, args, static):
    x, values, *arrays = args
    pulls = (
        lambda: _set(ct, _zero(values), *arrays, **static),
        lambda: _pull_values(ct, x, values, *arrays, **static),
    )
    return [pulls[i]() for i in wanted]


_set = Primitive("set", _run, _push, _pull)


@dataclass(frozen=True)
class at:
    """x with some entries changed: at(x, index).set(values), at(x, index).add(values).

    A new array; x stays as it is. index: what x[index] takes. values: broadcast to x[index] and
    cast to x's dtype. Where an index comes twice, `set` keeps the last value, as NumPy does, and
    `add` adds both, unlike x[index] += values and like np.add.at.
    """

    x: Any
    index: Any

    def set(self, values):
        """x[index] = values."""
        x, values = (np.asarray(a) if isinstance(a, (list, tuple)) else a for a in (self.x, values))
        structure, arrays = parts_of(self.index)
        return _set(x, self._like(x, values), *arrays, structure=structure)

    def add(self, values):
        """x[index] += values, where equal indices add up."""
        x, values = (np.asarray(a) if isinstance(a, (list, tuple)) else a for a in (self.x, values))
        structure, arrays = parts_of(self.index)
        index = fill(structure, arrays)
        values = np.broadcast_to(self._like(x, values), shape_of(x[index]))
        index = index if isinstance(index, tuple) else (index,)
        return x + put(values, index, shape_of(x))

    @staticmethod
    def _like(x, values):
        values = values if hasattr(values, "dtype") else np.asarray(values)
        return cast(values, dtype_of(x))
