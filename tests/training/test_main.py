import json
from pathlib import Path

import pytest
import torch

from diffusers_helper.models import load_models
from training.tiny_world.__main__ import main


def test_all_stages_end_in_a_model_that_loads(tmp_path: Path, capsys: pytest.CaptureFixture):
    run = tmp_path / "run"
    assert main(["--output", str(run), "--miniature", "--until", "flow"]) == 0
    assert not (run / "student").exists()
    assert main(["--output", str(run), "--miniature"]) == 0
    facts = json.loads((run / "facts.json").read_text())
    assert facts["seconds"].keys() == {"vae", "flow", "distil"} <= facts.keys()

    models = load_models("tiny", "cpu", run / "student")
    teacher = load_models("tiny", "cpu", run / "teacher")
    assert models.settings == {"gs": 5.0, "total_second_length": 2.0, "use_teacache": False}
    assert models.latent_rgb.shape == (17, 3)
    differing = [
        name
        for name, x in models.transformer.state_dict().items()
        if not torch.equal(x, teacher.transformer.state_dict()[name])
    ]
    assert any("guidance_embedder" in name for name in differing)

    # Done is done; another training takes the VAE over.
    written = (run / "facts.json").read_text()
    assert main(["--output", str(run), "--miniature"]) == 0
    assert (run / "facts.json").read_text() == written
    other = tmp_path / "other"
    arguments = ["--output", str(other), "--miniature", "--vae", str(run), "--until", "vae"]
    assert main([*arguments, "--set", "seed=2"]) == 0
    known = json.loads((other / "facts.json").read_text())
    assert known["config"]["seed"] == 2
    assert known["vae"] == json.loads(written)["vae"] | {"from": "run"}
    name = "vae/diffusion_pytorch_model.safetensors"
    assert (other / name).read_bytes() == (run / name).read_bytes()


@pytest.mark.parametrize("setting", ["seeds=1", "seed", "seed=one", "model=3"])
def test_settings_are_checked(setting: str, tmp_path: Path, capsys: pytest.CaptureFixture):
    with pytest.raises(SystemExit):
        main(["--output", str(tmp_path), "--set", setting])
    assert setting in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
