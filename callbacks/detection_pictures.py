"""Draw what a detector sees."""

from collections.abc import Sequence
from typing import Any

import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from torch import Tensor
from torchvision.utils import draw_segmentation_masks

from callbacks.folder import log_folder, log_picture
from networks import InputError

Objects = dict[str, Tensor]


class DetectionPictures(Callback):
    """Draws the first images of the validation or test data with the objects found in them, beside the true ones.

    Into detections/epoch_<n>.png of the run folder, and the logger's images. Several processes draw the share of the
    first.

    Args:
        images: number of images.
        every_n_epochs: of validation during training; the last of max_epochs is drawn always.
        min_score: objects of a smaller score are left out.

    Raises:
        InputError: numbers that are none of these.
    """

    def __init__(self, images: int = 4, every_n_epochs: int = 1, min_score: float = 0.5) -> None:
        if images < 1 or every_n_epochs < 1 or not 0 <= min_score <= 1:
            raise InputError(f"{images=} and {every_n_epochs=} must be positive, {min_score=} must lie in 0 to 1")
        self.images, self.every_n_epochs, self.min_score = images, every_n_epochs, min_score
        self._taken: list[tuple[Tensor, Objects, Objects]] = []  # photograph, what is found, what is true

    def on_validation_batch_end(self, trainer: Trainer, pl_module: LightningModule, *arguments: Any) -> None:
        epoch = trainer.current_epoch + 1
        due = epoch % self.every_n_epochs == 0 or epoch == trainer.max_epochs or trainer.state.fn != "fit"
        if due and not trainer.sanity_checking:
            self._take(trainer, *arguments)

    def on_test_batch_end(self, trainer: Trainer, pl_module: LightningModule, *arguments: Any) -> None:
        self._take(trainer, *arguments)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._write(trainer, f"epoch_{trainer.current_epoch + 1:03d}" if trainer.state.fn == "fit" else "validate")

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._write(trainer, "test")

    def _take(self, trainer: Trainer, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        for image, found, target in zip(batch[0], outputs["detections"], batch[1], strict=True):
            if trainer.is_global_zero and len(self._taken) < self.images:
                good = found["scores"] >= self.min_score
                found = {name: each[good].cpu() for name, each in found.items()}
                self._taken.append((image.cpu(), found, {name: each.cpu() for name, each in target.items()}))

    def _write(self, trainer: Trainer, name: str) -> None:
        folder = log_folder(trainer) / "detections"
        taken, self._taken = self._taken, []
        if not taken or trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        from matplotlib.figure import Figure

        folder.mkdir(exist_ok=True)
        path = folder / f"{name}.png"
        names = getattr(trainer.datamodule, "class_names", None)  # type: ignore[attr-defined]
        figure = Figure(figsize=(14, 5.4 * len(taken)), layout="constrained")
        for (left, right), (image, found, target) in zip(
            figure.subplots(len(taken), 2, squeeze=False), taken, strict=True
        ):
            draw(left, image, found, names)
            draw(right, image, target, names)
            left.set_title(f"found with a score of {self.min_score} or more: {len(found['labels'])}")
            right.set_title(f"true: {len(target['labels'])}")
        figure.suptitle(name)
        figure.savefig(path, dpi=90)
        log_picture(trainer, "detections", path)


def draw(axes: Any, image: Tensor, objects: Objects, names: Sequence[str] | None) -> None:
    """Draw a photograph (3, H, W), bytes or 0 to 1, with boxes, masks where there are some, names and scores.

    Each object has its own colour, of twenty.
    """
    from matplotlib import colormaps
    from matplotlib.patches import Rectangle

    pixels = image if image.dtype == torch.uint8 else (image * 255).round().to(torch.uint8)
    colours = [colormaps["tab20"](i % 20)[:3] for i in range(len(objects["labels"]))]
    if colours and "masks" in objects:
        bytes_of = [tuple(round(255 * part) for part in colour) for colour in colours]
        pixels = draw_segmentation_masks(pixels, objects["masks"].bool(), alpha=0.5, colors=bytes_of)
    axes.imshow(pixels.permute(1, 2, 0).numpy())
    axes.set_axis_off()
    for i, colour in enumerate(colours):
        x1, y1, x2, y2 = objects["boxes"][i].tolist()
        axes.add_patch(Rectangle((x1, y1), x2 - x1, y2 - y1, fill=False, edgecolor=colour, linewidth=2))
        label = int(objects["labels"][i])
        text = str(names[label]) if names else str(label)
        text += f" {objects['scores'][i]:.2f}" if "scores" in objects else ""
        behind = {"facecolor": colour, "alpha": 0.75, "pad": 0.8, "linewidth": 0}
        axes.text(x1, y1, text, fontsize=6, color="black", va="top", clip_on=True, bbox=behind)
