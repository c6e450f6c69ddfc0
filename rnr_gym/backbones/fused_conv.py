"""A convolution and the activation after it as one operation, for inference on CPUs."""

from __future__ import annotations

from typing import Any, NamedTuple, TypeGuard

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


class Activation(NamedTuple):
    """What runs on the output of a convolution.

    Attributes:
        name: as oneDNN's operation calls it.
        bounds: of `"hardtanh"`, the lowest and the highest value.
    """

    name: str = "none"
    bounds: tuple[float, ...] = ()


RELU = Activation("relu")


class FusedConv(nn.Module):
    """A convolution, with an activation if one follows; without gradients.

    With a few images, calling operations takes as long as computing them, so both run in one. It is
    the operation of oneDNN that `torch.compile` uses, and reads the weight in a layout of its own.
    `(N, C, H, W)` -> `(N, C', H', W')`.

    Args:
        conv: one that `takes` accepts.

    Attributes:
        activation: what follows; nothing at first.
    """

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        self.conv = conv
        self.activation = Activation()
        self._packed: Tensor | None = None

    @staticmethod
    def takes(module: nn.Module | None) -> TypeGuard[nn.Conv2d]:
        """Whether a module is a convolution that can run so."""
        if not HAS_FUSED_CONV or type(module) is not nn.Conv2d:
            return False
        # Hooks may do anything, such as compute the weight.
        if module._forward_pre_hooks or module._forward_hooks:
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
        name, bounds = self.activation
        run = torch.ops.mkldnn._convolution_pointwise
        y: Tensor = run(x, self._packed, conv.bias, *geometry, name, bounds, "")
        return y
