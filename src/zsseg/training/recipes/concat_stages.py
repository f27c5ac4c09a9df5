"""All stages of CONCAT (arXiv:2402.13697) on pictures with ground truth, one after the other."""

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Literal, TextIO

from zsseg.data.clip_tokens import ClipTokenDataset, build_clip_tokens
from zsseg.data.examples import PanopticDataset, compute_example_digest
from zsseg.data.seen_filter import UnseenPolicy, drop_images_with_unseen, ignore_unseen
from zsseg.data.streaming import StreamedPanopticDataset
from zsseg.data.tensor_store import TensorStore
from zsseg.data.transformed_dataset import TransformedDataset
from zsseg.data.transforms import LargeScaleJitter
from zsseg.layers.vision_language import VisionLanguageTeacher
from zsseg.models.concat.adaptation_concat import UnionOptions
from zsseg.models.concat.modeling_concat import ConcatForPanopticSegmentation
from zsseg.models.concat.processing_concat import ConcatProcessor
from zsseg.training.arguments import TrainerArguments
from zsseg.training.checkpointing import CheckpointError, find_checkpoints, read_setup
from zsseg.training.processes import get_process_state
from zsseg.training.recipe_parts import are_complete, choose_start, prepare_stages
from zsseg.training.recipes.concat import build_concat_transform, train_concat
from zsseg.training.recipes.concat_segmentor import (
    AlignmentOptions,
    AlignmentStage,
    BackboneStage,
    SegmentorStage,
    WarmupStage,
)
from zsseg.training.recipes.concat_transition import (
    TRANSITION_STAGES,
    TransitionOptions,
    UnionStage,
    check_generator,
    check_query_batches,
    train_concat_transition,
)
from zsseg.training.trainer import Evaluate, TrainingResult

Setting = Literal["inductive", "transductive"]
"""Whether training knows the names of the unseen labels ("transductive"); it never knows their pictures."""

STAGES = (
    BackboneStage.name,
    WarmupStage.name,
    SegmentorStage.name,
    AlignmentStage.name,
    *TRANSITION_STAGES,
)
"""In order; alignment goes on from a segmentor or stands in for it."""

STREAMED_STAGES = (WarmupStage.name, SegmentorStage.name)
"""Those that a stream is enough for, as they ask for no picture by its number."""

TOKEN_FOLDER = "clip-tokens"
QUERY_FOLDER = "queries"


