"""SCAN's own checkpoints, and its CLIP fine-tuned for contextual shift → zsseg's SCAN (arXiv:2312.04089).

A file holds a Mask2Former, the semantic integration and two CLIPs: ``clip_adapter.clip_model``, which sees
the masks cut out and has the text tower, and ``clip_adapter.original_clip``, a frozen vision tower alone.
Sizes are read from the shapes; what they do not say (blocks, σ, thresholds) belongs to a published size.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import CLIPConfig

from zsseg.conversion.mask2former_layout import MARKER as SEGMENTOR_MARKER
from zsseg.conversion.mask2former_layout import (
    OTHER_KINDS,
    PREDICTOR,
    convert_segmentor,
    read_segmentor_config,
)
from zsseg.conversion.open_clip_layout import OpenClipSettings, list_clip_pairs, read_clip_config
from zsseg.conversion.source_weights import SourceWeights, read_source_weights
from zsseg.models.scan.configuration_scan import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD, ScanConfig

MARKER = "clip_adapter.non_object_embedding"
EXPECTED = "SCAN by its authors"
CLIP_MODEL = "clip_adapter.clip_model."
FROZEN_TOWER = "clip_adapter.original_clip."
CS_CLIP = "CS-CLIP:"
"""What names of the file of the fine-tuned CLIP begin with in the books."""
CS_CLIP_MODEL = "clip_model."
CS_CLIP_FROZEN_TOWER = "original_clip_visual."
NOT_SCAN = {
    r"clip_adapter\.": f"{MARKER!r} is missing; the file may be cut down",
    rf"(module\.)?{re.escape(CS_CLIP_MODEL)}": "they are of a CLIP fine-tuned for contextual shift: give "
    "that file as --cs-clip, beside SCAN.pth",
    r"(visual|transformer)\.": "they are of a CLIP alone",
    re.escape(SEGMENTOR_MARKER): "they are of a Mask2Former alone, without CLIP and semantic integration",
    **OTHER_KINDS,
}
PROPOSAL_HEAD = f"{PREDICTOR}.class_embed.layers"
HEAD_WIDTH = 64
"""Of both towers of both CLIPs."""
UNUSED_IN_CLIP = (
    rf"({re.escape(CLIP_MODEL)}|{re.escape(CS_CLIP + CS_CLIP_MODEL)})visual\."
    r"(cxt_decoder\..*|learnable_weight)"
)
BUFFERS = (
    r"criterion\.empty_weight|clip_adapter\.pixel_(mean|std)|.*\.relative_position_index|" + UNUSED_IN_CLIP
)
"""What parameter counts leave out."""


@dataclass(frozen=True)
class ScanSettings:
    """The numbers of one data set at inference, tuned on it by the authors.

    Attributes:
        crop_mask_threshold: probability above which a pixel belongs to a crop's mask.
        ensemble_weight: w, the weight of CLIP.
        shift_ratio: share of a crop's background patches that is overwritten.
        has_void_renormalization: whether a query's scores sum to 1 − p(no-object).
    """

    crop_mask_threshold: float
    ensemble_weight: float
    shift_ratio: float
    has_void_renormalization: bool = False


@dataclass(frozen=True)
class ScanSize:
    """A published size: what the weights do not say, and what they must be.

    Attributes:
        name: of the size.
        clip: the CLIP's configuration, in the words of open_clip.
        integration_layers: blocks whose tokens are integrated, counted from 1.
        shift_layers: blocks after which patches are overwritten, counted from 1.
        num_trained_parameters: of all that is no part of a CLIP.
        num_parameters: of everything: these, the CLIP with its text tower, the frozen vision tower.
        settings: by data set.
        low_frequency_sigmas: σ of each of the integration layers.
    """

    name: str
    clip: dict[str, Any]
    integration_layers: tuple[int, ...]
    shift_layers: tuple[int, ...]
    num_trained_parameters: int
    num_parameters: int
    settings: Mapping[str, ScanSettings]
    low_frequency_sigmas: tuple[float, ...] = (9.0, 7.0, 3.0)


SCAN_SIZES = {
    "L": ScanSize(
        name="SCAN-L",
        clip={
            "embed_dim": 768,
            "vision_cfg": {"image_size": 224, "layers": 24, "width": 1024, "patch_size": 14},
            "text_cfg": {"width": 768, "heads": 12, "layers": 12},
        },
        integration_layers=(12, 18, 24),
        shift_layers=(1, 3, 5, 7, 9),
        num_trained_parameters=158_671_673,
        num_parameters=890_254_394,
        settings={
            "A-847": ScanSettings(0.30, 0.75, 0.15, has_void_renormalization=True),
            "A-150": ScanSettings(0.55, 0.75, 0.05),
            "PC-459": ScanSettings(0.25, 0.65, 0.05, has_void_renormalization=True),
            "PC-59": ScanSettings(0.50, 0.50, 0.05),
            "VOC-20": ScanSettings(0.20, 0.65, 0.10),
        },
    ),
    "B": ScanSize(
        name="SCAN-B",
        clip={
            "embed_dim": 512,
            "vision_cfg": {"image_size": 224, "layers": 12, "width": 768, "patch_size": 16},
            "text_cfg": {"width": 512, "heads": 8, "layers": 12},
        },
        integration_layers=(6, 9, 12),
        shift_layers=(1, 3, 5),
        num_trained_parameters=135_647_801,
        num_parameters=371_461_178,
        settings={
            "A-847": ScanSettings(0.25, 0.75, 0.05, has_void_renormalization=True),
            "A-150": ScanSettings(0.40, 0.70, 0.05),
            "PC-459": ScanSettings(0.25, 0.70, 0.05, has_void_renormalization=True),
            "PC-59": ScanSettings(0.25, 0.35, 0.05),
            "VOC-20": ScanSettings(0.20, 0.45, 0.10),
        },
    ),
}
"""Sizes and settings of the paper's checkpoints, by what the script calls them."""


