from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import torch

from diffusers_helper.models import Models, load_models
from training.tiny_world.model import MINIATURE, build, save

# On tensors this small a second thread gains little, and on a busy machine the two wait in turns.
torch.set_num_threads(1)


@pytest.fixture(scope="session")
def tiny() -> Models:
    """The model that is shipped."""
    return load_models("tiny", "cpu")


MINIATURE_SETTINGS = {"gs": 6.0, "total_second_length": 1.5}
MINIATURE_NOTICE = "This one is for tests."


@pytest.fixture(scope="session")
def miniature_weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A smaller one of random weights, where time matters and the picture does not."""
    folder = tmp_path_factory.mktemp("miniature")
    latent_rgb = torch.linspace(-0.2, 0.3, 17 * 3).view(17, 3)
    save(build(MINIATURE, seed=0), folder, 128, MINIATURE_SETTINGS, MINIATURE_NOTICE, latent_rgb)
    return folder


@pytest.fixture(scope="session")
def miniature(miniature_weights: Path) -> Models:
    return load_models("tiny", "cpu", miniature_weights)


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
