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


class DecodedPieces:
    """Pieces of a video that need not be decoded again.

    diffusers' VAE decodes a video in overlapping pieces of time that know nothing of each other
    until they are blended. A section is decoded together with its neighbour, so that some pieces
    come twice.

    Args:
        shared: which of the latent frames that are decoded come again the next time.
    """

    def __init__(self, shared: slice) -> None:
        self._shared = shared
        self._known: list[tuple[torch.Tensor, bool, torch.Tensor]] = []

    def decode(self, z: torch.Tensor, vae: Any) -> torch.Tensor:
        """What `vae.decode` returns, bit for bit."""
        ratio, frames = vae.temporal_compression_ratio, z.shape[2]
        length, stride = vae.tile_sample_min_num_frames, vae.tile_sample_stride_num_frames
        if not vae.use_framewise_decoding or frames <= length // ratio:
            return vae.decode(z, return_dict=False)[0]
        known, self._known = self._known, []
        shared = range(frames)[self._shared]
        video = []
        # All but the first piece lose their first frame, so none begins with the last latent.
        for begin in range(0, frames - 1, stride // ratio):
            place = range(frames)[begin : begin + length // ratio + 1]
            latents = z[:, :, place.start : place.stop]
            same = (v for k, tiled, v in known if tiled == vae.use_tiling and k.equal(latents))
            piece = next(same, None)
            if piece is None:
                piece = _decode_piece(latents, vae)
            if place[0] in shared and place[-1] in shared:
                self._known.append((latents.clone(), vae.use_tiling, piece))
            if begin > 0:
                piece = piece[:, :, 1:].clone()  # blending writes into it
                piece = vae.blend_t(video[-1], piece, length - stride)
            video.append(piece)
        video = [piece[:, :, : stride + (i == 0)] for i, piece in enumerate(video)]
        return torch.cat(video, dim=2)[:, :, : ratio * (frames - 1) + 1]


def _decode_piece(z: torch.Tensor, vae: Any) -> torch.Tensor:
    """As diffusers' VAE decodes a piece of time: at once, or in tiles where that is on."""
    ratio = vae.spatial_compression_ratio
    height, width = vae.tile_sample_min_height // ratio, vae.tile_sample_min_width // ratio
    if vae.use_tiling and (z.shape[3] > height or z.shape[4] > width):
        return vae.tiled_decode(z, return_dict=False)[0]
    return vae.decoder(vae.post_quant_conv(z))


@torch.inference_mode()
def vae_decode(
    latents: torch.Tensor, vae: Any, pieces: DecodedPieces | None = None
) -> torch.Tensor:
    """Decode latents to video.

    Args:
        latents: shape [B, 16, T, H, W].
        pieces: of the sections before, for an `AutoencoderKLHunyuanVideo`; the result is the same.

    Returns:
        About [-1, 1], shape [B, 3, 4T - 3, 8H, 8W].
    """
    latents = latents.to(device=vae.device, dtype=vae.dtype) / vae.config.scaling_factor
    if pieces is None:
        return vae.decode(latents, return_dict=False)[0]
    return pieces.decode(latents, vae)


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
