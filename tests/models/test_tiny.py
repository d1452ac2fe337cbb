import inspect
from dataclasses import fields

import pytest
import torch
from diffusers.pipelines.hunyuan_video.pipeline_hunyuan_video import DEFAULT_PROMPT_TEMPLATE

from diffusers_helper.bucket_tools import buckets
from diffusers_helper.models import Models
from diffusers_helper.models.loading import _components
from diffusers_helper.models.tiny import RESOLUTION, build_tiny

NETWORKS = ("text_encoder", "text_encoder_2", "image_encoder", "vae", "transformer")
TEXTS = ["", "A cat, 2 dogs!", "夕暮れの街", "naïve — 🎬", "tab\tand\nline"]


def test_components_are_of_the_real_classes():
    built = build_tiny()
    real = {component.attribute: component.kind for component in _components("f1")}
    assert {name: type(component) for name, component in built.items()} == real
    assert built.keys() <= {field.name for field in fields(Models)}


@pytest.mark.parametrize("network", NETWORKS)
def test_two_builds_are_equal(network):
    torch.manual_seed(1)
    first = build_tiny()[network].state_dict()
    torch.manual_seed(2)
    second = build_tiny()[network].state_dict()
    assert first.keys() == second.keys()
    for name, tensor in first.items():
        assert torch.equal(tensor, second[name]), name
        assert torch.isfinite(tensor).all(), name


def test_building_leaves_the_global_generator():
    torch.manual_seed(3)
    before = torch.get_rng_state()
    build_tiny()
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("text", TEXTS)
def test_llamas_tokenizer_has_a_token_a_byte(tiny, text):
    ids = tiny.tokenizer(text).input_ids
    assert len(ids) == 1 + len(text.encode())
    assert ids[0] == tiny.tokenizer.bos_token_id
    assert tiny.tokenizer.decode(ids, skip_special_tokens=True) == text


def test_the_templates_special_tokens_are_one_token_each(tiny):
    template = DEFAULT_PROMPT_TEMPLATE["template"]
    for special in ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"):
        assert special in template
        assert len(tiny.tokenizer(special, add_special_tokens=False).input_ids) == 1


@pytest.mark.parametrize("text", ["", "cat", "夕"])
def test_clips_tokenizer_pads_to_77(tiny, text):
    ids = tiny.tokenizer_2(text, padding="max_length", truncation=True).input_ids
    end = tiny.tokenizer_2.eos_token_id
    read = len(text.encode())
    assert len(ids) == 77
    assert ids[0] == tiny.tokenizer_2.bos_token_id
    assert ids[read + 1 :] == [end] * (76 - read)
    assert end not in ids[: read + 1]


def test_vocabularies_fit_their_encoders(tiny):
    assert tiny.text_encoder.config.vocab_size == len(tiny.tokenizer)
    assert tiny.text_encoder_2.config.vocab_size == len(tiny.tokenizer_2)


def test_widths_fit_the_transformer(tiny):
    config = tiny.transformer.config
    assert config.text_embed_dim == tiny.text_encoder.config.hidden_size
    assert config.pooled_projection_dim == tiny.text_encoder_2.config.hidden_size
    assert config.image_proj_dim == tiny.image_encoder.config.hidden_size
    assert config.in_channels == config.out_channels == tiny.vae.config.latent_channels


def test_what_the_code_takes_for_granted_is_as_in_the_real_models(tiny):
    real = inspect.signature(type(tiny.vae).__init__).parameters
    for name in ("spatial_compression_ratio", "temporal_compression_ratio", "scaling_factor"):
        assert tiny.vae.config[name] == real[name].default
    assert tiny.transformer.config.patch_size == 2


def test_buckets_divide_into_patches():
    assert all(side % 16 == 0 for bucket in buckets(RESOLUTION) for side in bucket)
