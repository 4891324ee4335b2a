"""The pool's policy on a clock of its own: windows, rests, choice, second requests."""

from __future__ import annotations

import random
from collections import Counter

import pytest

from daskonic.errors import InferenceError, NotReadyError, OverloadedError, UnavailableError
from daskonic.pool.balancer import EXTRA, PROBE_EVERY, Balancer
from daskonic.pool.breaker import BACKOFF_LONGEST_S, Breaker, full_jitter
from daskonic.pool.endpoint import ASK_AGAIN_S, Endpoint
from daskonic.pool.window import LARGEST, SMALLEST, Window

KEY = ("m", "1")
GONE = UnavailableError("gone")


def make(n=1, most=4, window=None, seed=1):
    rng = random.Random(seed)
    return Balancer([Endpoint(f"host{i}:1", None, window, rng) for i in range(n)], most, rng)


def window(fixed=None):
    return Window(fixed, random.Random(1))


class TestWindow:
    def test_grows_while_answers_take_as_long_as_on_an_idle_server(self):
        w, now = window(), 0.0
        for _ in range(200):
            now += 0.01
            w.answered(now, 0.05, "k", full=True)
        assert w.limit == LARGEST

    def test_does_not_grow_where_it_holds_nothing_back(self):
        w = window()
        before = w.limit
        for i in range(100):
            w.answered(i, 0.05, "k", full=False)
        assert w.limit == before

    def test_a_queue_makes_it_shrink_once_a_round_trip(self):
        """Answers that arrive together saw the same queue."""
        w = window()
        w.answered(0.0, 0.01, "k", full=True)
        w._set(16.0)
        for _ in range(5):
            w.answered(10.0, 1.0, "k", full=True)
        once = w.limit
        assert 8 <= once < 16
        w.answered(12.0, 1.0, "k", full=True)
        assert w.limit < once

    def test_settles_where_a_server_is_busy_and_its_queue_short(self):
        """One client of a server that runs one request at a time: two to four in flight, whatever a request takes."""
        for service_s in (0.005, 0.05, 0.5):
            w, now = window(), 0.0
            w.answered(now, service_s, "k", full=True)
            for _ in range(500):
                now += service_s
                w.answered(now, service_s * max(w.limit, 1), "k", full=True)
            assert 2 <= w.limit <= 4

    def test_kinds_are_judged_by_their_own(self):
        """Large requests take long without any queue."""
        w = window()
        for i in range(100):
            w.answered(i, 1.0 if i % 2 else 0.01, "large" if i % 2 else "small", full=True)
        assert w.limit > 30

    def test_who_joins_a_crowd_learns_from_the_server_what_idle_means(self):
        """The quickest answer it saw waited a second; the server says that nearly all of that was its queue."""
        w = window()
        for i in range(20):
            w.answered(float(i), 1.0, "k", full=True)
        before = w.limit
        w.told(queue_s=0.95, compute_s=0.04)
        for i in range(20, 40):
            w.answered(float(i), 1.0, "k", full=True)
        assert w.limit < 0.5 < before

    def test_below_one_it_pauses(self):
        w = window()
        for i in range(100):
            w.rejected(float(i))
        assert w.limit == SMALLEST
        assert w.permits == 1
        assert w.pause_s() > 10 * 0.05

    def test_a_rejection_is_remembered(self):
        """It comes close to where it was rejected in a few answers, and beyond only after a hundred."""
        w = window()
        w._set(10.0)
        w.rejected(100.0)
        assert w.limit == pytest.approx(7.0)
        answers = {}
        for i in range(400):
            w.answered(100 + i, 0.05, "k", full=True)
            answers.setdefault(int(w.limit), i)
        assert answers[8] < 20
        assert answers[10] > 80

    def test_a_pinned_one_stays(self):
        w = window(fixed=5)
        for i in range(50):
            w.answered(i, 0.1 * i, "k", full=True)
            w.rejected(i)
        assert w.limit == w.permits == 5
        assert w.pause_s() == 0


