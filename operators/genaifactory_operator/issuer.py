"""Applies what is due on the Secrets, round after round, and waits between the steps of a rotation."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime

from genaifactory_common.errors import Conflict, Internal, InvalidArgument
from genaifactory_operator import context_key
from genaifactory_operator.cluster import Secrets
from genaifactory_operator.configuration import Configuration
from genaifactory_operator.planning import is_rotating, plan
from genaifactory_operator.secret import Change, Secret

# Two rotations need fewer; without a bound, a Secret that something else reverts would keep it running for ever.
_MOST_ROUNDS = 30
_CONFLICT_PAUSE_SECONDS = 0.5


@dataclass(frozen=True)
class Clock:
    """The time, and waiting; tests have one that does not wait."""

    now: Callable[[], datetime] = lambda: datetime.now(UTC)
    sleep: Callable[[float], None] = time.sleep


def run(
    wanted: Configuration,
    secrets: Secrets,
    report: Callable[[str], None],
    *,
    rotate: bool = False,
    rotate_key: bool = False,
    renew_all: bool = False,
    patient: bool = True,
    clock: Clock | None = None,
) -> None:
    """Makes and renews what is due; completes a rotation that is under way.

    rotate: replace the authority, and so every certificate, unless that is under way. rotate_key: likewise the key of
    callers' tokens. renew_all: replace every certificate, by the same authority. patient: wait for the steps of the
    requested rotation, or without one of every rotation; other steps that are not due yet are left to the next run.
    report: called with each change, and each wait.

    Concurrent runs are safe. Raises FactoryError.
    """
    clock = clock or Clock()
    if rotate and (wanted.authority is None or wanted.authority.external):
        raise InvalidArgument("The authority is not the issuer's own: replace it in its Secret, in steps.")
    renew_changed_before = clock.now() if renew_all else None
    # A token of the old key may be valid for an hour, for which a rotation of certificates need not wait.
    awaits_key, awaits_certificates = patient and not (rotate or renew_all), patient and not rotate_key
    for _ in range(_MOST_ROUNDS):
        # The authority and the private key are read last: what is derived from them for a Secret that was read before
        # and has not changed since is no older than what another run has written there.
        found = {name: secrets.read(name) for name in wanted.secrets}
        rotate = rotate and not _under_way(wanted, found)
        rotate_key = rotate_key and not _key_under_way(wanted, found)
        now = clock.now()
        key = context_key.plan(wanted, found, now, rotate=rotate_key)
        certificates = plan(wanted, found, now, rotate=rotate, renew_changed_before=renew_changed_before)
        steps = (key, certificates)
        later = [step.wait_until for step in steps if step.wait_until is not None]
        awaited = [
            step.wait_until
            for step, awaits in ((key, awaits_key), (certificates, awaits_certificates))
            if awaits and step.wait_until is not None
        ]
        if changes := tuple(change for step in steps for change in step.changes):
            _apply(changes, secrets, report, clock)
        elif awaited:
            seconds = (min(awaited) - now).total_seconds()
            report(f"waiting {seconds:.0f} s, until every pod has seen its Secrets change and old tokens have run out")
            clock.sleep(seconds)
        elif later:
            report(f"the next step of a rotation is due at {min(later):%Y-%m-%dT%H:%M:%SZ}; a later run takes it")
            return
        else:
            for step in steps:
                if step.note:
                    report(step.note)
            return
    raise Internal(f"The Secrets still need changes after {_MOST_ROUNDS} rounds; does something revert them?")


def _under_way(wanted: Configuration, found: dict[str, Secret]) -> bool:
    return wanted.authority is not None and is_rotating(found[wanted.authority.secret])


def _key_under_way(wanted: Configuration, found: dict[str, Secret]) -> bool:
    return wanted.context_key is not None and context_key.is_rotating(found[wanted.context_key.private_secret])


def _apply(changes: tuple[Change, ...], secrets: Secrets, report: Callable[[str], None], clock: Clock) -> None:
    for change in changes:
        try:
            secrets.apply(change, clock.now())
        except Conflict as conflict:
            report(f"{conflict.message} It is read again.")
            clock.sleep(_CONFLICT_PAUSE_SECONDS)
            return
        report(f"{change.secret.name}: {change.why}")
