"""The fast blocks against diffusers': the same functions, but for rounding.

On a GPU, where there is one, in bfloat16 as they run there; else in float32, interpreted."""

from functools import cache
from typing import Any

import pytest
import torch
from diffusers import FirstBlockCacheConfig

pytest.importorskip("triton")
from diffusers_helper.models import fast_blocks, hunyuan_video_packed
from diffusers_helper.models.fast_blocks import can_fuse
from tests.golden_case import HISTORY, NAMES, GoldenCase, golden_case
from tests.models.test_hunyuan_video_packed import in_dtype, twice, velocity, with_lora

ON_GPU = torch.cuda.is_available()
DEVICE, DTYPE = ("cuda", torch.bfloat16) if ON_GPU else ("cpu", torch.float32)
ROUNDING = 0.02 if ON_GPU else 1e-6
"""Relative, in the L2 norm. Interpreted in bfloat16, the two ways are 0.009 apart."""


@pytest.fixture
def fused(monkeypatch: pytest.MonkeyPatch) -> list[torch.Tensor]:
    """Fuse on the CPU and in float32 as well; what was asked is kept."""
    asked = []

    def here(x: torch.Tensor, mask: torch.Tensor | None) -> bool:
        asked.append(x)
        return len(x) == 1 and mask is None

    for module in (fast_blocks, hunyuan_video_packed):
        monkeypatch.setattr(module, "can_fuse", here)
    return asked


def few_tokens(case: GoldenCase) -> dict[str, torch.Tensor]:
    """Arguments of a forward of a small picture: the interpreter takes a while for each token."""
    args = case.forward_args()
    latents = [name for name, x in args.items() if x.ndim == 5]
    fewer = {"encoder_attention_mask": args["encoder_attention_mask"].clone()}
    fewer["encoder_attention_mask"][:, 3:] = 0
    fewer["image_embeddings"] = args["image_embeddings"][:, :3]
    args |= {name: args[name][..., :4, :4] for name in latents} | fewer
    return {name: x.to(DEVICE) for name, x in in_dtype(args, DTYPE).items()}


def network(case: GoldenCase) -> Any:
    return case.transformer(dtype=DTYPE).to(DEVICE)


def assert_alike(velocities: torch.Tensor, plain: torch.Tensor) -> None:
    assert velocities.shape == plain.shape
    assert velocities.dtype == plain.dtype
    far = (velocities.float() - plain.float()).norm() / plain.float().norm()
    assert far <= ROUNDING


@cache
def fused_alone(name: str) -> torch.Tensor:
    """The fast path's velocity; kept, since the interpreter takes seconds for it."""
    case = golden_case(name)
    return velocity(network(case), few_tokens(case))


def both(case: GoldenCase, prepare: Any = lambda model: model, **changes: Any) -> tuple:
    """Velocities of the plain and the fast path."""
    args = few_tokens(case) | changes
    model = prepare(network(case))
    with pytest.MonkeyPatch.context() as patch:
        for module in (fast_blocks, hunyuan_video_packed):
            patch.setattr(module, "can_fuse", lambda x, mask: False)
        plain = velocity(model, args)
    return plain, velocity(model, args)


@pytest.mark.parametrize("name", NAMES)
def test_equals_the_plain_path(name: str, fused: list):
    plain, fast = both(golden_case(name))
    assert_alike(fast, plain)
    assert fused
    assert not fast.equal(plain)


def test_without_history(fused: list):
    plain, fast = both(golden_case("f1_distilled"), **dict.fromkeys(HISTORY))
    assert_alike(fast, plain)


def test_lora(fused: list):
    plain, fast = both(golden_case("f1_distilled"), prepare=with_lora)
    assert_alike(fast, plain)


def test_layers_whose_forward_was_replaced(fused: list):
    """As offloading does, which brings the weight only then."""
    called = []

    def replaced(model: Any) -> Any:
        for name, layer in model.transformer_blocks[0].named_modules():
            if type(layer) is torch.nn.Linear:

                def forward(x: torch.Tensor, name: str = name, plain: Any = layer.forward) -> Any:
                    called.append(name)
                    return plain(x)

                layer.forward = forward
        return model

    plain, fast = both(golden_case("f1_distilled"), prepare=replaced)
    assert_alike(fast, plain)
    assert sorted(called) == sorted(2 * list(set(called)))


def test_a_batch_takes_the_plain_path(fused: list):
    case = golden_case("f1_distilled")
    args = few_tokens(case)
    fast = velocity(network(case), twice(args))
    assert fast.shape[0] == 2
    assert_alike(fast[:1], fused_alone("f1_distilled"))


def test_teacache(fused: list):
    case = golden_case("f1_distilled")
    model, args = network(case), few_tokens(case)
    model.initialize_teacache(num_steps=3)
    with model.cache_context("positive"):
        steps = [velocity(model, args) for _ in range(3)]
    for step in steps:
        assert_alike(step, fused_alone("f1_distilled"))


@torch.inference_mode()
def test_where_it_applies():
    x = torch.zeros(1, 2, 4)
    assert can_fuse(x.to(DEVICE, DTYPE), None) is ON_GPU
    assert not can_fuse(x.to(DEVICE), None)
    assert not can_fuse(x.bfloat16(), None)  # a CPU's, whatever else the machine has


def test_first_block_cache(fused: list):
    """diffusers' cache, which hooks blocks by their class and reads both of their streams."""
    case = golden_case("f1_distilled")
    model, args = network(case), few_tokens(case)
    model.enable_cache(FirstBlockCacheConfig(threshold=1e-6))
    with model.cache_context("positive"):
        steps = [velocity(model, args) for _ in range(2)]
    for step in steps:
        assert_alike(step, fused_alone("f1_distilled"))
