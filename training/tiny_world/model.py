"""FramePack in miniature: the real classes at sizes that any machine runs."""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKLHunyuanVideo
from diffusers.pipelines.hunyuan_video.pipeline_hunyuan_video import DEFAULT_PROMPT_TEMPLATE
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTokenizer,
    LlamaConfig,
    LlamaModel,
    PreTrainedTokenizerFast,
    SiglipImageProcessorPil,
    SiglipVisionConfig,
    SiglipVisionModel,
)

from diffusers_helper.models.hunyuan_video_packed import HunyuanVideoTransformer3DModelPacked

_SPECIAL = ("<|begin_of_text|>", "<|eot_id|>", "<|start_header_id|>", "<|end_header_id|>")


@dataclass(frozen=True)
class ModelConfig:
    """Sizes of the networks."""

    vae_channels: tuple[int, ...] = (24, 32, 64, 64)
    vae_norm_groups: int = 4
    heads: int = 3
    head_dim: int = 64
    rope_axes_dim: tuple[int, int, int] = (16, 24, 24)
    """Sums to `head_dim`."""
    double_blocks: int = 2
    single_blocks: int = 7
    vocabulary: int = 1024
    text_dim: int = 128
    text_layers: int = 4
    """The transformer reads hidden state number -3, so that the last two layers go unread."""
    pooled_dim: int = 64
    image_dim: int = 96
    image_side: int = 64


MINIATURE = ModelConfig(
    vae_channels=(2, 2, 4, 4),
    vae_norm_groups=2,
    heads=2,
    head_dim=32,
    rope_axes_dim=(8, 12, 12),
    double_blocks=1,
    single_blocks=1,
    vocabulary=300,
    text_dim=64,
    pooled_dim=32,
    image_dim=48,
)
"""For tests, where the numbers that come out do not matter."""


def build(config: ModelConfig, seed: int, captions: Iterable[str] = ()) -> dict[str, Any]:
    """Untrained components by their attribute in `Models`.

    Args:
        config: sizes.
        seed: of the weights.
        captions: what the tokenizers' vocabularies are learned from; without any, a token is a
            byte.

    Returns:
        float32 on the CPU, alike every time.
    """
    captions = list(captions)
    tokenizer = _llama_tokenizer(config.vocabulary, captions)
    tokenizer_2 = _clip_tokenizer(config.vocabulary, captions)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return {
            "tokenizer": tokenizer,
            "tokenizer_2": tokenizer_2,
            "feature_extractor": SiglipImageProcessorPil(
                size={"height": config.image_side, "width": config.image_side}
            ),
            "text_encoder": LlamaModel(
                LlamaConfig(
                    vocab_size=len(tokenizer),
                    hidden_size=config.text_dim,
                    intermediate_size=2 * config.text_dim,
                    num_hidden_layers=config.text_layers,
                    num_attention_heads=4,
                    num_key_value_heads=2,
                    bos_token_id=tokenizer.bos_token_id,
                    eos_token_id=tokenizer.eos_token_id,
                    pad_token_id=tokenizer.pad_token_id,
                )
            ),
            "text_encoder_2": CLIPTextModel(
                CLIPTextConfig(
                    vocab_size=len(tokenizer_2),
                    hidden_size=config.pooled_dim,
                    intermediate_size=2 * config.pooled_dim,
                    num_hidden_layers=2,
                    num_attention_heads=2,
                    bos_token_id=tokenizer_2.bos_token_id,
                    eos_token_id=tokenizer_2.eos_token_id,
                    pad_token_id=tokenizer_2.pad_token_id,
                )
            ),
            "image_encoder": SiglipVisionModel(
                SiglipVisionConfig(
                    hidden_size=config.image_dim,
                    intermediate_size=2 * config.image_dim,
                    num_hidden_layers=2,
                    num_attention_heads=2,
                    image_size=config.image_side,
                    patch_size=16,
                )
            ),
            "vae": AutoencoderKLHunyuanVideo(
                block_out_channels=config.vae_channels,
                layers_per_block=1,
                norm_num_groups=config.vae_norm_groups,
                mid_block_add_attention=False,
            ),
            "transformer": HunyuanVideoTransformer3DModelPacked(
                num_attention_heads=config.heads,
                attention_head_dim=config.head_dim,
                num_layers=config.double_blocks,
                num_single_layers=config.single_blocks,
                num_refiner_layers=1,
                text_embed_dim=config.text_dim,
                pooled_projection_dim=config.pooled_dim,
                rope_axes_dim=config.rope_axes_dim,
                has_image_proj=True,
                image_proj_dim=config.image_dim,
                has_clean_x_embedder=True,
            ),
        }


