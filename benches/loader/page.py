"""The table and the plot of a run, in benches/README.md."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from textwrap import fill
from typing import Any

from matplotlib.figure import Figure

BEGIN, END = "<!-- loaders: written by make bench-sampler -->", "<!-- end of loaders -->"
PLOT = "loader.png"
SETTINGS = {(2048, 0): "2048, one", (2048, 2): "2048, two", (4096, 0): "4096, one", (4096, 2): "4096, two"}

Setting = tuple[int, int]


@dataclass
class Result:
    """What a run found. Rates are rows per second by (row length, workers) and contender."""

    names: dict[str, str]
    machine: str
    date: str
    tokens: int
    rounds: int
    seconds: float
    rates: dict[Setting, dict[str, float]] = field(default_factory=dict)
    spreads: list[float] = field(default_factory=list)
    versions: dict[str, str] = field(default_factory=dict)
    once: dict[str, dict[str, Any]] = field(default_factory=dict)
    own: dict[str, float] = field(default_factory=dict)
    absent: dict[str, str] = field(default_factory=dict)


def write_page(page: Path, result: Result) -> None:
    """Puts the section between its marks, at the end if there are none yet; the plot lies beside the page."""
    plot(page.with_name(PLOT), result)
    text = page.read_text(encoding="utf-8") if page.exists() else "# Benchmarks\n"
    section = f"{BEGIN}\n\n{markdown(result)}\n{END}"
    before, found, rest = text.partition(BEGIN)
    after = rest.partition(END)[2] if found else "\n"
    page.write_text(f"{before if found else text.rstrip() + chr(10) * 2}{section}{after}", encoding="utf-8")


def markdown(result: Result) -> str:
    """Heading, conditions, tables."""
    versions = ", ".join(
        f"{result.names[name]} {version}" for name, version in result.versions.items() if name != "ours_prefetch"
    )
    spread = max(result.spreads, default=0.0)
    parts = [
        "## Beside other loaders: `make bench-sampler`\n",
        f"{result.machine}; {result.date}. Seven domains of uint16 tokens at RedPajama's mixture, {result.tokens:,} "
        "tokens in the page cache; batches of 32 rows, each widened to int64 in memory of its own. Contenders take "
        f"turns in one run, {result.rounds} slices of {result.seconds} s each; medians, quartiles within {spread:.0%}. "
        f"{versions}. Each reads ready tokens as its documentation recommends, or faster where there is a way.\n",
        f"![Rows per second of each loader]({PLOT})\n",
        "Thousands of rows per second, and the share of the limit: a C program that picks rows and widens them out of "
        "mapped files, and does nothing else. *One* is one thread; *two* is two threads (C; ours: two ranks, or one "
        "that reads ahead of the other) or two workers.\n",
        rate_table(result),
        yardstick(result),
        "Measured once, at 2048 and one thread; imports are not counted. *Off* is by how many rows the domain farthest "
        "from its share is off after 10,016 rows; *resume* is from a state after 32,000 rows to the next batch, in a "
        "new loader; a state is measured pickled.\n",
        once_table(result),
    ]
    if result.own:
        own = result.own
        parts.append(
            f"Ours alone: opening the corpus and the first batch {own['open'] * 1e3:.1f} ms; `set_weights` "
            f"{own['set_weights'] * 1e6:.0f} us; from a state to the next batch {own['resume_start'] * 1e3:.2f} ms at "
            f"row 0 and {own['resume_far'] * 1e3:.2f} ms at row 10^12; state {own['state_bytes']:.0f} bytes of JSON.\n"
        )
    if result.absent:
        parts.append(
            "Not measured, or not in every setting: "
            + "; ".join(f"{result.names[name]} ({reason[:200]})" for name, reason in result.absent.items())
            + ".\n"
        )
    return "\n".join(part if part.startswith(("|", "#", "!")) else _wrapped(part) for part in parts)


def rate_table(result: Result) -> str:
    """Rates and shares of the limit."""
    titles = [title for setting, title in SETTINGS.items() if setting in result.rates]
    lines = [f"| loader | {' | '.join(titles)} |", "|---|" + "---:|" * len(titles)]
    for name, shown in result.names.items():
        cells = []
        for setting in SETTINGS:
            if setting not in result.rates:
                continue
            rates = result.rates[setting]
            rate = rates.get(name)
            cells.append("" if rate is None else f"{rate / 1e3:,.0f} ({_share(rate / rates['mmap'])})")
        if name in result.absent and not any(cells):
            cells[0] = "not measured"
        lines.append(f"| {shown} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def yardstick(result: Result) -> str:
    """Why the limit is not the whole story, and the shares of the other C program."""
    shares = [
        f"{rates['ours'] / rates['pread']:.0%} ({SETTINGS[setting]})"
        for setting, rates in result.rates.items()
        if {"ours", "pread"} <= rates.keys()
    ]
    reached = f" drpruning reaches {', '.join(shares)} of it." if shares else ""
    return (
        "Mapped files save a copy of each row, and a file that is cut short while it is mapped kills the process. "
        f"drpruning reads with calls, which then fail with an error, as does *C, read calls*.{reached}\n"
    )


def once_table(result: Result) -> str:
    """What is measured once."""
    lines = ["| loader | off, rows | first batch, ms | resume, ms | state, bytes |", "|---|---:|---:|---:|---:|"]
    for name, shown in result.names.items():
        if name not in result.once:
            continue
        found = result.once[name]
        cells = [
            _number(found.get("off"), 1, ".1f"),
            _number(found.get("first"), 1e3, ".1f"),
            _number(found.get("seconds"), 1e3, ".1f"),
            _number(found.get("bytes"), 1, ",.0f"),
        ]
        lines.append(f"| {shown} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def plot(file: Path, result: Result) -> None:
    """Bars of rows per second, one thread and two, at the shorter rows."""
    panels = [setting for setting in ((2048, 0), (2048, 2)) if setting in result.rates]
    figure = Figure(figsize=(9, 3.6))
    axes = figure.subplots(1, len(panels), sharex=True, sharey=True, squeeze=False)
    rates = {name: rate for setting in reversed(panels) for name, rate in result.rates[setting].items()}
    order = sorted(rates, key=lambda name: rates[name])
    for axis, setting in zip(axes[0], panels, strict=True):
        rates = result.rates[setting]
        for place, name in enumerate(order):
            if name not in rates:
                continue
            colour = "#c0392b" if name.startswith("ours") else "#9aa5b1" if name in {"mmap", "pread"} else "#4a6fa5"
            axis.barh(place, rates[name] / 1e3, color=colour, height=0.7)
            axis.annotate(
                f" {rates[name] / 1e3:,.0f}", (rates[name] / 1e3, place), va="center", fontsize=8, color="#333333"
            )
        axis.set_yticks(range(len(order)), [result.names[name] for name in order])
        axis.set_xscale("log")
        axis.xaxis.set_major_formatter("{x:,g}")
        axis.margins(x=0.15)
        axis.set_title("one thread" if setting[1] == 0 else "two threads or workers", fontsize=10)
        axis.set_xlabel("thousand rows of 2048 tokens per second")
        axis.spines[["top", "right"]].set_visible(False)
        axis.tick_params(axis="y", length=0)
    figure.tight_layout()
    figure.savefig(file, dpi=130, metadata={"Software": None})


def _wrapped(text: str) -> str:
    return fill(text, 120, break_long_words=False, break_on_hyphens=False) + "\n"


def _share(ratio: float) -> str:
    return f"{ratio:.0%}" if ratio >= 0.01 else f"{ratio:.1%}"


def _number(value: float | None, scale: float, form: str) -> str:
    return "-" if value is None else format(value * scale, form)
