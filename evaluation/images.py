"""Images with prompts, for the real models: one video at a time, as the page makes them."""

import json
import tempfile
import threading
import zlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

import diffusers_helper
from diffusers_helper.bucket_tools import find_nearest_bucket
from diffusers_helper.errors import NonFiniteError, UserError
from diffusers_helper.generation import generate, open_image
from diffusers_helper.models import Models
from diffusers_helper.sections import SectionOrder
from diffusers_helper.settings import GenerationSettings
from evaluation.clips import Clip
from evaluation.rows import slug
from evaluation.transitions import Change
from evaluation.videos import read_video

_FOLDER = Path(diffusers_helper.__file__).parent / "gradio" / "examples"
EXAMPLES = (
    ("disappearance", _FOLDER / "person.png", "The person gradually fades away and disappears"),
    ("large motion", _FOLDER / "dancer.png", "The dancer spins and jumps across the stage"),
    ("scene change", _FOLDER / "landscape.png", "The scene transitions from day to night"),
)
"""The page's, which would bring all of Gradio along, as (case, image, prompt)."""


def image_clips(cases: Sequence[tuple[str, Path, str]], seeds: int) -> list[Clip]:
    """Clips of images with prompts.

    Args:
        cases: (case, image, prompt) of each.
        seeds: clips of each.
    """
    clips = []
    for seed in range(seeds):
        for case, image, prompt in cases:
            content = zlib.crc32(f"{image.name} {prompt}".encode())
            clips.append(
                Clip(
                    id=f"{slug(case)}-{content:08x}-{seed:03d}",
                    case=case,
                    action=prompt,
                    seed=seed,
                    scene=image.name,
                    prompt=prompt,
                    source=image,
                )
            )
    return clips


def read_cases(file: Path) -> list[tuple[str, Path, str]]:
    """(case, image, prompt) of each entry of a JSON list of {"case", "image", "prompt"}. Images are
    relative to the file.

    Raises:
        UserError: the file is something else, or an image cannot be used.
    """
    try:
        entries = json.loads(file.read_text(encoding="utf-8"))
        cases = [
            (e["case"], file.parent / e["image"], " ".join(e["prompt"].split())) for e in entries
        ]
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise UserError(
            f'--cases must be a JSON list of {{"case", "image", "prompt"}}, {file} is not '
            f"({type(error).__name__}: {error})."
        ) from error
    for _, image, _ in cases:
        open_image(image)
    return cases


class Images:
    """A `Studio` of images with prompts."""

    def __init__(self, models: Models, order: SectionOrder) -> None:
        self._models = models
        self._order = order

    def size(self, clip: Clip) -> tuple[int, int]:
        height, width = open_image(clip.source).shape[:2]
        return find_nearest_bucket(height, width, resolution=self._models.resolution)

    def make(
        self, clips: Sequence[Clip], settings: GenerationSettings, noise: int
    ) -> torch.Tensor | None:
        (clip,) = clips
        settings = replace(settings, prompt=clip.prompt, seed=noise)
        image = open_image(clip.source)
        with tempfile.TemporaryDirectory() as folder:
            video = Path(folder) / "video.mp4"
            try:
                for _ in generate(
                    self._models, image, settings, self._order, video, threading.Event()
                ):
                    pass
            except NonFiniteError:
                return None
            return read_video(video)[None]

    def subjects(self, clips: Sequence[Clip]) -> torch.Tensor | None:
        return None

    def truth(
        self,
        clips: Sequence[Clip],
        videos: torch.Tensor,
        seams: Sequence[int],
        changes: Sequence[Sequence[Change]],
    ) -> list[dict[str, Any]]:
        return [{} for _ in clips]
