"""Progress that is seen, and Ctrl-C as a terminal or a notebook sends it: to every process of the group."""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap
import threading

import numpy as np
import pytest
from distributed import Client

import daskonic as dk
from daskonic import ledger
from daskonic.report import Report
from daskonic.watching import _html, _Look, _Seen

X = np.ones((96, 16), "f4")


def test_an_account_counts_calls_under_way(triton):
    """Rows of a call are seen before it ends, and stay when it has ended; other threads may look at any time."""
    before, seen = ledger.total(), []
    over = threading.Event()

    def watch():
        while not over.wait(0.01):
            report = ledger.total()
            seen.append((report.rows - before.rows, report.joined - before.joined))

    thread = threading.Thread(daemon=True, target=watch)
    thread.start()
    model = dk.Model("sleep", servers=[triton.address], batch_size=24, window=1)
    model(X)
    over.set()
    thread.join()
    rows, joined = zip(*seen, strict=True)
    assert set(joined) >= {0, 24, 48}
    assert max(rows) == 96
    after = ledger.total()
    assert after.rows - before.rows == after.joined - before.joined == 96


def test_a_call_that_fails_is_counted_no_longer(triton):
    """What was under way is nothing any more."""
    with pytest.raises(dk.DaskonicError):
        dk.Model("fail", servers=[triton.address])(X)
    assert not ledger._under_way


def test_progress_of_a_cluster(triton):
    """Rows of all workers, and what their time went to; workers that were used before begin at nought."""
    with dk.local_cluster(2, servers=[triton.address]) as cluster, Client(cluster) as client:
        score = dk.Model("sum").__call__
        client.gather([client.submit(score, X, pure=False) for _ in range(4)])
        seen = _Seen(client, None)
        assert seen.look().rows == 0
        with dk.progress(client):
            client.gather([client.submit(score, X, pure=False) for _ in range(8)])
        look = seen.look()
        assert look.rows == look.total == 8 * 96
        assert look.rows_per_s > 0
        assert {"features", "server compute"} <= set(look.spent_s)


def test_words_and_markup():
    """What is shown says rows, rate and where the time goes, or that nothing comes any more."""
    look = _Look(50, 200, 10.0, {"server queue": 3.0, "features": 1.0}, 0.0)
    assert str(look) == "50 of 200 rows, 10 rows/s, time goes to server queue 75%, features 25%"
    assert str(_Look(50, 200, 0.0, {}, 12.0)) == "50 of 200 rows, no new score for 12 s"
    assert "width:25.0%" in _html(look, 3.0)


def test_time_is_told_by_what_it_went_into():
    """Waiting for answers is divided as the requests' time was; where that is not known it is the servers'."""
    report = Report(stages_s={"features": 1.0, "submit": 0.5, "infer": 4.0, "events": 2.0})
    assert report.spent_s() == {"features": 1.0, "full servers": 0.5, "servers": 4.0, "reading": 2.0}
    report.add_server_s(1.0, 2.0, 5.0)
    shares = {"server queue": 0.5, "server compute": 1.0, "network": 2.5}
    assert report.spent_s() == {"features": 1.0, "full servers": 0.5, **shares, "reading": 2.0}


# -- Ctrl-C ----------------------------------------------------------------------------------------

INTERRUPTED = """
    import json, os, random, signal, sys, threading, time
    import numpy as np
    import daskonic as dk
    from distributed import Client

    def interrupt_after(condition, seconds=0.0):
        "Ctrl-C, as soon as the run is well under way."
        def wait():
            while not condition():
                time.sleep(0.001)
            time.sleep(seconds)
            os.killpg(0, signal.SIGINT)
        threading.Thread(target=wait, daemon=True).start()

    def settle(pool):
        "Wait until cancelled requests have ended."
        limit = time.monotonic() + 20
        while pool.stats().in_flight or pool.stats().waiting:
            assert time.monotonic() < limit, pool.stats()
            time.sleep(0.01)

    X = np.ones((96, 16), "f4")
    address = sys.argv[1]
    signal.signal(signal.SIGINT, signal.default_int_handler)
    """

CALL = """
    model = dk.Model("sleep", servers=[address], batch_size=2, window=4)
    how = {"call": lambda: model(X), "submit": lambda: model.submit(X).result()}[sys.argv[2]]
    interrupt_after(lambda: model.pool().stats().requests_total >= 6)
    begin = time.monotonic()
    try:
        how()
    except KeyboardInterrupt:
        seconds = time.monotonic() - begin
    settle(model.pool())
    sent = model.pool().stats().requests_total
    again = dk.Model("sum", servers=[address], window=4)(X)
    print(json.dumps({"sent": sent, "seconds": seconds, "again": float(again[0, 0])}))
    """

CLUSTER = """
    if __name__ == "__main__":
        with dk.local_cluster(2, servers=[address], threads_per_worker=1) as cluster, Client(cluster) as client:
            kept = client.submit(sum, [1, 2, 3])
            pids = client.run(os.getpid)
            slow = dk.Model("sleep", batch_size=2).__call__
            interrupt_after(lambda: any(client.processing().values()))
            try:
                with dk.progress(client):
                    futures = [client.submit(slow, X, pure=False) for _ in range(40)]
                    client.gather(futures)
            except KeyboardInterrupt:
                cancelled = all(future.cancelled() for future in futures)
            begin = time.monotonic()
            again = client.submit(dk.Model("sum").__call__, X).result(timeout=30)
            limit = time.monotonic() + 30
            while any(client.processing().values()):
                assert time.monotonic() < limit, client.processing()
                time.sleep(0.01)
            print(json.dumps({"cancelled": cancelled, "kept": kept.result(), "again": float(again[0, 0]),
                              "same": client.run(os.getpid) == pids}))
    """

AT_RANDOM = """
    model = dk.Model("sleep", servers=[address], batch_size=2, window=4)
    model(X[:2])
    for seed in range(60):
        now = model.pool().stats().requests_total
        moment = random.Random(seed).uniform(0, 0.002)
        interrupt_after(lambda: model.pool().stats().requests_total > now + seed % 4, moment)
        try:
            model(X)
        except KeyboardInterrupt:
            pass
    settle(model.pool())
    stats, again = model.pool().stats(), dk.Model("sum", servers=[address], window=4)(X)
    print(json.dumps({"in_flight": stats.in_flight, "waiting": stats.waiting, "again": float(again[0, 0])}))
    """


def interrupted(script, *arguments):
    """Run a script in a process group of its own; what it prints last, as JSON."""
    code = textwrap.dedent(INTERRUPTED) + textwrap.dedent(script)
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        capture_output=True,
        text=True,
        timeout=120,
        start_new_session=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("how", ["call", "submit"])
def test_ctrl_c_ends_a_call_and_its_requests(triton, how):
    """Of 48 requests few were sent, no permit is lost, and the next call works."""
    facts = interrupted(CALL, triton.address, how)
    assert facts["sent"] < 40
    assert facts["again"] == 16.0


def test_ctrl_c_leaves_a_cluster_usable(triton):
    """Tasks of the block are cancelled, those before it are not; the workers live and take the next task."""
    facts = interrupted(CLUSTER, triton.address)
    assert facts == {"cancelled": True, "kept": 6, "again": 16.0, "same": True}


def test_interrupts_at_any_instruction_lose_nothing(triton):
    """Sixty calls, each interrupted at another moment: no permit is lost, no thread waits."""
    facts = interrupted(AT_RANDOM, triton.address)
    assert facts == {"in_flight": 0, "waiting": 0, "again": 16.0}
