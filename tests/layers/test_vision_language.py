import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import (
    CLIPConfig,
    CLIPImageProcessorPil,
    CLIPModel,
    SiglipConfig,
    SiglipImageProcessorPil,
    SiglipModel,
)

from testing.tiny_models import save_bert, save_clip
from zsseg.checkpoints import packaged
from zsseg.layers.vision_language import load_vision_language_teacher

MEAN, STD = (0.2, 0.4, 0.6), (0.1, 0.2, 0.3)
PICTURES = np.random.default_rng(0).integers(0, 256, (5, 32, 32, 3), dtype=np.uint8)
TORCHVISION = Path(sys.prefix) / "torchvision"


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("clip")
    save_clip(folder)
    CLIPImageProcessorPil(image_mean=MEAN, image_std=STD).save_pretrained(folder)
    return folder


def normalise(pictures):
    values = (pictures / 255 - np.array(MEAN)) / np.array(STD)
    return torch.from_numpy(values.transpose(0, 3, 1, 2)).float()


def test_clip_tokens_are_its_projected_image_embeddings(clip_folder):
    teacher = load_vision_language_teacher(clip_folder)
    embeds = teacher.encode_images(PICTURES)
    with torch.no_grad():
        clip = CLIPModel.from_pretrained(clip_folder).eval()
        expected = clip.get_image_features(pixel_values=normalise(PICTURES)).pooler_output
    expected /= expected.norm(dim=-1, keepdim=True)
    torch.testing.assert_close(embeds, expected, atol=1e-5, rtol=0)
    assert embeds.dtype == torch.float32
    assert (teacher.image_size, teacher.embed_dim) == (32, clip.config.projection_dim)
    assert teacher.fill_color == (51, 102, 153)


def test_siglip_tokens_are_its_pooled_image_embeddings(tmp_path):
    torch.manual_seed(0)
    sizes = {
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
    }
    vision = {**sizes, "image_size": 32, "patch_size": 16}
    model = SiglipModel(SiglipConfig(text_config={**sizes, "vocab_size": 20}, vision_config=vision)).eval()
    model.save_pretrained(tmp_path)
    SiglipImageProcessorPil(image_mean=MEAN, image_std=STD).save_pretrained(tmp_path)
    teacher = load_vision_language_teacher(tmp_path)
    with torch.no_grad():
        expected = model.get_image_features(pixel_values=normalise(PICTURES)).pooler_output
    expected /= expected.norm(dim=-1, keepdim=True)
    torch.testing.assert_close(teacher.encode_images(PICTURES), expected, atol=1e-5, rtol=0)
    assert teacher.embed_dim == 16


def test_a_tower_by_itself_is_the_one_inside_the_whole(clip_folder, tmp_path):
    inside = load_vision_language_teacher(clip_folder)
    inside.tower.save_pretrained(tmp_path)
    CLIPImageProcessorPil(image_mean=MEAN, image_std=STD).save_pretrained(tmp_path)
    alone = load_vision_language_teacher(tmp_path)
    assert alone.weights_hash == inside.weights_hash
    assert torch.equal(alone.encode_images(PICTURES), inside.encode_images(PICTURES))


def test_the_packaged_clip_is_a_teacher():
    teacher = load_vision_language_teacher(packaged("patchwork-clip"))
    assert (teacher.image_size, teacher.embed_dim, teacher.fill_color) == (64, 128, (110, 110, 110))
    embeds = teacher.encode_images(np.zeros((2, 64, 64, 3), np.uint8))
    torch.testing.assert_close(embeds.norm(dim=-1), torch.ones(2))


def test_only_the_frozen_vision_tower_is_kept(clip_folder):
    teacher = load_vision_language_teacher(clip_folder)
    whole = CLIPModel.from_pretrained(clip_folder)
    kept = sum(parameter.numel() for parameter in teacher.tower.parameters())
    parts = (whole.vision_model, whole.visual_projection)
    assert kept == sum(parameter.numel() for part in parts for parameter in part.parameters())
    assert not any(parameter.requires_grad for parameter in teacher.tower.parameters())
    assert not teacher.tower.training


def test_batches_tensors_autocast_and_gradients_change_nothing(clip_folder):
    teacher = load_vision_language_teacher(clip_folder)
    whole = teacher.encode_images(PICTURES)
    torch.testing.assert_close(teacher.encode_images(PICTURES, batch_size=2), whole, atol=1e-6, rtol=0)
    assert torch.equal(teacher.encode_images(torch.from_numpy(PICTURES)), whole)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(teacher.encode_images(PICTURES), whole)
    assert not whole.requires_grad
    assert teacher.encode_images(PICTURES[:0]).shape == (0, teacher.embed_dim)
    read_only = PICTURES.copy()
    read_only.flags.writeable = False
    assert torch.equal(teacher.encode_images(read_only), whole)


def test_the_hash_knows_every_weight_and_the_normalisation(clip_folder, tmp_path):
    teacher = load_vision_language_teacher(clip_folder)
    again = load_vision_language_teacher(clip_folder)
    assert again.weights_hash == teacher.weights_hash
    model = CLIPModel.from_pretrained(clip_folder)
    with torch.no_grad():
        model.text_projection.weight[0, 0] += 1.0
    model.save_pretrained(tmp_path / "text")
    with torch.no_grad():
        model.visual_projection.weight[0, 0] += 1e-3
    model.save_pretrained(tmp_path / "vision")
    unchanged = CLIPModel.from_pretrained(clip_folder)
    unchanged.save_pretrained(tmp_path / "mean")
    unchanged.config.vision_config.hidden_act = "tanh"
    unchanged.save_pretrained(tmp_path / "activation")
    for name, mean in (("text", MEAN), ("vision", MEAN), ("mean", (0.5, 0.5, 0.5)), ("activation", MEAN)):
        CLIPImageProcessorPil(image_mean=mean, image_std=STD).save_pretrained(tmp_path / name)
    hashes = {
        name: load_vision_language_teacher(tmp_path / name).weights_hash
        for name in ("text", "vision", "mean", "activation")
    }
    assert hashes["text"] == teacher.weights_hash
    assert len(set(hashes.values())) == 4


