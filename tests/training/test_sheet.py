import numpy as np
import torch
from PIL import Image

from training.tiny_world import sheet
from training.tiny_world.sheet import contact_sheet
from training.tiny_world.world import ACTIONS


def test_a_row_runs_evenly_from_the_first_frame_to_the_last():
    videos = torch.zeros(2, 3, 11, 6, 8, dtype=torch.uint8)
    videos += torch.arange(11, dtype=torch.uint8).view(1, 1, -1, 1, 1) * 10
    videos[1] += 100
    picture = np.asarray(contact_sheet(videos, ["one", "two"], 3))
    for row, offset in enumerate((0, 100)):
        top = row * (18 + 6 + 4) + 18
        for column, frame in enumerate((0, 5, 10)):
            left = column * (8 + 4)
            shown = picture[top : top + 6, left : left + 8]
            assert (shown == 10 * frame + offset).all()
    assert picture.shape == (2 * 28, 3 * 12 - 4, 3)
    assert (picture[:18].min() < 128) and (picture[18:24, 8:12] == 255).all()  # title, gap


def test_the_command_draws_every_action(tmp_path):
    file = tmp_path / "world.png"
    assert sheet.main(["--output", str(file)]) == 0
    picture = np.asarray(Image.open(file))
    rows = picture.reshape(len(ACTIONS), 18 + 128 + 4, -1, 3)[:, 18:146]
    moving = [not (row[:, :128] == row[:, -128:]).all() for row in rows]
    assert moving == [action != "still" for action in ACTIONS]
