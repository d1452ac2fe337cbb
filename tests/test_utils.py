import datetime
import re

import numpy as np
import pytest
import torch

from diffusers_helper import utils
from diffusers_helper.utils import (
    crop_or_pad_yield_mask,
    generate_timestamp,
    resize_and_center_crop,
    soft_append_bcthw,
)


def video(*values: float, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.tensor(values, dtype=dtype).view(1, 1, -1, 1, 1).expand(1, 3, -1, 2, 4)


@pytest.mark.parametrize(
    ("overlap", "expected"),
    [
        (0, [8, 8, 8, 8, 8, 0, 0, 0, 0, 0, 0]),
        (1, [8, 8, 8, 8, 8, 0, 0, 0, 0, 0]),
        (2, [8, 8, 8, 8, 0, 0, 0, 0, 0]),
        (5, [8, 6, 4, 2, 0, 0]),
    ],
)
def test_soft_append_fades_linearly_from_history(overlap, expected):
    joined = soft_append_bcthw(video(*[8] * 5), video(*[0] * 6), overlap)
    torch.testing.assert_close(joined, video(*expected))


def test_soft_append_blends_frame_with_frame():
    joined = soft_append_bcthw(video(1, 2, 3, 4), video(10, 20, 30), 3)
    torch.testing.assert_close(joined, video(1, 2, (3 + 20) / 2, 30))


@pytest.mark.parametrize("overlap", [0, 2])
def test_soft_append_keeps_historys_dtype(overlap):
    joined = soft_append_bcthw(video(1, 1, dtype=torch.float64), video(0, 0), overlap)
    assert joined.dtype == torch.float64


@pytest.mark.parametrize("overlap", [-1, 4])
@pytest.mark.parametrize("lengths", [(3, 9), (9, 3)])
def test_soft_append_refuses_overlap_beyond_either_video(overlap, lengths):
    history, current = (video(*[0] * n) for n in lengths)
    with pytest.raises(ValueError, match=rf"overlap must be in \[0, 3\], got {overlap}"):
        soft_append_bcthw(history, current, overlap)


@pytest.mark.parametrize("length", [0, 1, 3, 7])
def test_crop_or_pad(length):
    x = torch.arange(1.0, 13).view(2, 3, 2)
    padded, mask = crop_or_pad_yield_mask(x, length)
    kept = min(3, length)
    assert padded.shape == (2, length, 2)
    assert torch.equal(padded[:, :kept], x[:, :kept])
    assert padded[:, kept:].abs().sum() == 0
    assert mask.dtype == torch.bool
    assert mask.tolist() == [[True] * kept + [False] * (length - kept)] * 2


def test_an_image_of_the_target_size_is_untouched():
    image = np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8)
    np.testing.assert_array_equal(resize_and_center_crop(image, 64, 48), image)


def fills(size: tuple[int, int], width: int, height: int) -> bool:
    image = np.ascontiguousarray(np.broadcast_to(np.uint8([10, 128, 250]), (*size, 3)))
    cropped = resize_and_center_crop(image, width, height)
    return cropped.dtype == np.uint8 and np.array_equal(
        cropped, np.broadcast_to(image[0, 0], (height, width, 3))
    )


@pytest.mark.parametrize("size", [(7, 5), (48, 65), (200, 30), (31, 333), (641, 480)])
@pytest.mark.parametrize(("width", "height"), [(64, 48), (32, 96)])
def test_a_plain_image_fills_the_target(size, width, height):
    assert fills(size, width, height)


@pytest.mark.parametrize("size", [(7, 5), (48, 65), (200, 30)])
def test_a_plain_image_fills_an_odd_target(size):
    assert fills(size, 33, 47)


@pytest.mark.parametrize("axis", [0, 1])
def test_the_centre_is_kept(axis):
    """Of red, white and blue thirds, a square of one third's side is the white one, scaled or not;
    and the two seams that touch its edges lie alike on both sides."""
    thirds = np.zeros((3, 60, 60, 3), dtype=np.uint8)
    thirds[0, ..., 0] = thirds[1] = thirds[2, ..., 2] = 255
    image = np.concatenate(thirds, axis=axis)
    for side in (60, 30, 120):
        white = resize_and_center_crop(image, side, side)
        inner = white[8:-8, 8:-8]
        assert inner.min() == 255
        mirrored = np.flip(white, axis)[..., ::-1]
        np.testing.assert_array_equal(white, mirrored)


def lanczos(x: np.ndarray) -> np.ndarray:
    return np.where(abs(x) < 3, np.sinc(x) * np.sinc(x / 3), 0)


def test_scaling_is_lanczos():
    levels = np.array([60, 60, 60, 60, 180, 180, 180, 180])
    image = levels.astype(np.uint8)[:, None, None].repeat(8, axis=1).repeat(3, axis=2)
    doubled = resize_and_center_crop(image, 16, 16)
    centres = (np.arange(16) + 0.5) / 2 - 0.5
    weights = lanczos(centres[:, None] - np.arange(8))
    expected = weights @ levels / weights.sum(axis=1)
    assert expected.max() > 185  # it overshoots at an edge
    np.testing.assert_allclose(doubled[:, 5], expected[:, None].repeat(3, axis=1), atol=1)


def freeze(monkeypatch: pytest.MonkeyPatch, now: datetime.datetime) -> None:
    class Frozen(datetime.datetime):
        @classmethod
        def now(cls, tz=None):
            return now

    monkeypatch.setattr(utils.datetime, "datetime", Frozen)


def test_timestamp_is_local_time_and_four_digits(monkeypatch):
    freeze(monkeypatch, datetime.datetime(2025, 1, 2, 3, 4, 5, 67_999))
    monkeypatch.setattr(utils.secrets, "randbelow", lambda n: 42 if n == 10_000 else None)
    assert generate_timestamp() == "250102_030405_067_0042"


def test_timestamps_sort_by_time(monkeypatch):
    moment = datetime.datetime(2025, 9, 30, 23, 59, 59, 998_000)
    names = []
    for milliseconds in (0, 1, 2, 1000, 86_400_000):
        freeze(monkeypatch, moment + datetime.timedelta(milliseconds=milliseconds))
        names.append(generate_timestamp())
    assert names == sorted(names)


def test_timestamps_of_one_millisecond_differ(monkeypatch):
    freeze(monkeypatch, datetime.datetime(2025, 1, 1))
    names = {generate_timestamp() for _ in range(20)}
    assert len(names) > 15  # 20 draws of 10,000: six alike would be one chance in 10^12
    assert all(re.fullmatch(r"\d{6}_\d{6}_\d{3}_\d{4}", name) for name in names)
