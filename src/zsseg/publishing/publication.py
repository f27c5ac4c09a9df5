"""The exact folder that goes to the Hub, made from a checkpoint, its evaluations and what its card says."""

import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined] # it is, lazily
from numpy.random import default_rng
from torch import Tensor
from transformers import AutoModel, AutoProcessor, PreTrainedModel

from zsseg.checkpoints import PACKAGED_FOLDERS
from zsseg.layers.model_identity import compute_weights_digest
from zsseg.models.base import ZeroShotSegmentationPreTrainedModel
from zsseg.processing.processing import ZeroShotSegmentationProcessor
from zsseg.publishing.card_facts import CardFacts
from zsseg.publishing.checkpoint_files import (
    CARD_FILE,
    EVALUATION_FOLDER,
    CheckpointFiles,
    collect_checkpoint_files,
)
from zsseg.publishing.evaluations import Evaluation, load_evaluations, make_portable
from zsseg.publishing.hub_metadata import build_eval_result_files, read_benchmarks
from zsseg.publishing.published_card import (
    build_published_card,
    choose_example_labels,
    read_origin,
    update_published_card,
)

ORIGIN_KEYS = frozenset({"_name_or_path", "name_or_path"})
"""Where parts came from on this machine, which is nobody's business."""

JSON_WITH_ORIGINS = ("config.json", "processor_config.json", "tokenizer_config.json")
PROBE_SIZE = (96, 128)


@dataclass(frozen=True, slots=True)
class Publication:
    """What was made ready in a folder.

    Attributes:
        folder: holds exactly what is to be published.
        files: names of its files, relative to it, sorted.
        left_out: files of the checkpoint's folder that are not published.
        evaluations: whose figures the card shows.
        outputs: of the model on a fixed picture, by name: the published model must give the same bits.
    """

    folder: Path
    files: tuple[str, ...]
    left_out: tuple[str, ...]
    evaluations: tuple[Evaluation, ...]
    outputs: dict[str, Tensor]


def build_publication(
    checkpoint: Path,
    repo_id: str,
    folder: Path,
    *,
    facts: CardFacts,
    evaluations: Sequence[Path] = (),
    include: Sequence[str] = (),
) -> Publication:
    """Fill a folder with what is to be published; nothing is sent.

    Weights, processor and tokenizer are copied as they are. Evaluations that lie in the checkpoint's folder
    count beside those given, where these are of other data. A card that lies there is brought up to date,
    unless the checkpoint is a packaged one; otherwise a card is written, which says of a converted checkpoint
    where it comes from.

    Args:
        checkpoint: folder with the model and its processor.
        repo_id: ``user/name`` on the Hub.
        folder: to fill; exists and is empty.
        facts: what the card says that no file tells.
        evaluations: files of evaluations of this very model.
        include: patterns of further files of the checkpoint's folder to publish.

    Raises:
        OSError: if a file cannot be read or written.
        ValueError: if the model does not load whole and finite or is of no family of ours, or for anything
            that :func:`collect_checkpoint_files`, :func:`load_evaluations` or the card refuse.
    """
    check_repo_id(repo_id)
    found = collect_checkpoint_files(checkpoint, include)
    model, processor = load_checkpoint(checkpoint)
    digest = compute_weights_digest(model)
    earlier = [checkpoint / name for name in found.evaluations]
    loaded = [
        replace(each, report=make_portable(each.report, repo_id))
        for each in load_evaluations(evaluations, digest, earlier=earlier)
    ]
    # The card does not hold them, so a folder that is published again needs those beside it.
    benchmarks = read_benchmarks(checkpoint, found.eval_results, loaded)
    facts = replace(facts, benchmarks={**benchmarks, **facts.benchmarks})
    _copy_files(found, folder)
    _write_card(found, folder, model, processor, facts, loaded, repo_id)
    (folder / EVALUATION_FOLDER).mkdir(exist_ok=True)
    for evaluation in loaded:
        evaluation.report.save(folder / EVALUATION_FOLDER / f"{evaluation.name}.json")
    for name, content in build_eval_result_files(loaded, facts, repo_id).items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(content, encoding="utf-8")
    # Once more from the copies: what is uploaded must load, and what the evaluations are of.
    model, processor = load_checkpoint(folder)
    if compute_weights_digest(model) != digest:
        raise ValueError(f"{checkpoint} changed while it was read: is a training still writing there?")
    return Publication(
        folder=folder,
        files=tuple(
            sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
        ),
        left_out=found.left_out,
        evaluations=tuple(loaded),
        outputs=compute_probe_outputs(model, processor),
    )


