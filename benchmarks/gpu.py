"""How fast a step and a section are on a GPU, beside diffusers' class and the card's limits.

    python -m benchmarks.gpu --output FILE.md

The full-size architecture with random weights in bfloat16, one process, one GPU. The paths take
turns, so that a card that slows down slows all of them; times are medians. The floor of a step is
what its matrix products and attention take at the rates of this card's own kernels, and nothing
else. `--small` runs all of it on a CPU with a small network, to try the command.
"""

import argparse
import copy
import statistics
import time
from collections.abc import Callable
from contextlib import ExitStack, nullcontext
from itertools import product
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import HunyuanVideoFramepackTransformer3DModel
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from benchmarks.caching import conditions
from benchmarks.decode import random_vae
from diffusers_helper.hunyuan import TEXT_LENGTH, vae_decode
from diffusers_helper.k_diffusion.wrapper import fm_wrapper
from diffusers_helper.models import load_models
from diffusers_helper.models.float8 import to_float8, why_not_float8
from diffusers_helper.models.hunyuan_video_packed import HunyuanVideoTransformer3DModelPacked
from diffusers_helper.models.vae_decoder import fuse_decoder
from diffusers_helper.pipelines.k_diffusion_hunyuan import sample_hunyuan
from diffusers_helper.sections import LatentHistory, SectionOrder, plan_sections, section_frames
from training.tiny_world.config import TrainingConfig
from training.tiny_world.world import sample_scene

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
        self.targets: list[str] = []
        """Rows of what is measured beside what it should be."""

    def target(self, what: str, measured: float, aim: float, at_least: bool = False) -> None:
        met = measured >= aim if at_least else measured <= aim
        sign = "≥" if at_least else "≤"
        self.targets.append(
            _row(what, f"{measured:.3f}", f"{sign} {aim:g}", "met" if met else "**missed**")
        )

    def random(self, *shape: int) -> torch.Tensor:
        return torch.randn(shape, device=self.device, dtype=self.dtype)

    def ms(self, run: Callable[[], Any]) -> float:
        self._wait()
        begin = time.perf_counter()
        run()
        self._wait()
        return 1000 * (time.perf_counter() - begin)

    def medians(
        self, runs: dict[str, Callable[[], Any]], rounds: int, warm: bool = False
    ) -> dict[str, float]:
        """Milliseconds of each, taking turns, after one that does not count if not all is warm."""
        times = [{n: self.ms(run) for n, run in runs.items()} for _ in range(rounds + 1 - warm)]
        return {name: statistics.median(t[name] for t in times[1 - warm :]) for name in runs}

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


class as_diffusers:
    """diffusers' class, called with FramePack's names and without its care for dtypes."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model

    def __call__(self, **args: Any) -> Any:
        def as_theirs(name: str, x: Any) -> Any:
            if "indices" in name:
                return x[0]
            return x.to(args["hidden_states"].dtype) if "clean_latents" in name else x

        return self.model(
            **{_DIFFUSERS_NAMES.get(name, name): as_theirs(name, x) for name, x in args.items()}
        )


def count(transformer: nn.Module, call: Callable, given: dict) -> tuple[float, float, int]:
    """TFLOP of a step's matrix products, of its attention, and the length of its sequence.

    Args:
        transformer: diffusers' class, whose blocks call their layers one by one.
        call: runs it.
        given: arguments of the step.
    """
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
    call(**given)
    for hook in hooks:
        hook.remove()
    attention = sum(4 * n**2 * transformer.proj_out.in_features for n in lengths)
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


def peak_signal_to_noise(latents: torch.Tensor, reference: torch.Tensor) -> float:
    """In dB, of the range that the reference spans."""
    span = reference.max() - reference.min()
    return (20 * span.log10() - 10 * (latents - reference).square().mean().log10()).item()


def steps(card: Card, paths: dict[str, Callable], options: argparse.Namespace) -> list[str]:
    """Lines on a step at every size and window; against the targets, of the first of them."""
    ours = paths["ours"]
    others = [name for name in paths if name != "diffusers"]
    head = ["size", "window", "tokens", "diffusers ms"]
    head += [title for name in others for title in (f"{name} ms", "ratio")]
    lines = ["## A step", "", *_head(*head, "floor ms", "reached")]
    for (height, width), window in product(options.sizes, options.windows):
        given = Setting(card, ours.config, height, width, window).step
        runs = {name: lambda p=p, given=given: p(**given) for name, p in paths.items()}
        with ExitStack() as passes:
            for name in others:  # as in a sampling, which names its passes
                passes.enter_context(paths[name].cache_context("positive"))
            first = {name: card.ms(run) for name, run in runs.items()}
            ms = card.medians(runs, options.rounds)
        products, attention, length = count(paths["diffusers"].model, paths["diffusers"], given)
        rates = limits(card, ours, length, options.rounds)
        floor = 1000 * (products / rates["products"] + attention / rates["attention"])
        ratios = {name: ms[name] / ms["diffusers"] for name in others}
        figures = [f"{height}x{width}", str(window), str(length), f"{ms['diffusers']:.1f}"]
        figures += [x for n in others for x in (f"{ms[n]:.1f}", f"**{ratios[n]:.3f}**")]
        lines.append(_row(*figures, f"{floor:.1f}", f"{floor / ms['ours']:.2f}"))
        if len(card.targets) == 0:
            card.target("step, of diffusers' eager", ratios["ours"], 0.72)
            card.target("floor of a step, of our step", floor / ms["ours"], 0.85, at_least=True)
            if "float8" in ratios:
                card.target("step in float8, of diffusers' eager", ratios["float8"], 0.60)
            compiling = max(first[name] - ms[name] for name in others) / 1000
            card.target("compilation, s", compiling, 60)
    return [
        *lines,
        "",
        f"The floor of the last row: {rates['products']:.0f} TFLOP/s for matrix products, "
        f"{rates['attention']:.0f} for attention. A copy moves {rates['copy']:.0f} GB/s.",
    ]


def errors(card: Card, paths: dict[str, Callable]) -> list[str]:
    """Lines on how far a velocity is from float32's, of a picture small enough for that."""
    size = (64, 96, 2) if card.small else (256, 320, 9)
    given = Setting(card, paths["ours"].config, *size).step
    made = {name: path(**given)[0].float() for name, path in paths.items()}
    exact = in_float32(paths["diffusers"].model, given)
    far = {name: ((v - exact).norm() / exact.norm()).item() for name, v in made.items()}
    card.target(
        "error against float32, of diffusers' in bfloat16",
        far["ours"] / max(far["diffusers"], 1e-12),
        1.1,
    )
    return [
        f"## Error of a step against float32, {size[0]}x{size[1]}",
        "",
        *_head("", "relative error"),
        *(_row(name, f"{error:.5f}") for name, error in far.items()),
    ]


