"""Optimizers as short lists of reversible statements.

    momentum = (Scale("velocity", by="momentum"),
                Add("velocity", lambda g, momentum: -(1 - momentum) * g),
                Add("params", lambda velocity, learning_rate: learning_rate * velocity))

A statement names what it changes, and the argument names of its function are what it reads: state
variables, hyperparameters, `g` (the loss gradient at the params the step started from) and `t` (the
step, from 1). Functions act entry by entry. From the list follow the step, its undo, its pull-back
and its push-forward; nothing else about an optimizer is written down anywhere.
"""

import inspect
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any, ClassVar

import numpy as np

from revgrad.rules.row import cast, dtype_of


@dataclass(frozen=True)
class Scale:
    """target <- target * factor, a hyperparameter (by its name) or a function of some.

    The only statement that destroys information; a buffer keeps what it destroys.
    """

    target: str
    by: Any

    @cached_property
    def reads(self):
        return (self.by,) if isinstance(self.by, str) else _argument_names(self.by)


@dataclass(frozen=True)
class Add:
    """target <- target + delta(what it reads), rounded to the target's ulp; undone exactly."""

    target: str
    delta: Any

    @cached_property
    def reads(self):
        return _argument_names(self.delta)


@dataclass(frozen=True, eq=False)
class Optimizer:
    """Base of optimizers: dataclass fields are hyperparameters, `statements` is the step.

    Each hyperparameter is a number, a tree prefix of the params (one value per layer, or per
    weight), or `per_step` of one; any of them may be traced. Raises at construction: TypeError for
    a statement that reads its own target or an unknown name.
    """

    statements: ClassVar[tuple] = ()
    magnitudes: ClassVar[dict] = {}  # variable -> its magnitude as a function of that of g

    def __post_init__(self):
        variables = {"g", "t", "params", *self.variables}
        if clash := variables & set(self.hyper):
            raise TypeError(
                f"{self.name}: {sorted(clash)} name both hyperparameters and what a statement "
                "reads or changes; rename the hyperparameters."
            )
        known = variables | set(self.hyper)
        for s in self.statements:
            if unknown := set(s.reads) - known:
                raise TypeError(
                    f"{self.name}: the statement that changes {s.target!r} reads "
                    f"{sorted(unknown)}, which is none of {sorted(known)}."
                )
            if s.target in s.reads:
                raise TypeError(
                    f"{self.name}: a statement reads its own target {s.target!r}, so it could not "
                    "be undone; use Scale, or a second variable."
                )
            of_t = () if isinstance(s, Scale) and isinstance(s.by, str) else ("t",)
            if isinstance(s, Scale) and (wrong := set(s.reads) - {*self.hyper, *of_t}):
                raise TypeError(
                    f"{self.name}: {s.target!r} is scaled by a function of {sorted(wrong)}; "
                    "a factor may depend on hyperparameters and t alone."
                )

    @property
    def name(self):
        return type(self).__name__

    @property
    def hyper(self):
        """Hyperparameters by name."""
        return {f.name: getattr(self, f.name) for f in fields(self)}

    @property
    def variables(self):
        """State variables other than params, in order of appearance."""
        return tuple(dict.fromkeys(s.target for s in self.statements if s.target != "params"))

    @property
    def reversible(self):
        """Whether a step can be undone: see `undo_order`."""
        return self.undo_order is not None

    @property
    def undo_order(self):
        """Statement indices in the order that undoes a step, or None if there is no such order.

        A later statement is undone before an earlier one where they touch the same variable in
        conflicting ways, and every writer of params before any reader of `g`, because undoing
        those needs the gradient at the params that the step started from.
        """
        s, order = self.statements, []
        while len(order) < len(s):
            ready = [i for i in range(len(s)) if i not in order and _undone(s, i) <= set(order)]
            if not ready:
                return None
            order.append(max(ready))
        return tuple(order)

    def float_step(self, variables, g, hyper, t):
        """One step in float arithmetic, leaf by leaf; returns the new variables.

        variables: name -> leaves, "params" included; g: leaves; hyper(name, k): the value for leaf
        k; t: from 1. Every value may be traced.
        """
        variables = dict(variables)
        for s in self.statements:
            old = variables[s.target]
            now = [
                {n: _read(n, k, variables, g, hyper, t) for n in s.reads} for k in range(len(old))
            ]
            variables[s.target] = [
                cast(_float_statement(s, x, reads), dtype_of(x))
                for x, reads in zip(old, now, strict=True)
            ]
        return variables


