import re
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from diffusers.pipelines.hunyuan_video.pipeline_hunyuan_video import DEFAULT_PROMPT_TEMPLATE

from diffusers_helper.clip_vision import hf_clip_vision_encode
from diffusers_helper.hunyuan import (
    DecodedPieces,
    encode_prompt_conds,
    vae_decode,
    vae_decode_fake,
    vae_encode,
)
from diffusers_helper.sections import FPS, LatentHistory, SectionOrder, plan_sections
from training.tiny_world.config import TrainingConfig
from training.tiny_world.world import render, sample_scene, truth

TEMPLATE = DEFAULT_PROMPT_TEMPLATE["template"]
SPECIAL_TOKEN = re.compile(r"<\|\w+\|>")
PROMPTS = ["", "a cat", "a {cat} in {}", "夕暮れの街を歩く人", "two\nlines"]
LATENT_RGB = (
    (-0.0395, -0.0331, 0.0445),
    (0.0696, 0.0795, 0.0518),
    (0.0135, -0.0945, -0.0282),
    (0.0108, -0.0250, -0.0765),
    (-0.0209, 0.0032, 0.0224),
    (-0.0804, -0.0254, -0.0639),
    (-0.0991, 0.0271, -0.0669),
    (-0.0646, -0.0422, -0.0400),
    (-0.0696, -0.0595, -0.0894),
    (-0.0799, -0.0208, -0.0375),
    (0.1166, 0.1627, 0.0962),
    (0.1165, 0.0432, 0.0407),
    (-0.2315, -0.1920, -0.1355),
    (-0.0270, 0.0401, -0.0821),
    (-0.0616, -0.0997, -0.0727),
    (0.0249, -0.0469, -0.1703),
)
LATENT_RGB_BIAS = (0.0259, -0.0192, -0.0761)


def encode(models, prompt, **kwargs):
    return encode_prompt_conds(
        prompt,
        models.text_encoder,
        models.text_encoder_2,
        models.tokenizer,
        models.tokenizer_2,
        **kwargs,
    )


def byte_tokens(text: str) -> int:
    """The miniature has a token a byte, and one for a special token."""
    return len(SPECIAL_TOKEN.sub("#", text).encode())


@torch.inference_mode()
def second_layer(models, text: str) -> torch.Tensor:
    """Hidden state -3 of a Llama of four layers is what leaves the second."""
    seen = []
    handle = models.text_encoder.layers[1].register_forward_hook(
        lambda module, args, output: seen.append(output)
    )
    models.text_encoder(input_ids=models.tokenizer(text, return_tensors="pt").input_ids)
    handle.remove()
    return seen[0]


@pytest.mark.parametrize("prompt", PROMPTS)
def test_the_templates_beginning_is_cropped(miniature, prompt):
    before, after = TEMPLATE.split("{}")
    embeds, _ = encode(miniature, prompt)
    crop_start = 1 + byte_tokens(before)  # the tokenizer adds the beginning of text
    assert embeds.shape == (1, byte_tokens(prompt + after), 64)
    expected = second_layer(miniature, before + prompt + after)[:, crop_start:]
    torch.testing.assert_close(embeds, expected)


@pytest.mark.parametrize(("max_length", "kept"), [(None, 256), (10, 10)])
def test_a_long_prompt_is_cut(miniature, max_length, kept):
    limit = {} if max_length is None else {"max_length": max_length}
    embeds, _ = encode(miniature, "x" * kept + "the rest", **limit)
    other, _ = encode(miniature, "x" * kept + "is not read", **limit)
    whole, _ = encode(miniature, "x" * (kept - 1), **limit)
    assert embeds.shape == (1, kept, 64)
    assert whole.shape == (1, kept, 64)  # the template's end has the last place
    assert torch.equal(embeds, other)
    assert not torch.equal(embeds[:, -1], whole[:, -1])


@pytest.mark.parametrize(
    ("prompt", "tokens"),
    [
        ("", 0),
        ("cat", 3),
        ("CAT", 3),
        ("a cat", 4),  # CLIP's words carry their ends, not the spaces
        ("猫", 3),
        ("x" * 75, 75),
        ("x" * 200, 75),
    ],
)
def test_clips_output_is_pooled_at_the_end_of_the_text(miniature, prompt, tokens):
    _, pooled = encode(miniature, prompt)
    ids = miniature.tokenizer_2(
        prompt, truncation=True, max_length=77, return_tensors="pt"
    ).input_ids
    assert ids.shape == (1, tokens + 2)
    with torch.inference_mode():
        expected = miniature.text_encoder_2(ids).last_hidden_state[:, tokens + 1]
    torch.testing.assert_close(pooled, expected)


