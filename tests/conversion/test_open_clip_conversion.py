import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from convert_open_clip_to_zsseg import convert
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import CLIPConfig, CLIPImageProcessorPil, CLIPModel, PreTrainedTokenizerFast

from zsseg.conversion.open_clip_layout import (
    convert_from_open_clip,
    convert_to_open_clip,
    list_clip_pairs,
    read_open_clip_settings,
    read_open_clip_weights,
)
from zsseg.layers.vision_language import load_vision_language_teacher
from zsseg.models.text_tower import load_text_tower

TORCHVISION = Path(sys.prefix) / "torchvision"
MEAN, STD = (0.2, 0.4, 0.6), (0.1, 0.2, 0.3)
VOCABULARY = ["a", "b", "c", "<start>", "<end>"]


def save_clip(folder, **text_changes):
    """A CLIP whose <end> is the last token, as in OpenAI's, and towers that differ in every size."""
    torch.manual_seed(0)
    text = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
    vision = {"hidden_size": 24, "intermediate_size": 36, "num_hidden_layers": 1, "num_attention_heads": 3}
    ids = {
        "vocab_size": len(VOCABULARY),
        "bos_token_id": 3,
        "eos_token_id": 4,
        "pad_token_id": 4,
        "projection_dim": 12,
    }
    config = CLIPConfig(
        text_config={**text, **ids, "max_position_embeddings": 8, **text_changes},
        vision_config={**vision, "image_size": 32, "patch_size": 8},
        projection_dim=12,
    )
    CLIPModel(config).save_pretrained(folder)
    CLIPImageProcessorPil(image_mean=MEAN, image_std=STD).save_pretrained(folder)
    save_tokenizer(folder)


