from pathlib import Path

import pytest
import torch

from diffusers_helper.models import Models, load_models
from training.tiny_world.model import MINIATURE, build, save

WINDOW = 3
"""Of the miniature; a second of video is two sections, 25 frames, of it."""


@pytest.fixture(scope="session")
def weights(tmp_path_factory) -> Path:
    """An untrained model small enough for tests, as files."""
    folder = tmp_path_factory.mktemp("miniature")
    settings = {"gs": 6.0, "total_second_length": 1.0, "latent_window_size": WINDOW}
    save(build(MINIATURE, seed=0), folder, 128, settings, "", torch.zeros(17, 3))
    return folder


@pytest.fixture(scope="session")
def miniature(weights) -> Models:
    return load_models("tiny", "cpu", weights)
