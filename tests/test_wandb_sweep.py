"""What W&B is shown of a whole sweep, read back from an offline run's own files; and the report that is made online."""

import json
from pathlib import Path
from typing import Any

import pytest
import wandb
from run_files import PROMPTS, write_run
from wandb_files import history, records_below, run_of, summary, table

from dreamlab import wandb_sweep
from dreamlab.compare import Comparison, compared, draw_comparison
from dreamlab.runs import RunDirectory
from dreamlab.wandb_sweep import log_sweep, save_report, sweep_report, sweep_table

KEY, TOKEN, PASSWORD = "0123456789abcdef0123456789abcdef01234567", "hf_ThisIsNoTokenButLooksLikeOne", "correct horse"


def members_in(folder: Path) -> Comparison:
    """Four runs that were measured, one with another token and a setting that is sometimes a word, and a failed one."""
    for number, (lr, holdout) in enumerate(((2e-5, 1), (5e-5, None), (1e-4, "auto"), (5e-5, 1))):
        token = "sks" if number == 3 else "zwx"
        write_run(
            folder / f"run-{number}", lr=lr, keep=(200, 100, None, 400)[number], seeds=1,
            prompts=[(prompt.replace("zwx", token), kind) for prompt, kind in PROMPTS],
            state="overfitted" if number == 2 else "good", settings={"token": token, "data": {"holdout": holdout}},
        )  # fmt: skip
        for scores in (folder / f"run-{number}").glob("eval/*/scores.json"):
            content = json.loads(scores.read_text())
            shots = [{**shot, "token": token} for shot in content["shots"]]
            scores.write_text(json.dumps({**content, "shots": shots}))
    failed = RunDirectory(folder / "run-4")
    with pytest.raises(RuntimeError), failed.guarded("signature", 17):
        raise RuntimeError(f"the server refused {TOKEN}")
    return compared([folder / f"run-{number}" for number in range(5)])


@pytest.fixture(scope="module")
def shown(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Comparison, list[Any]]:
    folder = tmp_path_factory.mktemp("sweep")
    with pytest.MonkeyPatch.context() as patch:
        for name, value in (("WANDB_API_KEY", KEY), ("HF_TOKEN", TOKEN), ("SOME_PASSWORD", PASSWORD)):
            patch.setenv(name, value)
        patch.setenv("WANDB_DATA_DIR", str(folder / "staged"))  # where pictures of a table wait for `wandb sync`
        comparison = members_in(folder)
        page = draw_comparison(comparison, folder / "comparison.html")
        log_sweep(
            comparison, folder=folder, project="dreamlab", mode="offline", group="evening", page=page, tags=["rex"]
        )
    return folder, comparison, records_below(folder)


def test_the_sweeps_run_stands_in_its_group(shown: tuple[Path, Comparison, list[Any]]) -> None:
    told = run_of(shown[2])
    assert (told.display_name, told.run_group, told.job_type) == ("evening", "evening", "sweep")
    assert list(told.tags) == ["rex"] and told.project == "dreamlab"


def test_the_table_has_a_row_for_each_member(shown: tuple[Path, Comparison, list[Any]]) -> None:
    folder, comparison, logged = shown
    columns, data = table(folder, history(logged)[0], "sweep/runs")
    rows = [dict(zip(columns, row, strict=True)) for row in data]
    assert [(row["number"], row["run"], row["state"]) for row in rows] == [
        (number, f"run-{number - 1}", "finished" if number < 5 else "failed") for number in range(1, 6)
    ]
    assert [row["update"] for row in rows] == [200, 100, 400, 400, None]
    assert [row["verdict"] for row in rows] == ["good", "good", "overfitted", "good", "unmeasured"]
    assert [row["lr"] for row in rows] == [2e-5, 5e-5, 1e-4, 5e-5, None]
    assert [row["data.holdout"] for row in rows] == ["1", None, "auto", "1", None]
    assert rows[4]["message"] == "RuntimeError: the server refused ***" and rows[4]["eval/dino"] is None
    for member, row in zip(comparison.members[:4], rows, strict=False):
        for key in ("eval/dino", "eval/dino_low", "eval/drift_class_high", "probe/held_out_loss"):
            assert row[key] == pytest.approx(member.numbers[key]), key
        assert row["front"] is (member.number in comparison.front)
        assert row["recommended"] is (member is comparison.chosen)
    assert sum(row["recommended"] for row in rows) == 1
    columns, points = table(folder, history(logged)[0], "sweep/front_table")
    assert columns == ["run", "class drift", "DINO"] and [point[0] for point in points] == [
        f"run-{number}" for number in range(4)
    ]


def test_pictures_are_of_one_prompt_and_seed_before_and_after(shown: tuple[Path, Comparison, list[Any]]) -> None:
    content = sweep_table(shown[1])
    before, after = (content.get_column(name) for name in ("untouched", "tuned"))
    prompts = ["a photo of a zwx cat"] * 3 + ["a photo of a sks cat"]
    assert [image._caption for image in before[:4]] == [f"{prompt} | seed 7 | update 0" for prompt in prompts]
    assert [image._caption for image in after[:4]] == [
        f"{prompt} | seed 7 | update {update}" for prompt, update in zip(prompts, (200, 100, 400, 400), strict=True)
    ]
    assert before[4] is None and after[4] is None
    manifests = [
        {entry.path: entry.local_path for entry in record.artifact.manifest.contents}
        for record in shown[2] if record.WhichOneof("record_type") == "artifact"
    ]  # fmt: skip
    pictures = {path: file for manifest in manifests for path, file in manifest.items() if path.endswith(".jpg")}
    assert len(pictures) == 5, "one of each run, and one of the untouched model, which is the same for all"
    for file in pictures.values():
        assert Path(file).is_relative_to(shown[0] / "staged") and Path(file).read_bytes().startswith(b"\xff\xd8")


