"""All guidance: from a transformer that predicts velocity to the solver's `model(x, sigma)`."""

from collections.abc import Callable
from contextlib import nullcontext

import torch

GUIDANCE_INPUT_SCALE = 1000.0
"""A guidance-distilled transformer reads its scale times this number, like a timestep."""


def append_dims(x: torch.Tensor, target_dims: int) -> torch.Tensor:
    """View `x` with ones appended to its shape until it has `target_dims` dimensions."""
    return x[(...,) + (None,) * (target_dims - x.ndim)]


def rescale_noise_cfg(
    noise_cfg: torch.Tensor, noise_pred_text: torch.Tensor, guidance_rescale: float = 0.0
) -> torch.Tensor:
    """Pull a guided prediction back to the spread of the conditional one.

    Section 3.4 of "Common Diffusion Noise Schedules and Sample Steps are Flawed"
    (arXiv 2305.08891).

    Args:
        noise_cfg: guided prediction, shape [batch, ...].
        noise_pred_text: conditional prediction, same shape.
        guidance_rescale: share of the rescaled prediction in the result, 0 (none) to 1.
    """
    if guidance_rescale == 0:
        return noise_cfg
    dims = tuple(range(1, noise_cfg.ndim))
    ratio = noise_pred_text.std(dim=dims, keepdim=True) / noise_cfg.std(dim=dims, keepdim=True)
    return noise_cfg * (1 + guidance_rescale * (ratio - 1))


def adaptive_cfg_scale(
    sigma: torch.Tensor | float,
    cfg_base: torch.Tensor | float,
    cfg_min: float = 1.0,
    beta: float = 0.7,
    t_scale: float = 1000.0,
) -> torch.Tensor:
    """Step-Adaptive CFG: the guidance scale at one noise level.

    cfg(sigma) = cfg_min + (cfg_base - cfg_min) * (1 - beta * clamp(sigma, 0, 1)), section 3.3 of
    the design document (docs/step_adaptive_cfg.md).

    Args:
        sigma: noise level, any shape; 1 is pure noise (first step), 0 is clean.
        cfg_base: scale at sigma 0.
        cfg_min: scale at sigma 1 when beta is 1.
        beta: strength, 0 (always `cfg_base`) to 1.
        t_scale: unused; part of the design document's signature.

    Returns:
        Scale with the shape and device of `sigma`.
    """
    sigma = torch.as_tensor(sigma).clamp(0.0, 1.0)
    return cfg_min + (cfg_base - cfg_min) * (1.0 - beta * sigma)


def fm_wrapper(transformer: Callable, t_scale: float = 1000.0) -> Callable[..., torch.Tensor]:
    """Turn a velocity-predicting transformer into `model(x, sigma, **extra_args) -> denoised`.

    Args:
        transformer: called with `hidden_states`, `timestep`, `return_dict=False` and the entries of
            a pass; returns a tuple that starts with the velocity, shaped like `x`.
        t_scale: timestep at sigma 1.

    The model's `x` is [batch, channels, frames, height, width], its `sigma` [batch] in (0, 1]. What
    depends on sigma is decided on its device: on the CPU there is no wait for a GPU.
    Its `extra_args`:
        dtype: of the transformer's inputs.
        cfg_scale: true CFG scale; 1 is off. A step at scale 1 has no negative pass.
        cfg_rescale: see `rescale_noise_cfg`.
        concat_latent: appended to the channels of `x`, or None.
        positive, negative: keyword arguments of the two passes.
        adaptive_cfg: dict(enabled, beta, cfg_min) or absent. Schedules the scale in force by the
            mean sigma: `cfg_scale` when true CFG is on, else the positive pass's `guidance`.
        low_pass: dict(sigma, positive, negative) or absent. What takes the place of each pass's
            arguments of the same names while the mean sigma is `sigma` or more.
    """
    getattr(transformer, "forget", lambda: None)()
    # diffusers' models keep what they cache between steps apart by the name of the pass.
    pass_context = getattr(transformer, "cache_context", lambda name: nullcontext())

    def k_model(x: torch.Tensor, sigma: torch.Tensor, **extra_args) -> torch.Tensor:
        dtype = extra_args["dtype"]
        cfg_scale = extra_args["cfg_scale"]
        concat_latent = extra_args["concat_latent"]
        positive = extra_args["positive"]
        adaptive_cfg = extra_args.get("adaptive_cfg") or {}
        low_pass = extra_args.get("low_pass") or {}
        sigma = sigma.float()
        level = sigma.mean()

        true_cfg = cfg_scale != 1.0
        beta = adaptive_cfg.get("beta", 0.7)
        if adaptive_cfg.get("enabled", False) and beta != 0:
            schedule = {"cfg_min": adaptive_cfg.get("cfg_min", 1.0), "beta": beta}
            if true_cfg:
                cfg_scale = adaptive_cfg_scale(level, cfg_scale, **schedule)
            elif (guidance := positive.get("guidance")) is not None:
                base = guidance.float() / GUIDANCE_INPUT_SCALE
                scale = adaptive_cfg_scale(level, base, **schedule)
                positive = positive | {"guidance": (GUIDANCE_INPUT_SCALE * scale).to(guidance)}

        hidden_states = x if concat_latent is None else torch.cat([x, concat_latent.to(x)], dim=1)
        hidden_states = hidden_states.to(dtype)
        sigma = sigma.to(x.device)
        timestep = (sigma * t_scale).to(dtype)
        soft = low_pass if low_pass and level >= low_pass["sigma"] else {}

        def velocity(name: str, conditions: dict) -> torch.Tensor:
            conditions = conditions | soft.get(name, {})
            with pass_context(name):
                return transformer(
                    hidden_states=hidden_states, timestep=timestep, return_dict=False, **conditions
                )[0].float()

        v = velocity("positive", positive)
        if true_cfg and cfg_scale != 1.0:
            v_negative = velocity("negative", extra_args["negative"])
            v_guided = v_negative + cfg_scale * (v - v_negative)
            v = rescale_noise_cfg(v_guided, v, extra_args["cfg_rescale"])

        return (x.float() - append_dims(sigma, x.ndim) * v).to(x.dtype)

    return k_model