def read_scan_weights(path: Path, prefix: str = "") -> SourceWeights:
    """The weights of a file by SCAN's authors, without a prefix of their names.

    Raises:
        OSError: as of :func:`~.weight_files.load_weight_file`.
        ValueError: likewise, and if they are of another kind.
    """
    weights = read_source_weights(path, prefix)
    weights.check_marker(MARKER, EXPECTED, NOT_SCAN)
    weights.check_present([SEGMENTOR_MARKER])
    return weights


def add_cs_clip(weights: SourceWeights, path: Path) -> None:
    """Add a CLIP fine-tuned for contextual shift; it takes the place of ``clip_adapter.clip_model``.

    Args:
        weights: of SCAN; gain those of the file, their names behind :data:`CS_CLIP`.
        path: of CS_CLIP.pt.

    Raises:
        OSError: as of :func:`~.weight_files.load_weight_file`.
        ValueError: likewise, and if it holds no such CLIP.
    """
    clip = read_source_weights(path)
    beginning = next((name for name in ("module.", "") if f"{name}{CS_CLIP_MODEL}visual.proj" in clip), None)
    if beginning is None:
        raise ValueError(
            f"{path} is no CLIP fine-tuned for contextual shift: expected names like "
            f"'module.{CS_CLIP_MODEL}visual.proj', got {sorted(clip.tensors)[:5]}"
        )
    weights.tensors |= {
        f"{CS_CLIP}{name.removeprefix(beginning)}": tensor for name, tensor in clip.tensors.items()
    }
    weights.books.beside += [f"{name} ({path.name})" for name in clip.books.beside]


@dataclass(frozen=True)
class ConvertedScan:
    """Weights for our model, and the configuration they need.

    Attributes:
        config: of the model.
        tensors: by names of its state dict.
    """

    config: ScanConfig
    tensors: dict[str, Tensor]


