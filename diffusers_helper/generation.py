"""A whole video: image and prompt to conditions, to sections, to an MP4. Knows no page."""

import json
import logging
import time
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from os import PathLike
from pathlib import Path
from threading import Event as Flag
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps

from diffusers_helper import __version__
from diffusers_helper.bucket_tools import find_nearest_bucket
from diffusers_helper.clip_vision import hf_clip_vision_encode
from diffusers_helper.errors import ImageError, NonFiniteError
from diffusers_helper.hunyuan import (
    TEXT_LENGTH,
    DecodedPieces,
    encode_prompt_conds,
    vae_decode,
    vae_decode_fake,
    vae_encode,
)
from diffusers_helper.k_diffusion.uni_pc_fm import Step, unipc_steps
from diffusers_helper.memory import bring, choose_tiling
from diffusers_helper.models import Models
from diffusers_helper.pipelines.k_diffusion_hunyuan import sample_hunyuan
from diffusers_helper.prompt_gate import section_gates, weakened
from diffusers_helper.prompts import TimedPrompt, in_force
from diffusers_helper.sections import (
    FPS,
    LatentHistory,
    Section,
    SectionOrder,
    plan_sections,
    section_frames,
)
from diffusers_helper.settings import GenerationSettings
from diffusers_helper.utils import crop_or_pad_yield_mask, resize_and_center_crop
from diffusers_helper.video import GrowingVideo

logger = logging.getLogger(__name__)

MIN_IMAGE_SIDE = 32


@dataclass(frozen=True)
class Progress:
    """Something is under way."""

    stage: str
    """What, in a few words for the user."""
    section: int = 0
    """From 1; 0 before the first."""
    sections: int = 0
    step: int = 0
    """Steps of the section that are done."""
    steps: int = 0
    seconds_left: float | None = None
    """Until the whole video is done; None until there is something to go by."""
    preview: np.ndarray | None = None
    """The section's latent frames side by side, uint8, shape [height, width, 3]."""


@dataclass(frozen=True)
class SectionFinished:
    """The MP4 at `path` is whole and one section longer."""

    path: Path
    section: int
    sections: int
    frames: int


@dataclass(frozen=True)
class Done:
    """The end. Without a single section there is no MP4 and `path` is None."""

    path: Path | None
    frames: int
    stopped: bool


Event = Progress | SectionFinished | Done


