"""What every stitched network promises, of whatever family its anchors are: `tiny.NETWORKS` lists them.

A new family adds its makers to that list, and every test here holds for it.
"""

from __future__ import annotations

import copy
import pickle
import threading
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tiny import NETWORKS, TRANSFORMERS_NETWORKS, Network, first_of, images, rows_of, run
from torch import nn
from torchvision.models import ResNet
from torchvision.models.resnet import BasicBlock
from torchvision_family import TorchvisionFamily

import timm_stitch
from timm_stitch.families import registry

pytestmark = pytest.mark.filterwarnings("ignore:the anchors were trained on images normalised differently")


def _torchvision_resnets() -> list[nn.Module]:
    torch.manual_seed(0)
    return [ResNet(BasicBlock, depths, num_classes=5).eval() for depths in ([1, 1, 1, 1], [1, 2, 1, 2])]


NETWORKS = NETWORKS | {"a third family": Network(_torchvision_resnets, lambda: images(4, 64), timm_stitch.from_hub)}


class Stitched:
    """A network with the anchors it is made of, a batch, and what the anchors give for it before they are stitched."""

    def __init__(self, name: str) -> None:
        kind = NETWORKS[name]
        self.anchors, self.batch, self.load = kind.anchors(), kind.batch(), kind.load
        self.states = [{key: value.clone() for key, value in a.state_dict().items()} for a in self.anchors]
        with torch.no_grad():
            self.expected = [run(anchor, self.batch) for anchor in self.anchors]
        torch.manual_seed(0)
        self.network: Any = timm_stitch.stitch(self.anchors, **kind.options).eval()
        self.is_wrapped = kind.wrap is not None
        if kind.wrap is not None:
            self.network = kind.wrap(self.network).eval()
        self.anchor_ids = [self.network.plan.anchor_id(n) for n in range(len(self.anchors))]
        self.stitched_ids = [k for k in self.network.stitch_ids if k not in self.anchor_ids]

    def run(self, network: nn.Module | None = None, **more: Any) -> torch.Tensor:
        return run(self.network if network is None else network, self.batch, **more)


@pytest.fixture(scope="module", params=NETWORKS)
def stitched(request: pytest.FixtureRequest) -> Iterator[Stitched]:
    if request.param in TRANSFORMERS_NETWORKS:
        pytest.importorskip("transformers", minversion="5.20")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(registry, "_FAMILIES", list(registry._FAMILIES))
        if request.param == "a third family":
            registry.register_family(TorchvisionFamily())
        yield Stitched(request.param)


@pytest.fixture
def of_models(stitched: Stitched) -> None:
    """Skip networks whose output is no anchor's own."""
    if stitched.is_wrapped:
        pytest.skip("its anchors alone do not give its output")


@pytest.fixture
def changed(stitched: Stitched) -> Stitched:
    """A copy whose network may be changed."""
    own = copy.copy(stitched)
    own.network = copy.deepcopy(stitched.network)
    return own


@pytest.fixture(scope="module")
def folder(stitched: Stitched, tmp_path_factory: pytest.TempPathFactory) -> Any:
    return timm_stitch.save_pretrained(stitched.network, tmp_path_factory.mktemp("saved") / "net")


# ── calls ─────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.usefixtures("of_models")
@torch.no_grad()
def test_an_anchors_stitch_equals_the_model_which_stays_as_it_was(stitched: Stitched) -> None:
    for number, anchor in enumerate(stitched.anchors):
        assert torch.equal(stitched.run(stitch_id=stitched.anchor_ids[number]), stitched.expected[number])
        assert torch.equal(stitched.run(anchor), stitched.expected[number])
        assert stitched.network.anchors[number] is anchor
        assert list(anchor.state_dict()) == list(stitched.states[number])
        assert all(torch.equal(value, stitched.states[number][key]) for key, value in anchor.state_dict().items())


@torch.no_grad()
def test_forward_each_equals_a_call_for_each(stitched: Stitched) -> None:
    outputs = dict(stitched.network.forward_each(stitched.batch))
    assert set(outputs) == set(stitched.network.stitch_ids)
    for k, out in outputs.items():
        assert torch.equal(first_of(out), stitched.run(stitch_id=k))


