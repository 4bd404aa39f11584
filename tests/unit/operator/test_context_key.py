"""The key that signs callers' tokens, in its Secrets: made once, and replaced in steps without refusing a token."""

from __future__ import annotations

import base64
import contextlib
import json
import random
from datetime import datetime, timedelta
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from genaifactory_common.errors import Conflict, InvalidArgument
from genaifactory_common.followed import Fixed
from genaifactory_common.identity import Caller
from genaifactory_common.tokens import Signer, Verifier, jwks, key_id, parse_jwks
from genaifactory_operator import issuer
from genaifactory_operator.configuration import Configuration
from genaifactory_operator.context_key import NEXT, PREVIOUS, PRIVATE, PUBLIC, PUBLIC_ONE, is_rotating, plan
from genaifactory_operator.issuer import Clock
from genaifactory_operator.secret import Change, Secret
from tests.unit.operator.wanted import NOW, Memory, days, wanted

SIGNING, CHECKING = "factory-context-key", "factory-context-public-key"
PROPAGATION, TOKEN = timedelta(seconds=120), timedelta(seconds=1000)
# With the 30 s by which the clocks of two nodes may differ.
RUNNING_OUT = PROPAGATION + TOKEN + timedelta(seconds=30)


def configuration(**changes: Any) -> Configuration:
    key = {"private_secret": SIGNING, "public_secrets": [CHECKING], "token_seconds": 1000, "rotate_after_days": 90}
    return wanted(authority=None, issued=[], context_key={**key, **changes})


class Killed(BaseException):
    """Ends a run at any point."""


class Cluster:
    """Secrets with all their versions, and a clock that advances with each wait, and a second with each read."""

    def __init__(self) -> None:
        self.memory = Memory(configuration().secrets)
        self.now = NOW
        self.waits: list[float] = []
        self.history: dict[str, list[tuple[datetime, Secret]]] = {name: [] for name in self.memory.secrets}
        self.writes_left = 10**6
        self.wanted = configuration()

    def read(self, name: str) -> Secret:
        self.now += timedelta(seconds=1)
        return self.memory.secrets[name]

    def apply(self, change: Change, now: datetime) -> None:
        if self.writes_left == 0:
            raise Killed
        self.writes_left -= 1
        self.memory.apply(change, now)
        self.put(change.secret.name, {}, now)

    def put(self, name: str, data: dict[str, bytes | None], changed: datetime | None) -> None:
        """Changes a Secret as another client would."""
        self.memory.put(name, data, changed)
        self.history[name].append((self.now, self.memory.secrets[name]))

    def run(self, *, writes: int = 10**6, rotate: bool = False, patient: bool = True) -> list[str]:
        """Runs the issuer, which is killed before it exceeds this number of writes."""
        lines: list[str] = []
        self.writes_left = writes
        clock = Clock(now=lambda: self.now, sleep=self._sleep)
        issuer.run(self.wanted, self, lines.append, rotate_key=rotate, patient=patient, clock=clock)  # type: ignore[arg-type]
        return lines

    def _sleep(self, seconds: float) -> None:
        self.waits.append(seconds)
        self.now += timedelta(seconds=seconds)

    def signing(self) -> Secret:
        return self.memory.secrets[SIGNING]

    def checking(self) -> Secret:
        return self.memory.secrets[CHECKING]


@pytest.fixture
def cluster() -> Cluster:
    """With a key that every pod has."""
    return installed()


def installed() -> Cluster:
    cluster = Cluster()
    cluster.run()
    cluster.now += days(1)
    return cluster


def public_of(secret: Secret) -> bytes:
    return Signer(base64.b64decode(secret.data[PRIVATE])).public_key


def trusted(secret: Secret) -> set[str]:
    return set(parse_jwks(secret.data[PUBLIC].decode()))


def assert_no_token_is_refused(cluster: Cluster, since: datetime) -> None:
    """From when a gateway may sign with a key until its last token has expired, every service must trust the key.

    A pod may use any version of its Secret that was the newest less than PROPAGATION ago.
    """
    signing, checking = cluster.history[SIGNING], cluster.history[CHECKING]
    ends = [*(time for time, _ in signing[1:]), datetime.max.replace(tzinfo=NOW.tzinfo) - days(100)]
    for (begins, secret), replaced in zip(signing, ends, strict=True):
        if PRIVATE not in secret.data:
            continue
        first, last = max(begins, since), replaced + PROPAGATION + TOKEN
        shown = [
            each
            for (put, each), gone in zip(checking, [*(time for time, _ in checking[1:]), last], strict=True)
            if put <= last and gone > first - PROPAGATION
        ]
        assert shown
        for each in shown:
            assert key_id(public_of(secret)) in trusted(each), (begins, each)


