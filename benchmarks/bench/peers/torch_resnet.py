"""ResNet-18 and -50 in PyTorch under the names of torchvision's state dicts (He et al. 2015), for peers that stream a
given module. Batch norm is in inference form, as the engines compute it."""

import torch
from torch import nn

MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
BLOCKS = {"resnet18": (2, 2, 2, 2), "resnet50": (3, 4, 6, 3)}
CHANNELS = {"resnet18": 512, "resnet50": 2048}


class Block(nn.Module):
    """A residual block: two 3 x 3 convolutions, or 1 x 1, 3 x 3 and 1 x 1 with the stride on the second."""

    def __init__(self, before, width, stride, bottleneck):
        super().__init__()
        after = 4 * width if bottleneck else width
        plan = [(before, width, 3, stride), (width, width, 3, 1)]
        if bottleneck:
            plan = [(before, width, 1, 1), (width, width, 3, stride), (width, after, 1, 1)]
        self.count = len(plan)
        for index, (inputs, outputs, kernel, step) in enumerate(plan, 1):
            setattr(self, "conv%d" % index, nn.Conv2d(inputs, outputs, kernel, step, kernel // 2, bias=False))
            setattr(self, "bn%d" % index, nn.BatchNorm2d(outputs))
        self.relu = nn.ReLU(inplace=True)
        self.downsample = None
        if stride > 1 or before != after:
            self.downsample = nn.Sequential(nn.Conv2d(before, after, 1, stride, bias=False), nn.BatchNorm2d(after))

    def forward(self, x):
        shortcut = x if self.downsample is None else self.downsample(x)
        for index in range(1, self.count + 1):
            x = getattr(self, "bn%d" % index)(getattr(self, "conv%d" % index)(x))
            if index < self.count:
                x = self.relu(x)
        x = x + shortcut  # not in place: a streamed convolution's output is a view
        return self.relu(x)


def trunk(name):
    """Image to embedding map, as ``nn.Sequential`` in the order of torchvision."""
    parts = [nn.Conv2d(3, 64, 7, 2, 3, bias=False), nn.BatchNorm2d(64), nn.ReLU(inplace=True), nn.MaxPool2d(3, 2, 1)]
    before, bottleneck = 64, name == "resnet50"
    for stage, count in enumerate(BLOCKS[name]):
        width, blocks = 64 * 2**stage, []
        for index in range(count):
            blocks.append(Block(before, width, 2 if stage and not index else 1, bottleneck))
            before = 4 * width if bottleneck else width
        parts.append(nn.Sequential(*blocks))
    return nn.Sequential(*parts)


NAMES = ("conv1", "bn1", "relu", "maxpool", "layer1", "layer2", "layer3", "layer4")


def positional(name):
    """A name of torchvision's state dict as the trunk has it: ``layer1.0.conv1.weight`` is ``4.0.conv1.weight``."""
    head, rest = name.split(".", 1)
    return "{}.{}".format(NAMES.index(head), rest)


def torchvision_name(name):
    """The inverse of :func:`positional`."""
    head, rest = name.split(".", 1)
    return "{}.{}".format(NAMES[int(head)], rest)


def load(name, weights, dtype, device):
    """Trunk and dense layer with weights (a mapping of torchvision's names to arrays), batch norm in inference form."""
    made, values = trunk(name), {key: torch.as_tensor(weights[key]) for key in weights}
    dense = nn.Linear(CHANNELS[name], len(values["fc.bias"]))
    dense.load_state_dict({"weight": values.pop("fc.weight"), "bias": values.pop("fc.bias")})
    missing = made.load_state_dict({positional(key): value for key, value in values.items()}, strict=False)
    lost = [key for key in missing.missing_keys if not key.endswith("num_batches_tracked")]
    assert not lost and not missing.unexpected_keys, (lost, missing.unexpected_keys)
    return made.to(device, dtype).eval(), dense.to(device, dtype)


def pool(embedding, pooling):
    """Pooled features (1, channels) of an embedding map (1, channels, height, width)."""
    return embedding.amax((2, 3)) if pooling == "gmp" else embedding.mean((2, 3))
