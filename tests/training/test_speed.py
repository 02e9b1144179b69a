"""Speed changes nothing of what a run computes but rounding, and is gone when the run has ended."""

import pytest
import torch
from training_run import go, network

import timm_stitch

RUN = {"epochs": 1, "batch_size": 16, "lr": 1e-3, "double": True, "stitches": 2}


@pytest.mark.parametrize(
    "fields",
    [{"grad_checkpointing": True}, {"channels_last": True}, {"fused": False}, {"tf32": True}],
    ids=lambda fields: next(iter(fields)),
)
def test_a_faster_run_computes_the_same(fields):
    plain, _ = go(RUN)
    fast, _ = go(RUN | fields)
    for name, tensor in plain.state_dict().items():
        torch.testing.assert_close(fast.state_dict()[name], tensor, rtol=0, atol=1e-9)
    assert not fast.grad_checkpointing
    assert torch.get_float32_matmul_precision() == "highest"


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The .grad attribute")  # of torch.compile itself
def test_a_compiled_run_computes_the_same_and_leaves_a_plain_network():
    values = RUN | {"batch_size": 32, "images": 64, "depth": 2, "ema_decay": 0.5, "evaluate_every": 1}
    plain, _ = go(values)
    torch._dynamo.reset()
    counter = torch._dynamo.utils.counters
    counter.clear()
    fast, _ = go(values | {"compile": True})
    assert counter["stats"]["unique_graphs"] > 0
    assert all(module._compiled_call_impl is None for module in fast.modules())
    for name, tensor in plain.state_dict().items():
        torch.testing.assert_close(fast.state_dict()[name], tensor, rtol=0, atol=1e-9)


@pytest.mark.filterwarnings("ignore:The .grad attribute")
def test_compiled_graphs_do_not_depend_on_which_stitch_came_first(monkeypatch):
    """An interrupted run ends with the weights of one that was not: `benchmarks/robustness/resume.py --compile`."""
    graphs, compile_module = [], torch.nn.Module.compile

    def record(graph, inputs):
        graphs.append(any(not isinstance(value, torch.Tensor) or value.ndim == 0 for value in inputs))
        return graph.forward

    monkeypatch.setattr(torch.nn.Module, "compile", lambda self, **given: compile_module(self, backend=record, **given))
    torch._dynamo.reset()
    go({"epochs": 1, "batch_size": 16, "lr": 1e-3, "compile": True, "sampling": "anchors", "drop_path": 0.2})
    torch._dynamo.reset()
    assert len(graphs) >= 3  # anchors
    assert not any(graphs)


def test_activations_are_recomputed_where_that_is_asked(monkeypatch):
    calls = []
    recompute = "timm_stitch.anchors.block_view.recompute"
    monkeypatch.setattr(recompute, lambda module, h: calls.append(module) or module(h))
    go(RUN | {"grad_checkpointing": True, "max_steps": 1})
    assert calls


def test_images_and_convolutions_lie_channels_last(monkeypatch):
    seen = []
    model = network()
    model.anchors[0].patch_embed.proj.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    config = timm_stitch.TrainConfig(
        epochs=1, batch_size=8, channels_last=True, mixup=0, cutmix=0, workers=0, trackers=None, warmup_epochs=0,
        sampling="anchors",
    )  # fmt: skip
    data = torch.utils.data.TensorDataset(torch.randn(8, 3, 32, 32), torch.arange(8))
    timm_stitch.train(model, config, train_data=data, progress=False)
    assert seen
    assert all(x.is_contiguous(memory_format=torch.channels_last) for x in seen)


def test_an_optimizer_without_a_fused_form_is_refused():
    with pytest.raises(ValueError, match=r"opt must be .* with fused=True, got 'lamb': set fused=False"):
        go(RUN | {"opt": "lamb", "fused": True})


def test_momentum_is_not_fused_where_steps_use_different_parameters():
    _, log = go({"epochs": 2, "batch_size": 8, "opt": "momentum", "lr": 1e-3})
    assert log["steps"] == 16