@torch.no_grad()
def test_one_id_a_row_equals_each_row_alone(stitched: Stitched) -> None:
    first, last = stitched.stitched_ids[0], stitched.stitched_ids[-1]
    ids = [last, stitched.anchor_ids[1], last, first]
    alone = [run(stitched.network, rows_of(stitched.batch, slice(i, i + 1)), stitch_id=k) for i, k in enumerate(ids)]
    for given in (ids, tuple(ids), torch.tensor(ids)):
        torch.testing.assert_close(stitched.run(stitch_id=given), torch.cat(alone), rtol=0, atol=1e-5)


@torch.no_grad()
def test_set_stitch_chooses_the_stitch_of_later_calls(changed: Stitched) -> None:
    for k in (changed.stitched_ids[0], changed.anchor_ids[0]):
        assert changed.network.set_stitch(k) is changed.network
        assert changed.network.stitch_id == k
        assert torch.equal(changed.run(), changed.run(stitch_id=k))


@torch.no_grad()
def test_calls_from_several_threads_do_not_meet(stitched: Stitched) -> None:
    ids = stitched.network.stitch_ids[:6]
    expected, before, wrong = {k: stitched.run(stitch_id=k) for k in ids}, stitched.network.stitch_id, []

    def work(k: int) -> None:
        with torch.no_grad():
            wrong.extend(
                k for _ in range(5) if not torch.allclose(stitched.run(stitch_id=k), expected[k], rtol=0, atol=1e-5)
            )

    threads = [threading.Thread(target=work, args=(k,)) for k in ids]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    assert not wrong
    assert stitched.network.stitch_id == before


# ── parts ─────────────────────────────────────────────────────────────────────────────────────────────


def test_an_extracted_stitch_equals_the_whole_and_holds_what_it_uses(stitched: Stitched) -> None:
    own = dict(stitched.network.named_parameters())
    for k in stitched.network.stitch_ids:
        small = stitched.network.extract(k)
        assert small.stitch_ids == (k,)
        with torch.no_grad():
            assert torch.equal(stitched.run(small), stitched.run(stitch_id=k))
        assert all(parameter is own[name] for name, parameter in small.named_parameters())


@torch.no_grad()
def test_an_extracted_copy_has_tensors_of_its_own(changed: Stitched) -> None:
    k = changed.stitched_ids[-1]
    small, expected = changed.network.extract(k, copy=True), changed.run(stitch_id=k)
    for parameter in changed.network.parameters():
        parameter.zero_()
    assert torch.equal(changed.run(small), expected)


def test_costs_are_those_of_the_extracted_stitch(stitched: Stitched) -> None:
    for row in stitched.network.stitch_table():
        small = stitched.network.extract(row["stitch_id"])
        assert sum(p.numel() for p in small.parameters()) == row["params"]
        (alone,) = small.stitch_table()
        assert (alone["macs"], alone["params"], alone["name"]) == (row["macs"], row["params"], row["name"])
        assert row["macs"] > 0


def test_gradients_reach_only_what_ran(changed: Stitched) -> None:
    for k in (changed.anchor_ids[0], changed.stitched_ids[0], changed.stitched_ids[-1]):
        changed.network.zero_grad()
        changed.run(stitch_id=k).sum().backward()
        reached = {name for name, p in changed.network.named_parameters() if p.grad is not None}
        held = {name for name, p in changed.network.extract(k).named_parameters() if p.requires_grad}
        assert reached <= held
        # The back of a stitch of texts keeps embeddings that make its masks and positions.
        if k in changed.anchor_ids or isinstance(changed.batch, torch.Tensor):
            assert reached == held - never_used(changed)


def never_used(stitched: Stitched) -> set[str]:
    """Parameters that the plain models do not use either, such as the pooler before no head."""
    unused = set()
    for number, anchor in enumerate(copy.deepcopy(stitched.anchors)):
        run(anchor, stitched.batch).sum().backward()
        unused |= {f"anchors.{number}.{name}" for name, p in anchor.named_parameters() if p.grad is None}
    return unused


# ── other people's hooks and modules ──────────────────────────────────────────────────────────────────


