"""What happened in a clip of the small world, measured from its pixels.

Of the scene only the first frame, the two colours and the direction told are taken as known. The
scenery is drawn without the subject for the night and pan that are found in a frame; what differs
from it is the subject, whose place, size, rotation, colour and shape are then measured. Lengths are
in the world's units, see `world`.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache, reduce
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from diffusers_helper.sections import FPS
from training.tiny_world.world import (
    COLOURS,
    NIGHT_SUBJECT,
    SHAPES,
    SKIN,
    Scene,
    Truth,
    axes,
    render,
    sample_scene,
    truth,
)

CHECKED_EVERY = 10
"""Frames between those whose shape and colour are classified."""

# What counts as having happened: half of the least that `truth` draws.
_DISTANCE = 0.11
_TURNS_A_SECOND = 0.15
_LATEST_BEGIN = 0.45
"""Seconds after which a spin of `truth` is at its pace."""
_GROWTH = 0.3
_SHRINKAGE = 0.2
_HEIGHT = 0.08
_RAISED = 1.2
_SWING = 0.45
_UPRIGHT = 0.5
"""Of one who waves: a person upside down has an arm up, too."""
_DARKENING = 0.5
_PAN = 0.15

# What counts as nothing: above what blur and noise do to a still clip, well below the above.
_STILL_POSITION = 0.03
_STILL_SIZE = 0.12
_STILL_TURN = 0.15
_STILL_OPACITY = 0.8
_STILL_COLOUR = 0.12
_STILL_NIGHT = 0.1
_STILL_PAN = 0.03
_STILL_ARM = 0.5

_VISIBLE = 0.2
"""Share of the subject's contrast to the scenery below which it is gone."""
_OPAQUE = 0.4
"""Share that the part of it in sight has while it goes out of the frame, at least."""
_LEAST_CONTRAST = 0.06
"""The same in colours of [0, 1], whatever the subject's: a decoder's errors reach half of it."""
_NOISE = 0.03
"""Differences below are no sign of a subject."""
_PALE = 0.15
"""Differences beyond count as this, so that a bright head is no more than dark clothes."""
_SOLID = 0.6
"""What there is of a subject's colour in the middle of it, at least, if it does not fade."""
_TELLING = 60
"""Pixels in which a shape can be told."""
_TINT = 0.08
"""The most that a whole frame's colour may be off, which is taken back."""
_BEGUN = 0.1
"""Share of its full effect from which an action has begun."""
_GONE = ("leave", "fade")
"""Actions at whose end there is no subject."""
_ENDING = 5
"""Frames whose median is a clip's end."""
_WAVE = FPS // 2
"""Frames in which an arm goes to and fro."""
_POOL = 4
"""Pixels a side of the blocks in which the scenery is compared."""
_MISMATCH = 0.1
"""The most that a colour counts for in finding the pan: where the subject is, all are wrong."""
_FARTHEST_PAN = 0.75
_WINDOW = 2.4
"""What is farther from the subject than this many of its first radii is not part of it; it may
grow to 1.9, and a star's tips are at 1.15."""
_SOFTNESS = 3
"""Steps of a fifth of a radius or so by which shapes are blurred to be compared: so many are what a
decoder leaves of the smallest."""
_CANONICAL = 48
_CANONICAL_REACH = 1.2
"""Shapes are compared on a grid of so many points a side, which reaches so many square roots of
their area from their middle."""
_ORDERS = {"circle": 0, "square": 4, "triangle": 3, "star": 5, "person": 2}
"""By what part of a turn a shape looks the same, nearly for the person; a circle always does."""
_CLEAR_ROTATION = 0.4
"""Share of the first frame's angular contrast that a rotation is read from."""
_SHOULDER = (0.22, -0.36)
_HANGING = 0.42
"""Of a person's right arm, see `world`: where it begins, and its angle when it hangs."""


@dataclass(frozen=True)
class Outcome:
    """What was measured of a clip."""

    happened: bool
    """Whether the captioned action was seen; of "still", whether nothing else was."""
    delay: float
    """Seconds until a tenth of the action's effect in this clip was reached, from the change of the
    caption if it changes; nan if it did not happen, and of "still"."""
    extent: float
    """How far the action went: 0 is not at all, 1 as far as `truth` has it; nan of "still"."""
    frozen: bool
    """Whether nothing moved or changed at all."""
    shape_kept: float
    """Share of every tenth frame, those with the whole subject in sight, in which its shape is the
    scene's; nan without such frames. Where it should be in sight and is not, it is not kept."""
    colour_kept: float
    """The same for its colour; of "recolour" also the new colour and those between."""
    track: torch.Tensor
    """The subject's x and y in the world, against the scenery; shape [frames, 2], nan where it is
    not seen."""
    new: tuple[float, float]
    """Before and after a change of the caption: `extent`, at least 0 and at most 1; nan without a
    change, and of "still"."""
    old: tuple[float, float]
    """Before and after: 1 if all was as in the first frame, as "still" has it, else 0; nan without
    a change."""
    ghosting: float
    """Contrast of what is left of the subject at the end against what it had, up to 1; nan without
    a change, and of actions that leave it in the frame."""


