"""Errors that people read."""

import errno

import torch


class UserError(Exception):
    """Something that the user caused or can act on; its message is a sentence for them."""


class SettingsError(UserError, ValueError):
    """A setting is out of range."""


class PromptError(SettingsError):
    """A prompt's times are not written as they must be."""


class WeightsError(UserError):
    """A checkpoint is missing, incomplete or damaged."""


class ImageError(UserError):
    """The input image is missing or cannot be used."""


class NonFiniteError(UserError):
    """The model returned numbers that are no picture."""


def explain(error: BaseException, log: str) -> str:
    """One sentence on an error, with what to do about it.

    Args:
        error: what was raised.
        log: where the details are.
    """
    if isinstance(error, UserError):
        return str(error)
    if isinstance(error, torch.OutOfMemoryError):
        return (
            "The GPU ran out of memory: raise GPU Inference Preserved Memory, close other programs "
            "that use the GPU, or choose a shorter latent window."
        )
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        return "The disk is full: free some space, or choose another output folder."
    if isinstance(error, OSError) and error.filename is not None:
        return f"This file or folder cannot be used: {error.filename} ({error.strerror})."
    return (
        f"Something unexpected went wrong ({type(error).__name__}: {error}); details are in {log}."
    )
