"""Train a network under a teacher."""

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import timm
import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.utilities import rank_zero_info
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.hooks import RemovableHandle

import networks
from networks import InputError, complexity
from networks.errors import mismatch

if TYPE_CHECKING:
    from lightning_modules import Classifier

Teacher = Any  # str | nn.Module; spelled out, --help would list every module of torch
REMEDY = "give the teacher by name too, Distillation.teacher"


def logit_matching(student: Tensor, teacher: Tensor, temperature: float = 1.0) -> Tensor:
    """KL(softmax(t / T) || softmax(s / T)), the mean over samples ("batchmean"), without a factor T^2.

    The release of Bulat et al. (ICLR 2021) averages over all B * classes elements with a weight of 1000: for 1000
    classes the same number as this with weight 1.

    Args:
        student, teacher: logits s and t, (B, classes).
    """
    log_s, log_t = ((_precise(logits) / temperature).log_softmax(-1) for logits in (student, teacher))
    return F.kl_div(log_s, log_t, reduction="batchmean", log_target=True)


def attention_map(features: Tensor) -> Tensor:
    """Mean over channels of A^2, as a vector of length 1 for each sample (Zagoruyko & Komodakis, ICLR 2017).

    Args:
        features: A, (B, C, H, W).

    Returns:
        Q, (B, H * W), in float32 or more.
    """
    return F.normalize(_precise(features).square().mean(1).flatten(1))


def _precise(x: Tensor) -> Tensor:
    """In float32 or more, also under autocast."""
    return x if x.dtype == torch.float64 else x.float()


def attention_matching(student: Sequence[Tensor], teacher: Sequence[Tensor]) -> Tensor:
    """Sum over layers of the mean of (Q_s - Q_t)^2 over samples and positions, as in Bulat et al.'s release.

    Real-to-Binary (Martinez et al., ICLR 2020) has the norm of the difference instead of its square.

    Args:
        student, teacher: Q of each layer, (B, H * W), from `attention_map`.
    """
    return torch.stack([(q_s - q_t).square().mean() for q_s, q_t in zip(student, teacher, strict=True)]).sum()


