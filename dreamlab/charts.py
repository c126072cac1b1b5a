"""Charts: lines with their intervals, and points, as SVG that stands inside a page.

matplotlib draws them. Axes and words take the colour of the text around them, so that a chart is legible on light and
on dark; every chart has a title and a description for those who hear the page. Called by page.py and compare.py.
"""

import io
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from markupsafe import Markup

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK = "#010203"  # stands for the colour of the text until the chart is written
PALETTE = ("#3f8fd2", "#e08a2e", "#3aa76d", "#a678d8", "#d9605f", "#2fa8a8", "#b58a3c", "#d76ba8")  # on white and black
MARKERS = "osD^vPX*"
STYLE: Any = {
    "svg.fonttype": "none", "svg.hashsalt": "dreamlab", "text.parse_math": False, "font.size": 9,
    "text.color": INK, "axes.edgecolor": INK, "axes.labelcolor": INK, "xtick.color": INK, "ytick.color": INK,
    "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True, "grid.alpha": 0.15, "grid.color": INK,
    "legend.frameon": False, "legend.fontsize": 8, "lines.markersize": 4, "lines.linewidth": 1.6,
}  # fmt: skip


@dataclass(frozen=True)
class Line:
    """Values over updates; `low` and `high` are the ends of their intervals, where they have any."""

    label: str
    updates: Sequence[float]
    values: Sequence[float]
    low: Sequence[float] = ()
    high: Sequence[float] = ()
    colour: str | None = None
    mark: str = ""  # what a script finds the line by
    faint: bool = False


@dataclass(frozen=True)
class Panel:
    """Axes with their lines and, dashed, a level that means something, such as a ceiling."""

    label: str
    lines: Sequence[Line]
    level: tuple[str, float] | None = None
    is_share: bool = False  # from 0 to 1


@dataclass(frozen=True)
class Chart:
    """What stands over a chart, and the chart."""

    title: str
    svg: Markup


def curves(name: str, title: str, panels: Sequence[Panel], kept: int | None = None) -> Chart | None:
    """The panels that have lines, one below the other, the kept update marked; None where there are none."""
    drawn = [panel for panel in panels if any(line.updates for line in panel.lines)]
    if not drawn:
        return None
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(STYLE):
        figure = Figure((5, 0.5 + 2.3 * len(drawn)), layout="constrained")
        for panel, axes in zip(drawn, figure.subplots(len(drawn), sharex=True, squeeze=False)[:, 0], strict=True):
            if kept is not None:
                axes.axvline(
                    kept, color=INK, linestyle=":", linewidth=1.2, alpha=0.7, label="kept" * (panel is drawn[0])
                )
            _draw_panel(axes, panel, is_last=panel is drawn[-1])
        axes.set_xlabel("update")
        said = "; ".join(_described(line) for panel in drawn for line in panel.lines if line.updates)
        return _inline(figure, name, title, said)


