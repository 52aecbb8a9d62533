"""A deformable convolution learns where to look: its offsets find out by how much a picture was shifted.

python examples/deformable.py [--steps 60]
"""

from __future__ import annotations

import argparse

import torch

import gpuconv


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--steps", type=int, default=60)
    arguments = parser.parse_args()
    torch.manual_seed(0)
    y, x = torch.meshgrid(torch.linspace(0, 6, 32), torch.linspace(0, 6, 32), indexing="ij")
    picture = (torch.sin(y) + torch.cos(1.3 * x) + 0.5 * torch.sin(x + y))[None, None]
    down, right = 1.5, -0.75  # what is to be found, in pixels
    weight = torch.zeros(1, 1, 3, 3)
    weight[0, 0, 1, 1] = 1  # the filter copies its middle tap: offsets alone can move the picture

    def moved(amount: torch.Tensor) -> torch.Tensor:
        offset = amount.view(1, 2, 1, 1).expand(1, 2, 32, 32).repeat(1, 9, 1, 1)
        return gpuconv.deform_conv2d(picture, offset, weight, padding=1)

    with torch.no_grad():
        target = moved(torch.tensor([down, right]))
    guess = torch.zeros(2, requires_grad=True)
    optimizer = torch.optim.Adam([guess], lr=0.1)
    for step in range(arguments.steps):
        optimizer.zero_grad()
        loss = (moved(guess) - target).square()[..., 4:-4, 4:-4].mean()
        loss.backward()
        optimizer.step()
        if step % 20 == 0 or step == arguments.steps - 1:
            print(f"step {step:2}: loss {loss.item():.2e}, offset {guess[0].item():+.3f} {guess[1].item():+.3f}")
    found = guess.detach()
    print(f"looked for {down:+.3f} {right:+.3f}")
    assert abs(found[0].item() - down) < 0.1 and abs(found[1].item() - right) < 0.1
    plain = gpuconv.conv2d(picture, weight, padding=1)
    assert torch.equal(moved(torch.zeros(2)), plain)
    print("with offsets of zero it is conv2d")


if __name__ == "__main__":
    main()