def convert_scan(weights: SourceWeights, size: ScanSize, settings: ScanSettings) -> ConvertedScan:
    """Convert everything.

    Args:
        weights: of SCAN, perhaps with a fine-tuned CLIP; every one is used or dropped.
        size: published.
        settings: for the configuration.

    Raises:
        ValueError: if weights are missing, left over, of another size, or the two CLIPs do not belong
            together.
    """
    clip_config = _read_clip_config(weights, size)
    segmentor_config = read_segmentor_config(weights)
    pairs = list(_list_own(weights))
    weights.check_present(source for source, _ in pairs)
    tensors = {target: weights.take(source, target) for source, target in pairs}
    # A number in a vector of one, and a vector in a matrix of one row.
    tensors["sim.cls_scale"] = tensors["sim.cls_scale"].flatten()
    tensors["no_object_embedding"] = tensors["no_object_embedding"].flatten()
    tensors |= convert_segmentor(weights, segmentor_config, has_classifier=False)
    tensors |= _convert_clips(weights, clip_config)
    _drop_normalisation(weights)
    weights.drop(UNUSED_IN_CLIP, "of an experiment in the CLIP's fine-tuning; inference does not read it")
    weights.check_accounted()
    check_parameter_counts(weights, size)
    config = ScanConfig(
        segmentor_config=segmentor_config,
        vision_config=clip_config.vision_config,
        text_config=clip_config.text_config,
        projection_dim=clip_config.projection_dim,
        proposal_hidden_dim=weights.get_shape(f"{PROPOSAL_HEAD}.0.weight")[0],
        integration_layers=size.integration_layers,
        low_frequency_sigmas=size.low_frequency_sigmas,
        integration_steps=weights.count("fusion_decoder.multiattn.{}.in_proj_weight"),
        integration_encoder_layers=weights.count("lightweight_transformer.layers.{}.linear1.weight"),
        integration_feedforward_dim=weights.get_shape("lightweight_transformer.layers.0.linear1.weight")[0],
        has_shifted_tower=any(name.startswith("shifted_tower.") for name in tensors),
        shift_layers=size.shift_layers,
        **vars(settings),
    )
    return ConvertedScan(config, tensors)


def check_parameter_counts(weights: SourceWeights, size: ScanSize) -> None:
    """Make sure that SCAN's file holds as many numbers as the published model.

    Trained are all that belong to no CLIP; the total counts also ``clip_adapter.clip_model`` with its text
    tower and its logit scale, and ``clip_adapter.original_clip``, a vision tower alone. Neither buffers count
    nor a file of the fine-tuned CLIP.

    Raises:
        ValueError: if it does not.
    """
    trained, frozen = 0, 0
    for name, tensor in weights.tensors.items():
        if name.startswith(CS_CLIP) or re.fullmatch(BUFFERS, name):
            continue
        if name.startswith((CLIP_MODEL, FROZEN_TOWER)):
            frozen += tensor.numel()
        else:
            trained += tensor.numel()
    found, expected = (trained, trained + frozen), (size.num_trained_parameters, size.num_parameters)
    if found != expected:
        raise ValueError(
            f"the file holds {found[0]:,} trained parameters and {found[1]:,} in all, {size.name} has "
            f"{expected[0]:,} and {expected[1]:,}: it is of another size (--size), or not the published model"
        )


