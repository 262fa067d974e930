"""The course: what a student gets, what a check accepts, and what a notebook cannot do to its grade."""
import ast, html, importlib.util, json, re, sys, tomllib
from functools import partial
from pathlib import Path, PureWindowsPath
from zipfile import ZipFile
import numpy as np, pandas as pd, pytest, torch
from libkd import course

ROOT = Path(__file__).resolve().parents[1]
LESSONS = {n: json.loads(p.read_text(encoding="utf-8")) for n, p in course.lessons().items()}
LESSONS = {n: nb for n, nb in LESSONS.items() if course.checks_in(nb)}      # the other pages of the folder are read, not solved
WRONG = tomllib.loads((ROOT/'tests'/'wrong_answers.toml').read_text(encoding='utf-8'))
TRAINS = {'04_stored_answers'}                          # whose solutions train for some seconds
CHECKS = [pytest.param(lesson, name, marks=[pytest.mark.slow]*(lesson in TRAINS))
          for lesson, nb in LESSONS.items() for name in course.checks_in(nb)]


def tagged(nb, tag): return [course.source_of(c) for c in nb['cells'] if c['cell_type'] == 'code' and tag in course.tags_of(c)]


def namespace(lesson, how, seed=0, wrong=None):
    "What a student's kernel knows after `setup` and the exercises: solved, or as they were handed out"
    nb, names = LESSONS[lesson], {}
    for source in tagged(nb, 'setup'): exec(re.sub(r'(?m)^seed = 0\b', f'seed = {seed}', source), names)
    for source in tagged(nb, 'solution'): exec(source if how == 'solved' else course.without_solution(source), names)
    if wrong: exec(wrong, names)
    return names


@pytest.fixture(scope='module')
def answers():
    "Answers of a lesson are made once"
    made = {}
    def get(lesson, how, seed=0):
        if (lesson, how, seed) not in made: made[lesson, how, seed] = namespace(lesson, how, seed)
        return made[lesson, how, seed]
    return get


def verdict(lesson, name, names, seed=0): return course.checks_in(LESSONS[lesson])[name].verdict(partial(course.respond, names), seed=seed)


@pytest.mark.parametrize('lesson, name', CHECKS)
@pytest.mark.parametrize('seed', [0, 5736])
def test_the_solution_is_accepted(answers, lesson, name, seed):
    said = verdict(lesson, name, answers(lesson, 'solved', seed), seed)
    assert said.passed is not False, said


@pytest.mark.parametrize('lesson, name', CHECKS)
def test_no_answer_is_not_accepted(answers, lesson, name):
    said = verdict(lesson, name, answers(lesson, 'empty'))
    assert said.passed is False and 'Error' not in said.says.replace('AssertionError', ''), f'a beginner reads: {said}'


@pytest.mark.parametrize('lesson, name', CHECKS)
def test_a_plausible_wrong_answer_is_not_accepted(answers, lesson, name):
    "tests/wrong_answers.toml holds at least one for each check; its code runs after the solutions"
    for code in WRONG[lesson][name]:
        names = dict(answers(lesson, 'solved'))
        exec(code, names)
        said = verdict(lesson, name, names)
        assert said.passed is False, f'accepted: {code}'


@pytest.mark.parametrize('lesson, name', CHECKS)
def test_a_number_may_come_as_a_tensor(answers, lesson, name):
    "Who has computed with tensors has one in the end, and is right all the same"
    names = dict(answers(lesson, 'solved'))
    names |= {n: torch.tensor(names[n]) for n in course.checks_in(LESSONS[lesson])[name].needs if isinstance(names.get(n), float)}
    said = verdict(lesson, name, names)
    assert said.passed is not False, said


