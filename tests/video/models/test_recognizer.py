import re

import pytest
import torch
from mmengine.optim import OptimWrapper
from mmengine.registry import MODELS
from torch import Tensor, nn
from torch.nn import functional as F

import wsbcn_mm.video  # noqa: F401  registers the modules
from wsbcn_mm.diagnostics.allocations import Allocations
from wsbcn_mm.layers import BatchChannelNorm
from wsbcn_mm.video.data.samples import ClipDataSample
from wsbcn_mm.video.models.head import ClipHead
from wsbcn_mm.video.models.recognizer import Recognizer3d

NORMS = {
    'bn': {'type': 'BN3d'},
    'gn': {'type': 'GN', 'num_groups': 4},
    'bcn': {'type': 'BCN', 'num_groups': 4},
}


def build(norm: str = 'bcn', backbone: dict | None = None, head: dict | None = None, **kwargs) -> Recognizer3d:
    torch.manual_seed(0)
    conv = {'type': 'WSConv3d' if norm == 'bcn' else 'Conv3d'}
    return MODELS.build(
        {
            'type': 'Recognizer3d',
            'backbone': {
                'type': 'ResNet3d',
                'depth': 18,
                'base_channels': 8,
                'conv_cfg': conv,
                'norm_cfg': NORMS[norm],
                **(backbone or {}),
            },
            'head': {'type': 'ClipHead', 'num_classes': 5, 'in_channels': 64, **(head or {})},
            **kwargs,
        }
    )


def videos(n: int = 2, views: int = 1) -> Tensor:
    return torch.randn(n, views, 3, 4, 24, 24, generator=torch.Generator().manual_seed(1))


def samples(*labels: int) -> list[ClipDataSample]:
    return [ClipDataSample(gt_label=torch.tensor(label)) for label in labels]


def clips_per_forward(model: Recognizer3d) -> list[int]:
    seen: list[int] = []
    model.backbone.register_forward_pre_hook(lambda module, args: seen.append(len(args[0])))
    return seen


def test_loss_is_the_cross_entropy_of_every_clip():
    model = build(head={'dropout_ratio': 0.0}, norm='gn')
    x = videos(2, views=3)
    losses = model(x, samples(1, 4), mode='loss')
    logits = model(x)
    assert logits.shape == (2, 3, 5)
    expected = F.cross_entropy(logits.flatten(0, 1), torch.tensor([1, 1, 1, 4, 4, 4]))
    torch.testing.assert_close(losses['loss_cls'], expected)
    assert losses['top1_acc'] in [100 * k / 6 for k in range(7)]


def test_labels_may_have_one_element_instead_of_none():
    model = build(head={'dropout_ratio': 0.0}, norm='gn')
    one = model(videos(1), [ClipDataSample(gt_label=torch.tensor([3]))], mode='loss')
    torch.testing.assert_close(one, model(videos(1), samples(3), mode='loss'))


def test_prediction_averages_probabilities_over_views():
    model = build().eval()
    x = videos(2, views=4)
    with torch.no_grad():
        out = model(x, samples(0, 1), mode='predict')
        expected = model(x).softmax(dim=2).mean(dim=1)
    for sample, score in zip(out, expected, strict=True):
        torch.testing.assert_close(sample.pred_score, score)
        assert sample.pred_label.shape == ()
        assert sample.pred_label == score.argmax()
    assert [int(s.gt_label) for s in out] == [0, 1]


def test_prediction_can_average_scores():
    model = build(average_views='score').eval()
    x = videos(1, views=4)
    with torch.no_grad():
        (out,) = model(x, mode='predict')
        torch.testing.assert_close(out.pred_score, model(x).mean(dim=1).softmax(dim=1)[0])


@pytest.mark.parametrize('norm', NORMS)
@pytest.mark.parametrize('chunk', [1, 2, 4, 100])
def test_chunks_of_views_give_the_result_of_all_views_at_once(norm, chunk):
    whole, chunked = build(norm, max_test_views=None), build(norm, max_test_views=chunk)
    with torch.no_grad():
        whole.train()(videos(4))
        chunked.load_state_dict(whole.state_dict())
        x = videos(2, views=5)
        a = whole.eval()(x, mode='predict')
        b = chunked.eval()(x, mode='predict')
    torch.testing.assert_close([s.pred_score for s in a], [s.pred_score for s in b], rtol=1e-5, atol=1e-6)


def test_thirty_views_never_run_more_clips_at_once_than_training_does():
    model = build()
    seen = clips_per_forward(model)
    model(videos(2), samples(0, 1), mode='loss')
    training = max(seen)
    seen.clear()
    with torch.no_grad():
        model.eval()(videos(2, views=30), mode='predict')
    assert seen == [2] * 30
    assert max(seen) <= training


