"""The comparison of runs: the front by its definition, the table by its files, and the page by a browser's hand."""

import csv
import io
import json
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import start_command
from run_files import PROMPTS, evaluation, write_lines, write_run

from dreamlab import report
from dreamlab.commands import Report
from dreamlab.compare import compare, write_comparison
from dreamlab.contact_sheet import contact_sheet
from dreamlab.errors import UserError
from dreamlab.members import read_members, results_csv
from dreamlab.page import write_page
from dreamlab.pareto import Candidate, choose, dominates, front, surely_dominates
from dreamlab.runs import RunDirectory, write_json

HOSTILE = "<script>window.hacked=1</script>\"'><img src=x onerror=window.hacked=1>javascript:window.hacked=1</script>"


def candidate(label: str, fidelity: float, drift: float, width: float = 0.0, is_good: bool = True) -> Candidate:
    return Candidate(label, *((v, v - width, v + width) for v in (fidelity, drift)), is_good)


def test_the_front_of_a_known_set() -> None:
    known = {"a": (0.3, 0.1), "b": (0.5, 0.2), "c": (0.4, 0.3), "d": (0.7, 0.4), "e": (0.7, 0.5), "f": (0.2, 0.1)}
    points = [candidate(label, *values) for label, values in known.items()]
    assert [points[k].label for k in front(points)] == ["a", "b", "d"]
    assert front([]) == [] and front([*points[:1], *points[:1]]) == [0, 1], "of twins neither dominates the other"


@pytest.mark.parametrize("seed", range(5))
def test_the_front_is_what_nobody_dominates(seed: int) -> None:
    values = np.random.default_rng(seed).integers(0, 8, (40, 2)) / 8  # coarse, so that there are ties
    points = [candidate(str(k), float(one), float(other)) for k, (one, other) in enumerate(values)]
    free = {k for k, point in enumerate(points) if not any(dominates(other, point) for other in points)}
    assert set(front(points)) == free and free


def test_dominance_beyond_intervals_needs_both() -> None:
    one = candidate("one", 0.7, 0.1, 0.05)
    assert dominates(one, candidate("near", 0.65, 0.15, 0.05)) and not surely_dominates(
        one, candidate("near", 0.65, 0.15, 0.05)
    )
    assert surely_dominates(one, candidate("far", 0.5, 0.3, 0.05))
    assert not surely_dominates(one, Candidate("unknown", (0.1, None, None), (0.9, None, None), True))
    assert not dominates(one, one)


