"""python -m genaifactory_common.specs FILE: checks a factory.yaml, and reports each bad field in a line.

The chart runs it before it changes anything; people use `genaifactory config check`, which also compares with what is
stored.
"""

from __future__ import annotations

import sys
from pathlib import Path

from genaifactory_common import specs


def main() -> None:
    """Exits with 1 when the document is refused."""
    try:
        specs.load(Path(sys.argv[1]))
    except specs.InvalidConfiguration as error:
        sys.exit("\n".join(error.lines))


if __name__ == "__main__":
    main()
