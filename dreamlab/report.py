"""What a person sees when a run is over: a grid of before and after, a table in the terminal, and pages.

`python -m dreamlab.report run=...` writes a run's page (page.py), `runs=[...]` or `folder=...` one that compares runs
(compare.py). What is heavy is imported where it is needed, so that `--help` is quick.
"""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dreamlab import entry
from dreamlab.commands import Report
from dreamlab.errors import UserError

if TYPE_CHECKING:
    from PIL import Image

    from dreamlab.runs import RunDirectory

SHOWN = {  # metrics in the summary
    "eval/dino_near": "likeness to the photos (DINO)", "eval/words": "words obeyed",
    "eval/clip_t": "prompts obeyed (CLIP-T)", "eval/pres": "likeness of the class (PRES)",
    "eval/copies": "samples that are copies",
}  # fmt: skip


def sample_updates(run: "RunDirectory") -> list[int]:
    """The updates at which samples were drawn, in order; a prompt may be called update-something, too."""
    from dreamlab.runs import numbered, update_of

    return [update for update in map(update_of, reversed(numbered(run.samples))) if update >= 0]


def _samples(run: "RunDirectory", update: int) -> list[Path]:
    from dreamlab.photos import list_images

    return list_images(run.samples / f"update-{update:06d}")


def draw_grid(run: "RunDirectory", path: Path) -> None:
    """Write a grid: a row of the subject's photos, then one row of samples per moment."""
    from dreamlab.pictures import save_png

    save_png(sheet(run), path, {"run": run.path.name})


def sheet(run: "RunDirectory", with_photos: bool = True, until: int | None = None) -> "Image.Image":
    """The grid of a run, up to the update `until`, where it shows others what they may see: without the photos."""
    from PIL import Image

    from dreamlab.photos import read_photo
    from dreamlab.pictures import grid, read_settings

    photos = [Path(photo) for photo in run.read_card().get("photos", [])] if with_photos else []
    updates = [update for update in sample_updates(run) if until is None or update <= until]
    first = _samples(run, updates[0])
    columns = [f"{settings['prompt']} | seed {settings['seed']}" for settings in map(read_settings, first)]
    rows = [("photos", [_square(read_photo(photo)) for photo in photos if photo.is_file()])] if photos else []
    for update in updates:
        label = "base model" if update == 0 else f"after {update} updates"
        rows.append((label, [Image.open(sample).convert("RGB") for sample in _samples(run, update)]))
    return grid(rows, columns)


def _square(photo: "Image.Image") -> "Image.Image":
    side = min(photo.size)
    left, top = (photo.width - side) // 2, (photo.height - side) // 2
    return photo.crop((left, top, left + side, top + side))


def summarise(run: "RunDirectory") -> None:
    """Print the run's last numbers, the verdict, where its files are, and what to type next."""
    from rich.console import Console
    from rich.table import Table

    from dreamlab.command_lines import export_command
    from dreamlab.page import PAGE

    status, tail = run.status(), run.read_metrics()[-20:]
    speed, peak = _mean(tail, "perf/images_per_s"), tail[-1]["perf/peak_gib"] if tail else 0
    facts = {
        "updates": f"{status.get('update', 0)} in {status.get('seconds', 0):.0f} s",
        "training": f"{speed:.1f} images/s, peak memory {peak:.2f} GiB",
        "loss": f"instance {_mean(tail, 'train/loss_instance'):.4f}, prior {_mean(tail, 'train/loss_prior'):.4f}"
                f" (means of the last {len(tail)} updates)",
    }  # fmt: skip
    verdict, measured = _measured(run)
    files = {"before and after": run.grid, "the whole story": run.path / PAGE, "tuned model": run.model}
    found = {title: str(file) for title, file in files.items() if file.exists()}
    commands = {
        "draw more": f'python -m dreamlab.sample run={run.path} prompt="..."',
        "export": export_command(str(run.path), run.read_config()),
    }
    # A pipe has no width of its own. Paths and commands are never folded: one would copy half of them
    console = Console(width=None if sys.stdout.isatty() else 140, highlight=False, markup=False)
    for title, told in facts.items():
        console.print(f"{title:<17} {told}", soft_wrap=True)
    if measured:
        table = Table("", "before", "after", show_edge=False, pad_edge=False)
        for row in measured:
            table.add_row(*row)
        console.print()
        console.print(table)
        console.print(f"\n{verdict}\n", style="bold")
    for title, told in {**found, **commands}.items():
        console.print(f"{title:<17} {told}", soft_wrap=True)


