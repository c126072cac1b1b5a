"""The page of a run: real numbers, escaped words, and an answer to every file that may be missing."""

import json
import re
import shlex
import shutil
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf
from run_files import PROMPTS, evaluation, write_lines, write_run

from dreamlab import report
from dreamlab.charts import Line, Panel, curves, smoothed
from dreamlab.command_lines import as_typed, command, export_command
from dreamlab.commands import Report
from dreamlab.departures import departures, differing
from dreamlab.errors import UserError
from dreamlab.evidence import ABSENCES, read_evidence, read_rows
from dreamlab.gallery import judged, photos_of, picked
from dreamlab.html import show, show_bytes
from dreamlab.page import numbers, write_page
from dreamlab.runs import RunDirectory, write_json

HOSTILE = "<script>window.hacked=1</script>\"'><img src=x onerror=window.hacked=1> javascript:window.hacked=1 {{ 7*7 }}"


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> RunDirectory:
    return write_run(tmp_path_factory.mktemp("runs") / "demo")


@pytest.fixture
def run(whole: RunDirectory, tmp_path: Path) -> RunDirectory:
    """A copy that a test may harm."""
    return RunDirectory(Path(shutil.copytree(whole.path, tmp_path / "demo")))


def html_of(run: RunDirectory) -> str:
    return write_page(run).read_text(encoding="utf-8")


def test_the_verdict_leads_and_says_what_draws_and_exports_the_kept_update(whole: RunDirectory) -> None:
    html = html_of(whole)
    snapshot = whole.snapshots / "update-000200"
    assert html.index("Update 200 is the one to keep.") < html.index("No sample is a copy.") < html.index("<table")
    assert f"python -m dreamlab.export run={snapshot} format=diffusers<" in html
    assert f"python -m dreamlab.sample run={snapshot} prompt=&#39;a photo of a zwx cat&#39;" in html


@pytest.mark.parametrize(
    ("keep", "said"), [(400, "dreamlab.export run={run} "), (150, "not kept"), (None, "dreamlab.export run={run} ")]
)
def test_commands_name_weights_that_are_there(run: RunDirectory, keep: int | None, said: str) -> None:
    write_json(run.path / "verdict.json", {"sentence": "So it is.", "state": "good", "keep": keep, "reasons": []})
    assert said.format(run=run.path) in html_of(run)


def test_pocket_is_exported_as_a_folder_and_a_command_is_told_as_it_was_typed() -> None:
    assert export_command("outputs/demo", {"model": {"source": "pocket"}}).endswith("run=outputs/demo format=diffusers")
    assert export_command("outputs/a b", {"model": {"source": "x/y"}}) == "python -m dreamlab.export run='outputs/a b'"
    words = ["/there/dreamlab/train.py", "class_word=dog", 'prompts=["a dog"]']
    assert as_typed(words) == """python -m dreamlab.train class_word=dog 'prompts=["a dog"]'"""
    assert shlex.split(as_typed(["/bin/dreamlab-train", "name=a b"])) == ["/bin/dreamlab-train", "name=a b"]


def test_numbers_are_those_of_the_files_at_the_first_the_last_and_the_kept_update(whole: RunDirectory) -> None:
    head, *rows = numbers(read_evidence(whole))
    assert head["labels"] == ["untouched model", "update 400", "update 200 (kept)"]
    (dino,) = (row for row in rows if row["measure"].key == "eval/dino")
    known = [evaluation(update) for update in (0, 400, 200)]
    assert dino["cells"] == [(row["eval/dino"], row["eval/dino_low"], row["eval/dino_high"]) for row in known]
    assert {row["measure"].key for row in rows} >= {"eval/words", "eval/pres_change", "probe/class_drift"}
    assert "0.310<small>0.270 to 0.350</small>" in html_of(whole)


def test_the_kept_update_is_not_told_twice_where_it_is_the_last(run: RunDirectory) -> None:
    write_json(run.path / "verdict.json", {"sentence": "So it is.", "state": "good", "keep": 400})
    assert numbers(read_evidence(run))[0]["labels"] == ["untouched model", "update 400 (kept)"]


