"""Results of an ablation: what was run is kept, row by row and seed by seed, and turned into tables."""

import csv
import json
import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

Result = dict[str, Any]
"""``row``, ``seed``, ``setup`` and figures by name, as fractions; "ms_per_image" is in milliseconds."""


def run_missing(
    path: Path,
    rows: Mapping[str, str],
    seeds: Sequence[int],
    measure: Callable[[str, int], Mapping[str, float]],
) -> list[Result]:
    """Measure what the file lacks, and write it after every row; all its results.

    Args:
        path: of the file.
        rows: by name, all that decides a row's figures beside the seed. Results of another setup are refused.
        seeds: of each row.
        measure: row and seed → figures.
    """
    results: list[Result] = json.loads(path.read_text()) if path.is_file() else []
    for result in results:
        if result["row"] in rows and result["setup"] != rows[result["row"]]:
            sys.exit(
                f"{path} has the row {result['row']!r} of another setup, {result['setup']}, not "
                f"{rows[result['row']]}: use another --output"
            )
    done = {(result["row"], result["seed"]) for result in results}
    for seed in seeds:
        for row in rows:
            if (row, seed) in done:
                continue
            print(f"=== {row}, seed {seed}", flush=True)
            figures = measure(row, seed)
            print({key: round(_scale(key) * value, 1) for key, value in figures.items()}, flush=True)
            results.append({"row": row, "seed": seed, "setup": rows[row], **figures})
            part = path.with_suffix(".incomplete")
            part.write_text(json.dumps(results, indent=1) + "\n")
            part.replace(path)
    return results


def write_csv(results: Sequence[Result], rows: Sequence[str], figures: Sequence[str], path: Path) -> None:
    """One line for each row and seed, in the order of ``rows``: the figures in percent."""
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["row", "seed", *figures])
        for result in sorted(results, key=lambda result: (rows.index(result["row"]), result["seed"])):
            cells = [f"{_scale(figure) * result[figure]:.2f}" for figure in figures]
            writer.writerow([result["row"], result["seed"], *cells])


def build_table(results: Sequence[Result], rows: Sequence[str], figures: Sequence[str]) -> str:
    """Mean ± sample standard deviation over seeds, in percent, as Markdown."""
    lines = [
        f"| | seeds | {' | '.join(figure.replace('_', ' ') for figure in figures)} |",
        f"| --- | ---: | {' | '.join(['---:'] * len(figures))} |",
    ]
    for row in rows:
        found = [result for result in results if result["row"] == row]
        if not found:
            continue
        cells = []
        for figure in figures:
            values = [_scale(figure) * result[figure] for result in found]
            spread = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
            cells.append(f"{statistics.mean(values):.1f}{spread}")
        lines.append(f"| {row} | {len(found)} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _scale(figure: str) -> int:
    """From a figure as it is kept to the one that is shown: fractions become percent."""
    return 1 if figure == "ms_per_image" else 100
