"""The transformer's blocks with less traffic to memory: diffusers' weights, and values but for
rounding."""

from types import MethodType

import torch
import torch.nn.functional as F
from diffusers.models.attention_dispatch import dispatch_attention_fn
from diffusers.models.transformers.transformer_hunyuan_video import (
    HunyuanVideoSingleTransformerBlock,
    HunyuanVideoTransformerBlock,
)
from torch import nn

from diffusers_helper.models.float8 import Float8Linear, kernels

Places = tuple[torch.Tensor, torch.Tensor]


def can_fuse(x: torch.Tensor, mask: torch.Tensor | None) -> bool:
    """Whether the fast blocks apply: to one video in half precision on a GPU, without gradients."""
    return (
        kernels is not None
        and x.is_cuda
        and x.dtype in (torch.bfloat16, torch.float16)
        and len(x) == 1
        and mask is None
        and not torch.is_grad_enabled()
    )


def make_fast(transformer: nn.Module) -> None:
    """Let the blocks of a transformer run fast wherever they can, and as they did elsewhere."""
    for forward, blocks in (
        (_double, transformer.transformer_blocks),
        (_single, transformer.single_transformer_blocks),
    ):
        for block in blocks:
            # Not a class of our own: diffusers knows its blocks, and what to do to them, by theirs.
            block.forward = MethodType(forward, block)


def _double(
    block: HunyuanVideoTransformerBlock,
    x: torch.Tensor,
    words: torch.Tensor,
    condition: torch.Tensor,
    mask: torch.Tensor | None = None,
    places: Places | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """A block of two streams, latents and text."""
    if not can_fuse(x, mask):
        return type(block).forward(block, x, words, condition, mask, places)
    attn, float8 = block.attn, _is_float8(block.ff.net[2])
    streams = (
        _Stream(x, block.norm1, block.norm2, block.ff, condition, float8),
        _Stream(
            words, block.norm1_context, block.norm2_context, block.ff_context, condition, float8
        ),
    )
    projections = (
        (attn.to_q, attn.add_q_proj),
        (attn.to_k, attn.add_k_proj),
        (attn.to_v, attn.add_v_proj),
    )
    q, k, v = (_joined(layers, [s.attended for s in streams], x) for layers in projections)
    mixed = _attend(attn, q, k, v, places)
    x_mixed, words_mixed = mixed[:, : x.shape[1]], mixed[:, x.shape[1] :]
    return (
        streams[0].finish(attn.to_out[0](x_mixed)),
        streams[1].finish(attn.to_add_out(words_mixed)),
    )


class _Stream:
    """One stream's way through a block of two."""

    def __init__(self, x, norm1, norm2, ff, condition, float8) -> None:
        modulation = norm1.linear(norm1.silu(condition)).chunk(6, dim=1)
        shift, scale, self.gate, self.ff_shift, self.ff_scale, self.ff_gate = modulation
        self.x, self.norm2, self.ff, self.float8 = x, norm2, ff, float8
        self.attended = kernels.modulated(x, shift, scale, norm1.norm.eps, float8=float8)[1]

    def finish(self, mixed: torch.Tensor) -> torch.Tensor:
        """Add what attention gave, then what the feed-forward layers make of the sum."""
        x, h = kernels.modulated(
            self.x,
            self.ff_shift,
            self.ff_scale,
            self.norm2.eps,
            add=(mixed, self.gate),
            float8=self.float8,
        )
        up, down = self.ff.net[0].proj, self.ff.net[2]
        if self.float8:
            y = down(kernels.to_float8(up(h), gelu=True)).view_as(x)
        else:
            y = down(_linear_gelu(up, h))
        return kernels.gated_sum(x, y, self.ff_gate)


def _single(
    block: HunyuanVideoSingleTransformerBlock,
    x: torch.Tensor,
    words: torch.Tensor | None,
    condition: torch.Tensor,
    mask: torch.Tensor | None = None,
    places: Places | None = None,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """A block of one stream; fast without `words`, when `x` is latents and text in one."""
    if words is not None:
        return type(block).forward(block, x, words, condition, mask, places)
    attn, float8 = block.attn, _is_float8(block.proj_out)
    shift, scale, gate = block.norm.linear(block.norm.silu(condition)).chunk(3, dim=1)
    h = kernels.modulated(x, shift, scale, block.norm.norm.eps, float8=float8)[1]
    q, k, v = (layer(h).view(x.shape) for layer in (attn.to_q, attn.to_k, attn.to_v))
    mixed = _attend(attn, q, k, v, places)
    if float8:
        y = block.proj_out(kernels.to_float8(mixed, block.proj_mlp(h)))
    else:
        y = _linear_of_both(block.proj_out, mixed, _linear_gelu(block.proj_mlp, h))
    return kernels.gated_sum(x, y, gate), None


def _attend(
    attn: nn.Module, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, places: Places
) -> torch.Tensor:
    """Attention of all tokens to all; overwrites q and k."""
    q, k, v = (x.unflatten(2, (attn.heads, -1)) for x in (q, k, v))
    norms = (attn.norm_q, attn.norm_k)
    text_norms = norms if attn.norm_added_q is None else (attn.norm_added_q, attn.norm_added_k)
    kernels.norm_and_rotate(
        q[0],
        k[0],
        tuple(norm.weight for norm in norms),
        tuple(norm.weight for norm in text_norms),
        places,
        attn.norm_q.eps,
    )
    processor = attn.processor
    mixed = dispatch_attention_fn(
        q,
        k,
        v,
        backend=processor._attention_backend,
        parallel_config=processor._parallel_config,
    )
    return mixed.flatten(2, 3)


def _is_plain(layer: nn.Module) -> bool:
    """Whether a layer may be passed by for its weight: LoRA changes its class, offloading its
    forward."""
    return type(layer) is nn.Linear and "forward" not in vars(layer)


def _is_float8(layer: nn.Module) -> bool:
    return isinstance(layer, Float8Linear)


def _joined(layers, streams, like) -> torch.Tensor:
    """What each stream's layer makes of it, one after the other without a copy."""
    rows = [len(s.codes) if isinstance(s, kernels.Rows) else s.shape[1] for s in streams]
    out = like.new_empty(1, sum(rows), like.shape[2])
    for layer, stream, part in zip(layers, streams, out[0].split(rows), strict=True):
        if _is_plain(layer):
            torch.addmm(layer.bias, stream[0], layer.weight.t(), out=part)
        else:
            part.copy_(layer(stream).view_as(part))
    return out


def _linear_gelu(layer: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """The GELU of a linear layer, within the matrix product where it is the same GELU."""
    if _is_plain(layer) and x.is_cuda:
        return torch._addmm_activation(layer.bias, x[0], layer.weight.t(), use_gelu=True)[None]
    return F.gelu(layer(x), approximate="tanh")


def _linear_of_both(layer: nn.Module, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """A linear layer of [x, y], without joining them."""
    if _is_plain(layer):
        weight = layer.weight.t()
        out = torch.addmm(layer.bias, x[0], weight[: x.shape[2]])
        return out.addmm_(y[0], weight[x.shape[2] :])[None]
    return layer(torch.cat([x, y], dim=2))