def test_every_chart_has_a_title_and_a_description_and_names_of_its_own(whole: RunDirectory) -> None:
    charts = re.findall(r"<svg.*?</svg>", html_of(whole), re.DOTALL)
    roots = [ElementTree.fromstring(chart) for chart in charts]
    assert len(roots) == 5
    for root in roots:
        title, description = root[0], root[1]
        assert title.tag.endswith("title") and description.tag.endswith("desc")
        assert root.get("aria-labelledby") == f"{title.get('id')} {description.get('id')}" and root.get("role") == "img"
    assert "DINO goes from 0.31 at update 0 to 0.703 at 400" in str(roots[0][1].text)
    names = re.findall(r'\bid="([^"]+)"', html_of(whole))
    assert len(names) == len(set(names))
    referred = set(re.findall(r'(?:url\(#|href="#)([^)"]+)', "".join(charts)))
    assert referred <= set(names)


def test_a_chart_without_numbers_is_left_out_and_words_in_one_are_escaped() -> None:
    assert curves("empty", "Nothing", [Panel("loss", [Line("none", [], [])])]) is None
    drawn = curves("words", HOSTILE, [Panel("$x^2$ & <b>", [Line("<script>", [0, 1], [0.0, 1.0])])])
    assert drawn is not None and "<script" not in drawn.svg and "<img" not in drawn.svg and "$x^2$ &amp;" in drawn.svg
    ElementTree.fromstring(drawn.svg)


def test_smoothing_takes_means_of_neighbours() -> None:
    assert smoothed([1, 2, 3, 4], [1.0, 3.0, 5.0, 7.0], points=2) == ([1.5, 3.5], [2.0, 6.0])
    assert smoothed([1, 2], [5.0, 6.0]) == ([1.0, 2.0], [5.0, 6.0])
    assert len(smoothed(range(60), [0.0] * 60)[0]) == 20, "no part holds more than one update more than another"
    assert smoothed([], []) == ([], [])


@pytest.mark.parametrize("name", [*ABSENCES, "eval", "eval/photos", "samples", "snapshots", "model"])
def test_a_page_opens_without_any_one_file_and_says_so(run: RunDirectory, name: str) -> None:
    gone = run.path / name
    shutil.rmtree(gone) if gone.is_dir() else gone.unlink()
    html = html_of(run)
    if name in ABSENCES:
        assert f"{name} is missing: {ABSENCES[name]}." in html
    elif name in ("eval", "eval/photos", "samples"):
        assert f"{name}/ holds no pictures" in html or f"{name} is missing" in html or f"{name}/ is missing" in html
    else:
        assert "What is missing" not in html


@pytest.mark.parametrize("name", ABSENCES)
def test_a_damaged_file_counts_as_missing(run: RunDirectory, name: str) -> None:
    for content, lack in ((b"\xff{[not: json, nor yaml", "unreadable"), (b"", "empty")):
        (run.path / name).write_bytes(content)
        assert f"{name} is {lack}: {ABSENCES[name]}." in html_of(run)


