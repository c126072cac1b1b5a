"""Textual inversion and pivotal tuning: new words that begin as known ones, learn alone, and are read everywhere."""

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import Settings, TrainRun, are_identical, noise_picture, weights_in, weights_of
from diffusers import StableDiffusionPipeline
from omegaconf import OmegaConf
from safetensors import safe_open
from safetensors.torch import load_file
from test_captured import are_near, fitted
from test_exact import differences, state_of
from test_lora import pictures
from tiny_models import save_tiny, save_tiny_xl

from dreamlab import assemble, embedding_files, feed, inversion, learning
from dreamlab.captured import obstacle
from dreamlab.checks import check
from dreamlab.commands import Evaluate, Export
from dreamlab.errors import UserError
from dreamlab.evaluate import evaluate
from dreamlab.export import export
from dreamlab.inversion import ROWS, add_token, beginning, reading, tables
from dreamlab.models import Family, load, vocabulary
from dreamlab.resume import Start
from dreamlab.runs import RunDirectory
from dreamlab.schema import Eval, Train
from dreamlab.train import train, train_together

TABLE = "text_encoder.embeddings.token_embedding.weight"
ROWS_NAME = "trained.text_encoder.embeddings.token_embedding.rows"
WAYS = {
    "inversion": ("adapter=textual_inversion", "adapter.vectors=2", "lr=1e-2"),
    "pivotal": ("adapter=pivotal", "adapter.rank=2", "adapter.train=[unet]", "lr=1e-2", "adapter.vectors=2"),
    "full": ("adapter=pivotal_full", "lr=1e-3", "adapter.train=[text_encoder]"),
}
QUICK = ("prompts=[]", "prior_weight=0", "steps=4", "save_every=1", "keep_states=9", "resolution=32")
Taught = Callable[[str], RunDirectory]


def text_of(model: Family, prompt: str) -> torch.Tensor:
    with torch.no_grad():
        return model.encode_text(model.tokenize([prompt]))["hidden"]


def teach(model: Family, initializer: str, vectors: int = 1, token: str = "zwx") -> None:
    add_token(model, token, beginning(model, initializer, vectors))


@pytest.mark.parametrize("vectors", [1, 3])
def test_a_new_word_begins_as_its_initializer_bit_for_bit(model: Family, vectors: int) -> None:
    before = text_of(model, f"a photo of a {'cat ' * vectors}dog")
    teach(model, "cat", vectors)
    assert torch.equal(text_of(model, "a photo of a zwx dog"), before)
    with torch.no_grad():
        tables(model)["text_encoder"].rows.add_(0.1)
    assert not torch.equal(text_of(model, "a photo of a zwx dog"), before)


def test_tokens_of_the_initializer_are_averaged_or_repeated(model: Family) -> None:
    ids = [number for word in ("cat", "dog", "bus") for _, number in vocabulary.pieces(model, word)]
    assert len(ids) == 3
    cat, dog, bus = vocabulary.token_embeddings(model)[ids]
    wanted = {1: [(cat + dog + bus) / 3], 2: [cat, (dog + bus) / 2], 3: [cat, dog, bus], 5: [cat, cat, dog, dog, bus]}
    for vectors, rows in wanted.items():
        torch.testing.assert_close(beginning(model, "cat dog bus", vectors)["text_encoder"], torch.stack(rows))


def test_a_new_word_is_read_as_its_rows_and_nowhere_else(model: Family) -> None:
    words = ("a desk zwxy", "a zwx")
    before, counted = [model.tokenize([text]) for text in words], vocabulary.count_tokens(model, "a zwx dog")
    first = len(vocabulary.token_embeddings(model))
    teach(model, "dog", vectors=3)
    assert torch.equal(model.tokenize([words[0]]), before[0]) and not torch.equal(model.tokenize([words[1]]), before[1])
    assert model.tokenize(["a zwx, dog"])[0, 2:5].tolist() == [first, first + 1, first + 2]
    assert vocabulary.count_tokens(model, "a zwx dog") == counted + 2
    assert model.pipeline().maybe_convert_prompt("a zwx dog", model.tokenizers()["text_encoder"]) == (
        "a zwx zwx_1 zwx_2 dog"
    )


