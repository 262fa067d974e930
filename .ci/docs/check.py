"""A look at the built site as a reader meets it: `python .ci/docs/check.py [folder [page …]]`. Names page and fault, ends with 1 if there is one."""
import ast, importlib, inspect, json, re, shutil, sys
from pathlib import Path

SAMPLE = ['index.html', 'tutorials/the_whole_game.html', 'losses.html', 'diagnose.html', 'runs/distill.html', 'widgets.html', 'bench/step.html', '404.html']
UNRUN = {'index.ipynb'}                 # the front page's lines are run by tests/ten_lines.py; their pictures stand beside them
WIDE, NARROW = dict(width=1280, height=900), dict(width=390, height=800)
HOW = dict(light=dict(viewport=WIDE), dark=dict(viewport=WIDE, color_scheme='dark'), phone=dict(viewport=NARROW))
AXE = """axe.run(document, {resultTypes: ['violations']}).then(r => r.violations.flatMap(
    v => v.nodes.map(n => `${v.id}: ${n.html.slice(0, 80)}`)))"""


def silent_notebooks(notebooks):
    "Of `{path: notebook}`, those with code that shows something and not one output: they were committed without being executed."
    silent = lambda nb: any(map(shows, nb['cells'])) and not any(c.get('outputs') for c in nb['cells'])
    return [f'{path}: shows code and no output' for path, nb in notebooks.items() if path not in UNRUN and silent(nb)]


def shows(cell):
    "Whether a cell on the site ends with an expression or prints."
    from pages import HIDDEN, split_directives, text_of
    if cell['cell_type'] != 'code': return False
    directives, code = split_directives(text_of(cell))
    if (HIDDEN | {'export'}) & directives.keys() or directives.get('eval') == 'false': return False
    last = ast.parse(re.sub(r'(?m)^\s*[%!].*$', '', code)).body[-1:]
    return 'print(' in code or bool(last) and isinstance(last[0], ast.Expr) and not ast.unparse(last[0]).startswith('test_')


def wordless_exports(modules):
    "Functions and classes that `modules` export without a docstring."
    own = lambda m, o: (inspect.isroutine(o) or inspect.isclass(o)) and getattr(o, '__module__', '') == m.__name__
    return [f'{m.__name__}.{name}: exported without a docstring' for m in modules for name in getattr(m, '__all__', ())
            if own(m, o := getattr(m, name, None)) and not ((vars(o).get('__doc__') if inspect.isclass(o) else o.__doc__) or '').strip()]


def seen(site, pages, hows=HOW):
    "What axe finds, what sticks out of the screen and what is requested, on `pages` of the folder `site`; folded parts are opened first."
    import axe_playwright_python
    from playwright.sync_api import sync_playwright
    axe, found = Path(axe_playwright_python.__path__[0])/'axe.min.js', []
    with sync_playwright() as p:
        browser = p.chromium.launch(executable_path=chromium(), args=['--no-sandbox'])
        for how, settings in hows.items():
            context = browser.new_context(offline=True, **settings)
            for name in pages: found += [f'{name} ({how}): {fault}' for fault in look(context.new_page(), Path(site)/name, axe)]
            context.close()
        browser.close()
    return found


def look(tab, path, axe):
    "One page in one tab."
    asked = []
    tab.on('request', lambda r: r.url.startswith(('data:', 'blob:', 'file:')) or asked.append(f'asks for {r.url[:80]}'))
    tab.on('pageerror', lambda e: asked.append(f'error: {e}'))
    tab.goto(path.resolve().as_uri())
    tab.evaluate("document.querySelectorAll('details').forEach(d => d.open = true); dispatchEvent(new Event('resize'))")
    tab.wait_for_function("document.getAnimations().every(a => a.playState != 'running')")      # folds fade in: half-way they are pale
    tab.add_script_tag(path=str(axe))
    found = tab.evaluate(AXE)
    over = tab.evaluate('document.documentElement.scrollWidth - innerWidth')
    tab.close()
    return [*asked, *found, *([f'{over} pixels wider than the screen'] if over > 0 else [])]


def chromium():
    "The system's browser, or None."
    return next(filter(None, map(shutil.which, ('chromium', 'chromium-browser', 'google-chrome'))), None)


def main(site, *names):
    import pages
    from build import faults
    books = {path: json.loads((pages.NBS/path).read_text(encoding='utf-8')) for paths in pages.contents().values() for path in paths}
    lib = pages.ROOT/pages.cfg['lib_name']
    rooms = [importlib.import_module(f'{lib.name}.{p.stem}') for p in sorted(lib.glob('[a-z]*.py')) if p.stem != 'all']
    found = faults(site) + silent_notebooks(books) + wordless_exports(rooms)
    if chromium(): found += seen(site, names or SAMPLE)
    else: print('no Chromium: not looked at with axe')
    return '\n'.join([f'{len(found)} faults', *found]) if found else print('no fault')


if __name__ == '__main__': sys.exit(main(Path(*sys.argv[1:2] or ['_site/html']), *sys.argv[2:]))
