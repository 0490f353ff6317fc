"""What a hypergradient means: how it fluctuates over seeds, and what it is made of."""

import warnings
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import optree

from revgrad.errors import FixedOverflow, NotFinite
from revgrad.hyper import whole_number
from revgrad.transforms import value_and_grad

FEW = 0.1  # share of the looks at the way back that, carrying it all, dominate a hypergradient


class FragileHypergradient(UserWarning):
    """A hypergradient overflowed, is dominated by few steps, or changes its sign with the seed."""


@dataclass
class Diagnosis:
    """What `diagnose` found; trees are like the hyperparameters, one value per number.

    hypervariance: standard deviation over the seeds / |mean|, infinite where the mean is 0.
    sign_fluctuation: share of the seeds whose sign is the rarer one, at most 0.5; zeros count
        for neither. chaos: per seed, growth of log |dL/dparams| per step on the way back.
    effective_steps: per seed, the share of the looks at the way back that carry dL/dparams.
    overflowed: seeds whose run or derivative left the floats, with what was said.
    """

    values: list = field(default_factory=list)
    mean: Any = None
    std: Any = None
    hypervariance: Any = None
    sign_fluctuation: Any = None
    chaos: list = field(default_factory=list)
    effective_steps: list = field(default_factory=list)
    overflowed: dict = field(default_factory=dict)
    warnings: list = field(default_factory=list)


def diagnose(hyperloss, hyper, seeds=10, *, report=None):
    """Take the hypergradient for several seeds, and say how far it can be trusted.

    hyperloss(hyper, seed) -> scalar: everything random in it must follow from the seed (minibatch
        order, initial params, validation batch, ...). hyper: tree of floats.
    seeds: how many (0, 1, ...) or which. report: the `Report` that hyperloss passes to `train`;
        with it, chaos and the steps that dominate are looked at.
    Warns (FragileHypergradient) where a seed overflows, where fewer than a tenth of the looks at
    the way back carry the derivative, and where a sign differs in a third of the seeds or more.
    Source: Micaelli and Storkey, Non-greedy gradient-based hyperparameter optimization over long
    horizons.
    """
    seeds = range(whole_number(seeds, "seeds", 1)) if np.ndim(seeds) == 0 else list(seeds)
    found, gradients = Diagnosis(), []
    for seed in seeds:
        try:
            value, gradient = value_and_grad(hyperloss)(hyper, seed)
        except (NotFinite, FixedOverflow) as error:
            found.overflowed[seed] = str(error)
            continue
        if not all(np.all(np.isfinite(x)) for x in optree.tree_leaves((value, gradient))):
            found.overflowed[seed] = f"the hyperloss is {value}, or its gradient not finite"
            continue
        found.values.append(float(value))
        gradients.append(gradient)
        if report is not None and report.growth:
            found.chaos.append(report.chaos)
            if report.effective_steps is not None:
                found.effective_steps.append(report.effective_steps / len(report.growth))
    if gradients:
        _summarise(found, gradients)
    _warn(found, len(seeds))
    return found


def _summarise(found, gradients):
    found.mean = optree.tree_map(lambda *xs: np.mean(np.stack(xs), 0), *gradients)
    found.std = optree.tree_map(lambda *xs: np.std(np.stack(xs), 0), *gradients)
    found.hypervariance = optree.tree_map(_ratio, found.std, found.mean)
    found.sign_fluctuation = optree.tree_map(_rarer_sign, *gradients)


def _ratio(std, mean):
    size = np.abs(mean)
    quotient = std / np.where(size > 0, size, 1.0)
    return np.where(size > 0, quotient, np.where(std > 0, np.inf, 0.0))


def _rarer_sign(*xs):
    signs = np.sign(np.stack(xs))
    return np.minimum(np.mean(signs > 0, 0), np.mean(signs < 0, 0))


def _warn(found, count):
    if found.overflowed:
        seed, said = next(iter(found.overflowed.items()))
        found.warnings.append(
            f"{len(found.overflowed)} of {count} seeds overflowed, e.g. {seed}: {said}"
        )
    if found.effective_steps and np.median(found.effective_steps) < FEW:
        found.warnings.append(
            f"{np.median(found.effective_steps):.1%} of the way back carries the derivative, the "
            f"rest is negligible beside it (chaos {np.median(found.chaos):.3g} per step): the "
            "hypergradient tells of few steps. Use fewer steps, smaller rates, or per_step values "
            "shared by many steps."
        )
    if found.sign_fluctuation is not None and len(found.values) > 2:
        rarer = np.concatenate([np.ravel(x) for x in optree.tree_leaves(found.sign_fluctuation)])
        if (fickle := int(np.sum(rarer > 1 / 3))) > 0:
            found.warnings.append(
                f"{fickle} of {rarer.size} hypergradients differ in sign in a third of the seeds "
                "or more; average over seeds, or share values among more steps."
            )
    for message in found.warnings:
        warnings.warn(message, FragileHypergradient, stacklevel=3)