@pytest.mark.parametrize('lesson', LESSONS)
def test_a_students_copy_gives_nothing_away(lesson):
    nb = LESSONS[lesson]
    copy = course.students_copy(nb, lesson, 'Ada')
    text = '\n'.join(c['source'] for c in copy['cells'])
    hidden = [line.strip() for s in tagged(nb, 'solution') for part in re.findall(r'(?s)### BEGIN SOLUTION(.*?)### END', s) or [s] for line in part.splitlines()]
    hidden += [line.strip() for s in tagged(nb, 'check') for line in course.split_check(s)[0].splitlines()]
    shown = '\n'.join(course.source_of(c) for c in nb['cells'] if not {'solution', 'check'} & set(course.tags_of(c)))
    shown += '\n'.join(map(course.without_solution, tagged(nb, 'solution')))                # what was asked may stand there
    assert not [h for h in hidden if len(h) > 12 and h in text and h not in shown]
    assert not [c for c in copy['cells'] if c['cell_type'] == 'code' and (c['outputs'] or c['execution_count'])]
    for c in copy['cells']:
        if c['cell_type'] == 'code': ast.parse(re.sub(r'(?m)^\s*[%!].*$', '', c['source']))
    assert text.count('checks_of(') == len(course.checks_in(nb)) >= 3
    assert '# your answer' in text and '...\n...' not in text, 'one place for an answer, not two'


@pytest.mark.parametrize('lesson', LESSONS)
def test_a_lesson_says_what_it_needs_gives_and_takes(lesson):
    nb = LESSONS[lesson]
    text = '\n'.join(course.source_of(c) for c in nb['cells'] if c['cell_type'] == 'markdown')
    for part in ('**You need**', '**Afterwards you can**', '## Summary', '## References'): assert part in text, part
    minutes = re.search(r'(\d+) minutes? on two cores', text)
    assert minutes and int(minutes[1]) <= 10
    assert len(tagged(nb, 'predict')) >= 2 and re.search(r'https://', text.split('## References')[1])
    assert (course.lessons()[lesson]).stat().st_size <= 1_000_000


@pytest.mark.parametrize('lesson', LESSONS)
def test_what_a_prediction_asks_is_not_answered_before_the_cell_is_run(lesson):
    cells = course.students_copy(LESSONS[lesson], lesson)['cells']
    below = [b['source'] for a, b in zip(cells, cells[1:]) if 'predict' in course.tags_of(a) and b['cell_type'] == 'markdown']
    open_ = [s[:60] for s in below if not re.match(r'<details>|#+ |\*\*(Exercise|Predict)', s)]
    assert below and not open_
    assert all(s.count('<details>') == s.count('</details>') for s in below)
    shut = re.findall(r'(?s)<details>.*?</details>', '\n'.join(below))
    assert not [s for s in shut if re.search(r'(?m)^(## |\*\*Exercise|\*\*Predict)', s)], 'a question is shut away'


def shown(page): return ''.join(''.join(o.get('text', '') or o.get('data', {}).get('text/plain', '')) + '\n' for c in json.loads((ROOT/'nbs'/page).read_text(encoding='utf-8'))['cells'] for o in c.get('outputs', []))


def pivoted(text, head, names):
    "{(arm, seed): percent} of a table as a page shows it: a line a seed"
    body = text.split(head)[1]
    return {(a, int(m[1])): float(v) for m in re.finditer(r'(?m)^(\d) +([\d.]+(?: +[\d.]+)+)$', body) for a, v in zip(names, m[2].split())}


@pytest.mark.parametrize('file, page', [('rows_9.csv', 'claims/cakd.ipynb'), ('rows_10.csv', 'claims/datafree.ipynb'), ('rows_4.csv', 'claims/view_policies.ipynb'), ('rows_1.csv', 'runs/distill.ipynb')])
def test_stored_rows_are_what_the_pages_show(file, page):
    rows, text = pd.read_csv(course.prepared(file)), shown(page)
    if file in ('rows_9.csv', 'rows_10.csv'): found = {(a, int(s)): float(v) for a, s, v in re.findall(r'of \d+: (.+), seed (\d): ([\d.]+)%', text)}
    elif file == 'rows_4.csv': found = pivoted(text, 'policy', ['clean', 'finite_1', 'finite_4', 'live', 'replay', 'untaught'])
    else:
        found = pivoted(text, 'taught  untaught  plain ViT', ['CivT, taught', 'CivT', 'plain ViT'])
        found |= {(a, s): float(re.search(rf'\d +{n} +([\d.]+)', text)[1]) for a, n in (('convolution teacher', 'resnet_mini'), ('involution teacher', 'rednet_mini')) for s in range(3)}
    stored = {(r.arm, r.seed): r.accuracy*100 for r in rows.itertuples()}
    assert stored.keys() <= found.keys() and not {k: (v, found[k]) for k, v in stored.items() if abs(v - found[k]) > .051}


