"""Norm policies, named as in recipes: which norm a model has, and which of its filters are standardised."""

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
    """Norm and convolutions that a model should have.

    Attributes:
        norm: Kind of every batch, group or batch-channel norm, as named by `wsbcn_mm.surgery.kinds.norm_kind`.
        ws: Whether convolutions that a norm follows have Weight Standardization; others never have it.
        ws_within: Name of the part of the model that WS is limited to; '' for the whole model.
    """

    norm: str
    ws: bool
    ws_within: str = ''

    def wants_ws(self, name: str) -> bool:
        """Return whether the convolution of this name, which a norm follows, should be standardised."""
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
"""Policies by name. The suffix `-backbone` on one with WS limits WS to the part named `backbone`."""

REPLACEABLE = ('BN', 'SyncBN', 'GN', 'BCN', 'BCN (batch)', 'BCN (sync)')
"""Kinds of norms that a policy applies to. LayerNorm and InstanceNorm normalise over other axes and are kept."""

UNKNOWN_STATISTICS = 'keeps running statistics, but is not a known norm'


def get_policy(name: str) -> Policy:
    """Look a policy up by name.

    Raises:
        ValueError: For an unknown name.
    """
    base = name.removesuffix(BACKBONE_SUFFIX)
    policy = POLICIES.get(base)
    if policy is None or (name != base and not policy.ws):
        raise ValueError(
            f'norm policy {name!r}: one of {", ".join(POLICIES)} is expected; the suffix {BACKBONE_SUFFIX} on one with '
            'ws limits WS to the backbone'
        )
    return policy if name == base else Policy(policy.norm, ws=True, ws_within='backbone')


def why_no_ws(name: str, conv: _ConvNd, seen: Trace | None, normalised: Container[str]) -> str | None:
    """Explain why Weight Standardization does not belong on a convolution; None if it does.

    Args:
        name: Name of the convolution.
        conv: The convolution.
        seen: Trace that `normalised` comes from; None if it comes from the order of modules.
        normalised: Names of the convolutions that a norm follows.
    """
    if name not in normalised:
        return f'no norm follows: {why_no_norm(name, seen)}'
    if fan_in(conv.weight, groups=conv.groups, transposed=conv.transposed) < 2:
        return 'fan-in 1: a filter of a single weight cannot be standardised'
    return None


def why_no_policy(norm: nn.Module) -> str | None:
    """Explain why no policy applies to a norm; None if policies do."""
    return None if norm_kind(norm) in REPLACEABLE else f'no policy applies to {type(norm).__name__}'


def grouped(reasons: Mapping[str, str]) -> list[str]:
    """Return one line per reason, with the names, or with their number and the first if there are many."""
    names: dict[str, list[str]] = {}
    for name, reason in reasons.items():
        names.setdefault(reason, []).append(name)
    return [
        f'{", ".join(who) if len(who) <= 3 else f"{len(who)} layers, {who[0]} first"}: {reason}'
        for reason, who in names.items()
    ]
