"""The door: check what came, take it apart, and be a primitive of the tape."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from math import prod
from types import NoneType

import numpy as np
import optree

from revgrad import blas
from revgrad.adjoints import Forward, Implicit, Unrolled, bytes_of
from revgrad.arrays import plain
from revgrad.choice import choose
from revgrad.errors import MissingRule
from revgrad.gradient import split_aux
from revgrad.hyper import HyperTree, Spread, is_per_step, resolve, whole_number
from revgrad.implicit import pull_optimum
from revgrad.record import Record
from revgrad.report import Report
from revgrad.resume import Saving
from revgrad.rules.row import cast, dtype_of
from revgrad.state import Cotangents, FixedPoint, Layout, Run, Values
from revgrad.statements import Optimizer
from revgrad.sweeps import backwards, forwards
from revgrad.tangents import Columns, ride_along, scatter, units
from revgrad.tape import Box, Primitive, Push
from revgrad.transforms import flatten_floats, flatten_like, in_kind
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
        For Reversible() and Checkpointed(k), which keeps no snapshots there and makes them anew.
    Returns trained, or a tuple (trained[, state][, watched]) as asked.

    Differentiable in params, state, every optimizer hyperparameter and hyper. The integers of a
    run, its heads and words are the same whether it is traced or not.
    Raises: TypeError, ValueError for what cannot work; ClosureError; RatioRefused; FixedOverflow;
    on the way back NotReversed. Source: Maclaurin et al. 2015.
    """
    report = Report() if report is None else report.clear()
    _check_kinds(adjoint, optimizer)
    arithmetic = _check_arithmetic(arithmetic, optimizer)
    batch, steps = _check_batches(batches, steps)
    leaves, layout = _check_params(params)
    hyper_leaves, hyper_every, hyper_tree = _take_hyper(hyper, steps, layout)
    layouts = {"params": layout}
    if "aux" in optimizer.reads:
        now = hyper_tree(_at_first_step(hyper_leaves, hyper_every))
        layouts["aux"] = _aux_layout(optimizer, loss, has_aux, _plain(params), now, batch, steps)
    warm, first_t = _check_state(state, optimizer, layouts)
    spreads, optimizer_values = _spread(optimizer, steps, layouts)
    first = lambda name, k: spreads[name].at_leaf(optimizer_values[name], k, 0)
    warm = optimizer.start(leaves, first) | warm
    optimizer.refuse_closures()
    values = Values(leaves, warm, optimizer_values, hyper_leaves)
    run = Run(
        loss=loss, has_aux=has_aux, optimizer=_without_values(optimizer), batch=batch, steps=steps,
        first_t=first_t, layout=layout, spreads=spreads, hyper_tree=hyper_tree,
        hyper_every=hyper_every, watch=watch if return_watched else _untraced(watch),
        watch_moves=return_watched,
        callback=callback, report=report, arithmetic=arithmetic, aux_layout=layouts.get("aux"),
        saving=_check_save(save, save_every), outcome={"warm": [*warm]},
    )  # fmt: skip
    adjoint = _chosen(adjoint, run, values)
    adjoint.check(optimizer)
    if save is not None and not adjoint.saves:
        raise ValueError(
            f"save={str(save)!r} with {adjoint!r}: a run can be taken up with Reversible() and "
            "Checkpointed(k) alone."
        )
    if isinstance(adjoint, Unrolled):
        trained, variables, watched = unroll(run, values)
    else:
        flat, treedef = optree.tree_flatten(_as_tree(values))
        _refuse_pairs(adjoint, run, values, flat)
        static = {"run": run, "adjoint": adjoint, "treedef": treedef}
        out = (_push_forward if _youngest_push(flat) else _train)(*flat, **static)
        trained, variables, watched = optree.tree_unflatten(_out_tree(run), out)
    return _answer(run, leaves, trained, variables, watched, return_state, return_watched)


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


