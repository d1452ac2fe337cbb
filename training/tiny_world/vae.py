"""Stage 1: the VAE."""

import logging
import math
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKLHunyuanVideo
from torch import nn

from training.tiny_world.config import TrainingConfig
from training.tiny_world.optimizer import MatrixOptimizer, matrices_and_vectors
from training.tiny_world.progress import Progress
from training.tiny_world.recorded import Recorded, Tensors, made_ahead
from training.tiny_world.world import SIZES, Scene, render, sample_scene, truth

logger = logging.getLogger(__name__)

_LONGEST = 110


def preserve_variance(module: nn.Module, generator: torch.Generator) -> None:
    """Start every convolution and linear map at a gain of one; their biases at zero."""
    for layer in module.modules():
        if isinstance(layer, nn.Conv3d | nn.Linear):
            std = layer.weight[0].numel() ** -0.5
            nn.init.normal_(layer.weight, std=std, generator=generator)
            nn.init.zeros_(layer.bias)


def train_vae(
    vae: AutoencoderKLHunyuanVideo, config: TrainingConfig, device: torch.device
) -> dict[str, float]:
    """Train from scratch, in place.

    Returns:
        The last losses by name.
    """
    generator = torch.Generator("cpu").manual_seed(config.seed)
    preserve_variance(vae, generator)
    vae.to(device).train()
    optimizer = MatrixOptimizer(
        *matrices_and_vectors([vae]), config.vae_matrix_rate, config.vae_vector_rate
    )
    steps = config.image_steps + config.vae_steps
    progress = Progress("VAE", steps)

    def take(inputs: Tensors, first: int) -> Tensors:
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            parts = _losses(vae, inputs, first, config)
        sum(parts.values()).backward()
        optimizer.step(inputs["share"])
        return {name: part.detach() for name, part in parts.items()}

    noise = torch.Generator(device).manual_seed(config.seed)
    batches = _batches(config, generator)

    def make(step: int) -> tuple[Tensors, int]:
        scenes, frames, first_frames, first = next(batches)
        inputs = _draw(scenes, frames, first_frames, device)
        height, width = scenes[0].size
        shape = (
            len(scenes),
            vae.config.latent_channels,
            (frames + 3) // 4,
            height // 8,
            width // 8,
        )
        inputs["noise"] = torch.randn(shape, generator=noise, device=device)
        inputs["share"] = torch.tensor(_rate_share(step, steps), device=device)
        return inputs, first

    recorded = Recorded(take, device)
    losses: dict[str, float] = {}
    for inputs, first in made_ahead(make, range(steps), device):
        losses = progress.step(recorded(inputs, first=first))
    vae.eval()
    return losses


def _rate_share(step: int, steps: int) -> float:
    """Of the rate: a short rise, and a cosine to zero."""
    return min(1.0, (step + 1) / 50) * (0.5 + 0.5 * math.cos(math.pi * step / steps))


def _batches(
    config: TrainingConfig, generator: torch.Generator
) -> Iterator[tuple[list[Scene], int, torch.Tensor, int]]:
    """Scenes with a number of frames, each clip's first frame, and the first latent frame to
    decode."""
    seed = config.seed * 1_000_003 + 500_000_000
    step = 0
    while True:
        lengths = (1,) if step < config.image_steps else config.vae_lengths
        frames = lengths[step % len(lengths)]
        count = max(config.vae_frames // frames, 1)
        size = SIZES[0] if step % 3 else SIZES[1 + step // 3 % 2]
        scenes = [sample_scene(seed + i, size=size, still_share=0.1) for i in range(count)]
        first_frames = torch.randint(0, _LONGEST - frames, (count,), generator=generator)
        # Sections are decoded from the middle of a video too: then the first latent frame gives
        # only the last of its four frames.
        middle = (frames + 3) // 8 if torch.rand((), generator=generator) < 0.4 else 0
        yield scenes, frames, first_frames, middle
        seed += count
        step += 1


def _draw(scenes: list[Scene], frames: int, first: torch.Tensor, device: torch.device) -> Tensors:
    """Clips in [-1, 1] as "pixels", and where their subjects are as "subject"."""
    whole = truth(scenes, _LONGEST)
    chosen = whole[torch.arange(len(scenes))[:, None], first[:, None] + torch.arange(frames)]
    chosen = chosen.to(device)
    pixels = render(scenes, chosen, device).float() / 127.5 - 1
    height, width = scenes[0].size
    short = min(height, width)
    x = (torch.arange(width, device=device) + 0.5 - width / 2) / short
    y = (torch.arange(height, device=device) + 0.5 - height / 2) / short
    far_x = (x + (chosen.pan - chosen.x)[..., None]).abs()
    far_y = (y - chosen.y[..., None]).abs()
    reach = 1.2 * chosen.radius[..., None]
    subject = (far_y < reach)[..., :, None] & (far_x < reach)[..., None, :]
    return {"pixels": pixels, "subject": subject[:, None].float()}


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
    1 in every channel.

    Args:
        mean, std: of the unscaled latents as they are, shape [channels].
    """
    gain = 1 / (std * vae.config.scaling_factor)
    channels = len(gain)
    weight, bias = vae.quant_conv.weight, vae.quant_conv.bias
    view = (-1, 1, 1, 1, 1)
    weight[:channels] *= gain.view(view)
    bias[:channels] = (bias[:channels] - mean) * gain
    bias[channels:] += 2 * gain.log()
    back = vae.post_quant_conv
    back.bias += torch.einsum("oi,i->o", back.weight.flatten(1), mean)
    back.weight /= gain.view(1, -1, 1, 1, 1)


@torch.no_grad()
def fit_latent_rgb(latents: torch.Tensor, pixels: torch.Tensor) -> torch.Tensor:
    """Preview colours by least squares.

    Args:
        latents: scaled, shape [clips, 16, frames, height, width].
        pixels: in [0, 1], the same but 3 channels: the mean colour below each latent.

    Returns:
        A row a channel, and the bias, shape [17, 3].
    """
    x = latents.float().movedim(1, -1).flatten(0, -2)
    y = pixels.float().movedim(1, -1).flatten(0, -2)
    return torch.linalg.lstsq(F.pad(x, (0, 1), value=1.0), y).solution