def save_tokenizer(folder, vocabulary=VOCABULARY):
    ids = {token: index for index, token in enumerate(vocabulary)}
    backend = Tokenizer(models.WordLevel(ids, unk_token="a"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.post_processor = processors.TemplateProcessing(
        single="<start> $A <end>", special_tokens=[(token, ids[token]) for token in ("<start>", "<end>")]
    )
    specials = {"bos_token": "<start>", "eos_token": "<end>", "pad_token": "<end>"}
    PreTrainedTokenizerFast(tokenizer_object=backend, **specials).save_pretrained(folder)


@pytest.fixture
def open_clip_folder(tmp_path):
    """What --to-open-clip writes of the CLIP in "clip" beside it."""
    save_clip(tmp_path / "clip")
    convert(str(tmp_path / "clip"), tmp_path / "open_clip", to_open_clip=True)
    return tmp_path / "open_clip"


def edit_config(folder, change):
    path = folder / "open_clip_config.json"
    document = json.loads(path.read_text())
    change(document)
    path.write_text(json.dumps(document))


def test_there_and_back_changes_no_bit(open_clip_folder, tmp_path, capsys):
    clip = tmp_path / "clip"
    back = tmp_path / "back"
    convert(str(open_clip_folder), back, tokenizer=str(clip))
    assert "used        24  transformer.resblocks → text_model.encoder" in capsys.readouterr().out
    first, second = CLIPModel.from_pretrained(clip), CLIPModel.from_pretrained(back)
    expected, found = first.state_dict(), second.state_dict()
    assert expected.keys() == found.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())
    for tower in ("vision_config", "text_config"):
        for name in (
            "hidden_act",
            "num_attention_heads",
            "intermediate_size",
            "eos_token_id",
            "layer_norm_eps",
        ):
            before, after = (getattr(getattr(m.config, tower), name, None) for m in (first, second))
            assert before == after
    convert(str(back), tmp_path / "again", to_open_clip=True)
    for name in ("open_clip_model.safetensors", "open_clip_config.json"):
        assert (tmp_path / "again" / name).read_bytes() == (open_clip_folder / name).read_bytes()
    for file in back.iterdir():
        assert str(tmp_path).encode() not in file.read_bytes()


def test_the_result_is_teacher_and_text_tower(open_clip_folder, tmp_path):
    convert(str(open_clip_folder), tmp_path / "back", tokenizer=str(tmp_path / "clip"))
    before, after = (load_vision_language_teacher(tmp_path / name) for name in ("clip", "back"))
    assert before.weights_hash == after.weights_hash
    assert (after.image_mean, after.image_std) == (MEAN, STD)
    ids = torch.tensor([[3, 0, 1, 4, 4], [3, 2, 4, 4, 4]])
    with torch.no_grad():
        towers = [load_text_tower(str(tmp_path / name)).eval() for name in ("clip", "back")]
        embeds = [tower(input_ids=ids).text_embeds for tower in towers]
    assert torch.equal(embeds[0], embeds[1])


def test_names_and_orientation_are_those_of_open_clip(open_clip_folder):
    tensors = load_file(open_clip_folder / "open_clip_model.safetensors")
    assert tensors["text_projection"].shape == (16, 12)
    assert tensors["visual.proj"].shape == (24, 12)
    assert tensors["visual.transformer.resblocks.0.attn.in_proj_weight"].shape == (72, 24)
    assert tensors["visual.positional_embedding"].shape == (17, 24)
    config = json.loads((open_clip_folder / "open_clip_config.json").read_text())
    assert config["preprocess_cfg"] == {"mean": list(MEAN), "std": list(STD)}
    assert config["model_cfg"]["quick_gelu"] is True
    assert config["model_cfg"]["vision_cfg"]["head_width"] == 8


@pytest.mark.parametrize(("quick", "activation"), [(True, "quick_gelu"), (False, "gelu"), (None, "gelu")])
def test_the_activation_is_that_of_the_configuration(open_clip_folder, quick, activation):
    edit_config(
        open_clip_folder,
        lambda d: (
            d["model_cfg"].pop("quick_gelu") if quick is None else d["model_cfg"].update(quick_gelu=quick)
        ),
    )
    settings = read_open_clip_settings(open_clip_folder / "open_clip_config.json")
    weights = read_open_clip_weights(open_clip_folder / "open_clip_model.safetensors")
    config = convert_from_open_clip(weights, settings).config
    assert (config.vision_config.hidden_act, config.text_config.hidden_act) == (activation, activation)


def test_a_file_with_a_configuration_elsewhere(open_clip_folder, tmp_path, fails):
    """As in open_clip's model_configs: without the wrapper, defaults left out; OpenAI's files name sizes."""
    document = json.loads((open_clip_folder / "open_clip_config.json").read_text())["model_cfg"]
    (tmp_path / "tiny.json").write_text(json.dumps(document))
    tensors = load_file(open_clip_folder / "open_clip_model.safetensors")
    torch.save({**tensors, "input_resolution": torch.tensor(32)}, tmp_path / "weights.pt")
    words = {"tokenizer": str(tmp_path / "clip")}
    message, _ = fails(convert, str(tmp_path / "weights.pt"), tmp_path / "out", **words)
    assert "weights do not say how many attention heads they have, nor which GELU" in message
    convert(str(tmp_path / "weights.pt"), tmp_path / "out", config=tmp_path / "tiny.json", **words)
    image_processor = CLIPImageProcessorPil.from_pretrained(tmp_path / "out")
    assert image_processor.image_mean == pytest.approx([0.48145466, 0.4578275, 0.40821073])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d["model_cfg"]["vision_cfg"].update(width=32), "says vision_cfg.width 32, the weights 24"),
        (
            lambda d: d["model_cfg"]["vision_cfg"].update(image_size=64),
            "says vision_cfg.image_size 64, the weights 32",
        ),
        (lambda d: d["model_cfg"]["text_cfg"].update(layers=3), "says text_cfg.layers 3, the weights 2"),
        (
            lambda d: d["model_cfg"]["text_cfg"].pop("context_length"),
            "says text_cfg.context_length 77, the weights 8",
        ),
        (
            lambda d: d["model_cfg"]["text_cfg"].update(heads=3),
            "text tower's width 16 is no multiple of its 3",
        ),
        (lambda d: d["model_cfg"]["vision_cfg"].pop("width"), "is no configuration of a CLIP by open_clip"),
        (lambda d: d.pop("model_cfg"), "is no configuration of a CLIP by open_clip"),
        (
            lambda d: d["model_cfg"]["text_cfg"].update(hf_model_name="bert"),
            "sets text_cfg.hf_model_name to 'bert', which transformers' CLIP does not have",
        ),
        (
            lambda d: d["model_cfg"]["vision_cfg"].update(pool_type="avg"),
            "sets vision_cfg.pool_type to 'avg'",
        ),
        (lambda d: d["model_cfg"].update(custom_text=True), "sets custom_text to True"),
    ],
)
def test_configurations_that_do_not_fit_are_named(open_clip_folder, tmp_path, fails, change, message):
    edit_config(open_clip_folder, change)
    printed, code = fails(convert, str(open_clip_folder), tmp_path / "out", tokenizer=str(tmp_path / "clip"))
    assert code == 1
    assert message in printed
    assert not (tmp_path / "out").exists()


