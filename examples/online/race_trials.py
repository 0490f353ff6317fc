"""The trainings of `race.py`: what is searched over, by what, and how arrivals are counted."""

from functools import partial

import numpy as np
import optuna
from mnist_mlp import Problem

import revgrad as rg

METHODS = ("fixed", "step", "cosine", "exponential", "Adam")


class Race:
    """A problem, its settings, and `once` of the record that trainings go into."""

    def __init__(self, s, once):
        self.s, self.once, self.problem = s, once, Problem(s.data)

    def trial(self, method, suggest, until=0.0):
        """A training: what was suggested for it, and what came of it."""
        used = {}

        def keep(name, low, high):
            used[name] = suggest(name, low, high)
            return used[name]

        made = optimizer(method, keep, self.s.epochs * self.problem.epoch)
        return {"at": used} | self.problem.run(made, self.s.epochs, until=until)[0]

    def at_random(self, method, k):
        rng = np.random.default_rng((METHODS.index(method), k))
        draw = lambda _, low, high: float(np.exp(rng.uniform(np.log(low), np.log(high))))
        return self.once(f"{method}, random {k}", lambda: self.trial(method, draw))

    def searched(self, method, seed):
        """Trials of a TPE search on the validation loss, until one arrives, which ends it."""
        sampler = optuna.samplers.TPESampler(n_startup_trials=3, seed=seed)
        study, rows = optuna.create_study(sampler=sampler), []
        for k in range(self.s.trials):
            asked = study.ask()
            suggest = lambda name, low, high, a=asked: a.suggest_float(name, low, high, log=True)
            name = f"{method}, Bayesian {seed}, trial {k}"
            trial = partial(self.trial, method, suggest, until=self.s.target)
            rows.append(self.once(name, trial))
            if not asked.params:  # from the record: let the sampler draw what it drew then
                optimizer(method, suggest, 10)
            study.tell(asked, min(rows[-1]["valid loss"], 10.0))
            if arrival(rows[-1], self.s.target):
                break
        return rows

    def online(self, k):
        """A rate and a decay that learn, from a rate drawn at random and no decay."""
        rng = np.random.default_rng(k)
        draw = lambda low, high: float(np.exp(rng.uniform(np.log(low), np.log(high))))
        at = {"rate": draw(1e-3, 0.3), "meta": draw(1e-5, 1e-4)}
        learns = self.problem.oho(at["rate"], 0.0, at["meta"])
        run = lambda: {"at": at} | self.problem.run(learns, self.s.epochs)[0]
        return self.once(f"online {k}", run)


def optimizer(method, suggest, steps):
    """What a trial of a method trains with. suggest: name, low, high -> a log-uniform number."""
    decay = suggest("decay", 1e-7, 1e-3)
    if method == "Adam":
        rate, b1, b2 = suggest("rate", 1e-5, 1e-2), suggest("1-b1", 0.01, 0.5), 0.0
        b2 = suggest("1-b2", 1e-4, 0.1)
        return rg.AdamW(rate, 1 - b1, 1 - b2, weight_decay=decay / rate)
    rate, left = suggest("rate", 1e-3, 1.0), np.ones(1)
    t = np.arange(steps) / steps
    if method == "step":
        left = suggest("gamma", 0.1, 0.99) ** np.floor(t / suggest("period", 0.05, 1.0))
    elif method == "cosine":
        left = (1 + np.cos(np.pi * t)) / 2
    elif method == "exponential":
        left = suggest("left at the end", 1e-3, 1.0) ** t
    rates = rg.per_step(rate * left) if len(left) > 1 else rate
    return rg.SGD(rates, weight_decay=decay)


def arrival(row, target):
    """The epoch at which a training reached the target, or None."""
    there = [e for e, x in enumerate(row["test loss"], 1) if x <= target]
    return there[0] if there else None


def seconds_to(row, target):
    """How long it took, to the target or to its end."""
    epochs = len(row["test loss"])
    return row["seconds"] * (arrival(row, target) or epochs) / epochs


def of_pool(rows, target):
    """Expected trials and minutes until the first of a shuffled pool arrives."""
    arrived = [seconds_to(r, target) for r in rows if arrival(r, target)]
    failed = [r["seconds"] for r in rows if not arrival(r, target)]
    trials = (len(rows) + 1) / (len(arrived) + 1)
    seconds = (trials - 1) * np.mean(failed or [0.0]) + np.mean(arrived or [0.0])
    return _told(trials, seconds, f"{len(arrived)} of {len(rows)}", [rows])


def of_searches(searches, target):
    """Mean trials and minutes of searches, each to its end."""
    seconds = [sum(seconds_to(r, target) for r in rows) for rows in searches]
    arrived = sum(bool(arrival(rows[-1], target)) for rows in searches)
    trials = np.mean([len(rows) for rows in searches])
    return _told(trials, np.mean(seconds), f"{arrived} of {len(searches)}", searches)


def _told(trials, seconds, arrived, groups):
    best = min(min(r["test loss"]) for rows in groups for r in rows)
    found = {"trials": float(trials), "minutes": float(seconds / 60)}
    return found | {"arrived": arrived, "best test loss": best}
