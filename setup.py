"""Everything that packaging needs stands in settings.ini, which nbdev reads too. The build copies runs and tutorials into the wheel."""
import shutil
from configparser import ConfigParser
from pathlib import Path
import setuptools
from setuptools.command.build_py import build_py

here = Path(__file__).parent
config = ConfigParser(delimiters=['='])
config.read(here/'settings.ini', encoding='utf-8')
cfg = config['DEFAULT']
lib, lowest = cfg['lib_name'], cfg['min_python']


def reqs(key): return cfg.get(key, '').split()


def readme():
    "README.md for a package index, which has no folder beside it: pictures by their address."
    raw = cfg['git_url'].replace('https://github.com', 'https://raw.githubusercontent.com') + f'/{cfg["branch"]}'
    return (here/'README.md').read_text(encoding='utf-8').replace('](nbs/images/', f']({raw}/nbs/images/')


class BuildNotebooks(build_py):
    "Adds nbs/runs, nbs/tutorials and what lessons start from as <lib>/notebooks: one copy in git, one in the wheel, none in an editable install."
    def run(self):
        super().run()
        if self.editable_mode: return
        notebooks = Path(self.build_lib)/lib/'notebooks'
        shutil.rmtree(notebooks, ignore_errors=True)
        wanted = [p for folder in ('runs', 'tutorials') for p in (here/'nbs'/folder).glob('[!_.]*.ipynb')]
        start  = [p for p in (here/'nbs'/'tutorials'/'prepared').rglob('*') if p.is_file() and '_work' not in p.parts]
        for source in sorted(wanted + start):
            target = notebooks/source.relative_to(here/'nbs')
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, target)


extras = {key.removesuffix('_requirements'): reqs(key) for key in cfg if key.endswith('_requirements')}
# `all` is for users and leaves them the newest fastai; `dev` is what `make` installs: that, the site, and nbdev with its limits.
extras['all'] = sorted({r for key, rs in extras.items() if key not in ('dev', 'docs') for r in rs})
extras['dev'] = sorted({*extras['dev'], *extras['docs'], *extras['all']})

setuptools.setup(
    name=lib, version=cfg['version'], description=cfg['description'], keywords=cfg['keywords'], url=cfg['git_url'],
    project_urls={'Documentation': cfg['doc_host'] + cfg['doc_baseurl'], 'Source': cfg['git_url'], 'Issues': f"{cfg['git_url']}/issues",
                  'Changes': f"{cfg['git_url']}/blob/{cfg['branch']}/CHANGELOG.md"},
    author=cfg['author'], author_email=cfg['author_email'], license='Apache-2.0', license_files=['LICENSE'],
    long_description=readme(), long_description_content_type='text/markdown',
    classifiers=['Development Status :: 3 - Alpha', 'Intended Audience :: Science/Research', 'Intended Audience :: Education', 'Intended Audience :: Developers',
                 'Topic :: Scientific/Engineering :: Artificial Intelligence', 'Framework :: Jupyter']
        + [f'Programming Language :: Python :: 3.{minor}' for minor in range(int(lowest.split('.')[1]), 14)],
    packages=setuptools.find_packages(include=[lib, f'{lib}.*']),
    package_data={lib: ['static/*.js', 'static/*.css', 'static/*.html', 'static/*.json', 'static/*.zip', 'py.typed', '*.pyi']}, include_package_data=False, cmdclass={'build_py': BuildNotebooks},
    python_requires=f'>={lowest}', install_requires=reqs('requirements'), extras_require=extras,
    entry_points={'console_scripts': reqs('console_scripts'), 'nbdev': [f'{lib}={lib}._modidx:d']}, zip_safe=False)
