"""Functions as primitives: `checkpoint`, which forgets what it computed, and users' own rules."""

from functools import wraps

import optree

from revgrad.rules.row import define, shape_of
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
        traces = {x.owner for x in leaves if isinstance(x, Box)}
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
    functions that have rules. A tangent must have the shape of out, a cotangent its argument's.
    true_derivative=False says that the rules are no derivative of the function (clipping inside
    the loss, a straight-through estimator): second derivatives then go by reverse over reverse,
    as products with the Hessian are not symmetric.
    """

    count = _count_rules(push, pull)

    def decorate(f):
        primitive = define(f, f, _of_shape(f, push), _of_shape(f, pull, True), register=False)
        primitive.name += " with rules of its own"  # or a user's `sum` is taken for NumPy's
        primitive.true_derivative = true_derivative

        @wraps(f)
        def with_rules(*args):
            if len(args) != count:
                raise TypeError(
                    f"{f.__name__} has rules for {count} arguments and got {len(args)}; "
                    "pass arrays by position, one for each rule."
                )
            return primitive(*args)

        return with_rules

    return decorate


def _count_rules(push, pull):
    """For how many arguments there are rules."""
    given = {name: x for name, x in (("push", push), ("pull", pull)) if x is not None}
    if not given:
        raise TypeError("custom_rule needs push= or pull=, a list with a rule per argument.")
    for name, rules in given.items():
        if not isinstance(rules, (list, tuple)) or not all(r is None or callable(r) for r in rules):
            raise TypeError(
                f"custom_rule({name}={rules!r}); a list with a rule (or None) per argument is "
                f"wanted, e.g. {name}=[rule]."
            )
    counts = {name: len(rules) for name, rules in given.items()}
    if len(set(counts.values())) > 1:
        raise TypeError(
            f"custom_rule got {counts['push']} rules in push= and {counts['pull']} in pull=; give "
            "each a rule, or None, per argument."
        )
    return next(iter(counts.values()))


def _of_shape(f, rules, pull=False):
    """Rules that refuse an answer of another shape than that of the value it belongs to."""

    def checked(k, rule):
        def rule_of_shape(t, out, *args):
            found, like = rule(t, out, *args), args[k] if pull else out
            if found is not None and shape_of(found) != shape_of(like):
                raise TypeError(
                    f"{f.__name__}: rule {k} of {'pull' if pull else 'push'}= gave an array of "
                    f"shape {shape_of(found)}; {shape_of(like)} is wanted, the shape of "
                    f"{f'argument {k}' if pull else 'the answer'}."
                )
            return found

        return rule and rule_of_shape

    return rules and [checked(k, rule) for k, rule in enumerate(rules)]
