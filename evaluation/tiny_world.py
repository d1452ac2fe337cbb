"""The small world: many clips at once, and the truth about each."""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch

from diffusers_helper.models import Models
from diffusers_helper.sections import SectionOrder
from diffusers_helper.settings import GenerationSettings
from evaluation.clips import Clip
from evaluation.metrics import centroid_jump
from evaluation.rows import OUTCOME
from evaluation.transitions import Change, transition_fidelity
from training.tiny_world.captions import caption
from training.tiny_world.config import TrainingConfig
from training.tiny_world.measure import measure
from training.tiny_world.sample import sample_clips
from training.tiny_world.world import render, sample_scene, truth

CASES = {
    "disappearance": ("fade", "leave"),
    "large motion": ("left", "right", "up", "down", "jump"),
    "scene change": ("night",),
}
"""The specification's test cases."""
_SIZE = (128, 128)


def world_clips(actions: Sequence[str] | None, seeds: int, quiet: float = 0.0) -> list[Clip]:
    """Clips of scenes that are in no training, in which the captioned action could happen.

    Args:
        actions: of ACTIONS; None takes those of CASES.
        seeds: clips of each action; the clips of a seed share their scene as far as possible.
        quiet: seconds for which a first prompt tells that nothing moves, before that of the action;
            0 is no such prompt.
    """
    cases = {action: case for case, its_actions in CASES.items() for action in its_actions}
    clips = []
    for seed in range(seeds):
        for action in actions or cases:
            scene = sample_scene(TrainingConfig.unseen_seed + seed, action, _SIZE, quiet=quiet)
            prompt = caption(scene, seed)
            if quiet:
                still = caption(replace(scene, action="still"), seed)
                prompt = f"[0s: {still}] [{quiet:g}s: {prompt}]"
            clips.append(
                Clip(
                    id=f"{action}-{seed:03d}",
                    case=cases.get(action, "other actions"),
                    action=action,
                    seed=seed,
                    scene=str(scene.seed),
                    prompt=prompt,
                    source=scene,
                )
            )
    return clips


class TinyWorld:
    """A `Studio` of the small world."""

    def __init__(self, models: Models, order: SectionOrder) -> None:
        for component in vars(models).values():
            if isinstance(component, torch.nn.Module):
                component.to(models.device)  # they fit there together
        self._models = models
        self._order = order

    def size(self, clip: Clip) -> tuple[int, int]:
        return clip.source.size

    def make(
        self, clips: Sequence[Clip], settings: GenerationSettings, noise: int
    ) -> torch.Tensor | None:
        return sample_clips(
            self._models,
            [clip.source for clip in clips],
            [clip.prompt for clip in clips],
            order=self._order,
            seconds=settings.total_second_length,
            steps=settings.steps,
            window=settings.latent_window_size,
            cfg=settings.cfg,
            gs=settings.gs,
            adaptive_cfg_beta=settings.adaptive_cfg_beta,
            low_pass_factor=settings.low_pass_factor,
            low_pass_frames=settings.low_pass_frames,
            low_pass_sigma=settings.low_pass_sigma,
            history_low_pass=settings.history_low_pass,
            prompt_gate=settings.prompt_gate,
            seed=noise,
        )

    def subjects(self, clips: Sequence[Clip]) -> torch.Tensor | None:
        scenes = [clip.source for clip in clips]
        first = truth(scenes, 1)
        without = replace(first, opacity=torch.zeros_like(first.opacity))
        return (render(scenes, first) != render(scenes, without)).any(dim=1)[:, 0]

    def truth(
        self,
        clips: Sequence[Clip],
        videos: torch.Tensor,
        seams: Sequence[int],
        changes: Sequence[Sequence[Change]],
    ) -> list[dict[str, Any]]:
        # All clips of an evaluation change alike, and once.
        windows = next(((change.before, change.after) for change in changes[0]), None)
        return [
            {name: _number(getattr(outcome, name)) for name in OUTCOME}
            | {"centroid_jump": centroid_jump(outcome.track, seams)}
            | {"stf": _number(transition_fidelity(outcome.new, outcome.old))}
            for outcome in measure([clip.source for clip in clips], videos, windows)
        ]


def _number(value: float) -> float | None:
    """`value`, or None for nan."""
    return None if math.isnan(value) else float(value)
