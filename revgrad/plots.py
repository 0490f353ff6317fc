"""Pictures of what was learned: per-weight maps, learning curves, schedules.

Each function draws into the Axes given as `ax`, or makes a figure, and returns the Axes; save with
`ax.figure.savefig(...)`. matplotlib is imported when a function is called, not before.
"""

import math

import numpy as np

_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")
_STYLES = ("-", "--", ":")
_GREY = "0.35"


def per_weight_maps(
    weights_by_class,
    shape,
    ax=None,
    *,
    names=None,
    title=None,
    label=None,
    percentile=98,
    cmap=None,
):
    """One image per class of a number per input pixel, all on one colour scale.

    weights_by_class: (classes, height * width) or any shape of that size with classes first, such
    as the transposed weights of a logistic regression; shape: (height, width).
    ax: as many Axes as there are classes, or None for a new figure. names: a title per panel, by
    default the class number. label: what the colour bar shows.
    The scale ends at the given percentile, so that a few large values do not bleach the rest:
    dark is strong. It starts at zero; if there are negative values it is symmetric about zero.
    Returns: array (classes,) of Axes.
    Raises: ValueError for sizes that do not fit or values that are not finite.
    Source: Maclaurin et al. 2015, figure 6.
    """
    maps = _as_maps(weights_by_class, shape)
    names = [str(k) for k in range(len(maps))] if names is None else list(names)
    if len(names) != len(maps):
        raise ValueError(
            f"per_weight_maps: {len(names)} names for {len(maps)} classes; pass one for each."
        )
    axes = _panels(ax, len(maps), shape)
    low, high, above = _colour_range(maps, percentile)
    cmap = cmap or ("RdBu_r" if low < 0 else "Greys")
    for panel, image, name in zip(axes, maps, names, strict=True):
        shown = panel.imshow(image, cmap=cmap, vmin=low, vmax=high, interpolation="nearest")
        panel.set_title(name, fontsize=11, pad=3)
        panel.set(xticks=[], yticks=[])
        panel.spines[:].set(color="0.8", linewidth=0.6)
    _colour_bar(axes, shown, label, above, low < 0)
    if title:
        axes[0].figure.suptitle(title, fontsize=12)
    return axes


def _as_maps(weights, shape):
    weights = np.asarray(weights)
    height, width = shape
    if weights.ndim < 2 or 0 in weights.shape or weights[0].size != height * width:
        raise ValueError(
            f"per_weight_maps: weights of shape {weights.shape} do not give {height} x {width} "
            "pixels for each class; pass (classes, height * width)."
        )
    if not np.isfinite(weights).all():
        raise ValueError(
            f"per_weight_maps: {np.count_nonzero(~np.isfinite(weights))} values are not finite; "
            "replace them before drawing."
        )
    return weights.reshape(len(weights), height, width)


def _panels(ax, count, shape):
    """Axes as a flat array; a new figure gets at most five panels in a row."""
    if ax is None:
        import matplotlib.pyplot as plt

        rows = math.ceil(count / 5)
        columns = math.ceil(count / rows)
        size = (1.4 * columns + 0.9, 1.4 * rows * shape[0] / shape[1] + 0.3 * rows + 0.3)
        axes = plt.figure(figsize=size, layout="constrained").subplots(rows, columns, squeeze=False)
        for spare in axes.flat[count:]:
            spare.set_axis_off()
        return axes.flatten()[:count]
    axes = np.asarray(ax, dtype=object).reshape(-1)
    if len(axes) != count:
        raise ValueError(
            f"per_weight_maps: {len(axes)} Axes for {count} classes; pass one for each, or none."
        )
    return axes


def _colour_range(maps, percentile):
    """(low, high, whether values lie beyond): [0, percentile], or symmetric with negatives."""
    sizes = np.abs(maps)
    high = float(np.percentile(sizes, percentile)) or float(sizes.max()) or 1.0
    low = -high if maps.min() < 0 else 0.0
    return low, high, bool(sizes.max() > high)


def _colour_bar(axes, shown, label, beyond, symmetric):
    extend = ("both" if symmetric else "max") if beyond else "neither"
    bar = axes[0].figure.colorbar(
        shown, ax=list(axes), extend=extend, fraction=0.035, pad=0.02, aspect=25
    )
    bar.outline.set_visible(False)
    bar.ax.tick_params(length=2, labelsize=9, color=_GREY)
    if label:
        bar.set_label(label, fontsize=10)


