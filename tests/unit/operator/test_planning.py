"""What is due on the certificates' Secrets, for every state of them."""

from __future__ import annotations

import contextlib
import functools
import itertools
import random
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta

import pytest
from cryptography import x509
from cryptography.exceptions import InvalidSignature

from genaifactory_common import certificates
from genaifactory_common.errors import Conflict, InvalidArgument
from genaifactory_operator import planning as certificates_due
from genaifactory_operator.configuration import Configuration
from genaifactory_operator.planning import plan
from tests.unit.operator.wanted import AUTHORITY, NOW, SERVICES, Memory, days, wanted

GATEWAY, MONITOR = "factory-gateway-tls", "factory-monitor-tls"
LEAVES = [f"factory-{name}-tls" for name in SERVICES]


def _settle(memory: Memory, now: datetime, configuration: Configuration | None = None) -> list[str]:
    """Applies all that is due at one moment; returns what was applied."""
    configuration = configuration or wanted()
    done: list[str] = []
    while changes := plan(configuration, memory.secrets, now).changes:
        for change in changes:
            memory.apply(change, now)
            done.append(f"{change.secret.name}: {change.why}")
    return done


@pytest.fixture
def memory() -> Memory:
    """A platform whose certificates were issued at NOW."""
    made = Memory(wanted().secrets)
    _settle(made, NOW)
    return made


def test_an_empty_platform_gets_an_authority_and_certificates_without_a_wait() -> None:
    memory = Memory(wanted().secrets)
    done = _settle(memory, NOW)
    assert [line.partition(":")[0] for line in done] == [AUTHORITY, *LEAVES]
    assert plan(wanted(), memory.secrets, NOW).wait_until is None
    for name in LEAVES:
        assert memory.secrets[name].data.keys() == {"tls.crt", "tls.key", "ca.crt"}
        assert memory.secrets[name].data["ca.crt"] == memory.secrets[AUTHORITY].data["ca.crt"]


def test_a_certificate_carries_the_identity_and_the_names_of_its_service(memory: Memory) -> None:
    certificate = x509.load_pem_x509_certificate(memory.secrets[GATEWAY].data["tls.crt"])
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.UniformResourceIdentifier) == [
        "spiffe://cluster.local/ns/genai/sa/factory-gateway"
    ]
    assert set(names.get_values_for_type(x509.DNSName)) == {
        "factory-gateway",
        "factory-gateway.genai.svc.cluster.local",
    }
    assert certificate.not_valid_after_utc == NOW + days(90)


def test_nothing_is_due_on_valid_certificates(memory: Memory) -> None:
    assert plan(wanted(), memory.secrets, NOW + days(59)) == certificates_due.Plan()


def _damage(key: str, value: bytes | None) -> Callable[[Memory], None]:
    return lambda memory: memory.put(GATEWAY, {key: value}, NOW)


def _use_key_of_another(memory: Memory) -> None:
    memory.put(GATEWAY, {"tls.key": memory.secrets[MONITOR].data["tls.key"]}, NOW)


def _use_all_of_another(memory: Memory) -> None:
    memory.put(GATEWAY, dict(memory.secrets[MONITOR].data), NOW)


def _sign_by_another_authority(memory: Memory) -> None:
    stranger = certificates.Authority.create("stranger", valid=days(10), now=NOW)
    issued = wanted().issued[0]
    made = stranger.issue(issued.identity, issued.names, valid=days(9), now=NOW)
    memory.put(GATEWAY, {"tls.crt": made.certificate, "tls.key": made.key}, NOW)


@pytest.mark.parametrize(
    ("damage", "why"),
    [
        (_damage("tls.crt", None), "there is none"),
        (_damage("tls.key", None), "there is none"),
        (_damage("tls.crt", b"no certificate"), "cannot be read"),
        (_damage("tls.key", b"no key"), "cannot be read"),
        (_use_key_of_another, "its key is not that of the certificate"),
        (_use_all_of_another, "the names changed"),
        (_sign_by_another_authority, "another authority signed it"),
        (_damage("ca.crt", b"trusts nobody"), "trusts 1 authority"),
        (_damage("ca.crt", None), "trusts 1 authority"),
    ],
)
def test_a_fault_is_repaired_for_its_service_alone(memory: Memory, damage: Callable[[Memory], None], why: str) -> None:
    damage(memory)
    before = dict(memory.secrets)
    (done,) = _settle(memory, NOW)
    assert done.startswith(GATEWAY)
    assert why in done
    assert {name: secret for name, secret in memory.secrets.items() if name != GATEWAY} == {
        name: secret for name, secret in before.items() if name != GATEWAY
    }