def test_a_run_of_which_only_the_status_is_left_has_a_page(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    run.set_status("failed", update=3, message="UserError: the disk is full")
    html = html_of(run)
    assert "failed</title>" not in html and "The run failed at update 3." in html and "the disk is full" in html
    assert html.count("is missing") >= 7


def test_one_moment_alone_is_told_of(run: RunDirectory) -> None:
    write_lines(run.path / "evaluations.jsonl", [evaluation(0)])
    write_lines(run.path / "probes.jsonl", [])
    html = html_of(run)
    assert "Only update 0 was measured" in html and "0.310" in html


def test_rows_keep_finite_numbers_of_whole_lines_and_the_later_of_two(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text(
        '{"update": 2, "a": 1}\n{"update": 1, "a": NaN, "b": "x", "c": true, "d": 0.5}\n[1]\n{"a": 3}\n'
        '{"update": 2, "a": 4}\n{"update": 3, "a'
    )
    assert read_rows(file) == [{"update": 1, "d": 0.5}, {"update": 2, "a": 4}]


def test_pictures_stand_in_rows_of_shots_with_scores_copies_and_the_nearest_photo(whole: RunDirectory) -> None:
    evidence = read_evidence(whole)
    gallery = judged(evidence, photos_of(evidence))
    assert [row.prompt for row in gallery.rows] == [prompt for prompt, _ in PROMPTS for _ in range(2)]
    base, *_, last = gallery.rows[0].pictures
    assert base is not None and (base.label, base.badges, base.photo) == ("untouched model", [], "")
    assert last is not None and [words for words, _, _ in last.badges] == ["copy", "DINO 0.70", "CLIP-T 0.26"]
    assert last.photo == "photo-0-0" and "0.98" in last.photo_about
    assert [gallery.rows[k].pictures[-1].badges[-1][0] for k in (2, 3)] == ["✓ blue", "✗ blue"]  # type: ignore[union-attr]
    assert {picture.link for row in gallery.rows for picture in row.pictures if picture} == {
        f"eval/update-{update:06d}/{number:04d}.png" for update in (0, 100, 200, 300, 400) for number in range(8)
    }
    assert all(picture.src.startswith("data:image/webp;base64,") for row in gallery.rows for picture in row.pictures)  # type: ignore[union-attr]


def test_a_picture_that_is_gone_or_broken_leaves_its_place_empty(run: RunDirectory) -> None:
    (run.path / "eval" / "update-000100" / "0000.png").unlink()
    (run.path / "eval" / "update-000200" / "0001.png").write_bytes(b"no picture")
    assert html_of(run).count("unreadable") == 2


def test_a_file_elsewhere_is_neither_read_nor_linked(run: RunDirectory) -> None:
    scores = run.path / "eval" / "update-000400" / "scores.json"
    content = json.loads(scores.read_text())
    names = ["javascript:alert(1)", "../../../secret.png", "/etc/passwd", "https://example.com/x.png"]
    for shot, name in zip(content["shots"], names, strict=False):
        shot["file"] = name
    scores.write_text(json.dumps(content))
    html = html_of(run)
    links = [unquote(link) for link in re.findall(r'href="([^"#]+)"', html)]
    assert links and all(re.match(r"(eval|samples)/update-\d+/[^/]+$", link) for link in links)


@pytest.mark.parametrize(
    ("updates", "kept", "shown"),
    [
        (range(5), 2, [0, 1, 2, 3, 4]),
        (range(0, 1001, 50), 350, [0, 200, 350, 400, 600, 1000]),
        ([7], None, [7]),
        ([], 3, []),
    ],
)
def test_columns_are_the_first_the_kept_the_last_and_others_between(
    updates: Any, kept: int | None, shown: list[int]
) -> None:
    assert picked(list(updates), kept) == shown


def test_settings_that_depart_are_those_a_person_chose(whole: RunDirectory) -> None:
    config = OmegaConf.to_container(OmegaConf.load(whole.config))
    assert {key: (value, usual) for key, value, usual in departures(config)} == {  # type: ignore[arg-type]
        "steps": (400, 200), "class_word": ("cat", None),
    }  # fmt: skip
    chosen = {"lr": 1, "optimizer": {"_target_": "prodigyopt.Prodigy", "_lr_": 1}, "out": "elsewhere", "made_up": 1}
    assert [key for key, *_ in departures(chosen)] == ["optimizer._target_", "made_up"]


def test_settings_in_which_runs_differ() -> None:
    configs = [{"lr": 1, "name": "a", "data": {"flip": True}}, {"lr": 2, "name": "b", "data": {"flip": True}}, {}]
    assert differing(configs) == ["lr"]
    assert differing([{"ema": None}, {"ema": 0.9}]) == ["ema"]


@pytest.mark.parametrize(
    "value",
    ["outputs/demo", "my runs/a b", "it's", "a\\'b\\", "${oc.env:HOME}", "x; rm -rf ~ #", "[a,b]", "$(id)", "a=b"],
)
def test_commands_survive_the_shell_and_hydra(value: str) -> None:
    words = shlex.split(command("sample", run=value))
    assert words[:3] == ["python", "-m", "dreamlab.sample"] and len(words) == 4
    (override,) = OverridesParser.create().parse_overrides([words[3]])
    config: Any = OmegaConf.create({"run": override.value()})
    assert override.key_or_group == "run" and config.run == value


def test_numbers_and_sizes_in_words() -> None:
    assert [show(value) for value in (0.12345, 0.00123, -9e-8, 12, None, "x")] == [
        "0.123", "0.00123", "0.000", "12", "–", "x",
    ]  # fmt: skip
    assert [show_bytes(size) for size in (999, 12_345, 2_500_000)] == ["999 bytes", "12 kB", "2.5 MB"]


def test_a_page_is_small_and_says_how_small(whole: RunDirectory) -> None:
    path = write_page(whole)
    assert path.stat().st_size < 400_000
    assert f"This page is {show_bytes(path.stat().st_size)}" in path.read_text(encoding="utf-8")


def hostile_run(path: Path) -> RunDirectory:
    prompts = ((f"a photo of {HOSTILE}", "near"), (HOSTILE, "class"))
    settings = {"token": HOSTILE, "model": {"source": HOSTILE}, f"key{HOSTILE}": HOSTILE}
    run = write_run(path, sentence=HOSTILE, prompts=prompts, settings=settings, state=HOSTILE)
    card = {key: HOSTILE for key in ("instance_prompt", "gpu", "platform", "started", "command")}
    write_json(run.card, {**card, "versions": {HOSTILE: HOSTILE}})
    write_json(run.path / "verdict.json", {"sentence": HOSTILE, "state": HOSTILE, "keep": 200, "reasons": [HOSTILE]})
    run.set_status("failed", update=HOSTILE, message=HOSTILE, seconds=HOSTILE)
    scores = run.path / "eval" / "update-000400" / "scores.json"
    content = json.loads(scores.read_text())
    for shot in content["shots"]:
        shot |= {
            "nearest_photo": HOSTILE,
            "words": {HOSTILE: True},
            "kind": HOSTILE,
            "dino": HOSTILE,
            "p_value": HOSTILE,
        }
    scores.write_text(json.dumps(content))
    return run


def test_hostile_words_are_escaped_everywhere(tmp_path: Path) -> None:
    html = html_of(hostile_run(tmp_path / "x<script>window.hacked=1<"))
    assert html.count("window.hacked") > 10 and "{{ 7*7 }}" in html
    assert "<script" not in html and "<img src=x" not in html


@pytest.mark.browser
def test_hostile_words_do_nothing_in_a_browser(tmp_path: Path, browser: Any) -> None:
    browser.get(write_page(hostile_run(tmp_path / "demo")).as_uri())
    assert browser.execute_script("return window.hacked") is None
    assert browser.execute_script("return document.querySelectorAll('script, [onerror], [onload]').length") == 0
    protocols = "return [...document.querySelectorAll('a')].map(a => a.protocol).filter(p => p != 'file:').length"
    assert browser.execute_script(protocols) == 0
    assert "window.hacked" in browser.find_element("id", "verdict").text


@pytest.mark.browser
@pytest.mark.parametrize("width", [390, 1280])
def test_a_page_fits_its_width_and_asks_for_nothing(whole: RunDirectory, browser: Any, width: int) -> None:
    size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 600}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    browser.get_log("browser")
    browser.get(write_page(whole).as_uri())
    assert browser.execute_script("return document.documentElement.scrollWidth") <= width
    asked = "return performance.getEntriesByType('resource').map(e => e.name).filter(n => !n.startsWith('data:'))"
    assert browser.execute_script(asked) == []
    assert browser.get_log("browser") == []
    in_print_too = "return [...document.images].every(i => i.loading != 'lazy' && i.alt)"
    assert browser.execute_script(in_print_too)
    broken = "return Promise.all([...document.images].map(i => i.decode())).then(() => 'fine')"
    assert browser.execute_script(broken) == "fine"


def test_the_command_writes_the_page_and_refuses_what_it_cannot(
    run: RunDirectory, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["report", f"run={run.path}"])
    report.main()
    assert capsys.readouterr().out.strip() == str(run.path / "report.html") and (run.path / "report.html").is_file()
    for settings in (Report(), Report(run="a", runs=["b"]), Report(run=str(run.samples)), Report(run="a", out="b")):
        with pytest.raises(UserError):
            report.report(settings)
