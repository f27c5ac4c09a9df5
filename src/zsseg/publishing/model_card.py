"""Model cards: everything in them follows from the report of a benchmark run."""

from collections.abc import Iterable, Sequence
from importlib.resources import files
from string import Template

from huggingface_hub import EvalResult, ModelCardData

from zsseg.data.patchwork.categories import build_patchwork_vocabulary
from zsseg.data.patchwork.splits import load_patchwork_split
from zsseg.training.patchwork_report import GROUPS, PatchworkReport, PatchworkRow

PATCHWORK_MODEL_NAME = "concat-patchwork"
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


def build_patchwork_card(report: PatchworkReport) -> str:
    """The card of a CONCAT trained on Patchwork, as Markdown with YAML in front.

    Args:
        report: of ``zsseg evaluate patchwork``; its rows must share one split, the one trained on, and at
            least one must use the labels' own names.

    Raises:
        ValueError: if the rows differ in their split, or none has the labels' own names.
    """
    splits = sorted({row.split for row in report.rows})
    if len(splits) != 1:
        raise ValueError(
            f"a card is about the split trained on, got rows of {splits}: evaluate on that alone"
        )
    if all(row.text != "own" for row in report.rows):
        raise ValueError("a card needs figures with the labels' own names, got none: evaluate with them too")
    (split,) = splits
    vocabulary = build_patchwork_vocabulary(load_patchwork_split(split))
    unseen = [vocabulary[label_id] for label_id in vocabulary.unseen_label_ids]
    model = report.model
    template = (
        files("zsseg.publishing").joinpath("templates", "concat_patchwork.md").read_text(encoding="utf-8")
    )
    return Template(template).substitute(
        front_matter=_build_front_matter(report).to_yaml(),
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
        summary=_build_summary(report.rows),
        tables="\n\n".join(_build_row_section(row) for row in report.rows),
        command=report.command,
        machine=report.machine,
    )


def _build_front_matter(report: PatchworkReport) -> ModelCardData:
    return ModelCardData(
        library_name="zsseg",
        pipeline_tag="image-segmentation",
        license="apache-2.0",
        tags=["panoptic-segmentation", "zero-shot", "open-vocabulary", "patchwork", "synthetic-data"],
        model_name=PATCHWORK_MODEL_NAME,
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
            # The control with exchanged names is no result.
            for row in report.rows
            if row.text == "own"
            for name in HEADLINE_FIGURES
            if (value := row.figures[name]) is not None
        ],
    )


def _build_summary(rows: Sequence[PatchworkRow]) -> str:
    figures = ("PQ", "PQ_seen", "PQ_seen_things", "PQ_seen_stuff", "PQ_unseen", "hPQ", "mIoU", "hIoU")
    header = ("scenes", "names", *(_spell(name) for name in figures))
    return _build_table(
        header,
        [(row.preset, row.text, *(_percent(row.figures[name]) for name in figures)) for row in rows],
        2,
    )


def _build_row_section(row: PatchworkRow) -> str:
    names = {"own": "own names", "shuffled": "unseen names exchanged"}[row.text]
    table = _build_table(
        ("%", *TABLE_FIGURES),
        [
            (_spell(group) or "all", *(_percent(row.figures[figure + group]) for figure in TABLE_FIGURES))
            for group in GROUPS
        ],
        1,
    )
    single_figures = " · ".join(
        f"{_spell(name)} {_percent(row.figures[name])}" for name in ("hPQ", "hIoU", "pixel_accuracy")
    )
    return (
        f"### {row.preset}, {names}\n\n"
        f"{row.scenes} scenes of {row.size}×{row.size}, world {row.seed}, split {row.split}. "
        f"{single_figures} · {row.figures['ms_per_image']:.0f} ms an image\n\n{table}"
    )


def _build_table(header: Sequence[str], rows: Iterable[Sequence[str]], left_columns: int) -> str:
    rule = ["---" if column < left_columns else "---:" for column in range(len(header))]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (header, rule, *rows))


def _spell(name: str) -> str:
    return name.replace("_", " ").strip()


def _percent(share: float | None) -> str:
    return "–" if share is None else f"{100 * share:.1f}"