def in_float32(transformer: nn.Module, given: dict[str, Any]) -> torch.Tensor:
    """Velocity of diffusers' class with float32 arithmetic; its blocks are cast one at a time."""
    dtype = transformer.dtype
    blocks = (transformer.transformer_blocks, transformer.single_transformer_blocks)
    own = [m for name, m in transformer.named_children() if m not in blocks]
    hooks = []
    for block in (*blocks[0], *blocks[1]):
        hooks += [
            block.register_forward_pre_hook(lambda block, _: block.float() and None),
            block.register_forward_hook(lambda block, *_: block.to(dtype) and None),
        ]
    for module in own:
        module.float()
    floats = [n for n, x in given.items() if torch.is_tensor(x) and x.is_floating_point()]
    given = given | {name: given[name].float() for name in floats}
    exact = as_diffusers(transformer)(**given)[0]
    for module in own:
        module.to(dtype)
    for hook in hooks:
        hook.remove()
    return exact


def whole_section(card: Card, paths: dict[str, Callable], options: argparse.Namespace) -> list[str]:
    """Lines on a whole section, of the first size and window."""
    (height, width), window = options.sizes[0], options.windows[0]
    setting = Setting(card, paths["ours"].config, height, width, window)
    vae = random_vae(card.small)
    fused = copy.deepcopy(vae)
    if not card.small:
        fuse_decoder(fused)
    latents = torch.randn(1, 16, 2 * window, height // 8, width // 8)
    fastest = paths.get("float8", paths["ours"])
    calls = _Calls(fastest)

    def cached() -> None:
        calls.clear()
        fastest.initialize_teacache(num_steps=_STEPS)
        setting.sample(fastest, card, 0.0)
        fastest.initialize_teacache(False)

    runs = {
        **{f"sampling, {n}": lambda p=p: setting.sample(p, card, 0.0) for n, p in paths.items()},
        "sampling, TeaCache on the fastest": cached,
        "decoding, diffusers": lambda: vae.decode(
            latents.to(vae.device, vae.dtype) / vae.config.scaling_factor
        ),
        "decoding, ours": lambda: vae_decode(latents, fused),
    }
    card.ms(runs["decoding, ours"])  # which compiles
    ms = card.medians(runs, 1, warm=True)  # a section takes long, and is a mean of steps
    theirs = ms["sampling, diffusers"] + ms["decoding, diffusers"]
    ours = ms["sampling, TeaCache on the fastest"] + ms["decoding, ours"]
    card.target("section with TeaCache, of diffusers'", ours / theirs, 0.35)
    added = beta_ms(card) / (ms["sampling, ours"] / _STEPS)
    card.target("what beta adds to a step, of it", added, 0.001)
    card.target("decoding, of diffusers'", ms["decoding, ours"] / ms["decoding, diffusers"], 0.6)
    return [
        f"## A section of {_STEPS} steps, {height}x{width}, window {window}",
        "",
        *_head("", "s"),
        *(_row(name, f"{t / 1000:.2f}") for name, t in ms.items()),
        "",
        f"With TeaCache {calls.count} of {_STEPS} steps were computed; the weights are random.",
    ]


def beta_ms(card: Card) -> float:
    """What a schedule adds to a step, with a transformer that takes no time of its own."""
    x, guidance = card.random(1, 16, 1, 2, 2), card.random(1)
    model = fm_wrapper(lambda **given: (given["hidden_states"],))
    given = {"dtype": x.dtype, "cfg_scale": 1.0, "cfg_rescale": 0.0, "concat_latent": None}
    given["positive"] = {"guidance": guidance}

    def steps(enabled: bool) -> None:
        for _ in range(_STEPS):
            adaptive_cfg = {"enabled": enabled, "beta": 0.7, "cfg_min": 1.0}
            model(x, torch.tensor([0.5]), **given, adaptive_cfg=adaptive_cfg)

    ms = card.medians({"on": lambda: steps(True), "off": lambda: steps(False)}, 20)
    return (ms["on"] - ms["off"]) / _STEPS


class _Calls:
    """Counts how often the last block of a transformer runs."""

    def __init__(self, transformer: nn.Module) -> None:
        self.count = 0
        transformer.single_transformer_blocks[-1].register_forward_hook(self._add)

    def clear(self) -> None:
        self.count = 0

    def _add(self, *_: Any) -> None:
        self.count += 1


def float8_quality(card: Card, paths: dict[str, Callable]) -> list[str]:
    """Lines on latents of whole sections in float8 against bfloat16's."""
    random = Setting(card, paths["ours"].config, 256, 320, 9)
    made = {name: random.sample(paths[name], card, 0.0) for name in ("ours", "float8")}
    rows = {
        "the small model": small_model_psnr(card.device),
        "random weights, full size": peak_signal_to_noise(made["float8"], made["ours"]),
    }
    return [
        f"## Float8 against bfloat16, latents after {_STEPS} steps",
        "",
        *_head("", "PSNR dB"),
        *(_row(name, f"{value:.1f}") for name, value in rows.items()),
    ]


@torch.inference_mode()
def small_model_psnr(device: torch.device) -> float:
    """Of the small model's latents in float8 against those without, one section of a scene."""
    models = load_models("tiny", device)
    transformer = models.transformer.to(device)
    for module in (models.text_encoder, models.text_encoder_2, models.image_encoder, models.vae):
        module.to(device)
    given = conditions(models, sample_scene(TrainingConfig.unseen_seed, "fade", (128, 128)))

    def sample() -> torch.Tensor:
        return sample_hunyuan(
            transformer,
            width=128,
            height=128,
            frames=section_frames(9),
            distilled_guidance_scale=models.settings["gs"],
            num_inference_steps=_STEPS,
            generator=torch.Generator().manual_seed(0),
            dtype=transformer.dtype,
            **{name: x.to(device) for name, x in given.items()},
        )

    whole = sample()
    to_float8(transformer)
    return peak_signal_to_noise(sample(), whole)


@torch.inference_mode()
def report(options: argparse.Namespace) -> str:
    """The whole report, in Markdown."""
    card = Card(options.small)
    torch.manual_seed(0)
    torch.set_default_dtype(card.dtype)  # 13 billion float32 numbers would not fit
    with card.device:
        ours = HunyuanVideoTransformer3DModelPacked(
            has_image_proj=True, has_clean_x_embedder=True, **(_SMALL if card.small else {})
        )
    torch.set_default_dtype(torch.float32)
    ours.eval()
    paths = {"diffusers": as_diffusers(_twin(ours, HunyuanVideoFramepackTransformer3DModel))}
    paths["ours"] = ours
    float8 = _twin(ours, HunyuanVideoTransformer3DModelPacked)
    without = why_not_float8(card.device, float8)
    if without is None:
        to_float8(float8)
        paths["float8"] = float8
    parts = [steps(card, paths, options), whole_section(card, paths, options), errors(card, paths)]
    if without is None:
        parts.append(float8_quality(card, paths))
    lines = ["# Performance", "", f"{card.name}, PyTorch {torch.__version__}.", ""]
    lines += ["## Targets", "", *_head("", "measured", "target", ""), *card.targets]
    if without is not None:
        lines += ["", f"Not measured in float8: {without}."]
    for part in parts:
        lines += ["", *part]
    return "\n".join(lines) + "\n"


def _twin(transformer: nn.Module, kind: type) -> nn.Module:
    """The same weights, not copied, in a network of another class."""
    with torch.device("meta"):
        twin = kind.from_config(transformer.config)
    twin.load_state_dict(transformer.state_dict(), assign=True)
    return twin.eval()


def _row(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"


def _head(*titles: str) -> list[str]:
    return [_row(*titles), "|" + "---|" * len(titles)]


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
