from pathlib import Path

import pytest
import torch

from benchmarks import gpu
from diffusers_helper.models.hunyuan_video_packed import HunyuanVideoTransformer3DModelPacked


@pytest.fixture
def transformer() -> HunyuanVideoTransformer3DModelPacked:
    return HunyuanVideoTransformer3DModelPacked(
        has_image_proj=True, has_clean_x_embedder=True, **gpu._SMALL
    ).eval()


@torch.inference_mode()
def test_what_a_step_computes(transformer: HunyuanVideoTransformer3DModelPacked):
    setting = gpu.Setting(gpu.Card(small=True), transformer.config, 64, 96, 2)
    products, attention, length = gpu.count(transformer, transformer, setting.step)
    # Window and 1x history of 4 x 6 tokens a frame, 2x and 4x of fewer; then image and words.
    latents = (2 + 2) * 24 + 6 + 4 * 2
    text = 9 + gpu._WORDS
    assert length == latents + text
    c = transformer.inner_dim
    stream = 3 * c * c + c * c + 8 * c * c  # queries, keys and values; output; feed-forward
    double = (latents + text) * stream + 2 * 6 * c * c  # and the modulations of both streams
    single = (latents + text) * (3 * c * c + 4 * c * c + 5 * c * c) + 3 * c * c
    assert products == pytest.approx(2 * (double + 2 * single) / 1e12)
    assert attention == pytest.approx(3 * 4 * length**2 * c / 1e12)


@torch.inference_mode()
def test_both_paths_give_the_same(transformer: HunyuanVideoTransformer3DModelPacked):
    with torch.device("meta"):
        theirs = gpu.HunyuanVideoFramepackTransformer3DModel.from_config(transformer.config)
    theirs.load_state_dict(transformer.state_dict(), assign=True)
    card = gpu.Card(small=True)
    setting = gpu.Setting(card, transformer.config, 64, 96, 2)
    made = [setting.sample(t, card, 0.0) for t in (transformer, gpu.as_diffusers(theirs.eval()))]
    assert made[0].equal(made[1])


def test_the_command_writes_its_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    report = tmp_path / "performance.md"
    arguments = ["gpu", "--small", "--sizes", "64x64", "--windows", "1", "2", "--rounds", "1"]
    monkeypatch.setattr("sys.argv", [*arguments, "--output", str(report)])
    gpu.main()
    text = report.read_text()
    assert "| 64x64 | 1 |" in text
    assert "| 64x64 | 2 |" in text
    assert "| sampling, ours |" in text
    assert "| what beta adds to a step, of it |" in text
