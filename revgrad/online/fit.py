"""The door of online methods: training in floats, with hyperparameters that learn as it goes on."""

from dataclasses import dataclass
from time import perf_counter
from typing import Any

import numpy as np
import optree
from tqdm import tqdm

from revgrad import blas
from revgrad._ext import homes
from revgrad.arguments import check_save, take_apart
from revgrad.errors import LeftDomain, NotFinite
from revgrad.gradient import Gradient, own
from revgrad.hyper import is_per_step
from revgrad.online.level import Level
from revgrad.online.paths import Paths
from revgrad.online.saving import Log
from revgrad.online.tower import Tower, Untuned
from revgrad.report import Report
from revgrad.statements import Optimizer
from revgrad.sweeps import stops, watched_plainly
from revgrad.tape import Box
from revgrad.transforms import in_kind

BACK = 10  # how many rows before a divergence are told of


def fit(
    loss,
    params,
    optimizer,
    batches,
    *,
    steps=None,
    hyper=None,
    state=None,
    has_aux=False,
    return_state=False,
    watch=None,
    callback=None,
    report=None,
    save=None,
    save_every=None,
    progress=False,
):
    """Train in floats while hyperparameters learn: returns (trained params, Paths).

    loss, params, batches, steps, hyper, state, has_aux, watch: as for `train`. The params keep
        their dtype, and are trained in it (mixed ones in float64).
    optimizer: any of revgrad's, reversible or not; what its `tuned_by` says is learned:
        Adam(1e-3, tuned_by=SGD(1e-5)), to any height; without it this is plain training.
    callback(step, metrics): after each step; metrics has "loss", "aux" and "hyper", the values that
        learn as the step used them, by name; raising `StopRun` ends the run. report: a `Report`
        to be filled. progress: a progress bar with the loss.
    save: a path: a run that was killed is taken up by the same call and ends with the same numbers.
        Saved every `save_every` steps (default: every 30 seconds), removed when the run is over.
    Returns (trained, paths), or (trained, paths, state) with return_state=True; paths[name] has
    every value of a hyperparameter: see `Paths`.

    Every level's derivative is that of the next loss through its latest step alone, all before it
    held as it was: no trajectory is kept, and memory does not grow. It has no derivative itself.
    Raises: TypeError, ValueError for what cannot work; LeftDomain; NotFinite where training
    diverges, as it does from a rate that is far too high whatever tunes it; NotResumed.
    Source: Chandra et al. 2022, Gradient Descent: The Ultimate Optimizer.
    """
    if not isinstance(optimizer, Optimizer):
        raise TypeError(
            f"optimizer is a {type(optimizer).__name__}; pass one of revgrad's, e.g. Adam(1e-3)."
        )
    _refuse_traced(params=params, hyper=hyper, state=state, optimizer=list(_tower_hyper(optimizer)))
    report = Report() if report is None else report.clear()
    run, values = take_apart(
        loss, params, optimizer, batches, steps=steps, hyper=hyper, state=state, has_aux=has_aux,
        watch=watch, watch_moves=False, callback=callback, report=report, arithmetic=None,
        saving=check_save(save, save_every),
    )  # fmt: skip
    fitting, paths = Fitting.of(run, values, optimizer), Paths()
    with blas.pinned() as threads:
        report.blas_threads = threads
        taken = _fit(fitting, fitting.tuner(), paths, progress)
    trained = fitting.tree("params", values.params)
    if not return_state:
        return trained, paths
    names = optimizer.variables
    return trained, paths, {n: fitting.tree(n, values.params) for n in names} | {"t": taken}


@dataclass
class Fitting:
    """What `fit` has taken apart: what a tuner is bound to.

    run, values: as `train` has them. optimizer: as given. gradient: the run's `Gradient`.
    bottom: the Level of the params.
    """

    run: Any
    values: Any
    optimizer: Any
    gradient: Any
    bottom: Any

    @classmethod
    def of(cls, run, values, optimizer):
        state = {"params": run.layout.join(values.params, run.layout.dtype)}
        for name in optimizer.variables:
            layout = run.layout_of(name)
            state[name] = homes.zeros_beside(layout.size, layout.dtype, layout.like)
            if name in values.warm:
                state[name][...] = layout.join(values.warm[name])
        bottom = Level(
            optimizer, run.spreads, values.optimizer, state, run.layout_of, first_t=run.first_t
        )
        return cls(run, values, optimizer, Gradient(run, values), bottom)

    def look(self, t):
        """((loss, aux), flat g) at step t, overwritten by the next call, or that after a `pull`."""
        if self.bottom.knobs is None or self.bottom.mode == "push":
            return self.gradient.value(self.leaves(), t)
        return self.gradient.value(self.leaves(), t, t % 2)

    def tuner(self):
        above = self.optimizer.tuned_by
        if above is None:
            return Untuned()
        return Tower(self, above) if isinstance(above, Optimizer) else above.bind(self)

    def leaves(self):
        """The params as the loss takes them; views where their dtype is one."""
        return self.run.layout.cast(self.bottom.state["params"])

    def tree(self, name, given):
        """A variable as a tree of its own, in the kinds that the params came in."""
        layout = self.run.layout_of(name)
        leaves = own(layout.cast(self.bottom.state[name]))
        if layout is self.run.layout:
            leaves = [in_kind(x, like) for x, like in zip(leaves, given, strict=True)]
        return layout.unflatten(leaves)


