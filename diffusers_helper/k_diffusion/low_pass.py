"""Low-pass of what a pass is shown beside the noise, while noise is high (docs/low_pass.md)."""

from typing import Any

import torch
import torch.nn.functional as F

FRAMES = {"both": slice(None), "start": slice(0, 1), "last": slice(1, None)}
"""Which of `clean_latents` to filter: the start frame is the first of them."""
HISTORY = {
    "clean_latents_2x": "clean_latent_2x_indices",
    "clean_latents_4x": "clean_latent_4x_indices",
}
"""The older past, each with its places in time."""
OLDEST_FACTOR = 0.25
"""Of the oldest frame of history, and of the last before the section, at strength 1; see
`low_pass`."""


def low_pass(latents: torch.Tensor, factor: float) -> torch.Tensor:
    """Every frame scaled down and up again, bilinearly and without aliasing.

    After "Enhancing Motion Dynamics of Image-to-Video Models via Adaptive Low-Pass Guidance" (ALG,
    arXiv 2506.08456); in float32.

    Args:
        latents: shape [batch, channels, frames, height, width].
        factor: of height and width on the way, in (0, 1]; 1 returns `latents`.

    Returns:
        Latents like the given ones.
    """
    if factor == 1.0 or not latents.numel():
        return latents
    sides = latents.shape[-2:]
    planes = latents.float().flatten(0, 1)
    small = [max(round(side * factor), 1) for side in sides]
    planes = F.interpolate(planes, small, mode="bilinear", antialias=True)
    planes = F.interpolate(planes, sides, mode="bilinear")
    return planes.unflatten(0, latents.shape[:2]).to(latents.dtype)


def low_pass_history(
    latents: torch.Tensor, distances: torch.Tensor, strength: float
) -> torch.Tensor:
    """The past without its detail in space and time, the more so the older it is.

    x + w * (L(x) - x), where w rises linearly with a frame's distance, from 0 at the nearest to
    `strength` at the farthest, and L is a blur over neighbours in time, weighted 1, 2, 1, and then
    `low_pass` by OLDEST_FACTOR. Section 6 of the design document (docs/low_pass.md).

    Args:
        latents: shape [batch, channels, frames, height, width], frames in any order. Frames that
            are zero are absent: they stay so, and lend nothing to their neighbours.
        distances: to the section that is made, in latent frames, shape [frames].
        strength: 0 to 1; 0 returns `latents`.

    Returns:
        Latents like the given ones.
    """
    if strength == 0.0 or not latents.numel():
        return latents
    d, order = distances.to(latents.device).sort()
    x = latents[:, :, order].float()
    present = (x != 0).any(dim=(1, 3, 4), keepdim=True)
    steps = x.diff(dim=2) * (present[:, :, 1:] & present[:, :, :-1])
    mixed = x + (F.pad(steps, (0, 0, 0, 0, 0, 1)) - F.pad(steps, (0, 0, 0, 0, 1, 0))) / 4
    weight = strength * (d - d[0]) / (d[-1] - d[0]).clamp(min=1)
    soft = x.lerp(low_pass(mixed, OLDEST_FACTOR), weight.view(-1, 1, 1))
    return soft[:, :, order.argsort()].to(latents.dtype)


def low_passed(
    conditions: dict[str, Any],
    factor: float,
    frames: str,
    history: float,
    last: float | torch.Tensor = 0.0,
) -> dict[str, torch.Tensor]:
    """What takes the place of a pass's latents while noise is high.

    Args:
        conditions: arguments of the transformer, see its forward.
        factor: of the start frame and the last frame before the section, see `low_pass`.
        frames: which of these two, of FRAMES.
        history: strength for the frames beyond, see `low_pass_history`. Needs `latent_indices`.
        last: strength s of a further low-pass of the last frame, x + s * (L(x) - x) where L is
            `low_pass` by OLDEST_FACTOR and x what the above made of it; of all, or shape [batch].

    Returns:
        The arguments that differ; none at factor 1 and strengths 0.
    """
    changed = {}
    clean = conditions.get("clean_latents")
    if factor != 1.0 and clean is not None:
        changed["clean_latents"] = clean.clone()
        chosen = (slice(None), slice(None), FRAMES[frames])
        changed["clean_latents"][chosen] = low_pass(clean[chosen], factor)
    strength = torch.as_tensor(last).view(-1, 1, 1, 1, 1)
    if strength.any() and clean is not None:
        clean = changed.get("clean_latents", clean).clone()
        x = clean[:, :, FRAMES["last"]]
        clean[:, :, FRAMES["last"]] = x.lerp(low_pass(x, OLDEST_FACTOR), strength.to(x))
        changed["clean_latents"] = clean
    past = {name: x for name in HISTORY if (x := conditions.get(name)) is not None}
    if history != 0.0 and past:
        places = torch.cat([_row(conditions[HISTORY[name]]) for name in past])
        window = _row(conditions["latent_indices"])
        # The past lies before the section or, in inverted order, after it.
        distances = torch.maximum(window.min() - places, places - window.max())
        soft = low_pass_history(torch.cat([*past.values()], dim=2), distances, history)
        counts = [x.shape[2] for x in past.values()]
        changed |= zip(past, soft.split(counts, dim=2), strict=True)
    return changed


def _row(indices: torch.Tensor) -> torch.Tensor:
    """Places in time, shape [t], of all of a batch."""
    return indices if indices.ndim == 1 else indices[0]
