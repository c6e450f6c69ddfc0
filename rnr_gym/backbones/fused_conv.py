"""A convolution and the ReLU after it as one operation, for inference on CPUs."""

from __future__ import annotations

from typing import Any, TypeGuard

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import conv_flop_count, register_flop_formula

# Not part of torch's documented interface, so it may be missing.
HAS_FUSED_CONV = torch.backends.mkldnn.is_available() and hasattr(
    torch.ops.mkldnn, "_convolution_pointwise"
)

if HAS_FUSED_CONV:

    @register_flop_formula(torch.ops.mkldnn._convolution_pointwise)
    def _flops(x_shape: Any, w_shape: Any, *_: Any, out_shape: Any, **__: Any) -> int:
        """Operations of a fused convolution, for torch's counter, which does not know it."""
        flops: int = conv_flop_count(x_shape, w_shape, out_shape)
        return flops


class FusedConv(nn.Module):
    """A convolution, with a ReLU if one follows; without gradients.

    With a few images, calling operations takes as long as computing them, so both run in one. It is
    the operation of oneDNN that `torch.compile` uses, and reads the weight in a layout of its own.
    `(N, C, H, W)` -> `(N, C', H', W')`.

    Args:
        conv: one that `takes` accepts.

    Attributes:
        relu: whether a ReLU follows; False at first.
    """

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        self.conv = conv
        self.relu = False
        self._packed: Tensor | None = None

    @staticmethod
    def takes(module: nn.Module) -> TypeGuard[nn.Conv2d]:
        """Whether a module is a convolution that can run so."""
        if not HAS_FUSED_CONV or type(module) is not nn.Conv2d:
            return False
        # The padding is in pixels and with zeros.
        padding_fits = module.padding_mode == "zeros" and not isinstance(module.padding, str)
        weight = module.weight
        dtype_fits = weight.dtype in (torch.float32, torch.bfloat16)
        return padding_fits and dtype_fits and weight.device.type == "cpu"

    def __getstate__(self) -> dict[str, Any]:
        # Neither copies nor files can hold a tensor in the layout of oneDNN; it is made again.
        return self.__dict__ | {"_packed": None}

    def forward(self, x: Tensor) -> Tensor:
        conv = self.conv
        geometry = (conv.padding, conv.stride, conv.dilation, conv.groups)
        if self._packed is None:
            reorder = torch.ops.mkldnn._reorder_convolution_weight
            self._packed = reorder(conv.weight, *geometry, x.shape)
        activation = "relu" if self.relu else "none"
        run = torch.ops.mkldnn._convolution_pointwise
        y: Tensor = run(x, self._packed, conv.bias, *geometry, activation, [], "")
        return y
