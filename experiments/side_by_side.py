"""One picture of several runs below each other, such as OCGAN's figure 2: a plain denoising auto-encoder and OCGAN.

python -m noveltylab method=ocgan method.name=dae method.use_latent_discriminator=false method.use_image_discriminator=false \\
    method.use_mining=false
python -m noveltylab method=ocgan
python -m experiments.side_by_side latent_paths outputs/p1/dae/digits/inlier8/seed0 outputs/p1/ocgan/digits/inlier8/seed0

Figure 3 is `random_latents` of a run with `method.name=no_mining method.use_mining=false` and of one with mining. A picture is
drawn from the same test images and the same latents in all runs of a split and a seed, so that rows can be compared.
"""

import argparse
import io
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from noveltylab.command.screen import say
from noveltylab.errors import UserError
from noveltylab.results.files import write_atomic
from noveltylab.results.record import read_result

#: Height of a run's title and size of its letters, in pixels.
TITLE, LETTERS = 44, 28


def main(arguments: list[str] | None = None) -> int:
    """Exit code: 0, or 2 for bad input."""
    parser = argparse.ArgumentParser(
        prog="python -m experiments.side_by_side",
        description=" ".join(__doc__.partition("\n\n")[0].split()),
    )
    parser.add_argument("picture", help="its name in figures/, without .png, e.g. latent_paths")
    parser.add_argument("runs", nargs="+", type=Path, help="run folders, from top to bottom")
    parser.add_argument(
        "--output", type=Path, default=Path("side_by_side.png"), help="default side_by_side.png"
    )
    options = parser.parse_args(arguments)
    try:
        pictures = [(title(run), picture(run, options.picture)) for run in options.runs]
    except UserError as error:
        say(f"error: {error}")
        return 2
    buffer = io.BytesIO()
    stacked(pictures).save(buffer, "PNG")
    write_atomic(options.output, buffer.getvalue())
    say(f"picture: {options.output}")
    return 0


def title(run: Path) -> str:
    """A run's method, data, inlier and seed."""
    result = read_result(run)
    return f"{result['method']} · {result['data']} · inlier {result['inlier_name']} · seed {result['seed']}"


def picture(run: Path, name: str) -> Image.Image:
    """A picture of a run; UserError where it has none of that name."""
    path = run / "figures" / f"{name}.png"
    try:
        return Image.open(path).convert("RGB")
    except OSError:
        names = sorted(file.stem for file in path.parent.glob("*.png"))
        raise UserError(
            f"{path}: no such picture; this run has {', '.join(names) or 'none'}"
        ) from None


def stacked(pictures: list[tuple[str, Image.Image]]) -> Image.Image:
    """Pictures below each other, each under its title, on white."""
    width = max(image.width for _, image in pictures)
    height = sum(TITLE + image.height for _, image in pictures)
    canvas = Image.new("RGB", (width, height), "white")
    draw, font = ImageDraw.Draw(canvas), ImageFont.load_default(LETTERS)
    top = 0
    for text, image in pictures:
        draw.text((8, top + 6), text, "black", font)
        canvas.paste(image, (0, top + TITLE))
        top += TITLE + image.height
    return canvas


if __name__ == "__main__":
    raise SystemExit(main())