def save(
    components: dict[str, Any],
    folder: Path,
    resolution: int,
    settings: dict[str, Any],
    notice: str,
    latent_rgb: torch.Tensor,
) -> None:
    """Write components as `load_models` reads them.

    Args:
        components: by their attribute in `Models`; the networks are written in half precision.
        folder: gets a folder for each component, and `framepack.json`.
        resolution: of the buckets.
        settings: recommended values of `GenerationSettings`.
        notice: what a user should know before trying it, in Markdown.
        latent_rgb: preview colours, shape [17, 3]: a row a latent channel, and the bias.
    """
    for name, component in components.items():
        if isinstance(component, torch.nn.Module):
            component.to(torch.float16 if name == "vae" else torch.bfloat16)
        component.save_pretrained(folder / name)
        _forget_origin(folder / name / "config.json")
    description = {
        "resolution": resolution,
        "settings": settings,
        "notice": notice,
        "latent_rgb": [[round(x, 5) for x in row] for row in latent_rgb.tolist()],
    }
    (folder / "framepack.json").write_text(
        json.dumps(description, indent=1, allow_nan=False) + "\n"
    )


def _forget_origin(config: Path) -> None:
    """diffusers notes the folder that a network was loaded from, which is nobody's business."""
    if config.exists():
        known = json.loads(config.read_text())
        known.pop("_name_or_path", None)
        config.write_text(json.dumps(known, indent=2, sort_keys=True) + "\n")


def _llama_tokenizer(vocabulary: int, captions: list[str]) -> PreTrainedTokenizerFast:
    """Llama 3's kind: byte-level, with its special tokens."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    template = DEFAULT_PROMPT_TEMPLATE["template"]
    # The template is in front of every prompt: as few tokens as possible for it.
    _train(tokenizer, vocabulary, captions and captions + [template] * len(captions), _SPECIAL)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{_SPECIAL[0]} $A",
        special_tokens=[(_SPECIAL[0], tokenizer.token_to_id(_SPECIAL[0]))],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=_SPECIAL[0],
        eos_token=_SPECIAL[1],
        pad_token=_SPECIAL[1],
        padding_side="right",
        model_max_length=4096,
    )


def _clip_tokenizer(vocabulary: int, captions: list[str]) -> CLIPTokenizer:
    """CLIP's own class."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    ends_of_words = [f"{token}</w>" for token in alphabet]
    tokenizer = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    untrained = CLIPTokenizer(vocab={}, merges=[])
    tokenizer.normalizer = untrained.backend_tokenizer.normalizer
    tokenizer.pre_tokenizer = untrained.backend_tokenizer.pre_tokenizer
    _train(tokenizer, vocabulary, captions, (*alphabet, *ends_of_words), suffix="</w>")
    learned = json.loads(tokenizer.to_str())["model"]
    vocab = dict(learned["vocab"])
    for token in ("<|startoftext|>", "<|endoftext|>"):
        vocab[token] = len(vocab)
    return CLIPTokenizer(
        vocab=vocab, merges=[tuple(pair) for pair in learned["merges"]], model_max_length=77
    )


def _train(
    tokenizer: Tokenizer,
    vocabulary: int,
    texts: list[str],
    special: Iterable[str],
    suffix: str = "",
) -> None:
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=list(special),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        end_of_word_suffix=suffix,
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
