"""libkd/*.pyi: what editors and type checkers see. Read from the modules, nothing is imported: `@patch`ed methods stand
in their classes, passed-on arguments (`@delegates`) have their names. tests/test_stubs.py holds them to what is live."""
import ast, builtins, importlib.util, re, textwrap
from functools import cache
from pathlib import Path

LIB = Path(__file__).resolve().parents[1]/'libkd'
BY_HAND = ('__init__', '_modidx', 'all')                    # what they bring stands in their source
MARK = '# Made from the modules by `make prepare`: do not edit'
KEPT = ('property', 'classmethod', 'staticmethod', 'contextmanager', 'contextlib.contextmanager', 'dataclass')
DISPLAYS = {'dict': (ast.Dict, ast.DictComp), 'list': (ast.List, ast.ListComp), 'set': (ast.Set, ast.SetComp),
            'tuple': ast.Tuple, 'str': ast.JoinedStr}
FUNCTION = ast.FunctionDef, ast.AsyncFunctionDef


def public(name): return not name.startswith('_') or name.startswith('__') and name.endswith('__')


def statements(body):
    "Those of a module, also below `if` and `try`."
    for node in body:
        yield node
        if isinstance(node, (ast.If, ast.Try)): yield from statements(node.body)


class Module:
    "A source file: what it defines and from where it imports."
    def __init__(self, name, path):
        self.name, self.tree = name, ast.parse(Path(path).read_text(encoding='utf-8'))
        self.defs, self.imports = {}, {}
        for node in statements(self.tree.body):
            if isinstance(node, (*FUNCTION, ast.ClassDef)): self.defs.setdefault(node.name, node)
            if isinstance(node, (ast.Import, ast.ImportFrom)):
                for a in node.names: self.imports[a.asname or a.name.split('.')[0]] = node, a

    def find(self, name, abroad=False):
        "(definition, its module) of a name that is seen here; None for what is not. `abroad`: also in other libraries."
        if name in self.defs: return self.defs[name], self
        node, alias = self.imports.get(name, (None, None))
        if not isinstance(node, ast.ImportFrom) or not (node.level or abroad): return None
        there = importlib.util.resolve_name('.'*node.level + (node.module or '__init__'), self.name.rpartition('.')[0])
        return module(there).find(alias.name)

    def source(self, name):
        "(the beginning of an import, its end): how another module gets a name that is seen here."
        if name not in self.imports: return f'from .{self.name.removeprefix("libkd.")} import', name
        node, alias = self.imports[name]
        head = f'from {"."*node.level}{node.module or ""} import' if isinstance(node, ast.ImportFrom) else 'import'
        return head, ast.unparse(alias)


@cache
def module(name):
    "A `Module`, by its whole name."
    ours = LIB/f'{name.removeprefix("libkd.")}.py'
    return Module(name, ours if name.startswith('libkd.') else importlib.util.find_spec(name).origin)


def names_in(node): return {n.id for n in ast.walk(node) if isinstance(n, ast.Name)}


def decorators(fn): return {ast.unparse(d.func if isinstance(d, ast.Call) else d): d for d in fn.decorator_list}


def patched(fn):
    "(name of the class that gets a function, the kind of thing it becomes there); None: a function."
    d = decorators(fn).get('patch')
    if d is None: return None
    flags = {k.arg for k in d.keywords} if isinstance(d, ast.Call) else ()
    kind = 'classmethod' if 'cls_method' in flags else 'property' if 'as_prop' in flags else ''
    return ast.unparse(fn.args.args[0].annotation), kind


def passed_on(fn, mod):
    "Parameters that `@delegates` adds: (argument, default, module), and whether `**kwargs` stays."
    found, keep = {}, True
    for d in reversed(fn.decorator_list):
        if not isinstance(d, ast.Call) or ast.unparse(d.func) != 'delegates': continue
        keep = any(k.arg == 'keep' for k in d.keywords)
        cls, *method = ast.unparse(d.args[0]).split('.')
        node, there = mod.find(cls, abroad=True)
        if method: node, there = next((o, m) for c, m in ancestry(node, there) for o in c.body
                                      if isinstance(o, FUNCTION) and o.name == method[0])
        for arg, default, where in parameters(node, there):
            if default is not None and arg.arg not in found: found[arg.arg] = arg, default, where
    return found, keep


def parameters(fn, mod):
    "All of a function that have names: (argument, default or None, module in which they are written)."
    a = fn.args
    plain = [*a.posonlyargs, *a.args]
    own = [*zip(plain, [None]*(len(plain) - len(a.defaults)) + a.defaults), *zip(a.kwonlyargs, a.kw_defaults)]
    more, _ = passed_on(fn, mod)
    own = [(arg, default, mod) for arg, default in own]
    return own + [o for name, o in more.items() if name not in {arg.arg for arg, *_ in own}]


