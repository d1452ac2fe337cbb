"""Clips of a small world, every frame of which is known.

Lengths are in units of the frame's shorter side, measured from its centre, x to the right and y
down; times in seconds; angles in radians.
"""

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch

from diffusers_helper.sections import FPS

SIZES = ((128, 128), (96, 160), (160, 96))
"""(height, width) of clips, most frequent first."""
SHAPES = ("circle", "square", "triangle", "star", "person")
COLOURS = {
    "red": (214, 48, 49),
    "orange": (240, 140, 30),
    "yellow": (250, 214, 40),
    "green": (34, 150, 70),
    "blue": (36, 92, 216),
    "purple": (136, 58, 180),
    "pink": (246, 120, 176),
    "brown": (128, 78, 40),
    "white": (250, 250, 250),
}
BACKGROUNDS = ("plain", "gradient", "hills")
ACTIONS = (
    "still",
    "left",
    "right",
    "up",
    "down",
    "spin",
    "grow",
    "shrink",
    "jump",
    "wave",
    "leave",
    "fade",
    "recolour",
    "night",
    "pan",
)
_HARD = {"wave": 2, "recolour": 2, "pan": 2, "leave": 3, "spin": 4}
"""Actions that are drawn so many times as often as the others: models are slow to learn them."""
_CHANCES = [_HARD.get(action, 1) for action in ACTIONS]
SKIN = (240, 200, 170)
_NIGHT_SCENERY = (0.24, 0.28, 0.46)
NIGHT_SUBJECT = (0.68, 0.7, 0.85)
"""What night leaves of daylight's red, green and blue."""


@dataclass(frozen=True)
class Scene:
    """A clip before it is drawn: what its first frame shows, and what then happens."""

    seed: int
    size: tuple[int, int]
    """(height, width) in pixels."""
    shape: str
    colour: str
    x: float
    y: float
    radius: float
    rotation: float
    background: str
    night: bool
    """Whether it is night from the start."""
    scenery: tuple[float, ...]
    """Numbers in [0, 1) that the background is drawn from."""
    action: str
    """What the caption tells."""
    happens: bool
    """Whether it is also seen; else the clip stays still."""
    begin: float
    """Seconds until the action begins."""
    duration: float
    """Seconds that the action takes; those that repeat go on after it."""
    amount: float
    """How far, in [0, 1] of the action's range."""
    direction: int
    """-1 or 1: left or right, of what leaves or pans."""
    new_colour: str
    """Of an action "recolour"."""


@dataclass(frozen=True)
class Truth:
    """What is where in every frame: a tensor a field, shape [clips, frames]; colours [..., 3]."""

    x: torch.Tensor
    y: torch.Tensor
    radius: torch.Tensor
    rotation: torch.Tensor
    opacity: torch.Tensor
    """1 to 0."""
    colour: torch.Tensor
    """In [0, 1], by daylight."""
    night: torch.Tensor
    """0 (day) to 1 (night)."""
    pan: torch.Tensor
    """How far the camera has gone to the right."""
    arm: torch.Tensor
    """A person's right arm: 0 hangs, about 2.5 is raised."""
    stride: torch.Tensor
    """A person's legs: -1 to 1, 0 standing."""

    def to(self, device: torch.device | str) -> "Truth":
        """A copy on `device`."""
        return Truth(**{f.name: getattr(self, f.name).to(device) for f in fields(self)})

    def __getitem__(self, index: Any) -> "Truth":
        """Some of the clips, or of their frames, as tensors are indexed."""
        return Truth(**{f.name: getattr(self, f.name)[index] for f in fields(self)})


