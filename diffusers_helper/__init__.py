"""FramePack with Step-Adaptive CFG: an image and a prompt become a long video."""

__version__ = "0.1.0"
