"""What a careful researcher would write: the four methods as bare PyTorch, and the same under a
plain Lightning module.

The networks, their initial weights and hyperparameters are noveltylab's, so that both sides train
the same model, but made of torch's own layers; all else is the ordinary way: contiguous tensors,
`torch.optim.Adam` (SGD) with its defaults, a DataLoader over PIL images, every loss read with
`.item()` (or `self.log`) at every step. All the papers' steps are done, in their order. What
OCGAN's reference computes anew, Algorithm 1 and its authors' code do too; `shared=True` keeps it,
as DCGAN's tutorial.
"""

import random
from collections.abc import Callable, Iterator
from itertools import chain
from typing import Any

import lightning as L
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from noveltylab.methods.ca_entropy import CAEntropy
from noveltylab.methods.nda import NDA
from noveltylab.methods.ocgan import OCGAN
from noveltylab.methods.oled import OLED, UpsampledConv
from noveltylab.nets.cpu import layers

#: zeroes the gradients of the optimizer of that number, runs backward, steps
Minimise = Callable[[Tensor, int], None]
ONE, ZERO = 1.0, 0.0


# Data.


class Images(Dataset[Any]):
    """uint8 images one at a time through PIL -> (image in [-1, 1], position).

    The images are (N, C, H, W); for NDA the item has the negative too.
    """

    def __init__(self, images: Tensor, size: int, negatives: bool = False) -> None:
        self.images, self.negatives = images.permute(0, 2, 3, 1).squeeze(3).numpy(), negatives
        scale = [transforms.ToTensor(), transforms.Normalize(0.5, 0.5)]
        self.plain = transforms.Compose([transforms.Resize((size, size)), *scale])
        colour = [
            transforms.RandomApply([transforms.ColorJitter(0.4, 0.4, 0.4, 0.1)], 0.8),
            transforms.RandomGrayscale(),
        ]
        self.augment = transforms.Compose(
            [
                transforms.RandomResizedCrop((size, size)),
                transforms.RandomHorizontalFlip(),
                *colour[: 2 if images.shape[1] == 3 else 1],
                *scale,
            ]
        )

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, ...]:
        image = Image.fromarray(self.images[index])
        item = (self.plain(image), torch.tensor(index))
        if not self.negatives:
            return item
        turned = image.rotate(90 * random.randint(1, 3)) if random.random() < 0.5 else image
        return (*item, self.augment(turned))


def loader(
    images: Tensor, size: int, batch_size: int, method: Any, device: str, ordered: bool = False
) -> DataLoader[Any]:
    """On a CPU without workers: they would take the cores from the networks."""
    gpu = device != "cpu"
    return DataLoader(
        Images(images, size, isinstance(method, NDA)),
        batch_size,
        shuffle=not ordered,
        drop_last=not ordered,
        num_workers=4 if gpu else 0,
        persistent_workers=gpu,
        pin_memory=gpu,
    )


#: noveltylab's layers -> torch's
PLAIN: dict[type[nn.Module], type[nn.Module]] = {
    layers.Conv2d: nn.Conv2d,
    layers.ConvTranspose2d: nn.ConvTranspose2d,
    layers.Dropout: nn.Dropout,
}

# The methods. `step` does one iteration and returns its losses, not yet detached.


class Reference(nn.Module):
    """One method, with the modules and numbers of a noveltylab method.

    `networks` is that method; nothing else of it is used.
    """

    def __init__(self, networks: Any, shared: bool = False) -> None:
        super().__init__()
        self.networks, self.shared = networks, shared
        for module in networks.modules():
            if (plain := PLAIN.get(type(module))) is not None:
                module.__class__ = plain

    def optimizers(self) -> list[torch.optim.Optimizer]:
        """Those of the method's networks, as `step` numbers them."""
        raise NotImplementedError  # each reference has its own, as below

    def step(
        self, batch: list[Tensor], epoch: int, epochs: int, minimise: Minimise
    ) -> dict[str, Tensor]:
        """One iteration with all its alternating steps; detached losses by name."""
        raise NotImplementedError  # likewise

    def score(self, x: Tensor) -> Tensor:
        """The method's primary score, (B,)."""
        raise NotImplementedError  # likewise


def parameters(*modules: nn.Module | None) -> Iterator[nn.Parameter]:
    return chain.from_iterable(module.parameters() for module in modules if module is not None)