def test_another_trust_domain_gives_every_service_a_new_certificate(memory: Memory) -> None:
    issued = [
        {**each.model_dump(), "identity": each.identity.replace("cluster.local", "example.org")}
        for each in wanted().issued
    ]
    done = _settle(memory, NOW, wanted(issued=issued))
    assert len(done) == len(SERVICES)
    assert all("the identity changed" in line for line in done)


def test_a_certificate_is_renewed_the_configured_time_before_its_end(memory: Memory) -> None:
    memory.put(MONITOR, {"tls.crt": None}, NOW)
    _settle(memory, NOW + days(10))  # a service that came later
    done = _settle(memory, NOW + days(60))
    assert [line.partition(":")[0] for line in done] == [GATEWAY, "factory-tools-tls"]
    assert certificates.expiry(memory.secrets[GATEWAY].data["tls.crt"]) == NOW + days(150)


def test_all_certificates_are_renewed_on_request(memory: Memory) -> None:
    later = NOW + days(1)
    before = {name: memory.secrets[name].data["tls.crt"] for name in LEAVES}
    for change in plan(wanted(), memory.secrets, later, renew_changed_before=later).changes:
        memory.apply(change, later)
    assert plan(wanted(), memory.secrets, later, renew_changed_before=later) == certificates_due.Plan()
    assert all(memory.secrets[name].data["tls.crt"] != before[name] for name in LEAVES)


@pytest.mark.parametrize(
    "data",
    [
        {"ca.crt": None},
        {"ca.key": None},
        {"ca.crt": b"no certificate"},
        {"ca.key": b"no key"},
        {"next.crt": b"no certificate", "next.key": b"no key"},
    ],
)
def test_an_authority_that_cannot_be_used_is_an_error_and_never_replaced(
    memory: Memory, data: dict[str, bytes | None]
) -> None:
    memory.put(AUTHORITY, data, NOW)
    with pytest.raises(InvalidArgument, match=AUTHORITY):
        plan(wanted(), memory.secrets, NOW)


def test_an_expired_authority_is_replaced_at_once(memory: Memory) -> None:
    done = _settle(memory, NOW + days(3651))
    assert len(done) == 1 + len(SERVICES)
    assert not certificates_due.is_rotating(memory.secrets[AUTHORITY])


def test_without_an_authority_nothing_is_due() -> None:
    assert plan(wanted(authority=None, issued=[]), {}, NOW) == certificates_due.Plan()


class TestAnExternalAuthority:
    """An authority of the user's own."""

    configuration = wanted(authority={"secret": AUTHORITY, "external": True})

    def _memory(self, valid: timedelta) -> Memory:
        memory = Memory(self.configuration.secrets)
        own = certificates.Authority.create("our own", valid=valid, now=NOW)
        memory.put(AUTHORITY, {"ca.crt": own.pem, "ca.key": own.key_pem}, None)
        return memory

    def test_it_signs_and_is_left_as_it_is(self) -> None:
        memory = self._memory(days(400))
        before = memory.secrets[AUTHORITY]
        _settle(memory, NOW, self.configuration)
        assert plan(self.configuration, memory.secrets, NOW, rotate=True) == certificates_due.Plan()
        assert memory.secrets[AUTHORITY] == before

    def test_a_missing_or_expired_one_is_an_error_that_names_the_fault(self) -> None:
        with pytest.raises(InvalidArgument, match=r"factory-ca needs both ca\.crt and ca\.key; it has no"):
            plan(self.configuration, Memory(self.configuration.secrets).secrets, NOW)
        with pytest.raises(InvalidArgument, match="factory-ca: the authority expired on 2026-12-01"):
            plan(self.configuration, self._memory(days(10)).secrets, NOW + days(11))

    def test_a_certificate_expires_with_it_and_is_not_renewed_over_and_over(self) -> None:
        memory = self._memory(days(20))
        assert len(_settle(memory, NOW, self.configuration)) == len(SERVICES)
        assert certificates.expiry(memory.secrets[GATEWAY].data["tls.crt"]) == NOW + days(20)
        assert "the authority ends on 2026-12-11" in plan(self.configuration, memory.secrets, NOW + days(1)).note

    def test_the_certificates_after_the_first_are_trusted_too(self) -> None:
        memory = self._memory(days(400))
        other = certificates.Authority.create("the one to come", valid=days(400), now=NOW)
        first = memory.secrets[AUTHORITY].data["ca.crt"]
        memory.put(AUTHORITY, {"ca.crt": first + other.pem}, None)
        _settle(memory, NOW, self.configuration)
        assert memory.secrets[GATEWAY].data["ca.crt"] == first + other.pem
        assert certificates.signed_by(
            memory.secrets[GATEWAY].data["tls.crt"],
            certificates.Authority.load(first, memory.secrets[AUTHORITY].data["ca.key"]),
        )


