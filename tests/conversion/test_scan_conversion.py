import re

import pytest
import torch
from convert_mask2former_detectron2_to_zsseg import convert as convert_mask2former
from convert_scan_original_to_zsseg import compare_with_reference, convert, convert_size
from reference_scan import fuse_fine_tuned_clip
from safetensors.torch import save_file

from testing.detectron2_checkpoints import build_mask2former, save_pth
from testing.scan_checkpoints import (
    CLIP_MODEL,
    FROZEN_TOWER,
    SHAPE_B,
    SHAPE_L,
    TINY,
    ConstantLayout,
    build_cs_clip,
    build_scan,
    build_size,
    count_parameters,
    save_cs_clip,
    save_tokenizer,
)
from testing.tiny_models import build_picture
from zsseg import ScanForSemanticSegmentation, ScanProcessor
from zsseg.conversion.scan_layout import SCAN_SIZES, ScanSettings, convert_scan
from zsseg.conversion.source_weights import SourceWeights
from zsseg.conversion.verification import check_differences

OUTPUTS = {
    "backbone, level 4",
    "queries",
    "masks",
    "whole picture",
    "text embeddings",
    "proposal embeddings",
    "class logits",
    "crop embeddings",
    "scores",
}
DROPPED_TOWER = rf"{CLIP_MODEL}\.(visual\..*|logit_scale)"


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    save_tokenizer(folder)
    return str(folder)


def find_made(report):
    return [target for targets in report["weights"]["used"].values() for target in targets]


def test_a_fused_checkpoint_computes_the_same(tmp_path, tokenizer, read_report, capsys):
    source = build_scan()
    save_pth(source, tmp_path / "SCAN.pth")
    folder = tmp_path / "converted"
    convert_size(tmp_path / "SCAN.pth", folder, build_size(source), tokenizer, verify=True)
    report = read_report(folder)
    differences = report["verification"]["largest_differences"]
    assert differences.keys() >= OUTPUTS
    # float64 but for sines and gains; logits and scores are of float32 cosines times 100.
    loose = {"class logits": 2e-5, "proposal embeddings": 1e-5}
    assert all(value < loose.get(name, 1e-6) for name, value in differences.items())

    weights = report["weights"]
    assert weights["used"].keys() | weights["dropped"].keys() == source.keys()
    assert not weights["used"].keys() & weights["dropped"].keys()
    assert {re.sub(r"\d+", "N", name) for name in weights["dropped"]} == {
        "criterion.empty_weight",
        "backbone.layers.N.blocks.N.attn.relative_position_index",
        "clip_adapter.pixel_mean",
        "clip_adapter.pixel_std",
        "clip_adapter.clip_model.visual.learnable_weight",
        "clip_adapter.clip_model.visual.cxt_decoder.layers.N.weight",
        "clip_adapter.clip_model.visual.cxt_decoder.layers.N.bias",
    }
    model = ScanForSemanticSegmentation.from_pretrained(folder)
    assert sorted([*find_made(report), *weights["new"]]) == sorted(model.state_dict())
    assert all("encoder.swin.layernorm." in name for name in weights["new"])
    assert model.no_object_embedding.shape == (TINY.embed,)
    assert model.sim.cls_scale == source["learnable_weight"][0]
    assert model.shifted_logit_scale == source[f"{CLIP_MODEL}.logit_scale"]

    printed = capsys.readouterr().out
    card = (folder / "README.md").read_text(encoding="utf-8")
    for text in (printed, card):
        assert "CC BY-NC 4.0" in text
        assert "new and random" not in text
    assert "# SCAN-tiny, SCAN\n" in card
    for file in folder.iterdir():
        assert str(tmp_path.parent).encode() not in file.read_bytes()


