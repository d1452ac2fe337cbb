from dataclasses import replace

import pytest

from diffusers_helper.gradio.presets import (
    GOVERNED,
    PRESETS,
    preset_note,
    preset_of,
    preset_values,
)
from diffusers_helper.sections import SectionOrder
from diffusers_helper.settings import GenerationSettings

AS_TRAINED = PRESETS[0]
TIMED = "[0s: a man stands] [1s: he leaves]"


def test_as_trained_is_framepack():
    assert preset_of(GenerationSettings()) is AS_TRAINED
    defaults = [getattr(GenerationSettings(), name) for name in GOVERNED]
    assert preset_values(AS_TRAINED.name) == defaults


@pytest.mark.parametrize("preset", PRESETS, ids=lambda preset: preset.name)
def test_a_preset_is_known_by_its_settings_whatever_else_is_set(preset):
    values = dict(zip(GOVERNED, preset_values(preset.name), strict=True))
    settings = GenerationSettings(prompt=TIMED, seed=7, gs=3.0, adaptive_cfg_min=2.0, **values)
    assert preset_of(settings) is preset
    for order in SectionOrder:
        assert preset_note(settings, order) == preset.effect[order]


@pytest.mark.parametrize("preset", PRESETS, ids=lambda preset: preset.name)
@pytest.mark.parametrize("name", GOVERNED)
def test_a_setting_that_is_moved_is_no_preset_any_more(preset, name):
    moved = "start" if name == "low_pass_frames" else 0.35
    settings = replace(GenerationSettings(prompt=TIMED, **preset.settings), **{name: moved})
    assert preset_of(settings) is None
    for order in SectionOrder:
        assert preset_note(settings, order) == "Settings of your own."


@pytest.mark.parametrize("order", SectionOrder)
@pytest.mark.parametrize("prompt", ["a man leaves", "", "[0s: a man leaves]"])
def test_a_prompt_that_does_not_change_is_told_where_only_changes_count(prompt, order):
    chosen = [GenerationSettings(prompt=prompt, **preset.settings) for preset in PRESETS]
    hinted = ["does not change" in preset_note(settings, order) for settings in chosen]
    assert hinted == [False, False, True]
