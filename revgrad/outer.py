"""The outer loop: minimise a hyperloss by its hypergradients."""

import inspect
import numbers
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import optree
from tqdm import tqdm

from revgrad.errors import FixedOverflow, NotFinite, StopRun
from revgrad.hyper import Spread, resolve, whole_number
from revgrad.optimizers import Adam, Add, Optimizer, Scale
from revgrad.search_log import SearchLog
from revgrad.state import Layout
from revgrad.transforms import flatten_floats, in_kind, value_and_grad, zeros_like
from revgrad.wrappers import Wrapper


@dataclass(frozen=True, eq=False)
class SignDescent(Optimizer):
    """Move each number by its own step against the sign of its gradient; halve the step on a flip.

    step: the first steps, in units of the hyperparameters: a number, or a tree prefix of them, one
        per leaf (or per number). decay: what a step is multiplied by when the sign is the opposite
        of the one before, before it is taken; steps never grow. Where the gradient is 0 or NaN a
        number does not move, and the next sign is no flip.
    close: `minimize` stops when every step is less than this share of its value; 0 never stops.
    In `minimize` also a run that diverges (NotFinite, FixedOverflow) counts as NaN everywhere: with
    fresh data and initial params at each outer step the next one may not.
    lost: in `minimize`, a run is lost whose value is more than this above the lowest so far or NaN,
        or that diverges: its signs say nothing. Instead of what is said above, each number that
        had a sign turns round and goes back by its step, which is halved, and on by as much if
        the next run is lost too. None: as in the paper, signs count wherever they come from.
    Statements like any optimizer's; not reversible. `minimize` sees to close, lost and NaN, through
    wrappers too. Source: Micaelli and Storkey 2021, algorithm 1; lost, after Igel and Husken 2000.
    """

    step: Any
    decay: Any = 0.5
    close: Any = 0.0
    lost: Any = None
    statements: ClassVar = (
        Add("flips", lambda g, last_sign: np.where(_sign(g) * last_sign < 0, 1.0, 0.0)),
        Add("params", lambda g, flips, step, decay: -step * decay**flips * _sign(g)),
        Scale("last_sign", by=0),
        Add("last_sign", lambda g: _sign(g)),
    )
    magnitudes: ClassVar = {"flips": lambda steps: steps, "last_sign": lambda: 1.0}

    def __post_init__(self):
        super().__post_init__()
        for name, x in (("decay", self.decay), ("close", self.close)):
            if isinstance(x, (int, float)) and not 0 <= x < 1:
                raise ValueError(f"SignDescent({name}={x!r}); a number in [0, 1) is wanted.")
        if self.lost is not None and not (_is_number(self.lost) and self.lost >= 0):
            raise ValueError(f"SignDescent(lost={self.lost!r}); None or a number >= 0 is wanted.")

    def instead(self, gradient, state, values):
        """The gradient to go by, given the values so far: that of a lost run says nothing."""
        if not self._is_lost(values):
            return gradient
        if state is None:  # there is nothing to turn round from
            return optree.tree_map(lambda x: in_kind(zeros_like(x), x), gradient)
        on = 1 if self._is_lost(values[:-1]) else -1
        return optree.tree_map(lambda sign: on * sign, state["last_sign"])

    def _is_lost(self, values):
        if self.lost is None or not values:
            return False
        return not values[-1] <= _lowest(values[:-1]) + self.lost

    def arrived(self, hyper, state, at):
        """Whether every step is small against its value; hyper, state: leaves; at: see _updater."""
        pairs = enumerate(zip(hyper, state["flips"], strict=True))
        steps = [(np.abs(x), at("step", k) * self.decay**flips) for k, (x, flips) in pairs]
        return all(np.all(step < self.close * x) for x, step in steps)


def _is_number(x):
    return isinstance(x, numbers.Real) and not isinstance(x, bool)


