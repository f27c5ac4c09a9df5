"""Model cards: everything in them follows from the report of an evaluation."""

from collections.abc import Mapping, Sequence

from huggingface_hub import EvalResult, ModelCardData

from zsseg.data.patchwork.categories import (
    MATERIALS,
    SHAPES,
    SURFACES,
    TONES,
    build_patchwork_vocabulary,
)
from zsseg.data.patchwork.splits import load_patchwork_split
from zsseg.metrics.class_averages import group_label_ids
from zsseg.publishing.card_tables import build_table, format_percent, spell
from zsseg.publishing.card_templates import load_template
from zsseg.training.patchwork_clip_report import WORDS, PatchworkClipReport
from zsseg.training.patchwork_report import GROUPS, BenchmarkedModel, PatchworkReport, PatchworkRow

PATCHWORK_CLIP_NAME = "patchwork-clip"
TEMPLATES = {"zsseg-concat": "concat_patchwork.md", "zsseg-scan": "scan_patchwork.md"}
"""By model type: the card of a model trained on Patchwork."""
TABLE_FIGURES = ("PQ", "SQ", "RQ", "mIoU")
HEADLINE_FIGURES = (
    "PQ",
    "SQ",
    "RQ",
    "PQ_things",
    "PQ_stuff",
    "PQ_seen",
    "PQ_unseen",
    "hPQ",
    "mIoU",
    "hIoU",
)
CLIP_HEADLINE_FIGURES = ("top1", "top1_seen", "top1_unseen", "top1_things", "top1_stuff")
NUM_CONFUSIONS = 10
THIS_CHECKPOINT = "this checkpoint"


def build_patchwork_card(
    report: PatchworkReport, earlier_stages: Mapping[str, PatchworkReport] | None = None
) -> str:
    """The card of a model trained on Patchwork, as Markdown with YAML in front.

    Args:
        report: of ``zsseg evaluate patchwork``; its rows must share one split, the one trained on, and at
            least one must use the labels' own names.
        earlier_stages: reports of what the model was after earlier stages of its training, by stage, in their
            order; only their rows of the presets of ``report`` with the labels' own names are shown.

    Raises:
        ValueError: if the rows differ in their split, none has the labels' own names, or the family has no
            card of this kind.
    """
    if report.model.family not in TEMPLATES:
        raise ValueError(
            f"cards of Patchwork's models are there for {list(TEMPLATES)}, got {report.model.family!r}: "
            "publish this one with `zsseg publish`, or add a template"
        )
    reports = {**(earlier_stages or {}), THIS_CHECKPOINT: report}
    splits = sorted({row.split for each in reports.values() for row in each.rows})
    if len(splits) != 1:
        raise ValueError(
            f"a card is about the split trained on, got rows of {splits}: evaluate on that alone"
        )
    if not any(row.is_plain for row in report.rows):
        raise ValueError(
            "a card needs figures with the labels' own names and no calibration, got none: evaluate so too"
        )
    (split,) = splits
    vocabulary = build_patchwork_vocabulary(load_patchwork_split(split))
    unseen = [vocabulary[label_id] for label_id in vocabulary.unseen_label_ids]
    model = report.model
    return load_template(TEMPLATES[report.model.family]).substitute(
        front_matter=_build_front_matter(report).to_yaml(),
        name=model.name,
        parameters=f"{model.parameters / 1e6:.1f}",
        text_parameters=f"{model.parameters_text_tower / 1e6:.1f}",
        split=split,
        num_seen=len(vocabulary.seen_label_ids),
        num_unseen=len(unseen),
        unseen_things=", ".join(category.name for category in unseen if category.is_thing),
        unseen_stuff=", ".join(category.name for category in unseen if not category.is_thing),
        threshold=f"{model.threshold:g}",
        mask_threshold=f"{model.mask_threshold:g}",
        overlap_mask_area_threshold=f"{model.overlap_mask_area_threshold:g}",
        adaptation=_describe_adaptation(model),
        setting=_describe_setting(model, len(vocabulary.seen_label_ids)),
        summary=_build_summary(report.rows),
        stages=_build_stage_section(reports) if earlier_stages else "",
        tables="\n\n".join(_build_row_section(row) for row in report.rows),
        command=report.command,
        machine=report.machine,
    )


def build_patchwork_clip_card(report: PatchworkClipReport) -> str:
    """The card of Patchwork's CLIP, as Markdown with YAML in front.

    Args:
        report: of ``zsseg evaluate patchwork-clip``.
    """
    vocabulary, figures = report.vocabulary, report.compute_figures()
    members = group_label_ids(vocabulary)
    groups = [
        (
            spell(ending) or "all",
            str(len(members[metric_ending])),
            format_percent(figures[f"top1{ending}"]),
            format_percent(figures[f"top1_segments{ending}"]),
        )
        for ending, metric_ending in GROUPS.items()
    ]
    confusions = [
        (each.name, each.taken_for, str(each.times), format_percent(each.share))
        for each in report.list_confusions(NUM_CONFUSIONS)
    ]
    return load_template("patchwork_clip.md").substitute(
        front_matter=_build_clip_front_matter(report).to_yaml(),
        parameters=f"{report.model.parameters / 1e6:.1f}",
        text_parameters=f"{report.model.parameters_text_tower / 1e6:.1f}",
        embed_dim=report.model.embed_dim,
        image_size=report.model.image_size,
        surfaces=", ".join(SURFACES),
        shapes=", ".join(SHAPES),
        tones=", ".join(TONES),
        materials=", ".join(MATERIALS),
        scenes=report.scenes,
        size=report.size,
        preset=report.preset,
        seed=report.seed,
        segments=f"{report.build_counts().sum():,}",
        split=report.split,
        num_unseen=len(vocabulary.unseen_label_ids),
        groups=build_table(("labels", "how many", "top-1, mean over labels", "of all segments"), groups, 1),
        words=build_table(WORDS, [[format_percent(figures[f"top1_{word}"]) for word in WORDS]], 0),
        confusions=build_table(("what it is", "taken for", "times", "% of its segments"), confusions, 2),
        command=report.command,
    )


