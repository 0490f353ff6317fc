"""The door: check what came, take it apart, and be a primitive of the tape."""

from dataclasses import replace

import numpy as np
import optree

from revgrad import blas
from revgrad.adjoints import Reversible, Stored, Unrolled, backwards, forwards, unroll
from revgrad.arrays import plain
from revgrad.errors import ClosureError, MissingRule
from revgrad.hyper import Spread, is_per_step, resolve
from revgrad.optimizers import Optimizer
from revgrad.program import CLOSURE, FixedPoint, Layout, Run, Values
from revgrad.report import Report
from revgrad.rules.row import cast, dtype_of
from revgrad.tape import Box, Primitive
from revgrad.transforms import check_scalar, flatten_floats


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
):
    """Train, differentiably: returns the trained params, a tree like `params`.

    loss(params, hyper, batch) -> real scalar; (scalar, aux) with has_aux=True. It must be a pure
        function: what it needs and what is traced goes through `hyper`.
    params: tree of real float arrays. optimizer: see `revgrad.optimizers`.
    batches: a sequence, gone through again and again, or a pure function of the step (then `steps`
        is required). All randomness must come from the step: see `revgrad.data.minibatches`.
    hyper: what the loss's second argument is: any tree; leaves may be `per_step`. Floats are cast
        to the params' dtype.
    adjoint: `Reversible()`, `Stored()`, `Unrolled()`; "auto" is Reversible where it can be.
    state: initial velocity, moments and "t" (steps taken before), as an earlier run returned.
    watch(step, params) -> scalar, before each step; collected in report.watched, and returned as a
        differentiable vector with return_watched=True.
    callback(step, metrics): after each step; metrics has "loss" and "aux"; raising `StopRun` ends
        the run there. report: a `Report` to be filled. arithmetic: a `FixedPoint`.
    Returns trained, or a tuple (trained[, state][, watched]) as asked.

    Differentiable in params, state, every optimizer hyperparameter and hyper. The integers of a
    run, its heads and words are the same whether it is traced or not.
    Raises: TypeError, ValueError for what cannot work; ClosureError; RatioRefused; FixedOverflow;
    on the way back NotReversed. Source: Maclaurin et al. 2015.
    """
    report = Report() if report is None else report
    adjoint = _choose(adjoint, optimizer, report)
    batch, steps = _check_batches(batches, steps)
    leaves, tree = flatten_floats(params, "params")
    layout = Layout([plain(x) for x in leaves], tree)
    warm, first_t = _check_state(state, optimizer, tree, layout)
    spreads, optimizer_values = _spread(optimizer, steps, layout)
    hyper_leaves, hyper_every, hyper_tree = _take_hyper(hyper, steps, layout)
    run = Run(
        loss=loss, has_aux=has_aux, optimizer=_without_values(optimizer), batch=batch, steps=steps,
        first_t=first_t, layout=layout, spreads=spreads, hyper_tree=hyper_tree,
        hyper_every=hyper_every, watch=watch, callback=callback, report=report,
        arithmetic=arithmetic or FixedPoint(),
    )  # fmt: skip
    values = Values(leaves, warm, optimizer_values, hyper_leaves)
    _probe(run, values)
    if isinstance(adjoint, Unrolled):
        trained, variables, watched = unroll(run, values)
    else:
        flat, treedef = optree.tree_flatten(_as_tree(values))
        out = _train(*flat, run=run, adjoint=adjoint, treedef=treedef)
        trained, variables, watched = optree.tree_unflatten(_out_tree(run), out)
    return _answer(run, trained, variables, watched, return_state, return_watched)


def _answer(run, trained, variables, watched, return_state, return_watched):
    def like_params(leaves):
        return optree.tree_unflatten(run.layout.tree, leaves)

    out = [like_params(trained)]
    if return_state:
        state = {name: like_params(leaves) for name, leaves in variables.items()}
        out.append({**state, "t": run.first_t + run.report.steps})
    if return_watched:
        out.append(watched)
    return out[0] if len(out) == 1 else tuple(out)


# What came.