def _draw_panel(axes: "Axes", panel: Panel, is_last: bool) -> None:
    axes.set_ylabel(panel.label)
    faint = sum(line.faint for line in panel.lines)
    for number, line in enumerate(line for line in panel.lines if line.updates):
        colour = line.colour or PALETTE[number % len(PALETTE)]
        marker = MARKERS[number % len(MARKERS)] if len(line.updates) <= 16 and not line.faint else ""
        alpha = min(0.35, max(0.05, 15 / faint)) if line.faint else 1.0
        axes.plot(
            line.updates,
            line.values,
            color=colour,
            marker=marker,
            label=line.label,
            alpha=alpha,
            gid=line.mark or None,
            zorder=2 if line.faint else 3,
        )
        if line.low:
            axes.fill_between(line.updates, line.low, line.high, color=colour, alpha=0.15, linewidth=0)
    if panel.level:
        axes.axhline(panel.level[1], color=INK, linestyle="--", linewidth=1, alpha=0.6, label=panel.level[0] or None)
    axes.margins(y=0.12)
    if panel.is_share:
        axes.set_ylim(-0.05, 1.05)
    longest = max((len(line.label) for line in panel.lines), default=0)
    if longest:
        columns = max(1, min(4, 60 // (longest + 6)))
        below: Any = {"loc": "upper center", "bbox_to_anchor": (0.5, -0.2 if is_last else -0.02), "ncols": columns}
        axes.legend(**below)


@dataclass(frozen=True)
class Point:
    """A run between two measures: (value, low, high) each, low and high None where there is no interval."""

    across: tuple[float, float | None, float | None]
    up: tuple[float, float | None, float | None]
    label: str
    link: str
    is_front: bool
    is_chosen: bool


def scatter(name: str, title: str, labels: tuple[str, str], points: Sequence[Point]) -> Chart | None:
    """The points with their intervals, each a link; those of the Pareto front are joined, the chosen one ringed."""
    if not points:
        return None
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(STYLE):
        figure = Figure((5.5, 4), layout="constrained")
        axes = figure.subplots()
        axes.set_xlabel(labels[0])
        axes.set_ylabel(labels[1])
        front = sorted((point for point in points if point.is_front), key=lambda point: point.across[0])
        axes.plot([p.across[0] for p in front], [p.up[0] for p in front], drawstyle="steps-post", color=PALETTE[1],
                  linewidth=1.2, label="Pareto front")  # fmt: skip
        labels_at: dict[tuple[float, float], list[str]] = {}
        for point in sorted(points, key=lambda point: (point.is_chosen, point.is_front)):  # the last lies on top
            is_told = point.is_chosen or len(points) <= 60 or (point.is_front and len(front) <= 20)
            _draw_point(axes, point, has_bars=is_told)
            if is_told:
                labels_at.setdefault((point.across[0], point.up[0]), []).append(point.label)
        for place, names in labels_at.items():
            axes.annotate(
                " ".join(sorted(names, key=lambda name: (len(name), name))),
                place,
                xytext=(5, 5),
                textcoords="offset points",
                fontsize=8,
            )
        axes.legend(loc="lower right")
        said = f"{len(points)} runs, {len(front)} of them on the Pareto front"
        return _inline(figure, name, title, said)


def _draw_point(axes: "Axes", point: Point, has_bars: bool) -> None:
    colour = PALETTE[1] if point.is_front else PALETTE[0]
    across, up = point.across, point.up
    if has_bars:
        if across[1] is not None and across[2] is not None:
            axes.plot([across[1], across[2]], [up[0], up[0]], color=colour, alpha=0.3, linewidth=1, zorder=1)
        if up[1] is not None and up[2] is not None:
            axes.plot([across[0], across[0]], [up[1], up[2]], color=colour, alpha=0.3, linewidth=1, zorder=1)
    mark = f"point-{point.link.removeprefix('#')}"
    size = 70 if point.is_chosen else 28
    dots = axes.scatter([across[0]], [up[0]], s=size, color=colour, edgecolors="none", gid=mark, zorder=2)
    dots.set_urls([point.link])
    if point.is_chosen:  # behind the point, which older matplotlibs make a link of only where it has no edge
        ring = mark.replace("-run-", "-run-ring-")  # a script hides what ends in the run's number
        axes.scatter([across[0]], [up[0]], s=150, color=INK, edgecolors="none", gid=ring, zorder=1.5)


def smoothed(updates: Sequence[float], values: Sequence[float], points: int = 25) -> tuple[list[float], list[float]]:
    """At most `points` means of neighbouring updates and of their values, each of as many as the others."""
    import numpy as np

    if not updates:
        return [], []
    count = len(updates) // math.ceil(len(updates) / points)
    parts = [np.array_split(np.asarray(column, dtype=float), count) for column in (updates, values)]
    centres, means = ([float(part.mean()) for part in column] for column in parts)
    return centres, means


def _described(line: Line) -> str:
    first, last = line.values[0], line.values[-1]
    return (
        f"{line.label or 'a run'} goes from {first:.3g} at update {line.updates[0]:g} to {last:.3g}"
        f" at {line.updates[-1]:g}"
    )


def _inline(figure: "Figure", name: str, title: str, said: str) -> Chart:
    """The figure as an <svg> whose names are its own and whose width is the page's to choose."""
    file = io.StringIO()
    figure.savefig(file, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    svg = file.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>|<defs>\s*<style.*?</style>\s*</defs>|<!--.*?-->", "", svg, flags=re.S)
    svg = re.sub(r'(id="|url\(#|xlink:href="#(?!run-))', rf"\g<1>{name}-", svg).replace(INK, "currentColor")
    svg = svg.replace(' target="_blank"', "")  # a link leads to a place on the same page
    svg = re.sub(r' (?:width|height)="[\d.]+pt"', "", svg, count=2)
    head, _, body = svg.partition(">")
    about = Markup('<title id="{0}-title">{1}</title><desc id="{0}-desc">{2}</desc>').format(name, title, said)
    return Chart(title, Markup(f'{head} role="img" aria-labelledby="{name}-title {name}-desc">{about}{body}'))
