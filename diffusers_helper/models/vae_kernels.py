"""The passes between the convolutions of the VAE decoder, each once over memory.

All take activations with the channels last, shape [B, T, H, W, C].
"""

import torch
import triton
import triton.language as tl

_ELEMENTS = 4096
"""Elements that a program holds at a time."""
_TURNS = 16
"""Times that a program which measures takes so many."""


def add_and_measure(
    x: torch.Tensor,
    bias: torch.Tensor | None = None,
    residual: torch.Tensor | None = None,
    keep: bool = True,
) -> tuple[torch.Tensor, tuple[torch.Tensor, torch.Tensor]]:
    """Add a bias and a residual, and measure the channels of the sum.

    Args:
        bias: shape [C].
        residual: shaped as `x`.
        keep: False measures only.

    Returns:
        The sum, or `x` itself if it is not kept; mean and variance, shape [B, C], float32.
    """
    b, *size, c = x.shape
    rows = size[0] * size[1] * size[2]
    keep = keep and (bias is not None or residual is not None)
    total = torch.empty_like(x) if keep else x
    width = triton.next_power_of_2(c)
    height = max(_ELEMENTS // width, 1)
    programs = triton.cdiv(rows, height * _TURNS)
    sums = x.new_empty(2, b, programs, c, dtype=torch.float32)
    _add_and_measure[(programs, b)](
        x,
        x if bias is None else bias,
        x if residual is None else residual,
        total,
        sums,
        rows,
        _TURNS,
        c,
        width,
        height,
        bias is not None,
        residual is not None,
        keep,
    )
    mean, square = sums.sum(2, dtype=torch.float64) / rows
    variance = (square - mean**2).clamp(min=0)
    return total, (mean.float(), variance.float())


def activate_and_pad(x: torch.Tensor, scale: torch.Tensor, shift: torch.Tensor) -> torch.Tensor:
    """SiLU of `scale * x + shift`, padded for a causal convolution of three taps.

    Args:
        scale, shift: shape [B, C], float32.

    Returns:
        Shape [B, T + 2, H + 2, W + 2, C].
    """
    return _padded(x, scale, shift, 2)


def pad(x: torch.Tensor, before: int) -> torch.Tensor:
    """Repeat the first frame `before` times and what is at a frame's edge once.

    Returns:
        Shape [B, T + before, H + 2, W + 2, C].
    """
    return _padded(x, None, None, before)


def _padded(
    x: torch.Tensor, scale: torch.Tensor | None, shift: torch.Tensor | None, before: int
) -> torch.Tensor:
    b, t, h, w, c = x.shape
    y = x.new_empty(b, t + before, h + 2, w + 2, c)
    rows = y[0, ..., 0].numel()
    width = triton.next_power_of_2(c)
    height = max(_ELEMENTS // width, 1)
    _activate_and_pad[(triton.cdiv(rows, height), b)](
        x,
        x if scale is None else scale,
        x if shift is None else shift,
        y,
        t,
        h,
        w,
        before,
        c,
        width,
        height,
        scale is not None,
    )
    return y


@triton.jit
def _add_and_measure(
    x_pointer,
    bias_pointer,
    residual_pointer,
    total_pointer,
    sums_pointer,
    rows,
    turns: tl.constexpr,
    channels: tl.constexpr,
    width: tl.constexpr,
    height: tl.constexpr,
    has_bias: tl.constexpr,
    has_residual: tl.constexpr,
    keep: tl.constexpr,
):
    program, batch = tl.program_id(0), tl.program_id(1)
    c = tl.arange(0, width)
    inside = c < channels
    bias = tl.zeros([width], tl.float32)
    if has_bias:
        bias = tl.load(bias_pointer + c, mask=inside, other=0.0).to(tl.float32)
    first = tl.zeros([height, width], tl.float32)
    second = tl.zeros([height, width], tl.float32)
    for turn in range(turns):
        row = (program * turns + turn) * height + tl.arange(0, height)
        mask = (row < rows)[:, None] & inside[None, :]
        place = (batch.to(tl.int64) * rows + row)[:, None] * channels + c[None, :]
        x = tl.load(x_pointer + place, mask=mask, other=0.0).to(tl.float32) + bias[None, :]
        if has_residual:
            x += tl.load(residual_pointer + place, mask=mask, other=0.0).to(tl.float32)
        if keep:
            tl.store(total_pointer + place, x, mask=mask)
        x = tl.where(mask, x, 0.0)
        first += x
        second += x * x
    programs = tl.num_programs(0)
    place = (batch * programs + program) * channels + c
    tl.store(sums_pointer + place, tl.sum(first, 0), mask=inside)
    place += tl.num_programs(1) * programs * channels
    tl.store(sums_pointer + place, tl.sum(second, 0), mask=inside)


@triton.jit
def _activate_and_pad(
    x_pointer,
    scale_pointer,
    shift_pointer,
    y_pointer,
    frames,
    rows,
    columns,
    before,
    channels: tl.constexpr,
    width: tl.constexpr,
    height: tl.constexpr,
    active: tl.constexpr,
):
    batch = tl.program_id(1).to(tl.int64)
    c = tl.arange(0, width)
    n = tl.program_id(0) * height + tl.arange(0, height)
    count = (frames + before) * (rows + 2) * (columns + 2)
    mask = (n < count)[:, None] & (c < channels)[None, :]
    column = n % (columns + 2)
    row = n // (columns + 2) % (rows + 2)
    frame = n // ((columns + 2) * (rows + 2))
    column = tl.minimum(tl.maximum(column - 1, 0), columns - 1)
    row = tl.minimum(tl.maximum(row - 1, 0), rows - 1)
    frame = tl.minimum(tl.maximum(frame - before, 0), frames - 1)
    source = batch * frames * rows * columns + (frame * rows + row) * columns + column
    x = tl.load(x_pointer + source[:, None] * channels + c[None, :], mask=mask)
    if active:
        place = batch * channels + c
        scale = tl.load(scale_pointer + place, mask=c < channels)
        shift = tl.load(shift_pointer + place, mask=c < channels)
        y = x.to(tl.float32) * scale[None, :] + shift[None, :]
        x = (y * tl.sigmoid(y)).to(x.dtype)
    tl.store(y_pointer + (batch * count + n)[:, None] * channels + c[None, :], x, mask=mask)
