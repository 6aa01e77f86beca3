"""Group samples for one forward pass."""

from collections.abc import Callable, Hashable, Iterable, Iterator
from typing import TypeVar

T = TypeVar('T')


def batches(samples: Iterable[T], size: int, key: Callable[[T], Hashable]) -> Iterator[list[T]]:
    """Yield neighbouring samples of equal `key`, such as their shape, at most `size` at a time.

    Raises:
        ValueError: For a size below 1.
    """
    if size < 1:
        raise ValueError(f'batch_size={size}: at least 1 is expected')
    batch: list[T] = []
    for sample in samples:
        if batch and (len(batch) == size or key(sample) != key(batch[0])):
            yield batch
            batch = []
        batch.append(sample)
    if batch:
        yield batch
