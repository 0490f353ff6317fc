"""What a run is made of: its arithmetic, the layout of its params, its integers, its cotangents."""

from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Any

import numpy as np
import optree

from revgrad._ext import homes
from revgrad.buffer import BignumBuffer, InformationBuffer
from revgrad.fixed import FRACTION_BITS_MAX
from revgrad.ratio import ROUNDINGS

BUFFERS = {"words": InformationBuffer, "bignum": BignumBuffer}


@dataclass(frozen=True)
class FixedPoint:
    """How training keeps its numbers.

    fraction_bits: variable -> bits after the point, e.g. {"params": 52}; a variable left out gets
        52 (params) or what its first gradient suggests, at most 60 (second moments 70).
    buffer: "words" (compiled, machine-word heads and a bignum tail) or "bignum" (one bignum per
        element, Maclaurin et al. 2015, algorithm 3; slower, takes ratios of any size).
    rounding: "nearest", or "truncated" for the 2015 authors' n = trunc(f 2^16) + 1, with which
        everything but the scaling itself, as the 1 - momentum of `Momentum`, reads f unrounded.
    """

    fraction_bits: dict = field(default_factory=dict)
    buffer: str = "words"
    rounding: str = "nearest"

    def __post_init__(self):
        if self.buffer not in BUFFERS:
            raise ValueError(f"buffer={self.buffer!r}; choose one of {sorted(BUFFERS)}.")
        if self.rounding not in ROUNDINGS:
            raise ValueError(f"rounding={self.rounding!r}; choose one of {sorted(ROUNDINGS)}.")
        for name, bits in self.fraction_bits.items():
            if not 0 <= bits <= FRACTION_BITS_MAX:
                raise ValueError(
                    f"fraction_bits[{name!r}] = {bits}; from 0 to {FRACTION_BITS_MAX} is possible."
                )


class Layout:
    """Where the leaves of the params (or of the loss's aux) lie in a flat vector.

    like: an array without elements of their kind; vectors are made where it is.
    """

    def __init__(self, leaves, tree, of="params"):
        self.tree, self.of = tree, of
        self.like = homes.empty_beside(0, np.float64, next(filter(homes.is_away, leaves), None))
        self.marks = optree.tree_unflatten(tree, range(len(leaves)))  # leaf numbers, as a tree
        self.shapes = [np.shape(x) for x in leaves]
        self.dtypes = [np.result_type(x) for x in leaves]
        self.ends = np.cumsum([0, *(np.size(x) for x in leaves)]).tolist()
        self.size = self.ends[-1]
        paths = optree.treespec_paths(tree)
        self.paths = ["".join(f"[{p!r}]" for p in path) for path in paths]

    def unflatten(self, leaves):
        return optree.tree_unflatten(self.tree, leaves)

    def split(self, flat):
        """Views of a flat vector, one per leaf, in the leaves' shapes."""
        spans = zip(self.ends, self.ends[1:], self.shapes, strict=False)
        return [flat[lo:hi].reshape(shape) for lo, hi, shape in spans]

    def join(self, leaves, dtype=np.float64):
        """One vector from leaves."""
        flat = homes.empty_beside(self.size, dtype, self.like)
        for part, leaf in zip(self.split(flat), leaves, strict=True):
            part[...] = homes.beside(leaf, flat)
        return flat

    @property
    def dtype(self):
        """The dtype that all leaves have, or float64."""
        kinds = set(self.dtypes)
        return kinds.pop() if len(kinds) == 1 else np.dtype(np.float64)

    def zeros(self):
        """Leaves of zeros."""
        kinds = zip(self.shapes, self.dtypes, strict=True)
        return [homes.beside(np.zeros(*kind), self.like) for kind in kinds]

    def leaves(self, fixed):
        """Decode a variable into leaves of the params' shapes and dtypes."""
        kinds = {dtype: self.split(fixed.decode(dtype)) for dtype in set(self.dtypes)}
        return [kinds[dtype][k] for k, dtype in enumerate(self.dtypes)]

    def cast(self, flat):
        """Split a float64 vector into leaves of the params' dtypes."""
        if homes.is_away(flat) and len(set(self.dtypes)) == 1:  # in one launch
            return self.split(flat.astype(self.dtype, copy=False))
        parts = zip(self.split(flat), self.dtypes, strict=True)
        return [part.astype(dtype, copy=False) for part, dtype in parts]

    def name(self, index):
        """The path of the leaf that holds a flat index."""
        k = int(np.searchsorted(self.ends, index, side="right")) - 1
        return f"{self.of}{self.paths[k]}"