@pytest.mark.parametrize(
    "pictures", [PICTURES[:, :16], PICTURES.astype(np.float32), PICTURES.transpose(0, 3, 1, 2), PICTURES[0]]
)
def test_other_pictures_are_refused(clip_folder, pictures):
    with pytest.raises(ValueError, match=r"expected pictures \(N, 32, 32, 3\) uint8, got"):
        load_vision_language_teacher(clip_folder).encode_images(pictures)


def test_other_checkpoints_are_refused(clip_folder, tmp_path):
    save_bert(tmp_path / "bert")
    with pytest.raises(ValueError, match="model type 'bert'; a teacher is one of"):
        load_vision_language_teacher(tmp_path / "bert")
    with pytest.raises(OSError, match="nowhere"):
        load_vision_language_teacher(tmp_path / "nowhere")
    config = CLIPConfig.from_pretrained(clip_folder)
    config.vision_config.num_hidden_layers = 2
    CLIPModel.from_pretrained(clip_folder).save_pretrained(tmp_path / "cut")
    config.save_pretrained(tmp_path / "cut")
    with pytest.raises(ValueError, match="does not hold 16 weights of CLIPVisionModelWithProjection"):
        load_vision_language_teacher(tmp_path / "cut")
    weights = tmp_path / "cut" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-10])
    with pytest.raises(OSError, match="are cut off or damaged"):
        load_vision_language_teacher(tmp_path / "cut")


OPEN_CLIP = """
import json, sys
import numpy as np
import torch

torchvision, folder = sys.argv[1:]
if torchvision:
    sys.path.append(torchvision)
    operators = torch.library.Library("torchvision", "DEF")
    operators.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    operators.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
import open_clip
from zsseg.layers.vision_language import load_vision_language_teacher

open_clip.add_model_config(folder)
torch.manual_seed(0)
model = open_clip.create_model("tiny").eval()
torch.save(model.state_dict(), folder + "/weights.pt")
teacher = load_vision_language_teacher("open_clip:tiny/" + folder + "/weights.pt")
pictures = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3), dtype=np.uint8)
settings = open_clip.get_model_preprocess_cfg(model)
values = (pictures / 255 - np.array(settings["mean"])) / np.array(settings["std"])
with torch.no_grad():
    expected = model.encode_image(torch.from_numpy(values.transpose(0, 3, 1, 2)).float(), normalize=True)
results = {
    "difference": (teacher.encode_images(pictures) - expected).abs().max().item(),
    "spread": expected.std().item(),
    "dimensions": [teacher.image_size, teacher.embed_dim],
    "fill": list(teacher.fill_color),
    "errors": [],
}
for name in ("ViT-B-61/openai", "ViT-B-16/openay", "ViT-B-16"):
    try:
        load_vision_language_teacher("open_clip:" + name)
    except ValueError as error:
        results["errors"].append(str(error))
print(json.dumps(results))
"""


@pytest.mark.slow
def test_open_clip_in_a_process_of_its_own(tmp_path):
    """Like torchvision, which it needs, it may lie beside the environment."""
    if (TORCHVISION / "torchvision").is_dir():
        folder = str(TORCHVISION)
    elif importlib.util.find_spec("torchvision") is not None:
        folder = ""
    else:
        pytest.skip(f"torchvision is neither installed nor in {TORCHVISION}")
    if importlib.util.find_spec("open_clip") is None and not (TORCHVISION / "open_clip").is_dir():
        pytest.skip(f"open_clip is neither installed nor in {TORCHVISION}")
    sizes = {"width": 16, "layers": 1}
    config = {
        "embed_dim": 12,
        "vision_cfg": {**sizes, "image_size": 32, "patch_size": 16, "head_width": 8},
        "text_cfg": {**sizes, "context_length": 8, "vocab_size": 20, "heads": 2},
    }
    (tmp_path / "tiny.json").write_text(json.dumps(config))
    done = subprocess.run(
        [sys.executable, "-c", OPEN_CLIP, folder, str(tmp_path)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    results = json.loads(done.stdout)
    assert results["difference"] < 1e-5
    assert results["spread"] > 0.1
    assert results["dimensions"] == [32, 12]
    assert results["fill"] == [123, 117, 104]  # the mean of OpenAI's CLIP
    unknown_model, unknown_tag, no_tag = results["errors"]
    assert "knows no model 'ViT-B-61'" in unknown_model
    assert "ViT-B-16" in unknown_model
    assert "knows no weights 'openay' of ViT-B-16" in unknown_tag
    assert "'laion2b_s34b_b88k'" in unknown_tag
    assert "knows no weights ''" in no_tag


def test_open_clip_that_cannot_be_imported(monkeypatch):
    monkeypatch.setitem(sys.modules, "open_clip", None)
    with pytest.raises(ImportError, match=r"pip install 'zsseg\[clip\]'"):
        load_vision_language_teacher("open_clip:ViT-B-16/openai")
