"""python -m genaifactory_operator certificates: fills and renews the Secrets with certificates and keys, once."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from genaifactory_common.errors import FactoryError
from genaifactory_operator import configuration, issuer
from genaifactory_operator.cluster import Secrets


def main() -> None:
    """Exit code 0: all is as it should be; 1: one line on stderr says what is not."""
    arguments = _parser().parse_args()
    try:
        wanted = configuration.load(arguments.config)
        with Secrets(wanted.namespace) as secrets:
            issuer.run(
                wanted,
                secrets,
                lambda line: print(line, flush=True),
                rotate=arguments.action == "rotate" and not arguments.leaves,
                renew_all=arguments.action == "rotate" and arguments.leaves,
            )
    except FactoryError as error:
        print(f"genaifactory_operator: {' '.join(error.message.split())}", file=sys.stderr)
        sys.exit(1)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m genaifactory_operator", allow_abbrev=False)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    certificates = commands.add_parser(
        "certificates",
        help="make and renew what is due",
        description="Fills and renews the Secrets with the services' certificates and the key of callers' contexts.",
        allow_abbrev=False,
    )
    certificates.add_argument(
        "action",
        nargs="?",
        choices=["rotate"],
        help="replace the authority and every certificate, in steps with waits between them, while nothing stops",
    )
    certificates.add_argument("--leaves", action="store_true", help="rotate: keep the authority")
    certificates.add_argument("--config", type=Path, required=True, metavar="FILE", help="what to issue (YAML or JSON)")
    return parser


if __name__ == "__main__":
    main()