def test_prompts_differ(miniature):
    (cat, cat_pooled), (dog, dog_pooled) = encode(miniature, "a cat"), encode(miniature, "a dog")
    assert (cat - dog).abs().max() > 1e-3
    assert (cat_pooled - dog_pooled).abs().max() > 1e-3


@pytest.mark.parametrize(("frames", "latent_frames"), [(1, 1), (9, 3)])
def test_shapes_of_encoding(miniature, frames, latent_frames):
    latents = vae_encode(torch.zeros(1, 3, frames, 32, 48), miniature.vae)
    assert latents.shape == (1, 16, latent_frames, 4, 6)


@pytest.mark.parametrize(("latent_frames", "frames"), [(1, 1), (3, 9)])
def test_shapes_of_decoding(miniature, latent_frames, frames):
    video = vae_decode(torch.zeros(1, 16, latent_frames, 4, 6), miniature.vae)
    assert video.shape == (1, 3, frames, 32, 48)


class DoublingVAE:
    """Encodes to twice the image, decodes to half the latents."""

    device = torch.device("cpu")
    dtype = torch.float64
    config = SimpleNamespace(scaling_factor=0.25)

    def encode(self, x):
        assert x.dtype == self.dtype
        return SimpleNamespace(latent_dist=SimpleNamespace(sample=lambda generator: 2 * x))

    def decode(self, z, return_dict):
        assert z.dtype == self.dtype
        assert not return_dict
        return (z / 2,)


def test_encoding_scales():
    latents = vae_encode(torch.full((1, 3, 1, 8, 8), 0.5), DoublingVAE())
    assert (latents == 0.5 * 2 * 0.25).all()


def test_decoding_undoes_the_scale_first():
    video = vae_decode(torch.full((1, 16, 1, 1, 1), 0.5), DoublingVAE())
    assert (video == 0.5 / 0.25 / 2).all()


@pytest.fixture
def decoded(miniature, monkeypatch) -> list[int]:
    """How many latent frames the VAE's network has decoded, call by call."""
    lengths, decode = [], miniature.vae.decoder.forward
    monkeypatch.setattr(
        miniature.vae.decoder, "forward", lambda z: lengths.append(z.shape[2]) or decode(z)
    )
    return lengths


@pytest.mark.parametrize("tiled", [False, True], ids=["whole", "tiled"])
@pytest.mark.parametrize("window", [2, 9])
@pytest.mark.parametrize("order", SectionOrder)
def test_known_pieces_change_nothing(miniature, monkeypatch, order, window, tiled):
    vae = miniature.vae
    for name, value in {
        "use_tiling": tiled,
        "tile_sample_min_height": 16,
        "tile_sample_stride_height": 8,
    }.items():
        monkeypatch.setattr(vae, name, value)
    generator = torch.Generator().manual_seed(0)
    history = LatentHistory(order, window, torch.randn(1, 16, 1, 4, 2, generator=generator))
    pieces = DecodedPieces(history.shared)
    for section in plan_sections(order, 4 * (4 * window / FPS), window):
        made = torch.randn(1, 16, window, 4, 2, generator=generator)
        latents = history.add(section, made)
        assert vae_decode(latents, vae, pieces).equal(vae_decode(latents, vae))


@pytest.mark.parametrize(
    ("order", "expected"),
    [
        # A piece of a single latent frame, all of which would be dropped, is not decoded either.
        (SectionOrder.FORWARD, [[5, 5, 4], [5, 5, 5, 5, 5, 3], [5, 5, 5, 3]]),
        (SectionOrder.INVERTED, [[5, 5, 3], [5, 5, 5], [5, 5, 5, 5, 5, 4]]),
    ],
)
def test_what_two_sections_share_is_decoded_once(miniature, decoded, order, expected):
    history = LatentHistory(order, 9, torch.randn(1, 16, 1, 2, 2))
    pieces = DecodedPieces(history.shared)
    for section, lengths in zip(plan_sections(order, 3 * 1.2, 9), expected, strict=True):
        decoded.clear()
        vae_decode(history.add(section, torch.randn(1, 16, 9, 2, 2)), miniature.vae, pieces)
        assert decoded == lengths


def test_pieces_are_known_in_the_way_in_which_they_were_decoded(miniature, decoded, monkeypatch):
    latents, pieces = torch.randn(1, 16, 5, 2, 2), DecodedPieces(slice(None))
    for tiled, count in ((False, 2), (False, 2), (True, 4), (True, 4)):
        monkeypatch.setattr(miniature.vae, "use_tiling", tiled)
        vae_decode(latents, miniature.vae, pieces)
        assert len(decoded) == count


