import re

import pytest

from training.tiny_world.captions import caption
from training.tiny_world.world import ACTIONS, COLOURS, sample_scene

COLOUR = "|".join(COLOURS)
NOUN = "circle|ball|disc|square|box|triangle|star|person|man|woman|figure"
SUBJECT = rf"\b(the|an?) (({COLOUR}) )?({NOUN})( (dressed )?in ({COLOUR}))?\b"
SEEDS = range(120)


def words(text: str) -> list[str]:
    return re.findall(r"[a-z]+", text.lower())


def captions(action: str, scenes: int = 6) -> list[tuple]:
    """Scenes, each with one of its captions."""
    pairs = [(sample_scene(s, action), seed) for s in range(scenes) for seed in SEEDS]
    return [(scene, caption(scene, seed)) for scene, seed in pairs]


@pytest.mark.parametrize("action", ACTIONS)
def test_every_action_has_many_wordings(action):
    wordings = set()
    for _, text in captions(action):
        text = re.sub(r"^in [a-z ]+, ", "", text.lower().rstrip("."))
        wordings.add(re.sub(SUBJECT, "it", text))
    assert len(wordings) >= 5


def test_a_caption_follows_from_scene_and_seed():
    scene = sample_scene(1, "leave")
    assert caption(scene, 4) == caption(scene, 4)
    assert len({caption(scene, seed) for seed in SEEDS}) > 20


@pytest.mark.parametrize("action", ["left", "right", "pan", "leave"])
def test_sides_are_the_scene_s(action):
    told = 0
    for scene, text in captions(action):
        side = action if action in ("left", "right") else ("left", "right")[scene.direction > 0]
        sides = {"left", "right"} & set(words(text))
        assert sides <= {side}
        told += bool(sides)
    # Who leaves the frame may do so by either side.
    assert told == 6 * len(SEEDS) if action != "leave" else told > 0


@pytest.mark.parametrize("action", ACTIONS)
def test_colours_are_the_scene_s(action):
    for scene, text in captions(action):
        colours = [word for word in words(text) if word in COLOURS]
        if action == "recolour":
            assert scene.new_colour in colours
            colours.remove(scene.new_colour)
        assert set(colours) <= {scene.colour}


@pytest.mark.parametrize("action", ACTIONS)
def test_articles_fit_what_follows(action):
    for _, text in captions(action):
        assert not re.search(r"\ba [aeiou]|\ban [^aeiou]", text.lower())


def test_nothing_is_left_to_fill_in():
    for action in ACTIONS:
        for _, text in captions(action, scenes=2):
            assert re.fullmatch(r"[A-Za-z ,]+\.?", text)


def test_the_specification_s_sentence_is_among_the_captions():
    scene = sample_scene(0, "fade", shape="person")
    expected = "The person gradually fades away and disappears"
    assert expected in {caption(scene, seed).rstrip(".") for seed in range(3000)}
