"""Trained checkpoints → the folders that come with the package."""

import os
import shutil
from collections.abc import Mapping
from pathlib import Path

from transformers import AutoModel, AutoProcessor, CLIPConfig, CLIPModel, PreTrainedConfig, PreTrainedModel

from zsseg.layers.model_identity import compute_weights_digest
from zsseg.models.base import load_whole
from zsseg.publishing.folder_replacement import replacing_folder
from zsseg.publishing.half_precision import save_half_precision
from zsseg.publishing.model_card import build_patchwork_card, build_patchwork_clip_card
from zsseg.training.patchwork_clip_report import PatchworkClipReport
from zsseg.training.patchwork_report import PatchworkReport

LARGEST_PACKAGE = 16_000_000
"""Bytes of the whole folder."""


def package_checkpoint(
    checkpoint: str | os.PathLike[str],
    report: str | os.PathLike[str],
    folder: str | os.PathLike[str],
    *,
    earlier_stages: Mapping[str, str | os.PathLike[str]] | None = None,
) -> None:
    """Write weights in float16, processor, card and evaluation; the folder appears whole or not at all.

    Args:
        checkpoint: folder of the trained model and its processor.
        report: the ``results.json`` of ``zsseg evaluate patchwork`` with this model; better with the package
            that an earlier call wrote, since its weights are rounded.
        folder: to write; an earlier package there is replaced.
        earlier_stages: such reports of what the model was after earlier stages of its training, by stage.

    Raises:
        OSError: if a file cannot be read, or ``folder`` holds files that are not of a package.
        ValueError: if the report is none or of another model, or the package would be too large.
    """
    benchmark = PatchworkReport.load(Path(report))
    stages = {name: PatchworkReport.load(Path(path)) for name, path in (earlier_stages or {}).items()}
    card = build_patchwork_card(benchmark, stages)
    model = AutoModel.from_pretrained(checkpoint)
    _write_package(
        model,
        checkpoint,
        report,
        folder,
        card=card,
        parameters=benchmark.model.parameters,
        weights_digest=benchmark.model.weights_digest,
    )


def package_patchwork_clip(
    checkpoint: str | os.PathLike[str], report: str | os.PathLike[str], folder: str | os.PathLike[str]
) -> None:
    """The same for Patchwork's CLIP.

    Args:
        checkpoint: folder of the trained CLIP and its processor.
        report: the ``results.json`` of ``zsseg evaluate patchwork-clip`` with this model.
        folder: to write; an earlier package there is replaced.

    Raises:
        OSError: as :func:`package_checkpoint`.
        ValueError: likewise, and if the checkpoint is no CLIP or lacks weights.
    """
    evaluation = PatchworkClipReport.load(Path(report))
    card = build_patchwork_clip_card(evaluation)
    model = load_whole(CLIPModel, checkpoint, (CLIPConfig.model_type,))
    _write_package(model, checkpoint, report, folder, card=card, parameters=evaluation.model.parameters)


def _write_package(
    model: PreTrainedModel,
    checkpoint: str | os.PathLike[str],
    report: str | os.PathLike[str],
    folder: str | os.PathLike[str],
    *,
    card: str,
    parameters: int,
    weights_digest: str | None = None,
) -> None:
    """Write the files of a package, if the report is of the model as far as it says."""
    processor = AutoProcessor.from_pretrained(checkpoint)
    if (found := sum(parameter.numel() for parameter in model.parameters())) != parameters:
        raise ValueError(
            f"{report} is of a model with {parameters:,} parameters, but {checkpoint} has {found:,}: "
            "evaluate this checkpoint"
        )
    _drop_origins(model.config)
    with replacing_folder(Path(folder)) as package:
        save_half_precision(model, package)
        if weights_digest is not None:
            rounded = type(model).from_pretrained(package)
            if weights_digest not in map(compute_weights_digest, (model, rounded)):
                raise ValueError(f"{report} is of other weights than {checkpoint}: evaluate this checkpoint")
        processor.save_pretrained(package)
        (package / "README.md").write_text(card, encoding="utf-8")
        shutil.copyfile(report, package / "evaluation.json")
        size = sum(path.stat().st_size for path in package.iterdir())
        if size > LARGEST_PACKAGE:
            raise ValueError(
                f"the package would take {size / 1e6:.1f} MB, but {LARGEST_PACKAGE / 1e6:g} MB are allowed: "
                "train a smaller model, or publish this one on the Hub"
            )


def _drop_origins(config: PreTrainedConfig) -> None:
    """Forget from which folders on the trainer's machine the parts came."""
    config._name_or_path = ""
    for part in vars(config).values():
        if isinstance(part, PreTrainedConfig):
            _drop_origins(part)
