import re

import pytest
import torch
from convert_mask2former_detectron2_to_zsseg import convert
from safetensors.torch import save_file

from testing.detectron2_checkpoints import (
    DIM,
    FEEDFORWARD,
    MASK_DIM,
    NUM_HEADS,
    NUM_QUERIES,
    build_mask2former,
    build_pading,
    save_pkl,
    save_pth,
)
from testing.tiny_models import (
    BANK_NAMES,
    TEXT_WIDTH,
    build_bank,
    build_model,
    build_picture,
    build_processor,
)
from zsseg import ConcatForPanopticSegmentation, ConcatProcessor
from zsseg.conversion import converted_checkpoint
from zsseg.conversion.source_weights import ConversionBooks
from zsseg.conversion.verification import check_differences, compute_differences

QUERY_FEATURES = "sem_seg_head.predictor.query_feat.weight"
SELF_ATTENTION = "sem_seg_head.predictor.transformer_self_attention_layers.0.self_attn"
SAMPLING = "sem_seg_head.pixel_decoder.transformer.encoder.layers.0.self_attn"
DECODER_LAYER = "sem_seg_head.predictor.transformer_ffn_layers.1"


@pytest.mark.parametrize(
    ("backbone", "options", "save"),
    [
        ("resnet", {}, save_pkl),
        ("resnet", {"counts_batches": True, "projects_input": True}, save_pth),
        ("swin", {}, save_pth),
    ],
)
def test_a_checkpoint_by_detectron2_computes_the_same(
    tmp_path, clip_checkpoint, read_report, capsys, backbone, options, save
):
    source = build_mask2former(backbone, **options)
    save(source, tmp_path / "model_final.file")
    folder = tmp_path / "converted"
    convert(tmp_path / "model_final.file", folder, clip=str(clip_checkpoint), verify=True)
    report = read_report(folder)
    differences = report["verification"]["largest_differences"]
    assert set(differences) >= {
        "backbone, level 1",
        "backbone, level 4",
        "pixel embeddings",
        "queries",
        "masks",
    }
    # float64 but for sines and reference points, which transformers may compute in float32.
    assert all(value < 1e-6 for value in differences.values())

    weights = report["weights"]
    assert weights["used"].keys() | weights["dropped"].keys() == source.keys()
    assert not weights["used"].keys() & weights["dropped"].keys()
    model = ConcatForPanopticSegmentation.from_pretrained(folder)
    made = [target for targets in weights["used"].values() for target in targets]
    assert sorted([*made, *weights["new"]]) == sorted(model.state_dict())
    unused = r"num_batches_tracked$" if backbone == "resnet" else r"encoder\.swin\.layernorm\."
    own = r"^(semantic_projector\.0\.|no_object_embedding$|text_model\.)"
    assert all(re.search(f"{own}|{unused}", name) for name in weights["new"])
    assert {"__author__", "iteration"} & set(weights["beside"])

    printed = capsys.readouterr().out
    assert "saw all 133 classes" in printed
    assert "never a zero-shot number" in (folder / "README.md").read_text(encoding="utf-8")
    assert re.search(r"dropped +2  sem_seg_head\.predictor: classifier of a fixed list", printed)
    for file in folder.iterdir():
        assert str(tmp_path.parent).encode() not in file.read_bytes()
        assert str(clip_checkpoint).encode() not in file.read_bytes()


def test_sizes_are_read_from_the_shapes(tmp_path, embeddings_file):
    for backbone in ("resnet", "swin"):
        save_pth(build_mask2former(backbone), tmp_path / "model.pth")
        convert(tmp_path / "model.pth", tmp_path / backbone, text_embeddings=embeddings_file)
    config = ConcatForPanopticSegmentation.from_pretrained(tmp_path / "resnet").config
    segmentor = config.segmentor_config
    assert (segmentor.hidden_dim, segmentor.feature_size, segmentor.mask_feature_size) == (DIM, DIM, MASK_DIM)
    assert (segmentor.encoder_layers, segmentor.decoder_layers, segmentor.num_queries) == (2, 5, NUM_QUERIES)
    assert (segmentor.dim_feedforward, segmentor.num_attention_heads) == (FEEDFORWARD, NUM_HEADS)
    assert segmentor.backbone_config.depths == [1, 2, 1, 1]
    assert segmentor.backbone_config.hidden_sizes == [16, 32, 48, 64]
    assert config.projection_dim == TEXT_WIDTH
    assert config.text_config is None
    swin = ConcatForPanopticSegmentation.from_pretrained(
        tmp_path / "swin"
    ).config.segmentor_config.backbone_config
    assert (swin.embed_dim, swin.window_size, swin.patch_size, swin.mlp_ratio) == (8, 3, 4, 4.0)
    assert (swin.depths, swin.num_heads) == ([2, 2, 1, 1], [1, 2, 2, 4])


