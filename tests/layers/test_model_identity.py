import torch
from torch import nn
from transformers import CLIPVisionConfig

from zsseg.layers.model_identity import compute_weights_digest, describe_config


def build_module():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))


def test_values_names_shapes_and_dtypes_count():
    digests = {compute_weights_digest(build_module())}
    assert digests == {compute_weights_digest(build_module())}
    changed = build_module()
    with torch.no_grad():
        changed[0].bias[0] += 1e-6
    buffer = build_module()
    buffer[1].running_mean[0] = 1.0
    for module in (changed, buffer, build_module().bfloat16(), nn.Sequential(nn.Linear(3, 2))):
        digests.add(compute_weights_digest(module))
    assert len(digests) == 5


def test_only_what_begins_so_counts():
    changed = build_module()
    with torch.no_grad():
        changed[0].bias[0] += 1.0
    assert compute_weights_digest(changed, ("1.",)) == compute_weights_digest(build_module(), ("1.",))
    assert compute_weights_digest(changed, ("0.",)) != compute_weights_digest(build_module(), ("0.",))


def test_a_config_is_described_without_where_it_came_from(tmp_path):
    config = CLIPVisionConfig(hidden_size=24)
    config.save_pretrained(tmp_path)
    again = CLIPVisionConfig.from_pretrained(tmp_path, dtype="float16")
    again.name_or_path = str(tmp_path)
    assert describe_config(again) == describe_config(config)
    assert describe_config(CLIPVisionConfig(hidden_size=24, hidden_act="gelu")) != describe_config(config)
