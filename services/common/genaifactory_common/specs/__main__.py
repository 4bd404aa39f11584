"""python -m genaifactory_common.specs FILE: refuses a factory.yaml with a line for each bad field.

The chart asks it before it changes anything; people use `genaifactory config check`, which also compares with what is
stored.
"""

from __future__ import annotations

import sys
from pathlib import Path

from genaifactory_common import specs


def main() -> None:
    """Ends the process with 1 when the document is refused."""
    try:
        specs.load(Path(sys.argv[1]))
    except specs.InvalidConfiguration as error:
        sys.exit("\n".join(error.lines))


if __name__ == "__main__":
    main()
