"""The reference that conversions are checked against is checked itself, where it is no plain layer."""

import ast
import sys
from pathlib import Path

import pytest
import reference_mask2former
import reference_pading
import reference_scan
import torch
from reference_mask2former import Weights, attend_in_windows, compute_sine_positions, sample_deformably

from oracles.deformable_attention import attend_deformably

SIZES = [(2, 3), (4, 6), (7, 5)]


@pytest.mark.parametrize("module", [reference_mask2former, reference_pading, reference_scan])
def test_the_references_stand_alone(module):
    tree = ast.parse(Path(module.__file__).read_text(encoding="utf-8"))
    imported = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    imported |= {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    packages = {name.partition(".")[0] for name in imported}
    assert packages <= sys.stdlib_module_names | {"torch", "reference_mask2former"}


def test_deformable_attention_is_that_of_the_oracle():
    generator = torch.Generator().manual_seed(0)
    dim, heads, points = 8, 2, reference_mask2former.SAMPLING_POINTS
    rows = {"sampling_offsets": heads * 3 * points * 2, "attention_weights": heads * 3 * points}
    tensors = {}
    for name in ("sampling_offsets", "attention_weights", "value_proj", "output_proj"):
        tensors[f"{name}.weight"] = torch.randn(rows.get(name, dim), dim, generator=generator).double()
        tensors[f"{name}.bias"] = torch.randn(rows.get(name, dim), generator=generator).double()
    positions = sum(height * width for height, width in SIZES)
    queries, memory = torch.randn(2, 2, positions, dim, generator=generator).double()
    found = sample_deformably(Weights(tensors), queries, memory, SIZES)
    arrays = {name: tensor.numpy() for name, tensor in tensors.items()}
    for image in range(2):
        expected = attend_deformably(
            queries[image].numpy(), memory[image].numpy(), SIZES, arrays, num_heads=heads, num_points=points
        )
        torch.testing.assert_close(found[image], torch.from_numpy(expected), atol=1e-9, rtol=0)


@pytest.mark.parametrize("shift", [0, 1])
def test_tokens_attend_within_their_window_alone(shift):
    window, width = 3, 4
    generator = torch.Generator().manual_seed(0)
    tensors = {
        "qkv.weight": torch.randn(3 * width, width, generator=generator),
        "qkv.bias": torch.zeros(3 * width),
        "proj.weight": torch.eye(width),
        "proj.bias": torch.zeros(width),
        "relative_position_bias_table": torch.randn((2 * window - 1) ** 2, 2, generator=generator),
    }
    plane = torch.randn(1, 6, 9, width, generator=generator, requires_grad=True)
    attend_in_windows(Weights(tensors), plane, window, shift)[0, 4, 2].sum().backward()
    is_seen = plane.grad[0].abs().sum(dim=-1) > 0
    # Shifted by one, windows begin in rows 1 and 4, and in columns 1, 4 and 7; what is cut off stays apart.
    rows, columns = (slice(4, 6), slice(1, 4)) if shift else (slice(3, 6), slice(0, 3))
    expected = torch.zeros(6, 9, dtype=torch.bool)
    expected[rows, columns] = True
    assert torch.equal(is_seen, expected)


def test_positions_count_rows_first_and_from_one():
    positions = compute_sine_positions(2, 3, 8, torch.zeros(1).double())
    assert positions.shape == (8, 2, 3)
    angle = 2 * torch.pi * torch.tensor([1 / 2, 1.0], dtype=torch.float64)
    torch.testing.assert_close(positions[0, :, 1], angle.sin(), atol=1e-5, rtol=0)
    torch.testing.assert_close(positions[1, :, 1], angle.cos(), atol=1e-5, rtol=0)
    torch.testing.assert_close(positions[2, :, 0], (angle / 100).sin(), atol=1e-5, rtol=0)
    angle = 2 * torch.pi * torch.tensor([1 / 3, 2 / 3, 1.0], dtype=torch.float64)
    torch.testing.assert_close(positions[4, 1], angle.sin(), atol=1e-5, rtol=0)
