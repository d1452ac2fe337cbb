import pytest
import torch
from torch import nn

from diffusers_helper.models import float8
from diffusers_helper.models.float8 import Float8Linear, to_float8, why_not_float8
from tests.golden_case import GoldenCase, golden_case
from tests.models.test_hunyuan_video_packed import velocity, with_lora


@pytest.fixture
def case() -> GoldenCase:
    return golden_case("f1_distilled")


def test_a_layer():
    torch.manual_seed(0)
    layer = nn.Linear(64, 32)
    x = torch.randn(1, 7, 64)
    layer.weight.data[3] *= 1e6  # a row of its own scale leaves the others alone
    x[0, 2] *= 1e6
    layer.weight.data[5] = 0
    with torch.inference_mode():
        exact, rounded = layer(x), Float8Linear(layer)(x)
    assert rounded.shape == exact.shape
    assert rounded.dtype == exact.dtype
    sizes = x.norm(dim=2, keepdim=True) * layer.weight.norm(dim=1)
    assert ((rounded - exact).abs() <= 0.03 * sizes + 1e-6).all()
    torch.testing.assert_close(rounded[..., 5], layer.bias[5].expand(1, 7))
    assert not rounded.equal(exact)


def test_which_layers(case: GoldenCase):
    """All of the blocks but their modulations, which are few and steer the rest."""
    model = case.transformer(dtype=torch.bfloat16)
    to_float8(model)
    changed = {name for name, m in model.named_modules() if isinstance(m, Float8Linear)}
    double, single = "transformer_blocks.0.", "single_transformer_blocks.0."
    attention = ("to_q", "to_k", "to_v")
    added = ("add_q_proj", "add_k_proj", "add_v_proj", "to_add_out", "to_out.0")
    assert {n for n in changed if n.startswith(double)} == {
        *(f"{double}attn.{name}" for name in (*attention, *added)),
        *(f"{double}{ff}.net.{i}" for ff in ("ff", "ff_context") for i in ("0.proj", "2")),
    }
    assert {n for n in changed if n.startswith(single)} == {
        *(f"{single}attn.{name}" for name in attention),
        f"{single}proj_mlp",
        f"{single}proj_out",
    }
    assert all("transformer_blocks." in name for name in changed)
    assert model.dtype == torch.bfloat16


def test_half_the_bytes(case: GoldenCase):
    layer = case.transformer(dtype=torch.bfloat16).transformer_blocks[0].ff.net[2]
    rounded = Float8Linear(layer)
    assert rounded.weight.nbytes * 2 == layer.weight.nbytes


def test_a_whole_model(case: GoldenCase):
    model, args = case.transformer(), case.forward_args()
    exact = velocity(model, args)
    to_float8(model)
    rounded = velocity(model, args)
    assert 1e-3 < ((rounded - exact).norm() / exact.norm()) < 0.1


def test_a_cpu_is_told_why(case: GoldenCase):
    assert "NVIDIA" in why_not_float8(torch.device("cpu"), case.transformer())


def test_lora_is_told_why(case: GoldenCase, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setattr(float8, "kernels", "Triton's")
    model = case.transformer()
    assert why_not_float8(torch.device("cuda"), model) is None
    assert "LoRA" in why_not_float8(torch.device("cuda"), with_lora(model))


def test_without_triton_it_is_told(case: GoldenCase, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setattr(float8, "kernels", None)
    assert "Triton" in why_not_float8(torch.device("cuda"), case.transformer())


def test_an_old_gpu_is_told_why(case: GoldenCase, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 6))
    assert "8.9" in why_not_float8(torch.device("cuda"), case.transformer())
