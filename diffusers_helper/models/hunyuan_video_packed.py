"""FramePack's transformer: diffusers' network under the names that FramePack's users know."""

import functools
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import HunyuanVideoFramepackTransformer3DModel
from diffusers.models.transformers.transformer_hunyuan_video_framepack import (
    HunyuanVideoHistoryPatchEmbed,
)
from torch import nn

from diffusers_helper.models.teacache import apply_teacache, remove_teacache


class _HistoryPatchEmbed(HunyuanVideoHistoryPatchEmbed):
    """Embeds zero frames of history to zero tokens, which convolutions would refuse."""

    def forward(self, *latents: torch.Tensor) -> tuple[torch.Tensor, ...]:
        present = (x if x.shape[2] else None for x in latents)
        embedded = super().forward(*present)
        return tuple(
            x.new_empty(x.shape[0], 0, self.proj.out_channels) if e is None else e
            for x, e in zip(latents, embedded, strict=True)
        )


class _OutputProjection(nn.Linear):
    """The last projection; in float32 it keeps bfloat16 from coarsening the velocity."""

    float32 = False

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.float32:
            return F.linear(x.float(), self.weight.float(), self.bias.float())
        return super().forward(x)


class HunyuanVideoTransformer3DModelPacked(HunyuanVideoFramepackTransformer3DModel):
    """`HunyuanVideoFramepackTransformer3DModel` with FramePack's forward.

    Constructor arguments, tensors and values are diffusers'. What FramePack adds: its argument
    names, indices with a batch dimension, history that may be absent, a last projection in float32
    and TeaCache.
    """

    @functools.wraps(HunyuanVideoFramepackTransformer3DModel.__init__)
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if self.clean_x_embedder is not None:
            self.clean_x_embedder = _HistoryPatchEmbed(self.config.in_channels, self.inner_dim)
        self.proj_out = _OutputProjection(self.inner_dim, self.proj_out.out_features)

    @property
    def inner_dim(self) -> int:
        """Width of the hidden states."""
        return self.config.num_attention_heads * self.config.attention_head_dim

    @property
    def high_quality_fp32_output_for_inference(self) -> bool:
        """Whether the last projection computes, and the model returns, float32."""
        return self._output_projection.float32

    @high_quality_fp32_output_for_inference.setter
    def high_quality_fp32_output_for_inference(self, value: bool) -> None:
        self._output_projection.float32 = value

    @property
    def _output_projection(self) -> _OutputProjection:
        return getattr(self.proj_out, "base_layer", self.proj_out)  # PEFT wraps what it adapts

    def initialize_teacache(
        self, enable_teacache: bool = True, num_steps: int = 25, rel_l1_thresh: float = 0.15
    ) -> None:
        """Start a sampling with TeaCache, or without.

        With it, every call must name its pass (`with transformer.cache_context("positive")`), as
        `fm_wrapper` does; each pass is cached by itself.

        Args:
            enable_teacache: False removes the cache.
            num_steps: calls of a pass until the next start.
            rel_l1_thresh: predicted change from which on a step is computed; more is faster and
                less faithful.
        """
        if enable_teacache:
            apply_teacache(self, num_steps, rel_l1_thresh)
        else:
            remove_teacache(self)

    def forward(
        self,
        hidden_states: torch.Tensor,
        timestep: torch.Tensor,
        encoder_hidden_states: torch.Tensor,
        encoder_attention_mask: torch.Tensor,
        pooled_projections: torch.Tensor,
        guidance: torch.Tensor | None = None,
        latent_indices: torch.Tensor | None = None,
        clean_latents: torch.Tensor | None = None,
        clean_latent_indices: torch.Tensor | None = None,
        clean_latents_2x: torch.Tensor | None = None,
        clean_latent_2x_indices: torch.Tensor | None = None,
        clean_latents_4x: torch.Tensor | None = None,
        clean_latent_4x_indices: torch.Tensor | None = None,
        image_embeddings: torch.Tensor | None = None,
        attention_kwargs: dict[str, Any] | None = None,
        return_dict: bool = True,
    ) -> Any:
        """Predict the velocity of noisy latents.

        Args:
            hidden_states: noisy latents, shape [batch, 16, T, H, W].
            timestep: 1000 * sigma, shape [batch].
            encoder_hidden_states: text, shape [batch, tokens, text_embed_dim].
            encoder_attention_mask: shape [batch, tokens].
            pooled_projections: pooled text, shape [batch, pooled_projection_dim].
            guidance: 1000 * distilled guidance scale, shape [batch].
            latent_indices: places in time, shape [1 or batch, T], rows alike; None is 0..T-1.
            clean_latents, clean_latents_2x, clean_latents_4x: history, shape [batch, 16, t, H, W],
                or None.
            clean_latent_indices, clean_latent_2x_indices, clean_latent_4x_indices: its places in
                time, shape [1 or batch, t].
            image_embeddings: of the start image, shape [batch, tokens, image_proj_dim].
            attention_kwargs: diffusers' (LoRA scale).
            return_dict: False returns a tuple of the velocity alone.

        Returns:
            Velocity, shaped as `hidden_states`.

        Raises:
            ValueError: `image_embeddings` is absent, or rows of indices differ.
        """
        if image_embeddings is None:
            raise ValueError("image_embeddings is required, got None")
        if latent_indices is None:
            latent_indices = torch.arange(hidden_states.shape[2])

        history = {
            "latents_clean": (clean_latents, clean_latent_indices),
            "latents_history_2x": (clean_latents_2x, clean_latent_2x_indices),
            "latents_history_4x": (clean_latents_4x, clean_latent_4x_indices),
        }
        renamed = {}
        for name, (latents, indices) in history.items():
            if latents is None:
                latents, indices = hidden_states[:, :, :0], latent_indices[..., :0]
            renamed[name] = latents.to(hidden_states)
            renamed[f"indices_{name}"] = _shared_row(indices)

        return super().forward(
            hidden_states=hidden_states,
            timestep=timestep,
            encoder_hidden_states=encoder_hidden_states,
            encoder_attention_mask=encoder_attention_mask,
            pooled_projections=pooled_projections,
            image_embeds=image_embeddings.to(hidden_states),
            indices_latents=_shared_row(latent_indices),
            guidance=guidance,
            attention_kwargs=attention_kwargs,
            return_dict=return_dict,
            **renamed,
        )

    def _pad_rotary_emb(
        self,
        image_rotary_emb: tuple[torch.Tensor, torch.Tensor],
        height: int,
        width: int,
        kernel_size: tuple[int, int, int],
    ) -> tuple[torch.Tensor, torch.Tensor]:
        if image_rotary_emb[0].shape[0] == 0:  # absent history; padding refuses zero frames
            return image_rotary_emb
        return super()._pad_rotary_emb(image_rotary_emb, height, width, kernel_size)


def _shared_row(indices: torch.Tensor) -> torch.Tensor:
    """diffusers has one row of indices for the whole batch, FramePack a row each."""
    if indices.ndim == 1:
        return indices
    if len(indices) > 1 and not (indices == indices[:1]).all():
        raise ValueError(f"indices must be alike across the batch, got {indices.tolist()}")
    return indices[0]
