"""The pictures of this folder."""

import matplotlib.pyplot as plt
import numpy as np

LABELS = {
    "hand": "grid", "random": "random", "greedy": "greedy", "learned": "learned, last",
    "best": "learned, best", "tried": "learned, tried", "back": "going back", "both": "both",
}  # fmt: skip


def degradation(path, found, factors, shared):
    """Figure 2: fluctuation of hypergradients, and of means of more and more of them."""
    count = len(found)
    figure, axes = plt.subplots(count + 1, 4, figsize=(12, 8), layout="constrained", sharey="row")
    labels = {"greedy": "greedy", "1": "final loss, per step", "20": "final loss, shared by 20"}
    for row, (rate, by_factor) in zip(axes, found.items(), strict=False):
        for ax, factor in zip(row, factors, strict=True):
            for kind, label in labels.items():
                _ratios(ax, by_factor[factor], kind, label)
            ax.set(title=f"other {factor}, rate {rate}", xlabel="step")
        row[0].set_ylabel("std / |mean|")
    axes[0, 0].legend(frameon=False, fontsize=8)
    for ax, factor in zip(axes[-1], factors, strict=True):
        for rate, by_factor in found.items():
            spread = [np.mean(by_factor[factor][str(n)]["std"]) / n for n in shared]
            ax.loglog(shared, spread / spread[0], "o-", label=f"rate {rate}")
        ax.loglog(shared, np.power(shared, -0.5), "--", color="0.5", label="1 / root of n")
        ax.set(xlabel="n, steps that share a value", xticks=shared, xticklabels=shared)
        ax.minorticks_off()
    axes[-1, 0].set_ylabel("std of the mean of n, relative")
    axes[-1, 0].legend(frameon=False, fontsize=8)
    _finish(figure, path)


def _ratios(ax, kinds, kind, label):
    """std / |mean| over the steps; of what is per step the median of 5."""
    ratio = np.divide(kinds[kind]["std"], np.abs(kinds[kind]["mean"]))
    at = (np.arange(len(ratio)) + 0.5) * len(kinds["1"]["std"]) / len(ratio)
    if kind != "20":
        padded = np.pad(ratio, 2, "edge")
        ratio = np.median([padded[k : k + len(ratio)] for k in range(5)], axis=0)
    ax.semilogy(at, ratio, "o-" if kind == "20" else "-", ms=4, label=label)


def schedules(path, rows):
    """Figure 3: the schedules that were learned; those per step averaged over a tenth."""
    figure, ax = plt.subplots(figsize=(7, 4), layout="constrained")
    for kind, row in rows.items():
        rates, width = np.asarray(row["rates"]), len(row["rates"]) // 10
        if kind in ("greedy", "unshared"):
            padded = np.pad(rates, (width // 2, (width - 1) // 2), "edge")
            rates = np.convolve(padded, np.ones(width) / width, "valid")
        ax.plot(rates, label=f"{kind}: {row['test']:.1f} %")
    ax.set(xlabel="step", ylabel="learning rate")
    ax.legend(frameon=False, title="test accuracy", fontsize=8)
    _finish(figure, path)


def table(path, found, rows):
    """Table 1, figures 1, 4 and 5: schedules and hypergradients of each outer step, all runs."""
    figure, axes = plt.subplots(2, 3, figsize=(12, 6.4), layout="constrained")
    trail, last = found["learned"][0]["outer"], found["learned"][0]["hyper"]
    shades = plt.get_cmap("viridis")(np.linspace(0.9, 0.0, len(trail) + 1))
    for k, hyper in enumerate([*(step["hyper"] for step in trail), last]):
        _steps(axes[0, 0], hyper["rate"], color=shades[k])
    axes[0, 0].set(xlabel="share of training", ylabel="learning rate", title="learned from 0")
    for name, colour in (("momentum", "C0"), ("decay", "C1")):
        values = [*(step["hyper"][name][0] for step in trail), last[name][0]]
        scale = 1000 if name == "decay" else 1
        label = "decay / 0.001" if name == "decay" else name
        axes[0, 1].plot(np.multiply(values, scale), "o-", ms=3, color=colour, label=label)
    axes[0, 1].set(xlabel="outer step", ylabel="value")
    axes[0, 1].legend(frameon=False)
    for k, step in enumerate(trail):
        _steps(axes[0, 2], step["gradient"]["rate"], color=shades[k])
    axes[0, 2].set(xlabel="share of training", ylabel="hypergradient / steps", yscale="symlog")
    axes[0, 2].set_yscale("symlog", linthresh=1e-4)
    for each in found["learned"]:
        axes[1, 0].plot([step["test"] for step in each["outer"]], "o-", ms=3)
    axes[1, 0].set(xlabel="outer step", ylabel="test accuracy (%)")
    for name, colour in (("random", "0.7"), ("hand", "C2")):
        scores = [s for each in found[name] for s in each["valid"]]
        axes[1, 1].hist(scores, np.linspace(0, 100, 41), color=colour, label=LABELS[name])
    axes[1, 1].set(xlabel="validation accuracy (%)", ylabel="runs")
    axes[1, 1].legend(frameon=False)
    names = [*LABELS]
    for k, name in enumerate(names):
        axes[1, 2].errorbar(k, rows[name]["mean"], rows[name]["std"], fmt="o", color="C0")
    turned = {"fontsize": 8, "rotation": 30, "ha": "right"}
    axes[1, 2].set_xticks(range(len(names)), [LABELS[n] for n in names], **turned)
    axes[1, 2].set(ylabel="test accuracy (%)", xlim=(-0.5, len(names) - 0.5))
    axes[1, 2].set_ylim(0, min(102, axes[1, 2].get_ylim()[1]))
    _finish(figure, path)


def searches(path, found):
    """Appendix E: the best validation accuracy so far, by the number of runs."""
    figure, ax = plt.subplots(figsize=(7, 4), layout="constrained")
    for k, (row, each) in enumerate(found.items()):
        best = np.maximum.accumulate([x["valid"] for x in each], axis=1)
        runs = np.arange(1, best.shape[1] + 1)
        line = {"ls": "-" if row.startswith("bayes") else "--", "color": f"C{k % 2}"}
        ax.plot(runs, best.mean(0), lw=2.5, label=f"{row}: mean", **line)
        ax.plot(runs, best.T, lw=0.6, **line)
    ax.set(xlabel="runs", ylabel="best validation accuracy so far (%)", xscale="log")
    ax.legend(frameon=False, loc="upper left", bbox_to_anchor=(1, 1), title="thin: each seed")
    _finish(figure, path)


def _steps(ax, values, **options):
    ax.stairs(values, np.linspace(0, 1, len(values) + 1), baseline=None, **options)


def _finish(figure, path):
    for ax in figure.axes:
        ax.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=90)
    plt.close(figure)
