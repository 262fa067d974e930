"""The last pass over the built pages, one walk through each: HTML without a fault, pictures in files of their own, and what is wrong."""
import base64, hashlib, io, re
from functools import lru_cache
from html import escape, unescape
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urldefrag

VOID = {'area', 'base', 'br', 'col', 'embed', 'hr', 'img', 'input', 'link', 'meta', 'source', 'track', 'wbr'}
LOADS = {'script': 'src', 'img': 'src', 'link': 'href', 'iframe': 'src', 'video': 'src', 'source': 'src', 'object': 'data'}
QUIET = ('canonical', 'search', 'next', 'prev', 'index', 'author', 'copyright')         # what such a <link> names is not loaded
# Styles that libraries write into elements -> the class of libkd.css that says the same, or '' where libkd.css does so anyway.
STYLES = {'opacity: 50%': 'arrow', 'text-align: right;': '', 'display: none;': 'icons', 'margin:0': '', 'margin:0 0 4px': '', 'max-width:100%': '',
          'max-width:100%;height:auto;background:#fff': '', 'max-width:100%;height:auto': ''}
PAPER = re.compile(r'<style>\[data-jp-theme-light.*?</style>', re.S)       # of figures in JupyterLab; here libkd.css says it
BARE = {'defer', 'async', 'hidden', 'open', 'disabled', 'checked', 'required', 'selected', 'novalidate'}
LONGEST_TITLE = 70
PLAIN = {'n', 'p', 'w'}                 # tokens of code in the colour of all text: names, brackets, blanks
WHOLE = 'demo.html'                     # one file that works from a memory stick: it stays as libkd wrote it
FRAMES = '_frames'                     # likewise, of pages that show one


def chart(picture):
    "Whether a picture is drawn in a few colours on white, so that a dark page may turn its light around; photographs keep theirs."
    small = picture.convert('RGB').resize((96, 96), 0)
    colours = sorted(small.getcolors(9216), reverse=True)
    white = sum(n for n, c in colours if min(c) > 244)
    return white > .45*9216 and sum(n for n, c in colours[:24]) > .9*9216


@lru_cache(None)
def measured(data):
    "(width, height, whether it is a chart) of the bytes of a picture; None for what Pillow does not read."
    from PIL import Image
    try: picture = Image.open(io.BytesIO(data))
    except OSError: return None
    return (*picture.size, chart(picture))


