"""Measure Step-Adaptive CFG from the command line: `python -m evaluation --help`."""

import argparse
import logging
import math
import sys
import time
from collections.abc import Iterable
from datetime import timedelta
from pathlib import Path

from accelerate import PartialState

from diffusers_helper.errors import SettingsError, UserError, explain
from diffusers_helper.k_diffusion.low_pass import FRAMES
from diffusers_helper.models import MODEL_NAMES
from diffusers_helper.prompts import is_timed
from diffusers_helper.sections import SectionOrder
from evaluation.arms import plan_levers
from evaluation.images import read_cases
from evaluation.run import Plan, run
from evaluation.summary import write_summary

_ORDERS = {"f1": SectionOrder.FORWARD, "framepack": SectionOrder.INVERTED}
_PATIENCE = timedelta(days=7)
"""Until processes that are done give up on the others."""


def main(arguments: list[str] | None = None) -> int:
    """Run the command and return its exit status: 0 done, 1 failed, 2 usage, 3 time was up before
    it was done, 130 interrupted."""
    began = time.monotonic()
    options = _parser().parse_args(arguments)
    # Processes only wait for each other here, which needs no GPU and lets several share one.
    state = PartialState(cpu=True, timeout=_PATIENCE)
    logging.basicConfig(
        level=logging.INFO if state.is_main_process else logging.WARNING,
        format="%(asctime)s %(message)s",
    )
    try:
        if not (options.summary_only or run(_plan(options, began), options.output, state)):
            return 3
        if state.is_main_process:
            write_summary(options.output)
            print(f"{options.output / 'summary.md'}, {options.output / 'index.html'}")  # noqa: T201
    except KeyboardInterrupt:
        return 130
    except (UserError, OSError, RuntimeError) as error:
        if options.verbose:
            raise
        print(f"error: {explain(error, 'the output of --verbose')}", file=sys.stderr)  # noqa: T201
        return 2 if isinstance(error, SettingsError) else 1
    return 0


def _plan(options: argparse.Namespace, began: float) -> Plan:
    if options.cases is not None and options.model == "tiny":
        raise UserError("--cases are of images, which the small world's model does not know.")
    if options.actions is not None and options.model != "tiny":
        raise UserError("--actions are of the small world, which needs --model tiny.")
    if options.transitions and options.model != "tiny":
        raise UserError("--transitions are of the small world: write timed prompts into --cases.")
    if options.clip_model is not None and options.model == "tiny":
        raise UserError("--clip-model is for images: of the small world the truth is known.")
    cases = None if options.cases is None else read_cases(options.cases)
    timed = options.transitions or any(is_timed(prompt) for *_, prompt in cases or ())
    if options.prompt_gate and not timed:
        raise UserError("--prompt-gate needs prompts that change: --transitions, or timed --cases.")
    return Plan(
        model=options.model,
        weights=options.weights,
        label=options.label or _label(options.model, options.weights),
        order=_ORDERS[options.demo or ("framepack" if options.model == "framepack" else "f1")],
        cases=cases,
        actions=options.actions,
        transitions=options.transitions,
        clip_model=options.clip_model,
        seeds=options.seeds,
        betas=options.betas,
        scales=options.scales,
        cfg=options.cfg,
        controls=options.controls,
        levers=plan_levers(
            options.low_pass,
            options.low_pass_frames,
            options.history_low_pass,
            options.low_pass_sigma,
            options.prompt_gate,
        ),
        combine=options.combine,
        shift=options.shift,
        steps=options.steps,
        seconds=options.seconds,
        batch=options.batch,
        videos=options.videos,
        deadline=math.inf if options.time_limit is None else began + options.time_limit,
    )


