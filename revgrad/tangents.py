"""Training with tangents that ride along: the way of `Forward`.

Each statement, and the gradient, is pushed forward through for all columns. Nothing is stored, and
nothing undone. Tangents are rows of one block per variable, (columns, weights), in the dtype of the
params: float32 where the gradient is. Those of the gradient are used up at once, a few columns at a
time, which then are in cache for the statements.
"""

from time import perf_counter

import numpy as np

from revgrad._ext import homes
from revgrad.errors import NotFinite
from revgrad.lanes import IN_CACHE, WIDTHS
from revgrad.memories import every_so_often
from revgrad.program import Program
from revgrad.resume import Log
from revgrad.statements import global_norm
from revgrad.stepping import Statements
from revgrad.sweeps import Survey, stops, watch_slope, watched_plainly


def ride_along(adjoint, run, values, columns):
    """Train; returns (state, watched values, tangents of variables, tangents of watched, log).

    Tangents of variables: (columns, weights) per variable; of watched: (columns, steps).
    log: that of the save file, or None.
    """
    began = perf_counter()
    program = Program(run, values, exact=adjoint.exact, keep=adjoint.keep)
    state, first = program.start()
    ride, survey = Ride(adjoint, program, columns), Survey(run, program)
    watched, steps, begin, memory = [], run.steps, 0, adjoint.remember(program)
    log = Log(program, adjoint, True, columns) if run.saving and run.steps else None
    if log and (found := log.load(state)):
        facts, state, watched = found
        ride.take_up(log.extra)
        survey.largest |= facts["largest"]
        steps, first = facts["steps"], None
        begin = run.steps if facts["ended"] else facts["t"]
    for t in range(begin, run.steps):
        if t % every_so_often(run.steps) == 0 or run.callback is not None or log:
            program.settle(state)
        survey.look(t, state)
        if log and log.due(t):
            now = t, steps, state, memory, watched, survey.largest
            first = log.forwards(*now, first, ride.arrays())
        if run.watch is not None:
            watched.append(ride.watch(t, state))
        loss, aux = ride.step(state, t, first)
        first = None
        if run.callback is not None and stops(run, t, loss, aux):
            steps = t + 1
            break
    program.settle(state)
    if log and begin < run.steps:
        log.forwards(steps, steps, state, memory, watched, survey.largest, None, ride.arrays())
    run.outcome["steps"] = steps
    survey.report(program, state, steps)
    run.report.bytes_kept = ride.nbytes
    run.report.watched, run.report.seconds = list(watched), perf_counter() - began
    ride.average()
    return state, np.array(watched), ride.tangents, ride.slopes[:, : len(watched)], log


