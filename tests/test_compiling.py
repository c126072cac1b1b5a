"""Compiled networks whose joined images keep their channels last: the same numbers, and none is joined otherwise."""

from typing import Any

import torch
from test_norms import unet
from torch import Tensor, fx

from dreamlab.compiling import joining_rows


def joins_rows(call: Any, *images: Tensor) -> bool:
    """Whether the graph that is compiled joins the images as rows, and turns them back; its numbers are the same."""
    found: list[bool] = []

    def look(graph: fx.GraphModule, inputs: list[Tensor]) -> Any:
        made = joining_rows(graph, inputs)
        for node in graph.graph.find_nodes(op="call_function", target=torch.cat):
            found.append(node.args[1:] == (3,) and [user.target for user in node.users] == ["permute"])
        return made

    assert torch.equal(torch.compile(call, backend=look)(*images), call(*images))
    (is_joined,) = found
    return is_joined


def test_images_are_joined_at_the_ends_of_their_rows() -> None:
    first, second = torch.randn(2, 3, 4, 5), torch.randn(2, 6, 4, 5)
    laid = [image.to(memory_format=torch.channels_last) for image in (first, second)]
    assert joins_rows(lambda x, y: torch.cat([x, y], dim=1) * 2, *laid)
    assert joins_rows(lambda x, y: torch.cat([x, y], 1) * 2, *laid)


def test_whatever_else_is_joined_is_joined_as_before() -> None:
    first, second = torch.randn(2, 3, 4, 5), torch.randn(2, 3, 4, 5)
    laid = [image.to(memory_format=torch.channels_last) for image in (first, second)]
    assert not joins_rows(lambda x, y: torch.cat([x, y], dim=1) * 2, first, second)
    assert not joins_rows(lambda x, y: torch.cat([x, y], dim=2) * 2, *laid)
    assert not joins_rows(lambda x, y: torch.cat([x, y]) * 2, *laid)


def test_a_compiled_network_predicts_the_same() -> None:
    torch.compiler.reset()
    network = unet().to(memory_format=torch.channels_last).eval()
    noise, text, times = torch.randn(2, 4, 8, 8), torch.randn(2, 3, 8), torch.tensor([10, 900])
    with torch.no_grad():
        plain = network(noise, times, text).sample
        compiled = torch.compile(network.forward, backend=joining_rows)
        assert torch.allclose(compiled(noise, times, text).sample, plain, atol=5e-6)