def test_stored_effects_are_what_the_pages_show():
    "Lessons 5 and 8 read effects with their intervals, in points"
    text, found, fraction = shown('claims/dearkd.ipynb').split('fraction arm')[1], {}, None
    for m in re.finditer(r'(?m)^(\d\.\d\d)? +(DeiT|DearKD(?:, MHCA)?) +([-\d.]+) +([-\d.]+) +([-\d.]+) +[A-Z]', text):
        fraction = float(m[1]) if m[1] else fraction
        found.setdefault((fraction, m[2]), tuple(map(float, m.groups()[2:])))
    rows = pd.read_csv(course.prepared('rows_8.csv'))
    assert {(r.fraction, r.arm): (r.difference, r.low, r.high) for r in rows.itertuples()} == found and len(found) == 12
    page = shown('claims/co_advise.ipynb')
    names = {'strong conv': 'CivT, conv and conv', 'nobody': 'CivT, conv alone', 'weak conv': 'conv and weak conv', 'strong inv': 'conv and late inv'}
    table = page[page.rindex('mean  difference'):]
    for r in pd.read_csv(course.prepared('rows_5.csv')).set_index('partner').loc[list(names)].itertuples():
        said = re.search(rf'(?m)^{names[r.Index]} +([-\d.]+) +([-\d.]+) +([-\d.]+) +([-\d.]+)', table)
        assert tuple(map(float, said.groups())) == (r.student, r.difference, r.low, r.high), r.Index


def test_a_folder_holds_all_that_a_course_without_network_needs(tmp_path):
    course.write_course(tmp_path/'a room', 'Ada')
    with ZipFile(tmp_path/'a room'/'material.zip') as z: names = z.namelist()
    assert {n.split('/')[0] for n in names} == {'prepared', 'digits', 'clothes'} and all(f'prepared/{p.name}' in names for p in course.prepared().glob('*.csv'))
    assert not [n for n in names if '_work' in n or PureWindowsPath(n).is_reserved() or re.search(r'[<>:"|?*\\\\]', n)]
    fetched = re.compile(r'https?://|urlopen|requests|hf[-_]hub|pretrained=True')
    assert not [c['source'] for nb in LESSONS.values() for c in nb['cells'] if c['cell_type'] == 'code' and fetched.search(course.source_of(c))]


@pytest.mark.parametrize('lesson', LESSONS)
def test_a_lesson_runs_in_any_folder_of_any_system(lesson):
    "No path that only this folder or this system has: what a lesson reads it finds by `prepared`, what it writes is a plain name"
    texts = [n.value for c in LESSONS[lesson]['cells'] if c['cell_type'] == 'code' for n in ast.walk(ast.parse(course.source_of(c)))
             if isinstance(n, ast.Constant) and isinstance(n.value, str) and '\n' not in n.value]
    assert not [t for t in texts if re.match(r'[/~]|\.\.?/|[A-Za-z]:\\\\', t)]


def test_slides_hold_questions_and_what_comes_out_and_fetch_nothing(tmp_path):
    page = course.write_slides(tmp_path/'slides.html').read_text(encoding='utf-8')
    parts = {n: course.slides_of(nb) for n, nb in LESSONS.items()}
    assert page.count('<section>') == sum(map(len, parts.values())) and all(5 <= len(p) <= 15 for p in parts.values())
    for name, nb in LESSONS.items():
        told = [(c['id'], c['outputs'], bool(c['metadata']['alt'])) for slide in parts[name] for c in slide if c['cell_type'] == 'code']
        assert told == [(c['id'], c['outputs'], True) for c in nb['cells'] if 'predict' in course.tags_of(c) and c['outputs']]
    bare = re.sub(r'<a [^>]*>', '', page)
    assert not re.search(r'(?:src|href)="?(?:https?:)?//|@import|url\((?!%23|#)', bare) and '<math' in page and 'BEGIN SOLUTION' not in page
    assert all(re.search(r'alt="[^"]{5,}', i) for i in re.findall(r'<img[^>]*>', page))