def _choose(adjoint, optimizer, report):
    if not isinstance(optimizer, Optimizer):
        raise TypeError(
            f"optimizer is a {type(optimizer).__name__}; pass one of revgrad's, e.g. Momentum(0.1)."
        )
    if isinstance(adjoint, str) and adjoint == "auto":
        adjoint = Reversible() if optimizer.reversible else Stored()
        why = "is" if optimizer.reversible else "is not"
        report.adjoint = f"{adjoint!r}, chosen because {optimizer.name} {why} reversible"
    else:
        report.adjoint = repr(adjoint)
    if not hasattr(adjoint, "check"):
        raise TypeError(
            f'adjoint={adjoint!r}; pass "auto", Reversible(), Stored() or Unrolled() (an instance).'
        )
    adjoint.check(optimizer)
    return adjoint


def _check_batches(batches, steps):
    """(step -> batch, steps)."""
    if steps is not None and (isinstance(steps, bool) or steps != int(steps) or steps < 0):
        raise ValueError(f"steps={steps!r}; a whole number, 0 or more, is wanted.")
    if hasattr(batches, "__next__"):
        raise TypeError(
            f"batches is a {type(batches).__name__}, which cannot be met again in reverse; pass a "
            "list or a function of the step index."
        )
    if callable(batches):
        if steps is None:
            raise ValueError("batches is a function of the step, so train needs steps=.")
        return batches, int(steps)
    if not (hasattr(batches, "__len__") and hasattr(batches, "__getitem__")) or isinstance(
        batches, dict
    ):
        raise TypeError(
            f"batches is a {type(batches).__name__}; pass a sequence of batches, or a function of "
            "the step index with steps=."
        )
    steps = len(batches) if steps is None else int(steps)
    if steps and not len(batches):
        raise ValueError(f"batches is empty, but {steps} steps were asked for.")
    return (lambda t: batches[t % len(batches)]), steps


def _check_state(state, optimizer, tree, layout):
    state = dict(state or {})
    first_t = state.pop("t", 0)
    if unknown := state.keys() - set(optimizer.variables):
        raise ValueError(
            f"state has {sorted(unknown)}; {optimizer.name} keeps {sorted(optimizer.variables)}."
        )
    warm = {}
    for name, value in state.items():
        warm[name], found = flatten_floats(value, f"state[{name!r}]")
        shapes = [np.shape(plain(x)) for x in warm[name]]
        if found != tree or shapes != layout.shapes:
            raise ValueError(f"state[{name!r}] is not a tree like the params, leaf for leaf.")
    return warm, int(first_t)


def _spread(optimizer, steps, layout):
    spreads, values = {}, {}
    for name, tree in optimizer.hyper.items():
        where = f"{optimizer.name}({name}=...)"
        tree = resolve(tree, steps)
        _refuse_other_than_floats(tree, where)
        spreads[name], values[name] = Spread.of(where, tree, layout)
        values[name] = [float(v) if isinstance(v, int) else v for v in values[name]]
    return spreads, values


def _refuse_other_than_floats(tree, where):
    bare = optree.tree_map(lambda x: x.values if is_per_step(x) else x, tree, is_leaf=is_per_step)
    flatten_floats(optree.tree_map(lambda x: float(x) if type(x) is int else x, bare), where)


def _take_hyper(hyper, steps, layout):
    """(float leaves, each one's `every` or None, function that puts the tree together again)."""
    hyper = resolve(hyper, steps)
    leaves, tree = optree.tree_flatten(hyper, is_leaf=is_per_step)
    every = [x.every if is_per_step(x) else None for x in leaves]
    values = [x.values if is_per_step(x) else x for x in leaves]
    floats = [i for i, v in enumerate(values) if _is_float(v)]
    kind = layout.dtypes[0] if len(set(layout.dtypes)) == 1 else None
    taken = [values[i] if kind is None else _cast_strong(values[i], kind) for i in floats]
    for i, k in enumerate(every):
        if k is not None and i not in floats:
            raise TypeError("per_step in hyper must hold floats; compute integers from the batch.")

    def put_together(now):
        rest = list(values)
        for i, v in zip(floats, now, strict=True):
            rest[i] = v
        return optree.tree_unflatten(tree, rest)

    return taken, tuple(every[i] for i in floats), put_together


def _is_float(x):
    return (
        getattr(
            getattr(plain(x), "dtype", None), "kind", "f" if isinstance(plain(x), float) else ""
        )
        == "f"
    )


