"""Training with tangents that ride along: the way of `Forward`.

A column is a direction in what a run starts from; each statement, and the gradient, is pushed
forward through for all columns. Nothing is stored, and nothing undone.
"""

from dataclasses import dataclass
from math import prod
from time import perf_counter
from typing import Any

import numpy as np

from revgrad.errors import NotFinite
from revgrad.program import Program
from revgrad.rules.row import shape_of
from revgrad.statements import Scale, global_norm
from revgrad.sweeps import Survey, stops, watch_slope, watched_plainly
from revgrad.transforms import jvp


@dataclass(slots=True)
class Columns:
    """Tangents of a run's values: per leaf None (zero) or an array with a leading axis of columns.

    first: the step at which each column begins to matter, ascending.
    """

    params: list
    warm: dict
    optimizer: dict
    hyper: list
    first: Any

    @classmethod
    def of(cls, tree, values, first):
        """From a tree of tangents like [params, warm, optimizer, hyper]."""
        params, warm, optimizer, hyper = tree
        filled = {}
        for name, found in optimizer.items():
            if any(x is not None for x in found):
                zeros = [np.zeros((len(first), *shape_of(v))) for v in values.optimizer[name]]
                filled[name] = [z if x is None else x for x, z in zip(found, zeros, strict=True)]
        return cls(params, warm, filled, hyper, first)

    def count(self, t):
        """How many columns matter at step t: the first ones."""
        return int(np.searchsorted(self.first, t, side="right"))


def ride_along(adjoint, run, values, columns):
    """Train; returns (state, watched values, tangents of variables, tangents of watched).

    Tangents of variables: (columns, weights) per variable; of watched: (columns, steps).
    """
    began, total = perf_counter(), len(columns.first)
    program = Program(run, values, exact=adjoint.exact, keep=adjoint.keep)
    state, first = program.start()
    tangents = {
        name: _flat_rows(run.layout_of(name), leaves, total)
        for name, leaves in [("params", columns.params)]
        + [(name, columns.warm.get(name)) for name in run.optimizer.variables]
    }
    watched, slopes, survey, steps = [], [], Survey(run, program), run.steps
    for t in range(run.steps):
        survey.look(t, state)
        leaves = run.layout.leaves(state.variables["params"])
        if run.watch is not None:
            watched.append(watched_plainly(run, t, leaves))
            if run.watch_moves:
                slopes.append(_watch_tangents(run, t, leaves, tangents["params"]))
        now = columns.count(t)
        rows = tangents["params"][:now]
        with np.errstate(over="ignore", invalid="ignore"):  # what comes of it is looked at
            of_loss = _loss_tangents(program, leaves, t, rows, columns, now)
        (loss, aux), points, g = program.advance_pointwise(state, t, first)
        first = None
        with np.errstate(over="ignore", invalid="ignore"):
            if "g_norm" in run.optimizer.reads:
                norm = global_norm([g])
                of_loss["g_norm"] = (of_loss["g"] @ (g / norm if norm else 0 * g))[:, None]
            _push(program, points, t, tangents, columns, of_loss, now)
        _check_finite(run, tangents, t)
        if run.callback is not None and stops(run, t, loss, aux):
            steps = t + 1
            break
    run.outcome["steps"] = steps
    survey.report(program, state, steps)
    run.report.bytes_kept = sum(x.nbytes for x in tangents.values())
    run.report.watched, run.report.seconds = list(watched), perf_counter() - began
    rows = np.stack(slopes, 1) if slopes else np.zeros((total, len(watched)))
    return state, np.array(watched), tangents, rows


def units(leaves, wanted, every):
    """(tangents, first steps): a column for each entry of the wanted flat leaves.

    every: per leaf, the PerStep's `every` or None. Columns are in the order in which they begin to
    matter; `scatter` puts what belongs to them in the order of the leaves.
    """
    sizes = [prod(shape_of(leaves[i])) for i in wanted]
    first = [
        np.zeros(size, int)
        if every[i] is None
        else np.arange(size) // max(1, prod(shape_of(leaves[i])[1:])) * every[i]
        for i, size in zip(wanted, sizes, strict=True)
    ]
    first = np.concatenate([*first, np.zeros(0, int)])
    order = np.argsort(first, kind="stable")
    tangents, lo = [None] * len(leaves), 0
    for i, size in zip(wanted, sizes, strict=True):
        rows = (order[:, None] == lo + np.arange(size)).astype(float)
        tangents[i] = rows.reshape(len(order), *shape_of(leaves[i]))
        lo += size
    return tangents, first[order], order