def test_configuration_and_sizes(tmp_path, tokenizer):
    source = build_scan()
    save_pth(source, tmp_path / "SCAN.pth")
    folder = tmp_path / "converted"
    convert_size(tmp_path / "SCAN.pth", folder, build_size(source), tokenizer, settings="A-847")
    config = ScanForSemanticSegmentation.from_pretrained(folder).config
    assert (config.mode, config.has_shifted_tower, config.projection_dim) == ("ensemble", True, TINY.embed)
    assert (tuple(config.integration_layers), tuple(config.shift_layers)) == ((2, 3, 4), (1, 3))
    assert tuple(config.low_frequency_sigmas) == (2.0, 1.5, 1.0)
    assert (config.integration_steps, config.integration_encoder_layers) == (TINY.steps, TINY.layers)
    assert config.proposal_hidden_dim == TINY.proposal_hidden
    assert (config.crop_mask_threshold, config.ensemble_weight, config.shift_ratio) == (0.25, 0.6, 0.2)
    assert config.has_void_renormalization
    vision, text = config.vision_config, config.text_config
    assert (vision.hidden_size, vision.num_attention_heads, vision.hidden_act) == (TINY.vision, 2, "gelu")
    assert (vision.image_size, vision.patch_size) == (40, 8)
    assert (text.hidden_act, text.num_attention_heads) == ("gelu", 1)
    # One more than there are: transformers builds one layer less.
    assert config.segmentor_config.decoder_layers == 5


def test_the_result_segments_pictures_by_words(tmp_path, tokenizer):
    source = build_scan()
    save_pth(source, tmp_path / "SCAN.pth")
    convert_size(tmp_path / "SCAN.pth", tmp_path / "converted", build_size(source), tokenizer)
    model = ScanForSemanticSegmentation.from_pretrained(tmp_path / "converted")
    processor = ScanProcessor.from_pretrained(tmp_path / "converted")
    assert processor.image_processor.size.shortest_edge == 640
    assert len(processor.prompt_templates) == 14
    batch = processor(build_picture(60, 90), ["road", "car"], size={"shortest_edge": 64, "longest_edge": 96})
    with torch.no_grad():
        outputs = model(**batch)
    assert outputs.class_queries_logits.shape[-1] == 3
    result = processor.post_process_semantic_segmentation(outputs, target_sizes=[(60, 90)])[0]
    assert result.shape == (60, 90)


def test_equal_towers_are_one(tmp_path, tokenizer, read_report):
    source = build_scan(is_fine_tuned=False)
    save_pth(source, tmp_path / "Seg_model.pth")
    folder = tmp_path / "converted"
    convert_size(tmp_path / "Seg_model.pth", folder, build_size(source), tokenizer, verify=True)
    model = ScanForSemanticSegmentation.from_pretrained(folder)
    assert not model.config.has_shifted_tower
    assert model.shifted_tower is None
    report = read_report(folder)
    assert report["verification"]["largest_differences"].keys() >= OUTPUTS
    dropped = {name for name in report["weights"]["dropped"] if name.startswith("clip_adapter.clip_model")}
    assert dropped == {name for name in source if re.fullmatch(DROPPED_TOWER, name)}
    assert report["weights"]["used"].keys() | report["weights"]["dropped"].keys() == source.keys()


@pytest.mark.parametrize("prefix", ["module.", ""])
def test_a_fine_tuned_clip_is_fused(tmp_path, tokenizer, read_report, prefix):
    source = build_scan(is_fine_tuned=False)
    clip = build_cs_clip(source, prefix=prefix)
    save_pth(source, tmp_path / "Seg_model.pth")
    save_cs_clip(clip, tmp_path / "CS_CLIP.pt")
    folder = tmp_path / "converted"
    convert_size(
        tmp_path / "Seg_model.pth",
        folder,
        build_size(source),
        tokenizer,
        cs_clip=tmp_path / "CS_CLIP.pt",
        # The reference fuses by the names of the official tool, which knows this prefix alone.
        verify=prefix == "module.",
    )
    model = ScanForSemanticSegmentation.from_pretrained(folder)
    shifted = model.shifted_tower.visual_projection.weight
    assert torch.equal(shifted, clip[f"{prefix}clip_model.visual.proj"].T)
    frozen = model.context_tower.visual_projection.weight
    assert torch.equal(frozen, source[f"{FROZEN_TOWER}.proj"].T)
    report = read_report(folder)
    names = {f"CS-CLIP:{name.removeprefix(prefix)}" for name in clip}
    assert report["weights"]["used"].keys() | report["weights"]["dropped"].keys() == source.keys() | names
    assert report["further_sources"].keys() == {"CS_CLIP.pt"}
    assert "epoch (CS_CLIP.pt)" in report["weights"]["beside"]
    assert "`CS_CLIP.pt` (SHA-256" in (folder / "README.md").read_text(encoding="utf-8")


