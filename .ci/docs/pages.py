"""Notebooks in nbs/ -> notebooks that Sphinx reads (MyST), with API entries, links and the contents of _quarto.yml.

Nothing is executed: outputs are the committed ones, and entries come from the installed modules.
"""
import ast, html, importlib, inspect, json, re, sys
from collections import Counter
from configparser import ConfigParser
from pathlib import Path, PurePosixPath
import yaml
from api import document
from libkd.course import closed

ROOT = Path(__file__).resolve().parents[2]
NBS = ROOT/'nbs'
config = ConfigParser(delimiters=['='])
config.read(ROOT/'settings.ini', encoding='utf-8')
cfg = config['DEFAULT']
SITE = '/'.join(cfg[k].strip('/') for k in ('doc_host', 'doc_baseurl', 'doc_version')) + '/'      # where the pages will be

DIRECTIVE = re.compile(r'^\s*#\|\s*([\w-]+)\s*:?\s*(.*)$')
HIDDEN = {'hide', 'default_exp', 'exporti'}
FOLDED = {'predict': 'hide-output', 'solution': 'hide-cell', 'check': 'hide-cell'}
PROMPTS = {'predict': 'Guess first, then look', 'solution': 'A solution', 'check': 'Its check, and what it says'}


def page_name(path):
    "`tutorials/01_first.ipynb` -> `tutorials/first`, the address that nbdev gives it too."
    path = PurePosixPath(path)
    return (path.parent/re.sub(r'^\d+[a-z0-9]*_', '', path.stem.lower())).as_posix()


# -- what stands where --------------------------------------------------------------------------------------------------

def contents():
    "The sidebar of _quarto.yml as {section: [notebook]}; '' holds what stands outside sections. Globs are expanded, in order of name."
    sidebar = yaml.safe_load((ROOT/'_quarto.yml').read_text(encoding='utf-8'))['website']['sidebar']['contents']
    expand = lambda item: sorted(p.relative_to(NBS).as_posix() for p in NBS.glob(item)) if '*' in item else [item]
    sections = {'': []}
    for item in sidebar:
        if isinstance(item, str): sections[''] += expand(item)
        else: sections[item['section']] = [nb for entry in item['contents'] for nb in expand(entry)]
    return {k: v for k, v in sections.items() if v}


def toctrees(sections):
    "The sidebar as hidden MyST toctrees, for the front page."
    trees = []
    for title, notebooks in sections.items():
        pages = [page_name(nb) for nb in notebooks if nb != 'index.ipynb']
        if pages: trees.append('\n'.join(['```{toctree}', ':hidden:', *([f':caption: {title}'] if title else []), '', *pages, '```']))
    return '\n\n'.join(trees)


def symbols(pages):
    "{name as it is written in prose: 'page.html#anchor'} of every entry on `pages`, and {'libkd.room': its page}."
    found = {}
    for name, cells in pages.items():
        for cell in cells:
            for anchor, symbol in re.findall(r'^<a id="([^"]+)"></a>\n\n#+ (\S+)', cell['source']): found[symbol] = f'{name}.html#{anchor}'
            for anchor, symbol in re.findall(r'^<a id="([^"]+)" data-name="([^"]+)"></a>$', cell['source']): found[symbol] = f'{name}.html#{anchor}'
            if m := re.match(r'`from ([\w.]+) import \*`$', cell['source']): found[m[1]] = f'{name}.html'
    return found


# -- text ---------------------------------------------------------------------------------------------------------------

CALLOUT = re.compile(r'^:{3,}\s*\{\.callout-(note|tip|warning|caution|important)\b([^}]*)\}\s*$')
DIV = re.compile(r'^:{3,}\s*(\{[^}]*\})?\s*$')


def callouts(text):
    "Quarto's callouts -> MyST admonitions; other fenced divs are unwrapped."
    lines, out, stack, fenced = text.split('\n'), [], [], False
    for i, line in enumerate(lines):
        fenced ^= line.lstrip().startswith('```')
        if fenced: out.append(line); continue
        if m := CALLOUT.match(line):
            title = re.search(r'title="([^"]*)"', m[2])
            following = next((o for o in lines[i+1:] if o.strip()), '')
            heading = None if title else re.match(r'#+\s+(.*)', following)
            if heading: lines[lines.index(following, i)] = ''
            stack.append(':' * (8 - len(stack)))
            folded = ' dropdown' if 'collapse="true"' in m[2] else ''
            name = title[1] if title else heading[1] if heading else m[1].title()
            out += ['', f'{stack[-1]}{{admonition}} {name}', f':class: {m[1]}{folded}', '']
        elif m := DIV.match(line):
            if m[1]: stack.append(None)
            elif stack and (fence := stack.pop()): out += ['', fence, '']
        else: out.append(line)
    return '\n'.join(out)


