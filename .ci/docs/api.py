"""A public name of libkd as markdown: heading, signature, docstring, a list of parameters from its docments."""
import ast, inspect, re, textwrap
from fastcore.docments import docments
from words import GLOSSARY, THEIRS, called

EMPTY = inspect.Parameter.empty
ABOVE = 'as said above'


def type_name(kind):
    "An annotation as a reader would write it."
    if kind in (EMPTY, None): return ''
    text = kind if isinstance(kind, str) else inspect.formatannotation(kind)
    return re.sub(r'\b(?:[A-Za-z_]\w*\.)+(?=\w)', '', text).replace("'", '')


def default(value):
    "A default as it was written, as far as its repr tells."
    if inspect.isclass(value) or inspect.isfunction(value): return '…' if value.__name__ == '<lambda>' else value.__name__
    text = re.sub(r' at 0x[0-9a-f]+', '', repr(value))
    return text if len(text) <= 40 else '…'


def made_as_its_base(obj):
    "Whether a class takes what the one that it is made of takes: that is told there."
    return inspect.isclass(obj) and called(obj) is None and not hasattr(obj, '_fields')


def signature(name, obj, width=90):
    "`name(a, b=1, *, c)`, on several lines where it is long; types stand in the list below it."
    try: sig = inspect.signature(obj)
    except (ValueError, TypeError): return name
    if made_as_its_base(obj): return f'{name}({obj.__base__.__name__})'
    parts, star = [], False
    for p in sig.parameters.values():
        if p.name in ('self', 'cls'): continue
        if p.kind is p.KEYWORD_ONLY and not star: parts.append('*'); star = True
        star |= p.kind is p.VAR_POSITIONAL
        mark = {p.VAR_POSITIONAL: '*', p.VAR_KEYWORD: '**'}.get(p.kind, '')
        parts.append(mark + p.name + ('' if p.default is EMPTY else f'={default(p.default)}'))
    lines, indent = [f'{name}('], ' ' * (len(name) + 1)
    for i, part in enumerate(parts):
        part += ', ' if i < len(parts) - 1 else ''
        if len(lines[-1]) + len(part) > width and lines[-1].strip() and i: lines.append(indent)
        lines[-1] += part
    return '\n'.join(line.rstrip() for line in lines) + ')'


def parameters(obj):
    """A definition list: name, type and default, then the docment, or what the glossary says; those of which only the docstring
    tells stand together. Types are links where `pages` knows them."""
    if made_as_its_base(obj): return ''
    try: docs, sig = docments(obj, full=True, returns=True, args_kwargs=True), inspect.signature(obj)
    except Exception: return ''      # builtins and objects without source have none
    kinds, rows, above = {k: v.annotation for k, v in sig.parameters.items()}, [], []
    for name, p in docs.items():
        if name in ('self', 'cls') or name not in kinds: continue
        value, kind = p.get('default', EMPTY), type_name(kinds[name])
        extra = ', '.join(filter(None, [kind and f'`{kind}`{{.type}}', '' if value is EMPTY else f'default `{default(value)}`']))
        term = f'**`{name}`**{" " + extra if extra else ""}'
        if text := p.get('docment') or GLOSSARY.get(name) or THEIRS.get(name): rows.append(f'{term}\n: {" ".join(text.split())}')
        else: above.append(term)
    if above: rows.append(f'{" · ".join(above)}\n: {ABOVE}')
    return '\n\n'.join(rows + ([] if inspect.isclass(obj) else returns(sig, docs.get('return'))))


def returns(sig, doc):
    "The entry for what comes back: a list of one, or of none."
    kind, text = type_name(sig.return_annotation), ' '.join(((doc or {}).get('docment') or '').split())
    return [f'*returns*{kind and f" `{kind}`{{.type}}"}\n: {text or ABOVE}'] if kind or text else []


def methods(name, cls):
    "What the body of a class defines, a line each; patched methods have their own entry."
    try: body = ast.parse(textwrap.dedent(inspect.getsource(cls))).body[0].body
    except (OSError, TypeError): return ''
    rows = []
    for key in (o.name for o in body if isinstance(o, ast.FunctionDef) and not o.name.startswith('_')):
        value = inspect.getattr_static(cls, key)
        raw = value.fget if isinstance(value, property) else getattr(value, '__func__', value)
        if not getattr(raw, '__doc__', None): continue
        shown = key if isinstance(value, property) else signature(key, raw)
        rows.append(f'- `{" ".join(shown.split())}`: {inspect.cleandoc(raw.__doc__).splitlines()[0]}')
    return '\n'.join(rows)


def document(name, obj, level, source=''):
    "All there is to say about `obj`, to stand below the prose that introduces it; nothing where it has no docstring."
    kind = 'class' if inspect.isclass(obj) else 'property' if isinstance(obj, property) else ''
    raw = obj.fget if isinstance(obj, property) else getattr(obj, '__func__', obj)
    documented = inspect.isroutine(raw) or (inspect.isclass(raw) and '__doc__' in vars(raw))
    doc = inspect.cleandoc(raw.__doc__ or '') if documented else ''
    if not doc: return ''            # what only a framework calls has no entry
    head = name if isinstance(obj, property) or not callable(raw) else signature(name, raw)
    parts = [f'<a id="{name.lower()}"></a>\n\n{"#" * level} {name}', f'```python\n{(kind + " ") if kind else ""}{head}\n```',
             f'[source]({source}){{.source}}' if source else '', doc]
    if inspect.isroutine(raw) or inspect.isclass(raw): parts.append(parameters(raw))
    if inspect.isclass(raw): parts.append(methods(name, raw))
    return '\n\n'.join(filter(None, parts))
