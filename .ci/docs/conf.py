"""Sphinx settings. Pages come from pages.py; mathematics becomes MathML here, so that the site needs no MathJax and no network."""
import html
from configparser import ConfigParser
from functools import partial
from pathlib import Path
from docutils.nodes import SkipNode
from latex2mathml.converter import convert
from sphinx.util import logging
import build, pages, polish

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

html_baseurl = pages.SITE                                    # settings.ini knows the address
html_theme = 'furo'
html_title = f'{project} {release}'
html_static_path = [str(here/'_static'), str(here.parents[1]/'nbs'/'images'/'main-run.png')]    # the preview of links
html_css_files = ['libkd.css']
html_js_files = [('versions.js', {'defer': 'defer'}), ('libkd.js', {'defer': 'defer'})]
html_favicon = str(here/'_static'/'favicon.svg')
templates_path = [str(here/'_templates')]
html_additional_pages = {'404': '404.html'}
html_show_sourcelink = html_copy_source = False
html_math_renderer = 'mathml'
html_theme_options = dict(top_of_page_buttons=[], light_css_variables={'color-brand-primary': '#0b5fa5', 'color-brand-content': '#0b5fa5'},
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
    sources = {pages.page_name(nb): nb for notebooks in pages.contents().values() for nb in notebooks}
    made_by = build.made_of(*here.glob('*.py'), *here.glob('_templates/**/*.html'))      # another maker makes all pages anew
    app.add_config_value('libkd', {**cfg, 'sources': sources, 'made_by': made_by}, 'html', [dict])
    app.connect('html-page-context', polish.on_page, priority=900)          # after furo's own
    app.connect('build-finished', polish.on_end)
    app.add_html_math_renderer('mathml', (partial(mathml, display='inline'), None), (partial(mathml, display='block'), None))
    return dict(parallel_read_safe=True, parallel_write_safe=True)
