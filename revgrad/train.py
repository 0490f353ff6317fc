"""The door: check what came, take it apart, and be a primitive of the tape."""

from collections.abc import Callable
from dataclasses import dataclass
from math import prod

import numpy as np
import optree

from revgrad import blas
from revgrad._ext import homes
from revgrad.adjoints import Forward, Implicit, Unrolled, bytes_of
from revgrad.arguments import check_save, take_apart
from revgrad.choice import choose
from revgrad.columns import Columns, scatter, units
from revgrad.errors import MissingRule
from revgrad.implicit import pull_optimum
from revgrad.record import Record
from revgrad.report import Report
from revgrad.rules.row import cast, dtype_of
from revgrad.state import Cotangents, FixedPoint, Values
from revgrad.statements import Optimizer
from revgrad.step import wide
from revgrad.sweeps import backwards, forwards
from revgrad.tangents import along, ride_along
from revgrad.tape import Box, Primitive, Push
from revgrad.transforms import in_kind
from revgrad.unrolled import unroll


def train(
    loss,
    params,
    optimizer,
    batches,
    *,
    steps=None,
    hyper=None,
    adjoint="auto",
    state=None,
    has_aux=False,
    return_state=False,
    watch=None,
    return_watched=False,
    callback=None,
    report=None,
    arithmetic=None,
    save=None,
    save_every=None,
):
    """Train, differentiably: returns the trained params, a tree like `params`.

    loss(params, hyper, batch) -> real scalar; (scalar, aux) with has_aux=True. It must be a pure
        function: what it needs and what is traced goes through `hyper`.
    params: tree of real float arrays. optimizer: see `revgrad.optimizers`.
    batches: a sequence, gone through again and again, or a pure function of the step (then `steps`
        is required). All randomness must come from the step: see `revgrad.data.minibatches`.
    hyper: what the loss's second argument is: any tree; leaves may be `per_step`. Floats are cast
        to the params' dtype.
    adjoint: how its derivative gets hold of the earlier states: `Reversible()`, `Stored()`,
        `Checkpointed(k)`, `Truncated(k)`, `Forward()`, `Implicit(loss, batch)` or `Unrolled()`.
        "auto" is Reversible where it can be, Unrolled (in floats) where the run is differentiated
        more than once; report.adjoint says which it is, and why.
    state: initial velocity, moments and "t" (steps taken before), as an earlier run returned.
    watch(step, params) -> scalar, before each step; collected in report.watched, and returned as a
        differentiable vector with return_watched=True.
    callback(step, metrics): after each step; metrics has "loss" and "aux"; raising `StopRun` ends
        the run there. report: a `Report` to be filled. arithmetic: a `FixedPoint`.
    save: a path: a run that was killed, on the way there or back, is taken up by the same call and
        ends with the same bits. Saved every `save_every` steps (default: every 30 seconds), and
        removed when the run is over: once trained, or if it is traced, once pulled back through.
        For Reversible(), Forward() and Checkpointed(k), which makes its snapshots anew.
    Returns trained, or a tuple (trained[, state][, watched]) as asked.

    Differentiable in params, state, every optimizer hyperparameter and hyper. The integers of a
    run, its heads and words are the same whether it is traced or not.
    Raises: TypeError, ValueError for what cannot work; ClosureError; RatioRefused; FixedOverflow;
    on the way back NotReversed. Source: Maclaurin et al. 2015.
    """
    report = Report() if report is None else report.clear()
    _check_kinds(adjoint, optimizer)
    arithmetic = _check_arithmetic(arithmetic, optimizer)
    run, values = take_apart(
        loss, params, optimizer, batches, steps=steps, hyper=hyper, state=state, has_aux=has_aux,
        watch=watch, watch_moves=return_watched, callback=callback, report=report,
        arithmetic=arithmetic, saving=check_save(save, save_every),
    )  # fmt: skip
    adjoint = _chosen(adjoint, run, values)
    adjoint.check(optimizer)
    if save is not None and not adjoint.saves:
        raise ValueError(
            f"save={str(save)!r} with {adjoint!r}: a run can be taken up with Reversible(), "
            "Checkpointed(k) and Forward() alone."
        )
    if isinstance(adjoint, Unrolled):
        trained, variables, watched = unroll(run, values)
    else:
        flat, treedef = optree.tree_flatten(_as_tree(values))
        _refuse_pairs(adjoint, run, values, flat)
        static = {"run": run, "adjoint": adjoint, "treedef": treedef}
        out = (_push_forward if _youngest_push(flat) else _train)(*flat, **static)
        trained, variables, watched = optree.tree_unflatten(_out_tree(run), out)
    return _answer(run, values.params, trained, variables, watched, return_state, return_watched)