class Fleet:
    """Services that get a change of their Secret up to the propagation time later, each file independently."""

    def __init__(self, memory: Memory, now: datetime) -> None:
        self._memory = memory
        self._seen: dict[tuple[str, str], list[tuple[datetime, bytes]]] = {}
        self.look(now)

    def look(self, now: datetime) -> None:
        """Stores the present versions of the Secrets."""
        for name, key in itertools.product(LEAVES, ("tls.crt", "ca.crt")):
            versions = self._seen.setdefault((name, key), [])
            value = self._memory.secrets[name].data[key]
            if not versions or versions[-1][1] != value:
                versions.append((now, value))

    def _possible(self, name: str, key: str, now: datetime) -> list[bytes]:
        """The versions that a service may use: the present one, and those replaced less than two minutes ago."""
        versions = self._seen[name, key]
        ends = [begin for begin, _ in versions[1:]] + [now + timedelta(seconds=1)]
        return [value for (_, value), end in zip(versions, ends, strict=True) if end > now - timedelta(seconds=120)]

    def require_trust(self, now: datetime) -> int:
        """Fails unless each service accepts each other's certificate in any versions; returns the number of pairs."""
        pairs = 0
        for one, other in itertools.product(LEAVES, LEAVES):
            shown, trusted = self._possible(one, "tls.crt", now), self._possible(other, "ca.crt", now)
            for certificate, bundle in itertools.product(shown, trusted):
                assert _accepts(bundle, certificate, now), f"{other} refuses {one} at {now}"
                pairs += 1
        return pairs


def _accepts(bundle: bytes, certificate: bytes, now: datetime) -> bool:
    begin, end = _accepted(bundle, certificate)
    return begin <= now < end


@functools.cache
def _accepted(bundle: bytes, certificate: bytes) -> tuple[datetime, datetime]:
    """From when until when."""
    leaf = x509.load_pem_x509_certificate(certificate)
    for authority in x509.load_pem_x509_certificates(bundle):
        with contextlib.suppress(ValueError, InvalidSignature):  # another's name, another's key
            leaf.verify_directly_issued_by(authority)
            return (
                max(authority.not_valid_before_utc, leaf.not_valid_before_utc),
                min(authority.not_valid_after_utc, leaf.not_valid_after_utc),
            )
    return NOW, NOW


def _rotate(
    memory: Memory, fleet: Fleet, now: datetime, *, forced: bool, late: Callable[[], timedelta]
) -> tuple[datetime, list[str]]:
    """Applies what is due until nothing is; each round happens `late` after it was due."""
    lines: list[str] = []
    for _ in range(40):
        step = plan(wanted(), memory.secrets, now, rotate=forced)
        forced = forced and not step.changes
        for change in step.changes:
            memory.apply(change, now)
            lines.append(f"{change.secret.name}: {change.why}")
            fleet.look(now)
            assert fleet.require_trust(now)
            now += late()
            assert fleet.require_trust(now)
        if not step.changes:
            if step.wait_until is None:
                return now, lines
            assert step.wait_until > now
            now = step.wait_until
    raise AssertionError("the rotation does not end")


@pytest.mark.parametrize("seed", range(5))
def test_all_services_trust_each_other_at_every_moment_of_a_rotation(memory: Memory, seed: int) -> None:
    chance = random.Random(seed)  # a run may be slow, or interrupted and continued hours later
    before = {name: memory.secrets[name].data["tls.crt"] for name in [*LEAVES]}
    first = memory.secrets[AUTHORITY].data["ca.crt"]
    fleet = Fleet(memory, NOW)
    end, lines = _rotate(
        memory,
        fleet,
        NOW + days(1),
        forced=True,
        late=lambda: timedelta(seconds=chance.choice([0, 0, 1, 60, 119, 200, 9000])),
    )
    assert memory.secrets[AUTHORITY].data.keys() == {"ca.crt", "ca.key"}
    assert memory.secrets[AUTHORITY].data["ca.crt"] != first
    for name in LEAVES:
        assert memory.secrets[name].data["ca.crt"] == memory.secrets[AUTHORITY].data["ca.crt"]
        assert memory.secrets[name].data["tls.crt"] != before[name]
    assert end - NOW >= timedelta(days=1, seconds=240)
    assert len(lines) == 3 + 3 * len(SERVICES)  # each Secret is changed once a step


