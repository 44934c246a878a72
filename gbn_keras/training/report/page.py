"""`page()`: summaries as one HTML page that needs no other file and no network."""

import base64
import datetime
import importlib.resources
import io
import shlex
import string
from html import escape

import matplotlib
from matplotlib.figure import Figure

from gbn_keras.training.report.summary import Summary, Table
from gbn_keras.training.run.run_directory import FLAGFILE
from gbn_keras.version import __version__

# A picture may be shown so much smaller than drawn before its text is too small to
# read: on a phone it is wider than the screen, and moved.
_SMALLEST = 0.7
_PIXELS_PER_INCH = 96


def page(summaries: list[Summary]) -> str:
    """The page, with a list of contents if there are several summaries."""
    if len(summaries) == 1:
        title = summaries[0].title
        body = _article(summaries[0], 1)
    else:
        title = f"Report on {len(summaries)} run directories"
        body = f"<header><h1>{title}</h1></header>\n{_contents(summaries)}" + "\n".join(
            f'<div id="run-{place}">\n{_article(summary, 2)}</div>'
            for place, summary in enumerate(summaries, 1)
        )
    template = importlib.resources.files(__package__) / "page.html"
    return string.Template(template.read_text(encoding="utf-8")).substitute(
        title=escape(title),
        body=body,
        version=escape(__version__),
        date=datetime.date.today().isoformat(),
    )


def _contents(summaries):
    items = "\n".join(
        f'<li><a href="#run-{place}">{escape(summary.title)}</a>{_state(summary)}'
        f"<br>{_text(' '.join(summary.headlines))}</li>"
        for place, summary in enumerate(summaries, 1)
    )
    return f'<nav aria-label="Contents">\n<ol>\n{items}\n</ol>\n</nav>\n'


def _article(summary, level):
    parts = {
        "Plan": _plan(summary.plan),
        "Result": "".join(map(_table, summary.tables)),
        "Pictures": "".join(map(_picture, summary.pictures.values(), summary.pictures)),
        "Environment": _pairs(summary.environment, "environment"),
        "Run it again": _command(summary),
    }
    headlines = "".join(
        f'<p class="headline">{_text(text)}</p>\n' for text in summary.headlines
    )
    sections = "".join(
        f"<section>\n<h{level + 1}>{name}</h{level + 1}>\n{html}</section>\n"
        for name, html in parts.items()
        if html
    )
    return (
        f"<article>\n<header>\n<h{level}>{escape(summary.title)}</h{level}>\n"
        f'<p class="where"><code>{escape(str(summary.run_dir))}</code>'
        f"{_state(summary)}</p>\n{headlines}</header>\n{sections}</article>\n"
    )


def _state(summary):
    if not summary.unfinished:
        return ""
    return f' <strong class="state">Unfinished: {escape(summary.unfinished)}</strong>'


def _plan(plan):
    items = "".join(f"<li>{escape(line)}</li>\n" for line in plan.get("", ()))
    own = f'<ul class="plan">\n{items}</ul>\n' if items else ""
    return own + _pairs({name: lines for name, lines in plan.items() if name}, "plan")


def _pairs(pairs, kind):
    """By name, one value or several."""
    items = "".join(
        f"<dt>{escape(name)}</dt>\n"
        + "".join(f"<dd>{escape(value)}</dd>\n" for value in values)
        for name, values in pairs.items()
    )
    return f'<dl class="{kind}">\n{items}</dl>\n' if items else ""


def _table(table: Table):
    frame = table.rows
    corner = frame.index.name
    corner = f'<th scope="col">{_text(corner)}</th>' if corner else "<td></td>"
    # A flag's long name may be parted.
    heads = "".join(
        f'<th scope="col">{_text(str(name)).replace("_", "_<wbr>")}</th>'
        for name in frame
    )
    rows = "\n".join(
        f'<tr><th scope="row">{_text(str(name))}</th>'
        + "".join(f"<td>{_text(_cell(value))}</td>" for value in values)
        + "</tr>"
        for name, values in zip(frame.index, frame.to_numpy(object), strict=True)
    )
    note = f'<p class="note">{_text(table.note)}</p>\n' if table.note else ""
    return (
        f'<div class="table">\n{_scrolled(table.caption)}<table>\n'
        f"<caption>{escape(table.caption)}</caption>\n"
        f"<thead><tr>{corner}{heads}</tr></thead>\n<tbody>\n{rows}\n</tbody>\n"
        f"</table></div>\n{note}</div>\n"
    )


def _text(text):
    """Escaped, with figures that are not parted from their unit or deviation."""
    return escape(text).replace(" ± ", "&nbsp;±&nbsp;").replace(" %", "&nbsp;%")


def _cell(value):
    text = f"{value:g}" if isinstance(value, float) else str(value)
    # A minus as wide as the plus.
    return f"\N{MINUS SIGN}{text[1:]}" if text.startswith("-") else text


def _picture(figure: Figure, caption):
    """The picture as SVG in an address of its own, so that it shares no names."""
    drawing = io.BytesIO()
    # The same picture, the same file.
    with matplotlib.rc_context({"svg.hashsalt": "gbn_keras"}):
        figure.savefig(drawing, format="svg", metadata={"Date": None})
    width, height = (
        round(_PIXELS_PER_INCH * size) for size in figure.get_size_inches()
    )
    data = base64.b64encode(drawing.getvalue()).decode()
    return (
        f"<figure>\n{_scrolled(caption)}"
        f'<img src="data:image/svg+xml;base64,{data}" alt="{escape(caption)}" '
        f'width="{width}" height="{height}" '
        f'style="min-width: {round(_SMALLEST * width)}px"></div>\n'
        f"<figcaption>{escape(caption)}</figcaption>\n</figure>\n"
    )


def _scrolled(name):
    """Opens what is moved sideways where it is wider than the screen, by keys too."""
    return (
        f'<div class="scrolled" role="region" tabindex="0" aria-label="{escape(name)}">'
    )


def _command(summary):
    folder = summary.run_dir
    if folder.name in ("", ".."):
        folder = folder.resolve()
    again = folder.with_name(f"{folder.name}-again")
    words = f"--flagfile={folder / FLAGFILE}", f"--run_dir={again}"
    command = " \\\n  ".join(["python train.py", *map(shlex.quote, words)])
    return (
        f"<pre><code>{escape(command)}</code></pre>\n"
        f"<p>All flags, <code>{FLAGFILE}</code>:</p>\n"
        f'<pre class="flags"><code>{escape(summary.flags)}</code></pre>\n'
    )
