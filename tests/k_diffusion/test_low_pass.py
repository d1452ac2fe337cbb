import pytest
import torch

from diffusers_helper.k_diffusion.low_pass import gated, low_pass, low_passed

FACTORS = (0.1, 0.25, 0.5, 0.625, 0.97)


def randn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def tiled(frame: torch.Tensor) -> torch.Tensor:
    """A frame for all of a batch of latents."""
    return frame.expand(2, 4, 3, *frame.shape)


@pytest.mark.parametrize("factor", FACTORS)
def test_a_constant_stays(factor: float):
    latents = tiled(torch.full((12, 20), 1.7))
    torch.testing.assert_close(low_pass(latents, factor), latents)


@pytest.mark.parametrize("factor", [0.25, 0.5])
def test_a_slope_stays_between_the_edges(factor: float):
    latents = tiled(torch.arange(32.0) + 3 * torch.arange(24.0)[:, None])
    soft = low_pass(latents, factor)
    edge = 8
    inner = (..., slice(edge, -edge), slice(edge, -edge))
    torch.testing.assert_close(soft[inner], latents[inner])


@pytest.mark.parametrize("factor", [0.25, 0.5])
def test_a_checkerboard_vanishes_between_the_edges(factor: float):
    rows, columns = torch.meshgrid(torch.arange(24), torch.arange(32), indexing="ij")
    latents = tiled((-1.0) ** (rows + columns))
    soft = low_pass(latents, factor)
    torch.testing.assert_close(soft[..., 8:-8, 8:-8], torch.zeros(2, 4, 3, 8, 16))


def test_factor_one_is_the_identity():
    latents = randn(1, 4, 2, 6, 6)
    assert low_pass(latents, 1.0) is latents


@pytest.mark.parametrize("factor", FACTORS)
def test_every_frame_is_filtered_by_itself(factor: float):
    latents = randn(2, 4, 3, 40, 20)
    soft = low_pass(latents, factor)
    for i in range(3):
        torch.testing.assert_close(
            soft[:, :, i : i + 1], low_pass(latents[:, :, i : i + 1], factor)
        )
    torch.testing.assert_close(soft[1:, 2:3], low_pass(latents[1:, 2:3], factor))
    assert not soft.allclose(latents)


@pytest.mark.parametrize("factor", FACTORS)
@pytest.mark.parametrize("size", [(7, 13), (1, 5), (2, 2)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_shape_and_dtype_stay(size: tuple[int, int], factor: float, dtype: torch.dtype):
    latents = randn(2, 4, 3, *size).to(dtype)
    soft = low_pass(latents, factor)
    assert (soft.shape, soft.dtype) == (latents.shape, dtype)
    assert soft.isfinite().all()


def test_no_frames_stay_none():
    latents = torch.empty(1, 4, 0, 8, 8)
    assert low_pass(latents, 0.5).shape == latents.shape


@pytest.mark.parametrize(
    ("frames", "soft"), [("both", [True, True]), ("start", [True, False]), ("last", [False, True])]
)
def test_which_frames(frames: str, soft: list[bool]):
    clean = randn(1, 4, 2, 8, 8)
    kept = clean.clone()
    (changed,) = low_passed({"clean_latents": clean}, 0.5, frames).values()
    for i, expected in enumerate(soft):
        whole = low_pass(clean, 0.5) if expected else clean
        torch.testing.assert_close(changed[:, :, i], whole[:, :, i])
    assert clean.equal(kept)


@pytest.mark.parametrize("conditions", [{}, {"clean_latents": None}, {"guidance": torch.ones(1)}])
def test_without_latents_nothing_takes_their_place(conditions: dict):
    assert low_passed(conditions, 0.5, "both") == {}


def test_off_nothing_takes_their_place():
    assert low_passed({"clean_latents": randn(1, 4, 2, 8, 8)}, 1.0, "both") == {}


@pytest.mark.parametrize(
    ("sigma", "gate", "is_soft"),
    [
        ([0.75], 0.75, True),
        ([0.7499], 0.75, False),
        ([1.0], 1.0, True),
        ([0.9999], 1.0, False),
        ([0.001], 0.0, True),
        ([0.5, 1.0], 0.75, True),
        ([0.5, 0.9], 0.75, False),
    ],
)
def test_the_gate_opens_at_its_own_level_for_the_mean(sigma: list, gate: float, is_soft: bool):
    soft, sharp = randn(2, 4, 1, 3, 3), randn(2, 4, 1, 3, 3, seed=1)
    shown = gated(soft, sharp, torch.tensor(sigma), gate)
    assert shown.equal(soft if is_soft else sharp)


def test_the_gate_reads_nothing_back():
    """A tensor without values would refuse to be waited for."""
    soft, sharp, sigma = (torch.empty(2, 4, 1, 3, 3, device="meta") for _ in range(3))
    assert gated(soft, sharp, sigma[:, 0, 0, 0, 0], 0.9).shape == soft.shape