def test_tables_hold_two_words_and_grow_when_merged(model: Family) -> None:
    before = text_of(model, "a dog dog and a cat bus")
    teach(model, "dog cat", 2)
    teach(model, "bus", token="qxj")
    with torch.no_grad():
        tables(model)["text_encoder"].rows.mul_(1.5)
    beside, size = text_of(model, "a zwx and a qxj"), model.parts()["text_encoder"].config.vocab_size
    with inversion.merged(model):
        assert torch.equal(text_of(model, "a zwx and a qxj"), beside) and not tables(model)
        assert model.parts()["text_encoder"].config.vocab_size == size + 3 == len(vocabulary.token_embeddings(model))
        told = inversion.added(model)
    assert {word: rows["text_encoder"].shape[0] for word, rows in told.items()} == {"zwx": 2, "qxj": 1}
    assert tables(model) and not torch.equal(beside, before)
    with pytest.raises(UserError, match="token=zwx is in this model's vocabulary already"):
        teach(model, "dog")


def test_pictures_of_a_new_word_have_names_of_their_own(model: Family) -> None:
    assert reading(model, "a zwx dog") == []
    teach(model, "cat")
    first = reading(model, "a zwx dog")
    assert len(first) == 1 and reading(model, "a dog") == []
    tables(model)["text_encoder"].rows.data.add_(1)
    assert reading(model, "a zwx dog") != first


def test_what_has_no_turn_has_no_gradient(settings: Settings) -> None:
    config, subject = check(settings(*WAYS["pivotal"], *QUICK, "adapter.embedding_lr=7e-3"))
    model = assemble.base_model(config)
    learning.add_words(config, subject, model)
    sets, module = feed.image_sets(config, subject, model), assemble.module(config, model)
    rates = {group["name"]: group["lr"] for group in module.configure_optimizers()["optimizer"].param_groups}
    assert rates == {"unet": 1e-2, "embedding": 7e-3} and module.inversion is not None
    for update, learns in ((1, {"rows"}), (2, {"unet"})):
        module.zero_grad(set_to_none=True)
        module.inversion.turn(update)
        module.loss(next(iter(feed.batches(config, sets, Start("", update=update), module)))).total.backward()
        named = module.trained.named_parameters()
        found = {name.split(".")[-1 if name.endswith(ROWS) else 0] for name, w in named if w.grad is not None}
        assert found == learns


@pytest.fixture(scope="module")
def taught(settings: Settings) -> Taught:
    """A run of four updates for each way, the switch after the second; a state of each and a snapshot of the second."""
    return cache(lambda way: train(settings(*WAYS[way], *QUICK, "snapshot_every=2", f"name={way}")))


@pytest.mark.parametrize("way", WAYS)
def test_all_other_rows_and_weights_stay_bit_for_bit(taught: Taught, way: str, model: Family) -> None:
    run = taught(way)
    after, before = weights_of(run), weights_in(model)
    size = len(before[TABLE])
    moved = {name for name in before if not torch.equal(after[name][:size] if name == TABLE else after[name],
                                                        before[name])}  # fmt: skip
    if way == "inversion":
        assert moved == set()
    elif way == "pivotal":
        assert moved and all(".attn" in name and name.startswith("unet.") for name in moved)
    else:
        assert moved and all(name.startswith("text_encoder.") for name in moved)
    rows = after[TABLE][size:]
    assert len(rows) == (1 if way == "full" else 2)
    begun = beginning(model, "dog", len(rows))["text_encoder"]
    assert (rows - begun).abs().max() > 5e-3


