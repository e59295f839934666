"""Scenes to find objects in: digits on photographs."""

import math
from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn import functional as F

import workbench
from workbench import annotated, images
from workbench.boxes import Scenes

SPANS = {"train": (0.0, 0.5), "validation": (0.5, 0.75), "test": (0.75, 1.0)}
COLOURS = torch.cartesian_prod(*[torch.tensor([1.0, 0.0])] * 3)[:-1]  # all but black


def source(size: int = 64, *, sides=(12, 28), most: int = 4):
    """Scenes of `size` pixels: `DigitScenes`, or in the full profile the photographs of VOC 2007.

    Both have `classes`, `fixed(part, n)` and `batches(steps, batch)`. `sides` and `most` are for digits.
    """
    if workbench.PROFILE == "full":
        return annotated.Photographs("VOC", size)
    return DigitScenes(size, sides=sides, most=most)


class DigitScenes:
    """Real digits on real photographs dimmed to half, made when they are asked for; boxes are exact.

    size: of the square image in pixels. sides: a digit's longer side lies between these two, even
    on a log scale. most: 1 to this many digits on an image, fewer where there is no room; of the
    smaller box of two at most a tenth is covered. Training, validation and test scenes differ in
    digits and in the part of the ten photographs (left half, third and last quarter).
    """

    def __init__(self, size: int = 64, *, sides=(12, 28), most: int = 4):
        if not 0 < sides[0] <= sides[1] <= size:
            raise ValueError(
                f"sides: 0 < least <= most <= {size} is needed, not {sides}"
            )
        digits = images.digits()
        self.size = size
        self.sides = sides
        self.most = most
        self.classes = digits.classes
        self.digits = dict(zip(SPANS, digits[:3]))
        self.photographs = list(images.photographs().values())
        workbench.sources.append(
            "ten photographs from the packages scikit-image and scikit-learn"
        )

    def fixed(self, part: str, n: int) -> Scenes:
        """The first n scenes of "train", "validation" or "test", always the same ones, on the CPU."""
        generator = torch.Generator().manual_seed(list(SPANS).index(part))
        made = [self.make(part, 50, generator) for _ in range(0, n, 50)]
        return Scenes(*(torch.cat(parts)[:n] for parts in zip(*made)))

    def batches(self, steps: int, batch: int) -> Iterator[Scenes]:
        """A batch of new training scenes for each step, on the device; `seed` decides which."""
        generator = torch.Generator().manual_seed(int(torch.randint(2**31, ())))
        for _ in range(steps):
            yield self.make("train", batch, generator).to(workbench.device)

    def make(self, part: str, n: int, generator: torch.Generator) -> Scenes:
        digits, labels = self.digits[part]
        boxes, chosen = self.place(digits, n, generator)
        there = chosen >= 0
        chosen = chosen.clamp(min=0)
        ink = self.draw(digits[chosen], boxes) * there[..., None, None]
        colours = torch.randint(len(COLOURS), there.shape, generator=generator)
        scene = self.background(part, n, generator)
        for i in range(self.most):
            alpha = ink[:, i, None]
            colour = COLOURS[colours[:, i], :, None, None]
            scene = scene * (1 - alpha) + colour * alpha
        labels = labels[chosen].where(there, torch.tensor(-1))
        return Scenes(scene, boxes, labels, torch.zeros_like(there))

    def place(self, digits: Tensor, n: int, generator) -> tuple[Tensor, Tensor]:
        """Boxes (n, most, 4) and the index of the digit in each (n, most), -1 for none."""
        wanted = torch.randint(1, self.most + 1, (n,), generator=generator)
        boxes = torch.zeros(n, self.most, 4)
        chosen = torch.full((n, self.most), -1)
        for _ in range(2 * self.most):
            digit = torch.randint(len(digits), (n,), generator=generator)
            ink = ink_box(digits[digit])
            shape = ink[:, 2:] - ink[:, :2]
            low, high = torch.tensor(self.sides).log()
            side = (low + (high - low) * torch.rand(n, generator=generator)).exp()
            shape = shape * (side / shape.amax(1))[:, None]
            corner = (self.size - shape) * torch.rand(n, 2, generator=generator)
            box = torch.cat([corner, corner + shape], 1)
            free = (covered(box[:, None], boxes) <= 0.1).all(1)
            count = (chosen >= 0).sum(1)
            rows = torch.arange(n)[free & (count < wanted)]
            boxes[rows, count[rows]] = box[rows]
            chosen[rows, count[rows]] = digit[rows]
        return boxes, chosen

    def draw(self, digits: Tensor, boxes: Tensor) -> Tensor:
        """The ink (n, M, size, size) of digits (n, M, 1, 28, 28), each stretched into its box."""
        ink = ink_box(digits)
        pixel = torch.arange(self.size) + 0.5
        axes = []
        for near, far in ((0, 2), (1, 3)):
            width = (boxes[..., far] - boxes[..., near]).clamp(min=1)
            scale = (ink[..., far] - ink[..., near]) / width
            place = ink[..., near, None] + scale[..., None] * (
                pixel - boxes[..., near, None]
            )
            axes.append(2 * place / digits.shape[-1] - 1)  # -1 and 1 are the edges
        shape = (*boxes.shape[:2], self.size, self.size)
        across = axes[0][..., None, :].expand(shape)
        down = axes[1][..., :, None].expand(shape)
        where = torch.stack([across, down], -1).flatten(0, 1)
        drawn = F.grid_sample(digits.flatten(0, 1), where, align_corners=False)
        return drawn.view(shape)

    def background(self, part: str, n: int, generator) -> Tensor:
        start, stop = SPANS[part]
        found = []
        for u, v, w in torch.rand(n, 3, generator=generator).tolist():
            picture = self.photographs[int(w * len(self.photographs))]
            H, W = picture.shape[1:]
            first, last = math.ceil(start * W), math.floor(stop * W) - self.size
            if last < first or self.size > H:
                raise ValueError(f"no room for {self.size} pixels in a photograph")
            left = first + int(u * (last - first + 1))
            top = int(v * (H - self.size + 1))
            found.append(picture[:, top : top + self.size, left : left + self.size])
        return torch.stack(found).float() / 510


def ink_box(digits: Tensor) -> Tensor:
    """Left, top, right and bottom (..., 4) of what is written on digits (..., 1, H, W), in pixels."""
    ink = digits[..., 0, :, :] > 0.2
    found = []
    for lines in (ink.any(-2), ink.any(-1)):  # columns, rows
        lines = lines.float()
        found.append(lines.argmax(-1))
        found.append(lines.shape[-1] - lines.flip(-1).argmax(-1))
    left, right, top, bottom = found
    return torch.stack([left, top, right, bottom], -1).float()


def covered(a: Tensor, b: Tensor) -> Tensor:
    """Share of the smaller of two boxes (..., 4) that the other one covers; 0 for an empty box."""
    shape = torch.minimum(a[..., 2:], b[..., 2:]) - torch.maximum(
        a[..., :2], b[..., :2]
    )
    areas = [(x[..., 2:] - x[..., :2]).prod(-1) for x in (a, b)]
    smaller = torch.minimum(*areas).clamp(min=1e-6)
    return shape.clamp(min=0).prod(-1) / smaller