class Distillation(Callback):
    """Trains a network under a teacher: adds the loss terms logit_matching and attention_matching to its module's.

    The teacher stays frozen, in eval mode, and outside the module, its optimiser and its checkpoints. It sees the
    images that the student sees, mixed ones too, once in each step and never in validation unless asked. Logged are
    both terms, train/teacher_top1 (on the student's training images) and train/agreement, the share of samples to which
    both give the same class.

    Args:
        teacher: timm name, pretrained unless `checkpoint` is given ("resnet34.tv_in1k"), import path of your own
            network, or from Python any module that gives logits. None: what `checkpoint` says.
        teacher_args: arguments of a network given by name.
        checkpoint: file with the teacher's weights: a checkpoint of ours, which says what it is, a state_dict, or
            safetensors; on the command line also a config, for the last checkpoint of its run with the same seed.
        logit_weight: of logit matching; 0 leaves it out.
        temperature: T of logit matching.
        attention_weight: of attention matching; 0 leaves it out.
        layers: regular expression for whole names of the student's layers whose attention is matched.
        teacher_layers: likewise the teacher's, one for each of the student's in their order; None: the same expression.
        validate: ask the teacher in validation too, for val/teacher_top1 and val/agreement.

    Raises:
        InputError: no teacher, one of other classes, with other sizes or numbers of the matched layers, or whose
            weights cannot be read; nothing to match.
    """

    def __init__(
        self,
        teacher: Teacher = None,
        teacher_args: dict[str, Any] | None = None,
        checkpoint: str | None = None,
        logit_weight: float = 1.0,
        temperature: float = 1.0,
        attention_weight: float = 1000.0,
        layers: str = r"layer[2-4]",
        teacher_layers: str | None = None,
        validate: bool = False,
    ) -> None:
        if teacher is None and checkpoint is None:
            raise InputError("Distillation has no teacher: give teacher (a timm name) or checkpoint")
        if min(logit_weight, attention_weight) < 0 or logit_weight == attention_weight == 0:
            raise InputError(f"{logit_weight=} and {attention_weight=}: none is negative, and one is more than 0")
        if temperature <= 0:
            raise InputError(f"Distillation.{temperature=} divides logits: it is more than 0")
        self.given, self.teacher_args, self.checkpoint = teacher, teacher_args or {}, checkpoint
        self.logit_weight, self.temperature, self.attention_weight = logit_weight, temperature, attention_weight
        self.layers, self.teacher_layers, self.validate = layers, teacher_layers or layers, validate
        self.teacher: nn.Module | None = None
        self._hooks: list[RemovableHandle] = []
        self._features: dict[tuple[str, str], Tensor] = {}  # of the last forward, by (whose, layer)
        self._taught: tuple[Tensor, Tensor, list[Tensor]] | None = None  # for which outputs, logits, attention maps

    def prepare(self, module: LightningModule) -> None:
        """Build the teacher and compare it with the student, before anything runs.

        Raises:
            InputError: see the class.
        """
        if self.teacher is not None:
            return
        if not hasattr(module, "loss_terms"):
            raise InputError(f"Distillation trains modules with loss_terms, such as Classifier, not {type(module)}")
        student: Classifier = module  # type: ignore[assignment]
        teacher = self._build(student).eval().requires_grad_(False)
        self.pairs = self._pairs(student, teacher) if self.attention_weight else []
        self.teacher = teacher
        given = self.checkpoint or (self.given if isinstance(self.given, str) else type(self.given).__name__)
        matched = f", attention at {', '.join(name for name, _ in self.pairs)}" if self.pairs else ""
        rank_zero_info(f"teacher: {given}, frozen{matched}")

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage == "fit":
            self.prepare(pl_module)

    def on_fit_start(self, trainer: Trainer, pl_module: "Classifier") -> None:  # type: ignore[override]
        assert self.teacher is not None
        self.teacher.to(pl_module.device, pl_module.dtype)  # type: ignore[arg-type]
        self._module = pl_module
        if self.logit_weight:
            pl_module.loss_terms["logit_matching"] = self._logit_term
        if self.attention_weight:
            pl_module.loss_terms["attention_matching"] = self._attention_term
        for stage in ("train", "val") if self.validate else ("train",):
            for name in ("teacher_top1", "agreement"):
                pl_module.mean_of(f"{stage}/{name}")
        for ours, theirs in self.pairs:
            self._keep("student", ours, pl_module.network, training=True)
            self._keep("teacher", theirs, _network(self.teacher), training=False)
        if self.validate:
            self._keep("student", "", pl_module.network, training=False)

    def on_train_batch_end(self, *args: Any) -> None:
        self._features, self._taught = {}, None  # graphs of the step that is over

    def on_validation_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, *args: Any
    ) -> None:
        if self.validate and trainer.state.fn == "fit":
            inputs = batch[0]
            logits = self._ask(inputs) if len(inputs) else inputs.new_zeros(0, self._module.num_classes)
            self._compare("val", batch, self._features.pop(("student", ""), logits), logits)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._let_go(pl_module)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._let_go(pl_module)  # Lightning does not tear callbacks down then

    def _let_go(self, pl_module: LightningModule) -> None:
        for hook in self._hooks:
            hook.remove()
        self._hooks, self._features, self._taught = [], {}, None
        for name in ("logit_matching", "attention_matching"):
            getattr(pl_module, "loss_terms", {}).pop(name, None)

    def _keep(self, whose: str, name: str, network: nn.Module, training: bool) -> None:
        """Keep what a layer gives, with gradients in training, else without."""

        def keep(module: nn.Module, args: Any, output: Tensor) -> None:
            if torch.is_grad_enabled() == training:
                self._features[whose, name] = output

        self._hooks.append(network.get_submodule(name).register_forward_hook(keep))

    def _build(self, student: "Classifier") -> nn.Module:
        from lightning_modules import initial  # which imports callbacks

        size, classes = student.input_size, student.num_classes
        weights = initial.read(self.checkpoint, "the teacher's checkpoint") if self.checkpoint else None
        if isinstance(self.given, nn.Module):
            teacher = self.given
        elif weights and (self.given is None or weights.hyper_parameters.get("network") == self.given):
            teacher = initial.rebuild(weights.path, weights.method, weights.hyper_parameters, REMEDY, self.given)
        elif weights:
            teacher = networks.create(self.given, size, classes, self.teacher_args)
        else:
            teacher = _pretrained(self.given, size, self.teacher_args)
        outputs = complexity.output_size(_network(teacher), size)
        if outputs != (classes,):
            raise InputError(f"the teacher gives outputs of size {outputs}, the student has {classes} classes")
        if weights:
            _load(teacher, weights.tensors, weights.path)
        return teacher

    def _pairs(self, student: "Classifier", teacher: nn.Module) -> list[tuple[str, str]]:
        """Names of the layers that are matched, the student's and the teacher's."""
        ours, theirs = (
            {name: size for name, size in all_sizes.items() if re.fullmatch(pattern, name)}
            for pattern, all_sizes in (
                (self.layers, complexity.output_sizes(student.network, student.input_size)),
                (self.teacher_layers, complexity.output_sizes(_network(teacher), student.input_size)),
            )
        )
        if not ours or len(ours) != len(theirs):
            raise InputError(
                f"attention matching finds {len(ours)} layers {self.layers!r} in the student ({', '.join(ours)}) and "
                f"{len(theirs)} {self.teacher_layers!r} in the teacher ({', '.join(theirs)}): give layers and "
                "teacher_layers, or attention_weight 0"
            )
        for (name, size), (other, their_size) in zip(ours.items(), theirs.items(), strict=True):
            if len(size) != 3 or size[1:] != their_size[1:]:
                raise InputError(
                    f"attention matching compares equal heights and widths: the student's {name} gives {size}, the "
                    f"teacher's {other} {their_size}; give layers and teacher_layers, or attention_weight 0"
                )
        return list(zip(ours, theirs, strict=True))

    def _teach(self, batch: Any, outputs: Tensor) -> tuple[Tensor, list[Tensor]]:
        """The teacher's logits and attention maps for a batch; one pass serves both terms."""
        if self._taught is None or self._taught[0] is not outputs:
            logits = self._ask(batch[0])
            maps = [self._features.pop(("teacher", name)) for _, name in self.pairs]
            with torch.no_grad():
                self._taught = outputs, logits, [attention_map(features) for features in maps]
            self._compare("train", batch, outputs, logits)
        return self._taught[1:]

    def _ask(self, inputs: Tensor) -> Tensor:
        assert self.teacher is not None
        if self.teacher.training:  # someone who holds it too has changed it
            self.teacher.eval()
        with torch.no_grad():  # what is made under inference_mode cannot be saved for backward
            return self.teacher(inputs)

    def _compare(self, stage: str, batch: Any, outputs: Tensor, logits: Tensor) -> None:
        from lightning_modules.classifier import labels_of

        answers = logits.argmax(-1)
        self._module.log_mean(f"{stage}/teacher_top1", (answers == labels_of(batch[1])).float())
        self._module.log_mean(f"{stage}/agreement", (answers == outputs.argmax(-1)).float())

    def _logit_term(self, batch: Any, outputs: Tensor) -> Tensor:
        return self.logit_weight * logit_matching(outputs, self._teach(batch, outputs)[0], self.temperature)

    def _attention_term(self, batch: Any, outputs: Tensor) -> Tensor:
        maps = [attention_map(self._features.pop(("student", name))) for name, _ in self.pairs]
        return self.attention_weight * attention_matching(maps, self._teach(batch, outputs)[1])


def _network(teacher: nn.Module) -> nn.Module:
    """Where the layers' names begin, also in a module of ours."""
    return teacher.network if isinstance(teacher, LightningModule) else teacher  # type: ignore[return-value]


def _pretrained(name: str, input_size: tuple[int, ...], args: dict[str, Any]) -> nn.Module:
    if not timm.is_model(name):
        raise InputError(f"no pretrained teacher: timm has no {name}; give Distillation.checkpoint with it")
    try:
        return networks.create(name, input_size, None, {"pretrained": True, **args})
    except InputError as error:
        raise InputError(f"no pretrained teacher: {error}; Distillation.checkpoint takes a file of weights") from error


def _load(teacher: nn.Module, tensors: dict[str, Tensor], path: str) -> None:
    """All of the teacher's weights, or none."""
    network = _network(teacher)
    given = {name.removeprefix("network."): tensor for name, tensor in tensors.items()}
    if wrong := mismatch(network.state_dict(), given):
        raise InputError(f"{path} is not of this teacher: {wrong}")
    network.load_state_dict(given)
