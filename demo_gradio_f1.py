"""FramePack-F1: the video grows from the image on."""

from diffusers_helper.gradio.app import Demo
from diffusers_helper.sections import SectionOrder

demo = Demo(title="FramePack-F1", model="f1", order=SectionOrder.FORWARD)
worker, process = demo.worker, demo.process

if __name__ == "__main__":
    demo.main()
