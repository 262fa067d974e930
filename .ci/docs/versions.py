"""Kept versions: `python .ci/docs/versions.py ROOT [SITE] [--release]` puts the built site into ROOT/latest, and a release beside it, as ROOT/0.1.

ROOT is what a web server shows: it keeps what was released before, and all its versions know of each other.
"""
import argparse, json, re, shutil
from pathlib import Path
import pages

FORWARD = '''<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>libkd</title>
<meta http-equiv="refresh" content="0; url=latest/index.html"><link rel="canonical" href="{site}index.html"></head>
<body><main><h1>libkd</h1><p><a href="latest/index.html">To the documentation of the latest version</a></p></main></body></html>
'''


def kept(root):
    "The versions in a folder: latest, then the released ones, newest first."
    there = [p.name for p in root.iterdir() if (p/'_static'/'versions.js').exists() and re.fullmatch(r'latest|\d+(\.\d+)+', p.name)]
    return sorted(there, key=lambda v: [1e9] if v == 'latest' else [int(n) for n in v.split('.')], reverse=True)


def put(site, root, name):
    "The site as one version; what stood there under this name goes."
    shutil.rmtree(root/name, ignore_errors=True)
    shutil.copytree(site, root/name)


def introduce(root):
    "Tell every version of all others, with the pages that each has; what is asked of the top goes to the latest one."
    names = {v: sorted(p.relative_to(root/v).as_posix() for p in (root/v).rglob('*.html')) for v in kept(root)}
    for v in names: (root/v/'_static'/'versions.js').write_text(f'window.libkdVersions = {json.dumps(names)};\n', encoding='utf-8')
    (root/'index.html').write_text(FORWARD.format(site=pages.SITE), encoding='utf-8')
    for file in ('404.html', 'sitemap.xml', '.nojekyll'): shutil.copyfile(root/'latest'/file, root/file)
    return list(names)


def main(root, site, release):
    root, site = Path(root), Path(site)
    root.mkdir(parents=True, exist_ok=True)
    version = '.'.join(pages.cfg['version'].split('.')[:2])
    for name in ['latest', *[version] * release]: put(site, root, name)
    print(f'{root} holds {", ".join(introduce(root))}')


if __name__ == '__main__':
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument('root'); p.add_argument('site', nargs='?', default='_site/html'); p.add_argument('--release', action='store_true')
    main(**vars(p.parse_args()))
