"""Attention that doesn't divide by 1: diffusers' numbers to the bit, and left alone where it does more."""

import torch
from diffusers.models.attention_processor import Attention, AttnProcessor2_0
from test_norms import same_after, vae
from torch import nn

from dreamlab.undivided import Undivided, divide_less


def test_values_and_gradients_are_those_of_diffusers_to_the_bit() -> None:
    other = same_after(divide_less)
    kinds = [type(module) for module in other.modules() if isinstance(module, Attention)]
    assert len(kinds) == 8 and set(kinds) == {Undivided}  # of tokens and of text, in four transformers


def test_a_mask_hides_what_it_hides_in_diffusers() -> None:
    torch.manual_seed(1)
    attn, tokens = Attention(8, heads=2, dim_head=4), torch.randn(2, 5, 8)
    mask = torch.zeros(2, 1, 5)
    mask[:, :, 3:] = -10000.0
    with torch.no_grad():
        told, unmasked = attn(tokens, attention_mask=mask), attn(tokens)
        divide_less(nn.ModuleList([attn]))
        assert torch.equal(attn(tokens, attention_mask=mask), told) and torch.equal(attn(tokens), unmasked)
    assert not torch.equal(told, unmasked)


def test_attention_that_does_more_stays_what_it_is() -> None:
    scaled, image = Attention(8, heads=2, dim_head=4, rescale_output_factor=2.0), vae()
    divide_less(scaled)
    divide_less(image)  # norms its pixels and adds them in the end
    found = [module for module in (scaled, *image.modules()) if isinstance(module, Attention)]
    assert len(found) == 3 and {type(module) for module in found} == {Attention}


def test_another_processor_is_asked() -> None:
    torch.manual_seed(1)
    attn, tokens = Attention(8, heads=2, dim_head=4), torch.randn(2, 5, 8)
    divide_less(attn)
    assert type(attn) is Undivided and type(attn.processor) is AttnProcessor2_0
    with torch.no_grad():
        plain = attn(tokens)
        attn.set_processor(lambda attn, hidden_states, encoder_hidden_states, attention_mask: hidden_states + 1)
        assert torch.equal(attn(tokens), tokens + 1) and not torch.equal(plain, tokens + 1)
