"""The memory planned for a recipe is what its real steps take."""

import gc
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.optim import build_optim_wrapper
from mmengine.registry import DefaultScope
from torch.profiler import ProfilerActivity, profile

from wsbcn_mm.engine.memory.plan import (
    alternatives,
    batch_of,
    copies_of_test,
    evaluation_shape,
    own_choice,
    plan_recipe,
)
from wsbcn_mm.engine.recipe.batch_plan import plan_batch
from wsbcn_mm.engine.recipe.load import load_recipe
from wsbcn_mm.engine.recipe.model import build_model
from wsbcn_mm.layers import standardize_once
from wsbcn_mm.microbatch.memory_plan import KINDS, Choice
from wsbcn_mm.segmentation.evaluation.tta import use_tta

CONFIGS = Path(__file__).parents[3] / 'configs'


def recipe(pattern: str, *options: str) -> Config:
    (file,) = CONFIGS.glob(pattern)
    return load_recipe(str(file), options=options)


def allocator_peak(step):
    """Return the peak of bytes from torch's CPU allocator, temporary memory of operations included."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        step()
    events = [event for event in profiler.profiler.kineto_results.events() if event.name() == '[memory]']
    sizes = [event.nbytes() for event in sorted(events, key=lambda event: event.start_ns())]
    return int(np.cumsum(sizes).max())


def test_training_and_validation_of_a_recipe_take_the_planned_memory():
    cfg = recipe('tiny/deeplabv3_r18-tiny_bcn-ws_1xb1-acc1-*.py')
    plan = plan_recipe(cfg, on_gpu=False, with_alternatives=False)
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        model = build_model(cfg, 'cpu')
        wrapper = build_optim_wrapper(model, cfg.optim_wrapper)
        model.train()

        def step():
            model.train_step(batch_of((1, 3, 64, 64)), wrapper)

        step()
        gc.collect()
        state = [entry['momentum_buffer'] for entry in wrapper.optimizer.state.values()]
        there = sum(t.nbytes for t in [*model.parameters(), *model.buffers(), *state])
        assert plan.training.peak().total == pytest.approx(there + allocator_peak(step), rel=0.1)
        assert plan.training.peak().optimizer == sum(t.nbytes for t in state)

        model.eval()
        with torch.no_grad(), standardize_once(model):
            validation = allocator_peak(lambda: model.val_step(batch_of((1, 3, 64, 64))))
    assert plan.validation.peak().total == pytest.approx(there + validation, rel=0.1)
    assert plan.test.peak().total == plan.validation.peak().total - sum(t.nbytes for t in state)
    assert set(plan.choices) == {plan.own}


def test_gradients_of_an_accumulation_and_kept_filters_are_planned():
    options = 'activation_memory=full_checkpoint'
    one, many = (
        plan_recipe(recipe(f'tiny/r3d-18-tiny_gn-ws_1xb1-{n}-*.py', options), with_alternatives=False).training
        for n in ('acc1', 'acc16')
    )
    gradients = one.peak('optimizer').gradients
    assert one.peak('forward').gradients == 0
    assert many.peak('forward').gradients == gradients > 0
    kept = KINDS.index('activations')
    assert many.bytes[kept].min() > one.bytes[kept].min() + 0.9 * gradients  # filters are most of the weights


def test_sixteen_bits_are_planned_as_cuda_runs_them():
    amp = ['optim_wrapper.type=AmpOptimWrapper', 'optim_wrapper.loss_scale=dynamic', 'optim_wrapper.dtype=bfloat16']

    def activations(norm, *options):
        larger = 'model.data_preprocessor.size=(192,192)'
        cfg = recipe(f'tiny/deeplabv3_r18-tiny_{norm}_1xb1-acc1-*.py', larger, *options)
        plan = plan_recipe(cfg, with_alternatives=False)
        return plan.own.precision, plan.training.peak('forward').activations

    (fp32, wide), (bf16, narrow) = activations('bn'), activations('bn', *amp)
    assert (fp32, bf16) == ('fp32', 'bf16')
    assert narrow < 0.8 * wide
    # Group normalisation copies its 16-bit input to float32 and returns float32.
    assert activations('gn', *amp)[1] > 1.2 * narrow
    assert activations('gn', *amp, 'activation_memory=full_checkpoint')[1] < narrow


def test_shapes_and_choices_of_recipes():
    images = recipe('deeplabv3/deeplabv3_r50-d8_bcn-ws_1xb1-acc8-80k_cityscapes-512x1024.py')
    plan_batch(images, 1, per_device=2)
    assert evaluation_shape(images, 'val') == (1, 3, 1024, 2048)
    clips = recipe('resnet3d/slowonly-r50_bcn-ws_1xb1-acc64-132k_sthv2-*.py')
    assert evaluation_shape(clips, 'val') == (1, 1, 3, 8, 224, 224)
    assert evaluation_shape(clips, 'test') == (1, 6, 3, 8, 256, 256)
    assert evaluation_shape(recipe('tiny/deeplabv3_r18-tiny_bn_1xb1-acc1-*.py'), 'test') == (1, 3, 64, 64)

    use_tta(images, [0.5, 1.75])
    averaging, copies = copies_of_test(images)
    assert averaging == dict(type='MeanProbability')
    assert copies == [(512, 1024)] * 2 + [(1792, 3584)] * 2
    assert evaluation_shape(images, 'test') == (1, 3, 1792, 3584)
    assert evaluation_shape(images, 'val') == (1, 3, 1024, 2048)
    tiny = recipe('tiny/deeplabv3_r18-tiny_bn_1xb1-acc1-*.py')
    assert copies_of_test(tiny) is None
    use_tta(tiny, [1.0, 1.5], flip=False)
    assert copies_of_test(tiny)[1] == [(64, 64), (96, 96)]

    own = own_choice(images)
    assert own == Choice(2, 'all', 'fp32')
    assert len({own, *alternatives(own)}) == 12
    images.optim_wrapper.type = 'AmpOptimWrapper'
    assert own_choice(images).precision == 'fp16'
    assert len({own_choice(images), *alternatives(own_choice(images))}) == 13
    images.optim_wrapper.type = 'Bf16OptimWrapper'
    assert own_choice(images).precision == 'bf16'
