from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig

from diffusers_helper.pipelines.k_diffusion_hunyuan import sample_hunyuan
from tests.golden_case import NAMES, golden_case

FRAMEPACK_FIT = np.poly1d([733.226126, -401.131952, 67.5869174, -3.149878, 0.0961237896])
STEPS = 10


def randn(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def transformer(name: str = "f1_distilled") -> Any:
    return golden_case(name).transformer()


def sampling(name: str = "f1_distilled", steps: int = STEPS) -> list[dict[str, Any]]:
    """A transformer's arguments at each step of a sampling that hurries and then slows down."""
    args = golden_case(name).forward_args()
    x, drift = args["hidden_states"], randn(*args["hidden_states"].shape, seed=1)
    sigmas = torch.linspace(1, 0.1, steps) ** 2
    return [
        args | {"hidden_states": x + sigma * drift, "timestep": 1000 * sigma.reshape(1)}
        for sigma in sigmas
    ]


@torch.inference_mode()
def run(model: Any, args: dict[str, Any], name: str = "positive") -> torch.Tensor:
    with model.cache_context(name):
        return model(**args, return_dict=False)[0]


def run_all(model: Any, steps: list[dict[str, Any]], name: str = "positive") -> torch.Tensor:
    return torch.stack([run(model, args, name) for args in steps])


@dataclass
class Trace:
    """What passes through a transformer's blocks, a list entry a step."""

    modulated: list[torch.Tensor]
    entered: list[torch.Tensor]
    left: list[torch.Tensor]
    attention: list[int]

    @property
    def computed(self) -> list[bool]:
        return [count > 0 for count in self.attention]


@contextmanager
def traced(model: Any) -> Iterator[Trace]:
    trace = Trace([], [], [], [])
    blocks = [*model.transformer_blocks, *model.single_transformer_blocks]
    latent_tokens = []

    def start(_module, _args, kwargs):
        trace.attention.append(0)
        _, _, frames, height, width = kwargs["hidden_states"].shape
        latent_tokens[:] = [frames * height * width // 4]

    def attend(*_):
        trace.attention[-1] += 1

    def leave(_module, args):
        trace.left.append(args[0])

    handles = [
        model.register_forward_pre_hook(start, with_kwargs=True),
        model.norm_out.register_forward_pre_hook(leave),
        blocks[0].norm1.register_forward_hook(
            lambda _module, _args, output: trace.modulated.append(output[0])
        ),
        blocks[0].norm1.register_forward_pre_hook(
            lambda _module, args: trace.entered.append(args[0][:, -latent_tokens[0] :])
        ),
        *(block.attn.register_forward_hook(attend) for block in blocks),
    ]
    yield trace
    for handle in handles:
        handle.remove()


def framepacks_rule(modulated: list[torch.Tensor], threshold: float) -> list[bool]:
    """Which steps of a sampling are computed."""
    decisions, total = [], 0.0
    for i, m in enumerate(modulated):
        if i in (0, len(modulated) - 1):
            decisions.append(True)
            continue
        m_prev = modulated[i - 1]
        total += FRAMEPACK_FIT(((m - m_prev).abs().mean() / m_prev.abs().mean()).item())
        decisions.append(not total < threshold)
        if decisions[-1]:
            total = 0.0
    return decisions


@pytest.mark.parametrize("name", NAMES)
def test_threshold_zero_is_bit_identical(name: str):
    steps = sampling(name)
    uncached = run_all(transformer(name), steps)
    model = transformer(name)
    model.initialize_teacache(num_steps=STEPS, rel_l1_thresh=0.0)
    assert run_all(model, steps).equal(uncached)


@pytest.mark.parametrize("threshold", [0.1, 0.15, 0.25, 0.6])
@pytest.mark.parametrize("name", NAMES)
def test_framepacks_rule(name: str, threshold: float):
    steps = sampling(name)
    model = transformer(name)
    with traced(model) as uncached:
        run_all(model, steps)
    model.initialize_teacache(num_steps=STEPS, rel_l1_thresh=threshold)
    with traced(model) as cached:
        run_all(model, steps)

    expected = framepacks_rule(uncached.modulated, threshold)
    assert cached.computed == expected
    assert set(expected[1:-1]) == {True, False}, "this threshold decides nothing"

    for i, computed in enumerate(expected):
        if computed:
            residual = uncached.left[i] - uncached.entered[i]
            assert cached.left[i].equal(uncached.left[i])
        else:
            assert cached.left[i].equal(uncached.entered[i] + residual)


def test_default_threshold():
    steps = sampling()
    default, written = transformer(), transformer()
    default.initialize_teacache(num_steps=STEPS)
    written.initialize_teacache(num_steps=STEPS, rel_l1_thresh=0.15)
    outputs = run_all(default, steps)
    assert outputs.equal(run_all(written, steps))
    assert not outputs.equal(run_all(transformer(), steps))


@pytest.mark.parametrize("num_steps", [1, 2, 3, STEPS])
def test_first_and_last_step_are_computed(num_steps: int):
    model = transformer()
    model.initialize_teacache(num_steps=num_steps, rel_l1_thresh=torch.inf)
    with traced(model) as trace:
        run_all(model, sampling(steps=num_steps))
    assert trace.computed == [i in (0, num_steps - 1) for i in range(num_steps)]


def test_skipped_step_attends_to_nothing():
    model = transformer()
    blocks = len(model.transformer_blocks) + len(model.single_transformer_blocks)
    model.initialize_teacache(num_steps=4, rel_l1_thresh=torch.inf)
    with traced(model) as trace:
        run_all(model, sampling(steps=4))
    assert trace.attention == [blocks, 0, 0, blocks]


def test_next_sampling_begins_anew_by_itself():
    steps = sampling()
    model = transformer()
    model.initialize_teacache(num_steps=STEPS)
    first = run_all(model, steps)
    assert run_all(model, steps).equal(first)


@pytest.mark.parametrize("done", [1, 4])
def test_restart_forgets(done: int):
    steps = sampling()
    fresh, restarted = transformer(), transformer()
    fresh.initialize_teacache(num_steps=STEPS)
    expected = run_all(fresh, steps)

    restarted.initialize_teacache(num_steps=7, rel_l1_thresh=0.9)
    run_all(restarted, sampling("f1_distilled", 7)[:done])
    restarted.initialize_teacache(num_steps=STEPS)
    assert run_all(restarted, steps).equal(expected)


def test_restart_takes_another_size():
    model = transformer()
    steps = sampling(steps=4)
    model.initialize_teacache(num_steps=4, rel_l1_thresh=torch.inf)
    run_all(model, steps)
    model.initialize_teacache(num_steps=4, rel_l1_thresh=torch.inf)
    history = dict.fromkeys(("clean_latents", "clean_latents_2x", "clean_latents_4x"))
    assert run_all(model, [args | history for args in steps]).isfinite().all()


def test_switched_off_restores_the_transformer():
    steps = sampling()
    model = transformer()
    model.initialize_teacache(num_steps=STEPS, rel_l1_thresh=torch.inf)
    run_all(model, steps)
    model.initialize_teacache(False)
    assert run_all(model, steps).equal(run_all(transformer(), steps))
    with torch.inference_mode():  # no need to name the pass either
        model(**steps[0])


def test_switching_off_twice_or_at_first_is_nothing():
    steps = sampling(steps=3)
    model = transformer()
    for _ in range(2):
        model.initialize_teacache(False)
        assert run_all(model, steps).equal(run_all(transformer(), steps))


def test_latents_that_become_sharp_count_as_change():
    """The first step under the gate, skipped otherwise, is computed: history is part of what
    decides."""
    args = golden_case("f1_distilled").sample_args() | {"num_inference_steps": STEPS}

    def computed(factor: float) -> list[bool]:
        model = transformer()
        model.initialize_teacache(num_steps=STEPS)
        noise = torch.Generator().manual_seed(1)
        lever = {"low_pass_factor": factor, "low_pass_sigma": 0.8}
        with traced(model) as trace:
            sample_hunyuan(model, **args | {"generator": noise}, **lever)
        return trace.computed

    sharp = 3  # sigma is 0.86 at the step before and 0.79 at this one
    assert (computed(1.0)[sharp], computed(0.25)[sharp]) == (False, True)


def test_unnamed_pass_is_an_error():
    model = transformer()
    model.initialize_teacache(num_steps=4)
    with pytest.raises(ValueError, match="cache_context"), torch.inference_mode():
        model(**sampling()[0])


def test_lora_on_what_decides():
    steps = sampling()

    def adapted() -> Any:
        model = transformer()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model.add_adapter(
                LoraConfig(r=2, target_modules=["norm1.linear", "to_q"], init_lora_weights=False)
            )
        return model.eval()

    model = adapted()
    with traced(model) as uncached:
        run_all(model, steps)
    model = adapted()
    model.initialize_teacache(num_steps=STEPS)
    with traced(model) as cached:
        run_all(model, steps)
    assert cached.computed == framepacks_rule(uncached.modulated, 0.15)
    assert {True, False} == set(cached.computed[1:-1])


# True CFG


class TwoTransformers:
    """One transformer for each pass, so that nothing can be shared."""

    device = torch.device("cpu")

    def __init__(self, positive: Any, negative: Any) -> None:
        self.passes = {"positive": positive, "negative": negative}

    @contextmanager
    def cache_context(self, name: str) -> Iterator[None]:
        self.current = self.passes[name]
        with self.current.cache_context("alone"):
            yield

    def __call__(self, **kwargs: Any) -> Any:
        return self.current(**kwargs)


class OneNameForBoth:
    """A transformer whose passes share what is cached, as in FramePack."""

    device = torch.device("cpu")

    def __init__(self, shared: Any) -> None:
        self.shared = shared

    @contextmanager
    def cache_context(self, name: str) -> Iterator[None]:
        with self.shared.cache_context("shared"):
            yield

    def __call__(self, **kwargs: Any) -> Any:
        return self.shared(**kwargs)


def cached_transformer(threshold: float) -> Any:
    model = transformer("i2v_true_cfg")
    model.initialize_teacache(num_steps=STEPS, rel_l1_thresh=threshold)
    return model


def true_cfg_sample(model: Any, beta: float) -> torch.Tensor:
    args = golden_case("i2v_true_cfg").sample_args() | {"num_inference_steps": STEPS}
    # A past that differs makes the passes change at different paces.
    past = {"clean_latents": 4 * args["clean_latents"]}
    return sample_hunyuan(model, adaptive_cfg_beta=beta, negative_kwargs=past, **args)


@pytest.mark.parametrize("beta", [0.0, 0.7])
@pytest.mark.parametrize("threshold", [0.12, 0.2])
def test_true_cfg_equals_two_passes_cached_apart(threshold: float, beta: float):
    positive, negative, both = (cached_transformer(threshold) for _ in range(3))
    with traced(positive) as p, traced(negative) as n, traced(both) as b:
        apart = true_cfg_sample(TwoTransformers(positive, negative), beta)
        together = true_cfg_sample(both, beta)

    assert together.equal(apart)
    assert b.computed[::2] == p.computed
    assert b.computed[1::2] == n.computed
    assert p.computed != n.computed, "passes that decide alike would hide a shared state"
    assert not true_cfg_sample(OneNameForBoth(cached_transformer(threshold)), beta).equal(apart)
