"""Figures where the Hub reads them: ``model-index`` in the card, ``.eval_results`` beside it."""

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import (
    EvalResult,
    EvalResultEntry,
    ModelCardData,
    constants,
    eval_result_entries_to_yaml,
    parse_eval_result_entries,
)

from zsseg.publishing.card_facts import CardFacts
from zsseg.publishing.checkpoint_files import EVAL_RESULTS_FOLDER, EVALUATION_FOLDER
from zsseg.publishing.evaluations import COUNTS, HEADLINE_FIGURES, Evaluation, Measurement, slugify

LIBRARY_NAME = "zsseg"
PIPELINE_TAG = "image-segmentation"
TAGS = ("zsseg", "panoptic-segmentation", "zero-shot", "open-vocabulary")
SOURCE_NAME = "zsseg evaluate"
LONGEST_NAME = 96
"""Characters of a repository's name on the Hub, without its user."""

MADE_ID_NOTE = "the data set's id is made of its name"
"""In the notes of results on data sets that nobody named a Hub id of."""


def build_front_matter(
    facts: CardFacts, evaluations: Sequence[Evaluation], repo_id: str, others: Mapping[str, Any] | None = None
) -> ModelCardData:
    """The metadata of a card.

    Args:
        facts: licence, data sets and the like.
        evaluations: of the model, each with a name of its own.
        repo_id: where the card goes.
        others: further keys and values, as in the card that is published again.
    """
    results = build_eval_results(evaluations, repo_id)
    return ModelCardData(
        library_name=LIBRARY_NAME,
        license=facts.license,
        license_name=facts.license_name or None,
        license_link=facts.license_link or None,
        pipeline_tag=PIPELINE_TAG,
        tags=list(dict.fromkeys((*TAGS, *facts.tags))),
        datasets=list(facts.datasets) or None,
        base_model=list(facts.base_model) or None,
        model_name=repo_id.partition("/")[2] if results else None,
        eval_results=results or None,
        **(others or {}),
    )


def build_eval_results(evaluations: Iterable[Evaluation], repo_id: str) -> list[EvalResult]:
    """The headline figures in percent, for ``model-index``."""
    return [
        EvalResult(
            task_type=PIPELINE_TAG,
            dataset_type=_slugify_dataset(measurement.dataset),
            dataset_name=measurement.title,
            dataset_config=measurement.config,
            dataset_args=dict(measurement.setup),
            metric_type=name,
            metric_value=value,
            metric_name=f"{name}, percent",
            source_name=SOURCE_NAME,
            source_url=build_evaluation_url(evaluation, repo_id),
        )
        for evaluation in evaluations
        for measurement in evaluation.measurements
        for name, value in list_headline_figures(measurement)
    ]


def build_eval_result_files(
    evaluations: Iterable[Evaluation], facts: CardFacts, repo_id: str
) -> dict[str, str]:
    """The headline figures in percent, as the files of ``.eval_results``: name in the repository → YAML.

    A data set goes by its Hub id where ``facts.benchmarks`` has one. Otherwise its id is made of its name, in
    the namespace of the repository: a name such as ``camvid/val`` may be somebody else's data set on the Hub.
    """
    files = {}
    for evaluation in evaluations:
        entries = [
            EvalResultEntry(
                dataset_id=facts.benchmarks.get(measurement.dataset)
                or f"{repo_id.partition('/')[0]}/{_slugify_dataset(measurement.dataset)}",
                task_id=_name_task(measurement, name),
                value=value,
                source_url=build_evaluation_url(evaluation, repo_id),
                source_name=SOURCE_NAME,
                notes=_describe_figure(name, measurement)
                + ("" if facts.benchmarks.get(measurement.dataset) else f"; {MADE_ID_NOTE}"),
            )
            for measurement in evaluation.measurements
            for name, value in list_headline_figures(measurement)
        ]
        if entries:
            content = yaml.safe_dump(
                eval_result_entries_to_yaml(entries), sort_keys=False, allow_unicode=True
            )
            files[f"{EVAL_RESULTS_FOLDER}/{evaluation.name}.yaml"] = content
    return files


def list_headline_figures(measurement: Measurement) -> list[tuple[str, float]]:
    """Names and percentages, with one decimal; none of a control."""
    if not measurement.is_headline:
        return []
    found = ((name, measurement.figures.get(name)) for name in HEADLINE_FIGURES)
    return [(name, round(100 * share, 1)) for name, share in found if share is not None]


def build_evaluation_url(evaluation: Evaluation, repo_id: str) -> str:
    """Where an evaluation file can be read once it is published."""
    return f"{constants.ENDPOINT}/{repo_id}/blob/main/{EVALUATION_FOLDER}/{evaluation.name}.json"


def check_model_index(data: ModelCardData, evaluations: Iterable[Evaluation], source: Path) -> None:
    """Refuse a card's metadata with a figure that no evaluation backs.

    Raises:
        ValueError: naming the figures.
    """
    backed = {
        (each.dataset_type, each.dataset_config, each.metric_type, each.metric_value)
        for each in build_eval_results(evaluations, "")
    }
    unbacked = [
        f"{each.metric_type} {each.metric_value} on {each.dataset_name}"
        for each in data.eval_results or []
        if (each.dataset_type, each.dataset_config, each.metric_type, each.metric_value) not in backed
    ]
    if unbacked:
        raise ValueError(_describe_unbacked(f"the model-index of {source}", unbacked))


