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
        rounded = _rounded(layer.weight.to(device))
        codes, scales = (x.to(layer.weight.device) for x in rounded)
        self.weight = nn.Parameter(codes, requires_grad=False)
        self.scale = nn.Parameter(scales, requires_grad=False)
        self.bias = nn.Parameter(layer.bias.detach(), requires_grad=False)

    def forward(self, x: "torch.Tensor | kernels.Rows") -> torch.Tensor:
        """The product, in the dtype of the bias; of `Rows` it is a matrix."""
        if isinstance(x, tuple):
            codes, scales = x
        elif x.is_cuda:
            codes, scales = kernels.to_float8(x.contiguous())
        else:
            codes, scales = _rounded(x.flatten(0, -2))
        y = torch._scaled_mm(
            codes,
            self.weight.t(),
            scale_a=scales,
            scale_b=self.scale.t(),
            bias=self.bias,
            out_dtype=self.bias.dtype,
            use_fast_accum=True,
        )
        return y if isinstance(x, tuple) else y.view(*x.shape[:-1], -1)


def _rounded(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Codes and scales of a matrix's rows."""
    x = x.float()
    scales = x.abs().amax(dim=1, keepdim=True).clamp(min=1e-12) / _LARGEST
    return (x / scales).to(torch.float8_e4m3fn), scales


def why_not_float8(device: torch.device, transformer: nn.Module | None = None) -> str | None:
    """Why a transformer, by default any, cannot run in float8 on a device, in a few words; None if
    it can."""
    if device.type != "cuda" or torch.cuda.get_device_capability(device) < (8, 9):
        return "it needs an NVIDIA GPU of compute capability 8.9 or more"
    if kernels is None:
        return "it needs Triton, which is not installed"
    modules = () if transformer is None else transformer.modules()
    if any(hasattr(module, "base_layer") for module in modules):  # PEFT wraps those
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
