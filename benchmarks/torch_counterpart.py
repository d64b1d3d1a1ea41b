"""The same network, losses and training step written plainly with torch.nn, to measure against and to agree with.

Names of modules are those of the released checkpoints: `sdpn_jax.released.to_released` gives what `load_state_dict`
takes. Needs PyTorch (`pip install -e ".[bench]"`), CPU or CUDA.
"""

import contextlib
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from sdpn_jax.models.network import MEL_BINS
from sdpn_jax.weights import sdpn_names


class Conv(nn.Module):
    """Convolution over time with reflect padding, [B, C, T]."""

    def __init__(self, channels: int, features: int, kernel_size: int = 1, dilation: int = 1):
        super().__init__()
        pad = dilation * (kernel_size - 1) // 2
        mode = "reflect" if pad else "zeros"
        self.conv = nn.Conv1d(channels, features, kernel_size, dilation=dilation, padding=pad, padding_mode=mode)

    def forward(self, x):
        return self.conv(x)


class Norm(nn.Module):
    def __init__(self, features: int):
        super().__init__()
        self.norm = nn.BatchNorm1d(features)

    def forward(self, x):
        return self.norm(x)


class TDNN(nn.Module):
    def __init__(self, channels: int, features: int, kernel_size: int = 1, dilation: int = 1):
        super().__init__()
        self.conv, self.norm = Conv(channels, features, kernel_size, dilation), Norm(features)

    def forward(self, x):
        return self.norm(F.relu(self.conv(x)))


class Res2Net(nn.Module):
    def __init__(self, channels: int, kernel_size: int, dilation: int, scale: int):
        super().__init__()
        width = channels // scale
        self.scale = scale
        self.blocks = nn.ModuleList(TDNN(width, width, kernel_size, dilation) for _ in range(scale - 1))

    def forward(self, x):
        outputs = []
        for i, group in enumerate(x.chunk(self.scale, dim=1)):
            outputs.append(group if i == 0 else self.blocks[i - 1](group if i == 1 else group + outputs[-1]))
        return torch.cat(outputs, dim=1)


class SqueezeExcitation(nn.Module):
    def __init__(self, channels: int, bottleneck: int):
        super().__init__()
        self.conv1, self.conv2 = Conv(channels, bottleneck), Conv(bottleneck, channels)

    def forward(self, x):
        return x * torch.sigmoid(self.conv2(F.relu(self.conv1(x.mean(2, keepdim=True)))))


class SERes2Block(nn.Module):
    def __init__(self, channels: int, features: int, kernel_size: int, dilation: int, scale: int, bottleneck: int):
        super().__init__()
        self.shortcut = Conv(channels, features) if channels != features else nn.Identity()
        self.tdnn1, self.tdnn2 = TDNN(channels, features), TDNN(features, features)
        self.res2net_block = Res2Net(features, kernel_size, dilation, scale)
        self.se_block = SqueezeExcitation(features, bottleneck)

    def forward(self, x):
        return self.shortcut(x) + self.se_block(self.tdnn2(self.res2net_block(self.tdnn1(x))))


class AttentiveStatisticsPooling(nn.Module):
    def __init__(self, channels: int, attention: int):
        super().__init__()
        self.tdnn, self.conv = TDNN(3 * channels, attention), Conv(attention, channels)

    def forward(self, x):
        mean, deviation = self.statistics(x, 1 / x.shape[2])
        context = [statistic.unsqueeze(2).expand_as(x) for statistic in (mean, deviation)]
        logits = self.conv(torch.tanh(self.tdnn(torch.cat([x, *context], dim=1))))
        return torch.cat(self.statistics(x, torch.softmax(logits, dim=2)), dim=1).unsqueeze(2)

    def statistics(self, x, weights):
        mean = (weights * x).sum(2)
        variance = (weights * (x - mean.unsqueeze(2)).square()).sum(2)
        return mean, variance.clamp(min=1e-12).sqrt()


class ECAPA(nn.Module):
    """Features [B, T, F] -> embedding [B, D]."""

    def __init__(self, sizes):
        super().__init__()
        widths = sizes.channels
        self.blocks = nn.ModuleList([TDNN(MEL_BINS, widths[0], 5, 1)])
        for i, dilation in enumerate((2, 3, 4), 1):
            block = SERes2Block(widths[i - 1], widths[i], 3, dilation, 8, sizes.se_bottleneck)
            self.blocks.append(block)
        self.mfa = TDNN(sum(widths[1:-1]), widths[-1])
        self.asp = AttentiveStatisticsPooling(widths[-1], sizes.attention)
        self.asp_bn, self.fc = Norm(2 * widths[-1]), Conv(2 * widths[-1], sizes.embedding_size)

    def forward(self, features):
        x = features.transpose(1, 2)
        outputs = []
        for block in self.blocks:
            x = block(x)
            outputs.append(x)
        x = self.asp(self.mfa(torch.cat(outputs[1:], dim=1)))
        return self.fc(self.asp_bn(x)).squeeze(2)


