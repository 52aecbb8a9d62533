"""Training steps of a small residual network with ``gpuconv.nn``, each compared with the same network of torch.

python examples/resnet_step.py [--steps 3] [--device cuda]
"""

from __future__ import annotations

import argparse
import copy

import torch
from torch import nn

import gpuconv


class Block(nn.Module):
    """Two 3x3 convolutions around which the input goes."""

    def __init__(self, inside: int, outside: int, stride: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(inside, outside, 3, stride, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(outside)
        self.second = nn.Conv2d(outside, outside, 3, 1, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(outside)
        self.short = (
            nn.Conv2d(inside, outside, 1, stride, bias=False) if stride > 1 or inside != outside else nn.Identity()
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.norm2(self.second(torch.relu(self.norm1(self.first(x)))))
        return torch.relu(y + self.short(x))


def network(classes: int = 10) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 16, 7, 2, 3),
        nn.MaxPool2d(3, 2, 1),
        Block(16, 16, 1),
        Block(16, 32, 2),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(32, classes),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--device", default="cpu")
    arguments = parser.parse_args()
    torch.manual_seed(0)
    theirs = network().to(arguments.device)
    ours = copy.deepcopy(theirs)
    print(gpuconv.replace_modules(ours))
    images = torch.randn(4, 3, 64, 64, device=arguments.device)
    labels = torch.randint(0, 10, (4,), device=arguments.device)
    optimizers = [torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9) for model in (theirs, ours)]
    for step in range(arguments.steps):
        losses = []
        for model, optimizer in zip((theirs, ours), optimizers):
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(model(images), labels)
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        print(f"step {step}: loss of torch {losses[0]:.6f}, of gpuconv {losses[1]:.6f}")
        assert abs(losses[0] - losses[1]) < 1e-3
    largest = max(float((a - b).detach().abs().max()) for a, b in zip(theirs.parameters(), ours.parameters()))
    print(f"largest difference of a parameter after {arguments.steps} steps: {largest:.1e}")
    assert largest < 1e-3


if __name__ == "__main__":
    main()
