"""A study's protocol stands before its rows, and rows that it did not ask for are refused; the regimes are studies."""
import json, sys
from dataclasses import replace
from pathlib import Path
import numpy as np, pandas as pd, pytest
from libkd import UserError, evidence

sys.path.insert(0, str(Path(__file__).resolve().parents[1]/'nbs'/'bench'))
import regimes

BASE = dict(student='s', steps=10, teaching=None)
TAUGHT = dict(BASE, teaching=dict(T=2., label_weight=.25))
ARMS = dict(untaught=BASE, taught=TAUGHT, warm=dict(TAUGHT, teaching=dict(T=4., label_weight=.25)), hot=dict(TAUGHT, teaching=dict(T=8., label_weight=.25)))
PAIRS = (('taught', 'untaught', 'teaching'), ('warm', 'taught', 'teaching.T'), ('hot', 'taught', 'teaching.T'))
STUDY = evidence.Protocol('toy', 'Does it help?', ARMS, PAIRS, (0, 1, 2, 3))


def result(arm, seed, **settings):
    return dict(accuracy=.5 + .01*seed + .001*((7*seed + len(arm)) % 5) + dict(untaught=0, taught=.05, warm=.0505, hot=.03)[arm])

@pytest.fixture
def done(tmp_path):
    evidence.do_study(STUDY, result, tmp_path)
    return tmp_path


def test_arms_of_a_pair_differ_in_the_one_setting_that_is_named():
    assert evidence.differs(TAUGHT, BASE) == ['teaching'] and evidence.differs(ARMS['warm'], TAUGHT) == ['teaching.T']
    longer = dict(TAUGHT, steps=20)
    with pytest.raises(UserError, match='differ in steps and teaching'):
        evidence.Protocol('toy', '?', dict(untaught=BASE, longer=longer), (('longer', 'untaught', 'teaching'),), (0, 1))
    with pytest.raises(UserError, match='differ in nothing'):
        evidence.Protocol('toy', '?', dict(untaught=BASE, same=dict(BASE)), (('same', 'untaught', 'teaching'),), (0, 1))
    with pytest.raises(UserError, match='repeat'): replace(STUDY, seeds=(0, 1, 1))
    with pytest.raises(UserError, match='asks something'): replace(STUDY, pairs=())


@pytest.mark.parametrize('change', [dict(question='?'), dict(seeds=(0, 1, 2)), dict(effect=2.), dict(part='valid'), dict(metric='ece'), dict(budget='more')])
def test_everything_in_a_protocol_is_in_its_key_and_another_one_is_refused(done, change):
    other = replace(STUDY, **change)
    assert other.key != STUDY.key
    with pytest.raises(UserError, match=f'another protocol, which differs in {next(iter(change))}'): evidence.do_study(other, result, done)


def test_a_study_goes_on_where_it_stopped_seed_by_seed(tmp_path):
    asked = []
    def counted(**job): asked.append((job['seed'], job['arm'])); return result(**job)
    rows = evidence.do_study(STUDY, counted, tmp_path, most=5)
    assert len(rows) == 5 and [s for s, _ in asked] == [0, 0, 0, 0, 1]
    rows = evidence.do_study(STUDY, counted, tmp_path)
    assert len(rows) == 16 and len(asked) == len(set(asked)) == 16
    assert evidence.read_protocol(tmp_path) == STUDY


def test_a_job_that_failed_leaves_no_row_and_is_done_again(tmp_path, capsys):
    def fails(arm, seed, **settings):
        if seed == 2: raise ValueError('no memory')
        return result(arm, seed)
    rows = evidence.do_study(STUDY, fails, tmp_path)
    assert set(rows['seed']) == {0, 1, 3} and 'no memory' in capsys.readouterr().out
    assert set(evidence.answers_of_study(STUDY, rows)['answer']) == {'UNFINISHED'}
    assert len(evidence.do_study(STUDY, result, tmp_path)) == 16


@pytest.mark.parametrize('how, why', [('altered', 'was altered'), ('renamed', 'is of another job'), ('of another protocol', 'another'),
                                      ('not asked for', 'does not ask for'), ('doubled', 'two rows'), ('no row', 'no row'), ('torn', 'cannot be read')])
