"""Whatever is found again is the same thing: the matrix of `nbs/bench/reuse.py`, and that it is whole."""
import sys
from dataclasses import fields, replace
from pathlib import Path
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1]/'nbs'/'bench'))
import reuse


def test_every_field_has_a_change_and_reaches_a_place():
    names = {f.name for f in fields(reuse.World)}
    assert names == set(reuse.CHANGES) == {f for place in reuse.PLACES.values() for f in place.reach}
    assert all(old != new for pairs in reuse.CHANGES.values() for old, new in pairs)


def test_every_place_has_a_probe_and_every_probe_a_place():
    "A function of (world, folder) that says whether it found something is a probe"
    probes = [v for v in vars(reuse).values() if getattr(v, '__module__', '') == 'reuse' and getattr(v, '__code__', None) and v.__code__.co_varnames[:2] == ('w', 'folder')
              and v.__name__ not in ('placed', 'samples', 'loaders')]
    assert {p.probe for p in reuse.PLACES.values()} == set(probes)
    named = ('teacher', 'built', 'bound', 'extended', 'added', 'unpacked', 'resume', 'run job', 'sweep cell', 'memory of views', 'memory of pixels')
    assert all(any(n in place for place in reuse.PLACES) for n in named)


def test_every_place_is_tried_with_other_versions_and_results():
    "Except what lies in this process, whose libkd does not change"
    assert all({*reuse.HERE} <= {*place.reach} for place in reuse.PLACES.values() if not place.living)


def test_a_cell_tells_right_from_wrong():
    "A place that finds whatever lies there is silent, one that never finds anything is needless"
    def probe(believes):
        def f(w, folder):
            kept, now = folder/'kept', str(w.pixel)
            if believes and kept.exists(): return kept.read_text(), True
            kept.write_text(now)
            return now, False
        return reuse.Place(f, (), 'views:PIXELS')
    before, pixel, moved = reuse.World(), replace(reuse.World(), pixel=1), replace(reuse.World(), moved=1)
    def verdict(believes, after):
        with reuse.Bench(probe(believes)) as bench: return reuse.cell(bench, before, after)[0]
    assert verdict(True, pixel) == 'WRONG: silent'
    assert verdict(True, moved) == 'found'
    assert verdict(False, pixel) == 'anew'
    assert verdict(False, moved) == 'WRONG: needlessly anew'
    assert verdict(True, replace(before, result=1)) == 'WRONG: silent'
    assert verdict(False, replace(before, result=1)) == 'anew'


@pytest.mark.slow
@pytest.mark.parametrize('place', reuse.PLACES)
def test_nothing_is_found_that_differs_and_nothing_made_anew_that_does_not(place):
    rows = reuse.matrix({place: reuse.PLACES[place]}, told=lambda *a, **k: None)
    assert not [r for r in rows if r[4].startswith('WRONG')]
    assert {r[1] for r in rows} == set(reuse.PLACES[place].reach)
