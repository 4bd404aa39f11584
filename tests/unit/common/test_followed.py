"""Values of texts that change: the last valid one, read at bounded intervals."""

from __future__ import annotations

import asyncio

import pytest

from genaifactory_common import background
from genaifactory_common.errors import InvalidArgument
from genaifactory_common.followed import Followed


def _number(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise InvalidArgument("The number is none.") from None


class Text:
    """A text that changes, with the number of reads."""

    def __init__(self) -> None:
        self.text: str | None = "1"
        self.reads = 0

    def read(self) -> str:
        self.reads += 1
        if self.text is None:
            raise InvalidArgument("The file is not there.")
        return self.text


@pytest.fixture
def file() -> Text:
    return Text()


async def test_a_change_is_followed(file: Text) -> None:
    followed = Followed("a number", file.read, _number)
    async with background.running(followed.watch(interval_seconds=0.01), name="test"):
        file.text = "2"
        async with asyncio.timeout(5):
            while followed.current != 2:  # noqa: ASYNC110
                await asyncio.sleep(0.01)


@pytest.mark.parametrize("change", ["no number", None])
async def test_an_invalid_text_is_logged_once_and_the_last_valid_value_stays(
    change: str | None, file: Text, caplog: pytest.LogCaptureFixture
) -> None:
    followed = Followed("a number", file.read, _number)
    file.text = change
    for _ in range(3):
        await asyncio.sleep(0.21)
        await followed.look()
    assert followed.current == 1
    assert file.reads == 4
    reason = "The file is not there." if change is None else "The number is none."
    assert [record.message for record in caplog.records if record.levelname == "ERROR"] == [
        f"a number: the new one is refused, the last good one stays: {reason}"
    ]
    assert "no number" not in caplog.text
    file.text = "3"
    await asyncio.sleep(0.21)
    await followed.look()
    assert followed.current == 3


async def test_concurrent_looks_read_once(file: Text) -> None:
    followed = Followed("a number", file.read, _number)
    await asyncio.sleep(0.21)
    await asyncio.gather(*(followed.look() for _ in range(100)))
    assert file.reads == 2


async def test_an_unchanged_text_is_not_parsed_again(file: Text) -> None:
    followed = Followed("a list", file.read, lambda text: [text])
    before = followed.current
    file.text = "1"
    await asyncio.sleep(0.21)
    await followed.look()
    assert followed.current is before


def test_an_invalid_first_text_is_an_error(file: Text) -> None:
    file.text = "none"
    with pytest.raises(InvalidArgument):
        Followed("a number", file.read, _number)
