"""Sphinx settings. Pages come from pages.py; mathematics becomes MathML here, so that the site needs no MathJax and no network."""
import html
from configparser import ConfigParser
from functools import partial
from pathlib import Path
from docutils.nodes import SkipNode
from latex2mathml.converter import convert
from sphinx.util import logging

here = Path(__file__).resolve().parent
config = ConfigParser(delimiters=['='])
config.read(here.parents[1]/'settings.ini', encoding='utf-8')
cfg = config['DEFAULT']

project, author, release = cfg['title'], cfg['author'], cfg['version']
copyright = '%s, %s' % (cfg['copyright'].split()[0], author)
language = 'en'
extensions = ['myst_nb']
exclude_patterns = ['_*', '**/.ipynb_checkpoints']
suppress_warnings = ['myst.header', 'mystnb.unknown_mime_type', 'misc.highlighting_failure']

nb_execution_mode = 'off'                                    # the committed outputs are the real ones
nb_merge_streams = True
nb_mime_priority_overrides = [('html', 'text/html', 5)]
myst_enable_extensions = ['dollarmath', 'amsmath', 'colon_fence', 'deflist', 'attrs_inline', 'html_image']
myst_heading_anchors = 3

html_theme = 'furo'
html_title = f'{project} {release}'
html_static_path = [str(here/'_static')]
html_css_files = ['libkd.css']
html_show_sourcelink = html_copy_source = False
html_math_renderer = 'mathml'
html_theme_options = dict(light_css_variables={'color-brand-primary': '#0b5fa5', 'color-brand-content': '#0b5fa5'},
                          dark_css_variables={'color-brand-primary': '#6db3f2', 'color-brand-content': '#6db3f2'})


def mathml(writer, node, display):
    "Write one formula; LaTeX that cannot be converted stays readable and fails a build with -W."
    source = node.astext()
    try: out = convert(source, display=display)
    except Exception as e:
        logging.getLogger(__name__).warning('formula not understood (%s): %s', e, source, location=node)
        out = f'<code>{html.escape(source)}</code>'
    writer.body.append(f'<div class="math">{out}</div>' if display == 'block' else out)
    raise SkipNode


def setup(app):
    app.add_html_math_renderer('mathml', (partial(mathml, display='inline'), None), (partial(mathml, display='block'), None))