def test_fusing_beforehand_gives_the_same(tmp_path, tokenizer):
    source = build_scan(is_fine_tuned=False)
    clip = build_cs_clip(source)
    save_cs_clip(clip, tmp_path / "CS_CLIP.pt")
    save_pth(source, tmp_path / "Seg_model.pth")
    save_pth(fuse_fine_tuned_clip(source, clip), tmp_path / "SCAN.pth")
    size = build_size(source)
    convert_size(tmp_path / "Seg_model.pth", tmp_path / "a", size, tokenizer, cs_clip=tmp_path / "CS_CLIP.pt")
    convert_size(tmp_path / "SCAN.pth", tmp_path / "b", size, tokenizer)
    first, second = (
        ScanForSemanticSegmentation.from_pretrained(tmp_path / name).state_dict() for name in "ab"
    )
    assert first.keys() == second.keys()
    assert all(torch.equal(second[name], tensor) for name, tensor in first.items())


def test_a_clip_saved_in_half_precision_belongs_too(tmp_path, tokenizer):
    source = build_scan(is_fine_tuned=False)
    clip = {name: tensor.bfloat16() for name, tensor in build_cs_clip(source).items()}
    save_cs_clip(clip, tmp_path / "CS_CLIP.pt")
    save_pth(source, tmp_path / "Seg_model.pth")
    convert_size(
        tmp_path / "Seg_model.pth",
        tmp_path / "out",
        build_size(source),
        tokenizer,
        cs_clip=tmp_path / "CS_CLIP.pt",
    )
    model = ScanForSemanticSegmentation.from_pretrained(tmp_path / "out")
    assert torch.equal(model.text_model.text_projection.weight, source[f"{CLIP_MODEL}.text_projection"].T)


SWAPPED = [
    ("LFM.conv1.weight", "LFM.conv2.weight"),
    ("oriclip_mlp.fc1.bias", "oriclip_mlp.fc2.bias"),
    ("fusion_decoder.multiattn.0.in_proj_weight", "fusion_decoder.multiattn.2.in_proj_weight"),
    ("fusion_decoder.ln.0.bias", "fusion_decoder.ln.1.bias"),
    ("lightweight_transformer.layers.0.norm1.weight", "lightweight_transformer.layers.0.norm2.weight"),
    (
        "lightweight_transformer.layers.0.self_attn.out_proj.weight",
        "lightweight_transformer.layers.1.self_attn.out_proj.weight",
    ),
    (f"{CLIP_MODEL}.visual.ln_post.weight", f"{FROZEN_TOWER}.ln_post.weight"),
    (
        f"{FROZEN_TOWER}.transformer.resblocks.0.ln_1.bias",
        f"{FROZEN_TOWER}.transformer.resblocks.0.ln_2.bias",
    ),
    (f"{CLIP_MODEL}.ln_final.weight", f"{CLIP_MODEL}.transformer.resblocks.1.ln_2.weight"),
]


@pytest.fixture(scope="session")
def converted(tmp_path_factory, tokenizer):
    """A model in float64 with the weights it comes from."""
    folder = tmp_path_factory.mktemp("scan")
    source = build_scan()
    save_pth(source, folder / "SCAN.pth")
    convert_size(folder / "SCAN.pth", folder / "out", build_size(source), tokenizer)
    return ScanForSemanticSegmentation.from_pretrained(folder / "out").double().eval(), source


@pytest.mark.parametrize("names", SWAPPED, ids=lambda names: names[0])
def test_verification_finds_swapped_weights(converted, names):
    """As a mistake in the table of names would swap them."""
    model, source = converted
    first, second = names
    size = build_size(source)
    swapped = {**source, first: source[second], second: source[first]}
    differences = compare_with_reference(model, swapped, size, size.settings["A-150"])
    with pytest.raises(ValueError, match="something else than the source"):
        check_differences(differences)


