"""Encoders of other toolkits written plainly with torch.nn, for inference, to measure against and to agree with.

Names of modules are those of the toolkits' own files: WeSpeaker's ResNet and ECAPA-TDNN, CAM++ and ERes2NetV2 of
3D-Speaker; the ECAPA-TDNN of 3D-Speaker and SpeechBrain is that of torch_counterpart.py. All map features [B, T, F] to
embeddings [B, D]. Needs PyTorch (`pip install -e ".[bench]"`).
"""

import dataclasses
from collections import OrderedDict
from collections.abc import Sequence
from types import SimpleNamespace

import numpy as np
import torch
import torch.nn.functional as F
import torch_counterpart
from flax.traverse_util import flatten_dict
from torch import nn

from sdpn_jax.models import campplus, ecapa, ecapa_wespeaker, eres2net, resnet
from sdpn_jax.models.network import MEL_BINS, Network
from sdpn_jax.weights import campplus_names, ecapa_wespeaker_names, resnet_names, sdpn_names


def conv2d(channels: int, features: int, size: int = 3, stride: int | tuple[int, int] = 1, bias: bool = False):
    return nn.Conv2d(channels, features, size, stride, size // 2, bias=bias)


def conv1d(channels: int, features: int, size: int = 1, dilation: int = 1, stride: int = 1, bias: bool = False):
    return nn.Conv1d(channels, features, size, stride, dilation * (size // 2), dilation, bias=bias)


def statistics(x, floor: float):
    """Mean and deviation (of the unbiased variance + floor) over the last axis, side by side: [B, 2*...]."""
    return torch.cat([x.mean(-1).flatten(1), (x.var(-1) + floor).sqrt().flatten(1)], dim=1)


class ResidualBlock(nn.Module):
    """[B, C, F, T]; two convolutions 3x3, or between two of 1x1, plus the input."""

    def __init__(self, channels: int, width: int, stride: int | tuple[int, int], bottleneck: bool):
        super().__init__()
        out = width * (4 if bottleneck else 1)
        if bottleneck:
            self.conv1, self.conv2 = conv2d(channels, width, 1), conv2d(width, width, 3, stride)
            self.conv3, self.bn3 = conv2d(width, out, 1), nn.BatchNorm2d(out)
        else:
            self.conv1, self.conv2 = conv2d(channels, width, 3, stride), conv2d(width, width)
        self.bn1, self.bn2 = nn.BatchNorm2d(width), nn.BatchNorm2d(width)
        self.bottleneck = bottleneck
        self.shortcut = shortcut(channels, out, stride)

    def forward(self, x):
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        if self.bottleneck:
            y = self.bn3(self.conv3(F.relu(y)))
        return F.relu(y + self.shortcut(x))


def shortcut(channels: int, features: int, stride: int | tuple[int, int]):
    if stride == 1 and channels == features:
        return nn.Sequential()
    return nn.Sequential(conv2d(channels, features, 1, stride), nn.BatchNorm2d(features))


class ResNet(nn.Module):
    """WeSpeaker's ResNet18 to ResNet293."""

    def __init__(self, blocks: Sequence[int], bottleneck: bool, width: int, embedding_size: int):
        super().__init__()
        self.conv1, self.bn1 = conv2d(1, width), nn.BatchNorm2d(width)
        channels = width
        for stage, count in enumerate(blocks):
            layers = []
            for i in range(count):
                layers.append(ResidualBlock(channels, width << stage, 2 if stage and not i else 1, bottleneck))
                channels = (width << stage) * (4 if bottleneck else 1)
            self.add_module(f"layer{stage + 1}", nn.Sequential(*layers))
        self.seg_1 = nn.Linear(2 * channels * (MEL_BINS // 8), embedding_size)

    def forward(self, features):
        x = F.relu(self.bn1(self.conv1(features.transpose(1, 2).unsqueeze(1))))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return self.seg_1(statistics(x, resnet.VARIANCE_FLOOR))


def named(**modules: nn.Module):
    return nn.Sequential(OrderedDict(modules))


def norm_relu(channels: int):
    return named(batchnorm=nn.BatchNorm1d(channels), relu=nn.ReLU())


class ContextGated(nn.Module):
    """[B, C, T]; the gate is computed once for each segment, not for each of its frames."""

    def __init__(self, channels: int, features: int, dilation: int):
        super().__init__()
        self.linear_local = conv1d(channels, features, 3, dilation)
        self.linear1 = conv1d(channels, channels // 2, bias=True)
        self.linear2 = conv1d(channels // 2, features, bias=True)

    def forward(self, x):
        context = x.mean(2, keepdim=True) + F.avg_pool1d(x, campplus.SEGMENT, campplus.SEGMENT, ceil_mode=True)
        gate = torch.sigmoid(self.linear2(F.relu(self.linear1(context))))
        return self.linear_local(x) * gate.repeat_interleave(campplus.SEGMENT, 2)[:, :, : x.shape[2]]


class DenseLayer(nn.Module):
    """[B, C, T] -> [B, C + growth, T]."""

    def __init__(self, channels: int, growth: int, bottleneck: int, dilation: int):
        super().__init__()
        self.nonlinear1, self.linear1 = norm_relu(channels), conv1d(channels, bottleneck)
        self.nonlinear2, self.cam_layer = norm_relu(bottleneck), ContextGated(bottleneck, growth, dilation)

    def forward(self, x):
        return torch.cat([x, self.cam_layer(self.nonlinear2(self.linear1(self.nonlinear1(x))))], dim=1)


class Front(nn.Module):
    """[B, T, F] -> [B, C, T]: convolutions that keep time and leave an eighth of the frequencies."""

    def __init__(self, width: int):
        super().__init__()
        halved = campplus.HALVED
        self.conv1, self.bn1 = conv2d(1, width), nn.BatchNorm2d(width)
        self.layer1, self.layer2 = (
            nn.Sequential(ResidualBlock(width, width, halved, False), ResidualBlock(width, width, 1, False))
            for _ in range(2)
        )
        self.conv2, self.bn2 = conv2d(width, width, 3, halved), nn.BatchNorm2d(width)

    def forward(self, features):
        x = F.relu(self.bn1(self.conv1(features.transpose(1, 2).unsqueeze(1))))
        return F.relu(self.bn2(self.conv2(self.layer2(self.layer1(x))))).flatten(1, 2)


class CAMPlus(nn.Module):
    """CAM++ of 3D-Speaker and WeSpeaker."""

    def __init__(
        self, blocks: Sequence[int], width: int, initial: int, growth: int, bottleneck_factor: int, embedding_size: int
    ):
        super().__init__()
        self.head, seen = Front(width), width * (MEL_BINS // 8)
        channels, growth = initial or campplus.DENSE * width, growth or width
        parts = OrderedDict(tdnn=named(linear=conv1d(seen, channels, 5, stride=2), nonlinear=norm_relu(channels)))
        for k, (count, dilation) in enumerate(zip(blocks, campplus.DILATIONS, strict=True), 1):
            layers = OrderedDict()
            for i in range(1, count + 1):
                layers[f"tdnnd{i}"] = DenseLayer(channels, growth, bottleneck_factor * growth, dilation)
                channels += growth
            parts[f"block{k}"] = nn.Sequential(layers)
            parts[f"transit{k}"] = named(nonlinear=norm_relu(channels), linear=conv1d(channels, channels // 2))
            channels //= 2
        parts |= {"out_nonlinear": norm_relu(channels), "stats": Pooling()}
        norm = named(batchnorm=nn.BatchNorm1d(embedding_size, affine=False))
        parts["dense"] = named(linear=conv1d(2 * channels, embedding_size), nonlinear=norm)
        self.xvector = nn.Sequential(parts)

    def forward(self, features):
        return self.xvector(self.head(features)).squeeze(2)


class Pooling(nn.Module):
    """[B, C, T] -> [B, 2 C, 1]."""

    def forward(self, x):
        return statistics(x, 0.0).unsqueeze(2)


def clipped_relu(x):
    return x.clamp(0, eres2net.CEILING)


class AttentionalFusion(nn.Module):
    def __init__(self, channels: int):
        super().__init__()
        inside = channels // eres2net.REDUCTION
        self.local_att = nn.Sequential(
            conv2d(2 * channels, inside, 1, bias=True), nn.BatchNorm2d(inside), nn.SiLU(),
            conv2d(inside, channels, 1, bias=True), nn.BatchNorm2d(channels),
        )  # fmt: skip

    def forward(self, x, y):
        a = 1 + torch.tanh(self.local_att(torch.cat([x, y], dim=1)))
        return x * a + y * (2 - a)


class Res2NetBlock(nn.Module):
    def __init__(self, channels: int, features: int, group: int, scale: int, stride: int, fused: bool):
        super().__init__()
        self.conv1, self.bn1 = conv2d(channels, group * scale, 1, stride), nn.BatchNorm2d(group * scale)
        self.convs = nn.ModuleList(conv2d(group, group) for _ in range(scale))
        self.bns = nn.ModuleList(nn.BatchNorm2d(group) for _ in range(scale))
        self.fuse_models = nn.ModuleList(AttentionalFusion(group) for _ in range(scale - 1)) if fused else None
        self.conv3, self.bn3 = conv2d(group * scale, features, 1), nn.BatchNorm2d(features)
        self.shortcut = shortcut(channels, features, stride)

    def forward(self, x):
        outputs = []
        for i, group in enumerate(clipped_relu(self.bn1(self.conv1(x))).chunk(len(self.convs), dim=1)):
            if i and self.fuse_models:
                group = self.fuse_models[i - 1](outputs[-1], group)
            elif i:
                group = outputs[-1] + group
            outputs.append(clipped_relu(self.bns[i](self.convs[i](group))))
        return clipped_relu(self.bn3(self.conv3(torch.cat(outputs, dim=1))) + self.shortcut(x))


class ERes2NetV2(nn.Module):
    """ERes2NetV2 of 3D-Speaker."""

    def __init__(
        self, blocks: Sequence[int], width: int, base_width: int, scale: int, expansion: int, embedding_size: int
    ):
        super().__init__()
        self.conv1, self.bn1 = conv2d(1, width), nn.BatchNorm2d(width)
        channels = width
        for stage, count in enumerate(blocks):
            planes, layers = width << stage, []
            group, fused = planes * base_width // eres2net.BASE, stage in eres2net.FUSED_STAGES
            for i in range(count):
                stride = 2 if stage and not i else 1
                layers.append(Res2NetBlock(channels, planes * expansion, group, scale, stride, fused))
                channels = planes * expansion
            self.add_module(f"layer{stage + 1}", nn.Sequential(*layers))
        self.layer3_ds, self.fuse34 = conv2d(channels // 2, channels, 3, 2), AttentionalFusion(channels)
        self.seg_1 = nn.Linear(2 * channels * (MEL_BINS // 8), embedding_size)

    def forward(self, features):
        x = F.relu(self.bn1(self.conv1(features.transpose(1, 2).unsqueeze(1))))
        third = self.layer3(self.layer2(self.layer1(x)))
        x = self.fuse34(self.layer4(third), self.layer3_ds(third))
        return self.seg_1(statistics(x, eres2net.VARIANCE_FLOOR))


class ConvReLUNorm(nn.Module):
    """[B, C, T]; zeros around it."""

    def __init__(self, channels: int, features: int, size: int = 1):
        super().__init__()
        self.conv, self.bn = conv1d(channels, features, size, bias=True), nn.BatchNorm1d(features)

    def forward(self, x):
        return self.bn(F.relu(self.conv(x)))


class Res2Net(nn.Module):
    """Each group but the last is convolved after adding its left neighbour's output."""

    def __init__(self, channels: int, dilation: int):
        super().__init__()
        self.scale = ecapa_wespeaker.SCALE
        width = channels // self.scale
        self.convs = nn.ModuleList(conv1d(width, width, 3, dilation, bias=True) for _ in range(self.scale - 1))
        self.bns = nn.ModuleList(nn.BatchNorm1d(width) for _ in range(self.scale - 1))

    def forward(self, x):
        *groups, last = x.chunk(self.scale, dim=1)
        outputs = []
        for group, conv, norm in zip(groups, self.convs, self.bns, strict=True):
            outputs.append(norm(F.relu(conv(group + outputs[-1] if outputs else group))))
        return torch.cat([*outputs, last], dim=1)


class SqueezeExcitation(nn.Module):
    def __init__(self, channels: int, bottleneck: int):
        super().__init__()
        self.linear1, self.linear2 = nn.Linear(channels, bottleneck), nn.Linear(bottleneck, channels)

    def forward(self, x):
        return x * torch.sigmoid(self.linear2(F.relu(self.linear1(x.mean(2))))).unsqueeze(2)


class SERes2Block(nn.Module):
    def __init__(self, channels: int, dilation: int, bottleneck: int):
        super().__init__()
        self.se_res2block = nn.Sequential(
            ConvReLUNorm(channels, channels), Res2Net(channels, dilation), ConvReLUNorm(channels, channels),
            SqueezeExcitation(channels, bottleneck),
        )  # fmt: skip

    def forward(self, x):
        return x + self.se_res2block(x)


class AttentivePooling(nn.Module):
    def __init__(self, channels: int, attention: int, global_context: bool):
        super().__init__()
        self.global_context = global_context
        self.linear1 = conv1d(channels * (3 if global_context else 1), attention, bias=True)
        self.linear2 = conv1d(attention, channels, bias=True)

    def forward(self, x):
        floor, y = ecapa_wespeaker.VARIANCE_FLOOR, x
        if self.global_context:
            y = torch.cat([x, statistics(x, floor).unsqueeze(2).expand(-1, -1, x.shape[2])], dim=1)
        weights = torch.softmax(self.linear2(torch.tanh(self.linear1(y))), dim=2)
        mean = (weights * x).sum(2)
        variance = (weights * (x - mean.unsqueeze(2)).square()).sum(2)
        return torch.cat([mean, variance.clamp(min=floor).sqrt()], dim=1)


class WeSpeakerECAPA(nn.Module):
    """WeSpeaker's ECAPA_TDNN_c512 and its relations."""

    def __init__(
        self, width: int, se_bottleneck: int, attention: int, global_context: bool, embedding_size: int,
        embedding_norm: bool,
    ):  # fmt: skip
        super().__init__()
        channels = ecapa_wespeaker.FRAME_CHANNELS
        self.layer1 = ConvReLUNorm(MEL_BINS, width, 5)
        self.layer2, self.layer3, self.layer4 = (
            SERes2Block(width, dilation, se_bottleneck) for dilation in ecapa_wespeaker.DILATIONS
        )
        self.conv = conv1d(3 * width, channels, bias=True)
        self.pool = AttentivePooling(channels, attention, global_context)
        self.bn, self.linear = nn.BatchNorm1d(2 * channels), nn.Linear(2 * channels, embedding_size)
        self.bn2 = nn.BatchNorm1d(embedding_size) if embedding_norm else nn.Identity()

    def forward(self, features):
        first = self.layer2(self.layer1(features.transpose(1, 2)))
        second = self.layer3(first)
        x = F.relu(self.conv(torch.cat([first, second, self.layer4(second)], dim=1)))
        return self.bn2(self.linear(self.bn(self.pool(x))))


class ECAPA(torch_counterpart.ECAPA):
    """The ECAPA-TDNN of 3D-Speaker and SpeechBrain."""

    def __init__(self, **sizes):
        super().__init__(SimpleNamespace(**sizes))


COUNTERPARTS = {  # of our encoders; how the toolkit calls an array that we find at a path
    resnet.ResNet: (ResNet, resnet_names.released_name),
    campplus.CAMPlus: (CAMPlus, campplus_names.released_name),
    eres2net.ERes2NetV2: (ERes2NetV2, resnet_names.released_name),
    ecapa_wespeaker.WeSpeakerECAPA: (WeSpeakerECAPA, ecapa_wespeaker_names.released_name),
    ecapa.ECAPA: (ECAPA, lambda path: sdpn_names.released_name(path).removeprefix("backbone.")),
}


def encoder_of(network: Network) -> nn.Module:
    """The counterpart of a network's encoder, untrained, for inference."""
    ours = network.encoder
    fields = {field.name for field in dataclasses.fields(ours)} - {"dtype", "remat", "parent", "name"}
    return COUNTERPARTS[type(ours)][0](**{name: getattr(ours, name) for name in fields}).eval()


def state_of(network: Network, variables: dict) -> OrderedDict[str, torch.Tensor]:
    """The weights of our `variables` under the names and in the layout of the toolkit."""
    name_of, shapes = COUNTERPARTS[type(network.encoder)][1], encoder_of(network).state_dict()
    state = OrderedDict()
    for path, array in flatten_dict(variables).items():
        if path[1] == "encoder":
            name = name_of(path)
            # kernels are [..., in, out] here, [out, in, ...] there
            array = np.moveaxis(array, (-1, -2), (0, 1)) if path[-1] == "kernel" else np.asarray(array)
            state[name] = torch.from_numpy(array.reshape(shapes[name].shape).copy())
    return state


def encoder_with(network: Network, variables: dict) -> nn.Module:
    """The counterpart of a network's encoder with the weights of our `variables`, in their type, for inference."""
    encoder, state = encoder_of(network), state_of(network, variables)
    encoder.to(next(iter(state.values())).dtype)
    encoder.load_state_dict(with_counts(encoder, state))
    return encoder


def with_counts(encoder: nn.Module, state: dict) -> dict:
    """A state with the counts of batches that only norms in training use, where it lacks them."""
    counts = {name: value for name, value in encoder.state_dict().items() if name.endswith(sdpn_names.COUNT)}
    return counts | state
