"""Runs: statistics against scipy and simulations, parameters, jobs that survive a kill, pages, the command line."""
import contextlib, errno, json, math, os, re, shutil, signal, subprocess, sys, textwrap, time, types
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np, pandas as pd, pytest, torch
from fastai.callback.core import Callback
from PIL import Image
from hypothesis import Phase, given, settings, strategies as st
from scipy import stats

from libkd import UserError, arms, cli, evidence, files, price, runs
from libkd.learner import METHODS, first_terms
from libkd.teachers import PACKAGED

PYTHON = sys.executable
plainly = settings(phases=[Phase.explicit, Phase.generate])    # an example that fails is small enough as it is


def table(**arms):
    "Results from arm=[one accuracy a seed]; a single number is an arm without seeds"
    rows = [dict(arm=a, seed=s, accuracy=v) for a, vs in arms.items() for s, v in (enumerate(vs) if isinstance(vs, list) else [(None, vs)])]
    return pd.DataFrame(rows)


# -- statistics --------------------------------------------------------------------------------------------------------
@given(st.lists(st.floats(-20, 20), min_size=2, max_size=12).filter(lambda d: np.std(d) > 1e-3), st.sampled_from([.8, .95, .99]))
def test_interval_is_scipys(d, level):
    theirs = stats.ttest_1samp(d, 0).confidence_interval(level)
    mean, lo, hi = evidence.interval(d, level)
    assert np.allclose([mean, lo, hi], [np.mean(d), *theirs], atol=1e-6)


@plainly
@given(st.lists(st.tuples(st.floats(.2, .9), st.floats(.2, .9)), min_size=3, max_size=8).filter(lambda p: np.std([a - b for a, b in p]) > 1e-4))
def test_beats_or_worse_exactly_when_the_paired_t_test_is_significant(pairs):
    a, b = map(list, zip(*pairs))
    row = evidence.compare(table(base=b, new=a), 'base', margin=1e-9).loc['new']
    p = stats.ttest_rel(a, b).pvalue
    if abs(p - .05) > 1e-6: assert (row['verdict'] in ('BEATS', 'WORSE')) == (p < .05)
    if row['verdict'] == 'BEATS': assert np.mean(a) > np.mean(b)
    if row['verdict'] == 'WORSE': assert np.mean(a) < np.mean(b)


def test_pairs_are_matched_by_seed_and_not_by_row():
    r = table(base=[.5, .6, .7], new=[.52, .63, .71])
    shuffled = r.sample(frac=1, random_state=3)
    assert evidence.compare(r, 'base').loc['new'].equals(evidence.compare(shuffled, 'base').loc['new'])
    assert np.allclose(evidence.paired(shuffled, 'new', 'base').sort_index(), [2, 3, 1])


def test_a_seed_that_one_arm_lacks_is_no_pair():
    r = pd.concat([table(base=[.5, .6, .7], new=[.52, .63]), pd.DataFrame([dict(arm='new', seed=2, accuracy=math.nan)])])
    assert evidence.compare(r, 'base').loc['new', 'seeds'] == 2
    with pytest.raises(ValueError, match='two rows for one seed'): evidence.compare(pd.concat([r, r]), 'base')
    with pytest.raises(ValueError, match='no other one'): evidence.compare(table(base=[.5, .6]), 'base')


def test_no_difference_needs_an_interval_inside_the_margin():
    tight, wide = [.1, -.1, .05, -.05], [3., -3., 1., -1.]
    assert evidence.verdict(tight, margin=1)['verdict'] == 'NO DIFFERENCE'
    assert evidence.verdict(tight, margin=.05)['verdict'] == 'NOT ENOUGH RUNS'
    assert evidence.verdict(wide, margin=1)['verdict'] == 'NOT ENOUGH RUNS'
    assert evidence.verdict([5.])['verdict'] == 'NOT ENOUGH RUNS'


@pytest.mark.parametrize('d, word', [([2., 2.1], 'NOT ENOUGH RUNS'), (list(100*np.array([.2, .4, .8]) - 100*np.array([.1, .3, .7])), 'NOT ENOUGH RUNS'), ([1.25]*6, 'BEATS'), ([-1.25]*6, 'WORSE'), ([0.]*3, 'NO DIFFERENCE'), ([0.]*2, 'NOT ENOUGH RUNS')])
def test_too_few_or_equal_differences_are_no_proof(d, word):
    v = evidence.verdict(d)
    assert v['verdict'] == word and (v['needed'] is None) == (word != 'NOT ENOUGH RUNS')


@pytest.mark.slow
def test_false_alarms_come_as_often_as_promised():
    rng = np.random.default_rng(0)
    words = [evidence.verdict(d, margin=.01)['verdict'] for d in rng.normal(0, 2, (2000, 5))]
    assert .035 < np.mean([w in ('BEATS', 'WORSE') for w in words]) < .065


def test_two_seeds_that_differ_widely_do_not_promise_an_answer_with_three():
    wide, one = evidence.verdict([-11., 5.]), evidence.verdict([4.])
    assert wide['verdict'] == one['verdict'] == 'NOT ENOUGH RUNS' and wide['needed'] > 20
    assert evidence.say('a', 'b', one).endswith('; at least 3 seeds are needed.')


@pytest.mark.slow
@pytest.mark.parametrize('mean, sd', [(2., 2.), (1., 1.5), (0., 1.), (.3, .8)])
def test_the_number_of_seeds_that_would_do_does(mean, sd):
    "With that many seeds, a decisive word comes in about 80 % of simulated experiments; with half as many it does not"
    n, rng = evidence.seeds_needed(mean, sd), np.random.default_rng(1)
    decisive = lambda n: np.mean([evidence.verdict(d)['verdict'] != 'NOT ENOUGH RUNS' for d in rng.normal(mean, sd, (600, n))])
    assert decisive(n) > .74
    assert decisive(max(2, n//2)) < .72


def test_a_teacher_stands_beside_every_seed():
    r = table(student=[.80, .82, .81], teacher=.9)
    row = evidence.compare(r, 'teacher').loc['student']
    assert row['seeds'] == 3 and row['verdict'] == 'WORSE' and np.isclose(row['difference'], -9)


@pytest.mark.parametrize('teacher, first', [(.95, 'A teacher beats'), (.8105, 'A teacher is ahead'), (.6, 'BEATS')])
def test_if_a_teacher_is_better_the_first_sentence_says_so(teacher, first):
    r = table(untaught=[.70, .71, .69], taught=[.80, .82, .81], conv=teacher, inv=.5)
    said = evidence.conclusion(r, 'taught', 'untaught', ['conv', 'inv'])
    assert said[0].startswith(first)
    assert sum(s.startswith('BEATS: taught beats untaught') for s in said) == 1


@plainly
@given(st.lists(st.sets(st.integers(0, 99), max_size=12), min_size=2, max_size=5), st.permutations(range(5)))
def test_the_cheapest_of_those_that_are_as_good_is_advised(wrong, prices):
    right = {f'm{i}': ~np.isin(np.arange(100), list(w)) for i, w in enumerate(wrong)}
    price, share = {k: prices[i] for i, k in enumerate(right)}, {k: 100*v.mean() for k, v in right.items()}
    leader = min(right, key=lambda k: (-share[k], price[k]))
    p = lambda k: stats.binomtest(int((right[leader] & ~right[k]).sum()), max(1, int((right[leader] != right[k]).sum()))).pvalue
    as_good = [k for k in right if share[leader] - share[k] <= 2 + 1e-9 and (k == leader or (right[leader] == right[k]).all() or p(k) >= .05)]
    chosen = evidence.choose(right, price)
    assert chosen.index[0] == min(as_good, key=price.get) and set(chosen.index[chosen['as_good']]) == set(as_good)


def test_a_number_of_seeds_is_no_list_of_them(tmp_path):
    with pytest.raises(UserError, match=r'as in seeds=range\(3\)'): runs.sweep('distill', dict(T=[1., 2.]), seeds=3, folder=tmp_path)


def test_one_seed_has_no_interval_and_nothing_is_not_written(tmp_path):
    rows = evidence.comparison_rows(evidence.compare(table(untaught=[.7], taught=[.8]), 'untaught'), 'untaught')
    assert rows[0]['95 % interval'] == 'none from one seed'
    said = runs.summary(dict(seconds={}, table=[{'arm': 'taught', 'accuracy': 60., '± sd': None, 'seeds': 1}, {'arm': 'conv', 'accuracy': 63.3, '± sd': float('nan'), 'seeds': pd.NA}]), tmp_path)
    assert '60.0' in said and not re.search('None|NA|nan', said)


def test_a_little_cheaper_decides_nothing():
    "Two teachers, one with 2 % fewer multiply-adds and a point less (and five times as slow): the sentence said `for 1.0 times the multiply-adds`"
    first = lambda n: np.arange(100) < n
    def best(price): return evidence.choose(dict(a=first(90), b=first(89)), dict(a=price, b=1e6)).index[0]
    assert [best(p) for p in (1.02e6, 1.1e6, 1.11e6, float('nan'))] == ['a', 'a', 'b', 'b']


def test_a_figure_of_the_images_that_were_chosen_on_is_called_optimistic():
    first = lambda n: np.arange(100) < n
    chosen, kind = evidence.choose(dict(a=first(90), b=first(89)), dict(a=2., b=1.)), dict(a='a teacher', b='a student')
    with_test, without = (evidence.advice(chosen, kind, .87, part, 100) for part in ('test', 'valid'))
    assert with_test.startswith('Take b, a student: 87.0 %') and 'no part in the choice' in with_test and 'optimistic' not in with_test
    assert 'optimistic' in without and 'a, a teacher, is 1.0 points ahead' in without


def test_the_sentence_with_the_model_to_take_comes_first_and_the_word_second():
    said = evidence.conclusion(table(untaught=[.70, .71, .69], taught=[.80, .82, .81], conv=.95), 'taught', 'untaught', ['conv'], best='Take conv.')
    assert said[0] == 'Take conv.' and said[1].startswith('BEATS: ') and said[2].startswith('A teacher beats')


def test_teachers_that_know_less_than_the_student_are_named():
    said = ' '.join(evidence.teacher_advice(dict(conv=.589, inv=.431), [.779, .781], rising=['conv']))       # hands, ten labels a class
    for words in ('conv has 58.9 %', 'inv has 43.1 %', '35 points behind the untaught student', '16 points behind conv', 'conv is unfinished',
                  'All teachers are below the untaught student', '-p leave_out inv'): assert words in said
    assert evidence.teacher_advice(dict(conv=.785, inv=.727), [.70, .71]) == []


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=60))
def test_mcnemar_is_the_exact_binomial_test(pairs):
    a, b = map(np.array, zip(*pairs))
    out = evidence.mcnemar(a, b)
    n = int((a != b).sum())
    k = min(int((a & ~b).sum()), int((b & ~a).sum()))
    assert np.isclose(out['p'], min(1, 2*stats.binom.cdf(k, n, .5)) if n else 1)


