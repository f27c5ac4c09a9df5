"""The vision tower of a CLIP as a frozen teacher: used in training, never saved, never run at inference."""

import difflib
import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from operator import attrgetter
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    CLIPVisionModelWithProjection,
    PreTrainedConfig,
    PreTrainedModel,
    SiglipVisionModel,
)
from transformers.utils import logging as transformers_logging

from zsseg.layers.model_identity import compute_weights_digest, describe_config

OPEN_CLIP_PREFIX = "open_clip:"
OPEN_CLIP_SCHEMAS = ("hf-hub:", "local-dir:")
TRANSFORMERS_TOWERS = {
    "clip": (CLIPVisionModelWithProjection, "image_embeds"),
    "siglip": (SiglipVisionModel, "pooler_output"),
}
"""By model type: the class of the vision tower, and which of its outputs lies in the joint space."""


class VisionLanguageTeacher:
    """Encodes pictures into the joint space of pictures and texts, without gradients.

    A picture's CLS token, as papers on distillation call it, is its projected embedding in that space.

    Args:
        tower: (N, 3, S, S) normalised pictures → its outputs. It is frozen in place.
        read_embeds: the (N, D) projected embeddings among those outputs.
        image_size: S, height and width of a picture in pixels.
        image_mean: per channel, of pixels in [0, 1].
        image_std: per channel, of pixels in [0, 1].

    Attributes:
        image_size: S.
        embed_dim: D, width of the joint space.
        fill_color: RGB, 8 bits, of what is masked out: the mean, about zero after normalisation.
    """

    def __init__(
        self,
        tower: nn.Module,
        read_embeds: Callable[[Any], Tensor],
        *,
        image_size: int,
        image_mean: Sequence[float],
        image_std: Sequence[float],
    ) -> None:
        self.tower = tower.float().eval().requires_grad_(False)
        self.read_embeds = read_embeds
        self.image_size = image_size
        self.image_mean = tuple(image_mean)
        self.image_std = tuple(image_std)
        red, green, blue = (round(255 * channel) for channel in image_mean)
        self.fill_color = (red, green, blue)
        self.device = torch.device("cpu")
        self.embed_dim = self._encode(torch.zeros(1, image_size, image_size, 3, dtype=torch.uint8)).shape[1]

    @cached_property
    def weights_hash(self) -> str:
        """A digest of all weights, of what is computed with them and of the normalisation before."""
        config = getattr(self.tower, "config", None)
        # Equal weights mean another teacher with another activation, say.
        parts = (
            compute_weights_digest(self.tower),
            describe_config(config) if isinstance(config, PreTrainedConfig) else repr(self.tower),
            repr((self.image_size, self.image_mean, self.image_std)),
        )
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()

    def to(self, device: torch.device | str) -> Self:
        """Move the tower, in place."""
        self.device = torch.device(device)
        self.tower.to(self.device)
        return self

    def encode_images(self, pixels: NDArray[np.uint8] | Tensor, batch_size: int = 64) -> Tensor:
        """Encode pictures that are already of the tower's size.

        Args:
            pixels: (N, S, S, 3) RGB, 8 bits; N may be 0.
            batch_size: pictures that go through the tower at a time.

        Returns:
            (N, D) float32 of unit norm, on the teacher's device, computed in float32 outside autocast.

        Raises:
            ValueError: if the pictures are of another shape or type.
        """
        expected = (self.image_size, self.image_size, 3)
        if tuple(pixels.shape[1:]) != expected or pixels.dtype not in (np.uint8, torch.uint8):
            raise ValueError(
                f"expected pictures (N, {self.image_size}, {self.image_size}, 3) uint8, got "
                f"{tuple(pixels.shape)} {pixels.dtype}"
            )
        if len(pixels) == 0:
            return torch.zeros(0, self.embed_dim, device=self.device)
        chunks = (pixels[start : start + batch_size] for start in range(0, len(pixels), batch_size))
        return torch.cat(
            [
                # torch.tensor copies: pictures that Pillow hands out must not be written to.
                self._encode(torch.tensor(chunk) if isinstance(chunk, np.ndarray) else chunk)
                for chunk in chunks
            ]
        )

    @torch.no_grad()
    def _encode(self, pixels: Tensor) -> Tensor:
        mean, std = (torch.tensor(values, device=self.device) for values in (self.image_mean, self.image_std))
        with torch.autocast(self.device.type, enabled=False):
            pixel_values = ((pixels.to(self.device) / 255 - mean) / std).permute(0, 3, 1, 2).contiguous()
            return F.normalize(self.read_embeds(self.tower(pixel_values)), dim=-1)


