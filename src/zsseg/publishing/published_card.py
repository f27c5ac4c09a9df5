"""The card of any checkpoint that goes to the Hub: written anew, or edited and brought up to date."""

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import ModelCard, ModelCardData
from transformers import PreTrainedModel

from zsseg.processing.processing import ZeroShotSegmentationProcessor
from zsseg.publishing.card_facts import LISTS, PROSE, TEXTS, CardFacts
from zsseg.publishing.card_tables import build_table, format_percent, spell
from zsseg.publishing.card_templates import load_template
from zsseg.publishing.checkpoint_files import EVALUATION_FOLDER
from zsseg.publishing.evaluations import COUNTS, TIMES, Evaluation, Measurement
from zsseg.publishing.hub_metadata import LIBRARY_NAME, build_front_matter, check_model_index, check_prose
from zsseg.publishing.marked_sections import CONVERSION_MARK, find_marked_section, replace_marked_section

USAGE_MARK, EVALUATION_MARK = "zsseg-usage", "zsseg-evaluation"
EXAMPLE_LABELS = ("road", "car", "tree")
NUM_EXAMPLE_LABELS = 3
SHOWN_LABELS = 20
"""So many names stand in the text, more are folded."""

GROUPED_FIGURE = re.compile(
    r"(?P<figure>PQ|SQ|RQ|mIoU|SG-IoU)(?P<group>(?:_seen|_unseen)?(?:_things|_stuff|_th|_st)?)(?P<all>_all_classes)?"
)
GROUP_NAMES = {"_th": "_things", "_st": "_stuff"}
METADATA_FACTS = {*TEXTS, *LISTS} - set(PROSE)
MADE_KEYS = {*METADATA_FACTS, "library_name", "pipeline_tag", "model-index"}
NO_EVALUATION = "No evaluation was published with these weights: nothing is claimed about how well they work."


def build_published_card(
    model: PreTrainedModel,
    processor: ZeroShotSegmentationProcessor,
    facts: CardFacts,
    evaluations: Sequence[Evaluation],
    repo_id: str,
    origin: str = "",
) -> str:
    """A card written anew, as Markdown with YAML in front.

    Args:
        model: of any family.
        processor: of the same checkpoint.
        facts: with a licence and the training data.
        evaluations: of the model, their commands portable.
        repo_id: where it goes.
        origin: of converted weights, as :func:`read_origin` finds it.

    Raises:
        ValueError: if licence or training data are missing.
    """
    facts.check_license()
    if not facts.training_data:
        raise ValueError(
            "a card says what a model was trained on: name it with --training-data, or as training_data in "
            "--card-data"
        )
    return load_template("published.md").substitute(
        front_matter=build_front_matter(facts, evaluations, repo_id).to_yaml(),
        title=facts.title or repo_id.partition("/")[2],
        description=facts.description or "Segments pictures into things and stuff named by words.",
        usage=_build_usage(processor, evaluations, repo_id),
        family=load_family_text(model.config.model_type),
        parts=_describe_parts(model, processor),
        origin=f"\n\n## Origin\n\n{origin}" if origin else "",
        training_data=facts.training_data,
        training_data_license=facts.training_data_license or "not stated",
        license=_describe_license(facts),
        known_labels=_describe_known_labels(model),
        evaluation=build_evaluation_section(evaluations),
        limits=facts.limits or _build_limits(processor, evaluations),
    )


def update_published_card(
    source: Path,
    target: Path,
    processor: ZeroShotSegmentationProcessor,
    facts: CardFacts,
    evaluations: Sequence[Evaluation],
    repo_id: str,
) -> None:
    """Write an edited card with metadata, usage and evaluation made anew; all else stays as it was.

    Args:
        source: the edited card.
        target: to write; may not be the source.
        processor: of the checkpoint.
        facts: they replace those of the card; none of them may be prose, which the card itself holds.
        evaluations: of the model, their commands portable.
        repo_id: where it goes.

    Raises:
        OSError: if a card cannot be read or written.
        ValueError: if it holds figures that no evaluation backs or lacks the marks of what is made anew, if
            it is of another library, or if there is no licence.
    """
    if prose := [name for name in PROSE if getattr(facts, name)]:
        raise ValueError(f"{prose} have no place in {source}, which is edited by hand: write them there")
    data = _load_metadata(source)
    content = data.to_dict()
    facts = _read_facts(content, source).override(facts)
    facts.check_license()
    check_model_index(data, evaluations, source)
    text = source.read_text(encoding="utf-8")
    check_prose(_cut_what_is_made(text), evaluations, source)
    others = {name: value for name, value in content.items() if name not in MADE_KEYS}
    target.write_text(text, encoding="utf-8")
    try:
        replace_marked_section(target, USAGE_MARK, _build_usage(processor, evaluations, repo_id))
        replace_marked_section(target, EVALUATION_MARK, build_evaluation_section(evaluations))
    except ValueError as error:
        raise ValueError(str(error).replace(str(target), str(source))) from error
    card = ModelCard.load(target)
    card.data = build_front_matter(facts, evaluations, repo_id, others)
    target.write_text(str(card), encoding="utf-8")


