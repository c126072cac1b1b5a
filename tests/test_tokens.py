"""Rare tokens: what the vocabulary says, what the model says, and a training that takes the best one."""

import json
import math
from pathlib import Path

import pytest
import torch
from conftest import Settings, start_command
from hydra import initialize_config_dir
from tiny_models import save_tiny

from dreamlab import assemble, naming
from dreamlab.checks import check
from dreamlab.commands import Tokens
from dreamlab.config import conf_dir
from dreamlab.errors import UserError
from dreamlab.identifiers import LETTERS, Vocabulary, doubt, shortlist
from dreamlab.models import Family
from dreamlab.models.vocabulary import count_tokens
from dreamlab.plan import make_plan
from dreamlab.resume import folder_of
from dreamlab.schema import Train
from dreamlab.tokens import _as_list, _given, tokens
from dreamlab.trial import KNOWN, Judged, Trial, judged_from


@pytest.fixture(scope="module")
def pocket() -> Family:
    return assemble.base_model(Train(device="cpu"))


@pytest.fixture(scope="module")
def trial(pocket: Family, class_image_cache: Path) -> Trial:
    return Trial(pocket, "dog", torch.device("cpu"), class_image_cache, 5.0)


@pytest.fixture(scope="module")
def vocabulary(pocket: Family) -> Vocabulary:
    return Vocabulary(pocket)


def test_a_word_is_read_as_the_tokenizer_reads_it(pocket: Family, vocabulary: Vocabulary) -> None:
    zwx, split, dog, capital = vocabulary.read(["zwx", "zwxy", "dog", "ZWX"])
    assert (zwx.pieces, split.pieces, dog.pieces) == (["zwx"], ["z", "w", "x", "y"], ["dog"])
    assert zwx.rarity is not None and dog.rarity is not None and zwx.rarity > 0.9 > 0.2 > dog.rarity
    assert capital.pieces == zwx.pieces and capital.rarity == zwx.rarity  # CLIP knows no capitals
    assert split.rarity is None
    assert count_tokens(pocket, "zwxy") - 2 == len(split.pieces)


def test_neighbours_of_words_that_pocket_has_learnt_are_their_kin(vocabulary: Vocabulary) -> None:
    near = {one.word: dict(one.neighbours) for one in vocabulary.read(["coffee", "fish", "cat", "zwx"])}
    assert near["coffee"]["espresso"] > 0.8 and near["fish"]["goldfish"] > 0.8 and near["cat"]["tabby"] > 0.4
    assert max(near["zwx"].values()) < 0.3
    assert all(word not in words for word, words in near.items()), "no word is its own neighbour"


def test_candidates_are_short_single_and_rare(pocket: Family, vocabulary: Vocabulary) -> None:
    candidates = vocabulary.candidates(LETTERS, "dog")
    assert {"zwx", "sks", "ohwx", "xjy"} <= {one.word for one in candidates}
    for one in candidates:
        assert 2 <= len(one.word) <= 4 and one.rarity is not None and one.rarity >= 0.5
        assert count_tokens(pocket, one.word) == 3
    assert "many" not in {one.word for one in vocabulary.candidates(LETTERS, "many dogs")}


def test_the_shortlist_adds_places_by_rarity_and_by_loneliness(vocabulary: Vocabulary) -> None:
    candidates = vocabulary.candidates(LETTERS, "dog")
    chosen = shortlist(candidates, 10)
    rarest = sorted(candidates, key=lambda one: -(one.rarity or 0))
    loneliest = sorted(candidates, key=lambda one: (one.nearness, one.word))
    sums = {one.word: rarest.index(one) + loneliest.index(one) for one in candidates}
    assert [sums[one.word] for one in chosen] == sorted(sums.values())[:10]


def test_doubts_are_told(vocabulary: Vocabulary) -> None:
    told = [doubt(one) for one in vocabulary.read(["zwx", "zwxy", "sks", "dog"])]
    assert told[0] == "" and "4 tokens (z + w + x + y)" in told[1]
    assert "rifle" in told[2] and told[3] == "is a common word"


def test_no_word_at_all_is_an_error(vocabulary: Vocabulary) -> None:
    with pytest.raises(UserError, match="nothing to this model's tokenizer"):
        vocabulary.read([" "])


def test_the_pull_tells_what_the_model_knows(trial: Trial) -> None:
    words = ["purple", "beach", "fish", "zwx", "sks", "xjy", "hwz", "gzb"]
    judged = {one.reading.word: one for one in trial.judge(trial.vocabulary.read(words))}
    pulls = {word: one.pull for word, one in judged.items()}
    assert min(pulls[word] for word in ("purple", "beach", "fish")) > 0.3
    assert max(pulls[word] for word in ("zwx", "sks", "xjy")) < 0.01
    for word in ("hwz", "gzb"):  # as rare as zwx, but by accident not as empty
        assert pulls[word] > 10 * pulls["zwx"] and judged[word].warning == "means something to this model"
    assert judged["zwx"].warning == ""


