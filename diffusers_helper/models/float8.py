"""The blocks' matrix products in float8: weights rounded once, activations as they come."""

import torch
from torch import nn

try:
    from diffusers_helper.models import kernels
except ImportError:  # there is no Triton for this machine
    kernels = None

_LARGEST = torch.finfo(torch.float8_e4m3fn).max


class Float8Linear(nn.Module):
    """A linear layer in float8 with a scale for each row of its weight and of its input.

    Args:
        layer: a linear layer with a bias; it is read once.
        device: where it is rounded; the result rests where the layer did.
    """

    def __init__(self, layer: nn.Linear, device: torch.device | None = None) -> None:
        super().__init__()
        weight = layer.weight.to(device).float()
        scale = weight.abs().amax(dim=1, keepdim=True).clamp(min=1e-12) / _LARGEST
        codes = (weight / scale).to(torch.float8_e4m3fn)
        codes, scale = (x.to(layer.weight.device) for x in (codes, scale))
        self.weight = nn.Parameter(codes, requires_grad=False)
        self.scale = nn.Parameter(scale, requires_grad=False)
        self.bias = nn.Parameter(layer.bias.detach(), requires_grad=False)

    def forward(self, x: "torch.Tensor | kernels.Rows") -> torch.Tensor:
        """The product, in the dtype of the bias; of `Rows` it is a matrix."""
        rows = x if isinstance(x, tuple) else kernels.to_float8(x.contiguous())
        y = torch._scaled_mm(
            rows.codes,
            self.weight.t(),
            scale_a=rows.scales,
            scale_b=self.scale.t(),
            bias=self.bias,
            out_dtype=self.bias.dtype,
            use_fast_accum=True,
        )
        return y if isinstance(x, tuple) else y.view(*x.shape[:-1], -1)


def why_not_float8(transformer: nn.Module, device: torch.device) -> str | None:
    """Why a transformer cannot run in float8 on a device, in a few words; None if it can."""
    if device.type != "cuda" or torch.cuda.get_device_capability(device) < (8, 9):
        return "it needs an NVIDIA GPU of compute capability 8.9 or more"
    if kernels is None:
        return "it needs Triton, which is not installed"
    if any(hasattr(module, "base_layer") for module in transformer.modules()):  # PEFT wraps those
        return "it does not go with LoRA"
    return None


def to_float8(transformer: nn.Module, device: torch.device | None = None) -> None:
    """Replace the linear layers of a transformer's blocks; those of modulations stay.

    Args:
        transformer: changed in place.
        device: where weights are rounded, one by one; None is where they are.
    """
    for block in (*transformer.transformer_blocks, *transformer.single_transformer_blocks):
        for name, layer in list(block.named_modules()):
            if type(layer) is nn.Linear and not name.startswith("norm"):
                parent, _, child = name.rpartition(".")
                setattr(block.get_submodule(parent), child, Float8Linear(layer, device))