def _read_clip_config(weights: SourceWeights, size: ScanSize) -> CLIPConfig:
    """The configuration of ``clip_adapter.clip_model``, which must be that of the size."""
    tensors = {
        name.removeprefix(CLIP_MODEL): tensor
        for name, tensor in weights.tensors.items()
        if name.startswith(CLIP_MODEL)
    }
    clip = SourceWeights(tensors)
    marker = "visual.conv1.weight"
    weights.check_present([f"{CLIP_MODEL}{marker}"])
    settings = OpenClipSettings(
        vision_heads=clip.get_shape(marker)[0] // HEAD_WIDTH,
        text_heads=size.clip["text_cfg"]["heads"],
        activation="gelu",
        image_mean=OPENAI_CLIP_MEAN,
        image_std=OPENAI_CLIP_STD,
        model_config=size.clip,
    )
    try:
        return read_clip_config(clip, settings)
    except ValueError as error:
        raise ValueError(
            f"the CLIP in the file ({CLIP_MODEL}…) is not that of {size.name} (--size): {error}"
        ) from error


def _list_own(weights: SourceWeights) -> Iterator[tuple[str, str]]:
    """Weights of proposal head and semantic integration, and what they are called in ours."""
    renamed = {
        f"{PROPOSAL_HEAD}.0": "proposal_head.fc1",
        f"{PROPOSAL_HEAD}.1": "proposal_head.fc2",
        "LFM.conv1": "sim.lfe.conv1",
        "LFM.conv2": "sim.lfe.conv2",
        "oriclip_mlp.fc1": "sim.token_proj.fc1",
        "oriclip_mlp.fc2": "sim.token_proj.fc2",
    }
    attentions = []
    num_steps = weights.count("fusion_decoder.multiattn.{}.in_proj_weight")
    for step in range(num_steps):
        attentions.append((f"fusion_decoder.multiattn.{step}", f"sim.cross_attn.{step}"))
        if step < num_steps - 1:
            renamed[f"fusion_decoder.ln.{step}"] = f"sim.cross_norm.{step}"
    for index in range(weights.count("lightweight_transformer.layers.{}.linear1.weight")):
        layer, new_layer = f"lightweight_transformer.layers.{index}", f"sim.encoder.layers.{index}"
        attentions.append((f"{layer}.self_attn", f"{new_layer}.self_attn"))
        for name in ("linear1", "linear2", "norm1", "norm2"):
            renamed[f"{layer}.{name}"] = f"{new_layer}.{name}"
    for source, target in attentions:
        renamed[f"{source}.out_proj"] = f"{target}.out_proj"
        for name in ("in_proj_weight", "in_proj_bias"):
            yield f"{source}.{name}", f"{target}.{name}"
    for source, target in renamed.items():
        for name in ("weight", "bias"):
            yield f"{source}.{name}", f"{target}.{name}"
    yield "learnable_weight", "sim.cls_scale"
    yield MARKER, "no_object_embedding"