@pytest.mark.parametrize(
    "changes",
    [
        {"integration_layers": (2, 4, 3)},
        {"low_frequency_sigmas": (2.0, 1.0, 1.5)},
        {"shift_layers": (1, 2)},
        {"settings": {"A-150": ScanSettings(0.4, 0.6, 0.3)}},
        {"settings": {"A-150": ScanSettings(0.9, 0.7, 0.3)}},
    ],
)
def test_verification_finds_other_settings(converted, changes):
    model, source = converted
    size = build_size(source, **changes)
    differences = compare_with_reference(model, source, size, size.settings["A-150"])
    with pytest.raises(ValueError, match="something else than the source"):
        check_differences(differences)


def replace_by_noise(weights, name):
    generator = torch.Generator().manual_seed(5)
    weights[name] = torch.randn(weights[name].shape, generator=generator)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda w: w.pop("LFM.conv2.bias"),
            r"1 weights are missing from the file, first \['LFM.conv2.bias'\]",
        ),
        (lambda w: w.pop("oriclip_mlp.fc1.weight"), r"missing.*oriclip_mlp.fc1.weight"),
        (
            lambda w: w.pop("fusion_decoder.multiattn.1.in_proj_weight"),
            r"number \[1\] is missing, but 2 is there",
        ),
        (lambda w: w.pop(f"{FROZEN_TOWER}.proj"), r"missing.*clip_adapter.original_clip.proj"),
        (lambda w: w.pop(f"{CLIP_MODEL}.text_projection"), "clip_model.*is not that of SCAN-tiny.*missing"),
        (lambda w: w.pop(f"{CLIP_MODEL}.logit_scale"), "missing.*logit_scale"),
        (lambda w: w.pop("clip_adapter.non_object_embedding"), "non_object_embedding' is missing; the file"),
        (
            lambda w: w.update({"fusion_decoder.ln.2.weight": torch.ones(TINY.embed)}),
            "does not know.*fusion_decoder.ln.2.weight",
        ),
        (
            lambda w: w.update({"sem_seg_head.predictor.class_embed.layers.2.weight": torch.ones(1)}),
            "does not know.*class_embed.layers.2.weight",
        ),
        (
            lambda w: w.update({f"{CLIP_MODEL}.visual.mask_embedding": torch.ones(1)}),
            "does not know.*visual.mask_embedding",
        ),
        (
            lambda w: w.update({"LFM.conv1.weight": torch.ones(2 * TINY.vision, TINY.vision, 1, 1)}),
            r"holds \d+,\d+ trained parameters .* SCAN-tiny has",
        ),
        (
            lambda w: w.update({"oriclip_mlp.fc1.weight": torch.ones(TINY.vision, TINY.embed)}),
            r"oriclip_mlp.fc1.weight \(128, 64\), expected \(64, 128\) for sim.token_proj.fc1.weight",
        ),
        (
            lambda w: w.update({"oriclip_mlp.fc2.bias": torch.ones(1), "learnable_weight": torch.ones(64)}),
            r"2 weights do not have the shape .*learnable_weight \(64,\), expected \(1,\) for sim.cls_scale",
        ),
        (
            lambda w: w["learnable_weight"].fill_(torch.nan),
            r"1 weights hold NaN or infinite values, first \['learnable_weight'\]",
        ),
        (
            lambda w: w.update({"clip_adapter.pixel_mean": torch.full((1, 3, 1, 1), 127.5)}),
            "pixel_mean is .*expected CLIP's",
        ),
        (
            lambda w: w.update({f"{CLIP_MODEL}.visual.conv1.weight": torch.ones(TINY.vision, 3, 4, 4)}),
            r"not that of SCAN-tiny \(--size\): .* says vision_cfg.patch_size 8, the weights 4",
        ),
    ],
)
def test_weights_that_do_not_fit_are_named(tmp_path, tokenizer, change, message):
    source = build_scan()
    size = build_size(source)
    change(source)
    save_pth(source, tmp_path / "SCAN.pth")
    with pytest.raises(ValueError, match=message):
        convert_size(tmp_path / "SCAN.pth", tmp_path / "out", size, tokenizer)
    assert [path.name for path in tmp_path.iterdir()] == ["SCAN.pth"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda w: replace_by_noise(w, "module.clip_model.token_embedding.weight"),
            r"the text tower of the fine-tuned CLIP .* in 1 weights, first \['token_embedding.weight'\]",
        ),
        (
            lambda w: replace_by_noise(w, "module.original_clip_visual.proj"),
            r"the frozen vision tower of the fine-tuned CLIP .* in 1 weights, first \['proj'\]",
        ),
        (lambda w: w.pop("module.clip_model.ln_final.bias"), "missing.*clip_model.ln_final.bias"),
        (lambda w: w.pop("module.clip_model.visual.ln_post.bias"), "missing.*visual.ln_post.bias"),
        (
            lambda w: w.update({"module.clip_model.visual.mask_embedding": torch.ones(1)}),
            "does not know.*CS-CLIP:clip_model.visual.mask_embedding",
        ),
        (lambda w: w.pop("module.clip_model.visual.proj"), "is no CLIP fine-tuned for contextual shift"),
    ],
)
def test_a_clip_that_does_not_belong_is_refused(tmp_path, tokenizer, change, message):
    source = build_scan(is_fine_tuned=False)
    clip = build_cs_clip(source)
    change(clip)
    save_pth(source, tmp_path / "SCAN.pth")
    save_cs_clip(clip, tmp_path / "CS_CLIP.pt")
    with pytest.raises(ValueError, match=message):
        convert_size(
            tmp_path / "SCAN.pth",
            tmp_path / "out",
            build_size(source),
            tokenizer,
            cs_clip=tmp_path / "CS_CLIP.pt",
        )
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: build_cs_clip(build_scan()), "give that file as --cs-clip, beside SCAN.pth"),
        (lambda: build_mask2former("swin"), "of a Mask2Former alone"),
        (lambda: {"visual.proj": torch.ones(1), "logit_scale": torch.ones(())}, "they are of a CLIP alone"),
        (lambda: {"stem.conv1.weight": torch.ones(1)}, "they are of a backbone alone"),
        (lambda: {f"module.{n}": t for n, t in build_scan().items()}, "pass --prefix module. to convert"),
    ],
)
def test_weights_of_other_kinds_are_named(tmp_path, tokenizer, fails, build, message):
    save_file({name: tensor.clone() for name, tensor in build().items()}, tmp_path / "model.safetensors")
    printed, code = fails(
        convert, tmp_path / "model.safetensors", tmp_path / "out", size="B", tokenizer=tokenizer
    )
    assert code == 1
    assert message in printed
    assert not (tmp_path / "out").exists()