def load_vision_language_teacher(name: str | os.PathLike[str]) -> VisionLanguageTeacher:
    """The vision tower of a pretrained CLIP or SigLIP; nothing else of it stays in memory.

    Args:
        name: folder or Hub id of a CLIP or SigLIP of transformers with its image processor;
            "open_clip:<model>/<tag>" with a tag or file of weights, such as
            "open_clip:ViT-B-16/laion2b_s34b_b88k"; "open_clip:hf-hub:<id>"; "open_clip:local-dir:<folder>".

    Raises:
        ImportError: if open_clip is asked for and cannot be imported.
        OSError: if nothing is found under that name.
        ValueError: if it is a model of another kind, lacks weights, or open_clip does not know it.
    """
    if str(name).startswith(OPEN_CLIP_PREFIX):
        return _load_from_open_clip(str(name).removeprefix(OPEN_CLIP_PREFIX))
    config = AutoConfig.from_pretrained(name)
    family = config.model_type.removesuffix("_vision_model")
    if family not in TRANSFORMERS_TOWERS:
        raise ValueError(
            f"{str(name)!r} is a checkpoint of model type {config.model_type!r}; a teacher is one of "
            f"{list(TRANSFORMERS_TOWERS)}, or of open_clip ('{OPEN_CLIP_PREFIX}<model>/<tag>')"
        )
    tower_class, output = TRANSFORMERS_TOWERS[family]
    tower = _load_tower(tower_class, name, select_tower_config(config, "vision_config"))
    processor = AutoImageProcessor.from_pretrained(name, backend="pil")
    return VisionLanguageTeacher(
        tower,
        attrgetter(output),
        image_size=tower.config.image_size,
        image_mean=processor.image_mean,
        image_std=processor.image_std,
    )


def select_tower_config(config: PreTrainedConfig, part: str) -> PreTrainedConfig:
    """The config of a tower by itself.

    Args:
        config: of an image-text model, or already of the tower.
        part: ``"vision_config"`` or ``"text_config"``.
    """
    if not config.sub_configs:
        return config
    tower_config: PreTrainedConfig = getattr(config, part)
    if hasattr(config, "projection_dim"):
        # The whole CLIP goes by its own width; the one in its parts may be a default that nobody set, as in
        # some checkpoints that were converted from open_clip.
        tower_config.projection_dim = config.projection_dim
    return tower_config


def _load_tower(
    tower_class: type[PreTrainedModel], name: str | os.PathLike[str], config: PreTrainedConfig
) -> PreTrainedModel:
    try:
        with without_load_report():
            loaded: Any = tower_class.from_pretrained(
                name, config=config, ignore_mismatched_sizes=True, output_loading_info=True
            )
    except SafetensorError as error:
        raise OSError(f"the weights of {str(name)!r} are cut off or damaged ({error})") from error
    tower, info = loaded
    if unfit := sorted(map(str, (*info["missing_keys"], *info["mismatched_keys"]))):
        raise ValueError(
            f"{str(name)!r} does not hold {len(unfit)} weights of {tower_class.__name__} in their shapes, "
            f"first {unfit[:5]}: it is truncated, or its config.json is not its own"
        )
    return tower


def import_open_clip() -> Any:
    """The package.

    Raises:
        ImportError: if it, or the torchvision that it needs, cannot be imported.
    """
    try:
        import open_clip
    except (ImportError, RuntimeError) as error:  # torchvision of another build raises RuntimeError
        raise ImportError(
            f"this needs the package open_clip_torch and a torchvision that fits torch ({error}): pip "
            "install 'zsseg[clip]'"
        ) from error
    return open_clip


def _load_from_open_clip(name: str) -> VisionLanguageTeacher:
    open_clip = import_open_clip()
    if name.startswith(OPEN_CLIP_SCHEMAS):
        model = open_clip.create_model(name, require_pretrained=True)
    else:
        architecture, _, tag = name.partition("/")
        _check_open_clip_name(open_clip, architecture, tag)
        # Weights that were trained with the quick variant of GELU are wrong with any other.
        quick_gelu = open_clip.get_pretrained_cfg(architecture, tag).get("quick_gelu", False)
        model = open_clip.create_model(
            architecture, tag, require_pretrained=True, force_quick_gelu=quick_gelu
        )
    settings = open_clip.get_model_preprocess_cfg(model)
    size = settings["size"]
    height, width = (size, size) if isinstance(size, int) else size
    if height != width:
        raise ValueError(f"open_clip's {name!r} reads pictures {height}×{width}; a teacher reads square ones")
    return VisionLanguageTeacher(
        model.visual,
        # Some towers return the tokens of all patches beside the embedding.
        lambda outputs: outputs if isinstance(outputs, Tensor) else outputs[0],
        image_size=height,
        image_mean=settings["mean"],
        image_std=settings["std"],
    )


def _check_open_clip_name(open_clip: Any, architecture: str, tag: str) -> None:
    architectures = open_clip.list_models()
    if architecture not in architectures:
        nearest = difflib.get_close_matches(architecture, architectures, n=5, cutoff=0.5)
        raise ValueError(
            f"open_clip knows no model {architecture!r}; nearest: {nearest or 'none is close'} "
            "(open_clip.list_models() has all)"
        )
    if not open_clip.is_pretrained_cfg(architecture, tag) and not os.path.isfile(tag):
        raise ValueError(
            f"open_clip knows no weights {tag!r} of {architecture}, and there is no such file; known are "
            f"{open_clip.list_pretrained_tags_by_model(architecture)}: write "
            f"'{OPEN_CLIP_PREFIX}{architecture}/<tag>'"
        )


@contextmanager
def without_load_report() -> Iterator[None]:
    """Transformers reports the weights of the other tower as left over, which they are meant to be."""
    verbosity = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(verbosity)
