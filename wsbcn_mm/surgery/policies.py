"""Norm policies, by the names that recipes have: which norm a model has, and which of its filters are standardised."""

from collections.abc import Container, Mapping
from dataclasses import dataclass

from torch import nn
from torch.nn.modules.conv import _ConvNd

from ..ops.ws.weight_standardization import fan_in
from .kinds import norm_kind
from .trace import Trace, why_no_norm

BACKBONE_SUFFIX = '-backbone'


@dataclass(frozen=True)
class Policy:
    """What the layers of a model shall be.

    Attributes:
        norm: Kind of every batch, group or batch-channel norm, as `wsbcn_mm.surgery.kinds.norm_kind` names it.
        ws: Whether Weight Standardization is on the convolutions that a norm follows; never on others.
        ws_within: Name of the part of the model that WS is confined to; '' for all of it.
    """

    norm: str
    ws: bool
    ws_within: str = ''

    def wants_ws(self, name: str) -> bool:
        """Whether the convolution of this name, which a norm follows, shall be standardised."""
        return self.ws and (not self.ws_within or f'{name}.'.startswith(f'{self.ws_within}.'))


POLICIES = {
    'bn': Policy('BN', ws=False),
    'syncbn': Policy('SyncBN', ws=False),
    'gn': Policy('GN', ws=False),
    'gn-ws': Policy('GN', ws=True),
    'bn-ws': Policy('BN', ws=True),
    'bcn': Policy('BCN', ws=False),
    'bcn-ws': Policy('BCN', ws=True),
    'bcnsync-ws': Policy('BCN (sync)', ws=True),
}
"""By name; `-backbone` after the name of one with WS confines WS to the part called `backbone`."""

REPLACEABLE = ('BN', 'SyncBN', 'GN', 'BCN', 'BCN (batch)', 'BCN (sync)')
"""Kinds of norms that a policy concerns. LayerNorm and InstanceNorm normalise something else and stay."""

UNKNOWN_STATISTICS = 'keeps running statistics, but is no norm known here'


def get_policy(name: str) -> Policy:
    """Look a policy up by name.

    Raises:
        ValueError: For an unknown name.
    """
    base = name.removesuffix(BACKBONE_SUFFIX)
    policy = POLICIES.get(base)
    if policy is None or (name != base and not policy.ws):
        raise ValueError(
            f'norm policy {name!r} is unknown: choose one of {", ".join(POLICIES)}; '
            f'{BACKBONE_SUFFIX} after one with ws confines WS to the backbone'
        )
    return policy if name == base else Policy(policy.norm, ws=True, ws_within='backbone')


def why_no_ws(name: str, conv: _ConvNd, seen: Trace | None, normalised: Container[str]) -> str | None:
    """Why Weight Standardization does not belong on a convolution, None if it does.

    Args:
        name: Of the convolution.
        conv: The convolution.
        seen: Where `normalised` comes from; None for the order of modules.
        normalised: Names of the convolutions that a norm follows.
    """
    if name not in normalised:
        return f'no norm follows: {why_no_norm(name, seen)}'
    if fan_in(conv.weight, groups=conv.groups, transposed=conv.transposed) < 2:
        return 'fan-in 1: a filter of a single weight cannot be standardised'
    return None


def why_no_policy(norm: nn.Module) -> str | None:
    """Why no policy concerns a norm, None if they do."""
    return None if norm_kind(norm) in REPLACEABLE else f'no policy concerns a {type(norm).__name__}'


def grouped(reasons: Mapping[str, str]) -> list[str]:
    """One line for each reason that names have: the names, or where they are many their number and the first."""
    names: dict[str, list[str]] = {}
    for name, reason in reasons.items():
        names.setdefault(reason, []).append(name)
    return [
        f'{", ".join(who) if len(who) <= 3 else f"{len(who)} layers, {who[0]} first"}: {reason}'
        for reason, who in names.items()
    ]
