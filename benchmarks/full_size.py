"""Run one F1 section on the full-size architecture with random weights, on a CUDA GPU.

    python -m benchmarks.full_size --folder DIR

Writes random weights to DIR as the repositories lay them out (42 GB), then, in a process for each
size of card, loads them with `load_models` and makes one section at 544x704 per row of the table
that it prints. Smaller cards are made by filling the rest of the GPU. It shows that everything runs
at full size, that beta costs no time, and what memory it takes. The pictures mean nothing.
"""

import argparse
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKLHunyuanVideo
from torch import nn
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
from diffusers_helper.sections import SectionOrder
from diffusers_helper.settings import GenerationSettings

HEIGHT, WIDTH = 544, 704


def builders(tokenizer_2: Any) -> dict[str, Callable[[], nn.Module]]:
    """Networks of "f1" at their real sizes, by their attribute in `Models`.

    Args:
        tokenizer_2: CLIP's, by the end of whose texts they are pooled.
    """
    return {
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
                eos_token_id=tokenizer_2.eos_token_id,
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


def write_random_weights(folder: Path) -> None:
    """All repositories of "f1", at the real sizes; tokenizers are the tiny model's."""
    small = load_models("tiny", "cpu")
    small.feature_extractor.size = {"height": 384, "width": 384}
    networks = builders(small.tokenizer_2)
    torch.manual_seed(0)
    for attribute, place in component_folders("f1").items():
        if attribute in networks:
            torch.set_default_dtype(torch.bfloat16 if attribute == "transformer" else torch.float16)
            with torch.device("cuda"):
                component = networks[attribute]()
            torch.set_default_dtype(torch.float32)
            component.save_pretrained(folder / place, max_shard_size="5GB")
            del component
            torch.cuda.empty_cache()
        else:
            getattr(small, attribute).save_pretrained(folder / place)


def run(models: Models, output: Path, beta: float, filled_gb: float) -> list[str]:
    """Make one section and return its row; the median step leaves out the first two, which warm up.

    `filled_gb` of the GPU are not ours.
    """
    settings = GenerationSettings(
        prompt="A person walks along a lake",
        total_second_length=1,
        adaptive_cfg_beta=beta,
        use_teacache=False,
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
    return [
        f"{beta:g}",
        f"{statistics.median(times):.1f}",
        f"{times.min():.1f} to {times.max():.1f}",
        f"{end - decoding:.1f}",
        f"{end - begin:.1f}",
        f"{torch.cuda.max_memory_allocated() / 1024**3 - filled_gb:.1f}",
    ]


def run_card(folder: Path, output: Path, card_gb: float) -> None:
    """Print the rows of one card."""
    begin = time.perf_counter()
    models = load_models("f1", weights=folder)
    loading = time.perf_counter() - begin
    fill = max(torch.cuda.mem_get_info()[0] - int(card_gb * 1024**3), 0)
    ballast = torch.empty(fill, dtype=torch.uint8, device="cuda")
    for beta in (0.7,) if fill else (0.0, 0.7, 0.0, 0.7):
        row = [f"{card_gb:g}", *run(models, output, beta, fill / 1024**3), f"{loading:.1f}"]
        print(f"| {' | '.join(row)} |", flush=True)
    del ballast


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, help="default: a temporary one")
    parser.add_argument("--output", type=Path, default=Path("outputs/full_size.mp4"))
    parser.add_argument("--cards", type=float, nargs="+", default=[80, 24, 12, 8], metavar="GB")
    options = parser.parse_args()
    folder = options.folder or Path(tempfile.mkdtemp())
    if not folder.exists() or not any(folder.iterdir()):
        begin = time.perf_counter()
        write_random_weights(folder)
        print(f"wrote the weights in {time.perf_counter() - begin:.0f} s", flush=True)
    if len(options.cards) == 1:
        run_card(folder, options.output, options.cards[0])
        return
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}\n")
    print("| card GB | beta | ms a step | min to max | decode s | whole s | peak GB | load s |")
    print("|---|---|---|---|---|---|---|---|", flush=True)
    for card_gb in options.cards:
        command = [sys.executable, "-m", "benchmarks.full_size", "--folder", folder]
        command += ["--output", options.output, "--cards", card_gb]
        subprocess.run([str(word) for word in command], check=True)
    if options.folder is None:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
