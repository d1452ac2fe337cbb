import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from training.tiny_world.measure import CHECKED_EVERY, Outcome, measure
from training.tiny_world.world import (
    ACTIONS,
    COLOURS,
    SIZES,
    Scene,
    Truth,
    render,
    sample_scene,
    truth,
)

FRAMES = 73
BEGUN = 0.1958
"""Where 3 s^2 - 2 s^3, by which most actions go, is a tenth."""
DELAYS = {
    "spin": lambda s: s.begin + 0.1 + 0.1 * ((FRAMES - 1) / 30 - s.begin - 0.1),
    "jump": lambda s: s.begin + math.asin(0.1) / math.pi / 0.8,
    "wave": lambda s: s.begin + 0.1 * 0.2,
    "leave": lambda s: s.begin + 1.25 * s.duration * 0.1 ** (1 / 1.3),
}
MOVING = [action for action in ACTIONS if action != "still"]


def clip(scene: Scene) -> torch.Tensor:
    return render([scene], truth([scene], FRAMES))


def blurred(pixels: torch.Tensor) -> torch.Tensor:
    """Gaussian blur of one pixel, noise of 6 and a shift of colour."""
    row = torch.exp(-0.5 * torch.arange(-3, 4).square())
    row = (row / row.sum()).repeat(3, 1, 1, 1)
    generator = torch.Generator().manual_seed(0)

    def worse(frames: torch.Tensor) -> torch.Tensor:
        frames = F.pad(frames, (3, 3, 3, 3), mode="replicate")
        frames = F.conv2d(F.conv2d(frames, row, groups=3), row.transpose(2, 3), groups=3)
        noise = torch.randn(frames.shape, generator=generator)
        return frames + 6 * noise + torch.tensor([6.0, -5.0, 4.0]).view(3, 1, 1)

    return by_frame(pixels, worse)


def halved(pixels: torch.Tensor) -> torch.Tensor:
    """To half the size and back."""
    return by_frame(
        pixels,
        lambda frames: F.interpolate(F.avg_pool2d(frames, 2), frames.shape[2:], mode="bilinear"),
    )


def by_frame(pixels: torch.Tensor, worse) -> torch.Tensor:
    frames = worse(pixels[0].transpose(0, 1).float())
    return frames.round().clamp(0, 255).to(torch.uint8).transpose(0, 1)[None]


@pytest.mark.parametrize(("number", "action"), list(enumerate(MOVING)))
def test_an_action_is_seen_when_and_as_far_as_it_happens(number, action):
    scene = sample_scene(number, action, SIZES[number % 3])
    (outcome,) = measure([scene], (blurred, halved)[number % 2](clip(scene)))
    assert outcome.happened and not outcome.frozen
    assert outcome.shape_kept == outcome.colour_kept == 1
    assert outcome.extent == pytest.approx(1, abs=0.15)
    begun = DELAYS.get(action, lambda s: s.begin + BEGUN * s.duration)(scene)
    assert outcome.delay == pytest.approx(begun, abs=0.12)


@pytest.mark.parametrize("action", ["still", "wave", "spin", "fade", "pan"])
def test_a_still_clip_is_frozen_whatever_its_caption(action):
    scene = sample_scene(3, action, SIZES[0])
    (outcome,) = measure([scene], blurred(clip(replace(scene, happens=False))))
    assert outcome.frozen
    assert outcome.happened is (action == "still")
    assert outcome.extent == pytest.approx(0, abs=0.1) or action == "still"
    assert math.isnan(outcome.delay)


@pytest.mark.parametrize(
    ("told", "seen"),
    [
        ("still", "wave"),
        ("left", "right"),
        ("left", "pan"),
        ("right", "leave"),
        ("up", "jump"),
        ("jump", "up"),
        ("grow", "shrink"),
        ("shrink", "fade"),
        ("wave", "spin"),
        ("leave", "fade"),
        ("fade", "leave"),
        ("fade", "shrink"),
        ("night", "fade"),
        ("pan", "right"),
    ],
)
def test_another_action_is_not_the_captioned_one(told, seen):
    shape = "person" if "wave" in (told, seen) else None
    scene = sample_scene(4, told, SIZES[0], shape=shape)
    if "pan" in (told, seen):
        scene = replace(scene, background="hills")
    other = replace(scene, action=seen, direction=1)
    (outcome,) = measure([scene], blurred(clip(other)))
    assert not outcome.happened
    assert not outcome.frozen


@pytest.mark.parametrize(
    ("action", "change"),
    [("pan", {"direction": -1}), ("recolour", {"new_colour": "green"})],
)
def test_the_wrong_side_or_colour_does_not_count(action, change):
    scene = replace(
        sample_scene(5, action, SIZES[0]), direction=1, colour="red", new_colour="white"
    )
    (outcome,) = measure([scene], clip(replace(scene, **change)))
    assert not outcome.happened


def test_another_pace_than_truth_would_have_is_measured():
    scene = replace(sample_scene(6, "right", SIZES[0]), begin=0.1, duration=0.9, amount=1.0)
    shown = replace(scene, begin=0.6, duration=1.5, amount=0.0)
    (outcome,) = measure([scene], blurred(clip(shown)))
    assert outcome.happened
    assert outcome.extent == pytest.approx(0.22 / 0.3, abs=0.05)
    assert outcome.delay == pytest.approx(0.6 + BEGUN * 1.5, abs=0.1)


def test_shape_and_colour_are_lost_from_when_they_change():
    scene = sample_scene(7, "left", SIZES[0], shape="square")
    other = replace(scene, shape="star", colour=next(c for c in COLOURS if c != scene.colour))
    pixels = clip(scene)
    middle = 4 * CHECKED_EVERY
    pixels[:, :, middle:] = clip(other)[:, :, middle:]
    (outcome,) = measure([scene], blurred(pixels))
    assert outcome.happened
    assert outcome.shape_kept == outcome.colour_kept == 0.5


