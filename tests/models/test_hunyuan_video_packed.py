import json
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import HunyuanVideoFramepackTransformer3DModel
from peft import LoraConfig
from peft.tuners.lora import LoraLayer

from benchmarks.gpu import as_diffusers
from diffusers_helper.models.hunyuan_video_packed import HunyuanVideoTransformer3DModelPacked
from diffusers_helper.pipelines.k_diffusion_hunyuan import sample_hunyuan
from tests.golden_case import HISTORY, NAMES, TRANSFORMER_TENSORS, GoldenCase, golden_case

INDICES = ("latent_indices", *HISTORY.values())
DTYPES = (torch.float32, torch.bfloat16)


@pytest.fixture(params=NAMES)
def case(request: pytest.FixtureRequest) -> GoldenCase:
    return golden_case(request.param)


@pytest.fixture
def f1() -> GoldenCase:
    return golden_case("f1_distilled")


@torch.inference_mode()
def velocity(model: Any, args: dict[str, Any], **changes: Any) -> torch.Tensor:
    return model(**(args | changes), return_dict=False)[0]


def diffusers_velocity(model: Any, args: dict[str, Any]) -> torch.Tensor:
    return velocity(as_diffusers(model), args)


def in_dtype(args: dict[str, torch.Tensor], dtype: torch.dtype) -> dict[str, torch.Tensor]:
    return {name: x.to(dtype) if x.is_floating_point() else x for name, x in args.items()}


def twice(args: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """A batch of two that differ in all but the indices."""
    return {
        name: torch.cat([x, x if name in INDICES or "mask" in name else 0.5 * x])
        for name, x in args.items()
    }


# The network


def test_golden(case: GoldenCase):
    result = velocity(case.transformer(), case.forward_args())
    torch.testing.assert_close(result, case.outputs["forward"], rtol=0, atol=1e-4)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("batch", [1, 2])
def test_equals_diffusers(case: GoldenCase, dtype: torch.dtype, batch: int):
    args = in_dtype(case.forward_args(), dtype)
    if batch == 2:
        args = twice(args)
        args["encoder_attention_mask"][1, 5:] = 0
    diffusers = case.transformer(HunyuanVideoFramepackTransformer3DModel, dtype)
    result = velocity(case.transformer(dtype=dtype), args)
    assert result.dtype == dtype
    assert result.equal(diffusers_velocity(diffusers, args))


def test_framepacks_tensors():
    with torch.device("meta"):
        model = HunyuanVideoTransformer3DModelPacked(
            has_image_proj=True, has_clean_x_embedder=True, rope_axes_dim=(16, 56, 56)
        )
    shapes = {name: list(tensor.shape) for name, tensor in model.state_dict().items()}
    assert len(shapes) == 1274
    assert shapes == TRANSFORMER_TENSORS


def test_returns_a_sample_by_default(f1: GoldenCase):
    model, args = f1.transformer(), f1.forward_args()
    with torch.inference_mode():
        assert model(**args).sample.equal(velocity(model, args))


def test_image_embeddings_are_required(f1: GoldenCase):
    with pytest.raises(ValueError, match="image_embeddings"):
        velocity(f1.transformer(), f1.forward_args(), image_embeddings=None)


def test_conditions_in_another_dtype_are_cast(f1: GoldenCase):
    args = f1.forward_args()
    cast = in_dtype(args, torch.bfloat16)
    given = cast | {name: args[name] for name in ("image_embeddings", *HISTORY)}
    model = f1.transformer(dtype=torch.bfloat16)
    assert velocity(model, given).equal(velocity(model, cast))


# Indices


def test_indices_with_and_without_batch(case: GoldenCase):
    model, args = case.transformer(), case.forward_args()
    rows = velocity(model, args)
    assert rows.equal(velocity(model, args | {name: args[name][0] for name in INDICES}))


def test_one_row_of_indices_serves_a_batch(f1: GoldenCase):
    model, args = f1.transformer(), twice(f1.forward_args())
    rows = velocity(model, args)
    assert rows.equal(velocity(model, args | {name: args[name][:1] for name in INDICES}))


@pytest.mark.parametrize("name", INDICES)
def test_differing_rows_of_indices(f1: GoldenCase, name: str):
    args = twice(f1.forward_args())
    args[name][1] += 1
    with pytest.raises(ValueError, match="indices must be alike"):
        velocity(f1.transformer(), args)


@pytest.mark.parametrize("name", INDICES)
def test_indices_matter(f1: GoldenCase, name: str):
    model, args = f1.transformer(), f1.forward_args()
    # Moved apart, not along: attention only knows distances.
    assert not velocity(model, args).allclose(velocity(model, args | {name: 2 * args[name] + 3}))


def test_absent_latent_indices_count_from_zero(f1: GoldenCase):
    model, args = f1.transformer(), f1.forward_args()
    counted = velocity(model, args, latent_indices=torch.arange(3))
    assert counted.equal(velocity(model, args, latent_indices=None))
    assert not counted.allclose(velocity(model, args))


# Absent history


def leaves_out(absent: tuple[str, ...]) -> type:
    """diffusers' network with the tokens of some history left out after they were embedded."""

    class LeavesOut(HunyuanVideoFramepackTransformer3DModel):
        def _pack_history_states(self, hidden_states, *args):
            history, rope, places, size = args[:3], args[3], args[4:7], args[7:]
            history = [None if n in absent else x for n, x in zip(HISTORY, history, strict=True)]
            return super()._pack_history_states(hidden_states, *history, rope, *places, *size)

    return LeavesOut


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "absent", [*((name,) for name in HISTORY), tuple(HISTORY)], ids=lambda names: "+".join(names)
)
def test_absent_history_has_no_tokens(case: GoldenCase, absent: tuple[str, ...], dtype):
    args = in_dtype(case.forward_args(), dtype)
    model = case.transformer(dtype=dtype)
    without = velocity(model, args, **dict.fromkeys(absent))

    reference = case.transformer(leaves_out(absent), dtype)
    assert without.equal(diffusers_velocity(reference, args))

    indices = [HISTORY[name] for name in absent]
    assert without.equal(velocity(model, args, **dict.fromkeys([*absent, *indices])))

    zeros = {name: torch.zeros_like(args[name]) for name in absent}
    assert not without.allclose(velocity(model, args, **zeros), atol=1e-3)


