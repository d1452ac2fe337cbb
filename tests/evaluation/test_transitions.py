from pathlib import Path

import pytest
import torch
from transformers import (
    CLIPConfig,
    CLIPImageProcessorPil,
    CLIPModel,
    CLIPTextConfig,
    CLIPVisionConfig,
)

from diffusers_helper.errors import UserError
from diffusers_helper.models import Models
from diffusers_helper.settings import GenerationSettings
from evaluation.transitions import Change, ClipSimilarity, changes, transition_fidelity

A, B, C = "a man stands", "he walks away", "rain falls"


def found(prompt: str, seconds: float = 3.6, window: int = 9) -> list[Change]:
    return changes(
        GenerationSettings(prompt=prompt, total_second_length=seconds, latent_window_size=window)
    )


def test_a_prompt_changes_where_a_section_begins():
    """Sections of 36 frames: the last and the first half second of each prompt's time."""
    (change,) = found(f"[0s: {A}] [1.2s: {B}]")
    assert change == Change(A, B, slice(21, 36), slice(93, 108))
    # At 1.7 s the second section, with its middle at 1.8 s, still begins at 1.2 s.
    assert found(f"[0s: {A}] [1.7s: {B}]") == [change]
    first, second = found(f"[0s: {A}] [1.2s: {B}] [2.4s: {C}]")
    assert first == Change(A, B, slice(21, 36), slice(57, 72))
    assert second == Change(B, C, slice(57, 72), slice(93, 108))


def test_short_sections_are_looked_at_as_a_whole():
    first, second = found(f"[0s: {A}] [0.4s: {B}] [0.8s: {A}]", seconds=1.2, window=3)
    assert first == Change(A, B, slice(0, 12), slice(12, 24))
    assert second == Change(B, A, slice(12, 24), slice(24, 36))


@pytest.mark.parametrize(
    "prompt", [A, f"[0s: {A}]", f"[0s: {A}] [1.2s: {A}]", f"[0s: {A}] [3.5s: {B}]"]
)
def test_without_another_prompt_in_force_nothing_changes(prompt):
    assert found(prompt) == []


@pytest.mark.parametrize(
    ("new", "old", "fidelity"),
    [
        ((0, 1), (1, 0), 2),
        ((0, 0), (1, 1), 0),
        ((0, 1), (1, 1), 1),
        ((0.2, 0.5), (0.9, 0.8), 0.4),
        ((1, 0), (0, 1), -2),
    ],
)
def test_fidelity_is_the_rise_of_one_minus_that_of_the_other(new, old, fidelity):
    assert transition_fidelity(new, old) == pytest.approx(fidelity)


@pytest.fixture(scope="session")
def clip_folder(miniature: Models, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A CLIP of random weights."""
    folder, tokenizer = tmp_path_factory.mktemp("clip"), miniature.tokenizer_2
    layers = {"hidden_size": 32, "intermediate_size": 32}
    layers |= {"num_hidden_layers": 1, "num_attention_heads": 2}
    text = CLIPTextConfig(
        vocab_size=len(tokenizer),
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        **layers,
    )
    vision = CLIPVisionConfig(image_size=32, patch_size=8, **layers)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = CLIPConfig(text_config=text, vision_config=vision, projection_dim=16)
        CLIPModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    side = {"height": 32, "width": 32}
    CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size=side).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def clip(clip_folder: Path) -> ClipSimilarity:
    return ClipSimilarity(str(clip_folder))


def colours(*values: int) -> torch.Tensor:
    """A video of an even frame of each brightness."""
    return torch.tensor(values, dtype=torch.uint8).view(1, -1, 1, 1).expand(3, -1, 32, 40)


def test_similarity_is_the_cosine_of_projected_embeddings(clip):
    frames, prompts = colours(0, 90, 250), (A, B * 50)
    similarity = clip.similarity(frames, prompts)
    assert similarity.shape == (3, 2) and similarity.abs().max() <= 1
    images = clip._processor(list(frames.permute(1, 2, 3, 0).numpy()), return_tensors="pt")
    for j, prompt in enumerate(prompts):
        tokens = clip._tokenizer(prompt, truncation=True, return_tensors="pt")
        assert tokens.input_ids.shape[1] <= 77
        with torch.no_grad():
            told = clip._model.get_text_features(**tokens).pooler_output
            seen = clip._model.get_image_features(images.pixel_values).pooler_output
        torch.testing.assert_close(similarity[:, j], torch.cosine_similarity(seen, told))


def test_a_video_s_fidelity_by_clip(clip):
    """Of frames that are alike before the change, and alike after it."""
    change = Change(A, B, slice(3, 8), slice(9, 16))
    video = colours(*[9] * 3, *[40] * 5, 9, *[250] * 7, 9)
    (new_before, old_before), (new_after, old_after) = clip.similarity(colours(40, 250), (B, A))
    expected = (new_after - new_before) - (old_after - old_before)
    assert abs(expected) > 1e-3
    assert clip.fidelity(video, [change]) == pytest.approx(expected.item(), abs=1e-5)
    back = Change(B, A, change.before, change.after)
    assert clip.fidelity(video, [change, back]) == pytest.approx(0, abs=1e-5)
    assert clip.fidelity(colours(*[40] * 16), [change]) == pytest.approx(0, abs=1e-5)
    assert clip.fidelity(video, []) is None


def test_what_is_no_clip_model_is_told(tmp_path):
    with pytest.raises(UserError, match=f"--clip-model {tmp_path} is no CLIP model here"):
        ClipSimilarity(str(tmp_path))