@pytest.mark.parametrize('call, text', [
    (lambda: evidence.compare(table(a=[.5, .6]), 'b'), "no arm is called 'b'"),
    (lambda: evidence.compare(table(a=[50., 60.], b=[1., 2.]), 'b'), 'scale=1'),
    (lambda: evidence.compare(table(a=[.5], b=[.5]), 'b', metric='f1'), "lack the column.* f1"),
    (lambda: evidence.mcnemar([True], [True, False]), 'same images'), (lambda: evidence.mcnemar(['a', 'b'], ['a', 'c']), 'predictions == labels'),
    (lambda: evidence.mcnemar([2, 0], [1, 0]), 'predictions == labels'), (lambda: evidence.verdict([1., 2.], margin=-1), 'from 0 up'), (lambda: evidence.verdict([1., 2.], level=95), 'between 0 and 1'),
    (lambda: evidence.choose({}, {}), 'no model to choose')])
def test_wrong_results_are_refused_in_a_sentence(call, text):
    with pytest.raises((ValueError, KeyError), match=text): call()


# -- jobs --------------------------------------------------------------------------------------------------------------
JOBS = '''
import os, sys, time
from pathlib import Path
from libkd.runs import run_jobs
out = Path(sys.argv[1])
def work(arm, seed):
    (out/f'began-{arm}-{seed}-{os.getpid()}').touch()
    if arm == 'hangs' and not (out/'second').exists(): time.sleep(600)
    return dict(accuracy=seed/10)
rows = run_jobs(work, [dict(arm=a, seed=s) for s in (0, 1) for a in ('quick', 'hangs')], out/'jobs', n_jobs=2)
print(rows[['arm', 'seed', 'accuracy']].to_json(orient='records'))
'''


