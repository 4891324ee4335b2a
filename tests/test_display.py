"""What a notebook and a terminal show of models, plugins, pools, reports and runs."""

from __future__ import annotations

import re
from html.parser import HTMLParser

import pytest

import daskonic as dk
from daskonic import display
from daskonic.pool import Pool
from daskonic.report import SHARES, Report
from daskonic.tagging.summary import Summary

EVIL = "<b onclick='x'>&\"</b>"


class Strict(HTMLParser):
    """Counts that every tag is closed, in order, and that none can run anything."""

    def __init__(self):
        super().__init__()
        self.open, self.text = [], ""

    def handle_starttag(self, tag, attributes):
        assert tag in {"div", "span", "strong", "table", "tr", "td", "th"}, tag
        assert {name for name, _ in attributes} <= {"style"}
        self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


def report():
    """Of a call with everything in it."""
    full = Report(
        rows=1000, joined=990, masked=10, requests=12, retries=2, sent_nbytes=3000, useful_nbytes=2000
    )
    full.model, full.model_version = EVIL, "3"
    full.endpoints[EVIL] = 12
    full.stages_s = {"features": 1.0, "submit": 0.5, "infer": 2.0, "events": 1.0, "write": 0.5}
    full.add_server_s(1.0, 2.0, 1.0)
    return full


def things():
    """One of each that is shown."""
    model = dk.Model(EVIL, classes=[EVIL], servers=["a:1"])
    return {
        "model": model,
        "plugin": dk.InferencePlugin(servers=["a:1", "b:1"]),
        "pool": Pool(model._settings).stats(),
        "report": report(),
        "empty report": Report(),
        "summary": Summary(EVIL, EVIL, "1", (), (EVIL,), 1, 2, 3, 4, 4, 3, report(), 1.5),
    }


@pytest.mark.parametrize("what", things())
def test_html_is_whole_and_harmless(what):
    """Tags match, nothing runs, nothing of a name is markup, and no colour of the page is overridden but by name of a share."""
    thing = things()[what]
    html = thing._repr_html_()
    parser = Strict()
    parser.feed(html)
    parser.close()
    assert not parser.open
    assert "<b" not in html
    assert EVIL in parser.text or what in ("plugin", "pool", "empty report")
    assert not re.search(r"background:(#fff|white|#000|black)", html)


def test_text_says_what_matters():
    """In a terminal: rows, retries, padding, servers, and where the time went."""
    text = repr(report())
    for words in (
        "1,000",
        "2 of them retries",
        "1.50 times",
        "features 20%",
        "server compute 20%",
        "network 10%",
    ):
        assert words in text
    assert "a:1" in repr(things()["pool"])
    assert "not connected" in repr(things()["pool"])
    assert repr(things()["model"]) == f"Model({EVIL!r}, servers=['a:1'])"
    assert "2 jets/s" in repr(things()["summary"])


def test_a_share_has_one_colour():
    """Whatever else is there."""
    alone, among = (
        display.shares(parts, SHARES) for parts in ({"network": 1.0}, {"features": 1.0, "network": 1.0})
    )
    colour = re.search(r"background:(#\w+)", alone)[1]
    assert among.count(colour) == 2
    assert len(
        {re.search(r"background:(#\w+)", display.shares({name: 1.0}, SHARES))[1] for name in SHARES}
    ) == len(SHARES)
