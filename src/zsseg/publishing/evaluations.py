"""Evaluation files as what a card may say: which figures, of which data, by which command."""

import itertools
import json
import os
import re
import shlex
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from zsseg.data.patchwork.categories import build_patchwork_vocabulary
from zsseg.data.patchwork.splits import load_patchwork_split
from zsseg.training.evaluation_report import EvaluationReport, Figures
from zsseg.training.patchwork_report import PatchworkReport, PatchworkRow

OWN_PROTOCOL = "own"
PATCHWORK = "patchwork"
TIMES = frozenset({"seconds_per_image", "ms_per_image"})
COUNTS = frozenset({"num_images", "TP", "FP", "FN"})
"""Figures that are neither these nor times are shares in [0, 1]."""

HEADLINE_FIGURES = (
    *("PQ", "SQ", "RQ", "PQ_th", "PQ_st", "PQ_things", "PQ_stuff", "PQ_seen", "PQ_unseen", "hPQ"),
    *("mIoU", "mIoU_seen", "mIoU_unseen", "hIoU", "SG-IoU", "hSG-IoU", "pixel_accuracy"),
)
"""The figures that the Hub lists, as far as an evaluation has them."""

Report = EvaluationReport | PatchworkReport
MODEL_OPTIONS = frozenset({"--model", "-m"})


@dataclass(frozen=True, slots=True)
class Measurement:
    """Figures of one model on one data set.

    Attributes:
        title: of its section in the card.
        dataset: what the data set calls itself.
        config: which part or protocol of it; unique among the measurements of a data set in one card.
        setup: what else the figures depend on, by name.
        figures: shares in [0, 1], times and counts, by name.
        labels: all names that were asked for.
        unseen_labels: those of them that count as unseen.
        is_headline: whether the Hub lists it: controls and calibrated figures are not the model's result.
        per_class: label → its figures, where the file has them.
    """

    title: str
    dataset: str
    config: str
    setup: Mapping[str, Any]
    figures: Figures
    labels: Sequence[str]
    unseen_labels: Sequence[str]
    is_headline: bool = True
    per_class: Mapping[str, Figures] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Evaluation:
    """One evaluation file.

    Attributes:
        source: where it was read.
        name: of its files in a repository, without a suffix.
        report: what it holds.
        measurements: the same as a card shows it.
    """

    source: Path
    name: str
    report: Report
    measurements: tuple[Measurement, ...]


def load_evaluation(path: Path) -> Evaluation:
    """Read the ``results.json`` of ``zsseg evaluate`` or ``zsseg evaluate patchwork``.

    Raises:
        OSError: if the file cannot be read.
        ValueError: if it is neither; the message names the file.
    """
    if _is_patchwork(path):
        patchwork = PatchworkReport.load(path)
        return Evaluation(path, PATCHWORK, patchwork, tuple(map(_from_row, patchwork.rows)))
    report = EvaluationReport.load(path)
    return Evaluation(path, _name_of(report), report, (_from_report(report),))


def load_evaluations(
    paths: Sequence[Path], weights_digest: str, *, earlier: Sequence[Path] = ()
) -> list[Evaluation]:
    """Read evaluation files, all of one model.

    Args:
        paths: of the files; one that says the same as another, but for folders and the model's name, is
            left out.
        weights_digest: of the model that is published.
        earlier: further files, left out where ``paths`` have figures of the same data, measured alike.

    Raises:
        OSError: if a file cannot be read.
        ValueError: if one is no evaluation or of other weights, or two of ``paths`` are of the same data.
    """
    evaluations: list[Evaluation] = []
    sources: dict[tuple[str, str], Path] = {}
    shown: set[tuple[str, str, str]] = set()
    # Without the suffix a name comes before the same name with a number, as when they were written.
    for path in (*paths, *sorted(earlier, key=lambda each: each.with_suffix(""))):
        evaluation = load_evaluation(path)
        check_weights(evaluation, weights_digest)
        report = make_portable(evaluation.report, "")
        if any(make_portable(each.report, "") == report for each in evaluations):
            continue
        sections = {(each.dataset, each.config, each.title) for each in evaluation.measurements}
        places = {(each.dataset, each.config) for each in evaluation.measurements if each.is_headline}
        taken = sorted(places & sources.keys())
        if path in earlier and (taken or sections <= shown):
            continue
        if taken:
            raise ValueError(
                f"{sources[taken[0]]} and {path} are both of {' '.join(taken[0])}: pass one of them"
            )
        sources |= dict.fromkeys(places, path)
        shown |= sections
        name = _choose_name(evaluation.name, {each.name for each in evaluations})
        evaluations.append(replace(evaluation, name=name))
    return evaluations


