import pytest
import torch

from testing.tiny_scan_run import build_scan_model, build_scan_processor
from testing.tiny_semantic_maps import write_semantic_maps
from zsseg import ScanForSemanticSegmentation
from zsseg.data.semantic_maps import SemanticMapDataset
from zsseg.data.transforms import Compose, Pad, RandomCrop, RandomHorizontalFlip, Resize, SsdColorJitter
from zsseg.models.scan.configuration_scan import choose_scan_layers
from zsseg.training.arguments import TrainerArguments
from zsseg.training.checkpointing import CheckpointError
from zsseg.training.recipes.scan import build_scan_transform, train_scan
from zsseg.training.recipes.scan_stages import ContextualShiftOptions, ContextualShiftStage, ProposalStage

STAGES = ("proposals", "contextual_shift")


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return SemanticMapDataset(write_semantic_maps(tmp_path_factory.mktemp("maps") / "train", count=8))


def build_stages(folder, names=STAGES, **arguments):
    defaults = {
        "steps": 2,
        "batch_size": 2,
        "learning_rate": 1e-3,
        "max_grad_norm": 1.0,
        "num_workers": 0,
        "save_every": None,
        "log_every": 1,
    }
    return {name: TrainerArguments(output_dir=folder / name, **{**defaults, **arguments}) for name in names}


def train(dataset, stages, *, model=None, **options):
    options = {"transform": build_scan_transform((32, 32)), "unseen": "ignore_pixels", **options}
    model = build_scan_model() if model is None else model
    return train_scan(model, build_scan_processor(), dataset, stages=stages, **options)


