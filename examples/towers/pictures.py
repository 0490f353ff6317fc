"""Panels that the pictures of this folder are made of."""

from contextlib import contextmanager

import numpy as np

BLUE, RED, GREY = "#0072b2", "#d55e00", "0.7"


@contextmanager
def figure(path, count=1, *, size=None, **options):
    """Panels of one row (or as options say), written to path at the end."""
    import matplotlib.pyplot as plt

    shape = options.pop("shape", (1, count))
    made, panels = plt.subplots(
        *shape, figsize=size or (5 * count, 3.6), layout="constrained", squeeze=False, **options
    )
    yield list(panels.flat)
    for panel in panels.flat:
        panel.spines[["top", "right"]].set_visible(False)
        if panel.get_legend_handles_labels()[0]:
            panel.legend(frameon=False, fontsize=9)
    made.savefig(path, dpi=110)
    plt.close(made)


def by_height(panel, x, rows, **labels):
    """A line per height of a tower over base step sizes; darker is taller."""
    import matplotlib.pyplot as plt

    for h, values in rows.items():
        shade = plt.get_cmap("viridis")(0.85 - 0.27 * int(h))
        panel.plot(x, values, "o-", ms=4, color=shade, label=f"height {h}")
    panel.set(xscale="log", xlabel="base step size", **labels)
    panel.grid(axis="y", color="0.9")


def in_pairs(panel, names, plain, tuned, **labels):
    """Two bars for each name: as it was given, and tuned."""
    at = np.arange(len(names))
    panel.bar(at - 0.2, plain, 0.38, color=GREY, label="as given")
    panel.bar(at + 0.2, tuned, 0.38, color=BLUE, label="tuned")
    panel.set_xticks(at, names, fontsize=8)
    panel.set(**labels)
