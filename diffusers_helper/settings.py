"""The inputs of a video besides its image: names, defaults and ranges, in this one place.

Page, programming interface, command line and metadata all follow this list.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import Any

from diffusers_helper.errors import SettingsError
from diffusers_helper.k_diffusion.low_pass import FRAMES
from diffusers_helper.prompts import TimedPrompt, timed_prompts


def _setting(
    default: Any,
    help: str,
    minimum: float | None = None,
    maximum: float | None = None,
    step: float | None = None,
    choices: Sequence[str] | None = None,
) -> Any:
    about = {"help": help, "minimum": minimum, "maximum": maximum, "step": step, "choices": choices}
    return field(default=default, metadata=about)


@dataclass(frozen=True)
class GenerationSettings:
    """What a video is made from; fields in the order of FramePack's inputs.

    Raises:
        SettingsError: a value is out of its field's range; the message quotes it.
        PromptError: see `timed_prompts`.
    """

    prompt: str = _setting(
        "", "What happens, or what when: [0s: a man stands] [2s: he walks away]. May be empty."
    )
    n_prompt: str = _setting(
        "", "What to avoid in the whole video. Used only when CFG Scale is not 1."
    )
    seed: int = _setting(31337, "The same seed gives the same video.", 0, 2**63 - 1, 1)
    total_second_length: float = _setting(5.0, "Length of the video in seconds.", 1, 120, 0.1)
    latent_window_size: int = _setting(
        9, "Latent frames in a section. The models were trained with 9.", 1, 33, 1
    )
    steps: int = _setting(25, "Denoising steps of a section.", 1, 100, 1)
    cfg: float = _setting(
        1.0, "True CFG. 1 is off; anything else takes twice the time.", 1, 32, 0.01
    )
    gs: float = _setting(10.0, "The guidance that the model was trained to take.", 1, 32, 0.01)
    rs: float = _setting(
        0.0, "Share of true CFG's result that is rescaled to the unguided spread.", 0, 1, 0.01
    )
    gpu_memory_preservation: float = _setting(
        6.0,
        "GB of GPU memory to leave free. Raise it if memory runs out; it is slower.",
        6,
        128,
        0.1,
    )
    use_teacache: bool = _setting(True, "Faster, but often makes hands and fingers slightly worse.")
    mp4_crf: int = _setting(
        16, "Compression: lower is better. 0 is lossless, which few browsers play.", 0, 100, 1
    )
    adaptive_cfg_beta: float = _setting(
        0.0,
        "0=disabled, 0.5-0.8=enables dynamic motion. Experimental feature for large "
        "movements/disappearance.",
        0,
        1,
        0.05,
    )
    adaptive_cfg_min: float = _setting(
        1.0, "The guidance that beta 1 gives at the highest noise.", 1, 10, 0.1
    )
    low_pass_factor: float = _setting(
        1.0,
        "1=disabled. Below it, start image and last frame are shown at this fraction of their "
        "resolution while noise is high. Experimental, not measured on real checkpoints yet.",
        0.1,
        1,
        0.025,
    )
    low_pass_frames: str = _setting(
        "both",
        "Which frames Low-Pass Factor acts on: the start image, the last frame before a section, "
        "or both.",
        choices=tuple(FRAMES),
    )
    low_pass_sigma: float = _setting(
        0.9, "All low-passes act while the noise level is this or more.", 0, 1, 0.01
    )
    history_low_pass: float = _setting(
        0.0,
        "0=disabled. Above it, older frames are shown the more blurred the older they are, while "
        "noise is high. Experimental, not measured on real checkpoints yet.",
        0,
        1,
        0.05,
    )
    prompt_gate: float = _setting(
        0.0,
        "0=disabled. Above it, the past is shown weaker where a timed prompt changes. Does nothing "
        "without timed prompts. Experimental, not measured on real checkpoints yet.",
        0,
        1,
        0.05,
    )
    fp8: bool = _setting(
        False,
        "Faster, and half the memory for the transformer; the video differs a little. Needs a GPU "
        "of compute capability 8.9 or more.",
    )

    def __post_init__(self) -> None:
        for setting in fields(self):
            value = getattr(self, setting.name)
            object.__setattr__(self, setting.name, _checked(setting, value))
        _ = self.prompts  # that wrong times are told at once

    @property
    def prompts(self) -> list[TimedPrompt]:
        """The prompt, cut at its times."""
        return timed_prompts(self.prompt, self.total_second_length)


def _checked(setting: Any, value: Any) -> Any:
    """`value` as the field's type, if it is one: pages send 25.0 for 25, scripts 10 for 10.0."""
    if setting.type in (str, bool):
        if not isinstance(value, setting.type):
            raise SettingsError(f"{setting.name} must be {setting.type.__name__}, got {value!r}")
        choices = setting.metadata["choices"]
        if choices and value not in choices:
            raise SettingsError(f"{setting.name} must be of {', '.join(choices)}, got {value!r}")
        return value
    minimum, maximum = setting.metadata["minimum"], setting.metadata["maximum"]
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not number or not minimum <= value <= maximum:
        raise SettingsError(f"{setting.name} must be in [{minimum}, {maximum}], got {value!r}")
    if setting.type is int and value != int(value):
        raise SettingsError(f"{setting.name} must be a whole number, got {value!r}")
    return setting.type(value)