def test_a_subject_that_is_lost_has_not_kept_its_shape():
    scene = sample_scene(8, "still", SIZES[0])
    pixels = clip(scene)
    empty = replace(truth([scene], FRAMES), opacity=torch.zeros(1, FRAMES))
    pixels[:, :, 1:] = render([scene], empty)[:, :, 1:]
    (outcome,) = measure([scene], pixels)
    assert not outcome.happened and not outcome.frozen
    assert outcome.shape_kept == outcome.colour_kept == 1 / 8


def test_the_track_is_the_truth_s_until_the_subject_has_left():
    scene = sample_scene(9, "leave", SIZES[0], shape="person")
    expected = truth([scene], FRAMES)
    (outcome,) = measure([scene], clip(scene))
    x, y = outcome.track.unbind(1)
    inside = expected.x[0].abs() < 0.5 - scene.radius
    assert inside.sum() > 20
    # Swinging limbs take the middle along a little.
    assert torch.allclose(x[inside], expected.x[0][inside].to(x.dtype), atol=0.02)
    assert torch.allclose(y[inside], expected.y[0][inside].to(y.dtype), atol=0.02)
    assert outcome.track[-5:].isnan().all()


# A caption that changes, from "still"

CHANGE, LONG = 36, 109
"""Frames: of the change, which is at 1.2 s, and of three sections."""
WINDOWS = slice(CHANGE - 15, CHANGE), slice(LONG - 15, LONG)


def changing(action: str, number: int = 12, **values) -> Scene:
    return replace(sample_scene(number, action, SIZES[0], quiet=CHANGE / 30), **values)


def judged(scene: Scene, values: Truth) -> Outcome:
    (outcome,) = measure([scene], blurred(render([scene], values)), WINDOWS)
    return outcome


@pytest.mark.parametrize(("number", "action"), list(enumerate(MOVING)))
def test_a_perfect_change(number, action):
    scene = changing(action, number)
    outcome = judged(scene, truth([scene], LONG))
    assert outcome.happened and not outcome.frozen
    assert outcome.new == (pytest.approx(0, abs=0.1), pytest.approx(1, abs=0.15))
    assert outcome.old == (1, 0)
    assert 0 <= outcome.delay < 1
    assert math.isnan(outcome.ghosting) is (action not in ("leave", "fade"))
    assert not outcome.ghosting > 0.15


@pytest.mark.parametrize("action", ["right", "fade", "night"])
def test_no_change(action):
    scene = changing(action)
    outcome = judged(scene, truth([replace(scene, happens=False)], LONG))
    assert outcome.frozen and not outcome.happened and math.isnan(outcome.delay)
    assert outcome.new == (pytest.approx(0, abs=0.1), pytest.approx(0, abs=0.1))
    assert outcome.old == (1, 1)
    assert action != "fade" or outcome.ghosting == pytest.approx(1, abs=0.1)


def test_a_late_change_is_the_same_one_later():
    soon, late = changing("right", begin=1.3, duration=0.9), changing("right", begin=2.1)
    late = replace(late, duration=0.9)
    outcomes = [judged(soon, truth([scene], LONG)) for scene in (soon, late)]
    for outcome, begin in zip(outcomes, (0.1, 0.9), strict=True):
        assert outcome.delay == pytest.approx(begin + BEGUN * 0.9, abs=0.1)
        assert outcome.new[1] == pytest.approx(1, abs=0.05) and outcome.old == (1, 0)


def test_a_change_before_its_time_is_no_rise():
    scene = changing("fade", begin=0.0, duration=0.9)
    outcome = judged(scene, truth([scene], LONG))
    assert outcome.new == (pytest.approx(1, abs=0.05), pytest.approx(1, abs=0.05))
    assert outcome.old == (0, 0)


@pytest.mark.parametrize("left", [0.25, 0.5])
def test_a_ghost_is_what_is_left_of_the_subject(left):
    scene = changing("fade")
    values = truth([scene], LONG)
    outcome = judged(scene, replace(values, opacity=1 - (1 - left) * (1 - values.opacity)))
    assert outcome.ghosting == pytest.approx(left, abs=0.1)
    assert outcome.new[1] == pytest.approx(1 - left, abs=0.1) and outcome.old == (1, 0)


def test_the_other_thing_ends_the_old_and_is_not_the_new():
    scene = changing("fade")
    outcome = judged(scene, truth([replace(scene, action="left")], LONG))
    assert outcome.new[1] == pytest.approx(0, abs=0.1) and outcome.old == (1, 0)
    assert not outcome.happened and outcome.ghosting > 0.8


def test_without_a_change_there_is_none_of_it():
    scene = sample_scene(3, "fade", SIZES[0])
    (outcome,) = measure([scene], clip(scene)[:, :, :20])
    assert all(map(math.isnan, (*outcome.new, *outcome.old, outcome.ghosting)))


def test_clips_are_measured_alike_alone_and_together():
    scenes = [sample_scene(seed, size=(96, 160)) for seed in (10, 11)]
    pixels = torch.cat([clip(scene) for scene in scenes])[:, :, :31]
    together = measure(scenes, pixels)
    alone = [measure([s], p[None])[0] for s, p in zip(scenes, pixels, strict=True)]
    for a, b in zip(together, alone, strict=True):
        assert str(replace(a, track=a.track[:0])) == str(replace(b, track=b.track[:0]))
        assert torch.equal(a.track, b.track)
