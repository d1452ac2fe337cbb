import cv2
import numpy as np
import pytest
import torch

from evaluation import metrics

SIDE = 96


def texture(height: int, width: int) -> np.ndarray:
    """Smooth noise, float32 in [0, 255]."""
    noise = np.random.default_rng(0).uniform(0, 255, (height // 4, width // 4, 3))
    return cv2.resize(noise.astype(np.float32), (width, height), interpolation=cv2.INTER_CUBIC)


def video(frames: np.ndarray) -> torch.Tensor:
    """From [frames, height, width, 3] to one video."""
    return torch.from_numpy(frames.clip(0, 255).round().astype(np.uint8)).permute(3, 0, 1, 2)[None]


def moving_square(step: int, frames: int = 8) -> torch.Tensor:
    """A textured square that goes to the right over a plain ground by `step` pixels a frame."""
    clip = np.full((frames, SIDE, SIDE, 3), 120.0, dtype=np.float32)
    for i, frame in enumerate(clip):
        left = 8 + i * step
        frame[30:62, left : left + 32] = texture(32, 32)
    return video(clip)


def test_motion_of_a_square_is_its_speed():
    # The square is 11 % of the frame, so that the top 5 % of pixels are within it.
    steps = [0, 1, 2, 4]
    videos = torch.cat([moving_square(step) for step in steps])
    for threads in (1, 3):
        assert metrics.motion(videos, threads) == pytest.approx(steps, rel=0.15, abs=0.01)


def test_motion_without_opencv(monkeypatch):
    monkeypatch.setattr(metrics, "cv2", None)
    assert metrics.motion(moving_square(1), 1) is None


def test_a_still_clip_is_like_its_first_frame():
    still = moving_square(0)
    assert metrics.subject_similarity(still, None) == [1]
    assert metrics.sharpness(still) == pytest.approx([1])
    assert metrics.seam_jump(still, [4]) == [0]


def test_similarity_is_taken_where_the_subject_was():
    clip = torch.zeros(1, 3, 3, 10, 10, dtype=torch.uint8)
    clip[:, :, 1:, :, 5:] = 255  # half of the frame changes, in two frames of three
    subject = torch.zeros(1, 10, 10, dtype=torch.bool)
    subject[:, :, 5:] = True
    assert metrics.subject_similarity(clip, None) == pytest.approx([1 - 1 / 3])
    assert metrics.subject_similarity(clip, subject) == pytest.approx([1 - 2 / 3])
    assert metrics.subject_similarity(clip, ~subject) == [1]


def test_centroid_jump_is_the_step_at_the_seam_over_those_within():
    even = torch.linspace(0, 1, 41)[:, None] * torch.tensor([0.6, 0.8])
    assert metrics.centroid_jump(even, [20]) == pytest.approx(1, rel=1e-4)
    jumps = even.clone()
    jumps[20:, 0] += 0.1  # on top of a step of 0.025
    length = (0.115**2 + 0.02**2) ** 0.5
    assert metrics.centroid_jump(jumps, [20]) == pytest.approx(length / 0.025, rel=1e-4)
    assert metrics.centroid_jump(jumps, [10, 20]) == pytest.approx(length / 0.025, rel=1e-4)
    assert metrics.centroid_jump(jumps, [19]) == pytest.approx(1, rel=1e-4)  # one of 39 others


def test_centroid_jump_is_of_a_subject_in_sight_and_no_smaller_than_can_be_measured():
    still = torch.zeros(41, 2)
    still[20:] += 1e-5
    assert metrics.centroid_jump(still, [20]) < 0.01
    assert metrics.centroid_jump(still, []) is None
    gone = still.clone()
    gone[25:] = torch.nan
    assert metrics.centroid_jump(gone, [20]) is not None
    assert metrics.centroid_jump(gone, [25]) is None
    assert metrics.centroid_jump(torch.full((41, 2), torch.nan), [20]) is None


def test_seam_jump_is_the_step_at_the_seam_over_those_elsewhere():
    brightness = torch.arange(20) * 2
    brightness[10:] += 8  # between frames 9 and 10 a step of 10 instead of 2
    clip = brightness.to(torch.uint8).view(1, 1, 20, 1, 1).expand(1, 3, 20, 4, 4)
    assert metrics.seam_jump(clip, [10]) == pytest.approx([5])
    assert metrics.seam_jump(clip, [4])[0] < 1
    assert metrics.seam_jump(clip, []) == [None]


def test_sharpness_falls_with_blur_and_rises_with_noise():
    sharp = texture(SIDE, SIDE).clip(0, 255)
    clip = np.stack([sharp, cv2.GaussianBlur(sharp, (0, 0), 3)])
    assert metrics.sharpness(video(clip)) == pytest.approx([0.5], abs=0.1)  # 1 and nearly 0
    assert metrics.sharpness(video(clip[::-1]))[0] > 2


def test_encoder_similarity(tiny):
    still = moving_square(0, frames=1).expand(-1, -1, 21, -1, -1)
    changed = still.clone()
    changed[:, :, 10:] = 255 - changed[:, :, 10:]
    same, other = metrics.encoder_similarity(torch.cat([still, changed]), tiny, 6)
    assert same == pytest.approx(1, abs=1e-5)
    assert other < 0.999
