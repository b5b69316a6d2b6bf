"""The expert binary convolution (EBConv).

Bulat, Martinez & Tzimiropoulos, "High-Capacity Expert Binary Networks", ICLR 2021, arXiv 2010.03558 ("EBN"), Section 4;
where the paper leaves a choice open the layer follows the authors' release and says so.

Symbols: Theta the N experts, xbar the average of the layer's real input over its positions, z the gate's logits, phi
their one-hot winner, tau the temperature, alpha the scale, G the groups.
"""

import math
from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.utils import _pair

from networks.binarize import sign
from networks.complexity import Cost
from networks.errors import InputError, check_choice
from networks.expert_binary.routed import Geometry, convolve_each, per_expert_pays, routed_conv2d

Step = Literal["fp", "one_expert", "experts", "binary"]
FpActivation = Literal["identity", "tanh"]
GateGrad = Literal["softmax", "sigmoid"]
Routing = Literal["winner", "mixture"]

STEPS: tuple[Step, ...] = get_args(Step)


def winner_takes_all(logits: Tensor, temperature: float = 1.0, gradient: GateGrad = "softmax") -> Tensor:
    """One-hot of the largest logit, with the derivative of a soft choice (EBN Eq. 3 and 4).

    forward:           phi_j = 1 for the first j with the largest z_j, else 0
    backward, softmax: dphi_j/dz_k = p_k (delta_jk - p_j) / tau, p = softmax(z / tau); the paper prints it for tau = 1
    backward, sigmoid: dphi_j/dz_k = delta_jk s_k (1 - s_k) / tau, s = sigmoid(z / tau): the paper's ablation

    Args:
        logits: z, (B, N).
        temperature: tau > 0.

    Returns:
        phi, (B, N), of the logits' dtype.

    Raises:
        InputError: another gradient.
    """
    check_choice("gradient", gradient, GateGrad)
    soft = (logits / temperature).softmax(-1) if gradient == "softmax" else (logits / temperature).sigmoid()
    hard = torch.zeros_like(soft).scatter_(-1, logits.argmax(-1, keepdim=True), 1.0)
    return hard + (soft - soft.detach())  # the bracket is exactly zero


class Gate(nn.Linear):
    """Picks one of N experts for each sample: phi = WTA(omega xbar + b), in float32 also under autocast.

    Args:
        in_features: channels C of the layer's input.
        num_experts: N.
        temperature: tau; only the backward pass knows it.
        gradient: see winner_takes_all.
        routing: "winner", or "mixture" for CondConv's sigmoid(z) (Yang et al., NeurIPS 2019), which mixes all experts.

    Shape:
        xbar: (B, C); phi: (B, N).

    `counts` has, since it was last set to None, how many samples of training went to each expert: (N,), int64.
    """

    def __init__(
        self,
        in_features: int,
        num_experts: int,
        temperature: float = 1.0,
        gradient: GateGrad = "softmax",
        bias: bool = True,
        routing: Routing = "winner",
    ) -> None:
        super().__init__(in_features, num_experts, bias)
        self.num_experts, self.gradient, self.routing = num_experts, gradient, routing
        self.temperature = float(temperature)
        self.counts: Tensor | None = None

    def forward(self, average: Tensor) -> Tensor:
        logits = (average.unsqueeze(1) * self.weight).sum(-1)  # autocast leaves these alone, unlike a linear layer
        if self.bias is not None:
            logits = logits + self.bias
        mixed = self.routing == "mixture"
        phi = logits.sigmoid() if mixed else winner_takes_all(logits, self.temperature, self.gradient)
        if self.training:
            chosen = torch.zeros_like(logits, dtype=torch.int64).scatter_(-1, logits.argmax(-1, keepdim=True), 1)
            counts = chosen.sum(0)  # no buffer, for DDP would make every process's that of the first
            self.counts = counts if self.counts is None else self.counts.to(counts.device) + counts
        return phi

    def extra_repr(self) -> str:
        own = f"temperature={self.temperature}, gradient={self.gradient}, routing={self.routing}"
        return f"{super().extra_repr()}, {own}"


