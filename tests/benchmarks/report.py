"""What a run of the benchmark leaves: tables on the screen, the raw figures as JSON, a chart as PNG."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import matplotlib as mpl
from rich.console import Console
from rich.table import Table

from tests.benchmarks.drain import Drained, median
from tests.benchmarks.results import OURS, Bar, Results, bars

mpl.use("Agg")  # a picture in a file: no screen is needed

from matplotlib import pyplot as plt  # it binds to the screen it finds

OUR_COLOUR, THEIR_COLOUR = "#2f6f4f", "#b9bec6"


def show(console: Console, results: Results) -> None:
    """The tables of what was measured, then every bar with what became of it."""
    if results.drain:
        console.print(_drain_table(results.drain), "")
    if results.latency:
        console.print(_latency_table(results), "")
    if results.memory_mib:
        console.print(_memory_table(results.memory_mib), "")
    console.print(_bars_table(bars(results)))


def write_json(path: Path, results: Results, surroundings: Mapping[str, Any]) -> None:
    """Every round's figures, the bars, and what they were taken on."""
    judged = [asdict(each) | {"is_held": each.is_held} for each in bars(results)]
    path.write_text(json.dumps({**surroundings, **asdict(results), "bars": judged}, indent=2) + "\n")


def draw(path: Path, drain: Mapping[str, Sequence[Drained]], *, caption: str) -> None:
    """Processor time and memory of each contender, side by side; less is better in both."""
    medians = {name: median(rounds) for name, rounds in drain.items()}
    names = sorted(medians, key=lambda name: medians[name].cpu_us, reverse=True)
    ours = {each.name for each in OURS}
    colours = [OUR_COLOUR if name in ours else THEIR_COLOUR for name in names]
    figure, (cpu, memory) = plt.subplots(1, 2, sharey=True, figsize=(11, 0.5 * len(names) + 1.6), layout="constrained")
    for axes, title, values in (
        (cpu, "processor time of an order, µs", [medians[name].cpu_us for name in names]),
        (memory, "peak memory, MiB", [medians[name].peak_mib for name in names]),
    ):
        axes.bar_label(axes.barh(names, values, color=colours), fmt="{:,.0f}", padding=3)
        axes.set_title(title, loc="left")
        axes.margins(x=0.12)
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(axis="y", length=0)
    figure.supxlabel(caption, fontsize="small", color="#555555")
    figure.savefig(path, dpi=150)
    plt.close(figure)


def _table(title: str, *headings: str) -> Table:
    """The first column holds words, the others figures."""
    table = Table(title=title, title_justify="left", box=None, header_style="bold", title_style="bold")
    table.add_column(headings[0])
    for heading in headings[1:]:
        table.add_column(heading, justify="right")
    return table


def _drain_table(drain: Mapping[str, Sequence[Drained]]) -> Table:
    medians = {name: median(rounds) for name, rounds in drain.items()}
    ours = [(each, medians[each.name]) for each in OURS if each.name in medians]
    table = _table(
        "A backlog drained, medians; what names no ledger keeps none; SQLite / it: our processor time to its",
        "",
        "CPU µs/order",
        *(f"{each.ledger} / it" for each, _ in ours),
        "orders/s",
        "peak MiB",
        "first event s",
    )
    for name, found in sorted(medians.items(), key=lambda item: item[1].cpu_us):
        table.add_row(
            name,
            f"{found.cpu_us:,.0f}",
            *(f"{our.cpu_us / found.cpu_us:.2f}" for _, our in ours),
            f"{found.orders_per_s:,.0f}",
            f"{found.peak_mib:.0f}",
            f"{found.first_event_s:.2f}",
        )
    return table


def _latency_table(results: Results) -> Table:
    table = _table("Latency added", "", "p50 ms", "p99 ms", "worst ms", "orders")
    for name, found in results.latency.items():
        table.add_row(name, f"{found.p50_ms:.1f}", f"{found.p99_ms:.1f}", f"{found.worst_ms:.1f}", str(found.orders))
    return table


def _memory_table(memory_mib: Mapping[str, Sequence[float]]) -> Table:
    tenths = [f"{tenth}0 %" for tenth in range(1, 11)]
    table = _table("Resident MiB after so much of a backlog", "", *tenths)
    for name, found in memory_mib.items():
        table.add_row(name, *(f"{each:.0f}" for each in found))
    return table


def _bars_table(judged: Sequence[Bar]) -> Table:
    table = _table("Bars", "", "figure", "bar", "aim", "")
    for each in judged:
        limit = f"{'≥' if each.at_least else '≤'} {each.bar:g}{each.unit}"
        aim = "" if each.aim is None else f"{each.aim:g}"
        held = "[green]held[/]" if each.is_held else "[red]not held[/]"
        table.add_row(each.what, f"{each.figure:.2f}{each.unit}", limit, aim, held)
    return table