@pytest.mark.parametrize("way", WAYS)
def test_rows_learn_before_the_switch_and_weights_after_it(taught: Taught, way: str) -> None:
    run = taught(way)
    states = [torch.load(run.state(update), weights_only=True) for update in range(1, 5)]
    rows = [state["state_dict"][ROWS_NAME] for state in states]
    others = [{k: v for k, v in state["state_dict"].items() if k != ROWS_NAME} for state in states]
    kept = [len(state["optimizer_states"][0]["state"]) for state in states]
    assert not torch.equal(rows[0], rows[1])
    if way == "inversion":
        assert kept == [1] * 4 and others == [{}] * 4 and not torch.equal(rows[2], rows[3])
        return
    assert torch.equal(rows[1], rows[2]) and torch.equal(rows[1], rows[3])
    assert are_identical(others[0], others[1]) and not are_identical(others[1], others[2])
    assert kept[:2] == [1, 1] and kept[2] == kept[3] == 1 + len(others[0])


@pytest.mark.parametrize(
    ("way", "update"), [("inversion", 1), ("pivotal", 1), ("pivotal", 2), ("pivotal", 3), ("full", 2)]
)
def test_going_on_changes_nothing_on_either_side_of_the_switch(
    taught: Taught, train_run: TrainRun, way: str, update: int
) -> None:
    run = taught(way)
    resumed = train_run(*WAYS[way], *QUICK, "name=resumed", f"resume={run.state(update)}")
    assert differences(state_of(resumed), state_of(run)) == []
    assert are_identical(weights_of(resumed), weights_of(run))


@pytest.mark.parametrize("changed", ["adapter.train=[unet]", "adapter.embedding_lr=1e-4", "adapter.switch_step=3"])
def test_going_on_with_what_would_learn_otherwise_is_refused(taught: Taught, train_run: TrainRun, changed: str) -> None:
    words = (*WAYS["full"], *QUICK, changed, f"resume={taught('full').state(2)}")
    with pytest.raises(UserError, match=f"cannot be continued with these settings: {changed.split('=')[0]} "):
        train_run(*words)


@pytest.mark.parametrize("way", WAYS)
def test_snapshots_are_the_run_so_far(taught: Taught, way: str) -> None:
    run = taught(way)
    folder = run.snapshots / "update-000002"
    about = json.loads((folder / "snapshot.json").read_text())
    assert about["tokens"] == {"zwx": 1 if way == "full" else 2}
    rows = torch.load(run.state(2), weights_only=True)["state_dict"][ROWS_NAME]
    assert load_file(folder / "zwx.safetensors")["zwx"].dtype == torch.float16
    weights = weights_in(load("any", str(folder)))
    torch.testing.assert_close(weights[TABLE][-len(rows) :], rows, rtol=0, atol=1e-3)
    assert weights.keys() == weights_of(run).keys()


@pytest.mark.parametrize("way", WAYS)
def test_diffusers_draws_the_runs_pictures_with_the_files_it_left(taught: Taught, way: str) -> None:
    run = taught(way)
    ours = pictures(load("stable_diffusion", str(run.model)).pipeline())
    if way == "full":
        pipe = StableDiffusionPipeline.from_pretrained(run.model)
    else:
        pipe = load("stable_diffusion", "pocket").pipeline()
        assert np.abs(pictures(pipe) - ours).max() > 1e-2
        pipe.load_textual_inversion(run.model / "zwx.safetensors")
        if way == "pivotal":
            pipe.load_lora_weights(str(run.model))
    np.testing.assert_allclose(pictures(pipe), ours, rtol=0, atol=1e-4)