def _check_save(save, every):
    if save is None:
        if every is not None:
            raise ValueError(f"save_every={every!r} without save=; pass a path to save to.")
        return None
    folder = os.path.dirname(os.path.abspath(save))
    if not os.path.isdir(folder):
        raise FileNotFoundError(f"save={str(save)!r}: there is no folder {folder}; make it first.")
    return Saving(save, every if every is None else whole_number(every, "save_every", 1))


def _check_batches(batches, steps):
    """(step -> batch, steps)."""
    steps = steps if steps is None else whole_number(steps, "steps", 0)
    if hasattr(batches, "__next__"):
        raise TypeError(
            f"batches is a {type(batches).__name__}, which cannot be met again in reverse; pass a "
            "list or a function of the step index."
        )
    if callable(batches):
        if steps is None:
            raise ValueError("batches is a function of the step, so train needs steps=.")
        return batches, steps
    sequence = hasattr(batches, "__len__") and hasattr(batches, "__getitem__")
    if not sequence or isinstance(batches, (dict, str)):
        raise TypeError(
            f"batches is a {type(batches).__name__}; pass a sequence of batches, or a function of "
            "the step index with steps=."
        )
    if not len(batches) and steps != 0:
        asked = "" if steps is None else f" and {steps} steps were asked for"
        raise ValueError(f"batches is empty{asked}; pass some, or steps=0 if none are meant.")
    return (lambda t: batches[t % len(batches)]), len(batches) if steps is None else steps


def _check_params(params):
    """(leaves, layout)."""
    leaves, tree = flatten_floats(params, "params")
    layout = Layout([plain(x) for x in leaves], tree)
    for path, dtype in zip(layout.paths, layout.dtypes, strict=True):
        if dtype not in (np.float32, np.float64):
            raise TypeError(
                f"params{path} is {dtype}; training takes float32 and float64, so pass "
                "x.astype(np.float32)."
            )
    if not layout.size:
        raise ValueError("params holds no numbers; pass a tree with an array in it.")
    return leaves, layout


def _aux_layout(optimizer, loss, has_aux, params, hyper, batch, steps):
    """The layout of what the loss returns beside its value."""
    if not has_aux or not steps:
        what = "has_aux=True, and return (scalar, aux)" if steps else "steps=1 or more"
        raise TypeError(f"{optimizer.name} reads the aux of the loss; pass {what}.")
    _, aux = split_aux(loss(params, hyper, batch(0)), has_aux)
    leaves, tree = flatten_floats(aux, "the loss's aux")
    layout = Layout([plain(x) for x in leaves], tree, of="aux")
    for path, dtype in zip(layout.paths, layout.dtypes, strict=True):
        if dtype not in (np.float32, np.float64):
            raise TypeError(f"aux{path} is {dtype}; statements read float32 and float64.")
    return layout


def _layout_of(name, optimizer, layouts):
    return layouts["aux" if name in optimizer.aux_names else "params"]


def _check_state(state, optimizer, layouts):
    """(state variable -> leaves, steps taken before)."""
    if not isinstance(state, (dict, NoneType)):
        raise TypeError(
            f"state is a {type(state).__name__}; pass what train(..., return_state=True) returned, "
            f"or a dict of some of {[*optimizer.variables, 't']}."
        )
    state = dict(state or {})
    first_t = whole_number(state.pop("t", 0), "state['t']", 0)
    if unknown := state.keys() - set(optimizer.variables):
        raise ValueError(
            f"state has {sorted(unknown)}; {optimizer.name} keeps {sorted(optimizer.variables)}."
        )
    warm = {}
    for name, value in state.items():
        what = f"state[{name!r}]"
        layout = _layout_of(name, optimizer, layouts)
        warm[name], _ = flatten_floats(value, what)
        flatten_like(value, layout.tree, what, f"the tree of the {layout.of}")
        shapes = [np.shape(plain(x)) for x in warm[name]]
        for path, came, wanted in zip(layout.paths, shapes, layout.shapes, strict=True):
            if came != wanted:
                like = f"{layout.of}{path} has {wanted}"
                raise ValueError(f"{what}{path} has shape {came}, but {like}.")
    return warm, first_t


