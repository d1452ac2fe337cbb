import random
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from diffusers_helper.hunyuan import encode_prompt_conds
from training.tiny_world import data
from training.tiny_world.captions import caption
from training.tiny_world.config import MINIATURE_TRAINING
from training.tiny_world.data import Clips, Draws, Text, _weights
from training.tiny_world.vae import visibility
from training.tiny_world.world import render, sample_scene, truth

CPU = torch.device("cpu")
WINDOW = MINIATURE_TRAINING.window


@pytest.fixture
def shrunk(monkeypatch: pytest.MonkeyPatch) -> None:
    """Instead of latents, clips that are scaled down: in a moment, and as still as they are."""

    def shrink(vae, scenes, frames, device):
        pixels = render(scenes, truth(scenes, frames), device) / 127.5 - 1
        small = F.avg_pool3d(pixels[:, :, ::4], (1, 8, 8))
        return F.pad(small, (0, 0, 0, 0, 0, 0, 0, 13)), pixels[:, :, 0]

    monkeypatch.setattr(data, "encode_clips", shrink)
    monkeypatch.setattr(data, "visibility", lambda vae, latents: torch.ones(16))


@torch.no_grad()
@pytest.mark.parametrize("prompt", ["The green star spins", ""])
def test_text_is_encoded_as_at_use(untrained: dict, prompt: str):
    text = Text(untrained, CPU)
    ((llama, clip),) = text.tokens([prompt])
    hidden, pooled = text.encode(torch.tensor([llama]), torch.tensor([clip]))
    names = ("text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2")
    expected, expected_pooled = encode_prompt_conds(prompt, *(untrained[n] for n in names))
    torch.testing.assert_close(hidden, expected)
    torch.testing.assert_close(pooled, expected_pooled)


def test_batches_are_whole_sections_with_their_past(clips: Clips):
    kinds = set()
    for step in range(12):
        batch = clips.batch(step)
        again = clips.batch(step)
        assert torch.equal(batch.target, again.target)
        assert batch.target.shape[2] == WINDOW
        assert batch.llama.shape[0] == batch.clip.shape[0] == MINIATURE_TRAINING.batch
        assert batch.context["clean_latents"].shape[2] == 2
        kinds.add(tuple(batch.context["latent_indices"][0].tolist()))
    # Both orders of sections: one counts from the start image, the other from what comes after.
    assert len(kinds) > 1
    for group in clips._groups:
        assert group.latents.shape[2] == 1 + group.sections * WINDOW


def test_targets_lie_behind_their_start_image(clips: Clips):
    """Of a batch in FramePack-F1's order: image, and the frame before the section, are the clip's
    own."""
    checked = 0
    for step in range(12):
        batch = clips.batch(step)
        start, last = batch.context["clean_latents"][0].unbind(dim=1)
        for group in clips._groups:
            for latents in group.latents:
                if latents.shape[-2:] == start.shape[-2:] and torch.equal(latents[:, 0], start):
                    place = [
                        i
                        for i in range(1, latents.shape[1] - WINDOW + 1)
                        if torch.equal(latents[:, i : i + WINDOW], batch.target[0])
                    ]
                    assert place
                    assert (place[0] - 1) % WINDOW == 0
                    if torch.equal(latents[:, place[0] - 1], last):
                        checked += 1
    assert checked


def test_a_late_clip_is_told_as_still_at_first(untrained: dict, tmp_path: Path, shrunk: None):
    config = replace(MINIATURE_TRAINING, late_share=1.0, still_share=0.0, clips=8)
    clips = Clips(untrained, config, CPU, tmp_path / "clips")
    still = {caption(sample_scene(seed, "still"), 0) for seed in range(400)}
    verbs = {phrase.split()[-1].strip(".") for phrase in still}
    for group in clips._groups:
        for is_first, by_length in group.captions.items():
            tokens = [llama for some in by_length.values() for _, llama, _ in some]
            told = [untrained["tokenizer"].decode(llama) for llama in tokens]
            assert len(told) == config.wordings * len(group.latents)
            assert all(any(verb in text for verb in verbs) for text in told) == is_first


