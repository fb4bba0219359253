"""The contract of a method: what it must give, and the loop that the base owns for all of them.

A method writes `update` (one training iteration, all the paper's alternating steps),
`novelty_score`, `validation_loss` and, where it needs the training set once, `prepare`. It never
asks the device for a value inside `update`: the base runs many iterations per `training_step` and
reads the losses once at the end.
"""

import importlib
import math
from collections.abc import Hashable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar

import lightning as L
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from noveltylab.errors import RunFailed, UserError
from noveltylab.installed import offer_of_target
from noveltylab.results.phases import THIS_CLASS
from noveltylab.results.phases import Phase as Phase  # methods take it from here


@dataclass
class Batch:
    """One training batch: `x` (B, C, H, W) float, preprocessed.

    `index` (B,) position of each image in the training set.
    """

    x: Tensor
    index: Tensor


#: title of the row that error maps compare with the images
RECONSTRUCTION = "reconstruction"


@dataclass
class Row:
    """A titled row of images (N, C, H, W) of a picture.

    On the scale of preprocessed images, or in [0, 1] (`unit`).
    """

    title: str
    images: Tensor
    unit: bool = False


class Diverged(RunFailed):
    """A loss or a weight became NaN or infinite."""


class Method(L.LightningModule):
    """Base of all methods, for images of shape `image_shape` = (C, H, W).

    Subclasses take explicit keyword arguments (plain numbers and strings, each with a type that can
    be checked) besides `image_shape`; out-of-range combinations raise ValueError with the option's
    name.
    """

    #: why the score cannot be written as one graph, "" where it can
    not_exportable: ClassVar[str] = ""
    #: False for methods fitted in `prepare` alone (PCA, nearest neighbours): no optimizer, no
    #: epochs.
    iterative: ClassVar[bool] = True
    #: training images without which the method cannot work; batch norm needs two in a batch
    least_images: ClassVar[int] = 2
    #: whether `update` can be recorded as a CUDA graph: `phase` says all that decides which kernels
    #: run
    capturable: ClassVar[bool] = False

    #: what its weights learned from; other words for a method that begins with trained weights
    trained_on: ClassVar[str] = THIS_CLASS

    #: whether `features` is what a frozen network gives, which copies of the method share
    gives_features: ClassVar[bool] = False

    #: whether `novelty_map` says how novel each pixel is
    gives_map: ClassVar[bool] = False

    #: the options by which a method changes its learning rates itself, "" where it does not
    own_schedule: ClassVar[str] = ""

    def __init__(self, image_shape: tuple[int, int, int]) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.image_shape = image_shape
        #: share of the planned epochs that is over, in [0, 1); schedules (mining start, ...) read
        #: it
        self.progress = 0.0
        #: iterations done; the axis of every log, since Lightning's global_step counts optimizer
        #: steps
        self.iteration = 0
        #: mean losses of the last chunk, for the progress bar
        self.losses: dict[str, float] = {}
        self.pretrained = {}
        self._optimizers_by_name: dict[str, Any] = {}
        #: called in place of `update` where `fit` was asked for CUDA graphs
        #: (noveltylab/training/cuda_graph.py)
        self.graph: Any = None

    # What a method gives.

    def update(self, batch: Batch) -> dict[str, Tensor]:
        """Does ONE training iteration with all alternating steps.

        Returns detached scalar losses by name.

        No `.item()`, no print, no Python branch on a tensor, static shapes. Seeded before every
        epoch.
        """
        raise NotImplementedError

    def novelty_score(self, x: Tensor) -> dict[str, Tensor]:
        """Named raw scores of x (B, C, H, W), each (B,), larger is more novel.

        In evaluation mode, no gradients.

        A sample's score does not depend on the other samples of its batch.
        """
        raise NotImplementedError

    def single_score(self, x: Tensor, name: str) -> Tensor:
        """`novelty_score(x)[name]` to the last bit, (B,), where no other score is asked for.

        A method whose other scores cost more overrides it.
        """
        return self.novelty_score(x)[name]

    @property
    def score_names(self) -> tuple[str, ...]:
        """The keys of `novelty_score` and `combine_scores`, known before training."""
        raise NotImplementedError

    def validation_loss(self, x: Tensor) -> Tensor:
        """Loss (B,) of held-out inliers x (B, C, H, W), by sample.

        Inlier-only selection minimises it.
        """
        raise NotImplementedError

    def pass_for_batch_norm(self, x: Tensor) -> None:
        """Puts training inliers x (B, C, H, W) through the networks as the score does.

        For trainer.batch_norm=anew.

        What this does not touch keeps the statistics of training.
        """
        self.validation_loss(x)

    def build_optimizers(self) -> dict[str, torch.optim.Optimizer]:
        """The optimizers by the name that `minimise` is called with."""
        return {}

    @property
    def phases(self) -> list[Phase]:
        """The stages of training in order, each of which makes other weights.

        [] where every epoch trains alike.

        Only weights of the last one are those of the whole method. The same by recorded options:
        `CONFIGURED` in noveltylab/results/phases.py.
        """
        return []

    @property
    def whole_from(self) -> float:
        """Share of the epochs from which on the weights are those of the whole method."""
        if not self.phases:
            return 0.0
        return self.phases[-1].start

    @property
    def phase(self) -> Hashable:
        """What besides shapes decides which kernels `update` runs, such as a schedule's stage."""
        return None

    def prepare(self, train: Tensor) -> None:
        """Takes what is needed once from the training set (N, C, H, W), preprocessed.

        Keep it in buffers.
        """

    def prepare_score(self, train: Tensor) -> None:
        """Takes anew what the score needs of the training set (N, C, H, W), preprocessed.

        By the weights of now: called whenever these are looked at or kept, in evaluation mode and
        without gradients. Nothing random; keep it in buffers, which are kept with the weights.
        """

    def fitted_bytes(self, images: int) -> int:
        """Bytes that a method which is fitted once keeps of so many training images, at most."""
        channels, height, width = self.image_shape
        return 4 * images * channels * height * width

    # What a method with a frozen network gives besides: its features are computed once for copies
    # of it, and kept in the cache if they have a key.

    #: what was trained elsewhere: the network's name, where its weights are from, their SHA-256
    pretrained: dict[str, Any]

    def take_pretrained(self) -> None:
        """Takes the weights that were trained elsewhere; called once, before anything is created.

        UserError where they are not to be had.
        """

    def share(self, first: "Method") -> None:
        """Takes what was trained elsewhere from another copy of the method instead."""

    @property
    def features_key(self) -> str:
        """What the features of an image depend on besides the image; "" if they are not kept."""
        return ""

    def features(self, x: Tensor) -> Tensor:
        """Features (B, D) of x (B, C, H, W), or (B, P, D) of its patches, by the frozen network."""
        raise NotImplementedError

    def prepare_features(self, features: Tensor) -> None:
        """As `prepare`, from the features (N, ...) of the training set."""
        raise NotImplementedError

    def score_features(self, features: Tensor) -> dict[str, Tensor]:
        """As `novelty_score`, from features (B, ...)."""
        raise NotImplementedError

    def reconstruct(self, x: Tensor) -> Tensor | None:
        """Reconstruction of x (B, C, H, W) for the pictures.

        None for methods that do not reconstruct.
        """
        return None

    def explain(self, x: Tensor) -> list[Row]:
        """Rows that stand under the images x (B, C, H, W) in pictures, B images each.

        They show what the score compares x with.
        """
        x_hat = self.reconstruct(x)
        if x_hat is None:
            return []
        return [Row(RECONSTRUCTION, x_hat)]

    def novelty_map(self, x: Tensor) -> Tensor | None:
        """How novel each pixel of x (B, C, H, W) is, (B, H, W), not negative, larger is more novel.

        None for methods that score whole images alone. On one scale for all images: pixels of
        different ones are compared.
        """
        return None

    def image_rows(self, train: Tensor, inliers: Tensor, outliers: Tensor) -> dict[str, list[Row]]:
        """The paper's own pictures: name -> rows, drawn as a grid into `figures/<name>.png`.

        {} for none.

        From the first training images and a few test images, preprocessed, in evaluation mode
        without gradients. Torch's generators are seeded and put back afterwards. There may be no
        outliers.
        """
        return {}

    def combine_scores(self, test: dict[str, Tensor], val: dict[str, Tensor]) -> dict[str, Tensor]:
        """Further named scores made of whole columns.

        From test scores (N,), and those of the held-out inliers (N_val,).
        """
        return {}

    #: names among `score_names` that use the whole test set, and so cannot score one sample alone
    transductive: ClassVar[frozenset[str]] = frozenset()

    def embed(self, x: Tensor) -> Tensor | None:
        """Embedding (B, D) of x (B, C, H, W) for the t-SNE picture.

        None for methods that have none.
        """
        return None

    @contextmanager
    def shortened(self) -> Iterator[tuple[float, float]]:
        """Inside, score and validation loss may do a part of their work, to be timed.

        Yields the share of each.
        """
        yield 1.0, 1.0

    def extra_metrics(self, inliers: Tensor, outliers: Tensor) -> dict[str, float]:
        """Numbers of the paper's own experiments, beside the AUROC.

        From test images (N, C, H, W) each; {} for none.
        """
        return {}

    def doubts(self, metrics: dict[str, float]) -> list[str]:
        """Warnings for the run that follow from its `extra_metrics`, one sentence each."""
        return []

    # What the base does.

    def minimise(self, loss: Tensor, optimizer: str) -> None:
        """Zeroes the gradients of one named optimizer, runs backward on a scalar loss, steps."""
        if not self._optimizers_by_name:  # used without a Trainer: tests, benchmarks
            self._optimizers_by_name = dict(self.build_optimizers())
        stepper = self._optimizers_by_name[optimizer]
        stepper.zero_grad(set_to_none=True)
        if self._trainer is None:
            loss.backward()  # type: ignore[no-untyped-call]  # torch's own
        else:
            self.manual_backward(loss)
        stepper.step()
        # Autocast keeps its narrow copies of the weights until it is left, after a whole chunk:
        # they are out of date now.
        torch.clear_autocast_cache()

    def configure_optimizers(self) -> list[torch.optim.Optimizer]:
        self._optimizers_by_name = dict(self.build_optimizers())
        return list(self._optimizers_by_name.values())

    def on_train_start(self) -> None:
        wrapped = self.optimizers()  # Lightning's, which count steps and know the precision
        if not isinstance(wrapped, list):
            wrapped = [wrapped]
        self._optimizers_by_name = dict(zip(self._optimizers_by_name, wrapped, strict=True))
        if self.graph is not None:
            # here: a checkpoint brings its own flags
            self.graph.take([optimizer.optimizer for optimizer in wrapped])

    def on_train_epoch_start(self) -> None:
        self.progress = self.current_epoch / (self.trainer.max_epochs or 1)

    def training_step(self, chunk: tuple[Tensor, Tensor], chunk_index: int) -> None:
        """Runs the K iterations of a chunk: x (K, B, C, H, W), rows (K, B)."""
        sums: dict[str, Tensor] = {}
        counts: dict[str, int] = {}
        update = self.graph or self.update
        for x, rows in zip(*chunk, strict=True):
            images = x.contiguous(memory_format=torch.channels_last)
            losses = update(Batch(images, rows))
            for name, loss in losses.items():
                if name in sums:
                    sums[name] = sums[name] + loss
                else:
                    sums[name] = loss
                counts[name] = counts.get(name, 0) + 1
            self.iteration += 1
        means = torch.stack([value.float() / counts[name] for name, value in sums.items()])
        # the only wait for the device in a chunk
        self.losses = dict(zip(sums, means.tolist(), strict=True))
        broken = [name for name, value in self.losses.items() if not math.isfinite(value)]
        if broken:
            names = ", ".join(broken)
            state = self._describe_state()
            raise Diverged(f"{names} not finite in epoch {self.current_epoch}: {state}")
        metrics = {f"train/{name}": value for name, value in self.losses.items()}
        for logger in self.loggers:
            logger.log_metrics(metrics, step=self.iteration)

    def check_finite(self) -> None:
        """Raises Diverged if a weight is NaN or infinite: such weights are never kept."""
        checks: list[Tensor] = []
        for tensor in self.state_dict().values():
            if tensor.is_floating_point() and tensor.numel():
                is_finite = tensor.isfinite().all()
                checks.append(is_finite)
        if checks and not bool(torch.stack(checks).all()):
            state = self._describe_state()
            raise Diverged(f"weights not finite after epoch {self.current_epoch}: {state}")

    def _describe_state(self) -> str:
        """The networks that broke and the losses, for an error."""
        broken: list[str] = []
        for name, network in self.named_children():
            tensors = network.state_dict().values()
            if not all(bool(tensor.isfinite().all()) for tensor in tensors):
                broken.append(name)
        networks = ", ".join(broken) or "none yet"
        losses = ", ".join(f"{name} {value:.4g}" for name, value in self.losses.items())
        return f"losses {losses}; networks with such weights: {networks}. Try a smaller method.lr"

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["iteration"] = self.iteration

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.iteration = checkpoint["iteration"]

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        # Buffers filled by `prepare` have the training set's shape: take the checkpoint's.
        for name, buffer in self._buffers.items():
            saved = state_dict.get(prefix + name)
            if buffer is not None and saved is not None and saved.shape != buffer.shape:
                self._buffers[name] = buffer.new_empty(saved.shape)
        super()._load_from_state_dict(state_dict, prefix, *args)