def _build_front_matter(report: PatchworkReport) -> ModelCardData:
    return ModelCardData(
        library_name="zsseg",
        pipeline_tag="image-segmentation",
        license="apache-2.0",
        tags=["panoptic-segmentation", "zero-shot", "open-vocabulary", "patchwork", "synthetic-data"],
        model_name=report.model.name,
        eval_results=[
            EvalResult(
                task_type="image-segmentation",
                dataset_type="patchwork",
                dataset_name=f"Patchwork, {row.preset}",
                dataset_config=row.preset,
                dataset_args={"split": row.split, "scenes": row.scenes, "seed": row.seed, "size": row.size},
                metric_type=name,
                metric_value=round(100 * value, 1),
                metric_name=f"{name}, percent",
            )
            # Neither the control with exchanged names nor a calibrated figure is the model's result.
            for row in report.rows
            if row.is_plain
            for name in HEADLINE_FIGURES
            if (value := row.figures[name]) is not None
        ],
    )


def _build_clip_front_matter(report: PatchworkClipReport) -> ModelCardData:
    figures = report.compute_figures()
    return ModelCardData(
        library_name="transformers",
        pipeline_tag="zero-shot-image-classification",
        license="apache-2.0",
        tags=["clip", "patchwork", "synthetic-data"],
        model_name=PATCHWORK_CLIP_NAME,
        eval_results=[
            EvalResult(
                task_type="zero-shot-image-classification",
                dataset_type="patchwork",
                dataset_name=f"Patchwork, {report.preset}, masked segments",
                dataset_config=report.preset,
                dataset_args={
                    "split": report.split,
                    "scenes": report.scenes,
                    "seed": report.seed,
                    "size": report.size,
                },
                metric_type=name,
                metric_value=round(100 * value, 1),
                metric_name=f"{name}, percent",
            )
            for name in CLIP_HEADLINE_FIGURES
            if (value := figures[name]) is not None
        ],
    )


def _build_summary(rows: Sequence[PatchworkRow]) -> str:
    figures = ("PQ", "PQ_seen", "PQ_seen_things", "PQ_seen_stuff", "PQ_unseen", "hPQ", "mIoU", "hIoU")
    header = ("scenes", "names", *(spell(name) for name in figures))
    return build_table(
        header,
        [(row.preset, row.variant, *(format_percent(row.figures[name]) for name in figures)) for row in rows],
        2,
    )


def _describe_adaptation(model: BenchmarkedModel) -> str:
    if not model.parameters_generator:
        return "It has no query generator: it takes any label as it is, and cannot be adapted to new ones."
    return (
        f"Its query generator ({model.parameters_generator / 1e6:.1f} million parameters) and "
        f"{model.stored_queries} stored queries come with it: `zsseg adapt` teaches it more labels by name."
    )


def _describe_setting(model: BenchmarkedModel, num_seen: int) -> str:
    if not model.known_labels:
        return "It read no unseen name in training."
    if model.known_labels > num_seen:
        return "The unseen labels were learnt too, by name, from pseudo queries: no picture showed one."
    return "No stage read an unseen name (the inductive setting)."


def _build_stage_section(reports: Mapping[str, PatchworkReport]) -> str:
    figures = ("PQ", "PQ_seen", "PQ_unseen", "PQ_unseen_things", "PQ_unseen_stuff", "hPQ", "mIoU", "hIoU")
    rows = [
        (row.preset, stage, *(format_percent(row.figures[name]) for name in figures))
        for preset in dict.fromkeys(row.preset for row in reports[THIS_CHECKPOINT].rows)
        for stage, report in reports.items()
        for row in report.rows
        if row.preset == preset and row.is_plain
    ]
    table = build_table(("scenes", "after", *(spell(name) for name in figures)), rows, 2)
    return f"\nStage by stage, each going on from the one before, own names:\n\n{table}\n"


def _build_row_section(row: PatchworkRow) -> str:
    table = build_table(
        ("%", *TABLE_FIGURES),
        [
            (
                spell(group) or "all",
                *(format_percent(row.figures[figure + group]) for figure in TABLE_FIGURES),
            )
            for group in GROUPS
        ],
        1,
    )
    single_figures = " · ".join(
        f"{spell(name)} {format_percent(row.figures[name])}" for name in ("hPQ", "hIoU", "pixel_accuracy")
    )
    return (
        f"### {row.preset}, {row.variant}\n\n"
        f"{row.scenes} scenes of {row.size}×{row.size}, world {row.seed}, split {row.split}. "
        f"{single_figures} · {row.figures['ms_per_image']:.0f} ms an image\n\n{table}"
    )
