"""A look at the built site as a reader meets it: `python .ci/docs/check.py [folder [page …]]`. Names page and fault, ends with 1 if there is one.

Dead links and requests always; axe where there is a Chromium; html-validate where there is node, and npm can bring it or has brought it.
"""
import json, multiprocessing as mp, shutil, subprocess, sys, tempfile, time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

here = Path(__file__).resolve().parent
WIDE, NARROW = dict(width=1280, height=900), dict(width=390, height=800)
HOW = dict(light=(WIDE, 'light'), dark=(WIDE, 'dark'), phone=(NARROW, 'light'))
AXE = """axe.run(document, {resultTypes: ['violations']}).then(r => r.violations.flatMap(
    v => v.nodes.map(n => `${v.id}: ${n.html.slice(0, 80)}`)))"""
BETWEEN = 1100, 1400                    # pixels: widths between those of `HOW`, where the sidebars come and go
CUT = """[...document.querySelectorAll('details:not([open]) > summary')].filter(s => s.getBoundingClientRect().height
    && s.getBoundingClientRect().top < s.parentElement.getBoundingClientRect().top - 1).length"""
VALIDATOR = 'html-validate@10.17.0'
PROCESSES = 2


def seen(site, pages, hows=HOW):
    "What axe finds, what sticks out of the screen and what is requested, on `pages` of the folder `site`; folded parts are opened first."
    import axe_playwright_python
    from playwright.sync_api import sync_playwright
    axe, found = Path(axe_playwright_python.__path__[0])/'axe.min.js', []
    with sync_playwright() as p:
        browser = p.chromium.launch(executable_path=chromium(), args=['--no-sandbox'])
        context = browser.new_context(offline=True, viewport=WIDE)
        for name in pages: found += [f'{name} ({how}): {fault}' for how, fault in look(context.new_page(), Path(site)/name, axe, hows)]
        browser.close()
    return found


def look(tab, path, axe, hows):
    "One page in one tab: (how, fault)."
    found, how = [], next(iter(hows))
    tab.on('request', lambda r: r.url.startswith(('data:', 'blob:', 'file:')) or found.append((how, f'asks for {r.url[:80]}')))
    tab.on('pageerror', lambda e: found.append((how, f'error: {e}')))
    for i, (how, (size, scheme)) in enumerate(hows.items()):
        tab.set_viewport_size(size)
        tab.emulate_media(color_scheme=scheme)
        if not i:
            tab.goto(path.resolve().as_uri())
            if (cut := tab.evaluate(CUT)): found.append((how, f'{cut} closed folds cut their line off'))
            tab.evaluate("document.querySelectorAll('details').forEach(d => d.open = true)")
            tab.add_script_tag(path=str(axe))
        tab.evaluate("dispatchEvent(new Event('resize'))")
        tab.wait_for_function("document.getAnimations().every(a => a.playState != 'running')")      # folds fade in: half-way they are pale
        found += [(how, fault) for fault in tab.evaluate(AXE)]
        found += too_wide(tab, how)
    for width in BETWEEN:
        tab.set_viewport_size(dict(WIDE, width=width))
        found += too_wide(tab, f'{width} pixels')
    tab.close()
    return found


def too_wide(tab, how):
    over = tab.evaluate('document.documentElement.scrollWidth - innerWidth')
    return [(how, f'{over} pixels wider than the screen')] if over > 0 else []


def all_seen(site, pages):
    "The same by several processes, each with a browser of its own."
    parts = [(site, pages[k::PROCESSES]) for k in range(PROCESSES) if pages[k::PROCESSES]]
    with mp.get_context('spawn').Pool(len(parts)) as pool: return [o for part in pool.starmap(seen, parts) for o in part]


def chromium():
    "The system's browser, or None."
    return next(filter(None, map(shutil.which, ('chromium', 'chromium-browser', 'google-chrome'))), None)


def validator(folder):
    "html-validate, which npm brings into `folder` once; or the reason why it is not there, as an error."
    if not shutil.which('node'): raise LookupError('there is no node')
    program = folder/'node_modules'/'.bin'/'html-validate'
    if not program.exists():
        folder.mkdir(parents=True, exist_ok=True)
        if not shutil.which('npm'): raise LookupError('there is no npm to bring it')
        done = subprocess.run(['npm', 'install', '--silent', '--no-audit', '--no-fund', '--prefix', str(folder), VALIDATOR], capture_output=True, text=True)
        if done.returncode or not program.exists(): raise LookupError('npm could not bring it: ' + (done.stderr.strip().splitlines() or ['no word'])[-1][:100])
    return program


def invalid(site, pages, program):
    "What html-validate says of `pages`."
    files = [str(Path(site)/p) for p in pages]
    with tempfile.TemporaryFile('w+', encoding='utf-8') as out:        # a pipe that node ends before all is read loses the rest
        done = subprocess.run([str(program), '--config', str(here/'htmlvalidate.json'), '-f', 'json', *files], stdout=out, stderr=subprocess.PIPE, text=True)
        out.seek(0); said = out.read()
    try: told = json.loads(said)
    except json.JSONDecodeError: return [f'html-validate ended with {done.returncode}: {done.stderr.strip()[-200:]}']
    return [f'{Path(r["filePath"]).relative_to(Path(site).resolve())}:{m["line"]}: {m["ruleId"]}: {m["message"][:120]}' for r in told for m in r['messages']]


def main(site, *names):
    import after
    site, start = Path(site).resolve(), time.perf_counter()
    pages = list(names) or sorted(p.relative_to(site).as_posix() for p in site.rglob('*.html'))
    found, done, left = after.faults(site), [f'links and requests of {len(list(site.rglob("*.html")))} pages'], []
    with ThreadPoolExecutor(1) as pool:                            # node reads the pages while the browsers look at them
        html = pool.submit(lambda: invalid(site, pages, validator(site.parent/'work'/'node')))
        if not chromium(): left.append('axe (no Chromium on the PATH)')
        else: found += all_seen(site, pages); done.append(f'axe on {len(pages)} pages in light, dark and at 390 pixels')
        try: found += html.result(); done.append(f'html-validate on {len(pages)} pages')
        except LookupError as why: left.append(f'html-validate ({why})')
    print(f'checked in {time.perf_counter() - start:.0f} s: {"; ".join(done)}' + (f'. Not checked: {"; ".join(left)}' if left else ''))
    return '\n'.join([f'{len(found)} faults', *found]) if found else print('no fault')


if __name__ == '__main__': sys.exit(main(Path(*sys.argv[1:2] or ['_site/html']), *sys.argv[2:]))
