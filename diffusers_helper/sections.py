"""How a video is cut into sections, and what each section is shown of the rest."""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

import torch

FPS = 30
_FAR, _MIDDLE, _NEAR = 16, 2, 1
"""Latent frames of history at the coarse (4x), middle (2x) and full resolution."""
_HISTORY = _FAR + _MIDDLE + _NEAR


class SectionOrder(Enum):
    """The order in which a checkpoint was trained to make sections."""

    FORWARD = "forward"
    """From the image on (FramePack-F1)."""
    INVERTED = "inverted"
    """The end first, back to the image (FramePack)."""


@dataclass(frozen=True)
class Section:
    """A section: its number from 1 in the order of making, of how many, and what lies between it
    and the image (in windows; only inverted sections know, and in long videos it is capped). When
    the finished video reaches its start and its middle, in seconds after the image."""

    number: int
    count: int
    padding: int
    start: float
    middle: float

    @property
    def is_last(self) -> bool:
        """Whether the video is whole with this section."""
        return self.number == self.count


def plan_sections(order: SectionOrder, seconds: float, window: int) -> list[Section]:
    """The sections of a video of about `seconds`, in the order of making."""
    n = max(round(seconds * FPS / (4 * window)), 1)
    paddings: Sequence[int]
    if order is SectionOrder.FORWARD:
        paddings = [0] * n
    elif n > 4:
        # The model saw few long gaps in training; FramePack found short ones to work better.
        paddings = [3, *[2] * (n - 3), 1, 0]
    else:
        paddings = range(n - 1, -1, -1)
    places = range(n) if order is SectionOrder.FORWARD else range(n - 1, -1, -1)
    length = 4 * window
    return [
        Section(i, n, padding, start=length * place / FPS, middle=length * (place + 0.5) / FPS)
        for i, (padding, place) in enumerate(zip(paddings, places, strict=True), start=1)
    ]


def section_frames(window: int) -> int:
    """Video frames that a section of `window` latent frames is sampled as; also its overlap with
    the next."""
    return 4 * window - 3


class LatentHistory:
    """The latents made so far, as far as anything still needs them.

    Args:
        order: of the sections.
        window: latent frames in a section.
        start: the encoded image, shape [1, C, 1, H, W].
    """

    def __init__(self, order: SectionOrder, window: int, start: torch.Tensor) -> None:
        self.order = order
        self.window = window
        self.start = start
        self._made = 0
        self._latents = start.new_zeros(*start.shape[:2], _HISTORY, *start.shape[3:])
        if order is SectionOrder.FORWARD:
            self._extend(start)

    def context(self, section: Section) -> dict[str, torch.Tensor]:
        """What the transformer is shown beside the noise: its arguments of latents and indices.

        Indices run through the video's latent frames; their layout is FramePack's.
        """
        w = self.window
        if self.order is SectionOrder.FORWARD:
            lengths = [1, _FAR, _MIDDLE, _NEAR, w]
            start, far, middle, near, window = _row(lengths)
            clean_far, clean_middle, clean_near = self._latents[:, :, -_HISTORY:].split(
                [_FAR, _MIDDLE, _NEAR], dim=2
            )
        else:
            lengths = [1, section.padding * w, w, _NEAR, _MIDDLE, _FAR]
            start, _, window, near, middle, far = _row(lengths)
            clean_near, clean_middle, clean_far = self._latents[:, :, :_HISTORY].split(
                [_NEAR, _MIDDLE, _FAR], dim=2
            )
        return {
            "latent_indices": window,
            "clean_latents": torch.cat([self.start, clean_near], dim=2),
            "clean_latent_indices": torch.cat([start, near], dim=1),
            "clean_latents_2x": clean_middle,
            "clean_latent_2x_indices": middle,
            "clean_latents_4x": clean_far,
            "clean_latent_4x_indices": far,
        }

    def add(self, section: Section, latents: torch.Tensor) -> torch.Tensor:
        """Take in a section's latents and return those to decode, its neighbour's included.

        The decoded video overlaps the one before by `section_frames(window)`.
        """
        decode = 2 * self.window
        if self.order is SectionOrder.INVERTED and section.is_last:
            latents = torch.cat([self.start, latents], dim=2)
            decode += 1
        self._extend(latents)
        if section.number == 1:
            decode = self._made
        if self.order is SectionOrder.FORWARD:
            return self._latents[:, :, -decode:]
        return self._latents[:, :, :decode]

    @property
    def shared(self) -> slice:
        """Which of the latents that `add` returns it returns again with the next section."""
        if self.order is SectionOrder.FORWARD:
            return slice(-self.window, None)
        return slice(self.window)

    def _extend(self, latents: torch.Tensor) -> None:
        self._made += latents.shape[2]
        latents = latents.to(self._latents)
        keep = max(_HISTORY, 2 * self.window + 1)
        if self.order is SectionOrder.FORWARD:
            self._latents = torch.cat([self._latents, latents], dim=2)[:, :, -keep:]
        else:
            self._latents = torch.cat([latents, self._latents], dim=2)[:, :, :keep]


def _row(lengths: list[int]) -> tuple[torch.Tensor, ...]:
    """Consecutive integers from 0, shape [1, sum], split into pieces of `lengths`."""
    return torch.arange(sum(lengths)).unsqueeze(0).split(lengths, dim=1)
