import math
from dataclasses import replace

import pytest
import torch

from training.tiny_world.world import (
    ACTIONS,
    COLOURS,
    SHAPES,
    SIZES,
    Scene,
    Truth,
    render,
    sample_scene,
    subject_box,
    truth,
)

FRAMES = 73
"""2.4 seconds, by which every action is done."""


def first_frame(scene: Scene) -> torch.Tensor:
    return render([scene], truth([scene], 1))


def cover(scene: Scene, values: Truth) -> torch.Tensor:
    """How much of each pixel the subject covers, shape [frames, height, width]."""
    black = replace(values, colour=torch.zeros_like(values.colour))
    pixels = render([scene], black)[0].float()
    scenery = render([scene], replace(black, opacity=torch.zeros_like(black.opacity)))[0].float()
    return ((scenery - pixels) / scenery).mean(dim=0)


def middle(weights: torch.Tensor, size: tuple[int, int]) -> tuple[torch.Tensor, torch.Tensor]:
    """Centroid in the world's units, each of shape [frames]."""
    height, width = size
    x = (torch.arange(width) + 0.5 - width / 2) / min(size)
    y = (torch.arange(height) + 0.5 - height / 2) / min(size)
    total = weights.sum(dim=(1, 2))
    return (weights.sum(dim=1) @ x) / total, (weights.sum(dim=2) @ y) / total


def possible(action: str, scene: Scene) -> bool:
    return {
        "spin": scene.shape != "circle",
        "wave": scene.shape == "person",
        "night": not scene.night,
        "pan": scene.background == "hills",
    }.get(action, True)


def test_everything_follows_from_the_seed():
    assert sample_scene(5) == sample_scene(5)
    assert sample_scene(5) != sample_scene(6)
    scene = sample_scene(5)
    assert torch.equal(first_frame(scene), first_frame(scene))


def test_the_first_frame_does_not_tell_the_action():
    compared = 0
    for seed in range(40):
        still = sample_scene(seed, "still")
        for action in ACTIONS:
            # Where an action is impossible another frame is drawn, as few actions need.
            if possible(action, still):
                assert replace(sample_scene(seed, action), action="still") == still
                compared += 1
    assert compared > 400


@pytest.mark.parametrize("action", ACTIONS)
def test_an_action_starts_from_the_first_frame_of_a_still_clip(action):
    scene = sample_scene(3, action, SIZES[0])
    assert torch.equal(first_frame(scene), first_frame(replace(scene, happens=False)))


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_the_share_of_still_clips_is_kept_whatever_the_caption(share):
    for actions in (["still", "left", "grow"], ["fade", "night", "wave"]):
        still = [
            not sample_scene(seed, action, still_share=share).happens
            for action in actions
            for seed in range(400)
        ]
        assert sum(still) / len(still) == pytest.approx(share, abs=0.05 if share == 0.5 else 0)


@pytest.mark.parametrize("action", ACTIONS)
def test_what_begins_late_is_the_same_later(action):
    quiet = 36
    at_once = sample_scene(3, action, SIZES[0])
    late = sample_scene(3, action, SIZES[0], quiet=quiet / 30)
    assert replace(late, begin=at_once.begin) == at_once
    pixels = render([late], truth([late], quiet + FRAMES)).int()
    expected = render([at_once], truth([at_once], FRAMES)).int()
    assert (pixels[:, :, :quiet] - expected[:, :, :1]).abs().max() == 0
    assert (pixels[:, :, quiet:] - expected).abs().max() <= 1


def test_in_a_still_clip_nothing_changes():
    scene = replace(sample_scene(4, "leave", SIZES[0]), happens=False)
    clip = render([scene], truth([scene], 61))
    assert (clip == clip[:, :, :1]).all()


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("action", ACTIONS)
def test_every_action_is_drawn_in_every_size(action, size):
    scene = sample_scene(7, action, size)
    values = truth([scene], FRAMES)
    clip = render([scene], values[:, ::18])
    assert clip.dtype == torch.uint8
    assert clip.shape == (1, 3, 5, *size)
    changed = (clip != clip[:, :, :1]).any(dim=1).flatten(2).float().mean(dim=2)
    assert changed[:, 1:].max() > 0.002 or action == "still"


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("action", ["left", "right", "up", "down", "jump", "pan"])
def test_the_subject_is_where_the_truth_says(action, size):
    scene = replace(sample_scene(8, action, size, shape="circle"), x=0.0, y=0.0, radius=0.12)
    values = truth([scene], FRAMES)[:, ::12]
    x, y = middle(cover(scene, values), size)
    assert torch.allclose(x, (values.x - values.pan)[0], atol=0.003)
    assert torch.allclose(y, values.y[0], atol=0.003)