class Ride:
    """The tangents of one run, and a step of it with them."""

    def __init__(self, adjoint, program, columns):
        self.adjoint, self.program, self.run, self.columns = adjoint, program, program.run, columns
        run, total = program.run, len(columns.first)
        self.dtype = run.layout.dtype
        self.tangents = {
            name: _flat_rows(run.layout_of(name), leaves, total, self.dtype)
            for name, leaves in [("params", columns.params)]
            + [(name, columns.warm.get(name)) for name in run.optimizer.variables]
        }
        self.moving = tuple(k for k, x in enumerate(columns.hyper) if x is not None)
        fit = IN_CACHE // max(1, self.dtype.itemsize * run.layout.size)
        self.at_once = max([k for k in WIDTHS if k <= fit], default=1)
        shape = min(total, self.at_once), run.layout.size
        self.of_g = homes.empty_beside(shape, self.dtype, run.layout.like)
        self.slopes = np.zeros((total, run.steps if run.watch_moves else 0))
        self.used = np.zeros(run.steps, bool)
        self.statements = Statements(adjoint, program, columns)

    @property
    def nbytes(self):
        """What is held for all columns."""
        return self.of_g.nbytes + sum(x.nbytes for x in self.tangents.values())

    def watch(self, t, state):
        """The watched value at the start of step t; its tangents are kept, where they are asked."""
        leaves = self.run.layout.leaves(state.variables["params"])
        if self.run.watch_moves:
            _, slope = watch_slope(self.run, t, leaves)
            found = along(self.tangents["params"], self.run.layout.join(slope))
            self.slopes[:, t] = homes.home(found)
        return watched_plainly(self.run, t, leaves)

    def step(self, state, t, first):
        """Take step t, with the tangents; returns (loss, aux)."""
        now = self.columns.count(t)
        self.used[t] = not self.adjoint.skips(t)
        if not (now and self.used[t]):
            return self.program.advance(state, t, first)
        program = self.program
        with np.errstate(over="ignore", invalid="ignore"):  # what comes of it is looked at
            leaves = program.decode(state.variables["params"])
            linear = program.gradient.with_push(leaves, t, self.moving, len(self.columns.first))
            answer, push = linear
            follow = self.statements.take(state, t, answer, now)
            for lo in range(0, now, self.at_once):
                part = slice(lo, min(now, lo + self.at_once))
                rows = {name: x[part] for name, x in self.tangents.items()}
                follow(rows, self._through_gradient(leaves, t, answer[1], push, part), part)
                self._check_finite(state, rows, t)
        return answer[0]

    def _through_gradient(self, leaves, t, g, push, part):
        """Tangents of what is of the loss at step t, rows by name; leaves: at its start."""
        adjoint, rows = self.adjoint, self.tangents["params"][part]
        of_hyper = self.columns.hyper_at(t, self.run.hyper_every, part)
        of_g = self.of_g[: len(rows)]
        if adjoint.first_order and not self.moving:
            of_g[...] = 0
        else:
            directions = self.statements.directions(rows, g, t)
            push(np.zeros_like(rows) if adjoint.first_order else directions, of_hyper, of_g)
        if adjoint.clip_products is not None:
            np.clip(of_g, -adjoint.clip_products, adjoint.clip_products, of_g)
        of_loss = {"g": of_g}
        if self.run.aux_layout is not None:
            of_aux = self.program.gradient.push_aux(leaves, t, rows, of_hyper)
            of_loss["aux"] = of_aux.astype(self.dtype, copy=False)
        if "g_norm" in self.run.optimizer.reads:
            g = g.astype(np.float64)
            norm = global_norm([g])
            of_norm = along(of_g, g / norm if norm else 0 * g)
            of_loss["g_norm"] = of_norm.astype(self.dtype, copy=False)
        return of_loss

    def arrays(self):
        """All that changes but the state, float64 by name, for a save file."""
        wide = {name: x.astype(np.float64, copy=False) for name, x in self.tangents.items()}
        return wide | {".watched": self.slopes, ".used": self.used.astype(np.float64)}

    def take_up(self, arrays):
        """Go on with what `arrays` gave, flat."""
        for name, x in self.tangents.items():
            x[...] = homes.beside(arrays[name].reshape(x.shape), x)
        self.slopes[...] = homes.home(arrays[".watched"]).reshape(self.slopes.shape)
        self.used[...] = homes.home(arrays[".used"])

    def average(self):
        """Divide each column by how many of the steps taken shared its value, if that is wanted."""
        if not self.adjoint.average:
            return
        before = np.concatenate([[0], np.cumsum(self.used)])
        lo = np.minimum(self.columns.first, len(self.used))
        hi = np.minimum(lo + self.columns.shared, len(self.used))
        many = np.maximum(before[hi] - before[lo], 1)[:, None]
        for x in (*self.tangents.values(), self.slopes):
            x /= homes.beside(many, x)

    def _check_finite(self, state, tangents, t):
        for name, rows in tangents.items():
            flat = rows.ravel()
            if not np.isfinite(flat @ flat) and not np.all(np.isfinite(flat)):
                self.program.settle(state)  # what is wrong with the state is said first
                bad = int(np.argmin(np.all(np.isfinite(rows), 0)))
                leaf = self.run.layout_of(name).name(bad)
                raise NotFinite(
                    f"step {t}: a tangent of {name} of {leaf} is not finite. It grew "
                    "without bound (use a smaller learning rate or fewer steps, or clip the "
                    "products: Forward(clip_products=...)), or a function has no slope where "
                    "training met it.",
                    step=t,
                )


def along(rows, ct):
    """The products of each row with a cotangent, summed in float64."""
    found = [row.astype(np.float64, copy=False) @ ct for row in rows]
    return np.stack(found) if found else np.zeros(0)


def _flat_rows(layout, leaves, total, dtype):
    """(total, weights) from a list of leaves' tangents, of which any may be missing."""
    rows = homes.zeros_beside((total, layout.size), dtype, layout.like)
    for lo, hi, x in zip(layout.ends, layout.ends[1:], leaves or (), strict=False):
        if x is not None:
            rows[:, lo:hi] = homes.beside(x, rows).reshape(total, hi - lo)
    return rows
