from itertools import combinations

import pytest
import torch

from diffusers_helper import prompt_gate
from diffusers_helper.hunyuan import encode_prompt_conds
from diffusers_helper.k_diffusion.low_pass import HISTORY
from diffusers_helper.models import Models
from diffusers_helper.prompt_gate import THRESHOLD, section_gates, weakened
from diffusers_helper.sections import LatentHistory, SectionOrder, plan_sections
from training.tiny_world.captions import caption
from training.tiny_world.config import TrainingConfig
from training.tiny_world.world import sample_scene


def pooled(*distances: float) -> torch.Tensor:
    """Texts, one a clip, at these cosine distances from that of distance 0."""
    cosine = 1 - torch.tensor(distances)
    return 3 * torch.stack([cosine, (1 - cosine**2).sqrt()], dim=1)


A, B = pooled(0.0), pooled(0.7)


@pytest.mark.parametrize(
    ("prompts", "gates"),
    [
        ([A], [0]),
        ([A, A, A], [0, 0, 0]),
        ([A, B, B, B], [0, 0.8, 0.4, 0]),
        ([A, A, A, B], [0, 0, 0, 0.8]),
        ([A, B, A, A], [0, 0.8, 0.8, 0.4]),
        ([A, B, B, A, A, A], [0, 0.8, 0.4, 0.8, 0.4, 0]),
    ],
)
def test_a_gate_is_whole_at_a_change_and_half_after_it(prompts, gates):
    made = section_gates(prompts, 0.8)
    assert [gate.tolist() for gate in made] == [pytest.approx([gate]) for gate in gates]


def test_the_small_models_clip_tells_another_action_from_another_wording(tiny: Models):
    def told(action: str, seed: int, wording: int) -> torch.Tensor:
        encoders = (tiny.text_encoder, tiny.text_encoder_2, tiny.tokenizer, tiny.tokenizer_2)
        text = caption(sample_scene(TrainingConfig.unseen_seed + seed, action), wording)
        return encode_prompt_conds(text, *encoders)[1]

    def changes(pairs: list[tuple[torch.Tensor, torch.Tensor]]) -> float:
        before, after = (torch.cat(side) for side in zip(*pairs, strict=True))
        return section_gates([before, after], 1.0)[1].mean().item()

    actions = ("still", "left", "fade", "leave", "night")
    reworded = [(told(a, s, 0), told(a, s, 1)) for s in range(8) for a in actions]
    other = [(told(a, s, 0), told(b, s, 0)) for s in range(4) for a, b in combinations(actions, 2)]
    assert changes(reworded) <= 0.1
    assert changes(other) >= 0.9


def test_a_change_is_what_is_beyond_the_threshold():
    before, after = pooled(0, 0, 0, 0), pooled(0, 0.9 * THRESHOLD, 1.1 * THRESHOLD, 2)
    _, gate = section_gates([before, 7 * after], 1.0)
    assert gate.tolist() == [0, 0, 1, 1]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_the_same_text_is_no_change(dtype):
    texts = torch.randn(64, 768, generator=torch.Generator().manual_seed(0)).to(dtype)
    assert not section_gates([texts, texts.clone()], 1.0)[1].any()


def test_off_nothing_is_compared(monkeypatch):
    monkeypatch.setattr(torch, "cosine_similarity", None)
    gates = section_gates([A, B, A], 0.0)
    assert [gate.tolist() for gate in gates] == [[0], [0], [0]]
    with pytest.raises(TypeError):
        section_gates([A, B], 0.5)


def context(order: SectionOrder, clips: int) -> dict[str, torch.Tensor]:
    """What the fourth of four sections is shown; by then all of history is there."""
    *before, last = plan_sections(order, seconds=4.8, window=9)
    history = LatentHistory(order, 9, torch.full((clips, 4, 1, 6, 8), 9.0))
    for section in before:
        history.add(section, torch.full((clips, 4, 9, 6, 8), float(section.number)))
    return history.context(last)


@pytest.mark.parametrize("order", SectionOrder)
def test_the_older_past_fades_clip_by_clip_and_all_else_stays(order):
    shown, gate = context(order, clips=3), torch.tensor([0.0, 0.25, 1.0])
    weak = weakened(shown, gate)
    assert weak.pop("last_low_pass") is gate
    assert weak.keys() == shown.keys()
    for name in HISTORY:
        assert shown[name].bool().all()
        assert weak[name][0].equal(shown[name][0])
        torch.testing.assert_close(weak[name][1], 0.75 * shown[name][1])
        assert not weak[name][2].any()
    for name in shown.keys() - HISTORY.keys():
        assert weak[name] is shown[name]


def test_at_zero_all_stays(monkeypatch):
    monkeypatch.setattr(prompt_gate, "HISTORY", None)
    shown = context(SectionOrder.FORWARD, clips=2)
    assert weakened(shown, torch.zeros(2)) is shown
