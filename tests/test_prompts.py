import pytest

from diffusers_helper.errors import PromptError, SettingsError
from diffusers_helper.prompts import TimedPrompt, in_force, is_timed, timed_prompts

SECONDS = 5.0


def told(prompt: str) -> str:
    with pytest.raises(PromptError) as caught:
        timed_prompts(prompt, SECONDS)
    assert isinstance(caught.value, SettingsError)
    return str(caught.value)


@pytest.mark.parametrize(
    ("prompt", "parts"),
    [
        ("[0s: a man stands] [2s: he walks]", [(0, "a man stands"), (2, "he walks")]),
        ("[0s:a][1.5s:b][04.25s:c]", [(0, "a"), (1.5, "b"), (4.25, "c")]),
        (" \n[0s: a\n man ]\n\n\t[ 2 s :\nb] ", [(0, "a\n man"), (2, "b")]),
        ("[0s: a: 2s: b] [1s: 猫]", [(0, "a: 2s: b"), (1, "猫")]),
        ("[0s: a] [4.99s: a]", [(0, "a"), (4.99, "a")]),
        ("[1s: a] [3s: b]", [(1, "a"), (3, "b")]),
        ("[0s: a]", [(0, "a")]),
    ],
)
def test_a_timed_prompt_is_cut_at_its_times(prompt, parts):
    assert is_timed(prompt)
    assert timed_prompts(prompt, SECONDS) == [TimedPrompt(*part) for part in parts]


@pytest.mark.parametrize(
    "prompt",
    [
        "",
        "  A man stands,\n then walks  ",
        "[a man] walks [away]",
        "[] [[ ]] ]",
        "a man [on the left: red]",
        "[2: a] [2 m: b] [2sec: c] [s: d] [: e]",
        "[2 cats: asleep] [3girls: dancing]",
        "at 2s: a man walks",
        "(2s: a man walks)",
        "[2s a man walks]",
    ],
)
def test_a_prompt_without_times_is_taken_as_it_is(prompt):
    assert not is_timed(prompt)
    assert timed_prompts(prompt, SECONDS) == [TimedPrompt(0.0, prompt)]


@pytest.mark.parametrize(
    ("prompt", "quoted", "why"),
    [
        ("A man. [0s: a] [2s: b]", "A man.", "has no time"),
        ("[0s: a] and then [2s: b]", "and then", "has no time"),
        ("[0s: a] [2s: b], at last", ", at last", "has no time"),
        ("[0s: a] [red] [2s: b]", "[red]", "has no time"),
        ("[0s: a] [two s: b]", "[two s: b]", "has no time"),
        ("[0s: a]]", "]", "has no time"),
        ("[0s: a] [1..5s: b]", "[1..5s:", "names no time"),
        ("[0s: a] [1.s: b]", "[1.s:", "names no time"),
        ("[0s: a] [.5s: b]", "[.5s:", "names no time"),
        ("[0s: a] [1,5s: b]", "[1,5s:", "names no time"),
        ("[-1s: a] [2s: b]", "[-1s:", "names no time"),
        ("[0s-2s: a]", "[0s-2s:", "names no time"),
        ("[1.5.2s: a]", "[1.5.2s:", "names no time"),
        ("[0s:]", "[0s:]", "has no prompt"),
        ("[0s: a] [2s: \t ]", "[2s: \\t ]", "has no prompt"),
        ("[0s: a man stands", "[0s: a man stands", "must be closed"),
        ("[0s: a [2s: b]", "[0s: a", "must be closed"),
        ("[0s: a [red] man]", "[0s: a", "must be closed"),
        ("[0s:", "[0s:", "must be closed"),
        ("[0s: a] [2s: b] [2.0s: c]", "[2.0s:", "must rise"),
        ("[3s: a] [2s: b]", "[2s:", "must rise"),
        ("[0s: a] [5s: b]", "[5s:", "the video of 5 s is over"),
        ("[90s: neon lights]", "[90s:", "the video of 5 s is over"),
        (f"[0s: a] [{'9' * 400}s: b]", "[999", "the video of 5 s is over"),
    ],
)
def test_what_is_wrong_is_quoted(prompt, quoted, why):
    message = told(prompt)
    assert f"'{quoted}" in message
    assert why in message


def test_the_length_of_the_video_decides_what_is_too_late():
    prompt = "[0s: a] [5s: b]"
    assert told(prompt)
    assert len(timed_prompts(prompt, 5.1)) == 2


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "a"), (0.99, "a"), (1, "a"), (2.49, "a"), (2.5, "b"), (3.99, "b"), (4, "c"), (99, "c")],
)
def test_a_prompt_holds_until_the_next_and_the_first_from_the_beginning(seconds, text):
    prompts = timed_prompts("[1s: a] [2.5s: b] [4s: c]", SECONDS)
    assert in_force(prompts, seconds).text == text
