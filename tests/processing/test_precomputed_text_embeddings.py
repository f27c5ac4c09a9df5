import numpy as np
import pytest

from testing.tiny_models import BANK_NAMES, build_bank
from zsseg import PrecomputedTextEmbeddings
from zsseg.processing.precomputed_text_embeddings import FILE_NAME


def test_lookup_in_any_order_and_unit_norm():
    vectors = np.random.default_rng(0).normal(size=(3, 5))
    bank = PrecomputedTextEmbeddings(["road", "car", "🦒"], vectors)
    found = bank.lookup(["🦒", "road", "🦒"])
    assert found.dtype == np.float32
    expected = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    np.testing.assert_allclose(found, expected[[2, 0, 2]], atol=1e-6)


def test_saved_and_loaded(tmp_path):
    bank = PrecomputedTextEmbeddings(["road", 'the "car"', "🦒"], np.eye(3)[:, ::-1].copy())
    bank.save(tmp_path)
    loaded = PrecomputedTextEmbeddings.load(tmp_path / FILE_NAME)
    assert loaded.names == bank.names
    assert np.array_equal(loaded.embeddings, bank.embeddings)


@pytest.mark.parametrize(
    ("text", "nearest"),
    [
        ("traffic lights", "'traffic light'"),
        ("cars", "'car'"),
        ("light", "'traffic light'"),
        ("xyz", "none is close"),
    ],
)
def test_a_text_outside_lists_the_nearest(text, nearest):
    with pytest.raises(
        ValueError, match=f"no embedding for '{text}'; nearest names: {nearest}.*holds 4 precomputed"
    ):
        build_bank().lookup(["road", text])
    assert len(BANK_NAMES) == 4


@pytest.mark.parametrize(
    ("names", "vectors", "message"),
    [
        (["a", "b"], np.eye(3), r"one vector per name, \(2, D\), got an array \(3, 3\)"),
        (["a"], np.ones(3), "one vector per name"),
        (["a", "a"], np.eye(2), "names must be unique"),
        (["a", "b"], np.array([[1.0, 0.0], [0.0, 0.0]]), "finite and not zero"),
        (["a", "b"], np.array([[1.0, np.nan], [0.0, 1.0]]), "finite and not zero"),
    ],
)
def test_vectors_that_cannot_be_used(names, vectors, message):
    with pytest.raises(ValueError, match=message):
        PrecomputedTextEmbeddings(names, vectors)


@pytest.mark.parametrize("content", [b"", b"not safetensors at all", "no names", "other tensor"])
def test_damaged_files(content, tmp_path):
    from safetensors.numpy import save_file

    path = tmp_path / FILE_NAME
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content == "no names":
        save_file({"embeddings": np.eye(2)}, path)
    else:
        save_file({"vectors": np.eye(2)}, path, metadata={"names": '["a", "b"]'})
    with pytest.raises(ValueError, match="is no file of named text embeddings"):
        PrecomputedTextEmbeddings.load(path)