def is_none(node): return isinstance(node, ast.Constant) and node.value is None


def single(target, value):
    "`a, b = 1, 2` in single assignments: (target, value or None)."
    if not isinstance(target, ast.Tuple): return [(target, value)]
    return zip(target.elts, value.elts if isinstance(value, ast.Tuple) else [None]*len(target.elts))


class Stub:
    "The text of one .pyi."
    def __init__(self, mod):
        self.mod, self.room, self.lines, self.needed = mod, mod.name.removeprefix('libkd.'), [], {}

    def annotation(self, node, where, optional=False):
        text = node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else ast.unparse(node)
        for name in names_in(ast.parse(text)) - set(dir(builtins)):
            if not public(name) or name not in {**where.imports, **where.defs}: return self.anything()
            head, end = where.source(name) if where is not self.mod or name in where.imports else ('', '')
            if head not in ('', f'from .{self.room} import'): self.needed[name] = head, end
        return f'{text} | None' if optional and 'None' not in text and text != 'object' else text

    def anything(self):
        self.needed['Any'] = 'from typing import', 'Any'
        return 'Any'

    def argument(self, arg, default, where):
        kind = f': {self.annotation(arg.annotation, where, is_none(default))}' if arg.annotation else ''
        if default is None: return arg.arg + kind
        try: text = ast.unparse(default) if len(repr(ast.literal_eval(default))) <= 30 else '...'
        except ValueError: text = '...'
        return f'{arg.arg}{kind} = {text}' if kind else f'{arg.arg}={text}'

    def signature(self, fn, where, bound):
        "The parameters, one string each."
        a, out = fn.args, []
        positional, known = len(a.posonlyargs) + len(a.args), parameters(fn, where)
        more, keep = passed_on(fn, where)
        for i, (arg, default, mod) in enumerate(known):
            if i == positional: out.append('*' + self.argument(a.vararg, None, where) if a.vararg else '*')
            if i == 0 and bound: out.append(arg.arg)
            else: out.append(self.argument(arg, default, mod))
            if i + 1 == len(a.posonlyargs): out.append('/')
        if a.vararg and len(known) <= positional: out.append('*' + self.argument(a.vararg, None, where))
        if a.kwarg and keep: out.append('**' + self.argument(a.kwarg, None, where))
        return out

    def function(self, fn, where, indent='', kind='', bound=False):
        "`kind`: what `@patch` makes of it."
        for name, d in decorators(fn).items():
            if name in KEPT: self.lines.append(f'{indent}@{self.annotation(d, where)}')
            if name.endswith('.setter'): self.lines.append(f'{indent}@{name}')
        if kind: self.lines.append(f'{indent}@{kind}')
        args = self.signature(fn, where, bound)
        returns = f' -> {self.annotation(fn.returns, where)}' if fn.returns else ''
        line = f'{indent}def {fn.name}({", ".join(args)}){returns}: ...'
        if len(line) > 120:
            one_each = ''.join(f'{indent}    {a},\n' for a in args)
            line = f'{indent}def {fn.name}(\n{one_each}{indent}){returns}: ...'
        self.lines.append(line)

    def kind_of(self, value, fn=None):
        "The type of what is assigned, where the source says it."
        if isinstance(value, ast.Name) and fn:
            for arg, default, where in parameters(fn, self.mod):
                if arg.arg != value.id or not arg.annotation: continue
                return self.annotation(arg.annotation, where, is_none(default))
        if isinstance(value, ast.Call) and isinstance(value.func, ast.Name):
            found = self.mod.find(value.func.id)
            if value.func.id == 'Path' or found and isinstance(found[0], ast.ClassDef):
                return self.annotation(value.func, self.mod)
        if isinstance(value, ast.Constant) and value.value is not None: return type(value.value).__name__
        return next((kind for kind, nodes in DISPLAYS.items() if isinstance(value, nodes)), None) or self.anything()

    def attributes(self, cls, methods):
        "What its methods set on `self` for the first time, with types: [(name, type)]."
        known = {t for c, _ in ancestry(cls, self.mod) for t in class_names(c)} | {m.name for m in methods}
        for fn in methods:
            for node in ast.walk(fn):
                if not isinstance(node, (ast.Assign, ast.AnnAssign)): continue
                targets = node.targets if isinstance(node, ast.Assign) else [node.target]
                for t, value in (pair for target in targets for pair in single(target, node.value)):
                    if not isinstance(t, ast.Attribute) or ast.unparse(t.value) != 'self': continue
                    if t.attr in known or not public(t.attr): continue
                    known.add(t.attr)
                    yield t.attr, self.kind_of(value, fn)

    def cls(self, node, extra):
        "A class with the methods that others give it: `extra`, of (function, module, kind)."
        for name, d in decorators(node).items():
            if name == 'dataclass': self.lines.append(f'@{self.annotation(d, self.mod)}')
        bases = ', '.join(self.annotation(b, self.mod) for b in node.bases)
        own = [o for o in node.body if isinstance(o, FUNCTION)]
        self.lines.append(f'class {node.name}({bases}):' if bases else f'class {node.name}:')
        start = len(self.lines)
        for o in node.body:
            if isinstance(o, ast.AnnAssign):
                kind = self.annotation(o.annotation, self.mod, is_none(o.value))
                self.lines.append(f'    {o.target.id}: {kind}' + ' = ...'*(o.value is not None))
            if isinstance(o, ast.Assign):
                parts = [part for t in o.targets for part in single(t, o.value)]
                self.lines += [f'    {t.id}: {self.kind_of(value)}' for t, value in parts if public(t.id)]
        # what a dataclass sets on itself later must not look like a field of it
        form = '    @property\n    def {}(self) -> {}: ...' if 'dataclass' in decorators(node) else '    {}: {}'
        self.lines += [form.format(*o) for o in self.attributes(node, [*own, *(f for f, *_ in extra)])]
        for o in own:
            if public(o.name): self.function(o, self.mod, '    ', bound='staticmethod' not in decorators(o))
        for fn, where, kind in extra:
            if public(fn.name): self.function(fn, where, '    ', kind, bound=True)
        if len(self.lines) == start: self.lines[-1] += ' ...'

    def text(self, patches):
        doc, seen = ast.get_docstring(self.mod.tree), set()
        bases = {n for o in self.mod.defs.values() if isinstance(o, ast.ClassDef) for b in o.bases for n in names_in(b)}
        for node in statements(self.mod.tree.body):
            if isinstance(node, ast.Assign):
                for t, value in (pair for target in node.targets for pair in single(target, node.value)):
                    if not isinstance(t, ast.Name) or t.id in seen or t.id.startswith('_'): continue
                    seen.add(t.id)
                    self.lines.append(f'{t.id}: {self.kind_of(value)}')
            if not isinstance(node, (*FUNCTION, ast.ClassDef)) or node.name in seen: continue
            if isinstance(node, FUNCTION) and patched(node) or not (public(node.name) or node.name in bases): continue
            seen.add(node.name)
            if isinstance(node, ast.ClassDef): self.cls(node, patches.get((self.mod.name, node.name), []))
            else: self.function(node, self.mod)
        exported = next((o for o in self.mod.tree.body if ast.unparse(o).startswith('__all__ =')), None)
        imports = [f'{head} {", ".join(sorted(name for h, name in set(self.needed.values()) if h == head))}'
                   for head in sorted({head for head, _ in self.needed.values()})]
        names = textwrap.fill(ast.unparse(exported), 120, subsequent_indent=' '*11) if exported else ''
        return '\n'.join([f'"""{doc}"""', MARK, *imports, '', names, '', *self.lines, ''])


