"""The outer loop: minimise a hyperloss by its hypergradients."""

import inspect
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import optree
from tqdm import tqdm

from revgrad.errors import StopRun
from revgrad.hyper import Spread, resolve, whole_number
from revgrad.optimizers import Adam, Optimizer
from revgrad.state import Layout
from revgrad.transforms import flatten_floats, value_and_grad, zeros_like


@dataclass
class Minimum:
    """What `minimize` found.

    hyper: the tree after the last step; values: the hyperloss before each step, so values[k]
    belongs to the tree after k steps; best_hyper, best_value: the lowest of these; aux: the last.
    """

    hyper: Any
    values: list = field(default_factory=list)
    best_hyper: Any = None
    best_value: float = np.inf
    aux: Any = None


def minimize(
    hyperloss,
    hyper0,
    optimizer=None,
    *,
    until=50,
    stop=None,
    has_aux=False,
    progress=True,
    callback=None,
):
    """Take `until` steps of an optimizer on a hyperloss, by its gradient; returns a Minimum.

    hyperloss(hyper) or hyperloss(hyper, step) -> scalar, or (scalar, aux) with has_aux=True; the
        step is passed to a second argument that has no default, or is called `step`.
    hyper0: tree of floats. optimizer: any of revgrad's, in float arithmetic; default Adam(0.04).
    stop(values) -> True ends the loop; so does StopRun from callback(step, metrics), which gets
    "value", "hyper", "gradient" and "aux". progress: a progress bar with the current value.
    Raises: ValueError where the hyperloss or its gradient is not finite, with the step; what
    hyperloss raises.
    """
    optimizer = Adam(0.04) if optimizer is None else optimizer
    if not isinstance(optimizer, Optimizer):
        raise TypeError(
            f"optimizer is a {type(optimizer).__name__}; pass one of revgrad's, e.g. Adam(0.04)."
        )
    until = whole_number(until, "until", 0)
    takes_step = _takes_step(hyperloss)
    leaves, tree = flatten_floats(hyper0, "hyper0")
    layout = Layout(leaves, tree)
    spreads = {
        k: Spread.of(f"{optimizer.name}({k}=...)", resolve(v, until), layout)
        for k, v in optimizer.hyper.items()
    }
    variables = {"params": leaves} | {
        k: [zeros_like(x) for x in leaves] for k in optimizer.variables
    }
    found, bar = Minimum(hyper0), tqdm(range(until), disable=not progress, desc="hyperloss")
    for step in bar:
        hyper = optree.tree_unflatten(tree, variables["params"])
        args = (hyper, step) if takes_step else (hyper,)
        value, gradient = value_and_grad(hyperloss, has_aux=has_aux)(*args)
        value, found.aux = value if has_aux else (value, None)
        _check_finite(value, gradient, step)
        found.values.append(float(value))
        if value < found.best_value:
            found.best_hyper, found.best_value = hyper, float(value)
        bar.set_postfix_str(f"{float(value):.4f}")
        variables = optimizer.float_step(
            variables,
            optree.tree_leaves(gradient),
            lambda name, k, t=step: spreads[name][0].at_leaf(spreads[name][1], k, t),
            step + 1,
        )
        found.hyper = optree.tree_unflatten(tree, variables["params"])
        if _told_to_stop(callback, stop, step, found, hyper, gradient):
            break
    return found


def _check_finite(value, gradient, step):
    if not np.isfinite(value):
        raise ValueError(f"the hyperloss is {value} at outer step {step}; lower the rate.")
    for path, leaf in zip(*optree.tree_flatten_with_path(gradient)[:2], strict=True):
        if not np.all(np.isfinite(leaf)):
            name = "".join(f"[{p!r}]" for p in path)
            raise ValueError(
                f"the hypergradient{name} is not finite at outer step {step}, where the hyperloss "
                f"is {value}; lower the rate, or look for a function without a slope there."
            )


def _told_to_stop(callback, stop, step, found, hyper, gradient):
    if callback is not None:
        metrics = {
            "value": found.values[-1],
            "hyper": hyper,
            "gradient": gradient,
            "aux": found.aux,
        }
        try:
            callback(step, metrics)
        except StopRun:
            return True
    return stop is not None and bool(stop(found.values))


def _takes_step(hyperloss):
    """Whether the second argument is the outer step: it has no default, or is called `step`."""
    try:
        second = [*inspect.signature(hyperloss).parameters.values()][1]
    except (TypeError, ValueError, IndexError):
        return False
    positional = second.kind in (second.POSITIONAL_ONLY, second.POSITIONAL_OR_KEYWORD)
    return positional and (second.default is second.empty or second.name == "step")
