"""Small networks whose BatchNorm layers have seen data."""

import torch
from torch import nn

from wsbcn_mm.ops import weight_standardize

CONVS = {
    '1d': (lambda: nn.Conv1d(3, 8, 3, padding=1), (4, 3, 9)),
    '2d': (lambda: nn.Conv2d(3, 8, 3, stride=2, padding=2, dilation=2, bias=False), (4, 3, 9, 11)),
    '2d, groups': (lambda: nn.Conv2d(4, 8, (3, 2), padding=1, groups=2, padding_mode='circular'), (4, 4, 6, 7)),
    '3d': (lambda: nn.Conv3d(2, 8, (1, 3, 3), padding=(0, 1, 1), bias=False), (3, 2, 3, 6, 5)),
    'transposed': (lambda: nn.ConvTranspose2d(3, 8, 3, stride=2, output_padding=1, bias=False), (3, 3, 5, 4)),
    'transposed, groups': (lambda: nn.ConvTranspose3d(4, 8, 2, groups=2), (3, 4, 2, 3, 3)),
}
NORMS = {3: nn.BatchNorm1d, 4: nn.BatchNorm2d, 5: nn.BatchNorm3d}


def one_layer(kind: str, *, centred: bool = False) -> tuple[nn.Sequential, torch.Tensor]:
    """A convolution, a BatchNorm and inputs in float64. Some channels are so weak that eps dominates their norm."""
    torch.manual_seed(0)
    build, shape = CONVS[kind]
    conv = build()
    net, x = nn.Sequential(conv, NORMS[len(shape)](8)).double(), torch.rand(shape).double()
    with torch.no_grad():
        if centred:
            conv.weight.copy_(0.1 * weight_standardize(conv.weight, groups=conv.groups, transposed=conv.transposed))
        weak = conv.weight[:, 0] if conv.transposed else conv.weight[0]
        weak.mul_(3e-3)
    return train_statistics(net, x), x


def train_statistics(net: nn.Module, x: torch.Tensor) -> nn.Module:
    """Train the norms' statistics on inputs, randomise their affine, and switch to evaluation mode."""
    norms = [module for module in net.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    for norm in norms:
        nn.init.uniform_(norm.weight, 0.5, 1.5)
        nn.init.normal_(norm.bias)
        norm.momentum = None  # an average over all batches, without the initial 0 and 1
    net.train()
    with torch.no_grad():
        for _ in range(6):
            net(x + 0.1 * torch.rand_like(x))
    for norm in norms:
        norm.momentum = 0.1
    return net.eval()


class Branches(nn.Module):
    """A small residual network: norms in a row and side by side, and a new head."""

    def __init__(self, conv=nn.Conv2d, norm=nn.BatchNorm2d) -> None:
        super().__init__()
        self.conv1, self.bn1 = conv(3, 8, 3, bias=False), norm(8)
        self.conv2, self.bn2 = conv(8, 8, 3, padding=1, bias=False), norm(8)
        self.short, self.bn3 = conv(8, 8, 1), norm(8)
        self.head, self.bn4 = conv(8, 4, 3), norm(4)
        self.out = nn.Conv2d(4, 2, 1)

    def features(self, x):
        x = self.bn1(self.conv1(x)).relu()
        return (self.bn2(self.conv2(x)) + self.bn3(self.short(x))).relu()

    def forward(self, x):
        return self.out(self.bn4(self.head(self.features(x))).relu())


def trained_branches(*, new_head: bool = False) -> tuple[Branches, torch.Tensor]:
    torch.manual_seed(0)
    net, x = Branches(), torch.rand(4, 3, 9, 10)
    train_statistics(net, x)
    if new_head:
        net.bn4 = nn.BatchNorm2d(4)
    return net.eval(), x