async def test_a_token_signed_with_the_private_secrets_key_is_verified_with_the_public_ones(cluster: Cluster) -> None:
    signer = Signer.parse(cluster.signing().data["GENAIFACTORY_CONTEXT_PRIVATE_KEY"].decode())
    keys = parse_jwks(cluster.checking().data["GENAIFACTORY_CONTEXT_PUBLIC_KEYS"].decode())
    caller = Caller("acme", "alice", "alice", "user")
    assert await Verifier(Fixed(keys)).verify(signer.sign(caller, "a.B", ["C"]), "/a.B/C") == caller


def test_a_key_is_made_once(cluster: Cluster) -> None:
    before = dict(cluster.memory.secrets)
    assert cluster.run() == []
    assert cluster.memory.secrets == before


def test_wrong_public_keys_are_replaced(cluster: Cluster) -> None:
    before = dict(cluster.memory.secrets)
    cluster.put(CHECKING, {PUBLIC: b"another"}, NOW)
    assert len(cluster.run()) == 1
    assert cluster.checking().data == before[CHECKING].data
    assert cluster.signing() == before[SIGNING]


def test_a_rotation_publishes_the_next_key_signs_with_it_and_removes_the_last_once_its_tokens_have_expired(
    cluster: Cluster,
) -> None:
    old = public_of(cluster.signing())
    started = cluster.now
    lines = cluster.run(rotate=True)
    assert [round(wait / 10) * 10 for wait in cluster.waits] == [120, 1150]
    new = public_of(cluster.signing())
    assert new != old
    assert cluster.signing().data.keys() == {PRIVATE}
    assert trusted(cluster.checking()) == {key_id(new)}
    shown = [trusted(secret) for time, secret in cluster.history[CHECKING] if time > started]
    assert shown == [{key_id(old), key_id(new)}, {key_id(new)}]
    assert [line for line in lines if not line.startswith("waiting")] == [
        f"{SIGNING}: the next key of callers' tokens; this one signs until all trust both",
        f"{CHECKING}: trusts 2 keys of callers' tokens",
        f"{SIGNING}: the next key signs callers' tokens from now on",
        f"{SIGNING}: forgets the previous key of callers' tokens",
        f"{CHECKING}: trusts 1 key of callers' tokens",
    ]
    assert_no_token_is_refused(cluster, started)


@given(
    kills=st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4000), st.booleans()), max_size=12),
    seed=st.integers(0, 2**32),
)
@example(kills=[(2, 116, False)], seed=1)  # the next run reads in the very second in which the step is due
@settings(max_examples=60, deadline=None)
def test_a_rotation_may_be_killed_between_any_two_writes(kills: list[tuple[int, int, bool]], seed: int) -> None:
    chance = random.Random(seed)
    cluster = installed()
    started, old = cluster.now, public_of(cluster.signing())
    for writes, pause, patient in kills:
        with contextlib.suppress(Killed):
            cluster.run(writes=writes, rotate=chance.random() < 0.7, patient=patient)
        cluster.now += timedelta(seconds=pause)
    cluster.run(rotate=public_of(cluster.signing()) == old)
    assert public_of(cluster.signing()) != old
    assert not is_rotating(cluster.signing())
    assert trusted(cluster.checking()) == {key_id(public_of(cluster.signing()))}
    assert_no_token_is_refused(cluster, started)


class Turns:
    """Two concurrent runs; which one makes its next read, change or wait is random."""

    def __init__(self, cluster: Cluster, chance: random.Random) -> None:
        self._cluster, self._chance = cluster, chance

    def finish(self) -> None:
        waits = dict.fromkeys((self._run(), self._run()), self._cluster.now)
        while waits:
            ready = [run for run, until in waits.items() if until <= self._cluster.now]
            if not ready:
                self._cluster.now = min(waits.values())
                continue
            run = self._chance.choice(ready)
            self._cluster.now += timedelta(seconds=self._chance.choice([0, 1, 60, 300]))
            try:
                waits[run] = next(run)
            except StopIteration:
                del waits[run]

    def _run(self) -> Any:
        """As `issuer.run`; yields the time at which it continues."""
        rotate = True
        while True:
            found = {}
            for name in self._cluster.wanted.secrets:
                found[name] = self._cluster.read(name)
                yield self._cluster.now
            rotate = rotate and not is_rotating(found[SIGNING])
            step = plan(self._cluster.wanted, found, self._cluster.now, rotate=rotate)
            for change in step.changes:
                try:
                    self._cluster.apply(change, self._cluster.now)
                except Conflict:
                    break
                yield self._cluster.now
            if not step.changes:
                if step.wait_until is None:
                    return
                yield step.wait_until


