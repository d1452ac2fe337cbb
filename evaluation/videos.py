"""Videos of an evaluation as files."""

from pathlib import Path

import av
import numpy as np
import torch
from av.video.reformatter import ColorRange, Colorspace

from diffusers_helper.sections import FPS
from diffusers_helper.video import save_bcthw_as_mp4

_CRF = 20


def write_video(video: torch.Tensor, path: Path) -> None:
    """Write an MP4.

    Args:
        video: uint8, shape [3, frames, height, width].
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    save_bcthw_as_mp4(video[None].float() / 127.5 - 1, path, fps=FPS, crf=_CRF)


def read_video(path: Path) -> torch.Tensor:
    """All frames of an MP4 of ours.

    Returns:
        uint8, shape [3, frames, height, width].
    """
    with av.open(path) as container:
        frames = [
            frame.reformat(
                format="rgb24",
                src_colorspace=Colorspace.ITU709,
                src_color_range=ColorRange.MPEG,
                dst_color_range=ColorRange.JPEG,
            ).to_ndarray()
            for frame in container.decode(video=0)
        ]
    return torch.from_numpy(np.stack(frames)).permute(3, 0, 1, 2).contiguous()
