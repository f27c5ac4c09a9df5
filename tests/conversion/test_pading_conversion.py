import re

import pytest
import torch
from convert_pading_original_to_zsseg import convert

from testing.detectron2_checkpoints import (
    DIM,
    FEEDFORWARD,
    NUM_PRIMITIVES,
    TEXT_WIDTH,
    build_mask2former,
    build_pading,
    save_pth,
)
from testing.tiny_models import build_bank
from zsseg import ConcatForPanopticSegmentation, ConcatProcessor

GENERATOR_OUTPUTS = {
    "generated queries",
    "related parts",
    "unrelated parts",
    "relation logits",
    "rebuilt queries",
}


def test_pading_computes_the_same(tmp_path, clip_checkpoint, read_report, capsys):
    source = build_pading()
    save_pth(source, tmp_path / "model_final.pth")
    folder = tmp_path / "converted"
    convert(tmp_path / "model_final.pth", folder, clip=str(clip_checkpoint), verify=True)
    report = read_report(folder)
    differences = report["verification"]["largest_differences"]
    assert set(differences) > {"masks", "queries"} | GENERATOR_OUTPUTS
    # The folded map is rounded to float32 once.
    assert all(differences[name] < 1e-5 for name in GENERATOR_OUTPUTS)

    weights = report["weights"]
    assert weights["used"].keys() | weights["dropped"].keys() == source.keys()
    assert {name for name in weights["dropped"] if not name.startswith("sem_seg_head.")} == {
        "criterion.empty_weight",
        "new_fc.weight",
        "new_fc.bias",
    }
    model = ConcatForPanopticSegmentation.from_pretrained(folder)
    config = model.config
    assert (config.generator_type, config.generator_noise_dim) == ("primitives", DIM)
    assert (config.generator_hidden_dim, config.generator_num_primitives) == (FEEDFORWARD, NUM_PRIMITIVES)
    assert torch.equal(model.generator.primitives.weight, source["dict_feature.weight"])
    made = [target for targets in weights["used"].values() for target in targets]
    assert set(made) | weights["new"].keys() == model.state_dict().keys()
    assert "Give the origin of this one" in capsys.readouterr().out


def test_the_generator_draws_queries_for_words(tmp_path, embeddings_file):
    save_pth(build_pading(), tmp_path / "model.pth")
    convert(tmp_path / "model.pth", tmp_path / "converted", text_embeddings=embeddings_file)
    model = ConcatForPanopticSegmentation.from_pretrained(tmp_path / "converted")
    words = ConcatProcessor.from_pretrained(tmp_path / "converted").encode_labels(["car", "road"])[
        "text_embeds"
    ]
    draws = [
        model.generator(words, generator=torch.Generator().manual_seed(seed)).detach() for seed in (0, 0, 1)
    ]
    assert draws[0].shape == (2, DIM)
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])


@pytest.mark.parametrize(
    ("options", "change", "message"),
    [
        (
            {"text_width": 300},
            lambda w: None,
            "reads text vectors of 300 numbers, but the words given have 12.*--without-generator",
        ),
        ({"num_layers": 2}, lambda w: None, "has 2 layers in this file, CONCAT's of the kind 'primitives' 3"),
        (
            {},
            lambda w: [w.pop(n) for n in list(w) if re.match(r"fc_projection|generator|dict_feature", n)],
            "holds no generator, as before it is trained",
        ),
        ({}, lambda w: w.pop("relation.fc1.bias"), r"1 weights are missing.*'relation.fc1.bias'"),
        (
            {},
            lambda w: w.pop("generator.layers.1.self_attn.in_proj_bias"),
            r"missing.*layers.1.self_attn.in_proj_bias",
        ),
        ({}, lambda w: w.update({"generator.layers.0.norm4.weight": torch.ones(1)}), "does not know.*norm4"),
        (
            {},
            lambda w: w.update({"relation.fc1.weight": torch.ones(DIM, DIM)}),
            r"relation.fc1.weight \(64, 32\), expected \(64, 64\)",
        ),
        (
            {},
            lambda w: [w.pop(n) for n in list(w) if not n.startswith(("backbone", "sem_seg_head"))],
            "of a Mask2Former alone.*convert_mask2former_detectron2_to_zsseg.py",
        ),
    ],
)
def test_what_does_not_fit_is_named(tmp_path, embeddings_file, fails, options, change, message):
    source = build_pading(**options)
    change(source)
    save_pth(source, tmp_path / "model.pth")
    printed, code = fails(convert, tmp_path / "model.pth", tmp_path / "out", text_embeddings=embeddings_file)
    assert code == 1
    assert re.search(message, printed)
    assert [path.name for path in tmp_path.iterdir()] == ["model.pth"]


@pytest.mark.parametrize("options", [{"text_width": 300}, {"num_layers": 2}])
def test_the_segmentor_alone_fits_any_words(tmp_path, embeddings_file, read_report, options):
    source = build_pading(**options)
    save_pth(source, tmp_path / "model.pth")
    folder = tmp_path / "out"
    convert(
        tmp_path / "model.pth", folder, text_embeddings=embeddings_file, without_generator=True, verify=True
    )
    report = read_report(folder)
    assert report["weights"]["dropped"]["generator.norm.weight"] == "PADing's generator, left out as asked"
    assert not GENERATOR_OUTPUTS & report["verification"]["largest_differences"].keys()
    assert ConcatForPanopticSegmentation.from_pretrained(folder).generator is None


def test_vectors_of_word2vec_fit_a_generator_trained_with_them(tmp_path):
    save_pth(build_pading(text_width=300), tmp_path / "model.pth")
    build_bank(width=300).save(tmp_path)
    words = tmp_path / "text_embeddings.safetensors"
    convert(tmp_path / "model.pth", tmp_path / "out", text_embeddings=words, verify=True)
    model = ConcatForPanopticSegmentation.from_pretrained(tmp_path / "out")
    assert (model.generator.embed_dim, model.config.projection_dim) == (300, 300)


def test_a_mask2former_alone_has_its_own_script(tmp_path, embeddings_file, fails):
    assert build_bank().embeddings.shape[1] == TEXT_WIDTH
    save_pth(build_mask2former(), tmp_path / "model.pth")
    message, _ = fails(convert, tmp_path / "model.pth", tmp_path / "out", text_embeddings=embeddings_file)
    assert "use convert_mask2former_detectron2_to_zsseg.py" in message