def learning_curve(values, ax=None, label=None, *, xlabel="step", ylabel="loss"):
    """A line through `values` (T,), the first at 0; call it again with the same ax for more lines.

    Values that are not finite leave a gap. With `label` a legend is drawn.
    Returns: Axes.
    Raises: ValueError for values that are not one-dimensional.
    """
    values = _series("learning_curve", "values", values)
    ax = _one_panel(ax)
    ax.plot(
        np.arange(len(values)), values, label=label, linewidth=1.6, **_line(len(ax.get_lines()))
    )
    _finish(ax, xlabel, ylabel, loc="best")
    return ax


def schedules(values_by_name, ax=None, *, xlabel="step", ylabel=None):
    """A line per named hyperparameter over the steps; a scalar is a level line of full length.

    values_by_name: mapping from name to (T,) or a scalar; T may differ.
    Returns: Axes.
    Raises: ValueError for an empty mapping or values of two or more dimensions.
    """
    if not values_by_name:
        raise ValueError("schedules: no schedule was given; pass a mapping from name to values.")
    series = {
        name: _series("schedules", repr(name), np.atleast_1d(values))
        for name, values in values_by_name.items()
    }
    longest = max(len(values) for values in series.values())
    ax = _one_panel(ax)
    for name, values in series.items():
        if np.ndim(values_by_name[name]) == 0:
            values = np.repeat(values, max(longest, 2))
        look = _line(len(ax.get_lines()))
        ax.plot(np.arange(len(values)), values, label=name, linewidth=1.6, **look)
    _finish(ax, xlabel, ylabel, loc="upper left", bbox_to_anchor=(1.01, 1))
    return ax


def hyperparameter_paths(paths, ax=None, label=None, *, names=None, xlabel="step"):
    """A panel per hyperparameter with its way, as `fit` tells it; again with the same ax for more.

    paths: a `Paths`, or a mapping from name to (T,). names: those to draw, by default all.
    ax: as many Axes as there are names, or None for a new figure. A panel whose values are all
    positive and span a factor of ten or more is logarithmic. With `label` the first has a legend.
    Returns: array of Axes. Raises: ValueError for no names, or Axes that are not as many.
    """
    names = list(paths if names is None else names)
    if not names:
        raise ValueError("hyperparameter_paths: there is no path; nothing was tuned.")
    if ax is None:
        import matplotlib.pyplot as plt

        size = (3.6 * len(names), 3.0)
        ax = plt.subplots(1, len(names), figsize=size, layout="constrained", squeeze=False)[1]
    axes = np.asarray(ax, dtype=object).reshape(-1)
    if len(axes) != len(names):
        raise ValueError(f"hyperparameter_paths: {len(axes)} Axes for {len(names)} names.")
    for panel, name in zip(axes, names, strict=True):
        values = _series("hyperparameter_paths", repr(name), paths[name])
        steps = getattr(paths, "steps", np.arange(len(values)))
        look = _line(len(panel.get_lines()))
        panel.plot(steps, values, label=label, linewidth=1.4, **look)
        if values.min() > 0 and values.max() >= 10 * values.min():
            panel.set_yscale("log")
        panel.set_title(name, fontsize=10)
        _finish(panel, xlabel, None, loc="best")
        if panel is not axes[0] and panel.get_legend():
            panel.get_legend().remove()
    return axes


def _series(function, name, values):
    values = np.asarray(values, dtype=np.float64)
    if values.ndim != 1:
        raise ValueError(
            f"{function}: {name} has shape {values.shape}, one number per step is wanted; "
            "pass each column by itself."
        )
    return values


def _one_panel(ax):
    if ax is not None:
        return ax
    import matplotlib.pyplot as plt

    return plt.subplots(figsize=(5.2, 3.4), layout="constrained")[1]


def _line(count):
    """Colour and dash of the line after `count` others."""
    turn, colour = divmod(count, len(_COLOURS))
    return {"color": _COLOURS[colour], "linestyle": _STYLES[turn % len(_STYLES)]}


def _finish(ax, xlabel, ylabel, **legend):
    ax.set_xlabel(xlabel)
    if ylabel:
        ax.set_ylabel(ylabel)
    ax.spines[["top", "right"]].set_visible(False)
    ax.spines[["left", "bottom"]].set_color(_GREY)
    ax.grid(axis="y", color="0.9", linewidth=0.8)
    ax.set_axisbelow(True)
    ax.margins(x=0.01)
    handles, labels = ax.get_legend_handles_labels()
    if handles:
        ax.legend(handles, labels, frameon=False, fontsize=9, **legend)