def test_the_result_segments_pictures_by_words(tmp_path, embeddings_file):
    save_pkl(build_mask2former(), tmp_path / "model.pkl")
    convert(tmp_path / "model.pkl", tmp_path / "converted", text_embeddings=embeddings_file)
    model = ConcatForPanopticSegmentation.from_pretrained(tmp_path / "converted")
    processor = ConcatProcessor.from_pretrained(tmp_path / "converted")
    assert processor.image_processor.image_mean == pytest.approx([0.485, 0.456, 0.406])
    batch = processor(build_picture(60, 90), BANK_NAMES, size={"shortest_edge": 64, "longest_edge": 96})
    with torch.no_grad():
        outputs = model(**batch)
    assert outputs.class_queries_logits.shape == (1, NUM_QUERIES, len(BANK_NAMES) + 1)
    result = processor.merge_panoptic(outputs, target_sizes=[(60, 90)], threshold=0.0)[0]
    assert result.segment_ids.shape == (60, 90)


def test_new_weights_follow_the_seed(tmp_path, embeddings_file):
    save_pth(build_mask2former(), tmp_path / "model.pth")
    projectors = []
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        convert(tmp_path / "model.pth", tmp_path / name, text_embeddings=embeddings_file, seed=seed)
        model = ConcatForPanopticSegmentation.from_pretrained(tmp_path / name)
        projectors.append(model.semantic_projector[0].weight)
    assert torch.equal(projectors[0], projectors[1])
    assert not torch.equal(projectors[0], projectors[2])


def test_a_prefix_of_all_names_is_named_and_can_be_chosen(tmp_path, embeddings_file, fails, read_report):
    source = build_mask2former()
    words = {"text_embeddings": embeddings_file}
    save_pth({f"module.{name}": tensor for name, tensor in source.items()}, tmp_path / "model.pth")
    message, code = fails(convert, tmp_path / "model.pth", tmp_path / "out", **words)
    assert code == 1
    assert "stand here behind 'module.'" in message
    assert "pass --prefix module. to convert" in message
    assert not (tmp_path / "out").exists()
    convert(tmp_path / "model.pth", tmp_path / "out", prefix="module.", verify=True, **words)

    average = {f"ema.{name}": tensor for name, tensor in source.items()}
    save_pth({"updates": torch.tensor(3), **average}, tmp_path / "model.pth")
    message, _ = fails(convert, tmp_path / "model.pth", tmp_path / "out2", **words)
    assert "pass --prefix ema. to convert" in message
    convert(tmp_path / "model.pth", tmp_path / "out2", prefix="ema.", **words)
    assert read_report(tmp_path / "out2")["weights"]["dropped"]["updates"] == "not among those under 'ema.'"
    message, _ = fails(convert, tmp_path / "model.pth", tmp_path / "out3", prefix="model.", **words)
    assert "no weight's name begins with 'model.'; they begin like ['ema.backbone" in message


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w: w.pop(f"{DECODER_LAYER}.linear2.weight"), "1 weights are missing from the file, first "),
        (lambda w: w.pop(f"{DECODER_LAYER}.linear1.weight"), r"number \[1\] is missing, but 3 is there"),
        (lambda w: w.pop(QUERY_FEATURES), f"'{QUERY_FEATURES}' is missing; the file may be cut down"),
        (
            lambda w: w.update({"sem_seg_head.predictor.extra.weight": torch.ones(1)}),
            r"1 weights that this conversion does not know, first \['sem_seg_head.predictor.extra.weight'\]",
        ),
        (
            lambda w: w.update({f"ema.{name}": tensor for name, tensor in w.items()}),
            r"holds 239 weights that this conversion does not know, first \['ema.backbone",
        ),
        (
            lambda w: w.update({f"{DECODER_LAYER}.linear2.weight": torch.ones(DIM, FEEDFORWARD + 1)}),
            rf"linear2.weight \({DIM}, {FEEDFORWARD + 1}\), expected \({DIM}, {FEEDFORWARD}\) for segmentor",
        ),
        (
            lambda w: w.update({f"{SELF_ATTENTION}.in_proj_bias": torch.ones(5)}),
            r"in_proj_bias should hold 3 weights of as many rows, .* but its shape is \(5,\)",
        ),
        (
            lambda w: w[f"{DECODER_LAYER}.linear2.weight"].view(-1)[3].fill_(torch.nan),
            r"1 weights hold NaN or infinite values, first \['sem_seg_head.predictor.transformer_ffn_layers",
        ),
        (
            lambda w: [w.pop(name) for name in list(w) if name.startswith("backbone.stem")],
            "the backbone is neither a ResNet of detectron2",
        ),
        (
            lambda w: w.update({f"{SAMPLING}.attention_weights.weight": torch.ones(25, DIM)}),
            "weighs 25 sampling points, which are not 3 levels × 4 points × a number of heads",
        ),
        (
            lambda w: w.update({"new_fc.weight": torch.ones(1)}),
            "are weights of PADing.*convert_pading_original",
        ),
    ],
)
def test_weights_that_do_not_fit_are_named(tmp_path, embeddings_file, fails, change, message):
    source = build_mask2former()
    change(source)
    save_pth(source, tmp_path / "model.pth")
    printed, code = fails(convert, tmp_path / "model.pth", tmp_path / "out", text_embeddings=embeddings_file)
    assert code == 1
    assert re.search(message, printed)
    assert [path.name for path in tmp_path.iterdir()] == ["model.pth"]