def sample_scene(
    seed: int,
    action: str | None = None,
    size: tuple[int, int] | None = None,
    still_share: float = 0.0,
    shape: str | None = None,
    quiet: float = 0.0,
) -> Scene:
    """A scene from a seed. Its first frame is drawn without regard to the action, as far as the
    action is possible in it.

    Args:
        seed: any integer.
        action: one of ACTIONS; None draws one, some oftener than others.
        size: one of SIZES; None draws one.
        still_share: chance in [0, 1] that nothing happens, whatever the caption tells.
        shape: one of SHAPES; None draws one.
        quiet: seconds more before anything happens.
    """
    rng = random.Random(seed)
    size = size or rng.choices(SIZES, (3, 1, 1))[0]
    action = action or rng.choices(ACTIONS, _CHANCES)[0]
    while True:
        first = {
            "shape": shape or rng.choices(SHAPES, (2, 2, 2, 2, 3))[0],
            "colour": rng.choice(list(COLOURS)),
            "background": rng.choice(BACKGROUNDS),
            "night": rng.random() < 0.2,
        }
        if _possible(action, **first):
            break
    height, width = size
    short = min(size)
    return Scene(
        seed=seed,
        size=size,
        x=rng.uniform(-0.12, 0.12) * width / short,
        y=rng.uniform(-0.1, 0.1) * height / short,
        radius=rng.uniform(0.15, 0.2) if first["shape"] == "person" else rng.uniform(0.12, 0.17),
        rotation=0.0 if first["shape"] == "person" else rng.uniform(-0.25, 0.25),
        scenery=tuple(rng.random() for _ in range(12)),
        action=action,
        happens=rng.random() >= still_share,
        begin=quiet + rng.uniform(0.1, 0.35),
        duration=rng.uniform(0.9, 1.5),
        amount=rng.random(),
        direction=rng.choice((-1, 1)),
        new_colour=rng.choice([c for c in COLOURS if c != first["colour"]]),
        **first,
    )


def _possible(action: str, shape: str, colour: str, background: str, night: bool) -> bool:
    if action == "spin":
        return shape != "circle"
    if action == "wave":
        return shape == "person"
    if action == "night":
        return not night
    if action == "pan":
        return background == "hills"  # elsewhere it would look like a move
    return True


def truth(scenes: Sequence[Scene], frames: int) -> Truth:
    """What is where in the first `frames` frames of each scene."""
    t = torch.arange(frames) / FPS

    def each(value) -> torch.Tensor:
        return torch.tensor([value(s) for s in scenes], dtype=torch.float32)[:, None]

    def when(*actions: str) -> torch.Tensor:
        return each(lambda s: s.happens and s.action in actions)

    since = (t - each(lambda s: s.begin)).clamp(min=0)
    share = (since / each(lambda s: s.duration)).clamp(max=1)
    progress = share * share * (3 - 2 * share)  # starts and ends gently
    amount = each(lambda s: s.amount)
    direction = each(lambda s: s.direction)
    started = (since / 0.2).clamp(max=1)
    is_person = each(lambda s: s.shape == "person")

    def between(low: float, high: float) -> torch.Tensor:
        return low + (high - low) * amount

    # Out of the frame, wherever it started; gently off, then at an even pace.
    half_width = each(lambda s: s.size[1] / min(s.size) / 2)
    way_out = half_width + 1.2 * each(lambda s: s.radius) - direction * each(lambda s: s.x)
    longer = each(lambda s: s.duration) * 1.25
    leaving = ((since / longer) ** 1.3).clamp(max=1)
    stepping = when("leave") * (leaving < 1) + when("left", "right") * (share < 1)
    stepping = stepping * (since > 0)

    distance = between(0.22, 0.3)
    height = between(0.16, 0.26)
    jumps = 0.8 * since
    sideways = when("right") - when("left")
    phase = 2 * math.pi * 1.8 * since
    x = each(lambda s: s.x) + sideways * distance * progress
    x = x + when("leave") * direction * way_out * leaving
    y = each(lambda s: s.y) + (when("down") - when("up")) * distance * progress
    y = y - when("jump") * height * (math.pi * jumps).sin().abs()
    y = y - stepping * 0.015 * phase.sin().abs()
    growth = 1 + when("grow") * between(0.6, 0.9) * progress
    growth = growth - when("shrink") * between(0.4, 0.5) * progress
    # All clockwise: captions do not tell which way, and a model that doubts draws both at once.
    turning = 2 * math.pi * between(0.3, 0.45) * (since - 0.1 * started)
    colour = each(lambda s: 0.0)[..., None] + torch.tensor(
        [COLOURS[s.colour] for s in scenes], dtype=torch.float32
    ).div(255).unsqueeze(1)
    new_colour = torch.tensor([COLOURS[s.new_colour] for s in scenes], dtype=torch.float32).div(255)
    change = (when("recolour") * progress)[..., None]
    wave = when("wave") * (2.4 * started + 0.45 * (2 * math.pi * 2 * since).sin() * (share > 0.15))
    nothing = torch.zeros(len(scenes), frames)
    return Truth(
        x=x + nothing,
        y=y + nothing,
        radius=each(lambda s: s.radius) * growth + nothing,
        rotation=each(lambda s: s.rotation) + when("spin") * turning + nothing,
        opacity=1 - when("fade") * progress + nothing,
        colour=colour + change * (new_colour.unsqueeze(1) - colour),
        night=each(lambda s: s.night) + when("night") * progress + nothing,
        pan=when("pan") * direction * between(0.3, 0.45) * progress + nothing,
        arm=wave + nothing,
        stride=is_person * stepping * phase.sin() + nothing,
    )