def find_method(target: str) -> type[Method]:
    """The class that conf/method/<name>.yaml names; only subclasses of `Method` are accepted."""
    module_name, _, name = target.rpartition(".")
    offer = offer_of_target(target)
    try:
        method_class = (
            offer.load() if offer else getattr(importlib.import_module(module_name), name)
        )
    except (ImportError, AttributeError, ValueError) as error:
        raise UserError(f"method._target_={target}: not found ({error})") from None
    is_method = isinstance(method_class, type) and issubclass(method_class, Method)
    if not is_method or (method_class.__module__ != module_name and offer is None):
        raise UserError(
            f"method._target_={target}: not a subclass of noveltylab.methods.base.Method"
        )
    method: type[Method] = method_class
    return method


def detached(losses: dict[str, Tensor]) -> dict[str, Tensor]:
    """The losses without their graphs, for the log."""
    return {name: loss.detach() for name, loss in losses.items()}


@contextmanager
def frozen(*networks: nn.Module | None) -> Iterator[None]:
    """Inside, the networks get no gradients and their batch-norm statistics stay as they are.

    Activations still use batch statistics and gradients still flow through to the inputs. None
    stands for a network that is switched off.
    """
    present = [network for network in networks if network is not None]
    norms: list[_BatchNorm] = []
    for network in present:
        network.requires_grad_(False)
        norms += [module for module in network.modules() if isinstance(module, _BatchNorm)]
    for norm in norms:
        norm.track_running_stats = False
    try:
        yield
    finally:
        for network in present:
            network.requires_grad_(True)
        for norm in norms:
            norm.track_running_stats = True