def check_repo_id(repo_id: str) -> None:
    """Refuse what is no ``user/name``.

    Raises:
        ValueError: saying what is wrong with it.
    """
    if repo_id.count("/") != 1:
        raise ValueError(f"a repository on the Hub is named user/name, got {repo_id!r}")
    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise ValueError(f"{repo_id!r} is no name on the Hub: {error}") from error


def load_checkpoint(
    name_or_path: str | Path, **hub_arguments: Any
) -> tuple[PreTrainedModel, ZeroShotSegmentationProcessor]:
    """Model and processor of any family, strictly: no weight missing, left over or not finite.

    Args:
        name_or_path: folder or Hub id.
        hub_arguments: such as ``revision`` and ``cache_dir``.

    Raises:
        OSError: if a file is missing or damaged.
        ValueError: if the checkpoint is of other software or does not fit its class.
    """
    model, info = AutoModel.from_pretrained(name_or_path, output_loading_info=True, **hub_arguments)
    if not isinstance(model, ZeroShotSegmentationPreTrainedModel):
        raise ValueError(
            f"{str(name_or_path)!r} is of model type {model.config.model_type!r}, none of zsseg's: publish "
            "it with the software that it is of"
        )
    if left_over := sorted(info["unexpected_keys"]):
        raise ValueError(
            f"{str(name_or_path)!r} holds {len(left_over)} weights that its model has no place for, first "
            f"{left_over[:5]}: write it anew with save_pretrained"
        )
    return model.eval(), AutoProcessor.from_pretrained(name_or_path, **hub_arguments)


@torch.inference_mode()
def compute_probe_outputs(
    model: PreTrainedModel, processor: ZeroShotSegmentationProcessor
) -> dict[str, Tensor]:
    """Logits on a fixed picture of noise with fixed labels, by name."""
    picture = default_rng(0).integers(0, 256, size=(*PROBE_SIZE, 3), dtype="uint8")
    outputs = model(**processor(picture, choose_example_labels(processor, ())))
    return {
        "class_queries_logits": outputs.class_queries_logits,
        "masks_queries_logits": outputs.masks_queries_logits,
    }


def _copy_files(found: CheckpointFiles, folder: Path) -> None:
    for name in found.published:
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(found.folder / name, target)
        if name in JSON_WITH_ORIGINS:
            _forget_origins(target)


def _forget_origins(path: Path) -> None:
    content = json.loads(path.read_text(encoding="utf-8"))
    kept = _without_origins(content)
    if kept != content:
        path.write_text(json.dumps(kept, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _without_origins(content: Any) -> Any:
    if isinstance(content, list):
        return [_without_origins(each) for each in content]
    if not isinstance(content, dict):
        return content
    return {key: _without_origins(value) for key, value in content.items() if key not in ORIGIN_KEYS}


def _write_card(
    found: CheckpointFiles,
    folder: Path,
    model: PreTrainedModel,
    processor: ZeroShotSegmentationProcessor,
    facts: CardFacts,
    evaluations: Sequence[Evaluation],
    repo_id: str,
) -> None:
    source, target = found.folder / CARD_FILE, folder / CARD_FILE
    # The card of a packaged checkpoint is about the package.
    is_packaged = found.folder.resolve() in {path.resolve() for path in PACKAGED_FOLDERS.values()}
    has_card = found.card and not is_packaged
    origin = read_origin(source, evaluations) if has_card else None
    if has_card and origin is None:
        update_published_card(source, target, processor, facts, evaluations, repo_id)
    else:
        card = build_published_card(model, processor, facts, evaluations, repo_id, origin or "")
        target.write_text(card, encoding="utf-8")
