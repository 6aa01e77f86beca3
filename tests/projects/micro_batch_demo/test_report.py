"""The demo's report on made-up records: nothing is dropped, means are right, the page is self-contained."""

import io
import json
import re
from dataclasses import replace

import cv2
import numpy as np
import pytest
from rich.console import Console

from projects.micro_batch_demo import figures, records, report
from projects.micro_batch_demo.records import RunRecord


def made_up(task, norm, per_device, accumulation, seed, metric, failure=None):
    """A record with curves that rise and fall as learning does."""
    rng = np.random.default_rng([seed, per_device, accumulation, len(norm)])
    samples = np.arange(0, 4001, 400)
    rise = (metric or 5) * (1 - np.exp(-samples / 1200)) + rng.normal(0, 0.5, len(samples))
    x = np.arange(16, 4001, 16)
    loss = 2.2 * np.exp(-x * (metric or 5) / 60000) + rng.normal(0, 0.2, len(x))
    stop = 4 if failure else None
    return RunRecord(
        task=task,
        norm=norm,
        per_device=per_device,
        accumulation=accumulation,
        seed=seed,
        metric_name={'segmentation': 'mIoU', 'video': 'top-1'}[task],
        metric=None if failure else metric,
        train_seconds=None if failure else 60.0 + seed,
        peak_memory_mib=None if failure else 700.0 + 10 * per_device,
        samples_seen=None if failure else 4000,
        optimizer_steps=None if failure else 4000 // (per_device * accumulation),
        metric_curve=tuple(zip(samples.tolist(), rise.tolist(), strict=True))[:stop],
        loss_curve=tuple(zip(x.tolist(), loss.tolist(), strict=True))[:stop],
        work_dir=f'work/{task}/{norm}/{seed}',
        failure=failure,
    )


def all_records(seeds=(0, 1, 2)):
    levels = {'bn': 7.0, 'gn': 20.0, 'gn-ws': 26.0, 'bcn-ws': 28.0}
    runs = []
    for task, factor in (('segmentation', 1.0), ('video', 2.0)):
        for seed in seeds:
            runs += [made_up(task, norm, 1, 1, seed, factor * level + seed) for norm, level in levels.items()]
            runs += [made_up(task, norm, 1, 16, seed, 0.9 * factor * level + seed) for norm, level in levels.items()]
            runs.append(made_up(task, 'bn', 16, 1, seed, 23 * factor + seed))
    return runs


def with_failures():
    runs = all_records()
    runs[0] = made_up('segmentation', 'bn', 1, 1, 0, None, failure='loss is nan at step 812')
    return [made_up(r.task, 'gn', 1, 16, r.seed, None, 'killed <no memory>') if is_gn_16(r) else r for r in runs]


def is_gn_16(run):
    return run.task == 'video' and run.norm == 'gn' and run.accumulation == 16


def test_summary_is_mean_and_sample_deviation_over_good_seeds():
    summary = {(s.task, s.norm, s.per_device, s.accumulation): s for s in records.summarize(with_failures())}
    bcn = summary['segmentation', 'bcn-ws', 1, 1]
    assert (bcn.metric_mean, bcn.metric_std, bcn.seeds, bcn.failed) == (29.0, 1.0, 3, 0)
    assert (bcn.samples_seen, bcn.optimizer_steps, bcn.train_seconds) == (4000, 4000, 61.0)
    bn = summary['segmentation', 'bn', 1, 1]
    assert (bn.metric_mean, bn.seeds, bn.failed) == (8.5, 3, 1)
    gn = summary['video', 'gn', 1, 16]
    assert (gn.metric_mean, gn.metric_std, gn.failed) == (None, None, 3)