def _lowest(values):
    return min((v for v in values if v == v), default=np.inf)


def _signs(optimizer):
    """The SignDescent in an optimizer, whatever wraps it, or None."""
    while isinstance(optimizer, Wrapper):
        optimizer = optimizer.optimizer
    return optimizer if isinstance(optimizer, SignDescent) else None


def _sign(g):
    """1, -1, or 0 where g is 0 or NaN."""
    return np.where(g > 0, 1.0, np.where(g < 0, -1.0, 0.0))


@dataclass
class Minimum:
    """What `minimize` found; handed to it again, it goes on from there.

    hyper: the tree after the last step; values: the hyperloss before each step, so values[k]
    belongs to the tree after k steps; best_hyper, best_value: the lowest of these; aux: the last.
    state: the optimizer's variables after the last step, each a tree like hyper.
    """

    hyper: Any
    values: list = field(default_factory=list)
    best_hyper: Any = None
    best_value: float = np.inf
    aux: Any = None
    state: dict | None = None


def minimize(
    hyperloss,
    hyper0,
    optimizer=None,
    *,
    until=50,
    stop=None,
    within=None,
    has_aux=False,
    progress=True,
    callback=None,
    save=None,
):
    """Step an optimizer on a hyperloss, by its gradient, `until` that step; returns a Minimum.

    hyperloss(hyper) or hyperloss(hyper, step) -> scalar, or (scalar, aux) with has_aux=True; the
        step is passed to a second argument that has no default, or is called `step`.
    hyper0: tree of floats, or a Minimum, to go on where that one ended: with the same optimizer the
        bits are those of one long run. until: the number of steps, earlier ones included.
    optimizer: any of revgrad's, in float arithmetic; default Adam(0.04).
    within: (lowest, highest), each a number or a tree prefix of hyper0: what a step takes out of
        these bounds is put back on them. `revgrad.positive` and its like keep inside smoothly.
    stop(values) -> True ends the loop; so does StopRun from callback(step, metrics), which gets
    "value", "hyper", "gradient" and "aux". progress: a progress bar with the current value.
    save: a path: a search that was killed is taken up by the same call, at the step it was in, and
    ends with the same bits; that step's gradient is computed again and must be the same. Removed
    at the end. Where the hyperloss saves its own runs, let each step have a file of its own.
    Raises: NotResumed; ValueError where the hyperloss or its gradient is not finite, with the step
    (to SignDescent that says to stay);
    what hyperloss raises, and Ctrl-C. What ends the loop so carries the steps taken before it, as a
    Minimum in its attribute `minimum`.
    """
    optimizer = Adam(0.04) if optimizer is None else optimizer
    _check_arguments(hyperloss, optimizer, stop, callback)
    until = whole_number(until, "until", 0)
    found = hyper0 if isinstance(hyper0, Minimum) else Minimum(hyper0)
    signs = _signs(optimizer)
    evaluate = _evaluator(hyperloss, has_aux, takes_nan=signs is not None)
    spreads = _spreads(optimizer, found.hyper, until) | _bounds(within, found.hyper)
    update, arrived = _updater(optimizer, found, spreads), _arrival(signs, spreads)
    log = None if save is None else SearchLog(save, optimizer, spreads, found.hyper)
    found = _taken_up(log, found)
    steps = range(len(found.values), until)
    with tqdm(
        steps, disable=not progress, desc="hyperloss", initial=steps.start, total=until
    ) as bar:
        for step in bar:
            try:
                hyper = found.hyper
                value, aux, gradient = evaluate(hyper, step)
                if log is not None:
                    trees = {"hyper": hyper} | {
                        f"state {k}": x for k, x in (found.state or {}).items()
                    }
                    trees |= {} if found.best_hyper is None else {"best": found.best_hyper}
                    log.save(step, trees, found.values, (value, gradient))
                seen = gradient
                if signs is not None:
                    seen = signs.instead(gradient, found.state, [*found.values, value])
                found = _after(found, value, aux, *update(found, seen, step))
                bar.set_postfix_str(f"{value:.4f}")
                metrics = {"value": value, "hyper": hyper, "gradient": gradient, "aux": aux}
                if _told_to_stop(callback, stop, step, found, metrics) or arrived(found, step):
                    break
            except BaseException as error:  # Ctrl-C too: hours of outer steps must not be lost
                error.minimum = found
                raise
    if log is not None:
        log.remove()
    return found


