"""How fast a step and a section are on a GPU, beside diffusers' class and the card's limits.

    python -m benchmarks.gpu --output docs/performance.md

The full-size architecture with random weights in bfloat16, one process, one GPU. The paths take
turns, so that a card that slows down slows all of them; times are medians. The floor of a step is
what its matrix products and attention take at the rates of this card's own kernels, and nothing
else. `--small` runs all of it on a CPU with a small network, to try the command.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from contextlib import nullcontext
from itertools import product
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKLHunyuanVideo, HunyuanVideoFramepackTransformer3DModel
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from diffusers_helper.hunyuan import TEXT_LENGTH, vae_decode
from diffusers_helper.models.hunyuan_video_packed import HunyuanVideoTransformer3DModelPacked
from diffusers_helper.pipelines.k_diffusion_hunyuan import sample_hunyuan
from diffusers_helper.sections import LatentHistory, SectionOrder, plan_sections, section_frames

_SMALL = {
    "num_attention_heads": 2,
    "attention_head_dim": 16,
    "num_layers": 1,
    "num_single_layers": 2,
    "num_refiner_layers": 1,
    "text_embed_dim": 32,
    "pooled_projection_dim": 16,
    "rope_axes_dim": (4, 6, 6),
    "image_proj_dim": 24,
}
_SMALL_VAE = {
    "block_out_channels": (8, 8, 16, 16),
    "layers_per_block": 1,
    "norm_num_groups": 4,
    "mid_block_add_attention": False,
}
_WORDS, _STEPS = 60, 25
_DIFFUSERS_NAMES = {
    "image_embeddings": "image_embeds",
    "latent_indices": "indices_latents",
    "clean_latents": "latents_clean",
    "clean_latent_indices": "indices_latents_clean",
    "clean_latents_2x": "latents_history_2x",
    "clean_latent_2x_indices": "indices_latents_history_2x",
    "clean_latents_4x": "latents_history_4x",
    "clean_latent_4x_indices": "indices_latents_history_4x",
}


class Card:
    """Where everything runs, and how long it takes there."""

    def __init__(self, small: bool) -> None:
        self.small = small
        self.device = torch.device("cpu" if small else "cuda")
        self.dtype = torch.float32 if small else torch.bfloat16
        self.name = "a CPU, in miniature" if small else torch.cuda.get_device_name()

    def random(self, *shape: int) -> torch.Tensor:
        return torch.randn(shape, device=self.device, dtype=self.dtype)

    def ms(self, run: Callable[[], Any]) -> float:
        self._wait()
        begin = time.perf_counter()
        run()
        self._wait()
        return 1000 * (time.perf_counter() - begin)

    def medians(self, runs: dict[str, Callable[[], Any]], rounds: int) -> dict[str, float]:
        """Milliseconds of each, taking turns, after a turn that does not count."""
        times = [{name: self.ms(run) for name, run in runs.items()} for _ in range(rounds + 1)]
        return {name: statistics.median(t[name] for t in times[1:]) for name in runs}

    def _wait(self) -> None:
        if not self.small:
            torch.cuda.synchronize()


class Setting:
    """A section's shapes, with random conditions."""

    def __init__(self, card: Card, config: Any, height: int, width: int, window: int) -> None:
        self.height, self.width, self.window = height, width, window
        start = torch.randn(1, 16, 1, height // 8, width // 8)
        history = LatentHistory(SectionOrder.FORWARD, window, start)
        (section, *_) = plan_sections(SectionOrder.FORWARD, 1.0, window)
        context = history.context(section)
        self.shared = {name: x.to(card.device) for name, x in context.items()}
        self.shared["image_embeddings"] = card.random(
            1, 9 if card.small else 729, config.image_proj_dim
        )
        self.text = {
            "prompt_embeds": card.random(1, TEXT_LENGTH, config.text_embed_dim),
            "prompt_embeds_mask": (torch.arange(TEXT_LENGTH) < _WORDS)[None].long(),
            "prompt_poolers": card.random(1, config.pooled_projection_dim),
        }
        self.step = self.shared | {
            "hidden_states": card.random(1, 16, window, height // 8, width // 8),
            "timestep": torch.full((1,), 500.0, device=card.device, dtype=card.dtype),
            "guidance": torch.full((1,), 10_000.0, device=card.device, dtype=card.dtype),
            "encoder_hidden_states": self.text["prompt_embeds"],
            "encoder_attention_mask": self.text["prompt_embeds_mask"].to(card.device),
            "pooled_projections": self.text["prompt_poolers"],
            "return_dict": False,
        }

    def sample(self, transformer: Callable, card: Card, beta: float) -> torch.Tensor:
        return sample_hunyuan(
            transformer,
            width=self.width,
            height=self.height,
            frames=section_frames(self.window),
            distilled_guidance_scale=10.0,
            num_inference_steps=_STEPS,
            generator=torch.Generator().manual_seed(0),
            dtype=card.dtype,
            device=card.device,
            adaptive_cfg_beta=beta,
            **self.shared,
            **self.text,
        )


def as_diffusers(transformer: nn.Module) -> Callable:
    """diffusers' class, called with FramePack's names."""

    def call(**args: Any) -> Any:
        return transformer(
            **{
                _DIFFUSERS_NAMES.get(name, name): x[0] if "indices" in name else x
                for name, x in args.items()
            }
        )

    return call


def count(transformer: nn.Module, call: Callable[[], Any]) -> tuple[float, float, int]:
    """TFLOP of a step's matrix products, of its attention, and the length of its sequence."""
    products, lengths = [], []
    blocks = [*transformer.transformer_blocks, *transformer.single_transformer_blocks]
    hooks = [
        layer.register_forward_hook(
            lambda layer, given, _: products.append(
                2 * layer.weight.numel() * given[0][..., 0].numel()
            )
        )
        for block in blocks
        for layer in block.modules()
        if isinstance(layer, nn.Linear)
    ]
    hooks += [
        block.register_forward_pre_hook(
            lambda _, given: lengths.append(given[0].shape[1] + given[1].shape[1])
        )
        for block in blocks
    ]
    call()
    for hook in hooks:
        hook.remove()
    attention = sum(4 * n**2 * transformer.inner_dim for n in lengths)
    return sum(products) / 1e12, attention / 1e12, max(lengths)


def limits(card: Card, transformer: nn.Module, length: int, rounds: int) -> dict[str, float]:
    """Rates of this card at the step's shapes: TFLOP/s of matrix products and attention, GB/s of a
    copy, counting bytes read and written."""
    width, heads = transformer.inner_dim, transformer.config.num_attention_heads
    x, up = card.random(length, width), card.random(4 * width, width)
    q = card.random(1, length, heads, width // heads).transpose(1, 2)
    block = card.random(2**20 if card.small else 2**29)
    other = torch.empty_like(block)
    backends = [None] if card.small else [SDPBackend.CUDNN_ATTENTION, SDPBackend.FLASH_ATTENTION]

    def attend(backend: SDPBackend | None) -> None:
        with nullcontext() if backend is None else sdpa_kernel(backend):
            F.scaled_dot_product_attention(q, q, q)

    runs = {"products": lambda: F.linear(x, up), "copy": lambda: other.copy_(block)}
    runs |= {f"attention {b}": lambda b=b: attend(b) for b in backends}
    ms = card.medians(runs, 4 * rounds)
    fastest = min(t for name, t in ms.items() if name.startswith("attention"))
    return {
        "products": 2 * length * up.numel() / ms["products"] / 1e9,
        "attention": 4 * length**2 * width / fastest / 1e9,
        "copy": 2 * block.nbytes / ms["copy"] / 1e6,
    }


def steps(card: Card, paths: dict[str, Callable], options: argparse.Namespace) -> list[str]:
    """Lines on a step at every size and window."""
    ours = paths["ours"]
    lines = [
        "## A step",
        "",
        "| size | window | tokens | diffusers ms | ours ms | ratio | floor ms | reached |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for (height, width), window in product(options.sizes, options.windows):
        given = Setting(card, ours.config, height, width, window).step
        products, attention, length = count(ours, lambda given=given: ours(**given))
        rates = limits(card, ours, length, options.rounds)
        floor = 1000 * (products / rates["products"] + attention / rates["attention"])
        runs = {name: lambda p=p, given=given: p(**given) for name, p in paths.items()}
        ms = card.medians(runs, options.rounds)
        figures = (
            f"{height}x{width}",
            str(window),
            str(length),
            f"{ms['diffusers']:.1f}",
            f"{ms['ours']:.1f}",
            f"**{ms['ours'] / ms['diffusers']:.3f}**",
            f"{floor:.1f}",
            f"{floor / ms['ours']:.2f}",
        )
        lines.append(f"| {' | '.join(figures)} |")
    return [
        *lines,
        "",
        f"The floor of the last row: {rates['products']:.0f} TFLOP/s for matrix products, "
        f"{rates['attention']:.0f} for attention. A copy moves {rates['copy']:.0f} GB/s.",
    ]


def whole_section(card: Card, paths: dict[str, Callable], options: argparse.Namespace) -> list[str]:
    """Lines on a whole section, of the last size and window."""
    (height, width), window = options.sizes[-1], options.windows[-1]
    setting = Setting(card, paths["ours"].config, height, width, window)
    with card.device:
        vae = AutoencoderKLHunyuanVideo(**(_SMALL_VAE if card.small else {}))
    vae = vae.to(torch.float32 if card.small else torch.float16).eval()
    latents = torch.randn(1, 16, 2 * window, height // 8, width // 8)
    runs = {
        **{f"sampling, {n}": lambda p=p: setting.sample(p, card, 0.0) for n, p in paths.items()},
        "sampling, ours, beta 0.7": lambda: setting.sample(paths["ours"], card, 0.7),
        "decoding": lambda: vae_decode(latents, vae),
    }
    ms = card.medians(runs, options.rounds)
    return [
        f"## A section of {_STEPS} steps, {height}x{width}, window {window}",
        "",
        "| | s |",
        "|---|---|",
        *(f"| {name} | {t / 1000:.2f} |" for name, t in ms.items()),
    ]


@torch.inference_mode()
def report(options: argparse.Namespace) -> str:
    """The whole report, in Markdown."""
    card = Card(options.small)
    torch.manual_seed(0)
    with card.device:
        ours = HunyuanVideoTransformer3DModelPacked(
            has_image_proj=True, has_clean_x_embedder=True, **(_SMALL if card.small else {})
        )
    ours.to(card.dtype).eval()
    with torch.device("meta"):
        theirs = HunyuanVideoFramepackTransformer3DModel.from_config(ours.config)
    theirs.load_state_dict(ours.state_dict(), assign=True)
    paths = {"diffusers": as_diffusers(theirs.eval()), "ours": ours}
    lines = ["# Performance", "", f"{card.name}, PyTorch {torch.__version__}.", ""]
    lines += [*steps(card, paths, options), "", *whole_section(card, paths, options)]
    return "\n".join(lines) + "\n"


def _size(text: str) -> tuple[int, int]:
    height, width = map(int, text.split("x"))
    return height, width


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, help="default: print it")
    parser.add_argument("--sizes", type=_size, nargs="+", default=[(544, 704)], metavar="HxW")
    parser.add_argument("--windows", type=int, nargs="+", default=[9])
    parser.add_argument("--rounds", type=int, default=5, help="turns that count (default: 5)")
    parser.add_argument("--small", action="store_true", help="in miniature, on the CPU")
    options = parser.parse_args()
    text = report(options)
    if options.output is None:
        print(text)
    else:
        options.output.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
