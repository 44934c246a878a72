"""Lines, marks and axes that several pictures use."""

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator

_MARKERS = "osD^vPX*<>"
_DASHES = ("-", "--", "-.", ":")


# In inches: room for a label and six digits at the left, for a label and numbers at the
# bottom, for each line of titles at the top.
_LEFT, _BOTTOM, _TITLE, _EDGE = 0.7, 0.52, 0.27, 0.12


def panels_of(
    size: tuple[float, float],
    rows: int = 1,
    columns: int = 1,
    *,
    titles: int = 1,
    beside: float = _EDGE,
    sharex: bool = False,
    sharey: bool = True,
) -> tuple[Figure, np.ndarray]:
    """A figure of this size, in inches, and its `(rows, columns)` axes.

    The margins are fixed, because a layout that measures all texts takes longer than
    the drawing itself. `beside` is the room between two columns, in inches, and
    `titles` the number of lines above the axes.
    """
    figure = Figure(figsize=size, layout="none")
    width, height = size
    top = _EDGE + titles * _TITLE
    panel_width = (width - _LEFT - _EDGE - (columns - 1) * beside) / columns
    below = _BOTTOM + _EDGE
    panel_height = (height - _BOTTOM - top - (rows - 1) * below) / rows
    return figure, figure.subplots(
        *(rows, columns),
        sharex=sharex,
        sharey=sharey,
        squeeze=False,
        gridspec_kw={
            "left": _LEFT / width,
            "right": 1 - _EDGE / width,
            "bottom": _BOTTOM / height,
            "top": 1 - top / height,
            "wspace": beside / panel_width,
            "hspace": below / panel_height,
        },
    )


def title_of(settings: dict) -> str:
    """The network and the data set, in words."""
    return f"{settings['model']} on {settings['dataset']}"


def style_of(place, number):
    """A line's style: the larger the batch, the lighter; markers and dashes differ."""
    lightness = 0.85 * place / max(1, number - 1)
    return {
        "color": matplotlib.colormaps["viridis"](min(lightness, 0.85)),
        "marker": _MARKERS[place % len(_MARKERS)],
        "linestyle": _DASHES[place % len(_DASHES)],
        "markersize": 4,
    }


def mark_paper(axes, paper, arms):
    """Draws the paper's final errors as horizontal lines."""
    for arm in arms:
        if arm in paper:
            error = 100 - paper[arm]
            axes.axhline(error, color="grey", linewidth=1)
            axes.annotate(
                f"paper, {arm}: {error:.2f} %",
                (0.01, error),
                xycoords=("axes fraction", "data"),
                fontsize="small",
                verticalalignment="bottom",
                bbox={"facecolor": "white", "alpha": 0.8, "linewidth": 0, "pad": 1},
            )


def logarithmic(axes, label):
    """Makes the x-axis logarithmic, with full numbers instead of powers of ten."""
    axes.set(xlabel=label, xscale="log")
    first, last = axes.get_xlim()
    # If there are few powers of ten, it also labels numbers between them.
    subs = (1, 2, 5) if last < 100 * first else (1,)
    axes.xaxis.set_major_locator(LogLocator(subs=subs))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:,.0f}"))
    axes.xaxis.set_minor_formatter(lambda *_: "")
    axes.grid(alpha=0.3, which="both")


def percents(axes):
    """Labels the y-axis with full numbers, also between the powers of ten."""
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:g}"))
    axes.yaxis.set_minor_formatter(lambda *_: "")
