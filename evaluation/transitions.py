"""How a video follows a prompt that changes: STF, section 6.3 of the design document
(docs/transitions.md)."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby, pairwise

import torch
from transformers import CLIPImageProcessorPil, CLIPModel, CLIPTokenizer

from diffusers_helper.errors import UserError
from diffusers_helper.prompts import in_force
from diffusers_helper.sections import FPS, SectionOrder, plan_sections
from diffusers_helper.settings import GenerationSettings

_WINDOW = FPS // 2
"""Frames in which a video is looked at before a change, and after it."""
_EVERY = 3
"""Frames between those that CLIP looks at."""


@dataclass(frozen=True)
class Change:
    """The prompt in force is another from a section on."""

    old: str
    new: str
    before: slice
    """The last half second of frames with the old prompt, or all if they are fewer."""
    after: slice
    """The same of the new one: what a change leads to takes its time."""


def changes(settings: GenerationSettings) -> list[Change]:
    """Where the prompt changes in a video, in the order of time."""
    window = settings.latent_window_size
    sections = plan_sections(SectionOrder.FORWARD, settings.total_second_length, window)
    spans = []  # text, first frame, end
    for text, some in groupby(sections, lambda s: in_force(settings.prompts, s.middle).text):
        numbers = [section.number for section in some]
        spans.append((text, 4 * window * (numbers[0] - 1), 4 * window * numbers[-1]))
    return [
        Change(
            old=old,
            new=new,
            before=slice(max(begin, change - _WINDOW), change),
            after=slice(max(change, end - _WINDOW), end),
        )
        for (old, begin, change), (new, _, end) in pairwise(spans)
    ]


def transition_fidelity(new: tuple[float, float], old: tuple[float, float]) -> float:
    """STF: the rise of similarity to the new prompt minus that to the old one.

    (new after - new before) - (old after - old before); 0 where nothing changes. With similarities
    in [0, 1] a change that is perfect has 2.

    Args:
        new, old: similarity to each prompt before and after the change.
    """
    return (new[1] - new[0]) - (old[1] - old[0])


class ClipSimilarity:
    """Similarity of frames to prompts by a CLIP model, on the CPU, where it is in nobody's way.

    Args:
        name: folder, or repository on Hugging Face, of what transformers' CLIPModel loads.

    Raises:
        UserError: it cannot be loaded.
    """

    def __init__(self, name: str) -> None:
        try:
            self._model = CLIPModel.from_pretrained(name).float().eval()
            self._tokenizer = CLIPTokenizer.from_pretrained(name)
            self._processor = CLIPImageProcessorPil.from_pretrained(name)
        except (OSError, ValueError) as error:
            raise UserError(f"--clip-model {name} is no CLIP model here: {error}") from error

    @torch.inference_mode()
    def similarity(self, frames: torch.Tensor, prompts: Sequence[str]) -> torch.Tensor:
        """Cosines, in [-1, 1].

        Args:
            frames: uint8, shape [3, frames, height, width].
            prompts: cut where they are longer than the model takes.

        Returns:
            Shape [frames, prompts].
        """
        images = list(frames.permute(1, 2, 3, 0).cpu().numpy())
        told = self._tokenizer(list(prompts), padding=True, truncation=True, return_tensors="pt")
        seen = self._processor(images, return_tensors="pt").pixel_values
        embeds = self._model(told.input_ids, seen, told.attention_mask)
        return embeds.image_embeds @ embeds.text_embeds.T

    def fidelity(self, video: torch.Tensor, changes: Sequence[Change]) -> float | None:
        """STF, averaged over the changes of a video; None without any.

        Args:
            video: uint8, shape [3, frames, height, width].
        """
        if not changes:
            return None
        return sum(self._fidelity(video, change) for change in changes) / len(changes)

    def _fidelity(self, video: torch.Tensor, change: Change) -> float:
        prompts = change.new, change.old
        before, after = (
            self.similarity(video[:, frames][:, ::_EVERY], prompts).mean(dim=0).tolist()
            for frames in (change.before, change.after)
        )
        new, old = zip(before, after, strict=True)
        return transition_fidelity(new, old)