def render(
    scenes: Sequence[Scene], truth: Truth, device: torch.device | str = "cpu"
) -> torch.Tensor:
    """Draw clips.

    Args:
        scenes: of one size.
        truth: what is where, of the same clips; may differ from what `truth` says of them.

    Returns:
        uint8 on `device`, shape [clips, 3, frames, height, width].
    """
    height, width = scenes[0].size
    truth = truth.to(device)
    short = min(height, width)
    x, y = axes(scenes[0], device)
    # Shape [clips, frames, height, width] from here on, and a last dimension for colours.
    world_x = x.view(1, 1, 1, -1) + _frame(truth.pan)
    y = y.view(1, 1, -1, 1)
    night = _frame(truth.night)[..., None]
    picture = _scenery(scenes, world_x, y, night, short)

    px = (world_x - _frame(truth.x)) / _frame(truth.radius)
    py = (y - _frame(truth.y)) / _frame(truth.radius)
    cos, sin = _frame(truth.rotation.cos()), _frame(truth.rotation.sin())
    px, py = px * cos + py * sin, py * cos - px * sin
    daylight = 1 + night * (torch.tensor(NIGHT_SUBJECT, device=device) - 1)
    pixels = _frame(truth.radius) * short
    for shape in SHAPES:
        of_shape = torch.tensor([i for i, s in enumerate(scenes) if s.shape == shape])
        if len(of_shape):
            i = of_shape.to(device)
            parts = _parts(shape, px[i], py[i], truth[i])
            for distance, colour in parts:
                cover = (0.5 - distance * pixels[i]).clamp(0, 1) * _frame(truth.opacity[i])
                picture[i] = torch.lerp(picture[i], colour * daylight[i], cover[..., None])
    return picture.mul_(255).round_().clamp_(0, 255).to(torch.uint8).permute(0, 4, 1, 2, 3)


def subject_box(scenes: Sequence[Scene], values: Truth) -> torch.Tensor:
    """Where the subjects are, with a little around them, by ground truth.

    Args:
        scenes: of one size.
        values: what is where, of the same clips.

    Returns:
        bool on the device of `values`, shape [clips, frames, height, width].
    """
    x, y = axes(scenes[0], values.x.device)
    reach = 1.2 * values.radius[..., None]
    across = (x + (values.pan - values.x)[..., None]).abs() < reach
    down = (y - values.y[..., None]).abs() < reach
    return down[..., :, None] & across[..., None, :]


