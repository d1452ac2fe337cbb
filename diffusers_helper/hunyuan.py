"""HunyuanVideo's text encoders and VAE."""

from typing import Any

import torch
from diffusers.pipelines.hunyuan_video.pipeline_hunyuan_video import DEFAULT_PROMPT_TEMPLATE

TEXT_LENGTH = 512
"""Tokens that the Llama encoding is padded to for the transformer."""


@torch.inference_mode()
def encode_prompt_conds(
    prompt: str,
    text_encoder: Any,
    text_encoder_2: Any,
    tokenizer: Any,
    tokenizer_2: Any,
    max_length: int = 256,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Encode a prompt with Llama, inside HunyuanVideo's template, and with CLIP.

    Args:
        prompt: may be empty.
        text_encoder, tokenizer: LlamaModel and its tokenizer.
        text_encoder_2, tokenizer_2: CLIPTextModel and its tokenizer.
        max_length: tokens kept after the template's beginning; the rest of a prompt is cut.

    Returns:
        Llama's hidden state number -3 of the prompt and the template's end, shape
        [1, up to max_length, dim], and CLIP's pooled output, shape [1, dim].
    """
    template = DEFAULT_PROMPT_TEMPLATE["template"]
    crop_start = len(tokenizer(template[: template.index("{}")]).input_ids)
    tokens = tokenizer(
        template.format(prompt),
        max_length=crop_start + max_length,
        truncation=True,
        return_tensors="pt",
    )
    hidden_states = text_encoder(
        input_ids=tokens.input_ids.to(text_encoder.device),
        attention_mask=tokens.attention_mask.to(text_encoder.device),
        output_hidden_states=True,
    ).hidden_states[-3]

    tokens_2 = tokenizer_2(
        prompt,
        max_length=tokenizer_2.model_max_length,
        padding="max_length",
        truncation=True,
        return_tensors="pt",
    )
    pooled = text_encoder_2(tokens_2.input_ids.to(text_encoder_2.device)).pooler_output
    return hidden_states[:, crop_start:], pooled


@torch.inference_mode()
def vae_encode(
    image: torch.Tensor, vae: Any, generator: torch.Generator | None = None
) -> torch.Tensor:
    """Encode video to latents: a sample of the posterior, scaled.

    Args:
        image: in [-1, 1], shape [B, 3, T, H, W]; T = 4k + 1.
        generator: of the sample; None is the global one, as in FramePack.

    Returns:
        Shape [B, 16, k + 1, H / 8, W / 8].
    """
    posterior = vae.encode(image.to(device=vae.device, dtype=vae.dtype)).latent_dist
    return posterior.sample(generator) * vae.config.scaling_factor


@torch.inference_mode()
def vae_decode(latents: torch.Tensor, vae: Any) -> torch.Tensor:
    """Decode latents to video.

    Args:
        latents: shape [B, 16, T, H, W].

    Returns:
        About [-1, 1], shape [B, 3, 4T - 3, 8H, 8W].
    """
    latents = latents.to(device=vae.device, dtype=vae.dtype) / vae.config.scaling_factor
    return vae.decode(latents, return_dict=False)[0]


# ComfyUI's fit for HunyuanVideo's VAE: a row a channel, to red, green, blue; the last is the bias.
_LATENT_RGB = (
    (-0.0395, -0.0331, 0.0445),
    (0.0696, 0.0795, 0.0518),
    (0.0135, -0.0945, -0.0282),
    (0.0108, -0.0250, -0.0765),
    (-0.0209, 0.0032, 0.0224),
    (-0.0804, -0.0254, -0.0639),
    (-0.0991, 0.0271, -0.0669),
    (-0.0646, -0.0422, -0.0400),
    (-0.0696, -0.0595, -0.0894),
    (-0.0799, -0.0208, -0.0375),
    (0.1166, 0.1627, 0.0962),
    (0.1165, 0.0432, 0.0407),
    (-0.2315, -0.1920, -0.1355),
    (-0.0270, 0.0401, -0.0821),
    (-0.0616, -0.0997, -0.0727),
    (0.0249, -0.0469, -0.1703),
    (0.0259, -0.0192, -0.0761),
)


def vae_decode_fake(latents: torch.Tensor, latent_rgb: torch.Tensor | None = None) -> torch.Tensor:
    """A coarse picture of latents without the VAE, for previews.

    Args:
        latents: shape [B, 16, T, H, W].
        latent_rgb: linear map to colours in [0, 1], shape [17, 3]: a row a channel, and the bias.
            None is HunyuanVideo's.

    Returns:
        In [0, 1], shape [B, 3, T, H, W].
    """
    rows = latents.new_tensor(_LATENT_RGB) if latent_rgb is None else latent_rgb.to(latents)
    weight, bias = rows[:-1], rows[-1].view(3, 1, 1, 1)
    return (torch.einsum("bcthw,cr->brthw", latents, weight) + bias).clamp(0, 1)
