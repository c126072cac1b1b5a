"""One process, or several with a device each that share every update (Lightning's DDP and FSDP).

Of several, the first does everything that one process would: class images, samples, files. Lightning starts the others
by the same command when training begins; each finds the run and the caches that the first has made, and joins in.
"""

import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch


def local_rank() -> int:
    """Which of the processes this is, 0 for the first; Lightning and torchrun tell it by the environment."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def is_shared_out(devices: int, name: str) -> bool:
    """Whether each process holds a share of the weights only."""
    return devices > 1 and name == "fsdp"


def environment() -> Any:
    """Lightning's word on who starts the processes: torchrun, or itself; no cluster, which it would ask by default."""
    from pytorch_lightning.plugins.environments import LightningEnvironment, TorchElasticEnvironment

    return TorchElasticEnvironment() if TorchElasticEnvironment.detect() else LightningEnvironment()


def strategy(device: "torch.device", devices: int, name: str, may_skip_weights: bool) -> Any:
    """Lightning's strategy: one device, `ddp` or `fsdp`; `may_skip_weights`: some weights stop learning on the way."""
    if devices == 1:
        from dreamlab.one_device import OneDevice

        return OneDevice(device)
    from pytorch_lightning.strategies import DDPStrategy, FSDPStrategy

    if name == "ddp":
        return DDPStrategy(find_unused_parameters=may_skip_weights)
    from diffusers.models.resnet import ResnetBlock2D
    from transformers.models.clip.modeling_clip import CLIPEncoderLayer

    from dreamlab.models.parts import BLOCKS  # here: models asks which process this is

    blocks = {*BLOCKS, ResnetBlock2D, CLIPEncoderLayer}
    return FSDPStrategy(auto_wrap_policy=blocks, state_dict_type="full")