def test_an_authority_is_replaced_in_steps_the_configured_time_before_its_end(memory: Memory) -> None:
    assert plan(wanted(), memory.secrets, NOW + days(3284)).changes[0].secret.name != AUTHORITY
    _settle(memory, NOW + days(3284))
    fleet = Fleet(memory, NOW + days(3284))
    _, lines = _rotate(memory, fleet, NOW + days(3285), forced=False, late=timedelta)
    assert [line for line in lines if line.startswith(AUTHORITY)] == [
        f"{AUTHORITY}: the next authority, until 2045-11-16; this one signs until all trust both",
        f"{AUTHORITY}: the next authority signs from now on",
        f"{AUTHORITY}: forgets the previous authority",
    ]


def test_a_service_that_is_added_during_a_rotation_is_trusted_by_all_and_trusts_all(memory: Memory) -> None:
    later = NOW + days(1)
    for change in plan(wanted(), memory.secrets, later, rotate=True).changes:
        memory.apply(change, later)
    _settle(memory, later)
    fleet = Fleet(memory, later)
    memory.put(MONITOR, {"tls.crt": None, "tls.key": None, "ca.crt": None}, None)
    _settle(memory, later + timedelta(seconds=100))
    fleet.look(later + timedelta(seconds=100))
    _rotate(memory, fleet, later + timedelta(seconds=100), forced=False, late=timedelta)


def test_a_secret_that_is_reverted_during_a_rotation_begins_the_wait_again(memory: Memory) -> None:
    later, before = NOW + days(1), dict(memory.secrets[MONITOR].data)
    memory.apply(plan(wanted(), memory.secrets, later, rotate=True).changes[0], later)
    _settle(memory, later)
    memory.put(MONITOR, dict(before), None)
    _settle(memory, later + timedelta(seconds=119))
    assert plan(wanted(), memory.secrets, later + timedelta(seconds=121)).wait_until == later + timedelta(seconds=239)


def test_a_clock_that_was_ahead_does_not_delay_a_rotation(memory: Memory) -> None:
    later = NOW + days(1)
    memory.apply(plan(wanted(), memory.secrets, later, rotate=True).changes[0], later)
    for change in plan(wanted(), memory.secrets, later).changes:
        memory.apply(change, later + days(30))
    assert plan(wanted(), memory.secrets, later).wait_until == later + timedelta(seconds=120)


class Runs:
    """Two concurrent runs; which one makes its next read or change is random."""

    def __init__(self, memory: Memory, fleet: Fleet, now: datetime, chance: random.Random) -> None:
        self._memory, self._fleet, self._now, self._chance = memory, fleet, now, chance

    def finish(self) -> None:
        """Runs both to their ends."""
        waits = dict.fromkeys((self._run(), self._run()), self._now)
        while waits:
            ready = [run for run, until in waits.items() if until <= self._now]
            if not ready:
                self._now = min(waits.values())
                continue
            run = self._chance.choice(ready)
            self._now += timedelta(seconds=self._chance.choice([0, 0, 0.1, 3]))
            try:
                waits[run] = next(run)
            except StopIteration:
                del waits[run]
            self._fleet.look(self._now)
            self._fleet.require_trust(self._now)

    def _run(self) -> Iterator[datetime]:
        """As `issuer.run` with a rotation; yields the time at which it continues."""
        rotate = True
        while True:
            found = {}
            for name in wanted().secrets:
                found[name] = self._memory.secrets[name]
                yield self._now
            rotate = rotate and not certificates_due.is_rotating(found[AUTHORITY])
            step = plan(wanted(), found, self._now, rotate=rotate)
            for change in step.changes:
                try:
                    self._memory.apply(change, self._now)
                except Conflict:
                    break
                yield self._now
            if not step.changes:
                if step.wait_until is None:
                    return
                yield step.wait_until


@pytest.mark.parametrize("seed", range(10))
def test_two_concurrent_rotations_are_safe(memory: Memory, seed: int) -> None:
    later = NOW + days(1)
    Runs(memory, Fleet(memory, later), later, random.Random(seed)).finish()
    assert memory.secrets[AUTHORITY].data.keys() == {"ca.crt", "ca.key"}
    assert all(memory.secrets[name].data["ca.crt"] == memory.secrets[AUTHORITY].data["ca.crt"] for name in LEAVES)
