"""Small files of models and adapters: read up to a bound, as JSON objects where they are some."""

from __future__ import annotations

from pathlib import Path

import pytest

from genaifactory_common.errors import InvalidArgument
from genaifactory_modelserver.weights import checksums, disk


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b'{"a": 1}', {"a": 1}),
        (b"[1]", None),
        (b"null", None),
        (b'{"a"', None),
        (b"\xff\xfe", None),
        (b"[" * 99_999, None),
        (b'{"a": ' + b"9" * 5000 + b"}", None),
    ],
    ids=["an object", "a list", "null", "cut off", "no text", "nested too deep", "a number of too many digits"],
)
def test_a_file_is_a_json_object_or_none(data: bytes, expected: object, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes(data)
    assert disk.read_object(tmp_path / "config.json", 100_000, field="source") == expected


def test_a_file_that_is_larger_than_it_may_be_is_refused_by_its_name(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}".ljust(101))
    with pytest.raises(InvalidArgument, match=r"'config\.json' is larger than 100 bytes") as refused:
        disk.read_object(tmp_path / "config.json", 100, field="source")
    assert refused.value.field == "source"


@pytest.mark.parametrize("text", ["", "0" * 63, "0" * 65, "g" * 64, "0" * 64 + "\n", None, 0])
def test_what_is_no_sha256_in_hex(text: object) -> None:
    assert not checksums.is_digest(text)


def test_a_sha256_in_hex_may_be_in_capitals() -> None:
    assert checksums.is_digest("aB" * 32)