def check_weights(evaluation: Evaluation, weights_digest: str) -> None:
    """Refuse an evaluation of any weights but these.

    Raises:
        ValueError: if it is of others, or does not say of which.
    """
    found = evaluation.report.model.weights_digest
    command = evaluation.report.command
    if found is None:
        raise ValueError(
            f"{evaluation.source} does not say which weights it is of, as reports of earlier versions do "
            f"not: run its command again ({command})"
        )
    if found != weights_digest:
        raise ValueError(
            f"{evaluation.source} is of other weights (digest {found[:12]}…) than those to be published "
            f"({weights_digest[:12]}…): evaluate this checkpoint ({command})"
        )


def make_portable(report: Report, repo_id: str) -> Report:
    """The report as it is published: its command names the repository and no folder of this machine."""
    words = shlex.split(report.command)
    for position, word in enumerate(words):
        option, equals, value = word.partition("=")
        if position and words[position - 1] in MODEL_OPTIONS:
            words[position] = repo_id
        elif option in MODEL_OPTIONS and equals:
            words[position] = f"{option}={repo_id}"
        else:
            words[position] = f"{option}={_cut_folders(value)}" if equals else _cut_folders(word)
    command = shlex.join(words)
    if isinstance(report, PatchworkReport):
        return replace(report, command=command, model=replace(report.model, name=repo_id))
    return replace(report, command=command, model=replace(report.model, name=repo_id))


def _is_patchwork(path: Path) -> bool:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        return False
    return isinstance(content, dict) and "rows" in content


def _cut_folders(text: str) -> str:
    """The last part of a path that leads out of the working folder, also of a file of labels; else as is."""
    mark, path = ("@", text[1:]) if text.startswith("@") else ("", text)
    if Path(path).expanduser().is_absolute() or Path(os.path.normpath(path)).parts[:1] == (os.pardir,):
        return mark + Path(path).name
    return text


def _choose_name(name: str, taken: Collection[str]) -> str:
    numbered = (f"{name}-{number}" for number in itertools.count(1))
    return next(each for each in itertools.chain([name], numbered) if each not in taken)


def _name_of(report: EvaluationReport) -> str:
    return slugify(report.dataset if report.protocol == OWN_PROTOCOL else report.protocol)


def _from_report(report: EvaluationReport) -> Measurement:
    title = report.dataset if report.protocol == OWN_PROTOCOL else f"{report.dataset}, {report.protocol}"
    seen_penalty = report.seen_penalty
    return Measurement(
        title=title if not seen_penalty else f"{title}, seen labels lowered by {seen_penalty:g}",
        dataset=report.dataset,
        config="-".join([report.protocol, *report.tasks, *(["raw"] if report.label_names == "raw" else [])]),
        setup={
            "tasks": ", ".join(report.tasks),
            "images": report.num_images,
            "labels": len(report.labels),
            "unseen labels": len(report.unseen_labels),
            "label names": report.label_names,
            **report.thresholds,
        },
        figures=report.averages,
        labels=report.labels,
        unseen_labels=report.unseen_labels,
        is_headline=not seen_penalty,
        per_class=report.per_class,
    )


def _from_row(row: PatchworkRow) -> Measurement:
    vocabulary = build_patchwork_vocabulary(load_patchwork_split(row.split))
    return Measurement(
        title=f"Patchwork, {row.preset}, {row.variant}",
        dataset=PATCHWORK,
        config=f"{row.preset}-{row.split}",
        setup={"split": row.split, "scenes": row.scenes, "size": row.size, "seed": row.seed},
        figures=row.figures,
        labels=vocabulary.names,
        unseen_labels=[vocabulary[label_id].name for label_id in vocabulary.unseen_label_ids],
        is_headline=row.is_plain,
    )


def slugify(name: str) -> str:
    """A name in small letters, digits and hyphens."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-") or "evaluation"
