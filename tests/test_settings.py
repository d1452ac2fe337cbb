import math
from dataclasses import FrozenInstanceError, asdict, fields, replace

import pytest

from diffusers_helper.errors import PromptError, SettingsError, UserError
from diffusers_helper.prompts import TimedPrompt
from diffusers_helper.settings import GenerationSettings

DEFAULTS = {
    "prompt": "",
    "n_prompt": "",
    "seed": 31337,
    "total_second_length": 5.0,
    "latent_window_size": 9,
    "steps": 25,
    "cfg": 1.0,
    "gs": 10.0,
    "rs": 0.0,
    "gpu_memory_preservation": 6.0,
    "use_teacache": True,
    "mp4_crf": 16,
    "adaptive_cfg_beta": 0.0,
    "adaptive_cfg_min": 1.0,
    "low_pass_factor": 1.0,
    "low_pass_frames": "both",
    "low_pass_sigma": 0.9,
    "history_low_pass": 0.0,
    "prompt_gate": 0.0,
    "fp8": False,
}
RANGES = {
    "seed": (0, 2**63 - 1),
    "total_second_length": (1, 120),
    "latent_window_size": (1, 33),
    "steps": (1, 100),
    "cfg": (1, 32),
    "gs": (1, 32),
    "rs": (0, 1),
    "gpu_memory_preservation": (6, 128),
    "mp4_crf": (0, 100),
    "adaptive_cfg_beta": (0, 1),
    "adaptive_cfg_min": (1, 10),
    "low_pass_factor": (0.1, 1),
    "low_pass_sigma": (0, 1),
    "history_low_pass": (0, 1),
    "prompt_gate": (0, 1),
}
WHOLE = ("seed", "latent_window_size", "steps", "mp4_crf")
TEXTS = ("prompt", "n_prompt", "low_pass_frames")


def message_for(name: str, value: object) -> str:
    with pytest.raises(SettingsError) as caught:
        GenerationSettings(**{name: value})
    assert isinstance(caught.value, UserError)
    assert isinstance(caught.value, ValueError)
    return str(caught.value)


def test_order_and_defaults_are_framepacks():
    settings = asdict(GenerationSettings())
    assert list(settings) == list(DEFAULTS)
    assert settings == DEFAULTS
    assert {n: type(v) for n, v in settings.items()} == {n: type(v) for n, v in DEFAULTS.items()}


def test_settings_are_frozen():
    with pytest.raises(FrozenInstanceError):
        GenerationSettings().seed = 1


@pytest.mark.parametrize(
    ("name", "end"), [(name, end) for name, ends in RANGES.items() for end in ends]
)
def test_the_ends_of_a_range_belong_to_it(name, end):
    assert getattr(GenerationSettings(**{name: end}), name) == end


@pytest.mark.parametrize("name", RANGES)
def test_beyond_a_range_is_an_error_that_quotes(name):
    minimum, maximum = RANGES[name]
    for value in (minimum - 1, minimum - 0.5, maximum + 1, -math.inf, math.inf, math.nan):
        message = message_for(name, value)
        assert message == f"{name} must be in [{minimum}, {maximum}], got {value}"


@pytest.mark.parametrize("name", RANGES)
def test_a_range_is_told_to_the_page(name):
    (setting,) = (f for f in fields(GenerationSettings) if f.name == name)
    assert (setting.metadata["minimum"], setting.metadata["maximum"]) == RANGES[name]
    assert setting.metadata["step"] > 0


@pytest.mark.parametrize("name", WHOLE)
def test_whole_numbers(name):
    value = getattr(GenerationSettings(**{name: 25.0}), name)
    assert (value, type(value)) == (25, int)
    assert message_for(name, 25.5) == f"{name} must be a whole number, got 25.5"


@pytest.mark.parametrize("name", sorted(RANGES.keys() - set(WHOLE)))
def test_whole_values_of_other_numbers_become_floats(name):
    value = getattr(GenerationSettings(**{name: RANGES[name][1]}), name)
    assert type(value) is float


@pytest.mark.parametrize("name", RANGES)
@pytest.mark.parametrize("value", ["7", None, True, [7], 1j])
def test_what_is_no_number_is_an_error_that_quotes(name, value):
    message = message_for(name, value)
    assert message.startswith(f"{name} must be ")
    assert message.endswith(f"got {value!r}")


@pytest.mark.parametrize("name", TEXTS)
@pytest.mark.parametrize("value", [None, 7, b"rain"])
def test_what_is_no_text_is_an_error_that_quotes(name, value):
    assert message_for(name, value) == f"{name} must be str, got {value!r}"


def test_what_is_no_choice_is_an_error_that_quotes():
    of = "low_pass_frames must be of both, start, last, got "
    assert message_for("low_pass_frames", "first") == f"{of}'first'"


@pytest.mark.parametrize("value", [0, 1, "True", None])
def test_what_is_no_bool_is_an_error_that_quotes(value):
    assert message_for("use_teacache", value) == f"use_teacache must be bool, got {value!r}"


def test_times_of_the_prompt_must_be_right_and_within_the_video():
    settings = GenerationSettings(prompt="[0s: a] [2s: b]", total_second_length=3)
    assert settings.prompt == "[0s: a] [2s: b]"
    assert settings.prompts == [TimedPrompt(0.0, "a"), TimedPrompt(2.0, "b")]
    with pytest.raises(PromptError, match=r"'\[2s:' begins when the video of 2 s is over"):
        replace(settings, total_second_length=2)
    with pytest.raises(PromptError, match=r"'\[2s: b' must be closed"):
        replace(settings, prompt="[0s: a] [2s: b")


def test_without_times_there_is_one_prompt():
    assert GenerationSettings(prompt=" a ").prompts == [TimedPrompt(0.0, " a ")]


def test_the_negative_prompt_is_text_whatever_it_says():
    assert GenerationSettings(n_prompt="[9s: rain").n_prompt == "[9s: rain"


def test_a_huge_number_is_an_error_that_quotes():
    assert "seed must be in" in message_for("seed", 10**400)
