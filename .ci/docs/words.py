"""What the API still has to say: parameters, returns and raised errors without words, counted over the live exports."""
import ast, importlib, inspect, re, textwrap
from fastcore.docments import docments

# Names that mean the same everywhere, so that a docment would only repeat them; entries on the site show these words.
GLOSSARY = dict(
    dl='fastai `DataLoader`', dls='fastai `DataLoaders`', learn='fastai `Learner`', model='A network, `nn.Module`',
    x='Pictures `(B, 3, H, W)`, normalised', y='Labels `(B,)`', xb='Pictures of a batch', yb='Labels of a batch',
    path='A file', folder='A folder')
# What a method that timm, fastai or torch asks for is called with, as they say it.
THEIRS = dict(
    num_classes='Classes of the new head; 0 for none', global_pool="How tokens or places become one vector; `None`: as it is",
    enable='Compute activations again in the backward pass, for less memory', coarse='Fewer, larger groups',
    output_fmt="`'NCHW'`; nothing else is possible", intermediates_only='Leave the final map out',
    indices='Which stages: positions, or how many from the end', prune_norm='Drop the last norm', prune_head='Drop the head',
    img_size='(height, width) in pixels, or one number; `None`: as it is',
    patch_size='(height, width) of a patch in pixels; `None`: as it is', mode="As timm's; not looked at",
    needs_reset="As timm's; not looked at", device='Where to: `torch.device` or its name',
    b='A batch; `None`: the next one', max_n='Most pictures', ctxs='matplotlib axes; `None`: new ones',
    show='Show it, or return it', unique='One sample, in as many views')
# Types that say too little by themselves: what is in them has to be said in words.
VAGUE = re.compile(r'\b(dict|list|tuple|set|Tensor|ndarray|DataFrame|Series|Callable|object|Iterator|Iterable)\b(?!\[)')


def rooms():
    "The modules that a reader may import, in their order; all of them are loaded first, for some add methods to classes of others."
    import libkd
    names = [n for n in libkd._ROOMS if n != 'all']
    for name in names: importlib.import_module(f'libkd.{name}')
    return [importlib.import_module(f'libkd.{name}') for name in names]


def known_elsewhere(cls, key):
    "Whether fastai, timm, torch or a base class of ours defines what this method means."
    from fastai.callback.core import event
    from timm.models import VisionTransformer
    return any(key in vars(base) for base in cls.__mro__[1:]) or hasattr(event, key) or hasattr(VisionTransformer, key)


def function_of(raw):
    "The function in what a class holds: of a property, a class method, a class method that was patched in."
    return raw.fget if isinstance(raw, property) else getattr(raw, '__func__', getattr(raw, 'f', raw))


def exported(modules):
    "(name as 'room.name' or 'room.Class.method', what is called) of all public functions, classes and methods."
    for m in modules:
        room = m.__name__.rpartition('.')[2]
        for name in m.__all__:
            obj = getattr(m, name)
            if inspect.isfunction(obj) or inspect.isclass(obj): yield f'{room}.{name}', obj
            if not inspect.isclass(obj): continue
            for key, raw in vars(obj).items():
                raw = function_of(raw)
                ours = inspect.isfunction(raw) and raw.__module__.startswith('libkd')
                if ours and not key.startswith('_') and not known_elsewhere(obj, key): yield f'{room}.{name}.{key}', raw


def called(obj):
    "The function whose signature counts, or None where a class has none of its own."
    if not inspect.isclass(obj) or '__dataclass_fields__' in vars(obj): return obj
    return vars(obj).get('__init__')


def body_of(fn):
    "Nodes of the source of a function, those of functions within it left out; empty where it has no source."
    try: tree = ast.parse(textwrap.dedent(inspect.getsource(fn))).body[0]
    except (OSError, TypeError, SyntaxError): return []
    todo, found = list(getattr(tree, 'body', [])) if isinstance(tree, ast.FunctionDef) else [], []
    while todo:
        node = todo.pop()
        found.append(node)
        if not isinstance(node, (ast.FunctionDef, ast.Lambda, ast.ClassDef)): todo += ast.iter_child_nodes(node)
    return found


def gives(nodes):
    "Whether a value comes back."
    none = lambda v: v is None or isinstance(v, ast.Constant) and v.value is None
    return any(isinstance(n, (ast.Return, ast.Yield)) and not none(n.value) or isinstance(n, ast.YieldFrom) for n in nodes)


def raised(nodes):
    "Names of the errors that are raised in so many words."
    names = {ast.unparse(n.exc.func if isinstance(n.exc, ast.Call) else n.exc) for n in nodes if isinstance(n, ast.Raise) and n.exc}
    return {n for n in names if n[0].isupper()}


def unsaid(name, obj):
    "What a caller of `obj` is not told: (parameters, returns, errors), lists of texts."
    fn = called(obj)
    if fn is None: return [], [], []
    doc = '\n'.join(o.__doc__ or '' for o in {obj, fn})
    docs = docments(obj, full=True, returns=True, args_kwargs=True)
    told = ' '.join([doc, *(v['docment'] or '' for v in docs.values())])
    mute = lambda k, v: not v['docment'] and k not in GLOSSARY and not re.search(rf'`\*{{0,2}}{k}\b', doc)
    params = [f'{name}: {k}' for k, v in docs.items() if k not in ('self', 'cls', 'return') and mute(k, v)]
    nodes = [] if inspect.isclass(obj) and fn is obj else body_of(fn)
    kind = docs.get('return', {}).get('anno', inspect.Parameter.empty)
    kind = '' if kind is inspect.Parameter.empty else kind if isinstance(kind, str) else inspect.formatannotation(kind)
    said = docs.get('return', {}).get('docment') or kind and not VAGUE.search(kind)
    returns = [f'{name}: returns {kind or "something"}'] if not inspect.isclass(obj) and gives(nodes) and not said else []
    return params, returns, [f'{name}: raises {e}' for e in sorted(raised(nodes)) if e not in told]


def wordless(modules):
    "(parameters, returns, errors) without words, over all exports of `modules`."
    found = [], [], []
    for name, obj in exported(modules):
        for have, more in zip(found, unsaid(name, obj)): have.extend(more)
    return found
