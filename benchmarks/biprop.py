"""Speed and memory of biprop's masked layers: python benchmarks/biprop.py [layers|network]

Against the selection as the authors released it (a full sort with indices and two indexed writes) and against a plain
convolution, what a user would run without the method. Times are medians, ratios are to the first line of each group,
memory is the peak of a fresh process.
"""

import argparse

import timm
import torch
from timing import compare, header, own_peak, peak_memory
from torch import nn
from torch.nn import functional as F

from networks import biprop, surgery
from networks.biprop import SubnetConv2d
from networks.biprop.selection import keep_mask, kept_count

SHAPES = {"64 ch, 32x32": (64, 32), "128 ch, 16x16": (128, 16), "256 ch, 8x8": (256, 8), "512 ch, 4x4": (512, 4)}
KEEP = 0.2


def released_mask(scores, keep_fraction):
    """The selection by sorting, as edge-popup and biprop released it."""
    mask = scores.clone()
    _, order = scores.flatten().sort()
    pruned = int((1 - keep_fraction) * scores.numel())
    flat = mask.flatten()
    flat[order[:pruned]] = 0
    flat[order[pruned:]] = 1
    return mask


class LiteralConv(nn.Conv2d):
    """The layer in the plainest words: every intermediate a tensor, gradients by autograd's chain."""

    def __init__(self, cin, cout, size, stride=1):
        super().__init__(cin, cout, size, stride, padding=size // 2, bias=False)
        self.weight.requires_grad_(False)
        self.scores = nn.Parameter(torch.rand_like(self.weight) - 0.5)

    def forward(self, x):
        magnitude = self.scores.abs()
        mask = released_mask(magnitude.detach(), KEEP)
        passed = magnitude + (mask - magnitude).detach()
        gain = (self.weight.abs() * mask).sum() / mask.sum()
        straight = passed * self.weight
        value = straight + (gain * self.weight.sign() * mask - straight).detach()
        return F.conv2d(x, value, None, self.stride, self.padding)


def layers(channels):
    return {
        "plain convolution": nn.Conv2d(channels, channels, 3, padding=1, bias=False),
        "literal masked convolution": LiteralConv(channels, channels, 3),
        "SubnetConv2d": SubnetConv2d(channels, channels, 3, padding=1, keep_fraction=KEEP),
    }


def network(kind):
    """The CIFAR ResNet-18 and an optimiser: its weights trained, or a ticket's scores."""
    net = timm.create_model("cifar_resnet18")
    if kind == "literal masked layers":
        surgery.replace(
            net, lambda c: LiteralConv(c.in_channels, c.out_channels, c.kernel_size[0], c.stride[0]), (nn.Conv2d,)
        )
    elif kind == "biprop.apply":
        biprop.apply(net, KEEP)
    return net, torch.optim.SGD([p for p in net.parameters() if p.requires_grad], lr=0.1, momentum=0.9)


NETWORKS = ("ordinary, weights trained", "literal masked layers", "biprop.apply")


def network_step(net, optimizer, images, labels):
    optimizer.zero_grad()
    F.cross_entropy(net(images), labels).backward()
    optimizer.step()


def step(layer, x):
    layer(x).sum().backward()
    layer.zero_grad()


def evaluate(layer, x, recompute=False):
    if recompute:
        layer._cache = None
    with torch.no_grad():
        layer.eval()(x)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("part", nargs="?", choices=("layers", "network"), help="the default is both")
    parser.add_argument("--only", help="run one alternative's training steps and print the peak memory in MiB")
    options = parser.parse_args()
    torch.manual_seed(0)
    if options.only:
        print_peak(options.only)
        return
    header()
    if options.part != "network":
        compare_layers()
    if options.part != "layers":
        compare_networks()


def print_peak(only):
    if only in NETWORKS:
        net, optimizer = network(only)
        run = lambda: network_step(net, optimizer, torch.randn(128, 3, 32, 32), torch.randint(10, (128,)))  # noqa: E731
    else:
        layer, x = layers(512)[only], torch.randn(128, 512, 4, 4)
        run = lambda: step(layer, x)  # noqa: E731
    for _ in range(3):
        run()
    print(own_peak())


def compare_networks():
    with torch.device("meta"):
        net = timm.create_model("cifar_resnet18")
    sizes = [p.numel() for p in net.parameters() if p.ndim > 1]
    scores = [(torch.rand(n) - 0.5, kept_count(KEEP, n)) for n in sizes]
    alternatives = {
        "released: sort": lambda: [released_mask(s.abs(), KEEP) for s, _ in scores],
        "torch.kthvalue": lambda: [s.abs() >= s.abs().kthvalue(len(s) - kept + 1).values for s, kept in scores],
        "frugal": lambda: [keep_mask(s, kept) for s, kept in scores],
    }
    compare(f"selection, all {len(sizes)} layers of ResNet-18, keep fraction {KEEP}", alternatives)
    images, labels = torch.randn(128, 3, 32, 32), torch.randint(10, (128,))
    built = {name: network(name) for name in NETWORKS}
    steps = {name: lambda pair=pair: network_step(*pair, images, labels) for name, pair in built.items()}
    compare("training step of the CIFAR ResNet-18, batch 128", steps, rounds=5)
    print("\npeak memory of that step")
    for name in NETWORKS:
        print(f"  {name:<42} {peak_memory(__file__, name):9.0f} MiB")


def compare_layers():
    for n in (110_592, 589_824, 2_359_296, 7_077_888):
        scores = torch.rand(n) - 0.5
        kept = kept_count(KEEP, n)
        alternatives = {
            "released: sort": lambda scores=scores: released_mask(scores.abs(), KEEP),
            "torch.kthvalue": lambda scores=scores, n=n, kept=kept: (
                scores.abs() >= scores.abs().kthvalue(n - kept + 1).values
            ),
            "frugal": lambda scores=scores, kept=kept: keep_mask(scores, kept),
        }
        compare(f"selection, n = {n:,}, keep fraction {KEEP}", alternatives)
    for title, (channels, side) in SHAPES.items():
        x = torch.randn(128, channels, side, side)
        built = layers(channels)
        steps = {name: lambda layer=layer, x=x: step(layer, x) for name, layer in built.items()}
        compare(f"training step, {title}, batch 128", steps)
        subnet = built["SubnetConv2d"]
        evaluations = {
            "plain convolution": lambda built=built, x=x: evaluate(built["plain convolution"], x),
            "SubnetConv2d, mask kept": lambda subnet=subnet, x=x: evaluate(subnet, x),
            "SubnetConv2d, mask computed each time": lambda subnet=subnet, x=x: evaluate(subnet, x, recompute=True),
        }
        compare(f"evaluation, {title}, batch 128", evaluations)
    print("\npeak memory of a training step, 512 ch, 4x4, batch 128")
    for name in layers(1):
        print(f"  {name:<42} {peak_memory(__file__, name):9.0f} MiB")


if __name__ == "__main__":
    main()