class Head(nn.Module):
    """Embedding [B, D] -> point on the unit sphere [B, P]."""

    def __init__(self, sizes):
        super().__init__()
        hidden = sizes.hidden_size
        self.mlp = nn.Sequential(
            nn.Linear(sizes.embedding_size, hidden), nn.BatchNorm1d(hidden), nn.GELU(),
            nn.Linear(hidden, hidden), nn.BatchNorm1d(hidden), nn.GELU(),
            nn.Linear(hidden, sizes.projection_size),
        )  # fmt: skip

    def forward(self, x):
        return F.normalize(self.mlp(x).float() if x.dtype != torch.float64 else self.mlp(x), dim=1)


class Network(nn.Module):
    def __init__(self, sizes):
        super().__init__()
        self.backbone, self.head = ECAPA(sizes), Head(sizes)

    def forward(self, log_mel):
        embedding = self.embed(log_mel)
        return embedding, self.head(embedding)

    def embed(self, log_mel):
        """Log-mel [B, T, F] -> embedding [B, D]."""
        return self.backbone(F.instance_norm(log_mel.transpose(1, 2)).transpose(1, 2))


def network_with(sizes, variables: dict) -> Network:
    """The network of `config.model` with the weights of our `variables`, in their type."""
    network = Network(sizes)
    state = {name: torch.from_numpy(np.array(array)) for name, array in sdpn_names.to_released(variables).items()}
    network.to(next(iter(state.values())).dtype).load_state_dict(state)
    return network


@dataclass
class Counterpart:
    """A run: student, teacher, prototypes [K, P], offset [K], SGD, and the fields of the config that a step needs."""

    config: object
    student: nn.Module
    teacher: nn.Module
    prototypes: nn.Parameter
    offset: torch.Tensor
    autocast: bool = False

    def __post_init__(self):
        self.parameters = list(self.student.parameters())
        decay = self.config.weight_decay
        groups = [
            {"params": [p for p in self.parameters if p.ndim >= 2], "weight_decay": decay},
            {"params": [*(p for p in self.parameters if p.ndim < 2), self.prototypes], "weight_decay": 0.0},
        ]
        self.optimizer = torch.optim.SGD(groups, lr=0.0, momentum=self.config.momentum)

    def step(self, batch: dict, learning_rate: float, momentum: float) -> torch.Tensor:
        """One training step on {"global": [B, 1, Tg, F], "local": [B, V, Tl, F]}; returns the loss."""
        objective, count = self.config.objective, batch["local"].shape[1]
        with self._precision():
            with torch.no_grad():
                _, projection = self.teacher(batch["global"].flatten(0, 1))
            embedding, student = self.student(batch["local"].transpose(0, 1).flatten(0, 1))
        prototypes = F.normalize(self.prototypes, dim=1)
        with torch.no_grad():
            targets = self.targets(projection @ prototypes.T, objective)
        log_p = F.log_softmax(student @ prototypes.T / objective.student_temperature, dim=1)
        log_p_of_views, embeddings = log_p.chunk(count), embedding.to(log_p.dtype).chunk(count)
        loss = -sum((targets * x).sum(1).mean() for x in log_p_of_views) / count
        mean = log_p.exp().mean(0)
        me_max = np.log(len(mean)) + (mean * mean.log()).sum()
        loss = loss + objective.me_max_weight * me_max + objective.koleo_weight * sum(map(koleo, embeddings))

        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        for parameter in self.parameters:
            nn.utils.clip_grad_norm_(parameter, self.config.clip_norm)
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate
        self.optimizer.step()
        with torch.no_grad():
            torch._foreach_lerp_(list(self.teacher.parameters()), self.parameters, 1 - momentum)
        return loss.detach()

    def targets(self, cosines, objective):
        """Softmax or balanced targets [B, K] of the teacher's cosines [B, K]."""
        logits = cosines / (objective.student_temperature * objective.sharpening)
        if objective.targets == "balanced":
            usage = torch.softmax(logits - self.offset, dim=1).mean(0)
            rate = objective.offset_rate
            self.offset += torch.log(1 - rate + rate * logits.shape[1] * usage)
        elif objective.targets != "softmax":
            raise ValueError(f"no counterpart of objective.targets={objective.targets!r}")
        if objective.centre_projections:
            raise ValueError("no counterpart of objective.centre_projections")
        return torch.softmax(logits - self.offset, dim=1)

    def _precision(self):
        if not self.autocast:
            return contextlib.nullcontext()
        return torch.autocast(self.prototypes.device.type, dtype=torch.bfloat16)


def koleo(embedding, epsilon: float = 1e-8):
    """-mean log distance to the nearest other sample of [B, D]."""
    x = F.normalize(embedding, eps=epsilon)
    with torch.no_grad():
        nearest = (x @ x.T).fill_diagonal_(-2).argmax(1)
    return -torch.log(F.pairwise_distance(x, x[nearest], eps=epsilon) + epsilon).mean()


def counterpart_of(config, state, device: str = "cpu", autocast: bool = False) -> Counterpart:
    """The run that goes on from our TrainState `state` (as NumPy arrays) at step 0 of its momentum."""
    student, teacher = (
        network_with(config.model, variables).to(device) for variables in (state.student, state.teacher)
    )
    prototypes = nn.Parameter(torch.from_numpy(np.array(state.prototypes)).to(device))
    offset = torch.from_numpy(np.array(state.offset)).to(device)
    return Counterpart(config, student.train(), teacher.train(), prototypes, offset, autocast)
