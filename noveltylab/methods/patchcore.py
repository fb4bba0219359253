"""PatchCore (Roth et al., Towards Total Recall in Industrial Anomaly Detection, CVPR 2022).

Nothing is trained here. The feature maps of a network trained elsewhere give every patch of an image
a vector; of those of the training inliers a small part that covers all of them is kept, the memory
bank. A patch is as novel as it is far from the nearest one of the bank, and an image as novel as its
most novel patch, so that the method also says where.

PAPER (arXiv 2106.08265)
- Two stages in the middle of the network, each vector averaged over 3 x 3 neighbours, the coarser
  map stretched to the grid of the finer one (equations 1 to 3).
- The bank is chosen greedily, each next patch the farthest from all before, among random projections
  of the vectors (equation 5, algorithm 1).
- An image's score is the distance of its most novel patch (equation 6), weighted by how close the
  patches around its neighbour in the bank are to it (equation 7).
- The map of an image is the patches' distances, stretched bilinearly to the image and smoothed by a
  Gaussian of 4 pixels, at 224 pixels a side.

CODE (the authors', amazon-science/patchcore-inspection)
- Beyond the border of a map its averages take zeros; 128 projections.

CHOICE
- The bundled network and its stages of 40 and 112 channels, where the paper takes a WideResNet-50.
- b = 9 neighbours in equation 7, which the paper leaves open, the neighbour itself among them.
- The first patch of the bank is the one farthest from the mean; the paper begins with none.
- The bank holds at most `largest_bank` patches. Of more than CANDIDATES patches as many of each
  image are drawn at random, and the bank is chosen among them: memory and time have a bound.
- The Gaussian keeps its size in proportion to the image: 4 pixels of 224.
"""

from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field, PositiveInt
from torch import Tensor
from torch.nn import functional as F

from noveltylab.methods.base import Method
from noveltylab.nets.backbone import BUNDLED, Backbone, find_weights

#: Patches among which the bank is chosen, at most.
CANDIDATES = 200_000
#: The farthest patches, among which the next ones are looked for; and how many chosen ones all
#: patches are compared with at once.
FARTHEST, CENTRES = 4096, 64
#: Images whose features are computed at once.
BATCH = 32
#: The Gaussian's standard deviation, as a share of the image's side.
SIGMA = 4 / 224


