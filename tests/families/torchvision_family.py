"""A third family in as few lines as it takes: torchvision's ResNets."""

from torchvision.models import ResNet
from torchvision.models.resnet import BasicBlock

from timm_stitch.anchors.block_view import BlockView, ParameterGroups
from timm_stitch.families.family import Family
from timm_stitch.network.image_network import ImageNetwork
from timm_stitch.plan.stitch_plan import StitchPlan


class ResNetView(BlockView):
    layout = "NCHW"

    def __init__(self, anchor):
        layers = [anchor.layer1, anchor.layer2, anchor.layer3, anchor.layer4]
        self.anchor, self.names = anchor, [f"layer{n}.{i}" for n, at in enumerate(layers, 1) for i in range(len(at))]
        self.depth = len(self.names)
        self.widths = (anchor.bn1.num_features, *(self.block(i).bn2.num_features for i in range(self.depth)))
        self.reductions = (4, *(2 ** (1 + int(name[5])) for name in self.names))

    def block_name(self, index):
        return self.names[index]

    def parameter_groups(self):
        return ParameterGroups(stem=("conv1", "bn1", "relu", "maxpool"))

    def stem(self, x):
        return self.anchor.maxpool(self.anchor.relu(self.anchor.bn1(self.anchor.conv1(x))))

    def _head(self, h, pre_logits):
        return self.anchor.fc(self.anchor.avgpool(h).flatten(1))


class StitchedResNet(ImageNetwork):
    family = "torchvision"


class TorchvisionFamily(Family):
    name = "torchvision"

    def accepts(self, model):
        return isinstance(model, ResNet)

    def open(self, model):
        return ResNetView(model)

    def stitch(self, models, options, stitch_id=None, **_):
        views = [ResNetView(model) for model in models]
        plan = options.make([view.describe(f"resnet{view.depth}") for view in views])
        return StitchedResNet(views, plan, stitch_id=stitch_id)

    def describe(self, network):
        depths = [[len(getattr(anchor, f"layer{n}")) for n in range(1, 5)] for anchor in network.anchors]
        return {"depths": depths, "classes": network.anchors[0].fc.out_features, "plan": network.plan.to_dict()}

    def build(self, config):
        models = [ResNet(BasicBlock, depths, config["classes"]) for depths in config["depths"]]
        return StitchedResNet([ResNetView(model) for model in models], StitchPlan.from_dict(config["plan"]))
