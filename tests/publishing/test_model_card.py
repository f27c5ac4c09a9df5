from dataclasses import replace

import pytest
from huggingface_hub import ModelCard

from testing.patchwork_reports import build_clip_report
from zsseg.publishing.model_card import (
    CLIP_HEADLINE_FIGURES,
    HEADLINE_FIGURES,
    build_patchwork_card,
    build_patchwork_clip_card,
)
from zsseg.training.patchwork_report import FIGURES, BenchmarkedModel, PatchworkReport, PatchworkRow

COMMAND = "zsseg evaluate patchwork --model packaged --scenes 500"


def build_row(first_share=0.0, **changes):
    """A row whose figures all differ: first_share, first_share + 0.001, …"""
    figures = {name: first_share + index / 1000 for index, name in enumerate(FIGURES)}
    setup = {"preset": "standard", "split": "A", "scenes": 500, "size": 128, "seed": 1_000_000, "text": "own"}
    return PatchworkRow(**{**setup, "figures": {**figures, "ms_per_image": 47.4}, **changes})


def build_report(*rows):
    model = BenchmarkedModel("concat-patchwork", "zsseg-concat", 4_321_000, 654_000, 0.75, 0.5, 0.8, 0, 0, 0)
    return PatchworkReport(COMMAND, "Some CPU, 2 threads", model, rows)


ROWS = (build_row(0.3), build_row(0.1, text="shuffled"), build_row(0.5, preset="hard"))


def percent(share):
    return f"{100 * share:.1f}"


def section(card, title):
    return card.split(f"### {title}\n")[1].split("###")[0].split("\n## ")[0]


def test_every_figure_stands_under_its_row():
    card = build_patchwork_card(build_report(*ROWS))
    for row, title in zip(
        ROWS,
        ("standard, own names", "standard, unseen names exchanged", "hard, own names"),
        strict=True,
    ):
        text = section(card, title)
        for name in set(FIGURES) - {"ms_per_image"}:
            assert percent(row.figures[name]) in text, name
        cells = [
            line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("| unseen stuff")
        ]
        expected = [percent(row.figures[f"{figure}_unseen_stuff"]) for figure in ("PQ", "SQ", "RQ", "mIoU")]
        assert cells == [["unseen stuff", *expected]]
        assert "47 ms an image" in text
        assert "500 scenes of 128×128, world 1000000, split A" in text
    assert COMMAND in card
    assert "Some CPU, 2 threads" in card


def test_it_says_what_was_kept_from_training():
    card = " ".join(build_patchwork_card(build_report(*ROWS)).split())
    assert "48 seen labels of split A, in scenes that hold no pixel of the other 12" in card
    assert "- things: ringed disc, checkered triangle, plain square, striped star" in card
    assert "- stuff: blue brick, red weave, grey waves, green planks" in card
    assert "4.3 million parameters, of which 0.7 million" in card
    assert "Thresholds: score 0.75, mask 0.5, overlap 0.8" in card
    assert "knows nothing of photographs" in card
    assert "$" not in card


def test_the_front_matter_is_what_the_hub_reads():
    data = ModelCard(build_patchwork_card(build_report(*ROWS))).data
    assert (data.library_name, data.pipeline_tag, data.license) == (
        "zsseg",
        "image-segmentation",
        "apache-2.0",
    )
    assert data.model_name == "concat-patchwork"
    own_rows = [row for row in ROWS if row.text == "own"]
    assert [(each.dataset_config, each.metric_type, each.metric_value) for each in data.eval_results] == [
        (row.preset, name, round(100 * row.figures[name], 1)) for row in own_rows for name in HEADLINE_FIGURES
    ]


def test_a_figure_that_does_not_exist_is_a_dash_and_no_result():
    row = build_row(0.3)
    row = replace(row, figures={**row.figures, "PQ_unseen": None})
    card = build_patchwork_card(build_report(row))
    assert "| unseen | – |" in card
    assert "PQ_unseen" not in [each.metric_type for each in ModelCard(card).data.eval_results]


def test_equal_reports_give_equal_cards():
    assert build_patchwork_card(build_report(*ROWS)) == build_patchwork_card(build_report(*ROWS))


def test_rows_of_two_splits_are_no_card():
    with pytest.raises(ValueError, match=r"rows of \['A', 'seed-3'\]"):
        build_patchwork_card(build_report(build_row(), build_row(split="seed-3")))