class PatchCore(Method):
    """A frozen backbone, and a bank of patches of the training inliers.

    `backbone`, `weights`, `trained_on` and `input_size`: as in features.py; `stages`: positions of
    the stages, the finer first; `neighbourhood`: side of the square that a patch's vector is
    averaged over, odd; `coreset`: share of the training patches that the bank keeps;
    `largest_bank`: patches that it keeps at most; `projection`: numbers that a patch has while the
    bank is chosen; `b`: neighbours of equation 7, 1 for none.
    """

    iterative: ClassVar[bool] = False
    least_images: ClassVar[int] = 1
    gives_features: ClassVar[bool] = True
    gives_map: ClassVar[bool] = True

    def __init__(
        self,
        image_shape: tuple[int, int, int],
        *,
        backbone: str = BUNDLED,
        weights: str | None = None,
        trained_on: Literal["ImageNet", "more than ImageNet", "image and text"] = "ImageNet",
        stages: list[int] = [2, 3],  # noqa: B006  # read, never changed
        input_size: PositiveInt | None = None,
        neighbourhood: PositiveInt = 3,
        coreset: Annotated[float, Field(gt=0, le=1)] = 0.1,
        largest_bank: PositiveInt = 10_000,
        projection: PositiveInt = 128,
        b: PositiveInt = 9,
    ) -> None:
        super().__init__(image_shape)
        if neighbourhood % 2 == 0:
            raise ValueError(
                f"method.neighbourhood={neighbourhood}: has no middle; take an odd one"
            )
        self.trained_on = trained_on  # type: ignore[misc]  # that of its class
        self.weights_file = weights
        self.neighbourhood = neighbourhood
        self.coreset = coreset
        self.largest_bank = largest_bank
        self.projection = projection
        self.b = b
        self.seed = int(torch.randint(2**31, ()))  # of the run, as initial weights are
        side = max(image_shape[1:])
        self.backbone = Backbone(backbone, tuple(stages), input_size, side, frozen=True)
        self.register_buffer("bank", torch.zeros(0, sum(self.backbone.channels)))
        self.bank: Tensor

    # The network.

    def take_pretrained(self) -> None:
        weights = find_weights(self.backbone.name, self.weights_file)
        self.backbone.load(weights)
        self.pretrained = {
            "backbone": self.backbone.name,
            "weights": weights.origin,
            "sha256": weights.sha256,
            "input_size": self.backbone.size,
        }

    def share(self, first: Method) -> None:
        assert isinstance(first, PatchCore)
        self.backbone = first.backbone
        self.pretrained = first.pretrained

    # Patches (section 3.1).

    def features(self, x: Tensor) -> Tensor:
        """The vectors of all patches of x (B, C, H, W), row by row of the grid, (B, P, D)."""
        return self.patch_maps(x).flatten(2).transpose(1, 2)

    def patch_maps(self, x: Tensor) -> Tensor:
        """Equations 1 to 3: the vectors of the patches of x (B, C, H, W), (B, D, rows, columns)."""
        side = self.neighbourhood
        maps = [F.avg_pool2d(part, side, 1, side // 2) for part in self.backbone(x)]
        grid = maps[0].shape[-2:]
        coarser = [F.interpolate(part, grid, mode="bilinear") for part in maps[1:]]
        return torch.cat([maps[0], *coarser], 1)

    # The memory bank (section 3.2).

    def prepare(self, train: Tensor) -> None:
        """Chooses the bank among the patches of train (N, C, H, W)."""
        generator = torch.Generator().manual_seed(self.seed)
        with torch.no_grad():
            parts = []
            for part in torch.split(train, BATCH):
                patches = self.features(part)
                parts.append(draw_patches(patches, len(train), generator))
        self._choose(torch.cat(parts), len(train) * patches.shape[1])

    def prepare_features(self, features: Tensor) -> None:
        """Chooses the bank among the patches (N, P, D) of the training inliers."""
        generator = torch.Generator().manual_seed(self.seed)
        patches = draw_patches(features, len(features), generator)
        self._choose(patches, len(features) * features.shape[1])

    def _choose(self, patches: Tensor, total: int) -> None:
        """Chooses the bank among patches (n, D), which were drawn from a total."""
        count = max(1, int(self.coreset * total))
        count = min(count, self.largest_bank, len(patches))
        projected = patches
        size = patches.shape[1]
        if self.projection < size:
            generator = torch.Generator().manual_seed(self.seed)
            matrix = torch.randn(size, self.projection, generator=generator)
            projected = patches @ (matrix / self.projection**0.5).to(patches)
        self.bank = patches[greedy_coreset(projected, count)].contiguous()

    def fitted_bytes(self, images: int) -> int:
        return 4 * self.largest_bank * self.bank.shape[1]

    # Scores (section 3.3).

    @property
    def score_names(self) -> tuple[str, ...]:
        return ("distance",)

    def novelty_score(self, x: Tensor) -> dict[str, Tensor]:
        """`distance` of x (B, C, H, W): that of its most novel patch, weighted, (B,)."""
        if torch.compiler.is_exporting():
            # a graph has no loop over a batch of any size: its memory grows with the batch
            return {"distance": self.image_scores(self.features(x))}
        parts = [self.score_features(self.features(part)) for part in torch.split(x, BATCH)]
        return {"distance": torch.cat([part["distance"] for part in parts])}

    def score_features(self, features: Tensor) -> dict[str, Tensor]:
        """The score of images by their patches (B, P, D); one image at a time, as memory is bounded."""
        parts = [self.image_scores(patches) for patches in torch.split(features, 1)]
        return {"distance": torch.cat(parts)}

    def image_scores(self, patches: Tensor) -> Tensor:
        """Equations 6 and 7 for images by their patches (B, P, D), (B,)."""
        distances, nearest = self.nearest(patches.flatten(0, 1))
        # equation 6: the most novel patch, and its neighbour in the bank
        s_star, place = distances.view(patches.shape[:2]).max(1)
        images = torch.arange(patches.shape[0], device=patches.device)
        patch = patches[images, place]
        m_star = self.bank[nearest.view(patches.shape[:2])[images, place]]
        count = min(self.b, len(self.bank))
        if count == 1:
            return s_star
        # equation 7: the neighbours of that neighbour, itself among them
        around = torch.linalg.vector_norm(self.bank - m_star[:, None], dim=2)
        neighbours = self.bank[around.topk(count, largest=False).indices]
        logits = torch.linalg.vector_norm(neighbours - patch[:, None], dim=2)
        share = torch.exp(s_star - torch.logsumexp(logits, 1))
        return (1 - share) * s_star

    def nearest(self, patches: Tensor) -> tuple[Tensor, Tensor]:
        """Distance (P,) of patches (P, D) from the bank, and positions (P,) of their neighbours."""
        # |p - m|^2 = |p|^2 - 2 p m + |m|^2, of which |p|^2 moves no minimum
        squares = self.bank.square().sum(1)
        positions = torch.addmm(squares, patches, self.bank.T, alpha=-2).argmin(1)
        # the distance itself by subtraction, which is exact for a patch of the bank
        return torch.linalg.vector_norm(patches - self.bank[positions], dim=1), positions

    def validation_loss(self, x: Tensor) -> Tensor:
        return self.novelty_score(x)["distance"]

    def novelty_map(self, x: Tensor) -> Tensor:
        """The distances of the patches of x (B, C, H, W), stretched and smoothed, (B, H, W)."""
        return torch.cat([self._map(part) for part in torch.split(x, BATCH)])

    def _map(self, x: Tensor) -> Tensor:
        maps = self.patch_maps(x)
        rows = [self.nearest(patches)[0] for patches in maps.flatten(2).transpose(1, 2)]
        distances = torch.stack(rows).view(len(x), *maps.shape[-2:])
        height, width = x.shape[-2:]
        stretched = F.interpolate(distances[:, None], (height, width), mode="bilinear")[:, 0]
        down = gaussian(height, SIGMA * height).to(stretched)
        across = gaussian(width, SIGMA * width).to(stretched)
        return down @ stretched @ across.T

    def embed(self, x: Tensor) -> Tensor:
        """The mean of the patches of x (B, C, H, W), (B, D)."""
        return torch.cat([self.features(part).mean(1) for part in torch.split(x, BATCH)])


def draw_patches(patches: Tensor, images: int, generator: torch.Generator) -> Tensor:
    """Patches (n, D) of the images in patches (B, P, D).

    All, or as many of each as make no more than CANDIDATES of that many images.
    """
    count, size = patches.shape[1:]
    share = max(1, CANDIDATES // images)
    if count <= share:
        return patches.reshape(-1, size)
    rows = []
    for image in patches:
        places = torch.randperm(count, generator=generator)[:share]
        rows.append(image[places.to(image.device)])
    return torch.cat(rows)


def greedy_coreset(points: Tensor, count: int) -> Tensor:
    """Equation 5, greedily: positions (count,) of points (N, D), each the farthest from all before.

    The first is the one farthest from the mean. Fewer where the points coincide.
    """
    if count >= len(points):
        return torch.arange(len(points), device=points.device)
    points = points - points.mean(0)
    squares = points.square().sum(1)
    # closer than this the points are one, but for rounding
    least = float(squares.max()) * 1e-6
    positions = [int(squares.argmax())]
    distances = torch.full_like(squares, torch.inf)
    compared = 0
    while len(positions) < count:
        # every point's squared distance from its nearest chosen one
        for part in torch.split(points[positions[compared:]], CENTRES):
            to_part = torch.addmm(part.square().sum(1), points, part.T, alpha=-2).amin(1)
            distances = torch.minimum(distances, squares + to_part)
        distances[positions[compared:]] = -torch.inf
        compared = len(positions)
        # the next ones are among the farthest, as long as one of these is farther than all others
        values, block = distances.topk(min(FARTHEST, len(points)))
        largest_outside = float(values[-1]) if len(block) < len(points) else -torch.inf
        inside, inside_squares = points[block], squares[block]
        while len(positions) < count:
            place = int(values.argmax())
            value = float(values[place])
            if value < largest_outside or value <= least:
                break
            positions.append(int(block[place]))
            to_chosen = inside_squares + inside_squares[place] - 2 * inside @ inside[place]
            values = torch.minimum(values, to_chosen)
            values[place] = -torch.inf
        if len(positions) == compared:
            break
    return torch.tensor(positions, device=points.device)


def gaussian(size: int, sigma: float) -> Tensor:
    """A matrix (size, size) that smooths a row of values by a Gaussian cut off at 4 sigma.

    At the ends the row goes on as in a mirror.
    """
    radius = int(4 * sigma + 0.5)
    offsets = torch.arange(-radius, radius + 1)
    weights = torch.exp(-offsets.double().square() / (2 * sigma**2))
    weights = weights / weights.sum()
    # a mirror behind the last value, and one before the first
    places = (torch.arange(size)[:, None] + offsets) % (2 * size)
    places = torch.where(places < size, places, 2 * size - 1 - places)
    matrix = torch.zeros(size, size, dtype=torch.float64)
    return matrix.scatter_add(1, places, weights.expand(size, -1))
