import copy
import math
import time
from pathlib import Path

import pytest
import torch

from training.tiny_world.config import MINIATURE_TRAINING
from training.tiny_world.data import Clips
from training.tiny_world.flow import (
    Trained,
    _forget_guidance,
    _noisy,
    distil_guidance,
    train_flow,
    velocity,
)
from training.tiny_world.loop import Interrupted

CPU = torch.device("cpu")
CONFIG = MINIATURE_TRAINING


@pytest.fixture
def components(untrained: dict) -> dict:
    """Components to be trained."""
    return {name: copy.deepcopy(component) for name, component in untrained.items()}


def _random_inputs(clips: Clips, tokens: int) -> tuple[dict, dict]:
    generator = torch.Generator().manual_seed(0)
    inputs = _noisy(clips.batch(0), 0, CONFIG)
    batch = len(inputs["noisy"])
    model = CONFIG.model
    conditions = {
        "text": torch.randn(batch, tokens, model.text_dim, generator=generator),
        "pooled": torch.randn(batch, model.pooled_dim, generator=generator),
        "image": torch.randn(batch, 16, model.image_dim, generator=generator),
        "scale": torch.linspace(1, 9, batch),
    }
    return inputs, conditions


@torch.no_grad()
def test_velocity_is_the_transformer_without_a_mask(components: dict, clips: Clips):
    transformer = components["transformer"].eval()
    inputs, conditions = _random_inputs(clips, tokens=5)
    context = {name: x for name, x in inputs.items() if "clean" in name or "indices" in name}
    expected = transformer(
        hidden_states=inputs["noisy"],
        timestep=1000 * inputs["sigma"],
        encoder_hidden_states=conditions["text"],
        encoder_attention_mask=torch.ones(CONFIG.batch, 5),
        pooled_projections=conditions["pooled"],
        guidance=1000 * conditions["scale"],
        image_embeddings=conditions["image"],
        return_dict=False,
        **context,
    )[0]
    torch.testing.assert_close(
        velocity(transformer, inputs, **conditions), expected, atol=1e-5, rtol=1e-4
    )


@torch.no_grad()
def test_a_student_begins_blind_to_guidance(components: dict, clips: Clips):
    teacher = components["transformer"].eval()
    student = copy.deepcopy(teacher)
    _forget_guidance(student)
    inputs, conditions = _random_inputs(clips, tokens=3)
    at_one = velocity(teacher, inputs, **conditions | {"scale": torch.ones(CONFIG.batch)})
    assert not torch.allclose(velocity(teacher, inputs, **conditions), at_one, atol=1e-4)
    torch.testing.assert_close(
        velocity(student, inputs, **conditions), at_one, atol=1e-5, rtol=1e-4
    )


def test_noise_and_velocity_lead_back_to_the_clip(clips: Clips):
    batch = clips.batch(4)
    inputs = _noisy(batch, 4, CONFIG)
    level = inputs["sigma"].view(-1, 1, 1, 1, 1)
    torch.testing.assert_close(
        inputs["noisy"] - level * inputs["velocity"], batch.target, atol=1e-4, rtol=1e-4
    )
    assert inputs["sigma"].min() > 0
    assert inputs["sigma"].max() < 1
    # The start image is shown as it is; absent history stays absent.
    assert torch.equal(
        inputs["clean_latents"][:, :, 0], batch.context["clean_latents"][:, :, 0].float()
    )
    absent = batch.context["clean_latents_4x"] == 0
    assert not inputs["clean_latents_4x"][absent].any()


def test_the_running_mean_is_the_result():
    network = torch.nn.Linear(3, 2)
    trained = Trained([network], CONFIG, 1.0)
    mean = [p.detach().clone() for p in network.parameters()]
    for done in range(4):
        network(torch.randn(5, 3)).square().mean().backward()
        keep = trained.keep(done)
        assert keep == pytest.approx((1 + done) / (10 + done))
        trained.step(torch.tensor(0.5), torch.tensor(keep))
        mean = [
            keep * m + (1 - keep) * p.detach()
            for m, p in zip(mean, network.parameters(), strict=True)
        ]
    trained.finish()
    for p, m in zip(network.parameters(), mean, strict=True):
        torch.testing.assert_close(p.detach(), m, atol=1e-6, rtol=1e-4)


def _states(components: dict) -> dict[str, torch.Tensor]:
    names = ("transformer", "text_encoder", "image_encoder")
    return {f"{n}.{k}": v for n in names for k, v in components[n].state_dict().items()}


def test_an_interrupted_training_ends_as_a_whole_one(
    components: dict, clips: Clips, tmp_path: Path
):
    whole, pieces = components, copy.deepcopy(components)
    loss = train_flow(whole, clips, CONFIG, CPU, tmp_path / "whole.pt", math.inf)
    assert math.isfinite(loss)
    assert not (tmp_path / "whole.pt").exists()

    over = time.monotonic() - 1
    for step in range(CONFIG.flow_steps - 1):
        with pytest.raises(Interrupted, match=f"{step + 1} of {CONFIG.flow_steps} steps"):
            train_flow(pieces, clips, CONFIG, CPU, tmp_path / "pieces.pt", over)
    train_flow(pieces, clips, CONFIG, CPU, tmp_path / "pieces.pt", over)
    for (name, a), b in zip(_states(whole).items(), _states(pieces).values(), strict=True):
        assert torch.equal(a, b), name


def test_distillation_changes_only_the_student(components: dict, clips: Clips, tmp_path: Path):
    before = {name: x.clone() for name, x in _states(components).items()}
    student = copy.deepcopy(components["transformer"])
    loss = distil_guidance(
        components, student, clips, CONFIG, CPU, tmp_path / "distil.pt", math.inf
    )
    assert math.isfinite(loss)
    for name, x in _states(components).items():
        assert torch.equal(x, before[name]), name
    # It began as the teacher and has learned to read the scale.
    inputs, conditions = _random_inputs(clips, tokens=3)
    low = conditions | {"scale": torch.full((CONFIG.batch,), 1.0)}
    high = conditions | {"scale": torch.full((CONFIG.batch,), 10.0)}
    with torch.no_grad():
        assert not torch.equal(velocity(student, inputs, **low), velocity(student, inputs, **high))