def test_absolute_positions_of_a_swin_are_refused(tmp_path, embeddings_file, fails):
    source = build_mask2former("swin")
    save_pth({**source, "backbone.absolute_pos_embed": torch.ones(1, 8, 4, 4)}, tmp_path / "model.pth")
    message, _ = fails(convert, tmp_path / "model.pth", tmp_path / "out", text_embeddings=embeddings_file)
    assert "absolute position embeddings" in message


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (
            lambda: {f"model.{n}": t for n, t in build_model().segmentor.state_dict().items()},
            "they are of transformers: give its folder to convert_mask2former_transformers_to_zsseg.py",
        ),
        (
            lambda: dict(build_model().state_dict()),
            "they are of a checkpoint of zsseg, which needs no conversion",
        ),
        (lambda: {"stem.conv1.weight": torch.ones(1)}, "they are of a backbone alone"),
        (lambda: {"a": torch.ones(1)}, f"'{QUERY_FEATURES}' is missing; the names begin like ['a']"),
    ],
)
def test_weights_of_other_kinds_are_named(tmp_path, embeddings_file, fails, build, message):
    save_file({name: tensor.clone() for name, tensor in build().items()}, tmp_path / "model.safetensors")
    printed, _ = fails(
        convert, tmp_path / "model.safetensors", tmp_path / "out", text_embeddings=embeddings_file
    )
    assert "these are not the weights of a Mask2Former by detectron2" in printed
    assert message in printed


def test_words_come_from_one_place(tmp_path, embeddings_file, fails):
    for words, got in (({}, "neither"), ({"clip": "x", "text_embeddings": embeddings_file}, "both")):
        message, code = fails(convert, tmp_path / "model.pth", tmp_path / "out", **words)
        assert code == 2
        assert f"got {got}" in message
    save_pth(build_mask2former(), tmp_path / "model.pth")
    message, _ = fails(convert, tmp_path / "model.pth", tmp_path / "out", text_embeddings=tmp_path / "none")
    assert "there is no file of text embeddings" in message


def test_a_folder_in_the_way_stays_as_it_is(tmp_path, embeddings_file, fails):
    save_pth(build_mask2former(), tmp_path / "model.pth")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("kept")
    words = {"text_embeddings": embeddings_file}
    message, code = fails(convert, tmp_path / "model.pth", tmp_path / "out", **words)
    assert (code, "is not empty" in message) == (2, True)
    message, _ = fails(convert, tmp_path / "model.pth", tmp_path / "out", overwrite=True, **words)
    assert "holds what this would not write again: ['mine.txt']" in message
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["mine.txt"]


def test_a_model_that_differs_from_the_source_is_not_written(tmp_path):
    model = build_model()
    other = build_model(seed=1)
    origin = converted_checkpoint.Origin(layout="", script="", name="model.pth", sha256=None, note="")

    def compare(reread):
        names = ("semantic_projector.0.weight", "no_object_embedding")
        expected, found = ({n: m.state_dict()[n].double() for n in names} for m in (other, reread))
        return compute_differences(expected, found)

    processor = build_processor(text_embeddings=build_bank())
    with pytest.raises(
        ValueError, match=r"something else than the source: semantic_projector.0.weight differ by"
    ):
        converted_checkpoint.write_checkpoint(
            tmp_path / "out", model, processor, ConversionBooks(), origin, compare
        )
    assert list(tmp_path.iterdir()) == []


def test_differences_are_judged():
    check_differences({"masks": 1e-4, "queries": 0.0})
    for value in (1.1e-4, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="masks differ by"):
            check_differences({"masks": value, "queries": 0.0})
    with pytest.raises(ValueError, match=r"masks: the source gives \(2,\), the converted model \(3,\)"):
        compute_differences({"masks": torch.ones(2)}, {"masks": torch.ones(3)})
    with pytest.raises(ValueError, match="other names"):
        compute_differences({"masks": torch.ones(2)}, {"queries": torch.ones(2)})


def test_pading_is_no_mask2former_alone(tmp_path, embeddings_file, fails):
    save_pth(build_pading(), tmp_path / "model.pth")
    message, _ = fails(convert, tmp_path / "model.pth", tmp_path / "out", text_embeddings=embeddings_file)
    assert "use convert_pading_original_to_zsseg.py" in message
