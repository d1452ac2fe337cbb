from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import torch

from diffusers_helper.models import Models, load_models

# On tensors this small a second thread gains little, and on a busy machine the two wait in turns.
torch.set_num_threads(1)


@pytest.fixture(scope="session")
def tiny() -> Models:
    return load_models("tiny", "cpu")


@dataclass(frozen=True)
class Decoded:
    """An MP4 as a player would get it."""

    yuv: np.ndarray
    """Shape [frames, 3/2 height, width]: luma above both chroma planes."""
    times: list[Fraction]
    fps: Fraction
    size: tuple[int, int]
    colours: tuple[int, int, int, int]
    """Matrix, range, primaries and transfer curve, as H.264 numbers them."""
    comment: str | None

    def planes(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Y, U and V, shape [frames, height, width]."""
        height, width = self.size
        y = self.yuv[:, :height]
        u, v = self.yuv[:, height:].reshape(len(y), 2, height // 2, width // 2).swapaxes(0, 1)
        return y, u, v


def read_video(path: Path) -> Decoded:
    with av.open(path) as container:
        stream = container.streams.video[0]
        frames = list(container.decode(stream))
        context = stream.codec_context
        return Decoded(
            yuv=np.stack([frame.to_ndarray(format="yuv420p") for frame in frames]),
            times=[frame.pts * frame.time_base for frame in frames],
            fps=stream.average_rate,
            size=(stream.height, stream.width),
            colours=(
                context.colorspace,
                context.color_range,
                context.color_primaries,
                context.color_trc,
            ),
            comment=container.metadata.get("comment"),
        )
