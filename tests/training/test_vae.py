import copy
import math
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from training.tiny_world.config import MINIATURE_TRAINING, TrainingConfig
from training.tiny_world.loop import Interrupted
from training.tiny_world.model import MINIATURE, build
from training.tiny_world.vae import (
    _draw,
    _plan,
    fit_latent_rgb,
    normalise_latents,
    preserve_variance,
    silence_unused,
    train_vae,
    visibility,
)

CPU = torch.device("cpu")


@pytest.fixture
def vae() -> nn.Module:
    return build(MINIATURE, seed=3)["vae"]


def test_layers_start_at_a_gain_of_one():
    layer = nn.Conv3d(64, 400, 3)
    preserve_variance(layer, torch.Generator().manual_seed(0))
    out = layer(torch.randn(1, 64, 8, 8, 8))
    assert out.std().item() == pytest.approx(1, abs=0.05)
    assert not layer.bias.any()


@torch.no_grad()
def test_normalised_latents_have_unit_variance_and_decode_alike(vae: nn.Module):
    clips = torch.rand(4, 3, 5, 32, 32) * 2 - 1
    before = vae.encode(clips).latent_dist
    decoded = vae.decode(before.mean).sample
    dims = (0, 2, 3, 4)
    normalise_latents(vae, before.mean.mean(dims), before.mean.std(dims))

    after = vae.encode(clips).latent_dist
    scaled = after.mean * vae.config.scaling_factor
    torch.testing.assert_close(scaled.mean(dims), torch.zeros(16), atol=1e-4, rtol=0)
    torch.testing.assert_close(scaled.std(dims), torch.ones(16), atol=1e-4, rtol=0)
    torch.testing.assert_close(vae.decode(after.mean).sample, decoded, atol=1e-4, rtol=1e-3)
    # A sample, which is how start images are encoded, is the mean.
    torch.testing.assert_close(after.sample(), after.mean, atol=1e-5, rtol=0)


@torch.no_grad()
def test_channels_without_a_use_become_zero(vae: nn.Module):
    clips = torch.rand(4, 3, 5, 32, 32) * 2 - 1
    # As a VAE leaves them: its posterior carries next to nothing, and the decoder looks away.
    vae.quant_conv.weight[3] *= 1e-3
    vae.post_quant_conv.weight[:, 3] *= 1e-4
    before = vae.encode(clips).latent_dist.mean
    decoded = vae.decode(before).sample
    dims = (0, 2, 3, 4)
    normalise_latents(vae, before.mean(dims), before.std(dims))
    after = vae.encode(clips).latent_dist.mean
    std = after.std(dims) * vae.config.scaling_factor
    assert not after[:, 3].any()
    torch.testing.assert_close(std, (torch.arange(16) != 3).float(), atol=1e-3, rtol=0)
    torch.testing.assert_close(vae.decode(after).sample, decoded, atol=1e-3, rtol=1e-2)
    # A training that takes the VAE of another does it again, to no effect.
    state = {name: x.clone() for name, x in vae.state_dict().items()}
    silence_unused(vae)
    assert all(torch.equal(x, state[name]) for name, x in vae.state_dict().items())


@torch.no_grad()
def test_what_the_decoder_makes_more_of_is_seen_more(vae: nn.Module):
    latents = torch.randn(2, 16, 1, 4, 4, generator=torch.Generator().manual_seed(1))
    vae.post_quant_conv.weight[:, 5] = 0
    vae.post_quant_conv.weight[:, 6] *= 3
    seen = visibility(vae, latents)
    assert seen.shape == (16,)
    assert seen.mean().item() == pytest.approx(1)
    assert seen[5] == 0 and seen.argmax() == 6


def test_preview_colours_are_the_least_squares_fit():
    latents = torch.randn(2, 16, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    truth = torch.linspace(-0.3, 0.4, 17 * 3).view(17, 3)
    pixels = torch.einsum("bcfhw,co->bofhw", latents, truth[:16]) + truth[16].view(1, 3, 1, 1, 1)
    torch.testing.assert_close(fit_latent_rgb(latents, pixels), truth, atol=1e-5, rtol=1e-4)
    latents[:, 5], truth[5] = 0, 0
    pixels = torch.einsum("bcfhw,co->bofhw", latents, truth[:16]) + truth[16].view(1, 3, 1, 1, 1)
    torch.testing.assert_close(fit_latent_rgb(latents, pixels), truth, atol=1e-5, rtol=1e-4)


CONFIG = TrainingConfig(
    image_steps=1, crop_steps=1, vae_steps=1, vae_frames=20, vae_lengths=(5,), crop_side=64
)


@pytest.mark.parametrize(("step", "clips", "frames", "side"), [(0, 20, 1, None), (1, 16, 5, 64)])
def test_batches_go_from_images_to_squares(step: int, clips: int, frames: int, side: int | None):
    plan = _plan(step, CONFIG)
    assert plan == _plan(step, CONFIG)
    assert plan != _plan(step, replace(CONFIG, seed=CONFIG.seed + 1))
    drawn = _draw(plan, CPU)
    height, width = (side, side) if side else plan.scenes[0].size
    assert drawn["pixels"].shape == (clips, 3, frames, height, width)
    assert drawn["subject"].shape == (clips, 1, frames, height, width)
    assert drawn["pixels"].amin() >= -1
    assert drawn["pixels"].amax() <= 1


def test_squares_are_around_the_subject():
    in_square = _draw(_plan(1, CONFIG), CPU)["subject"].mean(dim=(1, 2, 3, 4))
    in_frame = _draw(replace(_plan(1, CONFIG), crop=None), CPU)["subject"].mean(dim=(1, 2, 3, 4))
    # Four times the share, but for those that reach out of the square or the frame.
    assert (in_square[in_frame > 0] > 2.5 * in_frame[in_frame > 0]).float().mean() > 0.9


def test_an_interrupted_training_ends_as_a_whole_one(vae: nn.Module, tmp_path: Path):
    config = replace(MINIATURE_TRAINING, image_steps=1, crop_steps=1, vae_steps=1)
    whole, pieces = vae, copy.deepcopy(vae)
    losses = train_vae(whole, config, CPU, tmp_path / "whole.pt", math.inf)
    assert losses.keys() == {"pixels", "edges", "kl"}

    over = time.monotonic() - 1
    for step in range(2):
        with pytest.raises(Interrupted, match=f"VAE: {step + 1} of 3 steps"):
            train_vae(pieces, config, CPU, tmp_path / "pieces.pt", over)
    train_vae(pieces, config, CPU, tmp_path / "pieces.pt", over)
    for (name, a), b in zip(whole.state_dict().items(), pieces.state_dict().values(), strict=True):
        assert torch.equal(a, b), name
