"""COCO: objects in photographs, with boxes and masks."""

import os
from typing import Any, Literal

import torch
from torch import Tensor
from torchvision import tv_tensors
from torchvision.models.detection import FasterRCNN_ResNet50_FPN_Weights
from torchvision.transforms import v2

from datamodules import annotations
from datamodules.annotations import Annotations
from datamodules.base import DataModule, data_root
from datamodules.photographs import CorruptError, as_tensor
from datamodules.randomness import Draw
from networks import InputError
from networks.errors import check_choice

Augmentation = Literal["flip", "ssd", "none"]
MEAN = (124, 116, 104)  # of ImageNet's pixels
# Splits whose labels are not public: file of annotations and folder
UNLABELLED = {
    "test2017": ("image_info_test2017.json", "test2017"),
    "test-dev2017": ("image_info_test-dev2017.json", "test2017"),
}


class COCO(DataModule):
    """COCO 2017 (Lin et al. 2014): 118,287 photographs to train and 5,000 to validate, objects of 80 categories.

    They lie in <root>/coco/train2017 and val2017, with <root>/coco/annotations/instances_*.json. A label is COCO's id
    of the category, 1 to 90, and 0 the background, as in torchvision. Training leaves out crowd regions, boxes without
    area and images without objects, and says how many; evaluation has all images and objects, and AveragePrecision
    ignores crowds as COCO's evaluation does. Photographs come as bytes in their own size, which is smaller than the
    detector's; torchvision's detectors resize on the device, in evaluation they answer in the photograph's own pixels.

    Args:
        root: folder that has coco/; None means the environment variable FRUGAL_DATA, or else data/.
        batch_size: total over all devices and accumulated steps.
        image_size: of the detector: short side, pixels, or, of SSDLite, height and width of all images. Training
            resizes to the latter here, for SSD's augmentation makes large images, and drops objects of less than a
            pixel then.
        augmentation: of training: "flip" mirrors half of the images; "ssd" also distorts colours, zooms out and crops
            by overlap (Liu et al. 2016, section 2.2); "none". (More than one scale is an option of the detector:
            --model.network_args.min_size [640,672,704,736,768,800].)
        masks: give masks too.
        train_split, val_split, test_split: names of splits; test_split None is val_split. "test-dev2017", whose labels
            are not public, is for `frugal predict`, which writes the file that COCO's server takes.
        limit: number of images of each split, the first by id, for trying things out; None is all.
        num_workers: processes that prepare batches, for each device; they live as long as the run.

    Batches: images, a list of (3, H, W), uint8, in training a stack where all have one size; and for each a dict: boxes
    (n, 4), float32, x1, y1, x2, y2; labels (n,), int64; image_id; with masks (n, H, W), uint8; in evaluation area (n,)
    and iscrowd (n,).

    Raises:
        InputError: arguments that cannot work; in `setup`, files that are absent or not COCO's; in a batch, a
            photograph that cannot be decoded or has another size than its annotation.
    """

    num_classes = 91
    gives = "objects"
    train_set: "Objects"
    val_set: "Objects"
    test_set: "Objects"

    def __init__(
        self,
        root: str | None = None,
        batch_size: int = 16,
        image_size: int | tuple[int, int] = 800,
        augmentation: Augmentation = "flip",
        masks: bool = False,
        train_split: str = "train2017",
        val_split: str = "val2017",
        test_split: str | None = None,
        limit: int | None = None,
        num_workers: int = 8,
    ) -> None:
        super().__init__(batch_size, num_workers)
        check_choice("data.augmentation", augmentation, Augmentation)
        sides = (image_size,) if isinstance(image_size, int) else tuple(image_size)
        if len(sides) > 2 or min(sides) < 1:
            raise InputError(f"data.image_size={image_size} must be a positive number, or two: height and width")
        if limit is not None and limit < 1:
            raise InputError(f"data.limit={limit} must be positive")
        self.folder = data_root(root) / "coco"
        self.sides, self.augmentation, self.masks, self.limit = sides, augmentation, masks, limit
        self._read: dict[str, Objects] = {}
        self.splits = {"train": train_split, "val": val_split, "test": test_split or val_split}
        # A usual photograph has sides of 3 to 2, as the 1200x800 of the paper's tables.
        self.input_size = (3, *sides) if len(sides) == 2 else (3, sides[0], sides[0] * 3 // 2)
        self.class_names = tuple(FasterRCNN_ResNet50_FPN_Weights.DEFAULT.meta["categories"])

    def setup(self, stage: str | None = None) -> None:
        """Read the annotations, once; those to train only where training needs them."""
        if stage in ("fit", None) and not hasattr(self, "train_set"):
            self.train_set = self._objects("train", self._training())
        if stage == "test" and self.splits["test"] in UNLABELLED:
            raise InputError(f"data.test_split={self.splits['test']} has no public labels: `frugal predict` takes it")
        if stage not in ("test", "predict"):
            self.val_set = self._evaluated("val")
        if stage not in ("fit", "validate"):
            self.test_set = self._evaluated("test")

    def _evaluated(self, part: str) -> "Objects":
        """Validation and test have one set where their splits are one."""
        split = self.splits[part]
        if split not in self._read:
            self._read[split] = self._objects(part)
        return self._read[split]

    def _objects(self, part: str, transform: v2.Transform | None = None) -> "Objects":
        split = self.splits[part]
        if part != "test" and split in UNLABELLED:
            raise InputError(f"data.{part}_split={split} has no public labels: `frugal predict` takes it as test_split")
        file, folder = UNLABELLED.get(split, (f"instances_{split}.json", split))
        categories = {i for i, name in enumerate(self.class_names) if i and name != "N/A"}
        path = self.folder / "annotations" / file
        given = annotations.read(path, self.folder / folder, categories, part == "train", self.masks, self.limit)
        if not len(given.labels) and split not in UNLABELLED:
            raise InputError(
                f"{path} has no object in the images to score: give another data.{part}_split or data.limit"
            )
        return Objects(given, self.masks, transform)

    def _training(self) -> v2.Transform:
        """Resizing is bilinear without antialiasing, as in torchvision's detectors, which do so in evaluation."""
        steps: list[v2.Transform] = []
        if self.augmentation == "ssd":
            zoom = v2.RandomZoomOut(fill={tv_tensors.Image: MEAN, "others": 0})
            steps = [v2.RandomPhotometricDistort(), zoom, v2.RandomIoUCrop()]
        if self.augmentation != "none":
            steps.append(v2.RandomHorizontalFlip())
        if len(self.sides) == 2:
            steps.append(v2.Resize(self.sides, antialias=False))
        # Resizing may put a box a rounding error outside of the image, which would be reason to drop it.
        return v2.Compose([*steps, v2.ClampBoundingBoxes(), v2.SanitizeBoundingBoxes()])


class Objects:
    """Photographs with their objects, decoded and transformed when a batch asks for them.

    Args:
        given: which objects are in which photographs.
        masks: give masks too.
        transform: of torchvision's, for training; its draws are those of torch's global CPU generator, which is seeded
            by the draw for each image, and left as it was. None is evaluation.

    `dataset[draw]` gives what COCO says of batches.
    """

    def __init__(self, given: Annotations, masks: bool, transform: v2.Transform | None) -> None:
        self.given, self.masks, self.transform = given, masks, transform

    def __len__(self) -> int:
        return len(self.given)

    def __getitem__(self, draw: Draw) -> tuple[Tensor | list[Tensor], list[dict[str, Tensor]]]:
        seeds = (draw.uniform(1)[:, 0] * 2**32).astype(int).tolist()
        samples = []
        with torch.random.fork_rng(devices=[]):
            for index, seed in zip(draw.indices.tolist(), seeds, strict=True):
                torch.default_generator.manual_seed(seed)  # torch.manual_seed would seed GPUs too
                samples.append(self._sample(index))
        images, targets = [image for image, _ in samples], [target for _, target in samples]
        alike = self.transform is not None and len({image.shape for image in images}) == 1
        return torch.stack(images) if alike else images, targets

    def _sample(self, index: int) -> tuple[Tensor, dict[str, Tensor]]:
        given, objects = self.given, self.given.objects(index)
        image, size = self._photograph(index), given.sizes[index].tolist()
        target: dict[str, Any] = {
            "boxes": tv_tensors.BoundingBoxes(
                torch.from_numpy(given.boxes[objects].copy()), format="XYXY", canvas_size=size
            ),
            "labels": torch.from_numpy(given.labels[objects].copy()),
        }
        if self.masks:
            target["masks"] = tv_tensors.Mask(torch.from_numpy(given.masks(index)))
        if self.transform is None:
            target["area"] = torch.from_numpy(given.areas[objects].copy())
            target["iscrowd"] = torch.from_numpy(given.crowds[objects].copy())
        else:
            image, target = self.transform(tv_tensors.Image(image), target)
        plain = {name: tensor.as_subclass(Tensor) for name, tensor in target.items()}
        return image.as_subclass(Tensor), {**plain, "image_id": torch.tensor(given.image_ids[index])}

    def _photograph(self, index: int) -> Tensor:
        """Pixels (3, H, W), uint8."""
        path = self.given.folder / os.fsdecode(self.given.names[index])
        try:
            image = as_tensor(path)
        except CorruptError as error:
            raise InputError(f"{error}: unpack it again from the data set's archive") from error
        if list(image.shape[1:]) != self.given.sizes[index].tolist():
            size, said = "x".join(map(str, image.shape[1:])), "x".join(map(str, self.given.sizes[index]))
            raise InputError(f"{path} has {size} pixels, and its annotations are for {said}: unpack the archive again")
        return image
