"""CONCAT's stages 2 and 3 on a frozen segmentor: the query generator, then union fine-tuning.

Cycle transition (arXiv:2402.13697, Sec. 3): a generator learns to turn the embedding of a label into vision
queries like those that contain segments of that label. Asked for labels that no picture shows, it makes the
pseudo queries on which the semantic projector learns them. Both stages run on stored queries, no pictures.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Literal, TextIO

import torch
from torch import Tensor

from zsseg.data.examples import PanopticDataset
from zsseg.data.tensor_store import TensorStore
from zsseg.losses.moment_matching import compute_moment_matching_loss
from zsseg.losses.query_contrast import compute_cycle_loss, compute_query_contrast_loss
from zsseg.losses.set_criterion import UNKNOWN_LABEL
from zsseg.models.concat.adaptation_concat import (
    UNION_PREFIXES,
    FrozenClassifier,
    UnionOptions,
    compute_union_loss,
    draw_text_embeds,
)
from zsseg.models.concat.generator_concat import GENERATOR_KINDS, GeneratorBatch
from zsseg.models.concat.modeling_concat import ConcatForPanopticSegmentation
from zsseg.models.concat.processing_concat import ConcatProcessor
from zsseg.models.concat.query_memory import NO_OBJECT, sample_queries
from zsseg.models.inference import encode_vocabulary
from zsseg.training.arguments import TrainerArguments
from zsseg.training.picture_recipe import build_seen_collator
from zsseg.training.processes import get_process_state
from zsseg.training.query_store import (
    LabelQueryDataset,
    QueryDataset,
    build_query_store,
    collate_queries,
)
from zsseg.training.recipe import RecipeStep, run_recipe
from zsseg.training.recipes.concat_segmentor import GENERATOR_PREFIX
from zsseg.training.stage import Batch, Stage, StageContext
from zsseg.training.trainer import Evaluate, TrainingResult
from zsseg.vocabulary import Vocabulary


@dataclass(frozen=True, kw_only=True)
class TransitionOptions:
    """The generator and its losses (arXiv:2402.13697, Sec. 3); a weight of 0 leaves a loss out.

    Attributes:
        generator_type: "mlp", "cvae" or "primitives" (PADing's).
        noise_dim: width of the generator's noise.
        hidden_dim: width of its hidden layers.
        moments: "per_label" matches the moments of each label by itself, "pooled" those of the whole batch,
            as PADing does.
        moment_weight: of moment matching between pseudo and real queries of the same labels.
        contrast_weight: of the query contrast.
        cycle_weight: of the cycle back to the labels through the frozen projector.
        unseen_cycle_weight: of the same for pseudo queries of the unseen labels; "transductive" only.
        own_weight: of the losses that a generator brings along: of the CVAE, or PADing's.
        queries_per_label: real queries of one label in a batch; None draws whole pictures instead.
        query_images: pictures whose queries are extracted.
        query_batch_size: pictures of one forward pass meanwhile.
        memory_size: queries that the checkpoint keeps to adapt without pictures; 0 keeps none.

    Raises:
        ValueError: if a weight is negative, no loss is left, the type is unknown or a number too small.
    """

    generator_type: str = "mlp"
    noise_dim: int = 64
    hidden_dim: int = 256
    moments: Literal["per_label", "pooled"] = "per_label"
    moment_weight: float = 1.0
    contrast_weight: float = 0.3
    cycle_weight: float = 0.02
    unseen_cycle_weight: float = 0.02
    own_weight: float = 1.0
    queries_per_label: int | None = 8
    query_images: int = 3000
    query_batch_size: int = 16
    memory_size: int = 600

    def __post_init__(self) -> None:
        names = ("moment_weight", "contrast_weight", "cycle_weight", "unseen_cycle_weight", "own_weight")
        weights = {name: getattr(self, name) for name in names}
        if any(not weight >= 0 for weight in weights.values()):
            raise ValueError(f"weights must be 0 or more, got {weights}")
        if self.moments not in ("per_label", "pooled"):
            raise ValueError(f'moments must be "per_label" or "pooled", got {self.moments!r}')
        if self.generator_type not in GENERATOR_KINDS:
            raise ValueError(f"generator_type must be one of {GENERATOR_KINDS}, got {self.generator_type!r}")
        # "mlp" brings no loss along, and without unseen names there is no unseen cycle.
        always = {"moment_weight", "contrast_weight", "cycle_weight"}
        if self.generator_type != "mlp":
            always.add("own_weight")
        if not any(weights[name] for name in always):
            raise ValueError(
                f"{self.generator_type!r} learns from nothing: one of {sorted(always)} must not be 0"
            )
        for name, smallest in (
            *((name, 1) for name in ("noise_dim", "hidden_dim", "query_images", "query_batch_size")),
            *(("queries_per_label", 1), ("memory_size", 0)),
        ):
            value = getattr(self, name)
            if value is not None and value < smallest:
                raise ValueError(f"{name} must be {smallest} or more, got {value}")


class GeneratorStage(Stage):
    """Trains the generator alone: moment matching, query contrast and the cycle through the projector."""

    name: ClassVar[str] = "generator"
    has_unused_parameters: ClassVar[bool] = True
    # Moments are those of all queries, not means of those of some.
    needs_whole_batch: ClassVar[bool] = True

    def __init__(self, options: TransitionOptions) -> None:
        self.options = options

    def is_trainable(self, parameter_name: str) -> bool:
        """The generator."""
        return parameter_name.startswith(GENERATOR_PREFIX)

    def compute_loss(self, model: Any, batch: Batch, context: StageContext) -> dict[str, Tensor]:
        """The weighted sum, and each loss."""
        with torch.autocast(batch["queries"].device.type, enabled=False):
            losses = self._compute_losses(model, batch, context)
        options = self.options
        weights = {
            "moments": options.moment_weight,
            "contrast": options.contrast_weight,
            "cycle": options.cycle_weight,
            "unseen_cycle": options.unseen_cycle_weight,
            **{name: options.own_weight * own for name, own in model.generator.own_loss_weights.items()},
        }
        total = torch.stack([weights[name] * value for name, value in losses.items()]).sum()
        return {"loss": total, **{name: value.detach() for name, value in losses.items()}}

    def _compute_losses(self, model: Any, batch: Batch, context: StageContext) -> dict[str, Tensor]:
        options = self.options
        is_matched = batch["label_ids"] >= 0
        real, unmatched = batch["queries"][is_matched], batch["queries"][batch["label_ids"] == NO_OBJECT]
        label_ids = batch["label_ids"][is_matched]
        if not len(label_ids):
            raise ValueError(
                f"{len(batch['queries'])} pictures have no query that is matched with a segment: raise the "
                "generator's batch_size, or draw label by label (queries_per_label)"
            )
        all_label_ids = torch.arange(len(context.vocabulary), device=label_ids.device)
        # (K, D), one text of each label
        texts = draw_text_embeds(context.text_embeds, context.text_label_ids, all_label_ids)
        unseen_label_ids = _draw_unseen(context.vocabulary, label_ids)
        pseudo_label_ids = torch.cat([label_ids, unseen_label_ids])
        drawn = model.generator(texts[pseudo_label_ids])
        pseudo, unseen = drawn.split([len(label_ids), len(unseen_label_ids)])

        losses: dict[str, Tensor] = {}
        if options.moment_weight:
            groups = label_ids if options.moments == "per_label" else None
            losses["moments"] = compute_moment_matching_loss(
                pseudo, real, pseudo_label_ids=groups, real_label_ids=groups
            )
        if options.contrast_weight:
            losses["contrast"] = compute_query_contrast_loss(pseudo, real, unmatched)
        if options.cycle_weight or options.unseen_cycle_weight:
            logits, unseen_logits = name_queries(model, drawn, context).split([len(pseudo), len(unseen)])
            if options.cycle_weight:
                losses["cycle"] = compute_cycle_loss(logits, label_ids)
            if options.unseen_cycle_weight and len(unseen):
                losses["unseen_cycle"] = compute_cycle_loss(unseen_logits, unseen_label_ids)
        if options.own_weight:
            losses |= model.generator.compute_own_losses(
                GeneratorBatch(
                    real_queries=real,
                    pseudo_queries=pseudo,
                    label_ids=label_ids,
                    unseen_queries=unseen,
                    unseen_label_ids=unseen_label_ids,
                    vocabulary_embeds=texts,
                )
            )
        return losses


def _draw_unseen(vocabulary: Vocabulary, label_ids: Tensor) -> Tensor:
    """Random unseen label ids, a quarter as many; none where training knows of none (inductive)."""
    unseen = label_ids.new_tensor(vocabulary.unseen_label_ids)
    if not len(unseen):
        return unseen
    return unseen[torch.randint(len(unseen), (-(-len(label_ids) // 4),), device=unseen.device)]


def name_queries(model: Any, queries: Tensor, context: StageContext) -> Tensor:
    """(N, d) vision queries → (N, K + 1) class logits through the projector, which takes part as it is."""
    embeds = model.semantic_projector(queries)
    logits: Tensor = model.compute_class_logits(embeds, context.text_embeds, context.text_label_ids)
    return logits


class UnionStage(Stage):
    """Trains the semantic projector and the no-object embedding on real seen and pseudo unseen queries.

    Args:
        options: how pseudo queries are drawn and weighed.
    """

    name: ClassVar[str] = "union"
    # Pseudo queries are drawn once for all processes.
    needs_whole_batch: ClassVar[bool] = True

    def __init__(self, options: UnionOptions) -> None:
        self.options = options
        self.before: FrozenClassifier | None = None
        self.resumed_state: Mapping[str, Tensor] = {}

    def is_trainable(self, parameter_name: str) -> bool:
        """Projector and no-object embedding."""
        return parameter_name.startswith(UNION_PREFIXES)

    def compute_loss(self, model: Any, batch: Batch, context: StageContext) -> dict[str, Tensor]:
        """Weighted cross-entropy over all real queries of the pictures and the pseudo queries."""
        if self.before is None:
            self.before = FrozenClassifier(model)
            if self.resumed_state:
                self.before.set_state(self.resumed_state)
        label_ids = batch["label_ids"].flatten()
        unseen = torch.tensor(context.vocabulary.unseen_label_ids, device=label_ids.device)
        with torch.autocast(label_ids.device.type, enabled=False):
            loss = compute_union_loss(
                model,
                batch["queries"].flatten(0, 1),
                label_ids,
                unseen,
                context.text_embeds,
                context.text_label_ids,
                self.options,
                before=self.before,
            )
        return {"loss": loss}

    def get_state(self) -> dict[str, Tensor]:
        """The classifier that real queries keep to."""
        return {} if self.before is None else self.before.get_state()

    def set_state(self, state: Mapping[str, Tensor]) -> None:
        """Continue from a state of :meth:`get_state`; it is read at the next step."""
        self.resumed_state = state


TRANSITION_STAGES = (GeneratorStage.name, UnionStage.name)


def train_concat_transition(
    model: ConcatForPanopticSegmentation,
    processor: ConcatProcessor,
    dataset: PanopticDataset,
    *,
    stages: Mapping[str, TrainerArguments],
    store_folder: Path,
    unseen: Vocabulary | None,
    data_setup: Mapping[str, str],
    options: TransitionOptions | None = None,
    union_options: UnionOptions | None = None,
    evaluate: Evaluate | None = None,
    resume: bool = False,
    overwrite: bool = False,
    stream: TextIO | None = None,
) -> dict[str, TrainingResult]:
    """Train a generator on the queries of a trained segmentor, then the projector on real and pseudo queries.

    Args:
        model: moved to accelerate's device and trained in place; it gets a generator and, with
            ``memory_size``, stored queries.
        processor: of the same checkpoint.
        dataset: pictures of seen labels alone, of one size or transformed to one.
        stages: arguments by stage name, "generator", "union" or both.
        store_folder: keeps the extracted queries; what is there already is used if it is of this segmentor.
        unseen: names of the unseen labels ("transductive": the stage "union" needs them); None trains the
            generator on the seen names alone ("inductive"), and no other name is ever read.
        data_setup: how the data are read, by name; part of the identity of store and runs.
        options: of the generator.
        union_options: of union fine-tuning.
        evaluate: the model → numbers by name, run at the end of the stage "union".
        resume: go on where an earlier run of the same arguments stopped or was killed.
        overwrite: start anew in folders that hold a run.
        stream: console output, standard error if None.

    Returns:
        How each stage that ran ended, by name.

    Raises:
        ValueError: if a stage is unknown, "union" is asked for without unseen names, an unseen label is seen
            in the data, or as for :func:`check_generator`, :func:`check_query_batches` and
            :func:`~zsseg.training.recipe.run_recipe`.
    """
    options = TransitionOptions() if options is None else options
    if unknown := sorted(stages.keys() - set(TRANSITION_STAGES)):
        raise ValueError(f"the stages after the segmentor are {list(TRANSITION_STAGES)}, got also {unknown}")
    if UnionStage.name in stages and unseen is None:
        raise ValueError(
            'the stage "union" learns unseen labels by their names (transductive): pass unseen, or leave the '
            "stage out and call adapt once the names are known (inductive)"
        )
    check_generator(model, stages)
    check_query_batches(stages, options, len(dataset))
    store = build_transition_store(
        model, processor, dataset, store_folder, data_setup=data_setup, options=options
    )
    pictures = QueryDataset(store)
    seen = dataset.vocabulary.select(dataset.vocabulary.seen_label_ids)
    labels = seen if unseen is None else join_vocabularies(seen, unseen)
    if GeneratorStage.name in stages:
        # Its weights must not depend on what ran before in this process.
        torch.manual_seed(stages[GeneratorStage.name].seed)
        model.attach_generator(
            options.generator_type, noise_dim=options.noise_dim, hidden_dim=options.hidden_dim
        )
    if options.memory_size:
        is_known = pictures.label_ids != UNKNOWN_LABEL
        kept = sample_queries(pictures.queries[is_known], pictures.label_ids[is_known], options.memory_size)
        model.remember(*kept, labels)
    steps = []
    if GeneratorStage.name in stages:
        arguments = stages[GeneratorStage.name]
        drawn = (
            pictures
            if options.queries_per_label is None
            else LabelQueryDataset(pictures, queries_per_label=options.queries_per_label, seed=arguments.seed)
        )
        steps.append(RecipeStep(GeneratorStage(options), arguments, dataset=drawn))
    if UnionStage.name in stages:
        union = UnionStage(UnionOptions() if union_options is None else union_options)
        steps.append(RecipeStep(union, stages[UnionStage.name], evaluate))
    return run_recipe(
        steps,
        model=model,
        processor=processor,
        context=StageContext(labels, **encode_vocabulary(model, processor, labels)),
        dataset=pictures,
        collate=collate_queries,
        data_setup={**store.identity, "options": repr(options), "union_options": repr(union_options)},
        resume=resume,
        overwrite=overwrite,
        stream=stream,
    )


def check_generator(model: ConcatForPanopticSegmentation, stages: Iterable[str]) -> None:
    """Find out before any stage begins whether union fine-tuning will have pseudo queries.

    Raises:
        ValueError: if it runs, and the generator is neither in the model nor trained before it.
    """
    if UnionStage.name in stages and GeneratorStage.name not in stages and model.generator is None:
        raise ValueError(
            'the stage "union" needs a query generator, but the checkpoint holds none: run the stage '
            '"generator" first, or start from a checkpoint that has one'
        )


def check_query_batches(
    stages: Mapping[str, TrainerArguments], options: TransitionOptions, num_pictures: int
) -> None:
    """Find out before any stage begins whether there will be queries enough for a batch.

    Args:
        stages: arguments by stage name; others than "generator" and "union" are passed over.
        options: of the generator.
        num_pictures: of seen labels alone.

    Raises:
        ValueError: if a stage draws whole pictures, and a batch of all processes more than are stored.
    """
    num_stored = min(options.query_images, num_pictures)
    num_processes = get_process_state().num_processes
    for name in TRANSITION_STAGES:
        draws_labels = name == GeneratorStage.name and options.queries_per_label is not None
        if name not in stages or draws_labels:
            continue
        batch_size = stages[name].batch_size
        if batch_size * num_processes > num_stored:
            raise ValueError(
                f"the stage {name!r} draws the queries of {batch_size * num_processes} pictures at a time "
                f"(batch_size {batch_size}, processes {num_processes}), but only {num_stored} are stored: "
                f"lower its batch_size, or use more pictures (of seen labels are {num_pictures}, "
                f"query_images is {options.query_images})"
            )


def build_transition_store(
    model: ConcatForPanopticSegmentation,
    processor: ConcatProcessor,
    dataset: PanopticDataset,
    folder: Path,
    *,
    data_setup: Mapping[str, str],
    options: TransitionOptions,
) -> TensorStore:
    """The queries that :func:`train_concat_transition` learns from, as far as they are missing.

    Args:
        model: with a trained segmentor; moved to accelerate's device.
        processor: of the same checkpoint.
        dataset: pictures of seen labels alone, of one size or transformed to one.
        folder: of the store.
        data_setup: how the data are read, by name; part of the store's identity.
        options: how many pictures, and how many at a time.
    """
    model.to(get_process_state().device)
    seen = dataset.vocabulary.select(dataset.vocabulary.seen_label_ids)
    return build_query_store(
        model,
        dataset,
        folder,
        collate=build_seen_collator(processor, dataset.vocabulary),
        context=StageContext(seen, **encode_vocabulary(model, processor, seen)),
        data_setup=data_setup,
        num_images=min(options.query_images, len(dataset)),
        batch_size=options.query_batch_size,
    )


def join_vocabularies(seen: Vocabulary, unseen: Vocabulary) -> Vocabulary:
    """Seen labels first, so that they keep their label ids, then the others, marked as unseen.

    Raises:
        ValueError: if a name stands in both.
    """
    if both := sorted(set(seen.names) & set(unseen.names)):
        raise ValueError(f"unseen labels must not be among the seen ones, but these are: {both[:10]}")
    return Vocabulary((*seen, *(replace(category, is_seen=False) for category in unseen)))
