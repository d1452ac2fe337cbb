"""Prompts that change on the way: `[0s: a man stands] [2s: the man walks away]`."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from diffusers_helper.errors import PromptError

_MARK = re.compile(r"\[\s*([\d.,+-][\d.,+s-]*?)\s*s\s*:")
"""What opens a part, or was meant to: a range or a comma is an error and not a description."""
_TIME = re.compile(r"\d+(\.\d+)?")


@dataclass(frozen=True)
class TimedPrompt:
    """A prompt and when it comes into force."""

    start: float
    """Seconds of the finished video."""
    text: str


def is_timed(prompt: str) -> bool:
    """Whether `prompt` has times; other square brackets are text like any other."""
    return _MARK.search(prompt) is not None


def timed_prompts(prompt: str, seconds: float) -> list[TimedPrompt]:
    """Cut a prompt at its times.

    Args:
        prompt: as typed; without times it is one prompt, taken as it is.
        seconds: length of the video that was asked for.

    Returns:
        In the order of time, at least one.

    Raises:
        PromptError: times do not rise or reach the video's end, a part is not closed or empty, or
            text stands outside of the parts; the message quotes where.
    """
    marks = list(_MARK.finditer(prompt))
    if not marks:
        return [TimedPrompt(0.0, prompt)]
    _check_outside(prompt[: marks[0].start()])
    ends = [mark.start() for mark in marks[1:]] + [len(prompt)]
    prompts = [_part(prompt, mark, end) for mark, end in zip(marks, ends, strict=True)]
    for (before, after), mark in zip(pairwise(prompts), marks[1:], strict=True):
        if after.start <= before.start:
            raise PromptError(f"Times must rise: {mark[0]!r} comes after {before.start:g} s.")
    if prompts[-1].start >= seconds:
        raise PromptError(f"{marks[-1][0]!r} begins when the video of {seconds:g} s is over.")
    return prompts


def in_force(prompts: Sequence[TimedPrompt], seconds: float) -> TimedPrompt:
    """The last of `prompts` to have begun at a moment of the video; before all, the first."""
    return ([p for p in prompts if p.start <= seconds] or prompts[:1])[-1]


def _part(prompt: str, mark: re.Match[str], end: int) -> TimedPrompt:
    """The part that `mark` opens; the next one begins at `end`."""
    if not _TIME.fullmatch(mark[1]):
        raise PromptError(f"{mark[0]!r} names no time: write seconds, as in '[2s:' or '[1.5s:'.")
    text, bracket, outside = re.fullmatch(
        r"([^\[\]]*)([\[\]]?)(.*)", prompt[mark.end() : end], re.DOTALL
    ).groups()
    if bracket != "]":
        raise PromptError(
            f"{(mark[0] + text).strip()!r} must be closed with ']' and hold no other brackets."
        )
    if not text.strip():
        raise PromptError(f"{mark[0] + text + bracket!r} has no prompt.")
    _check_outside(outside)
    return TimedPrompt(float(mark[1]), text.strip())


def _check_outside(text: str) -> None:
    if text.strip():
        raise PromptError(
            f"{text.strip()!r} has no time: beside timed prompts no text stands alone."
        )
