"""HunyuanVideo's VAE decoder with fewer passes over memory, for GPUs."""

import logging
from itertools import product

import torch
import torch.nn.functional as F
from torch import nn

try:
    from diffusers_helper.models import vae_kernels as kernels
except ImportError:  # there is no Triton for this machine
    kernels = None

logger = logging.getLogger(__name__)

_FEW = 64
"""Channels of the last convolution below which a GPU waits for launches, not for memory."""

Moments = tuple[torch.Tensor, torch.Tensor]
"""Mean and variance of channels, shape [B, C] each."""

# What two neighbours in a picture doubled by nearest see of the small one through a kernel of three
# taps: of either, two pixels, one of them through two taps.
_DOUBLED = torch.tensor([[[1, 0, 0], [0, 1, 1]], [[1, 1, 0], [0, 0, 1]]])


def fuse_decoder(vae: nn.Module) -> None:
    """Give a VAE that will run on a GPU a `FusedDecoder`, if that is faster and Triton is there."""
    if vae.decoder.conv_norm_out.num_channels < _FEW:
        return
    if kernels is None:
        logger.warning("There is no Triton here: the VAE decodes more slowly.")
    else:
        vae.decoder = FusedDecoder(vae.decoder)


def is_fused(vae: nn.Module) -> bool:
    """Whether `fuse_decoder` did."""
    return isinstance(getattr(vae, "decoder", None), FusedDecoder)


class FusedDecoder(nn.Module):
    """diffusers' `HunyuanVideoDecoder3D`, its very modules and tensors, computed in another way.

    Channels come last, as tensor cores want them. Between two convolutions there are two passes:
    one adds bias and residual and measures mean and variance, one does norm, activation and
    padding. A nearest upsampling and the convolution after it are one convolution of the small
    picture, which has 8 or 12 different places under its kernel instead of 27. Attention, causal in
    frames, runs frame by frame without a mask.

    Args:
        decoder: of an `AutoencoderKLHunyuanVideo`, with its weights; its modules become this one's,
            under the same names.
    """

    def __init__(self, decoder: nn.Module) -> None:
        super().__init__()
        for name, module in decoder.named_children():
            self.add_module(name, module)
        for block in self.up_blocks:
            for upsampler in block.upsamplers or ():
                weight = doubled_weight(upsampler.conv.conv.weight, _grows(upsampler))
                upsampler.register_buffer("doubled", weight, persistent=False)

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        """Decode latents [B, 16, T, H, W] to [B, 3, 4T - 3, 8H, 8W]."""
        x = _convolve(kernels.pad(_last(z).contiguous(), 2), self.conv_in)
        x, moments = kernels.add_and_measure(x, self.conv_in.conv.bias)
        first, *rest = self.mid_block.resnets
        x, moments = _resnet(x, moments, first)
        for attention, resnet in zip(self.mid_block.attentions, rest, strict=True):
            if attention is not None:
                x = _attend(x, attention)
                x, moments = kernels.add_and_measure(x)
            x, moments = _resnet(x, moments, resnet)
        for block in self.up_blocks:
            for resnet in block.resnets:
                x, moments = _resnet(x, moments, resnet)
            for upsampler in block.upsamplers or ():
                x, moments = kernels.add_and_measure(_upsample(x, upsampler))
        x = kernels.activate_and_pad(x, *_affine(moments, self.conv_norm_out))
        x = _convolve(x, self.conv_out) + self.conv_out.conv.bias
        return _first(x)


def doubled_weight(weight: torch.Tensor, grows: bool) -> torch.Tensor:
    """A causal convolution after nearest upsampling, as one of the picture before it.

    Args:
        weight: shape [out, in, 3, 3, 3].
        grows: whether frames are doubled too, beside height and width.

    Returns:
        Shape [places * out, in, 2 or 3, 2, 2]; places are (before or after, if `grows`; up or
        down; left or right), the last running fastest.
    """
    space = _DOUBLED.to(weight.device, torch.float32)
    # The first frame stays single, so that pairs of frames begin at odd places.
    time = space.flip(0) if grows else torch.eye(3, device=weight.device)[None]
    places = torch.einsum("oizyx,uaz,vby,wcx->uvwoiabc", weight.float(), time, space, space)
    places = places.flatten(0, 3).to(weight.dtype)
    return places.contiguous(memory_format=torch.channels_last_3d)


