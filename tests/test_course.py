"""The course: what a student gets, what a check accepts, and what a notebook cannot do to its grade."""
import ast, json, re, tomllib
from functools import partial
from pathlib import Path
import pytest
from libkd import course

ROOT = Path(__file__).resolve().parents[1]
LESSONS = {n: json.loads(p.read_text(encoding="utf-8")) for n, p in course.lessons().items()}
LESSONS = {n: nb for n, nb in LESSONS.items() if course.checks_in(nb)}      # the other pages of the folder are read, not solved
WRONG = tomllib.loads((ROOT/'tests'/'wrong_answers.toml').read_text(encoding='utf-8'))
CHECKS = [(lesson, name) for lesson, nb in LESSONS.items() for name in course.checks_in(nb)]


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


@pytest.mark.parametrize('lesson', LESSONS)
def test_a_lesson_says_what_it_needs_gives_and_takes(lesson):
    nb = LESSONS[lesson]
    text = '\n'.join(course.source_of(c) for c in nb['cells'] if c['cell_type'] == 'markdown')
    for part in ('**You need**', '**Afterwards you can**', '## Summary', '## References'): assert part in text, part
    minutes = re.search(r'(\d+) minutes? on two cores', text)
    assert minutes and int(minutes[1]) <= 10
    assert len(tagged(nb, 'predict')) >= 2 and re.search(r'https://', text.split('## References')[1])
    assert (course.lessons()[lesson]).stat().st_size <= 1_000_000


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
