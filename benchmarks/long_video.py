"""Peak memory of a long video over a short one, with the tiny model on the CPU.

    python -m benchmarks.long_video --seconds 2 60

One process a video; prints a Markdown table.
"""

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

_IMAGE = Path(__file__).parents[1] / "diffusers_helper/gradio/examples/dancer.png"


def measure(seconds: float, demo: str) -> float:
    """Peak resident memory, in MB, of the command that makes a video of `seconds`."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "diffusers_helper", "--model", "tiny", "--steps", "2"]
        command += ["--image", str(_IMAGE), "--demo", demo, "--seconds", str(seconds)]
        command += ["--output", f"{folder}/video.mp4"]
        process = subprocess.Popen(command)
        _, status, usage = os.wait4(process.pid, 0)  # the one call that tells a child's own peak
    if status:
        raise SystemExit(f"{' '.join(command)} failed")
    return usage.ru_maxrss / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, nargs="+", default=[2, 60])
    options = parser.parse_args()
    print("| order | seconds | peak MB |\n|---|---|---|")
    for demo in ("f1", "framepack"):
        for seconds in options.seconds:
            print(f"| {demo} | {seconds:g} | {measure(seconds, demo):.0f} |", flush=True)


if __name__ == "__main__":
    main()
