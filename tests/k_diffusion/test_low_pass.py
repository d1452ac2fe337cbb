import pytest
import torch

from diffusers_helper.k_diffusion.low_pass import (
    HISTORY,
    OLDEST_FACTOR,
    low_pass,
    low_pass_history,
    low_passed,
)
from diffusers_helper.sections import LatentHistory, SectionOrder, plan_sections

CHECKERBOARD = (-1.0) ** (torch.arange(24)[:, None] + torch.arange(32))
INNER = (..., slice(8, -8), slice(8, -8))
"""Of frames of that size: where edges are not felt."""
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
    torch.testing.assert_close(low_pass(latents, factor)[INNER], latents[INNER])


@pytest.mark.parametrize("factor", [0.25, 0.5])
def test_a_checkerboard_vanishes_between_the_edges(factor: float):
    soft = low_pass(tiled(CHECKERBOARD), factor)
    torch.testing.assert_close(soft[INNER], torch.zeros(2, 4, 3, 8, 16))


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
    (changed,) = low_passed({"clean_latents": clean}, 0.5, frames, 0.0).values()
    for i, expected in enumerate(soft):
        whole = low_pass(clean, 0.5) if expected else clean
        torch.testing.assert_close(changed[:, :, i], whole[:, :, i])
    assert clean.equal(kept)


@pytest.mark.parametrize("conditions", [{}, {"clean_latents": None}, {"guidance": torch.ones(1)}])
def test_without_latents_nothing_takes_their_place(conditions: dict):
    assert low_passed(conditions, 0.5, "both", 1.0, 1.0) == {}


def test_the_last_frame_is_mixed_clip_by_clip_and_the_start_stays():
    clean = randn(3, 4, 2, 8, 8)
    kept = clean.clone()
    strengths = torch.tensor([0.0, 0.25, 1.0])
    (changed,) = low_passed({"clean_latents": clean}, 1.0, "both", 0.0, strengths).values()
    assert changed[:, :, 0].equal(clean[:, :, 0]) and changed[0].equal(clean[0])
    sharp, soft = clean[:, :, 1:], low_pass(clean[:, :, 1:], OLDEST_FACTOR)
    torch.testing.assert_close(changed[1, :, 1:], 0.75 * sharp[1] + 0.25 * soft[1])
    torch.testing.assert_close(changed[2, :, 1:], soft[2])
    assert clean.equal(kept)


def context(order: SectionOrder, made: int = 2) -> dict[str, torch.Tensor]:
    """What the section after `made` whole ones is shown; every frame made is the checkerboard."""
    plan = plan_sections(order, seconds=10, window=9)
    history = LatentHistory(order, 9, CHECKERBOARD.expand(1, 4, 1, 24, 32))
    for section in plan[:made]:
        history.add(section, CHECKERBOARD.expand(1, 4, 9, 24, 32))
    return history.context(plan[made])


def test_off_nothing_takes_their_place():
    assert low_passed(context(SectionOrder.FORWARD), 1.0, "both", 0.0) == {}
    assert low_passed(context(SectionOrder.FORWARD), 1.0, "both", 0.0, torch.zeros(2)) == {}


# History


@pytest.mark.parametrize("strength", [0.3, 1.0])
def test_blur_along_time(strength: float):
    values = randn(5).tolist()
    latents = torch.tensor(values).view(1, 1, 5, 1, 1).expand(2, 4, 5, 8, 8)
    soft = low_pass_history(latents, torch.tensor([2, 3, 4, 5, 6]), strength)
    padded = [values[0], *values, values[-1]]
    for i, value in enumerate(values):
        mixed = (padded[i] + 2 * value + padded[i + 2]) / 4
        expected = value + strength * i / 4 * (mixed - value)
        torch.testing.assert_close(soft[:, :, i], torch.full((2, 4, 8, 8), expected))


@pytest.mark.parametrize("strength", [0.3, 1.0])
@pytest.mark.parametrize("order", SectionOrder)
def test_what_is_old_is_blurred_most_in_both_orders(order: SectionOrder, strength: float):
    shown = context(order, made=3)
    soft = low_passed(shown, 1.0, "both", strength)
    assert soft.keys() == HISTORY.keys()
    for name, indices in HISTORY.items():
        for frame, place in enumerate(shown[indices][0]):
            distance = (place - shown["latent_indices"]).abs().min()  # 2 to 19, 1 stays sharp
            kept = 1 - strength * (distance - 2) / 17
            torch.testing.assert_close(soft[name][0, 0, frame][INNER], kept * CHECKERBOARD[INNER])
    nearest = 0 if order is SectionOrder.INVERTED else -1
    sharp = shown["clean_latents_2x"][:, :, nearest]
    assert soft["clean_latents_2x"][:, :, nearest].equal(sharp)


def test_the_oldest_is_blurred_as_the_start_would_be():
    frames = randn(1, 4, 1, 24, 32).expand(1, 4, 3, 24, 32)
    soft = low_pass_history(frames, torch.tensor([9, 5, 2]), 1.0)
    torch.testing.assert_close(soft[:, :, :1], low_pass(frames[:, :, :1], OLDEST_FACTOR))
    assert soft[:, :, 2].equal(frames[:, :, 2])


@pytest.mark.parametrize("order", SectionOrder)
def test_frames_that_do_not_exist_yet_stay_zero_and_blur_nothing(order: SectionOrder):
    """After the first section nine frames (and the image) are there; the rest is zero."""
    shown = context(order, made=1)
    shown |= {name: shown[name].abs() for name in HISTORY}  # a constant, but for the absent
    soft = low_passed(shown, 1.0, "both", 1.0)
    assert not shown["clean_latents_4x"].bool().all()
    for name, latents in soft.items():
        torch.testing.assert_close(latents, shown[name])
        assert latents[shown[name] == 0].eq(0).all()


def test_without_history_there_is_none():
    nothing = torch.empty(1, 4, 0, 8, 8)
    indices = torch.empty(1, 0, dtype=torch.long)
    shown = {"latent_indices": torch.arange(9)[None]}
    shown |= dict.fromkeys(HISTORY, nothing) | dict.fromkeys(HISTORY.values(), indices)
    soft = low_passed(shown, 1.0, "both", 1.0)
    assert all(latents.shape == nothing.shape for latents in soft.values())


@pytest.mark.parametrize("absent", HISTORY)
def test_one_kind_of_history_will_do(absent: str):
    shown = context(SectionOrder.FORWARD) | {absent: None}
    (name,) = low_passed(shown, 1.0, "both", 1.0)
    assert name in HISTORY.keys() - {absent}


def test_a_single_frame_is_the_nearest():
    frame = randn(1, 4, 1, 8, 8)
    assert low_pass_history(frame, torch.tensor([7]), 1.0).equal(frame)


def test_strength_zero_is_the_identity():
    latents = randn(1, 4, 3, 8, 8)
    assert low_pass_history(latents, torch.tensor([2, 3, 4]), 0.0) is latents