def _convert_clips(weights: SourceWeights, config: CLIPConfig) -> dict[str, Tensor]:
    """Text tower, frozen tower, and the tower of the crops where it is another."""
    has_cs_clip = any(name.startswith(CS_CLIP) for name in weights.tensors)
    of_text, of_vision = [], []
    for pair in list_clip_pairs(config):
        if pair.source.startswith("visual."):
            of_vision.append(pair)
        elif pair.source != "logit_scale":
            of_text.append(pair)
    texts = [pair.source for pair in of_text]
    patches = [pair.source.removeprefix("visual.") for pair in of_vision]
    fine_tuned = f"{CS_CLIP}{CS_CLIP_MODEL}" if has_cs_clip else CLIP_MODEL
    weights.check_present(
        [
            *(f"{CLIP_MODEL}{name}" for name in texts),
            *(f"{FROZEN_TOWER}{name}" for name in patches),
            *(f"{fine_tuned}visual.{name}" for name in patches),
        ]
    )
    if has_cs_clip:
        _check_belongs(weights, CLIP_MODEL, fine_tuned, texts, "text tower")
        _drop_names(weights, fine_tuned, texts, "text tower, not fine-tuned: equal to SCAN's")
        frozen_copy = f"{CS_CLIP}{CS_CLIP_FROZEN_TOWER}"
        if any(name.startswith(frozen_copy) for name in weights.tensors):
            _check_belongs(weights, FROZEN_TOWER, frozen_copy, patches, "frozen vision tower")
            _drop_names(weights, frozen_copy, patches, "the frozen tower: equal to SCAN's")
        of_clip = ["logit_scale", *(f"visual.{name}" for name in patches)]
        _drop_names(weights, CLIP_MODEL, of_clip, "replaced by the CLIP fine-tuned for contextual shift")
    towers = [
        ("text_model.", CLIP_MODEL, of_text, ""),
        ("context_tower.", FROZEN_TOWER, of_vision, "visual."),
    ]
    converted: dict[str, Tensor] = {}
    scale = f"{fine_tuned}logit_scale"
    if _list_unequal(weights, FROZEN_TOWER, f"{fine_tuned}visual.", patches):
        converted["shifted_logit_scale"] = weights.take(scale, "shifted_logit_scale").reshape(1)
        towers.append(("shifted_tower.", fine_tuned, of_vision, ""))
    else:
        _drop_names(weights, f"{fine_tuned}visual.", patches, "equal to the frozen tower, which serves both")
        weights.drop(re.escape(scale), "of CLIP's own training, which nothing continues")
    for tower, beginning, pairs, dropped in towers:
        for pair in pairs:
            source = f"{beginning}{pair.source.removeprefix(dropped)}"
            targets = [f"{tower}{target}" for target in pair.targets]
            tensor = weights.take(source, *targets)
            parts = tensor.chunk(len(targets)) if tensor.ndim else (tensor,)
            converted.update(
                zip(targets, (part.T if pair.is_transposed else part for part in parts), strict=True)
            )
    return converted


def _drop_names(weights: SourceWeights, beginning: str, names: list[str], reason: str) -> None:
    weights.drop(rf"{re.escape(beginning)}({'|'.join(map(re.escape, names))})", reason)


def _check_belongs(weights: SourceWeights, own: str, other: str, names: list[str], what: str) -> None:
    weights.check_present(f"{other}{name}" for name in names)
    unequal = _list_unequal(weights, own, other, names)
    if unequal:
        raise ValueError(
            f"the {what} of the fine-tuned CLIP (--cs-clip) differs from that of SCAN in {len(unequal)} "
            f"weights, first {unequal[:5]}. Fine-tuning leaves it as it is, and SCAN has one "
            "for proposals and crops: give the CLIP that was fine-tuned for this SCAN"
        )


def _list_unequal(weights: SourceWeights, first: str, second: str, names: list[str]) -> list[str]:
    """Which weights differ between two towers, in the coarser of their dtypes."""
    unequal = []
    for name in names:
        pair = weights.tensors[f"{first}{name}"], weights.tensors[f"{second}{name}"]
        dtype = min((tensor.dtype for tensor in pair), key=lambda dtype: dtype.itemsize)
        if not torch.equal(*(tensor.to(dtype) for tensor in pair)):
            unequal.append(name)
    return unequal


def _drop_normalisation(weights: SourceWeights) -> None:
    """Drop CLIP's mean and standard deviation, once they are found to be those we have.

    Raises:
        ValueError: if they are others.
    """
    for name, expected in (("pixel_mean", OPENAI_CLIP_MEAN), ("pixel_std", OPENAI_CLIP_STD)):
        source = f"clip_adapter.{name}"
        if source not in weights:
            continue
        found = weights.tensors[source].flatten().float()
        values = torch.tensor(expected)
        # Of pixels in [0, 255], or in [0, 1].
        if not any(
            found.shape == values.shape and torch.allclose(found, values * scale) for scale in (255, 1)
        ):
            raise ValueError(
                f"{source} is {found.tolist()}, expected CLIP's {list(expected)}, of pixels in [0, 1] or "
                "times 255: this CLIP was trained on pictures normalised in another way"
            )
        weights.drop(re.escape(source), "CLIP's normalisation, which is in the configuration: equal")