def test_fields_at_their_defaults_change_nothing(open_clip_folder, tmp_path):
    def change(document):
        document["model_cfg"]["vision_cfg"] |= {
            "pool_type": "tok",
            "ls_init_value": None,
            "patch_dropout": 0.0,
        }
        document["model_cfg"]["text_cfg"] |= {"pool_type": "argmax", "no_causal_mask": False}
        document["model_cfg"]["init_logit_scale"] = 2.6

    edit_config(open_clip_folder, change)
    convert(str(open_clip_folder), tmp_path / "out", tokenizer=str(tmp_path / "clip"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w: w.pop("ln_final.bias"), "1 weights are missing from the file, first ['ln_final.bias']"),
        (lambda w: w.update(logit_bias=torch.ones(())), "does not know, first ['logit_bias']"),
        (lambda w: w.update({"visual.proj": torch.ones(24, 13)}), "visual.proj (13, 24), expected (12, 24)"),
        (lambda w: w.pop("visual.class_embedding"), "ResNets and towers of timm cannot be converted"),
        (
            lambda w: [w.update({f"text.{n}": w.pop(n)}) for n in list(w) if not n.startswith("visual")],
            "stand here behind 'text.'",
        ),
        (
            lambda w: (w.clear(), w.update({"text_model.a": torch.ones(1)})),
            "they are of transformers; for the other direction give its folder and --to-open-clip",
        ),
    ],
)
def test_weights_that_do_not_fit_are_named(open_clip_folder, tmp_path, fails, change, message):
    path = open_clip_folder / "open_clip_model.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)
    printed, code = fails(convert, str(open_clip_folder), tmp_path / "out", tokenizer=str(tmp_path / "clip"))
    assert code == 1
    assert message in printed
    assert not (tmp_path / "out").exists()


def test_a_tokenizer_of_another_model_is_refused(open_clip_folder, tmp_path, fails):
    for name, vocabulary in (("longer", [*VOCABULARY, "d"]), ("turned", [*reversed(VOCABULARY)])):
        save_tokenizer(tmp_path / name, vocabulary)
        message, _ = fails(convert, str(open_clip_folder), tmp_path / "out", tokenizer=str(tmp_path / name))
        assert f"knows {len(vocabulary)} tokens" in message
        assert "the text tower reads 5 and ends with 4" in message


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hidden_act": "gelu"}, "one GELU or quick GELU for both towers, got ['gelu', 'quick_gelu']"),
        ({"eos_token_id": 3}, "<end> must be 4, but it is 3"),
        ({"layer_norm_eps": 1e-6}, "norms add 1e-05, this model's 1e-06"),
    ],
)
def test_what_open_clip_does_not_have_is_refused(tmp_path, fails, changes, message):
    save_clip(tmp_path / "clip", **changes)
    printed, _ = fails(convert, str(tmp_path / "clip"), tmp_path / "out", to_open_clip=True)
    assert message in printed
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("width", "intermediate"), [(1664, 8192), (48, 130), (7, 11), (768, 3072)])
def test_the_ratio_gives_the_width_of_the_perceptron_back(width, intermediate):
    vision = {
        "hidden_size": width,
        "intermediate_size": intermediate,
        "num_hidden_layers": 1,
        "num_attention_heads": 1,
    }
    text = {
        "hidden_size": 8,
        "intermediate_size": 8,
        "num_hidden_layers": 1,
        "num_attention_heads": 1,
        "vocab_size": 5,
    }
    config = CLIPConfig(
        vision_config={**vision, "image_size": 8, "patch_size": 8}, text_config={**text, "eos_token_id": 4}
    )
    with torch.device("meta"):
        model = CLIPModel(config)
    _, built = convert_to_open_clip(model)
    assert int(width * built["vision_cfg"]["mlp_ratio"]) == intermediate
    assert len(list_clip_pairs(config)) == 38


def test_options_that_do_not_fit_together(tmp_path, fails, monkeypatch):
    for options, message in (
        ({}, "name the tokenizer: --tokenizer open_clip"),
        ({"to_open_clip": True, "tokenizer": "open_clip"}, "takes neither --config nor --tokenizer"),
    ):
        printed, code = fails(convert, str(tmp_path / "x"), tmp_path / "out", **options)
        assert (code, message in printed) == (2, True)
    monkeypatch.setitem(sys.modules, "open_clip", None)
    for options in ({"tokenizer": "open_clip"}, {"to_open_clip": True, "verify": True}):
        printed, code = fails(convert, str(tmp_path / "x"), tmp_path / "out", **options)
        assert code == 2
        assert "pip install 'zsseg[clip]'" in printed
    (tmp_path / "empty").mkdir()
    printed, _ = fails(convert, str(tmp_path / "empty"), tmp_path / "out", tokenizer="x")
    assert "holds none of ['open_clip_model.safetensors', 'open_clip_pytorch_model.bin']" in printed


