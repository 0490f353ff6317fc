"""The gradient of a run's loss at a step, and its pull-back: the real column's half of a step.

A loss is recorded and replayed. One that cannot be recorded, or that is another function of arrays
at every step, is evaluated on the tape. Which of the two follows from the run alone, so that all
adjoints see the same bits.
"""

import numpy as np
import optree

from revgrad._ext import homes
from revgrad.arrays import plain
from revgrad.compiled import is_dynamic, signature
from revgrad.errors import ClosureError
from revgrad.linear_map import linearize
from revgrad.recording import recordings
from revgrad.rules.row import shape_of
from revgrad.tape import Box
from revgrad.transforms import grad, jvp, value_and_grad, vjp

CLOSURE = (
    "the loss (or its batch, or watch) uses a traced value that was not passed to train, so its "
    "derivative would be lost; pass it through hyper=..., the loss's second argument."
)
WORTHWHILE = 3  # steps from which on recording pays
MANY, AT_ONCE = 4, 64  # tangents from which on the tape pushes them at once; how many at most


def own(leaves):
    """Copies of leaves."""
    return [x.copy() for x in leaves]


def _own_tree(tree):
    return optree.tree_map(homes.own, tree)


class Gradient:
    """The loss of a run, bound to its batches and to the values of its hyper."""

    def __init__(self, run, values):
        self.run, self.values, self.layout = run, values, run.layout
        self.f, self.batch = _function(run), run.batch
        self.recordings = None
        if run.steps >= WORTHWHILE and _statics(run.batch(0)) == _statics(run.batch(1)):
            self.gathers, self.latest = self._gathers(), (None, None)  # (batch, its Recording)
            if self.gathers:
                data = run.batch.data
                self.f, self.batch = _gathering(self.f), lambda t: (run.batch.indices(t), data)
            leaves = self.layout.tree, *self.layout.shapes, *self.layout.dtypes
            form = run.has_aux, self.batch is run.batch, leaves, run.hyper_tree.form
            self.recordings = recordings(self.f, run.loss, *form)

    def _gathers(self):
        """Whether batches are rows of arrays, which a replay takes into buffers of its own."""
        leaves = optree.tree_leaves(getattr(self.run.batch, "data", None))
        return hasattr(self.run.batch, "indices") and all(map(_is_array, leaves))

    def value(self, leaves, t, turn=0):
        """((loss, aux), flat gradient in `layout.dtype`) at step t.

        The gradient, like those of `with_pullback`, may be overwritten by the next call; with
        turns of 0 and 1, by the one after that.
        """
        args, recording = self._at(leaves, t)
        if recording is None:
            (value, aux), g = value_and_grad(self.f, has_aux=True)(*args)
        else:
            value, aux, g = recording.value(*args, turn=turn)
        return (value, aux), self._flat(g, value)

    def with_pullback(self, leaves, t, early=None):
        """(g, pullback of g): a flat cotangent -> (flat one of params, [those of hyper leaves]).

        g has the operations of `value`, so it has its bits. early() -> the cotangent, where it is
        known before g: the pull-back may then have been done with that.
        """
        args, recording = self._at(leaves, t)
        if recording is None:
            first_phase = grad(lambda *some: self.f(*some, args[-1])[0])
            g, pullback = vjp(first_phase, *args[:-1])
        else:
            cast = early and (lambda: self.layout.cast(early()))
            g, pullback = recording.with_products(cast, *args)

        def pull(ct):
            ct_params, ct_hyper = pullback(self.layout.cast(ct))
            return self._flat(ct_params), ct_hyper

        return self._flat(g), pull

    def with_push(self, leaves, t, moving, count):
        """(((loss, aux), flat g) at step t, push of tangents of g).

        push(rows, hyper, out): rows of flat tangents of the params, and per leaf of hyper tangents
        with as many rows or None, into the rows of out. moving: the leaves that have any; count:
        how many rows there may be, of which a call takes some.
        """
        answer, recorded, push = self._to_push(leaves, t, moving, count)
        if recorded:
            push = lambda rows, hyper, out: recorded.push(rows, [hyper[k] for k in moving], out)
            answer = answer[0], answer[1].copy()
        return answer, push

    def with_column(self, leaves, t, moving):
        """The same for single rows: column(row, hyper), contiguous, gives the tangent of g, flat.

        It is overwritten by the next one, and g by that of the next step.
        """
        answer, recorded, push = self._to_push(leaves, t, moving, 1)

        def column(row, hyper):
            if recorded:
                return recorded.column(row, [hyper[k] for k in moving])
            out = homes.empty_beside((1, self.layout.size), self.layout.dtype, self.layout.like)
            push(row[None], [x if x is None else homes.real_array(x)[None] for x in hyper], out)
            return out[0]

        return answer, column

    def _to_push(self, leaves, t, moving, count):
        """(answer as `value` has it, the GradientPush there, or None and a push on the tape)."""
        args, recording = self._at(leaves, t)
        recorded = recording and recording.with_push(args, moving, count)
        if recorded:
            value, aux, g = recorded.start(args)
            return ((value, _own_tree(aux)), self._flat(g, value)), recorded, None
        answer, leaves = self.value(leaves, t), own(leaves)
        push = lambda rows, hyper, out: self._push(leaves, t, rows, hyper, out)
        return answer, None, push

    def _push(self, leaves, t, rows, hyper, out):
        """The same on the tape."""
        *here, batch = leaves, self.run.hyper_leaves(self.values, t), self.batch(t)
        first_phase, linear = grad(lambda *some: self.f(*some, batch)[0]), None
        if len(rows) >= MANY and homes.of_lanes([*here[0], *here[1]]) is not None:
            _, linear = linearize(first_phase, *here)
        for lo in range(0, len(rows), AT_ONCE) if linear else range(len(rows)):
            part = slice(lo, lo + AT_ONCE) if linear else lo
            moved = self._moved(rows[part], [x if x is None else x[part] for x in hyper], here[1])
            found = linear.batch(*moved) if linear else jvp(first_phase, tuple(here), moved)[1]
            self._join_rows(found, out[part])

    def _moved(self, rows, hyper, given):
        """Tangents of the params' and hyper's leaves, with the leading axis of rows, if any."""
        lead = rows.shape[:-1]
        spans = zip(self.layout.ends, self.layout.ends[1:], self.layout.shapes, strict=False)
        params = [rows[..., lo:hi].reshape((*lead, *shape)) for lo, hi, shape in spans]
        zeros = [homes.beside(np.zeros((*lead, *shape_of(v)))[()], v) for v in given]
        return params, [z if x is None else x for x, z in zip(hyper, zeros, strict=True)]

    def _join_rows(self, leaves, out):
        for lo, hi, x in zip(self.layout.ends, self.layout.ends[1:], leaves, strict=False):
            out[..., lo:hi] = homes.beside(np.reshape(x, (*out.shape[:-1], hi - lo)), out)

    def _at(self, leaves, t):
        """(arguments of the function at step t, their recording or None).

        Leaves may be overwritten later: a function that is called, and not replayed, gets copies.
        """
        args = leaves, self.run.hyper_leaves(self.values, t), self.batch(t)
        recording = self._recording(args) if self.recordings else None
        return args if recording else (own(leaves), *args[1:]), recording

    def _recording(self, args):
        """That of these arguments, of which only the batch can change its kind in a run."""
        if not self._as_before(args[2]):
            self.latest = args[2], self.recordings.get(*args)
        return self.latest[1]

    def _as_before(self, batch):
        last = self.latest[0]
        if self.gathers:
            return last is not None and signature(batch[0]) == signature(last[0])
        return batch is last and type(batch) is tuple and all(map(_is_array, batch))

    def _flat(self, g, *values):
        if not isinstance(g, (list, tuple)):  # one vector
            if g.dtype == self.layout.dtype:
                return g
            g = self.layout.split(g)
        if any(isinstance(x, Box) for x in (*g, *values)):
            raise ClosureError(CLOSURE)
        return self.layout.join(g, self.layout.dtype)


