"""Sample one section of HunyuanVideo latents, and the schedules that it runs on."""

import math
from collections.abc import Callable
from typing import Any

import torch

from diffusers_helper.k_diffusion.low_pass import FRAMES, low_passed
from diffusers_helper.k_diffusion.uni_pc_fm import Step, sample_unipc
from diffusers_helper.k_diffusion.wrapper import (
    GUIDANCE_INPUT_SCALE,
    adaptive_cfg_scale,
    fm_wrapper,
)

LATENT_CHANNELS = 16
LATENT_FRAME = 4
"""Video frames in a latent frame (the first latent frame holds one)."""
LATENT_PIXEL = 8
"""Pixels along a side of a latent pixel."""
PATCH = 2
"""Latent pixels along a side of a transformer token."""


def flux_time_shift(t: torch.Tensor, mu: float = 1.15, sigma: float = 1.0) -> torch.Tensor:
    """Shift times in (0, 1] towards 1: e^mu / (e^mu + (1/t - 1)^sigma), as Flux does."""
    return math.exp(mu) / (math.exp(mu) + (1 / t - 1) ** sigma)


def calculate_flux_mu(
    context_length: int,
    x1: float = 256,
    y1: float = 0.5,
    x2: float = 4096,
    y2: float = 1.15,
    exp_max: float = 7.0,
) -> float:
    """Shift `mu` for a number of tokens: the line through (x1, y1) and (x2, y2), at most
    log(exp_max)."""
    k = (y2 - y1) / (x2 - x1)
    return min(k * context_length + y1 - k * x1, math.log(exp_max))


def get_flux_sigmas_from_mu(n: int, mu: float) -> torch.Tensor:
    """Noise levels of `n` steps: `flux_time_shift` of evenly falling times, from 1 to 0.

    Returns:
        float32, shape [n + 1].
    """
    return flux_time_shift(torch.linspace(1, 0, n + 1), mu)