class TestBreaker:
    def test_the_first_failure_opens_and_one_probe_decides(self):
        b = Breaker(random.Random(1))
        assert b.lets_pass(0.0, 5)
        assert b.failed(0.0)
        assert not b.lets_pass(0.01, 0)
        later = b.rests_until
        assert b.lets_pass(later, 0)
        assert not b.lets_pass(later, 1)
        b.succeeded(later)
        assert b.lets_pass(later, 5)

    def test_answers_to_older_requests_do_not_close_it(self):
        """A server that stops ends what it has; those answers are no sign that it takes more."""
        b = Breaker(random.Random(1))
        assert b.failed(5.0)
        b.succeeded(5.0, sent_at=4.9)
        assert b.openings == 1
        assert b.is_away(5.0)
        b.succeeded(b.rests_until, sent_at=b.rests_until)
        assert b.openings == 0

    def test_one_failure_among_good_answers_does_not(self):
        b = Breaker(random.Random(1))
        for i in range(9):
            b.succeeded(float(i))
        assert not b.failed(9.0)
        assert b.lets_pass(9.0, 3)

    def test_old_answers_are_forgotten(self):
        b = Breaker(random.Random(1))
        for _ in range(9):
            b.succeeded(0.0)
        assert b.failed(1000.0)

    def test_many_failures_at_once_are_one_outage(self):
        """Eight requests that were under way when a server died do not make the rest eight times longer."""
        b = Breaker(random.Random(1))
        assert [b.failed(0.0) for _ in range(8)] == [True, *[False] * 7]
        assert b.openings == 1

    def test_rests_grow_to_a_bound_and_are_spread(self):
        rests = [full_jitter(20, random.Random(i)) for i in range(100)]
        assert max(rests) <= BACKOFF_LONGEST_S
        assert min(rests) < 0.6 * BACKOFF_LONGEST_S < 0.9 * BACKOFF_LONGEST_S < max(rests)


class TestChoice:
    def test_the_least_loaded_part_of_a_window_is_next(self):
        balancer = make(3, window=4)
        taken = Counter(balancer.pick(KEY, "k", 0.0).endpoint.address for _ in range(12))
        assert set(taken.values()) == {4}
        assert balancer.pick(KEY, "k", 0.0) is None

    def test_a_worker_uses_a_bounded_stable_part(self):
        used = {e.address for e in make(50, most=4, seed=3).active(0.0)}
        assert len(used) == 4
        assert used == {e.address for e in make(50, most=4, seed=3).active(0.0)}

    def test_workers_are_spread_evenly(self):
        """400 workers with 4 of 20 servers each: 80 for each server, give or take."""
        load = Counter(e.address for seed in range(400) for e in make(20, most=4, seed=seed).active(0.0))
        assert len(load) == 20
        assert 55 < min(load.values()) <= max(load.values()) < 105

    def test_another_endpoint_stands_in_for_one_that_is_away(self):
        balancer = make(6, most=2)
        first = balancer.active(0.0)
        permit = balancer.pick(KEY, "k", 0.0)
        balancer.ended(permit, 0.1, GONE)
        now = balancer.active(0.1)
        assert len(now) == 2
        assert permit.endpoint not in now
        assert permit.endpoint in balancer.idle(0.1)
        stand_in = next(e for e in now if e not in first)
        permit.endpoint.breaker.succeeded(9.0)
        assert balancer.active(9.0) == first
        assert balancer.idle(9.0)
        assert stand_in in balancer.idle(9.0)

    def test_not_the_one_that_just_failed_if_another_can(self):
        balancer = make(2)
        first = balancer.pick(KEY, "k", 0.0).endpoint
        assert balancer.pick(KEY, "k", 0.0, avoid=first).endpoint is not first

    def test_an_endpoint_without_the_model_is_left_out(self):
        balancer = make(2)
        first, second = balancer.active(0.0)
        first.lost(KEY, 0.0, is_missing=True)
        assert {balancer.pick(KEY, "k", 0.0).endpoint.address for _ in range(2)} == {second.address}

    def test_a_model_that_is_not_ready_takes_nothing_from_the_others(self):
        """Its endpoint rests for this model, ever longer, and goes on with another one."""
        balancer, other, now, waits = make(1, window=8), ("other", "1"), 0.0, []
        endpoint = balancer.active(now)[0]
        for _ in range(8):
            balancer.ended(balancer.pick(KEY, "k", now), now, NotReadyError("unloaded"))
            assert balancer.pick(KEY, "k", now) is None
            balancer.ended(balancer.pick(other, "k", now), now, None)
            assert not endpoint.breaker.is_away(now)
            waits.append(balancer.next_change(now) - now)
            now = balancer.next_change(now)
        assert waits[0] <= 0.1
        assert 0.5 * BACKOFF_LONGEST_S <= max(waits) <= BACKOFF_LONGEST_S
        balancer.ended(balancer.pick(KEY, "k", now), now, None)
        assert balancer.pick(KEY, "k", now) is not None

    def test_endpoints_beyond_the_first_are_used_for_a_model_that_those_do_not_have(self):
        balancer = make(6, most=2)
        for endpoint in balancer.active(0.0):
            endpoint.lost(KEY, 0.0, is_missing=True)
        used = balancer.active(0.0, KEY)
        assert len(used) == 2
        assert not set(used) & set(balancer.active(0.0))
        assert balancer.pick(KEY, "k", 0.0).endpoint in used
        balancer.pick(("other", "1"), "k", 0.0)
        assert len(balancer.idle(0.0)) == 2

    def test_a_model_that_an_endpoint_did_not_have_is_asked_for_again(self):
        balancer = make(1)
        endpoint = balancer.active(0.0)[0]
        endpoint.lost(KEY, 0.0, is_missing=True)
        assert endpoint.is_without(KEY, 1.0)
        assert balancer.pick(KEY, "k", 1.0) is None
        later = balancer.next_change(1.0)
        assert 0.5 * ASK_AGAIN_S <= later <= ASK_AGAIN_S
        assert balancer.pick(KEY, "k", later) is not None

    def test_a_dead_endpoint_is_probed_rarely_while_others_are_well(self):
        balancer = make(2, window=64)
        dead = balancer.pick(KEY, "k", 0.0)
        balancer.ended(dead, 0.0, GONE)
        now, probes = 100.0, 0
        for _ in range(300):
            permit = balancer.pick(KEY, "k", now)
            now += 10.0
            is_dead = permit.endpoint is dead.endpoint
            probes += is_dead
            balancer.ended(permit, now, GONE if is_dead else None)
        assert 300 / PROBE_EVERY - 2 <= probes <= 300 / PROBE_EVERY + 2

    def test_a_full_queue_is_no_failure_of_the_endpoint(self):
        balancer = make(1)
        permit = balancer.pick(KEY, "k", 0.0)
        before = permit.endpoint.window.limit
        balancer.ended(permit, 0.1, OverloadedError("full"))
        assert permit.endpoint.window.limit < before
        assert not permit.endpoint.breaker.is_away(0.1)
        assert permit.endpoint.stats(0.1).rejections_total == 1

    def test_a_permanent_error_changes_nothing(self):
        balancer = make(1)
        permit = balancer.pick(KEY, "k", 0.0)
        before = permit.endpoint.window.limit
        balancer.ended(permit, 0.1, InferenceError("shape"))
        assert permit.endpoint.window.limit == before
        assert balancer.pick(KEY, "k", 0.1) is not None