@dataclass(frozen=True)
class _Seen:
    """What is read off frames: a tensor a field, shape [clips, frames], nan where it cannot be."""

    night: torch.Tensor
    pan: torch.Tensor
    visible: torch.Tensor
    whole: torch.Tensor
    """Visible, and not cut by the frame."""
    x: torch.Tensor
    y: torch.Tensor
    area: torch.Tensor
    phase: torch.Tensor
    """Radians; a rotation times the shape's order."""
    clarity: torch.Tensor
    """Of the phase."""
    opacity: torch.Tensor
    colour: torch.Tensor
    """By daylight, shape [clips, frames, 3]."""
    contrast: torch.Tensor
    """To the scenery, against what is expected."""
    arm: torch.Tensor
    shape: torch.Tensor
    """Index in SHAPES."""
    colour_right: torch.Tensor


@dataclass(frozen=True)
class _Course:
    """How a clip differs from its first frame: an array a field, shape [frames]."""

    x: np.ndarray
    y: np.ndarray
    size: np.ndarray
    """Ratio."""
    turn: np.ndarray
    opacity: np.ndarray
    recolour: np.ndarray
    """Share of the way to the new colour."""
    discoloured: np.ndarray
    """Distance from the scene's colour."""
    night: np.ndarray
    pan: np.ndarray
    arm: np.ndarray
    gone: np.ndarray
    """Whether the subject cannot be seen."""
    left: bool
    """Whether it is gone because it went out of the frame."""

    def __getitem__(self, frames: slice) -> "_Course":
        """Some of the frames, by the same first one."""
        return replace(self, **{k: v[frames] for k, v in vars(self).items() if k != "left"})


def measure(
    scenes: Sequence[Scene], clips: torch.Tensor, windows: tuple[slice, slice] | None = None
) -> list[Outcome]:
    """Measure clips, at least 2.3 seconds of which give every action the time to be done.

    Which side a subject leaves by, and which way it spins, captions need not tell, and either is
    right.

    Args:
        scenes: of one size; `happens` and what only `truth` decides with are not regarded, but for
            the extent of 1.
        clips: uint8, shape [clips, 3, frames, height, width].
        windows: of clips that were captioned as still at first: the frames in which they are looked
            at before the caption changed, which it did at their end, and after it, at the end of
            the clip. All verdicts but on shape and colour are of what comes after the change then.
    """
    outcomes = []
    at_once = 16 if clips.is_cuda else 1  # what fits into a CPU's cache is much faster
    for i in range(0, len(scenes), at_once):
        outcomes += _measure(scenes[i : i + at_once], clips[i : i + at_once], windows)
    return outcomes


def _measure(
    scenes: Sequence[Scene], clips: torch.Tensor, windows: tuple[slice, slice] | None
) -> list[Outcome]:
    first = render(scenes, truth(scenes, 1), clips.device)
    seen = _look(scenes, torch.cat([first, clips], dim=2))
    happening = [replace(scene, happens=True) for scene in scenes]
    expected = truth(happening, clips.shape[2])
    return [
        _judge(scene, _one(seen, i), _one(expected, i), windows) for i, scene in enumerate(scenes)
    ]


def _one(values: _Seen | Truth, i: int) -> Any:
    """A clip's, as arrays."""
    return replace(values, **{k: v[i].cpu().numpy() for k, v in vars(values).items()})


# From pixels to values


