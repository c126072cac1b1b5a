"""LoRA, DoRA and LoKr: nothing at first, float32 weights beside a frozen model, small files that others read."""

import json
import shutil
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import Settings, TrainRun, are_identical, weights_in, weights_of
from kohya_keys import lora_keys
from peft import PeftModel
from safetensors import safe_open
from test_exact import differences, numbers_of, state_of
from test_update import prepared
from tiny_models import save_tiny

from dreamlab import adapter_files, assemble, feed
from dreamlab.adapters import SUBSETS, add
from dreamlab.checks import check
from dreamlab.commands import Evaluate, Export, Sample
from dreamlab.errors import UserError
from dreamlab.evaluate import evaluate
from dreamlab.export import export
from dreamlab.kohya import kohya_state
from dreamlab.low_rank import TARGETS, LowRank, adapter_weights, file_name, merge
from dreamlab.models import Family, load
from dreamlab.precision import autocast
from dreamlab.resume import Start
from dreamlab.runs import RunDirectory
from dreamlab.sample import sample
from dreamlab.schema import Eval
from dreamlab.snapshots import write_snapshot
from dreamlab.train import train, train_together

KINDS = ("lora", "dora", "lokr")
EVERYWHERE = "adapter.targets=[attention,feed_forward,projections,convolutions]"
QUICK = ("prompts=[]", "prior_weight=0", "lr=1e-2", "adapter.rank=4", "adapter.alpha=8")


def predictions(model: Any) -> torch.Tensor:
    """What the denoiser says of fixed latents under a prompt, in eval mode."""
    noise = torch.randn(2, 8, 16, 16, generator=torch.Generator().manual_seed(3))
    for part in model.parts().values():
        part.eval()
    with torch.no_grad():
        text = model.encode_text(model.tokenize(["a photo of a zwx dog", "a teapot"]))
        return model.predict(noise, torch.tensor([100, 700]), text)


def learn(model: Family) -> None:
    """Give every adapter weight a value that nothing else has."""
    drawn = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for part in model.parts().values():
            for weight in adapter_weights(part).values():
                weight.add_(0.05 * torch.randn(weight.shape, generator=drawn))


def adapted(
    kind: str, model: Family, targets: tuple[str, ...] = ("attention",), **settings: Any
) -> torch.nn.ModuleDict:
    chosen = LowRank(**{"rank": 4, "alpha": 8.0, "dropout": 0.0, "train": ("unet", "text_encoder"), **settings},
                     kind=kind, targets=targets)  # fmt: skip
    return add(model.parts(), chosen, gradient_checkpointing=False, seed=1)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("targets", [("attention",), ("attention", "feed_forward", "projections", "convolutions")])
def test_at_first_nothing_is_changed_bit_for_bit(model: Family, kind: str, targets: tuple[str, ...]) -> None:
    before = predictions(model)
    adapted(kind, model, targets)
    assert torch.equal(predictions(model), before)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("targets", [("attention",), ("feed_forward", "projections", "convolutions")])
def test_merged_is_unmerged(model: Family, kind: str, targets: tuple[str, ...]) -> None:
    before, plain = predictions(model), weights_in(model).keys()
    adapted(kind, model, targets)
    learn(model)
    beside = predictions(model)
    for name in ("unet", "text_encoder"):
        merge(model.parts()[name])
    merged = predictions(model)
    torch.testing.assert_close(merged, beside, rtol=0, atol=1e-5 * float(beside.abs().max()))
    assert (merged - before).abs().max() > 1e-2 and weights_in(model).keys() == plain


def test_merged_lora_is_the_papers_equation(model: Family) -> None:
    name = "mid_block.attentions.0.transformer_blocks.0.attn1.to_q"
    before = model.parts()["unet"].get_submodule(name).weight.clone()
    adapted("lora", model)
    learn(model)
    own = dict(model.parts()["unet"].get_submodule(name).named_parameters())
    a, b = own["lora_A.default.weight"].clone(), own["lora_B.default.weight"].clone()
    merge(model.parts()["unet"])
    torch.testing.assert_close(model.parts()["unet"].get_submodule(name).weight, before + 8 / 4 * b @ a)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("half", [False, True])
