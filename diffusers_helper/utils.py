"""Small tools on frames, under the names that FramePack's scripts import."""

import datetime
import secrets

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from diffusers_helper.video import save_bcthw_as_mp4, soft_append_bcthw

__all__ = [
    "crop_or_pad_yield_mask",
    "generate_timestamp",
    "resize_and_center_crop",
    "save_bcthw_as_mp4",
    "soft_append_bcthw",
]


def crop_or_pad_yield_mask(x: torch.Tensor, length: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Cut or zero-pad tokens to `length`.

    Args:
        x: shape [batch, tokens, dim].

    Returns:
        Tokens [batch, length, dim] and their mask [batch, length], True for what was in `x`.
    """
    tokens = min(x.shape[1], length)
    mask = torch.zeros(x.shape[0], length, dtype=torch.bool, device=x.device)
    mask[:, :tokens] = True
    return F.pad(x[:, :length], (0, 0, 0, length - tokens)), mask


def resize_and_center_crop(image: np.ndarray, target_width: int, target_height: int) -> np.ndarray:
    """Scale (Lanczos) to cover the target, then cut its centre out.

    Args:
        image: uint8, shape [height, width, 3].

    Returns:
        uint8, shape [target_height, target_width, 3].
    """
    height, width = image.shape[:2]
    if (height, width) == (target_height, target_width):
        return image
    scale = max(target_width / width, target_height / height)
    size = (round(width * scale), round(height * scale))
    scaled = Image.fromarray(image).resize(size, Image.Resampling.LANCZOS)
    left = (size[0] - target_width) // 2
    top = (size[1] - target_height) // 2
    box = (left, top, left + target_width, top + target_height)
    return np.asarray(scaled.crop(box))


def generate_timestamp() -> str:
    """A name for a job: local time to the millisecond and four random digits, sortable."""
    now = datetime.datetime.now()
    return f"{now:%y%m%d_%H%M%S}_{now.microsecond // 1000:03d}_{secrets.randbelow(10_000):04d}"
