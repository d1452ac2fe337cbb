"""How fast sections are decoded on a GPU, beside diffusers' VAE.

    python -m benchmarks.decode

The full-size VAE in float16 with random weights, scaled so that pixels have a standard deviation
of 0.5; latents are noise. Sections are decoded one after the other, as `generate` does. `--small`
runs all of it on a CPU with a small network, to try the command.
"""

import argparse
import copy
import statistics
import time
from collections.abc import Callable, Iterator
from functools import partial

import torch
from diffusers import AutoencoderKLHunyuanVideo
from torch import nn

from diffusers_helper.hunyuan import DecodedPieces, vae_decode
from diffusers_helper.models.vae_decoder import fuse_decoder
from diffusers_helper.sections import FPS, LatentHistory, SectionOrder, plan_sections

_SMALL_VAE = {"block_out_channels": (8, 8, 16, 16), "layers_per_block": 1, "norm_num_groups": 4}
_SECTIONS = 3
"""From the third on, forward, all are alike."""


def random_vae(small: bool) -> AutoencoderKLHunyuanVideo:
    """A VAE that neither lets a picture fade nor blows it up."""
    with torch.device("cpu" if small else "cuda"):
        vae = AutoencoderKLHunyuanVideo(**(_SMALL_VAE if small else {})).eval()
        for module in vae.decoder.modules():
            if isinstance(module, nn.Conv3d):
                nn.init.kaiming_normal_(module.weight)
            elif isinstance(module, nn.GroupNorm):
                nn.init.normal_(module.weight, 1.0, 0.2)
                nn.init.normal_(module.bias, std=0.2)
        last = vae.decoder.conv_out.conv
        last.weight.mul_(0.5 / vae.decoder(torch.randn(1, 16, 2, 6, 6)).std())
    return vae.to(torch.float32 if small else torch.float16)


def psnr(x: torch.Tensor, reference: torch.Tensor) -> float:
    """In dB, of pixels in [-1, 1]."""
    error = (x.double() - reference.double()).square().mean()
    return float(10 * torch.log10(4 / error))


def timed(run: Callable[[], torch.Tensor], small: bool) -> tuple[torch.Tensor, float, float]:
    """The result, milliseconds, and GB of GPU memory at most."""
    if small:
        begin = time.perf_counter()
        return run(), 1000 * (time.perf_counter() - begin), 0.0
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    begin = time.perf_counter()
    result = run()
    torch.cuda.synchronize()
    ms = 1000 * (time.perf_counter() - begin)
    return result, ms, torch.cuda.max_memory_allocated() / 1024**3


def rows(options: argparse.Namespace, order: SectionOrder, tiled: bool) -> Iterator[str]:
    """A row of the table for each section."""
    theirs = random_vae(options.small)
    ours = copy.deepcopy(theirs)
    if not options.small:
        fuse_decoder(ours)
    theirs.use_tiling = ours.use_tiling = tiled
    shape = (options.size[0] // 8, options.size[1] // 8)
    plan = plan_sections(order, _SECTIONS * 4 * options.window / FPS, options.window)
    made = [torch.randn(1, 16, options.window, *shape) for _ in plan]
    measured = [[] for _ in plan]
    # The first round does not count: it compiles.
    for _ in range(options.rounds + 1):
        history = LatentHistory(order, options.window, made[0][:, :, :1])
        pieces = DecodedPieces(history.shared)
        for section, latents, of_section in zip(plan, made, measured, strict=True):
            z = history.add(section, latents)
            expected, *slow = timed(partial(vae_decode, z, theirs), options.small)
            video, *fast = timed(partial(vae_decode, z, ours, pieces), options.small)
            of_section.append((*slow, *fast, psnr(video, expected)))
    for section, of_section in zip(plan, measured, strict=True):
        before, gb_before, now, gb, quality = map(
            statistics.median, zip(*of_section[1:], strict=True)
        )
        figures = (
            order.value,
            "tiles" if tiled else "whole",
            str(section.number),
            f"{before:.0f}",
            f"{gb_before:.1f}",
            f"{now:.0f}",
            f"{gb:.1f}",
            f"**{now / before:.3f}**",
            f"{quality:.1f}",
            f"{of_section[0][2] / 1000:.1f}",
        )
        yield f"| {' | '.join(figures)} |"


def _size(text: str) -> tuple[int, int]:
    height, width = map(int, text.split("x"))
    return height, width


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=_size, default=(544, 704), metavar="HxW")
    parser.add_argument("--window", type=int, default=9)
    parser.add_argument("--rounds", type=int, default=2, help="that count (default: 2)")
    parser.add_argument("--small", action="store_true", help="in miniature, on the CPU")
    options = parser.parse_args()
    card = "a CPU, in miniature" if options.small else torch.cuda.get_device_name()
    print(f"{card}, PyTorch {torch.__version__}, {options.size[0]}x{options.size[1]}:\n")
    names = (
        "order",
        "frames",
        "section",
        "diffusers ms",
        "GB",
        "ours ms",
        "GB",
        "ratio",
        "PSNR dB",
    )
    print(f"| {' | '.join((*names, 'first s'))} |")
    print("|---" * (len(names) + 1) + "|")
    torch.manual_seed(0)
    for order, tiled in (
        (SectionOrder.FORWARD, False),
        (SectionOrder.INVERTED, False),
        (SectionOrder.FORWARD, True),
    ):
        for row in rows(options, order, tiled):
            print(row, flush=True)


if __name__ == "__main__":
    main()