class TestSecondRequests:
    def ready(self, n=2):
        """Answers of 0.1 s are usual."""
        balancer, now = make(n, window=8), 0.0
        for _ in range(100):
            permit = balancer.pick(KEY, "k", now)
            now += 0.1
            balancer.ended(permit, now, None)
        return balancer, now

    def test_a_straggler_is_one_that_takes_longer_than_nearly_all(self):
        balancer, _ = self.ready()
        assert balancer.straggles_after_s("k") == pytest.approx(0.2)
        assert balancer.straggles_after_s("other") == float("inf")

    def test_it_goes_elsewhere(self):
        balancer, now = self.ready()
        first = balancer.pick(KEY, "k", now).endpoint
        assert balancer.pick_second(KEY, "k", now, first).endpoint is not first

    def test_none_where_there_is_no_other_endpoint(self):
        balancer, now = self.ready(n=1)
        first = balancer.pick(KEY, "k", now).endpoint
        assert balancer.pick_second(KEY, "k", now, first) is None

    def test_none_where_queues_are_long(self):
        balancer, now = self.ready()
        permits = [balancer.pick(KEY, "k", now) for _ in range(9)]
        assert balancer.pick_second(KEY, "k", now, permits[0].endpoint) is None

    def test_they_are_a_small_part_of_all(self):
        balancer, now = self.ready()
        second = 0
        for _ in range(1000):
            permit = balancer.pick(KEY, "k", now)
            extra = balancer.pick_second(KEY, "k", now, permit.endpoint)
            for p in (permit, extra):
                if p is not None:
                    balancer.ended(p, now + 0.1, None)
            second += extra is not None
            now += 0.1
        assert second == balancer.second_total
        assert 0.8 * EXTRA < second / 1000 <= 1.2 * EXTRA