def test_blocks_put_one_sample_first_and_the_real_batch_last():
    one, sixteen = report.table_blocks(with_failures())
    assert one.title == 'One sample per step'
    assert sixteen.title == 'Same global batch of 16: 16 x 1 accumulated beside a real batch of 16'
    assert one.header == (
        'norm',
        'batch',
        'mIoU (%)',
        'top-1 (%)',
        'train time (segmentation / video)',
        'peak memory (segmentation / video)',
    )
    assert [row[0].text for row in one.rows] == ['bn', 'gn', 'gn-ws', 'bcn-ws']
    assert [row[1].text for row in sixteen.rows] == ['16 x 1 accumulated'] * 4 + ['16 at once']
    assert one.rows[0][2].text == '8.5 ± 0.7 (1 of 3 seeds failed)'
    assert sixteen.rows[1][3] == report.Cell('failed (3 of 3 seeds)', 'failed')
    assert one.rows[3][2] == report.Cell('29.0 ± 1.0', 'best')
    assert [row[2].kind for row in one.rows] == ['', '', '', 'best']
    assert one.notes[0] == 'segmentation: 4,000 samples seen, 4,000 optimizer steps'
    assert sixteen.notes[1] == 'video: 4,000 samples seen, 250 optimizer steps'


def test_runs_of_different_length_are_called_not_comparable():
    runs = [made_up('video', 'bn', 1, 1, 0, 30.0), replace(made_up('video', 'gn', 1, 1, 0, 40.0), samples_seen=2000)]
    (block,) = report.table_blocks(runs)
    assert block.notes == (
        'video: not comparable, the runs differ in length (bn 1 per step 4,000 samples and 4,000 steps, '
        'gn 1 per step 2,000 samples and 4,000 steps)',
    )


def test_a_setting_one_task_lacks_says_not_run():
    runs = [
        made_up('segmentation', 'bn', 1, 1, 0, 8.0),
        made_up('segmentation', 'gn', 1, 1, 0, 9.0),
        made_up('video', 'bn', 1, 1, 0, 30.0),
    ]
    (block,) = report.table_blocks(runs)
    assert [cell.text for cell in block.rows[1]] == ['gn', '1 per step', '9.0', 'not run', '60 / - s', '710 / - MiB']
    assert report.seeds_note(runs) == 'One seed per row: differences of a few points may be chance.'


def test_a_metric_that_is_missing_or_not_finite_is_a_failure():
    base = made_up('video', 'gn', 1, 1, 0, 40.0)
    assert base.reason is None
    assert replace(base, metric=None).reason == 'no top-1 was measured'
    assert replace(base, metric=float('nan')).reason == 'top-1 is nan'
    assert report.failures([replace(base, metric=None)]) == ['video gn 1 per step, seed 0: no top-1 was measured']


def test_json_and_csv_keep_everything(tmp_path):
    runs = with_failures()
    written = json.loads(records.save_json(runs, tmp_path / 'a/records.json').read_text())
    assert [records.record_from_dict(values) for values in written] == runs
    loaded = records.load_csv(records.save_csv(runs, tmp_path / 'b/results.csv'))
    assert loaded == [replace(run, metric_curve=(), loss_curve=()) for run in runs]
    lines = records.save_summary_csv(runs, tmp_path / 'summary.csv').read_text().splitlines()
    assert len(lines) == 1 + 18
    assert 'segmentation,bcn-ws,1,1,mIoU,3,0,29.0,1.0,61.0,710.0,4000,4000' in lines


@pytest.mark.parametrize(
    ('change', 'text'),
    [
        (lambda runs: [], 'no runs to report'),
        (lambda runs: runs[:1] * 2, 'the run segmentation bn 1 per step, seed 0 occurs twice'),
        (
            lambda runs: [runs[0], replace(runs[1], metric_name='mAcc')],
            'the segmentation runs have different metrics: mAcc, mIoU',
        ),
        (
            lambda runs: [runs[0], replace(runs[0], seed=1, samples_seen=10)],
            'segmentation bn 1 per step, seed 0 and its other seeds differ in length: samples seen [10, 4000], '
            'optimizer steps [4000]',
        ),
    ],
)
def test_records_that_do_not_fit_together_are_refused(change, text):
    with pytest.raises(ValueError) as caught:  # noqa: PT011 (the whole text is compared below)
        records.summarize(change(all_records(seeds=(0,))))
    assert str(caught.value) == text