@pytest.mark.slow
def test_a_killed_sweep_resumes_and_repeats_nothing(tmp_path):
    script = tmp_path/'jobs.py'
    script.write_text(JOBS)
    p = subprocess.Popen([PYTHON, script, tmp_path], start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    for _ in range(600):
        if len(list((tmp_path/'jobs').glob('*.json'))) >= 1 and list(tmp_path.glob('began-hangs-*')): break
        time.sleep(.1)
    os.killpg(p.pid, signal.SIGKILL); p.wait()
    whole = {f: f.read_bytes() for f in (tmp_path/'jobs').glob('*.json')}
    assert whole and all('accuracy' in json.loads(b) for b in whole.values())
    (tmp_path/'second').touch()
    out = subprocess.run([PYTHON, script, tmp_path], capture_output=True, text=True, check=True).stdout
    rows = json.loads(out)
    assert [(r['arm'], r['seed'], r['accuracy']) for r in rows] == [('quick', 0, 0), ('hangs', 0, 0), ('quick', 1, .1), ('hangs', 1, .1)]
    assert len(list(tmp_path.glob('began-quick-0-*'))) == 1                              # done before the kill: not again
    assert all(f.read_bytes() == b for f, b in whole.items())


def lives(pid):
    import psutil
    try: return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess: return False


@pytest.mark.slow
@pytest.mark.parametrize('how', [signal.SIGTERM, signal.SIGKILL], ids=['SIGTERM', 'SIGKILL'])
def test_nobody_works_on_for_a_process_that_was_killed_alone(tmp_path, how):
    script = tmp_path/'jobs.py'
    script.write_text(JOBS)
    p = subprocess.Popen([PYTHON, script, tmp_path], start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        for _ in range(600):
            if len(workers := [int(f.name.split('-')[-1]) for f in tmp_path.glob('began-hangs-*')]) == 2: break
            time.sleep(.1)
        assert len(workers) == 2 and all(map(lives, workers))                            # each would sleep for ten minutes
        p.send_signal(how); p.wait()                                                     # it alone, not its workers
        for _ in range(300):
            if not any(map(lives, workers)): break
            time.sleep(.1)
        assert not any(map(lives, workers))
    finally:
        with contextlib.suppress(ProcessLookupError): os.killpg(p.pid, signal.SIGKILL)


def dies(seed): os._exit(1) if seed == 1 else time.sleep(0); return dict(x=seed)


@pytest.mark.slow
def test_a_process_that_dies_is_a_row_with_an_error(tmp_path):
    rows = runs.run_jobs(dies, [dict(seed=s) for s in range(6)], tmp_path, n_jobs=2).set_index('seed')
    assert 'a process ended' in rows.loc[1, 'error']
    assert rows.drop(index=1)['x'].tolist() == [0, 2, 3, 4, 5] and rows.drop(index=1)['error'].isna().all()      # it hides no other
    assert not list(tmp_path.glob('.*.tmp'))


def full(*args): raise OSError(errno.ENOSPC, 'No space left on device')


def test_a_result_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    runs.write_json(tmp_path/'a.json', dict(x=1))
    monkeypatch.setattr(os, 'fsync', full)
    with pytest.raises(UserError, match='disk is full'): runs.write_json(tmp_path/'a.json', dict(x=2))
    assert runs.read_json(tmp_path/'a.json') == dict(x=1) and len(list(tmp_path.iterdir())) == 1


def test_a_row_that_cannot_be_written_is_a_row_with_its_error(tmp_path, monkeypatch):
    publish = runs.files.publish
    monkeypatch.setattr(runs.files, 'publish', lambda path, data, **kw: full() if b'"seed": 1' in data else publish(path, data, **kw))
    rows = runs.run_jobs(doubled, [dict(seed=s) for s in range(3)], tmp_path, progress=quiet)
    assert rows['x'].tolist()[::2] == [0, 4] and 'No space left' in rows.loc[1, 'error']


def quiet(*args): pass
def doubled(seed): return dict(x=2*seed)
def halved(seed): return dict(x=seed/2)


def leaves(seed):
    if seed == 1: raise SystemExit('gone')
    return dict(x=seed)


def test_a_job_that_leaves_hides_no_other(tmp_path):
    rows = runs.run_jobs(leaves, [dict(seed=s) for s in range(3)], tmp_path, progress=quiet)
    assert rows['x'].tolist()[::2] == [0, 2] and rows.loc[1, 'error'] == 'SystemExit: gone'


def damage(file, how):
    if how == 'torn': file.write_bytes(file.read_bytes()[:20])
    elif how == 'altered': file.write_text(file.read_text().replace('"x": 2', '"x": 3'))
    elif how == 'a list': file.write_text('[1, 2]')
    elif how == 'bytes': file.write_bytes(b'\xff\xfe')
    elif how == 'deep': file.write_text('['*100_000)
    elif how == 'of another job': shutil.copy(file.with_name(f'{runs.job_key(dict(seed=2))}.json'), file)


@pytest.mark.parametrize('how', ['torn', 'altered', 'a list', 'bytes', 'deep', 'of another job'])
def test_a_damaged_row_is_done_again_and_named(tmp_path, capsys, how):
    jobs = [dict(seed=s) for s in (1, 2)]
    first = runs.run_jobs(doubled, jobs, tmp_path, progress=quiet)
    file = tmp_path/f'{runs.job_key(jobs[0])}.json'
    damage(file, how)
    fresh = []
    rows = runs.run_jobs(doubled, jobs, tmp_path, progress=lambda done, of, row, new: fresh.append((row['seed'], new)))
    assert sorted(fresh) == [(1, True), (2, False)] and rows['x'].tolist() == first['x'].tolist() == [2, 4]
    said = capsys.readouterr().out
    assert str(file) in said and 'done again' in said and said.count('\n') == 1


@pytest.mark.parametrize('change, says', [(dict(fn=halved), 'halved'), (dict(result=2), 'result 1, now 2'), (dict(about=dict(size=8)), "now {'size': 8}")])
def test_a_row_that_something_else_made_is_done_again_and_named(tmp_path, capsys, change, says):
    def did(**kw):
        fresh = []
        runs.run_jobs(**{'fn': doubled, 'jobs': [dict(seed=1)], 'folder': tmp_path, 'about': dict(size=4), **kw}, progress=lambda *a: fresh.append(a[-1]))
        return fresh, capsys.readouterr().out
    assert did() == ([True], '') and did() == ([False], '')
    fresh, said = did(**change)
    assert fresh == [True] and says in said
    assert did(**change) == ([False], '')


def test_a_row_of_an_earlier_libkd_is_used(tmp_path):
    (tmp_path/f'{runs.job_key(dict(seed=1))}.json').write_text('{"seed": 1, "x": 7}')
    assert runs.run_jobs(doubled, [dict(seed=1)], tmp_path, progress=quiet)['x'].tolist() == [7]


def test_a_job_that_holds_an_address_is_refused(tmp_path):
    with pytest.raises(UserError, match='give a name'): runs.run_jobs(doubled, [dict(seed=object())], tmp_path)


def test_other_values_are_other_jobs(tmp_path):
    seen = []
    def f(**job): seen.append(job); return {}
    runs.run_jobs(f, [dict(seed=0, T=1.)], tmp_path)
    runs.run_jobs(f, [dict(seed=0, T=2.)], tmp_path)
    runs.run_jobs(f, [dict(T=2., seed=0)], tmp_path)
    assert seen == [dict(seed=0, T=1.), dict(seed=0, T=2.)]


def test_json_is_json(tmp_path):
    runs.write_json(tmp_path/'a.json', dict(x=np.float32('nan'), y=np.array([1, 2]), z=pd.NA, p=tmp_path, i=np.int64(3), inf=math.inf))
    assert json.loads((tmp_path/'a.json').read_text(), parse_constant=pytest.fail) == dict(x=None, y=[1, 2], z=None, p=str(tmp_path), i=3, inf=None)
    runs.write_json(tmp_path/'b.json', dict(z=1, name='caf\udce9'))                  # a name of a file that is no text
    assert list(runs.read_json(tmp_path/'b.json').items()) == [('z', 1), ('name', 'caf\udce9')]
    (tmp_path/'b.json').write_text('{"x": ')
    with pytest.raises(UserError, match='b.json cannot be read'): runs.read_json(tmp_path/'b.json')


# -- parameters and runs -----------------------------------------------------------------------------------------------
def notebook(path, *cells, parameters="folder = ''  # where\nsteps = 10  # how many\nlr = 1e-3\nname = 'x'\nmix = True"):
    import nbformat
    new = nbformat.v4
    made = [new.new_code_cell(parameters, metadata=dict(tags=['parameters']))]
    made += [new.new_code_cell(c, metadata=dict(tags=['plan']) if '# plan' in c else {}) for c in cells]
    nbformat.write(new.new_notebook(cells=made, metadata=dict(kernelspec=dict(name='python3', display_name='python3', language='python'))), path)
    return path


@pytest.mark.parametrize('given, text', [
    (dict(step=5), "Did you mean 'steps'"), (dict(zzz=5), 'There are folder, steps, lr'), (dict(steps='ten'), 'a whole number'), (dict(steps=1.5), 'how many'),
    (dict(steps=True), 'a whole number'), (dict(lr='fast'), 'a number'), (dict(mix='perhaps'), 'true or false'), (dict(mix=1), 'true or false'), (dict(name=3), 'text')])
def test_wrong_parameters_stop_a_run_before_it_begins(tmp_path, given, text):
    nb = notebook(tmp_path/'nb.ipynb', f'open({str(tmp_path/"ran")!r}, "w")')
    with pytest.raises(ValueError, match=text): runs.run(nb, tmp_path/'out', **given)
    assert not (tmp_path/'out').exists() and not (tmp_path/'ran').exists()


RANGES = """steps = 700   # optimiser steps; at least 1
seeds = 3     # paired seeds; at least 1
valid = 0.2   # share to split off; more than 0, less than 1
T = 2.0       # temperature; more than 0
lr = 0.002    # peak of the schedule; more than 0
wd = 0.05     # weight decay; at least 0
mix = 0.0     # share of the views; 0 to 1
bs = 32       # batch size; at least 1
margin = 1.0  # points; at least 0
jobs = 0      # processes at a time, 0 measures what is fastest; at least 0
labels = 0    # this many a class, 0 keeps all; at least 0
size = 0      # pixels, 0 follows from the pictures; 0 or 8 to 512
flip = 'auto' # mirror at random; yes, no or auto
weights = 1.0 # of each teacher; at least 0"""

WRONG = [dict(steps=-1), dict(seeds=0), dict(seeds=-3), dict(valid=1.5), dict(valid=0), dict(valid=1.), dict(T=0), dict(T=-1.), dict(T='nan'),
         dict(lr=0.), dict(lr=-.1), dict(lr='inf'), dict(wd=-1), dict(mix=1.01), dict(mix=-.1), dict(bs=0), dict(margin=-1), dict(jobs=-1), dict(labels=-1),
         dict(size=3), dict(size=100_000), dict(size=-8), dict(flip='maybe'), dict(weights='-inf'), dict(flip='caf\udce9')]


@pytest.mark.parametrize('given', WRONG, ids=str)
def test_values_out_of_their_range_stop_a_run_before_it_begins(tmp_path, given):
    (name, value), = given.items()
    nb = notebook(tmp_path/'nb.ipynb', parameters=RANGES)
    with pytest.raises(UserError, match=rf'^{name}=.*does not fit: needed is (text|a (whole )?number), .*the default') as e: runs.run(nb, tmp_path/'out', **given)
    assert ascii(value) in str(e.value) and str(e.value).isascii() and not (tmp_path/'out').exists()


@pytest.mark.parametrize('name', ['distill', 'methods'])
def test_the_runs_that_come_with_libkd_have_ranges(name):
    known, missed = runs.parameters(name), []
    for given in WRONG:
        if not given.keys() <= known.keys() or (name, given) == ('distill', dict(lr=0.)): continue      # 0 there: as the teacher asks
        try: missed.append(runs.check_parameters(name, given))
        except UserError as e: assert 'does not fit' in str(e)
    assert not missed


def test_values_at_the_ends_of_their_range_are_taken(tmp_path):
    nb = notebook(tmp_path/'nb.ipynb', parameters=RANGES)
    good = dict(steps=1, valid=.999, wd=0., mix=1., size=8, jobs=0, flip='no', T=1e-9)
    assert runs.check_parameters(nb, good) == good and runs.check_parameters(nb, dict(size='512')) == dict(size=512)


def test_a_parameter_that_is_no_plain_value_is_named(tmp_path):
    for line in ('y = 3*4', 'x = 1\ny = [z]', "y = f'{1}'"):
        with pytest.raises(UserError, match="parameter 'y'"): runs.parameters(notebook(tmp_path/'nb.ipynb', parameters=line))
    with pytest.raises(UserError, match='no plain Python'): runs.parameters(notebook(tmp_path/'nb.ipynb', parameters='%time x = 1'))


def test_parameters_are_read_as_python_reads_them(tmp_path):
    cell = "x = [1,\n 2]   # two = three\ny = 'ääää # b'  # as in y='#'; at least 1\n# a line\nz = -1."
    found = runs.parameters(notebook(tmp_path/'nb.ipynb', parameters=cell))
    assert found == dict(x=([1, 2], 'two = three'), y=('ääää # b', "as in y='#'; at least 1"), z=(-1., ''))


def test_text_from_a_command_line_gets_the_type_of_the_default(tmp_path):
    nb = notebook(tmp_path/'nb.ipynb')
    assert runs.check_parameters(nb, dict(steps='3', lr='2', name='7', mix='no')) == dict(steps=3, lr=2., name='7', mix=False)


BODY = ["from libkd.runs import Run\nrecord = Run(folder, 'Toy')\nprint('planned')  # plan",
        "with record.phase('work'):\n    print('· detail')\n    if steps == 13: raise ValueError('thirteen is not possible')\n    if steps == 14: 1/0",
        "record.done(metrics=dict(steps=steps));"]


@pytest.mark.slow
def test_a_run_that_stops_half_way_never_looks_whole(tmp_path):
    nb = notebook(tmp_path/'nb.ipynb', *BODY)
    assert runs.run(nb, tmp_path/'out', steps=3, show=False)['metrics'] == dict(steps=3)
    with pytest.raises(runs.RunError, match='thirteen is not possible') as e: runs.run(nb, tmp_path/'out', steps=13, show=False)
    assert e.value.by_user and e.value.notebook.exists()
    assert not (tmp_path/'out'/'result.json').exists()


def test_an_error_keeps_whose_it_is_on_its_way_out_of_a_notebook():
    for name, ours in (('ChanceError', False), ('CacheMismatch', False), ('WriteError', False), ('FileNotFoundError', False), ('AttributeError', True), ('Mine', True)):
        e = runs.stopped(Path('nb.ipynb'), name, '\x1b[31mtext\x1b[0m')
        assert e.by_user != ours and (f'{name}: text' if ours else 'stopped: text') in str(e)
    assert 'disk is full: a.png' in str(runs.stopped(Path('nb.ipynb'), 'OSError', "[Errno 28] No space left on device: 'a.png'"))


@pytest.mark.slow
def test_braces_in_a_path_are_no_blanks_to_fill_in(tmp_path):
    (tmp_path/'{x}').mkdir()
    nb = notebook(tmp_path/'{x}'/'nb.ipynb', *BODY)
    assert runs.run(nb, tmp_path/'{x}'/'out', steps=3, show=False)['metrics'] == dict(steps=3)


@pytest.mark.slow
def test_a_plan_stops_before_any_work_and_keeps_the_last_result(tmp_path, capsys):
    nb = notebook(tmp_path/'nb.ipynb', *BODY)
    runs.run(nb, tmp_path/'out', steps=3, show=False)
    assert runs.run(nb, tmp_path/'out', plan=True, steps=13) == {}
    assert 'planned' in capsys.readouterr().out
    assert runs.read_json(tmp_path/'out'/'result.json')['metrics'] == dict(steps=3)
    assert not list((tmp_path/'out').glob('plan-*'))


def test_a_plan_starts_no_kernel_and_imports_no_papermill(tmp_path, monkeypatch):
    nb = notebook(tmp_path/'nb.ipynb', *BODY[:1])
    for name in ('papermill', 'nbformat', 'jupyter_client'): monkeypatch.setitem(sys.modules, name, None)
    assert runs.run(nb, tmp_path/'out', plan=True, show=False) == {}


def test_a_plan_that_cannot_be_made_is_the_error_of_a_run(tmp_path):
    nb = notebook(tmp_path/'nb.ipynb', "from libkd import UserError\nif steps == 13: raise UserError('thirteen')  # plan\n1/0")
    for steps, ours in ((13, False), (14, True)):
        with pytest.raises(runs.RunError, match='nb stopped') as e: runs.run(nb, tmp_path/'out', plan=True, steps=steps, show=False)
        assert e.value.by_user != ours


@pytest.mark.slow
def test_the_plan_of_a_notebook_with_magics_goes_to_papermill(tmp_path):
    nb = notebook(tmp_path/'nb.ipynb', '%config Application.x = 1', "1  # plan", '1/0')
    assert runs.run(nb, tmp_path/'out', plan=True, show=False) == {}
    assert (tmp_path/'out'/'plan-nb.ipynb').exists()


@pytest.mark.slow
def test_logs_show_phases_and_no_details(tmp_path, capsys):
    nb = notebook(tmp_path/'nb.ipynb', *BODY)
    runs.run(nb, tmp_path/'out', steps=3)
    out = capsys.readouterr().out
    assert 'work: 0 s' in out and 'detail' not in out


def test_after_half_a_minute_of_silence_a_log_shows_a_detail(capsys):
    said = runs._Printer(details=False, every=.2)
    for text in ('· a\n', 'work …\n'): said.write(text)
    time.sleep(.3)
    for text in ('· b', ' and more\n', '· c\n'): said.write(text)
    assert capsys.readouterr().out.splitlines() == ['work …', '· b and more']


def test_a_log_shows_each_line_of_a_heartbeat(capsys, monkeypatch):
    now = [0.]                                           # a line comes every 30 seconds, or a little earlier
    monkeypatch.setattr(runs.time, 'monotonic', lambda: now[0])
    said = runs._Printer(details=False)
    for now[0] in (30.1, 60.05, 90., 120.02): said.write(f'· {now[0]:.0f}\n')
    assert capsys.readouterr().out.split() == ['·', '30', '·', '60', '·', '90', '·', '120']


def test_jobs_in_other_processes_say_how_they_stand(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(files, 'heartbeat', lambda say, own=files.heartbeat: own(say, every=.1))
    (tmp_path/f'{runs.job_key(dict(name="a"))}.underway').write_text('left by a process that was killed')
    def slow(name):
        print(f'{name}: 50%')
        (tmp_path/f'{name}.there').touch()
        for _ in range(600):                             # on a busy machine one process begins long before the other
            if len(list(tmp_path.glob('*.there'))) == 2: break
            time.sleep(.1)
        time.sleep(1)
        return {}
    runs.run_jobs(slow, [dict(name='a'), dict(name='b')], tmp_path, n_jobs=2, progress=lambda *a: None)
    said = capsys.readouterr().out.splitlines()
    assert '· a: 50%; b: 50%' in said and 'killed' not in str(said)
    assert not list(tmp_path.glob('*.underway'))


def test_news_that_cannot_be_written_stop_no_job(tmp_path):
    nowhere = tmp_path/'gone'/'a.json'
    with contextlib.redirect_stdout(runs._LastLine(runs._underway(nowhere))): print('10%')
    row = runs._aside(lambda: print('20%') or dict(x=1), {}, nowhere, {})
    assert row['x'] == 1


@pytest.mark.slow
def test_runs_are_headless_whatever_surrounds_them(tmp_path, monkeypatch):
    monkeypatch.setenv('JPY_SESSION_NAME', 'lab'); monkeypatch.setenv('LIBKD_WIDGETS', 'live')
    nb = notebook(tmp_path/'nb.ipynb', BODY[0], "import os\nrecord.done(metrics={k: os.environ.get(k, '') for k in ('LIBKD_WIDGETS', 'JPY_SESSION_NAME')});")
    assert runs.run(nb, tmp_path/'out', show=False)['metrics'] == dict(LIBKD_WIDGETS='headless', JPY_SESSION_NAME='')
    assert os.environ['JPY_SESSION_NAME'] == 'lab'


@pytest.mark.slow
def test_a_sweep_keeps_going_when_a_run_fails(tmp_path):
    nb = notebook(tmp_path/'nb.ipynb', *BODY)
    rows = runs.sweep(nb, dict(steps=[3, 13]), folder=tmp_path/'sweep').set_index('steps')
    assert 'thirteen' in rows.loc[13, 'error'] and pd.isna(rows.loc[3, 'error'])
    assert len(list((tmp_path/'sweep'/'jobs').glob('*.json'))) == 1


@pytest.mark.slow
def test_a_sweep_of_a_changed_notebook_is_done_again(tmp_path, capsys):
    def swept(*body):
        fresh = []
        runs.sweep(notebook(tmp_path/'nb.ipynb', *body), dict(steps=[3]), folder=tmp_path/'sweep', progress=lambda *a: fresh.append(a[-1]))
        return fresh
    assert swept(*BODY) == [True] and swept(*BODY) == [False]
    assert swept(*BODY[:2], 'record.done(metrics=dict(steps=-steps));') == [True] and 'notebook' in capsys.readouterr().out


def test_what_a_text_names_counts_by_content_and_not_by_place(tmp_path):
    import os
    a, b = tmp_path/'a', tmp_path/'b'
    (a/'in').mkdir(parents=True)
    (a/'in'/'one.txt').write_text('1')
    first = runs.content_of(str(a))
    os.utime(a/'in'/'one.txt', (1, 1))
    a.rename(b)
    assert runs.content_of(str(b)) == first != '' and runs.content_of(str(a)) == runs.content_of('') == runs.content_of(7) == ''
    (tmp_path/'far').mkdir(); (tmp_path/'far'/'two.txt').write_text('2')
    (b/'link').symlink_to(tmp_path/'far'); (tmp_path/'far'/'back').symlink_to(tmp_path/'far')
    linked = runs.content_of(str(b))
    (tmp_path/'far'/'two.txt').write_text('3')
    assert len({first, linked, runs.content_of(str(b))}) == 3
    assert runs.content_of(str(b/'in'/'one.txt')) != first


@pytest.mark.slow
def test_a_sweep_on_exchanged_data_is_done_again_and_on_a_moved_folder_is_not(tmp_path):
    nb = notebook(tmp_path/'nb.ipynb', "from libkd.runs import Run\nrecord = Run(folder, 'Toy')\nwith record.phase('a'): pass\nrecord.done(metrics=dict(n=int(open(data + '/x').read())));",
                  parameters="folder = ''  # where\ndata = ''  # where from")
    def swept(data):
        fresh = []
        row, = runs.sweep(nb, dict(data=[str(data)]), folder=tmp_path/'sweep', progress=lambda *a: fresh.append(a[-1])).to_dict('records')
        return row['n'], row['data'], fresh
    (tmp_path/'a').mkdir(); (tmp_path/'a'/'x').write_text('1')
    assert swept(tmp_path/'a') == (1, str(tmp_path/'a'), [True])
    (tmp_path/'a').rename(tmp_path/'b')
    assert swept(tmp_path/'b') == (1, str(tmp_path/'b'), [False])
    (tmp_path/'b'/'x').write_text('2')
    assert swept(tmp_path/'b') == (2, str(tmp_path/'b'), [True])


# -- arms --------------------------------------------------------------------------------------------------------------
def test_the_table_counts_teachers_and_cache_for_the_taught_only():
    r = pd.DataFrame([dict(arm=a, seed=0, accuracy=.5, macro_accuracy=.5, ece=.1, seconds=20.) for a in ('taught', 'untaught')])
    board = pd.DataFrame({'accuracy': .5, 'macro accuracy': .5, 'ECE': .1, 'params': 1, 'MACs': 1, 'ms/image': 1.}, index=['taught', 'untaught', 't1', 't2', 'mean of the teachers'])
    t = arms.run_table(r, board, dict(taught=('m', True), untaught=('m', False)), dict(t1=10., t2=15.), 5.).set_index('arm')
    assert t['seconds'].to_dict() == {'taught': 50., 'untaught': 20., 't1': 10., 't2': 15., 'mean of the teachers': 25.}


def test_untaught_arms_see_labelled_images_only():
    from libkd.data import cluttered_digits
    s = arms.run_samples(cluttered_digits(train=40, unlabelled=40, valid=40, test=40))
    assert len(arms.arm_dls(s, 16, taught=False).train_ds) == 40 and len(arms.arm_dls(s, 16).train_ds) == 80
    assert arms.verdict_part(s) == 'test' and arms.verdict_part(s.train) == 'valid'


def test_decoded_pictures_may_take_half_of_the_disk(tmp_path, monkeypatch):
    monkeypatch.setattr(arms.shutil, 'disk_usage', lambda path: types.SimpleNamespace(free=100, path=path))
    folder = tmp_path/'run'/'pictures'
    assert [arms.roomy(folder, n) for n in (50, 51)] == [True, False]                       # not there yet
    folder.mkdir(parents=True)
    (folder/'pictures-1.u8').write_bytes(bytes(60))
    assert [arms.roomy(folder, n) for n in (80, 81)] == [True, False]                       # what lies there is no loss


def test_models_follow_a_size_that_is_given(monkeypatch):
    from libkd.teachers import Packaged
    monkeypatch.setattr(Packaged, 'there', lambda self: True)
    samples = arms.run_samples('clothes', labels=10)
    def chosen(size, device='cpu'):
        found = arms.run_defaults(samples, device, photos=True, size=size)
        return tuple(found[k] for k in ('size', 'student', 'plain', 'conv'))
    small = 'civt_pico', 'vit_pico'
    assert chosen(0) == chosen(32) == (32, *small, 'efficientnet_lite0')
    assert chosen(16) == (16, *small, 'resnet_mini')                            # too small for the published teacher
    assert chosen(96) == (96, *small, 'efficientnet_lite0')
    assert chosen(96, 'cuda') == (96, 'civt_tiny_light', 'vit_tiny_patch16_224', 'efficientnet_lite0')


def test_threads_are_measured_also_where_processes_are_given(monkeypatch):
    monkeypatch.delenv('OMP_NUM_THREADS', raising=False)
    def waits(): time.sleep(.01*torch.get_num_threads())                        # threads that only wait for each other
    def shares(): time.sleep(.04/torch.get_num_threads())
    ways = [price.threads_or_processes(f, cores=4, jobs=j) for f in (waits, shares) for j in (1, 2, 4)]
    assert [(w['jobs'], w['threads']) for w in ways] == [(1, 1), (2, 1), (4, 1), (1, 4), (2, 2), (4, 1)]
    monkeypatch.setenv('OMP_NUM_THREADS', '2')
    assert price.threads_or_processes(shares, cores=4, jobs=1)['threads'] == 2  # no more than the environment allows


@pytest.mark.slow
def test_photographs_get_a_teacher_with_published_weights_where_it_is_installed(monkeypatch):
    from libkd.teachers import PACKAGED, Packaged
    samples, given = arms.run_samples('clothes', labels=10), {}
    for there in (True, False):
        monkeypatch.setattr(Packaged, 'there', lambda self: there)
        given[there] = {k: arms.run_defaults(samples, photos=True)[k] for k in ('conv', 'inv', 'views', 'steps', 'lr', 'label_weight')}
    assert given[True] == dict(conv='efficientnet_lite0', inv='', views=8, steps=6136, lr=.004, label_weight=.1)
    assert given[False] == dict(conv='resnet_mini', inv='rednet_mini', views=4, steps=2000, lr=.004, label_weight=.25)
    monkeypatch.setattr(Packaged, 'there', lambda self: True)
    assert arms.run_defaults(samples)['conv'] == 'resnet_mini'                  # not asked for: light teachers
    assert arms.run_defaults(samples)['steps'] == 700
    light = arms.run_defaults(samples, photos=True, conv='resnet_mini')         # asked for: what is installed decides nothing
    assert {k: light[k] for k in given[False]} == given[False]
    assert arms.run_defaults(samples, size=16, conv='efficientnet_lite0')['steps'] == 6136
    many = samples.train[np.resize(np.arange(len(samples.train)), 250_000)]      # each is seen once at most
    assert {k: arms.run_defaults(many, photos=True)[k] for k in ('views', 'steps')} == dict(views=1, steps=6250)
    assert [(arms.follow(n)['views'], arms.follow(n)['steps']) for n in (100, 1000, 10_000)] == [(8, 700), (8, 2000), (5, 6250)]
    work = price.Work({'a': ('s', False)}, ['efficientnet_lite0'], dict(train=640, valid=128), 10, 32, 50, 50, 2, 1, labelled=64)
    plan = price.Plan(work, price.Costs(load=0., step=dict(s=0.), answer=dict(efficientnet_lite0=1.)), price.How(1))
    assert plan.minutes['teachers'] == pytest.approx((64 + 128)/32/60)         # once through these, and no step
    assert 'efficientnet_lite0 (its last layer)' in str(plan)


@pytest.mark.parametrize('biases', [['conv'], ['conv', 'inv']])
def test_a_taught_student_has_the_heads_of_the_one_it_is_compared_with(biases):
    import tiny
    setting, args = dict(samples={}, dls={}), dict(depth=1, embed_dim=32, num_heads=2)
    job = arms.Job('taught', 0, 'civt_nano', args, setting, {}, 1, .001, 0., 1)
    teachers = [tiny.teacher(b, bias=b) for b in biases]
    untaught = arms.arm_learner(tiny.loaders(), job, {}).model
    taught = arms.arm_learner(tiny.loaders(), job, arms.taught_how({}, replace(job, distill=dict(label_weight=.5)), teachers)).model
    assert taught.heads == untaught.heads == ('cls', 'conv', 'inv')
    assert all(a.equal(b) for a, b in zip(taught.state_dict().values(), untaught.state_dict().values()))      # one seed, one start


def test_views_are_seen_in_turn():
    import torch
    from libkd.sets import cluttered_digits
    from libkd.views import online
    dls = arms.arm_dls(arms.run_samples(cluttered_digits(train=40, unlabelled=40, valid=40, test=40)), 16, bs=16, mix=True, taught=False)
    def epochs(n):
        dl = dls.train.new(policy=online(), shuffle=False)
        if n: arms.in_turn(dl, n)
        return [torch.cat([x for x, y in dl]).as_subclass(torch.Tensor) for _ in range(3)]
    fresh, two = epochs(0), epochs(2)
    assert all(torch.equal(a, b) for a, b in zip(fresh[:2], two)) and torch.equal(two[2], two[0]) and not torch.equal(fresh[2], fresh[0])


# -- the command -------------------------------------------------------------------------------------------------------
def libkd(*words, **kw): return subprocess.run([PYTHON, '-c', 'from libkd.cli import main; main()', *map(str, words)], capture_output=True, text=True, **kw)


@pytest.mark.parametrize('words, text', [
    (['run', '/no/such/folder'], 'does not exist'), (['run', '-p', 'stepz=3'], "Did you mean 'steps'"), (['run', '-p', 'steps=many'], 'a whole number'),
    (['run', '-p', 'steps'], 'name=value'), (['run', '--notebook', 'distil'], "Did you mean 'distill'"), (['cache', 'info', '{tmp}'], 'libkd: '),
    (['cache', 'verify', '{tmp}/no'], 'libkd: '), (['predict', '{tmp}', '{tmp}/no.png'], 'does not exist'), (['predict', '{tmp}', '{tmp}'], 'no images'), (['new', '{full}'], 'nothing of yours')])
def test_a_mistake_is_one_sentence_and_exit_code_2(tmp_path, capsys, words, text):
    (tmp_path/'full').mkdir(); (tmp_path/'full'/'mine.txt').touch(); (tmp_path/'empty').mkdir()
    with pytest.raises(SystemExit) as e: cli.main([w.format(tmp=tmp_path/'empty', full=tmp_path/'full') for w in words])
    err = capsys.readouterr().err
    assert e.value.code == 2 and text in err and 'Traceback' not in err and err.startswith('libkd: ')


def test_a_fault_of_ours_keeps_its_traceback():
    def broken(): raise AttributeError('ours')
    with pytest.raises(AttributeError): cli.guarded(broken)


def test_help_imports_nothing_heavy():
    code = "import sys; from libkd.cli import main\ntry: main(['run', '--help'])\nexcept SystemExit: pass\nprint([m for m in ('torch', 'numpy', 'pandas', 'fastai') if m in sys.modules])"
    assert subprocess.run([PYTHON, '-c', code], capture_output=True, text=True).stdout.splitlines()[-1] == '[]'


def test_new_copies_runs_or_lessons(tmp_path):
    for words, first in ((['mine'], 'distill'), (['ada', '--course', '--student', 'Ada'], '01_')):
        with pytest.raises(SystemExit) as e: cli.main(['new', str(tmp_path/words[0]), *words[1:]])
        assert e.value.code == 0 and next(iter(sorted((tmp_path/words[0]).iterdir()))).name.startswith(first)


@pytest.mark.parametrize('notebook', ['distill', 'methods'])
def test_a_run_can_be_parameterised_by_scalars_that_are_explained(notebook):
    for name, (default, comment) in runs.parameters(notebook).items():
        assert isinstance(default, (bool, int, float, str)) and len(comment) > 8, name


# -- what a run says of its best model, and how long it may take ---------------------------------------------------------
def answers_at(T, n=4000, seed=0):
    "Logits whose likeliest temperature is T, and labels that were drawn from their probabilities"
    rng = np.random.default_rng(seed)
    z = rng.normal(0, 2, (n, 4))
    p = np.exp(z - np.logaddexp.reduce(z, 1)[:, None])
    return T*z, (p.cumsum(1) > rng.uniform(size=(n, 1))).argmax(1)


@pytest.mark.parametrize('T', [.5, 1., 2.5])
def test_the_temperature_is_the_likeliest_and_makes_probabilities_true(T):
    valid, judged = answers_at(T), answers_at(T, seed=1)
    t = arms.trust((valid, judged))
    assert abs(t['T']/T - 1) < .1 and t['ece_at_T'] < .03 and (T == 1 or t['ece_at_T'] < t['ece'])
    assert abs(t['precision'] - .95) < .03 and 0 < t['coverage'] < 1
    flip = lambda z, y: (z, np.where(np.arange(len(y)) % 2, y, -1))                 # images without a label do not count
    assert abs(arms.trust((flip(*valid), flip(*judged)))['T']/T - 1) < .1


def test_a_threshold_is_the_lowest_that_keeps_its_promise():
    rng = np.random.default_rng(0)
    for _ in range(30):
        p = rng.dirichlet(np.ones(3), 40).round(1) + 1e-9
        y = rng.integers(0, 3, 40)
        right, sure = p.argmax(1) == y, p.max(1)
        brute = min((t for t in sure if right[sure >= t].mean() >= .7), default=np.inf)
        assert arms.surest(p, y, .7) == brute


def test_students_that_are_shown_are_of_one_seed_where_there_is_one():
    def rows(**failed): return pd.DataFrame([dict(arm=a, seed=s, files=f'{a}{s}', accuracy=np.nan if s in failed.get(a, ()) else .5, error='no memory') for s in (3, 4, 5) for a in ('taught', 'untaught')])
    both = ['taught', 'untaught']
    assert arms.shown_files(rows(), both).to_dict() == dict(taught='taught3', untaught='untaught3')
    assert arms.shown_files(rows(taught=[3]), both).to_dict() == dict(taught='taught4', untaught='untaught4')
    assert arms.shown_files(rows(taught=[3], untaught=[4, 5]), both).to_dict() == dict(taught='taught4', untaught='untaught3')
    arms.refuse_nothing(rows(taught=[3]), both)
    with pytest.raises(RuntimeError, match='arm taught could be trained; the first one: no memory'): arms.refuse_nothing(rows(taught=[3, 4, 5]), both)


PLAN = price.Plan(price.Work(dict(taught=('s', True), untaught=('s', False)), ['t'], dict(train=640, test=100), 10, 64, steps=1000, teacher_steps=2000, views=4, seeds=3),
                  price.Costs(load=.1, step=dict(s=1., t=.5), answer=dict(t=.2)), price.How(2))

def test_a_deadline_takes_the_most_steps_that_fit():
    total = sum(PLAN.minutes.values())
    assert price.fitted(PLAN, price.in_minutes('')) is PLAN and price.fitted(PLAN, total/.9 + .01) is PLAN
    for share in (.3, .5, .9):
        cut = price.fitted(PLAN, share*total)
        longer = price.shorter(PLAN, cut.work.steps + 1)
        assert sum(cut.minutes.values()) <= .9*share*total < sum(longer.minutes.values())
        assert cut.work.teacher_steps == 2*cut.work.steps and cut.work.seeds == 3
    with pytest.raises(UserError, match='too few to learn anything; 100 need about'): price.fitted(PLAN, .02*total)


@pytest.mark.parametrize('text', ['6', 'soon', '-1h', '0h', '6 hours', 'h', '6h30'])
def test_a_deadline_that_nobody_can_read_is_named(text):
    with pytest.raises(UserError, match='hours or minutes from now'): price.in_minutes(text)


# -- end to end --------------------------------------------------------------------------------------------------------
def some_digits(folder, **parts):
    "An image folder with so many digits a class in each part"
    from libkd.data import digits
    for part, n in parts.items():
        for c in sorted((digits()/part).iterdir()):
            (folder/part/c.name).mkdir(parents=True)
            for f in sorted(c.iterdir())[:n]: shutil.copy(f, folder/part/c.name)
    return folder


def test_seeds_added_after_a_look_are_told(tmp_path):
    from libkd.evidence import say_looks
    some = [f'taught-{s}-12ab' for s in range(7)]
    asked = [arms.looks_before(tmp_path, s) for s in (some[:2], some[:3], some[2::-1], some[:5], some, some[:4], [s + 'f' for s in some])]
    assert asked == [[], [], [], [3], [3, 5], [3], []]                                # the last: other steps, another question
    assert 'at 3 and at 5' in say_looks('BEATS', asked[4]) and 'at 3:' in say_looks('WORSE', [3])
    assert say_looks('BEATS', []) == say_looks('NO DIFFERENCE', [3]) == say_looks('NOT ENOUGH RUNS', [3]) == ''


def test_a_word_among_many_is_corrected():
    from libkd.evidence import after_holm, say_holm
    rng = np.random.default_rng(0)
    rows = pd.DataFrame([dict(arm=f'm{k}', seed=s, accuracy=.5 + .01*rng.normal() + .03*(k == 3)) for k in range(6) for s in range(4)])
    p = after_holm(rows, 'm0')
    alone = {a: stats.ttest_rel(*(rows[rows['arm'] == x]['accuracy'] for x in (a, 'm0'))).pvalue for a in p}
    assert list(p) == ['m1', 'm2', 'm3', 'm4', 'm5']
    assert sorted(p.values()) == pytest.approx(np.minimum(1, np.maximum.accumulate(np.arange(5, 0, -1)*sorted(alone.values()))))
    assert 'luck' in say_holm('BEATS', .06, 5) and 'luck' not in say_holm('WORSE', .04, 5)
    assert say_holm('BEATS', .2, 1) == say_holm('NOT ENOUGH RUNS', .2, 5) == ''


@pytest.mark.slow
def test_the_main_run_from_images_to_answers(tmp_path):
    data = some_digits(tmp_path/'data', train=30, valid=10, test=10)
    words = ['-p', 'steps=12', 'teacher_steps=72', 'student_args=depth:1', 'seeds=2', 'views=2', 'bs=32', 'jobs=2', 'deadline=24h', 'as_long=yes']
    first = libkd('run', data, '--folder', tmp_path/'run', *words)
    assert first.returncode == 0, first.stderr
    result = runs.read_json(tmp_path/'run'/'result.json')
    assert [r['arm'] for r in result['table']] == ['taught', 'untaught', 'plain ViT', price.AS_LONG, 'resnet_mini', 'rednet_mini', 'mean of the teachers']
    assert result['verdict'] in first.stdout and str(tmp_path/'run'/'report.html') in first.stdout
    made = {p: p.stat().st_mtime for p in (tmp_path/'run'/'jobs').glob('*.json')}
    assert len(made) == 2 + 1 + 4*2
    longer = {r['steps'] for p in made if (r := runs.read_json(p)).get('arm') == price.AS_LONG}
    spent = {r['arm']: r['seconds'] for r in result['table']}
    assert len(longer) == 1 and longer.pop()/12 == pytest.approx(spent['taught']/spent['untaught'], rel=.05)
    assert any('steps instead of 12' in s for s in result['conclusion'])
    assert {'distill.ipynb', 'history.csv', 'student', 'best', 'figures'} <= {p.name for p in (tmp_path/'run').iterdir()}
    assert result['conclusion'][0] == result['best']['why'] and result['best']['part'] == 'test' and result['best']['why'] in first.stdout
    assert result['warnings'] and all(f'warning: {w}' in first.stdout for w in result['warnings'])          # 100 validation images are few
    trust = result['best']['trust']
    assert .05 <= trust['T'] <= 20 and 0 <= trust['coverage'] <= 1 and f"T = {trust['T']:.2f}" in (tmp_path/'run'/'best'/'README.md').read_text()
    assert f"T = {trust['T']:.2f}" in (tmp_path/'run'/'report.html').read_text()
    assert runs.read_json(tmp_path/'run'/'deadline.json')['steps'] == 12                                     # all of them fit
    again = libkd('run', *words, f"data={data}", f"folder={tmp_path/'run'}")        # trains nothing, says the same
    assert again.returncode == 0 and {p: p.stat().st_mtime for p in (tmp_path/'run'/'jobs').glob('*.json')} == made
    there = f'not done again where nothing has changed: {len(made)} jobs'
    assert there in again.stdout and 'not done again' not in first.stdout
    assert runs.read_json(tmp_path/'run'/'result.json')['metrics'] == result['metrics']
    assert [len(look) for look in runs.read_json(tmp_path/'run'/'looks.json')] == [2]        # asked twice, of the same seeds
    answers = tmp_path/'answers.csv'
    (tmp_path/'bad.png').write_bytes(b'no image')
    out = libkd('predict', tmp_path/'run'/'student', data/'test', tmp_path/'bad.png', '--out', answers)
    rows = pd.read_csv(answers, dtype={'class': str})
    assert out.returncode == 0 and len(rows) == 101 and rows['error'].notna().sum() == 1
    share = lambda rows: (rows['class'] == rows['file'].map(lambda f: Path(f).parent.name))[rows['error'].isna()].mean()
    taught = next(r for r in result['runs'] if r['arm'] == 'taught' and r['seed'] == 0)
    assert abs(share(rows) - taught['accuracy']) < .006                      # the same student, prepared the same way
    out = libkd('predict', tmp_path/'run'/'best', data/'test', '--out', answers)             # be it a teacher or a student
    assert out.returncode == 0 and abs(share(pd.read_csv(answers, dtype={'class': str})) - result['best']['accuracy']) < .006


SHORT = ['-p', 'steps=4', 'teacher_steps=4', 'student_args=depth:1', 'seeds=2', 'views=1', 'bs=16', 'jobs=1', 'check=no', 'as_long=no', 'size=16']


def short_run(tmp_path, *words):
    "(result, table by arm) of a run that learns nothing"
    data = some_digits(tmp_path/'data', train=8, valid=6, test=6)
    done = libkd('run', data, '--folder', tmp_path/'run', *SHORT, *words)
    assert done.returncode == 0, done.stderr
    result = runs.read_json(tmp_path/'run'/'result.json')
    return result, {r['arm']: r for r in result['table']}


@pytest.mark.slow
def test_a_published_teacher_runs_alone(tmp_path):
    "As on photographs by default; in the picture the untaught student stands in the place of a second teacher"
    if not PACKAGED['efficientnet_lite0'].there(): pytest.skip('needs libkd[pretrained]')
    result, table = short_run(tmp_path, 'conv=efficientnet_lite0', 'labels=4', 'leave_out=none')
    assert set(table) == {'taught', 'untaught', 'plain ViT', 'efficientnet_lite0'}
    assert 'teacher efficientnet_lite0' in result['fingerprints'] and 'teacher rednet_mini' not in result['fingerprints']
    page = (tmp_path/'run'/'distill.ipynb').read_text(encoding='utf-8')
    assert 'efficientnet_lite0 and untaught decide differently' in page and (tmp_path/'run'/'best').is_dir()


@pytest.mark.slow
def test_a_teacher_that_does_not_teach_costs_the_student_nothing(tmp_path):
    result, table = short_run(tmp_path, 'leave_out=rednet_mini', 'teacher_steps=60')
    own = np.mean([r['seconds'] for r in result['runs'] if r['arm'] == 'taught'])
    conv, inv = (table[t]['seconds'] for t in ('resnet_mini', 'rednet_mini'))
    assert own + conv < table['taught']['seconds'] < own + conv + inv


@pytest.mark.slow
def test_the_gain_of_published_weights_is_split(tmp_path):
    if not PACKAGED['efficientnet_lite0'].there(): pytest.skip('needs libkd[pretrained]')
    result, table = short_run(tmp_path, 'arms=split', 'conv=efficientnet_lite0', 'labels=4')
    hard, alone, twice = (f'efficientnet_lite0{s}' for s in (', hard labels', ' alone', ' + resnet_mini'))
    assert {'taught', 'untaught', hard, alone, twice, 'efficientnet_lite0-tuned', 'resnet_mini', 'rednet_mini'} <= set(table)
    *parts, whole = result['split']
    assert [p['part'] for p in parts] == list(arms.PARTS) and sum(p['points'] for p in parts) == pytest.approx(whole['points'])
    assert whole['points'] == pytest.approx(table['taught']['accuracy'] - table['untaught']['accuracy']) and whole['seeds'] == 2
    assert any(s.startswith('Where the ') for s in result['conclusion'])
    assert table[alone]['seconds'] < table[twice]['seconds']                   # another teacher had to be trained for it
    rows = [json.loads(p.read_text()) for p in (tmp_path/'run'/'jobs').glob('*.json')]
    assert len({r['steps'] for r in rows if r.get('arm') in (hard, alone, twice, 'taught', 'untaught')}) == 1
    assert 'Where the gain comes from' in (tmp_path/'run'/'report.html').read_text()


def test_arms_of_a_split_differ_in_one_thing():
    how = arms.split_arms('lite', 'resnet', 'rednet', T=2., weights=.5, label_weight=.25)
    hard, alone, twice, taught = how.values()
    def differs(a, b): return {k for k in a | b if a.get(k) != b.get(k)}
    assert differs(hard, alone) == {'loss', 'T'} and differs(alone, twice) == differs(twice, taught) == {'route', 'weights'}
    heads = [{h: [n for n in names if arm['weights'][n]] for h, names in arm['route'].items()} for arm in how.values()]
    assert heads == [dict(conv=['lite'], inv=[other]) for other in ('lite', 'lite', 'resnet', 'rednet')]
    assert all({n for names in arm['route'].values() for n in names} == {'lite', 'resnet', 'rednet'} for arm in how.values())   # of one store


@pytest.mark.slow
def test_who_reads_layers_is_trained_on_what_the_untaught_student_is_trained_on(tmp_path):
    seen = {}
    class Notes(Callback):
        def before_batch(self):
            if self.training: seen.setdefault(self.whose, []).append((self.y.clone(), self.x.sum().item()))
    data = some_digits(tmp_path/'data', train=8, valid=2, test=2)
    samples = arms.run_samples(str(data), labels=2)
    job = arms.Job('untaught', 0, 'civt_pico', {}, dict(samples=dict(labels=2), dls=dict(size=16, bs=8)), samples.identity(), 12, 2e-3, .05, fresh=4)
    asked = arms.TeacherJob('resnet_mini', job.setting, job.images, 2, 2, check=False)
    places, made = dict(data=str(data), out=str(tmp_path)), arms.arm_learner
    def noted(dls, job, teaching):
        learn = made(dls, job, teaching)
        note = Notes(); note.whose = job.arm
        learn.add_cb(note)
        return learn
    with pytest.MonkeyPatch.context() as m:
        m.setattr(arms, 'arm_learner', noted)
        untaught = arms.train_arm(places, job)
        silent = arms.train_arm(places, replace(job, arm='silent', distill=dict(method='at', control='silent'), teacher=asdict(asked)))
        taught = arms.train_arm(places, replace(job, arm='at', distill=dict(method='at'), teacher=asdict(asked)))
        scaled = arms.train_arm(places, replace(job, arm='scaled', distill=dict(method='at', scaled=True), teacher=asdict(asked)))
    assert 0 < scaled['feature_weight'] != 1000 and scaled['nll'] not in (silent['nll'], taught['nll'])
    seen['look'], seen['scaled'] = seen['scaled'][:1], seen['scaled'][1:]                           # the first batch is looked at beforehand
    assert all((a == b).all() for a, b in zip(seen['look'][0][:1], seen['scaled'][0][:1]))
    for other in ('silent', 'at', 'scaled'):
        assert all((y == z).all() and (y >= 0).all() and a == b for (y, a), (z, b) in zip(seen['untaught'], seen[other], strict=True))
    assert silent['nll'] != taught['nll'] and untaught['files'] != silent['files']


def test_as_many_seconds_are_only_tried_where_they_are_cheap():
    dear = price.Plan(PLAN.work, PLAN.costs, PLAN.how)
    assert [price.seeds_as_long(w, dear) for w in ('yes', 'no', 'auto')] == [3, 0, 0]                # a teacher's 2,000 steps
    cheap = replace(dear, work=replace(dear.work, teacher_steps=10, views=1))
    assert price.seeds_as_long('auto', cheap) == 1
    long = replace(cheap, work=replace(cheap.work, as_long=1))
    assert sum(long.minutes.values()) > sum(cheap.minutes.values()) and price.AS_LONG in str(long) and price.AS_LONG not in str(cheap)


@pytest.mark.slow
def test_every_published_method_runs_through_papermill(tmp_path):
    data = some_digits(tmp_path/'data', train=12, valid=4, test=6)
    methods = [m for m in METHODS if m != 'deit-soft']
    words = ['-p', 'steps=3', 'check=no', 'student_args=depth:3', 'seeds=1', 'views=2', 'jobs=2', f"methods={' '.join(methods)}", 'beside=scaled parts mhca views']
    done = libkd('run', data, '--notebook', 'methods', '--folder', tmp_path/'run', *words)
    assert done.returncode == 0, done.stderr
    result = runs.read_json(tmp_path/'run'/'result.json')
    ways = {m: dict(method=m) for m in methods}
    more, _, once = arms.arms_beside(ways, ['scaled', 'parts', 'mhca', 'views'], 'civt_nano', 3)
    assert more['kd, as the main run']['T'] == 2 and 'T' not in more['deit, as the main run']         # hard answers have none
    assert {'at, scaled', 'co-advise, as the main run', 'cakd, PCA only', 'cakd, GL only', 'untaught, MHCA', 'dearkd, MHCA', 'kd, one view'} <= set(more)
    assert {r['arm'] for r in result['table']} == {'untaught', *methods, *more, 'resnet_mini', 'rednet_mini', 'mean of the teachers'}
    rows = {r['arm']: r for p in (tmp_path/'run'/'jobs').glob('*.json') if 'arm' in (r := runs.read_json(p))}
    assert len({rows[a]['cache'] for a in once}) == 1 and rows['kd, one view']['cache'] != rows['kd']['cache']
    assert all((not rows[m]['cache']) == arms.reads_layers(m) for m in methods)                       # who reads layers sees what the untaught student sees
    assert rows['untaught, MHCA']['args']['conv_attention'] == 1 and rows['untaught, MHCA']['accuracy'] is not None
    assert len(result['conclusion']) == 1 + len(methods) + len(more) and all(s.startswith('NOT ENOUGH RUNS') for s in result['conclusion'][1:])
    assert result['conclusion'][0] == result['best']['why'] and (tmp_path/'run'/'best'/'model.safetensors').exists()
    assert (tmp_path/'run'/'report.html').exists()

SETTING = dict(samples=dict(labels=0, valid=.2, seed=0, size=0), dls=dict(size=8, bs=16, mix=0., flip=False, seed=0))


def jobs_on(data, setting=SETTING, steps=20, fresh=4, **kw):
    "A student's and a teacher's job about the images of a folder"
    images = arms.run_samples(str(data), **setting['samples']).identity()
    student = arms.Job('untaught', 0, 'vit_nano', dict(depth=2), setting, images, steps, 1e-3, 0., fresh, **kw)
    return student, arms.TeacherJob('resnet_mini', setting, images, steps, fresh, check=False)


@pytest.mark.slow
def test_an_arm_that_reads_layers_asks_its_teacher(tmp_path):
    "Also in a process that has not seen `libkd.all`"
    data = some_digits(tmp_path/'data', train=8, valid=2, test=2)
    student, teacher = jobs_on(data, steps=1, fresh=1)
    places = dict(data=str(data), out=str(tmp_path), cache=str(tmp_path/'cache'))
    taught_by = arms.run_teacher(places, teacher)
    store = arms.StoreJob(SETTING, teacher.images, 2, (taught_by.fingerprint,), check=False)
    arms.build_cache(places, [taught_by], store, price.How(1))
    job = asdict(replace(student, arm='at', distill=dict(method='at'), cache=store.key, teacher=asdict(teacher)))
    code = f"from libkd.arms import do_job\nprint(do_job({places!r}, **{job!r})['history'][-1])"
    out = subprocess.run([PYTHON, '-W', 'ignore', '-c', code], capture_output=True, text=True, cwd=tmp_path)
    assert "'at'" in out.stdout, out.stderr

@pytest.mark.slow
def test_several_processes_build_the_store_of_one(tmp_path, monkeypatch):
    said = []
    @contextlib.contextmanager
    def after(say):
        yield
        said.append(say())
    monkeypatch.setattr(arms, 'heartbeat', after)
    data = some_digits(tmp_path/'data', train=8, valid=2, test=2)
    _, asked = jobs_on(data, steps=1, fresh=1)
    teacher = arms.run_teacher(dict(data=str(data), out=str(tmp_path)), asked)
    store = arms.StoreJob(SETTING, asked.images, 3, (teacher.fingerprint,), check=False)
    for n in (1, 2): arms.build_cache(dict(data=str(data), cache=str(tmp_path/f'{n}')), [teacher], store, price.How(n))
    files = {n: runs.read_json(tmp_path/f'{n}'/'manifest.json')['files'] for n in (1, 2)}
    assert files[1] == files[2] and len(files[1]) == 2 + 3 + 3
    assert said == ['· stored answers: 3 of 3 shards']                  # of the two processes; one shows a bar of its own


def test_many_short_epochs_are_validated_now_and_then(tmp_path, monkeypatch, capsys):
    "A few labelled images and no others: an epoch is two batches"
    data = some_digits(tmp_path/'data', train=4, valid=2, test=2)
    monkeypatch.setattr(arms, 'progress', lambda *a: files.progress(*a, every=0.))
    job = jobs_on(data, steps=50, fresh=2)[0]
    row = arms.train_arm(dict(data=str(data), out=str(tmp_path)), job)
    assert re.search(f'{job.arm}, seed 0: .* 50/50', capsys.readouterr().out)                  # and it says how it gets on
    assert [round(25*h['done']) for h in row['history']] == [*range(2, 26, 2), 25] and all(np.isfinite(h['accuracy']) for h in row['history'])

def test_a_teacher_takes_at_least_as_many_steps_as_were_asked_for(tmp_path):
    "Also where few images have labels, and a pass through them is short; and it says how it went"
    data = some_digits(tmp_path/'data', train=20, valid=4, test=2)
    few = dict(SETTING, samples=dict(SETTING['samples'], labels=4))
    row = arms.train_teacher(dict(data=str(data), out=str(tmp_path)), jobs_on(data, few, steps=31)[1])
    made, = (tmp_path/'teachers').iterdir()
    assert runs.read_json(made/'teacher.json')['identity']['epochs'] == 16                       # of two batches each
    assert [round(16*done) for done, _ in row['curve']] == [13, 15, 16] and row['images'] == 40
    assert row['curve'][-1][1] == runs.read_json(made/'teacher.json')['accuracy']


def test_looking_at_a_teacher_does_not_change_it(tmp_path, monkeypatch):
    data = some_digits(tmp_path/'data', train=8, valid=4, test=2)
    job = jobs_on(data)[1]
    looked = arms.run_teacher(dict(data=str(data), out=str(tmp_path/'a')), job)
    monkeypatch.setattr(arms.Looks, '_accuracy', lambda self: 0.)
    assert arms.run_teacher(dict(data=str(data), out=str(tmp_path/'b')), job).fingerprint == looked.fingerprint


@pytest.mark.parametrize('untaught, tries', [(2., 2), (-1., 1)])
def test_teachers_below_the_untaught_student_are_trained_once_more(tmp_path, monkeypatch, untaught, tries):
    asked = []
    class Known:
        def __init__(self, job): self.name, self.accuracy = job.name, job.steps/100
    monkeypatch.setattr(arms, 'run_teacher', lambda places, job, looks=None: Known(job))
    def jobs(fn, todo, *a, **kw):
        asked.append([j.get('steps') for j in todo if 'name' in j])
        return pd.DataFrame([dict(j, seconds=60.) if 'name' in j else dict(j, valid_accuracy=untaught) for j in todo])
    monkeypatch.setattr(arms, 'run_jobs', jobs)
    student = arms.Job('untaught', 0, 'vit_nano', {}, {}, {}, 20, 1e-3, 0., 4)
    ready = arms.prepare_teachers(dict(out=str(tmp_path)), [arms.TeacherJob(n, {}, {}, 20, 4) for n in ('conv', 'inv')], price.How(2), [student])
    assert asked == [[20, 20], [40, 40]][:tries] and {a.steps for a in ready.asked} == {20*tries}
    assert ready.seconds == dict.fromkeys(('conv', 'inv'), 60.*tries)
    assert any('trained once more, for 40' in s for s in ready.warnings) == (tries == 2)
    assert any('about 2.0 minutes: -p teacher_steps 80' in s for s in ready.warnings) == (tries == 2)


def test_a_published_teacher_below_the_untaught_student_is_not_trained_longer(tmp_path, monkeypatch):
    "Its last layer is fitted, in no steps, so twice as many are the same"
    class Known: name, accuracy = 'efficientnet_lite0', .2
    monkeypatch.setattr(arms, 'run_teacher', lambda places, job, looks=None: Known())
    asked = []
    def jobs(fn, todo, *a, **kw):
        asked.append(todo)
        return pd.DataFrame([dict(j, seconds=60., curve=np.nan) if 'name' in j else dict(j, valid_accuracy=.5) for j in todo])
    monkeypatch.setattr(arms, 'run_jobs', jobs)
    student = arms.Job('untaught', 0, 'vit_nano', {}, {}, {}, 20, 1e-3, 0., 4)
    ready = arms.prepare_teachers(dict(out=str(tmp_path)), [arms.TeacherJob(Known.name, {}, {}, 20, 4)], price.How(1), [student])
    assert len(asked) == 1 and ready.seconds == {Known.name: 60.}
    assert any('below the untaught student' in s for s in ready.warnings) and 'teacher_steps' not in str(ready.warnings)


def test_images_that_are_exchanged_under_their_names_make_everything_anew(tmp_path):
    "One other pixel, same names, labels and times: another job, and a worker that meets them by surprise refuses"
    data, places = some_digits(tmp_path/'data', train=8, valid=2, test=2), dict(data=str(tmp_path/'data'), out=str(tmp_path))
    before, asked = jobs_on(data, steps=2)
    once = arms.do_jobs(places, [asked, before], price.How(1))
    file = next((data/'train').glob('*/*'))
    was = file.stat()
    pixels = np.array(Image.open(file)); pixels[0, 0] ^= 1
    Image.fromarray(pixels).save(file)
    os.utime(file, ns=(was.st_atime_ns, was.st_mtime_ns))
    with pytest.raises(UserError, match='pixels'): arms.train_arm(places, before)
    after, asked_now = jobs_on(data, steps=2)
    assert after.name != before.name and arms.do_jobs(places, [asked_now, after], price.How(1))['seconds'].notna().all()
    assert len(list((tmp_path/'jobs').glob('*.json'))) == 4 and len(once) == 2


def test_a_run_with_other_views_trains_other_teachers(tmp_path):
    data = some_digits(tmp_path/'data', train=8, valid=2, test=2)
    two, again, one = (arms.run_teacher(dict(data=str(data), out=str(tmp_path)), jobs_on(data, fresh=fresh)[1]) for fresh in (2, 2, 1))
    assert two.fingerprint == again.fingerprint != one.fingerprint

def test_a_cache_that_could_not_be_built_stops_the_run_with_its_reason():
    with pytest.raises(ValueError, match='35 of 250'): arms.finished(pd.DataFrame([dict(key='k', error='ChanceError: right on 35 of 250')]))
    assert len(arms.finished(pd.DataFrame([dict(key='k', seconds=1.)]))) == 1
    assert len(arms.finished(pd.DataFrame([dict(key='k', seconds=1.), dict(arm='untaught', error='ValueError: of an arm beside it')])[:1])) == 1


@pytest.mark.slow
def test_every_line_of_the_front_page_can_be_run_twice(tmp_path, monkeypatch):
    "A reader of a notebook runs a cell again, or all of them: everything below `dls` is made anew, loaded or opened"
    import ast
    from fresh import ten_lines
    code = ten_lines() + '\nstudent.explore_disagreement()'
    for old, new in (('cluttered_digits()', 'cluttered_digits(train=60, unlabelled=60, valid=60, test=20)'), ('_mini\', dls)', '_mini\', dls, epochs=2, check=False)'),
                     ('views=4)', 'views=4, check=False)'), ('fit_one_cycle(10)', 'fit_one_cycle(1)')):
        assert old in code
        code = code.replace(old, new)
    monkeypatch.chdir(tmp_path)
    lines, names = ast.parse(code).body, {}
    assert len(lines) == 10
    for line in [o for o in lines for _ in range(2)] + lines: exec(compile(ast.unparse(line), '<ten lines>', 'exec'), names)
    assert len(list((tmp_path/'teachers').iterdir())) == 2                   # the second call found the first one's
    assert names['student'].recorder.values and names['student'].model is not names['plain'].model


@pytest.mark.slow
def test_the_study_of_views_runs_through_papermill(tmp_path):
    data = some_digits(tmp_path/'data', train=30, valid=10, test=10)
    done = runs.run(Path(__file__).parents[1]/'nbs'/'claims'/'view_policies.ipynb', tmp_path/'run', show=False, data=data, teacher_epochs=12, epochs=1, seeds=2, jobs=1)
    assert done == {} and len(list((tmp_path/'run'/'jobs').glob('*.json'))) == 2*6
    cells = runs.read_json(tmp_path/'run'/'view_policies.ipynb')['cells']
    table = str([o for c in cells if 'with answers' in ''.join(c['source']) for o in c.get('outputs', [])])
    assert all(p in table for p in ('untaught', 'clean', 'finite_1', 'finite_4', 'replay', 'live')) and 'NOT ENOUGH RUNS' in table


MINE = '''
from libkd.all import METHODS, Method, MultiTeacherDistill

class Mine(MultiTeacherDistill):
    "Says which process it works in"

METHODS['mine'] = Method('mine', 'Ours', 'A. Newcomer', 2026, '', exact='all of it', reading='nothing',
                         settings=dict(T=2., weights=.5, label_weight=.5), callback=Mine)
'''


@pytest.mark.slow
def test_a_method_of_ones_own_runs_in_worker_processes_and_in_a_sweep_with_its_controls(tmp_path):
    data, mine = some_digits(tmp_path/'data', train=12, valid=4, test=6), tmp_path/'my.py'
    mine.write_text(MINE, encoding='utf-8')
    words = ['-p', 'steps=3', 'check=no', 'student_args=depth:3', 'seeds=1', 'views=2', 'jobs=2', f'imports={mine}', 'methods=mine']
    done = libkd('run', data, '--notebook', 'methods', '--folder', tmp_path/'run', *words)
    assert done.returncode == 0, done.stderr
    result = runs.read_json(tmp_path/'run'/'result.json')
    controls = ['mine, teachers silent', 'mine, answers shuffled']
    assert {r['arm'] for r in result['table']} == {'untaught', 'mine', *controls, 'resnet_mini', 'rednet_mini', 'mean of the teachers'}
    rows = [runs.read_json(p) for p in (tmp_path/'run'/'jobs').glob('*.json')]
    said = {r['arm']: r['distill'].get('code') for r in rows if r.get('distill')}
    assert said == dict.fromkeys(['mine', *controls], files.sha256(mine)) and result['fingerprints']['imports'] == files.sha256(mine)
    grid = dict(lr=[.001], seeds=[1])                      # `seeds` of the notebook, not of the sweep
    table = runs.sweep('methods', grid, folder=tmp_path/'sweep', n_jobs=2, data=str(data), steps=2, check=False, student_args='depth:3',
                       views=2, jobs=1, imports=str(mine), methods='mine')
    assert 'error' not in table and table['mine accuracy'].notna().all()


def test_controls_hear_nothing_or_something_else():
    import tiny, torch
    job = arms.Job('a', 0, 'vit_nano', dict(depth=1, embed_dim=32, num_heads=2), dict(samples={}, dls={}), {}, 1, .001, 0., 1)
    teacher = tiny.teacher('conv', bias='conv')
    quiet = arms.taught_how({}, replace(job, distill=arms.controls('kd', '')['kd, teachers silent']), [teacher])
    terms, _ = first_terms(learn := arms.arm_learner(tiny.loaders(), job, quiet), learn.multi_teacher_distill)
    assert terms['conv'] == 0 < terms['label']
    with pytest.raises(UserError, match='no file'): arms.taught_how(dict(imports='nowhere.py'), replace(job, distill=dict(method='kd', code='0'*64)), [])
