"""What leaves a GPU arrives as it was, in the order of its shape, and networks are back in their places."""

import pytest
import torch
from torch import nn

from dreamlab.off_gpu import PIECE, all_off_gpu, off_gpu

DEVICES = [
    "cpu",
    pytest.param("cuda", marks=[pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")]),
]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("shape", [(), (0, 3), (5,), (2 * PIECE // 4 + 3,), (8, 6, 3, 3)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int64])
def test_numbers_arrive_in_the_order_of_the_shape(device: str, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    there = torch.randint(-99, 99, shape, device=device).to(dtype)
    if there.ndim == 4:
        there = there.to(memory_format=torch.channels_last)
    arrived = off_gpu(there)
    assert arrived.is_contiguous() and arrived.device.type == "cpu"
    assert arrived.dtype == dtype and torch.equal(arrived, there.cpu())


@pytest.mark.parametrize("device", DEVICES)
def test_networks_go_back_where_they_were(device: str) -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).to(device).to(memory_format=torch.channels_last)
    own = [one.data_ptr() for one in network.state_dict().values()]
    with pytest.raises(OSError), all_off_gpu([network]):
        assert all(one.device.type == "cpu" and one.is_contiguous() for one in network.state_dict().values())
        raise OSError("the disk is full")
    assert [one.data_ptr() for one in network.state_dict().values()] == own
    assert network[0].weight.is_contiguous(memory_format=torch.channels_last)