def read_benchmarks(folder: Path, names: Sequence[str], evaluations: Sequence[Evaluation]) -> dict[str, str]:
    """The Hub ids of data sets in files of ``.eval_results``, none of whose figures may be unbacked.

    Args:
        folder: of the checkpoint.
        names: of the files in it.
        evaluations: of the model.

    Returns:
        Name of a data set in the evaluations → its Hub id, where somebody named one.

    Raises:
        OSError: if a file cannot be read.
        ValueError: naming the figures, or a file that holds no entries.
    """
    backed: dict[tuple[str, float], list[tuple[str, str]]] = {}
    for evaluation in evaluations:
        for measurement in evaluation.measurements:
            for figure, value in list_headline_figures(measurement):
                backed.setdefault((_name_task(measurement, figure), value), []).append(
                    (measurement.dataset, _describe_figure(figure, measurement))
                )
    benchmarks: dict[str, str] = {}
    for name in names:
        try:
            entries = parse_eval_result_entries(yaml.safe_load((folder / name).read_text(encoding="utf-8")))
            found = [backed.get((entry.task_id, entry.value), []) for entry in entries]
        except (AttributeError, KeyError, TypeError, ValueError, yaml.YAMLError) as error:
            raise ValueError(
                f"{folder / name} holds no entries of .eval_results ({error}): remove it, it is written anew"
            ) from error
        unbacked = [
            f"{entry.task_id} {entry.value} on {entry.dataset_id}"
            for entry, candidates in zip(entries, found, strict=True)
            if not candidates
        ]
        if unbacked:
            raise ValueError(_describe_unbacked(str(folder / name), unbacked))
        for entry, candidates in zip(entries, found, strict=True):
            notes = entry.notes or ""
            # Data sets may share a figure; the notes tell them apart.
            datasets = {dataset for dataset, described in candidates if described == notes} or {
                dataset for dataset, _ in candidates
            }
            if len(datasets) == 1 and not notes.endswith(MADE_ID_NOTE):
                benchmarks.setdefault(datasets.pop(), entry.dataset_id)
    return benchmarks


def _slugify_dataset(name: str) -> str:
    """A name that is valid for a repository on the Hub."""
    return slugify(name)[:LONGEST_NAME].strip("-")


def _name_task(measurement: Measurement, figure: str) -> str:
    return f"{measurement.config}/{figure}"


def _describe_figure(figure: str, measurement: Measurement) -> str:
    return f"{figure} in percent; {measurement.title}"


FIGURE_WORD = re.compile(r"(?<![A-Za-z])(?:h?PQ|SQ|RQ|[mh]?IoU|pixel[ _]accuracy)")
NUMBER = re.compile(r"(?<![\w.:/-])(\d{1,3}\.\d+(?!\w|\.\d)|\d{1,3}(?:\.\d+)?(?=\s*%))")


def check_prose(text: str, evaluations: Iterable[Evaluation], source: Path) -> None:
    """Refuse sentences and tables that name a metric beside a number which no evaluation has.

    Numbers with decimals or a percent sign count, in a line of text or a table that names a metric; each
    must be some figure of some evaluation, which one is not asked.

    Args:
        text: what was written by hand.
        evaluations: of the model.
        source: of the text, for the message.

    Raises:
        ValueError: naming the lines.
    """
    shares = [
        share
        for evaluation in evaluations
        for measurement in evaluation.measurements
        for figures in (measurement.figures, *measurement.per_class.values())
        for name, share in figures.items()
        if share is not None and name not in COUNTS
    ]
    unbacked = [
        f"{number} in {line.strip()[:80]!r}"
        for block in _split_blocks(text)
        if FIGURE_WORD.search("\n".join(block))
        for line in block
        for number in NUMBER.findall(line)
        if not _is_rounded(number, shares)
    ]
    if unbacked:
        raise ValueError(
            _describe_unbacked(str(source), unbacked)
            + "; a number that is no result belongs on a line that names no metric"
        )


def _split_blocks(text: str) -> list[list[str]]:
    """Lines by themselves, but those of a table together."""
    blocks: list[list[str]] = []
    was_table = False
    for line in text.splitlines():
        is_table = line.lstrip().startswith("|")
        if is_table and was_table:
            blocks[-1].append(line)
        else:
            blocks.append([line])
        was_table = is_table
    return blocks


def _is_rounded(number: str, shares: Iterable[float]) -> bool:
    decimals = len(number.partition(".")[2])
    return any(float(number) in (round(100 * share, decimals), round(share, decimals)) for share in shares)


def _describe_unbacked(where: str, unbacked: Sequence[str]) -> str:
    return (
        f"{where} holds {len(unbacked)} figures that no evaluation of these weights backs: {unbacked[:5]}; "
        "pass the results.json with --evaluation, or take the figures out"
    )