def scatter(found, order, leaves, wanted):
    """Numbers per column, as arrays like the wanted leaves."""
    flat, lo, out = np.empty(len(order)), 0, []
    flat[order] = found
    for i in wanted:
        size = prod(shape_of(leaves[i]))
        out.append(flat[lo : lo + size].reshape(shape_of(leaves[i])))
        lo += size
    return out


def _flat_rows(layout, leaves, total):
    """(total, weights) from a list of leaves' tangents, of which any may be missing."""
    rows = np.zeros((total, layout.size))
    for lo, hi, x in zip(layout.ends, layout.ends[1:], leaves or (), strict=False):
        if x is not None:
            rows[:, lo:hi] = np.reshape(x, (total, hi - lo))
    return rows


def _watch_tangents(run, t, leaves, rows):
    _, slope = watch_slope(run, t, leaves)
    return rows @ run.layout.join(slope)


def _loss_tangents(program, leaves, t, rows, columns, now):
    """Tangents of what statements read of the loss, by name, (columns, entries) each.

    That of g is a product with the loss's second derivatives.
    """
    every = program.run.hyper_every
    hyper = [
        None if x is None else x[:now] if e is None else x[:now, t // e]
        for x, e in zip(columns.hyper, every, strict=True)
    ]
    found = {"g": program.gradient.push(leaves, t, rows, hyper)}
    if program.run.aux_layout is not None:
        found["aux"] = program.gradient.push_aux(leaves, t, rows, hyper)
    return found


def _push(program, points, t, tangents, columns, of_loss, now):
    """Push the first `now` columns through the statements of a step, in place."""
    run, known = program.run, dict(of_loss)

    def tangent(name):
        if name in tangents:
            return tangents[name][:now]
        if name not in known:
            values = columns.optimizer.get(name)
            known[name] = None
            if values is not None:
                known[name] = _spread(run.spreads[name], values, t, run.layout_of(name), now)
        return known[name]

    for point in points:
        s, target = point.statement, tangents[point.statement.target][:now]
        if isinstance(s, Scale):
            t_factor = None
            if not s.literal:
                named = isinstance(s.by, str)
                t_factor = tangent(s.by) if named else _through(s.by, point, tangent)
            target *= point.factor
            if t_factor is not None:
                target += t_factor * point.before
        else:
            t_delta = _through(s.delta, point, tangent)
            if t_delta is not None:
                target += t_delta


def _spread(spread, values, t, layout, now):
    """Tangents of an optimizer hyperparameter at step t: (columns, 1) or (columns, weights)."""
    if spread.scalar:
        x, every = values[0][:now], spread.every[0]
        return np.reshape(x if every is None else x[:, t // every], (now, 1))
    rows = np.empty((now, layout.size))
    for j in range(now):
        rows[j] = spread.flat([x[j] for x in values], t, layout)
    return rows


def _through(function, point, tangent):
    """Tangents of a function of what a statement read, a row per column; None is zero."""
    reads = {name: tangent(name) for name in point.reads if name != "t"}
    moving = {name: x for name, x in reads.items() if x is not None}
    if not moving:
        return None
    at_rest = {name: x for name, x in point.reads.items() if name not in moving}
    there = {name: np.broadcast_to(point.reads[name], x.shape) for name, x in moving.items()}
    return jvp(lambda xs: function(**xs, **at_rest), (there,), (moving,))[1]


def _check_finite(run, tangents, t):
    for name, rows in tangents.items():
        with np.errstate(over="ignore", invalid="ignore"):
            total = np.sum(rows)
        if not np.isfinite(total) and not np.all(np.isfinite(rows)):
            bad = int(np.argmin(np.all(np.isfinite(rows), 0)))
            leaf = run.layout_of(name).name(bad)
            raise NotFinite(
                f"step {t}: a tangent of {name} of {leaf} is not finite. It grew "
                "without bound (use a smaller learning rate or fewer steps), or a function has no "
                "slope where training met it.",
                step=t,
            )
