"""An artifact's tokenizer for who has not its files: one zip, the same bytes on every worker, and its digest."""

from __future__ import annotations

import hashlib
import io
import zipfile
from dataclasses import dataclass
from pathlib import Path

from tsrun.whole_tokenizer import whole_tokenizer

_EPOCH = (1980, 1, 1, 0, 0, 0)


@dataclass(frozen=True, slots=True)
class Bundle:
    data: bytes
    sha256: str

    @classmethod
    def of(cls, folder: Path) -> Bundle:
        """Of a large vocabulary: seconds."""
        written = io.BytesIO()
        with zipfile.ZipFile(written, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as bundle:
            for name, data in whole_tokenizer(folder).items():
                bundle.writestr(zipfile.ZipInfo(name, _EPOCH), data, zipfile.ZIP_DEFLATED)
        return cls(written.getvalue(), hashlib.sha256(written.getvalue()).hexdigest())
