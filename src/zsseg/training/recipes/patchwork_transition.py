"""What follows CONCAT's segmentor on Patchwork: token alignment, query generator, union fine-tuning."""

from collections.abc import Mapping
from pathlib import Path
from typing import TextIO

from zsseg.data.clip_tokens import ClipTokenDataset
from zsseg.data.patchwork.categories import build_patchwork_vocabulary
from zsseg.data.patchwork.splits import load_patchwork_split
from zsseg.data.transforms import Compose
from zsseg.layers.vision_language import load_vision_language_teacher
from zsseg.models.concat.adaptation_concat import UnionOptions
from zsseg.models.concat.modeling_concat import ConcatForPanopticSegmentation
from zsseg.models.concat.processing_concat import ConcatProcessor
from zsseg.training.arguments import MixedPrecision, TrainerArguments
from zsseg.training.recipes.concat import train_concat
from zsseg.training.recipes.concat_segmentor import AlignmentOptions, AlignmentStage
from zsseg.training.recipes.concat_stages import (
    Setting,
    build_token_store,
    check_same_teacher,
    describe_teacher,
)
from zsseg.training.recipes.concat_transition import (
    TRANSITION_STAGES,
    GeneratorStage,
    TransitionOptions,
    UnionStage,
    train_concat_transition,
)
from zsseg.training.recipes.patchwork_concat import build_training_scenes
from zsseg.training.trainer import TrainingResult
from zsseg.vocabulary import Vocabulary


def build_patchwork_alignment_arguments(
    output: Path,
    *,
    steps: int,
    batch_size: int = 16,
    mixed_precision: MixedPrecision = "bf16",
    seed: int = 0,
    num_workers: int = 1,
) -> TrainerArguments:
    """Arguments of the alignment stage, which goes on from a trained segmentor."""
    return TrainerArguments(
        output_dir=output / AlignmentStage.name,
        steps=steps,
        batch_size=batch_size,
        learning_rate=4e-4,
        backbone_learning_rate_multiplier=1.0,
        max_grad_norm=5.0,
        warmup_steps=min(20, steps - 1),
        schedule="polynomial",
        mixed_precision=mixed_precision,
        seed=seed,
        save_every=100,
        keep_last_n=1,
        num_workers=num_workers,
    )


def build_patchwork_transition_stages(
    output: Path,
    *,
    generator_steps: int,
    union_steps: int,
    mixed_precision: MixedPrecision = "bf16",
    seed: int = 0,
) -> dict[str, TrainerArguments]:
    """Arguments of both stages: PADing's rates and milestones, the rate of union fine-tuning doubled."""
    generator = TrainerArguments(
        output_dir=output / GeneratorStage.name,
        steps=generator_steps,
        batch_size=16,
        learning_rate=5e-4,
        weight_decay=0.0,
        max_grad_norm=None,
        milestones=(0.7, 0.925),
        mixed_precision=mixed_precision,
        seed=seed,
        save_every=None,
        log_every=100,
        num_workers=0,
    )
    union = TrainerArguments(
        output_dir=output / UnionStage.name,
        steps=union_steps,
        batch_size=12,
        optimizer="sgd",
        learning_rate=2e-3,
        weight_decay=5e-4,
        max_grad_norm=None,
        schedule="constant",
        mixed_precision=mixed_precision,
        seed=seed,
        save_every=None,
        log_every=100,
        num_workers=0,
    )
    return {GeneratorStage.name: generator, UnionStage.name: union}


def train_patchwork_alignment(
    model: ConcatForPanopticSegmentation,
    processor: ConcatProcessor,
    clip: str | Path,
    arguments: TrainerArguments,
    *,
    token_folder: Path,
    split: str = "A",
    alignment: AlignmentOptions | None = None,
    resume: bool = False,
    overwrite: bool = False,
    stream: TextIO | None = None,
) -> TrainingResult:
    """Go on with the segmentor on scenes whose CLS tokens are computed beforehand.

    Args:
        model: a trained segmentor, trained on in place.
        processor: of the same checkpoint.
        clip: folder of Patchwork's CLIP, whose vision tower teaches.
        arguments: of the stage; it sees as many scenes as its steps take, each once.
        token_folder: keeps the tokens; those there are used if they are of this CLIP and these scenes.
        split: which names are unseen.
        alignment: weights and bank size.
        resume: go on where an earlier run of the same arguments stopped or was killed.
        overwrite: start anew in a folder that holds a run.
        stream: console output, standard error if None.

    Raises:
        As :func:`~zsseg.training.recipes.concat.train_concat`.
    """
    scenes = build_training_scenes(arguments.steps * arguments.batch_size, split)
    teacher = load_vision_language_teacher(str(clip))
    if resume:
        check_same_teacher([arguments], teacher)
    results = train_concat(
        model,
        processor,
        ClipTokenDataset(scenes, build_token_store(scenes, teacher, token_folder)),
        stages={AlignmentStage.name: arguments},
        transform=Compose(()),
        unseen="drop_images",
        alignment=alignment,
        data_setup=describe_teacher(teacher),
        resume=resume,
        overwrite=overwrite,
        stream=stream,
    )
    return results[AlignmentStage.name]


def train_patchwork_transition(
    model: ConcatForPanopticSegmentation,
    processor: ConcatProcessor,
    stages: Mapping[str, TrainerArguments],
    *,
    query_folder: Path,
    split: str = "A",
    setting: Setting = "transductive",
    options: TransitionOptions | None = None,
    union_options: UnionOptions | None = None,
    resume: bool = False,
    overwrite: bool = False,
    stream: TextIO | None = None,
) -> dict[str, TrainingResult]:
    """Train generator and projector on the queries of scenes that hold no unseen category.

    Args:
        model: with a trained segmentor; trained in place.
        processor: of the same checkpoint.
        stages: as :func:`build_patchwork_transition_stages` makes them; "inductive" runs only the first.
        query_folder: keeps the extracted queries.
        split: which names are unseen.
        setting: "transductive" lets training know the unseen names, "inductive" does not.
        options: of the generator.
        union_options: of union fine-tuning.
        resume: go on where an earlier run of the same arguments stopped or was killed.
        overwrite: start anew in folders that hold a run.
        stream: console output, standard error if None.

    Raises:
        As :func:`~zsseg.training.recipes.concat_transition.train_concat_transition`.
    """
    options = TransitionOptions() if options is None else options
    scenes = build_training_scenes(options.query_images, split)
    return train_concat_transition(
        model,
        processor,
        scenes,
        stages=choose_transition_stages(stages, setting),
        store_folder=query_folder,
        unseen=None if setting == "inductive" else select_unseen_names(split),
        data_setup={"world": f"Patchwork {scenes.preset.name}, seed {scenes.seed}, split {split}, seen"},
        options=options,
        union_options=union_options,
        resume=resume,
        overwrite=overwrite,
        stream=stream,
    )


def choose_transition_stages(
    stages: Mapping[str, TrainerArguments], setting: Setting
) -> dict[str, TrainerArguments]:
    """Those after alignment that the setting allows: "union" has to know the unseen names."""
    allowed = (GeneratorStage.name,) if setting == "inductive" else TRANSITION_STAGES
    return {name: stages[name] for name in allowed if name in stages}


def select_unseen_names(split: str) -> Vocabulary:
    """The names that training may know in the transductive setting; no scene of training shows them."""
    vocabulary = build_patchwork_vocabulary(load_patchwork_split(split))
    return vocabulary.select(vocabulary.unseen_label_ids)
