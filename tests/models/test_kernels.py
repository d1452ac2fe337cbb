"""The kernels against their formulas: on a GPU where there is one, else interpreted."""

import pytest
import torch
import torch.nn.functional as F
from diffusers.models.embeddings import apply_rotary_emb

pytest.importorskip("triton")
from diffusers_helper.models.kernels import (
    Rows,
    gated_sum,
    modulated,
    norm_and_rotate,
    to_float8,
)

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
EPSILON = 1e-6
ROWS, WIDTH = 5, 48
"""No powers of two: a kernel's blocks are, and must not touch what lies beyond."""


@pytest.fixture(params=[torch.float32, torch.bfloat16])
def dtype(request: pytest.FixtureRequest) -> torch.dtype:
    return request.param


def random(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator).to(DEVICE, dtype)


def assert_rounded(result: torch.Tensor, exact: torch.Tensor) -> None:
    """Equal to float32 arithmetic, rounded once."""
    torch.testing.assert_close(result, exact.to(result.dtype), rtol=2**-7, atol=1e-5)


def assert_float8(rows: Rows, exact: torch.Tensor) -> None:
    """The nearest number in float8; Triton's interpreter loses the carry of some."""
    torch.testing.assert_close(rows.scales, exact.abs().amax(dim=1, keepdim=True) / 448)
    nearest = (exact / rows.scales).to(rows.codes.dtype).float()
    assert (rows.codes.float() == nearest).float().mean() > 0.9


def norm(x: torch.Tensor, shift: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    return F.layer_norm(x.float(), (WIDTH,), eps=EPSILON) * (1 + scale.float()) + shift.float()


def test_gated_sum(dtype: torch.dtype):
    x, y = (random(1, ROWS, WIDTH, dtype=dtype, seed=i) for i in range(2))
    gate = random(1, WIDTH, dtype=dtype, seed=2)
    assert_rounded(gated_sum(x, y, gate), x.float() + gate.float() * y.float())


def test_modulated(dtype: torch.dtype):
    x = 3 + random(1, ROWS, WIDTH, dtype=dtype)
    shift, scale = (random(1, WIDTH, dtype=dtype, seed=i) for i in (1, 2))
    total, result = modulated(x, shift, scale, EPSILON)
    assert total is x
    assert_rounded(result, norm(x, shift, scale))


def test_modulated_sum(dtype: torch.dtype):
    x, y = (random(1, ROWS, WIDTH, dtype=dtype, seed=i) for i in range(2))
    shift, scale, gate = (random(1, WIDTH, dtype=dtype, seed=i) for i in (2, 3, 4))
    before = x.clone()
    total, result = modulated(x, shift, scale, EPSILON, add=(y, gate))
    exact = x.float() + gate.float() * y.float()
    assert x.equal(before)
    assert_rounded(total, exact)
    assert_rounded(result, norm(exact, shift, scale))


def test_modulated_in_float8(dtype: torch.dtype):
    x = random(1, ROWS, WIDTH, dtype=dtype)
    shift, scale = (random(1, WIDTH, dtype=dtype, seed=i) for i in (1, 2))
    _, rows = modulated(x, shift, scale, EPSILON, float8=True)
    assert_float8(rows, norm(x, shift, scale)[0])


def test_norm_and_rotate(dtype: torch.dtype):
    latents, text, heads, width = 4, 3, 3, 16
    weights, text_weights = (
        tuple(random(width, dtype=dtype, seed=seed + i) for i in range(2)) for seed in (2, 4)
    )
    angles = random(latents, width // 2, seed=6).repeat_interleave(2, dim=1)
    places = angles.cos(), angles.sin()
    given = tuple(random(latents + text, heads, width, dtype=dtype, seed=i) for i in range(2))

    def exact(x: torch.Tensor, weight: torch.Tensor, text_weight: torch.Tensor) -> torch.Tensor:
        x = F.rms_norm(x.float(), (width,), eps=EPSILON)
        rotated = apply_rotary_emb(x[None, :latents] * weight.float(), places, sequence_dim=1)[0]
        return torch.cat([rotated, x[latents:] * text_weight.float()])

    expected = [exact(*x) for x in zip(given, weights, text_weights, strict=True)]
    norm_and_rotate(*given, weights, text_weights, places, EPSILON)
    for result, one in zip(given, expected, strict=True):
        assert_rounded(result, one)


@pytest.mark.parametrize("gelu", [False, True])
def test_to_float8(dtype: torch.dtype, gelu: bool):
    x = random(1, ROWS, WIDTH, dtype=dtype)
    exact = F.gelu(x.float(), approximate="tanh") if gelu else x.float()
    assert_float8(to_float8(x, gelu=gelu), exact[0])


def test_to_float8_of_two(dtype: torch.dtype):
    x = random(1, ROWS, WIDTH, dtype=dtype)
    y = 2 * random(1, ROWS, 3 * WIDTH, dtype=dtype, seed=1)
    exact = torch.cat([x.float(), F.gelu(y.float(), approximate="tanh")], dim=2)
    assert_float8(to_float8(x, y), exact[0])


def test_a_row_of_zeros_in_float8():
    rows = to_float8(torch.zeros(1, 2, WIDTH, device=DEVICE))
    assert rows.codes.float().eq(0).all()
    assert rows.scales.isfinite().all()