def test_unknown_and_missing_fields_are_named():
    values = {'task': 'video', 'norm': 'bn', 'per_device': 1, 'accumulation': 1, 'seed': 0, 'metric_name': 'top-1'}
    assert records.record_from_dict(values).batch == 1
    with pytest.raises(ValueError, match=r'^unknown fields of a run: lr; the fields are accumulation, '):
        records.record_from_dict(values | {'lr': 0.1})
    del values['seed']
    with pytest.raises(ValueError, match=r'^missing fields of a run: seed$'):
        records.record_from_dict(values)
    with pytest.raises(ValueError, match=r"^task='audio': one of segmentation, video is expected$"):
        records.record_from_dict(values | {'seed': 0, 'task': 'audio'})


def test_a_table_is_regenerated_between_its_markers(tmp_path):
    table = records.save_csv(with_failures(), tmp_path / 'projects/demo/results.csv')
    readme = tmp_path / 'README.md'
    readme.write_text('before\n<!-- demo-table:start -->\nold\n<!-- demo-table:end -->\nafter\n')
    assert report.update_table(readme, table)
    text = readme.read_text()
    assert text.startswith('before\n<!-- demo-table:start -->\nGenerated from [`projects/demo/results.csv`]')
    assert text.endswith('\n<!-- demo-table:end -->\nafter\n')
    assert 'old' not in text
    assert '| bcn-ws | 1 per step | **29.0 ± 1.0** | **57.0 ± 1.0** | 61 / 61 s | 710 / 710 MiB |' in text
    assert '- segmentation bn 1 per step, seed 0: loss is nan at step 812' in text
    assert not report.update_table(readme, table), 'a second call changes nothing'
    assert report.update_table(readme, table, blocks=1)
    assert '| bcn-ws | 16 x 1 accumulated |' in text
    assert '| bcn-ws | 16 x 1 accumulated |' not in readme.read_text()


def test_report_writes_every_file_and_a_self_contained_page(tmp_path):
    sheet = tmp_path / 'overlay.png'
    cv2.imwrite(str(sheet), np.zeros((8, 8, 3), np.uint8))
    screen = io.StringIO()
    page = report.write_report(
        with_failures(),
        tmp_path / 'out',
        [report.Picture('Overlays', sheet, 'a & b')],
        about=['2 cores'],
        console=Console(file=screen, width=220),
    )
    assert sorted(path.name for path in page.parent.iterdir()) == [
        'curves_segmentation.png',
        'curves_video.png',
        'records.json',
        'report.html',
        'results.csv',
        'summary.csv',
    ]
    html = page.read_text()
    assert html.count('data:image/png;base64,') == 3
    assert not re.search(r'https?://|url\(|@import|<(link|script|iframe)', html)
    for text in (html, screen.getvalue()):
        assert '29.0 ± 1.0' in text
        assert 'segmentation bn 1 per step, seed 0: loss is nan at step 812' in text
    assert 'killed &lt;no memory&gt;' in html, 'reasons are escaped'


def test_spread_separates_labels_and_keeps_their_order():
    placed = figures.spread([1.0, 1.01, 0.99, 5.0], 0.5)
    assert np.argsort(placed).tolist() == [2, 0, 1, 3]
    assert (np.diff(np.sort(placed)) >= 0.5 - 1e-6).all()
    assert placed[3] == 5.0


def test_mean_curve_is_over_the_seeds_with_a_result(monkeypatch, tmp_path):
    drawn = []
    original = figures._mean_curve
    monkeypatch.setattr(figures, '_mean_curve', lambda curves: drawn.append(len(curves)) or original(curves))
    runs = [run for run in with_failures() if run.norm in ('bn', 'gn') and run.accumulation == 1 and run.batch == 1]
    figures.write_curves([run for run in runs if run.task == 'segmentation'], tmp_path / 'curves.png')
    assert drawn == [2, 3, 2, 3], 'metric and loss, bn without its failed seed, gn with all'
