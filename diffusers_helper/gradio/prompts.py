"""Which section gets which of timed prompts, as the page tells it."""

import html

from diffusers_helper.errors import PromptError
from diffusers_helper.prompts import in_force, is_timed
from diffusers_helper.sections import Section, SectionOrder, plan_sections
from diffusers_helper.settings import GenerationSettings


def prompt_note(settings: GenerationSettings, order: SectionOrder) -> str:
    """A line for every timed prompt (HTML); nothing for a prompt without times."""
    if not is_timed(settings.prompt):
        return ""
    prompts = settings.prompts
    sections = plan_sections(order, settings.total_second_length, settings.latent_window_size)
    lines = []
    for prompt in prompts:
        place = _place([s for s in sections if in_force(prompts, s.middle) is prompt])
        lines.append(f"<div>{place}: {html.escape(prompt.text)}</div>")
    return "".join(lines)


def wrong_note(error: PromptError) -> str:
    """What is wrong with prompts (HTML). Not an alert: somebody is still typing."""
    return f'<span class="job-error">{html.escape(str(error))}</span>'


def _place(sections: list[Section]) -> str:
    if not sections:
        return "⚠️ Not used, too short for a section"
    start = min(section.start for section in sections)
    first, last = sections[0].number, sections[-1].number
    numbers = f"section {first}" if first == last else f"sections {first} to {last}"
    return f"From {start:.1f} s, {numbers}"