@torch.inference_mode()
def _look(scenes: Sequence[Scene], clips: torch.Tensor) -> _Seen:
    """Measure frames, the first of each clip being the scene's first as rendered.

    Within, what has a number a frame has shape [clips, frames], pictures [clips, frames, height,
    width], and their colours are a dimension before height.
    """
    device = clips.device
    scene_of = _of_scenes(scenes, device)
    frames = clips.transpose(1, 2).contiguous().float() / 255
    night, pan = _conditions(scenes, frames)
    drawn = _scenery(scenes, night, pan, device)
    scenery = drawn.float() / 255
    tint = _pooled(frames - scenery).flatten(3).median(dim=3).values.clamp(-_TINT, _TINT)
    frames = frames - tint[..., None, None]

    # Whatever lies between the colours around it may be scenery, blurred or a little aside.
    least, most = (
        _around(drawn, 2, combine).float() / 255 for combine in (torch.minimum, torch.maximum)
    )
    difference = _blurred(frames - frames.clamp(least, most), 1)
    distance = _length(difference)
    x, y = axes(scenes[0], device)
    middle_x, middle_y = _find(distance, x, y, _WINDOW * scene_of["radius"])

    persons, recoloured = scene_of["person"][:, None], scene_of["recoloured"][:, None]
    narrow = torch.where(persons, 0.15, 0.3) * scene_of["radius"]
    middle = _bell(y, middle_y, narrow)[..., :, None] * _bell(x, middle_x, narrow)[..., None, :]
    weight = middle * (distance.clamp(max=_PALE).square() + 1e-12)
    weight = weight / weight.sum(dim=(2, 3), keepdim=True)
    seen, behind = (torch.einsum("cfkhw,cfhw->cfk", v, weight) for v in (frames, scenery))
    daylight = 1 + night[..., None] * (torch.tensor(NIGHT_SUBJECT, device=device) - 1)
    old, new = scene_of["colour"] * daylight, scene_of["new_colour"] * daylight
    skin = torch.tensor(SKIN, device=device).div(255) * daylight
    expected = (old - behind).norm(dim=-1)
    expected = torch.where(recoloured, expected.minimum((new - behind).norm(dim=-1)), expected)
    expected = torch.where(persons, expected.maximum((skin - behind).norm(dim=-1)), expected)
    window = _square(x, y, middle_x, middle_y, _WINDOW * scene_of["radius"])
    peak = _blurred(distance * window, 2).amax(dim=(2, 3))
    visible = peak > (_VISIBLE * expected).clamp(min=_LEAST_CONTRAST)

    opacity = _along(seen - behind, old - behind)
    skin = torch.where(recoloured[..., None], skin, torch.lerp(behind, skin, opacity[..., None]))
    matte, clothes = _mattes(difference, distance, scenery, seen, skin, persons)
    matte, clothes = matte * window, clothes * window
    area = matte.sum(dim=(2, 3))
    across, down = matte.sum(dim=2), matte.sum(dim=3)
    inner = area.clamp(min=1e-6)
    centre_x, centre_y = (across * x).sum(dim=2) / inner, (down * y).sum(dim=2) / inner
    cut_left, cut_right = across[..., 0] > 2, across[..., -1] > 2
    cut_top, cut_bottom = down[..., 0] > 2, down[..., -1] > 2
    at_x = _place(centre_x, matte.amax(dim=2), x, cut_left, cut_right) - centre_x[:, :1]
    at_y = _place(centre_y, matte.amax(dim=3), y, cut_top, cut_bottom) - centre_y[:, :1]
    whole = visible & ~(cut_left | cut_right | cut_top | cut_bottom)

    short = min(scenes[0].size)
    reach = area.clamp(min=9).sqrt() / short * _CANONICAL_REACH
    outlines = _outlines(matte, centre_x, centre_y, reach, scenes[0])
    phase, clarity = _phases(outlines, scene_of["order"])
    shapes, templates = _templates(device)
    error = templates.square().sum(dim=1) - 2 * outlines.flatten(2) @ templates.T
    at_x, at_y = scene_of["x"] + at_x, scene_of["y"] + at_y
    radius = scene_of["radius"] * (area / area[:, :1]).sqrt()
    arm = _arms(clothes, at_x, at_y, radius, scenes[0])
    hidden = torch.tensor(math.nan, device=device)
    return _Seen(
        night=night,
        pan=pan,
        visible=visible,
        whole=whole,
        x=torch.where(visible, at_x + pan, hidden),
        y=torch.where(visible, at_y, hidden),
        area=torch.where(whole, area, hidden),
        phase=phase,
        clarity=torch.where(whole, clarity, 0),
        opacity=opacity,
        colour=seen / daylight,
        contrast=peak / expected,
        arm=torch.where(whole & persons, arm, hidden),
        shape=shapes[error.argmin(dim=2)],
        colour_right=_colour_right(scene_of, seen, behind, daylight),
    )


def _of_scenes(scenes: Sequence[Scene], device: torch.device) -> dict[str, torch.Tensor]:
    """What is known of the scenes, shape [clips, 1] or [clips, 1, 3], flags and orders [clips]."""

    def each(value: Callable[[Scene], Any]) -> torch.Tensor:
        return torch.tensor([value(s) for s in scenes], device=device)

    names = list(COLOURS)
    return {
        "x": each(lambda s: s.x)[:, None],
        "y": each(lambda s: s.y)[:, None],
        "radius": each(lambda s: s.radius)[:, None],
        "colour": each(lambda s: COLOURS[s.colour])[:, None] / 255,
        "new_colour": each(lambda s: COLOURS[s.new_colour])[:, None] / 255,
        "indices": each(lambda s: [names.index(c) for c in _right_colours(s)]),
        "order": each(lambda s: _ORDERS[s.shape]),
        "person": each(lambda s: s.shape == "person"),
        "recoloured": each(lambda s: s.action == "recolour"),
        "fading": each(lambda s: s.action == "fade"),
    }


def _right_colours(scene: Scene) -> tuple[str, str]:
    return scene.colour, scene.new_colour if scene.action == "recolour" else scene.colour


