"""Appendix E: Bayesian optimisation against random search, and how wide the ranges may be.

    python examples/long_horizon/bayesian_search.py [--folder docs/reproduction] [--quick]

Rates, momentum and decay of one run are searched by chance and by a model of what was tried (trees
of Parzen estimators, Optuna; the paper: a Gaussian process), over the paper's ranges and over a
twentieth of them. The paper finds that the model is better than chance only once the ranges are a
twentieth, and with five times the runs; the picture has the best so far by the number of runs.

Reduced: a network 784-64-10, 200 steps of 64, 3 values of the rate.

Source: Micaelli and Storkey 2021, appendix E.
"""

from dataclasses import dataclass
from functools import partial
from itertools import product
from pathlib import Path

import numpy as np
import tyro
from images import load
from nets import Mlp
from pictures import searches
from rivals import RANGES
from task import Task

from revgrad.records import Record

PAPER = {
    "random search, the paper's ranges, test accuracy (%)": (None, "rows/random, full"),
    "Bayesian optimisation": (None, "rows/bayes, full"),
    "random search, a twentieth": (None, "rows/random, twentieth"),
    "Bayesian optimisation, a twentieth": (None, "rows/bayes, twentieth"),
}
SHARES = {"full": 1.0, "twentieth": 1 / 20}
SIZES = {"rate": 3, "momentum": 1, "decay": 1}


@dataclass
class Settings:
    folder: Path = Path(".")  # where bayesian_search.json and .png go
    quick: bool = False  # a stand-in for data, for tests
    seeds: int = 3
    runs: int = 50


def main(settings=None):
    settings = settings or Settings()
    record = Record(settings.folder / "bayesian_search.json", settings)
    if settings.quick:
        task = Task(Mlp(), *load("noise", 400, 200), steps=14, batch=20)
    else:
        task = Task(Mlp(), *load("mnist", 12_000, 10_000), steps=200, batch=64)
    found = {}
    for kind, share in product(("random", "bayes"), SHARES):
        row = found[f"{kind}, {share}"] = []
        for k in range(settings.seeds):
            tried = partial(search, task, kind, SHARES[share], settings.runs, k)
            row.append(record.once(f"{kind}, {share}, seed {k}", tried))
    record["rows"] = {row: np.mean([x["test"] for x in each]) for row, each in found.items()}
    record.finish()
    searches(settings.folder / "bayesian_search.png", found)
    return record["rows"]


def search(task, kind, share, runs, seed):
    """Test accuracy with what validated best, what was tried, and how it validated."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    make = {"random": optuna.samplers.RandomSampler, "bayes": optuna.samplers.TPESampler}[kind]
    options = {"multivariate": True} if kind == "bayes" else {}
    study = optuna.create_study(direction="maximize", sampler=make(seed=seed, **options))

    def drawn(trial):
        name = lambda k, j: (f"{k} {j}", -share * RANGES[k], share * RANGES[k])
        return {k: [trial.suggest_float(*name(k, j)) for j in range(n)] for k, n in SIZES.items()}

    def score(trial):
        hyper = drawn(trial)
        trial.set_user_attr("hyper", hyper)
        return task.score(task.optimizer(arrays(hyper)), seed)

    study.optimize(score, runs)
    best = study.best_trial.user_attrs["hyper"]
    test = task.score(task.optimizer(arrays(best)), 1000 * seed + 999, whole=True)
    draws = [trial.user_attrs["hyper"] for trial in study.trials]
    return {"test": test, "chosen": best, "draws": draws, "valid": [t.value for t in study.trials]}


def arrays(hyper):
    return {k: np.array(x) for k, x in hyper.items()}


if __name__ == "__main__":
    for row, score in main(tyro.cli(Settings)).items():
        print(f"{row:20} {score:.2f} %")