# where types that are not ours are told of
ELSEWHERE = {name: f'https://{at}' for at, names in {
    'docs.pytorch.org/docs/stable/tensors.html#torch.Tensor': 'Tensor',
    'docs.pytorch.org/docs/stable/generated/torch.nn.Module.html': 'Module',
    'docs.pytorch.org/docs/stable/data.html#torch.utils.data.DataLoader': 'DataLoader',
    'docs.fast.ai/learner.html#learner': 'Learner',
    'docs.fast.ai/data.core.html#dataloaders': 'DataLoaders',
    'docs.fast.ai/data.core.html#tfmddl': 'TfmdDL',
    'docs.fast.ai/data.block.html#transformblock': 'TransformBlock',
    'docs.fast.ai/data.block.html#datablock': 'DataBlock',
    'docs.fast.ai/optimizer.html#optimizer': 'Optimizer',
    'docs.fast.ai/optimizer.html#optimwrapper': 'OptimWrapper',
    'docs.fast.ai/vision.core.html#pilimage': 'PILImage',
    'huggingface.co/docs/timm/models/vision-transformer': 'VisionTransformer',
    'pillow.readthedocs.io/en/stable/reference/Image.html#PIL.Image.Image': 'Image',
    'pandas.pydata.org/docs/reference/api/pandas.DataFrame.html': 'DataFrame',
    'pandas.pydata.org/docs/reference/api/pandas.Series.html': 'Series',
    'numpy.org/doc/stable/reference/generated/numpy.ndarray.html': 'ndarray',
    'docs.pytorch.org/docs/stable/tensor_attributes.html#torch.device': 'device',
    'anywidget.dev': 'AnyWidget',
    'tqdm.github.io/docs/tqdm/': 'tqdm',
    'docs.python.org/3/library/pathlib.html#pathlib.Path': 'Path',
    'docs.python.org/3/library/typing.html#typing.Callable': 'Callable',
    **{f'docs.python.org/3/library/collections.abc.html#collections.abc.{o}': o for o in ('Sequence', 'Iterator')},
    **{f'docs.python.org/3/library/functions.html#{o}': o for o in ('int', 'float', 'bool', 'object', 'slice', 'type', 'iter')},
    **{f'docs.python.org/3/library/stdtypes.html#{o}': o for o in ('str', 'bytes', 'list', 'tuple', 'dict')},
    'docs.python.org/3/library/constants.html#None': 'None'}.items() for name in names.split()}


class Links:
    "Rewrites the links of one page: notebooks become pages, names in backticks and in types become links to their entries."
    def __init__(self, page, known):
        self.page, self.up, self.known = page, '../' * page.count('/'), known
        self.lost = set()                               # names in types that nobody documents

    def type(self, m):
        "A type, each name in it a link where somebody documents it."
        known = {**ELSEWHERE, **{name: self.up + at for name, at in self.known.items()}}
        self.lost |= {*re.findall(r'[A-Za-z_]\w*', m[1])} - known.keys()
        linked = lambda n: f'<a href="{known[n[0]]}">{n[0]}</a>' if n[0] in known else n[0]
        text = re.sub(r'[A-Za-z_]\w*', linked, html.escape(m[1], quote=False))
        return f'<code class="type">{text}</code>'

    def notebook(self, m):
        "`](x/01_a.ipynb` -> `](x/a.ipynb`: Sphinx knows the page by that name."
        return f']({page_name(m[1])}.ipynb'

    def name(self, m):
        address = self.known.get(m[1].removesuffix('()'))
        if not address or address.split('.html')[0] == self.page and '#' not in address: return m[0]
        return f'<a href="{self.up}{address}"><code>{m[1]}</code></a>'

    def __call__(self, text):
        parts = re.split(r'(```.*?```|~~~.*?~~~)', text, flags=re.S)                  # code fences stay as they are
        for i in range(0, len(parts), 2):
            s = re.sub(r'\]\(((?!\w+:)[^)\s#]+)\.(?:ipynb|html)', self.notebook, parts[i])
            s = re.sub(r'`([^`\n]+)`\{\.type\}', self.type, s)
            lines = s.split('\n')
            for j, line in enumerate(lines):
                if not line.startswith(('#', '|', '<', '**`')): lines[j] = re.sub(r'(?<![\[`\w])`([A-Za-z_][\w.]*(?:\(\))?)`(?!`|\])', self.name, line)
            parts[i] = '\n'.join(lines)
        return ''.join(parts)


