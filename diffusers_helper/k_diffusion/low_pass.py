"""Low-pass of what a pass is shown beside the noise, while noise is high (docs/low_pass.md)."""

from typing import Any

import torch
import torch.nn.functional as F

FRAMES = {"both": slice(None), "start": slice(0, 1), "last": slice(1, None)}
"""Which of `clean_latents` to filter: the start frame is the first of them."""


def low_pass(latents: torch.Tensor, factor: float) -> torch.Tensor:
    """Every frame scaled down and up again, bilinearly and without aliasing.

    The filter of "Enhancing Motion Dynamics of Image-to-Video Models via Adaptive Low-Pass
    Guidance" (ALG, arXiv 2506.08456), in float32.

    Args:
        latents: shape [batch, channels, frames, height, width].
        factor: of height and width on the way, in (0, 1]; 1 returns `latents`.

    Returns:
        Latents like the given ones.
    """
    if factor == 1.0 or not latents.numel():
        return latents
    sides = latents.shape[-2:]
    planes = latents.float().flatten(0, 1)
    small = [max(round(side * factor), 1) for side in sides]
    planes = F.interpolate(planes, small, mode="bilinear", antialias=True)
    planes = F.interpolate(planes, sides, mode="bilinear")
    return planes.unflatten(0, latents.shape[:2]).to(latents.dtype)


def low_passed(conditions: dict[str, Any], factor: float, frames: str) -> dict[str, torch.Tensor]:
    """What takes the place of a pass's latents while noise is high.

    Args:
        conditions: arguments of the transformer, see its forward.
        factor: of the start frame and the last frame before the section, see `low_pass`.
        frames: which of these two, of FRAMES.

    Returns:
        The arguments that differ; none at factor 1.
    """
    clean = conditions.get("clean_latents")
    if factor == 1.0 or clean is None:
        return {}
    soft = clean.clone()
    soft[:, :, FRAMES[frames]] = low_pass(clean[:, :, FRAMES[frames]], factor)
    return {"clean_latents": soft}


def gated(
    soft: torch.Tensor, sharp: torch.Tensor, sigma: torch.Tensor, gate: float
) -> torch.Tensor:
    """`soft` while the mean of `sigma` is `gate` or more, else `sharp`; without a wait for the
    device.

    Args:
        soft, sharp: of one shape and dtype; `soft` and `sigma` on one device.
        sigma: noise levels, shape [batch].
        gate: in [0, 1].
    """
    return torch.where(sigma.mean() >= gate, soft, sharp.to(soft))
