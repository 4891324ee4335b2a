"""Dividing what a site allows among workers, and keeping to a share: policy on a clock of its own."""

from __future__ import annotations

import math
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from daskonic.pool.budget import Budget
from daskonic.pool.share import BURST_S, Share


class Cluster:
    """Workers that do as they are told, some of them late."""

    def __init__(self, total, wants):
        self.budget, self.wants = Budget(total), dict(wants)
        self.shares = dict.fromkeys(wants, 0)
        self.serials = dict.fromkeys(wants, 0)
        self.late = {}

    def step(self, now, heard=lambda worker: True):
        for worker, want in self.wants.items():
            self.budget.report(worker, want, self.shares[worker], self.serials[worker])
        self.late |= self.budget.divide(now)
        for worker in [w for w in self.late if heard(w)]:
            if worker in self.shares:
                self.shares[worker], self.serials[worker] = self.late[worker]
            del self.late[worker]

    def leave(self, worker):
        self.budget.leave(worker)
        for one in (self.wants, self.shares, self.serials, self.late):
            one.pop(worker, None)


class TestBudget:
    def test_who_wants_more_than_there_is_gets_as_much_as_the_others(self):
        cluster = Cluster(12, {"a": 100, "b": 2, "c": 100})
        for i in range(5):
            cluster.step(0.1 * i)
        assert cluster.shares == {"a": 5, "b": 2, "c": 5}

    def test_idle_workers_have_little_in_hand(self):
        cluster = Cluster(48, {"a": 100, "b": 0, "c": 0})
        cluster.step(0.0)
        assert cluster.shares == {"a": 48, "b": 0, "c": 0}
        cluster.wants["a"] = 20
        for i in range(5):
            cluster.step(0.1 * i)
        assert cluster.shares == {"a": 20, "b": 4, "c": 4}

    def test_fewer_places_than_workers_go_round(self):
        """Three places for ten workers: over time each has the same, and none waits more than a few turns."""
        cluster = Cluster(3, {str(i): 1 for i in range(10)})
        had = dict.fromkeys(cluster.wants, 0.0)
        for i in range(1000):
            cluster.step(0.1 * i)
            for worker, share in cluster.shares.items():
                had[worker] += 0.1 * share
        assert sum(had.values()) >= 0.9 * 3 * 100
        assert max(had.values()) - min(had.values()) <= 3 * cluster.budget.turn_s

    def test_what_was_taken_is_given_only_when_it_is_free(self):
        cluster = Cluster(8, {"a": 8})
        cluster.step(0.0)
        assert cluster.shares == {"a": 8}
        cluster.wants["b"] = cluster.shares["b"] = cluster.serials["b"] = 0
        cluster.wants["b"] = 8
        for i in range(1, 10):
            cluster.step(0.1 * i, heard=lambda worker: worker == "b")
            assert cluster.shares == {"a": 8, "b": 0}
        for i in range(10, 13):
            cluster.step(0.1 * i)
        assert cluster.shares == {"a": 4, "b": 4}

    @settings(deadline=None)
    @given(st.integers(1, 40), st.integers(0, 2**32))
    def test_it_holds_at_every_moment(self, total, seed):
        """Workers come, go, change their mind and hear late: what they hold is never more than there is."""
        rng = random.Random(seed)
        cluster = Cluster(total, {})
        for i in range(60):
            if rng.random() < 0.2:
                name = f"w{i}"
                cluster.wants[name], cluster.shares[name], cluster.serials[name] = rng.randrange(20), 0, 0
            if cluster.wants and rng.random() < 0.1:
                cluster.leave(rng.choice(list(cluster.wants)))
            for worker in cluster.wants:
                if rng.random() < 0.3:
                    cluster.wants[worker] = rng.randrange(20)
            cluster.step(0.1 * i, heard=lambda _: rng.random() < 0.6)
            assert sum(cluster.shares.values()) <= total
        used = []
        for i in range(60, 120):  # all hear at once now
            cluster.step(0.1 * i)
            used.append(sum(cluster.shares.values()))
        assert sum(used[10:]) >= 0.9 * 50 * min(total, sum(cluster.wants.values()))


class TestShare:
    def test_no_more_requests_than_the_share(self):
        share = Share(requests=2)
        assert [share.take(10, 0.0) for _ in range(3)] == [True, True, False]
        share.ended()
        assert share.take(10, 0.0)

    def test_a_smaller_share_holds_for_the_next_request(self):
        share = Share(requests=3)
        assert all(share.take(10, 0.0) for _ in range(3))
        share.set(0.0, requests=1)
        share.ended()
        share.ended()
        assert not share.take(10, 0.0)
        share.ended()
        assert share.take(10, 0.0)

    def test_bytes_are_paid_by_time(self):
        """Requests of any size, and a thread that comes late now and then: as many bytes as the share, but for one request."""
        share, rng = Share(nbytes_per_s=1000.0), random.Random(1)
        now, sent = 0.0, 0
        while now < 100:
            nbytes = rng.randrange(1, 200)
            if share.take(nbytes, now):
                share.ended()
                sent += nbytes
            else:
                now = share.next_change(now) + rng.choice([0, 0, 0.5 * BURST_S])
        assert 99_000 <= sent <= 100_000 + 200 + 1000 * BURST_S

    def test_nothing_is_saved_up(self):
        share = Share(nbytes_per_s=1000.0)
        assert share.take(1, 0.0)
        share.ended()
        sent = 0
        while share.take(10, 3600.0):
            sent += 10
        assert sent <= 1000 * BURST_S + 10

    def test_without_a_share_nothing_goes_and_more_is_wanted(self):
        share = Share(0, 0.0)
        assert not share.take(10, 0.0)
        assert share.next_change(0.0) == math.inf
        assert share.wanted(1.0)[0] >= 1
        share.set(1.0, requests=1)
        assert not share.take(10, 1.0)
        assert share.wanted(2.0)[1] >= 10

    def test_wants_what_it_used_and_more_where_it_was_held_back(self):
        share = Share(requests=4)
        assert all(share.take(10, 0.0) for _ in range(3))
        assert share.wanted(1.0)[0] == 3
        share.take(10, 1.0)
        share.take(10, 1.0)
        assert share.wanted(2.0)[0] == 8

    def test_wants_less_and_less_when_there_is_no_work(self):
        share = Share(requests=8)
        for _ in range(8):
            share.take(10, 0.0)
        for _ in range(8):
            share.ended()
        wanted = [share.wanted(float(i))[0] for i in range(20)]
        assert wanted == sorted(wanted, reverse=True)
        assert wanted[-1] < 1

    def test_who_shares_it_is_woken(self):
        woken = []
        share = Share(requests=1)
        first, second = (lambda: woken.append(1)), (lambda: woken.append(2))
        share.subscribe(first)
        share.subscribe(second)
        share.wake(but=first)
        assert woken == [2]
        share.set(0.0, requests=5)
        assert woken == [2, 1, 2]
        share.unsubscribe(second)
        share.wake()
        assert woken == [2, 1, 2, 1]


@pytest.mark.parametrize("total", [1, 5, 1000])
def test_a_lone_worker_has_all(total):
    cluster = Cluster(total, {"a": 2000})
    cluster.step(0.0)
    assert cluster.shares == {"a": total}
