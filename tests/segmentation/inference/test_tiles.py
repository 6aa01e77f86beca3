"""Tiles that cover an image, whose blend is that of the whole image, and which leave no seam."""

from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from wsbcn_mm.segmentation.inference.tiles import blended, spans


@given(length=st.integers(1, 700), tile=st.integers(16, 256), share=st.floats(0, 0.5))
@settings(max_examples=150, deadline=None)
def test_weights_add_up_to_one_and_overlaps_are_at_least_as_asked(length, tile, share):
    overlap = max(4, int(tile * share))
    found = spans(length, tile, overlap)
    total = torch.zeros(length)
    for span in found:
        weights = span.weights()
        assert ((weights >= 0) & (weights <= 1)).all()
        total[span.start : span.stop] += weights
    torch.testing.assert_close(total, torch.ones(length))
    for left, right in pairwise(found):
        assert left.stop - right.start >= overlap
        first, last = right.fade_in
        assert first - right.start >= overlap // 4
        assert left.stop - last >= overlap // 4
    assert found[0].start == 0
    assert found[-1].stop == length
    assert all(span.stop - span.start <= tile for span in found)


def test_tiles_begin_at_multiples_of_32():
    assert [(span.start, span.stop) for span in spans(1000, 512, 128)] == [(0, 512), (384, 896), (512, 1000)]
    assert [(span.start, span.stop) for span in spans(300, 512, 128)] == [(0, 300)]


@pytest.mark.parametrize('overlap', [3, 129])
def test_an_overlap_that_does_not_fit_is_refused(overlap):
    with pytest.raises(ValueError, match=rf'^overlap={overlap} of tile=256: 4 to 128 pixels, half of the tile, are'):
        spans(1000, 256, overlap)


def whole(rows, columns, network, image, batch_size=1):
    """Logits of an image in tiles, (K, H, W), and the sizes of the batches."""
    sizes = []

    def predict(wanted):
        sizes.append(len(wanted))
        tiles = [image[:, row.start : row.stop, column.start : column.stop] for row, column in wanted]
        return list(network(torch.stack(tiles)))

    logits = torch.full((3, *image.shape[1:]), torch.nan)
    for part in blended(rows, columns, predict, batch_size):
        here = logits[:, part.top : part.top + part.logits.shape[1], part.left : part.left + part.logits.shape[2]]
        assert here.isnan().all()
        here.copy_(part.logits)
    return logits, sizes


@pytest.fixture
def network():
    """Two strided and two plain convolutions and upsampling: no pixel looks further than 24 others."""
    torch.manual_seed(0)
    layers = torch.nn.Sequential(
        *(torch.nn.Conv2d(3, 8, 3, 2, 1), torch.nn.ReLU(), torch.nn.Conv2d(8, 8, 3, 2, 1), torch.nn.ReLU()),
        *(torch.nn.Conv2d(8, 8, 3, 1, 1), torch.nn.ReLU(), torch.nn.Conv2d(8, 3, 3, 1, 1)),
    )

    def run(images):
        with torch.no_grad():
            return F.interpolate(layers(images), images.shape[2:], mode='bilinear')

    return run


@pytest.mark.parametrize('size', [(352, 480), (128, 416), (96, 96)])
@pytest.mark.parametrize('batch_size', [1, 3])
def test_tiles_give_what_the_whole_image_gives_where_the_network_looks_no_further(network, size, batch_size):
    image = torch.randn(3, *size)
    rows, columns = (spans(side, 192, 96) for side in size)
    logits, sizes = whole(rows, columns, network, image, batch_size)
    expected = network(image[None])[0]
    torch.testing.assert_close(logits, expected, atol=1e-5, rtol=0)
    assert torch.equal(logits.argmax(0), expected.argmax(0))
    assert sum(sizes) == len(rows) * len(columns)
    assert max(sizes) == min(batch_size, len(columns))


def test_no_seam_is_left_where_tiles_disagree():
    """A network with an offset that depends on the tile, as norms with live statistics have."""
    generator = torch.Generator().manual_seed(0)

    def disagreeing(images):
        return torch.randn(len(images), 3, 1, 1, generator=generator).expand(-1, -1, *images.shape[2:])

    rows, columns = spans(512, 192, 64), spans(640, 192, 64)
    logits, _ = whole(rows, columns, disagreeing, torch.zeros(3, 512, 640))
    steps = [logits.diff(dim=dim).abs().max() for dim in (1, 2)]
    offsets = logits.amax((1, 2)) - logits.amin((1, 2))
    assert offsets.max() > 2
    # The blend spreads a step over half of the overlap.
    assert max(steps) < 1.01 * offsets.max() / 32
