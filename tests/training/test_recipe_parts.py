import pytest

from zsseg.training.arguments import TrainerArguments
from zsseg.training.checkpointing import CheckpointError
from zsseg.training.recipe_parts import choose_start, prepare_stages


def build_stages(folder, **precisions):
    return [
        TrainerArguments(output_dir=folder / name, steps=1, mixed_precision=precision)
        for name, precision in ({"first": "no", "second": "no"} | precisions).items()
    ]


def leave_checkpoint(folder):
    (folder / "checkpoint-000001").mkdir(parents=True)
    (folder / "notes.txt").touch()


def test_overwriting_deletes_later_stages_before_the_first_begins(tmp_path):
    for name in ("second", "third"):
        leave_checkpoint(tmp_path / name)
    prepare_stages(build_stages(tmp_path), later_folders=[tmp_path / "third"], resume=False, overwrite=True)
    # Else a resumed run would go on with a later stage of the earlier one.
    for name in ("second", "third"):
        assert [path.name for path in (tmp_path / name).iterdir()] == ["notes.txt"]
    assert not (tmp_path / "first").exists()


def test_what_is_in_the_way_is_found_at_the_beginning(tmp_path):
    leave_checkpoint(tmp_path / "second")
    with pytest.raises(FileExistsError, match="second is not empty"):
        prepare_stages(build_stages(tmp_path), resume=False, overwrite=False)
    prepare_stages(build_stages(tmp_path), resume=True, overwrite=False)
    assert (tmp_path / "second" / "checkpoint-000001").is_dir()


def test_what_cannot_run_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match="nothing to resume"):
        prepare_stages(build_stages(tmp_path), resume=True, overwrite=False)
    (tmp_path / "first").mkdir()
    with pytest.raises(CheckpointError, match="no stage has begun"):
        prepare_stages(build_stages(tmp_path), resume=True, overwrite=False)
    with pytest.raises(ValueError, match="share one mixed_precision"):
        prepare_stages(build_stages(tmp_path, second="bf16"), resume=False, overwrite=False)


@pytest.mark.parametrize(
    ("has_begun", "asked", "expected"),
    [
        (True, (True, False), (True, False)),
        (False, (True, False), (False, True)),
        (False, (False, False), (False, False)),
        (True, (False, True), (False, True)),
    ],
)
def test_a_part_that_has_not_begun_begins_in_a_resumed_recipe(tmp_path, has_begun, asked, expected):
    if has_begun:
        leave_checkpoint(tmp_path / "second")
    start = choose_start(build_stages(tmp_path), resume=asked[0], overwrite=asked[1])
    assert (start["resume"], start["overwrite"]) == expected
