"""The model that is shipped."""

import inspect
from pathlib import Path

import pytest
import torch
from diffusers.pipelines.hunyuan_video.pipeline_hunyuan_video import DEFAULT_PROMPT_TEMPLATE
from safetensors import safe_open

from diffusers_helper.bucket_tools import buckets
from diffusers_helper.models import Models, loading
from diffusers_helper.settings import GenerationSettings
from training.tiny_world.model import ModelConfig, build

FOLDER = Path(loading.__file__).parent / "tiny"
NETWORKS = ("text_encoder", "text_encoder_2", "image_encoder", "vae", "transformer")
SIZES = ModelConfig()
TEXTS = ["", "A cat, 2 dogs!", "夕暮れの街", "naïve — 🎬", "tab\tand\nline"]


def test_all_files_together_are_small():
    assert sum(path.stat().st_size for path in FOLDER.rglob("*") if path.is_file()) <= 30e6


def test_weights_are_safetensors_of_half_precision():
    files = {path.parent.name: path for path in FOLDER.rglob("*.safetensors")}
    assert files.keys() == set(NETWORKS)
    for network, file in files.items():
        with safe_open(file, "pt") as tensors:
            kinds = {tensors.get_slice(name).get_dtype() for name in tensors.keys()}  # noqa: SIM118
        assert kinds == {"F16" if network == "vae" else "BF16"}, network


def test_networks_have_the_sizes_that_training_declares(tiny: Models):
    declared = build(SIZES, 0)
    for network in ("image_encoder", "vae", "transformer"):
        ours, theirs = (n.state_dict() for n in (getattr(tiny, network), declared[network]))
        assert {k: v.shape for k, v in ours.items()} == {k: v.shape for k, v in theirs.items()}
    # The text encoders' embeddings are as large as the vocabularies that were learned.
    assert len(tiny.tokenizer) <= SIZES.vocabulary
    for network in ("text_encoder", "text_encoder_2"):
        ours, theirs = (n.config.to_dict() for n in (getattr(tiny, network), declared[network]))
        differ = {key for key in ours.keys() | theirs.keys() if ours.get(key) != theirs.get(key)}
        assert differ <= {
            *("vocab_size", "bos_token_id", "eos_token_id", "pad_token_id"),
            *("dtype", "_name_or_path", "architectures"),
        }


@pytest.mark.parametrize("network", NETWORKS)
def test_weights_are_finite(tiny: Models, network: str):
    for name, tensor in getattr(tiny, network).state_dict().items():
        assert torch.isfinite(tensor).all(), name


def test_its_recommendations_are_of_a_short_video(tiny: Models):
    assert {"gs", "total_second_length"} <= tiny.settings.keys()
    settings = GenerationSettings(**tiny.settings)
    assert settings.total_second_length <= 4
    assert settings.gs != GenerationSettings().gs


@pytest.mark.parametrize("text", TEXTS)
def test_llamas_tokenizer_loses_nothing(tiny: Models, text: str):
    ids = tiny.tokenizer(text).input_ids
    assert ids[0] == tiny.tokenizer.bos_token_id
    assert tiny.tokenizer.decode(ids, skip_special_tokens=True) == text


def test_the_templates_special_tokens_are_one_token_each(tiny: Models):
    template = DEFAULT_PROMPT_TEMPLATE["template"]
    for special in ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"):
        assert special in template
        assert len(tiny.tokenizer(special, add_special_tokens=False).input_ids) == 1


@pytest.mark.parametrize("text", ["", "The star spins around", "夕"])
def test_clips_tokenizer_pads_to_77(tiny: Models, text: str):
    read = len(tiny.tokenizer_2(text).input_ids) - 2
    ids = tiny.tokenizer_2(text, padding="max_length", truncation=True).input_ids
    end = tiny.tokenizer_2.eos_token_id
    assert len(ids) == 77
    assert ids[0] == tiny.tokenizer_2.bos_token_id
    assert ids[read + 1 :] == [end] * (76 - read)
    assert end not in ids[: read + 1]


def test_vocabularies_fit_their_encoders(tiny: Models):
    assert tiny.text_encoder.config.vocab_size == len(tiny.tokenizer)
    assert tiny.text_encoder_2.config.vocab_size == len(tiny.tokenizer_2)


def test_widths_fit_the_transformer(tiny: Models):
    config = tiny.transformer.config
    assert config.text_embed_dim == tiny.text_encoder.config.hidden_size
    assert config.pooled_projection_dim == tiny.text_encoder_2.config.hidden_size
    assert config.image_proj_dim == tiny.image_encoder.config.hidden_size
    assert config.in_channels == config.out_channels == tiny.vae.config.latent_channels


def test_what_the_code_takes_for_granted_is_as_in_the_real_models(tiny: Models):
    real = inspect.signature(type(tiny.vae).__init__).parameters
    for name in ("spatial_compression_ratio", "temporal_compression_ratio", "scaling_factor"):
        assert tiny.vae.config[name] == real[name].default
    assert tiny.transformer.config.patch_size == 2


def test_buckets_divide_into_patches(tiny: Models):
    assert all(side % 16 == 0 for bucket in buckets(tiny.resolution) for side in bucket)
