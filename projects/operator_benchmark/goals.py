"""What the operators are meant to reach, as data, and whether measured rows reach it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from projects.csv_rows import write_rows
from projects.operator_benchmark.rows import PASSES, Row, Spread, find, ratios, spread

MIB = 2**20


@dataclass(frozen=True)
class Goal:
    """A side is to be at most `limit` times a baseline, or at most `limit` of its unit without one.

    Attributes:
        name: For people.
        device: 'cpu' or 'cuda'.
        section: Of the rows it judges.
        side: Of the rows it judges.
        baseline: Side it is compared with, None for an absolute limit.
        limit: Largest median ratio, or value, that reaches the goal.
        cases: Beginning of the cases it judges.
        at_least_bytes: Size of the smallest case it judges.
    """

    name: str
    device: str
    section: str
    side: str
    baseline: str | None
    limit: float
    cases: str = ''
    at_least_bytes: int = 0


GOALS = (
    Goal('BCN + ReLU, time / BatchNorm + ReLU', 'cpu', 'norm_relu', 'bcn', 'bn', 0.6),
    Goal('BCN + ReLU, time / plain composition', 'cpu', 'norm_relu', 'bcn', 'bcn_plain', 0.25),
    Goal('BCN + ReLU, saved for backward, in activations', 'cpu', 'norm_memory', 'bcn', None, 1.01),
    Goal(
        'WS of all ResNet-50 convolutions, time / plain formula',
        'cpu',
        'weights',
        'ws',
        'plain',
        1 / 3,
        cases='ResNet-50',
    ),
    Goal('DeepLabV3-R50 step, time / BN model', 'cpu', 'step', 'bcn-ws', 'bn', 1.0, cases='DeepLabV3-R50'),
    Goal('saving convolution outputs only, step time / BN model', 'cpu', 'step', 'bcn-ws-save-conv', 'bn', 1.1),
    Goal(
        'saving convolution outputs only, activation memory / BN model',
        'cpu',
        'step_memory',
        'bcn-ws-save-conv',
        'bn',
        0.6,
    ),
    Goal('BCN + ReLU, time / cuDNN BatchNorm + ReLU', 'cuda', 'norm_relu', 'bcn', 'bn', 1.0),
    # 80 % of the copy bandwidth: a copy moves 2 activations, BCN + ReLU and its backward PASSES.
    Goal('BCN + ReLU, time / copy', 'cuda', 'norm_relu', 'bcn', 'copy', PASSES / 2 / 0.8, at_least_bytes=64 * MIB),
    Goal('BCN + ReLU, saved for backward, in activations', 'cuda', 'norm_memory', 'bcn', None, 1.01),
    Goal('ResNet-50 step, time / BN model', 'cuda', 'step', 'bcn-ws', 'bn', 1.02, cases='ResNet-50'),
    Goal('R3D-50 step, time / BN model', 'cuda', 'step', 'bcn-ws', 'bn', 1.02, cases='R3D-50'),
)


@dataclass(frozen=True)
class Verdict:
    """A goal beside one case.

    Attributes:
        case: '' where nothing was measured that the goal judges.
        value: Spread of the ratio, or of the value; None where there is none.
        reached: By the median; None where there is no value.
        reason: Why there is no value.
    """

    goal: Goal
    case: str
    dtype: str
    layout: str
    value: Spread | None
    reached: bool | None
    reason: str


def judge(rows: Sequence[Row], goals: Sequence[Goal] = GOALS) -> list[Verdict]:
    """One verdict for every goal and case of the rows' device; a goal without a case says so."""
    devices = {row.environment.device for row in rows}
    verdicts: list[Verdict] = []
    for goal in (goal for goal in goals if goal.device in devices):
        judged = [
            row
            for row in rows
            if (row.section, row.side, row.environment.device) == (goal.section, goal.side, goal.device)
            and row.case.startswith(goal.cases)
            and row.size_bytes >= goal.at_least_bytes
        ]
        verdicts += [judge_row(goal, row, rows) for row in judged]
        if not judged:
            verdicts.append(Verdict(goal, '', '', '', None, None, 'not measured'))
    return verdicts


def judge_row(goal: Goal, row: Row, rows: Sequence[Row]) -> Verdict:
    """The verdict on one row."""
    value, reason = None, row.reason
    if row.samples and goal.baseline is None:
        value = spread(row.samples)
    elif row.samples:
        baseline = find(rows, row, goal.baseline or '')
        value = ratios(row, baseline) if baseline is not None else None
        if value is None:
            reason = f'{goal.baseline}: {baseline.reason if baseline is not None else "not measured"}'
    reached = None if value is None else value.median <= goal.limit
    return Verdict(goal, row.case, row.dtype, row.layout, value, reached, reason)


def word(verdict: Verdict) -> str:
    """'reached', 'not reached' or 'no value'."""
    return {True: 'reached', False: 'not reached', None: 'no value'}[verdict.reached]


COLUMNS = (
    *('goal', 'device', 'case', 'dtype', 'layout', 'side', 'baseline', 'limit'),
    *Spread._fields,
    *('verdict', 'reason'),
)


def save_verdicts(verdicts: Sequence[Verdict], path: Path) -> Path:
    """Write a line for each verdict."""
    lines = []
    for item in verdicts:
        goal = item.goal
        line = dict(goal=goal.name, device=goal.device, case=item.case, dtype=item.dtype, layout=item.layout)
        line |= dict(side=goal.side, baseline=goal.baseline or '', limit=f'{goal.limit:.4g}')
        line |= {name: '' if item.value is None else f'{getattr(item.value, name):.4g}' for name in Spread._fields}
        lines.append(line | dict(verdict=word(item), reason=item.reason))
    return write_rows(path, COLUMNS, lines)
