import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from diffusers_helper.bucket_tools import find_nearest_bucket
from diffusers_helper.generation import Progress, generate, open_image
from diffusers_helper.gradio.plot import guidance_note, guidance_table
from diffusers_helper.models import Models
from diffusers_helper.pipelines.k_diffusion_hunyuan import sample_hunyuan
from diffusers_helper.sections import SectionOrder, section_frames
from diffusers_helper.settings import GenerationSettings

WIDE, TALL, SQUARE, LOW = (200, 90), (90, 200), (64, 64), (500, 31)


@pytest.fixture
def draw(tmp_path: Path) -> Callable[[tuple[int, int]], str]:
    """Makes the file of an image of a size."""

    def draw(size: tuple[int, int]) -> str:
        path = tmp_path / f"{size}.png"
        Image.new("RGB", size).save(path)
        return str(path)

    return draw


class Recorder:
    """Predicts velocity 1 for the prompt and 0 for the negative prompt, and notes its guidance."""

    device = torch.device("cpu")

    def __init__(self) -> None:
        self.guidance: list[float] = []
        self.sigmas: list[float] = []

    def __call__(self, hidden_states, timestep, encoder_hidden_states, guidance, **_):
        self.guidance.append(guidance.item() / 1000)
        self.sigmas.append(timestep.item() / 1000)
        return (torch.full_like(hidden_states, encoder_hidden_states.mean()),)


def text(value: float) -> dict[str, torch.Tensor]:
    return {
        "prompt_embeds": torch.full((1, 3, 4), value),
        "prompt_embeds_mask": torch.ones(1, 3, dtype=torch.long),
        "prompt_poolers": torch.full((1, 5), value),
    }


def sample(
    transformer: Any,
    size: tuple[int, int],
    settings: GenerationSettings,
    resolution: int,
    **more: Any,
) -> Any:
    height, width = find_nearest_bucket(size[1], size[0], resolution=resolution)
    return sample_hunyuan(
        transformer,
        width=width,
        height=height,
        frames=section_frames(settings.latent_window_size),
        real_guidance_scale=settings.cfg,
        distilled_guidance_scale=settings.gs,
        num_inference_steps=settings.steps,
        generator=torch.Generator().manual_seed(0),
        dtype=torch.float32,
        adaptive_cfg_beta=settings.adaptive_cfg_beta,
        adaptive_cfg_min=settings.adaptive_cfg_min,
        **text(1.0),
        **{f"negative_{name}": value for name, value in text(0.0).items()},
        **more,
    )


def settings_for(beta: float, **changes: Any) -> GenerationSettings:
    return GenerationSettings(adaptive_cfg_beta=beta, **({"latent_window_size": 2} | changes))


# What is drawn is what runs


@pytest.mark.parametrize(
    ("settings", "size", "resolution"),
    [
        (settings_for(0.0), SQUARE, 128),
        (settings_for(0.7), SQUARE, 128),
        (settings_for(0.7), WIDE, 128),
        (settings_for(0.7, steps=3, latent_window_size=1), SQUARE, 128),
        (settings_for(1.0, adaptive_cfg_min=4.5, steps=7), TALL, 128),
        (settings_for(0.35, gs=3.3, adaptive_cfg_min=9.0), SQUARE, 128),
        (settings_for(0.7, gs=1.0, steps=1), SQUARE, 128),
        (settings_for(0.7, steps=5, latent_window_size=9), TALL, 640),
    ],
)
def test_the_table_is_what_the_transformer_receives(
    draw: Callable, settings: GenerationSettings, size: tuple[int, int], resolution: int
):
    transformer = Recorder()
    sample(transformer, size, settings, resolution)
    table = guidance_table(resolution, draw(size), settings)
    assert list(table["step"]) == list(range(1, settings.steps + 1))
    assert list(table["guidance"]) == pytest.approx(transformer.guidance, rel=1e-5)
    assert list(table["sigma"]) == pytest.approx(transformer.sigmas, rel=1e-5)


@pytest.mark.parametrize(
    "settings",
    [
        settings_for(0.0, cfg=2.0),
        settings_for(0.7, cfg=2.0),
        settings_for(0.7, cfg=6.0, gs=3.0, steps=5),
        settings_for(1.0, cfg=1.5, adaptive_cfg_min=3.0),
    ],
)
def test_with_true_cfg_the_table_is_its_scale(settings: GenerationSettings):
    applied = []

    def sampler(model, noise, sigmas, extra_args, callback):
        # Guided velocity is 0 + scale * (1 - 0).
        for sigma in sigmas[:-1]:
            denoised = model(noise, sigma[None], **extra_args)
            applied.append(((noise - denoised) / sigma).mean().item())

    transformer = Recorder()
    sample(transformer, SQUARE, settings, 128, sampler=sampler)
    table = guidance_table(128, None, settings)
    assert list(table["guidance"]) == pytest.approx(applied, rel=1e-4)
    assert transformer.guidance == pytest.approx([settings.gs] * 2 * settings.steps)