def _scenery(
    scenes: Sequence[Scene], night: torch.Tensor, pan: torch.Tensor, device: torch.device
) -> torch.Tensor:
    """The frames without a subject, uint8 of shape [clips, frames, 3, height, width]."""
    zero, one = torch.zeros_like(night), torch.ones_like(night)
    values = Truth(
        x=zero,
        y=zero,
        radius=one,
        rotation=zero,
        opacity=zero,
        colour=zero[..., None].expand(*zero.shape, 3),
        night=night,
        pan=pan,
        arm=zero,
        stride=zero,
    )
    simple = [replace(scene, shape="circle") for scene in scenes]  # the fastest not to be seen
    return render(simple, values, device).transpose(1, 2).contiguous()


def _pooled(frames: torch.Tensor) -> torch.Tensor:
    return F.avg_pool2d(frames.flatten(0, 1), _POOL).unflatten(0, frames.shape[:2])


def _around(
    images: torch.Tensor,
    reach: int,
    combine: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
) -> torch.Tensor:
    """All values of the square around each pixel, combined; much faster than pooling on a CPU."""
    for dim in (-1, -2):
        size = images.shape[dim]
        first, last = images.narrow(dim, 0, 1), images.narrow(dim, size - 1, 1)
        padded = torch.cat([first] * reach + [images] + [last] * reach, dim=dim)
        images = reduce(combine, [padded.narrow(dim, k, size) for k in range(2 * reach + 1)])
    return images


def _blurred(images: torch.Tensor, reach: int) -> torch.Tensor:
    return _around(images, reach, torch.add) / (2 * reach + 1) ** 2


def _length(frames: torch.Tensor) -> torch.Tensor:
    """Of colours; much faster than a norm along a dimension that is not the last."""
    return frames.square().sum(dim=2).sqrt()