def axes(scene: Scene, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """x of the columns of pixels and y of the rows of a frame."""
    height, width = scene.size
    short = min(scene.size)
    x = (torch.arange(width, device=device) + 0.5 - width / 2) / short
    y = (torch.arange(height, device=device) + 0.5 - height / 2) / short
    return x, y


def _frame(value: torch.Tensor) -> torch.Tensor:
    """A number a frame, against pixels."""
    return value[..., None, None]


def _parts(
    shape: str, x: torch.Tensor, y: torch.Tensor, truth: Truth
) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Signed distances to the subject's parts, in units of its radius, with their colours, from
    the back to the front."""
    colour = truth.colour[:, :, None, None]
    if shape == "circle":
        return [(torch.hypot(x, y) - 0.92, colour)]
    if shape == "square":
        return [(torch.maximum(x.abs(), y.abs()) - 0.8, colour)]
    if shape == "triangle":
        sides = torch.maximum(x.abs() * math.cos(math.pi / 6) - y * 0.5, y)
        return [(sides - 0.58, colour)]
    if shape == "star":
        fifth = 2 * math.pi / 5
        angle = torch.atan2(x, -y)
        angle = (angle - fifth * (angle / fifth).round()).abs()
        distance = torch.hypot(x, y)
        along, across = distance * angle.cos(), distance * angle.sin()
        inner_x, inner_y = 0.5 * math.cos(fifth / 2), 0.5 * math.sin(fifth / 2)
        edge = math.hypot(inner_x - 1.15, inner_y)
        return [((inner_y * (along - 1.15) - (inner_x - 1.15) * across) / edge, colour)]
    arm, stride = _frame(truth.arm), _frame(truth.stride)
    body = _limb(x, y, 0.0, -0.3, 0.0, 0.15, 0.24)
    left_leg = _limb(x, y, -0.1, 0.25, -0.17 - 0.3 * stride, 0.88, 0.12)
    right_leg = _limb(x, y, 0.1, 0.25, 0.17 + 0.3 * stride, 0.88, 0.12)
    left_arm = _limb(x, y, -0.22, -0.36, -0.42 + 0.25 * stride, 0.14, 0.09)
    hand = 0.42 + arm
    right_arm = _limb(
        x,
        y,
        0.22,
        -0.36,
        0.22 + 0.55 * hand.sin() - 0.25 * stride,
        -0.36 + 0.55 * hand.cos(),
        0.09,
    )
    clothes = body
    for limb in (left_leg, right_leg, left_arm, right_arm):
        clothes = torch.minimum(clothes, limb)
    skin = torch.tensor(SKIN, device=x.device) / 255
    return [(clothes, colour), (torch.hypot(x, y + 0.76) - 0.24, skin)]


def _limb(x, y, x1, y1, x2, y2, thickness) -> torch.Tensor:
    """Distance to a line from (x1, y1) to (x2, y2) with round ends."""
    dx, dy = x2 - x1, y2 - y1
    along = (((x - x1) * dx + (y - y1) * dy) / (dx * dx + dy * dy)).clamp(0, 1)
    return torch.hypot(x - x1 - along * dx, y - y1 - along * dy) - thickness


def _scenery(
    scenes: Sequence[Scene], x: torch.Tensor, y: torch.Tensor, night: torch.Tensor, short: int
) -> torch.Tensor:
    """The background, shape [clips, frames, height, width, 3], in [0, 1]."""
    device = x.device
    u = torch.tensor([s.scenery for s in scenes], device=device)[:, :, None, None, None]
    hilly = torch.tensor([s.background == "hills" for s in scenes], device=device)
    graded = torch.tensor([s.background == "gradient" for s in scenes], device=device)
    top = _pale(u[:, 0], u[:, 1])
    bottom = torch.where(graded.view(-1, 1, 1, 1, 1), _pale(u[:, 2], u[:, 3]), top)
    down = ((y + 0.6) / 1.2).clamp(0, 1)[..., None]
    picture = (top + (bottom - top) * down) * torch.ones_like(x)[..., None]
    daylight = 1 + night * (torch.tensor(_NIGHT_SCENERY, device=device) - 1)
    if hilly.any():
        i = hilly.nonzero()[:, 0]
        u, x = u[i], x[i]
        hills = _pale(0.55 + 0.1 * u[:, 0], u[:, 1]) * torch.ones_like(x)[..., None]  # a blue sky
        sun = torch.hypot(x - (u[:, 4] - 0.5) * 1.2, y + 0.36) - 0.07
        bright = torch.tensor((1.0, 0.93, 0.6), device=device) / daylight[i].clamp(min=0.5)
        hills = torch.lerp(hills, bright, (0.5 - sun * short).clamp(0, 1)[..., None])
        for k, (level, shade) in enumerate(((0.1, 0.8), (0.27, 0.62))):
            a, b = u[:, 5 + 2 * k], u[:, 6 + 2 * k]
            wave = (x * (4 + 3 * a) + 6.3 * b).sin() + 0.5 * (x * (9 + 4 * b) + 6.3 * a).sin()
            ground = level + 0.06 * wave - y
            hue = 0.22 + 0.16 * u[:, 9]
            green = _hue(hue, 0.35) * shade
            hills = torch.lerp(hills, green, (0.5 - ground * short).clamp(0, 1)[..., None])
        picture[i] = hills
    return picture * daylight


def _pale(hue: torch.Tensor, lightness: torch.Tensor) -> torch.Tensor:
    """A colour that every subject stands out against; a last dimension of 3 is added."""
    return _hue(hue, 0.22) * (0.62 + 0.16 * lightness)[..., None]


def _hue(hue: torch.Tensor, saturation: float) -> torch.Tensor:
    """A colour of full value; a last dimension of 3 is added."""
    thirds = torch.tensor((0.0, 1 / 3, 2 / 3), device=hue.device)
    return 1 - saturation * (0.5 - 0.5 * (2 * math.pi * (hue[..., None] - thirds)).cos())