def ancestry(cls, mod):
    "A class and those of libkd from which it is derived: (class, module)."
    yield cls, mod
    for base in cls.bases:
        found = isinstance(base, ast.Name) and mod.find(base.id)
        if found: yield from ancestry(*found)


def class_names(cls):
    "What a class's body defines."
    for o in cls.body:
        if isinstance(o, FUNCTION): yield o.name
        if isinstance(o, ast.AnnAssign): yield o.target.id
        if isinstance(o, ast.Assign): yield from (n for t in o.targets for n in names_in(t))


def all_patches(rooms):
    """{(module, class): [(function, module, kind)]}. A method for a class of another library goes to our classes that
    are derived from it"""
    found, foreign = {}, {}
    for mod in rooms:
        for fn in mod.tree.body:
            if not isinstance(fn, FUNCTION) or not (to := patched(fn)): continue
            ours = mod.find(to[0])
            into, key = (found, (ours[1].name, to[0])) if ours else (foreign, to[0])
            into.setdefault(key, []).append((fn, mod, to[1]))
    for mod in rooms:
        for cls in mod.defs.values():
            for name in foreign.keys() & {n for b in getattr(cls, 'bases', ()) for n in names_in(b)}:
                found.setdefault((mod.name, cls.name), []).extend(foreign[name])
    return found


def stubs():
    "{name of a module: text of its stub}."
    rooms = [module(f'libkd.{p.stem}') for p in sorted(LIB.glob('*.py')) if p.stem not in BY_HAND]
    patches = all_patches(rooms)
    return {s.room: s.text(patches) for s in map(Stub, rooms)}


if __name__ == '__main__':
    made = stubs()
    for old in LIB.glob('*.pyi'):
        if old.stem not in made: old.unlink()
    for name, text in made.items(): (LIB/f'{name}.pyi').write_text(text, encoding='utf-8')