def test_neither_the_control_nor_a_calibrated_figure_alone_is_a_card():
    for row in (build_row(text="shuffled"), build_row(seen_penalty=1.0)):
        with pytest.raises(ValueError, match="no calibration, got none"):
            build_patchwork_card(build_report(row))


def test_calibrated_figures_stand_by_themselves():
    card = build_patchwork_card(build_report(build_row(), build_row(seen_penalty=1.5)))
    assert "### standard, own names, seen labels lowered by 1.5" in card
    assert card.count("type: hPQ") == 1


def test_stages_stand_one_after_the_other():
    earlier = {
        "the segmentor": build_report(build_row(0.2), build_row(0.4, text="shuffled")),
        "alignment": build_report(build_row(0.25), build_row(0.35, preset="easy")),
    }
    card = build_patchwork_card(build_report(*ROWS), earlier)
    lines = card.split("Stage by stage")[1].split("```")[0].splitlines()[4:]
    found = [line.strip("| ").split(" | ")[:3] for line in lines if line]
    position = FIGURES.index("PQ") / 1000
    assert found == [
        ["standard", "the segmentor", percent(0.2 + position)],
        ["standard", "alignment", percent(0.25 + position)],
        ["standard", "this checkpoint", percent(0.3 + position)],
        ["hard", "this checkpoint", percent(0.5 + position)],
    ]
    assert "Stage by stage" not in build_patchwork_card(build_report(*ROWS))


def test_stages_are_of_the_split_of_the_checkpoint():
    with pytest.raises(ValueError, match=r"rows of \['A', 'seed-3'\]"):
        build_patchwork_card(build_report(build_row()), {"before": build_report(build_row(split="seed-3"))})


def test_it_says_whether_the_checkpoint_can_be_adapted():
    report = build_report(*ROWS)
    assert "cannot be adapted" in build_patchwork_card(report)
    model = replace(report.model, parameters_generator=140_000, stored_queries=600)
    card = build_patchwork_card(replace(report, model=model))
    assert "query generator (0.1 million parameters) and 600 stored queries" in " ".join(card.split())
    assert "cannot be adapted" not in card


@pytest.mark.parametrize(
    ("known_labels", "said"),
    [(0, "no unseen name in training"), (48, "the inductive setting"), (60, "from pseudo queries")],
)
def test_it_says_whether_unseen_names_were_known(known_labels, said):
    report = build_report(*ROWS)
    card = build_patchwork_card(replace(report, model=replace(report.model, known_labels=known_labels)))
    assert said in " ".join(card.split())


def list_cells(card, first):
    lines = [line.strip("| ").split(" | ") for line in card.splitlines() if line.startswith(f"| {first} |")]
    assert len(lines) == 1, first
    return lines[0][1:]


def test_the_card_of_the_clip_shows_its_figures_under_their_groups():
    report = build_clip_report()
    card = build_patchwork_clip_card(report)
    # 3/4 of one seen thing, 1/4 of an unseen thing, 5/8 of unseen stuff.
    assert list_cells(card, "all") == ["60", "54.2", "56.2"]
    assert list_cells(card, "things") == ["40", "50.0", "50.0"]
    assert list_cells(card, "unseen") == ["12", "43.8", "50.0"]
    assert list_cells(card, "seen stuff") == ["16", "–", "–"]
    assert (
        "| surface | shape | tone | material |\n| ---: | ---: | ---: | ---: |\n| 75.0 | 62.5 | 87.5 | 75.0 |"
        in card
    )
    assert "| dotted ring | dotted arrow | 2 | 50.0 |\n| grey waves | grey gravel | 2 | 25.0 |" in card
    text = " ".join(card.split())
    assert "3 held-out `standard` scenes of 128×128 (world 1000000, 16 segments)" in text
    assert "split A calls 12 labels unseen" in text
    assert (
        "space of 128 dimensions. It has 2.5 million parameters, of which 0.6 million are the text tower"
        in text
    )
    assert report.command in card
    assert "$" not in card


def test_the_front_matter_of_the_clip_is_what_the_hub_reads():
    report = build_clip_report()
    data = ModelCard(build_patchwork_clip_card(report)).data
    assert (data.library_name, data.pipeline_tag, data.model_name) == (
        "transformers",
        "zero-shot-image-classification",
        "patchwork-clip",
    )
    figures = report.compute_figures()
    assert [(each.metric_type, each.metric_value) for each in data.eval_results] == [
        (name, round(100 * figures[name], 1)) for name in CLIP_HEADLINE_FIGURES
    ]
