"""python -m genaifactory_operator certificates: fills and renews the Secrets with certificates and keys, once."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from genaifactory_common.errors import FactoryError
from genaifactory_operator import configuration, issuer
from genaifactory_operator.cluster import Secrets


def main() -> None:
    """Exit code 0: nothing is left to do; 1: failed, with the error as one line on stderr."""
    arguments = _parser().parse_args()
    try:
        wanted = configuration.load(arguments.config)
        rotate = arguments.action == "rotate"
        with Secrets(wanted.namespace) as secrets:
            issuer.run(
                wanted,
                secrets,
                lambda line: print(line, flush=True),
                rotate=rotate and not (arguments.leaves or arguments.context_key),
                rotate_key=rotate and arguments.context_key,
                renew_all=rotate and arguments.leaves,
                patient=not arguments.without_waiting,
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
        description="Fills and renews the Secrets with the services' certificates and the key of callers' tokens.",
        allow_abbrev=False,
    )
    certificates.add_argument(
        "action",
        nargs="?",
        choices=["rotate"],
        help="replace the authority and every certificate, in steps with waits between them and without downtime",
    )
    what = certificates.add_mutually_exclusive_group()
    what.add_argument("--leaves", action="store_true", help="rotate: keep the authority")
    what.add_argument(
        "--context-key", action="store_true", help="rotate: the key of callers' tokens, and no certificate"
    )
    certificates.add_argument(
        "--without-waiting", action="store_true", help="leave steps that are not due yet to a later run"
    )
    certificates.add_argument("--config", type=Path, required=True, metavar="FILE", help="what to issue (YAML or JSON)")
    return parser


if __name__ == "__main__":
    main()
