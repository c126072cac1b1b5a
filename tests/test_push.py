"""Sharing a model: the card it comes with, and the upload, against a hub on this machine that speaks HTTP."""

import io
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import yaml
from conftest import Settings, start_command
from hub_stand_in import Hub, running
from huggingface_hub import ModelCard, constants
from PIL import Image
from safetensors import safe_open
from tiny_models import save_tiny

from dreamlab import push as push_module
from dreamlab.card import model_card, provenance
from dreamlab.commands import Export
from dreamlab.errors import UserError
from dreamlab.export import export
from dreamlab.runs import RunDirectory
from dreamlab.train import train

TOKEN = "hf_abcdefghijklmnopqrstuvwxyz"


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A hub that this process is logged in to."""
    with running() as hub:
        monkeypatch.setattr(constants, "ENDPOINT", hub.address)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)  # the stand-in speaks the older protocol
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        yield hub
    huggingface_hub.close_session()


@pytest.fixture(scope="module")
def run(settings: Settings, tmp_path_factory: pytest.TempPathFactory) -> RunDirectory:
    """A run whose base lies in a folder with a telling name."""
    base = save_tiny(1, tmp_path_factory.mktemp("secret-client") / "tiny-base")
    config = settings(
        f"model.source={base}", "lr=2e-5", "name=shared", "snapshot_every=1", "sample_every=1", "resolution=32"
    )
    return train(config)


def share(run: RunDirectory, out: Path, **settings: Any) -> Path:
    return export(Export(run=str(run.path), out=str(out), **settings))


def header_of(card: str) -> dict[str, Any]:
    """What the hub reads: the YAML between the first two lines of dashes."""
    _, header, _ = card.split("---\n", 2)
    return dict(yaml.safe_load(header))


def test_a_file_arrives_with_its_card_and_samples(hub: Hub, run: RunDirectory, tmp_path: Path) -> None:
    file = share(run, tmp_path / "dog.safetensors", push="me/my-dog")
    there = hub.files["me/my-dog"]
    assert sorted(there) == ["README.md", "dog.safetensors", "grid.png"]
    assert there["dog.safetensors"] == file.read_bytes() and hub.is_private["me/my-dog"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["dog.safetensors"], "a card lies beside it on request"
    card = there["README.md"].decode()
    for said in (
        "# my-dog", "Base model: `tiny-base`", "Token: `zwx`", "Class word: `dog`", "`a photo of a zwx dog`",
        "`a photo of a dog`", "`lr`: `2e-05`", "`steps`: `2`", "`torch`: `2.", "![samples", "](grid.png)", "## Licence",
        "from_single_file('https://huggingface.co/me/my-dog/blob/main/dog.safetensors')", "AUTOMATIC1111",
    ):  # fmt: skip
        assert said in card, said
    assert header_of(card)["instance_prompt"] == "a photo of a zwx dog" and "base_model" not in header_of(card)


def test_a_folder_arrives_whole_and_again_as_a_new_version(hub: Hub, run: RunDirectory, tmp_path: Path) -> None:
    folder = share(run, tmp_path / "folder", format="diffusers", push="me/folder", private=False)
    there = hub.files["me/folder"]
    files = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert there.keys() == {*files, "README.md", "grid.png"} and not hub.is_private["me/folder"]
    assert "from_pretrained('me/folder')" in there["README.md"].decode()
    there.clear()
    share(run, folder, format="diffusers", push="me/folder", overwrite=True)
    assert there.keys() >= {"model_index.json", "README.md"}


def test_neither_token_nor_photos_nor_paths_are_shared(hub: Hub, run: RunDirectory, tmp_path: Path) -> None:
    share(run, tmp_path / "folder", format="diffusers", push="me/folder", card=True)
    share(run, tmp_path / "file.safetensors", push="me/file", card=True)
    sent = [content for there in hub.files.values() for content in there.values()]
    contents = [*sent, *(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())]
    assert hub.tokens == {f"Bearer {TOKEN}"}
    for secret in (TOKEN, "secret-client", str(run.path.parent)):
        assert not any(secret.encode() in content for content in contents), secret
    with Image.open(io.BytesIO(hub.files["me/folder"]["grid.png"])) as shared, Image.open(run.grid) as own:
        assert shared.height < own.height - 100, "the row of photos is not in it"


def test_a_card_is_written_on_request(run: RunDirectory, tmp_path: Path) -> None:
    share(run, tmp_path / "dog.safetensors", card=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["dog.md", "dog.png", "dog.safetensors"]
    assert "](dog.png)" in (tmp_path / "dog.md").read_text()
    (tmp_path / "dog.safetensors").unlink()
    with pytest.raises(UserError, match=r"dog.md exists already"):
        share(run, tmp_path / "dog.safetensors", card=True)
    folder = share(run, tmp_path / "folder", format="diffusers", card=True)
    assert (
        header_of((folder / "README.md").read_text())["library_name"] == "diffusers" and (folder / "grid.png").is_file()
    )


def test_a_snapshots_card_tells_of_its_update(run: RunDirectory, tmp_path: Path) -> None:
    about = provenance(str(run.snapshots / "update-000001"))
    assert about["recipe"]["steps"] == 1 and about["recipe"]["lr"] == 2e-5
    folder = export(
        Export(run=str(run.snapshots / "update-000001"), out=str(tmp_path / "f"), format="diffusers", card=True)
    )
    assert "`steps`: `1`" in (folder / "README.md").read_text()
    export(Export(run=str(run.snapshots / "update-000001"), out=str(tmp_path / "one.safetensors")))
    with safe_open(tmp_path / "one.safetensors", "pt") as weights:
        assert json.loads(weights.metadata()["dreamlab.recipe"])["steps"] == 1
    with Image.open(folder / "grid.png") as early, Image.open(run.grid) as whole:
        assert whole.height - early.height > 2 * 160, "neither the photos nor what came later"


HOSTILE = (
    "---\nlicense: mit\n---\n# mine", "a: b", "'\"\\", "{x: [", "- a", "# no", "${oc.env:HF_TOKEN}", "null", "狗 🐕",
    "&a *a !!python/object:x", "\x00\x1b[31m\u2028\u202e", "```\n# out\n```", "`` ` ``", "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>', "](javascript:alert(1)) ![x](https://example.com/x.png)",
    "\ud83d", "1e3",
)  # fmt: skip


@pytest.mark.parametrize("hostile", HOSTILE)
def test_hostile_words_break_neither_header_nor_text(hostile: str) -> None:
    about = {
        "base_model": f"/models/{hostile}", "token": hostile, "class_word": hostile, "instance_prompt": hostile,
        "recipe": {"lr": hostile}, "versions": {hostile: hostile},
    }  # fmt: skip
    plain = {**about, **dict.fromkeys(("token", "class_word", "instance_prompt"), "dog"), "base_model": "/models/x"}
    card = model_card(about, Path(f"{hostile.replace('/', '')}.safetensors"), None, None)
    wanted = header_of(model_card(plain, Path("x.safetensors"), None, None))
    header = header_of(card)
    assert {**header, "instance_prompt": "dog"} == wanted and isinstance(header.get("instance_prompt", ""), str)
    assert ModelCard(card).data.license == "other"
    lines = card.splitlines()
    assert [line for line in lines if line.startswith("#")][1:] == [
        "## How to load it", "## Recipe", "## Versions", "## Licence",
    ]  # fmt: skip
    assert card.count("\n---\n") == 1 and sum(line.startswith("```") for line in lines) == 2
    card.encode()
    code = card.split("```python\n")[1].split("\n```\n")[0]
    compile(code, "card", "exec")


@pytest.mark.parametrize(
    ("mood", "reason"),
    [("refusing", r"403"), ("failing", "500"), ("silent", r"timed out")],
)
def test_a_hub_that_will_not_take_it_leaves_the_export_in_place(
    hub: Hub, run: RunDirectory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mood: str, reason: str
) -> None:
    monkeypatch.setattr(push_module, "WAIT_S", 0.3)
    hub.mood = mood
    with pytest.raises(UserError, match=rf"did not take me/dog \(.*{reason}.*\)\. The export is whole.*overwrite=true"):
        share(run, tmp_path / "dog.safetensors", push="me/dog")
    assert (tmp_path / "dog.safetensors").stat().st_size > 1e5
    assert not hub.files.get("me/dog")


def test_no_hub_at_all_and_offline_are_told(
    hub: Hub, run: RunDirectory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(UserError, match="did not take me/dog"):
        share(run, tmp_path / "dog.safetensors", push="me/dog")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match="offline"):
        share(run, tmp_path / "cat.safetensors", push="me/dog")


@pytest.mark.parametrize("name", ["dog", "me/my dog", "a/b/c", "me/--", "../x", ""])
def test_a_bad_name_and_a_missing_login_are_told_before_anything_loads(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UserError, match=r"Give push=user/name\."):
        export(Export(run="nowhere/at-all", out=str(tmp_path / "x"), push=name))
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "none"))
    with pytest.raises(UserError, match="hf auth login"):
        export(Export(run="nowhere/at-all", out=str(tmp_path / "x"), push="me/dog"))


@pytest.mark.slow
def test_the_command_pushes(run: RunDirectory, tmp_path: Path) -> None:
    log = tmp_path / "log.txt"
    moved = shutil.copytree(run.path, tmp_path / "moved")
    with running() as hub:
        words = (f"run={moved}", "format=diffusers", f"out={tmp_path / 'f'}", "push=me/dog")
        process = start_command(
            "dreamlab.export", *words, log=log,
            HF_ENDPOINT=hub.address, HF_HUB_OFFLINE="0", HF_HUB_DISABLE_XET="1", HF_TOKEN=TOKEN,
        )  # fmt: skip
        assert process.wait(120) == 0, log.read_text()
        assert {"README.md", "model_index.json"} <= hub.files["me/dog"].keys()
        assert f"{hub.address}/me/dog" in log.read_text()
    assert TOKEN not in log.read_text() and "HF_TOKEN" not in os.environ
