"""Two plots of the results as SVG, drawn without a package: utilisation of steps, and peaks of memory by phase."""

from __future__ import annotations

from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

from table import GIB

INK, MUTED, GRID, PAPER = "#1b1f24", "#5c6670", "#e3e6ea", "#ffffff"  # as in the package's report
MEASURED, PLANNED, TARGET = "#0b6bb8", "#d1560a", "#00875f"
LABELS, WIDTH, ROW, TOP = 420, 420, 22, 56  # points: of labels, of the axis, of a bar, above the first one


@dataclass(frozen=True)
class Bar:
    """One row of a plot.

    Attributes:
        label: On the left.
        value: Length of the bar.
        text: Behind it.
        mark: A second value, drawn as a tick; None: there is none.
    """

    label: str
    value: float
    text: str
    mark: float | None = None


def write_plots(body: dict[str, Any], folder: Path) -> list[str]:
    """Writes the plots that the results have figures for; returns the names of the files."""
    done = [each for each in body["cases"] if each["outcome"] == "measured"]
    steps = [
        Bar(
            each["name"],
            each["utilisation"],
            f"{each['utilisation']:.1%}, {each['tokens_per_second']:,.0f} tokens/s",
            _utilisation_target(each),
        )
        for each in done
        if each["kind"] == "steps"
    ]
    memory = [
        _memory_bar(each["name"], each["allocated_bytes"], each["planned_bytes"])
        for each in done
        if each["kind"] == "steps" and each["allocated_bytes"]
    ] + [
        _memory_bar(f"{name} ({_short(each['name'])})", phase["peak_bytes"], phase["planned_bytes"])
        for each in done
        for name, phase in each.get("phases", {}).items()
        if phase["peak_bytes"]
    ]
    written = []
    for name, title, bars, mark in (
        ("utilisation", "MFU of a step", steps, "target"),
        ("memory", "Peak of allocated memory, GiB", memory, "planned"),
    ):
        if bars:
            (folder / f"{name}.svg").write_text(drawn(title, bars, mark), encoding="utf-8")
            written.append(f"{name}.svg")
    return written


def drawn(title: str, bars: list[Bar], mark: str) -> str:
    """Return horizontal bars from zero, with ticks at their marks, as an SVG file.

    Args:
        title: Text above the bars, also for screen readers.
        bars: From top to bottom; at least one.
        mark: Meaning of the ticks.
    """
    largest = max(value for bar in bars for value in (bar.value, bar.mark or 0.0)) or 1.0
    scale = WIDTH / largest
    width, height = LABELS + WIDTH + 190, TOP + ROW * len(bars) + 16
    color = TARGET if mark == "target" else PLANNED
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
        f'role="img" aria-label="{escape(title)}" font-family="system-ui, sans-serif" font-size="12" fill="{INK}">',
        f'<rect width="{width}" height="{height}" fill="{PAPER}"/>',
        f'<text x="12" y="24" font-size="15" font-weight="600">{escape(title)}</text>',
        f'<rect x="{LABELS}" y="14" width="18" height="10" fill="{MEASURED}"/>',
        f'<text x="{LABELS + 24}" y="24" fill="{MUTED}">measured</text>',
        f'<rect x="{LABELS + 110}" y="11" width="3" height="16" fill="{color}"/>',
        f'<text x="{LABELS + 120}" y="24" fill="{MUTED}">{escape(mark)}</text>',
        f'<line x1="{LABELS}" x2="{LABELS}" y1="{TOP - 8}" y2="{height - 12}" stroke="{GRID}"/>',
    ]
    for place, bar in enumerate(bars):
        y = TOP + ROW * place
        length = scale * bar.value
        parts.append(f'<text x="{LABELS - 8}" y="{y + 11}" text-anchor="end">{escape(bar.label)}</text>')
        parts.append(f'<rect x="{LABELS}" y="{y}" width="{length:.1f}" height="14" fill="{MEASURED}"/>')
        end = length
        if bar.mark is not None:
            parts.append(
                f'<rect x="{LABELS + scale * bar.mark - 1.5:.1f}" y="{y - 3}" width="3" height="20" fill="{color}"/>'
            )
            end = max(length, scale * bar.mark)
        parts.append(f'<text x="{LABELS + end + 8:.1f}" y="{y + 11}" fill="{MUTED}">{escape(bar.text)}</text>')
    return "\n".join([*parts, "</svg>"]) + "\n"


def _memory_bar(label: str, peak: int, planned: int | None) -> Bar:
    if planned is None:
        return Bar(label, peak / GIB, f"{peak / GIB:.1f}")
    return Bar(label, peak / GIB, f"{peak / GIB:.1f}, planned {planned / GIB:.1f}", planned / GIB)


def _utilisation_target(each: dict[str, Any]) -> float | None:
    target = each["targets"].get("utilisation")
    return None if target is None else float(target[1])


def _short(name: str) -> str:
    """Return the part of the name in which cases with phases differ."""
    return name.split(", ", 1)[1]