def test_only_adapter_weights_learn_in_float32(settings: Settings, kind: str, half: bool) -> None:
    config = settings(f"adapter={kind}", "adapter.rank=2", f"precision={'bf16' if half else 'fp32'}", *QUICK[:2])
    _, sets, module, _ = prepared(config)
    learning = {name for name, weight in module.trained.named_parameters() if weight.requires_grad}
    assert learning == {f"{part}.{name}" for part, net in module.trained.items() for name in adapter_weights(net)}
    assert {module.trained.get_parameter(name).dtype for name in learning} == {torch.float32}
    with autocast(config.precision, torch.device("cpu")):
        loss = module.loss(next(iter(feed.batches(config, sets, Start(""), module)))).total
    loss.backward()
    assert all((weight.grad is not None) == (name in learning) for name, weight in module.trained.named_parameters())
    groups = module.configure_optimizers()["optimizer"].param_groups
    assert sum(len(group["params"]) for group in groups) == len(learning)
    assert {group["lr"] for group in groups} == {3e-4}, "the model's word for adapters"


@pytest.mark.parametrize("kind", KINDS)
def test_recomputed_activations_give_the_same_gradients(settings: Settings, kind: str) -> None:
    gradients = []
    for recompute in ("false", "true"):
        config = settings(f"adapter={kind}", f"model.gradient_checkpointing={recompute}", "prior_weight=0")
        model, sets, module, _ = prepared(config)
        learn(model)
        module.loss(next(iter(feed.batches(config, sets, Start(""), module)))).total.backward()
        gradients.append({n: w.grad for n, w in module.trained.named_parameters() if w.requires_grad})
    for name, gradient in gradients[0].items():
        assert gradient is not None and gradient.any()
        torch.testing.assert_close(gradients[1][name], gradient, atol=1e-6, rtol=1e-4)


def test_targets_and_parts_narrow_each_other(model: Family) -> None:
    trained = adapted("lora", model, ("attention", "convolutions"), train=("unet.mid", "unet.cross_attention_kv"))
    layers = {name.split(".lora_")[0] for name in adapter_weights(trained["unet"])}
    assert set(trained) == {"unet"} and any("resnets" in name for name in layers)
    assert all(name.startswith("mid_block.") or name.endswith(("attn2.to_k", "attn2.to_v")) for name in layers)
    assert SUBSETS.keys() == TARGETS.keys()


def test_what_weights_begin_with_is_a_function_of_the_seed(settings: Settings) -> None:
    def begun(*words: str) -> dict[str, torch.Tensor]:
        torch.manual_seed(len(words[0]))  # which must not matter
        config = settings("adapter=lora", *words)
        module = assemble.module(config, assemble.base_model(config))
        return {name: w.detach() for name, w in module.trained.named_parameters() if w.requires_grad}

    one, other = begun("seed=1"), begun("adapter.train=[text_encoder,unet]", "seed=1")
    assert are_identical(dict(sorted(one.items())), dict(sorted(other.items())))
    assert not are_identical(one, begun("seed=2"))


@pytest.fixture(scope="module", params=KINDS)
def run(request: pytest.FixtureRequest, settings: Settings) -> RunDirectory:
    """A run of three updates that has a snapshot of the second and a resume state of each."""
    words = (f"adapter={request.param}", *QUICK, EVERYWHERE, "name=taught")
    return train(settings(*words, "steps=3", "snapshot_every=2", "save_every=1", "keep_states=9"))


def kind_of(run: RunDirectory) -> str:
    return str(run.read_config()["adapter"]["kind"])


