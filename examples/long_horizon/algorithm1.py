"""Algorithm 1 of Micaelli and Storkey 2021: schedules learned from zero by signs."""

import numpy as np
from task import STEP

import revgrad as rg


def learn(task, start, settings, seed, record, clip):
    """Algorithm 1; the outer steps, and the test accuracy of a run on all data."""
    adjoint = rg.Forward(clip_products=clip, average=True)
    name = f"outer steps, seed {seed}" + (", clip 1" if clip == 1 else "")
    save = settings.folder / f"{settings.data}, {name}.search"
    trail = record[name] if name in record and save.exists() else []

    def hyperloss(hyper, step):
        return task.hyperloss(hyper, 1000 * seed + step, adjoint)

    def keep(step, metrics):
        now = {k: metrics[k] for k in ("value", "hyper", "gradient")} | {"test": metrics["aux"]}
        record[name] = [*trail[:step], now]
        trail[:] = record[name]

    found = rg.minimize(
        hyperloss, start, rg.SignDescent(STEP, close=0.05), until=settings.outer, has_aux=True,
        callback=keep, save=save,
    )  # fmt: skip
    score = task.score(task.optimizer(found.hyper), 1000 * seed + 999, whole=True)
    return {"test": score, "hyper": found.hyper, "outer": trail}


def again(task, learned, seed):
    """One run on all data with the schedules, of all outer steps, that validated best."""
    values = [step["value"] for step in learned["outer"]]
    best = int(np.argmin([np.inf if v is None or np.isnan(v) else v for v in values]))
    hyper = {k: np.array(x) for k, x in learned["outer"][best]["hyper"].items()}
    return {"test": task.score(task.optimizer(hyper), 1000 * seed + 999, whole=True), "step": best}
