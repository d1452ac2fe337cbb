"""FramePack: the video grows from its end back to the image."""

from diffusers_helper.gradio.app import Demo
from diffusers_helper.sections import SectionOrder

demo = Demo(title="FramePack", model="framepack", order=SectionOrder.INVERTED)
worker, process = demo.worker, demo.process

if __name__ == "__main__":
    demo.main()
