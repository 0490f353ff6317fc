"""The two sweeps over a run: forwards, remembering, and backwards, pulling cotangents."""

from time import perf_counter

import numpy as np
import optree

from revgrad._ext import homes
from revgrad.arrays import plain
from revgrad.errors import ClosureError, NotFinite, StopRun
from revgrad.gradient import CLOSURE, own
from revgrad.memories import Nothing, every_so_often
from revgrad.noise import NoiseWatch
from revgrad.program import Program
from revgrad.resume import Log
from revgrad.state import Cotangents
from revgrad.tape import Box
from revgrad.transforms import value_and_grad

LOOKS = 8  # at about how many steps the largest number of a variable is looked for


def forwards(adjoint, run, values, *, remember):
    """Train; returns (program, memory, final state, steps taken, watched values, log).

    remember: whether a pull-back may follow. log: that of the save file, or None.
    """
    began, report = perf_counter(), run.report
    keep = adjoint.keep and remember
    program = Program(run, values, exact=adjoint.exact, keep=keep)
    state, first = program.start()
    memory = adjoint.remember(program) if remember else Nothing()
    watched, survey, steps, begin = [], Survey(run, program), run.steps, 0
    log = Log(program, adjoint, remember) if run.saving and run.steps else None
    if log and (found := log.load(state)):
        memory.before(0, state)
        facts, state, watched = found
        memory.take_up(facts)
        survey.largest |= facts["largest"]
        steps, first = facts["steps"], None
        begin = run.steps if facts["ended"] else facts["t"]
    for t in range(begin, run.steps):
        if t % every_so_often(run.steps) == 0 or run.callback is not None or log:
            program.settle(state)
        memory.before(t, state)
        survey.look(t, state)
        if log and log.due(t):
            first = log.forwards(t, steps, state, memory, watched, survey.largest, first)
        if run.watch is not None:
            leaves = run.layout.leaves(state.variables["params"])
            watched.append(watched_plainly(run, t, leaves))
        loss, aux = program.advance(state, t, first)
        first = None
        if run.callback is not None and stops(run, t, loss, aux):
            steps = t + 1
            break
    program.settle(state)
    if log and not remember:
        log.remove()
    elif log and begin < run.steps:
        log.forwards(steps, steps, state, memory, watched, survey.largest)
    run.outcome["steps"] = steps
    survey.report(program, state, steps)
    report.bytes_kept = memory.nbytes + keep * sum(b.nbytes for b in state.buffers.values())
    report.watched, report.seconds = list(watched), perf_counter() - began
    return program, memory, state, steps, watched, log


def stops(run, t, loss, aux, **more):
    """Tell the callback of a step, and what more there is; whether it ends the run."""
    metrics = {"loss": float(plain(loss)), **more}
    if run.has_aux:
        metrics["aux"] = optree.tree_map(plain, aux)
    try:
        run.callback(t, metrics)
    except StopRun:
        return True
    return False


def watched_plainly(run, t, leaves):
    """What `watch` makes of plain params: a float."""
    x = run.watch(t, run.layout.unflatten(leaves))
    if isinstance(x, Box):
        raise ClosureError(CLOSURE)
    if np.shape(x):
        raise TypeError(
            f"watch returned an array of shape {np.shape(x)}; one number per step is wanted, so "
            "use np.sum or np.mean."
        )
    return float(x)


def backwards(done, ct_variables, ct_watched=None):
    """Pull cotangents of the final variables back to the start; returns Cotangents.

    done: what `forwards` returned. Works on a copy of the state, so it may be called again.
    Raises: NotFinite, with step and leaf; what the memory raises.
    """
    program, memory, final, steps, watched, log = done
    began, run = perf_counter(), program.run
    cts = Cotangents(
        ct_variables,
        {k: [np.zeros(v.shape) for v in vs] for k, vs in program.schedule.values.items()},
        [homes.beside(np.zeros(np.shape(x)), x) for x in program.values.hyper],
    )
    run.report.growth, run.report.replays = [], 0
    end, state = steps, final.copy()
    if log:
        end, state, cts = _taken_up(log, program, end, state, cts, ct_watched)
    _check_finite(run, cts, end)
    if not run.report.growth:
        _note(run, cts, end)
    t = 0
    for t, leaves in memory.back(state, end, cts):
        if ct_watched is not None:
            _pull_watch(program, leaves, t, cts, ct_watched[t])
        _check_finite(run, cts, t)
        if t:
            _note(run, cts, t)
        if log and log.due(t):
            log.backwards(t, steps, final, state, leaves, memory, cts, watched)
    if t > 0:  # truncated: what came before counts as given
        cts.variables = {name: np.zeros_like(ct) for name, ct in cts.variables.items()}
    _check_sums(program, cts)
    if log:
        log.remove()
    run.report.seconds_back = perf_counter() - began
    return cts