# -- cells --------------------------------------------------------------------------------------------------------------

def split_directives(source):
    "(directives, code) of a code cell."
    lines, found = source.split('\n'), {}
    while lines and (m := DIRECTIVE.match(lines[0])): found[m[1]] = m[2].strip(); lines.pop(0)
    return found, '\n'.join(line for line in lines if not re.search(r'#\|\s*hide_line\s*$', line)).strip('\n')


def defined(code):
    "Public names that a cell defines: `f`, `Class`, and `Class.f` for a patch."
    for node in ast.parse(re.sub(r'(?m)^\s*[%!].*$', '', code)).body:
        if not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)) or node.name.startswith('_'): continue
        patched = any('patch' in ast.unparse(d) for d in node.decorator_list)
        kind = node.args.args[0].annotation if patched and node.args.args else None
        owners = [] if kind is None else [ast.unparse(o) for o in (kind.elts if isinstance(kind, ast.Tuple) else [kind])]
        owners = [o for part in owners for o in re.split(r'\s*\|\s*', part)]
        if owners: yield f'{owners[0]}.{node.name}'
        else: yield node.name


def classes(code): return [n.name for n in ast.parse(code).body if isinstance(n, ast.ClassDef) and not n.name.startswith('_')]


def look_up(module, name):
    "The object called `name` in `module`; a property stays a property."
    owner, _, last = name.rpartition('.')
    holder = getattr(module, owner) if owner else module
    value = inspect.getattr_static(holder, last)
    return value if isinstance(value, property) else getattr(holder, last)


def source_url(module, obj):
    raw = inspect.unwrap(obj.fget if isinstance(obj, property) else getattr(obj, '__func__', obj))
    try: return f'{cfg["git_url"]}/blob/{cfg["branch"]}/{module.__name__.replace(".", "/")}.py#L{inspect.getsourcelines(raw)[1]}'
    except (OSError, TypeError): return ''


def front_matter(text):
    "A raw first cell with title and description, as run notebooks have it -> title and promise."
    if not (m := re.match(r'---\s*\n(.*?)\n---\s*$', text.strip(), re.S)): return ''
    meta = yaml.safe_load(m[1])
    return f'# {meta["title"]}\n' + (f'> {meta["description"]}\n' if meta.get('description') else '')


def markdown(text): return dict(cell_type='markdown', metadata={}, source=text)


def outputs_of(cell):
    "Outputs without widget views: their figure stands beside them."
    kept = []
    for out in cell.get('outputs', []):
        data = out.get('data', {})
        if 'text/html' in data: data.pop('application/vnd.jupyter.widget-view+json', None)
        kept.append(out)
    return kept


def code_cell(cell, directives, code):
    "A code cell with its directives as the tags that myst-nb knows."
    off = lambda key: directives.get(key, '').strip('"\'').lower() == 'false'
    tags, outputs = list(cell['metadata'].get('tags', [])), outputs_of(cell)
    if off('echo') or 'hide_input' in directives: tags.append('remove-input')
    if off('output') or 'hide_output' in directives: outputs = []
    if directives.get('code-fold') in ('true', 'show'): tags.append('hide-input')
    tags += [FOLDED[t] for t in tags if t in FOLDED]      # lessons: look after you have thought
    prompts, shown = [PROMPTS[t] for t in tags if t in PROMPTS], {}
    if 'code-summary' in directives: prompts.append(directives['code-summary'].strip('"\''))
    if prompts: shown |= dict(code_prompt_show=prompts[-1], code_prompt_hide=prompts[-1])
    if 'fig-alt' in directives: shown['image'] = {'alt': directives['fig-alt'].strip('"\'')}
    meta = ({'tags': tags} if tags else {}) | ({'mystnb': shown} if shown else {})
    return dict(cell_type='code', metadata=meta, source=code, execution_count=None, outputs=outputs)


