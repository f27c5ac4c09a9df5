"""Multi-scale deformable attention, one number at a time (arXiv:2010.04159, Sec. 4.1)."""

import math

import numpy as np


def sample_bilinearly(plane, x, y):
    """(H, W, d) values at pixel centres; outside is zero. x and y are in pixels, 0.5 is the first centre."""
    height, width, dim = plane.shape
    value = np.zeros(dim)
    for row in (math.floor(y - 0.5), math.floor(y - 0.5) + 1):
        for column in (math.floor(x - 0.5), math.floor(x - 0.5) + 1):
            if 0 <= row < height and 0 <= column < width:
                share = (1 - abs(y - 0.5 - row)) * (1 - abs(x - 0.5 - column))
                value += share * plane[row, column]
    return value


def attend_deformably(queries, memory, sizes, weights, num_heads, num_points):
    """(N, d) queries, one for each position of all levels, and (N, d) memory → (N, d).

    ``weights`` holds weight and bias of the four linear maps, by name.
    """

    def linear(name, values):
        return values @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]

    dim = memory.shape[1]
    values = linear("value_proj", memory)
    starts = np.cumsum([0, *(height * width for height, width in sizes)])
    output = np.zeros_like(memory)
    for level, (height, width) in enumerate(sizes):
        for position in range(height * width):
            index = starts[level] + position
            row, column = divmod(position, width)
            centre_x, centre_y = (column + 0.5) / width, (row + 0.5) / height
            offsets = linear("sampling_offsets", queries[index]).reshape(num_heads, len(sizes), num_points, 2)
            scores = np.exp(linear("attention_weights", queries[index]).reshape(num_heads, -1))
            shares = (scores / scores.sum(axis=1, keepdims=True)).reshape(num_heads, len(sizes), num_points)
            for head in range(num_heads):
                part = slice(head * dim // num_heads, (head + 1) * dim // num_heads)
                for other, (other_height, other_width) in enumerate(sizes):
                    plane = values[starts[other] : starts[other + 1], part].reshape(
                        other_height, other_width, -1
                    )
                    for point in range(num_points):
                        x_offset, y_offset = offsets[head, other, point]
                        sampled = sample_bilinearly(
                            plane, centre_x * other_width + x_offset, centre_y * other_height + y_offset
                        )
                        output[index, part] += shares[head, other, point] * sampled
    return linear("output_proj", output)