def test_rows_are_refused(done, tmp_path, how, why):
    file = sorted((done/'rows').glob('*.json'))[0]
    said = json.loads(file.read_text())
    if how == 'altered': file.write_text(json.dumps(said | dict(accuracy=.99)))
    elif how == 'renamed': (done/'rows'/'0123456789ab.json').write_text(file.read_text())
    elif how == 'of another protocol':
        evidence.do_study(replace(STUDY, effect=3.), result, tmp_path/'other')
        file.write_text((tmp_path/'other'/'rows'/file.name).read_text())
    elif how == 'not asked for': evidence.run_jobs(result, [dict(arm='taught', seed=9)], done/'rows', about=dict(protocol=STUDY.key))
    elif how == 'doubled': evidence.run_jobs(result, [dict(arm='taught', seed=0, extra=1)], done/'rows', about=dict(protocol=STUDY.key))
    elif how == 'no row': file.write_text('{"accuracy": 1.0}')
    elif how == 'torn': file.write_text(file.read_text()[:40])
    with pytest.raises(UserError, match=why): evidence.study_rows(STUDY, done)


def test_a_protocol_that_was_altered_is_refused(done):
    file = done/'protocol.json'
    file.write_text(file.read_text().replace('Does it help?', 'Is it worse?'))
    with pytest.raises(UserError, match='altered'): evidence.read_protocol(done)


def test_the_primary_question_is_not_corrected_and_the_rest_is(done):
    rows = evidence.study_rows(STUDY, done)
    a = evidence.answers_of_study(STUDY, rows)
    assert a['p_holm'].iloc[0] == a['p'].iloc[0] and a.index[0] == ('taught', 'untaught')
    small, large = sorted(a['p'].iloc[1:])
    assert np.isclose(sorted(a['p_holm'].iloc[1:])[0], 2*small) and np.isclose(a['p_holm'].max(), max(2*small, large))
    assert list(a['answer']) == ['BEATS', 'EQUIVALENT', 'WORSE']
    for (arm, base), r in a.iterrows(): assert np.isclose(r['difference'], evidence.paired(rows, arm, base).mean())


def test_holm_by_its_definition():
    rng = np.random.default_rng(0)
    for _ in range(50):
        p = dict(enumerate(rng.uniform(size=rng.integers(1, 7))))
        ranked = sorted(p.values())
        brute = lambda v: max(min(1, (len(p) - i)*ranked[i]) for i in range(ranked.index(v) + 1))
        assert np.allclose(list(evidence.holm(p).values()), [brute(v) for v in p.values()])
        assert list(evidence.holm(p)) == list(p)
    for v in (float('nan'), -.1, 2):
        with pytest.raises(UserError, match="that of 'b' is"): evidence.holm(dict(a=.1, b=v))


def test_equivalent_needs_the_interval_and_not_the_absence_of_proof():
    def word(d, effect): return evidence.answers_of_study(
        evidence.Protocol('x', '?', dict(a=TAUGHT, b=BASE), (('a', 'b', 'teaching'),), tuple(range(len(d))), effect),
        pd.DataFrame([dict(arm=arm, seed=s, accuracy=.5 + v/100*(arm == 'a')) for s, v in enumerate(d) for arm in 'ab']))['answer'].iloc[0]
    assert word([.4, .5, .6], 1.) == 'EQUIVALENT'          # surely there, and surely too small
    assert word([.4, .5, .6], .3) == 'BEATS'
    assert word([3, -3, 1], 1.) == 'NOT ENOUGH RUNS'
    assert word([5, 6], 1.) == 'NOT ENOUGH RUNS'           # two prove nothing


# -- the regimes ------------------------------------------------------------------------------------

def test_sixteen_cells_and_each_asks_one_question_beforehand():
    assert len(regimes.CELLS) == 16 and {c.pictures for c in regimes.CELLS.values()} == {'digits', 'cifar', 'clothes', 'strays'}
    for c in regimes.CELLS.values():
        p = regimes.protocol(c)
        assert p.pairs[0] == ('taught', 'untaught', 'teaching') and p.part == 'test' and len(p.seeds) >= 3


def test_where_a_gain_comes_from_is_asked_step_by_step():
    p = regimes.split(regimes.CELLS['cifar-100-pretrained'])
    assert [*p.arms] == ['untaught', *regimes.SPLIT] and len(p.pairs) == 1 + len(regimes.SPLIT)
    assert {one for _, _, one in p.pairs[2:]} == {'teaching.split'} and p.part == 'test'


STUDIES = {c: regimes.protocol for c in regimes.CELLS} | {'split-cifar-100-pretrained': regimes.split}

@pytest.mark.parametrize('name', STUDIES)
def test_the_rows_in_the_repository_are_of_the_protocol_that_the_code_has(name):
    p, folder = STUDIES[name](regimes.CELLS[name.removeprefix('split-')]), regimes.ROWS/name
    if not folder.exists(): pytest.skip('not measured yet')
    assert evidence.read_protocol(folder).key == p.key
    rows = evidence.study_rows(p, folder)
    assert rows['accuracy'].between(0, 1).all()


def test_rows_are_small():
    assert sum(f.stat().st_size for f in regimes.ROWS.rglob('*.json')) < 2e6