def bce(logits: Tensor, label: float) -> Tensor:
    return F.binary_cross_entropy_with_logits(logits, torch.full_like(logits, label))


class PlainOCGAN(Reference):
    """Algorithm 1 line by line."""

    networks: OCGAN

    def optimizers(self) -> list[torch.optim.Optimizer]:
        n = self.networks
        return [
            torch.optim.Adam(parameters(*part), lr=n.lr, betas=(n.beta1, 0.999))
            for part in (
                (n.encoder, n.decoder),
                (n.latent_discriminator, n.image_discriminator),
                (n.classifier,),
            )
        ]

    def step(
        self, batch: list[Tensor], epoch: int, epochs: int, minimise: Minimise
    ) -> dict[str, Tensor]:
        n, x = self.networks, batch[0]
        assert (
            n.classifier is not None
            and n.latent_discriminator is not None
            and n.image_discriminator is not None
        )
        noisy = x + n.noise_std * torch.randn_like(x)
        l2 = 2 * torch.rand(len(x), *n.latent_shape, device=x.device, dtype=x.dtype) - 1
        if self.shared:
            l1 = n.encoder(noisy)
            x_hat, fake = n.decoder(l1), n.decoder(l2)
        else:
            with torch.no_grad():
                l1 = n.encoder(noisy)
                x_hat, fake = n.decoder(l1), n.decoder(l2)
        classifier = bce(n.classifier(x_hat.detach()), ONE) + bce(n.classifier(fake.detach()), ZERO)
        minimise(classifier, 2)
        latent = bce(n.latent_discriminator(l2), ONE) + bce(
            n.latent_discriminator(l1.detach()), ZERO
        )
        visual = bce(n.image_discriminator(x), ONE) + bce(
            n.image_discriminator(fake.detach()), ZERO
        )
        minimise(latent + visual, 1)
        mines = epoch >= n.mining_start * epochs
        if mines:
            for _ in range(n.mining_steps):
                l2 = l2.detach().requires_grad_()
                logits = n.classifier(n.decoder(l2))
                loss = (
                    F.softplus(logits) if n.mining_loss == "saturated" else -F.softplus(-logits)
                ).sum()
                l2 = (
                    (l2 - n.mining_step_size * torch.autograd.grad(loss, l2)[0])
                    .clamp(-1, 1)
                    .detach()
                )
        if not self.shared:
            l1 = n.encoder(noisy)
            x_hat = n.decoder(l1)
        if mines or not self.shared:
            fake = n.decoder(l2)
        mse = F.mse_loss(x_hat, x)
        fool_latent, fool_visual = (
            bce(n.latent_discriminator(l1), ONE),
            bce(n.image_discriminator(fake), ONE),
        )
        minimise(n.w_mse * mse + n.w_lat * fool_latent + n.w_vis * fool_visual, 0)
        return {
            "classifier": classifier,
            "latent_discriminator": latent,
            "image_discriminator": visual,
            "mse": mse,
            "generator_latent": fool_latent,
            "generator_image": fool_visual,
        }

    def score(self, x: Tensor) -> Tensor:
        n = self.networks
        errors: Tensor = (x - n.decoder(n.encoder(x))).square().flatten(1).mean(1)
        return errors


class PlainCAEntropy(Reference):
    """Skip-GANomaly's loop with the paper's order: D, then G."""

    networks: CAEntropy

    def optimizers(self) -> list[torch.optim.Optimizer]:
        n = self.networks
        return [
            torch.optim.Adam(parameters(*part), lr=n.lr, betas=(n.beta1, 0.999))
            for part in ((n.encoder, n.decoder), (n.discriminator,))
        ]

    def step(
        self, batch: list[Tensor], epoch: int, epochs: int, minimise: Minimise
    ) -> dict[str, Tensor]:
        n, x = self.networks, batch[0]
        assert n.discriminator is not None
        x_hat, h = n.generate(x + n.noise_std * torch.randn_like(x))
        discriminator = bce(n.discriminator(x)[0], ONE) + bce(
            n.discriminator(x_hat.detach())[0], ZERO
        )
        minimise(discriminator, 1)
        logits, f_hat = n.discriminator(x_hat)
        with torch.no_grad():
            _, f = n.discriminator(x)
        context, feature, fool = F.l1_loss(x_hat, x), F.mse_loss(f_hat, f), bce(logits, ONE)
        p = F.softmax(h, 1)
        entropy = -(p * F.log_softmax(h, 1)).sum(1).mean()
        minimise(n.w_con * context + n.w_fea * feature + n.w_adv * fool + n.w_inf * entropy, 0)
        return {
            "discriminator": discriminator,
            "context": context,
            "feature": feature,
            "generator": fool,
            "entropy": entropy,
            "p_max": p.amax(1).mean(),
        }

    def score(self, x: Tensor) -> Tensor:
        n = self.networks
        assert n.discriminator is not None
        x_hat, _ = n.generate(x)
        context = (x - x_hat).abs().flatten(1).mean(1)
        feature = (n.discriminator(x)[1] - n.discriminator(x_hat)[1]).square().mean(1)
        scores: Tensor = n.lam * context + (1 - n.lam) * feature
        return scores