def _conditions(scenes: Sequence[Scene], frames: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Night and pan of every frame, shape [clips, frames]."""
    device, width, short = frames.device, frames.shape[-1], min(scenes[0].size)
    # Views next to each other make a wide one; by day, and by night.
    sides = torch.tensor((-1.0, 0.0, 1.0), device=device).repeat(len(scenes), 2) * width / short
    nights = torch.tensor((0.0, 1.0), device=device).repeat_interleave(3).repeat(len(scenes), 1)
    wide = _scenery(scenes, nights, sides, device).unflatten(1, (2, 3)) / 255
    day, dark = wide.permute(0, 1, 3, 4, 2, 5).flatten(4).unbind(1)  # [clips, 3, height, 3 width]
    seen = _pooled(frames)
    night = _nights(seen, *(_pooled(v[:, None, ..., width : 2 * width]) for v in (day, dark)))
    pan = torch.zeros_like(night)
    hilly = torch.tensor([s.background == "hills" for s in scenes], device=device)
    if not hilly.any():
        return night, pan
    i = hilly.nonzero()[:, 0]
    frames, day, dark, n = frames[i], day[i], dark[i], night[i][..., None, None, None]

    # First by blocks, then around what was found by columns.
    seen = seen[i]
    blocks = [F.avg_pool2d(v, _POOL)[:, None] for v in (day, dark)]
    columns, middle = seen.shape[-1], width // _POOL
    most = round(_FARTHEST_PAN * short / _POOL)
    costs = [
        _mismatch(seen, *(v[..., middle + k : middle + k + columns] for v in blocks), n)
        for k in range(-most, most + 1)
    ]
    found = (torch.stack(costs).argmin(dim=0) - most) * _POOL
    seen = F.avg_pool2d(frames.flatten(0, 1), (_POOL, 1)).unflatten(0, frames.shape[:2])
    offsets = found[..., None] + torch.arange(-_POOL - 1, width + _POOL + 1, device=device) + width
    rows = [F.avg_pool2d(v, (_POOL, 1))[:, None] for v in (day, dark)]
    offsets = offsets[:, :, None, None].clamp(0, 3 * width - 1)
    rows = [torch.take_along_dim(v, offsets, dim=-1) for v in rows]
    count = 2 * _POOL + 3
    costs = torch.stack(
        [_mismatch(seen, *(v[..., k : k + width] for v in rows), n) for k in range(count)]
    )
    best = costs[1:-1].argmin(dim=0) + 1
    before, at, after = (costs.take_along_dim(best[None] + k, dim=0)[0] for k in (-1, 0, 1))
    part = 0.5 * (before - after) / (before - 2 * at + after).clamp(min=1e-9)
    pan[i] = (found + best - _POOL - 1 + part.clamp(-0.5, 0.5)) / short
    return night, pan


def _nights(seen: torch.Tensor, day: torch.Tensor, dark: torch.Tensor) -> torch.Tensor:
    """How far frames are from day to night, where most of the blocks agree."""
    change = dark - day
    night = ((seen - day) * change).sum(dim=2) / change.square().sum(dim=2)
    return night.flatten(2).median(dim=2).values.clamp(0, 1)


def _mismatch(
    seen: torch.Tensor, day: torch.Tensor, dark: torch.Tensor, night: torch.Tensor
) -> torch.Tensor:
    return (seen - torch.lerp(day, dark, night)).abs().clamp(max=_MISMATCH).mean(dim=(2, 3, 4))


def _find(
    distance: torch.Tensor, x: torch.Tensor, y: torch.Tensor, window: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Where most of the difference is, shape [clips, frames] each."""
    mass = F.avg_pool2d((distance - _NOISE).clamp(0, _PALE), 2)
    x, y = x.unflatten(0, (-1, 2)).mean(dim=1), y.unflatten(0, (-1, 2)).mean(dim=1)
    side = round(0.13 * min(mass.shape[2:])) | 1  # about a radius
    dense = F.avg_pool2d(mass, side, 1, side // 2).flatten(2).argmax(dim=2)
    at_x, at_y = x[dense % len(x)], y[dense // len(x)]
    for _ in range(4):
        part = mass * _square(x, y, at_x, at_y, window)
        total = part.sum(dim=(2, 3)).clamp(min=1e-6)
        at_x, at_y = (
            (part.sum(dim=2) * x).sum(dim=2) / total,
            (part.sum(dim=3) * y).sum(dim=2) / total,
        )
    return at_x, at_y


def _square(
    x: torch.Tensor, y: torch.Tensor, at_x: torch.Tensor, at_y: torch.Tensor, reach: torch.Tensor
) -> torch.Tensor:
    """What is within reach on both axes, shape [clips, frames, height, width]."""
    across = (x - at_x[..., None]).abs() < reach[..., None]
    down = (y - at_y[..., None]).abs() < reach[..., None]
    return down[..., :, None] & across[..., None, :]


def _bell(x: torch.Tensor, middle: torch.Tensor, width: torch.Tensor) -> torch.Tensor:
    return (-0.5 * ((x - middle[..., None]) / width[..., None]).square()).exp()


def _mattes(
    difference: torch.Tensor,
    distance: torch.Tensor,
    scenery: torch.Tensor,
    seen: torch.Tensor,
    skin: torch.Tensor,
    persons: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """How far each pixel belongs to the subject, in [0, 1], and of a person without the head."""

    def spread(colour: torch.Tensor) -> torch.Tensor:
        return colour[..., None, None]

    full = _length(spread(seen) - scenery).clamp(min=_LEAST_CONTRAST)
    clothes = _cut(distance / full)
    matte = clothes.clone()
    if persons.any():
        i = persons[:, 0].nonzero()[:, 0]
        difference, scenery = difference[i], scenery[i]
        towards_skin, towards_clothes = spread(skin[i]) - scenery, spread(seen[i]) - scenery
        like_skin = (difference * towards_skin).sum(dim=2) / _length(towards_skin)
        like_clothes = (difference * towards_clothes).sum(dim=2) / _length(towards_clothes)
        is_skin = like_skin > like_clothes
        head = _cut(distance[i] / _length(towards_skin).clamp(min=_LEAST_CONTRAST))
        matte[i] = torch.where(is_skin, head, matte[i])
        clothes[i] = torch.where(is_skin, 0, clothes[i])
    return matte, clothes


def _cut(cover: torch.Tensor) -> torch.Tensor:
    """With a steeper edge, at the same place."""
    return (2 * cover - 0.5).clamp(0, 1)


def _place(
    centre: torch.Tensor,
    profile: torch.Tensor,
    axis: torch.Tensor,
    cut_low: torch.Tensor,
    cut_high: torch.Tensor,
) -> torch.Tensor:
    """The subject's middle along an axis; from the edge that is in sight where the frame cuts the
    other."""
    inside = profile > 0.5
    low = torch.where(inside, axis, math.inf).amin(dim=2)
    high = torch.where(inside, axis, -math.inf).amax(dim=2)
    by_high = centre[:, :1] + high - high[:, :1]
    by_low = centre[:, :1] + low - low[:, :1]
    centre = torch.where(cut_low & ~cut_high, by_high, centre)
    return torch.where(cut_high & ~cut_low, by_low, centre)


def _sample(matte: torch.Tensor, x: torch.Tensor, y: torch.Tensor, scene: Scene) -> torch.Tensor:
    """The matte at places [clips, frames, rows, columns]."""
    height, width = scene.size
    scale = 2 * min(scene.size)
    grid = torch.stack([x * (scale / width), y * (scale / height)], dim=-1).flatten(0, 1)
    values = F.grid_sample(matte.flatten(0, 1)[:, None], grid, align_corners=False)
    return values[:, 0].unflatten(0, x.shape[:2])


def _outlines(
    matte: torch.Tensor, x: torch.Tensor, y: torch.Tensor, reach: torch.Tensor, scene: Scene
) -> torch.Tensor:
    """Subjects in the middle of a small grid, all of one area."""
    across, down = _canonical_grid(matte.device)
    spread = (..., None, None)
    return _sample(
        matte, x[spread] + reach[spread] * across, y[spread] + reach[spread] * down, scene
    )


def _canonical_grid(device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    steps = (torch.arange(_CANONICAL, device=device) + 0.5) * 2 / _CANONICAL - 1
    down, across = torch.meshgrid(steps, steps, indexing="ij")
    return across, down


def _phases(outlines: torch.Tensor, order: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Rotations times order, and how clear they are in [0, 1], shape [clips, frames]."""
    x, y = _canonical_grid(outlines.device)
    weight = (x.square() + y.square()).flatten()
    angle = torch.atan2(y, x).flatten() * order[:, None]
    wave = torch.polar(weight.expand_as(angle), angle)
    flat = outlines.flatten(2)
    sums = torch.einsum("cfp,cp->cf", flat.to(wave.dtype), wave)
    return sums.angle(), sums.abs() / (flat @ weight).clamp(min=1e-6)


@cache
def _templates(device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """All shapes as `_outlines` gives them, in many rotations and poses, sharp and blurred.

    Returns:
        Their indices in SHAPES, and values of shape [templates, points].
    """
    poses = []  # shape, rotation, arm, stride
    for shape in SHAPES:
        turn = 2 * math.pi / (_ORDERS[shape] or 1)
        limbs = [(0.0, 0.0)]
        count = 1 if shape == "circle" else round(turn / 0.25)
        if shape == "person":
            turn, count = 2 * math.pi, 24
            limbs += [(1.2, 0.0), (2.0, 0.0), (2.4, 0.0), (2.85, 0.0)]
            limbs += [(0.0, s) for s in (-1.0, -0.5, 0.5, 1.0)]
        poses += [(shape, turn * k / count, *limb) for k in range(count) for limb in limbs]
    size, radius = (96, 96), 0.33
    scenes = [
        replace(sample_scene(0), size=size, shape=shape, background="plain") for shape, *_ in poses
    ]
    rotation, arm, stride = (torch.tensor([pose[k] for pose in poses])[:, None] for k in (1, 2, 3))
    zero = torch.zeros_like(rotation)
    values = Truth(
        x=zero,
        y=zero,
        radius=zero + radius,
        rotation=rotation,
        opacity=zero + 1,
        colour=zero[..., None].expand(-1, -1, 3),
        night=zero,
        pan=zero,
        arm=arm,
        stride=stride,
    )
    with_it, without = render(scenes, values), render(scenes, replace(values, opacity=zero))
    mattes = [_blurred((with_it != without).any(dim=1).float(), 1)]
    for _ in range(_SOFTNESS):
        mattes.append(_blurred(_blurred(mattes[-1], 4), 4))
    matte = _cut(torch.cat(mattes))
    x, y = axes(scenes[0], matte.device)
    area = matte.sum(dim=(2, 3))
    centre_x = (matte.sum(dim=2) * x).sum(dim=2) / area
    centre_y = (matte.sum(dim=3) * y).sum(dim=2) / area
    reach = area.sqrt() / min(size) * _CANONICAL_REACH
    outlines = _outlines(matte, centre_x, centre_y, reach, scenes[0])
    indices = torch.tensor([SHAPES.index(shape) for shape, *_ in poses], device=device)
    return indices.repeat(len(mattes)), outlines.flatten(1).to(device)


def _along(vector: torch.Tensor, whole: torch.Tensor) -> torch.Tensor:
    """How much of `whole` is in a vector, in [0, 1]; of their last dimension."""
    share = (vector * whole).sum(dim=-1) / whole.square().sum(dim=-1).clamp(min=1e-6)
    return share.clamp(0, 1)


def _arms(
    clothes: torch.Tensor, x: torch.Tensor, y: torch.Tensor, radius: torch.Tensor, scene: Scene
) -> torch.Tensor:
    """Angles of persons' right arms from how they hang; nan where there is none to be seen, as it
    may be before the head."""
    device = clothes.device
    angles = torch.linspace(0.3, 3.4, 63, device=device)
    along = torch.linspace(0.32, 0.58, 6, device=device)
    out = _SHOULDER[0] + along[:, None] * angles.sin()
    down = _SHOULDER[1] + along[:, None] * angles.cos()
    spread = (..., None, None)
    there = _sample(
        clothes, x[spread] + radius[spread] * out, y[spread] + radius[spread] * down, scene
    )
    cover = there.mean(dim=2)
    best = angles[cover.argmax(dim=2)]
    close = ((angles - best[..., None]).abs() < 0.3) * (cover - 0.3).clamp(min=0)
    angle = (close * angles).sum(dim=2) / close.sum(dim=2).clamp(min=1e-6)
    return torch.where(cover.amax(dim=2) > 0.5, angle - _HANGING, math.nan)


def _colour_right(
    scene_of: dict[str, torch.Tensor],
    seen: torch.Tensor,
    behind: torch.Tensor,
    daylight: torch.Tensor,
) -> torch.Tensor:
    """Whether the colour is nearer to the scene's than to any other that has a name."""
    named = torch.tensor(list(COLOURS.values()), device=seen.device) / 255
    named = named * daylight[..., None, :]
    # What fades lies between its colour and the scenery, as do thin parts in a blurred frame.
    least = torch.where(scene_of["fading"], 0.0, _SOLID)[:, None, None]
    behind, there = behind[..., None, :], seen[..., None, :]
    share = _along(there - behind, named - behind).maximum(least)[..., None]
    far = (there - torch.lerp(behind, named, share)).norm(dim=-1)
    old, new = scene_of["colour"] * daylight, scene_of["new_colour"] * daylight
    between = torch.lerp(old, new, _along(seen - old, new - old)[..., None])
    indices = scene_of["indices"][:, None].expand(*far.shape[:2], 2)
    own = far.take_along_dim(indices, dim=2).amin(dim=2)
    recoloured = scene_of["recoloured"][:, None]
    own = torch.where(recoloured, own.minimum((seen - between).norm(dim=-1)), own)
    return own <= far.amin(dim=2)


# From values to a verdict


def _judge(
    scene: Scene, seen: _Seen, expected: Truth, windows: tuple[slice, slice] | None
) -> Outcome:
    course, ideal = _course(scene, seen), _ideal(scene, expected)
    effect = _effect(scene, course)
    whole = _full(scene, _effect(scene, ideal))
    new = old = (math.nan, math.nan)
    ghosting = math.nan
    if windows is not None:
        if whole > 0:
            new = tuple(min(max(_full(scene, effect[w]) / whole, 0.0), 1.0) for w in windows)
        old = tuple(float(_frozen(course[w])) for w in windows)
        if scene.action in _GONE:
            ghosting = min(_end(seen.contrast), 1.0)
        after = slice(windows[0].stop, None)
        course, effect = course[after], effect[after]
    frozen = _frozen(course)
    happened = frozen if scene.action == "still" else _happened(scene, course, effect, seen)
    checked = slice(1, None, CHECKED_EVERY)
    counted = seen.whole[checked] & (seen.area[checked] >= _TELLING)
    if scene.action not in ("leave", "fade", "recolour", "pan"):
        counted = counted | ~seen.visible[checked]
    shape_kept = seen.whole[checked] & (seen.shape[checked] == SHAPES.index(scene.shape))
    colour_kept = seen.whole[checked] & seen.colour_right[checked]
    delay = math.nan
    if happened and scene.action != "still":
        begun = effect[0] + _BEGUN * (_full(scene, effect) - effect[0])
        delay = int((effect >= begun).argmax()) / FPS
    return Outcome(
        happened=bool(happened),
        delay=delay,
        extent=max(_full(scene, effect) / whole, 0.0) if whole > 0 else math.nan,
        frozen=frozen,
        shape_kept=float(shape_kept[counted].mean()) if counted.any() else math.nan,
        colour_kept=float(colour_kept[counted].mean()) if counted.any() else math.nan,
        track=torch.from_numpy(np.stack([seen.x, seen.y], axis=1)[1:]),
        new=new,
        old=old,
        ghosting=ghosting,
    )


def _course(scene: Scene, seen: _Seen) -> _Course:
    """How a clip differs from its first frame as it was drawn, by measurement."""
    order = _ORDERS[scene.shape]
    turn = np.full(len(seen.phase), np.nan)
    clear = seen.clarity >= _CLEAR_ROTATION * seen.clarity[0]
    clear[0] = True
    turn[clear] = np.unwrap(seen.phase[clear]) / order if order else 0.0
    old, new = (np.array(COLOURS[c]) / 255 for c in (scene.colour, scene.new_colour))
    colour = np.where(seen.visible[:, None], seen.colour, np.nan)
    recolour = (colour - old) @ (new - old) / np.square(new - old).sum()
    gone = ~seen.visible
    last = np.flatnonzero(seen.visible)[-_ENDING:]
    left = _ends(gone) and (~seen.whole[last] & (seen.contrast[last] > _OPAQUE)).any()
    return _Course(
        x=_since_first(seen.x),
        y=_since_first(seen.y),
        size=np.sqrt(_smooth(_filled(seen.area / seen.area[0])))[1:],
        turn=_since_first(turn),
        opacity=_smooth(np.where(gone, 0.0, seen.opacity))[1:],
        recolour=_smooth(_filled(recolour))[1:],
        discoloured=np.linalg.norm(_smooth_rows(seen.colour[1:]) - old, axis=1),
        night=_since_first(seen.night),
        pan=_since_first(seen.pan),
        arm=_smooth(_filled(seen.arm))[1:],
        gone=gone[1:],
        left=bool(left),
    )


def _ideal(scene: Scene, expected: Truth) -> _Course:
    """The same by ground truth."""
    old, new = (np.array(COLOURS[c]) / 255 for c in (scene.colour, scene.new_colour))
    recolour = (expected.colour - old) @ (new - old) / np.square(new - old).sum()
    half_width = scene.size[1] / min(scene.size) / 2
    out = np.abs(expected.x - expected.pan) > half_width + expected.radius
    return _Course(
        x=expected.x - scene.x,
        y=expected.y - scene.y,
        size=expected.radius / scene.radius,
        turn=expected.rotation - scene.rotation,
        opacity=expected.opacity,
        recolour=recolour,
        discoloured=np.linalg.norm(expected.colour - old, axis=1),
        night=expected.night - expected.night[0],
        pan=expected.pan,
        arm=expected.arm,
        gone=out | (expected.opacity < _VISIBLE),
        left=bool(out[-1]),
    )


def _filled(values: np.ndarray) -> np.ndarray:
    """With what was last known where there is nan."""
    known = ~np.isnan(values)
    if not known.any():
        return np.zeros_like(values)
    last = np.maximum.accumulate(np.where(known, np.arange(len(values)), -1))
    return values[np.where(last < 0, known.argmax(), last)]


def _smooth(values: np.ndarray) -> np.ndarray:
    """Medians of three."""
    padded = np.pad(values, 1, mode="edge")
    return np.median(np.stack([padded[:-2], values, padded[2:]]), axis=0)


def _since_first(values: np.ndarray) -> np.ndarray:
    filled = _filled(values)
    return (_smooth(filled) - filled[0])[1:]


def _end(values: np.ndarray) -> float:
    return float(np.median(values[-_ENDING:]))


def _ends(flags: np.ndarray) -> bool:
    return bool(np.mean(flags[-_ENDING:]) > 0.5)


def _effect(scene: Scene, course: _Course) -> np.ndarray:
    """How far the captioned action has gone, shape [frames]."""
    vanished = course.gone & ~np.array(course.left)
    half_width = scene.size[1] / min(scene.size) / 2
    sideways = np.sign(_end(course.x))
    way_out = half_width + 1.2 * scene.radius - sideways * scene.x
    effects = {
        "still": np.zeros_like(course.x),
        "left": -course.x,
        "right": course.x,
        "up": -course.y,
        "down": course.y,
        "spin": np.abs(course.turn),
        "grow": course.size - 1,
        "shrink": 1 - course.size,
        "jump": -course.y,
        "wave": course.arm,
        "leave": np.where(course.gone & course.left, 1.0, np.abs(course.x) / way_out).clip(max=1),
        "fade": np.where(vanished, 1.0, 1 - course.opacity),
        "recolour": course.recolour,
        "night": course.night,
        "pan": scene.direction * course.pan,
    }
    return effects[scene.action]


def _full(scene: Scene, effect: np.ndarray) -> float:
    """How far it went in the end; a jump, at most; waving, over its last period."""
    if scene.action == "jump":
        return float(effect.max())
    return float(np.median(effect[-_WAVE:])) if scene.action == "wave" else _end(effect)


def _fall(values: np.ndarray) -> float:
    """The most by which a later value is below an earlier one."""
    return float((np.maximum.accumulate(values) - values).max())


def _happened(scene: Scene, course: _Course, effect: np.ndarray, seen: _Seen) -> bool:
    action, end = scene.action, _end(effect)
    gone = _ends(course.gone)
    if action == "leave":
        return gone and course.left and abs(_end(course.pan)) < _PAN
    if action == "fade":
        return gone and not course.left
    if action == "night":
        return end >= _DARKENING
    if action == "pan":
        with_it = np.abs(course.x[~course.gone]) <= 0.5 * abs(end)
        return end >= _PAN and bool(with_it.all())
    if gone:
        return False
    if action in ("left", "right", "up", "down"):
        aside = _end(course.y if action in ("left", "right") else course.x)
        return end >= _DISTANCE and abs(aside) < end and _fall(effect) < 0.5 * effect.max()
    if action == "spin":
        seconds = len(effect) / FPS - _LATEST_BEGIN
        return end >= 2 * math.pi * _TURNS_A_SECOND * max(seconds, 0.5)
    if action == "grow":
        return end >= _GROWTH
    if action == "shrink":
        return end >= _SHRINKAGE
    if action == "jump":
        return effect.max() >= _HEIGHT and _fall(effect) >= 0.5 * effect.max()
    if action == "wave":
        raised = effect[effect >= _RAISED]
        upright = np.abs(course.turn).max() < _UPRIGHT
        return upright and len(raised) > 0 and min(_fall(raised), _fall(-raised)) >= 0.5 * _SWING
    colour = np.median(seen.colour[-_ENDING:], axis=0)
    nearest = min(COLOURS, key=lambda c: np.square(colour - np.array(COLOURS[c]) / 255).sum())
    return nearest == scene.new_colour


def _frozen(course: _Course) -> bool:
    return bool(
        not course.gone.any()
        and np.hypot(course.x, course.y).max() < _STILL_POSITION
        and np.abs(course.size - 1).max() < _STILL_SIZE
        and np.abs(course.turn).max() < _STILL_TURN
        and course.opacity.min() > _STILL_OPACITY
        and course.discoloured.max() < _STILL_COLOUR
        and np.abs(course.night).max() < _STILL_NIGHT
        and np.abs(course.pan).max() < _STILL_PAN
        and np.abs(course.arm).max() < _STILL_ARM
    )


def _smooth_rows(values: np.ndarray) -> np.ndarray:
    return np.stack([_smooth(column) for column in values.T], axis=1)
