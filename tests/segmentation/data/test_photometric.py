import numpy as np
from mmseg.datasets.transforms import PhotoMetricDistortion

from tests.segmentation.pictures import textured
from wsbcn_mm.segmentation import PhotoMetricDistortionByTable


def test_distortion_by_table_is_mmsegs_bit_for_bit() -> None:
    image = textured(40, 50)
    stock, ours = PhotoMetricDistortion(), PhotoMetricDistortionByTable()
    changed = 0
    for seed in range(60):
        np.random.seed(seed)
        expected = stock(dict(img=image.copy()))['img']
        state = np.random.get_state()[1].tolist()
        np.random.seed(seed)
        found = ours(dict(img=image.copy()))['img']
        assert np.random.get_state()[1].tolist() == state, 'other random numbers were drawn'
        np.testing.assert_array_equal(found, expected)
        changed += not np.array_equal(found, image)
    assert changed > 40