def _taken_up(log, found):
    """The Minimum that a save file holds, or `found` where there is none."""
    read = log and log.load()
    if not read:
        return found
    trees, values = read
    state = {k.removeprefix("state "): x for k, x in trees.items() if k.startswith("state ")}
    best = {"best_hyper": trees.get("best"), "best_value": _lowest(values)}
    return Minimum(trees["hyper"], values, state=state or None, **best)


def _check_arguments(hyperloss, optimizer, stop, callback):
    if not isinstance(optimizer, Optimizer):
        raise TypeError(
            f"optimizer is a {type(optimizer).__name__}; pass one of revgrad's, e.g. Adam(0.04)."
        )
    if optimizer.tuned_by is not None:
        raise TypeError(f"{optimizer!r} is tuned as it goes, which only revgrad.fit does.")
    if "aux" in optimizer.reads:
        raise TypeError(f"{optimizer.name} reads aux, which only `train` hands to statements.")
    for name, f in (("hyperloss", hyperloss), ("stop", stop), ("callback", callback)):
        if not callable(f) and not (f is None and name != "hyperloss"):
            raise TypeError(f"{name} is a {type(f).__name__}; pass a function.")


def _evaluator(hyperloss, has_aux, takes_nan):
    """(hyper, step) -> (value, aux, gradient), all finite unless the optimizer takes NaN."""
    takes_step = _takes_step(hyperloss)
    both = value_and_grad(hyperloss, has_aux=has_aux)

    def evaluate(hyper, step):
        try:
            value, gradient = both(hyper, step) if takes_step else both(hyper)
        except (NotFinite, FixedOverflow):
            if not takes_nan:
                raise
            nan = optree.tree_map(lambda x: in_kind(zeros_like(x) + np.nan, x), hyper)
            return np.nan, None, nan
        value, aux = value if has_aux else (value, None)
        if not takes_nan:
            _check_finite(value, gradient, step)
        return float(value), aux, gradient

    return evaluate


def _arrival(signs, spreads):
    """(found, step) -> whether the optimizer has nothing left to do."""

    def arrived(found, step):
        at = lambda name, k: spreads[name][0].at_leaf(spreads[name][1], k, step)
        state = {name: optree.tree_leaves(x) for name, x in found.state.items()}
        return signs.arrived(optree.tree_leaves(found.hyper), state, at)

    return arrived if signs is not None else lambda *_: False


def _spreads(optimizer, hyper, until):
    """Name -> (Spread, values) of the optimizer's hyperparameters over the hyper tree."""
    leaves, tree = flatten_floats(hyper, "hyper0")
    if not leaves:
        raise TypeError(f"hyper0 is {hyper!r}, which holds no number; there is nothing to tune.")
    layout = Layout(leaves, tree)
    return {
        k: Spread.of(f"{optimizer.name}({k}=...)", resolve(v, until), layout)
        for k, v in optimizer.hyper.items()
    }


