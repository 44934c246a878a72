"""Lines, marks and axes that pictures have in common."""

import matplotlib
from matplotlib.ticker import FuncFormatter, LogLocator

_MARKERS = "osD^vPX*<>"
_DASHES = ("-", "--", "-.", ":")


def style_of(place, number):
    """Ever lighter for larger batches, with a marker and dashes of its own."""
    lightness = 0.85 * place / max(1, number - 1)
    return {
        "color": matplotlib.colormaps["viridis"](min(lightness, 0.85)),
        "marker": _MARKERS[place % len(_MARKERS)],
        "linestyle": _DASHES[place % len(_DASHES)],
        "markersize": 4,
    }


def mark_paper(axes, paper, arms):
    """The paper's final errors as horizontal lines."""
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
    """Numbers in full, not as powers of ten."""
    axes.set(xlabel=label, xscale="log")
    first, last = axes.get_xlim()
    # Between the powers of ten, too, where there are few of them.
    subs = (1, 2, 5) if last < 100 * first else (1,)
    axes.xaxis.set_major_locator(LogLocator(subs=subs))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:,.0f}"))
    axes.xaxis.set_minor_formatter(lambda *_: "")
    axes.grid(alpha=0.3, which="both")


def percents(axes):
    """Figures rather than powers of ten, between the decades too."""
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:g}"))
    axes.yaxis.set_minor_formatter(lambda *_: "")
