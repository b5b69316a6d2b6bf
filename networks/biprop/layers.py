"""The masked binary layers of multi-prize tickets.

Diffenderfer & Kailkhura, "Multi-Prize Lottery Ticket Hypothesis", ICLR 2021, arXiv 2103.09377; where the paper leaves
a choice open these layers follow the authors' release and say so.

Symbols: W frozen random weights, S trained scores, n their number, k the fraction kept, M the mask, alpha the gain,
V the effective weights that the layer computes with.
"""

import math
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from networks import bits
from networks.biprop.selection import GlobalSelection, keep_mask, kept_count
from networks.complexity import Cost
from networks.errors import InputError, check_choice

Init = Literal["kaiming_normal", "signed_constant", "unsigned_constant"]
Scale = Literal["none", "release", "kept"]
Binarize = Literal["sign_gain", "none"]
GainCount = Literal["kept", "floor_kn"]
ScoreGradient = Literal["weight", "sign"]


class _Effective(torch.autograd.Function):
    """V forward; straight through backward: dL/dS = dL/dV * W * sign(S), for kept and pruned entries alike.

    The factor is W itself, as in the release since 2021-04-12, or sign(W) as before; alpha and M are constants. Only
    references to S and W are saved.
    """

    @staticmethod
    def forward(scores: Tensor, weight: Tensor, layer: "_Subnet") -> Tensor:
        return layer._cached_weight(scores, weight)

    @staticmethod
    def setup_context(ctx, inputs, output) -> None:
        ctx.save_for_backward(*inputs[:2])
        ctx.score_gradient = inputs[2].score_gradient

    @staticmethod
    def backward(ctx, *grad_outputs):
        scores, weight = ctx.saved_tensors
        factor = weight if ctx.score_gradient == "weight" else weight.sign()
        return grad_outputs[0] * factor * scores.sign(), None, None


