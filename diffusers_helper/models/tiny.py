"""FramePack in miniature: the real classes, sizes that any machine runs, weights from a seed.

The weights are random until a trained model is bundled: a video of it shows that everything works,
and nothing else.
"""

from typing import Any

import torch
from diffusers import AutoencoderKLHunyuanVideo
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
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

RESOLUTION = 128
_SEED = 0
_TEXT_DIM = 64
_POOLED_DIM = 32
_IMAGE_DIM = 48
_IMAGE_SIDE = 64


def build_tiny() -> dict[str, Any]:
    """The components by their attribute in `Models`, float32 on the CPU, alike every time."""
    tokenizer = _llama_tokenizer()
    tokenizer_2 = _clip_tokenizer()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(_SEED)
        return {
            "tokenizer": tokenizer,
            "tokenizer_2": tokenizer_2,
            "feature_extractor": SiglipImageProcessorPil(
                size={"height": _IMAGE_SIDE, "width": _IMAGE_SIDE}
            ),
            "text_encoder": LlamaModel(
                LlamaConfig(
                    vocab_size=len(tokenizer),
                    hidden_size=_TEXT_DIM,
                    intermediate_size=2 * _TEXT_DIM,
                    num_hidden_layers=3,
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
                    hidden_size=_POOLED_DIM,
                    intermediate_size=2 * _POOLED_DIM,
                    num_hidden_layers=2,
                    num_attention_heads=2,
                    bos_token_id=tokenizer_2.bos_token_id,
                    eos_token_id=tokenizer_2.eos_token_id,
                    pad_token_id=tokenizer_2.pad_token_id,
                )
            ),
            "image_encoder": SiglipVisionModel(
                SiglipVisionConfig(
                    hidden_size=_IMAGE_DIM,
                    intermediate_size=2 * _IMAGE_DIM,
                    num_hidden_layers=2,
                    num_attention_heads=2,
                    image_size=_IMAGE_SIDE,
                    patch_size=16,
                )
            ),
            "vae": AutoencoderKLHunyuanVideo(
                block_out_channels=(16, 16, 32, 32),
                layers_per_block=1,
                norm_num_groups=4,
                mid_block_add_attention=False,
            ),
            "transformer": HunyuanVideoTransformer3DModelPacked(
                num_attention_heads=3,
                attention_head_dim=32,
                num_layers=2,
                num_single_layers=4,
                num_refiner_layers=1,
                text_embed_dim=_TEXT_DIM,
                pooled_projection_dim=_POOLED_DIM,
                rope_axes_dim=(8, 12, 12),
                has_image_proj=True,
                image_proj_dim=_IMAGE_DIM,
                has_clean_x_embedder=True,
            ),
        }


def _llama_tokenizer() -> PreTrainedTokenizerFast:
    """Llama 3's kind, byte-level with its special tokens, but a token a byte."""
    special = ["<|begin_of_text|>", "<|eot_id|>", "<|start_header_id|>", "<|end_header_id|>"]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {token: i for i, token in enumerate(special + alphabet)}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(special)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{special[0]} $A", special_tokens=[(special[0], vocab[special[0]])]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=special[0],
        eos_token=special[1],
        pad_token=special[1],
        padding_side="right",
        model_max_length=4096,
    )


def _clip_tokenizer() -> CLIPTokenizer:
    """CLIP's own class, a token a byte."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    ends_of_words = [f"{token}</w>" for token in alphabet]
    tokens = [*alphabet, *ends_of_words, "<|startoftext|>", "<|endoftext|>"]
    return CLIPTokenizer(
        vocab={token: i for i, token in enumerate(tokens)}, merges=[], model_max_length=77
    )
