"""How much faster a step is when several GPUs share the transformer.

    torchrun --standalone --nproc-per-node 2 -m benchmarks.two_gpus

The full-size architecture with the same random weights in every process, bfloat16. The first GPU
alone and all together take turns; times are medians. With an odd number of tokens two processes
have different lengths. What differs in the result is put beside what differs between two ways of
one GPU to compute the same: ours and diffusers'. `--small` runs all of it on a CPU with a small
network, to try the command.
"""

import argparse
from collections.abc import Callable
from functools import partial

import torch
from diffusers import HunyuanVideoFramepackTransformer3DModel

from benchmarks.gpu import _SMALL, Card, Setting, as_diffusers
from diffusers_helper.context_parallel import Crew
from diffusers_helper.models.hunyuan_video_packed import HunyuanVideoTransformer3DModelPacked


def difference(x: torch.Tensor, reference: torch.Tensor) -> float:
    """Relative, in the L2 norm."""
    return float((x.double() - reference.double()).norm() / reference.double().norm())


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--height", type=int, default=544)
    parser.add_argument("--width", type=int, default=704)
    parser.add_argument("--window", type=int, default=9)
    parser.add_argument("--rounds", type=int, default=5, help="turns that count (default: 5)")
    parser.add_argument("--small", action="store_true", help="in miniature, on the CPU")
    options = parser.parse_args()
    with Crew() as crew:
        card = Card(options.small)
        torch.manual_seed(0)
        with card.device:
            ours = HunyuanVideoTransformer3DModelPacked(
                has_image_proj=True, has_clean_x_embedder=True, **(_SMALL if options.small else {})
            )
        ours.to(card.dtype).eval()
        alone = ours.run_blocks
        crew.share(ours)
        if crew.leads:
            report(options, card, crew, ours, alone)


def report(
    options: argparse.Namespace,
    card: Card,
    crew: Crew,
    ours: HunyuanVideoTransformer3DModelPacked,
    alone: Callable,
) -> None:
    """Print the table.

    Args:
        ours: shared.
        alone: its `run_blocks` before it was.
    """
    together = ours.run_blocks
    with torch.device("meta"):
        theirs = HunyuanVideoFramepackTransformer3DModel.from_config(ours.config)
    theirs.load_state_dict(ours.state_dict(), assign=True)
    theirs = as_diffusers(theirs.eval())
    setting = Setting(card, ours.config, options.height, options.width, options.window)

    def step(blocks: Callable, given: dict[str, torch.Tensor]) -> torch.Tensor:
        ours.run_blocks = blocks
        return ours(**given)[0]

    print(f"{crew.size} x {card.name}, PyTorch {torch.__version__}:\n")
    print("| words | one ms | all ms | times as fast | difference | diffusers' |")
    print("|---|---|---|---|---|---|")
    for words in (60, 61):
        mask = torch.arange(setting.text["prompt_embeds_mask"].shape[1]) < words
        given = setting.step | {"encoder_attention_mask": mask[None].long().to(card.device)}
        runs = {"one": partial(step, alone, given), "all": partial(step, together, given)}
        ms = card.medians(runs, options.rounds)
        one = runs["one"]()
        figures = (
            str(words),
            f"{ms['one']:.1f}",
            f"{ms['all']:.1f}",
            f"**{ms['one'] / ms['all']:.2f}**",
            f"{difference(runs['all'](), one):.2g}",
            f"{difference(theirs(**given)[0], one):.2g}",
        )
        print(f"| {' | '.join(figures)} |", flush=True)


if __name__ == "__main__":
    main()
