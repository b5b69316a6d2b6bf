"""Training steps of expert binary networks: python benchmarks/expert_binary.py [layers|network]

Of each layer shape of the final network (1262-2-4:8:8:16, N = 4) and of the whole: one expert, which is what a user
would train without the method; the literal version, a kernel for each sample and one convolution with B * G groups by
autograd; and ours. Times are medians, ratios are to the first line of each group, memory is a fresh process's peak.
"""

import argparse

import timm
import torch
from timing import compare, header, own_peak, peak_memory
from torch.nn import functional as F

from networks.expert_binary import ExpertBinaryConv2d, expert_layers

FINAL = "expert_binary_deep_1262_2_4_8_8_16"
BATCH = 32
ALTERNATIVES = ("one expert", "literal", "frugal")


class HandSign(torch.autograd.Function):
    @staticmethod
    def forward(ctx, v):
        ctx.save_for_backward(v)
        return torch.where(v < 0, -1.0, 1.0)

    @staticmethod
    def backward(ctx, g):
        return torch.where(ctx.saved_tensors[0].abs() < 1, g, 0.0)


class LiteralConv(ExpertBinaryConv2d):
    """The layer in the plainest words: select the kernels, take their signs, convolve."""

    def forward(self, x):
        z = x.mean((2, 3)) @ self.gate.weight.T + self.gate.bias
        soft = z.softmax(-1)
        phi = F.one_hot(z.argmax(-1), self.num_experts) + soft - soft.detach()
        kernels = HandSign.apply((phi @ self.weight.flatten(1)).view(-1, *self.weight.shape[2:]))
        signs = HandSign.apply(x).reshape(1, -1, *x.shape[2:])
        y = F.conv2d(signs, kernels, None, self.stride, self.padding, self.dilation, len(x) * self.groups)
        return y.view(len(x), -1, *y.shape[2:]) * self.scale[:, None, None]


def layer(alternative, shape):
    c, o, kernel_size, stride, groups, _ = shape
    kind = LiteralConv if alternative == "literal" else ExpertBinaryConv2d
    num_experts = 1 if alternative == "one expert" else 4
    torch.manual_seed(0)
    return kind(c, o, kernel_size, stride, kernel_size // 2, groups=groups, num_experts=num_experts)


def network(alternative):
    """The network and the paper's optimiser."""
    torch.manual_seed(0)
    net = timm.create_model(FINAL, num_experts=1 if alternative == "one expert" else 4)
    if alternative == "literal":
        for conv in expert_layers(net).values():
            conv.__class__ = LiteralConv
    return net, torch.optim.Adam(net.parameters())


def shapes():
    """C, O, k, stride, groups and the input's side of every distinct layer, and how often it is there."""
    counts = {}

    def look(conv, args, _):
        key = conv.in_channels, conv.out_channels, conv.kernel_size[0], conv.stride[0], conv.groups, args[0].shape[-1]
        counts[key] = counts.get(key, 0) + 1

    with torch.device("meta"), torch.no_grad():
        net = timm.create_model(FINAL, num_experts=1)
        for conv in expert_layers(net).values():
            conv.register_forward_hook(look)
        net(torch.empty(2, 3, 224, 224))
    return counts


def images(channels, side):
    """With an offset for each image and channel: of plain noise all images would choose the same expert."""
    torch.manual_seed(1)
    return torch.randn(BATCH, channels, side, side) + torch.randn(BATCH, channels, 1, 1)


def layer_step(conv, x):
    conv(x).sum().backward()
    conv.zero_grad()
    x.grad = None


def network_step(net, optimizer, x, labels):
    optimizer.zero_grad()
    F.cross_entropy(net(x), labels).backward()
    optimizer.step()


def step_of(alternative):
    pair, x, labels = network(alternative), images(3, 224), torch.arange(BATCH)
    return lambda: network_step(*pair, x, labels)


def compare_layers():
    for shape, count in shapes().items():
        c, o, k, stride, groups, side = shape
        built = {name: layer(name, shape) for name in ALTERNATIVES}
        x = images(c, side).requires_grad_()
        title = f"{c} -> {o} channels, {k}x{k}/{stride}, {groups} groups, {side}x{side} ({count} in the network)"
        steps = {name: lambda conv=conv, x=x: layer_step(conv, x) for name, conv in built.items()}
        compare(f"training step, {title}, batch {BATCH}", steps)
        with torch.no_grad():
            evaluations = {name: lambda conv=conv, x=x: conv(x) for name, conv in built.items()}
            compare(f"evaluation, {title}, batch {BATCH}", evaluations)


def compare_networks():
    steps = {name: step_of(name) for name in ALTERNATIVES}
    compare(f"training step of {FINAL}, batch {BATCH}, 224 pixels", steps, rounds=5)
    print("\npeak memory of that step")
    for name in ALTERNATIVES:
        print(f"  {name:<42} {peak_memory(__file__, name):9.0f} MiB")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("part", nargs="?", choices=("layers", "network"), help="the default is both")
    parser.add_argument("--only", choices=ALTERNATIVES, help="run one alternative and print the peak memory in MiB")
    options = parser.parse_args()
    if options.only:
        run = step_of(options.only)
        for _ in range(3):
            run()
        print(own_peak())
        return
    header()
    if options.part != "network":
        compare_layers()
    if options.part != "layers":
        compare_networks()


if __name__ == "__main__":
    main()