def _fit(fitting, tuner, paths, progress):
    """Take the steps of a run; returns how many there are now, with those before it."""
    run, bottom, watched = fitting.run, fitting.bottom, []
    began, begin, expected, t = perf_counter(), 0, None, 0
    log = Log(fitting, tuner, paths) if run.saving and run.steps else None
    if log and (found := log.load()):
        begin, expected, watched = found
    steps = run.steps
    with tqdm(range(begin, steps), disable=not progress, initial=begin, total=steps) as bar:
        for t in bar:
            value, aux = take_step(fitting, tuner, paths, t, watched, log, expected)
            expected = None
            if progress:
                bar.set_postfix_str(f"loss {value:.4g}", refresh=False)
            if run.callback is not None and stops(run, t, value, aux, hyper=paths.last):
                steps = t + 1
                break
    if log:
        log.remove()
    if not np.isfinite(bottom.state["params"]).all():
        raise _diverged(fitting, paths, t, "the params are not finite after it")
    report = run.report
    report.steps, report.weights, report.watched = steps, run.layout.size, watched
    report.seconds = perf_counter() - began
    return run.first_t + steps


def take_step(fitting, tuner, paths, t, watched, log=None, expected=None):
    """Take step t of a run; returns (loss, aux).

    expected: digest of the gradient there, where the run has just been taken up from a file.
    """
    (value, aux), g = fitting.look(t)
    value = homes.home(value)
    if expected is None:
        _look(fitting, tuner, paths, t, value, g, watched)
    else:
        log.check_gradient(t, g, expected)
    if log and log.due(t):
        log.save(t, g, watched)
    _step(fitting, tuner, paths, t, g, aux)
    with np.errstate(all="ignore"):
        tuner.follow(t)
    paths.add(t, float(value), tuner.values(), tuner.told())
    return value, aux


def _look(fitting, tuner, paths, t, value, g, watched):
    """What is to be known before step t: the loss, what is watched, the slopes."""
    run = fitting.run
    if not np.isfinite(value):
        raise _diverged(fitting, paths, t, f"the loss is {value}")
    if run.watch is not None:
        watched.append(watched_plainly(run, t, own(fitting.leaves())))
    try:
        with np.errstate(all="ignore"):
            tuner.look(t, g)
    except (ZeroDivisionError, OverflowError) as error:  # of Python's own floats
        raise _diverged(fitting, paths, t, f"{type(error).__name__}: {error}") from error


def _step(fitting, tuner, paths, t, g, aux):
    """Every level's step, the top first."""
    try:
        with np.errstate(all="ignore"):  # what is not finite is met at the next loss
            tuner.move(t)
            fitting.bottom.step(t, g, _flat_aux(fitting, aux))
    except LeftDomain as error:
        raise LeftDomain(f"{error} {_story(fitting, paths)}", error.name, t) from None
    except ArithmeticError as error:  # of Python's own floats
        raise _diverged(fitting, paths, t, f"{type(error).__name__}: {error}") from error


def _flat_aux(fitting, aux):
    if "aux" not in fitting.bottom.of_loss:
        return None
    return fitting.run.flat_aux(aux).astype(fitting.run.aux_layout.dtype, copy=False)


def _diverged(fitting, paths, t, what):
    cure = "Use a smaller learning rate"
    if fitting.optimizer.tuned_by is not None:
        cure += (
            " to begin with, or for what tunes it: a tower mends a rate that is too low, and one "
            "that is far too high diverges before it can learn"
        )
    story = _story(fitting, paths)
    return NotFinite(f"step {t}: {what}. {story}{cure}; or look at this step's batch.", step=t)


def _story(fitting, paths):
    """How the hyperparameters came to where they are."""
    if not len(paths):
        return ""
    rows = [f"{name} {x[-BACK:][0]:.4g} to {x[-1]:.4g}" for name, x in paths.items()]
    since = paths.steps[-BACK:][0]
    return f"Since step {since} of {fitting.optimizer!r}: {', '.join(rows)}. "


def _tower_hyper(optimizer):
    """The hyperparameters of every level."""
    while isinstance(optimizer, Optimizer):
        yield optimizer.hyper
        optimizer = optimizer.tuned_by


def _refuse_traced(**given):
    for name, tree in given.items():
        leaves = optree.tree_leaves(tree, is_leaf=is_per_step)
        bare = [x.values if is_per_step(x) else x for x in leaves]
        if any(isinstance(x, Box) for x in optree.tree_leaves(bare)):
            raise TypeError(
                f"fit has no derivative, and {name} is traced: train with rg.train, or pass "
                "rg.stop_gradient of it."
            )
