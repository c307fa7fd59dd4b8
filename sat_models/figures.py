"""Plots, without a display: the one place that imports matplotlib, which belongs to the extra `plot`."""

from __future__ import annotations

from typing import Any

from sat_models.errors import MissingPackageError


def new_figure(width: float, height: float) -> Any:
    """An empty matplotlib `Figure` of that size in inches; its `savefig` takes the format from the file's ending.

    Raises:
        MissingPackageError: matplotlib is not installed.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingPackageError("matplotlib", "plot", "drawing a plot") from error
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure
