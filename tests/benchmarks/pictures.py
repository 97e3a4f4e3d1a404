"""The parts that the benchmarks' pictures share."""

from collections.abc import Sequence

from matplotlib.axes import Axes

from tests.benchmarks.measure import Spread

BLUE, ORANGE, GREY, LIGHT = "#3b6fb6", "#d1682b", "#8a8a8a", "#cccccc"


def error_bars(spreads: Sequence[Spread]) -> list[list[float]]:
    """Return how far the least and the greatest values are from the medians."""
    below = [spread.median - spread.least for spread in spreads]
    return [below, [spread.greatest - spread.median for spread in spreads]]


def add_grid_and_legend(axes: Axes) -> None:
    """Finish a plot of curves."""
    axes.grid(alpha=0.3)
    axes.legend(frameon=False, fontsize=8)
