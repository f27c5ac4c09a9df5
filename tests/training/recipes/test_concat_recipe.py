import functools

import numpy as np
import pytest
import torch

from testing.tiny_concat_run import (
    build_model,
    build_processor,
    build_processor_with_tokenizer,
    build_text_config,
    read_records,
)
from testing.tiny_semantic_maps import write_semantic_maps
from zsseg.data.semantic_maps import SemanticMapDataset
from zsseg.training.arguments import TrainerArguments
from zsseg.training.checkpointing import CheckpointError
from zsseg.training.evaluation import evaluate_model
from zsseg.training.recipe import run_recipe
from zsseg.training.recipes.concat import build_concat_transform, train_concat
from zsseg.training.recipes.concat_segmentor import UNLABELLED, WarmupStage, build_label_maps
from zsseg.training.stage import StageContext


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return SemanticMapDataset(write_semantic_maps(tmp_path_factory.mktemp("maps") / "train", count=8))


def build_stages(folder, names=("warmup", "segmentor"), **arguments):
    defaults = {
        "steps": 2,
        "batch_size": 2,
        "learning_rate": 2e-3,
        "max_grad_norm": 1.0,
        "num_workers": 0,
        "save_every": None,
        "log_every": 1,
    }
    return {name: TrainerArguments(output_dir=folder / name, **{**defaults, **arguments}) for name in names}


def train(dataset, stages, *, model=None, **options):
    options = {"transform": build_concat_transform((32, 32), min_scale=0.8, max_scale=1.2), **options}
    options = {"unseen": "ignore_pixels", **options}
    model = model if model is not None else build_model()
    return train_concat(model, build_processor(), dataset, stages=stages, **options)


def test_label_maps_read_segments_at_the_centres_of_cells():
    generator = np.random.default_rng(0)
    owner = generator.integers(0, 4, (2, 8, 12))
    masks = [torch.from_numpy(np.stack([image == i for i in range(3)])) for image in owner]
    labels = [torch.tensor([5, 0, 2]), torch.tensor([1, 1, 4])]
    known = generator.random((2, 8, 12)) < 0.8
    maps = build_label_maps(masks, labels, torch.from_numpy(known), size=(4, 3))
    for image in range(2):
        for row in range(4):
            for column in range(3):
                y, x = 2 * row + 1, 4 * column + 2
                segment = owner[image, y, x]
                is_known = known[image, y, x] and segment < 3
                expected = int(labels[image][segment]) if is_known else UNLABELLED
                assert maps[image, row, column] == expected


def test_a_batch_without_a_labelled_pixel_has_no_loss_and_no_nan():
    batch = {
        "pixel_values": torch.randn(1, 3, 64, 64),
        "mask_labels": [torch.zeros(0, 64, 64, dtype=torch.bool)],
        "class_labels": [torch.zeros(0, dtype=torch.int64)],
        "label_mask": torch.zeros(1, 64, 64, dtype=torch.bool),
    }
    from zsseg.vocabulary import Vocabulary

    context = StageContext(Vocabulary.from_labels(["a", "b"]), torch.eye(8)[:2], torch.arange(2))
    losses = WarmupStage().compute_loss(build_model().eval(), batch, context)
    assert losses["loss"] == 0
    assert losses["pixel_accuracy"] == 0


def test_unseen_labels_never_reach_the_loss(tmp_path, dataset, monkeypatch):
    label_ids, unknown = set(), []
    compute_loss = WarmupStage.compute_loss

    def watch(stage, model, batch, context):
        assert context.vocabulary.names == ("red", "green")
        label_ids.update(int(label) for labels in batch["class_labels"] for label in labels)
        unknown.append(float((~batch["label_mask"]).float().mean()))
        return compute_loss(stage, model, batch, context)

    monkeypatch.setattr(WarmupStage, "compute_loss", watch)
    train(dataset, build_stages(tmp_path, ["warmup"], steps=4))
    assert label_ids == {0, 1}
    assert max(unknown) > 0.2


def test_dropping_images_leaves_those_without_an_unseen_segment(tmp_path, dataset):
    train(dataset, build_stages(tmp_path, ["warmup"]), unseen="drop_images")
    setup = (tmp_path / "warmup" / "last" / "trainer" / "setup.json").read_text()
    assert '"examples": 4' in setup
    assert '"unseen": "drop_images"' in setup