def _bounds(within, hyper):
    """The same of "lowest" and "highest", where there are bounds."""
    if within is None:
        return {}
    if not (isinstance(within, tuple) and len(within) == 2):
        raise TypeError(f"within={within!r}; pass a tuple, (lowest, highest).")
    paths, leaves, tree = optree.tree_flatten_with_path(hyper)
    layout, names = Layout(leaves, tree), ("lowest", "highest")
    found = {
        name: Spread.of(f"minimize(within=...), {name},", bound, layout)
        for name, bound in zip(names, within, strict=True)
    }
    for k, (path, x) in enumerate(zip(paths, leaves, strict=True)):
        low, high = (found[name][0].at_leaf(found[name][1], k, 0) for name in names)
        if not np.all((low <= x) & (x <= high)):
            where = "".join(f"[{p!r}]" for p in path)
            raise ValueError(f"hyper0{where} is {x}, not within {low} and {high}; start inside.")
    return found


def _updater(optimizer, start, spreads):
    """(found, gradient, step) -> the hyper tree and the optimizer's state after that step."""
    likes, tree = optree.tree_flatten(start.hyper)
    if start.state is not None and start.state.keys() != set(optimizer.variables):
        raise TypeError(
            f"hyper0 was found by an optimizer with variables {sorted(start.state)}, "
            f"{optimizer.name} has {sorted(optimizer.variables)}; pass hyper0.hyper to start anew."
        )

    def at_step(step):
        return lambda name, k: spreads[name][0].at_leaf(spreads[name][1], k, step)

    def state_at_start(leaves):
        zeros = {name: [zeros_like(x) for x in leaves] for name in optimizer.variables}
        filled = zeros | optimizer.start(leaves, at_step(0))
        return {name: optree.tree_unflatten(tree, x) for name, x in filled.items()}

    def update(found, gradient, step):
        state = found.state or state_at_start(optree.tree_leaves(found.hyper))
        variables = {"params": found.hyper, **state}
        now = optimizer.float_step(
            {name: optree.tree_leaves(x) for name, x in variables.items()},
            optree.tree_leaves(gradient),
            at_step(step),
            step + 1,
        )
        if "lowest" in spreads:
            at = at_step(step)
            pairs = enumerate(now["params"])
            now["params"] = [np.clip(x, at("lowest", k), at("highest", k)) for k, x in pairs]
        now = {
            k: [in_kind(x, like) for x, like in zip(xs, likes, strict=True)]
            for k, xs in now.items()
        }
        after = {name: optree.tree_unflatten(tree, x) for name, x in now.items()}
        return after.pop("params"), after

    return update


def _after(found, value, aux, hyper, state):
    """The Minimum after one more step; the old one stays as it is."""
    best = {"best_hyper": found.best_hyper, "best_value": found.best_value}
    if value < found.best_value:
        copy = optree.tree_map(lambda x: x.copy() if hasattr(x, "copy") else x, found.hyper)
        best = {"best_hyper": copy, "best_value": value}
    return Minimum(hyper, [*found.values, value], aux=aux, state=state, **best)


def _check_finite(value, gradient, step):
    cure = "lower the rate" if step else "nothing was changed yet, so look at hyper0"
    if not np.isfinite(value):
        raise ValueError(f"the hyperloss is {value} at outer step {step}; {cure}.")
    for path, leaf in zip(*optree.tree_flatten_with_path(gradient)[:2], strict=True):
        if not np.all(np.isfinite(leaf)):
            name = "".join(f"[{p!r}]" for p in path)
            raise ValueError(
                f"the hypergradient{name} is not finite at outer step {step}, where the hyperloss "
                f"is {value}; {cure}, or look for a function without a slope there."
            )


def _told_to_stop(callback, stop, step, found, metrics):
    if callback is not None:
        try:
            callback(step, metrics)
        except StopRun:
            return True
    return stop is not None and bool(stop(list(found.values)))


def _takes_step(hyperloss):
    """Whether the second argument is the outer step: it has no default, or is called `step`."""
    try:
        second = [*inspect.signature(hyperloss).parameters.values()][1]
    except (TypeError, ValueError, IndexError):
        return False
    positional = second.kind in (second.POSITIONAL_ONLY, second.POSITIONAL_OR_KEYWORD)
    return positional and (second.default is second.empty or second.name == "step")
