"""Functions as primitives: `checkpoint`, which forgets what it computed, and users' own rules."""

from functools import wraps

import optree

from revgrad.rules.row import define
from revgrad.tape import Box, Primitive, Pull
from revgrad.transforms import vjp, zeros_like


def checkpoint(f):
    """f, but a pull-back through it runs it again instead of keeping what it computed.

    Memory: f's arguments instead of its intermediate values; time: one more run of f. Under other
    modes than a pull-back it is f itself. Arguments and results are trees of arrays.
    Raises: ClosureError where f uses a traced value that is not an argument: its derivative would
    be lost.
    """

    @wraps(f)
    def checkpointed(*args):
        leaves, tree = optree.tree_flatten(args)
        traces = {x.trace for x in leaves if isinstance(x, Box)}
        if not traces or not isinstance(max(traces, key=lambda t: t.age), Pull):
            return f(*args)
        form = _Form(f, tree)
        out = _checkpoint(*leaves, form=form)
        return optree.tree_unflatten(form.out_tree, out)

    return checkpointed


class _Form:
    """A function of leaves, and the tree of its result once it has run."""

    def __init__(self, f, tree):
        self.f, self.tree, self.out_tree = f, tree, None

    def __call__(self, *leaves):
        out, self.out_tree = optree.tree_flatten(self.f(*optree.tree_unflatten(self.tree, leaves)))
        return out


def _stage(wanted, args, static):
    form = static["form"]
    out = tuple(form(*args))

    def chosen(*some):
        every = list(args)
        for i, x in zip(wanted, some, strict=True):
            every[i] = x
        return form(*every)

    def pullback(cts):
        _, pull = vjp(chosen, *(args[i] for i in wanted))
        return pull([zeros_like(o) if c is None else c for c, o in zip(cts, out, strict=True)])

    return out, pullback


_checkpoint = Primitive("checkpoint", lambda *xs, form: tuple(form(*xs)), stage=_stage, many=True)


def custom_rule(*, push=None, pull=None, true_derivative=True):
    """Decorator: a function of arrays (each argument one) gets rules of its own.

    push: a rule per argument, (t, out, *args) -> tangent of out; pull: a rule per argument,
    (ct, out, *args) -> cotangent of it; None in their place means a derivative of zero. A mode
    left out raises MissingRule when asked for. For derivatives of higher order write rules in
    functions that have rules.
    true_derivative=False says that the rules are no derivative of the function (clipping inside
    the graph, a straight-through estimator): second derivatives then go by reverse over reverse,
    as products with the Hessian are not symmetric.
    """

    rules = [rule for rule in (push, pull) if rule is not None]
    if not rules:
        raise TypeError("custom_rule needs push= or pull=, a list with a rule per argument.")

    def decorate(f):
        primitive = define(f, f, push, pull, register=False)
        primitive.true_derivative = true_derivative

        @wraps(f)
        def with_rules(*args):
            if len(args) != len(rules[0]):
                raise TypeError(
                    f"{f.__name__} has rules for {len(rules[0])} arguments and got {len(args)}; "
                    "pass arrays by position, one for each rule."
                )
            return primitive(*args)

        return with_rules

    return decorate
