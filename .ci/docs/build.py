"""The site in _site/html (or the folder given): what must be right before, pages, Sphinx with warnings as errors, a last pass. Needs no network."""
import hashlib, sys, time, warnings
from pathlib import Path

here = Path(__file__).resolve().parent


def made_of(*files):
    "A checksum of the content of files."
    total = hashlib.sha256()
    for file in sorted(files): total.update(file.read_bytes())
    return total.hexdigest()[:16]


def put_playground(site, work):
    "The playground of the front page, made again where what it is made of has changed."
    import front, libkd
    lib = Path(libkd.__file__).parent
    kept = work/f'demo-{made_of(here/"front.py", front.KEPT, lib/"playground.py", lib/"widgets.py", *(lib/"static").glob("*.[jch][st]*"))}.html'
    if not kept.exists(): front.page(kept)
    (site/'demo.html').write_bytes(kept.read_bytes())


def main(site):
    start, site = time.perf_counter(), Path(site).resolve()
    work = site.parent/'work'                                     # what a second build need not make again
    with warnings.catch_warnings():                               # of the libraries that the rooms import
        warnings.simplefilter('ignore')
        import after, before, pages, words
        if found := before.faults(before.notebooks(), words.rooms()): return '\n'.join(['no site is built:', *found])
        if found := pages.main(work/'pages', work/'extra'): return '\n'.join(['no site is built:', *found])
        put_playground(work/'extra', work)
    from sphinx.cmd.build import main as sphinx
    quiet = ['-W', '--keep-going', '-q', '-j', '2', '-b', 'html', '-c', str(here), '-d', str(work/'doctrees')]
    if status := sphinx([*quiet, '-D', f'html_extra_path={work/"extra"}', str(work/'pages'), str(site)]): return status
    if found := after.faults(site, write=True): return '\n'.join(['the site has faults:', *found])
    print(f'{len(list(site.rglob("*.html")))} pages in {site} ({time.perf_counter() - start:.0f} s); open {site/"index.html"}')


if __name__ == '__main__': sys.exit(main(Path(*sys.argv[1:2] or ['_site/html'])))
