"""Which weights learn: exactly those that adapter.train names move, and nothing else is in the optimizer."""

import re

import pytest
import torch
from conftest import Settings, TrainRun, are_identical, weights_in, weights_of
from test_update import prepared
from tiny_models import save_tiny

from dreamlab import feed
from dreamlab.adapters import SUBSETS, adapt
from dreamlab.checks import check
from dreamlab.errors import UserError
from dreamlab.models import load
from dreamlab.resume import Start

CASES = {  # what is named -> the names of what moves, told apart from the subsets' own patterns
    "unet.attention": r"^unet\..*transformer_blocks\.0\.attn",
    "unet.self_attention": r"^unet\..*attn1",
    "unet.cross_attention": r"^unet\..*attn2",
    "unet.cross_attention_kv": r"^unet\..*attn2\.to_(k|v)\.weight$",
    "unet.feed_forward": r"^unet\..*\.ff\.net\.",
    "unet.resnets": r"^unet\..*resnets",
    "unet.down": r"^unet\.down",
    "unet.mid": r"^unet\.mid",
    "unet.up": r"^unet\.up",
    "text_encoder.embeddings": r"^text_encoder\..*token_embedding",
    "text_encoder.attention": r"^text_encoder\..*self_attn",
    "text_encoder.mlp": r"^text_encoder\..*mlp",
    "unet.cross_attention_kv,unet.mid,text_encoder": r"^unet\.mid|^unet\..*attn2\.to_(k|v)\.|^text_encoder\.",
}


def test_every_subset_has_a_case() -> None:
    ours = {part: SUBSETS[part] for part in ("unet", "text_encoder")}  # other families': test_matrix.py
    assert {f"{part}.{subset}" for part, subsets in ours.items() for subset in subsets} <= set(CASES)


@pytest.fixture(scope="module", params=["pocket", "sd1", "sd2"])
def source(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> str:
    if request.param == "pocket":
        return "pocket"
    return str(save_tiny(int(request.param[-1]), tmp_path_factory.mktemp("model") / request.param))


@pytest.mark.parametrize("named", CASES)
def test_the_named_weights_learn_in_float32_and_no_others(source: str, named: str) -> None:
    model = load("stable_diffusion", source)
    trained = adapt(model.parts(), named.split(","), gradient_checkpointing=False)
    learning = {
        f"{part}.{key}" for part, net in model.parts().items() for key, w in net.named_parameters() if w.requires_grad
    }
    assert learning == {name for name in weights_in(model) if re.search(CASES[named], name)} and learning
    assert set(trained) == {name.split(".")[0] for name in learning}
    assert {weight.dtype for weight in trained.parameters()} == {torch.float32}


@pytest.mark.slow
@pytest.mark.parametrize("named", ["unet.cross_attention_kv", "unet.attention,text_encoder.mlp"])
def test_exactly_the_named_weights_move(train_run: TrainRun, source: str, named: str) -> None:
    words = (f"adapter.train=[{named}]", f"model.source={source}", "lr=1e-3", "optimizer.weight_decay=0", "prompts=[]")
    run = train_run(*words, "steps=3", "name=once", "save_every=1")
    before, after = weights_in(load("stable_diffusion", source)), weights_of(run)
    wanted = {name for name in after if any(_is_in(one, name) for one in named.split(","))}
    moved = {name for name, weight in after.items() if not torch.equal(weight, before[name])}
    assert moved == wanted
    state = torch.load(run.checkpoint, weights_only=True)
    assert {name.removeprefix("trained.") for name in state["state_dict"]} == wanted, "nothing frozen is kept"
    assert len(state["optimizer_states"][0]["state"]) == len(wanted)

    short = train_run(*words, "steps=2", "name=short")
    longer = train_run(*words, "steps=3", "name=longer", f"resume={short.path}")
    assert are_identical(weights_of(longer), after)


def _is_in(named: str, name: str) -> bool:
    return re.search(CASES[named], name) is not None


@pytest.mark.parametrize("named", ["text_encoder.attention", "unet.cross_attention,text_encoder.embeddings"])
def test_a_text_encoder_of_which_a_subset_learns_is_read_anew_every_time(settings: Settings, named: str) -> None:
    config = settings(f"adapter.train=[{named}]", "prior_weight=0")
    model, sets, module, _ = prepared(config)
    batch = next(iter(feed.batches(config, sets, Start(""), module)))
    first = module.loss(batch).total
    with torch.no_grad():
        for weight in model.parts()["text_encoder"].parameters():
            if weight.requires_grad:
                weight.mul_(1.5)
    assert module.loss(batch).total != first


@pytest.mark.parametrize("named", ["unet.attention", "text_encoder.attention", "unet.up,text_encoder.mlp"])
def test_recomputed_activations_reach_a_subset_behind_frozen_layers(settings: Settings, named: str) -> None:
    gradients = []
    for recompute in ("false", "true"):
        config = settings(f"adapter.train=[{named}]", f"model.gradient_checkpointing={recompute}", "prior_weight=0")
        _, sets, module, _ = prepared(config)
        module.loss(next(iter(feed.batches(config, sets, Start(""), module)))).total.backward()
        gradients.append({n: w.grad for n, w in module.trained.named_parameters() if w.requires_grad})
    assert gradients[0] and all(gradient is not None for gradient in gradients[1].values())
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize(
    ("named", "parts"),
    [
        ("unet.attn", ("'unet.attn'", "Did you mean 'unet.attention'?", "unet.cross_attention_kv")),
        ("text_encoder.cross_attention", ("text_encoder.cross_attention", "Did you mean 'unet.cross_attention'?")),
        ("vae", ("'vae'", "no trainable part", "text_encoder")),
        ("unet,unet.attention", ("both 'unet' and 'unet.attention'", "Leave one of them out")),
        ("", ("nothing would learn", "adapter.train=[unet,text_encoder]")),
    ],
)
def test_what_cannot_learn_is_refused(settings: Settings, named: str, parts: tuple[str, ...]) -> None:
    with pytest.raises(UserError) as refused:
        check(settings(f"adapter.train=[{named}]"))
    assert all(part in str(refused.value) for part in parts), refused.value
