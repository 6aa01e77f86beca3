# R(2+1)D (Tran et al. 2018). The recipe sets the depth, 18 or 34, conv_cfg and norm_cfg.
# mid_channels_divisor=1 is the published network, at depth 18 torchvision's r2plus1d_18. 32 groups do not divide its
# widths between the factorised halves (45, 144, 230, 460, 921); rounded to multiples of 32, all norms run the same
# network.
_base_ = './r3d.py'
model = dict(backbone=dict(factorize=True, mid_channels_divisor=32))
