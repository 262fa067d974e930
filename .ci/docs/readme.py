"""README.md from nbs/index.ipynb, without Quarto, and then the other thing that is made from the notebooks: libkd/*.pyi. GitHub shows no data URIs, so pictures are written to nbs/images/index-<n>.png."""
import base64, html, json, re, runpy
from configparser import ConfigParser
from pathlib import Path

root = Path(__file__).resolve().parents[2]
config = ConfigParser(delimiters=['='])
config.read(root/'settings.ini', encoding='utf-8')
cfg = config['DEFAULT']
SITE = '/'.join(cfg[k].strip('/') for k in ('doc_host', 'doc_baseurl', 'doc_version')) + '/'
IMAGES = root/'nbs'/'images'
PLACEHOLDER = f'''> [!NOTE]
> libkd is not published yet: the pages under {cfg['doc_host']} are placeholders. `make docs` builds the same pages in `_site/html`.'''
MARK = '<!-- Made from nbs/index.ipynb by `make prepare`: do not edit -->'


def site_url(match):
    "`](tutorials/01_first.ipynb` -> `](https://…/tutorials/first.html`: nbdev drops number prefixes."
    folder, name = match[1], re.sub(r'^\d+[a-z0-9]*_', '', match[2].lower())
    return f']({SITE}{folder}{name}.html'


def markdown(text):
    "Callouts become GitHub alerts, notebooks become pages of the site, paths are seen from the top."
    lines, quoted = [], False
    for line in text.split('\n'):
        if m := re.match(r'^:{3,}\s*\{\.callout-(\w+)[^}]*\}\s*$', line): quoted = True; line = f'[!{m[1].upper()}]'
        elif quoted and re.match(r'^:{3,}\s*$', line): quoted = False; continue
        lines.append('> ' + line if quoted else line)
    text = re.sub(r'\]\((?!\w+:|#)((?:[\w.-]+/)*)([\w.-]+)\.ipynb', site_url, '\n'.join(lines))
    text = re.sub(r'<!-- tiles: .*? -->\n*', '', text).replace('](demo.html)', f']({SITE}demo.html)')
    return re.sub(r'\]\(images/', '](nbs/images/', text)


class Output:
    "Turns the outputs of code cells into markdown, numbering the pictures."
    def __init__(self): self.pictures = {}

    def picture(self, data, alt):
        name = f'index-{len(self.pictures) + 1}.png'
        self.pictures[name] = base64.b64decode(data)
        return f'![{alt}](nbs/images/{name})'

    def __call__(self, out):
        data = {k: ''.join(v) for k, v in out.get('data', {}).items()}
        page = data.get('text/html', '')
        if m := re.search(r'<img[^>]+src="data:image/[^"]*?png;base64,([\w+/=]+)', page):
            alt = re.search(r'\balt="([^"]*)"', page)
            return self.picture(m[1], html.unescape(alt[1]) if alt else '')
        if 'image/png' in data: return self.picture(data['image/png'], data.get('text/plain', ''))
        if 'text/markdown' in data: return markdown(data['text/markdown'])
        text = ''.join(out.get('text', '')) or data.get('text/plain', '')
        if text.startswith('<IPython.core.display.HTML'): return ''         # fastai's table of a fit: the site shows it
        return '```\n' + text.rstrip('\n') + '\n```' if text.strip() else ''


def readme(nb):
    "The text of README.md, and its pictures by name."
    parts, output = [MARK], Output()
    for cell in nb['cells']:
        text = ''.join(cell['source']).strip()
        if cell['cell_type'] == 'markdown': parts.append(markdown(text))
        if cell['cell_type'] != 'code' or re.search(r'^#\|\s*hide\b|^#\|\s*include:\s*false', text, re.M): continue
        code = '\n'.join(line for line in text.split('\n') if not line.startswith('#|')).strip()
        if code and not re.search(r'^#\|\s*(echo:\s*false|hide_input)', text, re.M): parts.append(f'```python\n{code}\n```')
        parts += [shown for o in cell['outputs'] if (shown := output(o))]
    if cfg['doc_published'] == 'no': parts.append(PLACEHOLDER)
    return '\n\n'.join(parts) + '\n', output.pictures


if __name__ == '__main__':
    text, pictures = readme(json.loads((root/'nbs'/'index.ipynb').read_text(encoding='utf-8')))
    (root/'README.md').write_text(text, encoding='utf-8')
    if pictures: IMAGES.mkdir(exist_ok=True)
    for old in IMAGES.glob('index-*.png'):
        if old.name not in pictures: old.unlink()
    for name, data in pictures.items(): (IMAGES/name).write_bytes(data)
    runpy.run_path(root/'.ci'/'stubs.py', run_name='__main__')