def _measured(run: "RunDirectory") -> tuple[str, list[tuple[str, str, str]]]:
    """The verdict, and how the last moment differs from the untouched model: title, before, after."""
    moments = run.evaluations.rows()
    if len(moments) < 2 or not run.verdict.is_file():
        return "", []
    base, last = moments[0], moments[-1]
    told = [
        (title, f"{base[key]:.2f}", f"{last[key]:.2f}")
        for key, title in SHOWN.items() if base.get(key) is not None and last.get(key) is not None
    ]  # fmt: skip
    return str(json.loads(run.verdict.read_text(encoding="utf-8"))["sentence"]), told


def _mean(rows: Sequence[dict[str, Any]], key: str) -> float:
    known = [row[key] for row in rows if row.get(key) is not None]
    return sum(known) / max(1, len(known))


def report(settings: Report) -> Path:
    """Write the page that `settings` ask for; returns its path."""
    from dreamlab.runs import RunDirectory

    if sum(given is not None for given in (settings.run, settings.runs, settings.folder)) != 1:
        raise UserError("Name one thing to report on: run=outputs/demo, runs=[outputs/a,outputs/b] or folder=outputs.")
    if settings.run is None:
        from dreamlab.compare import compare

        path = compare(settings)
    else:
        from dreamlab.page import write_page

        folder = Path(settings.run).expanduser()
        if not (folder / "status.json").is_file():
            raise UserError(f"run={settings.run}: there is no run in this folder. Give a directory below outputs/.")
        if settings.out is not None:
            raise UserError("out=... belongs to comparisons: the page of a run lies in its own directory.")
        path = write_page(RunDirectory(folder))
    print(path)
    return path


def tell_briefly(run: "RunDirectory") -> None:
    """Print one line of a run that is a member of a sweep."""
    from dreamlab.progress import console

    status = run.status()
    told = f"{run.path}: {status.get('state')}, {status.get('update', 0)} updates, {status.get('seconds', 0):.0f} s"
    console.print(told, markup=False, highlight=False)


def conclude_sweep(folder: Path, paths: Sequence[Path]) -> None:
    """Write the comparison of a sweep's runs into its folder and, where they went there, to W&B; say what it says."""
    from dreamlab.command_lines import commands_for
    from dreamlab.compare import compared, draw_comparison
    from dreamlab.progress import console
    from dreamlab.runs import RunDirectory

    comparison = compared(paths)
    page = draw_comparison(comparison, folder / "comparison.html")
    logger: dict[str, Any] = next(filter(None, (RunDirectory(path).read_config().get("logger") for path in paths)), {})
    if logger.get("kind") == "wandb":
        from dreamlab.wandb_sweep import log_sweep

        log_sweep(
            comparison, folder=folder, project=logger["project"], mode=logger["mode"],
            group=logger["group"] or folder.name, page=page, tags=logger["tags"],
        )  # fmt: skip
    finished = sum(member.state == "finished" for member in comparison.members)
    console.print(f"{finished} of {len(comparison.members)} runs are finished.", highlight=False)
    if comparison.chosen and comparison.choice:
        best = comparison.chosen
        told = ", ".join(f"{key}={value}" for key, value in best.settings.items())
        said = "Take" if best.verdict == "good" else "Look first at"
        console.print(f"{said} {best.label} {best.evidence.run.path} at update {best.update} ({told}):", markup=False)
        for reason in comparison.choice.reasons:
            console.print(f"  {reason}", markup=False, highlight=False)
        commands = commands_for(best.evidence, best.update) if best.update is not None else {}
        for purpose, line in commands.items():
            console.print(f"{purpose.capitalize()}: {line}", markup=False, highlight=False, soft_wrap=True)
    print(page)


def main() -> None:
    """The console command dreamlab-report."""
    sys.argv[1:] = with_names(sys.argv[1:])
    entry.run("report", Report, report)


def with_names(words: Sequence[str]) -> list[str]:
    """The command line with plain paths put under their setting: a run, several runs, or a folder of them."""
    paths = [word for word in words if not word.startswith("-") and "=" not in word]
    if not paths:
        return list(words)
    quoted = [json.dumps(path, ensure_ascii=False) for path in paths]
    if len(paths) > 1:
        given = f"runs=[{','.join(quoted)}]"
    else:
        given = f"{'run' if (Path(paths[0]) / 'status.json').is_file() else 'folder'}={quoted[0]}"
    return [given, *(word for word in words if word not in paths)]


if __name__ == "__main__":
    main()
