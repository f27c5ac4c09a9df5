"""Reports of the Patchwork benchmarks that nothing was measured for."""

from zsseg.training.patchwork_clip_report import EvaluatedClip, PatchworkClipReport
from zsseg.training.patchwork_report import FIGURES, BenchmarkedModel, PatchworkReport, PatchworkRow


def build_row(**changes):
    figures = {name: (position + 1) / 100 for position, name in enumerate(FIGURES)}
    figures |= {"PQ_unseen_stuff": None, "ms_per_image": 61.5}
    setup = {"preset": "easy", "split": "A", "scenes": 3, "size": 64, "seed": 9, "text": "own"}
    return PatchworkRow(**{**setup, "figures": figures, **changes})


def build_report(name="tiny", rows=None):
    model = BenchmarkedModel(name, "zsseg-concat", 1000, 100, 0.8, 0.5, 0.7, 0, 0, 0)
    rows = (build_row(), build_row(text="shuffled")) if rows is None else rows
    return PatchworkReport(f"zsseg evaluate patchwork --model {name}", "a machine", model, rows)


CLIP_CONFUSION = {
    "plain disc": {"plain disc": 3, "ringed disc": 1},
    "dotted ring": {"dotted arrow": 2, "red brick": 1, "dotted ring": 1},
    "grey waves": {"grey waves": 5, "grey gravel": 2, "blue waves": 1},
}


def build_clip_report(parameters=2_540_801, **changes):
    content = {
        "command": "zsseg evaluate patchwork-clip --scenes 3",
        "model": EvaluatedClip("tiny-clip", parameters, 622_720, 128, 64),
        "preset": "standard",
        "split": "A",
        "scenes": 3,
        "size": 128,
        "seed": 1_000_000,
        "confusion": CLIP_CONFUSION,
    }
    return PatchworkClipReport(**{**content, **changes})
