"""Clips of many scenes at once, as `generation.generate` makes one."""

from collections.abc import Sequence

import torch

from diffusers_helper.clip_vision import hf_clip_vision_encode
from diffusers_helper.hunyuan import DecodedPieces, encode_prompt_conds, vae_decode, vae_encode
from diffusers_helper.models import Models
from diffusers_helper.pipelines.k_diffusion_hunyuan import sample_hunyuan
from diffusers_helper.prompt_gate import section_gates, weakened
from diffusers_helper.prompts import in_force, timed_prompts
from diffusers_helper.sections import LatentHistory, SectionOrder, plan_sections, section_frames
from diffusers_helper.utils import crop_or_pad_yield_mask
from diffusers_helper.video import soft_append_bcthw
from training.tiny_world.world import Scene, render, truth

_TEXT_LENGTH = 64
"""Enough for any caption; `generate` pads to more, to the same effect."""
_DECODED_AT_ONCE = 16


@torch.inference_mode()
def sample_clips(
    models: Models,
    scenes: Sequence[Scene],
    captions: Sequence[str],
    *,
    order: SectionOrder = SectionOrder.FORWARD,
    seconds: float = 2.0,
    steps: int = 25,
    window: int = 9,
    cfg: float = 1.0,
    gs: float = 1.0,
    adaptive_cfg_beta: float = 0.0,
    low_pass_factor: float = 1.0,
    low_pass_frames: str = "both",
    low_pass_sigma: float = 0.9,
    history_low_pass: float = 0.0,
    prompt_gate: float = 0.0,
    seed: int = 0,
) -> torch.Tensor:
    """Make a clip of each scene's first frame and caption.

    Args:
        models: as loaded, on their device.
        scenes: of one size.
        captions: one a scene; timed or not, see `timed_prompts`.
        order: of the sections.
        seconds, steps, window, cfg, gs, adaptive_cfg_beta, low_pass_factor, low_pass_frames,
            low_pass_sigma, history_low_pass, prompt_gate: see `GenerationSettings`.
        seed: of the noise.

    Returns:
        uint8, shape [clips, 3, frames, height, width].
    """
    device, vae = models.device, models.vae
    height, width = scenes[0].size
    first = render(scenes, truth(scenes, 1), device)
    generator = torch.Generator("cpu").manual_seed(seed)
    start = vae_encode(first.float() / 127.5 - 1, vae, generator).float().cpu()

    sections = plan_sections(order, seconds, window)
    timed = [timed_prompts(caption, seconds) for caption in captions]
    told = [tuple(in_force(t, section.middle).text for t in timed) for section in sections]
    texts = {some: encode_captions(models, some) for some in dict.fromkeys(told)}
    gates = section_gates([texts[some]["prompt_poolers"] for some in told], prompt_gate)
    conditions = {"image_embeddings": torch.cat([encode_look(models, image) for image in first])}
    if cfg != 1.0:
        nothing = encode_captions(models, [""] * len(scenes))
        conditions |= {f"negative_{name}": value for name, value in nothing.items()}
    models.transformer.initialize_teacache(False)
    history = LatentHistory(order, window, start)
    pieces = [DecodedPieces(history.shared) for _ in range(0, len(scenes), _DECODED_AT_ONCE)]
    video = None
    for section, some, gate in zip(sections, told, gates, strict=True):
        context = weakened(history.context(section), gate)
        latents = sample_hunyuan(
            models.transformer,
            width=width,
            height=height,
            frames=section_frames(window),
            real_guidance_scale=cfg,
            distilled_guidance_scale=gs,
            num_inference_steps=steps,
            generator=generator,
            dtype=models.transformer.dtype,
            device=device,
            adaptive_cfg_beta=adaptive_cfg_beta,
            low_pass_factor=low_pass_factor,
            low_pass_frames=low_pass_frames,
            low_pass_sigma=low_pass_sigma,
            history_low_pass=history_low_pass,
            **conditions,
            **texts[some],
            **{name: value.to(device) for name, value in context.items()},
        )
        parts = history.add(section, latents.cpu()).split(_DECODED_AT_ONCE)
        known = zip(parts, pieces, strict=True)
        decoded = torch.cat([vae_decode(part, vae, its).float() for part, its in known])
        if video is None:
            video = decoded
        else:
            pair = (video, decoded) if order is SectionOrder.FORWARD else (decoded, video)
            video = soft_append_bcthw(*pair, section_frames(window))
    return (video.clamp(-1, 1) * 127.5 + 127.5).round().to(torch.uint8)


@torch.inference_mode()
def encode_look(models: Models, image: torch.Tensor) -> torch.Tensor:
    """`image_embeddings` of the first frame of a clip, uint8, shape [3, frames, height, width]."""
    pixels = image[:, 0].permute(1, 2, 0).cpu().numpy()
    return hf_clip_vision_encode(
        pixels, models.feature_extractor, models.image_encoder
    ).last_hidden_state


def encode_captions(models: Models, captions: Sequence[str]) -> dict[str, torch.Tensor]:
    """What `sample_hunyuan` is given of captions, of any number."""
    encoded = [
        encode_prompt_conds(
            c, models.text_encoder, models.text_encoder_2, models.tokenizer, models.tokenizer_2
        )
        for c in captions
    ]
    padded = [crop_or_pad_yield_mask(text, _TEXT_LENGTH) for text, _ in encoded]
    return {
        "prompt_embeds": torch.cat([text for text, _ in padded]),
        "prompt_embeds_mask": torch.cat([mask for _, mask in padded]),
        "prompt_poolers": torch.cat([pooled for _, pooled in encoded]),
    }
