"""What a clip's caption says of it, in many wordings."""

import random
import re

from training.tiny_world.world import Scene

_NOUNS = {
    "circle": ("circle", "circle", "ball", "disc"),
    "square": ("square", "square", "box"),
    "triangle": ("triangle",),
    "star": ("star",),
    "person": ("person", "person", "person", "man", "woman", "figure"),
}
_SUBJECTS = (
    "the {noun}",
    "the {noun}",
    "the {colour} {noun}",
    "the {colour} {noun}",
    "a {colour} {noun}",
    "a {noun}",
)
_PEOPLE = ("the {noun} in {colour}", "a {noun} in {colour}", "the {noun} dressed in {colour}")
_ACTIONS = {
    "still": (
        "{subject} stays still",
        "{subject} does not move",
        "{subject} stands still",
        "{subject} remains where it is",
        "{subject} rests without moving",
        "nothing moves, {subject} stays in place",
        "{subject} holds still",
        "{subject} waits motionless",
    ),
    "left|right": (
        "{subject} moves to the {side}",
        "{subject} moves {side}",
        "{subject} slides to the {side}",
        "{subject} glides to the {side}",
        "{subject} goes to the {side}",
        "{subject} shifts {side}",
        "{subject} travels towards the {side}",
        "{subject} moves over to the {side} side",
    ),
    "up": (
        "{subject} moves up",
        "{subject} rises",
        "{subject} floats upwards",
        "{subject} goes up",
        "{subject} moves upward",
        "{subject} lifts into the air",
        "{subject} slides up",
    ),
    "down": (
        "{subject} moves down",
        "{subject} sinks",
        "{subject} drops lower",
        "{subject} goes down",
        "{subject} moves downward",
        "{subject} descends",
        "{subject} slides down",
    ),
    "spin": (
        "{subject} spins",
        "{subject} spins around",
        "{subject} rotates",
        "{subject} turns round and round",
        "{subject} is spinning in place",
        "{subject} keeps rotating",
        "{subject} whirls around",
    ),
    "grow": (
        "{subject} grows",
        "{subject} gets bigger",
        "{subject} becomes larger",
        "{subject} grows in size",
        "{subject} expands",
        "{subject} swells up",
    ),
    "shrink": (
        "{subject} shrinks",
        "{subject} gets smaller",
        "{subject} becomes smaller",
        "{subject} shrinks in size",
        "{subject} contracts",
        "{subject} dwindles",
    ),
    "jump": (
        "{subject} jumps",
        "{subject} jumps up and down",
        "{subject} is jumping",
        "{subject} hops in place",
        "{subject} bounces up and down",
        "{subject} leaps again and again",
    ),
    "wave": (
        "{subject} waves",
        "{subject} waves a hand",
        "{subject} is waving hello",
        "{subject} raises an arm and waves",
        "{subject} greets us with a wave",
        "{subject} waves goodbye",
    ),
    "leave": (
        "{subject} walks out of the frame",
        "{subject} leaves the frame",
        "{subject} walks away and leaves the frame",
        "{subject} exits the frame",
        "{subject} goes out of the picture",
        "{subject} moves out of view",
        "{subject} leaves the scene",
        "{subject} walks out of the frame to the {side}",
        "{subject} leaves the frame to the {side}",
        "{subject} exits to the {side}",
        "{subject} walks off to the {side} and is gone",
    ),
    "fade": (
        "{subject} gradually fades away and disappears",
        "{subject} fades away",
        "{subject} disappears",
        "{subject} slowly disappears",
        "{subject} vanishes",
        "{subject} fades out until it is gone",
        "{subject} dissolves into nothing",
        "{subject} becomes transparent and vanishes",
        "{subject} gradually vanishes from the scene",
    ),
    "recolour": (
        "{subject} turns {new_colour}",
        "{subject} becomes {new_colour}",
        "{subject} changes its colour to {new_colour}",
        "{subject} changes color to {new_colour}",
        "the colour of {subject} changes to {new_colour}",
        "{subject} slowly turns {new_colour}",
    ),
    "night": (
        "the scene turns from day to night",
        "the scene transitions from day to night",
        "day turns into night",
        "night falls",
        "it gets dark",
        "the scene becomes dark as night falls over {subject}",
        "the light fades from day to night around {subject}",
        "the scene with {subject} changes from day to night",
    ),
    "pan": (
        "the camera pans to the {side}",
        "the camera moves to the {side}",
        "the camera pans {side}",
        "the camera shifts to the {side}",
        "the view pans to the {side}",
        "the camera slowly pans {side}",
    ),
}
_BEGINNINGS = ("", "", "", "", "", "in this video, ", "in this scene, ", "in a short clip, ")
_ENDINGS = ("", "", ".")


def caption(scene: Scene, seed: int) -> str:
    """A sentence that tells what happens in a scene, or would.

    Args:
        seed: of the wording.
    """
    rng = random.Random(f"{scene.seed} {seed}")
    phrases = list(_SUBJECTS) + (list(_PEOPLE) if scene.shape == "person" else [])
    subject = rng.choice(phrases).format(noun=rng.choice(_NOUNS[scene.shape]), colour=scene.colour)
    side = scene.action
    if side not in ("left", "right"):
        side = "right" if scene.direction > 0 else "left"
    key = "left|right" if scene.action in ("left", "right") else scene.action
    sentence = rng.choice(_ACTIONS[key]).format(
        subject=subject, side=side, new_colour=scene.new_colour
    )
    sentence = rng.choice(_BEGINNINGS) + sentence + rng.choice(_ENDINGS)
    sentence = re.sub(r"\b([Aa]) (?=[aeiou])", r"\1n ", sentence)
    return sentence if rng.random() < 0.1 else sentence[0].upper() + sentence[1:]
