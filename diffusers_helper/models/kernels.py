"""The transformer's passes over memory, each as one Triton kernel.

A block's matrix products and attention run at the speed of the card; what is between them only
moves memory, and moves it once here. All arithmetic is float32, rounded once when it is stored.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl

_FLOAT8 = torch.float8_e4m3fn
_LARGEST = tl.constexpr(448.0)


class Rows(NamedTuple):
    """A matrix in float8 with a scale a row: its values are `codes * scales`."""

    codes: torch.Tensor
    """float8_e4m3fn, shape [rows, columns]."""
    scales: torch.Tensor
    """float32, shape [rows, 1]."""

    @classmethod
    def empty(cls, rows: int, columns: int, device: torch.device) -> "Rows":
        """Room for a matrix."""
        return cls(
            torch.empty(rows, columns, dtype=_FLOAT8, device=device),
            torch.empty(rows, 1, dtype=torch.float32, device=device),
        )


@triton.jit
def _load(pointer, column, width):
    return tl.load(pointer + column, mask=column < width, other=0.0).to(tl.float32)


@triton.jit
def _scale(row):
    """Of a row in float8; not 0, by which it is divided."""
    return tl.maximum(tl.max(tl.abs(row)), 1e-12) / _LARGEST


@triton.jit
def _gated_sum(x, y, gate, out, width, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64) * width
    column = tl.arange(0, BLOCK)
    value = _load(x + row, column, width)
    value += _load(gate, column, width) * _load(y + row, column, width)
    tl.store(out + row + column, value, mask=column < width)


@triton.jit
def _modulated(
    x, y, gate, total, shift, scale, out, scales, width, epsilon, ADD: tl.constexpr,
    FLOAT8: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64) * width
    column = tl.arange(0, BLOCK)
    inside = column < width
    value = _load(x + row, column, width)
    if ADD:
        value += _load(gate, column, width) * _load(y + row, column, width)
        tl.store(total + row + column, value, mask=inside)
    centred = tl.where(inside, value - tl.sum(value) / width, 0.0)
    normed = centred * tl.rsqrt(tl.sum(centred * centred) / width + epsilon)
    value = normed * (1.0 + _load(scale, column, width)) + _load(shift, column, width)
    if FLOAT8:
        value = tl.where(inside, value, 0.0)
        of_row = _scale(value)
        tl.store(scales + tl.program_id(0), of_row)
        value = value / of_row
    tl.store(out + row + column, value, mask=inside)


@triton.jit
def _normed_and_rotated(
    q, k, q_weight, k_weight, q_text_weight, k_text_weight, cos, sin, latents, heads, epsilon,
    HEADS: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    token = tl.program_id(0)
    x, weight, text_weight = q, q_weight, q_text_weight
    if tl.program_id(1) == 1:
        x, weight, text_weight = k, k_weight, k_text_weight
    if token >= latents:
        weight = text_weight
    head = tl.arange(0, HEADS)[:, None]
    column = tl.arange(0, WIDTH)[None, :]
    place = x + token.to(tl.int64) * heads * WIDTH + head * WIDTH + column
    value = tl.load(place, mask=head < heads, other=0.0).to(tl.float32)
    mean_square = tl.sum(value * value, axis=1) / WIDTH
    value = value * tl.rsqrt(mean_square + epsilon)[:, None]
    value = value * tl.load(weight + column).to(tl.float32)
    if token < latents:
        real, imaginary = tl.split(tl.reshape(value, (HEADS, WIDTH // 2, 2)))
        # diffusers' tables have each angle twice.
        pair = token * WIDTH + 2 * tl.arange(0, WIDTH // 2)[None, :]
        c, s = tl.load(cos + pair), tl.load(sin + pair)
        value = tl.join(real * c - imaginary * s, imaginary * c + real * s)
        value = tl.reshape(value, (HEADS, WIDTH))
    tl.store(place, value, mask=head < heads)


@triton.jit
def _gelu(x):
    inner = 0.7978845608028654 * (x + 0.044715 * x * x * x)
    return x * tl.sigmoid(2.0 * inner)  # (1 + tanh(inner)) / 2


@triton.jit
def _to_float8(
    x, y, codes, scales, x_width, y_width, X_BLOCK: tl.constexpr, Y_BLOCK: tl.constexpr,
    GELU: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    out = codes + row * (x_width + y_width)
    x_column = tl.arange(0, X_BLOCK)
    x_value = _load(x + row * x_width, x_column, x_width)
    if Y_BLOCK == 1:
        if GELU:
            x_value = _gelu(x_value)
        of_row = _scale(x_value)
    else:
        y_column = tl.arange(0, Y_BLOCK)
        y_value = _gelu(_load(y + row * y_width, y_column, y_width))
        of_row = tl.maximum(_scale(x_value), _scale(y_value))
        tl.store(out + x_width + y_column, y_value / of_row, mask=y_column < y_width)
    tl.store(out + x_column, x_value / of_row, mask=x_column < x_width)
    tl.store(scales + row, of_row)


def gated_sum(x: torch.Tensor, y: torch.Tensor, gate: torch.Tensor) -> torch.Tensor:
    """x + gate * y.

    Args:
        x, y: shape [..., width], contiguous.
        gate: shape [..., width], one row.
    """
    width, out = x.shape[-1], torch.empty_like(x)
    _gated_sum[(x.numel() // width,)](
        x, y, gate, out, width, BLOCK=triton.next_power_of_2(width), num_warps=8
    )
    return out


def modulated(
    x: torch.Tensor,
    shift: torch.Tensor,
    scale: torch.Tensor,
    epsilon: float,
    add: tuple[torch.Tensor, torch.Tensor] | None = None,
    float8: bool = False,
) -> tuple[torch.Tensor, torch.Tensor | Rows]:
    """A sum, and its layer norm under a modulation.

    Args:
        x: shape [..., width], contiguous.
        shift, scale: of the modulation, one row.
        epsilon: of the norm.
        add: y and gate of `gated_sum`; None leaves x as it is.
        float8: round the modulated rows to float8.

    Returns:
        x + gate * y, and norm(x + gate * y) * (1 + scale) + shift.
    """
    width = x.shape[-1]
    rows = x.numel() // width
    y, gate = add or (x, x)
    total = torch.empty_like(x) if add else x
    out = Rows.empty(rows, width, x.device) if float8 else torch.empty_like(x)
    codes, scales = out if float8 else (out, out)
    _modulated[(rows,)](
        x, y, gate, total, shift, scale, codes, scales, width, epsilon, ADD=add is not None,
        FLOAT8=float8, BLOCK=triton.next_power_of_2(width), num_warps=8,
    )  # fmt: skip
    return total, out


def norm_and_rotate(
    q: torch.Tensor,
    k: torch.Tensor,
    weights: tuple[torch.Tensor, torch.Tensor],
    text_weights: tuple[torch.Tensor, torch.Tensor],
    places: tuple[torch.Tensor, torch.Tensor],
    epsilon: float,
) -> None:
    """RMS norm of queries and keys, and the rotation of those of latents; in place.

    Args:
        q, k: shape [tokens, heads, width], contiguous, latents before text.
        weights, text_weights: of the norms of q and k, shape [width].
        places: cosines and sines as diffusers' rotary tables, float32, shape [latents, width].
        epsilon: of the norm.
    """
    tokens, heads, width = q.shape
    cos, sin = places
    _normed_and_rotated[(tokens, 2)](
        q, k, *weights, *text_weights, cos, sin, len(cos), heads, epsilon,
        HEADS=triton.next_power_of_2(heads), WIDTH=width, num_warps=8,
    )  # fmt: skip


def to_float8(x: torch.Tensor, activated: torch.Tensor | None = None, gelu: bool = False) -> Rows:
    """Round rows to float8.

    Args:
        x: shape [..., width], contiguous.
        activated: of as many rows, to go through the GELU and follow those of x.
        gelu: x goes through the GELU.
    """
    y = x if activated is None else activated
    x_width, y_width = x.shape[-1], 0 if activated is None else activated.shape[-1]
    rows = Rows.empty(x.numel() // x_width, x_width + y_width, x.device)
    _to_float8[(len(rows.codes),)](
        x, y, *rows, x_width, y_width, X_BLOCK=triton.next_power_of_2(x_width),
        Y_BLOCK=triton.next_power_of_2(max(y_width, 1)), GELU=gelu,
        num_warps=8,
    )  # fmt: skip
    return rows
