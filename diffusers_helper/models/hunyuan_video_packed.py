"""FramePack's transformer: diffusers' network under the names that FramePack's users know."""

import functools
import itertools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import HunyuanVideoFramepackTransformer3DModel
from diffusers.models.modeling_outputs import Transformer2DModelOutput
from diffusers.utils import apply_lora_scale
from torch import nn
from torch.func import functional_call

from diffusers_helper.models.fast_blocks import can_fuse, make_fast
from diffusers_helper.models.teacache import TeaCache


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
    and TeaCache; and batches without a mask.
    """

    @functools.wraps(HunyuanVideoFramepackTransformer3DModel.__init__)
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.proj_out = _OutputProjection(self.inner_dim, self.proj_out.out_features)
        make_fast(self)
        self._teacache: TeaCache | None = None
        self._pass: str | None = None
        self._known: dict[Any, tuple[Sequence[Any], Any]] = {}

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
        self._teacache = TeaCache(num_steps, rel_l1_thresh) if enable_teacache else None

    @contextmanager
    def cache_context(self, name: str, **kwargs: Any) -> Iterator[None]:
        """Name the pass that is called, for all that is cached between steps.

        Within it, what depends on neither noise nor noise level is computed once for the same
        tensors: do not change them in place before `forget`.
        """
        self._pass = name
        try:
            with super().cache_context(name, **kwargs):
                yield
        finally:
            self._pass = None

    def forget(self) -> None:
        """Compute everything anew, as a new sampling must: weights may have changed."""
        self._known.clear()

    def _once(self, what: Any, given: Sequence[Any], compute: Callable[[], Any]) -> Any:
        """What `compute` returns, as long as a pass is `given` the same."""
        if self._pass is None or torch.is_grad_enabled():
            return compute()
        before, result = self._known.get((self._pass, what), ((), None))
        if len(before) != len(given) or any(a is not b for a, b in zip(before, given, strict=True)):
            result = compute()
            self._known[self._pass, what] = (given, result)
        return result

    @apply_lora_scale("attention_kwargs")
    def forward(
        self,
        hidden_states: torch.Tensor,
        timestep: torch.Tensor,
        encoder_hidden_states: torch.Tensor,
        encoder_attention_mask: torch.Tensor | None,
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
            encoder_attention_mask: which tokens count, the first of each row, shape
                [batch, tokens]; None is all, and waits for no device.
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
            ValueError: `image_embeddings` is absent, rows of indices differ, or a pass has no name.
        """
        if image_embeddings is None:
            raise ValueError("image_embeddings is required, got None")

        history = (
            (clean_latents, clean_latent_indices),
            (clean_latents_2x, clean_latent_2x_indices),
            (clean_latents_4x, clean_latent_4x_indices),
        )
        of_history, places = self._once(
            ("history", *hidden_states.shape),
            (latent_indices, *itertools.chain(*history)),
            lambda: self._history(hidden_states, latent_indices, history),
        )
        packed = torch.cat([*of_history, self.x_embedder(hidden_states)], dim=1)
        condition, _ = self.time_text_embed(timestep, pooled_projections, guidance)
        text = self.context_embedder(encoder_hidden_states, timestep, encoder_attention_mask)
        image = self._once(
            "image",
            (image_embeddings,),
            lambda: self.image_projection(image_embeddings.to(hidden_states)),
        )
        text = torch.cat([image, text], dim=1)
        mask = None
        if encoder_attention_mask is not None and len(encoder_attention_mask) == 1:
            # A number on the host, for which it waits.
            words = self._once(
                "words", (encoder_attention_mask,), lambda: int(encoder_attention_mask.sum())
            )
            text = text[:, : image.shape[1] + words]
        elif encoder_attention_mask is not None:
            counted = image.shape[1] + encoder_attention_mask.sum(dim=1)
            tokens = torch.arange(packed.shape[1] + text.shape[1], device=packed.device)
            mask = (tokens < packed.shape[1] + counted[:, None])[:, None, None]

        def blocks() -> torch.Tensor:
            return self.run_blocks(packed, text, condition, mask, places)

        if self._teacache is None:
            x = blocks()
        elif self._pass is None:
            raise ValueError("with TeaCache on, call within transformer.cache_context(name)")
        else:
            x = self._teacache.step(self._pass, self._decisive(packed, condition), packed, blocks)

        batch, _, frames, height, width = hidden_states.shape
        p, p_t = self.config.patch_size, self.config.patch_size_t
        frames, height, width = frames // p_t, height // p, width // p
        x = self.norm_out(x[:, -frames * height * width :], condition)
        x = self.proj_out(x).view(batch, frames, height, width, -1, p_t, p, p)
        x = x.permute(0, 4, 1, 5, 2, 6, 3, 7).flatten(6, 7).flatten(4, 5).flatten(2, 3)
        return Transformer2DModelOutput(sample=x) if return_dict else (x,)

    def run_blocks(
        self,
        packed: torch.Tensor,
        text: torch.Tensor,
        condition: torch.Tensor,
        mask: torch.Tensor | None,
        places: tuple[torch.Tensor, torch.Tensor],
    ) -> torch.Tensor:
        """All blocks, one after the other: the part of `forward` that takes the time.

        Args:
            packed: tokens of history and window, shape [batch, tokens, inner_dim].
            text: tokens of image and prompt, likewise.
            condition: of noise level, guidance and pooled text, shape [batch, inner_dim].
            mask: which tokens attention sees, shape [batch, 1, 1, all tokens]; None is all.
            places: rotary tables of `packed`.

        Returns:
            Shaped as `packed`.
        """

        def run(blocks: nn.ModuleList, *streams: torch.Tensor | None) -> Sequence[torch.Tensor]:
            for block in blocks:
                if torch.is_grad_enabled() and self.gradient_checkpointing:
                    block = functools.partial(self._gradient_checkpointing_func, block)
                streams = block(*streams, condition, mask, places)
            return streams

        streams = run(self.transformer_blocks, packed, text)
        if can_fuse(packed, mask) and not self.is_cache_enabled:  # diffusers', of both streams
            streams = torch.cat(streams, dim=1), None
        x, _ = run(self.single_transformer_blocks, *streams)
        return x[:, : packed.shape[1]]

    def _decisive(self, packed: torch.Tensor, condition: torch.Tensor) -> torch.Tensor:
        """What TeaCache decides by. The first block's weights may be elsewhere, to be fetched only
        for a step that is computed: of the norm alone they are few."""
        norm = self.transformer_blocks[0].norm1
        weights = {name: p.to(packed.device) for name, p in norm.named_parameters()}
        return functional_call(norm, weights, (packed,), {"emb": condition})[0]

    def _history(
        self,
        hidden_states: torch.Tensor,
        latent_indices: torch.Tensor | None,
        history: Sequence[tuple[torch.Tensor | None, torch.Tensor | None]],
    ) -> tuple[list[torch.Tensor], tuple[torch.Tensor, torch.Tensor]]:
        """The tokens of history, farthest first, and the rotary tables of these and the window's.

        Args:
            hidden_states, latent_indices: see `forward`.
            history: latents and indices at 1x, 2x and 4x; without latents there are no tokens.
        """
        size = hidden_states.shape[-2:]
        patches = [side // self.config.patch_size for side in size]

        if latent_indices is None:
            latent_indices = torch.arange(hidden_states.shape[2])

        def table(indices: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            return self.rope(_shared_row(indices), *size, device=hidden_states.device)

        tokens, tables = [], [table(latent_indices)]
        latents = (None if x is None else x.to(hidden_states) for x, _ in history)
        embedded = self.clean_x_embedder(*latents)
        for scale, (x, (_, indices)) in enumerate(zip(embedded, history, strict=True)):
            if x is not None:
                places = table(indices)
                if scale > 0:
                    places = self._pad_rotary_emb(places, *patches, (2**scale,) * 3)
                tokens.insert(0, x)
                tables.insert(0, places)
        cos, sin = (torch.cat(some) for some in zip(*tables, strict=True))
        return tokens, (cos, sin)


def _shared_row(indices: torch.Tensor) -> torch.Tensor:
    """diffusers has one row of indices for the whole batch, FramePack a row each."""
    if indices.ndim == 1:
        return indices
    if len(indices) > 1 and not (indices == indices[:1]).all():
        raise ValueError(f"indices must be alike across the batch, got {indices.tolist()}")
    return indices[0]
