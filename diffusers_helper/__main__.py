"""Make a video from the command line: `python -m diffusers_helper --help`."""

import argparse
import logging
import sys
import threading
from contextlib import nullcontext
from dataclasses import Field, fields
from pathlib import Path
from typing import Any

from tqdm import tqdm

from diffusers_helper.context_parallel import Crew, follows, launched
from diffusers_helper.errors import SettingsError, UserError, explain
from diffusers_helper.generation import Progress, generate, open_image
from diffusers_helper.models import (
    MODEL_NAMES,
    choose_model,
    load_models,
    model_description,
)
from diffusers_helper.sections import SectionOrder
from diffusers_helper.settings import GenerationSettings

_ORDERS = {"f1": SectionOrder.FORWARD, "framepack": SectionOrder.INVERTED}
_SHORTER = {"n_prompt": "negative-prompt", "total_second_length": "seconds"}


def main(arguments: list[str] | None = None) -> int:
    """Run the command and return its exit status: 0 done, 1 failed, 2 usage, 130 interrupted."""
    options = _parser().parse_args(arguments)
    level = logging.ERROR if follows() else logging.WARNING
    logging.basicConfig(level=level, format="%(levelname)s: %(message)s")
    try:
        with Crew() if launched() else nullcontext() as crew:
            return _run(options, crew)
    except KeyboardInterrupt:
        return 130
    except (UserError, OSError, RuntimeError) as error:
        if options.verbose:
            raise
        if not (isinstance(error, UserError) and follows()):  # the first process says the same
            print(f"error: {explain(error, 'the output of --verbose')}", file=sys.stderr)  # noqa: T201
        return 2 if isinstance(error, SettingsError) else 1


def _run(options: argparse.Namespace, crew: Crew | None) -> int:
    model = choose_model(options.model, real="f1")
    names = [f.name for f in fields(GenerationSettings)]
    given = {name: value for name, value in vars(options).items() if name in names}
    settings = GenerationSettings(**model_description(model, options.weights).settings | given)
    image = open_image(options.image)
    if options.output.is_dir():
        raise UserError(f"--output must name a file, {options.output} is a folder.")
    order = _ORDERS[options.demo or ("framepack" if model == "framepack" else "f1")]
    leads = crew is None or crew.leads
    frames = 0
    try:
        with tqdm(unit="step", disable=None if leads else True) as bar:
            models = load_models(
                model, weights=options.weights, report=bar.set_description, fp8=settings.fp8
            )
            if crew is not None:
                crew.share(models.transformer)
            if not leads:
                return 0
            for event in generate(
                models, image, settings, order, options.output, stop=threading.Event()
            ):
                if isinstance(event, Progress):
                    bar.total = event.sections * settings.steps
                    bar.n = max(event.section - 1, 0) * settings.steps + event.step
                    bar.set_description(event.stage)
                else:
                    frames = event.frames
    finally:
        if frames:  # also after an error or Ctrl-C: what was finished
            print(f"{options.output} ({frames} frames)")  # noqa: T201
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m diffusers_helper",
        description="FramePack with Step-Adaptive CFG: an image and a prompt become a video.",
        epilog="The tiny model has defaults of its own for some settings, see its framepack.json. "
        "Several GPUs of one machine share a video: torchrun --nproc-per-node 2 -m "
        "diffusers_helper ...",
    )
    parser.add_argument("--image", type=Path, required=True, help="to start from")
    parser.add_argument("--output", type=Path, required=True, help="the MP4 to write")
    parser.add_argument(
        "--model",
        choices=("auto", *MODEL_NAMES),
        default="auto",
        help="auto: f1 on a CUDA GPU, else tiny",
    )
    parser.add_argument(
        "--demo", choices=tuple(_ORDERS), help="order of sections; default: the model's own"
    )
    parser.add_argument("--weights", type=Path, metavar="DIR", help="local copy of the weights")
    parser.add_argument("--verbose", action="store_true", help="show where an error came from")
    for setting in fields(GenerationSettings):
        name = _SHORTER.get(setting.name, setting.name.replace("_", "-"))
        parser.add_argument(
            f"--{name}",
            dest=setting.name,
            default=argparse.SUPPRESS,  # so that a model's recommendation can take its place
            help=f"{setting.metadata['help'].replace('%', '%%')} (default: {setting.default})",
            **_kind(setting),
        )
    return parser


def _kind(setting: Field) -> dict[str, Any]:
    if setting.type is bool:
        return {"action": argparse.BooleanOptionalAction}
    if setting.metadata["choices"]:
        return {"choices": setting.metadata["choices"]}
    return {"type": setting.type, "metavar": setting.type.__name__.upper()}


if __name__ == "__main__":
    sys.exit(main())