class GradientAndAux(Gradient):
    """The same for optimizers whose statements read aux: it too has a pull-back. On the tape."""

    def __init__(self, run, values):
        super().__init__(run, values)
        self.recordings = None

    def value(self, leaves, t):
        (value, aux), g = super().value(leaves, t)
        if any(isinstance(x, Box) for x in optree.tree_leaves(aux)):
            raise ClosureError(CLOSURE)
        return (value, aux), g

    def with_pullback(self, leaves, t):
        """(g, aux, pullback): flat cotangents of g and of aux -> as Gradient's."""
        args, _ = self._at(leaves, t)

        def first_phase(*some):
            g, aux = grad(self.f, has_aux=True)(*some, args[-1])
            return g, optree.tree_leaves(aux)

        (g, aux), pullback = vjp(first_phase, *args[:-1])

        def pull(ct, ct_aux=0.0):
            ct_aux = np.broadcast_to(ct_aux, self.run.aux_layout.size)
            cts = self.layout.cast(ct), self.run.aux_layout.cast(ct_aux)
            ct_params, ct_hyper = pullback(cts)
            return self.layout.join(ct_params), ct_hyper

        return self._flat(g, *aux), self.run.aux_layout.join(aux), pull

    def push_aux(self, leaves, t, rows, hyper):
        """Tangents of aux, a row for each row, as `with_push` has those of g."""
        *here, batch = leaves, self.run.hyper_leaves(self.values, t), self.batch(t)
        layout = self.run.aux_layout
        out = homes.empty_beside((len(rows), layout.size), np.float64, layout.like)
        for k, row in enumerate(rows):
            moved = self._moved(row, [x if x is None else x[k] for x in hyper], here[1])
            found = jvp(
                lambda *some: optree.tree_leaves(self.f(*some, batch)[1]), tuple(here), moved
            )
            out[k] = layout.join(found[1])
        return out


def _function(run):
    """The loss as a function of leaves, that holds on to nothing else of the run."""
    loss, has_aux, tree, hyper_tree = run.loss, run.has_aux, run.layout.tree, run.hyper_tree

    def f(leaves, hyper, batch):
        return split_aux(
            loss(optree.tree_unflatten(tree, leaves), hyper_tree(hyper), batch), has_aux
        )

    f.__name__ = "the loss"  # in what is said of its result
    return f


def split_aux(out, has_aux):
    """(loss, aux) of what a loss returned. Raises: TypeError where it is not what was announced."""
    if not has_aux:
        return out, None
    if not (isinstance(out, tuple) and len(out) == 2):
        raise TypeError(
            "has_aux=True needs a loss that returns (scalar, aux), not a "
            f"{type(plain(out)).__name__}."
        )
    return out


def _gathering(f):
    """f of row numbers and the data that they are rows of."""

    def g(leaves, hyper, rows_and_data):
        rows, data = rows_and_data
        return f(leaves, hyper, optree.tree_map(lambda x: x[rows], data))

    return g


def _is_array(x):
    return type(x) is np.ndarray


def _statics(batch):
    return [None if is_dynamic(x) else (type(x), x) for x in optree.tree_leaves(batch)]