def test_absent_history_in_a_batch(f1: GoldenCase):
    args = twice(f1.forward_args())
    without = velocity(f1.transformer(), args, **dict.fromkeys(HISTORY))
    reference = f1.transformer(leaves_out(tuple(HISTORY)))
    assert without.equal(diffusers_velocity(reference, args))


# Once a sampling


def counted(model: Any) -> list[str]:
    """What of a section's own is computed from now on."""
    calls: list[str] = []
    for name in ("image_projection", "clean_x_embedder"):
        module = getattr(model, name)
        module.register_forward_hook(lambda *_, name=name: calls.append(name))
    return calls


OF_A_SECTION = ["clean_x_embedder", "image_projection"]


def test_a_section_is_packed_once(case: GoldenCase):
    args = case.sample_args()
    true_cfg = args["real_guidance_scale"] != 1.0
    model = case.transformer()
    calls = counted(model)
    for times in (1, 2):  # and anew for another sampling of the same, as weights may have changed
        made = sample_hunyuan(model, **args | {"generator": case.sample_args()["generator"]})
        assert calls == OF_A_SECTION * (1 + true_cfg) * times
        torch.testing.assert_close(made, case.outputs["sample"], rtol=0, atol=1e-4)


def test_other_tensors_are_packed_anew(f1: GoldenCase):
    model, args = f1.transformer(), f1.forward_args()
    other = args | {name: 0.5 * args[name] for name in ("clean_latents", "image_embeddings")}
    expected = [velocity(model, some) for some in (args, other)]
    calls = counted(model)
    with model.cache_context("positive"):
        made = [velocity(model, some) for some in (args, other, args)]
    assert calls == OF_A_SECTION * 3
    assert made[0].equal(expected[0])
    assert made[1].equal(expected[1])
    assert made[2].equal(expected[0])


