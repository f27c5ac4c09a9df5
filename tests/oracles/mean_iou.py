"""IoU by label from a confusion matrix filled pixel by pixel."""


def confusion_matrix(predictions, targets, num_labels, ignore_index):
    """Rows: target labels; columns: predicted labels, the last one for pixels without a label."""
    matrix = [[0] * (num_labels + 1) for _ in range(num_labels)]
    for prediction, target in zip(predictions, targets, strict=True):
        for predicted, true in zip(prediction.ravel().tolist(), target.ravel().tolist(), strict=True):
            if true != ignore_index:
                matrix[true][num_labels if predicted == ignore_index else predicted] += 1
    return matrix


def iou_by_label(matrix):
    """IoU of each label; None where the union is empty."""
    result = []
    for label_id, row in enumerate(matrix):
        union = sum(row) + sum(other[label_id] for other in matrix) - row[label_id]
        result.append(row[label_id] / union if union else None)
    return result
