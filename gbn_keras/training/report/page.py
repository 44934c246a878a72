"""`page()`: an HTML page of summaries that needs no other file and no network."""

import base64
import datetime
import importlib.resources
import io
import shlex

import jinja2
import matplotlib
from markupsafe import Markup, escape
from matplotlib.figure import Figure

from gbn_keras.training.report.summary import Summary, Table
from gbn_keras.training.run.run_directory import FLAGFILE
from gbn_keras.version import __version__

# The smallest scale at which the text of a picture is readable. On a phone, the picture
# is then wider than the screen, and scrolls.
_SMALLEST = 0.7
_PIXELS_PER_INCH = 96


def page(summaries: list[Summary]) -> str:
    """The page, with a list of contents if there are several summaries."""
    if len(summaries) == 1:
        title = summaries[0].title
    else:
        title = f"Report on {len(summaries)} run directories"
    return _template().render(
        articles=list(map(_article, summaries)),
        title=title,
        flagfile=FLAGFILE,
        version=__version__,
        date=datetime.date.today().isoformat(),
    )


def _template():
    environment = jinja2.Environment(
        # Titles, flags and folders come from the user. They must not act as markup.
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {"unparted": _unparted, "breakable": _breakable}
    file = importlib.resources.files(__package__) / "page.html"
    return environment.from_string(file.read_text(encoding="utf-8"))


def _article(summary):
    """The values that the template shows of a summary."""
    return {
        "summary": summary,
        "plan": summary.plan.get("", ()),
        "plans": {name: lines for name, lines in summary.plan.items() if name},
        "tables": list(map(_table, summary.tables)),
        "pictures": [
            _picture(figure, caption) for caption, figure in summary.pictures.items()
        ],
        "command": _command(summary),
    }


def _table(table: Table):
    return {
        "caption": table.caption,
        "corner": table.corner,
        "heads": list(next(iter(table.rows.values()))),
        "rows": [
            (str(name), list(map(_cell, row.values())))
            for name, row in table.rows.items()
        ],
        "note": table.note,
    }


def _unparted(text):
    """The text without line breaks between a number and its unit or deviation."""
    for sign in (" ± ", " %"):
        text = escape(text).replace(sign, Markup(sign.replace(" ", "&nbsp;")))
    return text


def _breakable(text):
    """The long name of a flag, with places for line breaks."""
    return escape(text).replace("_", Markup("_<wbr>"))


def _cell(value):
    text = f"{value:g}" if isinstance(value, float) else str(value)
    # This minus sign is as wide as a plus sign.
    return f"\N{MINUS SIGN}{text[1:]}" if text.startswith("-") else text


def _picture(figure: Figure, caption):
    """The picture as SVG in a data URL, so that pictures do not share ids."""
    drawing = io.BytesIO()
    # The same picture always gives the same text.
    with matplotlib.rc_context({"svg.hashsalt": "gbn_keras"}):
        figure.savefig(drawing, format="svg", metadata={"Date": None})
    width, height = (
        round(_PIXELS_PER_INCH * size) for size in figure.get_size_inches()
    )
    return {
        "caption": caption,
        "svg": base64.b64encode(drawing.getvalue()).decode(),
        "width": width,
        "height": height,
        "min_width": round(_SMALLEST * width),
    }


def _command(summary):
    folder = summary.run_dir
    if folder.name in ("", ".."):
        folder = folder.resolve()
    again = folder.with_name(f"{folder.name}-again")
    words = f"--flagfile={folder / FLAGFILE}", f"--run_dir={again}"
    return " \\\n  ".join(["python train.py", *map(shlex.quote, words)])