def test_words_are_counted_anew_for_another_mask(f1: GoldenCase):
    model, args = f1.transformer(), f1.forward_args()
    fewer = args["encoder_attention_mask"].clone()
    fewer[:, 3:] = 0
    expected = velocity(model, args, encoder_attention_mask=fewer)
    with model.cache_context("positive"):
        velocity(model, args)
        assert velocity(model, args, encoder_attention_mask=fewer).equal(expected)


def test_another_size_is_packed_anew(f1: GoldenCase):
    model, args = f1.transformer(), f1.forward_args()
    taller = args | {"hidden_states": args["hidden_states"].repeat(1, 1, 1, 2, 1)}
    no_history = dict.fromkeys(HISTORY)
    expected = velocity(model, taller, **no_history)
    with model.cache_context("positive"):
        velocity(model, args, **no_history)
        assert velocity(model, taller, **no_history).equal(expected)


def test_gradients_are_of_every_call(f1: GoldenCase):
    model, args = f1.transformer(), f1.forward_args()
    calls = counted(model)
    with model.cache_context("positive"):
        for _ in range(2):
            model(**args, return_dict=False)[0].sum().backward()
    assert calls == OF_A_SECTION * 2


# The last projection in float32


def test_float32_output_is_closer_to_the_float32_model(case: GoldenCase):
    coarse = case.transformer(dtype=torch.bfloat16)
    args = in_dtype(case.forward_args(), torch.bfloat16)
    # The same rounded weights and inputs, so that only the arithmetic differs.
    exact = velocity(coarse.float(), in_dtype(args, torch.float32))
    coarse.bfloat16()

    plain = velocity(coarse, args)
    coarse.high_quality_fp32_output_for_inference = True
    fine = velocity(coarse, args)

    assert (plain.dtype, fine.dtype) == (torch.bfloat16, torch.float32)
    assert (fine - exact).square().mean() < (plain - exact).square().mean()
    assert fine.bfloat16().ne(fine).any()
    assert coarse.proj_out.weight.dtype == torch.bfloat16


def test_float32_output_is_the_projection_in_float32(f1: GoldenCase):
    model = f1.transformer(dtype=torch.bfloat16)
    model.high_quality_fp32_output_for_inference = True
    seen = {}
    model.proj_out.register_forward_hook(lambda _, args, out: seen.update(x=args[0], out=out))
    velocity(model, in_dtype(f1.forward_args(), torch.bfloat16))
    weight, bias = model.proj_out.weight.float(), model.proj_out.bias.float()
    assert seen["x"].dtype == torch.bfloat16
    torch.testing.assert_close(seen["out"], seen["x"].float() @ weight.T + bias)


def test_float32_output_can_be_switched_back(f1: GoldenCase):
    model = f1.transformer(dtype=torch.bfloat16)
    args = in_dtype(f1.forward_args(), torch.bfloat16)
    before = velocity(model, args)
    assert model.high_quality_fp32_output_for_inference is False
    for value in (True, False):
        model.high_quality_fp32_output_for_inference = value
        assert model.high_quality_fp32_output_for_inference is value
    after = velocity(model, args)
    assert after.dtype == torch.bfloat16
    assert after.equal(before)


# Files


@pytest.mark.parametrize("shard", ["5GB", "500KB"])
def test_save_and_load(f1: GoldenCase, tmp_path: Path, shard: str):
    model = f1.transformer(dtype=torch.bfloat16)
    model.save_pretrained(tmp_path, max_shard_size=shard)
    assert (len(list(tmp_path.glob("*.safetensors"))) > 1) == (shard == "500KB")
    loaded = HunyuanVideoTransformer3DModelPacked.from_pretrained(
        tmp_path, torch_dtype=torch.bfloat16
    )
    args = in_dtype(f1.forward_args(), torch.bfloat16)
    assert velocity(loaded, args).equal(velocity(model, args))
    assert loaded.config.items() >= f1.settings["config"].items()