def test_a_figure_of_ones_own_follows_from_the_name():
    assert course.seed_of('Ada  Lovelace ') == course.seed_of('ada lovelace') != course.seed_of('Alan Turing')
    source = 'seed = 0   # yours'
    nb = dict(cells=[dict(cell_type='code', id='a', metadata=dict(tags=['setup']), source=source)], metadata=dict(kernelspec={}))
    assert f"seed = {course.seed_of('Ada')}" in course.students_copy(nb, 'x', 'Ada')['cells'][0]['source']


# -- grading -----------------------------------------------------------------------------------------------------------
def code(source, *tags): return dict(cell_type='code', id=f'c{abs(hash(source)) % 10**8}', metadata=dict(tags=list(tags)), source=source, outputs=[], execution_count=None)

SQUARE = '''def square(x):
    ### BEGIN SOLUTION
    return x*x
    ### END SOLUTION'''
IS_SQUARE = '''@check
def is_square(square, seed):
    "a square"
    import torch
    x = torch.arange(5.) + seed
    assert torch.allclose(square(x), x*x), 'what is two times two?'

is_square(square, seed)'''
TOY = dict(cells=[code('import torch\nfrom libkd.course import *\nseed = 0', 'setup'), code('raise SystemExit("hours of training")'), code(SQUARE, 'solution'), code(IS_SQUARE, 'check')],
           metadata=dict(kernelspec=dict(name='python3', display_name='python3')), nbformat=4, nbformat_minor=5)
CHEAT = '''import libkd.course, torch, builtins
class Yes(torch.Tensor):
    def __eq__(self, other): return True
def square(x): return 0*x
torch.allclose = lambda *a, **k: True
libkd.course.check.verdict = lambda *a, **k: libkd.course.Verdict('is_square', True, 'patched')
libkd.course.checks_of = lambda *a: {'is_square': lambda *a: 'passed'}
is_square = lambda *a: print('✓ · is_square: a square')
print({"reply": [0., 1., 4., 9., 16.]})
del libkd'''


@pytest.fixture
def toy(tmp_path, monkeypatch):
    "A course of one lesson, and a function that hands in a notebook with these cells in the place of the exercise"
    lesson = tmp_path/'course'/'01_toy.ipynb'
    lesson.parent.mkdir()
    lesson.write_text(json.dumps(TOY))
    monkeypatch.setattr(course, 'lessons', lambda: {'01_toy': lesson})
    box = tmp_path/'box'
    box.mkdir()
    def hand_in(name, *sources, **about):
        nb = course.students_copy(TOY, '01_toy', name)
        nb['cells'][2:3] = [code(s) for s in sources]
        nb['metadata']['libkd'].update(about)
        (box/f'{name}.ipynb').write_text(json.dumps(nb))
    return box, hand_in


def test_what_runs_is_the_lessons_setup_and_what_the_student_wrote(toy):
    nb = course.students_copy(TOY, '01_toy', 'Ada')
    nb['cells'][0]['source'] = 'seed = 0'                       # somebody else's figures
    nb['cells'].insert(2, code('helper = 1'))
    steps = course.steps_of(nb, TOY, '01_toy', course.seed_of('Ada'))
    sources = [s.source or s.check for s in steps]
    assert f"seed = {course.seed_of('Ada')}" in sources[0] and sources[-1] == 'is_square' and 'helper = 1' in sources
    assert not [s for s in sources if 'hours' in s or s == 'seed = 0']
    for c in nb['cells']: c['id'] = 'lost' + c['id']            # some editors give new ids
    assert not [s for s in course.steps_of(nb, TOY, '01_toy') if 'hours' in s.source]


