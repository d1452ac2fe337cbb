"""Encoded clips with their captions, and batches of sections of them."""

import logging
import random
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from diffusers.pipelines.hunyuan_video.pipeline_hunyuan_video import DEFAULT_PROMPT_TEMPLATE

from diffusers_helper.pipelines.k_diffusion_hunyuan import LATENT_FRAME
from diffusers_helper.sections import FPS, LatentHistory, Section, SectionOrder, plan_sections
from training.tiny_world import together
from training.tiny_world.captions import caption
from training.tiny_world.config import TrainingConfig
from training.tiny_world.vae import visibility
from training.tiny_world.world import SIZES, Scene, render, sample_scene, subject_box, truth

logger = logging.getLogger(__name__)

_ENCODED_AT_ONCE = 64
_LOOKED_AT = 16
"""Start images by which it is measured what is seen."""


class Text:
    """Captions as tokens, and tokens as what the transformer reads; all of a batch are of one
    length, so that it needs no mask."""

    def __init__(self, components: dict[str, Any], device: torch.device) -> None:
        self._tokenizer = components["tokenizer"]
        self._tokenizer_2 = components["tokenizer_2"]
        self._encoder = components["text_encoder"]
        self._encoder_2 = components["text_encoder_2"]
        self._template = DEFAULT_PROMPT_TEMPLATE["template"]
        beginning = self._template[: self._template.index("{}")]
        self._before = torch.tensor([self._tokenizer(beginning).input_ids], device=device)

    def tokens(self, captions: list[str]) -> list[tuple[list[int], list[int]]]:
        """Of each caption Llama's tokens, after the template's beginning, and CLIP's."""
        llama = self._tokenizer([self._template.format(c) for c in captions]).input_ids
        clip = self._tokenizer_2(captions, padding="max_length", truncation=True).input_ids
        start = self._before.shape[1]
        return [(a[start:], b) for a, b in zip(llama, clip, strict=True)]

    def encode(self, llama: torch.Tensor, clip: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Tokens, shape [batch, tokens] each, to text of shape [batch, tokens, dim] and pooled
        text of shape [batch, dim]; see `hunyuan.encode_prompt_conds`."""
        before = self._before.expand(len(llama), -1)
        hidden = self._encoder(
            input_ids=torch.cat([before, llama], dim=1), output_hidden_states=True
        ).hidden_states[-3]
        return hidden[:, before.shape[1] :], self._encoder_2(clip).pooler_output


@dataclass(frozen=True)
class Batch:
    """Sections with their conditions."""

    target: torch.Tensor
    """Clean latents, shape [batch, 16, window, height, width]."""
    context: dict[str, torch.Tensor]
    """What `LatentHistory.context` says of them."""
    thumbnails: torch.Tensor
    """Start images as the image encoder takes them, shape [batch, 3, side, side]."""
    llama: torch.Tensor
    clip: torch.Tensor
    """Tokens, shape [batch, tokens]."""
    weight: torch.Tensor
    """Of latents in the loss, shape [batch, 16, 1, height, width]; 1 on average."""


_Caption = tuple[int, list[int], list[int]]
"""Clip, Llama's tokens, CLIP's tokens."""


@dataclass(frozen=True)
class _Group:
    """Clips of one size and length."""

    sections: int
    latents: torch.Tensor
    """Shape [clips, 16, latent frames, height, width]."""
    thumbnails: torch.Tensor
    weights: torch.Tensor
    """Of each place in the loss, shape [clips, 1, 1, height, width]; 1 on average of each clip."""
    quiet: list[bool]
    """Of each clip, whether nothing happens in it."""
    slow: list[bool]
    """Of each clip, whether its subject has one of `TrainingConfig.slow_shapes`."""
    captions: dict[bool, dict[int, list[_Caption]]]
    """For first sections (True) and for later ones, by the number of Llama's tokens."""


class Draws:
    """Draws captions of one length, so that a batch needs no padding.

    Args:
        captions: by length.
        chances: of each clip, against the others.
        quiet: see `_Group`.
        quiet_drawn: see `TrainingConfig`.
    """

    def __init__(
        self,
        captions: dict[int, list[_Caption]],
        chances: Sequence[float],
        quiet: Sequence[bool],
        quiet_drawn: float,
    ) -> None:
        self._captions = captions
        self._shares = [quiet_drawn if is_quiet else 1.0 for is_quiet in quiet]
        self._chances = {
            length: [chances[clip] * self._shares[clip] for clip, _, _ in some]
            for length, some in captions.items()
        }
        self._totals = [sum(some) for some in self._chances.values()]
        of_all = [chances[clip] for some in captions.values() for clip, _, _ in some]
        self._mean = sum(self._totals) / sum(of_all)

    def length(self, rng: random.Random) -> int:
        """One that there are captions of."""
        return rng.choices(list(self._captions), self._totals)[0]

    def draw(
        self, rng: random.Random, length: int, count: int
    ) -> tuple[list[_Caption], list[float]]:
        """Captions, and how much each must weigh for means to be as if quiet clips were drawn like
        the others."""
        drawn = rng.choices(self._captions[length], self._chances[length], k=count)
        return drawn, [self._mean / self._shares[clip] for clip, _, _ in drawn]


class Clips:
    """Encodes `config.clips` clips and draws batches of sections of them.

    Of several processes each encodes its share, and all draw from all. A step's batches are of one
    shape everywhere, so that no process waits for another, and of sections drawn by themselves.

    Args:
        components: by their attribute in `Models`, on `device`; VAE and tokenizers are used.
        config: see `TrainingConfig`.
        device: where latents are kept.
        folder: keeps them for the next time, in a file of each process; made if it is not there.
    """

    def __init__(
        self, components: dict[str, Any], config: TrainingConfig, device: torch.device, folder: Path
    ) -> None:
        self._config = config
        self._device = device
        self._text = Text(components, device)
        self._count = config.batch // together.count()
        folder.mkdir(exist_ok=True)
        files = [folder / f"{i + 1} of {together.count()}.pt" for i in range(together.count())]
        own = files[together.number()]
        if not own.exists():
            torch.save(self._encode_share(components), own)
        together.wait()
        # Our own files, and more than tensors.
        shares = [torch.load(file, device, weights_only=False) for file in files]
        kinds = sorted({kind for share in shares for kind in share})
        self._groups = [
            _joined([share[kind] for share in shares if kind in share]) for kind in kinds
        ]
        unseen = config.unseen_weight
        seen = visibility(components["vae"], self._groups[0].latents[:_LOOKED_AT, :, :1])
        self._channels = (unseen + (1 - unseen) * seen).view(-1, 1, 1, 1)
        self._draws = [
            {
                is_first: Draws(
                    by_length,
                    [config.slow_drawn if slow else 1.0 for slow in group.slow],
                    group.quiet,
                    config.quiet_drawn,
                )
                for is_first, by_length in group.captions.items()
            }
            for group in self._groups
        ]

    def _encode_share(self, components: dict[str, Any]) -> dict[tuple, _Group]:
        config = self._config
        rng = random.Random(config.seed)
        kinds: dict[tuple, list[int]] = defaultdict(list)
        for _ in range(config.clips):
            size = rng.choices(SIZES, (3, 1, 1))[0]
            sections = 3 if rng.random() < config.long_share else 2
            kinds[size, sections].append(rng.randrange(config.unseen_seed))
        shares = {
            kind: seeds[together.number() :: together.count()]
            for kind, seeds in sorted(kinds.items())
        }
        return {
            kind: self._encode(*kind, seeds, components) for kind, seeds in shares.items() if seeds
        }

    @torch.no_grad()
    def _encode(
        self, size: tuple[int, int], sections: int, seeds: list[int], components: dict[str, Any]
    ) -> _Group:
        config = self._config
        section = LATENT_FRAME * config.window / FPS
        late = [random.Random(f"{seed} late").random() < config.late_share for seed in seeds]
        scenes = [
            sample_scene(
                seed, size=size, still_share=config.still_share, quiet=section if is_late else 0.0
            )
            for seed, is_late in zip(seeds, late, strict=True)
        ]
        side = config.model.image_side
        latents, thumbnails, weights = [], [], []
        for i in range(0, len(scenes), _ENCODED_AT_ONCE):
            some = scenes[i : i + _ENCODED_AT_ONCE]
            encoded, first = encode_clips(
                components["vae"], some, clip_frames(sections, config.window), self._device
            )
            latents.append(encoded)
            small = F.interpolate(first, (side, side), mode="bicubic", antialias=True)
            thumbnails.append(small.clamp(-1, 1).to(encoded.dtype))
            weights.append(_weights(some, config.flow_subject_weight, encoded))
        captions = {True: defaultdict(list), False: defaultdict(list)}
        for i, (scene, is_late) in enumerate(zip(scenes, late, strict=True)):
            told = {False: scene, True: replace(scene, action="still") if is_late else scene}
            for is_first, its_scene in told.items():
                wordings = [caption(its_scene, seed) for seed in range(config.wordings)]
                for llama, clip in self._text.tokens(wordings):
                    captions[is_first][len(llama)].append((i, llama, clip))
        logger.info("Encoded %d clips of %d sections at %s", len(scenes), sections, size)
        quiet = [not scene.happens or scene.action == "still" for scene in scenes]
        slow = [scene.shape in config.slow_shapes for scene in scenes]
        tensors = torch.cat(latents), torch.cat(thumbnails), torch.cat(weights)
        return _Group(sections, *tensors, quiet, slow, captions)

    def batch(self, step: int) -> Batch:
        """This process's batch of a step: always the same for the same step."""
        config = self._config
        rng = random.Random(f"{config.seed} {step}")
        number = rng.choices(range(len(self._groups)), [len(g.latents) for g in self._groups])[0]
        group = self._groups[number]
        forward = rng.random() < config.forward_share
        order = SectionOrder.FORWARD if forward else SectionOrder.INVERTED
        count = group.sections
        if order is SectionOrder.INVERTED and count == 2:
            count = rng.choice((1, 2, 2))
        sections = plan_sections(order, count * config.window * LATENT_FRAME / FPS, config.window)
        now = rng.choice(sections)

        draws = self._draws[number][now.start == 0]
        length = draws.length(rng)
        own = random.Random(f"{config.seed} {step} {together.number()}")
        chosen, weights = draws.draw(own, length, self._count)
        clips = self._index([clip for clip, _, _ in chosen])
        latents = group.latents[clips]
        history = LatentHistory(order, config.window, latents[:, :, :1])
        for section in sections[: now.number - 1]:
            history.add(section, _of_section(latents, section, config.window))
        return Batch(
            target=_of_section(latents, now, config.window),
            context={n: x.to(self._device) for n, x in history.context(now).items()},
            thumbnails=group.thumbnails[clips],
            llama=self._index([llama for _, llama, _ in chosen]),
            clip=self._index([clip for _, _, clip in chosen]),
            weight=torch.tensor(weights, device=self._device).view(-1, 1, 1, 1, 1)
            * group.weights[clips]
            * self._channels,
        )

    def no_caption(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Llama's and CLIP's tokens of an empty prompt, shape [batch, tokens]."""
        ((llama, clip),) = self._text.tokens([""])
        return self._index([llama] * self._count), self._index([clip] * self._count)

    def _index(self, numbers: list) -> torch.Tensor:
        return torch.tensor(numbers, device=self._device)


def _joined(groups: Sequence[_Group]) -> _Group:
    """The same clips as one group."""
    captions = {True: defaultdict(list), False: defaultdict(list)}
    before = 0
    for group in groups:
        for is_first, by_length in group.captions.items():
            for length, some in by_length.items():
                captions[is_first][length] += [(before + clip, *rest) for clip, *rest in some]
        before += len(group.latents)
    return _Group(
        groups[0].sections,
        torch.cat([group.latents for group in groups]),
        torch.cat([group.thumbnails for group in groups]),
        torch.cat([group.weights for group in groups]),
        [quiet for group in groups for quiet in group.quiet],
        [slow for group in groups for slow in group.slow],
        captions,
    )


def clip_frames(sections: int, window: int) -> int:
    """Video frames of a clip of an image and whole sections."""
    return LATENT_FRAME * window * sections + 1


@torch.no_grad()
def encode_clips(
    vae: Any, scenes: list[Scene], frames: int, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    """Render clips and encode them, the first frame by itself as a start image is.

    Returns:
        Scaled latents, shape [clips, 16, latent frames, height, width], and the first frames in
        [-1, 1], shape [clips, 3, 8 height, 8 width].
    """
    pixels = render(scenes, truth(scenes, frames), device).to(vae.dtype) / 127.5 - 1
    latents = vae.encode(pixels).latent_dist.mean
    latents[:, :, :1] = vae.encode(pixels[:, :, :1]).latent_dist.mean
    return latents * vae.config.scaling_factor, pixels[:, :, 0].float()


def _weights(scenes: list[Scene], subject_weight: float, latents: torch.Tensor) -> torch.Tensor:
    """Of each place in the loss, see `_Group`, on the device of their latents."""
    boxes = subject_box(scenes, truth(scenes, 1).to(latents.device)).float()
    weights = 1 + (subject_weight - 1) * F.adaptive_avg_pool2d(boxes, latents.shape[-2:])
    return (weights / weights.mean(dim=(2, 3), keepdim=True)).unsqueeze(1)


def _of_section(latents: torch.Tensor, section: Section, window: int) -> torch.Tensor:
    """The latents that a section makes of a clip, which begins with the image."""
    first = 1 + round(section.start * FPS / LATENT_FRAME)
    return latents[:, :, first : first + window]