@pytest.mark.slow
def test_both_stages_learn_the_colours_and_evaluate(tmp_path, dataset):
    evaluate = functools.partial(
        evaluate_model, processor=build_processor(), dataset=dataset, task="semantic", progress=False
    )
    stages = {
        **build_stages(tmp_path, ["warmup"], steps=40, batch_size=4, log_every=10),
        **build_stages(
            tmp_path,
            ["segmentor"],
            steps=60,
            batch_size=4,
            log_every=10,
            evaluate_every=20,
            metric_for_best="mIoU_seen",
        ),
    }
    results = train(dataset, stages, evaluate=evaluate)
    warmup = read_records(tmp_path / "warmup")
    assert warmup[-1]["pixel_accuracy"] > 0.9
    segmentor = read_records(tmp_path / "segmentor")
    # Of the losses alone: how often a pixel is taken for the unseen label, which nothing trains, differs from
    # processor to processor.
    first, *_, last = (record for record in segmentor if record["kind"] == "train")
    assert last["loss"] < first["loss"] / 5
    assert last["mask"] < first["mask"] / 2
    evaluations = [record for record in segmentor if record["kind"] == "evaluation"]
    assert [record["step"] for record in evaluations] == [20, 40, 60]
    assert results["segmentor"].best_metric == max(record["mIoU_seen"] for record in evaluations)
    assert results["segmentor"].best_checkpoint.is_dir()


def test_a_resumed_recipe_goes_on_with_its_last_stage(tmp_path, dataset):
    whole = build_model()
    train(dataset, build_stages(tmp_path / "whole"), model=whole)

    train(dataset, build_stages(tmp_path / "parts", ["warmup"]))
    (tmp_path / "parts" / "segmentor").mkdir()
    (tmp_path / "parts" / "segmentor" / "metrics.jsonl").write_text("killed before its first checkpoint")
    resumed = build_model(seed=5)
    results = train(dataset, build_stages(tmp_path / "parts"), model=resumed, resume=True)
    assert list(results) == ["warmup", "segmentor"]
    expected = whole.state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in resumed.state_dict().items())

    again = train(dataset, build_stages(tmp_path / "parts"), resume=True)
    assert list(again) == ["segmentor"]
    assert again["segmentor"].is_complete


def test_an_interrupted_stage_is_the_last(tmp_path, dataset, monkeypatch):
    import signal

    compute_loss = WarmupStage.compute_loss

    def interrupt(stage, model, batch, context):
        signal.raise_signal(signal.SIGTERM)
        return compute_loss(stage, model, batch, context)

    monkeypatch.setattr(WarmupStage, "compute_loss", interrupt)
    results = train(dataset, build_stages(tmp_path))
    assert list(results) == ["warmup"]
    assert not results["warmup"].is_complete
    assert results["warmup"].last_checkpoint.is_dir()


def test_another_augmentation_is_another_run(tmp_path, dataset):
    train(dataset, build_stages(tmp_path, ["warmup"]))
    with pytest.raises(CheckpointError, match=r"transform: .* then, .* now"):
        train(
            dataset,
            build_stages(tmp_path, ["warmup"]),
            transform=build_concat_transform((64, 64)),
            resume=True,
        )


def test_unusable_recipes_are_refused(tmp_path, dataset):
    with pytest.raises(ValueError, match=r"'segmentor', 'alignment'\], got also \['generator'\]"):
        train(dataset, build_stages(tmp_path, ["generator"]))
    with pytest.raises(ValueError, match="unseen must be one of"):
        train(dataset, build_stages(tmp_path), unseen="keep")
    with pytest.raises(ValueError, match="at least one stage"):
        train(dataset, {})
    with pytest.raises(ValueError, match="all of them one seed"):
        train(
            dataset, {**build_stages(tmp_path, ["warmup"]), **build_stages(tmp_path, ["segmentor"], seed=1)}
        )
    with pytest.raises(ValueError, match="share one mixed_precision"):
        train(
            dataset,
            {
                **build_stages(tmp_path, ["warmup"]),
                **build_stages(tmp_path, ["segmentor"], mixed_precision="bf16"),
            },
        )
    with pytest.raises(CheckpointError, match="no stage has begun"):
        train(dataset, build_stages(tmp_path), resume=True)
    one = build_stages(tmp_path, ["warmup"])["warmup"]
    with pytest.raises(ValueError, match="every stage needs its own output_dir"):
        train(dataset, {"warmup": one, "segmentor": one})
    with pytest.raises(ValueError, match="at least one stage, got none"):
        run_recipe([], model=None, processor=None, context=None, dataset=None, collate=None, data_setup={})


def test_the_text_tower_is_saved_and_never_trained(tmp_path, dataset):
    model, processor = build_model(text_config=build_text_config()), build_processor_with_tokenizer()
    before = {name: value.clone() for name, value in model.text_model.state_dict().items()}
    train_concat(
        model,
        processor,
        dataset,
        stages=build_stages(tmp_path),
        transform=build_concat_transform((32, 32)),
        unseen="ignore_pixels",
    )
    from zsseg.models.concat.modeling_concat import ConcatForPanopticSegmentation

    saved = ConcatForPanopticSegmentation.from_pretrained(tmp_path / "segmentor" / "last")
    assert before
    for name, value in saved.text_model.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_labels_that_are_all_unseen_are_refused(tmp_path):
    maps = write_semantic_maps(tmp_path / "maps", count=2, unseen=("red", "green", "blue"))
    with pytest.raises(ValueError, match="all 3 labels of the data set are unseen"):
        train(SemanticMapDataset(maps), build_stages(tmp_path / "run"))