def _cast_strong(x, dtype):
    """Arrays and NumPy scalars to dtype; Python floats are weak and stay."""
    return cast(x, dtype) if hasattr(plain(x), "dtype") else x


def _without_values(optimizer):
    return replace(optimizer, **dict.fromkeys(optimizer.hyper))


def _probe(run, values):
    """One look at the loss: what it returns, and whether it closes over a traced value."""
    params = optree.tree_unflatten(run.layout.tree, [plain(x) for x in values.params])
    if run.watch is not None and isinstance(run.watch(0, params), Box):
        raise ClosureError(CLOSURE)
    if not run.steps:
        return
    now = [
        plain(x) if e is None else plain(x)[0]
        for x, e in zip(values.hyper, run.hyper_every, strict=True)
    ]
    out = run.loss(params, run.hyper_tree(now), run.batch(0))
    if run.has_aux and not (isinstance(out, tuple) and len(out) == 2):
        raise TypeError("has_aux=True needs a loss that returns (scalar, aux).")
    out = out[0] if run.has_aux else out
    if isinstance(out, Box):
        raise ClosureError(CLOSURE)
    check_scalar(out, "the loss")


# The primitive.


def _as_tree(values):
    return [values.params, values.warm, values.optimizer, values.hyper]


def _out_tree(run):
    parts = len(run.layout.shapes)
    leaves = [0] * parts
    return optree.tree_structure((leaves, dict.fromkeys(run.optimizer.variables, leaves), 0))


def _forwards(flat, run, adjoint, treedef, *, remember):
    values = Values(*optree.tree_unflatten(treedef, flat))
    with blas.pinned() as run.report.blas_threads:
        done = forwards(adjoint, run, values, remember=remember)
    _, _, state, _, watched = done
    leaves = {name: run.layout.leaves(x) for name, x in state.variables.items()}
    out = leaves.pop("params"), leaves, np.array(watched)
    return optree.tree_leaves(out), done


def _run(*flat, run, adjoint, treedef):
    return tuple(_forwards(flat, run, adjoint, treedef, remember=False)[0])


def _stage(wanted, flat, static):
    if any(isinstance(x, Box) for x in flat):
        raise MissingRule(
            f"{static['adjoint']!r} has first derivatives only, and train met a second trace (a "
            "grad of a grad, or a hessian); pass adjoint=Unrolled()."
        )
    run = static["run"]
    out, done = _forwards(flat, **static, remember=True)

    def pullback(cts):
        program, memory, state, steps, watched = done
        variables, ct_watched = _read_cotangents(run, program, cts, watched)
        with blas.pinned(run.report.blas_threads):
            found = backwards(program, memory, state, steps, variables, ct_watched)
        leaves = optree.tree_leaves(_cotangent_tree(run, program, found))
        return [cast(np.asarray(leaves[i])[()], dtype_of(flat[i])) for i in wanted]

    return tuple(out), pullback


def _read_cotangents(run, program, cts, watched):
    """(flat cotangent per variable, cotangent of watched or None) from those of the outputs."""
    flat = [np.zeros(shape) for shape in run.layout.shapes]
    shapes = [*flat * (1 + len(run.optimizer.variables)), np.zeros(len(watched))]
    if any(isinstance(ct, Box) for ct in cts):
        raise MissingRule(
            "the pull-back of train met a traced cotangent (a second derivative); pass "
            "adjoint=Unrolled()."
        )
    cts = [z if ct is None else ct for ct, z in zip(cts, shapes, strict=True)]
    ct_params, ct_state, ct_watched = optree.tree_unflatten(_out_tree(run), cts)
    variables = {"params": run.layout.join(ct_params)}
    variables |= {name: run.layout.join(leaves) for name, leaves in ct_state.items()}
    return variables, ct_watched if run.watch is not None else None


def _cotangent_tree(run, program, found):
    def leaves(name):
        return run.layout.split(found.variables[name])

    warm = {name: leaves(name) for name in program.values.warm}
    return [leaves("params"), warm, found.optimizer, found.hyper]


def _no_push(tangents, **_):
    raise MissingRule(
        "forward mode through train with Reversible() or Stored(); pass adjoint=Unrolled()."
    )


_train = Primitive("train", _run, _no_push, stage=_stage, many=True)