OPEN_CLIP = """
import json, sys
from pathlib import Path
import torch

torchvision, scripts, folder = sys.argv[1:]
sys.path.insert(0, scripts)
if torchvision:
    sys.path.append(torchvision)
    operators = torch.library.Library("torchvision", "DEF")
    operators.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    operators.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
import open_clip
from convert_open_clip_to_zsseg import convert
from zsseg.conversion import open_clip_layout as layout

folder = Path(folder)
for activation in ("gelu", "quick_gelu"):
    source = folder / activation
    source.mkdir()
    config = {
        "embed_dim": 12,
        "quick_gelu": activation == "quick_gelu",
        "vision_cfg": {
            **{"width": 24, "layers": 2, "image_size": 32, "patch_size": 8},
            **{"head_width": 8, "mlp_ratio": 1.5},
        },
        "text_cfg": {"width": 16, "layers": 2, "heads": 2, "context_length": 20},
    }
    torch.manual_seed(0)
    tensors = open_clip.CLIP(**config).state_dict()
    for tensor in tensors.values():
        tensor += 0.2 * torch.randn_like(tensor)
    torch.save(tensors, source / "open_clip_pytorch_model.bin")
    document = {"model_cfg": config, "preprocess_cfg": {"mean": [0.2, 0.4, 0.6], "std": [0.1, 0.2, 0.3]}}
    (source / "open_clip_config.json").write_text(json.dumps(document))
    clip, back = folder / f"{activation}-clip", folder / f"{activation}-back"
    convert(str(source), clip, tokenizer="open_clip", verify=True)
    convert(str(clip), back, to_open_clip=True, verify=True)
    again = open_clip.create_model(f"local-dir:{back}").state_dict()
    is_same = tensors.keys() == again.keys() and all(torch.equal(again[n], t) for n, t in tensors.items())
    print("exact", is_same)
    # The other activation is another model, and the comparison says so.
    document["model_cfg"]["quick_gelu"] = activation != "quick_gelu"
    (source / "open_clip_config.json").write_text(json.dumps(document))
    convert(str(source), folder / f"{activation}-other", tokenizer="open_clip")
    pictures, ids = layout.build_clip_inputs(layout.CLIPConfig.from_pretrained(clip))
    config["quick_gelu"] = activation == "quick_gelu"
    outputs = layout.compute_open_clip_outputs(config, tensors, pictures, ids)
    other = layout.CLIPModel.from_pretrained(folder / f"{activation}-other").double()
    found = layout.compute_clip_outputs(other, pictures, ids)
    for name in ("image embeddings", "text embeddings"):
        print("other", float((outputs[name] - found[name]).abs().max()))
"""


@pytest.mark.slow
def test_open_clip_itself_computes_the_same(tmp_path):
    """In a process of its own: like torchvision, which it needs, it may lie beside the environment."""
    if (TORCHVISION / "torchvision").is_dir():
        folder = str(TORCHVISION)
    elif importlib.util.find_spec("torchvision") is not None:
        folder = ""
    else:
        pytest.skip(f"torchvision is neither installed nor in {TORCHVISION}")
    if importlib.util.find_spec("open_clip") is None and not (TORCHVISION / "open_clip").is_dir():
        pytest.skip(f"open_clip is neither installed nor in {TORCHVISION}")
    scripts = str(Path(__file__).parents[2] / "conversion_scripts")
    done = subprocess.run(
        [sys.executable, "-c", OPEN_CLIP, folder, scripts, str(tmp_path)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    verified = [line.split(maxsplit=2) for line in lines if line.startswith("verified")]
    assert {name for _, _, name in verified} == {
        "image embeddings",
        "text embeddings",
        "logit scale",
        "text tower",
        "teacher",
        "token ids",
    }
    assert len(verified) == 2 * (6 + 3)
    assert all(float(value) < 1e-6 for _, value, _ in verified)
    assert lines.count("exact True") == 2
    others = [float(line.split()[1]) for line in lines if line.startswith("other")]
    assert len(others) == 4
    assert min(others) > 1e-3