def text_of(cell): return ''.join(cell['source'])


def code_of(cell):
    "(directives, code) of a code cell that the site shows, or None."
    if cell['cell_type'] != 'code': return None
    directives, code = split_directives(text_of(cell))
    if HIDDEN & directives.keys() or directives.get('include', '').lower() == 'false': return None
    return directives, code


def used(code):
    "Names in a piece of code; `.name` of what it takes from an object, and `Class.name` where it says of which."
    try: nodes = list(ast.walk(ast.parse(re.sub(r'(?m)^(\s*)[%!].*$', r'\1pass', code))))
    except SyntaxError: return set()
    taken = [n for n in nodes if isinstance(n, ast.Attribute)]
    said = {n.value for n in nodes if isinstance(n, ast.Constant) and isinstance(n.value, str) and n.value.isidentifier()}
    names = {n.id for n in nodes if isinstance(n, ast.Name)} | {n.attr for n in taken} | said
    return names | {f'.{n.attr}' for n in taken} | {f'{n.value.id}.{n.attr}' for n in taken if isinstance(n.value, ast.Name)}


def telling(entries):
    "{how code may name it: entry}. Of a method `.name` is enough where no other entry and no ordinary object has one."
    import numpy as np, pandas as pd, torch
    ordinary = {o for kind in (torch.Tensor, torch.nn.Module, np.ndarray, pd.DataFrame, Path, str, list, dict) for o in dir(kind)}
    ends = Counter(o.rpartition('.')[2] for o in entries)
    short = {f'.{end}': o for o in entries if '.' in o and ends[end := o.rpartition('.')[2]] == 1 and end not in ordinary}
    return short | {o: o for o in entries}


def examples(notebooks):
    "name -> (page, number of a cell) that shows it: the first of its own room, or else of any page."
    exports = {name: {o for c in nb['cells'] if (k := code_of(c)) and 'export' in k[0] for o in defined(k[1])} for name, nb in notebooks.items()}
    called, found = telling(set().union(*exports.values())), {}
    for own in (True, False):
        for name, nb in notebooks.items():
            for i, cell in enumerate(nb['cells']):
                if not (k := code_of(cell)) or 'export' in k[0]: continue
                names = {o for o in used(k[1]) & called.keys() if called[o] in exports[name] or not own and o[0] != '.'}
                for o in names: found.setdefault(called[o], (name, i))
    return found


def page(nb, name, shown, pictured=()):
    "The cells of one page, links not yet made; `shown`: name -> (page, cell), `pictured`: cells to which the gallery leads."
    module, level, cells, up = None, 2, [], '../' * name.count('/')
    anchors = {i for p, i in shown.values() if p == name} | {*pictured}
    titled = any(c['cell_type'] == 'markdown' and text_of(c).startswith('# ') for c in nb['cells'][:2])
    for i, cell in enumerate(nb['cells']):
        text = text_of(cell)
        if cell['cell_type'] == 'raw' and not titled and (title := front_matter(text)): cells.append(markdown(title))
        if cell['cell_type'] == 'markdown':
            if found := re.findall(r'(?m)^(#{1,6}) ', re.sub(r'```.*?```', '', text, flags=re.S)): level = len(found[-1])
            tells = i and 'predict' in nb['cells'][i-1]['metadata'].get('tags', [])     # what comes out above
            cells.append(markdown(callouts(closed(text, 'What it shows') if tells else text)))
        if cell['cell_type'] != 'code': continue
        directives, code = split_directives(text)
        if 'default_exp' in directives:
            module = importlib.import_module(f'{cfg["lib_name"]}.{directives["default_exp"].split()[0]}')
            cells.append(markdown(f'`from {module.__name__} import *`'))
        if 'exporti' in directives:          # a class that only other rooms make: types lead to where it is told of
            cells += [markdown(f'<a id="{o.lower()}" data-name="{o}"></a>') for o in classes(code)]
        if not code_of(cell): continue
        if 'export' in directives:
            for nm in defined(code):
                obj, at = look_up(module, nm), shown.get(nm)
                example = at and f'{"" if at[0] == name else up + at[0] + ".html"}#cell-{at[1]}'
                entry = document(nm, obj, min(max(level + 1, 3), 4), source_url(module, obj))
                if entry and example: entry = entry.replace('{.source}', f'{{.source}} <a class="source" href="{example}">example</a>', 1)
                if entry: cells.append(markdown(entry))
            pictured_here = [o for o in cell.get('outputs', []) if {'text/html', 'image/png', 'text/markdown'} & o.get('data', {}).keys()]
            if pictured_here: cells.append(code_cell({**cell, 'outputs': pictured_here}, {'echo': 'false'}, code))
        elif code.strip() or cell.get('outputs'):
            if i in anchors: cells.append(markdown(f'<a id="cell-{i}"></a>'))
            cells.append(code_cell(cell, directives, code))
            if 'fig-cap' in directives: cells.append(markdown(f'*{directives["fig-cap"]}*'))
    return cells


