"""An offline W&B run, read back: what it must hold, and what it must not."""

import math
from pathlib import Path
from typing import Any

import pytest
from conftest import noise_picture, start_command
from wandb_files import history, records_below, run_of, table, values

from dreamlab.loggers import close, log_images, log_shots, make_logger
from dreamlab.runs import RunDirectory

KEY, TOKEN = "0123456789abcdef0123456789abcdef01234567", "hf_ThisIsNoTokenButLooksLikeOneToAScanner"


@pytest.fixture(scope="module")
def run(tiny: tuple[str, ...], tmp_path_factory: pytest.TempPathFactory) -> RunDirectory:
    """A run of the command line with keys in its environment and W&B kept offline."""
    folder = tmp_path_factory.mktemp("wandb")
    log = folder / "log.txt"
    process = start_command(
        "dreamlab.train", *tiny, "logger=wandb", "logger.group=evening", "logger.tags=[rex,first-try]",
        "name=watched", "lr=2e-5", f"out={folder / 'outputs'}",
        log=log, WANDB_MODE="offline", WANDB_API_KEY=KEY, HF_TOKEN=TOKEN, SOME_PASSWORD="correct horse battery",
    )  # fmt: skip
    assert process.wait(180) == 0, log.read_text(encoding="utf-8")
    return RunDirectory(folder / "outputs" / "watched")


@pytest.fixture(scope="module")
def logged(run: RunDirectory) -> list[Any]:
    return records_below(run.path)


@pytest.mark.slow
def test_both_losses_of_every_update_are_logged(run: RunDirectory, logged: list[Any]) -> None:
    measured = [row for row in history(logged) if "train/loss_prior" in row]
    assert len(measured) == 2
    for row, written in zip(measured, run.read_metrics(), strict=True):
        for name in ("train/loss", "train/loss_instance", "train/loss_prior", "train/grad_norm"):
            assert row[name] == written[name] and math.isfinite(row[name]) and row[name] > 0
        assert row["train/loss"] == pytest.approx(row["train/loss_instance"] + row["train/loss_prior"])


@pytest.mark.slow
def test_samples_of_before_and_after_are_logged_with_captions(run: RunDirectory, logged: list[Any]) -> None:
    shown = [row for row in history(logged) if "samples.filenames" in row]
    assert [row["samples._type"] for row in shown] == ["images/separated"] * 2
    assert shown[0]["samples.captions"] == ["a photo of a zwx dog | seed 52362"]
    for row in shown:
        (file,) = run.path.glob(f"wandb/offline-run-*/files/{row['samples.filenames'][0]}")
        assert file.read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
def test_the_settings_are_logged(logged: list[Any]) -> None:
    config: dict[str, Any] = {}
    for record in logged:
        kind = record.WhichOneof("record_type")
        if kind in ("run", "config"):
            config |= values((record.run.config if kind == "run" else record.config).update)
    assert config["lr"] == 2e-5 and config["steps"] == 2 and config["prior_weight"] == 1.0
    assert config["instance_prompt"] == "a photo of a zwx dog"


@pytest.mark.slow
def test_no_key_token_or_password_is_anywhere_in_the_run(run: RunDirectory) -> None:
    files = [path for path in run.path.rglob("*") if path.is_file()]
    assert len(files) > 10
    for secret in (KEY, TOKEN, "correct horse battery"):
        assert [path for path in files if secret.encode() in path.read_bytes()] == []


@pytest.mark.slow
def test_group_job_type_and_tags_are_in_the_runs_record(logged: list[Any]) -> None:
    told = run_of(logged)
    assert (told.run_group, told.job_type, list(told.tags)) == ("evening", "train", ["rex", "first-try"])


def test_runs_that_are_open_at_once_keep_to_their_own_files(tmp_path: Path) -> None:
    names = ("one", "other", "third")
    loggers = {}
    for number, name in enumerate(names):
        (tmp_path / name).mkdir()
        loggers[name] = make_logger("wandb", tmp_path / name, name, "dreamlab", "offline", group=f"group {number}")
    for update in (1, 2):
        for number, (name, logger) in enumerate(loggers.items()):
            assert logger is not None
            if name == "third" and update == 2:
                continue  # closed by then, which the others don't notice
            picture = noise_picture(10 * number + update)
            logger.log_metrics({"train/loss": number + update / 10}, step=update)
            log_images(logger, [picture], [f"{name} {update}"], update)
            log_shots(logger, [{"prompt": name, "seed": update}], [picture], [picture], update)
        if update == 1:
            close(loggers["third"], succeeded=False)
    for name in names[1::-1]:
        close(loggers[name], succeeded=True)
    for number, name in enumerate(names):
        logged, until = records_below(tmp_path / name), 2 if name == "third" else 3
        rows = history(logged)
        assert (run_of(logged).display_name, run_of(logged).run_group) == (name, f"group {number}")
        assert [row["train/loss"] for row in rows if "train/loss" in row] == [
            number + update / 10 for update in range(1, until)
        ]
        assert [row["samples.captions"] for row in rows if "samples.captions" in row] == [
            [f"{name} {update}"] for update in range(1, until)
        ]
        tables = [table(tmp_path / name, row, "evaluation/shots") for row in rows if "evaluation/shots.path" in row]
        assert [(rows[0][0], rows[0][2]) for _, rows in tables] == [(name, update) for update in range(1, until)]
        (exit_code,) = [record.exit.exit_code for record in logged if record.WhichOneof("record_type") == "exit"]
        assert exit_code == (name == "third")