def read_origin(card: Path, evaluations: Sequence[Evaluation]) -> str | None:
    """What a converter's card says of the origin of the weights, None of any other card.

    A converter's card lacks the usage, which every card that was published or made ready for it has; so one
    that was edited since is never taken for it.

    Args:
        card: of the checkpoint.
        evaluations: of the model.

    Raises:
        OSError: if it cannot be read.
        ValueError: if it holds figures that no evaluation backs.
    """
    text = card.read_text(encoding="utf-8")
    if f"<!-- {USAGE_MARK} -->" in text or (origin := find_marked_section(text, CONVERSION_MARK)) is None:
        return None
    check_prose(origin, evaluations, card)
    return origin


def load_family_text(model_type: str) -> str:
    """What every card says of a family: a paragraph and how to cite it.

    Raises:
        FileNotFoundError: if there is none of this family.
    """
    return load_template(f"families/{model_type}.md").template.strip()


def build_evaluation_section(evaluations: Sequence[Evaluation]) -> str:
    """Every figure of every evaluation, its command and its machine."""
    if not evaluations:
        return NO_EVALUATION
    return "\n\n".join(_build_evaluation(evaluation) for evaluation in evaluations)


def _build_evaluation(evaluation: Evaluation) -> str:
    report = evaluation.report
    # Most measurements of one evaluation ask for the same labels.
    label_sections = dict.fromkeys(map(_build_labels, evaluation.measurements))
    sections = "\n\n".join([*map(_build_measurement, evaluation.measurements), *label_sections])
    return (
        f"{sections}\n\n"
        f"In percent; measured on {report.machine}; the same figures unrounded: "
        f"[{evaluation.name}.json]({EVALUATION_FOLDER}/{evaluation.name}.json). Again:\n\n"
        f"```bash\n{report.command}\n```"
    )


def _build_measurement(measurement: Measurement) -> str:
    setup = " · ".join(f"{spell(name)} {value}" for name, value in measurement.setup.items())
    parts = [f"### {measurement.title}", setup, *_build_figure_tables(measurement.figures)]
    if measurement.per_class:
        parts.append(_fold(f"All {len(measurement.per_class)} labels", _build_per_class(measurement)))
    return "\n\n".join(parts)


def _build_figure_tables(figures: Mapping[str, float | None]) -> list[str]:
    """A table of groups × figures, and a line of all that belongs to no group."""
    cells: dict[str, dict[str, float | None]] = {}
    single = []
    for name, value in figures.items():
        match = GROUPED_FIGURE.fullmatch(name)
        if match is None:
            single.append(f"{spell(name)} {_format(name, value)}")
            continue
        group = match["group"]
        for short, long in GROUP_NAMES.items():
            group = re.sub(f"{short}$", long, group)
        cells.setdefault(group, {})[match["figure"] + ("*" if match["all"] else "")] = value
    columns = list(dict.fromkeys(column for row in cells.values() for column in row))
    columns.sort(key=lambda column: column.endswith("*"))
    parts = []
    if cells:
        rows = [
            (spell(group) or "all", *(format_percent(row.get(column)) for column in columns))
            for group, row in cells.items()
        ]
        parts.append(build_table(("%", *columns), rows, 1))
    if single:
        parts.append(" · ".join(single))
    if any(column.endswith("*") for column in columns):
        parts.append(
            "With a star: over all labels, absent ones counted as 0; without: over those that occur."
        )
    return parts


def _build_labels(measurement: Measurement) -> str:
    unseen = set(measurement.unseen_labels)
    seen = [name for name in measurement.labels if name not in unseen]
    lines = [f"Seen in training ({len(seen)}): {', '.join(seen)}."] if seen else []
    if unseen:
        names = ", ".join(name for name in measurement.labels if name in unseen)
        lines.append(f"Unseen ({len(unseen)}): {names}.")
    text = "\n\n".join(lines)
    return text if len(measurement.labels) <= SHOWN_LABELS else _fold("Seen and unseen labels", text)


def _build_per_class(measurement: Measurement) -> str:
    columns = list(dict.fromkeys(name for figures in measurement.per_class.values() for name in figures))
    unseen = set(measurement.unseen_labels)
    return build_table(
        ("label", "training", *columns),
        [
            (
                label,
                "unseen" if label in unseen else "seen",
                *(_format(column, figures.get(column)) for column in columns),
            )
            for label, figures in measurement.per_class.items()
        ],
        2,
    )


def _fold(summary: str, content: str) -> str:
    return f"<details><summary>{summary}</summary>\n\n{content}\n\n</details>"


def _format(name: str, value: float | None) -> str:
    if value is not None and name in TIMES:
        return f"{value:.3g}"
    return f"{value:.0f}" if value is not None and name in COUNTS else format_percent(value)