@pytest.mark.usefixtures("of_models")
@torch.no_grad()
def test_hooks_on_anchors_and_on_the_network_fire(changed: Stitched) -> None:
    expected = {k: changed.run(stitch_id=k) for k in changed.network.stitch_ids}
    entered: list[tuple[int, Any]] = []
    left: list[tuple[int, Any]] = []
    stitches: list[tuple[int, int]] = []
    for number, anchor in enumerate(changed.network.anchors):
        anchor.register_forward_pre_hook(lambda module, args, number=number: entered.append((number, args)))
    changed.network.register_stitch_hook(lambda network, stitch_id, count: stitches.append((stitch_id, count)))
    of_images = isinstance(
        changed.batch, torch.Tensor
    )  # a front of a text network has no output, and refuses hooks on it
    for k, logits in expected.items():
        entered.clear(), left.clear(), stitches.clear()
        ending = {changed.network.plan[k].back} if not of_images else range(len(changed.network.anchors))
        handles = [
            changed.network.anchors[number].register_forward_hook(
                lambda module, args, out, number=number: left.append((number, out))
            )
            for number in ending
        ]
        assert torch.equal(changed.run(stitch_id=k), logits)
        for handle in handles:
            handle.remove()
        assert [number for number, _ in entered] == [segment.anchor for segment in changed.network.plan[k].segments]
        assert left[-1][0] == entered[-1][0]
        assert torch.equal(first_of(left[-1][1]), logits)
        assert stitches == [(k, 4)]
        if of_images:
            assert len(left) == len(entered)
            assert entered[0][1][0].shape[1:] == changed.batch.shape[1:]


@torch.no_grad()
def test_replaced_stitching_layers_run(changed: Stitched) -> None:
    class Adapted(nn.Module):  # what peft puts in the place of a linear layer
        def __init__(self, base: nn.Linear) -> None:
            super().__init__()
            self.base, self.extra = base, nn.Linear(base.in_features, base.out_features)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            assert x.shape[-1] == self.base.in_features
            return self.base(x) + self.extra(x)

    before = [changed.run(stitch_id=k) for k in changed.stitched_ids]
    for number, layer in enumerate(changed.network.stitching_layers):
        assert isinstance(layer, nn.Linear)
        changed.network.stitching_layers[number] = Adapted(layer)
    for k, logits in zip(changed.stitched_ids, before, strict=True):
        assert not torch.equal(changed.run(stitch_id=k), logits)


# ── copies and files ──────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "duplicate", [copy.deepcopy, lambda net: pickle.loads(pickle.dumps(net))], ids=["copy", "pickle"]
)
@torch.no_grad()
def test_a_copied_or_pickled_network_is_independent(changed: Stitched, duplicate: Any) -> None:
    ids = (changed.anchor_ids[0], changed.stitched_ids[-1])
    expected = [changed.run(stitch_id=k) for k in ids]
    twin = duplicate(changed.network)
    for parameter in changed.network.parameters():
        parameter.zero_()
    for k, logits in zip(ids, expected, strict=True):
        assert torch.equal(changed.run(twin, stitch_id=k), logits)


@pytest.mark.usefixtures("of_models")
def test_keys_of_the_state_are_the_models_own_behind_a_prefix(stitched: Stitched) -> None:
    keys = {k for k in stitched.network.state_dict() if k.startswith("anchors.")}
    assert keys == {f"anchors.{n}.{key}" for n, state in enumerate(stitched.states) for key in state}
    rest = {key.split(".")[0] for key in stitched.network.state_dict()} - {"anchors"}
    assert rest <= {"stitching_layers", "_extra_state"}


@torch.no_grad()
def test_a_saved_network_is_the_same_by_every_loader(stitched: Stitched, folder: Any) -> None:
    for again in (timm_stitch.from_hub(folder), stitched.load(folder)):
        assert type(again) is type(stitched.network)
        assert again.plan == stitched.network.plan
        assert again.stitch_id == stitched.network.stitch_id
        assert list(again.state_dict()) == list(stitched.network.state_dict())
        assert again.stitch_table() == stitched.network.stitch_table()
        for k in stitched.network.stitch_ids:
            assert torch.equal(stitched.run(again, stitch_id=k), stitched.run(stitch_id=k))


@torch.no_grad()
def test_one_stitch_of_a_saved_network_loads_alone(stitched: Stitched, folder: Any) -> None:
    names = set(load_file(folder / "model.safetensors"))
    for k in (stitched.anchor_ids[0], stitched.stitched_ids[0], stitched.stitched_ids[-1]):
        small = timm_stitch.from_hub(folder, extract=k)
        assert small.stitch_ids == (k,)
        assert torch.equal(stitched.run(small), stitched.run(stitch_id=k))
        assert sorted(small.state_dict()) == sorted(stitched.network.extract(k).state_dict())
        assert {name for name, _ in small.named_parameters()} < names
        assert not any(tensor.is_meta for tensor in (*small.parameters(), *small.buffers()))