def _read(name, k, variables, g, hyper, t):
    if name == "t":
        return t
    if name in variables:
        return variables[name][k]
    return g[k] if name == "g" else hyper(name, k)


def _float_statement(s, x, reads):
    if isinstance(s, Add):
        return x + s.delta(**reads)
    return x * (reads[s.by] if isinstance(s.by, str) else s.by(**reads))


def _undone(statements, i):
    """Which statements must be undone before statement i can be."""
    after = {j for j in range(i + 1, len(statements)) if _conflict(statements[i], statements[j])}
    if "g" in statements[i].reads:
        after |= {j for j, s in enumerate(statements) if s.target == "params"}
    return after


def _conflict(a, b):
    if a.target == b.target:
        return isinstance(a, Scale) or isinstance(b, Scale)
    return a.target in b.reads or b.target in a.reads


def _argument_names(function):
    return tuple(inspect.signature(function).parameters)


def _root(x):
    """Square root whose derivative at 0 is 0: a pixel that is never lit has no second moment."""
    dark = x == 0
    return np.where(dark, 0.0, np.sqrt(np.where(dark, 1.0, x)))


@dataclass(frozen=True, eq=False)
class Momentum(Optimizer):
    """v <- momentum v - (1 - momentum) g;  params <- params + learning_rate v.

    The rate is the whole effective rate: 1 is a usual value. Reversible.
    Source: Maclaurin et al. 2015, algorithm 1.
    """

    learning_rate: Any
    momentum: Any = 0.9
    statements: ClassVar = (
        Scale("velocity", by="momentum"),
        Add("velocity", lambda g, momentum: -(1 - momentum) * g),
        Add("params", lambda velocity, learning_rate: learning_rate * velocity),
    )


@dataclass(frozen=True, eq=False)
class HeavyBall(Optimizer):
    """v <- momentum v + g;  params <- params - learning_rate v. Reversible.

    PyTorch's SGD(momentum=...) and optax.sgd(momentum=...). Source: Polyak 1964.
    """

    learning_rate: Any
    momentum: Any = 0.9
    statements: ClassVar = (
        Scale("velocity", by="momentum"),
        Add("velocity", lambda g: g),
        Add("params", lambda velocity, learning_rate: -learning_rate * velocity),
    )


@dataclass(frozen=True, eq=False)
class SGD(Optimizer):
    """params <- params - learning_rate g. Not reversible: it overwrites what g was taken at."""

    learning_rate: Any
    statements: ClassVar = (Add("params", lambda g, learning_rate: -learning_rate * g),)


@dataclass(frozen=True, eq=False)
class Adam(Optimizer):
    """Adam with bias correction; eps outside the root. Reversible. Source: Kingma and Ba 2015.

    The second moment starts at 0, where the derivative of its square root is taken as 0.
    """

    learning_rate: Any
    b1: Any = 0.9
    b2: Any = 0.999
    eps: Any = 1e-8
    magnitudes: ClassVar = {"second_moment": np.square}
    statements: ClassVar = (
        Scale("first_moment", by="b1"),
        Add("first_moment", lambda g, b1: (1 - b1) * g),
        Scale("second_moment", by="b2"),
        Add("second_moment", lambda g, b2: (1 - b2) * g * g),
        Add(
            "params",
            lambda first_moment, second_moment, learning_rate, b1, b2, eps, t: (
                -learning_rate
                * (first_moment / (1 - b1**t))
                / (_root(second_moment / (1 - b2**t)) + eps)
            ),
        ),
    )