def train_concat_stages(
    model: ConcatForPanopticSegmentation,
    processor: ConcatProcessor,
    dataset: PanopticDataset | StreamedPanopticDataset,
    *,
    stages: Mapping[str, TrainerArguments],
    store_folder: Path,
    size: tuple[int, int],
    min_scale: float = 0.1,
    max_scale: float = 2.0,
    unseen: UnseenPolicy = "drop_images",
    setting: Setting = "transductive",
    teacher: VisionLanguageTeacher | None = None,
    alignment: AlignmentOptions | None = None,
    options: TransitionOptions | None = None,
    union_options: UnionOptions | None = None,
    evaluate: Evaluate | None = None,
    resume: bool = False,
    overwrite: bool = False,
    stream: TextIO | None = None,
) -> dict[str, TrainingResult]:
    """Train the stages of :func:`train_concat`, then those of :func:`train_concat_transition`.

    Args:
        model: trained in place.
        processor: of the same checkpoint.
        dataset: pictures with ground truth; its vocabulary says which labels are seen. A stream is enough for
            the stages on pictures without a teacher.
        stages: arguments by stage name.
        store_folder: gets the teacher's tokens and the segmentor's queries. With ``overwrite``, runs of later
            stages in folders of their names there are deleted: they went on from what is trained anew.
        size: (height, width) in pixels of a training crop, and of the pictures whose queries are extracted.
        min_scale: smallest factor of the scale jitter.
        max_scale: largest factor.
        unseen: what happens to unseen segments; see :func:`train_concat`.
        setting: "inductive" reads no unseen name; the stage "union" needs them.
        teacher: a CLIP with the joint space of the model's texts; the stage "alignment" needs it.
        alignment: of that stage.
        options: of the generator.
        union_options: of union fine-tuning.
        evaluate: the model → numbers by name, run during segmentor and alignment, and after union.
        resume: go on where an earlier run of the same arguments stopped or was killed.
        overwrite: start anew in folders that hold a run.
        stream: console output, standard error if None.

    Returns:
        How each stage that ran ended, by name.

    Raises:
        ValueError: if a stage lacks what it needs (a teacher, a generator, unseen names), or as for
            :func:`train_concat` and :func:`train_concat_transition`.
        CheckpointError: if there is nothing to resume, or it is of another run.
        FileExistsError: if a folder is not empty and neither ``resume`` nor ``overwrite`` is given.
    """
    vocabulary = dataset.vocabulary
    is_transductive = setting == "transductive" and bool(vocabulary.unseen_label_ids)
    options = TransitionOptions() if options is None else options
    _check_stages(model, stages, teacher, is_transductive=is_transductive)
    transform = build_concat_transform(size, min_scale=min_scale, max_scale=max_scale)
    if isinstance(dataset, StreamedPanopticDataset):
        _check_streamed_stages(stages)
        prepare_stages(
            stages.values(),
            later_folders=[store_folder / name for name in _list_later(stages)],
            resume=resume,
            overwrite=overwrite,
        )
        model.to(get_process_state().device)
        return train_concat(
            model,
            processor,
            dataset,
            stages=stages,
            transform=transform,
            unseen=unseen,
            evaluate=evaluate,
            stream=stream,
            **choose_start(stages.values(), resume=resume, overwrite=overwrite),
        )
    seen_pictures = _hide_unseen(dataset, unseen)
    check_query_batches(stages, options, len(seen_pictures))
    prepare_stages(
        stages.values(),
        later_folders=[store_folder / name for name in _list_later(stages)],
        resume=resume,
        overwrite=overwrite,
    )
    segmentor_stages = {name: stages[name] for name in stages if name not in TRANSITION_STAGES}
    transition_stages = {name: stages[name] for name in stages if name in TRANSITION_STAGES}
    model.to(get_process_state().device)
    results: dict[str, TrainingResult] = {}
    if segmentor_stages:
        pictures = seen_pictures
        if teacher is not None and AlignmentStage.name in segmentor_stages:
            if resume:
                check_same_teacher(segmentor_stages.values(), teacher)
            tokens = build_token_store(seen_pictures, teacher, store_folder / TOKEN_FOLDER)
            pictures = ClipTokenDataset(seen_pictures, tokens)
        results |= train_concat(
            model,
            processor,
            pictures,
            stages=segmentor_stages,
            transform=transform,
            unseen=unseen,
            alignment=alignment,
            # Also where only the warm-up runs now: a later call goes on with the alignment.
            data_setup={} if teacher is None else describe_teacher(teacher),
            evaluate=evaluate,
            stream=stream,
            **choose_start(segmentor_stages.values(), resume=resume, overwrite=overwrite),
        )
    if transition_stages and are_complete(results):
        query_pictures, query_setup = fit_query_pictures(seen_pictures, size, options.query_images, unseen)
        results |= train_concat_transition(
            model,
            processor,
            query_pictures,
            stages=transition_stages,
            store_folder=store_folder / QUERY_FOLDER,
            unseen=vocabulary.select(vocabulary.unseen_label_ids) if is_transductive else None,
            data_setup=query_setup,
            options=_fit_memory(options, model, seen_pictures),
            union_options=union_options,
            evaluate=evaluate,
            stream=stream,
            **choose_start(transition_stages.values(), resume=resume, overwrite=overwrite),
        )
    return results


def describe_teacher(teacher: VisionLanguageTeacher) -> dict[str, str]:
    """What the setup of an alignment run says of its teacher."""
    return {"teacher": teacher.weights_hash}


def check_same_teacher(stages: Iterable[TrainerArguments], teacher: VisionLanguageTeacher) -> None:
    """Refuse to resume with another teacher, before the tokens of the run's own one are replaced.

    Args:
        stages: those that learn from tokens; the ones without a checkpoint are passed over.
        teacher: of this call.

    Raises:
        CheckpointError: if a stage began with another teacher.
    """
    for arguments in stages:
        checkpoints = find_checkpoints(arguments.output_dir)
        if not checkpoints:
            continue
        checkpoint = checkpoints[max(checkpoints)]
        begun_with = read_setup(checkpoint).get("teacher")
        if begun_with != teacher.weights_hash:
            raise CheckpointError(
                f"{checkpoint} comes from another setup, so resuming would not continue that run: teacher "
                f"{begun_with} then, {teacher.weights_hash} now (a CLIP with other weights, or used "
                "otherwise). Resume with the same one, whose tokens are still there, or start a new run in "
                "another folder"
            )


