"""Converted CLIPs: written as a whole, read again and compared with open_clip's own model."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional as F
from transformers import AutoTokenizer, CLIPImageProcessorPil, CLIPModel

from zsseg.conversion.open_clip_layout import (
    CONFIG_FILE,
    WEIGHT_FILES,
    OpenClipSettings,
    build_clip_inputs,
    build_clip_tokenizer,
    compute_clip_outputs,
    compute_open_clip_outputs,
    convert_to_open_clip,
)
from zsseg.conversion.source_weights import read_source_weights
from zsseg.conversion.verification import check_differences, compute_differences
from zsseg.layers.vision_language import import_open_clip, load_vision_language_teacher
from zsseg.models.base import load_whole
from zsseg.models.text_tower import load_text_tower
from zsseg.publishing.folder_replacement import replacing_folder

OPEN_CLIP_TOKENIZER = "open_clip"
SAMPLE_TEXTS = ("a photo of a traffic light.", "itap of the Café's 2 dogs", "tree-merged", "日本")


def load_tokenizer(name: str, vocab_size: int) -> Any:
    """A tokenizer for a CLIP.

    Args:
        name: folder or Hub id; or "open_clip" for the one in open_clip.
        vocab_size: of the text tower.

    Raises:
        ImportError: if open_clip's is asked for and cannot be imported.
        ValueError: if it makes other ids than the tower knows, or its <end> is not the last of them.
    """
    tokenizer = build_clip_tokenizer() if name == OPEN_CLIP_TOKENIZER else AutoTokenizer.from_pretrained(name)
    if len(tokenizer) != vocab_size or tokenizer.eos_token_id != vocab_size - 1:
        raise ValueError(
            f"the tokenizer {name!r} knows {len(tokenizer)} tokens and ends a text with "
            f"{tokenizer.eos_token_id}, the text tower reads {vocab_size} and ends with {vocab_size - 1}: "
            "give the tokenizer that it was trained with (--tokenizer)"
        )
    return tokenizer


def write_clip(
    folder: Path,
    model: CLIPModel,
    tokenizer: Any,
    settings: OpenClipSettings,
    source: Mapping[str, Tensor] | None = None,
) -> dict[str, float]:
    """Write a CLIP for transformers, as text tower and teacher; the folder appears whole and checked.

    Args:
        folder: to write.
        model: converted.
        tokenizer: with it.
        settings: of the source.
        source: open_clip's weights, to compare its own model with what is read again from the folder; None
            not to.

    Returns:
        The largest difference of each output.

    Raises:
        ImportError: if open_clip, to compare with, cannot be imported.
        ValueError: if outputs differ.
    """
    size = model.config.vision_config.image_size
    image_processor = CLIPImageProcessorPil(
        size={"shortest_edge": size},
        crop_size={"height": size, "width": size},
        image_mean=list(settings.image_mean),
        image_std=list(settings.image_std),
    )
    model.config._name_or_path = ""
    with replacing_folder(folder) as unfinished:
        for part in (model, image_processor, tokenizer):
            part.save_pretrained(unfinished)
        differences = {} if source is None else _compare_with_open_clip(unfinished, settings, source)
        check_differences(differences)
    return differences


@torch.no_grad()
def _compare_with_open_clip(
    folder: Path, settings: OpenClipSettings, source: Mapping[str, Tensor]
) -> dict[str, float]:
    model = load_whole(CLIPModel, folder, ("clip",)).double().eval()
    pixel_values, input_ids = build_clip_inputs(model.config)
    expected = compute_open_clip_outputs(settings.model_config, source, pixel_values, input_ids)
    found = compute_clip_outputs(model, pixel_values, input_ids)
    # The same as what trains and predicts loads it.
    tower = load_text_tower(str(folder)).double().eval()
    expected["text tower"] = expected["text embeddings"]
    found["text tower"] = tower(input_ids=input_ids).text_embeds
    teacher = load_vision_language_teacher(folder)
    pictures = torch.randint(
        0, 256, (2, teacher.image_size, teacher.image_size, 3), generator=torch.Generator().manual_seed(1)
    )
    mean, std = (
        torch.tensor(values, dtype=torch.float64) for values in (settings.image_mean, settings.image_std)
    )
    normalised = ((pictures / 255 - mean) / std).permute(0, 3, 1, 2)
    outputs = compute_open_clip_outputs(settings.model_config, source, normalised, input_ids)
    expected["teacher"] = F.normalize(outputs["image embeddings"], dim=-1)
    found["teacher"] = teacher.encode_images(pictures.to(torch.uint8)).double()
    return compute_differences(expected, found) | _compare_tokens(folder)


def _compare_tokens(folder: Path) -> dict[str, float]:
    """The largest difference of token ids from open_clip's, where both have its vocabulary."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    own = import_open_clip().tokenizer.SimpleTokenizer()
    if len(tokenizer) != own.vocab_size:
        return {}
    expected = [[own.sot_token_id, *own.encode(text), own.eot_token_id] for text in SAMPLE_TEXTS]
    found = tokenizer(list(SAMPLE_TEXTS))["input_ids"]
    return {"token ids": 0.0 if expected == found else float("inf")}


def write_open_clip(folder: Path, checkpoint: str, *, verify: bool = False) -> dict[str, float]:
    """Write a CLIP of transformers as open_clip reads it ("local-dir:<folder>"); whole and checked.

    Args:
        folder: to write.
        checkpoint: folder or Hub id of the CLIP with its image processor.
        verify: compare with open_clip's own model.

    Returns:
        The largest difference of each output.

    Raises:
        ImportError: if open_clip, to compare with, cannot be imported.
        OSError: if nothing is found there.
        ValueError: if it is no CLIP, open_clip has no such model, or outputs differ.
    """
    model = load_whole(CLIPModel, checkpoint, ("clip",), allow_left_over=False).eval()
    teacher = load_vision_language_teacher(checkpoint)
    tensors, config = convert_to_open_clip(model)
    preprocess = {"mean": list(teacher.image_mean), "std": list(teacher.image_std)}
    with replacing_folder(folder) as unfinished:
        save_file(tensors, unfinished / WEIGHT_FILES[0], metadata={"format": "pt"})
        document = {"model_cfg": config, "preprocess_cfg": preprocess}
        (unfinished / CONFIG_FILE).write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
        differences = {}
        if verify:
            reread = read_source_weights(unfinished / WEIGHT_FILES[0]).tensors
            inputs = build_clip_inputs(model.config)
            differences = compute_differences(
                compute_clip_outputs(model.double(), *inputs),
                compute_open_clip_outputs(config, reread, *inputs),
            )
        check_differences(differences)
    return differences