class Decoder:
    """Leaves of the params, in memory of their own that the next call overwrites."""

    def __init__(self, layout):
        make = lambda dtype: homes.empty_beside(layout.size, dtype, layout.like)
        self.flat = {dtype: make(dtype) for dtype in set(layout.dtypes)}
        kinds = {dtype: layout.split(flat) for dtype, flat in self.flat.items()}
        self.leaves = [kinds[dtype][k] for k, dtype in enumerate(layout.dtypes)]

    def __call__(self, fixed):
        for flat in self.flat.values():
            fixed.decode(out=flat)
        return self.leaves


@dataclass(slots=True)
class State:
    """The integers of a run: a FixedArray per variable, a buffer per scaled variable."""

    variables: dict
    buffers: dict

    def copy(self):
        return State(
            {k: x.copy() for k, x in self.variables.items()},
            {k: b.copy() for k, b in self.buffers.items()},
        )

    def load(self, other):
        """Become a copy of a state of the same run, in the memory that is there."""
        for name, x in self.variables.items():
            np.copyto(x.values, other.variables[name].values)
        for name, buffer in self.buffers.items():
            buffer.restore(other.buffers[name].snapshot())

    def checksum(self):
        """Numbers that differ where integers or heads do, unless changes cancel; cheap."""
        parts = [x.values for x in self.variables.values()]
        parts += [b.heads for b in self.buffers.values() if hasattr(b, "heads")]
        words = [b.words if hasattr(b, "words") else b.bits for b in self.buffers.values()]
        sums = map(np.sum, parts)
        return b"".join(int(x).to_bytes(16, "little", signed=True) for x in (*words, *sums))

    def digest(self):
        """Bytes that differ whenever an integer, a head or a word does."""
        integers = [homes.to_host(x.values) for x in self.variables.values()]
        parts = [blake2b(x, digest_size=16).digest() for x in integers]
        return b"".join(parts + [b.digest() for b in self.buffers.values()])


@dataclass(slots=True)
class Cotangents:
    """Cotangents of everything a run starts from: float64, summed one add per step."""

    variables: dict  # variable -> flat vector
    optimizer: dict  # hyperparameter -> list of arrays like its values
    hyper: list  # one array per leaf of the loss's hyper

    def copy(self):
        return Cotangents(
            {k: x.copy() for k, x in self.variables.items()},
            {k: [x.copy() for x in xs] for k, xs in self.optimizer.items()},
            [x.copy() for x in self.hyper],
        )


@dataclass(frozen=True, eq=False)
class Run:
    """What `train` has checked and taken apart: everything about a run but its numbers."""

    loss: Any
    has_aux: bool
    optimizer: Any
    batch: Any  # step -> batch
    steps: int
    first_t: int  # steps taken before this run, for bias corrections
    layout: Layout
    spreads: dict  # optimizer hyperparameter -> Spread
    hyper_tree: Any  # leaves -> the loss's hyper
    hyper_every: tuple  # per leaf of hyper: None, or PerStep's `every`
    watch: Any
    watch_moves: bool  # whether what is watched is returned, to be differentiated
    callback: Any
    arithmetic: FixedPoint
    report: Any
    saving: Any  # None, or resume.Saving
    outcome: dict  # "steps": how many were taken
    aux_layout: Any = None  # of the loss's aux, where a statement reads it

    def layout_of(self, name):
        """That of a state variable, or the one an optimizer hyperparameter spreads over."""
        if self.aux_layout is None or name not in self.optimizer.aux_names:
            return self.layout
        return self.aux_layout

    def flat_aux(self, aux):
        """The loss's aux as a flat vector."""
        return self.aux_layout.join(optree.tree_leaves(aux))

    def hyper_leaves(self, values, t):
        """The leaves of the loss's hyper at step t; values may be traced."""
        pairs = zip(values.hyper, self.hyper_every, strict=True)
        return [x if every is None else x[t // every] for x, every in pairs]

    def hyper_at_leaf(self, values, t, name, k):
        """An optimizer hyperparameter for param leaf k at step t; values may be traced."""
        return self.spreads[name].at_leaf(values.optimizer[name], k, t)


@dataclass(frozen=True, eq=False)
class Values:
    """The numbers a run starts from, in the order in which the primitive `train` takes them."""

    params: list  # leaves
    warm: dict  # state variable -> leaves
    optimizer: dict  # hyperparameter -> values
    hyper: list  # leaves