def test_the_choice_is_the_least_harmful_of_those_like_the_best() -> None:
    points = [
        candidate("#1", 0.70, 0.40, 0.05), candidate("#2", 0.66, 0.20, 0.05), candidate("#3", 0.60, 0.05, 0.05),
        candidate("#4", 0.80, 0.90, 0.05, is_good=False), candidate("#5", 0.66, 0.30, 0.05),
    ]  # fmt: skip
    choice = choose(points)
    assert choice is not None and points[choice.index].label == "#2"
    said = " ".join(choice.reasons)
    assert "a good verdict: 4 of 5 that were measured" in said and "the best, #1: 0.700 [0.650, 0.750]" in said
    assert "dominates #5" in said and "No run dominates it." in said and "drifts least: 0.200" in said
    bad = choose([candidate("#1", 0.5, 0.1, is_good=False)])
    assert bad is not None and "No run's verdict is good" in bad.reasons[0] and "the highest" in bad.reasons[1]
    assert choose([]) is None


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six runs of lr x steps, and one that failed."""
    folder = tmp_path_factory.mktemp("sweep")
    for number, (lr, steps) in enumerate((lr, steps) for lr in (1e-4, 2e-5, 5e-5) for steps in (100, 200)):
        run = write_run(
            folder / f"run-{number}", lr=lr, steps=steps, moments=range(0, steps + 1, 50), keep=steps,
            state="good" if lr < 1e-4 else "overfitted", seeds=2,
        )  # fmt: skip
    write_page(run)
    failed = RunDirectory(folder / "run-6")
    failed.path.mkdir()
    failed.set_status("failed", update=17, message="OutOfMemoryError: it was <b>too</b> big")
    return folder


@pytest.fixture(scope="module")
def page(sweep: Path) -> Path:
    return compare(Report(folder=str(sweep)))


def test_the_table_holds_the_numbers_of_the_moment_that_stands_for_a_run(sweep: Path, page: Path) -> None:
    assert page == sweep / "comparison.html"
    rows = list(csv.DictReader(io.StringIO((sweep / "results.csv").read_text())))
    assert [(float(row["lr"]), int(row["steps"])) for row in rows[:6]] == [
        (lr, steps) for lr in (1e-4, 2e-5, 5e-5) for steps in (100, 200)
    ]
    for row in rows[:6]:
        known = evaluation(int(row["steps"]), float(row["lr"]))
        assert int(row["update"]) == int(row["steps"]) and float(row["eval/dino"]) == known["eval/dino"]
        assert float(row["eval/drift_class_high"]) == known["eval/drift_class_high"]
    assert (rows[6]["state"], rows[6]["update"], rows[6]["eval/dino"]) == ("failed", "", "")
    assert rows[6]["message"] == "OutOfMemoryError: it was <b>too</b> big"
    assert f'<td data-value="{float(rows[0]["eval/dino"])}">{float(rows[0]["eval/dino"]):.3f}' in page.read_text()


def test_failed_runs_are_told_with_their_message_and_the_choice_with_its_command(sweep: Path, page: Path) -> None:
    html = page.read_text(encoding="utf-8")
    assert "OutOfMemoryError: it was &lt;b&gt;too&lt;/b&gt; big" in html
    (number,) = re.findall(r'Take <a href="#run-(\d)">', html)
    assert f"python -m dreamlab.export run={sweep / f'run-{int(number) - 1}'} format=diffusers<" in html
    assert 'href="run-5/report.html"' in html and 'href="run-4/report.html"' not in html


def test_the_scatter_and_the_curves_link_to_rows(page: Path) -> None:
    html = page.read_text(encoding="utf-8")
    targets = set(re.findall(r'<a xlink:href="#(run-\d)"', html))
    assert targets == {f"run-{number}" for number in range(1, 7)}
    assert all(f'id="{target}"' in html for target in targets)
    assert {f"eval-dino-curve-{number}" for number in range(1, 7)} <= set(re.findall(r'id="([^"]+)"', html))


def test_pictures_stand_by_lr_and_update_and_the_untouched_models_are_held_once(sweep: Path) -> None:
    members = read_members(sorted(path for path in sweep.iterdir() if path.is_dir()))
    sheet = contact_sheet(members)
    assert [(row["label"], row["members"]) for row in sheet.rows] == [
        ("lr 2e-05", [3, 4]), ("lr 5e-05", [5, 6]), ("lr 0.0001", [1, 2]),
    ]  # fmt: skip
    assert sheet.updates == [0, 50, 100, 150, 200] and sheet.left_out == 0
    assert sheet.shots == [(prompt, str(seed)) for prompt, _ in PROMPTS for seed in (7, 8)]
    bases = {tuple(row["cells"][0]) for row in sheet.rows}
    assert len(bases) == 1 and len(set(*bases)) == 8
    learnt = {round(lr * update * 1e6) for lr in (1e-4, 2e-5, 5e-5) for update in (50, 100, 150, 200)}
    assert len(sheet.pictures) == len(set(sheet.pictures)) == 8 * (1 + len(learnt)), "some runs drew the very same"


def test_runs_without_evaluations_show_their_samples(tmp_path: Path) -> None:
    run = write_run(tmp_path / "a")
    (run.path / "eval").rename(tmp_path / "gone")
    (run.path / "evaluations.jsonl").unlink()
    sheet = contact_sheet(read_members([run.path]))
    assert sheet.updates == [0, 400] and sheet.shots[0] == ("a photo of a zwx cat", "7") and len(sheet.pictures) == 8
    assert "No recommendation" in write_comparison([run.path], tmp_path / "page.html").read_text()


def test_a_token_that_differs_does_not_part_prompts(tmp_path: Path) -> None:
    for token in ("zwx", "sks"):
        prompts = [(f"a photo of a {token} cat", "near")]
        run = write_run(tmp_path / token, prompts=prompts, settings={"token": token}, seeds=1)
        for scores in run.path.glob("eval/*/scores.json"):
            content = json.loads(scores.read_text())
            write_json(scores, {**content, "shots": [{**shot, "token": token} for shot in content["shots"]]})
    sheet = contact_sheet(read_members([tmp_path / "zwx", tmp_path / "sks"]))
    assert sheet.shots == [("a photo of a {token} cat", "7")] and len(sheet.rows) == 2


def test_directories_of_which_little_is_left_are_compared_all_the_same(tmp_path: Path) -> None:
    for name in "ab":
        RunDirectory(tmp_path / name).path.mkdir()
        RunDirectory(tmp_path / name).set_status("running", update=0)
    html = compare(Report(runs=[str(tmp_path / "a"), str(tmp_path / "b")])).read_text()
    assert "2 runs compared" in html and "they differ in no setting" in html


def test_a_spreadsheet_takes_no_word_for_a_formula(tmp_path: Path) -> None:
    run = write_run(tmp_path / "=1+1", settings={"token": "@SUM(1)"})
    other = write_run(tmp_path / "b")
    write_lines(other.path / "evaluations.jsonl", [evaluation(0), {**evaluation(400), "eval/pres_change": -0.5}])
    first, second = csv.DictReader(io.StringIO(results_csv(read_members([run.path, other.path]))))
    assert (first["run"], first["token"], second["eval/pres_change"]) == ("'=1+1", "'@SUM(1)", "-0.5")


def test_the_command_and_what_it_refuses(
    sweep: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "few.html"
    monkeypatch.setattr(sys, "argv", ["report", f"runs=[{sweep / 'run-0'},{sweep / 'run-1'}]", f"out={out}"])
    report.main()
    assert capsys.readouterr().out.strip() == str(out) and (tmp_path / "results.csv").is_file()
    for settings in (
        Report(folder=str(tmp_path)), Report(folder=str(sweep / "run-0")), Report(runs=[]),
        Report(runs=[str(tmp_path)]),
    ):  # fmt: skip
        with pytest.raises(UserError):
            report.report(settings)


def numbers_shown(browser: Any) -> list[str]:
    script = (
        "return [...document.querySelectorAll('#table tbody tr')].filter(r => !r.hidden).map(r => r.dataset.number)"
    )
    return list(browser.execute_script(script))


def open_page(browser: Any, page: Path, width: int = 1280) -> None:
    size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 600}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    browser.get_log("browser")
    browser.get(page.as_uri())


@pytest.mark.browser
def test_a_browser_sorts_by_number_with_the_unknown_last(page: Path, browser: Any) -> None:
    open_page(browser, page)
    assert numbers_shown(browser) == list("1234567")
    head = browser.find_element("css selector", 'th[data-key="lr"]')
    head.find_element("tag name", "button").click()
    assert numbers_shown(browser) == list("3456127") and head.get_attribute("aria-sort") == "ascending"
    head.find_element("tag name", "button").click()
    assert numbers_shown(browser) == list("1256347") and head.get_attribute("aria-sort") == "descending"


@pytest.mark.browser
@pytest.mark.parametrize(
    ("words", "left"),
    [("lr<=5e-5 steps=200", "46"), ("verdict=overfitted", "12"), ("RUN-3", "4"), ("dino>0.6", "26"), ("too", "")],
)
def test_a_browser_filters_table_pictures_and_charts(page: Path, browser: Any, words: str, left: str) -> None:
    open_page(browser, page)
    known = {number: evaluation(steps, lr)["eval/dino"] for number, (lr, steps) in enumerate(
        ((lr, steps) for lr in (1e-4, 2e-5, 5e-5) for steps in (100, 200)), 1)}  # fmt: skip
    if words.startswith("dino"):
        left = "".join(str(number) for number, value in known.items() if value > 0.6)
    browser.find_element("id", "filter").send_keys(words)
    assert numbers_shown(browser) == list(left)
    assert browser.find_element("id", "count").text == f"{len(left)} of 7 runs"
    marks = (
        "return [...document.querySelectorAll('svg g[id*=\"{}\"]')]"
        ".filter(g => g.style.display != 'none').map(g => g.id)"
    )
    for name in ("-point-run-", "eval-dino-curve-"):
        shown = browser.execute_script(marks.format(name))
        assert {mark.split("-")[-1] for mark in shown} == set(left)
    rows = browser.find_elements("css selector", ".sheet tbody tr")
    assert len(rows) == len({(int(number) - 1) // 2 for number in left})
    assert browser.get_log("browser") == []


@pytest.mark.browser
def test_a_browser_switches_prompt_and_seed(page: Path, browser: Any) -> None:
    open_page(browser, page)
    sources = "return [...document.querySelectorAll('.sheet img')].map(i => i.src)"
    choose_it = (
        "const s = document.getElementById(arguments[0]); s.value = arguments[1]; s.dispatchEvent(new Event('change'))"
    )
    seen = [browser.execute_script(sources)]
    for name, value in (("seed", "8"), ("prompt", PROMPTS[3][0]), ("seed", "7")):
        browser.execute_script(choose_it, name, value)
        seen.append(browser.execute_script(sources))
        assert browser.execute_script("return document.getElementById(arguments[0]).value", name) == value
    assert [len(one) for one in seen] == [15] * 4 and len({tuple(one) for one in seen}) == 4
    decoded = "return Promise.all([...document.images].map(i => (i.loading = 'eager', i.decode()))).then(() => 'fine')"
    assert browser.execute_script(decoded) == "fine"
    heads = [cell.text for cell in browser.find_elements("css selector", ".sheet thead th")]
    assert heads[1:] == ["untouched", "update 50", "update 100", "update 150", "update 200"]


@pytest.mark.browser
def test_a_click_on_a_point_opens_its_row(page: Path, browser: Any) -> None:
    open_page(browser, page)
    point = browser.find_element("id", "front-point-run-4")
    assert point.find_element("css selector", "a title").get_attribute("textContent") == "#4 run-3"
    browser.execute_script("arguments[0].scrollIntoView({block: 'center'})", point)
    point.find_element("css selector", "a path").click()
    assert browser.execute_script("return location.hash") == "#run-4"
    assert browser.execute_script("return document.querySelector('tr:target').dataset.number") == "4"


@pytest.mark.browser
@pytest.mark.parametrize("width", [390, 1280])
def test_a_comparison_fits_its_width_and_asks_for_nothing(page: Path, browser: Any, width: int) -> None:
    open_page(browser, page, width)
    assert browser.execute_script("return document.documentElement.scrollWidth") <= width
    asked = "return performance.getEntriesByType('resource').map(e => e.name).filter(n => !n.startsWith('data:'))"
    assert browser.execute_script(asked) == [] and browser.get_log("browser") == []


@pytest.mark.browser
def test_hostile_words_do_nothing_in_a_comparison(tmp_path: Path, browser: Any) -> None:
    for number in range(2):
        run = write_run(
            tmp_path / f"<img src=x onerror=window.hacked=1>javascript:{number}", lr=number + 1.0, sentence=HOSTILE,
            prompts=((HOSTILE, "near"), (HOSTILE + "2", "class")), state="good",
            settings={"token": f"{HOSTILE}{number}", f"key{HOSTILE}": number},
        )  # fmt: skip
        run.set_status("failed", update=400, message=HOSTILE, seconds=HOSTILE)
        write_page(run)
    html = compare(Report(folder=str(tmp_path)))
    open_page(browser, html)
    assert browser.execute_script("return window.hacked") is None
    assert browser.execute_script("return document.querySelectorAll('script').length") == 2
    assert browser.execute_script("return document.querySelectorAll('[onerror], [onload]').length") == 0
    protocols = (
        "return [...document.querySelectorAll('a')].map(a => new URL(a.href.baseVal ?? a.href, location).protocol)"
    )
    assert set(browser.execute_script(protocols)) == {"file:"}
    assert len(browser.find_elements("css selector", ".sheet img")) == 10
    browser.find_element("css selector", "#table th a").click()
    assert browser.title.startswith("<img src=x"), "the link leads to the run's own page"


@pytest.mark.slow
def test_the_command_takes_plain_paths_and_a_folder(sweep: Path, tmp_path: Path) -> None:
    first, second = sweep / "run-0", sweep / "run-1"
    asked = ([str(sweep)], [f"folder={sweep}"], [str(first), str(second)], [str(first)])
    for words, page in zip(asked, (sweep / "comparison.html",) * 3 + (first / "report.html",), strict=True):
        log = tmp_path / "log.txt"
        assert start_command("dreamlab.report", *words, log=log).wait(60) == 0, log.read_text()
        assert log.read_text().strip() == str(page)
