"""The gradient of a run's loss at a step, and its pull-back: the real column's half of a step.

A loss is recorded and replayed. One that cannot be recorded, or that is another function of arrays
at every step, is evaluated on the tape. Which of the two follows from the run alone, so that all
adjoints see the same bits.
"""

import optree

from revgrad.compiled import is_dynamic
from revgrad.errors import ClosureError
from revgrad.recording import recordings
from revgrad.tape import Box
from revgrad.transforms import grad, value_and_grad, vjp

CLOSURE = (
    "the loss (or its batch, or watch) uses a traced value that was not passed to train, so its "
    "derivative would be lost; pass it through hyper=..., the loss's second argument."
)
WORTHWHILE = 3  # steps from which on recording pays


class Gradient:
    """The loss of a run, bound to its batches and to the values of its hyper."""

    def __init__(self, run, values):
        self.run, self.values, self.layout = run, values, run.layout
        self.f = _function(run)
        self.recordings = None
        if run.steps >= WORTHWHILE and _statics(run.batch(0)) == _statics(run.batch(1)):
            form = run.has_aux, self.layout.tree, run.hyper_tree.form
            self.recordings = recordings(self.f, run.loss, *form)

    def value(self, leaves, t):
        """((loss, aux), flat gradient) at step t."""
        args, recording = self._at(leaves, t)
        if recording is None:
            (value, aux), g = value_and_grad(self.f, has_aux=True)(*args)
        else:
            value, aux, g = recording.value(*args)
        return (value, aux), self._flat(g, value)

    def with_pullback(self, leaves, t):
        """(g, pullback of g): a flat cotangent -> (flat one of params, [those of hyper leaves]).

        g has the operations of `value`, so it has its bits.
        """
        args, recording = self._at(leaves, t)
        if recording is None:
            first_phase = grad(lambda *some: self.f(*some, args[-1])[0])
            g, pullback = vjp(first_phase, *args[:-1])
        else:
            g, products = recording.with_products(*args)

            def pullback(ct):
                found = products(ct)
                return found[: len(ct)], found[len(ct) :]

        def pull(ct):
            ct_params, ct_hyper = pullback(self.layout.cast(ct))
            return self.layout.join(ct_params), ct_hyper

        return self._flat(g), pull

    def _at(self, leaves, t):
        """(arguments of the function at step t, their recording or None)."""
        args = leaves, self.run.hyper_leaves(self.values, t), self.run.batch(t)
        return args, self.recordings and self.recordings.get(*args)

    def _flat(self, g, *values):
        if any(isinstance(x, Box) for x in (*g, *values)):
            raise ClosureError(CLOSURE)
        return self.layout.join(g)


def _function(run):
    """The loss as a function of leaves, that holds on to nothing else of the run."""
    loss, has_aux, tree, hyper_tree = run.loss, run.has_aux, run.layout.tree, run.hyper_tree

    def f(leaves, hyper, batch):
        out = loss(optree.tree_unflatten(tree, leaves), hyper_tree(hyper), batch)
        return out if has_aux else (out, None)

    return f


def _statics(batch):
    return [None if is_dynamic(x) else (type(x), x) for x in optree.tree_leaves(batch)]
