"""Algorithm 1 of Micaelli and Storkey 2021: schedules learned from zero by signs."""

import numpy as np

import revgrad as rg

STEP = {"rate": 0.1, "momentum": 0.15, "decay": 4e-4}  # the first ones
RANGES = {"rate": 1.0, "momentum": 1.0, "decay": 5e-3}  # from 0, in the authors' older code


def learn(task, start, settings, seed, record, lost=None):
    """Algorithm 1; the outer steps, and a run on all data. lost: of SignDescent."""
    adjoint = rg.Forward(clip_products=settings.clip, average=True)
    steps = {k: settings.first * x for k, x in STEP.items()}
    signs = rg.SignDescent(steps, close=0.05, lost=lost)
    name = f"outer steps{' going back' if lost else ''}, seed {seed}"
    save = settings.folder / f"{settings.data}, {name}.search"
    trail = record[name] if name in record and save.exists() else []

    def hyperloss(hyper, step):
        return task.hyperloss(hyper, 1000 * seed + step, adjoint)

    def keep(step, metrics):
        now = {k: metrics[k] for k in ("value", "hyper", "gradient")} | {"test": metrics["aux"]}
        record[name] = [*trail[:step], now]
        trail[:] = record[name]

    found = rg.minimize(
        hyperloss, start, signs, until=settings.outer, has_aux=True, callback=keep, save=save,
        within=(0.0, RANGES) if settings.clamped else None,
    )  # fmt: skip
    score = task.score(task.optimizer(found.hyper), 1000 * seed + 999, whole=True)
    return {"test": score, "hyper": found.hyper, "outer": trail}


def again(task, learned, seed):
    """One run on all data with the schedules, of all outer steps, that validated best."""
    best = _by_value(learned["outer"])[0]
    return _on_all(task, learned, best, seed)


def tried(task, learned, seed, candidates=4, runs=3):
    """The same with what does best on average in new runs: a value is of one run, and may be lucky.

    These runs are paid for by the last two outer steps, whose schedules are not looked at: 14 runs
    with 7, 1 and 1 values.
    """
    affordable = max(1, len(learned["outer"]) - 2)
    candidates = _by_value(learned["outer"][:affordable])[:candidates]
    seeds = [1000 * seed + 900 + k for k in range(runs)]
    scores = [[task.score(_made(task, learned, j), k) for k in seeds] for j in candidates]
    best = candidates[int(np.argmax(np.mean(scores, axis=1)))]
    found = {"candidates": candidates, "valid": scores}
    return _on_all(task, learned, best, seed) | found


def _by_value(outer):
    """The outer steps, what validated best first."""
    values = [np.nan if step["value"] is None else step["value"] for step in outer]
    return [int(k) for k in np.argsort(values)]


def _made(task, learned, step):
    hyper = {k: np.array(x) for k, x in learned["outer"][step]["hyper"].items()}
    return task.optimizer(hyper)


def _on_all(task, learned, step, seed):
    score = task.score(_made(task, learned, step), 1000 * seed + 999, whole=True)
    return {"test": score, "step": step}
