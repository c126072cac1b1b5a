"""The rows of a benchmark as a file and as tables: JSON with every number, Markdown to paste, a table to look at.

Called by bench.py. Both tables have the same columns; a variant that failed keeps its place, with its message.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from dreamlab.runs import write_json
from dreamlab.whole import written_whole

Row = dict[str, Any]
Column = tuple[str, Callable[[Row], str]]


def _number(key: str, form: str, factor: float = 1) -> Callable[[Row], str]:
    """What shows `row[key]`, or one level down; a dash where it isn't known."""

    def show(row: Row) -> str:
        value: Any = row
        for name in key.split("."):
            value = value.get(name) if isinstance(value, dict) else None
        return "–" if value is None else format(value if factor == 1 else value * factor, form)

    return show


TABLES: dict[str, list[Column]] = {
    "training": [
        ("ms", _number("ms.median", ".1f")),
        ("p10", _number("ms.p10", ".1f")),
        ("p90", _number("ms.p90", ".1f")),
        ("× plain", _number("times", ".2f")),
        ("set-up s", _number("set_up_s", ".1f")),
        ("peak GiB", _number("peak_gib", ".2f")),
        ("loop ms", _number("loop_ms", ".2f")),
        ("roofline %", _number("share", ".0f", 100)),
    ],
    "sampling": [
        ("images/s", _number("images_per_s", ".2f")),
        ("× plain", _number("times", ".2f")),
        ("sampler", _number("sampler", "")),
        ("steps", _number("steps", "d")),
        ("batch", _number("batch_size", "d")),
        ("peak GiB", _number("peak_gib", ".2f")),
    ],
}


def compared(rows: Sequence[Row]) -> list[Row]:
    """The rows with how many times as fast each is as the first plain one that did the same work."""
    found = []
    for row in rows:
        plain = next((one for one in rows if one["is_plain"] and _is_same_work(one, row)), None)
        found.append({**row, "times": _speed(row) / _speed(plain) if plain else None} if "error" not in row else row)
    return found


def _is_same_work(one: Row, other: Row) -> bool:
    """Whether neither failed and both trained, or drew, as much; precision is a choice, not work."""
    keys = ("kind", "work", "accumulate", "sampler", "steps", "batch_size")
    return "error" not in one and "error" not in other and all(one.get(key) == other.get(key) for key in keys)


def _speed(row: Row) -> float:
    return float(row["images_per_s"] if row["kind"] == "sampling" else 1 / row["ms"]["median"])


def machine_line(machine: Row) -> str:
    """Card and versions in a line."""
    versions = machine["versions"]
    where = machine["gpu"] or f"CPU, {machine['threads']} threads"
    return f"{where}; {machine['model']}; torch {versions['torch']}, diffusers {versions['diffusers']}"


def as_markdown(machine: Row, rows: Sequence[Row]) -> str:
    """Both tables, those that have a row; ms are those of an update."""
    parts = [machine_line(machine)]
    for kind, columns in TABLES.items():
        chosen = [row for row in rows if row["kind"] == kind]
        if chosen:
            lines = [[kind, *(title for title, _ in columns)], ["---"] * (len(columns) + 1)]
            lines += [_cells(row, columns) for row in chosen]
            parts.append("\n".join(f"| {' | '.join(cells)} |" for cells in lines))
    return "\n\n".join(parts) + "\n"


def _cells(row: Row, columns: Sequence[Column]) -> list[str]:
    if "error" in row:
        return [row["name"], row["error"].replace("|", "\\|"), *[""] * (len(columns) - 1)]
    return [row["name"], *(show(row) for _, show in columns)]


def write(out: Path, machine: Row, rows: Sequence[Row]) -> None:
    """`out` as JSON, and Markdown beside it."""
    write_json(out, {**machine, "rows": list(rows)})
    with written_whole(out.with_suffix(".md")) as temporary:
        temporary.write_text(as_markdown(machine, rows), encoding="utf-8")


def show(machine: Row, rows: Sequence[Row]) -> None:
    """Print both tables."""
    terminal = Console()
    terminal.print(machine_line(machine), markup=False, highlight=False)
    for kind, columns in TABLES.items():
        table = Table(padding=0)  # all of it fits into 80 columns, as a log has them
        table.add_column(kind, no_wrap=True)
        for title, _ in columns:
            table.add_column(title, justify="right")
        for row in rows:
            if row["kind"] == kind and "error" not in row:
                table.add_row(*_cells(row, columns))
        if table.row_count:
            terminal.print(table)
    for row in rows:
        if "error" in row:  # a sentence would squeeze the columns
            terminal.print(f"{row['name']} failed: {row['error']}", markup=False, highlight=False)
