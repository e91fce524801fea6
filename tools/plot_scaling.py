"""The pictures of docs/scaling.md; called by simulate_scheduler.py --plots."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("svg")

from matplotlib import pyplot
from matplotlib.ticker import FuncFormatter, NullLocator
from scheduler_model import SENDS, Load, Outcome

CORES = (1, 2, 4, 8, 12, 16, 24, 32, 48, 64)
COLOURS = ("#b3361b", "#d9902f", "#2f7d5b", "#2b5c9e", "#5b3f8c")
FAINT = "#9aa5b1"

Run = Callable[[int, Load], Outcome]


def axes_of_cores(axes: Any) -> None:
    axes.set_xscale("log", base=2)
    axes.set_xticks((1, 2, 4, 8, 16, 32, 64))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xlabel("cores")
    axes.grid(True, color="#e3e8ed", linewidth=0.7)


def save(figure: Any, folder: Path, name: str) -> None:
    figure.text(0.995, 0.01, "SIMULATED, not measured", ha="right", color=COLOURS[0], weight="bold")
    figure.savefig(folder / name, metadata={"Date": None, "Creator": None})
    pyplot.close(figure)


def draw_throughput(run: Run, folder: Path) -> None:
    figure, panels = pyplot.subplots(1, 3, figsize=(11, 4.2), sharey=True, layout="constrained")
    figure.get_layout_engine().set(rect=(0, 0.04, 1, 0.96))
    for axes, (sends, title) in zip(panels, SENDS.items(), strict=True):
        for handler, colour in zip((1.0, 10.0, 100.0, 1000.0), COLOURS, strict=False):
            rates = [run(cores, Load(handler, sends)).rate for cores in CORES]
            axes.plot(CORES, [rates[0] * n for n in CORES], "--", color=FAINT, linewidth=0.8)
            axes.plot(CORES, rates, "o-", color=colour, markersize=3, label=f"{handler:,.0f} us")
        engine, _, how = title.partition(", ")
        axes.set_title(f"{engine}, one ring\n{how}", fontsize=10)
        axes.set_yscale("log")
        axes_of_cores(axes)
    panels[0].set_ylabel("requests a second")
    panels[0].legend(title="handler", fontsize=8)
    panels[2].plot([], [], "--", color=FAINT, label="cores x one core")
    panels[2].legend(handles=panels[2].get_lines()[-1:], fontsize=8)
    save(figure, folder, "scaling-throughput.svg")


def draw_sharding(run: Run, folder: Path) -> None:
    figure, panels = pyplot.subplots(1, 4, figsize=(11, 3.9), sharey=True, layout="constrained")
    figure.get_layout_engine().set(rect=(0, 0.05, 1, 0.95))
    cases = [(sends, handler) for sends in ("batched", "epoll") for handler in (2.0, 10.0)]
    for axes, (sends, handler) in zip(panels, cases, strict=True):
        one = run(1, Load(handler, sends)).rate
        for shards, colour in zip((1, 2, 4, 8, 0), COLOURS, strict=True):
            cores = [n for n in CORES if n >= shards]
            parts = [run(n, Load(handler, sends, shards or n)).rate / n / one * 100 for n in cores]
            label = f"{shards} ring{'s' * (shards > 1)}" if shards else "one each core"
            axes.plot(cores, parts, "o-", color=colour, markersize=3, label=label)
        axes.axvline(16, color=FAINT, linewidth=0.8, linestyle=":")
        engine = "epoll" if sends == "epoll" else "io_uring"
        axes.set_title(f"{engine}, {handler:g} us handlers", fontsize=10)
        axes.set_ylim(0, 105)
        axes_of_cores(axes)
    panels[0].set_ylabel("% of cores x one core")
    panels[0].legend(fontsize=8)
    save(figure, folder, "scaling-sharding.svg")


def draw(run: Run, folder: Path) -> None:
    # Text as text keeps the files small; a fixed salt makes the same figures the same files.
    matplotlib.rcParams.update(
        {"svg.fonttype": "none", "svg.hashsalt": "scaling", "font.family": "sans-serif"}
    )
    draw_throughput(run, folder)
    draw_sharding(run, folder)
