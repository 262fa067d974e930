"""Everything that can be looked at: one tile for each cell that made a picture, which leads to that cell."""
import base64, hashlib, html, io, json, re
from typing import NamedTuple
import numpy as np
from after import chart
from PIL import Image

TILES = re.compile(r'<!-- tiles: (.*?) -->')          # in a notebook: the tiles of a section, or of pages by name, stand here
STAGE = re.compile(r'\[!\[([^\]]*)\]\(images/playground\.png\)\]\(demo\.html\)')
MADE_BY = re.compile(r'\b((?:plot|explore|bias)_\w+|image_grid|playground|show_batch)\(')
WIDTH = 360                                            # pixels: a tile is half as wide on a screen of ordinary density


class Tile(NamedTuple):
    "A picture of a page"
    page: str     # its name
    cell: int     # number of the cell in the notebook
    title: str    # the heading above it
    alt: str      # what it shows
    data: bytes   # the picture
    made_by: str = ''  # what the cell calls for it, where that is ours

    @property
    def file(self): return f'_images/gallery/{hashlib.sha256(self.data).hexdigest()[:16]}.webp'

    @property
    def dark_file(self): return self.file.replace('.webp', '-dark.webp')

    def stays(self):
        "Boxes of the picture whose colours stay on a dark page, as `plots` wrote them into it; None in a picture of others."
        text = Image.open(io.BytesIO(self.data)).info.get('Staying')
        return None if text is None else json.loads(text)

    def files(self):
        "name -> content; a dark side where a part keeps its colours, which no rule of CSS can say."
        im = Image.open(io.BytesIO(self.data)).convert('RGB')
        return {self.file: small(im)} | ({self.dark_file: small(turned(im, boxes))} if (boxes := self.stays()) else {})

    def html(self):
        alt = html.escape(self.alt if len(self.alt) < 180 else self.alt[:180].rsplit(' ', 1)[0] + ' …', quote=True)
        by, dark = f' <code>{self.made_by}</code>' * bool(self.made_by), bool(self.stays())
        turns = self.stays() == [] or self.stays() is None and chart(Image.open(io.BytesIO(self.data)))
        sides = {self.file: ' class="only-light"', self.dark_file: ' class="only-dark"'} if dark else {self.file: ' class="chart"' * turns}
        shown = ''.join(f'<img{how} src="{file}" alt="{alt}" loading="lazy">' for file, how in sides.items())
        return f'<a class="tile" href="{self.page}.html#cell-{self.cell}">{shown}<span>{html.escape(self.title)}{by}</span></a>'


HUE = np.array([[-.574, 1.43, .144], [.426, .43, .144], [.426, 1.43, -.856]])       # half a turn, as CSS does it


def turned(im, boxes):
    "The picture with its light turned around as libkd.css does it to charts, but in these boxes."
    dark = (.92 - .84*np.asarray(im)/255) @ HUE.T
    out = Image.fromarray((255*dark.clip(0, 1)).round().astype(np.uint8))
    for x, y, w, h in boxes: out.paste(im.crop((x, y, x + w, y + h)), (x, y))
    return out


def small(im):
    "The picture at the width of a tile, as WebP."
    if im.width > WIDTH: im = im.resize((WIDTH, round(im.height*WIDTH/im.width)), Image.LANCZOS)
    out = io.BytesIO()
    im.save(out, 'WEBP', quality=80, method=4)
    return out.getvalue()


def picture(cell, alt):
    "(bytes, alt text) of the first picture that a cell put out, or None."
    for out in cell.get('outputs', []):
        data = {k: ''.join(v) for k, v in out.get('data', {}).items() if isinstance(v, (str, list))}
        page = data.get('text/html', '')
        # the picture itself, or one that follows a dark page: in an SVG, whose quotes are single
        if m := re.search(r'<img\b[^>]*src="data:image/[^"]*?(?:png|jpeg);base64,([\w+/=]+)[^"]*"[^>]*>', page):
            said = re.search(r'\balt="([^"]*)"', m[0])
            return base64.b64decode(m[1]), html.unescape(said[1]) if said else alt
        if 'image/png' in data and not page: return base64.b64decode(data['image/png']), alt
    return None


def tiles(notebooks):
    "All tiles, in the order of pages and cells."
    import pages
    found = []
    for name, nb in notebooks.items():
        title, heading = name, ''
        for i, cell in enumerate(nb['cells']):
            if cell['cell_type'] == 'markdown':
                heads = re.findall(r'(?m)^(#{1,6}) (.*)', re.sub(r'```.*?```', '', pages.text_of(cell), flags=re.S))
                for level, text in heads: title, heading = (text, '') if level == '#' else (title, text)
            if not (known := pages.code_of(cell)): continue
            alt = known[0].get('fig-alt', '').strip('"\'')
            if shown := picture(cell, alt):
                label = re.sub(r'[`*]', '', f'{title}: {heading}' if heading else title)
                found.append(Tile(name, i, label, shown[1], shown[0], ''.join(MADE_BY.findall(known[1])[-1:])))
    return found


def filled(text, tiles, sections):
    "The text with tiles in the place of their marks, and the playground in the place of its picture."
    import pages
    def put(m):
        wanted = [o.strip() for o in m[1].split(',')]
        names = {pages.page_name(nb) for title, nbs in sections.items() for nb in nbs if title in wanted} | {*wanted}
        return f'<div class="tiles">{"".join(t.html() for t in tiles if t.page in names)}</div>'
    def stage(m): return (f'<div class="stage"><iframe src="demo.html" title="{html.escape(m[1], quote=True)}" loading="lazy"></iframe>'
                          '<p><a href="demo.html">The playground on a page of its own</a>: one file that also works without a network</p></div>')
    return STAGE.sub(stage, TILES.sub(put, text))
