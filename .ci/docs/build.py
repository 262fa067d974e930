"""The site in _site/html (or the folder given): pages, Sphinx with warnings as errors, then a look at what came out. Needs no network."""
import re, sys, tempfile, time, warnings
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urldefrag
from sphinx.cmd.build import main as sphinx

here = Path(__file__).resolve().parent
LOADS = {'script': 'src', 'img': 'src', 'link': 'href', 'iframe': 'src', 'video': 'src', 'source': 'src', 'object': 'data'}


class Page(HTMLParser):
    "What a page loads, where it links to, its anchors, and its pictures without a text."
    def __init__(self, text):
        super().__init__()
        self.loads, self.links, self.ids, self.silent = [], [], set(), 0
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        a = dict(attrs)
        self.ids |= {a[k] for k in ('id', 'name') if a.get(k)}
        if tag == 'a' and a.get('href'): self.links.append(a['href'])
        if a.get(LOADS.get(tag)) and not (tag == 'link' and a.get('rel') in ('canonical', 'search', 'next', 'prev', 'index', 'author', 'copyright')):
            self.loads.append(a[LOADS[tag]])
        self.silent += tag == 'img' and not (a.get('alt') or a.get('aria-hidden') or a.get('role') == 'presentation')


def faults(site):
    "Pages that load from other hosts, links that lead nowhere, pictures without a text."
    pages, found = {p: Page(p.read_text(encoding='utf-8')) for p in site.rglob('*.html')}, []
    for path, page in pages.items():
        name = path.relative_to(site)
        found += [f'{name}: loads {o[:80]}' for o in page.loads if re.match(r'(https?:)?//', o)]
        if page.silent: found.append(f'{name}: {page.silent} picture(s) without alt text')
        for link in page.links:
            target, anchor = urldefrag(link)
            if re.match(r'\w+:|//', link) or not (target or anchor): continue
            file = (path.parent/unquote(target)).resolve() if target else path
            if not file.exists(): found.append(f'{name}: {link} does not exist')
            elif anchor and file in pages and unquote(anchor) not in pages[file].ids: found.append(f'{name}: {link} has no such anchor')
    for css in site.rglob('*.css'):
        found += [f'{css.relative_to(site)}: loads {o}' for o in re.findall(r'(?:url\(|@import)\s*["\']?((?:https?:)?//[^"\')\s]+)', css.read_text(encoding='utf-8'))]
    return sorted(set(found))


def main(site):
    start = time.perf_counter()
    import pages
    with tempfile.TemporaryDirectory() as src:
        with warnings.catch_warnings():  # of the libraries that the rooms import
            warnings.simplefilter('ignore')
            pages.main(src)
        if status := sphinx(['-W', '--keep-going', '-q', '-b', 'html', '-c', str(here), src, str(site)]): return status
    if found := faults(site): return '\n'.join(['the site has faults:', *found])
    print(f'{len(list(site.rglob("*.html")))} pages in {site} ({time.perf_counter() - start:.0f} s); open {site/"index.html"}')


if __name__ == '__main__': sys.exit(main(Path(*sys.argv[1:2] or ['_site/html'])))