def linked(cells, links):
    "The cells with links in their text and in the text that they put out."
    for cell in cells:
        if cell['cell_type'] == 'markdown': cell['source'] = links(cell['source'])
        for out in cell.get('outputs', []):
            if 'text/markdown' in (data := out.get('data', {})): data['text/markdown'] = links(''.join(data['text/markdown']))
    return cells


def write(cells, path):
    "A page for Sphinx; a file that says the same already stays, so that Sphinx need not read it again."
    for i, cell in enumerate(cells): cell['id'] = f'c{i}'
    meta = dict(kernelspec=dict(name='python3', display_name='Python 3', language='python'), language_info=dict(name='python', pygments_lexer='ipython3'))
    written(path, json.dumps(dict(cells=cells, metadata=meta, nbformat=4, nbformat_minor=5), indent=1).encode())


def written(path, data):
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.exists() or path.read_bytes() != data: path.write_bytes(data)


def to_run(nb, name):
    "A notebook without outputs whose first cell installs the package: for Colab, or any other machine."
    first = markdown(f'*From {cfg["lib_name"]} {cfg["version"]}, page {name}. The next cell installs the package; in an environment that has it, skip it.*')
    install = dict(cell_type='code', metadata={}, source=f'%pip install -q "{cfg["lib_name"]}[all]"', execution_count=None, outputs=[])
    cells = [install, first, *({**c, **({'outputs': [], 'execution_count': None} if c['cell_type'] == 'code' else {})} for c in nb['cells'])]
    for i, cell in enumerate(cells): cell['id'] = cell.get('id', f'install{i}')
    return dict(cells=cells, metadata=dict(kernelspec=dict(name='python3', display_name='Python 3', language='python')), nbformat=4, nbformat_minor=5)


def main(dst, extra):
    """Write all pages, and the pictures that they show, into the folder `dst`; notebooks to run and small pictures into `extra`.
    Returns what is wrong with them, lines of text."""
    import gallery
    dst, extra, sections = Path(dst), Path(extra), contents()
    notebooks = {page_name(path): json.loads((NBS/path).read_text(encoding='utf-8')) for paths in sections.values() for path in paths}
    tiles, shown = gallery.tiles(notebooks), examples(notebooks)
    pages = {name: page(nb, name, shown, [t.cell for t in tiles if t.page == name]) for name, nb in notebooks.items()}
    known, kept, lost = symbols(pages), set(), []                                       # only what has an entry is linked
    for name, cells in pages.items():
        for cell in cells:
            if cell['cell_type'] == 'markdown': cell['source'] = gallery.filled(cell['source'], tiles, sections)
        cells = linked(cells, links := Links(name, known)) + [markdown(toctrees(sections))] * (name == 'index')
        lost += [f'{name}: the type {o} leads nowhere; pages.ELSEWHERE can name its page' for o in sorted(links.lost)]
        write(cells, dst/f'{name}.ipynb')
        written(extra/'notebooks'/f'{name}.ipynb', json.dumps(to_run(notebooks[name], name), indent=1, ensure_ascii=False).encode())
        kept.add(dst/f'{name}.ipynb')
    for path in NBS.rglob('images/*'):
        written(dst/path.relative_to(NBS), path.read_bytes())
        kept.add(dst/path.relative_to(NBS))
    for tile in tiles:
        for file, data in tile.files().items(): written(extra/file, data)
    for path in dst.rglob('*'):
        if path.is_file() and path not in kept: path.unlink()
    return lost


if __name__ == '__main__': main(*sys.argv[1:])