class _Subnet(nn.Module):
    """What SubnetConv2d and SubnetLinear share; mixed in before nn.Conv2d or nn.Linear."""

    weight: Tensor
    bias: Any  # nn.Conv2d and nn.Linear declare it differently
    scores: nn.Parameter
    sign_seed: Tensor  # from which the signs of W were drawn, scalar, int64
    activation_bits: int = 32
    selection: GlobalSelection | None = None  # None: this layer selects by itself
    _counted: int | None = None  # weights that a global selection keeps, in a copy on the meta device

    def _become_subnet(
        self,
        keep_fraction: float,
        init: Init,
        scale: Scale,
        binarize: Binarize,
        gain_count: GainCount,
        score_gradient: ScoreGradient,
    ) -> None:
        for name, value, choices in (
            ("init", init, Init),
            ("scale", scale, Scale),
            ("binarize", binarize, Binarize),
            ("gain_count", gain_count, GainCount),
            ("score_gradient", score_gradient, ScoreGradient),
        ):
            check_choice(name, value, choices)
        self.keep_fraction = keep_fraction
        self.init, self.scale, self.binarize, self.gain_count = init, scale, binarize, gain_count
        self.score_gradient = score_gradient
        self.weight.requires_grad_(False)
        self.scores = nn.Parameter(torch.empty_like(self.weight))
        self.register_buffer("sign_seed", torch.zeros((), dtype=torch.int64, device=self.weight.device))
        self._cache: tuple[tuple[float, str, str], Tensor, Tensor, Tensor] | None = None  # options, S, W, V
        self.reset_parameters()

    @property
    def keep_fraction(self) -> float:
        """Fraction of the weights that is kept, 0 < k <= 1 (the release calls it `prune_rate`)."""
        return self._keep_fraction

    @keep_fraction.setter
    def keep_fraction(self, value: float) -> None:
        if not 0 < value <= 1:
            raise InputError(f"keep_fraction is the fraction of weights KEPT, above 0 and at most 1; got {value}")
        self._keep_fraction = float(value)

    @property
    def weight_bits(self) -> int:
        """Bits of a deployed weight."""
        return 1 if self.binarize == "sign_gain" else 32

    def __getstate__(self) -> dict[str, Any]:
        state = {**self.__dict__, "_cache": None}  # neither copies nor files carry what is kept for evaluation
        if self.selection and not self.scores.is_meta:
            state["_counted"] = self.kept  # a copy on the meta device has no scores to count it by
        return state

    def reset_parameters(self) -> None:
        """Draw W anew by `init` and `scale`, and S ~ U(-1/sqrt(fan_in), 1/sqrt(fan_in)), as released.

        The signs of W are `random_signs` of `sign_seed`, which is itself drawn from torch's generator.
        """
        if not hasattr(self, "scores"):
            return  # nn.Conv2d and nn.Linear call this in their constructor, before there is anything to draw
        if self.scale == "release" and self.keep_fraction == 1:
            raise InputError("scale='release' divides by 1 - keep_fraction: it needs a keep fraction below 1")
        fan_in = self.weight[0].numel()
        divisor = {"none": 1.0, "release": 1 - self.keep_fraction, "kept": self.keep_fraction}[self.scale]
        sigma = math.sqrt(2) / math.sqrt(fan_in * divisor)  # gain of ReLU, used for sign activations too
        with torch.no_grad():
            self.scores.uniform_(-1 / math.sqrt(fan_in), 1 / math.sqrt(fan_in))
            if self.init == "kaiming_normal":
                self.weight.normal_(0, sigma).abs_()
                self.weight.clamp_(min=torch.finfo(self.weight.dtype).tiny)  # generators give 0 now and then: no sign
            else:
                self.weight.fill_(sigma)
            if self.init != "unsigned_constant" and not self.weight.is_meta:
                self.sign_seed.copy_(torch.randint(2**62, (), device="cpu"))
                signs = bits.random_signs(int(self.sign_seed), self.weight.numel())
                self.weight.mul_(signs.view(self.weight.shape).to(self.weight.device))
            if self.bias is not None:
                self.bias.zero_()

    @property
    def kept(self) -> int:
        """Number of weights kept."""
        if self.selection is None:
            return kept_count(self.keep_fraction, self.weight.numel())
        if not self.scores.is_meta:
            return int(self.mask().sum())
        if self._counted is None:
            raise InputError("what a global selection keeps depends on the scores, and on the meta device are none")
        return self._counted

    def mask(self) -> Tensor:
        """M: bool tensor of the weights' shape with exactly `kept` ones."""
        return self._mask(self.scores)

    def _mask(self, scores: Tensor) -> Tensor:
        return self.selection.mask(scores) if self.selection else keep_mask(scores, self.kept)

    def effective_weight(self) -> Tensor:
        """V = alpha * M * sign(W), alpha = sum(|W| * M) / sum(M); V = M * W for edge-popup (`binarize="none"`).

        Differentiable in the scores, straight through. Computed anew in every training forward; in evaluation it is
        kept for as long as S, W and k are bit for bit what they were, however they may have been changed.

        Returns:
            New tensor of the weights' shape; values in {-alpha, 0, alpha} for `binarize="sign_gain"`.
        """
        return self._effective_weight().clone()

    def _effective_weight(self) -> Tensor:
        return _Effective.apply(self.scores, self.weight, self)

    def _cached_weight(self, scores: Tensor, weight: Tensor) -> Tensor:
        if self.training or self.selection or scores.is_meta or torch.compiler.is_compiling():
            self._cache = None
            return self._compute_weight(scores, weight)
        # Version counters miss writes through .data (Lightning's weight averaging makes them), so contents decide.
        options = (self.keep_fraction, self.binarize, self.gain_count)
        if self._cache is None or not (
            self._cache[0] == options and _same(self._cache[1], scores) and _same(self._cache[2], weight)
        ):
            with torch.inference_mode(False):  # what is kept may serve a forward that needs gradients later
                value = self._compute_weight(scores, weight)
                self._cache = options, scores.detach().clone(), weight.detach().clone(), value
        return self._cache[3].detach()

    def _compute_weight(self, scores: Tensor, weight: Tensor) -> Tensor:
        mask = self._mask(scores)
        masked = weight * mask
        # 0, or NaN if a score is: what has diverged must show in the outputs.
        nothing = 0 * scores.sum(dtype=torch.promote_types(scores.dtype, torch.float32))
        if self.binarize == "none":
            return masked.add_(nothing)
        gain = self._gain(masked, mask)
        return masked.sign_().mul_(gain + nothing)

    def gain(self) -> Tensor:
        """alpha, a scalar; 0 where no weight is kept, never NaN."""
        mask = self.mask()
        return self._gain(self.weight * mask, mask)

    def _gain(self, masked: Tensor, mask: Tensor) -> Tensor:
        # In float64 the sum of up to 2^29 equal magnitudes is exact, so that their gain is that magnitude.
        total = masked.abs().sum(dtype=torch.float32 if masked.device.type == "mps" else torch.float64)
        if self.selection:
            return (total / mask.sum().clamp(min=1)).to(masked.dtype)  # counted without waiting for the device
        count = self.kept if self.gain_count == "kept" else int(self.keep_fraction * masked.numel())
        return (total / max(count, 1)).to(masked.dtype)

    def deployed_cost(self, x: Tensor, y: Tensor) -> Cost:
        """Cost of one call: kept weights stored as a mask bit each, a sign bit for the kept ones, and the gain."""
        n, kept = self.weight.numel(), self.kept
        positions = y.numel() // self.weight.shape[0]
        bias = 0 if self.bias is None else self.bias.numel()
        binary = self.weight_bits == 1
        ops, kept_ops = positions * n, positions * kept
        xnor = binary and self.activation_bits == 1
        return Cost(
            params=kept + bias,
            dense_params=n + bias,
            binary_params=kept if binary else 0,
            size_bits=n + kept * self.weight_bits + 32 * binary + 32 * bias,
            flops=0 if xnor else ops,
            bops=ops if xnor else 0,
            kept_flops=0 if xnor else kept_ops,
            kept_bops=kept_ops if xnor else 0,
        )

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, keep_fraction={self.keep_fraction}, init={self.init}"