def test_a_run_leaves_its_adapter_and_its_bases_name(run: RunDirectory, model: Family) -> None:
    about = json.loads((run.model / "snapshot.json").read_text())
    assert about["base"]["source"] == "pocket" and about["parts"] == ["text_encoder", "unet"]
    assert (about["adapter"]["kind"], about["update"], about["dtype"]) == (kind_of(run), 3, "fp32")
    size = sum(file.stat().st_size for file in run.model.rglob("*") if file.is_file())
    whole = sum(weight.numel() * 4 for weight in weights_in(model).values())
    assert size < whole / 10
    after, before = weights_of(run), weights_in(model)
    moved = {name for name in after if not torch.equal(after[name], before[name])}
    assert after.keys() == before.keys() and moved
    assert all(name.endswith("weight") and not name.startswith("vae.") for name in moved)


def test_states_and_snapshots_hold_adapter_weights_alone(run: RunDirectory) -> None:
    state = torch.load(run.state(3), weights_only=True)
    assert state["state_dict"] and all(".lora_" in name or ".lokr_" in name for name in state["state_dict"])
    assert len(state["optimizer_states"][0]["state"]) == len(state["state_dict"])
    snapped, final = weights_in(load("any", str(run.snapshots / "update-000003"))), weights_of(run)
    for name, weight in snapped.items():
        torch.testing.assert_close(weight, final[name], rtol=0, atol=2e-3)
    early = weights_in(load("any", str(run.snapshots / "update-000002")))
    assert max((early[name] - final[name]).abs().max() for name in final) > 2e-3


@pytest.mark.parametrize("way", [(), ("ema=0.9",), ("adapter.dropout=0.5",), ("accumulate=2",)])
@pytest.mark.parametrize("kind", KINDS)
def test_going_on_changes_nothing(train_run: TrainRun, kind: str, way: tuple[str, ...]) -> None:
    words = (f"adapter={kind}", *QUICK, "max_grad_norm=0.1", "adapter.train=[text_encoder]", "steps=3", *way)
    at_once = train_run(*words, "name=at_once", "save_every=1", "keep_states=9")
    resumed = train_run(*words, "name=resumed", f"resume={at_once.state(1)}")
    assert numbers_of(resumed) == numbers_of(at_once)
    assert differences(state_of(resumed), state_of(at_once)) == []
    assert are_identical(weights_of(resumed), weights_of(at_once))


def test_an_average_is_of_adapter_weights_alone_and_is_what_is_saved(train_run: TrainRun) -> None:
    words = ("adapter=lora", *QUICK, "adapter.train=[text_encoder]", "ema=0.5")
    averaged = train_run(*words, "steps=2", "save_every=1", "keep_states=2", "snapshot_every=2")
    first, last = (torch.load(averaged.state(k), weights_only=True)["state_dict"] for k in (1, 2))
    saved = adapter_files.read(averaged.model, "lora", ["text_encoder"])["text_encoder"]
    assert len(saved) == len(first)
    for name, weight in first.items():
        told = file_name(name.removeprefix("trained.text_encoder."))
        torch.testing.assert_close(saved[told], (weight + last[name]) / 2)
    kept = next(v for k, v in torch.load(averaged.state(2), weights_only=True)["callbacks"].items() if "Average" in k)
    assert len(kept) == len(first)


def test_runs_of_one_training_are_each_what_they_would_be_alone(settings: Settings, tmp_path: Path) -> None:
    words = ("adapter=lora", *QUICK, "adapter.train=[text_encoder]", "adapter.dropout=0.2")
    both = [settings(*words, f"steps={steps}", f"out={tmp_path}", f"name=n{steps}") for steps in (1, 2)]
    for run, config in zip(train_together(both, in_sweep=True), both, strict=True):
        alone = train(settings(*words, f"steps={config.steps}", "name=alone"))
        assert are_identical(weights_of(run), weights_of(alone))


