"""A trained checkpoint → the folder that comes with the package."""

import os
import shutil
from pathlib import Path

from transformers import AutoModel, AutoProcessor, PreTrainedConfig

from zsseg.publishing.folder_replacement import replacing_folder
from zsseg.publishing.half_precision import save_half_precision
from zsseg.publishing.model_card import build_patchwork_card
from zsseg.training.patchwork_report import PatchworkReport

LARGEST_PACKAGE = 16_000_000
"""Bytes of the whole folder."""


def package_checkpoint(
    checkpoint: str | os.PathLike[str], report: str | os.PathLike[str], folder: str | os.PathLike[str]
) -> None:
    """Write weights in float16, processor, card and evaluation; the folder appears whole or not at all.

    Args:
        checkpoint: folder of the trained model and its processor.
        report: the ``results.json`` of ``zsseg evaluate patchwork`` with this model.
        folder: to write; an earlier package there is replaced.

    Raises:
        OSError: if a file cannot be read, or ``folder`` holds files that are not of a package.
        ValueError: if the report is none or of another model, or the package would be too large.
    """
    benchmark = PatchworkReport.load(Path(report))
    card = build_patchwork_card(benchmark)
    model = AutoModel.from_pretrained(checkpoint)
    processor = AutoProcessor.from_pretrained(checkpoint)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    if parameters != benchmark.model.parameters:
        raise ValueError(
            f"{report} is of a model with {benchmark.model.parameters:,} parameters, but {checkpoint} has "
            f"{parameters:,}: evaluate this checkpoint"
        )
    _drop_origins(model.config)
    with replacing_folder(Path(folder)) as package:
        save_half_precision(model, package)
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
