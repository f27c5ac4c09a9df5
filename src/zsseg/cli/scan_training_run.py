"""From the options of ``zsseg train scan`` to the stages that run, and a checkpoint at their end."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from zsseg.cli.checkpoint_loading import quieten_transformers
from zsseg.cli.ground_truth import LabelSetup
from zsseg.cli.stage_arguments import build_stage_arguments
from zsseg.cli.training_run import (
    check_evaluation,
    check_final_folder,
    choose_metric,
    choose_task,
    describe_data,
    finish_run,
    print_setup,
    training_errors_as_values,
)
from zsseg.data.examples import PanopticDataset
from zsseg.data.seen_filter import UnseenPolicy
from zsseg.data.streaming import StreamedPanopticDataset
from zsseg.models.scan.modeling_scan import ScanForSemanticSegmentation
from zsseg.models.scan.processing_scan import ScanProcessor
from zsseg.training.arguments import TrainerArguments
from zsseg.training.evaluation import evaluate_model
from zsseg.training.recipes.scan import (
    STAGE_ARGUMENTS,
    STAGE_STEPS,
    STAGES,
    build_scan_transform,
    train_scan,
)
from zsseg.training.recipes.scan_stages import ContextualShiftOptions, ProposalStage
from zsseg.training.trainer import Evaluate


def build_scan_arguments(
    output: Path,
    stage: str,
    validation: PanopticDataset | None,
    *,
    arguments: Path | None,
    from_options: Mapping[str, Any],
) -> dict[str, TrainerArguments]:
    """The arguments of the stages that ``--stage`` means; see :func:`build_stage_arguments`.

    Args:
        output: every stage gets a folder of its name in it.
        stage: one of them, or "all".
        validation: what to evaluate on.
        arguments: JSON file of training arguments.
        from_options: those of the command line.

    Raises:
        UsageError: if the file asks for evaluation and there is nothing to evaluate on.
    """
    metric = choose_metric(validation)
    stages = build_stage_arguments(
        output,
        {
            name: {**STAGE_ARGUMENTS[name], "metric_for_best": metric}
            for name in (STAGES if stage == "all" else (stage,))
        },
        arguments=arguments,
        from_options=from_options,
        sections=STAGES,
        evaluated=STAGES,
        recipe_steps=STAGE_STEPS,
    )
    check_evaluation(stages, validation)
    return stages


class ScanTrainingRun:
    """One run of SCAN's stages on a data set.

    Args:
        stages: arguments by stage.
        dataset: what to train on.
        validation: what to evaluate on; None does not evaluate.
        labels: how labels are spelled, for the record.
        output: folder of the stages' folders and of the checkpoint at the end.
    """

    model: ScanForSemanticSegmentation
    processor: ScanProcessor

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

    def load(self, *, model: str | None, mask2former: str | None, clip: str | None) -> None:
        """Load the start weights, a checkpoint or a Mask2Former and a CLIP.

        Without the stage "proposals" the parts become a model of mode "clip_only": proposal embeddings would
        stay random.

        Raises:
            OSError: if a checkpoint is not found.
            ValueError: if a checkpoint is of another kind or lacks weights.
        """
        quieten_transformers()
        torch.manual_seed(next(iter(self.stages.values())).seed)
        if model is not None:
            self.source = model
            self.model = ScanForSemanticSegmentation.from_pretrained(model)
            self.processor = ScanProcessor.from_pretrained(model)
            return
        parts = {"mask2former": str(mask2former), "clip": str(clip)}
        self.source = " + ".join(parts.values())
        has_proposals = ProposalStage.name in self.stages
        self.model = ScanForSemanticSegmentation.from_parts(
            **parts, mode="ensemble" if has_proposals else "clip_only"
        )
        self.processor = ScanProcessor.from_parts(**parts)

    def print_setup(self, unseen_policy: UnseenPolicy) -> None:
        """What is trained from which weights, on which pictures and labels, for how long."""
        data = describe_data(self.dataset, self.labels, unseen_policy)
        print_setup(self.source, data, self.stages, self.output)

    def train(
        self,
        *,
        size: tuple[int, int],
        min_scale: float,
        max_scale: float,
        unseen_policy: UnseenPolicy,
        crops_per_image: int,
        shift_ratio: float,
        resume: bool,
        overwrite: bool,
    ) -> bool:
        """Run the stages and write the checkpoint.

        Args:
            size: (height, width) of a training crop in pixels.
            min_scale: smallest short side, as a multiple of the crop's shorter edge.
            max_scale: largest short side.
            unseen_policy: as of :func:`~zsseg.training.picture_recipe.run_picture_recipe`.
            crops_per_image: as of :class:`~zsseg.training.recipes.scan_stages.ContextualShiftOptions`.
            shift_ratio: likewise.
            resume: go on with an earlier run.
            overwrite: start anew in folders that hold one.

        Returns:
            Whether all stages are complete; an interrupted run writes no final checkpoint.

        Raises:
            ValueError: if the run cannot begin, cannot be resumed, or diverges.
        """
        transform = build_scan_transform(size, min_scale=min_scale, max_scale=max_scale)
        shift = ContextualShiftOptions(crops_per_image=crops_per_image, shift_ratio=shift_ratio)
        check_final_folder(self.output, self.processor)
        last = max(STAGES.index(name) for name in self.stages)
        with training_errors_as_values():
            results = train_scan(
                self.model,
                self.processor,
                self.dataset,
                stages=self.stages,
                transform=transform,
                unseen=unseen_policy,
                shift=shift,
                evaluate=self._build_evaluation(),
                later_folders=[self.output / name for name in STAGES[last + 1 :]],
                resume=resume,
                overwrite=overwrite,
            )
        return finish_run(self.output, self.stages, results, self.model, self.processor)

    def _build_evaluation(self) -> Evaluate | None:
        if self.validation is None:
            return None
        validation, task = self.validation, choose_task(self.validation)
        return lambda model: evaluate_model(model, self.processor, validation, task=task)
