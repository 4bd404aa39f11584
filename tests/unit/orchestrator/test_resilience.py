"""The retry budget and the circuit breaker."""

from __future__ import annotations

import pytest

from genaifactory_common import specs
from genaifactory_orchestrator.models.resilience import BreakerState, CircuitBreaker, RetryBudget


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class TestRetryBudget:
    def test_allows_retries_from_the_start(self) -> None:
        assert RetryBudget().withdraw()

    @pytest.mark.parametrize("requests", [10, 100, 10_000])
    def test_bounds_retries_to_a_fifth_of_requests_when_every_request_fails(self, requests: int) -> None:
        budget = RetryBudget()
        retries = 0
        for _ in range(requests):
            budget.deposit()
            while budget.withdraw():
                retries += 1
        assert retries == pytest.approx(0.2 * requests + 10, abs=2)

    def test_the_balance_is_bounded(self) -> None:
        budget = RetryBudget()
        for _ in range(100_000):
            budget.deposit()
        assert sum(budget.withdraw() for _ in range(100)) == 10

    def test_five_requests_allow_one_retry_despite_binary_fractions(self) -> None:
        budget = RetryBudget(reserve=2.0)
        while budget.withdraw():
            pass
        for _ in range(5):
            assert not budget.withdraw()
            budget.deposit()
        assert budget.withdraw()


class TestCircuitBreaker:
    @pytest.fixture
    def clock(self) -> Clock:
        return Clock()

    @pytest.fixture
    def breaker(self, clock: Clock) -> CircuitBreaker:
        return CircuitBreaker(specs.CircuitBreaker(failures=3, open_seconds=10), clock)

    @staticmethod
    def fail(breaker: CircuitBreaker, times: int = 1) -> None:
        for _ in range(times):
            permit = breaker.admit()
            assert permit is not None
            permit.failed()

    def test_opens_after_failures_in_a_row(self, breaker: CircuitBreaker) -> None:
        self.fail(breaker, 3)
        assert breaker.state is BreakerState.OPEN
        assert breaker.admit() is None
        assert breaker.retry_after_seconds() == pytest.approx(10)

    def test_a_success_starts_the_count_again(self, breaker: CircuitBreaker) -> None:
        self.fail(breaker, 2)
        permit = breaker.admit()
        assert permit is not None
        permit.succeeded()
        self.fail(breaker, 2)
        assert breaker.state is BreakerState.CLOSED

    def test_an_abandoned_call_changes_nothing(self, breaker: CircuitBreaker) -> None:
        self.fail(breaker, 2)
        permit = breaker.admit()
        assert permit is not None
        permit.abandoned()
        self.fail(breaker)
        assert breaker.state is BreakerState.OPEN

    def test_admits_one_trial_when_its_time_is_over(self, breaker: CircuitBreaker, clock: Clock) -> None:
        self.fail(breaker, 3)
        clock.now += 9.9
        assert breaker.admit() is None
        clock.now += 0.1
        trial = breaker.admit()
        assert trial is not None
        assert breaker.state is BreakerState.HALF_OPEN
        assert breaker.admit() is None

    def test_a_successful_trial_closes_it(self, breaker: CircuitBreaker, clock: Clock) -> None:
        self.fail(breaker, 3)
        clock.now += 10
        trial = breaker.admit()
        assert trial is not None
        trial.succeeded()
        assert breaker.state is BreakerState.CLOSED
        self.fail(breaker, 2)
        assert breaker.admit() is not None

    def test_a_failed_trial_opens_it_for_the_same_time_again(self, breaker: CircuitBreaker, clock: Clock) -> None:
        self.fail(breaker, 3)
        clock.now += 10
        self.fail(breaker)
        assert breaker.state is BreakerState.OPEN
        clock.now += 9.9
        assert breaker.admit() is None

    def test_a_cancelled_trial_makes_room_for_the_next(self, breaker: CircuitBreaker, clock: Clock) -> None:
        self.fail(breaker, 3)
        clock.now += 10
        trial = breaker.admit()
        assert trial is not None
        trial.abandoned()
        assert breaker.admit() is not None

    def test_calls_from_before_it_opened_neither_close_it_nor_keep_it_open(
        self, breaker: CircuitBreaker, clock: Clock
    ) -> None:
        early = [breaker.admit(), breaker.admit()]
        self.fail(breaker, 3)
        clock.now += 5
        for permit in early:
            assert permit is not None
        assert early[0] is not None
        early[0].succeeded()
        assert breaker.state is BreakerState.OPEN
        assert early[1] is not None
        early[1].failed()
        assert breaker.retry_after_seconds() == pytest.approx(5)

    def test_a_permit_counts_once(self, breaker: CircuitBreaker) -> None:
        permit = breaker.admit()
        assert permit is not None
        for _ in range(5):
            permit.failed()
        assert breaker.state is BreakerState.CLOSED

    def test_reports_each_change_of_state(self, clock: Clock) -> None:
        seen: list[BreakerState] = []
        breaker = CircuitBreaker(specs.CircuitBreaker(failures=1, open_seconds=1), clock, seen.append)
        self.fail(breaker)
        clock.now += 1
        trial = breaker.admit()
        assert trial is not None
        trial.succeeded()
        assert seen == [BreakerState.OPEN, BreakerState.HALF_OPEN, BreakerState.CLOSED]
