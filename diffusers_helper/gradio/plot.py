"""The guidance that each step will get, as the page draws it."""

from functools import lru_cache

import pandas as pd

from diffusers_helper.bucket_tools import find_nearest_bucket
from diffusers_helper.errors import ImageError
from diffusers_helper.generation import open_image
from diffusers_helper.pipelines.k_diffusion_hunyuan import guidance_schedule, section_sigmas
from diffusers_helper.sections import section_frames
from diffusers_helper.settings import GenerationSettings

_MEASURED = "On the small model, less of what the prompt tells happens from beta 0.5 on."
"""docs/results.md, in a line."""


def guidance_table(
    resolution: int, input_image: str | None, settings: GenerationSettings
) -> pd.DataFrame:
    """The schedule of a section as columns `step` (from 1), `sigma` and `guidance`.

    Args:
        resolution: of the model's buckets.
        input_image: its file; a square is assumed where there is none yet.
        settings: of the video.
    """
    shape = _shape(input_image) or (resolution, resolution)
    height, width = find_nearest_bucket(*shape, resolution=resolution)
    frames = section_frames(settings.latent_window_size)
    sigmas = section_sigmas(settings.steps, width, height, frames)
    guidance = guidance_schedule(
        sigmas,
        cfg=settings.cfg,
        gs=settings.gs,
        adaptive_cfg_beta=settings.adaptive_cfg_beta,
        adaptive_cfg_min=settings.adaptive_cfg_min,
    )
    return pd.DataFrame(
        {
            "step": range(1, settings.steps + 1),
            "sigma": sigmas[:-1].numpy(),
            "guidance": guidance.numpy(),
        }
    )


def _scale_in_force(settings: GenerationSettings) -> tuple[str, float]:
    """Label and value of the scale that the schedule acts on, see `fm_wrapper`."""
    if settings.cfg == 1.0:
        return "Distilled CFG Scale", settings.gs
    return "CFG Scale", settings.cfg


@lru_cache(maxsize=64)  # a slider on the move asks many times for the same file
def _shape(input_image: str | None) -> tuple[int, int] | None:
    try:
        return open_image(input_image).shape[:2]
    except ImageError:  # starting will say so
        return None


def guidance_note(table: pd.DataFrame, settings: GenerationSettings) -> str:
    """What the plot shows, in words (Markdown)."""
    name, base = _scale_in_force(settings)
    if settings.adaptive_cfg_beta == 0:
        return f"Constant: **{name}** {base:.2f} at every step."
    first, last = table["guidance"].iloc[[0, -1]]
    high = (table["sigma"] > 0.8).sum()
    note = (
        f"Acts on **{name}** {base:.2f}: {first:.2f} at the first step, {last:.2f} at the last, "
        f"{table['guidance'].mean():.2f} on average. Noise stays above 0.8 for {high} of "
        f"{len(table)} steps and ends at {table['sigma'].iloc[-1]:.3f}"
    )
    note += "." if last == base else f", so the last step does not quite return to {base:.2f}."
    if settings.adaptive_cfg_beta > 0.8:
        note += " ⚠️ **Above 0.8 quality may drop.**"
    return f"{note} {_MEASURED}"
