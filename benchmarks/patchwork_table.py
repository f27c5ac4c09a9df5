"""Makes the table of Patchwork results that README and documents show, a row a model.

    python benchmarks/patchwork_table.py benchmarks/results/patchwork/*.json --write README.md

Each JSON is the results.json of ``zsseg evaluate patchwork --model … --shuffled-text --output …``. With
``--write`` the table replaces what stands between the lines ``<!-- patchwork-table -->`` and
``<!-- /patchwork-table -->`` of each document; without, it is printed.
"""

import argparse
import sys
from pathlib import Path

from zsseg.publishing.marked_sections import replace_marked_section
from zsseg.training.patchwork_report import PatchworkReport

MARK = "patchwork-table"
GROUPS = ("", "_things", "_stuff", "_seen", "_unseen")
COLUMNS = (
    "all",
    "things",
    "stuff",
    "seen",
    "unseen",
    "unseen, shuffled",
    "seen things · stuff",
    "hPQ (shuffled)",
    "mIoU",
    "hIoU",
    "ms an image",
    "parameters, M (text tower)",
)


def percent(row, *figures):
    values = [row.figures[figure] for figure in figures]
    return " / ".join("–" if value is None else f"{100 * value:.1f}" for value in values)


def find_row(report, preset, text):
    setup = (preset, text, 0.0)
    return next((row for row in report.rows if (row.preset, row.text, row.seen_penalty) == setup), None)


def build_cells(report, preset):
    own, shuffled = (find_row(report, preset, text) for text in ("own", "shuffled"))
    if own is None:
        raise ValueError(f"{report.model.name} was not evaluated on preset {preset!r}: add --preset {preset}")
    qualities = [percent(own, *(f"{figure}{group}" for figure in ("PQ", "SQ", "RQ"))) for group in GROUPS]
    return [
        *qualities,
        "–" if shuffled is None else percent(shuffled, "PQ_unseen", "SQ_unseen", "RQ_unseen"),
        percent(own, "PQ_seen_things", "PQ_seen_stuff").replace("/", "·"),
        f"{percent(own, 'hPQ')} ({'–' if shuffled is None else percent(shuffled, 'hPQ')})",
        percent(own, "mIoU"),
        percent(own, "hIoU"),
        f"{own.figures['ms_per_image']:.0f}",
        f"{report.model.parameters / 1e6:.1f} ({report.model.parameters_text_tower / 1e6:.1f})",
    ]


def build_caption(reports, presets):
    setups = {
        (row.scenes, row.split, row.size, row.seed)
        for report in reports
        for row in report.rows
        if row.preset in presets
    }
    if len(setups) > 1:
        raise ValueError(
            "rows of one table need the same scenes, but these differ in (scenes, split, size, seed): "
            f"{sorted(setups)}"
        )
    ((scenes, split, size, _),) = setups
    machines = {report.machine: None for report in reports}
    return (
        f"PQ / SQ / RQ of groups of labels, PQ of seen things · stuff, hPQ, mIoU and hIoU, in percent, on "
        f"{scenes} held-out scenes of {size} × {size}, split {split}, asked for all sixty names. Shuffled: "
        f"the unseen names exchanged among themselves. Times: median, batch size 1, {'; '.join(machines)}."
    )


def build_table(reports, presets):
    rows = [["model", *COLUMNS], ["---", *["---:"] * len(COLUMNS)]]
    for report in reports:
        for preset in presets:
            name = report.model.name if presets == ["standard"] else f"{report.model.name}, {preset}"
            rows.append([name, *build_cells(report, preset)])
    table = "\n".join(f"| {' | '.join(cells)} |" for cells in rows)
    commands = "\n".join(report.command for report in reports)
    return f"{table}\n\n{build_caption(reports, presets)}\n\n```bash\n{commands}\n```"


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("results", type=Path, nargs="+", metavar="JSON")
    parser.add_argument("--preset", action="append", help="standard, unless named; may be repeated")
    parser.add_argument("--write", type=Path, nargs="+", default=[], metavar="DOCUMENT")
    arguments = parser.parse_args()
    try:
        reports = [PatchworkReport.load(path) for path in arguments.results]
        table = build_table(reports, arguments.preset or ["standard"])
        for document in arguments.write:
            replace_marked_section(document, MARK, table)
    except (OSError, ValueError) as error:
        sys.exit(str(error))
    if not arguments.write:
        print(table)


if __name__ == "__main__":
    main()
