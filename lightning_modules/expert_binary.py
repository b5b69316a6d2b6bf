"""Expert binary networks (Bulat, Martinez & Tzimiropoulos, ICLR 2021)."""

import inspect
import math
from typing import Any

import timm
import torch
from pytorch_lightning import Callback
from pytorch_lightning.cli import OptimizerCallable
from pytorch_lightning.utilities import rank_zero_info
from torch import Tensor, nn

import networks
from callbacks.feature_map import FeatureMap
from lightning_modules.classifier import Classifier
from lightning_modules.initial import Weights
from lightning_modules.task import Network
from networks import InputError, bits
from networks.expert_binary import expert_layers, release
from networks.expert_binary.layers import ExpertBinaryConv2d, FpActivation, GateGrad, Routing, Step


class ExpertBinary(Classifier):
    """Trains a network whose binary convolutions pick one of N experts for each image, in four steps.

    "fp": real activations and weights, the teacher of the next step. "one_expert": sign activations, real weights
    (Stage I), one expert. "experts": Stage I with all experts, which begin as copies of the one. "binary": sign weights
    too (Stage II), from the real ones of before. Each step is a run of its own that starts from the one before it by
    `initial_checkpoint`; `frugal steps` runs them in a row. Weights decay in all steps but "binary".
    Recipes are in configs/expert_binary/. After each epoch it logs, for each layer, the share of samples that went to
    each expert, their entropy in bits, and the share of binary weights whose sign has flipped, drawn into layers.png;
    `test` draws features.png, classes and experts in the space of features.

    Args:
        network: "expert_binary_resnet" and the paper's constellations (`expert_binary_*`) come with expert binary
            convolutions; of any other network the inner convolutions are replaced.
        num_classes, input_size, network_args, optimizer, schedule, drop_epochs, warmup_epochs, label_smoothing,
            mixup_alpha, initial_checkpoint: as in Classifier. A checkpoint of the wrong step is refused; one with one
            expert that enters the step "experts" is copied to all, be it of a network with one expert or of N.
        step: "fp", "one_expert", "experts" or "binary".
        num_experts: N; 1 has no step "experts".
        temperature: of the gate's gradient, more than 0; callbacks.TemperatureAnnealing may change it.
        gate_grad: "softmax", or "sigmoid" as the paper's ablation.
        routing: "winner", or "mixture" for the paper's baseline, binarised CondConv.
        rescale: scale channels by a function of the input's averages (Real-to-Binary); the paper's rows with a mark.
        fp_activation: of the step "fp": "identity", or "tanh" as in Real-to-Binary.

    Raises:
        InputError: the step "experts" with one expert, a network without a convolution to replace, a checkpoint of a
            step from which this one cannot start, and all that Classifier refuses.
    """

    release = release
    defining = (*Classifier.defining, "step", "num_experts", "routing", "rescale", "fp_activation")

    def __init__(
        self,
        network: Network,
        num_classes: int | None = None,
        input_size: tuple[int, ...] | None = None,
        network_args: dict[str, Any] | None = None,
        optimizer: OptimizerCallable = lambda p: torch.optim.AdamW(p, lr=1e-3, weight_decay=1e-2),
        *,
        step: Step = "binary",
        num_experts: int = 4,
        temperature: float = 1.0,
        gate_grad: GateGrad = "softmax",
        routing: Routing = "winner",
        rescale: bool = False,
        fp_activation: FpActivation = "identity",
        **kwargs: Any,
    ) -> None:
        if step == "experts" and num_experts == 1:
            raise InputError("with num_experts=1 there is no step 'experts': 'binary' follows 'one_expert'")
        options: dict[str, Any] = dict(
            num_experts=num_experts, temperature=temperature, gate_grad=gate_grad, routing=routing, rescale=rescale
        )
        built_in = isinstance(network, str) and network in timm.list_models("expert_binary*")
        twice = sorted(options.keys() & (network_args or {}).keys())
        if built_in and twice:
            raise InputError(f"network_args has {', '.join(twice)}: give model.{twice[0]} instead")
        args = {**(network_args or {}), **options} if built_in else network_args
        super().__init__(network, num_classes, input_size, args, optimizer, **kwargs)
        defaults = inspect.signature(ExpertBinary).parameters
        asked = sorted(name for name, value in options.items() if value != defaults[name].default)
        if self.layers and not built_in and asked:
            raise InputError(f"the network has its expert binary convolutions already: give {', '.join(asked)} to it")
        if not self.layers:
            networks.expert_binary.apply(self.network, **options)
        networks.expert_binary.set_step(self.network, step, fp_activation)
        self.step: Step = step
        self._signs: dict[str, Tensor] = {}  # of the last call of layer_metrics, packed
        rank_zero_info(f"expert_binary: {len(self.layers)} layers, num_experts {num_experts}, step {step}")

    @property
    def layers(self) -> dict[str, ExpertBinaryConv2d]:
        """The expert binary convolutions by their names in the network."""
        return expert_layers(self.network)

    def configure_callbacks(self) -> list[Callback]:
        given = {type(callback) for callback in self.trainer.callbacks}  # type: ignore[attr-defined]
        return [callback for callback in (*super().configure_callbacks(), FeatureMap()) if type(callback) not in given]

    def decays(self, name: str, parameter: nn.Parameter) -> bool:
        """Every parameter in Stage I, as released, and none in Stage II (EBN Section 5)."""
        return self.step != "binary"

    def start_from(self, weights: Weights) -> str:
        """Take the weights of the step before; one expert that enters the step "experts" is copied to all."""
        before = weights.hyper_parameters.get("step") if weights.method == type(self).__name__ else None
        experts = max(layer.num_experts for layer in self.layers.values())
        fitting: dict[Step, tuple[Step, ...]] = {
            "fp": ("fp",),
            "one_expert": ("fp", "one_expert"),
            "experts": ("one_expert", "experts"),
            "binary": ("experts", "binary") if experts > 1 else ("one_expert", "binary"),
        }
        if weights.method and before not in fitting[self.step]:
            trained = f"step {before!r}" if before else f"{weights.method}"
            raise InputError(
                f"{weights.path} is of {trained}: step {self.step!r} of a network with {experts} experts starts from "
                + " or ".join(map(repr, fitting[self.step]))
            )
        ours, tensors = self.hparams["num_experts"], dict(weights.tensors)
        theirs = weights.hyper_parameters.get("num_experts", ours) if before else ours
        copied = self.step == "experts" and before in ("one_expert", None)
        if theirs != ours and not copied:
            raise InputError(f"{weights.path} has num_experts={theirs}, not {ours}: only 'experts' multiplies them")
        inside = "network." if any(name.startswith("network.") for name in tensors) else ""
        for name, layer in self.layers.items():
            own, given = layer.weight, tensors.get(f"{inside}{name}.weight")
            if copied and given is not None and given.ndim == own.ndim and (before or len(given) == 1):
                tensors[f"{inside}{name}.weight"] = given = given[:1].expand(len(own), *given.shape[1:])
            if self.step in ("experts", "binary") and (given is None or given.shape != own.shape):
                raise InputError(f"{weights.path} is of another network: it has no weights for the experts of {name}")
        report = super().start_from(Weights(weights.path, tensors))
        return f"{report}\n  the one expert of each layer is now in all {experts}" if before and copied else report

    def layer_metrics(self) -> dict[str, dict[str, float]]:
        """For each layer the sign flips since the last call; and each expert's share of samples, and their entropy."""
        flips: dict[str, float] = {}
        entropy: dict[str, float] = {}
        shares: dict[str, dict[str, float]] = {}
        for name, layer in self.layers.items():
            weight = layer.weight[: 1 if layer.single_expert else None]
            signs = bits.pack(weight >= 0)
            before = self._signs.get(name, signs)
            flips[name] = int(bits.unpack(signs ^ before, weight.numel()).sum()) / weight.numel()
            self._signs[name] = signs
            if layer.gate is not None and not layer.single_expert:
                counts = self._counts_of_all(layer).tolist()
                share = [count / max(sum(counts), 1) for count in counts]
                entropy[name] = -math.fsum(p * math.log2(p) for p in share if p)
                for expert, value in enumerate(share):
                    shares.setdefault(f"expert_{expert}_share", {})[name] = value
                layer.gate.counts = None
        return {"weight_flips": flips, **({"expert_entropy": entropy, **shares} if shares else {})}

    def _counts_of_all(self, layer: ExpertBinaryConv2d) -> Tensor:
        """Samples that went to each expert, in all processes, (N,), int64, on the CPU."""
        assert layer.gate is not None
        counts = layer.gate.counts
        if counts is None:
            counts = torch.zeros(layer.num_experts, dtype=torch.int64, device=self.device)
        if self._trainer is not None:  # a copy, for it adds up in place
            counts = self.trainer.strategy.reduce(counts.to(self.device, copy=True), reduce_op="sum")
        return counts.cpu()

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_save_checkpoint(checkpoint)
        gated = {name: layer for name, layer in self.layers.items() if layer.gate is not None}
        counts = {name: self._counts_of_all(layer) for name, layer in gated.items()}
        checkpoint["expert_binary"] = {"signs": self._signs, "counts": counts}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_load_checkpoint(checkpoint)
        state = checkpoint.get("expert_binary", {"signs": {}, "counts": {}})
        self._signs = state["signs"]
        for name, counts in state["counts"].items():  # those of all processes go on in the first
            gate = self.layers[name].gate
            if gate is not None and not counts.is_meta:  # of a checkpoint that is only looked at
                gate.counts = counts.to(self.device) if self.global_rank == 0 else None