def test_an_answer_may_build_on_what_the_lesson_has_made():
    "Cells of the lesson that are no `setup` run for a grade if an answer uses their names, and those that these use; training that nobody asks about does not"
    made, used, idle = code('scale = 3'), code('stats = scale + 1'), code('hours = train()')
    lesson = dict(TOY, cells=[TOY['cells'][0], made, used, idle, *TOY['cells'][2:]])
    nb = course.students_copy(lesson, '01_toy')
    nb['cells'][-2]['source'] = 'def square(x): return x*x*stats/4'
    sources = [s.source for s in course.steps_of(nb, lesson, '01_toy')]
    assert [s for s in sources if 'scale' in s or 'stats' in s][:2] == ['scale = 3', 'stats = scale + 1'] and 'hours = train()' not in sources
    nb['cells'][-2]['source'] = 'def square(x): return x*x'
    assert not [s for s in course.steps_of(nb, lesson, '01_toy') if 'scale' in s.source]
    again = dict(lesson, cells=[*lesson['cells'][:2], code('scale = 7', 'setup'), *lesson['cells'][2:]])      # one name twice: the later one counts
    nb = course.students_copy(again, '01_toy')
    nb['cells'][-2]['source'] = 'def square(x): return x*x*scale/7'
    sources = [s.source for s in course.steps_of(nb, again, '01_toy')]
    assert 'scale = 7' in sources and 'scale = 3' not in sources
    del nb['cells'][2]                                                       # a setup that the student has deleted runs first
    assert [s.source for s in course.steps_of(nb, again, '01_toy')][:2] == ['scale = 7', TOY['cells'][0]['source']]


def test_an_array_comes_to_a_students_function_as_one():
    f = course.answer(partial(course.respond, {'f': lambda x: x.reshape(2, -1).mean(1)}), 'f')
    assert f(np.arange(4.)) == [.5, 2.5]
    assert course.decode(course.encode(np.arange(4.))) == [0, 1, 2, 3], 'what a student answers may be compared as a list'


def test_files_of_one_name_in_two_folders_are_two_rows(toy):
    box, hand_in = toy
    for who in ('ada', 'alan'):
        (box/who).mkdir()
        (box/who/'01.ipynb').write_text('{}')
    assert list(course.grade(box)['file']) == ['ada/01.ipynb', 'alan/01.ipynb']


def test_a_text_for_a_person_is_not_counted_as_wrong(toy, monkeypatch):
    box, hand_in = toy
    hand_in('ada', 'pass')
    monkeypatch.setattr(course, '_asked_rows', lambda *a: [dict(check=c, passed=p, says='') for c, p in (('a', True), ('b', False), ('c', None))])
    said = []
    course.grade(box, say=said.append)
    assert said == ['1 of 1 · ada.ipynb: 1 of 2, 1 to be read']


@pytest.mark.parametrize('missing', ['nbclient', 'ipykernel'])
def test_without_the_extra_it_is_a_sentence(toy, monkeypatch, missing):
    box, hand_in = toy
    hand_in('honest', 'def square(x): return x*x')
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(course.UserError, match=rf"{missing} is not installed: pip install 'libkd\[notebooks\]'"): course.grade(box)


def test_lessons_to_execute_are_chosen_by_number():
    spec = importlib.util.spec_from_file_location('run_course', ROOT/'.ci'/'course.py')
    spec.loader.exec_module(made := importlib.util.module_from_spec(spec))
    assert made.chosen([]) == list(course.lessons()) and [n[:2] for n in made.chosen(['02', '09-10'])] == ['02', '09', '10']
    with pytest.raises(SystemExit, match='no lesson has the number 77'): made.chosen(['77'])


@pytest.mark.slow
def test_a_notebook_cannot_grade_itself(toy, capsys):
    box, hand_in = toy
    hand_in('honest', 'def square(x): return x*x')
    hand_in('cheat', CHEAT)
    hand_in('gone', 'def square(x): return x*x', 'del square, torch, check')
    table = course.grade(box, seconds=400, out=box/'grades.csv').set_index('file')
    assert dict(table['passed']) == {'honest.ipynb': True, 'cheat.ipynb': False, 'gone.ipynb': False}
    assert (box/'grades.csv').read_text().count('\n') == 4 and '3 of 3' in capsys.readouterr().out


