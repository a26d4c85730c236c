"""A model folder that somebody uploads: a zip, of which only the card and the weights are read.

It may come from anybody. Nothing in it says where a file is written, no more is unpacked than may
be uploaded, and the two files are then checked as those of any model folder.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory
from zipfile import ZIP_DEFLATED, ZIP_STORED, BadZipFile, ZipFile

from bezierdistill.app.run import Shown
from bezierdistill.errors import UserError
from bezierdistill.models import Model
from bezierdistill.models.folder import CARD, WEIGHTS, load_model, read_card
from bezierdistill.reporting.runs import generates

LARGEST = 64 * 2**20  # bytes of an upload, and of each file that is unpacked
EXPECTED = f"a zip of a model folder, with one {CARD} and one {WEIGHTS}"


@dataclass(frozen=True, eq=False)  # as something that a page can hold: it has a hash
class Upload:
    """An uploaded model."""

    model: Model

    @property
    def name(self) -> str:
        """What it is called on the page."""
        return f"yours ({self.model.digest[:8]})"

    def within(self, run: Shown) -> Shown:
        """A run with the model in it."""
        return replace(run, models={**run.models, self.name: self.model})


def read_upload(file: Path) -> Upload:
    """The model in an uploaded zip; it has no folder.

    Raises:
        UserError: if it is no zip of a model folder, too large, or not a network of ours that
            starts from noise.
    """
    with TemporaryDirectory() as folder:
        try:
            _unpack(file, Path(folder))
            card = read_card(Path(folder))
            if card.is_own or card.is_pipeline:
                raise UserError(f"{file.name} holds weights alone: open its folder by --run")
            model = load_model(folder)
        except UserError as error:  # by its own name, without the folders of this machine
            raise UserError(str(error).replace(folder, file.name)) from None
    if not generates(model):
        raise UserError(f"{file.name} holds a {card.kind} that does not start from noise alone")
    return Upload(replace(model, folder=None))


def _unpack(file: Path, folder: Path) -> None:
    try:
        with ZipFile(file) as archive:
            for name in (CARD, WEIGHTS):
                (folder / name).write_bytes(_content(archive, name))
    except (BadZipFile, zlib.error, EOFError, RuntimeError, NotImplementedError) as error:
        told = " ".join(str(error).split())[:100]
        raise UserError(f"{file.name} cannot be read ({told}): expected {EXPECTED}") from None


def _content(archive: ZipFile, name: str) -> bytes:
    """What the one file of a name holds, wherever it lies in the archive."""
    found = [one for one in archive.infolist() if PurePosixPath(one.filename).name == name]
    if len(found) != 1:
        raise UserError(f"the zip holds {len(found)} files {name}: expected {EXPECTED}")
    size, packed = found[0].file_size, found[0].compress_type
    # No more is unpacked than this size says; of other kinds of packing it could be.
    if size > LARGEST or packed not in (ZIP_STORED, ZIP_DEFLATED):
        kind = f"{name} has {size:,} bytes, packed by method {packed}"
        raise UserError(f"{kind}: expected {LARGEST:,} or fewer, stored or deflated")
    return archive.read(found[0])