def _answer(run, given, trained, variables, watched, return_state, return_watched):
    def like_params(leaves):
        pairs = zip(leaves, given, strict=True)
        return run.layout.unflatten([in_kind(x, like) for x, like in pairs])

    out = [like_params(trained)]
    if return_state:
        state = {
            name: run.aux_layout.unflatten(leaves)
            if name in run.optimizer.aux_variables
            else like_params(leaves)
            for name, leaves in variables.items()
        }
        out.append({**state, "t": run.first_t + run.outcome["steps"]})
    if return_watched:
        out.append(watched)
    return out[0] if len(out) == 1 else tuple(out)


# What came.


def _check_kinds(adjoint, optimizer):
    if not isinstance(optimizer, Optimizer):
        raise TypeError(
            f"optimizer is a {type(optimizer).__name__}; pass one of revgrad's, e.g. Momentum(0.1)."
        )
    if optimizer.tuned_by is not None:
        raise TypeError(
            f"train keeps hyperparameters as they are, and {optimizer!r} has some that learn; "
            "train with revgrad.fit, or pass optimizer.untuned."
        )
    named = isinstance(adjoint, str) and adjoint == "auto"
    if not named and (isinstance(adjoint, type) or not hasattr(adjoint, "check")):
        raise TypeError(
            f'adjoint={adjoint!r}; pass "auto", Reversible(), Stored(), Checkpointed(20) or '
            "another of revgrad's (an instance)."
        )


def _chosen(adjoint, run, values):
    """The adjoint; said in the report, with why, where the choice was left to revgrad."""
    why = ""
    if isinstance(adjoint, str):
        adjoint, why = choose(run, values, saved=run.saving is not None)
    run.report.adjoint = f"{adjoint!r}, chosen because {why}" if why else repr(adjoint)
    return adjoint


def _check_arithmetic(arithmetic, optimizer):
    arithmetic = FixedPoint() if arithmetic is None else arithmetic
    known = {"params", *optimizer.variables}
    if unknown := arithmetic.fraction_bits.keys() - known:
        raise ValueError(
            f"FixedPoint(fraction_bits=...) has {sorted(unknown)}; {optimizer.name} keeps "
            f"{sorted(known)}."
        )
    return arithmetic


# The primitive.


def _as_tree(values):
    return [values.params, values.warm, values.optimizer, values.hyper]


def _out_tree(run):
    state = {name: [0] * len(run.layout_of(name).shapes) for name in run.optimizer.variables}
    return optree.tree_structure(([0] * len(run.layout.shapes), state, 0))


def _forwards(flat, run, adjoint, treedef, *, remember):
    values = Values(*optree.tree_unflatten(treedef, flat))
    with blas.pinned() as threads:
        run.report.blas_threads = threads
        done = forwards(adjoint, run, values, remember=remember)
    return _leaves_out(run, done[2], done[4]), (done, threads)


def _leaves_out(run, state, watched):
    leaves = {name: run.layout_of(name).leaves(x) for name, x in state.variables.items()}
    return tuple(optree.tree_leaves((leaves.pop("params"), leaves, np.array(watched))))


def _run(*flat, run, adjoint, treedef):
    return _forwards(flat, run, adjoint, treedef, remember=False)[0]


def _stage(wanted, flat, static):
    boxes = [x for x in flat if isinstance(x, Box)]
    if boxes and all(isinstance(x.owner, Record) for x in boxes):
        *out, memory = _train_and_remember(*flat, wanted=wanted, **static)
        return tuple(out), lambda cts: _pull_back(memory, *cts)
    if boxes:
        raise MissingRule(
            f"{static['adjoint']!r} has first derivatives only, and train met a second trace (a "
            "grad of a grad, or a hessian); pass adjoint=Unrolled()."
        )
    if isinstance(static["adjoint"], Forward):
        return _stage_forward(wanted, flat, **static)
    return _stage_back(wanted, flat, **static)


