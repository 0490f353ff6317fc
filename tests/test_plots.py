"""Pictures draw what they were given, into the Axes they were given."""

import matplotlib.pyplot as plt
import numpy as np
import pytest

from revgrad import plots


@pytest.fixture(autouse=True)
def close_figures():
    yield
    plt.close("all")


def drawn(axes):
    """Draw the figure, so that a fault at drawing time shows."""
    axes = np.atleast_1d(axes)
    axes[0].figure.canvas.draw()
    return axes


def test_maps_share_a_range_clipped_at_the_98th_percentile():
    weights = np.arange(640.0).reshape(10, 64)
    axes = drawn(plots.per_weight_maps(weights, (8, 8), label="penalty", title="Penalties"))
    assert axes.shape == (10,) and [ax.get_title() for ax in axes] == [str(k) for k in range(10)]
    for ax, expected in zip(axes, weights, strict=True):
        (image,) = ax.images
        np.testing.assert_array_equal(image.get_array(), expected.reshape(8, 8))
        assert image.get_clim() == (0.0, np.percentile(weights, 98))
    (bar,) = set(axes[0].figure.axes) - set(axes)
    assert bar.get_ylabel() == "penalty" and axes[0].figure.get_suptitle() == "Penalties"


def test_signed_maps_are_symmetric_about_zero():
    weights = np.linspace(-1, 3, 24).reshape(2, 12)
    low, high = plots.per_weight_maps(weights, (3, 4), percentile=100)[0].images[0].get_clim()
    assert (low, high) == (-3, 3)


@pytest.mark.parametrize("weights", [np.zeros((2, 4)), np.eye(2, 60)])
def test_maps_with_next_to_nothing_in_them_are_drawn(weights):
    axes = drawn(plots.per_weight_maps(weights, (2, weights.shape[1] // 2)))
    assert axes[0].images[0].get_clim() == (0, 1)


def test_maps_are_drawn_into_given_axes():
    given = plt.subplots(1, 3)[1]
    axes = plots.per_weight_maps(np.ones((3, 2, 2)), (2, 2), ax=given, names=["a", "b", "c"])
    assert list(axes) == list(given) and [ax.get_title() for ax in axes] == ["a", "b", "c"]


@pytest.mark.parametrize("count", [1, 4, 7, 11])
def test_spare_panels_stay_empty(count):
    axes = drawn(plots.per_weight_maps(np.ones((count, 4)), (2, 2)))
    assert sum(bool(ax.images) for ax in axes[0].figure.axes) == count


@pytest.mark.parametrize(
    ("weights", "options", "told"),
    [
        (np.ones((3, 5)), {}, r"shape \(3, 5\) do not give 2 x 2 pixels"),
        (np.ones(4), {}, r"shape \(4,\)"),
        (np.full((1, 4), np.nan), {}, "4 values are not finite"),
        (np.ones((3, 4)), {"names": "ab"}, "2 names for 3 classes"),
    ],
)
def test_maps_refuse(weights, options, told):
    with pytest.raises(ValueError, match=told):
        plots.per_weight_maps(weights, (2, 2), **options)
    assert plt.get_fignums() == []


def test_maps_refuse_axes_of_another_number():
    with pytest.raises(ValueError, match="1 Axes for 3 classes"):
        plots.per_weight_maps(np.ones((3, 4)), (2, 2), ax=plt.subplots()[1])


def test_curves_gather_in_one_axes():
    ax = plots.learning_curve([3, 2, np.nan, 1], label="one")
    assert plots.learning_curve(np.array([2.0]), ax=ax, label="two", xlabel="outer step") is ax
    drawn(ax)
    first, second = ax.get_lines()
    np.testing.assert_array_equal(first.get_xydata()[:2], [[0, 3], [1, 2]])
    assert first.get_color() != second.get_color() and ax.get_xlabel() == "outer step"
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["one", "two"]
    assert plots.learning_curve([1, 2]).get_legend() is None


def test_a_schedule_that_is_a_number_is_a_level_line():
    ax = drawn(plots.schedules({"rate": np.linspace(1, 0, 5), "momentum": 0.9}))[0]
    rate, momentum = ax.get_lines()
    assert len(rate.get_xdata()) == 5
    np.testing.assert_array_equal(momentum.get_xydata(), [[k, 0.9] for k in range(5)])
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["rate", "momentum"]


def test_many_schedules_stay_apart():
    ax = plots.schedules({str(k): k for k in range(20)})
    assert len({(line.get_color(), line.get_linestyle()) for line in ax.get_lines()}) == 20


def test_series_are_one_dimensional():
    with pytest.raises(ValueError, match=r"'rates' has shape \(3, 2\)"):
        plots.schedules({"rates": np.ones((3, 2))})
    with pytest.raises(ValueError, match=r"values has shape \(\)"):
        plots.learning_curve(1.0)
    with pytest.raises(ValueError, match="no schedule"):
        plots.schedules({})


def test_paths_have_a_panel_each():
    paths = {"learning_rate": np.geomspace(1e-4, 1.0, 20), "b1": np.linspace(0.9, 0.8, 20)}
    axes = plots.hyperparameter_paths(paths, label="one")
    assert plots.hyperparameter_paths(paths, axes, label="two") is not None
    assert [panel.get_yscale() for panel in axes] == ["log", "linear"]
    assert [len(panel.get_lines()) for panel in axes] == [2, 2]
    assert np.array_equal(axes[1].get_lines()[0].get_ydata(), paths["b1"])
    assert axes[0].get_legend() and not axes[1].get_legend()
    with pytest.raises(ValueError, match="nothing was tuned"):
        plots.hyperparameter_paths({})
    with pytest.raises(ValueError, match="2 Axes for 1 names"):
        plots.hyperparameter_paths(paths, axes, names=["b1"])
