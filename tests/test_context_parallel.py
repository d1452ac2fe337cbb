"""Two processes on a CPU, with the collectives of the host: the same result as one."""

import os
import socket
import subprocess
import sys
from contextlib import redirect_stdout
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from diffusers_helper import __main__ as command
from diffusers_helper.context_parallel import Crew, deal
from diffusers_helper.errors import UserError
from tests.conftest import read_video
from tests.golden_case import golden_case
from tests.processes import launch

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


@dataclass
class Told:
    """What a process tells of what it did."""

    outputs: list[np.ndarray]
    """Of `run`, in the first process."""
    seen: list[int]
    """Tokens of latents that its blocks saw."""
    status: int
    """Of the command."""
    printed: str


def work(arguments: list[str], port: str) -> Told:
    """In each process: a transformer's blocks, then the command; for it they meet at a new port."""
    torch.set_num_threads(1)
    transformer = golden_case(CASE).transformer()
    seen = count_tokens(transformer)
    with torch.inference_mode(), Crew() as crew:
        crew.share(transformer)
        outputs = run(transformer) if crew.leads else []
    os.environ |= {"TORCHELASTIC_USE_AGENT_STORE": "False", "MASTER_PORT": port}
    with redirect_stdout(StringIO()) as printed:
        status = command.main(arguments)
    return Told(outputs, seen, status, printed.getvalue())


def free_port() -> str:
    with socket.create_server(("127.0.0.1", 0)) as some:
        return str(some.getsockname()[1])


def count_tokens(transformer: Any) -> list[int]:
    """A list that grows with every call of its blocks by the tokens of latents that they see."""
    seen = []
    transformer.transformer_blocks[0].register_forward_pre_hook(
        lambda _, given: seen.append(given[0].shape[1])
    )
    return seen


@pytest.fixture(scope="module")
def arguments(tmp_path_factory: pytest.TempPathFactory, miniature_weights: Path) -> list[str]:
    """Of a video of two short sections, without loss."""
    image = tmp_path_factory.mktemp("image") / "in.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (60, 100, 3), np.uint8)).save(image)
    return [
        *("--model", "tiny", "--weights", str(miniature_weights)),
        *("--image", str(image), "--prompt", "a cat", "--mp4-crf", "0"),
        *("--seconds", "1", "--latent-window-size", "3", "--steps", "2"),
    ]


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the two make."""
    return tmp_path_factory.mktemp("video") / "two.mp4"


@pytest.fixture(scope="module")
def told(arguments: list[str], video: Path) -> list[Told]:
    """By two processes; one start of them, since it takes longer than what they do."""
    return launch(work, [*arguments, "--output", str(video)], free_port())


def test_two_processes_do_what_one_does(told):
    transformer = golden_case(CASE).transformer()
    seen = count_tokens(transformer)
    with torch.inference_mode():
        alone = run(transformer)
    for a, b in zip(told[0].outputs, alone, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5, rtol=1e-5)
    assert len(seen) == len(alone) - 1  # one was skipped
    parts = [some.seen for some in told]
    assert np.add(*parts).tolist() == seen
    assert np.abs(np.subtract(*parts)).max() <= 2


def test_the_command_makes_the_same_video(told, arguments, video, tmp_path):
    one = tmp_path / "one.mp4"
    assert command.main([*arguments, "--output", str(one)]) == 0
    assert [some.status for some in told] == [0, 0]
    assert [some.printed for some in told] == [f"{video} (25 frames)\n", ""]
    a, b = (read_video(path).yuv.astype(int) for path in (one, video))
    assert abs(a - b).max() <= 1  # the last bit of a pixel


def test_an_error_of_the_first_ends_all(arguments, tmp_path):
    torchrun = ("torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m")
    arguments = [*torchrun, "diffusers_helper", *arguments, "--output", str(tmp_path)]
    done = subprocess.run(
        [sys.executable, "-m", *arguments], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert done.returncode != 0
    assert done.stderr.count("error: --output must name a file") == 1


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
