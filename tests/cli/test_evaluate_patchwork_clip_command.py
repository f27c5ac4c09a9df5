import shutil

import numpy as np
import pytest
from PIL import Image
from transformers import CLIPConfig, CLIPModel

from zsseg import checkpoints
from zsseg.data.patchwork.dataset import HELD_OUT_SEED, PatchworkDataset
from zsseg.training.patchwork_clip_evaluation import evaluate_patchwork_clip
from zsseg.training.patchwork_clip_report import PatchworkClipReport
from zsseg.training.recipes.patchwork_clip import build_patchwork_clip


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    """Patchwork's CLIP with random weights."""
    folder = tmp_path_factory.mktemp("clip")
    for part in build_patchwork_clip():
        part.save_pretrained(folder)
    return folder


def evaluate(run, *options):
    return run("evaluate", "patchwork-clip", *options)


def test_everything_is_written_and_told(run, clip, tmp_path):
    output = tmp_path / "scores"
    outcome = evaluate(
        run, "--model", clip, "--scenes", 2, "--preset", "easy", "--split", "seed-3", "--output", output
    )
    assert (outcome.code, outcome.stderr) == (0, "")
    report = PatchworkClipReport.load(output / "results.json")
    assert report.command == (
        f"zsseg evaluate patchwork-clip --model {clip} --preset easy --split seed-3 --scenes 2"
    )
    model, processor = build_patchwork_clip()
    scenes = PatchworkDataset("easy", seed=HELD_OUT_SEED, num_scenes=2, split="seed-3")
    averages, counts = evaluate_patchwork_clip(model.eval(), processor, scenes)
    assert np.array_equal(report.build_counts(), counts)
    # Averages of the recipe's evaluation, which leaves out groups that do not occur.
    figures = report.compute_figures()
    assert {name: figures[name] for name in averages} == pytest.approx(averages)
    assert (report.model.name, report.model.parameters, report.model.embed_dim) == (clip.name, 2_540_801, 128)
    assert report.model.parameters_text_tower == sum(
        parameter.numel() for name, parameter in model.named_parameters() if name.startswith("text_")
    )
    assert min(Image.open(output / "confusion.png").size) >= 1400
    assert f"2 held-out scenes · {counts.sum()} segments named among 60 labels (12 unseen)" in outcome.stdout
    lines = [line.split() for line in outcome.stdout.splitlines()]
    assert [line[:2] for line in lines if line[:1] == ["unseen"]] == [
        *(["unseen", "12"], ["unseen", "things"], ["unseen", "stuff"]),
    ]
    assert [line[0] for line in lines if line[:1] in (["surface"], ["shape"], ["tone"], ["material"])] == [
        *("surface", "shape", "tone", "material"),
    ]
    first = report.list_confusions(1)[0]
    assert [*first.name.split(), *first.taken_for.split(), str(first.times)] in [line[:5] for line in lines]


def test_without_a_model_the_packaged_one_is_measured(run, clip, tmp_path, monkeypatch):
    folder = tmp_path / "packaged"
    shutil.copytree(clip, folder)
    for name in ("README.md", "evaluation.json"):
        (folder / name).write_text("", encoding="utf-8")
    monkeypatch.setitem(checkpoints.PACKAGED_FOLDERS, "patchwork-clip", folder)
    assert evaluate(run, "--scenes", 1, "-o", tmp_path / "scores").code == 0
    report = PatchworkClipReport.load(tmp_path / "scores" / "results.json")
    # Anybody who has the package can repeat it.
    assert report.command == "zsseg evaluate patchwork-clip --preset standard --split A --scenes 1"


def test_a_full_folder_is_left_alone(run, clip, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    outcome = evaluate(run, "-m", clip, "-o", tmp_path)
    assert (outcome.code, outcome.stdout) == (2, "")
    assert "--overwrite" in outcome.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--preset", "brutal"), "one of ['easy', 'standard', 'hard'], got 'brutal'"),
        (("--split", "B"), 'split is "A" or "seed-N"'),
        (("--model", "no/such/clip"), "there is no checkpoint folder at no/such/clip"),
    ],
)
def test_mistakes_are_said_in_one_line(run, clip, options, message):
    outcome = evaluate(run, "-m", clip, *options)
    assert (outcome.code, outcome.stdout) == (1, "")
    assert message in outcome.stderr
    assert outcome.stderr.count("\n") == 1


def test_no_scenes_are_a_mistake(run, clip):
    outcome = evaluate(run, "-m", clip, "--scenes", 0)
    assert outcome.code == 2
    assert "it must be at least 1, got 0" in outcome.stderr


def test_other_models_are_refused(run, concat_checkpoint, tmp_path):
    outcome = evaluate(run, "-m", concat_checkpoint, "--scenes", 1)
    assert outcome.code == 1
    assert "model type 'zsseg-concat', but CLIPModel loads 'clip'" in outcome.stderr
    tiny = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    config = CLIPConfig(text_config=tiny, vision_config={**tiny, "image_size": 32, "patch_size": 16})
    CLIPModel(config).save_pretrained(tmp_path)
    outcome = evaluate(run, "-m", tmp_path, "--scenes", 1)
    assert outcome.code == 1
    assert "a CLIP of 32×32 pictures, but segments are cut out at 64×64" in outcome.stderr