def _label(model: str, weights: Path | None) -> str:
    return model if weights is None else "-".join(weights.resolve().parts[-2:])


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m evaluation",
        description="Make and measure videos with Step-Adaptive CFG and with controls. Run it "
        "again to go on where it stopped, or with another --label or setting to add to the same "
        "folder. To spread it over GPUs and machines that share the folder: accelerate launch "
        "--multi_gpu --num_processes N -m evaluation ...",
    )
    parser.add_argument("--output", type=Path, required=True, metavar="DIR")
    parser.add_argument("--model", choices=MODEL_NAMES, default="tiny")
    parser.add_argument("--weights", type=Path, metavar="DIR", help="local copy of the weights")
    parser.add_argument(
        "--label",
        metavar="NAME",
        help="of the model in rows and tables; default: the end of --weights, or --model",
    )
    parser.add_argument(
        "--demo", choices=tuple(_ORDERS), help="order of sections; default: the model's own"
    )
    parser.add_argument(
        "--betas",
        type=_numbers(0, 1),
        default=(0.0, 0.3, 0.5, 0.7, 0.8, 1.0),
        metavar="B,B,...",
        help="in [0, 1]; 0, the baseline, is always among them (default: 0,0.3,0.5,0.7,0.8,1)",
    )
    parser.add_argument(
        "--seeds",
        type=_whole,
        default=32,
        metavar="N",
        help="of each action or image; in the small world each has a scene and a wording of its "
        "own (default: 32)",
    )
    parser.add_argument(
        "--actions",
        type=_actions,
        metavar="A,A,...",
        help="of the small world, or all; default: those of the specification's three cases",
    )
    parser.add_argument(
        "--cases",
        type=Path,
        metavar="FILE",
        help='for the real models: JSON list of {"case", "image", "prompt"}; default: the '
        "specification's three cases with the example images",
    )
    parser.add_argument(
        "--transitions",
        action="store_true",
        help="in the small world: the action after a section in which nothing moves, each by a "
        "prompt of its own; videos of three sections unless --seconds is given",
    )
    parser.add_argument(
        "--clip-model",
        metavar="NAME_OR_DIR",
        help="of transformers' CLIPModel, which measures how --cases with timed prompts change",
    )
    guidance = parser.add_mutually_exclusive_group()
    guidance.add_argument(
        "--scales",
        type=_numbers(1, 32),
        metavar="S,S,...",
        help="bases of distilled guidance; default: the model's recommended scale",
    )
    guidance.add_argument(
        "--cfg",
        type=_numbers(1, 32),
        metavar="S,S,...",
        help="bases of true CFG with a guidance input of 1, for undistilled weights",
    )
    parser.add_argument(
        "--shift",
        type=_number(0.01, 100),
        metavar="X",
        help="of time, such as 7, which the real models run at; default: by the number of tokens",
    )
    parser.add_argument("--steps", type=_whole, metavar="N", help="of a section; default: 25")
    parser.add_argument(
        "--seconds", type=_number(1, 120), metavar="S", help="of a video; default: the model's"
    )
    parser.add_argument(
        "--controls",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="constants at the schedules' means, reversed schedules, a sweep of constants",
    )
    parser.add_argument(
        "--low-pass",
        type=_numbers(0.1, 1),
        default=(),
        metavar="F,F,...",
        help="factors of the start frame's and the last frame's low-pass, each at the bases",
    )
    parser.add_argument(
        "--low-pass-frames",
        type=_frames,
        default=("both",),
        metavar="W,W,...",
        help=f"which of these frames, of {', '.join(FRAMES)} (default: both)",
    )
    parser.add_argument(
        "--history-low-pass",
        type=_numbers(0, 1),
        default=(),
        metavar="H,H,...",
        help="strengths of history's low-pass, each at the bases",
    )
    parser.add_argument(
        "--low-pass-sigma",
        type=_numbers(0, 1),
        default=(0.9,),
        metavar="S,S,...",
        help="noise levels down to which low-passes act (default: 0.9)",
    )
    parser.add_argument(
        "--prompt-gate",
        type=_numbers(0, 1),
        default=(),
        metavar="G,G,...",
        help="strengths of the gate where prompts change, each at the bases",
    )
    parser.add_argument(
        "--combine",
        action="store_true",
        help="levers with every schedule, and with the constant at its mean, besides alone",
    )
    parser.add_argument(
        "--batch",
        type=_whole,
        default=128,
        metavar="N",
        help="videos of the small world at once (default: 128). Noise depends on it: stay with it",
    )
    parser.add_argument(
        "--videos",
        type=int,
        default=2,
        metavar="N",
        help="keep the videos of this many seeds (default: 2)",
    )
    parser.add_argument(
        "--time-limit",
        type=_number(0, math.inf),
        metavar="SECONDS",
        help="begin no batch after these; the exit status is 3 then",
    )
    parser.add_argument(
        "--summary-only", action="store_true", help="of what is in the folder; make no videos"
    )
    parser.add_argument("--verbose", action="store_true", help="show where an error came from")
    return parser


def _number(low: float, high: float):
    def parse(text: str) -> float:
        try:
            number = float(text)
        except ValueError:
            number = math.nan  # which is in no range
        if not low <= number <= high:
            raise argparse.ArgumentTypeError(f"must be in [{low:g}, {high:g}], got {text!r}")
        return number

    return parse


def _numbers(low: float, high: float):
    parse = _number(low, high)
    return lambda text: tuple(parse(part) for part in text.split(","))


def _whole(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number from 1 on, got {text!r}")
    return int(text)


def _frames(text: str) -> tuple[str, ...]:
    return _of(text.split(","), FRAMES)


def _actions(text: str) -> tuple[str, ...]:
    from training.tiny_world.world import ACTIONS

    return _of(ACTIONS if text == "all" else text.split(","), ("all", *ACTIONS))


def _of(words: Iterable[str], known: Iterable[str]) -> tuple[str, ...]:
    for word in words:
        if word not in known:
            raise argparse.ArgumentTypeError(f"must be of {', '.join(known)}, got {word!r}")
    return tuple(words)


if __name__ == "__main__":
    sys.exit(main())
