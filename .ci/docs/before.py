"""What must be right before a site is built: notebooks that were executed, pictures and exports with words, names that mean one thing."""
import ast, json, re
from collections import defaultdict
import pages, words

UNRUN = {'index.ipynb'}                 # the front page's lines are run by tests/ten_lines.py; their pictures stand beside them


def shows(cell):
    "Whether a cell on the site ends with an expression or prints."
    if cell['cell_type'] != 'code': return False
    directives, code = pages.split_directives(pages.text_of(cell))
    if (pages.HIDDEN | {'export'}) & directives.keys() or directives.get('eval') == 'false': return False
    last = ast.parse(re.sub(r'(?m)^\s*[%!].*$', '', code)).body[-1:]
    return 'print(' in code or bool(last) and isinstance(last[0], ast.Expr) and not ast.unparse(last[0]).startswith('test_')


def silent(books):
    "Notebooks with code that shows something and not one output: they were committed without being executed."
    mute = lambda nb: any(map(shows, nb['cells'])) and not any(c.get('outputs') for c in nb['cells'])
    return [f'{path}: shows code and no output; execute it' for path, nb in books.items() if path not in UNRUN and mute(nb)]


def wordless_pictures(books):
    "Pictures that say nothing to whoever cannot see them."
    found = []
    for path, nb in books.items():
        for cell in nb['cells']:
            for out in cell.get('outputs', []):
                data = {k: ''.join(v) for k, v in out.get('data', {}).items() if isinstance(v, (str, list))}
                page, said = data.get('text/html', ''), re.search(r'#\|\s*fig-alt:\s*\S', pages.text_of(cell))
                bare = re.search(r'<img(?![^>]*\balt="[^"])', page) or 'image/png' in data and not page and not said
                if bare: found.append(f'{path}: a picture without alt text below {pages.text_of(cell)[-60:]!r}')
            if cell['cell_type'] == 'markdown' and re.search(r'!\[\s*\]\(', pages.text_of(cell)):
                found.append(f'{path}: a picture without alt text in {pages.text_of(cell)[:60]!r}')
    return found


def wordless_exports(modules):
    "Functions and classes that `modules` export without a docstring."
    own = lambda m, o: callable(o) and getattr(o, '__module__', '') == m.__name__
    return [f'{m.__name__}.{name}: exported without a docstring' for m in modules for name in getattr(m, '__all__', ())
            if own(m, o := getattr(m, name, None)) and not ((vars(o).get('__doc__') if isinstance(o, type) else o.__doc__) or '').strip()]


def twice(books, modules):
    "Names that mean two things: pages with one address, exports of two rooms, definitions in one notebook."
    places = defaultdict(list)
    for path in books: places[f'page {pages.page_name(path)}.html'].append(path)
    for m in modules:
        for name in getattr(m, '__all__', ()): places[f'name {name}'].append(m.__name__)
    for path, nb in books.items():
        for cell in nb['cells']:
            if cell['cell_type'] != 'code': continue
            directives, code = pages.split_directives(pages.text_of(cell))
            if 'export' not in directives: continue
            for name in pages.defined(code): places[f'definition of {name} in {path}'].append('a cell')
    return [f'{what}: stands twice, in {" and ".join(where)}' for what, where in places.items() if len(where) > 1]


def notebooks():
    "{path: notebook} of all pages, in their order."
    return {path: json.loads((pages.NBS/path).read_text(encoding='utf-8')) for paths in pages.contents().values() for path in paths}


def faults(books, modules):
    "All of it."
    return silent(books) + wordless_pictures(books) + wordless_exports(modules) + twice(books, modules)
