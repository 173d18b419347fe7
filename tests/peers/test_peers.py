"""Peers' own tests pass with this package's operators in place, where there is a copy of them."""

from xml.etree import ElementTree

import pytest
from peers import run

REPORT = """<testsuite>
<testcase classname="tests.TestConv" name="test_a[0]"><properties><property name="calls" value="2"/>
</properties></testcase>
<testcase classname="tests.TestConv" name="test_a[1]"><failure message="not close"/></testcase>
<testcase classname="tests.TestConv" name="test_b"><skipped message="no GPU"/></testcase>
</testsuite>"""


@pytest.mark.slow
@pytest.mark.parametrize("peer", run.PEERS, ids=lambda peer: peer.name)
def test_their_tests_pass(peer):
    folder, reason = run.find(peer, {})
    if folder is None:
        pytest.skip(reason)
    results = run.run(peer, folder)
    total = run.total(results)
    assert total.passed and total.calls, "no test has called our operators"
    assert not total.failed, run.table(results)


@pytest.mark.parametrize("peer", run.PEERS, ids=lambda peer: peer.name)
def test_a_missing_copy_says_what_to_give(peer, tmp_path):
    folder, reason = run.find(peer, {peer.name: tmp_path})
    assert folder is None
    assert f"give {peer.name}=FOLDER or set D2_DEFORMABLE_PEERS" in reason


def test_the_table_counts_each_test_function():
    results = run.collect(ElementTree.fromstring(REPORT).iter("testcase"))
    assert run.table(results).splitlines() == [
        "| test | passed | failed | skipped | calls | why |",
        "| --- | --- | --- | --- | --- | --- |",
        "| TestConv.test_a | 1 | 1 | 0 | 2 | not close |",
        "| TestConv.test_b | 0 | 0 | 1 | 0 | no GPU |",
        "| all | 1 | 1 | 1 | 2 |  |",
    ]