class PlainOLED(Reference):
    """The authors' step: one forward of both, both networks' gradients from it; plain upsampling."""

    networks: OLED

    def __init__(self, networks: Any, shared: bool = False) -> None:
        super().__init__(networks, shared)
        for module in [*networks.modules()]:
            for name, child in module.named_children():
                if isinstance(child, UpsampledConv):
                    setattr(
                        module, name, nn.Sequential(nn.Upsample(scale_factor=2), _ordinary(child))
                    )

    def optimizers(self) -> list[torch.optim.Optimizer]:
        n = self.networks
        return [
            torch.optim.Adam(parameters(*part), lr=n.lr, betas=n.betas, eps=n.adam_eps)
            for part in ((n.encoder, n.decoder), (n.mask_generator,))
        ]

    def masks(self, x: Tensor) -> Tensor:
        n = self.networks
        assert n.mask_generator is not None
        with torch.autocast(x.device.type, enabled=False):
            a = n.mask_generator(x)
            flat = a.flatten(1)
            rank = int(n.t / 100 * (flat.shape[1] - 1))
            s = flat.sort(1).values[:, rank].view(-1, 1, 1, 1) + n.mask_eps
            r = F.relu(s - a)
            return 1 - n.mask_eps / (r + n.mask_eps)

    def step(
        self, batch: list[Tensor], epoch: int, epochs: int, minimise: Minimise
    ) -> dict[str, Tensor]:
        n, x = self.networks, batch[0]
        m = self.masks(x)
        x_m = x * m
        x_hat, x_hat_m = n.decoder(n.encoder(x)), n.decoder(n.encoder(x_m))
        hidden = (m == 0).to(x)
        rec, mask = F.mse_loss(x_hat, x), F.mse_loss(x_hat_m, x)
        cont = (hidden * (x - x_hat_m)).abs().mean()
        loss = mask + n.gamma * cont + n.lam * rec
        if epoch % n.mm_every == 0:
            objective = mask + n.gamma * cont if n.mask_objective == "mask_cont" else mask
            assert n.mask_generator is not None
            weights = [*n.mask_generator.parameters()]
            gradients = torch.autograd.grad(-objective, weights, retain_graph=True)
            minimise(loss, 0)
            for weight, gradient in zip(weights, gradients, strict=True):
                weight.grad = gradient
            minimise(torch.zeros(()), 1)
        else:
            minimise(loss, 0)
        soft = ((m > 0.01) & (m < 0.99)).float().mean()
        return {
            "rec": rec,
            "mask": mask,
            "cont": cont,
            "mask_soft_share": soft,
            "mask_count": hidden.sum() / len(x),
        }

    def score(self, x: Tensor) -> Tensor:
        n = self.networks
        x_hat_m = n.decoder(n.encoder(x * self.masks(x))).clamp(-1, 1)
        errors: Tensor = (x - x_hat_m).square().flatten(1).sum(1)
        return errors


def _ordinary(folded: UpsampledConv) -> nn.Conv2d:
    convolution = nn.Conv2d(folded.in_channels, folded.out_channels, 5, 1, 2)
    convolution.weight, convolution.bias = folded.weight, folded.bias
    return convolution