def _note(run, cts, t):
    """Keep the norm of the cotangent of the params now and then."""
    if t % every_so_often(run.steps) == 0:
        with np.errstate(over="ignore"):
            norm = float(np.linalg.norm(cts.variables["params"]))
        run.report.growth.append((t, norm))


def _taken_up(log, program, steps, state, cts, ct_watched):
    """Where the way back begins: (step, state, cotangents), those of the save file if they fit."""
    pending, found = log.pending, log.begin_back(cts.variables, ct_watched)
    if found:
        report = program.run.report
        report.growth, report.replays = list(found.growth), found.replays
        state = state if found.state is None else found.state.copy()
        return found.t, state, found.cotangents.copy()
    if pending and pending.state is not None:  # other cotangents: to the end once more
        state = pending.state.copy()
        for t in range(pending.t, steps):
            program.advance(state, t)
    return steps, state, cts


def _pull_watch(program, leaves, t, cts, ct):
    _, g = watch_slope(program.run, t, own(leaves))
    cts.variables["params"] = cts.variables["params"] + ct * program.layout.join(g)


def watch_slope(run, t, leaves):
    """(watched value, its gradient with respect to the params' leaves)."""
    return value_and_grad(lambda leaves: run.watch(t, run.layout.unflatten(leaves)))(leaves)


def _check_finite(run, cts, t):
    """Stop where the cotangents of the state at the start of step t have left the floats."""
    for name, ct in cts.variables.items():
        with np.errstate(over="ignore"):
            if np.isfinite(ct @ ct) or np.all(np.isfinite(ct)):
                continue
        leaf = run.layout_of(name).name(int(np.argmin(np.isfinite(ct))))
        raise NotFinite(
            f"step {t}, on the way back: the derivative with respect to {name} of {leaf} is not "
            "finite. It grew without bound (see report.chaos: use a smaller learning rate, fewer "
            "steps or Truncated(k)), or a function has no slope where training met it.",
            step=t,
        )


def _check_sums(program, cts):
    optimizer = program.run.optimizer.name
    found = {f"{optimizer}({name}=...)": parts for name, parts in cts.optimizer.items()}
    found |= {f"leaf {k} of hyper": [ct] for k, ct in enumerate(cts.hyper)}
    for name, parts in found.items():
        if not all(np.all(np.isfinite(x)) for x in parts):
            raise NotFinite(
                f"the derivative with respect to {name} is not finite, though those of the states "
                "are; look for a function of it without a slope, such as a root at 0."
            )


class Survey:
    """Looks at the state now and then, for the report."""

    def __init__(self, run, program):
        self.run, self.largest = run, {}
        self.noise = program.inspect = NoiseWatch(program, run.steps)
        self.every = every_so_often(run.steps, LOOKS)

    def look(self, t, state):
        if t % self.every == 0:
            for name, x in state.variables.items():
                self.largest[name] = max(x.largest, self.largest.get(name, 0.0))

    def report(self, program, state, steps):
        self.look(0, state)
        run, report = self.run, self.run.report
        report.steps, report.weights = steps, run.layout.size
        element_steps = max(1, steps * run.layout.size)
        report.bits = sum(b.bits for b in state.buffers.values())
        report.bits_per_weight_step = report.bits / element_steps
        report.bound = program.schedule.bound(steps)
        report.bytes_stored = steps * sum(
            np.dtype(dtype).itemsize * int(np.prod(shape)) * len(state.variables)
            for dtype, shape in zip(run.layout.dtypes, run.layout.shapes, strict=True)
        )
        for name, x in state.variables.items():
            report.fraction_bits[name] = x.fraction_bits
            report.largest[name] = (self.largest[name], 2.0 ** (63 - x.fraction_bits))
            report.noise_floor[name] = program.schedule.noise_floor(name, x.fraction_bits, steps)
        program.inspect = None
        self.noise.report(report)
