"""SHA256SUMS, the file that coreutils' sha256sum writes: read strictly, and checked against a folder."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from genaifactory_common.errors import InvalidArgument
from genaifactory_modelserver.threads import Stop
from genaifactory_modelserver.weights import disk

FILE = "SHA256SUMS"
MAX_BYTES = 1 << 20
"""Of the file itself."""

PIECE_BYTES = 1 << 20
# What vLLM would read out of a model's folder.
_READ = re.compile(r"(?!\.).*\.(safetensors|bin|pt|json|model|jinja|py|tiktoken)|(.*/)?(merges|vocab)\.txt")
_PARALLEL = 4
_DIGEST = r"[0-9a-fA-F]{64}"
_LINE = re.compile(rf"({_DIGEST}) [ *](.+)")
_MAX_NAME_BYTES = 1024


def parse(data: bytes, *, field: str) -> dict[str, str]:
    """The digest (hex, lower case) of each file, by its name relative to the folder. The file's own name is left out.

    Raises InvalidArgument for a line that is none, and for a name that leads out of the folder.
    """
    sums: dict[str, str] = {}
    try:
        lines = data.decode().replace("\r\n", "\n").split("\n")
    except UnicodeDecodeError:
        raise InvalidArgument(f"The {FILE} file is not UTF-8 text.", field=field) from None
    for number, line in enumerate(lines, 1):
        if not line:
            continue
        matched = _LINE.fullmatch(line)
        if matched is None:
            raise InvalidArgument(
                f"Line {number} of {FILE} is not a SHA-256 in hex, two spaces and a name, as sha256sum writes.",
                field=field,
            )
        digest, name = matched[1].lower(), matched[2].removeprefix("./")
        if not _stays_inside(name):
            raise InvalidArgument(f"Line {number} of {FILE}: '{name}' is no path below the folder.", field=field)
        if name == FILE:
            continue
        if sums.setdefault(name, digest) != digest:
            raise InvalidArgument(f"{FILE} gives two sums for '{name}'.", field=field)
    for name in sums:
        if any(str(parent) in sums for parent in Path(name).parents):
            raise InvalidArgument(f"{FILE} names '{name}', and a folder of it as a file.", field=field)
    if not sums:
        raise InvalidArgument(f"The {FILE} file names no files.", field=field)
    return sums


def check_pin(data: bytes, pin: str, *, field: str = "sha256") -> None:
    """Raises InvalidArgument when `data`, a SHA256SUMS file, is not the one that was pinned. No pin: nothing."""
    digest = hashlib.sha256(data).hexdigest()
    if pin and digest != pin.lower():
        raise InvalidArgument(f"The {FILE} file has the SHA-256 {digest}, and {pin} is asked for.", field=field)


def verify_folder(folder: Path, pin: str, stop: Stop, *, field: str, read: Callable[[str], bool] | None = None) -> None:
    """Checks a folder against its SHA256SUMS, if it has one; blocks.

    pin: of the SHA256SUMS file, which then must be there; or empty. read: which of the listed files have to be there;
    None: all. Raises InvalidArgument for a file that is missing, differs, or is read by vLLM and not listed.
    """
    try:
        data = disk.read_at_most(folder / FILE, MAX_BYTES, field=field)
    except FileNotFoundError:
        if pin:
            message = f"A SHA-256 is asked for, so the folder must hold a {FILE} file; it does not."
            raise InvalidArgument(message, field="sha256") from None
        return
    check_pin(data, pin)
    sums = parse(data, field=field)
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if _READ.fullmatch(name) and name not in sums and path.is_file():
            raise InvalidArgument(f"'{name}' is in the folder and not in its {FILE}.", field=field)
    names = [name for name in sums if read is None or read(name)]

    def verify(name: str) -> None:
        try:
            digest = of_file(folder / name, stop)
        except FileNotFoundError:
            raise InvalidArgument(f"{FILE} names '{name}', which is not in the folder.", field=field) from None
        if digest != sums[name]:
            raise InvalidArgument(
                f"'{name}' has the SHA-256 {digest}, and {FILE} says {sums[name]}: copy the file again.", field=field
            )

    with ThreadPoolExecutor(_PARALLEL, thread_name_prefix="checksums") as pool:
        for future in [pool.submit(verify, name) for name in names]:
            try:
                future.result()
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise


def of_file(path: Path, stop: Stop) -> str:
    """The SHA-256 of a file, hex; blocks. Raises Stopped."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(PIECE_BYTES):
            stop.check()
            digest.update(piece)
    return digest.hexdigest()


def is_digest(text: object) -> bool:
    """Whether it is a SHA-256 in hex."""
    return isinstance(text, str) and re.fullmatch(_DIGEST, text) is not None


def _stays_inside(name: str) -> bool:
    # Backslashes: sha256sum writes them for names with line ends, and elsewhere they separate folders.
    if "\\" in name or len(name.encode()) > _MAX_NAME_BYTES or not name.isprintable():
        return False
    return all(part not in ("", ".", "..") for part in name.split("/"))
