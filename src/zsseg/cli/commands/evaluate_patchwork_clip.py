"""``zsseg evaluate patchwork-clip``: let a CLIP name the segments of held-out scenes."""

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from zsseg.cli.checkpoint_loading import find_checkpoint, quieten_transformers
from zsseg.cli.messages import TracebackOption, errors_in_one_line
from zsseg.cli.options import (
    CHECKPOINT_PANEL,
    DATA_PANEL,
    RESULT_PANEL,
    OverwriteOption,
    check_count,
)
from zsseg.cli.output_folder import check_output_folder
from zsseg.cli.text_layout import echo_table, format_count, format_percent

if TYPE_CHECKING:
    from zsseg.data.patchwork.dataset import PatchworkDataset
    from zsseg.training.patchwork_clip_report import PatchworkClipReport

NUM_CONFUSIONS = 10

ClipOption = Annotated[
    Path | None,
    typer.Option(
        "--model",
        "-m",
        metavar="FOLDER",
        help="Folder of a CLIP of Patchwork.",
        show_default="the packaged one",
        rich_help_panel=CHECKPOINT_PANEL,
    ),
]
PresetOption = Annotated[
    str,
    typer.Option("--preset", metavar="NAME", help="easy, standard or hard.", rich_help_panel=DATA_PANEL),
]
SplitOption = Annotated[
    str,
    typer.Option(
        "--split",
        metavar="NAME",
        help="Which names are unseen: A, or seed-N.",
        rich_help_panel=DATA_PANEL,
    ),
]
ScenesOption = Annotated[
    int,
    typer.Option(
        "--scenes",
        metavar="N",
        callback=check_count,
        help="Held-out scenes.",
        rich_help_panel=DATA_PANEL,
    ),
]
OutputOption = Annotated[
    Path | None,
    typer.Option(
        "--output",
        "-o",
        metavar="FOLDER",
        help="Write results.json and confusion.png.",
        show_default=False,
        rich_help_panel=RESULT_PANEL,
    ),
]


def evaluate_patchwork_clip(
    model: ClipOption = None,
    preset: PresetOption = "standard",
    split: SplitOption = "A",
    scenes: ScenesOption = 500,
    output: OutputOption = None,
    overwrite: OverwriteOption = False,
    traceback: TracebackOption = False,
) -> None:
    """Let Patchwork's CLIP name every segment of held-out scenes by itself.

    Each segment is cut out along its true mask and named among all sixty
    labels. Prints how often the name is right, and what is taken for what.

    Example: zsseg evaluate patchwork-clip --output clip-scores
    """
    with errors_in_one_line(show_traceback=traceback):
        if output is not None:
            check_output_folder(output, overwrite=overwrite)
        folder = Path(find_checkpoint("patchwork-clip" if model is None else str(model)))
        from zsseg.data.patchwork.dataset import HELD_OUT_SEED, PatchworkDataset

        dataset = PatchworkDataset(preset, seed=HELD_OUT_SEED, num_scenes=scenes, split=split)
        quieten_transformers()
        # A reader of the report has the packaged CLIP, but no folder of another machine.
        options = [] if model is None else ["--model", str(model)]
        options += ["--preset", preset, "--split", split, "--scenes", str(scenes)]
        report = _evaluate(folder, dataset, shlex.join(["zsseg", "evaluate", "patchwork-clip", *options]))
        _print_report(report)
        if output is not None:
            _write(report, output)


def _evaluate(folder: Path, dataset: "PatchworkDataset", command: str) -> "PatchworkClipReport":
    from transformers import CLIPConfig, CLIPModel, CLIPProcessor

    from zsseg.models.base import load_whole
    from zsseg.training.patchwork_clip_evaluation import IMAGE_SIZE, evaluate_patchwork_clip
    from zsseg.training.patchwork_clip_report import EvaluatedClip, PatchworkClipReport, build_confusion

    clip = load_whole(CLIPModel, folder, (CLIPConfig.model_type,))
    if (image_size := clip.config.vision_config.image_size) != IMAGE_SIZE:
        raise ValueError(
            f"{folder} is a CLIP of {image_size}×{image_size} pictures, but segments are cut out at "
            f"{IMAGE_SIZE}×{IMAGE_SIZE}: take one that `zsseg train patchwork-clip` made"
        )
    _, counts = evaluate_patchwork_clip(clip, CLIPProcessor.from_pretrained(folder), dataset)
    text_tower = (clip.text_model, clip.text_projection)
    return PatchworkClipReport(
        command=command,
        model=EvaluatedClip(
            name=folder.resolve().name,
            parameters=sum(parameter.numel() for parameter in clip.parameters()),
            parameters_text_tower=sum(p.numel() for part in text_tower for p in part.parameters()),
            embed_dim=clip.config.projection_dim,
            image_size=image_size,
        ),
        preset=dataset.preset.name,
        split=dataset.split,
        scenes=len(dataset),
        size=dataset.size,
        seed=dataset.seed,
        confusion=build_confusion(counts),
    )


def _print_report(report: "PatchworkClipReport") -> None:
    from zsseg.metrics.class_averages import group_label_ids
    from zsseg.training.patchwork_clip_report import WORDS
    from zsseg.training.patchwork_report import GROUPS

    figures = report.compute_figures()
    vocabulary = report.vocabulary
    segments = int(report.build_counts().sum())
    typer.secho(f"{report.model.name} · {report.model.parameters / 1e6:.1f} M parameters", bold=True)
    typer.echo(
        f"Patchwork {report.preset}, split {report.split}, {format_count(report.scenes, 'held-out scene')} · "
        f"{format_count(segments, 'segment')} named among {len(vocabulary)} labels "
        f"({len(vocabulary.unseen_label_ids)} unseen)\n"
    )
    members = group_label_ids(vocabulary)
    echo_table(
        ["top-1, %", "labels", "mean over labels", "of all segments"],
        [
            [
                ending.strip("_").replace("_", " ") or "all",
                str(len(members[metric_ending])),
                _percent(figures[f"top1{ending}"]),
                _percent(figures[f"top1_segments{ending}"]),
            ]
            for ending, metric_ending in GROUPS.items()
        ],
    )
    typer.echo()
    echo_table(["one word alone, %", "right"], [[word, _percent(figures[f"top1_{word}"])] for word in WORDS])
    typer.echo()
    echo_table(
        ["most frequent confusions", "taken for", "times", "% of its segments"],
        [
            [each.name, each.taken_for, str(each.times), _percent(each.share)]
            for each in report.list_confusions(NUM_CONFUSIONS)
        ],
        left_columns=2,
    )


def _write(report: "PatchworkClipReport", output: Path) -> None:
    from zsseg.data.patchwork.categories import PATCHWORK_CATEGORIES
    from zsseg.visualization.confusion_matrix import draw_confusion_matrix

    bases = [category.base for category in PATCHWORK_CATEGORIES]
    starts = [label_id for label_id in range(1, len(bases)) if bases[label_id] != bases[label_id - 1]]
    output.mkdir(parents=True, exist_ok=True)
    report.save(output / "results.json")
    picture = draw_confusion_matrix(report.build_counts(), report.vocabulary, group_starts=starts)
    picture.save(output / "confusion.png")
    files = f"{output / 'results.json'}, {output / 'confusion.png'}"
    typer.echo(f"\n{typer.style('wrote', fg='green', bold=True)} {files}")


def _percent(share: float | None) -> str:
    return format_percent(float("nan") if share is None else share)
