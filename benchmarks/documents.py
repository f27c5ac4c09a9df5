"""Writes anew every card and table that follows from the results in the repository.

    python benchmarks/documents.py          # or: make documents

Writes model_cards/, the cards of the packaged checkpoints and the Patchwork tables in README.md and
docs/patchwork.md. A test compares all of them with what this writes.
"""

import argparse
from pathlib import Path

import patchwork_table

from zsseg.checkpoints import PACKAGED_FOLDERS
from zsseg.publishing.marked_sections import replace_marked_section
from zsseg.publishing.model_card import (
    PATCHWORK_CLIP_NAME,
    build_patchwork_card,
    build_patchwork_clip_card,
)
from zsseg.training.patchwork_clip_report import PatchworkClipReport
from zsseg.training.patchwork_report import PatchworkReport

REPOSITORY = Path(__file__).resolve().parents[1]
RESULTS = REPOSITORY / "benchmarks" / "results" / "patchwork"
STAGES = {"segmentor": "segmentor.json", "token alignment": "alignment.json"}
TABLES = {"README.md": ["standard"], "docs/patchwork.md": ["easy", "standard", "hard"]}
"""Document → the presets that its table shows."""


def build_card(name):
    evaluation = PACKAGED_FOLDERS[name] / "evaluation.json"
    if name == PATCHWORK_CLIP_NAME:
        return build_patchwork_clip_card(PatchworkClipReport.load(evaluation))
    report = PatchworkReport.load(evaluation)
    if report.model.family != "zsseg-concat":
        return build_patchwork_card(report)
    stages = {stage: PatchworkReport.load(RESULTS / "stages" / file) for stage, file in STAGES.items()}
    return build_patchwork_card(report, stages)


def write_documents(root):
    """Write into a clone at ``root``; the paths written, relative to it."""
    written = []
    for name, folder in PACKAGED_FOLDERS.items():
        for path in (f"model_cards/{name}.md", f"{folder.relative_to(REPOSITORY).as_posix()}/README.md"):
            (root / path).write_text(build_card(name), encoding="utf-8")
            written.append(path)
    reports = [PatchworkReport.load(path) for path in sorted(RESULTS.glob("*.json"))]
    for path, presets in TABLES.items():
        table = patchwork_table.build_table(reports, presets)
        replace_marked_section(root / path, patchwork_table.MARK, table)
        written.append(path)
    return written


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--root", type=Path, default=REPOSITORY, help="clone to write into; this one")
    for path in write_documents(parser.parse_args().root):
        print(path)


if __name__ == "__main__":
    main()
