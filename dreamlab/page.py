"""The page of a run: its verdict, numbers, curves, pictures and settings in one report.html inside the run directory.

It is drawn from the files of the directory alone (evidence.py), so an interrupted run and one that measured nothing
have a page, too; it says what is missing. Called by train.py and report.py.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dreamlab import gallery
from dreamlab.charts import Chart, Line, Panel, curves, smoothed
from dreamlab.command_lines import commands_for
from dreamlab.departures import departures
from dreamlab.evidence import STATES, Evidence, read_evidence, series
from dreamlab.html import render, write_html
from dreamlab.measures import ARROWS, MEASURES, interval
from dreamlab.presets import leaves
from dreamlab.runs import RunDirectory

PAGE = "report.html"


def write_page(run: RunDirectory) -> Path:
    """Write the page of a run; returns its path."""
    evidence = read_evidence(run)
    photos = gallery.photos_of(evidence)
    html = render(
        "page.html",
        name=run.path.resolve().name,
        evidence=evidence,
        state=verdict_state(evidence),
        missing=[*evidence.missing, *_missing_pictures(evidence, photos)],
        commands=_commands(evidence),
        numbers=numbers(evidence),
        charts=charts(evidence),
        photos=photos,
        judged=gallery.judged(evidence, photos),
        sampled=gallery.sampled(evidence),
        departures=departures(evidence.config),
        settings=list(leaves(evidence.config)),
    )
    write_html(run.path / PAGE, html)
    return run.path / PAGE


def verdict_state(evidence: Evidence) -> str:
    """The verdict's one word."""
    state = evidence.verdict.get("state")
    return str(state) if state in STATES else "unmeasured"


def _missing_pictures(evidence: Evidence, photos: Sequence[gallery.Photo]) -> list[str]:
    has_eval = any(evidence.run.evaluated.glob("update-*/*.png"))
    said = [] if has_eval else ["eval/ holds no pictures: there are none with scores."]
    if has_eval and not photos:
        said.append("eval/photos is missing: the nearest training photos cannot be shown.")
    return (
        said if evidence.run.samples.is_dir() else [*said, "samples/ is missing: the prompts to watch were not drawn."]
    )


def _commands(evidence: Evidence) -> list[tuple[str, str]]:
    """What to type next: (purpose, command)."""
    update = evidence.kept if evidence.kept is not None else evidence.status.get("update")
    if not isinstance(update, int) or update == 0:
        return []
    found = commands_for(evidence, update)
    what = f"update {update}"
    if found:
        return [(f"Draw with {what}", found["draw"]), (f"Export {what}", found["export"])]
    last = evidence.status.get("update")
    usable = commands_for(evidence, last) if isinstance(last, int) else {}
    told = [
        (f"The weights of {what} were not kept; a run that ends there has them. Add to its command", f"steps={update}")
    ]
    return told + ([(f"Draw with update {last} instead", usable["draw"])] if usable else [])


def numbers(evidence: Evidence) -> list[dict[str, Any]]:
    """The rows of the table: each measure at the first, the last and the kept moment that was measured."""
    moments = sorted({int(row["update"]) for row in (*evidence.evaluations, *evidence.probes)})
    if not moments:
        return []
    first, last = moments[0], moments[-1]
    columns = [first, last] if last > first else [first]
    columns += [evidence.kept] if evidence.kept is not None and evidence.kept not in columns else []
    rows = []
    for measure in MEASURES:
        cells = [interval(evidence.at(update), measure.key) for update in columns]
        if any(cells):
            better = ARROWS.get(measure.better, f"→ {measure.better}")
            rows.append({"measure": measure, "better": better, "cells": cells})
    labels = [gallery.label_of(update, evidence.kept) for update in columns]
    return [{"labels": labels}, *rows] if rows else []


def _lines(rows: Sequence[dict[str, float]], names: dict[str, str]) -> list[Line]:
    """A line for each key that the rows have, with its interval where every value has one."""
    lines = []
    for key, label in names.items():
        updates, values = series(rows, key)
        low, high = (series(rows, f"{key}_{end}")[1] for end in ("low", "high"))
        has_interval = len(low) == len(high) == len(values)
        lines.append(Line(label, updates, values, low if has_interval else (), high if has_interval else ()))
    return lines


def _smooth(rows: Sequence[dict[str, float]], names: dict[str, str]) -> list[Line]:
    return [Line(label, *smoothed(*series(rows, key))) for key, label in names.items()]


def charts(evidence: Evidence) -> list[Chart]:
    """The curves that there are numbers for."""
    scores, probes, kept = evidence.evaluations, evidence.probes, evidence.kept
    ceiling = series(scores, "eval/dino_photos")[1]
    level = ("DINO between photos", ceiling[-1]) if ceiling else None
    quarters = {f"train/loss_{half}_q{n}": f"{half} q{n}" for half in ("instance", "prior") for n in (1, 2, 3, 4)}
    drawn = [
        curves("fidelity", "Subject fidelity and copies", [
            Panel("likeness", _lines(scores, {"eval/dino": "DINO", "eval/dino_near": "DINO, near",
                                              "eval/clip_i": "CLIP-I"}), level),
            Panel("share of copies", _lines(scores, {"eval/copies": "copies"}), is_share=True),
        ], kept),
        curves("prompts", "Prompt fidelity", [
            Panel("CLIP-T", _lines(scores, {"eval/clip_t": "CLIP-T"})),
            Panel("share of words", _lines(scores, {"eval/words": "words obeyed"}), is_share=True),
        ], kept),
        curves("class", "The class and everything else", [
            Panel("change", _lines(scores, {"eval/pres_change": "PRES change", "eval/drift_class": "class drift",
                                            "eval/drift_unrelated": "unrelated drift"}), ("", 0.0)),
            Panel("diversity", _lines(scores, {"eval/collapse": "class diversity left"}), ("unharmed", 1.0)),
        ], kept),
        curves("probes", "Probes: denoising, beside the untouched model", [
            Panel("loss, relative", _lines(probes, {"probe/train_loss": "training photos",
                                                    "probe/held_out_loss": "held-out photos",
                                                    "probe/class_loss": "class"}), ("", 1.0)),
            Panel("drift", _lines(probes, {"probe/train_drift": "training photos", "probe/class_drift": "class",
                                           "probe/unrelated_drift": "unrelated", "probe/empty_drift": "no prompt"})),
        ], kept),
        curves("losses", "Training losses, smoothed", [
            Panel("loss", _smooth(evidence.metrics, {"train/loss_instance": "instance", "train/loss_prior": "prior"})),
            Panel("instance, by noise", _smooth(evidence.metrics, dict(list(quarters.items())[:4]))),
            Panel("prior, by noise", _smooth(evidence.metrics, dict(list(quarters.items())[4:]))),
        ], kept),
    ]  # fmt: skip
    return [chart for chart in drawn if chart]
