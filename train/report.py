"""One self-contained HTML file that shows what a run did: numbers against targets, tables, plots, replays in 3-D.

Everything is inside the file (style, plots as SVG, the viewer, the motion), so it opens from disk with no network; its
content policy forbids it to fetch anything.

    report = Report("Controller", subtitle="seed 0, 400 iterations")
    report.add_metrics({"survival": Metric(0.98, target=0.95), "touchdown error": Metric(0.031, "m", 0.05, "lower")})
    report.add_plot("Reward", {"train": (steps, reward)}, "iteration", "reward")
    report.add_replay("Walk", {"before": replay_a, "after": replay_b})
    report.write("runs/walk/report.html")
"""

from __future__ import annotations

import html
import io
import json
import math
import numbers
import os
import re
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from train.replay import Replay

ASSETS = Path(__file__).parent / "assets"
STAGE_SCRIPTS = ("three.bundle.min.js", "replay_data.js", "stage_gl.js", "stage_2d.js", "camera.js")
SCRIPTS = (*STAGE_SCRIPTS, "viewer.js")
POLICY = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src data: blob:"
SERIES_COLORS = 6  # --s0 .. --s5 in report.css
DASHES = ("solid", "dashed", "dotted")
# An address that a browser would fetch or follow: in an attribute, a style or a module import.
EXTERNAL = re.compile(
    r"""(?:\b(?:src|srcset|href|action|poster|data)\s*=\s*["']?\s*(?:https?:)?//)"""
    r"""|(?:url\(\s*["']?\s*(?:https?:)?//)|(?:@import\b)|(?:\bimport\s*\(?\s*["'](?:https?:)?//)"""
    r"""|(?:\bfrom\s*["'](?:https?:)?//)""",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Metric:
    """A number with its goal. `better` says on which side of `target` the goal lies; None or NaN is "not measured"."""

    value: float | None
    unit: str = ""
    target: float | None = None
    better: Literal["higher", "lower"] = "higher"
    ci95: tuple[float, float] | None = None
    note: str = ""

    @property
    def met(self) -> bool | None:
        """Whether the target is met; None without a target or a value."""
        if self.target is None or self.value is None or math.isnan(self.value):
            return None
        return self.value >= self.target if self.better == "higher" else self.value <= self.target


class Report:
    """A page built from the top down; each `add_` appends to it and returns the report."""

    def __init__(self, title: str, subtitle: str = ""):
        self.title, self.subtitle = title, subtitle
        self._parts: list[tuple[str, str]] = []  # (kind, html)
        self._sections: list[str] = []

    def add_section(self, title: str) -> Report:
        """A heading, listed in the bar at the top of the page."""
        self._sections.append(title)
        return self._add("section", f'<h2 id="s{len(self._sections)}">{html.escape(title)}</h2>')

    def add_text(self, text: str) -> Report:
        """Prose: HTML, or paragraphs with `#` headings, `-` lists, ``` blocks, `code`, **bold** and *stress*."""
        return self._add("text", f'<div class="text">{_prose(text)}</div>')

    def add_metrics(self, metrics: Mapping[str, Metric | float | None]) -> Report:
        """A row of tiles, each a number and whether it meets its target."""
        tiles = (_tile(name, m if isinstance(m, Metric) else Metric(m)) for name, m in metrics.items())
        return self._add("tiles", f'<div class="tiles">{"".join(tiles)}</div>')

    def add_table(
        self, rows: Sequence[Mapping[str, Any]] | Sequence[Sequence[Any]], header: Sequence[str] = (), caption: str = ""
    ) -> Report:
        """A table; rows are mappings (their keys are the header) or sequences."""
        return self._add("table", _table(rows, header, caption))

    def add_plot(
        self,
        title: str,
        series: Mapping[str, Any],
        x_label: str,
        y_label: str,
        bands: Mapping[str, tuple[Any, Any]] | None = None,
        *,
        targets: Mapping[str, float] | None = None,
        note: str = "",
        log_y: bool = False,
        y_range: tuple[float | None, float | None] | None = None,
        shaded: Sequence[tuple[float, float]] = (),
    ) -> Report:
        """Lines as SVG. `series[name]` is (x, y), or y alone over 0, 1, ...; `bands[name]` is (low, high) around that
        series; `targets` are named dashed levels; `shaded` are stretches of x with another background. Plots added one
        after the other stand side by side."""
        figure = _plot(len(self._parts), series, x_label, y_label, bands or {}, targets or {}, log_y, y_range, shaded)
        small = f"<small>{html.escape(note)}</small>" if note else ""
        return self._add("plot", f"<figure><figcaption>{html.escape(title)}{small}</figcaption>{figure}</figure>")

    def add_replay(
        self,
        name: str,
        replay: Replay | Mapping[str, Any],
        *,
        text: str = "",
        side_by_side: bool = True,
    ) -> Report:
        """Motion in 3-D: one replay, or several by label, with one clock, side by side or one at a time."""
        single = isinstance(replay, Replay) or "format" in replay
        panels: Mapping[str, Any] = {"": replay} if single else replay  # type: ignore[assignment]
        if not panels:
            raise ValueError(f"replay {name!r}: nothing to show")
        shown = [{"label": k, "replay": r.to_dict() if isinstance(r, Replay) else r} for k, r in panels.items()]
        head = f"<h3>{html.escape(name)}</h3>" + (f"<p>{_inline(text)}</p>" if text else "")
        script = inline_data({"panels": shown, "side_by_side": side_by_side})
        return self._add("replay", f'<section class="replay">{head}{script}</section>')

    def render(self) -> str:
        """The whole page; see `document`."""
        body = []
        for i, (kind, part) in enumerate(self._parts):
            opens = kind == "plot" and (i == 0 or self._parts[i - 1][0] != "plot")
            closes = kind == "plot" and (i + 1 == len(self._parts) or self._parts[i + 1][0] != "plot")
            body.append(('<div class="plots">' if opens else "") + part + ("</div>" if closes else ""))
        head = f"<header><h1>{html.escape(self.title)}</h1>{self._subtitle()}</header>"
        return document(self.title, [self._navigation(), f"<main>{head}", *body, f"</main>{self._viewer()}"])

    def write(self, path: str | os.PathLike[str], *, overwrite: bool = False) -> Path:
        """Writes the page, whole or not at all. An existing file is left alone (FileExistsError) unless `overwrite`."""
        path = Path(path)
        page = self.render().encode()
        if path.exists() and not overwrite:
            raise FileExistsError(f"{path} exists; pass overwrite=True to replace it")
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(page)
                file.flush()
                os.fsync(file.fileno())
            os.chmod(temporary, 0o644)
            if overwrite:
                os.replace(temporary, path)
            else:
                _publish(temporary, path)
        finally:
            Path(temporary).unlink(missing_ok=True)
        return path

    def _add(self, kind: str, part: str) -> Report:
        self._parts.append((kind, part))
        return self

    def _subtitle(self) -> str:
        return f"<p>{_inline(self.subtitle)}</p>" if self.subtitle else ""

    def _navigation(self) -> str:
        if len(self._sections) < 2:
            return ""
        links = (f'<a href="#s{i}">{html.escape(s)}</a>' for i, s in enumerate(self._sections, 1))
        return f'<nav><div class="inner">{"".join(links)}</div></nav>'

    def _viewer(self) -> str:
        if not any(kind == "replay" for kind, _ in self._parts):
            return '<script>document.documentElement.setAttribute("data-ready", "0")</script>'
        return f"\n{scripts(SCRIPTS)}<script>RDP.start()</script>"


def document(title: str, body: Sequence[str], policy: str = POLICY, styles: Sequence[str] = ("report.css",)) -> str:
    """A whole page with its style inside; ValueError where something in it would reach outside the file.

    Args:
      title: of the window.
      body: pieces of HTML.
      policy: what the page may load and connect to.
      styles: names of assets.
    """
    page = "\n".join(
        [
            '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">',
            f'<meta http-equiv="Content-Security-Policy" content="{policy}">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f"<title>{html.escape(title)}</title>",
            f"<style>\n{''.join(map(_asset, styles))}</style></head><body>",
            *body,
            "</body></html>\n",
        ]
    )
    reach = EXTERNAL.search(page)
    if reach:
        raise ValueError(f"a page stands alone, but this one refers outside: {page[reach.start() :][:80]!r}")
    return page


def scripts(names: Sequence[str]) -> str:
    """Assets as script elements."""
    return "".join(f"<script>{_asset(name)}</script>\n" for name in names)


def inline_data(value: Any) -> str:
    """JSON as a script element that a page's scripts can read; no text in it can end the element."""
    data = json.dumps(value, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")
    return f'<script type="application/json">{data}</script>'


def _asset(name: str) -> str:
    return (ASSETS / name).read_text(encoding="utf-8")


def _publish(temporary: str, path: Path) -> None:
    """Gives the finished file its name, failing where another took the name meanwhile."""
    try:
        os.link(temporary, path)
    except FileExistsError:
        raise FileExistsError(f"{path} exists; pass overwrite=True to replace it") from None
    except OSError:  # a file system without hard links
        os.replace(temporary, path)


# ---------------------------------------------------------------------------------------------------------------- text
def _inline(text: str) -> str:
    """Stress, code; the code's content is escaped, other HTML passes."""
    out = []
    for i, piece in enumerate(re.split(r"`([^`]+)`", text)):
        if i % 2:
            out.append(f"<code>{html.escape(piece)}</code>")
        else:
            piece = re.sub(r"\*\*(\S(?:.*?\S)?)\*\*", r"<strong>\1</strong>", piece)
            out.append(re.sub(r"(?<![\w*])\*(\S(?:[^*]*?\S)?)\*(?![\w*])", r"<em>\1</em>", piece))
    return "".join(out)


def _prose(text: str) -> str:
    """A little Markdown: blocks apart by blank lines."""
    out = []
    for i, piece in enumerate(re.split(r"^```[^\n]*\n(.*?)^```[ ]*$", text, flags=re.MULTILINE | re.DOTALL)):
        if i % 2:
            out.append(f"<pre><code>{html.escape(piece)}</code></pre>")
        else:
            out += [_block(b.strip()) for b in re.split(r"\n\s*\n", piece) if b.strip()]
    return "\n".join(out)


def _block(block: str) -> str:
    lines = block.splitlines()
    if block.startswith("<"):
        return block
    if block.startswith("#"):
        rest = "\n".join(lines[1:]).strip()
        return f"<h3>{_inline(lines[0].lstrip('#').strip())}</h3>" + (_block(rest) if rest else "")
    if lines[0].startswith("- "):
        items = re.split(r"^- ", block, flags=re.MULTILINE)[1:]
        return "<ul>" + "".join(f"<li>{_inline(item.strip())}</li>" for item in items) + "</ul>"
    return f"<p>{_inline(block)}</p>"


def format_number(x: Any) -> str:
    """A value as people read it: four significant digits, no trailing zeros, a dash for nothing."""
    if x is None:
        return "–"
    if isinstance(x, (bool, np.bool_)):
        return "yes" if x else "no"
    if not isinstance(x, numbers.Number):
        return str(x)
    x = float(x)  # type: ignore[arg-type]
    if not math.isfinite(x):
        return "–" if math.isnan(x) else ("∞" if x > 0 else "−∞")
    if x == int(x) and abs(x) < 1e15:
        return f"{int(x):,}".replace("-", "−")
    if 1e-4 <= abs(x) < 1e6:
        text = f"{x:.{max(0, 3 - math.floor(math.log10(abs(x))))}f}"
        return (text.rstrip("0").rstrip(".") if "." in text else text).replace("-", "−")
    return f"{x:.3g}".replace("-", "−")


def _tile(name: str, metric: Metric) -> str:
    unit = f"<small>{html.escape(metric.unit)}</small>" if metric.unit and metric.value is not None else ""
    out = [f'<div class="name">{html.escape(name)}</div><div class="value">{format_number(metric.value)}{unit}</div>']
    notes = [html.escape(metric.note)] if metric.note else []
    if metric.ci95 is not None:
        notes.insert(0, f"95 % interval {format_number(metric.ci95[0])} to {format_number(metric.ci95[1])}")
    if notes:
        out.append(f'<div class="note">{", ".join(notes)}</div>')
    if metric.target is not None:
        state, words = {True: ("met", "met"), False: ("missed", "not met"), None: ("", "not measured")}[metric.met]
        sign = "≥" if metric.better == "higher" else "≤"
        goal = f"target {sign} {format_number(metric.target)}"
        out.append(f'<div class="goal"><span>{goal}</span><span class="badge {state}">{words}</span></div>')
    return f'<div class="tile">{"".join(out)}</div>'


def _table(rows: Sequence[Any], header: Sequence[str], caption: str) -> str:
    rows = list(rows)
    if rows and isinstance(rows[0], Mapping):
        header = list(header) or list(dict.fromkeys(key for row in rows for key in row))
        rows = [[row.get(key) for key in header] for row in rows]
    width = max([len(header), *(len(r) for r in rows)], default=0)
    numeric = [
        any(isinstance(r[c], numbers.Number) for r in rows if c < len(r))
        and all(r[c] is None or isinstance(r[c], numbers.Number) for r in rows if c < len(r))
        for c in range(width)
    ]

    def cell(tag: str, column: int, value: Any) -> str:
        text = format_number(value)
        style = ' class="number"' if numeric[column] else ' class="wide"' if len(text) > 48 else ""
        return f"<{tag}{style}>{html.escape(text)}</{tag}>"

    def line(tag: str, row: Sequence[Any]) -> str:
        return "<tr>" + "".join(cell(tag, c, v) for c, v in enumerate(row)) + "</tr>"

    head = f"<thead>{line('th', header)}</thead>" if header else ""
    top = f"<caption>{html.escape(caption)}</caption>" if caption else ""
    return f'<div class="table"><table>{top}{head}<tbody>{"".join(line("td", r) for r in rows)}</tbody></table></div>'


# --------------------------------------------------------------------------------------------------------------- plots
_INK, _RULE, _CARD = "#0a0b0c", "#0a0b0d", "#0a0b0e"  # placeholders, exchanged for the page's colours


def _series_color(i: int) -> str:
    return f"#0a0c{i % SERIES_COLORS:02x}"


def _xy(data: Any) -> tuple[np.ndarray, np.ndarray]:
    """x and y of a series given as (x, y) or as y alone."""
    if isinstance(data, tuple) and len(data) == 2:
        return np.asarray(data[0], float).ravel(), np.asarray(data[1], float).ravel()
    y = np.asarray(data, float).ravel()
    return np.arange(len(y), dtype=float), y


def _plot(
    number: int,
    series: Mapping[str, Any],
    x_label: str,
    y_label: str,
    bands: Mapping[str, tuple[Any, Any]],
    targets: Mapping[str, float],
    log_y: bool,
    y_range: tuple[float | None, float | None] | None,
    shaded: Sequence[tuple[float, float]],
) -> str:
    """The legend as HTML and the axes as inline SVG whose colours follow the page's theme."""
    from matplotlib import rc_context
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    unknown = set(bands) - set(series)
    if unknown:
        raise ValueError(f"bands for no series: {', '.join(sorted(unknown))}")
    style = {"svg.fonttype": "none", "svg.hashsalt": f"plot{number}", "font.size": 10.5, "axes.unicode_minus": True}
    legend = []
    with rc_context(style):
        figure = Figure(figsize=(6.4, 3.5), layout="constrained")
        FigureCanvasSVG(figure)
        axes = figure.add_subplot()
        for i, (name, data) in enumerate(series.items()):
            x, y = _xy(data)
            dash = DASHES[i // SERIES_COLORS % len(DASHES)]
            marker = "o" if np.isfinite(y).sum() == 1 else None
            axes.plot(x, y, color=_series_color(i), linewidth=1.8, linestyle=dash, marker=marker, markersize=4)
            if name in bands:
                low, high = (np.asarray(b, float).ravel() for b in bands[name])
                axes.fill_between(x, low, high, color=_series_color(i), alpha=0.16, linewidth=0)
            entry = f"--c:var(--s{i % SERIES_COLORS});--dash:{dash}"
            legend.append(f'<span style="{entry}">{html.escape(name)}</span>')
        for start, end in shaded:
            axes.axvspan(start, end, color=_RULE, alpha=0.5, linewidth=0, zorder=0)
        for name, level in targets.items():
            axes.axhline(level, color=_INK, linewidth=1.1, linestyle=(0, (5, 4)), zorder=1)
            legend.append(f'<span style="--c:var(--ink-2);--dash:dashed">{html.escape(name)}</span>')
        if log_y:
            axes.set_yscale("log")
        if y_range is not None:
            axes.set_ylim(*y_range)
        axes.set_xlabel(x_label, color=_INK)
        axes.set_ylabel(y_label, color=_INK)
        axes.margins(x=0.01)
        if all(float(x).is_integer() for data in series.values() for x in _xy(data)[0]):
            axes.xaxis.set_major_locator(MaxNLocator("auto", steps=[1, 2, 5, 10], integer=True))
        axes.grid(True, color=_RULE, linewidth=0.8)
        axes.set_axisbelow(True)
        axes.tick_params(which="both", color=_RULE, labelcolor=_INK, length=0, pad=5)
        for side, spine in axes.spines.items():
            spine.set_visible(side == "bottom")
            spine.set_color(_RULE)
        figure.patch.set_visible(False)
        axes.patch.set_visible(False)
        out = io.StringIO()
        figure.savefig(out, format="svg", metadata={"Date": None, "Creator": None})
    shown = len(series) > 1 or targets
    return (f'<div class="legend">{"".join(legend)}</div>' if shown else "") + _inline_svg(out.getvalue(), number)


def _inline_svg(svg: str, number: int) -> str:
    """A stand-alone SVG file's drawing, fit to stand in a page beside others."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r'\bid="', f'id="p{number}-', svg)
    svg = svg.replace('href="#', f'href="#p{number}-').replace("url(#", f"url(#p{number}-")
    svg = re.sub(r"font: (\S+) [^;\"]*(?=[;\"])", r"font-size: \1; font-family: var(--sans)", svg)
    colors = {_INK: "var(--ink-2)", _RULE: "var(--rule)", _CARD: "var(--card)"}
    colors |= {_series_color(i): f"var(--s{i})" for i in range(SERIES_COLORS)}
    for placeholder, color in colors.items():
        svg = svg.replace(placeholder, color)
    return svg.strip()
