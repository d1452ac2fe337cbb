"""Named sets of settings that loosen the hold of image and past, with what each was measured to do
(docs/results.md)."""

from dataclasses import dataclass, field

from diffusers_helper.sections import SectionOrder
from diffusers_helper.settings import GenerationSettings

GOVERNED = (
    "adaptive_cfg_beta",
    "low_pass_factor",
    "low_pass_frames",
    "low_pass_sigma",
    "history_low_pass",
    "prompt_gate",
)
"""Settings that a preset sets."""


@dataclass(frozen=True)
class Preset:
    """Values for `GOVERNED` settings; those that it does not name are at their defaults."""

    name: str
    effect: dict[SectionOrder, str]
    """What it does and what it costs, a line of Markdown. A demo's order decides what was made
    before a section, and so what a preset does."""
    values: dict[str, float | str] = field(default_factory=dict)

    @property
    def settings(self) -> dict[str, float | str]:
        """A value for each of `GOVERNED`, in their order."""
        defaults = GenerationSettings()
        return {name: self.values.get(name, getattr(defaults, name)) for name in GOVERNED}


PRESETS = (
    Preset("As trained", dict.fromkeys(SectionOrder, "FramePack as it is: nothing below acts.")),
    Preset(
        "Livelier",
        {
            SectionOrder.FORWARD: "The last frame is shown without its detail while noise is "
            "highest. On the small model 0.2 % of videos freeze instead of 2.1 %; shapes are kept "
            "in 0.5 % fewer frames.",
            SectionOrder.INVERTED: "The frame after a section is shown without its detail while "
            "noise is highest. In this demo it does next to nothing on the small model: 3.5 % of "
            "videos freeze instead of 4.7 %. In FramePack-F1 it helps a little more.",
        },
        {"low_pass_factor": 0.25, "low_pass_frames": "last", "low_pass_sigma": 0.95},
    ),
    Preset(
        "Let it leave",
        {
            SectionOrder.FORWARD: "**Acts where a timed prompt changes**, which it makes the past "
            "let go. On the small model 96 % of the changes happen instead of 61 %, and of what "
            "should be gone 7 % is still seen instead of 42 %; shapes are kept in 2 % fewer "
            "frames.",
            SectionOrder.INVERTED: "**Acts where a timed prompt changes**. In this demo changes "
            "happen without it, since the end is made first: 90 % of them on the small model, with "
            "it and without. It keeps the time before a change as its prompt says, but then what "
            "moves jumps in 46 % of the videos instead of 17 %. With FramePack-F1 changes come in "
            "time, and most without a jump.",
        },
        {"prompt_gate": 1.0},
    ),
)


def preset_values(name: str) -> list[float | str]:
    """Values of the preset of that name for `GOVERNED`, in their order."""
    return list(next(preset for preset in PRESETS if preset.name == name).settings.values())


def preset_of(settings: GenerationSettings) -> Preset | None:
    """The preset that these settings are, if any."""
    governed = {name: getattr(settings, name) for name in GOVERNED}
    return next((preset for preset in PRESETS if preset.settings == governed), None)


def preset_note(settings: GenerationSettings, order: SectionOrder) -> str:
    """What the page says below the presets (Markdown)."""
    preset = preset_of(settings)
    if preset is None:
        return "Settings of your own."
    gate_alone = "prompt_gate" in preset.values and len(settings.prompts) == 1
    hint = "  \n⚠️ This prompt does not change: write it as `[0s: she stands] [1s: she walks away]`."
    return preset.effect[order] + (hint if gate_alone else "")