def test_diffusers_reads_a_text_encoder_of_which_only_the_mlp_learns(model: Family, tmp_path: Path) -> None:
    trained = adapted("dora", model, ("feed_forward",), train=("text_encoder",))
    learn(model)
    weights = {f"text_encoder.{name}": w for name, w in adapter_weights(trained["text_encoder"]).items()}
    base = {"family": "stable_diffusion", "source": "pocket"}
    chosen = LowRank("dora", 4, 8.0, 0.0, ("feed_forward",), ("text_encoder",))
    write_snapshot(tmp_path / "s", weights, {"update": 1, "base": base, "adapter": asdict(chosen)}, "fp32")
    pipe = load("stable_diffusion", "pocket").pipeline()
    pipe.load_lora_weights(str(tmp_path / "s"))
    np.testing.assert_allclose(pictures(pipe), pictures(load("any", str(tmp_path / "s")).pipeline()), atol=1e-4)


def pictures(pipe: Any) -> np.ndarray:
    pipe.set_progress_bar_config(disable=True)
    drawn = torch.Generator().manual_seed(1)
    images: np.ndarray = pipe("a photo of a zwx dog", num_inference_steps=4, generator=drawn, output_type="np").images
    return images


def test_other_programs_draw_the_same_pictures(run: RunDirectory, tmp_path: Path) -> None:
    """diffusers reads LoRA and DoRA from the run's own folder and LoRA from the exported file; peft reads LoKr."""
    ours, kind = pictures(load("any", str(run.model)).pipeline()), kind_of(run)
    sources = [run.model]
    if kind == "lora":
        out = tmp_path / "kohya.safetensors"
        sources.append(export(Export(run=str(run.path), out=str(out), format="kohya", dtype="fp32")))
    for source in sources:
        pipe = load("stable_diffusion", "pocket").pipeline()
        assert np.abs(pictures(pipe) - ours).max() > 1e-2
        if kind == "lokr":
            pipe.unet = PeftModel.from_pretrained(pipe.unet, str(source / "unet")).merge_and_unload()
            texts = PeftModel.from_pretrained(pipe.text_encoder, str(source / "text_encoder")).merge_and_unload()
            pipe.text_encoder = texts
        else:
            pipe.load_lora_weights(str(source))
        np.testing.assert_allclose(pictures(pipe), ours, rtol=0, atol=1e-4)


def test_a_run_is_drawn_with_exported_and_trained_on(run: RunDirectory, settings: Settings, tmp_path: Path) -> None:
    folder = sample(Sample(run=str(run.path), prompt="a dog", n=1, steps=2, device="cpu"))
    assert (folder / "0000.png").is_file()
    out = export(Export(run=str(run.path), out=str(tmp_path / "folder"), format="diffusers", dtype="fp32"))
    assert are_identical(weights_in(load("stable_diffusion", str(out))), weights_of(run))
    again = train(settings("adapter=lora", *QUICK, "steps=1", f"model.source={run.model}"))
    assert json.loads((again.model / "snapshot.json").read_text())["base"]["source"] == str(run.model.resolve())
    assert not are_identical(weights_of(again), weights_of(run))


@pytest.mark.slow
def test_a_run_is_sampled_probed_and_evaluated(settings: Settings) -> None:
    few = {"far": 1, "class_images": 1, "unrelated": 1, "steps": 2, "moments": 1, "probes": 2}
    words = ("eval=quick", *(f"eval.{key}={value}" for key, value in few.items()))
    run = train(settings("adapter=lora", "steps=2", *words, "sample_every=1"))
    assert {path.name for path in run.samples.iterdir()} == {f"update-{k:06d}" for k in range(3)}
    before = run.evaluations.rows()
    first = run.probes.rows()[0]
    assert first["probe/class_drift"] == 0 and first["probe/train_loss"] == 1
    chosen = Eval(prompts="pocket", guidance=5.0, dino="pocket-dino", clip="pocket-clip", **few)
    evaluate(Evaluate(run=str(run.path), eval=chosen, device="cpu"))
    assert [row["update"] for row in run.evaluations.rows()] == [0, 2]
    for key, value in run.evaluations.rows()[-1].items():
        assert value == pytest.approx(before[-1][key], abs=1e-3), key


def full_size(version: int) -> Iterator[tuple[str, torch.nn.Module]]:
    from diffusers import UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    with torch.device("meta"):
        yield "unet", UNet2DConditionModel(sample_size=64, cross_attention_dim=768, attention_head_dim=8)
        yield "text_encoder", CLIPTextModel(CLIPTextConfig(
            hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12))  # fmt: skip