def test_scan_is_no_mask2former_alone(tmp_path, embeddings_file, fails):
    save_pth(build_scan(), tmp_path / "SCAN.pth")
    message, _ = fails(
        convert_mask2former, tmp_path / "SCAN.pth", tmp_path / "out", text_embeddings=embeddings_file
    )
    assert "use convert_scan_original_to_zsseg.py" in message


def test_a_file_cut_off_is_named(tmp_path, tokenizer, fails):
    save_pth(build_scan(), tmp_path / "SCAN.pth")
    content = (tmp_path / "SCAN.pth").read_bytes()
    (tmp_path / "SCAN.pth").write_bytes(content[: len(content) // 2])
    message, code = fails(convert, tmp_path / "SCAN.pth", tmp_path / "out", size="B", tokenizer=tokenizer)
    assert code == 1
    assert "is cut off or damaged" in message


def test_options_are_checked(tmp_path, tokenizer, fails):
    save_pth(build_scan(), tmp_path / "SCAN.pth")
    arguments = (convert, tmp_path / "SCAN.pth", tmp_path / "out")
    message, code = fails(*arguments, size="H", tokenizer=tokenizer)
    assert (code, message) == (2, "--size must be one of ['L', 'B'], got 'H'")
    message, code = fails(*arguments, size="L", tokenizer=tokenizer, settings="COCO")
    assert code == 2
    assert "--settings must be one of ['A-847', 'A-150', 'PC-459', 'PC-59', 'VOC-20'], got 'COCO'" in message
    message, code = fails(*arguments, size="L", tokenizer=tokenizer)
    assert code == 1
    assert "is not that of SCAN-L (--size): the configuration says embed_dim 768, the weights 64" in message


def test_a_tokenizer_of_another_clip_is_refused(tmp_path, clip_checkpoint):
    source = build_scan()
    save_pth(source, tmp_path / "SCAN.pth")
    with pytest.raises(ValueError, match="give the tokenizer that it was trained with"):
        convert_size(tmp_path / "SCAN.pth", tmp_path / "out", build_size(source), str(clip_checkpoint))


# The published sizes

SPECIFICATION = {
    "L": (
        SHAPE_L, (158_671_673, 890_254_394), (12, 18, 24), (1, 3, 5, 7, 9),
        {"A-847": (0.30, 0.75, 0.15), "A-150": (0.55, 0.75, 0.05), "PC-459": (0.25, 0.65, 0.05),
         "PC-59": (0.50, 0.50, 0.05), "VOC-20": (0.20, 0.65, 0.10)},
    ),
    "B": (
        SHAPE_B, (135_647_801, 371_461_178), (6, 9, 12), (1, 3, 5),
        {"A-847": (0.25, 0.75, 0.05), "A-150": (0.40, 0.70, 0.05), "PC-459": (0.25, 0.70, 0.05),
         "PC-59": (0.25, 0.35, 0.05), "VOC-20": (0.20, 0.45, 0.10)},
    ),
}  # fmt: skip
"""Shapes, parameters trained and in all, blocks, and per data set mask threshold, w and ratio."""


@pytest.mark.parametrize("name", SPECIFICATION)
def test_the_published_sizes_are_those_of_the_paper(name):
    size = SCAN_SIZES[name]
    _, counts, layers, shift_layers, settings = SPECIFICATION[name]
    assert (size.num_trained_parameters, size.num_parameters) == counts
    assert (size.integration_layers, size.low_frequency_sigmas) == (layers, (9, 7, 3))
    assert size.shift_layers == shift_layers
    assert size.settings == {
        data_set: ScanSettings(*numbers, has_void_renormalization=data_set in ("A-847", "PC-459"))
        for data_set, numbers in settings.items()
    }


@pytest.mark.parametrize("name", SPECIFICATION)
def test_files_of_full_size_fit(name):
    shape, counts, *_ = SPECIFICATION[name]
    source = build_scan(shape=shape, layout=ConstantLayout(0))
    assert count_parameters(source) == counts
    weights = SourceWeights(source)
    converted = convert_scan(weights, SCAN_SIZES[name], SCAN_SIZES[name].settings["A-150"])
    assert converted.config.segmentor_config.decoder_layers == 11
    with torch.device("meta"):
        model = ScanForSemanticSegmentation(converted.config)
    # Transformers' Swin has a norm that a backbone does not use.
    unused = {f"segmentor.pixel_level_module.encoder.swin.layernorm.{part}" for part in ("weight", "bias")}
    expected = {name: tensor.shape for name, tensor in model.state_dict().items()}
    found = {name: tensor.shape for name, tensor in converted.tensors.items()}
    assert {name: expected[name] for name in found} == found
    assert expected.keys() - found.keys() == unused
    frozen = ("context_tower.", "shifted_tower.", "text_model.", "shifted_logit_scale")
    ours = sum(each.numel() for key, each in model.named_parameters() if not key.startswith(frozen))
    assert ours == counts[0] + 2048
    assert sum(each.numel() for each in model.parameters()) == counts[1] + 2048


def test_files_of_another_size_do_not_fit():
    source = build_scan(shape=SHAPE_B, layout=ConstantLayout(0))
    size = SCAN_SIZES["L"]
    with pytest.raises(ValueError, match=r"is not that of SCAN-L .* embed_dim 768, the weights 512"):
        convert_scan(SourceWeights(source), size, size.settings["A-150"])
