"""What a step, a section and the host's memory cost on cards of any size.

    python -m benchmarks.memory --folder DIR

The random weights of `benchmarks.full_size`, written to DIR if it is empty (42 GB), loaded by a
process for each card, which makes one short F1 section at 544x704. Smaller cards are made by
filling the rest of the GPU: their memory is realistic, their speed and their link are this
machine's. The bound of a step is the larger of a resident step, which the first card is to show,
and the time that all weights of the transformer take from pinned memory.
"""

import argparse
import json
import re
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.full_size import HEIGHT, WIDTH, write_random_weights
from diffusers_helper import generation
from diffusers_helper.generation import Done, Progress, generate
from diffusers_helper.models import load_models
from diffusers_helper.sections import SectionOrder
from diffusers_helper.settings import GenerationSettings

_GB = 1024**3
_STEPS = 8


def host_gb() -> tuple[float, float]:
    """Memory of this process: in all, and without what is only a cache of files."""
    status = Path("/proc/self/status").read_text()
    kb = {name: int(size) for name, size in re.findall(r"(Rss\w+|VmRSS):\s+(\d+) kB", status)}
    return kb["VmRSS"] * 1024 / _GB, (kb["VmRSS"] - kb.get("RssFile", 0)) * 1024 / _GB


def link_gb_per_s() -> float:
    """From pinned host memory to the GPU; the best of ten copies of 1 GB."""
    host = torch.empty(_GB, dtype=torch.uint8, pin_memory=True)
    there = torch.empty_like(host, device="cuda")
    times = []
    for _ in range(10):
        torch.cuda.synchronize()
        begin = time.perf_counter()
        there.copy_(host, non_blocking=True)
        torch.cuda.synchronize()
        times.append(time.perf_counter() - begin)
    return 1 / min(times)


def measure(folder: Path, output: Path, card_gb: float, preserved_gb: float) -> dict[str, Any]:
    """One section on one card."""
    link = link_gb_per_s()
    torch.cuda.empty_cache()
    torch._C._host_emptyCache()
    models = load_models("f1", weights=folder)
    before = host_gb()
    placing = defaultdict(float)
    bring = generation.bring

    def timed(module: torch.nn.Module, *args: Any) -> None:
        begin = time.perf_counter()
        bring(module, *args)
        torch.cuda.synchronize()
        placing[type(module).__name__] += time.perf_counter() - begin

    generation.bring = timed
    fill = max(torch.cuda.mem_get_info()[0] - int(card_gb * _GB), 0)
    ballast = torch.empty(fill, dtype=torch.uint8, device="cuda")
    settings = GenerationSettings(
        prompt="A person walks along a lake",
        total_second_length=1,
        steps=_STEPS,
        use_teacache=False,
        gpu_memory_preservation=preserved_gb,
    )
    image = np.random.default_rng(0).integers(0, 255, (HEIGHT, WIDTH, 3), dtype=np.uint8)
    torch.cuda.reset_peak_memory_stats()
    steps, peaks, begin = [], {}, time.perf_counter()
    for event in generate(models, image, settings, SectionOrder.FORWARD, output, threading.Event()):
        torch.cuda.synchronize()
        if isinstance(event, Progress) and event.stage == "Denoising":
            steps.append(time.perf_counter())
        elif isinstance(event, Progress) and event.stage == "Decoding":
            peaks["before decoding"] = torch.cuda.max_memory_allocated()
            torch.cuda.reset_peak_memory_stats()
            decoding = time.perf_counter()
    assert isinstance(event, Done)
    end = time.perf_counter()
    peaks["decoding"] = torch.cuda.max_memory_allocated()
    after = host_gb()
    transformer = models.transformer
    streamed = getattr(transformer, "_streamed", None)
    return {
        "card_gb": card_gb,
        "filled": bool(fill),
        "step_ms": 1000 * statistics.median(np.diff(steps)[1:]),
        "streamed_gb": streamed.streamed / _GB if streamed else 0.0,
        "all_gb": sum(p.nbytes for p in transformer.parameters()) / _GB,
        "link": link,
        "peak_gb": max(peaks.values()) / _GB - fill / _GB,
        "peaks_gb": {name: peak / _GB - fill / _GB for name, peak in peaks.items()},
        "reserved_gb": (torch.cuda.max_memory_reserved() - fill) / _GB,
        "placing_s": dict(placing),
        "setup_s": placing[type(transformer).__name__],
        "decode_s": end - decoding,
        "whole_s": end - begin,
        "host_before": before,
        "host_after": after,
        "ballast": ballast.nbytes / _GB,
    }


def row(found: dict[str, Any], resident_ms: float) -> str:
    bound = max(resident_ms, 1000 * found["all_gb"] / found["link"])
    figures = (
        f"{found['card_gb']:g}",
        f"{found['step_ms']:.0f}",
        f"{found['streamed_gb']:.1f}",
        f"{found['link']:.1f}",
        f"{bound:.0f}",
        f"**{found['step_ms'] / bound:.2f}**",
        f"{found['peak_gb']:.1f}",
        f"{found['reserved_gb']:.1f}",
        f"{found['setup_s']:.1f}",
        f"{found['decode_s']:.1f}",
        f"{found['whole_s']:.1f}",
        *(f"{found[when][1]:.1f} ({found[when][0]:.1f})" for when in ("host_before", "host_after")),
    )
    return f"| {' | '.join(figures)} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, help="default: a temporary one")
    parser.add_argument("--output", type=Path, default=Path("outputs/memory.mp4"))
    parser.add_argument(
        "--cards", type=float, nargs="+", default=[80, 24, 16, 12, 8, 6], metavar="GB"
    )
    parser.add_argument("--preserved", type=float, default=6.0, metavar="GB", help="default: 6")
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        (card_gb,) = options.cards
        print(json.dumps(measure(options.folder, options.output, card_gb, options.preserved)))
        return
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.folder or Path(temporary)
        if not folder.exists() or not any(folder.iterdir()):
            write_random_weights(folder)
        print(f"{torch.cuda.get_device_name()}, PyTorch {torch.__version__}\n")
        print(
            "| card GB | ms a step | streamed GB | link GB/s | bound ms | ratio | peak GB "
            "| reserved GB | set-up s | decode s | whole s | host GB before (with files) | after |"
        )
        print("|" + "---|" * 13, flush=True)
        resident_ms = 0.0
        for card_gb in options.cards:
            command = [sys.executable, "-m", "benchmarks.memory", "--one", "--folder", folder]
            command += ["--output", options.output, "--cards", card_gb]
            command += ["--preserved", options.preserved]
            process = subprocess.run(
                [str(word) for word in command], check=True, stdout=subprocess.PIPE, text=True
            )
            found = json.loads(process.stdout.splitlines()[-1])
            resident_ms = resident_ms or found["step_ms"]
            print(row(found, resident_ms), flush=True)
            print(found, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