def build_token_store(dataset: PanopticDataset, teacher: VisionLanguageTeacher, folder: Path) -> TensorStore:
    """A teacher's CLS tokens of pictures and segments, computed as far as they are missing.

    One process of a distributed run computes them, the others wait for it, however long it takes.

    Args:
        dataset: what may be learnt from, without transforms.
        teacher: on accelerate's device meanwhile, on the CPU afterwards.
        folder: of the store.
    """
    teacher.to(get_process_state().device)
    tokens = build_clip_tokens(
        dataset,
        folder,
        encode=teacher.encode_images,
        image_size=teacher.image_size,
        fill_color=teacher.fill_color,
        teacher_hash=teacher.weights_hash,
    )
    teacher.to("cpu")
    return tokens


def fit_query_pictures(
    dataset: PanopticDataset, size: tuple[int, int], num_pictures: int, unseen: UnseenPolicy
) -> tuple[TransformedDataset, dict[str, str]]:
    """The pictures that queries are extracted from: all of one size, without jitter, as they have no epochs.

    Args:
        dataset: what may be learnt from.
        size: (height, width) in pixels that each picture is scaled to fit into.
        num_pictures: how many of them will be used at most.
        unseen: what became of unseen segments there.

    Returns:
        The pictures, and what tells them from others, by name.
    """
    transform = LargeScaleJitter(size, min_scale=1.0, max_scale=1.0)
    labels = [sorted(dataset.label_ids(index)) for index in range(min(num_pictures, len(dataset)))]
    identity = {
        "transform": repr(transform),
        "first example": compute_example_digest(dataset[0]).hex()[:16],
        "unseen": unseen,
        "labels of each": hashlib.sha256(repr(labels).encode()).hexdigest()[:16],
    }
    return TransformedDataset(dataset, transform, seed=0), identity


def _check_stages(
    model: ConcatForPanopticSegmentation,
    stages: Mapping[str, TrainerArguments],
    teacher: VisionLanguageTeacher | None,
    *,
    is_transductive: bool,
) -> None:
    if not stages or stages.keys() - set(STAGES):
        raise ValueError(f"give one of the stages {list(STAGES)} or more, got {list(stages)}")
    if AlignmentStage.name in stages and teacher is None:
        raise ValueError('the stage "alignment" needs a teacher, the CLIP whose text space the model uses')
    if teacher is not None and teacher.embed_dim != model.config.projection_dim:
        raise ValueError(
            f"the teacher's tokens have {teacher.embed_dim} numbers, but the model's text embeddings have "
            f"{model.config.projection_dim}: the teacher must be the CLIP whose text tower gave them"
        )
    check_generator(model, stages)
    if UnionStage.name in stages and not is_transductive:
        raise ValueError(
            'the stage "union" learns unseen labels by their names: it needs data with unseen labels, '
            'and the setting "transductive"'
        )


def _check_streamed_stages(stages: Mapping[str, TrainerArguments]) -> None:
    if others := [name for name in stages if name not in (BackboneStage.name, *STREAMED_STAGES)]:
        raise ValueError(
            f"the stages {others} store tokens or queries of pictures by number, which a stream does not "
            f"have: train {' and '.join(STREAMED_STAGES)} on it, and these on a data set opened with "
            "open_dataset"
        )


def _list_later(stages: Mapping[str, TrainerArguments]) -> tuple[str, ...]:
    """The stages that would go on from the last of these."""
    return STAGES[1 + max(STAGES.index(name) for name in stages) :]


def _hide_unseen(dataset: PanopticDataset, policy: UnseenPolicy) -> PanopticDataset:
    """What may be learnt from: tokens and queries too are taken of nothing else."""
    if not dataset.vocabulary.unseen_label_ids:
        return dataset
    return drop_images_with_unseen(dataset) if policy == "drop_images" else ignore_unseen(dataset)


def _fit_memory(
    options: TransitionOptions, model: ConcatForPanopticSegmentation, dataset: PanopticDataset
) -> TransitionOptions:
    """A checkpoint trained on a few pictures remembers all their queries."""
    num_queries = model.config.segmentor_config.num_queries * min(options.query_images, len(dataset))
    return replace(options, memory_size=min(options.memory_size, num_queries))