def _spread(optimizer, steps, layouts):
    spreads, values = {}, {}
    for name, tree in optimizer.hyper.items():
        where = f"{optimizer.name}({name}=...)"
        tree = resolve(tree, steps)
        _refuse_other_than_floats(tree, where)
        layout = _layout_of(name, optimizer, layouts)
        spreads[name], values[name] = Spread.of(where, tree, layout)
        if name in optimizer.shared and not spreads[name].scalar:
            raise TypeError(
                f"{where} is read by statements about the params and by ones about aux, which have "
                "trees of their own; give one number, or two hyperparameters."
            )
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

    return taken, tuple(every[i] for i in floats), HyperTree(tree, values, floats)


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
    return optimizer.with_hyper(dict.fromkeys(optimizer.hyper, 0.0))


def _untraced(watch):
    """watch, of plain params: nobody asked for its derivative, and it need not have one."""
    return watch and (lambda t, params: watch(t, optree.tree_map(plain, params)))


def _plain(tree):
    return optree.tree_map(plain, tree)


def _at_first_step(leaves, every):
    pairs = zip(leaves, every, strict=True)
    return [plain(x) if e is None else plain(x)[0] for x, e in pairs]


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
    if boxes and all(isinstance(x.trace, Record) for x in boxes):
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
    return [cast(np.asarray(leaves[i])[()], dtype_of(flat[i])) for i in wanted]


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
    tangents, first, order = units(flat, wanted, _every(run))
    values = Values(*optree.tree_unflatten(treedef, flat))
    columns = Columns.of(optree.tree_unflatten(treedef, tangents), values, first)
    with blas.pinned() as threads:
        run.report.blas_threads = threads
        state, watched, rows, slopes = ride_along(adjoint, run, values, columns)

    def pullback(cts):
        variables, ct_watched = _read_cotangents(run, cts, watched)
        found = sum(rows[name] @ ct for name, ct in variables.items())
        if ct_watched is not None:
            found = found + slopes @ ct_watched
        parts = scatter(found, order, flat, wanted)
        return [cast(x[()], dtype_of(flat[i])) for x, i in zip(parts, wanted, strict=True)]

    return _leaves_out(run, state, watched), pullback


def _every(run):
    """Per flat leaf, the PerStep's `every` or None."""
    optimizer = {name: list(spread.every) for name, spread in run.spreads.items()}
    warm = {name: [None] * len(run.layout_of(name).shapes) for name in run.outcome["warm"]}
    tree = [[None] * len(run.layout.shapes), warm, optimizer]
    return optree.tree_leaves([*tree, list(run.hyper_every)], none_is_leaf=True)


def _check_room(adjoint, run, total):
    each = 8 * run.layout.size * (1 + len(run.optimizer.variables)) + 8 * total
    if each * total > bytes_of(adjoint.memory):
        raise ValueError(
            f"{adjoint!r} would carry {total} tangents, one per traced number, of {each} bytes "
            f"each: {each * total / 1e6:,.0f} MB. Trace fewer numbers, pass Reversible() or "
            "Checkpointed(20), whose cost does not depend on how many there are, or allow it: "
            "Forward(memory=...)."
        )


def _youngest_push(flat):
    """The Push trace that handles this call, or None."""
    traces = [x.trace for x in flat if isinstance(x, Box)]
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
    rows = [None if t is None else np.asarray(t, np.float64)[None] for t in tangents]
    columns = Columns.of(optree.tree_unflatten(treedef, rows), values, np.zeros(1, int))
    with blas.pinned() as threads:
        run.report.blas_threads = threads
        state, watched, found, slopes = ride_along(adjoint, run, values, columns)
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
