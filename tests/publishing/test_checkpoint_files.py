import io
import pickle
import shutil

import pytest
import torch

from zsseg.publishing.checkpoint_files import collect_checkpoint_files, is_checkpoint_part, is_pickle

CHECKPOINT = (
    "config.json",
    "model.safetensors",
    "processor_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
)


def save_tensors(legacy=False):
    buffer = io.BytesIO()
    torch.save({"weight": torch.ones(3)}, buffer, _use_new_zipfile_serialization=not legacy)
    return buffer.getvalue()


def test_what_save_pretrained_writes_is_published(checkpoint):
    assert collect_checkpoint_files(checkpoint).published == CHECKPOINT


def test_shards_and_vectors_are_published(bank_checkpoint, tmp_path):
    from testing.tiny_models import build_bank, build_model, build_processor

    build_model().save_pretrained(tmp_path, max_shard_size="100KB")
    build_processor(text_embeddings=build_bank()).save_pretrained(tmp_path)
    published = collect_checkpoint_files(tmp_path).published
    shards = [name for name in published if name.startswith("model-")]
    assert len(shards) > 1
    assert {"model.safetensors.index.json", "text_embeddings.safetensors", *shards} <= set(published)


def test_training_state_and_logs_are_left_out_whatever_is_included(checkpoint):
    (checkpoint / "trainer").mkdir()
    (checkpoint / "trainer" / "optimizer.pt").write_bytes(save_tensors())
    (checkpoint / "metrics.jsonl").write_text("{}")
    (checkpoint / "tensorboard").mkdir()
    (checkpoint / "tensorboard" / "events.1").write_text("x")
    found = collect_checkpoint_files(checkpoint)
    assert found.published == CHECKPOINT
    assert found.left_out == ("metrics.jsonl", "tensorboard/events.1", "trainer/optimizer.pt")
    for pattern in ("trainer/*", "*.jsonl", "tensorboard/*"):
        with pytest.raises(ValueError, match="training state and logs are never published"):
            collect_checkpoint_files(checkpoint, [pattern])


@pytest.mark.parametrize(
    "name", ["pytorch_model.bin", "model.pt", "model.pth", "x.pkl", "x.ckpt", "a/b.pickle"]
)
def test_pickles_are_refused_by_name(checkpoint, name):
    (checkpoint / name).parent.mkdir(exist_ok=True)
    (checkpoint / name).write_bytes(b"")
    with pytest.raises(ValueError, match=r"run code on whoever loads them.*remove|write it anew"):
        collect_checkpoint_files(checkpoint, ["*"])


class Payload:
    def __reduce__(self):
        return print, ("run",)


@pytest.mark.parametrize(
    "content",
    [
        *(pickle.dumps(Payload(), protocol) for protocol in range(pickle.HIGHEST_PROTOCOL + 1)),
        save_tensors(),
        save_tensors(legacy=True),
    ],
    ids=lambda content: repr(content[:8]),
)
@pytest.mark.parametrize("name", ["notes.txt", "model.safetensors"])
def test_pickles_are_refused_by_content(checkpoint, content, name):
    (checkpoint / name).write_bytes(content)
    with pytest.raises(ValueError, match="pickles, which run code"):
        collect_checkpoint_files(checkpoint, ["*"])


def test_the_remedy_fits(checkpoint):
    (checkpoint / "training_args.bin").write_bytes(b"")
    with pytest.raises(ValueError, match="there as safetensors too, so remove"):
        collect_checkpoint_files(checkpoint)
    (checkpoint / "training_args.bin").unlink()
    shutil.move(checkpoint / "model.safetensors", checkpoint / "pytorch_model.bin")
    with pytest.raises(ValueError, match=r"write it anew with model\.save_pretrained"):
        collect_checkpoint_files(checkpoint)


@pytest.mark.parametrize(
    "text", ["", ".", "N.", "Notes on PQ.\n", "(a, b).", '{"a": 1}', "I1\n", "0123456789"]
)
def test_texts_are_no_pickles(tmp_path, text):
    (tmp_path / "notes.txt").write_text(text)
    # "N." is a pickle, of None: the shortest of all, and harmless.
    assert is_pickle(tmp_path / "notes.txt") == (text == "N.")


def test_no_file_of_the_repository_passes_for_a_pickle(checkpoint):
    from pathlib import Path

    root = Path(__file__).parents[2]
    for path in [
        *root.glob("*.*"),
        *root.glob("docs/*"),
        *root.glob("src/zsseg/packaged/*/*"),
        *checkpoint.iterdir(),
    ]:
        assert path.is_dir() or not is_pickle(path), path


def test_strangers_are_refused_unless_included(checkpoint):
    (checkpoint / "pictures").mkdir()
    (checkpoint / "pictures" / "a.png").write_bytes(b"\x89PNG")
    (checkpoint / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match=r"2 files that are no part of a checkpoint.*notes\.txt.*--include"):
        collect_checkpoint_files(checkpoint)
    with pytest.raises(ValueError, match=r"1 files that are no part.*notes\.txt"):
        collect_checkpoint_files(checkpoint, ["pictures/*"])
    found = collect_checkpoint_files(checkpoint, ["pictures/*", "notes.txt"])
    assert set(found.published) == {*CHECKPOINT, "pictures/a.png", "notes.txt"}
    with pytest.raises(ValueError, match=r"\['\*\.csv'\] include no file"):
        collect_checkpoint_files(checkpoint, ["*", "*.csv"])


def test_a_folder_without_weights_is_refused(checkpoint):
    (checkpoint / "model.safetensors").unlink()
    with pytest.raises(ValueError, match=r"holds no model\.safetensors"):
        collect_checkpoint_files(checkpoint)


def test_cards_and_evaluations_are_no_strangers(checkpoint):
    for name in (
        "README.md",
        "LICENSE",
        "evaluation.json",
        "evaluation/street.json",
        ".eval_results/street.yaml",
    ):
        (checkpoint / name).parent.mkdir(exist_ok=True)
        (checkpoint / name).write_text("text")
    found = collect_checkpoint_files(checkpoint)
    assert found.card
    assert found.evaluations == ("evaluation.json", "evaluation/street.json")
    assert found.eval_results == (".eval_results/street.yaml",)
    assert set(found.published) == {*CHECKPOINT, "LICENSE"}


def test_what_would_contradict_another_checkpoint():
    parts = (
        "model-00002-of-00003.safetensors",
        "vocab.json",
        "pytorch_model.bin",
        "evaluation/a.json",
        "README.md",
    )
    assert all(map(is_checkpoint_part, parts))
    assert not any(map(is_checkpoint_part, ("pictures/a.png", "notes.txt", "onnx/model.onnx")))
