"""Run one F1 section on the full-size architecture with random weights, on a CUDA GPU.

    python -m benchmarks.full_size --folder DIR

Writes random weights to DIR as the repositories lay them out (44 GB), loads them with
`load_models`, and samples and decodes one section at 544x704 per row of the table that it prints:
beta 0 and 0.7 in turns, resident, and then streamed. It shows that everything runs at full size,
that beta costs no time, and what memory it takes. The pictures mean nothing.
"""

import argparse
import json
import shutil
import statistics
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKLHunyuanVideo
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    LlamaConfig,
    LlamaModel,
    SiglipVisionConfig,
    SiglipVisionModel,
)

from diffusers_helper.generation import Done, Progress, generate
from diffusers_helper.models import Models, load_models
from diffusers_helper.models.hunyuan_video_packed import HunyuanVideoTransformer3DModelPacked
from diffusers_helper.models.loading import component_folders
from diffusers_helper.models.tiny import build_tiny
from diffusers_helper.sections import SectionOrder
from diffusers_helper.settings import GenerationSettings

HEIGHT, WIDTH = 544, 704


def write_random_weights(folder: Path) -> None:
    """All repositories of "f1", at the real sizes; tokenizers are the tiny model's."""
    small = build_tiny()
    builders = {
        "text_encoder": lambda: LlamaModel(
            LlamaConfig(
                vocab_size=128320,
                hidden_size=4096,
                intermediate_size=14336,
                num_hidden_layers=32,
                num_attention_heads=32,
                num_key_value_heads=8,
            )
        ),
        "text_encoder_2": lambda: CLIPTextModel(
            CLIPTextConfig(
                hidden_size=768,
                intermediate_size=3072,
                num_hidden_layers=12,
                num_attention_heads=12,
                vocab_size=49408,
                eos_token_id=small["tokenizer_2"].eos_token_id,
            )
        ),
        "image_encoder": lambda: SiglipVisionModel(
            SiglipVisionConfig(
                hidden_size=1152,
                intermediate_size=4304,
                num_hidden_layers=27,
                num_attention_heads=16,
                image_size=384,
                patch_size=14,
            )
        ),
        "vae": AutoencoderKLHunyuanVideo,
        "transformer": lambda: HunyuanVideoTransformer3DModelPacked(
            has_image_proj=True, has_clean_x_embedder=True
        ),
    }
    small["feature_extractor"].size = {"height": 384, "width": 384}
    torch.manual_seed(0)
    for attribute, place in component_folders("f1").items():
        if attribute in builders:
            torch.set_default_dtype(torch.bfloat16 if attribute == "transformer" else torch.float16)
            with torch.device("cuda"):
                component = builders[attribute]()
            torch.set_default_dtype(torch.float32)
            component.save_pretrained(folder / place, max_shard_size="5GB")
            del component
            torch.cuda.empty_cache()
        else:
            small[attribute].save_pretrained(folder / place)


def run(models: Models, output: Path, beta: float, preserved_gb: float, teacache: bool) -> dict:
    """One section; the median step in ms leaves out the first two, which warm up."""
    settings = GenerationSettings(
        prompt="A person walks along a lake",
        total_second_length=1,
        adaptive_cfg_beta=beta,
        gpu_memory_preservation=preserved_gb,
        use_teacache=teacache,
    )
    image = np.random.default_rng(0).integers(0, 255, (HEIGHT, WIDTH, 3), dtype=np.uint8)
    torch.cuda.reset_peak_memory_stats()
    steps, begin = [], time.perf_counter()
    for event in generate(models, image, settings, SectionOrder.FORWARD, output, threading.Event()):
        if isinstance(event, Progress) and event.stage == "Denoising":
            torch.cuda.synchronize()
            steps.append(time.perf_counter())
        elif isinstance(event, Progress) and event.stage == "Decoding":
            decoding = time.perf_counter()
    assert isinstance(event, Done)
    end = time.perf_counter()
    times = np.diff(steps)[1:] * 1000
    return {
        "beta": beta,
        "preserved GB": preserved_gb,
        "TeaCache": teacache,
        "median ms a step": round(statistics.median(times), 1),
        "min": round(float(times.min()), 1),
        "max": round(float(times.max()), 1),
        "decode s": round(end - decoding, 2),
        "whole s": round(end - begin, 1),
        "peak GPU GB": round(torch.cuda.max_memory_allocated() / 1024**3, 1),
        "frames": event.frames,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, help="default: a temporary one")
    parser.add_argument("--output", type=Path, default=Path("outputs/full_size.mp4"))
    options = parser.parse_args()
    folder = options.folder or Path(tempfile.mkdtemp())

    begin = time.perf_counter()
    if not folder.exists() or not any(folder.iterdir()):
        write_random_weights(folder)
        print(f"wrote {folder} in {time.perf_counter() - begin:.0f} s", flush=True)
    begin = time.perf_counter()
    models = load_models("f1", weights=folder, report=lambda text: print(text, flush=True))
    print(f"loaded in {time.perf_counter() - begin:.0f} s", flush=True)
    print(torch.cuda.get_device_name(), f"torch {torch.__version__}", flush=True)
    for beta, preserved_gb, teacache in (
        (0.0, 6, False),
        (0.7, 6, False),
        (0.0, 6, False),
        (0.7, 6, False),
        (0.7, 6, True),
        (0.7, 128, False),
        (0.7, 128, True),
    ):
        print(json.dumps(run(models, options.output, beta, preserved_gb, teacache)), flush=True)
    if options.folder is None:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
