"""Colours for classes that have none."""

import colorsys
from collections.abc import Sequence

Colour = tuple[int, int, int]
GOLDEN = 0.618033988749895
"""Steps of this length around the colour circle never come close to an earlier one."""


def distinct_colours(given: Sequence[Sequence[int]], number: int) -> tuple[Colour, ...]:
    """Return the first `number` colours of a palette, followed by others that differ where it is shorter."""
    colours = [(int(red), int(green), int(blue)) for red, green, blue in given[:number]]
    for index in range(len(colours), number):
        if index == 0:
            colours.append((40, 40, 40))
            continue
        red, green, blue = colorsys.hsv_to_rgb((index - 1) * GOLDEN % 1, 0.75, (0.95, 0.7)[index // 6 % 2])
        colours.append((round(255 * red), round(255 * green), round(255 * blue)))
    return tuple(colours)
