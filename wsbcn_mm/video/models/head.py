"""Classification head for clips."""

from typing import Any

import torch.nn.functional as F
from mmengine.model import BaseModule
from mmengine.registry import MODELS
from torch import Tensor, nn


@MODELS.register_module()
class ClipHead(BaseModule):
    """Mean over time and space, dropout and a linear layer, trained with cross-entropy.

    The linear layer is plain: Weight Standardization belongs before a norm, never in a classifier.

    Args:
        num_classes: Classes K.
        in_channels: Channels C of the features.
        dropout_ratio: Probability of dropping a feature in training.
        label_smoothing: Share of the target that is spread over all classes.
        init_std: Standard deviation of the initial weights; biases start at 0.

    Shape:
        (N, C, T, H, W) -> (N, K)

    Raises:
        ValueError: For a ratio outside [0, 1).
    """

    def __init__(
        self,
        num_classes: int,
        in_channels: int,
        dropout_ratio: float = 0.5,
        label_smoothing: float = 0.0,
        init_std: float = 0.01,
        init_cfg: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(init_cfg)
        for name, ratio in (('dropout_ratio', dropout_ratio), ('label_smoothing', label_smoothing)):
            if not 0 <= ratio < 1:
                raise ValueError(f'{name}={ratio}: a number in [0, 1) is expected')
        self.num_classes = num_classes
        self.in_channels = in_channels
        self.label_smoothing = label_smoothing
        self.dropout = nn.Dropout(dropout_ratio)
        self.fc = nn.Linear(in_channels, num_classes)
        nn.init.normal_(self.fc.weight, std=init_std)
        nn.init.zeros_(self.fc.bias)

    def forward(self, features: Tensor) -> Tensor:
        """Return the logits of every clip."""
        return self.fc(self.dropout(features.mean(dim=(2, 3, 4))))

    def loss(self, logits: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """Return the cross-entropy as `loss_cls`, and the batch's accuracy in percent for the log.

        Args:
            logits: (N, K).
            labels: (N,) class ids.
        """
        loss = F.cross_entropy(logits.float(), labels, label_smoothing=self.label_smoothing)
        top1 = (logits.detach().argmax(dim=1) == labels).float().mean() * 100
        return {'loss_cls': loss, 'top1_acc': top1}