@pytest.mark.parametrize("action", ["left", "grow", "shrink"])
def test_edges_are_smooth_so_that_areas_are_exact(action):
    scene = replace(sample_scene(9, action, SIZES[0], shape="circle"), x=0.013, y=-0.007)
    values = truth([scene], FRAMES)[:, ::6]
    area = cover(scene, values).sum(dim=(1, 2)) / 128**2
    expected = math.pi * (0.92 * values.radius[0]).square()
    assert torch.allclose(area, expected, rtol=0.02)
    partly = (cover(scene, values)[0] - 0.5).abs() < 0.45
    assert partly.sum() > 20


@pytest.mark.parametrize("shape", SHAPES)
def test_opacity_blends_with_the_scenery(shape):
    scene = sample_scene(10, "fade", SIZES[0], shape=shape)
    values = truth([scene], 1)
    whole, half, none = (
        render([scene], replace(values, opacity=torch.full((1, 1), o))).float() for o in (1, 0.5, 0)
    )
    inside = ((whole - none).abs() > 0).any(dim=1)
    assert inside.any()
    # Where a person's head overlaps the body, the body shows through it.
    exact = ((half - (whole + none) / 2).abs() <= 1).all(dim=1)
    assert exact[inside].float().mean() > (0.9 if shape == "person" else 0.999)


@pytest.mark.parametrize("direction", [-1, 1])
@pytest.mark.parametrize("size", SIZES)
def test_who_leaves_is_out_of_the_frame(size, direction):
    scene = replace(sample_scene(11, "leave", size, shape="person"), direction=direction)
    values = truth([scene], FRAMES)
    last = values[:, -1:]
    assert last.opacity.item() == 1
    assert math.copysign(1, last.x.item()) == direction
    assert cover(scene, last).abs().max() == 0
    assert cover(scene, values[:, :1]).max() > 0.9


def test_who_fades_is_gone_from_where_it_was():
    scene = sample_scene(12, "fade", SIZES[0])
    values = truth([scene], FRAMES)
    assert values.x[0, -1] == values.x[0, 0]
    assert values.opacity[0, -1] == 0
    assert cover(scene, values[:, -1:]).max() == 0


def test_the_subject_turns_into_the_new_colour():
    scene = replace(sample_scene(13, "recolour", SIZES[0]), night=False, shape="circle")
    values = truth([scene], FRAMES)
    row = round((scene.y + 0.5) * 128 - 0.5)
    column = round((scene.x + 0.5) * 128 - 0.5)
    clip = render([scene], values[:, [0, -1]])[0, :, :, row, column]
    assert tuple(clip[:, 0].tolist()) == COLOURS[scene.colour]
    assert tuple(clip[:, 1].tolist()) == COLOURS[scene.new_colour]


def test_night_is_darker_than_day():
    scene = sample_scene(14, "night", SIZES[0])
    clip = render([scene], truth([scene], FRAMES)[:, [0, -1]]).float().mean(dim=(0, 1, 3, 4))
    assert clip[1] < 0.5 * clip[0]


def test_a_pan_shows_the_same_world_from_aside():
    scene = replace(sample_scene(15, "pan", SIZES[0]), shape="circle")
    values = truth([scene], 1)
    before, after = (
        render([scene], replace(values, pan=torch.full((1, 1), pan)))[..., 0, :, :]
        for pan in (0.0, 24 / 128)
    )
    assert torch.equal(before[..., 24:], after[..., :-24])


@pytest.mark.parametrize("action", ["wave", "pan", "leave"])
def test_the_box_holds_the_subject_and_little_else(action):
    scene = sample_scene(12, action, SIZES[0])
    values = truth([scene], FRAMES)
    box = subject_box([scene], values)
    without = render([scene], replace(values, opacity=torch.zeros(1, FRAMES)))
    # Tips of stars end in a pixel of which they cover next to nothing.
    subject = ((render([scene], values).int() - without.int()).abs() > 20).any(dim=1)
    assert box.shape == subject.shape
    assert not (subject & ~box).any()
    assert box[:, 0].sum() < 8 * subject[:, 0].sum()
