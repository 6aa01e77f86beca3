"""Sample of one clip: its label, its origin and, after the model, its scores."""

from mmengine.structures import BaseDataElement
from torch import Tensor


class ClipDataSample(BaseDataElement):
    """The annotation and the prediction of one clip.

    `PackClipInputs` sets the meta information: `path`; `sample_idx`, the position in the dataset, by which the metric
    counts every clip once; `frame_indices`, one list per temporal clip; `total_frames`; `fps`.

    Attributes:
        gt_label: () int64, the class id; `torch.stack([s.gt_label for s in data_samples])` has shape (N,).
        pred_score: (C,) float, one score per class, averaged over the views.
        pred_label: () int64, the class with the highest score.
    """

    gt_label: Tensor
    pred_score: Tensor
    pred_label: Tensor