@pytest.mark.parametrize("way", WAYS)
def test_the_exported_word_is_one_tensor_under_its_name(taught: Taught, way: str, tmp_path: Path) -> None:
    run = taught(way)
    out = export(Export(run=str(run.path), out=str(tmp_path / "zwx.safetensors"), format="embedding", card=True))
    with safe_open(out, "pt") as file:
        about = file.metadata()
        shapes = {name: (file.get_slice(name).get_dtype(), *file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    assert shapes == {"zwx": ("F16", 1 if way == "full" else 2, 160)}
    assert (about["dreamlab.word"], about["dreamlab.class_word"]) == ("zwx", "dog")
    card = out.with_suffix(".md").read_text()
    assert "pipe.load_textual_inversion" in card and "embedding:zwx" in card


def test_what_a_format_has_no_place_for_is_said(
    taught: Taught, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def asked(way: str, format: str) -> Export:
        return Export(run=str(taught(way).path), out=str(tmp_path / "x.safetensors"), format=format)

    for format in ("safetensors", "kohya"):
        with pytest.raises(UserError, match=rf"format={format} has no place for new words.*format=embedding"):
            export(asked("inversion", format))
    state = load_file(export(asked("pivotal", "kohya")))
    assert state and all(name.startswith("lora_unet_") for name in state)
    assert "no place for zwx" in capsys.readouterr().out
    with pytest.raises(UserError, match="new words, and pocket has none"):
        export(Export(run="pocket", out=str(tmp_path / "y.safetensors"), format="embedding"))


def test_one_file_has_the_published_table(train_run: TrainRun, tmp_path: Path) -> None:
    source = save_tiny(1, tmp_path / "sd1")
    run = train_run(*WAYS["pivotal"], *QUICK, "steps=2", f"model.source={source}")
    out = export(Export(run=str(run.path), out=str(tmp_path / "one.safetensors"), dtype="fp32"))
    back, ours, base = (weights_in(load("stable_diffusion", str(path), config=str(source)))
                        for path in (out, run.model, source))  # fmt: skip
    assert torch.equal(back[TABLE], base[TABLE]) and len(ours[TABLE]) == len(base[TABLE]) + 2
    del back[TABLE], ours[TABLE], base[TABLE]
    assert are_identical(back, ours) and not are_identical(back, base)


@pytest.mark.parametrize("way", ["pivotal"])
def test_a_finished_run_is_a_model_to_train_further(taught: Taught, train_run: TrainRun, way: str) -> None:
    run = taught(way)
    again = train_run("adapter=lora", "adapter.train=[text_encoder]", *QUICK, "steps=1", f"model.source={run.model}")
    assert torch.equal(weights_of(again)[TABLE], weights_of(run)[TABLE])
    assert not are_identical(weights_of(again), weights_of(run))


def test_rows_can_go_on_and_keep_their_lengths(train_run: TrainRun, model: Family) -> None:
    words = ("adapter.go_on=true", "adapter.keep_norm=true", "adapter.switch_step=1", "ema=0.5")
    going = train_run(*WAYS["pivotal"], *QUICK, "steps=2", *words)
    first, second = (torch.load(going.state(k), weights_only=True)["state_dict"][ROWS_NAME] for k in (1, 2))
    assert not torch.equal(first, second)
    begun = beginning(model, "dog", 2)["text_encoder"].norm(dim=1)
    for rows in (first, second):
        torch.testing.assert_close(rows.norm(dim=1), begun)
    saved = embedding_files.read(going.model / "zwx.safetensors", "zwx")["text_encoder"]
    torch.testing.assert_close(saved, (first + second) / 2)


def test_runs_of_one_training_are_each_what_they_would_be_alone(settings: Settings, tmp_path: Path) -> None:
    words = (*WAYS["full"], *QUICK, "adapter.switch_step=1")
    both = [settings(*words, f"steps={steps}", f"out={tmp_path}", f"name=n{steps}") for steps in (2, 3)]
    shorter, longer = (weights_of(run) for run in train_together(both, in_sweep=True))
    assert are_identical(shorter, weights_of(train(settings(*words, "steps=2", "name=alone"))))
    assert not are_identical(shorter, longer)


def test_two_subjects_have_a_file_each(train_run: TrainRun, tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        noise_picture(len(name)).save(tmp_path / name / "0.png")
    listed = [{"instance_dir": str(tmp_path / name), "token": token, "class_word": word}
              for name, token, word in (("one", "zwx", "dog"), ("two", "qxj", "bus"))]  # fmt: skip
    (tmp_path / "list.json").write_text(json.dumps(listed))
    given = ("instance_dir=demo", "class_word=null", f"concepts={tmp_path / 'list.json'}", "batch_size=2")
    run = train_run(*WAYS["inversion"], *QUICK, "steps=1", *given)
    assert json.loads((run.model / "snapshot.json").read_text())["tokens"] == {"zwx": 2, "qxj": 2}
    rows = [embedding_files.read(run.model / f"{token}.safetensors", token)["text_encoder"] for token in ("zwx", "qxj")]
    assert torch.equal(torch.cat(rows), weights_of(run)[TABLE][-4:])
    with pytest.raises(UserError, match=r"several new words.*zwx.safetensors, qxj.safetensors"):
        export(Export(run=str(run.path), out=str(tmp_path / "x.safetensors"), format="embedding"))


def test_a_model_of_two_encoders_has_rows_in_both(train_run: TrainRun, tmp_path: Path) -> None:
    source = save_tiny_xl(tmp_path / "xl")
    words = ("model=sdxl", f"model.source={source}", "model.variant=null", "precision=fp32")
    run = train_run(*WAYS["inversion"], *QUICK, "steps=1", *words)
    rows = load_file(run.model / "zwx.safetensors")
    assert {key: tuple(weight.shape) for key, weight in rows.items()} == {"clip_l": (2, 32), "clip_g": (2, 64)}
    ours, pipe = (load("sdxl", str(path)).pipeline() for path in (run.model, source))
    for suffix, key in (("", "clip_l"), ("_2", "clip_g")):
        places = {name: getattr(pipe, f"{name}{suffix}") for name in ("tokenizer", "text_encoder")}
        pipe.load_textual_inversion(rows[key], token="zwx", **places)
    np.testing.assert_allclose(small(pipe), small(ours), rtol=0, atol=1e-4)


def small(pipe: Any) -> np.ndarray:
    pipe.set_progress_bar_config(disable=True)
    drawn = torch.Generator().manual_seed(1)
    chosen: Any = {"num_inference_steps": 2, "generator": drawn, "height": 32, "width": 32, "output_type": "np"}
    images: np.ndarray = pipe("a photo of a zwx dog", **chosen).images
    return images


def test_replayed_inversions_are_the_plain_ones(settings: Settings, tmp_path: Path) -> None:
    config = settings("adapter=textual_inversion", *QUICK, "steps=3")
    assert obstacle(config) is None
    assert "what learns changes" in str(obstacle(settings(*WAYS["pivotal"])))
    plain, ours = fitted(config, tmp_path / "plain", False), fitted(config, tmp_path / "ours", True)
    assert are_near(ours[1], plain[1], 2e-5)


@pytest.mark.slow
def test_a_run_is_measured_again_as_it_was(settings: Settings) -> None:
    few = {"near": 1, "far": 0, "class_images": 1, "unrelated": 0, "steps": 2, "moments": 1, "probes": 1}
    words = ("eval=quick", *(f"eval.{key}={value}" for key, value in few.items()))
    run = train(settings(*WAYS["inversion"], "steps=2", "resolution=32", *words))
    before, first = run.evaluations.rows(), run.probes.rows()[0]
    assert first["probe/class_drift"] == 0 and first["probe/train_loss"] == 1
    assert run.probes.rows()[-1]["probe/class_drift"] == 0, "no other prompt is read otherwise"
    chosen = Eval(prompts="pocket", guidance=5.0, dino="pocket-dino", clip="pocket-clip", **few)
    evaluate(Evaluate(run=str(run.path), eval=chosen, device="cpu"))
    for row, other in zip(run.evaluations.rows(), before, strict=True):
        assert row == pytest.approx(other, abs=1e-3)


TEXTUAL, PIVOTAL, LORA, WHOLE = "textual_inversion", "pivotal", "lora", "full"


@pytest.fixture(scope="module")
def composed(settings: Settings) -> Callable[[str], Train]:
    return cache(lambda adapter: settings(f"adapter={adapter}"))


@pytest.mark.parametrize(
    ("adapter", "words", "parts"),
    [
        (TEXTUAL, ["adapter.vectors=0"], ("adapter.vectors=0", "1 or more")),
        (TEXTUAL, ["adapter.vectors=null"], ("adapter.vectors is missing", "adapter=textual_inversion")),
        (TEXTUAL, ["adapter.initializer=' '"], ("adapter.initializer is empty", "class word")),
        (TEXTUAL, ["adapter.train=[unet]"], ("no weight of the model learns", "adapter=pivotal")),
        (TEXTUAL, ["adapter.rank=4"], ("adapter.rank=4 is of adapter=lora|dora|lokr",)),
        (TEXTUAL, ["adapter.switch_step=1"], ("adapter.switch_step=1 is of adapter=pivotal", "leave it out")),
        (TEXTUAL, ["text_encoder_lr=1e-3"], ("text_encoder_lr", "rows learn by lr")),
        (TEXTUAL, ["precision=bf16_pure"], ("rows of new words stay float32", "precision=bf16")),
        (TEXTUAL, ["trainer.strategy=fsdp", "trainer.devices=2"], ("can't share out rows", "Use ddp")),
        (TEXTUAL, ["token=Rex"], ("token='Rex'", "small letters", "zwx")),
        (TEXTUAL, ["instance_prompt=a photo of a dog"], ("has the word zwx", "{token} stands for it")),
        (LORA, ["adapter.vectors=2"], ("adapter.vectors=2 is of adapter=textual_inversion|pivotal",)),
        (WHOLE, ["adapter.then=lora"], ("adapter.then=lora is of adapter=textual_inversion|pivotal",)),
        (PIVOTAL, ["adapter.switch_step=2"], ("adapter.switch_step=2 is not within steps=2", "textual_inversion")),
        (PIVOTAL, ["steps=1"], ("steps=1", "two halves")),
        (PIVOTAL, ["adapter.then=lorra"], ("adapter.then=lorra", "Did you mean 'lora'?")),
        (PIVOTAL, ["adapter.then=full"], ("adapter.rank=8", "Use adapter=pivotal_full")),
        (TEXTUAL, ["model.family=stable_diffusion_3", "model.source=some/model"], ("read no new words", "Use lora")),
        (PIVOTAL, ["text_encoder_stop=1"], ("text_encoder_stop=1 comes before adapter.switch_step=1",)),
        (
            PIVOTAL,
            ["optimizer._target_=prodigyopt.Prodigy"],
            ("one learning rate for all", "adapter.embedding_lr=0.005"),
        ),
    ],
)
def test_what_cannot_be_is_refused(
    composed: Callable[[str], Train], adapter: str, words: list[str], parts: tuple[str, ...]
) -> None:
    plain = OmegaConf.structured(composed(adapter))
    config: Any = OmegaConf.to_object(OmegaConf.merge(plain, OmegaConf.from_dotlist(words)))
    with pytest.raises(UserError) as refused:
        check(config)
    assert all(part in str(refused.value) for part in parts), refused.value


def test_an_initializer_that_is_no_word_is_refused(model: Family) -> None:
    with pytest.raises(UserError, match="is nothing to this model's tokenizer"):
        beginning(model, " ", 1)


def test_what_is_not_given_is_filled_in(settings: Settings) -> None:
    config, _ = check(settings("adapter=pivotal", "steps=9"))
    assert (config.adapter.switch_step, config.adapter.embedding_lr, config.lr) == (4, 5e-3, 3e-4)
    config, _ = check(settings("adapter=textual_inversion"))
    assert (config.prior_weight, config.lr, config.adapter.vectors) == (0.0, 5e-3, 1)
    assert check(settings("adapter=pivotal_full"))[0].lr == 5e-5