def _build_usage(
    processor: ZeroShotSegmentationProcessor, evaluations: Sequence[Evaluation], repo_id: str
) -> str:
    labels = choose_example_labels(processor, evaluations)
    return (
        "```python\n"
        "import zsseg  # makes the model known to transformers\n"
        "from transformers import pipeline\n"
        "\n"
        f'segment = pipeline("zero-shot-panoptic-segmentation", model="{repo_id}")\n'
        f'segments = segment("picture.jpg", candidate_labels={json.dumps(labels, ensure_ascii=False)})\n'
        "```\n\n"
        "Labels that cannot be counted, such as grass, are also given as `stuff_labels`. On the command "
        "line:\n\n"
        "```bash\n"
        f'zsseg segment picture.jpg --model {repo_id} --labels "{", ".join(labels)}"\n'
        "```"
    )


def choose_example_labels(
    processor: ZeroShotSegmentationProcessor, evaluations: Sequence[Evaluation]
) -> tuple[str, ...]:
    """Labels that the model can be asked for, of an evaluation if there is one: an unseen one among them."""
    if processor.text_embeddings is not None:
        return tuple(processor.text_embeddings.names[:NUM_EXAMPLE_LABELS])
    if not evaluations:
        return EXAMPLE_LABELS
    measurement = evaluations[0].measurements[0]
    chosen = [measurement.labels[0], *measurement.unseen_labels[:1], *reversed(measurement.labels)]
    return tuple(dict.fromkeys(chosen))[:NUM_EXAMPLE_LABELS]


def _describe_parts(model: PreTrainedModel, processor: ZeroShotSegmentationProcessor) -> str:
    parameters = f"{_count_parameters(model) / 1e6:.1f} million parameters"
    if processor.text_embeddings is not None:
        names = processor.text_embeddings.names
        words = f"No text tower: it knows the vectors of {len(names):,} words and no other."
    else:
        share = _count_parameters(getattr(model, "text_model", None)) / 1e6
        words = f"Of these {share:.1f} million are the text tower: labels are free text."
    adaptation = (
        " Its query generator comes with it: `zsseg adapt` teaches it more labels by their names."
        if getattr(model, "generator", None) is not None
        else ""
    )
    thresholds = (
        f"Thresholds, unless others are given: score {processor.threshold:g}, mask "
        f"{processor.mask_threshold:g}, overlap {processor.overlap_mask_area_threshold:g}."
    )
    return f"{parameters}. {words}{adaptation} {thresholds}"


def _count_parameters(module: Any) -> int:
    return 0 if module is None else sum(parameter.numel() for parameter in module.parameters())


def _describe_known_labels(model: PreTrainedModel) -> str:
    known = getattr(model.config, "known_labels", None)
    if not known:
        return ""
    text = ", ".join(known)
    return f"\n\nLabels known by name ({len(known)}): " + (
        f"{text}." if len(known) <= SHOWN_LABELS else f"\n\n{_fold('all of them', text)}"
    )


def _describe_license(facts: CardFacts) -> str:
    if facts.license != "other":
        return facts.license
    return f"[{facts.license_name}]({facts.license_link})"


def _build_limits(processor: ZeroShotSegmentationProcessor, evaluations: Sequence[Evaluation]) -> str:
    limits = [
        "- Labels unseen in training are found less often than seen ones, and names of things far from all "
        "training data least of all.",
        "- It names every region by the nearest of the labels it is given: what is none of them may be "
        "called by one.",
    ]
    if processor.text_embeddings is not None:
        limits.append("- Words outside its closed list raise an error.")
    if not evaluations:
        limits.append("- It was not evaluated.")
    return "\n".join(limits)


def _load_metadata(card: Path) -> ModelCardData:
    try:
        data = ModelCard.load(card).data
    except (TypeError, ValueError, yaml.YAMLError) as error:
        raise ValueError(f"the metadata of {card} cannot be read ({error}): mend or remove it") from error
    if data.library_name not in (None, LIBRARY_NAME):
        raise ValueError(
            f"{card} is of library_name {data.library_name!r}, expected {LIBRARY_NAME!r}: remove it"
        )
    return data


def _read_facts(content: Mapping[str, Any], card: Path) -> CardFacts:
    found = {name: content[name] for name in METADATA_FACTS if name in content}
    for name in LISTS:
        if isinstance(found.get(name), str):
            found[name] = [found[name]]
    try:
        return CardFacts.from_mapping(found)
    except (TypeError, ValueError) as error:
        raise ValueError(f"the metadata of {card}: {error}") from error


def _cut_what_is_made(text: str) -> str:
    """A card without its metadata and without the sections that are made anew."""
    for mark in (USAGE_MARK, EVALUATION_MARK):
        text = re.sub(f"<!-- {mark} -->.*?<!-- /{mark} -->", "", text, flags=re.DOTALL)
    return re.sub(r"\A---\n.*?\n---\n", "", text, flags=re.DOTALL)
