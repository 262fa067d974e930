"""Whatever is found again is the same thing: the matrix of `nbs/bench/reuse.py`, and that it is whole."""
import sys
from dataclasses import fields, replace
from pathlib import Path
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1]/'nbs'/'bench'))
import reuse


def test_every_field_has_a_change_and_reaches_a_place():
    names = {f.name for f in fields(reuse.World)}
    assert names == set(reuse.CHANGES) == {f for _, reach in reuse.PLACES.values() for f in reach}
    assert all(old != new for pairs in reuse.CHANGES.values() for old, new in pairs)


def test_a_cell_tells_right_from_wrong(monkeypatch):
    "A place that finds whatever lies there is silent, one that never finds anything is needless"
    def probe(believes):
        def f(w, folder):
            kept, now = folder/'kept', str(w.pixel)
            if believes and kept.exists(): return kept.read_text(), True
            kept.write_text(now)
            return now, False
        return f
    before, pixel, moved = reuse.World(), replace(reuse.World(), pixel=1), replace(reuse.World(), moved=1)
    assert reuse.cell(probe(True), before, pixel)[0] == 'WRONG: silent'
    assert reuse.cell(probe(True), before, moved)[0] == 'found'
    assert reuse.cell(probe(False), before, pixel)[0] == 'anew'
    assert reuse.cell(probe(False), before, moved)[0] == 'WRONG: needlessly anew'


@pytest.mark.slow
@pytest.mark.parametrize('place', reuse.PLACES)
def test_nothing_is_found_that_differs_and_nothing_made_anew_that_does_not(place):
    rows = reuse.matrix({place: reuse.PLACES[place]}, told=lambda *a, **k: None)
    assert not [r for r in rows if r[4].startswith('WRONG')]
    assert {r[1] for r in rows} == set(reuse.PLACES[place][1])
