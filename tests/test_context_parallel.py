"""Two processes on a CPU, with the collectives of the host: the same result as one."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from diffusers_helper import __main__ as command
from diffusers_helper.context_parallel import Crew, deal
from diffusers_helper.errors import UserError
from tests.conftest import read_video
from tests.golden_case import golden_case

ROOT = Path(command.__file__).parents[1]
CASE = "f1_distilled"


def cases() -> list[dict[str, Any]]:
    """A transformer's arguments: one video with an even and an odd number of tokens, and two of
    different texts."""
    args = golden_case(CASE).forward_args()
    words = int(args["encoder_attention_mask"].sum())
    masks = [torch.arange(args["encoder_attention_mask"].shape[1])[None] < n for n in (words, 3, 4)]
    both = {
        name: x if "indices" in name else torch.cat([x, x.flip(-1)]) for name, x in args.items()
    }
    return [
        *(args | {"encoder_attention_mask": mask} for mask in masks[1:]),
        both | {"encoder_attention_mask": torch.cat(masks[:2])},
    ]


def run(transformer: Any) -> list[np.ndarray]:
    outputs = [transformer(**args, return_dict=False)[0] for args in cases()]
    # The first step of a sampling is computed, and one just like it is not.
    transformer.initialize_teacache(True, num_steps=3)
    for _ in range(2):
        with transformer.cache_context("positive"):
            outputs.append(transformer(**cases()[0], return_dict=False)[0])
    return [output.numpy() for output in outputs]


@torch.inference_mode()
def run_together() -> tuple[list[np.ndarray], list[int]]:
    """In each process: the results of the first, and the tokens of latents that its blocks see."""
    torch.set_num_threads(1)
    transformer = golden_case(CASE).transformer()
    seen = []
    transformer.transformer_blocks[0].register_forward_pre_hook(
        lambda _, given: seen.append(given[0].shape[1])
    )
    with Crew() as crew:
        crew.share(transformer)
        return (run(transformer) if crew.leads else []), seen


def test_two_processes_do_what_one_does():
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=2,
        run_id="test",
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        max_restarts=0,
    )
    results = elastic_launch(config, run_together)()
    seen = []
    transformer = golden_case(CASE).transformer()
    transformer.transformer_blocks[0].register_forward_pre_hook(
        lambda _, given: seen.append(given[0].shape[1])
    )
    with torch.inference_mode():
        alone = run(transformer)
    together, parts = results[0]
    for a, b in zip(together, alone, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5, rtol=1e-5)
    assert len(seen) == len(alone) - 1  # one was skipped
    assert np.add(parts, results[1][1]).tolist() == seen
    assert np.abs(np.subtract(parts, results[1][1])).max() <= 2


@pytest.mark.parametrize("size", [2, 3, 8])
@pytest.mark.parametrize(("packed", "text"), [(18015, 789), (18015, 790), (100, 8), (1001, 300)])
def test_tokens_are_dealt_out_evenly(packed, text, size):
    of_packed, of_text = deal(packed, text, size)
    assert len(of_packed) == len(of_text) == size
    assert (sum(of_packed), sum(of_text)) == (packed, text)
    both = [a + b for a, b in zip(of_packed, of_text, strict=True)]
    assert max(both) - min(both) <= 1
    assert min(of_packed + of_text) > 0


def test_heads_that_cannot_be_dealt_out():
    crew = Crew.__new__(Crew)
    crew.rank, crew.size = 0, 3
    transformer = golden_case(CASE).transformer()
    heads = transformer.config.num_attention_heads
    assert heads % 3
    with pytest.raises(UserError, match=f"{heads} attention heads .* 3 processes"):
        crew.share(transformer)


@pytest.fixture
def arguments(tmp_path: Path, miniature_weights: Path) -> list[str]:
    """Of a video of two short sections, without loss."""
    image = tmp_path / "in.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (60, 100, 3), np.uint8)).save(image)
    return [
        *("--model", "tiny", "--weights", str(miniature_weights)),
        *("--image", str(image), "--prompt", "a cat", "--mp4-crf", "0"),
        *("--seconds", "1", "--latent-window-size", "3", "--steps", "2"),
    ]


def together(*arguments: str) -> subprocess.CompletedProcess:
    torchrun = ("torch.distributed.run", "--standalone", "--nproc-per-node", "2")
    return subprocess.run(
        [sys.executable, "-m", *torchrun, "-m", "diffusers_helper", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_the_command_makes_the_same_video(arguments, tmp_path):
    one, two = tmp_path / "one.mp4", tmp_path / "two.mp4"
    assert command.main([*arguments, "--output", str(one)]) == 0
    done = together(*arguments, "--output", str(two))
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [f"{two} (25 frames)"]
    a, b = (read_video(path).yuv.astype(int) for path in (one, two))
    assert abs(a - b).max() <= 1  # the last bit of a pixel


def test_an_error_of_the_first_ends_all(arguments, tmp_path):
    done = together(*arguments, "--output", str(tmp_path))
    assert done.returncode != 0
    assert done.stderr.count("error: --output must name a file") == 1
