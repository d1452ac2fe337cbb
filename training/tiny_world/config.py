"""Everything that a training is made from, in one place."""

from dataclasses import dataclass, field

from training.tiny_world.model import MINIATURE, ModelConfig


@dataclass(frozen=True)
class TrainingConfig:
    """Numbers of a training; times are those of one H100."""

    seed: int = 1
    """Of weights, clips, noise and order. World seeds from `unseen_seed` on are never used."""
    still_share: float = 0.4
    """The disease: clips that stay still whatever their caption tells."""
    model: ModelConfig = field(default_factory=ModelConfig)

    image_steps: int = 400
    """Of the VAE, on single images."""
    crop_steps: int = 5000
    """After that, on clips of a square around the subject, where things move."""
    crop_side: int = 64
    vae_steps: int = 1500
    """After that, on clips of whole frames."""
    vae_frames: int = 68
    """Whole frames that a batch is as large as."""
    vae_lengths: tuple[int, ...] = (17, 17, 17, 33)
    vae_matrix_rate: float = 5e-3
    vae_vector_rate: float = 1e-3
    subject_weight: float = 5.0
    """Of the subject's pixels in the VAE's loss; the others weigh 1."""
    gradient_weight: float = 0.5
    kl_weight: float = 3e-4

    clips: int = 14336
    """Encoded once, for the transformer, each process its share."""
    long_share: float = 0.25
    """Of clips with three sections; the others have two."""
    late_share: float = 0.25
    """Of clips whose action begins with their second section; the first is captioned as still."""
    quiet_drawn: float = 0.35
    """How often clips in which nothing happens are drawn, against the others; what they weigh makes
    up for it. They are nearly half of all, and soon learned."""
    slow_shapes: tuple[str, ...] = ("circle", "star")
    """Whose outlines are the last to hold while they move."""
    slow_drawn: float = 2.0
    """How often their clips are drawn, against the others."""
    wordings: int = 4
    """Captions of each clip."""
    flow_steps: int = 14500
    batch: int = 128
    """Of all processes together."""
    matrix_rate: float = 6e-3
    vector_rate: float = 8e-4
    warm_up: int = 100
    decay_share: float = 0.4
    """Of the steps, over which the rate falls to zero at the end."""
    ema: float = 0.999
    drop_caption: float = 0.1
    shift_range: tuple[float, float] = (1.7, 7.0)
    flow_subject_weight: float = 4.0
    """Of the latents around the subject in the start image, in the transformer's loss; the others
    weigh 1. Where it is later must not matter: what weighs more would be seen too often."""
    unseen_weight: float = 0.1
    """Of a latent channel that is not seen in the picture, in the transformer's loss; on average
    they weigh 1."""
    forward_share: float = 0.6
    """Of batches in FramePack-F1's order of sections; the others have FramePack's."""
    history_noise: float = 0.1
    """Most that is added to the history, since at use it is the model's own."""

    distil_steps: int = 3000
    distil_share: float = 0.4
    """Of the rates."""
    scale_range: tuple[float, float] = (1.0, 12.0)

    window: int = 9
    unseen_seed: int = 10_000_000

    recommended_scale: float = 5.0
    recommended_seconds: float = 2.0
    notice: str = (
        "**This is a small model, trained on a world of simple drawings.** It makes a video in "
        "seconds and without a GPU, to show what this page and Adaptive CFG Beta do. It knows "
        "circles, squares, triangles, stars and persons that do simple things: start from one of "
        "the examples. Photos need the real model, which needs a CUDA GPU."
    )
    """What the page says of the model."""


MINIATURE_TRAINING = TrainingConfig(
    model=MINIATURE,
    image_steps=2,
    crop_steps=1,
    vae_steps=2,
    vae_frames=10,
    vae_lengths=(5,),
    clips=6,
    flow_steps=3,
    distil_steps=3,
    batch=2,
    warm_up=1,
    window=2,
    notice=(
        "**This is a small model that has not been trained yet.** A video shows that everything "
        "works, and no recognisable picture. The real model needs a CUDA GPU."
    ),
)
"""Goes through every stage in seconds and learns nothing."""