class PlainNDA(Reference):
    """One step of Eq. 8, the augmentation in the loader."""

    networks: NDA

    def optimizers(self) -> list[torch.optim.Optimizer]:
        n = self.networks
        weights = parameters(
            n.generator, n.encoder, n.global_estimator, n.local_estimator, n.prior_estimator
        )
        if n.optimizer == "adam":
            return [
                torch.optim.Adam(
                    weights, lr=n.lr, betas=(n.momentum, 0.999), weight_decay=n.weight_decay
                )
            ]
        return [torch.optim.SGD(weights, lr=n.lr, momentum=n.momentum, weight_decay=n.weight_decay)]

    def step(
        self, batch: list[Tensor], epoch: int, epochs: int, minimise: Minimise
    ) -> dict[str, Tensor]:
        n, (x, index, negatives) = self.networks, batch
        assert n.global_estimator is not None and n.local_estimator is not None
        codes = n.latents[index]
        levels = n.pyramid(x - n.generator(codes).to(x))
        recon = torch.stack([level.abs().mean() for level in levels]).sum()
        maps = n.encoder.local(x)
        z = n.encoder.head(maps)
        lat = F.mse_loss(z, codes)
        maps_n = n.encoder.local(negatives)
        losses = {"recon": recon, "lat": lat}
        for name, estimator in (("global", n.global_estimator), ("local", n.local_estimator)):
            losses[name] = n.beta * (bce(estimator(maps, z), ONE) + bce(estimator(maps_n, z), ZERO))
        variance, mean = torch.var_mean(z.to(x), 0, correction=0)
        losses["prior"] = (
            n.gamma * 0.5 * (mean**2 + variance - variance.clamp_min(1e-8).log() - 1).sum()
        )
        minimise(
            n.w_recon * recon
            + n.w_lat * lat
            + n.w_mie * (losses["global"] + losses["local"] + losses["prior"]),
            0,
        )
        return losses

    def score(self, x: Tensor) -> Tensor:
        n = self.networks
        errors: Tensor = (x - n.generator(n.encoder(x))).square().flatten(1).mean(1)
        return errors


REFERENCES: dict[str, type[Reference]] = {
    "ocgan": PlainOCGAN,
    "ca_entropy": PlainCAEntropy,
    "oled": PlainOLED,
    "nda": PlainNDA,
}


# The two loops.


def bare_loop(
    reference: Reference,
    batches: DataLoader[Any],
    epochs: int,
    device: str,
    bf16: bool,
    seen: Callable[[], None],
) -> dict[str, float]:
    """Trains; `seen` is called after each step. Returns the mean losses of the last epoch."""
    optimizers = reference.optimizers()

    def minimise(loss: Tensor, number: int) -> None:
        if loss.requires_grad:
            optimizers[number].zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]  # torch's own
        optimizers[number].step()
        torch.clear_autocast_cache()  # else the next step would see the weights as they were

    reference.train()
    sums: dict[str, float] = {}
    for epoch in range(epochs):
        sums = {}
        for batch in batches:
            batch = [part.to(device, non_blocking=True) for part in batch]
            with torch.autocast(device, torch.bfloat16, enabled=bf16):
                losses = reference.step(batch, epoch, epochs, minimise)
            for name, loss in losses.items():
                sums[name] = sums.get(name, 0.0) + loss.item()
            seen()
    return {name: value / len(batches) for name, value in sums.items()}


class PlainModule(L.LightningModule):
    """The same step under Lightning's manual optimization, every loss logged at every step."""

    def __init__(self, reference: Reference, seen: Callable[[], None]) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.reference, self.seen = reference, seen

    def configure_optimizers(self) -> Any:
        return self.reference.optimizers()

    def training_step(self, batch: list[Tensor], batch_index: int) -> None:
        optimizers: Any = self.optimizers()
        optimizers = optimizers if isinstance(optimizers, list) else [optimizers]

        def minimise(loss: Tensor, number: int) -> None:
            if loss.requires_grad:
                optimizers[number].zero_grad()
                self.manual_backward(loss)
            optimizers[number].step()

        epochs = int(self.trainer.max_epochs or 1)
        losses = self.reference.step(batch, self.current_epoch, epochs, minimise)
        for name, loss in losses.items():
            self.log(name, loss.detach(), prog_bar=True)
        self.seen()


@torch.no_grad()
def score_all(reference: Reference, batches: DataLoader[Any], device: str) -> list[float]:
    """Scores batch by batch from the loader, read out at every batch."""
    reference.eval()
    return [value for batch in batches for value in reference.score(batch[0].to(device)).tolist()]