def copy_weights(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


def find_changed(before, after):
    return {name.split(".")[0] for name in before if not torch.equal(before[name], after[name])}


def test_the_papers_augmentation():
    resize = Resize(shortest_edge=tuple(range(320, 1281, 64)), longest_edge=2560)
    crop, pad = RandomCrop((640, 640)), Pad((640, 640))
    assert build_scan_transform((640, 640)) == Compose(
        (resize, crop, SsdColorJitter(32.0, 0.5, 0.5, 0.1), RandomHorizontalFlip(0.5), pad)
    )
    with pytest.raises(ValueError, match="0 < min_scale <= max_scale"):
        build_scan_transform((32, 32), min_scale=2.0, max_scale=1.0)


@pytest.mark.parametrize(
    ("num_layers", "integration", "shift"),
    [(12, (6, 9, 12), (1, 3, 5)), (24, (12, 18, 24), (1, 3, 5, 7, 9)), (3, (1, 2, 3), (1,))],
)
def test_the_papers_blocks_of_both_towers(num_layers, integration, shift):
    assert choose_scan_layers(num_layers) == {"integration_layers": integration, "shift_layers": shift}


@pytest.mark.parametrize("num_layers", range(3, 49))
def test_blocks_of_any_tower_are_there_and_different(num_layers):
    for blocks in choose_scan_layers(num_layers).values():
        assert len(set(blocks)) == len(blocks)
        assert 1 <= min(blocks) <= max(blocks) <= num_layers


def test_two_blocks_are_too_few():
    with pytest.raises(ValueError, match="reads three blocks of the vision tower, got 2"):
        choose_scan_layers(2)


def test_the_tower_of_the_crops_comes_with_its_stage_and_starts_as_the_frozen_one(tmp_path, dataset):
    model = build_scan_model()
    before = copy_weights(model)
    results = train(dataset, build_stages(tmp_path), model=model)
    assert list(results) == list(STAGES)
    proposals = ScanForSemanticSegmentation.from_pretrained(tmp_path / "proposals" / "last")
    assert proposals.shifted_tower is None
    assert find_changed(before, proposals.state_dict()) == {
        *("segmentor", "proposal_head", "sim", "no_object_embedding"),
    }
    final = ScanForSemanticSegmentation.from_pretrained(tmp_path / "contextual_shift" / "last")
    assert final.config.has_shifted_tower
    assert not find_changed(proposals.state_dict(), final.state_dict())
    moved = [
        (value - before[name.replace("shifted", "context")]).abs().max()
        for name, value in final.state_dict().items()
        if name.startswith("shifted_tower.")
    ]
    # Two steps of Adam at a rate of 1e-3: near the frozen tower, not on it.
    assert 0 < max(moved) < 5e-3


@pytest.mark.parametrize("stage", [ProposalStage, ContextualShiftStage])
def test_unseen_labels_never_reach_the_loss(tmp_path, dataset, monkeypatch, stage):
    label_ids, unknown = set(), []
    compute_loss = stage.compute_loss

    def watch(self, model, batch, context):
        assert context.vocabulary.names == ("red", "green")
        assert len(context.text_embeds) == 2
        label_ids.update(int(label) for labels in batch["class_labels"] for label in labels)
        for known, masks in zip(batch["label_mask"], batch["mask_labels"], strict=True):
            assert not (masks & ~known).any()
        unknown.append(float((~batch["label_mask"]).float().mean()))
        return compute_loss(self, model, batch, context)

    monkeypatch.setattr(stage, "compute_loss", watch)
    train(dataset, build_stages(tmp_path, [stage.name], steps=4))
    assert label_ids == {0, 1}
    assert max(unknown) > 0.2


def test_dropping_images_leaves_those_without_an_unseen_segment(tmp_path, dataset):
    train(dataset, build_stages(tmp_path, ["proposals"]), unseen="drop_images")
    setup = (tmp_path / "proposals" / "last" / "trainer" / "setup.json").read_text()
    assert '"examples": 4' in setup


@pytest.mark.parametrize("begun", [("proposals",), STAGES])
def test_a_resumed_recipe_goes_on_with_its_last_stage(tmp_path, dataset, begun):
    whole = build_scan_model()
    train(dataset, build_stages(tmp_path / "whole"), model=whole)
    train(dataset, build_stages(tmp_path / "parts", begun))
    resumed = build_scan_model(seed=5)
    results = train(dataset, build_stages(tmp_path / "parts"), model=resumed, resume=True)
    assert results["contextual_shift"].is_complete
    expected = whole.state_dict()
    assert expected.keys() == resumed.state_dict().keys()
    assert all(torch.equal(value, expected[name]) for name, value in resumed.state_dict().items())


def test_a_checkpoint_with_a_tower_keeps_its_own(tmp_path, dataset):
    model = build_scan_model(has_shifted_tower=True)
    with torch.no_grad():
        for parameter in model.shifted_tower.parameters():
            parameter.add_(1.0)
    before = copy_weights(model)
    train(dataset, build_stages(tmp_path, ["contextual_shift"]), model=model)
    after = model.state_dict()
    moved = [
        float((after[name] - value).abs().max()) for name, value in before.items() if "shifted_t" in name
    ]
    assert max(moved) < 0.1


def test_other_options_of_the_shift_are_another_run_of_its_stage_alone(tmp_path, dataset):
    train(dataset, build_stages(tmp_path))
    shift = ContextualShiftOptions(crops_per_image=1)
    with pytest.raises(
        CheckpointError, match=r"shift: .*crops_per_image=4.* then, .*crops_per_image=1.* now"
    ):
        train(dataset, build_stages(tmp_path), shift=shift, resume=True)
    train(dataset, build_stages(tmp_path, ["proposals"]), shift=shift, resume=True)


def test_overwriting_deletes_what_went_on_from_it(tmp_path, dataset):
    train(dataset, build_stages(tmp_path))
    again = build_stages(tmp_path, ["proposals"])
    train(dataset, again, later_folders=[tmp_path / "contextual_shift"], overwrite=True)
    assert not (tmp_path / "contextual_shift" / "last").exists()
    assert (tmp_path / "proposals" / "last").exists()


def test_a_model_without_proposal_embeddings_learns_its_crops_alone(tmp_path, dataset):
    parts = {"has_proposal_head": False, "has_semantic_integration": False, "mode": "clip_only"}
    with pytest.raises(ValueError, match="trains proposal embeddings, which this model has none of"):
        train(dataset, build_stages(tmp_path), model=build_scan_model(**parts))
    assert not (tmp_path / "contextual_shift").exists()
    results = train(dataset, build_stages(tmp_path, ["contextual_shift"]), model=build_scan_model(**parts))
    assert results["contextual_shift"].is_complete


def test_a_model_without_a_vision_tower_learns_proposals_alone(tmp_path, dataset):
    def build():
        return build_scan_model(vision_config=None, has_semantic_integration=False, mode="in_vocab_only")

    with pytest.raises(ValueError, match="trains a copy of CLIP's vision tower, which this model is without"):
        train(dataset, build_stages(tmp_path), model=build())
    assert not (tmp_path / "proposals").exists()
    assert train(dataset, build_stages(tmp_path, ["proposals"]), model=build())["proposals"].is_complete


def test_unusable_recipes_are_refused(tmp_path, dataset):
    with pytest.raises(
        ValueError, match=r"SCAN has the stages \['proposals', 'contextual_shift'\], got also"
    ):
        train(dataset, build_stages(tmp_path, ["segmentor"]))
    with pytest.raises(ValueError, match="at least one stage"):
        train(dataset, {})
    with pytest.raises(ValueError, match="has 3 blocks, but shift_layers says"):
        train(dataset, build_stages(tmp_path), shift=ContextualShiftOptions(shift_layers=(1, 5)))
    with pytest.raises(CheckpointError, match="no stage has begun"):
        train(dataset, build_stages(tmp_path), resume=True)
    assert not any(tmp_path.iterdir())
