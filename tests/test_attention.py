"""xformers: refused in a sentence where it can't work, the same numbers as SDPA where it can."""

from importlib.util import find_spec

import pytest
import torch
from conftest import Settings

from dreamlab import assemble
from dreamlab.attention import check_attention
from dreamlab.checks import check
from dreamlab.errors import UserError


def test_without_a_gpu_it_is_refused_before_weights_load(settings: Settings) -> None:
    with pytest.raises(UserError, match=r"needs a GPU.*model\.attention=sdpa"):
        check(settings("model.attention=xformers", "device=cpu"))


@pytest.mark.skipif(find_spec("xformers") is not None, reason="xformers is installed")
def test_without_the_package_its_extra_is_named() -> None:
    with pytest.raises(UserError, match=r"dreamlab\[xformers\].*model.attention=sdpa"):
        check_attention("xformers", torch.device("cuda"))


def test_an_unknown_one_is_refused(settings: Settings) -> None:
    with pytest.raises(UserError, match="Did you mean 'xformers'"):
        check(settings("model.attention=xformer"))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available() or find_spec("xformers") is None, reason="needs a GPU and xformers")
def test_it_predicts_what_sdpa_predicts_and_leaves_random_states_alone(settings: Settings) -> None:
    predictions, state = [], torch.cuda.get_rng_state()
    for attention in ("sdpa", "xformers"):
        model = assemble.base_model(settings("device=cuda", f"model.attention={attention}"))
        noisy = torch.linspace(-1, 1, 2 * 8 * 16 * 16, device="cuda").reshape(2, 8, 16, 16)
        ids = model.tokenize(["a photo of a dog", "a teapot"]).cuda()
        with torch.no_grad(), torch.autocast("cuda", torch.float16):
            predictions.append(model.predict(noisy, torch.tensor([5, 800], device="cuda"), model.encode_text(ids)))
    processors = {type(processor).__name__ for processor in model.parts()["unet"].attn_processors.values()}
    assert processors == {"XFormersAttnProcessor"}
    torch.testing.assert_close(predictions[1], predictions[0], atol=2e-2, rtol=2e-2)
    assert torch.equal(state, torch.cuda.get_rng_state())