def _same(a: Tensor, b: Tensor) -> bool:
    return a.dtype == b.dtype and a.device == b.device and torch.equal(a, b)


class SubnetConv2d(_Subnet, nn.Conv2d):
    """Convolution with frozen random weights of which a trained mask keeps a fraction, binarised.

    y = conv2d(x, V, bias), V from `effective_weight()`. `weight` is frozen, `scores` are trained.

    Args:
        in_channels, out_channels, kernel_size, stride, padding, dilation, groups, padding_mode, device, dtype:
            as in nn.Conv2d.
        bias: a trained bias; the method has none, hence False.
        keep_fraction: fraction of the weights kept, 0 < k <= 1.
        init: distribution of W with sigma = sqrt(2 / (fan_in * s)): N(0, sigma^2), +-sigma, or +sigma.
        scale: the divisor s: 1, 1 - k as the release codes it, or k, which keeps the signal's size in a network
            without batch normalisation (behind batch normalisation it makes no difference).
        binarize: "sign_gain" for biprop, "none" for edge-popup (Ramanujan et al., CVPR 2020).
        gain_count: denominator of the gain: the number of weights kept, or floor(k * n) as released (at most 1 less).
        score_gradient: what the gradient of the scores carries besides sign(S): W, or as an ablation sign(W), as in the
            release before 2021-04-12.

    Shape:
        x: (N, in_channels, H, W); y: (N, out_channels, H', W').

    Raises:
        InputError: keep_fraction outside (0, 1], or an option that is not in its list.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int],
        stride: int | tuple[int, int] = 1,
        padding: int | tuple[int, int] | str = 0,
        dilation: int | tuple[int, int] = 1,
        groups: int = 1,
        bias: bool = False,
        padding_mode: Literal["zeros", "reflect", "replicate", "circular"] = "zeros",
        *,
        keep_fraction: float = 0.5,
        init: Init = "kaiming_normal",
        scale: Scale = "none",
        binarize: Binarize = "sign_gain",
        gain_count: GainCount = "kept",
        score_gradient: ScoreGradient = "weight",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        geometry = (kernel_size, stride, padding, dilation, groups)
        super().__init__(in_channels, out_channels, *geometry, bias, padding_mode, device, dtype)
        self._become_subnet(keep_fraction, init, scale, binarize, gain_count, score_gradient)

    def forward(self, x: Tensor) -> Tensor:
        return self._conv_forward(x, self._effective_weight(), self.bias)


class SubnetLinear(_Subnet, nn.Linear):
    """Linear layer with frozen random weights of which a trained mask keeps a fraction, binarised.

    y = x V^T + bias, V from `effective_weight()`; the options are those of SubnetConv2d.

    Shape:
        x: (..., in_features); y: (..., out_features).

    Raises:
        InputError: keep_fraction outside (0, 1], or an option that is not in its list.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = False,
        *,
        keep_fraction: float = 0.5,
        init: Init = "kaiming_normal",
        scale: Scale = "none",
        binarize: Binarize = "sign_gain",
        gain_count: GainCount = "kept",
        score_gradient: ScoreGradient = "weight",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(in_features, out_features, bias, device, dtype)
        self._become_subnet(keep_fraction, init, scale, binarize, gain_count, score_gradient)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self._effective_weight(), self.bias)