@pytest.mark.parametrize("order", SectionOrder)
@pytest.mark.parametrize("size", [WIDE, TALL])
def test_the_table_is_what_a_whole_generation_uses(
    miniature: Models, tmp_path: Path, draw: Callable, order: SectionOrder, size: tuple[int, int]
):
    received = []

    def note(module: Any, args: Any, kwargs: dict[str, Any]) -> None:
        received.append(kwargs["guidance"].item() / 1000)

    settings = settings_for(0.6, steps=3, use_teacache=False)
    file = draw(size)
    table = guidance_table(miniature.resolution, file, settings)
    hook = miniature.transformer.register_forward_pre_hook(note, with_kwargs=True)
    stop = threading.Event()
    try:
        image, output = open_image(file), tmp_path / "video.mp4"
        for event in generate(miniature, image, settings, order, output, stop):
            if isinstance(event, Progress) and event.step == settings.steps:
                stop.set()
    finally:
        hook.remove()
    assert received == pytest.approx(list(table["guidance"]), rel=1e-5)


def test_the_defaults_are_the_ones_the_notes_speak_of():
    table = guidance_table(640, None, GenerationSettings(adaptive_cfg_beta=0.7))
    assert (table["sigma"] > 0.8).sum() == 16
    assert table["sigma"].iloc[-1] == pytest.approx(0.226, abs=5e-4)
    assert table["guidance"].iloc[0] == pytest.approx(3.7)
    assert table["guidance"].iloc[-1] == pytest.approx(10 - 9 * 0.7 * 0.226, abs=0.005)


# Images


def test_no_image_counts_as_a_square(draw: Callable):
    settings = settings_for(0.7)
    without = guidance_table(128, None, settings)
    assert without.equals(guidance_table(128, draw(SQUARE), settings))
    assert not without.equals(guidance_table(128, draw(WIDE), settings))


@pytest.mark.parametrize("content", [b"no picture", b"", b"\x89PNG\r\n\x1a\n broken"])
def test_a_broken_image_counts_as_none(tmp_path: Path, content: bytes):
    path = tmp_path / "image.png"
    path.write_bytes(content)
    settings = settings_for(0.7)
    expected = guidance_table(128, None, settings)
    assert guidance_table(128, str(path), settings).equals(expected)


def test_a_missing_image_counts_as_none():
    settings = settings_for(0.7)
    expected = guidance_table(128, None, settings)
    assert guidance_table(128, "nowhere.png", settings).equals(expected)


def test_an_image_that_is_too_small_counts_as_none(draw: Callable):
    settings = settings_for(0.7)
    expected = guidance_table(128, None, settings)
    assert guidance_table(128, draw(LOW), settings).equals(expected)


# The note


def note_for(settings: GenerationSettings) -> str:
    return guidance_note(guidance_table(128, None, settings), settings)


@pytest.mark.parametrize(
    ("settings", "name", "base"),
    [
        (settings_for(0.7), "Distilled CFG Scale", 10.0),
        (settings_for(0.7, gs=8.5, adaptive_cfg_min=2.0), "Distilled CFG Scale", 8.5),
        (settings_for(0.3, cfg=2.0), "CFG Scale", 2.0),
        (settings_for(0.5, cfg=4.0, gs=1.0, steps=4), "CFG Scale", 4.0),
    ],
)
def test_the_notes_figures(settings: GenerationSettings, name: str, base: float):
    sigmas = []
    sample(
        Recorder(), SQUARE, settings, 128, sampler=lambda _, noise, s, **kwargs: sigmas.extend(s)
    )
    sigmas = torch.tensor(sigmas[:-1])
    minimum, beta = settings.adaptive_cfg_min, settings.adaptive_cfg_beta
    scales = minimum + (base - minimum) * (1 - beta * sigmas)
    note = note_for(settings)
    assert f"**{name}** {base:.2f}:" in note
    assert f"{scales[0]:.2f} at the first step, {scales[-1]:.2f} at the last" in note
    assert f"{scales.mean():.2f} on average" in note
    assert f"above 0.8 for {(sigmas > 0.8).sum()} of {settings.steps} steps" in note
    assert f"ends at {sigmas[-1]:.3f}" in note


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({}, "**Distilled CFG Scale** 10.00 at every step"),
        ({"gs": 4.25}, "**Distilled CFG Scale** 4.25 at every step"),
        ({"cfg": 2.5}, "**CFG Scale** 2.50 at every step"),
    ],
)
def test_beta_0_is_told_to_be_constant(changes: dict[str, float], told: str):
    note = note_for(settings_for(0.0, **changes))
    assert note.startswith("Constant")
    assert told in note


@pytest.mark.parametrize(
    ("beta", "warned"), [(0.0, False), (0.5, False), (0.8, False), (0.85, True), (1.0, True)]
)
def test_a_high_beta_is_warned_of(beta: float, warned: bool):
    assert ("quality may drop" in note_for(settings_for(beta))) is warned


@pytest.mark.parametrize("beta", [0.0, 0.3, 1.0])
def test_what_was_measured_is_told_where_beta_is_used(beta: float):
    assert ("On the small model" in note_for(settings_for(beta))) is (beta > 0)
