"""From the options of ``zsseg train concat`` to the stages that run, and a checkpoint at their end."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
import typer

from zsseg.cli.checkpoint_loading import quieten_transformers
from zsseg.cli.ground_truth import LabelSetup, describe_labels
from zsseg.cli.messages import UsageError
from zsseg.cli.stage_arguments import CHECKPOINT_FOLDER, build_stage_arguments
from zsseg.cli.text_layout import format_count, format_percent
from zsseg.data.examples import PanopticDataset
from zsseg.data.seen_filter import SeenLabelsDataset, UnseenPolicy
from zsseg.data.semantic_maps import SemanticMapDataset
from zsseg.data.streaming import StreamedPanopticDataset
from zsseg.data.tensor_store import TensorStoreError
from zsseg.layers.vision_language import VisionLanguageTeacher, load_vision_language_teacher
from zsseg.models.concat.modeling_concat import ConcatForPanopticSegmentation
from zsseg.models.concat.processing_concat import ConcatProcessor
from zsseg.publishing.folder_replacement import replacing_folder
from zsseg.training.arguments import TrainerArguments
from zsseg.training.checkpointing import CheckpointError, Saveable
from zsseg.training.evaluation import Task, evaluate_model
from zsseg.training.processes import OtherProcessError, get_process_state
from zsseg.training.recipe_parts import are_complete
from zsseg.training.recipes.concat_segmentor import AlignmentStage, SegmentorStage, WarmupStage
from zsseg.training.recipes.concat_stages import STREAMED_STAGES, Setting, train_concat_stages
from zsseg.training.recipes.concat_transition import GeneratorStage, TransitionOptions, UnionStage
from zsseg.training.recipes.patchwork import PatchworkSteps
from zsseg.training.recipes.patchwork_transition import build_patchwork_transition_stages
from zsseg.training.step import TrainingDivergedError
from zsseg.training.trainer import Evaluate, TrainingResult
from zsseg.vocabulary import Vocabulary

STAGES = (WarmupStage.name, SegmentorStage.name, AlignmentStage.name, GeneratorStage.name, UnionStage.name)


def choose_stages(
    stage: str,
    vocabulary: Vocabulary,
    *,
    setting: Setting,
    has_teacher: bool,
    is_streamed: bool = False,
) -> tuple[str, ...]:
    """The stages that ``--stage`` means.

    Args:
        stage: one of them, or "all": all that data, setting and teacher allow.
        vocabulary: of the data.
        setting: whether training knows unseen names.
        has_teacher: whether there is a CLIP to learn from.
        is_streamed: whether the data come in one after the other and cannot be asked for by number.

    Raises:
        UsageError: if the one that is asked for cannot run.
    """
    segmentor = AlignmentStage.name if has_teacher else SegmentorStage.name
    has_union = setting == "transductive" and bool(vocabulary.unseen_label_ids)
    if is_streamed:
        if has_teacher or stage not in ("all", *STREAMED_STAGES):
            raise UsageError(
                "stages that store tokens or queries ask for pictures by number, which a stream does not "
                f"have: with --streaming the stages are {' and '.join(STREAMED_STAGES)}; run the others "
                "without it, on the data set or a part of it"
            )
        return STREAMED_STAGES if stage == "all" else (stage,)
    if stage == "all":
        chosen = (WarmupStage.name, segmentor, GeneratorStage.name)
        return (*chosen, UnionStage.name) if has_union else chosen
    if (stage == AlignmentStage.name) != has_teacher:
        raise UsageError("--teacher and --stage alignment go together: the stage learns from the teacher")
    if stage == UnionStage.name and not has_union:
        raise UsageError(
            "--stage union learns unseen labels by their names: it needs --setting transductive, and data "
            "with unseen labels (--split or --unseen)"
        )
    return (stage,)


def build_concat_arguments(
    output: Path,
    names: Sequence[str],
    validation: PanopticDataset | None,
    *,
    arguments: Path | None,
    from_options: Mapping[str, Any],
) -> dict[str, TrainerArguments]:
    """The arguments of the stages of these names; see :func:`build_stage_arguments`.

    The best checkpoint is chosen by the seen labels, unless the file names another metric: unseen ones must
    not decide anything in training.

    Raises:
        UsageError: if the file asks for evaluation and there is nothing to evaluate on.
    """
    metric = choose_metric(validation)
    # Queries are as small as Patchwork's: what trains on them has the same arguments everywhere.
    steps = PatchworkSteps()
    transition = build_patchwork_transition_stages(
        output, generator_steps=steps.generator, union_steps=steps.union, mixed_precision="no"
    )
    defaults = {
        name: {**(transition[name].to_dict() if name in transition else {}), "metric_for_best": metric}
        for name in names
    }
    stages = build_stage_arguments(
        output,
        defaults,
        arguments=arguments,
        from_options=from_options,
        sections=STAGES,
        evaluated=(SegmentorStage.name, AlignmentStage.name),
    )
    check_evaluation(stages, validation)
    return stages


def check_evaluation(stages: Mapping[str, TrainerArguments], validation: PanopticDataset | None) -> None:
    """Refuse to evaluate on nothing.

    Raises:
        UsageError: if the arguments ask for it.
    """
    if validation is None and any(stage.evaluate_every is not None for stage in stages.values()):
        raise UsageError("the arguments say evaluate_every, which needs --val, the data to evaluate on")


def choose_metric(validation: PanopticDataset | None) -> str:
    """The number that chooses the best checkpoint: of the seen labels, as unseen ones decide nothing."""
    return "PQ_seen" if choose_task(validation) == "panoptic" else "mIoU_seen"


def choose_task(validation: PanopticDataset | None) -> Task:
    """Semantic maps do not tell instances apart; everything else is scored by segments."""
    return "semantic" if isinstance(validation, SemanticMapDataset | None) else "panoptic"


class TrainingRun:
    """One run of CONCAT's stages on a data set.

    Args:
        stages: arguments by stage.
        dataset: what to train on.
        validation: what to evaluate on; None does not evaluate.
        labels: how labels are spelled, for the record.
        output: folder of the stages' folders and of the checkpoint at the end.
    """

    model: ConcatForPanopticSegmentation
    processor: ConcatProcessor
    teacher: VisionLanguageTeacher | None

    def __init__(
        self,
        *,
        stages: Mapping[str, TrainerArguments],
        dataset: PanopticDataset | StreamedPanopticDataset,
        validation: PanopticDataset | None,
        labels: LabelSetup,
        output: Path,
    ) -> None:
        self.stages = stages
        self.dataset = dataset
        self.validation = validation
        self.labels = labels
        self.output = output

    def load(
        self,
        *,
        model: str | None,
        mask2former: str | None = None,
        clip: str | None = None,
        teacher: str | None = None,
    ) -> None:
        """Load the start weights, a checkpoint or a Mask2Former and a text encoder, and the teacher.

        Raises:
            ValueError: if a teacher of open_clip is named, which is not installed.
        """
        quieten_transformers()
        torch.manual_seed(next(iter(self.stages.values())).seed)
        try:
            self.teacher = None if teacher is None else load_vision_language_teacher(teacher)
        except ImportError as error:
            raise ValueError(str(error)) from error
        if model is not None:
            self.source = model
            self.model = ConcatForPanopticSegmentation.from_pretrained(model)
            self.processor = ConcatProcessor.from_pretrained(model)
            return
        self.source = f"{mask2former} + {clip}"
        self.model = ConcatForPanopticSegmentation.from_mask2former(str(mask2former), clip=str(clip))
        self.processor = ConcatProcessor.from_mask2former(str(mask2former), clip=str(clip))

    def print_setup(self, unseen_policy: UnseenPolicy, setting: Setting) -> None:
        """What is trained from which weights, on which pictures and labels, for how long."""
        data = describe_data(self.dataset, self.labels, f"{unseen_policy}, {setting}")
        print_setup(self.source, data, self.stages, self.output)

    def train(
        self,
        *,
        size: tuple[int, int],
        min_scale: float,
        max_scale: float,
        unseen_policy: UnseenPolicy,
        setting: Setting,
        generator_type: str,
        resume: bool,
        overwrite: bool,
    ) -> bool:
        """Run the stages and write the checkpoint.

        Args:
            size: (height, width) of a training crop in pixels.
            min_scale: smallest factor of the scale jitter.
            max_scale: largest factor.
            unseen_policy: as of :func:`~zsseg.training.recipes.concat.train_concat`.
            setting: whether training knows unseen names.
            generator_type: "mlp", "cvae" or "primitives".
            resume: go on with an earlier run.
            overwrite: start anew in folders that hold one.

        Returns:
            Whether all stages are complete; an interrupted run writes no final checkpoint.

        Raises:
            ValueError: if the run cannot begin, cannot be resumed, or diverges.
        """
        check_final_folder(self.output, self.processor)
        with training_errors_as_values():
            results = train_concat_stages(
                self.model,
                self.processor,
                self.dataset,
                stages=self.stages,
                store_folder=self.output,
                size=size,
                min_scale=min_scale,
                max_scale=max_scale,
                unseen=unseen_policy,
                setting=setting,
                teacher=self.teacher,
                options=TransitionOptions(generator_type=generator_type),
                evaluate=self._build_evaluation(setting),
                resume=resume,
                overwrite=overwrite,
            )
        return finish_run(self.output, self.stages, results, self.model, self.processor)

    def _build_evaluation(self, setting: Setting) -> Evaluate | None:
        """In the inductive setting no unseen name is read here either: the best checkpoint depends on it."""
        if self.validation is None:
            return None
        task = choose_task(self.validation)
        validation = SeenLabelsDataset(self.validation) if setting == "inductive" else self.validation
        return lambda model: evaluate_model(model, self.processor, validation, task=task)


def describe_data(dataset: PanopticDataset | StreamedPanopticDataset, labels: LabelSetup, unseen: str) -> str:
    """How many pictures and labels; if some are unseen, also what happens to those."""
    policy = f" · unseen: {unseen}" if dataset.vocabulary.unseen_label_ids else ""
    images = (
        "a stream of images"
        if isinstance(dataset, StreamedPanopticDataset)
        else format_count(len(dataset), "image")
    )
    return f"{images} · {describe_labels(dataset.vocabulary, labels)}{policy}"


def print_setup(source: str, data: str, stages: Mapping[str, TrainerArguments], output: Path) -> None:
    """What begins from what, on which data, for how long."""
    if not get_process_state().is_main_process:
        return
    typer.secho(f"{source} · {get_process_state().device}", bold=True)
    typer.echo(data)
    counts = ", ".join(f"{name} {format_count(stage.steps, 'step')}" for name, stage in stages.items())
    typer.echo(f"{counts} → {output}")


@contextmanager
def training_errors_as_values() -> Iterator[None]:
    """What goes wrong with a run is no bug of ours: one line is enough.

    Raises:
        ValueError: for an error of training's own kinds, with its message.
    """
    try:
        yield
    except (CheckpointError, TensorStoreError, TrainingDivergedError, OtherProcessError) as error:
        raise ValueError(str(error)) from error


def check_final_folder(output: Path, processor: Saveable) -> None:
    """Find out before training whether its checkpoint could take the place of one that is there.

    Raises:
        ValueError: if there are files that no checkpoint replaces, such as a card or evaluations.
    """
    folder = output / CHECKPOINT_FOLDER
    if not folder.is_dir():
        return
    with TemporaryDirectory() as scratch:
        processor.save_pretrained(scratch)
        written = {path.name for path in Path(scratch).iterdir()} | {"config.json"}
    others = [path.name for path in sorted(folder.iterdir()) if path.name not in written]
    if others := [name for name in others if not name.startswith("model")]:
        raise ValueError(
            f"{folder} holds what the new checkpoint would not write again: {others[:10]}; move it away, or "
            "choose another --output"
        )


def finish_run(
    output: Path,
    stages: Mapping[str, TrainerArguments],
    results: Mapping[str, TrainingResult],
    model: Saveable,
    processor: Saveable,
) -> bool:
    """Write the final checkpoint, whole or not at all, or say how an interrupted run goes on.

    Returns:
        Whether all stages are complete.
    """
    is_complete = are_complete(results)
    if not get_process_state().is_main_process:
        return is_complete
    if not is_complete:
        typer.echo("the same command with --resume goes on from here", err=True)
        return False
    folder = output / CHECKPOINT_FOLDER
    with replacing_folder(folder) as unfinished:
        model.save_pretrained(unfinished)
        processor.save_pretrained(unfinished)
    typer.echo(f"{typer.style('wrote', fg='green', bold=True)} {folder}")
    for name, result in results.items():
        if result.best_metric is not None:
            best = f"{stages[name].metric_for_best}: {format_percent(result.best_metric)} %"
            typer.echo(f"{name}, best by {best} in {result.best_checkpoint}")
    return True
