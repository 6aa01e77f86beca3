"""How long collectives take on p ranks, by the alpha-beta model: alpha seconds per message, beta seconds per byte.

The formulas are the usual ones (Thakur, Rabenseifner, Gropp, 2005). A ring takes p - 1 rounds for an all-gather and
twice as many for an all-reduce; trees and recursive doubling take log2 p and twice that; both send the same bytes.
"""

from __future__ import annotations

from math import log2
from typing import NamedTuple


class Network(NamedTuple):
    """Between any two ranks."""

    alpha: float = 5e-6
    """Seconds until a message arrives, however short: a kernel's start and a hop through one switch."""
    beta: float = 1 / 12.5e9
    """Seconds per byte: 100 Gbit/s."""


ALGORITHMS = ('ring', 'tree')


def seconds(kind: str, calls: int, sent: int, ranks: int, algorithm: str, network: Network) -> float:
    """Time of `calls` collectives one after the other that together take `sent` bytes from each rank.

    Raises:
        ValueError: For an unknown collective or algorithm.
    """
    if kind not in ('all_reduce', 'all_gather') or algorithm not in ALGORITHMS:
        raise ValueError(
            f'kind={kind!r}, algorithm={algorithm!r}: all_reduce or all_gather by ring or tree is expected'
        )
    rounds = ranks - 1 if algorithm == 'ring' else log2(ranks)
    if kind == 'all_gather':
        return calls * rounds * network.alpha + sent * (ranks - 1) * network.beta
    return 2 * calls * rounds * network.alpha + 2 * sent * (ranks - 1) / ranks * network.beta
