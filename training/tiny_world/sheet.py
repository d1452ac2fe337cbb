"""All actions in one picture: `python -m training.tiny_world.sheet --help`."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image, ImageDraw, ImageFont

from diffusers_helper.models import load_models
from training.tiny_world.captions import caption
from training.tiny_world.config import TrainingConfig
from training.tiny_world.sample import sample_clips
from training.tiny_world.world import ACTIONS, SIZES, render, sample_scene, truth

_FRAMES = 73
"""Of two seconds' sections."""
_COLUMNS = 9
_GAP = 4
_LINE = 18


def contact_sheet(videos: torch.Tensor, titles: Sequence[str], columns: int) -> Image.Image:
    """Frames side by side, evenly through each video, a row a video below its title.

    Args:
        videos: uint8, shape [videos, 3, frames, height, width].
        titles: one a video.
        columns: frames of each, the first and the last among them.
    """
    chosen = torch.linspace(0, videos.shape[2] - 1, columns).round().long()
    frames = videos[:, :, chosen].permute(0, 2, 3, 4, 1).cpu().numpy()
    height, width = videos.shape[3:]
    row = _LINE + height + _GAP
    sheet = Image.new("RGB", (columns * (width + _GAP) - _GAP, len(videos) * row), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(13)
    for i, (title, video) in enumerate(zip(titles, frames, strict=True)):
        draw.text((0, i * row), title, "black", font)
        for k, frame in enumerate(video):
            sheet.paste(Image.fromarray(frame), (k * (width + _GAP), i * row + _LINE))
    return sheet


def main(arguments: list[str] | None = None) -> int:
    """Run the command and return its exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m training.tiny_world.sheet",
        description="Draw an unseen clip of every action: as the world has it, or by a model.",
    )
    parser.add_argument("--output", type=Path, required=True, metavar="IMAGE")
    parser.add_argument("--weights", type=Path, metavar="DIR", help="folder of a model")
    parser.add_argument("--seed", type=int, default=0, help="of the scenes (default: 0)")
    options = parser.parse_args(arguments)

    seed = TrainingConfig.unseen_seed + options.seed
    scenes = [sample_scene(seed + i, action, SIZES[0]) for i, action in enumerate(ACTIONS)]
    captions = [caption(scene, 0) for scene in scenes]
    if options.weights is None:
        videos = render(scenes, truth(scenes, _FRAMES))
    else:
        models = load_models("tiny", weights=options.weights)
        for component in vars(models).values():
            if isinstance(component, torch.nn.Module):
                component.to(models.device)
        videos = sample_clips(models, scenes, captions, gs=models.settings["gs"], seed=options.seed)
    contact_sheet(videos, captions, _COLUMNS).save(options.output, optimize=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