def _stage_back(wanted, flat, run, adjoint, treedef):
    """Run forwards, and prepare the way back."""
    out, (done, threads) = _forwards(flat, run, adjoint, treedef, remember=True)
    program, _, state, _, watched, _ = done

    def pullback(cts):
        variables, ct_watched = _read_cotangents(run, cts, watched)
        with blas.pinned(threads):
            if isinstance(adjoint, Implicit):
                found = _pull_optimum(adjoint, program, state, cts, variables)
            else:
                found = backwards(done, variables, ct_watched)
        leaves = optree.tree_leaves(_cotangent_tree(run, program, found))
        return _like(leaves, wanted, flat)

    return out, pullback


def _like(leaves, wanted, flat):
    return [_like_leaf(leaves[i], flat[i]) for i in wanted]


def _like_leaf(x, leaf):
    """x in the dtype of a leaf, where that is."""
    x = homes.beside(x, leaf) if homes.is_away(leaf) else homes.to_host(x)[()]
    return cast(x, dtype_of(leaf))


def _pull_optimum(adjoint, program, state, cts, variables):
    run, parts = program.run, len(program.layout.shapes)
    if any(ct is not None for ct in cts[parts:]):
        raise MissingRule(
            "Implicit() has the derivative of the final params alone, not that of the state or of "
            "what was watched; pass adjoint=Reversible() or Stored()."
        )
    leaves = run.layout.leaves(state.variables["params"])
    hyper = program.values.hyper
    found = pull_optimum(adjoint, run, leaves, hyper, variables["params"])
    return Cotangents(variables, program.schedule.values, found)


def _stage_forward(wanted, flat, run, adjoint, treedef):
    """Run forwards with a tangent for each wanted number: that is the whole Jacobian."""
    total = sum(prod(np.shape(flat[i])) for i in wanted)
    _check_room(adjoint, run, total)
    tangents, first, shared, order = units(flat, wanted, *_every(run), run.steps)
    values = Values(*optree.tree_unflatten(treedef, flat))
    columns = Columns.of(optree.tree_unflatten(treedef, tangents), values, first, shared)
    with blas.pinned() as threads:
        run.report.blas_threads = threads
        state, watched, rows, slopes, log = ride_along(adjoint, run, values, columns)

    def pullback(cts):
        variables, ct_watched = _read_cotangents(run, cts, watched)
        if log:
            log.remove()
        found = homes.home(sum(along(rows[name], ct) for name, ct in variables.items()))
        if ct_watched is not None:
            found = found + slopes @ homes.home(ct_watched)
        parts = scatter(found, order, flat, wanted)
        return [_like_leaf(x, flat[i]) for x, i in zip(parts, wanted, strict=True)]

    return _leaves_out(run, state, watched), pullback


def _every(run):
    """(per flat leaf, the PerStep's `every` or None; how many of the leaves are no hyper)."""
    optimizer = {name: list(spread.every) for name, spread in run.spreads.items()}
    warm = {name: [None] * len(run.layout_of(name).shapes) for name in run.outcome["warm"]}
    tree = [[None] * len(run.layout.shapes), warm, optimizer]
    initial = len(optree.tree_leaves(tree[:2], none_is_leaf=True))
    return optree.tree_leaves([*tree, list(run.hyper_every)], none_is_leaf=True), initial


def _check_room(adjoint, run, total):
    many = run.layout.size * (1 + len(run.optimizer.variables))
    each = run.layout.dtype.itemsize * many + 8 * total
    if each * total > bytes_of(adjoint.memory):
        raise ValueError(
            f"{adjoint!r} would carry {total} tangents, one per traced number, of {each} bytes "
            f"each: {each * total / 1e6:,.0f} MB. Trace fewer numbers, pass Reversible() or "
            "Checkpointed(20), whose cost does not depend on how many there are, or allow it: "
            "Forward(memory=...)."
        )


def _youngest_push(flat):
    """The Push trace that handles this call, or None."""
    traces = [x.owner for x in flat if isinstance(x, Box)]
    youngest = max(traces, key=lambda trace: trace.age, default=None)
    return youngest if isinstance(youngest, Push) else None


