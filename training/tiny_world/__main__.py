"""Train the small model: `python -m training.tiny_world --help`, or on several GPUs
`torchrun --nproc-per-node N -m training.tiny_world ...`."""

import argparse
import json
import logging
import platform
import sys
import time
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKLHunyuanVideo

from diffusers_helper.hunyuan import vae_decode
from diffusers_helper.models.hunyuan_video_packed import HunyuanVideoTransformer3DModelPacked
from training.tiny_world import together
from training.tiny_world.captions import caption
from training.tiny_world.config import MINIATURE_TRAINING, TrainingConfig
from training.tiny_world.data import Clips, clip_frames, encode_clips
from training.tiny_world.flow import distil_guidance, train_flow
from training.tiny_world.loop import Interrupted
from training.tiny_world.model import build, save
from training.tiny_world.vae import (
    fit_latent_rgb,
    normalise_latents,
    silence_unused,
    train_vae,
    vae_steps,
)
from training.tiny_world.world import Scene, render, sample_scene, subject_box, truth

logger = logging.getLogger(__name__)

RESOLUTION = 128
STAGES = ("vae", "flow", "distil")
_STATISTICS_CLIPS = 64
_VOCABULARY_CAPTIONS = 4000


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns 0 when all asked for is done, 3 when time was up before."""
    parser = _parser()
    options = parser.parse_args(arguments)
    config = replace(
        MINIATURE_TRAINING if options.miniature else TrainingConfig(), **dict(options.set)
    )
    together.join()
    try:
        if config.batch % together.count():
            parser.error(f"{together.count()} processes cannot share a batch of {config.batch}")
        options.output.mkdir(parents=True, exist_ok=True)
        if together.number() == 0:
            _log_to(options.output / "log.txt")
        run = Run(options.output, config, options.vae, time.monotonic() + 60 * options.minutes)
        for stage in STAGES[: STAGES.index(options.until) + 1]:
            run.stage(stage)
    except Interrupted as interruption:
        logger.info("Time is up in %s; the same command goes on from here", interruption)
        return 3
    finally:
        together.leave()
    return 0


def _log_to(file: Path) -> None:
    logging.basicConfig(
        level=logging.INFO,
        format="%(asctime)s %(message)s",
        handlers=[logging.StreamHandler(), logging.FileHandler(file)],
    )


class Run:
    """A training in a folder; each stage is done once, by all processes, and the first writes.

    Args:
        folder: of the training.
        config: see `TrainingConfig`.
        vae: folder of a training or of a model to take the VAE from.
        deadline: by `time.monotonic`, after which a stage writes its checkpoint and stops.
    """

    def __init__(
        self, folder: Path, config: TrainingConfig, vae: Path | None, deadline: float
    ) -> None:
        self.folder = folder
        self.config = config
        self._vae = vae
        self._deadline = deadline
        on_gpu = torch.cuda.is_available()
        # By its number, since other threads have a current device of their own.
        number = torch.cuda.current_device() if on_gpu else None
        self._device = torch.device("cuda" if on_gpu else "cpu", number)
        self._facts_file = folder / "facts.json"
        if together.number() == 0 and not self._facts_file.exists():
            machine = {
                "device": torch.cuda.get_device_name() if on_gpu else platform.machine(),
                "processes": together.count(),
                "torch": torch.__version__,
            }
            self._note("config", asdict(config))
            self._note("machine", machine)
        together.wait()

    def stage(self, name: str) -> None:
        """Run a stage unless it is done.

        Raises:
            Interrupted: at the deadline.
        """
        known = self.facts()
        if name in known:
            return
        began = time.monotonic()
        train = {"vae": self._train_vae, "flow": self._train_flow, "distil": self._distil}[name]
        try:
            facts = train()
        finally:
            spent = known.get("seconds", {})
            spent[name] = round(spent.get(name, 0.0) + time.monotonic() - began, 1)
            self._note("seconds", spent)
        self._note(name, facts)
        together.wait()
        logger.info("Stage %s is done: %s", name, facts)

    def facts(self) -> dict[str, Any]:
        """What is known of the training: its config and machine, the seconds spent on each stage,
        and each finished stage by name."""
        return json.loads(self._facts_file.read_text())

    def _note(self, name: str, value: dict[str, Any]) -> None:
        if together.number() == 0:
            known = self.facts() if self._facts_file.exists() else {}
            self._facts_file.write_text(json.dumps(known | {name: value}, indent=1) + "\n")

    def _build(self) -> dict[str, Any]:
        """Components with new weights; the same tokenizers for every seed."""
        captions = (caption(sample_scene(i), i) for i in range(_VOCABULARY_CAPTIONS))
        return build(self.config.model, self.config.seed, captions)

    def _load(self, folder: Path | None) -> dict[str, Any]:
        """Components, with the trained VAE, and the other networks from `folder` if any."""
        components = self._build()
        half = torch.float16 if self._device.type == "cuda" else torch.float32
        components["vae"] = AutoencoderKLHunyuanVideo.from_pretrained(
            self.folder / "vae", torch_dtype=half
        ).to(self._device)
        if folder is not None:
            for name in ("transformer", "text_encoder", "text_encoder_2", "image_encoder"):
                components[name] = type(components[name]).from_pretrained(folder / name)
        return components

    def _train_vae(self) -> dict[str, Any]:
        checkpoint = self.folder / "vae.pt"
        if self._vae is None:
            vae = self._build()["vae"]
            losses = train_vae(vae, self.config, self._device, checkpoint, self._deadline)
            known = {"losses": losses, "steps": vae_steps(self.config)}
            normalise_latents(vae, *self._latent_statistics(vae))
        else:
            vae = AutoencoderKLHunyuanVideo.from_pretrained(self._vae / "vae")
            silence_unused(vae)
            facts = self._vae / "facts.json"
            known = json.loads(facts.read_text())["vae"] if facts.exists() else {}
            known["from"] = self._vae.name
        if together.number() == 0:
            vae.to(torch.float16).save_pretrained(self.folder / "vae")
            checkpoint.unlink(missing_ok=True)
        together.wait()
        quality, latent_rgb = self._judge_vae(self._load(None)["vae"])
        if together.number() == 0:
            (self.folder / "latent_rgb.json").write_text(json.dumps(latent_rgb.tolist()))
        return known | quality

    def _statistics_scenes(self) -> list[list[Scene]]:
        """Scenes that are in no training, by those to encode at once."""
        count = min(_STATISTICS_CLIPS, self.config.clips)
        last = self.config.unseen_seed - 1
        scenes = [sample_scene(last - i, size=(128, 128)) for i in range(count)]
        return [scenes[i : i + 8] for i in range(0, count, 8)]

    @torch.no_grad()
    def _latent_statistics(self, vae: AutoencoderKLHunyuanVideo) -> tuple[torch.Tensor, ...]:
        """Mean and deviation of each channel of unscaled latents."""
        frames = clip_frames(1, self.config.window)
        groups = self._statistics_scenes()
        scaled = torch.cat([encode_clips(vae, g, frames, self._device)[0] for g in groups])
        latents, dims = scaled / vae.config.scaling_factor, (0, 2, 3, 4)
        return latents.mean(dims), latents.std(dims)

    @torch.no_grad()
    def _judge_vae(self, vae: AutoencoderKLHunyuanVideo) -> tuple[dict[str, float], torch.Tensor]:
        """PSNR in dB, of whole frames and around subjects, and the preview's colours."""
        frames = clip_frames(1, self.config.window)
        latents, colours, errors, subject_errors = [], [], [], []
        for group in self._statistics_scenes():
            some, _ = encode_clips(vae, group, frames, self._device)
            values = truth(group, frames)
            pixels = render(group, values, self._device).float() / 255
            decoded = vae_decode(some, vae).float()
            decoded = (decoded * 0.5 + 0.5).clamp(0, 1)
            squares = (decoded - pixels).square().mean(dim=1)
            subject = subject_box(group, values).to(squares)
            errors.append(squares.mean(dim=(1, 2, 3)))
            subject_errors.append((squares * subject).sum((1, 2, 3)) / subject.sum((1, 2, 3)))
            latents.append(some)
            # The last frame of each latent frame, as the first has only one.
            colours.append(F.avg_pool3d(pixels[:, :, ::4], (1, 8, 8)))
        quality = {
            name: float((-10 * torch.cat(some).log10()).mean())
            for name, some in (("psnr", errors), ("subject_psnr", subject_errors))
        }
        return quality, fit_latent_rgb(torch.cat(latents), torch.cat(colours))

    def _train_flow(self) -> dict[str, Any]:
        components = self._load(None)
        clips = self._clips(components)
        checkpoint = self.folder / "flow.pt"
        loss = train_flow(components, clips, self.config, self._device, checkpoint, self._deadline)
        self._save(components, "teacher")
        checkpoint.unlink(missing_ok=True)
        return {"loss": loss}

    def _distil(self) -> dict[str, Any]:
        components = self._load(self.folder / "teacher")
        clips = self._clips(components)
        student = HunyuanVideoTransformer3DModelPacked.from_config(components["transformer"].config)
        checkpoint = self.folder / "distil.pt"
        loss = distil_guidance(
            components, student, clips, self.config, self._device, checkpoint, self._deadline
        )
        self._save(components | {"transformer": student}, "student")
        checkpoint.unlink(missing_ok=True)
        return {"loss": loss}

    def _clips(self, components: dict[str, Any]) -> Clips:
        return Clips(components, self.config, self._device, self.folder / "clips")

    def _save(self, components: dict[str, Any], name: str) -> None:
        if together.number() > 0:
            return
        save(
            components,
            self.folder / name,
            RESOLUTION,
            {
                "gs": self.config.recommended_scale,
                "total_second_length": self.config.recommended_seconds,
                # Figures are measured without.
                "use_teacache": False,
            },
            self.config.notice,
            torch.tensor(json.loads((self.folder / "latent_rgb.json").read_text())),
        )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m training.tiny_world",
        description="Train the small model, on a GPU if there is one. Run it again to go on.",
    )
    parser.add_argument("--output", type=Path, required=True, help="folder of the training")
    parser.add_argument("--until", choices=STAGES, default=STAGES[-1], help="last stage to run")
    parser.add_argument(
        "--vae", type=Path, metavar="DIR", help="take the VAE of the training or model in DIR"
    )
    parser.add_argument(
        "--minutes", type=float, default=1e6, help="stop after these, with a checkpoint"
    )
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        type=_setting,
        metavar="NAME=VALUE",
        help="a number of TrainingConfig, such as seed=1 or still_share=0",
    )
    parser.add_argument(
        "--miniature", action="store_true", help="every stage in seconds, learning nothing"
    )
    return parser


def _setting(text: str) -> tuple[str, float]:
    name, equals, value = text.partition("=")
    kinds = {f.name: f.type for f in fields(TrainingConfig) if f.type in (int, float)}
    if not equals or name not in kinds:
        raise argparse.ArgumentTypeError(f"must set one of {', '.join(kinds)}, got {text!r}")
    try:
        return name, kinds[name](value)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"must be a number, got {text!r}") from error


if __name__ == "__main__":
    sys.exit(main())