def test_clips_are_kept(untrained: dict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shrunk):
    clips = Clips(untrained, MINIATURE_TRAINING, CPU, tmp_path)
    monkeypatch.delattr("training.tiny_world.data.encode_clips")
    again = Clips(untrained, MINIATURE_TRAINING, CPU, tmp_path)
    assert torch.equal(again.batch(5).target, clips.batch(5).target)


def test_what_is_not_seen_weighs_less(clips: Clips, untrained: dict):
    batch = clips.batch(0)
    by_channel = batch.weight.mean(dim=(0, 2, 3, 4))
    assert batch.weight.shape[:3] == (MINIATURE_TRAINING.batch, 16, 1)
    seen = visibility(untrained["vae"], clips._groups[0].latents[:, :, :1])
    least = MINIATURE_TRAINING.unseen_weight
    torch.testing.assert_close(by_channel / by_channel.mean(), least + (1 - least) * seen)


def test_what_is_drawn_less_often_weighs_more():
    captions = {5: [(0, [], []), (1, [], []), (2, [], [])], 7: [(1, [], []), (3, [], [])]}
    quiet = [True, False, True, True]
    draws, rng = Draws(captions, [1.0, 1.0, 3.0, 1.0], quiet, 0.25), random.Random(0)
    seen = {clip: [] for clip in range(4)}
    for _ in range(3000):
        chosen, weights = draws.draw(rng, draws.length(rng), 4)
        for (clip, _, _), weight in zip(chosen, weights, strict=True):
            seen[clip].append(weight)
    drawn = sum(map(len, seen.values()))
    # Chances of 1/4 and 1, over five captions of which two are of a clip that moves, and one of a
    # clip that is drawn three times as often, which nothing makes up for.
    assert len(seen[1]) / drawn == pytest.approx(2 / 3.25, abs=0.02)
    assert set(seen[1]) == {3.25 / 7} and set(seen[0]) == {4 * 3.25 / 7}
    for clip, share in enumerate((1 / 7, 2 / 7, 3 / 7, 1 / 7)):
        assert sum(seen[clip]) / drawn == pytest.approx(share, abs=0.02)


def test_clips_of_slow_shapes_are_known(untrained: dict, tmp_path: Path, shrunk: None):
    config = replace(MINIATURE_TRAINING, slow_shapes=("circle", "star"), clips=8)
    clips = Clips(untrained, config, CPU, tmp_path)
    slow = 0
    for group in clips._groups:
        for by_length in group.captions.values():
            for some in by_length.values():
                for clip, llama, _ in some:
                    text = untrained["tokenizer"].decode(llama)
                    named = any(word in text for word in ("circle", "ball", "disc", "star"))
                    assert not named or group.slow[clip], text
                    slow += named
    assert slow


def test_the_subject_of_the_start_image_weighs_more():
    scenes = [replace(sample_scene(seed, "leave", (128, 128)), x=0.0, y=0.0) for seed in range(3)]
    latents = torch.zeros(3, 16, 4, 16, 16)
    weights = _weights(scenes, 4.0, latents)
    torch.testing.assert_close(weights.mean(dim=(1, 2, 3, 4)), torch.ones(3))
    torch.testing.assert_close(weights[..., 8, 8], 4 * weights[..., 0, 0])
    assert torch.equal(_weights(scenes, 1.0, latents), torch.ones(3, 1, 1, 16, 16))


def test_clips_in_which_nothing_happens_are_known(untrained: dict, tmp_path: Path, shrunk: None):
    config = replace(MINIATURE_TRAINING, still_share=0.5, late_share=0.0, clips=16)
    clips = Clips(untrained, config, CPU, tmp_path / "clips")
    known = [is_quiet for group in clips._groups for is_quiet in group.quiet]
    seen = [
        bool((latents[:, -1] - latents[:, 1]).abs().max() < 1e-5)
        for group in clips._groups
        for latents in group.latents
    ]
    assert known == seen
    assert set(seen) == {True, False}
