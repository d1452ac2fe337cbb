"""Numbers of videos that need no ground truth.

Videos are uint8, shape [videos, 3, frames, height, width]; what is returned has a number a video.
"""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

import numpy as np
import torch

from diffusers_helper.clip_vision import hf_clip_vision_encode
from diffusers_helper.memory import bring
from diffusers_helper.models import Models

try:
    import cv2
except ImportError:  # needed for `motion` only
    cv2 = None

_LUMA = (0.2126, 0.7152, 0.0722)
_TOP_SHARE = 0.05
_ENCODED_EVERY = 10
_STILL = 0.05
"""Grey levels; smaller steps between frames are compression's."""
_STEP = 0.004
"""Half a pixel of 128; how well a place can be measured."""


def motion(videos: torch.Tensor, threads: int) -> list[float] | None:
    """Optical flow of the 5 % of pixels that move most, in pixels a frame; None without OpenCV.

    OpenCV's DIS flow (preset "medium") between neighbouring frames; the mean over pairs of frames
    of the mean length over those pixels. Not VBench's Dynamic Degree, which thresholds another
    network's flow.
    """
    if cv2 is None:
        return None
    cv2.setNumThreads(1)  # there is a thread for every core already
    with ThreadPoolExecutor(threads) as pool:
        return list(pool.map(_motion, videos.permute(0, 2, 3, 4, 1).contiguous().cpu().numpy()))


def _motion(frames: np.ndarray) -> float:
    flow = cv2.DISOpticalFlow_create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
    tops = []
    for before, after in pairwise([cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY) for frame in frames]):
        length = np.linalg.norm(flow.calc(before, after, None), axis=2).ravel()
        count = max(round(_TOP_SHARE * length.size), 1)
        tops.append(np.partition(length, -count)[-count:].mean())
    return float(np.mean(tops))


def subject_similarity(videos: torch.Tensor, subjects: torch.Tensor | None) -> list[float]:
    """How much frames look like the first where the subject was in it, in [0, 1].

    One minus the mean absolute difference of colours, over frames and pixels. What moves away
    lowers it just as what is lost: high means that nothing happened there.

    Args:
        subjects: bool, shape [videos, height, width]; None takes whole frames.
    """
    # Frame by frame, for memory.
    difference = torch.stack(
        [
            (videos[:, :, i].float() - videos[:, :, 0].float()).abs().mean(dim=1)
            for i in range(videos.shape[2])
        ]
    ).mean(dim=0)
    where = torch.ones_like(difference) if subjects is None else subjects.to(difference)
    return (1 - (difference * where).sum((1, 2)) / where.sum((1, 2)) / 255).tolist()


@torch.inference_mode()
def encoder_similarity(videos: torch.Tensor, models: Models, preserved_gb: float) -> list[float]:
    """How much frames look like the first to the model's own image encoder, in [-1, 1].

    Cosine between means over tokens of the last hidden state, averaged over every tenth frame.
    """
    bring(models.image_encoder, models, preserved_gb)
    similarities = []
    for video in videos[:, :, ::_ENCODED_EVERY]:
        frames = list(video.permute(1, 2, 3, 0).cpu().numpy())
        encoded = hf_clip_vision_encode(frames, models.feature_extractor, models.image_encoder)
        means = encoded.last_hidden_state.float().mean(dim=1)
        similarities.append(float(torch.cosine_similarity(means[1:], means[:1]).mean()))
    return similarities


def seam_jump(videos: torch.Tensor, seams: Sequence[int]) -> list[float | None]:
    """How abruptly the picture changes where a section begins, against the rest of the video.

    The largest mean absolute change between neighbouring frames around the seams (the pair across
    it and one to each side), over the 95th percentile of those elsewhere: up to about 1 where no
    seam shows. 0 if nothing changes there, None without a seam.

    Args:
        seams: numbers of the frames that sections begin with, the first section's left out.
    """
    if not seams:
        return [None] * len(videos)
    changes = _grey(videos).diff(dim=1).abs().mean(dim=(2, 3))
    near = torch.zeros(changes.shape[1], dtype=torch.bool, device=changes.device)
    for seam in seams:
        near[seam - 2 : seam + 1] = True
    jump = changes[:, near].amax(dim=1)
    usual = changes[:, ~near].quantile(0.95, dim=1).clamp(min=_STILL)
    return torch.where(jump < _STILL, 0.0, jump / usual).tolist()


def centroid_jump(track: torch.Tensor, seams: Sequence[int]) -> float | None:
    """How far a subject jumps where a section begins, against how it moves within sections.

    The longest step between the frames on either side of a seam, over the 95th percentile of the
    other steps. None without a seam, or where the subject is not in sight on both sides of one.

    Args:
        track: the subject's place in every frame, shape [frames, 2], in units of the frame's
            shorter side; nan where it is not in sight.
        seams: see `seam_jump`.
    """
    steps = track.diff(dim=0).norm(dim=1)
    at_seam = torch.zeros_like(steps, dtype=torch.bool)
    at_seam[[seam - 1 for seam in seams]] = True
    within = steps[~at_seam & ~steps.isnan()]
    jump = steps[at_seam]
    if not len(jump) or jump.isnan().any() or not len(within):
        return None
    return float(jump.amax() / within.quantile(0.95).clamp(min=_STEP))


def sharpness(videos: torch.Tensor) -> list[float]:
    """Variance of the Laplacian of the frames over that of the first; 1 is as sharp as it."""
    grey = _grey(videos)
    sides = grey[:, :, :-2, 1:-1] + grey[:, :, 2:, 1:-1]
    sides = sides + grey[:, :, 1:-1, :-2] + grey[:, :, 1:-1, 2:]
    variance = (sides - 4 * grey[:, :, 1:-1, 1:-1]).var(dim=(2, 3))
    return (variance.mean(dim=1) / variance[:, 0].clamp(min=1e-6)).tolist()


def _grey(videos: torch.Tensor) -> torch.Tensor:
    """float32 in [0, 255], shape [videos, frames, height, width]."""
    r, g, b = (weight * videos[:, i].float() for i, weight in enumerate(_LUMA))
    return r + g + b
