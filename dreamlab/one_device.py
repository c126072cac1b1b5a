"""Training on one device, where the model stays when it is over: samples are drawn there next.

Lightning would take model and moments to the CPU, which are gigabytes each, and the model would come straight back.
Called by processes.py.
"""

import torch
from pytorch_lightning.strategies import SingleDeviceStrategy


class OneDevice(SingleDeviceStrategy):
    """Lightning's strategy for one device; gradients and moments are let go of at the end."""

    def __init__(self, device: torch.device) -> None:
        super().__init__(torch.device("cuda", 0) if device.type == "cuda" else device)

    def teardown(self) -> None:
        for optimizer in self.optimizers:
            optimizer.zero_grad(set_to_none=True)
            optimizer.state.clear()
        self.precision_plugin.teardown()
        if self.accelerator is not None:
            self.accelerator.teardown()
        self.checkpoint_io.teardown()