def kohya_of(kind: str, parts: dict[str, torch.nn.Module], targets: tuple[str, ...]) -> dict[str, torch.Tensor]:
    adapter = LowRank(kind, 8, 4.0, 0.0, targets, ("unet", "text_encoder"))
    trained = add(parts, adapter, gradient_checkpointing=False, seed=0)
    weights = {part: {file_name(n): w for n, w in adapter_weights(net).items()} for part, net in trained.items()}
    return kohya_state(adapter, weights)


ATTENTION, KOHYA = ("attention",), ("attention", "feed_forward", "projections")


@pytest.mark.parametrize(
    ("targets", "asked", "modules"),
    [
        (ATTENTION, {"only_attention": True}, 128 + 48),
        (KOHYA, {}, 192 + 72),
        ((*KOHYA, "convolutions"), {"convolutions": True}, 192 + 72 + 22 * 3 + 14 + 6),
    ],
)
def test_the_full_size_architecture_has_exactly_kohyas_keys_and_shapes(
    targets: tuple[str, ...], asked: dict[str, bool], modules: int
) -> None:
    state = kohya_of("lora", dict(full_size(1)), targets)
    assert {name: tuple(weight.shape) for name, weight in state.items()} == lora_keys(8, **asked)
    assert len(state) == 3 * modules


def test_dora_adds_a_column_of_lengths_to_every_module() -> None:
    state = kohya_of("dora", dict(full_size(1)), KOHYA)
    lora = lora_keys(8)
    scales = {name: tuple(weight.shape) for name, weight in state.items() if name.endswith(".dora_scale")}
    assert state.keys() - scales.keys() == lora.keys() and len(scales) == 264
    for name, shape in scales.items():
        up = lora[name.replace("dora_scale", "lora_up.weight")]
        assert shape == (up[0], *(1 for _ in up[1:]))


def test_lokr_keys_give_the_change_that_was_learnt_whatever_alpha_is(model: Family) -> None:
    """As its readers do: kron(w1, w2), times alpha / rank where a factor has a rank and times 1 where none has."""
    parts = {name: model.parts()[name] for name in ("unet", "text_encoder")}
    before = {part: {n: w.clone() for n, w in net.state_dict().items()} for part, net in parts.items()}
    kohya_of("lokr", parts, ("attention", "convolutions"))
    learn(model)
    adapter = LowRank("lokr", 8, 4.0, 0.0, ("attention", "convolutions"), ("unet", "text_encoder"))
    weights = {part: {file_name(n): w.detach().clone() for n, w in adapter_weights(net).items()}
               for part, net in parts.items()}  # fmt: skip
    state = kohya_state(adapter, weights)
    names = {f"lora_unet_{n.replace('.', '_')}": n for n, _ in parts["unet"].named_modules()}
    assert {name.split(".")[1] for name in state} == {"lokr_w1", "lokr_w2", "lokr_w2_a", "lokr_w2_b", "alpha"}
    merge(parts["unet"])
    for room in {name.split(".")[0] for name in state if name.startswith("lora_unet_")}:
        held = {name.split(".")[1]: weight for name, weight in state.items() if name.startswith(room + ".")}
        scale = 1.0 if "lokr_w2" in held else float(held["alpha"]) / held["lokr_w2_b"].shape[0]
        w2 = held["lokr_w2"] if "lokr_w2" in held else held["lokr_w2_a"] @ held["lokr_w2_b"]
        old, new = (one[f"{names[room]}.weight"] for one in (before["unet"], parts["unet"].state_dict()))
        w1 = held["lokr_w1"][:, :, None, None] if w2.ndim == 4 else held["lokr_w1"]
        torch.testing.assert_close(scale * torch.kron(w1, w2).reshape(old.shape), new - old, atol=1e-5, rtol=1e-4)


