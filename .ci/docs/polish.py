"""What Sphinx and furo leave open: words for link previews, edit links, labels and headers for screen readers, 404, sitemap."""
import html, re
from xml.sax.saxutils import escape

SPOKEN = [                                                     # (pattern, replacement): each mends one kind of axe's findings
    (r'<p class="caption" role="heading"[^>]*>(.*?)</p>', r'<h2 class="caption">\1</h2>'),
    (r'<th\b([^>]*)>(\s*(?:&nbsp;|&#160;|\xa0|<p>\s*</p>)?\s*)</th>', r'<td\1>\2</td>'),     # a corner heads nothing
]


def spoken(text):
    "Captions are headings, corners of tables are no headers."
    for pattern, new in SPOKEN: text = re.sub(pattern, new, text, flags=re.S)
    return text


LONG = 100                # characters: lines as long as that are sentences, which break; in shorter ones columns may stand
OUTPUT = re.compile(r'(<div class="output text_plain|<div class="output stream|<div class="output stderr)(.*?</pre>)', re.S)


def broken(text):
    "Outputs in long lines get the class `long`."
    def one(m): return m[1] + ' long' * any(len(plain(line)) > LONG for line in m[2].split('\n')) + m[2]
    return OUTPUT.sub(one, text)


def plain(text):
    "Words without tags, on one line."
    return ' '.join(html.unescape(re.sub(r'<[^>]+>', '', text)).replace('¶', '').split())


def shortened(text, width=200):
    "Whole words up to `width` characters."
    return text if len(text) <= width else text[:width].rsplit(' ', 1)[0].rstrip(' ,;:') + ' …'


def title_and_promise(body, otherwise):
    "The heading of a page and the promise below it: the quotation, or else the first paragraph, or `otherwise`."
    title = re.search(r'<h1[^>]*>(.*?)</h1>', body, re.S)
    rest = body[title.end():] if title else ''
    promise = re.match(r'\s*<blockquote>(.*?)</blockquote>', rest, re.S) or re.search(r'<p>(.*?)</p>', rest, re.S)
    return plain(title[1]) if title else '', shortened(plain(promise[1]) if promise else otherwise)


def previews(title, promise, address, picture):
    "What search engines and chats show of a page."
    facts = {'og:title': title, 'og:description': promise, 'og:url': address, 'og:type': 'article',
             'og:site_name': 'libkd', 'og:image': picture}
    quoted = lambda s: html.escape(s, quote=True)
    lines = [f'<meta name="description" content="{quoted(promise)}">', '<meta name="twitter:card" content="summary_large_image">']
    return '\n'.join(lines + [f'<meta property="{k}" content="{quoted(v)}">' for k, v in facts.items() if v])


PLACEHOLDERS = 'libkd is not published yet: addresses under {doc_host} and {git_url} are placeholders and lead nowhere.'


def links_of(cfg, name, source):
    "What a reader can do with a page: run it in Colab, take the notebook, mend the text."
    up, github = '../' * name.count('/'), cfg['git_url'].removeprefix('https://github.com/')
    colab = f'https://colab.research.google.com/github/{github}/blob/{cfg["doc_branch"]}/{cfg["doc_version"]}/notebooks/{name}.ipynb'
    links = {'Run in Colab': colab, 'Notebook to run': f'{up}notebooks/{name}.ipynb',
             'Edit': f'{cfg["git_url"]}/edit/{cfg["branch"]}/{cfg["nbs_path"]}/{source}'}
    shown = ' · '.join(f'<a href="{at}">{word}</a>' for word, at in links.items())
    return shown + ' <span>(Colab and Edit are placeholders: libkd is not published yet)</span>' * (cfg['doc_published'] == 'no')


def with_links(body, links):
    "The body of a page with its links below the title and the promise."
    head = re.search(r'<h1[^>]*>.*?</h1>(\s*<blockquote>.*?</blockquote>)?', body, re.S)
    return body if not head else f'{body[:head.end()]}\n<p class="of-page">{links}</p>{body[head.end():]}'


def on_page(app, name, template, context, doctree):
    "Before a page is written: its head, its edit link, its body and the sidebar mended."
    site, cfg = app.config.html_baseurl, app.config.libkd
    body = context.get('body') or ''
    title, promise = title_and_promise(body, cfg['description'])
    context['metatags'] = context.get('metatags', '').replace('<meta name="viewport" content="width=device-width, initial-scale=1" />', '')
    if name == '404':      # served for any address: links start from the top of the site, on disk from this folder
        top = '/' + site.split('/', 3)[3]
        context['metatags'] += f'<script>if (location.protocol != "file:") document.write(\'<base href="{top}">\')</script>'
        context['pageurl'] = None
    elif body:
        context['metatags'] += previews(title or cfg['title'], promise, site + name + '.html', f'{site}_static/main-run.png')
    context['placeholders'] = cfg['doc_published'] == 'no' and PLACEHOLDERS.format(**cfg)
    if (source := cfg['sources'].get(name)) and source.endswith('.ipynb'):
        context['body'] = with_links(body, links_of(cfg, name, source))
    if context.get('body'): context['body'] = broken(context['body'])
    for key in ('body', 'furo_navigation_tree'):
        if context.get(key): context[key] = spoken(context[key])


def on_end(app, failure):
    "A list of all pages for search engines; no Jekyll on GitHub, which would hide the folders that begin with _."
    if failure: return
    pages = '\n'.join(f'<url><loc>{escape(app.config.html_baseurl + name)}.html</loc></url>' for name in sorted(app.env.found_docs))
    site = '<?xml version="1.0" encoding="utf-8"?>\n<urlset xmlns="http://www.sitemaps.org/schemas/sitemap/0.9">\n%s\n</urlset>\n'
    (app.outdir/'sitemap.xml').write_text(site % pages, encoding='utf-8')
    (app.outdir/'.nojekyll').touch()