@pytest.mark.parametrize("seed", range(20))
def test_two_concurrent_rotations_are_safe(seed: int) -> None:
    cluster = installed()
    started = cluster.now
    Turns(cluster, random.Random(seed)).finish()
    cluster.run()
    assert cluster.signing().data.keys() == {PRIVATE}
    assert trusted(cluster.checking()) == {key_id(public_of(cluster.signing()))}
    assert_no_token_is_refused(cluster, started)


def test_a_rotation_is_due_by_age(cluster: Cluster) -> None:
    made = cluster.signing().changed
    assert made is not None
    old = public_of(cluster.signing())
    cluster.now = made + days(90) - timedelta(minutes=1)
    assert cluster.run() == []
    cluster.now = made + days(90)
    cluster.run()
    assert public_of(cluster.signing()) != old
    assert cluster.run() == []


def test_a_rotation_that_is_requested_while_one_is_under_way_begins_no_second_one(cluster: Cluster) -> None:
    cluster.run(rotate=True, patient=False)
    following = cluster.signing().data[NEXT]
    cluster.run(rotate=True)
    assert cluster.signing().data == {PRIVATE: following}


def test_a_run_without_waiting_leaves_the_rest_to_a_later_one(cluster: Cluster) -> None:
    lines = cluster.run(rotate=True, patient=False)
    assert cluster.waits == []
    assert lines[-1].startswith("the next step of a rotation is due at 2026-11-22T12:0")
    assert NEXT in cluster.signing().data
    cluster.now += PROPAGATION
    cluster.run(patient=False)
    assert PREVIOUS in cluster.signing().data
    cluster.now += RUNNING_OUT
    cluster.run(patient=False)
    assert cluster.signing().data.keys() == {PRIVATE}
    assert cluster.waits == []


def test_a_public_secret_that_was_reverted_begins_its_step_again(cluster: Cluster) -> None:
    before = dict(cluster.checking().data)
    cluster.run(rotate=True, patient=False)
    cluster.put(CHECKING, dict(before), None)
    later = cluster.now + days(1)
    cluster.now = later
    cluster.run(patient=False)
    assert NEXT in cluster.signing().data
    assert len(trusted(cluster.checking())) == 2
    assert (cluster.checking().changed or NOW) >= later


def test_the_step_of_a_secret_without_the_time_of_its_change_counts_from_now(cluster: Cluster) -> None:
    cluster.run(rotate=True, patient=False)
    for name in (SIGNING, CHECKING):
        cluster.put(name, {}, None)
    cluster.now += days(1)
    lines = cluster.run(patient=False)
    assert [line for line in lines if "unchanged" in line] == [
        f"{CHECKING}: unchanged; its step of the rotation counts from now",
        f"{SIGNING}: unchanged; its step of the rotation counts from now",
    ]
    assert NEXT in cluster.signing().data


def test_the_single_public_key_of_a_former_version_becomes_a_set_with_the_same_key() -> None:
    cluster = Cluster()
    signer = Signer.generate()
    one = base64.b64encode(signer.public_key)
    cluster.put(SIGNING, {PRIVATE: base64.b64encode(signer.private_key)}, NOW)
    cluster.put(CHECKING, {PUBLIC_ONE: one}, NOW)
    assert len(cluster.run(patient=False)) == 1
    # Pods of the former version that start during the upgrade still find it.
    assert cluster.checking().data == {PUBLIC_ONE: one, PUBLIC: jwks([signer.public_key]).encode()}
    cluster.run(rotate=True)
    assert cluster.checking().data.keys() == {PUBLIC}
    assert len(json.loads(cluster.checking().data[PUBLIC])["keys"]) == 1


def test_the_rest_of_a_rotation_without_a_signing_key_is_removed(cluster: Cluster) -> None:
    cluster.run(rotate=True, patient=False)
    cluster.put(SIGNING, {PRIVATE: None}, None)
    cluster.run(patient=False)
    assert cluster.signing().data.keys() == {PRIVATE}
    assert trusted(cluster.checking()) == {key_id(public_of(cluster.signing()))}


@pytest.mark.parametrize("key", [PRIVATE, NEXT, PREVIOUS])
@pytest.mark.parametrize("text", [b"not base64", base64.b64encode(b"too short")])
def test_a_malformed_key_is_an_error_and_is_not_replaced(key: str, text: bytes, cluster: Cluster) -> None:
    cluster.put(SIGNING, {key: text}, NOW)
    with pytest.raises(InvalidArgument, match=f"{SIGNING} holds no key in {key}") as caught:
        cluster.run(rotate=True)
    assert text.decode() not in caught.value.message  # it may be a key with a typing mistake
