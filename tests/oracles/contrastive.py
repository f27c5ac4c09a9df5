"""The image–text contrastive loss, written out pair by pair."""

import numpy as np


def image_text_contrastive_loss(images, texts, text_indices, scale):
    """Cross-entropy of every picture over texts and of every text over pictures, averaged in halves."""
    images = [image / np.linalg.norm(image) for image in images]
    texts = [text / np.linalg.norm(text) for text in texts]
    logits = [[scale * float(image @ text) for text in texts] for image in images]
    picture_losses = []
    for row, own in zip(logits, text_indices, strict=True):
        picture_losses.append(-row[own] + np.log(sum(np.exp(value) for value in row)))
    text_losses = []
    for text in range(len(texts)):
        column = [row[text] for row in logits]
        normaliser = np.log(sum(np.exp(value) for value in column))
        own = [value for value, index in zip(column, text_indices, strict=True) if index == text]
        text_losses.append(np.mean([normaliser - value for value in own]))
    return (np.mean(picture_losses) + np.mean(text_losses)) / 2
