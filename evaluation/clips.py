"""What videos are made of."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from diffusers_helper.settings import GenerationSettings
from evaluation.transitions import Change


@dataclass(frozen=True)
class Clip:
    """What the videos of all arms share."""

    id: str
    """Unlike that of any other clip; fit for file names."""
    case: str
    """Test case that it belongs to."""
    action: str
    """Of the small world; elsewhere the prompt."""
    seed: int
    """From 0; of the noise, and in the small world of the scene and the wording."""
    scene: str
    """What clips with the same first frame share."""
    prompt: str
    """Timed or not."""
    source: Any
    """What its first frame comes from."""


class Studio(Protocol):
    """Makes videos."""

    def size(self, clip: Clip) -> tuple[int, int]:
        """(height, width) of a clip's videos."""

    def make(
        self, clips: Sequence[Clip], settings: GenerationSettings, noise: int
    ) -> torch.Tensor | None:
        """Videos of clips.

        Args:
            clips: made in one batch.
            settings: of the videos, except for prompt and seed.
            noise: seed of the batch's noise.

        Returns:
            uint8, shape [clips, 3, frames, height, width]; None if the model returned NaN.
        """

    def subjects(self, clips: Sequence[Clip]) -> torch.Tensor | None:
        """Where the subjects are in the first frames: bool, shape [clips, height, width]; None
        where that is unknown."""

    def truth(
        self,
        clips: Sequence[Clip],
        videos: torch.Tensor,
        seams: Sequence[int],
        changes: Sequence[Sequence[Change]],
    ) -> list[dict[str, Any]]:
        """What really happened in each video, by `rows.TRUTH`, and its STF if the prompt changes;
        empty where that is unknown.

        Args:
            seams: see `metrics.seam_jump`.
            changes: of each clip's prompt.
        """
