"""Both models of Patchwork, one after the other: a CLIP, then a segmentor in its text space."""

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from zsseg.data.patchwork.splits import load_patchwork_split
from zsseg.training.arguments import MixedPrecision
from zsseg.training.checkpointing import check_output_dir
from zsseg.training.recipes.patchwork_clip import build_patchwork_clip_stages, train_patchwork_clip
from zsseg.training.recipes.patchwork_concat import build_patchwork_stages, train_patchwork_concat

CLIP_FOLDER = "patchwork-clip"
CHECKPOINT_FOLDER = "checkpoint"
PARTS = ("clip", "segmentor")


@dataclass(frozen=True)
class PatchworkSteps:
    """Optimizer steps of each stage; the defaults are those of the packaged checkpoint.

    Attributes:
        clip: both towers of the CLIP.
        vision: its vision tower alone, the text tower locked.
        backbone: the segmentor's backbone, naming given segments.
        deepened: the same after blocks were added to it.
        warmup: the segmentor's dense warm-up.
        segmentor: the whole segmentor.
    """

    clip: int = 2000
    vision: int = 1800
    backbone: int = 2400
    deepened: int = 1000
    warmup: int = 400
    segmentor: int = 3000


def train_patchwork(
    output: Path,
    steps: PatchworkSteps,
    *,
    parts: Collection[str] = PARTS,
    clip: Path | None = None,
    split: str = "A",
    batch_size: int = 16,
    seed: int = 0,
    mixed_precision: MixedPrecision = "bf16",
    num_workers: int = 1,
    resume: bool = False,
    overwrite: bool = False,
) -> bool:
    """Train the models of Patchwork and save them.

    Args:
        output: gets a folder for every stage, ``patchwork-clip`` and ``checkpoint``.
        steps: of every stage.
        parts: "clip", "segmentor" or both.
        clip: a trained CLIP for the segmentor; None takes the one in ``output``.
        split: which names are unseen.
        batch_size: scenes in one step.
        seed: of weights and data order.
        mixed_precision: autocast dtype.
        num_workers: processes that render scenes.
        resume: go on where an earlier call with the same arguments stopped or was killed.
        overwrite: start anew in folders that hold a run.

    Returns:
        Whether every stage came to its end; an interrupted one saves no final model.

    Raises:
        ValueError: if a part or the split is unknown, or a number of steps is too small.
        FileExistsError: if a folder to be written is not empty, unless ``resume`` or ``overwrite`` is given.
        FileNotFoundError: if the segmentor is to be trained and there is no CLIP.
        As :func:`~zsseg.training.recipe.run_recipe`.
    """
    if unknown := sorted(set(parts) - set(PARTS)):
        raise ValueError(f"the parts of Patchwork's recipe are {list(PARTS)}, got also {unknown}")
    shared: dict[str, Any] = {
        "batch_size": batch_size,
        "seed": seed,
        "mixed_precision": mixed_precision,
        "num_workers": num_workers,
    }
    # Everything that can be wrong is found before the first long stage.
    load_patchwork_split(split)
    clip_stages = build_patchwork_clip_stages(
        output, clip_steps=steps.clip, vision_steps=steps.vision, **shared
    )
    segmentor_stages = build_patchwork_stages(
        output,
        backbone_steps=steps.backbone,
        deepened_steps=steps.deepened,
        warmup_steps=steps.warmup,
        steps=steps.segmentor,
        **shared,
    )
    folders = {
        "clip": [*(stage.output_dir for stage in clip_stages.values()), output / CLIP_FOLDER],
        "segmentor": [*(stage.output_dir for stage in segmentor_stages.values()), output / CHECKPOINT_FOLDER],
    }
    if not resume and not overwrite:
        for part in parts:
            for folder in folders[part]:
                check_output_dir(folder)
    clip_folder = output / CLIP_FOLDER if clip is None else clip
    if "clip" in parts and not (resume and _is_model(clip_folder)):
        model, processor, results = train_patchwork_clip(clip_stages, resume=resume, overwrite=overwrite)
        if not all(result.is_complete for result in results.values()):
            return False
        processor.save_pretrained(clip_folder)
        model.save_pretrained(clip_folder)
    if "segmentor" not in parts:
        return True
    if not _is_model(clip_folder):
        raise FileNotFoundError(
            f"the segmentor needs Patchwork's CLIP, but there is none in {clip_folder}: train or name one"
        )
    segmentor, segmentor_processor, segmentor_results = train_patchwork_concat(
        clip_folder, segmentor_stages, split=split, resume=resume, overwrite=overwrite
    )
    if not all(result.is_complete for result in segmentor_results.values()):
        return False
    segmentor.save_pretrained(output / CHECKPOINT_FOLDER)
    segmentor_processor.save_pretrained(output / CHECKPOINT_FOLDER)
    return True


def _is_model(folder: Path) -> bool:
    """Whether a model was saved there; its weights are written last."""
    return (folder / "model.safetensors").is_file()