class Page(HTMLParser):
    "Reads a page and writes it again: `text`; what it `loads`, where it `links` to, its `ids`, and pictures without a text, `silent`."
    def __init__(self, text, path=None, site=None):        # without `site` pictures stay where they are
        super().__init__(convert_charrefs=False)
        self.site, self.path, self.out, self.open, self.skip, self.headed = site, path, [], [], 0, False
        self.loads, self.links, self.ids, self.silent = [], [], set(), 0
        self.feed(PAPER.sub('', text))
        self.close()
        self.text = re.sub(r'[ \t]+(?=\n)', '', ''.join(self.out))
        self.text = re.sub(r'\n{2,}', '\n', self.text) if '<pre' not in self.text else self.text

    # -- what a walk meets

    def handle_decl(self, decl): self.out.append('<!DOCTYPE html>' if decl.lower().startswith('doctype') else f'<!{decl}>')
    def handle_comment(self, data): pass
    def handle_entityref(self, name): self.put(f'&{name};')
    def handle_charref(self, name): self.put(f'&#{name};')
    def handle_data(self, data): self.put(self.title(data) if self.within('title') and not self.foreign() else data)
    def put(self, text):
        if not self.skip: self.out.append(text)

    def handle_startendtag(self, tag, attrs): self.start(tag, attrs, closed=True)
    def handle_starttag(self, tag, attrs): self.start(tag, attrs)

    def start(self, tag, attrs, closed=False):
        if tag == 'style' and self.below('div'): self.skip += not closed; return        # of pandas: libkd.css has it
        if tag == 'span' and attrs and attrs[0][0] == 'class' and attrs[0][1] in PLAIN and self.below('pre'): self.open.append((tag, '')); return
        a, foreign = self.mended(tag, dict(attrs)), tag in ('svg', 'math') or self.foreign()
        if tag == 'article' and a.pop('role', None): self.main(a)
        name = 'span' if tag == 'p' and self.within('summary') else tag                  # a paragraph may not stand there
        if foreign: text = self.get_starttag_text()                                      # names of attributes keep their case
        else: text = f'<{name}{"".join(map(self.attribute, a.items()))}>'
        self.put(text if foreign or not closed or tag in VOID else f'{text}</{name}>')
        if tag not in VOID and not closed: self.open.append((tag, 'article></main' if tag == 'article' and self.headed else name))
        self.note(tag, a)

    def main(self, a):
        "The text of a page stands in <main>, which the link for skipping all else leads to."
        self.headed = True
        self.ids.add(a['id'])
        self.put(f'<main id="{a.pop("id")}">')

    def within(self, tag): return bool(self.open) and self.open[-1][0] == tag
    def below(self, tag): return any(o == tag for o, _ in self.open)
    def foreign(self): return self.below('svg') or self.below('math')

    def handle_endtag(self, tag):
        if tag == 'style' and self.skip: self.skip -= 1; return
        if tag in VOID or not self.below(tag): return
        while (last := self.open.pop())[0] != tag: pass
        if last[1]: self.put(f'</{last[1]}>')

    # -- what is mended

    def attribute(self, pair):
        key, value = pair
        if value is None or key in BARE: return f' {key}'
        return f' {key}="{escape(value, quote=False).replace(chr(34), "&quot;")}"'

    def title(self, text):
        "A title that a search engine shows whole."
        if len(unescape(text)) > LONGEST_TITLE: text = re.sub(r' [-—] [^-—]*$', '', text)
        return text if len(unescape(text)) <= LONGEST_TITLE else text[:LONGEST_TITLE - 2].rsplit(' ', 1)[0] + ' …'

    def mended(self, tag, a):
        "Attributes as the standard wants them."
        if 'style' in a and (name := STYLES.get(a['style'].strip())) is not None:
            del a['style']
            if name: a['class'] = ' '.join(filter(None, [a.get('class'), name]))
        if tag == 'th' and 'scope' not in a: a['scope'] = 'col' if self.below('thead') else 'row'
        if tag == 'button': a.setdefault('type', 'button')
        if tag == 'input': a.setdefault('type', 'text')
        if tag == 'a': a.pop('rel', None) if a.get('rel') == 'edit' else None
        a.pop('valign', None)
        if tag in ('table', 'td', 'th', 'col'): [a.pop(k, None) for k in ('border', 'width', 'align')]
        if a.get('id') in self.ids and tag in ('a', 'span', 'section'): del a['id']                 # the place has that name already
        if tag == 'img' and self.site: self.picture(a)
        if tag == 'iframe' and self.site and 'srcdoc' in a: self.frame(a)
        return a

    def beside(self, data, folder, end):
        "The address, seen from this page, of a file that holds `data`."
        file = self.site/folder/f'{hashlib.sha256(data).hexdigest()[:20]}.{end}'
        file.parent.mkdir(exist_ok=True)
        if not file.exists(): file.write_bytes(data)
        return '../' * (len(self.path.relative_to(self.site).parts) - 1) + f'{folder}/{file.name}'

    def frame(self, a):
        "A live page within a page becomes a file, too, and is loaded when it comes into sight."
        import front
        a['src'] = self.beside(front.strict(a.pop('srcdoc')).encode(), FRAMES, 'html')
        if m := re.search(r'height: *(\d+)px', a.pop('style', '')): a['height'] = m[1]
        a |= {'class': 'live', 'loading': 'lazy'}

    def picture(self, a):
        "A picture in the page becomes a file; all have a size, wait until they are needed, and say whether they may be turned around."
        if m := re.match(r'data:image/(png|jpeg|gif|webp|svg\+xml)(?:;charset=[^;,]+)?(;base64)?,(.*)', a.get('src', ''), re.S):
            data = base64.b64decode(m[3]) if m[2] else unquote(m[3]).encode()
            a['src'] = self.beside(data, '_images', m[1].split('+')[0])
        file = (self.path.parent/unquote(a.get('src', '').split('#')[0])).resolve()
        if file.suffix in ('.png', '.jpeg', '.webp', '.gif') and file.is_file() and (size := measured(file.read_bytes())):
            a.setdefault('width', str(size[0])); a.setdefault('height', str(size[1]))
            if size[2]: a['class'] = ' '.join(dict.fromkeys([*a.get('class', '').split(), 'chart']))
        a.setdefault('loading', 'lazy')

    # -- what is noted

    def note(self, tag, a):
        self.ids |= {a[k] for k in ('id', 'name') if a.get(k)}
        if tag == 'a' and a.get('href'): self.links.append(a['href'])
        if a.get(LOADS.get(tag)) and not (tag == 'link' and a.get('rel') in QUIET): self.loads.append(a[LOADS[tag]])
        self.silent += tag == 'img' and not (a.get('alt') or a.get('aria-hidden') or a.get('role') == 'presentation')


def met(path, site, write=True):
    "What stands in a page: (loads, links, ids, silent). It is written as it should be, unless it is to stay as it is."
    text = path.read_text(encoding='utf-8')
    page = Page(text, path, site if write else None)
    if write and page.text != text: path.write_text(page.text, encoding='utf-8')
    return page.loads, page.links, page.ids, page.silent


def forget_frames(site, pages):
    "Remove the live pages that an earlier build put into pages, and no page shows any more."
    shown = {(path.parent/unquote(o)).resolve() for path, (loads, *_) in pages.items() for o in loads}
    for file in {*(site/FRAMES).glob('*.html')} - shown: file.unlink(); pages.pop(file, None)


def faults(site, write=False):
    "Pages that load from other hosts, links that lead nowhere, pictures without a text; with `write` pages are finished on the way."
    site = site.resolve()
    pages, found = {p: met(p, site, write and p.name != WHOLE and p.parent.name != FRAMES) for p in sorted(site.rglob('*.html'))}, []
    if write: forget_frames(site, pages)
    for path, (loads, links, _, silent) in pages.items():
        name = path.relative_to(site)
        found += [f'{name}: loads {o[:80]}' for o in loads if re.match(r'(https?:)?//', o)]
        gone = [o for o in loads if not re.match(r'\w+:|//', o) and not (path.parent/unquote(re.split('[?#]', o)[0])).exists()]
        found += [f'{name}: {o} is not there' for o in gone]
        if silent: found.append(f'{name}: {silent} picture(s) without alt text')
        for link in links:
            target, anchor = urldefrag(link)
            if re.match(r'\w+:|//', link) or not (target or anchor): continue
            file = (path.parent/unquote(target)).resolve() if target else path
            if not file.exists(): found.append(f'{name}: {link} does not exist')
            elif anchor and file in pages and unquote(anchor) not in pages[file][2]: found.append(f'{name}: {link} has no such anchor')
    for css in site.rglob('*.css'):
        loads = re.findall(r'(?:url\(|@import)\s*["\']?((?:https?:)?//[^"\')\s]+)', css.read_text(encoding='utf-8'))
        found += [f'{css.relative_to(site)}: loads {o}' for o in loads]
    return sorted(set(found))
