"""Stage 1: the VAE."""

import math
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKLHunyuanVideo
from torch import nn

from diffusers_helper.hunyuan import vae_decode
from training.tiny_world.config import TrainingConfig
from training.tiny_world.loop import take_steps
from training.tiny_world.optimizer import MatrixOptimizer, matrices_and_vectors
from training.tiny_world.recorded import Tensors
from training.tiny_world.world import SIZES, Scene, render, sample_scene, subject_box, truth

_LAST_BEGIN = 48
"""Frame of a scene that a clip may begin with, at most."""
_VAE_SEED = 500_000_000
"""Far from those of the transformer's clips."""
_LEAST_LOGVAR = -30.0
"""At which diffusers' posterior clips; a deviation of 3e-7."""
_UNUSED = 0.01
"""Share of the most that the decoder makes of any channel, below which it has no use for one."""
_ERROR = 0.3
"""Deviation of the errors whose effect is measured, of latents that have 1."""


def preserve_variance(module: nn.Module, generator: torch.Generator) -> None:
    """Start every convolution and linear map at a gain of one; their biases at zero."""
    for layer in module.modules():
        if isinstance(layer, nn.Conv3d | nn.Linear):
            std = layer.weight[0].numel() ** -0.5
            nn.init.normal_(layer.weight, std=std, generator=generator)
            nn.init.zeros_(layer.bias)


class _Trained:
    """The VAE with its optimizer."""

    def __init__(self, vae: AutoencoderKLHunyuanVideo, config: TrainingConfig) -> None:
        self._vae = vae
        self._optimizer = MatrixOptimizer(
            *matrices_and_vectors([vae]), config.vae_matrix_rate, config.vae_vector_rate
        )
        self.step = self._optimizer.step

    def state(self) -> dict[str, Any]:
        """All that `load` needs to go on."""
        return {"vae": self._vae.state_dict(), "optimizer": self._optimizer.state()}

    def load(self, state: dict[str, Any]) -> None:
        """Go on from a state."""
        self._vae.load_state_dict(state["vae"])
        self._optimizer.load(state["optimizer"])


def vae_steps(config: TrainingConfig) -> int:
    """Of all kinds of batches."""
    return config.image_steps + config.crop_steps + config.vae_steps