@pytest.mark.slow
def test_what_never_ends_or_dies_costs_its_own_answer_only(toy):
    box, hand_in = toy
    hand_in('endless', 'while True:\n    try: pass\n    except KeyboardInterrupt: pass', 'def square(x): return x*x')
    hand_in('asleep', 'def square(x):\n    import os\n    os._exit(1)')
    table = course.grade(box, seconds=160).set_index('file')
    assert table.loc['endless.ipynb', 'passed'] == True
    assert table.loc['asleep.ipynb', 'passed'] == False and 'ended its process' in table.loc['asleep.ipynb', 'says']


def test_what_is_no_lesson_is_a_row_that_says_why(toy):
    box, hand_in = toy
    hand_in('old', 'pass', version='00000000')
    hand_in('other', 'pass', lesson='99_else')
    (box/'torn.ipynb').write_text('{"cells": [')
    table = course.grade(box).set_index('file')
    assert 'another version' in table.loc['old.ipynb', 'says'] and 'no lesson' in table.loc['other.ipynb', 'says'] and 'cannot be read' in table.loc['torn.ipynb', 'says']


@pytest.mark.slow
def test_hidden_checks_come_from_a_file(toy):
    box, hand_in = toy
    hand_in('positive', 'def square(x): return x*abs(x)')
    hidden = box/'hidden.py'
    hidden.write_text('from libkd.course import check\nlesson = "01_toy"\n@check\ndef of_negatives(square):\n    "of −2"\n    assert square(-2) == 4')
    table = course.grade(box, [hidden], seconds=400).set_index('check')
    assert dict(table['passed']) == {'is_square': True, 'of_negatives': False}
    hidden.write_text('lesson = "01_toi"')
    with pytest.raises(course.UserError, match='Did you mean'): course.grade(box, [hidden])


# -- the how-to pages --------------------------------------------------------------------------------------------------
def on_a_worker(x):
    from distributed import get_worker
    return dict(double=2*x, worker=str(get_worker().name))          # get_worker raises anywhere else


@pytest.mark.slow
def test_jobs_run_on_a_dask_cluster_and_stay_done(tmp_path):
    "nbs/howto/cluster.ipynb shows it with two processes; here two threads are the cluster"
    distributed, joblib = pytest.importorskip('distributed'), pytest.importorskip('joblib')
    from libkd.runs import run_jobs
    jobs = [dict(x=x) for x in range(4)]
    with distributed.LocalCluster(n_workers=2, threads_per_worker=1, processes=False, dashboard_address=None) as cluster, distributed.Client(cluster):
        with joblib.parallel_config(backend='dask'): rows = run_jobs(on_a_worker, jobs, tmp_path/'jobs', n_jobs=2)
    assert list(rows['double']) == [0, 2, 4, 6] and 'error' not in rows and rows['worker'].notna().all()
    assert list(run_jobs(on_a_worker, jobs, tmp_path/'jobs')['worker']) == list(rows['worker']), 'done jobs are not done again, without a cluster either'


def test_the_page_for_a_first_hour_runs_by_itself():
    "The page is in the output, whole: three networks, and nothing that is fetched"
    cells = json.loads((ROOT/'nbs'/'howto'/'first_hour.ipynb').read_text(encoding='utf-8'))['cells']
    (frame,) = [''.join(o['data']['text/html']) for c in cells for o in c.get('outputs', []) if '<iframe' in ''.join(o.get('data', {}).get('text/html', ''))]
    page = html.unescape(re.search(r'srcdoc="([^"]*)"', frame)[1])
    assert page.startswith('<!doctype html>') and '</html>' in page and all(n in page for n in ('resnet_mini', 'rednet_mini', 'student'))
    assert not re.search(r'(?:src|href)=["\']?(?:https?:)?//|@import', page)
    text = '\n'.join(course.source_of(c) for c in cells if c['cell_type'] == 'markdown')
    assert len(re.findall(r'(?m)^### \d\. .*\?$', text)) == 3 == text.count('**Predict**')