def open_image(source: Any) -> np.ndarray:
    """The input image as pixels.

    Args:
        source: a file, a PIL image, or pixels: uint8, shape [height, width, 3].

    Returns:
        uint8, shape [height, width, 3]; upright, transparency on white.

    Raises:
        ImageError: there is none, it cannot be read, or a side is under 32 pixels.
    """
    if source is None:
        raise ImageError("There is no image to start from: choose one first.")
    try:
        if isinstance(source, str | PathLike):
            source = Image.open(source)
        elif isinstance(source, np.ndarray):
            source = Image.fromarray(source)
        if source.mode.startswith("I"):  # 16 bits, which Pillow would clip instead of scaling
            source = Image.fromarray((np.asarray(source) // 257).clip(0, 255).astype(np.uint8))
        image = ImageOps.exif_transpose(source).convert("RGBA")
    except FileNotFoundError as error:
        raise ImageError(f"There is no image at {source}.") from error
    except Image.DecompressionBombError as error:
        raise ImageError("The image has too many pixels: scale it down first.") from error
    except (
        OSError,
        RuntimeError,
        SyntaxError,
        ValueError,
        TypeError,
        AttributeError,
    ) as error:
        # What Pillow raises depends on the format; the last three are for what is no image at all.
        raise ImageError("This file cannot be read as an image: try a PNG or JPEG.") from error
    if min(image.size) < MIN_IMAGE_SIDE:
        raise ImageError(
            f"The image is too small ({image.width} x {image.height} pixels): both sides must have "
            f"at least {MIN_IMAGE_SIDE}."
        )
    white = Image.new("RGBA", image.size, "white")
    return np.asarray(Image.alpha_composite(white, image).convert("RGB"))


def describe(
    settings: GenerationSettings, models: Models, order: SectionOrder, width: int, height: int
) -> dict[str, Any]:
    """What a video was made with, to be kept with it."""
    return {
        "software": "FramePack Step-Adaptive CFG",
        "version": __version__,
        "model": models.name,
        "section_order": order.value,
        "width": width,
        "height": height,
        **asdict(settings),
    }


@torch.inference_mode()
def generate(
    models: Models,
    image: np.ndarray,
    settings: GenerationSettings,
    order: SectionOrder,
    output: Path,
    stop: Flag,
) -> Iterator[Event]:
    """Make a video, section by section.

    Args:
        models: as loaded.
        image: to start from, see `open_image`.
        settings: see `GenerationSettings`.
        order: of the sections, as the transformer was trained.
        output: of the MP4; a JSON of the settings is written beside it.
        stop: set it to end; at most one more step is run. What was finished stays.

    Yields:
        Progress and finished sections, and `Done` last.

    Raises:
        NonFiniteError: the model returned NaN or infinity. Finished sections stay.
        OSError: the MP4 cannot be written.
    """
    window = settings.latent_window_size
    height, width = find_nearest_bucket(*image.shape[:2], resolution=models.resolution)
    sections = plan_sections(order, settings.total_second_length, window)
    pace = _Pace(len(sections), settings.steps)

    yield Progress("Reading the prompt", sections=len(sections))
    timed = settings.prompts
    prompts = [in_force(timed, section.middle) for section in sections]
    for prompt in timed:
        if prompt not in prompts:
            logger.warning(
                "Not used, too short for a section: [%gs: %s]", prompt.start, prompt.text
            )
    conditions = _encode_prompts(models, settings, prompts)
    pooled = [conditions[prompt.text]["prompt_poolers"] for prompt in prompts]
    gates = section_gates(pooled, settings.prompt_gate)
    yield Progress("Looking at the image", sections=len(sections))
    start, embeddings = _encode_image(models, settings, image, width, height)

    history = LatentHistory(order, window, start)
    pieces = DecodedPieces(history.shared)
    generator = torch.Generator("cpu").manual_seed(settings.seed)
    metadata = describe(settings, models, order, width, height)
    with GrowingVideo(
        output,
        fps=FPS,
        crf=settings.mp4_crf,
        metadata={"comment": json.dumps(metadata)},
        at_start=order is SectionOrder.INVERTED,
    ) as video:
        for section, prompt, gate in zip(sections, prompts, gates, strict=True):
            if stop.is_set():
                break
            latents = None
            shown = (
                conditions[prompt.text]
                | weakened(history.context(section), gate)
                | {"image_embeddings": embeddings}
            )
            for step in _sample(models, settings, shown, width, height, generator):
                pace.step_done()
                latents = step["denoised"]
                _check_finite(latents, section)
                yield Progress(
                    "Denoising",
                    section=section.number,
                    sections=section.count,
                    step=step["i"] + 1,
                    steps=settings.steps,
                    seconds_left=pace.seconds_left(),
                    preview=_preview(latents, models.latent_rgb),
                )
                if stop.is_set():
                    break
            if stop.is_set():
                break
            yield Progress(
                "Decoding",
                section=section.number,
                sections=section.count,
                step=settings.steps,
                steps=settings.steps,
                seconds_left=pace.seconds_left(),
            )
            to_decode = history.add(section, latents)
            bring(models.vae, models, settings.gpu_memory_preservation)
            choose_tiling(models)
            frames = vae_decode(to_decode, models.vae, pieces)
            _check_finite(frames, section)
            video.add(frames, overlap=section_frames(window))
            output.with_suffix(".json").write_text(
                json.dumps(metadata, indent=2, ensure_ascii=False), encoding="utf-8"
            )
            pace.section_done()
            yield SectionFinished(output, section.number, section.count, video.frames)
        else:
            yield Done(output, video.frames, stopped=False)
            return
        yield Done(output if video.frames else None, video.frames, stopped=True)


def _encode_prompts(
    models: Models, settings: GenerationSettings, prompts: Iterable[TimedPrompt]
) -> dict[str, dict[str, torch.Tensor]]:
    """What the transformer is told, by the text of the prompt in force."""
    small, large = models.text_encoder_2, models.text_encoder
    bring(small, models, settings.gpu_memory_preservation)
    bring(large, models, settings.gpu_memory_preservation, beside=[small])

    def encode(prompt: str) -> tuple[torch.Tensor, ...]:
        embeds, pooled = encode_prompt_conds(
            prompt,
            models.text_encoder,
            models.text_encoder_2,
            models.tokenizer,
            models.tokenizer_2,
        )
        return *crop_or_pad_yield_mask(embeds, TEXT_LENGTH), pooled

    names = ("prompt_embeds", "prompt_embeds_mask", "prompt_poolers")
    texts = dict.fromkeys(prompt.text for prompt in prompts)
    conditions = {text: dict(zip(names, encode(text), strict=True)) for text in texts}
    negative = {}
    if settings.cfg != 1.0:
        encoded = encode(settings.n_prompt)
        negative = {f"negative_{n}": c for n, c in zip(names, encoded, strict=True)}
    return {text: condition | negative for text, condition in conditions.items()}


def _encode_image(
    models: Models, settings: GenerationSettings, image: np.ndarray, width: int, height: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Latents and embeddings of the image; latents rest on the CPU in float32."""
    image = resize_and_center_crop(image, target_width=width, target_height=height)
    bring(models.image_encoder, models, settings.gpu_memory_preservation)
    embeddings = hf_clip_vision_encode(image, models.feature_extractor, models.image_encoder)
    pixels = torch.from_numpy(image.copy()).float() / 127.5 - 1
    bring(models.vae, models, settings.gpu_memory_preservation)
    # A generator of its own, so that the noise of the sections is FramePack's for the same seed.
    generator = torch.Generator("cpu").manual_seed(settings.seed)
    start = vae_encode(pixels.permute(2, 0, 1)[None, :, None], models.vae, generator)
    return start.float().cpu(), embeddings.last_hidden_state


def _sample(
    models: Models,
    settings: GenerationSettings,
    conditions: dict[str, torch.Tensor],
    width: int,
    height: int,
    generator: torch.Generator,
) -> Iterator[Step]:
    """The solver's steps of one section."""
    transformer = models.transformer
    bring(transformer, models, settings.gpu_memory_preservation, beside=[models.vae])
    transformer.initialize_teacache(settings.use_teacache, num_steps=settings.steps)

    def stepwise(model: Any, noise: torch.Tensor, sigmas: torch.Tensor, **kwargs) -> Iterator[Step]:
        return unipc_steps(model, noise, sigmas, kwargs["extra_args"])

    return sample_hunyuan(
        transformer,
        sampler=stepwise,
        width=width,
        height=height,
        frames=section_frames(settings.latent_window_size),
        real_guidance_scale=settings.cfg,
        distilled_guidance_scale=settings.gs,
        guidance_rescale=settings.rs,
        num_inference_steps=settings.steps,
        generator=generator,
        dtype=transformer.dtype,
        device=models.device,
        adaptive_cfg_beta=settings.adaptive_cfg_beta,
        adaptive_cfg_min=settings.adaptive_cfg_min,
        low_pass_factor=settings.low_pass_factor,
        low_pass_frames=settings.low_pass_frames,
        low_pass_sigma=settings.low_pass_sigma,
        history_low_pass=settings.history_low_pass,
        **{name: condition.to(models.device) for name, condition in conditions.items()},
    )


def _check_finite(x: torch.Tensor, section: Section) -> None:
    if not torch.isfinite(x).all():
        raise NonFiniteError(
            f"The model returned numbers that are no picture (NaN or infinity) in section "
            f"{section.number}, so the job was stopped: try another seed, TeaCache off, or lower "
            f"guidance."
        )


def _preview(latents: torch.Tensor, latent_rgb: torch.Tensor | None) -> np.ndarray:
    frames = (vae_decode_fake(latents[0:1].float(), latent_rgb)[0] * 255).to(torch.uint8)
    return frames.permute(2, 1, 3, 0).flatten(1, 2).cpu().numpy()


class _Pace:
    """Guesses the time left from the steps and the ends of sections so far."""

    def __init__(self, sections: int, steps: int) -> None:
        self._steps_left = sections * steps
        self._ends_left = sections
        self._step_times: list[float] = []
        self._end_times: list[float] = []
        self._last = time.monotonic()

    def step_done(self) -> None:
        self._steps_left -= 1
        self._step_times.append(self._lap())

    def section_done(self) -> None:
        self._ends_left -= 1
        self._end_times.append(self._lap())

    def seconds_left(self) -> float | None:
        """None before the second step: the first includes all kinds of starting up."""
        if len(self._step_times) < 2:
            return None
        step = float(np.median(self._step_times[1:]))
        end = float(np.median(self._end_times)) if self._end_times else 0.0
        return self._steps_left * step + self._ends_left * end

    def _lap(self) -> float:
        now = time.monotonic()
        elapsed, self._last = now - self._last, now
        return elapsed
