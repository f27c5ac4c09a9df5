import numpy as np
import pytest

from zsseg.visualization.confusion_matrix import (
    CELL,
    GROUP_GAP,
    NEVER_IN_GROUP,
    RIGHT,
    WRONG,
    draw_confusion_matrix,
)
from zsseg.vocabulary import Vocabulary

LABELS = ("road", "car", "tree", "sky")


def draw(counts, *, unseen=(), **options):
    vocabulary = Vocabulary.from_labels(LABELS, unseen_labels=unseen)
    return np.asarray(draw_confusion_matrix(np.asarray(counts), vocabulary, **options)).astype(int)


def find_cells(page, color):
    """Top left corners (y, x) of the cells of one colour, in reading order; legend patches are less high."""
    matches = np.pad((page == color).all(axis=2), ((0, CELL), (0, CELL)))
    corners = matches & ~np.roll(matches, 1, axis=0) & ~np.roll(matches, 1, axis=1)
    return [
        (y, x)
        for y, x in np.argwhere(corners).tolist()
        if matches[y, x : x + CELL - 1].all() and matches[y : y + CELL - 1, x].all()
    ]


def test_right_answers_stand_on_the_diagonal():
    cells = find_cells(draw(np.eye(4, dtype=int) * 5), RIGHT)
    top, left = cells[0]
    assert cells == [(top + i * CELL, left + i * CELL) for i in range(4)]


def test_a_wrong_answer_stands_in_the_row_of_what_it_is():
    counts = np.eye(4, dtype=int)
    counts[1] = [0, 0, 0, 6]
    page = draw(counts)
    top, left = find_cells(page, RIGHT)[0]
    assert find_cells(page, WRONG) == [(top + CELL, left + 3 * CELL)]


def test_shares_of_a_row_count_and_not_its_size():
    small = draw([[3, 1, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])
    large = draw([[6, 2, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])
    other = draw([[5, 3, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])
    top, left = find_cells(small, RIGHT)[0]
    top, left = top - CELL, left - CELL
    row = (slice(top, top + CELL), slice(left, left + 4 * CELL))
    assert np.array_equal(small[row], large[row])
    assert not np.array_equal(small[row], other[row])
    # The sum at the end of the row says how many there were, and nothing else differs.
    ys, xs = np.nonzero((small != large).any(axis=2))
    assert top <= ys.min() <= ys.max() < top + CELL
    assert xs.min() > left + 4 * CELL


def test_groups_stand_apart_and_share_a_ground():
    page = draw(np.eye(4, dtype=int), group_starts=[0, 2])
    cells = find_cells(page, RIGHT)
    assert cells[2][0] - cells[1][0] == cells[2][1] - cells[1][1] == CELL + GROUP_GAP
    assert len(find_cells(page, NEVER_IN_GROUP)) == 4
    assert len(find_cells(draw(np.eye(4, dtype=int)), NEVER_IN_GROUP)) == 12


def test_stars_stand_before_unseen_names_and_are_explained():
    counts = np.eye(4, dtype=int)
    plain, starred = draw(counts), draw(counts, unseen=["tree"])
    assert starred.shape[0] > plain.shape[0]
    assert starred.shape[1] == plain.shape[1]
    (first, left_end), _, (top, left), _ = find_cells(plain, RIGHT)
    end = first + 4 * CELL
    changed = (plain[:end] != starred[:end]).any(axis=2)
    rows, columns = changed[first:].any(axis=1).nonzero()[0], changed[:first].any(axis=0).nonzero()[0]
    assert top <= first + rows.min() <= first + rows.max() < top + CELL
    assert left <= columns.min() <= columns.max() < left + CELL
    # On the left in its row: the cells are as before.
    assert not changed[first:, left_end:].any()


def test_a_label_that_never_occurs_leaves_its_row_empty():
    counts = np.eye(4, dtype=int)
    counts[2, 2] = 0
    assert len(find_cells(draw(counts), RIGHT)) == 3


def test_counts_of_other_labels_are_refused():
    with pytest.raises(ValueError, match=r"counts must be \(4, 4\), got \(3, 4\)"):
        draw(np.zeros((3, 4), dtype=int))
