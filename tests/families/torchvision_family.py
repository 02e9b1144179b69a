"""A third family in as few lines as it takes: torchvision's ResNets."""

import copy

import torch
from torchvision.models import ResNet
from torchvision.models.resnet import BasicBlock

from timm_stitch.anchors.modules import partial_copy
from timm_stitch.anchors.view import View
from timm_stitch.families.family import Family
from timm_stitch.network.stitchable import StitchableNetwork
from timm_stitch.plan.stitch_plan import StitchPlan


class ResNetView(View):
    layout = "NCHW"

    def __init__(self, anchor):
        self.anchor, layers = anchor, [anchor.layer1, anchor.layer2, anchor.layer3, anchor.layer4]
        self.names = [f"layer{n}.{i}" for n, layer in enumerate(layers, 1) for i in range(len(layer))]
        self.depth = len(self.names)
        self.widths = (anchor.bn1.num_features, *(self.block(i).bn2.num_features for i in range(self.depth)))
        self.reductions = (4, *(2 ** (1 + int(name[5])) for name in self.names))

    def run_to_boundaries(self, h, start, wanted, inputs):
        m, crossed = self.anchor, {}
        h = m.maxpool(m.relu(m.bn1(m.conv1(inputs.images)))) if h is None else h
        for boundary in range(start, max(wanted) + 1):
            crossed[boundary] = h = self.block(boundary - 1)(h) if boundary > start else h
        return {boundary: crossed[boundary] for boundary in wanted}

    def run_to_output(self, h, start, inputs, normed=True):
        h = self.run_to_boundaries(h, start, (self.depth,), inputs)[self.depth]
        return self.anchor.fc(self.anchor.avgpool(h).flatten(1))

    def block_name(self, index):
        return self.names[index]

    def subset(self, stem, blocks, norm, head, prefix=False):
        keep = {*(["conv1", "bn1", "relu", "maxpool"] * stem), *(["avgpool", "fc"] * head), *(self.names[i] for i in blocks)}
        twin = copy.copy(self)
        twin.anchor, twin.is_partial = partial_copy(self.anchor, keep), True
        return twin


class StitchedResNet(StitchableNetwork):
    family = "torchvision"

    def __init__(self, models, make_plan, stitch_id=None):
        super().__init__()
        views = [ResNetView(model) for model in models]
        self._assemble(views, make_plan([view.describe(f"resnet{view.depth}x{view.widths[-1]}") for view in views]), True, stitch_id)

    def example(self, count):
        return torch.randn(count, 3, 64, 64)

    def forward(self, x, stitch_id=None):
        stitch = self._stitch(stitch_id)
        return self.executor.run(stitch, self.prepare_inputs(x, [stitch]))


class TorchvisionFamily(Family):
    name = "torchvision"

    def accepts(self, model):
        return isinstance(model, ResNet)

    def open(self, model):
        return ResNetView(model)

    def stitch(self, models, options, stitch_id=None, **_):
        return StitchedResNet(models, options.make, stitch_id)

    def describe(self, network):
        sizes = [{"layers": [len(getattr(m, f"layer{n}")) for n in (1, 2, 3, 4)], "width": m.bn1.num_features} for m in network.anchors]
        return {"anchors": sizes, "classes": network.anchors[0].fc.out_features, "plan": network.plan.to_dict()}

    def build(self, config):
        plan = StitchPlan.from_dict(config["plan"])
        return StitchedResNet([ResNet(BasicBlock, a["layers"], config["classes"]) for a in config["anchors"]], lambda _: plan)