def section_sigmas(
    steps: int, width: int, height: int, frames: int, shift: float | None = None
) -> torch.Tensor:
    """Noise levels of a section of `frames` video frames of `width` x `height` pixels.

    Args:
        shift: e^mu of the time shift; None takes it from the number of tokens.

    Returns:
        float32, shape [steps + 1], from 1 to 0.
    """
    tokens = latent_frames(frames) * (height // LATENT_PIXEL) * (width // LATENT_PIXEL) // PATCH**2
    mu = calculate_flux_mu(tokens) if shift is None else math.log(shift)
    return get_flux_sigmas_from_mu(steps, mu)


def latent_frames(frames: int) -> int:
    """Latent frames that `frames` video frames, 4k + 1 of them, are packed into."""
    return (frames + LATENT_FRAME - 1) // LATENT_FRAME


def guidance_schedule(
    sigmas: torch.Tensor, cfg: float, gs: float, adaptive_cfg_beta: float, adaptive_cfg_min: float
) -> torch.Tensor:
    """The guidance scale in force at every step: what `sample_hunyuan` applies and the page draws.

    Args:
        sigmas: noise levels as of `section_sigmas`, shape [steps + 1].
        cfg: true CFG scale; when it is not 1 it is the scale in force.
        gs: distilled guidance scale, in force otherwise.
        adaptive_cfg_beta, adaptive_cfg_min: see `adaptive_cfg_scale`.

    Returns:
        Scales, shape [steps].
    """
    base = gs if cfg == 1.0 else cfg
    return adaptive_cfg_scale(sigmas[:-1], base, adaptive_cfg_min, adaptive_cfg_beta)


def _check(
    *,
    frames: int,
    height: int,
    width: int,
    num_inference_steps: int,
    strength: float,
    shift: float | None,
    adaptive_cfg_beta: float,
    low_pass_factor: float,
    low_pass_sigma: float,
    low_pass_frames: str,
    history_low_pass: float,
    last_low_pass: float | torch.Tensor,
    **scales: float,
) -> None:
    if num_inference_steps < 1:
        raise ValueError(f"num_inference_steps must be at least 1, got {num_inference_steps}")
    if frames < 1 or frames % LATENT_FRAME != 1:
        raise ValueError(f"frames must be 4k + 1 (1, 5, 9, ...), got {frames}")
    side = LATENT_PIXEL * PATCH
    for name, value in (("height", height), ("width", width)):
        if value < side or value % side:
            raise ValueError(f"{name} must be a positive multiple of {side}, got {value}")
    if not 0.0 < strength <= 1.0:
        raise ValueError(f"strength must be in (0, 1], got {strength}")
    if shift is not None and not 0.0 < shift < math.inf:
        raise ValueError(f"shift must be finite and positive, got {shift}")
    for name, value in (
        ("adaptive_cfg_beta", adaptive_cfg_beta),
        ("low_pass_sigma", low_pass_sigma),
        ("history_low_pass", history_low_pass),
    ):
        if not 0.0 <= value <= 1.0:
            raise ValueError(f"{name} must be in [0, 1], got {value}")
    strengths = torch.as_tensor(last_low_pass)
    if not ((strengths >= 0.0) & (strengths <= 1.0)).all():
        raise ValueError(f"last_low_pass must be in [0, 1], got {last_low_pass}")
    if not 0.0 < low_pass_factor <= 1.0:
        raise ValueError(f"low_pass_factor must be in (0, 1], got {low_pass_factor}")
    if low_pass_frames not in FRAMES:
        raise ValueError(f"low_pass_frames must be of {', '.join(FRAMES)}, got {low_pass_frames!r}")
    for name, value in scales.items():
        if not math.isfinite(value) or value < 0:
            raise ValueError(f"{name} must be finite and not negative, got {value}")


def _batched(x: torch.Tensor, batch_size: int) -> torch.Tensor:
    return x.expand(batch_size, *x.shape[1:]) if x.shape[0] == 1 else x


@torch.inference_mode()
def sample_hunyuan(
    transformer: Callable,
    sampler: str | Callable = "unipc",
    initial_latent: torch.Tensor | None = None,
    concat_latent: torch.Tensor | None = None,
    strength: float = 1.0,
    width: int = 512,
    height: int = 512,
    frames: int = 13,
    real_guidance_scale: float = 1.0,
    distilled_guidance_scale: float = 6.0,
    guidance_rescale: float = 0.0,
    shift: float | None = None,
    num_inference_steps: int = 25,
    batch_size: int | None = None,
    generator: torch.Generator | None = None,
    prompt_embeds: torch.Tensor | None = None,
    prompt_embeds_mask: torch.Tensor | None = None,
    prompt_poolers: torch.Tensor | None = None,
    negative_prompt_embeds: torch.Tensor | None = None,
    negative_prompt_embeds_mask: torch.Tensor | None = None,
    negative_prompt_poolers: torch.Tensor | None = None,
    dtype: torch.dtype = torch.bfloat16,
    device: torch.device | str | None = None,
    negative_kwargs: dict[str, Any] | None = None,
    callback: Callable[[Step], None] | None = None,
    adaptive_cfg_beta: float = 0.0,
    adaptive_cfg_min: float = 1.0,
    low_pass_factor: float = 1.0,
    low_pass_sigma: float = 0.9,
    low_pass_frames: str = "both",
    history_low_pass: float = 0.0,
    last_low_pass: float | torch.Tensor = 0.0,
    **kwargs: Any,
) -> Any:
    """Sample one section. FramePack's signature, plus Step-Adaptive CFG and low-pass conditioning.

    Args:
        transformer: HunyuanVideoTransformer3DModelPacked, or anything `fm_wrapper` takes.
        sampler: "unipc", or a function called as `sample_unipc` is; its result is returned. Sigmas
            are on the CPU.
        initial_latent: start from this instead of noise alone, shape of the result.
        concat_latent: appended to the transformer's input channels.
        strength: with `initial_latent`, the share of the noise levels to run, (0, 1].
        width, height: pixels, multiples of 16.
        frames: video frames, 4k + 1. (FramePack's default of 16 rounds to the same 4 latent
            frames.)
        real_guidance_scale: true CFG; 1 is off, and no negative pass runs.
        distilled_guidance_scale: guidance input of the transformer.
        guidance_rescale: see `rescale_noise_cfg`.
        shift: e^mu of the time shift; None takes it from the number of tokens.
        num_inference_steps: at least 1.
        batch_size: None takes it from `prompt_embeds`.
        generator: of the noise; the noise is drawn on its device. None is the global CPU one.
        prompt_embeds, negative_prompt_embeds: text, shape [batch or 1, tokens, dim].
        prompt_embeds_mask, negative_prompt_embeds_mask: which tokens count, the first of each row,
            shape [batch or 1, tokens]. What counts in no row is cut off.
        prompt_poolers, negative_prompt_poolers: pooled text, shape [batch or 1, dim].
        dtype: of the transformer's inputs.
        device: None takes the transformer's.
        negative_kwargs: override `kwargs` in the negative pass.
        callback: called with {'x', 'i', 'denoised'} after every step.
        adaptive_cfg_beta: strength of Step-Adaptive CFG, 0 (off) to 1.
        adaptive_cfg_min: the scale that beta 1 gives at sigma 1; finite, not negative.
        low_pass_factor: of `clean_latents`, see `low_pass`; in (0, 1], 1 is off.
        low_pass_sigma: latents are low-passed while sigma is this or more, in [0, 1].
        low_pass_frames: "both" of `clean_latents`, the "start" frame or the "last" before the
            section.
        history_low_pass: strength of `low_pass_history`, 0 (off) to 1; needs `latent_indices`.
        last_low_pass: strength of a further low-pass of the last frame before the section, 0 (off)
            to 1, see `low_passed`; of all, or shape [batch].
        **kwargs: further arguments of the transformer, for both passes.

    Returns:
        Latents, float32, shape [batch, 16, (frames + 3) // 4, height / 8, width / 8].

    Raises:
        ValueError: an argument is out of range; before any model runs.
        NotImplementedError: an unknown name of a sampler.
    """
    if sampler == "unipc":
        sampler = sample_unipc
    elif not callable(sampler):
        raise NotImplementedError(f"sampler must be 'unipc' or a function, got {sampler!r}")
    _check(
        frames=frames,
        height=height,
        width=width,
        num_inference_steps=num_inference_steps,
        strength=strength,
        shift=shift,
        adaptive_cfg_beta=adaptive_cfg_beta,
        low_pass_factor=low_pass_factor,
        low_pass_sigma=low_pass_sigma,
        low_pass_frames=low_pass_frames,
        history_low_pass=history_low_pass,
        last_low_pass=last_low_pass,
        adaptive_cfg_min=adaptive_cfg_min,
        real_guidance_scale=real_guidance_scale,
        distilled_guidance_scale=distilled_guidance_scale,
        guidance_rescale=guidance_rescale,
    )
    true_cfg = real_guidance_scale != 1.0
    if true_cfg and negative_prompt_embeds is None:
        raise ValueError(
            f"negative_prompt_embeds is required with real_guidance_scale {real_guidance_scale}"
        )
    if history_low_pass and kwargs.get("latent_indices") is None:
        raise ValueError(f"latent_indices is required with history_low_pass {history_low_pass}")

    device = transformer.device if device is None else torch.device(device)
    batch_size = prompt_embeds.shape[0] if batch_size is None else batch_size
    latents = torch.randn(
        (
            batch_size,
            LATENT_CHANNELS,
            latent_frames(frames),
            height // LATENT_PIXEL,
            width // LATENT_PIXEL,
        ),
        generator=generator,
        device="cpu" if generator is None else generator.device,
    ).to(device)

    sigmas = section_sigmas(num_inference_steps, width, height, frames, shift)
    if initial_latent is not None:
        sigmas = sigmas * strength
        latents = torch.lerp(initial_latent.to(latents), latents, sigmas[0].item())

    guidance = torch.full(
        (batch_size,),
        GUIDANCE_INPUT_SCALE * distilled_guidance_scale,
        device=device,
        dtype=dtype,
    )

    def conditions(
        embeds: torch.Tensor, mask: torch.Tensor, poolers: torch.Tensor, extra: dict
    ) -> dict:
        longest = int(mask.sum(dim=1).max())  # padding would be refined in every step
        return {
            "encoder_hidden_states": _batched(embeds[:, :longest], batch_size).to(device, dtype),
            "encoder_attention_mask": _batched(mask[:, :longest], batch_size).to(device),
            "pooled_projections": _batched(poolers, batch_size).to(device, dtype),
            "guidance": guidance,
            **extra,
        }

    def soft(extra: dict) -> dict[str, torch.Tensor]:
        changed = low_passed(
            extra, low_pass_factor, low_pass_frames, history_low_pass, last_low_pass
        )
        return {name: latents.to(device) for name, latents in changed.items()}

    negative = kwargs | (negative_kwargs or {})
    soft_positive = soft(kwargs)
    extra_args = {
        "dtype": dtype,
        "cfg_scale": real_guidance_scale,
        "cfg_rescale": guidance_rescale,
        "concat_latent": concat_latent,
        "positive": conditions(prompt_embeds, prompt_embeds_mask, prompt_poolers, kwargs),
        "negative": conditions(
            negative_prompt_embeds,
            negative_prompt_embeds_mask,
            negative_prompt_poolers,
            negative,
        )
        if true_cfg
        else None,
        "adaptive_cfg": {
            "enabled": adaptive_cfg_beta > 0.0,
            "beta": adaptive_cfg_beta,
            "cfg_min": adaptive_cfg_min,
        },
        "low_pass": {
            "sigma": low_pass_sigma,
            "positive": soft_positive,
            "negative": soft(negative) if negative_kwargs else soft_positive,
        },
    }
    return sampler(
        fm_wrapper(transformer), latents, sigmas, extra_args=extra_args, callback=callback
    )