def _first(x: torch.Tensor) -> torch.Tensor:
    return x.permute(0, 4, 1, 2, 3)


def _last(x: torch.Tensor) -> torch.Tensor:
    return x.permute(0, 2, 3, 4, 1)


def _convolve(x: torch.Tensor, causal: nn.Module) -> torch.Tensor:
    """Without padding and bias."""
    weight = causal.conv.weight
    if weight.shape[-1] == 1:
        return F.linear(x, weight.flatten(1))
    return _last(F.conv3d(_first(x), weight)).contiguous()


def _affine(
    moments: Moments,
    norm: nn.GroupNorm,
    bias: torch.Tensor | float = 0.0,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Scale and shift of the channels, shape [B, C], that are group norm after a bias.

    Args:
        moments: of the channels, the bias included.
    """
    mean, variance = (m.unflatten(1, (norm.num_groups, -1)) for m in moments)
    # Of a group: the mean variance of its channels and the variance of their means.
    spread = variance.mean(2, keepdim=True) + mean.var(2, correction=0, keepdim=True)
    scale = torch.rsqrt(spread + norm.eps).expand_as(mean).flatten(1) * norm.weight
    centre = mean.mean(2, keepdim=True).expand_as(mean).flatten(1)
    return scale, norm.bias - (centre - bias) * scale


def _resnet(x: torch.Tensor, moments: Moments, resnet: nn.Module) -> tuple[torch.Tensor, Moments]:
    y = _convolve(kernels.activate_and_pad(x, *_affine(moments, resnet.norm1)), resnet.conv1)
    bias = resnet.conv1.conv.bias
    _, moments = kernels.add_and_measure(y, bias, keep=False)
    y = _convolve(kernels.activate_and_pad(y, *_affine(moments, resnet.norm2, bias)), resnet.conv2)
    bias = resnet.conv2.conv.bias
    if resnet.conv_shortcut is not None:
        x = _convolve(x, resnet.conv_shortcut)
        bias = bias + resnet.conv_shortcut.conv.bias
    return kernels.add_and_measure(y, bias, x)


def _grows(upsampler: nn.Module) -> bool:
    """Whether it doubles frames too, beside height and width."""
    return upsampler.upsample_factor[0] == 2


def _upsample(x: torch.Tensor, upsampler: nn.Module) -> torch.Tensor:
    grows, bias = _grows(upsampler), upsampler.conv.conv.bias
    b, t, h, w, _ = x.shape
    small = _last(F.conv3d(_first(kernels.pad(x, 1 if grows else 2)), upsampler.doubled))
    small = small.unflatten(-1, (-1, 2, 2, len(bias)))
    big = x.new_empty(b, 2 * t - 1 if grows else t, 2 * h, 2 * w, len(bias))
    for late, down, right in product(range(small.shape[4]), range(2), range(2)):
        part = small[:, :, down : down + h, right : right + w, late, down, right]
        place = big[:, :, down::2, right::2]
        if grows:  # the first frame stays single: it has nothing before it
            part, place = part[:, 1 - late :], place[:, 1 - late :: 2]
        torch.add(part, bias, out=place)
    return big


def _attend(x: torch.Tensor, attention: nn.Module) -> torch.Tensor:
    """Every frame looks at itself and those before it."""
    tokens = x.flatten(1, 3)
    normed = attention.group_norm(tokens.transpose(1, 2)).transpose(1, 2)
    q, k, v = (
        layer(normed).unflatten(-1, (attention.heads, -1)).transpose(1, 2)
        for layer in (attention.to_q, attention.to_k, attention.to_v)
    )
    size = tokens.shape[1] // x.shape[1]
    y = [
        F.scaled_dot_product_attention(q[:, :, end - size : end], k[:, :, :end], v[:, :, :end])
        for end in range(size, tokens.shape[1] + 1, size)
    ]
    y = torch.cat(y, dim=2).transpose(1, 2).flatten(2)
    return (attention.to_out[0](y) + tokens).view_as(x)
