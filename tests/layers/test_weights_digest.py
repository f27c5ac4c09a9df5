import torch
from torch import nn

from zsseg.layers.weights_digest import compute_weights_digest


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
