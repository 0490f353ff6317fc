"""Algorithm 1 of Micaelli and Storkey 2021: schedules learned from zero by signs."""

import numpy as np

import revgrad as rg

STEP = {"rate": 0.1, "momentum": 0.15, "decay": 4e-4}  # the first ones
RANGES = {"rate": 1.0, "momentum": 1.0, "decay": 5e-3}  # from 0, in the authors' older code


def learn(task, start, settings, seed, record):
    """Algorithm 1; the outer steps, and the test accuracy of a run on all data."""
    adjoint = rg.Forward(clip_products=settings.clip, average=True)
    signs = rg.SignDescent({k: settings.first * x for k, x in STEP.items()}, close=0.05)
    name = f"outer steps, seed {seed}"
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
    values = [step["value"] for step in learned["outer"]]
    best = int(np.argmin([np.inf if v is None or np.isnan(v) else v for v in values]))
    hyper = {k: np.array(x) for k, x in learned["outer"][best]["hyper"].items()}
    return {"test": task.score(task.optimizer(hyper), 1000 * seed + 999, whole=True), "step": best}
