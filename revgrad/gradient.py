"""The gradient of a run's loss at a step, and its pull-back: the real column's half of a step."""

from revgrad.errors import ClosureError
from revgrad.tape import Box
from revgrad.transforms import grad, value_and_grad, vjp

CLOSURE = (
    "the loss (or its batch, or watch) uses a traced value that was not passed to train, so its "
    "derivative would be lost; pass it through hyper=..., the loss's second argument."
)


class Gradient:
    """The loss of a run, bound to its batches and to the values of its hyper."""

    def __init__(self, run, values):
        self.run, self.values, self.layout = run, values, run.layout

    def value(self, leaves, t):
        """((loss, aux), flat float64 gradient) at step t."""
        (value, aux), g = value_and_grad(self._loss(t), has_aux=True)(
            leaves, self.run.hyper_leaves(self.values, t)
        )
        return (value, aux), self._flat(g, value)

    def with_pullback(self, leaves, t):
        """(g, pullback of g): a flat cotangent -> (flat one of params, [those of hyper leaves]).

        The first phase has the operations of `value`, so it has its bits.
        """
        first_phase = grad(lambda *args: self._loss(t)(*args)[0])
        g, pullback = vjp(first_phase, leaves, self.run.hyper_leaves(self.values, t))

        def pull(ct):
            ct_params, ct_hyper = pullback(self.layout.cast(ct))
            return self.layout.join(ct_params), ct_hyper

        return self._flat(g), pull

    def _loss(self, t):
        run, batch = self.run, self.run.batch(t)

        def loss(leaves, hyper):
            out = run.loss(self.layout.unflatten(leaves), run.hyper_tree(hyper), batch)
            return out if run.has_aux else (out, None)

        return loss

    def _flat(self, g, *values):
        if any(isinstance(x, Box) for x in (*g, *values)):
            raise ClosureError(CLOSURE)
        return self.layout.join(g)
