import pytest
import torch
from torch import nn

from zsseg.conversion.source_weights import ConversionBooks, SourceWeights, fill_module

NAMES = ("layers.0.weight", "layers.0.bias", "layers.1.weight", "layers.1.bias", "head.weight", "head.bias")


def build_source(**changes):
    tensors = {name: torch.full((2, 2) if name.endswith("weight") else (2,), 3.0) for name in NAMES}
    return SourceWeights(tensors | changes, beside=["optimizer"])


def test_every_weight_is_used_or_dropped():
    source = build_source()
    source.take("layers.0.weight", "a.weight")
    source.take("layers.0.bias", "a.bias", "b.bias")
    source.drop(r"layers\.1\..*", "unused")
    source.drop(r"layers\..*", "comes too late")
    source.drop(r"nothing", "is no error")
    with pytest.raises(
        ValueError, match=r"holds 2 weights that this conversion does not know, first \['head.wei"
    ):
        source.check_accounted()
    source.drop(r"head", "only whole names match")
    with pytest.raises(ValueError, match="holds 2 weights"):
        source.check_accounted()
    source.drop(r"head\..*", "a fixed list")
    source.check_accounted()
    assert source.books.to_dict() == {
        "used": {"layers.0.weight": ["a.weight"], "layers.0.bias": ["a.bias", "b.bias"]},
        "dropped": {
            **{name: "unused" for name in NAMES[2:4]},
            **{name: "a fixed list" for name in NAMES[4:]},
        },
        "new": {},
        "beside": ["optimizer"],
    }


def test_the_table_counts_by_parts_and_reasons():
    books = ConversionBooks(
        used={"a.b.0.weight": ["x.y.0.weight"], "a.b.1.weight": ["x.y.1.weight"], "scale": ["scale"]},
        dropped={"head.weight": "a fixed list", "head.bias": "a fixed list"},
        fresh={"projector.0.weight": "new", "x.y.norm.weight": "unused"},
        beside=["optimizer", "iteration"],
    )
    assert books.format_table().splitlines() == [
        "used         2  a.b → x.y",
        "used         1  scale → scale",
        "dropped      2  head: a fixed list",
        "new          1  projector.0: new",
        "new          1  x.y: unused",
        "not read     2  beside the weights: optimizer, iteration",
    ]


def test_counting_notices_gaps_and_missing_names_come_with_the_nearest():
    source = build_source()
    assert source.count("layers.{}.weight") == 2
    assert source.count("blocks.{}.weight") == 0
    del source.tensors["layers.0.weight"]
    with pytest.raises(ValueError, match=r"of 'layers.\{\}.weight', number \[0\] is missing, but 1 is there"):
        source.count("layers.{}.weight")
    with pytest.raises(ValueError, match=r"1 weights are missing.*'layers.2.bias'.*nearest.*'layers.1.bias'"):
        source.take("layers.2.bias", "a")


def build_module():
    module = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    nn.init.zeros_(module[0].weight)
    return module


def test_a_module_is_filled_whole_or_not_at_all():
    converted = {"0.weight": torch.ones(2, 2, dtype=torch.float16), "0.bias": torch.ones(2)}
    module, books = build_module(), ConversionBooks()
    with pytest.raises(
        ValueError, match=r"nothing in the file becomes 5 weights of the result, first \['1.weight'"
    ):
        fill_module(module, converted, {}, books)
    with pytest.raises(
        ValueError, match=r"becomes 1 weights of the result, first \['1.num_batches_tracked'\]"
    ):
        fill_module(module, converted, {r"1\.(weight|bias|running_.*)": "of its own"}, books)
    assert not module[0].weight.any()
    fill_module(module, converted, {r"1\..*": "of its own"}, books := ConversionBooks())
    assert torch.equal(module[0].weight, torch.ones(2, 2))
    assert module[0].weight.dtype == torch.float32
    assert list(books.fresh) == [
        f"1.{n}" for n in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
    ]


def test_what_does_not_fit_a_module_is_named_by_the_source():
    module, fresh = build_module(), {r"1\..*": "of its own"}
    books = ConversionBooks(used={"head.weight": ["0.weight"]})
    for tensor, message in (
        (torch.ones(3, 2), r"head.weight \(3, 2\), expected \(2, 2\) for 0.weight"),
        (torch.full((2, 2), torch.inf), r"1 weights hold NaN or infinite values, first \['head.weight'\]"),
    ):
        with pytest.raises(ValueError, match=message):
            fill_module(module, {"0.weight": tensor, "0.bias": torch.ones(2)}, fresh, books)
    with pytest.raises(KeyError, match=r"Sequential has no weights \['2.weight'\]"):
        fill_module(module, {"2.weight": torch.ones(2)}, fresh, books)
    assert not module[0].weight.any()
