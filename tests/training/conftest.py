import pytest
import torch

from training.tiny_world.captions import caption
from training.tiny_world.config import MINIATURE_TRAINING
from training.tiny_world.data import Clips
from training.tiny_world.model import build
from training.tiny_world.world import sample_scene


@pytest.fixture(scope="session")
def untrained() -> dict:
    """Components, not to be changed."""
    captions = [caption(sample_scene(i), i) for i in range(300)]
    return build(MINIATURE_TRAINING.model, 0, captions)


@pytest.fixture(scope="session")
def clips(untrained: dict, tmp_path_factory: pytest.TempPathFactory) -> Clips:
    folder = tmp_path_factory.mktemp("clips")
    return Clips(untrained, MINIATURE_TRAINING, torch.device("cpu"), folder)
