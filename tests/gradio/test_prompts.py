import re

import pytest

from diffusers_helper.errors import PromptError
from diffusers_helper.gradio.prompts import prompt_note, wrong_note
from diffusers_helper.sections import SectionOrder
from diffusers_helper.settings import GenerationSettings

FORWARD, INVERTED = SectionOrder.FORWARD, SectionOrder.INVERTED


def lines(prompt: str, order: SectionOrder, **changes: float) -> list[str]:
    note = prompt_note(GenerationSettings(prompt=prompt, **changes), order)
    return re.findall("<div>(.*?)</div>", note, re.DOTALL)


@pytest.mark.parametrize("prompt", ["", "A man stands", "[red] <b>"])
def test_without_times_there_is_no_note(prompt):
    assert prompt_note(GenerationSettings(prompt=prompt), FORWARD) == ""


@pytest.mark.parametrize(
    ("order", "places"),
    [
        (FORWARD, ["sections 1 to 2", "section 3", "section 4"]),
        (INVERTED, ["sections 3 to 4", "section 2", "section 1"]),
    ],
)
def test_every_prompt_has_a_line_in_the_order_of_the_video(order, places):
    """Of 5 seconds, four sections of 1.2."""
    told = lines("[1s: stands] [2s: walks] [4.1s: runs]", order)
    assert told == [
        f"From {start} s, {place}: {text}"
        for start, place, text in zip(
            ("0.0", "2.4", "3.6"), places, ("stands", "walks", "runs"), strict=True
        )
    ]


@pytest.mark.parametrize(
    ("changes", "place"),
    [
        ({}, "From 2.4 s, sections 3 to 4"),
        ({"total_second_length": 10}, "From 2.4 s, sections 3 to 8"),
        ({"latent_window_size": 3}, "From 2.0 s, sections 6 to 12"),
        ({"total_second_length": 2.5}, "⚠️ Not used, too short for a section"),
    ],
)
def test_length_and_window_move_the_sections(changes, place):
    assert lines("[0s: stands] [2s: walks]", FORWARD, **changes)[1] == f"{place}: walks"


@pytest.mark.parametrize("order", SectionOrder)
def test_a_prompt_that_comes_twice_is_told_twice(order):
    told = lines("[0s: stands] [1s: walks] [3s: stands]", order)
    assert [line.split(": ")[1] for line in told] == ["stands", "walks", "stands"]
    assert len(set(told)) == 3


def test_what_is_typed_is_no_html():
    assert lines("[0s: <b>&]", FORWARD)[0].endswith(": &lt;b&gt;&amp;")
    assert wrong_note(PromptError("<b>")) == '<span class="job-error">&lt;b&gt;</span>'