def test_loads_what_diffusers_saved(f1: GoldenCase, tmp_path: Path):
    f1.transformer(HunyuanVideoFramepackTransformer3DModel).save_pretrained(tmp_path)
    loaded = HunyuanVideoTransformer3DModelPacked.from_pretrained(tmp_path)
    args = f1.forward_args()
    assert velocity(loaded, args).equal(velocity(f1.transformer(), args))


def test_saved_config_names_its_class(f1: GoldenCase, tmp_path: Path):
    f1.transformer().save_config(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["_class_name"] == "HunyuanVideoTransformer3DModelPacked"


# LoRA


@pytest.fixture
def adapted(f1: GoldenCase) -> HunyuanVideoTransformer3DModelPacked:
    return with_lora(f1.transformer())


def with_lora(model: Any) -> Any:
    # Random weights, since the usual zeros would change nothing.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model.add_adapter(
            LoraConfig(r=4, target_modules=["to_q", "to_k", "proj_out"], init_lora_weights=False),
            adapter_name="style",
        )
    return model.eval()


@pytest.fixture
def args(f1: GoldenCase) -> dict[str, torch.Tensor]:
    return f1.forward_args()


@pytest.fixture
def plain(f1: GoldenCase, args: dict) -> torch.Tensor:
    return velocity(f1.transformer(), args)


def test_lora_changes_the_output(adapted: Any, args: dict, plain: torch.Tensor):
    assert isinstance(adapted.proj_out, LoraLayer)
    assert isinstance(adapted.transformer_blocks[0].attn.to_q, LoraLayer)
    assert not velocity(adapted, args).allclose(plain, atol=1e-2)


def test_lora_equals_diffusers(f1: GoldenCase, adapted: Any, args: dict):
    diffusers = with_lora(f1.transformer(HunyuanVideoFramepackTransformer3DModel))
    assert velocity(adapted, args).equal(diffusers_velocity(diffusers, args))


@pytest.mark.parametrize(
    "undo",
    [
        lambda model: model.set_adapters("style", weights=0.0),
        lambda model: model.disable_adapters(),
        lambda model: model.delete_adapters("style"),
        lambda model: model.unload_lora(),
    ],
    ids=["scale0", "disable", "delete", "unload"],
)
def test_lora_can_be_undone(adapted: Any, args: dict, plain: torch.Tensor, undo: Any):
    undo(adapted)
    assert velocity(adapted, args).equal(plain)


def test_lora_can_be_enabled_again(adapted: Any, args: dict):
    before = velocity(adapted, args)
    adapted.disable_adapters()
    adapted.enable_adapters()
    assert velocity(adapted, args).equal(before)


def test_lora_scale(adapted: Any, args: dict):
    full, scaled = velocity(adapted, args), velocity(adapted, args, attention_kwargs={"scale": 0.5})
    assert velocity(adapted, args).equal(full)
    adapted.set_adapters("style", weights=0.5)
    assert velocity(adapted, args).equal(scaled)
    assert not scaled.allclose(full, atol=1e-2)


def test_lora_file(f1: GoldenCase, adapted: Any, args: dict, tmp_path: Path):
    adapted.save_lora_adapter(tmp_path, adapter_name="style")
    loaded = f1.transformer()
    loaded.load_lora_adapter(tmp_path, prefix=None, use_safetensors=True)
    assert velocity(loaded, args).equal(velocity(adapted, args))


def test_float32_output_with_lora(f1: GoldenCase):
    model = with_lora(f1.transformer(dtype=torch.bfloat16))
    args = in_dtype(f1.forward_args(), torch.bfloat16)
    plain = velocity(model, args)
    model.high_quality_fp32_output_for_inference = True
    fine = velocity(model, args)
    assert model.high_quality_fp32_output_for_inference is True
    assert (plain.dtype, fine.dtype) == (torch.bfloat16, torch.float32)
    torch.testing.assert_close(fine, plain.float(), rtol=2**-7, atol=0.05)

    model.unload_lora()
    assert model.high_quality_fp32_output_for_inference is True
    assert velocity(model, args).dtype == torch.float32
