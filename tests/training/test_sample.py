import pytest
import torch

from diffusers_helper.hunyuan import encode_prompt_conds
from diffusers_helper.k_diffusion.low_pass import low_pass
from diffusers_helper.prompt_gate import THRESHOLD
from diffusers_helper.sections import SectionOrder
from training.tiny_world import sample
from training.tiny_world.sample import sample_clips
from training.tiny_world.world import sample_scene

STILL, NIGHT, FADES = "a cat", "rain falls on the city at night", "nothing is left of it"
SECONDS, WINDOW = 0.4, 1
"""Three sections, which have their middles at 2, 6 and 10 thirtieths of a second."""
FORWARD, INVERTED = SectionOrder.FORWARD, SectionOrder.INVERTED


def shown(miniature, monkeypatch, **settings) -> list[dict[str, torch.Tensor]]:
    """What the transformer is given in each section of two clips: the prompt of the first changes
    after 0.15 s, that of the second never does."""
    given = []
    monkeypatch.setattr(
        sample,
        "vae_decode",
        lambda latents, vae, pieces: torch.zeros(
            len(latents), 3, 4 * latents.shape[2] - 3, 128, 128
        ),
    )
    scenes = [sample_scene(seed, size=(128, 128)) for seed in (1, 2)]
    hook = miniature.transformer.register_forward_pre_hook(
        lambda module, args, kwargs: given.append(kwargs), with_kwargs=True
    )
    with hook:
        captions = [f"[0s: {STILL}] [0.15s: {NIGHT}]", FADES]
        sample_clips(
            miniature, scenes, captions, seconds=SECONDS, steps=1, window=WINDOW, **settings
        )
    return given


@pytest.mark.parametrize("order", SectionOrder)
def test_a_section_hears_the_caption_at_its_middle(miniature, monkeypatch, order):
    names = ("text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2")
    models = [getattr(miniature, name) for name in names]
    in_the_video = [STILL, NIGHT, NIGHT]
    calls = shown(miniature, monkeypatch, order=order)
    for call, text in zip(calls, in_the_video[:: 1 if order is FORWARD else -1], strict=True):
        for i, expected in enumerate((text, FADES)):
            embeds, pooled = encode_prompt_conds(expected, *models)
            tokens = embeds.shape[1]
            torch.testing.assert_close(call["encoder_hidden_states"][i, :tokens], embeds[0])
            torch.testing.assert_close(call["pooled_projections"][i], pooled[0])
            assert call["encoder_attention_mask"][i].sum() == tokens


@pytest.mark.parametrize(("order", "changed"), [(FORWARD, 1), (INVERTED, 2)])
def test_the_past_is_weaker_for_the_clip_whose_caption_changes(
    miniature, monkeypatch, order, changed
):
    """In the first section with another caption, of those made; the noise level is at the
    low-pass's gate in its only step."""
    plain, gated = (shown(miniature, monkeypatch, order=order, prompt_gate=g) for g in (0, 1))
    before, now = plain[changed], gated[changed]
    texts = [plain[section]["pooled_projections"][0] for section in (changed - 1, changed)]
    assert 1 - torch.cosine_similarity(*texts, dim=0) > THRESHOLD
    last = before["clean_latents"][:1, :, 1:]
    torch.testing.assert_close(now["clean_latents"][:1, :, 1:], low_pass(last, 0.25))
    assert now["clean_latents"][:, :, 0].equal(before["clean_latents"][:, :, 0])
    for name in ("clean_latents_2x", "clean_latents_4x"):
        assert not now[name][0].any() and now[name][1].equal(before[name][1])
    assert before["clean_latents_2x"][0].any()
    assert now["clean_latents"][1].equal(before["clean_latents"][1])


@pytest.mark.parametrize("order", SectionOrder)
def test_clips_are_decoded_alike_in_one_part_or_in_two(miniature, monkeypatch, order):
    scenes = [sample_scene(seed, size=(64, 64)) for seed in (1, 2)]
    clips = []
    for at_once in (2, 1):
        monkeypatch.setattr(sample, "_DECODED_AT_ONCE", at_once)
        made = sample_clips(
            miniature, scenes, [STILL, FADES], order=order, seconds=1.2, steps=1, window=5
        )
        clips.append(made.short())
    torch.testing.assert_close(*clips, atol=1, rtol=0)
    assert not clips[0][0].equal(clips[0][1])
