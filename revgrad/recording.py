"""Recordings of losses: made once per signature, kept from run to run, checked against the tape."""

from collections import OrderedDict

import numpy as np
import optree

from revgrad import blas
from revgrad._ext import homes
from revgrad.captures import Captured
from revgrad.compiled import Entry, gradient_with_products, is_dynamic, signature
from revgrad.lanes import AT_ONCE
from revgrad.pushes import GradientPush
from revgrad.tape import Box
from revgrad.transforms import value_and_grad

LOSSES, SIGNATURES = 16, 16  # how many recordings are kept: of losses, and of each one
_kept = OrderedDict()


def recordings(f, loss, *form):
    """The Recordings of f, which does nothing but call `loss` in a way that `form` says.

    For as many BLAS threads as there are now: with others products that are computed in other ways
    (`narrow`, `stacked`) may have other bits.
    """
    captured = Captured(loss).now()
    if captured is None:  # something traced
        return Recordings(f)
    key = (captured, blas.threads(), *form)
    try:
        found = _kept.setdefault(key, Recordings(f))
    except TypeError:  # something in the form is not hashable
        return Recordings(f)
    _kept.move_to_end(key)
    if len(_kept) > LOSSES:
        _kept.popitem(last=False)
    return found


class Recordings:
    """Of one f(params leaves, hyper leaves, batch) -> (scalar, aux), by signature.

    The leaves of params have the same shapes and dtypes at every call, in C order.
    """

    def __init__(self, f):
        self.f, self.found = f, OrderedDict()

    def get(self, *args):
        """The Recording for such arguments, or None where only the tape will do."""
        leaves, tree = optree.tree_flatten(args[1:])
        if any(isinstance(x, Box) for x in leaves):
            return None
        key = tree, tuple(signature(x) if is_dynamic(x) else (type(x), x) for x in leaves)
        if key not in self.found:
            self.found[key] = _record(self.f, args)
            if len(self.found) > SIGNATURES:
                self.found.popitem(last=False)
        return self.found[key]


def _record(f, args):
    (value, aux), g = value_and_grad(f, has_aux=True)(*args)
    expected = optree.tree_leaves((value, aux, g))
    if any(isinstance(x, Box) for x in expected):
        return None  # a closure over a traced value
    try:
        recording = Recording(f, args)
    except Exception:  # whatever a loss may do that cannot be recorded: the tape takes it
        return None
    value, aux, g = recording.value(*args)
    if isinstance(g, np.ndarray):
        g = np.split(g, np.cumsum([np.size(x) for x in args[0][:-1]]))
        g = [x.reshape(np.shape(like)) for x, like in zip(g, args[0], strict=True)]
    came = optree.tree_leaves((value, aux, g))
    return recording if all(map(_same, came, expected)) else None  # not a function: e.g. random


def _same(a, b):
    a, b = homes.to_host(a), homes.to_host(b)
    return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()


def _all_bits(value, aux, g):
    """Of a loss and its gradient, which may be leaves or one vector."""
    rest, parts = optree.tree_leaves((value, aux)), g if isinstance(g, list) else [g]
    of_g = b"".join(homes.to_host(x).tobytes() for x in parts)
    return [(homes.to_host(x).dtype, homes.to_host(x).tobytes()) for x in rest], of_g


class Recording:
    """Two programs: value and gradient, for the way forward; gradient and products, for back.

    What they return, but for loss and aux, is overwritten by the next call. What is like the params
    is one flat vector, if that is how the replay has it, or else a list of leaves.
    """

    def __init__(self, f, args):
        leaves, self.tree = optree.tree_flatten(args)
        self.f, self.products, self.pushes = f, None, {}
        self.dynamic = [k for k, x in enumerate(leaves) if is_dynamic(x)]
        self.leaves = [None if is_dynamic(x) else x for x in leaves]

        def flat(*boxes):
            (value, aux), g = value_and_grad(f, has_aux=True)(*self._arguments(boxes))
            return optree.tree_flatten((value, aux, g))

        together = ((0, slice(-len(args[0]), None)),)
        self.program = Entry(flat, self._inputs(args), borrow=True, together=together)

    def _arguments(self, inputs):
        leaves = list(self.leaves)
        for k, x in zip(self.dynamic, inputs, strict=True):
            leaves[k] = x
        return optree.tree_unflatten(self.tree, leaves)

    def _inputs(self, args):
        leaves = optree.tree_leaves(args)
        return [leaves[k] for k in self.dynamic]

    def value(self, *args, turn=0):
        """(loss, aux, gradient); that of turn 0 outlives a call with turn 1, and vice versa."""
        replay = self.program.replay(turn)
        out = replay.run[0](*self._inputs(args))
        value, aux, g = optree.tree_unflatten(self.program.out_tree, out)
        return value, optree.tree_map(homes.own, aux), _whole(g, replay.vectors[0])

    def with_products(self, early, *args):
        """(g, leaves of a direction -> (H direction, leaves of d2L/dhyper dparams direction)).

        early() -> the direction, where it is known before g, or None: then, if it pays, both are
        computed at once, and what is returned takes no other direction.
        """
        if self.products is None:
            self.products = self._products(args)
        inputs, count = self._inputs(args), len(args[0])
        if early is not None and self.products.pays_at_once:
            (g, found), vectors = self.products.at_once(inputs, early())
            whole = _whole(found[:count], vectors[1]), found[count:]
            return _whole(g, vectors[0]), lambda direction: whole
        g, then = self.products.start(inputs)
        vectors = self.products.replay().vectors

        def products(direction):
            found = then(direction)
            return _whole(found[:count], vectors[1]), found[count:]

        return _whole(g, vectors[0]), products

    def _products(self, args):
        def loss(params, hyper, *rest):
            return self.f(*self._arguments([*params, *hyper, *rest]))[0]

        params, hyper, _ = args
        rest = self._inputs(args)[len(params) + len(hyper) :]
        return gradient_with_products(loss, list(params), list(hyper), *rest, borrow=True)

    def with_push(self, args, moving, count):
        """The GradientPush at such args, or None where there is none.

        moving: which leaves of hyper have tangents; count: how many columns there are.
        """
        key = moving, (min(count, AT_ONCE).bit_length() + 1) // 2  # as many widths
        if key not in self.pushes:
            self.pushes[key] = self._push(args, moving, count)
        return self.pushes[key]

    def _push(self, args, moving, count):
        try:
            push = GradientPush(self.f, args, self._inputs, self._arguments, moving, count)
        except Exception:  # a rule without a forward mode, say: the tape raises what is to be said
            return None
        alike = _all_bits(*push.start(args)) == _all_bits(*self.value(*args))
        self.program.rest()  # as the push has the value and the gradient too
        return push if alike else None


def _whole(leaves, vector):
    return leaves if vector is None else vector