def test_the_exported_adapter_says_what_it_is(run: RunDirectory, tmp_path: Path) -> None:
    out = export(
        Export(run=str(run.snapshots / "update-000002"), out=str(tmp_path / "rex.safetensors"), format="kohya")
    )
    with safe_open(out, "pt") as weights:
        about = weights.metadata()
        dtypes = {weights.get_slice(name).get_dtype() for name in weights.keys()}  # noqa: SIM118
    assert dtypes == {"F16"}
    wanted = {"ss_output_name": "rex", "ss_base_model_version": "sd_v1_v", "ss_network_dim": "4",
              "ss_network_alpha": "8", "ss_v2": "False", "dreamlab.token": "zwx"}  # fmt: skip
    assert wanted.items() <= about.items()
    assert about["ss_network_module"] == ("lycoris.kohya" if kind_of(run) == "lokr" else "networks.lora")


@pytest.mark.slow
def test_one_merged_file_is_what_it_was(train_run: TrainRun, tmp_path: Path) -> None:
    source = save_tiny(1, tmp_path / "sd1")
    run = train_run("adapter=lora", *QUICK, f"model.source={source}")
    out = export(Export(run=str(run.path), out=str(tmp_path / "merged.safetensors"), dtype="fp32"))
    back = weights_in(load("stable_diffusion", str(out), config=str(source)))
    assert are_identical(back, weights_of(run))
    assert not are_identical(back, weights_in(load("stable_diffusion", str(source))))


def test_whole_weights_have_no_adapter_to_export(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"holds whole weights.*format=safetensors.*adapter=lora"):
        export(Export(run=str(save_tiny(1, tmp_path / "sd1")), out=str(tmp_path / "x"), format="kohya"))


def test_an_adapter_that_does_not_fit_its_base_is_refused(run: RunDirectory, tmp_path: Path) -> None:
    folder, other = Path(shutil.copytree(run.model, tmp_path / "model")), save_tiny(1, tmp_path / "sd1")
    about = json.loads((folder / "snapshot.json").read_text())
    about["base"]["source"] = str(other)
    (folder / "snapshot.json").write_text(json.dumps(about))
    with pytest.raises(UserError, match=r"does not fit its base.*Put the right base into snapshot.json"):
        load("any", str(folder))
    for file in folder.rglob("*.safetensors"):
        file.unlink()
    with pytest.raises(UserError, match=r"no readable snapshot.*is missing"):
        load("any", str(folder))


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (["adapter=lora", "adapter.rank=0"], ("adapter.rank=0", "1 or more")),
        (["adapter=lora", "adapter.alpha=-1"], ("adapter.alpha=-1", "above 0")),
        (["adapter=dora", "adapter.dropout=1"], ("adapter.dropout=1", "up to, not including, 1")),
        (["adapter=lora", "adapter.targets=[atention]"], ("'atention'", "Did you mean 'attention'?")),
        (["adapter=lokr", "adapter.targets=[]"], ("nothing would learn", "adapter.targets=[attention]")),
        (["adapter=lora", "adapter.rank=null"], ("adapter.rank is missing", "adapter=lora")),
        (["adapter.rank=8"], ("adapter.rank=8 is of adapter=lora|dora|lokr", "Choose one, or leave it out")),
        (["adapter=lora", "precision=bf16_pure"], ("stay float32", "precision=bf16")),
        (["adapter=lora", "trainer.strategy=fsdp", "trainer.devices=2"], ("can't share out lora", "Use ddp")),
    ],
)
def test_what_cannot_be_is_refused(settings: Settings, words: list[str], parts: tuple[str, ...]) -> None:
    with pytest.raises(UserError) as refused:
        check(settings(*words))
    assert all(part in str(refused.value) for part in parts), refused.value


def test_layers_that_are_nowhere_are_refused(settings: Settings) -> None:
    config = settings("adapter=lora", "adapter.targets=[convolutions]")
    with pytest.raises(UserError, match=r"no layers of text_encoder.*attention, feed_forward.*leave text_encoder out"):
        assemble.module(config, assemble.base_model(config))
