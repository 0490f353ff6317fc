"""What 1,608 gradients buy, beside searches of three numbers (Maclaurin et al. 2015, section 3.1).

The training loss of the MLP of `learn_schedules.py` after 100 steps, minimised over a rate and a
momentum for each step and layer and eight scales, by their hypergradient; over one rate, momentum
and scale for all, by theirs; and over these three by random search and Bayesian optimisation
(Optuna's TPE), which get four times as many runs, as a hypergradient costs about four. At last the
gradients go on from the best that Bayesian optimisation found. Each run has a start and batches of
its own, and the best may have been lucky; so what was found is tried again, on five new seeds.

    python examples/search_baselines.py --quick --data digits
"""

from dataclasses import dataclass
from functools import partial

import matplotlib.pyplot as plt
import mlp
import numpy as np
import optuna
import tyro
from authors import AuthorsAdam
from mlp import Problem
from tqdm import tqdm

import revgrad as rg
from revgrad.records import Record

PAPER = {
    "1,608 by gradients": (0.125, "again/1,608 by gradients/0"),
    "3 by gradients": (None, "again/3 by gradients/0"),
    "3 by random search, 200 runs": (None, "again/random search, 200 runs/0"),
    "3 by Bayesian optimisation, 100 runs": (0.157, "again/Bayesian optimisation, 100 runs/0"),
    "200 runs": (None, "again/Bayesian optimisation, 200 runs/0"),
    "1,608 by gradients from there": (0.156, "again/1,608 from there/0"),
}
START = {"log_rate": -1.0, "logit_momentum": 0.0, "log_scale": -3.0}
SPACE = {  # the authors'
    "log_rate": optuna.distributions.FloatDistribution(-3, 2),
    "logit_momentum": optuna.distributions.FloatDistribution(-2.197, 6.907),  # 0.1 to 0.999
    "log_scale": optuna.distributions.FloatDistribution(-5, 1),
}


@dataclass
class Settings(mlp.Settings):
    outer: int = 50


def again(loss):
    """(Mean, standard deviation) over five seeds that no search has seen."""
    values = [float(loss(1_000 + k)) for k in range(5)]
    return np.mean(values), np.std(values)


def by_gradients(problem, start):
    """(Losses before each outer step, those on new seeds); start: what `Problem.hyper` takes."""
    shared = np.ndim(start["log_rate"]) == 0

    def hyperloss(h, seed):
        return problem.hyperloss(problem.hyper(**h) if shared else h, seed)

    found = rg.minimize(hyperloss, start, AuthorsAdam(0.04), until=problem.settings.outer)
    return found.values, again(lambda seed: hyperloss(found.best_hyper, seed))


def by_search(problem, record, name, sampler, runs):
    """The same, these after so many runs, and then the best; each run goes into the record."""
    study = optuna.create_study(sampler=sampler)

    def loss(found, seed):
        try:
            return float(problem.hyperloss(problem.hyper(**found), seed))
        except (rg.FixedOverflow, rg.NotFinite):
            return 10.0  # it diverged

    for seed in tqdm(range(max(runs)), name):
        trial = study.ask(SPACE)
        study.tell(trial, record.once(f"{name} {seed}", partial(loss, trial.params, seed)))
    losses = [trial.value for trial in study.trials]
    best = {n: study.trials[int(np.argmin(losses[:n]))].params for n in runs}
    return losses, {n: again(partial(loss, best[n])) for n in runs}, best[max(runs)]


def main(s):
    runs = (50, 100, 200)
    if s.quick:
        s.steps, s.outer, s.examples, s.dtype, runs = 20, 5, 1_000, "float32", (5, 10, 20)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    problem, record = Problem(s), Record(s.folder / "search_baselines.json", s)
    curves, tried = {}, {}

    def learn(name, start):
        curves[name], tried[name] = record.once(name, lambda: by_gradients(problem, start))

    learn("1,608 by gradients", problem.hyper(**START))
    learn("3 by gradients", {name: np.float64(x) for name, x in START.items()})
    samplers = optuna.samplers.RandomSampler(seed=0), optuna.samplers.TPESampler(seed=1)
    for name, sampler in zip(("random search", "Bayesian optimisation"), samplers, strict=True):
        losses, ends, best = by_search(problem, record, name, sampler, runs)
        curves[name] = np.minimum.accumulate(losses)
        tried |= {f"{name}, {n} runs": x for n, x in ends.items()}
    learn("1,608 from there", problem.hyper(**best))
    record["again"] = tried
    record.finish()
    print(*(f"{name}: {mean:.4f} ± {sd:.4f}" for name, (mean, sd) in tried.items()), sep="\n")
    figure, ax = plt.subplots(figsize=(6.5, 3.8), layout="constrained")
    for name, values in curves.items():
        each = 1 if len(values) == max(runs) else 4
        ax.plot(each * np.arange(1, len(values) + 1), values, label=name)
    ax.set(xlabel="cost (training runs; a hypergradient counts as four)")
    ax.set(ylabel="training loss (nats)", ylim=(0.1, 1.0), yscale="log")
    figure.legend(loc="outside upper center", ncol=3, frameon=False)
    figure.savefig(s.folder / "search_baselines.png", dpi=100)
    plt.close(figure)
    return tried


if __name__ == "__main__":
    main(tyro.cli(Settings))
