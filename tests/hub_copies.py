"""Copies of data sets as the hub has them, made by the ``datasets`` library; rows are invented, columns are real."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image


def picture(n: int = 0, form: str = "PNG", size: tuple[int, int] = (8, 6)) -> bytes:
    """The content of a picture file; pixel (0, 0) is grey of level ``n``."""
    pixels = np.random.default_rng(n).integers(256, size=(size[1], size[0], 3), dtype=np.uint8)
    pixels[0, 0] = n
    content = BytesIO()
    Image.fromarray(pixels).save(content, form)
    return content.getvalue()


def table(rows: Sequence[Mapping[str, Any]], pictures: Sequence[str] = ()) -> Any:
    """A ``datasets.Dataset`` of rows; the columns ``pictures`` hold contents of picture files, or lists of them."""
    import datasets

    def stored(value: Any) -> Any:
        if isinstance(value, list):
            return [stored(one) for one in value]
        return {"bytes": value, "path": None} if isinstance(value, bytes) else value

    columns = {name: [row.get(name) for row in rows] for name in rows[0]}
    columns |= {name: [stored(row.get(name)) for row in rows] for name in pictures}
    data = datasets.Dataset.from_dict({name: values for name, values in columns.items() if name not in pictures})
    for name in pictures:
        is_list = any(isinstance(value, list) for value in columns[name])
        feature = datasets.List(datasets.Image()) if is_list else datasets.Image()
        added = datasets.Dataset.from_dict({name: columns[name]}, features=datasets.Features({name: feature}))
        data = datasets.concatenate_datasets([data, added], axis=1) if len(data.column_names) else added
    return data


def write_copy(
    folder: Path,
    rows: Sequence[Mapping[str, Any]],
    pictures: Sequence[str] = ("image",),
    file: str = "data/test-00000-of-00001.parquet",
) -> Path:
    """A folder with one Parquet file, as a hub's repository is when it was fetched."""
    (folder / file).parent.mkdir(parents=True, exist_ok=True)
    table(rows, pictures).to_parquet(str(folder / file))
    return folder