def test_what_to_take_and_the_page_are_there(shown: tuple[Path, Comparison, list[Any]]) -> None:
    folder, comparison, logged = shown
    told, chosen, choice = summary(logged), comparison.chosen, comparison.choice
    assert chosen is not None and choice is not None
    assert (told["recommended"], told["update"]) == (chosen.name, chosen.update)
    assert told["reasons"].split("\n") == choice.reasons
    assert (told["members"], told["finished"]) == (5, 4) and f"#{chosen.number} {chosen.name}" in told["front"]
    (page,) = folder.glob(f"wandb/offline-run-*/files/{history(logged)[0]['sweep/page.path']}")
    assert page.read_text(encoding="utf-8") == (folder / "comparison.html").read_text(encoding="utf-8")


def test_nothing_secret_is_in_any_file(shown: tuple[Path, Comparison, list[Any]]) -> None:
    files = [path for path in shown[0].rglob("*") if path.is_file()]
    assert len(files) > 10
    for secret in (KEY, TOKEN, PASSWORD):
        assert [path for path in files if secret.encode() in path.read_bytes()] == []


def test_a_sweep_that_measured_and_drew_nothing_has_a_run_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in "ab":
        RunDirectory(tmp_path / name).path.mkdir()
        RunDirectory(tmp_path / name).set_status("failed", update=0)
    comparison = compared([tmp_path / "a", tmp_path / "b"])
    page = draw_comparison(comparison, tmp_path / "comparison.html")
    monkeypatch.setattr(wandb_sweep, "MAX_PAGE_BYTES", 10)
    log_sweep(comparison, folder=tmp_path, project="dreamlab", mode="offline", group="none", page=page)
    logged = records_below(tmp_path)
    (row,) = history(logged)
    assert len(table(tmp_path, row, "sweep/runs")[1]) == 2
    assert not [key for key in row if key.startswith(("sweep/page", "sweep/front"))]
    assert summary(logged)["reasons"].startswith("No recommendation")
    (line,) = capsys.readouterr().err.splitlines()
    assert "comparison.html is too large for W&B" in line, "and no word of a report, which is for runs online"


def test_unmeasured_runs_show_the_samples_of_their_end(tmp_path: Path) -> None:
    run = write_run(tmp_path / "a")
    (run.path / "eval").rename(tmp_path / "gone")
    (run.path / "evaluations.jsonl").unlink()
    content = sweep_table(compared([run.path]))
    (before,), (after,) = (content.get_column(name) for name in ("untouched", "tuned"))
    assert (before._caption[-8:], after._caption[-10:]) == ("update 0", "update 400")


def test_what_wandb_cannot_do_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HF_TOKEN", TOKEN)

    def refused(*_: Any, **__: Any) -> None:
        raise wandb.errors.CommError(f"[no]\n network {TOKEN}")

    monkeypatch.setattr(wandb_sweep, "open_wandb", refused)
    page = tmp_path / "page.html"
    log_sweep(
        compared([write_run(tmp_path / "a").path]), folder=tmp_path, project="p", mode="online", group="g", page=page
    )
    (line,) = capsys.readouterr().err.splitlines()
    assert line == f"dreamlab: the sweep is not in W&B (CommError: [no] network ***); its page is {page}."


@pytest.mark.parametrize(
    ("failure", "said"),
    [
        (ImportError("no"), "pip install 'dreamlab[workspaces]'"),
        (ValueError("odd"), "no W&B report of the sweep (ValueError: odd)"),
    ],
)  # fmt: skip
def test_a_report_that_cannot_be_made_is_one_line(
    failure: Exception, said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: Any) -> None:
        raise failure

    monkeypatch.setattr(wandb_sweep, "sweep_report", fail)
    save_report("me", "dreamlab", "evening")
    (line,) = capsys.readouterr().err.splitlines()
    assert said in line


@pytest.mark.parametrize(
    "group", ["evening", "2030-01-02_03-04-05", """lr=1,2 "it's" <x> within_last 5 days \\ é 🐈"""]
)
def test_the_report_is_about_the_group_alone(group: str) -> None:
    pytest.importorskip("wandb_workspaces.reports.v2")
    spec = json.loads(sweep_report("me", "dreamlab", group)._to_model().spec.model_dump_json(by_alias=True))
    (grid,) = [block["metadata"] for block in spec["blocks"] if block["type"] == "panel-grid"]
    (runs,) = grid["runSets"]
    (only,) = runs["filters"]["filters"]
    assert (only["key"]["name"], only["op"], only["value"]) == ("group", "=", group)
    panels = [(panel["viewType"], panel["config"]) for panel in grid["panelBankSectionConfig"]["panels"]]
    assert panels[0][0] == "Scatter Plot"
    assert (panels[0][1]["xAxis"], panels[0][1]["yAxis"]) == ("summary:eval/drift_class", "summary:eval/dino")
    assert [config["metrics"] for _, config in panels[1:]] == [
        ["eval/dino"], ["eval/clip_t"], ["eval/drift_class"], ["probe/held_out_loss"],
    ]  # fmt: skip
    assert {config["xAxis"] for _, config in panels[1:]} == {"trainer/global_step"}