def train_vae(
    vae: AutoencoderKLHunyuanVideo,
    config: TrainingConfig,
    device: torch.device,
    checkpoint: Path,
    deadline: float,
) -> dict[str, float]:
    """Train from scratch, in place.

    Returns:
        The last losses by name.

    Raises:
        Interrupted: see `take_steps`.
    """
    generator = torch.Generator("cpu").manual_seed(config.seed)
    preserve_variance(vae, generator)
    vae.to(device).train()
    trained = _Trained(vae, config)
    steps = vae_steps(config)

    def take(inputs: Tensors, first: int) -> Tensors:
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            parts = _losses(vae, inputs, first, config)
        sum(parts.values()).backward()
        trained.step(inputs["share"])
        return {name: part.detach() for name, part in parts.items()}

    def make(step: int) -> tuple[Tensors, dict[str, Any]]:
        plan = _plan(step, config)
        inputs = _draw(plan, device)
        height, width = (side // 8 for side in inputs["pixels"].shape[-2:])
        shape = (len(plan.scenes), vae.config.latent_channels, plan.frames // 4 + 1, height, width)
        noise = torch.Generator(device).manual_seed(config.seed * 10_000_019 + step)
        inputs["noise"] = torch.randn(shape, generator=noise, device=device)
        inputs["share"] = torch.tensor(_rate_share(step, steps), device=device)
        return inputs, {"first": plan.decoded_from}

    losses = take_steps("VAE", steps, trained, make, take, device, checkpoint, deadline)
    vae.eval()
    return losses


def _rate_share(step: int, steps: int) -> float:
    """Of the rate: a short rise, and a cosine to zero."""
    return min(1.0, (step + 1) / 50) * (0.5 + 0.5 * math.cos(math.pi * step / steps))


@dataclass(frozen=True)
class _Plan:
    """What a batch shows."""

    scenes: list[Scene]
    first: list[int]
    """Frame of each scene that its clip begins with."""
    frames: int
    crop: int | None
    """Pixels a side, around the subject."""
    decoded_from: int
    """The first latent frame to decode."""


def _plan(step: int, config: TrainingConfig) -> _Plan:
    rng = random.Random(f"{config.seed} vae {step}")
    clips_from = config.image_steps
    frames = 1 if step < clips_from else rng.choice(config.vae_lengths)
    crop = config.crop_side if clips_from <= step < clips_from + config.crop_steps else None
    size = SIZES[0] if crop else rng.choices(SIZES, (3, 1, 1))[0]
    share = 1 if crop is None else crop**2 / (size[0] * size[1])
    count = max(int(config.vae_frames / share) // frames, 1)
    return _Plan(
        scenes=[
            sample_scene(_VAE_SEED + rng.randrange(_VAE_SEED), size=size, still_share=0.1)
            for _ in range(count)
        ],
        # Later, most scenes rest.
        first=[rng.randrange(_LAST_BEGIN) for _ in range(count)],
        frames=frames,
        crop=crop,
        # Sections are decoded from the middle of a video too: then the first latent frame gives
        # only the last of its four frames.
        decoded_from=(frames // 4 + 1) // 2 if frames > 1 and rng.random() < 0.4 else 0,
    )


def _draw(plan: _Plan, device: torch.device) -> Tensors:
    """Clips in [-1, 1] as "pixels", and where their subjects are as "subject"."""
    scenes, frames = plan.scenes, plan.frames
    first = torch.tensor(plan.first)[:, None]
    whole = truth(scenes, _LAST_BEGIN + frames)
    chosen = whole[torch.arange(len(scenes))[:, None], first + torch.arange(frames)]
    pixels = render(scenes, chosen, device).float() / 127.5 - 1
    subject = subject_box(scenes, chosen).to(device)
    clips = {"pixels": pixels, "subject": subject[:, None].float()}
    if plan.crop is None:
        return clips
    height, width = scenes[0].size
    short = min(height, width)
    middle = chosen[:, frames // 2]
    left = _crop_from((middle.x - middle.pan) * short + width / 2, plan.crop, width)
    top = _crop_from(middle.y * short + height / 2, plan.crop, height)
    return {
        name: torch.stack(
            [
                clip[..., y : y + plan.crop, x : x + plan.crop]
                for clip, x, y in zip(of_all, left, top, strict=True)
            ]
        )
        for name, of_all in clips.items()
    }


def _crop_from(centre: torch.Tensor, crop: int, side: int) -> list[int]:
    return (centre - crop / 2).round().clamp(0, side - crop).int().tolist()


def _losses(
    vae: AutoencoderKLHunyuanVideo, inputs: Tensors, first: int, config: TrainingConfig
) -> Tensors:
    posterior = vae.encode(inputs["pixels"]).latent_dist
    latents = posterior.mean + posterior.std * inputs["noise"]
    decoded = vae.decode(latents[:, :, first:], return_dict=False)[0].float()
    error = decoded - inputs["pixels"][:, :, 4 * first :]
    weight = 1 + (config.subject_weight - 1) * inputs["subject"][:, :, 4 * first :]
    mean, logvar = posterior.mean.float(), posterior.logvar.float()
    return {
        "pixels": (weight * (error.abs() + error.square())).mean(),
        "edges": config.gradient_weight * _edges(weight, error),
        "kl": config.kl_weight * 0.5 * (mean.square() + logvar.exp() - 1 - logvar).mean(),
    }


def _edges(weight: torch.Tensor, error: torch.Tensor) -> torch.Tensor:
    across = (weight[..., 1:] * (error[..., 1:] - error[..., :-1]).abs()).mean()
    down = (weight[..., 1:, :] * (error[..., 1:, :] - error[..., :-1, :]).abs()).mean()
    return across + down


@torch.no_grad()
def normalise_latents(
    vae: AutoencoderKLHunyuanVideo, mean: torch.Tensor, std: torch.Tensor
) -> None:
    """Fold into the VAE what makes its latents, times its scaling factor, of mean 0 and variance
    1 in every channel that it uses, and its posterior a point: the transformer learns from means,
    but start images are encoded by a sample.

    Args:
        mean, std: of the unscaled latents as they are, shape [channels].
    """
    gain = 1 / (std * vae.config.scaling_factor)
    channels = len(gain)
    weight, bias = vae.quant_conv.weight, vae.quant_conv.bias
    view = (-1, 1, 1, 1, 1)
    weight[:channels] *= gain.view(view)
    bias[:channels] = (bias[:channels] - mean) * gain
    weight[channels:] = 0
    bias[channels:] = _LEAST_LOGVAR
    back = vae.post_quant_conv
    back.bias += torch.einsum("oi,i->o", back.weight.flatten(1), mean)
    back.weight /= gain.view(1, -1, 1, 1, 1)
    silence_unused(vae)


@torch.no_grad()
def silence_unused(vae: AutoencoderKLHunyuanVideo) -> None:
    """Make the channels of normalised latents that the decoder looks away from zero: a transformer
    would learn to predict them, and nothing of it is seen."""
    back = vae.post_quant_conv.weight
    used = back.flatten(2).norm(dim=(0, 2))
    unused = (used < _UNUSED * used.max()).nonzero()[:, 0]
    vae.quant_conv.weight[unused] = 0
    vae.quant_conv.bias[unused] = 0
    back[:, unused] = 0


@torch.no_grad()
def visibility(vae: AutoencoderKLHunyuanVideo, latents: torch.Tensor) -> torch.Tensor:
    """How much of an error in each channel of latents is seen: the mean square that it changes the
    decoded picture by, against the mean of all channels.

    Args:
        latents: scaled and normalised, shape [clips, 16, frames, height, width].

    Returns:
        float32 on their device, shape [16].
    """
    generator = torch.Generator(latents.device).manual_seed(0)
    decoded = vae_decode(latents, vae).float()
    seen = []
    for channel in range(latents.shape[1]):
        wrong = latents.float().clone()
        error = torch.randn(wrong[:, channel].shape, generator=generator, device=wrong.device)
        wrong[:, channel] += _ERROR * error
        seen.append((vae_decode(wrong, vae).float() - decoded).square().mean())
    changed = torch.stack(seen)
    return changed / changed.mean()


@torch.no_grad()
def fit_latent_rgb(latents: torch.Tensor, pixels: torch.Tensor) -> torch.Tensor:
    """Preview colours by least squares, those of the smallest norm: a channel may be silent.

    Args:
        latents: scaled, shape [clips, 16, frames, height, width].
        pixels: in [0, 1], the same but 3 channels: the mean colour below each latent.

    Returns:
        A row a channel, and the bias, shape [17, 3].
    """
    x = latents.double().movedim(1, -1).flatten(0, -2)
    y = pixels.double().movedim(1, -1).flatten(0, -2)
    x = F.pad(x, (0, 1), value=1.0)
    return (torch.linalg.pinv(x.T @ x, hermitian=True) @ (x.T @ y)).float()
