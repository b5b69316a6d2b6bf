"""Draw what a detector sees."""

from typing import Any

import numpy as np
import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from torch import Tensor
from torchvision.utils import draw_bounding_boxes, draw_segmentation_masks

from callbacks.folder import log_folder
from networks import InputError


class DetectionPictures(Callback):
    """Draws the first images of the validation or test data with the objects found in them, beside the true ones.

    Into detections/epoch_<n>.png of the run folder, and the logger's images. Several processes draw the share of the
    first.

    Args:
        images: number of images.
        every_n_epochs: of validation during training; the last epoch is drawn always.
        min_score: objects of a smaller score are left out.

    Raises:
        InputError: numbers that are none of these.
    """

    def __init__(self, images: int = 4, every_n_epochs: int = 1, min_score: float = 0.5) -> None:
        if images < 1 or every_n_epochs < 1 or not 0 <= min_score <= 1:
            raise InputError(f"{images=} and {every_n_epochs=} must be positive, {min_score=} must lie in 0 to 1")
        self.images, self.every_n_epochs, self.min_score = images, every_n_epochs, min_score
        self._drawn: list[np.ndarray] = []

    def on_validation_batch_end(self, trainer: Trainer, pl_module: LightningModule, *arguments: Any) -> None:
        epoch = trainer.current_epoch + 1
        last = epoch == trainer.max_epochs
        if not trainer.sanity_checking and (epoch % self.every_n_epochs == 0 or last):
            self._take(trainer, *arguments)

    def on_test_batch_end(self, trainer: Trainer, pl_module: LightningModule, *arguments: Any) -> None:
        self._take(trainer, *arguments)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._write(trainer, f"epoch_{trainer.current_epoch + 1:03d}" if trainer.state.fn == "fit" else "validate")

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._write(trainer, "test")

    def _take(self, trainer: Trainer, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        if not trainer.is_global_zero:
            return
        names = getattr(trainer.datamodule, "class_names", None)  # type: ignore[attr-defined]
        for image, found, target in zip(batch[0], outputs["detections"], batch[1], strict=True):
            if len(self._drawn) < self.images:
                good = found["scores"] >= self.min_score
                left = draw(image, {name: each[good] for name, each in found.items()}, names)
                gap = np.full((left.shape[0], left.shape[1] // 50, 3), 255, np.uint8)
                self._drawn.append(np.concatenate([left, gap, draw(image, target, names)], axis=1))

    def _write(self, trainer: Trainer, name: str) -> None:
        folder = log_folder(trainer) / "detections"
        drawn, self._drawn = self._drawn, []
        if not drawn or trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        from matplotlib.figure import Figure

        folder.mkdir(exist_ok=True)
        path = folder / f"{name}.png"
        figure = Figure(figsize=(12, 4.6 * len(drawn)), layout="constrained")
        for axes, picture in zip(figure.subplots(len(drawn), 1, squeeze=False)[:, 0], drawn, strict=True):
            axes.imshow(picture)
            axes.set_axis_off()
        figure.suptitle(f"{name}: found, with a score of {self.min_score} or more (left), and true (right)")
        figure.savefig(path, dpi=100)
        for logger in trainer.loggers:
            if hasattr(logger, "log_image"):  # W&B's
                logger.log_image("detections", [str(path)])


def draw(image: Tensor, objects: dict[str, Tensor], names: Any) -> np.ndarray:
    """A photograph (3, H, W), bytes or 0 to 1, with boxes, masks where there are some, names and scores: (H, W, 3)."""
    pixels = (image if image.dtype == torch.uint8 else (image * 255).to(torch.uint8)).cpu()
    labels = objects["labels"].tolist()
    scores = objects.get("scores")
    texts = [str(names[label]) if names else str(label) for label in labels]
    if scores is not None:
        texts = [f"{text} {score:.2f}" for text, score in zip(texts, scores.tolist(), strict=True)]
    from matplotlib.font_manager import findfont

    colours: Any = [COLOURS[label % len(COLOURS)] for label in labels]
    if labels:
        if "masks" in objects:
            pixels = draw_segmentation_masks(pixels, objects["masks"].bool().cpu(), alpha=0.5, colors=colours)
        font, size = findfont("DejaVu Sans:bold"), max(10, pixels.shape[2] // 45)
        pixels = draw_bounding_boxes(pixels, objects["boxes"].cpu(), texts, colours, width=3, font=font, font_size=size)
    return pixels.permute(1, 2, 0).numpy()


COLOURS = ["#e6194b", "#3cb44b", "#ffe119", "#4363d8", "#f58231", "#911eb4", "#46f0f0", "#f032e6", "#bcf60c", "#fabebe"]