def test_the_pull_is_the_prediction_s_and_trains_nothing(trial: Trial) -> None:
    (once,) = trial.judge(trial.vocabulary.read(["zwx"]))
    before = {name: weight.clone() for name, weight in trial.model.parts()["text_encoder"].state_dict().items()}
    again = Trial(trial.model, "dog", trial.device, trial.cache_dir, 5.0)
    assert again.judge(again.vocabulary.read(["zwx"])) == [once]
    assert all(torch.equal(w, before[name]) for name, w in trial.model.parts()["text_encoder"].state_dict().items())
    grid = trial._asked()
    assert grid.moved_by(trial.model.tokenize(["a photo of a dog"])) == pytest.approx(0, abs=1e-9)


def test_a_search_is_ranked_and_read_again_from_the_cache(trial: Trial, tmp_path: Path) -> None:
    own = Trial(trial.model, "dog", trial.device, tmp_path, 5.0)
    found = own.search(LETTERS, 12)
    assert len(found) == 12
    assert found == sorted(found, key=lambda one: (bool(one.warning), one.pull))
    (file,) = (tmp_path / "tokens").glob("*.json")
    rows = json.loads(file.read_text())
    assert rows["recipe"]["class_word"] == "dog" and rows["recipe"]["weights"]
    assert [judged_from(row) for row in rows["identifiers"]] == found
    file.write_text(json.dumps({**rows, "identifiers": rows["identifiers"][:1]}))
    assert own.search(LETTERS, 12) == found[:1], "the cache is what answers"


def test_known_words_are_single_tokens_of_pocket(vocabulary: Vocabulary) -> None:
    assert all(len(one.pieces) == 1 for one in vocabulary.read(KNOWN))


def test_words_are_given_in_any_way() -> None:
    assert _given(Tokens(token="sks")) == ["sks"]
    assert _given(Tokens(token=["sks", "zwx", "sks"])) == _given(Tokens(token="sks, zwx")) == ["sks", "zwx"]
    assert _as_list("token=sks,zwx") == "token=[sks,zwx]" and _as_list("token=[a,b]") == "token=[a,b]"
    with pytest.raises(UserError, match="one word without spaces"):
        _given(Tokens(token="two words"))


def test_the_command_on_a_folder_with_samples(tmp_path: Path) -> None:
    settings = Tokens(class_word="teddy bear", shortlist=3, top=2, samples=1, device="cpu", cache_dir=str(tmp_path))
    settings.model.source, settings.out = str(save_tiny(1, tmp_path / "tiny")), str(tmp_path / "found.json")
    told = json.loads(tokens(settings).read_text())
    assert told["class_word"] == "teddy bear" and len(told["identifiers"]) == 3
    for row in told["identifiers"]:
        assert row["pieces"] == [row["token"]] and math.isfinite(row["pull"]) and row["neighbours"]
    assert (tmp_path / "found.png").is_file()


@pytest.mark.slow
def test_the_command_line_judges_and_tells(tmp_path: Path) -> None:
    log = tmp_path / "log"
    words = ("dreamlab.tokens", "class_word=dog", "token=sks,zwxy", f"out={tmp_path / 'told.json'}", "device=cpu")
    assert start_command(*words, log=log).wait(120) == 0, log.read_text()
    rows = json.loads((tmp_path / "told.json").read_text())["identifiers"]
    assert [row["token"] for row in rows] == ["sks", "zwxy"]
    assert "rifle" in rows[0]["warning"] and rows[1]["pieces"] == ["z", "w", "x", "y"]
    assert "sks" in log.read_text() and "told.json" in log.read_text()


def test_auto_is_the_run_that_the_chosen_token_names(
    settings: Settings, tiny: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.setattr(naming, "SHORTLIST", 6)
    naming._chosen.clear()
    out = f"out={tmp_path}"
    config, subject = check(settings("token=auto", out))
    told = " ".join(capsys.readouterr().err.split())
    assert config.token not in ("auto", "") and subject.concepts[0].token == config.token
    assert config.instance_prompt == f"a photo of a {config.token} dog"
    assert f"token=auto: {config.token}," in told
    assert folder_of(config, subject) == folder_of(*check(settings(f"token={config.token}", out)))
    with initialize_config_dir(conf_dir(), version_base="1.3"):
        plan = make_plan([[*tiny, "token=auto"], [*tiny, f"token={config.token}"]])
    assert {member.settings["token"] for member in plan.members} == {config.token}
    assert len(plan.trainings()) == 1, "the two are one run"
    assert "token=auto" not in capsys.readouterr().err, "told once"


def test_auto_is_for_one_subject(settings: Settings, photos: Path, tmp_path: Path) -> None:
    file = tmp_path / "two.yaml"
    file.write_text(f"- {{instance_dir: {photos}, token: auto, class_word: dog}}\n")
    with pytest.raises(UserError, match="one subject alone"):
        check(settings("instance_dir=demo", "class_word=null", f"concepts={file}"))


def test_a_doubtful_token_is_told_as_training_starts(
    settings: Settings, pocket: Family, capsys: pytest.CaptureFixture[str]
) -> None:
    for token, reason in (("zwxy", "is 4 tokens (z + w + x + y)"), ("car", "is a common word"), ("zwx", None)):
        _, subject = check(settings(f"token={token}"))
        naming.warn_of_identifiers(pocket, subject)
        told = capsys.readouterr().err
        assert f"token={token} {reason}" in " ".join(told.split()) if reason else told == ""


def test_judged_words_survive_json(vocabulary: Vocabulary) -> None:
    one = Judged(vocabulary.read(["zwx"])[0], 0.01, "")
    assert judged_from(json.loads(json.dumps(one.as_json()))) == one