def _push_forward(*flat, run, adjoint, treedef):
    """Forward mode: one column, the direction in which train was met."""
    trace = _youngest_push(flat)
    raw, tangents = zip(*map(trace.unwrap, flat), strict=True)
    if any(isinstance(x, Box) for x in (*raw, *tangents)):
        raise MissingRule(
            f"{adjoint!r} has first derivatives only, and train met a second trace; pass "
            "adjoint=Unrolled()."
        )
    values = Values(*optree.tree_unflatten(treedef, raw))
    rows = [t if t is None else wide(homes.real_array(t))[None] for t in tangents]
    columns = Columns.of(optree.tree_unflatten(treedef, rows), values, np.zeros(1, int))
    with blas.pinned() as threads:
        run.report.blas_threads = threads
        state, watched, found, slopes, log = ride_along(adjoint, run, values, columns)
    if log:
        log.remove()
    moved = {name: run.layout_of(name).cast(x[0]) for name, x in found.items()}
    t_out = optree.tree_leaves((moved.pop("params"), moved, slopes[0]))
    pairs = zip(_leaves_out(run, state, watched), t_out, strict=True)
    return tuple(trace.box(x, trace, t) for x, t in pairs)


def _read_cotangents(run, cts, watched):
    """(flat cotangent per variable, cotangent of watched or None) from those of the outputs."""
    nobody_watches = cts[-1] is None
    tree = _out_tree(run)
    names = ["params", *sorted(run.optimizer.variables)]  # as the tree has them
    shapes = [np.zeros(shape) for name in names for shape in run.layout_of(name).shapes]
    shapes.append(np.zeros(len(watched)))
    if any(isinstance(ct, Box) for ct in cts):
        raise MissingRule(
            "the pull-back of train met a traced cotangent (a second derivative); pass "
            "adjoint=Unrolled()."
        )
    cts = [z if ct is None else ct for ct, z in zip(cts, shapes, strict=True)]
    ct_params, ct_state, ct_watched = optree.tree_unflatten(tree, cts)
    variables = {"params": run.layout.join(ct_params)}
    variables |= {name: run.layout_of(name).join(leaves) for name, leaves in ct_state.items()}
    return variables, None if nobody_watches else ct_watched


def _cotangent_tree(run, program, found):
    def leaves(name):
        return run.layout_of(name).split(found.variables[name])

    warm = {name: leaves(name) for name in program.values.warm}
    return [leaves("params"), warm, found.optimizer, found.hyper]


def _refuse_pairs(adjoint, run, values, flat):
    """What an adjoint has no derivative of, where it is known before training."""
    if _youngest_push(flat) and not isinstance(adjoint, Forward):
        raise MissingRule(
            f"{adjoint!r} has derivatives in reverse mode only, and train met forward mode (jvp, "
            "jacfwd, hvp, hessian); pass adjoint=Unrolled() or, for a first derivative, Forward()."
        )
    if _youngest_push(flat) and adjoint.average:
        raise ValueError(
            f"{adjoint!r} divides what belongs to a value by the steps that share it, which a "
            "direction (jvp, jacfwd) may have many of; take rg.grad, or leave average out."
        )
    if isinstance(adjoint, Implicit):
        _refuse_under_implicit(run, values)


def _refuse_under_implicit(run, values):
    traced = {"the initial params": values.params}
    traced |= {f"state[{name!r}]": leaves for name, leaves in values.warm.items()}
    traced |= {f"{run.optimizer.name}({k}=...)": xs for k, xs in values.optimizer.items()}
    moving = [
        x for x, every in zip(values.hyper, run.hyper_every, strict=True) if every is not None
    ]
    traced["per_step in hyper"] = moving
    for name, leaves in traced.items():
        if any(isinstance(x, Box) for x in leaves):
            raise TypeError(
                f"Implicit() has derivatives with respect to hyper alone, and {name} is traced: "
                "the optimum does not depend on it. Pass stop_gradient of it, or, for the "
                "derivative of the run itself, adjoint=Reversible() or Checkpointed(20)."
            )


_train = Primitive("train", _run, stage=_stage, many=True)


# Both ways as primitives of their own, for recordings: what the way back needs is one more answer.


@dataclass(frozen=True, eq=False)
class _Memory:
    pullback: Callable


def _run_and_remember(*flat, wanted, **static):
    out, pullback = _stage(wanted, flat, static)
    return (*out, _Memory(pullback))


def _refuse_second_derivative(*_, **__):
    raise MissingRule(
        "train met a second derivative while recording; pass adjoint=Unrolled(), or do not compile."
    )


_train_and_remember = Primitive("train", _run_and_remember, many=True)
_pull_back = Primitive(
    "pull back train",
    lambda memory, *cts: tuple(memory.pullback(cts)),
    _refuse_second_derivative,
    _refuse_second_derivative,
    many=True,
)
