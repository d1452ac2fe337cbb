"""What a step, a section and the host's memory cost on cards of any size.

    python -m benchmarks.memory

Full-size models of random weights in host memory; one short F1 section at 544x704 for each card, in
one process, the smallest card first. Smaller cards are made by filling the rest of the GPU: their
memory is realistic, their speed and their link are this machine's. The bound of a step is the
larger of a resident step, which the largest card is to show, and the time that all weights of the
transformer take from pinned memory.
"""

import argparse
import re
import statistics
import sys
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import init_empty_weights
from torch import nn

from benchmarks.full_size import HEIGHT, WIDTH, builders
from diffusers_helper import generation
from diffusers_helper.generation import Done, Progress, generate
from diffusers_helper.memory import bring, home_of
from diffusers_helper.models import Models, load_models
from diffusers_helper.sections import SectionOrder
from diffusers_helper.settings import GenerationSettings

_GB = 1024**3
_COLUMNS = (
    *("card GB", "ms a step", "streamed GB", "bound ms", "ratio", "peak GB", "set-up s"),
    *("encoding s", "decoding s", "host GB", "host peak GB"),
)


def random_models() -> Models:
    """As `load_models("f1")` on a GPU, with random weights."""
    small = load_models("tiny", "cpu")
    small.feature_extractor.size = {"height": 384, "width": 384}
    noise = 0.02 * torch.randn(2**26)
    networks = {}
    for attribute, build in builders(small.tokenizer_2).items():
        dtype = torch.bfloat16 if attribute == "transformer" else torch.float16
        networks[attribute] = _filled(build, noise.to(dtype))
    networks["transformer"].high_quality_fp32_output_for_inference = True
    return replace(
        small, name="f1", resolution=640, latent_rgb=None, device=torch.device("cuda"), **networks
    )


def _filled(build: Callable[[], nn.Module], noise: torch.Tensor) -> nn.Module:
    """A network whose parameters are copies of pieces of `noise`."""
    with init_empty_weights():
        network = build()

    def fill(name: str) -> None:
        owner, _, last = name.rpartition(".")
        shape = network.get_parameter(name).shape
        weights = torch.empty(shape, dtype=noise.dtype)
        for piece in weights.view(-1).split(noise.numel()):
            piece.copy_(noise[: piece.numel()])
        setattr(network.get_submodule(owner), last, nn.Parameter(weights, requires_grad=False))

    with ThreadPoolExecutor() as pool:
        list(pool.map(fill, dict(network.named_parameters())))
    return network.eval()


def host_gb(what: str = "VmRSS") -> float:
    """Memory of this process, now or (VmHWM) at most so far; with the files of its libraries."""
    (kb,) = re.findall(rf"{what}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    return int(kb) * 1024 / _GB


def link_gb_per_s() -> float:
    """From pinned host memory to the GPU; the best of ten copies of 1 GB."""
    host = torch.empty(_GB, dtype=torch.uint8, pin_memory=True)
    there = torch.empty_like(host, device="cuda")
    return 1 / min(_seconds(lambda: there.copy_(host, non_blocking=True)) for _ in range(10))


def _seconds(run: Callable[[], Any]) -> float:
    torch.cuda.synchronize()
    begin = time.perf_counter()
    run()
    torch.cuda.synchronize()
    return time.perf_counter() - begin


def measure(models: Models, card_gb: float, options: argparse.Namespace) -> dict[str, float]:
    """One section on one card: figures by the names of columns, and the GB of all weights."""
    for component in vars(models).values():
        if isinstance(component, nn.Module) and (home := home_of(component)) is not None:
            home.release()
    torch.cuda.empty_cache()
    fill = max(torch.cuda.mem_get_info()[0] - int(card_gb * _GB), 0)
    ballast = torch.empty(fill, dtype=torch.uint8, device="cuda")
    settings = GenerationSettings(
        prompt="A person walks along a lake",
        total_second_length=1,
        steps=options.steps,
        use_teacache=False,
        gpu_memory_preservation=options.preserved,
    )
    image = np.random.default_rng(0).integers(0, 255, (HEIGHT, WIDTH, 3), dtype=np.uint8)
    placing, streamed = defaultdict(float), {}

    def timed(module: nn.Module, *args: Any, **kwargs: Any) -> None:
        placing[module] += _seconds(lambda: bring(module, *args, **kwargs))
        home = home_of(module)
        streamed[module] = 0.0 if home is None else home.streamed / _GB

    generation.bring = timed
    torch.cuda.reset_peak_memory_stats()
    times = {"begin": time.perf_counter()}
    steps, peaks = [], {}
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "video.mp4"
        for event in generate(
            models, image, settings, SectionOrder.FORWARD, output, threading.Event()
        ):
            torch.cuda.synchronize()
            if isinstance(event, Progress) and event.stage == "Denoising":
                steps.append(time.perf_counter())
            stage = getattr(event, "stage", "end")
            times.setdefault(stage, time.perf_counter())
            peak = (torch.cuda.max_memory_allocated() - fill) / _GB
            peaks[stage] = max(peaks.get(stage, 0.0), peak)
            torch.cuda.reset_peak_memory_stats()
    assert isinstance(event, Done)
    generation.bring = bring
    transformer = models.transformer
    del ballast
    print(peaks, {type(m).__name__: round(t, 2) for m, t in placing.items()}, file=sys.stderr)
    return {
        "card GB": card_gb,
        "ms a step": 1000 * statistics.median(np.diff(steps)),
        "streamed GB": streamed[transformer],
        "all GB": sum(p.nbytes for p in transformer.parameters()) / _GB,
        "peak GB": max(peaks.values()),
        "set-up s": placing[transformer],
        "encoding s": steps[0] - times["begin"] - placing[transformer],
        "decoding s": times["end"] - times["Decoding"],
        "host GB": host_gb(),
        "host peak GB": host_gb("VmHWM"),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--cards", type=float, nargs="+", default=[6, 8, 12, 16, 24, 80], metavar="GB"
    )
    parser.add_argument("--preserved", type=float, default=6.0, metavar="GB", help="default: 6")
    parser.add_argument("--steps", type=int, default=6, help="of the section (default: 6)")
    options = parser.parse_args()
    link = link_gb_per_s()
    begin = time.perf_counter()
    models = random_models()
    print(f"{torch.cuda.get_device_name()}, PyTorch {torch.__version__}.")
    print(
        f"From pinned host memory {link:.1f} GB/s. Before anything runs, the process takes "
        f"{host_gb():.1f} GB of host memory; its models were made in "
        f"{time.perf_counter() - begin:.0f} s.",
        flush=True,
    )
    rows = []
    for card in options.cards:
        rows.append(measure(models, card, options))
        print(rows[-1], file=sys.stderr, flush=True)
    resident = max(rows, key=lambda row: row["card GB"])["ms a step"]
    print(f"| {' | '.join(_COLUMNS)} |\n|{'---|' * len(_COLUMNS)}")
    for row in rows:
        row["bound ms"] = max(resident, 1000 * row["all GB"] / link)
        row["ratio"] = row["ms a step"] / row["bound ms"]
        print(f"| {' | '.join(f'{row[c]:.4g}' for c in _COLUMNS)} |")


if __name__ == "__main__":
    main()
