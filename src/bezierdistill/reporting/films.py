"""Images and films as files of their own: PNG, GIF, MP4, folders of these."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bezierdistill.files import whole_folder, write_array, write_atomically, write_json

FPS = 8  # of films, unless they say otherwise


def write_film(file: Any, frames: np.ndarray, kind: str, fps: int = FPS) -> None:
    """Write frames ``(F, H, W, 3)`` of bytes as an animated ``GIF`` or ``PNG``.

    Frames that are alike are stored as one that is shown longer; a GIF's comment says how long one
    is, so that it can be read again.
    """
    from PIL import Image

    first, *others = map(Image.fromarray, frames)
    time = 10 * round(100 / fps)  # GIFs count hundredths of a second
    told = {"duration": time, "loop": 0, "comment": f"{time} ms a frame"}
    first.save(file, kind, save_all=True, append_images=others, **told)


def write_images(out: Path, images: np.ndarray, texts: Sequence[str] = (), fps: int = FPS) -> None:
    """Write images ``(N, H, W, C)`` or films ``(N, F, H, W, C)`` of bytes: an ``.npz``, a file of
    one (of several images a grid), or a folder of files, with ``prompts.json`` of texts beside.
    """
    if out.suffix == ".npz":
        write_array(out, images)
    elif out.suffix:
        one = images[0] if len(images) == 1 else grid(images)[0]
        write_atomically(out, lambda path: _write(path, one, out.suffix, fps))
    else:
        ending = ".png" if images.ndim == 4 else ".gif"
        with whole_folder(out) as folder:
            for k, image in enumerate(images):
                _write(folder / f"{k:06d}{ending}", image, ending, fps)
            named = {f"{k:06d}{ending}": text for k, text in enumerate(texts)}
            if named:
                write_json(folder / "prompts.json", named)


def grid(images: np.ndarray) -> np.ndarray:
    """Images ``(N, H, W, C)`` side by side as one, ``(1, ...)``, or films likewise."""
    columns = int(np.ceil(np.sqrt(len(images))))
    rows = -(-len(images) // columns)
    blank = np.zeros((rows * columns - len(images), *images.shape[1:]), images.dtype)
    tiles = np.concatenate([images, blank]).reshape(rows, columns, *images.shape[1:])
    lines = [np.concatenate(list(line), axis=-2) for line in tiles]
    return np.concatenate(lines, axis=-3)[None]


def _write(path: Path, image: np.ndarray, kind: str, fps: int) -> None:
    from PIL import Image

    if kind == ".mp4":
        from diffusers.utils.export_utils import export_to_video

        named = path.with_name(f"{path.name}{kind}")  # writers go by the ending
        export_to_video([Image.fromarray(frame) for frame in image], str(named), fps=fps)
        named.replace(path)
    elif kind == ".gif":
        write_film(path, image, "GIF", fps)
    else:
        Image.fromarray(image).save(path, "PNG")