def test_encoding_samples_the_posterior_with_the_generator(miniature):
    image = torch.linspace(-1, 1, 3 * 32 * 48).view(1, 3, 1, 32, 48)
    a, b, other = (
        vae_encode(image, miniature.vae, torch.Generator().manual_seed(seed)) for seed in (5, 5, 6)
    )
    assert torch.equal(a, b)
    assert not torch.equal(a, other)
    with torch.inference_mode():
        posterior = miniature.vae.encode(image).latent_dist
    noise = torch.randn(a.shape, generator=torch.Generator().manual_seed(5))
    expected = (posterior.mean + posterior.std * noise) * miniature.vae.config.scaling_factor
    torch.testing.assert_close(a, expected)


def test_without_a_generator_the_global_one_samples(miniature):
    image = torch.zeros(1, 3, 1, 32, 48)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        implicit = vae_encode(image, miniature.vae)
    assert torch.equal(implicit, vae_encode(image, miniature.vae, torch.Generator().manual_seed(5)))


@pytest.mark.parametrize("value", [0, 1, -1, 4, -4, -20])
def test_the_preview_is_linear_and_clamped(value):
    """Frame c of the latents is `value` in channel c alone, so its colour is that channel's."""
    latents = value * torch.eye(16).view(1, 16, 16, 1, 1).expand(1, 16, 16, 2, 3)
    expected = np.clip(value * np.array(LATENT_RGB) + LATENT_RGB_BIAS, 0, 1)
    rgb = vae_decode_fake(latents)
    assert rgb.shape == (1, 3, 16, 2, 3)
    np.testing.assert_allclose(rgb[0, :, :, 1, 2].T, expected, atol=1e-6)
    np.testing.assert_allclose(rgb[0, :, :, 0, 0].T, expected, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_model_may_have_preview_colours_of_its_own(dtype):
    """Channel 3 is red and dims green, over a bias that has some blue."""
    latent_rgb = torch.zeros(17, 3)
    latent_rgb[3], latent_rgb[16] = torch.tensor([0.5, -0.25, 0]), torch.tensor([0, 0.5, 0.75])
    latents = torch.zeros(1, 16, 4, 1, 1, dtype=dtype)
    latents[0, 3, :, 0, 0] = torch.tensor([0.0, 1.0, 4.0, -1.0])
    rgb = vae_decode_fake(latents, latent_rgb)
    assert rgb.dtype == dtype
    expected = [[0, 0.5, 0.75], [0.5, 0.25, 0.75], [1, 0, 0.75], [0, 0.75, 0.75]]
    assert rgb[0, :, :, 0, 0].T.tolist() == expected


def test_the_small_models_preview_is_its_picture(tiny):
    scenes = [sample_scene(TrainingConfig.unseen_seed, "still", (128, 128))]
    pixels = render(scenes, truth(scenes, 1), "cpu") / 255
    latents = vae_encode(2 * pixels - 1, tiny.vae, torch.Generator().manual_seed(0))
    seen = vae_decode_fake(latents.float(), tiny.latent_rgb)
    assert (seen - F.avg_pool3d(pixels, (1, 8, 8))).square().mean().sqrt() < 0.05


def test_the_preview_sums_channels():
    rgb = vae_decode_fake(torch.ones(2, 16, 1, 1, 1))
    expected = np.clip(np.sum(LATENT_RGB, axis=0) + LATENT_RGB_BIAS, 0, 1)
    np.testing.assert_allclose(rgb.reshape(2, 3), [expected, expected], atol=1e-6)


def test_siglip_sees_the_image_in_minus_one_to_one(miniature):
    image = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    with torch.inference_mode():
        encoded = hf_clip_vision_encode(image, miniature.feature_extractor, miniature.image_encoder)
        pixels = torch.from_numpy(image / 127.5 - 1).float().permute(2, 0, 1)[None]
        expected = miniature.image_encoder(pixel_values=pixels).last_hidden_state
    assert encoded.last_hidden_state.shape == (1, 16, 48)
    torch.testing.assert_close(encoded.last_hidden_state, expected)


@pytest.mark.parametrize("size", [(128, 128), (96, 160), (31, 300)])
def test_siglip_takes_any_size(miniature, size):
    plain = np.full((*size, 3), 77, dtype=np.uint8)
    small = np.full((64, 64, 3), 77, dtype=np.uint8)
    with torch.inference_mode():
        a, b = (
            hf_clip_vision_encode(image, miniature.feature_extractor, miniature.image_encoder)
            for image in (plain, small)
        )
    torch.testing.assert_close(a.last_hidden_state, b.last_hidden_state)
