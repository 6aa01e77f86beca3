# R(2+1)D-18 (Tran et al. 2018). A recipe gives conv_cfg and norm_cfg.
# mid_channels_divisor=1 is the published network, torchvision's r2plus1d_18. Its widths between the factorised halves (45,
# 144, 230, 460, 921) have no 32 groups; rounded to multiples of 32 every norm runs the same network.
_base_ = './r3d-18.py'
model = dict(backbone=dict(factorize=True, mid_channels_divisor=32))
