"""Lines, marks and axes that several pictures use."""

import matplotlib
from matplotlib.ticker import FuncFormatter, LogLocator

_MARKERS = "osD^vPX*<>"
_DASHES = ("-", "--", "-.", ":")


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