@torch.no_grad()
def test_thirty_views_are_averaged_in_the_memory_of_one():
    """Ten clips of three crops from a real pipeline: except for the view that runs, all are bytes."""
    model = build(data_preprocessor={'type': 'ClipDataPreprocessor'}).eval()
    clips = torch.randint(256, (30, 3, 4, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    peaks, scores = {}, {}
    for views in (1, 30):
        data = {'inputs': [clips[:views]], 'data_samples': samples(3)}
        with Allocations() as memory:
            (sample,) = model.test_step(data)
        peaks[views], scores[views] = memory.peak, sample.pred_score
    bytes_of_others = 29 * clips[0].numel()
    assert bytes_of_others <= peaks[30] - peaks[1] < 1.05 * bytes_of_others
    each = [model.test_step({'inputs': [clip[None]], 'data_samples': samples(3)})[0].pred_score for clip in clips]
    torch.testing.assert_close(scores[30], torch.stack(each).mean(0))
    assert (scores[30] - scores[1]).abs().max() > 1e-4


def test_max_test_views_bounds_the_views_of_one_forward():
    model = build(max_test_views=4).eval()
    seen = clips_per_forward(model)
    with torch.no_grad():
        model(videos(1, views=10), mode='predict')
    assert seen == [4, 4, 2]


def test_one_clip_trains_and_the_trained_model_classifies_it():
    model = build(head={'dropout_ratio': 0.0})
    optim = OptimWrapper(torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9))
    data = {'inputs': videos(1), 'data_samples': samples(3)}
    losses = [model.train().train_step(data, optim)['loss'].item() for _ in range(12)]
    assert losses[-1] < 0.2 < losses[0]
    with torch.no_grad():
        (out,) = model.eval().val_step(data)
    assert out.pred_label == 3


def test_runner_initialisation_keeps_the_zero_start_of_residual_branches():
    model = build(backbone={'zero_init_residual': True})
    model.init_weights()
    last = model.backbone.layer2[1].last_norm
    assert isinstance(last, BatchChannelNorm)
    assert last.group_weight.eq(0).all()


def test_pretrained_backbone_is_loaded_last(tmp_path):
    source = build().backbone
    with torch.no_grad():
        source.conv1.conv.weight.fill_(0.5)
    torch.save(source.state_dict(), tmp_path / 'backbone.pth')
    init = {'type': 'Pretrained', 'checkpoint': str(tmp_path / 'backbone.pth')}
    model = build(backbone={'init_cfg': init})
    model.init_weights()
    assert model.backbone.conv1.conv.weight.eq(0.5).all()


def test_label_smoothing_and_dropout_reach_the_loss():
    torch.manual_seed(0)
    head = ClipHead(num_classes=4, in_channels=8, dropout_ratio=0.5, label_smoothing=0.1)
    features, labels = torch.rand(3, 8, 2, 4, 4), torch.tensor([0, 1, 3])
    logits = head.eval()(features)
    torch.testing.assert_close(logits, head.fc(features.mean(dim=(2, 3, 4))))
    loss = head.loss(logits, labels)['loss_cls']
    smoothed = torch.full((3, 4), 0.1 / 4).scatter_add(1, labels[:, None], torch.full((3, 1), 0.9))
    torch.testing.assert_close(loss, -(smoothed * logits.log_softmax(1)).sum(1).mean())
    assert not torch.equal(head.train()(features), head(features))


def test_classifier_is_a_plain_linear_layer():
    head = build().head
    assert type(head.fc) is nn.Linear
    assert head.fc.bias.eq(0).all()
    assert head.fc.weight.std().item() == pytest.approx(0.01, rel=0.2)


@pytest.mark.parametrize(
    ('kwargs', 'message'),
    [
        ({'average_views': 'max'}, "average_views='max': one of prob, score is expected"),
        ({'max_test_views': 0}, 'max_test_views=0: at least 1, or None for all views, is expected'),
        ({'head': {'in_channels': 512}}, 'head.in_channels=512: 64, the channels of the backbone, is expected'),
        ({'head': {'dropout_ratio': 1.0}}, 'dropout_ratio=1.0: a number in [0, 1) is expected'),
    ],
)
def test_bad_arguments_are_named(kwargs, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        build(**kwargs)


def test_bad_inputs_are_named():
    model = build()
    text = 'inputs of shape (2, 3, 4, 24, 24): (N, V, C, T, H, W) is expected'
    with pytest.raises(ValueError, match=re.escape(text)):
        model(videos(2)[:, 0], mode='tensor')
    with pytest.raises(ValueError, match="mode='train': one of loss, predict, tensor is expected"):
        model(videos(1), mode='train')
    with pytest.raises(ValueError, match="mode='loss' needs 2 data_samples with a gt_label"):
        model(videos(2), [ClipDataSample(), ClipDataSample()], mode='loss')
