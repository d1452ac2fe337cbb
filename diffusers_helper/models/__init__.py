"""The networks, and how they are loaded."""

from diffusers_helper.models.loading import (
    MODEL_NAMES,
    ModelDescription,
    Models,
    choose_model,
    default_device,
    load_models,
    model_description,
)

__all__ = [
    "MODEL_NAMES",
    "ModelDescription",
    "Models",
    "choose_model",
    "default_device",
    "load_models",
    "model_description",
]