class ExpertBinaryConv2d(nn.Module):
    """Binary convolution that picks one of N experts for each sample (EBN Section 4.1).

    y_b = conv2d(sign(x_b), sign(Theta_e)) * alpha, where e = argmax_i (omega xbar_b + b)_i: selection comes first, sign
    second. Signs have values -1 and +1 (+1 for 0) and the straight-through derivative 1 where |v| < 1, else 0. The
    gate's gradient compares all experts, that of the weights reaches the chosen one only. Padding is with zeros.

    `set_step` says what computes: "fp" with real activations and weights, "one_expert" with sign activations and real
    weights (Stage I of the paper), both with the first expert alone; "experts" is Stage I with all, "binary" is final.

    Args:
        in_channels, out_channels, kernel_size, stride, padding, dilation, groups: as in nn.Conv2d. (The paper calls the
            number of groups "group size".)
        num_experts: N; 1 is an ordinary binary convolution without a gate.
        temperature: tau > 0 of the gate's gradient.
        gate_grad: "softmax", or "sigmoid" as the paper's ablation.
        gate_bias: b; the release has it, the paper prints none.
        routing: "winner", or "mixture" for the paper's baseline, binarised CondConv: sign(sum_i sigmoid(z_i) Theta_i).
        rescale: scale each channel by sigmoid(W2 relu(W1 xbar)), W1: C -> O // 8, W2 back (Real-to-Binary, Section
            4.3; hidden size as in EBN's release).

    Attributes:
        weight: Theta, (N, O, C / G, k, k), each expert initialised as an nn.Conv2d of its own.
        scale: alpha, (O,), shared by the experts, 1 at first; in every step.

    Shape:
        x: (B, C, H, W), real, usually behind batch normalisation; y: (B, O, H', W').

    Raises:
        InputError: groups that do not divide the channels, no expert, a temperature that is not positive, a stride with
            padding "same", an option that is not in its list.
    """

    weight_bits = 1
    activation_bits = 1

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int],
        stride: int | tuple[int, int] = 1,
        padding: int | tuple[int, int] | str = 0,
        dilation: int | tuple[int, int] = 1,
        groups: int = 1,
        *,
        num_experts: int = 4,
        temperature: float = 1.0,
        gate_grad: GateGrad = "softmax",
        gate_bias: bool = True,
        routing: Routing = "winner",
        rescale: bool = False,
    ) -> None:
        super().__init__()
        if groups < 1 or in_channels % groups or out_channels % groups:
            raise InputError(
                f"groups={groups} do not divide the channels of a {in_channels} -> {out_channels} convolution"
            )
        if num_experts < 1:
            raise InputError(f"num_experts={num_experts}: a layer has at least one")
        if rescale and out_channels < 8:
            raise InputError(
                f"rescale has {out_channels} // 8 hidden channels: it takes a layer with 8 or more outputs"
            )
        if isinstance(padding, str):
            check_choice("padding", padding, Literal["same", "valid"])
        if padding == "same" and _pair(stride) != (1, 1):
            raise InputError(f"padding='same' needs stride 1, not {stride}")
        check_temperature(temperature)
        check_choice("gate_grad", gate_grad, GateGrad)
        check_choice("routing", routing, Routing)
        self.in_channels, self.out_channels, self.groups = in_channels, out_channels, groups
        self.kernel_size: tuple[int, int] = _pair(kernel_size)
        self.stride: tuple[int, int] = _pair(stride)
        self.padding = padding if isinstance(padding, str) else _pair(padding)
        self.dilation: tuple[int, int] = _pair(dilation)
        self.num_experts, self.routing = num_experts, routing
        self.weight = nn.Parameter(torch.empty(num_experts, out_channels, in_channels // groups, *self.kernel_size))
        self.scale = nn.Parameter(torch.ones(out_channels))
        gated = num_experts > 1
        self.gate = Gate(in_channels, num_experts, temperature, gate_grad, gate_bias, routing) if gated else None
        hidden = out_channels // 8
        self.rescale = (
            nn.Sequential(
                nn.Linear(in_channels, hidden, bias=False),
                nn.ReLU(),
                nn.Linear(hidden, out_channels, bias=False),
                nn.Sigmoid(),
            )
            if rescale
            else None
        )
        self.reset_parameters()
        self.set_step("binary")

    def reset_parameters(self) -> None:
        """Kaiming-uniform with a = sqrt(5) for each expert by itself; the axis of experts does not enter the fan."""
        for expert in self.weight:
            nn.init.kaiming_uniform_(expert, a=math.sqrt(5))

    def set_step(self, step: Step, fp_activation: FpActivation = "identity") -> None:
        """Choose what computes, see the class; the gate is frozen where it picks nothing.

        Args:
            fp_activation: what stands for sign in step "fp": nothing as in EBN's release, or tanh as in R2B.

        Raises:
            InputError: one that is not in its list.
        """
        check_choice("step", step, Step)
        check_choice("fp_activation", fp_activation, FpActivation)
        self.step, self.fp_activation = step, fp_activation
        if self.gate is not None:
            # Else plain DDP would wait for its gradient, and weight decay would shrink it before it is ever used.
            self.gate.requires_grad_(not self.single_expert)

    @property
    def single_expert(self) -> bool:
        """Whether the first expert alone computes in this step."""
        return self.step in ("fp", "one_expert")

    @property
    def margins(self) -> list[int]:
        """Zeros on the left, right, top and bottom; odd ones of "same" go to the right and bottom."""
        if not isinstance(self.padding, str):
            vertical, horizontal = self.padding
            return [horizontal, horizontal, vertical, vertical]
        height, width = (d * (k - 1) for d, k in zip(self.dilation, self.kernel_size, strict=True))
        return [width // 2, -(-width // 2), height // 2, -(-height // 2)] if self.padding == "same" else [0, 0, 0, 0]

    def forward(self, x: Tensor) -> Tensor:
        gate = None if self.single_expert else self.gate
        average = None
        if gate is not None or self.rescale is not None:
            average = x.mean((2, 3), dtype=self.scale.dtype)  # before binarisation
        signs, left, right, top, bottom = self._activate(x), *self.margins
        if (left, top) != (right, bottom):
            signs, left, top = F.pad(signs, self.margins), 0, 0
        geometry = Geometry(self.stride, (top, left), self.dilation, self.groups)
        if gate is None:
            y = F.conv2d(signs, self._quantize(self.weight[0]), None, *geometry)
        elif self.routing == "mixture":
            mixed = (gate(average) @ self.weight.flatten(1)).view(-1, *self.weight.shape[1:])
            y = convolve_each(signs, self._quantize(mixed), geometry)
        else:
            per_expert = per_expert_pays(signs, self.weight[0].numel())
            y = routed_conv2d(signs, self.weight, gate(average), geometry, self.step == "binary", per_expert)
        y = y * self.scale.view(-1, 1, 1)
        return y if self.rescale is None else y * self.rescale(average)[:, :, None, None]

    def _activate(self, x: Tensor) -> Tensor:
        if self.step != "fp":
            return sign(x, at_zero=1, gradient="window")  # sign(0) = +1; torch's sign, as released, has a third value
        return x.tanh() if self.fp_activation == "tanh" else x

    def _quantize(self, weight: Tensor) -> Tensor:
        return sign(weight, at_zero=1, gradient="window") if self.step == "binary" else weight

    def deployed_cost(self, x: Tensor, y: Tensor) -> Cost:
        """Cost of one call when binary, whatever the step: one expert computes, all are stored.

        Gate and rescale are overhead. A mixture has to store real experts and to mix them for every input.
        """
        side = sum(p.numel() for part in (self.gate, self.rescale) if part is not None for p in part.parameters())
        bias = 0 if self.gate is None or self.gate.bias is None else self.gate.bias.numel()
        experts, ordinary = self.weight.numel(), self.weight[0].numel()
        mixed = self.gate is not None and self.routing == "mixture"
        bops = y.numel() // self.out_channels * ordinary
        return Cost(
            params=experts + self.scale.numel() + side,
            dense_params=ordinary,
            binary_params=0 if mixed else experts,
            bops=bops,
            kept_bops=bops,
            overhead_flops=side - bias + (experts if mixed else 0),
            size_bits=experts * (32 if mixed else 1) + 32 * (self.scale.numel() + side),
        )

    def extra_repr(self) -> str:
        return (
            f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}, stride={self.stride}, "
            f"groups={self.groups}, num_experts={self.num_experts}, routing={self.routing}, step={self.step}"
        )


def check_temperature(temperature: float) -> None:
    """Refuse a temperature that is not positive (InputError)."""
    if not 0 < temperature < math.inf:
        raise InputError(f"temperature={temperature}: the gate's softmax needs a positive one")
